"""Whole programs of TensorFlow 1 that begin with text, trained from one checkpoint in both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import jaxmeta

pytestmark = pytest.mark.needs_tf


def train_both(tf: Any, build: Any, feeds: Any, steps: int, directory: Any) -> None:
    """Trains a graph in both, from the same checkpoint, and compares each loss."""
    tf1 = tf.compat.v1
    with tf.Graph().as_default(), tf1.Session() as session:
        build(tf1)
        inits = [tf1.global_variables_initializer(), tf1.tables_initializer()]
        session.run(inits)
        tf1.train.Saver().save(session, str(directory / "model"))
        expected = [session.run(["loss:0", "train"], feeds)[0] for _ in range(steps)]
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        saver = jaxmeta.import_meta_graph(str(directory / "model.meta"))
        saver.restore(session, str(directory / "model"))
        session.run(jaxmeta.get_collection("table_initializer"))
        found = [session.run(["loss:0", "train"], feeds)[0] for _ in range(steps)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[-1] < found[0]


def test_text_classifier_trains_as_in_tensorflow(tensorflow, tmp_path):
    def build(tf1):
        text = tf1.placeholder(tf1.string, [None], name="text")
        label = tf1.placeholder(tf1.int64, [None], name="label")
        clean = tensorflow.strings.regex_replace(tensorflow.strings.lower(text), "[^a-z ]", "")
        words = tf1.sparse_tensor_to_dense(tf1.string_split(clean), default_value="")
        table = tensorflow.lookup.StaticVocabularyTable(
            tensorflow.lookup.KeyValueTensorInitializer(
                ["good", "bad", "film"], np.arange(3, dtype=np.int64)
            ),
            num_oov_buckets=3,
        )
        initializer = tf1.random_uniform_initializer(seed=1)
        embedding = tf1.get_variable("embedding", [6, 4], initializer=initializer)
        weights = tf1.get_variable("weights", [4, 2], initializer=initializer)
        mean = tf1.reduce_mean(tf1.nn.embedding_lookup(embedding, table.lookup(words)), 1)
        loss = tf1.losses.sparse_softmax_cross_entropy(label, tf1.matmul(mean, weights))
        with tf1.control_dependencies([tf1.assert_less(loss, 100.0)]):
            loss = tf1.identity(loss, name="loss")
        tf1.train.AdagradOptimizer(0.5).minimize(loss, name="train")

    texts = ["A GOOD film!", "the bad, bad film", "good", "zzz b\u00e4d"]
    feeds = {"text:0": texts, "label:0": np.int64([1, 0, 1, 0])}
    train_both(tensorflow, build, feeds, 5, tmp_path)


def test_wide_and_deep_model_trains_as_in_tensorflow(tensorflow, tmp_path):
    def build(tf1):
        io, initializer = tf1.io, tf1.random_uniform_initializer(seed=1)
        spec = {
            "age": io.FixedLenFeature([1], tf1.float32),
            "label": io.FixedLenFeature([1], tf1.float32),
            "jobs": io.VarLenFeature(tf1.string),
        }
        features = io.parse_example(tf1.placeholder(tf1.string, [None], name="examples"), spec)
        jobs = features["jobs"]
        hashed = tensorflow.strings.to_hash_bucket_fast(jobs.values, 20)
        ids = tf1.SparseTensor(jobs.indices, hashed, jobs.dense_shape)
        tables = [
            tf1.get_variable(f"table_{size}", [20, size], initializer=initializer)
            for size in (1, 3)
        ]
        wide, deep = (
            tf1.nn.safe_embedding_lookup_sparse([table], ids, combiner=combiner)
            for table, combiner in zip(tables, ("sum", "mean"), strict=True)
        )
        ages = tf1.one_hot(tf1.raw_ops.Bucketize(input=features["age"][:, 0], boundaries=[30.0]), 2)
        weights = tf1.get_variable("weights", [5, 1], initializer=initializer)
        logits = wide + tf1.matmul(tf1.concat([deep, ages], 1), weights)
        loss = tf1.nn.sigmoid_cross_entropy_with_logits(labels=features["label"], logits=logits)
        loss = tf1.reduce_mean(loss, name="loss")
        tf1.train.FtrlOptimizer(0.3).minimize(loss, name="train")

    rng, train = np.random.default_rng(3), tensorflow.train
    examples = np.empty(12, object)
    for index in range(len(examples)):
        jobs = [b"job %d" % rng.integers(5) for _ in range(rng.integers(3))]
        floats = {"age": rng.uniform(10, 60), "label": float(index % 2)}
        features = {
            key: train.Feature(float_list=train.FloatList(value=[value]))
            for key, value in floats.items()
        }
        features["jobs"] = train.Feature(bytes_list=train.BytesList(value=jobs))
        message = train.Example(features=train.Features(feature=features))
        examples[index] = message.SerializeToString()
    train_both(tensorflow, build, {"examples:0": examples}, 5, tmp_path)


def test_input_pipeline_of_lines_feeds_training_as_in_tensorflow(tensorflow, tmp_path):
    def build(tf1):
        paths = [str(tmp_path / f"part-{i}.csv") for i in range(2)]
        for number, path in enumerate(paths):
            lines = [f"{number}.5,{j},{(number + j) % 2}\n" for j in range(6)]
            with open(path, "w", encoding="utf-8") as file:
                file.writelines(lines)
        queue = tf1.train.string_input_producer(paths, shuffle=False, num_epochs=2)
        _, line = tf1.TextLineReader().read(queue)
        a, b, label = tf1.io.decode_csv(line, [[0.0], [0.0], [0]])
        x, y = tf1.train.batch([tf1.stack([a, b]), label], batch_size=4)
        weights = tf1.get_variable(
            "weights", [2, 2], initializer=tf1.random_uniform_initializer(seed=1)
        )
        loss = tf1.losses.sparse_softmax_cross_entropy(y, tf1.matmul(x, weights))
        tf1.identity(loss, name="loss")
        tf1.train.GradientDescentOptimizer(0.05).minimize(loss, name="train")

    def train(module: Any, session: Any, out_of_range: Any) -> list[float]:
        coordinator, losses = module.Coordinator(), []
        threads = module.start_queue_runners(session, coord=coordinator)
        try:
            while True:
                losses.append(float(session.run(["loss:0", "train"])[0]))
        except out_of_range:
            coordinator.request_stop()
        coordinator.join(threads)
        return losses

    tf1, path = tensorflow.compat.v1, str(tmp_path / "model")
    with tensorflow.Graph().as_default(), tf1.Session() as session:
        build(tf1)
        tf1.group(tf1.local_variables_initializer(), name="start")
        session.run([tf1.global_variables_initializer(), "start"])
        tf1.train.Saver().save(session, path)
        expected = train(tf1.train, session, tensorflow.errors.OutOfRangeError)
    with jaxmeta.Graph().as_default(), jaxmeta.Session(allow_files=True) as session:
        jaxmeta.import_meta_graph(f"{path}.meta").restore(session, path)
        session.run("start")
        found = train(jaxmeta, session, jaxmeta.OutOfRangeError)
    assert len(found) == 6
    np.testing.assert_allclose(found, expected, rtol=1e-5)
