"""The fragments of TensorFlow's tutorial, line by line, in both engines."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from google.protobuf import wrappers_pb2

import jaxmeta as jm
from jaxmeta._proto import event_pb2, meta_graph_pb2

optax = pytest.importorskip("optax")


def truncated_normal(shape, stddev):
    return lambda key: stddev * jax.random.truncated_normal(key, -2.0, 2.0, shape)


def build_inference_graph():
    """The tutorial's three layers; returns the logits."""
    layer = jm.constant(1.2, "float32", shape=[100, 28])
    sizes = {"hidden1": (28, 128), "hidden2": (128, 32), "softmax_linear": (32, 10)}
    for number, (scope, (inputs, outputs)) in enumerate(sizes.items()):
        with jm.name_scope(scope):
            weights = jm.Variable(
                truncated_normal([inputs, outputs], stddev=1.0 / math.sqrt(float(inputs))),
                name="weights",
                key=number,
            )
            biases = jm.Variable(jnp.zeros([outputs]), name="biases")
            layer = layer @ weights + biases
            if scope != "softmax_linear":
                layer = jm.call(jax.nn.relu, layer)
    jm.add_to_collection("logits", layer)
    return layer


def add_loss():
    """The tutorial's lines on an imported inference graph; returns loss and labels."""
    labels = jm.constant(0, "int32", shape=[100], name="labels")
    logits = jm.get_collection("logits")[0]
    cross_entropy = jm.call(
        optax.softmax_cross_entropy_with_integer_labels, logits, labels, name="xentropy"
    )
    return jm.call(jnp.mean, cross_entropy, name="loss"), labels


@pytest.fixture
def inference(tmp_path):
    """Saves the inference graph as the tutorial does, with nothing said of formats or waiting."""
    logits = build_inference_graph()
    init_all_op = jm.initialize_all_variables()
    with jm.Session() as sess:
        sess.run(init_all_op)
        sess.run(logits)
        saver0 = jm.Saver()
        prefix = saver0.save(sess, str(tmp_path / "my-model-10000"))
        saver0.export_meta_graph(f"{prefix}.meta")
    jm.reset_default_graph()
    return prefix


def test_scopes_give_the_names_of_the_tutorial():
    logits = build_inference_graph()
    assert [variable.op.name for variable in jm.trainable_variables()] == [
        f"{scope}/{name}"
        for scope in ("hidden1", "hidden2", "softmax_linear")
        for name in ("weights", "biases")
    ]
    assert logits.name == "softmax_linear/add:0"
    assert logits.op.type == "AddV2"
    assert logits.get_shape() == (100, 10)
    operations = {operation.name for operation in jm.get_default_graph().get_operations()}
    assert {"hidden1/matmul", "hidden1/add", "hidden2/matmul", "hidden2/add"} <= operations


def test_export_returns_the_message_and_writes_it_where_there_is_a_name(tmp_path):
    build_inference_graph()
    meta_graph_def = jm.export_meta_graph()
    assert isinstance(meta_graph_def, meta_graph_pb2.MetaGraphDef)
    assert list(tmp_path.iterdir()) == []
    written = jm.export_meta_graph(filename=tmp_path / "my-model.meta")
    assert jm.read_meta_graph_file(tmp_path / "my-model.meta") == written == meta_graph_def
    assert meta_graph_def.collection_def["logits"].node_list.value == ["softmax_linear/add:0"]


def test_size_of_a_tensor(inference):
    jm.import_meta_graph(f"{inference}.meta")
    _, labels = add_loss()
    batch_size = jm.call(lambda x: jnp.asarray(x.size), labels, name="size")
    with jm.Session() as sess:
        assert int(sess.run(batch_size)) == 100
        np.testing.assert_array_equal(sess.run("labels:0"), np.zeros(100))


def test_import_in_a_session_extends_its_graph(inference):
    with jm.Session() as sess:
        new_saver = jm.import_meta_graph(f"{inference}.meta")
        new_saver.restore(sess, inference)
        loss, _ = add_loss()
        train_op = jm.minimize(loss, optax.sgd(0.01))
        before = loss.eval()
        for _ in range(20):
            train_op.run()
        assert loss.eval() < before


def test_what_an_optimizer_remembers_is_initialized_apart(inference):
    with jm.Session() as sess:
        new_saver = jm.import_meta_graph(f"{inference}.meta")
        new_saver.restore(sess, inference)
        restored = set(jm.global_variables())
        loss, _ = add_loss()
        train_op = jm.minimize(loss, optax.adam(0.01))
        with pytest.raises(jm.GraphError, match="has no value"):
            sess.run(train_op)
        sess.run(jm.variables_initializer([v for v in jm.global_variables() if v not in restored]))
        losses = [float(sess.run([loss, train_op])[0]) for _ in range(5)]
        assert losses[-1] < losses[0]


def test_extended_graph_is_saved_and_goes_on(inference, tmp_path):
    """GraphExtension of TensorFlow's own tests: import, add, train, export, import, train."""
    with jm.Session() as sess:
        jm.import_meta_graph(f"{inference}.meta").restore(sess, inference)
        loss, _ = add_loss()
        jm.summary.scalar("loss", loss)
        global_step = jm.Variable(0, trainable=False, name="global_step")
        train_op = jm.minimize(loss, optax.sgd(0.01), global_step=global_step)
        sess.run(global_step.initializer)
        for _ in range(3):
            sess.run(train_op)
        saver = jm.Saver()
        prefix = saver.save(sess, str(tmp_path / "trained"), global_step=global_step)
        expected = [float(sess.run([loss, train_op])[0]) for _ in range(3)]
    assert prefix.endswith("trained-3")
    jm.reset_default_graph()
    with jm.Session() as sess:
        new_saver = jm.import_meta_graph(f"{prefix}.meta")
        new_saver.restore(sess, prefix)
        train_op = jm.get_collection("train_op")[0]
        summary = sess.run(jm.get_collection(jm.GraphKeys.SUMMARIES)[0])
        found = [float(sess.run(["loss:0", train_op])[0]) for _ in range(3)]
        assert int(sess.run("global_step:0")) == 6
    assert found == expected
    (value,) = event_pb2.Summary.FromString(summary).value
    assert value.simple_value == pytest.approx(expected[0])


def test_summaries_go_to_an_event_file(inference, tmp_path):
    pytest.importorskip("tensorboard")
    with jm.Session() as sess:
        jm.import_meta_graph(f"{inference}.meta").restore(sess, inference)
        loss, _ = add_loss()
        jm.summary.scalar("loss", loss)
        merged = jm.summary.merge_all()
        with jm.summary.FileWriter(str(tmp_path / "logs"), sess.graph) as writer:
            writer.add_summary(sess.run(merged), global_step=1)
    (path,) = (tmp_path / "logs").iterdir()
    assert path.stat().st_size > 0


def test_two_imports_live_in_scopes_of_one_graph(inference):
    with jm.Session() as sess:
        for scope in ("first", "second"):
            saver = jm.import_meta_graph(f"{inference}.meta", import_scope=scope)
            saver.restore(sess, inference)
        first, second = jm.get_collection("logits")
        assert (first.name, second.name) == (
            "first/softmax_linear/add:0",
            "second/softmax_linear/add:0",
        )
        np.testing.assert_array_equal(*sess.run([first, second]))


@dataclasses.dataclass
class HParams:
    learning_rate: float
    layers: tuple[int, ...]


@pytest.mark.parametrize(
    ("hparams", "expected"),
    [
        (HParams(0.1, (128, 32)), {"learning_rate": 0.1, "layers": (128, 32)}),
        ({"learning_rate": 0.1, "name": "sgd"}, {"learning_rate": 0.1, "name": "sgd"}),
        (7, 7),
        ("learning_rate=0.1", b"learning_rate=0.1"),
    ],
)
def test_hyperparameters_of_the_latest_checkpoint(tmp_path, hparams, expected):
    train_dir = str(tmp_path)
    jm.Variable(1.0, name="w")
    jm.add_to_collection("hparams", hparams)
    with jm.Session() as sess:
        sess.run(jm.global_variables_initializer())
        saver = jm.Saver()
        for step in (1, 2):
            saver.save(sess, f"{train_dir}/model", global_step=step)
    jm.reset_default_graph()
    filename = ".".join([jm.latest_checkpoint(train_dir), "meta"])
    assert filename == f"{train_dir}/model-2.meta"
    jm.import_meta_graph(filename)
    assert jm.get_collection("hparams") == [expected]


def test_variables_become_messages_and_come_back():
    """What the tutorial shows as the example of to_proto and from_proto."""
    with jm.name_scope("hidden1"):
        weights = jm.Variable(jnp.ones(3), name="weights")
    proto = weights.to_proto()
    assert proto.variable_name == "hidden1/weights:0"
    assert proto.initializer_name == weights.initializer.name
    assert weights.to_proto(export_scope="hidden1").variable_name == "weights:0"
    assert weights.to_proto(export_scope="hidden2") is None
    assert jm.Variable.from_proto(proto) == weights


class Label:
    """Knows a scope, as the tutorial's classes do."""

    def __init__(self, name):
        self.name = name

    def to_proto(self, export_scope=None):
        if export_scope is None or self.name.startswith(export_scope):
            name = self.name.removeprefix(f"{export_scope}/")
            return wrappers_pb2.StringValue(value=name)
        return None

    @staticmethod
    def from_proto(proto, import_scope=None):
        return Label(f"{import_scope}/{proto.value}" if import_scope else proto.value)


def test_objects_follow_the_scopes():
    jm.register_proto_function(
        "labels of test_tutorial_fragments",
        proto_type=wrappers_pb2.StringValue,
        to_proto=Label.to_proto,
        from_proto=Label.from_proto,
    )
    jm.Variable(1.0, name="a/w")
    for name in ("a/one", "b/two"):
        jm.add_to_collection("labels of test_tutorial_fragments", Label(name))
    whole = jm.export_meta_graph()
    part = jm.export_meta_graph(export_scope="a")
    for meta_graph_def, scope, expected in (
        (whole, None, ["a/one", "b/two"]),
        (whole, "c", ["c/a/one", "c/b/two"]),
        (part, None, ["one"]),
    ):
        jm.reset_default_graph()
        jm.import_meta_graph(meta_graph_def, import_scope=scope)
        found = jm.get_collection("labels of test_tutorial_fragments")
        assert [label.name for label in found] == expected


def test_queue_runner_becomes_a_message_and_comes_back():
    queue = jm.FIFOQueue(10, ["float32"], shapes=[[]], name="queue")
    runner = jm.QueueRunner(queue, [queue.enqueue(1.0)] * 2)
    proto = runner.to_proto()
    assert proto.queue_name == "queue"
    assert proto.enqueue_op_name == ["queue_enqueue"] * 2
    again = jm.QueueRunner.from_proto(proto)
    assert again.name == runner.name
    assert again.enqueue_ops == runner.enqueue_ops
