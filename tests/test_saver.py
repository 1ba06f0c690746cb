"""Saver: files appear whole, the newest is found, older ones go, what does not fit is refused."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxmeta as jm
from jaxmeta import errors
from jaxmeta.checkpoint import background
from jaxmeta.errors import CheckpointError

ROOT = pathlib.Path(__file__).parents[1]


def step(state, x):
    return {"w": state["w"] * 2 + x, "n": state["n"] + 1}


def first_state():
    return {"w": jnp.arange(6.0).reshape(2, 3), "n": jnp.zeros((), jnp.int32)}


@pytest.fixture
def graph():
    made = jm.Graph()
    made.add_signature("step", step, made.variables(first_state()), 1.0, updates=0)
    return made


def test_save_writes_graph_arrays_and_state_file(graph, tmp_path):
    with jm.Saver(graph) as saver:
        prefix = saver.save(first_state(), tmp_path / "model", global_step=7)
    assert prefix == str(tmp_path / "model-7")
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "model-7", "model-7.meta"]
    assert jm.latest_checkpoint(tmp_path) == prefix


@pytest.fixture
def slow_saves(monkeypatch):
    """Lets each save in the background begin late."""
    run = background.BackgroundWriter._run

    def run_late(self, place, job):
        time.sleep(0.2)
        run(self, place, job)

    monkeypatch.setattr(background.BackgroundWriter, "_run", run_late)


def read_by_session(graph, prefix):
    del graph
    with jm.Graph().as_default(), jm.Session() as session:
        jm.import_meta_graph(f"{prefix}.meta").restore(session, prefix)
        return session.run("w:0")


def restore(graph, prefix):
    return jm.Saver(graph).restore(first_state(), prefix)["w"]


@pytest.mark.parametrize("checkpoint_format", ["orbax", "tensor_bundle"])
@pytest.mark.parametrize(
    "read",
    [
        read_by_session,
        restore,
        lambda graph, prefix: jm.load(prefix).state["w"],
        lambda graph, prefix: jm.load(jm.latest_checkpoint(os.path.dirname(prefix))).state["w"],
        lambda graph, prefix: jm.load_variable(prefix, "w"),
        lambda graph, prefix: jm.load_variable(
            jm.get_checkpoint_state(os.path.dirname(prefix)).model_checkpoint_path, "w"
        ),
    ],
)
def test_what_is_being_saved_can_be_read(graph, tmp_path, slow_saves, read, checkpoint_format):
    saver = jm.Saver(graph, checkpoint_format=checkpoint_format)
    prefix = saver.save(first_state(), tmp_path / "model")
    np.testing.assert_array_equal(read(graph, prefix), first_state()["w"])


def test_error_of_a_save_is_left_to_its_saver(graph, tmp_path, slow_saves):
    saver = jm.Saver(graph)
    prefix = saver.save(first_state(), tmp_path / "model")
    os.makedirs(f"{prefix}.meta")
    with pytest.raises(errors.UnreadableFileError, match="cannot be read"):
        jm.read_meta_graph_file(f"{prefix}.meta")
    with pytest.raises(IsADirectoryError):
        saver.wait_until_finished()


def test_plain_orbax_restores_a_nested_dict(tmp_path):
    state = {"params": {"Dense_0": {"kernel": jnp.ones((2, 3))}}, "opt": (jnp.zeros(2), None)}
    graph = jm.Graph()
    graph.variables(state)
    with jm.Saver(graph) as saver:
        prefix = saver.save(state, tmp_path / "model")
    target = {
        "params": {"Dense_0": {"kernel": np.zeros((2, 3), np.float32)}},
        "opt": {"0": np.zeros(2, np.float32)},
    }
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(prefix, target)
    np.testing.assert_array_equal(restored["params"]["Dense_0"]["kernel"], np.ones((2, 3)))


def test_older_checkpoints_go_and_the_state_file_lists_the_rest(graph, tmp_path):
    with jm.Saver(graph, max_to_keep=2) as saver:
        for number in (1, 2, 3):
            saver.save(first_state(), tmp_path / "model", global_step=number)
    left = sorted(name for name in os.listdir(tmp_path) if name.endswith(".meta"))
    assert left == ["model-2.meta", "model-3.meta"]
    state = jm.get_checkpoint_state(tmp_path)
    listed = [os.path.basename(path) for path in state.all_model_checkpoint_paths]
    assert listed == ["model-2", "model-3"]


def test_arrays_may_be_donated_as_soon_as_save_returns(graph, tmp_path):
    run = jax.jit(step, donate_argnums=0)
    state = first_state()
    with jm.Saver(graph) as saver:
        saver.save(state, tmp_path / "model")
        for _ in range(5):
            state = run(state, 1.0)
    restored = jm.load(tmp_path / "model").state
    np.testing.assert_array_equal(restored["w"], first_state()["w"])


def test_session_saves_and_restores_what_it_holds(graph, tmp_path):
    with jm.Session(graph) as sess:
        sess.set_state(first_state())
        sess.run("step/update", feed_dict={"x:0": 1.0})
        with jm.Saver(graph) as saver:
            prefix = saver.save(sess, tmp_path / "model")
        expected = sess.state
    with jm.Graph().as_default(), jm.Session() as sess:
        saver = jm.import_meta_graph(f"{prefix}.meta")
        saver.restore(sess, prefix)
        np.testing.assert_array_equal(sess.state["w"], expected["w"])
        assert sess.state["n"] == 1


def test_state_of_another_form_is_refused_with_all_differences(graph, tmp_path):
    with jm.Saver(graph) as saver, pytest.raises(CheckpointError) as caught:
        saver.save({"w": jnp.ones((2, 2)), "n": jnp.zeros(())}, tmp_path / "model")
    assert "w: expected float32[2, 3], got float32[2, 2]" in str(caught.value)
    assert "n: expected int32[], got float32[]" in str(caught.value)
    assert not os.listdir(tmp_path)


def test_state_file_name_must_not_be_a_path(graph, tmp_path):
    with jm.Saver(graph) as saver, pytest.raises(CheckpointError, match="path components"):
        saver.save(first_state(), tmp_path / "model", latest_filename="a/b")


_LOOP = """
import sys
import jax.numpy as jnp
import jaxmeta as jm
graph = jm.Graph()
state = {"w": jnp.zeros((64, 64)), "n": jnp.zeros((), jnp.int32)}
graph.variables(state)
saver = jm.Saver(graph, max_to_keep=2)
for number in range(1, 100000):
    state = {"w": state["w"] + 1, "n": state["n"] + 1}
    saver.save(state, sys.argv[1] + "/model", global_step=number % 7)
    print(number, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    rng = random.Random(5)
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", _LOOP, str(tmp_path)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        saves = rng.randrange(2, 12)
        for _ in range(saves):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()

        run = jm.load(jm.latest_checkpoint(tmp_path))

        assert float(run.state["w"].min()) == float(run.state["w"].max()) == int(run.state["n"])
        assert int(run.state["n"]) >= saves - 2


_WIDE = """
import sys
import jax
import jax.numpy as jnp
import jaxmeta as jm
jax.config.update("jax_enable_x64", True)
state = {"w": jnp.ones(3, jnp.float64)}
graph = jm.Graph()
graph.add_signature("step", lambda s: {"w": s["w"] + 1e-12}, graph.variables(state), updates=0)
with jm.Saver(graph) as saver:
    saver.save(state, sys.argv[1])
"""


def test_program_of_64_bit_types_says_what_to_switch_on(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    prefix = str(tmp_path / "model")
    subprocess.run([sys.executable, "-c", _WIDE, prefix], check=True, cwd=ROOT, env=env)
    run = jm.load(prefix)
    with pytest.raises(jm.FeedError, match="jax_enable_x64"):
        run["step"](run.state)
