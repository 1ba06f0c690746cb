"""MetaGraph files: export, import, and the version log of what is written.

A file is a MetaGraphDef as TensorFlow 1 reads it. What TensorFlow has no field for stands in
`_jax_*` attrs of the nodes; records of pytrees stand in ``object_graph_def``, as StructuredValues.
"""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Final

from google.protobuf import descriptor_pool, message, text_format

from jaxmeta import (
    building,
    collection_defs,
    errors,
    graph,
    op_defs,
    signature_nodes,
    trees,
    values,
)
from jaxmeta._proto import graph_pb2, meta_graph_pb2
from jaxmeta.checkpoint import atomic
from jaxmeta.graph import Signature, Variable
from jaxmeta.pausing import paused_gc

# Version 1, 2026-11: the first. Signatures are PartitionedCall nodes with `_jax_*` attrs; trees are
#   StructuredValues in object_graph_def.
FORMAT_VERSION: Final = 1

_WRITER: Final = "jaxmeta"
TREE_PREFIX: Final = "jaxmeta/variables/"
# TensorFlow takes an empty version as new; one below 1.9 changes how it reads variables.
_TENSORFLOW_VERSION: Final = "2.21.0"
_MAX_CONSUMER: Final = graph.PRODUCER_VERSION
# Any items stay bytes in the text, whatever messages other packages of this process define.
_EMPTY_POOL: Final = descriptor_pool.DescriptorPool()
_PROTOBUF_LIMIT_BYTES: Final = (1 << 31) - 1

# --- export ------------------------------------------------------------------------------------


def export_meta_graph(
    filename: str | os.PathLike[str] | None = None,
    collection_list: Sequence[str] | None = None,
    as_text: bool = False,
    graph: building.Graph | None = None,
    saver_def: meta_graph_pb2.SaverDef | None = None,
) -> meta_graph_pb2.MetaGraphDef:
    """Returns a graph as a MetaGraphDef, and writes it to a file where one is named.

    The same graph gives the same bytes. The file appears whole or not at all.

    Args:
        filename: where to write, or None.
        collection_list: names of the collections to write; all where None.
        as_text: whether the file is in protobuf's text format.
        graph: the graph; the default graph where None.
        saver_def: how TensorFlow saves and restores the variables.

    Raises:
        AttrError: a collection holds what no CollectionDef can.
        FormatError: the file would be larger than a protobuf may be.
    """
    target = graph if graph is not None else building.get_default_graph()
    with paused_gc():
        meta_graph = _meta_graph_to_proto(target, collection_list, saver_def)
        if filename is not None:
            _write(meta_graph, filename, as_text)
    return meta_graph


def _write(
    meta_graph: meta_graph_pb2.MetaGraphDef, filename: str | os.PathLike[str], as_text: bool
) -> None:
    if meta_graph.ByteSize() > _PROTOBUF_LIMIT_BYTES:
        raise errors.FormatError(
            f"{os.fspath(filename)}: the graph takes {meta_graph.ByteSize()} bytes, a protobuf at "
            "most 2 GiB. Pass large arrays as arguments instead of closing over them."
        )
    if as_text:
        content = text_format.MessageToString(meta_graph, descriptor_pool=_EMPTY_POOL).encode()
    else:
        content = meta_graph.SerializeToString(deterministic=True)
    path = pathlib.Path(filename)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_file(path, content)


def _meta_graph_to_proto(
    target: building.Graph,
    collection_list: Sequence[str] | None,
    saver_def: meta_graph_pb2.SaverDef | None,
) -> meta_graph_pb2.MetaGraphDef:
    meta_graph = meta_graph_pb2.MetaGraphDef()
    graph_def = meta_graph.graph_def
    graph_def.node.extend(target.nodes.values())
    graph_def.library.function.extend(target.functions.values())
    graph_def.library.gradient.extend(target.gradients)
    graph_def.versions.CopyFrom(target.versions)
    info = meta_graph.meta_info_def
    info.meta_graph_version = f"{_WRITER} {FORMAT_VERSION}"
    info.tensorflow_version = _TENSORFLOW_VERSION
    info.stripped_default_attrs = True
    info.stripped_op_list.op.extend(_used_op_defs(target))
    _write_collections(meta_graph, target, collection_list)
    _write_signatures(meta_graph, target)
    # Always there and always last, so that a file cut between two fields does not pass for whole.
    meta_graph.object_graph_def.SetInParent()
    if saver_def is not None:
        meta_graph.saver_def.CopyFrom(saver_def)
    return meta_graph


def _used_op_defs(target: building.Graph) -> list[graph_pb2.OpDef]:
    """Returns the OpDefs of the ops that nodes and library functions use, by name."""
    ops = {node.op for node in target.nodes.values()}
    for function in target.functions.values():
        ops.update(node.op for node in function.node_def)
    return [op_defs.get_op_def(op) for op in sorted(ops) if op_defs.has_op(op)]


def _write_collections(
    meta_graph: meta_graph_pb2.MetaGraphDef,
    target: building.Graph,
    collection_list: Sequence[str] | None,
) -> None:
    wanted = collection_list if collection_list is not None else target.get_all_collection_keys()
    for name in sorted(wanted):
        items = target.get_collection(name)
        if items:
            collection_defs.collection_to_proto(meta_graph.collection_def[name], name, items)


def _write_signatures(meta_graph: meta_graph_pb2.MetaGraphDef, target: building.Graph) -> None:
    recorded = meta_graph.object_graph_def.concrete_functions
    for scope, tree in target.state_trees.items():
        trees.check_depth(tree, "the state")
        recorded[TREE_PREFIX + scope].output_signature.CopyFrom(trees.tree_to_proto(tree))
    for name, signature in target.signatures.items():
        trees.check_depth(signature.arguments, f"what signature {name!r} takes")
        trees.check_depth(signature.results, f"what signature {name!r} returns")
        concrete = recorded[name]
        concrete.canonicalized_input_signature.CopyFrom(trees.tree_to_proto(signature.arguments))
        concrete.output_signature.CopyFrom(trees.tree_to_proto(signature.results))
        _write_signature_def(meta_graph.signature_def[name], signature)


def _write_signature_def(proto: meta_graph_pb2.SignatureDef, signature: Signature) -> None:
    proto.method_name = f"{_WRITER}/{signature.function_name}"
    for leaf in trees.leaves(signature.arguments):
        if ":" in leaf.name:
            _write_tensor_info(proto.inputs[leaf.name.split(":")[0]], leaf)
    for index, leaf in enumerate(trees.leaves(signature.results)):
        _write_tensor_info(proto.outputs[f"output_{index}"], leaf)


def _write_tensor_info(proto: meta_graph_pb2.TensorInfo, leaf: trees.Leaf) -> None:
    proto.name = leaf.name
    proto.dtype = leaf.number  # type: ignore[assignment]
    proto.tensor_shape.SetInParent()
    values.write_shape(proto.tensor_shape, leaf.shape)


# --- reading files -----------------------------------------------------------------------------


def read_meta_graph_file(filename: str | os.PathLike[str]) -> meta_graph_pb2.MetaGraphDef:
    """Returns the MetaGraphDef in a file, binary or text.

    Raises:
        FormatError: the file is missing, empty, truncated or corrupt, or neither kind.
    """
    path = os.fspath(filename)
    try:
        content = pathlib.Path(path).read_bytes()
    except FileNotFoundError:
        raise errors.FormatError(f"{path}: there is no such file") from None
    except OSError as error:
        raise errors.FormatError(f"{path}: cannot be read: {error}") from error
    if not content:
        raise errors.FormatError(f"{path}: the file is empty")
    try:
        with paused_gc():
            return meta_graph_pb2.MetaGraphDef.FromString(content)
    except message.DecodeError as binary_error:
        return _parse_text(path, content, binary_error)


def _parse_text(path: str, content: bytes, binary_error: Exception) -> meta_graph_pb2.MetaGraphDef:
    hint = "it is truncated or corrupt, or no MetaGraphDef"
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise errors.FormatError(f"{path}: cannot be parsed ({binary_error}); {hint}") from None
    try:
        return text_format.Parse(text, meta_graph_pb2.MetaGraphDef(), descriptor_pool=_EMPTY_POOL)
    except (text_format.ParseError, RecursionError) as error:
        raise errors.FormatError(f"{path}: cannot be parsed: {error}; {hint}") from None


# --- import ------------------------------------------------------------------------------------


def import_graph(
    meta_graph_or_file: meta_graph_pb2.MetaGraphDef | str | os.PathLike[str],
    target: building.Graph | None = None,
) -> building.Graph:
    """Adds a MetaGraphDef to a graph, and returns the graph.

    A MetaGraphDef that is refused leaves the graph's nodes and functions as they were.

    Raises:
        FormatError: the file is not readable, or from a newer jaxmeta or TensorFlow.
        UnsupportedOpError: some ops are unknown; all are listed.
        GraphError: node names are not unique, or an input is missing.
    """
    target = target if target is not None else building.Graph()
    source = "the MetaGraphDef"
    if isinstance(meta_graph_or_file, meta_graph_pb2.MetaGraphDef):
        meta_graph = meta_graph_or_file
    else:
        source = os.fspath(meta_graph_or_file)
        meta_graph = read_meta_graph_file(source)
    with paused_gc():
        _check_versions(source, meta_graph)
        by_name = _index_nodes(source, meta_graph.graph_def)
        _check_function_names(source, meta_graph.graph_def, target)
        target.add_node_defs(by_name)
        for function in meta_graph.graph_def.library.function:
            target.add_function(function)
        target.gradients.extend(meta_graph.graph_def.library.gradient)
        target.versions.CopyFrom(meta_graph.graph_def.versions)
        _read_collections(meta_graph, target)
        _read_signatures(source, meta_graph, target)
        if meta_graph.HasField("saver_def"):
            target.saver_def = meta_graph.saver_def
    return target


def _check_versions(source: str, meta_graph: meta_graph_pb2.MetaGraphDef) -> None:
    version = meta_graph.meta_info_def.meta_graph_version
    if version.startswith(_WRITER):
        number = version.removeprefix(_WRITER).strip()
        if not number.isdigit() or int(number) > FORMAT_VERSION:
            raise errors.FormatError(
                f"{source}: written in format {number} of jaxmeta; this version reads up to "
                f"{FORMAT_VERSION}. Upgrade jaxmeta."
            )
        if not meta_graph.HasField("object_graph_def"):
            raise errors.FormatError(f"{source}: the file is truncated: its last field is missing")
    versions = meta_graph.graph_def.versions
    if versions.min_consumer > _MAX_CONSUMER:
        raise errors.FormatError(
            f"{source}: needs a reader of GraphDef version {versions.min_consumer}; this one is "
            f"{_MAX_CONSUMER}. Upgrade jaxmeta."
        )


def _check_function_names(
    source: str, graph_def: graph_pb2.GraphDef, target: building.Graph
) -> None:
    count = collections.Counter(f.signature.name for f in graph_def.library.function)
    taken = {name for name in count if name in target.functions or count[name] > 1}
    if taken:
        headline = f"{source}: these functions are not unique:"
        raise errors.GraphError(errors.list_offenders(headline, sorted(taken)))


def _index_nodes(source: str, graph_def: graph_pb2.GraphDef) -> dict[str, graph_pb2.NodeDef]:
    """Returns the nodes by name, having checked them in one pass: there may be a million.

    Raises:
        UnsupportedOpError: ops are unknown, here or in the library; all are listed.
        GraphError: names are not unique, or inputs name no node; all are listed.
    """
    functions = {function.signature.name for function in graph_def.library.function}
    known: set[str] = set()
    unknown: dict[str, None] = {}
    unresolved: list[tuple[graph_pb2.NodeDef, str]] = []
    by_name: dict[str, graph_pb2.NodeDef] = {}
    for node in graph_def.node:
        op = node.op
        if op not in known:
            if op in functions or op_defs.has_op(op):
                known.add(op)
            else:
                unknown[f"{op}  (node {node.name!r})"] = None
        for ref in node.input:
            if ref not in by_name:
                unresolved.append((node, ref))  # noqa: PERF401 - a generator a node costs more
        by_name[node.name] = node
    for function in graph_def.library.function:
        for node in function.node_def:
            if node.op not in known and node.op not in functions and not op_defs.has_op(node.op):
                where = f"{node.name!r} of function {function.signature.name!r}"
                unknown[f"{node.op}  (node {where})"] = None
    if unknown:
        headline = f"{source}: these ops are unknown:"
        raise errors.UnsupportedOpError(errors.list_offenders(headline, unknown))
    if len(by_name) != len(graph_def.node):
        graph.refuse_repeated_names(graph_def.node)
    _check_inputs(source, by_name, unresolved)
    return by_name


def _check_inputs(
    source: str,
    by_name: Mapping[str, graph_pb2.NodeDef],
    unresolved: Sequence[tuple[graph_pb2.NodeDef, str]],
) -> None:
    missing = [
        f"{node.name!r} ({node.op}): {ref!r}"
        for node, ref in unresolved
        if (ref[1:] if ref[0] == "^" else ref.split(":", 1)[0]) not in by_name
    ]
    if missing:
        headline = f"{source}: these inputs name no node of the graph:"
        raise errors.GraphError(errors.list_offenders(headline, missing))


def _read_collections(meta_graph: meta_graph_pb2.MetaGraphDef, target: building.Graph) -> None:
    made: dict[bytes, Variable] = {}
    order = [
        name for name in collection_defs.VARIABLE_COLLECTIONS if name in meta_graph.collection_def
    ]
    rest = sorted(set(meta_graph.collection_def) - set(order))
    for name in [*order, *rest]:
        proto = meta_graph.collection_def[name]
        if name in order and proto.WhichOneof("kind") == "bytes_list":
            for content in proto.bytes_list.value:
                if content not in made:
                    made[content] = collection_defs.variable_from_bytes(content, name, target)
                target.add_to_collection(name, made[content])
            continue
        for item in collection_defs.collection_from_proto(proto, target):
            target.add_to_collection(name, item)
    _order_variables(target)


def _order_variables(target: building.Graph) -> None:
    """Makes the graph's variables stand in the order of their collection, not of trainability."""
    for variable in target.get_collection(graph.GLOBAL_VARIABLES):
        target.register_variable(variable)


# --- signatures --------------------------------------------------------------------------------


def _read_signatures(
    source: str, meta_graph: meta_graph_pb2.MetaGraphDef, target: building.Graph
) -> None:
    calls = {
        node.attr[signature_nodes.SIGNATURE_ATTR].s.decode(): node
        for node in target.nodes.values()
        if node.op == "PartitionedCall" and signature_nodes.SIGNATURE_ATTR in node.attr
    }
    is_ours = meta_graph.meta_info_def.meta_graph_version.startswith(_WRITER)
    for name, concrete in sorted(meta_graph.object_graph_def.concrete_functions.items()):
        if name.startswith(TREE_PREFIX):
            tree = trees.tree_from_proto(concrete.output_signature)
            target.state_trees[name.removeprefix(TREE_PREFIX)] = tree
            unknown = [
                leaf.name for leaf in trees.leaves(tree) if leaf.name not in target.variable_names
            ]
            if unknown:
                headline = f"{source}: the recorded state names variables that are not there:"
                raise errors.FormatError(errors.list_offenders(headline, unknown))
        elif name in calls:
            target.signatures[name] = _read_signature(name, calls[name], concrete, target)
        elif is_ours:
            raise errors.FormatError(f"{source}: no node is marked as the signature {name!r}")


def _read_signature(
    name: str,
    node: graph_pb2.NodeDef,
    concrete: meta_graph_pb2.SavedConcreteFunction,
    target: building.Graph,
) -> Signature:
    attr = node.attr
    facts = {
        field: values.attr_from_proto(attr[f"_jax_{field}"])
        for field in (
            "function_name",
            "donated",
            "updates",
            "train_op",
            "result_key_impls",
            "dim_constraints",
        )
        if f"_jax_{field}" in attr
    }
    updates = facts.get("updates", ())
    signature = Signature(
        name=name,
        function_name=facts["function_name"].decode(),
        arguments=trees.tree_from_proto(concrete.canonicalized_input_signature),
        results=trees.tree_from_proto(concrete.output_signature),
        donated=tuple(bool(flag) for flag in facts.get("donated", ())),
        updates=tuple(zip(updates[::2], updates[1::2], strict=True)),
        train_op=facts.get("train_op", b"").decode(),
        result_key_impls=tuple(impl.decode() for impl in facts.get("result_key_impls", ())),
        constraints=tuple(text.decode() for text in facts.get("dim_constraints", ())),
    )
    _check_signature(signature, target)
    return signature


def _check_signature(signature: Signature, target: building.Graph) -> None:
    bad = []
    for leaf in [*trees.leaves(signature.arguments), *trees.leaves(signature.results)]:
        if ":" in leaf.name:
            node = leaf.name.split(":")[0]
            if node not in target.nodes:
                bad.append(leaf.name)
        elif leaf.name not in target.variable_names:
            bad.append(leaf.name)
    count = len(list(trees.leaves(signature.arguments)))
    if len(signature.donated) != count:
        bad.append(f"{len(signature.donated)} donation flags for {count} arrays")
    if bad:
        headline = f"signature {signature.name!r} refers to what is not in the graph:"
        raise errors.FormatError(errors.list_offenders(headline, bad))
