"""Train steps of an optax optimizer around a loss."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .entry import Made


def trained(
    loss: Callable[..., jax.Array],
    params: Callable[[], Any],
    batch: Callable[[], tuple[Any, ...]],
    tx: optax.GradientTransformation,
) -> Made:
    """Returns the train step of a loss.

    Args:
        loss: a scalar, of the parameters and a batch's arrays.
        params: returns the first parameters.
        batch: returns a batch.
        tx: the optimizer.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: Any, *batch: Any) -> tuple[Any, dict[str, jax.Array]]:
        value, grads = jax.value_and_grad(loss)(state["params"], *batch)
        updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        state = {"params": params, "opt_state": opt_state, "step": state["step"] + 1}
        return state, {"loss": value, "grad_norm": optax.tree.norm(grads)}

    def init() -> tuple[Any, ...]:
        first = params()
        return first_state(first, tx), *batch()

    return Made(train_step, init, updates=True)


def first_state(params: Any, tx: optax.GradientTransformation) -> dict[str, Any]:
    """Returns the state that `trained` starts with."""
    return {
        "params": params,
        "opt_state": jax.jit(tx.init)(params),
        "step": jnp.zeros((), jnp.int32),
    }


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean cross entropy of logits with the labels' ids."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def mlp(
    layers: list[dict[str, jax.Array]],
    x: jax.Array,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
) -> jax.Array:
    """Applies an MLP of `arrays.dense`; no activation follows the last layer."""
    for layer in layers[:-1]:
        x = activation(x @ layer["w"] + layer["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]
