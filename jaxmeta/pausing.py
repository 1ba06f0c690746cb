"""Pausing Python's garbage collector while many objects are made that all live on."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused_gc() -> Iterator[None]:
    """Stops Python's garbage collector within the block.

    Tracing makes many objects that all live on; collecting among them takes more than half of the
    time of a large trace.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            if not gc.get_freeze_count():
                # Moves what was made to the oldest generation without looking at it, so that the
                # next young collections do not go through it all.
                gc.freeze()
                gc.unfreeze()
            gc.enable()
