"""Rounding as TensorFlow's kernels do it, where the last bit decides which integer is found."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np


def round_away(x: Any) -> Any:
    """Returns the nearest integers as floats; halves go away from zero, as in C."""
    return jnp.trunc(x + jnp.copysign(np.asarray(0.5, x.dtype), x))


def divide(x: Any, number: Any) -> Any:
    """Returns quotients that are correctly rounded.

    XLA multiplies by the reciprocal of a constant, or of a scalar, which may give the number next
    to it. So the divisor here is an array that depends on the dividend.
    """
    return x / jnp.where(x == x, jnp.asarray(number, x.dtype), x)
