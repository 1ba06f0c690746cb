"""Programs in flax linen, with TrainState or a plain dict as the state."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

from . import batches
from .optimizers import optimizer
from .plain import elbo_loss, global_norm
from .program import Batch, Batches, Metrics, Program, State, Step

Made = tuple[Step, State, Batches]
REQUIRES = ("flax", "optax")


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(jnp.argmax(logits, -1) == labels)


class MLP(nn.Module):
    """A multi-layer perceptron."""

    outputs: int
    width: int = 16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns one row of `outputs` numbers for each example."""
        x = nn.relu(nn.Dense(self.width)(x))
        x = nn.silu(nn.Dense(self.width, use_bias=False)(x))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.lecun_normal())(x)


MLP_MODEL = MLP(batches.CLASSES)


def make_mlp_sgd() -> Made:
    """TrainState, jitted without donation: flax's own example, with its Python int as the step."""

    @jax.jit
    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def loss_fn(params: Any) -> tuple[jax.Array, jax.Array]:
            logits = state.apply_fn({"params": params}, batch["x"])
            return _cross_entropy(logits, batch["label"]), logits

        (loss, logits), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        metrics = {"loss": loss, "accuracy": _accuracy(logits, batch["label"])}
        return state.apply_gradients(grads=grads), metrics

    variables = MLP_MODEL.init(jax.random.key(50), batches.vectors(0)["x"])
    state = TrainState.create(
        apply_fn=MLP_MODEL.apply, params=variables["params"], tx=optimizer("sgd")
    )
    return train_step, state, batches.vectors


def make_mlp_adam() -> Made:
    """A plain dict with parameters and optax's state, not jitted; masked loss."""
    tx = optimizer("adam")

    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        def loss_fn(params: Any) -> jax.Array:
            logits = MLP_MODEL.apply({"params": params}, batch["x"])
            losses = optax.softmax_cross_entropy(
                logits, jax.nn.one_hot(batch["label"], batches.CLASSES)
            )
            valid = batch["label"] != 0
            return jnp.sum(jnp.where(valid, losses, 0.0)) / jnp.maximum(jnp.sum(valid), 1)

        loss, grads = jax.value_and_grad(loss_fn)(state["params"])
        updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt_state": opt_state}, {"loss": loss}

    params = MLP_MODEL.init(jax.random.key(51), batches.vectors(0)["x"])["params"]
    return train_step, {"params": params, "opt_state": tx.init(params)}, batches.vectors


class CNN(nn.Module):
    """A residual CNN with max and average pooling and batch normalisation."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns logits of the four classes."""
        x = nn.Conv(8, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        y = nn.Conv(8, (3, 3), padding=((1, 1), (1, 1)), feature_group_count=2)(x)
        y = nn.BatchNorm(use_running_average=not train, scale_init=nn.initializers.zeros)(y)
        x = nn.relu(x + y)
        x = nn.avg_pool(x, (2, 2), strides=(2, 2), padding="SAME")
        return nn.Dense(4)(x.reshape(x.shape[0], -1))


CNN_MODEL = CNN()


class BatchNormState(TrainState):
    """TrainState with running statistics."""

    batch_stats: Any


def make_cnn_momentum() -> Made:
    """A subclass of TrainState with batch_stats, donated."""

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: BatchNormState, batch: Batch) -> tuple[BatchNormState, Metrics]:
        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            logits, updates = state.apply_fn(
                {"params": params, "batch_stats": state.batch_stats},
                batch["x"],
                train=True,
                mutable=["batch_stats"],
            )
            return _cross_entropy(logits, batch["label"]), (logits, updates)

        (loss, (logits, updates)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        state = state.apply_gradients(grads=grads, batch_stats=updates["batch_stats"])
        return state, {"loss": loss, "accuracy": _accuracy(logits, batch["label"])}

    variables = _init_cnn(52)
    state = BatchNormState.create(apply_fn=CNN_MODEL.apply, tx=optimizer("momentum"), **variables)
    return train_step, state.replace(step=jnp.zeros((), jnp.int32)), batches.images


def make_cnn_adamw() -> Made:
    """The same CNN with a plain dict, jitted without donation, with label smoothing."""
    tx = optimizer("adamw")

    @jax.jit
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            logits, updates = CNN_MODEL.apply(
                {"params": params, "batch_stats": state["batch_stats"]},
                batch["x"],
                train=True,
                mutable=["batch_stats"],
            )
            targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], 4), 0.1)
            return optax.softmax_cross_entropy(logits, targets).mean(), updates["batch_stats"]

        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"])
        updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "batch_stats": stats, "opt_state": opt_state}, {"loss": loss}

    variables = _init_cnn(53)
    return train_step, {**variables, "opt_state": tx.init(variables["params"])}, batches.images


def _init_cnn(seed: int) -> Any:
    init = jax.jit(functools.partial(CNN_MODEL.init, train=False))
    return init(jax.random.key(seed), batches.images(0)["x"])


class Block(nn.Module):
    """A pre-norm transformer block."""

    width: int
    heads: int
    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, deterministic: bool) -> jax.Array:
        """Applies attention and an MLP, each with dropout and a residual connection."""
        h = nn.LayerNorm()(x)
        h = nn.MultiHeadDotProductAttention(
            self.heads, dropout_rate=self.rate, deterministic=deterministic
        )(h, mask=mask)
        x = x + nn.Dropout(self.rate, deterministic=deterministic)(h)
        h = nn.Dense(4 * self.width)(nn.LayerNorm()(x))
        h = nn.Dense(self.width)(nn.gelu(h))
        return x + nn.Dropout(self.rate, deterministic=deterministic)(h)


class GPT(nn.Module):
    """A GPT with tied embeddings."""

    width: int = 32
    heads: int = 4
    layers: int = 2
    rate: float = 0.1

    @nn.compact
    def __call__(self, ids: jax.Array, deterministic: bool = True) -> jax.Array:
        """Returns logits of the next token."""
        embed = nn.Embed(batches.VOCABULARY, self.width)
        positions = self.param(
            "positions", nn.initializers.normal(0.02), (batches.LENGTH, self.width)
        )
        x = nn.Dropout(self.rate, deterministic=deterministic)(embed(ids) + positions)
        mask = nn.make_causal_mask(ids)
        for _ in range(self.layers):
            x = Block(self.width, self.heads, self.rate)(x, mask, deterministic)
        return embed.attend(nn.LayerNorm()(x))


GPT_MODEL = GPT()


class DropoutState(TrainState):
    """TrainState with the key of the dropout."""

    key: jax.Array


def make_gpt_adamw() -> Made:
    """TrainState with a typed key, folded with the step; donated."""

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: DropoutState, batch: Batch) -> tuple[DropoutState, Metrics]:
        dropout_key = jax.random.fold_in(state.key, state.step)

        def loss_fn(params: Any) -> jax.Array:
            logits = state.apply_fn(
                {"params": params},
                batch["x"],
                deterministic=False,
                rngs={"dropout": dropout_key},
            )
            return _cross_entropy(logits, batch["label"])

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        metrics = {"loss": loss, "grad_norm": global_norm(grads)}
        return state.apply_gradients(grads=grads), metrics

    state = DropoutState.create(
        apply_fn=GPT_MODEL.apply,
        params=jax.jit(GPT_MODEL.init)(jax.random.key(54), batches.tokens(0)["x"])["params"],
        tx=optimizer("adamw"),
        key=jax.random.key(55),
    )
    return train_step, state.replace(step=jnp.zeros((), jnp.int32)), batches.tokens


def make_gpt_clip_adamw_cosine() -> Made:
    """A plain dict with a raw uint32 key that is split every step, jitted without donation."""
    tx = optimizer("clip_adamw_cosine")

    @jax.jit
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        rng, dropout_rng = jax.random.split(state["rng"])

        def loss_fn(params: Any) -> tuple[jax.Array, jax.Array]:
            logits = GPT_MODEL.apply(
                {"params": params}, batch["x"], False, rngs={"dropout": dropout_rng}
            )
            return _cross_entropy(logits, batch["label"]), _accuracy(logits, batch["label"])

        (loss, acc), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"])
        updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        state = {"params": params, "opt_state": opt_state, "rng": rng}
        return state, {"loss": loss, "accuracy": acc}

    params = jax.jit(GPT_MODEL.init)(jax.random.PRNGKey(56), batches.tokens(0)["x"])["params"]
    state = {"params": params, "opt_state": tx.init(params), "rng": jax.random.PRNGKey(57)}
    return train_step, state, batches.tokens


class LSTM(nn.Module):
    """Two LSTM layers by nn.RNN, the second run backwards, and a readout."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns an output for each step."""
        x = nn.RNN(nn.LSTMCell(16))(x)
        x = nn.RNN(nn.OptimizedLSTMCell(12), reverse=True, keep_order=True)(x)
        return nn.Dense(batches.CHANNELS)(x)


LSTM_MODEL = LSTM()


@flax.struct.dataclass
class LSTMState:
    """A flax.struct dataclass: arrays, and a static name."""

    params: Any
    opt_state: Any
    best_loss: jax.Array
    name: str = flax.struct.field(pytree_node=False, default="lstm")


def make_lstm_nesterov() -> Made:
    """A flax.struct dataclass as the state, donated."""
    tx = optimizer("nesterov")

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: LSTMState, batch: Batch) -> tuple[LSTMState, Metrics]:
        def loss_fn(params: Any) -> jax.Array:
            return optax.squared_error(
                LSTM_MODEL.apply({"params": params}, batch["x"]), batch["y"]
            ).mean()

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state)
        state = state.replace(
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            best_loss=jnp.minimum(state.best_loss, loss),
        )
        return state, {"loss": loss, "best_loss": state.best_loss}

    params = jax.jit(LSTM_MODEL.init)(jax.random.key(58), batches.sequences(0)["x"])["params"]
    return train_step, LSTMState(params, tx.init(params), jnp.float32(jnp.inf)), batches.sequences


class VAE(nn.Module):
    """A variational autoencoder."""

    latent: int = 4

    def setup(self) -> None:
        """Makes encoder and decoder."""
        self.encoder = nn.Sequential([nn.Dense(24), nn.tanh, nn.Dense(2 * self.latent)])
        self.decoder = nn.Sequential([nn.Dense(24), nn.elu, nn.Dense(batches.PIXELS)])

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns logits, and mean and log-variance of the latent."""
        mean, log_var = jnp.split(self.encoder(x), 2, axis=-1)
        noise = jax.random.normal(self.make_rng("noise"), mean.shape)
        return self.decoder(mean + jnp.exp(0.5 * log_var) * noise), mean, log_var

    def reconstruct(self, x: jax.Array) -> jax.Array:
        """Returns the probabilities of the pixels."""
        return nn.sigmoid(self.decoder(self.encoder(x)[..., : self.latent]))


VAE_MODEL = VAE()


def make_vae_adam() -> Made:
    """A VAE with a typed key in the state, jitted without donation."""
    tx = optimizer("adam")

    @jax.jit
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        key, noise_key = jax.random.split(state["key"])

        def loss_fn(params: Any) -> jax.Array:
            outputs = VAE_MODEL.apply({"params": params}, batch["x"], rngs={"noise": noise_key})
            logits, mean, log_var = outputs
            return elbo_loss(logits, batch["x"], mean, log_var)

        loss, grads = jax.value_and_grad(loss_fn)(state["params"])
        updates, opt_state = tx.update(grads, state["opt_state"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt_state": opt_state, "key": key}, {"loss": loss}

    keys = dict(zip(("params", "noise"), jax.random.split(jax.random.key(59)), strict=True))
    params = VAE_MODEL.init(keys, batches.pixels(0)["x"])["params"]
    state = {"params": params, "opt_state": tx.init(params), "key": jax.random.key(60)}
    return train_step, state, batches.pixels


def _of_dict(state: State) -> Any:
    return {"params": state["params"]}


def _of_object(state: Any) -> Any:
    return {"params": state.params}


_infer_cnn = functools.partial(CNN_MODEL.apply, train=False)

PROGRAMS = (
    Program(
        "linen_mlp_sgd",
        make_mlp_sgd,
        jit="plain",
        model="mlp",
        optimizer="sgd",
        covers=("TrainState", "Python int leaf", "weak type"),
        predict=(MLP_MODEL.apply, _of_object),
        requires=REQUIRES,
    ),
    Program(
        "linen_mlp_adam",
        make_mlp_adam,
        jit="none",
        model="mlp",
        optimizer="adam",
        covers=("dict", "where mask", "one_hot"),
        predict=(MLP_MODEL.apply, _of_dict),
        requires=REQUIRES,
    ),
    Program(
        "linen_cnn_momentum",
        make_cnn_momentum,
        jit="donated",
        model="cnn",
        optimizer="momentum",
        covers=("TrainState subclass", "batch norm", "max pool", "average pool", "grouped conv"),
        predict=(
            _infer_cnn,
            lambda state: {"params": state.params, "batch_stats": state.batch_stats},
        ),
        requires=REQUIRES,
    ),
    Program(
        "linen_cnn_adamw",
        make_cnn_adamw,
        jit="plain",
        model="cnn",
        optimizer="adamw",
        covers=("dict", "batch norm", "max pool", "average pool", "grouped conv"),
        predict=(_infer_cnn, lambda state: {k: state[k] for k in ("params", "batch_stats")}),
        requires=REQUIRES,
    ),
    Program(
        "linen_gpt_adamw",
        make_gpt_adamw,
        jit="donated",
        model="gpt",
        optimizer="adamw",
        covers=("TrainState subclass", "typed key", "fold_in", "dropout", "tied embeddings"),
        predict=(GPT_MODEL.apply, _of_object),
        requires=REQUIRES,
    ),
    Program(
        "linen_gpt_clip_adamw_cosine",
        make_gpt_clip_adamw_cosine,
        jit="plain",
        model="gpt",
        optimizer="clip_adamw_cosine",
        covers=("dict", "raw key", "dropout", "tied embeddings"),
        predict=(GPT_MODEL.apply, _of_dict),
        requires=REQUIRES,
    ),
    Program(
        "linen_lstm_nesterov",
        make_lstm_nesterov,
        jit="donated",
        model="lstm",
        optimizer="nesterov",
        covers=("flax.struct dataclass", "static fields", "scan"),
        predict=(LSTM_MODEL.apply, _of_object),
        requires=REQUIRES,
    ),
    Program(
        "linen_vae_adam",
        make_vae_adam,
        jit="plain",
        model="vae",
        optimizer="adam",
        covers=("dict", "typed key", "reparametrisation"),
        predict=(functools.partial(VAE_MODEL.apply, method="reconstruct"), _of_dict),
        requires=REQUIRES,
    ),
)
