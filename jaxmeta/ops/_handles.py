"""Handles of variables, which nodes pass on; the values live in the executor's state."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxmeta import errors


@dataclasses.dataclass(frozen=True, slots=True)
class Handle:
    """What a VarHandleOp gives: the name under which the state holds the value."""

    name: str


def check_shape(variable: Handle, shape: Any, value: Any) -> None:
    """Raises InvalidArgumentError where a value has another shape than its variable."""
    if tuple(shape) != np.shape(value):
        raise errors.InvalidArgumentError(
            f"the variable {variable.name!r} has shape {list(shape)}, "
            f"it was given {list(np.shape(value))}"
        )
