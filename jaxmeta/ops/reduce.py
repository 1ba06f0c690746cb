"""Reductions, arg-reductions and cumulative ops."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._computation import function_of_scalars
from jaxmeta.ops._definition import (
    PRIMITIVE_ATTR,
    LoweringContext,
    bools,
    example,
    f32,
    i32,
    kernel,
    lowering,
    restores,
)
from jaxmeta.ops._operands import BOOL, ints
from jaxmeta.tracing import meshes
from jaxmeta.values import FunctionRef


def _axes(values: Any, rank: int) -> tuple[int, ...]:
    return tuple(int(axis) % rank for axis in np.ravel(values))


def _reduction(op: str, primitive: str, fn: Callable[..., Any], *specs: Any) -> None:
    """Registers a reduction over axes."""

    def lower(ctx: LoweringContext, x: Edge, *, axes: Any, out_sharding: Any = None) -> list[Edge]:
        if not meshes.is_trivial_sharding(out_sharding):
            raise ctx.unsupported("an out_sharding on a reduction cannot be expressed")
        return ctx.node(op, x, ctx.constant([int(axis) for axis in axes], np.int32))

    lowering(primitive)(lower)
    kernel(op, static=("reduction_indices",))(_over_axes(fn))
    for spec in specs:
        example(_reducing(primitive, fn, (0,)), spec)
        example(_reducing(primitive, fn, (0, 1)), spec)


def _over_axes(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the kernel of a reduction."""

    def run(input: Any, reduction_indices: Any, *, keep_dims: bool) -> Any:
        axes = _axes(reduction_indices, input.ndim) if input.ndim else ()
        result = fn(input, axes)
        return lax.expand_dims(result, axes) if keep_dims else result

    return run


def _reducing(name: str, fn: Callable[..., Any], axes: tuple[int, ...]) -> Callable[..., Any]:
    def run(x: Any) -> Any:
        return fn(x, axes)

    run.__name__ = name
    return run


_reduction("Sum", "reduce_sum", lax.reduce_sum, f32(3, 4), i32(3, 4))
_reduction("Prod", "reduce_prod", lax.reduce_prod, f32(3, 4))
_reduction("Max", "reduce_max", lax.reduce_max, f32(3, 4), i32(3, 4))
_reduction("Min", "reduce_min", lax.reduce_min, f32(3, 4))
kernel("All", static=("reduction_indices",))(_over_axes(lax.reduce_and))
kernel("Any", static=("reduction_indices",))(_over_axes(lax.reduce_or))


@lowering("reduce_and", "reduce_or")
def lower_reduce_bits(
    ctx: LoweringContext, x: Edge, *, axes: Any, out_sharding: Any = None
) -> list[Edge]:
    if not meshes.is_trivial_sharding(out_sharding):
        raise ctx.unsupported("an out_sharding on a reduction cannot be expressed")
    name, places = ctx.eqn.primitive.name, ints(axes)
    is_and = name == "reduce_and"
    if x.number == BOOL:
        return ctx.node("All" if is_and else "Any", x, ctx.constant(places, np.int32))
    dtype = dtypes.dtype_from_number(x.number)
    combine = lax.bitwise_and if is_and else lax.bitwise_or
    unit = ctx.constant(np.invert(dtype.type(0)) if is_and else dtype.type(0))
    return ctx.node(
        "XlaVariadicReduceV2",
        [x],
        [unit],
        dimensions_to_reduce=places,
        reducer=function_of_scalars(ctx, combine, "reducer", [dtype, dtype]),
        **{PRIMITIVE_ATTR: name, "_jax_axes": places},
    )


@restores("reduce_and")
def restore_reduce_and(x: Any, unit: Any, *, axes: tuple[int, ...] = ()) -> Any:
    del unit  # what the primitive starts from
    return lax.reduce_and(x, axes)


@restores("reduce_or")
def restore_reduce_or(x: Any, unit: Any, *, axes: tuple[int, ...] = ()) -> Any:
    del unit
    return lax.reduce_or(x, axes)


for _spec in (bools(3, 4), i32(3, 4)):
    example(lambda x: lax.reduce_and(x, (0,)), _spec, gradient=False)
    example(lambda x: lax.reduce_or(x, (0, 1)), _spec, gradient=False)


@lowering("reduce")
def lower_reduce(
    ctx: LoweringContext,
    *operands_and_inits: Edge,
    computation: Any,
    jaxpr: Any,
    dimensions: Any,
    out_sharding: Any = None,
) -> list[Edge]:
    del computation  # the jaxpr is traced from it
    if not meshes.is_trivial_sharding(out_sharding):
        raise ctx.unsupported("an out_sharding on a reduction cannot be expressed")
    count = len(operands_and_inits) // 2
    return ctx.node(
        "XlaVariadicReduceV2",
        list(operands_and_inits[:count]),
        list(operands_and_inits[count:]),
        dimensions_to_reduce=[int(axis) for axis in dimensions],
        reducer=FunctionRef(ctx.function(jaxpr, "reducer")),
    )


@kernel("XlaVariadicReduceV2")
def variadic_reduce(
    *inputs_and_inits: Any, dimensions_to_reduce: tuple[int, ...], reducer: Any
) -> Any:
    count = len(inputs_and_inits) // 2
    inputs, inits = inputs_and_inits[:count], inputs_and_inits[count:]
    if count == 1:
        return lax.reduce(inputs[0], inits[0], lambda x, y: reducer(x, y)[0], dimensions_to_reduce)
    return lax.reduce(inputs, inits, lambda xs, ys: tuple(reducer(*xs, *ys)), dimensions_to_reduce)


example(
    lambda x: lax.reduce(x, np.float32(0), lambda a, b: a + b * np.float32(1), (1,)),
    f32(3, 4),
    gradient=False,
)
example(
    lambda x, y: lax.reduce(
        (x, y), (np.float32(-9), np.int32(0)), lambda a, b: (lax.max(a[0], b[0]), a[1] + b[1]), (0,)
    ),
    f32(3, 4),
    i32(3, 4),
    gradient=False,
)


@lowering("reduce_xor")
def lower_reduce_xor(
    ctx: LoweringContext, x: Edge, *, axes: Any, out_sharding: Any = None
) -> list[Edge]:
    if not meshes.is_trivial_sharding(out_sharding):
        raise ctx.unsupported("an out_sharding on a reduction cannot be expressed")
    places = tuple(int(axis) for axis in axes)

    def parity(a: Any) -> Any:
        for place in sorted(places, reverse=True):
            slices = [lax.index_in_dim(a, i, place, keepdims=False) for i in range(a.shape[place])]
            zero = jnp.zeros_like(a, shape=(*a.shape[:place], *a.shape[place + 1 :]))
            a = functools.reduce(lax.bitwise_xor, slices or [zero])
        return a

    return ctx.composite("reduce_xor", parity, x, axes=places)


@restores("reduce_xor")
def restore_reduce_xor(x: Any, *, axes: tuple[int, ...]) -> Any:
    return lax.reduce_xor(x, axes)


example(lambda x: lax.reduce_xor(x, (0,)), i32(3, 4), gradient=False)
example(lambda x: lax.reduce_xor(x, (0,)), i32(0, 4), gradient=False)


# --- arg-reductions ----------------------------------------------------------------------------


def _arg_reduction(op: str, primitive: str, fn: Callable[..., Any]) -> None:
    def lower(ctx: LoweringContext, x: Edge, *, axes: Any, index_dtype: Any) -> list[Edge]:
        (axis,) = axes
        return ctx.node(op, x, ctx.constant(axis, np.int32), output_type=index_dtype)

    def run(input: Any, dimension: Any, *, output_type: int) -> Any:
        return fn(input, int(dimension) % input.ndim, dtypes.dtype_from_number(output_type))

    lowering(primitive)(lower)
    kernel(op, static=("dimension",))(run)
    example(_reducing(primitive, lambda x, axes: fn(x, axes[0], np.int32), (1,)), f32(3, 4))


_arg_reduction("ArgMax", "argmax", lax.argmax)
_arg_reduction("ArgMin", "argmin", lax.argmin)

# --- cumulative ops ----------------------------------------------------------------------------


def _cumulative(op: str, primitive: str, fn: Callable[..., Any]) -> None:
    def lower(ctx: LoweringContext, x: Edge, *, axis: int, reverse: bool) -> list[Edge]:
        return ctx.node(op, x, ctx.constant(axis, np.int32), reverse=bool(reverse))

    def run(x: Any, axis: Any, *, exclusive: bool, reverse: bool) -> Any:
        place = int(axis) % x.ndim
        if exclusive:
            x = _shift(x, place, reverse=reverse, fill=1 if op == "Cumprod" else 0)
        return fn(x, place, reverse)

    lowering(primitive)(lower)
    kernel(op, static=("axis",))(run)
    for reverse in (False, True):
        example(_cumulating(primitive, fn, reverse), f32(3, 4))


def _cumulating(name: str, fn: Callable[..., Any], reverse: bool) -> Callable[..., Any]:
    def run(x: Any) -> Any:
        return fn(x, 1, reverse)

    run.__name__ = name
    return run


def _shift(x: Any, axis: int, *, reverse: bool, fill: int) -> Any:
    """Returns x moved by one along an axis: an exclusive sum is an inclusive one of that."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (-1, 1, 0) if reverse else (1, -1, 0)
    return lax.pad(x, np.asarray(fill, x.dtype), config)


_cumulative("Cumsum", "cumsum", lax.cumsum)
_cumulative("Cumprod", "cumprod", lax.cumprod)


@lowering("cumlogsumexp")
def lower_cumlogsumexp(ctx: LoweringContext, x: Edge, *, axis: int, reverse: bool) -> list[Edge]:
    return ctx.node("CumulativeLogsumexp", x, ctx.constant(axis, np.int32), reverse=bool(reverse))


@kernel("CumulativeLogsumexp", static=("axis",))
def cumlogsumexp(x: Any, axis: Any, *, exclusive: bool, reverse: bool) -> Any:
    place = int(axis) % x.ndim
    if exclusive:
        config = [(0, 0, 0)] * x.ndim
        config[place] = (-1, 1, 0) if reverse else (1, -1, 0)
        x = lax.pad(x, np.asarray(-np.inf, x.dtype), config)
    return lax.cumlogsumexp(x, place, reverse)


example(lambda x: lax.cumlogsumexp(x, 1), f32(3, 4), tolerance=1e-4)

# --- top_k -------------------------------------------------------------------------------------


@lowering("top_k")
def lower_top_k(
    ctx: LoweringContext, x: Edge, *, k: int, axis: int, is_stable: bool = True
) -> list[Edge]:
    if not is_stable:
        raise ctx.unsupported("an unstable top_k cannot be expressed")
    assert x.shape is not None
    if axis != len(x.shape) - 1:
        return ctx.composite("top_k", lambda a: _top_k_along(a, k, axis), x, k=k, axis=axis)
    return ctx.node("TopKV2", x, ctx.constant(k, np.int32))


def _top_k_along(x: Any, k: int, axis: int) -> Any:
    values, indices = lax.top_k(jnp.moveaxis(x, axis, -1), k)
    return jnp.moveaxis(values, -1, axis), jnp.moveaxis(indices, -1, axis)


@kernel("TopKV2", static=("k",))
def top_k(input: Any, k: Any, *, index_type: int) -> Any:
    values, indices = lax.top_k(input, int(k))
    dtype = dtypes.dtype_from_number(index_type)
    return values, indices if indices.dtype == dtype else indices.astype(dtype)


@restores("top_k")
def restore_top_k(x: Any, *, k: int, axis: int) -> Any:
    return lax.top_k(x, k, axis=axis)


example(lambda x: lax.top_k(x, 2), f32(3, 4))
example(lambda x: lax.top_k(x, 2, axis=0), f32(3, 4))
