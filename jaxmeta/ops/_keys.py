"""Typed PRNG keys: their implementations, and the setting that threefry's numbers depend on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Final

import jax
import numpy as np

from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops import _computation
from jaxmeta.ops._definition import LoweringContext, i32
from jaxmeta.tracing import jaxprs

UINT32: Final = np.dtype(np.uint32)
IMPLEMENTATIONS: Final = ("threefry2x32", "rbg", "unsafe_rbg")
SEED: Final = i32(low=-1000, high=1000)


def known_impl(ctx: LoweringContext, name: str) -> str:
    """Returns the name of a key's implementation, or raises where it is not JAX's own."""
    if jaxprs.prng_implementation(name) is None:
        raise ctx.unsupported(
            f"keys of the implementation {name!r}; use threefry2x32, rbg or unsafe_rbg"
        )
    return name


def operand_impl(ctx: LoweringContext) -> str:
    """Returns the implementation of the eqn's first operand, a typed key."""
    return known_impl(ctx, jaxprs.key_layout(ctx.eqn.invars[0].aval.dtype)[0])


def partitionable_attr(ctx: LoweringContext) -> bool | None:
    """Returns False where jax_threefry_partitionable was off; None, so no attr, where it was on."""
    return None if jaxprs.is_threefry_partitionable(ctx.eqn) else False


def with_partitionable(is_partitionable: bool) -> contextlib.AbstractContextManager[Any]:
    """Sets jax_threefry_partitionable, which decides on the numbers that threefry gives."""
    if jaxprs.is_threefry_partitionable() == is_partitionable:
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[Any] = jax.threefry_partitionable(is_partitionable)
    return context


def lower_by_implementation(
    ctx: LoweringContext,
    data: Edge,
    fn: Callable[[Any, Any], Any],
    **params: Any,
) -> list[Edge]:
    """Calls a function traced from a method of JAX's own implementation, on the keys' data."""
    name = operand_impl(ctx)
    rank = len(ctx.eqn.invars[0].aval.shape)
    setting = partitionable_attr(ctx)

    def body(keys: Any) -> Any:
        with with_partitionable(setting is None):
            return _computation.batched(
                lambda key: fn(jaxprs.prng_implementation(name), key), rank
            )(keys)

    return ctx.composite(
        ctx.eqn.primitive.name, body, data, impl=name, partitionable=setting, **params
    )


def wrap(data: Any, impl: bytes) -> Any:
    """Returns the typed keys that data are."""
    return jax.random.wrap_key_data(data, impl=impl.decode())
