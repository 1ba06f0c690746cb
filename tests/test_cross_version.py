"""Files cross between Python and JAX versions: each reads and continues what the other wrote."""

from __future__ import annotations

import os

import jax
import numpy as np
import programs
import pytest
import resuming

import jaxmeta as jm

OTHER = os.environ.get("JAXMETA_OTHER_PYTHON", "")
NAMES = ["plain_mlp_adam", "plain_cnn_momentum", "plain_lstm_sgd", "transforms_line_search"]
STEPS = 3

pytestmark = pytest.mark.skipif(not OTHER, reason="JAXMETA_OTHER_PYTHON names no interpreter")


@pytest.fixture(scope="module")
def other():
    process = resuming.Resumer(OTHER)
    yield process
    process.close()


@pytest.mark.parametrize("name", NAMES)
def test_other_version_continues_and_this_one_takes_it_back(name, tmp_path, other):
    step, state, batches = programs.get(name).make()
    graph = jm.Graph()
    graph.add_signature("train_step", step, graph.variables(state), batches(0), updates=0)
    with jm.Saver(graph) as saver:
        prefix = saver.save(state, tmp_path / "here")
    for i in range(STEPS):
        resuming.write_leaves(tmp_path / f"batch{i}.npz", jax.tree.leaves(batches(i)))
        state, _ = step(state, batches(i))

    answer = other.resume(prefix, STEPS, tmp_path, save=str(tmp_path / "there"))

    assert answer["jax"] != jax.__version__
    run = jm.load(tmp_path / "there")
    # Two versions of XLA do not round alike, so that only the files are compared exactly.
    for one, leaf in zip(jax.tree.leaves(run.state), jax.tree.leaves(state), strict=True):
        assert (one.shape, one.dtype) == (leaf.shape, leaf.dtype)
        if not jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(one, leaf, rtol=1e-3, atol=1e-5)
    _, metrics = run["train_step"](run.state, batches(STEPS))
    assert np.isfinite(float(metrics["loss"]))
