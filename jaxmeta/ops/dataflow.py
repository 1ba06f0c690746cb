"""TensorFlow's control flow of Switch and Merge nodes, and the lists that its loops fill.

These ops need values, not tracers: plans that hold them run op by op, as
`jaxmeta.execution.dataflow` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import dtypes, errors
from jaxmeta.ops._dataflow_values import (
    DEAD,
    Optional,
    Stack,
    TensorArray,
    TensorList,
    zeros_of_element,
)
from jaxmeta.ops._definition import kernel

# --- dataflow ----------------------------------------------------------------------------------


@kernel("Switch", "RefSwitch", needs_values=True, is_dataflow=True)
def switch(data: Any, pred: Any) -> list[Any]:
    return [DEAD, data] if bool(pred) else [data, DEAD]


@kernel("Merge", "RefMerge", needs_values=True)
def merge(*inputs: Any) -> list[Any]:
    """Returns the input that is alive, and its index."""
    index, value = next((i, x) for i, x in enumerate(inputs) if x is not DEAD)
    return [value, np.asarray(index, np.int32)]


@kernel(
    "Enter",
    "RefEnter",
    "Exit",
    "RefExit",
    "NextIteration",
    "RefNextIteration",
    needs_values=True,
    is_dataflow=True,
)
def pass_on(data: Any) -> Any:
    return data


@kernel("LoopCond", needs_values=True)
def loop_cond(input: Any) -> Any:
    return input


# --- arrays of tensors -------------------------------------------------------------------------


def _dtype(number: int) -> Any:
    return jax.dtypes.canonicalize_dtype(dtypes.dtype_from_number(number))


def _flow() -> Any:
    return np.zeros((), np.float32)


@kernel("TensorArrayV3", needs_values=True)
def tensor_array(size: Any, *, dtype: int, element_shape: Any, dynamic_size: bool) -> list[Any]:
    array = TensorArray(int(size), _dtype(dtype), element_shape, is_dynamic=dynamic_size)
    return [array, _flow()]


@kernel("TensorArrayGradV3", needs_values=True)
def tensor_array_grad(handle: Any, flow_in: Any, *, source: bytes) -> list[Any]:
    gradients = handle.gradients.get(source)
    if gradients is None:
        gradients = handle.gradients[source] = TensorArray(
            len(handle.items), handle.dtype, handle.element_shape, is_dynamic=False, forward=handle
        )
    return [gradients, flow_in]


@kernel("TensorArrayWriteV3", needs_values=True)
def tensor_array_write(handle: Any, index: Any, value: Any, flow_in: Any) -> Any:
    handle.write(int(index), value)
    return flow_in


@kernel("TensorArrayReadV3", needs_values=True)
def tensor_array_read(handle: Any, index: Any, flow_in: Any) -> Any:
    del flow_in
    return handle.read(int(index))


@kernel("TensorArrayScatterV3", needs_values=True)
def tensor_array_scatter(handle: Any, indices: Any, value: Any, flow_in: Any) -> Any:
    for index, row in zip(np.asarray(indices).tolist(), value, strict=True):
        handle.write(index, row)
    return flow_in


@kernel("TensorArrayGatherV3", needs_values=True)
def tensor_array_gather(handle: Any, indices: Any, flow_in: Any) -> Any:
    del flow_in
    rows = [handle.read(index) for index in np.asarray(indices).tolist()]
    return jnp.stack(rows) if rows else _no_rows(handle.element_shape, handle.dtype)


def _no_rows(element_shape: Any, dtype: Any) -> Any:
    sizes = [max(size or 0, 0) for size in element_shape or ()]
    return jnp.zeros((0, *sizes), dtype)


@kernel("TensorArrayConcatV3", needs_values=True)
def tensor_array_concat(handle: Any, flow_in: Any) -> list[Any]:
    del flow_in
    rows = [handle.read(index) for index in range(len(handle.items))]
    lengths = np.asarray([row.shape[0] for row in rows], np.int64)
    return [jnp.concatenate(rows), lengths]


@kernel("TensorArraySplitV3", needs_values=True)
def tensor_array_split(handle: Any, value: Any, lengths: Any, flow_in: Any) -> Any:
    places = np.cumsum(np.asarray(lengths))[:-1]
    for index, part in enumerate(jnp.split(value, places)):
        handle.write(index, part)
    return flow_in


@kernel("TensorArraySizeV3", needs_values=True)
def tensor_array_size(handle: Any, flow_in: Any) -> Any:
    del flow_in
    return np.asarray(len(handle.items), np.int32)


@kernel("TensorArrayCloseV3", needs_values=True)
def tensor_array_close(handle: Any) -> tuple[()]:
    handle.items.clear()
    return ()


# --- stacks ------------------------------------------------------------------------------------


@kernel("StackV2", needs_values=True)
def stack(max_size: Any) -> Any:
    del max_size
    return Stack()


@kernel("StackPushV2", needs_values=True)
def stack_push(handle: Any, elem: Any) -> Any:
    handle.items.append(elem)
    return elem


@kernel("StackPopV2", needs_values=True)
def stack_pop(handle: Any) -> Any:
    if not handle.items:
        raise errors.InvalidArgumentError("Stack is empty when calling Pop()")
    return handle.items.pop()


@kernel("StackCloseV2", needs_values=True)
def stack_close(handle: Any) -> tuple[()]:
    handle.items.clear()
    return ()


# --- lists -------------------------------------------------------------------------------------


def _shape_of(element_shape: Any) -> tuple[int, ...] | None:
    return tuple(np.asarray(element_shape).tolist()) if np.ndim(element_shape) else None


def _read(handle: TensorList, index: int, element_shape: Any) -> Any:
    value = handle.items[index]
    if value is not None:
        return value
    shape = _shape_of(element_shape)
    if shape is None or min(shape, default=0) < 0:
        shape = handle.element_shape
    return zeros_of_element(shape, _dtype(handle.dtype_number), handle.items)


def _check_index(handle: TensorList, index: int) -> int:
    if not 0 <= index < len(handle.items):
        raise errors.InvalidArgumentError(
            f"the list has {len(handle.items)} elements, the index is {index}"
        )
    return index


@kernel("EmptyTensorList", needs_values=True)
def empty_list(element_shape: Any, max_num_elements: Any, *, element_dtype: int) -> Any:
    del max_num_elements
    return TensorList((), _shape_of(element_shape), element_dtype)


@kernel("TensorListReserve", needs_values=True)
def list_reserve(element_shape: Any, num_elements: Any, *, element_dtype: int) -> Any:
    return TensorList((None,) * int(num_elements), _shape_of(element_shape), element_dtype)


@kernel("TensorListFromTensor", needs_values=True)
def list_from_tensor(tensor: Any, element_shape: Any, *, element_dtype: int) -> Any:
    return TensorList(tuple(tensor), _shape_of(element_shape), element_dtype)


@kernel("TensorListPushBack", needs_values=True)
def list_push_back(input_handle: Any, tensor: Any) -> Any:
    return input_handle.replaced((*input_handle.items, tensor))


@kernel("TensorListPopBack", needs_values=True)
def list_pop_back(input_handle: Any, element_shape: Any) -> list[Any]:
    if not input_handle.items:
        raise errors.InvalidArgumentError("Trying to pop from an empty list.")
    last = _read(input_handle, -1, element_shape)
    return [input_handle.replaced(input_handle.items[:-1]), last]


@kernel("TensorListGetItem", needs_values=True)
def list_get_item(input_handle: Any, index: Any, element_shape: Any) -> Any:
    return _read(input_handle, _check_index(input_handle, int(index)), element_shape)


@kernel("TensorListSetItem", needs_values=True)
def list_set_item(
    input_handle: Any, index: Any, item: Any, *, resize_if_index_out_of_bounds: bool
) -> Any:
    items, place = list(input_handle.items), int(index)
    if resize_if_index_out_of_bounds and place >= len(items):
        items.extend([None] * (place + 1 - len(items)))
    elif not 0 <= place < len(items):
        _check_index(input_handle, place)
    items[place] = item
    return input_handle.replaced(items)


@kernel("TensorListLength", needs_values=True)
def list_length(input_handle: Any) -> Any:
    return np.asarray(len(input_handle.items), np.int32)


@kernel("TensorListElementShape", needs_values=True)
def list_element_shape(input_handle: Any, *, shape_type: int) -> Any:
    shape = input_handle.element_shape
    return np.asarray(-1 if shape is None else shape, dtypes.dtype_from_number(shape_type))


@kernel("TensorListResize", needs_values=True)
def list_resize(input_handle: Any, size: Any) -> Any:
    items = input_handle.items[: int(size)]
    return input_handle.replaced((*items, *[None] * (int(size) - len(items))))


def _rows(handle: TensorList, places: Sequence[int], element_shape: Any) -> Any:
    rows = [_read(handle, place, element_shape) for place in places]
    if rows:
        return jnp.stack(rows)
    return _no_rows(_shape_of(element_shape) or handle.element_shape, _dtype(handle.dtype_number))


@kernel("TensorListStack", needs_values=True)
def list_stack(input_handle: Any, element_shape: Any) -> Any:
    return _rows(input_handle, range(len(input_handle.items)), element_shape)


@kernel("TensorListGather", needs_values=True)
def list_gather(input_handle: Any, indices: Any, element_shape: Any) -> Any:
    places = [_check_index(input_handle, index) for index in np.asarray(indices).tolist()]
    return _rows(input_handle, places, element_shape)


# --- optionals ---------------------------------------------------------------------------------


@kernel("OptionalFromValue", needs_values=True)
def optional_from_value(*components: Any) -> Any:
    return Optional(components)


@kernel("OptionalNone", needs_values=True)
def optional_none() -> Any:
    return Optional(None)


@kernel("OptionalHasValue", needs_values=True)
def optional_has_value(optional: Any) -> Any:
    return np.asarray(optional.components is not None)


@kernel("OptionalGetValue", needs_values=True)
def optional_get_value(optional: Any) -> list[Any]:
    if optional.components is None:
        raise errors.InvalidArgumentError("The given optional does not have a value.")
    return list(optional.components)
