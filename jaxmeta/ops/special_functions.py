"""Exponential, trigonometric and special functions of elements."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import LoweringContext, example, f32, lowering, restores
from jaxmeta.ops._pointwise import SMALL, UNIT, named, one_of, unary, with_accuracy
from jaxmeta.tracing import eqn_params

unary("Exp", "exp", lax.exp, f32(3, 4))
unary("Expm1", "expm1", lax.expm1, f32(3, 4))
unary("Log", "log", lax.log, SMALL)
unary("Log1p", "log1p", lax.log1p, SMALL)
unary("Sqrt", "sqrt", lax.sqrt, SMALL)
unary("Rsqrt", "rsqrt", lax.rsqrt, SMALL)
unary("Sigmoid", "logistic", lax.logistic, f32(3, 4))
unary("Tanh", "tanh", lax.tanh, f32(3, 4))
unary("Sin", "sin", lax.sin, f32(3, 4))
example(lambda x: lax.exp(x, accuracy=lax.AccuracyMode.HIGHEST), f32(3), gradient=False)
example(lambda x: lax.tanh(x, accuracy=lax.Tolerance(1e-6, 0.0, 2)), f32(3), gradient=False)
unary("Cos", "cos", lax.cos, f32(3, 4))
unary("Tan", "tan", lax.tan, UNIT)
unary("Sinh", "sinh", lax.sinh, f32(3, 4))
unary("Cosh", "cosh", lax.cosh, f32(3, 4))
unary("Asin", "asin", lax.asin, UNIT, tolerance=1e-4)
unary("Acos", "acos", lax.acos, UNIT, tolerance=1e-4)
unary("Atan", "atan", lax.atan, f32(3, 4))
unary("Asinh", "asinh", lax.asinh, f32(3, 4))
unary("Acosh", "acosh", lax.acosh, f32(3, 4, low=1.1, high=3.0), tolerance=1e-4)
unary("Atanh", "atanh", lax.atanh, UNIT)
unary("Erf", "erf", lax.erf, f32(3, 4))
unary("Erfc", "erfc", lax.erfc, f32(3, 4))
unary("Erfinv", "erf_inv", lax.erf_inv, UNIT, tolerance=1e-4)
unary("Lgamma", "lgamma", lax.lgamma, SMALL, tolerance=1e-4)
unary("Digamma", "digamma", lax.digamma, SMALL, tolerance=1e-3)
unary("BesselI0e", "bessel_i0e", lax.bessel_i0e, f32(3, 4))
unary("BesselI1e", "bessel_i1e", lax.bessel_i1e, f32(3, 4))


@lowering("exp2")
def lower_exp2(ctx: LoweringContext, x: Edge, *, accuracy: Any) -> list[Edge]:
    names = eqn_params.accuracy_to_names(accuracy) or None
    ln_2 = np.asarray(np.log(2), dtypes.dtype_from_number(x.number))
    return ctx.composite("exp2", lambda a: lax.exp(lax.mul(a, ln_2)), x, accuracy=names)


restores("exp2")(with_accuracy(lax.exp2))
example(lambda x: lax.exp2(x), f32(3, 4))


@lowering("cbrt")
def lower_cbrt(ctx: LoweringContext, x: Edge, *, accuracy: Any) -> list[Edge]:
    names = eqn_params.accuracy_to_names(accuracy) or None
    third = np.asarray(1 / 3, dtypes.dtype_from_number(x.number))

    def signed_root(a: jax.Array) -> jax.Array:
        return lax.mul(lax.sign(a), lax.pow(lax.abs(a), third))

    return ctx.composite("cbrt", signed_root, x, accuracy=names)


restores("cbrt")(with_accuracy(lax.cbrt))
example(lambda x: lax.cbrt(x), SMALL, tolerance=1e-4)


# Primitives that JAX has since 0.12; an older one runs the function that stands for them.


@lowering("one_minus_square")
def lower_one_minus_square(ctx: LoweringContext, x: Edge) -> list[Edge]:
    return ctx.composite("one_minus_square", lambda a: lax.sub(one_of(a), lax.mul(a, a)), x)


@lowering("log2")
def lower_log2(ctx: LoweringContext, x: Edge, *, accuracy: Any) -> list[Edge]:
    names = eqn_params.accuracy_to_names(accuracy) or None
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
    shapes = [x.shape, *(coefficient.shape for coefficient in coefficients)]
    return jnp.broadcast_to(result, jnp.broadcast_shapes(*shapes))


for _name in ("one_minus_square", "log2"):
    if _fn := getattr(lax, _name, None):
        restores(_name)(with_accuracy(_fn))
        example(named(_name, _fn), SMALL)
_polynomial: Any = getattr(lax, "polynomial", None)
if _polynomial is not None:

    @restores("polynomial")
    def restore_polynomial(x: Any, *coefficients: Any, unroll: int | None = None) -> Any:
        return _polynomial(x, coefficients, unroll=unroll)

    example(lambda x: _polynomial(x, [np.float32(1), np.float32(2), x]), f32(3, 4))
    example(lambda x, c: _polynomial(x, [c, np.float32(2), c]), f32(3, 1), f32(3, 4))
