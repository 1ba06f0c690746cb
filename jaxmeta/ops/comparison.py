"""Comparisons of elements, and choosing among elements by them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import (
    LoweringContext,
    bools,
    declare_flow,
    example,
    f32,
    i32,
    kernel,
    lowering,
    restores,
    u32,
)
from jaxmeta.ops._kernels import Flow
from jaxmeta.ops._operands import BOOL
from jaxmeta.ops._pointwise import INTS, PAIR, TINY, binary, broadcast, node_or_wider, takes
from jaxmeta.tracing import jaxprs


def _compare(op: str, primitive: str, fn: Callable[..., Any], on_bools: Callable[..., Any]) -> None:
    specs = (PAIR, INTS, (bools(3), bools(3)), (TINY, TINY))
    binary(op, primitive, fn, *specs, otherwise=on_bools, widens=True, gradient=False)


@lowering("eq", "ne")
def lower_equality(ctx: LoweringContext, x: Edge, y: Edge) -> list[Edge]:
    name = ctx.eqn.primitive.name
    aval = ctx.eqn.invars[0].aval
    if not jaxprs.is_key_dtype(aval.dtype):
        return ctx.node("Equal" if name == "eq" else "NotEqual", x, y)
    # Two keys are one where all of their data are.
    rank = len(jaxprs.key_layout(aval.dtype)[1])
    compare = _are_equal if name == "eq" else _are_different
    return ctx.composite(name, functools.partial(compare, rank=rank), x, y, key_rank=rank)


def _are_equal(x: jax.Array, y: jax.Array, *, rank: int) -> jax.Array:
    x, y = broadcast(x, y)
    return lax.reduce_and(lax.eq(x, y), tuple(range(x.ndim - rank, x.ndim)))


def _are_different(x: jax.Array, y: jax.Array, *, rank: int) -> jax.Array:
    x, y = broadcast(x, y)
    return lax.reduce_or(lax.ne(x, y), tuple(range(x.ndim - rank, x.ndim)))


@restores("eq")
def restore_eq(x: Any, y: Any, *, key_rank: int) -> Any:
    return _are_equal(x, y, rank=key_rank)


@restores("ne")
def restore_ne(x: Any, y: Any, *, key_rank: int) -> Any:
    return _are_different(x, y, rank=key_rank)


for _fn in (lax.eq, lax.ne):
    example(
        lambda x, y, fn=_fn: fn(*map(jax.random.wrap_key_data, (x, y * 0 + x[0]))),
        u32(3, 2, high=3),
        u32(3, 2),
        gradient=False,
    )
binary("Equal", "eq", lax.eq, INTS, (bools(3), bools(3)), gradient=False)
declare_flow("Equal", Flow.COMPARISON)
binary("NotEqual", "ne", lax.ne, INTS, (bools(3), bools(3)), gradient=False)
_compare("Less", "lt", lax.lt, lambda x, y: lax.bitwise_and(lax.bitwise_not(x), y))
_compare("LessEqual", "le", lax.le, lambda x, y: lax.bitwise_or(lax.bitwise_not(x), y))
_compare("Greater", "gt", lax.gt, lambda x, y: lax.bitwise_and(x, lax.bitwise_not(y)))
_compare("GreaterEqual", "ge", lax.ge, lambda x, y: lax.bitwise_or(x, lax.bitwise_not(y)))

# --- selection ---------------------------------------------------------------------------------


@lowering("select_n")
def lower_select_n(ctx: LoweringContext, which: Edge, *cases: Edge) -> list[Edge]:
    if which.number == BOOL and len(cases) == 2 and _fits_select(ctx, which, cases[0]):
        on_false, on_true = cases
        return ctx.node("SelectV2", which, on_true, on_false)
    return ctx.composite("select_n", _select_by_index, which, *cases)


def _fits_select(ctx: LoweringContext, which: Edge, case: Edge) -> bool:
    """Returns whether TensorFlow broadcasts the predicate as JAX does; typed keys add an axis."""
    return not which.shape or which.shape == case.shape


def _select_by_index(which: jax.Array, *cases: jax.Array) -> jax.Array:
    which = jnp.reshape(which, which.shape + (1,) * (cases[0].ndim - which.ndim))
    which = jnp.broadcast_to(which, cases[0].shape)
    if which.dtype == np.bool_:
        return lax.select_n(which, *cases)
    result = cases[-1]
    for index in range(len(cases) - 2, -1, -1):
        is_case = lax.eq(which, np.asarray(index, which.dtype))
        result = lax.select_n(is_case, result, cases[index])
    return result


@kernel("Select")
def select_rows(condition: Any, t: Any, e: Any) -> Any:
    """Selects elements, or whole rows where the condition is a vector and the others are not."""
    if condition.ndim == 1 and t.ndim > 1:
        condition = jnp.reshape(condition, (-1,) + (1,) * (t.ndim - 1))
    return select(condition, t, e)


@kernel("SelectV2")
def select(condition: Any, t: Any, e: Any) -> Any:
    if not condition.shape or condition.shape == t.shape == e.shape:
        return lax.select_n(condition, e, t)
    return lax.select_n(*broadcast(condition, e, t))


@restores("select_n")
def restore_select_n(which: Any, *cases: Any) -> Any:
    if which.shape and which.ndim < cases[0].ndim:  # typed keys, whose data have an axis more
        which = lax.broadcast_in_dim(which, cases[0].shape, tuple(range(which.ndim)))
    return lax.select_n(which, *cases)


example(lambda p, x, y: lax.select_n(p, x, y), bools(3, 4), f32(3, 4), f32(3, 4))
example(lambda p, x, y: lax.select_n(p, x, y), bools(), f32(3, 4), f32(3, 4))
example(lambda p, x, y, z: lax.select_n(p, x, y, z), i32(4, low=0, high=-1), f32(4), f32(4), f32(4))


@lowering("clamp")
def lower_clamp(ctx: LoweringContext, low: Edge, x: Edge, high: Edge) -> list[Edge]:
    if takes("ClipByValue", x):
        return ctx.node("ClipByValue", x, low, high)
    if x.number == BOOL:
        return ctx.composite("clamp", _clamp_bools, low, x, high)
    return node_or_wider(ctx, "ClipByValue", lax.clamp, low, x, high)


def _clamp_bools(*operands: jax.Array) -> jax.Array:
    low, x, high = broadcast(*operands)
    return lax.bitwise_and(lax.bitwise_or(low, x), high)


@restores("clamp")
def restore_clamp(low: Any, x: Any, high: Any) -> Any:
    return lax.clamp(low, x, high)


@kernel("ClipByValue")
def clip_by_value(t: Any, clip_value_min: Any, clip_value_max: Any) -> Any:
    if all(not x.shape or x.shape == t.shape for x in (clip_value_min, clip_value_max)):
        return lax.clamp(clip_value_min, t, clip_value_max)
    low, t, high = broadcast(clip_value_min, t, clip_value_max)
    return lax.clamp(low, t, high)


example(lambda x: lax.clamp(np.float32(-1), x, np.float32(1)), f32(3, 4))
example(lambda x, y: lax.clamp(x, y, x | y), bools(3, 4), bools(3, 4), gradient=False)
example(lambda x, y: lax.clamp(-abs(y), x, abs(y)), TINY, TINY, gradient=False)
example(lambda x: lax.clamp(np.uint32(5), x, np.uint32(100)), u32(3, 4), gradient=False)
