"""Fine-tuning, and the arithmetic of training large models."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax

from . import arrays
from .entry import Made, program
from .training import cross_entropy, first_state, mlp, trained


class LoRAMLP(nnx.Module):
    """A frozen MLP beside whose layers low-rank ones are trained."""

    def __init__(self, features: int, hidden: int, rank: int, classes: int, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List(
            [
                nnx.LoRALinear(features, hidden, lora_rank=rank, rngs=rngs),
                nnx.LoRALinear(hidden, hidden, lora_rank=rank, rngs=rngs),
                nnx.LoRALinear(hidden, classes, lora_rank=rank, rngs=rngs),
            ]
        )
        self.dropout = nnx.Dropout(0.1)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs) -> jax.Array:
        for layer in self.layers[:-1]:
            x = self.dropout(nnx.silu(layer(x)), rngs=rngs)
        return self.layers[-1](x)


MLP_REDUCED = {"features": 6, "hidden": 8, "classes": 5, "batch": 4}
MLP_REAL = {"features": 1024, "hidden": 4096, "classes": 1000, "batch": 256}


def _examples(features: int, classes: int, batch: int) -> Any:
    return arrays.normal(batch, features), arrays.integers(classes, batch)


@program("nnx", reduced={**MLP_REDUCED, "rank": 2}, real={**MLP_REAL, "rank": 16})
def lora(features: int, hidden: int, classes: int, batch: int, rank: int) -> Made:
    """LoRA in nnx: the base weights are an argument that stays, the adapters are trained."""
    build = lambda: LoRAMLP(features, hidden, rank, classes, nnx.Rngs(0))  # noqa: E731
    graphdef, adapters, base = nnx.split(nnx.eval_shape(build), nnx.LoRAParam, ...)

    def loss(
        adapters: Any, base: Any, x: jax.Array, labels: jax.Array, key: jax.Array
    ) -> jax.Array:
        model = nnx.merge(graphdef, adapters, base)
        return cross_entropy(model(x, nnx.Rngs(dropout=key)), labels)

    def batch_of() -> Any:
        return arrays.filled(base), *_examples(features, classes, batch), jax.random.key(2)

    return trained(loss, lambda: arrays.filled(adapters, 50), batch_of, optax.adamw(1e-4))


@program("plain", reduced=MLP_REDUCED, real=MLP_REAL)
def mixed_precision(features: int, hidden: int, classes: int, batch: int) -> Made:
    """float16 with dynamic loss scaling: lax.cond skips a step whose gradient is not finite."""
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: Any, x: jax.Array, labels: jax.Array) -> Any:
        def loss_fn(params: Any) -> Any:
            half = jax.tree.map(lambda p: p.astype(jnp.float16), params)
            logits = mlp(half, x.astype(jnp.float16)).astype(jnp.float32)
            loss = cross_entropy(logits, labels)
            return loss * state["scale"], loss

        (_, loss), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"])
        grads = jax.tree.map(lambda g: g / state["scale"], grads)
        finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads)]))

        def applied(_: None) -> Any:
            updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
            return optax.apply_updates(state["params"], updates), opt_state

        skipped = lambda _: (state["params"], state["opt_state"])  # noqa: E731
        params, opt_state = lax.cond(finite, applied, skipped, None)
        good = jnp.where(finite, state["good"] + 1, 0)
        scale = jnp.where(finite, state["scale"], jnp.maximum(state["scale"] / 2, 1.0))
        scale = jnp.where(good == 200, 2 * scale, scale)
        good = jnp.where(good == 200, 0, good)
        state = {"params": params, "opt_state": opt_state, "scale": scale, "good": good}
        return {**state, "step": jnp.int32(0)}, {"loss": loss, "finite": finite}

    def init() -> Any:
        state = first_state(arrays.dense(features, hidden, hidden, classes), tx)
        state |= {"scale": jnp.float32(2.0**15), "good": jnp.int32(0)}
        return state, *_examples(features, classes, batch)

    return Made(train_step, init, updates=True)


@program("plain", reduced={**MLP_REDUCED, "parts": 2}, real={**MLP_REAL, "parts": 8})
def gradient_accumulation(features: int, hidden: int, classes: int, batch: int, parts: int) -> Made:
    """Gradients of microbatches summed by a scan, and every other step's by optax.MultiSteps."""
    tx = optax.MultiSteps(optax.adamw(1e-3), every_k_schedule=2)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: Any, x: jax.Array, labels: jax.Array) -> Any:
        def loss_fn(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
            return cross_entropy(mlp(params, x, jax.nn.gelu), labels)

        def accumulate(total: Any, part: Any) -> Any:
            one = jax.value_and_grad(loss_fn)(state["params"], *part)
            return jax.tree.map(jnp.add, total, one), None

        parts_of = lambda a: a.reshape(parts, -1, *a.shape[1:])  # noqa: E731
        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state["params"]))
        (loss, grads), _ = lax.scan(accumulate, zero, (parts_of(x), parts_of(labels)))
        grads = jax.tree.map(lambda g: g / parts, grads)
        updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        state = {"params": params, "opt_state": opt_state, "step": state["step"] + 1}
        return state, {"loss": loss / parts, "updated": tx.has_updated(opt_state)}

    def init() -> Any:
        state = first_state(arrays.dense(features, hidden, hidden, classes), tx)
        return state, *_examples(features, classes, batch)

    return Made(train_step, init, updates=True)


@program("plain", reduced=MLP_REDUCED, real=MLP_REAL)
def private_sgd(features: int, hidden: int, classes: int, batch: int) -> Made:
    """DP-SGD: per-example gradients by vmap of grad, clipped, summed, noised from a split key."""
    tx = optax.chain(
        optax.contrib.differentially_private_aggregate(1.0, 1.1, key=7), optax.sgd(0.1)
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: Any, x: jax.Array, labels: jax.Array) -> Any:
        def loss_fn(params: Any, x: jax.Array, label: jax.Array) -> jax.Array:
            return cross_entropy(mlp(params, x, jnp.tanh), label)

        per_example = jax.vmap(jax.value_and_grad(loss_fn), in_axes=(None, 0, 0))
        losses, grads = per_example(state["params"], x, labels)
        updates, opt_state = tx.update(grads, state["opt_state"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, {
            "loss": jnp.mean(losses)
        }

    def init() -> Any:
        state = first_state(arrays.dense(features, hidden, classes), tx)
        return state, *_examples(features, classes, batch)

    return Made(train_step, init, updates=True)


@program(
    "plain",
    reduced={"vocabulary": 11, "width": 8, "length": 5, "batch": 3},
    real={"vocabulary": 50257, "width": 768, "length": 256, "batch": 16},
)
def preference_optimization(vocabulary: int, width: int, length: int, batch: int) -> Made:
    """DPO: log ratios of chosen and rejected answers under a policy and its frozen reference."""

    def log_likelihood(params: Any, ids: jax.Array) -> jax.Array:
        x = jnp.cumsum(params["embedding"][ids[:, :-1]], axis=1)
        x = x / jnp.arange(1, length)[:, None]
        logits = mlp(params["mlp"], x, jax.nn.gelu) @ params["embedding"].T
        log_probs = jax.nn.log_softmax(logits)
        taken = jnp.take_along_axis(log_probs, ids[:, 1:, None], axis=-1)[..., 0]
        return jnp.sum(taken * (ids[:, 1:] != 0), axis=-1)

    def loss(params: Any, reference: Any, chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        ratio = log_likelihood(params, chosen) - log_likelihood(reference, chosen)
        ratio -= log_likelihood(params, rejected) - log_likelihood(reference, rejected)
        return -jnp.mean(jax.nn.log_sigmoid(0.1 * ratio))

    def params(seed: int = 0) -> Any:
        embedding = arrays.normal(vocabulary, width, seed=seed, scale=0.3)
        return {"embedding": embedding, "mlp": arrays.dense(width, 2 * width, width, seed=seed)}

    def batch_of() -> Any:
        answers = [arrays.integers(vocabulary, batch, length, seed=i) for i in range(2)]
        return params(1), *answers

    return trained(loss, params, batch_of, optax.rmsprop(5e-7))


@program(
    "plain",
    reduced={"features": 5, "hidden": 8, "classes": 4, "frames": 8, "labels": 3, "batch": 2},
    real={
        "features": 80,
        "hidden": 512,
        "classes": 64,
        "frames": 400,
        "labels": 60,
        "batch": 16,
    },
)
def ctc_speech(
    features: int, hidden: int, classes: int, frames: int, labels: int, batch: int
) -> Made:
    """Speech recognition by CTC: SpecAugment, strided 1-d convolutions, padded labels."""

    def loss(params: Any, x: jax.Array, ids: jax.Array, lengths: jax.Array, key: Any) -> jax.Array:
        start = jax.random.randint(key, (x.shape[0], 1), 0, features)
        band = (jnp.arange(features) >= start) & (jnp.arange(features) < start + 2)
        x = jnp.where(band[:, None], 0.0, x)
        for kernel in params["convolutions"]:
            dims = ("NWC", "WIO", "NWC")
            x = jax.nn.relu(
                lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=dims)
            )
        logits = mlp(params["head"], x)
        padding = (jnp.arange(frames) >= lengths[:, None]).astype(jnp.float32)
        label_padding = (jnp.arange(labels) >= lengths[:, None] // 3).astype(jnp.float32)
        return jnp.mean(optax.ctc_loss(logits, padding, ids, label_padding))

    def params() -> Any:
        kernels = [
            arrays.normal(5, m, n, seed=m, scale=(5 * m) ** -0.5)
            for m, n in ((features, hidden), (hidden, hidden))
        ]
        return {"convolutions": kernels, "head": arrays.dense(hidden, classes)}

    def batch_of() -> Any:
        lengths = frames - arrays.integers(3, batch)
        ids = 1 + arrays.integers(classes - 1, batch, labels)
        return arrays.normal(batch, frames, features), ids, lengths, jax.random.key(1)

    return trained(loss, params, batch_of, optax.novograd(1e-3))
