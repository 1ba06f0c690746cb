"""Rows of tables: gathers and scatters on variables, and indices that are made unique."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from jaxmeta import dtypes, errors, op_defs
from jaxmeta.ops._definition import kernel, on_host, run_kernel
from jaxmeta.ops._handles import Handle
from jaxmeta.ops._indexing import index_of, outside_where_negative
from jaxmeta.ops._operands import ints

# --- gathers and scatters on variables ---------------------------------------------------------


@kernel("ResourceGather")
def resource_gather(state: Any, resource: Handle, indices: Any, *, batch_dims: int) -> Any:
    table = jnp.asarray(state.read(resource.name))
    axis = np.asarray(batch_dims)
    return run_kernel("GatherV2", table, indices, axis, batch_dims=batch_dims)


@kernel("ResourceGatherNd")
def resource_gather_nd(state: Any, resource: Handle, indices: Any) -> Any:
    return run_kernel("GatherNd", state.read(resource.name), indices)


@kernel("VariableShape", gives_sizes=True)
def variable_shape(state: Any, input: Handle, *, out_type: int) -> Any:
    return np.asarray(np.shape(state.read(input.name)), dtypes.dtype_from_number(out_type))


_SCATTERS: Final = {
    "Update": "set",
    "Add": "add",
    "Sub": "subtract",
    "Mul": "multiply",
    "Div": "divide",
    "Max": "max",
    "Min": "min",
}


def _scatter(method: str, is_nd: bool, returns_reference: bool) -> Callable[..., Any]:
    """Returns the kernel that changes rows, or elements, of a variable.

    Indices outside change nothing, where TensorFlow's CPU kernels raise.
    """

    def run(state: Any, ref: Handle, indices: Any, updates: Any) -> Any:
        table = jnp.asarray(state.read(ref.name))
        if is_nd:
            index, place = index_of(outside_where_negative(indices)), updates
        else:
            index = outside_where_negative(indices)
            place = jnp.broadcast_to(updates, (*np.shape(indices), *table.shape[1:]))
        state.write(ref.name, getattr(table.at[index], method)(place, mode="drop"))
        return ref if returns_reference else ()

    return run


for _name, _method in _SCATTERS.items():
    for _op in (f"Scatter{_name}", f"ScatterNd{_name}"):
        for _prefix in ("", "Resource"):
            if op_defs.has_op(_prefix + _op):
                kernel(_prefix + _op)(_scatter(_method, "Nd" in _op, not _prefix))


# --- stitching and partitioning ----------------------------------------------------------------


def _stitch(inputs: Sequence[Any]) -> tuple[list[Any], list[Any], int, tuple[int, ...]]:
    """Returns flat indices, their rows, how many rows there will be, and a row's shape."""
    indices, data = inputs[: len(inputs) // 2], inputs[len(inputs) // 2 :]
    row = np.shape(data[0])[np.ndim(indices[0]) :]
    length = max((int(np.max(index)) + 1 for index in indices if index.size), default=0)
    if any(index.size and int(np.min(index)) < 0 for index in indices):
        raise errors.InvalidArgumentError("an index of a DynamicStitch is negative")
    flat = [np.ravel(index) for index in indices]
    return flat, list(data), length, tuple(row)


@kernel("DynamicStitch", "ParallelDynamicStitch", static=("indices",))
def dynamic_stitch(*indices_and_data: Any) -> Any:
    flat, data, length, row = _stitch(indices_and_data)
    merged = jnp.zeros((length, *row), data[0].dtype)
    for index, rows in zip(flat, data, strict=True):
        merged = merged.at[index].set(jnp.reshape(rows, (index.size, *row)))
    return merged


@on_host("DynamicStitch", makes_shapes=True)
def stitch_sizes(*indices_and_data: Any) -> Any:
    flat, data, length, row = _stitch(indices_and_data)
    merged = np.zeros((length, *row), np.result_type(*data))
    for index, rows in zip(flat, data, strict=True):
        merged[index] = np.reshape(rows, (index.size, *row))
    return merged


@kernel("DynamicPartition", is_host=True)
def dynamic_partition(data: Any, partitions: Any, *, num_partitions: int) -> list[Any]:
    rows = np.reshape(data, (partitions.size, *data.shape[partitions.ndim :]))
    flat = np.ravel(partitions)
    if flat.size and not (flat.min() >= 0 and flat.max() < num_partitions):
        raise errors.InvalidArgumentError(
            f"partitions must be in [0, {num_partitions}), "
            f"they are from {flat.min()} to {flat.max()}"
        )
    return [rows[flat == part] for part in range(num_partitions)]


# --- what is found in arrays: as many as there are, which is not known while tracing -------------


def _first_places(x: Any, axis: int | None = None) -> tuple[Any, Any, Any]:
    """Returns distinct elements in the order in which they come, their indices and counts."""
    _, first, inverse, counts = np.unique(
        x, return_index=True, return_inverse=True, return_counts=True, axis=axis
    )
    order = np.argsort(first, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    values = np.take(np.reshape(x, -1) if axis is None else x, first[order], axis=axis or 0)
    return values, rank[np.reshape(inverse, -1)], counts[order]


@kernel("Unique", is_host=True)
def unique(x: Any, *, out_idx: int) -> list[Any]:
    values, places, _ = _first_places(x)
    return [values, places.astype(dtypes.dtype_from_number(out_idx))]


@kernel("UniqueWithCounts", is_host=True)
def unique_with_counts(x: Any, *, out_idx: int) -> list[Any]:
    values, places, counts = _first_places(x)
    dtype = dtypes.dtype_from_number(out_idx)
    return [values, places.astype(dtype), counts.astype(dtype)]


@kernel("UniqueV2", is_host=True)
def unique_along_axis(x: Any, axis: Any, *, out_idx: int) -> list[Any]:
    values, places, _ = _first_places(x, *ints(axis))
    return [values, places.astype(dtypes.dtype_from_number(out_idx))]


@kernel("UniqueWithCountsV2", is_host=True)
def unique_with_counts_along_axis(x: Any, axis: Any, *, out_idx: int) -> list[Any]:
    values, places, counts = _first_places(x, *ints(axis))
    dtype = dtypes.dtype_from_number(out_idx)
    return [values, places.astype(dtype), counts.astype(dtype)]


@kernel("Where", is_host=True)
def where(input: Any) -> Any:
    return np.argwhere(input).astype(np.int64)


@kernel("ListDiff", is_host=True)
def list_diff(x: Any, y: Any, *, out_idx: int) -> list[Any]:
    places = np.flatnonzero(~np.isin(x, y))
    return [x[places], places.astype(dtypes.dtype_from_number(out_idx))]


@kernel("SparseToDense", static=("output_shape",))
def sparse_to_dense(
    sparse_indices: Any, output_shape: np.ndarray[Any, Any], sparse_values: Any, default_value: Any
) -> Any:
    shape = tuple(int(size) for size in output_shape)
    dense = jnp.full(shape, default_value)
    indices = jnp.asarray(sparse_indices)
    if indices.ndim < 2:
        indices = jnp.reshape(indices, (-1, 1))
    places = tuple(indices[:, axis] for axis in range(indices.shape[1]))
    return dense.at[places].set(sparse_values, mode="drop")
