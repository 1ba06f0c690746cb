"""Programs with shardings, for processes with several devices; `test_sharding.py` starts these.

``python sharding_cases.py save DIR`` saves each case and trains it for some steps; with ``load DIR
MESH`` it trains what is loaded, and prints for each case how that compares, as JSON. ``move DIR``
saves what it loads anew, and a state without shardings, which ``spread DIR`` loads.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import hlo
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmeta as jm

STEPS = 3
AXES = ("data", "model")


def make_mesh(sizes: tuple[int, int], kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    """Returns a mesh over the first devices."""
    count = sizes[0] * sizes[1]
    return jax.make_mesh(sizes, AXES, axis_types=(kind,) * 2, devices=jax.devices()[:count])


def normal(seed: int, *shape: int) -> np.ndarray:
    """Returns a random array, the same in every process."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 0.3


def put(mesh: Any, value: Any, *spec: Any) -> jax.Array:
    """Returns an array on a mesh."""
    return jax.device_put(value, NamedSharding(mesh, P(*spec)))


def descend(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a step of gradient descent on ``state['params']``."""

    def train_step(state: Any, batch: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(state["params"], batch)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, state["params"], grads)
        return {"params": params, "step": state["step"] + 1}, value

    return train_step


def data_parallel() -> Any:
    """An MLP whose batch alone is spread, by the shardings of its arguments."""
    mesh = make_mesh((8, 1))
    state = {
        "params": {"w1": put(mesh, normal(1, 8, 32)), "w2": put(mesh, normal(2, 32, 4))},
        "step": put(mesh, np.int32(0)),
    }
    batch = {"x": put(mesh, normal(3, 16, 8), "data"), "y": put(mesh, normal(4, 16, 4), "data")}

    def loss(params: Any, batch: Any) -> Any:
        hidden = jax.nn.relu(batch["x"] @ params["w1"])
        return jnp.mean((hidden @ params["w2"] - batch["y"]) ** 2)

    return jax.jit(descend(loss), donate_argnums=0), state, batch


def transformer_block() -> Any:
    """Attention and an MLP; parameters are spread over both axes, activations by constraints."""
    mesh = make_mesh((4, 2))
    sizes = {"qkv": (16, 48), "out": (16, 16), "up": (16, 64), "down": (64, 16)}
    specs = {"qkv": P("data", "model"), "out": P("model", "data"), "up": P("data", "model")}
    specs["down"] = P("model", "data")
    params = {
        name: put(mesh, normal(i, *shape), *specs[name])
        for i, (name, shape) in enumerate(sizes.items())
    }
    state = {"params": params, "step": put(mesh, np.int32(0))}
    batch = {"x": put(mesh, normal(9, 8, 6, 16), "data")}

    def constrain(x: Any, *spec: Any) -> Any:
        return lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))

    @jax.jit
    def attend(qkv: Any) -> Any:
        q, k, v = jnp.split(qkv.reshape(8, 6, 4, 12), 3, axis=-1)
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(8, 6, 16)

    up = jax.jit(jnp.matmul, out_shardings=NamedSharding(mesh, P("data", None, "model")))

    def loss(params: Any, batch: Any) -> Any:
        x = batch["x"]
        h = x + attend(constrain(x @ params["qkv"], "data", None, "model")) @ params["out"]
        h = constrain(h, P.UNCONSTRAINED, None, None)
        h = h + jax.nn.gelu(up(h, params["up"])) @ params["down"]
        return jnp.mean((h - 1.0) ** 2)

    shards = jax.tree.map(lambda x: x.sharding, state)
    step = jax.jit(
        descend(loss),
        in_shardings=(shards, NamedSharding(mesh, P("data"))),
        out_shardings=(shards, None),
        donate_argnums=0,
    )
    return step, state, batch


def explicit() -> Any:
    """A model whose shardings are part of the types of its arrays."""
    mesh = make_mesh((4, 2), AxisType.Explicit)
    state = {
        "params": {
            "w1": put(mesh, normal(1, 8, 32), None, "model"),
            "w2": put(mesh, normal(2, 32, 4), "model", None),
        },
        "step": put(mesh, np.int32(0)),
    }
    batch = {"x": put(mesh, normal(3, 16, 8), "data"), "y": put(mesh, normal(4, 16, 4), "data")}

    def without_types(x: Any, table: Any) -> Any:
        """Computes where the compiler chooses: a lookup, noise, a closed-over array, a scan."""
        spread = NamedSharding(mesh, P("data"))
        rows = table.at[jnp.arange(16) % 5].get(out_sharding=spread)
        noise = jax.random.normal(jax.random.key(3), (16, 4), out_sharding=spread)
        mixed = jax.sharding.auto_axes(
            lambda y: jnp.cumsum(y * jnp.arange(4.0), axis=0), out_sharding=spread
        )(rows + 0.01 * noise + offsets)
        return 0.01 * lax.reshape(mixed, x.shape, out_sharding=spread)

    offsets = put(mesh, normal(5, 16, 4), "data", "model")

    def loss(params: Any, batch: Any) -> Any:
        hidden = jax.nn.relu(batch["x"] @ params["w1"])
        hidden = jax.sharding.reshard(hidden, NamedSharding(mesh, P("data", "model")))
        out = jnp.einsum(
            "bh,ho->bo", hidden, params["w2"], out_sharding=NamedSharding(mesh, P("data"))
        )
        out = lax.reshape(out, (16, 2, 2), out_sharding=NamedSharding(mesh, P("data")))
        counts = lax.broadcasted_iota(
            jnp.int32, (16, 2, 2), 0, out_sharding=NamedSharding(mesh, P("data"))
        )
        zeros = jnp.zeros((16, 2, 2), out_sharding=NamedSharding(mesh, P("data")))
        out += 0.01 * counts + zeros + without_types(out, params["w2"])
        return jnp.mean((out - batch["y"].reshape(16, 2, 2)) ** 2)

    return jax.jit(descend(loss), donate_argnums=0), state, batch


def collectives() -> Any:
    """A loss of what every collective gives, inside of scan, remat and a nested shard_map."""
    mesh = make_mesh((4, 2))
    state = {
        "params": {"w": put(mesh, normal(1, 8, 8), None, "model")},
        "step": put(mesh, np.int32(0)),
    }
    batch = {"x": put(mesh, normal(2, 16, 8), "data", "model")}
    both = P("data", "model")

    def moves(x: Any, w: Any) -> Any:
        y = jax.nn.silu(x @ w[:4]) * (1 + lax.axis_index("data"))
        y += lax.ppermute(y, "data", [(0, 1), (1, 3)]) + lax.pshuffle(y, "data", [3, 2, 1, 0])
        y += lax.all_to_all(y, "data", 0, 0, tiled=True)
        y += jnp.sum(lax.all_to_all(y, "data", 0, 0), axis=0)
        y += jnp.sum(lax.all_gather(y, "data"), axis=0) + lax.all_gather(y, "data", tiled=True)[:4]
        return y + jnp.repeat(lax.psum_scatter(y, "data", tiled=True), 4, axis=0)

    def reductions(x: Any) -> Any:
        total, _ = lax.scan(
            lambda carry, row: (carry + lax.psum(row, "data"), None),
            lax.pcast(jnp.zeros(8), "model", to="varying"),
            x,
        )
        fixed = lax.stop_gradient(x)
        spread = lax.pmax(fixed, "data") - lax.pmin(fixed, "data")
        return total + jnp.sum(spread, axis=0) + lax.pmean(lax.psum(x, "data")[0], "model")

    def grouped(x: Any) -> Any:
        groups = [[0, 1], [2, 3]]
        y = lax.psum(x, "data", axis_index_groups=groups)
        y += lax.all_gather(x, "data", axis_index_groups=groups, tiled=True)[:4]
        y += lax.all_to_all(x, "data", 0, 0, axis_index_groups=groups, tiled=True)
        part = lax.psum_scatter(x, "data", axis_index_groups=groups, tiled=True)
        return y + jnp.concatenate([part, part])

    def nested(x: Any) -> Any:
        inner = jax.shard_map(
            lambda z: lax.psum(z, "model"),
            in_specs=P(None, "model"),
            out_specs=P(),
            axis_names={"model"},
        )
        return inner(lax.psum(x, "data"))

    def loss(params: Any, batch: Any) -> Any:
        x = batch["x"]
        on_mesh = jax.shard_map(
            jax.checkpoint(moves), mesh=mesh, in_specs=(both, P()), out_specs=both
        )
        y = on_mesh(x, params["w"])
        sums = jax.shard_map(reductions, mesh=mesh, in_specs=both, out_specs=P("model"))(y)
        in_groups = jax.shard_map(
            grouped, mesh=mesh, in_specs=both, out_specs=both, check_vma=False
        )(y)
        inner = jax.shard_map(
            nested, mesh=mesh, in_specs=P("data"), out_specs=P(), axis_names={"data"}
        )(y)
        parts = (y, sums, in_groups, inner)
        return sum(jnp.mean(jnp.tanh(0.01 * part)) for part in parts)

    return jax.jit(descend(loss), donate_argnums=0), state, batch


CASES = {case.__name__: case for case in (data_parallel, transformer_block, explicit, collectives)}


def train(step: Any, state: Any, batch: Any) -> Any:
    """Returns the state and the losses after some steps."""
    losses = []
    for _ in range(STEPS):
        state, loss = step(state, batch)
        losses.append(float(loss))
    return jax.tree.map(np.asarray, state), losses


def save(directory: pathlib.Path) -> None:
    """Saves each case as it is at first, and beside it what training makes of it."""
    for name, make in CASES.items():
        step, state, batch = make()
        graph = jm.Graph()
        graph.add_signature("train_step", step, graph.variables(state), batch, updates=0)
        with jm.Saver(graph) as saver:
            saver.save(state, directory / name / "model", global_step=0)
        text = step.lower(state, batch).compile()
        (directory / name / "hlo.txt").write_text("\n".join(hlo.canonical_hlo(text)))
        np.savez(directory / name / "batch.npz", **batch)
        after, losses = train(step, state, batch)
        np.savez(directory / name / "after.npz", losses=losses, **after["params"])


def load(directory: pathlib.Path, sizes: tuple[int, int] | None) -> None:
    """Trains what is loaded to a mesh, and prints how that compares."""
    report = {}
    mesh = None if sizes is None else make_mesh(sizes, AxisType.Explicit)
    for name in CASES:
        run = jm.load(directory / name / "model-0", mesh=mesh)
        with np.load(directory / name / "batch.npz") as batch_file:
            batch = dict(batch_file)
        if run.mesh is not None:
            batch = jax.device_put(batch, run.input_shardings("train_step")[0][1])
        step, state = run["train_step"], run.state
        text = "\n".join(hlo.canonical_hlo(step.lower(state, batch).compile()))
        devices = {key: len(value.sharding.device_set) for key, value in state["params"].items()}
        specs = {
            key: str(getattr(value.sharding, "spec", None))
            for key, value in state["params"].items()
        }
        after, losses = train(step, state, batch)
        with np.load(directory / name / "after.npz") as expected:
            gaps = [np.max(np.abs(value - expected[key])) for key, value in after["params"].items()]
            gaps.append(np.max(np.abs(losses - expected["losses"])))
        report[name] = {
            "mesh": None if run.mesh is None else list(run.mesh.axis_sizes),
            "same_hlo": text == (directory / name / "hlo.txt").read_text(),
            "gap": float(max(gaps)),
            "devices": devices,
            "specs": specs,
        }
    print(json.dumps(report))


def move(directory: pathlib.Path) -> None:
    """Saves anew what is loaded, with what was trained from it, and a state without shardings."""
    for name in CASES:
        run = jm.load(directory / name / "model-0")
        with jm.Saver(run.graph) as saver:
            saver.save(run.state, directory / "moved" / name / "model", global_step=0)
        for file in ("hlo.txt", "batch.npz", "after.npz"):
            shutil.copy(directory / name / file, directory / "moved" / name / file)
    params = {"w1": normal(1, 8, 32), "w2": normal(2, 32, 4)}
    state = {"params": params, "step": jnp.int32(0)}
    batch = {"x": normal(3, 16, 8), "y": normal(4, 16, 4)}
    graph = jm.Graph()
    graph.add_signature("train_step", plain_step, graph.variables(state), batch, updates=0)
    with jm.Saver(graph) as saver:
        saver.save(state, directory / "plain" / "model", global_step=0)
    after, losses = train(plain_step, state, batch)
    np.savez(directory / "plain" / "after.npz", losses=losses, **after["params"])


@jax.jit
def plain_step(state: Any, batch: Any) -> Any:
    """A step of a model that knows of no mesh."""

    def loss(params: Any, batch: Any) -> Any:
        hidden = jax.nn.relu(batch["x"] @ params["w1"])
        return jnp.mean((hidden @ params["w2"] - batch["y"]) ** 2)

    return descend(loss)(state, batch)


def spread(directory: pathlib.Path) -> None:
    """Trains what one device saved on all devices, and prints how that compares."""
    mesh = make_mesh((4, 2))
    wanted = {"params/w1": P(None, "model"), "params/w2": P("model", None), "step": P()}
    run = jm.load(
        directory / "plain" / "model-0",
        shardings=lambda name, spec: NamedSharding(mesh, wanted[name]),
    )
    batch = {"x": put(mesh, normal(3, 16, 8), "data"), "y": put(mesh, normal(4, 16, 4), "data")}
    devices = [len(value.sharding.device_set) for value in jax.tree.leaves(run.state)]
    after, losses = train(run["train_step"], run.state, batch)
    with np.load(directory / "plain" / "after.npz") as expected:
        gaps = [np.max(np.abs(value - expected[key])) for key, value in after["params"].items()]
        gaps.append(np.max(np.abs(losses - expected["losses"])))
    print(json.dumps({"devices": devices, "gap": float(max(gaps))}))


if __name__ == "__main__":
    mode, place, *rest = sys.argv[1:]
    path = pathlib.Path(place)
    if mode == "load":
        sizes = [tuple(map(int, text.split("x"))) for text in rest]
        load(path, sizes[0] if sizes else None)  # type: ignore[arg-type]
    else:
        {"save": save, "move": move, "spread": spread}[mode](path)
