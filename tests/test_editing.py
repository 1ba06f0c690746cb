"""Edited copies of graphs, run in sessions, as programs, and by TensorFlow."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta as jm
from jaxmeta import errors
from jaxmeta.meta_graphs.meta_graph import import_graph
from jaxmeta.program import Program


def net(v, x):
    with jax.named_scope("hidden"):
        h = jax.nn.relu(x @ v["w1"])
    with jax.named_scope("top"):
        return h @ v["w2"] + 1.0


STATE = {
    "w1": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "w2": np.linspace(1, 2, 8, dtype=np.float32).reshape(4, 2),
}
X = np.linspace(-2, 2, 15, dtype=np.float32).reshape(5, 3)


def step(v, x):
    grads = jax.grad(lambda v: jnp.sum(net(v, x) ** 2))(v)
    return jax.tree.map(lambda a, g: a - 0.01 * g, v, grads), jnp.sum(net(v, x))


def make():
    graph = jm.Graph()
    variables = graph.variables(STATE)
    graph.add_signature("predict", net, variables, X)
    graph.add_signature("step", step, variables, X, updates=0)
    graph.add_to_collection("things", graph.get_tensor_by_name("predict:0"))
    graph.add_to_collection("things", graph.variable("w2"))
    return graph


def predict(graph, name="predict", state=STATE, x=X):
    again = import_graph(jm.export_meta_graph(graph=graph))
    return np.asarray(Program(again, {})[name](state, x))


def run(graph, fetch, feeds):
    with jm.Session(graph=graph) as sess:
        sess.set_state(STATE)
        return np.asarray(sess.run(fetch, feeds))


HIDDEN = "predict/hidden/custom_jvp_call:0"


def hidden(x=X):
    return np.maximum(x @ STATE["w1"], 0)


def test_tensor_inside_a_signature_is_replaced_by_a_constant():
    edited = make().replace(HIDDEN, np.ones((5, 4), np.float32))
    np.testing.assert_allclose(predict(edited), np.ones((5, 4)) @ STATE["w2"] + 1, rtol=1e-6)


def test_edits_leave_the_graph_as_it_was():
    graph = make()
    before = jm.export_meta_graph(graph=graph)
    graph.replace(HIDDEN, np.ones((5, 4), np.float32))
    graph.insert(HIDDEN, jnp.tanh)
    graph.cut(HIDDEN)
    graph.rename({"w1": "other"})
    graph.prune("predict")
    graph.merge(make(), "second")
    assert jm.export_meta_graph(graph=graph) == before


def test_inserted_function_changes_what_is_computed_after_it():
    edited = make().insert(HIDDEN, lambda h: h * 2.0, name="doubled")
    np.testing.assert_allclose(predict(edited), 2 * hidden() @ STATE["w2"] + 1, rtol=1e-6)
    np.testing.assert_allclose(run(edited, "doubled:0", {"x:0": X}), 2 * hidden(), rtol=1e-6)


def test_inserted_function_can_be_differentiated():
    edited = make().insert(HIDDEN, jnp.sin)
    program = Program(edited, {})
    found = jax.grad(lambda x: program["predict"](STATE, x).sum())(X)
    expected = jax.grad(lambda x: (jnp.sin(jax.nn.relu(x @ STATE["w1"])) @ STATE["w2"]).sum())(X)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_result_of_a_signature_is_replaced():
    edited = make().insert("predict:0", lambda y: -y)
    np.testing.assert_allclose(predict(edited), -(hidden() @ STATE["w2"] + 1), rtol=1e-6)


def test_placeholder_is_preprocessed_for_all_signatures():
    edited = make().insert("x:0", lambda x: x / 2)
    np.testing.assert_allclose(predict(edited), hidden(X / 2) @ STATE["w2"] + 1, rtol=1e-6)
    assert set(edited.signatures) == {"predict", "step"}


def test_cut_tensor_is_fed_and_its_signature_left_out():
    edited = make().cut(HIDDEN, name="features")
    assert set(edited.signatures) == {"step"}
    features = np.full((5, 4), 0.5, np.float32)
    np.testing.assert_allclose(
        run(edited, "predict:0", {"features:0": features}), features @ STATE["w2"] + 1, rtol=1e-6
    )
    small = edited.prune("predict:0")
    assert "x" not in small.nodes
    assert small.variable_names == ("w2",)


def test_scopes_and_variables_are_renamed_everywhere():
    edited = make().rename({"w1": "kernels/first", "predict": "infer", "x": "images"})
    assert edited.variable_names == ("kernels/first", "w2")
    assert edited.nodes["kernels/first"].attr["shared_name"].s == b"kernels/first"
    assert [item.name for item in edited.get_collection("things")] == ["infer:0", "w2:0"]
    np.testing.assert_allclose(predict(edited), hidden() @ STATE["w2"] + 1, rtol=1e-6)
    state, _ = Program(edited, {})["step"](jax.tree.map(jnp.array, STATE), X)
    assert set(state) == {"w1", "w2"}


def test_renamed_graph_is_saved_and_loaded(tmp_path):
    graph = make()
    jm.Saver(graph).as_saver_def()
    edited = graph.rename({"w1": "first"})
    with jm.Saver(edited) as saver:
        prefix = saver.save(STATE, tmp_path / "model")
    np.testing.assert_array_equal(jm.load(prefix).state["w1"], STATE["w1"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"nowhere": "a"}, "'nowhere': there is no such node or scope"),
        ({"w1": "w2"}, "'w2' is taken"),
        ({"w1": "a", "w2": "a"}, "'a' is given twice"),
        ({"w1": "bad name"}, "'bad name' is not a valid node name"),
    ],
)
def test_renaming_that_cannot_be_is_refused(names, message):
    with pytest.raises(errors.GraphError, match=message):
        make().rename(names)


def test_pruned_graph_has_only_what_a_signature_needs():
    edited = make().prune("predict")
    assert set(edited.signatures) == {"predict"}
    assert "step" not in edited.functions
    assert not edited.get_collection("train_op")
    np.testing.assert_allclose(predict(edited), hidden() @ STATE["w2"] + 1, rtol=1e-6)


def test_pruned_state_has_the_variables_that_are_left():
    graph = make()
    edited = graph.prune(["w2"])
    assert edited.variable_names == ("w2",)
    (tree,) = edited.state_trees.values()
    assert tree.keys == ("w2",)
    with jm.Session(graph=edited) as sess:
        sess.set_state({"w2": STATE["w2"]})
        np.testing.assert_array_equal(sess.run("w2:0"), STATE["w2"])


def test_merged_graphs_run_side_by_side():
    merged = make().merge(make(), "second")
    assert set(merged.signatures) == {"predict", "step", "second/predict", "second/step"}
    assert set(merged.variable_names) == {"w1", "w2", "second/w1", "second/w2"}
    np.testing.assert_array_equal(predict(merged), predict(merged, "second/predict"))


def test_merged_graph_joins_one_model_to_another():
    first, second = make(), make()
    merged = first.merge(second, "second").insert("x:0", lambda x: x * 2)
    joined = merged.replace("second/x:0", "x:0")
    feeds = {"x:0": X}
    with jm.Session(graph=joined) as sess:
        sess.set_state({"": STATE, "second": STATE})
        found = sess.run("second/predict:0", feeds)
    np.testing.assert_allclose(found, hidden() @ STATE["w2"] + 1, rtol=1e-6)


def test_replacement_of_another_shape_is_refused():
    message = r"x:0 has shape \[5, 3\]; what takes predict/hidden/.* expects \[5, 4\]"
    with pytest.raises(errors.GraphError, match=message):
        make().replace(HIDDEN, "x:0")


def test_function_that_changes_the_shape_is_not_inserted():
    with pytest.raises(errors.GraphError, match=r"has shape \[5\]; what takes .* expects \[5, 4\]"):
        make().insert(HIDDEN, lambda h: h.sum(1))


def test_unknown_names_are_refused():
    with pytest.raises(errors.GraphError, match="nowhere"):
        make().replace("nowhere:0", "x:0")
    with pytest.raises(errors.GraphError, match="nowhere"):
        make().prune("nowhere")


@pytest.mark.needs_tf
def test_tensorflow_runs_an_edited_graph(tmp_path, tensorflow):
    edited = make().insert(HIDDEN, lambda h: h * 2.0)
    jm.Saver(edited).export_meta_graph(tmp_path / "edited.meta")
    v1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default(), v1.Session() as session:
        v1.train.import_meta_graph(str(tmp_path / "edited.meta"))
        for variable in v1.global_variables():
            variable.load(STATE[variable.op.name], session)
        found = session.run("predict:0", {"x:0": X})
    np.testing.assert_allclose(found, 2 * hidden() @ STATE["w2"] + 1, rtol=1e-5)
