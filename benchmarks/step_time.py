"""Is an imported train step as fast as the original?

The two compile to the same optimized HLO, which is asserted first and proves it; the times beside
one another are a tripwire. On a GPU, GPT-2 small is among the models.
"""

from __future__ import annotations

import functools
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import models
import numpy as np
import reporting
import timing

import jaxmeta as jm

sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests"))
import hlo
import programs

_CHECKED_STEPS = 3
_BLOCK_SECONDS = 0.1
_PROCESSES = 2  # each makes things in the other order
_TEST_PROGRAMS = {"vae": "linen_vae_adam"}


class Stepping:
    """Does steps on batches that are on the device already."""

    def __init__(self, step: Any, state: Any, batches: Sequence[Any]) -> None:
        self._step = step
        self._batches = batches
        self._number = 0
        self.state = state

    def __call__(self) -> Any:
        """Does one step and returns the metrics."""
        batch = self._batches[self._number % len(self._batches)]
        self._number += 1
        self.state, metrics = self._step(self.state, batch)
        return metrics


def _make(name: str, sizes: dict[str, Any]) -> tuple[Any, Any, Callable[[int], Any]]:
    """Returns step, state and batches of a model of the benchmarks, or of the tests."""
    if name not in _TEST_PROGRAMS:
        return models.MODELS[name](**sizes).make()
    program = programs.get(_TEST_PROGRAMS[name])
    assert program.jit != "none"
    return program.make()


def make_steps(name: str, sizes: dict[str, Any], backwards: bool = False) -> dict[str, Stepping]:
    """Returns the original step, the imported one, and the original jitted once more."""
    step, state, batches = _make(name, sizes)
    on_device = [jax.device_put(batches(number)) for number in range(_CHECKED_STEPS)]
    graph = jm.Graph()
    variables = graph.variables(state)
    graph.add_signature("train_step", step, variables, batches(0), updates=0)
    with tempfile.TemporaryDirectory() as folder:
        with jm.Saver(graph) as saver:
            path = saver.save(state, f"{folder}/model")
        program = jm.load(path)
        assert_same_program(step, state, program, batches(0))
        makers: dict[str, Callable[[], Any]] = {
            "native": lambda: (step, state),
            "imported": lambda: (program["train_step"], program.state),
            "again": lambda: _make(name, sizes)[:2],
        }
        order = list(reversed(makers)) if backwards else list(makers)
        return {key: Stepping(*makers[key](), on_device) for key in order}


def assert_same_program(step: Any, state: Any, program: jm.Program, batch: Any) -> None:
    """Raises where the imported step compiles to other HLO than the original."""
    original = hlo.canonical_hlo(step.lower(state, batch).compile())
    imported = hlo.canonical_hlo(program["train_step"].lower(program.state, batch).compile())
    difference = hlo.first_difference(original, imported)
    assert original == imported, difference


def assert_same_results(steps: dict[str, Stepping]) -> None:
    """Does some steps of each and raises where a bit of metrics or state differs."""
    results = {name: [step() for _ in range(_CHECKED_STEPS)] for name, step in steps.items()}
    reference = _leaves_by_path(results["native"], steps["native"].state)
    for name, step in steps.items():
        found = _leaves_by_path(results[name], step.state)
        assert found == reference, f"{name} gives other numbers"


def _leaves_by_path(metrics: Any, state: Any) -> list[bytes]:
    """Returns the bytes of all leaves; the two states have other classes, and so other orders."""
    leaves = [_bytes(leaf) for leaf in jax.tree.leaves(state)]
    return [*(_bytes(leaf) for leaf in jax.tree.leaves(metrics)), *sorted(leaves)]


def _bytes(leaf: Any) -> bytes:
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()


def time_block(step: Stepping, count: int) -> tuple[float, float]:
    """Returns milliseconds a step, wall and CPU, over a block that ends when all is computed."""
    start, start_cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        metrics = step()
    jax.block_until_ready((metrics, step.state))
    wall, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    return wall / count * 1e3, cpu / count * 1e3


def sample(name: str, sizes: dict[str, Any], rounds: int, backwards: bool) -> dict[str, Any]:
    """Returns milliseconds of each block of steps, (wall, CPU) by name."""
    steps = make_steps(name, sizes, backwards)
    assert_same_results(steps)
    wall, _ = time_block(steps["native"], _CHECKED_STEPS)
    count = max(1, int(_BLOCK_SECONDS * 1e3 / wall))
    blocks = {key: functools.partial(time_block, step, count) for key, step in steps.items()}
    samples: dict[str, Any] = timing.interleave(blocks, rounds)
    samples["device"] = jax.devices()[0].device_kind
    return samples


def measure(name: str, sizes: dict[str, Any], rounds: int) -> reporting.Row:
    """Returns the row of one model."""
    samples: dict[str, list[Any]] = {}
    device = ""
    for number in range(_PROCESSES):
        keywords = {"sizes": sizes, "rounds": rounds, "backwards": bool(number % 2)}
        part = timing.fresh(__file__, "sample", name=name, **keywords)
        device = part.pop("device")
        for key, values in part.items():
            samples.setdefault(key, []).extend(values)
    return summarize(name, device, samples)


def summarize(name: str, device: str, samples: dict[str, list[Any]]) -> reporting.Row:
    """Returns the row of one model from what `sample` gave."""
    wall = {key: [pair[0] for pair in pairs] for key, pairs in samples.items()}
    cpu = {key: [pair[1] for pair in pairs] for key, pairs in samples.items()}
    return {
        "model": name,
        "device": device,
        "same HLO": "yes",
        "same bits": "yes",
        "native ms": statistics.median(wall["native"]),
        "imported ms": statistics.median(wall["imported"]),
        "imported/native": timing.ratio(wall["imported"], wall["native"]),
        "again/native": timing.ratio(wall["again"], wall["native"]),
        "imported/native (CPU)": timing.ratio(cpu["imported"], cpu["native"]),
    }


def _draw(figure: Any, rows: Sequence[reporting.Row]) -> None:
    axes = figure.subplots()
    series = {
        "imported": [row["imported/native"] for row in rows],
        "the original, jitted again": [row["again/native"] for row in rows],
    }
    reporting.bars(axes, [f"{row['model']}\n{row['native ms']:.3g} ms" for row in rows], series)
    axes.axhline(1.0, color="black", linewidth=1)
    axes.set(title="time of a step", ylabel="wall time / native")


def main() -> None:
    options = timing.arguments(__doc__)
    sizes: dict[str, dict[str, Any]] = {
        "mlp": {},
        "cnn": {},
        "small_gpt": {},
        "lstm": {},
        "vae": {},
    }
    rounds = 41 if options.full else 15
    if options.quick:
        sizes, rounds = {"mlp": {}}, 3
    if jax.default_backend() == "gpu" and not options.quick:
        sizes["gpt2_small"] = {"dtype": "bfloat16"}
    report = reporting.Report("step_time", "An imported step against the original")
    report.note(
        "Both were compiled and had the same optimized HLO, then ran for "
        f"{_CHECKED_STEPS} steps and gave the same bits of metrics and state. Times are of the "
        f"wall, medians over {_PROCESSES} processes of {rounds} shuffled blocks; ratios are paired "
        "within a round. `again` is the original jitted once more: how far it is from 1 is noise."
    )
    rows = [measure(name, keywords, rounds) for name, keywords in sizes.items()]
    report.table("Steps", rows)
    for row in rows:
        report.target(f"{row['model']}: imported / native", row["imported/native"], 1.07)
    report.write(options.output, functools.partial(_draw, rows=rows))


if __name__ == "__main__" and not timing.run_as_worker(globals()):
    main()
