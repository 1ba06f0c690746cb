"""Reading and writing the elements of lists.

The functions here take either form of a list, and go over to the stacked one where they must.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import errors
from jaxmeta.ops._tensor_lists import (
    AnyList,
    Constant,
    StackedList,
    TensorList,
    capacity_of,
    element_dtype,
    is_constant,
    is_known,
    is_same,
    length_of,
    map_values,
    plain_value,
    rows_as_arrays,
    spec_of,
    stacked,
    without_constants,
)


def zeros_of_element(shape: Any, dtype: Any, others: Sequence[Any]) -> Any:
    """Returns zeros in place of an element that was not set.

    Raises:
        InvalidArgumentError: neither the shape is known, nor that of another element.
    """
    is_known_shape = shape is not None and all(n is not None and n >= 0 for n in shape)
    if not is_known_shape:
        shape = next((np.shape(other) for other in others if other is not None), None)
    if shape is None:
        raise errors.InvalidArgumentError("an element was read that was never written")
    return jnp.zeros(tuple(shape), dtype)


def get(items: AnyList, index: Any, element_shape: tuple[int, ...] | None = None) -> Any:
    """Returns an element; zeros where it was not set. The index is one that the list has."""
    if isinstance(items, TensorList):
        if is_known(index):
            value = items.items[int(index)]
            if value is not None:
                return value
            shape = element_shape
            if shape is None or min(shape, default=0) < 0:
                shape = items.element_shape
            return zeros_of_element(shape, element_dtype(items.dtype_number), items.items)
        is_full = element_shape is not None and min(element_shape, default=0) >= 0
        known = dataclasses.replace(items, element_shape=element_shape) if is_full else items
        items = stacked(known)

    def row(rows: Any) -> Any:
        if isinstance(rows, Constant):
            return rows.value
        return jax.lax.dynamic_index_in_dim(rows, _index(index), keepdims=False)

    return jax.tree.map(row, items.rows, is_leaf=is_constant)


def _index(index: Any) -> Any:
    return index if not is_known(index) else int(index)


def put(items: AnyList, index: Any, value: Any, *, adds: bool = False) -> AnyList:
    """Returns the list with an element set, or added to. The index is one that the list has."""
    if isinstance(items, TensorList) and is_known(index):
        elements = list(items.items)
        old = elements[int(index)]
        elements[int(index)] = value if old is None or not adds else old + value
        return items.replaced(elements)
    is_sealed = isinstance(items, StackedList) and items.is_sealed
    try:
        made = stacked(items, spec_of(value), is_sealed=is_sealed)
    except errors.UnsupportedOpError:
        if not (isinstance(items, StackedList) and is_known(index) and is_known(items.length)):
            raise
        return put(unstacked(items), index, value, adds=adds)
    treedef: Any = jax.tree.structure(made.rows, is_leaf=is_constant)
    leaves = treedef.flatten_up_to(value)
    given = iter(leaves)

    def set_row(rows: Any) -> Any:
        leaf = next(given)
        if isinstance(rows, Constant):
            return rows
        row = jnp.asarray(plain_value(leaf), rows.dtype)
        if adds:
            row = row + jax.lax.dynamic_index_in_dim(rows, _index(index), keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(rows, row, _index(index), 0)

    return dataclasses.replace(made, rows=jax.tree.map(set_row, made.rows, is_leaf=is_constant))


def unstacked(items: AnyList) -> TensorList:
    """Returns a list of known length as its elements one by one."""
    if isinstance(items, TensorList):
        return items
    elements = tuple(get(items, index) for index in range(int(items.length)))
    return TensorList(elements, items.element_shape, items.dtype_number)


def push(items: AnyList, value: Any) -> AnyList:
    """Returns the list with an element more at its end."""
    if isinstance(items, TensorList):
        return items.replaced((*items.items, value))
    has_place = items.is_sealed or (isinstance(items.length, int) and items.length < items.capacity)
    if not has_place:
        items = stacked(items, spec_of(value), items.capacity + 1)
    made = put(items, items.length, value)
    assert isinstance(made, StackedList)
    return dataclasses.replace(made, length=items.length + 1)


def pop(items: AnyList, element_shape: tuple[int, ...] | None = None) -> tuple[AnyList, Any]:
    """Returns the list without its last element, and that; there is one."""
    if isinstance(items, TensorList):
        last = get(items, len(items.items) - 1, element_shape)
        return items.replaced(items.items[:-1]), last
    length = items.length - 1
    return dataclasses.replace(items, length=length), get(items, length)


def resized(items: AnyList, size: Any) -> AnyList:
    """Returns the list with its last elements dropped, or more that are not set.

    Raises:
        UnsupportedOpError: the size is traced.
    """
    if not (is_known(size) and is_known(length_of(items))):
        raise errors.UnsupportedOpError("a list gets a size that is not known while tracing")
    items, size = unstacked(items), int(size)
    return items.replaced((*items.items[:size], *[None] * (size - len(items.items))))


def lengthened(items: AnyList, value: Any, length: Any) -> StackedList:
    """Returns the list with places for an element more, and a length that is traced.

    Args:
        items: the list.
        value: what its elements are like.
        length: how many elements it has then.
    """
    is_sealed = isinstance(items, StackedList) and items.is_sealed
    capacity = capacity_of(items) + (not is_sealed)
    element = without_constants(spec_of(value))
    made = stacked(items, element, capacity, is_sealed=is_sealed)
    return dataclasses.replace(made, length=length)


def joined(items: AnyList) -> list[Any]:
    """Returns the elements joined along their first axis, and how much each has of it."""
    if isinstance(items, StackedList):
        rows = all_rows(items)
        lengths = np.full(len(rows), rows.shape[1], np.int64)
        return [jnp.reshape(rows, (-1, *rows.shape[2:])), lengths]
    rows = [get(items, index) for index in range(len(items.items))]
    lengths = np.asarray([row.shape[0] for row in rows], np.int64)
    return [jnp.concatenate(rows), lengths]


def all_rows(items: AnyList, element_shape: tuple[int, ...] | None = None) -> Any:
    """Returns the elements as the rows of one array.

    Raises:
        UnsupportedOpError: how many there are is not known while tracing.
    """
    if isinstance(items, StackedList):
        if not isinstance(items.length, int):
            raise errors.UnsupportedOpError("the length of a list is not known while tracing")
        rows = rows_as_arrays(items)
        return rows if items.length == items.capacity else rows[: items.length]
    elements = [get(items, index, element_shape) for index in range(len(items.items))]
    return jnp.stack(elements) if elements else no_rows(items, element_shape)


def no_rows(items: AnyList, element_shape: Sequence[int | None] | None) -> Any:
    """Returns the array of no elements of a list."""
    shape = element_shape if element_shape is not None else items.element_shape
    sizes = [max(size or 0, 0) for size in shape or ()]
    return jnp.zeros((0, *sizes), element_dtype(items.dtype_number))


def some_rows(items: AnyList, indices: Any, element_shape: Any = None) -> Any:
    """Returns elements as the rows of one array."""
    if is_known(indices) and isinstance(items, TensorList):
        rows = [get(items, index, element_shape) for index in np.asarray(indices).tolist()]
        return jnp.stack(rows) if rows else no_rows(items, element_shape)
    is_range = is_known(indices) and isinstance(length_of(items), int)
    if is_range and is_same(np.asarray(indices), np.arange(length_of(items), dtype=np.int32)):
        return all_rows(items, element_shape)
    return jnp.take(rows_as_arrays(stacked(items)), jnp.asarray(indices), axis=0)


def from_rows(array: Any, element_shape: tuple[int, ...] | None, dtype_number: int) -> StackedList:
    """Returns the list of the rows of an array."""
    return StackedList(array, len(array), len(array), element_shape, dtype_number)


def zeros_like(items: AnyList) -> AnyList:
    """Returns a list of zeros."""
    if isinstance(items, TensorList):
        return items.replaced([map_values(jnp.zeros_like, item) for item in items.items])
    return dataclasses.replace(items, rows=map_values(jnp.zeros_like, rows_as_arrays(items)))
