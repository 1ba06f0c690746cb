"""What a program of the zoo is, and how it gets there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax

Size = Literal["reduced", "real"]


class Made(NamedTuple):
    """A program at some size.

    Attributes:
        fn: a function of pytrees of arrays, under `jax.jit` or not.
        init: returns its arguments, a tuple, bit for bit the same in every process. Under
            `jax.eval_shape` it allocates none of the optimizer's state.
        updates: whether the first result is the next state, and the first argument the state.
    """

    fn: Callable[..., Any]
    init: Callable[[], tuple[Any, ...]]
    updates: bool = False

    def jitted(self) -> Any:
        """Returns the function under `jax.jit`; a train step that is not so donates its state."""
        if hasattr(self.fn, "lower"):
            return self.fn
        return jax.jit(self.fn, donate_argnums=(0,) if self.updates else ())


@dataclasses.dataclass(frozen=True)
class Entry:
    """A program of the zoo: a function of sizes, and two sets of these.

    Attributes:
        name: of the program.
        topic: the module that it stands in.
        library: what its model is written in.
        requires: packages that must be importable, besides JAX.
        build: makes the program of some sizes.
        reduced: sizes at which it compiles in a second or two.
        real: sizes that people train or run it at.
    """

    name: str
    topic: str
    library: str
    requires: tuple[str, ...]
    build: Callable[..., Made]
    reduced: Mapping[str, Any]
    real: Mapping[str, Any]

    def make(self, size: Size, **changed: Any) -> Made:
        """Returns the program at a size, of which single values may be changed."""
        return self.build(**{**(self.reduced if size == "reduced" else self.real), **changed})


ENTRIES: dict[str, Entry] = {}


def program(
    library: str, *requires: str, reduced: Mapping[str, Any], real: Mapping[str, Any]
) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
    """Registers the function below it as a program of that name."""

    def register(build: Callable[..., Made]) -> Callable[..., Made]:
        name, topic = build.__name__, build.__module__.rpartition(".")[2]
        if name in ENTRIES:
            raise ValueError(f"two programs are called {name!r}")
        ENTRIES[name] = Entry(name, topic, library, requires, build, reduced, real)
        return build

    return register
