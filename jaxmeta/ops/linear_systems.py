"""Solutions of linear systems: triangular, tridiagonal, and by functions that JAX is given."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops import _computation
from jaxmeta.ops._definition import LoweringContext, example, f32, kernel, lowering, restores
from jaxmeta.ops._matrices import COMPLEX, broadcast_batches, modulus
from jaxmeta.ops._operands import avals_of, is_complex
from jaxmeta.tracing import binding, jaxprs

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
    is_plain = left_side and not unit_diagonal and (not is_complex(a) or transpose_a == conjugate_a)
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
    matrix, rhs = broadcast_batches(matrix, rhs)
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
    example(_solving(**_options), COMPLEX, COMPLEX, tolerance=1e-4, gradient=False)


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
        solve = _computation.batched(_solve_with_pivots, len(b.shape) - 2)
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

    function = ctx.build_function("tridiagonal_solve", avals_of(inputs), fill)
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
        swaps = modulus(below) > modulus(pivot)
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

# --- solutions by given functions --------------------------------------------------------------


@lowering("custom_linear_solve")
def lower_custom_linear_solve(
    ctx: LoweringContext, *inputs: Edge, const_lengths: Any, jaxprs: Any
) -> list[Edge]:
    avals = [atom.aval for atom in ctx.eqn.invars]
    lengths = [int(length) for length in const_lengths]
    first = sum(lengths[:2])
    rest = range(sum(lengths), len(inputs))
    taken = [*range(first, first + lengths[2]), *rest]
    function = _computation.function_ref(
        ctx, _with_operands(jaxprs.solve, avals, taken), "linear_solve"
    )
    others = {
        name: None if jaxpr is None else _computation.function_ref(ctx, jaxpr, name)
        for name, jaxpr in jaxprs._asdict().items()
        if name != "solve"
    }
    return ctx.call(
        function, *inputs, primitive="custom_linear_solve", const_lengths=lengths, **others
    )


_with_operands = jaxprs.with_operands  # the parameter of that primitive hides the module's name


@restores("custom_linear_solve")
def restore_custom_linear_solve(
    *inputs: Any,
    function: Any,
    const_lengths: tuple[int, ...],
    matvec: Any,
    vecmat: Any = None,
    transpose_solve: Any = None,
) -> list[Any]:
    first, last = sum(const_lengths[:2]), const_lengths[3]

    def solve(*operands: Any) -> Any:
        own = const_lengths[2]
        return function(*[None] * first, *operands[:own], *[None] * last, *operands[own:])

    functions = (matvec, vecmat, solve, transpose_solve)
    return binding.bind_linear_solve(functions, const_lengths, inputs)


def _diagonal_solve(scale: Any, b: Any, **options: Any) -> Any:
    return lax.custom_linear_solve(lambda x: x * scale, b, lambda _, y: y / scale, **options)


example(lambda a, b: _diagonal_solve(a, b, symmetric=True), f32(3, low=1.0), f32(3))
example(
    lambda a, b: _diagonal_solve(a, b, transpose_solve=lambda _, y: y / a), f32(3, low=1.0), f32(3)
)
example(lambda a, b: _diagonal_solve(a, b), f32(3, low=1.0), f32(3), gradient=False)
