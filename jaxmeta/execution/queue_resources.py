"""Queues in memory: what the queue operations of a graph work on.

They block, close and cancel as TensorFlow's do. An element is a tuple of arrays, one for each
component.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from jaxmeta import errors
from jaxmeta.execution.files import Files

Element: TypeAlias = tuple[Any, ...]
Shape: TypeAlias = tuple[int | None, ...] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Waiting:
    """How long a run may wait.

    Attributes:
        deadline: a time on the monotonic clock, or None for as long as it takes.
        cancelled: set when the session is closed.
    """

    deadline: float | None = None
    cancelled: threading.Event = dataclasses.field(default_factory=threading.Event)

    @classmethod
    def up_to(cls, milliseconds: int, cancelled: threading.Event) -> Waiting:
        """Returns a limit that many milliseconds from now, or none where it is 0."""
        deadline = time.monotonic() + milliseconds / 1000 if milliseconds else None
        return cls(deadline, cancelled)


class Resources:
    """What the host holds for the nodes of one session, by kind, container and name.

    Attributes:
        files: the file system, if operations may use it.
    """

    def __init__(self, *, allow_files: bool = False) -> None:
        self.files = Files(is_allowed=allow_files)
        self._lock = threading.Lock()
        self._held: dict[Any, Any] = {}
        self._cancelled = threading.Event()

    def get_or_make(self, key: Any, make: Callable[[], Any]) -> Any:
        """Returns what is held under a key; what ``make`` returns where nothing is yet."""
        with self._lock:
            if key not in self._held:
                self._held[key] = make()
            return self._held[key]

    def waiting(self, milliseconds: int) -> Waiting:
        """Returns how long a run may wait that was given a timeout, 0 for none."""
        return Waiting.up_to(milliseconds, self._cancelled)

    def close(self) -> None:
        """Cancels all that waits, and lets go of what is held."""
        with self._lock:
            self._cancelled.set()
            for held in self._held.values():
                if isinstance(held, Queue):
                    held.wake()
            self._held.clear()


class Queue:
    """Elements that some runs put in and others take out: first in, first out.

    Args:
        name: for messages.
        capacity: how many elements it holds at most; without limit where negative.
        dtypes: of the components.
        shapes: of the components, or empty where they are not known.

    Example:
        >>> queue = Queue("numbers", 2, [np.dtype("int32")], [()])
        >>> queue.enqueue((np.int32(7),), Waiting())
        >>> queue.dequeue(Waiting()), queue.size
        ((array(7, dtype=int32),), 0)
    """

    def __init__(
        self,
        name: str,
        capacity: int,
        dtypes: Sequence[np.dtype[Any]],
        shapes: Sequence[Shape] = (),
    ) -> None:
        self.name = name
        self.dtypes = tuple(dtypes)
        self.shapes = tuple(shapes)
        self.is_closed = False
        self._capacity = capacity if capacity >= 0 else None
        self._elements: collections.deque[Element] = collections.deque()
        self._changed = threading.Condition()
        # Who came first is served first; the others wait for their turn.
        self._takers: collections.deque[object] = collections.deque()
        self._putters: collections.deque[object] = collections.deque()
        self._cancelled: set[object] = set()

    @property
    def size(self) -> int:
        """How many elements it holds."""
        return len(self._elements)

    # --- putting in

    def enqueue(self, components: Sequence[Any], waiting: Waiting) -> None:
        """Puts in one element, waiting for room.

        Raises:
            CancelledError: the queue is closed, or the session was closed meanwhile.
            InvalidArgumentError: the components do not fit.
        """
        element = tuple(np.asarray(component) for component in components)
        self._check(element)
        self._put([element], waiting)

    def enqueue_many(self, components: Sequence[Any], waiting: Waiting) -> None:
        """Puts in an element for each slice along the first axis, one by one as there is room.

        Raises:
            CancelledError: the queue is closed, or the session was closed meanwhile.
            InvalidArgumentError: the components do not fit.
        """
        arrays = [np.asarray(component) for component in components]
        sizes = {array.shape[0] if array.ndim else None for array in arrays}
        if len(sizes) != 1 or None in sizes:
            raise errors.InvalidArgumentError(
                f"queue {self.name!r}: all components must have the same size in the first axis; "
                f"their shapes are {[list(array.shape) for array in arrays]}"
            )
        elements: list[Element] = list(zip(*map(_slices, arrays), strict=True))
        for element in elements[:1]:
            self._check(element)
        self._put(elements, waiting)

    def _check(self, element: Element) -> None:
        """Raises InvalidArgumentError where an element's components do not fit; lists all."""
        if len(element) != len(self.dtypes):
            raise errors.InvalidArgumentError(
                f"queue {self.name!r}: an element has {len(self.dtypes)} components, "
                f"got {len(element)}"
            )
        bad = []
        for index, (array, dtype) in enumerate(zip(element, self.dtypes, strict=True)):
            if array.dtype != dtype:
                bad.append(f"component {index}: expected dtype {dtype}, got {array.dtype}")
            if self.shapes and not _fits(array.shape, self.shapes[index]):
                shape = self.shapes[index]
                bad.append(f"component {index}: expected shape {shape}, got {array.shape}")
        if bad:
            headline = f"queue {self.name!r}: these components do not fit:"
            raise errors.InvalidArgumentError(errors.list_offenders(headline, bad))

    def _put(self, elements: Sequence[Element], waiting: Waiting) -> None:
        with self._changed, self._turn(self._putters) as turn:
            for element in elements:
                self._wait(lambda: self._is_refused(turn) or self._may_put(turn), waiting)
                if self._is_refused(turn):
                    raise errors.CancelledError(f"queue {self.name!r} is closed")
                self._elements.append(element)
                self._changed.notify_all()

    def _is_refused(self, turn: object) -> bool:
        return self.is_closed or turn in self._cancelled

    def _may_put(self, turn: object) -> bool:
        return self._putters[0] is turn and self._has_room()

    def _has_room(self) -> bool:
        return self._capacity is None or len(self._elements) < self._capacity

    # --- taking out

    def dequeue(self, waiting: Waiting) -> Element:
        """Takes out one element, waiting for it.

        Raises:
            OutOfRangeError: the queue is closed and empty.
            CancelledError: the session was closed meanwhile.
        """
        return self._take(1, waiting)[0]

    def dequeue_many(self, count: int, waiting: Waiting) -> list[Any]:
        """Takes out that many elements, stacked; all of them or none.

        Raises:
            OutOfRangeError: the queue is closed and has fewer.
            CancelledError: the session was closed meanwhile.
            InvalidArgumentError: the count is negative, or the elements' shapes differ.
        """
        return self._stack(self._take(count, waiting))

    def dequeue_up_to(self, count: int, waiting: Waiting) -> list[Any]:
        """Takes out that many elements, or those that are left where the queue is closed.

        Raises:
            OutOfRangeError: the queue is closed and empty.
            CancelledError: the session was closed meanwhile.
            InvalidArgumentError: the count is negative, or the elements' shapes differ.
        """
        return self._stack(self._take(count, waiting, allows_fewer=True))

    def _take(self, count: int, waiting: Waiting, *, allows_fewer: bool = False) -> list[Element]:
        if count < 0:
            raise errors.InvalidArgumentError(
                f"queue {self.name!r}: cannot dequeue {count} elements"
            )
        taken: list[Element] = []
        with self._changed, self._turn(self._takers) as turn:
            try:
                while len(taken) < count:
                    self._wait(lambda: self._may_take(turn), waiting)
                    if not self._has_elements():
                        if allows_fewer and taken:
                            break
                        raise self._exhausted(count, len(taken))
                    taken.append(self._pop())
                    self._changed.notify_all()
            except BaseException:
                self._restore(taken)
                raise
        return taken

    def _may_take(self, turn: object) -> bool:
        return self._takers[0] is turn and (self._has_elements() or self.is_closed)

    def _exhausted(self, count: int, taken: int) -> errors.OutOfRangeError:
        return errors.OutOfRangeError(
            f"queue {self.name!r} is closed and has insufficient elements (requested {count}, "
            f"current size {taken + len(self._elements)})"
        )

    def _has_elements(self) -> bool:
        return bool(self._elements)

    def _pop(self) -> Element:
        return self._elements.popleft()

    def _restore(self, taken: Sequence[Element]) -> None:
        self._elements.extendleft(reversed(taken))
        self._changed.notify_all()

    def _stack(self, elements: Sequence[Element]) -> list[Any]:
        if not elements:
            return [self._empty(index) for index in range(len(self.dtypes))]
        return [self._stack_component(list(parts)) for parts in zip(*elements, strict=True)]

    def _stack_component(self, parts: list[Any]) -> np.ndarray[Any, Any]:
        shapes = sorted({part.shape for part in parts})
        if len(shapes) > 1:
            raise errors.InvalidArgumentError(
                f"queue {self.name!r}: elements of different shapes cannot be dequeued together: "
                f"{shapes}"
            )
        return np.stack(parts)

    def _empty(self, index: int) -> np.ndarray[Any, Any]:
        shape = self.shapes[index] if self.shapes else ()
        return np.zeros((0, *(size or 0 for size in shape or ())), self.dtypes[index])

    # --- closing and waiting

    def close(self, waiting: Waiting, *, cancel_pending_enqueues: bool = False) -> None:
        """Refuses what is put in from now on.

        What waits to be put in is cancelled, or else comes first.

        Raises:
            CancelledError: it is closed already, or the session was closed meanwhile.
        """
        with self._changed, self._turn(self._putters) as turn:
            if cancel_pending_enqueues:
                self._cancelled.update(self._putters)
                self.is_closed = True
                return
            self._wait(lambda: self._putters[0] is turn or turn in self._cancelled, waiting)
            if self.is_closed:
                raise errors.CancelledError(f"queue {self.name!r} is already closed")
            self.is_closed = True

    def wake(self) -> None:
        """Lets all that wait look again at whether they still may."""
        with self._changed:
            self._changed.notify_all()

    @contextlib.contextmanager
    def _turn(self, line: collections.deque[object]) -> Iterator[object]:
        turn = object()
        line.append(turn)
        try:
            yield turn
        finally:
            line.remove(turn)
            self._cancelled.discard(turn)
            self._changed.notify_all()

    def _wait(self, holds: Callable[[], bool], waiting: Waiting) -> None:
        while not holds():
            if waiting.cancelled.is_set():
                raise errors.CancelledError(f"queue {self.name!r}: the session was closed")
            left = None if waiting.deadline is None else waiting.deadline - time.monotonic()
            if left is not None and left <= 0:
                raise errors.DeadlineExceededError(
                    f"queue {self.name!r}: waited longer than the run's timeout"
                )
            self._changed.wait(left)


class PaddingQueue(Queue):
    """A queue whose elements are padded with zeros to one shape where taken out together."""

    def _stack_component(self, parts: list[Any]) -> np.ndarray[Any, Any]:
        shape = np.max([part.shape for part in parts], axis=0).astype(int)
        fill = b"" if parts[0].dtype == object else 0
        stacked = np.full((len(parts), *shape), fill, parts[0].dtype)
        for row, part in zip(stacked, parts, strict=True):
            row[tuple(slice(size) for size in part.shape)] = part
        return stacked


class RandomShuffleQueue(Queue):
    """A queue that gives its elements in random order.

    Args:
        min_after_dequeue: how many elements stay, for a good mix, until it is closed.
        seed: of the order; a random one where None.
    """

    def __init__(
        self,
        name: str,
        capacity: int,
        dtypes: Sequence[np.dtype[Any]],
        shapes: Sequence[Shape] = (),
        *,
        min_after_dequeue: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(name, capacity, dtypes, shapes)
        self._min_after_dequeue = min_after_dequeue
        self._random = random.Random(seed)

    def _has_elements(self) -> bool:
        least = 0 if self.is_closed else self._min_after_dequeue
        return len(self._elements) > least

    def _pop(self) -> Element:
        elements = self._elements
        index = self._random.randrange(len(elements))
        elements[index], elements[-1] = elements[-1], elements[index]
        return elements.pop()


def _slices(array: np.ndarray[Any, Any]) -> list[Any]:
    return [np.asarray(part, array.dtype) for part in array]


def _fits(shape: Sequence[int], expected: Shape) -> bool:
    return expected is None or (
        len(shape) == len(expected)
        and all(want is None or want == size for want, size in zip(expected, shape, strict=True))
    )
