"""Shapes of arrays as values, and the arithmetic on them that is done while tracing.

TensorFlow reads a size off a tensor and computes with it in its own ops. Here all shapes are known
while tracing, as numbers or as symbolic dimensions, so this arithmetic is done on the host: what
takes a shape gets the very sizes that the original program had.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from jaxmeta import dtypes, errors
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import LoweringContext, kernel, lowering, on_host, restores
from jaxmeta.ops._indexing import index_of_slices
from jaxmeta.ops._operands import ints
from jaxmeta.tracing import dimensions


@lowering("dim_as_value")
def lower_dim_as_value(ctx: LoweringContext, *, dim: Any) -> list[Edge]:
    return [ctx.constant(dim, ctx.out_avals[0].dtype)]


# --- sizes of arrays ---------------------------------------------------------------------------


def _sizes(sizes: Any, number: int) -> np.ndarray[Any, Any]:
    """Returns an array of sizes; of objects where some are symbolic."""
    is_symbolic = dimensions.is_symbolic(sizes)
    return np.asarray(sizes, object if is_symbolic else dtypes.dtype_from_number(number))


@kernel("Shape", gives_sizes=True)
def shape(input: Any, *, out_type: int) -> Any:
    return _sizes(np.shape(input), out_type)


@kernel("ShapeN", gives_sizes=True)
def shape_n(*input: Any, out_type: int) -> Any:
    return [_sizes(np.shape(x), out_type) for x in input]


@kernel("Size", gives_sizes=True)
def size(input: Any, *, out_type: int) -> Any:
    total: Any = 1
    for length in np.shape(input):
        total = total * length
    return _sizes(total, out_type)


@kernel("Rank", gives_sizes=True)
def rank(input: Any) -> Any:
    return np.asarray(np.ndim(input), np.int32)


SAME_SIZE: Final = "same_size"
"""What a Reshape carries as its primitive that only checks that a tensor has the sizes given."""


@restores(SAME_SIZE, static=("shape",))
def check_same_size(tensor: Any, shape: Any) -> Any:
    wanted = ints(shape)
    if tuple(tensor.shape) == wanted:
        return tensor
    found, other = (f"({', '.join(map(str, sizes))})" for sizes in (tensor.shape, wanted))
    raise errors.InvalidArgumentError(
        f"a function was built for tensors of which some sizes are the same, but they differ: "
        f"found {found}, expected {other}; feed tensors of the same size"
    )


# --- arithmetic on the host --------------------------------------------------------------------

on_host("Add", "AddV2")(np.add)
on_host("Sub")(np.subtract)
on_host("Mul")(np.multiply)
on_host("FloorDiv")(np.floor_divide)
on_host("FloorMod")(np.mod)
on_host("Neg")(np.negative)
on_host("Maximum")(np.frompyfunc(dimensions.maximum, 2, 1))
on_host("Minimum")(np.frompyfunc(dimensions.minimum, 2, 1))

kernel("FloorDiv")(lambda x, y: jnp.floor_divide(x, y))
kernel("FloorMod")(lambda x, y: jnp.mod(x, y))


@on_host("Identity", "Snapshot", "StopGradient", "PreventGradient")
def identity_of_sizes(x: Any) -> Any:
    return x


@on_host("Cast")
def cast_sizes(x: Any, *, DstT: int) -> Any:
    return x.astype(dtypes.dtype_from_number(DstT))


@on_host("Pack")
def pack_sizes(*values: Any, axis: int) -> Any:
    return np.stack(values, axis)


@on_host("ConcatV2")
def concat_sizes(*values_and_axis: Any) -> Any:
    *arrays, axis = values_and_axis
    return np.concatenate(arrays, int(axis))


@on_host("Reshape")
def reshape_sizes(tensor: Any, shape: Any) -> Any:
    return np.reshape(tensor, ints(shape))


@on_host("Squeeze")
def squeeze_sizes(input: Any, *, squeeze_dims: tuple[int, ...]) -> Any:
    return np.squeeze(input, squeeze_dims or None)


@on_host("ExpandDims")
def expand_sizes(input: Any, dim: Any) -> Any:
    return np.expand_dims(input, int(dim.item()))


@on_host("GatherV2")
def gather_sizes(params: Any, indices: Any, axis: Any) -> Any:
    return np.take(params, indices, int(axis))


@on_host("Slice")
def slice_sizes(input: Any, begin: Any, size: Any) -> Any:
    return input[
        tuple(
            slice(start, None if length < 0 else start + length)
            for start, length in zip(ints(begin), ints(size), strict=True)
        )
    ]


@on_host("StridedSlice")
def strided_slice_of_sizes(
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
    return input[index_of_slices(ints(begin), ints(end), ints(strides), masks)]


@on_host("Prod")
def product_of_sizes(input: Any, reduction_indices: Any, *, keep_dims: bool) -> Any:
    return np.prod(input, axis=_axes(reduction_indices), keepdims=keep_dims, dtype=input.dtype)


@on_host("Sum")
def sum_of_sizes(input: Any, reduction_indices: Any, *, keep_dims: bool) -> Any:
    return np.sum(input, axis=_axes(reduction_indices), keepdims=keep_dims, dtype=input.dtype)


def _axes(reduction_indices: Any) -> Sequence[int]:
    return ints(reduction_indices)
