"""Random numbers of all kinds."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from . import arrays
from .entry import Made, program


@program("plain", reduced={"draws": 3}, real={"draws": 100_000})
def distributions(draws: int) -> Made:
    """Draws from many distributions, whose parameters are arguments, by typed and raw keys."""

    def draw(key: jax.Array, raw: jax.Array, fast: jax.Array, a: jax.Array) -> Any:
        keys = jax.random.split(key, 12)
        shape = (draws,)
        return {
            "gamma": jax.random.gamma(keys[0], a, shape),
            "poisson": jax.random.poisson(keys[1], a, shape),
            "dirichlet": jax.random.dirichlet(keys[2], jnp.stack([a, 1.0, 2.0])),
            "binomial": jax.random.binomial(keys[3], 5, 0.3, shape),
            "normal": jax.random.multivariate_normal(keys[4], jnp.zeros(2), a * jnp.eye(2), shape),
            "truncated": jax.random.truncated_normal(raw, -a, a, shape),
            "permutation": jax.random.permutation(keys[5], jnp.arange(draws)),
            "choice": jax.random.choice(keys[6], 5, (2,), replace=False),
            "gumbel": jax.random.gumbel(jax.random.fold_in(raw, 7), shape),
            "bits": jax.random.bits(fast, shape, "uint8"),
            "uniform": jax.random.uniform(fast, shape, jnp.bfloat16),
            "orthogonal": jax.random.orthogonal(keys[7], 3),
            "weibull": jax.random.weibull_min(keys[8], a, 2.0, shape),
            "ball": jax.random.ball(keys[9], 2, shape=shape),
            "complex": jax.random.normal(keys[10], shape, jnp.complex64),
            "next": jax.random.clone(keys[11]),
        }

    def init() -> Any:
        fast = jax.random.key(1, impl="rbg")
        return jax.random.key(0), jax.random.PRNGKey(2), fast, arrays.uniform(low=0.5, high=2.0)

    return Made(draw, init)
