"""The values of a session's variables between runs: what is noticed, and what is donated."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta
from jaxmeta import errors
from jaxmeta.execution.variable_store import VariableStore

ONE = np.float32(1)


def make_session() -> jaxmeta.Session:
    """Returns a session of a step that adds to ``a`` and ``b``, and of one that only reads them."""
    state = {"a": jnp.zeros(2), "b": jnp.zeros(())}
    graph = jaxmeta.Graph()
    variables = graph.variables(state)
    graph.add_signature(
        "step", lambda s, x: {"a": s["a"] + x, "b": s["b"] + x}, variables, ONE, updates=0
    )
    graph.add_signature("a_step", lambda a, x: a + x, variables["a"], ONE, updates=0)
    graph.add_signature("total", lambda s: s["a"].sum() + s["b"], variables)
    session = jaxmeta.Session(graph)
    session.set_state(state)
    return session


def step(session: jaxmeta.Session, name: str = "step") -> None:
    session.run(f"{name}/update", {"x:0": ONE})


def values(session: jaxmeta.Session) -> list[float]:
    return [float(session.values["a"][0]), float(session.values["b"])]


def test_runs_of_one_kind_go_on_from_each_other():
    session = make_session()
    for _ in range(5):
        step(session)
    assert values(session) == [5.0, 5.0]


def test_runs_of_several_kinds_see_each_other_s_values():
    session = make_session()
    for count in range(1, 4):
        step(session)
        assert session.run("total:0") == 7 * count - 4  # a is 3 count - 2, b is count
        step(session, "a_step")
        step(session)
        session.run(["a/Read/ReadVariableOp:0", "b:0"])
        session.values["b"] = session.values["b"] - 1
    assert values(session) == [9.0, 3.0]


def test_values_that_are_written_are_used_by_the_next_run():
    session = make_session()
    step(session)
    step(session)
    session.values["b"] = jnp.float32(10)
    step(session)
    assert values(session) == [3.0, 11.0]
    session.values.update({"a": jnp.full(2, 7.0), "b": jnp.float32(0)})
    step(session)
    assert values(session) == [8.0, 1.0]
    session.state = {"a": np.zeros(2, np.float32), "b": np.float32(0)}
    step(session)
    assert values(session) == [1.0, 1.0]


def test_arrays_that_were_read_or_written_are_not_donated():
    session, given = make_session(), jnp.full(2, 3.0)
    session.values["a"] = given
    step(session)
    step(session)
    read = [session.values["a"], session.state["b"], *dict(session.values).values()]
    step(session)
    step(session)
    assert not any(array.is_deleted() for array in (given, *read))
    np.testing.assert_array_equal(read[0], [5.0, 5.0])
    assert values(session) == [7.0, 4.0]


def test_adopted_arrays_are_donated():
    session, given = make_session(), jnp.full(2, 3.0)
    session.values.adopt({"a": given})
    step(session)
    assert given.is_deleted()
    assert values(session) == [4.0, 1.0]


def test_arrays_between_runs_are_donated():
    session = make_session()
    step(session)
    held = session.values.peek()["a"]
    step(session)
    assert held.is_deleted()


def test_variable_without_a_value_is_named_and_nothing_changes():
    session = make_session()
    step(session)
    del session.values["b"]
    with pytest.raises(errors.GraphError, match="variable 'b' has no value"):
        step(session)
    assert list(session.values) == ["a"]
    session.values["b"] = jnp.float32(5)
    step(session)
    assert values(session) == [2.0, 6.0]


def test_run_that_raises_leaves_all_values():
    session = make_session()
    step(session)
    with pytest.raises(errors.FeedError):
        session.run("step/update", {"x:0": np.zeros(3, np.float32)})
    assert values(session) == [1.0, 1.0]
    step(session)
    assert values(session) == [2.0, 2.0]


def test_initializer_runs_before_and_after_there_are_values():
    session = make_session()
    session.values.clear()
    for _ in range(3):
        session.run(["a/Assign", "b/Assign"])
        assert values(session) == [0.0, 0.0]
        step(session)
        assert values(session) == [1.0, 1.0]


def test_names_are_those_under_which_handles_look():
    graph = jaxmeta.Graph()
    attrs = {"dtype": np.dtype(np.float32), "shape": (), "shared_name": "shared"}
    (handle,) = graph.add_node("VarHandleOp", [], attrs, "scope/w")
    graph.add_node("ReadVariableOp", [handle], {"dtype": np.dtype(np.float32)}, "read")
    with jaxmeta.Session(graph) as session:
        session.values["scope/w"] = jnp.float32(4)
        assert session.run("read:0") == 4
        assert session.values["scope/w"] == session.values["shared"] == 4


def test_store_is_a_mapping():
    store = VariableStore({"a": jnp.zeros(2)})
    store.update(b=jnp.ones(()))
    assert sorted(store) == ["a", "b"]
    assert "a" in store
    assert "c" not in store
    with pytest.raises(KeyError):
        store["c"]
    assert store.pop("a").shape == (2,)
    assert len(store) == 1


def as_floats(store: Any) -> dict[str, float]:
    return {name: float(value) for name, value in store.items()}


def test_lists_that_runs_leave_show_in_the_mapping():
    store = VariableStore({"a": jnp.float32(0), "b": jnp.float32(1)})
    names = ["a"]
    assert [float(x) for x in store.take(names)] == [0.0]
    store.leave(names, [jnp.float32(5)])
    store.leave(names, [jnp.float32(6)])
    store.leave(["c"], [jnp.float32(7)])
    assert as_floats(store) == {"a": 6.0, "b": 1.0, "c": 7.0}
