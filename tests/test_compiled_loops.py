"""Loops and branches of TensorFlow 1, compiled: TensorFlow's values, gradients and training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import jaxmeta

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
