"""Loops and branches of TensorFlow 1, compiled: TensorFlow's values, gradients and training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import jaxmeta
from jaxmeta._proto import graph_pb2
from jaxmeta.execution import executor

Program = Callable[[Any, Any], Any]


def with_sequence_lengths(tf: Any, x: Any) -> Any:
    """A dynamic_rnn by hand: a bound that is the least of a constant and a value."""
    tf1 = tf.compat.v1
    lengths = tf.cast(tf.reduce_max(x[:, 0] * 0 + 3), tf.int32)
    taken = tf1.TensorArray(tf.float32, size=4).unstack(tf.stack([x, x * 2, x - 1, x * 3]))
    made = tf1.TensorArray(tf.float32, size=4, element_shape=[3, 2])
    bound = tf.minimum(4, tf.maximum(1, lengths))

    def body(i: Any, state: Any, made: Any) -> Any:
        new = tf.tanh(taken.read(i) @ [[0.5, 0.1], [0.2, -0.3]] + state)
        state = tf1.where(tf.fill([3], i < 2), new, state)
        return i + 1, state, made.write(i, new)

    _, state, made = tf1.while_loop(
        lambda i, *_: i < bound, body, [tf.constant(0), tf.zeros([3, 2]), made]
    )
    y = made.stack()
    return [y, state, *tf.gradients([y, state], x)]


def conds_in_loops_in_conds(tf: Any, x: Any) -> Any:
    """A branch around a loop around branches around a loop, and the gradients of all."""
    tf1 = tf.compat.v1

    def body(i: Any, y: Any) -> Any:
        def inner() -> Any:
            return tf1.while_loop(
                lambda j, _: j < 2, lambda j, z: (j + 1, tf.sin(z) * x), [tf.constant(0), y]
            )[1]

        return i + 1, tf1.cond(tf.equal(i % 2, 0), inner, lambda: y * 0.5 + x)

    y = tf1.cond(
        tf.reduce_sum(x) > 0,
        lambda: tf1.while_loop(lambda i, _: i < 3, body, [tf.constant(0), x])[1],
        lambda: x * x,
    )
    return [y, *tf.gradients(y, x)]


def by_value(tf: Any, x: Any) -> Any:
    """A loop whose length only its values tell, with the gradients that its stacks give."""
    tf1 = tf.compat.v1
    i, y = tf1.while_loop(
        lambda i, y: tf.reduce_sum(tf.abs(y)) < 1000.0,
        lambda i, y: (i + 1, y * (1.05 + 0.01 * tf.cos(x))),
        [tf.constant(0), x],
    )
    return [i, y, *tf.gradients(y, x)]


def loop_of_known_length(tf: Any, x: Any) -> Any:
    """A loop that counts to a number, and the gradients of what it gives."""
    tf1 = tf.compat.v1
    _, y = tf1.while_loop(
        lambda i, _: i < 4, lambda i, y: (i + 1, tf.sin(y) * x), [tf.constant(0), x]
    )
    return [y, *tf.gradients(y, x)]


def cases(tf: Any, x: Any) -> Any:
    """tf.case, and a branch that gives several values."""
    tf1 = tf.compat.v1
    s = tf.reduce_sum(x)
    y = tf1.case(
        [(s > 2, lambda: x * 2), (s > 0, lambda: tf.sin(x)), (s > -2, lambda: x - 1)],
        default=lambda: -x,
    )
    a, b = tf1.cond(s > 1, lambda: (y, x), lambda: (x * 3, y - 1))
    return [y, a, b, *tf.gradients([a, b], x)]


def higher_order(tf: Any, x: Any) -> Any:
    """map_fn, scan and foldl."""
    tf1 = tf.compat.v1
    mapped = tf1.map_fn(lambda row: tf.tanh(row) * 2, x)
    scanned = tf1.scan(lambda a, row: a * 0.5 + row, x)
    folded = tf1.foldl(lambda a, row: a + row * row, x, initializer=tf.zeros([2]))
    return [mapped, scanned, folded, *tf.gradients([mapped, scanned, folded], x)]


def second_derivatives(tf: Any, x: Any) -> Any:
    """The gradients of a branch's gradients."""
    y = tf.compat.v1.cond(tf.reduce_sum(x) > 0, lambda: x**3, lambda: tf.sin(x))
    (first,) = tf.gradients(y, x)
    return [first, *tf.gradients(first, x)]


def several_exits(tf: Any, x: Any) -> Any:
    """A loop with many variables, of which some never change."""
    tf1 = tf.compat.v1
    return tf1.while_loop(
        lambda i, *_: i < 5,
        lambda i, a, b, c: (i + 2, b, a + c, c),
        [tf.constant(0), x, x * 2, x * 3],
    )


def decoder(tf: Any, x: Any) -> Any:
    """A loop that ends when all are done, or after so many steps."""
    tf1 = tf.compat.v1
    made = tf1.TensorArray(tf.float32, size=6, element_shape=[3, 2])

    def body(i: Any, state: Any, done: Any, made: Any) -> Any:
        new = tf.tanh(state * 1.3 + 0.1)
        new = tf1.where(done, state, new)
        return i + 1, new, done | (tf.reduce_sum(new, 1) > 1.0), made.write(i, new)

    i, state, _, made = tf1.while_loop(
        lambda i, state, done, _: (~tf.reduce_all(done)) & (i < 6),
        body,
        [tf.constant(0), x, tf.zeros([3], tf.bool), made],
    )
    return [i, state, made.stack(), *tf.gradients(state, x)]


def unknown_sizes(tf: Any, x: Any) -> Any:
    """Shapes that only the values of placeholders tell, whose gradients go through stacks."""
    tf1 = tf.compat.v1
    free = tf1.placeholder_with_default(x, [None, None])
    _, y = tf1.while_loop(
        lambda i, _: i < 3,
        lambda i, y: (i + 1, tf.reshape(y * tf.reduce_mean(free, 0), tf.shape(free)) + free),
        [tf.constant(0), free],
    )
    return [y, *tf.gradients(y, free)]


PROGRAMS: list[Program] = [
    with_sequence_lengths,
    conds_in_loops_in_conds,
    by_value,
    cases,
    higher_order,
    second_derivatives,
    several_exits,
    decoder,
    unknown_sizes,
]


class Written:
    """A graph that TensorFlow wrote, and what it gives."""

    def __init__(self, tensorflow: Any, path: Any, program: Program, value: Any) -> None:
        tf1 = tensorflow.compat.v1
        self.path = str(path / "theirs.meta")
        was_v2 = tf1.control_flow_v2_enabled()
        tf1.disable_control_flow_v2()
        try:
            with tensorflow.Graph().as_default(), tf1.Session() as session:
                x = tf1.placeholder(tensorflow.float32, value.shape, name="x")
                made = tensorflow.nest.flatten(program(tensorflow, x))
                self.fetches = [item.name for item in made]
                self.initializer = tf1.global_variables_initializer().name
                tf1.train.export_meta_graph(self.path)
                session.run(self.initializer)
                self.expected = [session.run(self.fetches, {"x:0": value}) for _ in range(2)]
        finally:
            if was_v2:
                tf1.enable_control_flow_v2()


def run_twice(written: Written, value: Any) -> tuple[Any, jaxmeta.Session]:
    """Returns what jaxmeta gives in two runs, and the session."""
    with jaxmeta.Graph().as_default() as graph, jaxmeta.Session(graph=graph) as session:
        jaxmeta.import_meta_graph(written.path)
        session.run(written.initializer)
        found = [session.run(written.fetches, {"x:0": value}) for _ in range(2)]
        return found, dict(session.op_by_op)


def assert_same(found: Any, expected: Any) -> None:
    for have, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(have, want, rtol=2e-4, atol=1e-5)


@pytest.mark.needs_tf
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_compiled_values_are_tensorflows(program, sign, rng, tmp_path, tensorflow):
    value = sign * rng.uniform(0.2, 1.5, (3, 2)).astype(np.float32)
    written = Written(tensorflow, tmp_path, program, value)
    found, op_by_op = run_twice(written, value)
    assert op_by_op == {}
    assert_same(found, written.expected)


def as_function(written: Written) -> Callable[[Any], Any]:
    """Returns what a graph computes of x, as a function that JAX can trace."""
    with jaxmeta.Graph().as_default() as graph:
        jaxmeta.import_meta_graph(written.path)
    library = executor.Library(graph.functions)
    plan = executor.plan_graph(graph.nodes, library, ["x:0"], written.fetches)
    return lambda x: plan.run([x], executor.State({}))


@pytest.mark.needs_tf
@pytest.mark.parametrize("program", [loop_of_known_length, higher_order])
def test_loops_of_known_length_are_differentiated_batched_and_exported(
    program, rng, tmp_path, tensorflow
):
    value = rng.uniform(0.2, 1.5, (3, 2)).astype(np.float32)
    written = Written(tensorflow, tmp_path, program, value)
    function = as_function(written)
    *_, slope = written.expected[0]  # of the sum of the others
    found = jax.grad(lambda x: sum(y.sum() for y in function(x)[:-1]))(value)
    np.testing.assert_allclose(found, slope, rtol=2e-4, atol=1e-5)
    batch = np.stack([value, value * 0.5])
    assert_same([y[0] for y in jax.vmap(function)(batch)], written.expected[0])

    graph = jaxmeta.Graph()
    graph.add_signature("again", function, value)
    with jaxmeta.Session(graph=graph) as session:
        fetches = [f"again:{index}" for index in range(len(written.fetches))]
        (placeholder,) = [node.name for node in graph.nodes.values() if node.op == "Placeholder"]
        assert_same(session.run(fetches, {f"{placeholder}:0": value}), written.expected[0])


def trained(tf: Any, x: Any) -> Any:
    """Training by the gradients of a loop, and branches that assign."""
    tf1 = tf.compat.v1
    weights = tf1.get_variable("w", initializer=[[0.5, 0.1], [0.2, -0.3]], use_resource=True)
    count = tf1.get_variable("n", initializer=0, use_resource=True)
    _, y = tf1.while_loop(
        lambda i, _: i < 4, lambda i, y: (i + 1, tf.tanh(y @ weights)), [tf.constant(0), x]
    )
    loss = tf.reduce_sum(y * y)
    (slope,) = tf.gradients(loss, weights)
    with tf.control_dependencies([weights.assign_sub(0.1 * slope)]):
        counted = tf1.cond(loss > 0, lambda: count.assign_add(2), lambda: count.assign_add(5))
    with tf.control_dependencies([counted]):
        return [tf.identity(loss), tf.identity(counted), weights.read_value()]


@pytest.mark.needs_tf
def test_training_through_a_loop_follows_tensorflow(rng, tmp_path, tensorflow):
    value = rng.uniform(0.2, 1.5, (3, 2)).astype(np.float32)
    written = Written(tensorflow, tmp_path, trained, value)
    found, op_by_op = run_twice(written, value)
    assert op_by_op == {}
    assert_same(found, written.expected)


@pytest.mark.needs_tf
def test_what_cannot_be_compiled_runs_op_by_op_and_says_why(rng, tmp_path, tensorflow):
    def growing(tf: Any, x: Any) -> Any:
        shapes = [tf.TensorShape([None])]
        start = [tf.reshape(x, [-1])]
        loop = tf.compat.v1.while_loop
        return loop(
            lambda y: tf.reduce_sum(y) < 90.0, lambda y: [tf.concat([y, y], 0)], start, shapes
        )

    value = rng.uniform(0.2, 1.5, (3, 2)).astype(np.float32)
    written = Written(tensorflow, tmp_path, growing, value)
    found, op_by_op = run_twice(written, value)
    assert_same(found, written.expected)
    (reason,) = op_by_op.values()
    assert "changes the shape of what it carries" in reason


@pytest.mark.needs_tf
def test_compiled_index_outside_of_its_array_is_refused(rng, tmp_path, tensorflow):
    def outside(tf: Any, x: Any) -> Any:
        array = tf.compat.v1.TensorArray(tf.float32, size=3).unstack(x)
        return array.read(tf.cast(tf.reduce_sum(x) * 0 + 4, tf.int32))

    value = rng.uniform(0.2, 1.5, (3, 2)).astype(np.float32)
    with pytest.raises(tensorflow.errors.OpError):
        Written(tensorflow, tmp_path, outside, value)
    path = str(tmp_path / "theirs.meta")
    with jaxmeta.Graph().as_default() as graph, jaxmeta.Session(graph=graph) as session:
        jaxmeta.import_meta_graph(path)
        name = next(n.name for n in graph.nodes.values() if n.op == "TensorArrayReadV3")
        with pytest.raises(jaxmeta.InvalidArgumentError, match="read from index 4"):
            session.run(f"{name}:0", {"x:0": value})


# --- graphs that nobody can run -----------------------------------------------------------------


def node(name: str, op: str, *inputs: str, **attrs: Any) -> graph_pb2.NodeDef:
    made = graph_pb2.NodeDef(name=name, op=op, input=inputs)
    made.attr["T"].type = graph_pb2.DT_FLOAT
    for key, value in attrs.items():
        made.attr[key].s = value
    return made


def constant(value: Any = 1.0) -> graph_pb2.NodeDef:
    made = graph_pb2.NodeDef(name="c", op="Const")
    made.attr["dtype"].type = made.attr["value"].tensor.dtype = graph_pb2.DT_FLOAT
    made.attr["value"].tensor.float_val.append(value)
    made.attr["value"].tensor.tensor_shape.SetInParent()
    return made


BAD_GRAPHS = {
    "nothing entered one": [constant(), node("y", "Exit", "c")],
    "fewer than two inputs": [constant(), node("y", "Merge", "c")],
    "in no loop": [constant(), node("y", "NextIteration", "c")],
    "in different frames": [
        constant(),
        node("e", "Enter", "c", frame_name=b"loop"),
        node("y", "AddV2", "e", "c"),
    ],
    "cycle": [constant(), node("a", "AddV2", "c", "y"), node("y", "Identity", "a")],
}


@pytest.mark.parametrize("message", BAD_GRAPHS)
def test_graph_that_tensorflow_could_not_run_is_refused(message):
    nodes = {item.name: item for item in BAD_GRAPHS[message]}
    for item in nodes.values():
        if item.op == "Merge":
            item.attr["N"].i = len(item.input)
    with pytest.raises(jaxmeta.GraphError, match=message):
        executor.plan_graph(nodes, executor.Library({}), [], ["y:0"])
