"""Parts of tensors: how they are spelled, and how a whole is put together from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from jaxmeta import errors
from jaxmeta._proto import checkpoint_pb2

Array: TypeAlias = np.ndarray[Any, Any]
Extents: TypeAlias = tuple[tuple[int, int], ...]
"""A block of a tensor: start and length in each dimension."""

_ALL: Final = "-"
_FULL_EXTENT: Final = (0, -1)


class SliceSpec(NamedTuple):
    """What ``shape_and_slices`` of a Save or Restore op says about one tensor."""

    full_shape: tuple[int, ...]
    extents: Extents


class Partitioned(NamedTuple):
    """Blocks of a tensor, in place of the tensor."""

    shape: tuple[int, ...]
    parts: tuple[tuple[Extents, Any], ...]


def parse_slice_spec(spec: str) -> SliceSpec:
    """Returns what a spec such as ``"10 7 4,3:0,7"`` says; ``-`` is a whole dimension.

    Raises:
        CheckpointError: it is not well formed, or its block is not within the shape.

    Example:
        >>> parse_slice_spec("10 7 4,3:-")
        SliceSpec(full_shape=(10, 7), extents=((4, 3), (0, 7)))
    """
    *sizes, blocks = spec.split(" ")
    try:
        shape = tuple(map(int, sizes))
        extents = tuple(
            (0, size) if block == _ALL else tuple(map(int, block.split(",")))
            for size, block in zip(shape, blocks.split(":"), strict=True)
        )
        fits = all(
            min(start, length) >= 0 and start + length <= size
            for (start, length), size in zip(extents, shape, strict=True)
        )
    except ValueError:
        fits = False
    if not fits:
        raise errors.CheckpointError(
            f"{spec!r} is not the part of a tensor; expected sizes, then a start and a length in "
            "each dimension, as in '10 7 4,3:0,7'"
        )
    return SliceSpec(shape, extents)  # type: ignore[arg-type]


def shape_of(extents: Extents) -> tuple[int, ...]:
    """Returns the shape of a block."""
    return tuple(length for _, length in extents)


def index_of(extents: Extents) -> tuple[slice, ...]:
    """Returns the block as an index of the whole."""
    return tuple(slice(start, start + length) for start, length in extents)


def is_whole(extents: Extents, shape: Sequence[int]) -> bool:
    """Returns whether a block is all of a shape."""
    return shape_of(extents) == tuple(shape)


def extents_to_proto(extents: Extents) -> checkpoint_pb2.TensorSliceProto:
    """Returns the proto of a block."""
    proto = checkpoint_pb2.TensorSliceProto()
    for start, length in extents:
        proto.extent.add(start=start, length=length)
    return proto


def extents_from_proto(proto: checkpoint_pb2.TensorSliceProto) -> Extents:
    """Returns the block in a proto; a dimension that is whole is (0, -1)."""
    return tuple(
        (extent.start, extent.length) if extent.HasField("length") else _FULL_EXTENT
        for extent in proto.extent
    )


def resolve(extents: Extents, shape: Sequence[int]) -> Extents:
    """Returns a block with the lengths of whole dimensions filled in.

    Raises:
        CheckpointError: the block is not within the shape.
    """
    if len(extents) != len(shape):
        raise errors.CheckpointError(f"a part {extents} of a tensor of shape {tuple(shape)}")
    resolved = tuple(
        (0, size) if extent == _FULL_EXTENT else extent
        for extent, size in zip(extents, shape, strict=True)
    )
    for (start, length), size in zip(resolved, shape, strict=True):
        if start < 0 or length < 0 or start + length > size:
            raise errors.CheckpointError(
                f"a part {resolved} is not within a tensor of shape {tuple(shape)}"
            )
    return resolved


def assemble(
    wanted: Extents, dtype: np.dtype[Any], parts: Iterable[tuple[Extents, Callable[[], Array]]]
) -> Array:
    """Returns a block of a tensor of which blocks are stored.

    Args:
        wanted: the block.
        dtype: of the tensor.
        parts: the stored blocks, with what reads each.

    Raises:
        CheckpointError: the stored blocks leave out some of the wanted one.
    """
    result = np.empty(shape_of(wanted), dtype)
    is_filled = np.zeros(result.shape, np.bool_)
    for extents, read in parts:
        common = [
            (max(start, other), min(start + length, other + size))
            for (start, length), (other, size) in zip(wanted, extents, strict=True)
        ]
        if any(low >= high for low, high in common):
            continue
        target = tuple(
            slice(low - start, high - start)
            for (low, high), (start, _) in zip(common, wanted, strict=True)
        )
        source = tuple(
            slice(low - start, high - start)
            for (low, high), (start, _) in zip(common, extents, strict=True)
        )
        result[target] = read()[source]
        is_filled[target] = True
    if not is_filled.all():
        count = math.prod(is_filled.shape) - int(is_filled.sum())
        raise errors.CheckpointError(
            f"the parts that are stored leave out {count} of {is_filled.size} elements"
        )
    return result
