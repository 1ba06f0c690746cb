"""What tests of state trees share: a trip through file and checkpoint, and what must survive it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmeta


def save_and_load(state: Any, directory: Any) -> jaxmeta.Program:
    """Returns the loaded program of a state and of a signature ``same`` that returns it."""
    graph = jaxmeta.Graph()
    graph.add_signature("same", lambda state: state, graph.variables(state))
    with jaxmeta.Saver(graph) as saver:
        prefix = saver.save(state, f"{directory}/model")
    return jaxmeta.load(prefix)


def described(leaf: Any) -> tuple[Any, ...]:
    """Returns all that `jax.jit` sees of a leaf, and its bits."""
    aval = jax.make_jaxpr(lambda x: x)(leaf).in_avals[0]
    is_key = jnp.issubdtype(aval.dtype, jax.dtypes.prng_key)
    array = jax.random.key_data(leaf) if is_key else jnp.asarray(leaf)
    return str(aval.dtype), aval.shape, aval.weak_type, np.asarray(array).tobytes()


def described_leaves(state: Any) -> list[tuple[str, tuple[Any, ...]]]:
    """Returns the path of each leaf as JAX prints it, and `described` of it, in order."""
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    return [(jax.tree_util.keystr(path), described(leaf)) for path, leaf in flat]
