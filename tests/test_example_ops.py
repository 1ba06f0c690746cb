"""Serialized examples to tensors: with TensorFlow as oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import jaxmeta
from jaxmeta import errors
from jaxmeta._proto import meta_graph_pb2

pytestmark = pytest.mark.needs_tf


def make_example(tf: Any, rng: Any, *, misses: bool = False) -> Any:
    """Returns features of random lengths, of which some miss."""

    def feature(**kind: Any) -> Any:
        return tf.train.Feature(**kind)

    words = [b"caf\xc3\xa9", b"", b"\xff\x00"]
    features = {
        "ids": feature(int64_list=tf.train.Int64List(value=rng.integers(-5, 5, rng.integers(4)))),
        "x": feature(float_list=tf.train.FloatList(value=rng.standard_normal(4))),
        "words": feature(
            bytes_list=tf.train.BytesList(value=[words[i] for i in rng.integers(0, 3, 2)])
        ),
        "free": feature(
            float_list=tf.train.FloatList(value=rng.standard_normal(2 * rng.integers(3)))
        ),
        "label": feature(int64_list=tf.train.Int64List(value=[3])),
    }
    if misses:
        for key in ("ids", "label", "free"):
            del features[key]
        features["unknown"] = feature()
    return tf.train.Features(feature=features)


def specs(tf: Any) -> dict[str, Any]:
    return {
        "ids": tf.io.VarLenFeature(tf.int64),
        "words": tf.io.VarLenFeature(tf.string),
        "x": tf.io.FixedLenFeature([2, 2], tf.float32),
        "label": tf.io.FixedLenFeature([], tf.int64, default_value=-1),
        "free": tf.io.FixedLenSequenceFeature([2], tf.float32, allow_missing=True),
    }


def run_both(tf: Any, build: Any, feeds: Any) -> tuple[list[Any], list[Any]]:
    """Returns the results of all tensors that a function makes."""
    tf1 = tf.compat.v1
    with tf.Graph().as_default(), tf1.Session() as session:
        tensors = [tensor for tensor in tf.nest.flatten(build(tf1), expand_composites=True) if True]
        saved = tf1.train.export_meta_graph()
        expected = session.run(tensors, feeds)
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(meta_graph_pb2.MetaGraphDef.FromString(saved.SerializeToString()))
        found = session.run([tensor.name for tensor in tensors], feeds)
    return found, expected


def check(found: list[Any], expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert np.shape(one) == np.shape(other)
        assert np.asarray(one).tolist() == np.asarray(other).tolist()


def contents(messages: Any) -> Any:
    array = np.empty(len(messages), object)
    array[:] = [message.SerializeToString() for message in messages]
    return array


@pytest.mark.parametrize("is_old", [False, True])
def test_batch_of_examples(tensorflow, is_old):
    rng = np.random.default_rng(5)
    messages = [
        tensorflow.train.Example(features=make_example(tensorflow, rng, misses=index == 2))
        for index in range(5)
    ]

    def build(tf1):
        serialized = tf1.placeholder(tf1.string, [None], name="serialized")
        if not is_old:
            ragged = {"ids": tensorflow.io.RaggedFeature(tensorflow.int64)}
            wanted = specs(tensorflow)
            parsed = tf1.io.parse_example(serialized, wanted)
            return parsed, tf1.io.parse_example(serialized, ragged)
        return tensorflow.raw_ops.ParseExample(
            serialized=serialized,
            names=[],
            sparse_keys=["ids", "words"],
            dense_keys=["label", "x"],
            dense_defaults=[np.int64(-1), np.float32([])],
            sparse_types=[tf1.int64, tf1.string],
            dense_shapes=[[], [4]],
        )

    check(*run_both(tensorflow, build, {"serialized:0": contents(messages)}))


@pytest.mark.parametrize("is_old", [False, True])
def test_single_example(tensorflow, is_old):
    rng = np.random.default_rng(6)
    message = tensorflow.train.Example(features=make_example(tensorflow, rng))

    def build(tf1):
        serialized = tf1.placeholder(tf1.string, [], name="serialized")
        if not is_old:
            return tf1.io.parse_single_example(serialized, specs(tensorflow))
        return tensorflow.raw_ops.ParseSingleExample(
            serialized=serialized,
            dense_defaults=[np.int64(-1), np.float32([])],
            num_sparse=1,
            sparse_keys=["words"],
            dense_keys=["label", "x"],
            sparse_types=[tf1.string],
            dense_shapes=[[], [4]],
        )

    check(*run_both(tensorflow, build, {"serialized:0": message.SerializeToString()}))


def make_sequence(tf: Any, rng: Any, steps: int) -> Any:
    lists = {}
    for key, field, make in (
        ("x", "float_list", lambda: tf.train.FloatList(value=rng.standard_normal(2))),
        ("ids", "int64_list", lambda: tf.train.Int64List(value=range(rng.integers(4)))),
    ):
        lists[key] = tf.train.FeatureList(
            feature=[tf.train.Feature(**{field: make()}) for _ in range(steps)]
        )
    return tf.train.SequenceExample(
        context=make_example(tf, rng), feature_lists=tf.train.FeatureLists(feature_list=lists)
    )


@pytest.mark.parametrize("kind", ["batch", "batch of the first version", "one"])
def test_sequences(tensorflow, kind):
    rng = np.random.default_rng(7)
    messages = [make_sequence(tensorflow, rng, steps) for steps in (2, 0, 3)]
    io = tensorflow.io
    context = {
        "words": io.VarLenFeature(tensorflow.string),
        "label": io.FixedLenFeature([], tensorflow.int64, default_value=-1),
    }
    lists = {
        "x": io.FixedLenSequenceFeature([2], tensorflow.float32),
        "ids": io.VarLenFeature(tensorflow.int64),
        "none": io.FixedLenSequenceFeature([], tensorflow.float32, allow_missing=True),
    }

    def build(tf1):
        if kind == "one":
            serialized = tf1.placeholder(tf1.string, [], name="serialized")
            return io.parse_single_sequence_example(serialized, context, lists)
        serialized = tf1.placeholder(tf1.string, [None], name="serialized")
        if kind == "batch":
            ragged = {"ids": io.RaggedFeature(tensorflow.int64)}
            return (
                io.parse_sequence_example(serialized, context, lists),
                io.parse_sequence_example(serialized, ragged, ragged),
            )
        common = {
            "serialized": serialized,
            "debug_name": [],
            "context_dense_defaults": [np.int64(-1)],
            "feature_list_dense_missing_assumed_empty": ["none"],
            "context_sparse_keys": ["words"],
            "context_dense_keys": ["label"],
            "feature_list_sparse_keys": ["ids"],
            "feature_list_dense_keys": ["none", "x"],
        }
        return tensorflow.raw_ops.ParseSequenceExample(
            **common,
            Ncontext_sparse=1,
            Ncontext_dense=1,
            Nfeature_list_sparse=1,
            Nfeature_list_dense=2,
            context_sparse_types=[tf1.string],
            context_dense_shapes=[[]],
            feature_list_dense_types=[tf1.float32, tf1.float32],
            feature_list_sparse_types=[tf1.int64],
            feature_list_dense_shapes=[[], [2]],
        )

    fed = messages[0].SerializeToString() if kind == "one" else contents(messages)
    check(*run_both(tensorflow, build, {"serialized:0": fed}))


@pytest.mark.parametrize(
    ("key", "shape", "kind", "message"),
    [
        ("missing", [], "int64", "is required but could not be found"),
        ("x", [3], "float32", "values size: 4"),
        ("x", [4], "int64", "Data types don't match"),
    ],
)
def test_example_that_does_not_fit_is_an_error(tensorflow, key, shape, kind, message):
    example = tensorflow.train.Example(
        features=make_example(tensorflow, np.random.default_rng(8))
    ).SerializeToString()
    tf1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default(), tf1.Session() as session:
        serialized = tf1.placeholder(tensorflow.string, [None], name="serialized")
        spec = tensorflow.io.FixedLenFeature(shape, getattr(tensorflow, kind))
        name = tf1.io.parse_example(serialized, {key: spec})[key].name
        saved = tf1.train.export_meta_graph()
        with pytest.raises(tensorflow.errors.InvalidArgumentError):
            session.run(name, {"serialized:0": [example]})
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(meta_graph_pb2.MetaGraphDef.FromString(saved.SerializeToString()))
        with pytest.raises(errors.InvalidArgumentError, match=message):
            session.run(name, {"serialized:0": [example]})
        with pytest.raises(errors.InvalidArgumentError, match="Could not parse example"):
            session.run(name, {"serialized:0": [b"\xff\xff\xff"]})
