"""Graphs of TensorFlow's ops on matrices: diagonals, solutions, factors and functions."""

from __future__ import annotations

from typing import Any

import numpy as np
from tensorflow_graphs import raw, written

from jaxmeta.ops._definition import Spec, f32

COMPLEX = Spec((2, 3, 3), np.complex64)
MATRICES = f32(2, 3, 3)

# --- diagonals ---------------------------------------------------------------------------------

raw("MatrixDiag", f32(2, 3), has_gradient=True)
raw("MatrixDiagPart", f32(2, 3, 3), has_gradient=True)
raw("MatrixSetDiag", f32(2, 3, 4), f32(2, 3), has_gradient=True)
raw("Diag", f32(2, 3), has_gradient=True)
raw("DiagPart", f32(2, 3, 2, 3), has_gradient=True)
ALIGNS = ("LEFT_RIGHT", "RIGHT_LEFT", "LEFT_LEFT", "RIGHT_RIGHT")
BANDS: tuple[tuple[Any, tuple[int, ...]], ...] = (
    (1, (2,)),
    (-2, (1,)),
    ([-1, 1], (3, 3)),
    ([0, 2], (3, 3)),
    ([-2, -1], (2, 2)),
)
for _k, _packed in BANDS:
    # Of version 2, TensorFlow's gradients align diagonals as version 3 does, which is wrong.
    raw("MatrixDiagPartV2", f32(2, 3, 4), constants=(_k, 5.0))
    for _align in ALIGNS:
        raw("MatrixDiagPartV3", f32(2, 3, 4), constants=(_k, 5.0), align=_align)
raw("MatrixDiagPartV3", f32(2, 3, 4), constants=([-1, 1], 5.0), has_gradient=True)
for _k, _packed in (([-1, 1], (3, 3)), ([1, 2], (2, 3)), (-1, (3,)), ([-1, 0], (2, 3))):
    _square = (_k, -1, -1, 2.0)
    raw("MatrixDiagV2", f32(2, *_packed), constants=_square)
    for _align in ALIGNS:
        raw("MatrixDiagV3", f32(*_packed), constants=_square, align=_align)
raw("MatrixDiagV3", f32(3, 3), constants=([-1, 1], -1, -1, 2.0), has_gradient=True)
raw("MatrixDiagV3", f32(2, 3), constants=(0, 3, 5, 2.0))
raw("MatrixDiagV3", f32(2, 3), constants=(1, 5, -1, 2.0))
for _k, _packed in (([-1, 1], (3, 3)), ([0, 2], (3, 3)), (1, (3,)), ([-2, 0], (3, 3))):

    @written("MatrixSetDiagV2", f32(2, 3, 4), f32(2, *_packed))
    def set_band(tf, x, diagonal, k=_k):
        return tf.raw_ops.MatrixSetDiagV2(input=x, diagonal=diagonal, k=k)

    for _align in ALIGNS:

        @written("MatrixSetDiagV3", f32(2, 3, 4), f32(2, *_packed), has_gradient=_k == 1)
        def set_aligned_band(tf, x, diagonal, k=_k, align=_align):
            return tf.raw_ops.MatrixSetDiagV3(input=x, diagonal=diagonal, k=k, align=align)


# --- solutions ---------------------------------------------------------------------------------


def far_from_singular(tf, x):
    return x + 4 * tf.eye(3, dtype=x.dtype)


def positive(tf, x):
    return far_from_singular(tf, tf.matmul(x, x, adjoint_b=True))


for _spec in (MATRICES, COMPLEX):
    for _adjoint in (False, True):

        @written("MatrixInverse", _spec, has_gradient=True)
        def inverse(tf, x, adjoint=_adjoint):
            return tf.raw_ops.MatrixInverse(input=far_from_singular(tf, x), adjoint=adjoint)

        @written("MatrixSolve", _spec, _spec, has_gradient=True)
        def solution(tf, x, b, adjoint=_adjoint):
            matrix = far_from_singular(tf, x)
            return tf.raw_ops.MatrixSolve(matrix=matrix, rhs=b, adjoint=adjoint)

    @written("MatrixDeterminant", _spec, has_gradient=True)
    def determinant(tf, x):
        return tf.raw_ops.MatrixDeterminant(input=far_from_singular(tf, x))

    @written("LogMatrixDeterminant", _spec, has_gradient=_spec is MATRICES)
    def log_determinant(tf, x):
        return list(tf.raw_ops.LogMatrixDeterminant(input=far_from_singular(tf, x)))

    raw("ConjugateTranspose", _spec, constants=([2, 0, 1],), has_gradient=True)


@written("CholeskyGrad", MATRICES, MATRICES)
def of_cholesky(tf, x, grad):
    factor = tf.linalg.cholesky(positive(tf, x))
    return tf.raw_ops.CholeskyGrad(l=factor, grad=tf.linalg.band_part(grad, -1, 0))


for _rows, _columns in ((5, 3), (3, 5)):

    @written("MatrixSolveLs", f32(_rows, _columns), f32(_rows, 2), has_gradient=True)
    def least_squares(tf, a, b):
        return tf.raw_ops.MatrixSolveLs(matrix=a, rhs=b, l2_regularizer=np.float64(0.3))

    @written("MatrixSolveLs", f32(2, _rows, _columns), f32(2, _rows, 2))
    def least_norm(tf, a, b):
        return tf.linalg.lstsq(a, b, fast=False)


for _lower in (False, True):
    for _adjoint in (False, True):

        @written("BandedTriangularSolve", f32(2, 3, 5), f32(2, 5, 2))
        def banded(tf, bands, b, lower=_lower, adjoint=_adjoint):
            options = {"lower": lower, "adjoint": adjoint}
            return tf.raw_ops.BandedTriangularSolve(matrix=bands + 5, rhs=b, **options)

        @written("MatrixTriangularSolve", MATRICES, MATRICES, has_gradient=True)
        def triangular(tf, x, b, lower=_lower, adjoint=_adjoint):
            return tf.linalg.triangular_solve(far_from_singular(tf, x), b, lower, adjoint)


raw("TridiagonalMatMul", f32(2, 1, 4), f32(2, 1, 4), f32(2, 1, 4), f32(2, 4, 3), has_gradient=True)


@written("TridiagonalSolve", f32(2, 3, 4), f32(2, 4, 3), has_gradient=True)
def tridiagonal(tf, diagonals, b):
    return tf.linalg.tridiagonal_solve(diagonals + np.float32([[0], [6], [0]]), b)


# --- functions of matrices, and their gradients through factors ----------------------------------


@written("MatrixSquareRoot", MATRICES)
def square_root(tf, x):
    return tf.linalg.sqrtm(positive(tf, x))


@written("MatrixLogarithm", COMPLEX)
def logarithm(tf, x):
    return [tf.linalg.logm(positive(tf, x)), tf.linalg.logm(far_from_singular(tf, x / 2))]


@written("Cholesky", MATRICES, has_gradient=True)
def cholesky(tf, x):
    return tf.linalg.cholesky(positive(tf, x))


@written("SelfAdjointEigV2", MATRICES, has_gradient=True)
def recomposed(tf, x):
    values, vectors = tf.linalg.eigh(positive(tf, x))
    return [values, tf.matmul(vectors * values[..., None, :] ** 2, vectors, adjoint_b=True)]


@written("Svd", f32(2, 4, 3), has_gradient=True)
def of_singular_values(tf, x):
    s, u, v = tf.linalg.svd(x)
    return [s, tf.matmul(u * s[..., None, :] ** 2, v, adjoint_b=True)]


@written("Qr", f32(2, 4, 3), has_gradient=True)
def orthogonal(tf, x):
    q, r = tf.linalg.qr(x)
    return [tf.matmul(q, r), q**2, r**2]


@written("Lu", MATRICES)
def lower_upper(tf, x):
    return list(tf.linalg.lu(x))


@written("Einsum", f32(2, 3, 4), f32(2, 4, 5), f32(3, 3), has_gradient=True)
def einsums(tf, x, y, z):
    pairs = ("bij,bjk->bki", "bij,bjk->", "...ij,...jk->...ik", "bij,...->b...i")
    single = ("ii->i", "ii->", "ij->ji", "i...->...", "...ij->...ji", "ab->ba")
    of_pairs = [tf.raw_ops.Einsum(inputs=[x, y], equation=equation) for equation in pairs[:3]]
    of_one = [tf.raw_ops.Einsum(inputs=[z], equation=equation) for equation in single]
    diagonal = tf.raw_ops.Einsum(inputs=[z[0]], equation="i->ii")
    batch = tf.raw_ops.Einsum(inputs=[z], equation="...i->ii...")
    return [*of_pairs, *of_one, diagonal, batch]


ALIASES = (
    # TensorFlow makes no new ones of these.
    *(f"BatchMatrix{name}" for name in ("Diag", "DiagPart", "SetDiag", "Inverse", "Solve")),
    *(f"BatchMatrix{name}" for name in ("SolveLs", "Determinant", "TriangularSolve")),
    *(f"Batch{name}" for name in ("Cholesky", "CholeskyGrad", "SelfAdjointEig", "Svd")),
    "BatchSelfAdjointEigV2",
    "SelfAdjointEig",
    "MatrixExponential",
)
