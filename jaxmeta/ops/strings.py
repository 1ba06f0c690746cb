"""Strings: kernels that run on the host, on numpy arrays of bytes objects."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxmeta import dtypes, errors
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._string_arrays import map_strings, parse_number, scalar_string, string_array

# --- ops of strings ------------------------------------------------------------------------------


@kernel("StringJoin", is_host=True)
def string_join(*inputs: Any, separator: bytes) -> Any:
    return map_strings(lambda *parts: separator.join(parts), *inputs)


@kernel("AsString", is_host=True)
def as_string(
    input: Any,
    *,
    precision: int,
    scientific: bool,
    shortest: bool,
    width: int,
    fill: bytes,
) -> Any:
    array = np.asarray(input)
    if array.dtype == object:
        return array
    if array.dtype == np.bool_:
        return map_strings(lambda item: b"true" if item else b"false", array)
    wide = f"{fill.decode()}{width}" if width > -1 else fill.decode()
    if array.dtype.kind in "iu":
        return map_strings(lambda item: f"%{wide}d".__mod__(int(item)).encode(), array)
    kind = "e" if scientific else "g" if shortest else "f"
    exact = f".{precision}" if precision > -1 else ""
    form = f"%{wide}{exact}{kind}"
    if array.dtype.kind == "c":
        pair = f"({form},{form})"
        return map_strings(lambda item: (pair % (item.real, item.imag)).encode(), array)
    return map_strings(lambda item: (form % float(item)).encode(), array)


@kernel("StringLower", is_host=True)
def string_lower(input: Any, *, encoding: bytes) -> Any:
    return map_strings(_in_encoding(bytes.lower, str.lower, encoding), input)


@kernel("StringUpper", is_host=True)
def string_upper(input: Any, *, encoding: bytes) -> Any:
    return map_strings(_in_encoding(bytes.upper, str.upper, encoding), input)


def _in_encoding(
    of_bytes: Callable[[bytes], bytes], of_text: Callable[[str], str], encoding: bytes
) -> Callable[[bytes], bytes]:
    if not encoding:
        return of_bytes
    return lambda item: of_text(item.decode(errors="replace")).encode()


@kernel("StringStrip", is_host=True)
def string_strip(input: Any) -> Any:
    return map_strings(bytes.strip, input)


@kernel("StringLength", is_host=True)
def string_length(input: Any, *, unit: bytes) -> Any:
    length = len if unit == b"BYTE" else lambda item: len(_character_starts(item))
    array = np.asarray(input)
    return np.array([length(item) for item in array.ravel()], np.int32).reshape(array.shape)


def _character_starts(item: bytes) -> list[int]:
    """Returns where characters of UTF-8 begin; as TensorFlow, it looks at first bytes only."""
    return [index for index, byte in enumerate(item) if byte & 0xC0 != 0x80]


@kernel("Substr", is_host=True)
def substr(input: Any, pos: Any, length: Any, *, unit: bytes) -> Any:
    def cut(item: bytes, first: int, count: int) -> bytes:
        starts: Sequence[int] = range(len(item))
        if unit != b"BYTE":
            starts = _character_starts(item)
        size = len(starts)
        if not -size <= first <= size:
            raise errors.InvalidArgumentError(f"pos {first} out of range for string {item!r}")
        begin = first if first >= 0 else size + first
        end = size if count < 0 else min(begin + count, size)
        places = [*starts, len(item)]
        return item[places[begin] : places[end]]

    return map_strings(cut, input, pos, length)


@kernel("StringSplit", is_host=True)
def string_split(input: Any, delimiter: Any, *, skip_empty: bool) -> list[Any]:
    separators = scalar_string(delimiter)

    def split(item: bytes) -> list[bytes]:
        if not separators:
            return [item[index : index + 1] for index in range(len(item))]
        if not item:
            return []
        for other in separators[1:]:
            item = item.replace(bytes([other]), separators[:1])
        parts = item.split(separators[:1])
        return [part for part in parts if part] if skip_empty else parts

    return _sparse_rows([split(item) for item in np.ravel(input)])


@kernel("StringSplitV2", is_host=True)
def string_split_v2(input: Any, sep: Any, *, maxsplit: int) -> list[Any]:
    separator = scalar_string(sep)
    return _sparse_rows([_split(item, separator, maxsplit) for item in np.ravel(input)])


def _split(item: bytes, separator: bytes, most: int) -> list[bytes]:
    if separator:
        return item.split(separator, most)
    if most == 0:
        return [item]
    parts = item.split(None, most)
    if most == len(parts):
        parts.append(b"")  # as in TensorFlow, where the rest is empty too
    return parts


def _sparse_rows(rows: Sequence[Sequence[bytes]]) -> list[Any]:
    """Returns rows of different lengths as indices, values and shape of a sparse tensor."""
    indices = [(row, column) for row, items in enumerate(rows) for column in range(len(items))]
    shape = [len(rows), max(map(len, rows), default=0)]
    return [
        np.array(indices, np.int64).reshape(-1, 2),
        string_array([item for items in rows for item in items]),
        np.array(shape, np.int64),
    ]


@kernel("StringToNumber", is_host=True)
def string_to_number(string_tensor: Any, *, out_type: int) -> Any:
    dtype = dtypes.dtype_from_number(out_type)
    array = np.asarray(string_tensor)
    numbers = np.array([parse_number(item, dtype) for item in array.ravel()], dtype)
    return numbers.reshape(array.shape)


@kernel("ReduceJoin", is_host=True)
def reduce_join(inputs: Any, reduction_indices: Any, *, keep_dims: bool, separator: bytes) -> Any:
    array = np.asarray(inputs)
    axes = [int(axis) % max(array.ndim, 1) for axis in np.ravel(reduction_indices)]
    if not axes:
        return array
    kept = [axis for axis in range(array.ndim) if axis not in axes]
    moved = array.transpose([*kept, *reversed(axes)])  # the first axis is joined first
    shape = [array.shape[axis] for axis in kept]
    rows = moved.reshape(int(np.prod(shape, dtype=int)), -1)
    joined = string_array([separator.join(row) for row in rows], shape)
    return np.expand_dims(joined, sorted(axes)) if keep_dims else joined


@kernel("UnsortedSegmentJoin", is_host=True)
def unsorted_segment_join(
    inputs: Any, segment_ids: Any, num_segments: Any, *, separator: bytes
) -> Any:
    array, ids = np.asarray(inputs), np.asarray(segment_ids)
    if array.shape[: ids.ndim] != ids.shape:
        raise errors.InvalidArgumentError(
            f"segment_ids' shape {ids.shape} is not the beginning of the inputs' {array.shape}"
        )
    count, rest = int(num_segments), array.shape[ids.ndim :]
    rows = array.reshape(ids.size, -1)
    groups: list[list[Any]] = [[] for _ in range(count)]
    for segment, row in zip(ids.ravel().tolist(), rows, strict=True):
        if segment >= count:
            raise errors.InvalidArgumentError(f"segment id {segment} is not below {count}")
        if segment >= 0:
            groups[segment].append(row)
    width = rows.shape[1] if ids.size else int(np.prod(rest, dtype=int))
    joined = [
        separator.join(row[column] for row in group) for group in groups for column in range(width)
    ]
    return string_array(joined, (count, *rest))


@kernel("StringNGrams", is_host=True)
def string_ngrams(
    data: Any,
    data_splits: Any,
    *,
    separator: bytes,
    ngram_widths: Sequence[int],
    left_pad: bytes,
    right_pad: bytes,
    pad_width: int,
    preserve_short_sequences: bool,
) -> list[Any]:
    splits = np.asarray(data_splits)
    bounds = splits.tolist()
    if bounds and (bounds[0] != 0 or bounds[-1] != len(data) or bounds != sorted(bounds)):
        raise errors.InvalidArgumentError(f"Invalid splits {bounds} of {len(data)} strings")
    items, ends = [], [0]
    for start, stop in itertools.pairwise(bounds):
        row = list(data[start:stop])
        found = []
        for width in ngram_widths:
            pad = width - 1 if pad_width < 0 else min(pad_width, width - 1)
            padded = [left_pad] * pad + row + [right_pad] * pad
            found += [padded[at : at + width] for at in range(len(padded) - width + 1)]
        if preserve_short_sequences and not found and row:
            pad = max(pad_width, 0)
            found = [[left_pad] * pad + row + [right_pad] * pad]
        items += [separator.join(parts) for parts in found]
        ends.append(len(items))
    return [string_array(items), np.array(ends[: len(bounds)] or [], splits.dtype)]
