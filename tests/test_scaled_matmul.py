"""Block-scaled products, which JAX traces everywhere and runs on GPUs only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorflow_oracle import run_in_tensorflow

import jaxmeta as jm
from jaxmeta._proto import meta_graph_pb2
from jaxmeta.meta_graphs import meta_graph

E4M3, E8M0 = jnp.float8_e4m3fn, jnp.float8_e8m0fnu


def multiply(x, y, x_scales, y_scales):
    return jax.nn.scaled_matmul(
        x.astype(E4M3), y.astype(E4M3), x_scales.astype(E8M0), y_scales.astype(E8M0)
    )


def scaled_dot_general(x, y):
    configs = [jax.nn.get_scaled_dot_general_config("mxfp8") for _ in range(3)]
    return jax.nn.scaled_dot_general(x, y, (((2,), (2,)), ((0,), (0,))), configs=configs)


def round_trip(fn, *args):
    graph = jm.Graph()
    graph.add_signature("call", jax.jit(fn), *args)
    content = meta_graph.export_meta_graph(graph=graph).SerializeToString(deterministic=True)
    read = meta_graph.import_graph(meta_graph_pb2.MetaGraphDef.FromString(content))
    return jm.Program(read, {})["call"]


def operands(rng, *sizes):
    x, y = (rng.normal(size=(2, size, 64)).astype(np.float32) for size in sizes or (4, 3))
    return x, y


def scales(rng, x):
    return np.exp2(rng.integers(-2, 3, (*x.shape[:2], 2))).astype(np.float32)


def primitives(jaxpr):
    found = []
    for eqn in jaxpr.eqns:
        inner = [p for p in eqn.params.values() if hasattr(p, "eqns")]
        found += [line for part in inner for line in primitives(part)]
        shapes = [(v.aval.shape, str(v.aval.dtype)) for v in eqn.outvars]
        if not inner:
            found.append((eqn.primitive.name, shapes))
    return found


def test_scaled_matmul_comes_back_as_the_same_program(rng):
    x, y = operands(rng)
    args = x, y, scales(rng, x), scales(rng, y)
    found = primitives(jax.make_jaxpr(round_trip(multiply, *args))(*args))
    assert found == primitives(jax.make_jaxpr(multiply)(*args))
    assert "scaled_matmul_wrapper" in {name for name, _ in found}


def test_scaled_dot_general_and_its_gradient_come_back_as_the_same_program(rng):
    args = operands(rng, 64, 32)
    imported = round_trip(scaled_dot_general, *args)
    for transform in (lambda fn: fn, lambda fn: jax.grad(lambda x, y: fn(x, y).sum())):
        found = primitives(jax.make_jaxpr(transform(imported))(*args))
        expected = primitives(jax.make_jaxpr(transform(scaled_dot_general))(*args))
        counts = [
            [name for name, _ in side].count("scaled_matmul_wrapper") for side in (found, expected)
        ]
        assert counts[0] == counts[1] > 0


def test_product_whose_gradient_jax_refuses_for_its_shapes_comes_back_without_one(rng):
    args = operands(rng, 4, 3)
    imported = round_trip(scaled_dot_general, *args)
    assert jax.eval_shape(imported, *args) == jax.eval_shape(scaled_dot_general, *args)
    with pytest.raises(AssertionError):
        jax.make_jaxpr(jax.grad(lambda x, y: scaled_dot_general(x, y).sum()))(*args)
    with pytest.raises(jm.DerivativeError, match="AssertionError"):
        jax.make_jaxpr(jax.grad(lambda x, y: imported(x, y).sum()))(*args)


@pytest.mark.needs_tf
def test_tensorflow_multiplies_what_is_scaled(rng, tensorflow):
    x, y = operands(rng)
    args = x, y, scales(rng, x), scales(rng, y)
    graph = jm.Graph()
    graph.add_signature("call", multiply, *args)
    (name,) = (name for name in graph.functions if name.startswith("call"))
    (found,) = run_in_tensorflow(graph, name, args)
    tiny = [np.asarray(jnp.asarray(a).astype(E4M3).astype(np.float32)) for a in (x, y)]
    wide = [np.repeat(s, 32, axis=-1) for s in args[2:]]
    expected = np.einsum("bmk,bnk->bmn", tiny[0] * wide[0], tiny[1] * wide[1])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "fn",
    [lambda x: x.astype(E8M0), lambda x: (x.astype(E8M0) + x.astype(E8M0)).astype(np.float32)],
    ids=["returned", "added"],
)
def test_scales_that_tensorflow_cannot_hold_are_refused(fn):
    with pytest.raises(jm.UnsupportedPrimitiveError, match="e8m0fnu"):
        jm.Graph().add_signature("call", fn, np.ones(3, np.float32))
