"""What TensorFlow's own tests of its Saver ask for, asked of ours: names, errors, files."""

from __future__ import annotations

import copy
import logging
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta as jm
from jaxmeta import values
from jaxmeta.errors import CheckpointError, CheckpointTypeError, NotBuiltError
from jaxmeta.graphs.variable_handles import SaveSliceInfo

FORMATS = ["orbax", "tensor_bundle"]


@pytest.fixture(params=FORMATS)
def checkpoint_format(request):
    return request.param


def make_graph(**arrays):
    """Returns a graph with a variable for each array, and a session that holds them."""
    arrays = {name: jnp.asarray(array) for name, array in arrays.items()}
    graph = jm.Graph()
    variables = graph.variables(arrays)
    session = jm.Session(graph)
    session.values.update(arrays)
    return graph, variables, session


def empty_session(graph):
    return jm.Session(graph)


def held(session):
    return {name: np.asarray(value).tolist() for name, value in session.values.items()}


# --- SaverTest ---------------------------------------------------------------------------------


def test_basics(tmp_path, checkpoint_format):
    graph, _, session = make_graph(v0=10.0, v1=20.0)
    saver = jm.Saver(graph=graph, checkpoint_format=checkpoint_format)
    prefix = saver.save(session, tmp_path / "basics")
    assert prefix == str(tmp_path / "basics")
    session.values.update(v0=jnp.float32(1000.0), v1=jnp.float32(2000.0))
    saver.restore(session, prefix)
    assert held(session) == {"v0": 10.0, "v1": 20.0}
    other = empty_session(graph)
    saver.restore(other, prefix)
    assert held(other) == {"v0": 10.0, "v1": 20.0}


def test_list_set_tuple_and_tree_of_variables(tmp_path):
    graph, variables, _ = make_graph(v0=10.0, v1=20.0)
    handles = [graph.variable("v0"), graph.variable("v1")]
    expected = str(jm.Saver(handles).as_saver_def()).replace("save/", "")
    forms = [tuple(handles), set(handles), {"tree": variables, "more": ()}]
    for number, var_list in enumerate(forms, 1):
        saver_def = jm.Saver(var_list).as_saver_def()
        assert str(saver_def).replace(f"save_{number}/", "") == expected


def test_state_tree_is_saved_and_restored(tmp_path, checkpoint_format):
    state = {"params": {"w": jnp.arange(6.0).reshape(2, 3)}, "n": jnp.int32(3)}
    graph = jm.Graph()
    graph.variables(state)
    saver = jm.Saver(graph, checkpoint_format=checkpoint_format)
    prefix = saver.save(state, tmp_path / "m", global_step=np.int64(3))
    restored = saver.restore({**state, "n": jnp.int32(0)}, prefix)
    np.testing.assert_array_equal(restored["params"]["w"], state["params"]["w"])
    assert restored["n"] == 3


def test_paths_that_are_no_checkpoint_are_refused(tmp_path):
    graph, _, session = make_graph(v0=0.0)
    saver = jm.Saver(graph=graph)
    for name in ("invalid", str(tmp_path / "missing" / "path")):
        with pytest.raises(
            ValueError, match="The passed save_path is not a valid checkpoint: .*" + name
        ):
            saver.restore(session, name)
    with pytest.raises(ValueError, match="Can't load save_path when it is None"):
        saver.restore(session, None)


def test_64_bit_integers_survive(tmp_path, checkpoint_format):
    graph = jm.Graph()
    with jax.enable_x64(True):
        variables = graph.variables({"v": np.zeros(2, np.int64)})
    session = jm.Session(graph)
    value = np.array([15, -(1 << 40)])
    session.values["v"] = value
    saver = jm.Saver(variables, checkpoint_format=checkpoint_format)
    prefix = saver.save(session, tmp_path / "int64")
    other = empty_session(graph)
    saver.restore(other, prefix)
    assert other.values["v"].dtype == np.int64
    np.testing.assert_array_equal(other.values["v"], value)


def test_errors_are_tensorflows(tmp_path):
    graph, _, _ = make_graph(v0=10.0, v1=20.0)
    v0, v1 = graph.variable("v0"), graph.variable("v1")
    with pytest.raises(TypeError, match=r"should be passed in a dict or a list\. Got 3"):
        jm.Saver(3)
    with pytest.raises(TypeError, match="Variables to save should be passed in a dict or a list"):
        jm.Saver(v0)
    with pytest.raises(TypeError, match="Variable to save is not a Variable") as caught:
        jm.Saver([v0, "v1", 7])
    assert "'v1'" in str(caught.value)
    assert "7" in str(caught.value)
    with pytest.raises(TypeError, match="must be a dict mapping string names"):
        jm.Saver({0: v0})
    with pytest.raises(ValueError, match="At least two variables have the same name: v0"):
        jm.Saver([v0, v1, v0])
    with pytest.raises(ValueError, match="The same saveable will be restored with two names: v1"):
        jm.Saver({"v0": v0, "v1": v0})
    with pytest.raises(ValueError, match="No variables to save"):
        jm.Saver([])
    with pytest.raises(ValueError, match="No variables to save"), jm.Graph().as_default():
        jm.Saver()
    with pytest.raises(CheckpointError, match="2 graphs"):
        jm.Saver([v0, make_graph(w=1.0)[0].variable("w")])


@pytest.mark.needs_tf
def test_errors_of_var_list_are_worded_as_tensorflow_does(tensorflow):
    tf = tensorflow.compat.v1
    graph, _, _ = make_graph(v0=10.0, v1=20.0)
    ours = [graph.variable("v0"), graph.variable("v1")]
    with tensorflow.Graph().as_default():
        theirs = [tf.Variable(10.0, name=f"v{number}") for number in (0, 1)]
        for make in (
            lambda variables: [*variables, variables[0]],
            lambda variables: {"a": variables[0], "b": variables[0]},
            lambda variables: [],
            lambda variables: 5,
        ):
            raised = []
            for saver, variables in ((jm.Saver, ours), (tf.train.Saver, theirs)):
                with pytest.raises((ValueError, TypeError)) as caught:
                    saver(make(variables))
                raised.append(caught.value)
            assert str(raised[0]).startswith(str(raised[1]))
            assert isinstance(raised[0], type(raised[1]))


def test_empty_saver_writes_only_the_graph(tmp_path):
    graph = jm.Graph()
    saver = jm.Saver(allow_empty=True, graph=graph)
    assert saver.save(jm.Session(graph), tmp_path / "model") is None
    assert os.listdir(tmp_path) == ["model.meta"]
    assert saver.as_saver_def() is None
    assert saver.last_checkpoints == []
    saver.restore(jm.Session(graph), tmp_path / "nothing")


def test_import_of_a_graph_without_variables_gives_no_saver(tmp_path):
    jm.export_meta_graph(tmp_path / "none.meta", graph=jm.Graph())
    with jm.Graph().as_default():
        assert jm.import_meta_graph(tmp_path / "none.meta") is None


def test_deferred_build(tmp_path):
    graph, _, session = make_graph(v=42.0)
    saver = jm.Saver(defer_build=True, graph=graph)
    with pytest.raises(RuntimeError, match=r"`build\(\)` should be called before save"):
        saver.save(session, tmp_path / "model")
    with pytest.raises(NotBuiltError):
        saver.restore(session, tmp_path / "model")
    saver.build()
    count = len(graph.nodes)
    saver.build()
    assert len(graph.nodes) == count
    prefix = saver.save(session, tmp_path / "model")
    other = empty_session(graph)
    saver.restore(other, prefix)
    assert held(other) == {"v": 42.0}
    with pytest.raises(ValueError, match="If `var_list` is provided then build cannot be deferred"):
        jm.Saver([graph.variable("v")], defer_build=True)


def test_reshape(tmp_path, checkpoint_format):
    graph, _, session = make_graph(v0=[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    with jm.Saver(graph=graph, checkpoint_format=checkpoint_format) as saver:
        prefix = saver.save(session, tmp_path / "reshape")
    _, variables, second = make_graph(v0=[[0.0, 0.0]] * 3)
    with pytest.raises(CheckpointError, match="1 shapes"):
        jm.Saver(variables).restore(second, prefix)
    jm.Saver(variables, reshape=True).restore(second, prefix)
    assert held(second) == {"v0": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]}
    _, wrong, session = make_graph(v0=[0.0, 0.0])
    with pytest.raises(CheckpointError, match="1 shapes"):
        jm.Saver(wrong, reshape=True).restore(session, prefix)


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("kind", [int, np.int32, jnp.int32, "variable", "name", "tensor name"])
def test_step_is_a_number_an_array_a_variable_or_a_name(tmp_path, kind, pad):
    graph, variables, session = make_graph(global_step=np.int32(5), v=1.0)
    saver = jm.Saver(graph=graph, pad_step_number=pad, checkpoint_format="tensor_bundle")
    names = {
        "variable": graph.variable("global_step"),
        "name": "global_step",
        "tensor name": "global_step:0",
    }
    step = names[kind] if isinstance(kind, str) else kind(5)
    prefix = saver.save(session, tmp_path / "model", global_step=step)
    assert os.path.basename(prefix) == ("model-00000005" if pad else "model-5")
    saver.wait_until_finished()
    assert os.path.exists(prefix + ".index")
    state = {name: session.values[name] for name in variables}
    assert saver.save(state, tmp_path / "model", global_step=step) == prefix
    with pytest.raises(CheckpointTypeError, match="global_step"):
        saver.save(state, tmp_path / "model", global_step="nothing")
    with pytest.raises(CheckpointTypeError, match="global_step"):
        saver.save(state, tmp_path / "model", global_step=[1, 2])


def test_parents_of_a_checkpoint_are_made(tmp_path, checkpoint_format):
    graph, _, session = make_graph(v=1.0)
    saver = jm.Saver(graph=graph, checkpoint_format=checkpoint_format)
    prefix = saver.save(session, tmp_path / "a" / "b" / "model")
    saver.wait_until_finished()
    assert jm.latest_checkpoint(tmp_path / "a" / "b") == prefix


def test_neither_a_session_nor_a_state_is_refused(tmp_path):
    graph, variables, _ = make_graph(v=1.0)
    del graph.state_trees[""]
    saver = jm.Saver(variables)
    for sess in (None, "session"):
        with pytest.raises(TypeError, match="'sess' must be a Session"):
            saver.save(sess, tmp_path / "model")
        with pytest.raises(TypeError, match="'sess' must be a Session"):
            saver.restore(sess, tmp_path / "model")


def test_variables_without_a_value_are_all_named(tmp_path, checkpoint_format):
    graph, _, _ = make_graph(a=1.0, b=2.0)
    saver = jm.Saver(graph=graph, checkpoint_format=checkpoint_format)
    with pytest.raises(CheckpointError) as caught:
        saver.save(empty_session(graph), tmp_path / "model")
    assert str(caught.value).endswith("  a\n  b")
    assert not os.listdir(tmp_path)


def test_collision_of_the_state_file_with_the_checkpoint_is_refused(tmp_path):
    graph, _, session = make_graph(v=1.0)
    saver = jm.Saver(graph=graph, checkpoint_format="tensor_bundle")
    with pytest.raises(ValueError, match="'latest_filename' collides with 'save_path'"):
        saver.save(session, tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="collides"):
        saver.save(session, tmp_path / "state", latest_filename="state")
    with pytest.raises(ValueError, match="must not contain path components"):
        saver.save(session, tmp_path / "model", latest_filename="a/state")
    prefix = saver.save(session, tmp_path / "checkpoint", global_step=1)
    saver.wait_until_finished()
    assert jm.latest_checkpoint(tmp_path) == prefix


def test_arguments_that_contradict_are_refused():
    graph, variables, _ = make_graph(v=1.0)
    with pytest.raises(CheckpointError, match="V1 is read"):
        jm.Saver(variables, write_version=jm.SaverDef.V1)
    with pytest.raises(CheckpointError, match="expected 'orbax' or 'tensor_bundle'"):
        jm.Saver(variables, checkpoint_format="hdf5")
    with pytest.raises(CheckpointError, match="give one of them"):
        jm.Saver(variables, write_version=jm.SaverDef.V2, checkpoint_format="orbax")
    with pytest.raises(TypeError, match="saver_def"):
        jm.Saver(saver_def="save")
    with pytest.raises(CheckpointError, match="another one"):
        jm.Saver(graph, graph=jm.Graph())


def test_variables_that_come_after_the_first_save_are_not_left_out_silently(tmp_path):
    graph, _, session = make_graph(v=1.0)
    saver = jm.Saver(graph)
    saver.save(session, tmp_path / "model")
    graph.add_variable("late", np.float32(1), is_trainable=False)
    with pytest.raises(CheckpointError, match="late"):
        saver.save(session, tmp_path / "model")


# --- SaveRestoreWithVariableNameMap ------------------------------------------------------------


def test_variables_are_saved_and_restored_under_other_names(tmp_path, checkpoint_format):
    graph, _, session = make_graph(v0=10.0, v1=20.0)
    v0, v1 = graph.variable("v0"), graph.variable("v1")
    saver = jm.Saver(
        {"save_prefix/v0": v0, "save_prefix/v1": v1}, checkpoint_format=checkpoint_format
    )
    prefix = saver.save(session, tmp_path / "map")
    saver.wait_until_finished()
    assert jm.list_variables(prefix) == [("save_prefix/v0", []), ("save_prefix/v1", [])]
    # Under their own names they are not there.
    with pytest.raises(CheckpointError) as caught:
        jm.Saver([v0, v1]).restore(session, prefix)
    assert "'v0' is missing" in str(caught.value)
    assert "'v1' is missing" in str(caught.value)
    renamed, _, second = make_graph(restored_0=0.0, restored_1=0.0)
    mapping = {
        "save_prefix/v0": renamed.variable("restored_0"),
        "save_prefix/v1": renamed.variable("restored_1"),
    }
    jm.Saver(mapping).restore(second, prefix)
    assert held(second) == {"restored_0": 10.0, "restored_1": 20.0}
    # The graph that was saved knows them by these names.
    with jm.Graph().as_default(), jm.Session() as third:
        jm.import_meta_graph(prefix + ".meta").restore(third, prefix)
        assert held(third) == {"v0": 10.0, "v1": 20.0}
    assert jm.load(prefix).state == {"v0": 10.0, "v1": 20.0}


def test_part_of_the_variables_is_restored(tmp_path, checkpoint_format):
    graph, _, session = make_graph(a=1.0, b=2.0, c=3.0)
    prefix = jm.Saver(graph, checkpoint_format=checkpoint_format, asynchronous=False).save(
        session, tmp_path / "all"
    )
    session.values.update(a=jnp.float32(-1.0), b=jnp.float32(-2.0), c=jnp.float32(-3.0))
    jm.Saver([graph.variable("b")]).restore(session, prefix)
    assert held(session) == {"a": -1.0, "b": 2.0, "c": -3.0}


# --- SaveRestoreShardedTest --------------------------------------------------------------------


def on_devices(graph, **devices):
    for name, device in devices.items():
        graph.nodes[name].device = device


def test_sharded_bundle_has_a_file_for_each_device(tmp_path):
    graph, _, session = make_graph(v0=[10.0], v1=[20.0], v2=[30.0])
    on_devices(graph, v0="/cpu:0", v1="/device:CPU:1", v2="/cpu:0")
    saver = jm.Saver(graph=graph, sharded=True, write_version=jm.SaverDef.V2)
    prefix = saver.save(session, tmp_path / "sharded")
    saver.wait_until_finished()
    assert saver.as_saver_def().sharded
    files = sorted(os.listdir(tmp_path))
    assert files == [
        "checkpoint",
        *(
            f"sharded.{end}"
            for end in ("data-00000-of-00002", "data-00001-of-00002", "index", "meta")
        ),
    ]
    assert os.path.getsize(f"{prefix}.data-00000-of-00002") == 8
    other = empty_session(graph)
    saver.restore(other, prefix)
    assert held(other) == {"v0": [10.0], "v1": [20.0], "v2": [30.0]}
    # One of the shards is enough for what lies in it.
    os.unlink(f"{prefix}.data-00000-of-00002")
    only = empty_session(graph)
    jm.Saver([graph.variable("v1")]).restore(only, prefix)
    assert held(only) == {"v1": [20.0]}


def partitioned_graph(name, shape, splits):
    """Returns a graph with one variable cut along its axes, and a session without values."""
    graph = jm.Graph()
    bounds = [
        np.linspace(0, size, count + 1).astype(int)
        for size, count in zip(shape, splits, strict=True)
    ]
    for number, index in enumerate(np.ndindex(*splits)):
        offset = tuple(int(bounds[axis][i]) for axis, i in enumerate(index))
        extent = tuple(int(bounds[axis][i + 1] - bounds[axis][i]) for axis, i in enumerate(index))
        part = graph.add_variable(f"{name}/part_{number}", jnp.zeros(extent), is_trainable=True)
        info = SaveSliceInfo(name, tuple(shape), offset, extent)
        part.save_slice_info = info
    return graph, jm.Session(graph)


def fill_parts(graph, session, whole):
    for name in graph.variable_names:
        info = graph.variable(name).save_slice_info
        index = tuple(slice(o, o + n) for o, n in zip(info.var_offset, info.var_shape, strict=True))
        session.values[name] = jnp.asarray(whole[index])


def whole_of(graph, session, shape):
    whole = np.full(shape, np.nan, np.float32)
    for name in graph.variable_names:
        info = graph.variable(name).save_slice_info
        index = tuple(slice(o, o + n) for o, n in zip(info.var_offset, info.var_shape, strict=True))
        whole[index] = session.values[name]
    return whole


SHAPE = (10, 3)


def test_partitioned_variable_is_restored_in_any_partition(rng, tmp_path, checkpoint_format):
    whole = rng.normal(size=SHAPE).astype(np.float32)
    graph, session = partitioned_graph("my_var", SHAPE, (10, 1))
    fill_parts(graph, session, whole)
    saver = jm.Saver(graph=graph, checkpoint_format=checkpoint_format)
    prefix = saver.save(session, tmp_path / "cut")
    saver.wait_until_finished()
    assert jm.list_variables(prefix) == [("my_var", [10, 3])]
    np.testing.assert_array_equal(jm.load_variable(prefix, "my_var"), whole)
    for splits in ((2, 1), (1, 3), (3, 2), (10, 1), (1, 1)):
        other, second = partitioned_graph("my_var", SHAPE, splits)
        jm.Saver(graph=other).restore(second, prefix)
        np.testing.assert_array_equal(whole_of(other, second, SHAPE), whole)
    plain, variables, third = make_graph(my_var=np.zeros(SHAPE, np.float32))
    jm.Saver(variables).restore(third, prefix)
    np.testing.assert_array_equal(third.values["my_var"], whole)
    # And the other way about: saved as a whole, restored in parts.
    other, second = partitioned_graph("my_var", SHAPE, (3, 2))
    with jm.Saver(graph=plain, checkpoint_format=checkpoint_format) as again:
        prefix = again.save(third, tmp_path / "whole")
    jm.Saver(graph=other).restore(second, prefix)
    np.testing.assert_array_equal(whole_of(other, second, SHAPE), whole)


@pytest.mark.needs_tf
@pytest.mark.parametrize("sharded", [False, True])
def test_partitioned_variable_goes_to_tensorflow_and_comes_from_it(
    tensorflow, rng, tmp_path, sharded
):
    tf = tensorflow.compat.v1
    whole = rng.normal(size=SHAPE).astype(np.float32)
    graph, session = partitioned_graph("my_var", SHAPE, (5, 2))
    fill_parts(graph, session, whole)
    with jm.Saver(graph=graph, sharded=sharded, checkpoint_format="tensor_bundle") as saver:
        prefix = saver.save(session, tmp_path / "ours")
    for splits in (1, 2, 3):
        with tensorflow.Graph().as_default(), tf.Session() as theirs:
            cut = tf.fixed_size_partitioner(splits)
            variable = tf.get_variable("my_var", SHAPE, partitioner=cut if splits > 1 else None)
            saver = tf.train.Saver(sharded=sharded)
            saver.restore(theirs, prefix)
            np.testing.assert_array_equal(theirs.run(tf.convert_to_tensor(variable)), whole)
            back = saver.save(theirs, str(tmp_path / f"theirs_{splits}"))
        other, second = partitioned_graph("my_var", SHAPE, (4, 3))
        jm.Saver(graph=other).restore(second, back)
        np.testing.assert_array_equal(whole_of(other, second, SHAPE), whole)


def test_slices_that_do_not_belong_together_are_refused(tmp_path):
    graph, session = partitioned_graph("w", SHAPE, (2, 1))
    parts = [graph.variable(name) for name in graph.variable_names]
    other = copy.copy(parts[1])
    other.save_slice_info = SaveSliceInfo("u", SHAPE, (5, 0), (5, 3))
    with pytest.raises(ValueError, match="Slices must all be from the same tensor: u != w"):
        jm.Saver({"w": [parts[0], other]})
    whole = graph.add_variable("w", jnp.zeros(SHAPE), is_trainable=True)
    with pytest.raises(ValueError, match="At least two variables have the same name: w"):
        jm.Saver([*parts, whole])
    session.values["w/part_0"] = jnp.zeros((5, 3))
    with pytest.raises(CheckpointError, match="leave out 15 of 30 elements"):
        jm.Saver([parts[0]]).save(session, tmp_path / "m")


# --- MaxToKeepTest -----------------------------------------------------------------------------


def kept(directory):
    return sorted(name[:-5] for name in os.listdir(directory) if name.endswith(".meta"))


def test_only_the_newest_stay(tmp_path, checkpoint_format):
    graph, _, session = make_graph(v=10.0)
    saver = jm.Saver(graph=graph, max_to_keep=2, checkpoint_format=checkpoint_format)
    assert saver.last_checkpoints == []
    saved = {}
    for name, expected in (
        ("s1", ["s1"]),
        ("s2", ["s1", "s2"]),
        ("s3", ["s2", "s3"]),
        ("s2", ["s3", "s2"]),  # saved again, it is the newest
        ("s1", ["s2", "s1"]),
    ):
        saved[name] = saver.save(session, tmp_path / name)
        assert saver.last_checkpoints == [saved[e] for e in expected]
        state = jm.get_checkpoint_state(tmp_path)
        assert state.model_checkpoint_path == saved[name]
        assert list(state.all_model_checkpoint_paths) == [saved[e] for e in expected]
        for other, prefix in saved.items():
            assert jm.checkpoint_exists(prefix) == (other in expected)
        assert kept(tmp_path) == sorted(expected)


def test_second_saver_goes_on_where_the_first_was(tmp_path, checkpoint_format):
    graph, _, session = make_graph(v=10.0)
    options = {"max_to_keep": 2, "checkpoint_format": checkpoint_format}
    first = jm.Saver(graph=graph, **options)
    s1, s2 = (first.save(session, tmp_path / name) for name in ("s1", "s2"))
    first.wait_until_finished()
    second = jm.Saver(graph=graph, **options)
    second.set_last_checkpoints(first.last_checkpoints)
    s3 = second.save(session, tmp_path / "s3")
    assert second.last_checkpoints == [s2, s3]
    # Of unknown age counts as newest, so it stays, as in TensorFlow.
    assert jm.checkpoint_exists(s1)
    third = jm.Saver(graph=graph, **options)
    third.recover_last_checkpoints([s1, str(tmp_path / "gone"), s2, s3])
    assert third.last_checkpoints == [s1, s2, s3]
    fourth = jm.Saver(graph=graph, **options)
    fourth.set_last_checkpoints_with_time([(s1, 1.0), (s2, 2.0)])
    assert fourth.last_checkpoints == [s1, s2]
    fourth.save(session, tmp_path / "s4")
    fourth.wait_until_finished()
    assert not jm.checkpoint_exists(s1)


@pytest.mark.parametrize("max_to_keep", [None, 0])
def test_without_a_limit_all_stay_and_the_state_names_the_newest(tmp_path, max_to_keep):
    graph, _, session = make_graph(v=10.0)
    saver = jm.Saver(graph=graph, max_to_keep=max_to_keep)
    prefixes = [saver.save(session, tmp_path / "m", global_step=step) for step in range(3)]
    assert saver.last_checkpoints == []
    assert all(map(jm.checkpoint_exists, prefixes))
    assert list(jm.get_checkpoint_state(tmp_path).all_model_checkpoint_paths) == prefixes[-1:]


def test_no_meta_graph_and_no_state_where_they_are_not_wanted(tmp_path, checkpoint_format):
    graph, _, session = make_graph(v=10.0)
    with jm.Saver(graph=graph, checkpoint_format=checkpoint_format) as saver:
        prefix = saver.save(session, tmp_path / "s1", write_meta_graph=False, write_state=False)
    assert jm.checkpoint_exists(prefix)
    assert not os.path.exists(prefix + ".meta")
    assert not os.path.exists(tmp_path / "checkpoint")
    with saver:
        saver.save(session, tmp_path / "s2", latest_filename="ck_state", meta_graph_suffix="mg")
    assert (tmp_path / "s2.mg").exists()
    assert jm.latest_checkpoint(tmp_path, "ck_state") == str(tmp_path / "s2")


def test_one_in_so_many_hours_stays(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    graph, _, session = make_graph(v=10.0)
    saver = jm.Saver(
        graph=graph, max_to_keep=2, keep_checkpoint_every_n_hours=1.0, asynchronous=False
    )
    prefixes = []
    for _ in range(8):
        now[0] += 1500.0
        prefixes.append(saver.save(session, tmp_path / "m", global_step=len(prefixes)))
    stays = [number for number, prefix in enumerate(prefixes) if jm.checkpoint_exists(prefix)]
    # Made at 2500, 4000, 5500, ...; the first one after 4600 stays, and that after 8200.
    assert stays == [2, 4, 6, 7]


# --- LatestCheckpointWithRelativePaths, CheckpointStateTest -------------------------------------


def test_directory_with_relative_paths_can_be_moved(tmp_path, monkeypatch, checkpoint_format):
    graph, _, session = make_graph(v=10.0)
    with jm.Saver(
        graph=graph, save_relative_paths=True, checkpoint_format=checkpoint_format
    ) as saver:
        saver.save(session, tmp_path / "old" / "model", global_step=1)
    os.rename(tmp_path / "old", tmp_path / "new")
    assert jm.latest_checkpoint(tmp_path / "new") == str(tmp_path / "new" / "model-1")
    monkeypatch.chdir(tmp_path / "new")
    assert jm.latest_checkpoint(".") == "./model-1"
    with jm.Saver(graph=graph, checkpoint_format=checkpoint_format) as saver:
        assert saver.save(session, "model", global_step=2) == "model-2"
    assert jm.latest_checkpoint(".") == "./model-2"
    saver.restore(session, jm.latest_checkpoint("."))


@pytest.mark.needs_tf
def test_state_file_names_the_paths_that_tensorflow_writes(tensorflow, tmp_path, monkeypatch):
    tf = tensorflow.compat.v1
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    graph, _, session = make_graph(v=10.0)
    with tensorflow.Graph().as_default(), tf.Session() as theirs:
        tf.get_variable("v", initializer=10.0)
        theirs.run(tf.global_variables_initializer())
        for relative in (False, True):
            for directory in ("runs", str(tmp_path / "runs")):
                expected = tf.train.Saver(save_relative_paths=relative)
                saver = jm.Saver(
                    graph=graph, save_relative_paths=relative, checkpoint_format="tensor_bundle"
                )
                states = []
                for step in (1, 2):
                    for one, sess in ((expected, theirs), (saver, session)):
                        prefix = one.save(sess, f"{directory}/m", step)
                        assert prefix == f"{directory}/m-{step}"
                        getattr(one, "wait_until_finished", lambda: None)()
                        text = (tmp_path / "runs" / "checkpoint").read_text()
                        states.append(
                            [line for line in text.splitlines() if "timestamp" not in line]
                        )
                assert states[::2] == states[1::2]


# --- CheckpointReaderTest ----------------------------------------------------------------------


def test_reader_tells_names_shapes_and_dtypes(tmp_path, checkpoint_format):
    graph, _, session = make_graph(
        v0=[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], v1=[[[1]], [[2]]], v2=True
    )
    with jm.Saver(graph=graph, checkpoint_format=checkpoint_format) as saver:
        prefix = saver.save(session, tmp_path / "reader")
    reader = jm.NewCheckpointReader(prefix)
    assert reader.has_tensor("v0")
    assert not reader.has_tensor("v3")
    assert reader.debug_string() == b"v0 (DT_FLOAT) [2,3]\nv1 (DT_INT32) [2,1,1]\nv2 (DT_BOOL) []\n"
    assert reader.get_variable_to_shape_map() == {"v0": [2, 3], "v1": [2, 1, 1], "v2": []}
    assert reader.get_variable_to_dtype_map()["v1"] == np.int32
    np.testing.assert_array_equal(reader.get_tensor("v0"), session.values["v0"])
    with pytest.raises(CheckpointError, match="v3 not found in checkpoint"):
        reader.get_tensor("v3")
    assert jm.list_variables(tmp_path) == [("v0", [2, 3]), ("v1", [2, 1, 1]), ("v2", [])]
    np.testing.assert_array_equal(jm.load_variable(tmp_path, "v1"), [[[1]], [[2]]])


def test_reader_of_nothing_says_so(tmp_path):
    with pytest.raises(
        CheckpointError,
        match="Unsuccessful TensorSliceReader constructor: Failed to find any matching files for",
    ):
        jm.NewCheckpointReader(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="Couldn't find 'checkpoint' file or checkpoints"):
        jm.load_checkpoint(tmp_path)


# --- protos ------------------------------------------------------------------------------------


def test_saver_goes_into_a_proto_and_back(tmp_path):
    graph, variables, session = make_graph(a=1.0, b=2.0)
    with graph.as_default(), jm.name_scope("hidden"):
        saver = jm.Saver({"x": variables["a"]}, max_to_keep=7)
    assert saver.to_proto().restore_op_name == "hidden/save/restore_all"
    assert saver.to_proto("other") is None
    assert saver.to_proto("hid") is None
    inner = saver.to_proto("hidden")
    assert (inner.filename_tensor_name, inner.restore_op_name) == (
        "save/Const:0",
        "save/restore_all",
    )
    with graph.as_default():
        again = jm.Saver.from_proto(inner, import_scope="hidden")
    assert again.as_saver_def() == saver.as_saver_def()
    prefix = again.save(session, tmp_path / "m")
    again.wait_until_finished()
    assert jm.list_variables(prefix) == [("x", [])]


def test_savers_of_a_resumed_graph_share_the_nodes(tmp_path):
    graph, _, session = make_graph(a=1.0)
    with jm.Saver(graph) as saver:
        prefix = saver.save(session, tmp_path / "m")
    run = jm.load(prefix)
    with jm.Saver(run.graph, max_to_keep=3) as saver:
        saver.save(run.state, tmp_path / "n")
    assert set(run.graph.nodes) == set(graph.nodes)
    assert saver.as_saver_def().max_to_keep == 3


# --- formats -----------------------------------------------------------------------------------


@pytest.mark.parametrize("first", FORMATS)
def test_last_format_under_a_name_is_the_one_that_is_read(tmp_path, first):
    graph, _, session = make_graph(v=1.0)
    for number, name in enumerate([first, *(f for f in FORMATS if f != first), first]):
        session.values["v"] = jnp.float32(number)
        with jm.Saver(graph, checkpoint_format=name) as saver:
            prefix = saver.save(session, tmp_path / "m")
        other = empty_session(graph)
        saver.restore(other, prefix)
        assert held(other) == {"v": number}
        assert os.path.isdir(prefix) == (name == "orbax")
        assert os.path.exists(prefix + ".index") == (name == "tensor_bundle")


def test_what_is_saved_beside_variables_is_named_in_a_warning(caplog):
    graph, variables, _ = make_graph(v=1.0)
    saver = jm.Saver(variables)
    restore = graph.nodes[saver.as_saver_def().restore_op_name]
    key = values.tensor_to_proto(np.zeros((), np.float32))
    graph.add_node("Const", [], {"dtype": key.dtype, "value": key}, "table")
    restore.input.append("^table")
    with caplog.at_level(logging.WARNING):
        jm.Saver(saver_def=saver.as_saver_def(), graph=graph)
    assert "table (Const)" in caplog.text
