"""One of several processes that train together; `test_sharding_distributed.py` starts these.

``python distributed_case.py MODE DIR INDEX COUNT PORT``: ``save`` trains, saves and goes on, and
``load`` goes on from what was saved. Each has devices of its own; the first prints what came out.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmeta as jm

STEPS = 3
TABLE_SHAPE = (2048, 512)


def train_step(state: Any, batch: Any) -> Any:
    """A step of gradient descent on a small MLP, with a count and a random key as state."""

    def loss(params: Any) -> Any:
        hidden = jax.nn.relu(batch["x"] @ params["w1"])
        return jnp.mean((hidden @ params["w2"] - batch["y"]) ** 2)

    value, grads = jax.value_and_grad(loss)(state["params"])
    params = jax.tree.map(lambda p, g: p - 0.01 * g, state["params"], grads)
    return {**state, "params": params, "step": state["step"] + 1}, value


def spread(mesh: Any, value: np.ndarray, *spec: Any) -> jax.Array:
    """Returns an array of which each process makes its own part."""
    sharding = NamedSharding(mesh, P(*spec))
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def make_batch(mesh: Any) -> Any:
    """Returns the batch on a mesh, or whole where there is none."""
    rng = np.random.default_rng(3)
    shapes = {"x": (16, 8), "y": (16, 4)}
    values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return {name: spread(mesh, v, "data") if mesh else v for name, v in values.items()}


def make_state(mesh: Any) -> Any:
    """Returns the first state, spread over both processes."""
    rng = np.random.default_rng(1)
    params = {
        "w1": spread(mesh, rng.normal(size=(8, 32)).astype(np.float32), None, "data"),
        "w2": spread(mesh, rng.normal(size=(32, 4)).astype(np.float32), "data", None),
    }
    whole = NamedSharding(mesh, P())
    key = jax.jit(lambda: jax.random.key(7), out_shardings=whole)()
    table = spread(mesh, rng.normal(size=TABLE_SHAPE).astype(np.float32), "data")
    return {"params": params, "table": table, "step": np.int32(0), "key": key}


def train(step: Any, state: Any, batch: Any) -> tuple[Any, list[float]]:
    """Returns the state and the losses after some steps."""
    losses = []
    for _ in range(STEPS):
        state, loss = step(state, batch)
        losses.append(float(loss))
    return state, losses


def bytes_read() -> int:
    """Returns how many bytes of checkpoints this process has read."""
    name = "/tensorstore/kvstore/file/bytes_read"
    metrics = ts.experimental_collect_matching_metrics(name)
    return sum(int(value["value"]) for metric in metrics for value in metric["values"])


def describe(state: Any, losses: list[float]) -> str:
    """Returns what came out, as JSON."""
    whole = multihost_utils.process_allgather(state["params"], tiled=True)
    return json.dumps(
        {
            "losses": losses,
            "step": int(state["step"]),
            "params": {name: np.asarray(value).tolist() for name, value in whole.items()},
            "bytes_read": bytes_read(),
            "local_parts": len(state["params"]["w1"].addressable_shards),
            "key": np.asarray(jax.random.key_data(state["key"])).tolist(),
            "parts": len(state["params"]["w1"].sharding.device_set),
        }
    )


def main() -> None:
    """Runs the case."""
    mode, directory, index, count, port = sys.argv[1:]
    if int(count) > 1:
        jax.distributed.initialize(f"localhost:{port}", int(count), int(index))
    prefix = pathlib.Path(directory) / "model"
    if mode == "save":
        mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
        batch, state = make_batch(mesh), make_state(mesh)
        graph = jm.Graph()
        step = jax.jit(train_step, donate_argnums=0)
        graph.add_signature("train_step", step, graph.variables(state), batch, updates=0)
        state, _ = train(step, state, batch)
        with jm.Saver(graph) as saver:
            saver.save(state, prefix, global_step=STEPS)
            state, losses = train(step, state, batch)  # donates what is being saved
    else:
        devices = jax.device_count()
        given = jax.make_mesh((devices,), ("data",)) if devices > 1 else None
        run = jm.load(f"{prefix}-{STEPS}", mesh=given)
        state, losses = train(run["train_step"], run.state, make_batch(run.mesh))
    text = describe(state, losses)
    if jax.process_index() == 0:
        print(text)
    if int(count) > 1:
        jax.distributed.shutdown()


if __name__ == "__main__":
    main()
