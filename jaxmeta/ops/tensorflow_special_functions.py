"""Bessel functions and other special functions that only TensorFlow has ops for.

Those that JAX has not are integrals, by Gauss-Legendre's rule; see NIST's Digital Library of
Mathematical Functions, 10.9 and 10.32, and far from 0 the asymptotic series of 10.17.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.ops._definition import kernel

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_FAR: Final = 25.0  # from where on the asymptotic series are as exact as doubles
_TERMS: Final = 12
_DECAY: Final = 40.0  # e**-40 is nothing beside 1, in doubles too


def _of_floats(op: str, fn: Callable[[Any], Any]) -> None:
    """Registers a function, computed in float32 where the numbers are shorter."""

    def run(x: Any) -> Any:
        wide = jnp.asarray(x).astype(jnp.promote_types(x.dtype, np.float32))
        return fn(wide).astype(x.dtype)

    kernel(op)(run)


def _integral(fn: Callable[[Any], Any], end: Any, dtype: Any) -> Any:
    """Returns integrals from 0 to ``end``, one for each of its elements."""
    half = jnp.asarray(end, dtype)[..., None] / 2
    places = half * np.asarray(_NODES + 1, dtype)
    return jnp.sum(fn(places) * np.asarray(_WEIGHTS, dtype), axis=-1) * half[..., 0]


def _hankel(order: int, x: Any) -> tuple[Any, Any, Any]:
    """Returns amplitude-weighted cosine and sine series, and the phase, far from 0."""
    factor, even, odd = 1.0, jnp.ones_like(x), jnp.zeros_like(x)
    for k in range(1, _TERMS):
        factor *= (4.0 * order**2 - (2 * k - 1) ** 2) / (8.0 * k)
        sign = -1.0 if k % 4 in (2, 3) else 1.0
        term = np.asarray(sign * factor, x.dtype) / x**k
        even, odd = (even + term, odd) if k % 2 == 0 else (even, odd + term)
    scale = jnp.sqrt(np.asarray(2 / np.pi, x.dtype) / x)
    return scale * even, scale * odd, x - np.asarray(order * np.pi / 2 + np.pi / 4, x.dtype)


def _first_kind(order: int, x: Any) -> Any:
    size = jnp.abs(x)
    is_far = size > _FAR
    near = jnp.where(is_far, 1, size)

    def integrand(t: Any) -> Any:
        return jnp.cos(order * t - near[..., None] * jnp.sin(t))

    pi = np.asarray(np.pi, x.dtype)
    value = _integral(integrand, jnp.full_like(near, pi), x.dtype) / pi
    even, odd, phase = _hankel(order, jnp.where(is_far, size, _FAR))
    far = even * jnp.cos(phase) - odd * jnp.sin(phase)
    result = jnp.where(is_far, far, value)
    return jnp.where(x < 0, -result, result) if order % 2 else result


def _second_kind(order: int, x: Any) -> Any:
    is_far = x > _FAR
    near = jnp.where(is_far | (x <= 0), 1, x)
    pi = np.asarray(np.pi, x.dtype)

    def oscillation(t: Any) -> Any:
        return jnp.sin(near[..., None] * jnp.sin(t) - order * t)

    def decay(t: Any) -> Any:
        rise = jnp.sinh(t) if order else jnp.ones_like(t)
        return 2 * rise * jnp.exp(-near[..., None] * jnp.sinh(t))

    end = jnp.arcsinh(np.asarray(_DECAY, x.dtype) / near)
    value = _integral(oscillation, jnp.full_like(near, pi), x.dtype)
    value = (value - _integral(decay, end, x.dtype)) / pi
    even, odd, phase = _hankel(order, jnp.where(is_far, x, _FAR))
    far = even * jnp.sin(phase) + odd * jnp.cos(phase)
    outside = jnp.where(x == 0, -jnp.inf, jnp.nan)
    return jnp.where(x <= 0, outside, jnp.where(is_far, far, value))


def _modified_second_kind(order: int, x: Any) -> Any:
    """Returns e**x times the function, which at large numbers is nothing without it."""
    near = jnp.where(x <= 0, 1, x)

    def integrand(t: Any) -> Any:
        fall = jnp.exp(-2 * near[..., None] * jnp.sinh(t / 2) ** 2)
        return fall * (jnp.cosh(t) if order else jnp.ones_like(t))

    end = 2 * jnp.arcsinh(jnp.sqrt(np.asarray(_DECAY / 2, x.dtype) / near))
    value = _integral(integrand, end, x.dtype)
    return jnp.where(x <= 0, jnp.where(x == 0, jnp.inf, jnp.nan), value)


@jax.custom_jvp
def _spence(x: Any) -> Any:
    return jax.scipy.special.spence(x)


@_spence.defjvp
def _spence_jvp(primals: Any, tangents: Any) -> Any:
    (x,), (tangent,) = primals, tangents
    is_one = x == 1
    slope = jnp.where(is_one, -1, jnp.log(x) / jnp.where(is_one, 1, 1 - x))
    return _spence(x), slope * tangent


def _decaying(order: int, x: Any) -> Any:
    return _modified_second_kind(order, x) * jnp.exp(-x)


for _order in range(2):
    _of_floats(f"BesselJ{_order}", functools.partial(_first_kind, _order))
    _of_floats(f"BesselY{_order}", functools.partial(_second_kind, _order))
    _of_floats(f"BesselK{_order}", functools.partial(_decaying, _order))
    _of_floats(f"BesselK{_order}e", functools.partial(_modified_second_kind, _order))
_of_floats("BesselI0", jax.scipy.special.i0)
_of_floats("BesselI1", jax.scipy.special.i1)
_of_floats("Dawsn", jax.scipy.special.dawsn)
_of_floats("Expint", jax.scipy.special.expi)
_of_floats("Spence", _spence)
_of_floats("FresnelSin", lambda x: jax.scipy.special.fresnel(x)[0])
_of_floats("FresnelCos", lambda x: jax.scipy.special.fresnel(x)[1])
