"""Elementwise ops: arithmetic, comparison, logic, bits, special functions, casts and selection.

Most are one line of a table: TensorFlow's op, JAX's primitive, the public function, examples.
Where TensorFlow's op does not take a dtype, the primitive becomes a call of a function that does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes, jaxprs, op_defs
from jaxmeta.graph import Edge
from jaxmeta.ops._definition import (
    LOWERINGS,
    PRIMITIVE_ATTR,
    WEAK_TYPE_ATTR,
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


@functools.cache
def _allowed_numbers(op: str, attr: str = "T") -> frozenset[int]:
    """Returns the DataTypes that the OpDef allows for an attr; empty means all."""
    for attr_def in op_defs.get_op_def(op).attr:
        if attr_def.name == attr:
            return frozenset(attr_def.allowed_values.list.type)
    return frozenset()


def _takes(op: str, edge: Edge) -> bool:
    allowed = _allowed_numbers(op)
    return not allowed or edge.number in allowed


def _broadcasting(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the binary function with TensorFlow's broadcasting, which `jax.lax` has not."""

    def run(x: Any, y: Any) -> Any:
        if x.shape == y.shape or not x.shape or not y.shape:
            return fn(x, y)
        return fn(*_broadcast(x, y))

    return run


def _broadcast(*arrays: Any) -> list[Any]:
    shape = jnp.broadcast_shapes(*(x.shape for x in arrays))
    return [jnp.broadcast_to(x, shape) for x in arrays]


def _unary(
    op: str,
    primitive: str,
    fn: Callable[..., Any],
    *specs: Any,
    otherwise: Callable[..., Any] | None = None,
    **options: Any,
) -> None:
    """Registers a unary op; `otherwise` says it in other ops for dtypes that the op refuses."""

    def lower(ctx: LoweringContext, x: Edge, *, accuracy: Any = None) -> list[Edge]:
        if accuracy is not None:
            names = jaxprs.accuracy_to_names(accuracy)
            return ctx.node(op, x, **{PRIMITIVE_ATTR: primitive, "_jax_accuracy": names})
        if _takes(op, x):
            return ctx.node(op, x)
        if otherwise is None:
            raise ctx.unsupported(f"TensorFlow's {op} does not take {dtypes.dtype_name(x.number)}")
        return ctx.composite(primitive, otherwise, x)

    lowering(primitive)(lower)
    kernel(op)(fn)
    restores(primitive)(_with_accuracy(fn))
    for spec in specs:
        example(_named(primitive, fn), spec, **options)


def _with_accuracy(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a unary function that takes its accuracy as the file spells it."""

    def run(x: Any, *, accuracy: tuple[bytes, ...] = ()) -> Any:
        if not accuracy:
            return fn(x)
        return fn(x, accuracy=jaxprs.accuracy_from_names([name.decode() for name in accuracy]))

    return run


def _binary(
    op: str,
    primitive: str,
    fn: Callable[..., Any],
    *specs: tuple[Any, Any],
    otherwise: Callable[..., Any] | None = None,
    **options: Any,
) -> None:
    """Registers a binary op; see `_unary`."""

    def lower(ctx: LoweringContext, x: Edge, y: Edge) -> list[Edge]:
        if _takes(op, x) and x.number == y.number:
            return ctx.node(op, x, y)
        if otherwise is None:
            raise ctx.unsupported(f"TensorFlow's {op} does not take {dtypes.dtype_name(x.number)}")
        return ctx.composite(primitive, otherwise, x, y)

    if primitive not in LOWERINGS:
        lowering(primitive)(lower)
    kernel(op)(_broadcasting(fn))
    if otherwise is not None:
        restores(primitive)(_broadcasting(fn))
    for pair in specs:
        example(_named(primitive, fn), *pair, **options)


def _named(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function under a primitive's name, which the test's id shows."""

    def run(*args: Any) -> Any:
        return fn(*args)

    run.__name__ = name
    return run


def _without_signature(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: fn(*args)


_SMALL = f32(3, 4, low=0.1, high=2.0)
_UNIT = f32(3, 4, low=-0.9, high=0.9)

# --- arithmetic ------------------------------------------------------------------------------


@lowering("mul")
def lower_mul(ctx: LoweringContext, x: Edge, y: Edge, *, out_dtype: Any = None) -> list[Edge]:
    if out_dtype is not None and dtypes.dtype_to_number(out_dtype) != x.number:
        raise ctx.unsupported(f"a product of out_dtype {out_dtype} cannot be expressed")
    return ctx.node("Mul", x, y) if x.number != _BOOL else ctx.node("LogicalAnd", x, y)


@lowering("add", "add_any")
def lower_add(ctx: LoweringContext, x: Edge, y: Edge) -> list[Edge]:
    return ctx.node("AddV2", x, y) if x.number != _BOOL else ctx.node("LogicalOr", x, y)


_BOOL = dtypes.dtype_to_number(np.bool_)
_PAIR = (f32(3, 4), f32(3, 4))
_INTS = (i32(3, 4), i32(3, 4))
_COMPLEX = Spec((3, 4), np.complex64)

_binary("AddV2", "add", lax.add, _PAIR, _INTS, (f32(), f32(3)))
_binary("Mul", "mul", lax.mul, _PAIR, _INTS, (f32(3), f32()))
_binary("Sub", "sub", lax.sub, _PAIR, _INTS)
_binary(
    "Maximum",
    "max",
    lax.max,
    _PAIR,
    _INTS,
    (bools(3), bools(3)),
    otherwise=lambda x, y: lax.bitwise_or(x, y),
)
_binary(
    "Minimum",
    "min",
    lax.min,
    _PAIR,
    _INTS,
    (bools(3), bools(3)),
    otherwise=lambda x, y: lax.bitwise_and(x, y),
)
_binary("Atan2", "atan2", lax.atan2, _PAIR)
_binary("NextAfter", "nextafter", lax.nextafter, _PAIR, gradient=False)


@lowering("div")
def lower_div(ctx: LoweringContext, x: Edge, y: Edge) -> list[Edge]:
    is_integer = dtypes.dtype_from_number(x.number).kind in "iu"
    return ctx.node("TruncateDiv" if is_integer else "RealDiv", x, y)


_binary("RealDiv", "div", lax.div, (f32(3, 4), _SMALL))
_binary("TruncateDiv", "div", lax.div, (i32(3, 4), i32(3, 4, low=1, high=5)))


@lowering("rem")
def lower_rem(ctx: LoweringContext, x: Edge, y: Edge) -> list[Edge]:
    if _takes("TruncateMod", x):
        return ctx.node("TruncateMod", x, y)
    return ctx.composite("rem", _rem_by_division, x, y)


def _rem_by_division(x: jax.Array, y: jax.Array) -> jax.Array:
    # Not a plain difference: TensorFlow's optimizer makes the square of one, as jax.random.randint
    # computes it, a SquaredDifference, which refuses unsigned integers.
    return lax.add(x, lax.mul(lax.sub(_zero(x), lax.div(x, y)), y))


_binary("TruncateMod", "rem", lax.rem, (f32(3, 4), _SMALL), (i32(3, 4), i32(3, 4, low=1, high=5)))
restores("rem")(_broadcasting(lax.rem))


@lowering("pow")
def lower_pow(ctx: LoweringContext, x: Edge, y: Edge) -> list[Edge]:
    if x.number == y.number and _takes("Pow", x):
        return ctx.node("Pow", x, y)
    return ctx.composite("pow", lambda a, b: lax.pow(a, lax.convert_element_type(b, a.dtype)), x, y)


_binary("Pow", "pow", lax.pow, (_SMALL, f32(3, 4)), tolerance=1e-4)
restores("pow")(_broadcasting(lax.pow))
example(lambda x, y: lax.pow(x, y), _SMALL, i32(3, 4), gradient=False, tolerance=1e-4)


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
example(lambda x: lax.integer_pow(x, -2), _SMALL)

_unary("Neg", "neg", lax.neg, f32(3, 4), i32(5), u32(4), otherwise=lambda x: lax.sub(_zero(x), x))
_unary("Sign", "sign", lax.sign, f32(3, 4), i32(5), otherwise=lambda x: lax.min(x, _one(x)))
_unary("Square", "square", lax.square, f32(3, 4), i32(5))
_unary("Floor", "floor", lax.floor, f32(3, 4))
_unary("Ceil", "ceil", lax.ceil, f32(3, 4))
_unary("IsFinite", "is_finite", lax.is_finite, f32(3, 4), gradient=False)


def _zero(x: Any) -> Any:
    return np.zeros((), x.dtype)


def _one(x: Any) -> Any:
    return np.ones((), x.dtype)


@lowering("abs")
def lower_abs(ctx: LoweringContext, x: Edge) -> list[Edge]:
    if _takes("Abs", x):
        return ctx.node("Abs", x)
    if dtypes.dtype_from_number(x.number).kind == "c":
        return ctx.node("ComplexAbs", x, Tout=ctx.out_avals[0].dtype)
    raise ctx.unsupported(f"TensorFlow's Abs does not take {dtypes.dtype_name(x.number)}")


kernel("Abs")(lax.abs)
kernel("ComplexAbs")(lax.abs)
example(lambda x: lax.abs(x), f32(3, 4))
example(lambda x: lax.abs(x), _COMPLEX, gradient=False)


@lowering("real", "imag")
def lower_real(ctx: LoweringContext, x: Edge) -> list[Edge]:
    op = "Real" if ctx.eqn.primitive.name == "real" else "Imag"
    return ctx.node(op, x, Tout=ctx.out_avals[0].dtype)


kernel("Real")(lax.real)
kernel("Imag")(lax.imag)
example(lambda x: lax.real(x) + lax.imag(x), _COMPLEX, gradient=False)
_binary("Complex", "complex", lax.complex, _PAIR, gradient=False)


@lowering("conj")
def lower_conj(ctx: LoweringContext, x: Edge, *, input_dtype: Any) -> list[Edge]:
    del input_dtype  # the operand's own
    if dtypes.dtype_from_number(x.number).kind == "c":
        return ctx.node("Conj", x)
    return ctx.composite("conj", lambda a: lax.complex(a, lax.neg(jnp.zeros_like(a))), x)


kernel("Conj")(lax.conj)
restores("conj")(_without_signature(lax.conj))
example(lambda x: lax.conj(x), _COMPLEX, gradient=False)

# --- exponential, trigonometric and special functions ------------------------------------------

_unary("Exp", "exp", lax.exp, f32(3, 4))
_unary("Expm1", "expm1", lax.expm1, f32(3, 4))
_unary("Log", "log", lax.log, _SMALL)
_unary("Log1p", "log1p", lax.log1p, _SMALL)
_unary("Sqrt", "sqrt", lax.sqrt, _SMALL)
_unary("Rsqrt", "rsqrt", lax.rsqrt, _SMALL)
_unary("Sigmoid", "logistic", lax.logistic, f32(3, 4))
_unary("Tanh", "tanh", lax.tanh, f32(3, 4))
_unary("Sin", "sin", lax.sin, f32(3, 4))
example(lambda x: lax.exp(x, accuracy=lax.AccuracyMode.HIGHEST), f32(3), gradient=False)
example(lambda x: lax.tanh(x, accuracy=lax.Tolerance(1e-6, 0.0, 2)), f32(3), gradient=False)
_unary("Cos", "cos", lax.cos, f32(3, 4))
_unary("Tan", "tan", lax.tan, _UNIT)
_unary("Sinh", "sinh", lax.sinh, f32(3, 4))
_unary("Cosh", "cosh", lax.cosh, f32(3, 4))
_unary("Asin", "asin", lax.asin, _UNIT, tolerance=1e-4)
_unary("Acos", "acos", lax.acos, _UNIT, tolerance=1e-4)
_unary("Atan", "atan", lax.atan, f32(3, 4))
_unary("Asinh", "asinh", lax.asinh, f32(3, 4))
_unary("Acosh", "acosh", lax.acosh, f32(3, 4, low=1.1, high=3.0), tolerance=1e-4)
_unary("Atanh", "atanh", lax.atanh, _UNIT)
_unary("Erf", "erf", lax.erf, f32(3, 4))
_unary("Erfc", "erfc", lax.erfc, f32(3, 4))
_unary("Erfinv", "erf_inv", lax.erf_inv, _UNIT, tolerance=1e-4)
_unary("Lgamma", "lgamma", lax.lgamma, _SMALL, tolerance=1e-4)
_unary("Digamma", "digamma", lax.digamma, _SMALL, tolerance=1e-3)
_unary("BesselI0e", "bessel_i0e", lax.bessel_i0e, f32(3, 4))
_unary("BesselI1e", "bessel_i1e", lax.bessel_i1e, f32(3, 4))


@lowering("exp2")
def lower_exp2(ctx: LoweringContext, x: Edge, *, accuracy: Any) -> list[Edge]:
    names = jaxprs.accuracy_to_names(accuracy) or None
    ln_2 = np.asarray(np.log(2), dtypes.dtype_from_number(x.number))
    return ctx.composite("exp2", lambda a: lax.exp(lax.mul(a, ln_2)), x, accuracy=names)


restores("exp2")(_with_accuracy(lax.exp2))
example(lambda x: lax.exp2(x), f32(3, 4))


@lowering("cbrt")
def lower_cbrt(ctx: LoweringContext, x: Edge, *, accuracy: Any) -> list[Edge]:
    names = jaxprs.accuracy_to_names(accuracy) or None
    third = np.asarray(1 / 3, dtypes.dtype_from_number(x.number))

    def signed_root(a: jax.Array) -> jax.Array:
        return lax.mul(lax.sign(a), lax.pow(lax.abs(a), third))

    return ctx.composite("cbrt", signed_root, x, accuracy=names)


restores("cbrt")(_with_accuracy(lax.cbrt))
example(lambda x: lax.cbrt(x), _SMALL, tolerance=1e-4)


# Primitives that JAX has since 0.12; an older one runs the function that stands for them.


@lowering("one_minus_square")
def lower_one_minus_square(ctx: LoweringContext, x: Edge) -> list[Edge]:
    return ctx.composite("one_minus_square", lambda a: lax.sub(_one(a), lax.mul(a, a)), x)


@lowering("log2")
def lower_log2(ctx: LoweringContext, x: Edge, *, accuracy: Any) -> list[Edge]:
    names = jaxprs.accuracy_to_names(accuracy) or None
    one_over_ln_2 = np.asarray(1 / np.log(2), dtypes.dtype_from_number(x.number))
    return ctx.composite("log2", lambda a: lax.mul(lax.log(a), one_over_ln_2), x, accuracy=names)


@lowering("polynomial")
def lower_polynomial(
    ctx: LoweringContext, x: Edge, *coefficients: Edge, unroll: int | None = None
) -> list[Edge]:
    return ctx.composite("polynomial", _horner, x, *coefficients, unroll=unroll)


def _horner(x: jax.Array, *coefficients: jax.Array) -> jax.Array:
    result = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        result = lax.add(lax.mul(result, x), coefficient)
    return jnp.broadcast_to(result, x.shape)


for _name in ("one_minus_square", "log2"):
    if _fn := getattr(lax, _name, None):
        restores(_name)(_with_accuracy(_fn))
        example(_named(_name, _fn), _SMALL)
_polynomial: Any = getattr(lax, "polynomial", None)
if _polynomial is not None:

    @restores("polynomial")
    def restore_polynomial(x: Any, *coefficients: Any, unroll: int | None = None) -> Any:
        return _polynomial(x, coefficients, unroll=unroll)

    example(lambda x: _polynomial(x, [np.float32(1), np.float32(2), x]), f32(3, 4))


@lowering("round")
def lower_round(ctx: LoweringContext, x: Edge, *, rounding_method: Any) -> list[Edge]:
    method = int(rounding_method)
    if method == int(lax.RoundingMethod.TO_NEAREST_EVEN):
        return ctx.node("Round", x)
    return ctx.composite("round", _round_away_from_zero, x, method=method)


def _round_away_from_zero(x: jax.Array) -> jax.Array:
    half = np.asarray(0.5, x.dtype)
    magnitude = lax.abs(x)
    floor = lax.floor(magnitude)
    rounded = lax.select(lax.sub(magnitude, floor) >= half, lax.add(floor, _one(x)), floor)
    return lax.mul(lax.sign(x), rounded)


@kernel("Round", "Rint")
def round_kernel(x: Any) -> Any:
    return lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN) if x.dtype.kind != "i" else x


@restores("round")
def restore_round(x: Any, *, method: int) -> Any:
    return lax.round(x, lax.RoundingMethod(method))


example(lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN), f32(3, 4))
example(lambda x: lax.round(x), f32(3, 4))

# --- comparison --------------------------------------------------------------------------------


def _compare(op: str, primitive: str, fn: Callable[..., Any], on_bools: Callable[..., Any]) -> None:
    _binary(
        op, primitive, fn, _PAIR, _INTS, (bools(3), bools(3)), otherwise=on_bools, gradient=False
    )


_binary("Equal", "eq", lax.eq, _INTS, (bools(3), bools(3)), gradient=False)
_binary("NotEqual", "ne", lax.ne, _INTS, (bools(3), bools(3)), gradient=False)
_compare("Less", "lt", lax.lt, lambda x, y: lax.bitwise_and(lax.bitwise_not(x), y))
_compare("LessEqual", "le", lax.le, lambda x, y: lax.bitwise_or(lax.bitwise_not(x), y))
_compare("Greater", "gt", lax.gt, lambda x, y: lax.bitwise_and(x, lax.bitwise_not(y)))
_compare("GreaterEqual", "ge", lax.ge, lambda x, y: lax.bitwise_or(x, lax.bitwise_not(y)))

# --- logic and bits ----------------------------------------------------------------------------


@lowering("and", "or")
def lower_and_or(ctx: LoweringContext, x: Edge, y: Edge) -> list[Edge]:
    name = ctx.eqn.primitive.name.capitalize()
    return ctx.node(f"Logical{name}" if x.number == _BOOL else f"Bitwise{name}", x, y)


@lowering("xor")
def lower_xor(ctx: LoweringContext, x: Edge, y: Edge) -> list[Edge]:
    if x.number == _BOOL:
        return ctx.node("NotEqual", x, y, **{PRIMITIVE_ATTR: "xor"})
    return ctx.node("BitwiseXor", x, y)


@lowering("not")
def lower_not(ctx: LoweringContext, x: Edge) -> list[Edge]:
    return ctx.node("LogicalNot" if x.number == _BOOL else "Invert", x)


for _op, _fn in (("And", lax.bitwise_and), ("Or", lax.bitwise_or)):
    kernel(f"Logical{_op}", f"Bitwise{_op}")(_broadcasting(_fn))
    example(_named(_op, _fn), bools(5), bools(5), gradient=False)
    example(_named(_op, _fn), u32(5), u32(5), gradient=False)
kernel("BitwiseXor")(_broadcasting(lax.bitwise_xor))
restores("xor")(_broadcasting(lax.bitwise_xor))
kernel("LogicalNot", "Invert")(lax.bitwise_not)
example(lambda x, y: lax.bitwise_xor(x, y), bools(5), bools(5), gradient=False)
example(lambda x, y: lax.bitwise_xor(x, y), u32(5), u32(5), gradient=False)
example(lambda x: lax.bitwise_not(x), bools(5), gradient=False)
example(lambda x: lax.bitwise_not(x), i32(5), gradient=False)

_binary("LeftShift", "shift_left", lax.shift_left, (u32(5), u32(5, high=8)), gradient=False)


def _unsigned(dtype: Any) -> np.dtype[Any]:
    return np.dtype(f"u{np.dtype(dtype).name.removeprefix('u')}")


def _logical_shift(x: jax.Array, y: jax.Array) -> jax.Array:
    unsigned = _unsigned(x.dtype)
    shifted = lax.shift_right_logical(
        lax.bitcast_convert_type(x, unsigned), lax.bitcast_convert_type(y, unsigned)
    )
    return lax.bitcast_convert_type(shifted, x.dtype)


@lowering("shift_right_logical")
def lower_shift_right_logical(ctx: LoweringContext, x: Edge, y: Edge) -> list[Edge]:
    if dtypes.dtype_from_number(x.number).kind == "u":
        return ctx.node("RightShift", x, y)
    return ctx.composite("shift_right_logical", _logical_shift, x, y)


@lowering("shift_right_arithmetic")
def lower_shift_right_arithmetic(ctx: LoweringContext, x: Edge, y: Edge) -> list[Edge]:
    if dtypes.dtype_from_number(x.number).kind == "u":
        raise ctx.unsupported("an arithmetic shift of unsigned integers has no TensorFlow op")
    return ctx.node("RightShift", x, y)


@kernel("RightShift")
def right_shift_kernel(x: Any, y: Any) -> Any:
    shift = lax.shift_right_logical if x.dtype.kind == "u" else lax.shift_right_arithmetic
    return _broadcasting(shift)(x, y)


restores("shift_right_logical")(_broadcasting(lax.shift_right_logical))
example(lambda x, y: lax.shift_right_logical(x, y), u32(5), u32(5, high=8), gradient=False)
example(lambda x, y: lax.shift_right_logical(x, y), i32(5), i32(5, low=0, high=8), gradient=False)
example(
    lambda x, y: lax.shift_right_arithmetic(x, y), i32(5), i32(5, low=0, high=8), gradient=False
)


@lowering("population_count")
def lower_population_count(ctx: LoweringContext, x: Edge) -> list[Edge]:
    def count(a: jax.Array) -> jax.Array:
        bits = 8 * a.dtype.itemsize
        unsigned = lax.bitcast_convert_type(a, _unsigned(a.dtype))
        total = jnp.zeros_like(unsigned)
        for bit in range(bits):
            shifted = lax.shift_right_logical(unsigned, np.asarray(bit, unsigned.dtype))
            total = lax.add(total, lax.bitwise_and(shifted, np.asarray(1, unsigned.dtype)))
        return lax.bitcast_convert_type(total, a.dtype)

    return ctx.composite("population_count", count, x)


restores("population_count")(_without_signature(lax.population_count))
example(lambda x: lax.population_count(x), u32(5), gradient=False)

# --- casts, selection, identity ----------------------------------------------------------------


@lowering("convert_element_type")
def lower_convert_element_type(
    ctx: LoweringContext, x: Edge, *, new_dtype: Any, weak_type: bool, sharding: Any
) -> list[Edge]:
    if not jaxprs.is_trivial_sharding(sharding):
        raise ctx.unsupported("a sharding on convert_element_type cannot be expressed")
    attrs = {WEAK_TYPE_ATTR: True} if weak_type else {}
    return ctx.node("Cast", x, DstT=new_dtype, **attrs)


@kernel("Cast")
def cast(x: Any, *, DstT: int, _jax_weak_type: bool = False) -> Any:
    dtype = dtypes.dtype_from_number(DstT)
    if jnp.iscomplexobj(x) and dtype.kind != "c":
        return lax.convert_element_type(x, dtype)
    return jaxprs.cast(x, dtype, is_weak=_jax_weak_type)


example(lambda x: lax.convert_element_type(x, np.float32), i32(5))
example(lambda x: lax.convert_element_type(x, np.int32), f32(5), gradient=False)
example(lambda x: lax.convert_element_type(x, jnp.bfloat16), f32(5), gradient=False)
example(lambda x: lax.convert_element_type(x, np.bool_), f32(5), gradient=False)
example(lambda x: lax.convert_element_type(x, np.float32), bools(5))


@lowering("bitcast_convert_type")
def lower_bitcast_convert_type(ctx: LoweringContext, x: Edge, *, new_dtype: Any) -> list[Edge]:
    return ctx.node("Bitcast", x, type=new_dtype)


@kernel("Bitcast")
def bitcast(x: Any, *, type: int) -> Any:
    return lax.bitcast_convert_type(x, dtypes.dtype_from_number(type))


example(lambda x: lax.bitcast_convert_type(x, np.int32), f32(5), gradient=False)
example(lambda x: lax.bitcast_convert_type(x, np.float32), u32(5), gradient=False)


@lowering("select_n")
def lower_select_n(ctx: LoweringContext, which: Edge, *cases: Edge) -> list[Edge]:
    if which.number == _BOOL and len(cases) == 2 and _fits_select(ctx, which, cases[0]):
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


@kernel("SelectV2", "Select")
def select(condition: Any, t: Any, e: Any) -> Any:
    if not condition.shape or condition.shape == t.shape == e.shape:
        return lax.select_n(condition, e, t)
    return lax.select_n(*_broadcast(condition, e, t))


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
    if _takes("ClipByValue", x):
        return ctx.node("ClipByValue", x, low, high)
    return ctx.composite("clamp", lambda a, b, c: lax.min(lax.max(b, a), c), low, x, high)


@kernel("ClipByValue")
def clip_by_value(t: Any, clip_value_min: Any, clip_value_max: Any) -> Any:
    if all(not x.shape or x.shape == t.shape for x in (clip_value_min, clip_value_max)):
        return lax.clamp(clip_value_min, t, clip_value_max)
    low, t, high = _broadcast(clip_value_min, t, clip_value_max)
    return lax.clamp(low, t, high)


restores("clamp")(lambda low, x, high: lax.clamp(low, x, high))
example(lambda x: lax.clamp(np.float32(-1), x, np.float32(1)), f32(3, 4))
example(lambda x: lax.clamp(np.uint32(5), x, np.uint32(100)), u32(3, 4), gradient=False)


@lowering("copy", "copy_p")
def lower_copy(ctx: LoweringContext, x: Edge) -> list[Edge]:
    return ctx.node("Identity", x)


@lowering("stop_gradient")
def lower_stop_gradient(ctx: LoweringContext, x: Edge) -> list[Edge]:
    return ctx.node("StopGradient", x)


@kernel("Identity", "Snapshot", "PreventGradient")
def identity(x: Any) -> Any:
    return x


kernel("StopGradient")(lax.stop_gradient)
example(lambda x: jnp.copy(x), f32(3))
example(lambda x: lax.stop_gradient(x) * x, f32(3))


@lowering("reduce_precision")
def lower_reduce_precision(
    ctx: LoweringContext, x: Edge, *, exponent_bits: int, mantissa_bits: int
) -> list[Edge]:
    return ctx.node(
        "XlaReducePrecision", x, exponent_bits=exponent_bits, mantissa_bits=mantissa_bits
    )


@kernel("XlaReducePrecision")
def reduce_precision(operand: Any, *, exponent_bits: int, mantissa_bits: int) -> Any:
    return lax.reduce_precision(operand, exponent_bits, mantissa_bits)


example(lambda x: lax.reduce_precision(x, 5, 10), f32(3, 4))


@lowering("device_put")
def lower_device_put(
    ctx: LoweringContext, *arrays: Edge, devices: Any, srcs: Any, copy_semantics: Any
) -> list[Edge]:
    del srcs, copy_semantics  # where it comes from, and whether it may alias, is not computation
    if any(device is not None for device in devices):
        raise ctx.unsupported("device_put to a device or sharding inside the program")
    return [edge for x in arrays for edge in ctx.node("Identity", x)]


example(lambda x: jax.device_put(x) + 1.0, f32(3))
