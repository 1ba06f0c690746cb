"""Products, sums and reductions of sparse tensors with dense results, or of unchanged indices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.ops._definition import kernel
from jaxmeta.ops._operands import ints
from jaxmeta.ops._sparse import columns, flat_places

# --- with dense tensors ------------------------------------------------------------------------


@kernel("SparseTensorDenseMatMul", static=("a_shape",))
def sparse_tensor_dense_mat_mul(
    a_indices: Any, a_values: Any, a_shape: Any, b: Any, *, adjoint_a: bool, adjoint_b: bool
) -> Any:
    rows, inner = columns(jnp.asarray(a_indices))
    values, size = jnp.asarray(a_values), ints(a_shape)[0]
    if adjoint_a:
        rows, inner, values, size = inner, rows, jnp.conj(values), ints(a_shape)[1]
    if adjoint_b:
        b = jnp.conj(jnp.swapaxes(b, -1, -2))
    products = values[:, None] * jnp.take(b, inner, axis=0, mode="clip")
    return jnp.zeros((size, b.shape[1]), products.dtype).at[rows].add(products, mode="drop")


@kernel("SparseTensorDenseAdd")
def sparse_tensor_dense_add(a_indices: Any, a_values: Any, a_shape: Any, b: Any) -> Any:
    del a_shape  # the dense tensor has it
    return jnp.asarray(b).at[columns(jnp.asarray(a_indices))].add(a_values)


def _with_dense(operation: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """Returns the kernel of an operation at a sparse tensor's elements, the other one broadcast."""

    def run(sp_indices: Any, sp_values: Any, sp_shape: Any, dense: Any) -> Any:
        wide = jnp.broadcast_to(dense, ints(sp_shape))
        return operation(jnp.asarray(sp_values), wide[columns(jnp.asarray(sp_indices))])

    return run


kernel("SparseDenseCwiseMul", static=("sp_shape",))(_with_dense(jnp.multiply))
kernel("SparseDenseCwiseDiv", static=("sp_shape",))(_with_dense(jnp.divide))
kernel("SparseDenseCwiseAdd", static=("sp_shape",))(_with_dense(jnp.add))


@kernel("SparseMatMul")
def sparse_mat_mul(
    a: Any, b: Any, *, transpose_a: bool, transpose_b: bool, a_is_sparse: bool, b_is_sparse: bool
) -> Any:
    """Returns the product of two dense matrices, many of whose elements may be 0, in float32."""
    del a_is_sparse, b_is_sparse  # they say only how to compute it
    left, right = (jnp.asarray(x).astype(np.float32) for x in (a, b))
    return (left.T if transpose_a else left) @ (right.T if transpose_b else right)


# --- reductions and rows -----------------------------------------------------------------------


def _reduced(
    indices: Any, values: Any, shape: tuple[int, ...], axes: Any, keep_dims: bool, method: str
) -> Any:
    """Returns a dense reduction; what holds no element is 0."""
    rank = len(shape)
    reduced = {axis % rank for axis in ints(axes)} or set(range(rank))
    kept = [axis for axis in range(rank) if axis not in reduced]
    sizes = tuple(shape[axis] for axis in kept)
    places = tuple(jnp.asarray(indices)[:, axis] for axis in kept)
    values = jnp.asarray(values)
    flat = jnp.zeros(values.shape[0], np.int32)
    at = places or (flat,)
    held = sizes if places else (1,)
    if method == "max":
        lowest = -jnp.inf if values.dtype.kind == "f" else jnp.iinfo(values.dtype).min
        result = jnp.full(held, lowest, values.dtype).at[at].max(values)
        is_held = jnp.zeros(held, np.bool_).at[at].set(True)
        result = jnp.where(is_held, result, jnp.zeros((), values.dtype))
    else:
        result = jnp.zeros(held, values.dtype).at[at].add(values)
    kept_dims = tuple(1 if axis in reduced else shape[axis] for axis in range(rank))
    return jnp.reshape(result, kept_dims if keep_dims else sizes)


@kernel("SparseReduceSum", static=("input_shape", "reduction_axes"))
def sparse_reduce_sum(
    input_indices: Any,
    input_values: Any,
    input_shape: Any,
    reduction_axes: Any,
    *,
    keep_dims: bool,
) -> Any:
    shape = ints(input_shape)
    return _reduced(input_indices, input_values, shape, reduction_axes, keep_dims, "add")


@kernel("SparseReduceMax", static=("input_shape", "reduction_axes"))
def sparse_reduce_max(
    input_indices: Any,
    input_values: Any,
    input_shape: Any,
    reduction_axes: Any,
    *,
    keep_dims: bool,
) -> Any:
    shape = ints(input_shape)
    return _reduced(input_indices, input_values, shape, reduction_axes, keep_dims, "max")


@kernel("SparseSoftmax", static=("sp_shape",))
def sparse_softmax(sp_indices: Any, sp_values: Any, sp_shape: Any) -> Any:
    """Returns the softmax of each row's elements, as if the others were not there."""
    shape, values = ints(sp_shape)[:-1], jnp.asarray(sp_values)
    rows, count = flat_places(sp_indices[:, :-1], shape).astype(np.int32), math.prod(shape)
    highest = jnp.full(count, -jnp.inf, values.dtype).at[rows].max(values)
    weights = jnp.exp(values - jax.lax.stop_gradient(highest)[rows])
    return weights / jnp.zeros(count, values.dtype).at[rows].add(weights)[rows]


@kernel("SparseFillEmptyRowsGrad")
def sparse_fill_empty_rows_grad(reverse_index_map: Any, grad_values: Any) -> Any:
    grad = jnp.asarray(grad_values)
    is_kept = jnp.zeros(grad.shape[0], np.bool_).at[reverse_index_map].set(True)
    rest = jnp.where(is_kept, jnp.zeros((), grad.dtype), grad)
    return grad[reverse_index_map], jnp.sum(rest, dtype=grad.dtype)
