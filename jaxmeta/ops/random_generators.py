"""The ops of ``tf.random.Generator``: its state, three int64s, is a counter and a key."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmeta import dtypes
from jaxmeta.ops import _philox, _philox_distributions
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._handles import Handle
from jaxmeta.ops._operands import ints


def _skip(state: Any, name: str, words: Any, outputs: Any) -> None:
    """Moves a generator's counter on, by 256 blocks for each output."""
    low, high = outputs[0], outputs[1]
    blocks = [low << 8, (high << 8) | (low >> 24), high >> 24]
    counter = _philox.add_to_counter([words[i] for i in range(4)], blocks)
    moved = jnp.reshape(jnp.stack([*counter, words[4], words[5]]), (3, 2))
    state.write(name, _philox.join_words(moved, np.int64))


def _read(state: Any, name: str) -> Any:
    return jnp.reshape(_philox.split_words(state.read(name)), -1)


@kernel("RngReadAndSkip", static=("alg",))
def rng_read_and_skip(state: Any, resource: Handle, alg: Any, delta: Any) -> Any:
    """Returns the state as it was; the counter is moved on by what ``delta`` outputs use."""
    _philox.check_algorithm(alg)
    words = _read(state, resource.name)
    _skip(state, resource.name, words, _philox.split_words(delta))
    return _philox.join_words(jnp.reshape(words, (3, 2)), np.int64)


@kernel("RngSkip", static=("algorithm",))
def rng_skip(state: Any, resource: Handle, algorithm: Any, delta: Any) -> tuple[()]:
    _philox.check_algorithm(algorithm)
    _skip(state, resource.name, _read(state, resource.name), _philox.split_words(delta))
    return ()


def _take(state: Any, resource: Handle, algorithm: Any, sizes: tuple[int, ...]) -> tuple[Any, Any]:
    """Returns the words of key and counter for outputs, and moves the counter past them."""
    _philox.check_algorithm(algorithm)
    words = _read(state, resource.name)
    count = _philox.split_words(np.asarray(math.prod(sizes), np.uint64))
    _skip(state, resource.name, words, count)
    return words[4:], words[:4]


@kernel("StatefulUniform", static=("algorithm", "shape"))
def stateful_uniform(
    state: Any, resource: Handle, algorithm: Any, shape: Any, *, dtype: int
) -> Any:
    words = _take(state, resource, algorithm, ints(shape))
    return _philox_distributions.uniform(*words, ints(shape), dtypes.dtype_from_number(dtype))


@kernel("StatefulStandardNormalV2", static=("algorithm", "shape"))
def stateful_standard_normal(
    state: Any, resource: Handle, algorithm: Any, shape: Any, *, dtype: int
) -> Any:
    words = _take(state, resource, algorithm, ints(shape))
    return _philox_distributions.normal(*words, ints(shape), dtypes.dtype_from_number(dtype))


@kernel("StatefulTruncatedNormal", static=("algorithm", "shape"))
def stateful_truncated_normal(
    state: Any, resource: Handle, algorithm: Any, shape: Any, *, dtype: int
) -> Any:
    words = _take(state, resource, algorithm, ints(shape))
    return _philox_distributions.truncated_normal(
        *words, ints(shape), dtypes.dtype_from_number(dtype)
    )


@kernel("StatefulUniformInt", static=("algorithm", "shape"))
def stateful_uniform_int(
    state: Any,
    resource: Handle,
    algorithm: Any,
    shape: Any,
    minval: Any,
    maxval: Any,
    *,
    dtype: int,
) -> Any:
    words = _take(state, resource, algorithm, ints(shape))
    bounds = (minval, maxval)
    return _philox_distributions.uniform_int(
        *words, ints(shape), *bounds, dtypes.dtype_from_number(dtype)
    )


@kernel("StatefulUniformFullInt", static=("algorithm", "shape"))
def stateful_uniform_full_int(
    state: Any, resource: Handle, algorithm: Any, shape: Any, *, dtype: int
) -> Any:
    words = _take(state, resource, algorithm, ints(shape))
    return _philox_distributions.full_range_int(
        *words, ints(shape), dtypes.dtype_from_number(dtype)
    )
