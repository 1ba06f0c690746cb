"""Factors of matrices: Cholesky, LU and QR, and what makes matrices of them again."""

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
from jaxmeta.ops import _computation
from jaxmeta.ops._definition import (
    PRIMITIVE_ATTR,
    LoweringContext,
    example,
    f32,
    i32,
    kernel,
    lowering,
    restores,
)
from jaxmeta.ops._matrices import COMPLEX, modulus, positive
from jaxmeta.ops._reflectors import pivoted_qr, qr_by_columns
from jaxmeta.tracing import jaxprs

# --- cholesky ----------------------------------------------------------------------------------


@lowering("cholesky")
def lower_cholesky(ctx: LoweringContext, x: Edge) -> list[Edge]:
    return ctx.node("Cholesky", x, **{PRIMITIVE_ATTR: "cholesky"})


@restores("cholesky")
def restore_cholesky(x: Any) -> Any:
    # Binds it alone: `lax.linalg.cholesky` would clear the upper triangle, as the graph does.
    return jaxprs.primitive("cholesky").bind(x)


@kernel("Cholesky")
def cholesky(input: Any) -> Any:
    return lax.linalg.cholesky(input, symmetrize_input=False)


@lowering("cholesky_update")
def lower_cholesky_update(ctx: LoweringContext, r: Edge, w: Edge) -> list[Edge]:
    return ctx.composite("cholesky_update", _rotate_rows, r, w)


def _rotate_rows(r: jax.Array, w: jax.Array) -> jax.Array:
    """Returns the upper triangular factor of ``r^T r + w w^T``, by one Givens rotation a row."""

    def rotate(k: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        matrix, vector = state
        row, x, y = matrix[k], matrix[k, k], vector[k]
        length = jnp.hypot(x, y)
        is_zero = length == 0
        cosine = jnp.where(is_zero, 1, x / length)
        sine = jnp.where(is_zero, 0, y / length)
        return matrix.at[k].set(cosine * row + sine * vector), cosine * vector - sine * row

    rotated, _ = lax.fori_loop(0, r.shape[0], rotate, (r, w))
    return jnp.asarray(rotated)


@restores("cholesky_update")
def restore_cholesky_update(r: Any, w: Any) -> Any:
    return lax.linalg.cholesky_update(r, w)


example(lambda x: lax.linalg.cholesky(positive(x)), f32(2, 4, 4), tolerance=1e-4)
example(lambda x: jnp.linalg.cholesky(positive(x)), COMPLEX, tolerance=1e-4, gradient=False)
example(
    lambda x, w: lax.linalg.cholesky_update(jnp.linalg.cholesky(positive(x)).T, w),
    f32(4, 4),
    f32(4),
    tolerance=1e-4,
    gradient=False,
)

# --- lu ----------------------------------------------------------------------------------------


@lowering("lu")
def lower_lu(ctx: LoweringContext, x: Edge) -> list[Edge]:
    # TensorFlow's Lu has no kernel in XLA, and gives no pivots.
    assert x.shape is not None
    return ctx.composite("lu", _computation.batched(_lu_by_columns, len(x.shape) - 2), x)


def _lu_by_columns(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns LU factors in one matrix, the row swaps, and the permutation that these make."""
    num_rows, num_columns = matrix.shape
    rank = min(num_rows, num_columns)
    rows = lax.iota(np.int32, num_rows)
    columns = lax.iota(np.int32, num_columns)

    def eliminate(k: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        a, pivots, order = state
        size = modulus(a[:, k])
        candidates = lax.select(rows >= k, size, lax.full_like(size, -np.inf))
        pivot = lax.argmax(candidates, 0, np.int32)
        pivots = pivots.at[k].set(pivot)
        order = order.at[k].set(order[pivot]).at[pivot].set(order[k])
        a = a.at[k].set(a[pivot]).at[pivot].set(a[k])
        head = a[k, k]
        is_below = (rows > k) & (head != 0)
        factors = jnp.where(is_below, a[:, k] / jnp.where(head == 0, 1, head), a[:, k])
        a = a.at[:, k].set(factors)
        is_rest = (rows > k)[:, None] & (columns > k)[None, :]
        return a - jnp.where(is_rest, factors[:, None] * a[k][None, :], 0), pivots, order

    pivots = jnp.zeros((rank,), np.int32)
    if not rank:
        return matrix, pivots, rows
    factors, pivots, order = lax.fori_loop(0, rank, eliminate, (matrix, pivots, rows))
    return factors, pivots, order


@restores("lu")
def restore_lu(x: Any) -> Any:
    return lax.linalg.lu(x)


@kernel("Lu")
def lu(input: Any, *, output_idx_type: int) -> Any:
    factors, _, permutation = lax.linalg.lu(input)
    return factors, permutation.astype(dtypes.dtype_from_number(output_idx_type))


@lowering("lu_pivots_to_permutation")
def lower_lu_pivots_to_permutation(
    ctx: LoweringContext, pivots: Edge, *, permutation_size: int
) -> list[Edge]:
    assert pivots.shape is not None
    size = int(permutation_size)
    permute = _computation.batched(
        functools.partial(_permutation, size=size), len(pivots.shape) - 1
    )
    return ctx.composite("lu_pivots_to_permutation", permute, pivots, permutation_size=size)


def _permutation(pivots: jax.Array, *, size: int) -> jax.Array:
    """Returns what row swaps, one after the other, make of the order of rows."""

    def swap(k: jax.Array, order: jax.Array) -> jax.Array:
        other = pivots[k]
        return order.at[k].set(order[other]).at[other].set(order[k])

    order = lax.iota(np.int32, size)
    return lax.fori_loop(0, pivots.shape[0], swap, order) if pivots.shape[0] else order


@restores("lu_pivots_to_permutation")
def restore_lu_pivots_to_permutation(pivots: Any, *, permutation_size: int) -> Any:
    return lax.linalg.lu_pivots_to_permutation(pivots, permutation_size)


example(lambda x: lax.linalg.lu(x), f32(4, 4), tolerance=1e-4)
example(lambda x: lax.linalg.lu(x), f32(2, 5, 3), tolerance=1e-4)
example(lambda x: lax.linalg.lu(x), f32(3, 5), tolerance=1e-4)
example(lambda x: lax.linalg.lu(x), COMPLEX, tolerance=1e-4, gradient=False)
example(
    lambda p: lax.linalg.lu_pivots_to_permutation(jnp.maximum(p, jnp.arange(3)), 5),
    i32(2, 3, low=0, high=1),
    gradient=False,
)
example(lambda x: jnp.linalg.slogdet(positive(x)), f32(2, 4, 4), tolerance=1e-4)

# --- qr ----------------------------------------------------------------------------------------


@lowering("qr")
def lower_qr(
    ctx: LoweringContext, x: Edge, *, pivoting: bool, full_matrices: bool, use_magma: Any = None
) -> list[Edge]:
    if not pivoting and use_magma is None:
        return ctx.node("Qr", x, full_matrices=bool(full_matrices))
    assert x.shape is not None
    options: dict[str, Any] = {"pivoting": bool(pivoting), "full_matrices": bool(full_matrices)}
    factor = functools.partial(_qr_by_reflectors, **options)
    magma = None if use_magma is None else bool(use_magma)
    batched = _computation.batched(factor, len(x.shape) - 2)
    return ctx.composite("qr", batched, x, use_magma=magma, **options)


def _qr_by_reflectors(a: jax.Array, *, pivoting: bool, full_matrices: bool) -> Any:
    """Returns the factors, and which column of the matrix each column is of, if pivoting."""
    num_rows, num_columns = a.shape
    if pivoting:
        packed, order, taus = pivoted_qr(a, jnp.zeros((num_columns,), np.int32))
    else:
        packed, taus = qr_by_columns(a)
    width = num_rows if full_matrices else min(a.shape)
    eye = jnp.eye(num_rows, width, dtype=a.dtype)
    q = _apply_reflectors(packed, taus, eye, left=True, transpose=False)
    r = jnp.triu(packed[:width])
    return (q, r, order - 1) if pivoting else (q, r)


@restores("qr")
def restore_qr(
    x: Any, *, pivoting: bool, full_matrices: bool, use_magma: bool | None = None
) -> Any:
    return lax.linalg.qr(x, pivoting=pivoting, full_matrices=full_matrices, use_magma=use_magma)


@kernel("Qr")
def qr(input: Any, *, full_matrices: bool) -> Any:
    return lax.linalg.qr(input, full_matrices=full_matrices)


@lowering("householder_product")
def lower_householder_product(ctx: LoweringContext, a: Edge, taus: Edge) -> list[Edge]:
    def product(reflectors: jax.Array, scales: jax.Array) -> jax.Array:
        num_rows, num_columns = reflectors.shape
        eye = jnp.eye(num_rows, num_columns, dtype=reflectors.dtype)
        return _apply_reflectors(reflectors, scales, eye, left=True, transpose=False)

    assert a.shape is not None
    return ctx.composite(
        "householder_product", _computation.batched(product, len(a.shape) - 2), a, taus
    )


@restores("householder_product")
def restore_householder_product(a: Any, taus: Any) -> Any:
    return lax.linalg.householder_product(a, taus)


@lowering("ormqr")
def lower_ormqr(
    ctx: LoweringContext, a: Edge, taus: Edge, c: Edge, *, left: bool, transpose: bool
) -> list[Edge]:
    assert a.shape is not None
    options: dict[str, Any] = {"left": bool(left), "transpose": bool(transpose)}
    apply = _computation.batched(functools.partial(_apply_reflectors, **options), len(a.shape) - 2)
    return ctx.composite("ormqr", apply, a, taus, c, **options)


def _apply_reflectors(
    a: jax.Array, taus: jax.Array, c: jax.Array, *, left: bool, transpose: bool
) -> jax.Array:
    """Returns c multiplied by the unitary matrix that Householder reflectors make."""
    num_reflectors = taus.shape[0]
    vectors = jnp.tril(a[:, :num_reflectors], -1) + jnp.eye(
        a.shape[0], num_reflectors, dtype=a.dtype
    )
    scales = jnp.conj(taus) if transpose else taus
    is_backward = left != transpose

    def reflect(step: jax.Array, matrix: jax.Array) -> jax.Array:
        k = num_reflectors - 1 - step if is_backward else step
        vector, adjoint = vectors[:, k], jnp.conj(vectors[:, k])
        if left:
            change = jnp.outer(vector, jnp.matmul(adjoint, matrix, precision="highest"))
        else:
            change = jnp.outer(jnp.matmul(matrix, vector, precision="highest"), adjoint)
        return matrix - scales[k] * change

    return jnp.asarray(lax.fori_loop(0, num_reflectors, reflect, c))


@restores("ormqr")
def restore_ormqr(a: Any, taus: Any, c: Any, *, left: bool, transpose: bool) -> Any:
    return lax.linalg.ormqr(a, taus, c, left=left, transpose=transpose)


example(lambda x: lax.linalg.qr(x, full_matrices=False), f32(2, 5, 3), tolerance=1e-4)
example(lambda x: jnp.linalg.qr(x, mode="complete"), f32(5, 3), tolerance=1e-4, gradient=False)
example(lambda x: lax.linalg.qr(x, full_matrices=False), COMPLEX, tolerance=1e-4, gradient=False)
for _full in (True, False):
    example(
        lambda x, full=_full: lax.linalg.qr(x, pivoting=True, full_matrices=full),
        f32(2, 5, 3, low=0.5),
        tolerance=1e-4,
        gradient=False,
    )
example(
    lambda x: lax.linalg.qr(x, pivoting=True, full_matrices=False, use_magma=False),
    f32(3, 5),
    tolerance=1e-4,
    gradient=False,
)
example(
    lambda x, t: lax.linalg.householder_product(x, t),
    f32(2, 5, 3, low=-0.5, high=0.5),
    f32(2, 3),
    tolerance=1e-4,
    gradient=False,
)


def _multiplying(*, left: bool, transpose: bool) -> Callable[..., Any]:
    def run(a: jax.Array, taus: jax.Array, c: jax.Array) -> Any:
        return lax.linalg.ormqr(a, taus, c, left=left, transpose=transpose)

    run.__name__ = "ormqr"
    return run


for _left in (True, False):
    for _transpose in (True, False):
        example(
            _multiplying(left=_left, transpose=_transpose),
            f32(4, 3, low=-0.5, high=0.5),
            f32(3),
            f32(4, 4),
            tolerance=1e-4,
            gradient=False,
        )
