"""Collectives: what devices that run the body of a `jax.shard_map` tell each other.

A node of theirs is only met inside of such a body, which reading gives to `jax.shard_map` again.
What TensorFlow would run for it is what the first device gets where all others hold the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import (
    PRIMITIVE_ATTR,
    LoweringContext,
    example,
    f32,
    lowering,
    restores,
)
from jaxmeta.tracing import meshes


def _names(ctx: LoweringContext, axes: Any) -> tuple[str, ...]:
    """Returns axes by name.

    Raises:
        Exception: some are positions, or no strings.
    """
    names = axes if isinstance(axes, (tuple, list)) else (axes,)
    if not all(isinstance(name, str) for name in names):
        raise ctx.unsupported(f"a collective over axes that are not named by strings: {names}")
    return tuple(names)


def _groups(groups: Any) -> dict[str, Any]:
    """Returns the parameters that record ``axis_index_groups``: the devices, and sizes."""
    if groups is None:
        return {}
    return {
        "group_sizes": tuple(len(group) for group in groups),
        "group_members": tuple(int(member) for group in groups for member in group),
    }


def _read_groups(sizes: tuple[int, ...], members: tuple[int, ...]) -> list[list[int]] | None:
    if not sizes:
        return None
    ends = np.cumsum(sizes)
    return [list(members[end - size : end]) for end, size in zip(ends, sizes, strict=True)]


def _text(names: tuple[bytes, ...]) -> tuple[str, ...]:
    return tuple(name.decode() for name in names)


example(lambda x: jax.vmap(lambda row: lax.psum(row, "i"), axis_name="i")(x), f32(3, 4))

# --- reductions --------------------------------------------------------------------------------


@lowering("psum", "psum_invariant")
def lower_psum(
    ctx: LoweringContext, *arrays: Edge, axes: Any, axis_index_groups: Any = None
) -> list[Edge]:
    if axis_index_groups is None and all(isinstance(axis, int) for axis in axes):
        return _reduce_positions(ctx, "Sum", arrays, axes)
    return [edge for x in arrays for edge in _lower_psum(ctx, x, axes, axis_index_groups)]


def _reduce_positions(
    ctx: LoweringContext, op: str, arrays: Sequence[Edge], axes: Any
) -> list[Edge]:
    """A collective whose axes `jax.vmap` mapped is a reduction over axes of the array."""
    if not axes:
        return [edge for x in arrays for edge in ctx.node("Identity", x)]
    places = ctx.constant([int(axis) for axis in axes], np.int32)
    return [edge for x in arrays for edge in ctx.node(op, x, places)]


def _lower_psum(ctx: LoweringContext, x: Edge, axes: Any, axis_index_groups: Any) -> list[Edge]:
    names = _names(ctx, axes)
    count = meshes.axis_size(names) if axis_index_groups is None else len(axis_index_groups[0])
    return ctx.composite(
        ctx.eqn.primitive.name,
        lambda a: a * np.asarray(count, a.dtype),
        x,
        axes=names,
        **_groups(axis_index_groups),
        count=int(count),
    )


@restores("psum", "psum_invariant")
def restore_psum(
    x: Any,
    *,
    axes: tuple[bytes, ...],
    group_sizes: tuple[int, ...] = (),
    group_members: tuple[int, ...] = (),
) -> Any:
    groups = _read_groups(group_sizes, group_members)
    return lax.psum(x, _text(axes), axis_index_groups=groups)


def _extremum(primitive: str, op: str, run: Callable[..., Any]) -> None:
    @lowering(primitive)
    def lower_extremum(
        ctx: LoweringContext, *arrays: Edge, axes: Any, axis_index_groups: Any = None
    ) -> list[Edge]:
        if axis_index_groups is None and all(isinstance(axis, int) for axis in axes):
            return _reduce_positions(ctx, op, arrays, axes)
        params = {"axes": _names(ctx, axes), **_groups(axis_index_groups)}
        attrs = {f"_jax_{name}": value for name, value in params.items()}
        attrs[PRIMITIVE_ATTR] = primitive
        return [edge for x in arrays for edge in ctx.node("Identity", x, **attrs)]

    @restores(primitive)
    def restore_extremum(
        x: Any,
        *,
        axes: tuple[bytes, ...],
        group_sizes: tuple[int, ...] = (),
        group_members: tuple[int, ...] = (),
    ) -> Any:
        groups = _read_groups(group_sizes, group_members)
        return run(x, _text(axes), axis_index_groups=groups)


_extremum("pmax", "Max", lax.pmax)
_extremum("pmin", "Min", lax.pmin)


@lowering("reduce_scatter")
def lower_reduce_scatter(
    ctx: LoweringContext,
    x: Edge,
    *,
    axis_name: Any,
    scatter_dimension: int,
    axis_index_groups: Any,
    axis_size: int,
    tiled: bool,
) -> list[Edge]:
    def run(a: Any) -> Any:
        total = a * np.asarray(axis_size, a.dtype)
        if not tiled:
            return lax.index_in_dim(total, 0, scatter_dimension, keepdims=False)
        return lax.slice_in_dim(
            total, 0, a.shape[scatter_dimension] // axis_size, 1, scatter_dimension
        )

    return ctx.composite(
        "reduce_scatter",
        run,
        x,
        axis_name=_names(ctx, axis_name),
        scatter_dimension=int(scatter_dimension),
        tiled=bool(tiled),
        axis_size=int(axis_size),
        **_groups(axis_index_groups),
    )


@restores("reduce_scatter")
def restore_reduce_scatter(
    x: Any,
    *,
    axis_name: tuple[bytes, ...],
    scatter_dimension: int,
    tiled: bool,
    group_sizes: tuple[int, ...] = (),
    group_members: tuple[int, ...] = (),
) -> Any:
    return lax.psum_scatter(
        x,
        _text(axis_name),
        scatter_dimension=scatter_dimension,
        axis_index_groups=_read_groups(group_sizes, group_members),
        tiled=tiled,
    )


# --- moves -------------------------------------------------------------------------------------


@lowering("ppermute")
def lower_ppermute(ctx: LoweringContext, x: Edge, *, axis_name: Any, perm: Any) -> list[Edge]:
    pairs = tuple(int(number) for pair in perm for number in pair)
    names = _names(ctx, axis_name)
    return ctx.node(
        "Identity", x, **{PRIMITIVE_ATTR: "ppermute"}, _jax_axis_name=names, _jax_perm=pairs
    )


@restores("ppermute")
def restore_ppermute(x: Any, *, axis_name: tuple[bytes, ...], perm: tuple[int, ...] = ()) -> Any:
    pairs = list(zip(perm[::2], perm[1::2], strict=True))
    return lax.ppermute(x, _text(axis_name), pairs)


@lowering("pbroadcast")
def lower_pbroadcast(ctx: LoweringContext, x: Edge, *, axis_name: Any, source: int) -> list[Edge]:
    attrs = {PRIMITIVE_ATTR: "pbroadcast", "_jax_axis_name": _names(ctx, axis_name)}
    return ctx.node("Identity", x, **attrs, _jax_source=int(source))


@restores("pbroadcast")
def restore_pbroadcast(x: Any, *, axis_name: tuple[bytes, ...], source: int) -> Any:
    return lax.pbroadcast(x, _text(axis_name), source)


@lowering("all_gather", "all_gather_invariant")
def lower_all_gather(
    ctx: LoweringContext,
    x: Edge,
    *,
    all_gather_dimension: int,
    axis_name: Any,
    axis_size: int,
    tiled: bool,
    axis_index_groups: Any = None,
) -> list[Edge]:
    def run(a: Any) -> Any:
        join = jnp.concatenate if tiled else jnp.stack
        return join([a] * axis_size, axis=all_gather_dimension)

    return ctx.composite(
        ctx.eqn.primitive.name,
        run,
        x,
        all_gather_dimension=int(all_gather_dimension),
        axis_name=_names(ctx, axis_name),
        axis_size=int(axis_size),
        tiled=bool(tiled),
        **_groups(axis_index_groups),
    )


def _restore_all_gather(primitive: str, **options: Any) -> None:
    @restores(primitive)
    def restore_all_gather(
        x: Any,
        *,
        all_gather_dimension: int,
        axis_name: tuple[bytes, ...],
        tiled: bool,
        group_sizes: tuple[int, ...] = (),
        group_members: tuple[int, ...] = (),
    ) -> Any:
        return lax.all_gather(
            x,
            _text(axis_name),
            axis=all_gather_dimension,
            tiled=tiled,
            axis_index_groups=_read_groups(group_sizes, group_members),
            **options,
        )


_restore_all_gather("all_gather")
_restore_all_gather("all_gather_invariant", to="invarying")


@lowering("all_to_all")
def lower_all_to_all(
    ctx: LoweringContext,
    x: Edge,
    *,
    split_axis: int,
    concat_axis: int,
    axis_name: Any,
    axis_index_groups: Any,
    tiled: bool,
) -> list[Edge]:
    names = _names(ctx, axis_name)
    count = meshes.axis_size(names) if axis_index_groups is None else len(axis_index_groups[0])

    def run(a: Any) -> Any:
        part = lax.slice_in_dim(a, 0, a.shape[split_axis] // count, 1, split_axis)
        return jnp.concatenate([part] * count, axis=concat_axis)

    return ctx.composite(
        "all_to_all",
        run,
        x,
        split_axis=int(split_axis),
        concat_axis=int(concat_axis),
        axis_name=names,
        tiled=bool(tiled),
        count=count,
        **_groups(axis_index_groups),
    )


@restores("all_to_all")
def restore_all_to_all(
    x: Any,
    *,
    split_axis: int,
    concat_axis: int,
    axis_name: tuple[bytes, ...],
    tiled: bool,
    group_sizes: tuple[int, ...] = (),
    group_members: tuple[int, ...] = (),
) -> Any:
    groups = _read_groups(group_sizes, group_members)
    names = _text(axis_name)
    return meshes.bind_all_to_all(
        x, names[0] if len(names) == 1 else names, split_axis, concat_axis, groups, tiled=tiled
    )


@lowering("ragged_all_to_all")
def lower_ragged_all_to_all(
    ctx: LoweringContext,
    operand: Edge,
    output: Edge,
    input_offsets: Edge,
    send_sizes: Edge,
    output_offsets: Edge,
    recv_sizes: Edge,
    *,
    axis_name: Any,
    axis_index_groups: Any,
) -> list[Edge]:
    return ctx.composite(
        "ragged_all_to_all",
        lambda _, out, *offsets: out,
        operand,
        output,
        input_offsets,
        send_sizes,
        output_offsets,
        recv_sizes,
        axis_name=_names(ctx, axis_name),
        **_groups(axis_index_groups),
    )


@restores("ragged_all_to_all")
def restore_ragged_all_to_all(
    operand: Any,
    output: Any,
    input_offsets: Any,
    send_sizes: Any,
    output_offsets: Any,
    recv_sizes: Any,
    *,
    axis_name: tuple[bytes, ...],
    group_sizes: tuple[int, ...] = (),
    group_members: tuple[int, ...] = (),
) -> Any:
    return lax.ragged_all_to_all(
        operand,
        output,
        input_offsets,
        send_sizes,
        output_offsets,
        recv_sizes,
        axis_name=_text(axis_name),
        axis_index_groups=_read_groups(group_sizes, group_members),
    )


# --- where a device is, and what its values' types say of that ---------------------------------


@lowering("axis_index")
def lower_axis_index(ctx: LoweringContext, *, axis_name: Any) -> list[Edge]:
    names = _names(ctx, axis_name)
    return ctx.composite("axis_index", lambda: jnp.zeros((), np.int32), axis_name=names)


@restores("axis_index")
def restore_axis_index(*, axis_name: tuple[bytes, ...]) -> Any:
    names = _text(axis_name)
    return lax.axis_index(names[0] if len(names) == 1 else names)


@lowering("pvary")
def lower_pvary(
    ctx: LoweringContext, *arrays: Edge, axes: Any, axis_index_groups: Any = None
) -> list[Edge]:
    del axis_index_groups  # of which it has none
    attrs = {PRIMITIVE_ATTR: "pvary", "_jax_axes": _names(ctx, axes)}
    return [edge for x in arrays for edge in ctx.node("Identity", x, **attrs)]


@restores("pvary")
def restore_pvary(x: Any, *, axes: tuple[bytes, ...]) -> Any:
    return lax.pcast(x, _text(axes), to="varying")
