"""Elementwise ops that only TensorFlow writes, and the gradients of elementwise ops."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import errors
from jaxmeta.ops import _list_elements
from jaxmeta.ops import _tensor_lists as tensor_lists
from jaxmeta.ops._dataflow_values import Optional
from jaxmeta.ops._definition import kernel, on_host

kernel("Add")(lambda x, y: jnp.add(x, y))
kernel("SquaredDifference")(
    lambda x, y: lax.square(jnp.conj(x - y)) if _is_complex(x) else (x - y) ** 2
)
kernel("Reciprocal", "Inv")(lambda x: np.ones((), x.dtype) / x)
kernel("IsNan")(lambda x: jnp.isnan(x))
kernel("IsInf")(lambda x: jnp.isinf(x))
kernel("Ndtri")(lambda x: jax.scipy.special.ndtri(x))
kernel("OnesLike")(lambda x: jnp.ones_like(x))
kernel("Angle")(lambda input: jnp.angle(input))
kernel("Cross")(lambda a, b: jnp.cross(a, b))
kernel("ApproximateEqual")(
    lambda x, y, *, tolerance: jnp.abs(x - y) < np.asarray(tolerance, x.dtype)
)

on_host("ZerosLike")(lambda x: np.zeros_like(x))
on_host("OnesLike")(lambda x: np.ones_like(x))


def _is_complex(x: Any) -> bool:
    return bool(x.dtype.kind == "c")


@kernel("Div")
def div(x: Any, y: Any) -> Any:
    """Returns a quotient, which for integers is rounded towards zero."""
    return lax.div(*jnp.broadcast_arrays(x, y))


@kernel("Mod")
def mod(x: Any, y: Any) -> Any:
    """Returns the remainder of a division that rounds towards zero."""
    return lax.rem(*jnp.broadcast_arrays(x, y))


def _where_not_zero(divisor: Any, quotient: Callable[[Any], Any]) -> Any:
    """Returns quotients, and 0 where the divisor is; gradients are 0 there too."""
    is_zero = divisor == 0
    result = quotient(jnp.where(is_zero, jnp.ones((), divisor.dtype), divisor))
    return jnp.where(is_zero, jnp.zeros((), result.dtype), result)


@kernel("DivNoNan")
def div_no_nan(x: Any, y: Any) -> Any:
    return _where_not_zero(y, lambda divisor: x / divisor)


def _nonzero(x: Any) -> Any:
    return jnp.asarray(x != 0, x.dtype)


# Derivatives of what is 0 for an x of 0, whatever y is, are 0 there too in TensorFlow.


@kernel("MulNoNan")
@jax.custom_jvp
def mul_no_nan(x: Any, y: Any) -> Any:
    return jnp.where(y == 0, jnp.zeros((), x.dtype), x * y)


@mul_no_nan.defjvp
def _mul_no_nan_jvp(primals: Any, tangents: Any) -> Any:
    (x, y), (of_x, of_y) = primals, tangents
    return mul_no_nan(x, y), mul_no_nan(of_x, y) + x * of_y


@kernel("Xdivy")
@jax.custom_jvp
def xdivy(x: Any, y: Any) -> Any:
    return jnp.where(x == 0, jnp.zeros((), x.dtype), x / jnp.where(x == 0, jnp.ones_like(y), y))


@xdivy.defjvp
def _xdivy_jvp(primals: Any, tangents: Any) -> Any:
    (x, y), (of_x, of_y) = primals, tangents
    return xdivy(x, y), xdivy(_nonzero(x), y) * of_x - xdivy(x, y * y) * of_y


@kernel("Xlogy")
@jax.custom_jvp
def xlogy(x: Any, y: Any) -> Any:
    return jax.scipy.special.xlogy(x, y)


@xlogy.defjvp
def _xlogy_jvp(primals: Any, tangents: Any) -> Any:
    (x, y), (of_x, of_y) = primals, tangents
    return xlogy(x, y), xlogy(_nonzero(x), y) * of_x + xdivy(x, y) * of_y


@kernel("Xlog1py")
@jax.custom_jvp
def xlog1py(x: Any, y: Any) -> Any:
    return jax.scipy.special.xlog1py(x, y)


@xlog1py.defjvp
def _xlog1py_jvp(primals: Any, tangents: Any) -> Any:
    (x, y), (of_x, of_y) = primals, tangents
    return xlog1py(x, y), xlog1py(_nonzero(x), y) * of_x + xdivy(x, y + 1) * of_y


@kernel("AddN", "AccumulateNV2")
def add_n(*inputs: Any) -> Any:
    return functools.reduce(operator.add, inputs)


@kernel("ZerosLike")
def zeros_like(x: Any) -> Any:
    if isinstance(x, Optional):
        return Optional(x.components and tuple(map(zeros_like, x.components)))
    if tensor_lists.is_list(x):
        return _list_elements.zeros_like(x)
    return jnp.zeros_like(x)


@kernel("CheckNumerics")
def check_numerics(tensor: Any, *, message: bytes) -> Any:
    """Returns the tensor; where it is known while tracing, it is checked."""
    if isinstance(tensor, np.ndarray) and not np.all(np.isfinite(tensor)):
        raise errors.InvalidArgumentError(f"{message.decode()} : Tensor had Inf or NaN values")
    return tensor


# --- gradients ---------------------------------------------------------------------------------

kernel("TanhGrad")(lambda y, dy: dy * (1 - y * y))
kernel("SigmoidGrad")(lambda y, dy: dy * y * (1 - y))
kernel("SqrtGrad")(lambda y, dy: dy * np.asarray(0.5, y.dtype) / y)
kernel("RsqrtGrad")(lambda y, dy: dy * np.asarray(-0.5, y.dtype) * (y * y * y))
kernel("ReciprocalGrad", "InvGrad")(lambda y, dy: -dy * y * y)
