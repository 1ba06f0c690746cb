"""Which functions are public: those that a module shows, under the first name found for each."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import jax.scipy

MODULES = (
    "jax.numpy",
    "jax.numpy.linalg",
    "jax.numpy.fft",
    "jax.lax",
    "jax.lax.linalg",
    "jax.nn",
    "jax.nn.initializers",
    "jax.random",
    "jax.scipy",
    "optax.losses",
    "optax",
)


def modules() -> Iterator[Any]:
    for name in MODULES:
        yield importlib.import_module(name)
    for info in pkgutil.walk_packages(jax.scipy.__path__, "jax.scipy."):
        yield importlib.import_module(info.name)


def is_public(name: str, value: Any) -> bool:
    is_type = inspect.isclass(value) or (name[:1].isupper() and name != "PRNGKey")
    return callable(value) and not name.startswith("_") and not is_type


@functools.cache
def public_functions() -> dict[str, Callable[..., Any]]:
    """Returns the functions by full name; one that has several names under the first."""
    found: dict[int, tuple[str, Callable[..., Any]]] = {}
    for module in modules():
        for name in sorted(dir(module)):
            value = getattr(module, name)
            if is_public(name, value):
                found.setdefault(id(value), (f"{module.__name__}.{name}", value))
    return dict(found.values())
