"""Arrays with some rows or slices replaced, and parts chosen by their rank."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes
from jaxmeta.ops._definition import kernel, run_kernel
from jaxmeta.ops._gradients import reading_attrs_of
from jaxmeta.ops._handles import Handle
from jaxmeta.ops._indexing import index_of, index_of_slices
from jaxmeta.ops._operands import ints


@kernel("Empty", static=("shape",))
def empty(shape: Any, *, dtype: int, init: bool) -> Any:
    del init  # what is not initialized may be zeros too
    number_type = dtypes.dtype_from_number(dtype)
    return jnp.zeros(ints(shape), jax.dtypes.canonicalize_dtype(number_type))


@kernel("InplaceUpdate")
def inplace_update(x: Any, i: Any, v: Any) -> Any:
    return jnp.asarray(x).at[i].set(v)


@kernel("InplaceAdd")
def inplace_add(x: Any, i: Any, v: Any) -> Any:
    return jnp.asarray(x).at[i].add(v)


@kernel("InplaceSub")
def inplace_sub(x: Any, i: Any, v: Any) -> Any:
    return jnp.asarray(x).at[i].subtract(v)


@kernel("ScatterNdNonAliasingAdd")
def scatter_nd_non_aliasing_add(input: Any, indices: Any, updates: Any) -> Any:
    return jnp.asarray(input).at[index_of(indices)].add(updates, mode="drop")


@kernel("ParallelConcat")
def parallel_concat(*values: Any) -> Any:
    return lax.concatenate([jnp.asarray(value) for value in values], 0)


@kernel("PopulationCount")
def population_count(x: Any) -> Any:
    return lax.population_count(jnp.asarray(x)).astype(np.uint8)


@kernel("UnravelIndex", static=("dims",))
def unravel_index(indices: Any, dims: Any) -> Any:
    found = jnp.stack(jnp.unravel_index(indices, ints(dims)))
    return found.astype(jax.dtypes.canonicalize_dtype(indices.dtype))


@kernel("Copy", "CopyHost", "DeepCopy", "GuaranteeConst", "DebugGradientIdentity")
def copy(input: Any) -> Any:
    return input


@kernel("CheckNumericsV2")
def check_numerics_v2(tensor: Any, *, message: bytes) -> Any:
    return run_kernel("CheckNumerics", tensor, message=message)


@kernel("Reverse", static=("dims",))
def reverse(tensor: Any, dims: Any) -> Any:
    return jnp.flip(tensor, tuple(np.flatnonzero(dims).tolist()))


# --- slices ------------------------------------------------------------------------------------


@kernel("TensorStridedSliceUpdate", static=("begin", "end", "strides"))
def tensor_strided_slice_update(
    input: Any,
    begin: Any,
    end: Any,
    strides: Any,
    value: Any,
    *,
    begin_mask: int,
    end_mask: int,
    ellipsis_mask: int,
    new_axis_mask: int,
    shrink_axis_mask: int,
) -> Any:
    masks = (begin_mask, end_mask, ellipsis_mask, new_axis_mask, shrink_axis_mask)
    index = index_of_slices(ints(begin), ints(end), ints(strides), masks)
    return jnp.asarray(input).at[index].set(value)


def _assign_slices(
    state: Any, ref: Handle, begin: Any, end: Any, strides: Any, value: Any, **masks: int
) -> Handle:
    old = state.read(ref.name)
    state.write(ref.name, tensor_strided_slice_update(old, begin, end, strides, value, **masks))
    return ref


def _assign_slices_of_resource(
    state: Any, ref: Handle, begin: Any, end: Any, strides: Any, value: Any, **masks: int
) -> tuple[()]:
    _assign_slices(state, ref, begin, end, strides, value, **masks)
    return ()


for _op, _assign in (
    ("StridedSliceAssign", _assign_slices),
    ("ResourceStridedSliceAssign", _assign_slices_of_resource),
):
    kernel(_op, static=("begin", "end", "strides"))(
        reading_attrs_of(_op, _assign, tensor_strided_slice_update)
    )


# --- by rank -----------------------------------------------------------------------------------


@kernel("TopK")
def top_k(input: Any, *, k: int, sorted: bool) -> Any:
    del sorted  # sorted is one of the orders that TensorFlow allows
    return lax.top_k(jnp.asarray(input), k)


@kernel("NthElement")
def nth_element(input: Any, n: Any, *, reverse: bool) -> Any:
    place = input.shape[-1] - 1 - n if reverse else n
    return lax.dynamic_index_in_dim(jnp.sort(input, axis=-1), place, -1, keepdims=False)
