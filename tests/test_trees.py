"""Pytrees as data: recorded, written, read and built again with every leaf at its path."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta
from jaxmeta import dtypes, errors, tree_keys, trees
from jaxmeta._proto import meta_graph_pb2, struct_pb2
from jaxmeta.meta_graphs import meta_graph


class Pair(NamedTuple):
    first: Any
    second: Any


class Underscored(collections.namedtuple("Underscored", ["count"])):
    """A NamedTuple's subclass."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any
    name: str = dataclasses.field(default="dense", metadata={"static": True})


@jax.tree_util.register_pytree_with_keys_class
class Box:
    """Children under keys that are no attributes."""

    def __init__(self, items: dict[str, Any]) -> None:
        self.items = items

    def tree_flatten_with_keys(self):
        keys = list(self.items)
        return [(jax.tree_util.DictKey(key), self.items[key]) for key in keys], tuple(keys)

    @classmethod
    def tree_unflatten(cls, keys, children):
        return cls(dict(zip(keys, children, strict=True)))


@jax.tree_util.register_pytree_node_class
class Opaque:
    """Children with neither names nor keys."""

    def __init__(self, *children: Any) -> None:
        self.children = children

    def tree_flatten(self):
        return self.children, None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


@jax.tree_util.register_pytree_with_keys_class
class Sequence:
    """Children under numbers."""

    def __init__(self, *children: Any) -> None:
        self.children = children

    def tree_flatten_with_keys(self):
        keys = map(jax.tree_util.SequenceKey, range(len(self.children)))
        return list(zip(keys, self.children, strict=True)), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def leaf() -> np.ndarray[Any, Any]:
    return np.ones((2, 3), np.float32)


def flax_linen_params() -> Any:
    linen = pytest.importorskip("flax.linen")

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(2)(linen.BatchNorm(use_running_average=False)(linen.Dense(3)(x)))

    return Net().init(jax.random.key(0), jnp.ones((1, 4)))


def flax_train_state() -> Any:
    train_state = pytest.importorskip("flax.training.train_state")
    optax = pytest.importorskip("optax")
    params = {"w": jnp.ones(3)}
    return train_state.TrainState.create(
        apply_fn=lambda *_: None, params=params, tx=optax.adam(0.1)
    )


def flax_frozen_dict() -> Any:
    core = pytest.importorskip("flax.core")
    return core.freeze({"b": {"c": leaf()}, "a": leaf()})


def nnx_state() -> Any:
    nnx = pytest.importorskip("flax.nnx")
    return nnx.split(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))[1]


def nnx_state_of_layers() -> Any:
    nnx = pytest.importorskip("flax.nnx")
    layers = [nnx.Linear(2, 2, rngs=nnx.Rngs(i)) for i in range(11)]
    return nnx.split(nnx.Sequential(*layers))[1]


def optax_states() -> Any:
    optax = pytest.importorskip("optax")
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    chain = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 50), weight_decay=0.01),
    )
    masked = optax.masked(optax.sgd(0.1, momentum=0.9), {"w": True, "b": False})
    steps = optax.MultiSteps(optax.adafactor(0.1), 2)
    return [rule.init(params) for rule in (chain, masked, steps)]


def equinox_module() -> Any:
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(2, 3, 4, 2, key=jax.random.key(0))
    return eqx.partition(model, eqx.is_array)[0]


TREES = {
    "leaf": leaf,
    "dict": lambda: {"b": leaf(), "a": {"c": leaf()}},
    "list": lambda: [leaf(), [leaf()], leaf()],
    "tuple": lambda: (leaf(), (leaf(),), ()),
    "none": lambda: None,
    "none in dict": lambda: {"a": None, "b": leaf(), "c": [None, None]},
    "empty dict": dict,
    "empty containers": lambda: {"a": {}, "b": [], "c": (), "d": collections.OrderedDict()},
    "int keys": lambda: {10: leaf(), 9: leaf(), -1: leaf()},
    "ordered": lambda: collections.OrderedDict(z=leaf(), a=leaf(), m=leaf()),
    "ordered ints": lambda: collections.OrderedDict([(2, leaf()), (1, leaf())]),
    "defaultdict": lambda: collections.defaultdict(list, a=leaf(), b=[leaf()]),
    "odd keys": lambda: {"a/b": leaf(), "": leaf(), "é x": leaf(), "0": leaf(), "class": leaf()},
    "namedtuple": lambda: Pair(leaf(), Pair(None, leaf())),
    "namedtuple subclass": lambda: Underscored(leaf()),
    "dataclass": lambda: {"layers": [Layer(leaf(), None), Layer(leaf(), leaf())]},
    "box": lambda: Box({"z": leaf(), "a": Box({"q": leaf()})}),
    "sequence": lambda: Sequence(leaf(), Sequence(), leaf()),
    "opaque": lambda: {"a": Opaque(leaf(), Opaque(leaf()))},
    "keys": lambda: {"key": jax.random.key(0), "keys": jax.random.split(jax.random.key(1), 3)},
    "numbers": lambda: {"a": 1, "b": 2.0, "c": True, "d": np.float16(3)},
    "deep": lambda: _nested(24),
    "wide": lambda: {f"layer_{i}": leaf() for i in range(300)},
    "linen params": flax_linen_params,
    "linen train state": flax_train_state,
    "frozen dict": flax_frozen_dict,
    "nnx state": nnx_state,
    "nnx state of eleven layers": nnx_state_of_layers,
    "optax states": optax_states,
    "equinox module": equinox_module,
}
every_tree = pytest.mark.parametrize("make", TREES.values(), ids=TREES)


def _nested(depth: int) -> Any:
    tree: Any = leaf()
    for level in range(depth):
        tree = [{"a": tree}, (tree,), [tree]][level % 3]
    return tree


def record(tree: Any) -> trees.Tree:
    numbers = itertools.count()
    return trees.describe(
        tree,
        lambda path, value: trees.Leaf(
            f"leaf_{next(numbers)}", (2,), dtypes.dtype_to_number(np.dtype(float))
        ),
    )


def paths(tree: Any) -> list[str]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path) for path, _ in flat]


# --- there and back ------------------------------------------------------------------------------


@every_tree
def test_record_comes_back_from_its_proto(make):
    recorded = record(make())
    proto = trees.tree_to_proto(recorded)
    read = struct_pb2.StructuredValue.FromString(proto.SerializeToString(deterministic=True))
    assert trees.tree_from_proto(read) == recorded
    assert trees.tree_to_proto(trees.tree_from_proto(read)) == proto


@every_tree
def test_leaves_keep_their_paths_and_their_order(make):
    tree = make()
    recorded = trees.tree_from_proto(trees.tree_to_proto(record(tree)))
    count = len(jax.tree.leaves(tree))
    names = [leaf.name for leaf in trees.leaves(recorded)]
    assert names == [f"leaf_{index}" for index in range(count)]
    built = trees.build(recorded, iter(range(count)))
    assert jax.tree.leaves(built) == list(range(count))
    assert paths(built) == paths(tree)


@every_tree
def test_structure_is_that_of_the_tree_that_is_built(make):
    recorded = record(make())
    built = trees.build(recorded, iter(range(1000)))
    assert trees.structure(recorded) == jax.tree.structure(built)
    # Classes made for two trees of one kind are one class.
    assert trees.structure(record(make())) == trees.structure(recorded)


@every_tree
def test_tree_that_is_built_may_be_mapped_recorded_and_built_again(make):
    tree = make()
    built = trees.build(record(tree), iter([leaf() for _ in jax.tree.leaves(tree)]))
    again = trees.build(record(built), iter([leaf() for _ in jax.tree.leaves(tree)]))
    assert jax.tree.structure(again) == jax.tree.structure(built)
    doubled = jax.tree.map(lambda x: x * 2, built)
    assert paths(doubled) == paths(tree)


@pytest.mark.parametrize(
    "name",
    ["dict", "list", "tuple", "none", "none in dict", "empty containers", "int keys", "ordered"],
)
def test_plain_containers_come_back_as_themselves(name):
    tree = TREES[name]()
    built = trees.build(record(tree), iter(range(1000)))
    assert jax.tree.structure(built) == jax.tree.structure(tree)


def test_namedtuple_and_dataclass_come_back_under_their_names_and_fields():
    built = trees.build(record({"p": Pair(1.0, 2.0), "l": Layer(3.0, 4.0)}), iter("abcd"))
    assert type(built["p"]).__name__ == "Pair"
    assert built["p"]._fields == ("first", "second")
    assert type(built["l"]).__name__ == "Layer"
    assert (built["l"].kernel, built["l"].bias) == ("a", "b")
    assert built["p"] == ("c", "d")


def test_classes_are_never_imported_by_name():
    recorded = trees.Branch("object", "os.system", ("path",), (trees.Leaf("x", (), 1),))
    built = trees.build(recorded, iter([1]))
    assert type(built).__module__ != "os"
    assert dataclasses.is_dataclass(built)


# --- plain protos --------------------------------------------------------------------------------


def test_plain_trees_are_written_as_tensorflow_writes_them(tensorflow):
    """TensorFlow's own decoder reads the record of plain containers."""
    from tensorflow.python.saved_model import nested_structure_coder

    recorded = record({"b": [leaf(), (None, leaf())], "a": {}})
    ours = trees.tree_to_proto(recorded)
    from tensorflow.core.protobuf import struct_pb2 as their_struct_pb2

    theirs = their_struct_pb2.StructuredValue.FromString(ours.SerializeToString())
    decoded = nested_structure_coder.decode_proto(theirs)
    assert decoded["a"] == {}
    assert isinstance(decoded["b"], list)
    assert decoded["b"][1][0] is None
    assert decoded["b"][0].name == "leaf_0"
    assert decoded["b"][1][1].shape == (2,)


@pytest.mark.parametrize(
    "value",
    [None, True, 3, -0.5, "text", [], {}, (), [1, [2.0, "x"]], {"a": {"b": (None, False)}}],
    ids=str,
)
def test_plain_values_come_back(value):
    found = trees.structure_from_proto(trees.structure_to_proto(value))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("value", [object(), {1: 2}, [{"a": b"bytes"}], {"a": object()}])
def test_values_that_are_not_plain_are_refused(value):
    with pytest.raises(errors.AttrError, match="cannot be written; use dicts with string keys"):
        trees.structure_to_proto(value)


def test_integers_beyond_the_proto_s_are_refused():
    with pytest.raises(errors.AttrError):
        trees.structure_to_proto(1 << 70)


# --- malformed protos ----------------------------------------------------------------------------


def tuple_of(*items: struct_pb2.StructuredValue) -> struct_pb2.StructuredValue:
    value = struct_pb2.StructuredValue()
    value.tuple_value.SetInParent()
    value.tuple_value.values.extend(items)
    return value


def text(value: str) -> struct_pb2.StructuredValue:
    return struct_pb2.StructuredValue(string_value=value)


def list_of(*items: struct_pb2.StructuredValue) -> struct_pb2.StructuredValue:
    value = struct_pb2.StructuredValue()
    value.list_value.SetInParent()
    value.list_value.values.extend(items)
    return value


def own_class(*state: struct_pb2.StructuredValue) -> struct_pb2.StructuredValue:
    value = struct_pb2.StructuredValue()
    value.type_spec_value.type_spec_class = struct_pb2.TypeSpecProto.EXTENSION_TYPE_SPEC
    value.type_spec_value.type_spec_class_name = "a.B"
    value.type_spec_value.type_state.CopyFrom(tuple_of(*state))
    return value


def named_tuple(*keys: str) -> struct_pb2.StructuredValue:
    value = struct_pb2.StructuredValue()
    value.named_tuple_value.name = "a.B"
    for key in keys:
        value.named_tuple_value.values.add(key=key).value.CopyFrom(
            trees.tree_to_proto(trees.Leaf("x", (), 1))
        )
    return value


def unranked() -> struct_pb2.StructuredValue:
    value = struct_pb2.StructuredValue()
    value.tensor_spec_value.shape.unknown_rank = True
    return value


LEAF = trees.tree_to_proto(trees.Leaf("x", (), 1))
MALFORMED = {
    "a number": struct_pb2.StructuredValue(int64_value=1),
    "a string": text("x"),
    "a leaf of no rank": unranked(),
    "fields twice": named_tuple("a", "a"),
    "a field that is no name": named_tuple("a b"),
    "a field that is a keyword": named_tuple("class"),
    "a class without state": own_class(),
    "a class of an unknown kind": own_class(text("mystery"), list_of()),
    "a class of three parts": own_class(text("object"), list_of(), list_of()),
    "a pair of one": own_class(text("object"), list_of(tuple_of(text("a")))),
    "a pair of three": own_class(text("object"), list_of(tuple_of(text("a"), LEAF, LEAF))),
    "attributes twice": own_class(text("object"), list_of(*[tuple_of(text("a"), LEAF)] * 2)),
    "an attribute that is no name": own_class(text("object"), list_of(tuple_of(text("a b"), LEAF))),
    "an attribute that is a number": own_class(
        text("object"), list_of(tuple_of(struct_pb2.StructuredValue(int64_value=1), LEAF))
    ),
    "a namedtuple as a class with bad fields": own_class(
        text("namedtuple"), list_of(tuple_of(text("a b"), LEAF))
    ),
    "a namedtuple as a class with a private field": own_class(
        text("namedtuple"), list_of(tuple_of(text("_a"), LEAF))
    ),
    "a dict with a key twice": own_class(text("dict"), list_of(*[tuple_of(text("a"), LEAF)] * 2)),
    "a key that is a tree": own_class(text("dict"), list_of(tuple_of(list_of(), LEAF))),
}


@pytest.mark.parametrize("proto", MALFORMED.values(), ids=MALFORMED)
def test_malformed_records_are_refused(proto):
    with pytest.raises(errors.FormatError):
        trees.tree_from_proto(proto)


@pytest.mark.parametrize(
    "wrap",
    [lambda tree: {"a": tree}, lambda tree: (tree,), Layer, Pair],
    ids=["dict", "tuple", "dataclass", "namedtuple"],
)
@pytest.mark.parametrize("depth", [10, 20, 300])
def test_file_of_a_deep_tree_is_read_or_not_written(wrap, depth):
    """Protobuf reads messages to a depth of 100."""
    tree = leaf()
    for _ in range(depth):
        tree = wrap(tree, None) if wrap in (Layer, Pair) else wrap(tree)
    graph = jaxmeta.Graph()
    try:
        graph.variables(tree)
        content = jaxmeta.export_meta_graph(graph=graph).SerializeToString()
    except errors.JaxmetaError:
        assert depth == 300, "a depth that real programs have"
        return
    read = meta_graph.import_graph(meta_graph_pb2.MetaGraphDef.FromString(content))
    assert read.state_trees == graph.state_trees


def test_leaves_of_unknown_dimensions_come_back():
    recorded = trees.Leaf("x", (None, 3), 1)
    assert trees.tree_from_proto(trees.tree_to_proto(recorded)) == recorded


def test_path_name_joins_the_keys():
    (path, _), *_ = jax.tree_util.tree_flatten_with_path({"a": [Pair(leaf(), None)]})[0]
    assert tree_keys.path_name(path) == "a/0/first"
