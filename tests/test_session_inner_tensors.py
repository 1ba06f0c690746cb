"""Tensors inside the functions that a graph calls: fetched and fed by name."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta
from jaxmeta import errors

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)


@jax.custom_jvp
def cube(x):
    return x * x * x


@cube.defjvp
def cube_jvp(primals, tangents):
    return cube(primals[0]), 3 * primals[0] ** 2 * tangents[0]


def predict(w: Any, x: Any) -> Any:
    with jax.named_scope("hidden"):
        h = jnp.tanh(x @ w)
    with jax.named_scope("deep"):
        h = jax.jit(lambda v: jnp.exp(v) + 1.0)(h)
        h = jax.checkpoint(lambda v: jnp.sin(v) * 2.0)(h)
        return cube(h), h.sum()


W = np.linspace(0, 1, 6, dtype=np.float32).reshape(3, 2)


@pytest.fixture
def session():
    graph = jaxmeta.Graph()
    variables = graph.variables({"w": W})
    graph.add_signature("predict", lambda v, x: predict(v["w"], x), variables, X)
    with jaxmeta.Session(graph) as session:
        session.state = {"w": W}
        yield session


def names_of(session: Any, op: str) -> list[str]:
    """Returns the names of all inner nodes of an op, from the graph on."""
    functions = session.graph.functions

    def walk(function: Any, prefix: str) -> Any:
        for node in function.node_def:
            name = f"{prefix}/{node.name}"
            if node.op == op:
                yield name
            if node.op in functions:
                yield from walk(functions[node.op], name)

    return list(walk(functions["predict"], "predict"))


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("MatMul", X @ W),
        ("Tanh", np.tanh(X @ W)),
        ("Exp", np.exp(np.tanh(X @ W))),
        ("Sin", np.sin(np.exp(np.tanh(X @ W)) + 1)),
    ],
)
def test_tensors_of_called_functions_are_fetched_by_name(session, op, expected):
    (name,) = names_of(session, op)
    np.testing.assert_allclose(session.run(f"{name}:0", {"x:0": X}), expected, rtol=1e-5)


def test_name_is_the_call_s_then_the_node_s(session):
    assert names_of(session, "MatMul") == ["predict/hidden/MatMul"]


def test_beside_the_results_of_the_call_they_are_of_the_same_run(session):
    plain = session.run(["predict:0", "predict:1"], {"x:0": X})
    (tanh,) = names_of(session, "Tanh")
    cubes, total, inner = session.run(["predict:0", "predict:1", f"{tanh}:0"], {"x:0": X})
    np.testing.assert_allclose(cubes, plain[0], rtol=1e-6)
    np.testing.assert_allclose(total, plain[1], rtol=1e-6)
    np.testing.assert_allclose(inner, np.tanh(X @ W), rtol=1e-5)


def test_inner_tensors_may_be_fed(session):
    (tanh,) = names_of(session, "Tanh")
    fed = np.full((4, 2), 0.25, np.float32)
    found = session.run("predict:1", {f"{tanh}:0": fed})
    assert np.allclose(found, (2 * np.sin(np.exp(fed) + 1)).sum(), rtol=1e-5)


def test_inner_operations_are_run_by_name(session):
    (tanh,) = names_of(session, "Tanh")
    assert session.run(tanh, {"x:0": X}) is None


def test_feed_of_an_inner_tensor_is_checked(session):
    (tanh,) = names_of(session, "Tanh")
    with pytest.raises(errors.FeedError, match="expected dtype float32, got bool"):
        session.run("predict:1", {f"{tanh}:0": np.zeros((4, 2), bool)})


def test_variables_are_read_where_a_call_is_opened(session):
    (matmul,) = names_of(session, "MatMul")
    session.state = {"w": W * 2}
    np.testing.assert_allclose(session.run(f"{matmul}:0", {"x:0": X}), X @ W * 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "fn"),
    [
        ("scan/scan/Sin:0", lambda x: jax.lax.scan(lambda c, y: (jnp.sin(c) + y, c), x[0], x)),
        ("loop/StatelessWhile/Mul:0", lambda x: jax.lax.while_loop(is_small, lambda v: v * 2, x)),
        ("cond/StatelessCase/Sin:0", lambda x: jax.lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x)),
    ],
)
def test_bodies_of_loops_and_branches_have_no_single_value(name, fn):
    graph = jaxmeta.Graph()
    graph.add_signature(name.split("/")[0], fn, X)
    with (
        jaxmeta.Session(graph) as session,
        pytest.raises(errors.GraphError, match="run any number of times, or not at all"),
    ):
        session.run(name, {"x:0": X})


def is_small(x: Any) -> Any:
    return x.sum() < 9


def test_unknown_inner_name(session):
    with pytest.raises(errors.GraphError, match="no node named 'predict/nope'"):
        session.run("predict/nope:0", {"x:0": X})
    with pytest.raises(errors.GraphError, match="the operation has 1 outputs"):
        session.run("predict/hidden/MatMul:1", {"x:0": X})
