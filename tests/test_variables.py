"""Variables that are built: initial values, assignments, collections, protos, parts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta as jm
from jaxmeta import errors


def initialized(*fetches):
    """Returns the values of fetches in a new session of the default graph."""
    with jm.Session() as session:
        session.run(jm.global_variables_initializer())
        return session.run(list(fetches))


def test_a_variable_has_its_initial_value(rng):
    value = rng.normal(size=(3, 2)).astype(np.float32)
    w = jm.Variable(value, name="w")
    other = jm.Variable(w.initial_value * 2.0, name="other")
    listed = jm.Variable([1, 2])
    lazy = jm.Variable(lambda: jnp.ones(2), name="lazy")
    cast = jm.Variable([1, 2], dtype="float32", name="cast")
    found = initialized(w, other, listed, lazy, cast, w.initial_value)
    for one, expected in zip(found, [value, 2 * value, [1, 2], [1, 1], [1, 2], value], strict=True):
        np.testing.assert_array_equal(one, expected)
    assert [v.name for v in jm.global_variables()] == [
        "w:0",
        "other:0",
        "Variable:0",
        "lazy:0",
        "cast:0",
    ]
    assert [v.dtype for v in (listed, lazy, cast)] == ["int32", "float32", "float32"]


@pytest.mark.parametrize("key", [7, jax.random.key(7), jax.random.key(7, impl="rbg")])
def test_an_initializer_with_a_key_becomes_nodes(key):
    make = jax.nn.initializers.normal(0.5)
    w = jm.Variable(lambda k: make(k, (4, 3)), name="w", key=key)
    (found,) = initialized(w)
    typed = jax.random.key(key) if isinstance(key, int) else key
    np.testing.assert_array_equal(found, make(typed, (4, 3)))
    assert w.initial_value.op.type != "Const"


@pytest.mark.needs_tf
def test_tensorflow_computes_the_same_initial_values(tensorflow):
    tf = tensorflow.compat.v1
    w = jm.Variable(lambda k: jax.random.normal(k, (4, 3)), name="w", key=3)
    init = jm.global_variables_initializer()
    content = jm.get_default_graph().as_graph_def().SerializeToString()
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(tf.GraphDef.FromString(content), name="")
        session.run(init.name)
        found = session.run(w.snapshot_name)
    np.testing.assert_allclose(found, jax.random.normal(jax.random.key(3), (4, 3)), atol=1e-6)


def test_typed_keys_are_variables_too():
    key = jm.Variable(jax.random.key(5), trainable=False, name="rng")
    new, noise = jm.call(lambda k: (jax.random.split(k)[0], jax.random.uniform(k)), key)
    with jm.Session() as session:
        session.run(jm.global_variables_initializer())
        first = session.run([key.assign(new), noise])[1]
        second = session.run(noise)
    expected = jax.random.key(5)
    assert float(first) == float(jax.random.uniform(expected))
    assert float(second) == float(jax.random.uniform(jax.random.split(expected)[0]))


def test_assignments_in_turn():
    w = jm.Variable([1.0, 2.0], name="w")
    added = w.assign_add([1.0, 1.0])
    with jm.control_dependencies([added]):
        subtracted = w.assign_sub([0.5, 0.5])
        with jm.control_dependencies([subtracted]):
            read = w.read_value()
    (found,) = initialized(read)
    np.testing.assert_array_equal(found, [1.5, 2.5])
    operation = w.assign([0.0, 0.0], read_value=False)
    assert isinstance(operation, jm.Operation)
    with jm.Session() as session:
        session.run(jm.global_variables_initializer())
        session.run(operation)
        np.testing.assert_array_equal(session.run(w), [0.0, 0.0])


def test_trainability_and_collections():
    w = jm.Variable(1.0, name="w")
    step = jm.Variable(0, trainable=False, name="step")
    local = jm.Variable(0.0, False, ["local_variables"], name="local")
    both = jm.Variable(0.0, True, ["mine"], name="both")
    assert jm.trainable_variables() == [w, both]
    assert jm.global_variables() == [w, step]
    assert jm.local_variables() == [local]
    assert jm.get_collection("mine") == [both]
    assert jm.global_variables("st") == [step]
    assert jm.initialize_all_variables().control_inputs == [w.initializer, step.initializer]
    assert jm.local_variables_initializer().control_inputs == [local.initializer]


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: jm.Variable(), ValueError),
        (lambda: jm.Variable(None), ValueError),
        (lambda: jm.Variable(lambda k: k), ValueError),
        (lambda: jm.Variable(lambda k: jax.random.uniform(k), key="seed"), TypeError),
        (lambda: jm.Variable(1.0, collections="mine"), TypeError),
        (lambda: jm.Variable(jm.placeholder("float32", [None])), ValueError),
        (lambda: jm.Variable(jm.constant(1.0), dtype="int32"), TypeError),
        (lambda: jm.Variable(1.0, name="a b"), ValueError),
        (lambda: jm.Variable([1.0, 2.0]).assign([1.0]), ValueError),
        (lambda: jm.Variable([1.0, 2.0]).assign(1.0), ValueError),
        (lambda: jm.Variable(1).assign(1.5), TypeError),
        (lambda: jm.Variable(1.0).assign(jm.constant(1)), TypeError),
    ],
)
def test_what_is_no_variable_is_refused(make, error):
    with pytest.raises(error) as caught:
        make()
    assert isinstance(caught.value, errors.JaxmetaError)


def test_a_variable_without_a_value_is_named():
    w = jm.Variable(1.0, name="w")
    with jm.Session() as session, pytest.raises(errors.JaxmetaError, match=r"'?w'? "):
        session.run(w)


@pytest.mark.needs_tf
def test_protos_are_those_of_tensorflow(tensorflow):
    tf = tensorflow.compat.v1
    tf.enable_resource_variables()
    with tf.Graph().as_default(), tf.name_scope("s"):
        theirs = tf.Variable([1.0, 2.0], name="w")
        proto, scoped = theirs.to_proto(), theirs.to_proto(export_scope="s")
    with jm.name_scope("s"):
        ours = jm.Variable([1.0, 2.0], name="w")
    made = type(proto).FromString(ours.to_proto().SerializeToString())
    assert made == proto
    made = type(proto).FromString(ours.to_proto(export_scope="s").SerializeToString())
    assert made == scoped
    assert ours.to_proto(export_scope="t") is None


def test_protos_give_the_variable_back():
    with jm.name_scope("s"):
        w = jm.Variable([1.0, 2.0], trainable=False, name="w")
    assert jm.Variable.from_proto(w.to_proto()) == w
    again = jm.Variable.from_proto(w.to_proto(export_scope="s"), import_scope="s")
    assert again == w
    with pytest.raises(KeyError), jm.Graph().as_default():
        jm.Variable.from_proto(w.to_proto())


@pytest.mark.needs_tf
@pytest.mark.parametrize(
    ("shape", "slicing"), [([10, 7], [3, 1]), ([4, 6], [1, 2]), ([5], [1]), ([7], [7])]
)
def test_parts_are_cut_as_in_tensorflow(tensorflow, shape, slicing):
    tf = tensorflow.compat.v1
    whole = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    parts = jm.create_partitioned_variables(shape, slicing, whole, name="emb")
    with tf.Graph().as_default():
        with tf.variable_scope("root", use_resource=False):
            theirs = tf.create_partitioned_variables(shape, slicing, tf.zeros_initializer())
        infos = [v._save_slice_info for v in theirs]
    for part, info in zip(parts, infos, strict=True):
        ours = part.save_slice_info
        assert (ours.full_shape, ours.var_offset, ours.var_shape) == tuple(
            map(tuple, (info.full_shape, info.var_offset, info.var_shape))
        )
        assert ours.full_name == "emb"
        assert jm.Variable.from_proto(part.to_proto()).save_slice_info == ours
    axis = int(np.argmax(slicing))
    np.testing.assert_array_equal(np.concatenate(initialized(*parts), axis), whole)


@pytest.mark.parametrize("slicing", [[2], [2, 2], [5, 1], [0, 1]])
def test_parts_that_do_not_fit_are_refused(slicing):
    with pytest.raises(ValueError, match="slicing"):
        jm.create_partitioned_variables([4, 4], slicing, np.zeros((4, 4), np.float32))


def test_arguments_stand_where_tensorflow_has_them():
    variable = jm.Variable(1, False, ["mine"], True, None, "count", None, "float32")
    assert (variable.name, variable.dtype, variable.trainable) == ("count:0", np.float32, False)
    assert jm.get_collection("mine") == [variable]


def test_variable_of_a_variable_def_is_the_one_in_the_graph():
    variable = jm.Variable(np.ones((2, 3), np.float32), name="w")
    again = jm.Variable(variable_def=variable.to_proto())
    assert (again.name, again.shape) == ("w:0", (2, 3))
    assert again.initializer == variable.initializer
    assert len(jm.global_variables()) == 1
