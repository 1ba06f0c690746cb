"""Ops that move, cut and join elements: reshape, transpose, broadcast, slice, pad, concatenate.

The graph holds a typed PRNG key as its uint32 data, which have trailing axes more than the key.
`_key_axes` extends what a primitive says of the key's axes to those of the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes, jaxprs
from jaxmeta.graph import Edge
from jaxmeta.ops._definition import (
    PRIMITIVE_ATTR,
    LoweringContext,
    example,
    f32,
    i32,
    kernel,
    lowering,
    restores,
)

_INT32_MAX = np.iinfo(np.int32).max


def _ints(values: Any) -> tuple[int, ...]:
    """Returns plain ints of a static input or of a parameter that holds numpy ints."""
    return tuple(int(value) for value in np.ravel(values))


def _shape_constant(ctx: LoweringContext, sizes: Sequence[int]) -> Edge:
    """Returns a Const of sizes, int32 where they fit."""
    array = np.asarray(_ints(sizes), dtype=np.int64)
    return ctx.constant(
        array if array.size and array.max() > _INT32_MAX else array.astype(np.int32)
    )


def _key_axes(ctx: LoweringContext) -> tuple[int, ...]:
    """Returns the sizes of the trailing axes that hold a key's data; empty for plain arrays."""
    rank = ctx.key_rank
    return tuple(ctx.out_avals[0].shape[-rank:]) if rank else ()


# --- reshape, squeeze, transpose, broadcast ------------------------------------------------------


@lowering("reshape")
def lower_reshape(
    ctx: LoweringContext, x: Edge, *, new_sizes: Any, dimensions: Any, sharding: Any
) -> list[Edge]:
    del new_sizes  # the result's shape
    if not jaxprs.is_trivial_sharding(sharding):
        raise ctx.unsupported("a reshape with a sharding cannot be expressed")
    sizes = tuple(ctx.out_avals[0].shape)
    if dimensions is None:
        return ctx.node("Reshape", x, _shape_constant(ctx, sizes))
    order = _ints(dimensions)
    return ctx.composite(
        "reshape",
        lambda a: lax.reshape(lax.transpose(a, order), sizes),
        x,
        sizes=sizes,
        order=order,
    )


@restores("reshape")
def restore_reshape(x: Any, *, sizes: tuple[int, ...], order: tuple[int, ...]) -> Any:
    return lax.reshape(x, sizes, order)


@kernel("Reshape", static=("shape",))
def reshape(tensor: Any, shape: np.ndarray[Any, Any]) -> Any:
    sizes = _ints(shape)
    return lax.reshape(tensor, sizes) if -1 not in sizes else jnp.reshape(tensor, sizes)


example(lambda x: lax.reshape(x, (4, 3)), f32(3, 4))
example(lambda x: lax.reshape(x, (4, 3), (1, 0)), f32(3, 4))


@lowering("squeeze")
def lower_squeeze(ctx: LoweringContext, x: Edge, *, dimensions: Any) -> list[Edge]:
    if not dimensions:
        return ctx.node("Identity", x)
    return ctx.node("Squeeze", x, squeeze_dims=_ints(dimensions))


@kernel("Squeeze")
def squeeze(input: Any, *, squeeze_dims: tuple[int, ...]) -> Any:
    axes = squeeze_dims or tuple(i for i, size in enumerate(input.shape) if size == 1)
    return lax.squeeze(input, axes)


example(lambda x: lax.squeeze(x, (0, 2)), f32(1, 3, 1))


@lowering("expand_dims")
def lower_expand_dims(ctx: LoweringContext, x: Edge, *, dimensions: Any) -> list[Edge]:
    del dimensions  # the result's shape
    return ctx.node("Reshape", x, _shape_constant(ctx, ctx.out_avals[0].shape))


@lowering("transpose")
def lower_transpose(ctx: LoweringContext, x: Edge, *, permutation: Any) -> list[Edge]:
    perm = _ints(permutation)
    perm += tuple(range(len(perm), len(perm) + ctx.key_rank))
    return ctx.node("Transpose", x, ctx.constant(perm, np.int32))


@kernel("Transpose", static=("perm",))
def transpose(x: Any, perm: np.ndarray[Any, Any]) -> Any:
    return lax.transpose(x, _ints(perm))


example(lambda x: lax.transpose(x, (1, 2, 0)), f32(2, 3, 4))


@lowering("rev")
def lower_rev(ctx: LoweringContext, x: Edge, *, dimensions: Any) -> list[Edge]:
    return ctx.node("ReverseV2", x, ctx.constant(_ints(dimensions), np.int32))


@kernel("ReverseV2", static=("axis",))
def reverse(tensor: Any, axis: np.ndarray[Any, Any]) -> Any:
    return lax.rev(tensor, tuple(a % tensor.ndim for a in _ints(axis)))


example(lambda x: lax.rev(x, (1,)), f32(3, 4))


@lowering("broadcast_in_dim")
def lower_broadcast_in_dim(
    ctx: LoweringContext,
    x: Edge,
    *dynamic_sizes: Edge,
    shape: Any,
    broadcast_dimensions: Any,
    sharding: Any,
) -> list[Edge]:
    del shape  # the result's
    if dynamic_sizes or not jaxprs.is_trivial_sharding(sharding):
        raise ctx.unsupported("broadcast_in_dim with a dynamic shape or a sharding")
    out_shape = ctx.out_avals[0].shape
    rank = len(out_shape)
    dims = _ints(broadcast_dimensions)
    dims += tuple(range(rank - ctx.key_rank, rank))
    assert x.shape is not None
    attrs = {PRIMITIVE_ATTR: "broadcast_in_dim", "_jax_broadcast_dimensions": dims}
    if dims == tuple(range(rank - len(dims), rank)):
        return ctx.node("BroadcastTo", x, _shape_constant(ctx, out_shape))
    if math.prod(size or 0 for size in x.shape) == math.prod(out_shape):
        return ctx.node("Reshape", x, _shape_constant(ctx, out_shape), **attrs)
    aligned = [1] * rank
    for axis, size in zip(dims, x.shape, strict=True):
        aligned[axis] = int(size or 0)
    return ctx.composite(
        "broadcast_in_dim",
        lambda a: lax.broadcast_in_dim(lax.reshape(a, aligned), out_shape, range(rank)),
        x,
        shape=tuple(out_shape),
        broadcast_dimensions=dims,
    )


@kernel("BroadcastTo", static=("shape",))
def broadcast_to(input: Any, shape: np.ndarray[Any, Any]) -> Any:
    sizes = _ints(shape)
    return lax.broadcast_in_dim(input, sizes, range(len(sizes) - np.ndim(input), len(sizes)))


@restores("broadcast_in_dim")
def restore_broadcast_in_dim(
    x: Any,
    sizes: np.ndarray[Any, Any] | None = None,
    *,
    broadcast_dimensions: tuple[int, ...],
    shape: tuple[int, ...] = (),
) -> Any:
    return lax.broadcast_in_dim(x, shape if sizes is None else _ints(sizes), broadcast_dimensions)


example(lambda x: lax.broadcast_in_dim(x, (2, 3), ()), f32())
example(lambda x: lax.broadcast_in_dim(x, (2, 3), (1,)), f32(3))
example(lambda x: lax.broadcast_in_dim(x, (2, 3), (0,)), f32(2))
example(lambda x: lax.broadcast_in_dim(x, (2, 1, 3, 1), (0, 2)), f32(2, 3))


@lowering("tile")
def lower_tile(ctx: LoweringContext, x: Edge, *, reps: Any) -> list[Edge]:
    return ctx.node("Tile", x, ctx.constant(_ints(reps), np.int32))


@kernel("Tile", static=("multiples",))
def tile(input: Any, multiples: np.ndarray[Any, Any]) -> Any:
    return jnp.tile(input, _ints(multiples))


example(lambda x: jnp.tile(x, (2, 3)), f32(2, 3))


@kernel("ExpandDims", static=("dim",))
def expand_dims(input: Any, dim: np.ndarray[Any, Any]) -> Any:
    return lax.expand_dims(input, (int(dim),))


@kernel("Fill", static=("dims",))
def fill(dims: np.ndarray[Any, Any], value: Any) -> Any:
    return lax.broadcast_in_dim(value, _ints(dims), ())


# --- iota --------------------------------------------------------------------------------------


@lowering("iota")
def lower_iota(
    ctx: LoweringContext,
    *dynamic_sizes: Edge,
    dtype: Any,
    shape: Any,
    dimension: int,
    sharding: Any,
) -> list[Edge]:
    if dynamic_sizes or not jaxprs.is_trivial_sharding(sharding):
        raise ctx.unsupported("iota with a dynamic shape or a sharding")
    sizes = _ints(shape)
    if len(sizes) == 1 and _range_takes(dtype):
        start, limit, delta = (np.asarray(v, dtype) for v in (0, sizes[0], 1))
        return ctx.node("Range", *(ctx.constant(value) for value in (start, limit, delta)))
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

# --- slices ------------------------------------------------------------------------------------


@lowering("slice")
def lower_slice(
    ctx: LoweringContext, x: Edge, *, start_indices: Any, limit_indices: Any, strides: Any
) -> list[Edge]:
    keys = _key_axes(ctx)
    begin = (*_ints(start_indices), *(0 for _ in keys))
    end = (*_ints(limit_indices), *keys)
    steps = _ints(strides) if strides is not None else (1,) * len(_ints(start_indices))
    steps += (1,) * len(keys)
    return ctx.node(
        "StridedSlice", x, *(ctx.constant(part, np.int32) for part in (begin, end, steps))
    )


@kernel("StridedSlice", static=("begin", "end", "strides"))
def strided_slice(
    input: Any,
    begin: np.ndarray[Any, Any],
    end: np.ndarray[Any, Any],
    strides: np.ndarray[Any, Any],
    *,
    begin_mask: int,
    end_mask: int,
    ellipsis_mask: int,
    new_axis_mask: int,
    shrink_axis_mask: int,
) -> Any:
    starts, limits, steps = _ints(begin), _ints(end), _ints(strides)
    is_plain = not (begin_mask or end_mask or ellipsis_mask or new_axis_mask or shrink_axis_mask)
    if (
        is_plain
        and len(starts) == input.ndim
        and all(
            0 <= start <= limit <= size and step > 0
            for start, limit, step, size in zip(starts, limits, steps, input.shape, strict=True)
        )
    ):
        return lax.slice(input, starts, limits, None if set(steps) <= {1} else steps)
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
    return input[tuple(index)]


example(lambda x: lax.slice(x, (1, 0), (3, 4)), f32(3, 4))
example(lambda x: lax.slice(x, (0, 1), (3, 4), (1, 2)), f32(3, 4))


@kernel("Slice", static=("begin", "size"))
def slice_kernel(
    input: Any,
    begin: np.ndarray[Any, Any],
    size: np.ndarray[Any, Any],
) -> Any:
    starts = _ints(begin)
    limits = [
        full if length < 0 else start + length
        for start, length, full in zip(starts, _ints(size), input.shape, strict=True)
    ]
    return lax.slice(input, starts, limits)


@lowering("dynamic_slice")
def lower_dynamic_slice(
    ctx: LoweringContext, x: Edge, *starts: Edge, slice_sizes: Any
) -> list[Edge]:
    sizes = (*_ints(slice_sizes), *_key_axes(ctx))

    def fill_body(body: LoweringContext, inputs: list[Edge]) -> list[Edge]:
        begin = _pack_starts(body, inputs[1:], len(sizes))
        # One attr types both, so that the sizes take the dtype of the starts.
        extent = body.constant(sizes, dtypes.dtype_from_number(begin.number))
        return body.node("XlaDynamicSlice", inputs[0], begin, extent)

    function = ctx.build_function("dynamic_slice", _avals(x, *starts), fill_body)
    return ctx.call(function, x, *starts, primitive="dynamic_slice", slice_sizes=sizes)


def _pack_starts(ctx: LoweringContext, starts: Sequence[Edge], rank: int) -> Edge:
    """Returns one vector of start indices, zeros for the axes of a key's data."""
    number = starts[0].number if starts else dtypes.dtype_to_number(np.int32)
    dtype = dtypes.dtype_from_number(number)
    zeros = [ctx.constant(0, dtype) for _ in range(rank - len(starts))]
    parts = [*starts, *zeros]
    if not parts:
        return ctx.constant(np.zeros(0, np.int32))
    (packed,) = ctx.node("Pack", parts)
    if dtype in (np.int32, np.int64):
        return packed
    (cast,) = ctx.node("Cast", packed, DstT=np.dtype(np.int64))
    return cast


def _avals(*edges: Edge) -> list[Any]:
    return [
        jax.ShapeDtypeStruct(edge.shape, dtypes.dtype_from_number(edge.number)) for edge in edges
    ]


@restores("dynamic_slice")
def restore_dynamic_slice(x: Any, *starts: Any, slice_sizes: tuple[int, ...]) -> Any:
    zeros = [np.zeros((), np.int32)] * (x.ndim - len(starts))
    return lax.dynamic_slice(x, [*starts, *zeros], slice_sizes, allow_negative_indices=False)


@kernel("XlaDynamicSlice", static=("size_indices",))
def dynamic_slice(input: Any, start_indices: Any, size_indices: np.ndarray[Any, Any]) -> Any:
    return lax.dynamic_slice(input, list(start_indices), _ints(size_indices))


example(lambda x, i: lax.dynamic_slice(x, (i, 1), (2, 3)), f32(4, 5), i32(low=0, high=0))


@lowering("dynamic_update_slice")
def lower_dynamic_update_slice(
    ctx: LoweringContext, x: Edge, update: Edge, *starts: Edge
) -> list[Edge]:
    rank = len(ctx.out_avals[0].shape)

    def fill_body(body: LoweringContext, inputs: list[Edge]) -> list[Edge]:
        begin = _pack_starts(body, inputs[2:], rank)
        return body.node("XlaDynamicUpdateSlice", inputs[0], inputs[1], begin)

    function = ctx.build_function("dynamic_update_slice", _avals(x, update, *starts), fill_body)
    return ctx.call(function, x, update, *starts, primitive="dynamic_update_slice")


@restores("dynamic_update_slice")
def restore_dynamic_update_slice(x: Any, update: Any, *starts: Any) -> Any:
    zeros = [np.zeros((), np.int32)] * (x.ndim - len(starts))
    return lax.dynamic_update_slice(x, update, [*starts, *zeros], allow_negative_indices=False)


@kernel("XlaDynamicUpdateSlice")
def dynamic_update_slice(input: Any, update: Any, indices: Any) -> Any:
    return lax.dynamic_update_slice(input, update, list(indices))


example(
    lambda x, u, i: lax.dynamic_update_slice(x, u, (i, 0)), f32(4, 5), f32(2, 3), i32(low=0, high=0)
)

# --- joining and padding -----------------------------------------------------------------------


@lowering("concatenate")
def lower_concatenate(ctx: LoweringContext, *arrays: Edge, dimension: int) -> list[Edge]:
    if len(arrays) == 1:
        return ctx.node("Identity", arrays[0])
    return ctx.node("ConcatV2", list(arrays), ctx.constant(dimension, np.int32))


@kernel("ConcatV2")
def concat(*values_and_axis: Any) -> Any:
    *arrays, axis = values_and_axis
    return lax.concatenate(arrays, int(axis) % arrays[0].ndim)


example(lambda x, y: lax.concatenate([x, y], 1), f32(2, 3), f32(2, 4))


@lowering("stack")
def lower_stack(ctx: LoweringContext, *arrays: Edge, axis: int) -> list[Edge]:
    return ctx.node("Pack", list(arrays), axis=int(axis))


@kernel("Pack")
def pack(*values: Any, axis: int) -> Any:
    return jnp.stack(values, axis)


example(lambda x, y: jnp.stack([x, y], 1), f32(2, 3), f32(2, 3))


@lowering("unstack")
def lower_unstack(ctx: LoweringContext, x: Edge, *, axis: int) -> list[Edge]:
    return ctx.node("Unpack", x, num=len(ctx.eqn.outvars), axis=int(axis))


@kernel("Unpack")
def unpack(value: Any, *, axis: int) -> Any:
    return jnp.unstack(value, axis=axis)


example(lambda x: jnp.unstack(x, axis=1)[0] * 2.0, f32(2, 3))


@lowering("split")
def lower_split(ctx: LoweringContext, x: Edge, *, sizes: Any, axis: int) -> list[Edge]:
    parts = ctx.constant(_ints(sizes), np.int32)
    return ctx.node("SplitV", x, parts, ctx.constant(axis, np.int32), num_split=len(_ints(sizes)))


@kernel("SplitV", static=("size_splits", "split_dim"))
def split(value: Any, size_splits: np.ndarray[Any, Any], split_dim: np.ndarray[Any, Any]) -> Any:
    axis = int(split_dim) % value.ndim
    sizes = list(_ints(size_splits))
    if -1 in sizes:
        sizes[sizes.index(-1)] = value.shape[axis] - sum(sizes) - 1
    return lax.split(value, sizes, axis)


example(lambda x: lax.split(x, (1, 3), 1)[1] * 2.0, f32(2, 4))


@lowering("pad")
def lower_pad(ctx: LoweringContext, x: Edge, fill: Edge, *, padding_config: Any) -> list[Edge]:
    config = np.asarray([_ints(part) for part in padding_config], np.int32).reshape(-1, 3)
    low, high, interior = config.T
    if not interior.any() and (config >= 0).all():
        return ctx.node("PadV2", x, ctx.constant(config[:, :2]), fill)
    return ctx.node(
        "XlaPad", x, fill, ctx.constant(low), ctx.constant(high), ctx.constant(interior)
    )


@kernel("PadV2", static=("paddings",))
def pad_v2(input: Any, paddings: np.ndarray[Any, Any], constant_values: Any) -> Any:
    return lax.pad(input, constant_values, [(int(low), int(high), 0) for low, high in paddings])


@kernel("XlaPad", static=("padding_low", "padding_high", "padding_interior"))
def xla_pad(
    input: Any,
    padding_value: Any,
    padding_low: np.ndarray[Any, Any],
    padding_high: np.ndarray[Any, Any],
    padding_interior: np.ndarray[Any, Any],
) -> Any:
    config = zip(_ints(padding_low), _ints(padding_high), _ints(padding_interior), strict=True)
    return lax.pad(input, padding_value, list(config))


example(lambda x: lax.pad(x, np.float32(1), ((1, 2, 0), (0, 1, 0))), f32(2, 3))
example(lambda x: lax.pad(x, np.float32(1), ((-1, 2, 1), (0, 1, 0))), f32(3, 3))
