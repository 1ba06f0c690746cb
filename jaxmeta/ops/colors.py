"""Colors of images: hue, saturation and value, and adjustments of them and of the contrast."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmeta.ops._definition import kernel


def _hue(images: Any) -> tuple[Any, Any, Any]:
    """Returns hues in [0, 1), and the smallest and largest of each pixel's channels."""
    r, g, b = (images[..., channel] for channel in range(3))
    largest, smallest = jnp.max(images, -1), jnp.min(images, -1)
    spread = largest - smallest
    is_gray = spread <= 0
    norm = 1 / (6 * jnp.where(is_gray, 1, spread))
    third = np.asarray(1 / 3, images.dtype)
    hue = jnp.where(
        r == largest,
        norm * (g - b),
        jnp.where(g == largest, norm * (b - r) + third, norm * (r - g) + 2 * third),
    )
    hue = jnp.where(is_gray, 0, hue)
    return jnp.where(hue < 0, hue + 1, hue), smallest, largest


def _of_hue(hue: Any, smallest: Any, largest: Any) -> Any:
    """Returns colors: each channel goes up and down with the hue, between two values."""
    sector = hue * 6
    shares = (
        jnp.abs(sector - 3) - 1,
        2 - jnp.abs(sector - 2),
        2 - jnp.abs(sector - 4),
    )
    channels = [smallest + jnp.clip(share, 0, 1) * (largest - smallest) for share in shares]
    return jnp.stack(channels, -1)


@kernel("RGBToHSV")
def rgb_to_hsv(images: Any) -> Any:
    hue, smallest, largest = _hue(images)
    is_lit = largest > 0
    saturation = jnp.where(is_lit, (largest - smallest) / jnp.where(is_lit, largest, 1), 0)
    return jnp.stack([hue, saturation, largest], -1)


@kernel("HSVToRGB")
def hsv_to_rgb(images: Any) -> Any:
    hue, saturation, value = (images[..., channel] for channel in range(3))
    return _of_hue(hue, (1 - saturation) * value, value)


@kernel("AdjustHue")
def adjust_hue(images: Any, delta: Any) -> Any:
    hue, smallest, largest = _hue(jnp.asarray(images, np.float32))
    return _of_hue(jnp.mod(hue + delta, 1), smallest, largest).astype(images.dtype)


@kernel("AdjustSaturation")
def adjust_saturation(images: Any, scale: Any) -> Any:
    hue, saturation, value = jnp.moveaxis(rgb_to_hsv(jnp.asarray(images, np.float32)), -1, 0)
    saturation = jnp.clip(saturation * scale, 0, 1)
    return hsv_to_rgb(jnp.stack([hue, saturation, value], -1)).astype(images.dtype)


@kernel("AdjustContrastv2")
def adjust_contrast(images: Any, contrast_factor: Any) -> Any:
    """Scales what each pixel differs from the mean of its channel in its image."""
    wide = jnp.asarray(images, np.float32)
    mean = jnp.mean(wide, (-3, -2), keepdims=True)
    return ((wide - mean) * contrast_factor + mean).astype(images.dtype)


@kernel("AdjustContrast")
def adjust_contrast_within(
    images: Any, contrast_factor: Any, min_value: Any, max_value: Any
) -> Any:
    adjusted = adjust_contrast(jnp.asarray(images, np.float32), contrast_factor)
    return jnp.clip(adjusted, min_value, max_value)
