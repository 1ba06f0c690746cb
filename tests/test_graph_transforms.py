"""GraphDefs to GraphDefs: TensorFlow is asked for the same, and for what the results compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from google.protobuf import text_format

import jaxmeta as jm
from jaxmeta import errors
from jaxmeta._proto import graph_pb2, meta_graph_pb2
from jaxmeta.meta_graphs import meta_graph, meta_graph_file

needs_tf = pytest.mark.needs_tf
GraphDef = graph_pb2.GraphDef


def random_graph_def(rng: np.random.Generator, count: int = 25) -> GraphDef:
    """Nodes with data and control inputs and places; some only pass on what they get."""
    graph_def = GraphDef()
    graph_def.versions.producer = 21
    graph_def.library.function.add().signature.name = "f"
    for index in range(count):
        node = graph_def.node.add(name=f"n{index}")
        if index < 2 or rng.random() < 0.1:
            node.op = "Placeholder"
            continue
        node.op = ("Identity", "StopGradient", "CheckNumerics", "Tanh", "AddV2")[rng.integers(5)]
        # TensorFlow takes away the inputs from CheckNumerics, and knows no "n0:0" there.
        sources = [n.name for n in graph_def.node[:index] if n.op != "CheckNumerics"]
        for _ in range(2 if node.op == "AddV2" else 1):
            node.input.append(sources[rng.integers(len(sources))])
        if rng.random() < 0.15:
            node.input.append(f"^n{rng.integers(index)}")
        if rng.random() < 0.15:
            node.attr["_class"].list.s.append(f"loc:@n{rng.integers(index)}".encode())
    return graph_def


def in_tensorflow(tf: Any, graph_def: GraphDef) -> Any:
    return tf.GraphDef.FromString(graph_def.SerializeToString())


def content(graph_def: Any) -> GraphDef:
    return GraphDef.FromString(graph_def.SerializeToString())


@needs_tf
@pytest.mark.parametrize("seed", range(6))
def test_sub_graph_is_that_of_tensorflow(seed, tensorflow):
    tf = tensorflow.compat.v1
    rng = np.random.default_rng(seed)
    graph_def = random_graph_def(rng)
    wanted = [f"n{i}" for i in rng.integers(25, size=3)]
    expected = tf.graph_util.extract_sub_graph(in_tensorflow(tf, graph_def), wanted)
    assert jm.extract_sub_graph(graph_def, wanted) == content(expected)


def test_node_that_is_not_there_is_an_assertion_error():
    with pytest.raises(AssertionError) as caught:
        jm.extract_sub_graph(GraphDef(), ["lost", "gone"])
    assert isinstance(caught.value, errors.JaxmetaError)
    assert str(caught.value) == "lost, gone are not in graph"


@pytest.mark.parametrize("arguments", [(GraphDef(), "name"), ("x", ["name"])], ids=["str", "no"])
def test_sub_graph_of_other_arguments_is_a_type_error(arguments):
    with pytest.raises(TypeError):
        jm.extract_sub_graph(*arguments)


def test_sub_graph_with_an_input_that_is_not_there_is_refused():
    graph_def = GraphDef()
    graph_def.node.add(name="a", op="Tanh", input=["lost"])
    with pytest.raises(errors.MissingNameError, match="lost"):
        jm.extract_sub_graph(graph_def, ["a"])


@needs_tf
@pytest.mark.parametrize("seed", range(6))
def test_training_nodes_are_those_that_tensorflow_removes(seed, tensorflow):
    tf = tensorflow.compat.v1
    rng = np.random.default_rng(seed)
    graph_def = random_graph_def(rng)
    before = graph_def.SerializeToString(deterministic=True)
    for protected in (None, [f"n{i}" for i in rng.integers(25, size=6)]):
        theirs = tf.graph_util.remove_training_nodes(in_tensorflow(tf, graph_def), protected)
        assert jm.remove_training_nodes(graph_def, protected) == content(theirs)
    assert graph_def.SerializeToString(deterministic=True) == before


def test_what_a_removed_node_passed_on_is_taken_from_its_input():
    graph_def = GraphDef()
    graph_def.node.add(name="x", op="Placeholder")
    graph_def.node.add(name="check", op="CheckNumerics", input=["x:0"])
    graph_def.node.add(name="same", op="Identity", input=["check:0"])
    graph_def.node.add(name="y", op="Tanh", input=["same:0"])
    graph_def.node.add(name="z", op="Tanh", input=["check", "^check"])
    found = jm.remove_training_nodes(graph_def)
    inputs = {node.name: list(node.input) for node in found.node}
    assert inputs == {"x": [], "y": ["x:0"], "z": ["x:0"]}


def test_nodes_that_pass_on_each_other_are_refused():
    graph_def = GraphDef()
    graph_def.node.add(name="a", op="Identity", input=["b"])
    graph_def.node.add(name="b", op="Identity", input=["a"])
    graph_def.node.add(name="c", op="Tanh", input=["a"])
    with pytest.raises(errors.GraphError, match="from each other"):
        jm.remove_training_nodes(graph_def)


# --- files ---------------------------------------------------------------------------------------


@needs_tf
@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("kind", ["graph", "graph_def", "meta_graph"])
def test_written_graph_is_read_by_tensorflow(kind, as_text, tensorflow, tmp_path):
    tf = tensorflow.compat.v1
    graph = jm.Graph()
    graph.add_signature("double", lambda x: x * 2, jnp.ones(3))
    source = {
        "graph": graph,
        "graph_def": graph.as_graph_def(),
        "meta_graph": jm.export_meta_graph(graph=graph),
    }[kind]
    path = jm.write_graph(source, tmp_path / "deep" / "er", "model.pbtxt", as_text)
    assert path == str(tmp_path / "deep" / "er" / "model.pbtxt")
    read = tf.MetaGraphDef() if kind == "meta_graph" else tf.GraphDef()
    with open(path, "rb") as file:
        if as_text:
            text_format.Parse(file.read().decode(), read)
        else:
            read.ParseFromString(file.read())
    expected = source.as_graph_def() if kind == "graph" else source
    assert read.SerializeToString(deterministic=True) == expected.SerializeToString(
        deterministic=True
    )


def test_text_is_what_is_written_by_default(tmp_path):
    graph_def = GraphDef()
    graph_def.node.add(name="a", op="NoOp")
    path = jm.write_graph(graph_def, tmp_path, "graph.pbtxt")
    with open(path, encoding="utf-8") as file:
        assert file.read() == 'node {\n  name: "a"\n  op: "NoOp"\n}\n'


def test_what_is_no_graph_is_not_written(tmp_path):
    with pytest.raises(TypeError, match="takes a Graph or a GraphDef, not str"):
        jm.write_graph("graph", tmp_path, "x")


def test_graph_larger_than_a_protobuf_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(meta_graph_file, "_PROTOBUF_LIMIT_BYTES", 3)
    graph_def = GraphDef()
    graph_def.node.add(name="a", op="NoOp")
    with pytest.raises(errors.FormatError, match="at most 2 GiB"):
        jm.write_graph(graph_def, tmp_path, "x")
    assert not list(tmp_path.iterdir())


# --- freezing ------------------------------------------------------------------------------------

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)


def trained() -> tuple[jm.Graph, Any, Callable[..., Any]]:
    state = {"w": jnp.linspace(-1, 1, 6).reshape(3, 2), "b": jnp.arange(2.0)}
    large = jnp.linspace(0, 1, 1000)

    def predict(state, x):
        return jax.nn.relu(x @ state["w"]) + state["b"] + large.sum()

    graph = jm.Graph()
    variables = graph.variables(state)
    graph.add_signature("predict", predict, variables, X)
    return graph, state, predict


def frozen(graph: jm.Graph, state: Any, **lists: Any) -> GraphDef:
    with jm.Session(graph) as session:
        session.set_state(state)
        return jm.convert_variables_to_constants(
            session, graph.as_graph_def(), ["predict"], **lists
        )


def test_frozen_program_gives_the_same_values_without_variables():
    graph, state, predict = trained()
    graph_def = frozen(graph, state)
    assert "VarHandleOp" not in {node.op for node in graph_def.node}
    assert all("_jax_signature" not in node.attr for node in graph_def.node)
    with jm.Graph().as_default() as target, jm.Session() as session:
        jm.import_graph_def(graph_def, name="")
        found = session.run("predict:0", {"x:0": X})
    assert not target.variable_names
    np.testing.assert_array_equal(found, jax.jit(predict)(state, X))


@needs_tf
def test_frozen_program_runs_in_tensorflow(tensorflow):
    tf = tensorflow.compat.v1
    graph, state, predict = trained()
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(in_tensorflow(tf, frozen(graph, state)), name="")
        found = session.run("predict:0", {"x:0": X})
    np.testing.assert_allclose(found, predict(state, X), rtol=1e-6)


def test_lists_say_which_variables_are_frozen():
    graph, state, _ = trained()
    left = {
        "blacklist": frozen(graph, state, variable_names_blacklist=["w"]),
        "whitelist": frozen(graph, state, variable_names_whitelist=["b"]),
    }
    names = {
        key: sorted(node.name for node in graph_def.node if node.op == "VarHandleOp")
        for key, graph_def in left.items()
    }
    assert names == {"blacklist": ["w"], "whitelist": ["predict/constant", "w"]}


def test_output_that_is_not_there_cannot_be_frozen():
    graph, _, _ = trained()
    with jm.Session(graph) as session, pytest.raises(AssertionError, match="lost is not in graph"):
        jm.convert_variables_to_constants(session, graph.as_graph_def(), ["lost"])


def test_variable_without_a_value_cannot_be_frozen():
    graph, _, _ = trained()
    with jm.Session(graph) as session, pytest.raises(errors.JaxmetaError, match="has no value"):
        jm.convert_variables_to_constants(session, graph.as_graph_def(), ["predict"])


def test_nodes_that_write_variables_are_not_frozen():
    graph, state, _ = trained()
    with jm.Session(graph) as session:
        session.set_state(state)
        with pytest.raises(errors.GraphError) as caught:
            jm.convert_variables_to_constants(
                session, graph.as_graph_def(), ["w/Assign", "predict"]
            )
    assert str(caught.value).splitlines() == [
        "these nodes do more with variables than to read them:",
        "  'w/Assign' (AssignVariableOp)",
    ]


class Values:
    """A session that holds values which TensorFlow computed."""

    def __init__(self, graph: jm.Graph, values: dict[str, Any]) -> None:
        self.graph = graph
        self._values = values

    def run(self, fetches: Any) -> Any:
        return [self._values[variable.op_name] for variable in fetches]


@needs_tf
@pytest.mark.parametrize(
    ("use_resource", "in_functions"),
    [(False, False), (True, False), (True, True)],
    ids=["reference", "resource", "functions"],
)
def test_graph_of_tensorflow_is_frozen_as_tensorflow_does(use_resource, in_functions, tensorflow):
    tf = tensorflow.compat.v1
    with tf.Graph().as_default() as theirs, tf.Session() as session:
        x = tf.placeholder(tf.float32, [None, 3], name="x")
        w = tf.get_variable("w", [3, 2], use_resource=use_resource)
        b = tf.get_variable("b", [2], use_resource=use_resource)
        table = tf.get_variable("table", [5, 2], use_resource=use_resource)
        y = tf.nn.relu(x @ w + b) + tf.reduce_sum(tf.nn.embedding_lookup(table, [1, 2]))
        if in_functions:

            @tensorflow.function
            def call(x):
                def body(i, v):
                    return i + 1, v * tf.reduce_sum(w) + tf.gather(table, i)

                _, looped = tf.while_loop(lambda i, _: i < 2, body, [0, x @ w])
                return looped + tf.cond(b[0] > 0, lambda: b + 1, lambda: b * 2)

            y = y + call(x)
        tf.identity(y, name="out")
        session.run(tf.global_variables_initializer())
        values = {
            variable.op.name: value
            for variable, value in zip(
                tf.global_variables(), session.run(tf.global_variables()), strict=True
            )
        }
        expected = session.run("out:0", {"x:0": X})
        saved = tf.train.export_meta_graph()
        reference = tf.graph_util.convert_variables_to_constants(
            session, theirs.as_graph_def(), ["out"]
        )
    graph = meta_graph.import_graph(
        meta_graph_pb2.MetaGraphDef.FromString(saved.SerializeToString())
    )
    found = jm.convert_variables_to_constants(Values(graph, values), graph.as_graph_def(), ["out"])
    ops = {node.name: node.op for node in found.node}
    assert ops == {node.name: node.op for node in reference.node}
    everything = [*found.node, *(node for f in found.library.function for node in f.node_def)]
    assert not {node.op for node in everything} & {"VarHandleOp", "ReadVariableOp", "VariableV2"}
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(in_tensorflow(tf, found), name="")
        np.testing.assert_allclose(session.run("out:0", {"x:0": X}), expected, rtol=1e-5)
