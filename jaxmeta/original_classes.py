"""Recorded trees in their original classes, which are imported by name.

Importing runs code, so this is done only where a caller asks. A class is taken where it can hold
the recorded children and nothing besides; what it would need more, such as a static field, is in
no file, and is not guessed.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib
import operator
from collections.abc import Iterator, Mapping
from typing import Any, Final

import jax

from jaxmeta import errors, tree_keys, trees

_PLAIN: Final = frozenset(
    {"builtins.NoneType", "builtins.dict", "builtins.list", "builtins.tuple"}
    | {"collections.OrderedDict"}
)
_NEEDS_MORE: Final = "needs more than its arrays, such as static fields"


class _UnfitClassError(Exception):
    """A class cannot be built from what is recorded; the message says why."""


def build(tree: trees.Tree, items: Iterator[Any]) -> Any:
    """Returns the pytree that a record describes, in the classes that it names.

    Args:
        tree: the record.
        items: the leaves, in JAX's order.

    Raises:
        CheckpointError: a class is not importable, or cannot be built from its children alone; all
            are listed.
    """
    reasons: dict[str, str] = {}
    built = _build(tree, items, reasons)
    if reasons:
        raise errors.CheckpointError(
            errors.list_offenders(
                "these classes cannot be had from the file alone:",
                [f"{name}: {reason}" for name, reason in reasons.items()],
                "Make a state with the original code, or under jax.eval_shape, and pass it to "
                "`Program.state_like`.",
            )
        )
    return built


def _build(tree: trees.Tree, items: Iterator[Any], reasons: dict[str, str]) -> Any:
    if isinstance(tree, trees.Leaf):
        return next(items)
    children = [_build(child, items, reasons) for child in tree.children]
    if tree.class_name in _PLAIN:
        # A record of the children alone, whose places are taken by what was built of them.
        places = tuple(trees.Leaf("", (), 0) for _ in children)
        return trees.build(dataclasses.replace(tree, children=places), iter(children))
    if tree.class_name in reasons:
        return None
    try:
        return _rebuilt(_import_class(tree.class_name), tree, children)
    except _UnfitClassError as reason:
        reasons[tree.class_name] = str(reason)
        return None


def _import_class(name: str) -> type:
    """Returns the class of a qualified name.

    Raises:
        _UnfitClassError: there is none, or it goes by another name.
    """
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        raise _UnfitClassError("was defined in a function")
    for size in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:size]))
        except ImportError:
            continue
        for part in parts[size:]:
            found = getattr(found, part, None)
        if not isinstance(found, type):
            break
        if f"{found.__module__}.{found.__qualname__}" != name:
            break
        return found
    raise _UnfitClassError("is no class that can be imported")


def _rebuilt(cls: type, record: trees.Branch, children: list[Any]) -> Any:
    """Returns an object of a class with some children.

    An object without more is made and flattened by JAX; where that gives the recorded children
    and no static data, JAX makes the object that is returned from them, as in any `jax.tree.map`.
    """
    try:
        draft = _draft(cls, record, children)
        found, treedef = jax.tree_util.tree_flatten_with_path(
            draft, is_leaf=lambda item: item is not draft
        )
    except _UnfitClassError:
        raise
    except Exception as error:
        raise _UnfitClassError(_NEEDS_MORE) from error
    if jax.tree_util.treedef_is_leaf(treedef) and found and not found[0][0]:
        raise _UnfitClassError(
            "is not registered with jax.tree_util; import the module that does it"
        )
    keys = [tree_keys.plain_key(path[0]) for path, _ in found]
    if record.kind != "opaque" and keys != list(record.keys):
        raise _UnfitClassError(f"has other children now: {keys} instead of {list(record.keys)}")
    if not _are_same([child for _, child in found], children):
        raise _UnfitClassError("does not keep its children as they are")
    _refuse_static_data(cls, treedef, keys)
    return jax.tree.unflatten(treedef, children)


def _are_same(one: list[Any], other: list[Any]) -> bool:
    """Returns whether trees have the same leaves; containers may be copies."""
    leaves, structure = jax.tree.flatten(one)
    others, other_structure = jax.tree.flatten(other)
    is_same: bool = structure == other_structure  # type: ignore[operator]  # typed in part only
    return is_same and all(map(operator.is_, leaves, others))


def _draft(cls: type, record: trees.Branch, children: list[Any]) -> Any:
    """Returns an object that JAX can flatten, if no more than the children belongs to it."""
    names = [str(key) for key in record.keys]
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        if list(cls._fields) != names:
            raise _UnfitClassError(f"has other fields now: {list(cls._fields)} instead of {names}")
        return tuple.__new__(cls, children)
    pairs = dict(zip(record.keys, children, strict=True))
    if issubclass(cls, collections.defaultdict):
        raise _UnfitClassError(f"{_NEEDS_MORE}: its default_factory")
    if issubclass(cls, dict):
        plain = cls.__new__(cls)
        dict.update(plain, pairs)
        return plain
    if issubclass(cls, Mapping):
        return cls(pairs)  # type: ignore[call-arg]
    if dataclasses.is_dataclass(cls):
        fields = [field.name for field in dataclasses.fields(cls)]
        more = [field for field in fields if field not in names]
        if more:
            raise _UnfitClassError(f"{_NEEDS_MORE}: {', '.join(more)}")
    elif record.kind != "object" and children:
        raise _UnfitClassError("does not say by which attributes it holds its children")
    made = object.__new__(cls)
    for name, child in zip(names, children, strict=True):
        object.__setattr__(made, name, child)
    return made


def _refuse_static_data(cls: type, treedef: jax.tree_util.PyTreeDef, keys: list[Any]) -> None:
    """Raises _UnfitClassError where a node has data besides its children and their keys."""
    if dataclasses.is_dataclass(cls) or issubclass(cls, tuple):
        return  # all its fields are children
    node = treedef.node_data()
    data = None if node is None else node[1]
    is_keys = isinstance(data, (list, tuple)) and list(data) in ([], keys)
    if not is_keys and data is not None:
        raise _UnfitClassError(f"{_NEEDS_MORE}: {type(data).__name__}")
