"""Symbolic dimensions as nodes: what TensorFlow computes of the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from jaxmeta import dtypes
from jaxmeta.graphs import nodes
from jaxmeta.graphs.nodes import Edge
from jaxmeta.tracing import dimensions
from jaxmeta.tracing.dimensions import Expression, Size, Source

DIMENSIONS_ATTR: Final = "_jax_dimensions"
"""On a node: the names of the dimensions whose sizes its first inputs are."""

INT32: Final = dtypes.dtype_to_number(np.int32)
_OPS: Final = {
    "add": "AddV2",
    "sub": "Sub",
    "mul": "Mul",
    "floordiv": "FloorDiv",
    "mod": "FloorMod",
    "max": "Maximum",
    "min": "Minimum",
}


class DimensionNodes:
    """Adds the nodes that compute sizes to one container; equal expressions share their nodes."""

    def __init__(self, container: nodes.NodeContainer, constant: Callable[..., Edge]) -> None:
        self._container = container
        self._constant = constant
        self._edges: dict[Expression, Edge] = {}
        self._sources: dict[str, tuple[Source, Edge]] = {}

    def add_sizes(self, edges: Mapping[str, Edge]) -> None:
        """Makes dimensions known whose sizes are scalars in the container."""
        for name, edge in edges.items():
            self._edges[Expression("name", name)] = edge

    def add_sources(self, sources: Iterable[Source], arguments: Sequence[Edge]) -> None:
        """Makes dimensions known that follow from the shapes of arguments."""
        for source in sources:
            self._sources[source.name] = source, arguments[source.array]

    def named(self, name: str) -> Edge:
        """Returns the size of a dimension, an int32 scalar."""
        return self._edge(Expression("name", name))

    def vector(self, sizes: Sequence[str]) -> Edge:
        """Returns the vector of sizes that are given as text."""
        return self._node("Pack", [self._edge(dimensions.parse(size)) for size in sizes])

    def array(self, sizes: Any, dtype: Any = None) -> Edge:
        """Returns the array of sizes, of which some are symbolic; int32 unless said otherwise."""
        whole = np.asarray(sizes, dtype=object)
        edges = [self._scalar(size) for size in whole.ravel().tolist()]
        result = edges[0] if not whole.ndim else self._node("Pack", edges)
        if whole.ndim > 1:
            result = self._node("Reshape", result, self._constant(whole.shape, np.int32))
        if dtype is not None and np.dtype(dtype) != np.int32:
            result = self._node("Cast", result, DstT=np.dtype(dtype))
        result.shape = whole.shape
        return result

    def _scalar(self, size: Size) -> Edge:
        if not dimensions.is_symbolic(size):
            return self._constant(size, np.int32)
        return self._edge(dimensions.parse(str(size)))

    def _edge(self, expression: Expression) -> Edge:
        known = self._edges.get(expression)
        if known is None:
            known = self._edges[expression] = self._add(expression)
        return Edge(known.ref, known.number, ())

    def _add(self, expression: Expression) -> Edge:
        if expression.op == "number":
            return self._constant(expression.value, np.int32)
        if expression.op == "name":
            return self._size_of_axis(*self._sources[str(expression.value)])
        return self._node(_OPS[expression.op], *map(self._edge, expression.operands))

    def _size_of_axis(self, source: Source, argument: Edge) -> Edge:
        shape = self._node("Shape", argument, name=f"{source.name}/Shape")
        bounds = [np.asarray([source.axis + i], np.int32) for i in (0, 1)]
        size = self._node(
            "StridedSlice",
            shape,
            *map(self._constant, bounds),
            self._constant(np.ones(1, np.int32)),
            name=source.name,
            shrink_axis_mask=1,
        )
        if source.offset.value or source.offset.operands:
            size = self._node("Sub", size, self._edge(source.offset))
        if source.factor != 1:
            size = self._node("FloorDiv", size, self._constant(source.factor, np.int32))
        return size

    def _node(self, op: str, *inputs: Any, name: str = "", **attrs: Any) -> Edge:
        (edge,) = self._container.add_node(op, inputs, attrs, f"dimensions/{name or op}")
        return edge
