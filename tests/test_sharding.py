"""Programs with shardings: saved on eight devices, loaded on eight, four and one, and back up."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmeta as jm
from jaxmeta import errors, shardings
from jaxmeta._proto import graph_pb2

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


def test_what_went_through_one_device_goes_on_on_eight(saved):
    run_cases(1, "move", str(saved))
    for name, found in run_cases(8, "load", str(saved / "moved")).items():
        assert found["same_hlo"], name
        assert found["gap"] == 0, name
    found = run_cases(8, "spread", str(saved))
    assert found["devices"] == [8, 8, 8]
    assert found["gap"] < 1e-5


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


# --- collectives that no CPU runs --------------------------------------------------------------


def on_one_device(fn, **options):
    """Returns a function under `jax.shard_map` over a mesh of one device."""
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    return jax.shard_map(fn, mesh=mesh, in_specs=P("x"), out_specs=P("x"), **options)


def ragged(x):
    zero, one = jnp.zeros(1, jnp.int32), jnp.ones(1, jnp.int32)
    return lax.ragged_all_to_all(x, x, zero, one, zero, one, axis_name="x")


@pytest.mark.parametrize("fn", [ragged, lambda x: lax.pbroadcast(x, ("x",), 0)])
def test_a_collective_that_no_cpu_runs_traces_to_the_same_jaxpr(fn):
    fn = on_one_device(fn, check_vma=False)
    x = jnp.ones((4, 3))
    graph = jm.Graph()
    graph.add_signature("f", fn, x)
    run = jm.Program(graph, {})["f"]
    found, wanted = (jax.make_jaxpr(f)(x) for f in (run, jax.jit(fn)))
    (found,), (wanted,) = found.eqns, wanted.eqns
    assert str(found.params["jaxpr"].eqns[-1]) == str(wanted.params["jaxpr"].eqns[-1])


def test_a_body_without_a_form_on_one_device_says_which_mesh_it_needs():
    mesh = jax.sharding.AbstractMesh((2,), ("x",), axis_types=(AxisType.Auto,))

    def fn(x):
        return jax.shard_map(ragged, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False)(
            x
        )

    graph = jm.Graph()
    graph.add_signature("f", fn, jax.ShapeDtypeStruct((4, 3), np.float32))
    with pytest.raises(errors.ShardingError, match="traced for a mesh of x=2"):
        jm.Program(graph, {})["f"](jnp.ones((4, 3)))


# --- where the state goes ----------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    state = {"w": jax.device_put(jnp.ones((4, 3)), NamedSharding(mesh, P("x"))), "b": jnp.ones(3)}
    graph = jm.Graph()
    graph.variables(state)
    with jm.Saver(graph) as saver:
        return saver.save(state, tmp_path / "model")


def test_wanted_shardings_take_the_place_of_recorded_ones(checkpoint):
    mesh = jax.make_mesh((1,), ("y",), devices=jax.devices()[:1])
    wanted = NamedSharding(mesh, P(None, "y"))
    for given in (
        {"w": wanted, "b": None},
        lambda name, spec: wanted if name == "w" and spec.shape == (4, 3) else None,
    ):
        state = jm.load(checkpoint, shardings=given).state
        assert state["w"].sharding == wanted
        assert isinstance(state["b"].sharding, jax.sharding.SingleDeviceSharding)
    whole = NamedSharding(mesh, P())
    assert jm.load(checkpoint, shardings=whole).state["b"].sharding == whole


def test_wanted_shardings_of_another_tree_are_refused(checkpoint):
    with pytest.raises(errors.CheckpointError, match=r"missing: \['b'\]"):
        jm.load(checkpoint, shardings={"w": None})


@pytest.mark.needs_tf
def test_tensorflow_runs_what_was_spread_over_a_mesh(tensorflow, tmp_path):
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    state = {"w": jax.device_put(jnp.full((3, 2), 2.0), NamedSharding(mesh, P("x")))}

    @functools.partial(jax.jit, in_shardings=NamedSharding(mesh, P("x")))
    def predict(state, x):
        y = jax.shard_map(
            lambda a, w: a @ lax.all_gather(w, "x", tiled=True),
            mesh=mesh,
            in_specs=P("x"),
            out_specs=P("x"),
        )(x, state["w"])
        return lax.with_sharding_constraint(y, NamedSharding(mesh, P(None, "x")))

    graph = jm.Graph()
    x = jnp.arange(12.0).reshape(4, 3)
    graph.add_signature("predict", predict, graph.variables(state), x)
    with jm.Saver(graph) as saver:
        prefix = saver.save(state, tmp_path / "model")
    v1 = tensorflow.compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        v1.train.import_meta_graph(f"{prefix}.meta")
        session.run(v1.global_variables()[0].assign(np.asarray(state["w"])))
        found = session.run("predict:0", {"x:0": np.asarray(x)})
    np.testing.assert_allclose(found, predict(state, x))


def test_a_sharding_that_tensorflow_wrote_keeps_values():
    graph_def = graph_pb2.GraphDef()
    graph_def.node.add(name="x", op="Placeholder").attr["dtype"].type = 1
    node = graph_def.node.add(name="y", op="XlaSharding", input=["x"])
    node.attr["T"].type = 1
    node.attr["sharding"].s = b"\x08\x02"  # an OpSharding
    with jm.Graph().as_default(), jm.Session() as session:
        jm.import_graph_def(graph_def, name="")
        found = session.run("y:0", {"x:0": np.arange(3.0)})
    np.testing.assert_array_equal(found, np.arange(3, dtype=np.float32))
