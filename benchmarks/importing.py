"""What does `import jaxmeta` cost in a program that imports JAX anyway?

Each import is made by a process of its own, whose modules were compiled to bytecode before, as pip
does it.
"""

from __future__ import annotations

import functools
import importlib
import os
import statistics
import tempfile
from typing import Any

import reporting
import timing

_COMPARED = ("jaxmeta", "flax.linen", "orbax.checkpoint", "tensorflow")


def import_after_jax(name: str) -> dict[str, Any]:
    """Imports JAX and then another package."""
    watch = timing.Stopwatch()
    importlib.import_module("jax")
    watch.lap("jax")
    importlib.import_module(name)
    watch.lap("after")
    return {"cpu": watch.cpu, "wall": watch.wall}


def measure(name: str, rounds: int) -> reporting.Row:
    """Returns the row of a package."""
    run = functools.partial(timing.fresh, __file__, "import_after_jax", name=name)
    run()  # writes the bytecode
    results = [run() for _ in range(rounds)]
    after = [result["cpu"]["after"] for result in results]
    jax = [result["cpu"]["jax"] for result in results]
    return {
        "after jax": name,
        "jax s": statistics.median(jax),
        "s": statistics.median(after),
        "/ jax": timing.ratio(after, jax),
        "/ jax (wall)": timing.ratio(
            [result["wall"]["after"] for result in results],
            [result["wall"]["jax"] for result in results],
        ),
    }


def _draw(figure: Any, rows: list[reporting.Row]) -> None:
    axes = figure.subplots()
    axes.bar([row["after jax"] for row in rows], [row["/ jax"] for row in rows])
    axes.axhline(1.0, color="black", linewidth=1)
    axes.set(ylabel="CPU time / that of import jax")


def main() -> None:
    options = timing.arguments(__doc__)
    rounds = 2 if options.quick else 25 if options.full else 11
    report = reporting.Report("importing", "What `import jaxmeta` costs")
    report.note(
        f"Seconds are CPU time; medians over {rounds} processes, each of which imports JAX and "
        "then the package. Ratios are taken within a process."
    )
    names = [name for name in _COMPARED if timing.has_package(name.split(".")[0])]
    with tempfile.TemporaryDirectory() as folder:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = folder
        rows = [measure(name, rounds) for name in names]
    report.table("Imports", rows)
    report.target("import jaxmeta / import jax", rows[0]["/ jax"], 0.3)
    report.write(options.output, functools.partial(_draw, rows=rows))


if __name__ == "__main__" and not timing.run_as_worker(globals()):
    main()
