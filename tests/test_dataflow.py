"""TensorFlow 1's branches and loops, and the lists of TensorFlow 2's, against TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import jaxmeta


def branches(tf: Any, x: Any) -> Any:
    """Branches within branches, with gradients; what is not taken would not even fit."""
    tf1 = tf.compat.v1
    positive = tf.reduce_sum(x) > 0
    inner = tf1.cond(tf.reduce_max(x) > 1, lambda: x * 2, lambda: x[:1] / tf.zeros([1]))
    outer = tf1.cond(positive, lambda: tf.reduce_sum(inner) * x, lambda: tf.constant([7.0]) - x)
    return [outer, *tf.gradients(outer, x)]


def loops(tf: Any, x: Any) -> Any:
    """Loops within loops, whose gradients go through stacks."""
    tf1 = tf.compat.v1

    def body(i: Any, y: Any) -> Any:
        _, inner = tf1.while_loop(
            lambda j, _: j < i, lambda j, z: (j + 1, tf.tanh(z) * 1.5), [tf.constant(0), y]
        )
        return i + 1, tf1.cond(tf.equal(i % 2, 0), lambda: inner * x, lambda: inner - x)

    _, y = tf1.while_loop(lambda i, _: i < 4, body, [tf.constant(0), x])
    return [y, *tf.gradients(y, x)]


def arrays(tf: Any, x: Any) -> Any:
    """Arrays of tensors that a loop fills, and their gradients."""
    tf1 = tf.compat.v1
    taken = tf1.TensorArray(tf.float32, size=3, clear_after_read=False).unstack(x)
    made = tf1.TensorArray(tf.float32, size=0, dynamic_size=True)

    def body(i: Any, made: Any) -> Any:
        return i + 1, made.write(i, taken.read(i) * taken.read(2 - i))

    _, made = tf1.while_loop(lambda i, _: i < 3, body, [tf.constant(0), made])
    parts = tf1.TensorArray(tf.float32, size=2, infer_shape=False, clear_after_read=False)
    parts = parts.split(tf.reshape(x, [-1]), [2, 4])
    y = made.stack()
    return [y, made.size(), parts.concat(), parts.read(1), *tf.gradients(y, x)]


def growing(tf: Any, x: Any) -> Any:
    """A loop whose arrays grow."""
    tf1 = tf.compat.v1
    shapes = [tf.TensorShape([]), tf.TensorShape([None])]
    start = [tf.constant(0), tf.reshape(x, [-1])]
    return tf1.while_loop(
        lambda i, _: i < 3, lambda i, y: (i + 1, tf.concat([y, y[:1]], 0)), start, shapes
    )[1]


def lists(tf: Any, x: Any) -> Any:
    """Lists, by their ops."""
    raw = tf.raw_ops
    handle = raw.TensorListFromTensor(tensor=x, element_shape=[2])
    handle = raw.TensorListPushBack(input_handle=handle, tensor=x[0] * 3)
    handle = raw.TensorListSetItem(input_handle=handle, index=1, item=x[2])
    shorter, last = raw.TensorListPopBack(
        input_handle=handle, element_shape=[2], element_dtype=tf.float32
    )
    longer = raw.TensorListResize(input_handle=shorter, size=5)
    summed = raw.AddN(inputs=[longer, raw.ZerosLike(x=longer)])
    options = {"element_shape": [2], "element_dtype": tf.float32}
    empty = raw.EmptyTensorList(element_shape=[2], max_num_elements=-1, element_dtype=tf.float32)
    reserved = raw.TensorListReserve(element_shape=[2], num_elements=2, element_dtype=tf.float32)
    return [
        last,
        raw.TensorListStack(input_handle=summed, **options),
        raw.TensorListStack(input_handle=reserved, **options),
        raw.TensorListGetItem(input_handle=handle, index=3, **options),
        raw.TensorListGather(input_handle=handle, indices=[2, 0], **options),
        raw.TensorListLength(input_handle=empty),
        raw.TensorListElementShape(input_handle=empty, shape_type=tf.int32),
    ]


def functions(tf: Any, x: Any) -> Any:
    """Loops of functions, whose gradients fill lists."""
    y = tf.function(
        lambda a: tf.while_loop(
            lambda i, b: i < 3, lambda i, b: (i + 1, tf.sin(b) * a), [tf.constant(0), a]
        )[1]
    )(x)
    return [y, *tf.gradients(y, x)]


def optionals(tf: Any, x: Any) -> Any:
    """Values that may not be there, which gradients of branches hold."""
    raw = tf.raw_ops
    some, none = raw.OptionalFromValue(components=[x, x * 2]), raw.OptionalNone()
    values = raw.OptionalGetValue(
        optional=some, output_types=[tf.float32] * 2, output_shapes=[x.shape] * 2
    )
    return [*values, raw.OptionalHasValue(optional=some), raw.OptionalHasValue(optional=none)]


def stacks(tf: Any, x: Any) -> Any:
    """A stack, by its ops."""
    raw = tf.raw_ops
    handle = raw.StackV2(max_size=-1, elem_type=tf.float32)
    with tf.control_dependencies([raw.StackPushV2(handle=handle, elem=x)]):
        pushed = raw.StackPushV2(handle=handle, elem=x * 2)
    with tf.control_dependencies([pushed]):
        popped = raw.StackPopV2(handle=handle, elem_type=tf.float32)
    with tf.control_dependencies([popped]):
        close = raw.StackCloseV2(handle=handle)
    array, flow = raw.TensorArrayV3(size=1, dtype=tf.float32)
    with tf.control_dependencies([flow]):
        close_array = raw.TensorArrayCloseV3(handle=array)
    with tf.control_dependencies([close, close_array]):
        return tf.identity(popped)


def with_references(tf: Any, x: Any) -> Any:
    """A branch on a variable of TensorFlow 1, by the ops of references."""
    raw = tf.raw_ops
    variable = tf.compat.v1.get_variable("v", initializer=[1.0, 2.0], use_resource=False)
    no, yes = raw.RefSwitch(data=variable._ref(), pred=tf.reduce_sum(x) > 0)
    merged = raw.RefMerge(inputs=[no, yes])
    return [merged.output * 2, merged.value_index]


PROGRAMS: list[Callable[..., Any]] = [
    branches,
    loops,
    arrays,
    growing,
    lists,
    functions,
    optionals,
    stacks,
    with_references,
]


@pytest.mark.needs_tf
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_dataflow_gives_what_tensorflow_gives(program, sign, rng, tmp_path, tensorflow):
    tf1, path = tensorflow.compat.v1, str(tmp_path / "theirs.meta")
    shape = (2,) if program is branches else (3, 2)
    value = sign * rng.uniform(0.2, 1.5, shape).astype(np.float32)
    was_v2 = tf1.control_flow_v2_enabled()
    (tf1.enable_control_flow_v2 if program is functions else tf1.disable_control_flow_v2)()
    try:
        with tensorflow.Graph().as_default(), tf1.Session() as session:
            x = tf1.placeholder(tensorflow.float32, value.shape, name="x")
            made = tensorflow.nest.flatten(program(tensorflow, x))
            fetches = [tensor.name for tensor in made]
            initializer = tf1.global_variables_initializer().name
            tf1.train.export_meta_graph(path)
            session.run(initializer)
            expected = session.run(fetches, {"x:0": value})
    finally:
        (tf1.enable_control_flow_v2 if was_v2 else tf1.disable_control_flow_v2)()

    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(path)
        session.run(initializer)
        found = session.run(fetches, {"x:0": value})
    for have, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)


@pytest.mark.needs_tf
def test_fetch_of_a_branch_that_is_not_taken_is_refused(tmp_path, tensorflow):
    tf1, path = tensorflow.compat.v1, str(tmp_path / "theirs.meta")
    with tensorflow.Graph().as_default():
        pred = tf1.placeholder(tensorflow.bool, [], name="p")
        no, yes = tensorflow.raw_ops.Switch(data=2.0, pred=pred)
        names = no.name, yes.name
        tf1.train.export_meta_graph(path)
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(path)
        assert session.run(names[1], {"p:0": np.asarray(True)}) == 2.0
        with pytest.raises(jaxmeta.InvalidArgumentError, match="branch that is not taken"):
            session.run(names[0], {"p:0": np.asarray(True)})


@pytest.mark.needs_tf
def test_variables_keep_their_values_where_a_loop_fails(tmp_path, tensorflow):
    tf1, path = tensorflow.compat.v1, str(tmp_path / "theirs.meta")
    with tensorflow.Graph().as_default():
        variable = tf1.get_variable("v", initializer=1.0, use_resource=True)
        array, flow = tensorflow.raw_ops.TensorArrayV3(size=1, dtype=tensorflow.float32)
        with tensorflow.control_dependencies([variable.assign_add(1.0)]):
            read = tensorflow.raw_ops.TensorArrayReadV3(
                handle=array, index=4, flow_in=flow, dtype=tensorflow.float32
            )
        initializer = tf1.global_variables_initializer().name
        fetch, value = read.name, variable.value().name
        tf1.train.export_meta_graph(path)
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(path)
        session.run(initializer)
        with pytest.raises(jaxmeta.InvalidArgumentError, match="read from index 4"):
            session.run(fetch)
        assert session.run(value) == 1.0
