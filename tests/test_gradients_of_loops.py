"""Gradients through TensorFlow's loops and branches, and training through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import jaxmeta
from jaxmeta import errors

optax = pytest.importorskip("optax")

Model = Callable[[Any, Any, Any], Any]
RATE = 0.1
STEPS, FEATURES, UNITS = 4, 3, 5


class Cell:
    """A gated cell that makes its variables where it is first called, as those of TensorFlow do."""

    state_size = output_size = UNITS

    def __init__(self, tf: Any) -> None:
        self._tf = tf

    def zero_state(self, batch_size: Any, dtype: Any) -> Any:
        return self._tf.zeros([batch_size, UNITS], dtype)

    def __call__(self, inputs: Any, state: Any, scope: Any = None) -> Any:
        tf = self._tf
        with tf.compat.v1.variable_scope(scope or "cell"):
            joined = tf.concat([inputs, state], 1)
            kernel = variable(tf, "kernel", [joined.shape[1], 2 * UNITS])
            bias = variable(tf, "bias", [2 * UNITS])
            gate, new = tf.split(tf.matmul(joined, kernel) + bias, 2, axis=1)
            gate = tf.sigmoid(gate)
            state = gate * state + (1 - gate) * tf.tanh(new)
        return state, state


def variable(tf: Any, name: str, shape: list[int]) -> Any:
    def values(*_: Any, **__: Any) -> Any:
        made = np.sin(np.arange(int(np.prod(shape))) * 1.7 + len(name)).reshape(shape)
        return tf.constant(made * 0.4, tf.float32)

    return tf.compat.v1.get_variable(name, shape, tf.float32, values)


def rnn(tf: Any, x: Any, lengths: Any) -> Any:
    """A dynamic_rnn over all steps."""
    outputs, state = tf.compat.v1.nn.dynamic_rnn(Cell(tf), x, dtype=tf.float32)
    return tf.reduce_mean(outputs**2) + tf.reduce_mean(state)


def rnn_of_lengths(tf: Any, x: Any, lengths: Any) -> Any:
    """A dynamic_rnn that runs as often as the longest sequence has steps."""
    outputs, state = tf.compat.v1.nn.dynamic_rnn(Cell(tf), x, lengths, dtype=tf.float32)
    w = variable(tf, "projection", [UNITS, 1])
    return tf.reduce_mean(tf.tensordot(outputs, w, 1) ** 2) + tf.reduce_mean(state @ w)


def branch(tf: Any, x: Any, lengths: Any) -> Any:
    """A branch that reads variables, under a predicate that is fed."""
    w, v = variable(tf, "w", [FEATURES]), variable(tf, "v", [FEATURES])
    h = x * w
    y = tf.compat.v1.cond(tf.reduce_max(lengths) > 3, lambda: tf.sin(h) * v, lambda: h**2)
    return tf.reduce_sum(y)


def branches_in_loops(tf: Any, x: Any, lengths: Any) -> Any:
    """A loop around a branch around a loop, with a TensorArray of what all give."""
    tf1 = tf.compat.v1
    w = variable(tf, "w", [FEATURES, FEATURES])
    made = tf1.TensorArray(tf.float32, size=3)

    def body(i: Any, y: Any, made: Any) -> Any:
        def inner() -> Any:
            return tf1.while_loop(
                lambda j, _: j < 2, lambda j, z: (j + 1, tf.sin(z @ w)), [tf.constant(0), y]
            )[1]

        y = tf1.cond(tf.equal(i % 2, 0), inner, lambda: y * 0.5 + x[:, 0])
        return i + 1, y, made.write(i, y)

    _, _, made = tf1.while_loop(lambda i, *_: i < 3, body, [tf.constant(0), x[:, 1], made])
    return tf.reduce_mean(made.stack() ** 2)


def higher_order(tf: Any, x: Any, lengths: Any) -> Any:
    """tf.scan and tf.map_fn over the steps."""
    w = variable(tf, "w", [FEATURES])
    steps = tf.transpose(x, [1, 0, 2])
    scanned = tf.compat.v1.scan(lambda a, row: tf.tanh(a * w + row), steps)
    mapped = tf.compat.v1.map_fn(lambda row: row * w, steps)
    return tf.reduce_mean(scanned * mapped)


MODELS = [rnn, rnn_of_lengths, branch, branches_in_loops, higher_order]


class Written:
    """A model that TensorFlow wrote, and how it trains there."""

    def __init__(self, tensorflow: Any, path: Any, model: Model, feeds: Any, kind: str) -> None:
        tf1 = tensorflow.compat.v1
        was_v2 = tf1.control_flow_v2_enabled()
        (tf1.enable_control_flow_v2 if kind == "functions" else tf1.disable_control_flow_v2)()
        self.path = str(path / "theirs.meta")
        try:
            with tensorflow.Graph().as_default() as graph, tf1.Session() as session:
                self._build(tensorflow, model, use_resource=kind != "references")
                tf1.train.export_meta_graph(self.path)
                train = tf1.train.GradientDescentOptimizer(RATE).minimize(
                    graph.get_tensor_by_name("loss:0")
                )
                session.run("init")
                self.losses = []
                for fed in feeds:
                    self.losses.append(session.run("loss:0", fed))
                    session.run(train, fed)
                self.ops = {node.op for node in graph.as_graph_def().node}
        finally:
            (tf1.enable_control_flow_v2 if was_v2 else tf1.disable_control_flow_v2)()

    def _build(self, tf: Any, model: Model, *, use_resource: bool) -> None:
        tf1 = tf.compat.v1
        batch = None if model is not branch else 2
        x = tf1.placeholder(tf.float32, [batch, STEPS, FEATURES], "x")
        lengths = tf1.placeholder(tf.int32, [batch], "lengths")
        with tf1.variable_scope("", use_resource=use_resource):
            tf.identity(model(tf, x, lengths), "loss")
        tf.group(tf1.global_variables_initializer(), name="init")


@pytest.fixture
def feeds(rng):
    x = rng.normal(size=(3, 2, STEPS, FEATURES)).astype(np.float32)
    lengths = np.asarray([[2, 3], [1, 4], [2, 2]], np.int32)
    return [{"x:0": x[i], "lengths:0": lengths[i]} for i in range(3)]


@pytest.mark.needs_tf
@pytest.mark.parametrize(
    ("model", "kind"),
    [
        *((model, "resources") for model in MODELS),
        (branch, "references"),
        (rnn_of_lengths, "functions"),
        (branches_in_loops, "functions"),
    ],
)
def test_models_with_loops_train_as_in_tensorflow(model, kind, feeds, tmp_path, tensorflow):
    written = Written(tensorflow, tmp_path, model, feeds, kind)
    with jaxmeta.Graph().as_default() as graph, jaxmeta.Session(graph=graph) as session:
        jaxmeta.import_meta_graph(written.path)
        loss = graph.get_tensor_by_name("loss:0")
        train = jaxmeta.minimize(loss, optax.sgd(RATE))
        session.run("init")
        losses = []
        for fed in feeds:
            losses.append(session.run(loss, fed))
            session.run(train, fed)
        assert not session.op_by_op
    np.testing.assert_allclose(losses, written.losses, rtol=1e-5)


def imported(tf: Any, path: Any, program: Callable[[Any, Any], Any]) -> Any:
    """Returns an imported graph of TensorFlow 1, and its tensors x and y."""
    tf1 = tf.compat.v1
    was_v2 = tf1.control_flow_v2_enabled()
    tf1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default():
            tf.identity(program(tf, tf1.placeholder(tf.float32, [3], "x")), "y")
            tf1.train.export_meta_graph(str(path / "theirs.meta"))
    finally:
        (tf1.enable_control_flow_v2 if was_v2 else tf1.disable_control_flow_v2)()
    graph = jaxmeta.Graph()
    with graph.as_default():
        jaxmeta.import_meta_graph(str(path / "theirs.meta"))
    return graph, graph.get_tensor_by_name("x:0"), graph.get_tensor_by_name("y:0")


def by_value(tf: Any, x: Any) -> Any:
    return tf.compat.v1.while_loop(lambda y: tf.reduce_sum(y) < 100.0, lambda y: y * 1.5, [x])


def random_in_branch(tf: Any, x: Any) -> Any:
    return tf.compat.v1.cond(x[0] > 0, lambda: x * tf.random.uniform([3]), lambda: tf.identity(x))


@pytest.mark.needs_tf
@pytest.mark.parametrize(
    ("program", "error", "message"),
    [
        (by_value, NotImplementedError, "maximum_iterations"),
        (random_in_branch, NotImplementedError, "random_uniform"),
    ],
)
def test_what_has_no_gradient_here_is_refused(program, error, message, tmp_path, tensorflow):
    graph, x, y = imported(tensorflow, tmp_path, program)
    with graph.as_default(), pytest.raises(error, match=message) as caught:
        jaxmeta.gradients(y, [x])
    assert isinstance(caught.value, errors.JaxmetaError)


@pytest.mark.needs_tf
def test_gradients_by_what_lies_in_a_loop_are_refused(tmp_path, tensorflow):
    def program(tf: Any, x: Any) -> Any:
        return tf.compat.v1.while_loop(
            lambda i, _: i < 2,
            lambda i, y: (i + 1, tf.multiply(y, x, name="inner")),
            [tf.constant(0), x],
        )[1]

    graph, _, y = imported(tensorflow, tmp_path, program)
    inner = graph.get_tensor_by_name("while/inner:0")
    with graph.as_default(), pytest.raises(errors.GraphError, match="lie in a loop"):
        jaxmeta.gradients(y, [inner])


@pytest.mark.needs_tf
def test_second_derivatives_through_a_loop(rng, tmp_path, tensorflow):
    def program(tf: Any, x: Any) -> Any:
        return tf.compat.v1.while_loop(
            lambda i, _: i < 3, lambda i, y: (i + 1, tf.sin(y) * x), [tf.constant(0), x]
        )[1]

    def same(x: Any) -> Any:
        y = x
        for _ in range(3):
            y = jax.numpy.sin(y) * x
        return y

    graph, x, y = imported(tensorflow, tmp_path, program)
    value = rng.normal(size=3).astype(np.float32)
    with graph.as_default(), jaxmeta.Session(graph=graph) as session:
        (first,) = jaxmeta.gradients(y, [x])
        (second,) = jaxmeta.gradients(first, [x])
        found = session.run([first, second], {x: value})
    derivative = jax.vmap(jax.grad(same))
    expected = [derivative(value), jax.vmap(jax.grad(jax.grad(same)))(value)]
    for have, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)


@pytest.mark.needs_tf
@pytest.mark.parametrize("is_v2", [False, True])
def test_a_branch_that_is_known_is_the_only_one_traced(is_v2, rng, tmp_path, tensorflow):
    tf1, path = tensorflow.compat.v1, str(tmp_path / "theirs.meta")
    image = rng.normal(size=(4, 6, 1)).astype(np.float32)
    was_v2 = tf1.control_flow_v2_enabled()
    (tf1.enable_control_flow_v2 if is_v2 else tf1.disable_control_flow_v2)()
    try:
        with tensorflow.Graph().as_default():
            x = tf1.placeholder(tensorflow.float32, [None, None, 1], "x")
            tensorflow.identity(tensorflow.image.rot90(x), "y")
            tf1.train.export_meta_graph(path)
    finally:
        (tf1.enable_control_flow_v2 if was_v2 else tf1.disable_control_flow_v2)()
    with jaxmeta.Graph().as_default() as graph, jaxmeta.Session(graph=graph) as session:
        jaxmeta.import_meta_graph(path)
        np.testing.assert_array_equal(session.run("y:0", {"x:0": image}), np.rot90(image))
        assert not session.op_by_op
