"""Functions under jit that read and write a session's variables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax

from jaxmeta import pausing
from jaxmeta.execution import plans
from jaxmeta.execution.variable_store import VariableStore

Body: TypeAlias = Callable[[Sequence[Any], plans.State], list[Any]]
"""Computes values from what it is given, and from and to the state."""


@dataclasses.dataclass(frozen=True, slots=True)
class Compiled:
    """A body under jit, with the variables that it reads and writes as flat lists.

    Attributes:
        run: (values of the variables that are written, of the others, given values) to (results,
            new values).
        written: names of the variables that are read or replaced; their arrays are donated.
        read: names of the other variables.
        updated: names of the variables that get the new values; the same list as ``written`` where
            all of them had values.
        asked: the variables whose values or first values it depends on.
        initialized: those of them that had values when it was traced.
    """

    run: Callable[..., tuple[list[Any], list[Any]]]
    written: Sequence[str]
    read: Sequence[str]
    updated: Sequence[str]
    asked: frozenset[str]
    initialized: frozenset[str]

    def fits(self, known: Mapping[str, Any]) -> bool:
        """Returns whether the same variables have values as when it was traced."""
        return all((name in known) == (name in self.initialized) for name in self.asked)


def compile_body(
    body: Body,
    known: Mapping[str, Any],
    given: Sequence[Any],
    *,
    donates: bool | Callable[[], bool] = True,
    guesses: dict[str, int] | None = None,
) -> Compiled:
    """Returns a body under jit.

    Args:
        body: what to compile.
        known: the variables' values.
        given: what the body will be given, or its like.
        donates: whether the arrays of variables that it writes may be reused; may be asked once
            the body has been traced.
        guesses: see `plans.State`.

    Raises:
        GraphError: a variable that it reads has no value.
    """
    traced: list[plans.State] = []

    def run_named(held: Mapping[str, Any], values: Sequence[Any]) -> Any:
        state = plans.State(held, guesses)
        with pausing.paused_gc():
            results = body(values, state)
        traced.append(state)
        return results, {name: state.values[name] for name in state.written}

    numeric = {name: value for name, value in known.items() if value.dtype != object}
    jax.eval_shape(run_named, numeric, list(given))
    state = traced.pop()
    asked = frozenset([*state.asked, *state.written])
    written = [name for name in state.written if name in known]
    updated = list(state.written)
    if updated == written:
        updated = written
    read = [name for name in state.asked if name in known and name not in state.written]

    def run(ours: list[Any], others: list[Any], values: list[Any]) -> tuple[list[Any], list[Any]]:
        held = dict(zip((*written, *read), (*ours, *others), strict=True))
        results, new = run_named(held, values)
        traced.clear()
        return results, [new[name] for name in updated]

    reuses = donates() if callable(donates) else donates
    compiled = jax.jit(run, donate_argnums=0 if reuses else ())
    return Compiled(
        compiled, written, read, updated, asked, frozenset(name for name in asked if name in known)
    )


class StoredCall:
    """A compiled body on the variables of a store.

    It takes the list of arrays that its last call left as it is, unless a variable was changed, or
    handed out, in between.
    """

    __slots__ = ("_compiled", "_new", "_others", "_run", "_store", "_version")

    def __init__(self, compiled: Compiled, store: VariableStore) -> None:
        self._compiled = compiled
        self._run = compiled.run
        self._store = store
        self._version = -1
        self._new: list[Any] = []
        self._others: list[Any] = []

    def fits(self) -> bool:
        """Returns whether it may be called on what the store holds now."""
        store = self._store
        return self._version == store.version or self._compiled.fits(store.peek())

    def __call__(self, values: list[Any]) -> list[Any]:
        """Returns the results; the store gets the new values.

        Raises:
            GraphError: a variable has no value.
        """
        store = self._store
        if self._version != store.version:
            self._take()
        results, new = self._run(self._new, self._others, values)
        compiled = self._compiled
        if new:
            version = store.leave(compiled.updated, new)
            if compiled.updated is compiled.written:
                self._new = new
                self._version = version
            else:
                self._version = -1
        return results

    def _take(self) -> None:
        compiled, store = self._compiled, self._store
        try:
            self._new = store.take(compiled.written)
            held = store.peek()
            self._others = [held[name] for name in compiled.read]
        except KeyError as error:
            raise plans.uninitialized(error.args[0]) from None
        self._version = store.version
