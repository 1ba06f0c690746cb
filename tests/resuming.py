"""A process that resumes saved programs, and never saw the libraries they were written with.

`Resumer` starts it and asks it; run as a script, this file is that process: it reads one request a
line from standard input and answers with one line. Importing a model library there fails.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np

LIBRARIES = (
    "flax",
    "optax",
    "equinox",
    "diffrax",
    "lineax",
    "optimistix",
    "chex",
    "tensorflow",
    "programs",
    "zoo",
    "sklearn",
)
# Compiler options that leave XLA's own passes as they are and hurry LLVM, which takes most of the
# time; for both of two programs that are compared.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class _Hiding:
    """A finder of modules that finds none of `LIBRARIES`, as where they are not installed.

    It does not raise: libraries ask whether TensorFlow is there, and do without where it is not.
    """

    def __init__(self, finder: Any) -> None:
        self._finder = finder

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname.split(".")[0] in LIBRARIES:
            return None
        return self._finder.find_spec(fullname, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


class Resumer:
    """Asks a fresh process to load checkpoints and to run their signatures."""

    def __init__(self, python: str = sys.executable, env: dict[str, str] | None = None) -> None:
        root = pathlib.Path(__file__).parents[1]
        self._process = subprocess.Popen(
            [python, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root), **(env or {})},
        )

    def resume(self, prefix: str, steps: int, folder: pathlib.Path, **options: Any) -> dict:
        """Runs a saved train step on the batches in a folder; see `_resume`."""
        request = {"prefix": prefix, "steps": steps, "folder": str(folder), **options}
        return self._ask({"task": "resume", **request})

    def run(self, folder: pathlib.Path, **options: Any) -> dict:
        """Runs a function that `saved_functions` wrote; see `_run`."""
        return self._ask({"task": "run", "folder": str(folder), **options})

    def _ask(self, request: dict[str, Any]) -> dict:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '{"error": "the process died"}')
        if "error" in answer:
            raise AssertionError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def write_leaves(path: pathlib.Path, leaves: list[Any]) -> None:
    """Writes arrays as raw bytes with their dtypes, so that small floats keep theirs."""
    arrays = [np.asarray(leaf) for leaf in leaves]
    np.savez(
        path, **{f"a{i:05d}": np.frombuffer(a.tobytes(), np.uint8) for i, a in enumerate(arrays)}
    )
    described = [[str(a.dtype), list(a.shape)] for a in arrays]
    path.with_suffix(".json").write_text(json.dumps(described))


def read_leaves(path: pathlib.Path) -> list[Any]:
    """Returns what `write_leaves` wrote."""
    import ml_dtypes

    described = json.loads(path.with_suffix(".json").read_text())
    with np.load(path) as stored:
        raw = [stored[name] for name in sorted(stored.files)]
    return [
        np.frombuffer(data.tobytes(), np.dtype(getattr(ml_dtypes, dtype, dtype))).reshape(shape)
        for data, (dtype, shape) in zip(raw, described, strict=True)
    ]


def plain_leaves(tree: Any) -> list[Any]:
    """Returns the leaves of a tree as numpy arrays; typed keys as their data."""
    import jax

    def plain(leaf: Any) -> Any:
        is_key = jax.dtypes.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return [plain(leaf) for leaf in jax.tree.leaves(tree)]


def _resume(request: dict[str, Any]) -> dict[str, Any]:
    """Loads a checkpoint, runs its train step, and writes state, metrics and optimized HLO."""
    import hlo
    import jax

    import jaxmeta as jm
    from jaxmeta import trees
    from jaxmeta.tracing import signature_nodes

    folder = pathlib.Path(request["folder"])
    run = jm.load(request["prefix"])
    name = request.get("signature", "train_step")
    step = run[name]
    batch_tree = signature_nodes.argument_tree(run.graph.signatures[name].arguments, 1)
    state, metrics = run.state, []
    compiled = None
    for i in range(request["steps"]):
        batch = trees.build(batch_tree, iter(read_leaves(folder / f"batch{i}.npz")))
        compiled = compiled or step.lower(state, batch).compile()
        state, values = compiled(state, batch)
        metrics.extend(plain_leaves(values))
    write_leaves(folder / "resumed.npz", plain_leaves(state) + metrics)
    (folder / "resumed.hlo").write_text(hlo.hlo_text(compiled))
    if prefix := request.get("save"):
        with jm.Saver(run.graph) as saver:
            saver.save(state, prefix)
    found = [library for library in LIBRARIES if library in sys.modules]
    return {"jax": jax.__version__, "libraries": found}


def _run(request: dict[str, Any]) -> dict[str, Any]:
    """Loads a function; writes its StableHLO, optimized HLO and results into the same folder."""
    import hlo
    import jax
    import saved_functions

    folder = pathlib.Path(request["folder"])
    fn, graph = saved_functions.load_function(folder)
    args = saved_functions.load_arguments(folder, graph)
    lowered = fn.lower(*args)
    (folder / "imported.stablehlo").write_text(lowered.as_text())
    if request.get("compiles", True):
        compiled = lowered.compile(QUICKLY if request.get("quickly") else None)
        (folder / "imported.hlo").write_text(hlo.hlo_text(compiled))
        write_leaves(folder / "imported.npz", plain_leaves(compiled(*args)))
    found = [library for library in LIBRARIES if library in sys.modules]
    return {"jax": jax.__version__, "libraries": found}


def main() -> None:
    """Answers requests until standard input ends."""
    sys.meta_path[:] = [_Hiding(finder) for finder in sys.meta_path]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints must not disturb the answers
    for line in sys.stdin:
        try:
            request = json.loads(line)
            answer = {"resume": _resume, "run": _run}[request["task"]](request)
        except Exception as error:
            notes = getattr(error, "__notes__", [])
            answer = {"error": "\n".join([f"{type(error).__name__}: {error}", *notes])}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
