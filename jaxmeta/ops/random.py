"""Random numbers: typed keys, their implementations, and the samplers that are primitives.

The graph holds a typed key as its uint32 data, so wrapping and unwrapping keys are Identity nodes.
Every other primitive is a call of a library function that says its algorithm in TensorFlow ops;
all of these share one function for the 20 rounds of threefry2x32. Reading wraps the data again and
calls `jax.random`, which gives the primitive back.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes, jaxprs
from jaxmeta.nodes import KEY_IMPL_ATTR, Edge
from jaxmeta.ops._definition import (
    LoweringContext,
    example,
    f32,
    i32,
    kernel,
    lowering,
    restores,
    u32,
)

_UINT32: Final = np.dtype(np.uint32)


def _known_impl(ctx: LoweringContext, name: str) -> str:
    if jaxprs.prng_implementation(name) is None:
        raise ctx.unsupported(
            f"keys of the implementation {name!r}; use threefry2x32, rbg or unsafe_rbg"
        )
    return name


def _operand_impl(ctx: LoweringContext) -> str:
    """Returns the implementation of the eqn's first operand, a typed key."""
    return _known_impl(ctx, jaxprs.key_layout(ctx.eqn.invars[0].aval.dtype)[0])


def _setting(ctx: LoweringContext) -> bool | None:
    """Returns False where jax_threefry_partitionable was off; None, so no attr, where it was on."""
    return None if jaxprs.is_threefry_partitionable(ctx.eqn) else False


def _with_setting(is_partitionable: bool) -> contextlib.AbstractContextManager[Any]:
    """Sets jax_threefry_partitionable, which decides on the numbers that threefry gives."""
    if jaxprs.is_threefry_partitionable() == is_partitionable:
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[Any] = jax.threefry_partitionable(is_partitionable)
    return context


def _batched(fn: Callable[..., Any], rank: int) -> Callable[..., Any]:
    """Returns a function of one key as a function of arrays of keys."""
    for _ in range(rank):
        fn = jax.vmap(fn)
    return fn


def _lower_by_implementation(
    ctx: LoweringContext,
    data: Edge,
    fn: Callable[[Any, Any], Any],
    **params: Any,
) -> list[Edge]:
    """Calls a function traced from a method of JAX's own implementation, on the keys' data."""
    name = _operand_impl(ctx)
    rank = len(ctx.eqn.invars[0].aval.shape)
    setting = _setting(ctx)

    def body(keys: Any) -> Any:
        with _with_setting(setting is None):
            return _batched(lambda key: fn(jaxprs.prng_implementation(name), key), rank)(keys)

    return ctx.composite(
        ctx.eqn.primitive.name, body, data, impl=name, partitionable=setting, **params
    )


def _wrap(data: Any, impl: bytes) -> Any:
    return jax.random.wrap_key_data(data, impl=impl.decode())


# --- keys as data ------------------------------------------------------------------------------


@lowering("random_wrap")
def lower_random_wrap(ctx: LoweringContext, data: Edge, *, impl: Any) -> list[Edge]:
    name = _known_impl(ctx, jaxprs.impl_name(impl))
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
    avals = [jax.ShapeDtypeStruct((), _UINT32)] * 4
    function = ctx.build_function("threefry2x32", avals, _fill_threefry, key="any shape")
    return ctx.call(function, key_0, key_1, count_0, count_1, primitive="threefry2x32")


def _fill_threefry(ctx: LoweringContext, operands: list[Edge]) -> list[Edge]:
    def apply(op: str, x: Edge, y: Edge | int) -> Edge:
        other = ctx.constant(y, _UINT32) if isinstance(y, int) else y
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
    if size > np.iinfo(np.int32).max:
        raise ctx.unsupported(f"{size} random numbers at once; split the key, and draw fewer")

    def body() -> list[jax.Array]:
        counts = lax.reshape(lax.iota(np.int32, size), shape).astype(_UINT32)
        return [jnp.zeros(shape, _UINT32), counts]

    return ctx.composite("iota_2x32_shape", body, shape=tuple(shape))


# --- seed, split, fold_in ----------------------------------------------------------------------


@lowering("random_seed")
def lower_random_seed(ctx: LoweringContext, seeds: Edge, *, impl: Any) -> list[Edge]:
    name = _known_impl(ctx, jaxprs.impl_name(impl))
    words = jaxprs.key_layout(ctx.eqn.outvars[0].aval.dtype)[1][0]
    return ctx.composite("random_seed", lambda x: _seed(x, words), seeds, impl=name)


def _seed(seed: Any, num_words: int) -> jax.Array:
    """Returns a seed's 64 bits as a key's words, twice over where it has four."""
    seed = jnp.asarray(seed)
    low = lax.convert_element_type(seed, _UINT32)
    high = jnp.zeros_like(low)
    if seed.dtype.itemsize > _UINT32.itemsize:
        shifted = lax.shift_right_logical(seed, np.asarray(32, seed.dtype))
        high = lax.convert_element_type(shifted, _UINT32)
    return jnp.stack([high, low] * (num_words // 2), axis=-1)


@restores("random_seed")
def restore_random_seed(seeds: Any, *, impl: bytes) -> Any:
    make = _batched(lambda seed: jax.random.key(seed, impl=impl.decode()), np.ndim(seeds))
    return jax.random.key_data(make(seeds))


@lowering("random_split")
def lower_random_split(ctx: LoweringContext, keys: Edge, *, shape: Any) -> list[Edge]:
    sizes = tuple(int(size) for size in shape)
    return _lower_by_implementation(
        ctx, keys, lambda impl, key: impl.split(key, sizes), shape=sizes
    )


@restores("random_split")
def restore_random_split(
    data: Any, *, impl: bytes, shape: tuple[int, ...], partitionable: bool = True
) -> Any:
    keys = _wrap(data, impl)
    with _with_setting(partitionable):
        split = _batched(lambda key: jax.random.split(key, shape), keys.ndim)(keys)
    return jax.random.key_data(split)


@lowering("random_fold_in")
def lower_random_fold_in(ctx: LoweringContext, keys: Edge, messages: Edge) -> list[Edge]:
    name = _operand_impl(ctx)
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
        "random_fold_in", body, keys, messages, impl=name, partitionable=_setting(ctx)
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
    _, bits = lax.rng_bit_generator(_seed(message, 4), (10, 4), dtype=_UINT32)
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
    keys = _wrap(data, impl)
    with _with_setting(partitionable):
        return jax.random.key_data(_fold_in(keys, messages))


def _fold_in(keys: Any, messages: Any) -> Any:
    shape = np.shape(messages)
    if keys.shape == shape:
        return _batched(jax.random.fold_in, keys.ndim)(keys, messages)
    if not shape:
        return _batched(lambda key: jax.random.fold_in(key, messages), keys.ndim)(keys)
    if not keys.shape:
        return _batched(lambda message: jax.random.fold_in(keys, message), len(shape))(messages)
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


_SEED: Final = i32(low=-1000, high=1000)
for _impl in ("threefry2x32", "rbg", "unsafe_rbg"):
    example(lambda seed, impl=_impl: _key_bits(seed, impl), _SEED, gradient=False)
example(lambda seed: jax.random.PRNGKey(seed), _SEED, gradient=False)
example(lambda key: (jax.random.split(key, 3), jax.random.fold_in(key, 7)), u32(2), gradient=False)
example(lambda key: jax.random.fold_in(key, np.uint32(3_000_000_000)), u32(2), gradient=False)
example(
    lambda seeds: jax.vmap(lambda s: jax.random.key_data(jax.random.key(s)))(seeds),
    i32(3),
    gradient=False,
)

# --- bits --------------------------------------------------------------------------------------


@lowering("random_bits")
def lower_random_bits(
    ctx: LoweringContext, keys: Edge, *, bit_width: int, shape: Any
) -> list[Edge]:
    sizes = tuple(int(size) for size in shape)
    return _lower_by_implementation(
        ctx,
        keys,
        lambda impl, key: impl.random_bits(key, bit_width, sizes),
        bit_width=int(bit_width),
        shape=sizes,
    )


@restores("random_bits")
def restore_random_bits(
    data: Any, *, impl: bytes, bit_width: int, shape: tuple[int, ...], partitionable: bool = True
) -> Any:
    keys = _wrap(data, impl)
    dtype = np.dtype(f"uint{bit_width}")
    with _with_setting(partitionable):
        return _batched(lambda key: jax.random.bits(key, shape, dtype), keys.ndim)(keys)


def _in_order_of_old(seed: Any) -> Any:
    """Draws as JAX did before 0.5, when counters were not partitionable."""
    with jax.threefry_partitionable(False):
        key = jax.random.key(seed)
        return _words(key), jax.random.key_data(jax.random.split(key, 3))


def _words(key: Any) -> list[Any]:
    return [
        jax.random.bits(key, (3, 5), np.uint8),
        jax.random.bits(key, (7,), np.uint16),
        jax.random.bits(key, (2, 3), np.uint32),
        jax.random.bits(key),
    ]


for _impl in ("threefry2x32", "rbg", "unsafe_rbg"):
    example(lambda seed, impl=_impl: _words(jax.random.key(seed, impl=impl)), _SEED, gradient=False)
    example(
        lambda seed, impl=_impl: jax.vmap(_words)(
            jax.random.split(jax.random.key(seed, impl=impl))
        ),
        _SEED,
        gradient=False,
    )
example(lambda seed: _in_order_of_old(seed), _SEED, gradient=False)

# --- XLA's own generators ----------------------------------------------------------------------

_PHILOX: Final = 1  # in TensorFlow's numbering
_THREEFRY: Final = 2
_TENSORFLOW_ALGORITHMS: Final = {
    lax.RandomAlgorithm.RNG_DEFAULT: _PHILOX,  # what XLA takes for it on CPU and GPU
    lax.RandomAlgorithm.RNG_PHILOX: _PHILOX,
    lax.RandomAlgorithm.RNG_THREE_FRY: _THREEFRY,
}


@lowering("rng_bit_generator")
def lower_rng_bit_generator(
    ctx: LoweringContext,
    key: Edge,
    *,
    shape: Any,
    dtype: Any,
    algorithm: Any,
    out_sharding: Any = None,
) -> list[Edge]:
    if not jaxprs.is_trivial_sharding(out_sharding):
        raise ctx.unsupported("rng_bit_generator with a sharding")
    sizes, wanted = tuple(int(size) for size in shape), np.dtype(dtype)
    generated = wanted if wanted.itemsize >= _UINT32.itemsize else _UINT32

    def fill(body: LoweringContext, operands: list[Edge]) -> list[Edge]:
        number = body.constant(_TENSORFLOW_ALGORITHMS[lax.RandomAlgorithm(algorithm)], np.int32)
        state = _as_uint64(body, operands[0])
        new_state, bits = body.node(
            "XlaRngBitGenerator", number, state, body.constant(sizes, np.int32), dtype=generated
        )
        if generated != wanted:
            (bits,) = body.node("Cast", bits, DstT=wanted)
        return [_as_uint32(body, new_state) if key.number == _UINT32_NUMBER else new_state, bits]

    aval = ctx.out_avals[0]
    function = ctx.build_function(
        "rng_bit_generator", [aval], fill, key=(aval.dtype, sizes, wanted, int(algorithm))
    )
    return ctx.call(
        function,
        key,
        primitive="rng_bit_generator",
        shape=sizes,
        dtype=wanted,
        algorithm=int(algorithm),
    )


_UINT32_NUMBER: Final = dtypes.dtype_to_number(_UINT32)


def _as_uint64(ctx: LoweringContext, state: Edge) -> Edge:
    if state.number != _UINT32_NUMBER:
        return state
    (pairs,) = ctx.node("Reshape", state, ctx.constant((2, 2), np.int32))
    (words,) = ctx.node("Bitcast", pairs, type=np.dtype(np.uint64))
    return words


def _as_uint32(ctx: LoweringContext, state: Edge) -> Edge:
    (pairs,) = ctx.node("Bitcast", state, type=_UINT32)
    (words,) = ctx.node("Reshape", pairs, ctx.constant((4,), np.int32))
    return words


@restores("rng_bit_generator")
def restore_rng_bit_generator(
    key: Any, *, shape: tuple[int, ...], dtype: int, algorithm: int
) -> Any:
    return lax.rng_bit_generator(
        key, shape, dtypes.dtype_from_number(dtype), lax.RandomAlgorithm(algorithm)
    )


@kernel("XlaRngBitGenerator", static=("algorithm", "shape"))
def xla_rng_bit_generator(
    algorithm: np.ndarray[Any, Any],
    initial_state: Any,
    shape: np.ndarray[Any, Any],
    *,
    dtype: int,
) -> Any:
    is_threefry = int(algorithm) == _THREEFRY
    return lax.rng_bit_generator(
        initial_state,
        tuple(int(size) for size in shape),
        dtypes.dtype_from_number(dtype),
        lax.RandomAlgorithm.RNG_THREE_FRY if is_threefry else lax.RandomAlgorithm.RNG_PHILOX,
    )


for _algorithm in lax.RandomAlgorithm:
    example(
        lambda key, algorithm=_algorithm: lax.rng_bit_generator(key, (3, 2), algorithm=algorithm),
        u32(4),
        gradient=False,
    )


@lowering("rng_uniform")
def lower_rng_uniform(ctx: LoweringContext, low: Edge, high: Edge, *, shape: Any) -> list[Edge]:
    sizes = tuple(int(size) for size in shape)
    dtype = ctx.out_avals[0].dtype
    is_integer = np.dtype(dtype).kind in "iu"

    def fill(body: LoweringContext, operands: list[Edge]) -> list[Edge]:
        first, last = operands
        shape_constant = body.constant(np.asarray(sizes, np.int32))
        if is_integer:
            return body.node("RandomUniformInt", shape_constant, first, last)
        (unit,) = body.node("RandomUniform", shape_constant, dtype=dtype)
        (width,) = body.node("Sub", last, first)
        (scaled,) = body.node("Mul", unit, width)
        return body.node("AddV2", scaled, first)

    avals = [jax.ShapeDtypeStruct((), dtype)] * 2
    function = ctx.build_function("rng_uniform", avals, fill, key=(dtype, sizes))
    return ctx.call(function, low, high, primitive="rng_uniform", shape=sizes)


@restores("rng_uniform")
def restore_rng_uniform(low: Any, high: Any, *, shape: tuple[int, ...]) -> Any:
    return lax.rng_uniform(low, high, shape)


# Each run draws other numbers, in JAX too; only their range is known.
example(
    lambda a, b: lax.rng_uniform(a, b, (3, 2)) < b,
    f32(low=-1.0, high=0.0),
    f32(low=1.0),
    gradient=False,
)
example(
    lambda a, b: lax.rng_uniform(a, b, (3, 2)) < b,
    i32(low=-100, high=0),
    i32(low=100, high=200),
    gradient=False,
)

# --- gamma -------------------------------------------------------------------------------------


@lowering("random_gamma")
def lower_random_gamma(ctx: LoweringContext, keys: Edge, a: Edge, *, log_space: bool) -> list[Edge]:
    name = _operand_impl(ctx)
    sample = jaxprs.primitive("random_gamma").impl
    setting = _setting(ctx)

    def body(data: Any, alpha: Any) -> Any:
        with _with_setting(setting is None):
            typed = jax.random.wrap_key_data(data, impl=name)
            return sample(typed, alpha, log_space=log_space, use_vmap=True)

    return ctx.composite(
        "random_gamma",
        body,
        keys,
        a,
        impl=name,
        log_space=bool(log_space),
        partitionable=setting,
    )


@restores("random_gamma")
def restore_random_gamma(
    data: Any, a: Any, *, impl: bytes, log_space: bool, partitionable: bool = True
) -> Any:
    # The public functions would wrap it in a jit of their own.
    with _with_setting(partitionable):
        return jaxprs.primitive("random_gamma").bind(_wrap(data, impl), a, log_space=log_space)


# --- samplers ----------------------------------------------------------------------------------


def _samples(seed: Any, x: Any, key_of: Callable[[Any], Any] = jax.random.key) -> Any:
    """Draws from the distributions that models use most."""
    keys = iter(jax.random.split(key_of(seed), 11))
    return [
        jax.random.normal(next(keys), (3, 2)),
        jax.random.uniform(next(keys), (4,), minval=-1.0, maxval=x[0]),
        jax.random.bernoulli(next(keys), 0.3, (5,)),
        jax.random.randint(next(keys), (5,), 0, 100),
        jax.random.permutation(next(keys), x),
        jax.random.categorical(next(keys), x),
        jax.random.gumbel(next(keys), (3,)),
        jax.random.truncated_normal(next(keys), -1.0, 1.0, (3,)),
        jax.random.exponential(next(keys), (3,)),
        jax.random.choice(next(keys), x, (2,), replace=False),
        jnp.where(jax.random.bernoulli(next(keys), 0.5, x.shape), x * 2.0, 0.0),
    ]


example(lambda seed, x: _samples(seed, x), _SEED, f32(6))
example(lambda seed, x: _samples(seed, x, jax.random.PRNGKey), _SEED, f32(6))
example(lambda seed, x: _samples(seed, x, lambda s: jax.random.key(s, impl="rbg")), _SEED, f32(6))
example(
    lambda seed, x: jax.vmap(lambda key: jax.random.normal(key, (2,)) * x)(
        jax.random.split(jax.random.key(seed), 3)
    ),
    _SEED,
    f32(2),
)
example(
    lambda seed: jax.random.normal(jax.random.key(seed), (3,), jnp.bfloat16),
    _SEED,
    gradient=False,
)
_SHAPE_PARAMETER: Final = f32(3, low=0.2, high=3.0)
example(lambda seed, a: jax.random.gamma(jax.random.key(seed), a, (2, 3)), _SEED, _SHAPE_PARAMETER)
example(lambda seed, a: jax.random.loggamma(jax.random.key(seed), a), _SEED, _SHAPE_PARAMETER)
example(
    lambda seed, a: jax.vmap(jax.random.gamma)(jax.random.split(jax.random.key(seed), 3), a),
    _SEED,
    _SHAPE_PARAMETER,
)
example(
    lambda seed, a: jax.random.gamma(jax.random.key(seed, impl="rbg"), a), _SEED, _SHAPE_PARAMETER
)
