"""TensorFlow 1's arrays of tensors, which loops fill, and the stacks of its gradients.

A handle is a key of the state's ``cells``, which hold a list as its value; see `_cells`. What goes
along the edges as a flow only orders the operations. Indices that are traced are checked at the
end of the run; an element that was never written reads as zeros there.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import errors
from jaxmeta.ops import _list_elements
from jaxmeta.ops import _tensor_lists as tensor_lists
from jaxmeta.ops._cells import Stack, TensorArray, check, gradients_of
from jaxmeta.ops._definition import kernel

_ARRAYS = ("", "V2", "V3")


def _names(suffix: str) -> list[str]:
    return [f"TensorArray{suffix}{version}" for version in _ARRAYS]


def _flow() -> Any:
    return np.zeros((), np.float32)


def _shape(element_shape: Any) -> tuple[int, ...] | None:
    if element_shape is None:
        return None
    return tuple(-1 if size is None else size for size in element_shape)


def _held(state: Any, handle: Any) -> Any:
    """Returns the list that a handle stands for.

    Raises:
        UnsupportedOpError: it was made in an iteration that is over.
    """
    items = state.cells.get(handle)
    if items is None:
        raise errors.UnsupportedOpError(
            f"{handle.name!r} was made in a loop or branch, and is used outside of it"
        )
    return items


# --- making ------------------------------------------------------------------------------------


@kernel("TensorArray", "TensorArrayV2", static=("size",), may_need_values=True)
def tensor_array_handle(
    state: Any, size: Any, *, dtype: int, element_shape: Any, dynamic_size: bool, node_name: str
) -> TensorArray:
    handle = TensorArray(state.unique_name(node_name), dynamic_size)
    state.cells[handle] = tensor_lists.TensorList((None,) * int(size), _shape(element_shape), dtype)
    return handle


@kernel("TensorArrayV3", static=("size",), may_need_values=True)
def tensor_array(
    state: Any, size: Any, *, dtype: int, element_shape: Any, dynamic_size: bool, node_name: str
) -> list[Any]:
    handle = tensor_array_handle(
        state,
        size,
        dtype=dtype,
        element_shape=element_shape,
        dynamic_size=dynamic_size,
        node_name=node_name,
    )
    return [handle, _flow()]


@kernel("TensorArrayGrad", "TensorArrayGradV2", may_need_values=True)
def tensor_array_grad_handle(
    state: Any, handle: Any, flow_in: Any, *, source: bytes
) -> TensorArray:
    """Returns the array of the gradients of an array; the same one for the same source."""
    del flow_in
    gradients = TensorArray(f"{handle.name}@{source.decode()}", forward=handle)
    if gradients not in state.cells:
        state.cells[gradients] = gradients_of(_held(state, handle))
    return gradients


@kernel("TensorArrayGradV3", may_need_values=True)
def tensor_array_grad(state: Any, handle: Any, flow_in: Any, *, source: bytes) -> list[Any]:
    return [tensor_array_grad_handle(state, handle, flow_in, source=source), flow_in]


@kernel("TensorArrayGradWithShape", may_need_values=True)
def tensor_array_grad_with_shape(
    state: Any, handle: Any, flow_in: Any, shape_to_prepend: Any, *, source: bytes
) -> list[Any]:
    gradients = tensor_array_grad_handle(state, handle, flow_in, source=source)
    first = tuple(np.asarray(shape_to_prepend).tolist())
    items = _held(state, handle)
    element = tensor_lists.element_of(items)
    shape: Any = getattr(element, "shape", items.element_shape)
    shape = None if shape is None else (*first, *shape)
    length = tensor_lists.length_of(items)
    state.cells[gradients] = tensor_lists.TensorList((None,) * length, shape, items.dtype_number)
    return [gradients, flow_in]


# --- elements ----------------------------------------------------------------------------------


def _is_inside(index: Any, length: Any) -> Any:
    return (index >= 0) & (index < length)


@kernel(*_names("Write"), may_need_values=True)
def tensor_array_write(state: Any, handle: Any, index: Any, value: Any, flow_in: Any) -> Any:
    _write(state, handle, index, value)
    return flow_in


def _write(state: Any, handle: TensorArray, index: Any, value: Any) -> None:
    """Sets an element; gradients of one element are summed."""
    items = _held(state, handle)
    if handle.is_dynamic:
        items = _with_place(items, index, value)
    length = tensor_lists.length_of(items)
    check(
        state,
        _is_inside(index, length),
        "Tried to write to index {} but array is not resizeable and size is: {}",
        index,
        length,
    )
    if isinstance(items, tensor_lists.StackedList):
        check(state, index < items.capacity, "an array grew faster than its loop iterates")
    state.cells[handle] = _list_elements.put(items, index, value, adds=handle.forward is not None)


def _with_place(items: Any, index: Any, value: Any) -> Any:
    """Returns an array that is long enough for an index."""
    length = tensor_lists.length_of(items)
    if tensor_lists.is_known(index) and tensor_lists.is_known(length):
        size = int(index) + 1
        return items if size <= length else _list_elements.resized(items, size)
    return _list_elements.lengthened(items, value, jnp.maximum(length, index + 1))


@kernel(*_names("Read"), may_need_values=True, gives_sizes=True)
def tensor_array_read(state: Any, handle: Any, index: Any, flow_in: Any) -> Any:
    del flow_in
    return _read(state, handle, index)


def _read(state: Any, handle: TensorArray, index: Any) -> Any:
    """Returns an element; zeros where it was not written and its shape is known."""
    items = _held(state, handle)
    length = tensor_lists.length_of(items)
    check(
        state,
        _is_inside(index, length),
        "Tried to read from index {} but array size is: {}",
        index,
        length,
    )
    return _list_elements.get(items, index, _shape_of_gradient(state, handle, index))


def _shape_of_gradient(state: Any, handle: TensorArray, index: Any) -> tuple[int, ...] | None:
    """Returns the shape of the element that a gradient belongs to, where that is known."""
    if handle.forward is None:
        return None
    forward = state.cells.get(handle.forward)
    if isinstance(forward, tensor_lists.TensorList) and tensor_lists.is_known(index):
        like = forward.items[int(index)] if int(index) < len(forward.items) else None
        return None if like is None else np.shape(like)
    element: Any = None if forward is None else tensor_lists.element_of(forward)
    return tuple(element.shape) if isinstance(element, jax.ShapeDtypeStruct) else None


@kernel(*_names("Scatter"), may_need_values=True)
def tensor_array_scatter(state: Any, handle: Any, indices: Any, value: Any, flow_in: Any) -> Any:
    items = _held(state, handle)
    length = tensor_lists.length_of(items)
    is_new = isinstance(items, tensor_lists.TensorList) and not any(
        item is not None for item in items.items
    )
    size = np.shape(value)[0]
    is_range = tensor_lists.is_known(indices) and tensor_lists.is_same(
        np.asarray(indices, np.int32), np.arange(size, dtype=np.int32)
    )
    if is_new and is_range and (size == length or (handle.is_dynamic and size >= length)):
        made = _list_elements.from_rows(value, items.element_shape, items.dtype_number)
        state.cells[handle] = made
        return flow_in
    for place in range(size):
        index = np.asarray(indices)[place] if tensor_lists.is_known(indices) else indices[place]
        _write(state, handle, index, value[place])
    return flow_in


@kernel(*_names("Gather"), may_need_values=True)
def tensor_array_gather(
    state: Any, handle: Any, indices: Any, flow_in: Any, *, element_shape: Any
) -> Any:
    del flow_in
    items = _held(state, handle)
    length = tensor_lists.length_of(items)
    check(
        state,
        _is_inside(indices, length),
        "Tried to read from indices {} but array size is: {}",
        indices,
        length,
    )
    if isinstance(items, tensor_lists.TensorList) and tensor_lists.is_known(indices):
        rows = [_read(state, handle, index) for index in np.asarray(indices).tolist()]
        return jnp.stack(rows) if rows else _list_elements.no_rows(items, element_shape)
    return _list_elements.some_rows(items, indices)


# --- all at once -------------------------------------------------------------------------------


@kernel("TensorArrayPack", may_need_values=True)
def tensor_array_pack(state: Any, handle: Any, flow_in: Any) -> Any:
    del flow_in
    return _list_elements.all_rows(_held(state, handle))


@kernel("TensorArrayUnpack", may_need_values=True)
def tensor_array_unpack(state: Any, handle: Any, value: Any, flow_in: Any) -> Any:
    indices = np.arange(np.shape(value)[0], dtype=np.int32)
    return tensor_array_scatter(state, handle, indices, value, flow_in)


@kernel(*_names("Concat"), may_need_values=True)
def tensor_array_concat(state: Any, handle: Any, flow_in: Any) -> list[Any]:
    del flow_in
    return _list_elements.joined(_held(state, handle))


@kernel(*_names("Split"), static=("lengths",), may_need_values=True)
def tensor_array_split(state: Any, handle: Any, value: Any, lengths: Any, flow_in: Any) -> Any:
    places = np.cumsum(lengths)[:-1]
    for index, part in enumerate(jnp.split(value, places)):
        _write(state, handle, np.int32(index), part)
    return flow_in


@kernel(*_names("Size"), may_need_values=True, gives_sizes=True)
def tensor_array_size(state: Any, handle: Any, flow_in: Any) -> Any:
    del flow_in
    length = tensor_lists.length_of(_held(state, handle))
    return length if isinstance(length, jax.Array) else np.asarray(length, np.int32)


@kernel(*_names("Close"), may_need_values=True)
def tensor_array_close(state: Any, handle: Any) -> tuple[()]:
    del state, handle  # what is not used any more needs no memory in a compiled program
    return ()


# --- stacks ------------------------------------------------------------------------------------


@kernel("StackV2", may_need_values=True)
def stack(state: Any, max_size: Any, *, elem_type: int, node_name: str) -> Stack:
    del max_size  # TensorFlow refuses what goes beyond; loops that ask for it never do
    return stack_of_any_size(state, elem_type=elem_type, node_name=node_name)


@kernel("Stack", may_need_values=True)
def stack_of_any_size(state: Any, *, elem_type: int, node_name: str) -> Stack:
    handle = Stack(state.unique_name(node_name))
    state.cells[handle] = tensor_lists.TensorList((), None, elem_type)
    return handle


@kernel("StackPush", "StackPushV2", may_need_values=True, gives_sizes=True)
def stack_push(state: Any, handle: Any, elem: Any) -> Any:
    state.cells[handle] = _list_elements.push(_held(state, handle), elem)
    return elem


@kernel("StackPop", "StackPopV2", may_need_values=True, gives_sizes=True)
def stack_pop(state: Any, handle: Any) -> Any:
    items = _held(state, handle)
    check(state, tensor_lists.length_of(items) > 0, "Stack is empty when calling Pop()")
    state.cells[handle], value = _list_elements.pop(items)
    return value


@kernel("StackClose", "StackCloseV2", may_need_values=True)
def stack_close(state: Any, handle: Any) -> tuple[()]:
    state.cells[handle] = _held(state, handle)
    return ()
