"""Names of nodes, tensors and scopes: making them unique, checking, parsing and printing them.

The rules are TensorFlow's, so that a graph written here has the names TensorFlow would give.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

from jaxmeta import errors

_VALID_NODE_NAME = re.compile(r"^[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*$")
_VALID_SCOPE_NAME = re.compile(r"^[A-Za-z0-9_.\\/>-]*$")
# Stricter than the patterns above: TensorFlow's importer takes no backslash, and '>' only where
# another name follows it.
_INVALID_CHARACTER = re.compile(r"[^A-Za-z0-9_./-]")
_TRANSFORMED_SCOPE = re.compile(r"^(\w+)\((.*)\)$")


class UniqueNames:
    """Hands out names that differ from all earlier ones, as ``tf.Graph.unique_name`` does.

    Each name is unique without regard to case, and an enclosing scope counts as taken.

    Example:
        >>> names = UniqueNames()
        >>> names.unique("w"), names.unique("w"), names.unique("W")
        ('w', 'w_1', 'W_2')
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._next: dict[str, int] = {}
        self._pending: list[Iterable[str]] = []
        self.mark_all(taken)

    def mark(self, name: str) -> None:
        """Records a name that exists already."""
        self._next.setdefault(name.lower(), 1)

    def mark_all(self, names: Iterable[str]) -> None:
        """Records names that exist already; they are looked at when the next one is wanted.

        A graph that is imported and run has no need of new names.
        """
        self._pending.append(names)

    def _mark_pending(self) -> None:
        pending, self._pending = self._pending, []
        for names in pending:
            for name in names:
                self.mark(name)

    def unique(self, name: str, *, mark: bool = True) -> str:
        """Returns the name, or the name with the first free ``_1``, ``_2``, ... appended."""
        if self._pending:
            self._mark_pending()
        key = name.lower()
        count = self._next.get(key, 0)
        if mark:
            self._next[key] = count + 1
        if not count:
            return name
        candidate_key = key
        while candidate_key in self._next:
            candidate_key = f"{key}_{count}"
            count += 1
        if mark:
            self._next[key] = count
            self._next[candidate_key] = 1
        return f"{name}_{count - 1}"


def check_node_name(name: str) -> None:
    """Raises GraphError where TensorFlow would refuse the node name."""
    if not _VALID_NODE_NAME.match(name):
        raise errors.GraphError(
            f"{name!r} is not a valid node name: it must match {_VALID_NODE_NAME.pattern}"
        )


def check_scope_name(name: str, *, is_root: bool) -> None:
    """Raises GraphError where TensorFlow would refuse the name scope."""
    pattern = _VALID_NODE_NAME if is_root else _VALID_SCOPE_NAME
    if name and not pattern.match(name):
        raise errors.GraphError(
            f"{name!r} is not a valid scope name: it must match {pattern.pattern}"
        )


@functools.lru_cache(maxsize=65536)
def clean_name(text: str) -> str:
    """Returns the text with each character that TensorFlow forbids in names replaced by ``_``.

    Parts that begin with an underscore get a leading ``.``-free letter, because a whole name must
    begin with a letter, digit or dot.
    """
    cleaned = "/".join(part for part in _INVALID_CHARACTER.sub("_", text).split("/") if part)
    return cleaned if not cleaned or _VALID_NODE_NAME.match(cleaned) else "x" + cleaned


@functools.lru_cache(maxsize=65536)
def scope_from_name_stack(name_stack: str) -> str:
    """Returns the name scope for a JAX name stack.

    ``jvp(MLP)/Dense_0`` is the forward pass, ``MLP/Dense_0``; ``transpose(jvp(MLP))/Dense_0`` is
    ``gradients/MLP/Dense_0``, where TensorFlow 1 put its gradients. Other transformations stay
    visible: ``vmap(f)`` becomes ``vmap.f``.
    """
    is_transposed = False
    parts = []
    for part in _split_outside_parentheses(name_stack):
        prefixes = []
        while match := _TRANSFORMED_SCOPE.match(part):
            transformation, part = match.groups()
            if transformation == "transpose":
                is_transposed = True
            elif transformation != "jvp":
                prefixes.append(transformation)
        joined = ".".join([*prefixes, part] if part else prefixes)
        if joined:
            parts.append(joined)
    return clean_name("/".join(["gradients", *parts] if is_transposed else parts))


def _split_outside_parentheses(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        if character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
        elif character == "/" and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    return [part for part in parts if part]


class TensorName(NamedTuple):
    """The parts of an edge: node, output argument (in function bodies), position, control."""

    node: str
    argument: str | None
    position: int
    is_control: bool


def parse_tensor_name(name: str) -> TensorName:
    """Returns the parts of ``node``, ``node:1``, ``node:out:0`` or ``^node``.

    Raises:
        GraphError: an index is not a number, or there are too many parts.
    """
    if name.startswith("^"):
        return TensorName(name[1:], None, -1, is_control=True)
    node, *rest = name.split(":")
    try:
        if not rest:
            return TensorName(node, None, 0, is_control=False)
        if len(rest) == 1:
            return TensorName(node, None, int(rest[0]), is_control=False)
        argument, index = rest
        return TensorName(node, argument, int(index), is_control=False)
    except ValueError:
        raise errors.GraphError(
            f"{name!r} is not a tensor name: expected 'node', 'node:0', 'node:out:0' or '^node'"
        ) from None
