"""Arrays of numpy, each a function of its shape and a seed alone: no JAX program makes them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray[Any, Any]:
    """Returns normally distributed float32."""
    drawn = np.random.default_rng((1, seed, *shape)).standard_normal(shape, np.float32)
    return np.asarray(np.float32(scale) * drawn)


def uniform(
    *shape: int, seed: int = 0, low: float = 0.0, high: float = 1.0
) -> np.ndarray[Any, Any]:
    """Returns evenly distributed float32 in [low, high)."""
    drawn = np.random.default_rng((2, seed, *shape)).random(shape, np.float32)
    return np.asarray(np.float32(low) + np.float32(high - low) * drawn)


def integers(high: int, *shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Returns int32 in [0, high)."""
    return np.random.default_rng((3, seed, *shape)).integers(0, high, shape, np.int32)


def dense(*sizes: int, seed: int = 0) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Returns the weights and biases of an MLP of layers of these sizes."""
    return [
        {"w": normal(m, n, seed=seed + i, scale=m**-0.5), "b": normal(n, seed=seed, scale=0.01)}
        for i, (m, n) in enumerate(itertools.pairwise(sizes))
    ]


def filled(specs: Any, seed: int = 0) -> Any:
    """Returns parameters for shapes and dtypes as `jax.eval_shape` gives them.

    Weights are normal, scaled by their fan-in; what is called scale or var is near one; biases and
    means are near zero; integers are zero, and keys are keys.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(specs)
    leaves = [
        _fill(jax.tree_util.keystr(path).lower(), spec, seed + i)
        for i, (path, spec) in enumerate(flat)
    ]
    return jax.tree.unflatten(treedef, leaves)


def _fill(path: str, spec: Any, seed: int) -> Any:
    if jax.dtypes.issubdtype(spec.dtype, jax.dtypes.prng_key):
        return jax.random.key(seed)
    if not jax.dtypes.issubdtype(spec.dtype, np.floating):
        return np.zeros(spec.shape, spec.dtype)
    if any(word in path for word in ("scale", "var", "gamma")):
        return (1 + normal(*spec.shape, seed=seed, scale=0.01)).astype(spec.dtype)
    fan_in = np.prod(spec.shape[:-1]) if len(spec.shape) > 1 else 100.0
    return normal(*spec.shape, seed=seed, scale=float(fan_in) ** -0.5).astype(spec.dtype)


def one_hot(labels: np.ndarray[Any, Any], classes: int) -> np.ndarray[Any, Any]:
    """Returns float32 rows of the identity."""
    return np.eye(classes, dtype=np.float32)[labels]


def stacked(trees: Sequence[Any]) -> Any:
    """Returns a tree whose leaves are stacked along a new first axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
