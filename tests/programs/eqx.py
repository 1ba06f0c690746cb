"""Programs in equinox, whose state holds the arrays of a model or the model itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax

from . import batches
from .optimizers import optimizer
from .plain import elbo_loss
from .program import Batch, Batches, Metrics, Program, State, Step

Made = tuple[Step, State, Batches]
REQUIRES = ("equinox", "optax")


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@functools.cache
def _static(build: Callable[[jax.Array], eqx.Module]) -> Any:
    """Returns what of a model is not an array, in inference mode."""
    model = eqx.filter_eval_shape(build, jax.random.key(0))
    is_array = functools.partial(jax.tree.map, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    return eqx.partition(eqx.nn.inference_mode(model), is_array(model))[1]


def _infer(build: Callable[[jax.Array], Any], arrays: Any, x: jax.Array) -> jax.Array:
    """Applies a model in inference mode, one example after the other."""
    return jax.vmap(eqx.combine(arrays, _static(build)))(x)


def build_mlp(key: jax.Array) -> eqx.nn.MLP:
    """Returns equinox's own MLP, whose activation is a leaf that is no array."""
    return eqx.nn.MLP(batches.FEATURES, batches.CLASSES, 16, 2, activation=jax.nn.gelu, key=key)


def make_mlp_sgd() -> Made:
    """The arrays of eqx.partition in the state, jitted without donation."""
    tx = optimizer("sgd")
    params, static = eqx.partition(build_mlp(jax.random.key(90)), eqx.is_inexact_array)

    @jax.jit
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        def loss_fn(params: Any) -> jax.Array:
            logits = jax.vmap(eqx.combine(params, static))(batch["x"])
            return _cross_entropy(logits, batch["label"])

        params, opt_state = state
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return (eqx.apply_updates(params, updates), opt_state), {"loss": loss}

    return train_step, (params, tx.init(params)), batches.vectors


class ArrayMLP(eqx.Module):
    """An MLP all of whose leaves are arrays."""

    layers: tuple[eqx.nn.Linear, ...]
    scale: jax.Array
    activation: Callable[[jax.Array], jax.Array] = eqx.field(static=True)

    def __init__(self, key: jax.Array) -> None:
        keys = jax.random.split(key, 2)
        self.layers = (
            eqx.nn.Linear(batches.FEATURES, 16, use_bias=False, key=keys[0]),
            eqx.nn.Linear(16, batches.CLASSES, key=keys[1]),
        )
        self.scale = jnp.ones(())
        self.activation = jax.nn.mish

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits of one example."""
        return self.scale * self.layers[1](self.activation(self.layers[0](x)))


class ModuleState(eqx.Module):
    """A state that is itself an eqx.Module and holds one."""

    model: ArrayMLP
    opt_state: Any
    step: jax.Array


def make_mlp_adamw() -> Made:
    """The eqx.Module itself as the argument, donated."""
    tx = optimizer("adamw")

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: ModuleState, batch: Batch) -> tuple[ModuleState, Metrics]:
        @eqx.filter_value_and_grad
        def loss_fn(model: ArrayMLP) -> jax.Array:
            return _cross_entropy(jax.vmap(model)(batch["x"]), batch["label"])

        loss, grads = loss_fn(state.model)
        updates, opt_state = tx.update(grads, state.opt_state, state.model)
        model = eqx.apply_updates(state.model, updates)
        return ModuleState(model, opt_state, state.step + 1), {"loss": loss}

    model = ArrayMLP(jax.random.key(91))
    state = ModuleState(model, tx.init(model), jnp.zeros((), jnp.int32))
    return train_step, state, batches.vectors


class CNN(eqx.Module):
    """A CNN with max and average pooling and stateful batch normalisation."""

    conv1: eqx.nn.Conv2d
    norm1: eqx.nn.BatchNorm
    max_pool: eqx.nn.MaxPool2d
    conv2: eqx.nn.Conv2d
    norm2: eqx.nn.BatchNorm
    average_pool: eqx.nn.AvgPool2d
    readout: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        keys = jax.random.split(key, 3)
        self.conv1 = eqx.nn.Conv2d(batches.IMAGE[-1], 8, 3, padding=1, key=keys[0])
        self.norm1 = eqx.nn.BatchNorm(8, "batch", momentum=0.9, mode="batch")
        self.max_pool = eqx.nn.MaxPool2d(2, 2)
        self.conv2 = eqx.nn.Conv2d(8, 8, 3, padding=1, use_bias=False, key=keys[1])
        self.norm2 = eqx.nn.BatchNorm(8, "batch", momentum=0.9, mode="ema")
        self.average_pool = eqx.nn.AvgPool2d(2, 2)
        self.readout = eqx.nn.Linear(32, 4, key=keys[2])

    def __call__(self, x: jax.Array, state: eqx.nn.State) -> tuple[jax.Array, eqx.nn.State]:
        """Returns logits of one example and the moved statistics."""
        x, state = self.norm1(self.conv1(jnp.moveaxis(x, -1, 0)), state)
        x, state = self.norm2(self.conv2(self.max_pool(jax.nn.relu(x))), state)
        x = self.average_pool(jax.nn.relu(x))
        return self.readout(x.ravel()), state


def _apply_cnn(
    model: CNN, model_state: eqx.nn.State, x: jax.Array
) -> tuple[jax.Array, eqx.nn.State]:
    batched = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    return batched(x, model_state)


def make_cnn_momentum() -> Made:
    """An eqx.nn.State with the statistics of batch norm in the state, donated."""
    tx = optimizer("momentum")
    model, model_state = eqx.nn.make_with_state(CNN)(jax.random.key(92))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        def loss_fn(params: Any) -> tuple[jax.Array, eqx.nn.State]:
            model = eqx.combine(params, static)
            logits, model_state = _apply_cnn(model, state["model_state"], batch["x"])
            return _cross_entropy(logits, batch["label"]), model_state

        (loss, model_state), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"])
        updates, opt_state = tx.update(grads, state["opt_state"])
        params = eqx.apply_updates(state["params"], updates)
        state = {"params": params, "model_state": model_state, "opt_state": opt_state}
        return state, {"loss": loss}

    state = {"params": params, "model_state": model_state, "opt_state": tx.init(params)}
    return train_step, state, batches.images


class Block(eqx.Module):
    """A pre-norm transformer block over one sequence."""

    norm1: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    norm2: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __init__(self, width: int, heads: int, rate: float, key: jax.Array) -> None:
        keys = jax.random.split(key, 3)
        self.norm1 = eqx.nn.LayerNorm(width)
        self.attention = eqx.nn.MultiheadAttention(heads, width, dropout_p=rate, key=keys[0])
        self.norm2 = eqx.nn.LayerNorm(width)
        self.up = eqx.nn.Linear(width, 4 * width, key=keys[1])
        self.down = eqx.nn.Linear(4 * width, width, key=keys[2])
        self.dropout = eqx.nn.Dropout(rate)

    def __call__(self, x: jax.Array, mask: jax.Array, key: jax.Array | None) -> jax.Array:
        """Applies attention and an MLP, each with dropout and a residual connection."""
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        h = jax.vmap(self.norm1)(x)
        h = self.attention(h, h, h, mask=mask, key=keys[0])
        x = x + self.dropout(h, key=keys[1])
        h = jax.vmap(self.down)(jax.nn.gelu(jax.vmap(self.up)(jax.vmap(self.norm2)(x))))
        return x + self.dropout(h, key=keys[2])


class GPT(eqx.Module):
    """A GPT with tied embeddings over one sequence."""

    tokens: eqx.nn.Embedding
    positions: jax.Array
    blocks: list[Block]
    norm: eqx.nn.LayerNorm

    def __init__(self, key: jax.Array, width: int = 32, heads: int = 4, layers: int = 2) -> None:
        keys = jax.random.split(key, layers + 2)
        weight = 0.02 * jax.random.normal(keys[0], (batches.VOCABULARY, width))
        self.tokens = eqx.nn.Embedding(weight=weight)
        self.positions = 0.02 * jax.random.normal(keys[1], (batches.LENGTH, width))
        self.blocks = [Block(width, heads, 0.1, key) for key in keys[2:]]
        self.norm = eqx.nn.LayerNorm(width)

    def __call__(self, ids: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Returns logits of the next token; dropout needs a key."""
        x = jax.vmap(self.tokens)(ids) + self.positions
        mask = jnp.tril(jnp.ones((len(ids), len(ids)), bool))
        keys = [None] * len(self.blocks) if key is None else jax.random.split(key, len(self.blocks))
        for block, block_key in zip(self.blocks, keys, strict=True):
            x = block(x, mask, block_key)
        return jax.vmap(self.norm)(x) @ self.tokens.weight.T


def make_gpt_clip_adamw_cosine() -> Made:
    """Arrays and a typed key in a dict, donated; dropout keys by vmap."""
    tx = optimizer("clip_adamw_cosine")
    params, static = eqx.partition(GPT(jax.random.key(93)), eqx.is_inexact_array)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        key, dropout_key = jax.random.split(state["key"])
        keys = jax.random.split(dropout_key, len(batch["x"]))

        def loss_fn(params: Any) -> jax.Array:
            logits = jax.vmap(eqx.combine(params, static))(batch["x"], keys)
            return _cross_entropy(logits, batch["label"])

        loss, grads = jax.value_and_grad(loss_fn)(state["params"])
        updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
        params = eqx.apply_updates(state["params"], updates)
        return {"params": params, "opt_state": opt_state, "key": key}, {"loss": loss}

    state = {"params": params, "opt_state": tx.init(params), "key": jax.random.key(94)}
    return train_step, state, batches.tokens


class LSTM(eqx.Module):
    """An eqx.nn.LSTMCell under lax.scan and a readout."""

    cell: eqx.nn.LSTMCell
    readout: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        keys = jax.random.split(key)
        self.cell = eqx.nn.LSTMCell(batches.CHANNELS, 16, key=keys[0])
        self.readout = eqx.nn.Linear(16, batches.CHANNELS, key=keys[1])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns an output for each step of one sequence."""

        def advance(carry: Any, x_t: jax.Array) -> tuple[Any, jax.Array]:
            carry = self.cell(x_t, carry)
            return carry, self.readout(carry[0])

        return lax.scan(advance, (jnp.zeros(16), jnp.zeros(16)), x)[1]


def make_lstm_adam() -> Made:
    """A list as the state; only the gradient is jitted, by eqx.filter_jit."""
    tx = optimizer("adam")
    params, static = eqx.partition(LSTM(jax.random.key(95)), eqx.is_array)

    @eqx.filter_jit
    def value_and_grad(params: Any, batch: Batch) -> tuple[jax.Array, Any]:
        def loss_fn(params: Any) -> jax.Array:
            outputs = jax.vmap(eqx.combine(params, static))(batch["x"])
            return optax.squared_error(outputs, batch["y"]).mean()

        return jax.value_and_grad(loss_fn)(params)

    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        params, opt_state = state
        loss, grads = value_and_grad(params, batch)
        updates, opt_state = tx.update(grads, opt_state)
        return [eqx.apply_updates(params, updates), opt_state], {"loss": loss}

    return train_step, [params, tx.init(params)], batches.sequences


class VAE(eqx.Module):
    """A variational autoencoder of one example."""

    encoder: eqx.nn.MLP
    decoder: eqx.nn.Sequential

    def __init__(self, key: jax.Array) -> None:
        keys = jax.random.split(key, 3)
        self.encoder = eqx.nn.MLP(batches.PIXELS, 8, 24, 1, activation=jnp.tanh, key=keys[0])
        self.decoder = eqx.nn.Sequential(
            [
                eqx.nn.Linear(4, 24, key=keys[1]),
                eqx.nn.Lambda(jax.nn.softplus),
                eqx.nn.Linear(24, batches.PIXELS, key=keys[2]),
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the probabilities of the pixels, from the latent's mean."""
        return jax.nn.sigmoid(self.decoder(self.encoder(x)[:4]))


def make_vae_adam() -> Made:
    """Arrays and a raw uint32 key in a tuple, jitted without donation."""
    tx = optimizer("adam")
    params, static = eqx.partition(VAE(jax.random.PRNGKey(96)), eqx.is_inexact_array)

    @jax.jit
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        params, opt_state, rng = state
        rng, noise_rng = jax.random.split(rng)

        def loss_fn(params: Any) -> jax.Array:
            model = eqx.combine(params, static)
            mean, log_var = jnp.split(jax.vmap(model.encoder)(batch["x"]), 2, axis=-1)
            z = mean + jnp.exp(0.5 * log_var) * jax.random.normal(noise_rng, mean.shape)
            return elbo_loss(jax.vmap(model.decoder)(z), batch["x"], mean, log_var)

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return (eqx.apply_updates(params, updates), opt_state, rng), {"loss": loss}

    return train_step, (params, tx.init(params), jax.random.PRNGKey(97)), batches.pixels


@functools.cache
def _static_cnn() -> Any:
    model, _ = eqx.filter_eval_shape(eqx.nn.make_with_state(CNN), jax.random.key(0))
    is_array = jax.tree.map(lambda x: isinstance(x, jax.ShapeDtypeStruct), model)
    return eqx.partition(eqx.nn.inference_mode(model), is_array)[1]


def _infer_cnn(arrays: Any, x: jax.Array) -> jax.Array:
    params, model_state = arrays
    return _apply_cnn(eqx.combine(params, _static_cnn()), model_state, x)[0]


PROGRAMS = (
    Program(
        "eqx_mlp_sgd",
        make_mlp_sgd,
        jit="plain",
        model="mlp",
        optimizer="sgd",
        covers=("eqx.partition", "tuple"),
        predict=(functools.partial(_infer, build_mlp), lambda state: state[0]),
        requires=REQUIRES,
    ),
    Program(
        "eqx_mlp_adamw",
        make_mlp_adamw,
        jit="donated",
        model="mlp",
        optimizer="adamw",
        covers=("eqx.Module", "static fields"),
        predict=(lambda model, x: jax.vmap(model)(x), lambda state: state.model),
        requires=REQUIRES,
    ),
    Program(
        "eqx_cnn_momentum",
        make_cnn_momentum,
        jit="donated",
        model="cnn",
        optimizer="momentum",
        covers=("eqx.nn.State", "batch norm", "max pool", "average pool"),
        predict=(_infer_cnn, lambda state: (state["params"], state["model_state"])),
        requires=REQUIRES,
    ),
    Program(
        "eqx_gpt_clip_adamw_cosine",
        make_gpt_clip_adamw_cosine,
        jit="donated",
        model="gpt",
        optimizer="clip_adamw_cosine",
        covers=("eqx.partition", "typed key", "dropout", "tied embeddings", "causal mask"),
        predict=(functools.partial(_infer, GPT), lambda state: state["params"]),
        requires=REQUIRES,
    ),
    Program(
        "eqx_lstm_adam",
        make_lstm_adam,
        jit="none",
        model="lstm",
        optimizer="adam",
        covers=("eqx.filter_jit inside", "list", "scan"),
        predict=(functools.partial(_infer, LSTM), lambda state: state[0]),
        requires=REQUIRES,
    ),
    Program(
        "eqx_vae_adam",
        make_vae_adam,
        jit="plain",
        model="vae",
        optimizer="adam",
        covers=("tuple", "raw key", "reparametrisation"),
        predict=(functools.partial(_infer, VAE), lambda state: state[0]),
        requires=REQUIRES,
    ),
)
