"""Coordinator: threads that stop together, the first exception among them reported."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

from jaxmeta import errors

_POLL_SECONDS: Final = 0.05


class Coordinator:
    """Lets threads ask each other to stop, and waits until they have; TensorFlow's, in all it does.

    Args:
        clean_stop_exception_types: exceptions that say that the work is done rather than that it
            failed; `OutOfRangeError` where None.

    Example:
        >>> coord = Coordinator()
        >>> def work():
        ...     with coord.stop_on_exception():
        ...         raise ValueError("a bad line")
        >>> thread = threading.Thread(target=work)
        >>> thread.start()
        >>> coord.join([thread])
        Traceback (most recent call last):
        ...
        ValueError: a bad line
    """

    def __init__(
        self, clean_stop_exception_types: tuple[type[BaseException], ...] | None = None
    ) -> None:
        self._clean = tuple(clean_stop_exception_types or (errors.OutOfRangeError,))
        self._lock = threading.Lock()
        self._stop_event = threading.Event()
        self._exception: BaseException | None = None
        self._registered: set[threading.Thread] = set()
        self._is_joined = False

    def request_stop(self, ex: Any = None) -> None:
        """Asks the threads to stop.

        Args:
            ex: an exception, or a tuple as `sys.exc_info` returns it, that `join` then raises; of
                several, the first. One that says that the work is done is not raised.
        """
        with self._lock:
            exception = ex[1] if isinstance(ex, tuple) else ex
            # Who asks after the threads were joined, or is first to fail, hears of it at once.
            if exception is not None and self._is_joined:
                raise exception
            if self._stop_event.is_set():
                return
            if exception is not None and not isinstance(exception, self._clean):
                self._exception = exception
            self._stop_event.set()

    def clear_stop(self) -> None:
        """Takes the request back: `should_stop` returns False again, and no exception is kept."""
        with self._lock:
            self._is_joined = False
            self._exception = None
            self._stop_event.clear()

    def should_stop(self) -> bool:
        """Returns whether a stop was requested."""
        return self._stop_event.is_set()

    @contextlib.contextmanager
    def stop_on_exception(self) -> Iterator[None]:
        """Requests a stop, in place of raising, where the block raises."""
        try:
            yield
        except BaseException as error:
            self.request_stop(error)

    def wait_for_stop(self, timeout: float | None = None) -> bool:
        """Waits, that many seconds or for ever, and returns whether a stop was requested."""
        return self._stop_event.wait(timeout)

    def register_thread(self, thread: threading.Thread) -> None:
        """Adds a thread to those that `join` waits for."""
        with self._lock:
            self._registered.add(thread)

    def join(
        self,
        threads: Iterable[threading.Thread] | None = None,
        stop_grace_period_secs: float = 120,
        ignore_live_threads: bool = False,
    ) -> None:
        """Waits for the threads to end, then raises what a thread gave to `request_stop`.

        Args:
            threads: those to wait for besides the registered ones.
            stop_grace_period_secs: how long they have after a stop was requested.
            ignore_live_threads: whether to return, rather than raise, where some go on then.

        Raises:
            SessionError: threads go on after that time; they are named.
        """
        with self._lock:
            waited_for = self._registered | set(threads or ())
        while any(thread.is_alive() for thread in waited_for) and not self.wait_for_stop(
            _POLL_SECONDS
        ):
            pass
        deadline = time.monotonic() + stop_grace_period_secs
        for thread in filter(threading.Thread.is_alive, waited_for):
            thread.join(max(0.0, deadline - time.monotonic()))
        alive = sorted(thread.name for thread in waited_for if thread.is_alive())
        with self._lock:
            self._is_joined = True
            self._registered = set()
            exception = self._exception
        if exception is not None:
            raise exception
        if alive and not ignore_live_threads:
            raise errors.SessionError(
                f"the coordinator stopped with threads that go on: {', '.join(alive)}"
            )

    @property
    def joined(self) -> bool:
        """Whether `join` has returned since the last `clear_stop`."""
        return self._is_joined

    def raise_requested_exception(self) -> None:
        """Raises what was given to `request_stop`, where there was something."""
        with self._lock:
            if self._exception is not None:
                raise self._exception
