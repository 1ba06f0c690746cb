"""Tensors that a function takes for the same size: what a run checks, in TensorFlow too.

A tensor is given the sizes that it has to have by a Reshape, which fails where it has others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxmeta.graphs import elementary
from jaxmeta.graphs.graph import GraphBuilder
from jaxmeta.graphs.handles import Tensor
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops import _definition
from jaxmeta.ops.shapes import SAME_SIZE
from jaxmeta.tracing import dimension_nodes, dimensions, unifying


def aligned(
    target: GraphBuilder,
    tensors: Sequence[Tensor],
    is_used: Sequence[bool],
    sizes: Sequence[tuple[str, ...]],
    unified: unifying.Unified[Any],
) -> list[Tensor]:
    """Returns tensors that have the sizes for which a function was traced, or fail to run.

    Args:
        target: the graph.
        tensors: what the function is given.
        is_used: whether it uses them.
        sizes: theirs, as text.
        unified: which of these have to be the same.
    """
    if not unified.same:
        return list(tensors)

    def constant(value: Any, dtype: Any = None) -> Edge:
        made = elementary.add_constant(target, value, dtype, name="dimensions/Const")
        return elementary.edge_of(made)

    nodes = dimension_nodes.DimensionNodes(target, constant)
    nodes.add_sources(dimensions.sources(sizes), [elementary.edge_of(t) for t in tensors])
    return [
        _with_sizes(target, tensor, nodes, texts, _renamed(texts, unified.same)) if used else tensor
        for tensor, used, texts in zip(tensors, is_used, sizes, strict=True)
    ]


def _renamed(texts: tuple[str, ...], same: Mapping[str, str | int]) -> tuple[str, ...]:
    return tuple(dimensions.renamed(text, same) for text in texts)


def _with_sizes(
    target: GraphBuilder,
    tensor: Tensor,
    nodes: dimension_nodes.DimensionNodes,
    old: tuple[str, ...],
    new: tuple[str, ...],
) -> Tensor:
    """Returns a tensor with new sizes, one axis after the other.

    The number of elements, which Reshape checks, says enough of one axis only.
    """
    for axis, (before, after) in enumerate(zip(old, new, strict=True)):
        if before == after:
            continue
        sizes = (*new[: axis + 1], *old[axis + 1 :])
        (edge,) = target.add_node(
            "Reshape",
            [elementary.edge_of(tensor), nodes.vector(sizes)],
            {_definition.PRIMITIVE_ATTR: SAME_SIZE},
            "dimensions/same_size",
        )
        tensor = elementary.tensor_of(target, edge, None)
        target.record_sizes(tensor.name, sizes)
    return tensor
