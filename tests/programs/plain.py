"""Programs in plain JAX: functions, and states of dicts, tuples, NamedTuples and dataclasses."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import batches
from .program import Batch, Batches, Metrics, Program, State, Step

Params = Any
Made = tuple[Step, State, Batches]

WIDTH = 32
HEADS = 4
LAYERS = 2
LATENT = 4


# Layers and losses.


def init_dense(key: jax.Array, inputs: int, outputs: int) -> Params:
    """Returns a kernel of variance 1 / inputs and a bias of zeros."""
    kernel = jax.random.normal(key, (inputs, outputs)) / math.sqrt(inputs)
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def dense(params: Params, x: jax.Array) -> jax.Array:
    """An affine map of the last axis."""
    return x @ params["kernel"] + params["bias"]


def layer_norm(params: Params, x: jax.Array) -> jax.Array:
    """Layer normalisation over the last axis."""
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.var(x, axis=-1, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + 1e-5) * params["scale"] + params["bias"]


def dropout(key: jax.Array | None, x: jax.Array, rate: float = 0.1) -> jax.Array:
    """Zeroes a share `rate` of `x`; the identity where there is no key."""
    if key is None:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0.0)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean negative log-likelihood of int labels, by a gather."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.mean(jnp.take_along_axis(log_p, labels[..., None], axis=-1))


def one_hot_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The same from a softmax and one-hot targets."""
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    return -jnp.mean(jnp.sum(targets * jnp.log(jax.nn.softmax(logits) + 1e-9), axis=-1))


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Top-1 accuracy."""
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)


def global_norm(tree: Any) -> jax.Array:
    """The Euclidean norm of all leaves together."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))


# MLPs, each with another kind of state.


def init_mlp(seed: int, sizes: tuple[int, ...]) -> list[Params]:
    """Returns dense layers between the sizes."""
    keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
    return [init_dense(*args) for args in zip(keys, sizes[:-1], sizes[1:], strict=True)]


MLP_SIZES = (batches.FEATURES, 16, 16, batches.CLASSES)


def mlp(layers: list[Params], x: jax.Array) -> jax.Array:
    """A multi-layer perceptron with relu."""
    for layer in layers[:-1]:
        x = jax.nn.relu(dense(layer, x))
    return dense(layers[-1], x)


def mlp_loss(layers: list[Params], batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Cross entropy, and accuracy."""
    logits = mlp(layers, batch["x"])
    return cross_entropy(logits, batch["label"]), accuracy(logits, batch["label"])


def make_mlp_sgd() -> Made:
    """Dicts and lists, SGD by hand, not jitted: the first program of any tutorial."""

    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        (loss, acc), grads = jax.value_and_grad(mlp_loss, has_aux=True)(state["params"], batch)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, state["params"], grads)
        return {"params": params, "step": state["step"] + 1}, {"loss": loss, "accuracy": acc}

    state = {"params": init_mlp(0, MLP_SIZES), "step": jnp.zeros((), jnp.int32)}
    return train_step, state, batches.vectors


def tuple_mlp(params: Params, x: jax.Array) -> jax.Array:
    """An MLP whose layers are pairs (kernel, bias)."""
    *hidden, (kernel, bias) = params
    for w, b in hidden:
        x = jnp.tanh(jnp.dot(x, w) + b)
    return jnp.dot(x, kernel) + bias


def make_mlp_momentum() -> Made:
    """Tuples of tuples for state and batch, momentum by hand, jitted without donation."""

    def loss_of(params: Params, x: jax.Array, label: jax.Array) -> jax.Array:
        return one_hot_cross_entropy(tuple_mlp(params, x), label)

    @jax.jit
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        params, velocity, count = state
        loss, grads = jax.value_and_grad(loss_of)(params, *batch)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, grads)
        params = jax.tree.map(lambda p, v: p - 0.05 * v, params, velocity)
        return (params, velocity, count + 1), {"loss": loss}

    def tuples(i: int) -> tuple[np.ndarray, np.ndarray]:
        batch = batches.vectors(i)
        return batch["x"], batch["label"]

    params = tuple((layer["kernel"], layer["bias"]) for layer in init_mlp(1, MLP_SIZES))
    state = (params, jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.int32))
    return train_step, state, tuples


class MLPState(NamedTuple):
    """Parameters, optax's state and a step count."""

    params: Params
    opt_state: Any
    step: jax.Array


def make_mlp_nesterov() -> Made:
    """A NamedTuple that holds another library's NamedTuples, donated."""
    from .optimizers import optimizer

    tx = optimizer("nesterov")

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: MLPState, batch: Batch) -> tuple[MLPState, Metrics]:
        (loss, acc), grads = jax.value_and_grad(mlp_loss, has_aux=True)(state.params, batch)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = jax.tree.map(jnp.add, state.params, updates)
        return MLPState(params, opt_state, state.step + 1), {"loss": loss, "accuracy": acc}

    params = init_mlp(2, MLP_SIZES)
    return train_step, MLPState(params, tx.init(params), jnp.uint32(0)), batches.vectors


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    """A registered dataclass with an array of each kind and a static field."""

    kernel: jax.Array
    bias: jax.Array
    activation: str = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layer."""
        return getattr(jax.nn, self.activation)(x @ self.kernel + self.bias)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class DataclassState:
    """A registered dataclass as the whole state."""

    layers: tuple[Layer, ...]
    opt_state: Any
    step: jax.Array
    learning_rate_note: str = dataclasses.field(default="3e-3", metadata={"static": True})


def dataclass_mlp(layers: tuple[Layer, ...], x: jax.Array) -> jax.Array:
    """Applies the layers one after the other."""
    return functools.reduce(lambda h, layer: layer(h), layers, x)


def make_mlp_adam() -> Made:
    """Registered dataclasses with static fields, donated; regression by mean squared error."""
    import optax

    from .optimizers import optimizer

    tx = optimizer("adam")

    def loss_of(layers: tuple[Layer, ...], batch: Batch) -> jax.Array:
        return jnp.mean(jnp.square(dataclass_mlp(layers, batch["x"])[:, 0] - batch["y"]))

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: DataclassState, batch: Batch) -> tuple[DataclassState, Metrics]:
        loss, grads = jax.value_and_grad(loss_of)(state.layers, batch)
        updates, opt_state = tx.update(grads, state.opt_state, state.layers)
        layers = optax.apply_updates(state.layers, updates)
        state = dataclasses.replace(state, layers=layers, opt_state=opt_state, step=state.step + 1)
        return state, {"loss": loss, "grad_norm": global_norm(grads)}

    arrays = init_mlp(3, (batches.FEATURES, 16, 16, 1))
    names = ("silu", "elu", "identity")
    layers = tuple(Layer(**a, activation=n) for a, n in zip(arrays, names, strict=True))
    state = DataclassState(layers, tx.init(layers), jnp.zeros((), jnp.int32))
    return train_step, state, batches.regression


def int_keyed_mlp(params: Params, x: jax.Array) -> jax.Array:
    """An MLP in a dict keyed by layer number, some of whose biases are None."""
    for number in sorted(params):
        x = x @ params[number]["kernel"]
        if params[number]["bias"] is not None:
            x = x + params[number]["bias"]
        if number < max(params):
            x = jax.nn.softplus(x)
    return x


def make_mlp_adamw() -> Made:
    """None leaves, int dict keys, and adamw with a mask (MaskedNode in the state); not jitted."""
    import optax

    from .optimizers import optimizer

    tx = optimizer("adamw", mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params))

    def loss_of(params: Params, batch: Batch) -> jax.Array:
        return cross_entropy(int_keyed_mlp(params, batch["x"]), batch["label"])

    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        loss, grads = jax.value_and_grad(loss_of)(state["params"], batch)
        updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt_state": opt_state, "ema": None}, {"loss": loss}

    params = dict(enumerate(init_mlp(4, MLP_SIZES)))
    params[1]["bias"] = None
    return (
        train_step,
        {"params": params, "opt_state": tx.init(params), "ema": None},
        (batches.vectors),
    )


# A CNN with batch normalisation.


def init_cnn(seed: int) -> tuple[Params, Params]:
    """Returns parameters and running statistics."""
    keys = jax.random.split(jax.random.key(seed), 3)
    channels = (batches.IMAGE[-1], 8, 12)
    params: Params = {"head": init_dense(keys[2], 12, 4)}
    stats: Params = {}
    for i, (n_in, n_out) in enumerate(itertools.pairwise(channels)):
        kernel = jax.random.normal(keys[i], (3, 3, n_in, n_out)) / math.sqrt(9 * n_in)
        params[f"conv{i}"] = {"kernel": kernel}
        params[f"norm{i}"] = {"scale": jnp.ones(n_out), "bias": jnp.zeros(n_out)}
        stats[f"norm{i}"] = {"mean": jnp.zeros(n_out), "var": jnp.ones(n_out)}
    return params, stats


def batch_norm(
    params: Params, stats: Params, x: jax.Array, *, train: bool
) -> tuple[jax.Array, Params]:
    """Normalises over all but the last axis; when training also moves the statistics."""
    if train:
        mean, var = jnp.mean(x, axis=(0, 1, 2)), jnp.var(x, axis=(0, 1, 2))
        moved = {"mean": 0.9 * stats["mean"] + 0.1 * mean, "var": 0.9 * stats["var"] + 0.1 * var}
        stats = lax.stop_gradient(moved)
    else:
        mean, var = stats["mean"], stats["var"]
    return (x - mean) * lax.rsqrt(var + 1e-5) * params["scale"] + params["bias"], stats


def max_pool(x: jax.Array) -> jax.Array:
    """Max pooling, 2 x 2."""
    window = (1, 2, 2, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")


def average_pool(x: jax.Array) -> jax.Array:
    """Average pooling, 3 x 3 with stride 2 and padding that is not counted."""
    window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
    total = lax.reduce_window(x, 0.0, lax.add, window, strides, "SAME")
    return total / lax.reduce_window(jnp.ones_like(x), 0.0, lax.add, window, strides, "SAME")


def cnn(params: Params, stats: Params, x: jax.Array, *, train: bool) -> tuple[jax.Array, Params]:
    """Two convolutions with batch norm, a max pool, an average pool and a dense layer."""
    new_stats: Params = {}
    for i, pool in enumerate((max_pool, average_pool)):
        x = lax.conv_general_dilated(
            x,
            params[f"conv{i}"]["kernel"],
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        norm = f"norm{i}"
        x, new_stats[norm] = batch_norm(params[norm], stats[norm], x, train=train)
        x = pool(jax.nn.relu(x))
    return dense(params["head"], jnp.mean(x, axis=(1, 2))), new_stats


def make_cnn_momentum() -> Made:
    """The CNN, jitted without donation."""
    import optax

    from .optimizers import optimizer

    tx = optimizer("momentum")

    def loss_of(params: Params, stats: Params, batch: Batch) -> tuple[jax.Array, Any]:
        logits, stats = cnn(params, stats, batch["x"], train=True)
        return cross_entropy(logits, batch["label"]), (stats, accuracy(logits, batch["label"]))

    @jax.jit
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        (loss, (stats, acc)), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state["params"], state["batch_stats"], batch
        )
        updates, opt_state = tx.update(grads, state["opt_state"])
        params = optax.apply_updates(state["params"], updates)
        state = {"params": params, "batch_stats": stats, "opt_state": opt_state}
        return state, {"loss": loss, "accuracy": acc}

    params, stats = init_cnn(5)
    state = {"params": params, "batch_stats": stats, "opt_state": tx.init(params)}
    return train_step, state, batches.images


# A GPT.


def init_block(key: jax.Array) -> Params:
    """Returns the parameters of one transformer block."""
    keys = jax.random.split(key, 4)
    norm = {"scale": jnp.ones(WIDTH), "bias": jnp.zeros(WIDTH)}
    return {
        "norm1": norm,
        "norm2": jax.tree.map(jnp.copy, norm),
        "qkv": init_dense(keys[0], WIDTH, 3 * WIDTH),
        "out": init_dense(keys[1], WIDTH, WIDTH),
        "up": init_dense(keys[2], WIDTH, 4 * WIDTH),
        "down": init_dense(keys[3], 4 * WIDTH, WIDTH),
    }


def init_gpt(seed: int, layers: int = LAYERS) -> Params:
    """Returns a GPT's parameters; its output layer is the token embedding."""
    keys = jax.random.split(jax.random.key(seed), layers + 2)
    return {
        "tokens": 0.1 * jax.random.normal(keys[0], (batches.VOCABULARY, WIDTH)),
        "positions": 0.1 * jax.random.normal(keys[1], (batches.LENGTH, WIDTH)),
        "blocks": [init_block(key) for key in keys[2:]],
        "norm": {"scale": jnp.ones(WIDTH), "bias": jnp.zeros(WIDTH)},
    }


def attention(params: Params, x: jax.Array) -> jax.Array:
    """Causal multi-head self-attention."""
    length = x.shape[1]
    q, k, v = jnp.split(dense(params["qkv"], x), 3, axis=-1)
    q, k, v = (t.reshape(*t.shape[:2], HEADS, WIDTH // HEADS) for t in (q, k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(WIDTH // HEADS)
    mask = jnp.tril(jnp.ones((length, length), bool))
    weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(scores.dtype).min))
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
    return dense(params["out"], mixed)


def block(params: Params, x: jax.Array, key: jax.Array | None) -> jax.Array:
    """A pre-norm transformer block with dropout on both branches."""
    keys = (None, None) if key is None else jax.random.split(key)
    x = x + dropout(keys[0], attention(params, layer_norm(params["norm1"], x)))
    hidden = jax.nn.gelu(dense(params["up"], layer_norm(params["norm2"], x)))
    return x + dropout(keys[1], dense(params["down"], hidden))


def gpt(params: Params, ids: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Logits of the next token; dropout only with a key."""
    x = params["tokens"][ids] + params["positions"][: ids.shape[1]]
    for i, layer in enumerate(params["blocks"]):
        x = block(layer, x, None if key is None else jax.random.fold_in(key, i))
    return layer_norm(params["norm"], x) @ params["tokens"].T


def make_gpt_adam() -> Made:
    """The GPT with a typed key in the state, donated."""
    import optax

    from .optimizers import optimizer

    tx = optimizer("adam")

    def loss_of(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = gpt(params, batch["x"], key)
        return cross_entropy(logits, batch["label"]), accuracy(logits, batch["label"])

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        key, dropout_key = jax.random.split(state["key"])
        (loss, acc), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state["params"], batch, dropout_key
        )
        updates, opt_state = tx.update(grads, state["opt_state"])
        params = optax.apply_updates(state["params"], updates)
        state = {"params": params, "opt_state": opt_state, "key": key}
        return state, {"loss": loss, "accuracy": acc}

    params = init_gpt(6)
    state = {"params": params, "opt_state": tx.init(params), "key": jax.random.key(7)}
    return train_step, state, batches.tokens


# An LSTM by lax.scan.


def lstm(params: Params, x: jax.Array) -> jax.Array:
    """Runs an LSTM over axis 1 and reads out every step."""

    def cell(carry: tuple[jax.Array, jax.Array], x_t: jax.Array) -> tuple[Any, jax.Array]:
        h, c = carry
        gates = dense(params["input"], x_t) + dense(params["hidden"], h)
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = jax.nn.sigmoid(f + 1.0) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((x.shape[0], WIDTH // 2))
    _, outputs = lax.scan(cell, (zeros, zeros), jnp.swapaxes(x, 0, 1))
    return dense(params["readout"], jnp.swapaxes(outputs, 0, 1))


def make_lstm_sgd() -> Made:
    """The LSTM and optax's SGD, jitted without donation."""
    import optax

    from .optimizers import optimizer

    tx = optimizer("sgd")

    def loss_of(params: Params, batch: Batch) -> jax.Array:
        return jnp.mean((lstm(params, batch["x"]) - batch["y"]) ** 2)

    @jax.jit
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        loss, grads = jax.value_and_grad(loss_of)(state["params"], batch)
        updates, opt_state = tx.update(grads, state["opt_state"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt_state": opt_state}, {"loss": loss}

    keys = jax.random.split(jax.random.key(8), 3)
    params = {
        "input": init_dense(keys[0], batches.CHANNELS, 2 * WIDTH),
        "hidden": init_dense(keys[1], WIDTH // 2, 2 * WIDTH),
        "readout": init_dense(keys[2], WIDTH // 2, batches.CHANNELS),
    }
    return train_step, {"params": params, "opt_state": tx.init(params)}, batches.sequences


# A variational autoencoder.


def encode(params: Params, x: jax.Array) -> list[jax.Array]:
    """Mean and log-variance of the latent."""
    return jnp.split(dense(params["enc2"], jnp.tanh(dense(params["enc1"], x))), 2, axis=-1)


def decode(params: Params, z: jax.Array) -> jax.Array:
    """Logits of the pixels."""
    return dense(params["dec2"], jnp.tanh(dense(params["dec1"], z)))


def reconstruct(params: Params, x: jax.Array) -> jax.Array:
    """Probabilities of the pixels, from the latent's mean."""
    return jax.nn.sigmoid(decode(params, encode(params, x)[0]))


def elbo_loss(logits: jax.Array, x: jax.Array, mean: jax.Array, log_var: jax.Array) -> jax.Array:
    """Negative evidence lower bound of Bernoulli pixels and a Gaussian latent."""
    nll = jnp.sum(jnp.logaddexp(0.0, logits) - x * logits, axis=-1)
    kl = 0.5 * jnp.sum(jnp.exp(log_var) + mean**2 - 1.0 - log_var, axis=-1)
    return jnp.mean(nll + kl)


def make_vae_clip_adamw_cosine() -> Made:
    """A VAE with a raw uint32 key in the state, donated."""
    import optax

    from .optimizers import optimizer

    tx = optimizer("clip_adamw_cosine")

    def loss_of(params: Params, batch: Batch, key: jax.Array) -> jax.Array:
        mean, log_var = encode(params, batch["x"])
        z = mean + jnp.exp(0.5 * log_var) * jax.random.normal(key, mean.shape)
        return elbo_loss(decode(params, z), batch["x"], mean, log_var)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        rng, noise_rng = jax.random.split(state["rng"])
        loss, grads = jax.value_and_grad(loss_of)(state["params"], batch, noise_rng)
        updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt_state": opt_state, "rng": rng}, {"loss": loss}

    keys = jax.random.split(jax.random.PRNGKey(9), 4)
    params = {
        "enc1": init_dense(keys[0], batches.PIXELS, WIDTH),
        "enc2": init_dense(keys[1], WIDTH, 2 * LATENT),
        "dec1": init_dense(keys[2], LATENT, WIDTH),
        "dec2": init_dense(keys[3], WIDTH, batches.PIXELS),
    }
    state = {"params": params, "opt_state": tx.init(params), "rng": jax.random.PRNGKey(10)}
    return train_step, state, batches.pixels


def _params(state: State) -> Params:
    return state["params"]


PROGRAMS = (
    Program(
        "plain_mlp_sgd",
        make_mlp_sgd,
        jit="none",
        model="mlp",
        optimizer="own",
        covers=("dict", "list", "argmax", "take_along_axis"),
        predict=(mlp, _params),
        requires=(),
    ),
    Program(
        "plain_mlp_momentum",
        make_mlp_momentum,
        jit="plain",
        model="mlp",
        optimizer="own",
        covers=("tuple", "tuple batch", "one_hot", "softmax"),
        predict=(tuple_mlp, lambda state: state[0]),
        requires=(),
    ),
    Program(
        "plain_mlp_nesterov",
        make_mlp_nesterov,
        jit="donated",
        model="mlp",
        optimizer="nesterov",
        covers=("NamedTuple",),
        predict=(mlp, lambda state: state.params),
    ),
    Program(
        "plain_mlp_adam",
        make_mlp_adam,
        jit="donated",
        model="mlp",
        optimizer="adam",
        covers=("registered dataclass", "static fields"),
        predict=(dataclass_mlp, lambda state: state.layers),
    ),
    Program(
        "plain_mlp_adamw",
        make_mlp_adamw,
        jit="none",
        model="mlp",
        optimizer="adamw",
        covers=("None leaves", "int dict keys", "MaskedNode"),
        predict=(int_keyed_mlp, _params),
    ),
    Program(
        "plain_cnn_momentum",
        make_cnn_momentum,
        jit="plain",
        model="cnn",
        optimizer="momentum",
        covers=("batch norm", "max pool", "average pool"),
        predict=(
            lambda v, x: cnn(v["params"], v["batch_stats"], x, train=False)[0],
            lambda state: {k: state[k] for k in ("params", "batch_stats")},
        ),
    ),
    Program(
        "plain_gpt_adam",
        make_gpt_adam,
        jit="donated",
        model="gpt",
        optimizer="adam",
        covers=("typed key", "dropout", "tied embeddings", "causal mask"),
        predict=(gpt, _params),
    ),
    Program(
        "plain_lstm_sgd",
        make_lstm_sgd,
        jit="plain",
        model="lstm",
        optimizer="sgd",
        covers=("scan",),
        predict=(lstm, _params),
    ),
    Program(
        "plain_vae_clip_adamw_cosine",
        make_vae_clip_adamw_cosine,
        jit="donated",
        model="vae",
        optimizer="clip_adamw_cosine",
        covers=("raw key", "reparametrisation"),
        predict=(reconstruct, _params),
    ),
)
