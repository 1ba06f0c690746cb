"""Scopes of graphs to MetaGraphs and back: as TensorFlow's functions do, which are asked too."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from google.protobuf import text_format

import jaxmeta as jm
from jaxmeta import errors
from jaxmeta._proto import graph_pb2, meta_graph_pb2
from jaxmeta.meta_graphs import meta_graph
from jaxmeta.saving import saver

needs_tf = pytest.mark.needs_tf

# --- graphs that TensorFlow makes ----------------------------------------------------------------


@contextlib.contextmanager
def control_flow_v1(tf: Any) -> Iterator[None]:
    was_on = tf.control_flow_v2_enabled()
    tf.disable_control_flow_v2()
    try:
        yield
    finally:
        if was_on:
            tf.enable_control_flow_v2()


def hidden_layers(tf: Any, images: Any) -> Any:
    """TensorFlow's own test of scopes: variables, a cond in a scope, a loop, places."""
    with tf.name_scope("hidden1"):
        with tf.device("/device:CPU:0"):
            weights = tf.get_variable("w1", initializer=tf.ones([4, 3]), use_resource=False)
            weights = tf.identity(weights, name="weights")
        biases = tf.Variable(tf.zeros([3]), name="biases", use_resource=False)
        with tf.colocate_with(weights.op):
            near = tf.identity(biases, name="near")
        hidden = tf.nn.relu(tf.matmul(images, weights) + near, name="relu")
        hidden = tf.cond(tf.reduce_sum(hidden) > 0, lambda: hidden * 2, lambda: hidden + 1)
        _, hidden = tf.while_loop(lambda i, _: i < 2, lambda i, h: (i + 1, h + h), [0, hidden])
        tf.add_to_collection("hidden", hidden)
        tf.add_to_collection("both", weights.op)
    return hidden


def scoped_graph(tf: Any) -> Any:
    """Returns the MetaGraphDef of a graph, in TensorFlow's messages, and the graph."""
    with control_flow_v1(tf), tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.float32, [2, 4], name="images")
        hidden = hidden_layers(tf, images)
        with tf.name_scope("hidden10"):
            other = tf.Variable(tf.ones([3, 2]), name="w", use_resource=True)
            with tf.control_dependencies([hidden.op]):
                logits = tf.matmul(hidden, other, name="logits")
        tf.add_to_collection("logits", logits)
        tf.add_to_collection("both", logits.op)
        tf.add_to_collection("numbers", 3)
        tf.add_to_collection("words", "hidden1/relu")
        return tf.train.export_meta_graph(graph=graph), graph


def ours(meta_graph_def: Any) -> meta_graph_pb2.MetaGraphDef:
    return meta_graph_pb2.MetaGraphDef.FromString(meta_graph_def.SerializeToString())


def described(meta_graph_def: Any) -> dict[str, Any]:
    """Returns what two exports of one graph must agree on, but for shapes and attrs' defaults."""
    nodes = {
        node.name: (
            node.op,
            [ref.removesuffix(":0") for ref in node.input],
            node.device,
            list(node.attr["_class"].list.s if "_class" in node.attr else ()),
            node.attr["frame_name"].s if "frame_name" in node.attr else b"",
        )
        for node in meta_graph_def.graph_def.node
    }
    collections = {
        name: proto.SerializeToString(deterministic=True)
        for name, proto in meta_graph_def.collection_def.items()
        if "context" not in name and "variables" not in name
    }
    for name in ("cond_context", "while_context"):
        protos = meta_graph_def.collection_def.get(name)
        cls = {
            "cond_context": meta_graph_pb2.CondContextDef,
            "while_context": meta_graph_pb2.WhileContextDef,
        }[name]
        for content in protos.bytes_list.value if protos else ():
            proto = cls.FromString(content)
            values = proto.values_def.values[:]
            proto.values_def.values[:] = sorted(values)  # TensorFlow writes a set
            collections[f"{name} {proto.context_name}"] = text_format.MessageToString(proto)
    for name in ("variables", "trainable_variables"):
        protos = meta_graph_def.collection_def.get(name)
        for content in protos.bytes_list.value if protos else ():
            variable = meta_graph_pb2.VariableDef.FromString(content)
            collections[f"{name} {variable.variable_name}"] = text_format.MessageToString(variable)
    return {"nodes": nodes, **collections}


def tensorflow_export(tf: Any, graph: Any, **arguments: Any) -> Any:
    with graph.as_default():
        return tf.train.export_meta_graph(graph=graph, **arguments)


def tensorflow_import(tensorflow: Any, proto: Any, graph: Any, **arguments: Any) -> dict[str, str]:
    """Imports with TensorFlow's function, which is not public; returns the variables' names."""
    module = importlib.import_module("tensorflow.python.framework.meta_graph")
    with control_flow_v1(tensorflow.compat.v1), graph.as_default():
        found = module.import_scoped_meta_graph(proto, graph=graph, **arguments)
    return {key: variable.name for key, variable in found.items()}


def scoped_graphs(tensorflow: Any) -> tuple[jm.Graph, Any]:
    """Returns one graph as both have it that have read it."""
    whole, _ = scoped_graph(tensorflow.compat.v1)
    theirs = tensorflow.Graph()
    tensorflow_import(tensorflow, whole, theirs)
    return meta_graph.import_graph(ours(whole)), theirs


@needs_tf
@pytest.mark.parametrize("clear_devices", [False, True])
@pytest.mark.parametrize("scope", ["hidden1", "hidden1/", "hidden10", "hidden"])
def test_scope_is_exported_as_tensorflow_does(scope, clear_devices, tensorflow):
    graph, theirs = scoped_graphs(tensorflow)
    arguments = {"export_scope": scope, "clear_devices": clear_devices}
    expected = described(tensorflow_export(tensorflow.compat.v1, theirs, **arguments))
    found = described(jm.export_meta_graph(graph=graph, **arguments))
    assert found.pop("nodes") == expected.pop("nodes")
    assert found == expected


@needs_tf
def test_unbound_inputs_are_listed_and_must_be_mapped_exactly(tensorflow):
    graph, _ = scoped_graphs(tensorflow)
    exported, variables = jm.export_scoped_meta_graph(graph=graph, export_scope="hidden1/")
    assert sorted(variables) == ["biases:0"]
    unbound = graph.get_collection("unbound_inputs")
    assert unbound == ["$unbound_inputs_w1/read", "$unbound_inputs_images"]
    for input_map in (None, {}, {unbound[0]: 1.0}, {**dict.fromkeys(unbound, 1.0), "x": 1.0}):
        target = jm.Graph()
        with pytest.raises(errors.GraphError, match="Graph contains unbound inputs"):
            jm.import_scoped_meta_graph(exported, graph=target, input_map=input_map)
        assert not target.nodes


def _mapping(unbound: list[str], graph: Any) -> dict[str, Any]:
    names = {key: key.removeprefix("$unbound_inputs_") for key in unbound}
    return {
        key: graph.get_tensor_by_name(name if ":" in name else f"{name}:0")
        for key, name in names.items()
    }


@needs_tf
@pytest.mark.parametrize("scope", ["new", "deep/new", "hidden1"])
def test_scope_is_imported_as_tensorflow_does(scope, tensorflow):
    graph, theirs = scoped_graphs(tensorflow)
    tf = tensorflow.compat.v1
    exported = tensorflow_export(tf, theirs, export_scope="hidden1/")
    unbound = graph_names(exported.collection_def["unbound_inputs"])
    mapping = _mapping(unbound, theirs)
    names = tensorflow_import(tensorflow, exported, theirs, import_scope=scope, input_map=mapping)
    own = jm.export_meta_graph(graph=graph, export_scope="hidden1/")
    found = jm.import_scoped_meta_graph(
        own, graph=graph, import_scope=scope, input_map=_mapping(unbound, graph)
    )
    result = described(jm.export_meta_graph(graph=graph))
    expected = described(tensorflow_export(tf, theirs))
    # TensorFlow leaves the frames' names, so that two loops have one.
    nodes, expected_nodes = (
        {name: facts[:-1] for name, facts in whole.pop("nodes").items()}
        for whole in (result, expected)
    )
    assert nodes == expected_nodes
    if scope == "hidden1":  # where TensorFlow's collections name the nodes that were first
        assert {key: variable.name for key, variable in found.items()} == {
            "biases:0": "hidden1/biases_1:0"
        }
        assert "variables hidden1/biases_1:0" in result
        return
    assert {key: variable.name for key, variable in found.items()} == names
    assert result == expected


def graph_names(proto: Any) -> list[str]:
    return [name.decode() for name in proto.bytes_list.value]


@needs_tf
def test_copied_scope_is_the_one_that_tensorflow_copies(tensorflow):
    tf = tensorflow.compat.v1
    with tf.Graph().as_default() as theirs:
        with tf.name_scope("one"), tf.variable_scope("", use_resource=False):
            a = tf.Variable([1.0, 2.0], name="a")
            tf.add_to_collection("sums", tf.reduce_sum(a, name="sum"))
        saved = tf.train.export_meta_graph()
        module = importlib.import_module("tensorflow.python.framework.meta_graph")
        expected = [
            module.copy_scoped_meta_graph("one", scope, theirs, theirs) for scope in ("two", "two")
        ]
        found_nodes = described(tf.train.export_meta_graph())
    graph = meta_graph.import_graph(ours(saved))
    found = [jm.copy_scoped_meta_graph("one", scope, graph, graph) for scope in ("two", "two")]
    assert [{k: v.name for k, v in each.items()} for each in found] == [
        {k: v.name for k, v in each.items()} for each in expected
    ]
    assert described(jm.export_meta_graph(graph=graph)) == found_nodes
    with pytest.raises(errors.GraphError, match="need to be different"):
        jm.copy_scoped_meta_graph("one", "one", graph, graph)


@needs_tf
@pytest.mark.parametrize("keeps", [True, False])
def test_extraneous_savers_are_left_out_as_in_tensorflow(keeps, tensorflow):
    tf = tensorflow.compat.v1
    with tf.Graph().as_default() as theirs:
        tf.Variable(1.0, name="a", use_resource=False)
        first, _ = tf.train.Saver(), tf.train.Saver(name="other")
        saver_def = first.as_saver_def() if keeps else None
        whole = tf.train.export_meta_graph()
        expected = tf.train.export_meta_graph(
            graph=theirs, saver_def=saver_def, clear_extraneous_savers=True, collection_list=[]
        )
    graph = meta_graph.import_graph(ours(whole))
    own_def = meta_graph_pb2.SaverDef.FromString(saver_def.SerializeToString()) if keeps else None
    found = jm.export_meta_graph(
        graph=graph, saver_def=own_def, clear_extraneous_savers=True, collection_list=[]
    )
    assert described(found) == described(expected)
    assert keeps == any(node.name.startswith("save/") for node in found.graph_def.node)


# --- programs ------------------------------------------------------------------------------------


def make_state(width: int) -> dict[str, Any]:
    return {
        "params": {"w": jnp.linspace(-1, 1, 3 * width).reshape(3, width)},
        "step": jnp.int32(0),
    }


def make_program(scale: float, width: int) -> tuple[jm.Graph, Any]:
    """A train step that closes over a large array, and a function that shares its variables."""
    large = jnp.arange(1000.0) * scale

    def step(state, x):
        def loss(params):
            return (jax.nn.relu(x @ params["w"]) ** 2).sum() * scale + large.sum()

        value, gradient = jax.value_and_grad(loss)(state["params"])
        params = jax.tree.map(lambda p, g: p - 0.01 * g, state["params"], gradient)
        return {"params": params, "step": state["step"] + 1}, value

    graph = jm.Graph()
    variables = graph.variables(make_state(width))
    graph.add_signature("train", step, variables, jnp.ones((4, 3)), updates=0)
    graph.add_signature(
        "predict", lambda s, x: jax.nn.silu(x @ s["params"]["w"]), variables, jnp.ones((4, 3))
    )
    graph.add_to_collection("hparams", {"scale": scale})
    return graph, step


X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
PROGRAMS = {"a": (1.0, 2), "b": (2.0, 5)}


@pytest.fixture
def both(tmp_path) -> tuple[jm.Graph, dict[str, Any], dict[str, Any]]:
    """Two checkpoints of different programs in one graph, under scopes; the values; the steps."""
    graph, held, steps = jm.Graph(), {}, {}
    for name, (scale, width) in PROGRAMS.items():
        source, steps[name] = make_program(scale, width)
        with jm.Saver(source) as writer:
            prefix = writer.save(make_state(width), tmp_path / name, global_step=1)
        variables = jm.import_scoped_meta_graph(f"{prefix}.meta", graph=graph, import_scope=name)
        values = saver.restore_variables(meta_graph.import_graph(f"{prefix}.meta"), prefix)
        assert {f"{key}:0" for key in values} == set(variables)
        held |= {variables[f"{key}:0"].op_name: value for key, value in values.items()}
    return graph, held, steps


def test_two_checkpoints_in_one_graph_both_run(both):
    graph, held, steps = both
    assert sorted(graph.signatures) == ["a/predict", "a/train", "b/predict", "b/train"]
    with jm.Session(graph) as session:
        session.values.update(held)
        for name, (_, width) in PROGRAMS.items():
            state = make_state(width)
            predicted = session.run(f"{name}/predict:0", {f"{name}/x:0": X})
            np.testing.assert_array_equal(predicted, jax.jit(jax.nn.silu)(X @ state["params"]["w"]))
            session.run(graph.signatures[f"{name}/train"].train_op, {f"{name}/x:0": X})
            expected, _ = jax.jit(steps[name])(state, X)
            np.testing.assert_array_equal(
                session.values[f"{name}/params/w"], expected["params"]["w"]
            )


def test_two_checkpoints_in_one_graph_are_one_program(both):
    graph, held, steps = both
    graph.constants.update({k: np.asarray(v) for k, v in held.items() if "constant" in k})
    run = jm.Program(graph, {k: v for k, v in held.items() if "constant" not in k})
    state = run.state
    for name, (_, width) in PROGRAMS.items():
        expected = jax.jit(steps[name])(make_state(width), X)
        found = run[f"{name}/train"](state[name], X)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_graph_of_two_imports_is_exported_and_read_again(both):
    graph, _, _ = both
    written = jm.Saver(graph).export_meta_graph()
    again = meta_graph.import_graph(written)
    assert jm.export_meta_graph(graph=again, saver_def=written.saver_def) == written
    assert again.signatures == graph.signatures
    assert again.get_collection("hparams") == [{"scale": 1.0}, {"scale": 2.0}]


@needs_tf
def test_graph_of_two_imports_trains_in_tensorflow(both, tensorflow, tmp_path):
    tf = tensorflow.compat.v1
    graph, held, steps = both
    jm.Saver(graph).export_meta_graph(tmp_path / "both.meta")
    with tf.Graph().as_default(), tf.Session() as session:
        tf.train.import_meta_graph(str(tmp_path / "both.meta"))
        for variable in tf.global_variables():
            variable.load(np.asarray(held[variable.op.name]), session)
        for name, (_, width) in PROGRAMS.items():
            session.run(f"{name}/train/update", {f"{name}/x:0": X})
            expected, _ = jax.jit(steps[name])(make_state(width), X)
            found = session.run(f"{name}/params/w/Read/ReadVariableOp:0")
            np.testing.assert_allclose(found, expected["params"]["w"], rtol=1e-5)


def test_second_import_into_the_root_keeps_both_programs():
    graph = jm.Graph()
    first, _ = make_program(1.0, 2)
    second, _ = make_program(2.0, 5)
    for source in (first, second):
        jm.import_scoped_meta_graph(jm.export_meta_graph(graph=source), graph=graph)
    assert graph.variable_names[:2] == ("params/w", "step")
    assert "params/w_1" in graph.variable_names
    assert graph.nodes["params/w_1"].attr["shared_name"].s == b"params/w_1"
    assert sorted(graph.signatures) == ["predict", "predict_1", "train", "train_1"]
    assert sorted(graph.state_trees) == ["", "_1"]
    weights = jnp.ones((3, 5))
    with jm.Session(graph) as session:
        session.values.update({"params/w_1": weights, "step_1": jnp.int32(0)})
        found = session.run("predict_1:0", {"x_1:0": X})
    np.testing.assert_array_equal(found, jax.jit(jax.nn.silu)(X @ weights))


def test_scope_of_a_program_is_a_program_again():
    whole, step = make_program(1.0, 2)
    graph, target = jm.Graph(), jm.Graph()
    meta_graph.add_meta_graph(jm.export_meta_graph(graph=whole), graph, import_scope="a")
    (constant,) = [name for name in graph.variable_names if "constant" in name]
    graph.constants[constant] = np.arange(1000.0, dtype=np.float32)
    variables = jm.copy_scoped_meta_graph("a", "b", graph, target)
    assert sorted(variables) == ["params/w:0", "step:0", "train/constant:0"]
    state = make_state(2)
    run = jm.Program(target, {})["b/train"]
    jax.tree.map(np.testing.assert_array_equal, run(state, X), jax.jit(step)(make_state(2), X))


def test_exported_scope_without_its_name_is_the_program_it_was():
    source, _ = make_program(1.0, 2)
    original = jm.export_meta_graph(graph=source)
    graph = jm.Graph()
    meta_graph.add_meta_graph(original, graph, import_scope="a")
    again = jm.export_meta_graph(graph=graph, export_scope="a")
    assert again == original


def test_signature_whose_argument_is_replaced_is_none_any_more():
    source, _ = make_program(1.0, 2)
    graph = jm.Graph()
    (edge,) = graph.add_node(
        "Placeholder", [], {"dtype": np.dtype("float32"), "shape": (4, 3)}, "mine"
    )
    mine = graph.get_tensor_by_name(f"{edge.ref}:0")
    found = meta_graph.add_meta_graph(
        jm.export_meta_graph(graph=source),
        graph,
        input_map={"x:0": mine},
        return_elements=["predict:0"],
    )
    assert not graph.signatures
    weights = jnp.ones((3, 2))
    with jm.Session(graph) as session:
        session.values.update({"params/w": weights, "step": jnp.int32(0)})
        result = session.run(found.return_elements[0], {mine: X})
    np.testing.assert_array_equal(result, jax.jit(jax.nn.silu)(X @ weights))
    assert jm.export_meta_graph(graph=meta_graph.import_graph(jm.export_meta_graph(graph=graph)))


def test_predicate_says_which_collections_are_read():
    source, _ = make_program(1.0, 2)
    graph = jm.Graph()
    seen = []
    jm.import_scoped_meta_graph(
        jm.export_meta_graph(graph=source),
        graph=graph,
        restore_collections_predicate=lambda key: seen.append(key) or key == "hparams",
    )
    assert graph.get_all_collection_keys() == ["hparams"]
    assert set(seen) == {"hparams", "train_op", "trainable_variables", "variables"}
    assert sorted(graph.signatures) == ["predict", "train"]


def test_saver_def_of_an_import_names_the_renamed_nodes():
    source, _ = make_program(1.0, 2)
    graph = jm.Graph()
    written = jm.Saver(source).export_meta_graph()
    found = meta_graph.add_meta_graph(written, graph, import_scope="a")
    assert found.saver_def.save_tensor_name == "a/save/control_dependency:0"
    assert found.saver_def.filename_tensor_name == "a/save/Const:0"
    assert found.saver_def.restore_op_name == "a/save/restore_all"
    assert graph.saver_def == found.saver_def
    # One for all variables is made once there are more of them.
    meta_graph.add_meta_graph(written, graph, import_scope="b")
    assert graph.saver_def is None


def test_devices_are_cleared_on_import_and_on_export():
    proto = meta_graph_pb2.MetaGraphDef()
    proto.graph_def.node.add(name="a", op="NoOp", device="/device:GPU:3")
    graph = meta_graph.import_graph(proto)
    assert jm.export_meta_graph(graph=graph).graph_def.node[0].device == "/device:GPU:3"
    assert not jm.export_meta_graph(graph=graph, clear_devices=True).graph_def.node[0].device
    assert graph.nodes["a"].device == "/device:GPU:3"
    cleared = jm.Graph()
    jm.import_scoped_meta_graph(proto, clear_devices=True, graph=cleared)
    assert not cleared.nodes["a"].device
    assert proto.graph_def.node[0].device == "/device:GPU:3"


# --- what else export takes ----------------------------------------------------------------------


@needs_tf
def test_arguments_stand_in_the_order_of_tensorflow(tensorflow):
    module = importlib.import_module("tensorflow.python.framework.meta_graph")
    pairs = [
        (jm.export_meta_graph, tensorflow.compat.v1.train.export_meta_graph),
        (jm.export_scoped_meta_graph, module.export_scoped_meta_graph),
        (jm.import_scoped_meta_graph, module.import_scoped_meta_graph),
        (jm.copy_scoped_meta_graph, module.copy_scoped_meta_graph),
        (jm.import_graph_def, tensorflow.compat.v1.import_graph_def),
        (jm.write_graph, tensorflow.io.write_graph),
        (jm.extract_sub_graph, tensorflow.compat.v1.graph_util.extract_sub_graph),
        (jm.remove_training_nodes, tensorflow.compat.v1.graph_util.remove_training_nodes),
        (
            jm.convert_variables_to_constants,
            tensorflow.compat.v1.graph_util.convert_variables_to_constants,
        ),
        (jm.register_proto_function, register_proto_function()),
    ]
    for found, expected in pairs:
        wanted = list(inspect.signature(expected).parameters)
        wanted = wanted[:-1] if wanted[-1] == "kwargs" else wanted
        positional = [
            name
            for name, parameter in inspect.signature(found).parameters.items()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        assert positional == wanted, found


def register_proto_function() -> Any:
    return importlib.import_module("tensorflow.python.framework.ops").register_proto_function


@needs_tf
def test_nested_and_recursive_functions_are_in_the_list_of_ops(tensorflow):
    module = importlib.import_module("tensorflow.python.framework.meta_graph")
    text = """
        node { name: "x" op: "Const" } node { name: "y" op: "f" input: "x" }
        library {
          function { signature { name: "f" } node_def { name: "n" op: "g" }
                     node_def { name: "s" op: "Sin" } }
          function { signature { name: "g" } node_def { name: "n" op: "f" }
                     node_def { name: "w" op: "StatelessWhile"
                       attr { key: "body" value { func { name: "h" } } } } }
          function { signature { name: "h" } node_def { name: "n" op: "AddV2" } }
        }
    """
    graph_def = text_format.Parse(text, graph_pb2.GraphDef())
    theirs = tensorflow.compat.v1.GraphDef.FromString(graph_def.SerializeToString())
    expected = [op.name for op in module.stripped_op_list_for_graph(theirs).op]
    found = [op.name for op in meta_graph.stripped_op_list_for_graph(graph_def).op]
    assert set(expected) - {"AddV2"} == set(found) - {"AddV2"}
    assert "AddV2" in found


def test_meta_info_def_is_kept_but_for_versions():
    info = meta_graph_pb2.MetaGraphDef.MetaInfoDef(tags=["serve"], tensorflow_version="0.1")
    info.function_aliases["f"] = "g"
    found = jm.export_meta_graph(meta_info_def=info, graph=jm.Graph()).meta_info_def
    assert list(found.tags) == ["serve"]
    assert dict(found.function_aliases) == {"f": "g"}
    assert found.tensorflow_version == "2.21.0"
    assert info.tensorflow_version == "0.1"


def test_given_graph_def_is_written_instead_of_the_graph():
    graph_def = graph_pb2.GraphDef()
    graph_def.node.add(name="only", op="NoOp")
    source, _ = make_program(1.0, 2)
    found = jm.export_meta_graph(graph_def=graph_def, graph=source, collection_list=["hparams"])
    assert [node.name for node in found.graph_def.node] == ["only"]
    assert [op.name for op in found.meta_info_def.stripped_op_list.op] == ["NoOp"]
    assert list(found.collection_def) == ["hparams"]


@needs_tf
def test_default_attrs_are_taken_off_as_in_tensorflow(tensorflow):
    tf = tensorflow.compat.v1
    with tf.Graph().as_default():
        x = tf.placeholder(tf.float32, [1, 4, 4, 1])
        tf.nn.conv2d(x, tf.ones([2, 2, 1, 1]), strides=[1, 1, 1, 1], padding="SAME")
        tf.raw_ops.MatMul(a=[[1.0]], b=[[1.0]], transpose_a=True)
        kept = tf.train.export_meta_graph()
        stripped = tf.train.export_meta_graph(strip_default_attrs=True)
    graph = meta_graph.import_graph(ours(kept))
    found = jm.export_meta_graph(graph=graph, strip_default_attrs=True)
    for node, expected in zip(found.graph_def.node, stripped.graph_def.node, strict=True):
        assert sorted(node.attr) == sorted(expected.attr)
    unstripped = jm.export_meta_graph(graph=graph)
    for node, expected in zip(unstripped.graph_def.node, kept.graph_def.node, strict=True):
        assert sorted(node.attr) == sorted(expected.attr)


@pytest.mark.parametrize("as_text", [False, True])
def test_debug_info_names_every_node(tmp_path, as_text):
    source, _ = make_program(1.0, 2)
    path = tmp_path / "model.meta"
    jm.export_meta_graph(path, graph=source, as_text=as_text, save_debug_info=True)
    content = (tmp_path / "model.debug").read_bytes()
    info = graph_pb2.GraphDebugInfo()
    if as_text:
        text_format.Parse(content.decode(), info)
    else:
        info.ParseFromString(content)
    assert set(info.traces) == {f"{name}@" for name in source.nodes}


@pytest.mark.parametrize(
    "arguments",
    [{"graph": 3}, {"graph_def": "x"}, {"saver_def": {}}, {"meta_info_def": "x"}],
    ids=lambda arguments: next(iter(arguments)),
)
def test_argument_of_another_kind_is_a_type_error(arguments):
    with pytest.raises(errors.ArgumentTypeError) as caught:
        jm.export_meta_graph(**arguments)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("given", [None, 3, graph_pb2.GraphDef()])
def test_import_of_what_is_no_file_is_a_type_error(given):
    with pytest.raises(errors.ArgumentTypeError):
        jm.import_scoped_meta_graph(given)


def test_missing_and_damaged_files_are_os_errors(tmp_path):
    with pytest.raises(OSError, match="no such file"):
        jm.read_meta_graph_file(tmp_path / "lost.meta")
    with pytest.raises(OSError, match="no such file"):
        jm.read_meta_graph_file("a\0b")
    (tmp_path / "bad.meta").write_bytes(b"\xff\xfe not a graph")
    with pytest.raises(OSError, match="cannot be parsed"):
        jm.read_meta_graph_file(tmp_path / "bad.meta")


@pytest.mark.parametrize(
    ("attr", "value"),
    [
        ("_jax_updates", {"list": {"i": [0]}}),
        ("_jax_updates", {"list": {"i": [7, 0]}}),
        ("_jax_updates", {"list": {"i": [0, 7]}}),
        ("_jax_train_op", {"s": b"lost"}),
        ("_jax_function_name", {"i": 3}),
        ("_jax_function_name", {"s": b"\xff"}),
        ("_jax_signature", {"s": b"\xff"}),
        ("_jax_donated", {"list": {"b": [True]}}),
    ],
    ids=str,
)
@pytest.mark.parametrize("scope", [None, "a"])
def test_signature_with_other_facts_than_its_trees_is_refused(attr, value, scope):
    source, _ = make_program(1.0, 2)
    proto = jm.export_meta_graph(graph=source)
    (call,) = [node for node in proto.graph_def.node if node.name == "train"]
    call.attr[attr].CopyFrom(graph_pb2.AttrValue(**value))
    with pytest.raises(errors.FormatError):
        jm.import_scoped_meta_graph(proto, graph=jm.Graph(), import_scope=scope)


@pytest.mark.parametrize("scope", ["/etc", "a b", "_a", "a\0b", 3])
def test_scope_that_is_no_name_is_refused(scope):
    proto = jm.export_meta_graph(graph=make_program(1.0, 2)[0])
    with pytest.raises(errors.JaxmetaError):
        jm.import_scoped_meta_graph(proto, graph=jm.Graph(), import_scope=scope)


def test_graph_of_two_imports_is_saved_and_loaded_as_one_program(both, tmp_path):
    graph, held, steps = both
    graph.constants.update({k: np.asarray(v) for k, v in held.items() if "constant" in k})
    state = {name: make_state(width) for name, (_, width) in PROGRAMS.items()}
    with jm.Saver(graph) as writer:
        prefix = writer.save(state, tmp_path / "both", global_step=2)
    run = jm.load(prefix)
    found = run.state
    jax.tree.map(np.testing.assert_array_equal, found, state)
    for name in PROGRAMS:
        expected = jax.jit(steps[name])(state[name], X)
        result = run[f"{name}/train"](found[name], X)
        jax.tree.map(np.testing.assert_array_equal, result, expected)


def test_loaded_program_under_a_scope_is_differentiated_as_the_original():
    source, _ = make_program(1.0, 2)
    graph = jm.Graph()
    meta_graph.add_meta_graph(jm.export_meta_graph(graph=source), graph, import_scope="a")
    predict = jm.Program(graph, {})["a/predict"]
    state = make_state(2)
    found = jax.grad(lambda x: predict(state, x).sum())(jnp.asarray(X))
    expected = jax.grad(lambda x: jax.nn.silu(x @ state["params"]["w"]).sum())(jnp.asarray(X))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# --- more of TensorFlow's own tests --------------------------------------------------------------


@needs_tf
def test_queues_of_a_scope_keep_their_runners(tensorflow):
    tf = tensorflow.compat.v1
    with tf.Graph().as_default() as theirs:
        with tf.name_scope("queue1"):
            queue = tf.FIFOQueue(10, tf.float32, name="input")
            enqueue = queue.enqueue([2.0], name="enqueue")
            close = queue.close(name="close")
            cancel = queue.close(cancel_pending_enqueues=True, name="cancel")
            tf.train.add_queue_runner(tf.train.QueueRunner(queue, [enqueue], close, cancel))
        with tf.name_scope("other"):
            extra = tf.FIFOQueue(10, tf.float32, name="input")
            tf.train.add_queue_runner(tf.train.QueueRunner(extra, [extra.enqueue([1.0])]))
        whole = tf.train.export_meta_graph()
    expected = tensorflow_export(tf, theirs, export_scope="queue1")
    graph = meta_graph.import_graph(ours(whole))
    found = jm.export_meta_graph(graph=graph, export_scope="queue1")
    assert described(found) == described(expected)
    target = jm.Graph()
    for scope in ("new", "new"):
        jm.import_scoped_meta_graph(found, graph=target, import_scope=scope)
    theirs_target = tf.Graph()
    for scope in ("new", "new"):
        tensorflow_import(tensorflow, expected, theirs_target, import_scope=scope)
    names = [
        [(q.name, [op.name for op in q.enqueue_ops], q.close_op.name, q.cancel_op.name)]
        for q in theirs_target.get_collection("queue_runners")
    ]
    runners = jm.export_meta_graph(graph=target).collection_def["queue_runners"]
    protos = [meta_graph_pb2.QueueRunnerDef.FromString(value) for value in runners.bytes_list.value]
    assert [
        [(p.queue_name, list(p.enqueue_op_name), p.close_op_name, p.cancel_op_name)] for p in protos
    ] == names


@needs_tf
def test_names_that_only_begin_alike_make_no_cycle(tensorflow):
    tf = tensorflow.compat.v1
    with tf.Graph().as_default() as theirs:
        a = tf.constant(1.0, shape=[2, 2])
        product = tf.matmul(a, tf.constant(2.0, shape=[2, 2]))
        with tf.name_scope("hidden1"):
            hidden = tf.tanh(product)
            product = tf.matmul(hidden, tf.constant(3.0, shape=[2, 2]))
        with tf.name_scope("hidden2"):
            tf.tanh(product)
    proto = ours(tensorflow_export(tf, theirs, export_scope="hidden1"))
    graph = jm.Graph()
    with pytest.raises(errors.GraphError, match="Graph contains unbound inputs"):
        jm.import_scoped_meta_graph(proto, graph=graph, import_scope="hidden1")
    _, (found,) = meta_graph.import_scoped_meta_graph_with_return_elements(
        proto,
        graph=graph,
        import_scope="hidden1",
        input_map={"$unbound_inputs_MatMul": np.full((2, 2), 4.0, np.float32)},
        return_elements=["MatMul:0"],
    )
    assert found.name == "hidden1/MatMul:0"
    with jm.Session(graph=graph) as session:
        np.testing.assert_allclose(
            session.run(found), np.full((2, 2), 6 * np.tanh(np.float32(4))), rtol=1e-6
        )


@needs_tf
def test_graph_without_variables_is_extended(tensorflow):
    tf = tensorflow.compat.v1
    with tf.Graph().as_default():
        tf.add_to_collection("feeds", tf.placeholder(tf.float32, [2], name="x"))
        tf.add_to_collection(
            "logits", tf.identity(tf.get_default_graph().get_tensor_by_name("x:0"))
        )
        saved = tf.train.export_meta_graph(collection_list=["feeds", "logits"])
    with jm.Graph().as_default() as graph:
        assert jm.import_scoped_meta_graph(ours(saved)) == {}
        (logits,), (feed,) = jm.get_collection("logits"), jm.get_collection("feeds")
        graph.add_signature("double", lambda value: value * 2, logits)
        with jm.Session() as session:
            found = session.run("double:0", {feed: np.array([1, 2], np.float32)})
    np.testing.assert_array_equal(found, [2, 4])
