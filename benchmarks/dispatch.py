"""What does a call cost before any work is done, and after it?

A train step that adds a number to each of 1 to 500 scalars, so that nearly all of its time is
dispatch: the imported step and `Session.run` against `jax.jit` of the original and TensorFlow's
`Session.run`.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import reporting
import timing

import jaxmeta as jm

State = dict[str, dict[str, Any]]
Call = Callable[[], Any]

_GROUP = 10  # leaves in one inner dict
_BLOCK_SECONDS = 0.02
_CHECKED_CALLS = 3
_WARM_UP_CALLS = 20


def new_state(leaves: int) -> State:
    """Returns scalars in nested dicts."""
    groups: State = {}
    for number in range(leaves):
        group = groups.setdefault(f"layer_{number // _GROUP}", {})
        group[f"leaf_{number % _GROUP}"] = jnp.float32(number)
    return groups


def new_step() -> Callable[[State, jax.Array], tuple[State, dict[str, jax.Array]]]:
    """Returns a train step that hardly computes, jitted, its state donated."""

    def train_step(state: State, x: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        return jax.tree.map(lambda leaf: leaf + x, state), {"loss": x * 2}

    return jax.jit(train_step, donate_argnums=0)


class Stepping:
    """Calls a step over and over, as a training loop does."""

    def __init__(self, step: Any, state: State) -> None:
        self._step = step
        self._x = jnp.float32(1)
        self.state = state

    def __call__(self) -> Any:
        self.state, metrics = self._step(self.state, self._x)
        return metrics["loss"]

    def values(self) -> list[float]:
        """Returns the state's leaves."""
        return [float(leaf) for leaf in jax.tree.leaves(self.state)]


class SessionStepping:
    """Runs the train op of a session over and over."""

    def __init__(self, session: jm.Session, leaves: int) -> None:
        self._session = session
        self._fetches = [jm.get_collection("train_op")[0].name, f"train_step:{leaves}"]
        self._feeds = {"x:0": jnp.float32(1)}

    def __call__(self) -> Any:
        return self._session.run(self._fetches, self._feeds)[1]

    def values(self) -> list[float]:
        """Returns the variables' values."""
        return [float(leaf) for leaf in jax.tree.leaves(self._session.state)]


class TensorFlowStepping:
    """Runs the same update in a session of TensorFlow, over and over."""

    def __init__(self, leaves: int) -> None:
        import tensorflow as tf

        v1 = tf.compat.v1
        with tf.Graph().as_default() as graph:
            x = v1.placeholder(tf.float32, ())
            self._variables = [
                v1.get_variable(f"v{number}", (), use_resource=True) for number in range(leaves)
            ]
            updates = [variable.assign_add(x, read_value=False) for variable in self._variables]
            self._fetches = [tf.group(*updates), x * 2]
            load = [v.assign(np.float32(i)) for i, v in enumerate(self._variables)]
        self._session = v1.Session(graph=graph)
        self._session.run([op.op for op in load])
        self._feeds = {x: np.float32(1)}

    def __call__(self) -> Any:
        return self._session.run(self._fetches, self._feeds)[1]

    def values(self) -> list[float]:
        """Returns the variables' values."""
        return [float(value) for value in self._session.run(self._variables)]


def make_calls(leaves: int, folder: str) -> dict[str, Any]:
    """Returns what is compared, by name; the graph travels through files."""
    graph = jm.Graph()
    step, state = new_step(), new_state(leaves)
    graph.add_signature("train_step", step, graph.variables(state), jnp.float32(1), updates=0)
    with jm.Saver(graph) as saver:
        path = saver.save(state, f"{folder}/model", global_step=leaves)
    program = jm.load(path)
    with jm.Graph().as_default() as imported:
        session = jm.Session(imported)
        jm.import_meta_graph(f"{path}.meta").restore(session, path)
        calls: dict[str, Any] = {
            "jax.jit": Stepping(step, state),
            "imported": Stepping(program["train_step"], program.state),
            "Session.run": SessionStepping(session, leaves),
        }
    if timing.has_package("tensorflow"):
        calls["TF Session.run"] = TensorFlowStepping(leaves)
    return calls


def check(calls: dict[str, Any]) -> None:
    """Raises where some of the calls do not do what the others do."""
    for call in calls.values():
        losses = [float(call()) for _ in range(_CHECKED_CALLS)]
        assert losses == [2.0] * _CHECKED_CALLS
    reference = calls["jax.jit"].values()
    assert reference[0] == _CHECKED_CALLS
    for name, call in calls.items():
        # Sessions sort by name; the values are distinct.
        assert sorted(call.values()) == sorted(reference), name


def time_block(call: Call, count: int) -> float:
    """Returns microseconds a call, over a block of calls that ends when all is computed."""
    result = None
    start = time.perf_counter()
    for _ in range(count):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / count * 1e6


def measure(leaves: int, rounds: int, folder: str) -> reporting.Row:
    """Returns the row of one number of leaves."""
    calls = make_calls(leaves, folder)
    check(calls)
    blocks: dict[str, Callable[[], float]] = {}
    for name, call in calls.items():
        cost = time_block(call, _WARM_UP_CALLS)
        count = max(2, int(_BLOCK_SECONDS * 1e6 / cost))
        blocks[name] = functools.partial(time_block, call, count)
    samples = timing.interleave(blocks, rounds)
    medians = {name: statistics.median(values) for name, values in samples.items()}
    row: dict[str, Any] = {"leaves": leaves, **{f"{name} us": us for name, us in medians.items()}}
    row["imported/jax.jit"] = timing.ratio(samples["imported"], samples["jax.jit"])
    row["Session.run - imported us"] = statistics.median(
        run - step for run, step in zip(samples["Session.run"], samples["imported"], strict=True)
    )
    if "TF Session.run" in samples:
        theirs = samples["TF Session.run"]
        row["Session.run/TF"] = timing.ratio(samples["Session.run"], theirs)
        row["imported/TF"] = timing.ratio(samples["imported"], theirs)
    return row


def _add_targets(report: reporting.Report, rows: Sequence[reporting.Row]) -> None:
    for row in rows:
        leaves = f"{row['leaves']} leaves"
        bound = 1.15 if row["leaves"] < _GROUP else 1.0
        report.target(f"imported / jax.jit, {leaves}", row["imported/jax.jit"], bound)
        excess = row["Session.run - imported us"]
        report.target(f"Session.run - imported step, us, {leaves}", excess, 30.0)
        if "Session.run/TF" in row:
            report.target(f"Session.run / TensorFlow's, {leaves}", row["Session.run/TF"], 1.0)


def _draw(figure: Any, rows: Sequence[reporting.Row]) -> None:
    axes = figure.subplots()
    leaves = [row["leaves"] for row in rows]
    for column in rows[0]:
        if column.endswith(" us") and "-" not in column:
            axes.plot(leaves, [row[column] for row in rows], marker="o", label=column[:-3])
    axes.set(xscale="log", yscale="log", xlabel="leaves of the state", ylabel="us a call")
    axes.set_title("cost of a call")
    axes.legend()


def main() -> None:
    options = timing.arguments(__doc__)
    sizes, rounds = [1, 10, 100, 500], 201 if options.full else 61
    if options.quick:
        sizes, rounds = [1, 10], 3
    report = reporting.Report("dispatch", "What a call costs")
    report.note(
        f"Microseconds of wall time; medians of {rounds} interleaved blocks of "
        f"{_BLOCK_SECONDS * 1e3:.0f} ms, ratios paired within a round. `jax.jit` and `imported` "
        "take and return the same nested dicts; both compile to the same program, so that their "
        "true ratio is 1 and what is measured beyond it is noise."
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(leaves, rounds, folder) for leaves in sizes]
    report.table("Calls", rows)
    _add_targets(report, rows)
    report.write(options.output, functools.partial(_draw, rows=rows))


if __name__ == "__main__":
    main()
