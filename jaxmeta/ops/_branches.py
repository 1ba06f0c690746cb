"""TensorFlow's branches as JAX's `switch`, with all that they return and write.

Each branch is traced first; what they return is then brought to one form: lists get places for the
longest, and what a branch has no value for, because it is dead there, becomes zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import errors
from jaxmeta.ops import _tensor_lists as tensor_lists
from jaxmeta.ops._cells import first_value
from jaxmeta.ops._dataflow_values import DEAD
from jaxmeta.ops._loops import array_type, changed_cells
from jaxmeta.tracing import jaxprs

Branch: TypeAlias = Callable[[Any], list[Any]]
"""Takes a state, which it may write; returns results, some of which may be `DEAD`."""


def run_branches(
    state: Any, index: Any, branches: Sequence[Branch], name: str = "branch"
) -> list[Any]:
    """Runs one of some branches, as JAX's `switch` where the index is traced.

    Args:
        state: what they read and write, or None.
        index: which branch; in range.
        branches: the branches.
        name: for messages.

    Raises:
        UnsupportedOpError: they cannot be compiled; says why.
    """
    if not isinstance(index, jax.core.Tracer):
        return branches[int(index)](state)
    trials = [_trial(branch, state) for branch in branches]
    names = list(dict.fromkeys(n for _, local in trials if local for n in local.written))
    keys = _cells_written(state, [local for _, local in trials])
    all_parts = [
        [*results, *([local.read(n) for n in names] if local else ()), *_held(state, local, keys)]
        for results, local in trials
    ]
    forms = [_Form(values, name) for values in zip(*all_parts, strict=True)]

    def run(branch: Branch) -> list[Any]:
        local = state.fork() if state is not None else None
        results = branch(local)
        parts = [*results, *([local.read(n) for n in names] if local else ())]
        parts += _held(state, local, keys)
        return [
            leaf for form, part in zip(forms, parts, strict=True) for leaf in form.arrays_of(part)
        ]

    if len(branches) == 2:
        chosen = jnp.asarray(index, np.int32) != 0
        flat = lax.cond(chosen, lambda: run(branches[1]), lambda: run(branches[0]))
    else:
        flat = lax.switch(index, [lambda b=branch: run(b) for branch in branches])
    arrays = iter(flat)
    parts = [form.value_of(arrays) for form in forms]
    count = len(trials[0][0])
    for variable, value in zip(names, parts[count:], strict=False):
        state.write(variable, value)
    for key, value in zip(keys, parts[count + len(names) :], strict=True):
        state.cells[key] = value
    return parts[:count]


def _trial(branch: Branch, state: Any) -> tuple[list[Any], Any]:
    made: list[tuple[list[Any], Any]] = []

    def run() -> list[Any]:
        local = state.fork() if state is not None else None
        made.append((list(branch(local)), local))
        return []

    jaxprs.make_jaxpr(run, [])
    return made[-1]


def _cells_written(state: Any, locals_: Sequence[Any]) -> list[Any]:
    """Returns the keys of the cells that some branches change and that outlive them."""
    keys: dict[Any, None] = {}
    for local in locals_:
        if local is not None:
            keys.update(dict.fromkeys(changed_cells(state, local)))
    return [key for key in keys if first_value(state, key) is not None]


def _held(state: Any, local: Any, keys: Sequence[Any]) -> list[Any]:
    if local is None:
        return []
    values = [local.cells.get(key) for key in keys]
    return [
        first_value(state, key) if value is None else value
        for key, value in zip(keys, values, strict=True)
    ]


class _Form:
    """What one result is in all branches: what is known of it, and its arrays."""

    def __init__(self, values: Sequence[Any], name: str) -> None:
        """Takes the results of all branches, as they were traced.

        Raises:
            UnsupportedOpError: they have no form in common.
        """
        self._name = name
        alive = [value for value in values if value is not DEAD]
        if not alive:
            alive = [np.zeros((), np.bool_)]  # nobody will look at it
        self._is_list = any(map(tensor_lists.is_list, alive))
        self._list_form: tensor_lists.ListForm | None = None
        structures = {jax.tree.structure(value) for value in alive}
        shapes = {tuple(map(np.shape, jax.tree.leaves(value))) for value in alive}
        if self._is_list and (len(structures) > 1 or len(shapes) > 1):
            self._list_form = tensor_lists.common_form(alive)
            alive = [_abstract_in_form(value, self._list_form) for value in alive]
        structures = {jax.tree.structure(value) for value in alive}
        if len(structures) > 1:
            raise self._refused(alive)
        (self._treedef,) = structures
        self._leaves = [
            self._common(leaves) for leaves in zip(*map(jax.tree.leaves, alive), strict=True)
        ]

    def _common(self, leaves: Sequence[Any]) -> Any:
        """Returns a constant, or the spec of an array."""
        first = leaves[0]
        is_known = not isinstance(first, (jax.Array, jax.ShapeDtypeStruct))
        if is_known and all(tensor_lists.is_same(first, other) for other in leaves):
            return tensor_lists.Constant(first)
        if not all(map(tensor_lists.is_array, leaves)):
            raise self._refused(leaves)
        types = [
            leaf if isinstance(leaf, jax.ShapeDtypeStruct) else array_type(leaf) for leaf in leaves
        ]
        if len({(t.shape, t.dtype) for t in types}) > 1:
            raise self._refused([f"{t.dtype}{list(t.shape)}" for t in types])
        return types[0]

    def _refused(self, values: Sequence[Any]) -> Exception:
        return errors.UnsupportedOpError(
            f"the branches of {self._name!r} return what has no form in common: {list(values)}"
        )

    def arrays_of(self, value: Any) -> list[Any]:
        """Returns the arrays of a branch's result, in the form that all have."""
        specs = [leaf for leaf in self._leaves if not isinstance(leaf, tensor_lists.Constant)]
        if value is DEAD:
            return [jnp.zeros(spec.shape, spec.dtype) for spec in specs]
        if self._list_form is not None:
            value = self._list_form.apply(value)
        pairs = zip(jax.tree.leaves(value), self._leaves, strict=True)
        return [
            jnp.asarray(leaf, form.dtype)
            for leaf, form in pairs
            if not isinstance(form, tensor_lists.Constant)
        ]

    def value_of(self, arrays: Any) -> Any:
        """Returns the result from its arrays, which are the next of an iterator."""
        leaves = [
            leaf.value if isinstance(leaf, tensor_lists.Constant) else next(arrays)
            for leaf in self._leaves
        ]
        return jax.tree.unflatten(self._treedef, leaves)


def _abstract_in_form(value: Any, form: tensor_lists.ListForm) -> Any:
    """Returns specs of a list in a form; its arrays belong to a trace that has ended."""
    leaves, treedef = jax.tree.flatten(value)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

    def apply(*given: Any) -> Any:
        held = list(leaves)
        for place, leaf in zip(places, given, strict=True):
            held[place] = leaf
        return form.apply(jax.tree.unflatten(treedef, held))

    return jax.eval_shape(apply, *[array_type(leaves[place]) for place in places])
