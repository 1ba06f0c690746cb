"""What differs between two meta graphs, said so that a person can read it.

Nodes and functions are compared by what they compute before they are compared by name, so that one
more `Mul`, after which all others have other numbers, shows as one more `Mul`.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from jaxmeta import trees, values
from jaxmeta._proto import meta_graph_pb2
from jaxmeta.graphs import building, printing
from jaxmeta.meta_graphs import meta_graph, node_differences, signature_defs

MetaGraph: TypeAlias = meta_graph_pb2.MetaGraphDef | building.Graph | str | os.PathLike[str]

_SHOWN_CHANGES: Final = 40
_VARIABLE_OPS: Final = frozenset({"VarHandleOp", "VariableV2", "Variable"})


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """What differs between two meta graphs; false where nothing does, and readable as text.

    Attributes:
        sections: a title and its lines, which begin with ``-`` (only in the first), ``+`` (only in
            the second) or ``~`` (in both, but not the same).

    Example:
        >>> import jax.numpy as jnp
        >>> def save(step):
        ...     g = building.Graph()
        ...     _ = g.add_signature("step", step, jnp.ones(3))
        ...     return g
        >>> print(diff(save(lambda x: x + 1.0), save(lambda x: jnp.sin(x) + 1.0)))
        function step
          + Sin: float32 = Sin(x)
          ~ AddV2: input 0 was x, is Sin
        >>> bool(diff(save(jnp.cos), save(jnp.cos)))
        False
    """

    sections: tuple[tuple[str, tuple[str, ...]], ...]

    def __bool__(self) -> bool:
        return bool(self.sections)

    def __str__(self) -> str:
        return "\n".join(
            "\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in self.sections
        )


def diff(first: MetaGraph, second: MetaGraph) -> Difference:
    """Returns what differs between two meta graphs.

    Compared are versions, signatures, variables, collections, nodes and functions. Whether they
    were written as text or binary, and the order of what has none, is no difference.

    Args:
        first: a MetaGraphDef, a graph, or the name of a file.
        second: the same, what is compared with it.

    Raises:
        FormatError: a file is missing or damaged.
    """
    protos = [_meta_graph(source) for source in (first, second)]
    found = [
        ("versions", _compare_versions(*protos)),
        ("signatures", _compare_signatures(*protos)),
        ("variables", _compare_variables(*protos)),
        ("collections", _compare_collections(*protos)),
        *node_differences.Comparison(*(proto.graph_def for proto in protos)).sections(),
    ]
    return Difference(
        tuple((title, _capped(lines)) for title, lines in ((t, list(x)) for t, x in found) if lines)
    )


def _meta_graph(source: MetaGraph) -> meta_graph_pb2.MetaGraphDef:
    if isinstance(source, meta_graph_pb2.MetaGraphDef):
        return source
    if isinstance(source, building.Graph):
        return meta_graph.export_meta_graph(graph=source)
    return meta_graph.read_meta_graph_file(source)


def _capped(lines: Sequence[str]) -> tuple[str, ...]:
    if len(lines) <= _SHOWN_CHANGES:
        return tuple(lines)
    return (*lines[:_SHOWN_CHANGES], f"... and {len(lines) - _SHOWN_CHANGES} more")


def _compare_maps(
    first: Mapping[str, Any], second: Mapping[str, Any], show: Callable[[Any], str] = str
) -> Iterator[str]:
    """Yields a line for each key that only one has, or whose values differ."""
    for key in dict.fromkeys([*first, *second]):
        if key not in second:
            yield f"- {key}: {show(first[key])}"
        elif key not in first:
            yield f"+ {key}: {show(second[key])}"
        elif first[key] != second[key]:
            yield f"~ {key}: was {show(first[key])}, is {show(second[key])}"


# --- what is not nodes -------------------------------------------------------------------------


def _compare_versions(*protos: meta_graph_pb2.MetaGraphDef) -> Iterator[str]:
    first, second = (
        {
            "format": proto.meta_info_def.meta_graph_version or "none",
            "TensorFlow": proto.meta_info_def.tensorflow_version or "not recorded",
            "producer": str(proto.graph_def.versions.producer),
            "min_consumer": str(proto.graph_def.versions.min_consumer),
        }
        for proto in protos
    )
    return _compare_maps(first, second)


def _compare_signatures(*protos: meta_graph_pb2.MetaGraphDef) -> Iterator[str]:
    recorded = [proto.object_graph_def.concrete_functions for proto in protos]
    first, second = (
        {_signature_title(name): _leaves(item) for name, item in r.items()} for r in recorded
    )
    for name in sorted({*first, *second}):
        if name not in second:
            yield f"- {name}"
        elif name not in first:
            yield f"+ {name}"
        else:
            yield from (
                f"{line[0]} {name} {line[2:]}" for line in _compare_maps(first[name], second[name])
            )


def _signature_title(name: str) -> str:
    is_state = name.startswith(signature_defs.TREE_PREFIX)
    return f"state {name.removeprefix(signature_defs.TREE_PREFIX)}".strip() if is_state else name


def _leaves(concrete: meta_graph_pb2.SavedConcreteFunction) -> dict[str, str]:
    """Returns what a signature, or a state, consists of, by path."""
    found = {}
    sides = {
        "argument": concrete.canonicalized_input_signature,
        "result": concrete.output_signature,
    }
    for side, proto in sides.items():
        if proto.WhichOneof("kind"):
            for path, leaf in _paths(trees.tree_from_proto(proto), side):
                found[path] = f"{printing.format_type(leaf.number, leaf.shape)} {leaf.name}"
    return found


def _paths(tree: trees.Tree, path: str) -> Iterator[tuple[str, trees.Leaf]]:
    if isinstance(tree, trees.Leaf):
        yield path, tree
        return
    for key, child in zip(tree.keys, tree.children, strict=True):
        yield from _paths(child, f"{path}/{key}")


def _compare_variables(*protos: meta_graph_pb2.MetaGraphDef) -> Iterator[str]:
    first, second = (
        {
            node.name: printing.format_type(
                node.attr["dtype"].type, values.shape_from_proto(node.attr["shape"].shape)
            )
            for node in proto.graph_def.node
            if node.op in _VARIABLE_OPS and "dtype" in node.attr and "shape" in node.attr
        }
        for proto in protos
    )
    return _compare_maps(first, second)


def _compare_collections(*protos: meta_graph_pb2.MetaGraphDef) -> Iterator[str]:
    first, second = (_collection_items(proto) for proto in protos)
    for name in sorted({*first, *second}):
        for line in difflib.ndiff(first.get(name, []), second.get(name, [])):
            if line[0] in "-+":
                yield f"{line[0]} {name}: {line[2:]}"


def _collection_items(proto: meta_graph_pb2.MetaGraphDef) -> dict[str, list[str]]:
    names = {node.name for node in proto.graph_def.node}
    return {
        name: [str(item) for item in printing.describe_collection(collection, names)[1]]
        for name, collection in proto.collection_def.items()
    }
