"""TensorFlow's random ops: shapes, dtypes and ranges are TensorFlow's, the numbers are JAX's.

Each op has a stream of its own. Its seed is what the attrs ``seed`` and ``seed2`` say, or where
both are 0 another one in each program, as in TensorFlow; how often it ran is counted in the state,
so that each run gives other numbers.
"""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import dtypes
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._operands import ints


def _next_key(state: Any, seed: int, seed2: int, node_name: str) -> Any:
    """Returns the key of the next run of an op."""
    if seed or seed2:
        words = np.random.SeedSequence([seed % 2**64, seed2 % 2**64]).generate_state(1)
    else:
        words = np.random.SeedSequence().generate_state(1)
    key = jax.random.fold_in(jax.random.key(int(words[0])), zlib.crc32(node_name.encode()))
    return jax.random.fold_in(key, state.count(node_name)) if state is not None else key


def _dtype(number: int) -> Any:
    return jax.dtypes.canonicalize_dtype(dtypes.dtype_from_number(number))


@kernel("RandomUniform", static=("shape",))
def random_uniform(
    state: Any, shape: Any, *, dtype: int, seed: int, seed2: int, node_name: str
) -> Any:
    key = _next_key(state, seed, seed2, node_name)
    return jax.random.uniform(key, ints(shape), _dtype(dtype))


@kernel("RandomStandardNormal", static=("shape",))
def random_standard_normal(
    state: Any, shape: Any, *, dtype: int, seed: int, seed2: int, node_name: str
) -> Any:
    key = _next_key(state, seed, seed2, node_name)
    return jax.random.normal(key, ints(shape), _dtype(dtype))


@kernel("TruncatedNormal", static=("shape",))
def truncated_normal(
    state: Any, shape: Any, *, dtype: int, seed: int, seed2: int, node_name: str
) -> Any:
    key = _next_key(state, seed, seed2, node_name)
    return jax.random.truncated_normal(key, -2.0, 2.0, ints(shape), _dtype(dtype))


@kernel("RandomUniformInt", static=("shape",))
def random_uniform_int(
    state: Any, shape: Any, minval: Any, maxval: Any, *, seed: int, seed2: int, node_name: str
) -> Any:
    key = _next_key(state, seed, seed2, node_name)
    return jax.random.randint(key, ints(shape), minval, maxval, minval.dtype)


@kernel("RandomShuffle")
def random_shuffle(state: Any, value: Any, *, seed: int, seed2: int, node_name: str) -> Any:
    return jax.random.permutation(_next_key(state, seed, seed2, node_name), jnp.asarray(value))


@kernel("Multinomial", static=("num_samples",))
def multinomial(
    state: Any,
    logits: Any,
    num_samples: Any,
    *,
    seed: int,
    seed2: int,
    output_dtype: int,
    node_name: str,
) -> Any:
    key = _next_key(state, seed, seed2, node_name)
    shape = (int(num_samples), logits.shape[0])
    drawn = jax.random.categorical(key, jnp.asarray(logits), axis=-1, shape=shape)
    return jnp.transpose(drawn).astype(_dtype(output_dtype))


@kernel("RandomGamma", static=("shape",))
def random_gamma(
    state: Any, shape: Any, alpha: Any, *, seed: int, seed2: int, node_name: str
) -> Any:
    key = _next_key(state, seed, seed2, node_name)
    return jax.random.gamma(key, alpha, (*ints(shape), *alpha.shape), alpha.dtype)


@kernel("RandomPoissonV2", static=("shape",))
def random_poisson(
    state: Any, shape: Any, rate: Any, *, dtype: int, seed: int, seed2: int, node_name: str
) -> Any:
    key = _next_key(state, seed, seed2, node_name)
    drawn = jax.random.poisson(key, rate, (*ints(shape), *rate.shape))
    return drawn.astype(_dtype(dtype))


# --- stateless: the seed is an input ------------------------------------------------------------


def _key_of_seed(seed: Any) -> Any:
    key = jax.random.key(0)
    for word in range(2):
        key = jax.random.fold_in(key, seed[word].astype(np.uint32))
    return key


@kernel("StatelessRandomUniform", static=("shape",))
def stateless_random_uniform(shape: Any, seed: Any, *, dtype: int) -> Any:
    return jax.random.uniform(_key_of_seed(seed), ints(shape), _dtype(dtype))


@kernel("StatelessRandomNormal", static=("shape",))
def stateless_random_normal(shape: Any, seed: Any, *, dtype: int) -> Any:
    return jax.random.normal(_key_of_seed(seed), ints(shape), _dtype(dtype))


@kernel("StatelessTruncatedNormal", static=("shape",))
def stateless_truncated_normal(shape: Any, seed: Any, *, dtype: int) -> Any:
    return jax.random.truncated_normal(_key_of_seed(seed), -2.0, 2.0, ints(shape), _dtype(dtype))
