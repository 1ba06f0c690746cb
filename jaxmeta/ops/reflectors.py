"""Factorizations that LAPACK keeps as Householder reflectors: QR, Hessenberg, tridiagonal.

TensorFlow has no ops for them. In TensorFlow they are loops that make one reflector a step; the
signs and the layout are LAPACK's, which the ops that apply reflectors expect.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops import _computation
from jaxmeta.ops._definition import LoweringContext, Spec, example, f32, lowering, restores
from jaxmeta.ops._matrices import COMPLEX
from jaxmeta.ops._reflectors import pivoted_qr, qr_by_columns, reflector, store, times
from jaxmeta.tracing import binding

# --- QR, as reflectors -------------------------------------------------------------------------


@lowering("geqrf")
def lower_geqrf(ctx: LoweringContext, a: Edge) -> list[Edge]:
    assert a.shape is not None
    return ctx.composite("geqrf", _computation.batched(qr_by_columns, len(a.shape) - 2), a)


@restores("geqrf")
def restore_geqrf(a: Any) -> Any:
    matrix = jax.ShapeDtypeStruct((2, 2), np.float32)
    return binding.primitive_within(_raw_qr, "geqrf", matrix).bind(a)


def _raw_qr(x: jax.Array) -> Any:
    return jnp.linalg.qr(x, mode="raw")


example(_raw_qr, f32(5, 3), tolerance=1e-4, gradient=False)
example(_raw_qr, f32(2, 3, 5), tolerance=1e-4, gradient=False)
example(_raw_qr, COMPLEX, tolerance=1e-4, gradient=False)

# --- QR with pivots, as reflectors -------------------------------------------------------------


@lowering("geqp3")
def lower_geqp3(ctx: LoweringContext, a: Edge, jpvt: Edge, *, use_magma: Any) -> list[Edge]:
    assert a.shape is not None
    factor = _computation.batched(pivoted_qr, len(a.shape) - 2)
    magma = None if use_magma is None else bool(use_magma)
    return ctx.composite("geqp3", factor, a, jpvt, use_magma=magma)


@restores("geqp3")
def restore_geqp3(a: Any, jpvt: Any, *, use_magma: bool | None = None) -> Any:
    matrix = jax.ShapeDtypeStruct((2, 2), np.float32)
    primitive = binding.primitive_within(_raw_pivoted_qr, "geqp3", matrix)
    return primitive.bind(a, jpvt, use_magma=use_magma)


def _raw_pivoted_qr(x: jax.Array) -> Any:
    return jax.scipy.linalg.qr_multiply(x, jnp.eye(x.shape[-2], dtype=x.dtype), pivoting=True)


_PIVOTED = Spec((5, 3), np.float32, 0.5, 2.0)

example(_raw_pivoted_qr, _PIVOTED, tolerance=1e-4, gradient=False)
example(_raw_pivoted_qr, COMPLEX, tolerance=1e-4, gradient=False)

# --- Hessenberg --------------------------------------------------------------------------------


@lowering("hessenberg")
def lower_hessenberg(ctx: LoweringContext, a: Edge) -> list[Edge]:
    assert a.shape is not None
    reduce = _computation.batched(_hessenberg_by_columns, len(a.shape) - 2)
    return ctx.composite("hessenberg", reduce, a)


def _hessenberg_by_columns(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    size = a.shape[0]
    columns = lax.iota(np.int32, size)

    def step(k: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        matrix, taus = state
        vector, tau, stays = reflector(matrix[:, k], k + 1)
        from_right = tau * jnp.outer(times(matrix, vector), jnp.conj(vector))
        matrix = matrix - jnp.where(columns > k, from_right, 0)
        from_left = jnp.conj(tau) * jnp.outer(vector, times(jnp.conj(vector), matrix))
        matrix = matrix - jnp.where(columns > k, from_left, 0)
        return store(matrix, k, vector, k + 1, stays), taus.at[k].set(tau)

    start = a, jnp.zeros((max(size - 1, 0),), a.dtype)
    return lax.fori_loop(0, size - 1, step, start) if size > 1 else start


@restores("hessenberg")
def restore_hessenberg(a: Any) -> Any:
    return lax.linalg.hessenberg(a)


example(lambda x: lax.linalg.hessenberg(x), f32(2, 4, 4), tolerance=1e-4, gradient=False)
example(lambda x: lax.linalg.hessenberg(x), COMPLEX, tolerance=1e-4, gradient=False)

# --- tridiagonal -------------------------------------------------------------------------------


@lowering("tridiagonal")
def lower_tridiagonal(ctx: LoweringContext, a: Edge, *, lower: bool) -> list[Edge]:
    assert a.shape is not None
    reduce = _computation.batched(
        functools.partial(_tridiagonal, lower=bool(lower)), len(a.shape) - 2
    )
    return ctx.composite("tridiagonal", reduce, a, lower=bool(lower))


def _tridiagonal(a: jax.Array, *, lower: bool) -> Any:
    """Returns the reflectors, diagonals and scales of LAPACK's ``sytrd``.

    That of the upper triangle is that of the lower one of the matrix turned around.
    """
    if lower:
        return _tridiagonal_by_columns(a)
    reflectors, diagonal, beside, taus = _tridiagonal_by_columns(a[::-1, ::-1])
    return reflectors[::-1, ::-1], diagonal[::-1], beside[::-1], taus[::-1]


def _tridiagonal_by_columns(a: jax.Array) -> Any:
    size = a.shape[0]
    strict = jnp.tril(a, -1)
    diagonal = jnp.real(jnp.diagonal(a)).astype(a.dtype)
    hermitian = strict + jnp.conj(strict.T) + jnp.diag(diagonal)
    count = max(size - 1, 0)

    def step(k: jax.Array, state: Any) -> Any:
        matrix, stored, beside, taus = state
        vector, tau, stays = reflector(matrix[:, k], k + 1)
        matrix = matrix - tau * jnp.outer(times(matrix, vector), jnp.conj(vector))
        matrix = matrix - jnp.conj(tau) * jnp.outer(vector, times(jnp.conj(vector), matrix))
        stored = store(stored, k, vector, k + 1, stays)
        return matrix, stored, beside.at[k].set(stays), taus.at[k].set(tau)

    real = jnp.zeros((count,), jnp.real(a).dtype)
    start = (hermitian, a, real, jnp.zeros((count,), a.dtype))
    matrix, stored, beside, taus = lax.fori_loop(0, count, step, start) if count else start
    places = lax.iota(np.int32, size)
    diagonal = jnp.real(jnp.diagonal(matrix))
    return stored.at[places, places].set(diagonal.astype(a.dtype)), diagonal, beside, taus


@restores("tridiagonal")
def restore_tridiagonal(a: Any, *, lower: bool) -> Any:
    return lax.linalg.tridiagonal(a, lower=lower)


for _lower in (True, False):
    example(
        lambda x, lower=_lower: lax.linalg.tridiagonal(x, lower=lower),
        f32(2, 4, 4),
        tolerance=1e-4,
        gradient=False,
    )
    example(
        lambda x, lower=_lower: lax.linalg.tridiagonal(x, lower=lower),
        COMPLEX,
        tolerance=1e-4,
        gradient=False,
    )
