"""Graphs of TensorFlow's ops on images and volumes: what makes them, and what they are fed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxmeta import op_defs
from jaxmeta.ops._definition import Spec, f32, i32


@dataclasses.dataclass(frozen=True)
class ImageGraph:
    """A graph that TensorFlow makes of placeholders.

    Attributes:
        op: which op it is there for.
        make: makes it of TensorFlow and the placeholders.
        specs: what these are fed.
        gradient: an op that TensorFlow's gradients have, which are compared too; None where
            TensorFlow has none.
        tolerance: largest error of a value.
    """

    op: str
    make: Callable[..., Any]
    specs: tuple[Spec, ...]
    gradient: str | None
    tolerance: float


IMAGE_GRAPHS: list[ImageGraph] = []


def raw(
    op: str,
    *specs: Spec,
    constants: tuple[Any, ...] = (),
    gradient: str | None = "",
    tolerance: float = 1e-5,
    **attrs: Any,
) -> None:
    """Adds a graph of an op that takes placeholders, then constants, in order."""

    def make(tf: Any, *tensors: Any) -> Any:
        names = [arg.name for arg in op_defs.get_op_def(op).input_arg]
        named = dict(zip(names, [*tensors, *map(tf.constant, constants)], strict=True))
        return getattr(tf.raw_ops, op)(**named, **attrs)

    IMAGE_GRAPHS.append(ImageGraph(op, make, specs, gradient, tolerance))


def written(
    op: str, *specs: Spec, gradient: str | None = "", tolerance: float = 1e-5
) -> Callable[[Any], Any]:
    """Adds the graph that a function of TensorFlow and placeholders makes."""

    def register(make: Any) -> Any:
        IMAGE_GRAPHS.append(ImageGraph(op, make, specs, gradient, tolerance))
        return make

    return register


IMAGE = f32(2, 6, 5, 3)
VOLUME = f32(2, 5, 6, 4, 3)

# --- other sizes -------------------------------------------------------------------------------

RULES = ({}, {"align_corners": True}, {"half_pixel_centers": True})
for _op, _size, _rule in itertools.product(
    ("ResizeBilinear", "ResizeNearestNeighbor", "ResizeBicubic"), ([9, 3], [1, 13]), RULES
):
    raw(_op, IMAGE, constants=(_size,), gradient=f"{_op}Grad", **_rule)
for _op in ("ResizeBilinear", "ResizeBicubic"):
    raw(_op, Spec((2, 6, 5, 3), np.uint8, 0, 250), constants=([4, 7],), gradient=None)
raw("ResizeNearestNeighbor", i32(2, 3, 4, 1), constants=([6, 8],), gradient=None)
for _rule in ({}, {"align_corners": True}):
    for _size in ([4, 9], [1, 2]):
        raw("ResizeArea", IMAGE, constants=(_size,), gradient=None, **_rule)

# --- convolutions ------------------------------------------------------------------------------

for _padding, _strides, _dilations in (
    ("SAME", [1, 2, 1, 1], [1, 1, 1, 1]),
    ("VALID", [1, 1, 1, 1], [1, 1, 2, 1]),
    ("EXPLICIT", [1, 2, 2, 1], [1, 1, 1, 1]),
):
    _options: dict[str, Any] = {"padding": _padding, "strides": _strides, "dilations": _dilations}
    if _padding == "EXPLICIT":
        _options["explicit_paddings"] = [0, 0, 1, 2, 0, 1, 0, 0]
    # TensorFlow's CPU has no gradients of dilated convolutions.
    _of = "Conv2DBackpropInput" if _padding != "VALID" else None
    raw("Conv2D", IMAGE, f32(3, 2, 3, 4), gradient=_of, **_options)

for _padding, _strides in (("SAME", [1, 2, 1, 2, 1]), ("VALID", [1, 1, 2, 1, 1])):
    _options = {"padding": _padding, "strides": _strides}
    raw("Conv3D", VOLUME, f32(3, 2, 2, 3, 4), gradient="Conv3DBackpropInputV2", **_options)


@written("Conv", VOLUME, f32(3, 2, 3, 4), gradient=None)
def convolve_batches(tf, x, w):
    return tf.raw_ops.Conv(input=x, filter=w, strides=[1, 2, 1, 1], padding="SAME", batch_dims=2)


@written("DepthwiseConv2dNative", IMAGE, f32(3, 2, 3, 2))
def convolve_channels(tf, x, w):
    return tf.raw_ops.DepthwiseConv2dNative(
        input=x,
        filter=w,
        strides=[1, 1, 1, 1],
        padding="EXPLICIT",
        explicit_paddings=[0, 0, 2, 1, 0, 1, 0, 0],
    )


# --- pooling -----------------------------------------------------------------------------------

POOLS: tuple[tuple[str, Any, dict[str, Any]], ...] = (
    ("", IMAGE, {"ksize": [1, 3, 2, 1], "strides": [1, 2, 1, 1], "padding": "SAME"}),
    ("", IMAGE, {"ksize": [1, 2, 2, 1], "strides": [1, 2, 2, 1], "padding": "VALID"}),
    ("3D", VOLUME, {"ksize": [1, 2, 3, 2, 1], "strides": [1, 2, 2, 1, 1], "padding": "SAME"}),
    ("3D", VOLUME, {"ksize": [1, 2, 2, 2, 1], "strides": [1, 1, 2, 2, 1], "padding": "VALID"}),
)
for _rank, _spec, _options in POOLS:
    raw(f"MaxPool{_rank}", _spec, gradient=f"MaxPool{_rank}Grad", **_options)
    raw(f"AvgPool{_rank}", _spec, gradient=f"AvgPool{_rank}Grad", **_options)

    @written(f"MaxPool{_rank}GradGrad", _spec, _spec, gradient=None)
    def of_of_max_pool(tf, x, t, rank=_rank, options=_options):
        pooled = getattr(tf.raw_ops, f"MaxPool{rank}")(input=x, **options)
        return getattr(tf.raw_ops, f"MaxPool{rank}GradGrad")(
            orig_input=x, orig_output=pooled, grad=t, **options
        )


for _, _spec, _options in POOLS[:2]:

    @written("MaxPoolV2", _spec, gradient="MaxPoolGradV2")
    def max_pool_v2(tf, x, options=_options):
        return tf.raw_ops.MaxPoolV2(input=x, **options)

    @written("MaxPoolGradGradV2", _spec, _spec, gradient=None)
    def of_of_max_pool_v2(tf, x, t, options=_options):
        pooled = tf.raw_ops.MaxPoolV2(input=x, **options)
        return tf.raw_ops.MaxPoolGradGradV2(orig_input=x, orig_output=pooled, grad=t, **options)

    for _with_batch in (False, True):

        @written("MaxPoolWithArgmax", _spec, gradient="MaxPoolGradWithArgmax")
        def max_pool_with_places(tf, x, options=_options, with_batch=_with_batch):
            return list(
                tf.raw_ops.MaxPoolWithArgmax(input=x, include_batch_in_index=with_batch, **options)
            )


raw(
    "MaxPool",
    IMAGE,
    ksize=[1, 3, 2, 1],
    strides=[1, 2, 2, 1],
    padding="EXPLICIT",
    explicit_paddings=[0, 0, 1, 0, 0, 1, 0, 0],
)

# --- normalization -----------------------------------------------------------------------------

CHANNELS = (f32(3), f32(3), f32(3), f32(3, low=0.5, high=2.0))
for _is_training in (True, False):
    for _layout, _spec in (("NHWC", IMAGE), ("NCHW", f32(2, 3, 4, 5)), ("NDHWC", VOLUME)):

        @written("FusedBatchNormV3", _spec, *CHANNELS, gradient="FusedBatchNormGradV3")
        def normalize(tf, x, scale, offset, mean, variance, layout=_layout, training=_is_training):
            return tf.raw_ops.FusedBatchNormV3(
                x=x,
                scale=scale,
                offset=offset,
                mean=tf.stop_gradient(mean),
                variance=tf.stop_gradient(variance),
                epsilon=0.01,
                data_format=layout,
                is_training=training,
            )[0]


# --- windows taken apart -----------------------------------------------------------------------

for _padding, _strides, _rates in (
    ("SAME", [1, 2, 1, 1], [1, 1, 2, 1]),
    ("VALID", [1, 1, 2, 1], [1, 2, 1, 1]),
):
    _options = {"strides": _strides, "rates": _rates, "padding": _padding}
    raw("ExtractImagePatches", IMAGE, ksizes=[1, 3, 2, 1], **_options)
    raw("Dilation2D", IMAGE, f32(3, 2, 3), gradient="Dilation2DBackpropInput", **_options)

for _padding, _strides in (("SAME", [1, 2, 1, 3, 1]), ("VALID", [1, 1, 2, 1, 1])):
    raw(
        "ExtractVolumePatches",
        VOLUME,
        ksizes=[1, 2, 3, 1, 1],
        strides=_strides,
        padding=_padding,
    )
raw(
    "ExtractImagePatches",
    i32(2, 5, 5, 2),
    gradient=None,
    ksizes=[1, 2, 2, 1],
    strides=[1, 2, 2, 1],
    rates=[1, 1, 1, 1],
    padding="SAME",
)

# --- boxes cut out -----------------------------------------------------------------------------

BOXES = f32(4, 4, low=-0.2, high=1.2)
for _method, _size in (("bilinear", [3, 4]), ("bilinear", [1, 2]), ("nearest", [5, 3])):
    raw(
        "CropAndResize",
        IMAGE,
        BOXES,
        constants=([1, 0, 1, 1], _size),
        gradient="CropAndResizeGradBoxes" if _method == "bilinear" else None,
        method=_method,
        extrapolation_value=0.5,
    )


# --- maps of the plane -------------------------------------------------------------------------

MAPS = np.float32([[1.1, 0.2, -0.5, -0.1, 0.8, 0.7, 0.02, -0.05], [0.5, 0, 9, 0, -2, 4, 0, 0]])
for _interpolation, _fill_mode in itertools.product(
    ("NEAREST", "BILINEAR"), ("CONSTANT", "REFLECT", "WRAP", "NEAREST")
):
    _options = {"interpolation": _interpolation, "fill_mode": _fill_mode}
    raw(
        "ImageProjectiveTransformV3",
        IMAGE,
        constants=(MAPS, [5, 7], 0.25),
        gradient=None,
        **_options,
    )
raw(
    "ImageProjectiveTransformV2",
    Spec((1, 6, 5, 3), np.uint8, 0, 250),
    constants=(MAPS[:1], [5, 7]),
    gradient=None,
    interpolation="BILINEAR",
)
for _kernel_type, _antialias in (
    *itertools.product(("lanczos3", "triangle", "keyscubic"), (True, False)),
    *((kind, True) for kind in ("lanczos1", "lanczos5", "gaussian", "box", "mitchellcubic")),
):
    raw(
        "ScaleAndTranslate",
        IMAGE,
        constants=([8, 4], np.float32([1.3, 0.6]), np.float32([-0.7, 0.4])),
        gradient="ScaleAndTranslateGrad",
        kernel_type=_kernel_type,
        antialias=_antialias,
    )

# Ops that TensorFlow's CPU does not run, or that TensorFlow does not write any more.
ELSEWHERE = (
    "BatchNormWithGlobalNormalization",
    "BatchNormWithGlobalNormalizationGrad",
    "Conv2DBackpropFilterV2",
    "Conv2DBackpropInputV2",
    "Conv3DBackpropFilter",
    "Conv3DBackpropInput",
    "MaxPoolGradGradWithArgmax",
    "_FusedBatchNormEx",
)
OPS = {op for graph in IMAGE_GRAPHS for op in (graph.op, graph.gradient) if op}.union(
    ("CropAndResizeGradImage", "Conv3DBackpropFilterV2", "Dilation2DBackpropFilter"), ELSEWHERE
)
