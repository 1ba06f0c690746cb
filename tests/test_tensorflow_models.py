"""Models that people train in TensorFlow, exported there and trained on in JAX: the same losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest

import jaxmeta

NUM_STEPS: Final = 3
MODELS: Final[dict[str, Callable[..., Any]]] = {}
"""Name to a function of TensorFlow that builds a graph with nodes ``loss`` and ``train``; it gives
a function of random numbers that gives feeds."""


def model(build: Callable[..., Any]) -> Callable[..., Any]:
    MODELS[build.__name__] = build
    return build


def make_dense(tf: Any, x: Any, units: int, name: str, seed: int) -> Any:
    tf1 = tf.compat.v1
    start = tf1.glorot_uniform_initializer(seed=seed)
    weights = tf1.get_variable(f"{name}/weights", [x.shape[1], units], initializer=start)
    return x @ weights + tf1.get_variable(f"{name}/bias", initializer=tf.zeros([units]))


@model
def word2vec(tf):
    tf1 = tf.compat.v1
    tf1.set_random_seed(7)
    words = tf1.placeholder(tf.int32, [6], name="x")
    labels = tf1.placeholder(tf.int64, [6, 1], name="y")
    table = tf1.get_variable("table", initializer=tf.random.uniform([30, 4], -1, 1, seed=1))
    weights = tf1.get_variable("weights", initializer=tf.random.normal([30, 4], seed=2))
    bias = tf1.get_variable("bias", initializer=tf.zeros([30]))
    hidden = tf.nn.embedding_lookup(table, words)
    contrast = tf.nn.nce_loss(weights, bias, labels, hidden, 5, 30)
    softmax = tf.nn.sampled_softmax_loss(weights, bias, labels, hidden, 5, 30)
    loss = tf.reduce_mean(contrast + softmax, name="loss")
    tf1.train.GradientDescentOptimizer(0.1).minimize(loss, name="train")
    return lambda rng: {
        "x:0": rng.integers(0, 30, 6).astype(np.int32),
        "y:0": rng.integers(0, 30, (6, 1)),
    }


@model
def sparse_features(tf):
    tf1 = tf.compat.v1
    places = tf1.placeholder(tf.int64, [None, 2], name="places")
    ids = tf1.placeholder(tf.int64, [None], name="ids")
    shape = tf1.placeholder(tf.int64, [2], name="shape")
    labels = tf1.placeholder(tf.float32, [None, 1], name="labels")
    features = tf.SparseTensor(places, ids, shape)
    start = tf1.random_normal_initializer(seed=3)
    deep = tf1.get_variable("deep", [9, 3], initializer=start)
    wide = tf1.get_variable("wide", [9, 1], initializer=tf1.zeros_initializer())
    mean = tf1.nn.safe_embedding_lookup_sparse([deep], features, combiner="mean")
    total = tf1.nn.safe_embedding_lookup_sparse([wide], features, combiner="sqrtn")
    logits = make_dense(tf, tf.nn.relu(make_dense(tf, mean, 4, "a", 4)), 1, "b", 5) + total
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
    loss = tf.reduce_mean(losses, name="loss")
    first = tf1.train.FtrlOptimizer(0.1).minimize(loss, var_list=[wide])
    rest = [variable for variable in tf1.trainable_variables() if variable is not wide]
    with tf.control_dependencies([first]):
        tf1.train.AdagradOptimizer(0.1).minimize(loss, var_list=rest, name="train")
    indices = [[0, 0], [0, 2], [2, 1], [3, 0], [3, 3]]
    return lambda rng: {
        "places:0": np.asarray(indices),
        "ids:0": rng.permutation(9)[:5],
        "shape:0": np.asarray([4, 4]),
        "labels:0": rng.integers(0, 2, (4, 1)).astype(np.float32),
    }


@model
def variational_autoencoder(tf):
    tf1 = tf.compat.v1
    x = tf1.placeholder(tf.float32, [None, 6], name="x")
    step = tf1.get_variable("step", initializer=0, trainable=False)
    hidden = tf.tanh(make_dense(tf, x, 5, "hidden", 1))
    mean, scale = (make_dense(tf, hidden, 2, name, 2) for name in ("mean", "scale"))
    noise = tf.random.stateless_normal(tf.shape(mean), tf.stack([step, 5]))
    code = tf.nn.dropout(mean + tf.exp(scale) * noise, rate=0.2, seed=11)
    error = tf.reduce_mean((make_dense(tf, code, 6, "out", 3) - x) ** 2)
    loss = tf.identity(error + tf.reduce_mean(mean**2 + tf.exp(2 * scale) - scale), "loss")
    tf1.train.AdamOptimizer(0.01).minimize(loss, global_step=step, name="train")
    return lambda rng: {"x:0": rng.normal(size=(7, 6)).astype(np.float32)}


@model
def gaussian_process(tf):
    tf1 = tf.compat.v1
    x, y = (tf1.placeholder(tf.float32, [6, 1], name=name) for name in "xy")
    names = ("scale", "amplitude", "noise")
    scale, amplitude, noise = (tf1.get_variable(name, initializer=0.1) for name in names)
    distances = (x - tf.transpose(x)) ** 2
    kernel = tf.exp(amplitude - 0.5 * distances * tf.exp(-2 * scale))
    kernel = tf.linalg.set_diag(kernel, tf.linalg.diag_part(kernel) + tf.exp(noise))
    factor = tf.linalg.cholesky(kernel)
    fit = tf.reduce_sum(y * tf.linalg.cholesky_solve(factor, y))
    other_fit = tf.reduce_sum(y * tf.linalg.solve(kernel, y))
    volume = tf.reduce_sum(tf.math.log(tf.linalg.diag_part(factor)))
    loss = tf.identity(fit + other_fit + volume + tf.linalg.slogdet(kernel)[1], "loss")
    tf1.train.AdamOptimizer(0.05).minimize(loss, name="train")
    return lambda rng: {name: rng.normal(size=(6, 1)).astype(np.float32) for name in ("x:0", "y:0")}


@pytest.mark.needs_tf
@pytest.mark.parametrize("name", MODELS)
def test_training_goes_on_as_in_tensorflow(name, rng, tmp_path, tensorflow):
    tf1, prefix = tensorflow.compat.v1, str(tmp_path / "theirs")
    with tensorflow.Graph().as_default(), tf1.Session() as session:
        make_feeds = MODELS[name](tensorflow)
        feeds = [make_feeds(rng) for _ in range(NUM_STEPS)]
        saver = tf1.train.Saver(tf1.global_variables())
        session.run(tf1.global_variables_initializer())
        saver.save(session, prefix)
        expected = [session.run(["loss:0", "train"], fed)[0] for fed in feeds]

    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(f"{prefix}.meta").restore(session, prefix)
        losses = [session.run(["loss:0", "train"], fed)[0] for fed in feeds]
    np.testing.assert_allclose(np.asarray(losses), expected, rtol=1e-5)
