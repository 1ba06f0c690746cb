"""Feature lists of `SequenceExample`s as arrays, with an axis for the steps first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxmeta import errors
from jaxmeta.ops import _examples


def vectors(lists: Mapping[str, Any], key: str, dtype: Any) -> list[Any]:
    """Returns the values of each step; no steps where there is no such list."""
    if key not in lists:
        return []
    found = [
        _examples.feature_values(feature, dtype, f"Feature list: {key}")
        for feature in lists[key].feature
    ]
    return [np.empty(0, dtype) if values is None else values for values in found]


def sparse_batch(examples: Sequence[Sequence[Any]], dtype: Any) -> _examples.Sparse:
    """Returns the steps of several examples as a sparse tensor of three axes."""
    indices = [
        (number, step, place)
        for number, steps in enumerate(examples)
        for step, items in enumerate(steps)
        for place in range(len(items))
    ]
    rows = [items for steps in examples for items in steps]
    most_steps = max(map(len, examples), default=0)
    shape = [len(examples), most_steps, max(map(len, rows), default=0)]
    return _examples.Sparse(
        np.array(indices, np.int64).reshape(-1, 3),
        _examples.concatenate(rows, dtype),
        np.array(shape, np.int64),
    )


def dense_steps(
    lists: Mapping[str, Any], key: str, dtype: Any, shape: Sequence[int], *, may_miss: bool
) -> Any:
    """Returns the steps of one example as an array.

    Raises:
        InvalidArgumentError: the list is not there and may not miss, or a step does not fit.
    """
    if key not in lists:
        if not may_miss:
            raise errors.InvalidArgumentError(
                f"Name: <unknown>, Feature list '{key}' is required but could not be found. "
                "Did you mean to include it in feature_list_dense_missing_assumed_empty?"
            )
        return np.empty((0, *shape), dtype)
    none = np.empty(0, dtype)
    rows = [
        _examples.dense_row(feature, dtype, shape, none, f"Feature list: {key}, Index: {index}")
        for index, feature in enumerate(lists[key].feature)
    ]
    return np.stack(rows) if rows else np.empty((0, *shape), dtype)
