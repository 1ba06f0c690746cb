"""Images as PNG (ISO 15948), byte for byte as libpng writes them for TensorFlow.

Summaries are compared and stored as bytes, so what is free in the format is chosen as there: the
filter whose residuals are smallest in sum, zlib at its default level for filtered data, in the
header the smallest window that holds the image, and chunks of 8 KiB.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, Final

import numpy as np

COLORS_BY_CHANNELS: Final = {1: 0, 3: 2, 4: 6}
"""PNG's number of a color type by how many channels an image has."""

_CHUNK_BYTES: Final = 8192
_NO_FILTER, _SUB, _UP, _AVERAGE, _PAETH = range(5)
_LARGEST_SHRUNK: Final = 1 << 14  # of an image whose window is made smaller in the header
_SMALLEST_WINDOW_BITS: Final = 8

Bytes = np.ndarray[Any, Any]


def encode(pixels: Bytes) -> bytes:
    """Returns an image of bytes, [height, width, channels], as PNG with eight bits a channel."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, COLORS_BY_CHANNELS[channels], 0, 0, 0)
    rows = _filter_rows(pixels.reshape(height, width * channels).astype(np.int16), channels)
    data = _compress(rows)
    parts = [data[i : i + _CHUNK_BYTES] for i in range(0, len(data), _CHUNK_BYTES)]
    chunks = [(b"IHDR", header), *((b"IDAT", part) for part in parts), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, part) for kind, part in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _filter_rows(rows: Bytes, channels: int) -> bytes:
    """Returns each row after the number of its filter."""
    allowed = [_NO_FILTER]
    if rows.shape[1] > channels:
        allowed.append(_SUB)
    if rows.shape[0] > 1:
        allowed.append(_UP)
    if _SUB in allowed and _UP in allowed:
        allowed += [_AVERAGE, _PAETH]
    above = np.zeros_like(rows[0])
    done = []
    for row in rows:
        residuals = _residuals(row, above, channels)
        best = min(allowed, key=lambda number: _size(residuals[number]))
        done.append(bytes([best]) + residuals[best].astype(np.uint8).tobytes())
        above = row
    return b"".join(done)


def _residuals(row: Bytes, above: Bytes, channels: int) -> list[Bytes]:
    """Returns what remains of a row under each filter, modulo 256."""
    left, corner = (
        np.concatenate([np.zeros(channels, np.int16), x[:-channels]]) for x in (row, above)
    )
    to_left, to_above = abs(above - corner), abs(left - corner)
    to_corner = abs(left + above - 2 * corner)
    paeth = np.where(to_above <= to_corner, above, corner)
    paeth = np.where((to_left <= to_above) & (to_left <= to_corner), left, paeth)
    predictions = (np.zeros_like(row), left, above, (left + above) // 2, paeth)
    return [(row - prediction) % 256 for prediction in predictions]


def _size(residuals: Bytes) -> int:
    return int(np.minimum(residuals, 256 - residuals).sum())


def _compress(rows: bytes) -> bytes:
    compressor = zlib.compressobj(
        zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_FILTERED
    )
    data = compressor.compress(rows) + compressor.flush()
    if len(rows) > _LARGEST_SHRUNK:
        return data
    bits = max((len(rows) - 1).bit_length(), _SMALLEST_WINDOW_BITS)
    method = (bits - 8) << 4 | zlib.DEFLATED
    flags = data[1] & 0b1110_0000
    flags += -(method * 256 + flags) % 31  # the header is a multiple of it
    return bytes([method, flags]) + data[2:]
