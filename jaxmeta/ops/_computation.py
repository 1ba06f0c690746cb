"""Functions that stand for others: as attrs of nodes, of scalars for XLA's ops, and batched."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import numpy as np

from jaxmeta.ops._definition import LoweringContext
from jaxmeta.tracing import jaxprs
from jaxmeta.values import FunctionRef

SECOND: Final = "second"
"""What `recognize` calls the function that returns its second argument."""


def second(_: Any, new: Any) -> Any:
    """Returns the second argument: what replaces an element."""
    return new


def scalars(*dtypes: Any) -> list[jax.ShapeDtypeStruct]:
    """Returns the avals of scalars."""
    return [jax.ShapeDtypeStruct((), dtype) for dtype in dtypes]


def function_ref(ctx: LoweringContext, jaxpr: Any, name: str) -> FunctionRef:
    """Returns the library function that holds a jaxpr, as an attr."""
    return FunctionRef(ctx.function(jaxpr, name))


def function_of_scalars(
    ctx: LoweringContext, fn: Callable[..., Any], name: str, dtypes: Sequence[Any]
) -> FunctionRef:
    """Returns a library function traced from ``fn``; equal ones of one trace are shared."""
    return function_ref(ctx, _trace(fn, tuple(map(np.dtype, dtypes))), name)


@functools.cache
def _trace(fn: Callable[..., Any], dtypes: tuple[np.dtype[Any], ...]) -> Any:
    return jaxprs.make_jaxpr(fn, scalars(*dtypes))


def recognize(function: Any, dtype: Any) -> str:
    """Returns which primitive a library function of two scalars is; `SECOND`, or empty."""
    found: str = function.derived(
        ("recognized", np.dtype(dtype)), lambda: _recognize(function, dtype)
    )
    return found


def _recognize(function: Callable[..., Any], dtype: Any) -> str:
    jaxpr = jaxprs.open_jaxpr(jaxprs.make_jaxpr(function, scalars(dtype, dtype)))
    arguments, results = list(jaxpr.invars), list(jaxpr.outvars)
    if len(results) != 1:
        return ""
    if not jaxpr.eqns:
        return SECOND if results[0] is arguments[1] else ""
    (eqn, *others) = jaxpr.eqns
    is_plain = not others and list(eqn.invars) == arguments and list(eqn.outvars) == results
    return str(eqn.primitive.name) if is_plain else ""


def batched(fn: Callable[..., Any], rank: int) -> Callable[..., Any]:
    """Returns a function as one of arrays that have ``rank`` leading axes more."""
    for _ in range(rank):
        fn = jax.vmap(fn)
    return fn


def run_jaxpr(jaxpr: Any, *arguments: Any) -> list[Any]:
    """Runs a closed jaxpr, or an open one without constants; `batched` makes it one of arrays."""
    constants, jaxpr = jaxprs.jaxpr_constants(jaxpr), jaxprs.open_jaxpr(jaxpr)
    env = dict(zip(jaxpr.constvars, constants, strict=True))
    env.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        value = jaxprs.literal_value(atom)
        return env[atom] if value is None else value

    for eqn in jaxpr.eqns:
        run, _ = jaxprs.eqn_as_function(jaxpr, eqn)
        env.update(zip(eqn.outvars, run(*map(read, eqn.invars)), strict=True))
    return [read(atom) for atom in jaxpr.outvars]
