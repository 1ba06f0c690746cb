"""States of odd keys, names, numbers and shapes: what comes back, and what is refused at once."""

from __future__ import annotations

import collections
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from state_round_trip import described_leaves, save_and_load

import jaxmeta
from jaxmeta import errors


@pytest.mark.parametrize(
    "state",
    [None, {}, [], {"a": {}, "b": [(), None]}, {"": {"": 1.0, "x": 2}}, {"": 3.0}],
    ids=str,
)
def test_states_of_little_come_back(state, tmp_path):
    program = save_and_load(state, tmp_path)
    assert jax.tree.structure(program.state) == jax.tree.structure(state)
    assert described_leaves(program.state) == described_leaves(state)


def test_names_that_are_cleaned_alike_stay_apart(tmp_path):
    state = {name: jnp.full(3, i) for i, name in enumerate(["a b", "a/b", "a?b", "a_b", "A_b"])}
    state["a"] = {"b": jnp.full(3, 9)}
    assert described_leaves(save_and_load(state, tmp_path).state) == described_leaves(state)


def test_small_types_and_keys_of_every_kind_come_back(tmp_path):
    small = ["bfloat16", "float8_e5m2", "float8_e4m3fnuz", "int4", "uint4", "int2", "float4_e2m1fn"]
    state = {
        "small": [jnp.ones(3, dtype) for dtype in small],
        "keys": [jax.random.key(1, impl=i) for i in ("threefry2x32", "rbg", "unsafe_rbg")],
        "batch of keys": jax.random.split(jax.random.key(2, impl="rbg"), (2, 3)),
        "raw": jax.random.PRNGKey(3),
        "numbers": [True, 1, 2.0, 1j, np.bool_(True), np.float16(1), np.int8(2)],
        "empty": jnp.zeros((0, 3)),
    }
    program = save_and_load(state, tmp_path)
    assert described_leaves(program.state) == described_leaves(state)
    # 64 bits as `jax.jit` takes them where they are off.
    wide = {"x": np.float64(0.1), "i": np.arange(3), "u": np.uint64(7)}
    found = save_and_load(wide, tmp_path / "wide").state
    assert described_leaves(found) == described_leaves(jax.tree.map(jnp.asarray, wide))


def test_numbers_that_would_be_cut_off_are_refused_when_saved(tmp_path):
    graph = jaxmeta.Graph()
    graph.variables({"a": np.int64(1), "b": 1, "c": np.ones(2)})
    with (
        jaxmeta.Saver(graph) as saver,
        pytest.raises(errors.CheckpointError, match="beyond int32") as caught,
    ):
        saver.save({"a": np.int64(1 << 40), "b": 1 << 40, "c": "text"}, tmp_path / "model")
    assert [line[:5] for line in str(caught.value).splitlines()[1:4]] == ["  a: ", "  b: ", "  c: "]
    assert os.listdir(tmp_path) == []


def test_keys_that_no_file_holds_are_text_and_the_template_s_again(tmp_path):
    state = {b"x": jnp.ones(2), b"a": jnp.zeros(3)}
    program = save_and_load(state, tmp_path)
    assert list(program.state) == ["b'a'", "b'x'"]
    assert described_leaves(program.state_like(state)) == described_leaves(state)
    with pytest.raises(errors.GraphError, match="are the same in a file"):
        jaxmeta.Graph().variables(collections.OrderedDict({b"a": 1, "b'a'": 2}))


@pytest.mark.parametrize("depth", [60, 5000])
def test_tree_too_deep_is_refused_before_anything_is_added(depth):
    tree: Any = jnp.ones(2)
    for _ in range(depth):
        tree = {"a": tree}
    graph = jaxmeta.Graph()
    with pytest.raises(errors.GraphError, match="too deep for a file"):
        graph.variables(tree)
    assert not graph.nodes
