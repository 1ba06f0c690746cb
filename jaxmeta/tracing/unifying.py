"""Tracing over shapes whose sizes are not known: which of these have to be the same.

Each unknown size is a dimension of its own at first, so that nothing is assumed. Where JAX then
refuses the function, because it adds an array of one size to an array of another, dimensions are
made equal, those first that JAX's message puts side by side, until the function traces.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Generic, TypeAlias, TypeVar

import jax
from jax import export

from jaxmeta.tracing import dimensions
from jaxmeta.tracing.dimensions import Size

_Result = TypeVar("_Result")
_Shapes: TypeAlias = Sequence[Sequence[str]]
_Same: TypeAlias = dict[str, str | int]

_MOST_ATTEMPTS: Final = 48
_SHAPE_ERRORS: Final = (
    TypeError,
    ValueError,
    AssertionError,
    jax.errors.InconclusiveDimensionOperation,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Unified(Generic[_Result]):
    """What a function gave for shapes of which some sizes had to be the same.

    Attributes:
        result: what it returned.
        same: what a dimension has to equal, by its name: another dimension, or a number.
        shapes: those that the function was given.
    """

    result: _Result
    same: Mapping[str, str | int]
    shapes: tuple[tuple[Size, ...], ...]


def trace(
    fn: Callable[[Sequence[tuple[Size, ...]]], _Result],
    shapes: _Shapes,
    constraints: Sequence[str] = (),
) -> Unified[_Result]:
    """Returns what a function of shapes gives, with as few dimensions made equal as it takes.

    Args:
        fn: a function that JAX traces, perhaps several times.
        shapes: each size as text: a number, or an expression of named dimensions.
        constraints: what holds of the dimensions: ``a >= 2*b``.

    Raises:
        Exception: what the function raised for dimensions that are all different, where making
            some equal does not help.

    Example:
        >>> import jax
        >>> def add(shapes):
        ...     specs = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
        ...     return jax.eval_shape(jax.numpy.add, *specs).shape
        >>> trace(add, [["rows", "10"], ["labels", "10"]]).same
        {'labels': 'rows'}
    """
    return _Search(fn, shapes, constraints).run()


class _Search(Generic[_Result]):
    def __init__(
        self,
        fn: Callable[[Sequence[tuple[Size, ...]]], _Result],
        shapes: _Shapes,
        constraints: Sequence[str],
    ) -> None:
        self._fn = fn
        self._shapes = [list(map(dimensions.parse, shape)) for shape in shapes]
        self._names = list(
            dict.fromkeys(n for s in self._shapes for size in s for n in dimensions.names(size))
        )
        self._constraints = constraints
        self._tried: set[frozenset[frozenset[str | int]]] = set()

    def run(self) -> Unified[_Result]:
        try:
            return self._attempt({})
        except _SHAPE_ERRORS as error:
            found = self._search({}, error) if self._names else None
            if found is None:
                raise
        return self._with_fewer(found)

    def _search(self, same: _Same, error: Exception) -> Unified[_Result] | None:
        for name, other in self._candidates(same, error):
            merged = _merge(same, name, other)
            key = _groups(merged)
            if key in self._tried or len(self._tried) >= _MOST_ATTEMPTS:
                continue
            self._tried.add(key)
            try:
                return self._attempt(merged)
            except _SHAPE_ERRORS as next_error:
                found = self._search(merged, next_error)
                if found is not None:
                    return found
        return None

    def _with_fewer(self, found: Unified[_Result]) -> Unified[_Result]:
        """Takes back what was made equal on the way and turns out not to be needed."""
        for name in list(found.same) if len(found.same) > 1 else ():
            fewer = {n: other for n, other in found.same.items() if n != name}
            try:
                found = self._attempt(fewer)
            except _SHAPE_ERRORS:
                continue
        return found

    def _attempt(self, same: Mapping[str, str | int]) -> Unified[_Result]:
        sizes = self._sizes(same)
        shapes = tuple(
            tuple(dimensions.plain(dimensions.evaluate(size, sizes)) for size in shape)
            for shape in self._shapes
        )
        return Unified(self._fn(shapes), same, shapes)

    def _sizes(self, same: Mapping[str, str | int]) -> dict[str, Size]:
        """Returns new symbolic dimensions for the names, or what they equal."""
        roots = [name for name in self._names if name not in same]
        sizes: dict[str, Size] = {}
        if roots:
            held = [dimensions.renamed(constraint, same) for constraint in self._constraints]
            known = [c for c in held if self._is_about(c, roots)]
            symbols = export.symbolic_shape(",".join(roots), constraints=known)
            sizes.update(zip(roots, symbols, strict=True))
        for name, other in same.items():
            sizes[name] = sizes[other] if isinstance(other, str) else other
        return sizes

    def _is_about(self, constraint: str, roots: Sequence[str]) -> bool:
        found = dimensions.names_in_constraint(constraint)
        return bool(found) and found <= set(roots)

    def _candidates(self, same: _Same, error: Exception) -> Iterator[tuple[str, str | int]]:
        """Yields pairs of a dimension and what it may have to equal, the likeliest first."""
        text = str(error)
        roots = [name for name in self._names if name not in same]
        yield from _side_by_side(text, roots)
        if isinstance(error, jax.errors.InconclusiveDimensionOperation):
            return  # mostly it is not equality that JAX has to know of
        words = set(re.findall(r"\w+", text))
        mentioned = [name for name in roots if name in words]
        yield from _pairs(mentioned)
        yield from _pairs(sorted(roots, key=self._first_axis))

    def _first_axis(self, name: str) -> int:
        return min(
            axis
            for shape in self._shapes
            for axis, size in enumerate(shape)
            if name in dimensions.names(size)
        )


def _groups(same: _Same) -> frozenset[frozenset[str | int]]:
    """Returns what is the same, whichever of it stands for the rest."""
    groups: dict[str | int, set[str | int]] = {}
    for name, root in same.items():
        groups.setdefault(root, {root}).add(name)
    return frozenset(map(frozenset, groups.values()))


def _merge(same: _Same, name: str, other: str | int) -> _Same:
    merged: _Same = {n: other if root == name else root for n, root in same.items()}
    merged[name] = other
    return merged


def _pairs(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields each name after the first with one before it, which stays."""
    for stays, goes in itertools.combinations(names, 2):
        yield goes, stays


def _side_by_side(text: str, roots: Sequence[str]) -> Iterator[tuple[str, str | int]]:
    """Yields what stands in the same place of two shapes in an error's message.

    The dimension that comes first among the roots stays.
    """
    for one, two in itertools.combinations(_tuples(text), 2):
        for a, b in zip(reversed(one), reversed(two), strict=False):
            if a in roots and b in roots and a != b:
                stays, goes = sorted((a, b), key=roots.index)
                yield goes, stays
            elif (a.isdigit() or b.isdigit()) and len(one) == len(two):
                expression, number = (b, int(a)) if a.isdigit() else (a, int(b))
                solved = dimensions.solve_for_one(expression, number)
                if solved is not None and solved[0] in roots and solved[1] > 1:
                    yield solved


def _tuples(text: str) -> list[list[str]]:
    """Returns the shapes in a message: what stands in parentheses or brackets."""
    found = re.findall(r"[(\[]([\w ,*+^-]+)[)\]]", text)
    return [[part.strip() for part in inner.split(",") if part.strip()] for inner in found]
