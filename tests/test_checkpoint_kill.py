"""A process that is killed while it saves: the former checkpoint stays whole, and the latest.

This file is also a program. It imports what saving needs, and then forks, for each line that it
reads, a process that saves and is killed: so a kill costs some milliseconds, not an import of JAX.
"""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxmeta.checkpoint import (
    CheckpointWriter,
    atomic,
    checkpoint_exists,
    latest_checkpoint,
    remove_checkpoint,
    update_checkpoint_state,
)
from jaxmeta.checkpoint.background import BackgroundWriter
from jaxmeta.checkpoint.reader import CheckpointReader
from jaxmeta.checkpoint.tensor_bundle import TensorBundleWriter

REPOSITORY = Path(__file__).parents[1]
SIZES = (3, 300, 30_000)


# --- the program that is killed ----------------------------------------------------------------


WRITERS = {"orbax": CheckpointWriter, "bundle": TensorBundleWriter}


def save_step(writer: BackgroundWriter, directory: str, step: int, layout: str) -> None:
    """Saves as a Saver does with max_to_keep=1, or over and over under one name."""
    prefix = f"{directory}/model" if "one_name" in layout else f"{directory}/model-{step}"
    arrays = {f"part_{size}/w": np.full(size, step, np.int32) for size in SIZES}

    def commit() -> None:
        former = latest_checkpoint(directory)
        update_checkpoint_state(directory, prefix, save_relative_paths=True)
        print(f"committed {step}", flush=True)
        if former is not None and former != prefix:
            remove_checkpoint(former)

    writer.save(prefix, arrays, on_commit=commit)


CALLS = [(os, name) for name in ("mkdir", "open", "fsync", "rename", "replace", "unlink", "rmdir")]


def die_at_call(number: int) -> None:
    """Has this process kill itself just before its n-th call that touches the file system."""
    counter = itertools.count(1)

    def dying(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(counter) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for module, name in [*CALLS, (atomic, "_exchange")]:
        setattr(module, name, dying(getattr(module, name)))


def run(directory: str, layout: str, steps: list[int], die_at: int, can_exchange: bool) -> None:
    if not can_exchange:
        atomic._exchange = lambda first, second: False
    if die_at:
        die_at_call(die_at)
    if layout == "removal":
        remove_checkpoint(f"{directory}/model-{steps[0]}")
        return
    with WRITERS["bundle" if "bundle" in layout else "orbax"]() as writer:
        for step in steps:
            save_step(writer, directory, step, layout)


def serve() -> None:
    for line in iter(sys.stdin.readline, ""):
        job = json.loads(line)
        is_killed_on_demand = job.pop("is_killed_on_demand")
        child = os.fork()
        if not child:
            run(**job)
            sys.stdout.flush()
            os._exit(0)
        if is_killed_on_demand:
            sys.stdin.readline()
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print("ended", os.waitstatus_to_exitcode(status), flush=True)


# --- the tests ---------------------------------------------------------------------------------


class Victims:
    """The program above, and what it says."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            cwd=REPOSITORY,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        directory: Path,
        layout: str,
        steps: list[int],
        *,
        die_at: int = 0,
        kill_after: tuple[int, float] | None = None,
        can_exchange: bool = True,
    ) -> tuple[list[int], int]:
        """Returns the steps that were reported as committed, and the exit code.

        Kills before the n-th call `die_at`, or after so many reports and then seconds.
        """
        job = {"directory": str(directory), "layout": layout, "steps": steps}
        job |= {"die_at": die_at, "can_exchange": can_exchange}
        job["is_killed_on_demand"] = kill_after is not None
        self._tell(json.dumps(job))
        assert self._process.stdout is not None
        committed = []
        for line in self._process.stdout:
            word, _, number = line.partition(" ")
            if word == "ended":
                return committed, int(number)
            committed.append(int(number))
            if kill_after is not None and len(committed) == kill_after[0]:
                time.sleep(kill_after[1])
                self._tell("now")
        raise AssertionError("the program that runs the victims is gone")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module", name="victims")
def start_victims() -> Iterator[Victims]:
    victims = Victims()
    yield victims
    victims.close()


def latest_step(directory: Path) -> int:
    """Returns the step of the latest checkpoint, which is whole and of one piece."""
    latest = latest_checkpoint(directory)
    assert latest is not None
    reader = CheckpointReader(latest)
    shapes = reader.get_variable_to_shape_map()
    assert shapes == {f"part_{size}/w": [size] for size in SIZES}
    values = set(np.concatenate([reader.get_tensor(name) for name in shapes]).tolist())
    assert len(values) == 1
    return int(values.pop())


@pytest.mark.parametrize(
    ("layout", "can_exchange"),
    [
        ("steps", True),
        ("one_name", True),
        ("one_name", False),
        ("bundle_steps", True),
        ("bundle_one_name", True),
    ],
)
def test_a_kill_before_any_call_leaves_a_whole_checkpoint(
    tmp_path: Path, victims: Victims, layout: str, can_exchange: bool
) -> None:
    assert victims.run(tmp_path / "start", layout, [1]) == ([1], 0)
    for die_at in itertools.count(1):
        directory = shutil.copytree(tmp_path / "start", tmp_path / str(die_at))
        committed, code = victims.run(
            directory, layout, [2], die_at=die_at, can_exchange=can_exchange
        )
        assert latest_step(directory) in ([2] if committed else [1, 2])
        if code == 0:
            break
        assert code == -signal.SIGKILL
        if die_at % 3:  # the rest costs time
            continue
        # The next process goes on as if nothing had been, and clears up.
        assert victims.run(directory, layout, [3], can_exchange=can_exchange) == ([3], 0)
        assert latest_step(directory) == 3
        leftovers = [name for name in os.listdir(directory) if ".jaxmeta-" in name]
        assert leftovers == []
    assert die_at > 15, die_at


@pytest.mark.parametrize("layout", ["steps", "one_name", "bundle_steps", "bundle_one_name"])
def test_kills_at_random_moments_leave_a_whole_checkpoint(
    tmp_path: Path, victims: Victims, layout: str
) -> None:
    rng = random.Random(layout)
    assert victims.run(tmp_path, layout, [0]) == ([0], 0)
    last = 0
    for _ in range(12):
        steps = list(range(last + 1, last + 1000))
        kill_after = rng.choice([1, 2]), rng.uniform(0, 0.03)
        committed, code = victims.run(tmp_path, layout, steps, kill_after=kill_after)
        assert code == -signal.SIGKILL
        found = latest_step(tmp_path)
        reported = max([last, *committed])
        assert found in (reported, reported + 1)  # in place, but killed before the report
        last = found


@pytest.mark.parametrize("layout", ["steps", "bundle_steps"])
def test_a_half_removed_checkpoint_does_not_exist(
    tmp_path: Path, victims: Victims, layout: str
) -> None:
    assert victims.run(tmp_path / "start", layout, [1]) == ([1], 0)
    for die_at in itertools.count(1):
        directory = shutil.copytree(tmp_path / "start", tmp_path / str(die_at))
        _, code = victims.run(directory, "removal", [1], die_at=die_at)
        if checkpoint_exists(directory / "model-1"):
            assert latest_step(directory) == 1
        if code == 0:
            break
    assert not checkpoint_exists(directory / "model-1")


if __name__ == "__main__":
    assert jax.__version__
    serve()
