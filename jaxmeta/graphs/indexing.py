"""Indices that are tensors or arrays: what numpy gives for them, with JAX's equations as nodes.

An index outside of the array is moved to its edge, as JAX does, where TensorFlow's run would fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmeta import errors
from jaxmeta.graphs import calling
from jaxmeta.graphs.graph import GraphBuilder
from jaxmeta.graphs.handles import Tensor
from jaxmeta.graphs.variable_handles import Variable


def needs_gather(index: Any) -> bool:
    """Returns whether an index holds tensors, variables or arrays."""
    return any(_is_array(part) for item in _items(index) for part in _parts(item))


def _items(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _parts(item: Any) -> Sequence[Any]:
    return (item.start, item.stop, item.step) if isinstance(item, slice) else (item,)


def _is_array(part: Any) -> bool:
    return isinstance(part, (Tensor, Variable)) or (np.ndim(part) > 0 and hasattr(part, "dtype"))


def get_item(target: GraphBuilder, x: Tensor | Variable, index: Any) -> Tensor:
    """Returns what an index takes from a tensor.

    Raises:
        GraphTypeError: the index is a mask, is not of integers, or is the bound of a slice, whose
            size would depend on values.
        GraphError: there are more indices than axes.
    """
    items = tuple(map(_in_32_bits, _items(index)))
    for item in items:
        _check(x, item)
    taken = sum(item is not None and item is not Ellipsis for item in items)
    if x.shape is not None and taken > len(x.shape):
        raise errors.GraphError(f"{x} takes {len(x.shape)} indices, got {taken}")
    places = [place for place, item in enumerate(items) if _is_array(item)]
    is_scalar = all(getattr(items[place], "shape", None) == () for place in places)

    def take(array: Any, *indices: Any) -> Any:
        by_place = dict(zip(places, indices, strict=True))
        return array[tuple(by_place.get(place, item) for place, item in enumerate(items))]

    name = "strided_slice" if is_scalar else "gather"
    arguments = [x, *(items[place] for place in places)]
    made: Tensor = calling.call(target, take, arguments, {}, name)
    return made


def _in_32_bits(item: Any) -> Any:
    """Returns an array of Python's integers in the width that JAX computes in by default."""
    is_wide = isinstance(item, np.ndarray) and item.dtype == np.int64
    return item.astype(np.int32) if is_wide and np.all(np.abs(item) < 2**31) else item


def _check(x: Tensor | Variable, item: Any) -> None:
    if isinstance(item, slice) and any(map(_is_array, _parts(item))):
        raise errors.GraphTypeError(
            f"{x}: a slice between bounds that are tensors has a size that depends on values. Take "
            "a fixed size, call(lambda x, i: jax.lax.dynamic_slice_in_dim(x, i, 10), x, i); the "
            "size of another tensor, call(lambda x, y: x[:y.shape[0]], x, y); or set what is not "
            "wanted to zero with jnp.where"
        )
    if not _is_array(item):
        return
    if item.dtype == bool:
        raise errors.GraphTypeError(
            f"{x}: a mask takes as many elements as it has values that are true, a size that "
            "depends on values. Set the other elements to zero instead, "
            "call(lambda x, mask: jnp.where(mask, x, 0), x, mask)"
        )
    if item.dtype.kind not in "iu":
        raise errors.GraphTypeError(f"{x}: an index is of integers, not {item}")
