"""Graphs of TensorFlow's ops of quantization, beside those of images."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from tensorflow_image_graphs import IMAGE, IMAGE_GRAPHS, raw, written

from jaxmeta.ops._definition import Spec, f32

_FIRST = len(IMAGE_GRAPHS)
_options: dict[str, Any]

_GRID: dict[str, Any]
for _GRID in ({}, {"num_bits": 4, "narrow_range": True}):
    raw(
        "FakeQuantWithMinMaxArgs",
        IMAGE,
        gradient="FakeQuantWithMinMaxArgsGradient",
        min=-1.3,
        max=0.9,
        **_GRID,
    )
    for _op, _spec in (("", f32()), ("PerChannel", f32(3))):
        for _low, _high in ((-1.3, 0.9), (0.1, 1.5), (-1.5, -0.5))[: 1 if _GRID else 3]:
            _ends = (
                Spec(_spec.shape, np.float32, _low, _low + 0.1),
                Spec(_spec.shape, np.float32, _high, _high + 0.1),
            )
            raw(
                f"FakeQuantWithMinMaxVars{_op}",
                IMAGE,
                *_ends,
                gradient=f"FakeQuantWithMinMaxVars{_op}Gradient",
                **_GRID,
            )
for _ends in ((-6.0, 6.0), (-0.5, 2.5)):  # zero lies in the middle of two integers
    _options = {"gradient": "FakeQuantWithMinMaxVarsGradient"}
    raw("FakeQuantWithMinMaxVars", IMAGE, constants=_ends, **_options)
    _options = {"gradient": "FakeQuantWithMinMaxArgsGradient"}
    raw("FakeQuantWithMinMaxArgs", IMAGE, min=_ends[0], max=_ends[1], **_options)
raw(
    "FakeQuantWithMinMaxVars",
    IMAGE,
    constants=(0.0, 0.0),
    gradient="FakeQuantWithMinMaxVarsGradient",
)
for _signed, _given, _mode in (
    (True, True, "HALF_TO_EVEN"),
    (False, True, "HALF_UP"),
    (True, False, "HALF_UP"),
):
    _options = {"signed_input": _signed, "range_given": _given}
    _grid = {"num_bits": 5, "round_mode": _mode}
    raw("QuantizeAndDequantizeV2", IMAGE, constants=(-1.1, 1.3), **_options, **_grid)
    raw("QuantizeAndDequantizeV3", IMAGE, constants=(-1.1, 1.3, 5), **_options)
    raw(
        "QuantizeAndDequantizeV4",
        IMAGE,
        constants=(-1.1, 1.3),
        gradient="QuantizeAndDequantizeV4Grad",
        **_options,
        **_grid,
    )
raw(
    "QuantizeAndDequantizeV3",
    IMAGE,
    constants=(np.zeros(3, np.float32), np.zeros(3, np.float32), 6),
    range_given=False,
    narrow_range=True,
    axis=3,
)
for _type, _mode, _axis in itertools.product(
    ("quint8", "qint8", "qint16", "qint32"), ("MIN_COMBINED", "MIN_FIRST", "SCALED"), (-1, 3)
):
    if _axis == 3 and (_mode == "MIN_FIRST" or _type.endswith(("16", "32"))):
        continue

    # What is beyond the largest qint32 wraps around in TensorFlow.
    _spec = f32(2, 6, 5, 3, low=-0.4, high=0.4) if _type == "qint32" else IMAGE

    @written("QuantizeV2", _spec, gradient=None)
    def quantize(tf, x, kind=_type, mode=_mode, axis=_axis):
        low = -1.1 if axis == -1 else tf.constant([-1.1, -0.5, -2.0])
        high = 1.3 if axis == -1 else tf.constant([1.0, 2.0, 0.5])
        rounding = "HALF_TO_EVEN" if mode == "SCALED" else "HALF_AWAY_FROM_ZERO"
        dtype = getattr(tf, kind)
        integers, low, high = tf.raw_ops.QuantizeV2(
            input=x,
            min_range=low,
            max_range=high,
            T=dtype,
            mode=mode,
            round_mode=rounding,
            axis=axis,
        )
        back = tf.raw_ops.Dequantize(
            input=integers, min_range=low, max_range=high, mode=mode, axis=axis
        )
        plain = tf.bitcast(integers, getattr(tf, kind[1:]))
        return plain, low, high, back


QUANTIZATION_GRAPHS = IMAGE_GRAPHS[_FIRST:]
del IMAGE_GRAPHS[_FIRST:]
QUANTIZATION_OPS = {
    op for graph in QUANTIZATION_GRAPHS for op in (graph.op, graph.gradient) if op
} | {"Dequantize", "QuantizeAndDequantize"}
