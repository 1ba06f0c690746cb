"""What a run keeps beside variables, by key: arrays of tensors, stacks, and what it must report.

A handle of TensorFlow 1's TensorArray or stack is such a key; what it holds is a value in the
state's ``cells``, so that loops carry it as they carry variables.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import errors
from jaxmeta.ops import _tensor_lists as tensor_lists


@dataclasses.dataclass(frozen=True, slots=True)
class Stack:
    """The handle of a stack: the values that a loop left for its gradient.

    Attributes:
        name: of the node that made it, and which time.
    """

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class TensorArray:
    """The handle of a TensorArray: elements that loops write one by one.

    Attributes:
        name: of the node that made it, and which time; of an array of gradients, the source that
            asked for it.
        is_dynamic: whether it grows where an element past its end is written.
        forward: of an array of gradients, the array that they belong to.
    """

    name: str
    is_dynamic: bool = False
    forward: TensorArray | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Needed:
    """The key of how often a loop ran that has places for some number of iterations only.

    Attributes:
        loop: its name.
    """

    loop: str


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """The key of whether an operation failed that could not raise, because it is compiled.

    Attributes:
        message: what it would have said, with ``{}`` in place of values.
    """

    message: str


def first_value(state: Any, key: Any) -> Any:
    """Returns what a cell holds before a loop or branch writes it; None if it is made there."""
    held = state.cells.get(key)
    if held is not None:
        return held
    if isinstance(key, Failure):
        return np.zeros((), np.bool_)
    if isinstance(key, Needed):
        return np.zeros((), np.int32)
    if isinstance(key, TensorArray) and key.forward is not None:
        forward = first_value(state, key.forward)
        return None if forward is None else gradients_of(forward)
    return None


def gradients_of(forward: Any) -> Any:
    """Returns the gradients of an array's elements before any was written.

    Raises:
        UnsupportedOpError: how many elements there are is not known while tracing.
    """
    length = tensor_lists.length_of(forward)
    shape = forward.element_shape
    if isinstance(forward, tensor_lists.StackedList):
        element = tensor_lists.element_of(forward)
        shape = tuple(element.shape) if hasattr(element, "shape") else shape
        if not isinstance(length, int):
            made = tensor_lists.TensorList((None,) * forward.capacity, shape, forward.dtype_number)
            return dataclasses.replace(tensor_lists.stacked(made), length=length)
    return tensor_lists.TensorList((None,) * length, shape, forward.dtype_number)


def check(state: Any, holds: Any, message: str, *values: Any) -> None:
    """Raises where something does not hold; where that is traced, the run reports it at its end.

    Args:
        state: where it is reported; nothing is where None.
        holds: whether it does: a truth value, or an array of them.
        message: what to say, with ``{}`` in place of values.
        *values: the values.

    Raises:
        InvalidArgumentError: it does not hold.
    """
    if not isinstance(holds, jax.core.Tracer):
        if not bool(np.all(holds)):
            raise errors.InvalidArgumentError(message.format(*values))
    elif state is not None:
        key = Failure(message)
        before = state.cells.get(key, np.zeros((), np.bool_))
        state.cells[key] = jnp.logical_or(before, jnp.logical_not(jnp.all(holds)))
