"""Ops that move elements and keep them all: reshape, transpose, reverse, broadcast, tile.

The graph holds a typed PRNG key as its uint32 data, which have trailing axes more than the key;
`ctx.key_rank` says how many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import (
    PRIMITIVE_ATTR,
    LoweringContext,
    example,
    f32,
    kernel,
    lowering,
    restores,
)
from jaxmeta.ops._operands import ints
from jaxmeta.tracing import dimensions, meshes

_INT32_MAX = np.iinfo(np.int32).max


def _shape_constant(ctx: LoweringContext, sizes: Sequence[int]) -> Edge:
    """Returns a Const of sizes, int32 where they fit."""
    if dimensions.is_symbolic(tuple(sizes)):
        return ctx.constant(sizes)
    array = np.asarray(ints(sizes), dtype=np.int64)
    return ctx.constant(
        array if array.size and array.max() > _INT32_MAX else array.astype(np.int32)
    )


@lowering("reshape")
def lower_reshape(
    ctx: LoweringContext, x: Edge, *, new_sizes: Any, dimensions: Any, sharding: Any
) -> list[Edge]:
    del new_sizes  # the result's shape
    if not meshes.is_trivial_sharding(sharding):
        raise ctx.unsupported("a reshape with a sharding cannot be expressed")
    sizes = tuple(ctx.out_avals[0].shape)
    if dimensions is None:
        return ctx.node("Reshape", x, _shape_constant(ctx, sizes))
    order = ints(dimensions)
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
    sizes = ints(shape)
    return lax.reshape(tensor, sizes) if -1 not in sizes else jnp.reshape(tensor, sizes)


example(lambda x: lax.reshape(x, (4, 3)), f32(3, 4))
example(lambda x: lax.reshape(x, (4, 3), (1, 0)), f32(3, 4))


@lowering("squeeze")
def lower_squeeze(ctx: LoweringContext, x: Edge, *, dimensions: Any) -> list[Edge]:
    if not dimensions:
        return ctx.node("Identity", x)
    return ctx.node("Squeeze", x, squeeze_dims=ints(dimensions))


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
    perm = ints(permutation)
    perm += tuple(range(len(perm), len(perm) + ctx.key_rank))
    return ctx.node("Transpose", x, ctx.constant(perm, np.int32))


@kernel("Transpose", static=("perm",))
def transpose(x: Any, perm: np.ndarray[Any, Any]) -> Any:
    return lax.transpose(x, ints(perm))


example(lambda x: lax.transpose(x, (1, 2, 0)), f32(2, 3, 4))


@lowering("rev")
def lower_rev(ctx: LoweringContext, x: Edge, *, dimensions: Any) -> list[Edge]:
    return ctx.node("ReverseV2", x, ctx.constant(ints(dimensions), np.int32))


@kernel("ReverseV2", static=("axis",))
def reverse(tensor: Any, axis: np.ndarray[Any, Any]) -> Any:
    return lax.rev(tensor, tuple(a % tensor.ndim for a in ints(axis)))


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
    if dynamic_sizes or not meshes.is_trivial_sharding(sharding):
        raise ctx.unsupported("broadcast_in_dim with a dynamic shape or a sharding")
    out_shape = ctx.out_avals[0].shape
    rank = len(out_shape)
    dims = ints(broadcast_dimensions)
    dims += tuple(range(rank - ctx.key_rank, rank))
    assert x.shape is not None
    attrs = {PRIMITIVE_ATTR: "broadcast_in_dim", "_jax_broadcast_dimensions": dims}
    if dims == tuple(range(rank - len(dims), rank)):
        return ctx.node("BroadcastTo", x, _shape_constant(ctx, out_shape))
    if math.prod(ints(x.shape)) == math.prod(out_shape):
        return ctx.node("Reshape", x, _shape_constant(ctx, out_shape), **attrs)
    aligned: list[Any] = [1] * rank
    for axis, size in zip(dims, x.shape, strict=True):
        aligned[axis] = size
    return ctx.composite(
        "broadcast_in_dim",
        lambda a: lax.broadcast_in_dim(lax.reshape(a, aligned), out_shape, range(rank)),
        x,
        shape=tuple(out_shape),
        broadcast_dimensions=dims,
    )


@kernel("BroadcastTo", static=("shape",))
def broadcast_to(input: Any, shape: np.ndarray[Any, Any]) -> Any:
    sizes = ints(shape)
    return lax.broadcast_in_dim(input, sizes, range(len(sizes) - np.ndim(input), len(sizes)))


@restores("broadcast_in_dim", static=("sizes",))
def restore_broadcast_in_dim(
    x: Any,
    sizes: np.ndarray[Any, Any] | None = None,
    *,
    broadcast_dimensions: tuple[int, ...],
    shape: tuple[int, ...] = (),
) -> Any:
    return lax.broadcast_in_dim(x, shape if sizes is None else ints(sizes), broadcast_dimensions)


example(lambda x: lax.broadcast_in_dim(x, (2, 3), ()), f32())
example(lambda x: lax.broadcast_in_dim(x, (2, 3), (1,)), f32(3))
example(lambda x: lax.broadcast_in_dim(x, (2, 3), (0,)), f32(2))
example(lambda x: lax.broadcast_in_dim(x, (2, 1, 3, 1), (0, 2)), f32(2, 3))


@lowering("tile")
def lower_tile(ctx: LoweringContext, x: Edge, *, reps: Any) -> list[Edge]:
    # The data of a typed key stay whole.
    return ctx.node("Tile", x, ctx.constant((*ints(reps), *[1] * ctx.key_rank), np.int32))


@kernel("Tile", static=("multiples",))
def tile(input: Any, multiples: np.ndarray[Any, Any]) -> Any:
    return jnp.tile(input, ints(multiples))


example(lambda x: jnp.tile(x, (2, 3)), f32(2, 3))


@kernel("ExpandDims", static=("dim",))
def expand_dims(input: Any, dim: np.ndarray[Any, Any]) -> Any:
    return lax.expand_dims(input, (int(dim.item()),))
