"""Boxes cut out of images and resized: CropAndResize and its gradients."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import dtypes
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._gradients import pull_back
from jaxmeta.ops._operands import ints
from jaxmeta.tracing import dimensions


def _sampled_places(low: Any, high: Any, size: Any, new_size: int) -> Any:
    """Returns where in an image the pixels of each box lie along an axis: [boxes, new_size]."""
    last = (jnp if dimensions.is_symbolic(size) else np).float32(size - 1)
    if new_size == 1:
        return (np.float32(0.5) * (low + high) * last)[:, None]
    step = (high - low) * last / np.float32(new_size - 1)
    return (low * last)[:, None] + np.arange(new_size, dtype=np.float32) * step[:, None]


@kernel("CropAndResize", static=("crop_size",))
def crop_and_resize(
    image: Any,
    boxes: Any,
    box_ind: Any,
    crop_size: Any,
    *,
    method: bytes,
    extrapolation_value: float = 0.0,
) -> Any:
    """Returns float32 crops; NaN for boxes of no image, where TensorFlow's CPU kernel raises."""
    batch, height, width, _ = image.shape
    new_height, new_width = ints(crop_size)
    image = jnp.asarray(image)
    ys = _sampled_places(boxes[:, 0], boxes[:, 2], height, new_height)
    xs = _sampled_places(boxes[:, 1], boxes[:, 3], width, new_width)

    def pixels(rows: Any, columns: Any) -> Any:
        rows = jnp.clip(rows.astype(np.int32), 0, height - 1)[:, :, None]
        columns = jnp.clip(columns.astype(np.int32), 0, width - 1)[:, None, :]
        owner = jnp.clip(box_ind, 0, batch - 1)[:, None, None]
        return image[owner, rows, columns].astype(np.float32)

    if method == b"nearest":  # halves go up
        crops = pixels(jnp.floor(ys + np.float32(0.5)), jnp.floor(xs + np.float32(0.5)))
    else:
        top, left = jnp.floor(ys), jnp.floor(xs)
        y_share, x_share = (ys - top)[:, :, None, None], (xs - left)[:, None, :, None]
        bottom, right = jnp.ceil(ys), jnp.ceil(xs)
        upper = pixels(top, left) * (1 - x_share) + pixels(top, right) * x_share
        lower = pixels(bottom, left) * (1 - x_share) + pixels(bottom, right) * x_share
        crops = upper * (1 - y_share) + lower * y_share
    is_inside = ((ys >= 0) & (ys <= height - 1))[:, :, None] & ((xs >= 0) & (xs <= width - 1))[
        :, None, :
    ]
    crops = jnp.where(is_inside[..., None], crops, np.float32(extrapolation_value))
    is_of_image = (box_ind >= 0) & (box_ind < batch)
    return jnp.where(is_of_image[:, None, None, None], crops, np.float32(np.nan))


@kernel("CropAndResizeGradImage", static=("image_size",))
def crop_and_resize_grad_image(
    grads: Any, boxes: Any, box_ind: Any, image_size: Any, *, T: int, method: bytes
) -> Any:
    dtype = jax.dtypes.canonicalize_dtype(dtypes.dtype_from_number(T))
    crop = functools.partial(
        crop_and_resize, boxes=boxes, box_ind=box_ind, crop_size=grads.shape[1:3], method=method
    )
    # Extrapolated pixels are not linear in the image, but constant.
    return pull_back(crop, jnp.zeros(ints(image_size), np.float32), grads).astype(dtype)


@kernel("CropAndResizeGradBoxes")
def crop_and_resize_grad_boxes(
    grads: Any, image: Any, boxes: Any, box_ind: Any, *, method: bytes
) -> Any:
    def crop(boxes: Any) -> Any:
        return crop_and_resize(image, boxes, box_ind, grads.shape[1:3], method=method)

    return pull_back(crop, boxes, grads)
