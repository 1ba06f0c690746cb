"""Recurrent and convolutional models of sequences."""

from __future__ import annotations

import functools
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax

from . import arrays
from .entry import Made, program
from .training import cross_entropy, trained

REDUCED = {"vocabulary": 11, "width": 8, "length": 6, "batch": 2}
REAL = {"vocabulary": 10000, "width": 650, "length": 70, "batch": 64}


def _tokens(vocabulary: int, length: int, batch: int) -> Any:
    ids = arrays.integers(vocabulary, batch, length + 1)
    return ids[:, :-1], ids[:, 1:]


@program("linen", reduced=REDUCED, real=REAL)
def lstm(vocabulary: int, width: int, length: int, batch: int) -> Made:
    """Two LSTM layers of flax's nn.RNN over words, one bidirectional; padded sequences."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, ids: jax.Array, lengths: jax.Array) -> jax.Array:
            x = nn.Embed(vocabulary, width)(ids)
            x = nn.RNN(nn.OptimizedLSTMCell(width))(x, seq_lengths=lengths)
            both = nn.Bidirectional(nn.RNN(nn.LSTMCell(width)), nn.RNN(nn.LSTMCell(width)))
            return nn.Dense(vocabulary)(both(x, seq_lengths=lengths))

    model = Model()

    def loss(params: Any, ids: jax.Array, labels: jax.Array, lengths: jax.Array) -> jax.Array:
        logits = model.apply({"params": params}, ids, lengths)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        mask = jnp.arange(length) < lengths[:, None]
        return jnp.sum(losses * mask) / jnp.sum(mask)

    def params() -> Any:
        specs = [jax.ShapeDtypeStruct(s, "int32") for s in ((1, length), (1,))]
        return arrays.filled(jax.eval_shape(model.init, jax.random.key(0), *specs))["params"]

    def batch_of() -> Any:
        return *_tokens(vocabulary, length, batch), length - arrays.integers(3, batch)

    tx = optax.chain(optax.clip(5.0), optax.adagrad(0.1))
    return trained(loss, params, batch_of, tx)


@program("nnx", reduced=REDUCED, real=REAL)
def gru(vocabulary: int, width: int, length: int, batch: int) -> Made:
    """A GRU of nnx.RNN with dropout from the streams of nnx.Rngs, its other state an argument."""

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
            self.rnn = nnx.RNN(nnx.GRUCell(width, width, rngs=rngs))
            self.dropout = nnx.Dropout(0.3)
            self.head = nnx.Linear(width, vocabulary, rngs=rngs)

        def __call__(self, ids: jax.Array, rngs: nnx.Rngs) -> jax.Array:
            return self.head(
                self.dropout(
                    self.rnn(self.embed(ids), initial_carry=jnp.zeros((batch, width))), rngs=rngs
                )
            )

    build = lambda: Model(nnx.Rngs(0))  # noqa: E731
    graphdef, specs, rest = nnx.split(nnx.eval_shape(build), nnx.Param, ...)

    def loss(params: Any, rest: Any, ids: jax.Array, labels: jax.Array, key: jax.Array) -> Any:
        model = nnx.merge(graphdef, params, rest)
        return cross_entropy(model(ids, nnx.Rngs(dropout=key)), labels)

    def batch_of() -> Any:
        return arrays.filled(rest), *_tokens(vocabulary, length, batch), jax.random.key(1)

    return trained(loss, lambda: arrays.filled(specs), batch_of, optax.nadam(1e-3))


@program(
    "equinox",
    reduced={"channels": 4, "layers": 3, "length": 9, "batch": 2},
    real={"channels": 64, "layers": 10, "length": 4096, "batch": 8},
)
def wavenet(channels: int, layers: int, length: int, batch: int) -> Made:
    """WaveNet: gated dilated causal convolutions, skips, a mixture of logistics."""

    class Layer(eqx.Module):
        conv: eqx.nn.Conv1d
        out: eqx.nn.Conv1d
        dilation: int = eqx.field(static=True)

        def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            gate, value = jnp.split(self.conv(jnp.pad(x, ((0, 0), (self.dilation, 0)))), 2)
            y = self.out(jax.nn.sigmoid(gate) * jnp.tanh(value))
            return x + y, y

    class WaveNet(eqx.Module):
        stem: eqx.nn.Conv1d
        layers: list[Layer]
        head: eqx.nn.Conv1d

        def __call__(self, x: jax.Array) -> jax.Array:
            x = self.stem(x)
            total = jnp.zeros_like(x)
            for layer in self.layers:
                x, skip = layer(x)
                total = total + skip
            return self.head(jax.nn.relu(total))

    def build(key: jax.Array) -> WaveNet:
        keys = iter(jax.random.split(key, 2 * layers + 2))
        conv = eqx.nn.Conv1d
        made = [
            Layer(
                conv(channels, 2 * channels, 2, dilation=2**i, key=next(keys)),
                conv(channels, channels, 1, key=next(keys)),
                2**i,
            )
            for i in range(layers)
        ]
        return WaveNet(
            conv(1, channels, 1, key=next(keys)), made, conv(channels, 9, 1, key=next(keys))
        )

    model = eqx.filter_eval_shape(build, jax.random.key(0))
    is_array = jax.tree.map(lambda x: isinstance(x, jax.ShapeDtypeStruct), model)
    specs, static = eqx.partition(model, is_array)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        out = jax.vmap(eqx.combine(params, static))(x[:, None, :-1])
        weights, means, log_scales = jnp.split(out, 3, axis=1)
        z = (x[:, None, 1:] - means) * jnp.exp(-jnp.maximum(log_scales, -7))
        log_probs = jax.nn.log_softmax(weights, axis=1) + jax.scipy.stats.logistic.logpdf(z)
        return -jnp.mean(jax.nn.logsumexp(log_probs - log_scales, axis=1))

    batch_of = lambda: (arrays.normal(batch, length, scale=0.3),)  # noqa: E731
    return trained(loss, lambda: arrays.filled(specs), batch_of, optax.adabelief(1e-3))


@program(
    "plain",
    reduced={"length": 8, "width": 8, "heads": 2, "block": 4, "batch": 2},
    real={"length": 4096, "width": 1024, "heads": 16, "block": 512, "batch": 2},
)
def blockwise_attention(length: int, width: int, heads: int, block: int, batch: int) -> Made:
    """Memory-efficient attention: an online softmax over blocks, its own backward by custom_vjp."""
    scale = (width // heads) ** -0.5

    def blocks(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(*x.shape[:2], -1, block, x.shape[-1]), 2, 0)

    def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(carry: Any, keys: Any) -> Any:
            total, peak, weight = carry
            scores = scale * jnp.einsum("bhqd,bhkd->bhqk", q, keys[0])
            higher = jnp.maximum(peak, jnp.max(scores, axis=-1))
            shrink, share = jnp.exp(peak - higher), jnp.exp(scores - higher[..., None])
            total = shrink[..., None] * total + jnp.einsum("bhqk,bhkd->bhqd", share, keys[1])
            return (total, higher, shrink * weight + jnp.sum(share, axis=-1)), None

        carry = jnp.zeros_like(q), jnp.full(q.shape[:-1], -jnp.inf), jnp.zeros(q.shape[:-1])
        (total, peak, weight), _ = lax.scan(step, carry, (blocks(k), blocks(v)))
        return total / weight[..., None], peak + jnp.log(weight)

    @jax.custom_vjp
    def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return forward(q, k, v)[0]

    def attention_forward(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        out, log_sum = forward(q, k, v)
        return out, (q, k, v, out, log_sum)

    def attention_backward(saved: Any, g: jax.Array) -> Any:
        q, k, v, out, log_sum = saved
        diagonal = jnp.sum(g * out, axis=-1)

        def step(dq: jax.Array, keys: Any) -> Any:
            key, value = keys
            share = jnp.exp(scale * jnp.einsum("bhqd,bhkd->bhqk", q, key) - log_sum[..., None])
            ds = share * (jnp.einsum("bhqd,bhkd->bhqk", g, value) - diagonal[..., None]) * scale
            dk = jnp.einsum("bhqk,bhqd->bhkd", ds, q)
            dv = jnp.einsum("bhqk,bhqd->bhkd", share, g)
            return dq + jnp.einsum("bhqk,bhkd->bhqd", ds, key), (dk, dv)

        dq, parts = lax.scan(step, jnp.zeros_like(q), (blocks(k), blocks(v)))
        dk, dv = (jnp.moveaxis(part, 0, 2).reshape(k.shape) for part in parts)
        return dq, dk, dv

    attention.defvjp(attention_forward, attention_backward)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        split = lambda y: jnp.moveaxis(y.reshape(batch, length, heads, -1), 1, 2)  # noqa: E731
        q, k, v = (split(x @ params[name]) for name in "qkv")
        out = jnp.moveaxis(attention(q, k, v), 1, 2).reshape(x.shape)
        return jnp.mean((out @ params["o"] - jnp.roll(x, 1, axis=1)) ** 2)

    def params() -> Any:
        matrix = functools.partial(arrays.normal, width, width, scale=width**-0.5)
        return {name: matrix(seed=i) for i, name in enumerate("qkvo")}

    return trained(loss, params, lambda: (arrays.normal(batch, length, width),), optax.yogi(1e-3))
