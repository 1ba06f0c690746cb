"""TensorFlow's loops as those of JAX, with all that they carry.

Beside arrays these are lists, which grow; variables and the cells of a session's state, which their
bodies read and write; and what is known while tracing, such as shapes, which stays known where no
iteration changes it. The body is traced until what goes in and what comes out have one form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import errors
from jaxmeta.ops import _tensor_lists as tensor_lists
from jaxmeta.ops._cells import Needed, first_value
from jaxmeta.tracing import jaxprs, trip_counts

Step: TypeAlias = Callable[[list[Any], Any], list[Any]]
"""Takes operands and a state, which it may write; returns results."""
_Part: TypeAlias = tuple[str, Any]  # an operand's place, a variable's name, or a cell

_OPERAND: Final = "operand"
_VARIABLE: Final = "variable"
_CELL: Final = "cell"
_MOST_TRIALS: Final = 16
_MOST_UNROLLED: Final = 64


def is_tracing() -> bool:
    """Returns whether what is computed now is traced, rather than run."""
    return isinstance(lax.full((), 0, np.int32), jax.core.Tracer)


def array_type(value: Any) -> Any:
    """Returns the shape and dtype of an array as JAX has it."""
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    return jax.ShapeDtypeStruct(array.shape, jax.dtypes.canonicalize_dtype(array.dtype))


def changed_cells(state: Any, local: Any, carried: Sequence[Any] = ()) -> dict[Any, Any]:
    """Returns the cells that a copy of a state has changed, or carries in any case."""
    return {
        key: value
        for key, value in local.cells.items()
        if key in carried or value is not state.cells.get(key)
    }


def run_while(
    state: Any,
    holds: Callable[[list[Any], Any], Any],
    step: Step,
    operands: Sequence[Any],
    name: str = "loop",
) -> list[Any]:
    """Runs a loop as one of JAX's: a scan where the number of its iterations is known.

    Args:
        state: what its functions read and write, or None.
        holds: returns whether there is another iteration.
        step: one iteration.
        operands: the first values: arrays, lists, handles.
        name: of the loop, under which the state remembers how often it ran.

    Raises:
        UnsupportedOpError: the loop cannot be compiled; says why.
    """
    loop = _Loop(state, holds, step, name)
    first = _Carry({(_OPERAND, place): value for place, value in enumerate(operands)})
    try:
        carry = loop.settle(first)
    except _ShapeChange:
        trips = loop.count().exact
        if trips is None or trips > _MOST_UNROLLED:
            raise
        results = list(operands)
        for _ in range(trips):
            results = step(results, state)
        return results
    final = loop.run(carry).parts
    for (kind, key), value in final.items():
        if kind == _VARIABLE:
            state.write(key, value)
        elif kind == _CELL:
            state.cells[key] = value
    return [final[_OPERAND, place] for place in range(len(operands))]


class _ShapeChange(errors.UnsupportedOpError):
    """What a loop carries changes its shape."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Carry:
    """What goes into an iteration and comes out of it.

    Attributes:
        parts: the operands, and the variables and cells that iterations write.
        varying: which leaves of the parts change, by part and position; the others are the same in
            all iterations.
    """

    parts: dict[_Part, Any]
    varying: frozenset[tuple[_Part, int]] = frozenset()

    def places(self) -> list[tuple[_Part, int]]:
        """Returns the leaves that change, in order."""
        return [
            (part, place)
            for part, value in self.parts.items()
            for place in range(len(jax.tree.leaves(value)))
            if (part, place) in self.varying
        ]

    def leaves(self, places: Sequence[tuple[_Part, int]]) -> list[Any]:
        """Returns some leaves."""
        flat = {part: jax.tree.leaves(value) for part, value in self.parts.items()}
        return [flat[part][place] for part, place in places]

    def replaced(self, places: Sequence[tuple[_Part, int]], leaves: Sequence[Any]) -> _Carry:
        """Returns the same with some other leaves."""
        parts = dict(self.parts)
        flat: dict[_Part, list[Any]] = {}
        for (part, place), leaf in zip(places, leaves, strict=True):
            flat.setdefault(part, jax.tree.leaves(parts[part]))[place] = leaf
        for part, changed in flat.items():
            parts[part] = jax.tree.unflatten(jax.tree.structure(parts[part]), changed)
        return dataclasses.replace(self, parts=parts)

    def operands(self) -> list[Any]:
        """Returns the operands in order."""
        return [value for (kind, _), value in self.parts.items() if kind == _OPERAND]

    def enter(self, state: Any) -> Any:
        """Returns a state of its own for an iteration, or None."""
        if state is None:
            return None
        local = state.fork()
        for (kind, key), value in self.parts.items():
            if kind == _VARIABLE:
                local.write(key, value)
            elif kind == _CELL:
                local.cells[key] = value
        return local


def _all_leaves(part: _Part, value: Any) -> set[tuple[_Part, int]]:
    leaves = jax.tree.leaves(value)
    return {(part, place) for place, leaf in enumerate(leaves) if _is_carried(leaf)}


def _is_carried(value: Any) -> bool:
    return tensor_lists.is_array(value) and getattr(value, "dtype", None) != object


class _Loop:
    """A loop on its way to one of JAX's."""

    def __init__(self, state: Any, holds: Any, step: Step, name: str) -> None:
        self._state, self._holds, self._step, self._name = state, holds, step, name
        self._body: Any = None
        self._cond: Any = None
        self._first: dict[_Part, Any] = {}
        self._carry = _Carry({})
        self._entered: dict[_Part, Any] = {}
        self._guess: int | None = None
        self._trips: trip_counts.TripCount | None = None

    def settle(self, carry: _Carry) -> _Carry:
        """Returns the first values in the form that all iterations keep."""
        self._first.update(carry.parts)
        for _ in range(_MOST_TRIALS):
            self._carry = carry
            after = self._trace(carry)
            widened = (
                self._with_written(carry, after)
                or self._with_varying(carry, after)
                or self._with_lists(carry, after)
            )
            if widened is None:
                return carry
            carry = widened
        raise errors.UnsupportedOpError(
            f"the loop {self._name!r} changes the form of what it carries again and again"
        )

    def _trace(self, carry: _Carry) -> dict[_Part, Any]:
        """Traces one iteration and the condition; returns what comes out, as traced then."""
        places = carry.places()
        made: list[tuple[dict[_Part, Any], dict[_Part, Any]]] = []

        def run(*given: Any) -> list[Any]:
            inside = carry.replaced(places, given)
            local = inside.enter(self._state)
            after = dict(zip(carry.parts, self._step(inside.operands(), local), strict=False))
            after.update(self._effects(carry, local))
            made.append((inside.parts, after))
            has_form = all(_has_form(carry.parts[part], after[part]) for part, _ in places)
            flat = _Carry(after).leaves(places) if has_form else []
            return [jnp.asarray(x, array_type(x).dtype) for x in flat]

        def test(*given: Any) -> Any:
            inside = carry.replaced(places, given)
            local = inside.enter(self._state)
            held = dict(local.cells) if local is not None else {}
            result = self._holds(inside.operands(), local)
            if local is not None and any(local.cells[k] is not held.get(k) for k in local.cells):
                raise errors.UnsupportedOpError(f"the condition of {self._name!r} changes lists")
            return result

        types = [array_type(leaf) for leaf in carry.leaves(places)]
        self._body = jaxprs.make_jaxpr(run, types)
        self._cond = jaxprs.make_jaxpr(test, types)
        self._entered, after = made[-1]
        return after

    def _effects(self, carry: _Carry, local: Any) -> dict[_Part, Any]:
        if local is None:
            return {}
        carried = [key for kind, key in carry.parts if kind == _CELL]
        cells = changed_cells(self._state, local, carried)
        effects = {(_VARIABLE, name): local.read(name) for name in local.written}
        return effects | {(_CELL, key): value for key, value in cells.items()}

    # --- widening

    def _with_written(self, carry: _Carry, after: dict[_Part, Any]) -> _Carry | None:
        """Returns the first values with what iterations write beside, or None."""
        added: dict[_Part, Any] = {}
        for kind, key in after.keys() - carry.parts.keys():
            if kind == _VARIABLE:
                added[kind, key] = self._state.read(key)
            elif kind == _CELL:
                value = first_value(self._state, key)
                if value is not None:  # else it is made in each iteration anew
                    added[kind, key] = value
        if not added:
            return None
        self._first.update(added)
        varying = set().union(*(_all_leaves(part, value) for part, value in added.items()))
        return _Carry(carry.parts | added, carry.varying | varying)

    def _with_varying(self, carry: _Carry, after: dict[_Part, Any]) -> _Carry | None:
        """Returns the first values with the leaves marked that changed, or None."""
        varying = set(carry.varying)
        for part, value in carry.parts.items():
            if not _has_structure(value, after[part]):
                continue
            entered = jax.tree.leaves(self._entered[part])
            pairs = zip(entered, jax.tree.leaves(after[part]), strict=True)
            for place, (old, new) in enumerate(pairs):
                if old is new or tensor_lists.is_same(old, new):
                    continue
                if not (_is_carried(old) and _is_carried(new)):
                    raise errors.UnsupportedOpError(
                        f"the loop {self._name!r} changes what is no array: {old!r} to {new!r}"
                    )
                if not tensor_lists.is_list(value):
                    self._check_type(old, new)
                varying.add((part, place))
        if varying == carry.varying:
            return None
        return dataclasses.replace(carry, varying=frozenset(varying))

    def _check_type(self, old: Any, new: Any) -> None:
        before, after = array_type(old), array_type(new)
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            raise _ShapeChange(
                f"the loop {self._name!r} changes the shape of what it carries: {before.dtype}"
                f"{list(before.shape)} to {after.dtype}{list(after.shape)}"
            )

    def _with_lists(self, carry: _Carry, after: dict[_Part, Any]) -> _Carry | None:
        """Returns the first values with lists that have places for all elements, or None."""
        parts, varying = dict(carry.parts), set(carry.varying)
        for part, old in carry.parts.items():
            if _has_form(old, after[part]):
                continue
            if not (tensor_lists.is_list(old) and tensor_lists.is_list(after[part])):
                raise errors.UnsupportedOpError(
                    f"the loop {self._name!r} changes the form of what it carries: {old!r}"
                )
            parts[part] = self._widened(old, after[part])
            varying = {item for item in varying if item[0] != part}
            varying |= _all_leaves(part, parts[part])
        if all(parts[part] is carry.parts[part] for part in parts):
            return None
        return _Carry(parts, frozenset(varying))

    def _widened(self, old: Any, new: Any) -> Any:
        capacity = tensor_lists.capacity_of(old)
        growth = tensor_lists.capacity_of(new) - capacity
        is_sealed = isinstance(old, tensor_lists.StackedList) and old.is_sealed
        if growth > 0:
            capacity += growth * max(self._most_trips(), 1)  # JAX writes into no empty arrays
            is_sealed = True
        element = tensor_lists.element_of(new)
        made = tensor_lists.stacked(old, element, capacity, is_sealed=is_sealed)
        lengths = [made.length, tensor_lists.length_of(new)]
        if not (all(isinstance(n, int) for n in lengths) and lengths[0] == lengths[1]):
            made = dataclasses.replace(made, length=_as_count(made.length))
        return made

    # --- counting

    def _most_trips(self) -> int:
        """Returns how often the loop runs at most, for which lists get their places.

        Raises:
            UnsupportedOpError: nothing says it.
        """
        bound = self.count().bound
        if bound is not None:
            return bound
        if self._guess is None and self._state is not None:
            self._guess = self._state.guess(self._name)
        if self._guess is None:
            raise errors.UnsupportedOpError(
                f"the loop {self._name!r} fills lists, and how often it runs is not known while "
                "tracing: give it `maximum_iterations`, or a bound that constants say"
            )
        return self._guess

    def count(self) -> trip_counts.TripCount:
        """Counts by the operands that are arrays, while others have no lasting form yet."""
        if self._trips is not None:
            return self._trips
        carry = self._carry
        places = [
            (part, place)
            for part, place in carry.places()
            if part[0] == _OPERAND and not tensor_lists.is_list(carry.parts[part])
        ]

        def run(*given: Any) -> list[Any]:
            inside = carry.replaced(places, given)
            results = self._step(inside.operands(), inside.enter(self._state))
            after = _Carry(dict(zip(carry.parts, results, strict=False)))
            return [jnp.asarray(x, array_type(x).dtype) for x in after.leaves(places)]

        def test(*given: Any) -> Any:
            inside = carry.replaced(places, given)
            return self._holds(inside.operands(), inside.enter(self._state))

        first = carry.leaves(places)
        types = list(map(array_type, first))
        body, cond = jaxprs.make_jaxpr(run, types), jaxprs.make_jaxpr(test, types)
        self._trips = trip_counts.count_trips(cond, body, first)
        return self._trips

    # --- running

    def run(self, carry: _Carry) -> _Carry:
        """Runs the loop on first values in their lasting form."""
        places = carry.places()
        first = carry.leaves(places)
        trips = trip_counts.count_trips(self._cond, self._body, first)
        start = [jnp.asarray(value, array_type(value).dtype) for value in first]
        body, cond = jaxprs.as_function(self._body), jaxprs.as_function(self._cond)
        if trips.exact is not None:
            scanned = lax.scan(lambda x, _: (body(*x), None), start, None, length=trips.exact)[0]
            last: list[Any] = [
                trips.finals.get(index, value) for index, value in enumerate(scanned)
            ]
        elif self._guess is not None:
            count, last = lax.while_loop(
                lambda x: cond(*x[1])[0],
                lambda x: (x[0] + 1, body(*x[1])),
                (jnp.zeros((), np.int32), start),
            )
            self._state.report(Needed(self._name), count)
        elif self._is_differentiated() and trips.bound is not None:
            last = _scan_at_most(cond, body, start, trips.bound)
        else:
            if self._is_differentiated():
                self._state.unbounded.append(self._name)
            last = lax.while_loop(lambda x: cond(*x)[0], lambda x: body(*x), start)
        final = carry.replaced(places, last)
        return _Carry({p: _opened(v, self._first[p]) for p, v in final.parts.items()})

    def _is_differentiated(self) -> bool:
        return getattr(self._state, "unbounded", None) is not None


def _scan_at_most(cond: Any, body: Any, start: list[Any], bound: int) -> list[Any]:
    """Returns the last values of a loop, which JAX differentiates in reverse unlike its own.

    What is left of the iterations after its end does nothing.
    """

    def step(values: list[Any], _: Any) -> tuple[list[Any], None]:
        (holds,) = cond(*values)
        return lax.cond(holds, lambda x: list(body(*x)), list, values), None

    last: list[Any] = lax.scan(step, start, None, length=bound)[0]
    return last


def _has_structure(old: Any, new: Any) -> bool:
    before: Any = jax.tree.structure(old)
    return bool(before == jax.tree.structure(new))


def _has_form(old: Any, new: Any) -> bool:
    """Returns whether two values have the same structure, and lists arrays of the same shapes."""
    if not _has_structure(old, new):
        return False
    pairs = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    return not tensor_lists.is_list(old) or all(
        array_type(a) == array_type(b) for a, b in pairs if _is_carried(a) and _is_carried(b)
    )


def _as_count(length: Any) -> Any:
    """Returns a length that a loop changes; one that is known at first stays known to counting."""
    return np.asarray(length, np.int32) if isinstance(length, int) else length


def _opened(value: Any, first: Any) -> Any:
    """Returns a list that may grow again, unless a loop around this one carries it."""
    if not isinstance(value, tensor_lists.StackedList):
        return value
    length = value.length
    return dataclasses.replace(
        value,
        length=int(length) if isinstance(length, np.ndarray) else length,
        is_sealed=isinstance(first, tensor_lists.StackedList) and first.is_sealed,
    )
