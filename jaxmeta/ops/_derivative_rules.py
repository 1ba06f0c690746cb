"""What the rules of `jax.custom_jvp` and `jax.custom_vjp` have in common when they are saved.

A rule is traced from the derivative of the one eqn by some of its operands, those that are
*perturbed*. Most rules do not ask which these are, and are saved once, for all operands; a rule
with symbolic zeros may be another program for each choice of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import errors
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import LoweringContext
from jaxmeta.tracing import jaxprs
from jaxmeta.values import FunctionRef

FAILED: Final = "failed: "
"""How the attr begins that holds, in place of a rule, why there is none."""

_GROWS: Final = (
    "it makes ever larger functions that have it too, as the adjoint of an ODE does, and only the "
    "first of these are saved"
)
# Up to so many operands each choice of those that are perturbed has a rule of its own; with more,
# one choice has, where there is no rule by all of them.
_ALL_CHOICES: Final = 2
_MOST_OPERANDS: Final = 8


class RuleFailedError(Exception):
    """A derivative rule does not trace: then the original cannot be differentiated either."""


def is_differentiable(value: Any) -> bool:
    """Returns whether an array, or an aval, has tangents."""
    return bool(jax.dtypes.issubdtype(value.dtype, np.inexact))


def _no_tangent(value: Any) -> np.ndarray[Any, Any]:
    return np.zeros(np.shape(value), jax.dtypes.float0)


def with_tangents(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, ...]:
    """Returns a tangent for each primal: the next given one, or none for an integer."""
    given = iter(tangents)
    return tuple(next(given) if is_differentiable(x) else _no_tangent(x) for x in primals)


def differentiable(avals: Sequence[Any]) -> list[Any]:
    """Returns shapes and dtypes of the tangents that avals have."""
    return [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals if is_differentiable(a)]


def by_operands(
    run: Callable[..., Any], arrays: Sequence[Any], perturbed: Sequence[int]
) -> Callable[..., Any]:
    """Returns a function as one of some of its operands, the others being fixed."""

    def of_perturbed(*given: Any) -> Any:
        operands = list(arrays)
        for position, value in zip(perturbed, given, strict=True):
            operands[position] = value
        return run(*operands)

    return of_perturbed


def trace_rule(fn: Callable[..., Any], avals: Sequence[Any]) -> Any:
    """Returns the jaxpr of a rule.

    Raises:
        RuleFailedError: the user's rule raises, or closes over values of a trace that has ended.
    """
    try:
        jaxpr = jaxprs.make_jaxpr(fn, avals)
    except Exception as error:
        raise RuleFailedError(f"{type(error).__name__}: {error}") from error
    if jaxprs.holds_tracers(jaxpr):
        raise RuleFailedError("it uses values of a trace that has ended")
    return jaxpr


def save_rule(
    ctx: LoweringContext, rule: Any, names: Sequence[str], traced: Sequence[Any]
) -> list[str]:
    """Returns the library functions of a rule, one for each jaxpr.

    Raises:
        RuleFailedError: it makes ever larger rules of itself.
    """
    size = jaxprs.count_eqns(ctx.eqn.params.get("call_jaxpr", traced[0]))
    saved = ctx.rule_functions(jaxprs.rule_source(rule), size, names, traced)
    if not saved:
        raise RuleFailedError(_GROWS)
    return saved


def call_with_rule(
    ctx: LoweringContext,
    inputs: Sequence[Edge],
    jaxpr: Any,
    name: str,
    rule: Any,
    symbolic_zeros: bool = False,
) -> list[Edge]:
    """Adds the call of a function, with the derivative of the eqn as its rule.

    Args:
        ctx: of the eqn.
        inputs: its operands.
        jaxpr: what the function computes.
        name: wanted for it.
        rule: the rule, or what has it, as JAX knows it.
        symbolic_zeros: whether the rule asks which operands are perturbed.
    """
    run, avals = jaxprs.eqn_as_function(ctx.jaxpr, ctx.eqn)

    def save(perturbed: tuple[int, ...]) -> str:
        (saved,) = save_rule(ctx, rule, [f"{name}_jvp"], [_trace_jvp(run, avals, perturbed)])
        return saved

    positions = [i for i, aval in enumerate(avals) if is_differentiable(aval)]
    try:
        jvp = save(tuple(positions))
    except RuleFailedError as error:
        jvp = f"{FAILED}{error}"
    others: dict[str, FunctionRef] = {}
    has_all = len(positions) <= _ALL_CHOICES
    for perturbed in choices(positions) if symbolic_zeros else ():
        if not has_all and (others or not jvp.startswith(FAILED)):
            break
        try:
            others[choice_to_text(perturbed)] = FunctionRef(save(perturbed))
        except RuleFailedError:
            continue
    return ctx.call(
        ctx.function(jaxpr, name),
        *inputs,
        primitive="custom_jvp_call",
        jvp=jvp,
        perturbed=list(others) or None,
        jvps=list(others.values()) or None,
    )


def _trace_jvp(run: Callable[..., Any], avals: Sequence[Any], perturbed: Sequence[int]) -> Any:
    """Returns the jaxpr of the derivative of a function, without what holds no tangents."""
    count = len(avals)

    def rule(*arrays: Any) -> list[Any]:
        primals, tangents = arrays[:count], arrays[count:]
        if not perturbed:
            outputs = run(*primals)
            return [*outputs, *(jnp.zeros_like(x) for x in outputs if is_differentiable(x))]
        of_perturbed = by_operands(run, primals, perturbed)
        outputs, results = jax.jvp(of_perturbed, [primals[i] for i in perturbed], list(tangents))
        return [*outputs, *(t for t in results if t.dtype != jax.dtypes.float0)]

    return trace_rule(rule, [*avals, *differentiable([avals[i] for i in perturbed])])


def call_expanded(ctx: LoweringContext, inputs: Sequence[Edge]) -> list[Edge]:
    """Adds the call of what a primitive of another library computes, with its own derivative."""
    primitive = ctx.eqn.primitive
    jaxpr = jaxprs.implementation(ctx.eqn)
    return call_with_rule(ctx, inputs, jaxpr, primitive.name, primitive)


def choices(positions: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yields choices of perturbed operands, but for all of them, the larger ones first."""
    if len(positions) <= _MOST_OPERANDS:
        for size in range(len(positions) - 1, 0, -1):
            yield from itertools.combinations(positions, size)


def choice_to_text(perturbed: Sequence[int]) -> str:
    """Returns positions of operands as the file spells them."""
    return ",".join(map(str, perturbed))


def find_choice(wanted: set[int], texts: Sequence[bytes]) -> int | None:
    """Returns the place of the smallest choice that holds all perturbed operands, if any does."""
    saved = [set(choice_from_text(text)) for text in texts]
    fitting = [place for place, choice in enumerate(saved) if wanted <= choice]
    return min(fitting, key=lambda place: len(saved[place]), default=None)


def choice_from_text(text: bytes) -> tuple[int, ...]:
    """Returns positions of operands from what the file says."""
    return tuple(int(part) for part in text.decode().split(","))


def is_failure(rule: Any) -> bool:
    """Returns whether an attr holds why there is no rule."""
    return isinstance(rule, bytes) and rule.startswith(FAILED.encode())


def raise_failure(name: str, rule: bytes) -> NoReturn:
    """Raises for a rule that did not trace.

    Raises:
        DerivativeError: always.
    """
    raise errors.DerivativeError(
        f"the derivative rule of {name!r} did not trace when it was saved: "
        f"{rule.decode().removeprefix(FAILED)}. Save the derivative itself as a signature."
    )
