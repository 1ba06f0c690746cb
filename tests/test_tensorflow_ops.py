"""Ops that only TensorFlow writes, in graphs that TensorFlow makes and judges."""

from __future__ import annotations

from typing import Any

import array_graphs
import matrix_graphs
import numpy as np
import pytest
import sparse_graphs
from tensorflow_graphs import GRAPHS, TRAINING, TensorFlowGraph

import jaxmeta
from jaxmeta import op_defs

# Importing them adds their graphs.
assert array_graphs.ALIASES + matrix_graphs.ALIASES + sparse_graphs.ALIASES


def compare(found: Any, expected: Any) -> None:
    for have, want in zip(found, expected, strict=True):
        have = np.asarray(have)
        assert have.dtype.kind == np.asarray(want).dtype.kind
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)


@pytest.mark.needs_tf
@pytest.mark.parametrize("graph", GRAPHS, ids=[f"{i}-{g.op}" for i, g in enumerate(GRAPHS)])
def test_op_gives_what_tensorflow_gives(graph: TensorFlowGraph, rng, tmp_path, tensorflow):
    tf1, path = tensorflow.compat.v1, str(tmp_path / "theirs.meta")
    arrays = {f"x{i}:0": spec.array(rng) for i, spec in enumerate(graph.specs)}
    with tensorflow.Graph().as_default() as theirs, tf1.Session() as session:
        inputs = [
            tf1.placeholder(array.dtype, array.shape, name=name.removesuffix(":0"))
            for name, array in arrays.items()
        ]
        made = tensorflow.nest.flatten(graph.make(tensorflow, *inputs))
        fetches = [tensor.name for tensor in made]
        initializer = tf1.global_variables_initializer().name
        tf1.train.export_meta_graph(path)
        session.run(initializer)
        expected = session.run(fetches, arrays)
    assert graph.op in {node.op for node in theirs.as_graph_def().node}

    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(path)
        session.run(initializer)
        compare(session.run(fetches, arrays), expected)


def differentiate(tf: Any, graph: TensorFlowGraph, inputs: Any) -> list[Any]:
    """Returns a loss of a graph, and TensorFlow's derivatives of it by the inputs that have any."""
    made = tf.nest.flatten(graph.make(tf, *inputs))
    squares = [
        tf.reduce_sum(tf.square(tf.math.real(tensor)) + tf.square(tf.math.imag(tensor)))
        for tensor in made
        if tensor.dtype.is_floating or tensor.dtype.is_complex
    ]
    loss = tf.add_n(squares, name="loss")
    return [loss, *tf.gradients(loss, [x for x in inputs if x.dtype.is_floating])]


@pytest.mark.needs_tf
@pytest.mark.parametrize(
    "graph",
    [graph for graph in GRAPHS if graph.has_gradient],
    ids=[f"{i}-{g.op}" for i, g in enumerate(GRAPHS) if g.has_gradient],
)
def test_op_has_tensorflows_gradient(graph: TensorFlowGraph, rng, tmp_path, tensorflow):
    tf1, path = tensorflow.compat.v1, str(tmp_path / "theirs.meta")
    arrays = {f"x{i}:0": spec.array(rng) for i, spec in enumerate(graph.specs)}
    with tensorflow.Graph().as_default(), tf1.Session() as session:
        inputs = [
            tf1.placeholder(array.dtype, array.shape, name=name.removesuffix(":0"))
            for name, array in arrays.items()
        ]
        fetches = [tensor.name for tensor in differentiate(tensorflow, graph, inputs)]
        tf1.train.export_meta_graph(path)
        expected = session.run(fetches, arrays)

    real = [name for name, array in arrays.items() if array.dtype.kind == "f"]
    with jaxmeta.Graph().as_default() as imported, jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(path)
        compare(session.run(fetches, arrays), expected)
        loss, *places = map(imported.get_tensor_by_name, ["loss:0", *real])
        if places:
            compare(session.run(jaxmeta.gradients(loss, places), arrays), expected[1:])


def options_of(op: str) -> list[dict[str, Any]]:
    """Returns the settings of the attrs that change what an optimizer does."""
    attrs = {attr.name for attr in op_defs.get_op_def(op).attr}
    flags = attrs & {"use_nesterov", "update_slots", "multiply_linear_by_lr"}
    return [{flag: value} for flag in flags for value in (False, True)] or [{}]


def add_training_op(tf: Any, op: str, rng: Any, attrs: dict[str, Any], number: int) -> Any:
    """Returns an op that moves new variables, and these variables."""
    tf1 = tf.compat.v1
    is_nd, is_scatter = "Nd" in op, "Scatter" in op
    inputs, variables = {}, []
    for arg in op_defs.get_op_def(op).input_arg:
        if arg.is_ref or arg.type == 20:
            variable = tf1.get_variable(
                f"{arg.name}_{number}",
                initializer=rng.uniform(0.5, 1.5, (4, 3)).astype(np.float32),
                use_resource=not arg.is_ref,
            )
            variables.append(variable)
            inputs[arg.name] = variable._ref() if arg.is_ref else variable.handle
        elif arg.name == "indices":
            inputs[arg.name] = tf.constant([[2], [0], [2]] if is_nd else [2, 0, 2])
        elif arg.name in ("grad", "delta", "updates"):
            shape = (3, 3) if "Sparse" in op or is_scatter else (4, 3)
            inputs[arg.name] = tf.constant(rng.uniform(-1.0, 1.0, shape).astype(np.float32))
        elif arg.name == "global_step":
            inputs[arg.name] = tf.constant(3, tf.int64)
        elif arg.name == "lr_power":
            inputs[arg.name] = tf.constant(-0.5)
        else:
            inputs[arg.name] = tf.constant(float(rng.uniform(0.05, 0.3)))
    if op in (
        "ScatterUpdate",
        "ResourceScatterUpdate",
        "ScatterNdUpdate",
        "ResourceScatterNdUpdate",
    ):
        inputs["indices"] = tf.constant([[2], [0], [1]] if is_nd else [2, 0, 1])
    made = getattr(tf.raw_ops, op)(**inputs, **attrs)
    return (made if isinstance(made, tf.Operation) else made.op), variables


@pytest.mark.needs_tf
@pytest.mark.parametrize("op", TRAINING)
def test_op_moves_variables_as_tensorflow_does(op, rng, tmp_path, tensorflow):
    tf1, path = tensorflow.compat.v1, str(tmp_path / "theirs.meta")
    with tensorflow.Graph().as_default(), tf1.Session() as session:
        settings = enumerate(options_of(op))
        made = [add_training_op(tensorflow, op, rng, attrs, i) for i, attrs in settings]
        steps = [step.name for step, _ in made]
        fetches = [variable.value().name for _, group in made for variable in group]
        initializer = tf1.global_variables_initializer().name
        tf1.train.export_meta_graph(path)
        for target in (initializer, steps, steps):
            session.run(target)
        expected = session.run(fetches)

    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(path)
        for target in (initializer, steps, steps):
            session.run(target)
        compare(session.run(fetches), expected)


def test_update_of_another_shape_than_its_variable_is_refused():
    graph = jaxmeta.Graph()
    dtype = np.dtype("float32")
    (ref,) = graph.add_node("VariableV2", [], {"dtype": dtype, "shape": (2,)}, "v")
    (zeros,) = graph.add_node("Placeholder", [], {"dtype": dtype, "shape": (2,)}, "zeros")
    graph.add_node("Assign", [ref, zeros], {}, "set")
    (rate,) = graph.add_node("Placeholder", [], {"dtype": dtype, "shape": ()}, "rate")
    (delta,) = graph.add_node("Placeholder", [], {"dtype": dtype, "shape": (3,)}, "delta")
    graph.add_node("ApplyGradientDescent", [ref, rate, delta], {}, "step")
    with jaxmeta.Session(graph) as session:
        session.run("set", {"zeros:0": np.zeros(2, np.float32)})
        feeds = {"rate:0": np.float32(1), "delta:0": np.zeros(3, np.float32)}
        with pytest.raises(jaxmeta.InvalidArgumentError, match=r"'v' has shape \[2\].*\[3\]"):
            session.run("step", feeds)
