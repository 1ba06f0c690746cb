"""Ops that give sparse tensors: other shapes, orders, parts and unions of them.

Where the number of elements depends on values, they run on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmeta import errors
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._operands import ints
from jaxmeta.ops._sparse import flat_places, in_order, in_order_on_host, unflattened

# --- as many elements as before ----------------------------------------------------------------


@kernel("SparseReshape", static=("input_shape", "new_shape"))
def sparse_reshape(input_indices: Any, input_shape: Any, new_shape: Any) -> Any:
    shape, wanted = ints(input_shape), list(ints(new_shape))
    size = math.prod(shape)
    if -1 in wanted:
        known = math.prod(n for n in wanted if n != -1)
        wanted[wanted.index(-1)] = size // max(known, 1)
    if math.prod(wanted) != size:
        raise errors.InvalidArgumentError(
            f"a sparse tensor of shape {list(shape)} cannot be reshaped to {list(ints(new_shape))}"
        )
    places = flat_places(input_indices, shape)
    return unflattened(places, wanted, input_indices.dtype), np.asarray(wanted, np.int64)


@kernel("SparseReorder")
def sparse_reorder(input_indices: Any, input_values: Any, input_shape: Any) -> Any:
    del input_shape  # the order is that of the indices
    order = in_order(input_indices)
    return jnp.asarray(input_indices)[order], jnp.asarray(input_values)[order]


@kernel("SparseConcat", static=("shapes",))
def sparse_concat(*indices_values_and_shapes: Any, concat_dim: int) -> Any:
    count = len(indices_values_and_shapes) // 3
    parts = [indices_values_and_shapes[i * count : (i + 1) * count] for i in range(3)]
    axis, start, moved = concat_dim % len(parts[2][0]), 0, []
    for indices, shape in zip(parts[0], parts[2], strict=True):
        moved.append(jnp.asarray(indices).at[:, axis].add(start))
        start += int(shape[axis])
    indices, values = jnp.concatenate(moved), jnp.concatenate(parts[1])
    shape = np.asarray(parts[2][0], np.int64).copy()
    shape[axis] = start
    order = in_order(indices)
    return indices[order], values[order], shape


# --- as many elements as values say ------------------------------------------------------------


@kernel("SparseFillEmptyRows", is_host=True)
def sparse_fill_empty_rows(
    indices: Any, values: Any, dense_shape: Any, default_value: Any
) -> list[Any]:
    """Returns a sparse tensor with an element in each row, which rows had none, and new places."""
    rows = np.arange(int(dense_shape[0]))
    is_empty = ~np.isin(rows, indices[:, 0])
    added = np.zeros((int(is_empty.sum()), indices.shape[1]), indices.dtype)
    added[:, 0] = rows[is_empty]
    filled = np.full(len(added), default_value, values.dtype)
    everything = np.concatenate([indices, added])
    order = np.argsort(everything[:, 0], kind="stable")
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return [
        everything[order],
        np.concatenate([values, filled])[order],
        is_empty,
        places[: len(indices)],
    ]


@kernel("SparseSlice", is_host=True)
def sparse_slice(indices: Any, values: Any, shape: Any, start: Any, size: Any) -> list[Any]:
    end = np.minimum(start + size, shape)
    is_inside = np.all((indices >= start) & (indices < end), axis=1)
    return [indices[is_inside] - start, values[is_inside], np.maximum(end - start, 0)]


@kernel("SparseSliceGrad", is_host=True)
def sparse_slice_grad(
    backprop_val_grad: Any, input_indices: Any, input_start: Any, output_indices: Any
) -> Any:
    gradients = dict(zip(map(tuple, output_indices + input_start), backprop_val_grad, strict=True))
    zero = np.zeros((), backprop_val_grad.dtype)
    found = [gradients.get(tuple(index), zero) for index in input_indices]
    return np.asarray(found, backprop_val_grad.dtype)


@kernel("SparseSplit", is_host=True)
def sparse_split(
    split_dim: Any, indices: Any, values: Any, shape: Any, *, num_split: int
) -> list[Any]:
    """Returns parts, the first of which are longer by one where the size is no multiple."""
    axis = int(split_dim) % len(shape)
    short, rest = divmod(int(shape[axis]), num_split)
    ends = np.cumsum([short + (part < rest) for part in range(num_split)])
    parts: list[list[Any]] = [[], [], []]
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        is_inside = (indices[:, axis] >= start) & (indices[:, axis] < end)
        moved, size = indices[is_inside].copy(), shape.copy()
        moved[:, axis] -= start
        size[axis] = end - start
        for part, value in zip(parts, (moved, values[is_inside], size), strict=True):
            part.append(value)
    return [value for part in parts for value in part]


@kernel("SparseReduceSumSparse", is_host=True)
def sparse_reduce_sum_sparse(
    input_indices: Any,
    input_values: Any,
    input_shape: Any,
    reduction_axes: Any,
    *,
    keep_dims: bool,
) -> list[Any]:
    inputs = (input_indices, input_values, input_shape)
    return _reduced_sparse(*inputs, ints(reduction_axes), keep_dims, np.add)


@kernel("SparseReduceMaxSparse", is_host=True)
def sparse_reduce_max_sparse(
    input_indices: Any,
    input_values: Any,
    input_shape: Any,
    reduction_axes: Any,
    *,
    keep_dims: bool,
) -> list[Any]:
    inputs = (input_indices, input_values, input_shape)
    return _reduced_sparse(*inputs, ints(reduction_axes), keep_dims, np.maximum)


def _reduced_sparse(
    indices: Any,
    values: Any,
    shape: Any,
    axes: tuple[int, ...],
    keep_dims: bool,
    reduction: np.ufunc,
) -> list[Any]:
    rank = len(shape)
    reduced = {axis % rank for axis in axes} or set(range(rank))
    kept = [axis for axis in range(rank) if axis not in reduced]
    left = np.where(np.isin(np.arange(rank), kept), indices, 0) if keep_dims else indices[:, kept]
    size = np.where(np.isin(np.arange(rank), kept), shape, 1) if keep_dims else shape[kept]
    return [*_combined(left, values, reduction), size.astype(np.int64)]


def _combined(indices: Any, values: Any, reduction: np.ufunc) -> list[Any]:
    """Returns each index once, in order, with what its values reduce to."""
    if not len(indices):
        return [indices, values]
    order = in_order_on_host(indices) if indices.shape[1] else np.arange(len(indices))
    indices, values = indices[order], values[order]
    is_first = np.concatenate([[True], np.any(indices[1:] != indices[:-1], axis=1)])
    starts = np.flatnonzero(is_first)
    return [indices[starts], reduction.reduceat(values, starts).astype(values.dtype)]


# --- unions ------------------------------------------------------------------------------------


@kernel("SparseAdd", is_host=True)
def sparse_add(
    a_indices: Any,
    a_values: Any,
    a_shape: Any,
    b_indices: Any,
    b_values: Any,
    b_shape: Any,
    thresh: Any,
) -> list[Any]:
    """Returns a sum, without the sums of two elements whose magnitude is less than ``thresh``."""
    _check_same_shape("SparseAdd", a_shape, b_shape)
    indices = np.concatenate([a_indices, b_indices])
    found, total = _combined(indices, np.concatenate([a_values, b_values]), np.add)
    _, count = _combined(indices, np.ones(len(indices), np.int64), np.add)
    is_kept = (count == 1) | (np.abs(total) >= thresh)
    return [found[is_kept], total[is_kept], a_shape]


@kernel("SparseAddGrad", is_host=True)
def sparse_add_grad(
    backprop_val_grad: Any, a_indices: Any, b_indices: Any, sum_indices: Any
) -> list[Any]:
    gradients = dict(zip(map(tuple, sum_indices), backprop_val_grad, strict=True))
    zero = np.zeros((), backprop_val_grad.dtype)
    return [
        np.asarray([gradients.get(tuple(i), zero) for i in indices], backprop_val_grad.dtype)
        for indices in (a_indices, b_indices)
    ]


def _union(op: str, reduction: np.ufunc) -> Callable[..., list[Any]]:
    """Returns the kernel of an operation on two sparse tensors, whose missing elements are 0."""

    def run(
        a_indices: Any, a_values: Any, a_shape: Any, b_indices: Any, b_values: Any, b_shape: Any
    ) -> list[Any]:
        _check_same_shape(op, a_shape, b_shape)
        indices = np.concatenate([a_indices, b_indices, a_indices, b_indices])
        zeros = [np.zeros_like(a_values), np.zeros_like(b_values)]
        held = {tuple(i) for i in a_indices} & {tuple(i) for i in b_indices}
        values = np.concatenate([a_values, b_values, *zeros])
        is_alone = np.asarray([tuple(i) not in held for i in indices], np.bool_)
        is_taken = is_alone | (np.arange(len(indices)) < len(a_indices) + len(b_indices))
        return _combined(indices[is_taken], values[is_taken], reduction)

    return run


kernel("SparseSparseMaximum", is_host=True)(_union("SparseSparseMaximum", np.maximum))
kernel("SparseSparseMinimum", is_host=True)(_union("SparseSparseMinimum", np.minimum))


def _check_same_shape(op: str, a_shape: Any, b_shape: Any) -> None:
    if not np.array_equal(a_shape, b_shape):
        raise errors.InvalidArgumentError(
            f"{op}: operands' shapes do not match: {a_shape.tolist()} and {b_shape.tolist()}"
        )
