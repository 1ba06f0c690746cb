"""Functions with vmap rules of their own: what was loaded is batched by the rule, or refuses."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hlo import canonical_stablehlo
from jax import lax
from jax.custom_batching import custom_vmap, sequential_vmap

import jaxmeta as jm
from jaxmeta._proto import meta_graph_pb2
from jaxmeta.meta_graphs import meta_graph


def through_bytes(fn, *args):
    graph = jm.Graph()
    graph.add_signature("call", jax.jit(fn), *args)
    content = meta_graph.export_meta_graph(graph=graph).SerializeToString(deterministic=True)
    read = meta_graph.import_graph(meta_graph_pb2.MetaGraphDef.FromString(content))
    return jm.Program(read, {})["call"]


def assert_same_program(fn, imported, *args):
    texts = [canonical_stablehlo(jax.jit(f).lower(*args).as_text()) for f in (fn, imported)]
    assert texts[0] == texts[1]
    assert_same_bits(fn, imported, *args)


def assert_same_bits(fn, imported, *args):
    for expected, found in zip(
        jax.tree.leaves(jax.jit(fn)(*args)), jax.tree.leaves(jax.jit(imported)(*args)), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@custom_vmap
def scaled(x, y):
    return jnp.sin(x) * y


@scaled.def_vmap
def scaled_batch(axis_size, in_batched, x, y):
    if not in_batched[0]:
        return x + jnp.cos(y), True
    if not in_batched[1]:
        return x * 2 - y, True
    return x * y + lax.broadcasted_iota(x.dtype, x.shape, 0), True


@custom_vmap
def paired(pair):
    return {"first": pair[0] + 1.0, "second": pair[1] * 2.0}


@paired.def_vmap
def paired_batch(axis_size, in_batched, pair):
    first = pair[0] + (100.0 if in_batched[0][0] else 10.0)
    return {"first": first, "second": pair[1] * 3.0}, {
        "first": in_batched[0][0],
        "second": in_batched[0][1],
    }


one_by_one = sequential_vmap(lambda x: jnp.cumsum(x) / x[0])


@custom_vmap
def any_rank(x):
    return jnp.sum(x * x, axis=-1)


@any_rank.def_vmap
def any_rank_batch(axis_size, in_batched, x):
    return any_rank(x * 2.0), True


@custom_vmap
def needs_size(x):
    return x * 2.0


@needs_size.def_vmap
def needs_size_batch(axis_size, in_batched, x):
    return (x if axis_size > 3 else -x), True


@pytest.fixture
def arrays(rng):
    return [rng.uniform(0.5, 2.0, (4, 3)).astype(np.float32) for _ in range(2)]


@pytest.mark.parametrize("in_axes", [(0, 0), (0, None), (None, 0), (1, 1), (1, None)])
def test_loaded_function_is_batched_by_the_rule_for_these_operands(in_axes, arrays):
    imported = through_bytes(scaled, arrays[0][0], arrays[0][0])
    square = arrays[0][:3] if 1 in in_axes else arrays[0]
    operands = [square if axis is not None else square[0] for axis in in_axes]
    assert_same_program(jax.vmap(jax.jit(scaled), in_axes), jax.vmap(imported, in_axes), *operands)


def test_loaded_function_runs_and_has_forward_derivatives_as_the_original(arrays):
    x, y = arrays
    imported = through_bytes(scaled, x, y)
    assert_same_program(jax.jit(scaled), imported, x, y)
    pushed = [functools.partial(jax.jvp, fn) for fn in (jax.jit(scaled), imported)]
    assert_same_program(*pushed, (x, y), (y, x))
    batched = [
        functools.partial(jax.jvp, jax.vmap(fn))
        for fn in (jax.jit(scaled), through_bytes(scaled, x[0], y[0]))
    ]
    assert_same_program(*batched, (x, y), (y, x))


@pytest.mark.parametrize("in_axes", [(0, 0), (0, None), (None, 0)])
def test_rule_says_which_results_have_a_batch(in_axes, arrays):
    imported = through_bytes(paired, (arrays[0][0], arrays[1][0]))
    pair = tuple(a if axis == 0 else a[0] for a, axis in zip(arrays, in_axes, strict=True))
    transforms = [jax.vmap(fn, in_axes=(in_axes,)) for fn in (jax.jit(paired), imported)]
    assert_same_program(*transforms, pair)


@pytest.mark.parametrize("fn", [one_by_one, any_rank])
def test_rule_that_calls_its_own_function_applies_twice(fn, rng):
    x = rng.uniform(0.5, 2.0, (2, 4, 3)).astype(np.float32)
    imported = through_bytes(fn, x[0, 0])
    for count in (1, 2):
        batched = [
            functools.reduce(lambda f, _: jax.vmap(f), range(count), f)
            for f in (jax.jit(fn), imported)
        ]
        assert_same_program(*batched, x if count == 2 else x[0])


def test_rule_is_refused_where_it_would_nest_without_end(rng):
    x = rng.normal(size=(2, 2, 2, 3)).astype(np.float32)
    imported = through_bytes(any_rank, x[0, 0, 0])
    with pytest.raises(jm.UnsupportedPrimitiveError, match="deep in itself"):
        jax.vmap(jax.vmap(jax.vmap(imported)))(x)


def test_rule_that_asks_for_a_number_is_refused_when_it_is_needed(arrays):
    imported = through_bytes(needs_size, arrays[0])
    np.testing.assert_array_equal(imported(arrays[0]), arrays[0] * 2)
    with pytest.raises(jm.UnsupportedPrimitiveError, match=r"cannot vmap .*\n.*Inconclusive"):
        jax.vmap(imported)(np.stack(arrays))


def test_rule_that_prints_is_refused_when_it_is_needed(arrays):
    @custom_vmap
    def fn(x):
        return x + 1.0

    @fn.def_vmap
    def rule(axis_size, in_batched, x):
        jax.debug.print("{}", x)
        return x + 1.0, True

    imported = through_bytes(fn, arrays[0])
    np.testing.assert_array_equal(imported(arrays[0]), arrays[0] + 1)
    with pytest.raises(jm.UnsupportedPrimitiveError, match="debug_"):
        jax.vmap(imported)(np.stack(arrays))


def test_rule_with_its_own_error_is_refused_when_it_is_needed(arrays):
    @custom_vmap
    def fn(x, y):
        return x + y

    @fn.def_vmap
    def rule(axis_size, in_batched, x, y):
        if not all(in_batched):
            raise ValueError("both, please")
        return x - y, True

    imported = through_bytes(fn, arrays[0][0], arrays[0][0])
    assert_same_program(jax.vmap(jax.jit(fn)), jax.vmap(imported), *arrays)
    with pytest.raises(jm.UnsupportedPrimitiveError, match="both, please"):
        jax.vmap(imported, (0, None))(arrays[0], arrays[0][0])


def test_function_of_many_operands_has_the_rules_that_are_likely(arrays):
    @custom_vmap
    def fn(*xs):
        return sum(xs)

    @fn.def_vmap
    def rule(axis_size, in_batched, *xs):
        return sum(x * (2.0 if flag else 1.0) for x, flag in zip(xs, in_batched, strict=True)), True

    imported = through_bytes(fn, *[arrays[0][0]] * 6)
    for in_axes in ((0,) * 6, (0,) + (None,) * 5, (None,) + (0,) * 5):
        operands = [arrays[0] if axis == 0 else arrays[0][0] for axis in in_axes]
        assert_same_program(jax.vmap(jax.jit(fn), in_axes), jax.vmap(imported, in_axes), *operands)
    in_axes = (0, 0, None, None, None, None)
    with pytest.raises(jm.UnsupportedPrimitiveError, match="not traced for this choice"):
        jax.vmap(imported, in_axes)(*[arrays[0] if axis == 0 else arrays[0][0] for axis in in_axes])


def test_function_that_closes_over_arrays_is_batched_by_its_rule(arrays):
    def program(x):
        @custom_vmap
        def fn(y):
            return y * 2.0

        @fn.def_vmap
        def rule(axis_size, in_batched, y):
            return y + arrays[1][0], True

        return jax.vmap(fn)(x) + fn(x)

    assert_same_program(jax.jit(program), through_bytes(program, arrays[0]), arrays[0])


def test_two_rules_of_one_function_stay_apart(arrays):
    def double(x):
        return x * 2.0

    fns = []
    for sign in (1.0, -1.0):
        fn = custom_vmap(double)
        fn.def_vmap(lambda axis_size, in_batched, x, sign=sign: (x * sign, True))
        fns.append(fn)

    def program(x):
        return fns[0](x) + 3.0 * fns[1](x)

    imported = through_bytes(program, arrays[0][0])
    assert_same_program(jax.vmap(jax.jit(program)), jax.vmap(imported), arrays[0])


def test_symbolic_batch_and_vmap_go_together(arrays):
    spec = jax.ShapeDtypeStruct(("batch", 3), np.float32)
    graph = jm.Graph()
    graph.add_signature("call", lambda x, y: scaled(x, y) + 1.0, spec, spec)
    content = meta_graph.export_meta_graph(graph=graph).SerializeToString(deterministic=True)
    read = meta_graph.import_graph(meta_graph_pb2.MetaGraphDef.FromString(content))
    imported = jm.Program(read, {})["call"]
    assert_same_bits(lambda x, y: scaled(x, y) + 1.0, imported, *arrays)


def test_what_was_loaded_is_saved_again_with_its_rules(arrays):
    once = through_bytes(one_by_one, arrays[0][0])
    twice = through_bytes(once, arrays[0][0])
    assert_same_bits(jax.vmap(one_by_one), jax.vmap(twice), arrays[0])


def test_grafted_function_keeps_its_rules(arrays):
    graph = jm.Graph()
    graph.add_signature("call", one_by_one, arrays[0][0])
    other = jm.Graph()
    other.add_signature("call", one_by_one, arrays[0][0])
    with other.as_default():
        jm.import_meta_graph(meta_graph.export_meta_graph(graph=graph), import_scope="again")
    imported = jm.Program(other, {})["call"]
    assert_same_program(jax.vmap(jax.jit(one_by_one)), jax.vmap(imported), arrays[0])


@jax.custom_vjp
def clipped(x):
    return one_by_one(x)


clipped.defvjp(lambda x: (one_by_one(x), x), lambda x, g: (jnp.clip(g, -1, 1) * one_by_one(x),))


def test_reverse_mode_around_it_comes_back(arrays):
    imported = through_bytes(clipped, arrays[0][0])
    losses = [lambda x, fn=fn: jnp.sum(jax.vmap(fn)(x) ** 2) for fn in (jax.jit(clipped), imported)]
    assert_same_bits(*map(jax.grad, losses), arrays[0])
