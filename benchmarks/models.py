"""The models that the benchmarks measure, in flax linen as people write them, and a bare chain.

`MODELS` holds the functions that build them; each takes sizes as keywords and returns a `Model`.
`python benchmarks/models.py` prints their sizes without allocating any.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from jax import lax

State = Any
Batch = dict[str, np.ndarray]
Metrics = dict[str, jax.Array]
Step = Callable[[State, Batch], tuple[State, Metrics]]


@dataclasses.dataclass(frozen=True)
class Model:
    """A train step with its initial state and its data, at some size.

    Attributes:
        name: what it is called in `MODELS`.
        init: returns the initial state.
        new_step: returns a new Python function `step(state, batch) -> (state, metrics)`, not
            jitted, of which JAX has no trace in its caches yet.
        batches: `batches(i)` is the i-th batch, of numpy arrays.
    """

    name: str
    init: Callable[[], State]
    new_step: Callable[[], Step]
    batches: Callable[[int], Batch]

    def make(self) -> tuple[Step, State, Callable[[int], Batch]]:
        """Returns the step, jitted with its state donated, the initial state and the batches."""
        return jax.jit(self.new_step(), donate_argnums=0), jax.jit(self.init)(), self.batches

    def abstract_state(self) -> State:
        """Returns the state's shapes and dtypes, allocating nothing."""
        return jax.eval_shape(self.init)

    def abstract_batch(self) -> Any:
        """Returns a batch's shapes and dtypes."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.batches(0))


class DropoutState(TrainState):
    """TrainState with the key of the dropout."""

    key: jax.Array


class BatchNormState(TrainState):
    """TrainState with the running statistics of batch normalisation."""

    batch_stats: Any


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


# GPT-2.


class CausalSelfAttention(nn.Module):
    """Multi-head attention to what came before."""

    heads: int
    rate: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """Mixes the positions of `x`."""
        batch, length, width = x.shape
        init = nn.initializers.normal(0.02)
        qkv = nn.Dense(3 * width, dtype=self.dtype, kernel_init=init, name="c_attn")(x)
        q, k, v = jnp.split(qkv, 3, axis=-1)
        q = q.reshape(batch, length, self.heads, width // self.heads)
        k = k.reshape(batch, length, self.heads, width // self.heads)
        v = v.reshape(batch, length, self.heads, width // self.heads)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(width // self.heads).astype(q.dtype)
        mask = nn.make_causal_mask(jnp.ones((batch, length)), dtype=bool)
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(q.dtype)
        weights = nn.Dropout(self.rate)(weights, deterministic=deterministic)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, length, width)
        out = nn.Dense(width, dtype=self.dtype, kernel_init=init, name="c_proj")(mixed)
        return nn.Dropout(self.rate)(out, deterministic=deterministic)


class TransformerBlock(nn.Module):
    """A block of GPT-2: attention and an MLP, each behind a layer norm."""

    heads: int
    rate: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """Applies the block."""
        init = nn.initializers.normal(0.02)
        h = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="ln_1")(x)
        x = x + CausalSelfAttention(self.heads, self.rate, self.dtype, name="attn")(
            h, deterministic
        )
        h = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="ln_2")(x)
        h = nn.Dense(4 * x.shape[-1], dtype=self.dtype, kernel_init=init, name="c_fc")(h)
        h = nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=init, name="c_proj")(nn.gelu(h))
        return x + nn.Dropout(self.rate)(h, deterministic=deterministic)


class GPT2(nn.Module):
    """GPT-2 with learned positions and tied embeddings; its layers are unrolled."""

    vocabulary: int
    length: int
    width: int
    heads: int
    layers: int
    rate: float
    dtype: Any

    @nn.compact
    def __call__(self, ids: jax.Array, deterministic: bool = True) -> jax.Array:
        """Returns logits of the next token."""
        init = nn.initializers.normal(0.02)
        wte = nn.Embed(
            self.vocabulary, self.width, dtype=self.dtype, embedding_init=init, name="wte"
        )
        wpe = nn.Embed(self.length, self.width, dtype=self.dtype, embedding_init=init, name="wpe")
        x = wte(ids) + wpe(jnp.arange(ids.shape[1])[None])
        x = nn.Dropout(self.rate)(x, deterministic=deterministic)
        for i in range(self.layers):
            x = TransformerBlock(self.heads, self.rate, self.dtype, name=f"h_{i}")(x, deterministic)
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="ln_f")(x)
        return wte.attend(x).astype(jnp.float32)


def gpt2_small(
    *,
    name: str = "gpt2_small",
    batch: int = 8,
    length: int = 1024,
    vocabulary: int = 50257,
    width: int = 768,
    heads: int = 12,
    layers: int = 12,
    rate: float = 0.1,
    dtype: Any = jnp.float32,
) -> Model:
    """GPT-2 small (124M parameters at the sizes given here) with adamw and dropout.

    Args:
        name: what the model is called.
        batch: sequences in a batch.
        length: tokens in a sequence, also the number of positions.
        vocabulary: number of tokens there are.
        width: features of a token.
        heads: attention heads.
        layers: transformer blocks.
        rate: dropout rate; 0 leaves no random number in the program.
        dtype: dtype of the computation; parameters are float32.
    """
    model = GPT2(vocabulary, length, width, heads, layers, rate, dtype)
    tx = optax.adamw(3e-4, b1=0.9, b2=0.95, weight_decay=0.1)

    def init() -> DropoutState:
        ids = jnp.zeros((1, length), jnp.int32)
        params = model.init(jax.random.key(0), ids)["params"]
        state = DropoutState.create(
            apply_fn=model.apply, params=params, tx=tx, key=jax.random.key(1)
        )
        return state.replace(step=jnp.zeros((), jnp.int32))

    def new_step() -> Step:
        def train_step(state: DropoutState, batch: Batch) -> tuple[DropoutState, Metrics]:
            dropout_key = jax.random.fold_in(state.key, state.step)

            def loss_fn(params: Any) -> jax.Array:
                logits = state.apply_fn(
                    {"params": params}, batch["ids"], False, rngs={"dropout": dropout_key}
                )
                return _cross_entropy(logits, batch["next_ids"])

            loss, grads = jax.value_and_grad(loss_fn)(state.params)
            return state.apply_gradients(grads=grads), {"loss": loss}

        return train_step

    def batches(i: int) -> Batch:
        ids = np.random.default_rng(i).integers(0, vocabulary, (batch, length + 1), np.int32)
        return {"ids": ids[:, :-1], "next_ids": ids[:, 1:]}

    return Model(name, init, new_step, batches)


def small_gpt(**sizes: Any) -> Model:
    """A GPT-2 of 4 layers and 128 features, or of other sizes (see `gpt2_small`)."""
    small = {"length": 128, "vocabulary": 512, "width": 128, "heads": 4, "layers": 4}
    return gpt2_small(**{"name": "small_gpt", **small, **sizes})


# ResNet-50.


class BottleneckBlock(nn.Module):
    """A bottleneck block of ResNet v1.5."""

    filters: int
    strides: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block."""
        residual = x
        y = nn.relu(self.norm()(self.conv(self.filters, (1, 1))(x)))
        y = self.conv(self.filters, (3, 3), (self.strides, self.strides))(y)
        y = nn.relu(self.norm()(y))
        y = self.conv(4 * self.filters, (1, 1))(y)
        y = self.norm(scale_init=nn.initializers.zeros_init())(y)
        if residual.shape != y.shape:
            strides = (self.strides, self.strides)
            residual = self.conv(4 * self.filters, (1, 1), strides, name="conv_proj")(residual)
            residual = self.norm(name="norm_proj")(residual)
        return nn.relu(residual + y)


class ResNet(nn.Module):
    """A ResNet v1.5."""

    stages: Sequence[int]
    classes: int
    filters: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        """Returns logits of the classes."""
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        x = conv(self.filters, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], name="conv_init")(x)
        x = nn.relu(norm(name="bn_init")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for stage, blocks in enumerate(self.stages):
            for number in range(blocks):
                strides = 2 if stage > 0 and number == 0 else 1
                x = BottleneckBlock(self.filters * 2**stage, strides, conv, norm)(x)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.classes, dtype=self.dtype)(x).astype(jnp.float32)


def resnet50(
    *,
    batch: int = 32,
    image: int = 224,
    classes: int = 1000,
    stages: Sequence[int] = (3, 4, 6, 3),
    filters: int = 64,
    dtype: Any = jnp.float32,
) -> Model:
    """ResNet-50 (25.6M parameters at the sizes given here) with momentum and weight decay.

    Args:
        batch: images in a batch.
        image: height and width of an image.
        classes: number of classes.
        stages: blocks in each stage.
        filters: channels of the first stage.
        dtype: dtype of the computation; parameters and statistics are float32.
    """
    model = ResNet(tuple(stages), classes, filters, dtype)
    tx = optax.sgd(optax.cosine_decay_schedule(0.1, 100_000), momentum=0.9, nesterov=True)
    return _image_classifier("resnet50", model, tx, (batch, image, image, 3), classes)


def _image_classifier(
    name: str,
    model: nn.Module,
    tx: optax.GradientTransformation,
    shape: tuple[int, int, int, int],
    classes: int,
) -> Model:
    """Returns a model with batch normalisation, trained on random images."""

    def init() -> BatchNormState:
        variables = model.init(jax.random.key(0), jnp.zeros((1, *shape[1:])), train=False)
        state = BatchNormState.create(
            apply_fn=model.apply,
            params=variables["params"],
            tx=tx,
            batch_stats=variables["batch_stats"],
        )
        return state.replace(step=jnp.zeros((), jnp.int32))

    def new_step() -> Step:
        def train_step(state: BatchNormState, batch: Batch) -> tuple[BatchNormState, Metrics]:
            def loss_fn(params: Any) -> tuple[jax.Array, Any]:
                logits, updates = state.apply_fn(
                    {"params": params, "batch_stats": state.batch_stats},
                    batch["image"],
                    train=True,
                    mutable=["batch_stats"],
                )
                squares = sum(jnp.sum(p**2) for p in jax.tree.leaves(params) if p.ndim > 1)
                loss = _cross_entropy(logits, batch["label"]) + 0.5e-4 * squares
                return loss, (updates["batch_stats"], logits)

            (loss, (batch_stats, logits)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
                state.params
            )
            accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["label"])
            state = state.apply_gradients(grads=grads, batch_stats=batch_stats)
            return state, {"loss": loss, "accuracy": accuracy}

        return train_step

    def batches(i: int) -> Batch:
        rng = np.random.default_rng(i)
        return {
            "image": rng.standard_normal(shape, np.float32),
            "label": rng.integers(0, classes, shape[0], np.int32),
        }

    return Model(name, init, new_step, batches)


# Small models.


class CNN(nn.Module):
    """Two convolutions with batch normalisation, max and average pooling, two dense layers."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        """Returns logits of ten classes."""
        x = nn.Conv(32, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.Conv(64, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(256)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


def cnn(*, batch: int = 64, image: int = 28) -> Model:
    """A CNN for digits with momentum."""
    tx = optax.sgd(0.1, momentum=0.9)
    return _image_classifier("cnn", CNN(), tx, (batch, image, image, 1), 10)


class MLP(nn.Module):
    """A multi-layer perceptron."""

    sizes: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns an output of the last size."""
        for size in self.sizes[:-1]:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(self.sizes[-1])(x)


class LSTM(nn.Module):
    """A stack of LSTMs and a readout of each step."""

    width: int
    layers: int
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns an output for each step."""
        for _ in range(self.layers):
            x = nn.RNN(nn.OptimizedLSTMCell(self.width))(x)
        return nn.Dense(self.outputs)(x)


def mlp(*, batch: int = 64, inputs: int = 784, sizes: Sequence[int] = (512, 512, 10)) -> Model:
    """An MLP with adam."""

    def batches(i: int) -> Batch:
        rng = np.random.default_rng(i)
        return {
            "x": rng.standard_normal((batch, inputs), np.float32),
            "y": rng.integers(0, sizes[-1], batch, np.int32),
        }

    return _supervised("mlp", MLP(tuple(sizes)), optax.adam(1e-3), _cross_entropy, batches)


def lstm(
    *, batch: int = 16, length: int = 64, channels: int = 32, width: int = 128, layers: int = 2
) -> Model:
    """LSTMs with clipped adam, to predict the next step of a sequence."""
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))

    def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(outputs - targets))

    def batches(i: int) -> Batch:
        rng = np.random.default_rng(i)
        x = np.cumsum(0.1 * rng.standard_normal((batch, length + 1, channels), np.float32), axis=1)
        return {"x": x[:, :-1], "y": x[:, 1:]}

    return _supervised("lstm", LSTM(width, layers, channels), tx, squared_error, batches)


def _supervised(
    name: str,
    model: nn.Module,
    tx: optax.GradientTransformation,
    loss_of: Callable[[jax.Array, jax.Array], jax.Array],
    batches: Callable[[int], Batch],
) -> Model:
    """Returns a model that maps `x` to `y` and has nothing but parameters."""

    def init() -> TrainState:
        params = model.init(jax.random.key(0), batches(0)["x"][:1])["params"]
        state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
        return state.replace(step=jnp.zeros((), jnp.int32))

    def new_step() -> Step:
        def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            def loss_fn(params: Any) -> jax.Array:
                return loss_of(state.apply_fn({"params": params}, batch["x"]), batch["y"])

            loss, grads = jax.value_and_grad(loss_fn)(state.params)
            return state.apply_gradients(grads=grads), {"loss": loss}

        return train_step

    return Model(name, init, new_step, batches)


def chain(n: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns a new function of two arrays of one shape whose jaxpr has exactly `n` equations."""

    def chained(x: jax.Array, y: jax.Array) -> jax.Array:
        for i in range(n):
            match i % 4:
                case 0:
                    x = lax.add(x, y)
                case 1:
                    x = lax.mul(x, y)
                case 2:
                    x = lax.sin(x)
                case _:
                    x = lax.sub(x, y)
        return x

    return chained


MODELS: dict[str, Callable[..., Model]] = {
    "mlp": mlp,
    "cnn": cnn,
    "lstm": lstm,
    "small_gpt": small_gpt,
    "resnet50": resnet50,
    "gpt2_small": gpt2_small,
}


def main(names: Sequence[str]) -> None:
    """Prints what each model weighs, and how long JAX takes to trace and to lower its step."""
    print(
        f"{'model':12} {'parameters':>12} {'leaves':>6} {'eqns':>6} {'trace s':>8} {'lower s':>8}"
    )
    for name in names or MODELS:
        model = MODELS[name]()
        state, batch = model.abstract_state(), model.abstract_batch()
        began = time.perf_counter()
        traced = jax.jit(model.new_step(), donate_argnums=0).trace(state, batch)
        middle = time.perf_counter()
        traced.lower()
        end = time.perf_counter()
        parameters = sum(p.size for p in jax.tree.leaves(state.params))
        print(
            f"{name:12} {parameters:12,} {len(jax.tree.leaves(state)):6} "
            f"{len(traced.jaxpr.eqns):6} {middle - began:8.2f} {end - middle:8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
