"""`jax.shard_map`: a function that each device of a mesh runs on its part of arrays.

The node is a call of a library function that computes the same on one device, with a leading axis
for the devices. TensorFlow runs that, and so does reading where the mesh at hand has another shape
than the traced one, for which the parts were too large or too small. On a mesh of the traced shape,
reading takes the body, which is a library function of its own, to `jax.shard_map` again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from jaxmeta import errors, shardings, values
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import (
    JAX_ATTR_PREFIX,
    LoweringContext,
    example,
    f32,
    lowering,
    restores,
)
from jaxmeta.ops._one_device import run_on_one_device, spread_of
from jaxmeta.ops._operands import avals_of
from jaxmeta.tracing import jaxprs, meshes


@lowering("shard_map")
def lower_shard_map(
    ctx: LoweringContext,
    *inputs: Edge,
    jaxpr: Any,
    mesh: Any,
    in_specs: Any,
    out_specs: Any,
    check_vma: bool,
    newly_manual_axes: Any,
) -> list[Edge]:
    manual = tuple(axis for axis in mesh.axis_names if axis in newly_manual_axes)
    try:
        attrs = shardings.mesh_to_attrs(mesh)
        specs = [tuple(map(shardings.spec_to_text, side)) for side in (in_specs, out_specs)]
    except errors.ShardingError as error:
        raise ctx.unsupported(str(error)) from None
    body = meshes.inside_shard_map(
        mesh, manual, check_vma, lambda: ctx.function(jaxpr, "shard_map_body")
    )
    function, has_form = _one_device_form(ctx, inputs)
    return ctx.call(
        function,
        *inputs,
        primitive="shard_map",
        body=values.FunctionRef(body),
        in_specs=specs[0] or None,
        out_specs=specs[1] or None,
        check_vma=bool(check_vma),
        manual_axes=manual,
        is_mesh_needed=None if has_form else True,
        **{name.removeprefix(JAX_ATTR_PREFIX): value for name, value in attrs.items()},
    )


def _one_device_form(ctx: LoweringContext, inputs: tuple[Edge, ...]) -> tuple[str, bool]:
    """Returns the function that computes the same on one device, and whether there is one.

    Where there is none, its results are placeholders, so that what runs it says so.
    """
    params = ctx.eqn.params
    avals = [jaxprs.without_sharding(atom.aval) for atom in ctx.eqn.invars]

    def run(*arrays: Any) -> list[Any]:
        return run_on_one_device(params["jaxpr"], spread_of(params), arrays)

    try:
        if meshes.is_inside_shard_map():  # whose own form has that of this one in it
            raise NotImplementedError
        jaxpr = jaxprs.make_jaxpr(run, avals)
    except NotImplementedError:
        return ctx.build_function("shard_map", avals_of(inputs), _placeholders), False
    return ctx.function(jaxpr, "shard_map"), True


def _placeholders(ctx: LoweringContext, inputs: list[Edge]) -> list[Edge]:
    del inputs
    return [
        edge
        for aval in ctx.out_avals
        for edge in ctx.node("Placeholder", dtype=aval.dtype, shape=aval.shape, name="needs_a_mesh")
    ]


@restores("shard_map")
def restore_shard_map(
    *inputs: Any,
    library: Any,
    function: Any,
    node_name: str,
    body: Any,
    mesh_axes: tuple[bytes, ...],
    mesh_shape: tuple[int, ...],
    mesh_axis_types: tuple[bytes, ...] = (),
    in_specs: tuple[bytes, ...] = (),
    out_specs: tuple[bytes, ...] = (),
    check_vma: bool = True,
    manual_axes: tuple[bytes, ...] = (),
    is_mesh_needed: bool = False,
) -> Any:
    recorded = shardings.mesh_from_attrs(mesh_axes, mesh_shape, mesh_axis_types)
    is_nested = meshes.is_inside_shard_map()
    if not is_nested and not library.placement.has_recorded_shape(recorded):
        if is_mesh_needed:
            sizes = ", ".join(f"{name}={n}" for name, n in shardings.shape_of(recorded).items())
            raise errors.ShardingError(
                f"node {node_name!r}: this shard_map was traced for a mesh of {sizes}, and has no "
                "form for another one, or for one device; load it onto such a mesh"
            )
        return function(*inputs)
    return jax.shard_map(
        lambda *parts: tuple(body(*parts)),
        mesh=None if is_nested else library.placement.mesh(recorded),
        in_specs=tuple(map(shardings.spec_from_text, in_specs)),
        out_specs=tuple(map(shardings.spec_from_text, out_specs)),
        axis_names=frozenset(axis.decode() for axis in manual_axes),
        check_vma=check_vma,
    )(*inputs)


# --- examples, on a mesh of one device ---------------------------------------------------------


def _on_mesh(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Returns a function of arrays whose rows are spread over a mesh."""

    def run(*arrays: Any) -> Any:
        mesh = jax.make_mesh(
            (1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1]
        )
        spec = PartitionSpec("data")
        in_specs = (spec,) * len(arrays)
        run_parts = jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=spec, **options)
        return run_parts(*arrays)

    return run


_GROUPS = [[0]]


def _vary(x: Any) -> Any:
    return lax.pcast(x, "data", to="varying")


example(_on_mesh(lambda x: jnp.tanh(x) * 2.0), f32(4, 3))
example(_on_mesh(lambda x, y: _vary(lax.psum(x, "data")) + y), f32(4, 3), f32(4, 3))
example(_on_mesh(lambda x: lax.pmax(x, "data") + x), f32(4, 3), gradient=False)
example(_on_mesh(lambda x: lax.pmin(x, ("data",)) + x), f32(4, 3), gradient=False)
example(_on_mesh(lambda x: lax.pmean(x, "data") + x), f32(4, 3))
example(_on_mesh(lambda x: lax.psum(x, "data", axis_index_groups=_GROUPS), check_vma=False), f32(4))
example(_on_mesh(lambda x: lax.ppermute(x, "data", [(0, 0)])), f32(4, 3))
example(_on_mesh(lambda x: lax.all_gather(x, "data", tiled=True)), f32(4, 3))
example(_on_mesh(lambda x: lax.all_gather(x, "data", axis=1)), f32(4, 3))
example(_on_mesh(lambda x: x + lax.all_gather(x, "data", tiled=True, to="invarying")), f32(4, 3))
example(_on_mesh(lambda x: lax.all_to_all(x, "data", 0, 1, tiled=True)), f32(4, 3))
example(_on_mesh(lambda x: lax.psum_scatter(x, "data", tiled=True)), f32(4, 3))
example(_on_mesh(lambda x: x + lax.axis_index("data")), f32(4, 3))
