"""Contractions: matrix products, batched or not, the general one, and of a matrix with itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes, xla_attrs
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import (
    LoweringContext,
    Spec,
    example,
    f32,
    i32,
    kernel,
    lowering,
    restores,
)
from jaxmeta.ops._matrices import broadcast_batches
from jaxmeta.ops._operands import is_complex
from jaxmeta.tracing import meshes

# Which of MatMul's flags say a contraction of two matrices, by the contracted axes.
_MATMUL_FLAGS = {
    (1, 0): (False, False),
    (0, 0): (True, False),
    (1, 1): (False, True),
    (0, 1): (True, True),
}


@lowering("dot_general")
def lower_dot_general(
    ctx: LoweringContext,
    lhs: Edge,
    rhs: Edge,
    *,
    dimension_numbers: Any,
    precision: Any,
    preferred_element_type: Any,
    out_sharding: Any,
) -> list[Edge]:
    if not meshes.is_trivial_sharding(out_sharding):
        raise ctx.unsupported("an out_sharding on dot_general cannot be expressed")
    numbers = _plain(dimension_numbers)
    preferred = preferred_element_type is not None
    out_number = dtypes.dtype_to_number(ctx.out_avals[0].dtype)
    if lhs.number == rhs.number == out_number:
        attrs: dict[str, Any] = {}
        if names := xla_attrs.precision_to_names(precision):
            attrs["_jax_precision"] = names
        flags = _matmul_flags(lhs, rhs, numbers)
        if flags is not None:
            return ctx.node("MatMul", lhs, rhs, transpose_a=flags[0], transpose_b=flags[1], **attrs)
        flags = _batch_matmul_flags(lhs, rhs, numbers)
        if flags is not None:
            return ctx.node("BatchMatMulV2", lhs, rhs, adj_x=flags[0], adj_y=flags[1], **attrs)
    return ctx.node(
        "XlaDotV2",
        lhs,
        rhs,
        dimension_numbers=xla_attrs.dot_to_bytes(numbers),
        precision_config=xla_attrs.precision_to_bytes(precision),
        preferred_element_type=ctx.out_avals[0].dtype,
        _jax_is_preferred=preferred,
    )


def _plain(numbers: Any) -> xla_attrs.DotDimensions:
    """Returns dimension numbers as plain ints, which may have been numpy's."""
    (lc, rc), (lb, rb) = numbers
    plain = [tuple(int(axis) for axis in axes) for axes in (lc, rc, lb, rb)]
    return (plain[0], plain[1]), (plain[2], plain[3])


def _matmul_flags(
    lhs: Edge, rhs: Edge, numbers: xla_attrs.DotDimensions
) -> tuple[bool, bool] | None:
    """Returns MatMul's flags where it says the contraction, else None."""
    (lhs_contract, rhs_contract), (lhs_batch, _) = numbers
    assert lhs.shape is not None
    assert rhs.shape is not None
    if len(lhs.shape) != 2 or len(rhs.shape) != 2 or len(lhs_contract) != 1 or lhs_batch:
        return None
    return _MATMUL_FLAGS[lhs_contract[0], rhs_contract[0]]


def _batch_matmul_flags(
    lhs: Edge, rhs: Edge, numbers: xla_attrs.DotDimensions
) -> tuple[bool, bool] | None:
    """Returns BatchMatMulV2's flags where it says the contraction, else None.

    It conjugates as it transposes, so that complex operands are left to XlaDotV2.
    """
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = numbers
    assert lhs.shape is not None
    assert rhs.shape is not None
    batch_rank = len(lhs_batch)
    leading = tuple(range(batch_rank))
    if (
        not batch_rank
        or len(lhs_contract) != 1
        or len(lhs.shape) != batch_rank + 2
        or len(rhs.shape) != batch_rank + 2
        or lhs_batch != leading
        or rhs_batch != leading
        or is_complex(lhs)
    ):
        return None
    return _MATMUL_FLAGS[lhs_contract[0] - batch_rank, rhs_contract[0] - batch_rank]


@kernel("MatMul")
def matmul(
    a: Any,
    b: Any,
    *,
    transpose_a: bool,
    transpose_b: bool,
    _jax_precision: tuple[bytes, ...] = (),
) -> Any:
    return lax.dot_general(
        a,
        b,
        (((0,) if transpose_a else (1,), (1,) if transpose_b else (0,)), ((), ())),
        precision=xla_attrs.precision_from_names(_jax_precision),
    )


def _dtype_or_none(number: int) -> np.dtype[Any] | None:
    return dtypes.dtype_from_number(number) if number else None


@kernel("BatchMatMul", "BatchMatMulV2")
def batch_matmul(
    x: Any,
    y: Any,
    *,
    adj_x: bool,
    adj_y: bool,
    _jax_precision: tuple[bytes, ...] = (),
) -> Any:
    x, y = broadcast_batches(x, y)
    x = lax.conj(x) if adj_x and jnp.iscomplexobj(x) else x
    y = lax.conj(y) if adj_y and jnp.iscomplexobj(y) else y
    rank = x.ndim
    batch_axes = tuple(range(rank - 2))
    contract = ((rank - 2 if adj_x else rank - 1,), (rank - 1 if adj_y else rank - 2,))
    return lax.dot_general(
        x,
        y,
        (contract, (batch_axes, batch_axes)),
        precision=xla_attrs.precision_from_names(_jax_precision),
    )


@kernel("XlaDotV2")
def xla_dot_v2(
    lhs: Any,
    rhs: Any,
    *,
    dimension_numbers: bytes,
    precision_config: bytes,
    preferred_element_type: int,
    _jax_is_preferred: bool = True,
) -> Any:
    return lax.dot_general(
        lhs,
        rhs,
        xla_attrs.dot_from_bytes(dimension_numbers),
        precision=xla_attrs.precision_from_bytes(precision_config),
        preferred_element_type=_dtype_or_none(preferred_element_type if _jax_is_preferred else 0),
    )


@kernel("XlaDot")
def xla_dot(lhs: Any, rhs: Any, *, dimension_numbers: bytes, precision_config: bytes) -> Any:
    return lax.dot_general(
        lhs,
        rhs,
        xla_attrs.dot_from_bytes(dimension_numbers),
        precision=xla_attrs.precision_from_bytes(precision_config),
    )


example(lambda a, b: a @ b, f32(3, 4), f32(4, 2), tolerance=1e-4)
example(lambda a, b: lax.dot_general(a, b, (((0,), (1,)), ((), ()))), f32(4, 3), f32(2, 4))
example(lambda a, b: a @ b, f32(5, 3, 4), f32(5, 4, 2), tolerance=1e-4)
example(lambda a, b: jnp.einsum("bij,kj->bik", a, b), f32(5, 3, 4), f32(2, 4), tolerance=1e-4)
example(lambda a, b: jnp.einsum("bijh,bhkj->bhik", a, b), f32(2, 3, 4, 5), f32(2, 5, 2, 4))
example(
    lambda a, b: lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=np.float32),
    Spec((3, 4), jnp.bfloat16),
    Spec((4, 2), jnp.bfloat16),
    gradient=False,
)
example(lambda a, b: lax.dot(a, b, precision=lax.Precision.HIGHEST), f32(3, 4), f32(4, 2))
example(lambda a, b: a @ b, i32(3, 4), i32(4, 2))


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
