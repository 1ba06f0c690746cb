"""Boxes drawn on images."""

from __future__ import annotations

from typing import Any, Final

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta.ops._definition import kernel

# TensorFlow's colors, one box after the other.
_COLORS: Final = np.array(
    [
        [1, 1, 0, 1],
        [0, 0, 1, 1],
        [1, 0, 0, 1],
        [0, 1, 0, 1],
        [0.5, 0, 0.5, 1],
        [0.5, 0.5, 0, 1],
        [0.5, 0, 0, 1],
        [0, 0, 0.5, 1],
        [0, 1, 1, 1],
        [1, 0, 1, 1],
    ],
    np.float32,
)


def _is_on_outline(boxes: Any, height: int, width: int) -> Any:
    """Returns which pixels are on the outlines of boxes ``[images, 4]``; none of reversed ones."""
    sizes = np.array([height - 1, width - 1, height - 1, width - 1], np.float32)
    top, left, bottom, right = jnp.moveaxis((boxes * sizes).astype(np.int32), -1, 0)[
        :, :, None, None
    ]
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    in_rows, in_columns = (rows >= top) & (rows <= bottom), (columns >= left) & (columns <= right)
    on_side = ((columns == left) | (columns == right)) & in_rows
    is_upright = (top <= bottom) & (left <= right)
    return is_upright & (((rows == top) | (rows == bottom)) & in_columns | on_side)


@kernel("DrawBoundingBoxesV2")
def draw_bounding_boxes_v2(images: Any, boxes: Any, colors: Any) -> Any:
    """Returns images with the outlines of boxes; later ones lie on earlier ones."""
    _, height, width, depth = images.shape
    if not np.size(colors):
        colors = _COLORS
    colors = jnp.asarray(colors, np.float32)
    if depth == 1:
        colors = jnp.ones((1, 1), np.float32)

    def draw(i: Any, drawn: Any) -> Any:
        outline = _is_on_outline(boxes[:, i], height, width)
        color = colors[i % colors.shape[0], :depth].astype(images.dtype)
        return jnp.where(outline[..., None], color, drawn)

    return lax.fori_loop(0, boxes.shape[1], draw, jnp.asarray(images))


@kernel("DrawBoundingBoxes")
def draw_bounding_boxes(images: Any, boxes: Any) -> Any:
    return draw_bounding_boxes_v2(images, boxes, _COLORS)
