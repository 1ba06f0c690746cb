"""Sparse tensors as ops pass them on: indices, values and the shape of the dense tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def columns(indices: Any) -> tuple[Any, ...]:
    """Returns the index of all elements in a dense tensor."""
    return tuple(indices[:, axis] for axis in range(indices.shape[1]))


def flat_places(indices: Any, shape: Sequence[int]) -> Any:
    """Returns where elements lie in the dense tensor made flat, as int64."""
    with jax.enable_x64(True):
        places = jnp.zeros(indices.shape[0], np.int64)
        for axis, size in enumerate(shape):
            places = places * size + jnp.asarray(indices[:, axis]).astype(np.int64)
    return places


def unflattened(places: Any, shape: Sequence[int], dtype: Any) -> Any:
    """Returns the indices of places in a dense tensor made flat."""
    with jax.enable_x64(True):
        found = []
        for axis in range(len(shape)):
            stride = max(math.prod(shape[axis + 1 :]), 1)
            found.append(places // stride % max(shape[axis], 1))
        stacked = jnp.stack(found, axis=1) if found else jnp.zeros((places.shape[0], 0), np.int64)
    return stacked.astype(jax.dtypes.canonicalize_dtype(dtype))


def in_order(indices: Any) -> Any:
    """Returns the order that sorts elements by row, then column, and so on."""
    return jnp.lexsort([jnp.asarray(indices[:, axis]) for axis in range(indices.shape[1])][::-1])


def in_order_on_host(indices: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Returns what `in_order` does, of numpy arrays."""
    return np.lexsort(indices.T[::-1]) if indices.size else np.arange(len(indices))
