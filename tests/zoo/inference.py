"""Bayesian inference: samplers and variational methods."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from . import arrays
from .entry import Made, program
from .training import trained

REDUCED = {"points": 6, "features": 3}
REAL = {"points": 10_000, "features": 50}


def _log_density(weights: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    likelihood = jax.nn.log_sigmoid(jnp.where(y, 1.0, -1.0) * (x @ weights))
    return jnp.sum(likelihood) + jax.scipy.stats.t.logpdf(weights, 4.0).sum()


def _observations(points: int, features: int) -> Any:
    return arrays.normal(points, features), arrays.uniform(points) < 0.5


@program("plain", reduced={**REDUCED, "draws": 3}, real={**REAL, "draws": 200})
def hamiltonian_monte_carlo(points: int, features: int, draws: int) -> Made:
    """HMC on logistic regression: leapfrog steps, chains under vmap, dual averaging of the step."""

    def sample(x: jax.Array, y: jax.Array, key: jax.Array) -> Any:
        value_and_grad = jax.value_and_grad(lambda w: _log_density(w, x, y))

        def draw(carry: Any, key: jax.Array) -> Any:
            w, log_step, mean_error = carry
            keys = jax.random.split(key)
            step = jnp.exp(log_step)
            momentum = jax.random.normal(keys[0], w.shape)
            value, grad = value_and_grad(w)

            def leapfrog(_: Any, state: Any) -> Any:
                w, p, grad = state
                p = p + 0.5 * step * grad
                w = w + step * p
                grad = value_and_grad(w)[1]
                return w, p + 0.5 * step * grad, grad

            moved, p, _ = lax.fori_loop(0, 5, leapfrog, (w, momentum, grad))
            change = value_and_grad(moved)[0] - value - 0.5 * (p @ p - momentum @ momentum)
            share = jnp.minimum(1.0, jnp.exp(change))
            w = jnp.where(jax.random.uniform(keys[1]) < share, moved, w)
            mean_error = 0.9 * mean_error + 0.1 * (0.8 - share)
            return (w, log_step - 0.1 * mean_error, mean_error), (w, share)

        def chain(key: jax.Array) -> Any:
            first = jnp.zeros(features), jnp.float32(-2.0), jnp.float32(0.0)
            return lax.scan(draw, first, jax.random.split(key, draws))[1]

        draws_of, shares = jax.vmap(chain)(jax.random.split(key, 2))
        between = jnp.var(jnp.mean(draws_of, axis=1), axis=0)
        return {"draws": draws_of, "accepted": jnp.mean(shares), "between": between}

    return Made(sample, lambda: (*_observations(points, features), jax.random.key(0)))


@program("plain", reduced=REDUCED, real=REAL)
def variational_inference(points: int, features: int) -> Made:
    """A full-rank Gaussian posterior by the reparametrised evidence bound, importance weighted."""

    def loss(params: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
        scale = jnp.tril(params["scale"], -1) + jnp.diag(jnp.exp(jnp.diagonal(params["scale"])))
        noise = jax.random.normal(key, (4, features))
        draws = params["mean"] + noise @ scale.T
        log_q = jax.scipy.stats.norm.logpdf(noise).sum(-1) - jnp.sum(jnp.diagonal(params["scale"]))
        log_p = jax.vmap(_log_density, in_axes=(0, None, None))(draws, x, y)
        return jnp.log(4.0) - jax.nn.logsumexp(log_p - log_q)

    def params() -> Any:
        scale = arrays.normal(features, features, scale=0.1)
        return {"mean": arrays.normal(features), "scale": scale}

    batch = lambda: (*_observations(points, features), jax.random.key(3))  # noqa: E731
    return trained(loss, params, batch, optax.adam(1e-2))


@program("plain", reduced={"particles": 6, "length": 4}, real={"particles": 10_000, "length": 200})
def particle_filter(particles: int, length: int) -> Made:
    """A particle filter of stochastic volatility: systematic resampling of uneven weights."""

    def run(params: Any, observations: jax.Array, key: jax.Array) -> Any:
        def resampled(x: jax.Array, weights: jax.Array, key: jax.Array) -> jax.Array:
            places = (jnp.arange(particles) + jax.random.uniform(key)) / particles
            return x[jnp.clip(jnp.searchsorted(jnp.cumsum(weights), places), 0, particles - 1)]

        def step(carry: Any, now: Any) -> Any:
            x, log_weights = carry
            y, key = now
            move_key, sample_key = jax.random.split(key)
            x = params["decay"] * x + params["noise"] * jax.random.t(move_key, 5.0, x.shape)
            log_weights += jax.scipy.stats.norm.logpdf(y, scale=jnp.exp(x / 2))
            total = jax.nn.logsumexp(log_weights)
            weights = jnp.exp(log_weights - total)
            uneven = 1 / jnp.sum(weights**2) < particles / 2
            x, log_weights = lax.cond(
                uneven,
                lambda: (resampled(x, weights, sample_key), jnp.zeros(particles)),
                lambda: (x, log_weights - total),
            )
            return (x, log_weights), {"mean": jnp.sum(weights * x), "resampled": uneven}

        first = jax.random.normal(key, (particles,)), jnp.zeros(particles)
        return lax.scan(step, first, (observations, jax.random.split(key, length)))[1]

    def init() -> Any:
        params = {"decay": arrays.uniform(low=0.8), "noise": arrays.uniform(low=0.2)}
        return params, arrays.normal(length), jax.random.key(1)

    return Made(run, init)
