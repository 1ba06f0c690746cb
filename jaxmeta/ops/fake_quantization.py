"""Quantization in training: values on a grid, as floats, with gradients that pass the grid by."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import errors
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._rounding import divide

_Levels = tuple[int, int]


def _levels(num_bits: int, narrow_range: bool) -> _Levels:
    """Returns the first and the last integer."""
    if not 2 <= num_bits <= 16:
        raise errors.InvalidArgumentError(f"num_bits must be from 2 to 16, it is {num_bits}")
    return int(narrow_range), (1 << num_bits) - 1


def _nudge(low: Any, high: Any, levels: _Levels) -> tuple[Any, Any, Any]:
    """Returns a range and its step; the range is moved so that 0 is on the grid."""
    first, last = (np.float32(level) for level in levels)
    step = divide(jnp.asarray(high - low), last - first)
    zero = jnp.clip(jnp.floor(first - low / step + np.float32(0.5)), first, last)
    return (first - zero) * step, (last - zero) * step, step


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _quantize(x: Any, low: Any, high: Any, levels: _Levels) -> Any:
    """Returns values on the grid; zeros where the range is empty at zero."""
    nudged_low, nudged_high, step = _nudge(low, high, levels)
    inverse = 1 / step
    half = np.float32(0.5)
    zero = jnp.floor(-nudged_low * inverse + half)
    clamped = jnp.clip(x, nudged_low, nudged_high)
    quantized = jnp.floor((clamped - nudged_low) * inverse - zero + half) * step
    return jnp.where((low == 0) & (high == 0), 0, quantized)


@_quantize.defjvp
def _quantize_jvp(levels: _Levels, primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Passes the tangents of values inside the range; those outside move as its ends do.

    All pass where the range is empty at zero.
    """
    x, low, high = primals
    of_x, of_low, of_high = tangents
    nudged_low, nudged_high, _ = _nudge(low, high, levels)
    is_empty = (low == 0) & (high == 0)
    tangent = (
        jnp.where(is_empty | ((x >= nudged_low) & (x <= nudged_high)), of_x, 0)
        + jnp.where(~is_empty & (x < nudged_low), of_low, 0)
        + jnp.where(~is_empty & (x > nudged_high), of_high, 0)
    )
    return _quantize(x, low, high, levels), tangent


def _fake_quantize(x: Any, low: Any, high: Any, num_bits: int, narrow_range: bool) -> Any:
    arrays = [jnp.asarray(array) for array in (x, low, high)]
    return _quantize(*arrays, _levels(num_bits, narrow_range))


@kernel("FakeQuantWithMinMaxArgs")
def fake_quantize_by_attrs(
    inputs: Any, *, min: float, max: float, num_bits: int, narrow_range: bool
) -> Any:
    return _fake_quantize(inputs, np.float32(min), np.float32(max), num_bits, narrow_range)


@kernel("FakeQuantWithMinMaxArgsGradient")
def fake_quantize_by_attrs_grad(
    gradients: Any, inputs: Any, *, min: float, max: float, num_bits: int, narrow_range: bool
) -> Any:
    low, high, _ = _nudge(np.float32(min), np.float32(max), _levels(num_bits, narrow_range))
    return jnp.where((inputs >= low) & (inputs <= high), gradients, 0)


@kernel("FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel")
def fake_quantize(inputs: Any, min: Any, max: Any, *, num_bits: int, narrow_range: bool) -> Any:
    return _fake_quantize(inputs, min, max, num_bits, narrow_range)


@kernel("FakeQuantWithMinMaxVarsGradient", "FakeQuantWithMinMaxVarsPerChannelGradient")
def fake_quantize_grad(
    gradients: Any, inputs: Any, min: Any, max: Any, *, num_bits: int, narrow_range: bool
) -> Any:
    def forward(*arrays: Any) -> Any:
        return fake_quantize(*arrays, num_bits=num_bits, narrow_range=narrow_range)

    arrays = [jnp.asarray(array) for array in (inputs, min, max)]
    return list(jax.vjp(forward, *arrays)[1](jnp.asarray(gradients)))
