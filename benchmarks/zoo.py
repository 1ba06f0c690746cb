"""How soon is each program of the zoo back in JAX, against tracing it from its Python source?

Parse, import and retrace against tracing the original, side by side, each in a fresh process, at
the programs' real sizes; nothing is compiled or allocated.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
import statistics
import sys
import tempfile
from typing import Any

import reporting
import timing

_TESTS = str(pathlib.Path(__file__).parents[1] / "tests")
Result = dict[str, Any]


def _entries() -> Any:
    if _TESTS not in sys.path:
        sys.path.insert(0, _TESTS)
    return _zoo().entries()


def _zoo() -> Any:
    """Returns the package in tests/; this script has the same name."""
    import importlib.util

    location = pathlib.Path(_TESTS) / "zoo" / "__init__.py"
    if (known := sys.modules.get("programs_of_the_zoo")) is not None:
        return known
    spec = importlib.util.spec_from_file_location(
        "programs_of_the_zoo", location, submodule_search_locations=[str(location.parent)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["programs_of_the_zoo"] = module
    spec.loader.exec_module(module)
    return module


def _fingerprint(traced: Any) -> str:
    import hlo

    text = hlo.canonical_stablehlo(traced.lower())
    return hashlib.sha256(text.encode()).hexdigest()


# --- each of these runs in a process of its own --------------------------------------------------


def export_program(name: str, size: str, folder: str) -> Result:
    """Writes a program."""
    entry = _entries()[name]
    import jax
    import saved_functions

    made = entry.make(size)
    arguments = jax.eval_shape(made.init)
    graph = saved_functions.save(pathlib.Path(folder), made.fn, arguments, updates=made.updates)
    functions = graph.functions.values()
    return {"nodes": len(graph.nodes) + sum(len(f.node_def) for f in functions)}


def trace_original(name: str, size: str) -> Result:
    """Traces a program from its Python source."""
    entry = _entries()[name]
    import jax

    made = entry.make(size)
    arguments = jax.eval_shape(made.init)
    step = made.jitted()
    jax.clear_caches()  # the step would find there what `init` has in common with it
    watch = timing.Stopwatch()
    traced = step.trace(*arguments)
    watch.lap("trace")
    return {"cpu": watch.cpu, "wall": watch.wall, "fingerprint": _fingerprint(traced)}


def trace_imported(folder: str) -> Result:
    """Reads a program from its file and traces it."""
    sys.path.insert(0, _TESTS)
    import jax
    import saved_functions

    jax.devices()
    path = pathlib.Path(folder)
    constants = saved_functions.load_constants(path)  # the original closes over its own already
    watch = timing.Stopwatch()
    step, graph = saved_functions.load_function(path, constants)
    watch.lap("import")
    arguments = saved_functions.load_arguments(path, graph)
    watch.skip()
    traced = step.trace(*arguments)
    watch.lap("retrace")
    return {"cpu": watch.cpu, "wall": watch.wall, "fingerprint": _fingerprint(traced)}


# --- the report ----------------------------------------------------------------------------------

_fresh = functools.partial(timing.fresh, __file__)


def measure(name: str, size: str, rounds: int, folder: str) -> reporting.Row:
    """Returns the row of one program; both must lower to the same StableHLO."""
    exported = _fresh("export_program", name=name, size=size, folder=folder)
    samples = timing.interleave(
        {
            "native": functools.partial(_fresh, "trace_original", name=name, size=size),
            "imported": functools.partial(_fresh, "trace_imported", folder=folder),
        },
        rounds,
    )
    native, imported = samples["native"], samples["imported"]
    programs = {result["fingerprint"] for result in native + imported}
    assert len(programs) == 1, f"{name}: the imported program lowers to other StableHLO"
    return {
        "program": name,
        "nodes": exported["nodes"],
        "trace s": statistics.median(r["cpu"]["trace"] for r in native),
        "import s": statistics.median(r["cpu"]["import"] for r in imported),
        "retrace s": statistics.median(r["cpu"]["retrace"] for r in imported),
        "ratio": timing.ratio(
            [sum(r["cpu"].values()) for r in imported], [r["cpu"]["trace"] for r in native]
        ),
    }


def _draw(figure: Any, rows: list[reporting.Row]) -> None:
    ordered = sorted(rows, key=lambda row: row["ratio"])
    axes = figure.subplots()
    axes.bar(range(len(ordered)), [row["ratio"] for row in ordered])
    axes.axhline(1.0, color="black", linewidth=1)
    axes.set_xticks(range(len(ordered)), [row["program"] for row in ordered], rotation=90)
    axes.tick_params(axis="x", labelsize=6)
    axes.set(title="from file to jaxpr", ylabel="CPU time / tracing the original")


def main() -> None:
    options = timing.arguments(__doc__)
    names = list(_entries())
    size, rounds = "real", 5 if options.full else 1
    if options.quick:
        names, size, rounds = names[:2], "reduced", 1
    report = reporting.Report("zoo", "The zoo: from a file to a jaxpr")
    report.note(
        f"Seconds are CPU time at {size} sizes, medians of {rounds} interleaved rounds, each in a "
        "new process. Before the original is traced, its arguments and constants are made, and "
        "JAX's caches cleared. Both lower to the same StableHLO. `ratio` is (import + retrace) / "
        "trace; parsing is part of the import."
    )
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, size, rounds, folder))
            print(reporting.format_table(rows[-1:]).splitlines()[-1], flush=True)
    report.table("Programs", rows)
    mean = statistics.geometric_mean([row["ratio"] for row in rows])
    report.target("(import + retrace) / trace, geometric mean", mean, 0.5)
    report.write(options.output, functools.partial(_draw, rows=rows))


if __name__ == "__main__" and not timing.run_as_worker(globals()):
    main()
