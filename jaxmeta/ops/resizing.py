"""Images of other sizes: each pixel is a weighted mean of a few pixels of the original, by axis.

Where a pixel lies in the original, TensorFlow says in three ways. ``align_corners`` puts the
centers of the outermost pixels on each other, ``half_pixel_centers`` the edges of the images; by
default the first pixels' centers lie on each other, and the images are scaled by their sizes. The
arithmetic is float32, as TensorFlow's, so that the same pixels are taken.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from jaxmeta.ops._definition import kernel
from jaxmeta.ops._gradients import reading_attrs_of, transpose
from jaxmeta.ops._operands import ints
from jaxmeta.tracing import dimensions

_TABLE_SIZE: Final = 1 << 10  # how finely TensorFlow tabulates cubic kernels
_HALF: Final = np.float32(0.5)

# The pixels that are taken for each pixel of the result, and their weights: rows of equal length.
_Taps = tuple[Any, Any]


def _module(*sizes: Any) -> Any:
    """Returns what computes with sizes: numpy where they are known, as they are but for exports."""
    return jnp if dimensions.is_symbolic(sizes) else np


def _scale(size: Any, new_size: Any, align_corners: bool) -> Any:
    xp = _module(size, new_size)
    if align_corners and dimensions.holds(lambda: new_size > 1):
        return xp.float32(size - 1) / xp.float32(new_size - 1)
    return xp.float32(size) / xp.float32(new_size)


def _centers(size: Any, new_size: Any, align_corners: bool, half_pixel_centers: bool) -> Any:
    """Returns where in the original the pixels of the result lie."""
    xp = _module(size, new_size)
    places = xp.arange(new_size).astype(np.float32)
    scale = _scale(size, new_size, align_corners)
    if half_pixel_centers:
        return (places + _HALF) * scale - _HALF
    return places * scale


def _linear_taps(size: Any, new_size: Any, align_corners: bool, half_pixel_centers: bool) -> _Taps:
    xp = _module(size, new_size)
    centers = _centers(size, new_size, align_corners, half_pixel_centers)
    first = xp.floor(centers)
    share = centers - first
    lower = xp.maximum(first, 0).astype(np.int32)
    upper = xp.minimum(xp.ceil(centers).astype(np.int32), size - 1)
    return xp.stack([lower, upper], -1), xp.stack([1 - share, share], -1)


def _nearest_taps(size: Any, new_size: Any, align_corners: bool, half_pixel_centers: bool) -> _Taps:
    xp = _module(size, new_size)
    places = xp.arange(new_size).astype(np.float32)
    centers = (places + _HALF if half_pixel_centers else places) * _scale(
        size, new_size, align_corners
    )
    # Halves go up here, as in C, not to even numbers.
    found = xp.floor(centers + _HALF) if align_corners else xp.floor(centers)
    index = xp.clip(found.astype(np.int32), 0, size - 1)
    return index[:, None], None


@functools.cache
def _cubic_table(a: float) -> np.ndarray[Any, Any]:
    """Returns Keys' cubic kernel at 0 to 1, and at 1 to 2, as TensorFlow tabulates it."""
    x = np.arange(_TABLE_SIZE + 1) / np.float64(_TABLE_SIZE)
    x = x.astype(np.float32)
    a32 = np.float32(a)
    near = ((a32 + 2) * x - (a32 + 3)) * x * x + 1
    x = x + 1
    far = ((a32 * x - 5 * a32) * x + 8 * a32) * x - 4 * a32
    return np.stack([near, far], -1).astype(np.float32)


def _cubic_taps(size: Any, new_size: Any, align_corners: bool, half_pixel_centers: bool) -> _Taps:
    """Four taps; beyond the edge the outermost pixel again, or with half pixel centers nothing."""
    xp = _module(size, new_size)
    centers = _centers(size, new_size, align_corners, half_pixel_centers)
    first = xp.floor(centers)
    offset = xp.rint((centers - first) * _TABLE_SIZE).astype(np.int32)
    table = xp.asarray(_cubic_table(-0.5 if half_pixel_centers else -0.75))
    rest = _TABLE_SIZE - offset
    weights = xp.stack([table[offset, 1], table[offset, 0], table[rest, 0], table[rest, 1]], -1)
    wanted = first.astype(np.int32)[:, None] + np.arange(-1, 3, dtype=np.int32)
    index = xp.clip(wanted, 0, size - 1)
    if half_pixel_centers:
        weights = xp.where(index == wanted, weights, np.float32(0))
        weights = weights / xp.sum(weights, -1, keepdims=True)
    return index, weights


def _area_taps(size: int, new_size: int, align_corners: bool) -> _Taps:
    """As many taps as a pixel of the result covers, each weighted by how much of it is covered."""
    scale = _scale(size, new_size, align_corners)
    places = np.arange(new_size).astype(np.float32)
    low, high = places * scale, (places + np.float32(1)) * scale
    first, last = np.floor(low).astype(np.int64), np.ceil(high).astype(np.int64)
    wanted = first[:, None] + np.arange(max(int(np.max(last - first, initial=1)), 1))
    ends = np.minimum(wanted + np.float32(1), high[:, None])
    covered = ends - np.maximum(wanted.astype(np.float32), low[:, None])
    weights = np.where(wanted < last[:, None], covered, 0).astype(np.float32)
    return np.clip(wanted, 0, size - 1), weights / scale


def _resample(image: Any, axis: int, taps: _Taps) -> Any:
    index, weights = taps
    shape = [1] * image.ndim
    shape[axis] = index.shape[0]
    parts = []
    for tap in range(index.shape[1]):
        part = jnp.take(image, index[:, tap], axis=axis, mode="clip")
        if weights is not None:
            part = part * jnp.reshape(weights[:, tap], shape)
        parts.append(part)
    return functools.reduce(jnp.add, parts)


def _resize(taps_of: Callable[..., _Taps], image: Any, size: Any, **attrs: Any) -> Any:
    """Returns images in NHWC of another height and width."""
    result = jnp.asarray(image)
    for axis, new_size in enumerate(ints(size), 1):
        result = _resample(result, axis, taps_of(result.shape[axis], new_size, **attrs))
    return result


def _resize_to_float32(taps_of: Callable[..., _Taps]) -> Callable[..., Any]:
    """Returns a kernel whose result is float32 whatever the images are, as TensorFlow's."""

    def run(images: Any, size: Any, **attrs: Any) -> Any:
        return _resize(taps_of, jnp.asarray(images, np.float32), size, **attrs)

    return run


def _gradient(taps_of: Callable[..., _Taps]) -> Callable[..., Any]:
    def run(grads: Any, original_image: Any, **attrs: Any) -> Any:
        shape = original_image.shape
        resize = functools.partial(_resize, taps_of, size=grads.shape[1:3], **attrs)
        return transpose(resize, shape, grads).astype(original_image.dtype)

    return run


def _rules(*, align_corners: bool, half_pixel_centers: bool) -> None:
    """Names the attrs that say where pixels lie."""


for _name, _taps_of in (("Bilinear", _linear_taps), ("Bicubic", _cubic_taps)):
    _op = f"Resize{_name}"
    kernel(_op, static=("size",))(reading_attrs_of(_op, _resize_to_float32(_taps_of), _rules))
    kernel(f"{_op}Grad")(reading_attrs_of(f"{_op}Grad", _gradient(_taps_of), _rules))
kernel("ResizeArea", static=("size",))(
    reading_attrs_of("ResizeArea", _resize_to_float32(_area_taps), _rules)
)


@kernel("ResizeNearestNeighbor", static=("size",))
def resize_to_nearest(
    images: Any, size: Any, *, align_corners: bool, half_pixel_centers: bool
) -> Any:
    return _resize(
        _nearest_taps,
        images,
        size,
        align_corners=align_corners,
        half_pixel_centers=half_pixel_centers,
    )


@kernel("ResizeNearestNeighborGrad", static=("size",))
def resize_to_nearest_grad(
    grads: Any, size: Any, *, align_corners: bool, half_pixel_centers: bool
) -> Any:
    batch, *new_size, channels = grads.shape

    def resize(images: Any) -> Any:
        return resize_to_nearest(
            images, new_size, align_corners=align_corners, half_pixel_centers=half_pixel_centers
        )

    return transpose(resize, (batch, *ints(size), channels), grads)
