"""The sessions that are the default ones, innermost last; one stack for each thread.

It stands below graphs, so that a tensor's ``eval`` and an operation's ``run`` can find the session
to run in.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeVar

from jaxmeta import errors


class Runner(Protocol):
    """What a default session can do."""

    graph: Any
    """The graph that it runs."""

    def run(self, fetches: Any, feed_dict: Mapping[Any, Any] | None = None) -> Any:
        """Returns the values of the fetches."""


_Session = TypeVar("_Session", bound=Runner)


class _Stack(threading.local):
    def __init__(self) -> None:
        self.sessions: list[Any] = []


_STACK = _Stack()


def get_default_session() -> Any:
    """Returns the session of the innermost ``with`` block of this thread, or None outside of all.

    >>> get_default_session() is None
    True
    """
    return _STACK.sessions[-1] if _STACK.sessions else None


@contextlib.contextmanager
def entered(session: _Session) -> Iterator[_Session]:
    """Makes a session the default one of this thread within a ``with`` block."""
    push(session)
    try:
        yield session
    finally:
        remove(session)


def push(session: Runner) -> None:
    """Makes a session the default one of this thread until it is removed."""
    _STACK.sessions.append(session)


def remove(session: Runner) -> None:
    """Takes the innermost entry of a session off this thread's stack; none may be there."""
    sessions = _STACK.sessions
    for index in reversed(range(len(sessions))):
        if sessions[index] is session:
            del sessions[index]
            return


def session_for(graph: Any, session: Any, what: str) -> Any:
    """Returns the session in which something of a graph is to run: the given or the default one.

    Args:
        graph: the graph of what is to run.
        session: a session, or None for the default one.
        what: the call that asks, for the message: ``"eval()"``.

    Raises:
        GraphError: there is no default session, or the session runs another graph.
    """
    chosen = session if session is not None else get_default_session()
    if chosen is None:
        raise errors.GraphError(
            f"cannot run {what}: there is no default session. Enter one with `with sess:` or "
            f"`with sess.as_default():`, or pass it: {what[:-1]}session=sess)"
        )
    if chosen.graph is not graph:
        raise errors.GraphError(
            f"cannot run {what}: the {'given' if session is not None else 'default'} session runs "
            "another graph; pass a session of this one"
        )
    return chosen
