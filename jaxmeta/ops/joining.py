"""Joining arrays and taking them apart: concatenate, stack, split; and padding."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import LoweringContext, example, f32, kernel, lowering
from jaxmeta.ops._operands import ints
from jaxmeta.ops._window import pairs
from jaxmeta.tracing import dimensions


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
    parts = ctx.constant(ints(sizes), np.int32)
    return ctx.node("SplitV", x, parts, ctx.constant(axis, np.int32), num_split=len(ints(sizes)))


@kernel("SplitV", static=("size_splits", "split_dim"))
def split(value: Any, size_splits: np.ndarray[Any, Any], split_dim: np.ndarray[Any, Any]) -> Any:
    axis = int(split_dim) % value.ndim
    sizes = list(ints(size_splits))
    if -1 in sizes:
        sizes[sizes.index(-1)] = value.shape[axis] - sum(sizes) - 1
    return lax.split(value, sizes, axis)


example(lambda x: lax.split(x, (1, 3), 1)[1] * 2.0, f32(2, 4))


@lowering("pad")
def lower_pad(ctx: LoweringContext, x: Edge, fill: Edge, *, padding_config: Any) -> list[Edge]:
    config: list[Any] = [ints(part) for part in padding_config]
    if dimensions.holds(lambda: all(l >= 0 and h >= 0 and i == 0 for l, h, i in config)):
        sides = np.asarray([pair[:2] for pair in config]).reshape(-1, 2)
        return ctx.node("PadV2", x, ctx.constant(sides, np.int32), fill)
    low, high, interior = ([part[i] for part in config] for i in range(3))
    return ctx.node(
        "XlaPad", x, fill, *(ctx.constant(part, np.int32) for part in (low, high, interior))
    )


@kernel("PadV2", static=("paddings",))
def pad_v2(input: Any, paddings: np.ndarray[Any, Any], constant_values: Any) -> Any:
    config = [(low, high, 0) for low, high in pairs(paddings)]
    return lax.pad(input, constant_values, config)


@kernel("XlaPad", static=("padding_low", "padding_high", "padding_interior"))
def xla_pad(
    input: Any,
    padding_value: Any,
    padding_low: np.ndarray[Any, Any],
    padding_high: np.ndarray[Any, Any],
    padding_interior: np.ndarray[Any, Any],
) -> Any:
    config = zip(ints(padding_low), ints(padding_high), ints(padding_interior), strict=True)
    return lax.pad(input, padding_value, list(config))


example(lambda x: lax.pad(x, np.float32(1), ((1, 2, 0), (0, 1, 0))), f32(2, 3))
example(lambda x: lax.pad(x, np.float32(1), ((-1, 2, 1), (0, 1, 0))), f32(3, 3))
