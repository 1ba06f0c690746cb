"""Programs with shardings: saved on eight devices, loaded on eight, four and one, and back up."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmeta import errors, shardings

CASES = pathlib.Path(__file__).parent / "sharding_cases.py"


def run_cases(num_devices: int, *arguments: str) -> dict:
    """Returns what `sharding_cases` prints in a process with so many devices."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}",
        "PYTHONPATH": os.pathsep.join([str(CASES.parent.parent), str(CASES.parent)]),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", CASES, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sharding")
    run_cases(8, "save", str(directory))
    return directory


def test_the_same_mesh_gives_the_same_program_and_the_same_bits(saved):
    report = run_cases(8, "load", str(saved))
    for name, found in report.items():
        assert found["same_hlo"], name
        assert found["gap"] == 0, name
        assert set(found["devices"].values()) == {8}, name
    assert report["transformer_block"]["mesh"] == [4, 2]
    assert report["transformer_block"]["specs"]["down"] == "P('model', 'data')"


@pytest.mark.parametrize(("num_devices", "mesh"), [(4, "2x2"), (8, "2x4")])
def test_another_mesh_trains_on_with_the_state_spread_over_it(saved, num_devices, mesh):
    report = run_cases(num_devices, "load", str(saved), mesh)
    for name, found in report.items():
        assert found["gap"] < 1e-5, name
        assert set(found["devices"].values()) == {num_devices}, name
    assert report["explicit"]["specs"] == {"w1": "P(None, 'model')", "w2": "P('model', None)"}


def test_one_device_trains_on_without_shardings(saved):
    for found in run_cases(1, "load", str(saved)).values():
        assert found["mesh"] is None
        assert found["gap"] < 1e-5
        assert set(found["devices"].values()) == {1}


# --- records -----------------------------------------------------------------------------------

SPECS = [
    P(),
    P("data", None, ("data", "model")),
    P(None, P.UNCONSTRAINED),
    P("model", unreduced={"data"}),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_spec_comes_back_from_its_text(spec):
    assert shardings.spec_from_text(shardings.spec_to_text(spec)) == spec


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[["x", 1]]', '[{"what": []}]', "[" * 9999])
def test_a_text_that_is_no_spec_is_refused(text):
    with pytest.raises(errors.FormatError, match="is not a PartitionSpec"):
        shardings.spec_from_text(text)


@pytest.mark.parametrize(
    ("axes", "sizes", "kinds"),
    [
        (("x",), (2, 2), ()),
        (("x", "x"), (2, 2), ()),
        (("x",), (0,), ()),
        (("x",), (1 << 40,), ()),
        (("x",), (2,), ("Odd",)),
    ],
)
def test_what_is_no_mesh_is_refused(axes, sizes, kinds):
    with pytest.raises(errors.FormatError, match="a mesh is recorded with axes"):
        shardings.mesh_from_attrs(axes, sizes, kinds)


def test_a_spec_of_unknown_axes_is_refused():
    mesh = AbstractMesh((2,), ("x",), axis_types=(AxisType.Auto,))
    with pytest.raises(errors.FormatError, match="does not fit its mesh"):
        shardings.make_recorded(mesh, '["y"]')


def test_all_arrays_that_a_mesh_does_not_divide_are_named():
    mesh = AbstractMesh((3, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    lines = shardings.indivisible("w", (6, 8), NamedSharding(mesh, P("y", "x")))
    assert lines == ["w: (6, 8) by P('y', 'x'), 3 parts"]


def test_a_mesh_whose_axes_have_no_names_as_strings_is_refused():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), (0,))
    with pytest.raises(errors.ShardingError, match="these axes of a mesh cannot be recorded"):
        shardings.to_recorded(NamedSharding(mesh, P()))
