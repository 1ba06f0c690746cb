"""The arguments that `jax.jit` was told are static: parts of a program, and none of its inputs.

A jitted function does not say which they are. What it was traced with does: the trees of the other
arguments, and the names of their arrays.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jax
import numpy as np

from jaxmeta import errors
from jaxmeta.tracing import jaxprs

_MOST_CHOICES: Final = 10_000


@dataclasses.dataclass(frozen=True)
class StaticArguments:
    """Which of a function's arguments are static, and what they are.

    Attributes:
        positional: their values by index.
        named: their values by name.
    """

    positional: Mapping[int, Any]
    named: Mapping[str, Any]

    def drop(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Returns (args, kwargs) without them."""
        kept = tuple(arg for i, arg in enumerate(args) if i not in self.positional)
        return kept, {name: arg for name, arg in kwargs.items() if name not in self.named}

    def bind(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function of the other arguments."""
        if not (self.positional or self.named):
            return fn

        def bound(*args: Any, **kwargs: Any) -> Any:
            items = iter(args)
            count = len(args) + len(self.positional)
            static = self.positional
            merged = [static[i] if i in static else next(items) for i in range(count)]
            return fn(*merged, **kwargs, **self.named)

        return bound

    def shift(self, index: int) -> int:
        """Returns the index that an argument has among those that are not static.

        Raises:
            GraphError: it is static.
        """
        if index in self.positional:
            raise errors.GraphError(f"argument {index} is static; there is nothing to update")
        return index - sum(i < index for i in self.positional)


def find_static_arguments(
    name: str,
    fn: Callable[..., Any],
    traced: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> StaticArguments:
    """Returns which arguments of a jitted function are static.

    Args:
        name: of the signature, for messages.
        fn: the function, or what it was made of.
        traced: its trace with the arguments.
        args: the arguments; specs stand for arrays.
        kwargs: the same by name.

    Raises:
        GraphError: several of them could be.
    """
    infos, named_infos = traced.args_info
    named = {key: value for key, value in kwargs.items() if key not in named_infos}
    count = len(args) - len(infos)
    if not count:
        return StaticArguments({}, named)
    choices = []
    if math.comb(len(args), count) <= _MOST_CHOICES:
        choices = [
            kept
            for kept in itertools.combinations(range(len(args)), len(infos))
            if all(_is_traced_as(args[i], info) for i, info in zip(kept, infos, strict=True))
        ]
    if len(choices) > 1:
        wanted = _traced_parameters(traced)
        names = _parameter_names(fn, len(args))
        choices = [kept for kept in choices if wanted.issuperset(names[i] for i in kept)]
    if len(choices) != 1:
        raise errors.GraphError(
            f"signature {name!r}: the function takes {len(infos)} of the {len(args)} arguments as "
            "arrays, and it cannot be told which are static; bind those first, as with "
            "functools.partial, or name them in static_argnames and pass them by name"
        )
    return StaticArguments({i: a for i, a in enumerate(args) if i not in choices[0]}, named)


def _is_traced_as(value: Any, info: Any) -> bool:
    structure: Any = jax.tree.structure(value)
    leaves, infos = jax.tree.leaves(value), jax.tree.leaves(info)
    return structure == jax.tree.structure(info) and all(map(_is_array_like, leaves, infos))


def _is_array_like(leaf: Any, info: Any) -> bool:
    if hasattr(leaf, "dtype"):
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
        return bool(tuple(leaf.shape) == tuple(info.shape) and dtype == info.dtype)
    is_scalar = isinstance(leaf, (bool, int, float, complex))
    return is_scalar and info.shape == () and np.result_type(leaf).kind == info.dtype.kind


def _traced_parameters(traced: Any) -> set[str]:
    """Returns the names of the parameters whose arrays were traced: ``state`` of ``state['w']``."""
    return {name.replace(".", "[").split("[")[0] for name in jaxprs.argument_names(traced.jaxpr)}


def _parameter_names(fn: Callable[..., Any], count: int) -> list[str]:
    """Returns the name of the parameter that takes each positional argument."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        return [""] * count
    names = [parameter.name for parameter in parameters]
    return [names[min(i, len(names) - 1)] if names else "" for i in range(count)]
