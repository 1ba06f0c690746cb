"""Tokens, by which XLA orders what has effects; in TensorFlow a bool stands for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import lax

from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import LoweringContext, example, f32, lowering, restores
from jaxmeta.ops._operands import avals_of


def _return_a_bool(body: LoweringContext, arguments: Sequence[Edge]) -> list[Edge]:
    del arguments
    return [body.constant(True, np.bool_)]


@lowering("create_token", "after_all")
def lower_tokens(ctx: LoweringContext, *tokens: Edge) -> list[Edge]:
    name = ctx.eqn.primitive.name
    function = ctx.build_function(name, avals_of(tokens), _return_a_bool, len(tokens))
    return ctx.call(function, *tokens, primitive=name)


@restores("create_token")
def restore_create_token() -> Any:
    return lax.create_token()


@restores("after_all")
def restore_after_all(*tokens: Any) -> Any:
    return lax.after_all(*tokens)


def _with_tokens(x: Any) -> Any:
    lax.after_all(lax.create_token(), lax.after_all(lax.create_token()))
    return x * 2


example(_with_tokens, f32(3))
