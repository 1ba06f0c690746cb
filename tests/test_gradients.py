"""Gradients of tensors: JAX and TensorFlow as oracles."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta as jm
from jaxmeta import errors


@jax.custom_vjp
def clipped(x):
    return x * x


clipped.defvjp(lambda x: (x * x, x), lambda x, g: (jnp.clip(3.0 * x * g, -1.0, 1.0),))

FUNCTIONS = {
    "polynomial": lambda x, w: jnp.sum((x @ w) ** 3),
    "network": lambda x, w: jnp.mean(jax.nn.relu(x @ w + 0.1) - jax.nn.softmax(x @ w)),
    "custom_vjp": lambda x, w: jnp.sum(clipped(x @ w)),
    "scan": lambda x, w: jnp.sum(
        jax.lax.scan(lambda c, row: (jnp.tanh(c + row @ w), c), jnp.zeros(2), x)[0]
    ),
    "cond": lambda x, w: jax.lax.cond(x[0, 0] > 0, jnp.sum, lambda y: jnp.sum(y * y), x @ w),
    "remat": lambda x, w: jnp.sum(jax.checkpoint(lambda y: jnp.sin(jnp.sin(y)))(x @ w)),
    "gather": lambda x, w: jnp.sum(jnp.take(x, jnp.array([0, 2, 2]), axis=0) @ w),
}


@pytest.fixture
def values(rng):
    return rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=(3, 2)).astype(np.float32)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_those_of_jax_to_the_second_order(values, name):
    fn = FUNCTIONS[name]
    x, w = values
    a, b = jm.constant(x), jm.placeholder("float32", w.shape, "w")
    y = jm.call(lambda a, b: fn(a, b), a, b)
    first = jm.gradients(y, [a, b])
    second = jm.gradients([jm.call(jnp.sum, first[0])], [b])
    with jm.Session() as session:
        found = session.run([*first, *(g for g in second if g is not None)], {b: w})
    expected = list(jax.grad(fn, (0, 1))(x, w))
    expected.append(jax.grad(lambda w: jnp.sum(jax.grad(fn)(x, w)))(w))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


def test_derivative_rules_of_functions_survive(values):
    x, w = values
    a, b = jm.constant(x), jm.constant(w)
    (grad,) = jm.gradients(jm.call(lambda a, b: jnp.sum(clipped(a @ b)), a, b), b)
    with jm.Session() as session:
        found = session.run(grad)
    np.testing.assert_allclose(found, x.T @ np.clip(3 * (x @ w), -1, 1), rtol=1e-5)


def test_third_derivatives():
    x = jm.placeholder("float32", [], "x")
    y = x**5.0
    for _ in range(3):
        (y,) = jm.gradients(y, x)
    with jm.Session() as session:
        assert float(session.run(y, {x: 2.0})) == pytest.approx(60 * 4.0)


def test_nodes_of_the_forward_pass_are_not_added_again(values):
    x, w = values
    b = jm.Variable(w, name="w")
    y = jm.call(lambda a, b: jnp.sum(jnp.tanh(a @ b)), jm.constant(x), b)
    before = set(jm.get_default_graph().nodes)
    jm.gradients(y, b)
    added = [n for name, n in jm.get_default_graph().nodes.items() if name not in before]
    assert all(node.name.startswith("gradients/") for node in added)
    assert [node.op for node in added].count("MatMul") == 1
    assert "Tanh" not in [node.op for node in added]


CASES = {
    "unconnected": lambda tf, x, w: (x * 2.0, [x, w]),
    "through_an_integer": lambda tf, x, w: (x * 0.0 + w, [x]),
    "both_variable_and_read": lambda tf, x, w: ((w + 1.0) * (w * x), [w, x]),
    "y_itself": lambda tf, x, w: (x, [x]),
    "x_depends_on_x": lambda tf, x, w: ((lambda h: (h * h * w, [h, w, x]))(x * w),)[0],
    "vector": lambda tf, x, w: (x * w * [1.0, 2.0, 3.0], [x, w]),
    "division": lambda tf, x, w: (x / (w + 2.0) - x**2.0, [w, x]),
}


@pytest.mark.needs_tf
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_tensorflow(tensorflow, rng, name):
    tf = tensorflow.compat.v1
    x = rng.uniform(0.5, 1.5, 3).astype(np.float32)
    w = rng.uniform(0.5, 1.5, 3).astype(np.float32)
    with tf.Graph().as_default(), tf.Session() as session:
        theirs = tf.gradients(
            *CASES[name](tf, a := tf.placeholder(tf.float32, [3]), tf.Variable(w, name="w"))
        )
        session.run(tf.global_variables_initializer())
        expected = [None if g is None else session.run(g, {a: x}) for g in theirs]
    a = jm.placeholder("float32", [3])
    ours = jm.gradients(*CASES[name](jm, a, jm.Variable(w, name="w")))
    with jm.Session() as session:
        session.run(jm.global_variables_initializer())
        found = [None if g is None else session.run(g, {a: x}) for g in ours]
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=1e-5)


def test_seeds_and_stops(values):
    x, w = values
    a, b = jm.constant(x), jm.constant(w)
    y = a @ b
    seed = np.full((4, 2), 2.0, np.float32)
    grad, nothing = jm.gradients(y * y, [b, a], grad_ys=seed, stop_gradients=[a])
    assert nothing is None
    with jm.Session() as session:
        np.testing.assert_allclose(session.run(grad), x.T @ (4 * (x @ w)), rtol=1e-5)
    assert jm.gradients(y * y, [b], stop_gradients=[y]) == [None]


def test_integers_pass_no_gradients():
    x = jm.placeholder("float32", [3], "x")
    index = jm.call(lambda x: jnp.argmax(x).astype(jnp.float32), x)
    assert jm.gradients(index * 2.0, x) == [None]


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda x: jm.gradients(jm.constant(1), x), TypeError),
        (lambda x: jm.gradients(x, x, grad_ys=[1.0, 2.0]), ValueError),
        (lambda x: jm.gradients(x, x, grad_ys=np.ones(2, np.float32)), ValueError),
        (lambda x: jm.gradients([p := jm.placeholder("float32")], [p]), ValueError),
        (lambda x: jm.gradients(jm.constant(1j, "complex64"), x), TypeError),
    ],
)
def test_what_has_no_gradient_is_refused(use, error):
    x = jm.placeholder("float32", [3], "x")
    with pytest.raises(error) as caught:
        use(x)
    assert isinstance(caught.value, errors.JaxmetaError)


@pytest.mark.needs_tf
def test_an_imported_graph_is_differentiated(tensorflow, rng):
    tf = tensorflow.compat.v1
    x, w = rng.normal(size=(4, 6)).astype(np.float32), rng.normal(size=(6, 2)).astype(np.float32)
    with tf.Graph().as_default(), tf.Session() as session:
        images = tf.placeholder(tf.float32, [4, 2, 3], name="x")
        flat = tf.reshape(images, [4, 6])
        weights = tf.Variable(w, name="w", use_resource=True)
        loss = tf.reduce_sum(tf.tanh(flat @ weights), name="loss")
        (theirs,) = tf.gradients(loss, [weights])
        session.run(tf.global_variables_initializer())
        expected = session.run(theirs, {images: x.reshape(4, 2, 3)})
        meta = tf.train.export_meta_graph()
    jm.import_meta_graph(jm.export_meta_graph().FromString(meta.SerializeToString()))
    graph = jm.get_default_graph()
    (grad,) = jm.gradients(graph.get_tensor_by_name("loss:0"), jm.global_variables())
    with jm.Session() as session:
        session.run(jm.global_variables_initializer())
        found = session.run(grad, {"x:0": x.reshape(4, 2, 3)})
    np.testing.assert_allclose(found, expected, rtol=1e-5)
