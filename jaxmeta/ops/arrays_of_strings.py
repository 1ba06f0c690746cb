"""Ops of arrays of any dtype: their second kernels, for where the arrays hold strings."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxmeta import dtypes, errors
from jaxmeta.ops._definition import string_kernel
from jaxmeta.ops._indexing import index_of_slices
from jaxmeta.ops._operands import ints


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
