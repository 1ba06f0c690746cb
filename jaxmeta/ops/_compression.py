"""Compressed strings and files."""

from __future__ import annotations

import gzip
import zlib
from typing import Final

from jaxmeta import errors

_MOST_BYTES: Final = 1 << 30  # of what a string may be decompressed to


def decompress(content: bytes, kind: bytes) -> bytes:
    """Returns what was compressed by ZLIB or GZIP.

    Raises:
        DataLossError: it is damaged, or larger than is sensible.
    """
    decompressor = zlib.decompressobj(zlib.MAX_WBITS if kind == b"ZLIB" else 16 + zlib.MAX_WBITS)
    try:
        found = decompressor.decompress(content, _MOST_BYTES)
    except (zlib.error, gzip.BadGzipFile) as error:
        raise errors.DataLossError(f"compressed data is damaged: {error}") from None
    if decompressor.unconsumed_tail or not decompressor.eof:
        raise errors.DataLossError("compressed data is truncated, or has more than 1 GiB")
    return found
