"""Quantization to integers and back, in one op or in two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import dtypes, errors
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._gradients import reading_attrs_of
from jaxmeta.ops._rounding import divide, round_away

_LARGEST: Final = np.finfo(np.float32).max


_ROUNDINGS: Final[dict[bytes, Callable[[Any], Any]]] = {
    b"HALF_TO_EVEN": jnp.round,
    b"HALF_UP": lambda x: jnp.floor(x + np.asarray(0.5, x.dtype)),
    b"HALF_AWAY_FROM_ZERO": round_away,
}


def _along(bounds: Any, axis: int, rank: int) -> Any:
    """Returns bounds that broadcast: one for all, or one for each slice along an axis."""
    if axis < 0:
        return jnp.reshape(bounds, ())
    shape = [1] * rank
    shape[axis] = -1
    return jnp.reshape(bounds, shape)


def _symmetric_scale(low: Any, high: Any, first: Any, last: Any) -> tuple[Any, Any, Any]:
    """Returns a scale that takes 0 to 0, and the bounds that it takes to the integers' ends."""
    first, last = np.asarray(first, low.dtype), np.asarray(last, low.dtype)
    largest = np.asarray(_LARGEST, low.dtype)
    below, above = first * low > 0, last * high > 0
    from_low = jnp.where(below, first / jnp.where(below, low, 1), largest)
    from_high = jnp.where(above, last / jnp.where(above, high, 1), largest)
    scale = jnp.minimum(from_low, from_high)
    return scale, first / scale, last / scale


# --- in one op ---------------------------------------------------------------------------------


def _on_grid(
    x: Any,
    low: Any,
    high: Any,
    num_bits: int,
    signed_input: bool,
    range_given: bool,
    round_mode: bytes = b"HALF_TO_EVEN",
    narrow_range: bool = False,
    axis: int = -1,
) -> Any:
    x = jnp.asarray(x)
    if not range_given:
        axes = [a for a in range(x.ndim) if a != axis] if axis >= 0 else None
        low, high = jnp.min(x, axes), jnp.max(x, axes)
    low, high = _along(low, axis, x.ndim), _along(high, axis, x.ndim)
    if signed_input:
        last = (1 << (num_bits - 1)) - 1
        first = -last if narrow_range else -last - 1
    else:
        first, last = 0, (1 << num_bits) - 1
    scale, low, high = _symmetric_scale(low, high, first, last)
    clamped = jnp.clip(x, low, high) if range_given else x
    return _ROUNDINGS[round_mode](clamped * scale) / scale


def _straight_through(x: Any, quantized: Any, passes: Any = None) -> Any:
    """Returns quantized values whose tangents are those of the values where they pass."""

    @jax.custom_jvp
    def replace(x: Any, quantized: Any) -> Any:
        return quantized

    @replace.defjvp
    def _(primals: Any, tangents: Any) -> tuple[Any, Any]:
        tangent = tangents[0] if passes is None else jnp.where(passes, tangents[0], 0)
        return primals[1], tangent

    return replace(jnp.asarray(x), jax.lax.stop_gradient(quantized))


@kernel("QuantizeAndDequantize")
def quantize_and_dequantize(
    input: Any,
    *,
    signed_input: bool,
    num_bits: int,
    range_given: bool,
    input_min: float,
    input_max: float,
) -> Any:
    low, high = (np.asarray(bound, input.dtype) for bound in (input_min, input_max))
    return _straight_through(input, _on_grid(input, low, high, num_bits, signed_input, range_given))


@kernel("QuantizeAndDequantizeV2")
def quantize_and_dequantize_v2(
    input: Any,
    input_min: Any,
    input_max: Any,
    *,
    signed_input: bool,
    num_bits: int,
    range_given: bool,
    round_mode: bytes = b"HALF_TO_EVEN",
    narrow_range: bool,
    axis: int,
) -> Any:
    options = (num_bits, signed_input, range_given, round_mode, narrow_range, axis)
    return _straight_through(input, _on_grid(input, input_min, input_max, *options))


def _quantize_of_inputs(input: Any, low: Any, high: Any, num_bits: Any, **attrs: Any) -> Any:
    return quantize_and_dequantize_v2(input, low, high, num_bits=int(num_bits), **attrs)


def _quantize_in_range(input: Any, low: Any, high: Any, **attrs: Any) -> Any:
    """Passes gradients in the range only, where versions before the fourth pass all."""
    quantized = quantize_and_dequantize_v2(input, low, high, **attrs)
    return _straight_through(input, quantized, _is_in_range(input, low, high, attrs["axis"]))


kernel("QuantizeAndDequantizeV3", static=("num_bits",))(
    reading_attrs_of("QuantizeAndDequantizeV3", _quantize_of_inputs, quantize_and_dequantize_v2)
)
kernel("QuantizeAndDequantizeV4")(
    reading_attrs_of("QuantizeAndDequantizeV4", _quantize_in_range, quantize_and_dequantize_v2)
)


def _is_in_range(x: Any, low: Any, high: Any, axis: int) -> Any:
    return (x >= _along(low, axis, x.ndim)) & (x <= _along(high, axis, x.ndim))


@kernel("QuantizeAndDequantizeV4Grad")
def quantize_and_dequantize_v4_grad(
    gradients: Any, input: Any, input_min: Any, input_max: Any, *, axis: int
) -> list[Any]:
    passes = _is_in_range(input, input_min, input_max, axis)
    zeros = (jnp.zeros_like(input_min), jnp.zeros_like(input_max))
    return [jnp.where(passes, gradients, 0), *zeros]


# --- in two ops --------------------------------------------------------------------------------


def _limits(dtype: Any) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def _half_range(dtype: Any) -> float:
    first, last = _limits(dtype)
    return (last - first + 1) / 2 if first else 0.0


def _to_integers(x: Any, first: int, last: int, dtype: Any) -> Any:
    # The largest int32 is not a float32: what is above it must not wrap.
    return jnp.where(x >= np.float32(last), last, jnp.clip(x, first, last).astype(dtype)).astype(
        dtype
    )


def _quantize_scaled(
    x: Any, low: Any, high: Any, dtype: Any, round_mode: bytes, narrow_range: bool
) -> tuple[Any, Any, Any]:
    first, last = _limits(dtype)
    first += narrow_range
    scale, low, high = _symmetric_scale(low, high, first, last)
    scaled = _ROUNDINGS[round_mode](jnp.clip(x, low, high) * scale)
    return _to_integers(scaled, first, last, dtype), low, high


def _quantize_combined(x: Any, low: Any, high: Any, dtype: Any) -> Any:
    first, last = _limits(dtype)
    scale = np.float32(last - first) / (high - low)
    scaled = (jnp.clip(x, low, high) - low) * scale - np.float32(_half_range(dtype))
    return _to_integers(round_away(scaled), first, last, dtype)


def _quantize_first(x: Any, low: Any, high: Any, dtype: Any) -> Any:
    """The scale is that of as many steps as there are integers, and the range one step more."""
    first, last = _limits(dtype)
    steps = float(last - first + 1)
    scale = np.float32(steps) / ((high - low) * np.float32(steps / (steps - 1)))
    scaled = round_away(x * scale) - round_away(low * scale) + np.float32(first)
    return _to_integers(scaled, first, last, dtype)


@kernel("QuantizeV2")
def quantize(
    input: Any,
    min_range: Any,
    max_range: Any,
    *,
    T: int,
    mode: bytes,
    round_mode: bytes,
    narrow_range: bool,
    axis: int,
    ensure_minimum_range: float,
) -> list[Any]:
    """Returns integers, and the range that they stand for."""
    dtype, x = dtypes.dtype_from_number(T), jnp.asarray(input)
    low = jnp.minimum(min_range, 0)
    size = jnp.maximum(1, jnp.maximum(jnp.abs(min_range), jnp.abs(max_range)))
    least = low + size * np.float32(ensure_minimum_range)
    high = jnp.maximum(jnp.maximum(max_range, least), 0)
    wide_low, wide_high = _along(low, axis, x.ndim), _along(high, axis, x.ndim)
    if mode == b"SCALED":
        bounds = (wide_low, wide_high)
        result, *found = _quantize_scaled(x, *bounds, dtype, round_mode, narrow_range)
        low, high = (jnp.reshape(bound, np.shape(min_range)) for bound in found)
    elif mode == b"MIN_COMBINED":
        result = _quantize_combined(x, wide_low, wide_high, dtype)
    else:
        result = _quantize_first(x, wide_low, wide_high, dtype)
    return [result, low, high]


@kernel("Dequantize")
def dequantize(
    input: Any,
    min_range: Any,
    max_range: Any,
    *,
    mode: bytes,
    narrow_range: bool,
    axis: int,
    dtype: int,
) -> Any:
    x = jnp.asarray(input)
    first, last = _limits(x.dtype)
    low, high = _along(min_range, axis, x.ndim), _along(max_range, axis, x.ndim)
    wide = x.astype(np.float32)
    if mode == b"SCALED":
        scale = divide(high, last)
        if first:
            scale = jnp.maximum(scale, divide(low, first + narrow_range))
        result = wide * scale
    elif mode == b"MIN_COMBINED":
        scale = divide(high - low, last - first)
        result = (wide + np.float32(_half_range(x.dtype))) * scale + low
    elif mode == b"MIN_FIRST":
        scale = divide(high - low, last - first)
        is_wide = high > low
        start = jnp.where(is_wide, round_away(low / jnp.where(is_wide, scale, 1)) * scale, low)
        result = start + (wide - np.float32(first)) * scale
    else:
        raise errors.InvalidArgumentError(f"Dequantize has no mode {mode.decode()!r}")
    return result.astype(dtypes.dtype_from_number(dtype))
