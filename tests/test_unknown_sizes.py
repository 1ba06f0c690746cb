"""Building over tensors whose sizes are not known: one graph for any batch, in TensorFlow too."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import jaxmeta as jm
from jaxmeta import errors
from jaxmeta._proto import graph_pb2, meta_graph_pb2
from jaxmeta.tracing import unifying

BATCHES = (1, 7, 128)


@pytest.fixture(autouse=True)
def _fresh_graph() -> Any:
    with jm.Graph().as_default():
        yield


def in_tensorflow(tensorflow: Any, feeds: list[dict[str, Any]], fetches: Any) -> list[Any]:
    """Returns what TensorFlow gives for the default graph, having initialized its variables."""
    tf = tensorflow.compat.v1
    init = jm.global_variables_initializer() if jm.global_variables() else jm.no_op("init")
    graph_def = jm.get_default_graph().as_graph_def().SerializeToString()
    with tensorflow.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(tf.GraphDef.FromString(graph_def), name="")
        session.run(init.name)
        return [session.run(fetches, feed) for feed in feeds]


def digits(size: int) -> dict[str, Any]:
    rng = np.random.default_rng(size)
    images = rng.standard_normal((size, 20)).astype(np.float32)
    return {"images:0": images, "labels:0": rng.integers(0, 10, size).astype(np.int32)}


def classifier() -> tuple[Any, Any]:
    """Returns the loss and the train operation of a small network over any batch."""
    weights = np.random.default_rng(0).standard_normal((20, 10)).astype(np.float32) / 5
    images = jm.placeholder("float32", [None, 20], "images")
    labels = jm.placeholder("int32", [None], "labels")
    w = jm.Variable(weights, name="w")
    b = jm.Variable(np.zeros(10, np.float32), name="b")
    logits = jm.call(lambda x, w, b: jax.nn.gelu(x @ w + b), images, w, b, name="hidden")
    assert logits.shape == (None, 10)
    loss = jm.call(loss_of, logits, labels, name="loss")
    return loss, jm.minimize(loss, optax.adam(0.01))


def loss_of(logits: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def jax_losses(batches: list[dict[str, Any]]) -> list[float]:
    params = {
        "w": np.random.default_rng(0).standard_normal((20, 10)).astype(np.float32) / 5,
        "b": np.zeros(10, np.float32),
    }
    optimizer = optax.adam(0.01)
    state, losses = optimizer.init(params), []
    for batch in batches:
        loss, grads = jax.value_and_grad(
            lambda p, batch=batch: loss_of(
                jax.nn.gelu(batch["images:0"] @ p["w"] + p["b"]), batch["labels:0"]
            )
        )(params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    return losses


def test_a_graph_of_unknown_batches_trains_as_jax_does():
    loss, train_op = classifier()
    batches = [digits(size) for size in BATCHES]
    with jm.Session() as session:
        session.run(jm.global_variables_initializer())
        found = [session.run([loss, train_op], batch)[0] for batch in batches]
    np.testing.assert_allclose(found, jax_losses(batches), rtol=1e-5)


@pytest.mark.needs_tf
def test_tensorflow_trains_the_same_graph_at_any_batch(tensorflow):
    loss, train_op = classifier()
    batches = [digits(size) for size in BATCHES]
    found = in_tensorflow(tensorflow, batches, [loss.name, train_op.name])
    np.testing.assert_allclose([step[0] for step in found], jax_losses(batches), rtol=1e-4)


@pytest.mark.needs_tf
def test_batches_of_two_sizes_are_refused_in_both(tensorflow):
    loss, _ = classifier()
    feed = {**digits(7), "labels:0": digits(5)["labels:0"]}
    with jm.Session() as session:
        session.run(jm.global_variables_initializer())
        with pytest.raises(errors.InvalidArgumentError, match=r"found \(5\), expected \(7\)"):
            session.run(loss, feed)
    with pytest.raises(tensorflow.errors.InvalidArgumentError):
        in_tensorflow(tensorflow, [feed], loss.name)


def test_sizes_that_need_not_be_the_same_stay_apart():
    queries, keys = (jm.placeholder("float32", [None, 4], name) for name in "qk")
    scores = jm.call(lambda q, k: q @ k.T, queries, keys)
    assert scores.shape == (None, None)
    with jm.Session() as session:
        found = session.run(scores, {queries: np.ones((3, 4)), keys: np.ones((5, 4))})
    np.testing.assert_array_equal(found, np.full((3, 5), 4.0))


def test_results_know_whose_sizes_they_have():
    x = jm.placeholder("float32", [None, 6], "x")
    rows = jm.call(lambda x: x.reshape(-1), x)
    doubled = jm.call(lambda x: jnp.concatenate([x, x]), x)
    back = jm.call(lambda r, x, d: r.reshape(x.shape) + d[: x.shape[0]], rows, x, doubled)
    nodes = len(jm.get_default_graph().nodes)
    jm.call(lambda x, y: x + y, x, back * 2.0)
    added = list(jm.get_default_graph().nodes.values())[nodes:]
    assert [node.op for node in added] == ["Const", "Mul", "AddV2"]


def test_a_size_equals_a_number_where_it_has_to():
    x = jm.placeholder("float32", [None, None], "x")
    y = jm.call(lambda x, w: x @ w, x, np.ones((3, 2), np.float32))
    assert y.shape == (None, 2)
    with jm.Session() as session:
        np.testing.assert_array_equal(session.run(y, {x: np.ones((4, 3))}), np.full((4, 2), 3.0))
        with pytest.raises(errors.InvalidArgumentError):
            session.run(y, {x: np.ones((4, 5))})


def test_named_sizes_say_what_jax_cannot_guess():
    unnamed = jm.placeholder("float32", [None, 6])
    with pytest.raises(jax.errors.InconclusiveDimensionOperation) as caught:
        jm.call(lambda x: x.reshape(-1, 4, 6), unnamed)
    assert "'10*rows'" in " ".join(caught.value.__notes__)
    named = jm.placeholder("float32", ["4*groups", 6], "x")
    split = jm.call(lambda x: x.reshape(-1, 4, 6).sum(1), named)
    with jm.Session() as session:
        assert session.run(split, {named: np.ones((8, 6))}).shape == (2, 6)


def test_dimensions_of_jax_export_keep_their_constraints(tmp_path):
    a, b = export.symbolic_shape("a, b", constraints=["a >= 2*b"])
    x, y = jm.placeholder("float32", [a, 3], "x"), jm.placeholder("float32", [b, 3], "y")
    jm.identity(jm.call(lambda x, y: x[y.shape[0] : 2 * y.shape[0]] + y, x, y), "sum")
    jm.export_meta_graph(str(tmp_path / "graph.meta"))
    with jm.Graph().as_default() as graph, jm.Session() as session:
        jm.import_meta_graph(str(tmp_path / "graph.meta"))
        again = jm.call(
            lambda x, y: x[: y.shape[0]] + y,
            graph.get_tensor_by_name("x:0"),
            graph.get_tensor_by_name("y:0"),
        )
        feed = {"x:0": np.ones((5, 3)), "y:0": np.ones((2, 3))}
        for fetch in ("sum:0", again):
            np.testing.assert_array_equal(session.run(fetch, feed), np.full((2, 3), 2.0))


def test_names_are_shared_between_placeholders():
    x = jm.placeholder("float32", ["batch", 3], "x")
    y = jm.placeholder("float32", ["batch"], "y")
    total = jm.call(lambda x, y: x.sum(1) * y, x, y)
    assert not any("same_size" in name for name in jm.get_default_graph().nodes)
    assert total.shape == (None,)
    with jm.Session() as session:
        with pytest.raises(ValueError, match=r"y:0: .* got \[1\] where batch is 5 \(in x:0\)"):
            session.run(total, {x: np.ones((5, 3)), y: np.ones(1)})
        assert session.run(total, {x: np.ones((5, 3)), y: np.ones(5)}).tolist() == [3.0] * 5


@pytest.mark.parametrize("size", ["1 +", "", 2.5, -3, True, object()])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(errors.GraphError):
        jm.placeholder("float32", [size])


def test_signatures_take_tensors_and_specs_of_unknown_sizes():
    x = jm.placeholder("float32", [None, 3], "x")
    hidden = jm.call(jnp.tanh, x)
    graph = jm.get_default_graph()
    spec = jax.ShapeDtypeStruct((None, 2), np.float32)
    graph.add_signature("f", lambda h, z: (h * h.shape[0], z.sum()), hidden, spec)
    with jm.Session() as session:
        for rows in (2, 5):
            feed = {x: np.ones((rows, 3)), "z:0": np.ones((rows + 1, 2))}
            found, total = session.run(["f:0", "f:1"], feed)
            np.testing.assert_allclose(found, np.full((rows, 3), np.tanh(1.0) * rows), rtol=1e-6)
            assert total == 2 * rows + 2
    with pytest.raises(errors.GraphError, match="rank"):
        graph.add_signature("g", jnp.sin, jm.placeholder("float32"))


def test_copies_of_a_graph_do_not_take_their_sizes_for_those_of_others():
    other = jm.Graph()
    with other.as_default():
        jm.call(jnp.tanh, jm.placeholder("float32", [None, 3], "x"), name="y")
    jm.placeholder("float32", [None, 3], "x")
    merged = jm.get_default_graph().merge(other, "there")
    with merged.as_default(), jm.Session() as session:
        here, there = (merged.get_tensor_by_name(name) for name in ("x:0", "there/y:0"))
        total = jm.call(lambda a, b: a + b, here, there)
        feed = {"x:0": np.ones((1, 3)), "there/x:0": np.ones((4, 3))}
        with pytest.raises(errors.InvalidArgumentError):
            session.run(total, feed)


def test_unknown_ranks_are_refused_until_they_are_set():
    x = jm.placeholder("float32", name="x")
    with pytest.raises(errors.GraphError, match="set_shape"):
        jm.call(jnp.sin, x)
    x.set_shape([None, 3])
    assert jm.call(jnp.sin, x).shape == x.shape == (None, 3)
    x.set_shape(["rows", None])
    assert x.shape == (None, 3)
    x.set_shape([5, None])
    assert x.shape == (5, 3)
    with pytest.raises(ValueError, match="not compatible"):
        x.set_shape([6, 3])
    with pytest.raises(ValueError, match="not compatible"):
        x.set_shape([5])
    x.set_shape(None)
    with jm.Session() as session, pytest.raises(ValueError, match=r"x:0: expected shape \[5, 3\]"):
        session.run(x, {x: np.ones((4, 3))})


def test_shapes_are_tensors_too():
    x = jm.placeholder("float32", [None, 3], "x")
    sizes = jm.shape(x)
    assert (jm.shape(jm.constant(np.ones((2, 5)))).op.type, sizes.shape) == ("Const", (2,))
    with jm.Session() as session:
        assert session.run(sizes, {x: np.ones((4, 3))}).tolist() == [4, 3]
        assert session.run(jm.shape(x, out_type="int32")[0], {x: np.ones((9, 3))}) == 9


def test_placeholders_may_have_defaults():
    x = jm.placeholder_with_default(np.ones((2, 3), np.float32), [None, 3], "x")
    y = jm.call(lambda x: x.sum(0) * x.shape[0], x)
    with jm.Session() as session:
        assert session.run(y).tolist() == [4.0] * 3
        assert session.run(y, {x: np.ones((3, 3))}).tolist() == [9.0] * 3
        with pytest.raises(ValueError, match="x:0"):
            session.run(y, {x: np.ones((3, 4))})
    with pytest.raises(ValueError, match="cannot have the default"):
        jm.placeholder_with_default(np.ones((2, 3), np.float32), [None, 4])


def test_gradients_of_tensors_of_unknown_sizes_are_those_of_jax():
    x = jm.placeholder("float32", [None, 3], "x")
    y = jm.call(lambda x: jnp.tanh(x) * x.mean(0), x)
    (first,) = jm.gradients(y, x)
    (second,) = jm.gradients(first, x)
    array = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)

    def slope(x: Any) -> Any:
        return jax.grad(lambda x: (jnp.tanh(x) * x.mean(0)).sum())(x)

    with jm.Session() as session:
        found = session.run([first, second], {x: array})
    np.testing.assert_allclose(found[0], slope(array), rtol=1e-5)
    expected = jax.grad(lambda x: slope(x).sum())(array)
    np.testing.assert_allclose(found[1], expected, rtol=1e-4, atol=1e-6)


# --- graphs that TensorFlow wrote ----------------------------------------------------------------


def inference_graph(tensorflow: Any) -> bytes:
    """Returns a network that TensorFlow wrote, as in its tutorial: two layers and a softmax."""
    tf = tensorflow.compat.v1
    rng = np.random.default_rng(3)
    with tensorflow.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [None, 8, 8], name="x")
        flat = tf.reshape(x, [-1, 64])
        w1 = tf.constant(rng.standard_normal((64, 16)) / 8, tf.float32)
        hidden = tf.nn.relu(tf.matmul(flat, w1), name="penultimate")
        logits = tf.matmul(hidden, tf.constant(rng.standard_normal((16, 4)), tf.float32))
        tf.nn.softmax(logits, name="probabilities")
        return bytes(graph.as_graph_def(add_shapes=True).SerializeToString())


@pytest.mark.needs_tf
def test_an_imported_inference_graph_gets_a_new_head_and_trains_in_both(tensorflow):
    graph_def = graph_pb2.GraphDef.FromString(inference_graph(tensorflow))
    (features,) = jm.import_graph_def(graph_def, return_elements=["penultimate:0"], name="")
    labels = jm.placeholder("float32", [None, 3], "labels")
    w = jm.Variable(np.full((16, 3), 0.1, np.float32), name="head/w")
    logits = jm.call(jnp.matmul, features, w, name="logits")
    loss = jm.call(
        lambda x, y: optax.softmax_cross_entropy(x, y).mean(), logits, labels, name="loss"
    )
    train_op = jm.minimize(loss, optax.sgd(0.05, momentum=0.9))
    rng = np.random.default_rng(4)
    feeds = [
        {
            "x:0": rng.standard_normal((size, 8, 8)).astype(np.float32),
            "labels:0": np.eye(3, dtype=np.float32)[rng.integers(0, 3, size)],
        }
        for size in (4, 1, 7)
    ]
    with jm.Session() as session:
        session.run(jm.global_variables_initializer())
        ours = [session.run([loss, train_op], feed)[0] for feed in feeds]
        ours.append(session.run(w))
    assert ours[2] != ours[0]
    there = in_tensorflow(
        tensorflow, feeds, [loss.name, train_op.name, "head/w/Read/ReadVariableOp:0"]
    )
    np.testing.assert_allclose([step[0] for step in there], ours[:3], rtol=1e-4)


@pytest.mark.needs_tf
def test_gradients_of_imported_losses_are_those_of_tensorflow(tensorflow):
    tf = tensorflow.compat.v1
    rng = np.random.default_rng(5)
    table = rng.standard_normal((9, 4)).astype(np.float32)
    with tensorflow.Graph().as_default() as graph, tf.Session() as session:
        ids = tf.placeholder(tf.int32, [None, 3], name="ids")
        y = tf.placeholder(tf.float32, [None], name="y")
        rows = tf.get_variable("table", initializer=table, use_resource=True)
        tied = tf.matmul(rows, rows, transpose_b=True)
        picked = tf.reduce_mean(tf.gather(rows, ids), axis=1)
        guess = tf.reduce_sum(picked, axis=1) + tf.reduce_sum(tied)
        loss = tf.reduce_mean(tf.squared_difference(guess, y), name="loss")
        slope = tf.convert_to_tensor(tf.gradients(loss, rows)[0])
        session.run(tf.global_variables_initializer())
        feed = {"ids:0": rng.integers(0, 9, (5, 3)), "y:0": rng.standard_normal(5)}
        expected = session.run(slope, feed)
        meta_graph = tf.train.export_meta_graph(graph=graph).SerializeToString()
    jm.import_meta_graph(meta_graph_pb2.MetaGraphDef.FromString(meta_graph))
    (found,) = jm.gradients(
        jm.get_default_graph().get_tensor_by_name("loss:0"), jm.global_variables()
    )
    with jm.Session() as session:
        session.run(jm.global_variables_initializer())
        np.testing.assert_allclose(session.run(found, feed), expected, rtol=1e-4)


def normalized(tf: Any, x: Any) -> Any:
    scale, offset = tf.constant(np.arange(1.0, 4.0), tf.float32), tf.zeros(3)
    mean, variance = tf.nn.moments(x, [0, 1, 2])
    fused, _, moving = tf.nn.fused_batch_norm(x, scale, offset)
    plain = tf.nn.batch_normalization(x, mean, variance, offset, scale, 1e-3)
    return tf.reduce_sum(fused**3 + plain**2) + tf.reduce_sum(tf.stop_gradient(moving))


def counted(tf: Any, x: Any) -> Any:
    size = tf.shape(x)[0]
    steps = tf.cast(tf.range(1, size + 1), tf.float32)
    sums = tf.math.unsorted_segment_sum(x[:, 0, 0], tf.range(size), size)
    picked = tf.one_hot(tf.range(size), size)
    return tf.reduce_mean(sums * steps[:, None]) + tf.reduce_sum(tf.matmul(picked, sums) ** 2)


def pooled(tf: Any, x: Any) -> Any:
    kernel = tf.constant(np.linspace(-1, 1, 54).reshape(3, 3, 3, 2), tf.float32)
    hidden = tf.nn.max_pool2d(tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME")), 2, 2, "VALID")
    flat = tf.reshape(hidden, [tf.shape(x)[0], -1])
    return tf.reduce_mean(tf.nn.l2_normalize(flat, 0) * tf.reduce_max(flat, 1, keepdims=True))


@pytest.mark.needs_tf
@pytest.mark.parametrize("build", [normalized, counted, pooled])
def test_tensorflows_ops_are_differentiated_at_any_size(build, tensorflow):
    tf = tensorflow.compat.v1
    with tensorflow.Graph().as_default() as graph, tf.Session() as session:
        x = tf.placeholder(tf.float32, [None, 4, 4, 3], name="x")
        loss = tf.identity(build(tf, x), name="loss")
        slope = tf.gradients(loss, x)[0]
        rng = np.random.default_rng(6)
        arrays = [rng.standard_normal((size, 4, 4, 3)).astype(np.float32) for size in (1, 5)]
        expected = [session.run([loss, slope], {x: array}) for array in arrays]
        data = graph.as_graph_def(add_shapes=True).SerializeToString()
    (found,) = jm.import_graph_def(graph_pb2.GraphDef.FromString(data), None, ["loss:0"], name="")
    (gradient,) = jm.gradients(found, jm.get_default_graph().get_tensor_by_name("x:0"))
    assert gradient.shape == (None, 4, 4, 3)
    with jm.Session() as session:
        for array, wanted in zip(arrays, expected, strict=True):
            ours = session.run([found, gradient], {"x:0": array})
            for one, other in zip(ours, wanted, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


# --- which sizes are made equal ------------------------------------------------------------------


def spec_of_sum(shapes: Any) -> Any:
    specs = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    return jax.eval_shape(lambda *xs: sum(xs[1:], xs[0]), *specs).shape


@pytest.mark.parametrize(
    ("shapes", "same"),
    [
        ([["a", "b"], ["a", "b"]], {}),
        ([["a", "10"], ["b", "10"], ["c", "10"]], {"b": "a", "c": "a"}),
        ([["a", "t"], ["b", "s"]], {"b": "a", "s": "t"}),
        ([["a", "1"], ["1", "b"]], {}),
        ([["2*a"], ["2*b"]], {"b": "a"}),
        ([["2*a", "3"], ["8", "3"]], {"a": 4}),
    ],
)
def test_only_sizes_that_must_be_equal_are_made_equal(shapes, same):
    assert unifying.trace(spec_of_sum, shapes).same == same


def test_a_function_that_no_equality_helps_raises_its_own_error():
    with pytest.raises(TypeError, match="incompatible"):
        unifying.trace(spec_of_sum, [["a", "3"], ["b", "4"]])
    with pytest.raises(TypeError, match="incompatible"):
        unifying.trace(spec_of_sum, [["a"], ["a + 1"]])
