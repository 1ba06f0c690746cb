"""Gradients of convolutions and pooling, and depthwise convolutions, as TensorFlow writes them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.ops._definition import kernel, run_kernel
from jaxmeta.ops._operands import ints


def _transpose(linear: Callable[..., Any], shape: Any, cotangent: Any) -> Any:
    """Returns what the transpose of a linear function of an array of a shape gives."""
    taken = jax.ShapeDtypeStruct(ints(shape), cotangent.dtype)
    (result,) = jax.linear_transpose(linear, taken)(jnp.asarray(cotangent))
    return result


# --- convolutions ------------------------------------------------------------------------------


@kernel("Conv2DBackpropInput", static=("input_sizes",))
def conv2d_backprop_input(
    input_sizes: np.ndarray[Any, Any],
    filter: Any,
    out_backprop: Any,
    *,
    strides: tuple[int, ...],
    padding: bytes,
    explicit_paddings: tuple[int, ...],
    data_format: bytes,
    dilations: tuple[int, ...],
) -> Any:
    sizes = ints(input_sizes)
    if len(sizes) == 2:  # the image's own, without batch and channels
        channels = (filter.shape[2],)
        is_first = data_format == b"NCHW"
        sizes = (out_backprop.shape[0], *(channels + sizes if is_first else sizes + channels))
    convolve = functools.partial(
        run_kernel,
        "Conv2D",
        strides=strides,
        padding=padding,
        explicit_paddings=explicit_paddings,
        data_format=data_format,
        dilations=dilations,
    )
    return _transpose(lambda image: convolve(image, filter), sizes, out_backprop)


@kernel("Conv2DBackpropFilter", static=("filter_sizes",))
def conv2d_backprop_filter(
    input: Any,
    filter_sizes: np.ndarray[Any, Any],
    out_backprop: Any,
    *,
    strides: tuple[int, ...],
    padding: bytes,
    explicit_paddings: tuple[int, ...],
    data_format: bytes,
    dilations: tuple[int, ...],
) -> Any:
    convolve = functools.partial(
        run_kernel,
        "Conv2D",
        input,
        strides=strides,
        padding=padding,
        explicit_paddings=explicit_paddings,
        data_format=data_format,
        dilations=dilations,
    )
    return _transpose(convolve, filter_sizes, out_backprop)


@kernel("DepthwiseConv2dNative")
def depthwise_conv2d(
    input: Any,
    filter: Any,
    *,
    strides: tuple[int, ...],
    padding: bytes,
    explicit_paddings: tuple[int, ...],
    data_format: bytes,
    dilations: tuple[int, ...],
) -> Any:
    """Convolves each channel with filters of its own: a convolution of as many groups."""
    height, width, channels, multiplier = filter.shape
    return run_kernel(
        "Conv2D",
        input,
        jnp.reshape(filter, (height, width, 1, channels * multiplier)),
        strides=strides,
        padding=padding,
        explicit_paddings=explicit_paddings,
        data_format=data_format,
        dilations=dilations,
    )


@kernel("DepthwiseConv2dNativeBackpropInput", static=("input_sizes",))
def depthwise_conv2d_backprop_input(
    input_sizes: np.ndarray[Any, Any],
    filter: Any,
    out_backprop: Any,
    *,
    strides: tuple[int, ...],
    padding: bytes,
    explicit_paddings: tuple[int, ...],
    data_format: bytes,
    dilations: tuple[int, ...],
) -> Any:
    convolve = functools.partial(
        depthwise_conv2d,
        strides=strides,
        padding=padding,
        explicit_paddings=explicit_paddings,
        data_format=data_format,
        dilations=dilations,
    )
    return _transpose(lambda image: convolve(image, filter), input_sizes, out_backprop)


@kernel("DepthwiseConv2dNativeBackpropFilter", static=("filter_sizes",))
def depthwise_conv2d_backprop_filter(
    input: Any,
    filter_sizes: np.ndarray[Any, Any],
    out_backprop: Any,
    *,
    strides: tuple[int, ...],
    padding: bytes,
    explicit_paddings: tuple[int, ...],
    data_format: bytes,
    dilations: tuple[int, ...],
) -> Any:
    convolve = functools.partial(
        depthwise_conv2d,
        input,
        strides=strides,
        padding=padding,
        explicit_paddings=explicit_paddings,
        data_format=data_format,
        dilations=dilations,
    )
    return _transpose(convolve, filter_sizes, out_backprop)


# --- pooling -----------------------------------------------------------------------------------


@kernel("MaxPoolGrad")
def max_pool_grad(
    orig_input: Any,
    orig_output: Any,
    grad: Any,
    *,
    ksize: tuple[int, ...],
    strides: tuple[int, ...],
    padding: bytes,
    explicit_paddings: tuple[int, ...],
    data_format: bytes,
) -> Any:
    del orig_output  # computed anew, or not at all

    pool = functools.partial(
        run_kernel,
        "MaxPool",
        ksize=ksize,
        strides=strides,
        padding=padding,
        explicit_paddings=explicit_paddings,
        data_format=data_format,
    )
    (result,) = jax.vjp(pool, jnp.asarray(orig_input))[1](jnp.asarray(grad))
    return result


@kernel("AvgPoolGrad", static=("orig_input_shape",))
def avg_pool_grad(
    orig_input_shape: np.ndarray[Any, Any],
    grad: Any,
    *,
    ksize: tuple[int, ...],
    strides: tuple[int, ...],
    padding: bytes,
    data_format: bytes,
) -> Any:
    pool = functools.partial(
        run_kernel,
        "AvgPool",
        ksize=ksize,
        strides=strides,
        padding=padding,
        data_format=data_format,
    )
    return _transpose(pool, orig_input_shape, grad)
