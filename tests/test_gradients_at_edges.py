"""Gradients where functions have none, or where TensorFlow defines another: TensorFlow's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import jaxmeta as jm

XENT = [[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]]
KINKS = [0.0, 6.0, 1.5, -1.0, 7.0]

# By name: a function of tensors, the operands, and whether the second derivatives are the same.
CASES: dict[str, tuple[Any, list[Any], bool]] = {
    "sqrt": (lambda tf, x: tf.sqrt(x), [[0.0, 4.0]], True),
    "rsqrt": (lambda tf, x: tf.math.rsqrt(x), [[0.0, 4.0]], True),
    "relu": (lambda tf, x: tf.nn.relu(x), [KINKS], True),
    "relu6": (lambda tf, x: tf.nn.relu6(x), [KINKS], True),
    "leaky_relu": (lambda tf, x: tf.nn.leaky_relu(x), [KINKS], True),
    "elu": (lambda tf, x: tf.nn.elu(x), [KINKS], True),
    "selu": (lambda tf, x: tf.nn.selu(x), [KINKS], True),
    "softplus": (lambda tf, x: tf.nn.softplus(x), [[0.0, 100.0, -100.0]], True),
    "rounding": (
        lambda tf, x: x * x + tf.round(x) + tf.floor(x) + tf.math.ceil(x) + tf.sign(x),
        [[0.5, 1.0, -2.2, 0.0]],
        True,
    ),
    "max_of_equals": (
        lambda tf, x: tf.reduce_max(x, 1) - 2.0 * tf.reduce_min(x, 1),
        [[[1.0, 1.0, 0.0], [2.0, 1.0, 2.0], [3.0, 3.0, 3.0]]],
        True,
    ),
    "prod": (
        lambda tf, x: tf.reduce_prod(x, 1),
        [[[1.0, 0.0, 2.0], [0.0, 0.0, 3.0], [2.0, 3.0, 4.0]]],
        False,  # TensorFlow's own are wrong at 0
    ),
    "floormod": (lambda tf, x, y: tf.math.floormod(x, y), [[5.5, -3.0], [2.0, 2.0]], True),
    "div_no_nan": (lambda tf, x, y: tf.math.divide_no_nan(x, y), [[1.0, 2.0], [0.0, 2.0]], True),
    "mul_no_nan": (
        lambda tf, x, y: tf.math.multiply_no_nan(x, y),
        [[1.0, 2.0], [0.0, 2.0]],
        False,  # what is 0 for a y of 0 has no mixed derivative there
    ),
    "xlogy": (lambda tf, x, y: tf.math.xlogy(x, y), [[0.0, 2.0, 0.0], [0.0, 2.0, 1.0]], True),
    "xlog1py": (lambda tf, x, y: tf.math.xlog1py(x, y), [[0.0, 2.0, 0.0], [-1.0, 2.0, 1.0]], True),
    "xdivy": (lambda tf, x, y: tf.math.xdivy(x, y), [[0.0, 2.0, 0.0], [0.0, 2.0, 1.0]], True),
    "norm": (lambda tf, x: tf.nn.l2_normalize(x, 1), [[[0.0, 0.0], [1.0, 2.0]]], False),
    "cross_entropy": (
        lambda tf, x, y: tf.nn.softmax_cross_entropy_with_logits(labels=y, logits=x),
        [XENT, [[0.5, 0.2, 0.9], [1.0, 1.0, 1.0]]],
        True,
    ),
    "sparse_cross_entropy": (
        lambda tf, x: tf.nn.sparse_softmax_cross_entropy_with_logits(labels=[0, 2], logits=x),
        [XENT],
        True,
    ),
}


def both_orders(gradients: Any, y: Any, xs: list[Any], seed: Any, *, is_second: bool) -> list[Any]:
    first = gradients(y, xs, grad_ys=[seed])
    known = [item for item in first if item is not None]
    return [*first, *(gradients(known, xs) if is_second else ())]


def plain(value: Any, like: Any) -> Any:
    return np.zeros_like(like) if value is None else np.asarray(value)


@pytest.mark.needs_tf
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_tensorflow_at_edges(name, rng, tmp_path, tensorflow):
    tf1, path = tensorflow.compat.v1, str(tmp_path / "theirs.meta")
    program, operands, is_second = CASES[name]
    arrays = [np.asarray(value, np.float32) for value in operands]
    with tensorflow.Graph().as_default(), tf1.Session() as session:
        xs = [tf1.placeholder(tensorflow.float32, x.shape, f"x{i}") for i, x in enumerate(arrays)]
        y = tensorflow.identity(program(tensorflow, *xs), "y")
        seed = rng.normal(size=y.shape).astype(np.float32)
        tf1.train.export_meta_graph(path)
        made = both_orders(tensorflow.gradients, y, xs, seed, is_second=is_second)
        feeds = dict(zip(xs, arrays, strict=True))
        expected = [None if item is None else session.run(item, feeds) for item in made]
    with jm.Graph().as_default() as graph, jm.Session(graph=graph) as session:
        jm.import_meta_graph(path)
        xs = [graph.get_tensor_by_name(f"x{i}:0") for i in range(len(arrays))]
        y = graph.get_tensor_by_name("y:0")
        made = both_orders(jm.gradients, y, xs, seed, is_second=is_second)
        feeds = dict(zip(xs, arrays, strict=True))
        found = [None if item is None else session.run(item, feeds) for item in made]
    for have, want, like in zip(found, expected, [*arrays, *arrays], strict=False):
        np.testing.assert_allclose(plain(have, like), plain(want, like), rtol=1e-4, atol=1e-5)
