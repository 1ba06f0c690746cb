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
for _op, _rule in itertools.product(
    ("ResizeBilinear", "ResizeNearestNeighbor", "ResizeBicubic"), RULES
):
    _size = [9, 3] if _rule else [1, 13]
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
    ("triangle", False),
    *((kind, True) for kind in ("lanczos1", "lanczos3", "lanczos5", "gaussian", "box", "triangle")),
    *((kind, True) for kind in ("keyscubic", "mitchellcubic")),
):
    raw(
        "ScaleAndTranslate",
        IMAGE,
        constants=([8, 4], np.float32([1.3, 0.6]), np.float32([-0.7, 0.4])),
        gradient="ScaleAndTranslateGrad",
        kernel_type=_kernel_type,
        antialias=_antialias,
    )

# --- colors ------------------------------------------------------------------------------------

COLORS = f32(2, 4, 3, 3, low=0.0, high=1.0)
raw("RGBToHSV", COLORS)
raw("HSVToRGB", COLORS, gradient=None)
raw("AdjustHue", f32(2, 4, 3, 3), constants=(-0.3,), gradient=None)
raw("AdjustSaturation", COLORS, constants=(1.7,), gradient=None)
raw("AdjustContrastv2", f32(2, 4, 3, 3), constants=(1.7,), gradient=None)


# --- boxes -------------------------------------------------------------------------------------

MANY_BOXES = (f32(30, 4, low=0.0, high=1.0), f32(30, low=0.0, high=1.0))
for _most, _pad in ((7, False), (40, True)):
    _padded = {"pad_to_max_output_size": _pad}
    raw("NonMaxSuppressionV2", *MANY_BOXES, constants=(_most, 0.3), gradient=None)
    raw("NonMaxSuppressionV3", *MANY_BOXES, constants=(_most, 0.3, 0.4), gradient=None)
    raw("NonMaxSuppressionV4", *MANY_BOXES, constants=(_most, 0.3, 0.2), gradient=None, **_padded)
    for _threshold, _sigma in ((0.3, 0.0), (0.4, 0.5)):
        raw(
            "NonMaxSuppressionV5",
            *MANY_BOXES,
            constants=(_most, _threshold, 0.2, _sigma),
            gradient=None,
            **_padded,
        )
raw("NonMaxSuppression", *MANY_BOXES, constants=(9,), gradient=None, iou_threshold=0.2)
raw(
    "NonMaxSuppressionWithOverlaps",
    f32(30, 30, low=0.0, high=1.0),
    f32(30),
    constants=(12, 0.6, -1.0),
    gradient=None,
)
for _boxes, _total, _options in (
    (f32(2, 20, 1, 4, low=-0.1, high=1.1), 10, {}),
    (f32(2, 20, 3, 4, low=-0.1, high=1.1), 50, {"pad_per_class": True, "clip_boxes": False}),
):
    raw(
        "CombinedNonMaxSuppression",
        _boxes,
        f32(2, 20, 3, low=0.0, high=1.0),
        constants=(6, _total, 0.2, 0.3),
        gradient=None,
        **_options,
    )
for _depth in (1, 3, 4):
    _canvas = f32(2, 9, 11, _depth, low=0.0, high=1.0)
    raw("DrawBoundingBoxes", _canvas, f32(2, 5, 4, low=-0.3, high=1.3), gradient=None)
raw(
    "DrawBoundingBoxesV2",
    f32(2, 9, 11, 3),
    f32(2, 5, 4, low=-0.3, high=1.3),
    f32(2, 4),
    gradient=None,
)

# --- what optimizers of graphs fuse --------------------------------------------------------------

_PADDINGS = [[0, 0], [2, 1], [0, 2], [0, 0]]
for _mode, _padding in (("REFLECT", "SAME"), ("SYMMETRIC", "VALID")):
    # Of several images TensorFlow's CPU takes the first only.
    @written("FusedPadConv2D", f32(1, 6, 5, 3), f32(3, 2, 3, 4), gradient=None)
    def pad_and_convolve(tf, x, w, mode=_mode, padding=_padding):
        options = {"mode": mode, "strides": [1, 1, 1, 1], "padding": padding}
        return tf.raw_ops.FusedPadConv2D(input=x, paddings=_PADDINGS, filter=w, **options)

    @written("FusedResizeAndPadConv2D", f32(1, 6, 5, 3), f32(3, 2, 3, 4), gradient=None)
    def resize_pad_and_convolve(tf, x, w, mode=_mode, padding=_padding):
        options = {"mode": mode, "strides": [1, 1, 1, 1], "padding": padding}
        return tf.raw_ops.FusedResizeAndPadConv2D(
            input=x,
            size=[9, 8],
            paddings=_PADDINGS,
            filter=w,
            resize_align_corners=mode == "REFLECT",
            **options,
        )


def made_by_optimizer(tf: Any, op: str, inputs: Any, fused_ops: Any, **attrs: Any) -> Any:
    """Returns the result of an op for which TensorFlow has no function, only nodes."""
    graph_def = tf.compat.v1.GraphDef()
    node = graph_def.node.add(name="fused", op=op)
    for i, tensor in enumerate(inputs):
        source = graph_def.node.add(name=f"in{i}", op="Placeholder")
        source.attr["dtype"].type = tensor.dtype.as_datatype_enum
        node.input.append(source.name)
    node.attr["T"].type = 1
    node.attr["num_args"].i = len(inputs) - 2
    if op != "_FusedMatMul":
        node.attr["num_host_args"].i = 0
        node.attr["TArgs"].list.type.extend([1] * (len(inputs) - 2))
        node.attr["strides"].list.i.extend([1] * inputs[0].shape.rank)
        node.attr["padding"].s = b"SAME"
    node.attr["fused_ops"].list.s.extend(name.encode() for name in fused_ops)
    for name, value in attrs.items():
        node.attr[name].CopyFrom(value)
    (result,) = tf.compat.v1.import_graph_def(
        graph_def,
        input_map={f"in{i}:0": tensor for i, tensor in enumerate(inputs)},
        return_elements=["fused:0"],
        name="",
    )
    return result


for _ops in (
    ("BiasAdd",),
    ("BiasAdd", "Relu"),
    ("BiasAdd", "Relu6"),
    ("BiasAdd", "Elu"),
    ("BiasAdd", "LeakyRelu"),
    ("BiasAdd", "Tanh"),
    ("BiasAdd", "Sigmoid"),
):
    if _ops[-1] not in ("Tanh", "Sigmoid"):

        @written("_FusedConv2D", IMAGE, f32(3, 2, 3, 4), f32(4), gradient=None)
        def convolve_and_apply(tf, *inputs, ops=_ops):
            return made_by_optimizer(tf, "_FusedConv2D", inputs, ops)

    @written("_FusedMatMul", f32(3, 4), f32(4, 5), f32(5), gradient=None)
    def multiply_and_apply(tf, *inputs, ops=_ops):
        return made_by_optimizer(tf, "_FusedMatMul", inputs, ops)


@written("_FusedConv2D", IMAGE, f32(3, 2, 3, 3), *CHANNELS, gradient=None)
def convolve_and_normalize(tf, *inputs):
    return made_by_optimizer(tf, "_FusedConv2D", inputs, ("FusedBatchNorm", "Relu"))


# --- blocks ------------------------------------------------------------------------------------

raw("SpaceToBatch", f32(2, 5, 4, 3), constants=([[1, 0], [0, 2]],), block_size=2)
raw("BatchToSpace", f32(8, 3, 2, 3), constants=([[1, 0], [0, 1]],), block_size=2)
raw("SpaceToDepth", f32(2, 4, 6, 3), block_size=2)
raw("DepthToSpace", f32(2, 2, 3, 12), block_size=2)
raw("SpaceToBatchND", f32(2, 5, 4, 3), constants=([2, 2], [[1, 0], [0, 0]]))
raw("BatchToSpaceND", f32(12, 3, 2, 3), constants=([3, 2], [[1, 0], [0, 1]]))
for _mode in ("REFLECT", "SYMMETRIC"):
    raw(
        "MirrorPad",
        IMAGE,
        constants=([[0, 0], [3, 2], [1, 4], [0, 0]],),
        gradient="MirrorPadGrad",
        mode=_mode,
    )

# --- regions of unequal sizes --------------------------------------------------------------------

for _overlapping in (False, True):

    @written("FractionalMaxPoolGrad", f32(2, 7, 9, 3), f32(2, 3, 5, 3), gradient=None)
    def of_largest_of_regions(tf, x, out, overlapping=_overlapping):
        regions = {"row_pooling_sequence": [0, 2, 5, 7], "col_pooling_sequence": [0, 2, 4, 5, 7, 9]}
        rows = [x[:, a : b + overlapping] for a, b in ((0, 2), (2, 5), (5, 7))]
        cells = [
            [row[:, :, a : b + overlapping] for a, b in ((0, 2), (2, 4), (4, 5), (5, 7), (7, 9))]
            for row in rows
        ]
        pooled = [tf.stack([tf.reduce_max(cell, [1, 2]) for cell in row], 1) for row in cells]
        options = {"out_backprop": out, "overlapping": overlapping, **regions}
        return (
            tf.raw_ops.FractionalMaxPoolGrad(
                orig_input=x, orig_output=tf.stack(pooled, 1), **options
            ),
            tf.raw_ops.FractionalAvgPoolGrad(orig_input_tensor_shape=x.shape, **options),
        )


# Ops that TensorFlow's CPU does not run, or that TensorFlow does not write any more.
ELSEWHERE = (
    "BatchNormWithGlobalNormalization",
    "BatchNormWithGlobalNormalizationGrad",
    "AdjustContrast",
    "Conv2DBackpropFilterV2",
    "Conv2DBackpropInputV2",
    "Conv3DBackpropFilter",
    "Conv3DBackpropInput",
    "FractionalAvgPool",
    "FractionalAvgPoolGrad",
    "FractionalMaxPool",
    "ImageProjectiveTransform",
    "MaxPoolGradGradWithArgmax",
    "_FusedBatchNormEx",
)
OPS = {op for graph in IMAGE_GRAPHS for op in (graph.op, graph.gradient) if op}.union(
    ("CropAndResizeGradImage", "Conv3DBackpropFilterV2", "Dilation2DBackpropFilter"),
    ELSEWHERE,
)
