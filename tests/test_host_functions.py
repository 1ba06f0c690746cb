"""Functions that graphs call: those that work on strings, and gradients of functions."""

from __future__ import annotations

import logging
from typing import Any

import jax
import numpy as np
import pytest

import jaxmeta
from jaxmeta import errors
from jaxmeta._proto import meta_graph_pb2

pytestmark = pytest.mark.needs_tf


def import_here(saved: Any) -> Any:
    proto = meta_graph_pb2.MetaGraphDef.FromString(saved.SerializeToString())
    return jaxmeta.import_meta_graph(proto)


def run_both(tf: Any, build: Any, runs: list[tuple[Any, Any]]) -> None:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        build(tf.compat.v1)
        saved = tf.compat.v1.train.export_meta_graph()
        expected = [session.run(fetches, feeds) for fetches, feeds in runs]
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        import_here(saved)
        found = [session.run(fetches, feeds) for fetches, feeds in runs]
    for got, want in zip(found, expected, strict=True):
        for one, other in zip(got or (), want or (), strict=True):
            if np.asarray(other).dtype.kind == "f":
                np.testing.assert_allclose(one, other, rtol=1e-6)
            elif other is not None:
                assert np.asarray(one).tolist() == np.asarray(other).tolist()


def test_called_function_may_work_on_strings_and_numbers(tensorflow):
    @tensorflow.function
    def inner(text, number):
        return tensorflow.strings.join([text, tensorflow.strings.as_string(number)])

    @tensorflow.function
    def outer(x, text):
        total = tensorflow.reduce_sum(x * x)
        index = 0
        while index < 3:
            text = inner(text, index)
            index += 1
        if total > 5.0:
            text = tensorflow.strings.upper(text)
        return total, text

    def build(tf1):
        x = tf1.placeholder(tf1.float32, [3], name="x")
        total, text = outer(x, tf1.placeholder(tf1.string, [], name="text"))
        tf1.identity(total, name="total")
        tf1.identity(text, name="result")

    feeds = [{"x:0": np.float32(x), "text:0": "h\u00e9"} for x in ([1, 1, 1], [1, 2, 3])]
    run_both(tensorflow, build, [(["total:0", "result:0"], feed) for feed in feeds])


@pytest.mark.parametrize("is_second", [False, True])
def test_strings_go_through_branches_and_loops(tensorflow, is_second):
    tf1, strings = tensorflow.compat.v1, tensorflow.strings
    (tf1.enable_control_flow_v2 if is_second else tf1.disable_control_flow_v2)()

    def build(tf1):
        x = tf1.placeholder(tf1.string, [], name="x")
        n = tf1.placeholder(tf1.int32, [], name="n")
        chosen = tf1.cond(n > 2, lambda: strings.upper(x), lambda: strings.join([x, "-"]))
        tf1.identity(chosen, name="chosen")
        _, word = tf1.while_loop(
            lambda i, word: i < n,
            lambda i, word: (i + 1, strings.join([word, strings.as_string(i)])),
            [0, x],
        )
        tf1.identity(word, name="word")
        table = tensorflow.lookup.experimental.MutableHashTable(tf1.string, tf1.int64, -1)
        with tf1.control_dependencies([table.insert(x[None], tf1.cast(n, tf1.int64)[None])]):
            tf1.no_op(name="insert")
        found = tf1.cond(
            n > 2, lambda: table.lookup(x[None]), lambda: tf1.constant([-7], tf1.int64)
        )
        tf1.identity(found, name="found")

    runs = []
    for n in (1, 4):
        feeds = {"x:0": "h\u00e9", "n:0": n}
        runs += [(["insert"], feeds), (["chosen:0", "word:0", "found:0"], feeds)]
    try:
        run_both(tensorflow, build, runs)
    finally:
        tf1.enable_control_flow_v2()


@pytest.mark.parametrize("is_resource", [False, True])
def test_variable_may_hold_strings(tensorflow, is_resource):
    def build(tf1):
        v = tf1.get_variable(
            "v", initializer=tf1.constant(["a", "b\u00e9"]), use_resource=is_resource
        )
        tf1.identity(v, name="read")
        changed = tf1.assign(v, tensorflow.strings.join([v, "!"]))
        with tf1.control_dependencies([changed]):
            tf1.no_op(name="change")
        tf1.global_variables_initializer()

    run_both(
        tensorflow,
        build,
        [(["init"], None), (["read:0"], None), (["change"], None), (["read:0"], None)],
    )


def checked_root(tf: Any) -> Any:
    """Returns a graph whose function checks what it is given."""

    @tf.function
    def root(x):
        tf.debugging.assert_positive(x, message="x is negative")
        return tf.sqrt(x)

    with tf.Graph().as_default():
        x = tf.compat.v1.placeholder(tf.float32, [2], name="x")
        tf.identity(root(x), name="y")
        return tf.compat.v1.train.export_meta_graph()


def test_assertion_within_a_called_function_is_checked(tensorflow):
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        import_here(checked_root(tensorflow))
        assert session.run("y:0", {"x:0": np.float32([4, 9])}).tolist() == [2, 3]
        with pytest.raises(errors.InvalidArgumentError, match="x is negative"):
            session.run("y:0", {"x:0": np.float32([4, -9])})


def test_assertion_that_is_left_out_where_a_graph_is_traced_is_logged(tensorflow, caplog):
    with jaxmeta.Graph().as_default() as graph, jaxmeta.Session() as session:
        import_here(checked_root(tensorflow))
        y, x = (graph.get_tensor_by_name(name) for name in ("y:0", "x:0"))
        with caplog.at_level(logging.WARNING):
            (slope,) = jaxmeta.gradients(y, x)
        assert "assertion is left out" in caplog.text
        found = session.run(slope, {"x:0": np.float32([4, 1])})
    np.testing.assert_allclose(found, [0.25, 0.5])


# --- gradients of functions ----------------------------------------------------------------------


def symbolic_gradient(tf: Any, *, has_rule: bool) -> Any:
    """Returns a graph of a function's gradient, which may have a rule of its own."""
    from tensorflow.python.framework import function

    @function.Defun(tf.float32, tf.float32, tf.float32)
    def rule(x, n, dy):
        return dy * n * 10.0, dy * x

    @function.Defun(tf.float32, tf.float32, **({"grad_func": rule} if has_rule else {}))
    def scaled_square(x, n):
        return x * x * n

    with tf.Graph().as_default():
        x = tf.compat.v1.placeholder(tf.float32, [3], name="x")
        n = tf.compat.v1.placeholder(tf.float32, [3], name="n")
        y = scaled_square(x, n)
        for index, slope in enumerate(tf.gradients(y, [x, n], grad_ys=[tf.sin(x)])):
            tf.identity(slope, name=f"slope_{index}")
        saved = tf.compat.v1.train.export_meta_graph()
    assert any(node.op == "SymbolicGradient" for node in saved.graph_def.node)
    return saved


@pytest.mark.parametrize("has_rule", [False, True])
def test_symbolic_gradient_is_the_rule_of_the_library_or_the_derivative(tensorflow, has_rule):
    saved = symbolic_gradient(tensorflow, has_rule=has_rule)
    rng = np.random.default_rng(2)
    feeds = {f"{name}:0": rng.standard_normal(3).astype(np.float32) for name in "xn"}
    names = ["slope_0:0", "slope_1:0"]
    with tensorflow.Graph().as_default(), tensorflow.compat.v1.Session() as session:
        tensorflow.compat.v1.train.import_meta_graph(saved)
        expected = session.run(names, feeds)
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        import_here(saved)
        found = session.run(names, feeds)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_registered_gradients_of_a_library_are_kept(tensorflow):
    saved = meta_graph_pb2.MetaGraphDef.FromString(checked_root(tensorflow).SerializeToString())
    name = saved.graph_def.library.function[0].signature.name
    saved.graph_def.library.registered_gradients.add(
        gradient_func=name, registered_op_type="CustomGradient-1"
    )
    with jaxmeta.Graph().as_default() as graph:
        jaxmeta.import_meta_graph(saved)
    expected = saved.graph_def.library.registered_gradients
    assert graph.as_graph_def().library.registered_gradients == expected
    exported = jaxmeta.export_meta_graph(graph=graph)
    assert exported.graph_def.library.registered_gradients == expected
    with jaxmeta.Graph().as_default() as again:
        jaxmeta.import_meta_graph(exported)
    assert len(again.registered_gradients) == 1


# --- ops that only their file describes ----------------------------------------------------------


def graph_with_an_unknown_op(*, is_described: bool = True) -> meta_graph_pb2.MetaGraphDef:
    """Returns y = x + x, and the output of an op of nobody's registry beside it."""
    saved = meta_graph_pb2.MetaGraphDef()
    x = saved.graph_def.node.add(name="x", op="Placeholder")
    x.attr["dtype"].type = 1
    for name, op, inputs in (
        ("y", "AddV2", ["x", "x"]),
        ("unknown", "ContribRotate", ["x"]),
        ("z", "AddV2", ["unknown:1", "x"]),
    ):
        node = saved.graph_def.node.add(name=name, op=op, input=inputs)
        node.attr["T"].type = 1
    if is_described:
        described = saved.meta_info_def.stripped_op_list.op.add(name="ContribRotate")
        described.input_arg.add(name="images", type_attr="T")
        for name in ("turned", "angle"):
            described.output_arg.add(name=name, type_attr="T")
        described.attr.add(name="T", type="type")
    return saved


def test_graph_with_an_unknown_op_runs_where_it_is_not_needed():
    feeds = {"x:0": np.float32(2)}
    with jaxmeta.Graph().as_default() as graph, jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(graph_with_an_unknown_op())
        assert session.run("y:0", feeds) == 4
        assert session.run("z:0", {**feeds, "unknown:1": np.float32(5)}) == 7
        with pytest.raises(errors.UnsupportedOpError, match=r"ContribRotate .*'unknown'"):
            session.run("z:0", feeds)
        exported = jaxmeta.export_meta_graph(graph=graph)
    described = {op_def.name for op_def in exported.meta_info_def.stripped_op_list.op}
    assert "ContribRotate" in described


def test_unknown_op_that_the_file_does_not_describe_is_refused():
    saved = graph_with_an_unknown_op(is_described=False)
    for node in saved.graph_def.node:
        node.op = node.op.replace("ContribRotate", "ContribNobodyKnows")
    with (
        jaxmeta.Graph().as_default(),
        pytest.raises(errors.UnsupportedOpError, match="the file does not describe them"),
    ):
        jaxmeta.import_meta_graph(saved)


def test_two_descriptions_of_one_unknown_op_are_refused():
    saved = graph_with_an_unknown_op()
    other = graph_with_an_unknown_op()
    other.meta_info_def.stripped_op_list.op[0].output_arg[1].name = "other"
    with jaxmeta.Graph().as_default():
        jaxmeta.import_meta_graph(saved)
        with pytest.raises(errors.UnsupportedOpError, match="in different ways"):
            jaxmeta.import_meta_graph(other)


def test_operation_on_the_host_is_named_where_it_would_be_traced(tensorflow):
    tf1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default():
        x = tf1.placeholder(tensorflow.float32, [3], name="x")
        tensorflow.reduce_sum(tensorflow.raw_ops.Unique(x=x * x)[0], name="y")
        saved = tf1.train.export_meta_graph()
    with jaxmeta.Graph().as_default() as graph:
        import_here(saved)
        y, x = (graph.get_tensor_by_name(name) for name in ("y:0", "x:0"))
        with pytest.raises(errors.UnsupportedOpError, match=r"Unique.*cannot be traced"):
            jaxmeta.gradients(y, x)


def test_numbers_that_32_bits_do_not_hold_are_not_cut(tensorflow):
    with tensorflow.Graph().as_default():
        s = tensorflow.compat.v1.placeholder(tensorflow.string, [1], name="s")
        hashed = tensorflow.strings.to_hash_bucket_fast(s, 1 << 60)
        tensorflow.math.floormod(hashed, np.int64(7), name="y")
        saved = tensorflow.compat.v1.train.export_meta_graph()
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        import_here(saved)
        with pytest.raises(errors.InvalidArgumentError, match="jax_enable_x64"):
            session.run("y:0", {"s:0": ["hello"]})
        with jax.enable_x64(True):
            found = session.run("y:0", {"s:0": ["hello"]})
    with tensorflow.Graph().as_default(), tensorflow.compat.v1.Session() as session:
        tensorflow.compat.v1.train.import_meta_graph(saved)
        assert session.run("y:0", {"s:0": ["hello"]}).tolist() == np.asarray(found).tolist()
