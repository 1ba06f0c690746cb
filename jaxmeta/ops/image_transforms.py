"""Images moved by maps of the plane: ImageProjectiveTransform and ScaleAndTranslate."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import errors
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._gradients import transpose
from jaxmeta.ops._operands import ints
from jaxmeta.ops._rounding import round_away

# --- projective maps ---------------------------------------------------------------------------


def _reflected(place: Any, size: int) -> Any:
    """Returns places in d c b a | a b c d | d c b a."""
    if size <= 1:
        return jnp.zeros_like(place)
    period = np.float32(2 * size)
    below = place + jnp.where(place < period, period * jnp.trunc(-place / period), 0)
    below = jnp.where(below < -size, below + period, -below - 1)
    above = place - period * jnp.trunc(place / period)
    above = jnp.where(above >= size, period - above - 1, above)
    return jnp.where(place < 0, below, jnp.where(place > size - 1, above, place))


def _wrapped(place: Any, size: int) -> Any:
    """Returns places in a b c d | a b c d | a b c d."""
    if size <= 1:
        return jnp.zeros_like(place)
    below = place + size * (jnp.trunc(-place / (size - 1)) + 1)
    above = place - size * jnp.trunc(place / (size - 1))
    return jnp.where(place < 0, below, jnp.where(place > size - 1, above, place))


_FILL_MODES: Final[dict[bytes, Callable[[Any, int], Any]]] = {
    b"CONSTANT": lambda place, size: place,
    b"REFLECT": lambda place, size: jnp.clip(_reflected(place, size), 0, size - 1),
    b"WRAP": lambda place, size: jnp.clip(_wrapped(place, size), 0, size - 1),
    b"NEAREST": lambda place, size: jnp.clip(place, 0, size - 1),
}


def _sources(transforms: Any, shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """Returns the rows and columns that each pixel comes from, and whether it comes from any."""
    height, width = shape
    t = transforms[:, :, None, None]
    y = np.arange(height, dtype=np.float32)[:, None]
    x = np.arange(width, dtype=np.float32)[None, :]
    scale = t[:, 6] * x + t[:, 7] * y + 1
    is_finite = scale != 0
    scale = jnp.where(is_finite, scale, 1)
    rows = (t[:, 3] * x + t[:, 4] * y + t[:, 5]) / scale
    columns = (t[:, 0] * x + t[:, 1] * y + t[:, 2]) / scale
    return rows, columns, is_finite


@kernel("ImageProjectiveTransformV3", static=("output_shape",))
def project_image(
    images: Any,
    transforms: Any,
    output_shape: Any,
    fill_value: Any,
    *,
    interpolation: bytes,
    fill_mode: bytes,
) -> Any:
    """Returns images whose pixels are those at projected places.

    The derivative is that of the interpolation, where TensorFlow moves gradients by
    the inverse map.
    """
    batch, height, width, _ = images.shape
    images = jnp.asarray(images)
    map_place = _FILL_MODES[fill_mode]
    rows, columns, is_finite = _sources(jnp.asarray(transforms), ints(output_shape))
    rows, columns = map_place(rows, height), map_place(columns, width)
    owner = np.arange(batch)[:, None, None]
    fill = jnp.asarray(fill_value, np.float32)

    def read(y: Any, x: Any) -> Any:
        is_inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        y = jnp.clip(y, 0, height - 1).astype(np.int32)
        x = jnp.clip(x, 0, width - 1).astype(np.int32)
        found = images[owner, y, x]
        return jnp.where(is_inside[..., None], found, fill.astype(images.dtype))

    if interpolation == b"NEAREST":
        result = read(round_away(rows), round_away(columns))
    else:
        top, left = jnp.floor(rows), jnp.floor(columns)
        y_share, x_share = (rows - top)[..., None], (columns - left)[..., None]
        upper = (1 - x_share) * read(top, left) + x_share * read(top, left + 1)
        lower = (1 - x_share) * read(top + 1, left) + x_share * read(top + 1, left + 1)
        result = ((1 - y_share) * upper + y_share * lower).astype(images.dtype)
    return jnp.where(is_finite[..., None], result, fill.astype(images.dtype))


@kernel("ImageProjectiveTransformV2", static=("output_shape",))
def project_image_v2(
    images: Any, transforms: Any, output_shape: Any, *, interpolation: bytes, fill_mode: bytes
) -> Any:
    return project_image(
        images,
        transforms,
        output_shape,
        np.float32(0),
        interpolation=interpolation,
        fill_mode=fill_mode,
    )


@kernel("ImageProjectiveTransform")
def project_image_v1(images: Any, transforms: Any, *, interpolation: bytes) -> Any:
    """Returns images of the same size; the op of tf.contrib."""
    return project_image_v2(
        images,
        transforms,
        images.shape[1:3],
        interpolation=interpolation,
        fill_mode=b"CONSTANT",
    )


# --- scales and translations -------------------------------------------------------------------


def _lanczos(radius: float, x: Any) -> Any:
    safe = jnp.where(x > 1e-3, x, 1)
    wave = radius * jnp.sin(np.pi * safe) * jnp.sin(np.pi * safe / radius)
    value = jnp.where(x > 1e-3, wave / (np.pi * np.pi * safe * safe), 1)
    return jnp.where(x > radius, 0, value)


def _gaussian(x: Any) -> Any:
    sigma = 0.5
    return jnp.where(x >= 1.5, 0, jnp.exp(-x * x / (2 * sigma * sigma)))


def _box(x: Any) -> Any:
    return jnp.where(x < 0.5, 1.0, jnp.where(x == 0.5, 0.5, 0.0))


def _keys_cubic(x: Any) -> Any:
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x >= 2, 0, jnp.where(x >= 1, far, (1.5 * x - 2.5) * x * x + 1))


def _mitchell_cubic(x: Any) -> Any:
    far = ((-7 / 18 * x + 2) * x - 10 / 3) * x + 16 / 9
    return jnp.where(x >= 2, 0, jnp.where(x >= 1, far, (7 / 6 * x - 2) * x * x + 8 / 9))


# Name to radius and kernel.
_SAMPLING_KERNELS: Final[dict[bytes, tuple[float, Callable[[Any], Any]]]] = {
    b"lanczos1": (1.0, functools.partial(_lanczos, 1.0)),
    b"lanczos3": (3.0, functools.partial(_lanczos, 3.0)),
    b"lanczos5": (5.0, functools.partial(_lanczos, 5.0)),
    b"gaussian": (1.5, _gaussian),
    b"box": (1.0, _box),
    b"triangle": (1.0, lambda x: jnp.maximum(1 - x, 0)),
    b"keyscubic": (2.0, _keys_cubic),
    b"mitchellcubic": (2.0, _mitchell_cubic),
}


def _sampling_weights(
    size: int, new_size: int, scale: Any, translation: Any, kernel_type: bytes, antialias: bool
) -> Any:
    """Returns how much of each pixel goes into each new one: [new_size, size], float32."""
    if kernel_type not in _SAMPLING_KERNELS:
        raise errors.InvalidArgumentError(
            f"kernel_type {kernel_type.decode()!r} is none of "
            f"{', '.join(name.decode() for name in _SAMPLING_KERNELS)}"
        )
    radius, weigh = _SAMPLING_KERNELS[kernel_type]
    inverse = 1 / scale
    spread = jnp.maximum(inverse, 1) if antialias else jnp.ones_like(inverse)
    half = np.float32(0.5)
    centers = (np.arange(new_size, dtype=np.float32) + half) * inverse - inverse * translation
    offsets = np.arange(size, dtype=np.float32) + half - centers[:, None]
    is_reached = jnp.abs(offsets) <= radius * spread
    weights = jnp.where(is_reached, weigh(jnp.abs(offsets) / spread), 0)
    total = jnp.sum(weights, 1, keepdims=True)
    is_some = jnp.abs(total) >= 1000 * np.finfo(np.float32).tiny
    weights = jnp.where(is_some, weights / jnp.where(is_some, total, 1), weights)
    is_inside = (centers >= 0) & (centers <= size)
    return jnp.where(is_inside[:, None], weights, 0).astype(np.float32)


@kernel("ScaleAndTranslate", static=("size",))
def scale_and_translate(
    images: Any,
    size: Any,
    scale: Any,
    translation: Any,
    *,
    kernel_type: bytes,
    antialias: bool,
) -> Any:
    """Returns float32 images of another size, of what lies at scaled and moved places."""
    result = jnp.asarray(images, np.float32)
    for axis, new_size in enumerate(ints(size), 1):
        place = axis - 1
        weights = _sampling_weights(
            result.shape[axis], new_size, scale[place], translation[place], kernel_type, antialias
        )
        moved = jnp.tensordot(weights, result, ((1,), (axis,)), precision=lax.Precision.HIGHEST)
        result = jnp.moveaxis(moved, 0, axis)
    return result


@kernel("ScaleAndTranslateGrad")
def scale_and_translate_grad(
    grads: Any,
    original_image: Any,
    scale: Any,
    translation: Any,
    *,
    kernel_type: bytes,
    antialias: bool,
) -> Any:
    def forward(images: Any) -> Any:
        return scale_and_translate(
            images,
            grads.shape[1:3],
            scale,
            translation,
            kernel_type=kernel_type,
            antialias=antialias,
        )

    return transpose(forward, original_image.shape, grads)
