"""MetaGraph files: export, import and export again; the same bytes; TensorFlow takes them."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from google.protobuf import any_pb2

import jaxmeta
from jaxmeta import errors, trees
from jaxmeta._proto import meta_graph_pb2
from jaxmeta.meta_graphs import meta_graph, meta_graph_file

TESTS = pathlib.Path(__file__).parent

# --- graphs to write -----------------------------------------------------------------------------


def empty() -> jaxmeta.Graph:
    return jaxmeta.Graph()


MLP_BATCH = {
    "x": np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4),
    "y": np.linspace(0, 1, 10, dtype=np.float32).reshape(5, 2),
}


def mlp_state() -> Any:
    return {
        "params": {
            "w1": jnp.linspace(-0.5, 0.5, 32).reshape(4, 8),
            "b1": jnp.zeros(8),
            "w2": jnp.linspace(-0.2, 0.2, 16).reshape(8, 2),
        },
        "step": jnp.zeros((), jnp.int32),
    }


@functools.partial(jax.jit, donate_argnums=0)
def mlp_step(state, batch):
    def loss(params):
        hidden = jax.nn.relu(batch["x"] @ params["w1"] + params["b1"])
        return jnp.mean((hidden @ params["w2"] - batch["y"]) ** 2)

    value, gradient = jax.value_and_grad(loss)(state["params"])
    params = jax.tree.map(lambda p, g: p - 0.5 * g, state["params"], gradient)
    return {"params": params, "step": state["step"] + 1}, {"loss": value}


def mlp() -> jaxmeta.Graph:
    """A train step and an inference function that share variables, and collections."""
    graph = jaxmeta.Graph()
    variables = graph.variables(mlp_state())
    graph.add_signature("train_step", mlp_step, variables, MLP_BATCH, updates=0)
    graph.add_signature(
        "predict",
        lambda params, x: jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"],
        variables["params"],
        MLP_BATCH["x"],
    )
    graph.add_to_collection("hparams", {"lr": 0.5, "layers": [4, 8, 2], "name": "mlp"})
    graph.add_to_collection("logits", graph.get_tensor_by_name("predict:0"))
    return graph


def recurrent() -> jaxmeta.Graph:
    """A scan, a branch, a loop and a rematerialized function."""

    def cell(carry, x):
        carry = jax.checkpoint(lambda c: jnp.tanh(c + x))(carry)
        return carry, jax.lax.cond(carry.sum() > 0, jnp.sin, jnp.cos, carry)

    def step(carry, xs):
        carry, ys = jax.lax.scan(cell, carry, xs)
        ys = jax.lax.while_loop(lambda y: y.sum() < 1, lambda y: y * 2 + 1, ys)
        return carry, ys

    graph = jaxmeta.Graph()
    variables = graph.variables({"carry": jnp.zeros(3)})
    graph.add_signature(
        "roll", lambda v, xs: step(v["carry"], xs), variables, jnp.ones((4, 3)), donate=False
    )
    return graph


@jax.custom_vjp
def clipped(x):
    return x


clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -1, 1),))


@jax.custom_jvp
def softplus(x):
    return jnp.log1p(jnp.exp(x))


softplus.defjvp(
    lambda primals, tangents: (softplus(*primals), jax.nn.sigmoid(*primals) * tangents[0])
)


def custom_rules() -> jaxmeta.Graph:
    graph = jaxmeta.Graph()
    graph.add_signature("value", lambda x: softplus(clipped(x)).sum(), jnp.ones(3))
    return graph


def closing_over_arrays() -> jaxmeta.Graph:
    """A large array that becomes a variable, and a small one that becomes a constant."""
    large, small = jnp.arange(1000.0), jnp.arange(3.0)
    graph = jaxmeta.Graph()
    graph.add_signature("shift", lambda x: x + large.sum() + small, jnp.ones(3))
    return graph


def collections_of_all_kinds() -> jaxmeta.Graph:
    graph = mlp()
    for item in ("one", "two"):
        graph.add_to_collection("strings", item.encode())
    for item in (1, -(1 << 40)):
        graph.add_to_collection("ints", item)
    graph.add_to_collection("floats", 0.5)
    graph.add_to_collection("flags", True)
    graph.add_to_collection("nothing", None)
    graph.add_to_collection("operations", graph.get_operation_by_name("predict"))
    graph.add_to_collection("weights", graph.variable("params/w1"))
    return graph


GRAPHS = [empty, mlp, recurrent, custom_rules, closing_over_arrays, collections_of_all_kinds]
every_graph = pytest.mark.parametrize("make", GRAPHS, ids=lambda make: make.__name__)


def file_content(graph: jaxmeta.Graph) -> bytes:
    return jaxmeta.Saver(graph).export_meta_graph().SerializeToString(deterministic=True)


def read(content: bytes) -> jaxmeta.Graph:
    return meta_graph.import_graph(meta_graph_pb2.MetaGraphDef.FromString(content))


# --- there and back ------------------------------------------------------------------------------


@every_graph
@pytest.mark.parametrize("as_text", [False, True], ids=["binary", "text"])
def test_export_import_export_gives_an_equal_file(make, as_text, tmp_path):
    first, second = tmp_path / "first.meta", tmp_path / "second.meta"
    written = jaxmeta.Saver(make()).export_meta_graph(first, as_text=as_text)
    assert jaxmeta.read_meta_graph_file(first) == written

    # None, as in TensorFlow, where there is nothing to save.
    saver = jaxmeta.import_meta_graph(first) or jaxmeta.Saver(jaxmeta.get_default_graph())
    assert saver.export_meta_graph(second, as_text=as_text) == written
    assert first.read_bytes() == second.read_bytes()


@every_graph
def test_text_and_binary_file_hold_the_same(make, tmp_path):
    saver = jaxmeta.Saver(make())
    saver.export_meta_graph(tmp_path / "binary.meta")
    saver.export_meta_graph(tmp_path / "text.meta", as_text=True)
    assert jaxmeta.read_meta_graph_file(tmp_path / "text.meta") == jaxmeta.read_meta_graph_file(
        tmp_path / "binary.meta"
    )


def test_text_is_the_same_where_tensorflow_is_imported(tmp_path, tensorflow):
    """Its messages make protobuf write the items of collections in another form."""
    assert tensorflow.compat.v1.MetaGraphDef
    script = (
        f"import sys; sys.path[:0] = {[str(TESTS), str(TESTS.parent)]}\n"
        "import jaxmeta, test_meta_graph\n"
        "saver = jaxmeta.Saver(test_meta_graph.mlp())\n"
        "saver.export_meta_graph(sys.argv[1], as_text=True)\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    there, here = tmp_path / "there.meta", tmp_path / "here.meta"
    subprocess.run([sys.executable, "-c", script, str(there)], check=True)
    written = jaxmeta.Saver(mlp()).export_meta_graph(here, as_text=True)
    assert there.read_text() == here.read_text()
    assert jaxmeta.read_meta_graph_file(there) == written


@every_graph
def test_imported_graph_has_what_the_original_has(make):
    original = make()
    imported = read(file_content(original))
    assert imported.variable_names == original.variable_names
    for name in original.variable_names:
        ours, theirs = imported.variable(name), original.variable(name)
        for fact in set(jaxmeta.Variable.__slots__) - {"graph"}:
            assert getattr(ours, fact) == getattr(theirs, fact)
    assert dict(imported.signatures) == dict(original.signatures)
    assert imported.state_trees == original.state_trees
    assert sorted(imported.get_all_collection_keys()) == sorted(original.get_all_collection_keys())
    for key in original.get_all_collection_keys():
        found, expected = imported.get_collection(key), original.get_collection(key)
        assert [getattr(x, "name", x) for x in found] == [getattr(x, "name", x) for x in expected]
        assert [type(x) for x in found] == [type(x) for x in expected]


SCRIPT = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
import hashlib, test_meta_graph
for make in test_meta_graph.GRAPHS:
    print(hashlib.sha256(test_meta_graph.file_content(make())).hexdigest())
"""


def test_same_program_gives_the_same_bytes_in_other_processes():
    script = SCRIPT.format(tests=str(TESTS), root=str(TESTS.parent))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    found = [process.communicate()[0].split() for process in processes]
    here = [hashlib.sha256(file_content(make())).hexdigest() for make in GRAPHS]
    assert found == [here, here]


# --- what is written -----------------------------------------------------------------------------


def test_only_the_collections_that_are_asked_for_are_written():
    graph = collections_of_all_kinds()
    written = jaxmeta.export_meta_graph(graph=graph, collection_list=["ints", "flags", "absent"])
    assert sorted(written.collection_def) == ["flags", "ints"]


def test_default_graph_is_exported():
    with mlp().as_default() as graph:
        assert jaxmeta.export_meta_graph() == jaxmeta.export_meta_graph(graph=graph)


def test_file_is_written_into_directories_that_are_made(tmp_path):
    path = tmp_path / "new" / "deep" / "model.meta"
    assert jaxmeta.export_meta_graph(path, graph=mlp()) == jaxmeta.read_meta_graph_file(path)
    assert [file.name for file in path.parent.iterdir()] == ["model.meta"]


def test_every_op_of_graph_and_functions_has_its_op_def_in_the_file():
    written = meta_graph_pb2.MetaGraphDef.FromString(file_content(recurrent()))
    listed = [op.name for op in written.meta_info_def.stripped_op_list.op]
    functions = written.graph_def.library.function
    used = {node.op for node in written.graph_def.node}
    used.update(node.op for function in functions for node in function.node_def)
    assert listed == sorted(used - {function.signature.name for function in functions})


def test_arrays_that_are_closed_over_do_not_swell_the_file():
    large = jnp.ones((1000, 1000))
    graph = jaxmeta.Graph()
    graph.add_signature("scale", lambda x: x * large, jnp.ones(1000))
    assert len(file_content(graph)) < 10_000


def test_file_larger_than_a_protobuf_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(meta_graph_file, "_PROTOBUF_LIMIT_BYTES", 1000)
    with pytest.raises(errors.FormatError, match=r"at most 2 GiB"):
        jaxmeta.export_meta_graph(tmp_path / "model.meta", graph=mlp())
    assert list(tmp_path.iterdir()) == []


def test_every_format_version_is_in_the_log():
    log = re.findall(r"^# Version (\d+), \d{4}-\d{2}", inspect.getsource(meta_graph_file), re.M)
    assert [int(number) for number in log] == list(range(1, meta_graph.FORMAT_VERSION + 1))


# --- what is read --------------------------------------------------------------------------------


def test_unknown_item_of_a_collection_is_kept():
    proto = meta_graph_pb2.MetaGraphDef()
    item = any_pb2.Any(type_url="type.googleapis.com/tensorflow.QueueRunnerDef", value=b"\x0a\x01q")
    proto.collection_def["queue_runners"].any_list.value.add().CopyFrom(item)
    graph = meta_graph.import_graph(proto)
    exported = jaxmeta.export_meta_graph(graph=graph)
    assert exported.collection_def["queue_runners"] == proto.collection_def["queue_runners"]


def test_import_adds_to_the_default_graph():
    saved = jaxmeta.export_meta_graph(graph=mlp())
    with jaxmeta.Graph().as_default() as graph:
        saver = jaxmeta.import_meta_graph(saved)
        assert saver.graph is graph
        assert jaxmeta.get_collection("hparams") == [
            {"lr": 0.5, "layers": [4, 8, 2], "name": "mlp"}
        ]
        (train_op,) = jaxmeta.get_collection("train_op")
        assert train_op.name == "train_step/update"
        assert train_op.graph is graph


def test_file_that_is_refused_leaves_the_graph_empty():
    saved = jaxmeta.export_meta_graph(graph=mlp())
    saved.graph_def.node.add(name="odd", op="Unheard")
    graph = jaxmeta.Graph()
    with pytest.raises(errors.UnsupportedOpError):
        meta_graph.import_graph(saved, graph)
    assert jaxmeta.export_meta_graph(graph=graph) == jaxmeta.export_meta_graph(graph=empty())


def test_import_does_not_change_the_message_it_is_given():
    saved = jaxmeta.export_meta_graph(graph=mlp())
    before = saved.SerializeToString(deterministic=True)
    graph = meta_graph.import_graph(saved)
    graph.add_signature("more", lambda x: x + 1, jnp.ones(2))
    graph.add_to_collection("hparams", 1)
    assert saved.SerializeToString(deterministic=True) == before


def test_export_is_not_changed_by_what_the_graph_becomes():
    graph = mlp()
    saved = jaxmeta.export_meta_graph(graph=graph)
    before = saved.SerializeToString(deterministic=True)
    graph.add_signature("more", lambda x: x + 1, jnp.ones(2))
    assert saved.SerializeToString(deterministic=True) == before


def test_imported_graph_grows_and_is_written_again():
    graph = read(file_content(mlp()))
    params = jax.tree.unflatten(
        jax.tree.structure(mlp_state()["params"]),
        [graph.variable(f"params/{name}") for name in ("b1", "w1", "w2")],
    )
    graph.add_signature(
        "saliency",
        lambda params, x: jax.grad(lambda x: (x @ params["w1"]).sum())(x),
        params,
        MLP_BATCH["x"],
    )
    again = read(file_content(graph))
    assert sorted(again.signatures) == ["predict", "saliency", "train_step"]
    program = jaxmeta.Program(again, {})
    found = program["saliency"](mlp_state()["params"], MLP_BATCH["x"])
    expected = jnp.broadcast_to(mlp_state()["params"]["w1"].sum(1), (5, 4))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("where", ["argument", "result", "state"])
def test_record_that_refers_to_nothing_is_refused(where):
    saved = jaxmeta.export_meta_graph(graph=mlp())
    lost = trees.tree_to_proto(trees.Leaf("lost" if where == "state" else "lost:0", (), 1))
    recorded = saved.object_graph_def.concrete_functions
    if where == "state":
        (name,) = (name for name in recorded if name.startswith("jaxmeta/variables/"))
        recorded[name].output_signature.CopyFrom(lost)
    elif where == "result":
        recorded["predict"].output_signature.CopyFrom(lost)
    else:
        arguments = recorded["predict"].canonicalized_input_signature.tuple_value.values[0]
        arguments.tuple_value.values[1].CopyFrom(lost)
    with pytest.raises(errors.FormatError, match="lost"):
        meta_graph.import_graph(saved)


# --- TensorFlow ----------------------------------------------------------------------------------


@every_graph
def test_tensorflow_imports_the_file(make, tmp_path, tensorflow):
    tf1 = tensorflow.compat.v1
    path = tmp_path / "model.meta"
    graph = make()
    jaxmeta.Saver(graph).export_meta_graph(path)
    with tensorflow.Graph().as_default() as theirs:
        saver = tf1.train.import_meta_graph(str(path))
        assert (saver is not None) == bool(graph.variable_names)
        variables = [variable.name for variable in tf1.global_variables()]
        trainable = [variable.name for variable in tf1.trainable_variables()]
    # TensorFlow reads the collections in the order of their names.
    assert sorted(variables) == sorted(f"{name}:0" for name in graph.variable_names)
    assert trainable == [v.name for v in graph.get_collection("trainable_variables")]
    assert {op.name for op in theirs.get_operations()} == set(graph.nodes)


def variable_values(state: Any) -> dict[str, Any]:
    return {f"params/{name}": value for name, value in state["params"].items()} | {
        "step": state["step"]
    }


def test_tensorflow_trains_the_file_and_restores_what_it_saved(tmp_path, tensorflow):
    tf1 = tensorflow.compat.v1
    path = tmp_path / "model.meta"
    written = jaxmeta.Saver(mlp()).export_meta_graph(path)
    loss = written.signature_def["train_step"].outputs["output_4"].name
    feeds = {f"batch/{name}:0": value for name, value in MLP_BATCH.items()}

    with tensorflow.Graph().as_default(), tf1.Session() as session:
        saver = tf1.train.import_meta_graph(str(path))
        session.run(tf1.global_variables_initializer())
        assert not any(np.any(value) for value in session.run(tf1.global_variables()))
        for variable in tf1.global_variables():
            initial = variable_values(mlp_state())[variable.op.name]
            variable.load(np.asarray(initial), session)
        (train_op,) = tf1.get_collection("train_op")
        losses = [session.run([loss, train_op], feeds)[0] for _ in range(5)]
        prefix = saver.save(session, str(tmp_path / "theirs" / "model"))

    state, expected = mlp_state(), []
    for _ in range(5):
        state, metrics = mlp_step(state, MLP_BATCH)
        expected.append(metrics["loss"])
    np.testing.assert_allclose(losses, expected, rtol=1e-5)

    with tensorflow.Graph().as_default(), tf1.Session() as session:
        tf1.train.import_meta_graph(str(path)).restore(session, prefix)
        for variable in tf1.global_variables():
            want = variable_values(state)[variable.op.name]
            np.testing.assert_allclose(session.run(variable), want, rtol=1e-5, atol=1e-7)


def test_graph_that_tensorflow_wrote_again_still_runs(tmp_path, tensorflow):
    """TensorFlow drops the records of trees; nodes, collections and attrs are kept."""
    tf1 = tensorflow.compat.v1
    jaxmeta.Saver(mlp()).export_meta_graph(tmp_path / "ours.meta")
    with tensorflow.Graph().as_default():
        tf1.train.import_meta_graph(str(tmp_path / "ours.meta"))
        tf1.train.export_meta_graph(str(tmp_path / "theirs.meta"))
    with jaxmeta.Graph().as_default() as graph, jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(tmp_path / "theirs.meta")
        assert set(graph.variable_names) == {*variable_values(mlp_state())}
        for name, value in variable_values(mlp_state()).items():
            session.values[name] = jnp.copy(value)
        feeds = {f"batch/{name}:0": value for name, value in MLP_BATCH.items()}
        loss, _ = session.run(["train_step:4", "train_step/update"], feeds)
    _, metrics = mlp_step(mlp_state(), MLP_BATCH)
    np.testing.assert_array_equal(loss, metrics["loss"])
