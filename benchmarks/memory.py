"""How much memory do saving and loading take, against the bytes of the arrays, and plain Orbax?

Each way runs in a process of its own; what is counted is the most memory that it held beyond what
it held before: for saving beyond the arrays themselves, for loading with them.
"""

from __future__ import annotations

import functools
import gc
import os
import pathlib
import tempfile
from typing import Any

import reporting
import timing

Result = dict[str, Any]

_ARRAYS = 8
_DEVICES = 4
_MEGABYTE = 1 << 20


class _Peak:
    """The most memory that this process takes from here on."""

    def __init__(self) -> None:
        import orbax.checkpoint  # noqa: F401 - what it takes is not counted

        gc.collect()
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak until now
        self._before = timing.memory_bytes("VmRSS")

    def result(self, raw: int) -> Result:
        """Returns the peak as a ratio of the raw bytes of the arrays."""
        return {"ratio": (timing.memory_bytes("VmHWM") - self._before) / raw}


def _new_arrays(megabytes: int) -> dict[str, Any]:
    import numpy as np

    size = megabytes * _MEGABYTE // 4 // _ARRAYS
    random = np.random.default_rng(0)
    return {f"w{i}": random.standard_normal(size, dtype=np.float32) for i in range(_ARRAYS)}


def _new_state(megabytes: int) -> dict[str, Any]:
    import jax

    state = jax.tree.map(jax.numpy.array, _new_arrays(megabytes))
    gc.collect()  # else the host's arrays live on
    return jax.block_until_ready(state)


def _specs(state: dict[str, Any]) -> dict[str, Any]:
    import jax

    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in state.items()}


# --- ways to save: each function runs in a process of its own ------------------------------------


def save_state(megabytes: int, folder: str, checkpoint_format: str) -> Result:
    """Saves a train step and its state."""
    import jax

    import jaxmeta as jm

    state = _new_state(megabytes)
    peak = _Peak()
    graph = jm.Graph()
    double = functools.partial(jax.tree.map, lambda x: x * 2)
    graph.add_signature("step", double, graph.variables(state), updates=0)
    with jm.Saver(graph, checkpoint_format=checkpoint_format) as saver:
        saver.save(state, f"{folder}/model")
    return peak.result(megabytes * _MEGABYTE)


def save_with_orbax(megabytes: int, folder: str) -> Result:
    """Saves the same state with plain Orbax."""
    import orbax.checkpoint as ocp

    state = _new_state(megabytes)
    peak = _Peak()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(f"{folder}/plain", state)
    return peak.result(megabytes * _MEGABYTE)


def save_constants(megabytes: int, folder: str) -> Result:
    """Saves a function that closes over host arrays."""
    import jax
    import numpy as np

    import jaxmeta as jm

    arrays = _new_arrays(megabytes)
    size = len(arrays["w0"])
    peak = _Peak()
    graph = jm.Graph()
    graph.add_signature(
        "predict",
        lambda x: [x + value for value in arrays.values()],
        jax.ShapeDtypeStruct((size,), np.float32),
    )
    with jm.Saver(graph) as saver:
        saver.save({}, f"{folder}/constants")
    return peak.result(megabytes * _MEGABYTE)


# --- ways to load --------------------------------------------------------------------------------


def load_program(megabytes: int, path: str, devices: int = 1) -> Result:
    """Loads what was saved; onto several devices, each array spread over all of them."""
    if devices > 1:
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    import jax

    import jaxmeta as jm

    mesh = jax.make_mesh((devices,), ("x",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    peak = _Peak()
    program = jm.load(path, shardings=spread if devices > 1 else None)
    jax.block_until_ready(program.values)
    return peak.result(megabytes * _MEGABYTE)


def load_with_orbax(megabytes: int, folder: str) -> Result:
    """Loads the same state with plain Orbax."""
    import jax
    import orbax.checkpoint as ocp

    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    size = megabytes * _MEGABYTE // 4 // _ARRAYS
    spec = jax.ShapeDtypeStruct((size,), "float32", sharding=device)
    peak = _Peak()
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(f"{folder}/plain", {f"w{i}": spec for i in range(_ARRAYS)})
    jax.block_until_ready(state)
    return peak.result(megabytes * _MEGABYTE)


# --- the report ----------------------------------------------------------------------------------

_fresh = functools.partial(timing.fresh, __file__)


def measure(megabytes: int, folder: str) -> list[reporting.Row]:
    """Returns a row for each way."""
    bundle = f"{folder}/bundle"
    os.mkdir(bundle)
    run = functools.partial(_fresh, megabytes=megabytes)
    ways = {
        "save, Orbax directory": lambda: run(
            "save_state", folder=folder, checkpoint_format="orbax"
        ),
        "save, TensorBundle": lambda: run(
            "save_state", folder=bundle, checkpoint_format="tensor_bundle"
        ),
        "save, plain Orbax": lambda: run("save_with_orbax", folder=folder),
        "save, closed-over arrays": lambda: run("save_constants", folder=folder),
        "load, Orbax directory": lambda: run("load_program", path=f"{folder}/model"),
        f"load, onto {_DEVICES} devices": lambda: run(
            "load_program", path=f"{folder}/model", devices=_DEVICES
        ),
        "load, TensorBundle": lambda: run("load_program", path=f"{bundle}/model"),
        "load, plain Orbax": lambda: run("load_with_orbax", folder=folder),
        "load, closed-over arrays": lambda: run("load_program", path=f"{folder}/constants"),
    }
    return [{"way": name, "added / raw": way()["ratio"]} for name, way in ways.items()]


def _draw(figure: Any, rows: list[reporting.Row]) -> None:
    axes = figure.subplots()
    axes.barh([row["way"] for row in rows], [row["added / raw"] for row in rows])
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set(xlabel="memory added at the peak / bytes of the arrays")
    axes.invert_yaxis()


def main() -> None:
    options = timing.arguments(__doc__)
    megabytes = 16 if options.quick else 1024 if options.full else 512
    report = reporting.Report("memory", "The memory that saving and loading take")
    report.note(
        f"{_ARRAYS} arrays of random float32, {megabytes} MB in all. `added / raw` is the peak of "
        "the resident memory less what was resident before, over the bytes of the arrays. Arrays "
        "on the CPU device that are saved were there before and are not counted; loading cannot be "
        "below 1."
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(megabytes, folder)
    report.table("Ways", rows)
    found = {row["way"]: row["added / raw"] for row in rows}
    for kind in ("save", "load"):
        name = f"{kind}, Orbax directory"
        report.target(f"{name} / plain Orbax", found[name] / found[f"{kind}, plain Orbax"], 1.0)
    report.write(options.output, functools.partial(_draw, rows=rows))


if __name__ == "__main__" and not timing.run_as_worker(globals()):
    main()
