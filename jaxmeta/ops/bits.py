"""Logic of bools, and the same of the bits of integers: and, or, xor, not, shifts, counts."""

from __future__ import annotations

import functools
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
    i32,
    kernel,
    lowering,
    restores,
    u32,
)
from jaxmeta.ops._operands import BOOL, avals_of
from jaxmeta.ops._pointwise import binary, broadcasting, named, without_signature


@lowering("and", "or")
def lower_and_or(ctx: LoweringContext, x: Edge, y: Edge) -> list[Edge]:
    name = ctx.eqn.primitive.name.capitalize()
    return ctx.node(f"Logical{name}" if x.number == BOOL else f"Bitwise{name}", x, y)


@lowering("xor")
def lower_xor(ctx: LoweringContext, x: Edge, y: Edge) -> list[Edge]:
    if x.number == BOOL:
        return ctx.node("NotEqual", x, y, **{PRIMITIVE_ATTR: "xor"})
    return ctx.node("BitwiseXor", x, y)


@lowering("not")
def lower_not(ctx: LoweringContext, x: Edge) -> list[Edge]:
    return ctx.node("LogicalNot" if x.number == BOOL else "Invert", x)


for _op, _fn in (("And", lax.bitwise_and), ("Or", lax.bitwise_or)):
    kernel(f"Logical{_op}", f"Bitwise{_op}")(broadcasting(_fn))
    example(named(_op, _fn), bools(5), bools(5), gradient=False)
    example(named(_op, _fn), u32(5), u32(5), gradient=False)
kernel("BitwiseXor")(broadcasting(lax.bitwise_xor))
restores("xor")(broadcasting(lax.bitwise_xor))
kernel("LogicalNot", "Invert")(lax.bitwise_not)
example(lambda x, y: lax.bitwise_xor(x, y), bools(5), bools(5), gradient=False)
example(lambda x, y: lax.bitwise_xor(x, y), u32(5), u32(5), gradient=False)
example(lambda x: lax.bitwise_not(x), bools(5), gradient=False)
example(lambda x: lax.bitwise_not(x), i32(5), gradient=False)

binary(
    "LeftShift",
    "shift_left",
    lax.shift_left,
    (u32(5), u32(5, high=8)),
    widens=True,
    gradient=False,
)
_NIBBLES = (Spec((3, 4), jnp.uint4, 0, 12), Spec((3, 4), jnp.uint4, 0, 1))


def _is_tiny(edge: Edge) -> bool:
    dtype = dtypes.dtype_from_number(edge.number)
    return bool(jnp.issubdtype(dtype, np.integer) and jnp.iinfo(dtype).bits < 8)


def _shift_tiny(x: jax.Array, y: jax.Array, *, is_arithmetic: bool) -> jax.Array:
    """Shifts numbers of less than 8 bits to the right, as numbers of 32."""
    bits = jnp.iinfo(x.dtype).bits
    mask, half = np.int32((1 << bits) - 1), np.int32(1 << (bits - 1))
    wide, steps = (lax.convert_element_type(a, np.int32) & mask for a in (x, y))
    signed = (wide ^ half) - half if is_arithmetic else wide
    return lax.convert_element_type(lax.shift_right_arithmetic(signed, steps), x.dtype)


def _unsigned(dtype: Any) -> np.dtype[Any]:
    return np.dtype(f"u{np.dtype(dtype).name.removeprefix('u')}")


def _logical_shift(x: jax.Array, y: jax.Array) -> jax.Array:
    unsigned = _unsigned(x.dtype)
    shifted = lax.shift_right_logical(
        lax.bitcast_convert_type(x, unsigned), lax.bitcast_convert_type(y, unsigned)
    )
    return lax.bitcast_convert_type(shifted, x.dtype)


def _arithmetic_shift(x: jax.Array, y: jax.Array) -> jax.Array:
    signed = np.dtype(x.dtype.name.removeprefix("u"))
    shifted = lax.shift_right_arithmetic(
        lax.bitcast_convert_type(x, signed), lax.bitcast_convert_type(y, signed)
    )
    return lax.bitcast_convert_type(shifted, x.dtype)


@lowering("shift_right_logical")
def lower_shift_right_logical(ctx: LoweringContext, x: Edge, y: Edge) -> list[Edge]:
    if dtypes.dtype_from_number(x.number).kind == "u":
        return ctx.node("RightShift", x, y)
    if _is_tiny(x):
        shift = functools.partial(_shift_tiny, is_arithmetic=False)
        return ctx.composite("shift_right_logical", shift, x, y)
    return ctx.composite("shift_right_logical", _logical_shift, x, y)


@lowering("shift_right_arithmetic")
def lower_shift_right_arithmetic(ctx: LoweringContext, x: Edge, y: Edge) -> list[Edge]:
    if _is_tiny(x):
        shift = functools.partial(_shift_tiny, is_arithmetic=True)
        return ctx.composite("shift_right_arithmetic", shift, x, y)
    if dtypes.dtype_from_number(x.number).kind == "u":
        return ctx.composite("shift_right_arithmetic", _arithmetic_shift, x, y)
    return ctx.node("RightShift", x, y)


@kernel("RightShift")
def right_shift_kernel(x: Any, y: Any) -> Any:
    shift = lax.shift_right_logical if x.dtype.kind == "u" else lax.shift_right_arithmetic
    return broadcasting(shift)(x, y)


restores("shift_right_arithmetic")(broadcasting(lax.shift_right_arithmetic))
restores("shift_right_logical")(broadcasting(lax.shift_right_logical))
example(lambda x, y: lax.shift_right_logical(x, y), u32(5), u32(5, high=8), gradient=False)
example(lambda x, y: lax.shift_right_logical(x, y), i32(5), i32(5, low=0, high=8), gradient=False)
example(
    lambda x, y: lax.shift_right_arithmetic(x, y), i32(5), i32(5, low=0, high=8), gradient=False
)


example(
    lambda x, y: lax.shift_right_arithmetic(x * 4000, y), u32(5), u32(5, high=8), gradient=False
)


for _fn in (lax.shift_left, lax.shift_right_logical, lax.shift_right_arithmetic):
    example(
        named("shift", _fn),
        *_NIBBLES,
        gradient=False,
        not_in_tensorflow="TensorFlow hands integers of 4 bits to XLA in another layout",
    )


@lowering("mulhi")
def lower_mulhi(ctx: LoweringContext, x: Edge, y: Edge) -> list[Edge]:
    """The upper half of a product: of one twice as wide, or of halves where none is."""
    dtype = dtypes.dtype_from_number(x.number)
    if dtype.itemsize == 8:
        return ctx.composite("mulhi", _upper_half, x, y)
    wide = np.dtype(np.uint64 if dtype.kind == "u" else np.int64)

    def fill(body: LoweringContext, arguments: list[Edge]) -> list[Edge]:
        factors = [body.node("Cast", edge, DstT=wide)[0] for edge in arguments]
        (product,) = body.node("Mul", *factors)
        (upper,) = body.node("RightShift", product, body.constant(8 * dtype.itemsize, wide))
        return body.node("Cast", upper, DstT=dtype)

    function = ctx.build_function("mulhi", avals_of([x, y]), fill)
    return ctx.call(function, x, y, primitive="mulhi")


def _upper_half(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the upper 64 bits of a product, from products of halves."""
    half, low = np.asarray(32, x.dtype), np.asarray(0xFFFFFFFF, x.dtype)
    is_signed = x.dtype.kind == "i"
    # The upper halves of signed numbers carry the sign.
    shift = lax.shift_right_arithmetic if is_signed else lax.shift_right_logical
    (x1, x0), (y1, y0) = ((shift(v, half), lax.bitwise_and(v, low)) for v in (x, y))
    middle = lax.add(lax.mul(x1, y0), lax.shift_right_logical(lax.mul(x0, y0), half))
    other = lax.add(lax.mul(x0, y1), lax.bitwise_and(middle, low))
    return lax.add(lax.add(lax.mul(x1, y1), shift(middle, half)), shift(other, half))


@restores("mulhi")
def restore_mulhi(x: Any, y: Any) -> Any:
    return broadcasting(getattr(lax, "mulhi"))(x, y)  # noqa: B009  (not in JAX before 0.10)


if hasattr(lax, "mulhi"):
    example(lambda x, y: lax.mulhi(x * 40000, y * 90000), i32(5), i32(5), gradient=False)
    example(lambda x, y: lax.mulhi(x * 40000, y * 90000), u32(5), u32(5), gradient=False)


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


@lowering("clz")
def lower_clz(ctx: LoweringContext, x: Edge) -> list[Edge]:
    def count(a: jax.Array) -> jax.Array:
        bits = 8 * a.dtype.itemsize
        smeared = lax.bitcast_convert_type(a, _unsigned(a.dtype))
        shift = 1
        while shift < bits:
            moved = lax.shift_right_logical(smeared, np.asarray(shift, smeared.dtype))
            smeared = lax.bitwise_or(smeared, moved)
            shift *= 2
        set_bits = jnp.zeros_like(smeared)
        for bit in range(bits):
            shifted = lax.shift_right_logical(smeared, np.asarray(bit, smeared.dtype))
            set_bits = lax.add(set_bits, lax.bitwise_and(shifted, np.asarray(1, smeared.dtype)))
        zeros = lax.sub(np.asarray(bits, smeared.dtype), set_bits)
        return lax.bitcast_convert_type(zeros, a.dtype)

    return ctx.composite("clz", count, x)


restores("clz")(without_signature(lax.clz))
example(lambda x: lax.clz(x), u32(5), gradient=False)

restores("population_count")(without_signature(lax.population_count))
example(lambda x: lax.population_count(x), u32(5), gradient=False)
