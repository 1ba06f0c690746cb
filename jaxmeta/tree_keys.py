"""Keys and paths of pytrees as data: strings, numbers, None and tuples of these.

A key that is none of these, such as bytes or an object, stands as its text. Two trees have the same
paths where the keys of their leaves are recorded alike, whatever their classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import jax
import numpy as np

from jaxmeta import errors
from jaxmeta._proto import struct_pb2

Key: TypeAlias = str | int | float | tuple[Any, ...] | None  # bool is an int

_INT64_BITS: Final = 63
_ORDER_DIFFERS: Final = "the same leaves, in another order"


class TextKey:
    """The key of a child whose own key is of no kind that JAX has; prints as that did."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"TextKey({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextKey) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)


def plain_key(key: Any) -> Key:
    """Returns what a ``jax.tree_util`` key holds, as it is recorded."""
    match key:
        case jax.tree_util.DictKey() | jax.tree_util.FlattenedIndexKey():
            return plain_value(key.key)
        case jax.tree_util.GetAttrKey():
            return plain_value(key.name)
        case jax.tree_util.SequenceKey():
            return plain_value(key.idx)
        case TextKey():
            return key.text
    for field in ("name", "key", "idx"):
        if hasattr(key, field):
            return plain_value(getattr(key, field))
    return plain_value(str(key))


def plain_value(value: Any) -> Key:
    """Returns a key as a string, number, None or tuple of these; the text of any other.

    Example:
        >>> plain_value(np.int64(3)), plain_value((True, None)), plain_value(b"x")
        (3, (True, None), "b'x'")
    """
    match value:
        case None | bool():
            return value
        case np.bool_():
            return bool(value)
        case int() | np.integer() if int(value).bit_length() <= _INT64_BITS:
            return int(value)
        case float() | np.floating():
            return float(value)
        case tuple():
            return tuple(map(plain_value, value))
    text = str.__str__(value) if isinstance(value, str) else str(value)
    return text.encode("utf-8", "backslashreplace").decode()  # lone surrogates are in no file


# --- paths -------------------------------------------------------------------------------------


def path_name(path: Sequence[Any]) -> str:
    """Returns the '/'-separated name of a path of jax.tree_util keys: ``params/Dense_0/kernel``."""
    return "/".join(str(plain_key(key)) for key in path)


def path_text(path: Sequence[Any]) -> str:
    """Returns a path as ``jax.tree_util.keystr`` does, with keys as they are recorded."""
    return "".join(
        f"[{plain_key(key)!r}]" if isinstance(key, jax.tree_util.DictKey) else str(key)
        for key in path
    )


def leaf_paths(tree: Any) -> list[str]:
    """Returns the path of each leaf of a pytree, in JAX's order; see `path_text`."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [path_text(path) for path, _ in flat]


def differing_paths(
    expected: Sequence[str], found: Sequence[str], missing: str, unknown: str
) -> list[str]:
    """Returns a line for each path that only one side has; none where both are the same.

    Args:
        expected: paths of leaves, in order.
        found: the same of what was given.
        missing: what to say of a path that was not given.
        unknown: what to say of a path that was not expected.
    """
    if list(expected) == list(found):
        return []
    given, wanted = set(found), set(expected)
    lines = [f"{missing}: {path}" for path in expected if path not in given]
    lines += [f"{unknown}: {path}" for path in found if path not in wanted]
    return lines or [_ORDER_DIFFERS]


def check_paths(
    expected: Any,
    given: Any,
    headline: str,
    error: type[errors.JaxmetaError],
    advice: str = "",
    *,
    missing: str = "missing",
    unknown: str = "not expected",
) -> None:
    """Raises an error where the leaves of two pytrees have other paths; see `differing_paths`.

    Args:
        expected: the one.
        given: the other.
        headline: what the error says first.
        error: its class.
        advice: what it says last.
        missing: what to say of a path that was not given.
        unknown: what to say of a path that was not expected.
    """
    bad = differing_paths(leaf_paths(expected), leaf_paths(given), missing, unknown)
    if bad:
        raise error(errors.list_offenders(headline, bad, advice))


# --- protos ------------------------------------------------------------------------------------


def write_key(proto: struct_pb2.StructuredValue, key: Key) -> None:
    """Writes a key into a StructuredValue."""
    match key:
        case None:
            proto.none_value.SetInParent()
        case bool():
            proto.bool_value = key
        case int():
            proto.int64_value = key
        case float():
            proto.float64_value = key
        case tuple():
            proto.tuple_value.SetInParent()
            for part in key:
                write_key(proto.tuple_value.values.add(), part)
        case _:
            proto.string_value = key


def read_key(proto: struct_pb2.StructuredValue) -> Key:
    """Returns the key in a StructuredValue.

    Raises:
        FormatError: it holds something else.
    """
    kind = proto.WhichOneof("kind")
    if kind in ("bool_value", "int64_value", "float64_value", "string_value"):
        key: Key = getattr(proto, kind)
        return key
    if kind == "none_value":
        return None
    if kind == "tuple_value":
        return tuple(map(read_key, proto.tuple_value.values))
    raise errors.FormatError(f"a key in a tree is a {kind}, not a string, number, None or tuple")


def key_depth(key: Key) -> int:
    """Returns how many messages nest in the record of a key."""
    if not isinstance(key, tuple):
        return 2  # StructuredValue, and NoneValue at most
    return 2 + max(map(key_depth, key), default=0)


def are_sorted(keys: Sequence[Key]) -> bool:
    """Returns whether JAX keeps keys of a dict in this order, for it sorts them."""
    if any(isinstance(key, float) and math.isnan(key) for key in keys):
        return False
    try:
        return list(keys) == sorted(keys)  # type: ignore[type-var]
    except TypeError:
        return False
