"""Casts: of values, of bits, and of floats to fewer bits."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import (
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
from jaxmeta.ops._scales import converts_scales, lower_conversion
from jaxmeta.tracing import jaxprs, meshes


@lowering("convert_element_type")
def lower_convert_element_type(
    ctx: LoweringContext, x: Edge, *, new_dtype: Any, weak_type: bool, sharding: Any
) -> list[Edge]:
    if not meshes.is_trivial_sharding(sharding):
        raise ctx.unsupported("a sharding on convert_element_type cannot be expressed")
    if converts_scales(ctx):
        return lower_conversion(ctx, x, new_dtype, weak_type=bool(weak_type))
    attrs = {WEAK_TYPE_ATTR: True} if weak_type else {}
    return ctx.node("Cast", x, DstT=new_dtype, **attrs)


@kernel("Cast")
def cast(x: Any, *, DstT: int, _jax_weak_type: bool = False) -> Any:
    dtype = dtypes.dtype_from_number(DstT)
    if jnp.iscomplexobj(x) and dtype.kind == "b":
        return lax.convert_element_type(x, dtype)  # the primitive would drop the imaginary part
    if dtype.kind in "iu" and not jaxprs.is_wide(x.dtype):
        dtype = jax.dtypes.canonicalize_dtype(dtype)  # int64 is int32 where 64 bits are off
    return jaxprs.cast(x, dtype, is_weak=_jax_weak_type)


example(lambda x: lax.convert_element_type(x, np.float32), i32(5))
example(lambda x: lax.convert_element_type(x, np.int32), f32(5), gradient=False)
example(lambda x: lax.convert_element_type(x, jnp.bfloat16), f32(5), gradient=False)
example(lambda x: lax.convert_element_type(x, np.bool_), f32(5), gradient=False)
example(lambda x: lax.convert_element_type(x, np.float32), bools(5))
# The gradient casts a complex number to a real one, which no public function does unwarned.
example(jax.grad(lambda x: jnp.sum(jnp.abs(x * jnp.exp(1j * x)))), f32(5))


@restores("convert_element_type")
def restore_convert_element_type(x: Any, *, new_dtype: bytes, weak_type: bool) -> Any:
    return jaxprs.cast(x, dtypes.dtype_from_name(new_dtype.decode()), is_weak=weak_type)


example(
    lambda x: x.astype(jnp.float8_e8m0fnu).astype(np.float32),
    f32(40, low=-1.0, high=9.0),
    gradient=False,
)
example(
    lambda x: jnp.exp2(x * 40).astype(jnp.bfloat16).astype(jnp.float8_e8m0fnu).astype(jnp.bfloat16),
    f32(40, low=-4.0, high=4.0),
    gradient=False,
)


@lowering("bitcast_convert_type")
def lower_bitcast_convert_type(ctx: LoweringContext, x: Edge, *, new_dtype: Any) -> list[Edge]:
    if converts_scales(ctx):
        return lower_conversion(ctx, x, new_dtype)
    return ctx.node("Bitcast", x, type=new_dtype)


@kernel("Bitcast")
def bitcast(x: Any, *, type: int) -> Any:
    # Random generators of TensorFlow have 64 bits, also where JAX has these switched off.
    dtype = dtypes.dtype_from_number(type)
    is_wide = jaxprs.is_wide(x.dtype) or jaxprs.is_wide(dtype)
    with jax.enable_x64(is_wide or jaxprs.has_64_bit_types()):
        return lax.bitcast_convert_type(x, dtype)


@restores("bitcast_convert_type")
def restore_bitcast_convert_type(x: Any, *, new_dtype: bytes) -> Any:
    return lax.bitcast_convert_type(x, dtypes.dtype_from_name(new_dtype.decode()))


example(lambda x: lax.bitcast_convert_type(x, np.int32), f32(5), gradient=False)
example(
    lambda x: lax.bitcast_convert_type(
        jnp.squeeze(lax.bitcast_convert_type(x, jnp.float8_e8m0fnu)[None, ::2]), np.int8
    ),
    Spec((5,), np.uint8),
    gradient=False,
)
example(lambda x: lax.bitcast_convert_type(x, np.float32), u32(5), gradient=False)


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
