"""Householder reflectors as LAPACK keeps them, and what is made of them one column a step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def reflector(x: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the reflector that clears a vector below element k, as LAPACK's ``larfg`` does.

    Args:
        x: the vector; what stands above k does not count.
        k: the position of the element that stays.

    Returns:
        The vector with a one at k, its scale tau, and the real element that stays.
    """
    places = lax.iota(np.int32, x.shape[0])
    below = jnp.where(places > k, x, 0)
    head = x[k]
    rest = jnp.sqrt(jnp.sum(jnp.square(jnp.real(below)) + jnp.square(jnp.imag(below))))
    is_done = (rest == 0) & (jnp.imag(head) == 0)
    length = jnp.hypot(jnp.hypot(jnp.real(head), jnp.imag(head)), rest)
    stays = jnp.where(jnp.real(head) >= 0, -length, length)
    stays = jnp.where(is_done, jnp.real(head), stays)
    safe = jnp.where(is_done, 1, stays)
    tau = jnp.where(is_done, 0, (safe - head) / safe)
    vector = below / jnp.where(is_done, 1, head - stays)
    return vector.at[k].set(1), tau.astype(x.dtype), stays


def times(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the product of two matrices or vectors, at full precision."""
    return jnp.matmul(x, y, precision="highest")


def store(a: jax.Array, column: jax.Array, vector: jax.Array, k: jax.Array, head: Any) -> Any:
    """Returns a matrix whose column holds a reflector below k, and at k what stays."""
    places = lax.iota(np.int32, a.shape[0])
    kept = jnp.where(places > k, vector, a[:, column])
    return a.at[:, column].set(kept.at[k].set(head.astype(a.dtype)))


def qr_by_columns(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns what LAPACK's ``geqrf`` does: the reflectors below R, and their scales."""
    num_rows, num_columns = a.shape
    columns = lax.iota(np.int32, num_columns)

    def step(k: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        matrix, taus = state
        vector, tau, stays = reflector(matrix[:, k], k)
        change = jnp.conj(tau) * jnp.outer(vector, times(jnp.conj(vector), matrix))
        matrix = matrix - jnp.where(columns > k, change, 0)
        return store(matrix, k, vector, k, stays), taus.at[k].set(tau)

    rank = min(num_rows, num_columns)
    start = a, jnp.zeros((rank,), a.dtype)
    return lax.fori_loop(0, rank, step, start) if rank else start


def pivoted_qr(a: jax.Array, jpvt: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns what LAPACK's ``geqp3`` does: reflectors, the order of columns from 1, and scales.

    Columns whose ``jpvt`` is not zero come first; of the others that of the largest norm is next.
    """
    rank = min(a.shape)
    columns = lax.iota(np.int32, a.shape[1])
    rows = lax.iota(np.int32, a.shape[0])
    is_fixed = jpvt != 0

    def step(k: jax.Array, state: Any) -> Any:
        matrix, taus, order, fixed = state
        below = jnp.where(rows[:, None] >= k, matrix, 0)
        norms = jnp.sum(jnp.square(jnp.real(below)) + jnp.square(jnp.imag(below)), axis=0)
        norms = jnp.where(columns >= k, norms, -1)
        is_waiting = fixed & (columns >= k)
        pivot = lax.select(jnp.any(is_waiting), jnp.argmax(is_waiting), jnp.argmax(norms))
        swapped = columns.at[k].set(pivot.astype(np.int32)).at[pivot].set(k)
        matrix, order, fixed = matrix[:, swapped], order[swapped], fixed[swapped]
        vector, tau, stays = reflector(matrix[:, k], k)
        change = jnp.conj(tau) * jnp.outer(vector, times(jnp.conj(vector), matrix))
        matrix = matrix - jnp.where(columns > k, change, 0)
        return store(matrix, k, vector, k, stays), taus.at[k].set(tau), order, fixed

    start = a, jnp.zeros((rank,), a.dtype), columns.astype(jpvt.dtype) + 1, is_fixed
    matrix, taus, order, _ = lax.fori_loop(0, rank, step, start) if rank else start
    return matrix, order, taus
