"""Random trees of every kind come back from file and checkpoint with every leaf in its place."""

from __future__ import annotations

import collections
import dataclasses
import tempfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from state_round_trip import described_leaves, save_and_load

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

DTYPES = [
    *("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64", "bool"),
    *("int32", "int8", "uint16", "uint32", "int4", "uint4", "int2"),
]


class Pair(NamedTuple):
    first: Any
    second: Any


class Nothing(NamedTuple):
    pass


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Record:
    left: Any
    right: Any
    size: int = dataclasses.field(default=3, metadata={"static": True})


def filled(dtype: str, shape: list[int], as_numpy: bool) -> Any:
    array = jnp.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    return np.asarray(array) if as_numpy else array


LEAVES = st.one_of(
    st.builds(
        filled,
        st.sampled_from(DTYPES),
        st.lists(st.integers(0, 3), max_size=3),
        st.booleans(),
    ),
    st.integers(-(2**31), 2**31 - 1),
    st.booleans(),
    st.floats(width=32),
    st.complex_numbers(max_magnitude=9.0, width=64),
    st.sampled_from(
        [np.float32(0.5), np.int8(-3), np.bool_(True), np.complex64(2j), jnp.float32(1)]
    ),
    st.sampled_from([jnp.asarray(2.0), jnp.asarray(3), jnp.zeros((2, 0))]),
    st.builds(
        lambda seed, impl: jax.random.key(seed, impl=impl),
        st.integers(0, 9),
        st.sampled_from(["threefry2x32", "rbg", "unsafe_rbg"]),
    ),
    st.builds(lambda seed: jax.random.split(jax.random.key(seed), 2), st.integers(0, 9)),
    st.builds(jax.random.PRNGKey, st.integers(0, 9)),
)
TEXTS = st.one_of(
    st.text("ab/%:._ é日", max_size=4),
    st.sampled_from(["a", "a/b", "a_b", "A", "", "0", "save", "class", "value"]),
)
NUMBERS = st.one_of(st.integers(-9, 99), st.floats(-2, 2, width=16), st.booleans())
ANY_KEYS = st.one_of(TEXTS, NUMBERS, st.none(), st.tuples(TEXTS, NUMBERS), st.binary(max_size=2))


@st.composite
def random_trees(draw: Any, depth: int = 3) -> Any:
    """Returns a tree; `hypothesis.strategies.recursive` would describe itself at great length."""
    kind = draw(st.sampled_from(["leaf", *(CONTAINERS if depth else EMPTY)]))
    if kind == "leaf":
        return draw(LEAVES)
    if kind in EMPTY:
        return EMPTY[kind]()
    make, keys = CONTAINERS[kind]
    if keys is None:
        return make(draw(random_trees(depth - 1)), draw(random_trees(depth - 1)))
    return make({key: draw(random_trees(depth - 1)) for key in draw(keys)})


def distinct(keys: Any) -> Any:
    return st.lists(keys, max_size=3, unique=True)


EMPTY = {"None": lambda: None, "()": tuple, "Nothing": Nothing, "{}": dict, "[]": list}
CONTAINERS = {
    **dict.fromkeys(EMPTY),
    "dict of strings": (dict, distinct(TEXTS)),
    "dict of numbers": (dict, distinct(NUMBERS)),
    "OrderedDict": (collections.OrderedDict, distinct(ANY_KEYS)),
    "defaultdict": (lambda pairs: collections.defaultdict(list, pairs), distinct(TEXTS)),
    "list": (lambda pairs: list(pairs.values()), distinct(st.integers())),
    "tuple": (lambda pairs: tuple(pairs.values()), distinct(st.integers())),
    "Pair": (Pair, None),
    "Record": (Record, None),
}
# What fails is small as it is, and a trip takes a while: nothing is gained by shrinking.
few_examples = hypothesis.settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)


def has_bytes_as_key(tree: Any) -> bool:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return any(isinstance(getattr(key, "key", None), bytes) for path, _ in flat for key in path)


@few_examples
@hypothesis.given(tree=random_trees())
def test_random_tree_comes_back_from_file_and_checkpoint(tree):
    with tempfile.TemporaryDirectory() as directory:
        program = save_and_load(tree, directory)
    expected = described_leaves(tree)
    found = described_leaves(program.state)
    if has_bytes_as_key(tree):  # these come back as text
        assert [leaf for _, leaf in found] == [leaf for _, leaf in expected]
    else:
        assert found == expected
    typed = program.state_like(tree)
    assert jax.tree.structure(typed) == jax.tree.structure(tree)
    assert described_leaves(typed) == expected


@few_examples
@hypothesis.given(tree=random_trees())
def test_function_of_a_random_tree_takes_it_in_either_form(tree):
    with tempfile.TemporaryDirectory() as directory:
        program = save_and_load(tree, directory)
    expected = [leaf for _, leaf in described_leaves(tree)]
    for state in (program.state, tree):
        assert [leaf for _, leaf in described_leaves(program["same"](state))] == expected
