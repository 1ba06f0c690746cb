"""Indexing by arrays: gather and the scatters.

`XlaGather` clamps indices and `XlaScatter` drops what lies outside, so that JAX's modes CLIP and
FILL_OR_DROP are the ops' own for one of the two each; for the other, and for index dtypes that
the ops do not take, the primitive is a call of a function that masks or clamps first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes, errors, jaxprs, xla_attrs
from jaxmeta.graph import Edge
from jaxmeta.ops import _computation
from jaxmeta.ops._definition import (
    LoweringContext,
    Spec,
    bools,
    example,
    f32,
    i32,
    kernel,
    lowering,
    restores,
    u32,
)
from jaxmeta.values import FunctionRef

_BOOL: Final = dtypes.dtype_to_number(np.bool_)
_INDEX_NUMBERS: Final = frozenset(map(dtypes.dtype_to_number, (np.int32, np.int64)))
_INT32_MAX: Final = np.iinfo(np.int32).max
_Mode: Any = lax.GatherScatterMode


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in np.ravel(values))


def _mode_from_name(name: bytes) -> Any:
    try:
        return _Mode[name.decode()]
    except KeyError:
        raise errors.AttrError(f"this JAX knows no gather mode named {name!r}") from None


def _scalar_from_text(text: str, dtype: Any) -> Any:
    """Returns the Python scalar of which ``text`` is the `str`; attrs hold floats in 32 bits."""
    if dtype == np.bool_:
        return text == "True"
    if jnp.issubdtype(dtype, np.integer):
        return int(text)
    return complex(text) if jnp.issubdtype(dtype, np.complexfloating) else float(text)


def _as_int32(indices: jax.Array) -> jax.Array:
    """Returns indices as int32 or int64; large unsigned ones stay out of every array's range."""
    if indices.dtype in (np.int32, np.int64):
        return indices
    if indices.dtype.kind == "u" and indices.dtype.itemsize >= np.dtype(np.int32).itemsize:
        indices = lax.min(indices, np.asarray(_INT32_MAX, indices.dtype))
    return lax.convert_element_type(indices, np.int32)


def _vectors_last(
    indices: Any, axis: int, batching_dims: Sequence[int]
) -> tuple[Any, tuple[int, ...]]:
    """Returns indices whose vectors lie along the last axis, as JAX has them, and their batch dims.

    TensorFlow's programs put them along any axis, or along none where they are scalars.
    """
    if axis == indices.ndim:
        return lax.expand_dims(indices, (axis,)), tuple(batching_dims)
    if axis == indices.ndim - 1:
        return indices, tuple(batching_dims)
    return jnp.moveaxis(indices, axis, -1), tuple(d - (d > axis) for d in batching_dims)


# --- gather ------------------------------------------------------------------------------------


@lowering("gather")
def lower_gather(
    ctx: LoweringContext,
    x: Edge,
    indices: Edge,
    *,
    dimension_numbers: Any,
    slice_sizes: Any,
    unique_indices: bool,
    indices_are_sorted: bool,
    mode: Any,
    fill_value: Any,
) -> list[Edge]:
    if mode not in (_Mode.CLIP, _Mode.PROMISE_IN_BOUNDS, _Mode.FILL_OR_DROP):
        raise ctx.unsupported(f"a gather of mode {mode}")
    assert x.shape is not None
    assert indices.shape is not None
    out_rank, key_rank = len(ctx.out_avals[0].shape), ctx.key_rank
    # The axes of a key's data are gathered whole.
    sizes = (*_ints(slice_sizes), *_ints(x.shape[len(x.shape) - key_rank :]))
    numbers = dimension_numbers._replace(
        offset_dims=(*dimension_numbers.offset_dims, *range(out_rank - key_rank, out_rank))
    )
    content = xla_attrs.gather_to_bytes(numbers, len(indices.shape))
    if mode == _Mode.FILL_OR_DROP or indices.number not in _INDEX_NUMBERS:
        fill = None if fill_value is None else np.asarray(fill_value, ctx.out_avals[0].dtype)
        return ctx.composite(
            "gather",
            lambda a, i: _gather_or_fill(a, _as_int32(i), numbers, sizes, fill),
            x,
            indices,
            dimension_numbers=content,
            slice_sizes=sizes,
            indices_are_sorted=indices_are_sorted,
            unique_indices=unique_indices,
            mode=mode.name,
            fill_value=None if fill is None else str(fill.item()),
        )
    attrs: dict[str, Any] = {}
    if mode != _Mode.CLIP:
        attrs["_jax_mode"] = mode.name
    if unique_indices:
        attrs["_jax_unique_indices"] = True
    return ctx.node(
        "XlaGather",
        x,
        indices,
        ctx.constant(sizes, dtypes.dtype_from_number(indices.number)),  # one attr for both
        dimension_numbers=content,
        indices_are_sorted=indices_are_sorted,
        **attrs,
    )


def _gather_or_fill(
    x: jax.Array,
    indices: jax.Array,
    numbers: lax.GatherDimensionNumbers,
    sizes: tuple[int, ...],
    fill: np.ndarray[Any, Any] | None,
) -> jax.Array:
    """Gathers; puts ``fill`` where an index vector lies outside, unless it is None."""
    gathered = lax.gather(x, indices, numbers, sizes, mode=_Mode.CLIP)
    if fill is None:
        return gathered
    axis = indices.ndim - 1
    last = np.asarray([x.shape[d] - sizes[d] for d in numbers.start_index_map], indices.dtype)
    is_inside = lax.bitwise_and(
        lax.ge(indices, jnp.zeros_like(indices)),
        lax.le(indices, lax.broadcast_in_dim(last, indices.shape, (axis,))),
    )
    batch_dims = [d for d in range(gathered.ndim) if d not in numbers.offset_dims]
    return lax.select(
        lax.broadcast_in_dim(lax.reduce_and(is_inside, [axis]), gathered.shape, batch_dims),
        gathered,
        lax.full_like(gathered, fill),
    )


@kernel("XlaGather", static=("slice_sizes",))
def xla_gather(
    operand: Any,
    start_indices: Any,
    slice_sizes: np.ndarray[Any, Any],
    *,
    dimension_numbers: bytes,
    indices_are_sorted: bool,
    _jax_mode: bytes = b"CLIP",
    _jax_unique_indices: bool = False,
) -> Any:
    return restore_gather(
        operand,
        start_indices,
        dimension_numbers=dimension_numbers,
        slice_sizes=_ints(slice_sizes),
        indices_are_sorted=indices_are_sorted,
        unique_indices=_jax_unique_indices,
        mode=_jax_mode,
    )


@restores("gather")
def restore_gather(
    x: Any,
    indices: Any,
    *,
    dimension_numbers: bytes,
    slice_sizes: tuple[int, ...],
    indices_are_sorted: bool,
    unique_indices: bool,
    mode: bytes,
    fill_value: bytes = b"",
) -> Any:
    numbers, axis = xla_attrs.gather_from_bytes(dimension_numbers)
    indices, batching_dims = _vectors_last(indices, axis, numbers.start_indices_batching_dims)
    return lax.gather(
        x,
        indices,
        numbers._replace(start_indices_batching_dims=batching_dims),
        slice_sizes,
        unique_indices=unique_indices,
        indices_are_sorted=indices_are_sorted,
        mode=_mode_from_name(mode),
        fill_value=_scalar_from_text(fill_value.decode(), x.dtype) if fill_value else None,
    )


_IDS = i32(4, low=-2, high=1)
_FAR_IDS = i32(6, low=-9, high=5)

example(lambda x, i: x[i], f32(5, 3), _IDS)
example(lambda x, i: x[i], f32(5, 3), _FAR_IDS)
example(lambda x, i, j: x[i, j], f32(5, 3), _IDS, _IDS)
example(lambda x, i: x[:, i], f32(3, 5), i32(2, 2, low=0, high=0))
example(lambda x, i: x[i], f32(5, 3), i32(low=-3, high=-2))
example(lambda x, i: jnp.take(x, i, axis=0), f32(5, 3), _FAR_IDS)
example(lambda x, i: jnp.take(x, i, axis=0), i32(5, 3), _FAR_IDS, gradient=False)
example(lambda x, i: jnp.take(x, i, axis=0), bools(5, 3), _FAR_IDS, gradient=False)
example(lambda x, i: x.at[i].get(mode="clip"), f32(5, 3), _FAR_IDS)
example(lambda x, i: x.at[i].get(mode="fill", fill_value=7.0), f32(5, 3), _FAR_IDS)
example(
    lambda x, i: x.at[i].get(mode="fill", fill_value=1 + 2j),
    Spec((5, 3), np.complex64),
    _FAR_IDS,
    gradient=False,
)
example(
    lambda x, i: x.at[i].get(mode="promise_in_bounds", indices_are_sorted=True), f32(9, 3), i32(4)
)
example(lambda x, i: x.at[i].get(unique_indices=True), f32(9, 3), i32(1, low=0))
example(lambda x, i: jnp.take(x, i, axis=0), f32(5, 3), u32(4, high=3))
example(lambda x, i: x.at[i].get(mode="clip"), f32(5, 3), Spec((4,), np.uint8, 0, 9))
example(lambda x, i: jnp.take_along_axis(x, i, axis=1), f32(3, 5), i32(3, 2, low=0, high=0))
example(lambda x, i: jax.vmap(lambda a, b: a[b])(x, i), f32(3, 5, 2), i32(3, 4, low=-2, high=0))
example(lambda x, i: jax.vmap(lambda b: x[b])(i), f32(5, 2), i32(3, 4, low=0, high=0))
example(lambda x, i: jax.vmap(lambda a: a[i])(x), f32(3, 5, 2), _IDS)
example(lambda x, i: jax.vmap(lambda a, b: jnp.take(a, b, axis=0))(x, i), f32(3, 5, 2), i32(3, 4))
example(
    lambda x, i: jax.grad(lambda table: jnp.sum(jnp.take(table, i, axis=0) ** 2))(x),
    f32(7, 3),
    i32(2, 4, low=0, high=2),
)
example(
    lambda data, i: jax.random.key_data(jax.random.wrap_key_data(data)[i]),
    u32(5, 2),
    i32(3, low=0, high=1),
    gradient=False,
)
example(lambda x, i: lax.dynamic_slice_in_dim(x, i, 2, axis=0), f32(5, 3), i32(low=-3, high=-3))

# --- scatter -----------------------------------------------------------------------------------

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
    if mode not in (_Mode.CLIP, _Mode.PROMISE_IN_BOUNDS, _Mode.FILL_OR_DROP):
        raise ctx.unsupported(f"a scatter of mode {mode}")
    if update_consts:
        raise ctx.unsupported("a scatter whose update function closes over constants")
    assert indices.shape is not None
    assert updates.shape is not None
    update_rank, key_rank = len(updates.shape), ctx.key_rank
    numbers = dimension_numbers._replace(
        update_window_dims=(
            *dimension_numbers.update_window_dims,
            *range(update_rank - key_rank, update_rank),
        )
    )
    content = xla_attrs.scatter_to_bytes(numbers, len(indices.shape))
    name = ctx.eqn.primitive.name
    is_apply = name == "scatter" and update_jaxpr is not None
    if mode == _Mode.CLIP or indices.number not in _INDEX_NUMBERS or _is_bool_extremum(ctx, x):
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
            update=_apply_function(ctx, update_jaxpr) if is_apply else None,
        )
    attrs: dict[str, Any] = {}
    if mode != _Mode.FILL_OR_DROP:
        attrs["_jax_mode"] = mode.name
    if unique_indices:
        attrs["_jax_unique_indices"] = True
    if is_apply:
        update = _apply_function(ctx, update_jaxpr)
    else:
        dtype = dtypes.dtype_from_number(x.number)
        update = _computation.function_of_scalars(ctx, _SCATTERS[name][1], name, (dtype, dtype))
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


def _apply_function(ctx: LoweringContext, jaxpr: Any) -> FunctionRef:
    return FunctionRef(ctx.function(jaxpr, "update"))


def _is_bool_extremum(ctx: LoweringContext, x: Edge) -> bool:
    return x.number == _BOOL and ctx.eqn.primitive.name != "scatter"


def _scatter_inside(eqn: Any, numbers: lax.ScatterDimensionNumbers) -> Callable[..., Any]:
    """Returns the function of a scatter whose operands are brought into the form XlaScatter takes.

    TensorFlow has no maximum and minimum of bools: these are scattered as bytes.
    """
    params = {**eqn.params, "mode": _Mode.FILL_OR_DROP, "dimension_numbers": numbers}

    def run(x: jax.Array, indices: jax.Array, updates: jax.Array) -> jax.Array:
        indices = _as_int32(indices)
        if eqn.params["mode"] == _Mode.CLIP:
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
    limits = np.asarray([last[d] for d in numbers.scatter_dims_to_operand_dims], indices.dtype)
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
    indices, batching_dims = _vectors_last(indices, axis, numbers.scatter_indices_batching_dims)
    options = {
        "dimension_numbers": numbers._replace(scatter_indices_batching_dims=batching_dims),
        "indices_are_sorted": indices_are_sorted,
        "unique_indices": unique_indices,
        "mode": _mode_from_name(mode),
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
example(lambda x, i, u: x.at[i].add(u), f32(5, 3), _IDS, _ROWS)
example(lambda x, i, u: x.at[i].add(u), f32(5, 3), _FAR_IDS, _FAR_ROWS)
example(lambda x, i, u: x.at[i].subtract(u), f32(5, 3), _FAR_IDS, _FAR_ROWS)
example(lambda x, i, u: x.at[i].multiply(u, unique_indices=True), f32(9, 3), i32(1), f32(1, 3))
example(lambda x, i, u: x.at[i].multiply(u), f32(5, 3), _IDS, _ROWS, gradient=False)
example(lambda x, i, u: x.at[i].max(u), f32(5, 3), _FAR_IDS, _FAR_ROWS)
example(lambda x, i, u: x.at[i].min(u), f32(5, 3), _IDS, _ROWS)
example(lambda x, i, u: x.at[i].max(u), i32(5, 3), _IDS, i32(4, 3), gradient=False)
example(
    lambda x, i, u: x.at[i].max(jnp.where(u > 0, jnp.nan, u)),
    f32(5, 3),
    _IDS,
    _ROWS,
    gradient=False,
    not_in_tensorflow="TensorFlow's maximum in a scatter does not keep every NaN",
)
example(lambda x, i, u: x.at[:, i].add(u), f32(3, 5), _IDS, f32(3, 4))
example(lambda x, i, j, u: x.at[i, j].add(u), f32(5, 3), _IDS, i32(4, low=-2, high=-2), f32(4))
example(lambda x, i, u: x.at[i].add(u, mode="clip"), f32(5, 3), _FAR_IDS, _FAR_ROWS)
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
example(lambda x, i, u: x.at[i].max(u), bools(5), _IDS, bools(4), gradient=False)
example(lambda x, i, u: x.at[i].min(u), bools(5), _IDS, bools(4), gradient=False)
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

# --- TensorFlow's own -----------------------------------------------------------------------


@kernel("GatherV2", static=("axis",))
def gather_v2(params: Any, indices: Any, axis: np.ndarray[Any, Any], *, batch_dims: int) -> Any:
    place = int(axis) % params.ndim
    batch = batch_dims + indices.ndim if batch_dims < 0 else batch_dims

    def take(array: Any, index: Any) -> Any:
        return jnp.take(array, index, axis=place - batch, mode="clip")

    for _ in range(batch):
        take = jax.vmap(take)
    return take(params, indices)


@kernel("Gather")
def gather_v1(params: Any, indices: Any) -> Any:
    return jnp.take(params, indices, axis=0, mode="clip")


def _index_of(indices: Any) -> tuple[Any, ...]:
    """Returns the index that vectors along the last axis say."""
    return tuple(indices[..., axis] for axis in range(indices.shape[-1])) or (...,)


@kernel("GatherNd")
def gather_nd(params: Any, indices: Any) -> Any:
    if not indices.shape[-1]:
        return jnp.broadcast_to(params, (*indices.shape[:-1], *params.shape))
    return jnp.asarray(params).at[_index_of(indices)].get(mode="clip")


@kernel("ScatterNd", static=("shape",))
def scatter_nd(indices: Any, updates: Any, shape: np.ndarray[Any, Any]) -> Any:
    return tensor_scatter_add(jnp.zeros(_ints(shape), updates.dtype), indices, updates)


@kernel("TensorScatterAdd")
def tensor_scatter_add(tensor: Any, indices: Any, updates: Any) -> Any:
    return jnp.asarray(tensor).at[_index_of(indices)].add(updates, mode="drop")


@kernel("TensorScatterSub")
def tensor_scatter_sub(tensor: Any, indices: Any, updates: Any) -> Any:
    return jnp.asarray(tensor).at[_index_of(indices)].subtract(updates, mode="drop")


@kernel("TensorScatterUpdate")
def tensor_scatter_update(tensor: Any, indices: Any, updates: Any) -> Any:
    return jnp.asarray(tensor).at[_index_of(indices)].set(updates, mode="drop")


@kernel("TensorScatterMax")
def tensor_scatter_max(tensor: Any, indices: Any, updates: Any) -> Any:
    return jnp.asarray(tensor).at[_index_of(indices)].max(updates, mode="drop")


@kernel("TensorScatterMin")
def tensor_scatter_min(tensor: Any, indices: Any, updates: Any) -> Any:
    return jnp.asarray(tensor).at[_index_of(indices)].min(updates, mode="drop")
