"""Programs: what was saved, as functions and state again, in a process without the model's code."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
import textwrap
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hlo import canonical_hlo, first_difference

import jaxmeta
from jaxmeta import errors

BATCH = {
    "x": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3),
    "y": np.linspace(0, 1, 8, dtype=np.float32).reshape(4, 2),
}


class Momentum(NamedTuple):
    velocity: Any
    count: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    params: Any
    optimizer: Momentum
    key: Any


def make_state() -> TrainState:
    params = {"dense": {"kernel": jnp.full((3, 2), 0.25), "bias": jnp.zeros(2)}}
    return TrainState(params, Momentum(jax.tree.map(jnp.zeros_like, params), 0), jax.random.key(42))


@functools.partial(jax.jit, donate_argnums=0)
def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
    key, noise = jax.random.split(state.key)
    x = batch["x"] + 0.1 * jax.random.normal(noise, batch["x"].shape)

    def loss(params):
        return jnp.mean((x @ params["dense"]["kernel"] + params["dense"]["bias"] - batch["y"]) ** 2)

    value, gradient = jax.value_and_grad(loss)(state.params)
    velocity = jax.tree.map(lambda v, g: 0.9 * v + g, state.optimizer.velocity, gradient)
    params = jax.tree.map(lambda p, v: p - 0.1 * v, state.params, velocity)
    count = state.optimizer.count + 1
    return TrainState(params, Momentum(velocity, count), key), {"loss": value, "count": count}


def make_graph(state: TrainState) -> jaxmeta.Graph:
    graph = jaxmeta.Graph()
    variables = graph.variables(state)
    graph.add_signature("train_step", train_step, variables, BATCH, updates=0)
    graph.add_signature(
        "predict", lambda p, x: x @ p["dense"]["kernel"], variables.params, BATCH["x"]
    )
    return graph


def data(tree: Any) -> list[bytes]:
    return [
        np.asarray(
            jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        ).tobytes()
        for x in map(jnp.asarray, jax.tree.leaves(tree))
    ]


@pytest.fixture
def checkpoint(tmp_path) -> str:
    with jaxmeta.Saver(make_graph(make_state())) as saver:
        return saver.save(make_state(), tmp_path / "model", global_step=0)


# --- state ---------------------------------------------------------------------------------------


def test_state_comes_back_with_its_paths_and_values(checkpoint):
    state = jaxmeta.load(checkpoint).state
    assert data(state) == data(make_state())
    assert type(state).__name__ == "TrainState"
    assert state.optimizer._fields == ("velocity", "count")
    assert state.params["dense"]["kernel"].shape == (3, 2)
    assert state.key.dtype == make_state().key.dtype


def test_state_in_the_classes_of_a_template(checkpoint):
    state = jaxmeta.load(checkpoint).state_like(make_state())
    assert type(state) is TrainState
    assert type(state.optimizer) is Momentum
    assert data(state) == data(make_state())


def test_template_may_hold_shapes_alone(checkpoint):
    template = jax.eval_shape(make_state)
    assert type(jaxmeta.load(checkpoint).state_like(template)) is TrainState


@pytest.mark.parametrize("where", ["prefix", "meta", "directory", "pathlib"])
def test_program_is_loaded_from_prefix_file_or_directory(checkpoint, where, tmp_path):
    path = {
        "prefix": checkpoint,
        "meta": f"{checkpoint}.meta",
        "directory": str(tmp_path),
        "pathlib": tmp_path / "model-0",
    }[where]
    assert data(jaxmeta.load(path).state) == data(make_state())


def test_several_states_are_a_dict_by_name(tmp_path):
    graph = jaxmeta.Graph()
    params = graph.variables({"w": jnp.ones(2)}, name="params")
    extra = graph.variables({"w": jnp.ones(3)}, name="ema")
    graph.add_signature("both", lambda p, e: (p["w"] * 2, e["w"] * 3), params, extra)
    state = {"params": {"w": jnp.full(2, 2.0)}, "ema": {"w": jnp.full(3, 3.0)}}
    with jaxmeta.Saver(graph) as saver:
        prefix = saver.save(state, tmp_path / "model")
    program = jaxmeta.load(prefix)
    assert sorted(program.state) == ["ema", "params"]
    assert data(program.state) == data(state)
    both = program["both"](program.state["params"], program.state["ema"])
    assert data(both) == data((jnp.full(2, 4.0), jnp.full(3, 9.0)))
    assert data(program.state_like({"w": 0}, "ema")) == data(state["ema"])


def test_program_of_variables_alone(tmp_path):
    graph = jaxmeta.Graph()
    graph.variables({"w": jnp.arange(3.0)})
    with jaxmeta.Saver(graph) as saver:
        prefix = saver.save({"w": jnp.arange(3.0)}, tmp_path / "model")
    program = jaxmeta.load(prefix)
    assert program.signatures == ()
    assert data(program.state) == data({"w": jnp.arange(3.0)})


def test_program_without_variables(tmp_path):
    graph = jaxmeta.Graph()
    graph.add_signature("double", lambda x: x * 2, jnp.ones(3))
    with jaxmeta.Saver(graph) as saver:
        prefix = saver.save({}, tmp_path / "model")
    assert data(jaxmeta.load(prefix)["double"](jnp.ones(3))) == data(jnp.full(3, 2.0))


# --- entry points --------------------------------------------------------------------------------


def test_training_goes_on_bit_for_bit(checkpoint):
    program = jaxmeta.load(checkpoint)
    state, expected = program.state, make_state()
    for _ in range(5):
        state, metrics = program["train_step"](state, BATCH)
        expected, wanted = train_step(expected, BATCH)
        assert data(metrics) == data(wanted)
        assert data(state) == data(expected)
    assert type(state) is type(program.state)


def test_training_goes_on_in_the_original_classes(checkpoint):
    program = jaxmeta.load(checkpoint)
    state, _ = program["train_step"](program.state_like(make_state()), BATCH)
    assert type(state) is TrainState
    state, _ = program["train_step"](state, BATCH)
    assert state.optimizer.count == 2


def test_optimized_hlo_is_the_original_s(checkpoint):
    program = jaxmeta.load(checkpoint)
    found = program["train_step"].lower(program.state, BATCH).compile()
    expected = train_step.lower(make_state(), BATCH).compile()
    difference = first_difference(canonical_hlo(expected), canonical_hlo(found))
    assert difference is None, difference


def test_entry_points_are_listed_and_made_once(checkpoint):
    program = jaxmeta.load(checkpoint)
    assert sorted(program.signatures) == ["predict", "train_step"]
    assert program["predict"] is program["predict"]


def test_imported_function_is_extended_by_jax(checkpoint):
    """The gradient of the loss with respect to the input."""
    program = jaxmeta.load(checkpoint)

    def loss(step, x):
        _, metrics = step(make_state(), {"x": x, "y": BATCH["y"]})
        return metrics["loss"]

    # Under one jit, because a step that runs by itself takes its state with it.
    found = jax.jit(jax.grad(functools.partial(loss, program["train_step"])))(BATCH["x"])
    expected = jax.jit(jax.grad(functools.partial(loss, train_step)))(BATCH["x"])
    assert data(found) == data(expected)


def test_program_is_saved_again_from_where_it_was_loaded(checkpoint, tmp_path):
    program = jaxmeta.load(checkpoint)
    state, _ = program["train_step"](program.state, BATCH)
    with jaxmeta.Saver(program.graph) as saver:
        prefix = saver.save(state, tmp_path / "again" / "model", global_step=1)
    again = jaxmeta.load(prefix)
    expected, _ = train_step(make_state(), BATCH)
    assert data(again.state) == data(expected)
    found, _ = again["train_step"](again.state, BATCH)
    expected, _ = train_step(expected, BATCH)
    assert data(found) == data(expected)


def test_loaded_state_is_not_donated_behind_the_program_s_back(checkpoint):
    """`state` gives arrays that a step may take; a second reading must not be deleted ones."""
    program = jaxmeta.load(checkpoint)
    program["train_step"](program.state, BATCH)
    with pytest.raises(RuntimeError, match="deleted"):
        np.asarray(program.state.params["dense"]["bias"])
    fresh = jaxmeta.load(checkpoint)
    assert data(fresh.state) == data(make_state())


def test_unknown_argument_is_refused_before_anything_is_donated(checkpoint):
    program = jaxmeta.load(checkpoint)
    with pytest.raises(errors.FeedError):
        program["train_step"](program.state, {"x": BATCH["x"]})
    assert data(program.state) == data(make_state())


def test_fresh_process_goes_on_without_the_model(checkpoint, tmp_path):
    script = """
        import sys
        import jaxmeta, numpy as np, jax
        program = jaxmeta.load(sys.argv[1])
        batch = dict(np.load(sys.argv[2]))
        state = program.state
        for _ in range(3):
            state, metrics = program["train_step"](state, batch)
        assert not {"flax", "optax", "equinox", "tensorflow"} & set(sys.modules)
        leaves = [x if x.dtype != state.key.dtype else jax.random.key_data(x)
                  for x in jax.tree.leaves((state, metrics))]
        np.savez(sys.argv[3], *leaves)
    """
    np.savez(tmp_path / "batch.npz", **BATCH)
    root = os.path.dirname(os.path.dirname(jaxmeta.__file__))
    paths = [checkpoint, str(tmp_path / "batch.npz"), str(tmp_path / "result.npz")]
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *paths],
        env={**os.environ, "PYTHONPATH": root},
        cwd=tmp_path,
        check=True,
    )
    state = make_state()
    for _ in range(3):
        state, metrics = train_step(state, BATCH)
    with np.load(tmp_path / "result.npz") as found:
        assert [found[name].tobytes() for name in found.files] == data((state, metrics))


def test_original_is_found_in_the_persistent_compilation_cache(tmp_path):
    """0 new entries after a native run, and 0 the other way round."""
    script = """
        import sys
        sys.path[:0] = [sys.argv[1], sys.argv[2]]
        import jax, pathlib
        import jaxmeta, test_program as t
        cache = pathlib.Path(sys.argv[3])
        jax.config.update("jax_enable_compilation_cache", True)
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
        def entries():
            return {p.name for p in cache.glob("*train_step*-cache")}
        if sys.argv[4] == "native":
            t.train_step(t.make_state(), t.BATCH)
        else:
            program = jaxmeta.load(sys.argv[5])
            program["train_step"](program.state, t.BATCH)
        print(sorted(entries()))
    """
    tests = os.path.dirname(__file__)
    root = os.path.dirname(os.path.dirname(jaxmeta.__file__))
    with jaxmeta.Saver(make_graph(make_state())) as saver:
        prefix = saver.save(make_state(), tmp_path / "model")

    def run(which: str, cache: str) -> str:
        arguments = [tests, root, str(tmp_path / cache), which, prefix]
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), *arguments],
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    for order in (("native", "imported"), ("imported", "native")):
        first, second = (run(which, order[0]) for which in order)
        assert first == second
        assert "train_step" in first
