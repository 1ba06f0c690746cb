"""Rules of `jax.custom_batching.custom_vmap`, traced for a batch whose size is a symbol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import numpy as np

from jaxmeta.tracing import dimensions, jaxprs

_SIZE: Final = "vmap_size"
_PLAIN: Final = (bool, int, float, complex, str, bytes, type(None))


def may_be_batched(rule: Callable[..., Any], in_tree: Any) -> list[bool]:
    """Returns of each operand whether `jax.vmap` may give it a batch.

    What the function closes over comes first, and may not. The derivative of a rule closes over
    nothing.
    """
    count = in_tree.num_leaves
    closed_over = in_tree.children()[0].num_leaves if hasattr(rule, "__wrapped__") else 0
    return [index >= closed_over for index in range(count)]


def trace(
    rule: Callable[..., Any], in_tree: Any, out_tree: Any, call: Any, choice: Sequence[bool]
) -> tuple[Any, list[bool]]:
    """Returns the closed jaxpr of a rule, and which of its results have a batch.

    Args:
        rule: as the eqn has it.
        in_tree: of the operands.
        out_tree: of the results.
        call: the jaxpr of the function that has the rule.
        choice: which operands have a batch.

    Raises:
        Exception: whatever the rule has against it.
    """
    avals = [var.aval for var in jaxprs.open_jaxpr(call).invars]
    batched = _batched(avals, choice)
    flags: list[bool] = []

    def run(*arrays: Any) -> list[Any]:
        size = next(x.shape[0] for x, flag in zip(arrays, choice, strict=True) if flag)
        operands = jax.tree.unflatten(in_tree, arrays)
        in_batched = jax.tree.unflatten(in_tree, list(choice))
        results, out_batched = rule(size, list(in_batched), *operands)
        leaves, treedef = jax.tree.flatten(results)
        flags[:], flag_tree = jax.tree.flatten(out_batched)
        if treedef != out_tree or flag_tree != out_tree:
            raise TypeError(f"the rule returned {treedef} and {flag_tree}, not {out_tree}")
        return leaves

    return jaxprs.make_jaxpr(run, batched), [bool(flag) for flag in flags]


def _batched(avals: Sequence[Any], choice: Sequence[bool]) -> list[jax.ShapeDtypeStruct]:
    """Returns avals, of which those that are chosen have a leading axis of symbolic size."""
    sizes = [size for aval in avals for size in aval.shape]
    name, taken = _SIZE, dimensions.names_of(sizes)
    while name in taken:
        name += "_"
    shapes = [
        (name, *aval.shape) if flag else aval.shape
        for aval, flag in zip(avals, choice, strict=True)
    ]
    return [
        jax.ShapeDtypeStruct(shape, aval.dtype, weak_type=jaxprs.is_weak(aval))
        for shape, aval in zip(dimensions.symbolize(shapes), avals, strict=True)
    ]


def identity(call: Any, rule: Callable[..., Any]) -> tuple[str, Any]:
    """Returns what tells two uses apart: the function's jaxpr, and the rule with what it holds."""
    return str(call), _fingerprint(rule)


def _fingerprint(value: Any) -> Any:
    while hasattr(value, "__wrapped__"):
        value = value.__wrapped__
    code = getattr(value, "__code__", None)
    if code is not None:
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return (code, *map(_fingerprint, cells))
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.name, value.shape, value.tobytes()
    return type(value).__name__
