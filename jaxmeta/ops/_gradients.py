"""Kernels of gradients, made of the kernels of the ops whose gradients they are."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta import op_defs
from jaxmeta.ops._operands import ints


def transpose(linear: Callable[..., Any], shape: Any, cotangent: Any, dtype: Any = None) -> Any:
    """Returns what the transpose of a linear function of an array of a shape gives.

    Args:
        linear: the function.
        shape: of what it takes.
        cotangent: of its result.
        dtype: of what it takes; the cotangent's where None.
    """
    cotangent = jnp.asarray(cotangent)
    taken = jax.ShapeDtypeStruct(ints(shape), cotangent.dtype if dtype is None else dtype)
    (result,) = jax.linear_transpose(linear, taken)(cotangent)
    return result


def pull_back(fn: Callable[..., Any], x: Any, cotangent: Any) -> Any:
    """Returns a cotangent of a function's argument for one of its result."""
    (result,) = jax.vjp(fn, jnp.asarray(x))[1](jnp.asarray(cotangent))
    return result


def reading_attrs_of(
    op: str, fn: Callable[..., Any], attrs_of: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Returns a function as a kernel of an op, which is given the op's attrs and no others.

    Args:
        op: the op. An attr that it lacks is one whose default the function has.
        fn: a function of arrays and attrs.
        attrs_of: which function names the attrs, where ``fn`` takes any.
    """
    known = {attr.name for attr in op_defs.get_op_def(op).attr}
    named = inspect.signature(attrs_of or fn).parameters.values()
    is_keyword = inspect.Parameter.KEYWORD_ONLY
    own = [p for p in inspect.signature(fn).parameters.values() if p.kind < is_keyword]

    def run(*inputs: Any, **attrs: Any) -> Any:
        return fn(*inputs, **attrs)

    parameters = [*own, *(p for p in named if p.kind is is_keyword and p.name in known)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__module__, run.__doc__ = fn.__module__, fn.__doc__
    return run
