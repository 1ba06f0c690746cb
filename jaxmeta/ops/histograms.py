"""How many numbers fall into which bin, and where numbers belong among sorted ones."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import dtypes
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._operands import ints


def _count(
    shape: tuple[int, ...], rows: tuple[Any, ...], values: Any, weights: Any, is_binary: bool
) -> Any:
    """Returns sums of weights by row and value; values outside count nowhere."""
    weights = jnp.asarray(weights)
    values = jnp.asarray(values)
    places = (*rows, jnp.where(values < 0, shape[-1], values))
    empty = jnp.zeros(shape, weights.dtype)
    if is_binary:
        return empty.at[places].set(jnp.ones((), weights.dtype), mode="drop")
    added = weights if weights.size else jnp.ones((), weights.dtype)
    return empty.at[places].add(added, mode="drop")


@kernel("Bincount", static=("size",))
def bincount(arr: Any, size: Any, weights: Any) -> Any:
    flat_weights = jnp.reshape(weights, -1)
    return _count((int(size),), (), jnp.reshape(arr, -1), flat_weights, is_binary=False)


@kernel("DenseBincount", static=("size",))
def dense_bincount(input: Any, size: Any, weights: Any, *, binary_output: bool) -> Any:
    if input.ndim < 2:
        return _count((int(size),), (), input, weights, binary_output)
    rows = jnp.arange(input.shape[0])[:, None]
    return _count((input.shape[0], int(size)), (rows,), input, weights, binary_output)


@kernel("RaggedBincount", static=("size",))
def ragged_bincount(
    splits: Any, values: Any, size: Any, weights: Any, *, binary_output: bool
) -> Any:
    count = splits.shape[0] - 1
    rows = jnp.searchsorted(jnp.asarray(splits), jnp.arange(values.shape[0]), side="right") - 1
    return _count((count, int(size)), (rows,), values, weights, binary_output)


@kernel("SparseBincount", static=("dense_shape", "size"))
def sparse_bincount(
    indices: Any, values: Any, dense_shape: Any, size: Any, weights: Any, *, binary_output: bool
) -> Any:
    shape = ints(dense_shape)
    if len(shape) == 1:
        return _count((int(size),), (), values, weights, binary_output)
    return _count((shape[0], int(size)), (indices[:, 0],), values, weights, binary_output)


@kernel("HistogramFixedWidth", static=("nbins",))
def histogram_fixed_width(values: Any, value_range: Any, nbins: Any, *, dtype: int) -> Any:
    """Returns counts; what lies outside the range counts in the first or the last bin."""
    count = int(nbins)
    with jax.enable_x64(True):
        low, high = (jnp.asarray(value_range[index]) for index in range(2))
        step = (high - low).astype(np.float64) / count
        above = (jnp.maximum(values, low) - low).astype(np.float64)
        bins = jnp.minimum(above / step, count - 1).astype(np.int32)
    counted = jax.dtypes.canonicalize_dtype(dtypes.dtype_from_number(dtype))
    return jnp.zeros(count, counted).at[jnp.reshape(bins, -1)].add(1)


def _bound(sorted_inputs: Any, values: Any, side: str, out_type: int) -> Any:
    def search(row: Any, sought: Any) -> Any:
        return jnp.searchsorted(row, sought, side=side)

    found = jax.vmap(search)(jnp.asarray(sorted_inputs), jnp.asarray(values))
    return found.astype(jax.dtypes.canonicalize_dtype(dtypes.dtype_from_number(out_type)))


@kernel("LowerBound")
def lower_bound(sorted_inputs: Any, values: Any, *, out_type: int) -> Any:
    return _bound(sorted_inputs, values, "left", out_type)


@kernel("UpperBound")
def upper_bound(sorted_inputs: Any, values: Any, *, out_type: int) -> Any:
    return _bound(sorted_inputs, values, "right", out_type)


@kernel("Bucketize")
def bucketize(input: Any, *, boundaries: Any) -> Any:
    limits = np.asarray(boundaries, np.float32)
    return jnp.searchsorted(limits, jnp.asarray(input), side="right").astype(np.int32)
