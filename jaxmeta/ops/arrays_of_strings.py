"""Ops of arrays of any dtype: their second kernels, for where the arrays hold strings."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxmeta import dtypes, errors
from jaxmeta.ops._definition import string_kernel
from jaxmeta.ops._indexing import index_of_slices
from jaxmeta.ops._operands import ints
from jaxmeta.ops._string_arrays import string_array


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


@string_kernel("Select")
def select_rows(condition: Any, t: Any, e: Any) -> Any:
    chosen = np.asarray(condition)
    rest = np.ndim(t) - chosen.ndim  # a vector chooses rows
    return np.asarray(np.where(chosen.reshape(chosen.shape + (1,) * rest), t, e), dtype=object)


@string_kernel("Gather")
def gather_rows(params: Any, indices: Any) -> Any:
    return gather(params, indices, 0, batch_dims=0)


@string_kernel("GatherNd")
def gather_nd(params: Any, indices: Any) -> Any:
    array, places = np.asarray(params), np.asarray(indices)
    depth = places.shape[-1]
    if np.any(places < 0) or np.any(places >= np.array(array.shape[:depth], int)):
        raise errors.InvalidArgumentError(f"GatherNd: an index is not within {array.shape[:depth]}")
    return np.asarray(array[tuple(np.moveaxis(places, -1, 0))], dtype=object)


@string_kernel("ReverseV2")
def reverse(tensor: Any, axis: Any) -> Any:
    return np.flip(tensor, ints(axis))


@string_kernel("Split")
def split(split_dim: Any, value: Any, *, num_split: int) -> list[Any]:
    axis = int(split_dim)
    if np.shape(value)[axis] % num_split:
        raise errors.InvalidArgumentError(
            f"Split: {np.shape(value)[axis]} is not a multiple of {num_split}"
        )
    return list(np.split(value, num_split, axis))


@string_kernel("SplitV")
def split_v(value: Any, size_splits: Any, split_dim: Any) -> list[Any]:
    axis, sizes = int(split_dim), list(ints(size_splits))
    rest = np.shape(value)[axis] - sum(size for size in sizes if size >= 0)
    sizes = [rest if size < 0 else size for size in sizes]
    if min(sizes, default=0) < 0 or sum(sizes) != np.shape(value)[axis]:
        raise errors.InvalidArgumentError(f"SplitV: sizes {sizes} of {np.shape(value)[axis]}")
    return list(np.split(value, np.cumsum(sizes)[:-1], axis))


@string_kernel("Unique")
def unique(x: Any, *, out_idx: int) -> list[Any]:
    return unique_with_counts(x, out_idx=out_idx)[:2]


@string_kernel("UniqueWithCounts")
def unique_with_counts(x: Any, *, out_idx: int) -> list[Any]:
    places: dict[bytes, int] = {}
    indices = [places.setdefault(item, len(places)) for item in np.ravel(x).tolist()]
    dtype = dtypes.dtype_from_number(out_idx)
    counts = np.bincount(np.array(indices, int), minlength=len(places)).astype(dtype)
    return [string_array(list(places)), np.array(indices, dtype), counts]


@string_kernel("DynamicPartition")
def dynamic_partition(data: Any, partitions: Any, *, num_partitions: int) -> list[Any]:
    chosen = np.asarray(partitions)
    if np.any((chosen < 0) | (chosen >= num_partitions)):
        raise errors.InvalidArgumentError(f"partitions must be in [0, {num_partitions})")
    return [np.asarray(data[chosen == number], object) for number in range(num_partitions)]


@string_kernel("DynamicStitch", "ParallelDynamicStitch")
def dynamic_stitch(*indices_and_data: Any) -> Any:
    half = len(indices_and_data) // 2
    indices = [np.asarray(item) for item in indices_and_data[:half]]
    data = indices_and_data[half:]
    rest = np.shape(data[0])[indices[0].ndim :]
    size = max((int(item.max()) + 1 for item in indices if item.size), default=0)
    merged = np.full((size, *rest), b"", object)
    for places, values in zip(indices, data, strict=True):
        merged[places.ravel()] = np.reshape(values, (-1, *rest))
    return merged


@string_kernel("SparseToDense")
def sparse_to_dense(
    sparse_indices: Any, output_shape: Any, sparse_values: Any, default_value: Any
) -> Any:
    shape = ints(output_shape)
    dense = np.full(shape, np.asarray(default_value).item(), object)
    places = np.asarray(sparse_indices).reshape(-1, len(shape))
    if np.any(places < 0) or np.any(places >= np.array(shape, int)):
        raise errors.InvalidArgumentError(f"SparseToDense: an index is not within {shape}")
    dense[tuple(places.T)] = sparse_values
    return dense


@string_kernel("EnsureShape")
def ensure_shape(input: Any, *, shape: Any) -> Any:
    found = np.shape(input)
    if shape is not None and (
        len(shape) != len(found)
        or any(want not in (None, size) for want, size in zip(shape, found, strict=True))
    ):
        raise errors.InvalidArgumentError(
            f"EnsureShape: shape {list(found)} is not compatible with {list(shape)}"
        )
    return input


@string_kernel("ZerosLike")
def zeros_like(x: Any) -> Any:
    return np.full(np.shape(x), b"", object)


@string_kernel("Concat")
def concat_first_years(concat_dim: Any, *values: Any) -> Any:
    return np.concatenate(values, int(concat_dim))


@string_kernel("ShapeN")
def shape_n(*input: Any, out_type: int) -> list[Any]:
    return [np.asarray(np.shape(item), dtypes.dtype_from_number(out_type)) for item in input]


@string_kernel("ListDiff")
def list_diff(x: Any, y: Any, *, out_idx: int) -> list[Any]:
    others = set(np.ravel(y).tolist())
    kept = [(item, place) for place, item in enumerate(np.ravel(x).tolist()) if item not in others]
    dtype = dtypes.dtype_from_number(out_idx)
    return [string_array([item for item, _ in kept]), np.array([p for _, p in kept], dtype)]


@string_kernel("SparseReorder")
def sparse_reorder(input_indices: Any, input_values: Any, input_shape: Any) -> list[Any]:
    del input_shape
    order = np.lexsort(np.asarray(input_indices).T[::-1])
    return [np.asarray(input_indices)[order], np.asarray(input_values)[order]]


@string_kernel("SparseConcat")
def sparse_concat(*indices_values_and_shapes: Any, concat_dim: int) -> list[Any]:
    count = len(indices_values_and_shapes) // 3
    indices, values, shapes = (
        [np.asarray(part) for part in indices_values_and_shapes[count * i : count * i + count]]
        for i in range(3)
    )
    axis = concat_dim % len(shapes[0])
    if any(
        np.delete(shape, axis).tolist() != np.delete(shapes[0], axis).tolist() for shape in shapes
    ):
        raise errors.InvalidArgumentError(
            f"SparseConcat: shapes {[shape.tolist() for shape in shapes]} differ beside axis {axis}"
        )
    offsets = np.cumsum([0, *(shape[axis] for shape in shapes)])
    steps = np.eye(len(shapes[0]), dtype=np.int64)[axis]
    moved = [part + steps * offset for part, offset in zip(indices, offsets, strict=False)]
    whole = shapes[0] + steps * (offsets[-1] - shapes[0][axis])
    return [*sparse_reorder(np.concatenate(moved), np.concatenate(values), whole), whole]
