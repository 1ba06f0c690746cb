"""One save at a time, behind the back of the program that goes on training."""

from __future__ import annotations

import abc
import logging
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

from jaxmeta import errors
from jaxmeta.checkpoint.atomic import StrPath

OnCommit: TypeAlias = Callable[[], None]

_logger = logging.getLogger(__name__)
_LOCK: Final = threading.Lock()
_UNDER_WAY: Final[set[threading.Thread]] = set()


def wait_for_saves() -> None:
    """Waits until what this process saves is in place, so that it can be read.

    An error that a save meets is left to its writer.
    """
    with _LOCK:
        threads = list(_UNDER_WAY)
    if threading.current_thread() not in threads:  # else a save looks at what is there
        for thread in threads:
            thread.join()


class BackgroundWriter(abc.ABC):
    """Writes checkpoints, one at a time, in the background.

    ``save`` returns as soon as the arrays are safe from what the program does next, such as
    donating them to the next step. An error in the background is logged at once and raised by the
    next ``save``, ``wait_until_finished`` or ``close``. A normal exit of the interpreter waits for
    the save; a kill at any moment leaves the former checkpoint of that name whole.

    Args:
        blocking: save in the foreground.
    """

    def __init__(self, *, blocking: bool = False) -> None:
        self._blocking = blocking
        self._closed = False
        self._joins_at_exit = False
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @abc.abstractmethod
    def save(
        self,
        directory: StrPath,
        arrays: Mapping[str, Any],
        *,
        on_commit: OnCommit | None = None,
    ) -> None:
        """Saves arrays by name; see the class that does."""

    def wait_until_finished(self) -> None:
        """Waits until the save under way is in place.

        Raises:
            Exception: what it met.
        """
        self._join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Waits for the save under way; the writer takes no more.

        Raises:
            Exception: what the save met.
        """
        self._closed = True
        self.wait_until_finished()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _begin(self, place: StrPath) -> None:
        """Waits for the save before this one.

        Raises:
            CheckpointError: the writer is closed.
            Exception: what the save before this one met.
        """
        if self._closed:
            raise errors.CheckpointError(f"cannot save {place}: the writer is closed")
        self.wait_until_finished()

    def _start(self, place: str, job: Callable[[], None]) -> None:
        # The interpreter joins threads that are no daemons before it exits; but one that is started
        # by a function of `atexit` comes too late for that.
        if self._blocking or not threading.main_thread().is_alive():
            job()
        else:
            self._thread = threading.Thread(target=self._run, args=(place, job))
            with _LOCK:
                self._thread.start()
                _UNDER_WAY.add(self._thread)

    def _run(self, place: str, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            _logger.error("saving %s failed: %r", place, error)
            self._error = error
        finally:
            with _LOCK:
                _UNDER_WAY.discard(threading.current_thread())

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _join_at_exit(self) -> None:
        """Has Orbax's save end before the thread pools stop that it needs, at exit.

        Non-daemon threads are joined after them, and functions of ``atexit`` called after that.
        """
        register = getattr(threading, "_register_atexit", None)
        if register is not None and not self._joins_at_exit:
            self._joins_at_exit = True
            register(self._join)  # called before those registered earlier
