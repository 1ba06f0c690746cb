"""What the benchmarks share: interleaved rounds, fresh processes, medians of ratios, reports."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

RESULTS = pathlib.Path(__file__).parent / "results"
_WORKER = "--worker"
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "protobuf", "tensorflow-cpu")


def arguments(doc: str | None) -> argparse.Namespace:
    """Returns the command line: `quick`, `full`, and `output`, a folder."""
    parser = argparse.ArgumentParser(description=doc)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="smallest sizes: does it run at all?")
    size.add_argument("--full", action="store_true", help="all sizes, more rounds")
    parser.add_argument("--output", type=pathlib.Path, help="folder of the table and the plot")
    parsed = parser.parse_args()
    parsed.output = parsed.output or (RESULTS / "quick" if parsed.quick else RESULTS)
    return parsed


class Stopwatch:
    """Laps in seconds of the wall clock and of this process's CPU time."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._last = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        """Ends a lap; the time since the last one is added to it."""
        now = time.perf_counter(), time.process_time()
        self.wall[name] = self.wall.get(name, 0.0) + now[0] - self._last[0]
        self.cpu[name] = self.cpu.get(name, 0.0) + now[1] - self._last[1]
        self._last = time.perf_counter(), time.process_time()

    def skip(self) -> None:
        """Forgets the time since the last lap."""
        self._last = time.perf_counter(), time.process_time()


def interleave(variants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """Runs all variants in each round, each time in another order; returns what they gave."""
    samples: dict[str, list[Any]] = {name: [] for name in variants}
    shuffler = random.Random(0)
    for _ in range(rounds):
        for name in shuffler.sample(list(variants), len(variants)):
            samples[name].append(variants[name]())
    return samples


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Returns the median of the ratios of samples that were taken in the same round."""
    return statistics.median(n / d for n, d in zip(numerators, denominators, strict=True))


def fresh(script: str, function: str, **keywords: Any) -> dict[str, Any]:
    """Calls a function of a script in a new process and returns its result, a dict."""
    command = [sys.executable, script, _WORKER, function, json.dumps(keywords)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{function}({keywords}) failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_as_worker(functions: Mapping[str, Any]) -> bool:
    """Answers `fresh` where it started this process; returns whether it did."""
    if sys.argv[1:2] != [_WORKER]:
        return False
    print(json.dumps(functions[sys.argv[2]](**json.loads(sys.argv[3]))))
    return True


def memory_bytes(field: str) -> int:
    """Returns `VmRSS`, the memory of this process now, or `VmHWM`, its most; 0 but on Linux."""
    status = pathlib.Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


def has_package(name: str) -> bool:
    """Returns whether a package is installed, without importing it."""
    return importlib.util.find_spec(name) is not None


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> str:
    """Returns a line about the machine, the versions and the day."""
    facts = [f"{os.cpu_count()} x {_processor()}", f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts.append(f"{name} {importlib.metadata.version(name)}")
    load = f"load {os.getloadavg()[0]:.1f}"
    return ", ".join([*facts, str(datetime.datetime.now(datetime.UTC).date()), load])
