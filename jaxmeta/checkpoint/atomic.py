"""Files and directories that are whole or not there, also after SIGKILL or a power cut.

Everything is written beside its place, under a name that ends in ``.jaxmeta-tmp``, synced to the
disk and renamed. Whoever writes such a file or directory holds a lock on it, which ends with the
process: so ``remove_leftovers`` tells what a killed process left from what another one writes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from types import TracebackType
from typing import BinaryIO, Final, Self, TypeAlias

StrPath: TypeAlias = str | os.PathLike[str]

STAGING_SUFFIX: Final = ".jaxmeta-tmp"
PREVIOUS_SUFFIX: Final = ".jaxmeta-old"

# What became of the wish to lock a file; not every network file system has locks.
_LOCKED: Final = "locked"
_BUSY: Final = "busy"
_UNSUPPORTED: Final = "unsupported"

# From Linux's fcntl.h and fs.h.
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


def write_file(path: StrPath, data: bytes) -> None:
    """Writes a file such that a reader sees the old bytes or the new ones, never a part.

    Raises:
        OSError: the directory is missing or cannot be written.
    """
    with new_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def new_file(path: StrPath) -> Iterator[BinaryIO]:
    """Yields a file to be filled, which then takes its place in one step; see `write_file`.

    Raises:
        OSError: the directory is missing or cannot be written.
    """
    path = os.fspath(path)
    with _locked(path, is_directory=False) as (temporary, descriptor):
        try:
            with open(descriptor, "wb", closefd=False) as file:
                yield file
            os.fsync(descriptor)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    sync_directory(os.path.dirname(path))


class NewDirectory:
    """A directory to be filled, which then takes the place of ``target`` in one step.

    As a context manager it is put in place at the end of the block, or removed if the block raised.

    Attributes:
        path: where to write. It lies beside the target.
    """

    def __init__(self, target: StrPath) -> None:
        # A link to a checkpoint stays a link: what it points to is replaced.
        self._target = os.path.realpath(target)
        self._lock = contextlib.ExitStack()
        self.path, _ = self._lock.enter_context(_locked(self._target, is_directory=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            try:
                if exception is None:
                    put_in_place(self.path, self._target)
            finally:
                # Here lies what was replaced, or what was not completed.
                shutil.rmtree(self.path, ignore_errors=True)


def put_in_place(path: str, target: str) -> None:
    """Gives a complete directory its name; one that has the name already stays until then.

    The replaced directory may be left at ``path``, for the caller to remove.

    Raises:
        OSError: the directory cannot be renamed.
    """
    _sync_tree(path)
    previous = target + PREVIOUS_SUFFIX
    if not os.path.lexists(target):
        os.rename(path, target)
    elif not _exchange(path, target):
        # A kill between these two leaves only `previous`, which `find_directory` finds.
        shutil.rmtree(previous, ignore_errors=True)
        os.rename(target, previous)
        os.rename(path, target)
    sync_directory(os.path.dirname(target))
    shutil.rmtree(previous, ignore_errors=True)


def find_directory(path: StrPath) -> str:
    """Returns the path, or where its directory was moved if a kill came while it was replaced."""
    path = os.fspath(path)
    previous = os.path.realpath(path) + PREVIOUS_SUFFIX
    return previous if not os.path.lexists(path) and os.path.isdir(previous) else path


def remove_directory(path: StrPath) -> None:
    """Removes a directory such that it is whole until it is gone; a missing one is no error.

    Raises:
        OSError: the directory cannot be renamed.
    """
    path = os.path.realpath(path)
    for place in (path, path + PREVIOUS_SUFFIX):
        doomed = _staging_name(path)
        with contextlib.suppress(FileNotFoundError):
            os.rename(place, doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(directory: StrPath) -> list[str]:
    """Removes what killed processes left half-written in a directory; returns the names."""
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if entry.name.endswith(STAGING_SUFFIX)]
    return [name for name in names if _remove_unless_locked(os.path.join(directory, name))]


def sync_directory(path: StrPath) -> None:
    """Makes the names in a directory survive a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path or ".", os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sync_tree(path: str) -> None:
    for directory, _, files in os.walk(path):
        for file in files:
            with open(os.path.join(directory, file), "rb") as opened:
                os.fsync(opened.fileno())
        sync_directory(directory)


def _exchange(first: str, second: str) -> bool:
    """Swaps two names in one step; returns False where the system or file system cannot."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


# --- locks -------------------------------------------------------------------------------------


def _staging_name(path: str) -> str:
    return f"{path}.{uuid.uuid4().hex[:12]}{STAGING_SUFFIX}"


@contextlib.contextmanager
def _locked(target: str, *, is_directory: bool) -> Iterator[tuple[str, int]]:
    """Creates a file or directory beside the target, holds a lock on it, yields path and file."""
    while (descriptor := _create(path := _staging_name(target), is_directory)) is None:
        pass
    try:
        yield path, descriptor
    finally:
        os.close(descriptor)


def _create(path: str, is_directory: bool) -> int | None:
    """Returns the descriptor; None where `remove_leftovers` elsewhere came before the lock."""
    if is_directory:
        os.mkdir(path)
    flags = os.O_RDONLY if is_directory else os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        descriptor = os.open(path, flags, 0o666)
    except FileNotFoundError:
        if not is_directory:
            raise
        return None
    if _try_lock(descriptor) is not _BUSY and os.path.lexists(path):
        return descriptor
    os.close(descriptor)
    return None


def _remove_unless_locked(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        if _try_lock(descriptor) is not _LOCKED:
            return False
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(path)
        return True
    finally:
        os.close(descriptor)


if sys.platform == "win32":

    def _try_lock(descriptor: int) -> str:
        return _UNSUPPORTED
else:
    import fcntl

    def _try_lock(descriptor: int) -> str:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return _BUSY
        except OSError:
            return _UNSUPPORTED
        return _LOCKED
