"""Mutable arrays: programs with references come back as programs of plain arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxmeta
from jaxmeta._proto import meta_graph_pb2
from jaxmeta.meta_graphs import meta_graph


def straight(x):
    ref = jax.new_ref(x)
    ref[0] = 5.0
    ref[1:] += 2.0
    ref[...] = ref[...] * 2
    return ref[...], ref[2]


def frozen(x):
    ref = jax.new_ref(x)
    ref[1] += 1.0
    return jax.freeze(ref)


def gathered(x):
    ref = jax.new_ref(x)
    ref[jnp.array([2, 0])] = x[:2] * 3.0
    return ref[jnp.array([0, 2, 1])]


def in_a_function(x):
    ref = jax.new_ref(x)

    @jax.jit
    def change(y):
        ref[...] += y
        return ref[0]

    return change(x) + change(2 * x), ref[...]


def in_a_scan(x):
    total = jax.new_ref(jnp.zeros(()))

    def body(carry, y):
        total[...] += y * carry
        return carry + 1.0, total[...]

    carry, ys = lax.scan(body, 0.5, x, reverse=True)
    return carry, ys, total[...]


def in_a_loop(x):
    ref = jax.new_ref(x)

    def body(i, y):
        ref[i] = y + i
        return ref[i] * 2.0

    return lax.fori_loop(0, 3, body, 1.0), ref[...]


def in_a_branch(x):
    ref = jax.new_ref(x)

    def add(y):
        ref[...] += y
        return y

    def keep(y):
        return y * 3.0

    return lax.cond(x[0] > 0, add, keep, x), ref[...]


def loaded(fn, *args):
    graph = jaxmeta.Graph()
    graph.add_signature("f", jax.jit(fn), *args)
    content = meta_graph.export_meta_graph(graph=graph).SerializeToString(deterministic=True)
    read = meta_graph.import_graph(meta_graph_pb2.MetaGraphDef.FromString(content))
    return jaxmeta.Program(read, {})["f"]


@pytest.mark.parametrize(
    "fn", [straight, frozen, gathered, in_a_function, in_a_scan, in_a_loop, in_a_branch]
)
def test_program_with_references_gives_the_original_bits(fn, rng):
    for _ in range(3):
        x = rng.normal(size=3).astype(np.float32)
        expected, found = jax.tree.leaves(jax.jit(fn)(x)), jax.tree.leaves(loaded(fn, x)(x))
        assert [(a.dtype, np.asarray(a).tobytes()) for a in found] == [
            (a.dtype, np.asarray(a).tobytes()) for a in expected
        ]


def test_reference_that_is_not_understood_is_refused(rng):
    def fn(x):
        ref = jax.new_ref(x)

        @jax.checkpoint
        def change(y):
            ref[...] = y
            return jnp.sin(y)

        return change(x), ref[...]

    with pytest.raises(jaxmeta.UnsupportedPrimitiveError, match=r"new_ref .*test_discharging.py"):
        loaded(fn, jnp.ones(3))
