"""Non-maximum suppression: the best of boxes that overlap.

TensorFlow gives as many boxes as it finds. Where it pads them to a given number, the kernels can be
traced; the others run outside jit, and cut off what their padded form gives.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta.ops._definition import kernel

_LOWEST: Final = -np.inf


def _areas(boxes: Any) -> tuple[Any, Any, Any]:
    """Returns the lower and upper corners of boxes, in whatever order they were, and areas."""
    low, high = (
        jnp.minimum(boxes[..., :2], boxes[..., 2:]),
        jnp.maximum(boxes[..., :2], boxes[..., 2:]),
    )
    return low, high, jnp.prod(high - low, -1)


def _overlaps_with(boxes: Any, index: Any) -> Any:
    """Returns the intersection over union of a box with each, 0 where one is empty."""
    low, high, area = _areas(boxes)
    sides = jnp.minimum(high, high[index]) - jnp.maximum(low, low[index])
    shared = jnp.prod(jnp.maximum(sides, 0), -1)
    is_some = (area > 0) & (area[index] > 0)
    return jnp.where(is_some, shared / jnp.where(is_some, area + area[index] - shared, 1), 0)


def _suppress(
    overlaps_with: Callable[[Any], Any],
    scores: Any,
    size: int,
    overlap_threshold: Any,
    score_threshold: Any,
    sigma: Any,
) -> tuple[Any, Any, Any]:
    """Returns the indices and scores of the best boxes, zeros after them, and how many they are.

    What overlaps a better box more than the threshold goes, or where sigma is positive its score
    falls instead. Of equal scores the first is better.
    """
    is_soft = sigma > 0
    scale = jnp.where(is_soft, -0.5 / jnp.where(is_soft, sigma, 1), 0).astype(scores.dtype)
    left = jnp.where(scores > score_threshold, scores, _LOWEST)

    def step(i: Any, found: Any) -> Any:
        left, indices, kept, count = found
        best = jnp.argmax(left).astype(np.int32)
        is_some = left[best] > score_threshold
        overlaps = overlaps_with(best)
        weights = jnp.exp(scale * overlaps * overlaps)
        lower = jnp.where(is_soft | (overlaps <= overlap_threshold), left * weights, _LOWEST)
        lower = jnp.where((lower > score_threshold) & jnp.isfinite(left), lower, _LOWEST)
        indices = indices.at[i].set(jnp.where(is_some, best, 0))
        kept = kept.at[i].set(jnp.where(is_some, left[best], 0))
        return lower.at[best].set(_LOWEST), indices, kept, count + is_some

    start = (left, jnp.zeros(size, np.int32), jnp.zeros(size, scores.dtype), jnp.int32(0))
    if not size or not scores.size:
        return start[1:]
    _, indices, kept, count = lax.fori_loop(0, size, step, start)
    return indices, kept, count


@functools.partial(jax.jit, static_argnums=2)
def suppress_boxes(
    boxes: Any,
    scores: Any,
    size: int,
    overlap_threshold: Any,
    score_threshold: Any = _LOWEST,
    sigma: Any = 0.0,
) -> tuple[Any, Any, Any]:
    """Returns `_suppress` for boxes ``[boxes, 4]``."""
    boxes, scores = jnp.asarray(boxes), jnp.asarray(scores)
    overlaps = functools.partial(_overlaps_with, boxes)
    return _suppress(overlaps, scores, size, overlap_threshold, score_threshold, sigma)


def _size(max_output_size: Any, scores: Any) -> int:
    return max(min(int(max_output_size), int(scores.shape[0])), 0)


# --- as many as there are ------------------------------------------------------------------------


@kernel("NonMaxSuppressionV2", "NonMaxSuppressionV3", is_host=True)
def non_max_suppression(
    boxes: Any,
    scores: Any,
    max_output_size: Any,
    iou_threshold: Any,
    score_threshold: Any = _LOWEST,
) -> Any:
    size = _size(max_output_size, scores)
    indices, _, count = suppress_boxes(boxes, scores, size, iou_threshold, score_threshold)
    return np.asarray(indices)[: int(count)]


@kernel("NonMaxSuppression", is_host=True)
def non_max_suppression_v1(
    boxes: Any, scores: Any, max_output_size: Any, *, iou_threshold: float
) -> Any:
    return non_max_suppression(boxes, scores, max_output_size, np.float32(iou_threshold))


@kernel("NonMaxSuppressionWithOverlaps", is_host=True)
def non_max_suppression_with_overlaps(
    overlaps: Any, scores: Any, max_output_size: Any, overlap_threshold: Any, score_threshold: Any
) -> Any:
    overlaps, scores = jnp.asarray(overlaps), jnp.asarray(scores)
    size = _size(max_output_size, scores)
    found = _suppress(
        lambda index: overlaps[:, index],
        scores,
        size,
        overlap_threshold,
        score_threshold,
        np.float32(0),
    )
    return np.asarray(found[0])[: int(found[2])]


# --- padded, where it is asked for ---------------------------------------------------------------


def _with_scores(
    boxes: Any,
    scores: Any,
    max_output_size: Any,
    iou_threshold: Any,
    score_threshold: Any,
    soft_nms_sigma: Any,
    *,
    pad_to_max_output_size: bool,
) -> list[Any]:
    size = _size(max_output_size, scores)
    indices, kept, count = suppress_boxes(
        boxes, scores, size, iou_threshold, score_threshold, soft_nms_sigma
    )
    if pad_to_max_output_size:
        pads = (0, int(max_output_size) - size)
        return [jnp.pad(indices, pads), jnp.pad(kept, pads), count]
    found = int(count)
    return [np.asarray(indices)[:found], np.asarray(kept)[:found], np.asarray(count)]


_PAD: Final = "pad_to_max_output_size"
kernel("NonMaxSuppressionV5", static=("max_output_size",), is_host=True, traced_where=_PAD)(
    _with_scores
)


@kernel("NonMaxSuppressionV4", static=("max_output_size",), is_host=True, traced_where=_PAD)
def non_max_suppression_v4(
    boxes: Any,
    scores: Any,
    max_output_size: Any,
    iou_threshold: Any,
    score_threshold: Any,
    *,
    pad_to_max_output_size: bool,
) -> list[Any]:
    inputs = (boxes, scores, max_output_size, iou_threshold, score_threshold, np.float32(0))
    indices, _, count = _with_scores(*inputs, pad_to_max_output_size=pad_to_max_output_size)
    return [indices, count]


@kernel("CombinedNonMaxSuppression", static=("max_output_size_per_class", "max_total_size"))
def combined_non_max_suppression(
    boxes: Any,
    scores: Any,
    max_output_size_per_class: Any,
    max_total_size: Any,
    iou_threshold: Any,
    score_threshold: Any,
    *,
    pad_per_class: bool,
    clip_boxes: bool,
) -> list[Any]:
    """Returns the best boxes of all classes of each image, their scores, classes and numbers."""
    boxes, scores = jnp.asarray(boxes), jnp.asarray(scores)
    classes = scores.shape[2]
    per_class, total = int(max_output_size_per_class), int(max_total_size)
    if pad_per_class:
        total = min(total, per_class * classes)
    size = max(min(per_class, scores.shape[1]), 0)

    def of_class(boxes: Any, scores: Any) -> Any:
        indices, kept, count = suppress_boxes(boxes, scores, size, iou_threshold, score_threshold)
        return boxes[indices], jnp.where(jnp.arange(size) < count, kept, _LOWEST), count

    def of_image(boxes: Any, scores: Any) -> Any:
        shared = boxes.shape[1] == 1
        by_class = boxes[:, 0] if shared else jnp.moveaxis(boxes, 1, 0)
        found = jax.vmap(of_class, (None if shared else 0, 1))(by_class, scores)
        corners, kept, counts = found
        numbers = jnp.broadcast_to(jnp.arange(classes, dtype=np.float32)[:, None], kept.shape)
        order = jnp.argsort(-jnp.ravel(kept), stable=True)[:total]
        count = jnp.minimum(jnp.sum(counts), total).astype(np.int32)
        is_kept = jnp.arange(order.size) < count
        rows = jnp.reshape(corners, (-1, 4))[order]
        if clip_boxes:
            rows = jnp.clip(rows, 0, 1)
        pads = (0, total - order.size)
        return (
            jnp.pad(jnp.where(is_kept[:, None], rows, 0), (pads, (0, 0))),
            jnp.pad(jnp.where(is_kept, jnp.ravel(kept)[order], 0), pads),
            jnp.pad(jnp.where(is_kept, jnp.ravel(numbers)[order], 0), pads),
            count,
        )

    return list(jax.vmap(of_image)(boxes, scores))
