"""What a state may hold: arrays and numbers, in a tree that a file can hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from typing import Any, Final

import jax
import numpy as np

from jaxmeta import dtypes, errors, tree_keys, trees
from jaxmeta.tracing import jaxprs

_SPLIT_ADVICE: Final = (
    "Split off what is no array: params, static = equinox.partition(model, equinox.is_array); "
    "graphdef, state = flax.nnx.split(model). Or mark the fields static: "
    "equinox.field(static=True), flax.struct.field(pytree_node=False), meta_fields of "
    "jax.tree_util.register_dataclass."
)
_REGISTER_ADVICE: Final = (
    "Register the class of a container with jax.tree_util, or use dict, list, tuple or NamedTuple."
)
_DTYPE_ADVICE: Final = "Cast arrays to a type that both JAX and TensorFlow have."
_RANGE_ADVICE: Final = (
    'Switch 64-bit types on, jax.config.update("jax_enable_x64", True), or use smaller numbers.'
)
_SHOWN_CHARACTERS: Final = 40


def describe(state: Any) -> trees.Tree:
    """Returns the record of a state whose leaves have no names yet.

    Raises:
        GraphError: leaves are not arrays (all are listed), keys are recorded alike, or the tree
            is too deep for a file.
    """
    try:
        jax.tree.structure(state)  # with paths, JAX has no clean error where this is too deep
        flat, _ = jax.tree_util.tree_flatten_with_path(state)
        pairs = [(tree_keys.path_name(path) or "the state", leaf) for path, leaf in flat]
        check_all(pairs, errors.GraphError)
        record = trees.describe(state, lambda path, leaf: trees.Leaf("", (), 0))
        trees.check_depth(record, "the state")
    except RecursionError:
        raise errors.GraphError(
            "the state is a tree too deep for a file, or holds itself"
        ) from None
    return record


def check_all(pairs: Iterable[tuple[str, Any]], error_class: type[errors.JaxmetaError]) -> None:
    """Raises an error that names all leaves that are neither arrays nor numbers of known types.

    Args:
        pairs: leaves with their names.
        error_class: of the error.
    """
    bad = []
    advices: dict[str, None] = {}
    for name, leaf in pairs:
        found = _objection(leaf)
        if found is not None:
            bad.append(f"{name}: {found[0]}")
            advices[found[1]] = None
    if bad:
        headline = "the state holds leaves that are not arrays:"
        raise error_class(errors.list_offenders(headline, bad, "\n".join(advices)))


def _objection(leaf: Any) -> tuple[str, str] | None:
    """Returns why a leaf cannot be a variable and what to do about it, or None."""
    if isinstance(leaf, (bool, int, float, complex, np.ndarray, np.generic)):
        return _number_objection(leaf)
    if not hasattr(leaf, "dtype"):
        kind = type(leaf).__name__
        if callable(leaf):
            return f"{kind} {getattr(leaf, '__name__', '')}".rstrip(), _SPLIT_ADVICE
        if dataclasses.is_dataclass(leaf) or _is_container(leaf):
            return f"{kind}, a class that is no pytree to JAX", _REGISTER_ADVICE
        text = repr(leaf)
        is_short = len(text) <= _SHOWN_CHARACTERS and " at 0x" not in text
        return f"{kind} {text}" if is_short else kind, _SPLIT_ADVICE
    return _dtype_objection(leaf.dtype)


def _is_container(leaf: Any) -> bool:
    return isinstance(leaf, Collection) and not isinstance(leaf, (str, bytes, bytearray))


def _number_objection(leaf: Any) -> tuple[str, str] | None:
    if isinstance(leaf, (np.ndarray, np.generic)):
        objection = _dtype_objection(leaf.dtype)
        if objection is not None or leaf.dtype.kind not in "iu":
            return objection
        if (as_jax_holds_it(leaf) == leaf).all():
            return None
        limits = f"{leaf.dtype} beyond {jax.dtypes.canonicalize_dtype(leaf.dtype)}"
        return f"{limits}, which JAX makes of it", _RANGE_ADVICE
    if isinstance(leaf, int) and not isinstance(leaf, bool):
        widest = jax.dtypes.canonicalize_dtype(np.int64)
        bounds = np.iinfo(widest)
        if not bounds.min <= leaf <= bounds.max:
            return f"the number {leaf} is beyond {widest}", _RANGE_ADVICE
    return None


def _dtype_objection(dtype: Any) -> tuple[str, str] | None:
    if jaxprs.is_key_dtype(dtype):
        return None
    try:
        is_text = dtypes.dtype_to_number(dtype) == dtypes.STRING
    except errors.DtypeError:
        return f"an array of {dtype}, a type that TensorFlow has not", _DTYPE_ADVICE
    if is_text:
        return f"an array of {np.dtype(dtype)}, a type that JAX has not", _SPLIT_ADVICE
    return None


def as_jax_holds_it(leaf: Any) -> Any:
    """Returns an array for a number; one of 64 bits as JAX narrows it, where these are off."""
    if isinstance(leaf, (bool, int, float, complex)) and not isinstance(leaf, np.generic):
        return np.asarray(leaf, jax.dtypes.canonicalize_dtype(type(leaf)))
    if isinstance(leaf, (np.ndarray, np.generic)):
        with np.errstate(over="ignore"):
            return np.asarray(leaf).astype(jax.dtypes.canonicalize_dtype(leaf.dtype), copy=False)
    return leaf
