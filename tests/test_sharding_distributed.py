"""Two processes save one checkpoint; one process, two and four go on from it."""

from __future__ import annotations

import json
import math
import os
import pathlib
import socket
import subprocess
import sys

import distributed_case
import numpy as np
import orbax.checkpoint as ocp
import pytest

CASE = pathlib.Path(distributed_case.__file__)


def run_processes(mode: str, directory: pathlib.Path, count: int, num_devices: int) -> dict:
    """Returns what the first of some processes prints, each of which has so many devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}",
        "PYTHONPATH": str(CASE.parent.parent),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, CASE, mode, directory, str(index), str(count), str(port)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    results = [process.communicate(timeout=240) for process in processes]
    for process, (_, stderr) in zip(processes, results, strict=True):
        assert process.returncode == 0, stderr[-4000:]
    return json.loads(results[0][0].splitlines()[-1])


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def saved(directory):
    return run_processes("save", directory, count=2, num_devices=4)


def check_close(found: dict, saved: dict) -> None:
    assert found["step"] == saved["step"] == 2 * distributed_case.STEPS
    assert found["key"] == saved["key"]
    np.testing.assert_allclose(found["losses"], saved["losses"], rtol=1e-5)
    for name, value in saved["params"].items():
        np.testing.assert_allclose(found["params"][name], value, rtol=1e-4, atol=1e-5)


def test_two_processes_go_on_with_the_same_bits(directory, saved):
    found = run_processes("load", directory, count=2, num_devices=4)
    assert (found["losses"], found["params"]) == (saved["losses"], saved["params"])
    assert (found["local_parts"], found["parts"]) == (4, 8)


def test_one_process_goes_on(directory, saved):
    found = run_processes("load", directory, count=1, num_devices=1)
    check_close(found, saved)
    assert found["parts"] == 1


def test_four_processes_go_on_and_each_reads_its_own_part_alone(directory, saved):
    found = run_processes("load", directory, count=4, num_devices=2)
    check_close(found, saved)
    assert (found["local_parts"], found["parts"]) == (2, 8)
    assert found["bytes_read"] < 0.4 * 4 * math.prod(distributed_case.TABLE_SHAPE)


def test_plain_orbax_restores_what_several_processes_saved(directory, saved):
    del saved  # which has the files written
    tree = ocp.StandardCheckpointer().restore(directory / f"model-{distributed_case.STEPS}")
    assert tree["table"].shape == distributed_case.TABLE_SHAPE
    assert sorted(tree) == ["key", "params", "step", "table"]
    assert sorted(path.name for path in directory.iterdir()) == [
        "checkpoint",
        f"model-{distributed_case.STEPS}",
        f"model-{distributed_case.STEPS}.meta",
    ]
