"""Shardings inside of programs: constraints, moves, and those that are part of the types.

In TensorFlow, which has one device here, all of them compute what they would without. Reading puts
them on the mesh that the program is loaded to; where there is none, they are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxmeta import dtypes, errors, shardings, xla_attrs
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import (
    JAX_ATTR_PREFIX,
    PRIMITIVE_ATTR,
    LoweringContext,
    example,
    f32,
    kernel,
    lowering,
    restores,
)
from jaxmeta.ops._operands import ints
from jaxmeta.tracing import jaxprs, meshes

# --- constraints and moves ---------------------------------------------------------------------


@lowering("sharding_constraint")
def lower_sharding_constraint(
    ctx: LoweringContext,
    x: Edge,
    *,
    sharding: Any,
    layout: Any,
    context_mesh: Any,
    unconstrained_dims: Any,
) -> list[Edge]:
    del context_mesh, unconstrained_dims  # the sharding has the mesh, and says which are open
    if layout is not None:
        raise ctx.unsupported("a constraint on the layout in memory")
    return _marked_identity(ctx, x, "sharding_constraint", sharding)


@lowering("reshard")
def lower_reshard(
    ctx: LoweringContext, x: Edge, *, dst_sharding: Any, concrete_mesh: Any
) -> list[Edge]:
    del concrete_mesh  # the mesh that is loaded to takes its place
    return _marked_identity(ctx, x, "reshard", dst_sharding)


@lowering("device_put")
def lower_device_put(
    ctx: LoweringContext, *arrays: Edge, devices: Any, srcs: Any, copy_semantics: Any
) -> list[Edge]:
    del srcs, copy_semantics  # where it comes from, and whether it may alias, is not computation
    if len(arrays) > 1 and all(device is None for device in devices):
        # One node, for derivatives treat the arrays of one eqn alike.
        return ctx.node("IdentityN", list(arrays), **{PRIMITIVE_ATTR: "device_put_all"})
    return [
        edge
        for x, device in zip(arrays, devices, strict=True)
        for edge in _marked_identity(ctx, x, "device_put", device)
    ]


def _marked_identity(ctx: LoweringContext, x: Edge, primitive: str, sharding: Any) -> list[Edge]:
    """Adds an Identity that records a sharding; a plain one where that is one device."""
    return ctx.node("Identity", x, **_mark(ctx, primitive, sharding))


def _mark(ctx: LoweringContext, primitive: str, sharding: Any) -> dict[str, Any]:
    if sharding is None:  # wherever it is
        return {PRIMITIVE_ATTR: primitive}
    if isinstance(sharding, jax.memory.Space):
        return {PRIMITIVE_ATTR: primitive, "_jax_memory_space": sharding.name}
    if not isinstance(sharding, jax.sharding.Sharding):
        raise ctx.unsupported(f"a move to {sharding}; give a NamedSharding")
    try:
        recorded = shardings.to_recorded(sharding)
    except errors.ShardingError as error:
        raise ctx.unsupported(str(error)) from None
    if recorded is None:
        return {}
    return {PRIMITIVE_ATTR: primitive, **shardings.sharding_to_attrs(recorded)}


def _restore_move(move: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """Returns the kernel of a primitive that puts an array where its attrs say."""

    def restore(
        x: Any,
        *,
        library: Any,
        partition_spec: bytes = b"",
        mesh_axes: tuple[bytes, ...] = (),
        mesh_shape: tuple[int, ...] = (),
        mesh_axis_types: tuple[bytes, ...] = (),
        memory_kind: bytes = b"",
        memory_space: bytes = b"",
    ) -> Any:
        if memory_space:
            return move(x, jax.memory.Space[memory_space.decode()])
        if not partition_spec:  # a device_put to wherever it is
            return move(x, None)
        mesh = shardings.mesh_from_attrs(mesh_axes, mesh_shape, mesh_axis_types)
        recorded = shardings.make_recorded(mesh, partition_spec, memory_kind.decode())
        sharding = library.placement.sharding_here(recorded)
        return x if sharding is None else move(x, sharding)

    return restore


restores("sharding_constraint")(_restore_move(lax.with_sharding_constraint))
restores("reshard")(_restore_move(jax.sharding.reshard))
restores("device_put")(_restore_move(jax.device_put))


@restores("device_put_all")
def restore_device_put_all(*arrays: Any) -> list[Any]:
    return list(jax.device_put(arrays))


def _sharding(kind: AxisType, *spec: Any) -> NamedSharding:
    """Returns a sharding over one device, for the examples."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(kind,), devices=jax.devices()[:1])
    return NamedSharding(mesh, PartitionSpec(*spec))


example(lambda x: jax.device_put(x) + 1.0, f32(3))
example(lambda x, y: jax.tree.map(jnp.sin, jax.device_put((x, y))), f32(3), f32(2))
example(lambda x: jax.device_put(x, jax.memory.Space.Device) + 1.0, f32(3))
example(lambda x: jax.device_put(x, _sharding(AxisType.Auto, "data")) + 1.0, f32(3))
example(
    lambda x: lax.with_sharding_constraint(x * 2.0, _sharding(AxisType.Auto, None, "data")),
    f32(3, 4),
)
example(lambda x: jax.sharding.reshard(x, _sharding(AxisType.Explicit, "data")) * 2.0, f32(3, 4))


@kernel("XlaSharding")
def keep_values(input: Any) -> Any:
    """Returns what it is given: the sharding is over devices of the machine that wrote it."""
    return input


# --- shardings that are part of types ----------------------------------------------------------


def lower_explicit(ctx: LoweringContext, inputs: Sequence[Edge]) -> list[Edge]:
    """Adds the call for an eqn that is told the sharding of its result.

    The library function says it without; the call carries the sharding and what else it takes.
    """
    name = ctx.eqn.primitive.name
    describe = _EXPLICIT.get(name)
    if describe is None or len(ctx.eqn.outvars) != 1:
        raise ctx.unsupported(f"an out_sharding on {name} cannot be expressed")
    params = dict(ctx.eqn.params)
    (key,) = [key for key in params if key in meshes.SHARDING_PARAMS and params[key] is not None]
    sharding = params.pop(key)
    run, _ = jaxprs.eqn_as_function(ctx.jaxpr, ctx.eqn.replace(params={**params, key: None}))
    mark = _mark(ctx, name, sharding)
    del mark[PRIMITIVE_ATTR]
    attrs = {name.removeprefix(JAX_ATTR_PREFIX): value for name, value in mark.items()}
    return ctx.composite(
        f"explicit_{name}", lambda *xs: run(*xs)[0], *inputs, **describe(params), **attrs
    )


def _dot_params(params: Mapping[str, Any]) -> dict[str, Any]:
    (lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch) = params["dimension_numbers"]
    preferred = params["preferred_element_type"]
    return {
        "lhs_contracting": ints(lhs_contracting),
        "rhs_contracting": ints(rhs_contracting),
        "lhs_batch": ints(lhs_batch),
        "rhs_batch": ints(rhs_batch),
        "precision": xla_attrs.precision_to_names(params["precision"]) or None,
        "preferred_element_type": None if preferred is None else np.dtype(preferred),
    }


_EXPLICIT: Final[dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "dot_general": _dot_params,
    "broadcast_in_dim": lambda params: {
        "shape": ints(params["shape"]),
        "broadcast_dimensions": ints(params["broadcast_dimensions"]),
    },
    "iota": lambda params: {
        "dtype": np.dtype(params["dtype"]),
        "shape": ints(params["shape"]),
        "dimension": int(params["dimension"]),
    },
    "reshape": lambda params: {
        "new_sizes": ints(params["new_sizes"]),
        "dimensions": None if params["dimensions"] is None else ints(params["dimensions"]),
    },
    "reduce_sum": lambda params: {"axes": ints(params["axes"])},
}


def _with_sharding(
    run: Callable[[Any], Any], library: Any, mesh: tuple[Any, Any, Any], spec: bytes
) -> Any:
    """Runs a function of an ``out_sharding``; where that is no part of types, as a constraint."""
    recorded = shardings.make_recorded(shardings.mesh_from_attrs(*mesh), spec)
    sharding = library.placement.sharding_here(recorded)
    if sharding is None:
        return run(None)
    if shardings.has_explicit_axes(sharding.mesh):
        return run(sharding)
    return lax.with_sharding_constraint(run(None), sharding)


@restores("explicit_dot_general")
def restore_explicit_dot_general(
    lhs: Any,
    rhs: Any,
    *,
    library: Any,
    partition_spec: bytes,
    mesh_axes: tuple[bytes, ...],
    mesh_shape: tuple[int, ...],
    mesh_axis_types: tuple[bytes, ...],
    lhs_contracting: tuple[int, ...] = (),
    rhs_contracting: tuple[int, ...] = (),
    lhs_batch: tuple[int, ...] = (),
    rhs_batch: tuple[int, ...] = (),
    precision: tuple[bytes, ...] = (),
    preferred_element_type: int = 0,
) -> Any:
    preferred = dtypes.dtype_from_number(preferred_element_type) if preferred_element_type else None

    def run(sharding: Any) -> Any:
        return lax.dot_general(
            lhs,
            rhs,
            ((lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch)),
            precision=xla_attrs.precision_from_names(precision),
            preferred_element_type=preferred,
            out_sharding=sharding,
        )

    return _with_sharding(run, library, (mesh_axes, mesh_shape, mesh_axis_types), partition_spec)


@restores("explicit_broadcast_in_dim")
def restore_explicit_broadcast_in_dim(
    x: Any,
    *,
    library: Any,
    partition_spec: bytes,
    mesh_axes: tuple[bytes, ...],
    mesh_shape: tuple[int, ...],
    mesh_axis_types: tuple[bytes, ...],
    shape: tuple[int, ...] = (),
    broadcast_dimensions: tuple[int, ...] = (),
) -> Any:
    def run(sharding: Any) -> Any:
        return lax.broadcast_in_dim(x, shape, broadcast_dimensions, out_sharding=sharding)

    return _with_sharding(run, library, (mesh_axes, mesh_shape, mesh_axis_types), partition_spec)


@restores("explicit_iota")
def restore_explicit_iota(
    *,
    library: Any,
    partition_spec: bytes,
    mesh_axes: tuple[bytes, ...],
    mesh_shape: tuple[int, ...],
    mesh_axis_types: tuple[bytes, ...],
    dtype: int,
    shape: tuple[int, ...],
    dimension: int,
) -> Any:
    def run(sharding: Any) -> Any:
        plain = dtypes.dtype_from_number(dtype)
        return lax.broadcasted_iota(plain, shape, dimension, out_sharding=sharding)

    return _with_sharding(run, library, (mesh_axes, mesh_shape, mesh_axis_types), partition_spec)


@restores("explicit_reshape")
def restore_explicit_reshape(
    x: Any,
    *,
    library: Any,
    partition_spec: bytes,
    mesh_axes: tuple[bytes, ...],
    mesh_shape: tuple[int, ...],
    mesh_axis_types: tuple[bytes, ...],
    new_sizes: tuple[int, ...] = (),
    dimensions: tuple[int, ...] | None = None,
) -> Any:
    def run(sharding: Any) -> Any:
        return lax.reshape(x, new_sizes, dimensions, out_sharding=sharding)

    return _with_sharding(run, library, (mesh_axes, mesh_shape, mesh_axis_types), partition_spec)


@restores("explicit_reduce_sum")
def restore_explicit_reduce_sum(
    x: Any,
    *,
    library: Any,
    partition_spec: bytes,
    mesh_axes: tuple[bytes, ...],
    mesh_shape: tuple[int, ...],
    mesh_axis_types: tuple[bytes, ...],
    axes: tuple[int, ...] = (),
) -> Any:
    def run(sharding: Any) -> Any:
        return lax.reduce_sum(x, axes, out_sharding=sharding)

    return _with_sharding(run, library, (mesh_axes, mesh_shape, mesh_axis_types), partition_spec)


def _explicit(*spec: Any) -> NamedSharding:
    return _sharding(AxisType.Explicit, *spec)


example(
    lambda a, b: jnp.einsum(
        "ij,jk->ik",
        jax.sharding.reshard(a, _explicit(None, "data")),
        b,
        out_sharding=_explicit("data", None),
    ),
    f32(3, 4),
    f32(4, 2),
    tolerance=1e-4,
)
example(lambda x: lax.broadcast_in_dim(x, (3, 4), (1,), out_sharding=_explicit("data")), f32(4))
example(
    lambda x: x + lax.broadcasted_iota(np.float32, (3, 4), 0, out_sharding=_explicit("data")),
    f32(3, 4),
)
example(lambda x: lax.reshape(x, (6, 2), out_sharding=_explicit("data")), f32(3, 4))
example(lambda x: lax.reduce_sum(x, (0,), out_sharding=_explicit("data")), f32(3, 4))
