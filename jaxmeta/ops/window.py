"""Reductions over windows: pooling, its gradients, and running maxima.

Max pooling of images is MaxPool; any other window reduction is XlaReduceWindow with the function
that combines two elements. What reduces several arrays at once, TensorFlow has no op for: it
becomes a function that takes one element of every window after the other.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes, errors, jaxprs
from jaxmeta.graph import Edge
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
from jaxmeta.ops.conv import Pads, same_padding, spatial_axes
from jaxmeta.values import FunctionRef

_BOOL: Final = dtypes.dtype_to_number(np.bool_)
_MAX_POOL_NUMBERS: Final = frozenset(
    map(dtypes.dtype_to_number, (jnp.bfloat16, np.float16, np.float32, np.float64))
)
# A window larger than this is not taken apart into one node per element.
_MAX_UNROLLED_WINDOW: Final = 512


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in np.ravel(values))


@dataclasses.dataclass(frozen=True, slots=True)
class _Window:
    """The geometry of a window reduction, as plain ints."""

    dimensions: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Pads
    base_dilation: tuple[int, ...]
    dilation: tuple[int, ...]

    @classmethod
    def of(
        cls,
        dimensions: Any,
        strides: Any,
        padding: Any,
        base_dilation: Any = None,
        dilation: Any = None,
    ) -> _Window:
        ones = np.ones(len(np.ravel(dimensions)), np.int64)
        return cls(
            _ints(dimensions),
            _ints(strides),
            tuple((int(low), int(high)) for low, high in padding),
            _ints(ones if base_dilation is None else base_dilation),
            _ints(ones if dilation is None else dilation),
        )

    @property
    def is_dilated(self) -> bool:
        return {*self.base_dilation, *self.dilation} - {1} != set()

    def attrs(self) -> dict[str, Any]:
        """Returns the parameters of a call that stands for a window reduction."""
        return {
            "window_dimensions": self.dimensions,
            "window_strides": self.strides,
            "padding": tuple(side for pair in self.padding for side in pair),
            "base_dilation": self.base_dilation,
            "window_dilation": self.dilation,
        }

    def params(self) -> dict[str, Any]:
        """Returns the parameters of JAX's window reductions."""
        return {**self.attrs(), "padding": self.padding}


def _pairs_of(flat: Sequence[int]) -> Pads:
    """Returns pairs from the flat list that an attr holds."""
    return tuple(zip(flat[::2], flat[1::2], strict=True))


# --- maxima, minima and sums -----------------------------------------------------------------


def _lowest(dtype: Any) -> np.ndarray[Any, Any]:
    """Returns what a maximum starts from."""
    if dtype == np.bool_:
        return np.asarray(False)
    if jnp.issubdtype(dtype, np.integer):
        return np.asarray(jnp.iinfo(dtype).min, dtype)
    return np.asarray(-np.inf, dtype)


def _highest(dtype: Any) -> np.ndarray[Any, Any]:
    """Returns what a minimum starts from."""
    if dtype == np.bool_:
        return np.asarray(True)
    if jnp.issubdtype(dtype, np.integer):
        return np.asarray(jnp.iinfo(dtype).max, dtype)
    return np.asarray(np.inf, dtype)


def _zero(dtype: Any) -> np.ndarray[Any, Any]:
    return np.zeros((), dtype)


@dataclasses.dataclass(frozen=True, slots=True)
class _Monoid:
    """A way of combining two elements that JAX has a window reduction for."""

    combine: Callable[..., Any]
    start: Callable[[Any], np.ndarray[Any, Any]]


_MONOIDS: Final = {
    "max": _Monoid(lax.max, _lowest),
    "min": _Monoid(lax.min, _highest),
    "add": _Monoid(lax.add, _zero),
}
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
    if out_sharding is not None:
        raise ctx.unsupported("an out_sharding on a window reduction cannot be expressed")
    window = _Window.of(window_dimensions, window_strides, padding, base_dilation, window_dilation)
    kind = _MONOID_OF_PRIMITIVE[ctx.eqn.primitive.name]
    if kind == "max":
        pooling = _max_pool_padding(x, window)
        if pooling is not None:
            return ctx.node(
                "MaxPool", x, ksize=window.dimensions, strides=window.strides, padding=pooling
            )
    dtype = dtypes.dtype_from_number(x.number)
    start = ctx.constant(_MONOIDS[kind].start(dtype))
    return _reduce_window_node(ctx, x, start, window, _monoid_function(ctx, kind, dtype))


def _monoid_function(ctx: LoweringContext, kind: str, dtype: Any) -> FunctionRef:
    return _computation.function_of_scalars(ctx, _MONOIDS[kind].combine, kind, (dtype, dtype))


def _max_pool_padding(x: Edge, window: _Window) -> str | None:
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
        fits = all(
            size <= full for size, full in zip(window.dimensions, _ints(x.shape), strict=True)
        )
        return "VALID" if fits else None
    same = same_padding(_ints(x.shape), window.dimensions, window.strides, (1, 1, 1, 1))
    return "SAME" if same == window.padding else None


def _reduce_window_node(
    ctx: LoweringContext, x: Edge, start: Edge, window: _Window, function: FunctionRef, **attrs: Any
) -> list[Edge]:
    return ctx.node(
        "XlaReduceWindow",
        x,
        start,
        ctx.constant(window.dimensions, np.int32),
        ctx.constant(window.strides, np.int32),
        ctx.constant(window.base_dilation, np.int32),
        ctx.constant(window.dilation, np.int32),
        ctx.constant(np.asarray(window.padding, np.int32).reshape(-1, 2)),
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
    window = _Window.of(
        window_dimensions, window_strides, padding, base_dilations, window_dilations
    )
    monoid = _MONOIDS.get(_computation.recognize(computation, input.dtype))
    if (
        monoid is not None
        and not _jax_is_generic
        and isinstance(init_value, np.ndarray)
        and init_value == monoid.start(input.dtype)
    ):
        return _reduce_window_monoid(input, monoid, window)
    return lax.reduce_window(
        input, init_value, lambda a, b: computation(a, b)[0], *_positional(window)
    )


def _reduce_window_monoid(x: Any, monoid: _Monoid, window: _Window) -> Any:
    return lax.reduce_window(x, monoid.start(x.dtype), monoid.combine, *_positional(window))


def _positional(window: _Window) -> tuple[Any, ...]:
    return dataclasses.astuple(window)


def _pooling(
    combine: Callable[..., Any],
    start: float,
    dimensions: tuple[int, ...],
    strides: tuple[int, ...],
    padding: Any = "VALID",
    **options: Any,
) -> Callable[..., Any]:
    def run(x: jax.Array) -> jax.Array:
        return jnp.asarray(
            lax.reduce_window(
                x, np.asarray(start, x.dtype), combine, dimensions, strides, padding, **options
            )
        )

    run.__name__ = "reduce_window"
    return run


_IMAGE = f32(2, 7, 6, 3)
_TWO = (1, 2, 2, 1)
_THREE = (1, 3, 3, 1)
_INF = float("inf")

example(_pooling(lax.max, -_INF, _TWO, _TWO), _IMAGE)
example(_pooling(lax.max, -_INF, _THREE, _TWO, "SAME"), _IMAGE)
example(_pooling(lax.max, -_INF, _THREE, _TWO, ((0, 0), (1, 0), (0, 2), (0, 0))), _IMAGE)
example(_pooling(lax.max, -_INF, (1, 1, 2, 2), (1, 1, 2, 2)), f32(2, 3, 7, 6))
example(_pooling(lax.max, -_INF, _TWO, (1, 1, 1, 1), window_dilation=_TWO), _IMAGE, gradient=False)
example(_pooling(lax.max, -_INF, _TWO, _TWO), Spec((2, 6, 6, 3), jnp.bfloat16), gradient=False)
example(_pooling(lax.max, np.iinfo(np.int32).min, _TWO, _TWO), i32(2, 6, 6, 3), gradient=False)
example(_pooling(lax.min, _INF, _THREE, _TWO, "SAME"), _IMAGE)
example(_pooling(lax.add, 0, _TWO, _TWO), _IMAGE)
example(_pooling(lax.add, 0, _THREE, (1, 1, 1, 1), "SAME"), _IMAGE, tolerance=1e-4)
example(
    _pooling(lax.add, 0, (2, 2), (1, 1), base_dilation=(2, 1), window_dilation=(1, 2)), f32(5, 6)
)
example(lambda x: jax.vmap(_pooling(lax.max, -_INF, _TWO, _TWO))(x), f32(2, 1, 4, 4, 3))
example(
    lambda x: _pooling(lax.max, -_INF, _TWO, _TWO)(jnp.where(x > 1.5, jnp.nan, x)),
    _IMAGE,
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
    if consts:
        raise ctx.unsupported("a window reduction whose function closes over arrays")
    window = _Window.of(window_dimensions, window_strides, padding, base_dilation, window_dilation)
    function = FunctionRef(ctx.function(jaxpr, "computation"))
    if len(inputs) == 2:
        return _reduce_window_node(ctx, *inputs, window, function, _jax_is_generic=True)
    _check_unrolled(ctx, window)
    count = len(inputs) // 2

    def combine(*elements: jax.Array) -> Sequence[Any]:
        run = functools.partial(_computation.run_jaxpr, jaxprs.open_jaxpr(jaxpr))
        for _ in range(elements[0].ndim):
            run = jax.vmap(run)
        return run(*elements)

    def fold(*arrays: jax.Array) -> Sequence[Any]:
        return _fold_windows(arrays[:count], arrays[count:], window, combine)

    return ctx.composite("reduce_window", fold, *inputs, computation=function, **window.attrs())


def _check_unrolled(ctx: LoweringContext, window: _Window) -> None:
    size = math.prod(window.dimensions)
    if size > _MAX_UNROLLED_WINDOW:
        raise ctx.unsupported(
            f"TensorFlow has no op that reduces windows of several arrays, and these windows "
            f"have {size} elements, more than {_MAX_UNROLLED_WINDOW} to take one by one"
        )


def _fold_windows(
    arrays: Sequence[jax.Array],
    starts: Sequence[Any],
    window: _Window,
    combine: Callable[..., Sequence[Any]],
) -> Sequence[Any]:
    """Reduces windows of several arrays, one element of each window after the other."""
    config = [
        (low, high, dilation - 1)
        for (low, high), dilation in zip(window.padding, window.base_dilation, strict=True)
    ]
    padded = [lax.pad(a, start, config) for a, start in zip(arrays, starts, strict=True)]
    spans = [
        (size - 1) * dilation + 1
        for size, dilation in zip(window.dimensions, window.dilation, strict=True)
    ]
    counts = [
        (full - span) // stride + 1
        for full, span, stride in zip(padded[0].shape, spans, window.strides, strict=True)
    ]
    result: Sequence[Any] = [
        lax.broadcast_in_dim(jnp.asarray(start, a.dtype), counts, ())
        for a, start in zip(arrays, starts, strict=True)
    ]
    for place in itertools.product(*map(range, window.dimensions)):
        first = [p * dilation for p, dilation in zip(place, window.dilation, strict=True)]
        last = [
            f + (count - 1) * stride + 1
            for f, count, stride in zip(first, counts, window.strides, strict=True)
        ]
        elements = [lax.slice(a, first, last, window.strides) for a in padded]
        result = combine(*result, *elements)
    return result


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
        _pairs_of(padding),
        base_dilation,
        window_dilation,
    )


def _larger_pair(a: tuple[Any, Any], b: tuple[Any, Any]) -> tuple[Any, Any]:
    is_kept = a[0] >= b[0]
    return jnp.where(is_kept, a[0], b[0]), jnp.where(is_kept, a[1], b[1])


example(_pooling(lax.mul, 1, _TWO, _TWO), _IMAGE, gradient=False)
example(
    _pooling(lambda a, b: jnp.logaddexp(a, b), -_INF, (2, 2), (1, 1), "SAME"),
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
example(_pooling(lax.bitwise_or, False, (2, 2), (1, 1), "SAME"), bools(4, 5), gradient=False)

# --- gradients of maxima and minima -----------------------------------------------------------

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
    window = _Window.of(window_dimensions, window_strides, padding)
    dtype = dtypes.dtype_from_number(operand.number)
    compare = _COMPARISONS[select_prim.name]
    select = _computation.function_of_scalars(ctx, compare, select_prim.name, (dtype, dtype))
    return ctx.node(
        "XlaSelectAndScatter",
        operand,
        ctx.constant(window.dimensions, np.int32),
        ctx.constant(window.strides, np.int32),
        ctx.constant(np.asarray(window.padding, np.int32).reshape(-1, 2)),
        source,
        ctx.constant(_zero(dtype)),
        select=select,
        scatter=_monoid_function(ctx, "add", dtype),
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
) -> Any:
    window = _Window.of(window_dimensions, window_strides, padding)
    comparison = _computation.recognize(select, operand.dtype)
    combination = _computation.recognize(scatter, operand.dtype)
    if comparison not in _COMPARISONS or combination != "add":
        raise errors.UnsupportedOpError(
            "XlaSelectAndScatter is supported where it selects by >= or <= and adds, not by "
            f"{select.name!r} and {scatter.name!r}"
        )
    scattered = jaxprs.primitive("select_and_scatter_add").bind(
        source,
        operand,
        select_prim=jaxprs.primitive(comparison),
        window_dimensions=window.dimensions,
        window_strides=window.strides,
        padding=window.padding,
    )
    if isinstance(init_value, np.ndarray) and not init_value:
        return scattered
    return scattered + init_value


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
    window = _Window.of(window_dimensions, window_strides, padding, base_dilation, window_dilation)
    _check_unrolled(ctx, window)
    compare = _COMPARISONS[select_prim.name]
    start = _MONOIDS["max" if select_prim.name == "ge" else "min"].start

    def combine(value: Any, tangent: Any, new_value: Any, new_tangent: Any) -> list[Any]:
        is_kept = compare(value, new_value)
        return [lax.select(is_kept, value, new_value), lax.select(is_kept, tangent, new_tangent)]

    def fold(t: jax.Array, x: jax.Array) -> Any:
        return _fold_windows((x, t), (start(x.dtype), _zero(t.dtype)), window, combine)[1]

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
        padding=_pairs_of(padding),
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


example(_gradient(_pooling(lax.max, -_INF, _TWO, _TWO)), _IMAGE)
example(_gradient(_pooling(lax.max, -_INF, _THREE, _TWO, "SAME")), _IMAGE)
example(_gradient(_pooling(lax.min, _INF, _THREE, _TWO, "SAME")), _IMAGE)
example(_gradient(_pooling(lax.add, 0, _THREE, _TWO, "SAME")), _IMAGE, tolerance=1e-4)
example(_tangent(_pooling(lax.max, -_INF, _TWO, _TWO)), _IMAGE, _IMAGE, gradient=False)
example(_tangent(_pooling(lax.min, _INF, _THREE, _TWO, "SAME")), _IMAGE, _IMAGE, gradient=False)

# --- running maxima and minima -----------------------------------------------------------------


@lowering("cummax", "cummin")
def lower_cumulative_extremum(
    ctx: LoweringContext, x: Edge, *, axis: int, reverse: bool
) -> list[Edge]:
    assert x.shape is not None
    shape = _ints(x.shape)
    name = ctx.eqn.primitive.name
    kind = name.removeprefix("cum")
    ones = (1,) * len(shape)
    # Each place sees all before it: a window as long as the axis, padded on one side.
    size = max(shape[axis], 1)
    pads = [(0, 0)] * len(shape)
    pads[axis] = (0, size - 1) if reverse else (size - 1, 0)
    dimensions = [1] * len(shape)
    dimensions[axis] = size
    window = _Window.of(dimensions, ones, pads)
    dtype = dtypes.dtype_from_number(x.number)
    return _reduce_window_node(
        ctx,
        x,
        ctx.constant(_MONOIDS[kind].start(dtype)),
        window,
        _monoid_function(ctx, kind, dtype),
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

# --- TensorFlow's pooling ----------------------------------------------------------------------


def _pooling_window(
    x: Any,
    ksize: tuple[int, ...],
    strides: tuple[int, ...],
    padding: bytes,
    explicit: tuple[int, ...] = (),
) -> _Window:
    if padding == b"EXPLICIT":
        pads = _pairs_of(explicit)
    elif padding == b"SAME":
        pads = same_padding(x.shape, ksize, strides, (1,) * x.ndim)
    else:
        pads = ((0, 0),) * x.ndim
    return _Window.of(ksize, strides, pads)


@kernel("MaxPool")
def max_pool(
    input: Any,
    *,
    ksize: tuple[int, ...],
    strides: tuple[int, ...],
    padding: bytes,
    explicit_paddings: tuple[int, ...],
    data_format: bytes,
) -> Any:
    spatial_axes(data_format, input.ndim)  # ksize and strides are in the same order as the axes
    window = _pooling_window(input, ksize, strides, padding, explicit_paddings)
    return _reduce_window_monoid(input, _MONOIDS["max"], window)


@kernel("MaxPoolV2", static=("ksize", "strides"))
def max_pool_v2(
    input: Any,
    ksize: np.ndarray[Any, Any],
    strides: np.ndarray[Any, Any],
    *,
    padding: bytes,
    data_format: bytes,
) -> Any:
    return max_pool(
        input,
        ksize=_ints(ksize),
        strides=_ints(strides),
        padding=padding,
        explicit_paddings=(),
        data_format=data_format,
    )


@kernel("AvgPool")
def avg_pool(
    value: Any,
    *,
    ksize: tuple[int, ...],
    strides: tuple[int, ...],
    padding: bytes,
    data_format: bytes,
) -> Any:
    spatial_axes(data_format, value.ndim)
    window = _pooling_window(value, ksize, strides, padding)
    total = _reduce_window_monoid(value, _MONOIDS["add"], window)
    if padding == b"VALID":
        return total / np.asarray(math.prod(ksize), value.dtype)
    # TensorFlow's mean counts the elements that are there, and not the padding.
    ones = jnp.ones(value.shape[1:], value.dtype)[None]
    return total / _reduce_window_monoid(ones, _MONOIDS["add"], window)
