"""GraphDefs to GraphDefs: a part of one, one without what only training needs, without defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from jaxmeta import errors, op_defs
from jaxmeta._proto import graph_pb2

SAVE_AND_RESTORE_OPS: Final = frozenset(
    {
        "SaveV2",
        "Save",
        "SaveSlice",
        "LegacySave",
        "LegacySaveSlice",
        "RestoreV2",
        "Restore",
        "RestoreSlice",
        "LegacyRestore",
        "LegacyRestoreSlice",
    }
)
_LOCATION: Final = "loc:@"
_REMOVED_OPS: Final = frozenset({"CheckNumerics"})
_SPLICED_OPS: Final = frozenset({"Identity", "StopGradient"})


def _check_graph_def(graph_def: graph_pb2.GraphDef) -> None:
    if not isinstance(graph_def, graph_pb2.GraphDef):
        raise errors.ArgumentTypeError(
            f"graph_def must be a GraphDef proto of jaxmeta, but got type {type(graph_def)}."
        )


def _node_name(ref: str) -> str:
    return ref[1:] if ref.startswith("^") else ref.split(":")[0]


def _places(node: graph_pb2.NodeDef) -> list[str]:
    """Returns the names of the nodes that a node is to be placed with."""
    if "_class" not in node.attr:
        return []
    items = node.attr["_class"].list.s
    return [item.decode(errors="replace").removeprefix(_LOCATION) for item in items]


def extract_sub_graph(
    graph_def: graph_pb2.GraphDef, dest_nodes: Iterable[str]
) -> graph_pb2.GraphDef:
    """Returns the part of a GraphDef that some nodes need, in the order of the whole.

    A node needs its inputs, and the nodes that it is to be placed with.

    Args:
        graph_def: the whole.
        dest_nodes: names of nodes.

    Raises:
        ArgumentTypeError: an argument is of the wrong kind; a TypeError.
        MissingNodeError: nodes are not there; an AssertionError, as in TensorFlow. All are listed.
    """
    _check_graph_def(graph_def)
    if isinstance(dest_nodes, str):
        raise errors.ArgumentTypeError(
            f"dest_nodes must be an iterable of strings, but got type {type(dest_nodes)}."
        )
    by_name = {node.name: node for node in graph_def.node}
    waiting = list(dest_nodes)
    missing = [name for name in waiting if name not in by_name]
    if missing:
        raise errors.MissingNodeError(
            f"{', '.join(map(str, missing))} {'is' if len(missing) == 1 else 'are'} not in graph"
        )
    kept: set[str] = set()
    lost: dict[str, None] = {}
    while waiting:
        name = waiting.pop()
        if name in kept:
            continue
        if name not in by_name:
            lost[name] = None
            continue
        kept.add(name)
        node = by_name[name]
        waiting += [*map(_node_name, node.input), *_places(node)]
    if lost:
        headline = "these inputs name no node of the graph:"
        raise errors.MissingNameError(errors.list_offenders(headline, sorted(lost)))
    result = graph_pb2.GraphDef()
    result.node.extend(node for node in graph_def.node if node.name in kept)
    result.library.CopyFrom(graph_def.library)
    result.versions.CopyFrom(graph_def.versions)
    return result


def remove_training_nodes(
    input_graph: graph_pb2.GraphDef, protected_nodes: Sequence[str] | None = None
) -> graph_pb2.GraphDef:
    """Returns a GraphDef without nodes that inference does not need.

    Those are CheckNumerics, and each Identity and StopGradient that no control edge touches and
    that no node is placed with; what they pass on is taken from where it comes. (TensorFlow takes
    it away where a CheckNumerics passes it on.)

    Args:
        input_graph: the GraphDef. As in TensorFlow, its library and versions are left out.
        protected_nodes: names of nodes to keep, such as the outputs.

    Raises:
        ArgumentTypeError: it is no GraphDef; a TypeError.
        GraphError: nodes only pass on each other's output.
    """
    _check_graph_def(input_graph)
    protected = frozenset(protected_nodes or ())
    checks = {
        node.name: node.input[0]
        for node in input_graph.node
        if node.op in _REMOVED_OPS and node.name not in protected and node.input
    }
    kept = []
    for node in input_graph.node:
        if node.name not in checks:
            copied = graph_pb2.NodeDef()
            copied.CopyFrom(node)
            copied.input[:] = [ref for ref in node.input if ref[:1] != "^" or ref[1:] not in checks]
            kept.append(copied)
    spliced = {**checks, **_spliced_nodes(kept, protected)}
    result = graph_pb2.GraphDef()
    for node in kept:
        if node.name not in spliced:
            node.input[:] = [_source(ref, spliced) for ref in node.input]
            result.node.append(node)
    return result


def _spliced_nodes(
    nodes: Sequence[graph_pb2.NodeDef], protected: frozenset[str]
) -> Mapping[str, str]:
    """Returns the input of each node that only passes it on, by the node's name."""
    untouchable = set(protected)
    for node in nodes:
        controls = [ref[1:] for ref in node.input if ref.startswith("^")]
        untouchable.update(controls, _places(node))
        if controls:
            untouchable.add(node.name)
    return {
        node.name: node.input[0]
        for node in nodes
        if node.op in _SPLICED_OPS and node.name not in untouchable and node.input
    }


def _source(ref: str, spliced: Mapping[str, str]) -> str:
    passed: set[str] = set()
    while (name := ref.removesuffix(":0")) in spliced:
        if name in passed:
            raise errors.GraphError(f"the nodes {sorted(passed)} take their input from each other")
        passed.add(name)
        ref = spliced[name]
    return ref


def strip_graph_default_valued_attrs(graph_def: graph_pb2.GraphDef) -> None:
    """Takes attrs off all nodes, in functions too, that have the default of their op."""
    functions = {function.signature.name for function in graph_def.library.function}
    bodies = [function.node_def for function in graph_def.library.function]
    for nodes in (graph_def.node, *bodies):
        for node in nodes:
            if node.op not in functions and op_defs.has_op(node.op):
                _strip_defaults(node)


def _strip_defaults(node: graph_pb2.NodeDef) -> None:
    defaults = {
        attr.name: attr.default_value
        for attr in op_defs.get_op_def(node.op).attr
        if attr.HasField("default_value")
    }
    for name in [name for name in node.attr if name in defaults]:
        if node.attr[name] == defaults[name]:
            del node.attr[name]
