"""How long do export and import take, against tracing the original, TensorFlow and jax.export?

Two questions: how soon a program is back in JAX (parse, import, retrace) against tracing the
original from Python, each in a fresh process; and what export and import cost a node, up to a
million nodes, against TensorFlow on the same files.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
import statistics
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import reporting
import timing

Result = dict[str, Any]

_CHAIN = "chain:"
_SIGNATURE = "train_step"
_CHAIN_OPS = ("AddV2", "Mul", "Sin", "Sub")
_LINEAR_FROM = 10_000  # nodes; smaller graphs are dominated by what a graph costs once


# --- a program, traced and retraced: each function runs in a process of its own ------------------


def _program(name: str) -> tuple[Any, tuple[Any, ...]]:
    """Returns a jitted function and its abstract arguments; `chain:1000` has 1000 equations."""
    import jax
    import models

    if name.startswith(_CHAIN):
        x = jax.ShapeDtypeStruct((4,), "float32")
        return jax.jit(models.chain(int(name.removeprefix(_CHAIN)))), (x, x)
    model = models.MODELS[name]()
    step = jax.jit(model.new_step(), donate_argnums=0)
    return step, (model.abstract_state(), model.abstract_batch())


def _fingerprint(traced: Any) -> str:
    return hashlib.sha256(traced.lower().as_text().encode()).hexdigest()


def trace_original(name: str) -> Result:
    """Builds a program from Python and traces it; initializing its state is a lap of its own."""
    import jax

    jax.devices()
    watch = timing.Stopwatch()
    step, arguments = _program(name)
    watch.lap("init")
    traced = step.trace(*arguments)
    watch.lap("trace")
    return {"wall": watch.wall, "cpu": watch.cpu, "fingerprint": _fingerprint(traced)}


def trace_imported(path: str) -> Result:
    """Reads a program from a file and traces it."""
    import jax

    import jaxmeta as jm
    from jaxmeta import specs as array_specs
    from jaxmeta import trees

    jax.devices()
    watch = timing.Stopwatch()
    meta_graph = jm.read_meta_graph_file(path)
    watch.lap("parse")
    with jm.Graph().as_default() as graph:
        jm.import_meta_graph(meta_graph)
    watch.lap("import")
    signature = graph.signatures[_SIGNATURE]
    specs = []
    for leaf in trees.leaves(signature.arguments):
        node = graph.node(leaf.name.split(":")[0])
        impl = node.attr["_jax_key_impl"].s.decode() if "_jax_key_impl" in node.attr else ""
        dtype = jm.Tensor(graph, node.name, 0).dtype if ":" in leaf.name else None
        dtype = dtype or graph.variable(leaf.name).dtype
        specs.append(array_specs.logical_spec(leaf.shape, dtype, impl))
    positional, named = trees.build(signature.arguments, iter(specs))
    watch.skip()
    traced = jm.Program(graph, {})[_SIGNATURE].trace(*positional, **named)
    watch.lap("retrace")
    return {"wall": watch.wall, "cpu": watch.cpu, "fingerprint": _fingerprint(traced)}


def export_program(name: str, path: str) -> Result:
    """Traces a program into a graph and writes that, and writes it with jax.export."""
    import jax
    from jax import export

    import jaxmeta as jm

    step, arguments = _program(name)
    step.trace(*arguments)  # what is timed below finds the trace in JAX's cache
    graph = jm.Graph()
    watch = timing.Stopwatch()
    first = graph.variables(arguments[0]) if not name.startswith(_CHAIN) else arguments[0]
    updates = None if name.startswith(_CHAIN) else 0
    graph.add_signature(_SIGNATURE, step, first, *arguments[1:], updates=updates)
    watch.lap("to nodes")
    jm.export_meta_graph(path, graph=graph)
    watch.lap("export")
    flat, tree = jax.tree.flatten(arguments)
    flat_step = jax.jit(lambda *leaves: jax.tree.leaves(step(*jax.tree.unflatten(tree, leaves))))
    watch.skip()
    serialized = export.export(flat_step)(*flat).serialize()
    watch.lap("jax.export")
    content = pathlib.Path(path).read_bytes()
    return {
        "cpu": watch.cpu,
        "nodes": len(graph.nodes) + sum(len(f.node_def) for f in graph.functions.values()),
        "bytes": len(content),
        "sha": hashlib.sha256(content).hexdigest(),
        "jax.export bytes": len(serialized),
    }


# --- chains of nodes ---------------------------------------------------------------------------


def build_chain(nodes: int) -> Any:
    """Returns a graph of a placeholder and a chain of elementwise nodes."""
    import numpy as np

    import jaxmeta as jm

    graph = jm.Graph()
    attrs = {"dtype": np.dtype("float32"), "shape": (4,)}
    (start,) = graph.add_node("Placeholder", [], attrs, "x")
    edge = start
    for number in range(nodes - 1):
        op = _CHAIN_OPS[number % len(_CHAIN_OPS)]
        (edge,) = graph.add_node(op, [edge] if op == "Sin" else [edge, start], {})
    return graph


def export_chain(nodes: int, path: str) -> Result:
    """Exports a chain to a file."""
    import jaxmeta as jm

    watch = timing.Stopwatch()
    graph = build_chain(nodes)
    watch.lap("build")
    jm.export_meta_graph(path, graph=graph)
    watch.lap("export")
    content = pathlib.Path(path).read_bytes()
    return {
        "cpu": watch.cpu,
        "wall": watch.wall,
        "bytes": len(content),
        "sha": hashlib.sha256(content).hexdigest(),
    }


def import_chain(nodes: int, path: str) -> Result:
    """Imports a chain from a file."""
    import jaxmeta as jm

    build_chain(2)  # loads the op definitions
    before = timing.memory_bytes("VmRSS")
    watch = timing.Stopwatch()
    meta_graph = jm.read_meta_graph_file(path)
    watch.lap("parse")
    with jm.Graph().as_default() as graph:
        jm.import_meta_graph(meta_graph)
    watch.lap("import")
    peak = timing.memory_bytes("VmHWM")
    assert len(graph.nodes) == nodes
    return {"cpu": watch.cpu, "wall": watch.wall, "peak": peak, "added": peak - before}


def tensorflow_chain(nodes: int, path: str) -> Result:
    """Imports the same file with TensorFlow, and exports the graph that this gives."""
    import tensorflow as tf

    v1 = tf.compat.v1
    before = timing.memory_bytes("VmRSS")
    with tf.Graph().as_default() as graph:
        watch = timing.Stopwatch()
        v1.train.import_meta_graph(path)
        watch.lap("import")
        peak = timing.memory_bytes("VmHWM")
        assert len(graph.get_operations()) == nodes
        watch.skip()
        v1.train.export_meta_graph(f"{path}.tensorflow", graph=graph)
        watch.lap("export")
    pathlib.Path(f"{path}.tensorflow").unlink()
    return {"cpu": watch.cpu, "wall": watch.wall, "peak": peak, "added": peak - before}


# --- the report --------------------------------------------------------------------------------

_fresh = functools.partial(timing.fresh, __file__)


def _total(result: Result, clock: str = "cpu") -> float:
    return float(sum(result[clock].values()))


def _median(results: Sequence[Result], lap: str, clock: str = "cpu") -> float:
    return statistics.median(result[clock][lap] for result in results)


def measure_program(name: str, rounds: int, folder: str) -> reporting.Row:
    """Returns the row of one program; the lowered programs must be equal, and the files."""
    path = f"{folder}/{name.replace(':', '_')}.meta"
    exported = [_fresh("export_program", name=name, path=path) for _ in range(2)]
    assert exported[0]["sha"] == exported[1]["sha"], f"{name}: two exports differ"
    variants: dict[str, Callable[[], Any]] = {
        "native": functools.partial(_fresh, "trace_original", name=name),
        "imported": functools.partial(_fresh, "trace_imported", path=path),
    }
    samples = timing.interleave(variants, rounds)
    native, imported = samples["native"], samples["imported"]
    programs = {result["fingerprint"] for result in native + imported}
    assert len(programs) == 1, f"{name}: the imported program lowers to other StableHLO"

    def against(clock: str) -> float:
        return timing.ratio(
            [_total(result, clock) for result in imported],
            [result[clock]["trace"] for result in native],
        )

    return {
        "program": name,
        "nodes": exported[0]["nodes"],
        "init s": _median(native, "init"),
        "trace s": _median(native, "trace"),
        "parse s": _median(imported, "parse"),
        "import s": _median(imported, "import"),
        "retrace s": _median(imported, "retrace"),
        "ratio": against("cpu"),
        "ratio (wall)": against("wall"),
        "to nodes s": _median(exported, "to nodes"),
        "export s": _median(exported, "export"),
        "jax.export s": _median(exported, "jax.export"),
        "KB": exported[0]["bytes"] / 1e3,
        "jax.export KB": exported[0]["jax.export bytes"] / 1e3,
    }


def measure_chain(nodes: int, rounds: int, folder: str, is_compared: bool) -> reporting.Row:
    """Returns the row of one size of chain; microseconds are CPU time.

    Args:
        nodes: of the chain.
        rounds: how often each way is measured.
        folder: for the file.
        is_compared: whether TensorFlow is measured as well, where it is installed.
    """
    path = f"{folder}/nodes_{nodes}.meta"
    variants: dict[str, Callable[[], Any]] = {
        "export": functools.partial(_fresh, "export_chain", nodes=nodes, path=path),
        "import": functools.partial(_fresh, "import_chain", nodes=nodes, path=path),
    }
    variants["export"]()  # there must be a file before the first round
    has_tensorflow = is_compared and timing.has_package("tensorflow")
    if has_tensorflow:
        variants["tf"] = functools.partial(_fresh, "tensorflow_chain", nodes=nodes, path=path)
    samples = timing.interleave(variants, rounds)
    exports, imports = samples["export"], samples["import"]
    assert len({result["sha"] for result in exports}) == 1, "two exports differ"
    micro = 1e6 / nodes
    row: dict[str, Any] = {
        "nodes": nodes,
        "MB": exports[0]["bytes"] / 1e6,
        "build us": _median(exports, "build") * micro,
        "export us": _median(exports, "export") * micro,
        "parse us": _median(imports, "parse") * micro,
        "import us": statistics.median(map(_total, imports)) * micro,
        "peak MB": imports[0]["added"] / 1e6,
    }
    if has_tensorflow:
        theirs = samples["tf"]
        row |= {
            "TF export us": _median(theirs, "export") * micro,
            "TF import us": _median(theirs, "import") * micro,
            "TF peak MB": theirs[0]["added"] / 1e6,
            "export/TF": timing.ratio(_laps(exports, "export"), _laps(theirs, "export")),
            "import/TF": timing.ratio(list(map(_total, imports)), _laps(theirs, "import")),
            "peak/TF": imports[0]["added"] / theirs[0]["added"],
        }
    return row


def _laps(results: Sequence[Result], lap: str) -> list[float]:
    return [result["cpu"][lap] for result in results]


def _add_targets(
    report: reporting.Report, programs: Sequence[reporting.Row], chains: Sequence[reporting.Row]
) -> None:
    for row in programs:
        name = row["program"]
        if name in ("gpt2_small", "resnet50") or name.startswith(_CHAIN):
            at_most = 1.1 if name.startswith(_CHAIN) else 0.35
            report.target(f"{name}: parse + import + retrace / trace", row["ratio"], at_most)
    last = chains[-1]
    size = f"{last['nodes']:,} nodes"
    linear = [row for row in chains if row["nodes"] == _LINEAR_FROM]
    if linear and last["nodes"] > _LINEAR_FROM:
        growth = last["import us"] / linear[0]["import us"]
        report.target(f"import us a node, {size} / {_LINEAR_FROM:,}", growth, 1.3)
        growth = last["export us"] / linear[0]["export us"]
        report.target(f"export us a node, {size} / {_LINEAR_FROM:,}", growth, 1.3)
    for row in [row for row in chains if "TF import us" in row][-1:]:
        size = f"{row['nodes']:,} nodes"
        report.target(f"import / TensorFlow, {size}", row["import/TF"], 0.3)
        report.target(f"peak memory of import / TensorFlow, {size}", row["peak/TF"], 1.0)
        report.target(f"export / TensorFlow, {size}", row["export/TF"], 0.5)


def _draw(figure: Any, programs: Sequence[reporting.Row], chains: Sequence[reporting.Row]) -> None:
    left, right = figure.subplots(1, 2)
    laps = ("parse s", "import s", "retrace s")
    ours = {lap: [row[lap] / row["trace s"] for row in programs] for lap in laps}
    bottom = [0.0] * len(programs)
    for lap, heights in ours.items():
        left.bar(range(len(programs)), heights, bottom=bottom, label=lap.removesuffix(" s"))
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    left.axhline(1.0, color="black", linewidth=1, label="tracing the original")
    left.set_xticks(range(len(programs)), [row["program"] for row in programs], rotation=20)
    left.set(title="from file to jaxpr", ylabel="CPU time / tracing the original")
    left.legend()
    nodes = [row["nodes"] for row in chains]
    for column in ("import us", "export us", "TF import us", "TF export us"):
        if column in chains[0]:
            heights = [row.get(column) for row in chains]
            right.plot(nodes, heights, marker="o", label=column.removesuffix(" us"))
    right.set(title="a chain of nodes", xlabel="nodes", ylabel="CPU us a node")
    right.set(xscale="log", yscale="log")
    right.legend()


def main() -> None:
    options = timing.arguments(__doc__)
    names = ["mlp", "small_gpt", "resnet50", "gpt2_small", "chain:100000"]
    sizes = [1_000, 10_000, 100_000, 1_000_000]
    rounds = 9 if options.full else 5
    if options.quick:
        names, sizes, rounds = ["mlp", "chain:1000"], [1_000], 1
    compared = 1_000_000 if options.full else 100_000  # beyond, TensorFlow takes minutes
    report = reporting.Report("import_export", "From a program to a file and back")
    report.note(
        "Seconds and microseconds are CPU time of processes that did nothing else before; medians "
        f"of {rounds} interleaved rounds (3 above 100,000 nodes). The imported program lowers to "
        "the same StableHLO as the original, and two exports gave the same bytes. `ratio` is "
        "(parse + import + retrace) / trace; `init` is what the original needs before it can be "
        "traced and the imported one does not."
    )
    with tempfile.TemporaryDirectory() as folder:
        programs = [measure_program(name, rounds, folder) for name in names]
        report.table("Programs", programs)
        chains = [
            measure_chain(n, 3 if n > 100_000 else rounds, folder, n <= compared) for n in sizes
        ]
        report.table("Chains of nodes, a node", chains)
    _add_targets(report, programs, chains)
    report.write(options.output, functools.partial(_draw, programs=programs, chains=chains))


if __name__ == "__main__" and not timing.run_as_worker(globals()):
    main()
