"""TensorFlow's generator of random bits, Philox 4x32-10, and the 64-bit words that its ops pass on.

A key is two words of 32 bits, a counter four, lowest first; each counter gives a block of four
words. The arithmetic needs no 64-bit types. The ops' own key and counter tensors are uint64, which
JAX holds inside ``jax.enable_x64`` also where a program has them switched off.
"""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import errors

ALGORITHM: Final = 1  # Philox's number in TensorFlow
_AUTOMATIC: Final = 3
_OTHERS: Final = {2: "ThreeFry"}
_MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_SCRAMBLING_KEY: Final = (0x3EC8F720, 0x02461E29)
_ROUNDS: Final = 10


def check_algorithm(alg: Any) -> None:
    """Raises UnsupportedOpError where an algorithm is not Philox, which is all that CPUs have."""
    number = int(alg)
    if number not in (ALGORITHM, _AUTOMATIC):
        raise errors.UnsupportedOpError(
            f"the random algorithm {_OTHERS.get(number, number)} is not supported, "
            "as on TensorFlow's CPUs; use Philox (1) or auto_select (3)"
        )


# --- 64-bit words ------------------------------------------------------------------------------


def split_words(x: Any) -> jax.Array:
    """Returns the low and high 32 bits of integers, along a new last axis.

    Integers of 32 bits, which is what JAX makes of 64 where these are switched off, are extended by
    their sign, as TensorFlow does.
    """
    if not isinstance(x, jax.Array):
        wide = np.ascontiguousarray(np.asarray(x)[..., None])
        return jnp.asarray(
            wide.astype(np.uint64 if wide.dtype.kind == "u" else np.int64).view("<u4")
        )
    if x.dtype.itemsize == 8:
        with jax.enable_x64(True):
            return lax.bitcast_convert_type(x, np.uint32)
    low = x.astype(np.uint32)
    high = jnp.zeros_like(low) if x.dtype.kind == "u" else (x >> 31).astype(np.uint32)
    return jnp.stack([low, high], axis=-1)


def join_words(words: jax.Array, dtype: Any = np.uint64) -> jax.Array:
    """Returns the 64-bit numbers of which the last axis has the low and high bits."""
    with jax.enable_x64(True):
        return lax.bitcast_convert_type(words, np.dtype(dtype))


# --- the generator -----------------------------------------------------------------------------


def _multiply(constant: int, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the high and low words of products."""
    high, low = np.uint32(constant >> 16), np.uint32(constant & 0xFFFF)
    x_high, x_low = x >> 16, x & 0xFFFF
    middle = high * x_low + ((low * x_low) >> 16)
    other = low * x_high + (middle & 0xFFFF)
    return high * x_high + (middle >> 16) + (other >> 16), np.uint32(constant) * x


def add_to_counter(counter: Any, words: Any) -> list[jax.Array]:
    """Returns the four words of counters plus numbers, which have up to four words."""
    total, carry = [], jnp.zeros((), np.uint32)
    for index, word in enumerate(counter):
        added = words[index] if index < len(words) else jnp.zeros((), np.uint32)
        first = word + added
        second = first + carry
        carry = ((first < added) | (second < first)).astype(np.uint32)
        total.append(second)
    return total


def make_blocks(key: Any, counter: Any) -> list[jax.Array]:
    """Returns the four words that a key gives for each counter, whose words are arrays."""

    def scramble(round_: jax.Array, words: list[jax.Array]) -> list[jax.Array]:
        first, second = (key[i] + round_ * np.uint32(_WEYL[i]) for i in range(2))
        high_0, low_0 = _multiply(_MULTIPLIERS[0], words[0])
        high_1, low_1 = _multiply(_MULTIPLIERS[1], words[2])
        return [high_1 ^ words[1] ^ first, low_1, high_0 ^ words[3] ^ second, low_0]

    # A loop, because its ten rounds written out take ten times as long to compile.
    words = list(jnp.broadcast_arrays(*map(jnp.asarray, counter)))
    scrambled: list[jax.Array] = lax.fori_loop(np.uint32(0), np.uint32(_ROUNDS), scramble, words)
    return scrambled


def counters(counter: Any, count: int, log_stride: int = 0) -> list[jax.Array]:
    """Returns the words of ``count`` counters from one on, each 2**log_stride after the last."""
    index = lax.iota(np.uint32, count)
    if log_stride == 0:
        return add_to_counter(counter, [index])
    high = lax.shift_right_logical(index, np.uint32(32 - log_stride))
    return add_to_counter(counter, [index << log_stride, high])


def random_words(key: Any, counter: Any, count: int) -> jax.Array:
    """Returns the first ``count`` words that a key gives from a counter on."""
    blocks = make_blocks(key, counters(counter, -(-count // 4)))
    return jnp.reshape(jnp.stack(blocks, axis=-1), -1)[:count]


# --- keys and counters -------------------------------------------------------------------------


def key_and_counter_of_seed(seed: Any) -> tuple[jax.Array, jax.Array]:
    """Returns the words of the key and counter that stateless ops make of two seeds."""
    key = [jnp.asarray(word, np.uint32) for word in _SCRAMBLING_KEY]
    mixed = make_blocks(key, list(jnp.reshape(split_words(seed), -1)))
    zero = jnp.zeros((), np.uint32)
    return jnp.stack(mixed[:2]), jnp.stack([zero, zero, *mixed[2:]])


def key_and_counter_of_tensors(key: Any, counter: Any, alg: Any) -> tuple[jax.Array, jax.Array]:
    """Returns the words of the uint64 tensors that ops pass on: a key, a counter's halves.

    Raises:
        UnsupportedOpError: the algorithm is not Philox.
    """
    check_algorithm(alg)
    return jnp.reshape(split_words(key), -1)[:2], jnp.reshape(split_words(counter), -1)[:4]


def key_and_counter_of_attrs(seed: int, seed2: int) -> tuple[jax.Array, jax.Array]:
    """Returns the words with which a stateful op of these seeds begins.

    They are random where both seeds are 0.
    """
    if not (seed or seed2):
        seed, seed2 = np.random.SeedSequence().generate_state(2, np.uint64).tolist()
    words = split_words(np.asarray([seed % 2**64, seed2 % 2**64], np.uint64))
    zero = jnp.zeros(2, np.uint32)
    return words[0], jnp.concatenate([zero, words[1]])


def take_blocks(state: Any, node_name: str, seed: int, seed2: int, count: int) -> tuple[Any, Any]:
    """Returns the words of key and counter of an op's next run, which uses ``count`` blocks."""
    key, counter = key_and_counter_of_attrs(seed, seed2)
    if state is None:
        return key, counter
    step = np.asarray(count % 2**32, np.uint32)
    low = state.count(node_name, step)
    carry = (low + step < step).astype(np.uint32)
    high = state.count(f"{node_name}:high", carry + np.uint32(count >> 32))
    return key, jnp.stack(add_to_counter(counter, [low, high]))
