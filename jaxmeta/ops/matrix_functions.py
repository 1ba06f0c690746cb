"""Inverses, solutions, determinants and functions of matrices, as TensorFlow has them."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta.ops._definition import kernel, run_kernel
from jaxmeta.ops._matrices import broadcast_batches

_MOST_ROOTS: Final = 64  # of a logarithm; each halves the distance from the identity
_PADE_ORDER: Final = 12


def adjoint_of(x: Any) -> Any:
    """Returns the conjugate transposes of matrices."""
    return jnp.conj(jnp.swapaxes(x, -1, -2))


@kernel("ConjugateTranspose", static=("perm",))
def conjugate_transpose(x: Any, perm: Any) -> Any:
    return jnp.conj(jnp.transpose(x, tuple(np.ravel(perm).tolist())))


# --- inverses, solutions and determinants ------------------------------------------------------


@kernel("MatrixInverse", "BatchMatrixInverse")
def matrix_inverse(input: Any, *, adjoint: bool) -> Any:
    return jnp.linalg.inv(adjoint_of(input) if adjoint else input)


@kernel("MatrixSolve", "BatchMatrixSolve")
def matrix_solve(matrix: Any, rhs: Any, *, adjoint: bool) -> Any:
    matrix, rhs = broadcast_batches(matrix, rhs)
    return jnp.linalg.solve(adjoint_of(matrix) if adjoint else matrix, rhs)


@kernel("MatrixSolveLs", "BatchMatrixSolveLs")
def matrix_solve_ls(matrix: Any, rhs: Any, l2_regularizer: Any, *, fast: bool) -> Any:
    """Returns least-squares solutions: by the normal equations where ``fast``.

    Else they are those of least norm, and nothing is regularized, as TensorFlow documents.
    """
    if not fast:
        return jnp.linalg.pinv(matrix) @ rhs
    adjoint = adjoint_of(matrix)
    rows, columns = matrix.shape[-2:]
    is_tall = rows >= columns
    gram = adjoint @ matrix if is_tall else matrix @ adjoint
    eye = jnp.eye(gram.shape[-1], dtype=gram.dtype)
    regularized = gram + jnp.asarray(l2_regularizer).astype(gram.dtype) * eye
    factor = jax.scipy.linalg.cho_factor(regularized, lower=True)
    if is_tall:
        return jax.scipy.linalg.cho_solve(factor, adjoint @ rhs)
    return adjoint @ jax.scipy.linalg.cho_solve(factor, rhs)


@kernel("MatrixDeterminant", "BatchMatrixDeterminant")
def matrix_determinant(input: Any) -> Any:
    return jnp.linalg.det(input)


@kernel("LogMatrixDeterminant")
def log_matrix_determinant(input: Any) -> Any:
    sign, logarithm = jnp.linalg.slogdet(input)
    return sign, logarithm.astype(input.dtype)


@kernel("BatchMatrixTriangularSolve")
def batch_matrix_triangular_solve(matrix: Any, rhs: Any, *, lower: bool, adjoint: bool) -> Any:
    return run_kernel("MatrixTriangularSolve", matrix, rhs, lower=lower, adjoint=adjoint)


@kernel("BandedTriangularSolve")
def banded_triangular_solve(matrix: Any, rhs: Any, *, lower: bool, adjoint: bool) -> Any:
    """Solves a triangular system whose matrix is given as rows of diagonals, the highest first."""
    bands, size = matrix.shape[-2:]
    columns = np.arange(size)
    dense = jnp.zeros((*matrix.shape[:-2], size, size), matrix.dtype)
    for row in range(bands):
        offset = -row if lower else bands - 1 - row
        is_inside = (columns + offset >= 0) & (columns + offset < size)
        at = columns[is_inside]
        dense = dense.at[..., at, at + offset].set(matrix[..., row, at])
    return run_kernel("MatrixTriangularSolve", dense, rhs, lower=lower, adjoint=adjoint)


@kernel("TridiagonalMatMul")
def tridiagonal_mat_mul(superdiag: Any, maindiag: Any, subdiag: Any, rhs: Any) -> Any:
    above, main, below = (jnp.swapaxes(d, -1, -2) for d in (superdiag, maindiag, subdiag))
    inner = [(0, 0)] * (rhs.ndim - 2)
    upper = jnp.pad(above[..., :-1, :] * rhs[..., 1:, :], [*inner, (0, 1), (0, 0)])
    lower = jnp.pad(below[..., 1:, :] * rhs[..., :-1, :], [*inner, (1, 0), (0, 0)])
    return main * rhs + upper + lower


# --- factors and eigenvalues under their older names ---------------------------------------------


@kernel("BatchCholesky")
def batch_cholesky(input: Any) -> Any:
    return run_kernel("Cholesky", input)


@kernel("CholeskyGrad", "BatchCholeskyGrad")
def cholesky_grad(l: Any, grad: Any) -> Any:
    """Returns the gradient of a Cholesky factor by its symmetric matrix (Murray, 2016)."""
    inner = jnp.tril(adjoint_of(l) @ jnp.tril(grad))
    halved = inner * (1 - jnp.eye(l.shape[-1], dtype=l.dtype) / 2)
    left = lax.linalg.triangular_solve(
        l, halved, left_side=True, lower=True, transpose_a=True, conjugate_a=True
    )
    full = lax.linalg.triangular_solve(l, left, left_side=False, lower=True)
    return (full + adjoint_of(full)) / 2


@kernel("SelfAdjointEig", "BatchSelfAdjointEig")
def self_adjoint_eig_in_one(input: Any) -> Any:
    """Returns eigenvalues in the first row, and eigenvectors as the columns below."""
    values, vectors = run_kernel("SelfAdjointEigV2", input, compute_v=True)
    return jnp.concatenate([values[..., None, :], vectors], axis=-2)


@kernel("BatchSelfAdjointEigV2")
def batch_self_adjoint_eig(input: Any, *, compute_v: bool) -> Any:
    return run_kernel("SelfAdjointEigV2", input, compute_v=compute_v)


@kernel("BatchSvd")
def batch_svd(input: Any, *, compute_uv: bool, full_matrices: bool) -> Any:
    return run_kernel("Svd", input, compute_uv=compute_uv, full_matrices=full_matrices)


# --- functions of matrices ---------------------------------------------------------------------


def _of_each(fn: Any, input: Any) -> Any:
    flat = jnp.reshape(input, (-1, *input.shape[-2:]))
    return jnp.reshape(jax.vmap(fn)(flat), input.shape).astype(input.dtype)


@kernel("MatrixExponential")
def matrix_exponential(input: Any) -> Any:
    return jax.scipy.linalg.expm(input)


@kernel("MatrixSquareRoot")
def matrix_square_root(input: Any) -> Any:
    return _of_each(_square_root, input)


def _square_root(matrix: Any) -> Any:
    root = jax.scipy.linalg.sqrtm(matrix)
    return (root if jnp.iscomplexobj(matrix) else jnp.real(root)).astype(matrix.dtype)


@kernel("MatrixLogarithm")
def matrix_logarithm(input: Any) -> Any:
    return _of_each(_logarithm, input)


def _logarithm(matrix: Any) -> Any:
    """Returns a logarithm: of a root near the identity by Gauss-Legendre's rule, then doubled."""
    eye = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)

    def is_far(carry: Any) -> Any:
        root, count = carry
        return (jnp.linalg.norm(root - eye) > 0.25) & (count < _MOST_ROOTS)

    def halve(carry: Any) -> Any:
        return _square_root(carry[0]), carry[1] + 1

    root, count = lax.while_loop(is_far, halve, (matrix, jnp.int32(0)))
    nodes, weights = np.polynomial.legendre.leggauss(_PADE_ORDER)
    distance, total = root - eye, jnp.zeros_like(root)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        shifted = eye + np.asarray(node, matrix.dtype) * distance
        total = total + np.asarray(weight, matrix.dtype) * jnp.linalg.solve(shifted, distance)
    return total * (2.0 ** count.astype(jnp.real(matrix).dtype))
