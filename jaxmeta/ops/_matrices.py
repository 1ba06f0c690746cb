"""Arrays of matrices: batches, pivots, and matrices for examples."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta.ops._definition import Spec

COMPLEX = Spec((2, 4, 4), np.complex64)


def positive(x: jax.Array) -> jax.Array:
    """Returns well-conditioned Hermitian positive-definite matrices."""
    return x @ jnp.conj(jnp.swapaxes(x, -1, -2)) + 3 * jnp.eye(x.shape[-1], dtype=x.dtype)


def modulus(x: jax.Array) -> jax.Array:
    """Returns by what LAPACK chooses pivots."""
    if jnp.iscomplexobj(x):
        return lax.abs(lax.real(x)) + lax.abs(lax.imag(x))
    return lax.abs(x)


def broadcast_batches(a: Any, b: Any) -> tuple[Any, Any]:
    """Returns two arrays of matrices at one shape of leading axes, as TensorFlow broadcasts."""
    if a.shape[:-2] == b.shape[:-2]:
        return a, b
    batch = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return (
        jnp.broadcast_to(a, (*batch, *a.shape[-2:])),
        jnp.broadcast_to(b, (*batch, *b.shape[-2:])),
    )
