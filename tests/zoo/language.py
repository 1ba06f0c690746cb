"""Language models in training."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax

from . import arrays
from .entry import Made, program
from .training import cross_entropy, trained


def _linen_params(model: nn.Module, *inputs: Any) -> Any:
    return arrays.filled(jax.eval_shape(model.init, jax.random.key(0), *inputs))["params"]


def _tokens(vocabulary: int, batch: int, length: int) -> Any:
    ids = arrays.integers(vocabulary, batch, length + 1)
    return ids[:, :-1], ids[:, 1:]


class CausalBlock(nn.Module):
    """A block of GPT-2."""

    heads: int
    rate: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        batch, length, width = x.shape
        y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(x)
        qkv = nn.Dense(3 * width, dtype=self.dtype)(y).reshape(batch, length, 3, self.heads, -1)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape)
        y = nn.Dense(width, dtype=self.dtype)(y)
        x = x + nn.Dropout(self.rate)(y, deterministic=deterministic)
        y = nn.Dense(4 * width, dtype=self.dtype)(nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(x))
        y = nn.Dense(width, dtype=self.dtype)(nn.gelu(y))
        return x + nn.Dropout(self.rate)(y, deterministic=deterministic)


class GPT2(nn.Module):
    """GPT-2, its layers unrolled or scanned with rematerialisation."""

    vocabulary: int
    length: int
    layers: int
    width: int
    heads: int
    scanned: bool = False
    rate: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: jax.Array, deterministic: bool = True) -> jax.Array:
        wte = nn.Embed(self.vocabulary, self.width, dtype=self.dtype)
        wpe = nn.Embed(self.length, self.width, dtype=self.dtype)
        x = wte(ids) + wpe(jnp.arange(ids.shape[1]))
        x = nn.Dropout(self.rate)(x, deterministic=deterministic)
        if self.scanned:
            block = nn.remat(CausalBlock, prevent_cse=False, static_argnums=(2,))
            scan = nn.scan(
                lambda layer, x, _: (layer(x, deterministic), None),
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                length=self.layers,
            )
            x, _ = scan(block(self.heads, self.rate, self.dtype), x, None)
        else:
            for _ in range(self.layers):
                x = CausalBlock(self.heads, self.rate, self.dtype)(x, deterministic)
        return wte.attend(nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(x)).astype(jnp.float32)


GPT2_REDUCED = {"vocabulary": 17, "length": 6, "layers": 2, "width": 8, "heads": 2, "batch": 2}
GPT2_SMALL = {
    "vocabulary": 50257,
    "length": 1024,
    "layers": 12,
    "width": 768,
    "heads": 12,
    "batch": 4,
}


def _gpt2(scanned: bool, dtype: Any, tx: Any, sizes: dict[str, int]) -> Made:
    batch = sizes.pop("batch")
    model = GPT2(**sizes, scanned=scanned, dtype=dtype)

    def loss(params: Any, ids: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array:
        logits = model.apply({"params": params}, ids, False, rngs={"dropout": key})
        return cross_entropy(logits, labels)

    def batch_of() -> Any:
        return *_tokens(model.vocabulary, batch, model.length), jax.random.key(1)

    ids = jax.ShapeDtypeStruct((1, model.length), "int32")
    return trained(loss, lambda: _linen_params(model, ids), batch_of, tx)


@program("linen", reduced=GPT2_REDUCED, real=GPT2_SMALL)
def gpt2(**sizes: int) -> Made:
    """GPT-2 small, unrolled: tied embeddings, dropout, clipping, adamw, warmup and cosine decay."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 6e-4, 2, 20)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.95))
    return _gpt2(False, jnp.float32, tx, sizes)


@program(
    "linen", reduced=GPT2_REDUCED, real={**GPT2_SMALL, "layers": 24, "width": 1024, "heads": 16}
)
def gpt2_scanned(**sizes: int) -> Made:
    """GPT-2 medium in bfloat16: nn.scan over nn.remat of one block."""
    return _gpt2(True, jnp.bfloat16, optax.adamw(3e-4), sizes)


def rms_norm(scale: jax.Array, x: jax.Array) -> jax.Array:
    """Returns the layer norm of Llama, computed in float32."""
    wide = x.astype(jnp.float32)
    wide = wide * lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + 1e-6)
    return wide.astype(x.dtype) * scale


def rotated(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns rotary position embeddings of (..., length, heads, width)."""
    half = x.shape[-1] // 2
    frequencies = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[:, None, None] * frequencies
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    turned = [first * cos - second * sin, first * sin + second * cos]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def grouped_attention(layer: Any, x: jax.Array, heads: int, groups: int) -> jax.Array:
    """Attention whose queries share keys and values in groups, with rotary positions."""
    batch, length, width = x.shape
    q = (x @ layer["q"]).reshape(batch, length, heads, width // heads)
    k, v = ((x @ layer[name]).reshape(batch, length, groups, width // heads) for name in ("k", "v"))
    positions = jnp.arange(length, dtype=jnp.float32)
    q, k = rotated(q, positions), rotated(k, positions)
    q = q.reshape(batch, length, groups, heads // groups, -1)
    scores = jnp.einsum("bqghd,bkgd->bghqk", q, k, preferred_element_type=jnp.float32)
    mask = jnp.tril(jnp.ones((length, length), bool))
    scores = jnp.where(mask, scores * (width // heads) ** -0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
    return jnp.einsum("bghqk,bkgd->bqghd", weights, v).reshape(x.shape) @ layer["o"]


def llama_layer(width: int, heads: int, groups: int, hidden: int, seed: int) -> dict[str, Any]:
    """Returns the weights of one layer."""
    shapes = {
        "q": (width, width),
        "k": (width, groups * width // heads),
        "v": (width, groups * width // heads),
        "o": (width, width),
        "gate": (width, hidden),
        "up": (width, hidden),
        "down": (hidden, width),
    }
    made = {n: arrays.normal(*s, seed=seed, scale=s[0] ** -0.5) for n, s in shapes.items()}
    return {
        **made,
        "norm1": arrays.uniform(width, low=0.9),
        "norm2": arrays.uniform(width, low=0.9),
    }


def llama_params(
    vocabulary: int, layers: int, width: int, heads: int, groups: int, hidden: int
) -> Any:
    """Returns the weights of a Llama, those of its layers stacked."""
    stacked = arrays.stacked([llama_layer(width, heads, groups, hidden, i) for i in range(layers)])
    return {
        "embedding": arrays.normal(vocabulary, width, scale=0.02),
        "layers": stacked,
        "norm": arrays.uniform(width, low=0.9),
        "head": arrays.normal(width, vocabulary, scale=width**-0.5),
    }


def llama_logits(params: Any, ids: jax.Array, heads: int, groups: int) -> jax.Array:
    """Returns logits in float32; the layers are a scan of a rematerialised body."""

    def block(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        x = x + grouped_attention(layer, rms_norm(layer["norm1"], x), heads, groups)
        y = rms_norm(layer["norm2"], x)
        return x + (jax.nn.silu(y @ layer["gate"]) * (y @ layer["up"])) @ layer["down"], None

    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    x, _ = lax.scan(
        jax.checkpoint(block, policy=policy), params["embedding"][ids], params["layers"]
    )
    return (rms_norm(params["norm"], x) @ params["head"]).astype(jnp.float32)


@program(
    "plain",
    reduced={
        "vocabulary": 17,
        "length": 6,
        "layers": 2,
        "width": 16,
        "heads": 4,
        "groups": 2,
        "hidden": 24,
        "batch": 2,
    },
    real={
        "vocabulary": 32000,
        "length": 2048,
        "layers": 12,
        "width": 1024,
        "heads": 16,
        "groups": 4,
        "hidden": 2816,
        "batch": 4,
    },
)
def llama(length: int, batch: int, **sizes: int) -> Made:
    """A Llama of 200 million weights: RoPE, GQA, SwiGLU; bfloat16, float32 master weights."""

    def loss(params: Any, ids: jax.Array, labels: jax.Array) -> jax.Array:
        params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        logits = llama_logits(params, ids, sizes["heads"], sizes["groups"])
        z_loss = 1e-4 * jnp.mean(jax.nn.logsumexp(logits, axis=-1) ** 2)
        return cross_entropy(logits, labels) + z_loss

    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-4, b2=0.95, weight_decay=0.1))
    tokens = lambda: _tokens(sizes["vocabulary"], batch, length)  # noqa: E731
    return trained(loss, lambda: llama_params(**sizes), tokens, tx)


def route(logits: jax.Array, experts: int, chosen: int, capacity: int) -> tuple[jax.Array, ...]:
    """Returns dispatch and combine tensors (tokens, experts, capacity), and the balancing loss."""
    probabilities = jax.nn.softmax(logits)
    weights, ids = lax.top_k(probabilities, chosen)
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    taken = jax.nn.one_hot(ids.T.reshape(-1), experts, dtype=jnp.int32)
    place = jnp.cumsum(taken, axis=0) * taken - 1
    fits = (place >= 0) & (place < capacity)
    slots = jax.nn.one_hot(jnp.where(fits, place, -1), capacity)
    slots = slots.reshape(chosen, -1, experts, capacity)
    combine = jnp.einsum("tc,ctek->tek", weights, slots)
    share = jnp.mean(jax.nn.one_hot(ids[:, 0], experts), axis=0)
    return jnp.sum(slots, axis=0), combine, experts * jnp.sum(share * probabilities.mean(axis=0))


@program(
    "plain",
    reduced={"tokens": 12, "width": 8, "hidden": 12, "experts": 4, "chosen": 2, "classes": 5},
    real={
        "tokens": 4096,
        "width": 1024,
        "hidden": 4096,
        "experts": 8,
        "chosen": 2,
        "classes": 32000,
    },
)
def mixture_of_experts(
    tokens: int, width: int, hidden: int, experts: int, chosen: int, classes: int
) -> Made:
    """A sparse MoE layer as in GShard: top-k routing with capacity, jitter and a balancing loss."""
    capacity = max(1, int(1.25 * chosen * tokens / experts))

    def loss(params: Any, x: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array:
        jitter = jax.random.uniform(key, x.shape, minval=0.99, maxval=1.01)
        logits = (x * jitter) @ params["router"]
        dispatch, combine, balance = route(logits, experts, chosen, capacity)
        inputs = jnp.einsum("tek,td->ekd", dispatch, x)
        up = jax.nn.gelu(jnp.einsum("ekd,edh->ekh", inputs, params["up"]))
        outputs = jnp.einsum("ekh,ehd->ekd", up, params["down"])
        y = x + jnp.einsum("tek,ekd->td", combine, outputs)
        return cross_entropy(y @ params["head"], labels) + 0.01 * balance

    def params() -> Any:
        return {
            "router": arrays.normal(width, experts, scale=0.1),
            "up": arrays.normal(experts, width, hidden, scale=width**-0.5),
            "down": arrays.normal(experts, hidden, width, scale=hidden**-0.5),
            "head": arrays.normal(width, classes, scale=width**-0.5),
        }

    def batch() -> Any:
        return arrays.normal(tokens, width), arrays.integers(classes, tokens), jax.random.key(2)

    return trained(loss, params, batch, optax.adam(1e-3))


class BertLayer(nnx.Module):
    """A post-norm transformer encoder layer."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = self.norm1(x + self.attention(x, mask=mask))
        return self.norm2(x + self.down(nnx.gelu(self.up(x), approximate=False)))


class Bert(nnx.Module):
    """BERT with its head for masked tokens."""

    def __init__(
        self, vocabulary: int, length: int, layers: int, width: int, heads: int, rngs: nnx.Rngs
    ) -> None:
        self.tokens = nnx.Embed(vocabulary, width, rngs=rngs)
        self.positions = nnx.Embed(length, width, rngs=rngs)
        self.layers = nnx.List([BertLayer(width, heads, rngs) for _ in range(layers)])
        self.transform = nnx.Linear(width, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, ids: jax.Array, valid: jax.Array) -> jax.Array:
        x = self.tokens(ids) + self.positions(jnp.arange(ids.shape[1]))
        mask = nnx.make_attention_mask(valid, valid)
        for layer in self.layers:
            x = layer(x, mask)
        return self.tokens.attend(self.norm(nnx.gelu(self.transform(x))))


@program(
    "nnx",
    reduced={"vocabulary": 19, "length": 6, "layers": 1, "width": 8, "heads": 2, "batch": 2},
    real={"vocabulary": 30522, "length": 128, "layers": 12, "width": 768, "heads": 12, "batch": 32},
)
def bert(vocabulary: int, length: int, layers: int, width: int, heads: int, batch: int) -> Made:
    """BERT-base on masked tokens: masks drawn in the step, padding masked, lamb."""
    build = lambda: Bert(vocabulary, length, layers, width, heads, nnx.Rngs(0))  # noqa: E731
    graphdef, specs = nnx.split(nnx.eval_shape(build))

    def loss(params: Any, ids: jax.Array, valid: jax.Array, key: jax.Array) -> jax.Array:
        hidden_key, random_key, ids_key = jax.random.split(key, 3)
        masked = jax.random.bernoulli(hidden_key, 0.3, ids.shape) & valid
        noise = jax.random.randint(ids_key, ids.shape, 0, vocabulary)
        kind = jax.random.uniform(random_key, ids.shape)
        shown = jnp.where(kind < 0.8, vocabulary - 1, jnp.where(kind < 0.9, noise, ids))
        logits = nnx.merge(graphdef, params)(jnp.where(masked, shown, ids), valid)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
        return jnp.sum(losses * masked) / jnp.maximum(jnp.sum(masked), 1)

    def batch_of() -> Any:
        valid = arrays.uniform(batch, length) > 0.1
        valid[:, 0] = True
        return arrays.integers(vocabulary - 1, batch, length), valid, jax.random.key(5)

    return trained(loss, lambda: arrays.filled(specs), batch_of, optax.lamb(1e-3))


@jax.checkpoint
def _t5_attention(layer: Any, x: jax.Array, memory: jax.Array, bias: jax.Array) -> jax.Array:
    q = jnp.einsum("bld,dhk->blhk", x, layer["q"])
    k = jnp.einsum("bld,dhk->blhk", memory, layer["k"])
    v = jnp.einsum("bld,dhk->blhk", memory, layer["v"])
    weights = jax.nn.softmax(jnp.einsum("bqhk,bmhk->bhqm", q, k) + bias)
    return jnp.einsum("bhqm,bmhk,hkd->bqd", weights, v, layer["o"])


def relative_bias(table: jax.Array, queries: int, keys: int, causal: bool) -> jax.Array:
    """Returns T5's biases (heads, queries, keys), one for each bucket of distances."""
    distance = jnp.arange(keys)[None] - jnp.arange(queries)[:, None]
    buckets = table.shape[0]
    near = jnp.maximum(-distance, 0) if causal else jnp.abs(distance)
    far = jnp.log(jnp.maximum(near, 1) / (buckets / 2)) / jnp.log(64.0) * (buckets / 2)
    far = jnp.minimum(buckets // 2 + far.astype(jnp.int32), buckets - 1)
    bias = jnp.moveaxis(table[jnp.where(near < buckets // 2, near, far)], -1, 0)
    return jnp.where(distance > 0, -1e9, bias) if causal else bias


@program(
    "plain",
    reduced={"vocabulary": 13, "length": 5, "layers": 1, "width": 8, "heads": 2, "batch": 2},
    real={"vocabulary": 32128, "length": 512, "layers": 6, "width": 512, "heads": 8, "batch": 8},
)
def t5(vocabulary: int, length: int, layers: int, width: int, heads: int, batch: int) -> Made:
    """T5-small's encoder and decoder: relative biases, cross attention, adafactor."""

    def feed_forward(layer: Any, x: jax.Array) -> jax.Array:
        return jax.nn.relu(x @ layer["up"]) @ layer["down"]

    def stack(params: Any, name: str, ids: jax.Array, memory: jax.Array | None) -> jax.Array:
        x = params["embedding"][ids]
        causal = memory is not None
        bias = relative_bias(params[f"{name}_bias"], ids.shape[1], ids.shape[1], causal)
        for layer in params[name]:
            y = rms_norm(layer["norm1"], x)
            x = x + _t5_attention(layer["self"], y, y, bias)
            if memory is not None:
                y = rms_norm(layer["norm2"], x)
                x = x + _t5_attention(layer["cross"], y, memory, jnp.zeros(()))
            x = x + feed_forward(layer, rms_norm(layer["norm3"], x))
        return x

    def loss(params: Any, source: jax.Array, ids: jax.Array, labels: jax.Array) -> jax.Array:
        x = stack(params, "decoder", ids, stack(params, "encoder", source, None))
        return cross_entropy(x * width**-0.5 @ params["embedding"].T, labels)

    def layer(seed: int) -> Any:
        attention = {
            n: arrays.normal(width, heads, width // heads, seed=seed, scale=0.1) for n in "qkv"
        }
        attention["o"] = arrays.normal(heads, width // heads, width, seed=seed, scale=0.1)
        return {
            "self": attention,
            "cross": jax.tree.map(lambda x: x[::-1].copy(), attention),
            "up": arrays.normal(width, 4 * width, seed=seed, scale=width**-0.5),
            "down": arrays.normal(4 * width, width, seed=seed, scale=0.1),
            **{f"norm{i}": arrays.uniform(width, low=0.9, seed=i) for i in (1, 2, 3)},
        }

    def params() -> Any:
        return {
            "embedding": arrays.normal(vocabulary, width),
            "encoder": [layer(i) for i in range(layers)],
            "decoder": [layer(i + layers) for i in range(layers)],
            "encoder_bias": arrays.normal(8, heads),
            "decoder_bias": arrays.normal(8, heads, seed=1),
        }

    def batch_of() -> Any:
        source = arrays.integers(vocabulary, batch, length, seed=1)
        return source, *_tokens(vocabulary, batch, length)

    return trained(loss, params, batch_of, optax.adafactor(1e-3))
