"""Scales of blocks: float8_e8m0fnu, whose values are powers of two, and which TensorFlow lacks.

In the graph such an array is its bits, uint8. Only what makes, moves and uses scales takes them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import LoweringContext

_NAN = 255


def converts_scales(ctx: LoweringContext) -> bool:
    """Returns whether an eqn turns something into scales, or scales into something."""
    return any(dtypes.is_scale(v.aval.dtype) for v in (*ctx.eqn.invars, *ctx.eqn.outvars))


def lower_conversion(ctx: LoweringContext, x: Edge, new_dtype: Any, **attrs: Any) -> list[Edge]:
    """Calls the function that converts from or to scales, of values or of bits."""
    old = np.dtype(ctx.eqn.invars[0].aval.dtype)
    name = ctx.eqn.primitive.name

    def convert(array: jax.Array) -> jax.Array:
        is_from, is_to = dtypes.is_scale(old), dtypes.is_scale(new_dtype)
        if is_from and is_to:
            return array
        if name == "bitcast_convert_type":
            return lax.bitcast_convert_type(array, np.uint8 if is_to else new_dtype)
        return bits_of(array) if is_to else values_of(array, new_dtype)

    return ctx.composite(name, convert, x, new_dtype=np.dtype(new_dtype).name, **attrs)


def bits_of(x: jax.Array) -> jax.Array:
    """Returns the bits of scales: the exponents of values, rounded half up; 255 is no number."""
    bits = lax.bitcast_convert_type(lax.convert_element_type(x, np.float32), np.uint32)
    exponent, mantissa = (bits >> 23) & 255, bits & 0x7FFFFF
    rounded = exponent + (mantissa >= jnp.where(exponent == 0, 0x600000, 0x400000))
    is_number = (bits >> 31 == 0) & (bits != 0) & (exponent != _NAN)
    return jnp.where(is_number, rounded, _NAN).astype(np.uint8)


def values_of(bits: jax.Array, dtype: Any) -> jax.Array:
    """Returns the values of scales that are given as bits."""
    shifted = bits.astype(np.uint32) << 23
    shifted = jnp.where(bits == 0, np.uint32(0x400000), shifted)
    shifted = jnp.where(bits == _NAN, np.uint32(0x7FC00000), shifted)
    return lax.convert_element_type(lax.bitcast_convert_type(shifted, np.float32), dtype)
