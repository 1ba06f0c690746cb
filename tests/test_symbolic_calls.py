"""Functions called on tensors of unknown sizes: each equation is a node that takes any."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from symbolic_programs import PROGRAMS, SIZES, arrays

import jaxmeta as jm

# The largest batch is for what has no other dimension; TensorFlow's kernels take the others.
BATCHES = ({"b": 1}, {"b": 7}, {"b": 128})
BY_BATCH = ("dense", "dropout", "noise", "segments", "nested", "remainders")


def called(name: str) -> tuple[Any, list[Any]]:
    """Returns a graph with a call of a program, and the tensors that it gives."""
    fn, specs = PROGRAMS[name]
    with jm.Graph().as_default() as graph:
        tensors = [
            jm.placeholder(spec.dtype, spec.shape, f"x{index}") for index, spec in enumerate(specs)
        ]
        results = jm.call(fn, *tensors, name="f")
    return graph, jax.tree.leaves(results, is_leaf=lambda leaf: isinstance(leaf, jm.Tensor))


def feeds(name: str, sizes: dict[str, int]) -> dict[str, Any]:
    return {f"x{index}:0": array for index, array in enumerate(arrays(name, sizes))}


def sizes_for(name: str) -> Any:
    return BATCHES if name in BY_BATCH else SIZES


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", PROGRAMS)
def test_call_gives_what_jit_gives_at_any_size(name):
    graph, tensors = called(name)
    with jm.Session(graph=graph) as session:
        for sizes in sizes_for(name):
            expected = jax.tree.leaves(jax.jit(PROGRAMS[name][0])(*arrays(name, sizes)))
            assert_close(session.run(tensors, feeds(name, sizes)), expected, 1e-5)


@pytest.mark.needs_tf
@pytest.mark.parametrize("name", PROGRAMS)
def test_tensorflow_runs_the_nodes_of_a_call_at_any_size(name, tensorflow):
    tf = tensorflow.compat.v1
    graph, tensors = called(name)
    graph_def = tf.GraphDef.FromString(graph.as_graph_def().SerializeToString())
    with tensorflow.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(graph_def, name="")
        for sizes in sizes_for(name)[1:]:
            expected = jax.tree.leaves(jax.jit(PROGRAMS[name][0])(*arrays(name, sizes)))
            found = session.run([tensor.name for tensor in tensors], feeds(name, sizes))
            assert_close(found, expected, 1e-4)
