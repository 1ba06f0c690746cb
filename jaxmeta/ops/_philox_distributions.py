"""The distributions that TensorFlow's CPU kernels make of Philox's words, number by number.

Each takes the words of a key and a counter. Values of 64-bit dtypes are made as such, and rounded
to 32 bits at the end where JAX has 64 switched off.
"""

from __future__ import annotations

import math
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes
from jaxmeta.ops import _philox
from jaxmeta.tracing import jaxprs

_SMALLEST_UNIFORM: Final = 1e-7  # keeps the logarithm finite
_LIMIT: Final = 2.0  # of truncated normals, in standard deviations
# log2 of the blocks that TensorFlow sets apart for each group of truncated normals
_LOG_GROUP: Final = {4: 8, 2: 7}


def _narrowed(values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.reshape(values, shape).astype(jax.dtypes.canonicalize_dtype(values.dtype))


def to_floats(words: jax.Array) -> jax.Array:
    """Returns a float32 in [0, 1) for each word."""
    return lax.bitcast_convert_type((words & 0x7FFFFF) | 0x3F800000, np.float32) - np.float32(1)


def to_doubles(high: jax.Array, low: jax.Array) -> jax.Array:
    """Returns a float64 in [0, 1) for each pair of words; inside ``jax.enable_x64``."""
    words = jnp.stack([low, (high & 0xFFFFF) | (1023 << 20)], axis=-1)
    return _philox.join_words(words, np.float64) - np.float64(1)


def _to_short_floats(words: jax.Array, dtype: Any) -> jax.Array:
    mantissa = jnp.finfo(dtype).nmant
    one = np.asarray(1, dtype)
    short = (words & ((1 << mantissa) - 1)).astype(np.uint16) | one.view(np.uint16)
    return lax.bitcast_convert_type(short, dtype) - one


def uniform(key: Any, counter: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Returns numbers from 0 to less than 1."""
    size = math.prod(shape)
    if dtype == np.float64:
        words = _philox.random_words(key, counter, 2 * size)
        with jax.enable_x64(True):
            doubles = to_doubles(words[0::2], words[1::2])
        return _narrowed(doubles, shape)
    words = _philox.random_words(key, counter, size)
    floats = to_floats(words) if dtype == np.float32 else _to_short_floats(words, dtype)
    return jnp.reshape(floats, shape)


def _box_muller(radius: jax.Array, angle: jax.Array) -> jax.Array:
    """Returns the two normals of each pair of uniforms, along a new last axis."""
    dtype = radius.dtype
    length = jnp.sqrt(-2 * jnp.log(jnp.maximum(radius, np.asarray(_SMALLEST_UNIFORM, dtype))))
    turned = angle * np.asarray(2 * np.pi, dtype)
    return jnp.stack([jnp.sin(turned) * length, jnp.cos(turned) * length], axis=-1)


def _normals_of_blocks(blocks: Any, is_double: bool) -> jax.Array:
    """Returns the normals of each block along a new last axis: two doubles, or four floats."""
    if is_double:
        return _box_muller(to_doubles(*blocks[:2]), to_doubles(*blocks[2:]))
    floats = [to_floats(words) for words in blocks]
    return jnp.concatenate([_box_muller(*floats[:2]), _box_muller(*floats[2:])], axis=-1)


def normal(key: Any, counter: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Returns numbers of the standard normal distribution."""
    is_double = bool(dtype == np.float64)
    size, group = math.prod(shape), 2 if is_double else 4
    blocks = _philox.make_blocks(key, _philox.counters(counter, -(-size // group)))
    with jax.enable_x64(is_double or jaxprs.has_64_bit_types()):
        values = jnp.reshape(_normals_of_blocks(blocks, is_double), -1)[:size]
    return _narrowed(values.astype(dtype) if not is_double else values, shape)


def truncated_normal(key: Any, counter: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Returns numbers of the standard normal distribution, those beyond 2 drawn again.

    Each group of numbers draws from counters of its own until it is full.
    """
    is_double = bool(dtype == np.float64)
    size, group = math.prod(shape), 2 if is_double else 4
    start = _philox.counters(counter, -(-size // group), _LOG_GROUP[group])

    def draw(carry: Any) -> Any:
        drawn, found, count = carry
        step = [jnp.asarray(drawn, np.uint32)]
        values = _normals_of_blocks(
            _philox.make_blocks(key, _philox.add_to_counter(start, step)), is_double
        )
        for index in range(group):
            value = values[:, index]
            is_taken = jnp.abs(value) < _LIMIT
            places = lax.broadcasted_iota(np.int32, found.shape, 1) == count[:, None]
            found = jnp.where(places & is_taken[:, None], value[:, None], found)
            count = count + is_taken.astype(np.int32)
        return drawn + np.uint32(1), found, count

    with jax.enable_x64(is_double or jaxprs.has_64_bit_types()):
        empty = jnp.zeros((start[0].size, group), np.float64 if is_double else np.float32)
        first = (np.uint32(0), empty, jnp.zeros(start[0].size, np.int32))
        _, found, _ = lax.while_loop(lambda carry: jnp.any(carry[2] < group), draw, first)
        values = jnp.reshape(found, -1)[:size]
    return _narrowed(values.astype(dtype) if not is_double else values, shape)


def full_range_int(key: Any, counter: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Returns integers of which each is as likely as any other of the dtype."""
    size = math.prod(shape)
    if np.dtype(dtype).itemsize == 8:
        words = _philox.random_words(key, counter, 2 * size)
        return _narrowed(_philox.join_words(jnp.reshape(words, (-1, 2)), dtype), shape)
    words = _philox.random_words(key, counter, size)
    return jnp.reshape(lax.bitcast_convert_type(words, np.dtype(dtype)), shape)


def uniform_int(
    key: Any, counter: Any, shape: tuple[int, ...], minval: Any, maxval: Any, dtype: Any
) -> jax.Array:
    """Returns integers from ``minval`` to less than ``maxval``, as remainders."""
    size = math.prod(shape)
    is_long = np.dtype(dtype).itemsize == 8
    words = _philox.random_words(key, counter, size * (2 if is_long else 1))
    with jax.enable_x64(is_long or jaxprs.has_64_bit_types()):
        unsigned = np.uint64 if is_long else np.uint32
        bits = _philox.join_words(jnp.reshape(words, (-1, 2))) if is_long else words
        low, high = (jnp.asarray(bound).astype(dtype) for bound in (minval, maxval))
        span = high.astype(unsigned) - low.astype(unsigned)
        values = (low.astype(unsigned) + lax.rem(bits, jnp.broadcast_to(span, bits.shape))).astype(
            dtype
        )
    return _narrowed(values, shape)


def categories(key: Any, counter: Any, logits: Any, num_samples: int, dtype: Any) -> Any:
    """Returns the classes that rows of unnormalized log probabilities give, a row of samples each.

    They are TensorFlow's where its CPU kernel works on the rows one after the other, as it does for
    small batches; the rows of large ones it draws from places that depend on its number of threads.
    """
    rows = logits.shape[0]
    words = jnp.reshape(_philox.random_words(key, counter, 2 * rows * num_samples), (-1, 2))
    with jax.enable_x64(True):
        wide = jnp.asarray(logits).astype(np.float64)
        is_known = jnp.isfinite(wide)
        highest = jnp.max(jnp.where(is_known, wide, -np.inf), axis=1, keepdims=True)
        weights = jnp.where(is_known, jnp.exp(wide - highest), 0.0)
        totals = jnp.cumsum(weights, axis=1)
        draws = jnp.reshape(to_doubles(words[:, 0], words[:, 1]), (rows, num_samples))
        sought = draws * totals[:, -1:]
        found = jax.vmap(lambda row, x: jnp.searchsorted(row, x, side="right"))(totals, sought)
    return found.astype(jax.dtypes.canonicalize_dtype(dtypes.dtype_from_number(dtype)))


def permutation(key: Any, counter: Any, size: int) -> jax.Array:
    """Returns the indices of an array in random order, by swaps from the first on."""
    words = _philox.random_words(key, counter, max(size - 1, 0))

    def swap(i: jax.Array, order: jax.Array) -> jax.Array:
        rest = (size - i).astype(np.uint32)
        j = i + lax.rem(words[i], rest).astype(np.int32)
        return order.at[i].set(order[j]).at[j].set(order[i])

    order = lax.iota(np.int32, size)
    return jnp.asarray(lax.fori_loop(np.int32(0), np.int32(max(size - 1, 0)), swap, order))
