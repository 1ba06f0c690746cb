"""Arrays of strings: objects, each bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def string_array(items: Sequence[bytes], shape: Any = None) -> np.ndarray[Any, Any]:
    """Returns an array of some strings, a vector by default."""
    result = np.empty(len(items), dtype=object)
    result[:] = items
    return result if shape is None else result.reshape(shape)


def map_strings(fn: Callable[..., bytes], *arrays: Any) -> np.ndarray[Any, Any]:
    """Returns the array of what a function gives for each element; scalars go with any shape."""
    broadcast = np.broadcast_arrays(*[np.asarray(array) for array in arrays])
    items = [fn(*parts) for parts in zip(*(array.ravel() for array in broadcast), strict=True)]
    return string_array(items, broadcast[0].shape)


def scalar_string(value: Any) -> bytes:
    """Returns the bytes of a string scalar."""
    content = np.asarray(value).item()
    return content.encode() if isinstance(content, str) else content
