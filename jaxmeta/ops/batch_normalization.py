"""FusedBatchNorm in its three versions, and its gradients."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta.ops._definition import kernel
from jaxmeta.ops._operands import count_as
from jaxmeta.tracing import dimensions


def _axes(x: Any, data_format: bytes) -> tuple[list[int], tuple[int, ...]]:
    """Returns the axes over which statistics go, and the shape at which they broadcast."""
    channels = 1 if data_format.startswith(b"NC") else x.ndim - 1
    axes = [axis for axis in range(x.ndim) if axis != channels]
    return axes, tuple(-1 if axis == channels else 1 for axis in range(x.ndim))


def _normalize(
    x: Any,
    scale: Any,
    offset: Any,
    mean: Any,
    variance: Any,
    epsilon: float,
    exponential_avg_factor: float,
    data_format: bytes,
    is_training: bool,
) -> list[Any]:
    """Returns the normalized array, its statistics, and those that the gradient takes."""
    axes, shape = _axes(x, data_format)
    wide = jnp.asarray(x, scale.dtype)
    if not is_training:
        kept_mean, kept_variance = mean, variance
        new_mean, new_variance = mean, variance
    else:
        count = dimensions.maximum(x.size // max(scale.shape[0], 1), 1)
        kept_mean = jnp.mean(wide, axes)
        kept_variance = jnp.mean(lax.square(wide - jnp.reshape(kept_mean, shape)), axes)
        new_mean = kept_mean
        new_variance = kept_variance * _over_one_less(count, scale.dtype)
        if exponential_avg_factor != 1.0:
            share = np.asarray(exponential_avg_factor, scale.dtype)
            new_mean = (1 - share) * mean + share * new_mean
            new_variance = (1 - share) * variance + share * new_variance
    factor = scale * lax.rsqrt(kept_variance + np.asarray(epsilon, scale.dtype))
    centered = wide - jnp.reshape(kept_mean, shape)
    y = centered * jnp.reshape(factor, shape) + jnp.reshape(offset, shape)
    return [lax.convert_element_type(y, x.dtype), new_mean, new_variance, kept_mean, kept_variance]


def _over_one_less(count: Any, dtype: Any) -> Any:
    """Returns ``count / (count - 1)``, which makes a variance that of the whole population."""
    less = dimensions.maximum(count - 1, 1)
    if dimensions.is_symbolic(count):
        return count_as(count, dtype) / count_as(less, dtype)
    return np.asarray(count / less, dtype)


@kernel("FusedBatchNorm", "FusedBatchNormV2")
def fused_batch_norm(
    x: Any,
    scale: Any,
    offset: Any,
    mean: Any,
    variance: Any,
    *,
    epsilon: float,
    exponential_avg_factor: float,
    data_format: bytes,
    is_training: bool,
) -> list[Any]:
    return _normalize(
        x,
        scale,
        offset,
        mean,
        variance,
        epsilon,
        exponential_avg_factor,
        data_format,
        is_training,
    )


@kernel("FusedBatchNormV3")
def fused_batch_norm_v3(
    x: Any,
    scale: Any,
    offset: Any,
    mean: Any,
    variance: Any,
    *,
    epsilon: float,
    exponential_avg_factor: float,
    data_format: bytes,
    is_training: bool,
) -> list[Any]:
    results = _normalize(
        x,
        scale,
        offset,
        mean,
        variance,
        epsilon,
        exponential_avg_factor,
        data_format,
        is_training,
    )
    return [*results, jnp.zeros((0,), scale.dtype)]  # what only cuDNN fills


def _gradients(
    y_backprop: Any,
    x: Any,
    scale: Any,
    mean: Any,
    variance: Any,
    epsilon: float,
    data_format: bytes,
    is_training: bool,
) -> list[Any]:
    axes, shape = _axes(x, data_format)
    dtype = scale.dtype
    dy = jnp.asarray(y_backprop, dtype)
    inverse = lax.rsqrt(variance + np.asarray(epsilon, dtype))
    normal = (jnp.asarray(x, dtype) - jnp.reshape(mean, shape)) * jnp.reshape(inverse, shape)
    offset_backprop = jnp.sum(dy, axes)
    scale_backprop = jnp.sum(dy * normal, axes)
    dx = dy
    if is_training:
        count = count_as(dimensions.maximum(x.size // max(scale.shape[0], 1), 1), dtype)
        dx = dy - jnp.reshape(offset_backprop / count, shape)
        dx = dx - normal * jnp.reshape(scale_backprop / count, shape)
    dx = dx * jnp.reshape(scale * inverse, shape)
    empty = jnp.zeros((0,), dtype)
    return [lax.convert_element_type(dx, x.dtype), scale_backprop, offset_backprop, empty, empty]


@kernel("FusedBatchNormGrad", "FusedBatchNormGradV2")
def fused_batch_norm_grad(
    y_backprop: Any,
    x: Any,
    scale: Any,
    reserve_space_1: Any,
    reserve_space_2: Any,
    *,
    epsilon: float,
    data_format: bytes,
    is_training: bool,
) -> list[Any]:
    return _gradients(
        y_backprop, x, scale, reserve_space_1, reserve_space_2, epsilon, data_format, is_training
    )


@kernel("FusedBatchNormGradV3")
def fused_batch_norm_grad_v3(
    y_backprop: Any,
    x: Any,
    scale: Any,
    reserve_space_1: Any,
    reserve_space_2: Any,
    reserve_space_3: Any,
    *,
    epsilon: float,
    data_format: bytes,
    is_training: bool,
) -> list[Any]:
    del reserve_space_3  # cuDNN's
    return _gradients(
        y_backprop, x, scale, reserve_space_1, reserve_space_2, epsilon, data_format, is_training
    )
