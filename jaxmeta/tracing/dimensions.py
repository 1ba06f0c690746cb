"""Dimensions that are named instead of numbered: as expressions, as values, and solved for.

JAX spells a symbolic dimension as text, `floordiv(b, 2) + 1`, and reads that text again. So the
text is what a file holds. Here it is taken apart, evaluated for given sizes, and solved for the
sizes of arrays.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import jax
import numpy as np

from jaxmeta import errors

Size: TypeAlias = Any
"""An int, or a symbolic dimension of JAX."""

_MAX_TEXT: Final = 2000
_MAX_EXPONENT: Final = 32
_MAX_DEPTH: Final = 100


@dataclasses.dataclass(frozen=True, slots=True)
class Expression:
    """An expression of dimensions: a name, a number, or an operation on two expressions.

    Attributes:
        op: ``name``, ``number``, ``add``, ``sub``, ``mul``, ``floordiv``, ``mod``, ``max`` or
            ``min``.
        value: the name or the number.
        operands: the two operands of an operation.
    """

    op: str
    value: str | int = 0
    operands: tuple[Expression, ...] = ()


def is_symbolic(value: Any) -> bool:
    """Returns whether a size is symbolic, or any in nested lists, tuples and object arrays."""
    if isinstance(value, (list, tuple)):
        return any(map(is_symbolic, value))
    if isinstance(value, np.ndarray):
        return value.dtype == object and any(map(is_symbolic, value.ravel().tolist()))
    return bool(jax.export.is_symbolic_dim(value))


def plain(size: Size) -> Size:
    """Returns a size as a plain int, or as it is where it is symbolic."""
    return size if jax.export.is_symbolic_dim(size) else int(size)


def holds(predicate: Callable[[], Any], *, otherwise: bool = False) -> bool:
    """Returns what a predicate of sizes says, or ``otherwise`` where it depends on the sizes."""
    try:
        return bool(predicate())
    except jax.errors.InconclusiveDimensionOperation:
        return otherwise


# --- text --------------------------------------------------------------------------------------

_BINARY_OPS: Final = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Pow: "pow"}
_COMPARISONS: Final[dict[Any, Callable[[Size, Size], Any]]] = {
    ast.Eq: lambda a, b: a == b,
    ast.GtE: lambda a, b: a >= b,
    ast.LtE: lambda a, b: a <= b,
}
_FUNCTIONS: Final = ("floordiv", "mod", "max", "min")


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Expression:
    """Returns the expression that a text spells, as `str` of a symbolic dimension does.

    Raises:
        FormatError: it is no expression of dimensions.
    """
    return _from_syntax(_syntax(text), text, 0)


def _syntax(text: str) -> ast.expr:
    if len(text) > _MAX_TEXT:
        raise errors.FormatError(f"an expression of {len(text)} characters is too long")
    try:
        return ast.parse(text.strip().replace("^", "**"), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise errors.FormatError(f"{text!r} is not an expression of dimensions") from error


def _from_syntax(node: ast.expr, text: str, depth: int) -> Expression:
    bad = errors.FormatError(f"{text!r} is not an expression of dimensions")
    if depth > _MAX_DEPTH:
        raise bad
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Expression("number", node.value)
    if isinstance(node, ast.Name):
        return Expression("name", node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        operand = _from_syntax(node.operand, text, depth + 1)
        if operand.op == "number":
            return Expression("number", -int(operand.value))
        return Expression("mul", 0, (Expression("number", -1), operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY_OPS:
        left = _from_syntax(node.left, text, depth + 1)
        right = _from_syntax(node.right, text, depth + 1)
        op = _BINARY_OPS[type(node.op)]
        return _power(left, right, bad) if op == "pow" else Expression(op, 0, (left, right))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 2:
        operands = tuple(_from_syntax(argument, text, depth + 1) for argument in node.args)
        if node.func.id in _FUNCTIONS and not node.keywords:
            return Expression(node.func.id, 0, operands)
    raise bad


def _power(left: Expression, right: Expression, bad: Exception) -> Expression:
    exponent = right.value if right.op == "number" else 0
    if not isinstance(exponent, int) or not 1 <= exponent <= _MAX_EXPONENT:
        raise bad
    if _weight(left) * exponent > _MAX_TEXT:
        raise bad
    return functools.reduce(lambda a, b: Expression("mul", 0, (a, b)), [left] * exponent)


def _weight(expression: Expression) -> int:
    return 1 + sum(map(_weight, expression.operands))


def names(expression: Expression) -> Iterator[str]:
    """Yields the names in an expression, each as often as it occurs."""
    if expression.op == "name":
        yield str(expression.value)
    for operand in expression.operands:
        yield from names(operand)


def renamed(text: str, same: Mapping[str, str | int]) -> str:
    """Returns an expression with other names, or numbers, in the place of some."""
    return re.sub(r"[A-Za-z_]\w*", lambda match: str(same.get(match[0], match[0])), text)


def names_of(sizes: Iterable[Size]) -> tuple[str, ...]:
    """Returns the names in sizes, sorted."""
    found = {n for size in sizes if is_symbolic(size) for n in names(parse(str(size)))}
    return tuple(sorted(found))


# --- values ------------------------------------------------------------------------------------


_OPERATIONS: Final[dict[str, Callable[[Size, Size], Size]]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "max": lambda a, b: maximum(a, b),
    "min": lambda a, b: minimum(a, b),
}


def maximum(a: Size, b: Size) -> Size:
    """Returns the larger size."""
    return jax.core.max_dim(a, b) if is_symbolic((a, b)) else max(a, b)


def minimum(a: Size, b: Size) -> Size:
    """Returns the smaller size."""
    return jax.core.min_dim(a, b) if is_symbolic((a, b)) else min(a, b)


def evaluate(expression: Expression, sizes: Mapping[str, Size]) -> Size:
    """Returns an expression's value for given sizes; symbolic where these are.

    Raises:
        FormatError: a name has no size, or a number is divided by zero.
    """
    if expression.op == "number":
        return expression.value
    if expression.op == "name":
        if expression.value not in sizes:
            raise errors.FormatError(f"the dimension {expression.value!r} has no size")
        return sizes[str(expression.value)]
    left, right = (evaluate(operand, sizes) for operand in expression.operands)
    try:
        return _OPERATIONS[expression.op](left, right)
    except ZeroDivisionError:
        raise errors.FormatError("an expression of dimensions divides by zero") from None


# --- solving -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """How a named dimension is found: ``(size - offset) // factor`` of one array's axis.

    Attributes:
        name: the dimension.
        array: which array, by position.
        axis: which of its axes.
        factor: an int.
        offset: of other dimensions, found before, and numbers.
    """

    name: str
    array: int
    axis: int
    factor: int = 1
    offset: Expression = Expression("number", 0)

    def size(self, axis_size: Size, known: Mapping[str, Size]) -> Size:
        """Returns the dimension's size."""
        return (axis_size - evaluate(self.offset, known)) // self.factor


def sources(shapes: Sequence[Sequence[str]]) -> list[Source]:
    """Returns how each name in shapes is found, in an order in which that can be done.

    Args:
        shapes: of arrays, each size as text.

    Raises:
        GraphError: some names stand in no axis from which they follow; all are listed.
    """
    found, missing = _solve_for_names(shapes)
    if missing:
        headline = "the sizes of these dimensions do not follow from the shapes of the arguments:"
        advice = "Let each dimension stand alone, or times a number, in some argument's shape."
        raise errors.GraphError(errors.list_offenders(headline, missing, advice))
    return found


def unsolved(shapes: Sequence[Sequence[str]]) -> list[str]:
    """Returns the names in shapes whose sizes do not follow from these, sorted."""
    return _solve_for_names(shapes)[1]


def _solve_for_names(shapes: Sequence[Sequence[str]]) -> tuple[list[Source], list[str]]:
    """Returns how each name is found, and the names that are not."""
    axes = [
        (array, axis, parse(text))
        for array, shape in enumerate(shapes)
        for axis, text in enumerate(shape)
    ]
    wanted = {name for _, _, expression in axes for name in names(expression)}
    found: dict[str, Source] = {}
    # An axis that is the name itself says it best.
    for array, axis, expression in axes:
        if expression.op == "name":
            found.setdefault(str(expression.value), Source(str(expression.value), array, axis))
    progress = True
    while wanted - found.keys() and progress:
        progress = False
        for array, axis, expression in axes:
            unknown = set(names(expression)) - found.keys()
            linear = _linear(expression, *unknown) if len(unknown) == 1 else None
            if linear is not None and linear[0]:
                (name,) = unknown
                found[name] = Source(name, array, axis, *linear)
                progress = True
    return list(found.values()), sorted(wanted - found.keys())


def solve_for_one(text: str, size: int) -> tuple[str, int] | None:
    """Returns the only name in an expression and its size, given that of the whole, or None."""
    try:
        expression = parse(text)
    except errors.FormatError:
        return None
    found = set(names(expression))
    if len(found) != 1:
        return None
    (name,) = found
    linear = _linear(expression, name)
    if linear is None or not linear[0]:
        return None
    solved, rest = divmod(size - evaluate(linear[1], {}), linear[0])
    return (name, solved) if not rest and solved >= 0 else None


def _linear(expression: Expression, name: str) -> tuple[int, Expression] | None:
    """Returns (factor, offset) of an expression that is ``factor * name + offset``, or None."""
    if name not in set(names(expression)):
        return 0, expression
    if expression.op == "name":
        return 1, Expression("number", 0)
    if expression.op not in ("add", "sub", "mul"):
        return None
    left, right = (_linear(operand, name) for operand in expression.operands)
    if left is None or right is None:
        return None
    if expression.op == "mul":
        (factor, rest), (zero, number) = (left, right) if left[0] else (right, left)
        if zero or number.op != "number":
            return None
        return factor * int(number.value), _operation("mul", rest, number)
    sign = 1 if expression.op == "add" else -1
    return left[0] + sign * right[0], _operation(expression.op, left[1], right[1])


def _operation(op: str, left: Expression, right: Expression) -> Expression:
    """Returns an operation on two expressions; what holds no name is a number."""
    made = Expression(op, 0, (left, right))
    if left.op == right.op == "number":
        return Expression("number", evaluate(made, {}))
    return left if op in ("add", "sub") and right == Expression("number", 0) else made


def solve(shapes: Sequence[Sequence[str]], found: Sequence[Sequence[Size]]) -> dict[str, Size]:
    """Returns the size of each name in shapes, given the shapes that arrays have.

    Args:
        shapes: of the arrays, each size as text.
        found: the shapes they have, of the same ranks.

    Raises:
        GraphError: some names do not follow.
    """
    known: dict[str, Size] = {}
    for source in sources(shapes):
        known[source.name] = source.size(found[source.array][source.axis], known)
    return known


# --- JAX's symbolic dimensions -----------------------------------------------------------------


def symbolize(shapes: Sequence[Sequence[Any]]) -> list[tuple[Size, ...]]:
    """Returns shapes with a symbolic dimension of one scope for each string in them.

    The scope is that of the symbolic dimensions which the shapes hold already, if any.

    Raises:
        GraphError: a string is no expression of dimensions.
    """
    given = [size for shape in shapes for size in shape if is_symbolic(size)]
    scope = given[0].scope if given else jax.export.SymbolicScope()

    def size_of(size: Any) -> Size:
        if not isinstance(size, str):
            return size
        try:
            (made,) = jax.export.symbolic_shape(size, scope=scope)
        except Exception as error:
            raise errors.GraphError(
                f"{size!r} is not a dimension: it has to be a name, or an expression such as "
                f"'2*batch': {error}"
            ) from error
        return made

    return [tuple(map(size_of, shape)) for shape in shapes]


def constraints(sizes: Iterable[Size]) -> tuple[str, ...]:
    """Returns what the scope of symbolic sizes says of them, sorted: ``b >= 8``."""
    found: set[str] = set()
    for size in sizes:
        if is_symbolic(size):
            lines = str(size.scope).splitlines()[1:]
            found.update(line.strip() for line in lines if line.strip())
    return tuple(sorted(found))


def is_fulfilled(constraint: str, sizes: Mapping[str, Size]) -> bool:
    """Returns whether sizes are as a constraint says; true where that cannot be decided.

    Raises:
        FormatError: it is not a comparison of two expressions.
    """
    compare, sides = _comparison(constraint)
    left, right = (evaluate(side, sizes) for side in sides)
    return holds(lambda: compare(left, right), otherwise=True)


def names_in_constraint(constraint: str) -> set[str]:
    """Returns the names of the dimensions that a constraint is about.

    Raises:
        FormatError: it is not a comparison of two expressions.
    """
    _, sides = _comparison(constraint)
    return {name for side in sides for name in names(side)}


def _comparison(constraint: str) -> tuple[Callable[[Size, Size], Any], list[Expression]]:
    node = _syntax(constraint)
    compare = _COMPARISONS.get(type(node.ops[0])) if isinstance(node, ast.Compare) else None
    if compare is None or not isinstance(node, ast.Compare) or len(node.ops) != 1:
        raise errors.FormatError(f"{constraint!r} is not a constraint on dimensions")
    sides = (node.left, node.comparators[0])
    return compare, [_from_syntax(side, constraint, 0) for side in sides]
