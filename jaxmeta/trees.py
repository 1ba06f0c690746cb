"""Pytrees as data: what is recorded of a tree, and how it is built again without its classes.

A tree is recorded in TensorFlow's StructuredValue. Dicts, lists, tuples and None come back as
themselves. A NamedTuple comes back as a NamedTuple of the same name and fields, a registered class
whose children have attribute names as a small dataclass with these, another mapping as a dict.
So every leaf keeps its path, which is part of the program that JAX compiles. Nothing is imported
by a name from the file here; `original_classes` does so for those who ask, and a tree that has the
classes gives them too.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import keyword
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import jax

from jaxmeta import errors, tree_keys, values
from jaxmeta._proto import struct_pb2
from jaxmeta.tree_keys import Key

_EXACT_KINDS: Final[dict[Any, str]] = {
    dict: "dict",
    list: "list",
    tuple: "tuple",
    collections.OrderedDict: "ordered",
}
# protobuf's readers follow a hundred messages, of which a few stand around the record of a tree.
_MAX_MESSAGE_DEPTH: Final = 92
_ORIGINAL: Final = "_jaxmeta_class_name"  # on a class made here: the class it stands for
_EXTENSION: Final = struct_pb2.TypeSpecProto.EXTENSION_TYPE_SPEC


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """One array of a tree: the tensor or variable that holds it, and what it looks like."""

    name: str
    shape: values.Shape
    number: int
    """TensorFlow's DataType number; typed keys count as their uint32 data."""


@dataclasses.dataclass(frozen=True, slots=True)
class Branch:
    """An inner node: what it was, and its children under their keys, in JAX's order.

    Attributes:
        kind: ``none``, ``dict``, ``ordered``, ``list``, ``tuple``, ``namedtuple``, ``object``
            (attribute names), ``mapping`` (another class with keys) or ``opaque`` (the rest).
        class_name: the qualified name of the original class; imported only where that is asked for.
        keys: one a child.
        children: the subtrees.
    """

    kind: str
    class_name: str
    keys: tuple[Key, ...]
    children: tuple[Tree, ...]


Tree = Leaf | Branch


NOTHING: Final = Branch("none", "builtins.NoneType", (), ())
"""The record of None."""


def describe(tree: Any, make_leaf: Callable[[tuple[Any, ...], Any], Leaf]) -> Tree:
    """Returns the record of a pytree.

    Args:
        tree: any pytree of registered types.
        make_leaf: gives the record of a leaf, from its path (of ``jax.tree_util`` keys) and value.

    Raises:
        GraphError: keys of a node differ, but are recorded alike.
    """
    return _describe(tree, (), make_leaf)


def _describe(
    tree: Any, path: tuple[Any, ...], make_leaf: Callable[[tuple[Any, ...], Any], Leaf]
) -> Tree:
    children, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
    if jax.tree_util.treedef_is_leaf(treedef) and len(children) == 1 and not children[0][0]:
        return make_leaf(path, tree)
    keys = [child_path[-1] for child_path, _ in children]
    subtrees = tuple(
        _describe(child, (*path, key), make_leaf) for key, (_, child) in _zip(keys, children)
    )
    names = tuple(tree_keys.plain_key(key) for key in keys)
    kind = _kind(tree, keys, names)
    if kind == "opaque":
        names = tuple(_opaque_name(key) for key in keys)
    if len(set(names)) != len(names):
        where = tree_keys.path_text(path) or "the tree"
        raise errors.GraphError(
            f"{where}: keys of this {type(tree).__name__} are the same in a file, which holds "
            f"strings, numbers, None, tuples of these, and the text of others: {list(names)}"
        )
    return Branch(kind, _class_name(tree), names, subtrees)


def _zip(keys: list[Any], children: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(keys, children, strict=True)


def _class_name(tree: Any) -> str:
    """Returns the qualified name of a node's class; of a stand-in, that of the original."""
    cls = type(tree)
    recorded = getattr(tree, "class_name", None) if cls is Opaque else vars(cls).get(_ORIGINAL)
    return recorded or f"{cls.__module__}.{cls.__qualname__}"


def _opaque_name(key: Any) -> Key:
    return key.key if isinstance(key, jax.tree_util.FlattenedIndexKey) else str(key)


def _kind(tree: Any, keys: list[Any], names: tuple[Key, ...]) -> str:
    cls = type(tree)
    if tree is None:
        return "none"
    if cls in _EXACT_KINDS:
        return _EXACT_KINDS[cls]
    if isinstance(tree, tuple) and getattr(tree, "_fields", None) == names:
        return "namedtuple"
    key_types = {type(key) for key in keys}
    if key_types == {jax.tree_util.GetAttrKey} and _are_field_names(names):
        return "object"
    if key_types == {jax.tree_util.DictKey}:
        return "mapping"
    if key_types == {jax.tree_util.SequenceKey} and names == tuple(range(len(names))):
        return "list"
    return "opaque"


def _are_field_names(names: Sequence[Key]) -> bool:
    return all(
        isinstance(name, str)
        and name.isidentifier()
        and not keyword.iskeyword(name)
        and not (name.startswith("__") and name.endswith("__"))
        for name in names
    )


# --- building --------------------------------------------------------------------------------


def leaves(tree: Tree) -> Iterator[Leaf]:
    """Yields the leaves of a recorded tree in JAX's order."""
    if isinstance(tree, Leaf):
        yield tree
        return
    for child in tree.children:
        yield from leaves(child)


def leaf_paths(tree: Tree) -> list[str]:
    """Returns the keys of each leaf of a recorded tree in JAX's order: ``params/kernel``."""
    if isinstance(tree, Leaf):
        return [""]
    return [
        f"{key}/{path}" if path else str(key)
        for key, child in zip(tree.keys, tree.children, strict=True)
        for path in leaf_paths(child)
    ]


def rename_leaves(tree: Tree, rename: Callable[[str], str]) -> Tree:
    """Returns a record whose leaves have other names."""
    renamed = [dataclasses.replace(leaf, name=rename(leaf.name)) for leaf in leaves(tree)]
    return replace_leaves(tree, iter(renamed))


def replace_leaves(tree: Tree, items: Iterator[Leaf]) -> Tree:
    """Returns a record with its leaves taken from an iterator."""
    if isinstance(tree, Leaf):
        return next(items)
    children = tuple(replace_leaves(child, items) for child in tree.children)
    return dataclasses.replace(tree, children=children)


def structure(tree: Tree) -> jax.tree_util.PyTreeDef:
    """Returns the treedef of the tree that `build` makes."""
    return jax.tree_util.tree_structure(build(tree, iter(leaves(tree))))


def build(tree: Tree, items: Iterator[Any]) -> Any:
    """Returns the pytree that a record describes, with its leaves taken from an iterator."""
    if isinstance(tree, Leaf):
        return next(items)
    if tree.kind == "none":
        return None
    children = [build(child, items) for child in tree.children]
    return _BUILDERS[tree.kind](tree, children)


def _build_mapping(branch: Branch, children: list[Any]) -> Any:
    pairs = list(zip(branch.keys, children, strict=True))
    return dict(pairs) if tree_keys.are_sorted(branch.keys) else collections.OrderedDict(pairs)


def _build_namedtuple(branch: Branch, children: list[Any]) -> Any:
    return _namedtuple_class(branch.class_name, branch.keys)(*children)


def _build_object(branch: Branch, children: list[Any]) -> Any:
    return _object_class(branch.class_name, branch.keys)(*children)


def _build_opaque(branch: Branch, children: list[Any]) -> Any:
    return Opaque(branch.class_name, children, branch.keys)


_BUILDERS: Final[dict[str, Callable[[Branch, list[Any]], Any]]] = {
    "dict": _build_mapping,
    "mapping": _build_mapping,
    "ordered": lambda branch, children: collections.OrderedDict(
        zip(branch.keys, children, strict=True)
    ),
    "list": lambda branch, children: children,
    "tuple": lambda branch, children: tuple(children),
    "namedtuple": _build_namedtuple,
    "object": _build_object,
    "opaque": _build_opaque,
}


def _short_name(class_name: str) -> str:
    name = class_name.rsplit(".", 1)[-1]
    return name if _are_field_names([name]) else "Record"


@functools.cache
def _namedtuple_class(class_name: str, fields: tuple[Key, ...]) -> type:
    names = [str(field) for field in fields]
    make: Any = collections.namedtuple
    cls: type = make(_short_name(class_name), names)
    setattr(cls, _ORIGINAL, class_name)
    return cls


@functools.cache
def _object_class(class_name: str, fields: tuple[Key, ...]) -> type:
    names = [str(field) for field in fields]
    cls = dataclasses.make_dataclass(_short_name(class_name), names, eq=False)
    setattr(cls, _ORIGINAL, class_name)
    jax.tree_util.register_dataclass(cls, data_fields=names, meta_fields=[])
    return cls


class Opaque:
    """Stands for an object of a registered class whose children have neither names nor keys.

    Or keys of several kinds, or of its own; these are texts here.
    """

    def __init__(
        self, class_name: str, children: Sequence[Any], keys: Sequence[Key] | None = None
    ) -> None:
        self.class_name = class_name
        self.children = list(children)
        self.keys = tuple(range(len(self.children))) if keys is None else tuple(keys)

    def __repr__(self) -> str:
        return f"Opaque({self.class_name!r}, {self.children!r})"


def _flatten_opaque(tree: Opaque) -> tuple[list[tuple[Any, Any]], Any]:
    keys = [
        jax.tree_util.FlattenedIndexKey(key)
        if isinstance(key, int)
        else tree_keys.TextKey(str(key))
        for key in tree.keys
    ]
    return list(_zip(keys, tree.children)), (tree.class_name, tree.keys)


jax.tree_util.register_pytree_with_keys(
    Opaque, _flatten_opaque, lambda aux, children: Opaque(aux[0], list(children), aux[1])
)


# --- protos ----------------------------------------------------------------------------------


def tree_to_proto(tree: Tree) -> struct_pb2.StructuredValue:
    """Returns the StructuredValue of a recorded tree."""
    proto = struct_pb2.StructuredValue()
    _write(proto, tree)
    return proto


def _write(proto: struct_pb2.StructuredValue, tree: Tree) -> None:
    if isinstance(tree, Leaf):
        spec = proto.tensor_spec_value
        spec.name = tree.name
        spec.dtype = tree.number  # type: ignore[assignment]
        spec.shape.SetInParent()
        values.write_shape(spec.shape, tree.shape)
    elif tree.kind == "none":
        proto.none_value.SetInParent()
    elif tree.kind == "namedtuple":
        proto.named_tuple_value.name = tree.class_name
        for key, child in zip(tree.keys, tree.children, strict=True):
            pair = proto.named_tuple_value.values.add(key=str(key))
            _write(pair.value, child)
    elif tree.kind in ("list", "tuple") and tree.class_name.startswith("builtins."):
        items = proto.list_value if tree.kind == "list" else proto.tuple_value
        items.SetInParent()
        for child in tree.children:
            _write(items.values.add(), child)
    elif tree.kind == "dict" and _are_sorted_strings(tree.keys):
        proto.dict_value.SetInParent()
        for key, child in zip(tree.keys, tree.children, strict=True):
            _write(proto.dict_value.fields[str(key)], child)
    else:
        _write_extension(proto.type_spec_value, tree)


def _are_sorted_strings(keys: Sequence[Key]) -> bool:
    """Returns whether a map of a message, which has no order, keeps these keys."""
    return all(isinstance(key, str) for key in keys) and tree_keys.are_sorted(keys)


def _write_extension(proto: struct_pb2.TypeSpecProto, branch: Branch) -> None:
    """Writes a class of its own as (kind, key, child, key, child, ...).

    All in one tuple, because protobuf reads messages no more than a hundred deep.
    """
    proto.type_spec_class = _EXTENSION
    proto.type_spec_class_name = branch.class_name
    parts = proto.type_state.tuple_value.values
    parts.add().string_value = branch.kind
    for key, child in zip(branch.keys, branch.children, strict=True):
        tree_keys.write_key(parts.add(), key)
        _write(parts.add(), child)


def check_depth(tree: Tree, what: str) -> None:
    """Raises GraphError where a tree is too deep for a file that can be read again."""
    depth = _message_depth(tree)
    if depth > _MAX_MESSAGE_DEPTH:
        raise errors.GraphError(
            f"{what} is a tree too deep for a file: it takes {depth} nested messages, a protobuf "
            f"reader follows {_MAX_MESSAGE_DEPTH}. Flatten the outer levels, as with "
            "flax.traverse_util.flatten_dict."
        )


def _message_depth(tree: Tree) -> int:
    """Returns how many messages nest in the record of a tree."""
    if isinstance(tree, Leaf):
        return 4  # StructuredValue, TensorSpecProto, TensorShapeProto, Dim
    own = 2 if tree.kind in ("list", "tuple") and tree.class_name.startswith("builtins.") else 4
    if tree.kind in ("dict", "namedtuple"):
        own = 3  # the value, the message of its kind, and an entry
    below = [_message_depth(child) for child in tree.children]
    return own + max([*below, *map(tree_keys.key_depth, tree.keys)], default=0)


def tree_from_proto(proto: struct_pb2.StructuredValue) -> Tree:
    """Returns the recorded tree in a StructuredValue.

    Raises:
        FormatError: it holds something that is not part of a tree of arrays.
    """
    kind = proto.WhichOneof("kind")
    if kind == "tensor_spec_value":
        spec = proto.tensor_spec_value
        shape = values.shape_from_proto(spec.shape)
        if shape is None:
            raise errors.FormatError(f"the tree's leaf {spec.name!r} has no rank")
        return Leaf(spec.name, shape, spec.dtype)
    if kind is None or kind == "none_value":
        return NOTHING
    if kind in ("list_value", "tuple_value"):
        items = getattr(proto, kind).values
        children = tuple(tree_from_proto(item) for item in items)
        name = kind.removesuffix("_value")
        return Branch(name, f"builtins.{name}", tuple(range(len(children))), children)
    if kind == "dict_value":
        fields = sorted(proto.dict_value.fields.items())
        keys = tuple(key for key, _ in fields)
        return Branch(
            "dict", "builtins.dict", keys, tuple(tree_from_proto(item) for _, item in fields)
        )
    if kind == "named_tuple_value":
        return _read_namedtuple(proto.named_tuple_value)
    if kind == "type_spec_value":
        return _read_extension(proto.type_spec_value)
    raise errors.FormatError(f"a tree of arrays cannot hold a {kind}")


def _read_namedtuple(proto: struct_pb2.NamedTupleValue) -> Branch:
    keys = tuple(pair.key for pair in proto.values)
    children = tuple(tree_from_proto(pair.value) for pair in proto.values)
    return _checked(Branch("namedtuple", proto.name, keys, children))


def _read_extension(proto: struct_pb2.TypeSpecProto) -> Branch:
    parts = proto.type_state.tuple_value.values
    if len(parts) % 2 != 1 or parts[0].string_value not in _BUILDERS:
        raise errors.FormatError(f"the tree's node {proto.type_spec_class_name!r} is malformed")
    keys = tuple(map(tree_keys.read_key, parts[1::2]))
    children = tuple(tree_from_proto(part) for part in parts[2::2])
    return _checked(Branch(parts[0].string_value, proto.type_spec_class_name, keys, children))


def _checked(branch: Branch) -> Branch:
    """Returns the branch; raises FormatError where no object can have its keys."""
    if len(set(branch.keys)) != len(branch.keys):
        raise errors.FormatError(f"{branch.class_name} has a key twice: {list(branch.keys)}")
    if branch.kind in ("object", "namedtuple") and not _are_field_names(branch.keys):
        raise errors.FormatError(f"{list(branch.keys)} are not the fields of {branch.class_name}")
    if branch.kind == "namedtuple" and any(str(key).startswith("_") for key in branch.keys):
        raise errors.FormatError(f"{list(branch.keys)} are not the fields of a NamedTuple")
    return branch


# --- plain values ------------------------------------------------------------------------------

_INT64_BITS: Final = 63
_SCALAR_FIELDS: Final[tuple[tuple[Any, str], ...]] = (
    (bool, "bool_value"),
    (int, "int64_value"),
    (float, "float64_value"),
    (str, "string_value"),
)


def structure_to_proto(value: Any) -> struct_pb2.StructuredValue:
    """Returns the StructuredValue of nested dicts, lists, tuples, numbers, strings and None.

    Raises:
        AttrError: a dict has a key that is not a string, or a value is none of these.
    """
    proto = struct_pb2.StructuredValue()
    if value is None:
        proto.none_value.SetInParent()
        return proto
    for kind, field in _SCALAR_FIELDS:
        if isinstance(value, kind):
            if kind is int and value.bit_length() > _INT64_BITS:
                raise errors.AttrError(f"the integer {value} does not fit 64 bits")
            setattr(proto, field, value)
            return proto
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        proto.dict_value.SetInParent()
        for key, item in value.items():
            proto.dict_value.fields[key].CopyFrom(structure_to_proto(item))
        return proto
    if isinstance(value, (list, tuple)):
        items = proto.list_value if isinstance(value, list) else proto.tuple_value
        items.SetInParent()
        items.values.extend(structure_to_proto(item) for item in value)
        return proto
    raise errors.AttrError(
        f"{value!r} ({type(value).__name__}) cannot be written; use dicts with string keys, lists, "
        "tuples, numbers, strings and None"
    )


def structure_from_proto(proto: struct_pb2.StructuredValue) -> Any:
    """Returns what `structure_to_proto` took.

    Raises:
        FormatError: it holds something else.
    """
    kind = proto.WhichOneof("kind")
    if kind in ("bool_value", "int64_value", "float64_value", "string_value"):
        return getattr(proto, kind)
    if kind == "dict_value":
        return {key: structure_from_proto(item) for key, item in proto.dict_value.fields.items()}
    if kind == "list_value":
        return [structure_from_proto(item) for item in proto.list_value.values]
    if kind == "tuple_value":
        return tuple(structure_from_proto(item) for item in proto.tuple_value.values)
    if kind in (None, "none_value"):
        return None
    raise errors.FormatError(f"a plain structure cannot hold a {kind}")
