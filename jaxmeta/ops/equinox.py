"""Primitives that Equinox and Lineax register with JAX; diffrax's solvers are made of them.

What they do to values is plain JAX; what they are for are their own rules of `jax.vmap` and
`jax.grad`, which come back without these libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import errors
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import PRIMITIVE_ATTR, LoweringContext, lowering, restores
from jaxmeta.ops._derivative_rules import call_expanded

# --- reductions over batches too ---------------------------------------------------------------

_UNVMAPPED: Final[dict[str, tuple[str, Callable[..., Any]]]] = {
    "unvmap_all": ("All", jnp.all),
    "unvmap_any": ("Any", jnp.any),
    "unvmap_max": ("Max", jnp.max),
}


@lowering(*_UNVMAPPED)
def lower_unvmap(ctx: LoweringContext, x: Edge) -> list[Edge]:
    name = ctx.eqn.primitive.name
    op, _ = _UNVMAPPED[name]
    axes = ctx.constant(list(range(len(x.shape or ()))), np.int32)
    return ctx.node(op, x, axes, **{PRIMITIVE_ATTR: name})


def _unvmapped(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the reduction of all axes that under `jax.vmap` reduces the batch as well."""

    @jax.custom_batching.custom_vmap
    def reduced(x: Any) -> Any:
        return fn(x)

    @reduced.def_vmap
    def _(axis_size: int, in_batched: Any, x: Any) -> Any:
        del axis_size, in_batched
        return reduced(x), False

    return lambda x, axes: reduced(x)


for _name, (_, _fn) in _UNVMAPPED.items():
    restores(_name)(_unvmapped(_fn))

# --- identities that refuse a transformation ---------------------------------------------------


@lowering("nonbatchable")
def lower_nonbatchable(
    ctx: LoweringContext, x: Edge, *, msg: str, allow_constant_across_batch: bool
) -> list[Edge]:
    attrs = {"_jax_msg": msg, "_jax_allow_constant_across_batch": allow_constant_across_batch}
    return ctx.node("Identity", x, **{PRIMITIVE_ATTR: "nonbatchable"}, **attrs)


@restores("nonbatchable")
def restore_nonbatchable(x: Any, *, msg: bytes, allow_constant_across_batch: bool) -> Any:
    """Returns its argument, which `jax.vmap` must not batch.

    Where a batch of equal values is allowed, the first is taken; that they are equal is checked by
    Equinox only.
    """

    @jax.custom_batching.custom_vmap
    def same(x: Any) -> Any:
        return x

    @same.def_vmap
    def _(axis_size: int, in_batched: Any, x: Any) -> Any:
        del axis_size, in_batched
        if not allow_constant_across_batch:
            raise ValueError(msg.decode())
        return same(x[0]), False

    return same(x)


@lowering("nondifferentiable_backward")
def lower_nondifferentiable_backward(
    ctx: LoweringContext, x: Edge, *, msg: str, symbolic: bool
) -> list[Edge]:
    attrs = {"_jax_msg": msg, "_jax_symbolic_zeros": symbolic}
    return ctx.node("Identity", x, **{PRIMITIVE_ATTR: "nondifferentiable_backward"}, **attrs)


@restores("nondifferentiable_backward")
def restore_nondifferentiable_backward(x: Any, *, msg: bytes, symbolic_zeros: bool) -> Any:
    """Returns its argument, through which no cotangent may come.

    Where zeros may come as arrays, others become NaN; Equinox raises while the program runs.
    """

    @jax.custom_vjp
    def same(x: Any) -> Any:
        return x

    def bwd(_: None, cotangent: Any) -> Any:
        if symbolic_zeros:
            raise errors.DerivativeError(msg.decode())
        return (jnp.where(cotangent != 0, np.nan, cotangent),)

    same.defvjp(lambda x: (x, None), bwd)
    return same(x)


# --- updates within batched loops --------------------------------------------------------------


@lowering("select_if_vmap")
def lower_select_if_vmap(ctx: LoweringContext, pred: Edge, x: Edge, y: Edge) -> list[Edge]:
    return ctx.node("SelectV2", pred, x, y, **{PRIMITIVE_ATTR: "select_if_vmap"})


@restores("select_if_vmap")
def restore_select_if_vmap(pred: Any, x: Any, y: Any) -> Any:
    """Returns ``x``, for the predicate is true wherever it is not batched, else the choice."""
    return _select_if_vmap(pred, x, y)


@jax.custom_jvp
def _select_if_vmap(pred: Any, x: Any, y: Any) -> Any:
    return _chosen(pred, x, y)


@_select_if_vmap.defjvp
def _select_if_vmap_jvp(primals: Any, tangents: Any) -> Any:
    pred, *_ = primals
    _, tx, ty = tangents
    return _select_if_vmap(*primals), lax.select_n(pred, ty, tx)


def _first(pred: Any, x: Any, y: Any) -> Any:
    del pred, y
    return x


_chosen: Final[Any] = jax.custom_batching.custom_vmap(_first)


def _choose_of_batch(axis_size: int, in_batched: Any, pred: Any, x: Any, y: Any) -> Any:
    axes = [0 if batched else None for batched in in_batched]
    if in_batched[0]:
        return jax.vmap(lax.select, axes, axis_size=axis_size)(pred, x, y), True
    if not any(in_batched):
        return _chosen(pred, x, y), False
    x, y = (
        array if batched else jnp.broadcast_to(array, (axis_size, *array.shape))
        for array, batched in zip((x, y), in_batched[1:], strict=True)
    )
    return _chosen(pred, x, y), True


_chosen.def_vmap(_choose_of_batch)


@lowering("maybe_set")
def lower_maybe_set(
    ctx: LoweringContext,
    *inputs: Edge,
    i_static: Any,
    i_treedef: Any,
    kwargs: Any,
    makes_false_steps: bool,
) -> list[Edge]:
    del i_static, i_treedef, kwargs, makes_false_steps  # its implementation has them
    return call_expanded(ctx, inputs)


@lowering("vprim")
def lower_vprim(
    ctx: LoweringContext,
    *inputs: Edge,
    prim: Any,
    __axis_size: int,
    __axis_name: Any,
    __batch_axes: Any,
    params: Any,
) -> list[Edge]:
    """A primitive of Equinox under `jax.vmap`."""
    del prim, __axis_size, __axis_name, __batch_axes, params  # its implementation has them
    return call_expanded(ctx, inputs)


# --- linear systems ----------------------------------------------------------------------------


@lowering("linear_solve")
def lower_lineax_solve(
    ctx: LoweringContext, *inputs: Edge, treedef: Any, static: Any, flatten: Any
) -> list[Edge]:
    """Lineax's solve: the solver's own steps, with the derivative of the solution."""
    del treedef, static, flatten  # its implementation has them
    return call_expanded(ctx, inputs)
