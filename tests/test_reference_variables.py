"""Reference variables of TensorFlow 1, and assignments that add: with TensorFlow as oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import jaxmeta
from jaxmeta import errors
from jaxmeta._proto import meta_graph_pb2

pytestmark = pytest.mark.needs_tf


def build(tf: Any, use_resource: bool, make: Any) -> Any:
    """Returns the MetaGraphDef of a variable and what ``make`` adds, and a session of both."""
    tf1 = tf.compat.v1
    graph = tf.Graph()
    with graph.as_default():
        w = tf1.get_variable(
            "w", initializer=np.arange(6, dtype=np.float32).reshape(2, 3), use_resource=use_resource
        )
        make(tf1, w)
        return tf1.train.export_meta_graph(), tf1.Session(graph=graph)


def run_both(saved: Any, theirs: Any, *runs: Any) -> tuple[list[Any], list[Any]]:
    """Returns what the runs, (fetches, feeds) each, give in TensorFlow and here."""
    with theirs:
        expected = [theirs.run(fetches, feeds) for fetches, feeds in runs]
    proto = meta_graph_pb2.MetaGraphDef.FromString(saved.SerializeToString())
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as ours:
        jaxmeta.import_meta_graph(proto)
        found = [ours.run(fetches, feeds) for fetches, feeds in runs]
    return expected, found


def assert_same(expected: list[Any], found: list[Any]) -> None:
    for one, other in zip(expected, found, strict=True):
        if isinstance(one, list):
            assert_same(one, other)
        elif one is None:
            assert other is None
        else:
            assert np.asarray(other).dtype == np.asarray(one).dtype
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("use_resource", [False, True], ids=["reference", "resource"])
def test_assignments_give_what_they_give_in_tensorflow(tensorflow, use_resource):
    def make(tf1: Any, w: Any) -> None:
        x = tf1.placeholder(tensorflow.float32, [2, 3], name="x")
        for name, assign in (("add", w.assign_add), ("sub", w.assign_sub), ("set", w.assign)):
            tensorflow.identity(assign(x), name=name)
        tensorflow.multiply(w, 2.0, name="double")

    saved, theirs = build(tensorflow, use_resource, make)
    x = {"x:0": np.full((2, 3), 0.5, np.float32)}
    read = "w/read:0" if not use_resource else "w/Read/ReadVariableOp:0"
    runs = [("w/Assign", None), (read, None)]
    runs += [run for name in ("add:0", "sub:0", "set:0") for run in ((name, x), ("double:0", None))]
    assert_same(*run_both(saved, theirs, *runs, ([read, "double:0"], None)))


def test_value_is_read_after_what_the_control_edges_say(tensorflow):
    def make(tf1: Any, w: Any) -> None:
        with tf1.control_dependencies([w.assign_add(np.ones((2, 3), np.float32)).op]):
            tf1.raw_ops.Identity(input=w._ref(), name="after")

    saved, theirs = build(tensorflow, False, make)
    assert_same(*run_both(saved, theirs, ("w/Assign", None), ("after:0", None), ("after:0", None)))


def test_whether_a_variable_is_initialized_is_asked_anew_in_each_run(tensorflow):
    def make(tf1: Any, w: Any) -> None:
        tf1.raw_ops.IsVariableInitialized(ref=w._ref(), name="known")

    saved, theirs = build(tensorflow, False, make)
    runs = [("known:0", None), ("w/Assign", None), ("known:0", None)]
    assert_same(*run_both(saved, theirs, *runs))


def test_reference_may_be_fed_and_all_its_readers_see_it(tensorflow):
    def make(tf1: Any, w: Any) -> None:
        tensorflow.multiply(w, 2.0, name="double")

    saved, theirs = build(tensorflow, False, make)
    feeds = {"w:0": np.full((2, 3), 4.0, np.float32)}
    assert_same(*run_both(saved, theirs, (["double:0", "w/read:0"], feeds)))


def test_graph_without_use_of_the_variable_s_node_name(tensorflow):
    tf1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default() as graph:
        raw = tf1.raw_ops
        ref = raw.Variable(shape=[2], dtype=tensorflow.float32, shared_name="own", name="v")
        tf1.raw_ops.Assign(ref=ref, value=np.ones(2, np.float32), name="init")
        raw.IsVariableInitialized(ref=ref, name="known")
        saved = tf1.train.export_meta_graph()
    runs = [("known:0", None), ("init", None), ("known:0", None), ("v:0", None)]
    assert_same(*run_both(saved, tf1.Session(graph=graph), *runs))


def test_value_of_another_shape_is_refused(tensorflow):
    def make(tf1: Any, w: Any) -> None:
        x = tf1.placeholder(tensorflow.float32, None, name="x")
        tf1.raw_ops.AssignAdd(ref=w._ref(), value=x, name="add")

    saved, _ = build(tensorflow, False, make)
    proto = meta_graph_pb2.MetaGraphDef.FromString(saved.SerializeToString())
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(proto)
        session.run("w/Assign")
        with pytest.raises(errors.InvalidArgumentError, match=r"has shape \[2, 3\], it was given"):
            session.run("add", {"x:0": np.ones(2, np.float32)})
        assert session.run("w:0")[1, 2] == 5.0
