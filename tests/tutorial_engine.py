"""A process of its own that runs blocks of docs/tutorial.md, one after another, as a user would.

TensorFlow's blocks change how all of TensorFlow behaves, and both register classes for good.
"""

from __future__ import annotations

import os
import pathlib
import pickle
import subprocess
import sys
import traceback
from types import TracebackType
from typing import Any, Self

import numpy as np


class Engine:
    """Runs code in one namespace, in a process that lives as long as the ``with`` block."""

    def __enter__(self) -> Self:
        path = os.pathsep.join([str(pathlib.Path(__file__).parents[1]), *sys.path])
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
        )
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def run(self, code: str, directory: os.PathLike[str]) -> dict[str, Any]:
        """Runs code in a directory; returns all numbers, arrays, strings, and lists of these."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((code, os.fspath(directory)), self._process.stdin)
        self._process.stdin.flush()
        values, error = pickle.load(self._process.stdout)
        assert error is None, f"{error}\n{code}"
        found: dict[str, Any] = values
        return found


def serve() -> None:
    """Runs what comes on stdin until it ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the blocks print is no answer
    namespace: dict[str, Any] = {"__name__": "__main__"}
    while True:
        try:
            code, directory = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        os.chdir(directory)
        error = None
        try:
            exec(compile(code, "docs/tutorial.md", "exec"), namespace)
        except BaseException:
            error = traceback.format_exc()
        plain = {name: _plain(value) for name, value in namespace.items() if name[0] != "_"}
        known = {name: value for name, value in plain.items() if value is not None}
        pickle.dump((known, error), answers)
        answers.flush()


def _plain(value: Any) -> Any:
    """Returns numbers, arrays, strings and collections of these as plain ones, else None."""
    if isinstance(value, (bool, int, float, str, bytes, np.ndarray, np.generic)):
        return value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    is_array = type(value).__module__.startswith("jax") and hasattr(value, "__array__")
    return np.asarray(value) if is_array else None


if __name__ == "__main__":
    serve()
