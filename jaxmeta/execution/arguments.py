"""Checking what a signature is called with: dtypes, shapes, and sizes of named dimensions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import jax

from jaxmeta import errors
from jaxmeta.tracing import dimensions
from jaxmeta.tracing.dimensions import Size

ADVICE: Final = "Pass what the signature was traced with; `jaxmeta show` lists it."


@dataclasses.dataclass(frozen=True, slots=True)
class Argument:
    """What a signature expects of one array.

    Attributes:
        name: of the variable or tensor that it is.
        dtype: its dtype.
        shape: each size as text: a number, a name, or an expression of names.
    """

    name: str
    dtype: Any
    shape: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(self.shape)}]"

    @property
    def is_symbolic(self) -> bool:
        """Whether any size has to be found out."""
        return not all(map(_is_number, self.shape))


def _is_number(text: str) -> bool:
    return text.isdecimal()


def check(
    signature: str, expected: Sequence[Argument], constraints: Sequence[str], given: Sequence[Any]
) -> None:
    """Raises FeedError where arrays are not what a signature was traced with; lists all."""
    avals = [jax.typeof(value) for value in given]
    bad = [
        f"{argument.name}: expected {argument}, got {_show(aval)}"
        for argument, aval in zip(expected, avals, strict=True)
        if not _fits(argument, aval)
    ]
    if not bad and any(argument.is_symbolic for argument in expected):
        bad = symbolic_faults(expected, constraints, [tuple(aval.shape) for aval in avals])
    if bad:
        headline = f"signature {signature!r} was given other arrays:"
        raise errors.FeedError(errors.list_offenders(headline, bad, ADVICE))


def _show(aval: Any) -> str:
    return f"{aval.dtype}{list(aval.shape)}"


def _fits(argument: Argument, aval: Any) -> bool:
    return (
        aval.dtype == argument.dtype
        and len(aval.shape) == len(argument.shape)
        and all(
            not _is_number(text) or size == int(text)
            for text, size in zip(argument.shape, aval.shape, strict=True)
        )
    )


def symbolic_faults(
    expected: Sequence[Argument], constraints: Sequence[str], shapes: Sequence[tuple[Size, ...]]
) -> list[str]:
    """Returns where named dimensions have several sizes, none that is allowed, or none at all."""
    sources = dimensions.sources([argument.shape for argument in expected])
    sizes: dict[str, Size] = {}
    for source in sources:
        sizes[source.name] = source.size(shapes[source.array][source.axis], sizes)
    origin = {source.name: expected[source.array].name for source in sources}
    bad = []
    for argument, shape in zip(expected, shapes, strict=True):
        expressions = list(map(dimensions.parse, argument.shape))
        wanted = [dimensions.evaluate(expression, sizes) for expression in expressions]
        if list(shape) != wanted:
            names = sorted({name for e in expressions for name in dimensions.names(e)})
            bad.append(
                f"{argument.name}: expected {argument}, got {list(shape)} where "
                f"{_say(names, sizes, origin)}"
            )
    for name, size in sizes.items():
        if dimensions.holds(lambda size=size: size < 1):  # type: ignore[misc]
            bad.append(f"{_say([name], sizes, origin)}, and has to be 1 or more")
    for constraint in constraints:
        if not dimensions.is_fulfilled(constraint, sizes):
            names = sorted(name for name in sizes if name in constraint)
            bad.append(f"{constraint} does not hold where {_say(names, sizes, origin)}")
    return bad


def _say(names: Sequence[str], sizes: Mapping[str, Size], origin: Mapping[str, str]) -> str:
    return " and ".join(f"{name} is {sizes[name]} (in {origin[name]})" for name in names)
