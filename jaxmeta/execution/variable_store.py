"""The values of a session's variables, from one run to the next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import jax


class VariableStore(MutableMapping[str, Any]):
    """Arrays by the name of the variable that holds them; writes from outside are noticed.

    What a run leaves is kept as the run's own list of arrays, which the next run of the same kind
    takes as it is, so that nothing is done for each variable. The mapping is brought up to date
    when it is looked at.

    An array that was handed out, or was put in, may be held by others too: `take` copies it before
    it can be donated.

    Attributes:
        lock: held while a run takes arrays and leaves others.
        version: changes with every change of a value.
        names_version: changes whenever a variable gets its first value or loses it.

    Example:
        >>> import jax.numpy as jnp
        >>> store = VariableStore({"w": jnp.ones(2)})
        >>> store["w"] = jnp.zeros(2)
        >>> store["w"], len(store)
        (Array([0., 0.], dtype=float32), 1)
    """

    __slots__ = ("_arrays", "_pending", "_resolve", "_shared", "lock", "names_version", "version")

    def __init__(
        self, initial: Mapping[str, Any], resolve: Callable[[str], str] = lambda name: name
    ) -> None:
        """Fills the store.

        Args:
            initial: the first values.
            resolve: returns the name under which a variable's value is held.
        """
        self.lock = threading.RLock()
        self.version = 0
        self.names_version = 0
        self._resolve = resolve
        self._arrays: dict[str, Any] = {}
        self._shared: set[str] = set()
        self._pending: tuple[Sequence[str], Sequence[Any]] | None = None
        self.update(initial)

    # --- as a mapping

    def __getitem__(self, name: str) -> Any:
        with self.lock:
            name = self._resolve(name)
            value = self._current()[name]
            if name not in self._shared:
                self._shared.add(name)
                self.version += 1  # so that the next run takes its arrays anew
            return value

    def __setitem__(self, name: str, value: Any) -> None:
        with self.lock:
            name = self._resolve(name)
            self._shared.add(name)
            self._put(name, value)

    def __delitem__(self, name: str) -> None:
        with self.lock:
            del self._current()[self._resolve(name)]
            self.version += 1
            self.names_version += 1

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._current()))

    def __len__(self) -> int:
        return len(self._current())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._resolve(name) in self._current()

    def __repr__(self) -> str:
        return f"VariableStore({self._current()!r})"

    def adopt(self, values: Mapping[str, Any]) -> None:
        """Puts in arrays that nobody else holds: they may be donated without being copied."""
        with self.lock:
            for name, value in values.items():
                name = self._resolve(name)
                self._shared.discard(name)
                self._put(name, value)

    # --- for runs, which hold the lock

    def peek(self) -> Mapping[str, Any]:
        """Returns the arrays by name, to be looked at only."""
        return self._current()

    def take(self, names: Sequence[str]) -> list[Any]:
        """Returns arrays that may be donated.

        Raises:
            KeyError: a variable has no value.
        """
        arrays, shared = self._current(), self._shared
        if shared.isdisjoint(names):
            return [arrays[name] for name in names]
        for name in names:
            if name in shared:
                arrays[name] = jax.numpy.copy(arrays[name])
                shared.discard(name)
        return [arrays[name] for name in names]

    def leave(self, names: Sequence[str], arrays: Sequence[Any]) -> int:
        """Puts in the arrays that a run computed, for all that it took; returns the version."""
        pending = self._pending
        if pending is not None and pending[0] is not names:
            self._current()
        self._pending = names, arrays
        self.version += 1
        return self.version

    def _current(self) -> dict[str, Any]:
        pending = self._pending
        arrays = self._arrays
        if pending is not None:
            self._pending = None
            names, values = pending
            count = len(arrays)
            arrays.update(zip(names, values, strict=True))
            self._shared.difference_update(names)
            if len(arrays) != count:
                self.names_version += 1
        return arrays

    def _put(self, name: str, value: Any) -> None:
        arrays = self._current()
        if name not in arrays:
            self.names_version += 1
        arrays[name] = value
        self.version += 1
