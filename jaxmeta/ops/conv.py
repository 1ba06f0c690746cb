"""Convolutions: Conv2D where it says all of it, else XlaConvV2, which says any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes, xla_attrs
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._convolution import convolve
from jaxmeta.ops._definition import LoweringContext, Spec, example, f32, i32, kernel, lowering
from jaxmeta.ops._gradients import reading_attrs_of
from jaxmeta.ops._operands import ints
from jaxmeta.ops._window import Pads, pairs, same_padding
from jaxmeta.tracing import dimensions, meshes

# ConvDimensionNumbers of images in NHWC and filters in HWIO, the only layout Conv2D has on CPU.
_NHWC: Final = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
_CONV2D_NUMBERS: Final = frozenset(
    map(dtypes.dtype_to_number, (jnp.bfloat16, np.float16, np.float32, np.float64))
)


@lowering("conv_general_dilated")
def lower_conv_general_dilated(
    ctx: LoweringContext,
    lhs: Edge,
    rhs: Edge,
    *,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any,
    rhs_dilation: Any,
    dimension_numbers: Any,
    feature_group_count: int,
    batch_group_count: int,
    precision: Any,
    preferred_element_type: Any,
    out_sharding: Any = None,
) -> list[Edge]:
    if not meshes.is_trivial_sharding(out_sharding):
        raise ctx.unsupported("an out_sharding on conv_general_dilated cannot be expressed")
    assert lhs.shape is not None
    assert rhs.shape is not None
    pads, strides = pairs(padding), ints(window_strides)
    is_preferred = preferred_element_type is not None
    is_nhwc = tuple(map(tuple, dimension_numbers)) == _NHWC
    is_plain = is_nhwc and set(ints(lhs_dilation)) == {1} and batch_group_count == 1
    if is_plain and _may_be_conv2d(ctx, lhs, rhs, pads):
        rates = ints(rhs_dilation)
        attrs = _padding_attrs(ints(lhs.shape[1:3]), ints(rhs.shape[:2]), strides, pads, rates)
        if attrs is not None:
            return _conv2d(
                ctx, lhs, rhs, strides, rates, attrs, precision, is_preferred=is_preferred
            )
    return ctx.node(
        "XlaConvV2",
        lhs,
        rhs,
        ctx.constant(strides, np.int32),
        ctx.constant(np.asarray(pads).reshape(-1, 2), np.int32),
        ctx.constant(ints(lhs_dilation), np.int32),
        ctx.constant(ints(rhs_dilation), np.int32),
        ctx.constant(feature_group_count, np.int32),
        dimension_numbers=xla_attrs.conv_to_bytes(dimension_numbers),
        precision_config=xla_attrs.precision_to_bytes(precision),
        preferred_element_type=ctx.out_avals[0].dtype,
        batch_group_count=int(batch_group_count),
        _jax_is_preferred=is_preferred,
    )


def _may_be_conv2d(
    ctx: LoweringContext, lhs: Edge, rhs: Edge, pads: Sequence[tuple[Any, Any]]
) -> bool:
    """Returns whether Conv2D has kernels for such an image and filter, neither of them empty."""
    out = ctx.out_avals[0]
    return (
        lhs.number == rhs.number == dtypes.dtype_to_number(out.dtype)
        and lhs.number in _CONV2D_NUMBERS
        and dimensions.holds(lambda: all(side >= 0 for pair in pads for side in pair))
        and 0 not in (*(lhs.shape or ()), *(rhs.shape or ()), *out.shape)
    )


def _conv2d(
    ctx: LoweringContext,
    lhs: Edge,
    rhs: Edge,
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    padding_attrs: tuple[str, tuple[int, ...]],
    precision: Any,
    *,
    is_preferred: bool,
) -> list[Edge]:
    """Adds a Conv2D; the number of groups is what the channels of image and filter say."""
    attrs: dict[str, Any] = {}
    if names := xla_attrs.precision_to_names(precision):
        attrs["_jax_precision"] = names
    if is_preferred:
        attrs["_jax_is_preferred"] = True
    padding, explicit = padding_attrs
    return ctx.node(
        "Conv2D",
        lhs,
        rhs,
        strides=(1, *strides, 1),
        padding=padding,
        explicit_paddings=explicit,
        dilations=(1, *dilations, 1),
        **attrs,
    )


def _padding_attrs(
    sizes: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    pads: Pads,
    dilations: Sequence[int],
) -> tuple[str, tuple[int, ...]] | None:
    """Returns TensorFlow's padding and explicit_paddings; the former by name where it has one.

    Padding that depends on symbolic dimensions is none that attrs could say.
    """
    if not any(side for pair in pads for side in pair):
        return "VALID", ()
    if pads == same_padding(sizes, window, strides, dilations):
        return "SAME", ()
    if dimensions.is_symbolic(pads):
        return None
    return "EXPLICIT", (0, 0, *(side for pair in pads for side in pair), 0, 0)


kernel("Conv2D")(convolve)
kernel("Conv3D")(reading_attrs_of("Conv3D", convolve))


@kernel("Conv")
def conv(
    input: Any,
    filter: Any,
    *,
    strides: tuple[int, ...],
    padding: bytes,
    explicit_paddings: tuple[int, ...],
    data_format: bytes,
    dilations: tuple[int, ...],
    batch_dims: int,
    groups: int,
) -> Any:
    del groups  # what the channels of image and filter say
    merged = jnp.reshape(input, (-1, *input.shape[batch_dims:]))
    result = convolve(
        merged,
        filter,
        strides=strides,
        padding=padding,
        explicit_paddings=explicit_paddings,
        data_format=data_format,
        dilations=dilations,
    )
    return jnp.reshape(result, (*input.shape[:batch_dims], *result.shape[1:]))


@kernel(
    "XlaConvV2",
    static=("window_strides", "padding", "lhs_dilation", "rhs_dilation", "feature_group_count"),
)
def xla_conv_v2(
    lhs: Any,
    rhs: Any,
    window_strides: np.ndarray[Any, Any],
    padding: np.ndarray[Any, Any],
    lhs_dilation: np.ndarray[Any, Any],
    rhs_dilation: np.ndarray[Any, Any],
    feature_group_count: np.ndarray[Any, Any],
    *,
    dimension_numbers: bytes,
    precision_config: bytes,
    preferred_element_type: int,
    batch_group_count: int,
    _jax_is_preferred: bool = True,
) -> Any:
    preferred = dtypes.dtype_from_number(preferred_element_type) if _jax_is_preferred else None
    return lax.conv_general_dilated(
        lhs,
        rhs,
        ints(window_strides),
        pairs(padding),
        lhs_dilation=ints(lhs_dilation),
        rhs_dilation=ints(rhs_dilation),
        dimension_numbers=xla_attrs.conv_from_bytes(dimension_numbers),
        feature_group_count=int(feature_group_count),
        batch_group_count=batch_group_count,
        precision=xla_attrs.precision_from_bytes(precision_config),
        preferred_element_type=preferred,
    )


@kernel(
    "XlaConv",
    static=("window_strides", "padding", "lhs_dilation", "rhs_dilation", "feature_group_count"),
)
def xla_conv(
    lhs: Any,
    rhs: Any,
    window_strides: np.ndarray[Any, Any],
    padding: np.ndarray[Any, Any],
    lhs_dilation: np.ndarray[Any, Any],
    rhs_dilation: np.ndarray[Any, Any],
    feature_group_count: np.ndarray[Any, Any],
    *,
    dimension_numbers: bytes,
    precision_config: bytes,
) -> Any:
    return xla_conv_v2(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        feature_group_count,
        dimension_numbers=dimension_numbers,
        precision_config=precision_config,
        preferred_element_type=0,
        batch_group_count=1,
        _jax_is_preferred=False,
    )


# --- examples ----------------------------------------------------------------------------------

_IMAGE = f32(2, 7, 6, 4)


def _conv(
    strides: tuple[int, ...] = (1, 1),
    padding: Any = "SAME",
    layout: tuple[str, str, str] = ("NHWC", "HWIO", "NHWC"),
    **options: Any,
) -> Any:
    def run(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=layout, **options)

    run.__name__ = "conv"
    return run


def _gradients(fn: Any) -> Any:
    """Returns the function of a convolution's two gradients."""

    def run(x: jax.Array, w: jax.Array) -> Any:
        return jax.grad(lambda *args: jnp.sum(fn(*args) ** 2), (0, 1))(x, w)

    run.__name__ = "conv_gradients"
    return run


_NCHW_LAYOUT = ("NCHW", "OIHW", "NCHW")
_PLAIN = f32(3, 3, 4, 5)

example(_conv(), _IMAGE, _PLAIN, tolerance=1e-4)
example(_conv((2, 2)), _IMAGE, _PLAIN, tolerance=1e-4)
example(_conv((2, 1), "VALID"), _IMAGE, _PLAIN, tolerance=1e-4)
example(_conv((2, 2), ((1, 2), (0, 3))), _IMAGE, _PLAIN, tolerance=1e-4)
example(_conv(rhs_dilation=(2, 2)), _IMAGE, _PLAIN, tolerance=1e-4)
example(_conv(feature_group_count=2), _IMAGE, f32(3, 3, 2, 6), tolerance=1e-4)
example(_conv(feature_group_count=4), _IMAGE, f32(3, 3, 1, 8), tolerance=1e-4)
example(_conv(precision=lax.Precision.HIGHEST), _IMAGE, _PLAIN, tolerance=1e-4)
example(
    _conv(preferred_element_type=np.float32),
    Spec((2, 7, 6, 4), jnp.bfloat16),
    Spec((3, 3, 4, 5), jnp.bfloat16),
    gradient=False,
    tolerance=1e-4,
)
example(_conv(preferred_element_type=np.float32), _IMAGE, _PLAIN, tolerance=1e-4)
example(_conv(lhs_dilation=(2, 3), padding=((1, 2), (2, 2))), _IMAGE, _PLAIN, tolerance=1e-4)
example(_conv(padding=((-1, 2), (2, -1))), _IMAGE, _PLAIN, tolerance=1e-4)
example(_conv(batch_group_count=2), _IMAGE, f32(3, 3, 4, 6), tolerance=1e-4)
example(_conv(layout=_NCHW_LAYOUT), f32(2, 4, 7, 6), f32(5, 4, 3, 3), tolerance=1e-4)
example(_conv((2,), layout=("NWC", "WIO", "NWC")), f32(2, 9, 4), f32(3, 4, 5), tolerance=1e-4)
example(
    _conv((1, 2, 1), layout=("NDHWC", "DHWIO", "NDHWC")),
    f32(2, 4, 5, 6, 3),
    f32(2, 3, 2, 3, 4),
    tolerance=1e-4,
)
example(lambda x, w: lax.conv_transpose(x, w, (2, 2), "SAME"), _IMAGE, _PLAIN, tolerance=1e-4)
example(_conv(padding="VALID"), i32(2, 5, 5, 3), i32(3, 3, 3, 2), gradient=False)
example(_gradients(_conv((2, 2))), _IMAGE, _PLAIN, tolerance=1e-4)
example(_gradients(_conv(feature_group_count=2)), _IMAGE, f32(3, 3, 2, 6), tolerance=1e-4)
example(_gradients(_conv(layout=_NCHW_LAYOUT)), f32(2, 4, 7, 6), f32(5, 4, 3, 3), tolerance=1e-4)
example(lambda x, w: jax.vmap(_conv(), (None, 0))(x, w), _IMAGE, f32(2, 3, 3, 4, 5), tolerance=1e-4)
example(
    lambda x, w: jax.vmap(_conv())(x, w), f32(2, 2, 7, 6, 4), f32(2, 3, 3, 4, 5), tolerance=1e-4
)
