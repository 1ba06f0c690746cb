"""Contractions of arrays of few bits that have a scale for each block of elements."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import LoweringContext, example, f32, lowering, restores
from jaxmeta.ops._operands import ints
from jaxmeta.ops._scales import values_of
from jaxmeta.tracing import binding


@lowering("scaled_dot")
def lower_scaled_dot(
    ctx: LoweringContext,
    lhs: Edge,
    rhs: Edge,
    lhs_scale: Edge,
    rhs_scale: Edge,
    *,
    dimension_numbers: Any,
    preferred_element_type: Any,
) -> list[Edge]:
    (contract, batch) = dimension_numbers
    axes = ints(contract[0]), ints(contract[1]), ints(batch[0]), ints(batch[1])
    are_bits = _are_bits(ctx)

    def contract_scaled(x: Any, y: Any, x_scale: Any, y_scale: Any) -> Any:
        left, right = (
            array.astype(jnp.bfloat16) * _spread(scale, array.shape, is_bits)
            for array, scale, is_bits in zip((x, y), (x_scale, y_scale), are_bits, strict=True)
        )
        numbers = (axes[:2], axes[2:])
        return lax.dot_general(left, right, numbers, preferred_element_type=preferred_element_type)

    names = ("lhs_contracting", "rhs_contracting", "lhs_batch", "rhs_batch")
    return ctx.composite(
        "scaled_dot",
        contract_scaled,
        lhs,
        rhs,
        lhs_scale,
        rhs_scale,
        **{name: places or None for name, places in zip(names, axes, strict=True)},
        preferred_element_type=np.dtype(preferred_element_type),
    )


def _are_bits(ctx: LoweringContext) -> list[bool]:
    """Returns for each of the two scales whether it is of the type that TensorFlow lacks."""
    return [dtypes.is_scale(atom.aval.dtype) for atom in ctx.eqn.invars[2:]]


def _spread(scale: jax.Array, shape: tuple[int, ...], is_bits: bool) -> jax.Array:
    """Returns one scale for each element of an array of a shape."""
    dtype = jnp.bfloat16
    values = values_of(scale, dtype) if is_bits else scale.astype(dtype)
    for axis, size in enumerate(shape):
        if values.shape[axis] != size:
            values = jnp.repeat(values, size // values.shape[axis], axis=axis)
    return values


@restores("scaled_dot")
def restore_scaled_dot(
    lhs: Any,
    rhs: Any,
    lhs_scale: Any,
    rhs_scale: Any,
    *,
    lhs_contracting: tuple[int, ...] = (),
    rhs_contracting: tuple[int, ...] = (),
    lhs_batch: tuple[int, ...] = (),
    rhs_batch: tuple[int, ...] = (),
    preferred_element_type: int,
) -> Any:
    return lax.scaled_dot(
        lhs,
        rhs,
        lhs_scale=lhs_scale,
        rhs_scale=rhs_scale,
        dimension_numbers=((lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch)),
        preferred_element_type=dtypes.dtype_from_number(preferred_element_type),
    )


_TINY = jnp.float8_e4m3fn

example(lambda x, y: lax.scaled_dot(x, y), f32(4, 8), f32(8, 3), tolerance=2e-2, gradient=False)
example(
    lambda x, y: lax.scaled_dot(
        x.astype(_TINY),
        y.astype(_TINY),
        lhs_scale=jnp.abs(x[..., ::4]).astype(jnp.float8_e8m0fnu),
        rhs_scale=jnp.exp2(jnp.round(y[:, ::4])).astype(jnp.float8_e8m0fnu),
        preferred_element_type=np.float32,
    ),
    f32(2, 4, 8),
    f32(2, 8, 3),
    tolerance=2e-2,
    gradient=False,
)
example(
    lambda x, y: lax.scaled_dot(
        x,
        y,
        lhs_scale=jnp.abs(x[::2]).astype(jnp.bfloat16),
        dimension_numbers=(((0,), (0,)), ((), ())),
    ),
    f32(4, 3),
    f32(4, 5),
    tolerance=2e-2,
    gradient=False,
)

# --- jax.nn.scaled_matmul ----------------------------------------------------------------------


@lowering("scaled_matmul_wrapper")
def lower_scaled_matmul(
    ctx: LoweringContext,
    lhs: Edge,
    rhs: Edge,
    lhs_scales: Edge,
    rhs_scales: Edge,
    *,
    preferred_element_type: Any,
) -> list[Edge]:
    """JAX runs it on GPUs only; the function that it becomes runs everywhere in TensorFlow."""
    are_bits = _are_bits(ctx)

    def multiply(x: Any, y: Any, x_scales: Any, y_scales: Any) -> Any:
        x, y = (
            (array.astype(np.float32) * _spread(scale, array.shape, is_bits))
            for array, scale, is_bits in zip((x, y), (x_scales, y_scales), are_bits, strict=True)
        )
        numbers = (((2,), (2,)), ((0,), (0,)))
        return lax.dot_general(x, y, numbers, preferred_element_type=preferred_element_type)

    return ctx.composite(
        "scaled_matmul_wrapper",
        multiply,
        lhs,
        rhs,
        lhs_scales,
        rhs_scales,
        preferred_element_type=np.dtype(preferred_element_type),
    )


@restores("scaled_matmul_wrapper")
def restore_scaled_matmul(
    lhs: Any, rhs: Any, lhs_scales: Any, rhs_scales: Any, *, preferred_element_type: int
) -> Any:
    # The public function would jit it once more.
    operand = jax.ShapeDtypeStruct((1, 2, 32), jnp.float8_e4m3fn)
    scales = jax.ShapeDtypeStruct((1, 2, 1), jnp.float8_e4m3fn)
    primitive = binding.primitive_within(
        jax.nn.scaled_matmul, "scaled_matmul_wrapper", operand, operand, scales, scales
    )
    return primitive.bind(
        lhs,
        rhs,
        lhs_scales,
        rhs_scales,
        preferred_element_type=dtypes.dtype_from_number(preferred_element_type),
    )
