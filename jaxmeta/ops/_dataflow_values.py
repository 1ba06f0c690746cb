"""What passes along the edges of TensorFlow's dataflow beside arrays: dead tensors, and lists."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from jaxmeta import errors


class _Dead:
    """What a branch that is not taken gives."""

    def __repr__(self) -> str:
        return "DEAD"


DEAD: Final = _Dead()


@dataclasses.dataclass(frozen=True, slots=True)
class TensorList:
    """A list of arrays; None where an element was not set.

    Attributes:
        items: the elements.
        element_shape: what is known of their shapes, -1 for sizes that are not.
        dtype_number: of the elements.
    """

    items: tuple[Any, ...]
    element_shape: tuple[int, ...] | None
    dtype_number: int

    def __add__(self, other: TensorList) -> TensorList:
        """Returns the list of sums; an element that was not set counts as 0."""
        pairs = zip(self.items, other.items, strict=True)
        return self.replaced([b if a is None else a if b is None else a + b for a, b in pairs])

    def replaced(self, items: Sequence[Any]) -> TensorList:
        """Returns the list with other elements."""
        return dataclasses.replace(self, items=tuple(items))


@dataclasses.dataclass(frozen=True, slots=True)
class Optional:
    """Values that may not be there.

    Attributes:
        components: the values, or None.
    """

    components: tuple[Any, ...] | None

    def __add__(self, other: Optional) -> Optional:
        """Returns the sums; one that has no value counts as 0."""
        if self.components is None or other.components is None:
            return other if self.components is None else self
        pairs = zip(self.components, other.components, strict=True)
        return Optional(tuple(a + b for a, b in pairs))


class Stack:
    """The values that a loop left for its gradient."""

    def __init__(self) -> None:
        self.items: list[Any] = []


class TensorArray:
    """The elements that loops write one by one.

    Attributes:
        items: by index.
        element_shape: what is known of the shapes of all.
        dtype: of the elements.
        forward: for an array of gradients, the array that they belong to.
        gradients: by the source that asked for them.
    """

    def __init__(
        self,
        size: int,
        dtype: Any,
        element_shape: Sequence[int | None] | None,
        *,
        is_dynamic: bool,
        forward: TensorArray | None = None,
    ) -> None:
        self.items: list[Any] = [None] * size
        self.dtype = dtype
        self.element_shape = element_shape
        self.forward = forward
        self.gradients: dict[bytes, TensorArray] = {}
        self._is_dynamic = is_dynamic

    def write(self, index: int, value: Any) -> None:
        """Sets an element; gradients of one element are summed.

        Raises:
            InvalidArgumentError: there is no such element.
        """
        if index >= len(self.items) and self._is_dynamic:
            self.items.extend([None] * (index + 1 - len(self.items)))
        if not 0 <= index < len(self.items):
            raise errors.InvalidArgumentError(
                f"Tried to write to index {index} but array is not resizeable and size is: "
                f"{len(self.items)}"
            )
        old = self.items[index]
        self.items[index] = value if old is None or self.forward is None else old + value

    def read(self, index: int) -> Any:
        """Returns an element; zeros where it was not written and its shape is known.

        Raises:
            InvalidArgumentError: there is no such element, or its shape is not known.
        """
        if not 0 <= index < len(self.items):
            raise errors.InvalidArgumentError(
                f"Tried to read from index {index} but array size is: {len(self.items)}"
            )
        value = self.items[index]
        if value is not None:
            return value
        shape = self.element_shape
        if self.forward is not None and index < len(self.forward.items):
            like = self.forward.items[index]
            shape = np.shape(like) if like is not None else shape
        return zeros_of_element(shape, self.dtype, self.items)


def zeros_of_element(shape: Any, dtype: Any, others: Sequence[Any]) -> Any:
    """Returns zeros in place of an element that was not set.

    Raises:
        InvalidArgumentError: neither the shape is known, nor that of another element.
    """
    is_known = shape is not None and all(size is not None and size >= 0 for size in shape)
    if not is_known:
        shape = next((np.shape(other) for other in others if other is not None), None)
    if shape is None:
        raise errors.InvalidArgumentError("an element was read that was never written")
    return jnp.zeros(tuple(shape), dtype)
