"""One training, two engines: graphs and TensorBundles go from one to the other and back."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta as jm
from jaxmeta.errors import FormatError

pytestmark = pytest.mark.needs_tf


def step(state, x, y):
    def loss(w):
        return jnp.mean((x @ w + state["b"] - y) ** 2)

    value, gradient = jax.value_and_grad(loss)(state["params"]["w"])
    velocity = 0.9 * state["velocity"] + gradient
    params = {"w": state["params"]["w"] - 0.05 * velocity}
    key, _ = jax.random.split(state["key"])
    new = {**state, "params": params, "velocity": velocity, "n": state["n"] + 1, "key": key}
    return new, value


def first_state(rng):
    w = jnp.asarray(rng.normal(size=(3, 2)).astype(np.float32))
    return {
        "params": {"w": w},
        "velocity": jnp.zeros((3, 2)),
        "b": jnp.ones(2, jnp.bfloat16),
        "n": jnp.int32(0),
        "key": jax.random.key(3),
    }


@pytest.fixture
def batch(rng):
    return rng.normal(size=(8, 3)).astype(np.float32), rng.normal(size=(8, 2)).astype(np.float32)


@pytest.fixture
def graph(rng, batch):
    made = jm.Graph()
    made.add_signature("step", step, made.variables(first_state(rng)), *batch, updates=0)
    return made


def train_in_tensorflow(tf, meta, prefix, batch, steps, saved_as):
    """Restores, trains and saves with TensorFlow alone; returns what it saved."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        saver = tf.compat.v1.train.import_meta_graph(meta)
        saver.restore(session, prefix)
        for _ in range(steps):
            session.run("step/update", {"x:0": batch[0], "y:0": batch[1]})
        return saver.save(session, saved_as, global_step=steps, write_meta_graph=False)


def assert_close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=2e-5)


def test_training_goes_on_in_tensorflow_and_then_in_jax(tensorflow, rng, graph, batch, tmp_path):
    state = first_state(rng)
    run = jax.jit(step)
    for _ in range(3):
        state, _ = run(state, *batch)
    with jm.Saver(graph, checkpoint_format="tensor_bundle") as saver:
        prefix = saver.save(state, tmp_path / "ours", global_step=3)

    back = train_in_tensorflow(
        tensorflow, f"{prefix}.meta", prefix, batch, 4, str(tmp_path / "theirs")
    )

    for _ in range(4):
        state, _ = run(state, *batch)
    resumed = jm.load(back, meta_graph_file=f"{prefix}.meta")
    assert_close(resumed.state, state)
    resumed_state, loss = resumed["step"](resumed.state, *batch)
    expected_state, expected_loss = run(state, *batch)
    assert_close(resumed_state, expected_state)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    # Under the name of a graph of ours, it needs no telling.
    os.link(f"{prefix}.meta", f"{back}.meta")
    assert_close(jm.load(back).state, state)


def test_bundle_in_place_of_an_orbax_directory_is_loaded(rng, graph, batch, tmp_path):
    state = first_state(rng)
    prefixes = []
    for name in ("orbax", "tensor_bundle"):
        with jm.Saver(graph, checkpoint_format=name) as saver:
            prefixes.append(saver.save(state, tmp_path / name))
    for prefix in prefixes:
        run = jm.load(prefix)
        assert jax.tree.structure(run.state) == jax.tree.structure(state)
        assert_close(run.state, state)
        for a, b in zip(jax.tree.leaves(run.state), jax.tree.leaves(state), strict=True):
            assert a.dtype == b.dtype


@pytest.mark.parametrize("options", [{}, {"sharded": True}, {"reshape": True}, {"name": "mine"}])
def test_tensorflow_restores_what_a_saver_of_any_form_saved(tensorflow, tmp_path, rng, options):
    tf = tensorflow.compat.v1
    graph = jm.Graph()
    arrays = {"a/w": rng.normal(size=(2, 3)).astype(np.float32), "b": np.arange(4, dtype=np.int32)}
    for name, array in arrays.items():
        graph.add_variable(name, array, is_trainable=True)
    named = {"renamed": graph.variable("a/w"), "b": graph.variable("b")}
    session = jm.Session(graph)
    session.values.update(arrays)
    with jm.Saver(named, write_version=jm.SaverDef.V2, **options) as saver:
        prefix = saver.save(session, tmp_path / "m")
    with tensorflow.Graph().as_default(), tf.Session() as theirs:
        saver = tf.train.import_meta_graph(prefix + ".meta")
        saver.restore(theirs, prefix)
        found = theirs.run({v.op.name: v for v in tf.global_variables()})
        back = saver.save(theirs, str(tmp_path / "back"))
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    assert jm.list_variables(back) == [("b", [4]), ("renamed", [2, 3])]
    other = jm.Session(graph)
    jm.Saver(named).restore(other, back)
    for name, array in arrays.items():
        np.testing.assert_array_equal(other.values[name], array)


def make_in_tensorflow(tf, use_resource, rng):
    for name, shape in (("layer/w", [4, 3]), ("layer/b", [3])):
        value = rng.normal(size=shape).astype(np.float32)
        tf.get_variable(name, initializer=value, use_resource=use_resource)
    tf.get_variable("step", initializer=np.int64(7), use_resource=use_resource)
    tf.get_variable(
        "local",
        initializer=1.0,
        use_resource=use_resource,
        collections=[tf.GraphKeys.LOCAL_VARIABLES],
    )


@pytest.mark.parametrize("use_resource", [False, True])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("sharded", [False, True])
def test_what_tensorflow_saved_is_restored_by_its_saver_def(
    tensorflow, rng, tmp_path, use_resource, version, sharded
):
    tf = tensorflow.compat.v1
    with tensorflow.Graph().as_default(), tf.Session() as theirs:
        make_in_tensorflow(tf, use_resource, rng)
        theirs.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
        named = {f"saved/{v.op.name}": v for v in tf.global_variables()}
        saver = tf.train.Saver(named, write_version=version, sharded=sharded)
        prefix = saver.save(theirs, str(tmp_path / "m"), global_step=7)
        expected = theirs.run({v.op.name: v for v in tf.global_variables()})
    with jm.Graph().as_default(), jm.Session() as session:
        saver = jm.import_meta_graph(jm.meta_graph_filename(prefix))
        saver.restore(session, prefix)
        assert set(session.values) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(session.values[name], array)
            assert session.values[name].dtype == array.dtype
        again = saver.save(session, tmp_path / "again")
        saver.wait_until_finished()
    assert jm.list_variables(again) == jm.list_variables(prefix)
    assert jm.latest_checkpoint(tmp_path) == again


def test_checkpoint_in_which_names_are_missing_lists_them_all(tensorflow, rng, graph, tmp_path):
    tf = tensorflow.compat.v1
    with tensorflow.Graph().as_default(), tf.Session() as theirs:
        tf.get_variable("params/w", initializer=np.zeros((2, 2), np.float32))
        tf.get_variable("n", initializer=np.float32(0))
        theirs.run(tf.global_variables_initializer())
        prefix = tf.train.Saver().save(theirs, str(tmp_path / "m"))
    with jm.Session(graph) as session, pytest.raises(ValueError, match="does not fit") as caught:
        jm.Saver(graph).restore(session, prefix)
    message = str(caught.value)
    for name in ("velocity", "b", "key"):
        assert f"'{name}' is missing" in message
    assert "'params/w': shape (2, 2) is stored, (3, 2) is asked for" in message
    assert "'n': dtype float32 is stored, int32 is asked for" in message


def test_graph_that_tensorflow_wrote_anew_says_what_to_pass(
    tensorflow, rng, graph, batch, tmp_path
):
    tf = tensorflow.compat.v1
    state = first_state(rng)
    with jm.Saver(graph, checkpoint_format="tensor_bundle") as saver:
        prefix = saver.save(state, tmp_path / "ours")
    with tensorflow.Graph().as_default(), tf.Session() as theirs:
        again = tf.train.import_meta_graph(prefix + ".meta")
        again.restore(theirs, prefix)
        back = again.save(theirs, str(tmp_path / "theirs"))
    with pytest.raises(FormatError, match="meta_graph_file"):
        jm.load(back)
    assert_close(jm.load(back, meta_graph_file=prefix + ".meta").state, state)
