"""Gradients of maxima and minima over windows: sums of what the chosen elements belong to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops import _computation
from jaxmeta.ops._definition import LoweringContext, example, f32, kernel, lowering, restores
from jaxmeta.ops._window import (
    IMAGE,
    INFINITY,
    MONOIDS,
    THREE,
    TWO,
    Window,
    check_unrolled,
    fold_windows,
    monoid_function,
    pairs_of,
    pooling,
    zero,
)
from jaxmeta.tracing import binding, jaxprs

_COMPARISONS: Final[dict[str, Callable[..., Any]]] = {"ge": lax.ge, "le": lax.le}


@lowering("select_and_scatter_add")
def lower_select_and_scatter_add(
    ctx: LoweringContext,
    source: Edge,
    operand: Edge,
    *,
    select_prim: Any,
    window_dimensions: Any,
    window_strides: Any,
    padding: Any,
) -> list[Edge]:
    if select_prim.name not in _COMPARISONS:
        raise ctx.unsupported(f"a selection by {select_prim.name}")
    window = Window.of(window_dimensions, window_strides, padding)
    dtype = dtypes.dtype_from_number(operand.number)
    compare = _COMPARISONS[select_prim.name]
    select = _computation.function_of_scalars(ctx, compare, select_prim.name, (dtype, dtype))
    return ctx.node(
        "XlaSelectAndScatter",
        operand,
        ctx.constant(window.dimensions, np.int32),
        ctx.constant(window.strides, np.int32),
        ctx.constant(np.asarray(window.padding).reshape(-1, 2), np.int32),
        source,
        ctx.constant(zero(dtype)),
        select=select,
        scatter=monoid_function(ctx, "add", dtype),
    )


@kernel("XlaSelectAndScatter", static=("window_dimensions", "window_strides", "padding"))
def xla_select_and_scatter(
    operand: Any,
    window_dimensions: np.ndarray[Any, Any],
    window_strides: np.ndarray[Any, Any],
    padding: np.ndarray[Any, Any],
    source: Any,
    init_value: Any,
    *,
    select: Any,
    scatter: Any,
    _jax_is_generic: bool = False,
) -> Any:
    window = Window.of(window_dimensions, window_strides, padding)
    comparison = _computation.recognize(select, operand.dtype)
    combination = _computation.recognize(scatter, operand.dtype)
    if _jax_is_generic or comparison not in _COMPARISONS or combination != "add":
        return binding.bind_select_and_scatter(
            operand, source, init_value, select, scatter, **window.geometry()
        )
    scattered = jaxprs.primitive("select_and_scatter_add").bind(
        source, operand, select_prim=jaxprs.primitive(comparison), **window.geometry()
    )
    if isinstance(init_value, np.ndarray) and not init_value:
        return scattered
    return scattered + init_value


@lowering("select_and_scatter")
def lower_select_and_scatter(
    ctx: LoweringContext,
    operand: Edge,
    source: Edge,
    init_value: Edge,
    *,
    select_jaxpr: Any,
    select_consts: Any,
    scatter_jaxpr: Any,
    scatter_consts: Any,
    window_dimensions: Any,
    window_strides: Any,
    padding: Any,
) -> list[Edge]:
    window = Window.of(window_dimensions, window_strides, padding)
    select = jaxprs.with_constants(select_jaxpr, select_consts)
    scatter = jaxprs.with_constants(scatter_jaxpr, scatter_consts)
    return ctx.node(
        "XlaSelectAndScatter",
        operand,
        ctx.constant(window.dimensions, np.int32),
        ctx.constant(window.strides, np.int32),
        ctx.constant(np.asarray(window.padding).reshape(-1, 2), np.int32),
        source,
        init_value,
        select=_computation.function_ref(ctx, select, "select"),
        scatter=_computation.function_ref(ctx, scatter, "scatter"),
        _jax_is_generic=True,
    )


def _scattering(select: Callable[..., Any], scatter: Callable[..., Any]) -> Callable[..., Any]:
    def run(operand: jax.Array, source: jax.Array, start: jax.Array) -> Any:
        return binding.bind_select_and_scatter(
            operand,
            source,
            start,
            lambda a, b: [select(a, b)],
            lambda a, b: [scatter(a, b)],
            window_dimensions=(2, 3),
            window_strides=(2, 1),
            padding=((0, 0), (1, 1)),
        )

    run.__name__ = "select_and_scatter"
    return run


for _select, _scatter in ((lax.ge, lax.add), (lax.gt, lax.max), (lax.le, lambda a, b: a - 2 * b)):
    example(_scattering(_select, _scatter), f32(6, 5), f32(3, 5), f32(), gradient=False)


@lowering("select_and_gather_add")
def lower_select_and_gather_add(
    ctx: LoweringContext,
    tangents: Edge,
    operand: Edge,
    *,
    select_prim: Any,
    window_dimensions: Any,
    window_strides: Any,
    padding: Any,
    base_dilation: Any,
    window_dilation: Any,
) -> list[Edge]:
    if select_prim.name not in _COMPARISONS:
        raise ctx.unsupported(f"a selection by {select_prim.name}")
    window = Window.of(window_dimensions, window_strides, padding, base_dilation, window_dilation)
    check_unrolled(ctx, window)
    compare = _COMPARISONS[select_prim.name]
    start = MONOIDS["max" if select_prim.name == "ge" else "min"].start

    def combine(value: Any, tangent: Any, new_value: Any, new_tangent: Any) -> list[Any]:
        is_kept = compare(value, new_value)
        return [lax.select(is_kept, value, new_value), lax.select(is_kept, tangent, new_tangent)]

    def fold(t: jax.Array, x: jax.Array) -> Any:
        return fold_windows((x, t), (start(x.dtype), zero(t.dtype)), window, combine)[1]

    return ctx.composite(
        "select_and_gather_add", fold, tangents, operand, select=select_prim.name, **window.attrs()
    )


@restores("select_and_gather_add")
def restore_select_and_gather_add(
    tangents: Any,
    operand: Any,
    *,
    select: bytes,
    window_dimensions: tuple[int, ...],
    window_strides: tuple[int, ...],
    padding: tuple[int, ...],
    base_dilation: tuple[int, ...],
    window_dilation: tuple[int, ...],
) -> Any:
    return jaxprs.primitive("select_and_gather_add").bind(
        tangents,
        operand,
        select_prim=jaxprs.primitive(select.decode()),
        window_dimensions=window_dimensions,
        window_strides=window_strides,
        padding=pairs_of(padding),
        base_dilation=base_dilation,
        window_dilation=window_dilation,
    )


def _gradient(fn: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: jax.Array) -> jax.Array:
        return jnp.asarray(jax.grad(lambda a: jnp.sum(fn(a) ** 2))(x))

    run.__name__ = "reduce_window_gradient"
    return run


def _tangent(fn: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: jax.Array, t: jax.Array) -> Any:
        return jax.jvp(fn, (x,), (t,))

    run.__name__ = "reduce_window_tangent"
    return run


example(_gradient(pooling(lax.max, -INFINITY, TWO, TWO)), IMAGE)
example(_gradient(pooling(lax.max, -INFINITY, THREE, TWO, "SAME")), IMAGE)
example(_gradient(pooling(lax.min, INFINITY, THREE, TWO, "SAME")), IMAGE)
example(_gradient(pooling(lax.add, 0, THREE, TWO, "SAME")), IMAGE, tolerance=1e-4)
example(_tangent(pooling(lax.max, -INFINITY, TWO, TWO)), IMAGE, IMAGE, gradient=False)
example(_tangent(pooling(lax.min, INFINITY, THREE, TWO, "SAME")), IMAGE, IMAGE, gradient=False)
