"""What no op says, carried as a module: only where asked for, only with consent, only there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas

import jaxmeta
from jaxmeta._proto import meta_graph_pb2
from jaxmeta.meta_graphs import meta_graph


def factor(x):
    """Calls the code that JAX itself has for LU factors."""
    integers = [jax.ShapeDtypeStruct(shape, np.int32) for shape in (x.shape[:1], ())]
    call = jax.ffi.ffi_call(
        "lapack_sgetrf_ffi",
        (jax.ShapeDtypeStruct(x.shape, x.dtype), *integers),
        input_layouts=[(1, 0)],
        output_layouts=[(1, 0), None, None],
    )
    return jnp.sin(call(x)[0] * 2.0)


def kernel(x_ref, out_ref):
    out_ref[...] = x_ref[...] * 2.0


def doubled(x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pallas.pallas_call(kernel, out_shape=shape)(x) + 1.0


def through_bytes(graph):
    content = meta_graph.export_meta_graph(graph=graph).SerializeToString(deterministic=True)
    return meta_graph.import_graph(meta_graph_pb2.MetaGraphDef.FromString(content))


def carried(fn, *args, platforms=("cpu",)):
    graph = jaxmeta.Graph()
    graph.add_signature("f", jax.jit(fn), *args, carry_custom_calls=platforms)
    return through_bytes(graph)


@pytest.fixture
def matrix(rng):
    matrix = rng.normal(size=(4, 4)).astype(np.float32)
    lax.linalg.lu(matrix)  # makes JAX look LAPACK up
    return matrix


def test_custom_call_that_is_carried_gives_the_original_bits(matrix):
    program = jaxmeta.Program(carried(factor, matrix), {})
    with jaxmeta.allow_custom_calls():
        found = program["f"](matrix)
    np.testing.assert_array_equal(found, jax.jit(factor)(matrix))


def test_custom_call_is_refused_where_it_is_not_asked_for(matrix):
    with pytest.raises(
        jaxmeta.UnsupportedPrimitiveError, match=r"ffi_call .*test_custom_calls.py:\d+"
    ):
        jaxmeta.Graph().add_signature("f", factor, matrix)


def test_carried_custom_call_does_not_run_without_consent(matrix):
    program = jaxmeta.Program(carried(factor, matrix), {})
    with pytest.raises(jaxmeta.CustomCallError, match="allow_custom_calls"):
        program["f"](matrix)
    with jaxmeta.allow_custom_calls():
        pass
    with pytest.raises(PermissionError):
        program["f"](matrix)


def test_carried_custom_call_is_one_node_that_names_its_platforms():
    def call(x):
        return jax.ffi.ffi_call("my_target", jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

    graph = carried(call, jnp.ones(3), platforms=("cpu", "cuda"))
    (node,) = [n for n in graph.functions["f"].node_def if n.op == "XlaCallModule"]
    assert [name.decode() for name in node.attr["platforms"].list.s] == ["CPU", "CUDA"]
    assert node.attr["module"].s.startswith(b"ML\xefR")


def test_pallas_kernel_for_another_platform_is_carried_but_does_not_run_here(rng):
    x = rng.normal(size=(8, 128)).astype(np.float32)
    graph = carried(doubled, x, platforms=("tpu",))
    program = jaxmeta.Program(graph, {})
    with jaxmeta.allow_custom_calls(), pytest.raises(ValueError, match=r"tpu.*cpu"):
        program["f"](x)


def test_pallas_kernel_is_refused_by_default():
    with pytest.raises(jaxmeta.UnsupportedPrimitiveError, match="carry_custom_calls"):
        jaxmeta.Graph().add_signature("f", doubled, jnp.ones((8, 128)))


def test_call_through_ffi_is_carried_with_its_target(rng):
    def call(x):
        return jax.ffi.ffi_call("my_target", jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

    graph = carried(call, rng.normal(size=3).astype(np.float32), platforms=("cuda",))
    (node,) = [n for n in graph.functions["f"].node_def if n.op == "XlaCallModule"]
    assert b"my_target" in node.attr["module"].s


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jax.pure_callback(np.sin, x, x),
        lambda x: jax.experimental.io_callback(np.sin, x, x),
        lambda x: (jax.debug.print("{}", x), x)[1],
    ],
)
def test_python_is_refused_even_where_custom_calls_are_carried(fn):
    with pytest.raises(jaxmeta.UnsupportedPrimitiveError, match=r"test_custom_calls.py:\d+"):
        carried(fn, jnp.ones(3))


def test_broken_module_of_a_custom_call_is_a_format_error(matrix):
    graph = carried(factor, matrix)
    for node in graph.functions["f"].node_def:
        if node.op == "XlaCallModule":
            node.attr["module"].s = node.attr["module"].s[:40]
    program = jaxmeta.Program(graph, {})
    with jaxmeta.allow_custom_calls(), pytest.raises(jaxmeta.FormatError):
        program["f"](matrix)


def test_keys_pass_through_a_carried_custom_call():
    def call(key):
        return jax.ffi.ffi_call("my_target", jax.ShapeDtypeStruct((3,), np.float32))(
            jax.random.key_data(key)
        )

    graph = carried(call, jax.random.key(0), platforms=("cuda",))
    assert "XlaCallModule" in {node.op for node in graph.functions["f"].node_def}
