"""Programs of the zoo cross between Python and JAX versions in both directions.

Only some of each kind; `make zoo` crosses with all.
"""

from __future__ import annotations

import os
import pathlib
import subprocess

import jax
import numpy as np
import pytest
import resuming
import saved_functions
import zoo

ROOT = pathlib.Path(__file__).parents[1]
OTHER = os.environ.get("JAXMETA_OTHER_PYTHON", "")
ENTRIES = zoo.entries()
NAMES = [
    "lenet",
    "lora",
    "mixed_precision",
    "graph_attention",
    "dqn",
    "mamba",
    "kalman_filter",
    "neural_ode",
    "gaussian_process",
    "k_means",
    "adafactor",
    "deep_equilibrium",
    "order_statistics",
    "boosted_trees",
]

pytestmark = pytest.mark.skipif(not OTHER, reason="JAXMETA_OTHER_PYTHON names no interpreter")


@pytest.fixture(scope="module")
def there():
    process = resuming.Resumer(OTHER)
    yield process
    process.close()


@pytest.fixture(scope="module")
def here():
    process = resuming.Resumer()
    yield process
    process.close()


@pytest.fixture(scope="module")
def written_there(tmp_path_factory):
    """Folders of the programs that the other version wrote, all by one process."""
    folder = tmp_path_factory.mktemp("written_there")
    subprocess.run(
        [OTHER, ROOT / "docs" / "make_zoo_page.py", "--save", folder, *NAMES],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
    )
    return folder


def results_here(name, folder=None):
    made = ENTRIES[name].make("reduced")
    args = made.init()
    if folder is not None:
        saved_functions.save(folder, made.fn, args, updates=made.updates)
    compiled = made.jitted().lower(*args).compile(resuming.QUICKLY)
    return resuming.plain_leaves(compiled(*args))


def check_close(expected, folder):
    """Two versions of XLA do not round alike, and whole numbers may hang on how one did."""
    found = resuming.read_leaves(folder / "imported.npz")
    for one, other in zip(expected, found, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if jax.dtypes.issubdtype(one.dtype, np.inexact):
            pair = [np.asarray(x, np.complex128) for x in (one, other)]
            np.testing.assert_allclose(*pair, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_other_version_runs_what_this_one_wrote(name, tmp_path, there):
    expected = results_here(name, tmp_path)
    answer = there.run(tmp_path, quickly=True)
    assert answer["jax"] != jax.__version__
    check_close(expected, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_this_version_runs_what_the_other_one_wrote(name, written_there, here):
    here.run(written_there / name, quickly=True)
    check_close(results_here(name), written_there / name)


@pytest.mark.parametrize("name", NAMES)
def test_program_is_the_same_in_a_process_without_its_libraries(name, tmp_path, here):
    expected = results_here(name, tmp_path)
    here.run(tmp_path, quickly=True)
    found = resuming.read_leaves(tmp_path / "imported.npz")
    assert [x.tobytes() for x in found] == [x.tobytes() for x in expected]
