"""Defaults of each thread: the graph that is built."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final


class DefaultStack:
    """What ``with`` blocks made the default in each thread, innermost last.

    Attributes:
        make: makes a thread's default outside of all blocks; there is none where None.

    Example:
        >>> stack = DefaultStack()
        >>> with stack.enter("a"), stack.enter("b"):
        ...     stack.default()
        'b'
        >>> stack.default() is None
        True
    """

    def __init__(self) -> None:
        self.make: Callable[[], Any] | None = None
        self._local = threading.local()

    def _stack(self) -> list[Any]:
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        stack: list[Any] = self._local.stack
        return stack

    @property
    def is_entered(self) -> bool:
        """Whether this thread is in a ``with`` block of a default."""
        return bool(self._stack())

    def default(self) -> Any:
        """Returns the innermost default; outside of all blocks the thread's own, or None."""
        stack = self._stack()
        if stack:
            return stack[-1]
        if getattr(self._local, "own", None) is None:
            self._local.own = self.make() if self.make is not None else None
        return self._local.own

    def reset(self) -> None:
        """Forgets the thread's own default."""
        self._local.own = None

    @contextlib.contextmanager
    def enter(self, item: Any) -> Iterator[Any]:
        """Makes an item the default within a ``with`` block."""
        stack = self._stack()
        stack.append(item)
        try:
            yield item
        finally:
            stack.remove(item)


GRAPHS: Final = DefaultStack()
