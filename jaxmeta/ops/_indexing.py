"""What gather and the scatters say of indices: their modes, their dtypes, where vectors lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes, errors
from jaxmeta.ops._definition import i32
from jaxmeta.tracing import dimensions

INDEX_NUMBERS: Final = frozenset(map(dtypes.dtype_to_number, (np.int32, np.int64)))
_INT32_MAX: Final = np.iinfo(np.int32).max
Mode: Any = lax.GatherScatterMode

# Indices of examples, of which some count from the end or lie outside.
IDS = i32(4, low=-2, high=1)
FAR_IDS = i32(6, low=-9, high=5)


def mode_from_name(name: bytes) -> Any:
    """Returns the gather mode that an attr names."""
    try:
        return Mode[name.decode()]
    except KeyError:
        raise errors.AttrError(f"this JAX knows no gather mode named {name!r}") from None


def as_int32(indices: jax.Array) -> jax.Array:
    """Returns indices as int32 or int64; large unsigned ones stay out of every array's range."""
    if indices.dtype in (np.int32, np.int64):
        return indices
    if indices.dtype.kind == "u" and indices.dtype.itemsize >= np.dtype(np.int32).itemsize:
        indices = lax.min(indices, np.asarray(_INT32_MAX, indices.dtype))
    return lax.convert_element_type(indices, np.int32)


def vectors_last(
    indices: Any, axis: int, batching_dims: Sequence[int]
) -> tuple[Any, tuple[int, ...]]:
    """Returns indices whose vectors lie along the last axis, as JAX has them, and their batch dims.

    TensorFlow's programs put them along any axis, or along none where they are scalars.
    """
    if axis == indices.ndim:
        return lax.expand_dims(indices, (axis,)), tuple(batching_dims)
    if axis == indices.ndim - 1:
        return indices, tuple(batching_dims)
    return jnp.moveaxis(indices, axis, -1), tuple(d - (d > axis) for d in batching_dims)


def index_of(indices: Any) -> tuple[Any, ...]:
    """Returns the index that vectors along the last axis say."""
    return tuple(indices[..., axis] for axis in range(indices.shape[-1])) or (...,)


def vector_of_sizes(sizes: Sequence[Any], dtype: Any) -> Any:
    """Returns an array of sizes, some of which may be symbolic."""
    if not dimensions.is_symbolic(list(sizes)):
        return np.asarray(sizes, dtype)
    return jnp.stack([jnp.asarray(size, dtype) for size in sizes])


def index_of_slices(
    starts: Sequence[int], limits: Sequence[int], steps: Sequence[int], masks: Sequence[int]
) -> tuple[Any, ...]:
    """Returns the index that a StridedSlice says; the masks are in the order of its attrs."""
    begin_mask, end_mask, ellipsis_mask, new_axis_mask, shrink_axis_mask = masks
    index: list[Any] = []
    for i, (start, limit, step) in enumerate(zip(starts, limits, steps, strict=True)):
        bit = 1 << i
        if ellipsis_mask & bit:
            index.append(Ellipsis)
        elif new_axis_mask & bit:
            index.append(None)
        elif shrink_axis_mask & bit:
            index.append(start)
        else:
            first = None if begin_mask & bit else start
            index.append(slice(first, None if end_mask & bit else limit, step))
    return tuple(index)


def outside_where_negative(indices: Any) -> Any:
    """Returns indices of which negative ones lie beyond the end, rather than count from it."""
    return jnp.where(indices < 0, np.iinfo(indices.dtype).max, indices)
