"""Places within what a mutable array holds, read and written as JAX itself does.

It matters how: a slice that begins at a computed place is moved inside the array where it would
reach out of it, while a gather or scatter leaves out what lies outside.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

Transforms = Sequence[Any]
"""Indexers as the primitives of references have them, each within what the one before chose."""


class UnknownPlaceError(Exception):
    """A reference is viewed in a way that is not known here."""


def read(value: Any, transforms: Transforms) -> Any:
    """Returns what stands at a place."""
    for transform in transforms:
        value = _read(value, _checked(transform))
    return value


def swap(value: Any, transforms: Transforms, new: Any) -> tuple[Any, Any]:
    """Returns what stands at a place, and the whole with something else there."""
    if not transforms:
        return value, new
    first, *rest = transforms
    indexer = _checked(first)
    inner = value if _is_whole(indexer, value.shape) else _gather(value, indexer)
    old, changed = swap(inner, rest, new)
    if _is_whole(indexer, value.shape):
        return old, changed
    starts = _starts(indexer)
    if starts is not None:
        update = lax.expand_dims(changed, _scalar_axes(indexer))
        return old, lax.dynamic_update_slice(value, update, starts)
    return old, _scatter(value, indexer, lambda at: at.set(changed))


def add(value: Any, transforms: Transforms, change: Any) -> Any:
    """Returns the whole with something added at a place."""
    if len(transforms) > 1:
        raise UnknownPlaceError("something added to a part of a part of a reference")
    if not transforms or _is_whole(_checked(transforms[0]), value.shape):
        return value + change
    (indexer,) = transforms
    starts = _starts(indexer)
    if starts is not None:
        old = lax.dynamic_slice(value, starts, _sizes(indexer))
        update = lax.expand_dims(change, _scalar_axes(indexer))
        return lax.dynamic_update_slice(value, old + update, starts)
    return _scatter(value, indexer, lambda at: at.add(change))


def _checked(transform: Any) -> Any:
    if not hasattr(transform, "indices"):
        raise UnknownPlaceError(f"a reference viewed by a {type(transform).__name__}")
    return transform


def _is_slice(index: Any) -> bool:
    return hasattr(index, "size") and hasattr(index, "stride")


def _is_whole(indexer: Any, shape: Sequence[int]) -> bool:
    return all(
        _is_slice(index) and _is_number(index.start) and index.start == 0 and index.size == size
        for index, size in zip(indexer.indices, shape, strict=True)
    )


def _is_number(start: Any) -> bool:
    return isinstance(start, (int, np.integer))


def _read(value: Any, indexer: Any) -> Any:
    if _is_whole(indexer, value.shape):
        return value
    indices = indexer.indices
    if all(_is_slice(index) and _is_number(index.start) for index in indices):
        stops = [index.start + (index.size - 1) * index.stride + 1 for index in indices]
        starts, strides = [i.start for i in indices], [i.stride for i in indices]
        return lax.slice(value, starts, stops, strides)
    return _gather(value, indexer)


def _gather(value: Any, indexer: Any) -> Any:
    starts = _starts(indexer)
    if starts is not None:
        return lax.squeeze(lax.dynamic_slice(value, starts, _sizes(indexer)), _scalar_axes(indexer))
    order = _order(indexer)
    return value.transpose(order)[_arrays(indexer, order)]


def _scatter(value: Any, indexer: Any, change: Any) -> Any:
    order = _order(indexer)
    changed = change(value.transpose(order).at[_arrays(indexer, order)])
    return changed.transpose(np.argsort(order))


def _starts(indexer: Any) -> tuple[Any, ...] | None:
    """Returns where a contiguous part begins; None where an indexer says no such part."""
    for index in indexer.indices:
        if index.stride > 1 if _is_slice(index) else np.shape(index):
            return None
    return tuple(
        lax.convert_element_type(index.start if _is_slice(index) else index, np.int32)
        for index in indexer.indices
    )


def _sizes(indexer: Any) -> tuple[int, ...]:
    return tuple(index.size if _is_slice(index) else 1 for index in indexer.indices)


def _scalar_axes(indexer: Any) -> tuple[int, ...]:
    return tuple(i for i, index in enumerate(indexer.indices) if not _is_slice(index))


def _order(indexer: Any) -> list[int]:
    """Returns the axes, those of arrays first where slices stand between them, as in numpy."""
    axes = range(len(indexer.indices))
    arrays = [axis for axis in axes if not _is_slice(indexer.indices[axis])]
    if all(after - before == 1 for before, after in itertools.pairwise(arrays)):
        return list(axes)
    return [*arrays, *(axis for axis in axes if axis not in arrays)]


def _arrays(indexer: Any, order: Sequence[int]) -> tuple[Any, ...]:
    """Returns an array of places for each axis, in a given order of the axes."""
    indices = [indexer.indices[axis] for axis in order]
    shape = tuple(indexer.int_indexer_shape)
    is_array = [not _is_slice(index) for index in indices]
    after = is_array[::-1].index(True) if any(is_array) else len(indices)
    rank = len(indices) - sum(is_array) + (len(shape) if any(is_array) else 0)
    arrays, axis = [], 0
    for index in indices:
        if not _is_slice(index):
            spread = jnp.asarray(index)
            arrays.append(spread.reshape(spread.shape + (1,) * after))
            axis = rank - after
            continue
        places = lax.iota(np.int32, index.size) * index.stride + index.start
        arrays.append(places.reshape(places.shape + (1,) * (rank - axis - 1)))
        axis += 1
    return tuple(arrays)
