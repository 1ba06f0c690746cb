"""Indexing by arrays: gather.

`XlaGather` clamps indices, so that JAX's mode CLIP is the op's own. For FILL_OR_DROP, and for index
dtypes that the op does not take, the primitive is a call of a function that masks afterwards.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes, xla_attrs
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops import _computation
from jaxmeta.ops._definition import (
    LoweringContext,
    Spec,
    bools,
    example,
    f32,
    i32,
    kernel,
    lowering,
    restores,
    u32,
)
from jaxmeta.ops._indexing import (
    FAR_IDS,
    IDS,
    INDEX_NUMBERS,
    Mode,
    as_int32,
    index_of,
    mode_from_name,
    vector_of_sizes,
    vectors_last,
)
from jaxmeta.ops._operands import ints


def _scalar_from_text(text: str, dtype: Any) -> Any:
    """Returns the Python scalar of which ``text`` is the `str`; attrs hold floats in 32 bits."""
    if dtype == np.bool_:
        return text == "True"
    if jnp.issubdtype(dtype, np.integer):
        return int(text)
    return complex(text) if jnp.issubdtype(dtype, np.complexfloating) else float(text)


@lowering("gather")
def lower_gather(
    ctx: LoweringContext,
    x: Edge,
    indices: Edge,
    *,
    dimension_numbers: Any,
    slice_sizes: Any,
    unique_indices: bool,
    indices_are_sorted: bool,
    mode: Any,
    fill_value: Any,
) -> list[Edge]:
    if mode not in (Mode.CLIP, Mode.PROMISE_IN_BOUNDS, Mode.FILL_OR_DROP):
        raise ctx.unsupported(f"a gather of mode {mode}")
    assert x.shape is not None
    assert indices.shape is not None
    out_rank, key_rank = len(ctx.out_avals[0].shape), ctx.key_rank
    # The axes of a key's data are gathered whole.
    sizes = (*ints(slice_sizes), *ints(x.shape[len(x.shape) - key_rank :]))
    numbers = dimension_numbers._replace(
        offset_dims=(*dimension_numbers.offset_dims, *range(out_rank - key_rank, out_rank))
    )
    content = xla_attrs.gather_to_bytes(numbers, len(indices.shape))
    if mode == Mode.FILL_OR_DROP or indices.number not in INDEX_NUMBERS:
        fill = None if fill_value is None else np.asarray(fill_value, ctx.out_avals[0].dtype)
        return ctx.composite(
            "gather",
            lambda a, i: _gather_or_fill(a, as_int32(i), numbers, sizes, fill),
            x,
            indices,
            dimension_numbers=content,
            slice_sizes=sizes,
            indices_are_sorted=indices_are_sorted,
            unique_indices=unique_indices,
            mode=mode.name,
            fill_value=None if fill is None else str(fill.item()),
        )
    attrs: dict[str, Any] = {}
    if mode != Mode.CLIP:
        attrs["_jax_mode"] = mode.name
    if unique_indices:
        attrs["_jax_unique_indices"] = True
    return ctx.node(
        "XlaGather",
        x,
        indices,
        ctx.constant(sizes, dtypes.dtype_from_number(indices.number)),  # one attr for both
        dimension_numbers=content,
        indices_are_sorted=indices_are_sorted,
        **attrs,
    )


def _gather_or_fill(
    x: jax.Array,
    indices: jax.Array,
    numbers: lax.GatherDimensionNumbers,
    sizes: tuple[int, ...],
    fill: np.ndarray[Any, Any] | None,
) -> jax.Array:
    """Gathers; puts ``fill`` where an index vector lies outside, unless it is None."""
    gathered = lax.gather(x, indices, numbers, sizes, mode=Mode.CLIP)
    if fill is None:
        return gathered
    axis = indices.ndim - 1
    last = vector_of_sizes([x.shape[d] - sizes[d] for d in numbers.start_index_map], indices.dtype)
    is_inside = lax.bitwise_and(
        lax.ge(indices, jnp.zeros_like(indices)),
        lax.le(indices, lax.broadcast_in_dim(last, indices.shape, (axis,))),
    )
    batch_dims = [d for d in range(gathered.ndim) if d not in numbers.offset_dims]
    return lax.select(
        lax.broadcast_in_dim(lax.reduce_and(is_inside, [axis]), gathered.shape, batch_dims),
        gathered,
        lax.full_like(gathered, fill),
    )


@kernel("XlaGather", static=("slice_sizes",))
def xla_gather(
    operand: Any,
    start_indices: Any,
    slice_sizes: np.ndarray[Any, Any],
    *,
    dimension_numbers: bytes,
    indices_are_sorted: bool,
    _jax_mode: bytes = b"CLIP",
    _jax_unique_indices: bool = False,
) -> Any:
    return restore_gather(
        operand,
        start_indices,
        dimension_numbers=dimension_numbers,
        slice_sizes=ints(slice_sizes),
        indices_are_sorted=indices_are_sorted,
        unique_indices=_jax_unique_indices,
        mode=_jax_mode,
    )


@restores("gather")
def restore_gather(
    x: Any,
    indices: Any,
    *,
    dimension_numbers: bytes,
    slice_sizes: tuple[int, ...],
    indices_are_sorted: bool,
    unique_indices: bool,
    mode: bytes,
    fill_value: bytes = b"",
) -> Any:
    numbers, axis = xla_attrs.gather_from_bytes(dimension_numbers)
    indices, batching_dims = vectors_last(indices, axis, numbers.start_indices_batching_dims)
    return lax.gather(
        x,
        indices,
        numbers._replace(start_indices_batching_dims=batching_dims),
        slice_sizes,
        unique_indices=unique_indices,
        indices_are_sorted=indices_are_sorted,
        mode=mode_from_name(mode),
        fill_value=_scalar_from_text(fill_value.decode(), x.dtype) if fill_value else None,
    )


example(lambda x, i: x[i], f32(5, 3), IDS)
example(lambda x, i: x[i], f32(5, 3), FAR_IDS)
example(lambda x, i, j: x[i, j], f32(5, 3), IDS, IDS)
example(lambda x, i: x[:, i], f32(3, 5), i32(2, 2, low=0, high=0))
example(lambda x, i: x[i], f32(5, 3), i32(low=-3, high=-2))
example(lambda x, i: jnp.take(x, i, axis=0), f32(5, 3), FAR_IDS)
example(lambda x, i: jnp.take(x, i, axis=0), i32(5, 3), FAR_IDS, gradient=False)
example(lambda x, i: jnp.take(x, i, axis=0), bools(5, 3), FAR_IDS, gradient=False)
example(lambda x, i: x.at[i].get(mode="clip"), f32(5, 3), FAR_IDS)
example(lambda x, i: x.at[i].get(mode="fill", fill_value=7.0), f32(5, 3), FAR_IDS)
example(
    lambda x, i: x.at[i].get(mode="fill", fill_value=1 + 2j),
    Spec((5, 3), np.complex64),
    FAR_IDS,
    gradient=False,
)
example(
    lambda x, i: x.at[i].get(mode="promise_in_bounds", indices_are_sorted=True), f32(9, 3), i32(4)
)
example(lambda x, i: x.at[i].get(unique_indices=True), f32(9, 3), i32(1, low=0))
example(lambda x, i: jnp.take(x, i, axis=0), f32(5, 3), u32(4, high=3))
example(lambda x, i: x.at[i].get(mode="clip"), f32(5, 3), Spec((4,), np.uint8, 0, 9))
example(lambda x, i: jnp.take_along_axis(x, i, axis=1), f32(3, 5), i32(3, 2, low=0, high=0))
example(lambda x, i: jax.vmap(lambda a, b: a[b])(x, i), f32(3, 5, 2), i32(3, 4, low=-2, high=0))
example(lambda x, i: jax.vmap(lambda b: x[b])(i), f32(5, 2), i32(3, 4, low=0, high=0))
example(lambda x, i: jax.vmap(lambda a: a[i])(x), f32(3, 5, 2), IDS)
example(lambda x, i: jax.vmap(lambda a, b: jnp.take(a, b, axis=0))(x, i), f32(3, 5, 2), i32(3, 4))
example(
    lambda x, i: jax.grad(lambda table: jnp.sum(jnp.take(table, i, axis=0) ** 2))(x),
    f32(7, 3),
    i32(2, 4, low=0, high=2),
)
example(
    lambda data, i: jax.random.key_data(jax.random.wrap_key_data(data)[i]),
    u32(5, 2),
    i32(3, low=0, high=1),
    gradient=False,
)
example(lambda x, i: lax.dynamic_slice_in_dim(x, i, 2, axis=0), f32(5, 3), i32(low=-3, high=-3))

# --- TensorFlow's own -----------------------------------------------------------------------


@kernel("GatherV2", static=("axis",))
def gather_v2(params: Any, indices: Any, axis: np.ndarray[Any, Any], *, batch_dims: int) -> Any:
    place = int(axis) % params.ndim
    batch = batch_dims + indices.ndim if batch_dims < 0 else batch_dims

    def take(array: Any, index: Any) -> Any:
        return jnp.take(array, index, axis=place - batch, mode="clip")

    return _computation.batched(take, batch)(params, indices)


@kernel("Gather")
def gather_v1(params: Any, indices: Any) -> Any:
    return jnp.take(params, indices, axis=0, mode="clip")


@kernel("GatherNd")
def gather_nd(params: Any, indices: Any) -> Any:
    if not indices.shape[-1]:
        return jnp.broadcast_to(params, (*indices.shape[:-1], *params.shape))
    return jnp.asarray(params).at[index_of(indices)].get(mode="clip")
