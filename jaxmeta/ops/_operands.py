"""What lowerings ask of the edges they are given, and kernels of their static inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes
from jaxmeta.graphs.nodes import Edge
from jaxmeta.tracing import dimensions

BOOL: Final = dtypes.dtype_to_number(np.bool_)


def ints(values: Any) -> tuple[int, ...]:
    """Returns plain ints of a static input or of a parameter that holds numpy ints.

    Symbolic dimensions stay what they are.
    """
    return tuple(map(dimensions.plain, np.ravel(values).tolist()))


def scalar(value: Any) -> Any:
    """Returns the plain int of a static input with one element; a symbolic dimension as it is."""
    (only,) = ints(value)
    return only


def count_as(count: Any, dtype: Any) -> Any:
    """Returns a number of elements as an array that computations take, also a symbolic one."""
    if dimensions.is_symbolic(count):
        return lax.convert_element_type(jnp.asarray(count), dtype)
    return np.asarray(count, dtype)


def is_complex(edge: Edge) -> bool:
    """Returns whether an edge holds complex numbers."""
    return dtypes.dtype_from_number(edge.number).kind == "c"


def avals_of(edges: Sequence[Edge]) -> list[jax.ShapeDtypeStruct]:
    """Returns the avals of edges whose shapes are known."""
    return [
        jax.ShapeDtypeStruct(edge.shape, dtypes.dtype_from_number(edge.number)) for edge in edges
    ]
