"""What a session holds for nodes by name: queues, tables and readers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_Resource = TypeVar("_Resource")


def shared_resource(
    kind: str,
    state: Any,
    node_name: str,
    shared_name: bytes,
    container: bytes,
    make: Callable[[], _Resource],
) -> _Resource:
    """Returns what the session holds under a node's name, which is made where it is not there yet.

    Args:
        kind: what it is, for queues and tables may have the same names.
        state: the session's.
        node_name: its name where the node gives no other.
        shared_name: the node's attr: nodes that have the same share it.
        container: the node's attr: names are apart in each.
        make: makes one.
    """
    key = (kind, container, shared_name.decode() or node_name)
    found: _Resource = state.resources.get_or_make(key, make)
    return found
