"""What a test program is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

State = Any
Batch = Any
Metrics = dict[str, Any]
Step = Callable[[State, Batch], tuple[State, Metrics]]
Batches = Callable[[int], Batch]
Predict = tuple[Callable[[Any, Any], Any], Callable[[State], Any]]


@dataclasses.dataclass(frozen=True)
class Program:
    """A train step as people write it, with its initial state and its data.

    Attributes:
        name: `<library>_<model>_<optimizer>`, or `transforms_<what it exercises>`.
        make: returns `(step, state, batches)`: `step(state, batch) -> (state, metrics)` with
            `metrics["loss"]`, the initial state, and `batches(i)`, the i-th batch of numpy
            arrays. Every call returns new arrays, bit for bit the same ones in every process.
        jit: how `step` is compiled: "donated" is jitted and donates the state, "plain" is jitted
            without donation, "none" is not jitted.
        model: the kind of model.
        optimizer: a name that `optimizers.optimizer` knows, or "own" for one written by hand.
        covers: what else the program is there for.
        predict: `(fn, params_of)`: inference is `fn(params_of(state), program.inputs(batch))`.
            Neither is jitted.
        requires: packages that must be importable, besides JAX.
    """

    name: str
    make: Callable[[], tuple[Step, State, Batches]]
    jit: Literal["donated", "plain", "none"]
    model: str
    optimizer: str
    covers: tuple[str, ...] = ()
    predict: Predict | None = None
    requires: tuple[str, ...] = ("optax",)

    @property
    def library(self) -> str:
        """The library that the program is written in."""
        return self.name.split("_", 1)[0]

    def inputs(self, batch: Batch) -> Any:
        """Returns the part of a batch that inference takes."""
        return batch["x"] if isinstance(batch, dict) else batch[0]
