"""Typed keys: their data, the rounds of threefry2x32, and keys made of seeds and of other keys.

The graph holds a typed key as its uint32 data, so wrapping and unwrapping keys are Identity nodes.
Every other primitive is a call of a library function that says its algorithm in TensorFlow ops;
all of these share one function for the 20 rounds of threefry2x32. Reading wraps the data again and
calls `jax.random`, which gives the primitive back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta.graphs.nodes import KEY_IMPL_ATTR, Edge
from jaxmeta.ops import _computation
from jaxmeta.ops._definition import LoweringContext, example, i32, lowering, restores, u32
from jaxmeta.ops._keys import (
    IMPLEMENTATIONS,
    SEED,
    UINT32,
    known_impl,
    lower_by_implementation,
    operand_impl,
    partitionable_attr,
    with_partitionable,
    wrap,
)
from jaxmeta.ops._operands import ints
from jaxmeta.tracing import dimensions, jaxprs

# --- keys as data ------------------------------------------------------------------------------


@lowering("random_wrap")
def lower_random_wrap(ctx: LoweringContext, data: Edge, *, impl: Any) -> list[Edge]:
    name = known_impl(ctx, jaxprs.impl_name(impl))
    return ctx.node("Identity", data, **{KEY_IMPL_ATTR: name})


@lowering("random_unwrap", "random_clone")
def lower_random_unwrap(ctx: LoweringContext, data: Edge) -> list[Edge]:
    return ctx.node("Identity", data)


example(
    lambda data: jax.random.key_data(jax.random.clone(jax.random.wrap_key_data(data))),
    u32(3, 2),
    gradient=False,
)

# --- threefry2x32 ------------------------------------------------------------------------------

_ROTATIONS: Final = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY: Final = 0x1BD11BDA


@lowering("threefry2x32")
def lower_threefry2x32(
    ctx: LoweringContext, key_0: Edge, key_1: Edge, count_0: Edge, count_1: Edge
) -> list[Edge]:
    # It holds no shapes, so that one function serves all calls of a program.
    avals = [jax.ShapeDtypeStruct((), UINT32)] * 4
    function = ctx.build_function("threefry2x32", avals, _fill_threefry, key="any shape")
    return ctx.call(function, key_0, key_1, count_0, count_1, primitive="threefry2x32")


def _fill_threefry(ctx: LoweringContext, operands: list[Edge]) -> list[Edge]:
    def apply(op: str, x: Edge, y: Edge | int) -> Edge:
        other = ctx.constant(y, UINT32) if isinstance(y, int) else y
        return ctx.node(op, x, other)[0]

    def rotate(x: Edge, distance: int) -> Edge:
        high = apply("LeftShift", x, distance)
        return apply("BitwiseOr", high, apply("RightShift", x, 32 - distance))

    key_0, key_1, x, y = operands
    keys = [key_0, key_1, apply("BitwiseXor", apply("BitwiseXor", key_0, key_1), _PARITY)]
    x, y = apply("AddV2", x, keys[0]), apply("AddV2", y, keys[1])
    for block in range(5):
        for distance in _ROTATIONS[block % 2]:
            x = apply("AddV2", x, y)
            y = apply("BitwiseXor", x, rotate(y, distance))
        x = apply("AddV2", x, keys[(block + 1) % 3])
        y = apply("AddV2", y, apply("AddV2", keys[(block + 2) % 3], block + 1))
    return [x, y]


@restores("threefry2x32")
def restore_threefry2x32(*operands: Any) -> Any:
    return jaxprs.primitive("threefry2x32").bind(*operands)


def _threefry2x32(key: Any, count: Sequence[Any]) -> jax.Array:
    """Returns one block: two words for a key's two words and a counter's."""
    words = jaxprs.primitive("threefry2x32").bind(key[0], key[1], *count)
    return jnp.stack(words, axis=-1)


example(
    lambda key, x, y: jaxprs.primitive("threefry2x32").bind(key[0], key[1], x, y),
    u32(2),
    u32(3, 4),
    u32(3, 4),
    gradient=False,
)


@lowering("iota_2x32_shape")
def lower_iota_2x32_shape(ctx: LoweringContext, *, shape: Any) -> list[Edge]:
    size = math.prod(shape)
    if not dimensions.is_symbolic(size) and size > np.iinfo(np.int32).max:
        raise ctx.unsupported(f"{size} random numbers at once; split the key, and draw fewer")

    def body() -> list[jax.Array]:
        counts = lax.reshape(lax.iota(np.int32, size), shape).astype(UINT32)
        return [jnp.zeros(shape, UINT32), counts]

    return ctx.composite("iota_2x32_shape", body, shape=tuple(shape))


# --- seed, split, fold_in ----------------------------------------------------------------------


@lowering("random_seed")
def lower_random_seed(ctx: LoweringContext, seeds: Edge, *, impl: Any) -> list[Edge]:
    name = known_impl(ctx, jaxprs.impl_name(impl))
    words = jaxprs.key_layout(ctx.eqn.outvars[0].aval.dtype)[1][0]
    return ctx.composite("random_seed", lambda x: _seed(x, words), seeds, impl=name)


def _seed(seed: Any, num_words: int) -> jax.Array:
    """Returns a seed's 64 bits as a key's words, twice over where it has four."""
    seed = jnp.asarray(seed)
    low = lax.convert_element_type(seed, UINT32)
    high = jnp.zeros_like(low)
    if seed.dtype.itemsize > UINT32.itemsize:
        shifted = lax.shift_right_logical(seed, np.asarray(32, seed.dtype))
        high = lax.convert_element_type(shifted, UINT32)
    return jnp.stack([high, low] * (num_words // 2), axis=-1)


@restores("random_seed")
def restore_random_seed(seeds: Any, *, impl: bytes) -> Any:
    make = _computation.batched(
        lambda seed: jax.random.key(seed, impl=impl.decode()), np.ndim(seeds)
    )
    return jax.random.key_data(make(seeds))


@lowering("random_split")
def lower_random_split(ctx: LoweringContext, keys: Edge, *, shape: Any) -> list[Edge]:
    sizes = ints(shape)
    return lower_by_implementation(ctx, keys, lambda impl, key: impl.split(key, sizes), shape=sizes)


@restores("random_split")
def restore_random_split(
    data: Any, *, impl: bytes, shape: tuple[int, ...], partitionable: bool = True
) -> Any:
    keys = wrap(data, impl)
    with with_partitionable(partitionable):
        split = _computation.batched(lambda key: jax.random.split(key, shape), keys.ndim)(keys)
    return jax.random.key_data(split)


@lowering("random_fold_in")
def lower_random_fold_in(ctx: LoweringContext, keys: Edge, messages: Edge) -> list[Edge]:
    name = operand_impl(ctx)
    fold_in = _FOLD_INS[name]

    def body(data: Any, numbers: Any) -> Any:
        rank = max(data.ndim - 1, numbers.ndim)
        data = jnp.reshape(data, (1,) * (rank + 1 - data.ndim) + data.shape)
        numbers = jnp.reshape(numbers, (1,) * (rank - numbers.ndim) + numbers.shape)
        fn = fold_in
        for sizes in reversed(list(zip(data.shape[:-1], numbers.shape, strict=True))):
            fn = _batched_in_axis(fn, *sizes)
        return fn(data, numbers)

    return ctx.composite(
        "random_fold_in", body, keys, messages, impl=name, partitionable=partitionable_attr(ctx)
    )


def _batched_in_axis(fn: Callable[..., Any], first: int, second: int) -> Callable[..., Any]:
    """Returns a function of two arrays whose leading axes have these sizes.

    An axis of size 1 is not written out: XLA's generators would draw more numbers for it.
    """
    if first == second:
        return jax.vmap(fn)
    if first == 1:
        return lambda x, y: jax.vmap(fn, (None, 0))(jnp.squeeze(x, 0), y)
    return lambda x, y: jax.vmap(fn, (0, None))(x, jnp.squeeze(y, 0))


def _fold_in_threefry(key: Any, message: Any) -> jax.Array:
    return _threefry2x32(key, (jnp.zeros_like(message), message))


def _fold_in_rbg(key: Any, message: Any) -> jax.Array:
    halves = jnp.reshape(key, (2, 2))
    return jnp.reshape(jax.vmap(_fold_in_threefry, (0, None))(halves, message), (4,))


def _fold_in_unsafe_rbg(key: Any, message: Any) -> Any:
    _, bits = lax.rng_bit_generator(_seed(message, 4), (10, 4), dtype=UINT32)
    return key ^ bits[-1]


_FOLD_INS: Final[dict[str, Callable[..., Any]]] = {
    "threefry2x32": _fold_in_threefry,
    "rbg": _fold_in_rbg,
    "unsafe_rbg": _fold_in_unsafe_rbg,
}


@restores("random_fold_in")
def restore_random_fold_in(
    data: Any, messages: Any, *, impl: bytes, partitionable: bool = True
) -> Any:
    keys = wrap(data, impl)
    with with_partitionable(partitionable):
        return jax.random.key_data(_fold_in(keys, messages))


def _fold_in(keys: Any, messages: Any) -> Any:
    shape = np.shape(messages)
    if keys.shape == shape:
        return _computation.batched(jax.random.fold_in, keys.ndim)(keys, messages)
    if not shape:
        return _computation.batched(lambda key: jax.random.fold_in(key, messages), keys.ndim)(keys)
    if not keys.shape:
        return _computation.batched(lambda message: jax.random.fold_in(keys, message), len(shape))(
            messages
        )
    # Axes of size 1 against others: the public function would write them out.
    return jaxprs.primitive("random_fold_in").bind(keys, messages)


def _key_bits(seed: Any, impl: str) -> Any:
    """Makes, splits and folds keys, singly and in arrays."""
    keys = jax.random.split(jax.random.key(seed, impl=impl), (2, 3))
    folded = jax.vmap(jax.random.fold_in, (0, None))(keys[0], seed)
    again = jax.vmap(jax.random.fold_in, (None, 0))(keys[1, 0], seed + jnp.arange(3))
    both = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(folded, jnp.arange(2))
    split = jax.vmap(jax.random.split)(again)
    return [jax.random.key_data(k) for k in (keys, folded, again, both, split, keys[0])]


for _impl in IMPLEMENTATIONS:
    example(lambda seed, impl=_impl: _key_bits(seed, impl), SEED, gradient=False)
example(lambda seed: jax.random.PRNGKey(seed), SEED, gradient=False)
example(lambda key: (jax.random.split(key, 3), jax.random.fold_in(key, 7)), u32(2), gradient=False)
example(lambda key: jax.random.fold_in(key, np.uint32(3_000_000_000)), u32(2), gradient=False)
example(
    lambda seeds: jax.vmap(lambda s: jax.random.key_data(jax.random.key(s)))(seeds),
    i32(3),
    gradient=False,
)
