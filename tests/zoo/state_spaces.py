"""State space models and filters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from . import arrays
from .entry import Made, program
from .training import cross_entropy, trained

REDUCED = {"length": 8, "width": 4, "states": 3, "classes": 5, "batch": 2}
REAL = {"length": 1024, "width": 256, "states": 64, "classes": 10, "batch": 16}


@program("plain", reduced=REDUCED, real=REAL)
def s4(length: int, width: int, states: int, classes: int, batch: int) -> Made:
    """S4D: complex diagonal states, kernels by Vandermonde sums, convolutions by FFT."""

    def layer(weights: Any, x: jax.Array) -> jax.Array:
        step = jnp.exp(weights["log_step"])[:, None]
        poles = lax.complex(-jnp.exp(weights["log_real"]), weights["imaginary"])
        residues = lax.complex(weights["c"][..., 0], weights["c"][..., 1])
        residues = residues * (jnp.exp(poles * step) - 1) / poles
        powers = jnp.exp((poles * step)[..., None] * jnp.arange(length))
        kernel = 2 * jnp.einsum("dn,dnl->dl", residues, powers).real
        spectrum = jnp.fft.rfft(x, n=2 * length) * jnp.fft.rfft(kernel, n=2 * length)
        y = jnp.fft.irfft(spectrum, n=2 * length)[..., :length]
        return x + jax.nn.gelu(y + weights["d"][:, None] * x)

    def loss(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        for weights in params["layers"]:
            x = layer(weights, x)
        return cross_entropy(jnp.mean(x, axis=-1) @ params["head"], labels)

    def layer_params(seed: int) -> Any:
        return {
            "log_step": arrays.uniform(width, low=-7, high=-2, seed=seed),
            "log_real": jnp.full((width, states), jnp.log(0.5), jnp.float32),
            "imaginary": jnp.pi * jnp.ones((width, 1)) * jnp.arange(states, dtype=jnp.float32),
            "c": arrays.normal(width, states, 2, seed=seed),
            "d": arrays.normal(width, seed=seed),
        }

    def params() -> Any:
        return {
            "layers": [layer_params(i) for i in range(2)],
            "head": arrays.normal(width, classes),
        }

    batch_of = lambda: (arrays.normal(batch, width, length), arrays.integers(classes, batch))  # noqa: E731
    return trained(loss, params, batch_of, optax.adamw(1e-3))


@program("plain", reduced=REDUCED, real={**REAL, "states": 16})
def mamba(length: int, width: int, states: int, classes: int, batch: int) -> Made:
    """Mamba: a causal convolution and a selective scan, by lax.associative_scan."""

    def selective(weights: Any, x: jax.Array) -> jax.Array:
        step = jax.nn.softplus(x @ weights["step"] + weights["step_bias"])
        b, c = x @ weights["b"], x @ weights["c"]
        decay = jnp.exp(-step[..., None] * jnp.exp(weights["log_a"]))
        inputs = step[..., None] * b[:, None] * x[..., None]

        def combine(left: Any, right: Any) -> Any:
            return left[0] * right[0], right[0] * left[1] + right[1]

        _, h = lax.associative_scan(combine, (decay, inputs))
        return jnp.einsum("lds,ls->ld", h, c) + weights["d"] * x

    def block(weights: Any, x: jax.Array) -> jax.Array:
        y, gate = jnp.split(jax.nn.standardize(x) @ weights["in"], 2, axis=-1)
        padded = jnp.pad(y, ((3, 0), (0, 0)))
        y = lax.conv_general_dilated(
            padded[None],
            weights["conv"],
            (1,),
            "VALID",
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=width,
        )[0]
        return x + (selective(weights, jax.nn.silu(y)) * jax.nn.silu(gate)) @ weights["out"]

    def loss(params: Any, ids: jax.Array, labels: jax.Array) -> jax.Array:
        def logits(ids: jax.Array) -> jax.Array:
            x = params["embedding"][ids]
            for weights in params["layers"]:
                x = jax.checkpoint(block)(weights, x)
            return x @ params["embedding"].T

        return cross_entropy(jax.vmap(logits)(ids), labels)

    def layer(seed: int) -> Any:
        scale = width**-0.5
        return {
            "in": arrays.normal(width, 2 * width, seed=seed, scale=scale),
            "conv": arrays.normal(4, 1, width, seed=seed, scale=0.5),
            "step": arrays.normal(width, width, seed=seed, scale=scale),
            "step_bias": arrays.normal(width, seed=seed),
            "b": arrays.normal(width, states, seed=seed, scale=scale),
            "c": arrays.normal(width, states, seed=seed + 1, scale=scale),
            "log_a": jnp.log(jnp.ones((width, 1)) * jnp.arange(1, states + 1)),
            "d": jnp.ones(width),
            "out": arrays.normal(width, width, seed=seed + 2, scale=scale),
        }

    def params() -> Any:
        return {"embedding": arrays.normal(classes, width), "layers": [layer(i) for i in range(2)]}

    def batch_of() -> Any:
        ids = arrays.integers(classes, batch, length + 1)
        return ids[:, :-1], ids[:, 1:]

    return trained(loss, params, batch_of, optax.adamw(1e-3))


@program(
    "plain",
    reduced={"states": 3, "observed": 2, "length": 5},
    real={"states": 16, "observed": 8, "length": 1000},
)
def kalman_filter(states: int, observed: int, length: int) -> Made:
    """A Kalman filter and RTS smoother, whose model is fitted by the likelihood's gradient."""

    def filtered(params: Any, observations: jax.Array) -> Any:
        a, c = params["transition"], params["emission"]
        q = params["q"] @ params["q"].T + 0.1 * jnp.eye(states)
        r = jnp.diag(jnp.exp(params["log_r"]))

        def step(carry: Any, y: jax.Array) -> Any:
            mean, cov = carry
            mean, cov = a @ mean, a @ cov @ a.T + q
            s = c @ cov @ c.T + r
            gain = jax.scipy.linalg.solve(s, c @ cov, assume_a="pos").T
            likelihood = jax.scipy.stats.multivariate_normal.logpdf(y, c @ mean, s)
            updated = mean + gain @ (y - c @ mean), cov - gain @ c @ cov
            return updated, (likelihood, *updated, mean, cov)

        return lax.scan(step, (jnp.zeros(states), jnp.eye(states)), observations)[1]

    def smoothed(params: Any, found: Any) -> jax.Array:
        _, means, covs, predicted, predicted_covs = found

        def step(following: jax.Array, now: Any) -> Any:
            mean, cov, ahead, ahead_cov = now
            gain = jnp.linalg.solve(ahead_cov, params["transition"] @ cov).T
            mean = mean + gain @ (following - ahead)
            return mean, mean

        pairs = (means[:-1], covs[:-1], predicted[1:], predicted_covs[1:])
        return lax.scan(step, means[-1], pairs, reverse=True)[1]

    def loss(params: Any, observations: jax.Array) -> jax.Array:
        found = filtered(params, observations)
        smooth = smoothed(params, found)
        return -jnp.mean(found[0]) + 1e-3 * jnp.mean(jnp.diff(smooth, axis=0) ** 2)

    def params() -> Any:
        return {
            "transition": 0.9 * jnp.eye(states) + arrays.normal(states, states, scale=0.02),
            "emission": arrays.normal(observed, states),
            "q": arrays.normal(states, states, scale=0.3),
            "log_r": arrays.normal(observed, scale=0.1),
        }

    return trained(loss, params, lambda: (arrays.normal(length, observed),), optax.adam(1e-2))


@program(
    "plain",
    reduced={"states": 3, "symbols": 4, "length": 6},
    real={"states": 64, "symbols": 256, "length": 2048},
)
def hidden_markov(states: int, symbols: int, length: int) -> Made:
    """A hidden Markov model: forward-backward in log space, Viterbi paths, expected counts."""

    def run(start: jax.Array, transition: jax.Array, emission: jax.Array, ids: jax.Array) -> Any:
        start, transition, emission = map(jax.nn.log_softmax, (start, transition, emission))
        seen = emission[:, ids].T

        def ahead(alpha: jax.Array, y: jax.Array) -> Any:
            alpha = jax.nn.logsumexp(alpha[:, None] + transition, axis=0) + y
            return alpha, alpha

        def back(beta: jax.Array, y: jax.Array) -> Any:
            beta = jax.nn.logsumexp(transition + (y + beta)[None], axis=1)
            return beta, beta

        def best(score: jax.Array, y: jax.Array) -> Any:
            scores = score[:, None] + transition
            return jnp.max(scores, axis=0) + y, jnp.argmax(scores, axis=0)

        first = start + seen[0]
        last, alphas = lax.scan(ahead, first, seen[1:])
        _, betas = lax.scan(back, jnp.zeros(states), seen[1:], reverse=True)
        posterior = jax.nn.softmax(jnp.concatenate([first[None], alphas[:-1]]) + betas, axis=-1)
        score, parents = lax.scan(best, first, seen[1:])
        end = jnp.argmax(score)
        _, path = lax.scan(lambda s, parent: (parent[s], parent[s]), end, parents, reverse=True)
        counts = jax.ops.segment_sum(posterior, ids[:-1], symbols)
        return {"likelihood": jax.nn.logsumexp(last), "path": path, "end": end, "counts": counts}

    def init() -> Any:
        matrices = arrays.normal(states, states), arrays.normal(states, symbols)
        return arrays.normal(states), *matrices, arrays.integers(symbols, length)

    return Made(run, init)
