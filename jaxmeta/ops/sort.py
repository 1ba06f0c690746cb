"""Sorting, approximate top-k, and the total order of floats that they compare by."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes, errors
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops import _computation
from jaxmeta.ops._definition import (
    PRIMITIVE_ATTR,
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
from jaxmeta.tracing import jaxprs

# --- sort --------------------------------------------------------------------------------------


@lowering("sort")
def lower_sort(
    ctx: LoweringContext, *arrays: Edge, dimension: int, is_stable: bool, num_keys: int
) -> list[Edge]:
    if any(jaxprs.is_key_dtype(var.aval.dtype) for var in ctx.eqn.outvars):
        raise ctx.unsupported("a sort that moves typed PRNG keys")
    pairs = [dtypes.dtype_from_number(x.number) for x in arrays for _ in range(2)]
    comparator = _computation.function_of_scalars(ctx, _comparator(int(num_keys)), "less", pairs)
    return ctx.node(
        "XlaVariadicSort",
        list(arrays),
        ctx.constant(dimension, np.int32),
        comparator=comparator,
        is_stable=bool(is_stable),
        _jax_num_keys=int(num_keys),
    )


@functools.cache
def _comparator(num_keys: int) -> Callable[..., Any]:
    """Returns the comparator of a sort by the first arrays, one after the other.

    XLA hands it the two elements of each array side by side.
    """

    def less(*elements: jax.Array) -> jax.Array:
        keys = elements[: 2 * num_keys]
        pairs = [
            pair for x, y in zip(keys[::2], keys[1::2], strict=True) for pair in _real_pairs(x, y)
        ]
        *others, last = pairs
        result = _is_less(*last)
        for x, y in reversed(others):
            result = lax.bitwise_or(
                _is_less(x, y), lax.bitwise_and(lax.bitwise_not(_is_less(y, x)), result)
            )
        return result

    return less


def _real_pairs(x: jax.Array, y: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """Returns what is compared: complex numbers by their real parts, then by the imaginary ones."""
    if jnp.iscomplexobj(x):
        return [(lax.real(x), lax.real(y)), (lax.imag(x), lax.imag(y))]
    return [(x, y)]


def _is_less(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns whether x stands before y: NaN stands last, and the two zeros are equal."""
    if not jnp.issubdtype(x.dtype, np.inexact):
        return lax.lt(x, y)
    is_only_y_nan = lax.bitwise_and(lax.eq(x, x), lax.ne(y, y))
    return lax.bitwise_or(lax.lt(x, y), is_only_y_nan)


@kernel("XlaVariadicSort")
def xla_variadic_sort(
    *inputs_and_dimension: Any,
    comparator: Any,
    is_stable: bool,
    _jax_num_keys: int = 0,
) -> Any:
    *arrays, dimension = inputs_and_dimension
    num_keys = _jax_num_keys or _find_num_keys(comparator, arrays)
    axis = int(dimension) % arrays[0].ndim
    return lax.sort(tuple(arrays), dimension=axis, is_stable=is_stable, num_keys=num_keys)


def _find_num_keys(comparator: Any, arrays: Sequence[Any]) -> int:
    """Returns by how many arrays a comparator sorts, from what it says of values that tell.

    Raises:
        UnsupportedOpError: it is not JAX's order by any number of them.
    """
    values = [_telling_values(x.dtype) for x in arrays]
    rng = np.random.default_rng(0)
    elements = [v[rng.integers(len(v), size=_NUM_SAMPLES)] for v in values for _ in range(2)]
    with jax.ensure_compile_time_eval():
        (found,) = jax.vmap(comparator)(*elements)
        for num_keys in range(1, len(arrays) + 1):
            if (np.asarray(found) == np.asarray(jax.vmap(_comparator(num_keys))(*elements))).all():
                return num_keys
    raise errors.UnsupportedOpError(
        "XlaVariadicSort is supported where it sorts upwards by its first inputs; "
        f"{comparator.name!r} compares in another way"
    )


_NUM_SAMPLES: Final = 512


def _telling_values(dtype: Any) -> np.ndarray[Any, Any]:
    """Returns values of a dtype that come out in another order under another comparator."""
    if dtype == np.bool_:
        return np.asarray([False, True])
    if jnp.issubdtype(dtype, np.integer):
        info = jnp.iinfo(dtype)
        return np.asarray([info.min, 0, 1, 2, info.max], dtype)
    parts = np.asarray([-np.inf, -1, 0, 1, np.inf, np.nan])
    if jnp.issubdtype(dtype, np.complexfloating):
        return np.asarray([complex(a, b) for a in parts for b in parts], dtype)
    return parts.astype(dtype)


_TIED = i32(3, 8, low=0, high=0)


def _with_nans(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of an array some of whose elements are made NaN, infinite or zero."""

    def run(x: jax.Array) -> Any:
        x = jnp.where(x > 1.5, jnp.nan, x)
        x = jnp.where((x > 1.2) & (x < 1.4), jnp.inf, x)
        return fn(jnp.where(jnp.abs(x) < 0.5, x * 0, x))  # zeros of both signs

    run.__name__ = "sort_with_nans"
    return run


example(lambda x: jnp.sort(x, axis=1), f32(3, 8))
example(lambda x: jnp.sort(x, axis=0, descending=True), f32(3, 8))
example(lambda x: jnp.argsort(x, axis=1), f32(3, 8), gradient=False)
example(lambda x: jnp.argsort(x, axis=1), _TIED, gradient=False)
example(_with_nans(lambda x: jnp.argsort(x, axis=1)), f32(3, 20), gradient=False)
example(lambda x: jnp.lexsort((x[0], x[1], x[2])), _TIED, gradient=False)
example(lambda x, y, z: lax.sort((x, y, z), dimension=1, num_keys=2), _TIED, f32(3, 8), f32(3, 8))
example(lambda x: lax.sort(x, is_stable=False), f32(8))
example(lambda x: lax.sort(x), bools(8), gradient=False)
example(lambda x: lax.sort(x), u32(8), gradient=False)
example(lambda x: lax.sort(x), Spec((8,), jnp.bfloat16), gradient=False)
example(lambda x: lax.sort(x), Spec((8,), np.complex64), gradient=False)
example(lambda x: jnp.median(x, axis=1), f32(3, 9), tolerance=1e-4)

# --- approximate top-k -------------------------------------------------------------------------


@lowering("approx_top_k")
def lower_approx_top_k(
    ctx: LoweringContext,
    x: Edge,
    *,
    k: int,
    reduction_dimension: int,
    recall_target: float,
    is_max_k: bool,
    reduction_input_size_override: int,
    aggregate_to_topk: bool,
) -> list[Edge]:
    params: dict[str, Any] = {
        "k": int(k),
        "reduction_dimension": int(reduction_dimension),
        "is_max_k": bool(is_max_k),
        "reduction_input_size_override": int(reduction_input_size_override),
        "aggregate_to_topk": bool(aggregate_to_topk),
    }
    # A float attr has 32 bits.
    target = repr(float(recall_target))
    if is_max_k and reduction_dimension == -1:  # the only form that has a plain kernel on CPU
        return ctx.node(
            "ApproxTopK", x, recall_target=float(recall_target), _jax_recall_target=target, **params
        )
    size = ctx.out_avals[0].shape[reduction_dimension]
    exact = functools.partial(
        _exact_top_k, size=size, axis=reduction_dimension, is_largest=is_max_k
    )
    return ctx.composite("approx_top_k", exact, x, recall_target=target, **params)


def _exact_top_k(
    x: jax.Array, *, size: int, axis: int, is_largest: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns what an approximation may always return."""
    last = jnp.moveaxis(x, axis, -1)
    values, indices = lax.top_k(last if is_largest else -last, size)
    values = values if is_largest else -values
    return jnp.moveaxis(values, -1, axis), jnp.moveaxis(indices, -1, axis)


@kernel("ApproxTopK")
def approx_top_k(
    input: Any,
    *,
    k: int,
    reduction_dimension: int,
    recall_target: float,
    is_max_k: bool,
    reduction_input_size_override: int,
    aggregate_to_topk: bool,
    _jax_recall_target: bytes = b"",
) -> Any:
    return restore_approx_top_k(
        input,
        k=k,
        reduction_dimension=reduction_dimension,
        recall_target=_jax_recall_target or repr(recall_target).encode(),
        is_max_k=is_max_k,
        reduction_input_size_override=reduction_input_size_override,
        aggregate_to_topk=aggregate_to_topk,
    )


@restores("approx_top_k")
def restore_approx_top_k(
    x: Any,
    *,
    k: int,
    reduction_dimension: int,
    recall_target: bytes,
    is_max_k: bool,
    reduction_input_size_override: int,
    aggregate_to_topk: bool,
) -> Any:
    return (lax.approx_max_k if is_max_k else lax.approx_min_k)(
        x,
        k,
        reduction_dimension,
        float(recall_target),
        reduction_input_size_override,
        aggregate_to_topk,
    )


example(lambda x: lax.approx_max_k(x, 2), f32(3, 8))
example(lambda x: lax.approx_min_k(x, 3, reduction_dimension=0, recall_target=0.8), f32(8, 3))

# --- the total order ---------------------------------------------------------------------------

_TOTAL_ORDERS: Final[dict[str, tuple[str, Callable[..., Any]]]] = {
    "eq_to": ("Equal", lax.eq),
    "lt_to": ("Less", lax.lt),
    "le_to": ("LessEqual", lax.le),
}


@lowering(*_TOTAL_ORDERS)
def lower_total_order(ctx: LoweringContext, x: Edge, y: Edge) -> list[Edge]:
    name = ctx.eqn.primitive.name
    op, compare = _TOTAL_ORDERS[name]
    dtype = dtypes.dtype_from_number(x.number)
    if dtype.kind in "iu":
        return ctx.node(op, x, y, **{PRIMITIVE_ATTR: name})
    if dtype == np.bool_:
        return ctx.composite(name, compare, x, y)
    return ctx.composite(name, lambda a, b: compare(_ordered_bits(a), _ordered_bits(b)), x, y)


def _ordered_bits(x: jax.Array) -> jax.Array:
    """Returns integers in the total order of floats: -NaN, -inf, ..., -0, 0, ..., inf, NaN."""
    integer = np.dtype(f"int{8 * x.dtype.itemsize}")
    bits = lax.bitcast_convert_type(x, integer)
    flipped = lax.bitwise_xor(bits, np.asarray(np.iinfo(integer).max, integer))
    return lax.select(lax.lt(bits, jnp.zeros_like(bits)), flipped, bits)


def _register_total_order(name: str) -> None:
    @restores(name)
    def restore_total_order(x: Any, y: Any) -> Any:
        return jaxprs.primitive(name).bind(x, y)

    def compare(x: jax.Array, y: jax.Array) -> Any:
        return jaxprs.primitive(name).bind(x, y)

    compare.__name__ = name
    example(compare, f32(12, low=-1, high=1), f32(12, low=-1, high=1), gradient=False)
    example(compare, i32(12), i32(12), gradient=False)
    example(_with_nans(lambda x: compare(x, -x)), f32(30), gradient=False)


for _name in _TOTAL_ORDERS:
    _register_total_order(_name)
