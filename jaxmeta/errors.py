"""The exceptions jaxmeta raises, all below one root.

::

    JaxmetaError
    ├─ GraphError(ValueError)            bad name, unknown tensor or node, cycle, duplicate
    │  ├─ GraphTypeError(TypeError)      an operand is of the wrong type
    │  ├─ FinalizedGraphError(RuntimeError)
    │  │                                 the graph was finalized
    │  ├─ MissingNameError(KeyError)     a name that must be in the graph is not there
    │  ├─ NameTakenError(KeyError)       a name that must be new is taken
    │  └─ MissingNodeError(AssertionError)
    │                                    a GraphDef lacks a node that was asked for
    ├─ AttrError(ValueError)             attr missing, unknown, or of the wrong kind
    │  └─ DtypeError(ValueError)         TensorFlow has no such type
    ├─ UnsupportedPrimitiveError(NotImplementedError)
    │                                    a traced function holds primitives without a node form
    ├─ DerivativeError(TypeError)        a derivative rule did not trace when it was saved
    ├─ UnsupportedOpError(NotImplementedError)
    │                                    a graph holds ops without a kernel
    ├─ CustomCallError(PermissionError)  a loaded program would run custom calls unasked
    ├─ FileAccessError(PermissionError)  a graph would read or write files unasked
    ├─ FeedError(ValueError)             an argument, feed or fetch is missing or does not fit
    │  └─ FeedTypeError(TypeError)       a feed or fetch is nothing that can be fed or fetched
    ├─ ShardingError(ValueError)         a sharding cannot be recorded, or not be had on a mesh
    ├─ SessionError(RuntimeError)        a session is closed, or cannot do what it is asked for
    ├─ OperationError(RuntimeError)      an operation failed on the values that it was given
    │  ├─ OutOfRangeError(EOFError)      a queue is closed and has not enough elements
    │  ├─ CancelledError(RuntimeError)   a queue or session was closed while it was waited for
    │  ├─ DeadlineExceededError(TimeoutError)
    │  │                                 a run waited longer than it was allowed to
    │  ├─ FailedPreconditionError(RuntimeError)
    │  │                                 a table or reader is not ready for what is asked of it
    │  ├─ NotFoundError(FileNotFoundError)
    │  │                                 there is no such file, or no such tensor in a checkpoint
    │  ├─ DataLossError(OSError)         a file that an operation reads is damaged
    │  └─ InvalidArgumentError(ValueError)
    │                                    a value is not one that the operation takes
    ├─ FormatError(ValueError)           a file is truncated, corrupt, empty or of the future
    │  └─ UnreadableFileError(OSError)   a file is missing, or is no such file at all
    ├─ ArgumentTypeError(TypeError)      an argument is of the wrong kind
    ├─ CheckpointError(ValueError)       checkpoint and graph differ, or no checkpoint is there
    │  └─ CheckpointTypeError(TypeError) what is to be saved or restored is of another kind
    ├─ NotBuiltError(RuntimeError)       a saver was told to wait for `build()`, and used before
    ├─ MissingPackageError(ImportError)  what was asked for needs a package that is not installed
    └─ CheckpointPathError(RuntimeError) a checkpoint would take the state file's name

Each also derives from the built-in exception that Python users would expect there.
A message says where, what was found, what was expected and what to do; where there are
several offenders, it lists all of them at once (the first ten in full, then a count).
"""

from __future__ import annotations

from collections.abc import Iterable

_SHOWN_OFFENDERS = 10


class JaxmetaError(Exception):
    """The root of all exceptions that jaxmeta raises on purpose."""


class GraphError(JaxmetaError, ValueError):
    """A graph is malformed, or a name in it is unknown, taken or invalid."""


class GraphTypeError(GraphError, TypeError):
    """An operand has the wrong type, or a tensor is used as if its value were known."""


class FinalizedGraphError(GraphError, RuntimeError):
    """The graph was finalized and takes no more nodes."""


class MissingNameError(GraphError, KeyError):
    """A name that must be in the graph is not there."""

    __str__ = Exception.__str__  # KeyError's would quote the message


class NameTakenError(GraphError, KeyError):
    """A name that must be new is taken."""

    __str__ = Exception.__str__


class MissingNodeError(GraphError, AssertionError):
    """A GraphDef lacks a node that was asked for."""


class AttrError(JaxmetaError, ValueError):
    """A node's attr is missing, unknown, or holds the wrong kind of value."""


class DtypeError(AttrError, ValueError):
    """A dtype has no TensorFlow DataType, or the other way round."""


class UnsupportedPrimitiveError(JaxmetaError, NotImplementedError):
    """A traced function holds primitives that have no node form."""


class DerivativeError(JaxmetaError, TypeError):
    """A function is differentiated whose rule did not trace when it was saved."""


class UnsupportedOpError(JaxmetaError, NotImplementedError):
    """A graph holds ops that have no kernel."""


class CustomCallError(JaxmetaError, PermissionError):
    """A loaded program carries custom calls, and the caller did not allow them."""


class FileAccessError(JaxmetaError, PermissionError):
    """A graph would read or write files, and the caller did not allow it."""


class FeedError(JaxmetaError, ValueError):
    """An argument, feed or fetch is missing, unknown, or does not fit its placeholder."""


class ShardingError(JaxmetaError, ValueError):
    """A sharding cannot be recorded, or the devices at hand do not have it."""


class FeedTypeError(FeedError, TypeError):
    """A feed or a fetch is of a type, or has a name, that cannot be fed or fetched."""


class SessionError(JaxmetaError, RuntimeError):
    """A session is closed, or cannot do what it is asked for."""


class OperationError(JaxmetaError, RuntimeError):
    """An operation failed on the values that it was given."""


class OutOfRangeError(OperationError, EOFError):
    """A queue is closed and has fewer elements than were asked for: the input is exhausted."""


class CancelledError(OperationError, RuntimeError):
    """A queue is closed to what was put in, or the session was closed while a run waited."""


class DeadlineExceededError(OperationError, TimeoutError):
    """A run waited longer than its options allow."""


class FailedPreconditionError(OperationError, RuntimeError):
    """A table or reader is not ready for what an operation asks of it."""


class NotFoundError(OperationError, FileNotFoundError):
    """There is no such file, or no such tensor in a checkpoint."""


class DataLossError(OperationError, OSError):
    """A file that an operation reads is damaged."""


class InvalidArgumentError(OperationError, ValueError):
    """A value is not one that the operation takes, or an assertion of the graph does not hold."""


class FormatError(JaxmetaError, ValueError):
    """A file is missing, truncated, corrupt, empty, or newer than this reader."""


class UnreadableFileError(FormatError, OSError):
    """A file is missing, or cannot be parsed at all."""


class ArgumentTypeError(JaxmetaError, TypeError):
    """An argument is of the wrong kind."""


class CheckpointError(JaxmetaError, ValueError):
    """A checkpoint is missing or unreadable, or does not fit the graph."""


class CheckpointTypeError(CheckpointError, TypeError):
    """What is to be saved or restored is no variable, or what holds it no session or state."""


class NotBuiltError(JaxmetaError, RuntimeError):
    """A saver that was made with ``defer_build=True`` is used before `Saver.build`."""


class CheckpointPathError(JaxmetaError, RuntimeError):
    """A checkpoint has the path of the file that is to list it."""


class MissingPackageError(JaxmetaError, ImportError):
    """What was asked for needs a package that is not installed."""


def list_offenders(headline: str, offenders: Iterable[str], advice: str = "") -> str:
    """Returns one message that names every offender, one a line, then the advice.

    Args:
        headline: what failed, and where.
        offenders: one line each; the first ten are shown, the rest counted.
        advice: what to do about it; left out where empty.
    """
    offenders = list(offenders)
    lines = [headline, *(f"  {offender}" for offender in offenders[:_SHOWN_OFFENDERS])]
    if len(offenders) > _SHOWN_OFFENDERS:
        lines.append(f"  ... and {len(offenders) - _SHOWN_OFFENDERS} more")
    if advice:
        lines.append(advice)
    return "\n".join(lines)
