"""Contractions of an array whose rows belong to groups of different sizes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes, xla_attrs
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import LoweringContext, example, f32, lowering, restores
from jaxmeta.ops._operands import ints
from jaxmeta.tracing import meshes


@lowering("ragged_dot_general")
def lower_ragged_dot_general(
    ctx: LoweringContext,
    lhs: Edge,
    rhs: Edge,
    group_sizes: Edge,
    *,
    ragged_dot_dimension_numbers: Any,
    precision: Any,
    preferred_element_type: Any,
    group_offset: Any,
    out_sharding: Any = None,
) -> list[Edge]:
    if group_offset is not None or not meshes.is_trivial_sharding(out_sharding):
        raise ctx.unsupported("a group_offset or out_sharding cannot be expressed")
    numbers = ragged_dot_dimension_numbers
    (contract, batch) = numbers.dot_dimension_numbers
    axes = {
        "lhs_contracting": ints(contract[0]),
        "rhs_contracting": ints(contract[1]),
        "lhs_batch": ints(batch[0]),
        "rhs_batch": ints(batch[1]),
        "lhs_ragged": ints(numbers.lhs_ragged_dimensions),
        "rhs_group": ints(numbers.rhs_group_dimensions),
    }
    options = {"precision": precision, "preferred_element_type": preferred_element_type}

    def dense(x: Any, y: Any, sizes: Any) -> Any:
        return _dense(x, y, sizes, _numbers(**axes), options)

    return ctx.composite(
        "ragged_dot_general",
        dense,
        lhs,
        rhs,
        group_sizes,
        **{name: places or None for name, places in axes.items()},
        precision=xla_attrs.precision_to_names(precision) or None,
        preferred_element_type=None
        if preferred_element_type is None
        else np.dtype(preferred_element_type),
    )


def _numbers(
    lhs_contracting: tuple[int, ...] = (),
    rhs_contracting: tuple[int, ...] = (),
    lhs_batch: tuple[int, ...] = (),
    rhs_batch: tuple[int, ...] = (),
    lhs_ragged: tuple[int, ...] = (),
    rhs_group: tuple[int, ...] = (),
) -> lax.RaggedDotDimensionNumbers:
    dot = (lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch)
    return lax.RaggedDotDimensionNumbers(dot, list(lhs_ragged), list(rhs_group))


def _dense(x: Any, y: Any, sizes: Any, numbers: Any, options: dict[str, Any]) -> Any:
    """Returns the contraction of a copy of x for each group, in which only its rows are left."""
    (contract, batch) = numbers.dot_dimension_numbers
    (ragged,) = numbers.lhs_ragged_dimensions
    if ragged in batch[0]:  # the groups' sizes make no difference there
        return lax.dot_general(x, y, (contract, batch), **options)
    shape = (sizes.shape[-1], *x.shape)
    axes = () if sizes.ndim == 1 else _axes_before(x.ndim, numbers)
    places = lax.broadcasted_iota(sizes.dtype, shape, ragged + 1)

    def over_x(bounds: Any) -> Any:
        return lax.broadcast_in_dim(
            jnp.moveaxis(bounds, -1, 0), shape, (0, *(axis + 1 for axis in axes))
        )

    ends = jnp.cumsum(sizes, axis=-1)
    mask = (places >= over_x(ends - sizes)) & (places < over_x(ends))
    copies = jnp.where(mask, x[None], 0)
    if ragged in contract[0]:
        return jax.vmap(lambda part: lax.dot_general(part, y, (contract, batch), **options))(copies)
    (group,) = numbers.rhs_group_dimensions
    moved = tuple(tuple(axis + 1 for axis in axes) for axes in (contract[0], batch[0]))
    both = ((0, *moved[0]), (group, *contract[1])), (moved[1], batch[1])
    return lax.dot_general(copies, y, both, **options)


def _axes_before(rank: int, numbers: Any) -> list[int]:
    """Returns the axes of x by which the sizes of groups may differ, in the order they have."""
    ((contract, _), (batch, _)) = numbers.dot_dimension_numbers
    (ragged,) = numbers.lhs_ragged_dimensions
    others = [axis for axis in range(rank) if axis not in (*contract, *batch)]
    same_kind = list(contract) if ragged in contract else others
    return [*batch, *same_kind[: same_kind.index(ragged)]]


@restores("ragged_dot_general")
def restore_ragged_dot_general(
    lhs: Any,
    rhs: Any,
    group_sizes: Any,
    *,
    lhs_contracting: tuple[int, ...] = (),
    rhs_contracting: tuple[int, ...] = (),
    lhs_batch: tuple[int, ...] = (),
    rhs_batch: tuple[int, ...] = (),
    lhs_ragged: tuple[int, ...] = (),
    rhs_group: tuple[int, ...] = (),
    precision: tuple[bytes, ...] = (),
    preferred_element_type: int = 0,
) -> Any:
    dtype = dtypes.dtype_from_number(preferred_element_type) if preferred_element_type else None
    return lax.ragged_dot_general(
        lhs,
        rhs,
        group_sizes,
        _numbers(lhs_contracting, rhs_contracting, lhs_batch, rhs_batch, lhs_ragged, rhs_group),
        precision=xla_attrs.precision_from_names(precision),
        preferred_element_type=dtype,
    )


def _groups(total: Any) -> Any:
    """Returns the sizes of three groups, whose sum is 6."""
    return jnp.asarray([1, 2, 3], np.int32) + jnp.asarray(0 * total.sum(), np.int32)


example(
    lambda x, y: lax.ragged_dot(x, y, _groups(x)),
    f32(6, 4),
    f32(3, 4, 2),
    tolerance=1e-4,
    gradient=False,
)
example(
    lambda x, y: lax.ragged_dot_general(
        x, y, _groups(x), lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
    ),
    f32(6, 4),
    f32(6, 2),
    tolerance=1e-4,
    gradient=False,
)
example(
    lambda x, y: lax.ragged_dot_general(
        x,
        y,
        _groups(x),
        lax.RaggedDotDimensionNumbers((((2,), (2,)), ((0,), (0,))), [1], [1]),
        preferred_element_type=np.float32,
    ),
    f32(2, 6, 4),
    f32(2, 3, 4, 5),
    tolerance=1e-4,
    gradient=False,
)
example(
    lambda x, y: lax.ragged_dot_general(
        x,
        y,
        jnp.stack([_groups(x), _groups(x)[::-1]]),
        lax.RaggedDotDimensionNumbers((((2,), (2,)), ((0,), (0,))), [1], [1]),
    ),
    f32(2, 6, 4),
    f32(2, 3, 4, 5),
    tolerance=1e-4,
    gradient=False,
)
example(
    lambda x, y: lax.ragged_dot_general(
        x,
        y,
        jnp.stack([_groups(x), _groups(x)[::-1]]),
        lax.RaggedDotDimensionNumbers((((1,), (1,)), ((0,), (0,))), [1], []),
    ),
    f32(2, 6, 4),
    f32(2, 6, 5),
    tolerance=1e-4,
    gradient=False,
)
