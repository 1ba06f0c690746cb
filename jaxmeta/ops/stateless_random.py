"""TensorFlow's stateless random ops: the same seed gives TensorFlow's own numbers.

The numbers are those of its CPU kernels up to the rounding of logarithms, sines and cosines. The
ops of version 2 take a key and a counter, which other ops make of the seed.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import dtypes
from jaxmeta.ops import _philox, _philox_distributions, _philox_rejection
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._operands import ints

# --- keys and counters -------------------------------------------------------------------------


def _key_and_counter(seed: Any) -> tuple[Any, Any]:
    key, counter = _philox.key_and_counter_of_seed(seed)
    return (
        _philox.join_words(jnp.reshape(key, (1, 2))),
        _philox.join_words(jnp.reshape(counter, (2, 2))),
    )


@kernel("StatelessRandomGetKeyCounter")
def stateless_random_get_key_counter(seed: Any) -> tuple[Any, Any]:
    return _key_and_counter(seed)


@kernel("StatelessRandomGetKeyCounterAlg")
def stateless_random_get_key_counter_alg(seed: Any) -> tuple[Any, Any, Any]:
    return *_key_and_counter(seed), np.int32(_philox.ALGORITHM)


@kernel("StatelessRandomGetAlg")
def stateless_random_get_alg() -> Any:
    return np.int32(_philox.ALGORITHM)


# --- version 1: of a seed ------------------------------------------------------------------------


@kernel("StatelessRandomUniform", static=("shape",))
def stateless_random_uniform(shape: Any, seed: Any, *, dtype: int) -> Any:
    words = _philox.key_and_counter_of_seed(seed)
    return _philox_distributions.uniform(*words, ints(shape), dtypes.dtype_from_number(dtype))


@kernel("StatelessRandomNormal", static=("shape",))
def stateless_random_normal(shape: Any, seed: Any, *, dtype: int) -> Any:
    words = _philox.key_and_counter_of_seed(seed)
    return _philox_distributions.normal(*words, ints(shape), dtypes.dtype_from_number(dtype))


@kernel("StatelessTruncatedNormal", static=("shape",))
def stateless_truncated_normal(shape: Any, seed: Any, *, dtype: int) -> Any:
    words = _philox.key_and_counter_of_seed(seed)
    return _philox_distributions.truncated_normal(
        *words, ints(shape), dtypes.dtype_from_number(dtype)
    )


@kernel("StatelessRandomUniformInt", static=("shape",))
def stateless_random_uniform_int(
    shape: Any, seed: Any, minval: Any, maxval: Any, *, dtype: int
) -> Any:
    words = _philox.key_and_counter_of_seed(seed)
    bounds = (minval, maxval)
    return _philox_distributions.uniform_int(
        *words, ints(shape), *bounds, dtypes.dtype_from_number(dtype)
    )


@kernel("StatelessRandomUniformFullInt", static=("shape",))
def stateless_random_uniform_full_int(shape: Any, seed: Any, *, dtype: int) -> Any:
    words = _philox.key_and_counter_of_seed(seed)
    return _philox_distributions.full_range_int(
        *words, ints(shape), dtypes.dtype_from_number(dtype)
    )


@kernel("StatelessMultinomial", static=("num_samples",))
def stateless_multinomial(logits: Any, num_samples: Any, seed: Any, *, output_dtype: int) -> Any:
    words = _philox.key_and_counter_of_seed(seed)
    return _philox_distributions.categories(*words, logits, int(num_samples), output_dtype)


@kernel("StatelessRandomGammaV2", static=("shape",))
def stateless_random_gamma(shape: Any, seed: Any, alpha: Any) -> Any:
    words = _philox.key_and_counter_of_seed(seed)
    return _philox_rejection.gamma(*words, ints(shape), alpha)


@kernel("StatelessRandomPoisson", static=("shape",))
def stateless_random_poisson(shape: Any, seed: Any, lam: Any, *, dtype: int) -> Any:
    words = _philox.key_and_counter_of_seed(seed)
    return _philox_rejection.poisson(*words, ints(shape), lam, dtypes.dtype_from_number(dtype))


# --- version 2: of a key and a counter -----------------------------------------------------------


@kernel("StatelessRandomUniformV2", static=("shape", "alg"))
def stateless_random_uniform_v2(shape: Any, key: Any, counter: Any, alg: Any, *, dtype: int) -> Any:
    words = _philox.key_and_counter_of_tensors(key, counter, alg)
    return _philox_distributions.uniform(*words, ints(shape), dtypes.dtype_from_number(dtype))


@kernel("StatelessRandomNormalV2", static=("shape", "alg"))
def stateless_random_normal_v2(shape: Any, key: Any, counter: Any, alg: Any, *, dtype: int) -> Any:
    words = _philox.key_and_counter_of_tensors(key, counter, alg)
    return _philox_distributions.normal(*words, ints(shape), dtypes.dtype_from_number(dtype))


@kernel("StatelessTruncatedNormalV2", static=("shape", "alg"))
def stateless_truncated_normal_v2(
    shape: Any, key: Any, counter: Any, alg: Any, *, dtype: int
) -> Any:
    words = _philox.key_and_counter_of_tensors(key, counter, alg)
    return _philox_distributions.truncated_normal(
        *words, ints(shape), dtypes.dtype_from_number(dtype)
    )


@kernel("StatelessRandomUniformIntV2", static=("shape", "alg"))
def stateless_random_uniform_int_v2(
    shape: Any, key: Any, counter: Any, alg: Any, minval: Any, maxval: Any, *, dtype: int
) -> Any:
    words = _philox.key_and_counter_of_tensors(key, counter, alg)
    bounds = (minval, maxval)
    return _philox_distributions.uniform_int(
        *words, ints(shape), *bounds, dtypes.dtype_from_number(dtype)
    )


@kernel("StatelessRandomUniformFullIntV2", static=("shape", "alg"))
def stateless_random_uniform_full_int_v2(
    shape: Any, key: Any, counter: Any, alg: Any, *, dtype: int
) -> Any:
    words = _philox.key_and_counter_of_tensors(key, counter, alg)
    return _philox_distributions.full_range_int(
        *words, ints(shape), dtypes.dtype_from_number(dtype)
    )


@kernel("StatelessRandomGammaV3", static=("shape", "alg"))
def stateless_random_gamma_v3(shape: Any, key: Any, counter: Any, alg: Any, alpha: Any) -> Any:
    words = _philox.key_and_counter_of_tensors(key, counter, alg)
    return _philox_rejection.gamma(*words, ints(shape), alpha)


@kernel("RandomGammaGrad")
def random_gamma_grad(alpha: Any, sample: Any) -> Any:
    alpha, sample = jnp.broadcast_arrays(alpha, sample)
    return jax.lax.random_gamma_grad(alpha, sample)
