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
_PROCESSES = 4


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
        self.state = jax.tree.map(jnp.copy, state)  # so that all have buffers of one origin

    def __call__(self) -> Any:
        """Does one step and returns the loss."""
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
        """Does one step and returns the loss."""
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
        """Does one step and returns the loss."""
        return self._session.run(self._fetches, self._feeds)[1]

    def values(self) -> list[float]:
        """Returns the variables' values."""
        return [float(value) for value in self._session.run(self._variables)]


def save_program(leaves: int, folder: str) -> str:
    """Saves the train step and its state; returns the checkpoint's prefix."""
    graph = jm.Graph()
    step, state = new_step(), new_state(leaves)
    graph.add_signature("train_step", step, graph.variables(state), jnp.float32(1), updates=0)
    with jm.Saver(graph) as saver:
        return saver.save(state, f"{folder}/model", global_step=leaves)


def _new_session(path: str, leaves: int) -> SessionStepping:
    with jm.Graph().as_default() as graph:
        session = jm.Session(graph)
        jm.import_meta_graph(f"{path}.meta").restore(session, path)
        session.set_state(session.state)  # copies
        return SessionStepping(session, leaves)


def _new_imported(path: str) -> Stepping:
    program = jm.load(path)
    return Stepping(program["train_step"], program.state)


def make_calls(leaves: int, path: str, backwards: bool = False) -> dict[str, Any]:
    """Returns what is compared, by name, made in one order or the other."""
    makers: dict[str, Call] = {
        "jax.jit": lambda: Stepping(new_step(), new_state(leaves)),
        "imported": lambda: _new_imported(path),
        "Session.run": lambda: _new_session(path, leaves),
        "again": lambda: Stepping(new_step(), new_state(leaves)),
    }
    if timing.has_package("tensorflow"):
        makers["TF Session.run"] = lambda: TensorFlowStepping(leaves)
    order = list(reversed(makers)) if backwards else list(makers)
    return {name: makers[name]() for name in order}


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


def time_block(call: Call, count: int) -> tuple[float, float]:
    """Returns microseconds a call, CPU and wall, over a block that ends when all is computed."""
    result = None
    start, start_cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        result = call()
    jax.block_until_ready(result)
    cpu, wall = time.process_time() - start_cpu, time.perf_counter() - start
    return cpu / count * 1e6, wall / count * 1e6


def sample(leaves: int, rounds: int, path: str, backwards: bool) -> dict[str, Any]:
    """Returns the microseconds that each block of calls took, (CPU, wall) by name."""
    calls = make_calls(leaves, path, backwards)
    check(calls)
    blocks: dict[str, Callable[[], tuple[float, float]]] = {}
    for name, call in calls.items():
        _, wall = time_block(call, _WARM_UP_CALLS)
        blocks[name] = functools.partial(time_block, call, max(2, int(_BLOCK_SECONDS * 1e6 / wall)))
    return timing.interleave(blocks, rounds)


def measure(leaves: int, rounds: int, folder: str) -> reporting.Row:
    """Returns the row of one number of leaves, over processes that make things in both orders."""
    path = save_program(leaves, folder)
    samples: dict[str, list[tuple[float, float]]] = {}
    for number in range(_PROCESSES):
        keywords = {"rounds": rounds, "path": path, "backwards": bool(number % 2)}
        part = timing.fresh(__file__, "sample", leaves=leaves, **keywords)
        for name, values in part.items():
            samples.setdefault(name, []).extend(values)
    return summarize(leaves, samples)


def summarize(leaves: int, samples: dict[str, list[tuple[float, float]]]) -> reporting.Row:
    """Returns the row of one number of leaves from what `sample` gave."""
    cpu = {name: [pair[0] for pair in pairs] for name, pairs in samples.items()}
    wall = {name: [pair[1] for pair in pairs] for name, pairs in samples.items()}
    row: dict[str, Any] = {"leaves": leaves}
    for name, values in cpu.items():
        if name != "again":
            row[f"{name} us"] = statistics.median(values)
    row["again/jax.jit"] = timing.ratio(cpu["again"], cpu["jax.jit"])
    row["imported/jax.jit"] = timing.ratio(cpu["imported"], cpu["jax.jit"])
    row["Session.run - imported us"] = statistics.median(
        run - step for run, step in zip(cpu["Session.run"], cpu["imported"], strict=True)
    )
    if "TF Session.run" in samples:
        row["Session.run/TF"] = timing.ratio(cpu["Session.run"], cpu["TF Session.run"])
        row["Session.run/TF (wall)"] = timing.ratio(wall["Session.run"], wall["TF Session.run"])
    return row


def _add_targets(report: reporting.Report, rows: Sequence[reporting.Row]) -> None:
    for row in rows:
        leaves = f"{row['leaves']} leaves"
        noise = abs(row["again/jax.jit"] - 1.0)
        bound = 1.15 if row["leaves"] < _GROUP else 1.0 + noise
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
    sizes, rounds = [1, 10, 100, 500], 101 if options.full else 31
    if options.quick:
        sizes, rounds = [1, 10], 3
    report = reporting.Report("dispatch", "What a call costs")
    report.note(
        f"Microseconds of CPU time; medians over {_PROCESSES} processes of {rounds} shuffled "
        f"blocks of {_BLOCK_SECONDS * 1e3:.0f} ms, ratios paired within a round. `again` is a "
        "second `jax.jit` of the original: how far its ratio is from 1 is the noise. Where the "
        "arrays of a state lie in memory is a part of it, so that half of the processes make "
        "everything in the other order. `jax.jit` and `imported` run the same program on the same "
        "nested dicts; the bound of their ratio is 1 and that noise."
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(leaves, rounds, folder) for leaves in sizes]
    report.table("Calls", rows)
    _add_targets(report, rows)
    report.write(options.output, functools.partial(_draw, rows=rows))


if __name__ == "__main__" and not timing.run_as_worker(globals()):
    main()
