"""Functions of arrays with symbolic dimensions, for the tests of signatures and of calls."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import export, lax

from jaxmeta.tracing import dimensions

Spec = jax.ShapeDtypeStruct
SIZES = ({"b": 1, "t": 2}, {"b": 7, "t": 4}, {"b": 12, "t": 6})
NHWC = ("NHWC", "HWIO", "NHWC")


def f32(*shape: Any) -> Any:
    return Spec(shape, np.float32)


def i32(*shape: Any) -> Any:
    return Spec(shape, np.int32)


PROGRAMS: dict[str, tuple[Any, tuple[Any, ...]]] = {}


def program(*specs: Any) -> Any:
    """Registers a function and its arguments, whose shapes have names of dimensions."""

    def register(fn: Any) -> Any:
        PROGRAMS[fn.__name__] = fn, specs
        return fn

    return register


@program(f32("b", 28), f32(28, 4))
def dense(x, w):
    hidden = jax.nn.relu(x @ w)
    hidden = hidden / jnp.mean(hidden)
    scores = jax.nn.log_softmax(x @ w)
    chosen = jnp.take_along_axis(scores, jnp.zeros((x.shape[0], 1), int), axis=1)
    counts = jnp.arange(x.shape[0]) + jnp.arange(1, x.shape[0] + 1)
    return hidden.reshape(-1), chosen.sum() + x.shape[0], counts


@program(f32("b", 28))
def noise(x):
    key = jax.random.key(0)
    return jax.random.normal(key, x.shape) + x, jax.random.bernoulli(key, 0.5, x.shape)


@program(f32("b", 28), f32(28, 4))
def gradient(x, w):
    return jax.grad(lambda v: jnp.mean(jax.nn.gelu(x @ v) ** 2) + jnp.var(x @ v))(w)


@program(f32("b", "t", 3))
def reshapes(x):
    rows = x.reshape(-1, 3)
    both = jnp.concatenate([rows, rows])
    padded = jnp.pad(x, ((1, 0), (0, 2), (0, 0)))
    mask = jnp.tril(jnp.ones((x.shape[1], x.shape[1])))
    halves = x[:, : x.shape[1] // 2]
    filled = jnp.broadcast_to(jnp.float32(1), x.shape)
    return x.reshape(x.shape[0], -1), both[1:], padded, mask, halves, filled, jnp.flip(x, 1)


@program(f32("b", "t", 3))
def scans(x):
    def body(carry, row):
        return jnp.sin(carry) * row, carry + row

    def broadcast(carry, row):
        return carry + jnp.sum(row), jnp.broadcast_to(carry, (x.shape[0],))

    zeros, rows = jnp.zeros((x.shape[0], 3)), jnp.swapaxes(x, 0, 1)
    backward = lax.scan(body, zeros, rows, reverse=True)
    return lax.scan(body, zeros, rows), backward, lax.scan(broadcast, 0.0, rows)


@program(f32("b", "t", 3))
def gradient_of_scan(x):
    def loss(x):
        zeros, rows = jnp.zeros((x.shape[0], 3)), jnp.swapaxes(x, 0, 1)
        step = jax.checkpoint(lambda c, row: (jnp.sin(c) + row, c.mean()))
        carry, means = lax.scan(step, zeros, rows)
        return carry.sum() + means.sum()

    return jax.grad(loss)(x)


@program(f32("b", 3))
def control_flow(x):
    def grow(carry):
        return carry[0] + 1, carry[1] + jnp.ones(x.shape)

    branch = lax.cond(
        x.sum() > 0, lambda a: a * 2 + jnp.ones((a.shape[0], 1)), lambda a: jnp.zeros(a.shape), x
    )
    grown = lax.while_loop(lambda c: c[0] < 3, grow, (0, x))[1]
    total = lax.fori_loop(0, x.shape[0], lambda i, c: c + x[i], jnp.zeros(3))
    return branch, grown, total


@program(f32("b", 8, 8, 3), f32(3, 3, 3, 4))
def gradient_of_convolution(x, w):
    def loss(x, w):
        h = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC)
        h = nn.max_pool(h, (2, 2), (2, 2))
        return jnp.mean(nn.avg_pool(h, (2, 2)) ** 2)

    return jax.value_and_grad(loss, (0, 1))(x, w)


@program(f32("b", "t", "t", 3), f32(3, 3, 3, 4))
def images_of_any_size(x, w):
    h = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC)
    h = lax.conv_general_dilated(
        h, jnp.ones((3, 3, 4, 4)), (2, 2), "SAME", dimension_numbers=NHWC, rhs_dilation=(2, 2)
    )
    return lax.cummax(h, 0), jnp.cumsum(h, 0), jnp.sort(h, 0), jnp.argmax(h, 0)


@program(f32("b", "t"), i32("b"))
def indexing(x, i):
    column = lax.dynamic_slice(x, (0, i[0]), (x.shape[0], 1))
    written = x.at[:, 0].set(1.0), x.at[jnp.arange(x.shape[0]), i].add(1.0)
    clipped = x.at[i].add(1.0, mode="clip")
    taken = jnp.take(x, i, axis=0, mode="clip"), jnp.take(x, i, axis=1)
    return column, written, clipped, taken, jax.nn.one_hot(i, x.shape[1]), lax.top_k(x, 1)


@jax.custom_vjp
def _mean(x: Any) -> Any:
    return x.mean()


_mean.defvjp(lambda x: (x.mean(), x), lambda x, g: (jnp.full(x.shape, g),))


@program(f32("b", "t", 4))
def custom_derivatives(x):
    def loss(x):
        return jnp.sum(jax.checkpoint(lambda y: jnp.sin(jax.nn.silu(y)))(x)) + _mean(x)

    return jax.grad(loss)(x), _mean(x), jax.jvp(jax.nn.relu, (x,), (x,))


@program(f32("2*b + 1"), f32("t", "b + t"))
def expressions(x, y):
    b, t = (x.shape[0] - 1) // 2, y.shape[0]
    squares = jnp.arange(b * b)
    most = jnp.zeros(jax.core.max_dim(b, t))
    return jnp.zeros((b, t)), squares, most, y[:, : b + t - 1], y.size * 1.0


@program(f32("b", "t", 2, 4))
def attention(q):
    return jax.nn.dot_product_attention(q, q, q, is_causal=True), jax.nn.softmax(q, 1)


@program(f32("b", "t", 4), f32("b", "2*t", 4))
def products(x, y):
    both = jnp.einsum("btd,bsd->bts", x, y), jnp.einsum("btd,bsd->b", x, y)
    return both, jnp.tensordot(x, x, ((0, 1), (0, 1))), jax.vmap(lambda m: m.T @ m)(x)


@program(f32("b", "t", 4))
def normalization(x):
    def normal(x):
        return (x - x.mean((0, 1))) / jnp.sqrt(x.var((0, 1)) + 1e-3)

    return normal(x), jax.grad(lambda x: (normal(x) ** 3).sum())(x), jnp.std(x, 0)


@program(f32("b", 4), i32("b"))
def segments(x, ids):
    sums = jax.ops.segment_sum(x, ids % 3, num_segments=3)
    most = jax.ops.segment_max(x, ids, num_segments=x.shape[0])
    return sums, most, optax.softmax_cross_entropy_with_integer_labels(x, ids).mean()


@program(f32("b", "2*t", "2*t", 3))
def pooling(x):
    def pool(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    return pool(x), jax.grad(lambda x: (pool(x) ** 2).sum())(x), x.mean((1, 2))


@program(f32("b", "2*t + 4", 8, 3), f32(3, 3, 3, 4))
def strided_convolution(x, w):
    return lax.conv_general_dilated(x, w, (2, 2), "VALID", dimension_numbers=NHWC)


@program(f32("b", 4), f32(4, 4))
def nested(x, w):
    step = jax.jit(lambda x: jax.checkpoint(lambda y: jnp.tanh(y @ w))(x))

    def body(carry, _):
        return step(carry) + carry.shape[0], carry.mean()

    return lax.scan(body, x, None, length=3), jax.lax.map(lambda row: row.sum(), x)


@program(f32("b", 4))
def dropout(x):
    return jnp.where(jax.random.bernoulli(jax.random.key(1), 0.8, x.shape), x / 0.8, 0.0)


@program(f32("b", 4))
def remainders(x):
    n = x.shape[0]
    return jnp.arange(n) % 2, jnp.full((n // 2 + 1,), n % 3), x.sum() / (n % 4 + 1)


def arrays(name: str, sizes: dict[str, int]) -> list[np.ndarray]:
    """Returns arguments of a program for given sizes of its dimensions."""
    rng = np.random.default_rng(0)
    made = []
    for spec in PROGRAMS[name][1]:
        (shape,) = [export.symbolic_shape(", ".join(map(str, spec.shape)))]
        known = [int(d) if isinstance(d, int) else evaluate(d, sizes) for d in shape]
        if spec.dtype == np.int32:
            made.append(rng.integers(0, 2, known).astype(np.int32))
        else:
            made.append(rng.standard_normal(known).astype(np.float32))
    return made


def evaluate(dimension: Any, sizes: dict[str, int]) -> int:
    return int(dimensions.evaluate(dimensions.parse(str(dimension)), sizes))
