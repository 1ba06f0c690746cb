"""The main job on any Python: save, load without the model, go on; a few programs, in seconds."""

from __future__ import annotations

import jax
import numpy as np
import programs
import pytest

import jaxmeta as jm

NAMES = ["plain_mlp_adam", "plain_lstm_sgd", "plain_vae_clip_adamw_cosine", "transforms_remat"]


@pytest.mark.parametrize("name", NAMES)
def test_loaded_train_step_is_the_original_program(name, tmp_path):
    step, state, batches = programs.get(name).make()
    step = step if hasattr(step, "lower") else jax.jit(step, donate_argnums=0)
    graph = jm.Graph()
    graph.add_signature("train_step", step, graph.variables(state), batches(0), updates=0)
    with jm.Saver(graph) as saver:
        saver.save(state, tmp_path / "model", global_step=1)

    run = jm.load(jm.latest_checkpoint(tmp_path))

    imported = run["train_step"]
    expected = step.lower(state, batches(0)).as_text()
    assert imported.lower(run.state, batches(0)).as_text() == expected
    resumed = run.state
    for i in range(3):
        state, metrics = step(state, batches(i))
        resumed, found = imported(resumed, batches(i))
        assert float(found["loss"]) == float(metrics["loss"])
    for one, other in zip(jax.tree.leaves(resumed), jax.tree.leaves(state), strict=True):
        if not jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(one, other)
