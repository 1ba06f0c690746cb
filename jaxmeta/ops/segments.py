"""Reductions over rows of equal ids, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from jaxmeta.ops._definition import kernel
from jaxmeta.ops._indexing import outside_where_negative

# --- of dense rows -------------------------------------------------------------------------------


def _reduce_segments(
    data: Any, segment_ids: Any, num_segments: int, method: str, start: Any
) -> Any:
    data, ids = jnp.asarray(data), jnp.ravel(segment_ids)
    rest = data.shape[np.ndim(segment_ids) :]
    result = jnp.full((num_segments, *rest), start, data.dtype)
    rows = jnp.reshape(data, (ids.size, *rest))
    return getattr(result.at[outside_where_negative(ids)], method)(rows, mode="drop")


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
        return _reduce_segments(data, segment_ids, int(num_segments), method, start(data.dtype))

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
    kernel(f"Segment{_name}V2", static=("num_segments",))(_unsorted_segments(_method, _start))
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


# --- of rows of tables --------------------------------------------------------------------------


def _weights(segment_ids: Any, num_segments: int, kind: str, dtype: Any) -> Any:
    """Returns for each segment by what the sum of its rows is divided."""
    ids = outside_where_negative(jnp.asarray(segment_ids))
    counts = jnp.maximum(jnp.zeros(num_segments, np.int32).at[ids].add(1, mode="drop"), 1)
    return (jnp.sqrt(counts.astype(np.float32)) if kind == "SqrtN" else counts).astype(dtype)


def _of_tables(kind: str) -> Callable[..., Any]:
    def run(data: Any, indices: Any, segment_ids: Any, num_segments: Any) -> Any:
        count, data = int(num_segments), jnp.asarray(data)
        rows = jnp.take(data, indices, axis=0, mode="clip")
        total = _reduce_segments(rows, segment_ids, count, "add", 0)
        if kind == "Sum":
            return total
        weights = _weights(segment_ids, count, kind, data.dtype)
        return total / jnp.reshape(weights, (-1,) + (1,) * (data.ndim - 1))

    return run


def _gradient_by_rows(grad: Any, segment_ids: Any, kind: str) -> Any:
    """Returns what each row that was taken from the table gets of the segments' gradient."""
    grad = jnp.asarray(grad)
    rows = jnp.take(grad, segment_ids, axis=0, mode="clip")
    if kind == "Sum":
        return rows
    weights = _weights(segment_ids, grad.shape[0], kind, grad.dtype)[segment_ids]
    return rows / jnp.reshape(weights, (-1,) + (1,) * (grad.ndim - 1))


def _gradient_of_tables(kind: str) -> Callable[..., Any]:
    def run(grad: Any, indices: Any, segment_ids: Any, output_dim0: Any) -> Any:
        rows = _gradient_by_rows(grad, segment_ids, kind)
        table = jnp.zeros((int(output_dim0), *grad.shape[1:]), grad.dtype)
        return table.at[indices].add(rows, mode="drop")

    return run


def _sparse_gradient_of_tables(kind: str) -> Callable[..., Any]:
    """Returns the kernel that gives the rows that are not 0, and which they are."""

    def run(grad: Any, indices: Any, segment_ids: Any, dense_output_dim0: Any) -> list[Any]:
        del dense_output_dim0  # how many rows the table has
        unique, places = np.unique(indices, return_inverse=True)
        rows = np.asarray(_gradient_by_rows(grad, segment_ids, kind))
        result = np.zeros((unique.size, *rows.shape[1:]), grad.dtype)
        np.add.at(result, np.reshape(places, -1), rows)
        return [result, unique.astype(indices.dtype)]

    return run


for _name in ("Sum", "Mean", "SqrtN"):
    kernel(f"SparseSegment{_name}WithNumSegments", static=("num_segments",))(_of_tables(_name))
    kernel(f"SparseSegment{_name}Grad", static=("output_dim0",))(_gradient_of_tables(_name))
    kernel(f"SparseSegment{_name}GradV2", is_host=True)(_sparse_gradient_of_tables(_name))
