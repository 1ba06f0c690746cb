"""Ops on images and volumes, in graphs that TensorFlow makes, differentiates and judges."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import numpy as np
import pytest
from tensorflow_image_graphs import IMAGE_GRAPHS, ImageGraph
from tensorflow_quantization_graphs import QUANTIZATION_GRAPHS

import jaxmeta
from jaxmeta.execution import executor
from jaxmeta.ops._definition import KERNELS

GRAPHS = [*IMAGE_GRAPHS, *QUANTIZATION_GRAPHS]


def compare(found: Any, expected: Any, tolerance: float) -> None:
    for have, want in zip(found, expected, strict=True):
        have, want = np.asarray(have), np.asarray(want)
        assert have.dtype.kind == want.dtype.kind
        if have.dtype.kind not in "iub":
            have, want = have.astype(np.float64), want.astype(np.float64)
        scale = max(float(np.max(np.abs(want), initial=0.0)), 1.0)
        np.testing.assert_allclose(have, want, rtol=0, atol=tolerance * scale)


def cotangents_of(arrays: Any, rng: np.random.Generator) -> list[Any]:
    return [
        rng.uniform(-1.0, 1.0, array.shape).astype(array.dtype)
        if array.dtype.kind == "f"
        else np.zeros(array.shape, jax.dtypes.float0)
        for array in arrays
    ]


def add_gradients(tf: Any, made: Any, inputs: Any, seeds: Any) -> list[Any]:
    """Returns TensorFlow's gradients by the inputs of floats."""
    of_floats = [i for i, tensor in enumerate(made) if tensor.dtype.is_floating]
    gradients: list[Any] = tf.gradients(
        [made[i] for i in of_floats],
        [x for x in inputs if x.dtype.is_floating],
        [tf.constant(seeds[i]) for i in of_floats],
        unconnected_gradients="zero",
    )
    return gradients


def pull_back(graph: Any, feeds: list[str], fetches: list[str], arrays: Any, seeds: Any) -> Any:
    """Returns JAX's gradients of an imported graph by the arrays of floats."""
    plan = executor.plan_graph(graph.nodes, executor.Library(graph.functions), feeds, fetches)

    @jax.jit
    def run(arrays: Any) -> Any:
        return jax.vjp(lambda *fed: plan.run(fed), *arrays)[1](list(seeds))

    found = run(list(arrays))
    return [g for g, array in zip(found, arrays, strict=True) if array.dtype.kind == "f"]


@pytest.mark.needs_tf
@pytest.mark.parametrize("graph", GRAPHS, ids=[f"{i}-{g.op}" for i, g in enumerate(GRAPHS)])
def test_op_gives_what_tensorflow_gives(graph: ImageGraph, rng, tmp_path, tensorflow):
    tf1, path = tensorflow.compat.v1, str(tmp_path / "theirs.meta")
    arrays = {f"x{i}:0": spec.array(rng) for i, spec in enumerate(graph.specs)}
    with tensorflow.Graph().as_default() as theirs, tf1.Session() as session:
        inputs = [
            tf1.placeholder(array.dtype, array.shape, name=name.removesuffix(":0"))
            for name, array in arrays.items()
        ]
        made = tensorflow.nest.flatten(graph.make(tensorflow, *inputs))
        seeds = cotangents_of(session.run(made, arrays), rng)
        gradients = (
            add_gradients(tensorflow, made, inputs, seeds) if graph.gradient is not None else []
        )
        tf1.train.export_meta_graph(path)
        expected = session.run([*made, *gradients], arrays)
    assert {graph.op, graph.gradient or graph.op} <= {
        node.op for node in theirs.as_graph_def().node
    }

    names = [tensor.name for tensor in made]
    written = names + [tensor.name for tensor in gradients if graph.gradient]
    with jaxmeta.Graph().as_default() as ours, jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(path)
        compare(session.run(written, arrays), expected[: len(written)], graph.tolerance)
    if gradients:
        found = pull_back(ours, list(arrays), names, arrays.values(), seeds)
        compare(found, expected[len(made) :], graph.tolerance)


def run(op: str, *arrays: Any, **attrs: Any) -> Any:
    return KERNELS[op].run(*arrays, **attrs)


@pytest.mark.parametrize(("rank", "op"), [(2, "Conv2DBackprop"), (3, "Conv3DBackprop")])
def test_gradient_that_takes_an_array_is_the_one_that_takes_its_shape(rank, op, rng):
    image = rng.normal(size=(2, *(5, 4, 6)[:rank], 3)).astype(np.float32)
    weights = rng.normal(size=(*(3, 2, 2)[:rank], 3, 4)).astype(np.float32)
    attrs = {"strides": (1,) * (rank + 2), "padding": b"SAME", "dilations": (1,) * (rank + 2)}
    of_shapes, of_arrays = ("", "V2") if rank == 2 else ("V2", "")
    layout = {"data_format": b"NHWC" if rank == 2 else b"NDHWC"}
    explicit = {"explicit_paddings": ()} if rank == 2 else {}
    out = run(f"Conv{rank}D", image, weights, **attrs, **layout, **explicit)
    for side, shape, arrays in (
        ("Input", (np.array(image.shape), weights), (image, weights)),
        ("Filter", (image, np.array(weights.shape)), (image, weights)),
    ):
        expected = run(f"{op}{side}{of_shapes}", *shape, out, **attrs, **layout)
        found = run(f"{op}{side}{of_arrays}", *arrays, out, **attrs)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("scales", [True, False])
def test_global_normalization_is_its_formula_and_so_is_its_gradient(scales, rng):
    t = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    m, beta, gamma = rng.normal(size=(3, 5)).astype(np.float32)
    v = rng.uniform(0.5, 2.0, 5).astype(np.float32)
    attrs = {"variance_epsilon": 0.01, "scale_after_normalization": scales}
    found = run("BatchNormWithGlobalNormalization", t, m, v, beta, gamma, **attrs)
    factor = (gamma if scales else 1) / np.sqrt(v + 0.01)
    np.testing.assert_allclose(found, (t - m) * factor + beta, rtol=1e-5, atol=1e-5)
    dy = rng.normal(size=t.shape).astype(np.float32)
    gradients = run("BatchNormWithGlobalNormalizationGrad", t, m, v, gamma, dy, **attrs)
    total = np.sum(dy, (0, 1, 2))
    weighted = np.sum(dy * (t - m), (0, 1, 2))
    expected = [
        dy * factor,
        -total * factor,
        -0.5 * weighted * factor / (v + 0.01),
        total,
        weighted / np.sqrt(v + 0.01) if scales else np.zeros(5),
    ]
    for have, want in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4)


def test_second_gradient_takes_what_lies_at_the_given_places(rng):
    image, tangent = rng.normal(size=(2, 2, 4, 6, 3)).astype(np.float32)
    options = {"ksize": (1, 2, 2, 1), "strides": (1, 2, 2, 1), "padding": b"SAME"}
    for has_batch in (False, True):
        places = {"include_batch_in_index": has_batch}
        pooled, argmax = run("MaxPoolWithArgmax", image, **options, Targmax=9, **places)
        np.testing.assert_array_equal(
            run("MaxPoolGradGradWithArgmax", image, image, argmax, **places), pooled
        )
        found = run("MaxPoolGradGradWithArgmax", image, tangent, argmax, **places)
        expected = run("MaxPoolGradGrad", image, pooled, tangent, **options, data_format=b"NHWC")
        np.testing.assert_array_equal(found, expected)


def test_fused_normalization_adds_the_side_input_and_cuts_negatives(rng):
    x, side = rng.normal(size=(2, 2, 3, 4, 5)).astype(np.float32)
    channels = rng.uniform(0.5, 2.0, (4, 5)).astype(np.float32)
    attrs = {
        "epsilon": 0.01,
        "exponential_avg_factor": 1.0,
        "data_format": b"NHWC",
        "is_training": True,
    }
    y, *statistics = run("FusedBatchNormV3", x, *channels, **attrs)
    for inputs, mode, expected in (
        ((), b"Identity", y),
        ((), b"Relu", np.maximum(y, 0)),
        ((side,), b"Relu", np.maximum(y + side, 0)),
    ):
        found, *others = run(
            "_FusedBatchNormEx", x, *channels, *inputs, activation_mode=mode, **attrs
        )
        np.testing.assert_array_equal(found, expected)
        for have, want in zip(others, statistics, strict=True):
            np.testing.assert_array_equal(have, want)


def test_contrast_of_an_old_tensorflow_is_cut_off(rng):
    image = rng.uniform(0.0, 1.0, (2, 4, 3, 3)).astype(np.float32)
    ends = (np.float32(0.2), np.float32(0.8))
    found = run("AdjustContrast", image, np.float32(2), *ends)
    expected = np.clip(run("AdjustContrastv2", image, np.float32(2)), *ends)
    np.testing.assert_array_equal(found, expected)


GRID = {"signed_input": True, "num_bits": 5, "range_given": True}


def test_quantization_of_an_old_tensorflow_takes_its_range_from_attrs(rng):
    x = rng.uniform(-2.0, 2.0, (3, 4)).astype(np.float32)
    found = run("QuantizeAndDequantize", x, **GRID, input_min=-1.1, input_max=1.3)
    options = {"round_mode": b"HALF_TO_EVEN", "narrow_range": False, "axis": -1}
    ends = (np.float32(-1.1), np.float32(1.3))
    np.testing.assert_array_equal(
        found, run("QuantizeAndDequantizeV2", x, *ends, **GRID, **options)
    )


def test_quantization_along_an_axis_is_that_of_its_slices(rng):
    x = rng.uniform(-2.0, 2.0, (2, 3, 4)).astype(np.float32)
    low, high = np.float32([-1.1, -0.5, -2]), np.float32([1, 2, 0.5])
    options = {**GRID, "round_mode": b"HALF_TO_EVEN", "narrow_range": True}
    found = run("QuantizeAndDequantizeV2", x, low, high, **options, axis=1)
    for i in range(3):
        expected = run("QuantizeAndDequantizeV2", x[:, i], low[i], high[i], **options, axis=-1)
        np.testing.assert_array_equal(found[:, i], expected)


@pytest.mark.parametrize("kind", ["Max", "Avg"])
@pytest.mark.parametrize("is_pseudo", [True, False])
@pytest.mark.parametrize("overlapping", [True, False])
def test_fractional_pooling_pools_the_regions_that_it_gives(kind, is_pseudo, overlapping, rng):
    x = rng.normal(size=(2, 11, 8, 3)).astype(np.float32)
    options = {
        "pooling_ratio": (1.0, 1.5, 1.44, 1.0),
        "pseudo_random": is_pseudo,
        "overlapping": overlapping,
        "deterministic": False,
        "seed": 3,
        "seed2": 4,
        "node_name": "pool",
    }
    found, rows, columns = run(f"Fractional{kind}Pool", None, x, **options)
    assert found.shape == (2, 7, 5, 3)
    for places, size in ((rows, 11), (columns, 8)):
        steps = np.diff(places)
        assert places[0] == 0
        assert places[-1] == size
        assert set(steps) <= {1, 2}
    reduce = np.max if kind == "Max" else np.mean
    for i, j in itertools.product(range(7), range(5)):
        cell = x[:, rows[i] : rows[i + 1] + overlapping, columns[j] : columns[j + 1] + overlapping]
        np.testing.assert_allclose(found[:, i, j], reduce(cell, (1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("interpolation", [b"NEAREST", b"BILINEAR"])
def test_projection_of_contrib_keeps_the_size(interpolation, rng):
    images = rng.normal(size=(2, 6, 5, 3)).astype(np.float32)
    maps = np.float32([[1.1, 0.2, -0.5, -0.1, 0.8, 0.7, 0, 0], [0.5, 0, 2, 0, -2, 4, 0, 0]])
    found = run("ImageProjectiveTransform", images, maps, interpolation=interpolation)
    options = {"interpolation": interpolation, "fill_mode": b"CONSTANT"}
    expected = run("ImageProjectiveTransformV2", images, maps, np.array([6, 5]), **options)
    np.testing.assert_array_equal(found, expected)


LAYOUTS = {2: (b"NHWC", b"NCHW"), 3: (b"NDHWC", b"NCDHW")}
# Op, rank, the attrs that are in the order of the axes, and others.
CHANNELS_FIRST: tuple[tuple[str, int, dict[str, Any], dict[str, Any]], ...] = (
    ("MaxPool", 2, {"ksize": (1, 3, 2, 1), "strides": (1, 2, 1, 1)}, {"explicit_paddings": ()}),
    ("AvgPool", 2, {"ksize": (1, 3, 2, 1), "strides": (1, 2, 1, 1)}, {}),
    ("MaxPool3D", 3, {"ksize": (1, 3, 2, 2, 1), "strides": (1, 2, 1, 1, 1)}, {}),
    ("AvgPool3D", 3, {"ksize": (1, 3, 2, 2, 1), "strides": (1, 2, 1, 1, 1)}, {}),
    ("Conv2D", 2, {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 1)}, {"explicit_paddings": ()}),
    ("Conv3D", 3, {"strides": (1, 2, 1, 1, 1), "dilations": (1, 1, 2, 1, 1)}, {}),
)


@pytest.mark.parametrize(
    ("op", "rank", "of_axes", "attrs"), CHANNELS_FIRST, ids=[case[0] for case in CHANNELS_FIRST]
)
def test_channels_first_is_channels_last_transposed(op, rank, of_axes, attrs, rng):
    last, first = LAYOUTS[rank]
    x = rng.normal(size=(2, *(6, 5, 4)[:rank], 3)).astype(np.float32)
    weights = rng.normal(size=(*(3, 2, 2)[:rank], 3, 4)).astype(np.float32)
    inputs = (weights,) if op.startswith("Conv") else ()

    @jax.jit
    def in_layout(x: Any, *inputs: Any) -> Any:
        moved = {name: (v[0], v[-1], *v[1:-1]) for name, v in of_axes.items()}
        y = run(
            op,
            jax.numpy.moveaxis(x, -1, 1),
            *inputs,
            padding=b"SAME",
            data_format=first,
            **moved,
            **attrs,
        )
        return jax.numpy.moveaxis(y, 1, -1)

    @jax.jit
    def expected(x: Any, *inputs: Any) -> Any:
        return run(op, x, *inputs, padding=b"SAME", data_format=last, **of_axes, **attrs)

    found, want = in_layout(x, *inputs), expected(x, *inputs)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
