"""The values of a program's variables, and the state whose leaves they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from jaxmeta import errors, state_leaves, tree_keys, trees
from jaxmeta.graphs import graph
from jaxmeta.graphs.graph import Variable
from jaxmeta.tracing import jaxprs


def physical_value(value: Any, variable: Variable) -> Any:
    """Returns what a checkpoint holds of a variable's value: typed keys as their uint32 data."""
    is_key = variable.key_impl and jaxprs.is_key_dtype(value.dtype)
    return jax.random.key_data(value) if is_key else value


def logical_value(value: Any, variable: Variable) -> Any:
    """Returns what a program sees of a variable's value: typed keys as keys, weak types weak."""
    if variable.key_impl:
        return jax.random.wrap_key_data(value, impl=variable.key_impl)
    return jaxprs.weaken(value, variable.dtype) if variable.weak_type else value


def check_values(target: graph.GraphBuilder, physical: Mapping[str, Any]) -> None:
    """Raises CheckpointError where values do not fit their variables; all are listed."""
    bad = []
    for name, value in physical.items():
        variable = target.variable(name)
        if tuple(value.shape) != variable.shape or value.dtype != variable.dtype:
            expected = f"{variable.dtype}{list(variable.shape)}"
            bad.append(f"{name}: expected {expected}, got {value.dtype}{list(value.shape)}")
    if bad:
        headline = "these values do not fit the graph's variables:"
        raise errors.CheckpointError(errors.list_offenders(headline, bad))


def physical_values(target: graph.GraphBuilder, state: Any) -> dict[str, Any]:
    """Returns the arrays of a state by the names of their variables, as the graph holds them.

    Raises:
        CheckpointError: paths, shapes or dtypes are not the variables', or leaves are not arrays;
            all are listed.

    """
    named = named_arrays(target, state)
    state_leaves.check_all(named.items(), errors.CheckpointError)
    physical = {
        name: physical_value(state_leaves.as_jax_holds_it(value), target.variable(name))
        for name, value in named.items()
    }
    check_values(target, physical)
    return physical


def named_arrays(target: graph.GraphBuilder, state: Any) -> dict[str, Any]:
    """Returns the arrays of a state by the names of their variables.

    Args:
        target: the graph whose `Graph.variables` took a tree of this form.
        state: the tree; where the graph holds several, a dict of them by name.

    Raises:
        CheckpointError: the tree's leaves are not the recorded ones; all differences are listed.
    """
    recorded = target.state_trees
    if len(recorded) == 1:
        return _named_leaves(next(iter(recorded.values())), state)
    named: dict[str, Any] = {}
    for name, tree in recorded.items():
        named.update(_named_leaves(tree, state[name]))
    return named


def _named_leaves(tree: trees.Tree, state: Any) -> dict[str, Any]:
    records = list(trees.leaves(tree))
    expected = trees.build(tree, iter(records))
    headline = "the state is not the one the graph's variables were made from:"
    tree_keys.check_paths(expected, state, headline, errors.CheckpointError)
    leaves = jax.tree.leaves(state)
    return {record.name: leaf for record, leaf in zip(records, leaves, strict=True)}
