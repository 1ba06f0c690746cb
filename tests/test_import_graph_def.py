"""GraphDefs into graphs: names, inputs and errors as TensorFlow's `import_graph_def` has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from google.protobuf import text_format

import jaxmeta as jm
from jaxmeta import errors
from jaxmeta._proto import graph_pb2
from jaxmeta.meta_graphs import meta_graph

GraphDef = graph_pb2.GraphDef


def parse(text: str) -> GraphDef:
    return text_format.Parse(text, GraphDef())


def constant(graph_def: GraphDef, name: str, value: float = 1.0) -> None:
    node = graph_def.node.add(name=name, op="Const")
    node.attr["dtype"].type = graph_pb2.DT_FLOAT
    node.attr["value"].tensor.dtype = graph_pb2.DT_FLOAT
    node.attr["value"].tensor.tensor_shape.SetInParent()
    node.attr["value"].tensor.float_val.append(value)


def unary(graph_def: GraphDef, name: str, *inputs: str, op: str = "Identity") -> Any:
    node = graph_def.node.add(name=name, op=op, input=inputs)
    node.attr["T"].type = graph_pb2.DT_FLOAT
    return node


def small() -> GraphDef:
    """A node that comes before its input, a chain, and a node apart."""
    graph_def = GraphDef()
    unary(graph_def, "i", "z")
    constant(graph_def, "q")
    constant(graph_def, "z", 3.0)
    unary(graph_def, "j", "i")
    constant(graph_def, "b")
    return graph_def


# --- names ---------------------------------------------------------------------------------------


def described(graph: jm.Graph) -> set[Any]:
    return {
        (
            name,
            tuple(node.input),
            tuple(node.attr["_class"].list.s if "_class" in node.attr else ()),
        )
        for name, node in graph.nodes.items()
    }


def described_by_tensorflow(graph: Any) -> set[Any]:
    return {
        (
            node.name,
            tuple(node.input),
            tuple(node.attr["_class"].list.s if "_class" in node.attr else ()),
        )
        for node in graph.as_graph_def().node
    }


def random_graph_def(rng: np.random.Generator, pool: list[str]) -> GraphDef:
    graph_def = GraphDef()
    names = [pool[i] for i in rng.permutation(len(pool))[: rng.integers(1, len(pool) + 1)]]
    for index, name in enumerate(names):
        if index == 0 or rng.random() < 0.4:
            constant(graph_def, name)
            continue
        controls = [f"^{names[rng.integers(index)]}"] * int(rng.random() < 0.4)
        node = unary(graph_def, name, names[rng.integers(index)], *controls)
        if rng.random() < 0.5:
            place = names[rng.integers(index)]
            node.attr["_class"].list.s.append(f"loc:@{place}".encode())
    return graph_def


NAMES = ["a", "A", "a/b", "a/b/c", "s", "s/a", "x", "x_1", "a_1", "import/a", "import"]
PLAIN = [name for name in NAMES if not name.endswith("_1")]


@pytest.mark.needs_tf
@pytest.mark.parametrize("seed", range(12))
def test_names_inputs_and_places_are_those_of_tensorflow(seed, tensorflow):
    tf = tensorflow.compat.v1
    rng = np.random.default_rng(seed)
    scopes = ["", None, "s", "x", "a", "s/a", "a/", "new/"]
    with jm.Graph().as_default() as ours, tf.Graph().as_default() as theirs:
        for _ in range(5):
            scope = scopes[rng.integers(len(scopes))]
            # TensorFlow gives two nodes one name where a scope is entered again and the
            # GraphDef has both a name and that name with _1.
            pool = PLAIN if scope and scope.endswith("/") else NAMES
            graph_def = random_graph_def(rng, pool)
            jm.import_graph_def(graph_def, name=scope)
            tf.import_graph_def(tf.GraphDef.FromString(graph_def.SerializeToString()), name=scope)
            assert described(ours) == described_by_tensorflow(theirs)
        # Names that are made afterwards know those that were imported.
        for name in PLAIN:
            (edge,) = ours.add_node("Placeholder", [], {"dtype": np.dtype("float32")}, name)
            assert edge.ref == tf.placeholder("float32", name=name).op.name


def test_no_two_nodes_get_one_name_where_tensorflow_would_do_so():
    first, second = GraphDef(), GraphDef()
    constant(first, "a")
    constant(second, "a")
    constant(second, "a_1")
    with jm.Graph().as_default() as graph:
        jm.import_graph_def(first, name="x/")
        jm.import_graph_def(second, name="x/")
    assert list(graph.nodes) == ["x/a", "x/a_2", "x/a_1"]


@pytest.mark.needs_tf
@pytest.mark.parametrize("name", ["", None, "deep", "deep/"])
def test_current_scope_is_where_tensorflow_puts_it(name, tensorflow):
    tf = tensorflow.compat.v1
    graph_def = small()
    theirs_def = tf.GraphDef.FromString(graph_def.SerializeToString())
    with jm.Graph().as_default() as ours, jm.name_scope("outer"):
        jm.import_graph_def(graph_def, name=name)
    with tf.Graph().as_default() as theirs, tf.name_scope("outer"):
        tf.import_graph_def(theirs_def, name=name)
    assert described(ours) == described_by_tensorflow(theirs)


@pytest.mark.needs_tf
def test_versions_are_those_that_hold_for_all_that_was_imported(tensorflow):
    tf = tensorflow.compat.v1
    with jm.Graph().as_default() as ours, tf.Graph().as_default() as theirs:
        for text in ("producer: 21", "producer: 30 min_consumer: 12", "bad_consumers: [3, 7]"):
            graph_def = small()
            text_format.Parse(text, graph_def.versions)
            jm.import_graph_def(graph_def)
            tf.import_graph_def(tf.GraphDef.FromString(graph_def.SerializeToString()))
        expected = theirs.as_graph_def().versions.SerializeToString()
    assert ours.as_graph_def().versions.SerializeToString() == expected


def test_two_loops_of_one_name_stay_two_loops():
    graph_def = parse(
        """
        node { name: "c" op: "Const" attr { key: "dtype" value { type: DT_FLOAT } }
               attr { key: "value" value { tensor { dtype: DT_FLOAT float_val: 1
                      tensor_shape {} } } } }
        node { name: "e" op: "Enter" input: "c" attr { key: "T" value { type: DT_FLOAT } }
               attr { key: "frame_name" value { s: "loop" } } }
        """
    )
    with jm.Graph().as_default() as graph:
        for name in ("", "", "a"):
            jm.import_graph_def(graph_def, name=name)
    frames = [node.attr["frame_name"].s for node in graph.nodes.values() if node.op == "Enter"]
    assert frames == [b"loop", b"loop_1", b"a/loop"]


# --- inputs and what is returned -----------------------------------------------------------------


@pytest.mark.needs_tf
@pytest.mark.parametrize("key", ["z", "z:0", b"z", b"z:0"])
def test_mapped_input_is_used_under_any_form_of_its_name(key, tensorflow):
    tf = tensorflow.compat.v1
    with jm.Graph().as_default() as graph:
        (edge,) = graph.add_node("Placeholder", [], {"dtype": np.dtype("float32")}, "fed")
        tensor = graph.get_tensor_by_name(f"{edge.ref}:0")
        result = jm.import_graph_def(
            small(), input_map={key: tensor}, return_elements=["j:0", "j", "z:0", "z"]
        )
    with tf.Graph().as_default():
        fed = tf.placeholder("float32", name="fed")
        expected = tf.import_graph_def(
            tf.GraphDef.FromString(small().SerializeToString()),
            input_map={key: fed},
            return_elements=["j:0", "j", "z:0", "z"],
        )
    assert [item.name for item in result] == [item.name for item in expected]
    assert list(graph.nodes["import/i"].input) == ["fed"]
    with jm.Session(graph) as session:
        assert session.run(result[0], {tensor: np.float32(7)}) == 7


def test_input_map_takes_arrays_variables_and_operations():
    graph_def = small()
    unary(graph_def, "last", "z", "^q")
    with jm.Graph().as_default() as graph:
        held = graph.variables({"w": jnp.ones(())})["w"]
        graph.add_node("NoOp", [], {}, "first")
        mapping = {"i": held, "z": 5.0, "^q": graph.get_operation_by_name("first")}
        j, last = jm.import_graph_def(graph_def, mapping, ["j:0", "last:0"])
    assert list(graph.nodes["import/j"].input) == ["w/Read/ReadVariableOp"]
    assert list(graph.nodes["import/last"].input) == ["import/_inputs/Const", "^first"]
    with jm.Session(graph) as session:
        session.set_state({"w": jnp.float32(2)})
        assert list(session.run([j, last])) == [2, 5]


def test_missing_input_may_be_mapped():
    graph_def = GraphDef()
    unary(graph_def, "i", "$unbound_inputs_x")
    with jm.Graph().as_default():
        (i,) = jm.import_graph_def(graph_def, {"$unbound_inputs_x": 4.0}, ["i:0"])
        with jm.Session() as session:
            assert session.run(i) == 4


def test_recorded_shapes_do_not_outlive_the_input_they_came_from():
    graph_def = small()
    for node in graph_def.node:
        node.attr["_output_shapes"].list.shape.add()
    with jm.Graph().as_default() as graph:
        jm.import_graph_def(graph_def, {"z": np.ones(3, np.float32)})
    shaped = {name for name, node in graph.nodes.items() if "_output_shapes" in node.attr}
    assert shaped == {"import/q", "import/z", "import/b"}


def test_nothing_is_returned_where_nothing_is_asked_for():
    with jm.Graph().as_default():
        assert jm.import_graph_def(small()) is None
        assert jm.import_graph_def(small(), return_elements=[]) == []


def test_import_leaves_the_graph_def_as_it_was():
    graph_def = small()
    before = graph_def.SerializeToString(deterministic=True)
    with jm.Graph().as_default():
        for name in ("", "", "a"):
            jm.import_graph_def(graph_def, {"z": 1.0} if name else None, name=name)
    assert graph_def.SerializeToString(deterministic=True) == before


def test_attrs_that_only_the_producer_knew_are_left_out():
    producer = graph_pb2.OpList()
    producer.op.add(name="Identity").attr.add(name="extra", type="int").default_value.i = 4
    kept = {}
    for value in (4, 5):
        graph_def = small()
        graph_def.node[0].attr["extra"].i = value
        with jm.Graph().as_default() as graph:
            jm.import_graph_def(graph_def, producer_op_list=producer)
        kept[value] = "extra" in graph.nodes["import/i"].attr
    assert kept == {4: False, 5: True}


# --- functions -----------------------------------------------------------------------------------


def calling(scale: float) -> GraphDef:
    """A graph whose function f calls g, which multiplies; g has f's name for its gradient."""
    graph = jm.Graph()

    @jax.custom_vjp
    def f(x):
        return x * scale

    f.defvjp(lambda x: (f(x), None), lambda _, g: (g * scale * 10,))
    graph.add_signature("run", lambda x: jax.jit(f)(x) + 1, jnp.ones(3))
    return graph.as_graph_def()


def test_equal_functions_are_shared():
    with jm.Graph().as_default() as graph:
        jm.import_graph_def(calling(2.0), name="a")
        count = len(graph.functions)
        jm.import_graph_def(calling(2.0), name="b")
    assert len(graph.functions) == count
    assert graph.nodes["a/run"].attr["f"] == graph.nodes["b/run"].attr["f"]


def test_different_functions_of_one_name_are_renamed_wherever_they_are_named():
    x = np.linspace(-1, 1, 3, dtype=np.float32)
    with jm.Graph().as_default() as graph:
        for scale, name in ((2.0, "a"), (3.0, "b"), (2.0, "c")):
            jm.import_graph_def(calling(scale), name=name)
        assert graph.nodes["a/run"].attr["f"] == graph.nodes["c/run"].attr["f"]
        known = set(graph.functions)
        for function in graph.functions.values():
            for node in function.node_def:
                for attr in ("_jax_fwd", "_jax_bwd"):
                    if attr in node.attr:
                        value = node.attr[attr]
                        assert (value.func.name or value.s.decode()) in known
        with jm.Session() as session:
            for scale, name in ((2.0, "a"), (3.0, "b")):
                result = session.run(f"{name}/run:0", {f"{name}/x:0": x})
                np.testing.assert_allclose(result, x * scale + 1)


@pytest.mark.parametrize("scale", [2.0, 3.0])
def test_derivative_rules_follow_their_renamed_functions(scale):
    def saved(scale: float) -> Any:
        graph = jm.Graph()

        @jax.custom_jvp
        def f(x):
            return x * scale

        f.defjvp(lambda primals, tangents: (f(*primals), tangents[0] * scale * 10))
        graph.add_signature("run", lambda x: f(x).sum(), jnp.ones(3))
        return jm.export_meta_graph(graph=graph)

    graph = jm.Graph()
    meta_graph.add_meta_graph(saved(5.0), graph, import_scope="other")
    meta_graph.add_meta_graph(saved(scale), graph, import_scope="a")
    run = jm.Program(graph, {})["a/run"]
    np.testing.assert_allclose(jax.grad(run)(jnp.ones(3)), np.full(3, scale * 10))


@pytest.mark.needs_tf
def test_graph_with_renamed_functions_runs_in_tensorflow(tensorflow):
    tf = tensorflow.compat.v1
    x = np.linspace(-1, 1, 3, dtype=np.float32)
    with jm.Graph().as_default() as graph:
        for scale, name in ((2.0, "a"), (3.0, "b")):
            jm.import_graph_def(calling(scale), name=name)
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(
            tf.GraphDef.FromString(graph.as_graph_def().SerializeToString()), name=""
        )
        for scale, name in ((2.0, "a"), (3.0, "b")):
            result = session.run(f"{name}/run:0", {f"{name}/x:0": x})
            np.testing.assert_allclose(result, x * scale + 1)


def test_gradients_of_functions_are_kept_once():
    graph_def = parse('library { gradient { function_name: "f" gradient_func: "g" } }')
    with jm.Graph().as_default() as graph:
        jm.import_graph_def(graph_def)
        jm.import_graph_def(graph_def)
    assert [(g.function_name, g.gradient_func) for g in graph.gradients] == [("f", "g")]


# --- errors --------------------------------------------------------------------------------------


def first(edit: Callable[[Any], Any]) -> Callable[[GraphDef], None]:
    return lambda graph_def: edit(graph_def.node[0])


def whole(text: str) -> Callable[[GraphDef], None]:
    return lambda graph_def: text_format.Merge(text, graph_def)


def set_input(name: str) -> Callable[[GraphDef], None]:
    return first(lambda node: node.input.__setitem__(0, name))


def set_name(name: str) -> Callable[[GraphDef], None]:
    def edit(graph_def: GraphDef) -> None:
        graph_def.node[4].name = name

    return edit


def add_attr(name: str, text: str) -> Callable[[GraphDef], None]:
    return first(
        lambda node: node.attr[name].CopyFrom(text_format.Parse(text, graph_pb2.AttrValue()))
    )


MALFORMED = {
    "one input too many": first(lambda node: node.input.append("q")),
    "one input too few": first(lambda node: node.input.pop()),
    "an output that is not there": set_input("z:1"),
    "an index that is no number": set_input("z:x"),
    "two indices": set_input("z:0:0"),
    "a negative index": set_input("z:-1"),
    "only a control input": set_input("^z"),
    "an input without a name": set_input(""),
    "an unknown input": set_input("lost:0"),
    "an unknown control input": first(lambda node: node.input.append("^lost")),
    "a control input with an index": first(lambda node: node.input.append("^z:0")),
    "a control input before another": first(lambda node: node.input.extend(["^q", "z"])),
    "a node that is its own input": set_input("i"),
    "a cycle of two": set_input("j"),
    "a space in a name": set_name("9 bad"),
    "an empty name": set_name(""),
    "a name with a leading underscore": set_name("_b"),
    "a name with a leading slash": set_name("/b"),
    "a name with a line break": set_name("b\nc"),
    "a name with an umlaut": set_name("b\u00e4"),
    "a name twice": set_name("q"),
    "an unknown op": first(lambda node: setattr(node, "op", "Unheard")),
    "an input of another type": add_attr("T", "type: DT_INT32"),
    "an attr of another kind": add_attr("T", "i: 3"),
    "a missing attr": first(lambda node: node.attr.pop("T")),
    "an unknown place": add_attr("_class", 'list { s: "loc:@lost" }'),
    "an index of many digits": set_input("z:" + "9" * 6000),
    "a function with the name of an op": whole(
        'library { function { signature { name: "Tanh" } } }'
    ),
    "a reader of the future": whole("versions { min_consumer: 999999 }"),
    "a writer of before the first": whole("versions { producer: -1 }"),
    "a bad reader": whole("versions { bad_consumers: 2474 }"),
}


def outcome(run: Callable[[], Any]) -> type[BaseException] | None:
    try:
        run()
    except Exception as error:
        return type(error)
    return None


@pytest.mark.needs_tf
@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_graph_def_is_refused_as_in_tensorflow(what, tensorflow):
    tf = tensorflow.compat.v1
    graph_def = small()
    MALFORMED[what](graph_def)
    theirs_def = tf.GraphDef.FromString(graph_def.SerializeToString())
    with tf.Graph().as_default():
        expected = outcome(lambda: tf.import_graph_def(theirs_def, name=""))
    with jm.Graph().as_default() as graph:
        before = graph.as_graph_def()
        found = outcome(lambda: jm.import_graph_def(graph_def, name=""))
        assert graph.as_graph_def() == before
    assert found is not None
    assert issubclass(found, errors.JaxmetaError)
    if expected is tensorflow.errors.NotFoundError:
        assert found is errors.UnsupportedOpError
    else:
        assert expected in (ValueError, TypeError)
        assert issubclass(found, expected)


ARGUMENTS: dict[str, dict[str, Any]] = {
    "no GraphDef": {"graph_def": ""},
    "an input map that is a list": {"input_map": [1]},
    "an input map with a number as key": {"input_map": {3: 3.0}},
    "an array to map without a scope": {"input_map": {"z": 3.0}, "name": ""},
    "an array of another type": {"input_map": {"z": np.int32(3)}},
    "an unknown input": {"input_map": {"lost": 3.0}},
    "an output that is not there": {"input_map": {"z:1": 3.0}},
    "an input with two indices": {"input_map": {"z:0:0": 3.0}},
    "elements that are numbers": {"return_elements": [3]},
    "an unknown tensor": {"return_elements": ["lost:0"]},
    "an unknown operation": {"return_elements": ["lost"]},
    "an unknown output": {"return_elements": ["z:3"]},
    "an element with a word for an index": {"return_elements": ["z:x"]},
    "an element with two indices": {"return_elements": ["z:0:1"]},
    "a scope with a space": {"name": "a b"},
    "a scope that is a number": {"name": 3},
}


@pytest.mark.needs_tf
@pytest.mark.parametrize("what", ARGUMENTS)
def test_wrong_argument_is_refused_as_in_tensorflow(what, tensorflow):
    tf = tensorflow.compat.v1
    arguments = {"graph_def": small(), **ARGUMENTS[what]}
    theirs = dict(arguments)
    if isinstance(theirs["graph_def"], GraphDef):
        theirs["graph_def"] = tf.GraphDef.FromString(theirs["graph_def"].SerializeToString())
    with tf.Graph().as_default():
        expected = outcome(lambda: tf.import_graph_def(**theirs))
    with jm.Graph().as_default():
        found = outcome(lambda: jm.import_graph_def(**arguments))
    assert expected in (ValueError, TypeError)
    assert found is not None
    assert issubclass(found, expected)
    assert issubclass(found, errors.JaxmetaError)


def test_tensor_of_another_graph_is_no_input():
    other = jm.Graph()
    (edge,) = other.add_node("Placeholder", [], {"dtype": np.dtype("float32")}, "x")
    with jm.Graph().as_default(), pytest.raises(errors.GraphError, match="another graph"):
        jm.import_graph_def(small(), {"z": other.get_tensor_by_name(f"{edge.ref}:0")})


def test_all_faults_are_listed_at_once():
    graph_def = small()
    graph_def.node[0].input.append("q")
    graph_def.node[3].attr["T"].type = graph_pb2.DT_INT32
    with jm.Graph().as_default(), pytest.raises(errors.GraphError) as caught:
        jm.import_graph_def(graph_def)
    lines = str(caught.value).splitlines()
    assert lines == [
        "the GraphDef: these inputs do not fit:",
        "  node 'i' (Identity) takes 1 inputs, it has 2",
        "  node 'j' (Identity): input 'i' is float32, expected int32",
    ]


def test_functions_of_one_name_are_refused():
    graph_def = parse('library { function { signature { name: "f" } } }')
    graph_def.library.function.add().CopyFrom(graph_def.library.function[0])
    with jm.Graph().as_default(), pytest.raises(errors.GraphError, match="not unique"):
        jm.import_graph_def(graph_def)


@pytest.mark.needs_tf
def test_loop_in_a_loop_is_no_cycle(tensorflow):
    tf = tensorflow.compat.v1
    with tf.Graph().as_default() as theirs:
        v2_was_on = tf.control_flow_v2_enabled()
        tf.disable_control_flow_v2()
        try:
            tf.while_loop(
                lambda i, _: i < 3,
                lambda i, n: (i + 1, n + tf.while_loop(lambda j: j < 2, lambda j: j + 1, [i])),
                [tf.constant(0), tf.constant(0)],
            )
        finally:
            if v2_was_on:
                tf.enable_control_flow_v2()
    graph_def = GraphDef.FromString(theirs.as_graph_def().SerializeToString())
    assert "NextIteration" in {node.op for node in graph_def.node}
    with jm.Graph().as_default() as ours:
        jm.import_graph_def(graph_def, name="")
    assert len(ours.nodes) == len(graph_def.node)


# --- recorded shapes -----------------------------------------------------------------------------

UNKNOWN = None
RECORDS = [
    (None, [(-1, 3)]),
    (None, [(5, 3)]),
    (None, [(-1, -1)]),
    (None, [UNKNOWN]),
    (None, [(5, 4)]),
    (None, [(5,)]),
    (None, []),
    (None, [(-1, 3), (2,)]),
    ([(7, 3)], None),
    ([(7, 4)], None),
    ([(7, 3)], [(8, 3)]),
    ([(7, 3)], [(-1, 3)]),
]


def with_records(a, b):
    """Returns a placeholder of shape [?, 3] and a Relu of it, with records of their shapes."""
    graph_def = graph_pb2.GraphDef()
    graph_def.versions.producer = 2000
    placeholder = graph_def.node.add(name="A", op="Placeholder")
    placeholder.attr["dtype"].type = 1
    for size in (-1, 3):
        placeholder.attr["shape"].shape.dim.add(size=size)
    relu = graph_def.node.add(name="B", op="Relu", input=["A"])
    relu.attr["T"].type = 1
    for node, shapes in ((placeholder, a), (relu, b)):
        if shapes is None:
            continue
        node.attr["_output_shapes"].list.SetInParent()
        for shape in shapes:
            made = node.attr["_output_shapes"].list.shape.add(unknown_rank=shape is None)
            for size in shape or ():
                made.dim.add(size=size)
    return graph_def


@pytest.mark.needs_tf
@pytest.mark.parametrize(("a", "b"), RECORDS)
def test_recorded_shapes_are_believed_or_refused_as_in_tensorflow(tensorflow, a, b):
    tf = tensorflow.compat.v1
    graph_def = with_records(a, b)
    with tensorflow.Graph().as_default() as there:
        try:
            tf.import_graph_def(tf.GraphDef.FromString(graph_def.SerializeToString()), name="x")
            refused = None
        except ValueError as error:
            refused = str(error)
    with jm.Graph().as_default() as here:
        if refused is not None:
            with pytest.raises(errors.GraphError) as caught:
                jm.import_graph_def(graph_def, name="x")
            assert refused in str(caught.value)
            assert not here.nodes
            return
        jm.import_graph_def(graph_def, name="x")
    for name in ("x/A:0", "x/B:0"):
        expected = tuple(there.get_tensor_by_name(name).shape.as_list())
        assert here.get_tensor_by_name(name).shape == expected


def test_all_wrong_records_are_named_at_once():
    with jm.Graph().as_default(), pytest.raises(errors.GraphError) as caught:
        jm.import_graph_def(with_records([(7, 4)], [(1, 2, 3)]), name="")
    assert all(f"Node '{name}' has an _output_shapes" in str(caught.value) for name in "AB")
