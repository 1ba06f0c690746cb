"""How long does a new process take from its start to the end of its first step?

Resuming from files, without the model's code, against rebuilding the model natively and restoring
its state with plain Orbax; without and with JAX's persistent compilation cache. The two must find
each other's entries in that cache: neither may compile what the other has compiled.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import statistics
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import reporting
import timing

Result = dict[str, Any]

_LAPS = ("import", "graph", "restore", "trace", "lower", "compile", "first step")
_STEP_ENTRY = "jit_train_step-"
_fresh = functools.partial(timing.fresh, __file__)


# --- each of these runs in a process of its own -------------------------------------------------


def _entries(cache: str | None) -> set[str]:
    """Returns the programs in a compilation cache."""
    names = os.listdir(cache) if cache and os.path.isdir(cache) else []
    return {name for name in names if name.endswith("-cache")}


def _use_cache(cache: str | None) -> None:
    import jax

    if cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    jax.devices()


def _without_keys(state: Any) -> Any:
    """Returns the state with typed keys as plain arrays, which Orbax takes."""
    import jax

    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)


def _with_keys(state: Any, like: Any) -> Any:
    import jax

    return jax.tree.map(lambda x, y: jax.random.wrap_key_data(x) if _is_key(y) else x, state, like)


def _is_key(value: Any) -> bool:
    import jax

    return bool(jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key))


def _fingerprint(state: Any) -> str:
    """Returns a hash of the leaves, in whatever order they come."""
    import jax
    import numpy as np

    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(_without_keys(state))]
    hashes = sorted(hashlib.sha256(leaf).hexdigest() for leaf in leaves)
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _new_model(name: str) -> Any:
    import models

    return models.MODELS[name]()


def _finish(
    watch: timing.Stopwatch, step: Any, state: Any, batch: Any, cache: str | None
) -> Result:
    """Traces, lowers, compiles and runs the step once; returns the laps and what came out."""
    import jax

    before = _entries(cache)
    watch.skip()
    traced = step.trace(state, batch)
    watch.lap("trace")
    lowered = traced.lower()
    watch.lap("lower")
    compiled = lowered.compile()
    watch.lap("compile")
    state, metrics = jax.block_until_ready(compiled(state, batch))
    watch.lap("first step")
    added = _entries(cache) - before
    return {
        "wall": watch.wall,
        "cpu": watch.cpu,
        "loss": float(metrics["loss"]).hex(),
        "state": _fingerprint(state),
        "added": sum(name.startswith(_STEP_ENTRY) for name in added),
        "added others": sum(not name.startswith(_STEP_ENTRY) for name in added),
    }


def save_model(name: str, folder: str) -> Result:
    """Does one step and saves: a program with its state, and the state with plain Orbax."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    import jaxmeta as jm

    model = _new_model(name)
    step, state, batches = model.make()
    graph = jm.Graph()
    graph.add_signature("train_step", step, graph.variables(state), batches(0), updates=0)
    state, _ = jax.block_until_ready(step(state, batches(0)))
    with jm.Saver(graph) as saver:
        path = saver.save(state, f"{folder}/model", global_step=1)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(pathlib.Path(folder, "native").absolute(), _without_keys(state))
    np.savez(f"{folder}/batch.npz", **batches(1))
    return {"path": path}


def run_native(name: str, folder: str, cache: str | None) -> Result:
    """Does the first step of a run that is not resumed."""
    watch = timing.Stopwatch()
    _use_cache(cache)
    step, state, _ = _new_model(name).make()
    watch.lap("graph")
    return _finish(watch, step, state, _batch(folder), cache)


def _batch(folder: str) -> dict[str, Any]:
    import numpy as np

    with np.load(f"{folder}/batch.npz") as arrays:
        return dict(arrays)


def resume_native(name: str, folder: str, cache: str | None) -> Result:
    """Rebuilds the model from its code, restores its state and does the next step."""
    watch = timing.Stopwatch()
    import jax

    _use_cache(cache)
    import models  # noqa: F401  imports flax and optax
    import orbax.checkpoint as ocp

    watch.lap("import")
    model = _new_model(name)
    step = jax.jit(model.new_step(), donate_argnums=0)
    like = model.abstract_state()
    watch.lap("graph")
    with ocp.StandardCheckpointer() as checkpointer:
        target = jax.eval_shape(_without_keys, like)
        restored = checkpointer.restore(pathlib.Path(folder, "native").absolute(), target)
    state = jax.block_until_ready(_with_keys(restored, like))
    watch.lap("restore")
    return _finish(watch, step, state, _batch(folder), cache)


def resume_imported(name: str, folder: str, cache: str | None) -> Result:
    """Imports the program, restores its state and does the next step."""
    del name  # the files say it all
    watch = timing.Stopwatch()
    import jax

    _use_cache(cache)
    import jaxmeta as jm

    watch.lap("import")
    path = jm.latest_checkpoint(folder)
    with jm.Graph().as_default() as graph:
        saver = jm.import_meta_graph(f"{path}.meta")
        step = jm.Program(graph, {})["train_step"]
        watch.lap("graph")
        session = jm.Session(graph)
        saver.restore(session, path)
    state = jax.block_until_ready(session.state)
    watch.lap("restore")
    return _finish(watch, step, state, _batch(folder), cache)


# --- the report --------------------------------------------------------------------------------


def check_cache(name: str, folder: str) -> reporting.Row:
    """Returns how many entries each adds to the other's cache, which must be none."""
    row: dict[str, Any] = {"model": name}
    orders = {
        "native run, then imported": (run_native, resume_imported),
        "imported, then native run": (resume_imported, run_native),
        "native run, then native resumption": (run_native, resume_native),
    }
    for title, functions in orders.items():
        cache = f"{folder}/cache {title}"
        first, second = (
            _fresh(function.__name__, name=name, folder=folder, cache=cache)
            for function in functions
        )
        assert first["added"] == 1, f"{name}: {first['added']} entries for one step"
        if resume_imported in functions:
            assert second["added"] == 0, f"{name}, {title}: the step was compiled again"
        row[title] = f"{first['added']}, {second['added']}"
    return row


def measure(name: str, rounds: int, folder: str) -> list[reporting.Row]:
    """Returns the rows of one model; all four ways must reach the same state."""
    cache = f"{folder}/cache"
    for function in ("run_native", "resume_native"):
        _fresh(function, name=name, folder=folder, cache=cache)
    ways = {
        "native, cold": ("resume_native", None),
        "imported, cold": ("resume_imported", None),
        "native, cached": ("resume_native", cache),
        "imported, cached": ("resume_imported", cache),
    }
    variants: dict[str, Callable[[], Any]] = {
        way: functools.partial(_fresh, function, name=name, folder=folder, cache=cache)
        for way, (function, cache) in ways.items()
    }
    samples = timing.interleave(variants, rounds)
    outcomes = {(r["loss"], r["state"]) for results in samples.values() for r in results}
    assert len(outcomes) == 1, f"{name}: the first steps gave different states"
    rows = []
    for way, results in samples.items():
        native = samples[way.replace("imported", "native")]
        row: dict[str, Any] = {"model": name, "way": way}
        row |= {lap: statistics.median(r["wall"][lap] for r in results) for lap in _LAPS}
        row["total"] = statistics.median(map(_total, results))
        row["/ native"] = timing.ratio(list(map(_total, results)), list(map(_total, native)))
        rows.append(row)
    return rows


def _total(result: Result) -> float:
    return float(sum(result["wall"].values()))


def _add_targets(report: reporting.Report, rows: Sequence[reporting.Row]) -> None:
    for row in rows:
        if row["way"].startswith("imported"):
            report.target(f"{row['model']}: {row['way']} / native", row["/ native"], 1.0)


def _draw(figure: Any, rows: Sequence[reporting.Row]) -> None:
    axes = figure.subplots()
    labels = [f"{row['model']}: {row['way']}" for row in rows]
    left = [0.0] * len(rows)
    for lap in _LAPS:
        widths = [row[lap] for row in rows]
        axes.barh(labels, widths, left=left, label=lap)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(title="from a new process to the end of its first step", xlabel="s")
    axes.legend(fontsize="small")


def main() -> None:
    options = timing.arguments(__doc__)
    names, rounds = ["mlp", "cnn", "small_gpt"], 5
    if options.quick:
        names, rounds = ["mlp"], 1
    elif options.full:
        names, rounds = [*names, "lstm", "resnet50"], 9
    report = reporting.Report("resume", "From a new process to the end of its first step")
    report.note(
        f"Seconds of wall time, medians of {rounds} interleaved rounds of new processes; the start "
        "of the interpreter is not counted. `graph` is building the model and its abstract state, "
        "or reading the `.meta` file. All ways end in the same loss and state, bit for bit. The "
        "cache was filled by a native run and by a native resumption: arrays that Orbax restores "
        "are committed to a device, and with them JAX compiles another program than that of the "
        "run that saved them. The imported step takes the entry of that run."
    )
    rows, caches = [], []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            _fresh("save_model", name=name, folder=folder)
            caches.append(check_cache(name, folder))
            rows.extend(measure(name, rounds, folder))
    report.table("Persistent compilation cache: entries of the step that each run adds", caches)
    report.table("Seconds to the end of the first step", rows)
    _add_targets(report, rows)
    report.write(options.output, functools.partial(_draw, rows=rows))


if __name__ == "__main__" and not timing.run_as_worker(globals()):
    main()
