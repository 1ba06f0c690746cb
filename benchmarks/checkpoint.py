"""What does a checkpoint cost, against plain Orbax with its defaults?

    python benchmarks/checkpoint.py [--quick]

Two states, one of few big arrays and one of many small ones, are saved and restored by both in
turn. The ratio of each pair of measurements is taken, and of the ratios the median: so what else
the machine does falls on both. Before timing, both restore what either saved, bit for bit.

    stall    until save() returns
    save     until the checkpoint is in place, with nothing else to do
    loop     save and 20 donated train steps, until both are done
    restore  of all arrays to the device, in a process that did it before
    resume   the same in a fresh process, with the imports but for JAX's
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import matplotlib as mpl
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from jaxmeta.checkpoint import CheckpointWriter, restore

RESULTS = Path(__file__).parent / "results"
MEASURES = ["stall", "save", "loop", "restore", "resume"]
State = dict[str, jax.Array]

RESUME = """
import sys, time
import jax
jax.devices()
start = time.perf_counter()
directory, count, size, who = sys.argv[1:]
specs = {f"v{i}": jax.ShapeDtypeStruct((int(size),), "float32") for i in range(int(count))}
if who == "jaxmeta":
    from jaxmeta.checkpoint.orbax_reader import restore
    arrays = restore(directory, specs)
else:
    import orbax.checkpoint as ocp
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    specs = {name: spec.update(sharding=sharding) for name, spec in specs.items()}
    arrays = ocp.StandardCheckpointer().restore(directory, specs)
jax.block_until_ready(arrays)
print(time.perf_counter() - start)
"""


step = jax.jit(lambda state: jax.tree.map(lambda value: value * 0.999, state), donate_argnums=0)


def make_state(seed: int, count: int, size: int) -> State:
    rng = np.random.default_rng(seed)
    arrays = {f"v{i}": rng.standard_normal(size, dtype=np.float32) for i in range(count)}
    return jax.block_until_ready(step(jax.device_put(arrays)))  # out of JAX's own buffers


def save_with_jaxmeta(directory: str) -> tuple[Callable[[State], None], Callable[[], None]]:
    writer = CheckpointWriter()
    return lambda state: writer.save(directory, state), writer.close


def save_with_orbax(directory: str) -> tuple[Callable[[State], None], Callable[[], None]]:
    checkpointer = ocp.StandardCheckpointer()
    return lambda state: checkpointer.save(directory, state), checkpointer.close


def restore_with_jaxmeta(directory: str, specs: dict[str, Any]) -> State:
    return restore(directory, specs)


def restore_with_orbax(directory: str, specs: dict[str, Any]) -> State:
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(directory, specs)


SAVERS = {"jaxmeta": save_with_jaxmeta, "orbax": save_with_orbax}
RESTORERS = {"jaxmeta": restore_with_jaxmeta, "orbax": restore_with_orbax}


def measure(who: str, state: State, directory: str, is_resumed: bool) -> dict[str, float]:
    """Returns seconds by measure; the directory holds the checkpoint afterwards."""
    shutil.rmtree(directory, ignore_errors=True)
    specs = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    jax.block_until_ready(state)
    seconds = {}
    save, close = SAVERS[who](directory)
    start = time.perf_counter()
    save(state)
    seconds["stall"] = time.perf_counter() - start
    close()
    seconds["save"] = time.perf_counter() - start
    shutil.rmtree(directory)
    state = jax.block_until_ready(step(state))
    save, close = SAVERS[who](directory)
    start = time.perf_counter()
    save(state)
    for _ in range(20):
        state = jax.block_until_ready(step(state))
    close()
    seconds["loop"] = time.perf_counter() - start
    start = time.perf_counter()
    jax.block_until_ready(RESTORERS[who](directory, specs))
    seconds["restore"] = time.perf_counter() - start
    if is_resumed:
        seconds["resume"] = measure_resume(who, specs, directory)
    return seconds


def measure_resume(who: str, specs: dict[str, Any], directory: str) -> float:
    size = next(iter(specs.values())).shape[0]
    command = [sys.executable, "-c", RESUME, directory, str(len(specs)), str(size), who]
    path = str(Path(__file__).parents[1])
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path},
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return float(done.stdout.split()[-1])


def check(state: State, directory: str) -> None:
    """Asserts that each restores what either saved, bit for bit."""
    specs = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    for saver in SAVERS.values():
        shutil.rmtree(directory, ignore_errors=True)
        save, close = saver(directory)
        save(state)
        close()
        for restorer in RESTORERS.values():
            found = restorer(directory, specs)
            assert found.keys() == state.keys()
            for name, value in state.items():
                np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(value))


def run(count: int, size: int, rounds: int, resumes: int) -> dict[str, dict[str, list[float]]]:
    """Returns all seconds, by measure and by who; both in turn, each first every other time."""
    seconds: dict[str, dict[str, list[float]]] = {
        name: {who: [] for who in SAVERS} for name in MEASURES
    }
    with tempfile.TemporaryDirectory() as parent:
        check(make_state(0, count, size), f"{parent}/check")
        shutil.rmtree(f"{parent}/check")
        for number in range(rounds):
            for who in sorted(SAVERS, reverse=bool(number % 2)):
                state = make_state(number, count, size)
                found = measure(who, state, f"{parent}/{who}", is_resumed=number < resumes)
                del state
                for name, value in found.items():
                    seconds[name][who].append(value)
    return seconds


def summarize(seconds: dict[str, list[float]]) -> tuple[float, float, float, tuple[float, float]]:
    """Returns both medians, the median of the ratios, and the ratios' middle half."""
    ours, theirs = seconds["jaxmeta"], seconds["orbax"]
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    medians = statistics.median(ours), statistics.median(theirs)
    return *medians, statistics.median(ratios), (quarters[0], quarters[2])


def describe_machine() -> str:
    versions = {
        "Python": platform.python_version(),
        "JAX": jax.__version__,
        "Orbax": ocp.__version__,
        "TensorStore": getattr(ts, "__version__", None),
    }
    device = jax.devices()[0]
    return (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPU cores under load "
        f"{os.getloadavg()[1]:.0f}, device "
        f"{device.device_kind or device.platform}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    )


def write_table(results: dict[str, Any], rounds: dict[str, int]) -> str:
    lines = ["# Saving and restoring, against plain Orbax", "", describe_machine() + ".", ""]
    lines += [line for line in (__doc__ or "").splitlines() if line.startswith("    ")][1:]
    for title, seconds in results.items():
        lines += ["", f"## {title} ({rounds[title]} pairs)", ""]
        lines += ["| | jaxmeta | Orbax | ratio | middle half of the ratios |", "|-|-|-|-|-|"]
        for name in MEASURES:
            ours, theirs, ratio, (low, high) = summarize(seconds[name])
            lines.append(
                f"| {name} | {ours * 1e3:.1f} ms | {theirs * 1e3:.1f} ms | {ratio:.2f} | "
                f"{low:.2f} to {high:.2f} |"
            )
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any], path: Path) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(10, 4), layout="constrained")
    for axis, (title, seconds) in zip(np.atleast_1d(axes), results.items(), strict=True):
        for offset, who in enumerate(SAVERS):
            heights = [statistics.median(seconds[name][who]) * 1e3 for name in MEASURES]
            places = np.arange(len(MEASURES)) + (offset - 0.5) * 0.2
            axis.plot(places, heights, "o", markersize=9, label=who)
        axis.set(title=title, ylabel="milliseconds (median)", yscale="log")
        axis.grid(axis="y", alpha=0.3)
        axis.set_xticks(np.arange(len(MEASURES)), MEASURES)
    figure.axes[0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rounds; writes no results")
    parser.add_argument("--json", type=Path, help="where to write all seconds")
    arguments = parser.parse_args()
    cases = {"16 arrays of 8 MB": (16, 2 << 20), "1000 arrays of 256 bytes": (1000, 64)}
    rounds, resumes = (3, 1) if arguments.quick else (15, 7)
    results = {title: run(*case, rounds, resumes) for title, case in cases.items()}
    table = write_table(results, dict.fromkeys(results, rounds))
    print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(results))
    if not arguments.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "checkpoint.md").write_text(table)
        draw(results, RESULTS / "checkpoint.png")


if __name__ == "__main__":
    main()
