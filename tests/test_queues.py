"""Queues: in memory, as nodes, run by sessions, filled by threads."""

from __future__ import annotations

import threading
import time
import types
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta
from jaxmeta import errors
from jaxmeta._proto import meta_graph_pb2
from jaxmeta.execution.queue_resources import PaddingQueue, Queue, RandomShuffleQueue, Waiting

SHORT = types.SimpleNamespace(timeout_in_ms=50)
INT = [np.dtype(np.int32)]


def elements(*numbers: int) -> list[np.ndarray[Any, Any]]:
    return [np.array(numbers, np.int32)]


def filled(*numbers: int, capacity: int = 10) -> Queue:
    queue = Queue("q", capacity, INT, [()])
    queue.enqueue_many(elements(*numbers), Waiting())
    return queue


def in_thread(fn: Any, *args: Any) -> Any:
    """Starts a function in a thread; the returned function waits and returns or raises."""
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = fn(*args)
        except Exception as error:  # raised again below
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def finish() -> Any:
        thread.join(30)
        assert not thread.is_alive()
        if "error" in outcome:
            raise outcome["error"]
        return outcome["value"]

    return finish


def until(condition: Any) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# --- in memory -----------------------------------------------------------------------------------


def test_first_in_is_first_out():
    queue = filled(3, 1, 2)
    assert [int(queue.dequeue(Waiting())[0]) for _ in range(3)] == [3, 1, 2]


def test_full_queue_is_waited_for():
    queue = filled(1, 2, capacity=2)
    finish = in_thread(queue.enqueue, [np.int32(3)], Waiting())
    assert queue.size == 2
    assert queue.dequeue(Waiting())[0] == 1
    finish()
    np.testing.assert_array_equal(queue.dequeue_many(2, Waiting())[0], [2, 3])


def test_more_elements_than_the_capacity_pass_through_one_by_one():
    queue = Queue("q", 2, INT, [()])
    finish = in_thread(queue.enqueue_many, elements(*range(9)), Waiting())
    np.testing.assert_array_equal(queue.dequeue_many(9, Waiting())[0], range(9))
    finish()


def test_empty_queue_is_waited_for():
    queue = Queue("q", 2, INT, [()])
    finish = in_thread(queue.dequeue, Waiting())
    queue.enqueue([np.int32(3)], Waiting())
    assert finish()[0] == 3


def test_who_waited_first_is_served_first():
    queue = Queue("q", 9, INT, [()])
    many = in_thread(queue.dequeue_many, 3, Waiting())
    until(lambda: len(queue._takers) == 1)
    one = in_thread(queue.dequeue, Waiting())
    until(lambda: len(queue._takers) == 2)
    queue.enqueue_many(elements(1, 2, 3, 4), Waiting())
    np.testing.assert_array_equal(many()[0], [1, 2, 3])
    assert one()[0] == 4


def test_closed_queue_gives_what_is_left_then_is_out_of_range():
    queue = filled(1, 2, 3)
    queue.close(Waiting())
    assert queue.dequeue(Waiting())[0] == 1
    with pytest.raises(errors.OutOfRangeError, match="requested 3, current size 2"):
        queue.dequeue_many(3, Waiting())
    np.testing.assert_array_equal(queue.dequeue_up_to(3, Waiting())[0], [2, 3])
    for take in (queue.dequeue, lambda waiting: queue.dequeue_up_to(3, waiting)):
        with pytest.raises(errors.OutOfRangeError, match="insufficient elements"):
            take(Waiting())
    with pytest.raises(errors.CancelledError, match="is closed"):
        queue.enqueue([np.int32(1)], Waiting())


def test_closing_ends_what_waits_for_elements():
    queue = filled(1)
    finish = in_thread(queue.dequeue_many, 2, Waiting())
    until(lambda: not queue.size)
    queue.close(Waiting())
    with pytest.raises(errors.OutOfRangeError):
        finish()
    assert queue.dequeue(Waiting())[0] == 1  # it was put back


def test_closing_lets_what_waits_to_be_put_in_go_first():
    queue = filled(1, 2, capacity=2)
    put = in_thread(queue.enqueue, [np.int32(3)], Waiting())
    until(lambda: len(queue._putters) == 1)
    close = in_thread(queue.close, Waiting())
    until(lambda: len(queue._putters) == 2)
    np.testing.assert_array_equal(queue.dequeue_many(3, Waiting())[0], [1, 2, 3])
    put()
    close()
    assert queue.is_closed


def test_closing_may_cancel_what_waits_to_be_put_in():
    queue = filled(1, capacity=1)
    finish = in_thread(queue.enqueue, [np.int32(2)], Waiting())
    until(lambda: len(queue._putters) == 1)
    queue.close(Waiting(), cancel_pending_enqueues=True)
    with pytest.raises(errors.CancelledError, match="is closed"):
        finish()
    assert queue.dequeue(Waiting())[0] == 1


def test_wait_ends_at_its_deadline():
    with pytest.raises(errors.DeadlineExceededError, match="longer than the run's timeout"):
        filled(1).dequeue_many(2, Waiting(deadline=time.monotonic() + 0.02))


def test_negative_number_of_elements():
    with pytest.raises(errors.InvalidArgumentError, match="cannot dequeue -1 elements"):
        filled(1).dequeue_many(-1, Waiting())


def test_no_elements_have_the_components_shapes():
    queue = Queue("q", 2, [np.dtype(np.float32)], [(3,)])
    assert queue.dequeue_many(0, Waiting())[0].shape == (0, 3)


def test_all_components_that_do_not_fit_are_named():
    queue = Queue("q", 2, [*INT, np.dtype(np.float32)], [(), (2,)])
    with pytest.raises(errors.InvalidArgumentError) as caught:
        queue.enqueue([np.float32(1), np.zeros(3, np.float32)], Waiting())
    assert "component 0: expected dtype int32, got float32" in str(caught.value)
    assert "component 1: expected shape (2,), got (3,)" in str(caught.value)
    with pytest.raises(errors.InvalidArgumentError, match="same size in the first axis"):
        queue.enqueue_many([np.zeros(2, np.int32), np.zeros((3, 2), np.float32)], Waiting())


def test_elements_of_different_shapes_are_padded_by_the_queue_for_it():
    parts = [[np.arange(size, dtype=np.int32)] for size in (2, 0, 3)]
    padding = PaddingQueue("p", 9, INT, [(None,)])
    plain = Queue("q", 9, INT)
    for part in parts:
        padding.enqueue(part, Waiting())
        plain.enqueue(part, Waiting())
    expected = [[0, 1, 0], [0, 0, 0], [0, 1, 2]]
    np.testing.assert_array_equal(padding.dequeue_many(3, Waiting())[0], expected)
    with pytest.raises(errors.InvalidArgumentError, match="different shapes"):
        plain.dequeue_many(3, Waiting())


def test_shuffled_queue_gives_each_element_once_in_another_order():
    queue = RandomShuffleQueue("q", 100, INT, [()], seed=3)
    queue.enqueue_many(elements(*range(50)), Waiting())
    (found,) = queue.dequeue_many(50, Waiting())
    assert sorted(found) == list(range(50))
    assert list(found) != list(range(50))


def test_shuffled_queue_keeps_some_elements_until_it_is_closed():
    queue = RandomShuffleQueue("q", 9, INT, [()], min_after_dequeue=3)
    queue.enqueue_many(elements(1, 2, 3, 4), Waiting())
    queue.dequeue(Waiting())
    finish = in_thread(queue.dequeue_many, 3, Waiting())
    until(lambda: len(queue._takers) == 1)
    assert queue.size == 3
    queue.close(Waiting())
    assert len(finish()[0]) == 3


# --- as nodes ------------------------------------------------------------------------------------


@pytest.mark.needs_tf
def test_nodes_have_the_names_and_ops_that_tensorflow_gives_them(tensorflow):
    def build(api: Any, float_type: Any, int_type: Any) -> None:
        queue = api.FIFOQueue(5, [float_type, int_type], [(2,), ()], name="q")
        queue.enqueue([np.zeros(2, np.float32), np.int32(1)])
        queue.enqueue([np.zeros(2, np.float32), np.int32(1)])
        queue.enqueue_many([np.zeros((3, 2), np.float32), np.zeros(3, np.int32)])
        queue.dequeue()
        queue.dequeue_many(3)
        queue.dequeue_up_to(3, name="some")
        queue.size()
        queue.is_closed()
        queue.close()
        queue.close(cancel_pending_enqueues=True)

    with tensorflow.Graph().as_default() as theirs:
        build(tensorflow.queue, tensorflow.float32, tensorflow.int32)
    with jaxmeta.Graph().as_default() as ours:
        build(jaxmeta, np.float32, np.int32)
    expected = {node.name: node for node in theirs.as_graph_def().node}
    assert {name: node.op for name, node in ours.nodes.items()} == {
        name: node.op for name, node in expected.items()
    }
    for name, node in ours.nodes.items():
        assert list(node.input) == list(expected[name].input)
    with tensorflow.Graph().as_default() as graph:
        tensorflow.import_graph_def(
            tensorflow.compat.v1.GraphDef.FromString(ours.as_graph_def().SerializeToString()),
            name="",
        )
        assert graph.get_tensor_by_name("q_DequeueMany:0").shape.as_list() == [3, 2]


@pytest.mark.needs_tf
def test_queue_runs_as_in_tensorflow(tensorflow):
    tf1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default() as theirs, tf1.Session() as session:
        queue = tensorflow.queue.FIFOQueue(9, [tensorflow.float32, tensorflow.string], name="q")
        x = tf1.placeholder(tensorflow.float32, [None], name="x")
        queue.enqueue_many([x * 2, ["a", "b", "c"]], name="put")
        one, word = queue.dequeue(name="take")
        tensorflow.add(one, 1.0, name="one")
        queue.size(name="size")
        saved = tf1.train.export_meta_graph()
        expected = run_queue(session)
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(meta_graph_pb2.MetaGraphDef.FromString(saved.SerializeToString()))
        found = run_queue(session)
    assert found == expected
    del theirs, word


def run_queue(session: Any) -> list[Any]:
    session.run("put", {"x:0": np.array([1, 2, 3], np.float32)})
    found = [session.run(["one:0", "take:1"]) for _ in range(2)]
    return [(float(number), word) for number, word in found] + [int(session.run("size:0"))]


def test_elements_may_be_dicts_and_tensors():
    with jaxmeta.Graph().as_default() as graph, jaxmeta.Session() as session:
        graph.add_signature("double", lambda x: x * 2, jnp.ones(2))
        queue = jaxmeta.FIFOQueue(5, [np.float32, str], [(2,), ()], names=["x", "y"])
        put = queue.enqueue({"x": graph.get_tensor_by_name("double:0"), "y": "word"})
        take = queue.dequeue()
        session.run(put, {"x:0": np.array([1, 2], np.float32)})
        found = session.run(take)
    np.testing.assert_array_equal(found["x"], [2, 4])
    assert found["y"] == b"word"


def test_components_that_do_not_fit_are_refused_when_nodes_are_made():
    with jaxmeta.Graph().as_default():
        queue = jaxmeta.FIFOQueue(5, [np.float32, np.int32], [(2,), ()], name="q")
        with pytest.raises(errors.GraphError) as caught:
            queue.enqueue([np.zeros(3, np.float32), np.float32(1)])
        assert "component 0: expected shape (2,), got (3,)" in str(caught.value)
        assert "component 1: expected dtype int32, got float32" in str(caught.value)
        with pytest.raises(errors.GraphError, match="has 2 components, got 1"):
            queue.enqueue(np.zeros(2, np.float32))


# --- sessions ------------------------------------------------------------------------------------


def train_graph() -> tuple[jaxmeta.Graph, Any]:
    """Returns a graph that trains on what a queue gives, and the queue."""
    with jaxmeta.Graph().as_default() as graph:
        queue = jaxmeta.FIFOQueue(5, np.float32, [(2,)], name="q")
        variables = graph.variables({"w": jnp.ones(2)})
        step = {"updates": 0}
        graph.add_signature(
            "train", lambda v, x: {"w": v["w"] + x}, variables, queue.dequeue(), **step
        )
    return graph, queue


def test_training_takes_its_batch_from_a_queue():
    graph, queue = train_graph()
    with graph.as_default(), jaxmeta.Session() as session:
        put = queue.enqueue([[1.0, 2.0]])
        session.set_state({"w": jnp.zeros(2)})
        for _ in range(3):
            session.run(put)
            session.run("train/update")
        np.testing.assert_array_equal(session.state["w"], [3.0, 6.0])


def test_run_that_fails_leaves_the_variables_as_they_were():
    graph, queue = train_graph()
    with graph.as_default(), jaxmeta.Session() as session:
        reset, put = graph.variable("w").initializer_name, queue.enqueue([[1.0, 2.0]])
        session.set_state({"w": jnp.ones(2)})
        with pytest.raises(errors.DeadlineExceededError):
            session.run([reset, "train/update"], options=SHORT)
        np.testing.assert_array_equal(session.state["w"], [1.0, 1.0])
        session.run(put)
        session.run("train/update")
        np.testing.assert_array_equal(session.state["w"], [2.0, 3.0])


def test_config_limits_how_long_runs_wait():
    graph, queue = train_graph()
    config = types.SimpleNamespace(operation_timeout_in_ms=50)
    with graph.as_default(), jaxmeta.Session(config=config) as session:
        take = queue.dequeue()
        with pytest.raises(errors.DeadlineExceededError):
            session.run(take)


def test_closing_the_session_cancels_what_waits():
    graph, queue = train_graph()
    with graph.as_default():
        session, take = jaxmeta.Session(), queue.dequeue()
        finish = in_thread(session.run, take)
        until(lambda: session._resources._held)
        session.close()
    with pytest.raises(errors.CancelledError, match="the session was closed"):
        finish()


def test_sessions_have_queues_of_their_own():
    graph, queue = train_graph()
    with graph.as_default():
        put, size = queue.enqueue([[1.0, 2.0]]), queue.size()
        with jaxmeta.Session() as one, jaxmeta.Session() as other:
            one.run(put)
            assert (one.run(size), other.run(size)) == (1, 0)


def test_queues_of_a_shared_name_are_one():
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        one, other = (jaxmeta.FIFOQueue(5, np.int32, [()], shared_name="shared") for _ in range(2))
        session.run(one.enqueue(7))
        assert session.run(other.dequeue()) == 7


@pytest.mark.needs_tf
def test_queues_inside_called_functions_run(tensorflow):
    tf1 = tensorflow.compat.v1

    @tensorflow.function(autograph=False)
    def length():
        return tensorflow.queue.FIFOQueue(3, tensorflow.int32, [()]).size()

    with tensorflow.Graph().as_default():
        tensorflow.identity(length(), name="length")
        saved = tf1.train.export_meta_graph()
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(meta_graph_pb2.MetaGraphDef.FromString(saved.SerializeToString()))
        assert session.run("length:0") == 0


# --- runners -------------------------------------------------------------------------------------


def counting_graph(limit: int) -> tuple[jaxmeta.Graph, Any, Any]:
    """Returns a graph whose runner moves numbers from one queue to another, and the two queues."""
    with jaxmeta.Graph().as_default() as graph:
        source = jaxmeta.FIFOQueue(limit, np.int32, [()], name="source")
        target = jaxmeta.FIFOQueue(3, np.int32, [()], name="target")
        source.enqueue_many(np.arange(limit, dtype=np.int32), name="fill")
        source.close(name="end")
        moves = [target.enqueue(source.dequeue()) for _ in range(2)]
        jaxmeta.add_queue_runner(jaxmeta.QueueRunner(target, moves))
    return graph, source, target


def batches(session: Any, fetch: Any) -> Iterator[Any]:
    """Yields what a fetch gives until the input is exhausted."""
    while True:
        try:
            yield session.run(fetch)
        except errors.OutOfRangeError:
            return


def test_runners_fill_a_queue_until_their_source_is_exhausted():
    graph, _, target = counting_graph(20)
    with graph.as_default(), jaxmeta.Session() as session:
        session.run("fill")
        session.run("end")
        take = target.dequeue_up_to(4)
        coord = jaxmeta.Coordinator()
        threads = jaxmeta.start_queue_runners(session, coord)
        assert len(threads) == 3
        found = [number for batch in batches(session, take) for number in batch.tolist()]
        coord.request_stop()
        coord.join(threads)
    assert sorted(found) == list(range(20))


def test_stopping_the_coordinator_ends_runners_that_wait():
    graph, _, target = counting_graph(20)
    with graph.as_default(), jaxmeta.Session() as session:
        session.run("fill")
        coord = jaxmeta.Coordinator((errors.OutOfRangeError, errors.CancelledError))
        threads = jaxmeta.start_queue_runners(coord=coord)
        size = target.size()
        until(lambda: session.run(size) == 3)
        coord.request_stop()
        session.run("end")
        coord.join(threads, stop_grace_period_secs=30)
        assert not any(thread.is_alive() for thread in threads)


def test_error_of_a_runner_reaches_the_coordinator():
    with jaxmeta.Graph().as_default() as graph, jaxmeta.Session() as session:
        queue = jaxmeta.FIFOQueue(3, np.int32, [()], name="q")
        graph.add_node("Placeholder", [], {"dtype": np.dtype(np.int32)}, "x")
        put = queue.enqueue(graph.get_tensor_by_name("x:0"))
        jaxmeta.add_queue_runner(jaxmeta.QueueRunner(queue, [put]))
        coord = jaxmeta.Coordinator()
        jaxmeta.start_queue_runners(session, coord)
        with pytest.raises(errors.FeedError, match="must be fed"):
            coord.join()


def test_runners_that_run_already_are_not_started_again():
    graph, _, _ = counting_graph(20)
    with graph.as_default(), jaxmeta.Session() as session:
        threads = jaxmeta.start_queue_runners(session, start=False)
        assert len(threads) == 2
        assert jaxmeta.start_queue_runners(session, start=False) == []


def test_runner_goes_to_its_proto_and_back():
    graph, _, target = counting_graph(3)
    with graph.as_default():
        (runner,) = jaxmeta.get_collection("queue_runners")
        proto = runner.to_proto()
        again = jaxmeta.QueueRunner.from_proto(proto)
    assert again.to_proto() == proto
    assert proto.queue_name == target.name
    assert list(proto.queue_closed_exception_types) == [11]
    assert again.queue_closed_exception_types == (errors.OutOfRangeError,)
    assert [op.name for op in again.enqueue_ops] == [op.name for op in runner.enqueue_ops]


@pytest.mark.needs_tf
def test_runner_s_proto_is_tensorflow_s(tensorflow):
    graph, _, _ = counting_graph(3)
    with graph.as_default():
        (runner,) = jaxmeta.get_collection("queue_runners")
        content = runner.to_proto().SerializeToString()
    from tensorflow.core.protobuf import queue_runner_pb2

    theirs = queue_runner_pb2.QueueRunnerDef.FromString(content)
    assert theirs.queue_name == "target"
    assert list(theirs.enqueue_op_name) == ["target_enqueue", "target_enqueue_1"]
    assert theirs.SerializeToString() == content


@pytest.mark.needs_tf
@pytest.mark.parametrize("import_scope", [None, "input"])
def test_runners_of_a_graph_of_tensorflow_run(tensorflow, import_scope):
    tf1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default():
        queue = tensorflow.queue.FIFOQueue(4, tensorflow.float32, [()], name="q")
        noise = tf1.placeholder_with_default(np.float32(2.5), [], name="value")
        closed = (tensorflow.errors.OutOfRangeError, tensorflow.errors.CancelledError)
        runner = tf1.train.QueueRunner(
            queue, [queue.enqueue(noise * 2)] * 2, queue_closed_exception_types=closed
        )
        tf1.train.add_queue_runner(runner)
        queue.dequeue_many(6, name="take")
        saved = tf1.train.export_meta_graph()
    prefix = f"{import_scope}/" if import_scope else ""
    with jaxmeta.Graph().as_default() as graph, jaxmeta.Session() as session:
        proto = meta_graph_pb2.MetaGraphDef.FromString(saved.SerializeToString())
        jaxmeta.import_meta_graph(proto, import_scope=import_scope)
        (runner,) = graph.get_collection("queue_runners")
        assert runner.name == f"{prefix}q"
        coord = jaxmeta.Coordinator()
        threads = jaxmeta.start_queue_runners(session, coord)
        np.testing.assert_array_equal(session.run(f"{prefix}take:0"), np.full(6, 5.0))
        coord.request_stop()
        coord.join(threads, stop_grace_period_secs=30)
        again = jaxmeta.export_meta_graph(export_scope=import_scope)
    assert (
        again.collection_def["queue_runners"].SerializeToString()
        == saved.collection_def["queue_runners"].SerializeToString()
    )


def test_runner_needs_a_queue_and_operations():
    with jaxmeta.Graph().as_default():
        queue = jaxmeta.FIFOQueue(3, np.int32, [()])
        with pytest.raises(errors.GraphError, match="needs a queue and enqueue_ops"):
            jaxmeta.QueueRunner(queue, [])
        with pytest.raises(TypeError, match="must be a tuple of exceptions"):
            jaxmeta.QueueRunner(
                queue, [queue.enqueue(1)], queue_closed_exception_types=(ValueError,)
            )
        with pytest.raises(errors.GraphError, match="mutually exclusive"):
            jaxmeta.QueueRunner(queue, queue_runner_def=meta_graph_pb2.QueueRunnerDef())


def test_runners_need_a_session():
    with jaxmeta.Graph().as_default(), pytest.raises(ValueError, match="no default session"):
        jaxmeta.start_queue_runners()
