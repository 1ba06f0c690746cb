"""Every example of every op in stock TensorFlow, as one XLA program and as single nodes.

What an example's ``not_in_tensorflow`` says is checked too: where TensorFlow does as JAX does after
all, the remark is out of date.
"""

from __future__ import annotations

import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tensorflow_oracle

from jaxmeta._proto import graph_pb2
from jaxmeta.graphs import graph
from jaxmeta.ops import _definition
from jaxmeta.ops._definition import Example, Spec
from jaxmeta.tracing import trace

EXAMPLES = tuple(_definition.EXAMPLES)
# Where an outcome depends on chance, such as the sign of an eigenvector, so many inputs are tried.
ATTEMPTS = 5

pytestmark = pytest.mark.needs_tf


def with_examples(*, in_tensorflow: bool) -> pytest.MarkDecorator:
    chosen = [i for i, e in enumerate(EXAMPLES) if (not e.not_in_tensorflow) == in_tensorflow]
    return pytest.mark.parametrize("index", chosen, ids=[EXAMPLES[i].where for i in chosen])


def arrays(example: Example, seed: int) -> list[Any]:
    rng = np.random.default_rng([seed, zlib.crc32(example.where.encode())])
    return jax.tree.map(lambda x: x.array(rng) if isinstance(x, Spec) else x, list(example.specs))


@functools.cache
def traced(index: int) -> tuple[Any, graph_pb2.GraphDef, str]:
    """Returns an example's function under jit, the graph that holds it, and its name there."""
    example = EXAMPLES[index]
    original = jax.jit(example.fn)
    builder = graph.GraphBuilder()
    tracing = trace.Tracing.into(builder)
    name = trace.lower_function(tracing, original.trace(*arrays(example, 0)).jaxpr, "example")
    tracing.commit("example")
    return original, builder.as_graph_def(), name


@functools.cache
def operands_and_results(index: int, seed: int) -> tuple[list[Any], list[Any]]:
    original, _, _ = traced(index)
    args = arrays(EXAMPLES[index], seed)
    results = original(*args)
    return [physical(x) for x in jax.tree.leaves(args)], list(
        map(physical, jax.tree.leaves(results))
    )


def physical(value: Any) -> np.ndarray[Any, Any]:
    """Returns an array as TensorFlow sees it: typed keys as their uint32 data."""
    value = jnp.asarray(value)
    is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(value) if is_key else value)


def faults(index: int, seed: int, *, must_compile: bool) -> list[str]:
    """Runs an example in TensorFlow and returns in what its results are not JAX's."""
    _, graph_def, name = traced(index)
    operands, expected = operands_and_results(index, seed)
    found = tensorflow_oracle.run_in_tensorflow(graph_def, name, operands, must_compile)
    assert len(found) == len(expected)
    return [
        f"result {position}: {fault}"
        for position, (have, want) in enumerate(zip(found, expected, strict=True))
        if (fault := difference(have, want, EXAMPLES[index].tolerance))
    ]


def difference(found: Any, expected: Any, tolerance: float) -> str:
    """Returns in what two arrays differ by more than their largest element times a tolerance."""
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return f"{found.dtype}{found.shape}, not {expected.dtype}{expected.shape}"
    if not tolerance or not jnp.issubdtype(found.dtype, jnp.inexact):
        return "" if found.tobytes() == expected.tobytes() else f"{found} is not\n{expected}"
    # What has few bits is right where it is as close as its own precision.
    tolerance = max(tolerance, 2 * float(ml_dtypes.finfo(found.dtype).eps))
    wide = np.complex128 if found.dtype.kind == "c" else np.float64
    found, expected = found.astype(wide), expected.astype(wide)
    largest = np.max(np.abs(expected), where=np.isfinite(expected), initial=0.0)
    try:
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * largest)
    except AssertionError as error:
        return str(error)
    return ""


@with_examples(in_tensorflow=True)
def test_example_compiled_by_tensorflow_gives_what_jax_gives(index, tensorflow):
    assert faults(index, 0, must_compile=True) == []


@with_examples(in_tensorflow=True)
def test_example_as_single_nodes_of_tensorflow_gives_what_jax_gives(index, tensorflow):
    try:
        assert faults(index, 0, must_compile=False) == []
    except tensorflow.errors.InvalidArgumentError as error:
        if "No OpKernel was registered" not in error.message:
            raise
        pytest.xfail("TensorFlow has a kernel for this dtype under XLA only")


@with_examples(in_tensorflow=False)
def test_example_that_is_not_in_tensorflow_really_differs(index, tensorflow):
    """One of the two ways refuses, or gives other values."""
    for seed in range(ATTEMPTS):
        for must_compile in (True, False):
            try:
                if faults(index, seed, must_compile=must_compile):
                    return
            except tensorflow.errors.OpError:
                return
    pytest.fail(
        f"TensorFlow does as JAX does; is it still true that {EXAMPLES[index].not_in_tensorflow}?"
    )
