"""Optimizers, each training the same small autoencoder."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from . import arrays
from .entry import Made, program
from .training import mlp, trained

REDUCED = {"features": 6, "hidden": 8, "batch": 4}
REAL = {"features": 1024, "hidden": 1024, "batch": 256}


def autoencoder_loss(params: Any, x: jax.Array) -> jax.Array:
    """Returns the mean squared error of an autoencoder."""
    return jnp.mean((mlp(params, x, jax.nn.elu) - x) ** 2)


def _autoencoder(tx: optax.GradientTransformation, features: int, hidden: int, batch: int) -> Made:
    params = functools.partial(arrays.dense, features, hidden, hidden, features)
    return trained(autoencoder_loss, params, lambda: (arrays.normal(batch, features),), tx)


@program("plain", reduced=REDUCED, real=REAL)
def lamb(**sizes: int) -> Made:
    """LAMB with a mask on its weight decay and injected hyperparameters."""
    mask = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)  # noqa: E731
    return _autoencoder(optax.lamb(1e-3, weight_decay=1e-2, mask=mask), **sizes)


@program("plain", reduced=REDUCED, real=REAL)
def adafactor(**sizes: int) -> Made:
    """Adafactor: factored second moments, clipped by block."""
    return _autoencoder(optax.adafactor(1e-3, min_dim_size_to_factor=4), **sizes)


@program("plain", reduced=REDUCED, real=REAL)
def lion(**sizes: int) -> Made:
    """Lion, whose momentum is bfloat16."""
    return _autoencoder(optax.lion(1e-4, weight_decay=0.1, mu_dtype=jnp.bfloat16), **sizes)


@program("plain", reduced=REDUCED, real=REAL)
def muon(**sizes: int) -> Made:
    """Muon: matrices orthogonalised by Newton-Schulz, the rest by adamw; optax.contrib."""
    return _autoencoder(optax.contrib.muon(1e-2), **sizes)


@program("plain", reduced=REDUCED, real=REAL)
def schedule_free(**sizes: int) -> Made:
    """Schedule-free AdamW, which keeps two sequences of weights; optax.contrib."""
    return _autoencoder(optax.contrib.schedule_free_adamw(1e-3, warmup_steps=3), **sizes)


@program("plain", reduced=REDUCED, real=REAL)
def layered_rates(**sizes: int) -> Made:
    """optax.partition: frozen, slow and fast layers, noise, clipping and a plateau of the rate."""

    def labels(params: Any) -> Any:
        names = ["frozen", "slow", "fast"]
        return [jax.tree.map(lambda _, n=n: n, p) for n, p in zip(names, params, strict=True)]

    transforms = {
        "frozen": optax.set_to_zero(),
        "slow": optax.chain(optax.adaptive_grad_clip(0.1), optax.adadelta(1e-3)),
        "fast": optax.chain(optax.add_noise(0.01, 0.55, 3), optax.sm3(1e-2)),
    }
    return _autoencoder(optax.partition(transforms, labels), **sizes)


@program("plain", reduced=REDUCED, real=REAL)
def shampoo(features: int, hidden: int, batch: int) -> Made:
    """Shampoo by hand: Kronecker factors whose inverse roots (eigh) are renewed by lax.cond."""

    def root(statistics: jax.Array) -> jax.Array:
        values, vectors = jnp.linalg.eigh(statistics + 1e-4 * jnp.eye(len(statistics)))
        return (vectors * jnp.maximum(values, 1e-6) ** -0.25) @ vectors.T

    def preconditioned(state: Any, grad: jax.Array, renew: jax.Array) -> tuple[jax.Array, Any]:
        if grad.ndim != 2:
            return grad, state
        left = 0.99 * state["left"] + grad @ grad.T
        right = 0.99 * state["right"] + grad.T @ grad
        roots = jax.lax.cond(
            renew, lambda: (root(left), root(right)), lambda: (state["l_root"], state["r_root"])
        )
        state = {"left": left, "right": right, "l_root": roots[0], "r_root": roots[1]}
        scaled = roots[0] @ grad @ roots[1]
        graft = jnp.linalg.norm(grad) / (jnp.linalg.norm(scaled) + 1e-9)
        return graft * scaled, state

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: Any, x: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(autoencoder_loss)(state["params"], x)
        renew = state["step"] % 2 == 0
        params, factors, momentum = [], [], []
        for p, f, m, g in zip(
            state["params"], state["factors"], state["momentum"], grads, strict=True
        ):
            moved = {name: preconditioned(f[name], g[name], renew) for name in g}
            m = {name: 0.9 * m[name] + moved[name][0] for name in g}
            params.append({name: p[name] - 0.01 * m[name] for name in g})
            factors.append({name: moved[name][1] for name in g})
            momentum.append(m)
        state = {"params": params, "factors": factors, "momentum": momentum}
        return {**state, "step": state_step(renew)}, {"loss": loss}

    def state_step(renew: jax.Array) -> jax.Array:
        return jnp.where(renew, 1, 0).astype(jnp.int32)

    def factors_of(p: jax.Array) -> Any:
        if p.ndim != 2:
            return {}
        m, n = p.shape
        made = {"left": jnp.zeros((m, m)), "right": jnp.zeros((n, n))}
        return {**made, "l_root": jnp.eye(m), "r_root": jnp.eye(n)}

    def init() -> Any:
        params = arrays.dense(features, hidden, hidden, features)
        state = {"params": params, "factors": jax.tree.map(factors_of, params)}
        state["momentum"] = jax.tree.map(jnp.zeros_like, params)
        return {**state, "step": jnp.int32(0)}, arrays.normal(batch, features)

    return Made(train_step, init, updates=True)


@program("plain", reduced=REDUCED, real=REAL)
def sharpness_aware(features: int, hidden: int, batch: int) -> Made:
    """SAM: a gradient at the worst nearby weights, with optax.lookahead around adamax."""
    tx = optax.lookahead(optax.adamax(1e-3), sync_period=3, slow_step_size=0.5)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: Any, x: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(autoencoder_loss)(state["params"].fast, x)
        scale = 0.05 / (optax.tree.norm(grads) + 1e-9)
        worst = jax.tree.map(lambda p, g: p + scale * g, state["params"].fast, grads)
        grads = jax.grad(autoencoder_loss)(worst, x)
        updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt_state": opt_state}, {"loss": loss}

    def init() -> Any:
        first = arrays.dense(features, hidden, features)
        params = jax.tree.map(jnp.array, optax.LookaheadParams(first, first))
        state = {"params": params, "opt_state": jax.jit(tx.init)(params)}
        return state, arrays.normal(batch, features)

    return Made(train_step, init, updates=True)
