"""Slices, at places that are fixed or computed.

The graph holds a typed PRNG key as its uint32 data, which have trailing axes more than the key.
`_key_axes` extends what a primitive says of the key's axes to those of the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from jaxmeta import dtypes, errors
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import LoweringContext, example, f32, i32, kernel, lowering, restores
from jaxmeta.ops._indexing import ends_of_slices, index_of_slices
from jaxmeta.ops._operands import avals_of, ints
from jaxmeta.tracing import dimensions


def _key_axes(ctx: LoweringContext) -> tuple[int, ...]:
    """Returns the sizes of the trailing axes that hold a key's data; empty for plain arrays."""
    rank = ctx.key_rank
    return tuple(ctx.out_avals[0].shape[-rank:]) if rank else ()


@lowering("slice")
def lower_slice(
    ctx: LoweringContext, x: Edge, *, start_indices: Any, limit_indices: Any, strides: Any
) -> list[Edge]:
    keys = _key_axes(ctx)
    begin = (*ints(start_indices), *(0 for _ in keys))
    end = (*ints(limit_indices), *keys)
    steps = ints(strides) if strides is not None else (1,) * len(ints(start_indices))
    steps += (1,) * len(keys)
    return ctx.node(
        "StridedSlice", x, *(ctx.constant(part, np.int32) for part in (begin, end, steps))
    )


@kernel("StridedSlice", static=("begin", "end", "strides"), traceable=("begin", "end"))
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
    masks = (begin_mask, end_mask, ellipsis_mask, new_axis_mask, shrink_axis_mask)
    starts, limits = ends_of_slices(begin, end, masks)
    steps = ints(strides)
    is_plain = not any(masks)
    if (
        is_plain
        and len(starts) == input.ndim
        and dimensions.holds(
            lambda: all(
                0 <= start <= limit <= size and step > 0
                for start, limit, step, size in zip(starts, limits, steps, input.shape, strict=True)
            ),
            otherwise=True,
        )
    ):
        return lax.slice(input, starts, limits, None if set(steps) <= {1} else steps)
    return input[index_of_slices(starts, limits, steps, masks)]


example(lambda x: lax.slice(x, (1, 0), (3, 4)), f32(3, 4))
example(lambda x: lax.slice(x, (0, 1), (3, 4), (1, 2)), f32(3, 4))


@kernel("Slice", static=("begin", "size"), traceable=("begin",))
def slice_kernel(
    input: Any,
    begin: Any,
    size: np.ndarray[Any, Any],
) -> Any:
    if isinstance(begin, jax.core.Tracer):
        lengths = ints(size)
        if any(length < 0 for length in lengths):
            raise errors.GraphError(
                f"where the begin of a Slice depends on what the function is given, its size "
                f"{list(lengths)} must be numbers of elements, not -1"
            )
        return lax.dynamic_slice(input, list(begin), lengths, allow_negative_indices=False)
    starts = ints(begin)
    limits = [
        full if length < 0 else start + length
        for start, length, full in zip(starts, ints(size), input.shape, strict=True)
    ]
    return lax.slice(input, starts, limits)


@lowering("dynamic_slice")
def lower_dynamic_slice(
    ctx: LoweringContext, x: Edge, *starts: Edge, slice_sizes: Any
) -> list[Edge]:
    sizes = (*ints(slice_sizes), *_key_axes(ctx))

    def fill_body(body: LoweringContext, inputs: list[Edge]) -> list[Edge]:
        begin = _pack_starts(body, inputs[1:], len(sizes))
        # One attr types both, so that the sizes take the dtype of the starts.
        extent = body.constant(sizes, dtypes.dtype_from_number(begin.number))
        return body.node("XlaDynamicSlice", inputs[0], begin, extent)

    avals = avals_of([x, *starts])
    function = ctx.build_function("dynamic_slice", avals, fill_body, key=(*avals, sizes))
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


@restores("dynamic_slice")
def restore_dynamic_slice(x: Any, *starts: Any, slice_sizes: tuple[int, ...]) -> Any:
    zeros = [np.zeros((), np.int32)] * (x.ndim - len(starts))
    return lax.dynamic_slice(x, [*starts, *zeros], slice_sizes, allow_negative_indices=False)


@kernel("XlaDynamicSlice", static=("size_indices",))
def dynamic_slice(input: Any, start_indices: Any, size_indices: np.ndarray[Any, Any]) -> Any:
    return lax.dynamic_slice(input, list(start_indices), ints(size_indices))


example(lambda x, i: lax.dynamic_slice(x, (i, 1), (2, 3)), f32(4, 5), i32(low=0, high=0))


@lowering("dynamic_update_slice")
def lower_dynamic_update_slice(
    ctx: LoweringContext, x: Edge, update: Edge, *starts: Edge
) -> list[Edge]:
    rank = len(ctx.out_avals[0].shape)

    def fill_body(body: LoweringContext, inputs: list[Edge]) -> list[Edge]:
        begin = _pack_starts(body, inputs[2:], rank)
        return body.node("XlaDynamicUpdateSlice", inputs[0], inputs[1], begin)

    avals = avals_of([x, update, *starts])
    function = ctx.build_function("dynamic_update_slice", avals, fill_body, key=tuple(avals))
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
