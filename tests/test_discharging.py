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


def in_a_checkpoint(x):
    ref = jax.new_ref(x)

    @jax.checkpoint
    def change(y):
        inner = jax.new_ref(y)
        inner[0] = 3.0
        ref[...] += inner[...]
        return jnp.sin(y) * ref[0]

    return change(x), ref[...], jax.grad(lambda y: scratch(y).sum())(x)


@jax.checkpoint
def scratch(x):
    ref = jax.new_ref(x)
    ref[1] = x[0] * x[2]
    return jnp.sin(ref[...])


@jax.custom_vjp
def with_a_rule(x):
    ref = jax.new_ref(x)
    ref[0] = 2.0
    return ref[...] * 2


def with_a_rule_fwd(x):
    return with_a_rule(x), x


def with_a_rule_bwd(x, g):
    ref = jax.new_ref(g)
    ref[0] *= 7.0
    return (ref[...] + x,)


with_a_rule.defvjp(with_a_rule_fwd, with_a_rule_bwd)


def in_a_rule(x):
    return with_a_rule(x), jax.grad(lambda y: jnp.sum(with_a_rule(y) ** 2))(x)


def in_a_condition(x):
    limit = jax.new_ref(x)
    limit[0] = 5.0

    def cond(count):
        scratch = jax.new_ref(count)
        scratch[...] *= 2.0
        return scratch[...] < limit[0]

    return lax.while_loop(cond, lambda count: count + 1.0, 0.5)


def in_a_shard_map(x):
    def change(y):
        ref = jax.new_ref(y)
        ref[0] = 1.0
        return ref[...]

    mesh = jax.make_mesh((1,), ("a",))
    spec = jax.sharding.PartitionSpec()
    spread = jax.shard_map(change, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return spread(x)


def from_computed_places(x):
    ref = jax.new_ref(jnp.concatenate([x, x]))
    start = jnp.asarray(x[0] > 0, np.int32) * 2
    ref[jax.ds(start, 2)] = x[:2] * 3.0
    return ref[jax.ds(start + 1, 3)], ref[start], ref[...]


def from_places_outside(x):
    ref = jax.new_ref(x)
    place = jnp.asarray(x[0] * 0, np.int32) + 7
    ref[place] = 9.0
    ref[jax.ds(place - 20, 2)] += x[:2]
    return ref[place], ref[jax.ds(place, 2)], ref[...]


def by_arrays_between_slices(x):
    ref = jax.new_ref(jnp.outer(jnp.arange(4.0), x)[None] * jnp.ones((3, 1, 1)))
    places = jnp.array([0, 2])
    ref[places, 1:3, places] = jnp.ones((2, 2))
    jax.ref.addupdate(ref, (places, slice(0, 2), places), jnp.ones((2, 2)))
    far = jnp.array([[0, 1], [1, 9]])
    return ref[:, places], ref[places, 1:3, places], ref[0::2, places, 1], ref[far, :, 2]


def through_views(x):
    ref = jax.new_ref(jnp.stack([x, x * 2]))
    view = ref.at[1]
    view[1:] = x[:2]
    return view[0:2], ref.at[0].at[1:][0], ref[...]


def from_nothing(x):
    ref = jax.empty_ref(jax.typeof(x))
    ref[...] = x * 2
    return ref[...]


PROGRAMS = [
    straight,
    frozen,
    gathered,
    in_a_function,
    in_a_scan,
    in_a_loop,
    in_a_branch,
    in_a_checkpoint,
    in_a_rule,
    in_a_condition,
    in_a_shard_map,
    from_computed_places,
    from_places_outside,
    by_arrays_between_slices,
    through_views,
    from_nothing,
]


@pytest.mark.parametrize("fn", PROGRAMS)
def test_program_with_references_gives_the_original_bits(fn, rng):
    for _ in range(3):
        x = rng.normal(size=3).astype(np.float32)
        expected, found = jax.tree.leaves(jax.jit(fn)(x)), jax.tree.leaves(loaded(fn, x)(x))
        assert [(a.dtype, np.asarray(a).tobytes()) for a in found] == [
            (a.dtype, np.asarray(a).tobytes()) for a in expected
        ]


def test_gradient_through_references_in_a_rule_is_the_rule_s(rng):
    x = rng.normal(size=3).astype(np.float32)
    imported = loaded(with_a_rule, x)
    expected, found = (jax.grad(lambda y, f=f: jnp.sum(f(y)))(x) for f in (with_a_rule, imported))
    np.testing.assert_array_equal(found, expected)


def test_loop_whose_condition_reads_what_its_body_writes_is_refused():
    # JAX gives the condition what the reference held before the loop.
    def fn(x):
        ref = jax.new_ref(x)

        def body(count):
            ref[0] *= 2.0
            return count + 1.0

        return lax.while_loop(lambda count: (count < 10) & (ref[0] < 20), body, 1.0), ref[...]

    with pytest.raises(jaxmeta.UnsupportedPrimitiveError, match=r"new_ref .*test_discharging.py"):
        loaded(fn, jnp.ones(3))
