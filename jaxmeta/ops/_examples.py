"""Features of serialized `Example`s as arrays: dense, sparse and ragged."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError, Message

from jaxmeta import dtypes, errors
from jaxmeta._proto import example_pb2
from jaxmeta.ops._string_arrays import scalar_string

_KINDS: Final = {"int64_list": "int64", "float_list": "float32", "bytes_list": "object"}
_Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Sparse:
    """Rows of different lengths, as TensorFlow's three tensors."""

    indices: _Array
    values: _Array
    shape: _Array


def parse(message: type[Message], content: bytes, name: str) -> Any:
    """Returns a message.

    Raises:
        InvalidArgumentError: it cannot be parsed.
    """
    try:
        return message.FromString(content)
    except DecodeError:
        raise errors.InvalidArgumentError(
            f"Name: {name}, Could not parse example input, value: {content[:40]!r}"
        ) from None


def parse_example(content: bytes, name: str) -> Mapping[str, Any]:
    """Returns the features of a serialized `Example`, by key."""
    example: Any = parse(example_pb2.Example, content, name)
    return example.features.feature  # type: ignore[no-any-return]


def feature_values(feature: Any, dtype: Any, where: str) -> _Array | None:
    """Returns the values of a feature; None where it is not there or of no kind.

    Raises:
        InvalidArgumentError: they are of another dtype.
    """
    kind = feature.WhichOneof("kind") if feature is not None else None
    if kind is None:
        return None
    if _KINDS[kind] != dtype.name:
        raise errors.InvalidArgumentError(
            f"{where}. Data types don't match. Expected type: {dtype}, it has: {_KINDS[kind]}"
        )
    return as_array(getattr(feature, kind).value, dtype)


def as_array(items: Sequence[Any], dtype: Any) -> _Array:
    """Returns values as a vector."""
    array = np.empty(len(items), dtype)
    array[:] = items
    return array


def dense_row(
    feature: Any, dtype: Any, shape: Sequence[int | None], default: _Array, where: str
) -> _Array:
    """Returns the array of a feature; a first size that is free is as large as its values say.

    Raises:
        InvalidArgumentError: it is not there and there is no default, or does not fit.
    """
    found = feature_values(feature, dtype, where)
    is_free = bool(shape) and shape[0] is None
    known: list[int] = [size or 0 for size in (shape[1:] if is_free else shape)]
    if found is None:
        if is_free:
            return np.zeros((0, *known), dtype)
        if not default.size and _count(known):
            raise errors.InvalidArgumentError(f"{where} is required but could not be found.")
        return default.reshape(known) if default.size == _count(known) else _refuse(default)
    size = int(np.prod(known, dtype=int))
    if (is_free and (not size or found.size % size)) or (not is_free and found.size != size):
        raise errors.InvalidArgumentError(
            f"{where}. Number of {dtype} values != expected. values size: {found.size} but output "
            f"shape: {list(shape)}"
        )
    return found.reshape((-1, *known) if is_free else known)


def _count(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=int))


def _refuse(default: _Array) -> Any:
    raise errors.InvalidArgumentError(
        f"a default of shape {list(default.shape)} is not of the dense shape"
    )


def stack(rows: Sequence[_Array], dtype: Any, shape: Sequence[int | None], fill: Any) -> _Array:
    """Returns rows as one array, padded where their first sizes differ."""
    is_free = bool(shape) and shape[0] is None
    known = [size or 0 for size in shape[1:]] if is_free else [size or 0 for size in shape]
    if not is_free:
        stacked = np.empty((len(rows), *known), dtype)
    else:
        longest = max((len(row) for row in rows), default=0)
        empty = fill if fill is not None else (b"" if dtype == object else 0)
        stacked = np.full((len(rows), longest, *known), empty, dtype)
    for index, row in enumerate(rows):
        if is_free:
            stacked[index, : len(row)] = row
        else:
            stacked[index] = row
    return stacked


def sparse(rows: Sequence[_Array], dtype: Any) -> Sparse:
    """Returns vectors of different lengths as a sparse matrix."""
    indices = [(row, column) for row, items in enumerate(rows) for column in range(len(items))]
    return Sparse(
        np.array(indices, np.int64).reshape(-1, 2),
        concatenate(rows, dtype),
        np.array([len(rows), max(map(len, rows), default=0)], np.int64),
    )


def sparse_vector(row: _Array) -> Sparse:
    """Returns a vector as a sparse one."""
    return Sparse(np.arange(len(row), dtype=np.int64)[:, None], row, np.array([len(row)], np.int64))


def concatenate(rows: Sequence[_Array], dtype: Any) -> _Array:
    """Returns the values of all rows, one after the other."""
    return np.concatenate([np.empty(0, dtype), *rows]).astype(dtype, copy=False)


def row_splits(rows: Sequence[Sequence[Any] | _Array], dtype: Any) -> _Array:
    """Returns where each row begins among the values of all, and where the last ends."""
    return np.cumsum([0, *map(len, rows)]).astype(dtype)


# --- what ops are asked for, and give ---


def texts_of(strings: Any) -> list[str]:
    """Returns an array of strings as texts."""
    return [item.decode(errors="replace") for item in np.ravel(strings).tolist()]


def keys_of(strings: Sequence[Any]) -> list[str]:
    """Returns string scalars as texts."""
    return [scalar_string(item).decode(errors="replace") for item in strings]


def kinds_of(numbers: Sequence[int]) -> list[Any]:
    """Returns the dtypes of DataTypes."""
    return [dtypes.dtype_from_number(number) for number in numbers]


@dataclasses.dataclass(frozen=True, slots=True)
class Dense:
    """The dense features that are wanted: of each the key, dtype, shape and default."""

    keys: Sequence[str]
    kinds: Sequence[Any]
    shapes: Sequence[Sequence[int | None]]
    defaults: Sequence[Any]

    def stacked(self, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Any]:
        """Returns the array of each feature, with an axis for the examples first."""
        results = []
        for key, kind, shape, default in self._wanted():
            found = [
                dense_row(row.get(key), kind, shape, default, _where(name, key))
                for row, name in zip(rows, names, strict=True)
            ]
            fill = default.ravel()[0] if default.size == 1 else None
            results.append(stack(found, kind, shape, fill))
        return results

    def single(self, row: Mapping[str, Any], name: str) -> list[Any]:
        """Returns the array of each feature of one example."""
        return [
            dense_row(row.get(key), kind, shape, default, _where(name, key))
            for key, kind, shape, default in self._wanted()
        ]

    def _wanted(self) -> list[tuple[str, Any, Sequence[int | None], Any]]:
        defaults = [np.asarray(default) for default in self.defaults]
        return list(zip(self.keys, self.kinds, self.shapes, defaults, strict=True))


def _where(name: str, key: str) -> str:
    return f"Name: {name or '<unknown>'}, Feature: {key}"


def vectors_of(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], key: str, kind: Any
) -> list[Any]:
    """Returns the values of one feature in each example; none where it is not there."""
    found = [
        feature_values(row.get(key), kind, _where(name, key))
        for row, name in zip(rows, names, strict=True)
    ]
    return [np.empty(0, kind) if values is None else values for values in found]


def columns(parts: Sequence[Sparse]) -> list[Any]:
    """Returns sparse tensors as the outputs of an op: all indices, then values, then shapes."""
    return [
        *(part.indices for part in parts),
        *(part.values for part in parts),
        *(part.shape for part in parts),
    ]
