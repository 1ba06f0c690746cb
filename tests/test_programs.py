"""Each program of `programs` is saved here and trained on in a process without its libraries."""

from __future__ import annotations

import hlo
import jax
import programs
import pytest
import resuming

import jaxmeta as jm

STEPS = 10
NAMES = list(programs.all_programs())


@pytest.fixture(scope="module")
def resumer():
    process = resuming.Resumer()
    yield process
    process.close()


def _save(program, folder):
    """Saves a program's first state, and returns its results after some steps, and its HLO."""
    step, state, batches = program.make()
    graph = jm.Graph()
    graph.add_signature("train_step", step, graph.variables(state), batches(0), updates=0)
    with jm.Saver(graph) as saver:
        prefix = saver.save(state, folder / "model", global_step=0)
    if program.jit == "none":
        step = jax.jit(step, donate_argnums=0)
    compiled = step.lower(state, batches(0)).compile()
    metrics = []
    for i in range(STEPS):
        resuming.write_leaves(folder / f"batch{i}.npz", jax.tree.leaves(batches(i)))
        state, values = compiled(state, batches(i))
        metrics.extend(resuming.plain_leaves(values))
    return prefix, resuming.plain_leaves(state) + metrics, compiled.as_text()


@pytest.mark.parametrize("name", NAMES)
def test_program_trains_on_bit_for_bit_without_its_libraries(name, tmp_path, resumer):
    prefix, expected, text = _save(programs.get(name), tmp_path)

    answer = resumer.resume(prefix, STEPS, tmp_path)

    assert answer["libraries"] == []
    found = resuming.read_leaves(tmp_path / "resumed.npz")
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()
    difference = hlo.first_difference(
        hlo.canonical_hlo(text), hlo.canonical_hlo((tmp_path / "resumed.hlo").read_text())
    )
    assert difference is None, difference
