"""Ops that arrange arrays, and the arithmetic on shapes of their gradients, as TensorFlow has."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import errors
from jaxmeta.ops._definition import kernel, on_host
from jaxmeta.ops._indexing import ends_of_slices, index_of_slices
from jaxmeta.ops._kernels import Flow
from jaxmeta.ops._operands import count_as, ints, scalar
from jaxmeta.ops._window import pairs

# --- joining and splitting ---------------------------------------------------------------------


@kernel("Concat", static=("concat_dim",))
def concat(concat_dim: np.ndarray[Any, Any], *values: Any) -> Any:
    return lax.concatenate(values, int(concat_dim) % values[0].ndim)


@on_host("Concat")
def concat_sizes(concat_dim: Any, *values: Any) -> Any:
    return np.concatenate(values, int(concat_dim))


@kernel("Split", static=("split_dim",))
def split(split_dim: np.ndarray[Any, Any], value: Any, *, num_split: int) -> list[Any]:
    return list(jnp.split(value, num_split, int(split_dim)))


@on_host("Split")
def split_sizes(split_dim: Any, value: Any, *, num_split: int) -> list[Any]:
    return list(np.split(value, num_split, int(split_dim)))


@on_host("Unpack")
def unpack_sizes(value: Any, *, axis: int) -> list[Any]:
    return [np.asarray(part) for part in np.moveaxis(value, axis, 0)]


@on_host("Tile")
def tile_sizes(input: Any, multiples: Any) -> Any:
    return np.tile(input, ints(multiples))


@on_host("Fill", at_need=True)
def fill_sizes(dims: Any, value: Any) -> Any:
    return np.full(ints(dims), value)


@on_host("Range", at_need=True)
def range_of_sizes(start: Any, limit: Any, delta: Any) -> Any:
    return np.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


@on_host("Max")
def largest_size(input: Any, reduction_indices: Any, *, keep_dims: bool) -> Any:
    return np.max(input, axis=ints(reduction_indices), keepdims=keep_dims)


@on_host("Min")
def smallest_size(input: Any, reduction_indices: Any, *, keep_dims: bool) -> Any:
    return np.min(input, axis=ints(reduction_indices), keepdims=keep_dims)


on_host("GreaterEqual", at_need=True)(np.greater_equal)
on_host("Greater", at_need=True)(np.greater)
on_host("Less", at_need=True)(np.less)
on_host("LessEqual", at_need=True)(np.less_equal)
on_host("LogicalAnd", at_need=True)(np.logical_and)
on_host("Select", "SelectV2", at_need=True)(np.where)
on_host("Pow")(np.power)
on_host("TruncateDiv", "Div")(lambda x, y: np.trunc(x / y).astype(x.dtype))
on_host("Mod", "TruncateMod")(np.fmod)
on_host("Square")(np.square)


@on_host("Equal", at_need=True)
def equal_sizes(x: Any, y: Any) -> Any:
    return np.equal(x, y)


# --- padding -----------------------------------------------------------------------------------


@kernel("Pad", static=("paddings",))
def pad(input: Any, paddings: np.ndarray[Any, Any]) -> Any:
    config = [(low, high, 0) for low, high in pairs(paddings)]
    return lax.pad(jnp.asarray(input), np.zeros((), input.dtype), config)


@kernel("MirrorPad", static=("paddings",))
def mirror_pad(input: Any, paddings: np.ndarray[Any, Any], *, mode: bytes) -> Any:
    return jnp.pad(input, pairs(paddings), "reflect" if mode == b"REFLECT" else "symmetric")


@kernel("MirrorPadGrad", static=("paddings",))
def mirror_pad_grad(input: Any, paddings: np.ndarray[Any, Any], *, mode: bytes) -> Any:
    shape = tuple(
        size - low - high for size, (low, high) in zip(input.shape, pairs(paddings), strict=True)
    )
    taken = jax.ShapeDtypeStruct(shape, input.dtype)
    padded = jax.linear_transpose(lambda x: mirror_pad(x, paddings, mode=mode), taken)
    return padded(jnp.asarray(input))[0]


# --- shapes of gradients -----------------------------------------------------------------------


@kernel("BroadcastGradientArgs", static=("s0", "s1"), gives_sizes=True)
def broadcast_gradient_args(s0: Any, s1: Any) -> list[Any]:
    """Returns the axes over which each side's gradient is summed after a broadcast.

    Where both sides have size 1, TensorFlow sums both.
    """
    rank = max(len(s0), len(s1))
    padded = [[1] * (rank - len(shape)) + list(shape) for shape in (s0, s1)]
    axes: tuple[list[int], list[int]] = ([], [])
    for axis, (a, b) in enumerate(zip(*padded, strict=True)):
        if a != b and a != 1 and b != 1:
            raise errors.InvalidArgumentError(f"Incompatible shapes: {list(s0)} vs. {list(s1)}")
        for size, other, found, length in ((a, b, 0, len(s0)), (b, a, 1, len(s1))):
            if size == 1 and (other != 1 or axis < rank - length or a == b == 1):
                axes[found].append(axis)
    return [np.asarray(found, s0.dtype) for found in axes]


@kernel("BroadcastArgs", static=("s0", "s1"), gives_sizes=True)
def broadcast_args(s0: Any, s1: Any) -> Any:
    return np.asarray(np.broadcast_shapes(tuple(s0), tuple(s1)), s0.dtype)


@kernel("ConcatOffset", static=("concat_dim", "shape"), gives_sizes=True)
def concat_offset(concat_dim: Any, *shape: Any) -> list[Any]:
    axis, total, offsets = int(concat_dim), 0, []
    for sizes in shape:
        offset = np.zeros_like(sizes)
        offset[axis] = total
        total += sizes[axis]
        offsets.append(offset)
    return offsets


@on_host("InvertPermutation")
def invert_permutation_of_axes(x: Any) -> Any:
    return np.argsort(x).astype(x.dtype)


@kernel("InvertPermutation")
def invert_permutation(x: Any) -> Any:
    return jnp.argsort(x).astype(x.dtype)


@kernel(
    "StridedSliceGrad",
    static=("shape", "begin", "end", "strides"),
    traceable=("begin", "end"),
)
def strided_slice_grad(
    shape: Any,
    begin: Any,
    end: Any,
    strides: Any,
    dy: Any,
    *,
    begin_mask: int,
    end_mask: int,
    ellipsis_mask: int,
    new_axis_mask: int,
    shrink_axis_mask: int,
) -> Any:
    masks = (begin_mask, end_mask, ellipsis_mask, new_axis_mask, shrink_axis_mask)
    starts, limits = ends_of_slices(begin, end, masks)
    index = index_of_slices(starts, limits, ints(strides), masks)
    taken = jax.ShapeDtypeStruct(ints(shape), dy.dtype)
    return jax.linear_transpose(lambda x: x[index], taken)(jnp.asarray(dy))[0]


# --- values ------------------------------------------------------------------------------------


@kernel("OneHot", static=("depth",))
def one_hot(indices: Any, depth: Any, on_value: Any, off_value: Any, *, axis: int) -> Any:
    place = indices.ndim if axis == -1 else axis
    classes = jnp.arange(scalar(depth), dtype=indices.dtype)
    others = [a for a in range(indices.ndim + 1) if a != place]
    is_hot = jnp.expand_dims(indices, place) == jnp.expand_dims(classes, others)
    return jnp.where(is_hot, on_value, off_value)


@kernel("LinSpace", static=("num",))
def lin_space(start: Any, stop: Any, num: Any) -> Any:
    return jnp.linspace(start, stop, int(num), dtype=start.dtype)


@kernel("Mean", static=("reduction_indices",))
def mean(input: Any, reduction_indices: Any, *, keep_dims: bool) -> Any:
    input = jnp.asarray(input)
    axes = tuple(int(axis) % input.ndim for axis in np.ravel(reduction_indices) if input.ndim)
    count = count_as(math.prod(input.shape[axis] for axis in axes), input.dtype)
    total = jnp.sum(input, axes, dtype=input.dtype, keepdims=keep_dims)
    return lax.div(total, jnp.broadcast_to(count, total.shape)) if axes else total


@kernel("EuclideanNorm", static=("reduction_indices",))
def euclidean_norm(input: Any, reduction_indices: Any, *, keep_dims: bool) -> Any:
    axes = tuple(ints(reduction_indices))
    squares = jnp.real(input * jnp.conj(input)).astype(input.dtype)
    return jnp.sqrt(jnp.sum(squares, axes, keepdims=keep_dims))


@kernel("Einsum")
def einsum(*inputs: Any, equation: bytes) -> Any:
    """Returns a sum of products; a label may come twice on either side, for a diagonal."""
    taken, given = equation.decode().replace(" ", "").split("->")
    labels = "".join(dict.fromkeys(given.replace("...", "")))
    result = jnp.einsum(f"{taken}->{'...' if '...' in given else ''}{labels}", *inputs)
    if "..." not in given and labels == given:
        return result
    batch = result.ndim - len(labels)
    first = given.index("...") if "..." in given else 0
    axes = [labels.index(label) + batch for label in given.replace("...", "")]
    axes[first:first] = range(batch)
    if len(set(axes)) == len(axes):
        return jnp.transpose(result, axes)
    shape = [result.shape[axis] for axis in axes]
    index = np.indices(result.shape, sparse=True)
    return jnp.zeros(shape, result.dtype).at[tuple(index[axis] for axis in axes)].set(result)


@kernel("EnsureShape")
def ensure_shape(input: Any, *, shape: Any) -> Any:
    wanted = tuple(shape) if shape is not None else None
    if wanted is not None and (
        len(wanted) != input.ndim
        or any(
            size not in (None, -1) and size != have
            for size, have in zip(wanted, input.shape, strict=True)
        )
    ):
        raise errors.InvalidArgumentError(
            f"Shape of tensor {list(input.shape)} is not compatible with expected shape "
            f"{list(wanted)}"
        )
    return input


@kernel("DisableCopyOnRead")
def disable_copy_on_read(resource: Any) -> tuple[()]:
    del resource  # arrays are never changed in place
    return ()


@kernel("ControlTrigger", flow=Flow.TRIGGER)
def control_trigger() -> tuple[()]:
    return ()


@kernel("Roll", static=("shift", "axis"))
def roll(input: Any, shift: Any, axis: Any) -> Any:
    return jnp.roll(input, tuple(np.ravel(shift).tolist()), tuple(np.ravel(axis).tolist()))


# --- sequences, blocks and bands ---------------------------------------------------------------


@kernel("ReverseSequence")
def reverse_sequence(input: Any, seq_lengths: Any, *, seq_dim: int, batch_dim: int) -> Any:
    shape = [1] * input.ndim
    shape[seq_dim] = input.shape[seq_dim]
    places = jnp.reshape(jnp.arange(input.shape[seq_dim], dtype=seq_lengths.dtype), shape)
    shape = [1] * input.ndim
    shape[batch_dim] = input.shape[batch_dim]
    lengths = jnp.reshape(seq_lengths, shape)
    index = jnp.where(places < lengths, lengths - 1 - places, places)
    full = [1 if a not in (seq_dim, batch_dim) else n for a, n in enumerate(input.shape)]
    return jnp.take_along_axis(input, jnp.broadcast_to(index, full), axis=seq_dim)


@kernel("MatrixBandPart", "BatchMatrixBandPart")
def matrix_band_part(input: Any, num_lower: Any, num_upper: Any) -> Any:
    rows, columns = input.shape[-2:]
    below = jnp.arange(rows)[:, None] - jnp.arange(columns)[None, :]
    is_kept = ((num_lower < 0) | (below <= num_lower)) & ((num_upper < 0) | (-below <= num_upper))
    return jnp.where(is_kept, input, jnp.zeros((), input.dtype))


@kernel("SpaceToBatchND", static=("block_shape", "paddings"))
def space_to_batch_nd(input: Any, block_shape: Any, paddings: Any) -> Any:
    blocks, count = ints(block_shape), len(ints(block_shape))
    pads = [(0, 0), *pairs(paddings)] + [(0, 0)] * (input.ndim - 1 - count)
    padded = jnp.pad(input, pads)
    shape = [padded.shape[0]]
    for size, block in zip(padded.shape[1:], blocks, strict=False):
        shape += [size // block, block]
    rest = padded.shape[1 + count :]
    split_up = jnp.reshape(padded, (*shape, *rest))
    within = list(range(2, 2 + 2 * count, 2))
    order = [*within, 0, *range(1, 1 + 2 * count, 2), *range(1 + 2 * count, split_up.ndim)]
    sizes = [size // block for size, block in zip(padded.shape[1:], blocks, strict=False)]
    batch = padded.shape[0] * math.prod(blocks)
    return jnp.reshape(jnp.transpose(split_up, order), (batch, *sizes, *rest))


@kernel("BatchToSpaceND", static=("block_shape", "crops"))
def batch_to_space_nd(input: Any, block_shape: Any, crops: Any) -> Any:
    blocks, count = ints(block_shape), len(ints(block_shape))
    batch = input.shape[0] // math.prod(blocks)
    rest = input.shape[1 + count :]
    split_up = jnp.reshape(input, (*blocks, batch, *input.shape[1:]))
    order = [count]
    for axis in range(count):
        order += [count + 1 + axis, axis]
    order += range(2 * count + 1, split_up.ndim)
    sizes = [size * block for size, block in zip(input.shape[1:], blocks, strict=False)]
    joined = jnp.reshape(jnp.transpose(split_up, order), (batch, *sizes, *rest))
    cuts = [slice(low, size - high) for size, (low, high) in zip(sizes, pairs(crops), strict=True)]
    return joined[(slice(None), *cuts)]


@kernel("SpaceToBatch", static=("paddings",))
def space_to_batch(input: Any, paddings: Any, *, block_size: int) -> Any:
    return space_to_batch_nd(input, np.array([block_size] * 2), paddings)


@kernel("BatchToSpace", static=("crops",))
def batch_to_space(input: Any, crops: Any, *, block_size: int) -> Any:
    return batch_to_space_nd(input, np.array([block_size] * 2), crops)


def _in_nhwc(fn: Callable[[Any, int], Any]) -> Callable[..., Any]:
    def run(input: Any, *, block_size: int, data_format: bytes) -> Any:
        if data_format == b"NHWC":
            return fn(input, block_size)
        if data_format != b"NCHW":
            raise errors.UnsupportedOpError(
                f"the data_format {data_format.decode()} is not supported"
            )
        return jnp.moveaxis(fn(jnp.moveaxis(input, 1, -1), block_size), -1, 1)

    return run


def _space_to_depth(x: Any, block: int) -> Any:
    n, h, w, c = x.shape
    blocks = jnp.reshape(x, (n, h // block, block, w // block, block, c))
    channels = block * block * c
    return jnp.reshape(
        jnp.transpose(blocks, (0, 1, 3, 2, 4, 5)), (n, h // block, w // block, channels)
    )


def _depth_to_space(x: Any, block: int) -> Any:
    n, h, w, c = x.shape
    depth = c // (block * block)
    blocks = jnp.reshape(x, (n, h, w, block, block, depth))
    return jnp.reshape(jnp.transpose(blocks, (0, 1, 3, 2, 4, 5)), (n, h * block, w * block, depth))


kernel("SpaceToDepth")(_in_nhwc(_space_to_depth))
kernel("DepthToSpace")(_in_nhwc(_depth_to_space))
