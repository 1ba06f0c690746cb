"""Convolutions as TensorFlow says them, over any number of spatial axes."""

from __future__ import annotations

from typing import Any

from jax import lax

from jaxmeta import xla_attrs
from jaxmeta.ops._window import same_padding, spatial_axes
from jaxmeta.tracing import dimensions


def convolve(
    input: Any,
    filter: Any,
    *,
    strides: tuple[int, ...],
    padding: bytes,
    explicit_paddings: tuple[int, ...] = (),
    data_format: bytes = b"NHWC",
    dilations: tuple[int, ...] = (),
    _jax_precision: tuple[bytes, ...] = (),
    _jax_is_preferred: bool = False,
) -> Any:
    """Returns a convolution of images of any number of spatial axes, as TensorFlow says it.

    Args:
        input: the images; strides, dilations and explicit paddings are in the order of their axes.
        filter: spatial axes, then channels of a group, then channels of the result.
        strides: one for each axis of the input.
        padding: SAME, VALID or EXPLICIT.
        explicit_paddings: pairs for each axis of the input, where the padding is EXPLICIT.
        data_format: where the channels are; last where it says nothing of this rank.
        dilations: one for each axis of the input, or none.
    """
    axes = spatial_axes(data_format, input.ndim)
    (channels,) = {*range(1, input.ndim)} - set(axes)
    steps = tuple(strides[axis] for axis in axes)
    spread = tuple(dilations[axis] for axis in axes) if dilations else (1,) * len(axes)
    pads: Any
    if padding == b"EXPLICIT":
        pads = tuple((explicit_paddings[2 * a], explicit_paddings[2 * a + 1]) for a in axes)
    elif padding == b"SAME":
        sizes = [input.shape[a] for a in axes]
        is_symbolic = dimensions.is_symbolic(sizes)
        window = filter.shape[: len(axes)]
        pads = "SAME" if is_symbolic else same_padding(sizes, window, steps, spread)
    else:
        pads = ((0, 0),) * len(axes)
    layout = (0, channels, *axes)
    return lax.conv_general_dilated(
        input,
        filter,
        steps,
        pads,
        rhs_dilation=spread,
        dimension_numbers=lax.ConvDimensionNumbers(
            layout, (filter.ndim - 1, filter.ndim - 2, *range(len(axes))), layout
        ),
        feature_group_count=input.shape[channels] // filter.shape[-2],
        precision=xla_attrs.precision_from_names(_jax_precision),
        preferred_element_type=input.dtype if _jax_is_preferred else None,
    )
