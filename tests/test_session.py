"""Session: parts of a graph by name, on the session's own values for the variables."""

from __future__ import annotations

import collections
import dataclasses
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta
from jaxmeta import errors
from jaxmeta.execution import executor

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


# --- fetches as in TensorFlow --------------------------------------------------------------------


class Pair(NamedTuple):
    y: Any
    op: Any


@dataclasses.dataclass
class Record:
    y: Any
    rest: Any


def test_structures_come_back_in_their_classes(session):
    order = collections.OrderedDict(b="predict:0", a=("n:0",))
    fetches = [Pair("predict:0", "predict"), order, Record("n:0", [{"deep": "n:0"}])]
    pair, ordered, record = session.run(fetches, {"x:0": X})
    assert isinstance(pair, Pair)
    assert pair.op is None
    assert pair.y.shape == (4, 2)
    assert list(ordered) == ["b", "a"]
    assert isinstance(ordered, collections.OrderedDict)
    assert isinstance(record, Record)
    assert record.rest[0]["deep"] == record.y == 0
    found = session.run(collections.defaultdict(list, n="n:0"))
    assert found.default_factory is list


@pytest.mark.needs_tf
@pytest.mark.parametrize("fetches", [None, [None], {"a": None}, 3.0, ["x:0", 1]], ids=repr)
def test_what_tensorflow_refuses_to_fetch_is_refused_with_its_error(session, tensorflow, fetches):
    tf1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default(), tf1.Session() as theirs:
        tf1.placeholder(tensorflow.float32, name="x")
        with pytest.raises(TypeError):
            theirs.run(fetches)
    with pytest.raises(TypeError, match="cannot fetch"):
        session.run(fetches)


def test_names_that_are_no_tensors_are_no_feeds(session):
    with pytest.raises(TypeError, match="no node named 'nope'"):
        session.run("n:0", {"nope:0": 1})
    with pytest.raises(TypeError, match="cannot feed 7"):
        session.run("n:0", {7: 1})
    with pytest.raises(TypeError, match="the value of a feed cannot be"):
        session.run("predict:0", {"x:0": session.graph.get_tensor_by_name("x:0")})


def test_handles_of_resources_cannot_be_fed():
    graph = jaxmeta.Graph()
    attrs = {"dtype": np.dtype(np.float32), "shape": ()}
    graph.add_node("VarHandleOp", [], attrs, "w")
    with (
        jaxmeta.Session(graph) as session,
        pytest.raises(errors.FeedError, match="a resource cannot be fed"),
    ):
        session.run("w:0", {"w:0": np.float32(1)})


def test_tensor_may_be_fed_only_once(session):
    x = session.graph.get_tensor_by_name("x:0")
    with pytest.raises(errors.FeedError, match="name a tensor twice"):
        session.run("predict:0", {"x:0": X, x: X})


def test_elements_of_another_graph_are_refused(session):
    other = make_graph()
    with pytest.raises(ValueError, match="not an element of the session's graph"):
        session.run(other.get_tensor_by_name("x:0"), {"x:0": X})


def test_fractions_are_not_cut_off(session):
    session.graph.add_signature("count", lambda i: i + 1, jnp.ones((), int))
    assert session.run("count:0", {"i:0": 3}) == 4
    with pytest.raises(errors.FeedError, match="expected dtype int32"):
        session.run("count:0", {"i:0": 3.5})


@pytest.mark.parametrize("value", [1.0, np.float64(1), np.ones(2)])
def test_number_for_a_resource_is_refused(value):
    with jaxmeta.Graph().as_default():
        queue = jaxmeta.FIFOQueue(2, "float32", [()], name="q")
        with (
            jaxmeta.Session() as session,
            pytest.raises(errors.FeedError, match="a resource cannot be fed"),
        ):
            session.run(queue.size(), {"q:0": value})


def test_integer_that_does_not_fit_is_refused(session):
    session.graph.add_signature("count", lambda i: i + 1, jnp.ones((), int))
    with pytest.raises(TypeError, match="out of bounds for int32"):
        session.run("count:0", {"i:0": 2**40})


def test_values_of_another_shape_after_good_ones_are_refused(session):
    for _ in range(2):
        session.run("predict:0", {"x:0": X})
        with pytest.raises(errors.FeedError, match=r"expected shape \[4, 3\], got \[3, 3\]"):
            session.run("predict:0", {"x:0": X[:3]})


def test_nothing_fetched_is_nothing(session):
    assert session.run([]) == []
    assert session.run({}) == {}


# --- callables, partial runs ---------------------------------------------------------------------


def test_callable_takes_the_feeds_in_order(session):
    y, feed = {"y": "predict:0"}, ["x:0"]
    call = session.make_callable(y, feed)
    np.testing.assert_array_equal(call(X)["y"], session.run(y, {"x:0": X})["y"])
    np.testing.assert_array_equal(call(X.tolist())["y"], call(X)["y"])
    with pytest.raises(errors.FeedError, match="takes 1 values"):
        call(X, X)
    update = session.make_callable("step/update", feed, accept_options=True)
    assert update(X, options=None, run_metadata=None) is None
    assert session.state["n"] == 1


def test_partial_runs_are_refused(session):
    with pytest.raises(NotImplementedError, match="any tensor may be fed"):
        session.partial_run_setup(["predict:0"], ["x:0"])
    with pytest.raises(errors.UnsupportedOpError, match="partial runs are not supported"):
        session.partial_run("handle", "predict:0")


# --- default sessions ----------------------------------------------------------------------------


def test_entering_a_session_makes_it_and_its_graph_the_default_ones():
    graph = make_graph()
    assert jaxmeta.get_default_session() is None
    with jaxmeta.Session(graph=graph) as session:
        assert jaxmeta.get_default_session() is session
        assert jaxmeta.get_default_graph() is graph
        with jaxmeta.Session("", make_graph()) as inner:
            assert jaxmeta.get_default_session() is inner
        assert jaxmeta.get_default_session() is session
    assert jaxmeta.get_default_session() is None
    assert jaxmeta.get_default_graph() is not graph


def test_block_of_a_default_session_does_not_close_it():
    session = jaxmeta.Session(make_graph())
    with session.as_default() as entered:
        assert jaxmeta.get_default_session() is entered is session
    session.set_state(make_state())
    assert session.run("n:0") == 0


def test_interactive_session_is_the_default_one_until_it_is_closed():
    graph = make_graph()
    session = jaxmeta.InteractiveSession(graph=graph)
    assert jaxmeta.get_default_session() is session
    assert jaxmeta.get_default_graph() is graph
    session.close()
    session.close()
    assert jaxmeta.get_default_session() is None
    assert jaxmeta.get_default_graph() is not graph


def test_default_session_is_the_thread_s_own():
    found: list[Any] = []
    with jaxmeta.Session(make_graph()):
        thread = threading.Thread(target=lambda: found.append(jaxmeta.get_default_session()))
        thread.start()
        thread.join()
    assert found == [None]


def test_handles_run_in_the_default_session():
    graph = make_graph()
    y, update = graph.get_tensor_by_name("predict:0"), graph.get_operation_by_name("step/update")
    with pytest.raises(ValueError, match="no default session"):
        y.eval({"x:0": X})
    with jaxmeta.Session(graph=graph) as session:
        session.set_state(make_state())
        np.testing.assert_array_equal(y.eval({"x:0": X}), session.run(y, {"x:0": X}))
        assert update.run({"x:0": X}) is None
        assert graph.variable("n").eval() == 1
        with (
            jaxmeta.Session(graph=make_graph()),
            pytest.raises(ValueError, match="the default session runs another graph"),
        ):
            y.eval({"x:0": X})


def test_there_is_no_other_machine_to_run_on():
    with pytest.raises(RuntimeError, match="the target must be empty"):
        jaxmeta.Session("grpc://other:2222")


def test_several_threads_may_run_one_session(session):
    def work() -> None:
        for _ in range(20):
            session.run("step/update", {"x:0": X})
            session.run(["w:0", "predict:0"], {"x:0": X})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert session.state["n"] == 80
    np.testing.assert_array_equal(session.state["w"], np.full((3, 2), 0.5 - 80 * 0.25))


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


def test_feeds_of_another_precision_are_cast_as_tensorflow_casts_them():
    with jaxmeta.Graph().as_default() as graph, jaxmeta.Session(graph=graph) as sess:
        x = jaxmeta.placeholder("float32", [2])
        y = jaxmeta.identity(x)
        for given in (np.array([1.5, 2]), np.array([1, 2]), np.array([1, 2], np.float16)):
            found = sess.run(y, {x: given})
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, given)
        count = jaxmeta.placeholder("int32", [2])
        with pytest.raises(errors.FeedError, match="expected dtype int32, got float64"):
            sess.run(jaxmeta.identity(count), {count: np.array([1.5, 2])})
