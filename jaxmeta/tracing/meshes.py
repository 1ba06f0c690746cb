"""What jaxprs and arrays say of meshes: shardings, axes, and the bodies of `jax.shard_map`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jax
import numpy as np
from jax import lax

from jaxmeta import errors


def context_mesh(eqn: Any) -> Any:
    """Returns the `AbstractMesh` in whose context the eqn was traced; an empty one where none."""
    return eqn.ctx.cur_abstract_mesh


def is_on_mesh(aval: Any) -> bool:
    """Returns whether the type of an array says how it lies on a mesh."""
    mesh = getattr(getattr(aval, "sharding", None), "mesh", None)
    return mesh is not None and not mesh.empty


def is_inside_shard_map() -> bool:
    """Returns whether the body of a `jax.shard_map` is being traced just now."""
    return jax.sharding.AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types


def inside_shard_map(
    mesh: Any, axes: Sequence[str], check_vma: bool, run: Callable[[], Any]
) -> Any:
    """Returns what a function returns that is called where a mesh's axes are manual.

    There, and only there, bodies of `jax.shard_map` can be traced.
    """
    found: list[Any] = []

    def body() -> jax.Array:
        found.append(run())
        return jax.numpy.zeros(())

    is_nested = is_inside_shard_map()
    spread = jax.shard_map(
        body,
        mesh=None if is_nested else getattr(mesh, "abstract_mesh", mesh),
        in_specs=(),
        out_specs=jax.sharding.PartitionSpec(),
        axis_names=frozenset(axes),
        check_vma=check_vma,
    )
    jax.eval_shape(spread)
    return found[0]


def axis_size(axes: Sequence[str]) -> int:
    """Returns on how many devices the body of a `jax.shard_map` runs along some axes."""
    return int(np.prod([lax.axis_size(axis) for axis in axes], dtype=np.int64))


def bind_all_to_all(
    x: Any, axis_name: Any, split_axis: int, concat_axis: int, groups: Any, *, tiled: bool
) -> Any:
    """Binds ``all_to_all``; `lax.all_to_all` would reshape what is not tiled once more."""
    return lax.all_to_all_p.bind(
        x,
        axis_name=axis_name,
        split_axis=split_axis,
        concat_axis=concat_axis,
        axis_index_groups=groups and tuple(map(tuple, groups)),
        tiled=tiled,
    )


SHARDING_PARAMS: Final = ("sharding", "out_sharding")
"""The parameters of primitives that say what the sharding of the result is to be."""


def is_trivial_sharding(sharding: Any) -> bool:
    """Returns whether a sharding of a result says nothing, for no axis of its mesh is explicit."""
    mesh = getattr(sharding, "mesh", None)
    return sharding is None or (
        mesh is not None and jax.sharding.AxisType.Explicit not in mesh.axis_types
    )


def has_explicit_sharding(eqn: Any) -> bool:
    """Returns whether an eqn is told the sharding of its result, as a part of that one's type."""
    return eqn.primitive.name != "sharding_constraint" and any(
        not is_trivial_sharding(eqn.params.get(name)) for name in SHARDING_PARAMS
    )


def jit_shardings(
    jitted: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Any], list[Any]]:
    """Returns the shardings that a jitted function was given, for each array in and out.

    What was left to the compiler is None.

    Raises:
        GraphError: it has options for the compiler, which are no part of a program.
    """
    try:
        outer = jax.make_jaxpr(jitted)(*args, **kwargs)
    except ValueError as error:
        if "`compiler_options`" not in str(error):
            raise
        raise errors.GraphError(
            "the function is under jax.jit with compiler_options, which have no place in a file; "
            "leave them out here, and give them to jax.jit(run[name], compiler_options=...) later"
        ) from None
    eqns = [eqn for eqn in outer.eqns if "out_shardings" in eqn.params]
    if len(eqns) != 1:  # it was inlined, and had none
        return [], []
    params = eqns[0].params
    ins, outs = (
        [None if is_unspecified(sharding) else sharding for sharding in params[name]]
        for name in ("in_shardings", "out_shardings")
    )
    return ins, outs


def is_unspecified(sharding: Any) -> bool:
    """Returns whether a sharding of jit was left to the compiler."""
    return type(sharding).__name__ == "UnspecifiedValue"
