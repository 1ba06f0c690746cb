"""Functions under `jax.jit` whose shardings are known for each array, and not by trees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax


class ShardedFunction:
    """A function under `jax.jit` with a sharding for each array, of whatever trees it is given.

    The shardings that jit takes are trees of the arguments' own classes, which are known only when
    the arguments are there; each kind of arguments has a jitted function of its own.

    Args:
        fn: the function; arguments by name are left to the compiler.
        options: of `jax.jit`.
        ins: a sharding for each array that it takes, or None.
        out_tree: of the arguments: the shardings of the results as a tree of these, or None.

    Example:
        >>> halve = ShardedFunction(lambda x: x / 2, {}, [None], lambda args: None)
        >>> float(halve(3.0))
        1.5
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        options: Mapping[str, Any],
        ins: Sequence[Any],
        out_tree: Callable[[Sequence[Any]], Any],
    ) -> None:
        self._fn = fn
        self._options = options
        self._ins = ins
        self._out_tree = out_tree
        self._jitted: dict[Any, Any] = {}
        self.__name__ = self.__qualname__ = fn.__name__
        self.__doc__ = fn.__doc__

    def _for(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        structure = jax.tree.structure((tuple(args), dict(kwargs)))
        if structure not in self._jitted:
            options = dict(self._options)
            if (
                any(self._ins)
                and not kwargs
                and len(jax.tree.leaves((args, kwargs))) == len(self._ins)
            ):
                options["in_shardings"], _ = jax.tree.unflatten(structure, self._ins)
            outs = self._out_tree(args)
            if outs is not None:
                options["out_shardings"] = outs
            self._jitted[structure] = jax.jit(self._fn, **options)
        return self._jitted[structure]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the function, as of `jax.jit`."""
        return self._for(args, kwargs)(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the function lowered for arguments, as of `jax.jit`."""
        return self._for(args, kwargs).lower(*args, **kwargs)

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the function traced for arguments, as of `jax.jit`."""
        return self._for(args, kwargs).trace(*args, **kwargs)

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """Returns shapes and dtypes of the results, as of `jax.jit`."""
        return self._for(args, kwargs).eval_shape(*args, **kwargs)
