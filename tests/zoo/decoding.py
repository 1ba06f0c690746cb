"""Decoding from language models, in plain JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from . import arrays
from .entry import Made, program


def lm_params(vocabulary: int, layers: int, width: int, length: int, seed: int = 0) -> Any:
    """Returns the weights of a small decoder, those of its layers stacked."""

    def matrix(*shape: int, number: int) -> Any:
        return arrays.normal(*shape, seed=seed + number, scale=shape[-2] ** -0.5)

    return {
        "embedding": arrays.normal(vocabulary, width, seed=seed),
        "positions": arrays.normal(length, width, seed=seed, scale=0.1),
        "qkv": matrix(layers, width, 3 * width, number=1),
        "o": matrix(layers, width, width, number=2),
        "up": matrix(layers, width, 2 * width, number=3),
        "down": matrix(layers, 2 * width, width, number=4),
    }


def empty_cache(params: Any, batch: int, length: int) -> jax.Array:
    """Returns keys and values (layers, 2, batch, length, width)."""
    layers, width, _ = params["qkv"].shape
    return jnp.zeros((layers, 2, batch, length, width))


def decode_step(
    params: Any, cache: jax.Array, ids: jax.Array, position: jax.Array, heads: int
) -> tuple[jax.Array, jax.Array]:
    """Returns logits of the next token for (batch,) ids at a position, and the cache."""
    batch, length, width = cache.shape[2:]
    x = params["embedding"][ids] + params["positions"][position]
    visible = jnp.arange(length) <= position

    def layer(x: jax.Array, layer_inputs: Any) -> tuple[jax.Array, jax.Array]:
        weights, cache = layer_inputs
        q, k, v = jnp.split(jax.nn.standardize(x) @ weights["qkv"], 3, axis=-1)
        cache = lax.dynamic_update_slice(cache, jnp.stack([k, v])[:, :, None], (0, 0, position, 0))
        keys, values = cache.reshape(2, batch, length, heads, width // heads)
        scores = jnp.einsum("bhd,blhd->bhl", q.reshape(batch, heads, -1), keys)
        attention = jax.nn.softmax(scores, where=visible)
        mixed = jnp.einsum("bhl,blhd->bhd", attention, values).reshape(batch, width)
        x = x + mixed @ weights["o"]
        return x + jax.nn.gelu(jax.nn.standardize(x) @ weights["up"]) @ weights["down"], cache

    weights = {name: params[name] for name in ("qkv", "o", "up", "down")}
    x, cache = lax.scan(layer, x, (weights, cache))
    return x @ params["embedding"].T, cache


REDUCED = {"vocabulary": 11, "layers": 2, "width": 8, "heads": 2, "length": 6}
REAL = {"vocabulary": 50257, "layers": 12, "width": 768, "heads": 12, "length": 256}


def nucleus(logits: jax.Array, share: float) -> jax.Array:
    """Masks what is outside the smallest set of tokens with this share of the probability."""
    ordered = jnp.sort(logits, axis=-1)[..., ::-1]
    cumulative = jnp.cumsum(jax.nn.softmax(ordered), axis=-1)
    last = jnp.sum(cumulative < share, axis=-1, keepdims=True)
    return jnp.where(logits < jnp.take_along_axis(ordered, last, axis=-1), -jnp.inf, logits)


@program("plain", reduced={**REDUCED, "batch": 2}, real={**REAL, "batch": 16})
def nucleus_sampling(
    vocabulary: int, layers: int, width: int, heads: int, length: int, batch: int
) -> Made:
    """Samples with temperature, top-k and top-p from a KV cache until all sequences have ended."""

    def generate(params: Any, first: jax.Array, key: jax.Array, temperature: jax.Array) -> Any:
        def unfinished(carry: Any) -> jax.Array:
            position, *_, done, _ = carry
            return (position < length) & ~jnp.all(done)

        def step(carry: Any) -> Any:
            position, tokens, cache, done, key = carry
            logits, cache = decode_step(params, cache, tokens[:, position], position, heads)
            top, _ = lax.top_k(logits, 8)
            logits = jnp.where(logits < top[:, -1:], -jnp.inf, logits) / temperature
            key, now = jax.random.split(key)
            drawn = jax.random.categorical(now, nucleus(logits, 0.9)).astype(jnp.int32)
            drawn = jnp.where(done, 0, drawn)
            tokens = tokens.at[:, position + 1].set(drawn, mode="drop")
            return position + 1, tokens, cache, done | (drawn == 0), key

        tokens = jnp.zeros((batch, length), jnp.int32).at[:, 0].set(first)
        done = jnp.zeros(batch, bool)
        carry = (jnp.int32(0), tokens, empty_cache(params, batch, length), done, key)
        position, tokens, _, done, _ = lax.while_loop(unfinished, step, carry)
        return {"tokens": tokens, "steps": position, "done": done}

    def init() -> Any:
        params = lm_params(vocabulary, layers, width, length)
        first = 1 + arrays.integers(vocabulary - 1, batch)
        return params, first, jax.random.key(0), arrays.uniform(low=0.7, high=0.9)

    return Made(generate, init)


@program("plain", reduced={**REDUCED, "beams": 3}, real={**REAL, "beams": 8})
def beam_search(
    vocabulary: int, layers: int, width: int, heads: int, length: int, beams: int
) -> Made:
    """Beam search with a length penalty: top-k over beams and tokens, caches gathered."""

    def search(params: Any, start: jax.Array) -> Any:
        def step(carry: Any, position: jax.Array) -> Any:
            tokens, scores, cache, ended = carry
            logits, cache = decode_step(params, cache, tokens[:, position], position, heads)
            log_probs = jax.nn.log_softmax(logits)
            stay = jnp.full((vocabulary,), -jnp.inf).at[0].set(0.0)
            log_probs = jnp.where(ended[:, None], stay, log_probs)
            scores, flat = lax.top_k((scores[:, None] + log_probs).reshape(-1), beams)
            parents, drawn = flat // vocabulary, flat % vocabulary
            tokens = tokens[parents].at[:, position + 1].set(drawn.astype(jnp.int32))
            carry = tokens, scores, cache[:, :, parents], ended[parents] | (drawn == 0)
            return carry, parents

        tokens = jnp.zeros((beams, length), jnp.int32).at[:, 0].set(start)
        scores = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf)
        carry = tokens, scores, empty_cache(params, beams, length), jnp.zeros(beams, bool)
        (tokens, scores, _, _), parents = lax.scan(step, carry, jnp.arange(length - 1))
        lengths = jnp.sum(tokens != 0, axis=-1)
        scores = scores / ((5 + lengths) / 6) ** 0.6
        best = jnp.argsort(scores, descending=True)
        return {"tokens": tokens[best], "scores": scores[best], "parents": parents}

    def init() -> Any:
        return lm_params(vocabulary, layers, width, length), arrays.integers(vocabulary)

    return Made(search, init)


@program("plain", reduced={**REDUCED, "drafted": 2}, real={**REAL, "drafted": 4})
def speculative_decoding(
    vocabulary: int, layers: int, width: int, heads: int, length: int, drafted: int
) -> Made:
    """A small model drafts, a large one accepts or draws anew, in a while loop of inner loops."""
    room = length + drafted + 1

    def draft(params: Any, carry: Any, _: Any) -> Any:
        tokens, cache, position, key = carry
        logits, cache = decode_step(params, cache, tokens[position][None], position, heads)
        key, now = jax.random.split(key)
        drawn = jax.random.categorical(now, logits[0]).astype(jnp.int32)
        carry = tokens.at[position + 1].set(drawn), cache, position + 1, key
        return carry, (drawn, jax.nn.softmax(logits[0]))

    def verify(params: Any, tokens: jax.Array, cache: jax.Array, start: jax.Array) -> Any:
        def step(cache: jax.Array, offset: jax.Array) -> Any:
            at = start + offset
            logits, cache = decode_step(params, cache, tokens[at][None], at, heads)
            return cache, jax.nn.softmax(logits[0])

        return lax.scan(step, cache, jnp.arange(drafted + 1))

    def generate(small: Any, large: Any, first: jax.Array, key: jax.Array) -> Any:
        def body(carry: Any) -> Any:
            position, tokens, caches, key, accepted_ever = carry
            key, draft_key, accept_key, last_key = jax.random.split(key, 4)
            (tokens, small_cache, _, _), (drawn, q) = lax.scan(
                lambda c, x: draft(small, c, x),
                (tokens, caches[0], position, draft_key),
                None,
                length=drafted,
            )
            large_cache, p = verify(large, tokens, caches[1], position)
            rows = jnp.arange(drafted)
            ratio = p[rows, drawn] / q[rows, drawn]
            accepted = jnp.cumprod(jax.random.uniform(accept_key, (drafted,)) < ratio)
            count = jnp.sum(accepted)
            rest = jnp.maximum(p[count] - jnp.where(count < drafted, q[count], 0.0), 0.0)
            final = jax.random.categorical(last_key, jnp.log(rest + 1e-9)).astype(jnp.int32)
            position = position + count + 1
            tokens = tokens.at[position].set(final)
            return position, tokens, (small_cache, large_cache), key, accepted_ever + count

        tokens = jnp.zeros(room, jnp.int32).at[0].set(first)
        caches = empty_cache(small, 1, room), empty_cache(large, 1, room)
        carry = jnp.int32(0), tokens, caches, key, jnp.int32(0)
        carry = lax.while_loop(lambda c: c[0] < length - 1, body, carry)
        return {"tokens": carry[1][:length], "accepted": carry[4], "position": carry[0]}

    def init() -> Any:
        small = lm_params(vocabulary, 1, width, room)
        large = lm_params(vocabulary, layers, width, room)
        return small, large, arrays.integers(vocabulary), jax.random.key(4)

    return Made(generate, init)
