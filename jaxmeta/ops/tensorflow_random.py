"""TensorFlow's stateful random ops: of attrs ``seed`` and ``seed2``, TensorFlow's own numbers.

Where both are 0 the numbers are others in each program, as in TensorFlow. How many blocks of its
stream an op has used is counted in the state, so that each run gives the numbers of the same run in
TensorFlow: those of its CPU kernels up to the rounding of logarithms, sines and cosines.
"""

from __future__ import annotations

import math
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from jaxmeta import dtypes
from jaxmeta.ops import _philox, _philox_distributions, _philox_rejection
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._operands import ints

_BLOCKS_PER_OUTPUT: Final = 256


def _of_outputs(state: Any, node_name: str, seed: int, seed2: int, outputs: int) -> tuple[Any, Any]:
    return _philox.take_blocks(state, node_name, seed, seed2, outputs * _BLOCKS_PER_OUTPUT)


@kernel("RandomUniform", static=("shape",))
def random_uniform(
    state: Any, shape: Any, *, dtype: int, seed: int, seed2: int, node_name: str
) -> Any:
    sizes = ints(shape)
    words = _of_outputs(state, node_name, seed, seed2, math.prod(sizes))
    return _philox_distributions.uniform(*words, sizes, dtypes.dtype_from_number(dtype))


@kernel("RandomStandardNormal", static=("shape",))
def random_standard_normal(
    state: Any, shape: Any, *, dtype: int, seed: int, seed2: int, node_name: str
) -> Any:
    sizes = ints(shape)
    words = _of_outputs(state, node_name, seed, seed2, math.prod(sizes))
    return _philox_distributions.normal(*words, sizes, dtypes.dtype_from_number(dtype))


@kernel("TruncatedNormal", static=("shape",))
def truncated_normal(
    state: Any, shape: Any, *, dtype: int, seed: int, seed2: int, node_name: str
) -> Any:
    sizes = ints(shape)
    words = _of_outputs(state, node_name, seed, seed2, math.prod(sizes))
    return _philox_distributions.truncated_normal(*words, sizes, dtypes.dtype_from_number(dtype))


@kernel("RandomUniformInt", static=("shape",))
def random_uniform_int(
    state: Any,
    shape: Any,
    minval: Any,
    maxval: Any,
    *,
    Tout: int,
    seed: int,
    seed2: int,
    node_name: str,
) -> Any:
    sizes = ints(shape)
    words = _of_outputs(state, node_name, seed, seed2, math.prod(sizes))
    return _philox_distributions.uniform_int(
        *words, sizes, minval, maxval, dtypes.dtype_from_number(Tout)
    )


@kernel("RandomShuffle")
def random_shuffle(state: Any, value: Any, *, seed: int, seed2: int, node_name: str) -> Any:
    value = jnp.asarray(value)
    if value.ndim == 0 or value.shape[0] <= 1:
        return value
    blocks = -(-(value.shape[0] - 1) // 4)
    words = _philox.take_blocks(state, node_name, seed, seed2, blocks)
    return value[_philox_distributions.permutation(*words, value.shape[0])]


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
    reserved = -(-int(num_samples) // 4) * 4 * 2  # each number is made of two words
    words = _of_outputs(state, node_name, seed, seed2, logits.shape[0] * reserved)
    return _philox_distributions.categories(*words, logits, int(num_samples), output_dtype)


@kernel("RandomGamma", static=("shape",))
def random_gamma(
    state: Any, shape: Any, alpha: Any, *, seed: int, seed2: int, node_name: str
) -> Any:
    sizes = (*ints(shape), *alpha.shape)
    words = _of_outputs(state, node_name, seed, seed2, math.prod(sizes))
    return _philox_rejection.gamma(*words, sizes, alpha)


@kernel("RandomPoissonV2", static=("shape",))
def random_poisson(
    state: Any, shape: Any, rate: Any, *, dtype: int, seed: int, seed2: int, node_name: str
) -> Any:
    sizes = (*ints(shape), *rate.shape)
    words = _of_outputs(state, node_name, seed, seed2, math.prod(sizes))
    return _philox_rejection.poisson(*words, sizes, rate, dtypes.dtype_from_number(dtype))


@kernel("RandomPoisson", static=("shape",))
def random_poisson_of_rates_dtype(
    state: Any, shape: Any, rate: Any, *, seed: int, seed2: int, node_name: str
) -> Any:
    sizes = (*ints(shape), *rate.shape)
    words = _of_outputs(state, node_name, seed, seed2, math.prod(sizes))
    return _philox_rejection.poisson(*words, sizes, rate, np.dtype(rate.dtype))
