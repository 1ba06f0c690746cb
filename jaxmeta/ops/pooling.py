"""TensorFlow's pooling of images and volumes, and its gradients."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._gradients import pull_back, reading_attrs_of, transpose
from jaxmeta.ops._operands import ints
from jaxmeta.ops._window import (
    MONOIDS,
    Window,
    pairs_of,
    reduce_windows,
    same_padding,
    spatial_axes,
)


def _pooling_window(
    x: Any,
    ksize: tuple[int, ...],
    strides: tuple[int, ...],
    padding: bytes,
    explicit: tuple[int, ...] = (),
) -> Window:
    if padding == b"EXPLICIT":
        pads = pairs_of(explicit)
    elif padding == b"SAME":
        pads = same_padding(x.shape, ksize, strides, (1,) * x.ndim)
    else:
        pads = ((0, 0),) * x.ndim
    return Window.of(ksize, strides, pads)


def max_pool(
    input: Any,
    *,
    ksize: tuple[int, ...],
    strides: tuple[int, ...],
    padding: bytes,
    explicit_paddings: tuple[int, ...] = (),
    data_format: bytes = b"NHWC",
) -> Any:
    """Returns the maxima of windows; sizes and strides are in the order of the input's axes."""
    spatial_axes(data_format, input.ndim)
    window = _pooling_window(input, ksize, strides, padding, explicit_paddings)
    return reduce_windows(input, MONOIDS["max"], window)


def avg_pool(
    value: Any,
    *,
    ksize: tuple[int, ...],
    strides: tuple[int, ...],
    padding: bytes,
    data_format: bytes,
) -> Any:
    """Returns the means of the elements that windows have in the array, the padding uncounted."""
    spatial_axes(data_format, value.ndim)
    window = _pooling_window(value, ksize, strides, padding)
    total = reduce_windows(value, MONOIDS["add"], window)
    if padding == b"VALID":
        return total / np.asarray(math.prod(ksize), value.dtype)
    ones = jnp.ones(value.shape[1:], value.dtype)[None]
    return total / reduce_windows(ones, MONOIDS["add"], window)


def _max_pool_grad(orig_input: Any, orig_output: Any, grad: Any, **attrs: Any) -> Any:
    del orig_output  # computed anew, or not at all
    return pull_back(functools.partial(max_pool, **attrs), orig_input, grad)


def _max_pool_grad_grad(orig_input: Any, orig_output: Any, grad: Any, **attrs: Any) -> Any:
    """Returns what the gradient's gradient is: the elements where the windows' maxima are."""
    del orig_output
    return _select(orig_input, grad, **attrs)


def _avg_pool_grad(orig_input_shape: Any, grad: Any, **attrs: Any) -> Any:
    return transpose(functools.partial(avg_pool, **attrs), orig_input_shape, grad)


def _with_sizes_as_inputs(run: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a kernel whose last two inputs are the sizes and strides of windows."""

    def run_of_sizes(*inputs: Any, **attrs: Any) -> Any:
        *arrays, ksize, strides = inputs
        return run(*arrays, ksize=ints(ksize), strides=ints(strides), **attrs)

    return run_of_sizes


for _op in ("MaxPool", "MaxPool3D"):
    kernel(_op)(reading_attrs_of(_op, max_pool))
    kernel(f"{_op}Grad")(reading_attrs_of(f"{_op}Grad", _max_pool_grad, max_pool))
    kernel(f"{_op}GradGrad")(reading_attrs_of(f"{_op}GradGrad", _max_pool_grad_grad, max_pool))
for _op, _run in (
    ("MaxPoolV2", max_pool),
    ("MaxPoolGradV2", _max_pool_grad),
    ("MaxPoolGradGradV2", _max_pool_grad_grad),
):
    kernel(_op, static=("ksize", "strides"))(
        reading_attrs_of(_op, _with_sizes_as_inputs(_run), max_pool)
    )
for _op in ("AvgPool", "AvgPool3D"):
    kernel(_op)(avg_pool)
    kernel(f"{_op}Grad", static=("orig_input_shape",))(
        reading_attrs_of(f"{_op}Grad", _avg_pool_grad, avg_pool)
    )

# --- the places of maxima ----------------------------------------------------------------------


def _places_of_maxima(x: Any, window: Window) -> Any:
    """Returns which element of its batch item is the first maximum of each window.

    It is -1 where a window lies in the padding.
    """

    def larger(a: Any, b: Any) -> Any:
        is_first = (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] < b[1]) & (a[1] >= 0)) | (b[1] < 0)
        return lax.select(is_first, a[0], b[0]), lax.select(is_first, a[1], b[1])

    item = math.prod(x.shape[1:])
    numbers = jnp.broadcast_to(
        jnp.reshape(jnp.arange(item, dtype=np.int32), (1, *x.shape[1:])), x.shape
    )
    operands = (lax.stop_gradient(x), numbers)
    starts = (MONOIDS["max"].start(x.dtype), np.int32(-1))
    geometry = (window.dimensions, window.strides, window.padding)
    return lax.reduce_window(operands, starts, larger, *geometry)[1]


def _select(x: Any, values: Any, **attrs: Any) -> Any:
    """Returns those of the values that lie where the maxima of the windows of x are."""
    attrs.pop("data_format", None)
    explicit = attrs.pop("explicit_paddings", ())
    window = _pooling_window(x, explicit=explicit, **attrs)
    return _take_of_items(values, _places_of_maxima(x, window))


def _take_of_items(values: Any, places: Any) -> Any:
    rows = jnp.reshape(values, (values.shape[0], -1))
    flat = jnp.reshape(places, (places.shape[0], -1))
    return jnp.reshape(jnp.take_along_axis(rows, flat, axis=1, mode="fill"), places.shape)


@kernel("MaxPoolWithArgmax")
def max_pool_with_argmax(
    input: Any,
    *,
    ksize: tuple[int, ...],
    strides: tuple[int, ...],
    padding: bytes,
    Targmax: int,
    include_batch_in_index: bool,
) -> list[Any]:
    window = _pooling_window(input, ksize, strides, padding)
    places = _places_of_maxima(input, window)
    if include_batch_in_index:
        items = np.arange(input.shape[0], dtype=np.int32) * math.prod(input.shape[1:])
        places = places + jnp.reshape(items, (-1, 1, 1, 1))
    number = jax.dtypes.canonicalize_dtype(dtypes.dtype_from_number(Targmax))
    return [reduce_windows(input, MONOIDS["max"], window), places.astype(number)]


def _places_in_items(argmax: Any, input: Any, include_batch_in_index: bool) -> Any:
    if not include_batch_in_index:
        return argmax
    return argmax % math.prod(input.shape[1:])


@kernel("MaxPoolGradWithArgmax")
def max_pool_grad_with_argmax(
    input: Any, grad: Any, argmax: Any, *, include_batch_in_index: bool
) -> Any:
    places = _places_in_items(argmax, input, include_batch_in_index)
    return transpose(lambda x: _take_of_items(x, places), input.shape, grad)


@kernel("MaxPoolGradGradWithArgmax")
def max_pool_grad_grad_with_argmax(
    input: Any, grad: Any, argmax: Any, *, include_batch_in_index: bool
) -> Any:
    return _take_of_items(grad, _places_in_items(argmax, input, include_batch_in_index))
