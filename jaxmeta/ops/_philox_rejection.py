"""Gamma and Poisson numbers by rejection, in the order in which TensorFlow's CPU kernels draw them.

Each output has counters of its own, 256 after those of the one before. All are computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta.ops import _philox
from jaxmeta.ops._philox_distributions import _normals_of_blocks, to_doubles

_LOG_RESERVED: Final = 8  # log2 of the blocks set apart for each output


class _Stream(NamedTuple):
    """Where the outputs stand in their blocks, and the pairs of numbers that are not used up."""

    used: jax.Array
    uniforms: jax.Array
    uniforms_left: jax.Array
    normals: jax.Array
    normals_left: jax.Array


def _new_stream(count: int) -> _Stream:
    none, pairs = jnp.zeros(count, np.int32), jnp.zeros((count, 2), np.float64)
    return _Stream(jnp.zeros(count, np.uint32), pairs, none, pairs, none)


class _Source:
    """Draws for many outputs at once, each from its own counters."""

    def __init__(self, key: Any, counter: Any, count: int) -> None:
        self._key = key
        self._start = _philox.counters(counter, count, _LOG_RESERVED)

    def _blocks(self, used: jax.Array) -> list[jax.Array]:
        return _philox.make_blocks(self._key, _philox.add_to_counter(self._start, [used]))

    def uniform(self, stream: _Stream, is_needed: jax.Array) -> tuple[jax.Array, _Stream]:
        words = self._blocks(stream.used)
        pairs = jnp.stack([to_doubles(*words[:2]), to_doubles(*words[2:])], axis=-1)
        value, pairs, left, used = _take(
            pairs, stream.uniforms, stream.uniforms_left, stream.used, is_needed
        )
        return value, stream._replace(used=used, uniforms=pairs, uniforms_left=left)

    def normal(self, stream: _Stream, is_needed: jax.Array) -> tuple[jax.Array, _Stream]:
        pairs = _normals_of_blocks(self._blocks(stream.used), is_double=True)
        value, pairs, left, used = _take(
            pairs, stream.normals, stream.normals_left, stream.used, is_needed
        )
        return value, stream._replace(used=used, normals=pairs, normals_left=left)


def _take(fresh: Any, held: Any, left: Any, used: Any, is_needed: Any) -> tuple[Any, ...]:
    """Returns the last number that is left of each pair, where needed of a fresh one."""
    is_empty = is_needed & (left == 0)
    pairs = jnp.where(is_empty[:, None], fresh, held)
    left = jnp.where(is_empty, 2, left) - is_needed.astype(np.int32)
    value = jnp.where(left == 1, pairs[:, 1], pairs[:, 0])
    return value, pairs, left, used + is_empty.astype(np.uint32)


def _per_output(parameters: Any, shape: tuple[int, ...]) -> tuple[jax.Array, Callable[[Any], Any]]:
    """Returns the parameter of each output in TensorFlow's order, and what arranges the outputs.

    The order is parameter by parameter, the samples of each one after the other.
    """
    count = math.prod(shape) // max(parameters.size, 1)
    flat = jnp.reshape(parameters, -1)
    repeated = jnp.repeat(flat, count, total_repeat_length=math.prod(shape))

    def arrange(values: jax.Array) -> jax.Array:
        return jnp.reshape(jnp.reshape(values, (flat.size, count)).T, shape)

    return repeated, arrange


def _until_all(accept: Callable[[Any, Any], Any], source_stream: _Stream, count: int) -> jax.Array:
    """Returns the outputs that rounds of drawing give, until each has one."""

    def step(carry: Any) -> Any:
        stream, result, is_done = carry
        stream, value, is_accepted = accept(stream, ~is_done)
        return stream, jnp.where(is_accepted, value, result), is_done | is_accepted

    first = (source_stream, jnp.zeros(count, np.float64), jnp.zeros(count, np.bool_))
    return jnp.asarray(lax.while_loop(lambda carry: ~jnp.all(carry[2]), step, first)[1])


@jax.custom_jvp
def _keep_gradient(alpha: jax.Array, sample: jax.Array) -> jax.Array:
    """Returns the sample; its derivative by alpha is that of the distribution's quantile."""
    del alpha
    return sample


@_keep_gradient.defjvp
def _keep_gradient_jvp(primals: Any, tangents: Any) -> Any:
    alpha, sample = primals
    return sample, tangents[0] * lax.random_gamma_grad(alpha, sample) + tangents[1] * 0


def gamma(key: Any, counter: Any, shape: tuple[int, ...], alpha: Any) -> jax.Array:
    """Returns numbers of gamma distributions at rate 1, by Marsaglia and Tsang's method.

    Args:
        key: the words of the key.
        counter: the words of the counter.
        shape: of the result; it ends with the shape of ``alpha``.
        alpha: concentrations.
    """
    size, alpha = math.prod(shape), jnp.asarray(alpha)
    with jax.enable_x64(True):
        wide, arrange = _per_output(lax.stop_gradient(alpha).astype(np.float64), shape)
        source = _Source(key, counter, size)
        is_one, is_small = wide == 1, wide < 1
        d = wide + jnp.where(is_small, 2.0 / 3, -1.0 / 3)
        c = 1.0 / 3 / jnp.sqrt(d)

        def accept(stream: Any, is_open: Any) -> Any:
            x, stream = source.normal(stream, is_open & ~is_one)
            root = 1 + c * x
            goes_on = is_open & (is_one | (root > 0))
            v = root * root * root
            u, stream = source.uniform(stream, goes_on)
            squeezed = u < 1 - 0.0331 * (x * x) * (x * x)
            is_below = jnp.log(u) < 0.5 * x * x + d * (1 - v + jnp.log(v))
            accepted = goes_on & (is_one | squeezed | is_below)
            boost, stream = source.uniform(stream, accepted & is_small)
            result = d * v * jnp.where(is_small, boost ** (1 / wide), 1.0)
            return stream, jnp.where(is_one, -jnp.log1p(-u), result), accepted

        samples = arrange(_until_all(accept, _new_stream(size), size))
    return _keep_gradient(jnp.broadcast_to(alpha, shape), samples.astype(alpha.dtype))


def poisson(key: Any, counter: Any, shape: tuple[int, ...], rate: Any, dtype: Any) -> Any:
    """Returns counts of Poisson distributions: Knuth's method below a rate of 10, else Hormann's.

    Args:
        key: the words of the key.
        counter: the words of the counter.
        shape: of the result; it ends with the shape of ``rate``.
        rate: means.
        dtype: of the result.
    """
    size = math.prod(shape)
    bounds: Any = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else jnp.finfo(dtype)
    with jax.enable_x64(True):
        wide, arrange = _per_output(jnp.asarray(rate).astype(np.float64), shape)
        source = _Source(key, counter, size)
        is_low, is_infinite = wide < 10, jnp.isposinf(wide)
        knuth = _by_products(source, jnp.where(is_low, wide, 0.0), is_low)
        large = jnp.where(is_low | is_infinite, 10.0, wide)
        hormann = _by_transformation(source, large, ~is_low & ~is_infinite, float(bounds.max))
        result = jnp.where(is_infinite, np.inf, jnp.where(is_low, knuth, hormann))
        return arrange(result).astype(jax.dtypes.canonicalize_dtype(dtype))


def _by_products(source: _Source, rate: jax.Array, is_wanted: jax.Array) -> jax.Array:
    """Returns how many uniforms multiply to more than e**-rate."""
    limit = jnp.exp(-rate)

    def step(carry: Any) -> Any:
        stream, product, count, is_open = carry
        u, stream = source.uniform(stream, is_open)
        product = jnp.where(is_open, product * u, product)
        is_open = is_open & (product > limit)
        return stream, product, count + is_open, is_open

    ones, zeros = jnp.ones_like(rate), jnp.zeros_like(rate)
    first = (_new_stream(rate.size), ones, zeros, is_wanted)
    return jnp.asarray(lax.while_loop(lambda carry: jnp.any(carry[3]), step, first)[2])


def _by_transformation(
    source: _Source, rate: jax.Array, is_wanted: jax.Array, highest: float
) -> jax.Array:
    b = 0.931 + 2.53 * jnp.sqrt(rate)
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)

    def accept(stream: Any, is_open: Any) -> Any:
        u, stream = source.uniform(stream, is_open)
        u = u - 0.5
        v, stream = source.uniform(stream, is_open)
        shifted = 0.5 - jnp.abs(u)
        k = jnp.floor((2 * a / shifted + b) * u + rate + 0.43)
        is_inside = (shifted >= 0.07) & (v <= 0.9277 - 3.6224 / (b - 2))
        is_outside = (k < 0) | ((shifted < 0.013) & (v > shifted))
        s = jnp.log(v * inverse_alpha / (a / (shifted * shifted) + b))
        t = -rate + k * jnp.log(rate) - lax.lgamma(k + 1)
        accepted = is_inside | (~is_outside & (s <= t))
        return stream, k, (is_open & accepted & (k <= highest)) | (is_open & ~is_wanted)

    return _until_all(accept, _new_stream(rate.size), rate.size)
