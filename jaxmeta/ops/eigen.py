"""Singular values and eigenvalues, with their vectors.

TensorFlow and LAPACK agree on what a decomposition is, not on signs and on the order of what is
free: the vectors of an eigendecomposition or an SVD may differ by a factor of modulus one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes, errors
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import LoweringContext, example, f32, kernel, lowering, restores
from jaxmeta.ops._matrices import COMPLEX, positive
from jaxmeta.ops._operands import avals_of, is_complex


def _adjoint(ctx: LoweringContext, x: Edge, rank: int) -> Edge:
    """Adds the nodes of the conjugate transpose of the last two axes."""
    perm = (*range(rank - 2), rank - 1, rank - 2)
    (x,) = ctx.node("Transpose", x, ctx.constant(perm, np.int32))
    return ctx.node("Conj", x)[0] if is_complex(x) else x


def _real(ctx: LoweringContext, x: Edge, dtype: Any) -> Edge:
    """Adds a Real where the node's output is complex for the sake of its type only."""
    return ctx.node("Real", x, Tout=dtype)[0] if is_complex(x) else x


def _bounds(subset_by_index: Any) -> tuple[int, int] | None:
    """Returns the first and the last plus one of the values that are wanted; None for all."""
    if subset_by_index is None:
        return None
    start, stop = subset_by_index
    return int(start), int(stop)


def _subset(ctx: LoweringContext, x: Edge, subset: tuple[int, int] | None, rank: int) -> Edge:
    """Adds a Slice of the last axis where only a subset of the values is wanted."""
    if subset is None:
        return x
    start, stop = subset
    begin = ctx.constant([*[0] * (rank - 1), start], np.int32)
    size = ctx.constant([*[-1] * (rank - 1), stop - start], np.int32)
    return ctx.node("Slice", x, begin, size)[0]


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
    subset = _bounds(subset_by_index)
    avals = ctx.out_avals

    def fill(body: LoweringContext, arguments: list[Edge]) -> list[Edge]:
        s, u, v = body.node(
            "Svd", arguments[0], compute_uv=bool(compute_uv), full_matrices=bool(full_matrices)
        )
        s = _subset(body, _real(body, s, avals[0].dtype), subset, len(avals[0].shape))
        if not compute_uv:
            return [s]
        rank = len(avals[2].shape)
        u, v = (_subset(body, vectors, subset, rank) for vectors in (u, v))
        return [s, u, _adjoint(body, v, rank)]

    return ctx.call(
        ctx.build_function("svd", avals_of([x]), fill),
        x,
        primitive="svd",
        full_matrices=bool(full_matrices),
        compute_uv=bool(compute_uv),
        subset=subset,
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
def restore_svd(
    x: Any,
    *,
    full_matrices: bool,
    compute_uv: bool,
    subset: tuple[int, int] | None = None,
    algorithm: bytes = b"",
) -> Any:
    result = lax.linalg.svd(
        x,
        full_matrices=full_matrices,
        compute_uv=compute_uv,
        subset_by_index=subset,
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
    COMPLEX,
    gradient=False,
    not_in_tensorflow="Svd has no kernel for complex matrices in XLA",
)
example(lambda x: lax.linalg.svd(x), f32(3, 3), not_in_tensorflow=_SIGNS)
example(lambda x: lax.linalg.svd(x)[1], f32(5, 3), tolerance=1e-4, gradient=False)
example(lambda x: jnp.linalg.svd(x, compute_uv=False), f32(2, 3, 5), tolerance=1e-4)
example(lambda x: jnp.linalg.pinv(x), f32(5, 3), tolerance=1e-3)
example(
    lambda x: lax.linalg.svd(x, full_matrices=False, subset_by_index=(0, 3))[1],
    f32(5, 3),
    tolerance=1e-4,
    gradient=False,
)

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
    subset = _bounds(subset_by_index)
    vectors, values = ctx.out_avals

    def fill(body: LoweringContext, arguments: list[Edge]) -> list[Edge]:
        (matrix,) = arguments
        # TensorFlow reads the lower triangle.
        matrix = matrix if lower else _adjoint(body, matrix, len(vectors.shape))
        e, v = body.node("SelfAdjointEigV2", matrix, compute_v=True)
        e = _real(body, e, values.dtype)
        return [
            _subset(body, v, subset, len(vectors.shape)),
            _subset(body, e, subset, len(values.shape)),
        ]

    return ctx.call(
        ctx.build_function("eigh", avals_of([x]), fill),
        x,
        primitive="eigh",
        lower=bool(lower),
        sort_eigenvalues=bool(sort_eigenvalues),
        subset=subset,
        algorithm=None if algorithm is None else algorithm.name,
    )


@restores("eigh")
def restore_eigh(
    x: Any,
    *,
    lower: bool,
    sort_eigenvalues: bool,
    subset: tuple[int, int] | None = None,
    algorithm: bytes = b"",
) -> Any:
    return lax.linalg.eigh(
        x,
        lower=lower,
        symmetrize_input=False,
        sort_eigenvalues=sort_eigenvalues,
        subset_by_index=subset,
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
    dtype = ctx.out_avals[0].dtype
    has_vectors = bool(compute_left_eigenvectors or compute_right_eigenvectors)

    def fill(body: LoweringContext, arguments: list[Edge]) -> Sequence[Edge]:
        values, vectors = body.node("Eig", *arguments, compute_v=has_vectors, Tout=dtype)
        left = [_left_vectors(body, vectors)] if compute_left_eigenvectors else []
        return [values, *left, *([vectors] if compute_right_eigenvectors else [])]

    return ctx.call(
        ctx.build_function("eig", avals_of([x]), fill),
        x,
        primitive="eig",
        compute_left_eigenvectors=bool(compute_left_eigenvectors),
        compute_right_eigenvectors=bool(compute_right_eigenvectors),
        enable_eigvec_derivs=bool(enable_eigvec_derivs),
        implementation=None if implementation is None else implementation.name,
    )


def _left_vectors(body: LoweringContext, right: Edge) -> Edge:
    """Adds the nodes of left eigenvectors: the inverse's adjoint, at length one."""
    (left,) = body.node("MatrixInverse", right, adjoint=True)
    real = np.float32 if right.number == dtypes.dtype_to_number(np.complex64) else np.float64
    (size,) = body.node("ComplexAbs", left, Tout=np.dtype(real))
    (square,) = body.node("Square", size)
    (total,) = body.node("Sum", square, body.constant([-2], np.int32), keep_dims=True)
    (length,) = body.node("Sqrt", total)
    (divisor,) = body.node("Cast", length, DstT=dtypes.dtype_from_number(right.number))
    return body.node("RealDiv", left, divisor)[0]


@restores("eig")
def restore_eig(
    x: Any,
    *,
    compute_left_eigenvectors: bool = False,
    compute_right_eigenvectors: bool,
    enable_eigvec_derivs: bool,
    implementation: bytes = b"",
) -> Any:
    return lax.linalg.eig(
        x,
        compute_left_eigenvectors=compute_left_eigenvectors,
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


example(
    lambda x: lax.linalg.eig(x, compute_left_eigenvectors=True),
    f32(4, 4),
    gradient=False,
    not_in_tensorflow="Eig has no kernel in XLA, and the order of eigenvalues differs",
)


def _recomposed_hermitian(x: jax.Array) -> Any:
    """Returns what does not depend on the signs of eigenvectors."""
    vectors, values = lax.linalg.eigh(positive(x))
    adjoint = jnp.conj(jnp.swapaxes(vectors, -1, -2))
    return values, (vectors * values[..., None, :]) @ adjoint


example(_recomposed_hermitian, f32(2, 4, 4), tolerance=1e-4)
example(_recomposed_hermitian, COMPLEX, tolerance=1e-4, gradient=False)
example(
    lambda x: lax.linalg.eigh(x, lower=False, symmetrize_input=False)[1],
    f32(4, 4),
    tolerance=1e-4,
    gradient=False,
)
example(lambda x: jnp.linalg.eigvalsh(x), f32(2, 4, 4), tolerance=1e-4)
example(
    lambda x: lax.linalg.eigh(x, subset_by_index=(0, 4))[1],
    f32(2, 4, 4),
    tolerance=1e-4,
    gradient=False,
)
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
