"""How often a loop runs, where its counters tell it without running the loop.

What is computed of constants alone is *exact*. What JAX's comparisons and minima make of exact
values and unknown ones is often *at most* some value: ``i < minimum(10, n)`` is at most ``i < 10``.
The counters of a loop are those of its variables that stay exact from one iteration to the next;
on them alone the loop is run in advance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import jax
import numpy as np
from jax import lax
from jax.extend import core as jax_core

from jaxmeta.tracing import jaxprs

_EXACT: Final = "exact"
_AT_MOST: Final = "at most"
_MOST_TRIPS: Final = 1 << 20
_MOST_ELEMENTS: Final = 64  # of an array that may count
_CALLS: Final = frozenset({"pjit", "jit", "closed_call"})
# Of two operands of which one may be unknown: the result is at most this one.
_LESSER: Final = frozenset({"min", "and"})
# The result grows with the second operand and falls with the first, or the other way round.
_GROWS_WITH: Final = {"lt": 1, "le": 1, "gt": 0, "ge": 0}
_MONOTONE: Final = frozenset({"convert_element_type", "copy", "copy_p", "squeeze", "reshape"})


@dataclasses.dataclass(frozen=True, slots=True)
class TripCount:
    """What is known of how often a loop runs.

    Attributes:
        exact: how often, or None.
        bound: how often at most, or None.
        finals: the last values of its counters, by position among its variables; with ``exact``.
    """

    exact: int | None = None
    bound: int | None = None
    finals: Mapping[int, np.ndarray[Any, Any]] = dataclasses.field(default_factory=dict)


def count_trips(cond: Any, body: Any, initial: Sequence[Any]) -> TripCount:
    """Returns how often a loop runs, as far as that is known while tracing.

    Args:
        cond: the closed jaxpr of its condition, a function of the loop's variables.
        body: that of one iteration; its result of each position is the next value.
        initial: the first values; tracers where these are not known.
    """
    counters = {
        place
        for place, value in enumerate(initial)
        if not isinstance(value, jax.core.Tracer) and np.size(value) <= _MOST_ELEMENTS
    }
    while True:
        known = [_EXACT if place in counters else None for place in range(len(initial))]
        found = _Statuses(body, known).results()
        kept = {place for place in counters if found[place] == _EXACT}
        if kept == counters:
            break
        counters = kept
    tests = _Statuses(cond, known)
    (status,) = tests.results()
    if status is None:
        return TripCount()
    places = sorted(counters)
    steps = _Statuses(body, known)

    def spread(values: Sequence[Any]) -> list[Any]:
        by_place = dict(zip(places, values, strict=True))
        return [by_place.get(place) for place in range(len(initial))]

    def holds(carry: Any) -> Any:
        trips, values = carry
        (result,) = tests.run(spread(values), [0])
        return result & (trips < _MOST_TRIPS)

    def step(carry: Any) -> Any:
        trips, values = carry
        return trips + 1, steps.run(spread(values), places)

    with jax.ensure_compile_time_eval():
        first = [jax.numpy.asarray(initial[place]) for place in places]
        trips, last = lax.while_loop(holds, step, (np.int32(0), first))
    if int(trips) == _MOST_TRIPS:
        return TripCount()
    if status == _AT_MOST:
        return TripCount(bound=int(trips))
    finals = {place: np.asarray(value) for place, value in zip(places, last, strict=True)}
    return TripCount(int(trips), int(trips), finals)


class _Statuses:
    """Which values of a jaxpr are known, and how to compute these."""

    def __init__(self, jaxpr: Any, known: Sequence[str | None]) -> None:
        self._jaxpr = jaxprs.open_jaxpr(jaxpr)
        self._constants = jaxprs.jaxpr_constants(jaxpr)
        self._of_var: dict[Any, str | None] = {}
        for var, value in zip(self._jaxpr.constvars, self._constants, strict=True):
            is_known = not isinstance(value, jax.core.Tracer)
            self._of_var[var] = _EXACT if is_known else None
        self._of_var.update(zip(self._jaxpr.invars, known, strict=True))
        self._inner: dict[int, _Statuses] = {}
        for index, eqn in enumerate(self._jaxpr.eqns):
            self._of_var.update(zip(eqn.outvars, self._add(index, eqn), strict=True))

    def _status(self, atom: Any) -> str | None:
        return _EXACT if isinstance(atom, jax_core.Literal) else self._of_var[atom]

    def results(self) -> list[str | None]:
        """Returns what is known of the results."""
        return [self._status(atom) for atom in self._jaxpr.outvars]

    def _add(self, index: int, eqn: Any) -> Sequence[str | None]:
        unknown = [None] * len(eqn.outvars)
        if eqn.effects or not all(_may_count(v.aval.shape) for v in eqn.outvars):
            return unknown
        given = [self._status(atom) for atom in eqn.invars]
        name = eqn.primitive.name
        if all(status == _EXACT for status in given):
            is_closed = not any(map(jaxprs.holds_tracers, jaxprs.subjaxprs(eqn)))
            return [_EXACT] * len(eqn.outvars) if is_closed else unknown
        if name in _CALLS:
            (inner,) = jaxprs.subjaxprs(eqn)
            self._inner[index] = _Statuses(inner, given)
            return self._inner[index].results()
        if name in _LESSER and any(given):
            is_bitwise = name == "and" and eqn.outvars[0].aval.dtype != np.bool_
            return unknown if is_bitwise else [_AT_MOST]
        if name in _GROWS_WITH:
            grows = _GROWS_WITH[name]
            return [_AT_MOST] if given[grows] and given[1 - grows] == _EXACT else unknown
        return [_AT_MOST] if name in _MONOTONE and given[0] else unknown

    def run(self, values: Sequence[Any], wanted: Sequence[int]) -> list[Any]:
        """Returns some of the results, or what they are at most, from the values that are known."""
        env: dict[Any, Any] = dict(zip(self._jaxpr.constvars, self._constants, strict=True))
        env.update(zip(self._jaxpr.invars, values, strict=True))
        atoms = [self._jaxpr.outvars[place] for place in wanted]
        for index in self._needed(atoms):
            eqn = self._jaxpr.eqns[index]
            inputs = [_read(env, atom) if self._status(atom) else None for atom in eqn.invars]
            env.update(zip(eqn.outvars, self._compute(index, eqn, inputs), strict=True))
        return [_read(env, atom) for atom in atoms]

    def _needed(self, atoms: Sequence[Any]) -> list[int]:
        """Returns the equations that known values of some atoms come from, in order."""
        wanted = {atom for atom in atoms if not isinstance(atom, jax_core.Literal)}
        needed = []
        for index in reversed(range(len(self._jaxpr.eqns))):
            eqn = self._jaxpr.eqns[index]
            if wanted.isdisjoint(eqn.outvars):
                continue
            needed.append(index)
            wanted.update(
                atom
                for atom in eqn.invars
                if not isinstance(atom, jax_core.Literal) and self._of_var[atom]
            )
        return needed[::-1]

    def _compute(self, index: int, eqn: Any, inputs: Sequence[Any]) -> Sequence[Any]:
        if index in self._inner:
            inner = self._inner[index]
            known = [place for place, status in enumerate(inner.results()) if status]
            found = dict(zip(known, inner.run(inputs, known), strict=True))
            return [found.get(place) for place in range(len(eqn.outvars))]
        given = [value for value in inputs if value is not None]
        if len(given) < len(inputs):
            return given  # of a minimum, or of a conjunction
        run, _ = jaxprs.eqn_as_function(self._jaxpr, eqn)
        results: list[Any] = run(*inputs)
        return results


def _may_count(shape: Sequence[Any]) -> bool:
    """Returns whether arrays of a shape, which may be symbolic, are small enough to count with."""
    is_known = all(isinstance(size, int) for size in shape)
    return is_known and bool(np.prod(shape) <= _MOST_ELEMENTS)


def _read(env: Mapping[Any, Any], atom: Any) -> Any:
    return atom.val if isinstance(atom, jax_core.Literal) else env[atom]
