"""Arithmetic of elements: sums, products, powers, rounding, and the parts of complex numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes
from jaxmeta.graphs.nodes import Edge
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
    u32,
)
from jaxmeta.ops._operands import BOOL, is_complex
from jaxmeta.ops._pointwise import (
    INTS,
    PAIR,
    SMALL,
    TINY,
    binary,
    broadcast,
    broadcasting,
    is_narrow,
    node_or_wider,
    one_of,
    takes,
    unary,
    widened,
    without_signature,
    zero_of,
)
from jaxmeta.tracing import jaxprs

_COMPLEX = Spec((3, 4), np.complex64)
_HALF = Spec((3, 4), jnp.bfloat16)
_NIBBLES = Spec((3, 4), jnp.int4)


def _extreme(compare: Callable[..., Any], on_bools: Callable[..., Any]) -> Callable[..., Any]:
    """Returns maximum or minimum of bools, and of complex numbers in the order of their parts."""

    def run(x: Any, y: Any) -> Any:
        if x.dtype.kind != "c":
            return on_bools(x, y)
        has_equal_reals = lax.eq(lax.real(x), lax.real(y))
        by_imag, by_real = compare(lax.imag(x), lax.imag(y)), compare(lax.real(x), lax.real(y))
        return lax.select(lax.select(has_equal_reals, by_imag, by_real), x, y)

    return run


# --- two operands ------------------------------------------------------------------------------


@lowering("mul")
def lower_mul(ctx: LoweringContext, x: Edge, y: Edge, *, out_dtype: Any = None) -> list[Edge]:
    if out_dtype is not None and dtypes.dtype_to_number(out_dtype) != x.number:
        raise ctx.unsupported(f"a product of out_dtype {out_dtype} cannot be expressed")
    if x.number == BOOL:
        return ctx.node("LogicalAnd", x, y)
    return node_or_wider(ctx, "Mul", lax.mul, x, y)


@lowering("add")
def lower_add(ctx: LoweringContext, x: Edge, y: Edge) -> list[Edge]:
    if x.number == BOOL:
        return ctx.node("LogicalOr", x, y)
    return node_or_wider(ctx, "AddV2", lax.add, x, y)


@lowering("add_any")
def lower_add_any(ctx: LoweringContext, x: Edge, y: Edge) -> list[Edge]:
    op = "AddV2" if x.number != BOOL else "LogicalOr"
    if not takes(op, x):
        return node_or_wider(ctx, op, lax.add, x, y)
    return ctx.node(op, x, y, **{PRIMITIVE_ATTR: "add_any"})


@restores("add_any")
def restore_add_any(x: Any, y: Any) -> Any:
    """Returns the sum of two cotangents, whose derivative is another program than that of a sum."""
    if np.shape(x) != np.shape(y):  # what is fed to it broadcasts as in AddV2
        return broadcasting(lax.add)(x, y)
    return jaxprs.primitive("add_jaxvals").bind(x, y)


binary("AddV2", "add", lax.add, PAIR, INTS, (f32(), f32(3)), (TINY, TINY), widens=True)
binary("Mul", "mul", lax.mul, PAIR, INTS, (f32(3), f32()), (TINY, TINY), widens=True)
binary("Sub", "sub", lax.sub, PAIR, INTS, (TINY, TINY), widens=True)
example(
    lambda x, y: lax.add(x, y),
    _NIBBLES,
    _NIBBLES,
    gradient=False,
    not_in_tensorflow="TensorFlow hands integers of 4 bits to XLA in another layout",
)
example(jax.grad(lambda x: jnp.sum(jnp.sin(x) * x)), f32(3))
example(jax.grad(lambda x: jnp.sum((x * x).astype(np.float32))), TINY, gradient=False)
binary(
    "Maximum",
    "max",
    lax.max,
    PAIR,
    INTS,
    (bools(3), bools(3)),
    (_COMPLEX, _COMPLEX),
    (TINY, TINY),
    otherwise=_extreme(lax.gt, lax.bitwise_or),
    widens=True,
)
binary(
    "Minimum",
    "min",
    lax.min,
    PAIR,
    INTS,
    (bools(3), bools(3)),
    (_COMPLEX, _COMPLEX),
    (TINY, TINY),
    otherwise=_extreme(lax.lt, lax.bitwise_and),
    widens=True,
)


def _complex_atan2(y: Any, x: Any) -> Any:
    """Returns the angle as XLA computes it."""
    i = np.asarray(1j, x.dtype)
    squares = lax.add(lax.mul(x, x), lax.mul(y, y))
    direction = lax.div(lax.add(x, lax.mul(i, y)), lax.sqrt(squares))
    return lax.mul(lax.neg(i), lax.log(direction))


def _next_after(x: Any, y: Any) -> Any:
    """Returns the neighbour of x towards y by counting its bits, which order the magnitudes."""
    bits = np.dtype(f"int{8 * x.dtype.itemsize}")
    sign, rest = (np.asarray(limit, bits) for limit in (np.iinfo(bits).min, np.iinfo(bits).max))
    from_bits, to_bits = (lax.bitcast_convert_type(value, bits) for value in (x, y))
    from_size, to_size = (lax.bitwise_and(value, rest) for value in (from_bits, to_bits))
    has_same_sign = lax.ge(lax.bitwise_xor(from_bits, to_bits), np.zeros((), bits))
    is_outward = lax.bitwise_and(lax.gt(to_size, from_size), has_same_sign)
    step = lax.select(is_outward, lax.full_like(from_bits, 1), lax.full_like(from_bits, -1))
    is_zero = lax.eq(from_size, np.zeros((), bits))
    smallest = lax.bitwise_or(lax.bitwise_and(to_bits, sign), np.ones((), bits))
    moved = lax.select(is_zero, smallest, lax.add(from_bits, step))
    both_zero = lax.bitwise_and(is_zero, lax.eq(to_size, np.zeros((), bits)))
    is_there = lax.bitwise_or(lax.eq(from_bits, to_bits), both_zero)
    neighbour = lax.bitcast_convert_type(lax.select(is_there, to_bits, moved), x.dtype)
    is_nan = lax.bitwise_or(lax.ne(x, x), lax.ne(y, y))
    return lax.select(is_nan, lax.add(x, y), neighbour)


binary("Atan2", "atan2", lax.atan2, PAIR, otherwise=_complex_atan2, widens=True)
example(lambda x, y: lax.atan2(x, y), _COMPLEX, _COMPLEX, gradient=False, tolerance=1e-4)
binary("NextAfter", "nextafter", lax.nextafter, PAIR, gradient=False, otherwise=_next_after)
example(lambda x, y: lax.nextafter(x, y), _HALF, _HALF, gradient=False)


@lowering("div")
def lower_div(ctx: LoweringContext, x: Edge, y: Edge) -> list[Edge]:
    is_integer = dtypes.dtype_from_number(x.number).kind in "iu"
    return node_or_wider(ctx, "TruncateDiv" if is_integer else "RealDiv", lax.div, x, y)


_TINY_ABOVE = Spec((3, 4), jnp.float8_e4m3fn, 0.5, 2.0)
binary("RealDiv", "div", lax.div, (f32(3, 4), SMALL), (TINY, _TINY_ABOVE), widens=True)
binary("TruncateDiv", "div", lax.div, (i32(3, 4), i32(3, 4, low=1, high=5)))


@lowering("rem")
def lower_rem(ctx: LoweringContext, x: Edge, y: Edge) -> list[Edge]:
    if takes("TruncateMod", x):
        return ctx.node("TruncateMod", x, y)
    if is_narrow(x):
        return node_or_wider(ctx, "TruncateMod", lax.rem, x, y)
    return ctx.composite("rem", _rem_by_division, x, y)


def _rem_by_division(x: jax.Array, y: jax.Array) -> jax.Array:
    # Not a plain difference: TensorFlow's optimizer makes the square of one, as jax.random.randint
    # computes it, a SquaredDifference, which refuses unsigned integers.
    return lax.add(x, lax.mul(lax.sub(zero_of(x), lax.div(x, y)), y))


binary("TruncateMod", "rem", lax.rem, (f32(3, 4), SMALL), (i32(3, 4), i32(3, 4, low=1, high=5)))
restores("rem")(broadcasting(lax.rem))
example(lambda x, y: lax.rem(x, y), TINY, _TINY_ABOVE, gradient=False)


@lowering("pow")
def lower_pow(ctx: LoweringContext, x: Edge, y: Edge) -> list[Edge]:
    if x.number == y.number and takes("Pow", x):
        return ctx.node("Pow", x, y)
    if is_narrow(x):
        wide = widened(lambda a, b: lax.pow(a, b))
        return ctx.composite("pow", lambda a, b: wide(*broadcast(a, b)), x, y)
    return ctx.composite("pow", lambda a, b: lax.pow(a, lax.convert_element_type(b, a.dtype)), x, y)


binary("Pow", "pow", lax.pow, (SMALL, f32(3, 4)), tolerance=1e-4)
restores("pow")(broadcasting(lax.pow))
example(lambda x, y: lax.pow(x, y), _TINY_ABOVE, TINY, gradient=False)
example(lambda x, y: lax.pow(x, y), SMALL, i32(3, 4), gradient=False, tolerance=1e-4)


@lowering("integer_pow")
def lower_integer_pow(ctx: LoweringContext, x: Edge, *, y: int) -> list[Edge]:
    return ctx.composite("integer_pow", functools.partial(_power_by_squaring, exponent=y), x, y=y)


def _power_by_squaring(x: jax.Array, *, exponent: int) -> jax.Array:
    """Returns x to an integer power in the order in which XLA multiplies."""
    if exponent == 0:
        return jnp.ones_like(x)
    result = None
    square, rest = x, abs(exponent)
    while rest:
        if rest & 1:
            result = square if result is None else lax.mul(result, square)
        rest >>= 1
        if rest:
            square = lax.mul(square, square)
    assert result is not None
    return result if exponent > 0 else lax.div(jnp.ones_like(x), result)


@restores("integer_pow")
def restore_integer_pow(x: Any, *, y: int) -> Any:
    return lax.integer_pow(x, y)


example(lambda x: lax.integer_pow(x, 3), f32(3, 4))
example(lambda x: lax.integer_pow(x, -2), SMALL)

# --- one operand -------------------------------------------------------------------------------

unary("Neg", "neg", lax.neg, f32(3, 4), i32(5), u32(4), otherwise=lambda x: lax.sub(zero_of(x), x))
unary("Sign", "sign", lax.sign, f32(3, 4), i32(5), otherwise=lambda x: lax.min(x, one_of(x)))
unary("Square", "square", lax.square, f32(3, 4), i32(5))
unary("Floor", "floor", lax.floor, f32(3, 4))
unary("Ceil", "ceil", lax.ceil, f32(3, 4))
unary("IsFinite", "is_finite", lax.is_finite, f32(3, 4), gradient=False)


@lowering("abs")
def lower_abs(ctx: LoweringContext, x: Edge) -> list[Edge]:
    if takes("Abs", x):
        return ctx.node("Abs", x)
    if is_complex(x):
        return ctx.node("ComplexAbs", x, Tout=ctx.out_avals[0].dtype)
    return node_or_wider(ctx, "Abs", lax.abs, x)


@restores("abs")
def restore_abs(x: Any) -> Any:
    return lax.abs(x)


kernel("Abs")(lax.abs)
example(lambda x: lax.abs(x), TINY, gradient=False)
kernel("ComplexAbs")(lax.abs)
example(lambda x: lax.abs(x), f32(3, 4))
example(lambda x: lax.abs(x), _COMPLEX, gradient=False)


@lowering("round")
def lower_round(ctx: LoweringContext, x: Edge, *, rounding_method: Any) -> list[Edge]:
    method = int(rounding_method)
    if method == int(lax.RoundingMethod.TO_NEAREST_EVEN):
        if takes("Round", x):
            return ctx.node("Round", x)
        even = widened(lambda a: lax.round(a, lax.RoundingMethod.TO_NEAREST_EVEN))
        return ctx.composite("round", even, x, method=method)
    return ctx.composite("round", _round_away_from_zero, x, method=method)


def _round_away_from_zero(x: jax.Array) -> jax.Array:
    half = np.asarray(0.5, x.dtype)
    magnitude = lax.abs(x)
    floor = lax.floor(magnitude)
    rounded = lax.select(lax.sub(magnitude, floor) >= half, lax.add(floor, one_of(x)), floor)
    return lax.mul(lax.sign(x), rounded)


@kernel("Round", "Rint")
def round_kernel(x: Any) -> Any:
    return lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN) if x.dtype.kind != "i" else x


@restores("round")
def restore_round(x: Any, *, method: int) -> Any:
    return lax.round(x, lax.RoundingMethod(method))


example(lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN), f32(3, 4))
example(lambda x: lax.round(x), f32(3, 4))
example(lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN), TINY, gradient=False)

# --- complex numbers ---------------------------------------------------------------------------


@lowering("real", "imag")
def lower_real(ctx: LoweringContext, x: Edge) -> list[Edge]:
    op = "Real" if ctx.eqn.primitive.name == "real" else "Imag"
    return ctx.node(op, x, Tout=ctx.out_avals[0].dtype)


kernel("Real")(lax.real)
kernel("Imag")(lax.imag)
example(lambda x: lax.real(x) + lax.imag(x), _COMPLEX, gradient=False)
binary("Complex", "complex", lax.complex, PAIR, gradient=False)


@lowering("conj")
def lower_conj(ctx: LoweringContext, x: Edge, *, input_dtype: Any) -> list[Edge]:
    del input_dtype  # the operand's own
    if is_complex(x):
        return ctx.node("Conj", x)
    return ctx.composite("conj", lambda a: lax.complex(a, lax.neg(jnp.zeros_like(a))), x)


kernel("Conj")(lax.conj)
restores("conj")(without_signature(lax.conj))
example(lambda x: lax.conj(x), _COMPLEX, gradient=False)
example(lambda x: lax.conj(x), f32(3), gradient=False)
