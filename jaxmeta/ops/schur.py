"""The Schur decomposition, which TensorFlow has no op for.

In TensorFlow it is the QR algorithm: the matrix is made Hessenberg, then reflectors chase a bulge
down its diagonal until what stands below that is zero. Real matrices take two shifts at once, so
that pairs of complex eigenvalues stay blocks of two.
"""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops import _computation
from jaxmeta.ops._definition import LoweringContext, example, f32, lowering, restores
from jaxmeta.ops._matrices import COMPLEX
from jaxmeta.ops._reflectors import reflector, times

Pair = tuple[jax.Array, jax.Array]

_STEPS_PER_ROW: Final = 30  # as many as LAPACK takes before it gives up
_STEPS_PER_EXCEPTION: Final = 10  # every so many steps the shift is another one


@lowering("schur")
def lower_schur(
    ctx: LoweringContext,
    x: Edge,
    *,
    compute_schur_vectors: bool,
    sort_eig_vals: bool,
    select_callable: Any,
) -> list[Edge]:
    if select_callable is not None:
        raise ctx.unsupported("select_callable is Python, which JAX itself does not use: drop it")
    assert x.shape is not None
    count = 2 if compute_schur_vectors else 1

    def decompose(matrix: jax.Array) -> Any:
        return _schur(matrix)[:count]

    return ctx.composite(
        "schur",
        _computation.batched(decompose, len(x.shape) - 2),
        x,
        compute_schur_vectors=bool(compute_schur_vectors),
        sort_eig_vals=bool(sort_eig_vals),
    )


@restores("schur")
def restore_schur(x: Any, *, compute_schur_vectors: bool, sort_eig_vals: bool) -> Any:
    return lax.linalg.schur(
        x, compute_schur_vectors=compute_schur_vectors, sort_eig_vals=sort_eig_vals
    )


def _schur(a: jax.Array) -> Pair:
    """Returns the triangular factor of a matrix, with blocks of two where real, and the vectors."""
    size = a.shape[0]
    is_real = not jnp.iscomplexobj(a)

    def is_going_on(state: Any) -> jax.Array:
        _, _, last, step = state
        return jnp.asarray((last > 0) & (step < _STEPS_PER_ROW * max(size, 10)))

    def iterate(state: Any) -> Any:
        matrix, vectors, last, step = state
        matrix, first = _deflate(matrix, last)
        num_rows = last - first + 1
        num_done = jnp.where(num_rows <= (2 if is_real else 1), num_rows, 0)
        matrix, vectors = lax.switch(
            jnp.where(num_rows == 1, 0, jnp.where(num_done == 2, 1, 2)),
            [
                lambda pair, first, last, step: pair,
                _rotate_block if is_real else _chase,
                _chase,
            ],
            (matrix, vectors),
            first,
            last,
            step,
        )
        return matrix, vectors, last - num_done, step + 1

    zero = jnp.zeros((), np.int32)
    start = (*_hessenberg(a), zero + (size - 1), zero)
    matrix, vectors, last, _ = lax.while_loop(is_going_on, iterate, start)
    nan = jnp.asarray(np.nan, a.dtype)
    is_done = last <= 0
    return jnp.where(is_done, jnp.triu(matrix, -1), nan), jnp.where(is_done, vectors, nan)


def _reflect(pair: Pair, vector: jax.Array, tau: jax.Array) -> Pair:
    """Applies a reflector to a matrix from both sides, and to the vectors from the right."""
    matrix, vectors = pair
    adjoint = jnp.conj(vector)
    matrix = matrix - tau * jnp.outer(times(matrix, vector), adjoint)
    matrix = matrix - jnp.conj(tau) * jnp.outer(vector, times(adjoint, matrix))
    return matrix, vectors - tau * jnp.outer(times(vectors, vector), adjoint)


def _clear_below(matrix: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    is_below = lax.iota(np.int32, matrix.shape[0]) > row
    return matrix.at[:, column].set(jnp.where(is_below, 0, matrix[:, column]))


def _hessenberg(a: jax.Array) -> Pair:
    size = a.shape[0]

    def step(k: jax.Array, pair: Pair) -> Pair:
        vector, tau, _ = reflector(pair[0][:, k], k + 1)
        matrix, vectors = _reflect(pair, vector, tau)
        return _clear_below(matrix, k + 1, k), vectors

    start = a, jnp.eye(size, dtype=a.dtype)
    return lax.fori_loop(0, size - 2, step, start) if size > 2 else start


def _deflate(matrix: jax.Array, last: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Clears what is negligible below the diagonal; returns the first row of the last block."""
    places = lax.iota(np.int32, matrix.shape[0])
    below, above = places, jnp.maximum(places - 1, 0)  # row k and the one above it
    sizes = jnp.abs(jnp.diagonal(matrix))
    scale = sizes[below] + sizes[above]
    scale = jnp.where(scale == 0, jnp.sqrt(jnp.sum(jnp.square(jnp.abs(matrix)))), scale)
    entries = matrix[below, above]
    is_small = jnp.abs(entries) <= jnp.finfo(matrix.dtype).eps * scale
    is_first = is_small | (places == 0)
    kept = jnp.where(is_small & (places > 0), 0, entries)
    first = jnp.max(jnp.where(is_first & (places <= last), places, 0))
    return matrix.at[below, above].set(kept), first


def _chase(pair: Pair, first: jax.Array, last: jax.Array, step: jax.Array) -> Pair:
    """Takes one step of the QR algorithm with implicit shifts on the rows from first to last."""
    matrix = pair[0]
    places = lax.iota(np.int32, matrix.shape[0])
    is_exception = step % _STEPS_PER_EXCEPTION == _STEPS_PER_EXCEPTION - 1
    shifted = _two_shifts if not jnp.iscomplexobj(matrix) else _one_shift
    head = shifted(matrix, first, last, is_exception)
    width = head.shape[0]
    start = jnp.zeros((matrix.shape[0] + width,), matrix.dtype)
    start = lax.dynamic_update_slice(start, head, (first,))[: matrix.shape[0]]

    def move(k: jax.Array, pair: Pair) -> Pair:
        column = jnp.maximum(k - 1, 0)
        bulge = jnp.where(k == first, start, pair[0][:, column])
        is_inside = (places <= k + width - 1) & (places <= last)
        vector, tau, _ = reflector(jnp.where(is_inside, bulge, 0), k)
        matrix, vectors = _reflect(pair, vector, tau)
        return jnp.where(k == first, matrix, _clear_below(matrix, k, column)), vectors

    moved: Pair = lax.fori_loop(first, last, move, pair)
    return moved


def _one_shift(
    matrix: jax.Array, first: jax.Array, last: jax.Array, is_exception: jax.Array
) -> jax.Array:
    """Returns the first column of the shifted matrix; the shift is Wilkinson's."""
    a, b = matrix[last - 1, last - 1], matrix[last - 1, last]
    c, d = matrix[last, last - 1], matrix[last, last]
    half = (a - d) / 2
    root = jnp.sqrt(half * half + b * c)
    far = jnp.where(jnp.abs(half + root) >= jnp.abs(half - root), half + root, half - root)
    is_zero = far == 0
    near = d - jnp.where(is_zero, 0, b * c / jnp.where(is_zero, 1, far))
    shift = jnp.where(is_exception, d + jnp.abs(c), near)
    return jnp.stack([matrix[first, first] - shift, matrix[first + 1, first]])


def _two_shifts(
    matrix: jax.Array, first: jax.Array, last: jax.Array, is_exception: jax.Array
) -> jax.Array:
    """Returns the first column of the product of two shifted matrices; the shifts are Francis's."""
    a, b = matrix[last - 1, last - 1], matrix[last - 1, last]
    c, d = matrix[last, last - 1], matrix[last, last]
    size = jnp.abs(c) + jnp.abs(matrix[last - 1, last - 2])
    total = jnp.where(is_exception, 1.5 * size, a + d)
    product = jnp.where(is_exception, size * size, a * d - b * c)
    second = first + 1
    corner, below = matrix[first, first], matrix[second, first]
    third = jnp.minimum(first + 2, matrix.shape[0] - 1)
    return jnp.stack(
        [
            corner * corner + matrix[first, second] * below - total * corner + product,
            below * (corner + matrix[second, second] - total),
            below * matrix[third, second],
        ]
    )


def _rotate_block(pair: Pair, first: jax.Array, last: jax.Array, step: jax.Array) -> Pair:
    """Makes a real block of two triangular, or its diagonal equal where that cannot be."""
    del step
    matrix, vectors = pair
    a, b = matrix[first, first], matrix[first, last]
    c, d = matrix[last, first], matrix[last, last]
    half = (a - d) / 2
    discriminant = half * half + b * c
    is_triangular = discriminant >= 0
    root = jnp.sqrt(jnp.maximum(discriminant, 0))
    angle = jnp.where(
        is_triangular,
        jnp.arctan2(c, half + jnp.where(half >= 0, root, -root)),
        jnp.arctan2(d - a, b + c) / 2,
    )
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    rotation = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    rotation = rotation.at[first, first].set(cosine).at[first, last].set(-sine)
    rotation = rotation.at[last, first].set(sine).at[last, last].set(cosine)
    matrix = times(times(rotation.T, matrix), rotation)
    matrix = jnp.where(is_triangular, matrix.at[last, first].set(0), matrix)
    return matrix, times(vectors, rotation)


def _recomposed(x: jax.Array) -> Any:
    """Returns what does not depend on the order of eigenvalues and the signs of vectors."""
    triangular, vectors = lax.linalg.schur(x)
    adjoint = jnp.conj(jnp.swapaxes(vectors, -1, -2))
    return vectors @ triangular @ adjoint, vectors @ adjoint, jnp.tril(triangular, -2)


def _trace(x: jax.Array) -> Any:
    (triangular,) = lax.linalg.schur(x, compute_schur_vectors=False)  # type: ignore[misc]
    return jnp.trace(triangular, axis1=-2, axis2=-1)


example(_recomposed, f32(2, 5, 5), tolerance=1e-4, gradient=False)
example(_recomposed, COMPLEX, tolerance=1e-4, gradient=False)
example(_recomposed, f32(2, 2), tolerance=1e-4, gradient=False)
example(_trace, f32(4, 4), tolerance=1e-4, gradient=False)
