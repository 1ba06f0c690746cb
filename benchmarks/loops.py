"""Is a recurrent network that TensorFlow 1 wrote as fast in jaxmeta as in TensorFlow?

A train step of an LSTM over time, as `dynamic_rnn` writes it: a loop of Enter, Merge, Switch and
Exit nodes with arrays of tensors, and its gradient with stacks. jaxmeta compiles the loops; the
same step run op by op, and TensorFlow's `Session.run`, are beside it.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import reporting
import timing

import jaxmeta as jm

_CHECKED_STEPS = 3
_LEARNING_RATE = 0.1


def write_graph(tf: Any, path: str, batch: int, steps: int, units: int) -> tuple[str, Any]:
    """Writes the graph of a train step; returns its initializer's name, and a session on it."""
    tf1 = tf.compat.v1
    tf1.disable_control_flow_v2()
    with tf.Graph().as_default():
        x = tf1.placeholder(tf.float32, [steps, batch, units], name="x")
        initial = np.random.default_rng(0).normal(0, 0.1, (2 * units, 4 * units))
        weights = tf1.get_variable("w", initializer=initial.astype(np.float32), use_resource=False)
        taken = tf1.TensorArray(tf.float32, size=steps).unstack(x)
        made = tf1.TensorArray(tf.float32, size=steps)

        def body(i: Any, c: Any, h: Any, made: Any) -> Any:
            gates = tf.matmul(tf.concat([taken.read(i), h], 1), weights)
            inner, new, forget, outer = tf.split(gates, 4, 1)
            c = c * tf.sigmoid(forget + 1.0) + tf.sigmoid(inner) * tf.tanh(new)
            h = tf.tanh(c) * tf.sigmoid(outer)
            return i + 1, c, h, made.write(i, h)

        zeros = tf.zeros([batch, units])
        start = [tf.constant(0), zeros, zeros, made]
        made = tf1.while_loop(lambda i, *_: i < steps, body, start)[-1]
        loss = tf.reduce_mean(tf.square(made.stack()), name="loss")
        (slope,) = tf.gradients(loss, weights)
        tf1.assign_sub(weights, _LEARNING_RATE * slope, name="train")
        initializer = tf1.global_variables_initializer().name
        tf1.train.export_meta_graph(path)
        return initializer, tf1.Session()


def make_calls(batch: int, steps: int, units: int) -> dict[str, Callable[[], Any]]:
    """Returns a train step by what runs it; each returns the loss."""
    import tensorflow as tf

    x = np.random.default_rng(1).normal(size=(steps, batch, units)).astype(np.float32)
    calls: dict[str, Callable[[], Any]] = {}
    fetches, feeds = ["loss:0", "train"], {"x:0": x}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/lstm.meta"
        initializer, theirs = write_graph(tf, path, batch, steps, units)
        for name in ("compiled", "op by op"):
            with jm.Graph().as_default() as graph:
                jm.import_meta_graph(path)
                ours = jm.Session(graph=graph)
            ours.run(initializer)
            calls[name] = functools.partial(_loss, ours, fetches, feeds)
            calls[name]()
            (plan,) = (p for names, p in ours._speculative.items() if "loss:0" in names)
            assert not plan.refusal, plan.refusal
            plan.refusal = "the benchmark wants it" if name == "op by op" else ""
            ours.run(initializer)
    theirs.run(initializer)
    calls["TF Session.run"] = functools.partial(_loss, theirs, ["loss:0", "train:0"], feeds)
    return calls


def _loss(session: Any, fetches: Sequence[str], feeds: dict[str, Any]) -> float:
    return float(session.run(fetches, feeds)[0])


def check(calls: dict[str, Callable[[], Any]]) -> None:
    """Raises where the losses of some steps differ."""
    losses = {name: [call() for _ in range(_CHECKED_STEPS)] for name, call in calls.items()}
    for name, values in losses.items():
        np.testing.assert_allclose(values, losses["TF Session.run"], rtol=1e-4, err_msg=name)


def _milliseconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def measure(batch: int, steps: int, units: int, rounds: int) -> reporting.Row:
    """Returns the row of one size."""
    calls = make_calls(batch, steps, units)
    check(calls)
    runs = {name: functools.partial(_milliseconds, call) for name, call in calls.items()}
    samples = timing.interleave(runs, rounds)
    row: dict[str, Any] = {"batch": batch, "steps": steps, "units": units}
    for name, values in samples.items():
        row[f"{name} ms"] = statistics.median(values)
    row["compiled/op by op"] = timing.ratio(samples["compiled"], samples["op by op"])
    row["compiled/TF"] = timing.ratio(samples["compiled"], samples["TF Session.run"])
    return row


def _draw(figure: Any, rows: Sequence[reporting.Row]) -> None:
    axes = figure.subplots()
    groups = [f"{row['batch']} x {row['steps']} x {row['units']}" for row in rows]
    columns = [column for column in rows[0] if column.endswith(" ms")]
    reporting.bars(axes, groups, {c[:-3]: [row[c] for row in rows] for c in columns})
    axes.set(yscale="log", ylabel="ms a step", xlabel="batch x steps x units")
    axes.set_title("train step of an LSTM that TensorFlow 1 wrote")
    axes.legend()


def main() -> None:
    options = timing.arguments(__doc__)
    sizes, rounds = [(16, 20, 32), (32, 50, 128)], 31 if options.full else 11
    if options.quick:
        sizes, rounds = [(4, 5, 8)], 3
    report = reporting.Report("loops", "Loops of TensorFlow 1")
    report.note(
        f"Milliseconds of wall time; medians of {rounds} shuffled rounds, ratios paired within a "
        f"round, in one process. Each variant trains the same weights; the losses of the first "
        f"{_CHECKED_STEPS} steps are compared. JAX {jax.__version__} compiles the loops to scans."
    )
    rows = [measure(*size, rounds) for size in sizes]
    report.table("A train step", rows)
    for row in rows:
        size = f"{row['batch']} x {row['steps']} x {row['units']}"
        report.target(f"compiled / op by op, {size}", row["compiled/op by op"], 0.2)
        report.target(f"compiled / TensorFlow's, {size}", row["compiled/TF"], 1.0)
    report.write(options.output, functools.partial(_draw, rows=rows))


if __name__ == "__main__":
    main()
