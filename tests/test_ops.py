"""Every example of every op: what comes back from the bytes of a file is the original program.

An example is traced into a graph, through the bytes of a MetaGraphDef and back. The imported
function must lower to the same StableHLO, and it, its derivatives and its batched form must give
the same bits; what the original refuses, such as forward mode of a ``custom_vjp``, it must refuse
too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hlo import canonical_stablehlo, first_difference

import jaxmeta
from jaxmeta._proto import meta_graph_pb2
from jaxmeta.meta_graphs import meta_graph
from jaxmeta.ops import _definition
from jaxmeta.ops._definition import Example, Spec

EXAMPLES = tuple(_definition.EXAMPLES)
every_example = pytest.mark.parametrize(
    "index", range(len(EXAMPLES)), ids=[example.where for example in EXAMPLES]
)


def arrays(example: Example, rng: np.random.Generator) -> list[Any]:
    """Returns the arguments, pytrees with a fresh random array for each spec among the leaves."""
    return jax.tree.map(lambda x: x.array(rng) if isinstance(x, Spec) else x, list(example.specs))


@functools.cache
def round_trip(index: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns an example's function under jit, and what was read back from its file's bytes."""
    example = EXAMPLES[index]
    original = jax.jit(example.fn)
    graph = jaxmeta.Graph()
    graph.add_signature("example", original, *arrays(example, np.random.default_rng(0)))
    content = meta_graph.export_meta_graph(graph=graph).SerializeToString(deterministic=True)
    read = meta_graph.import_graph(meta_graph_pb2.MetaGraphDef.FromString(content))
    return original, jaxmeta.Program(read, {})["example"]


@every_example
def test_imported_example_lowers_to_the_original_stablehlo(index, rng):
    args = arrays(EXAMPLES[index], rng)
    expected, found = (fn.lower(*args).as_text() for fn in round_trip(index))
    if expected != found:
        pytest.fail(
            first_difference(canonical_stablehlo(expected), canonical_stablehlo(found))
            or first_difference(expected, found)
            or ""
        )


@every_example
def test_imported_example_returns_the_original_shapes_and_dtypes(index, rng):
    args = arrays(EXAMPLES[index], rng)
    expected, found = (fn.trace(*args).out_info for fn in round_trip(index))
    assert jax.tree.leaves(expected) == jax.tree.leaves(found)


@every_example
def test_imported_example_gives_the_original_bits(index, rng):
    original, imported = round_trip(index)
    args = arrays(EXAMPLES[index], rng)
    assert_same_bits(original(*args), imported(*args))


@every_example
def test_derivatives_and_batching_of_imported_example_are_the_original_s(index, rng):
    example = EXAMPLES[index]
    original, imported = round_trip(index)
    args = arrays(example, rng)
    operands = {
        "args": args,
        "tangents": [normal(x, rng) for x in real_leaves(args)],
        "cotangents": [normal(x, rng) for x in real_leaves(jax.eval_shape(original, *args))],
        "batches": jax.tree.map(lambda x: jnp.stack([x, x[::-1] if jnp.ndim(x) else x]), args),
    }
    kinds = ["vmap"]
    if example.gradient and operands["tangents"] and operands["cotangents"]:
        kinds += ["vjp", "jvp"]
    expected, refused = lower_kinds(original, operands, kinds)
    found, also_refused = lower_kinds(imported, operands, kinds)
    assert refused == also_refused
    # One program gives one result; compiling both only matters where their texts differ.
    if canonical_stablehlo(expected) != canonical_stablehlo(found):
        assert_same_bits(expected.compile()(operands), found.compile()(operands))


def real_leaves(tree: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(tree) if is_real(x)]


def is_real(array: Any) -> bool:
    dtype = array.dtype if hasattr(array, "dtype") else np.asarray(array).dtype
    return bool(jnp.issubdtype(dtype, jnp.inexact))


def normal(array: Any, rng: np.random.Generator) -> Any:
    values = rng.normal(size=np.shape(array)) + 1j * rng.normal(size=np.shape(array))
    dtype = jnp.result_type(array)
    return (values if jnp.issubdtype(dtype, jnp.complexfloating) else values.real).astype(dtype)


def lower_kinds(
    fn: Callable[..., Any], operands: dict[str, Any], kinds: list[str]
) -> tuple[jax.stages.Lowered, dict[str, type[Exception]]]:
    """Returns one program for all kinds that JAX can lower, and the exceptions of the others."""

    def all_of(kinds: list[str]) -> jax.stages.Lowered:
        def together(operands: dict[str, Any]) -> dict[str, Any]:
            return {kind: KINDS[kind](fn, **operands) for kind in kinds}

        return jax.jit(together).lower(operands)

    refused: dict[str, type[Exception]] = {}
    try:
        return all_of(kinds), refused
    except Exception:
        for kind in kinds:
            try:
                all_of([kind])
            except Exception as error:
                refused[kind] = type(error)
        return all_of([kind for kind in kinds if kind not in refused]), refused


def vmapped(fn: Callable[..., Any], *, batches: list[Any], **_: Any) -> Any:
    return jax.vmap(fn)(*batches)


def pulled_back(fn: Callable[..., Any], *, args: Any, cotangents: Any, **_: Any) -> Any:
    _, vjp = jax.vjp(real_part(fn, args), real_leaves(args))
    return vjp(cotangents)


def pushed_forward(fn: Callable[..., Any], *, args: Any, tangents: Any, **_: Any) -> Any:
    return jax.jvp(real_part(fn, args), [real_leaves(args)], [tangents])


KINDS = {"vmap": vmapped, "vjp": pulled_back, "jvp": pushed_forward}


def real_part(fn: Callable[..., Any], args: Any) -> Callable[[list[Any]], list[Any]]:
    """Returns the function of its real leaves alone that gives the real leaves of its results."""
    leaves, structure = jax.tree.flatten(args)

    def real_fn(reals: list[Any]) -> list[Any]:
        given = iter(reals)
        return real_leaves(
            fn(*jax.tree.unflatten(structure, [next(given) if is_real(x) else x for x in leaves]))
        )

    return real_fn


def paths(tree):
    """Returns the leaves' paths, which a NamedTuple of the same name and fields has too."""
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def assert_same_bits(expected: Any, found: Any) -> None:
    """Compares all leaves and their paths; a NamedTuple comes back as one of the same fields."""
    wanted, had = map(jax.tree_util.tree_leaves_with_path, (expected, found))
    assert [path for path, _ in wanted] == [path for path, _ in had]
    different = [
        f"{jax.tree_util.keystr(path)}: expected {want}, found {have}"
        for (path, want), (_, have) in zip(wanted, had, strict=True)
        if bits(want) != bits(have)
    ]
    assert different == []


def bits(result: Any) -> Any:
    if jnp.issubdtype(result.dtype, jax.dtypes.prng_key):
        return result.dtype, bits(jax.random.key_data(result))
    array = np.asarray(result)
    return array.dtype, array.shape, array.tobytes()
