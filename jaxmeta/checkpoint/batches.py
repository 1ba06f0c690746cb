"""Arrays in batches of bounded size, so that reading needs little memory on the host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

_BATCH_BYTES: Final = 128 << 20


def in_batches(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Yields the keys in batches, in order; a batch ends with the array that fills it.

    Args:
        sizes: the bytes of each array.
    """
    batch: list[str] = []
    batch_bytes = 0
    for key, size in sizes.items():
        batch.append(key)
        batch_bytes += size
        if batch_bytes >= _BATCH_BYTES:
            yield batch
            batch, batch_bytes = [], 0
    if batch:
        yield batch
