"""Readers in memory: what the reader operations of a graph work on.

A reader takes names of files from a queue, one after the other, and gives their records.
"""

from __future__ import annotations

import abc
import struct
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

from jaxmeta import errors
from jaxmeta.checkpoint import coding, crc32c
from jaxmeta.execution import files
from jaxmeta.execution.queue_resources import Queue, Waiting

Record = tuple[bytes, bytes]
"""Its key, and its value."""
_MOST_BYTES: Final = 1 << 30  # of one record
_CURRENT_WORK: Final = 4


class Reader(abc.ABC):
    """Records of files whose names stand in a queue.

    Args:
        name: for messages.
        files_: the file system.

    Attributes:
        num_records_produced: how many it gave.
        num_work_units_completed: how many files it read to their ends.
    """

    def __init__(self, name: str, files_: files.Files) -> None:
        self.name = name
        self._files = files_
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Puts it into its first state."""
        self.num_records_produced = 0
        self.num_work_units_completed = 0
        self._work_started = 0
        self._work = b""
        self._records: Iterator[Record] | None = None

    @abc.abstractmethod
    def records(self, work: bytes) -> Iterator[Record]:
        """Yields the records of what the queue gave."""

    def read(self, queue: Queue, waiting: Waiting) -> Record:
        """Returns the next record, taking from the queue where a new file is needed.

        Raises:
            OutOfRangeError: the queue is closed and empty.
            FileAccessError: the session does not allow files.
        """
        return self.read_up_to(queue, 1, waiting)[0]

    def read_up_to(self, queue: Queue, count: int, waiting: Waiting) -> list[Record]:
        """Returns the next records, at least one, at most those up to the end of a file.

        Raises:
            OutOfRangeError: the queue is closed and empty.
            FileAccessError: the session does not allow files.
            InvalidArgumentError: the count is not positive.
        """
        if count < 1:
            raise errors.InvalidArgumentError(f"num_records must be 1 or more, not {count}")
        found: list[Record] = []
        with self._lock:
            while not found:
                if self._records is None:
                    self._begin(queue, waiting)
                assert self._records is not None
                for record in self._records:
                    found.append(record)
                    self.num_records_produced += 1
                    if len(found) == count:
                        break
                else:
                    self._end()
        return found

    def _begin(self, queue: Queue, waiting: Waiting) -> None:
        element = queue.dequeue(waiting)
        work = element[0].item() if len(element) == 1 and element[0].size == 1 else None
        if not isinstance(work, bytes):
            raise errors.InvalidArgumentError(
                f"reader {self.name!r}: the queue must give scalar strings, got {element}"
            )
        self._work, self._records = work, self.records(work)
        self._work_started += 1

    def _end(self) -> None:
        self._records = None
        self.num_work_units_completed = self._work_started

    # --- state

    def serialize_state(self) -> bytes:
        """Raises UnsupportedOpError: within a file there is no state, as in TensorFlow."""
        raise errors.UnsupportedOpError(f"reader {self.name!r}: SerializeState is not implemented")

    def restore_state(self, state: bytes) -> None:
        """Raises UnsupportedOpError, see `serialize_state`."""
        raise errors.UnsupportedOpError(f"reader {self.name!r}: RestoreState is not implemented")


class WholeReader(Reader):
    """A reader of one record each: the file, or its name itself.

    Args:
        is_identity: whether the record is the name.
    """

    def __init__(self, name: str, files_: files.Files, *, is_identity: bool) -> None:
        super().__init__(name, files_)
        self._is_identity = is_identity

    def records(self, work: bytes) -> Iterator[Record]:
        """Yields what the queue gave, with itself or with what is in the file."""
        return iter([(work, work if self._is_identity else self._files.read(work))])

    def _begin(self, queue: Queue, waiting: Waiting) -> None:
        super()._begin(queue, waiting)
        self.num_work_units_completed = self._work_started

    def read_up_to(self, queue: Queue, count: int, waiting: Waiting) -> list[Record]:
        """Returns the next records; see `Reader.read_up_to`."""
        found = super().read_up_to(queue, count, waiting)
        self._records = None
        return found

    def serialize_state(self) -> bytes:
        """Returns how far it is, as TensorFlow's ReaderBaseState."""
        numbers = (self._work_started, self.num_work_units_completed, self.num_records_produced)
        content = b"".join(
            bytes([field << 3]) + coding.write_varint(number)
            for field, number in enumerate(numbers, 1)
            if number
        )
        if self._work:
            head = bytes([_CURRENT_WORK << 3 | 2]) + coding.write_varint(len(self._work))
            content += head + self._work
        return content

    def restore_state(self, state: bytes) -> None:
        """Puts it where it was when `serialize_state` was called.

        Raises:
            InvalidArgumentError: it is no such state.
        """
        try:
            numbers, work = _parse_state(state)
        except errors.CheckpointError:
            raise errors.InvalidArgumentError(
                f"Could not parse state for {self.name}: {state!r}"
            ) from None
        self.reset()
        self._work_started, self.num_work_units_completed, self.num_records_produced = numbers
        self._work = work


def _parse_state(state: bytes) -> tuple[list[int], bytes]:
    numbers, work, at = [0, 0, 0], b"", 0
    while at < len(state):
        tag, at = coding.read_varint(state, at)
        number, at = coding.read_varint(state, at)
        if tag == (_CURRENT_WORK << 3 | 2) and at + number <= len(state):
            work, at = state[at : at + number], at + number
        elif tag in (8, 16, 24):
            numbers[(tag >> 3) - 1] = number
        else:
            raise errors.CheckpointError("an unknown field")
    return numbers, work


class FileReader(Reader):
    """A reader of several records a file.

    Args:
        records_of: yields the records of an open file, each with what its key says after the name.
    """

    def __init__(
        self,
        name: str,
        files_: files.Files,
        records_of: Callable[[BinaryIO], Iterator[tuple[int, bytes]]],
    ) -> None:
        super().__init__(name, files_)
        self._records_of = records_of

    def records(self, work: bytes) -> Iterator[Record]:
        """Yields the records of a file, whose keys are its name and a number."""
        path = self._files.path(work)
        return self._read_file(path, work)

    def _read_file(self, path: str, work: bytes) -> Iterator[Record]:
        with files.open_file(path) as file:
            for number, value in self._records_of(file):
                yield b"%s:%d" % (work, number), value


def lines(file: BinaryIO, skip: int) -> Iterator[tuple[int, bytes]]:
    """Yields the lines after the first ones, with their numbers from 1; without CR and LF."""
    for number, line in enumerate(file, 1):
        if number > skip:
            yield number, line.replace(b"\r", b"").removesuffix(b"\n")


def fixed_records(
    file: BinaryIO, header: int, size: int, footer: int, hop: int
) -> Iterator[tuple[int, bytes]]:
    """Yields records of one size that begin ``hop`` bytes one after the other."""
    file.seek(0, 2)
    end = file.tell() - footer
    for number, start in enumerate(range(header, end - size + 1, hop or size)):
        file.seek(start)
        yield number, file.read(size)


def tf_records(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yields TFRecords, with where each begins.

    Raises:
        DataLossError: a record is truncated or damaged.
    """
    while True:
        start = file.tell()
        head = file.read(12)
        if not head:
            return
        length, checksum = struct.unpack("<QI", head.ljust(12, b"\0"))
        if len(head) < 12 or checksum != crc32c.masked_crc32c(head[:8]) or length > _MOST_BYTES:
            raise errors.DataLossError(f"corrupted record at {start}")
        value, tail = file.read(length), file.read(4)
        if len(tail) < 4 or struct.unpack("<I", tail)[0] != crc32c.masked_crc32c(value):
            raise errors.DataLossError(f"truncated or corrupted record at {start}")
        yield start, value
