"""Rows of tables: gathers and scatters on variables, segments, and indices that are made unique."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from jaxmeta import dtypes, errors, op_defs
from jaxmeta.ops._definition import kernel, on_host, run_kernel
from jaxmeta.ops._handles import Handle
from jaxmeta.ops._indexing import index_of
from jaxmeta.ops._operands import scalar

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
            index, place = index_of(_outside_where_negative(indices)), updates
        else:
            index = _outside_where_negative(indices)
            place = jnp.broadcast_to(updates, (*np.shape(indices), *table.shape[1:]))
        state.write(ref.name, getattr(table.at[index], method)(place, mode="drop"))
        return ref if returns_reference else ()

    return run


def _outside_where_negative(indices: Any) -> Any:
    """Returns indices of which negative ones lie beyond the end, rather than count from it."""
    return jnp.where(indices < 0, np.iinfo(indices.dtype).max, indices)


for _name, _method in _SCATTERS.items():
    for _op in (f"Scatter{_name}", f"ScatterNd{_name}"):
        for _prefix in ("", "Resource"):
            if op_defs.has_op(_prefix + _op):
                kernel(_prefix + _op)(_scatter(_method, "Nd" in _op, not _prefix))


# --- segments ----------------------------------------------------------------------------------


def _reduce_segments(
    data: Any, segment_ids: Any, num_segments: Any, method: str, start: Any
) -> Any:
    data, ids = jnp.asarray(data), jnp.ravel(segment_ids)
    rest = data.shape[np.ndim(segment_ids) :]
    result = jnp.full((num_segments, *rest), start, data.dtype)
    rows = jnp.reshape(data, (ids.size, *rest))
    return getattr(result.at[_outside_where_negative(ids)], method)(rows, mode="drop")


def _lowest(dtype: Any) -> Any:
    return np.iinfo(dtype).min if dtype.kind in "iu" else jnp.finfo(dtype).min


def _highest(dtype: Any) -> Any:
    return np.iinfo(dtype).max if dtype.kind in "iu" else jnp.finfo(dtype).max


_REDUCTIONS: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "Sum": ("add", lambda dtype: 0),
    "Prod": ("multiply", lambda dtype: 1),
    "Max": ("max", _lowest),
    "Min": ("min", _highest),
}


def _unsorted_segments(method: str, start: Callable[[Any], Any]) -> Callable[..., Any]:
    def run(data: Any, segment_ids: Any, num_segments: Any) -> Any:
        return _reduce_segments(data, segment_ids, scalar(num_segments), method, start(data.dtype))

    return run


def _sorted_segments(method: str, start: Callable[[Any], Any]) -> Callable[..., Any]:
    """Returns the kernel of a reduction whose number of segments is said by the last id."""

    def run(data: Any, segment_ids: Any) -> Any:
        count = int(segment_ids[-1]) + 1 if segment_ids.size else 0
        result = _reduce_segments(data, segment_ids, count, method, start(data.dtype))
        is_empty = np.bincount(segment_ids, minlength=count)[:count] == 0
        if not is_empty.any():
            return result
        neutral = np.asarray(1 if method == "multiply" else 0, data.dtype)
        return jnp.where(jnp.reshape(is_empty, (-1,) + (1,) * (data.ndim - 1)), neutral, result)

    return run


for _name, (_method, _start) in _REDUCTIONS.items():
    kernel(f"UnsortedSegment{_name}", static=("num_segments",))(_unsorted_segments(_method, _start))
    kernel(f"Segment{_name}", static=("segment_ids",))(_sorted_segments(_method, _start))


def _counts(segment_ids: np.ndarray[Any, Any], rank: int) -> Any:
    counts = np.maximum(np.bincount(segment_ids), 1) if segment_ids.size else np.zeros(0)
    return np.reshape(counts, (-1,) + (1,) * (rank - 1))


@kernel("SegmentMean", static=("segment_ids",))
def segment_mean(data: Any, segment_ids: np.ndarray[Any, Any]) -> Any:
    total = _sorted_segments("add", lambda dtype: 0)(data, segment_ids)
    return total / _counts(segment_ids, data.ndim).astype(data.dtype)


@kernel("SparseSegmentSum", static=("segment_ids",))
def sparse_segment_sum(data: Any, indices: Any, segment_ids: np.ndarray[Any, Any]) -> Any:
    rows = jnp.take(data, indices, axis=0, mode="clip")
    return _sorted_segments("add", lambda dtype: 0)(rows, segment_ids)


@kernel("SparseSegmentMean", static=("segment_ids",))
def sparse_segment_mean(data: Any, indices: Any, segment_ids: np.ndarray[Any, Any]) -> Any:
    return segment_mean(jnp.take(data, indices, axis=0, mode="clip"), segment_ids)


@kernel("SparseSegmentSqrtN", static=("segment_ids",))
def sparse_segment_sqrt_n(data: Any, indices: Any, segment_ids: np.ndarray[Any, Any]) -> Any:
    total = sparse_segment_sum(data, indices, segment_ids)
    return total / np.sqrt(_counts(segment_ids, data.ndim)).astype(data.dtype)


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


def _first_places(x: Any) -> tuple[Any, Any, Any]:
    """Returns distinct elements in the order in which they come, their indices and counts."""
    values, first, inverse, counts = np.unique(
        x, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.argsort(first, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    return values[order], rank[np.reshape(inverse, -1)], counts[order]


@kernel("Unique", is_host=True)
def unique(x: Any, *, out_idx: int) -> list[Any]:
    values, places, _ = _first_places(x)
    return [values, places.astype(dtypes.dtype_from_number(out_idx))]


@kernel("UniqueWithCounts", is_host=True)
def unique_with_counts(x: Any, *, out_idx: int) -> list[Any]:
    values, places, counts = _first_places(x)
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
