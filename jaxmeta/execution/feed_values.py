"""What a session makes of the values that it is fed: arrays of dtypes that their tensors take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import jax
import numpy as np

from jaxmeta import dtypes, errors
from jaxmeta.graphs.graph import Tensor, Variable

_KINDS: Final = (np.integer, np.floating, np.complexfloating)  # what a feed may be cast along


def _is_cast(found: Any, wanted: Any) -> bool:
    """Returns whether only the precision of numbers differs, or whole numbers are wanted real."""
    if not all(jax.dtypes.issubdtype(dtype, np.number) for dtype in (found, wanted)):
        return False
    orders = [
        next(i for i, kind in enumerate(_KINDS) if jax.dtypes.issubdtype(dtype, kind))
        for dtype in (found, wanted)
    ]
    return orders[0] <= orders[1]


def as_bytes(array: Any) -> np.ndarray[Any, Any]:
    """Returns an array of strings as the kernels take them: objects, each bytes."""
    flat = [item.encode() if isinstance(item, str) else item for item in np.ravel(array).tolist()]
    others = sorted({type(item).__name__ for item in flat if not isinstance(item, bytes)})
    if others:
        raise errors.FeedTypeError(f"a tensor of strings was fed {', '.join(others)} among them")
    strings = np.empty(len(flat), dtype=object)
    strings[:] = flat
    return strings.reshape(np.shape(array))


def as_array(name: str, value: Any, find: Callable[[str], Any]) -> Any:
    """Returns a fed number or list as an array of the tensor's dtype.

    Args:
        name: of the tensor.
        value: what it is fed.
        find: returns a tensor by name.

    Raises:
        FeedTypeError: the value is a tensor or a variable, or too large for the dtype.
    """
    if isinstance(value, (Tensor, Variable)):
        raise errors.FeedTypeError(
            f"{name}: the value of a feed cannot be {value!r}; run it first, and feed what "
            "that returns"
        )
    if hasattr(value, "dtype"):
        return value if hasattr(value, "shape") else np.asarray(value)
    try:
        array = np.asarray(value, dtype=find(name).dtype)
    except OverflowError as error:
        raise errors.FeedTypeError(f"{name}: cannot be fed {value!r}: {error}") from None
    except (TypeError, ValueError):  # also of a resource, which has no dtype
        return np.asarray(value)  # reported with the other feeds
    if array.dtype.kind in "iu" and np.asarray(value).dtype.kind == "f":
        return np.asarray(value)  # the same: TensorFlow cuts no fractions off
    return array


def casts(tensors: Iterable[Any], given: Sequence[Any]) -> dict[int, Any]:
    """Returns the dtypes to which fed arrays are cast, by their places.

    Those of another precision than their tensors are, as TensorFlow casts them.
    """
    found = {}
    for index, (tensor, value) in enumerate(zip(tensors, given, strict=True)):
        if dtypes.base_number(tensor.number) in (dtypes.RESOURCE, dtypes.VARIANT):
            continue  # refused with the other feeds
        if value.dtype != tensor.dtype and _is_cast(value.dtype, tensor.dtype):
            found[index] = tensor.dtype
    return found
