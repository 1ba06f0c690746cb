"""The exceptions jaxmeta raises, all below one root.

::

    JaxmetaError
    ├─ GraphError(ValueError)            bad name, unknown tensor or node, cycle, duplicate
    ├─ AttrError(ValueError)             attr missing, unknown, or of the wrong kind
    ├─ UnsupportedPrimitiveError(NotImplementedError)
    │                                    a traced function holds primitives without a node form
    ├─ UnsupportedOpError(NotImplementedError)
    │                                    a graph holds ops without a kernel
    ├─ FeedError(ValueError)             an argument, feed or fetch is missing or does not fit
    ├─ FormatError(ValueError)           a file is truncated, corrupt, empty or of the future
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


class AttrError(JaxmetaError, ValueError):
    """A node's attr is missing, unknown, or holds the wrong kind of value."""


class UnsupportedPrimitiveError(JaxmetaError, NotImplementedError):
    """A traced function holds primitives that have no node form."""


class UnsupportedOpError(JaxmetaError, NotImplementedError):
    """A graph holds ops that have no kernel."""


class FeedError(JaxmetaError, ValueError):
    """An argument, feed or fetch is missing, unknown, or does not fit its placeholder."""


class FormatError(JaxmetaError, ValueError):
    """A file is missing, truncated, corrupt, empty, or newer than this reader."""


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
