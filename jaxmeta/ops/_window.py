"""Windows that move over arrays: their geometry and padding, and how their elements combine."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import errors
from jaxmeta.ops import _computation
from jaxmeta.ops._definition import LoweringContext, f32
from jaxmeta.ops._operands import ints
from jaxmeta.tracing import dimensions
from jaxmeta.values import FunctionRef

Pads = tuple[tuple[int, int], ...]

# A window larger than this is not taken apart into one node per element.
_MAX_UNROLLED_WINDOW: Final = 512


def pairs(values: Any) -> Pads:
    """Returns pairs of plain ints, or of symbolic dimensions."""
    return tuple((dimensions.plain(low), dimensions.plain(high)) for low, high in values)


def pairs_of(flat: Sequence[int]) -> Pads:
    """Returns pairs from the flat list that an attr holds."""
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def same_padding(
    sizes: Sequence[int], window: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Pads:
    """Returns the padding that TensorFlow calls SAME."""
    dilated = [(size - 1) * dilation + 1 for size, dilation in zip(window, dilations, strict=True)]
    return pairs(lax.padtype_to_pads(sizes, dilated, strides, "SAME"))


def spatial_axes(data_format: bytes, rank: int) -> tuple[int, ...]:
    """Returns which axes of an image of TensorFlow's data_format are spatial.

    Raises:
        UnsupportedOpError: the format is not one of plain channels last or first.
    """
    if data_format in (b"NHWC", b"NDHWC", b"NWC"):
        return tuple(range(1, rank - 1))
    if data_format in (b"NCHW", b"NCDHW", b"NCW"):
        return tuple(range(2, rank))
    raise errors.UnsupportedOpError(f"the data_format {data_format.decode()} is not supported")


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """The geometry of a window reduction, as plain ints."""

    dimensions: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Pads
    base_dilation: tuple[int, ...]
    dilation: tuple[int, ...]

    @classmethod
    def of(
        cls,
        dimensions: Any,
        strides: Any,
        padding: Any,
        base_dilation: Any = None,
        dilation: Any = None,
    ) -> Window:
        """Returns the window that the parameters of a primitive or the inputs of a node say."""
        ones = np.ones(len(np.ravel(dimensions)), np.int64)
        return cls(
            ints(dimensions),
            ints(strides),
            pairs(padding),
            ints(ones if base_dilation is None else base_dilation),
            ints(ones if dilation is None else dilation),
        )

    @property
    def is_dilated(self) -> bool:
        """Whether elements lie apart, in the array or in the window."""
        return {*self.base_dilation, *self.dilation} - {1} != set()

    def geometry(self) -> dict[str, Any]:
        """Returns the parameters of a primitive whose windows are not dilated."""
        return {
            "window_dimensions": self.dimensions,
            "window_strides": self.strides,
            "padding": self.padding,
        }

    def attrs(self) -> dict[str, Any]:
        """Returns the parameters of a call that stands for a window reduction."""
        return {
            "window_dimensions": self.dimensions,
            "window_strides": self.strides,
            "padding": tuple(side for pair in self.padding for side in pair),
            "base_dilation": self.base_dilation,
            "window_dilation": self.dilation,
        }


def _lowest(dtype: Any) -> np.ndarray[Any, Any]:
    """Returns what a maximum starts from."""
    if dtype == np.bool_:
        return np.asarray(False)
    if jnp.issubdtype(dtype, np.integer):
        return np.asarray(jnp.iinfo(dtype).min, dtype)
    return np.asarray(-np.inf, dtype)


def _highest(dtype: Any) -> np.ndarray[Any, Any]:
    """Returns what a minimum starts from."""
    if dtype == np.bool_:
        return np.asarray(True)
    if jnp.issubdtype(dtype, np.integer):
        return np.asarray(jnp.iinfo(dtype).max, dtype)
    return np.asarray(np.inf, dtype)


def zero(dtype: Any) -> np.ndarray[Any, Any]:
    """Returns what a sum starts from."""
    return np.zeros((), dtype)


@dataclasses.dataclass(frozen=True, slots=True)
class Monoid:
    """A way of combining two elements that JAX has a window reduction for."""

    combine: Callable[..., Any]
    start: Callable[[Any], np.ndarray[Any, Any]]


MONOIDS: Final = {
    "max": Monoid(lax.max, _lowest),
    "min": Monoid(lax.min, _highest),
    "add": Monoid(lax.add, zero),
}


def monoid_function(ctx: LoweringContext, kind: str, dtype: Any) -> FunctionRef:
    """Returns the function that combines two elements, as an attr."""
    return _computation.function_of_scalars(ctx, MONOIDS[kind].combine, kind, (dtype, dtype))


def check_unrolled(ctx: LoweringContext, window: Window) -> None:
    """Raises where a window has too many elements to take them one by one."""
    size = math.prod(window.dimensions)
    if size > _MAX_UNROLLED_WINDOW:
        raise ctx.unsupported(
            f"TensorFlow has no op that reduces windows of several arrays, and these windows "
            f"have {size} elements, more than {_MAX_UNROLLED_WINDOW} to take one by one"
        )


def fold_windows(
    arrays: Sequence[jax.Array],
    starts: Sequence[Any],
    window: Window,
    combine: Callable[..., Sequence[Any]],
) -> Sequence[Any]:
    """Reduces windows of several arrays, one element of each window after the other."""
    config = [
        (low, high, dilation - 1)
        for (low, high), dilation in zip(window.padding, window.base_dilation, strict=True)
    ]
    padded = [lax.pad(a, start, config) for a, start in zip(arrays, starts, strict=True)]
    spans = [
        (size - 1) * dilation + 1
        for size, dilation in zip(window.dimensions, window.dilation, strict=True)
    ]
    counts = [
        (full - span) // stride + 1
        for full, span, stride in zip(padded[0].shape, spans, window.strides, strict=True)
    ]
    result: Sequence[Any] = [
        lax.broadcast_in_dim(jnp.asarray(start, a.dtype), counts, ())
        for a, start in zip(arrays, starts, strict=True)
    ]
    for place in itertools.product(*map(range, window.dimensions)):
        first = [p * dilation for p, dilation in zip(place, window.dilation, strict=True)]
        last = [
            f + (count - 1) * stride + 1
            for f, count, stride in zip(first, counts, window.strides, strict=True)
        ]
        elements = [lax.slice(a, first, last, window.strides) for a in padded]
        result = combine(*result, *elements)
    return result


def pooling(
    combine: Callable[..., Any],
    start: float,
    dimensions: tuple[int, ...],
    strides: tuple[int, ...],
    padding: Any = "VALID",
    **options: Any,
) -> Callable[..., Any]:
    """Returns a window reduction of one array, for examples."""

    def run(x: jax.Array) -> jax.Array:
        return jnp.asarray(
            lax.reduce_window(
                x, np.asarray(start, x.dtype), combine, dimensions, strides, padding, **options
            )
        )

    run.__name__ = "reduce_window"
    return run


IMAGE = f32(2, 7, 6, 3)
TWO = (1, 2, 2, 1)
THREE = (1, 3, 3, 1)
INFINITY = float("inf")
