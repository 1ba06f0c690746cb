"""TensorFlow's random ops give TensorFlow's numbers, where their seeds say which."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from random_graphs import MAKERS, OPS

import jaxmeta


def compare(found: Any, expected: Any) -> None:
    """Checks that numbers are the same: bit for bit where no logarithm rounds them."""
    have, want = np.asarray(found), np.asarray(expected)
    if want.dtype.kind in "iu":
        # Without 64-bit types JAX keeps the low words.
        np.testing.assert_array_equal(have, want.astype(have.dtype))
        return
    assert have.dtype == jax.dtypes.canonicalize_dtype(want.dtype)
    have, want = have.astype(np.float64), want.astype(np.float64)
    np.testing.assert_allclose(have, want, rtol=2e-5, atol=2e-6)


def export(tf: Any, make: Any, path: str, num_runs: int) -> tuple[str, list[str], list[Any]]:
    """Returns an initializer, fetches, and what TensorFlow gives for them, run by run."""
    tf1 = tf.compat.v1
    with tf.Graph().as_default(), tf1.Session() as session:
        fetches = [tensor.name for tensor in tf.nest.flatten(make(tf))]
        initializer = tf1.global_variables_initializer().name
        tf1.train.export_meta_graph(path)
        session.run(initializer)
        return initializer, fetches, [session.run(fetches) for _ in range(num_runs)]


@pytest.mark.needs_tf
@pytest.mark.parametrize("name", MAKERS)
def test_numbers_are_those_of_tensorflow_in_each_run(name, tmp_path, tensorflow):
    path = str(tmp_path / "theirs.meta")
    initializer, fetches, expected = export(tensorflow, MAKERS[name], path, 3)
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(path)
        session.run(initializer)
        for values in expected:
            for have, want in zip(session.run(fetches), values, strict=True):
                compare(have, want)


@pytest.mark.needs_tf
def test_graphs_hold_every_random_op(tensorflow):
    with tensorflow.Graph().as_default() as graph:
        for make in MAKERS.values():
            make(tensorflow)
    held = {node.op for node in graph.as_graph_def().node}
    # The one is in the test of gradients, and new graphs may not hold the other.
    assert set(OPS) - held == {"RandomGammaGrad", "RandomPoisson", "StatelessRandomGetAlg"}


@pytest.mark.needs_tf
def test_numbers_of_64_bits_are_those_of_tensorflow(tmp_path, tensorflow):
    path = str(tmp_path / "theirs.meta")
    _, fetches, (expected,) = export(tensorflow, MAKERS["of_two_seeds"], path, 1)
    with jax.enable_x64(True), jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(path)
        for have, want in zip(session.run(fetches), expected, strict=True):
            assert np.asarray(have).dtype == np.asarray(want).dtype
            compare(have, want)


@pytest.mark.needs_tf
def test_gamma_has_tensorflows_gradient_by_its_concentration(rng, tmp_path, tensorflow):
    path, alphas = str(tmp_path / "theirs.meta"), rng.uniform(0.3, 4.0, 3).astype(np.float32)

    def make(tf: Any) -> Any:
        alpha = tf.constant(alphas, name="alpha")
        drawn = tf.identity(tf.random.gamma([5], alpha, seed=3) ** 2, "drawn")
        return tf.gradients(drawn, alpha)

    _, fetches, (expected,) = export(tensorflow, make, path, 1)
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(path)
        theirs = session.run(fetches)
    # The nodes of a derivative of doubles need these.
    with jax.enable_x64(True), jaxmeta.Graph().as_default() as graph, jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(path)
        drawn, alpha = map(graph.get_tensor_by_name, ("drawn:0", "alpha:0"))
        ours = session.run(jaxmeta.gradients(drawn, alpha))
    np.testing.assert_allclose(theirs, expected, rtol=1e-4)
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


@pytest.mark.needs_tf
def test_state_of_a_generator_comes_from_checkpoints_in_all_its_bits(tmp_path, tensorflow):
    tf1, prefix = tensorflow.compat.v1, str(tmp_path / "theirs")
    with tensorflow.Graph().as_default(), tf1.Session() as session:
        generator = tensorflow.random.Generator.from_seed(2**40 + 77)
        fetch = generator.normal([5]).name
        saver = tf1.train.Saver(tf1.global_variables())
        session.run(tf1.global_variables_initializer())
        saver.save(session, prefix)
        expected = [session.run(fetch) for _ in range(3)]
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        saver = jaxmeta.import_meta_graph(f"{prefix}.meta")
        saver.restore(session, prefix)
        compare(session.run(fetch), expected[0])
        saver.save(session, str(tmp_path / "ours"))
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        saver = jaxmeta.import_meta_graph(f"{prefix}.meta")
        saver.restore(session, str(tmp_path / "ours"))
        for values in expected[1:]:
            compare(session.run(fetch), values)


@pytest.mark.needs_tf
def test_unseeded_numbers_differ_from_run_to_run(tmp_path, tensorflow):
    path = str(tmp_path / "theirs.meta")
    _, fetches, _ = export(tensorflow, lambda tf: tf.random.normal([20]), path, 1)
    runs = []
    for _ in range(2):
        with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
            jaxmeta.import_meta_graph(path)
            runs += [np.asarray(session.run(fetches)[0]).tolist() for _ in range(2)]
    assert len({tuple(run) for run in runs}) == 4


def test_other_algorithms_are_refused():
    graph = jaxmeta.Graph()
    values = {"shape": [3], "alg": 2, "seed": [1, 2]}
    int32 = np.dtype("int32")
    shape, alg, seed = (
        graph.add_node("Const", [], {"value": np.asarray(value, int32), "dtype": int32}, name)[0]
        for name, value in values.items()
    )
    keys = graph.add_node("StatelessRandomGetKeyCounter", [seed], {}, "keys")
    graph.add_node("StatelessRandomUniformV2", [shape, *keys, alg], {}, "drawn")
    refused = pytest.raises(jaxmeta.UnsupportedOpError, match="ThreeFry")
    with jaxmeta.Session(graph) as session, refused:
        session.run("drawn:0")
