"""The nodes of a saver are those that ``tf.train.Saver`` adds, one by one."""

from __future__ import annotations

import pytest

import jaxmeta as jm
from jaxmeta import errors, op_defs
from jaxmeta._proto import graph_pb2, meta_graph_pb2
from jaxmeta.graphs.nodes import Edge
from jaxmeta.meta_graphs import meta_graph
from jaxmeta.saving import saver_nodes

pytestmark = pytest.mark.needs_tf

# What TensorFlow notes for itself, and what it infers.
NOTES = ("_has_manual_control_dependencies", "_output_shapes")


def resource_variables(tf):
    for name, shape in (("b", [2, 3]), ("a", []), ("layer/w", [4])):
        tf.get_variable(name, shape, use_resource=True)


def reference_variables(tf):
    tf.get_variable("b", [2, 3], use_resource=False)
    tf.get_variable("text", dtype=tf.string, initializer=tf.constant(["a"]), use_resource=False)


def partitioned_variables(tf):
    for name, use_resource in (("p", True), ("r", False)):
        cut = tf.fixed_size_partitioner(3)
        tf.get_variable(name, [10, 3], partitioner=cut, use_resource=use_resource)
    tf.get_variable("q", [2], use_resource=True)


def variables_on_devices(tf):
    with tf.device("/cpu:0"):
        tf.get_variable("p", [4, 2], use_resource=True)
    with tf.device("/job:ps/task:1/cpu:1"):
        tf.get_variable("q", [2], use_resource=False)
        tf.get_variable("s", [2], use_resource=True, partitioner=tf.fixed_size_partitioner(2))
    tf.get_variable("r", [2], use_resource=False)


def two_savers(tf):
    resource_variables(tf)
    tf.train.Saver()


BUILDERS = [
    resource_variables,
    reference_variables,
    partitioned_variables,
    variables_on_devices,
    two_savers,
]
OPTIONS = [
    {},
    {"reshape": True},
    {"sharded": True},
    {"name": "keep"},
    {"name": "outer/keep/"},
    {"filename": "elsewhere"},
    {"sharded": True, "reshape": True, "max_to_keep": 0, "keep_checkpoint_every_n_hours": 2.5},
]


@pytest.fixture
def graphs(request, tensorflow):
    """The same graph twice: TensorFlow's, and ours."""
    tf = tensorflow.compat.v1
    with tensorflow.Graph().as_default():
        request.param(tf)
        exported = tf.train.export_meta_graph()
    exported.saver_def.restore_op_name = exported.saver_def.save_tensor_name = "none"
    with tensorflow.Graph().as_default() as theirs:  # imported too: that takes fewer names
        tf.train.import_meta_graph(exported)
    exported.ClearField("saver_def")
    content = exported.SerializeToString()
    ours = jm.Graph()
    meta_graph.import_graph(meta_graph_pb2.MetaGraphDef.FromString(content), ours)
    return theirs, ours


def described(node):
    """Returns a node as text, with the defaults of its attrs and without TensorFlow's notes."""
    full = graph_pb2.NodeDef.FromString(node.SerializeToString())
    for attr in op_defs.get_op_def(full.op).attr:
        if attr.name not in full.attr and attr.HasField("default_value"):
            full.attr[attr.name].CopyFrom(attr.default_value)
    for attr in full.attr.values():
        if attr.HasField("tensor"):
            attr.tensor.tensor_shape.SetInParent()  # of a scalar, absent and empty are the same
    for name in NOTES:
        full.attr.pop(name, None)
    return str(full)


def added(graph, before):
    return [described(node) for node in graph.as_graph_def().node if node.name not in before]


@pytest.mark.parametrize("graphs", BUILDERS, indirect=True)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_nodes_and_saver_def_are_tensorflows(tensorflow, graphs, options):
    theirs, ours = graphs
    before = {node.name for node in theirs.as_graph_def().node}
    assert before == set(ours.nodes)
    with theirs.as_default():
        expected = tensorflow.compat.v1.train.Saver(**options)
        with ours.as_default():
            saver = jm.Saver(**options)
        assert added(ours, before) == added(theirs, before)
    assert str(saver.as_saver_def()) == str(expected.as_saver_def())


@pytest.mark.parametrize("graphs", [resource_variables], indirect=True)
def test_named_variables_and_a_name_scope_give_tensorflows_nodes(tensorflow, graphs):
    theirs, ours = graphs
    before = set(ours.nodes)
    with theirs.as_default(), tensorflow.name_scope("outer"):
        variables = {v.op.name: v for v in tensorflow.compat.v1.global_variables()}
        named = {"z": variables["a"], "y": variables["layer/w"]}
        expected = tensorflow.compat.v1.train.Saver(named)
    with ours.as_default(), jm.name_scope("outer"):
        saver = jm.Saver({"z": ours.variable("a"), "y": ours.variable("layer/w")})
    with theirs.as_default():
        assert added(ours, before) == added(theirs, before)
    assert str(saver.as_saver_def()) == str(expected.as_saver_def())


@pytest.mark.parametrize("graphs", BUILDERS, indirect=True)
@pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
def test_what_is_saved_is_read_from_the_nodes(graphs, options):
    _, ours = graphs
    saver = jm.Saver(graph=ours, **options)
    found = saver_nodes.read_saver_nodes(ours, saver.as_saver_def())
    expected = saver._saveables
    assert sorted(map(str, found)) == sorted(map(str, expected))


@pytest.mark.parametrize("graphs", [resource_variables], indirect=True)
def test_a_saver_def_of_other_nodes_is_refused(graphs):
    _, ours = graphs
    saver_def = jm.SaverDef(save_tensor_name="a:0", restore_op_name="restore")
    ours.add_node("AssignVariableOp", [Edge("a", 20), Edge("a/Read/ReadVariableOp", 1)], {}, "set")
    ours.add_node("NoOp", [], {}, "restore", ["set"])
    with pytest.raises(errors.FormatError):
        jm.Saver(saver_def=saver_def, graph=ours)
    saver_def.restore_op_name = "nothing"
    with pytest.raises(errors.GraphError, match="nothing"):
        jm.Saver(saver_def=saver_def, graph=ours)
    saver_def.restore_op_name = ""
    with pytest.raises(errors.CheckpointError, match="must specify the restore_op_name"):
        jm.Saver(saver_def=saver_def, graph=ours)
