"""What all tests share: JAX on the CPU with nothing cached on disk, seeds, TensorFlow as oracle."""

from __future__ import annotations

import os
import zlib

# Before JAX or TensorFlow is imported, in each worker of pytest-xdist too.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # what is compiled must not depend on old runs
os.environ.setdefault("EQX_ON_ERROR", "nan")  # not by calling Python, which no file holds
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"  # as TensorFlow adds, in the order of its own kernels

import jax
import numpy as np
import pytest

jax.config.update("jax_enable_compilation_cache", False)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the test's name alone."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


@pytest.fixture(scope="session")
def tensorflow():
    """The oracle; tests that take it are skipped where it is not installed."""
    tf = pytest.importorskip("tensorflow")
    tf.get_logger().setLevel("ERROR")
    tf.compat.v1.logging.set_verbosity(tf.compat.v1.logging.ERROR)
    return tf
