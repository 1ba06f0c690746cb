"""Calls of library functions: jit, remat, composites, and TensorFlow's own calls."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import dtypes, lax
from jax.ad_checkpoint import checkpoint_name

from jaxmeta import errors, shardings
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import (
    JAX_ATTR_PREFIX,
    LoweringContext,
    example,
    f32,
    kernel,
    lowering,
    restores,
)
from jaxmeta.tracing import binding, eqn_params, meshes

# --- jit ---------------------------------------------------------------------------------------


@lowering("jit", "pjit")
def lower_jit(
    ctx: LoweringContext,
    *inputs: Edge,
    jaxpr: Any,
    in_shardings: Any,
    out_shardings: Any,
    in_layouts: Any,
    out_layouts: Any,
    donated_invars: Any,
    ctx_mesh: Any,
    name: str,
    keep_unused: bool,
    inline: Any,
    compiler_options_kvs: Any,
) -> list[Edge]:
    del donated_invars  # means nothing inside another program
    del ctx_mesh, keep_unused
    placed = _sharding_params(ctx, in_shardings, out_shardings)
    if any(layout is not None for layout in (*in_layouts, *out_layouts)):
        raise ctx.unsupported("a jit with layouts inside the program")
    if compiler_options_kvs:
        raise ctx.unsupported("a jit with compiler options inside the program")
    function = ctx.function(jaxpr, name)
    way = eqn_params.inline_to_name(inline) or None
    return ctx.call(function, *inputs, primitive="jit", name=name, inline=way, **placed)


def _sharding_params(ctx: LoweringContext, inputs: Any, outputs: Any) -> dict[str, Any]:
    sides = [
        [None if meshes.is_unspecified(sharding) else sharding for sharding in side]
        for side in (inputs, outputs)
    ]
    try:
        attrs = shardings.signature_to_attrs(*(map(shardings.to_recorded, s) for s in sides))
    except errors.ShardingError as error:
        raise ctx.unsupported(str(error)) from None
    return {name.removeprefix(JAX_ATTR_PREFIX): value for name, value in attrs.items()}


@restores("jit")
def restore_jit(
    *inputs: Any,
    library: Any,
    function: Any,
    name: bytes,
    inline: bytes = b"",
    in_shardings: tuple[bytes, ...] = (),
    out_shardings: tuple[bytes, ...] = (),
    mesh_axes: tuple[bytes, ...] = (),
    mesh_shape: tuple[int, ...] = (),
    mesh_axis_types: tuple[bytes, ...] = (),
) -> Any:
    options = eqn_params.inline_from_name(inline.decode())
    if mesh_axes:
        mesh = shardings.mesh_from_attrs(mesh_axes, mesh_shape, mesh_axis_types)
        for side, texts in (("in_shardings", in_shardings), ("out_shardings", out_shardings)):
            placed = tuple(library.placement.sharding_of_text(mesh, text) for text in texts)
            if any(placed):
                options[side] = placed
    return function.jitted(name.decode(), **options)(*inputs)


example(lambda x: jax.jit(lambda y: y * 2.0)(x) + jax.jit(lambda y: y + 1.0)(x), f32(3))


@kernel("PartitionedCall", "StatefulPartitionedCall")
def partitioned_call(state: Any, *args: Any, f: Any) -> Any:
    return f(*args, state=state)


@kernel("SymbolicGradient")
def symbolic_gradient(*input: Any, f: Any, library: Any) -> list[Any]:
    # TensorFlow's rule: the library's GradientDef goes before the derivative of the body.
    gradient = library.gradient_of(f.name)
    if gradient is not None:
        return list(gradient(*input))
    arguments, seeds = input[: f.num_arguments], input[f.num_arguments :]
    results, pull_back = jax.vjp(lambda *args: f(*args), *arguments)
    found = pull_back([_cotangent(*pair) for pair in zip(results, seeds, strict=True)])
    return [
        jnp.zeros(np.shape(argument), argument.dtype) if x.dtype == dtypes.float0 else x
        for argument, x in zip(arguments, found, strict=True)
    ]


def _cotangent(result: Any, seed: Any) -> Any:
    """Returns a gradient as JAX takes it: none for what has no derivative."""
    if jnp.issubdtype(result.dtype, jnp.inexact):
        return seed
    return np.zeros(np.shape(result), dtypes.float0)


# --- remat -------------------------------------------------------------------------------------


@lowering("remat2", "checkpoint", "remat")
def lower_remat(
    ctx: LoweringContext,
    *inputs: Edge,
    jaxpr: Any,
    prevent_cse: Any,
    differentiated: bool,
    policy: Any,
) -> list[Edge]:
    names = eqn_params.policy_to_names(policy)
    if names is None:
        if not differentiated:
            raise ctx.unsupported(f"the checkpoint policy {policy} has no name to record")
        names = ()
    if not isinstance(prevent_cse, bool):
        raise ctx.unsupported("a jax.checkpoint with prevent_cse for each argument")
    return ctx.call(
        ctx.function(jaxpr, "remat"),
        *inputs,
        primitive="remat",
        prevent_cse=prevent_cse,
        differentiated=bool(differentiated),
        policy=names or None,
    )


@restores("remat")
def restore_remat(
    *inputs: Any,
    function: Any,
    prevent_cse: bool,
    differentiated: bool,
    policy: tuple[bytes, ...] = (),
) -> Any:
    return binding.bind_remat(
        function,
        inputs,
        prevent_cse=prevent_cse,
        differentiated=differentiated,
        policy=eqn_params.policy_from_names([name.decode() for name in policy]),
    )


example(lambda x: jax.checkpoint(lambda y: jax.numpy.sin(jax.numpy.sin(y)))(x), f32(3))


_policies = jax.checkpoint_policies


def _checkpointed(policy: Any) -> Any:
    def run(x: Any) -> Any:
        inner = jnp.sin(checkpoint_name(jnp.sin(x @ x), "h"))
        return jnp.cos(checkpoint_name(jnp.tanh(inner), "k") @ x)

    return jax.checkpoint(run, policy=policy)


for _policy in (
    _policies.everything_saveable,
    _policies.dots_with_no_batch_dims_saveable,
    _policies.save_only_these_names("h", "k"),
    _policies.save_any_names_but_these("h"),
    _policies.save_anything_except_these_names("h"),
    _policies.save_from_both_policies(
        _policies.dots_saveable, _policies.save_only_these_names("k")
    ),
):
    example(_checkpointed(_policy), f32(3, 3), tolerance=1e-4)
# What is offloaded has to be moved, which JAX refuses to trace on one device without a mesh.
for _policy in (
    _policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
    _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=["h"],
        names_which_can_be_offloaded=["k"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
):
    example(_checkpointed(_policy), f32(3, 3), tolerance=1e-4)

# --- calls that JAX inserts, composites --------------------------------------------------------


@lowering("closed_call", "eval_jaxpr", "core_call", "call")
def lower_closed_call(
    ctx: LoweringContext, *inputs: Edge, call_jaxpr: Any, name: str = ""
) -> list[Edge]:
    del name  # a batched one is given that of its function, for messages
    return ctx.call(ctx.function(call_jaxpr, "closed_call"), *inputs, primitive="closed_call")


@restores("closed_call")
def restore_closed_call(*inputs: Any, function: Any) -> list[Any]:
    return binding.bind_closed_call(function, inputs)


@lowering("composite")
def lower_composite(
    ctx: LoweringContext,
    *inputs: Edge,
    name: str,
    version: int,
    attributes: Any,
    jaxpr: Any = None,
    call_jaxpr: Any = None,
) -> list[Edge]:
    encoded = []
    for key, leaves, treedef in attributes:
        text = _value_to_text(jax.tree.unflatten(treedef, leaves))
        if text is None:
            raise ctx.unsupported(f"a composite whose attribute {key!r} holds no plain scalars")
        encoded.append(f"{key}={text}")
    return ctx.call(
        ctx.function(jaxpr if jaxpr is not None else call_jaxpr, name),
        *inputs,
        primitive="composite",
        name=name,
        version=int(version),
        attributes=encoded or None,
    )


def _value_to_text(value: Any) -> str | None:
    """Returns a scalar in JSON, a container of them as Python spells it; None for anything else."""
    if type(value) in (bool, int, float, str):
        return json.dumps(value)
    text = repr(value)
    try:
        return text if _is_same(ast.literal_eval(text), value) else None
    except (ValueError, SyntaxError):
        return None


def _is_same(a: Any, b: Any) -> bool:
    (leaves, tree), (others, other) = jax.tree.flatten(a), jax.tree.flatten(b)
    return [str(tree), *map(type, leaves)] == [str(other), *map(type, others)]


def _value_from_text(text: str) -> Any:
    return ast.literal_eval(text) if text.startswith(("(", "[", "{", "None")) else json.loads(text)


@restores("composite")
def restore_composite(
    *inputs: Any, function: Any, name: bytes, version: int, attributes: Sequence[bytes] = ()
) -> Any:
    pairs = (item.decode().partition("=") for item in attributes)
    keywords = {key: _value_from_text(text) for key, _, text in pairs}

    def decomposition(*operands: Any, **_: Any) -> Any:
        return function(*operands)

    return lax.composite(decomposition, name.decode(), int(version))(*inputs, **keywords)


example(
    lambda x: lax.composite(lambda a, *, k: jnp.sin(a) * k, "my.scaled_sine", 2)(x, k=3.0),
    f32(3),
    gradient=False,
)
example(
    lambda x: lax.composite(lambda a, *, sizes, how: a * 2, "my.windowed")(
        x, sizes=(1, 2), how={"pads": [0, 1.5], "name": "same"}
    ),
    f32(3),
    gradient=False,
)
