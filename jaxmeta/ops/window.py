"""Reductions over windows: pooling, and running maxima.

Max pooling of images is MaxPool; any other window reduction is XlaReduceWindow with the function
that combines two elements. What reduces several arrays at once, TensorFlow has no op for: it
becomes a function that takes one element of every window after the other.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops import _computation
from jaxmeta.ops._definition import (
    PRIMITIVE_ATTR,
    LoweringContext,
    Spec,
    bools,
    example,
    f32,
    i32,
    kernel,
    lowering,
    restores,
)
from jaxmeta.ops._operands import ints
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
    reduce_windows,
    same_padding,
)
from jaxmeta.tracing import dimensions, jaxprs, meshes
from jaxmeta.values import FunctionRef

_MAX_POOL_NUMBERS: Final = frozenset(
    map(dtypes.dtype_to_number, (jnp.bfloat16, np.float16, np.float32, np.float64))
)

# --- maxima, minima and sums -----------------------------------------------------------------


_MONOID_OF_PRIMITIVE: Final = {
    "reduce_window_max": "max",
    "reduce_window_min": "min",
    "reduce_window_sum": "add",
}


@lowering(*_MONOID_OF_PRIMITIVE)
def lower_reduce_window_monoid(
    ctx: LoweringContext,
    x: Edge,
    *,
    window_dimensions: Any,
    window_strides: Any,
    padding: Any,
    base_dilation: Any,
    window_dilation: Any,
    out_sharding: Any = None,
) -> list[Edge]:
    if not meshes.is_trivial_sharding(out_sharding):
        raise ctx.unsupported("an out_sharding on a window reduction cannot be expressed")
    window = Window.of(window_dimensions, window_strides, padding, base_dilation, window_dilation)
    kind = _MONOID_OF_PRIMITIVE[ctx.eqn.primitive.name]
    if kind == "max":
        pooling = _max_pool_padding(x, window)
        if pooling is not None:
            return ctx.node(
                "MaxPool", x, ksize=window.dimensions, strides=window.strides, padding=pooling
            )
    dtype = dtypes.dtype_from_number(x.number)
    start = ctx.constant(MONOIDS[kind].start(dtype))
    return _reduce_window_node(ctx, x, start, window, monoid_function(ctx, kind, dtype))


def _max_pool_padding(x: Edge, window: Window) -> str | None:
    """Returns MaxPool's padding where it says the reduction, else None."""
    assert x.shape is not None
    if (
        x.number not in _MAX_POOL_NUMBERS
        or len(x.shape) != 4
        or window.is_dilated
        or 0 in x.shape
        or {window.dimensions[0], window.dimensions[3]} != {1}
        or {window.strides[0], window.strides[3]} != {1}
    ):
        return None
    if not any(side for pair in window.padding for side in pair):
        sizes = zip(window.dimensions, ints(x.shape), strict=True)
        fits = dimensions.holds(lambda: all(size <= full for size, full in sizes))
        return "VALID" if fits else None
    same = same_padding(ints(x.shape), window.dimensions, window.strides, (1, 1, 1, 1))
    return "SAME" if same == window.padding else None


def _reduce_window_node(
    ctx: LoweringContext, x: Edge, start: Edge, window: Window, function: FunctionRef, **attrs: Any
) -> list[Edge]:
    return ctx.node(
        "XlaReduceWindow",
        x,
        start,
        ctx.constant(window.dimensions, np.int32),
        ctx.constant(window.strides, np.int32),
        ctx.constant(window.base_dilation, np.int32),
        ctx.constant(window.dilation, np.int32),
        ctx.constant(np.asarray(window.padding).reshape(-1, 2), np.int32),
        computation=function,
        **attrs,
    )


@kernel(
    "XlaReduceWindow",
    static=(
        "window_dimensions",
        "window_strides",
        "base_dilations",
        "window_dilations",
        "padding",
    ),
)
def xla_reduce_window(
    input: Any,
    init_value: Any,
    window_dimensions: np.ndarray[Any, Any],
    window_strides: np.ndarray[Any, Any],
    base_dilations: np.ndarray[Any, Any],
    window_dilations: np.ndarray[Any, Any],
    padding: np.ndarray[Any, Any],
    *,
    computation: Any,
    _jax_is_generic: bool = False,
) -> Any:
    window = Window.of(window_dimensions, window_strides, padding, base_dilations, window_dilations)
    monoid = MONOIDS.get(_computation.recognize(computation, input.dtype))
    if (
        monoid is not None
        and not _jax_is_generic
        and isinstance(init_value, np.ndarray)
        and init_value == monoid.start(input.dtype)
    ):
        return reduce_windows(input, monoid, window)
    return lax.reduce_window(
        input, init_value, lambda a, b: computation(a, b)[0], *dataclasses.astuple(window)
    )


example(pooling(lax.max, -INFINITY, TWO, TWO), IMAGE)
example(pooling(lax.max, -INFINITY, THREE, TWO, "SAME"), IMAGE)
example(pooling(lax.max, -INFINITY, THREE, TWO, ((0, 0), (1, 0), (0, 2), (0, 0))), IMAGE)
example(pooling(lax.max, -INFINITY, (1, 1, 2, 2), (1, 1, 2, 2)), f32(2, 3, 7, 6))
example(pooling(lax.max, -INFINITY, TWO, (1, 1, 1, 1), window_dilation=TWO), IMAGE, gradient=False)
example(pooling(lax.max, -INFINITY, TWO, TWO), Spec((2, 6, 6, 3), jnp.bfloat16), gradient=False)
example(pooling(lax.max, np.iinfo(np.int32).min, TWO, TWO), i32(2, 6, 6, 3), gradient=False)
example(pooling(lax.min, INFINITY, THREE, TWO, "SAME"), IMAGE)
example(pooling(lax.add, 0, TWO, TWO), IMAGE)
example(pooling(lax.add, 0, THREE, (1, 1, 1, 1), "SAME"), IMAGE, tolerance=1e-4)
example(
    pooling(lax.add, 0, (2, 2), (1, 1), base_dilation=(2, 1), window_dilation=(1, 2)), f32(5, 6)
)
example(lambda x: jax.vmap(pooling(lax.max, -INFINITY, TWO, TWO))(x), f32(2, 1, 4, 4, 3))
example(
    lambda x: pooling(lax.max, -INFINITY, TWO, TWO)(jnp.where(x > 1.5, jnp.nan, x)),
    IMAGE,
    gradient=False,
    not_in_tensorflow="TensorFlow's maxima and minima over windows do not keep every NaN",
)

# --- any function ------------------------------------------------------------------------------


@lowering("reduce_window")
def lower_reduce_window(
    ctx: LoweringContext,
    *inputs: Edge,
    jaxpr: Any,
    consts: Any,
    window_dimensions: Any,
    window_strides: Any,
    padding: Any,
    base_dilation: Any,
    window_dilation: Any,
) -> list[Edge]:
    jaxpr = jaxprs.with_constants(jaxpr, consts)
    window = Window.of(window_dimensions, window_strides, padding, base_dilation, window_dilation)
    function = _computation.function_ref(ctx, jaxpr, "computation")
    if len(inputs) == 2:
        return _reduce_window_node(ctx, *inputs, window, function, _jax_is_generic=True)
    check_unrolled(ctx, window)
    count = len(inputs) // 2

    def combine(*elements: jax.Array) -> Any:
        run = functools.partial(_computation.run_jaxpr, jaxpr)
        return _computation.batched(run, elements[0].ndim)(*elements)

    def fold(*arrays: jax.Array) -> Sequence[Any]:
        return fold_windows(arrays[:count], arrays[count:], window, combine)

    return ctx.composite("reduce_window", fold, *inputs, computation=function, **window.attrs())


@restores("reduce_window")
def restore_reduce_window(
    *inputs: Any,
    computation: Any,
    window_dimensions: tuple[int, ...],
    window_strides: tuple[int, ...],
    padding: tuple[int, ...],
    base_dilation: tuple[int, ...],
    window_dilation: tuple[int, ...],
) -> Any:
    count = len(inputs) // 2
    return lax.reduce_window(
        inputs[:count],
        inputs[count:],
        lambda a, b: tuple(computation(*a, *b)),
        window_dimensions,
        window_strides,
        pairs_of(padding),
        base_dilation,
        window_dilation,
    )


def _larger_pair(a: tuple[Any, Any], b: tuple[Any, Any]) -> tuple[Any, Any]:
    is_kept = a[0] >= b[0]
    return jnp.where(is_kept, a[0], b[0]), jnp.where(is_kept, a[1], b[1])


example(pooling(lax.mul, 1, TWO, TWO), IMAGE, gradient=False)
example(
    pooling(lambda a, b: jnp.logaddexp(a, b), -INFINITY, (2, 2), (1, 1), "SAME"),
    f32(4, 5),
    gradient=False,
    tolerance=1e-4,
)
example(
    lambda x, start: lax.reduce_window(x, start, lax.add, (2, 2), (1, 1), "SAME"),
    f32(4, 5),
    f32(),
    gradient=False,
)
example(
    lambda x, y: lax.reduce_window(
        (x, y), (np.float32(-np.inf), np.int32(-1)), _larger_pair, (3, 2), (1, 2), "SAME"
    ),
    f32(5, 6),
    i32(5, 6),
    gradient=False,
)
example(pooling(lax.bitwise_or, False, (2, 2), (1, 1), "SAME"), bools(4, 5), gradient=False)

# --- running maxima and minima -----------------------------------------------------------------


@lowering("cummax", "cummin")
def lower_cumulative_extremum(
    ctx: LoweringContext, x: Edge, *, axis: int, reverse: bool
) -> list[Edge]:
    assert x.shape is not None
    shape = ints(x.shape)
    name = ctx.eqn.primitive.name
    kind = name.removeprefix("cum")
    ones = (1,) * len(shape)
    # Each place sees all before it: a window as long as the axis, padded on one side.
    size = dimensions.maximum(shape[axis], 1)
    pads: list[Any] = [(0, 0)] * len(shape)
    pads[axis] = (0, size - 1) if reverse else (size - 1, 0)
    window_sizes: list[Any] = [1] * len(shape)
    window_sizes[axis] = size
    window = Window.of(window_sizes, ones, pads)
    dtype = dtypes.dtype_from_number(x.number)
    return _reduce_window_node(
        ctx,
        x,
        ctx.constant(MONOIDS[kind].start(dtype)),
        window,
        monoid_function(ctx, kind, dtype),
        **{PRIMITIVE_ATTR: name, "_jax_axis": int(axis), "_jax_reverse": bool(reverse)},
    )


@restores("cummax")
def restore_cummax(x: Any, *_: Any, axis: int, reverse: bool) -> Any:
    return lax.cummax(x, axis, reverse)


@restores("cummin")
def restore_cummin(x: Any, *_: Any, axis: int, reverse: bool) -> Any:
    return lax.cummin(x, axis, reverse)


example(lambda x: lax.cummax(x, 1), f32(3, 4))
example(lambda x: lax.cummin(x, 0, reverse=True), f32(3, 4))
example(lambda x: lax.cummax(x, 0), i32(5), gradient=False)
