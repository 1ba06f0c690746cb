"""TensorFlow 2's lists of tensors, which are values: what changes one returns another."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import dtypes
from jaxmeta.ops import _list_elements
from jaxmeta.ops import _tensor_lists as tensor_lists
from jaxmeta.ops._cells import check
from jaxmeta.ops._definition import kernel


def _shape_of(element_shape: Any) -> tuple[int, ...] | None:
    """Returns the shape that an input says; None where it is a scalar: nothing is known."""
    return tuple(np.asarray(element_shape).tolist()) if np.ndim(element_shape) else None


def _check_index(state: Any, handle: Any, index: Any) -> None:
    length = tensor_lists.length_of(handle)
    check(
        state,
        (index >= 0) & (index < length),
        "the list has {} elements, the index is {}",
        length,
        index,
    )


# --- making ------------------------------------------------------------------------------------


@kernel("EmptyTensorList", static=("element_shape",), may_need_values=True)
def empty_list(element_shape: Any, max_num_elements: Any, *, element_dtype: int) -> Any:
    del max_num_elements  # a promise of the graph; TensorFlow raises where it is broken
    return tensor_lists.TensorList((), _shape_of(element_shape), element_dtype)


@kernel("TensorListReserve", static=("element_shape", "num_elements"), may_need_values=True)
def list_reserve(element_shape: Any, num_elements: Any, *, element_dtype: int) -> Any:
    items = (None,) * int(num_elements)
    return tensor_lists.TensorList(items, _shape_of(element_shape), element_dtype)


@kernel("TensorListFromTensor", static=("element_shape",), may_need_values=True)
def list_from_tensor(tensor: Any, element_shape: Any, *, element_dtype: int) -> Any:
    return _list_elements.from_rows(tensor, _shape_of(element_shape), element_dtype)


@kernel("TensorListSplit", static=("element_shape", "lengths"), may_need_values=True)
def list_split(tensor: Any, element_shape: Any, lengths: Any, *, element_dtype: int) -> Any:
    parts = jnp.split(tensor, np.cumsum(lengths)[:-1])
    return tensor_lists.TensorList(tuple(parts), _shape_of(element_shape), element_dtype)


@kernel("TensorListScatter", static=("indices", "element_shape"), may_need_values=True)
def list_scatter(tensor: Any, indices: Any, element_shape: Any, *, element_dtype: int) -> Any:
    return _scattered(tensor, indices, element_shape, -1, element_dtype)


@kernel(
    "TensorListScatterV2",
    static=("indices", "element_shape", "num_elements"),
    may_need_values=True,
)
def list_scatter_v2(
    tensor: Any, indices: Any, element_shape: Any, num_elements: Any, *, element_dtype: int
) -> Any:
    return _scattered(tensor, indices, element_shape, int(num_elements), element_dtype)


def _scattered(tensor: Any, indices: Any, element_shape: Any, size: int, number: int) -> Any:
    if size < 0:
        size = int(np.max(indices, initial=-1)) + 1
    items: list[Any] = [None] * size
    for place, index in enumerate(indices.tolist()):
        items[index] = tensor[place]
    return tensor_lists.TensorList(tuple(items), _shape_of(element_shape), number)


@kernel("TensorListScatterIntoExistingList", static=("indices",), may_need_values=True)
def list_scatter_into(state: Any, input_handle: Any, tensor: Any, indices: Any) -> Any:
    for place, index in enumerate(indices.tolist()):
        _check_index(state, input_handle, index)
        input_handle = _list_elements.put(input_handle, index, tensor[place])
    return input_handle


# --- elements ----------------------------------------------------------------------------------


@kernel("TensorListPushBack", may_need_values=True)
def list_push_back(input_handle: Any, tensor: Any) -> Any:
    return _list_elements.push(input_handle, tensor)


@kernel("TensorListPopBack", static=("element_shape",), may_need_values=True, gives_sizes=True)
def list_pop_back(state: Any, input_handle: Any, element_shape: Any) -> list[Any]:
    length = tensor_lists.length_of(input_handle)
    check(state, length > 0, "Trying to pop from an empty list.")
    return list(_list_elements.pop(input_handle, _shape_of(element_shape)))


@kernel("TensorListGetItem", static=("element_shape",), may_need_values=True, gives_sizes=True)
def list_get_item(state: Any, input_handle: Any, index: Any, element_shape: Any) -> Any:
    _check_index(state, input_handle, index)
    return _list_elements.get(input_handle, index, _shape_of(element_shape))


@kernel("TensorListSetItem", may_need_values=True)
def list_set_item(
    state: Any, input_handle: Any, index: Any, item: Any, *, resize_if_index_out_of_bounds: bool
) -> Any:
    length = tensor_lists.length_of(input_handle)
    if resize_if_index_out_of_bounds:
        if tensor_lists.is_known(index) and tensor_lists.is_known(length):
            if index >= length:
                input_handle = _list_elements.resized(input_handle, int(index) + 1)
        else:
            longest = jnp.maximum(length, index + 1)
            input_handle = _list_elements.lengthened(input_handle, item, longest)
            check(state, index < input_handle.capacity, "a list grew faster than its loop")
    _check_index(state, input_handle, index)
    return _list_elements.put(input_handle, index, item)


@kernel("TensorListLength", may_need_values=True, gives_sizes=True)
def list_length(input_handle: Any) -> Any:
    length = tensor_lists.length_of(input_handle)
    return length if isinstance(length, jax.Array) else np.asarray(length, np.int32)


@kernel("TensorListElementShape", may_need_values=True, gives_sizes=True)
def list_element_shape(input_handle: Any, *, shape_type: int) -> Any:
    shape = input_handle.element_shape
    return np.asarray(-1 if shape is None else shape, dtypes.dtype_from_number(shape_type))


@kernel("TensorListResize", static=("size",), may_need_values=True)
def list_resize(input_handle: Any, size: Any) -> Any:
    return _list_elements.resized(input_handle, size)


# --- all at once -------------------------------------------------------------------------------


@kernel("TensorListStack", static=("element_shape",), may_need_values=True)
def list_stack(input_handle: Any, element_shape: Any) -> Any:
    return _list_elements.all_rows(input_handle, _shape_of(element_shape))


@kernel("TensorListGather", static=("element_shape",), may_need_values=True)
def list_gather(state: Any, input_handle: Any, indices: Any, element_shape: Any) -> Any:
    for index in np.asarray(indices).tolist() if tensor_lists.is_known(indices) else [indices]:
        _check_index(state, input_handle, index)
    return _list_elements.some_rows(input_handle, indices, _shape_of(element_shape))


@kernel("TensorListConcat", may_need_values=True)
def list_concat(input_handle: Any) -> list[Any]:
    return _list_elements.joined(input_handle)


@kernel("TensorListConcatV2", may_need_values=True)
def list_concat_v2(input_handle: Any, element_shape: Any, leading_dims: Any) -> list[Any]:
    del element_shape, leading_dims  # of elements that were not set
    return _list_elements.joined(input_handle)


@kernel("TensorListConcatLists", may_need_values=True)
def list_concat_lists(input_a: Any, input_b: Any) -> Any:
    first, second = map(_list_elements.unstacked, (input_a, input_b))
    return first.replaced((*first.items, *second.items))
