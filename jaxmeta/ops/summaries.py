"""Summaries for TensorBoard: ops that turn values into a serialized `Summary`, on the host.

What they write is what TensorFlow's kernels write (core/kernels/summary_op.cc, summary_image_op.cc,
core/lib/histogram/histogram.cc), but for the compression of PNG images.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from jaxmeta import errors, values
from jaxmeta._proto import event_pb2
from jaxmeta.ops import _png
from jaxmeta.ops._definition import kernel

_SMALLEST_PIXEL: Final = 1e-6  # TensorFlow draws an image below it in one color


def _serialized(fill: Callable[[event_pb2.Summary], None]) -> Any:
    summary = event_pb2.Summary()
    fill(summary)
    return np.array(summary.SerializeToString(deterministic=True), dtype=object)


@kernel("ScalarSummary", is_host=True)
def scalar_summary(tags: Any, values: Any) -> Any:
    if np.shape(tags) != np.shape(values):
        raise errors.GraphError(
            f"a scalar summary has tags of shape {np.shape(tags)}, values of {np.shape(values)}"
        )

    def fill(summary: event_pb2.Summary) -> None:
        for tag, value in zip(np.ravel(tags), np.ravel(values), strict=True):
            summary.value.add(tag=tag, simple_value=float(value))

    return _serialized(fill)


# --- histograms --------------------------------------------------------------------------------


@functools.cache
def _bucket_limits() -> np.ndarray[Any, Any]:
    """Returns the upper limits of TensorFlow's buckets, which grow by a tenth from 1e-12 on."""
    limits, limit = [], 1.0e-12
    while limit < 1.0e20:
        limits.append(limit)
        limit *= 1.1
    limits.append(sys.float_info.max)
    return np.array([*(-x for x in reversed(limits)), 0.0, *limits])


@kernel("HistogramSummary", is_host=True)
def histogram_summary(tag: Any, values: Any) -> Any:
    name = _text(tag)
    found = np.ravel(values).astype(np.float64)
    if not np.isfinite(found).all():
        kind = "NaN" if np.isnan(found).any() else "infinity"
        raise errors.GraphError(f"{kind} in the values of the summary histogram {name!r}")
    return _serialized(lambda summary: _fill_histogram(summary.value.add(tag=name).histo, found))


def _fill_histogram(proto: event_pb2.HistogramProto, found: np.ndarray[Any, Any]) -> None:
    limits = _bucket_limits()
    places = np.searchsorted(limits, found, side="right")
    counts = np.bincount(places, minlength=len(limits)).astype(np.float64)
    proto.min = float(found.min()) if found.size else sys.float_info.max
    proto.max = float(found.max()) if found.size else -sys.float_info.max
    proto.num = float(found.size)
    proto.sum = float(found.sum())
    proto.sum_squares = float(np.square(found).sum())
    for index, count in enumerate(counts):
        # Of adjacent empty buckets only the last one's limit is written.
        if count or index + 1 == len(limits) or counts[index + 1]:
            proto.bucket_limit.append(limits[index])
            proto.bucket.append(count)


# --- images ------------------------------------------------------------------------------------


@kernel("ImageSummary", is_host=True)
def image_summary(tag: Any, tensor: Any, *, max_images: int, bad_color: Any) -> Any:
    name, images = _text(tag), np.asarray(tensor)
    if images.ndim != 4 or images.shape[3] not in _png.COLORS_BY_CHANNELS:
        raise errors.GraphError(
            f"the image summary {name!r} has shape {list(images.shape)}; expected [batch, height, "
            "width, channels] with 1, 3 or 4 channels"
        )

    def fill(summary: event_pb2.Summary) -> None:
        for index, image in enumerate(images[:max_images]):
            suffix = f"/image/{index}" if max_images > 1 else "/image"
            proto = summary.value.add(tag=name + suffix).image
            proto.height, proto.width, proto.colorspace = image.shape
            proto.encoded_image_string = _png.encode(_pixels(image, np.asarray(bad_color)))

    return _serialized(fill)


def _pixels(image: np.ndarray[Any, Any], bad_color: np.ndarray[Any, Any]) -> Any:
    """Returns an image as bytes; real ones are scaled so that the largest value is the brightest.

    Where there are negative ones, zero is gray. Pixels that are not finite get the bad color.
    """
    if image.dtype == np.uint8:
        return image
    image = image.astype(np.float32)
    is_finite = np.isfinite(image).all(axis=-1)
    finite = image[is_finite]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    largest = max(abs(low), abs(high))
    top, offset = (127.0, 128.0) if low < 0 else (255.0, 0.0)
    scale = np.float32(0.0 if largest < _SMALLEST_PIXEL else top / largest)
    with np.errstate(invalid="ignore"):
        scaled = np.where(is_finite[..., None], image, 0) * scale + np.float32(offset)
    pixels = scaled.astype(np.uint8)
    pixels[~is_finite] = bad_color[: image.shape[-1]]
    return pixels


# --- tensors, and several in one ---------------------------------------------------------------


@kernel("TensorSummaryV2", is_host=True)
def tensor_summary(tag: Any, tensor: Any, serialized_summary_metadata: Any) -> Any:
    def fill(summary: event_pb2.Summary) -> None:
        value = summary.value.add(tag=_text(tag))
        value.tensor.tensor_shape.SetInParent()
        values.write_tensor(value.tensor, _host_array(tensor))
        value.metadata.MergeFromString(np.asarray(serialized_summary_metadata).item())

    return _serialized(fill)


def _host_array(tensor: Any) -> Any:
    array = np.asarray(tensor)
    return array if array.dtype.kind not in "SU" else array.astype(object)


@kernel("MergeSummary", is_host=True)
def merge_summary(*inputs: Any) -> Any:
    def fill(summary: event_pb2.Summary) -> None:
        tags: set[str] = set()
        for content in inputs:
            part = event_pb2.Summary.FromString(np.asarray(content).item())
            repeated = sorted(tags & {value.tag for value in part.value})
            if repeated:
                raise errors.GraphError(
                    errors.list_offenders("these tags are in several summaries:", repeated)
                )
            tags |= {value.tag for value in part.value}
            summary.value.extend(part.value)

    return _serialized(fill)


def _text(tag: Any) -> str:
    content = np.asarray(tag).item()
    return content.decode() if isinstance(content, bytes) else str(content)
