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
from jaxmeta import meta_graph
from jaxmeta._proto import meta_graph_pb2
from jaxmeta.ops import _definition
from jaxmeta.ops._definition import Example, Spec

EXAMPLES = tuple(_definition.EXAMPLES)
every_example = pytest.mark.parametrize(
    "index", range(len(EXAMPLES)), ids=[example.where for example in EXAMPLES]
)


def arrays(example: Example, rng: np.random.Generator) -> list[Any]:
    return [spec.array(rng) if isinstance(spec, Spec) else spec for spec in example.specs]


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
    assert expected == found


@every_example
def test_imported_example_and_its_derivatives_give_the_original_bits(index, rng):
    example = EXAMPLES[index]
    original, imported = round_trip(index)
    args = arrays(example, rng)
    outputs = jax.tree.leaves(jax.eval_shape(original, *args))
    operands = {
        "args": args,
        "tangents": [rng.normal(size=np.shape(x)).astype(x.dtype) for x in args if is_real(x)],
        "cotangents": [rng.normal(size=x.shape).astype(x.dtype) for x in outputs if is_real(x)],
        "batches": [np.stack([x, np.flip(x)]) for x in args],
    }
    kinds = ["values", "vmap"]
    if example.gradient and operands["tangents"] and operands["cotangents"]:
        kinds += ["vjp", "jvp"]
    assert_same_bits(run(original, operands, kinds), run(imported, operands, kinds))


def is_real(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.inexact))


def run(fn: Callable[..., Any], operands: dict[str, Any], kinds: list[str]) -> dict[str, Any]:
    """Returns the results of each kind of derivative; where it is refused, the exception's type.

    All that can be traced is compiled as one program.
    """
    refused, possible = {}, []
    for kind in kinds:
        try:
            jax.eval_shape(functools.partial(KINDS[kind], fn), **operands)
            possible.append(kind)
        except Exception as error:
            refused[kind] = type(error)
    program = jax.jit(lambda operands: {kind: KINDS[kind](fn, **operands) for kind in possible})
    return {**refused, **program(operands)}


def values(fn: Callable[..., Any], *, args: list[Any], **_: Any) -> Any:
    return fn(*args)


def vmapped(fn: Callable[..., Any], *, batches: list[Any], **_: Any) -> Any:
    return jax.vmap(fn)(*batches)


def pulled_back(
    fn: Callable[..., Any], *, args: list[Any], cotangents: list[Any], **_: Any
) -> Any:
    _, vjp = jax.vjp(real_part(fn, args), *filter(is_real, args))
    return vjp(cotangents)


def pushed_forward(
    fn: Callable[..., Any], *, args: list[Any], tangents: list[Any], **_: Any
) -> Any:
    return jax.jvp(real_part(fn, args), list(filter(is_real, args)), tangents)


KINDS = {"values": values, "vmap": vmapped, "vjp": pulled_back, "jvp": pushed_forward}


def real_part(fn: Callable[..., Any], args: list[Any]) -> Callable[..., list[Any]]:
    """Returns the function of its real arguments alone that gives a list of its real results."""

    def real_fn(*reals: Any) -> list[Any]:
        given = iter(reals)
        outputs = fn(*[next(given) if is_real(x) else x for x in args])
        return [x for x in jax.tree.leaves(outputs) if is_real(x)]

    return real_fn


def assert_same_bits(expected: dict[str, Any], found: dict[str, Any]) -> None:
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    pairs = zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(found), strict=True)
    different = [
        f"{jax.tree_util.keystr(path)}: expected {want}, found {have}"
        for (path, want), have in pairs
        if bits(want) != bits(have)
    ]
    assert different == []


def bits(result: Any) -> Any:
    if isinstance(result, type):
        return result
    if jnp.issubdtype(result.dtype, jax.dtypes.prng_key):
        return result.dtype, bits(jax.random.key_data(result))
    array = np.asarray(result)
    return array.dtype, array.shape, array.tobytes()
