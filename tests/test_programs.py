"""Each program of `programs` is saved here and trained on in a process without its libraries.

Both processes share a compilation cache of their own. That the other one adds nothing to it shows
that it compiles the very same program; its optimized HLO is compared all the same.
"""

from __future__ import annotations

import os

import hlo
import jax
import programs
import pytest
import resuming
from jax.experimental.compilation_cache import compilation_cache

import jaxmeta as jm
from jaxmeta.meta_graphs.meta_graph import import_graph

STEPS = 10
NAMES = list(programs.all_programs())
# Compiled twice, with no cache between them: one of each library, and all kinds of models.
UNCACHED = [
    "plain_vae_clip_adamw_cosine",
    "linen_cnn_momentum",
    "nnx_mlp_adam",
    "eqx_lstm_adam",
    "linen_mlp_sgd",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A compilation cache that holds everything, for this process and the resuming one."""
    folder = tmp_path_factory.mktemp("compilation_cache")
    options = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_enable_compilation_cache": True,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def resumer(cache):
    process = resuming.Resumer(
        env={
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "JAX_ENABLE_COMPILATION_CACHE": "true",
        }
    )
    yield process
    process.close()


@pytest.fixture(scope="module")
def resumer_without_cache():
    process = resuming.Resumer(env={"JAX_ENABLE_COMPILATION_CACHE": "false"})
    yield process
    process.close()


def entries(cache) -> set[str]:
    """Returns the compiled train steps in a cache."""
    return {name for name in os.listdir(cache) if "step" in name and name.endswith("-cache")}


def save(program, folder):
    """Saves a program's first state; returns the prefix, its step, state and batches."""
    step, state, batches = program.make()
    graph = jm.Graph()
    graph.add_signature("train_step", step, graph.variables(state), batches(0), updates=0)
    with jm.Saver(graph) as saver:
        prefix = saver.save(state, folder / "model", global_step=0)
    for i in range(STEPS):
        resuming.write_leaves(folder / f"batch{i}.npz", jax.tree.leaves(batches(i)))
    if program.jit == "none":
        step = jax.jit(step, donate_argnums=0)
    return prefix, step, state, batches


def train(step, state, batches):
    """Returns the state and all metrics after some steps, and the optimized HLO."""
    compiled = step.lower(state, batches(0)).compile()
    metrics = []
    for i in range(STEPS):
        state, values = compiled(state, batches(i))
        metrics.extend(resuming.plain_leaves(values))
    return resuming.plain_leaves(state) + metrics, hlo.hlo_text(compiled)


def check_same(folder, expected, text):
    found = resuming.read_leaves(folder / "resumed.npz")
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()
    other_text = (folder / "resumed.hlo").read_text()
    difference = hlo.first_difference(hlo.canonical_hlo(text), hlo.canonical_hlo(other_text))
    assert difference is None, difference


@pytest.mark.parametrize("name", NAMES)
def test_program_trains_on_bit_for_bit_without_its_libraries(name, tmp_path, cache, resumer):
    prefix, step, state, batches = save(programs.get(name), tmp_path)
    expected, text = train(step, state, batches)
    compiled_here = entries(cache)

    answer = resumer.resume(prefix, STEPS, tmp_path)

    assert answer["libraries"] == []
    assert compiled_here
    assert entries(cache) == compiled_here
    check_same(tmp_path, expected, text)


@pytest.mark.parametrize("name", UNCACHED)
def test_two_compilations_give_one_program(name, tmp_path, resumer_without_cache):
    prefix, step, state, batches = save(programs.get(name), tmp_path)
    expected, text = train(step, state, batches)

    resumer_without_cache.resume(prefix, STEPS, tmp_path)

    check_same(tmp_path, expected, text)


def test_original_finds_what_the_imported_program_compiled(tmp_path, cache, resumer):
    prefix, step, state, batches = save(programs.get("plain_mlp_nesterov"), tmp_path)
    resumer.resume(prefix, 1, tmp_path)
    compiled_there = entries(cache)

    train(step, state, batches)

    assert entries(cache) == compiled_there


@pytest.mark.needs_tf
@pytest.mark.parametrize("name", NAMES)
def test_file_comes_back_equal_and_tensorflow_takes_it(name, tmp_path, tensorflow):
    step, state, batches = programs.get(name).make()
    graph = jm.Graph()
    graph.add_signature("train_step", step, graph.variables(state), batches(0), updates=0)
    exported = jm.Saver(graph).export_meta_graph(tmp_path / "model.meta")
    again = jm.export_meta_graph(graph=import_graph(exported), saver_def=exported.saver_def)
    assert again == exported
    assert str(again) == str(exported)

    v1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default():
        saver = v1.train.import_meta_graph(str(tmp_path / "model.meta"))
        names = {variable.op.name for variable in v1.global_variables()}
        train_ops = v1.get_collection("train_op")

    assert saver is not None
    assert names == set(graph.variable_names)
    assert [op.name for op in train_ops] == ["train_step/update"]
