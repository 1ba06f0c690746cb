"""Arrays of typed keys: what works on whole keys does so on each as one, not on its data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta as jm
from jaxmeta._proto import meta_graph_pb2
from jaxmeta.meta_graphs import meta_graph


def compared(keys):
    folded = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
    return keys == folded, keys != folded, keys == keys[0], keys[0] != keys, keys[1] == keys[1]


def repeated(keys):
    return jnp.tile(keys, 2), jnp.tile(keys, (2, 3)), jnp.repeat(keys, 2)


def moved(keys):
    return keys[::-1], jnp.roll(keys, 1), jnp.stack([keys, keys], axis=1).T, keys[None, :, None]


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("fn", [compared, repeated, moved])
def test_function_of_keys_gives_the_original_bits(fn, impl):
    keys = jax.random.split(jax.random.key(3, impl=impl), 4)
    graph = jm.Graph()
    graph.add_signature("call", jax.jit(fn), keys)
    content = meta_graph.export_meta_graph(graph=graph).SerializeToString(deterministic=True)
    read = meta_graph.import_graph(meta_graph_pb2.MetaGraphDef.FromString(content))
    expected, found = jax.jit(fn)(keys), jm.Program(read, {})["call"](keys)
    for want, have in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        assert (have.dtype, have.shape) == (want.dtype, want.shape)
        if jnp.issubdtype(want.dtype, jax.dtypes.prng_key):
            want, have = map(jax.random.key_data, (want, have))
        np.testing.assert_array_equal(have, want)
