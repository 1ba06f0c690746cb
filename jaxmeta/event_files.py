"""Event files, which TensorBoard shows: summaries by step, and graphs."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from types import TracebackType
from typing import IO, Any, Final, Self

import numpy as np

from jaxmeta import errors
from jaxmeta._proto import event_pb2, graph_pb2, meta_graph_pb2
from jaxmeta.graphs import building, graph

_FILE_VERSION: Final = "brain.Event:2"
_FILE_NUMBERS: Final = itertools.count()


class FileWriter:
    """Writes an event file in a directory, as TensorFlow's ``tf.summary.FileWriter`` does.

    Records are flushed after ``max_queue`` of them, after ``flush_secs`` seconds, and at the end.
    It needs the package tensorboard: ``pip install 'jaxmeta[tensorboard]'``.

    Args:
        logdir: the directory, made at need.
        graph: a graph to show, or None.
        max_queue: after how many records they are flushed.
        flush_secs: after how many seconds they are flushed, at the next record.
        graph_def: in place of a graph, as in old TensorFlow.
        filename_suffix: what the file's name ends in.
        session: not used; TensorFlow has it in this place.

    Raises:
        MissingPackageError: tensorboard is not installed.

    Example:
        >>> import tempfile
        >>> with FileWriter(tempfile.mkdtemp()) as writer:
        ...     writer.add_summary(event_pb2.Summary(), global_step=1)
        >>> os.path.basename(writer.path).startswith("events.out.tfevents.")
        True
    """

    def __init__(
        self,
        logdir: str | os.PathLike[str],
        graph: building.Graph | None = None,
        max_queue: int = 10,
        flush_secs: float = 120,
        graph_def: graph_pb2.GraphDef | None = None,
        filename_suffix: str | None = None,
        session: Any = None,
    ) -> None:
        self._logdir = os.fspath(logdir)
        self._suffix = filename_suffix or ""
        self._max_queue = max_queue
        self._flush_seconds = flush_secs
        self._lock = threading.Lock()
        self._described_tags: set[str] = set()
        self.path = ""
        """The event file."""
        self._file: IO[bytes] | None = None
        self.reopen()
        source = graph if graph is not None else getattr(session, "graph", None)
        if source is not None or graph_def is not None:
            self.add_graph(source, graph_def=graph_def)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def get_logdir(self) -> str:
        """Returns the directory of the event file."""
        return self._logdir

    def add_summary(self, summary: Any, global_step: int | Any | None = None) -> None:
        """Writes what a summary op gave, or a `Summary` message.

        Args:
            summary: the value that `Session.run` returned for it, its bytes, or a message.
            global_step: the step, an int or a scalar array.
        """
        proto = _summary_proto(summary)
        for value in proto.value:
            # As TensorFlow does: what a tag is needs saying only once in a file.
            if value.tag in self._described_tags:
                value.ClearField("metadata")
            elif value.HasField("metadata"):
                self._described_tags.add(value.tag)
        self.add_event(event_pb2.Event(summary=proto), global_step)

    def add_graph(
        self,
        graph: building.Graph | graph_pb2.GraphDef | None,
        global_step: int | Any | None = None,
        graph_def: graph_pb2.GraphDef | None = None,
    ) -> None:
        """Writes a graph, which TensorBoard draws.

        Raises:
            GraphError: there is none.
        """
        content = _graph_def(graph if graph is not None else graph_def)
        event = event_pb2.Event(graph_def=content.SerializeToString(deterministic=True))
        self.add_event(event, global_step)

    def add_meta_graph(
        self, meta_graph_def: meta_graph_pb2.MetaGraphDef, global_step: int | Any | None = None
    ) -> None:
        """Writes a MetaGraphDef."""
        content = meta_graph_def.SerializeToString(deterministic=True)
        self.add_event(event_pb2.Event(meta_graph_def=content), global_step)

    def add_session_log(
        self, session_log: event_pb2.SessionLog, global_step: int | Any | None = None
    ) -> None:
        """Writes that a session started, stopped or saved a checkpoint."""
        self.add_event(event_pb2.Event(session_log=session_log), global_step)

    def add_event(self, event: event_pb2.Event, global_step: int | Any | None = None) -> None:
        """Writes an event; its time is now unless it has one.

        Raises:
            GraphError: the writer is closed.
        """
        if not event.wall_time:
            event.wall_time = time.time()
        if global_step is not None:
            event.step = int(np.asarray(global_step).item())
        with self._lock:
            if self._file is None:
                raise errors.GraphError(f"{self.path} is closed; reopen() begins another file")
            self._records.write(event.SerializeToString())
            self._waiting += 1
            is_late = time.monotonic() - self._flushed > self._flush_seconds
            if self._waiting >= self._max_queue or is_late:
                self._flush()

    def flush(self) -> None:
        """Hands what was written to the operating system."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if self._file is not None:
            self._file.flush()
        self._waiting = 0
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes the file; `reopen` begins another one."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def reopen(self) -> None:
        """Begins a new file in the same directory, unless one is open."""
        if self._file is not None:
            return
        os.makedirs(self._logdir, exist_ok=True)
        name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        name = f"events.out.tfevents.{name}.{next(_FILE_NUMBERS)}{self._suffix}"
        make_records = _record_writer()
        self.path = os.path.join(self._logdir, name)
        self._file = open(self.path, "xb")  # noqa: SIM115 - open until close()
        self._records = make_records(self._file)
        self._described_tags.clear()
        self._waiting, self._flushed = 0, time.monotonic()
        self.add_event(event_pb2.Event(file_version=_FILE_VERSION))


def _record_writer() -> Any:
    """Returns tensorboard's writer of records, which frames them and adds their checksums."""
    try:
        from tensorboard.summary.writer import record_writer
    except ImportError as error:
        raise errors.MissingPackageError(
            f"event files are written by the package tensorboard, which cannot be imported "
            f"({error}); pip install 'jaxmeta[tensorboard]'"
        ) from error
    return record_writer.RecordWriter


def _summary_proto(summary: Any) -> event_pb2.Summary:
    """Returns a summary as a message of our own; another package's message is read as bytes."""
    if hasattr(summary, "SerializeToString"):
        content = summary.SerializeToString()
    else:
        content = summary if isinstance(summary, bytes) else np.asarray(summary).item()
    return event_pb2.Summary.FromString(content)


def _graph_def(source: Any) -> graph_pb2.GraphDef:
    if isinstance(source, graph.GraphBuilder):
        return source.as_graph_def()
    if isinstance(source, graph_pb2.GraphDef):
        return source
    raise errors.GraphError(f"expected a graph or a GraphDef to write, got {source!r}")
