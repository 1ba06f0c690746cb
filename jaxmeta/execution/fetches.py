"""Fetches: nested structures of what a session is asked for, and their values put back in place."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from jaxmeta import errors
from jaxmeta.graphs.graph import Operation, Tensor, Variable

Rebuild: TypeAlias = Callable[[Iterator[Any]], Any]
"""Takes the values that it needs, in order, and returns them in a structure."""


def flatten_fetches(fetches: Any) -> tuple[list[Any], Rebuild]:
    """Returns the single fetches of a structure and what puts their values in their places.

    A structure is a list, tuple, namedtuple, mapping, or dataclass of structures, as in TensorFlow.

    Raises:
        FeedTypeError: a part of it is of another type; TensorFlow raises TypeError too.
    """
    if isinstance(fetches, (str, Tensor, Operation, Variable)):
        return [fetches], next
    if isinstance(fetches, Mapping):
        return _flatten_mapping(fetches)
    if isinstance(fetches, (list, tuple)):
        return _flatten_sequence(fetches)
    if dataclasses.is_dataclass(fetches) and not isinstance(fetches, type):
        return _flatten_dataclass(fetches)
    found = "None" if fetches is None else f"{fetches!r} ({type(fetches).__name__})"
    raise errors.FeedTypeError(
        f"cannot fetch {found}; expected a tensor, an operation, a variable, a name, or a list, "
        "tuple, dict or dataclass of these"
    )


def _flatten_all(parts: Sequence[Any]) -> tuple[list[Any], list[Rebuild]]:
    leaves: list[Any] = []
    rebuilds = []
    for part in parts:
        found, rebuild = flatten_fetches(part)
        leaves.extend(found)
        rebuilds.append(rebuild)
    return leaves, rebuilds


def _flatten_sequence(fetches: Any) -> tuple[list[Any], Rebuild]:
    leaves, rebuilds = _flatten_all(fetches)

    def rebuild(values: Iterator[Any]) -> Any:
        parts = [part(values) for part in rebuilds]
        if isinstance(fetches, list):
            return parts
        return type(fetches)(*parts) if hasattr(fetches, "_fields") else tuple(parts)

    return leaves, rebuild


def _flatten_mapping(fetches: Mapping[Any, Any]) -> tuple[list[Any], Rebuild]:
    keys = list(fetches)
    leaves, rebuilds = _flatten_all(list(fetches.values()))

    def rebuild(values: Iterator[Any]) -> Any:
        items = [(key, part(values)) for key, part in zip(keys, rebuilds, strict=True)]
        if isinstance(fetches, collections.defaultdict):
            return collections.defaultdict(fetches.default_factory, items)
        # TensorFlow too makes the result with the type's constructor.
        return type(fetches)(items)  # type: ignore[call-arg]

    return leaves, rebuild


def _flatten_dataclass(fetches: Any) -> tuple[list[Any], Rebuild]:
    names = [field.name for field in dataclasses.fields(fetches) if field.init]
    leaves, rebuilds = _flatten_all([getattr(fetches, name) for name in names])

    def rebuild(values: Iterator[Any]) -> Any:
        parts = {name: part(values) for name, part in zip(names, rebuilds, strict=True)}
        return dataclasses.replace(fetches, **parts)

    return leaves, rebuild


def fetch_name(fetch: Any) -> str:
    """Returns the name of what is fetched or fed.

    Raises:
        FeedTypeError: it is neither a tensor, operation or variable, nor a name.
    """
    if isinstance(fetch, str):
        return fetch
    if isinstance(fetch, (Tensor, Operation, Variable)):
        return fetch.name
    raise errors.FeedTypeError(
        f"cannot feed {fetch!r} ({type(fetch).__name__}); expected a tensor, a variable's read "
        "value, or a name"
    )
