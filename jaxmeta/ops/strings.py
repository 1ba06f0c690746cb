"""Strings: kernels that run on the host, on numpy arrays of bytes objects.

Ops of arrays of any dtype have a second kernel here, for where their arrays hold strings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxmeta import dtypes, errors
from jaxmeta.ops._cells import check
from jaxmeta.ops._definition import kernel, string_kernel, traced_kernel
from jaxmeta.ops._indexing import index_of_slices
from jaxmeta.ops._operands import ints


def _map(fn: Callable[..., bytes], *arrays: Any) -> np.ndarray[Any, Any]:
    """Returns the array of what a function gives for each element; scalars go with any shape."""
    broadcast = np.broadcast_arrays(*[np.asarray(array) for array in arrays])
    items = [fn(*parts) for parts in zip(*(array.ravel() for array in broadcast), strict=True)]
    return _strings(items, broadcast[0].shape)


def _strings(items: list[bytes], shape: Any) -> np.ndarray[Any, Any]:
    result = np.empty(len(items), dtype=object)
    result[:] = items
    return result.reshape(shape)


# --- ops of strings ------------------------------------------------------------------------------


@kernel("StringJoin", is_host=True)
def string_join(*inputs: Any, separator: bytes) -> Any:
    return _map(lambda *parts: separator.join(parts), *inputs)


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
        return _map(lambda item: b"true" if item else b"false", array)
    if array.dtype.kind == "c":
        raise errors.UnsupportedOpError("AsString has no kernel for complex numbers")
    wide = f"{fill.decode()}{width}" if width > -1 else fill.decode()
    if array.dtype.kind in "iu":
        return _map(lambda item: f"%{wide}d".__mod__(int(item)).encode(), array)
    kind = "e" if scientific else "g" if shortest else "f"
    exact = f".{precision}" if precision > -1 else ""
    return _map(lambda item: f"%{wide}{exact}{kind}".__mod__(float(item)).encode(), array)


@kernel("StringLower", is_host=True)
def string_lower(input: Any, *, encoding: bytes) -> Any:
    return _map(_in_encoding(bytes.lower, str.lower, encoding), input)


@kernel("StringUpper", is_host=True)
def string_upper(input: Any, *, encoding: bytes) -> Any:
    return _map(_in_encoding(bytes.upper, str.upper, encoding), input)


def _in_encoding(
    of_bytes: Callable[[bytes], bytes], of_text: Callable[[str], str], encoding: bytes
) -> Callable[[bytes], bytes]:
    if not encoding:
        return of_bytes
    return lambda item: of_text(item.decode(errors="replace")).encode()


@kernel("StringStrip", is_host=True)
def string_strip(input: Any) -> Any:
    return _map(bytes.strip, input)


@kernel("StringLength", is_host=True)
def string_length(input: Any, *, unit: bytes) -> Any:
    def length(item: bytes) -> int:
        return len(item if unit == b"BYTE" else item.decode(errors="replace"))

    array = np.asarray(input)
    return np.array([length(item) for item in array.ravel()], np.int32).reshape(array.shape)


@kernel("StringToNumber", is_host=True)
def string_to_number(string_tensor: Any, *, out_type: int) -> Any:
    dtype = dtypes.dtype_from_number(out_type)
    array = np.asarray(string_tensor)
    parse = int if dtype.kind in "iu" else float
    try:
        numbers = np.array([parse(item) for item in array.ravel()], dtype)
    except (ValueError, OverflowError) as error:
        raise errors.InvalidArgumentError(f"StringToNumber: {error}") from None
    return numbers.reshape(array.shape)


@kernel("ShardedFilename", is_host=True)
def sharded_filename(basename: Any, shard: Any, num_shards: Any) -> Any:
    name = np.asarray(basename).item()
    return _strings([b"%s-%05d-of-%05d" % (name, int(shard), int(num_shards))], ())


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
    joined = _strings([separator.join(row) for row in rows], shape)
    return np.expand_dims(joined, sorted(axes)) if keep_dims else joined


@kernel("Assert", is_host=True)
def assert_kernel(condition: Any, *data: Any, summarize: int) -> tuple[()]:
    # Within a function that is traced there is no value to look at; XLA leaves it out too.
    if not isinstance(condition, jax.core.Tracer) and not np.all(condition):
        shown = [np.ravel(item)[: summarize if summarize >= 0 else None].tolist() for item in data]
        raise errors.InvalidArgumentError(f"an assertion of the graph does not hold: {shown}")
    return ()


@traced_kernel("Assert")
def assert_at_the_end(state: Any, condition: Any, *data: Any) -> tuple[()]:
    """Has the run fail when it ends; it runs again op by op then, and shows the data."""
    del data
    check(state, condition, "an assertion of the graph does not hold")
    return ()


# --- ops of any dtype ----------------------------------------------------------------------------


@string_kernel("Identity", "PlaceholderWithDefault", "Snapshot", "StopGradient")
def identity(input: Any) -> Any:
    return input


@string_kernel("IdentityN")
def identity_n(*input: Any) -> list[Any]:
    return list(input)


@string_kernel("Shape")
def shape(input: Any, *, out_type: int) -> Any:
    return np.asarray(np.shape(input), dtypes.dtype_from_number(out_type))


@string_kernel("Size")
def size(input: Any, *, out_type: int) -> Any:
    return np.asarray(np.size(input), dtypes.dtype_from_number(out_type))


@string_kernel("Rank")
def rank(input: Any) -> Any:
    return np.asarray(np.ndim(input), np.int32)


@string_kernel("Equal")
def equal(x: Any, y: Any) -> Any:
    return np.asarray(np.equal(x, y), np.bool_)


@string_kernel("NotEqual")
def not_equal(x: Any, y: Any) -> Any:
    return np.asarray(np.not_equal(x, y), np.bool_)


@string_kernel("Fill")
def fill(dims: Any, value: Any) -> Any:
    return np.full(ints(dims), np.asarray(value).item(), dtype=object)


@string_kernel("Reshape")
def reshape(tensor: Any, shape: Any) -> Any:
    return np.reshape(tensor, ints(shape))


@string_kernel("ExpandDims")
def expand_dims(input: Any, dim: Any) -> Any:
    return np.expand_dims(input, int(np.asarray(dim).item()))


@string_kernel("Squeeze")
def squeeze(input: Any, *, squeeze_dims: tuple[int, ...]) -> Any:
    return np.squeeze(input, tuple(squeeze_dims) or None)


@string_kernel("Transpose")
def transpose(x: Any, perm: Any) -> Any:
    return np.transpose(x, ints(perm))


@string_kernel("Tile")
def tile(input: Any, multiples: Any) -> Any:
    return np.tile(input, ints(multiples))


@string_kernel("Pack")
def pack(*values: Any, axis: int) -> Any:
    return np.stack(values, axis)


@string_kernel("Unpack")
def unpack(value: Any, *, axis: int) -> list[Any]:
    return [np.asarray(part, dtype=object) for part in np.moveaxis(value, axis, 0)]


@string_kernel("ConcatV2")
def concat(*values_and_axis: Any) -> Any:
    *arrays, axis = values_and_axis
    return np.concatenate(arrays, int(axis))


@string_kernel("GatherV2")
def gather(params: Any, indices: Any, axis: Any, *, batch_dims: int) -> Any:
    if batch_dims:
        raise errors.UnsupportedOpError("GatherV2 of strings has no kernel for batch_dims")
    limit = np.shape(params)[int(axis)]
    if np.any((np.asarray(indices) < 0) | (np.asarray(indices) >= limit)):
        raise errors.InvalidArgumentError(f"GatherV2: an index is not in [0, {limit})")
    return np.asarray(np.take(params, indices, axis=int(axis)), dtype=object)


@string_kernel("Slice")
def slice_kernel(input: Any, begin: Any, size: Any) -> Any:
    places = [
        slice(start, None if length < 0 else start + length)
        for start, length in zip(ints(begin), ints(size), strict=True)
    ]
    return np.asarray(input[tuple(places)], dtype=object)


@string_kernel("StridedSlice")
def strided_slice(
    input: Any,
    begin: Any,
    end: Any,
    strides: Any,
    *,
    begin_mask: int,
    end_mask: int,
    ellipsis_mask: int,
    new_axis_mask: int,
    shrink_axis_mask: int,
) -> Any:
    masks = (begin_mask, end_mask, ellipsis_mask, new_axis_mask, shrink_axis_mask)
    index = index_of_slices(ints(begin), ints(end), ints(strides), masks)
    return np.asarray(input[index], dtype=object)


@string_kernel("SelectV2")
def select(condition: Any, t: Any, e: Any) -> Any:
    return np.asarray(np.where(condition, t, e), dtype=object)


@string_kernel("BroadcastTo")
def broadcast_to(input: Any, shape: Any) -> Any:
    return np.broadcast_to(input, ints(shape))
