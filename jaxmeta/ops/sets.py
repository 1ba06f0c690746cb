"""Sets in the last axis of arrays, and distances between sequences; as many as values say."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxmeta import errors
from jaxmeta.ops._definition import kernel


def _rows_of_sparse(indices: Any, values: Any) -> dict[tuple[int, ...], list[Any]]:
    """Returns the values of each row, by all indices but the last."""
    rows: dict[tuple[int, ...], list[Any]] = {}
    for index, value in zip(indices.tolist(), values.tolist(), strict=True):
        rows.setdefault(tuple(index[:-1]), []).append(value)
    return rows


def _rows_of_dense(array: Any) -> dict[tuple[int, ...], list[Any]]:
    return {index: array[index].tolist() for index in np.ndindex(array.shape[:-1])}


def _combine(first: Any, second: Any, batch: Any, operation: bytes, dtype: Any) -> list[Any]:
    """Returns sets as a sparse tensor, their elements in order."""
    operations: dict[bytes, Any] = {
        b"a-b": set.difference,
        b"b-a": lambda a, b: b - a,
        b"intersection": set.intersection,
        b"union": set.union,
    }
    combine = operations.get(operation.lower())
    if combine is None:
        raise errors.InvalidArgumentError(
            f"set_operation must be one of {sorted(operations)}, it is {operation!r}"
        )
    indices, values, longest = [], [], 0
    for index in np.ndindex(*batch):
        found = sorted(combine(set(first.get(index, ())), set(second.get(index, ()))))
        indices += [(*index, place) for place in range(len(found))]
        values += found
        longest = max(longest, len(found))
    return [
        np.asarray(indices, np.int64).reshape(-1, len(batch) + 1),
        np.asarray(values, dtype),
        np.asarray([*batch, longest], np.int64),
    ]


@kernel("SetSize", is_host=True)
def set_size(set_indices: Any, set_values: Any, set_shape: Any, *, validate_indices: bool) -> Any:
    del validate_indices  # the indices are not trusted in any case
    sizes = np.zeros(tuple(set_shape.tolist()[:-1]), np.int32)
    for index, values in _rows_of_sparse(set_indices, set_values).items():
        sizes[index] = len(set(values))
    return sizes


@kernel("DenseToDenseSetOperation", is_host=True)
def dense_to_dense_set_operation(
    set1: Any, set2: Any, *, set_operation: bytes, validate_indices: bool
) -> list[Any]:
    del validate_indices  # there are none
    rows = (_rows_of_dense(set1), _rows_of_dense(set2))
    return _combine(*rows, set1.shape[:-1], set_operation, set1.dtype)


@kernel("DenseToSparseSetOperation", is_host=True)
def dense_to_sparse_set_operation(
    set1: Any,
    set2_indices: Any,
    set2_values: Any,
    set2_shape: Any,
    *,
    set_operation: bytes,
    validate_indices: bool,
) -> list[Any]:
    del set2_shape, validate_indices  # the rows are those of the dense sets
    rows = (_rows_of_dense(set1), _rows_of_sparse(set2_indices, set2_values))
    return _combine(*rows, set1.shape[:-1], set_operation, set1.dtype)


@kernel("SparseToSparseSetOperation", is_host=True)
def sparse_to_sparse_set_operation(
    set1_indices: Any,
    set1_values: Any,
    set1_shape: Any,
    set2_indices: Any,
    set2_values: Any,
    set2_shape: Any,
    *,
    set_operation: bytes,
    validate_indices: bool,
) -> list[Any]:
    del set2_shape, validate_indices  # both have the same rows
    rows = (_rows_of_sparse(set1_indices, set1_values), _rows_of_sparse(set2_indices, set2_values))
    return _combine(*rows, tuple(set1_shape.tolist()[:-1]), set_operation, set1_values.dtype)


@kernel("EditDistance", is_host=True)
def edit_distance(
    hypothesis_indices: Any,
    hypothesis_values: Any,
    hypothesis_shape: Any,
    truth_indices: Any,
    truth_values: Any,
    truth_shape: Any,
    *,
    normalize: bool,
) -> Any:
    """Returns Levenshtein's distances, divided by the truth's lengths where ``normalize``."""
    shape = tuple(np.maximum(hypothesis_shape, truth_shape).tolist()[:-1])
    guesses = _rows_of_sparse(hypothesis_indices, hypothesis_values)
    truths = _rows_of_sparse(truth_indices, truth_values)
    distances = np.zeros(shape, np.float32)
    for index in np.ndindex(*shape):
        guess, truth = guesses.get(index, []), truths.get(index, [])
        distance = float(_levenshtein(guess, truth))
        if normalize:
            is_nothing = not truth
            distance = (np.inf if guess else 0.0) if is_nothing else distance / len(truth)
        distances[index] = distance
    return distances


def _levenshtein(first: list[Any], second: list[Any]) -> int:
    row = list(range(len(second) + 1))
    for count, a in enumerate(first, 1):
        diagonal, row[0] = row[0], count
        for place, b in enumerate(second, 1):
            least = min(row[place] + 1, row[place - 1] + 1, diagonal + (a != b))
            diagonal, row[place] = row[place], least
    return row[-1]
