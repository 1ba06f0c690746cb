"""Session: parts of a graph by name, on the session's own values for the variables."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta
from jaxmeta import errors, executor

X = np.arange(12, dtype=np.float32).reshape(4, 3)


def make_state() -> Any:
    return {"w": jnp.full((3, 2), 0.5), "n": jnp.zeros((), jnp.int32)}


def make_graph() -> jaxmeta.Graph:
    graph = jaxmeta.Graph()
    variables = graph.variables(make_state())

    def step(state, x):
        return {"w": state["w"] - 0.25, "n": state["n"] + 1}, {"y": x @ state["w"]}

    graph.add_signature("step", step, variables, X, updates=0)
    graph.add_signature("predict", lambda w, x: x @ w, variables["w"], X)
    return graph


@pytest.fixture
def session():
    with jaxmeta.Session(make_graph()) as session:
        session.set_state(make_state())
        yield session


# --- fetches -------------------------------------------------------------------------------------


def test_fetches_may_be_tensors_operations_variables_or_names(session):
    graph = session.graph
    y = X @ np.full((3, 2), 0.5, np.float32)
    for fetch in ("predict:0", graph.get_tensor_by_name("predict:0")):
        np.testing.assert_array_equal(session.run(fetch, {"x:0": X}), y)
    for fetch in ("w:0", graph.variable("w")):
        np.testing.assert_array_equal(session.run(fetch), np.full((3, 2), 0.5))
    for fetch in ("predict", graph.get_operation_by_name("predict")):
        assert session.run(fetch, {"x:0": X}) is None


def test_fetches_keep_their_structure(session):
    fetches = {"y": "predict:0", "rest": ["n:0", ("w:0", "step/Assign"), []], "none": {}}
    found = session.run(fetches, {"x:0": X})
    assert found["rest"][0] == 0
    assert isinstance(found["rest"][1], tuple)
    assert found["rest"][1][0].shape == (3, 2)
    assert found["rest"][1][1] is None
    assert found["rest"][2] == []
    assert found["none"] == {}


def test_operation_within_a_dict_of_fetches_is_none(session):
    found = session.run({"op": "step/update", "loss": "step:2"}, {"x:0": X})
    assert set(found) == {"op", "loss"}
    assert found["op"] is None
    assert found["loss"].shape == (4, 2)


def test_same_fetch_twice(session):
    one, other = session.run(["predict:0", "predict:0"], {"x:0": X})
    np.testing.assert_array_equal(one, other)


def test_fetched_placeholder_is_what_was_fed(session):
    np.testing.assert_array_equal(session.run("x:0", {"x:0": X}), X)


# --- feeds ---------------------------------------------------------------------------------------


def test_feeds_may_be_keyed_by_tensors(session):
    x = session.graph.get_tensor_by_name("x:0")
    np.testing.assert_array_equal(
        session.run("predict:0", {x: X}), session.run("predict:0", {"x:0": X})
    )


@pytest.mark.parametrize("convert", [jnp.asarray, np.ndarray.tolist], ids=["jax", "lists"])
def test_feeds_may_be_arrays_or_lists_of_numbers(session, convert):
    np.testing.assert_array_equal(
        session.run("predict:0", {"x:0": convert(X)}), session.run("predict:0", {"x:0": X})
    )


def test_lists_of_ints_are_fed_as_what_the_placeholder_holds(session):
    found = session.run("predict:0", {"x:0": X.astype(int).tolist()})
    np.testing.assert_array_equal(found, session.run("predict:0", {"x:0": X}))


def test_any_tensor_may_be_fed(session):
    fed = np.ones((4, 2), np.float32)
    np.testing.assert_array_equal(session.run("predict:0", {"predict:0": fed}), fed)


def test_value_of_a_variable_may_be_fed(session):
    read = session.graph.variable("w").snapshot_name
    found = session.run("predict:0", {"x:0": X, read: np.ones((3, 2), np.float32)})
    np.testing.assert_array_equal(found, X @ np.ones((3, 2)))
    np.testing.assert_array_equal(session.state["w"], np.full((3, 2), 0.5))


def test_tensors_that_a_graph_was_imported_with_are_fed_by_handle():
    saved = jaxmeta.export_meta_graph(graph=make_graph())
    with jaxmeta.Graph().as_default() as graph, jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(saved)
        session.set_state(make_state())
        assert session.graph is graph
        x, y = (graph.get_tensor_by_name(name) for name in ("x:0", "predict:0"))
        np.testing.assert_array_equal(session.run(y, {x: X}), X @ np.full((3, 2), 0.5))


# --- state ---------------------------------------------------------------------------------------


def test_running_an_update_changes_the_session_s_variables(session):
    for step in range(1, 4):
        session.run("step/update", {"x:0": X})
        assert session.state["n"] == step
    np.testing.assert_array_equal(session.state["w"], np.full((3, 2), -0.25))


def test_values_beside_an_update_are_those_before_it(session):
    y, _ = session.run(["step:2", "step/update"], {"x:0": X})
    np.testing.assert_array_equal(y, X @ np.full((3, 2), 0.5))


def test_signature_without_its_update_changes_nothing(session):
    session.run("step:0", {"x:0": X})
    np.testing.assert_array_equal(session.state["w"], np.full((3, 2), 0.5))


def test_single_assignment_may_be_run(session):
    session.run("step/Assign", {"x:0": X})
    assert session.state["n"] == 1
    np.testing.assert_array_equal(session.state["w"], np.full((3, 2), 0.5))


def test_state_that_was_given_is_not_donated():
    state = make_state()
    with jaxmeta.Session(make_graph()) as session:
        session.set_state(state)
        session.run("step/update", {"x:0": X})
        assert not state["w"].is_deleted()


def test_fetched_variable_outlives_the_next_update(session):
    before = session.run("w:0")
    session.run("step/update", {"x:0": X})
    np.testing.assert_array_equal(before, np.full((3, 2), 0.5))


def test_state_that_was_read_outlives_the_next_update(session):
    before = session.state
    session.run("step/update", {"x:0": X})
    np.testing.assert_array_equal(before["w"], np.full((3, 2), 0.5))


def test_initializers_give_variables_their_first_values():
    with jaxmeta.Session(make_graph()) as session:
        session.run(["w/Assign", "n/Assign"])
        np.testing.assert_array_equal(session.state["w"], np.zeros((3, 2)))
        session.run("step/update", {"x:0": X})
        assert session.state["n"] == 1


def test_variable_s_initializer_may_run_again(session):
    session.run(session.graph.variable("w").initializer_name)
    np.testing.assert_array_equal(session.state["w"], np.zeros((3, 2)))


def test_session_and_signature_give_the_same_bits(session):
    program = jaxmeta.Program(session.graph, {})
    state, metrics = program["step"](make_state(), X)
    y, _ = session.run(["step:2", "step/update"], {"x:0": X})
    assert np.asarray(y).tobytes() == np.asarray(metrics["y"]).tobytes()
    assert np.asarray(session.state["w"]).tobytes() == np.asarray(state["w"]).tobytes()


def test_typed_keys_are_keys_in_the_state():
    def step(state):
        new, noise = jax.random.split(state["key"])
        return {"key": new}, jax.random.bits(noise)

    graph = jaxmeta.Graph()
    graph.add_signature("step", step, graph.variables({"key": jax.random.key(3)}), updates=0)
    with jaxmeta.Session(graph) as session:
        session.set_state({"key": jax.random.key(3)})
        bits, _ = session.run(["step:1", "step/update"])
        expected, noise = step({"key": jax.random.key(3)})
        assert bits == noise
        assert session.state["key"].dtype == expected["key"].dtype
        np.testing.assert_array_equal(
            jax.random.key_data(session.state["key"]), jax.random.key_data(expected["key"])
        )


def test_closed_over_arrays_are_there_from_the_beginning():
    table = jnp.arange(1000.0)
    graph = jaxmeta.Graph()
    graph.add_signature("look_up", lambda i: table[i], jnp.ones(2, int))
    with jaxmeta.Session(graph) as session:
        found = session.run("look_up:0", {"i:0": np.array([5, 7], np.int32)})
    np.testing.assert_array_equal(found, [5.0, 7.0])


def test_session_of_the_default_graph():
    with make_graph().as_default() as graph, jaxmeta.Session() as session:
        assert session.graph is graph


def test_signatures_added_after_the_session_can_be_run(session):
    session.graph.add_signature("more", lambda z: z + 1, jnp.ones(2))
    np.testing.assert_array_equal(
        session.run("more:0", {"z:0": np.ones(2, np.float32)}), [2.0, 2.0]
    )


def test_closed_session_holds_nothing(session):
    session.close()
    assert session.values == {}
    with pytest.raises(errors.SessionError, match="is closed"):
        session.run("w:0")


# --- compiling -----------------------------------------------------------------------------------


def test_same_fetches_and_feeds_are_traced_once(session, monkeypatch):
    traced = []
    run = executor.Function.__call__

    def counting(function, *arguments, **options):
        traced.append(function.name)
        return run(function, *arguments, **options)

    monkeypatch.setattr(executor.Function, "__call__", counting)
    session.run("predict:0", {"x:0": X})
    count = len(traced)
    assert count
    for factor in (2, 3):
        session.run("predict:0", {"x:0": X * factor})
    assert len(traced) == count


# --- graphs that TensorFlow wrote ----------------------------------------------------------------


def test_graph_of_tensorflow_runs_and_trains(tmp_path, tensorflow):
    tf1 = tensorflow.compat.v1
    path = str(tmp_path / "theirs.meta")
    with tensorflow.Graph().as_default(), tf1.Session() as theirs:
        x = tf1.placeholder(tensorflow.float32, [4, 3], name="x")
        w = tf1.get_variable("w", initializer=np.ones((3, 2), np.float32), use_resource=True)
        y = tensorflow.tanh(tensorflow.matmul(x, w), name="y")
        with tensorflow.control_dependencies([y]):
            update = w.assign(w - 0.5, name="update")
        tf1.add_to_collection("train_op", update.op)
        tf1.train.export_meta_graph(path)
        theirs.run(tf1.global_variables_initializer())
        expected = [theirs.run(y, {x: X}), theirs.run([update.op, y], {x: X * 0})[1]]
        expected.append(theirs.run(w))

    with jaxmeta.Graph().as_default(), jaxmeta.Session() as ours:
        jaxmeta.import_meta_graph(path)
        ours.run(jaxmeta.get_default_graph().variable("w").initializer_name)
        found = [ours.run("y:0", {"x:0": X})]
        (train_op,) = jaxmeta.get_collection("train_op")
        found.append(ours.run([train_op, "y:0"], {"x:0": X * 0})[1])
        found.append(ours.run("w:0"))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
