"""The graph by itself: nodes, attrs, handles, functions, collections."""

from __future__ import annotations

import numpy as np
import pytest

import jaxmeta
from jaxmeta import dtypes, errors, values
from jaxmeta._proto import graph_pb2
from jaxmeta.graphs.graph import GraphBuilder
from jaxmeta.graphs.nodes import Edge, FunctionBody

F32 = np.dtype("float32")


def index_nodes(nodes):
    return {node.name: node for node in nodes}


@pytest.fixture
def graph() -> GraphBuilder:
    """x -> Tanh -> Split into 3, and a node that only orders."""
    graph = GraphBuilder()
    (x,) = graph.add_node("Placeholder", [], {"dtype": F32, "shape": (6, None)}, "x")
    (y,) = graph.add_node("Tanh", [x], {}, "y")
    (axis,) = graph.add_node(
        "Const", [], {"dtype": np.dtype("int32"), "value": np.int32(0)}, "axis"
    )
    graph.add_node("Split", [axis, y], {"num_split": 3}, "parts")
    graph.add_node("NoOp", [], {}, "group", control_inputs=["y"])
    return graph


# --- nodes ---------------------------------------------------------------------------------------


def test_node_has_the_attrs_that_its_inputs_restate(graph):
    node = graph.node("parts")
    assert list(node.input) == ["axis", "y"]
    assert node.attr["T"].type == 1
    assert node.attr["num_split"].i == 3


def test_outputs_after_the_first_have_numbers(graph):
    (axis,) = [Edge("axis", 3)]
    edges = graph.add_node("Split", [axis, Edge("y", 1)], {"num_split": 2}, "halves")
    assert [edge.ref for edge in edges] == ["halves", "halves:1"]
    assert [edge.number for edge in edges] == [1, 1]


def test_list_of_inputs_gives_its_length_or_its_types():
    graph = GraphBuilder()
    x, y = (graph.add_node("Placeholder", [], {"dtype": F32}, name)[0] for name in "xy")
    graph.add_node("AddN", [[x, y]], {}, "sum")
    assert graph.node("sum").attr["N"].i == 2
    assert graph.node("sum").attr["T"].type == 1
    (names,) = graph.add_node("Placeholder", [], {"dtype": np.dtype(object)}, "names")
    graph.add_node("SaveV2", [names, names, names, [x, y]], {}, "save")
    assert list(graph.node("save").attr["dtypes"].list.type) == [1, 1]
    assert list(graph.node("save").input) == ["names", "names", "names", "x", "y"]


def test_control_inputs_follow_the_others(graph):
    graph.add_node("Tanh", [Edge("x", 1)], {}, "late", control_inputs=["y", "group"])
    assert list(graph.node("late").input) == ["x", "^y", "^group"]


def test_name_is_that_of_the_op_where_none_is_given(graph):
    graph.add_node("Tanh", [Edge("x", 1)], {})
    graph.add_node("Tanh", [Edge("x", 1)], {})
    assert list(graph.nodes)[-2:] == ["Tanh", "Tanh_1"]


def test_own_attrs_may_be_given_to_any_node(graph):
    graph.add_node("NoOp", [], {"_jax_note": "text", "_class": ("loc:@x",)}, "noted")
    assert graph.node("noted").attr["_jax_note"].s == b"text"


def test_attr_that_the_op_has_not_is_refused(graph):
    with pytest.raises(errors.AttrError, match=r"node 'z' \(Tanh\): the op has no attr 'axis'"):
        graph.add_node("Tanh", [Edge("x", 1)], {"axis": 1}, "z")
    assert "z" not in graph.nodes


@pytest.mark.parametrize("count", [0, 2])
def test_another_number_of_inputs_is_refused(graph, count):
    with pytest.raises(errors.GraphError, match=f"takes 1 inputs, it was given {count}"):
        graph.add_node("Tanh", [Edge("x", 1)] * count, {}, "z")
    assert "z" not in graph.nodes


def test_op_that_is_unknown_is_refused_with_the_closest_names():
    with pytest.raises(errors.UnsupportedOpError, match=r"closest: MatMul|closest: .*MatMul"):
        GraphBuilder().add_node("Matmul", [], {})


# --- handles -------------------------------------------------------------------------------------


def test_tensor_by_name(graph):
    tensor = graph.get_tensor_by_name("parts:2")
    assert (tensor.name, tensor.index, tensor.dtype) == ("parts:2", 2, F32)
    assert tensor.op.name == "parts"
    assert graph.get_tensor_by_name("x:0").shape == (6, None)
    assert graph.get_tensor_by_name("y:0").shape is None
    assert tensor == graph.get_tensor_by_name("parts:2")
    assert hash(tensor) == hash(graph.get_tensor_by_name("parts:2"))
    assert repr(graph.get_tensor_by_name("x:0")) == (
        "<jaxmeta.Tensor 'x:0' shape=(6, None) dtype=float32>"
    )


def test_operation_by_name(graph):
    operation = graph.get_operation_by_name("parts")
    assert (operation.name, operation.type) == ("parts", "Split")
    assert [tensor.name for tensor in operation.outputs] == ["parts:0", "parts:1", "parts:2"]
    assert graph.get_operation_by_name("group").outputs == []
    assert repr(operation) == "<jaxmeta.Operation 'parts' type=Split>"
    assert operation.node_def is graph.nodes["parts"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("parts", "'parts' is not a tensor's name; these end in ':0', ':1', ..."),
        ("parts:3", "'parts:3': the operation has 3 outputs"),
        ("group:0", "'group:0': the operation has 0 outputs"),
        ("lost:0", "the graph has no node named 'lost'"),
        ("parts:output:0", "'parts:output:0' is not a tensor's name; these end in ':0', ':1', ..."),
    ],
)
def test_tensor_that_is_not_there(graph, name, message):
    with pytest.raises(errors.GraphError) as caught:
        graph.get_tensor_by_name(name)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["-1", "x:-1"])
def test_output_of_a_negative_number_is_refused(graph, name):
    with pytest.raises(errors.GraphError):
        graph.get_tensor_by_name(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x:0", "'x:0' is a tensor's name; an operation's has no ':'"),
        ("lost", "the graph has no node named 'lost'"),
    ],
)
def test_operation_that_is_not_there(graph, name, message):
    with pytest.raises(errors.GraphError) as caught:
        graph.get_operation_by_name(name)
    assert str(caught.value) == message


def test_variable_handle():
    graph = jaxmeta.Graph()
    variable = graph.variables({"w": np.ones((2, 3), np.float32)})["w"]
    assert variable.name == "w:0"
    assert variable.snapshot_name == "w/Read/ReadVariableOp:0"
    assert variable.initializer_name == "w/Assign"
    assert repr(variable) == "<jaxmeta.Variable 'w:0' shape=(2, 3) dtype=float32>"
    for name in (variable.snapshot_name, variable.name):
        assert graph.get_tensor_by_name(name).name == name
    with pytest.raises(errors.GraphError, match="the graph has no variable named 'b'"):
        graph.variable("b")


# --- functions -----------------------------------------------------------------------------------


def double() -> graph_pb2.FunctionDef:
    body = FunctionBody("double", {})
    x = body.add_argument("x", dtypes.dtype_to_number(F32), (3,))
    (y,) = body.add_node("AddV2", [x, x], {})
    return body.finish([y])


def test_function_is_called_by_its_name():
    graph = GraphBuilder()
    graph.add_function(double())
    (x,) = graph.add_node("Placeholder", [], {"dtype": F32}, "x")
    (y,) = graph.add_node("double", [x], {}, "y")
    assert (y.ref, y.number) == ("y", 1)
    assert graph.node("y").op == "double"


def test_inputs_within_a_function_name_the_argument_of_the_output():
    function = double()
    assert list(function.node_def[0].input) == ["x", "x"]
    assert dict(function.ret) == {"output_0": "AddV2:z:0"}
    assert [argument.name for argument in function.signature.input_arg] == ["x"]


def test_function_name_that_is_taken_is_refused():
    graph = GraphBuilder()
    graph.add_function(double())
    with pytest.raises(errors.GraphError, match="the library has a function named 'double'"):
        graph.add_function(double())
    assert graph.unique_function_name("double") == "double_1"


@pytest.mark.parametrize("name", ["MatMul", "Const"])
def test_function_never_has_the_name_of_an_op(name):
    unique = GraphBuilder().unique_function_name(name)
    assert unique != name
    assert unique.startswith(name)


# --- nodes that are there already ----------------------------------------------------------------


def test_names_of_added_nodes_are_taken():
    graph = GraphBuilder()
    graph.add_node_defs(index_nodes([graph_pb2.NodeDef(name="scope/a", op="NoOp")]))
    graph.add_node("NoOp", [], {}, "scope/a")
    graph.add_node("NoOp", [], {}, "scope/A")
    assert list(graph.nodes) == ["scope/a", "scope/a_1", "scope/A_2"]


def test_nodes_whose_names_are_taken_are_refused_and_named(graph):
    added = index_nodes([graph_pb2.NodeDef(name=name, op="NoOp") for name in ("z", "y", "x")])
    with pytest.raises(errors.GraphError) as caught:
        graph.add_node_defs(added)
    assert str(caught.value) == "these nodes are not unique:\n  x\n  y"
    assert "z" not in graph.nodes


def test_graph_def_has_what_the_graph_has(graph):
    graph.add_function(double())
    proto = graph.as_graph_def()
    assert [node.name for node in proto.node] == ["x", "y", "axis", "parts", "group"]
    assert [function.signature.name for function in proto.library.function] == ["double"]
    proto.node[0].name = "changed"  # a copy
    assert "x" in graph.nodes
    assert graph.nodes["x"].name == "x"


@pytest.mark.needs_tf
def test_graph_def_is_imported_by_tensorflow(graph, tensorflow):
    theirs = tensorflow.compat.v1.GraphDef.FromString(graph.as_graph_def().SerializeToString())
    with tensorflow.Graph().as_default() as imported, tensorflow.compat.v1.Session() as session:
        tensorflow.import_graph_def(theirs, name="")
        found = session.run("parts:1", {"x:0": np.ones((6, 2), np.float32)})
    np.testing.assert_allclose(found, np.tanh(np.ones((2, 2))), rtol=1e-6)
    assert imported.get_tensor_by_name("x:0").shape.as_list() == [6, None]


# --- collections ---------------------------------------------------------------------------------


def test_collections_keep_their_order_and_are_copied(graph):
    graph.add_to_collection("losses", 2)
    graph.add_to_collection("losses", 1)
    found = graph.get_collection("losses")
    assert found == [2, 1]
    found.clear()
    assert graph.get_collection("losses") == [2, 1]
    assert graph.get_collection("nothing") == []
    assert graph.get_all_collection_keys() == ["losses"]


def test_shape_of_an_output_is_what_the_node_records():
    graph = GraphBuilder()
    graph.add_node("Placeholder", [], {"dtype": F32, "shape": None}, "unknown")
    assert graph.get_tensor_by_name("unknown:0").shape is None
    node = graph_pb2.NodeDef(name="y", op="Tanh", input=["unknown"])
    node.attr["T"].type = 1
    values.write_attr(node.attr["_output_shapes"], [(2, None)], "list(shape)")
    graph.add_node_defs(index_nodes([node]))
    assert graph.get_tensor_by_name("y:0").shape == (2, None)
