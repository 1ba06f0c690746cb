"""Files as the operations of a graph see them: only where the caller of the session allows it."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from jaxmeta import errors
from jaxmeta.checkpoint import atomic


class Files:
    """The file system of a session.

    Args:
        is_allowed: whether operations may use it.

    Example:
        >>> Files(is_allowed=False).read("/etc/hostname")
        Traceback (most recent call last):
            ...
        jaxmeta.errors.FileAccessError: an operation of the graph wants to use the file ...
    """

    def __init__(self, *, is_allowed: bool) -> None:
        self.is_allowed = is_allowed

    def path(self, filename: Any) -> str:
        """Returns a path that an operation was given, as a string.

        Raises:
            FileAccessError: operations may not use files.
            InvalidArgumentError: it is no scalar, or no path.
        """
        array = np.asarray(filename)
        if array.size != 1:
            raise errors.InvalidArgumentError(
                f"a file name must be a scalar string, got shape {list(array.shape)}"
            )
        content = array.item()
        path = os.fsdecode(content) if isinstance(content, (bytes, str)) else ""
        if not self.is_allowed:
            raise errors.FileAccessError(
                f"an operation of the graph wants to use the file {path!r}; if you trust the "
                "graph, run it in `jaxmeta.Session(allow_files=True)`"
            )
        if not path or "\0" in path:
            raise errors.InvalidArgumentError(f"{content!r} is not the name of a file")
        return path.removeprefix("file://")

    @contextlib.contextmanager
    def _opened(self, filename: Any) -> Iterator[BinaryIO]:
        with open_file(self.path(filename)) as file:
            yield file

    def read(self, filename: Any) -> bytes:
        """Returns what is in a file.

        Raises:
            FileAccessError: operations may not use files.
            NotFoundError: there is no such file.
        """
        with self._opened(filename) as file:
            return file.read()

    def write(self, filename: Any, content: bytes) -> None:
        """Writes a file, and the directories above it.

        Raises:
            FileAccessError: operations may not use files.
        """
        path = self.path(filename)
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        atomic.write_file(path, content)

    def matching(self, pattern: Any) -> list[bytes]:
        """Returns the paths that match a pattern, sorted.

        Raises:
            FileAccessError: operations may not use files.
        """
        path = self.path(pattern)
        name = os.path.basename(path)
        found = glob.glob(path, include_hidden=True)
        # As in TensorFlow, a star stands for no slash, but for a dot at the beginning.
        return sorted(
            os.fsencode(item) for item in found if fnmatch.fnmatchcase(os.path.basename(item), name)
        )


def open_file(path: str) -> BinaryIO:
    """Opens a file to be read.

    Raises:
        NotFoundError: there is no such file.
        FailedPreconditionError: it is a directory.
    """
    try:
        return open(path, "rb")
    except IsADirectoryError:
        raise errors.FailedPreconditionError(f"{path}; Is a directory") from None
    except OSError as error:
        raise errors.NotFoundError(f"{path}; {error.strerror}") from None
