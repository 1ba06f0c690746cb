"""Tensors and operations: operators, indexing, calls of JAX functions, control dependencies."""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta as jm
from jaxmeta import errors

OPERATORS = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "truediv": operator.truediv,
    "pow": operator.pow,
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
    "reflected_sub": lambda x, y: 2.0 - x * y,
    "reflected_pow": lambda x, y: 2.0**x + y,
    "neg": lambda x, y: -x + abs(y),
    "vector": lambda x, y: x + np.float32([1.0, 2.0, 3.0]) - y,
    "matmul": lambda x, y: (
        x @ jm.constant(np.ones((3, 2), np.float32))
        if isinstance(x, jm.Tensor)
        else x @ np.ones((3, 2), np.float32) + 0 * y[:, :1]
    ),
}


def in_tensorflow(tensorflow, graph, fetches, feeds, init=None):
    """Runs a graph in a TensorFlow session."""
    tf = tensorflow.compat.v1
    proto = tf.GraphDef.FromString(graph.as_graph_def().SerializeToString())
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(proto, name="")
        if init is not None:
            session.run(init)
        return session.run(fetches, feeds)


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_compute_what_numpy_does(rng, name):
    fn = OPERATORS[name]
    x, y = rng.uniform(0.5, 2.0, (2, 4, 3)).astype(np.float32)
    a, b = jm.placeholder("float32", [4, 3]), jm.placeholder("float32", [4, 3])
    result = fn(a, b)
    expected = fn(x, y)
    expected = expected.astype(np.float32) if expected.dtype == np.float64 else expected
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    with jm.Session() as session:
        np.testing.assert_allclose(session.run(result, {a: x, b: y}), expected, rtol=1e-6)


@pytest.mark.needs_tf
def test_operators_compute_the_same_in_tensorflow(tensorflow, rng):
    x, y = rng.uniform(0.5, 2.0, (2, 4, 3)).astype(np.float32)
    flags, ints = x > 1.0, (x * 10).astype(np.int32)
    a, b = jm.placeholder("float32", [None, 3], "a"), jm.placeholder("float32", [4, 3], "b")
    i, f = jm.placeholder("int32", [4, 3], "i"), jm.placeholder("bool", [4, 3], "f")
    fed = {"a:0": x, "b:0": y, "i:0": ints, "f:0": flags}
    pairs = [
        (a // b, x // y),
        (a % b, x % y),
        (i // 3, ints // 3),
        (i % 3, ints % 3),
        (i / 3, ints / 3),
        (i & 3, ints & 3),
        (4 | i, 4 | ints),
        (i ^ 5, ints ^ 5),
        (~i, ~ints),
        (f & True, flags),
        (f ^ f, flags ^ flags),
        (~f | False, ~flags),
        (a[1:, None, ::-1], x[1:, None, ::-1]),
    ]
    found = in_tensorflow(tensorflow, jm.get_default_graph(), [t.name for t, _ in pairs], fed)
    for (tensor, expected), value in zip(pairs, found, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=tensor.name)
        assert tensor.dtype == value.dtype, tensor.name


@pytest.mark.parametrize(
    "index",
    [
        0,
        -1,
        slice(1, 3),
        slice(None, None, -1),
        (slice(None), 1),
        (Ellipsis, 0),
        (None, 0, ..., slice(0, 2)),
        (1, 2, 3),
        (slice(-3, None, 2), None),
    ],
)
def test_indexing_is_that_of_numpy(rng, index):
    x = rng.normal(size=(4, 5, 6)).astype(np.float32)
    tensor = jm.constant(x)[index]
    assert tensor.shape == x[index].shape
    with jm.Session() as session:
        np.testing.assert_array_equal(session.run(tensor), x[index])


def gathered(x, i, ids):
    return [x[i], x[:, i], x[i, 1:3], x[ids], x[ids, 1], x[:, ids], x[ids, ids], x[i, None, ...]]


def test_indices_that_are_tensors_give_what_numpy_gives(rng):
    x = jm.placeholder("float32", [None, 5], "x")
    i, ids = jm.placeholder("int32", [], "i"), jm.placeholder("int32", [None], "ids")
    array = rng.normal(size=(6, 5)).astype(np.float32)
    tensors = [*gathered(x, i, ids), x[np.array([0, 2])], jm.Variable(array, name="v")[i]]
    expected = [*gathered(array, 2, [0, 3, -1]), array[[0, 2]], array[2]]
    with jm.Session() as session:
        session.run(jm.global_variables_initializer())
        found = session.run(tensors, {x: array, i: 2, ids: [0, 3, -1]})
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert [tensor.shape for tensor in tensors[:3]] == [(5,), (None,), (2,)]


@pytest.mark.needs_tf
def test_indices_that_are_tensors_are_the_same_in_tensorflow(tensorflow, rng):
    tf = tensorflow.compat.v1
    x = jm.placeholder("float32", [None, 5], "x")
    i, ids = jm.placeholder("int32", [], "i"), jm.placeholder("int32", [None], "ids")
    tensors = gathered(x, i, ids)
    tensors += jm.gradients([tensors[0], tensors[3]], x)
    feed = {"x:0": rng.normal(size=(6, 5)).astype(np.float32), "i:0": 2, "ids:0": [0, 3, -1]}
    graph_def = jm.get_default_graph().as_graph_def().SerializeToString()
    with tensorflow.Graph().as_default(), tf.Session() as there, jm.Session() as here:
        tf.import_graph_def(tf.GraphDef.FromString(graph_def), name="")
        names = [tensor.name for tensor in tensors]
        for one, other in zip(there.run(names, feed), here.run(names, feed), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("index", "error", "advice"),
    [
        (lambda x: slice(jm.constant(1), None), TypeError, "dynamic_slice_in_dim"),
        (lambda x: jm.constant([True, False]), TypeError, "jnp.where"),
        (lambda x: np.array([True, False]), TypeError, "jnp.where"),
        (lambda x: jm.constant(1.0), TypeError, "integers"),
        (lambda x: (0, 0, jm.constant(0)), ValueError, "takes 2 indices, got 3"),
    ],
)
def test_indices_whose_result_depends_on_values_are_refused_with_advice(index, error, advice):
    x = jm.placeholder("float32", [None, 5])
    with pytest.raises(error, match=advice) as caught:
        x[index(x)]
    assert isinstance(caught.value, errors.GraphError)


def test_sizes_that_are_not_known_stay_unknown():
    x = jm.placeholder("float32", [None, 28], "x")
    assert (x * 2.0).shape == (None, 28)
    assert (x @ jm.constant(np.ones((28, 3), np.float32))).shape == (None, 3)
    assert x[:, 0].shape == (None,)
    assert x[0].shape == (28,)
    assert (x + jm.placeholder("float32")).shape is None
    shape = x.op.node_def.attr["shape"].shape
    assert [dim.size for dim in shape.dim] == [-1, 28]


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda x: bool(x), TypeError),
        (lambda x: list(x), TypeError),
        (lambda x: len(x), TypeError),
        (lambda x: x + jm.constant(1), TypeError),
        (lambda x: x[0] + "a", TypeError),
        (lambda x: x + None, ValueError),
        (lambda x: x & x, TypeError),
        (lambda x: x @ x, ValueError),
        (lambda x: x + jm.constant([1.0, 2.0]), ValueError),
        (lambda x: x[9], ValueError),
        (lambda x: x[0, 0, 0], ValueError),
        (lambda x: x["a"], TypeError),
        (lambda x: jm.constant(1) + 1.5, TypeError),
        (lambda x: x + jm.Graph().add_to_collection or None, TypeError),
    ],
)
def test_what_tensorflow_refuses_is_refused(use, error):
    x = jm.constant(np.ones((4, 3), np.float32))
    with pytest.raises(error):
        use(x)


def test_tensors_of_two_graphs_do_not_meet():
    x = jm.constant(1.0)
    with jm.Graph().as_default():
        y = jm.constant(1.0)
    with pytest.raises(errors.GraphError, match="another graph"):
        x + y
    with pytest.raises(errors.GraphError, match="another graph"):
        jm.call(jnp.add, x, y)


def test_handles_tell_what_the_graph_holds():
    x = jm.placeholder("float32", [2], "x")
    with jm.control_dependencies([x]):
        y = jm.constant(1.0, name="y")
    z = x + y
    assert z.op.inputs == (x, y)
    assert y.op.control_inputs == [x.op]
    assert x.consumers() == [z.op]
    assert z.op.outputs == [z]
    assert z.op.type == "AddV2"
    assert z.op.get_attr("T") == 1
    assert z.get_shape() == (2,)
    assert {x: 1}[jm.get_default_graph().get_tensor_by_name("x:0")] == 1
    with jm.Session(), pytest.raises(ValueError, match="no attr"):
        z.op.get_attr("nope")


def test_eval_and_run_use_the_default_session():
    w = jm.Variable(3.0, name="w")
    with pytest.raises(errors.GraphError, match="no default session"):
        w.eval()
    with jm.Session() as session:
        jm.global_variables_initializer().run()
        assert float((w * 2.0).eval()) == 6.0
        assert float(w.eval(session=session)) == 3.0
        w.load(5.0, session)
        assert float(w.eval()) == 5.0


# --- names ---------------------------------------------------------------------------------------


def test_elements_are_found_by_name_as_in_tensorflow():
    graph = jm.get_default_graph()
    x = jm.constant(1.0, name="x")
    w = jm.Variable(1.0, name="w")
    assert graph.as_graph_element("x:0") == graph.as_graph_element(x) == x
    assert graph.as_graph_element("x") == x.op
    assert graph.as_graph_element(w).name == "w/Read/ReadVariableOp:0"
    for use, error in [
        (lambda: graph.get_tensor_by_name("x"), ValueError),
        (lambda: graph.get_tensor_by_name("nope:0"), KeyError),
        (lambda: graph.get_tensor_by_name("x:1"), KeyError),
        (lambda: graph.get_operation_by_name("x:0"), ValueError),
        (lambda: graph.get_operation_by_name("nope"), KeyError),
        (lambda: graph.get_operation_by_name(3), TypeError),
        (lambda: graph.as_graph_element(3), TypeError),
        (lambda: graph.as_graph_element("x:0", allow_tensor=False), ValueError),
        (lambda: graph.as_graph_element(x, allow_tensor=False), TypeError),
        (lambda: jm.Graph().as_graph_element(x), ValueError),
        (lambda: jm.placeholder("float32", name="a b"), ValueError),
    ]:
        with pytest.raises(error):
            use()


def test_a_finalized_graph_takes_no_more():
    graph = jm.get_default_graph()
    x = jm.constant(1.0)
    graph.finalize()
    assert graph.finalized
    for use in (
        lambda: jm.constant(1.0),
        lambda: jm.call(lambda x: x + 1, x),
        lambda: jm.Variable(1.0),
        lambda: graph.add_to_collection("a", 1),
    ):
        with pytest.raises(RuntimeError, match="finalized"):
            use()
    with jm.Session() as session:
        assert float(session.run(x)) == 1.0


# --- calls ---------------------------------------------------------------------------------------


def test_a_lambda_puts_its_nodes_into_the_current_scope(rng):
    x = jm.placeholder("float32", [4, 3], "x")
    with jm.name_scope("hidden1"):
        hidden = jm.call(lambda x, w: jax.nn.relu(x @ w), x, np.ones((3, 2), np.float32))
    assert hidden.name == "hidden1/relu:0"
    names = [op.name for op in jm.get_default_graph().get_operations()]
    assert names == ["x", "hidden1/Const", "hidden1/MatMul", "hidden1/relu"]
    value = rng.normal(size=(4, 3)).astype(np.float32)
    with jm.Session() as session:
        found = session.run(hidden, {x: value})
    np.testing.assert_allclose(found, jax.nn.relu(value @ np.ones((3, 2))), rtol=1e-6)


def test_a_function_gives_its_name_to_its_result():
    x = jm.constant(np.ones((3, 3), np.float32), name="x")

    def loss_fn(x):
        return jnp.sum(jnp.tanh(x))

    assert jm.call(loss_fn, x).name == "loss_fn:0"
    assert jm.call(loss_fn, x).name == "loss_fn_1:0"
    assert jm.call(loss_fn, x, name="total").name == "total:0"
    assert jm.call(functools.partial(jnp.matmul, precision="highest"), x, x).name == "matmul:0"
    assert jm.call(lambda x: x, x, name="same").op.type == "Identity"
    assert "loss_fn/Tanh" in jm.get_default_graph().nodes


def test_calls_take_and_return_trees():
    w = jm.Variable(np.arange(3, dtype=np.float32), name="w")

    def both(params, scale, *, shift):
        return {"y": params["w"] * scale, "z": (params["b"] + shift, None)}

    result = jm.call(both, {"w": w, "b": jm.constant(1.0)}, 2.0, shift=jm.constant(3.0))
    with jm.Session() as session:
        session.run(jm.global_variables_initializer())
        found = session.run({"y": result["y"], "z": result["z"][0]})
    np.testing.assert_array_equal(found["y"], [0.0, 2.0, 4.0])
    assert float(found["z"]) == 4.0
    assert result["z"][1] is None


def test_a_function_that_is_called_twice_is_held_once():
    x = jm.constant(np.ones(3, np.float32))
    for _ in range(3):
        x = jm.call(lambda x: jax.nn.relu(x), x)
    assert sorted(jm.get_default_graph().functions) == ["relu", "relu_1", "relu_jvp"]


def test_typed_keys_pass_through_calls():
    key = jm.constant(jax.random.key(3), name="key")
    first, second = jm.call(lambda k: tuple(jax.random.split(k)), key)
    noise = jm.call(lambda k: jax.random.normal(k, (2,)), second)
    del first
    with jm.Session() as session:
        found = session.run(noise)
    expected = jax.random.normal(jax.random.split(jax.random.key(3))[1], (2,))
    np.testing.assert_array_equal(found, expected)


def test_a_call_that_fails_adds_nothing():
    graph = jm.get_default_graph()
    x = jm.placeholder("float32", [3])

    def prints(x):
        jax.debug.print("{x}", x=x)
        return x * 2

    before = graph.as_graph_def()
    with pytest.raises(errors.UnsupportedPrimitiveError, match="prints"):
        jm.call(prints, x)
    assert graph.as_graph_def() == before
    with pytest.raises(errors.GraphError, match="known rank"):
        jm.call(jnp.sin, jm.placeholder("float32"))


@pytest.mark.needs_tf
def test_shapes_of_imported_tensors_are_those_that_tensorflow_infers(tensorflow):
    tf = tensorflow.compat.v1
    with tf.Graph().as_default() as theirs:
        x = tf.placeholder(tf.float32, [None, 6], name="x")
        w = tf.Variable(tf.zeros([6, 4]), name="w", use_resource=True)
        y = tf.nn.relu(tf.matmul(x, w))
        tf.concat([y, y], axis=1)
        tf.reduce_mean(y, axis=1, keepdims=True)
        tf.reduce_sum(tf.square(tf.transpose(y)))
        tf.constant(1.0, shape=[2, 3])
        meta = tf.train.export_meta_graph()
    path = jm.Graph()
    with path.as_default():
        proto = jm.export_meta_graph().FromString(meta.SerializeToString())
        jm.import_meta_graph(proto)
    for op in theirs.get_operations():
        for tensor in op.outputs:
            if tensor.dtype != tf.resource:
                ours = path.get_tensor_by_name(tensor.name).shape
                assert list(ours) == tensor.shape.as_list(), tensor.name


# --- constants, placeholders, groups -------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        (1.0,),
        (3,),
        (2**40,),
        ([[1, 2], [3, 4]],),
        ("text",),
        ([True, False],),
        (1, "float32"),
        ([1, 2], None, [3]),
        (0.5, "float64", [2, 2]),
        (np.ones(3, np.float64),),
        (2j,),
    ],
)
@pytest.mark.needs_tf
def test_constants_are_those_of_tensorflow(tensorflow, arguments):
    tf = tensorflow.compat.v1
    ours = jm.constant(*arguments)
    with tf.Graph().as_default():
        theirs = tf.constant(*arguments)
        proto = theirs.op.node_def.attr["value"].tensor
    made = type(proto).FromString(ours.op.node_def.attr["value"].tensor.SerializeToString())
    np.testing.assert_array_equal(tensorflow.make_ndarray(made), tensorflow.make_ndarray(proto))
    assert made.dtype == proto.dtype
    assert ours.shape == tuple(theirs.shape.as_list())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (([1, 2], None, [1]), ValueError),
        (([], None, [1]), ValueError),
        ((None,), ValueError),
        ((1.5, "int32"), TypeError),
        (("a", "int32"), TypeError),
        ((object(),), (TypeError, ValueError)),
    ],
)
def test_constants_that_do_not_fit_are_refused(arguments, error):
    with pytest.raises(error) as caught:
        jm.constant(*arguments)
    assert isinstance(caught.value, errors.JaxmetaError)


def test_groups_wait_for_all_of_their_inputs():
    v = jm.Variable(0.0, name="v")
    w = jm.Variable(0.0, name="w")
    both = jm.group(v.assign(1.0), [w.assign_add(2.0, read_value=False)], name="both")
    assert both.type == "NoOp"
    with jm.control_dependencies([both]):
        total = v.read_value() + w.read_value()
    with jm.Session() as session:
        session.run(jm.global_variables_initializer())
        assert float(session.run(total)) == 3.0
    with pytest.raises(TypeError):
        jm.group(1)
