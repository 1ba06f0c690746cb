"""Collections: pairs of what Python puts in one and the CollectionDef in a file."""

from __future__ import annotations

import argparse
import dataclasses
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from google.protobuf import any_pb2, message

from jaxmeta import errors, trees
from jaxmeta._proto import meta_graph_pb2, struct_pb2
from jaxmeta.graphs import building, graph, renaming, variables
from jaxmeta.graphs.graph import Tensor, Variable
from jaxmeta.meta_graphs import collection_registry
from jaxmeta.meta_graphs.collection_registry import GraphKeys

_TYPE_URL: Final = "type.googleapis.com/"
_STRUCTURED_URL: Final = f"{_TYPE_URL}tensorflow.StructuredValue"
_UNBOUND_PREFIX: Final = "$unbound_inputs_"
VARIABLE_COLLECTIONS: Final = (
    GraphKeys.TRAINABLE_VARIABLES,
    GraphKeys.GLOBAL_VARIABLES,
    GraphKeys.LOCAL_VARIABLES,
    GraphKeys.MODEL_VARIABLES,
    GraphKeys.MOVING_AVERAGE_VARIABLES,
    GraphKeys.METRIC_VARIABLES,
    GraphKeys.GLOBAL_STEP,
)
# Protos whose names are ours to put into a scope; those of others are handed the scope.
_NAMED_PROTOS: Final = (
    meta_graph_pb2.VariableDef,
    meta_graph_pb2.SaverDef,
    meta_graph_pb2.QueueRunnerDef,
    meta_graph_pb2.CondContextDef,
    meta_graph_pb2.WhileContextDef,
)

# --- writing -----------------------------------------------------------------------------------


def should_export(item: Any, export_scope: str | None, excluded: frozenset[str]) -> bool:
    """Returns whether an item belongs to what is exported, as TensorFlow decides.

    That is so of all that has no name, and of names in the scope.
    """
    name = item if isinstance(item, str) else getattr(item, "name", None)
    if not isinstance(name, str):
        return True
    if name.split(":")[0] in excluded:
        return False
    return name.startswith((export_scope or "", _UNBOUND_PREFIX))


def collection_to_proto(
    proto: meta_graph_pb2.CollectionDef,
    name: str,
    items: Sequence[Any],
    export_scope: str | None = None,
) -> None:
    """Writes a collection; its kind is that of the first item, as in TensorFlow.

    Args:
        proto: where to.
        name: of the collection; where functions are registered for it, they write the items.
        items: at least one.
        export_scope: the scope to take off names.

    Raises:
        AttrError: the items are of several kinds, or of one that has no place in a file.
    """
    to_proto = collection_registry.get_to_proto_function(name)
    if to_proto is not None and not all(_is_plain(item) for item in items):
        _write_registered(proto, name, items, to_proto, export_scope)
        return
    kinds = {_item_kind(item) for item in items}
    if kinds == {"node", "variable"} and name not in VARIABLE_COLLECTIONS:
        kinds = {"node"}  # a variable among tensors is written as they are, by its name
    if len(kinds) != 1 or None in kinds:
        found = sorted({type(item).__name__ for item in items})
        raise errors.AttrError(
            f"collection {name!r} holds {', '.join(found)}; a collection holds variables, tensors "
            "and operations, or strings, or ints, or floats, or trees of these"
        )
    (kind,) = kinds
    if kind in ("node", "variable"):
        proto.node_list.value.extend(
            renaming.strip_name_scope(item.name, export_scope) for item in items
        )
    elif kind == "bytes":
        proto.bytes_list.value.extend(
            item.encode() if isinstance(item, str) else item for item in items
        )
    elif kind == "int":
        if any(not -(1 << 63) <= item < 1 << 63 for item in items):
            raise errors.AttrError(
                f"collection {name!r} holds an integer that does not fit 64 bits"
            )
        proto.int64_list.value.extend(int(item) for item in items)
    elif kind == "float":
        proto.float_list.value.extend(float(item) for item in items)
    else:
        proto.any_list.value.extend(_any_to_proto(item) for item in items)


def _is_plain(item: Any) -> bool:
    return isinstance(item, (str, bytes, Tensor, graph.Operation, any_pb2.Any))


def _write_registered(
    proto: meta_graph_pb2.CollectionDef,
    name: str,
    items: Sequence[Any],
    to_proto: Callable[..., Any],
    export_scope: str | None,
) -> None:
    proto_type = collection_registry.get_collection_proto_type(name) or message.Message
    for item in items:
        try:
            written = to_proto(item, export_scope=export_scope)
        except (AttributeError, TypeError) as error:
            raise errors.AttrError(
                f"collection {name!r} holds {item!r} ({type(item).__name__}), of which its "
                f"registered to_proto makes no proto: {error}"
            ) from error
        if written is None:
            continue
        if not isinstance(written, proto_type):
            raise errors.AttrError(
                f"collection {name!r}: to_proto returned {type(written).__name__}, not the "
                f"registered {proto_type.__name__}"
            )
        proto.bytes_list.value.append(written.SerializeToString(deterministic=True))


def _item_kind(item: Any) -> str | None:
    if isinstance(item, Variable):
        return "variable"
    if isinstance(item, (Tensor, graph.Operation)):
        return "node"
    if isinstance(item, (str, bytes)):
        return "bytes"
    if isinstance(item, (bool, np.bool_)):
        return "any"
    if isinstance(item, (int, np.integer)):
        return "int"
    if isinstance(item, (float, np.floating)):
        return "float"
    return "any" if _is_structure(item) or isinstance(item, message.Message) else None


def _is_structure(item: Any) -> bool:
    return (
        item is None
        or isinstance(item, (dict, list, tuple, argparse.Namespace, types.SimpleNamespace))
        or (dataclasses.is_dataclass(item) and not isinstance(item, type))
        or hasattr(item, "to_proto")
    )


def _any_to_proto(item: Any) -> any_pb2.Any:
    if hasattr(item, "to_proto") and not isinstance(item, message.Message):
        item = item.to_proto()
    if isinstance(item, any_pb2.Any):
        return item
    if isinstance(item, message.Message):
        url, proto = f"{_TYPE_URL}{item.DESCRIPTOR.full_name}", item
    else:
        url, proto = _STRUCTURED_URL, trees.structure_to_proto(_plain_structure(item))
    return any_pb2.Any(type_url=url, value=proto.SerializeToString(deterministic=True))


def _plain_structure(item: Any) -> Any:
    """Returns dataclasses and namespaces as dicts, and numpy's scalars as Python's."""
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        names = [field.name for field in dataclasses.fields(item)]
        return {name: _plain_structure(getattr(item, name)) for name in names}
    if isinstance(item, (argparse.Namespace, types.SimpleNamespace)):
        return _plain_structure(vars(item))
    if isinstance(item, dict):
        return {key: _plain_structure(value) for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        plain = [_plain_structure(value) for value in item]
        return plain if isinstance(item, list) else tuple(plain)
    return item.item() if isinstance(item, np.generic) else item


# --- reading -----------------------------------------------------------------------------------


def collection_from_proto(
    name: str,
    proto: meta_graph_pb2.CollectionDef,
    target: building.Graph,
    rename: renaming.Renaming,
) -> Iterator[Any]:
    """Yields the items of a collection that holds no variables.

    These are objects where a class is registered, handles for names, Python's values for
    structures, and for unknown protos their bytes.

    Args:
        name: of the collection.
        proto: the collection.
        target: the graph that was imported into, which is the default graph.
        rename: the new names of what was imported.

    Raises:
        MissingNameError: a name is not in the graph.
        FormatError: an item cannot be parsed.
    """
    kind = proto.WhichOneof("kind")
    if kind == "node_list":
        for value in proto.node_list.value:
            yield _element(name, rename(value), target)
    elif kind == "any_list":
        for item in proto.any_list.value:
            is_structure = item.type_url == _STRUCTURED_URL
            yield _structure_from_bytes(item.value) if is_structure else item
    elif kind == "bytes_list":
        from_proto = collection_registry.get_from_proto_function(name)
        for content in proto.bytes_list.value:
            if from_proto is not None:
                yield _object_from_bytes(name, content, from_proto, rename)
            else:
                yield content if rename.is_identity else _rename_text(content, rename)
    elif kind is not None:
        yield from getattr(proto, kind).value


def _element(collection: str, name: str, target: building.Graph) -> Any:
    node, _, index = name.partition(":")
    if index == "0" and node in target.variable_names:
        return target.variable(node)
    try:
        if not index:
            return target.get_operation_by_name(name)
        return target.get_tensor_by_name(name)
    except (errors.GraphError, errors.UnsupportedOpError) as error:
        raise errors.MissingNameError(f"collection {collection!r}: {error}") from error


def _object_from_bytes(
    collection: str, content: bytes, from_proto: Callable[..., Any], rename: renaming.Renaming
) -> Any:
    proto_type = collection_registry.get_collection_proto_type(collection)
    if proto_type is None:
        return from_proto(content, import_scope=rename.scope)
    proto = parse_item(collection, content, proto_type)
    if isinstance(proto, _NAMED_PROTOS):
        if not rename.is_identity:
            renaming.rename_proto(proto, rename)
        return from_proto(proto, import_scope="")
    return from_proto(proto, import_scope=rename.scope)


def parse_item(collection: str, content: bytes, proto_type: type[message.Message]) -> Any:
    """Returns the message in the bytes of a collection's item.

    Raises:
        FormatError: they are none.
    """
    try:
        return proto_type.FromString(content)
    except message.DecodeError as error:
        raise errors.FormatError(
            f"collection {collection!r}: no {proto_type.__name__}: {error}"
        ) from None


def _rename_text(content: bytes, rename: renaming.Renaming) -> str | bytes:
    """Returns a string inside the scope, as TensorFlow does; what is not text stays as it is."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return content
    renamed = rename(text)
    return renamed if text.isprintable() and renamed != text else content


def _structure_from_bytes(content: bytes) -> Any:
    proto = struct_pb2.StructuredValue()
    try:
        proto.ParseFromString(content)
    except message.DecodeError as error:
        raise errors.FormatError(f"a collection's item cannot be parsed: {error}") from None
    return trees.structure_from_proto(proto)


# --- variables ---------------------------------------------------------------------------------


def variable_to_proto(variable: Variable) -> meta_graph_pb2.VariableDef:
    """Returns the VariableDef of a variable."""
    proto = variable.to_proto()
    assert proto is not None  # it is below no scope
    return proto


def variable_from_proto(proto: meta_graph_pb2.VariableDef, target: building.Graph) -> Variable:
    """Returns the handle that a VariableDef describes.

    Raises:
        FormatError: the variable has no static shape.
        MissingNameError: its node is not in the graph.
    """
    return variables.variable_from_proto(target, proto)


# --- classes of TensorFlow's own ---------------------------------------------------------------


def _export_variable(
    variable: Variable, export_scope: str | None = None
) -> meta_graph_pb2.VariableDef | None:
    proto = variable_to_proto(variable)
    return proto if _strip_scope(proto, variable.op_name, export_scope) else None


def _import_variable(
    proto: meta_graph_pb2.VariableDef, import_scope: str | None = None
) -> Variable:
    if import_scope:
        renaming.rename_proto(proto, lambda name: renaming.prepend_name_scope(name, import_scope))
    target = building.get_default_graph()
    known = proto.variable_name.split(":")[0]
    if known in target.variable_names:
        return target.variable(known)
    variable = variable_from_proto(proto, target)
    target.register_variable(variable)
    return variable


def _export_saver(saver: Any, export_scope: str | None = None) -> meta_graph_pb2.SaverDef | None:
    """Returns the SaverDef of a saver, or of one itself."""
    proto = meta_graph_pb2.SaverDef()
    is_def = isinstance(saver, meta_graph_pb2.SaverDef)
    proto.CopyFrom(saver if is_def else saver.as_saver_def())
    return proto if _strip_scope(proto, proto.save_tensor_name, export_scope) else None


def _import_saver(
    proto: meta_graph_pb2.SaverDef, import_scope: str | None = None
) -> meta_graph_pb2.SaverDef:
    renaming.rename_proto(proto, lambda name: renaming.prepend_name_scope(name, import_scope))
    return proto


def _strip_scope(proto: message.Message, name: str, export_scope: str | None) -> bool:
    """Takes a scope off the names in a proto; returns whether the proto's own name is in it."""
    if export_scope and not name.startswith(export_scope):
        return False
    renaming.rename_proto(proto, lambda item: renaming.strip_name_scope(item, export_scope))
    return True


for _name in VARIABLE_COLLECTIONS:
    collection_registry.register_proto_function(
        _name, meta_graph_pb2.VariableDef, _export_variable, _import_variable
    )
collection_registry.register_proto_function(
    GraphKeys.SAVERS, meta_graph_pb2.SaverDef, _export_saver, _import_saver
)
