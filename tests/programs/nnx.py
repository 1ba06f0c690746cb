"""Programs in flax nnx, whose state is what nnx.split or nnx.state returns."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from . import batches
from .optimizers import optimizer
from .plain import elbo_loss
from .program import Batch, Batches, Metrics, Program, State, Step

Made = tuple[Step, State, Batches]
REQUIRES = ("flax", "optax")


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(jnp.argmax(logits, -1) == labels)


@functools.cache
def _inference_graph(model_class: type[nnx.Module]) -> nnx.GraphDef:
    """Returns the structure of a model in evaluation mode, without its arrays."""

    def build() -> nnx.Module:
        model = model_class(nnx.Rngs(0))
        model.eval()
        return model

    return nnx.graphdef(nnx.eval_shape(build))


class MLP(nnx.Module):
    """A multi-layer perceptron."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden1 = nnx.Linear(batches.FEATURES, 16, rngs=rngs)
        self.hidden2 = nnx.Linear(16, 16, use_bias=False, rngs=rngs)
        self.readout = nnx.Linear(16, batches.CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits."""
        return self.readout(nnx.tanh(self.hidden2(nnx.relu(self.hidden1(x)))))


def make_mlp_adam() -> Made:
    """Model and nnx.Optimizer split into one state, merged inside jax.jit; donated."""
    model = MLP(nnx.Rngs(70))
    graphdef, state = nnx.split((model, nnx.Optimizer(model, optimizer("adam"), wrt=nnx.Param)))

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        model, opt = nnx.merge(graphdef, state)

        def loss_fn(model: MLP) -> tuple[jax.Array, jax.Array]:
            logits = model(batch["x"])
            return _cross_entropy(logits, batch["label"]), logits

        (loss, logits), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model)
        opt.update(model, grads)
        metrics = {"loss": loss, "accuracy": _accuracy(logits, batch["label"])}
        return nnx.state((model, opt)), metrics

    return train_step, state, batches.vectors


def make_mlp_sgd() -> Made:
    """A pure dict of parameters and optax's state, not jitted; jax.grad over the dict."""
    tx = optimizer("sgd")
    graphdef, params = nnx.split(MLP(nnx.Rngs(71)), nnx.Param)
    pure = nnx.to_pure_dict(params)

    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        def loss_fn(params: Any) -> jax.Array:
            return _cross_entropy(nnx.merge(graphdef, params)(batch["x"]), batch["label"])

        loss, grads = jax.value_and_grad(loss_fn)(state["params"])
        updates, opt_state = tx.update(grads, state["opt_state"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt_state": opt_state}, {"loss": loss}

    return train_step, {"params": pure, "opt_state": tx.init(pure)}, batches.vectors


class CNN(nnx.Module):
    """A CNN with max and average pooling and batch normalisation."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(batches.IMAGE[-1], 8, (3, 3), use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(8, 8, (3, 3), strides=2, padding="VALID", rngs=rngs)
        self.norm2 = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.readout = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits of the four classes."""
        x = nnx.relu(self.norm1(self.conv1(x)))
        x = nnx.avg_pool(x, (2, 2), strides=(1, 1))
        x = nnx.relu(self.norm2(self.conv2(x)))
        x = nnx.max_pool(x, (2, 2), strides=(1, 1))
        return self.readout(x.mean(axis=(1, 2)))


def make_cnn_momentum() -> Made:
    """Parameters and running statistics split apart, donated; plain jax.grad."""
    tx = optimizer("momentum")
    graphdef, params, stats = nnx.split(CNN(nnx.Rngs(72)), nnx.Param, nnx.BatchStat)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            model = nnx.merge(graphdef, params, state["batch_stats"], copy=True)
            logits = model(batch["x"])
            aux = _accuracy(logits, batch["label"]), nnx.state(model, nnx.BatchStat)
            return _cross_entropy(logits, batch["label"]), aux

        (loss, (acc, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"])
        updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        state = {"params": params, "batch_stats": stats, "opt_state": opt_state}
        return state, {"loss": loss, "accuracy": acc}

    state = {"params": params, "batch_stats": stats, "opt_state": tx.init(params)}
    return train_step, state, batches.images


def make_cnn_adamw() -> Made:
    """Model, nnx.Optimizer and an nnx.MultiMetric in one state, jitted without donation."""
    model = CNN(nnx.Rngs(73))
    metrics = nnx.MultiMetric(accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average("loss"))
    opt = nnx.Optimizer(model, optimizer("adamw"), wrt=nnx.Param)
    graphdef, state = nnx.split((model, opt, metrics))

    @jax.jit
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        model, opt, metrics = nnx.merge(graphdef, state)

        def loss_fn(model: CNN) -> tuple[jax.Array, jax.Array]:
            logits = model(batch["x"])
            return _cross_entropy(logits, batch["label"]), logits

        (loss, logits), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model)
        metrics.update(loss=loss, logits=logits, labels=batch["label"])
        opt.update(model, grads)
        averages = metrics.compute()
        reported = {"loss": loss, "mean_loss": averages["loss"], "accuracy": averages["accuracy"]}
        return nnx.state((model, opt, metrics)), reported

    return train_step, state, batches.images


class Block(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, rate: float, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            heads, width, dropout_rate=rate, deterministic=False, decode=False, rngs=rngs
        )
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Applies attention and an MLP, each with dropout and a residual connection."""
        x = x + self.dropout(self.attention(self.norm1(x), mask=mask))
        return x + self.dropout(self.down(nnx.gelu(self.up(self.norm2(x)))))


class GPT(nnx.Module):
    """A GPT with tied embeddings."""

    def __init__(self, rngs: nnx.Rngs, width: int = 32, heads: int = 4, layers: int = 2) -> None:
        self.tokens = nnx.Embed(batches.VOCABULARY, width, rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (batches.LENGTH, width)))
        self.blocks = nnx.List([Block(width, heads, 0.1, rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Returns logits of the next token."""
        x = self.tokens(ids) + self.positions[...]
        mask = nnx.make_causal_mask(ids)
        for block in self.blocks:
            x = block(x, mask)
        return self.tokens.attend(self.norm(x))


def make_gpt_adamw() -> Made:
    """The streams of nnx.Rngs (typed keys and counts) in the state, donated."""
    tx = optimizer("adamw")
    model = GPT(nnx.Rngs(params=74, dropout=75))
    graphdef, params, rngs = nnx.split(model, nnx.Param, nnx.RngState)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            model = nnx.merge(graphdef, params, state["rngs"], copy=True)
            loss = _cross_entropy(model(batch["x"]), batch["label"])
            return loss, nnx.state(model, nnx.RngState)

        (loss, rngs), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"])
        updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "rngs": rngs, "opt_state": opt_state}, {"loss": loss}

    state = {"params": params, "rngs": rngs, "opt_state": tx.init(params)}
    return train_step, state, batches.tokens


def make_gpt_clip_adamw_cosine() -> Made:
    """Model and nnx.Optimizer as one flat tuple of leaves, jitted without donation."""
    model = GPT(nnx.Rngs(76))
    opt = nnx.Optimizer(model, optimizer("clip_adamw_cosine"), wrt=nnx.Param)
    graphdef, state = nnx.split((model, opt))
    leaves, tree = jax.tree.flatten(state)

    @jax.jit
    def train_step(leaves: State, batch: Batch) -> tuple[State, Metrics]:
        model, opt = nnx.merge(graphdef, jax.tree.unflatten(tree, leaves))

        def loss_fn(model: GPT) -> jax.Array:
            return _cross_entropy(model(batch["x"]), batch["label"])

        loss, grads = nnx.value_and_grad(loss_fn)(model)
        opt.update(model, grads)
        return tuple(jax.tree.leaves(nnx.state((model, opt)))), {"loss": loss}

    return train_step, tuple(leaves), batches.tokens


class LSTM(nnx.Module):
    """An LSTM by nnx.RNN and a readout."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.rnn = nnx.RNN(nnx.OptimizedLSTMCell(batches.CHANNELS, 16, rngs=rngs), rngs=rngs)
        self.readout = nnx.Linear(16, batches.CHANNELS, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns an output for each step."""
        return self.readout(self.rnn(x))


def make_lstm_adam() -> Made:
    """Everything that the model and nnx.Optimizer hold in one state, donated."""
    model = LSTM(nnx.Rngs(77))
    graphdef, state = nnx.split((model, nnx.Optimizer(model, optimizer("adam"), wrt=nnx.Param)))

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        model, opt = nnx.merge(graphdef, state)

        def loss_fn(model: LSTM) -> jax.Array:
            return optax.huber_loss(model(batch["x"]), batch["y"]).mean()

        loss, grads = nnx.value_and_grad(loss_fn)(model)
        opt.update(model, grads)
        return nnx.state((model, opt)), {"loss": loss}

    return train_step, state, batches.sequences


class VAE(nnx.Module):
    """A variational autoencoder that owns its noise."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.encode1 = nnx.Linear(batches.PIXELS, 24, rngs=rngs)
        self.encode2 = nnx.Linear(24, 8, rngs=rngs)
        self.decode1 = nnx.Linear(4, 24, rngs=rngs)
        self.decode2 = nnx.Linear(24, batches.PIXELS, rngs=rngs)

    def encode(self, x: jax.Array) -> list[jax.Array]:
        """Returns mean and log-variance of the latent."""
        return jnp.split(self.encode2(nnx.silu(self.encode1(x))), 2, axis=-1)

    def decode(self, z: jax.Array) -> jax.Array:
        """Returns logits of the pixels."""
        return self.decode2(nnx.silu(self.decode1(z)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the probabilities of the pixels, from the latent's mean."""
        return nnx.sigmoid(self.decode(self.encode(x)[0]))


def make_vae_nesterov() -> Made:
    """An nnx.Rngs of its own beside the model in the state, jitted without donation."""
    tx = optimizer("nesterov")
    graphdef, params = nnx.split(VAE(nnx.Rngs(78)))
    rngs_graphdef, rngs = nnx.split(nnx.Rngs(noise=jax.random.key(79)))

    @jax.jit
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        rngs = nnx.merge(rngs_graphdef, state["rngs"])
        noise = rngs.noise.normal((len(batch["x"]), 4))

        def loss_fn(params: Any) -> jax.Array:
            model = nnx.merge(graphdef, params)
            mean, log_var = model.encode(batch["x"])
            logits = model.decode(mean + jnp.exp(0.5 * log_var) * noise)
            return elbo_loss(logits, batch["x"], mean, log_var) / batches.PIXELS

        loss, grads = jax.value_and_grad(loss_fn)(state["params"])
        updates, opt_state = tx.update(grads, state["opt_state"])
        params = optax.apply_updates(state["params"], updates)
        state = {"params": params, "opt_state": opt_state, "rngs": nnx.state(rngs)}
        return state, {"loss": loss}

    state = {"params": params, "opt_state": tx.init(params), "rngs": rngs}
    return train_step, state, batches.pixels


def _infer(model_class: type[nnx.Module], states: Any, x: jax.Array) -> jax.Array:
    """Applies a model in evaluation mode to a tuple of its states."""
    return nnx.merge(_inference_graph(model_class), *states)(x)


PROGRAMS = (
    Program(
        "nnx_mlp_adam",
        make_mlp_adam,
        jit="donated",
        model="mlp",
        optimizer="adam",
        covers=("nnx.Optimizer", "nnx.merge in jit"),
        predict=(functools.partial(_infer, MLP), lambda state: (state[0],)),
        requires=REQUIRES,
    ),
    Program(
        "nnx_mlp_sgd",
        make_mlp_sgd,
        jit="none",
        model="mlp",
        optimizer="sgd",
        covers=("pure dict",),
        predict=(functools.partial(_infer, MLP), lambda state: (state["params"],)),
        requires=REQUIRES,
    ),
    Program(
        "nnx_cnn_momentum",
        make_cnn_momentum,
        jit="donated",
        model="cnn",
        optimizer="momentum",
        covers=("nnx.split", "batch norm", "max pool", "average pool"),
        predict=(
            functools.partial(_infer, CNN),
            lambda state: (state["params"], state["batch_stats"]),
        ),
        requires=REQUIRES,
    ),
    Program(
        "nnx_cnn_adamw",
        make_cnn_adamw,
        jit="plain",
        model="cnn",
        optimizer="adamw",
        covers=("nnx.Optimizer", "nnx.MultiMetric", "batch norm", "max pool", "average pool"),
        predict=(functools.partial(_infer, CNN), lambda state: (state[0],)),
        requires=REQUIRES,
    ),
    Program(
        "nnx_gpt_adamw",
        make_gpt_adamw,
        jit="donated",
        model="gpt",
        optimizer="adamw",
        covers=("nnx.Rngs", "typed key", "dropout", "tied embeddings"),
        predict=(
            functools.partial(_infer, GPT),
            lambda state: (state["params"], state["rngs"]),
        ),
        requires=REQUIRES,
    ),
    Program(
        "nnx_gpt_clip_adamw_cosine",
        make_gpt_clip_adamw_cosine,
        jit="plain",
        model="gpt",
        optimizer="clip_adamw_cosine",
        covers=("flat tuple", "nnx.Rngs", "typed key", "dropout", "tied embeddings"),
        requires=REQUIRES,
    ),
    Program(
        "nnx_lstm_adam",
        make_lstm_adam,
        jit="donated",
        model="lstm",
        optimizer="adam",
        covers=("nnx.RNN", "nnx.Optimizer", "scan"),
        predict=(functools.partial(_infer, LSTM), lambda state: (state[0],)),
        requires=REQUIRES,
    ),
    Program(
        "nnx_vae_nesterov",
        make_vae_nesterov,
        jit="plain",
        model="vae",
        optimizer="nesterov",
        covers=("nnx.Rngs", "typed key", "reparametrisation"),
        predict=(functools.partial(_infer, VAE), lambda state: (state["params"],)),
        requires=REQUIRES,
    ),
)
