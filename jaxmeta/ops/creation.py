"""Arrays made of no others: counted, filled, empty."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import LoweringContext, example, f32, i32, kernel, lowering, restores
from jaxmeta.ops._operands import ints
from jaxmeta.tracing import dimensions, jaxprs, meshes
from jaxmeta.tracing.sizes import as_array


@kernel("Fill", static=("dims",))
def fill(dims: np.ndarray[Any, Any], value: Any) -> Any:
    return lax.broadcast_in_dim(value, ints(dims), ())


@lowering("iota")
def lower_iota(
    ctx: LoweringContext,
    *dynamic_sizes: Edge,
    dtype: Any,
    shape: Any,
    dimension: int,
    sharding: Any,
) -> list[Edge]:
    if dynamic_sizes or not meshes.is_trivial_sharding(sharding):
        raise ctx.unsupported("iota with a dynamic shape or a sharding")
    sizes = ints(shape)
    if len(sizes) == 1 and _range_takes(dtype):
        return ctx.node("Range", *(ctx.constant(value, dtype) for value in (0, sizes[0], 1)))
    return ctx.composite(
        "iota",
        lambda: _iota_of_ranges(dtype, sizes, dimension),
        dtype=np.dtype(dtype),
        shape=sizes,
        dimension=dimension,
    )


def _range_takes(dtype: Any) -> bool:
    """Returns whether counting in a dtype is exact there, and TensorFlow's Range takes it."""
    return np.dtype(dtype).name in ("int32", "int64", "float32", "float64")


def _iota_of_ranges(dtype: Any, sizes: tuple[int, ...], dimension: int) -> Any:
    counts = lax.iota(np.int32, sizes[dimension])
    return lax.broadcast_in_dim(lax.convert_element_type(counts, dtype), sizes, (dimension,))


@kernel("Range", static=("start", "limit", "delta"))
def range_kernel(
    start: np.ndarray[Any, Any], limit: np.ndarray[Any, Any], delta: np.ndarray[Any, Any]
) -> Any:
    first, last, step = start.item(), limit.item(), delta.item()
    if dimensions.is_symbolic([first, last]):
        size = (last - first + step - (1 if step > 0 else -1)) // step
        counts = lax.iota(np.int32 if start.dtype == object else start.dtype, size)
        return counts if (first, step) == (0, 1) else as_array(start) + counts * step
    if start == 0 and delta == 1 and limit == np.floor(limit):
        return lax.iota(start.dtype, max(int(limit), 0))
    size = max(int(np.ceil((limit - start) / delta)), 0)
    return start + delta * np.arange(size, dtype=start.dtype)


@restores("iota")
def restore_iota(*, dtype: int, shape: tuple[int, ...], dimension: int) -> Any:
    return lax.broadcasted_iota(dtypes.dtype_from_number(dtype), shape, dimension)


example(lambda x: x + lax.iota(np.float32, 3), f32(3))
example(lambda x: x + lax.broadcasted_iota(np.float32, (2, 3), 0), f32(2, 3))
example(lambda x: x + lax.iota(np.int32, 5), i32(5), gradient=False)


@lowering("empty")
def lower_empty(ctx: LoweringContext, *, shape: Any, dtype: Any, out_sharding: Any) -> list[Edge]:
    if not meshes.is_trivial_sharding(out_sharding):
        raise ctx.unsupported("an out_sharding on empty cannot be expressed")
    sizes = ints(shape)
    zeros = functools.partial(jnp.zeros, sizes, dtype)
    return ctx.composite("empty", lambda: zeros(), shape=sizes, dtype=np.dtype(dtype))


@restores("empty")
def restore_empty(*, shape: tuple[int, ...], dtype: int) -> Any:
    return lax.empty(shape, dtypes.dtype_from_number(dtype))


example(lambda x: lax.full_like(x, 0) * lax.empty((3,), np.float32) + x, f32(3), gradient=False)


@lowering("empty2")
def lower_empty2(ctx: LoweringContext, *, dtype: Any, memory_space: Any) -> list[Edge]:
    if memory_space != _default_memory_space():
        raise ctx.unsupported(f"a scalar in the memory space {memory_space}")
    return ctx.composite("empty2", lambda: jnp.zeros((), dtype), dtype=np.dtype(dtype))


def _default_memory_space() -> Any:
    return jax.typeof(np.float32(0)).memory_space


@restores("empty2")
def restore_empty2(*, dtype: int) -> Any:
    empty = jaxprs.primitive("empty2")
    return empty.bind(dtype=dtypes.dtype_from_number(dtype), memory_space=_default_memory_space())


example(
    lambda x: (
        x
        + jaxprs.primitive("empty2").bind(
            dtype=np.dtype(np.float32), memory_space=_default_memory_space()
        )
    ),
    f32(3),
)
