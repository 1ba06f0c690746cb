"""Sparse tensors as TensorFlow has them: indices, values and a shape; on the host.

How many values an op gives depends on the values that it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmeta import errors
from jaxmeta.ops._definition import kernel


@kernel("Bucketize")
def bucketize(input: Any, *, boundaries: Sequence[float]) -> Any:
    edges = jnp.asarray(np.asarray(boundaries, np.float32))
    return jnp.searchsorted(edges, input, side="right").astype(np.int32)


@kernel("SparseReshape", is_host=True)
def sparse_reshape(input_indices: Any, input_shape: Any, new_shape: Any) -> list[Any]:
    old, new = np.asarray(input_shape).tolist(), np.asarray(new_shape).tolist()
    size = int(np.prod(old, dtype=object)) if old else 1
    rest = int(np.prod([length for length in new if length != -1], dtype=object) or 0)
    if -1 in new:
        new[new.index(-1)] = size // rest if rest else 0
    if new.count(-1) or int(np.prod(new, dtype=object)) != size:
        raise errors.InvalidArgumentError(
            f"Input to reshape is a tensor with {size} dense values, but the requested shape has "
            f"{list(np.asarray(new_shape))}"
        )
    flat = np.zeros(len(input_indices), np.int64)
    for axis, length in enumerate(old):
        flat = flat * length + input_indices[:, axis]
    columns = []
    for length in reversed(new):
        columns.append(flat % max(length, 1))
        flat = flat // max(length, 1)
    indices = np.stack(columns[::-1], -1) if columns else np.zeros((len(flat), 0))
    return [indices.astype(np.int64), np.array(new, np.int64)]


@kernel("SparseFillEmptyRows", is_host=True)
def sparse_fill_empty_rows(
    indices: Any, values: Any, dense_shape: Any, default_value: Any
) -> list[Any]:
    count = int(dense_shape[0])
    rows = indices[:, 0]
    if rows.size and not (rows.min() >= 0 and rows.max() < count):
        raise errors.InvalidArgumentError(f"a row of {rows.tolist()} is not in [0, {count})")
    is_empty = np.bincount(rows, minlength=count) == 0
    filled = np.flatnonzero(is_empty)
    added = np.zeros((len(filled), indices.shape[1]), np.int64)
    added[:, 0] = filled
    all_indices = np.concatenate([indices, added])
    new_values = np.empty(len(filled), values.dtype)
    new_values[:] = np.asarray(default_value).item()
    order = np.argsort(all_indices[:, 0], kind="stable")
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return [
        all_indices[order],
        np.concatenate([values, new_values])[order],
        is_empty,
        places[: len(rows)],
    ]


@kernel("SparseFillEmptyRowsGrad", is_host=True)
def sparse_fill_empty_rows_grad(reverse_index_map: Any, grad_values: Any) -> list[Any]:
    is_default = np.ones(len(grad_values), np.bool_)
    is_default[reverse_index_map] = False
    rest = grad_values[is_default].sum(dtype=grad_values.dtype)
    return [grad_values[reverse_index_map], np.asarray(rest, grad_values.dtype)]


@kernel("SparseReorder", is_host=True)
def sparse_reorder(input_indices: Any, input_values: Any, input_shape: Any) -> list[Any]:
    del input_shape
    order = np.lexsort(input_indices.T[::-1])
    return [input_indices[order], input_values[order]]


@kernel("SparseSlice", is_host=True)
def sparse_slice(indices: Any, values: Any, shape: Any, start: Any, size: Any) -> list[Any]:
    kept = np.all((indices >= start) & (indices < start + size), axis=1)
    ends = np.minimum(np.asarray(shape), np.asarray(start) + size)
    return [indices[kept] - start, values[kept], np.maximum(ends - start, 0).astype(np.int64)]


@kernel("SparseConcat", is_host=True)
def sparse_concat(*parts: Any, concat_dim: int, N: int) -> list[Any]:
    indices, values, shapes = (list(parts[N * i : N * i + N]) for i in range(3))
    axis = concat_dim % len(shapes[0])
    others = [np.delete(shape, axis).tolist() for shape in shapes]
    if any(other != others[0] for other in others):
        raise errors.InvalidArgumentError(
            f"Concat shapes do not match but for axis {axis}: {[list(x) for x in shapes]}"
        )
    moved, offset = [], 0
    for part, shape in zip(indices, shapes, strict=True):
        shifted = np.array(part)
        shifted[:, axis] += offset
        moved.append(shifted)
        offset += int(shape[axis])
    whole = np.array(shapes[0])
    whole[axis] = offset
    all_indices, all_values = np.concatenate(moved), np.concatenate(values)
    return [*sparse_reorder(all_indices, all_values, whole), whole]
