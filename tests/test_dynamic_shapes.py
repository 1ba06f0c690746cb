"""Programs with symbolic dimensions: traced once, run at any size, in JAX and in TensorFlow."""

from __future__ import annotations

import functools
from typing import Any

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_oracle
from flax import linen as nn
from jax import export, lax

import jaxmeta as jm
from jaxmeta import graph
from jaxmeta.program import build_function

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


@functools.cache
def traced(name: str) -> tuple[Any, Any, graph.GraphBuilder]:
    """Returns a program, its function as it was loaded, and the graph that holds it."""
    fn, specs = PROGRAMS[name]
    builder = jm.Graph()
    signature = builder.add_signature(name, fn, *specs)
    return jax.jit(fn), build_function(builder, signature), builder


def arrays(name: str, sizes: dict[str, int]) -> list[np.ndarray]:
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
    from jaxmeta import dimensions

    return int(dimensions.evaluate(dimensions.parse(str(dimension)), sizes))


def assert_same(found: Any, expected: Any) -> None:
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_gives_what_jit_gives_at_any_size(name):
    original, loaded, _ = traced(name)
    for sizes in SIZES:
        args = arrays(name, sizes)
        assert_same(loaded(*args), original(*args))


# JAX itself traces other equations where a size is symbolic: it cannot tell that a slice is whole,
# and computes with a size that it is asked to return.
OTHER_EQUATIONS = {"expressions", "reshapes"}


@pytest.mark.parametrize("name", sorted(PROGRAMS.keys() - OTHER_EQUATIONS))
def test_program_compiles_to_what_jit_compiles_to(name):
    original, loaded, _ = traced(name)
    args = arrays(name, SIZES[1])
    difference = hlo.first_difference(
        hlo.canonical_hlo(original.lower(*args).compile()),
        hlo.canonical_hlo(loaded.lower(*args).compile()),
    )
    assert difference is None, difference


@pytest.mark.parametrize("name", PROGRAMS)
def test_loaded_program_is_exported_with_symbolic_dimensions_again(name):
    original, loaded, _ = traced(name)
    specs = [
        Spec(shape, spec.dtype)
        for spec, shape in zip(PROGRAMS[name][1], symbolic_shapes(name), strict=True)
    ]
    exported = export.export(loaded)(*specs)
    args = arrays(name, SIZES[1])
    for found, expected in zip(
        jax.tree.leaves(exported.call(*args)), jax.tree.leaves(original(*args)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def symbolic_shapes(name: str) -> list[Any]:
    scope = export.SymbolicScope()
    texts = [", ".join(map(str, spec.shape)) for spec in PROGRAMS[name][1]]
    return [export.symbolic_shape(f"({text},)", scope=scope) for text in texts]


@pytest.mark.needs_tf
@pytest.mark.parametrize("name", PROGRAMS)
def test_tensorflow_runs_the_program_at_any_size(name, tensorflow):
    original, _, builder = traced(name)
    function = builder.nodes[name].attr["f"].func.name
    for sizes in SIZES[1:]:
        args = arrays(name, sizes)
        expected = jax.tree.leaves(original(*args))
        for must_compile in (True, False):
            found = tensorflow_oracle.run_in_tensorflow(
                builder.as_graph_def(), function, args, must_compile
            )
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
