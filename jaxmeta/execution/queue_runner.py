"""QueueRunner: threads that fill a queue by running operations of a graph over and over."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any, Final

from jaxmeta import errors
from jaxmeta._proto import meta_graph_pb2
from jaxmeta.execution.coordinator import Coordinator
from jaxmeta.graphs import building, default_sessions, renaming
from jaxmeta.graphs.graph import Operation
from jaxmeta.meta_graphs import collection_registry
from jaxmeta.meta_graphs.collection_registry import GraphKeys

# Numbers as in TensorFlow's error_codes.proto.
_ERROR_CODES: Final[dict[type[BaseException], int]] = {
    errors.CancelledError: 1,
    errors.InvalidArgumentError: 3,
    errors.DeadlineExceededError: 4,
    errors.OutOfRangeError: 11,
}
_ERROR_TYPES: Final = {code: kind for kind, code in _ERROR_CODES.items()}


class QueueRunner:
    """Operations that each put something into a queue, every one to be run in a thread.

    Args:
        queue: the queue, or the operation of its handle.
        enqueue_ops: the operations.
        close_op: what closes the queue when all threads are through; made where None.
        cancel_op: what also cancels those that wait; made where None.
        queue_closed_exception_types: the exceptions that say that what feeds the queue is
            exhausted; `OutOfRangeError` where None.
        queue_runner_def: a QueueRunnerDef to take all this from instead.
        import_scope: a name scope that was put before the names in it.

    Raises:
        GraphError: arguments are missing, or exclude each other; or a name is unknown.
        FeedTypeError: an exception type is none of `OperationError`.

    Example:
        >>> import numpy as np
        >>> from jaxmeta.execution.queues import FIFOQueue
        >>> with building.Graph().as_default():
        ...     queue = FIFOQueue(10, np.float32, [()], name="q")
        ...     runner = QueueRunner(queue, [queue.enqueue(1.0)])
        >>> runner.name, runner.close_op.name, runner.cancel_op.name
        ('q', 'q_Close', 'q_Close_1')
    """

    def __init__(
        self,
        queue: Any = None,
        enqueue_ops: Sequence[Operation] | None = None,
        close_op: Operation | None = None,
        cancel_op: Operation | None = None,
        queue_closed_exception_types: tuple[type[BaseException], ...] | None = None,
        queue_runner_def: meta_graph_pb2.QueueRunnerDef | None = None,
        import_scope: str | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._running: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._exceptions_raised: list[BaseException] = []
        if queue_runner_def is not None:
            if queue is not None or enqueue_ops:
                raise errors.GraphError("queue_runner_def and queue are mutually exclusive")
            self._read(queue_runner_def, import_scope)
            return
        if queue is None or not enqueue_ops:
            raise errors.GraphError("a QueueRunner needs a queue and enqueue_ops")
        types = queue_closed_exception_types
        if types is not None and (
            not isinstance(types, tuple)
            or not types
            or not all(isinstance(t, type) and t in _ERROR_CODES for t in types)
        ):
            raise errors.FeedTypeError(
                "queue_closed_exception_types must be a tuple of exceptions among "
                f"{[kind.__name__ for kind in _ERROR_CODES]}, not {types!r}"
            )
        self.queue = queue
        self.enqueue_ops = list(enqueue_ops)
        self.close_op = close_op if close_op is not None else queue.close()
        self.cancel_op = (
            cancel_op if cancel_op is not None else queue.close(cancel_pending_enqueues=True)
        )
        self._codes = [_ERROR_CODES[kind] for kind in types or (errors.OutOfRangeError,)]

    @property
    def name(self) -> str:
        """The name of the queue's node."""
        name: str = self.queue.name
        return name

    @property
    def queue_closed_exception_types(self) -> tuple[type[BaseException], ...]:
        """The exceptions that say that what feeds the queue is exhausted."""
        return tuple(_ERROR_TYPES[code] for code in self._codes if code in _ERROR_TYPES)

    @property
    def exceptions_raised(self) -> list[BaseException]:
        """What threads raised that have no coordinator."""
        return self._exceptions_raised

    # --- threads

    def create_threads(
        self, sess: Any, coord: Coordinator | None = None, daemon: bool = False, start: bool = False
    ) -> list[threading.Thread]:
        """Returns a thread for each operation, and with a coordinator one that cancels the queue.

        Args:
            sess: the session to run in.
            coord: stops the threads, and hears of their exceptions.
            daemon: whether the process may end while they go on.
            start: whether to start them.

        Returns:
            The threads; none where those made for the session before still go on.
        """
        with self._lock:
            if self._running.get(sess, 0) > 0:
                return []
            self._running[sess] = len(self.enqueue_ops)
            self._exceptions_raised = []
        prefix = f"QueueRunnerThread-{self.name}"
        threads = [
            threading.Thread(target=self._run, args=(sess, op, coord), name=f"{prefix}-{op.name}")
            for op in self.enqueue_ops
        ]
        if coord is not None:
            name = f"{prefix}-close_on_stop"
            threads.append(
                threading.Thread(target=self._cancel_on_stop, args=(sess, coord), name=name)
            )
        for thread in threads:
            if coord is not None:
                coord.register_thread(thread)
            thread.daemon = thread.daemon or daemon
            if start:
                thread.start()
        return threads

    def _run(self, sess: Any, enqueue_op: Operation, coord: Coordinator | None) -> None:
        """Runs an operation until it or the coordinator says stop; the last thread closes."""
        try:
            enqueue = sess.make_callable(enqueue_op)
            while coord is None or not coord.should_stop():
                enqueue()
        except self.queue_closed_exception_types:
            if self._end(sess) == 0:
                _run_quietly(sess, self.close_op)
        except Exception as error:
            self._end(sess)
            if coord is None:
                with self._lock:
                    self._exceptions_raised.append(error)
                raise
            coord.request_stop(error)
        else:
            self._end(sess)

    def _end(self, sess: Any) -> int:
        """Counts a thread off and returns how many of the session's go on."""
        with self._lock:
            self._running[sess] -= 1
            return self._running[sess]

    def _cancel_on_stop(self, sess: Any, coord: Coordinator) -> None:
        coord.wait_for_stop()
        _run_quietly(sess, self.cancel_op)

    # --- protos

    def to_proto(self, export_scope: str | None = None) -> meta_graph_pb2.QueueRunnerDef | None:
        """Returns the QueueRunnerDef, or None where the queue is not in the name scope.

        Args:
            export_scope: a name scope to take off the names.
        """
        if export_scope and not self.name.startswith(export_scope):
            return None
        proto = meta_graph_pb2.QueueRunnerDef(
            queue_name=self.name,
            enqueue_op_name=[op.name for op in self.enqueue_ops],
            close_op_name=self.close_op.name,
            cancel_op_name=self.cancel_op.name,
        )
        renaming.rename_proto(proto, lambda name: renaming.strip_name_scope(name, export_scope))
        proto.queue_closed_exception_types.extend(self._codes)  # type: ignore[arg-type]
        return proto

    @staticmethod
    def from_proto(
        queue_runner_def: meta_graph_pb2.QueueRunnerDef, import_scope: str | None = None
    ) -> QueueRunner:
        """Returns the QueueRunner that a QueueRunnerDef describes, in the default graph.

        Raises:
            GraphError: a name is not in the graph.
        """
        return QueueRunner(queue_runner_def=queue_runner_def, import_scope=import_scope)

    def _read(self, proto: meta_graph_pb2.QueueRunnerDef, import_scope: str | None) -> None:
        target = building.get_default_graph()

        def operation(name: str) -> Operation:
            return target.get_operation_by_name(renaming.prepend_name_scope(name, import_scope))

        self.queue = operation(proto.queue_name.split(":")[0])
        self.enqueue_ops = [operation(name) for name in proto.enqueue_op_name]
        self.close_op = operation(proto.close_op_name)
        self.cancel_op = operation(proto.cancel_op_name)
        # Files of the years before the field have none. A code without a class of ours is kept for
        # the next file; nothing raises it.
        self._codes = list(map(int, proto.queue_closed_exception_types)) or [
            _ERROR_CODES[errors.OutOfRangeError]
        ]


def _run_quietly(sess: Any, operation: Operation) -> None:
    """Runs an operation that closes a queue, which may be closed already, or the session."""
    try:
        sess.run(operation)
    except (errors.OperationError, errors.SessionError):
        return


def add_queue_runner(qr: QueueRunner, collection: str = GraphKeys.QUEUE_RUNNERS) -> None:
    """Adds a QueueRunner to a collection of the default graph, from which it is started."""
    building.get_default_graph().add_to_collection(collection, qr)


def start_queue_runners(
    sess: Any = None,
    coord: Coordinator | None = None,
    daemon: bool = True,
    start: bool = True,
    collection: str = GraphKeys.QUEUE_RUNNERS,
) -> list[threading.Thread]:
    """Makes the threads of all QueueRunners in a collection of the session's graph.

    Args:
        sess: the session; the default one where None.
        coord: stops the threads, and hears of their exceptions.
        daemon: whether the process may end while they go on.
        start: whether to start them.
        collection: the name of the collection.

    Returns:
        All threads.

    Raises:
        GraphError: there is no session, or the collection holds something else.
    """
    if sess is None:
        sess = default_sessions.get_default_session()
    if sess is None:
        raise errors.GraphError(
            "cannot start queue runners: there is no default session. Use "
            "`with sess.as_default():`, or pass it: start_queue_runners(sess=sess)"
        )
    runners = sess.graph.get_collection(collection)
    others = sorted({type(item).__name__ for item in runners if not isinstance(item, QueueRunner)})
    if others:
        raise errors.GraphError(
            f"collection {collection!r} holds {', '.join(others)}; expected QueueRunner only"
        )
    threads: list[threading.Thread] = []
    for runner in runners:
        threads.extend(runner.create_threads(sess, coord=coord, daemon=daemon, start=start))
    return threads


collection_registry.register_proto_function(
    GraphKeys.QUEUE_RUNNERS,
    meta_graph_pb2.QueueRunnerDef,
    QueueRunner.to_proto,
    QueueRunner.from_proto,
)
