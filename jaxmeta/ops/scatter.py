"""Writing at places that arrays say: the scatters.

`XlaScatter` drops what lies outside, so that JAX's mode FILL_OR_DROP is the op's own. For CLIP, and
for index dtypes that the op does not take, the primitive is a call of a function that clamps first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes, xla_attrs
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops import _computation
from jaxmeta.ops._definition import (
    LoweringContext,
    bools,
    example,
    f32,
    i32,
    kernel,
    lowering,
    restores,
    u32,
)
from jaxmeta.ops._indexing import (
    FAR_IDS,
    IDS,
    INDEX_NUMBERS,
    Mode,
    as_int32,
    index_of,
    mode_from_name,
    vector_of_sizes,
    vectors_last,
)
from jaxmeta.ops._operands import BOOL, ints
from jaxmeta.tracing import jaxprs

# Primitive name to public function and to how it combines an element with its update.
_SCATTERS: Final[dict[str, tuple[Callable[..., Any], Callable[..., Any]]]] = {
    "scatter": (lax.scatter, _computation.second),
    "scatter-add": (lax.scatter_add, lax.add),
    "scatter-sub": (lax.scatter_sub, lax.sub),
    "scatter-mul": (lax.scatter_mul, lax.mul),
    "scatter-min": (lax.scatter_min, lax.min),
    "scatter-max": (lax.scatter_max, lax.max),
}


@lowering(*_SCATTERS)
def lower_scatter(
    ctx: LoweringContext,
    x: Edge,
    indices: Edge,
    updates: Edge,
    *,
    update_jaxpr: Any,
    update_consts: Any,
    dimension_numbers: Any,
    indices_are_sorted: bool,
    unique_indices: bool,
    mode: Any,
) -> list[Edge]:
    if mode not in (Mode.CLIP, Mode.PROMISE_IN_BOUNDS, Mode.FILL_OR_DROP):
        raise ctx.unsupported(f"a scatter of mode {mode}")
    if update_jaxpr is not None:
        update_jaxpr = jaxprs.with_constants(update_jaxpr, update_consts)
    assert indices.shape is not None
    assert updates.shape is not None
    numbers = _with_key_axes(dimension_numbers, len(updates.shape), ctx.key_rank)
    content = xla_attrs.scatter_to_bytes(numbers, len(indices.shape))
    name = ctx.eqn.primitive.name
    is_apply = name == "scatter" and update_jaxpr is not None
    applied = _computation.function_ref(ctx, update_jaxpr, "update") if is_apply else None
    if mode == Mode.CLIP or indices.number not in INDEX_NUMBERS or _is_bool_extremum(ctx, x):
        return ctx.composite(
            name,
            _scatter_inside(ctx.eqn, numbers),
            x,
            indices,
            updates,
            dimension_numbers=content,
            indices_are_sorted=indices_are_sorted,
            unique_indices=unique_indices,
            mode=mode.name,
            update=applied,
        )
    attrs: dict[str, Any] = {}
    if mode != Mode.FILL_OR_DROP:
        attrs["_jax_mode"] = mode.name
    if unique_indices:
        attrs["_jax_unique_indices"] = True
    update = applied or _update_function(ctx, x)
    return ctx.node(
        "XlaScatter",
        x,
        indices,
        updates,
        update_computation=update,
        dimension_numbers=content,
        indices_are_sorted=indices_are_sorted,
        **attrs,
    )


def _with_key_axes(
    numbers: lax.ScatterDimensionNumbers, update_rank: int, key_rank: int
) -> lax.ScatterDimensionNumbers:
    """Returns the dimension numbers where updates end in the data of typed keys."""
    keys = range(update_rank - key_rank, update_rank)
    return numbers._replace(update_window_dims=(*numbers.update_window_dims, *keys))


def _update_function(ctx: LoweringContext, x: Edge) -> Any:
    """Returns the function that combines an element with its update."""
    name = ctx.eqn.primitive.name
    dtype = dtypes.dtype_from_number(x.number)
    return _computation.function_of_scalars(ctx, _SCATTERS[name][1], name, (dtype, dtype))


def _is_bool_extremum(ctx: LoweringContext, x: Edge) -> bool:
    return x.number == BOOL and ctx.eqn.primitive.name != "scatter"


def _scatter_inside(eqn: Any, numbers: lax.ScatterDimensionNumbers) -> Callable[..., Any]:
    """Returns the function of a scatter whose operands are brought into the form XlaScatter takes.

    TensorFlow has no maximum and minimum of bools: these are scattered as bytes.
    """
    params = {**eqn.params, "mode": Mode.FILL_OR_DROP, "dimension_numbers": numbers}

    def run(x: jax.Array, indices: jax.Array, updates: jax.Array) -> jax.Array:
        indices = as_int32(indices)
        if eqn.params["mode"] == Mode.CLIP:
            indices = _clamp(indices, x.shape, updates.shape, numbers)
        if x.dtype != np.bool_ or eqn.primitive.name == "scatter":
            return jnp.asarray(eqn.primitive.bind(x, indices, updates, **params))
        scatter = _SCATTERS[eqn.primitive.name][0]
        as_bytes = [lax.convert_element_type(array, np.uint8) for array in (x, updates)]
        return lax.ne(scatter(as_bytes[0], indices, as_bytes[1], numbers), np.uint8(0))

    return run


def _clamp(
    indices: jax.Array,
    shape: tuple[int, ...],
    update_shape: tuple[int, ...],
    numbers: lax.ScatterDimensionNumbers,
) -> jax.Array:
    """Returns the nearest indices at which the whole window of an update lies inside."""
    single = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    window = iter(update_shape[d] for d in numbers.update_window_dims)
    last = [size - (1 if axis in single else next(window)) for axis, size in enumerate(shape)]
    limits = vector_of_sizes([last[d] for d in numbers.scatter_dims_to_operand_dims], indices.dtype)
    upper = lax.broadcast_in_dim(limits, indices.shape, (indices.ndim - 1,))
    return lax.max(lax.min(indices, upper), jnp.zeros_like(indices))


@kernel("XlaScatter")
def xla_scatter(
    operand: Any,
    scatter_indices: Any,
    updates: Any,
    *,
    update_computation: Any,
    dimension_numbers: bytes,
    indices_are_sorted: bool,
    _jax_mode: bytes = b"FILL_OR_DROP",
    _jax_unique_indices: bool = False,
) -> Any:
    kind = _computation.recognize(update_computation, operand.dtype)
    name = "scatter" if kind == _computation.SECOND else f"scatter-{kind}"
    is_known = name in _SCATTERS
    return _scatter(
        name if is_known else "scatter",
        operand,
        scatter_indices,
        updates,
        dimension_numbers=dimension_numbers,
        indices_are_sorted=indices_are_sorted,
        unique_indices=_jax_unique_indices,
        mode=_jax_mode,
        update=None if is_known else update_computation,
    )


def _scatter(
    name: str,
    x: Any,
    indices: Any,
    updates: Any,
    *,
    dimension_numbers: bytes,
    indices_are_sorted: bool,
    unique_indices: bool,
    mode: bytes,
    update: Any = None,
) -> Any:
    numbers, axis = xla_attrs.scatter_from_bytes(dimension_numbers)
    indices, batching_dims = vectors_last(indices, axis, numbers.scatter_indices_batching_dims)
    options = {
        "dimension_numbers": numbers._replace(scatter_indices_batching_dims=batching_dims),
        "indices_are_sorted": indices_are_sorted,
        "unique_indices": unique_indices,
        "mode": mode_from_name(mode),
    }
    if update is None:
        return _SCATTERS[name][0](x, indices, updates, **options)
    # `lax.scatter_apply` takes no updates: it would add an operand of its own.
    pair = _computation.scalars(x.dtype, x.dtype)
    jaxpr = jaxprs.make_jaxpr(lambda old, new: update(old, new)[0], pair)
    return jaxprs.primitive("scatter").bind(
        x,
        indices,
        updates,
        update_jaxpr=jaxprs.open_jaxpr(jaxpr),
        update_consts=tuple(jaxprs.jaxpr_constants(jaxpr)),
        **options,
    )


def _register_restored_scatter(name: str) -> None:
    @restores(name)
    def restore_scatter(
        x: Any,
        indices: Any,
        updates: Any,
        *,
        dimension_numbers: bytes,
        indices_are_sorted: bool,
        unique_indices: bool,
        mode: bytes,
        update: Any = None,
    ) -> Any:
        return _scatter(
            name,
            x,
            indices,
            updates,
            dimension_numbers=dimension_numbers,
            indices_are_sorted=indices_are_sorted,
            unique_indices=unique_indices,
            mode=mode,
            update=update,
        )


for _name in _SCATTERS:
    _register_restored_scatter(_name)

_ROWS = f32(4, 3)
_FAR_ROWS = f32(6, 3)

example(lambda x, i, u: x.at[i].set(u), f32(9, 3), i32(1), f32(1, 3))
example(lambda x, i, u: x.at[i].set(u), f32(5, 3), i32(low=-3, high=-3), f32(3))
example(lambda x, i, u: x.at[i].add(u), f32(5, 3), IDS, _ROWS)
example(lambda x, i, u: x.at[i].add(u), f32(5, 3), FAR_IDS, _FAR_ROWS)
example(lambda x, i, u: x.at[i].subtract(u), f32(5, 3), FAR_IDS, _FAR_ROWS)
example(lambda x, i, u: x.at[i].multiply(u, unique_indices=True), f32(9, 3), i32(1), f32(1, 3))
example(lambda x, i, u: x.at[i].multiply(u), f32(5, 3), IDS, _ROWS, gradient=False)
example(lambda x, i, u: x.at[i].max(u), f32(5, 3), FAR_IDS, _FAR_ROWS)
example(lambda x, i, u: x.at[i].min(u), f32(5, 3), IDS, _ROWS)
example(lambda x, i, u: x.at[i].max(u), i32(5, 3), IDS, i32(4, 3), gradient=False)
example(
    lambda x, i, u: x.at[i].max(jnp.where(u > 0, jnp.nan, u)),
    f32(5, 3),
    IDS,
    _ROWS,
    gradient=False,
    not_in_tensorflow="TensorFlow's maximum in a scatter does not keep every NaN",
)
example(lambda x, i, u: x.at[i].subtract(u, mode="clip"), f32(5, 3), FAR_IDS, _FAR_ROWS)
example(
    lambda x, i, u: x.at[i].multiply(u, mode="clip"),
    f32(5, 3),
    FAR_IDS,
    _FAR_ROWS,
    gradient=False,
)
example(lambda x, i, u: x.at[:, i].add(u), f32(3, 5), IDS, f32(3, 4))
example(lambda x, i, j, u: x.at[i, j].add(u), f32(5, 3), IDS, i32(4, low=-2, high=-2), f32(4))
example(lambda x, i, u: x.at[i].add(u, mode="clip"), f32(5, 3), FAR_IDS, _FAR_ROWS)
example(lambda x, i, u: x.at[i].set(u, mode="clip"), f32(5, 3), i32(1, low=3, high=9), f32(1, 3))
example(
    lambda x, i, u: x.at[i].add(
        u, mode="promise_in_bounds", unique_indices=True, indices_are_sorted=True
    ),
    f32(9, 3),
    i32(1, low=0),
    f32(1, 3),
)
example(lambda x, i: x.at[i].apply(jnp.sin), f32(9, 3), i32(1, low=0), gradient=False)
example(
    lambda x, i: x.at[i].apply(jnp.sin, mode="clip"),
    f32(9, 3),
    i32(1, low=20, high=20),
    gradient=False,
)
example(lambda x, i, u: x.at[i].set(u), bools(5), i32(1, low=0), bools(1), gradient=False)
example(lambda x, i, u: x.at[i].max(u), bools(5), IDS, bools(4), gradient=False)
example(lambda x, i, u: x.at[i].min(u), bools(5), IDS, bools(4), gradient=False)
example(lambda x, i, u: x.at[i].add(u), f32(5, 3), u32(4, high=6), _ROWS)
example(
    lambda x, i, u: jax.vmap(lambda a, b, c: a.at[b].add(c))(x, i, u),
    f32(3, 5),
    i32(3, 4, low=-2, high=0),
    f32(3, 4),
)
example(
    lambda x, i, u: jnp.put_along_axis(x, i, u, axis=1, inplace=False),
    f32(3, 5),
    i32(3, 1, low=0, high=0),
    f32(3, 1),
)
example(lambda x, i: jax.ops.segment_sum(x, i, num_segments=4), f32(6, 2), i32(6, low=-1, high=1))
example(lambda x, i: jax.ops.segment_max(x, i, num_segments=3), f32(6, 2), i32(6, low=-1, high=1))
example(
    lambda data, i, new: jax.random.key_data(
        jax.random.wrap_key_data(data).at[i].set(jax.random.wrap_key_data(new))
    ),
    u32(5, 2),
    i32(1, low=0, high=0),
    u32(1, 2),
    gradient=False,
)

# --- TensorFlow's own --------------------------------------------------------------------------


@kernel("ScatterNd", static=("shape",))
def scatter_nd(indices: Any, updates: Any, shape: np.ndarray[Any, Any]) -> Any:
    return tensor_scatter_add(jnp.zeros(ints(shape), updates.dtype), indices, updates)


@kernel("TensorScatterAdd")
def tensor_scatter_add(tensor: Any, indices: Any, updates: Any) -> Any:
    return jnp.asarray(tensor).at[index_of(indices)].add(updates, mode="drop")


@kernel("TensorScatterSub")
def tensor_scatter_sub(tensor: Any, indices: Any, updates: Any) -> Any:
    return jnp.asarray(tensor).at[index_of(indices)].subtract(updates, mode="drop")


@kernel("TensorScatterUpdate")
def tensor_scatter_update(tensor: Any, indices: Any, updates: Any) -> Any:
    return jnp.asarray(tensor).at[index_of(indices)].set(updates, mode="drop")


@kernel("TensorScatterMax")
def tensor_scatter_max(tensor: Any, indices: Any, updates: Any) -> Any:
    return jnp.asarray(tensor).at[index_of(indices)].max(updates, mode="drop")


@kernel("TensorScatterMin")
def tensor_scatter_min(tensor: Any, indices: Any, updates: Any) -> Any:
    return jnp.asarray(tensor).at[index_of(indices)].min(updates, mode="drop")
