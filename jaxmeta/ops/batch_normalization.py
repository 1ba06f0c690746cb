"""Batch normalization: FusedBatchNorm in its versions, what came before it, and their gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta.ops._definition import kernel
from jaxmeta.ops._gradients import reading_attrs_of
from jaxmeta.ops._operands import count_as
from jaxmeta.tracing import dimensions


def _axes(x: Any, data_format: bytes) -> tuple[list[int], tuple[int, ...]]:
    """Returns the axes over which statistics go, and the shape at which they broadcast."""
    channels = 1 if data_format.startswith(b"NC") else x.ndim - 1
    axes = [axis for axis in range(x.ndim) if axis != channels]
    return axes, tuple(-1 if axis == channels else 1 for axis in range(x.ndim))


@kernel("FusedBatchNorm", "FusedBatchNormV2")
def normalize(
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


def _normalize_v3(*arrays: Any, **attrs: Any) -> list[Any]:
    return [*normalize(*arrays, **attrs), jnp.zeros((0,), arrays[1].dtype)]  # cuDNN's


kernel("FusedBatchNormV3")(reading_attrs_of("FusedBatchNormV3", _normalize_v3, normalize))


@kernel("_FusedBatchNormEx")
def normalize_and_activate(
    *arrays: Any,
    epsilon: float,
    exponential_avg_factor: float,
    data_format: bytes,
    is_training: bool,
    activation_mode: bytes,
) -> list[Any]:
    """Returns what `normalize` does, with an array added to the first at need, and no negatives."""
    y, *statistics = _normalize_v3(
        *arrays[:5],
        epsilon=epsilon,
        exponential_avg_factor=exponential_avg_factor,
        data_format=data_format,
        is_training=is_training,
    )
    if len(arrays) > 5:
        y = y + arrays[5]
    return [jax.nn.relu(y) if activation_mode == b"Relu" else y, *statistics]


@kernel("FusedBatchNormGrad", "FusedBatchNormGradV2")
def normalize_grad(
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
    """Returns the cotangents of x, scale and offset; the reserved are a mean and a variance."""
    axes, shape = _axes(x, data_format)
    dtype = scale.dtype
    dy = jnp.asarray(y_backprop, dtype)
    inverse = lax.rsqrt(reserve_space_2 + np.asarray(epsilon, dtype))
    normal = (jnp.asarray(x, dtype) - jnp.reshape(reserve_space_1, shape)) * jnp.reshape(
        inverse, shape
    )
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


def _normalize_grad_v3(*arrays: Any, **attrs: Any) -> list[Any]:
    return normalize_grad(*arrays[:5], **attrs)  # the last is cuDNN's


kernel("FusedBatchNormGradV3")(
    reading_attrs_of("FusedBatchNormGradV3", _normalize_grad_v3, normalize_grad)
)

# --- before FusedBatchNorm -----------------------------------------------------------------------


@kernel("BatchNormWithGlobalNormalization")
def normalize_globally(
    t: Any,
    m: Any,
    v: Any,
    beta: Any,
    gamma: Any,
    *,
    variance_epsilon: float,
    scale_after_normalization: bool,
) -> Any:
    factor = lax.rsqrt(v + np.asarray(variance_epsilon, t.dtype))
    if scale_after_normalization:
        factor = factor * gamma
    return (t - m) * factor + beta


@kernel("BatchNormWithGlobalNormalizationGrad")
def normalize_globally_grad(
    t: Any,
    m: Any,
    v: Any,
    gamma: Any,
    backprop: Any,
    *,
    variance_epsilon: float,
    scale_after_normalization: bool,
) -> Any:
    def forward(*arrays: Any) -> Any:
        return normalize_globally(
            *arrays,
            variance_epsilon=variance_epsilon,
            scale_after_normalization=scale_after_normalization,
        )

    arrays = [jnp.asarray(array) for array in (t, m, v, jnp.zeros_like(m), gamma)]
    return jax.vjp(forward, *arrays)[1](jnp.asarray(backprop))
