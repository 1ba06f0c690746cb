"""Collections of every kind, there and back, under scopes too; TensorFlow reads what we write."""

from __future__ import annotations

import argparse
import dataclasses
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from google.protobuf import any_pb2

import jaxmeta as jm
from jaxmeta import errors
from jaxmeta._proto import meta_graph_pb2
from jaxmeta.meta_graphs import collection_registry, meta_graph
from jaxmeta.meta_graphs.collection_registry import GraphKeys

needs_tf = pytest.mark.needs_tf


@pytest.fixture
def own_registry(monkeypatch):
    """Lets a test register classes that no other test sees."""
    monkeypatch.setattr(collection_registry, "_REGISTERED", dict(collection_registry._REGISTERED))


def again(graph: jm.Graph, scope: str | None = None) -> jm.Graph:
    content = jm.export_meta_graph(graph=graph).SerializeToString(deterministic=True)
    target = jm.Graph()
    proto = meta_graph_pb2.MetaGraphDef.FromString(content)
    jm.import_scoped_meta_graph(proto, graph=target, import_scope=scope)
    return target


# --- names and functions -------------------------------------------------------------------------


@needs_tf
def test_keys_are_those_of_tensorflow(tensorflow):
    theirs = {
        name: value
        for name, value in vars(tensorflow.compat.v1.GraphKeys).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, str)
    }
    assert {name: getattr(GraphKeys, name) for name in theirs} == theirs


@pytest.mark.parametrize("what", ["to_proto", "from_proto"])
def test_function_that_cannot_be_called_is_a_type_error(what):
    with pytest.raises(TypeError, match=f"{what} must be callable"):
        jm.register_proto_function("mine", meta_graph_pb2.SaverDef, **{what: 3})
    assert collection_registry.get_to_proto_function("mine") is None


@pytest.mark.parametrize("name", ["variables", "savers", "while_context"])
def test_collection_that_is_registered_already_is_a_key_error(name):
    with pytest.raises(KeyError) as caught:
        jm.register_proto_function(name, meta_graph_pb2.SaverDef)
    assert isinstance(caught.value, errors.JaxmetaError)
    assert str(caught.value).startswith(f"the collection '{name}' has its proto functions already")


@dataclasses.dataclass
class Schedule:
    """A class of a user's, which keeps a name and which of our protos holds it."""

    tensor_name: str

    def to_proto(self, export_scope: str | None = None) -> meta_graph_pb2.AssetFileDef:
        prefix = f"{export_scope}/" if export_scope else ""
        name = self.tensor_name.removeprefix(prefix)
        return meta_graph_pb2.AssetFileDef(filename=name)

    @classmethod
    def from_proto(
        cls, proto: meta_graph_pb2.AssetFileDef, import_scope: str | None = None
    ) -> Schedule:
        prefix = f"{import_scope}/" if import_scope else ""
        return cls(prefix + proto.filename)


def test_class_of_a_user_comes_back_with_its_names_in_the_scope(own_registry):
    jm.register_proto_function(
        "schedules", meta_graph_pb2.AssetFileDef, Schedule.to_proto, Schedule.from_proto
    )
    assert collection_registry.get_collection_proto_type("schedules") is meta_graph_pb2.AssetFileDef
    graph = jm.Graph()
    graph.add_to_collection("schedules", Schedule("rate:0"))
    assert again(graph).get_collection("schedules") == [Schedule("rate:0")]
    scoped = again(graph, "a")
    assert scoped.get_collection("schedules") == [Schedule("a/rate:0")]
    exported = jm.export_meta_graph(graph=scoped, export_scope="a")
    assert exported.collection_def == jm.export_meta_graph(graph=graph).collection_def


def test_items_that_to_proto_leaves_out_are_left_out(own_registry):
    jm.register_proto_function(
        "picky",
        meta_graph_pb2.AssetFileDef,
        lambda item, export_scope: item.to_proto() if item.tensor_name else None,
        Schedule.from_proto,
    )
    graph = jm.Graph()
    graph.add_to_collection("picky", Schedule(""))
    assert "picky" not in jm.export_meta_graph(graph=graph).collection_def
    graph.add_to_collection("picky", Schedule("kept"))
    assert again(graph).get_collection("picky") == [Schedule("kept")]


def test_proto_of_another_class_is_refused(own_registry):
    jm.register_proto_function("mine", meta_graph_pb2.SaverDef, Schedule.to_proto)
    graph = jm.Graph()
    graph.add_to_collection("mine", Schedule("x"))
    with pytest.raises(
        errors.AttrError, match="returned AssetFileDef, not the registered SaverDef"
    ):
        jm.export_meta_graph(graph=graph)


def test_object_that_its_function_does_not_take_is_refused():
    graph = jm.Graph()
    graph.add_to_collection("savers", 3)
    with pytest.raises(errors.AttrError, match="collection 'savers' holds 3"):
        jm.export_meta_graph(graph=graph)


def test_bytes_of_an_unknown_collection_are_kept():
    graph = jm.Graph()
    content = meta_graph_pb2.SaverDef(save_tensor_name="s:0", max_to_keep=3).SerializeToString()
    for item in (content, b"\xff\x00"):
        graph.add_to_collection("theirs", item)
    for scope in (None, "a"):
        assert again(graph, scope).get_collection("theirs") == [content, b"\xff\x00"]


# --- kinds ---------------------------------------------------------------------------------------


def with_everything() -> jm.Graph:
    graph = jm.Graph()
    variables = graph.variables({"params": {"w": jnp.ones((3, 2))}, "step": jnp.int32(0)})
    graph.add_signature("predict", lambda v, x: x @ v["params"]["w"], variables, jnp.ones((4, 3)))
    graph.add_to_collection("int_collection", 3)
    graph.add_to_collection("int_collection", np.int64(-(1 << 40)))
    graph.add_to_collection("float_collection", 3.5)
    graph.add_to_collection("float_collection", np.float32(0.25))
    graph.add_to_collection("string_collection", "hello")
    graph.add_to_collection("bytes_collection", b"\x00\xff")
    graph.add_to_collection("variable_collection", variables["params"]["w"])
    graph.add_to_collection("tensor_collection", graph.get_tensor_by_name("predict:0"))
    graph.add_to_collection("operation_collection", graph.get_operation_by_name("predict"))
    graph.add_to_collection("any_collection", any_pb2.Any(type_url="x/y", value=b"\x01"))
    graph.add_to_collection("proto_collection", meta_graph_pb2.SaverDef(max_to_keep=4))
    graph.add_to_collection("hparams", {"lr": 0.1, "sizes": [1, 2], "name": "n", "flag": True})
    graph.add_to_collection("savers", meta_graph_pb2.SaverDef(save_tensor_name="save/x:0"))
    return graph


def shown(graph: jm.Graph) -> dict[str, list[Any]]:
    return {
        key: [getattr(item, "name", item) for item in graph.get_collection(key)]
        for key in sorted(graph.get_all_collection_keys())
    }


def test_items_of_every_kind_come_back():
    found = shown(again(with_everything()))
    assert found == {
        "any_collection": [any_pb2.Any(type_url="x/y", value=b"\x01")],
        "bytes_collection": [b"\x00\xff"],
        "float_collection": [3.5, 0.25],
        "hparams": [{"lr": 0.1, "sizes": [1, 2], "name": "n", "flag": True}],
        "int_collection": [3, -(1 << 40)],
        "operation_collection": ["predict"],
        "proto_collection": [
            any_pb2.Any(type_url="type.googleapis.com/jaxmeta.SaverDef", value=b"\x20\x04")
        ],
        "savers": [meta_graph_pb2.SaverDef(save_tensor_name="save/x:0")],
        "string_collection": [b"hello"],
        "tensor_collection": ["predict:0"],
        "trainable_variables": ["params/w:0"],
        "variable_collection": ["params/w:0"],
        "variables": ["params/w:0", "step:0"],
    }


def test_names_are_put_into_the_scope_and_taken_out_of_it():
    graph = with_everything()
    scoped = again(graph, "a")
    found, plain = shown(scoped), shown(again(graph))
    for key in ("tensor_collection", "variables", "trainable_variables", "variable_collection"):
        assert found[key] == [f"a/{name}" for name in plain[key]]
    assert found["savers"] == [meta_graph_pb2.SaverDef(save_tensor_name="a/save/x:0")]
    for key in ("any_collection", "hparams", "int_collection", "float_collection"):
        assert found[key] == plain[key]
    exported = jm.export_meta_graph(graph=scoped, export_scope="a").collection_def
    original = jm.export_meta_graph(graph=graph).collection_def
    # A string is no name for certain, so that only strings in the scope are exported with it.
    for key in original.keys() - {"string_collection"}:
        assert exported[key] == original[key]


@needs_tf
@pytest.mark.parametrize("scope", [None, "a"])
def test_tensorflow_reads_every_kind_as_we_do(scope, tensorflow):
    tf = tensorflow.compat.v1
    graph = with_everything()
    left_out = {"savers", *(["bytes_collection"] if scope else [])}  # it must decode these
    keys = sorted(set(graph.get_all_collection_keys()) - left_out)
    written = jm.export_meta_graph(graph=graph, collection_list=keys)
    with tf.Graph().as_default() as theirs:
        proto = tf.MetaGraphDef.FromString(written.SerializeToString())
        tf.train.import_meta_graph(proto, import_scope=scope)
    ours = shown(again(graph, scope))
    for key in keys:
        found = [getattr(item, "name", item) for item in theirs.get_collection(key)]
        if key in ("hparams", "any_collection", "proto_collection"):
            kept = written.collection_def[key].any_list.value
            assert [(x.type_url, x.value) for x in found] == [(x.type_url, x.value) for x in kept]
        else:
            assert found == ours[key], key


@pytest.mark.parametrize(
    "items",
    [[1, "a"], [1, 2.0], [object()], ["a", jm.Graph], [1 << 70], [{1: 2}], [{"a": object()}]],
    ids=["int and str", "int and float", "object", "class", "wide int", "int keys", "of objects"],
)
def test_items_without_a_place_in_a_file_are_refused(items):
    graph = jm.Graph()
    for item in items:
        graph.add_to_collection("mixed", item)
    with pytest.raises(errors.AttrError):
        jm.export_meta_graph(graph=graph)


def test_empty_collection_is_not_written():
    graph = jm.Graph()
    graph.add_to_collection("one", 1)
    found = jm.export_meta_graph(graph=graph, collection_list=["none", "one"])
    assert list(found.collection_def) == ["one"]


# --- hyperparameters -----------------------------------------------------------------------------


@dataclasses.dataclass
class Optimizer:
    name: str
    rate: float


@dataclasses.dataclass
class HParams:
    layers: tuple[int, ...]
    optimizer: Optimizer
    seed: int | None = None


PLAIN = {"layers": (4, 2), "optimizer": {"name": "sgd", "rate": 0.5}, "seed": None}


@pytest.mark.parametrize(
    "hparams",
    [
        PLAIN,
        HParams((4, 2), Optimizer("sgd", 0.5)),
        argparse.Namespace(**PLAIN),
        types.SimpleNamespace(
            layers=(4, 2), optimizer=Optimizer("sgd", np.float32(0.5)), seed=None
        ),
    ],
    ids=["dict", "dataclass", "namespace", "simple namespace"],
)
def test_hyperparameters_come_back_as_a_dict(hparams):
    graph = jm.Graph()
    graph.add_to_collection("hparams", hparams)
    assert again(graph).get_collection("hparams") == [PLAIN]
    assert again(graph, "a").get_collection("hparams") == [PLAIN]


def test_hyperparameters_with_a_proto_of_their_own_are_kept_as_that():
    graph = jm.Graph()
    graph.add_to_collection("hparams", Schedule("rate"))
    (found,) = again(graph).get_collection("hparams")
    proto = meta_graph_pb2.AssetFileDef()
    assert found.Unpack(proto)
    assert proto == Schedule("rate").to_proto()


def test_hyperparameters_of_a_registered_class_come_back_as_the_class(own_registry):
    jm.register_proto_function(
        "hparams", meta_graph_pb2.AssetFileDef, Schedule.to_proto, Schedule.from_proto
    )
    graph = jm.Graph()
    graph.add_to_collection("hparams", Schedule("rate"))
    assert again(graph).get_collection("hparams") == [Schedule("rate")]


# --- files of TensorFlow's -----------------------------------------------------------------------


@needs_tf
def test_collections_of_tensorflow_come_back_as_they_were(tensorflow):
    """TensorFlow's own test of collections: what was read is written as it was."""
    tf = tensorflow.compat.v1
    with tf.Graph().as_default():
        v0 = tf.Variable(10.0, name="v0", use_resource=False)
        queue = tf.FIFOQueue(10, [tf.float32], name="q")
        runner = tf.train.QueueRunner(queue, [queue.enqueue([1.0])])
        tf.add_to_collection("queue_runners", runner)
        for key, item in {
            "int_collection": 3,
            "float_collection": 3.5,
            "string_collection": "hello",
            "variable_collection": v0,
        }.items():
            tf.add_to_collection(key, item)
        tf.train.Saver(name="mine")
        for _ in range(2):
            tf.add_to_collection("savers", tf.train.Saver())
        was_on = tf.control_flow_v2_enabled()
        tf.disable_control_flow_v2()
        try:
            tf.while_loop(lambda i: i < 3.0, lambda i: i + 1.0, [v0])
            tf.cond(v0 > 1.0, lambda: v0 + 1.0, lambda: v0 - 1.0)
        finally:
            if was_on:
                tf.enable_control_flow_v2()
        written = tf.train.export_meta_graph()
    proto = meta_graph_pb2.MetaGraphDef.FromString(written.SerializeToString())
    found = jm.export_meta_graph(graph=meta_graph.import_graph(proto))
    assert sorted(found.collection_def) == sorted(proto.collection_def)
    contexts = {
        "cond_context": meta_graph_pb2.CondContextDef,
        "while_context": meta_graph_pb2.WhileContextDef,
    }
    for name, cls in contexts.items():  # TensorFlow writes their maps in any order
        items = proto.collection_def[name].bytes_list.value
        items[:] = [cls.FromString(item).SerializeToString(deterministic=True) for item in items]
    for name, expected in proto.collection_def.items():
        assert found.collection_def[name] == expected, name


@pytest.mark.parametrize(("version", "expected"), [("1.8.0", False), ("1.9", True), ("", True)])
def test_old_variables_are_trainable_by_their_collection(version, expected):
    graph = jm.Graph()
    graph.variables({"w": jnp.ones(2)})
    proto = jm.export_meta_graph(graph=graph)
    proto.meta_info_def.tensorflow_version = version
    del proto.collection_def["trainable_variables"]
    proto.object_graph_def.concrete_functions.clear()
    (variable,) = meta_graph.import_graph(proto).get_collection("variables")
    assert variable.trainable is expected


def test_one_variable_in_several_collections_is_one_object():
    graph = jm.Graph()
    w = graph.variables({"w": jnp.ones(2)})["w"]
    graph.add_to_collection("model_variables", w)
    found = again(graph)
    variables = [found.get_collection(k)[0] for k in ("variables", "model_variables")]
    assert variables[0] is variables[1]


# --- malformed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lost", "lost:0", "predict:7", "predict:x", "^predict", ""])
def test_item_that_names_nothing_is_a_key_error(name):
    proto = jm.export_meta_graph(graph=with_everything())
    proto.collection_def["odd"].node_list.value.append(name)
    with pytest.raises(KeyError) as caught:
        meta_graph.import_graph(proto)
    assert isinstance(caught.value, errors.MissingNameError)
    assert "collection 'odd'" in str(caught.value)


@pytest.mark.parametrize("name", ["variables", "savers", "cond_context", "while_context"])
def test_item_that_is_no_proto_is_refused(name):
    proto = meta_graph_pb2.MetaGraphDef()
    proto.collection_def[name].bytes_list.value.append(b"\xff\xff\xff")
    with pytest.raises(errors.FormatError, match=f"collection '{name}': no "):
        meta_graph.import_graph(proto)


def test_variable_without_a_node_is_a_key_error():
    proto = meta_graph_pb2.MetaGraphDef()
    content = meta_graph_pb2.VariableDef(variable_name="lost:0").SerializeToString()
    proto.collection_def["variables"].bytes_list.value.append(content)
    with pytest.raises(KeyError, match="the variable 'lost' has no node"):
        meta_graph.import_graph(proto)


def test_collection_without_a_kind_is_skipped():
    proto = meta_graph_pb2.MetaGraphDef()
    proto.collection_def["nothing"].SetInParent()
    assert meta_graph.import_graph(proto).get_all_collection_keys() == []
