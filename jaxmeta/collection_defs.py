"""Collections: pairs of what Python puts in one and the CollectionDef in a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from google.protobuf import any_pb2, message

from jaxmeta import building, errors, graph, trees, variables
from jaxmeta._proto import meta_graph_pb2, struct_pb2
from jaxmeta.graph import Tensor, Variable

_STRUCTURED_URL: Final = "type.googleapis.com/tensorflow.StructuredValue"
VARIABLE_COLLECTIONS: Final = (
    graph.TRAINABLE_VARIABLES,
    graph.GLOBAL_VARIABLES,
    "local_variables",
    "model_variables",
    "moving_average_variables",
    "metric_variables",
)


def collection_to_proto(
    proto: meta_graph_pb2.CollectionDef, name: str, items: Sequence[Any]
) -> None:
    """Writes a collection; its kind is that of the first item, as in TensorFlow.

    Raises:
        AttrError: the items are of several kinds, or of one that has no place in a file.
    """
    kinds = {_item_kind(item) for item in items}
    if len(kinds) != 1 or None in kinds:
        found = sorted({type(item).__name__ for item in items})
        raise errors.AttrError(
            f"collection {name!r} holds {', '.join(found)}; a collection holds variables, tensors "
            "and operations, or strings, or ints, or floats, or trees of these"
        )
    (kind,) = kinds
    if kind == "variable" and name in VARIABLE_COLLECTIONS:
        proto.bytes_list.value.extend(_variable_to_bytes(item) for item in items)
    elif kind == "any":
        proto.any_list.value.extend(items)
    elif kind in ("node", "variable"):
        proto.node_list.value.extend(item.name for item in items)
    elif kind == "bytes":
        proto.bytes_list.value.extend(
            item.encode() if isinstance(item, str) else item for item in items
        )
    elif kind == "int":
        if any(not -(1 << 63) <= item < 1 << 63 for item in items):
            raise errors.AttrError(
                f"collection {name!r} holds an integer that does not fit 64 bits"
            )
        proto.int64_list.value.extend(items)
    elif kind == "float":
        proto.float_list.value.extend(items)
    else:
        for item in items:
            packed = proto.any_list.value.add(type_url=_STRUCTURED_URL)
            packed.value = trees.structure_to_proto(item).SerializeToString(deterministic=True)


def _item_kind(item: Any) -> str | None:
    if isinstance(item, Variable):
        return "variable"
    if isinstance(item, (Tensor, graph.Operation)):
        return "node"
    if isinstance(item, any_pb2.Any):
        return "any"
    if isinstance(item, (str, bytes)):
        return "bytes"
    if isinstance(item, bool):
        return "structure"
    if isinstance(item, int):
        return "int"
    if isinstance(item, float):
        return "float"
    return "structure" if isinstance(item, (dict, list, tuple)) or item is None else None


def _variable_to_bytes(variable: Variable) -> bytes:
    return variable_to_proto(variable).SerializeToString(deterministic=True)


def variable_to_proto(variable: Variable) -> meta_graph_pb2.VariableDef:
    """Returns the VariableDef of a variable."""
    proto = variable.to_proto()
    assert proto is not None  # it is below no scope
    return proto


def collection_from_proto(
    proto: meta_graph_pb2.CollectionDef, target: building.Graph
) -> Iterable[Any]:
    """Yields the items of a collection: handles for names, structures and unknown protos.

    Raises:
        GraphError: a name is not in the graph.
        FormatError: an item cannot be parsed.
    """
    kind = proto.WhichOneof("kind")
    if kind == "node_list":
        for name in proto.node_list.value:
            node = name.removesuffix(":0")
            if ":" not in name:
                yield target.get_operation_by_name(name)
            elif node in target.variable_names:
                yield target.variable(node)
            else:
                yield target.get_tensor_by_name(name)
    elif kind == "any_list":
        for item in proto.any_list.value:
            is_structure = item.type_url == _STRUCTURED_URL
            yield _structure_from_bytes(item.value) if is_structure else item
    elif kind is not None:
        yield from getattr(proto, kind).value


def _structure_from_bytes(content: bytes) -> Any:
    proto = struct_pb2.StructuredValue()
    try:
        proto.ParseFromString(content)
    except message.DecodeError as error:
        raise errors.FormatError(f"a collection's item cannot be parsed: {error}") from None
    return trees.structure_from_proto(proto)


def variable_from_bytes(content: bytes, collection: str, target: building.Graph) -> Variable:
    """Returns the variable of a serialized VariableDef, and makes it known to the graph.

    Raises:
        FormatError: it cannot be parsed, or the variable has no static shape.
        GraphError: its node is not in the graph.
    """
    try:
        proto = meta_graph_pb2.VariableDef.FromString(content)
    except message.DecodeError as error:
        raise errors.FormatError(f"collection {collection!r}: no VariableDef: {error}") from None
    variable = variable_from_proto(proto, target)
    target.register_variable(variable)
    return variable


def variable_from_proto(proto: meta_graph_pb2.VariableDef, target: building.Graph) -> Variable:
    """Returns the handle that a VariableDef describes.

    Raises:
        FormatError: the variable has no static shape.
        GraphError: its node is not in the graph.
    """
    return variables.variable_from_proto(target, proto)
