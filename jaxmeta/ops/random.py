"""Random numbers: bits of typed keys, XLA's own generators, and the samplers.

See `random_keys` for how a graph holds keys and what draws from them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops import _computation
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
from jaxmeta.ops._keys import (
    IMPLEMENTATIONS,
    SEED,
    UINT32,
    lower_by_implementation,
    operand_impl,
    partitionable_attr,
    with_partitionable,
    wrap,
)
from jaxmeta.ops._operands import ints
from jaxmeta.tracing import jaxprs, meshes

# --- bits --------------------------------------------------------------------------------------


@lowering("random_bits")
def lower_random_bits(
    ctx: LoweringContext, keys: Edge, *, bit_width: int, shape: Any
) -> list[Edge]:
    sizes = ints(shape)
    return lower_by_implementation(
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
    keys = wrap(data, impl)
    dtype = np.dtype(f"uint{bit_width}")
    with with_partitionable(partitionable):
        return _computation.batched(lambda key: jax.random.bits(key, shape, dtype), keys.ndim)(keys)


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


for _impl in IMPLEMENTATIONS:
    example(lambda seed, impl=_impl: _words(jax.random.key(seed, impl=impl)), SEED, gradient=False)
    example(
        lambda seed, impl=_impl: jax.vmap(_words)(
            jax.random.split(jax.random.key(seed, impl=impl))
        ),
        SEED,
        gradient=False,
    )
example(lambda seed: _in_order_of_old(seed), SEED, gradient=False)

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
    if not meshes.is_trivial_sharding(out_sharding):
        raise ctx.unsupported("rng_bit_generator with a sharding")
    sizes, wanted = ints(shape), np.dtype(dtype)
    generated = wanted if wanted.itemsize >= UINT32.itemsize else UINT32

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


_UINT32_NUMBER: Final = dtypes.dtype_to_number(UINT32)


def _as_uint64(ctx: LoweringContext, state: Edge) -> Edge:
    if state.number != _UINT32_NUMBER:
        return state
    (pairs,) = ctx.node("Reshape", state, ctx.constant((2, 2), np.int32))
    (words,) = ctx.node("Bitcast", pairs, type=np.dtype(np.uint64))
    return words


def _as_uint32(ctx: LoweringContext, state: Edge) -> Edge:
    (pairs,) = ctx.node("Bitcast", state, type=UINT32)
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
        ints(shape),
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
    sizes = ints(shape)
    dtype = ctx.out_avals[0].dtype
    is_integer = np.dtype(dtype).kind in "iu"

    def fill(body: LoweringContext, operands: list[Edge]) -> list[Edge]:
        first, last = operands
        shape_constant = body.constant(sizes, np.int32)
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
    name = operand_impl(ctx)
    sample = jaxprs.primitive("random_gamma").impl
    setting = partitionable_attr(ctx)

    def body(data: Any, alpha: Any) -> Any:
        with with_partitionable(setting is None):
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
    with with_partitionable(partitionable):
        return jaxprs.primitive("random_gamma").bind(wrap(data, impl), a, log_space=log_space)


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


example(lambda seed, x: _samples(seed, x), SEED, f32(6))
example(lambda seed, x: _samples(seed, x, jax.random.PRNGKey), SEED, f32(6))
example(lambda seed, x: _samples(seed, x, lambda s: jax.random.key(s, impl="rbg")), SEED, f32(6))
example(
    lambda seed, x: jax.vmap(lambda key: jax.random.normal(key, (2,)) * x)(
        jax.random.split(jax.random.key(seed), 3)
    ),
    SEED,
    f32(2),
)
example(
    lambda seed: jax.random.normal(jax.random.key(seed), (3,), jnp.bfloat16),
    SEED,
    gradient=False,
)
_SHAPE_PARAMETER: Final = f32(3, low=0.2, high=3.0)
example(lambda seed, a: jax.random.gamma(jax.random.key(seed), a, (2, 3)), SEED, _SHAPE_PARAMETER)
example(lambda seed, a: jax.random.loggamma(jax.random.key(seed), a), SEED, _SHAPE_PARAMETER)
example(
    lambda seed, a: jax.vmap(jax.random.gamma)(jax.random.split(jax.random.key(seed), 3), a),
    SEED,
    _SHAPE_PARAMETER,
)
example(
    lambda seed, a: jax.random.gamma(jax.random.key(seed, impl="rbg"), a), SEED, _SHAPE_PARAMETER
)
