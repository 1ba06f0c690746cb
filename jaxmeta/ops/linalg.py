"""Matrix decompositions and the solutions of matrix equations.

TensorFlow and LAPACK agree on what a decomposition is, not on signs and on the order of what is
free: the vectors of an eigendecomposition or an SVD may differ by a factor of modulus one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes, errors, jaxprs
from jaxmeta.graph import Edge
from jaxmeta.ops._definition import (
    PRIMITIVE_ATTR,
    LoweringContext,
    Spec,
    example,
    f32,
    i32,
    kernel,
    lowering,
    restores,
)


def _is_complex(edge: Edge) -> bool:
    return dtypes.dtype_from_number(edge.number).kind == "c"


def _aval(edge: Edge) -> jax.ShapeDtypeStruct:
    assert edge.shape is not None
    return jax.ShapeDtypeStruct(edge.shape, dtypes.dtype_from_number(edge.number))


def _adjoint(ctx: LoweringContext, x: Edge, rank: int) -> Edge:
    """Adds the nodes of the conjugate transpose of the last two axes."""
    perm = (*range(rank - 2), rank - 1, rank - 2)
    (x,) = ctx.node("Transpose", x, ctx.constant(perm, np.int32))
    return ctx.node("Conj", x)[0] if _is_complex(x) else x


def _real(ctx: LoweringContext, x: Edge, dtype: Any) -> Edge:
    """Adds a Real where the node's output is complex for the sake of its type only."""
    return ctx.node("Real", x, Tout=dtype)[0] if _is_complex(x) else x


def _batched(fn: Callable[..., Any], rank: int) -> Callable[..., Any]:
    """Returns a function of matrices as one of arrays that have ``rank`` leading axes more."""
    for _ in range(rank):
        fn = jax.vmap(fn)
    return fn


def _positive(x: jax.Array) -> jax.Array:
    """Returns well-conditioned Hermitian positive-definite matrices."""
    return x @ jnp.conj(jnp.swapaxes(x, -1, -2)) + 3 * jnp.eye(x.shape[-1], dtype=x.dtype)


_COMPLEX = Spec((2, 4, 4), np.complex64)

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


example(lambda x: lax.linalg.cholesky(_positive(x)), f32(2, 4, 4), tolerance=1e-4)
example(lambda x: jnp.linalg.cholesky(_positive(x)), _COMPLEX, tolerance=1e-4, gradient=False)
example(
    lambda x, w: lax.linalg.cholesky_update(jnp.linalg.cholesky(_positive(x)).T, w),
    f32(4, 4),
    f32(4),
    tolerance=1e-4,
    gradient=False,
)

# --- triangular and tridiagonal systems --------------------------------------------------------


@lowering("triangular_solve")
def lower_triangular_solve(
    ctx: LoweringContext,
    a: Edge,
    b: Edge,
    *,
    left_side: bool,
    lower: bool,
    transpose_a: bool,
    conjugate_a: bool,
    unit_diagonal: bool,
) -> list[Edge]:
    # TensorFlow's "adjoint" conjugates as it transposes.
    is_plain = (
        left_side and not unit_diagonal and (not _is_complex(a) or transpose_a == conjugate_a)
    )
    if is_plain:
        return ctx.node("MatrixTriangularSolve", a, b, lower=bool(lower), adjoint=bool(transpose_a))
    options: dict[str, Any] = {
        "left_side": bool(left_side),
        "lower": bool(lower),
        "transpose_a": bool(transpose_a),
        "conjugate_a": bool(conjugate_a),
        "unit_diagonal": bool(unit_diagonal),
    }
    solve = functools.partial(_triangular_solve_from_left, **options)
    return ctx.composite("triangular_solve", solve, a, b, **options)


def _triangular_solve_from_left(
    a: jax.Array,
    b: jax.Array,
    *,
    left_side: bool,
    lower: bool,
    transpose_a: bool,
    conjugate_a: bool,
    unit_diagonal: bool,
) -> jax.Array:
    """Says any triangular system as one that MatrixTriangularSolve takes."""
    if unit_diagonal:
        is_diagonal = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=np.bool_), a.shape)
        a = lax.select(is_diagonal, jnp.ones_like(a), a)
    # X op(A) = B is op(A)^T X^T = B^T.
    transposes = transpose_a if left_side else not transpose_a
    if jnp.iscomplexobj(a) and conjugate_a != transposes:
        a = lax.conj(a)
    solution = lax.linalg.triangular_solve(
        a,
        b if left_side else jnp.swapaxes(b, -1, -2),
        left_side=True,
        lower=lower,
        transpose_a=transposes,
        conjugate_a=transposes,
    )
    return solution if left_side else jnp.swapaxes(solution, -1, -2)


@kernel("MatrixTriangularSolve")
def matrix_triangular_solve(matrix: Any, rhs: Any, *, lower: bool, adjoint: bool) -> Any:
    if matrix.shape[:-2] != rhs.shape[:-2]:
        batch = jnp.broadcast_shapes(matrix.shape[:-2], rhs.shape[:-2])
        matrix = jnp.broadcast_to(matrix, (*batch, *matrix.shape[-2:]))
        rhs = jnp.broadcast_to(rhs, (*batch, *rhs.shape[-2:]))
    return lax.linalg.triangular_solve(
        matrix, rhs, left_side=True, lower=lower, transpose_a=adjoint, conjugate_a=adjoint
    )


@restores("triangular_solve")
def restore_triangular_solve(
    a: Any,
    b: Any,
    *,
    left_side: bool,
    lower: bool,
    transpose_a: bool,
    conjugate_a: bool,
    unit_diagonal: bool,
) -> Any:
    return lax.linalg.triangular_solve(
        a,
        b,
        left_side=left_side,
        lower=lower,
        transpose_a=transpose_a,
        conjugate_a=conjugate_a,
        unit_diagonal=unit_diagonal,
    )


def _solving(**options: bool) -> Callable[..., Any]:
    def run(x: jax.Array, b: jax.Array) -> jax.Array:
        # A large diagonal keeps the errors of the two libraries small.
        a = x + 5 * jnp.eye(x.shape[-1], dtype=x.dtype)
        return lax.linalg.triangular_solve(a, b, **options)

    run.__name__ = "triangular_solve"
    return run


for _options in (
    {"left_side": True, "lower": True},
    {"left_side": True, "lower": False, "transpose_a": True},
    {"left_side": False, "lower": True},
    {"left_side": False, "lower": False, "transpose_a": True},
    {"left_side": True, "lower": True, "unit_diagonal": True},
):
    example(_solving(**_options), f32(2, 4, 4), f32(2, 4, 4), tolerance=1e-4)
for _options in (
    {"left_side": True, "lower": True, "transpose_a": True, "conjugate_a": True},
    {"left_side": True, "lower": True, "transpose_a": True},
    {"left_side": False, "lower": True, "conjugate_a": True},
):
    example(_solving(**_options), _COMPLEX, _COMPLEX, tolerance=1e-4, gradient=False)


@lowering("tridiagonal_solve")
def lower_tridiagonal_solve(
    ctx: LoweringContext,
    lower: Edge,
    diagonal: Edge,
    upper: Edge,
    b: Edge,
    *,
    perturb_singular: bool = False,
) -> list[Edge]:
    inputs = (lower, diagonal, upper, b)
    assert b.shape is not None
    if not perturb_singular:
        # TensorFlow's TridiagonalSolve has no pivoting in XLA.
        solve = _batched(_solve_with_pivots, len(b.shape) - 2)
        return ctx.composite("tridiagonal_solve", solve, *inputs, perturb_singular=False)

    def fill(body: LoweringContext, arguments: list[Edge]) -> list[Edge]:
        below, middle, above, rhs = arguments
        assert diagonal.shape is not None
        (stacked,) = body.node("Pack", [above, middle, below], axis=len(diagonal.shape) - 1)
        return body.node(
            "TridiagonalSolve",
            stacked,
            rhs,
            partial_pivoting=True,
            perturb_singular=True,
        )

    function = ctx.build_function("tridiagonal_solve", [_aval(x) for x in inputs], fill)
    return ctx.call(function, *inputs, primitive="tridiagonal_solve", perturb_singular=True)


def _solve_with_pivots(
    lower: jax.Array, diagonal: jax.Array, upper: jax.Array, b: jax.Array
) -> jax.Array:
    """Eliminates downwards, exchanging neighbouring rows as LAPACK does, then substitutes back."""
    zero = jnp.zeros_like(diagonal[0])

    def eliminate(carry: Any, row: Any) -> Any:
        # The row above has at most its pivot and one element right of it.
        pivot, right, rhs = carry
        below, middle, above, new_rhs = row
        swaps = _modulus(below) > _modulus(pivot)
        factor = jnp.where(swaps, pivot, below) / jnp.where(swaps, below, pivot)
        kept = (
            jnp.where(swaps, below, pivot),
            jnp.where(swaps, middle, right),
            jnp.where(swaps, above, zero),
            jnp.where(swaps, new_rhs, rhs),
        )
        rest = (
            jnp.where(swaps, right, middle) - factor * kept[1],
            jnp.where(swaps, zero, above) - factor * kept[2],
            jnp.where(swaps, rhs, new_rhs) - factor * kept[3],
        )
        return rest, kept

    def substitute(carry: Any, row: Any) -> Any:
        next_x, second_x = carry
        pivot, right, second, rhs = row
        x = (rhs - right * next_x - second * second_x) / pivot
        return (x, next_x), x

    rows = (lower[1:], diagonal[1:], upper[1:], b[1:])
    last, kept = lax.scan(eliminate, (diagonal[0], upper[0], b[0]), rows)
    last_x = last[2] / last[0]
    _, xs = lax.scan(substitute, (last_x, jnp.zeros_like(last_x)), kept, reverse=True)
    return jnp.concatenate([xs, last_x[None]])


@restores("tridiagonal_solve")
def restore_tridiagonal_solve(
    lower: Any, diagonal: Any, upper: Any, b: Any, *, perturb_singular: bool
) -> Any:
    return lax.linalg.tridiagonal_solve(
        lower, diagonal, upper, b, perturb_singular=perturb_singular
    )


@kernel("TridiagonalSolve")
def tridiagonal_solve(
    diagonals: Any, rhs: Any, *, partial_pivoting: bool, perturb_singular: bool
) -> Any:
    del partial_pivoting  # LAPACK always pivots
    upper, diagonal, lower = (diagonals[..., row, :] for row in range(3))
    # What lies outside the matrix, TensorFlow ignores.
    return lax.linalg.tridiagonal_solve(
        lower.at[..., 0].set(0),
        diagonal,
        upper.at[..., -1].set(0),
        rhs,
        perturb_singular=perturb_singular,
    )


def _tridiagonal(x: jax.Array, b: jax.Array) -> jax.Array:
    lower, upper = (x[0] + 3).at[..., 0].set(0), x[2].at[..., -1].set(0)
    # A small diagonal makes rows change places.
    return lax.linalg.tridiagonal_solve(lower, x[1], upper, b)


example(_tridiagonal, f32(3, 6), f32(6, 2), tolerance=1e-4)
example(_tridiagonal, f32(3, 2, 5), f32(2, 5, 1), tolerance=1e-4)
example(
    lambda x, b: lax.linalg.tridiagonal_solve(
        x.at[0].set(0), x + 5, x.at[-1].set(0), b, perturb_singular=True
    ),
    f32(6),
    f32(6, 2),
    not_in_tensorflow="TridiagonalSolve has no pivoting in XLA",
)

# --- lu ----------------------------------------------------------------------------------------


@lowering("lu")
def lower_lu(ctx: LoweringContext, x: Edge) -> list[Edge]:
    # TensorFlow's Lu has no kernel in XLA, and gives no pivots.
    assert x.shape is not None
    return ctx.composite("lu", _batched(_lu_by_columns, len(x.shape) - 2), x)


def _lu_by_columns(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns LU factors in one matrix, the row swaps, and the permutation that these make."""
    num_rows, num_columns = matrix.shape
    rank = min(num_rows, num_columns)
    rows = lax.iota(np.int32, num_rows)
    columns = lax.iota(np.int32, num_columns)

    def eliminate(k: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        a, pivots, order = state
        size = _modulus(a[:, k])
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


def _modulus(x: jax.Array) -> jax.Array:
    """Returns by what LAPACK chooses pivots."""
    if jnp.iscomplexobj(x):
        return lax.abs(lax.real(x)) + lax.abs(lax.imag(x))
    return lax.abs(x)


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
    permute = _batched(functools.partial(_permutation, size=size), len(pivots.shape) - 1)
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
example(lambda x: lax.linalg.lu(x), _COMPLEX, tolerance=1e-4, gradient=False)
example(
    lambda p: lax.linalg.lu_pivots_to_permutation(jnp.maximum(p, jnp.arange(3)), 5),
    i32(2, 3, low=0, high=1),
    gradient=False,
)
example(lambda x: jnp.linalg.slogdet(_positive(x)), f32(2, 4, 4), tolerance=1e-4)

# --- qr ----------------------------------------------------------------------------------------


@lowering("qr")
def lower_qr(
    ctx: LoweringContext, x: Edge, *, pivoting: bool, full_matrices: bool, use_magma: Any = None
) -> list[Edge]:
    if pivoting:
        raise ctx.unsupported("TensorFlow has no QR decomposition with pivoting")
    if use_magma is not None:
        raise ctx.unsupported("use_magma cannot be expressed")
    return ctx.node("Qr", x, full_matrices=bool(full_matrices))


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
    return ctx.composite("householder_product", _batched(product, len(a.shape) - 2), a, taus)


@restores("householder_product")
def restore_householder_product(a: Any, taus: Any) -> Any:
    return lax.linalg.householder_product(a, taus)


@lowering("ormqr")
def lower_ormqr(
    ctx: LoweringContext, a: Edge, taus: Edge, c: Edge, *, left: bool, transpose: bool
) -> list[Edge]:
    assert a.shape is not None
    options: dict[str, Any] = {"left": bool(left), "transpose": bool(transpose)}
    apply = _batched(functools.partial(_apply_reflectors, **options), len(a.shape) - 2)
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
example(lambda x: lax.linalg.qr(x, full_matrices=False), _COMPLEX, tolerance=1e-4, gradient=False)
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

# --- singular values ---------------------------------------------------------------------------


@lowering("svd")
def lower_svd(
    ctx: LoweringContext,
    x: Edge,
    *,
    full_matrices: bool,
    compute_uv: bool,
    subset_by_index: Any = None,
    algorithm: Any = None,
) -> list[Edge]:
    if subset_by_index is not None:
        raise ctx.unsupported("an SVD of a subset by index cannot be expressed")
    avals = ctx.out_avals

    def fill(body: LoweringContext, arguments: list[Edge]) -> list[Edge]:
        s, u, v = body.node(
            "Svd", arguments[0], compute_uv=bool(compute_uv), full_matrices=bool(full_matrices)
        )
        s = _real(body, s, avals[0].dtype)
        return [s, u, _adjoint(body, v, len(avals[2].shape))] if compute_uv else [s]

    return ctx.call(
        ctx.build_function("svd", [_aval(x)], fill),
        x,
        primitive="svd",
        full_matrices=bool(full_matrices),
        compute_uv=bool(compute_uv),
        algorithm=None if algorithm is None else algorithm.name,
    )


def _enum_member(kind: type[Any], name: bytes) -> Any:
    if not name:
        return None
    try:
        return kind[name.decode()]
    except KeyError:
        raise errors.AttrError(f"this JAX knows no {kind.__name__} named {name!r}") from None


@restores("svd")
def restore_svd(x: Any, *, full_matrices: bool, compute_uv: bool, algorithm: bytes = b"") -> Any:
    result = lax.linalg.svd(
        x,
        full_matrices=full_matrices,
        compute_uv=compute_uv,
        algorithm=_enum_member(lax.linalg.SvdAlgorithm, algorithm),
    )
    return (result[1], result[0], result[2]) if compute_uv else result


@kernel("Svd")
def svd(input: Any, *, compute_uv: bool, full_matrices: bool) -> Any:
    if not compute_uv:
        values = lax.linalg.svd(input, full_matrices=full_matrices, compute_uv=False)
        nothing = np.zeros(0, input.dtype)
        return values.astype(input.dtype), nothing, nothing
    u, s, vh = lax.linalg.svd(input, full_matrices=full_matrices)
    return s.astype(input.dtype), u, jnp.conj(jnp.swapaxes(vh, -1, -2))


def _recomposed(x: jax.Array) -> Any:
    """Returns what does not depend on the signs of singular vectors."""
    u, s, vh = lax.linalg.svd(x, full_matrices=False)
    return s, (u * s[..., None, :]) @ vh


_SIGNS = "singular and eigenvectors may differ in sign"

example(_recomposed, f32(2, 5, 3), tolerance=1e-4)
example(
    _recomposed,
    _COMPLEX,
    gradient=False,
    not_in_tensorflow="Svd has no kernel for complex matrices in XLA",
)
example(lambda x: lax.linalg.svd(x), f32(3, 3), not_in_tensorflow=_SIGNS)
example(lambda x: lax.linalg.svd(x)[1], f32(5, 3), tolerance=1e-4, gradient=False)
example(lambda x: jnp.linalg.svd(x, compute_uv=False), f32(2, 3, 5), tolerance=1e-4)
example(lambda x: jnp.linalg.pinv(x), f32(5, 3), tolerance=1e-3)

# --- eigenvalues -------------------------------------------------------------------------------


@lowering("eigh")
def lower_eigh(
    ctx: LoweringContext,
    x: Edge,
    *,
    lower: bool,
    sort_eigenvalues: bool,
    subset_by_index: Any = None,
    algorithm: Any = None,
) -> list[Edge]:
    if subset_by_index is not None:
        raise ctx.unsupported("an eigendecomposition of a subset by index cannot be expressed")
    vectors, values = ctx.out_avals

    def fill(body: LoweringContext, arguments: list[Edge]) -> list[Edge]:
        (matrix,) = arguments
        # TensorFlow reads the lower triangle.
        matrix = matrix if lower else _adjoint(body, matrix, len(vectors.shape))
        e, v = body.node("SelfAdjointEigV2", matrix, compute_v=True)
        return [v, _real(body, e, values.dtype)]

    return ctx.call(
        ctx.build_function("eigh", [_aval(x)], fill),
        x,
        primitive="eigh",
        lower=bool(lower),
        sort_eigenvalues=bool(sort_eigenvalues),
        algorithm=None if algorithm is None else algorithm.name,
    )


@restores("eigh")
def restore_eigh(x: Any, *, lower: bool, sort_eigenvalues: bool, algorithm: bytes = b"") -> Any:
    return lax.linalg.eigh(
        x,
        lower=lower,
        symmetrize_input=False,
        sort_eigenvalues=sort_eigenvalues,
        implementation=_enum_member(lax.linalg.EighImplementation, algorithm),
    )


@kernel("SelfAdjointEigV2")
def self_adjoint_eig(input: Any, *, compute_v: bool) -> Any:
    vectors, values = lax.linalg.eigh(input, lower=True, symmetrize_input=False)
    return values.astype(input.dtype), vectors if compute_v else np.zeros(0, input.dtype)


@lowering("eig")
def lower_eig(
    ctx: LoweringContext,
    x: Edge,
    *,
    compute_left_eigenvectors: bool,
    compute_right_eigenvectors: bool,
    enable_eigvec_derivs: bool = False,
    implementation: Any = None,
) -> list[Edge]:
    if compute_left_eigenvectors:
        raise ctx.unsupported("TensorFlow's Eig gives no left eigenvectors")
    dtype = ctx.out_avals[0].dtype

    def fill(body: LoweringContext, arguments: list[Edge]) -> Sequence[Edge]:
        outputs = body.node(
            "Eig", *arguments, compute_v=bool(compute_right_eigenvectors), Tout=dtype
        )
        return outputs if compute_right_eigenvectors else outputs[:1]

    return ctx.call(
        ctx.build_function("eig", [_aval(x)], fill),
        x,
        primitive="eig",
        compute_right_eigenvectors=bool(compute_right_eigenvectors),
        enable_eigvec_derivs=bool(enable_eigvec_derivs),
        implementation=None if implementation is None else implementation.name,
    )


@restores("eig")
def restore_eig(
    x: Any,
    *,
    compute_right_eigenvectors: bool,
    enable_eigvec_derivs: bool,
    implementation: bytes = b"",
) -> Any:
    return lax.linalg.eig(
        x,
        compute_left_eigenvectors=False,
        compute_right_eigenvectors=compute_right_eigenvectors,
        enable_eigvec_derivs=enable_eigvec_derivs,
        implementation=_enum_member(lax.linalg.EigImplementation, implementation),
    )


@kernel("Eig")
def eig(input: Any, *, compute_v: bool, Tout: int) -> Any:
    dtype = dtypes.dtype_from_number(Tout)
    values, *vectors = lax.linalg.eig(
        input, compute_left_eigenvectors=False, compute_right_eigenvectors=compute_v
    )
    return values.astype(dtype), vectors[0].astype(dtype) if vectors else np.zeros(0, dtype)


def _recomposed_hermitian(x: jax.Array) -> Any:
    """Returns what does not depend on the signs of eigenvectors."""
    vectors, values = lax.linalg.eigh(_positive(x))
    adjoint = jnp.conj(jnp.swapaxes(vectors, -1, -2))
    return values, (vectors * values[..., None, :]) @ adjoint


example(_recomposed_hermitian, f32(2, 4, 4), tolerance=1e-4)
example(_recomposed_hermitian, _COMPLEX, tolerance=1e-4, gradient=False)
example(
    lambda x: lax.linalg.eigh(x, lower=False, symmetrize_input=False)[1],
    f32(4, 4),
    tolerance=1e-4,
    gradient=False,
)
example(lambda x: jnp.linalg.eigvalsh(x), f32(2, 4, 4), tolerance=1e-4)
example(lambda x: jnp.linalg.eigh(x), f32(4, 4), not_in_tensorflow=_SIGNS)
example(
    lambda x: jnp.linalg.eig(x),
    f32(4, 4),
    gradient=False,
    not_in_tensorflow="Eig has no kernel in XLA, and the order of eigenvalues differs",
)
example(
    lambda x: jnp.linalg.eigvals(x),
    f32(4, 4),
    gradient=False,
    not_in_tensorflow="Eig has no kernel in XLA, and the order of eigenvalues differs",
)

# --- products ----------------------------------------------------------------------------------


@lowering("symmetric_product")
def lower_symmetric_product(
    ctx: LoweringContext, a: Edge, c: Edge, *, alpha: Any, beta: Any
) -> list[Edge]:
    def product(matrix: jax.Array, addend: jax.Array) -> jax.Array:
        square = jnp.matmul(matrix, jnp.swapaxes(matrix, -1, -2), precision="highest")
        return jnp.asarray(alpha * square + beta * addend)

    # As text, because float attrs have 32 bits.
    scales = {"alpha": repr(float(alpha)), "beta": repr(float(beta))}
    return ctx.composite("symmetric_product", product, a, c, **scales)


@restores("symmetric_product")
def restore_symmetric_product(a: Any, c: Any, *, alpha: bytes, beta: bytes) -> Any:
    return lax.linalg.symmetric_product(
        a, c, alpha=float(alpha), beta=float(beta), symmetrize_output=False
    )


example(
    lambda a, c: lax.linalg.symmetric_product(a, c, alpha=0.7, beta=0.3),
    f32(3, 4),
    f32(3, 3),
    tolerance=1e-4,
    gradient=False,
)
