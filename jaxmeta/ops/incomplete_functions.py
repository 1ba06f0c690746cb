"""Incomplete gamma and beta functions, and the zeta functions they go with."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import LoweringContext, Spec, example, f32, kernel, lowering
from jaxmeta.ops._pointwise import SMALL, binary, widened

_ABOVE_ONE = f32(3, 4, low=1.5, high=4.0)
_HALF = Spec((3, 4), jnp.bfloat16, 0.5, 2.0)
_FRACTION = f32(3, 4, low=0.1, high=0.9)

binary("Igamma", "igamma", lax.igamma, (SMALL, SMALL), tolerance=1e-4, gradient=False)
binary("Igammac", "igammac", lax.igammac, (SMALL, SMALL), tolerance=1e-4, gradient=False)
binary(
    "IgammaGradA",
    "igamma_grad_a",
    lax.igamma_grad_a,
    (SMALL, SMALL),
    otherwise=widened(lax.igamma_grad_a),
    tolerance=1e-3,
    gradient=False,
)
example(lambda a, x: lax.igamma_grad_a(a, x), _HALF, _HALF, gradient=False)
binary("Zeta", "zeta", lax.zeta, (_ABOVE_ONE, SMALL), tolerance=1e-4, gradient=False)


@lowering("polygamma")
def lower_polygamma(ctx: LoweringContext, m: Edge, x: Edge) -> list[Edge]:
    return ctx.node("Polygamma", m, x)


@kernel("Polygamma")
def polygamma(a: Any, x: Any) -> Any:
    return lax.polygamma(a, x)


example(lambda x: lax.polygamma(x * 0 + 1.0, x), SMALL, tolerance=1e-3, gradient=False)


@lowering("regularized_incomplete_beta")
def lower_betainc(ctx: LoweringContext, a: Edge, b: Edge, x: Edge) -> list[Edge]:
    return ctx.node("Betainc", a, b, x)


@kernel("Betainc")
def betainc(a: Any, b: Any, x: Any) -> Any:
    return lax.betainc(a, b, x)


example(
    lambda a, b, x: lax.betainc(a, b, x), SMALL, SMALL, _FRACTION, tolerance=1e-4, gradient=False
)
