"""Gradients of sums and means of rows of a table, which `embedding_lookup_sparse` takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmeta import errors
from jaxmeta.ops._definition import kernel


def _shares(grad: Any, segment_ids: Any, weight: Callable[[Any], Any] | None) -> Any:
    """Returns the gradient of each row that was taken."""
    rows = jnp.take(grad, segment_ids, axis=0)
    if weight is None:
        return rows
    counts = jnp.zeros(grad.shape[0], grad.dtype).at[segment_ids].add(1)
    shares = weight(jnp.maximum(counts, 1))[segment_ids]
    return rows * shares.reshape(-1, *[1] * (grad.ndim - 1))


def _dense(grad: Any, indices: Any, segment_ids: Any, size: Any, weight: Any) -> Any:
    shares = _shares(grad, segment_ids, weight)
    return jnp.zeros((int(size), *grad.shape[1:]), grad.dtype).at[indices].add(shares)


def _inverse_root(counts: Any) -> Any:
    return 1 / jnp.sqrt(counts)


def _inverse(counts: Any) -> Any:
    return 1 / counts


@kernel("SparseSegmentSumGrad", static=("output_dim0",))
def sparse_segment_sum_grad(grad: Any, indices: Any, segment_ids: Any, output_dim0: Any) -> Any:
    return _dense(grad, indices, segment_ids, output_dim0, None)


@kernel("SparseSegmentMeanGrad", static=("output_dim0",))
def sparse_segment_mean_grad(grad: Any, indices: Any, segment_ids: Any, output_dim0: Any) -> Any:
    return _dense(grad, indices, segment_ids, output_dim0, _inverse)


@kernel("SparseSegmentSqrtNGrad", static=("output_dim0",))
def sparse_segment_sqrt_n_grad(grad: Any, indices: Any, segment_ids: Any, output_dim0: Any) -> Any:
    return _dense(grad, indices, segment_ids, output_dim0, _inverse_root)


# --- the rows alone: as many as there are, which only values say ---------------------------------


def _rows(grad: Any, indices: Any, segment_ids: Any, size: Any, weight: Any) -> list[Any]:
    if indices.size and not (indices.min() >= 0 and indices.max() < int(size)):
        raise errors.InvalidArgumentError(f"an index of {indices.tolist()} is not in [0, {size})")
    found, places = np.unique(indices, return_inverse=True)
    shares = _shares(jnp.asarray(grad), segment_ids, weight)
    summed = jnp.zeros((len(found), *grad.shape[1:]), grad.dtype).at[places].add(shares)
    return [np.asarray(summed), found.astype(indices.dtype)]


@kernel("SparseSegmentSumGradV2", is_host=True)
def sparse_segment_sum_grad_v2(
    grad: Any, indices: Any, segment_ids: Any, dense_output_dim0: Any
) -> list[Any]:
    return _rows(grad, indices, segment_ids, dense_output_dim0, None)


@kernel("SparseSegmentMeanGradV2", is_host=True)
def sparse_segment_mean_grad_v2(
    grad: Any, indices: Any, segment_ids: Any, dense_output_dim0: Any
) -> list[Any]:
    return _rows(grad, indices, segment_ids, dense_output_dim0, _inverse)


@kernel("SparseSegmentSqrtNGradV2", is_host=True)
def sparse_segment_sqrt_n_grad_v2(
    grad: Any, indices: Any, segment_ids: Any, dense_output_dim0: Any
) -> list[Any]:
    return _rows(grad, indices, segment_ids, dense_output_dim0, _inverse_root)
