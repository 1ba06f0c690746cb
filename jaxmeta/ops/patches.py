"""Windows of images taken apart: patches, and morphological dilation, which is made of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.ops._definition import kernel
from jaxmeta.ops._gradients import reading_attrs_of
from jaxmeta.ops._window import lowest, pairs, same_padding


def _take_windows(
    x: Any,
    ksizes: tuple[int, ...],
    strides: tuple[int, ...],
    rates: tuple[int, ...],
    padding: bytes,
    fill: Any,
) -> Any:
    """Returns the windows of an array with channels last, one after the other along an axis.

    The result has the axes of the array, and before the last one that of a window's elements.
    """
    spatial = range(1, x.ndim - 1)
    pads = (
        same_padding(x.shape, ksizes, strides, rates)
        if padding == b"SAME"
        else pairs(((0, 0),) * x.ndim)
    )
    taken, is_inside = x, np.ones((), np.bool_)
    for axis in spatial:
        low, high = pads[axis]
        span = (ksizes[axis] - 1) * rates[axis] + 1
        count = (x.shape[axis] + low + high - span) // strides[axis] + 1
        starts = np.arange(count)[:, None] * strides[axis] - low
        index = starts + np.arange(ksizes[axis]) * rates[axis]
        # The axes of windows are left where they are: each is followed by that of its elements.
        place = 2 * axis - 1
        clipped = np.clip(index, 0, x.shape[axis] - 1)
        taken = jnp.take(taken, jnp.asarray(clipped), axis=place, mode="clip")
        shape = [1] * (2 * x.ndim - 2)
        shape[place], shape[place + 1] = index.shape
        is_inside = is_inside & np.reshape((index >= 0) & (index < x.shape[axis]), shape)
    if not is_inside.all():
        taken = jnp.where(is_inside, taken, fill)
    order = [0, *(2 * a - 1 for a in spatial), *(2 * a for a in spatial), taken.ndim - 1]
    ordered = jnp.transpose(taken, order)
    return jnp.reshape(ordered, (*ordered.shape[: x.ndim - 1], -1, x.shape[-1]))


def extract_patches(
    images: Any,
    *,
    ksizes: tuple[int, ...],
    strides: tuple[int, ...],
    rates: tuple[int, ...] = (1,) * 5,
    padding: bytes,
) -> Any:
    """Returns the elements of each window along the last axis, zeros outside the image."""
    zero = jnp.zeros((), images.dtype)
    windows = _take_windows(images, ksizes, strides, rates[: images.ndim], padding, zero)
    return jnp.reshape(windows, (*windows.shape[:-2], -1))


kernel("ExtractImagePatches")(extract_patches)
kernel("ExtractVolumePatches")(reading_attrs_of("ExtractVolumePatches", extract_patches))


@kernel("Dilation2D")
def dilate(
    input: Any,
    filter: Any,
    *,
    strides: tuple[int, ...],
    rates: tuple[int, ...],
    padding: bytes,
) -> Any:
    """Returns the largest sums of a window's elements and the filter's, by channel.

    The gradient goes to the first of equal ones, as TensorFlow's does.
    """
    height, width, channels = filter.shape
    start = lowest(input.dtype)
    windows = _take_windows(input, (1, height, width, 1), strides, rates, padding, start)
    flat = jnp.reshape(filter, (height * width, channels))
    sums = jnp.where(windows == start, start, windows + flat)
    first = jnp.argmax(jax.lax.stop_gradient(sums), axis=-2, keepdims=True)
    return jnp.squeeze(jnp.take_along_axis(sums, first, axis=-2), -2)


def _dilation_gradient(argument: int) -> Any:
    def run(input: Any, filter: Any, out_backprop: Any, **attrs: Any) -> Any:
        of_arrays = jax.vjp(lambda *arrays: dilate(*arrays, **attrs), input, filter)[1]
        return of_arrays(jnp.asarray(out_backprop))[argument]

    return run


for _argument, _side in enumerate(("Input", "Filter")):
    _op = f"Dilation2DBackprop{_side}"
    kernel(_op)(reading_attrs_of(_op, _dilation_gradient(_argument), dilate))
