"""Arrays of strings: objects, each bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxmeta import errors


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


def parse_number(item: bytes, dtype: Any) -> Any:
    """Returns the number that a string says.

    Raises:
        InvalidArgumentError: it says none, or one that the dtype does not hold.
    """
    parse: Any = int if dtype.kind in "iu" else float
    try:
        if b"_" in item:  # which Python takes
            raise ValueError(item)
        number = parse(item)
        if dtype.kind in "iu" and not np.iinfo(dtype).min <= number <= np.iinfo(dtype).max:
            raise ValueError(item)
    except (ValueError, OverflowError):
        raise errors.InvalidArgumentError(
            f"StringToNumberOp could not correctly convert string: {item!r} to {dtype}"
        ) from None
    return number
