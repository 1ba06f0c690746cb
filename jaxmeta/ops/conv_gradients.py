"""Depthwise convolutions, and the gradients of convolutions, as TensorFlow writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import jax.numpy as jnp

from jaxmeta import op_defs
from jaxmeta.ops._convolution import convolve
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._gradients import reading_attrs_of, transpose
from jaxmeta.ops._operands import ints

_FIRST: Final = (b"NCHW", b"NCDHW")


def convolve_depthwise(input: Any, filter: Any, **attrs: Any) -> Any:
    """Convolves each channel with filters of its own: a convolution of as many groups."""
    height, width, channels, multiplier = filter.shape
    grouped = jnp.reshape(filter, (height, width, 1, channels * multiplier))
    return convolve(input, grouped, **attrs)


kernel("DepthwiseConv2dNative")(
    reading_attrs_of("DepthwiseConv2dNative", convolve_depthwise, convolve)
)


def _input_shape(sizes: tuple[int, ...], filter: Any, out: Any, data_format: bytes) -> Any:
    """Returns the shape of images, of which Conv2DBackpropInput may have the spatial sizes only."""
    if len(sizes) == out.ndim:
        return sizes
    channels = (filter.shape[-2],)
    return (out.shape[0], *(channels + sizes if data_format in _FIRST else sizes + channels))


def _gradient(forward: Callable[..., Any], argument: int, takes_sizes: bool) -> Callable[..., Any]:
    """Returns the gradient of a convolution by images (argument 0) or filters (argument 1)."""

    def run(*inputs: Any, **attrs: Any) -> Any:
        wanted, out = inputs[argument], inputs[2]
        shape = ints(wanted) if takes_sizes else wanted.shape
        if argument == 1:
            return transpose(lambda filter: forward(inputs[0], filter, **attrs), shape, out)
        shape = _input_shape(shape, inputs[1], out, attrs.get("data_format", b"NHWC"))
        return transpose(lambda image: forward(image, inputs[1], **attrs), shape, out)

    return run


_FORWARDS: Final = {
    "Conv2DBackprop": convolve,
    "Conv3DBackprop": convolve,
    "DepthwiseConv2dNativeBackprop": convolve_depthwise,
}

for _prefix, _forward in _FORWARDS.items():
    for _argument, _side in enumerate(("Input", "Filter")):
        for _op in (f"{_prefix}{_side}", f"{_prefix}{_side}V2"):
            if op_defs.has_op(_op):
                # Some versions take the shape of what they give, others an array of that shape.
                _name = op_defs.get_op_def(_op).input_arg[_argument].name
                _sizes = [_name] if _name.endswith("_sizes") else []
                _run = _gradient(_forward, _argument, bool(_sizes))
                kernel(_op, static=_sizes)(reading_attrs_of(_op, _run, convolve))
