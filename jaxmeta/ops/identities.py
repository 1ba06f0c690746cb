"""Ops that return what they are given: copies, placement, and hints to transformations.

What they hint at, the compiler or `jax.grad` reads; in TensorFlow most of them are an Identity.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import (
    PRIMITIVE_ATTR,
    LoweringContext,
    example,
    f32,
    i32,
    kernel,
    lowering,
    restores,
)
from jaxmeta.ops._kernels import Flow
from jaxmeta.tracing import jaxprs


@lowering("copy", "copy_p")
def lower_copy(ctx: LoweringContext, x: Edge) -> list[Edge]:
    # Marked, because to derivatives the copy is a value of its own: a residual more, for instance.
    return ctx.node("Identity", x, **{PRIMITIVE_ATTR: "copy"})


@restores("copy")
def restore_copy(x: Any) -> Any:
    return jaxprs.primitive("copy").bind(x)


@lowering("stop_gradient")
def lower_stop_gradient(ctx: LoweringContext, x: Edge) -> list[Edge]:
    return ctx.node("StopGradient", x)


@kernel("Identity", "Snapshot", "PreventGradient", flow=Flow.SAME)
def identity(x: Any) -> Any:
    return x


kernel("StopGradient")(lax.stop_gradient)
example(lambda x: jnp.copy(x), f32(3))
example(lambda x: x + lax.convert_element_type(jaxprs.primitive("copy").bind(0), x.dtype), f32(3))
example(lambda x: lax.stop_gradient(x) * x, f32(3))


# --- hints to the compiler and to transformations ----------------------------------------------


@lowering("optimization_barrier")
def lower_optimization_barrier(ctx: LoweringContext, *arrays: Edge) -> list[Edge]:
    return ctx.node("XlaOptimizationBarrier", list(arrays))


@kernel("XlaOptimizationBarrier")
def optimization_barrier(*input: Any) -> list[Any]:
    return list(lax.optimization_barrier(input))


example(lambda x, y: lax.optimization_barrier((x * 2.0, y)), f32(3), i32(2))
example(lambda x: lax.optimization_barrier(x), f32(3))


@lowering("name")
def lower_name(ctx: LoweringContext, x: Edge, *, name: str) -> list[Edge]:
    return ctx.node("Identity", x, **{PRIMITIVE_ATTR: "name", "_jax_name": name})


@restores("name")
def restore_name(x: Any, *, name: bytes) -> Any:
    return checkpoint_name(x, name.decode())


example(lambda x: checkpoint_name(jnp.sin(x), "h") * 2.0, f32(3))
example(
    lambda x: jax.grad(
        jax.checkpoint(
            lambda v: jnp.sum(jnp.sin(checkpoint_name(jnp.sin(v), "h"))),
            policy=jax.checkpoint_policies.save_only_these_names("h"),
        )
    )(x),
    f32(3),
    gradient=False,
)
