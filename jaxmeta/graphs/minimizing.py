"""Train operations: gradients of a loss, an optax transformation of them, assignments.

The transformation is a pair of functions, ``init`` and ``update``; what it remembers becomes
variables. optax itself is not imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp

from jaxmeta import errors, naming, tree_keys
from jaxmeta.graphs import calling, differentiating, elementary, graph, variables
from jaxmeta.graphs.graph import GraphBuilder
from jaxmeta.graphs.handles import Operation, Tensor
from jaxmeta.graphs.variable_handles import Variable

TRAIN_OP: Final = "train_op"


def minimize(
    target: GraphBuilder,
    loss: Tensor,
    transformation: Any,
    var_list: Sequence[Variable] | None = None,
    global_step: Variable | None = None,
    name: str | None = None,
    grad_loss: Any = None,
) -> Operation:
    """Adds the operation of a train step; see `jaxmeta.minimize`."""
    _check_transformation(transformation)
    chosen = target.get_collection(graph.TRAINABLE_VARIABLES) if var_list is None else var_list
    if not chosen:
        raise errors.GraphError("there are no variables to optimize")
    seeds = None if grad_loss is None else [grad_loss]
    found = differentiating.gradients(target, [loss], list(chosen), seeds)
    pairs = [(v, g) for v, g in zip(chosen, found, strict=True) if g is not None]
    if not pairs:
        listed = [str(variable) for variable in chosen]
        raise errors.GraphError(
            errors.list_offenders("the loss depends on none of these variables:", listed)
        )
    return apply_gradients(target, transformation, pairs, global_step, name)


def apply_gradients(
    target: GraphBuilder,
    transformation: Any,
    grads_and_vars: Sequence[tuple[Variable, Tensor]],
    global_step: Variable | None = None,
    name: str | None = None,
) -> Operation:
    """Adds the operation that changes variables by their gradients."""
    params = {variable.op_name: variable for variable, _ in grads_and_vars}
    grads = {variable.op_name: grad for variable, grad in grads_and_vars}
    with target.name_scope(name, "minimize") as scope:
        state = _add_slots(target, transformation, params)
        new_params, new_state = calling.call(
            target,
            lambda *args: _step(transformation, *args),  # a lambda adds no scope of its own
            [grads, state, params],
            {},
        )
        updated = [*params.values(), *jax.tree.leaves(state, is_leaf=_is_variable)]
        results = [*(new_params[key] for key in params), *jax.tree.leaves(new_state)]
        assigned = []
        for variable, result in zip(updated, results, strict=True):
            short = naming.clean_name(variable.op_name.replace("/", "_"))
            assigned.append(
                variables.assign(
                    target, "Assign", variable, result, f"update_{short}/Assign", read_value=False
                )
            )
        train_op = _finish(target, assigned, global_step, scope)
    target.add_to_collection(TRAIN_OP, train_op)
    return train_op


def _finish(
    target: GraphBuilder, assigned: Sequence[Any], global_step: Variable | None, scope: str
) -> Operation:
    """Adds what runs all assignments and counts the step; it has the name of the scope."""
    if global_step is None:
        return elementary.add_group(target, assigned, scope)
    update = elementary.add_group(target, assigned, "update")
    with target.control_dependencies([update]):
        one = elementary.add_constant(target, 1, global_step.dtype)
    added = variables.assign(target, "AssignAdd", global_step, one, scope, read_value=False)
    assert isinstance(added, Operation)
    return added


def _step(transformation: Any, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
    """Does one step, as `optax.apply_updates` does it."""
    updates, new_state = transformation.update(grads, state, params)
    new_params = jax.tree.map(
        lambda p, u: p if u is None else jnp.asarray(p + u).astype(p.dtype),
        params,
        updates,
        is_leaf=lambda leaf: leaf is None,
    )
    specs = jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), state, new_state)
    return new_params, specs


def _check_transformation(transformation: Any) -> None:
    if not (hasattr(transformation, "init") and hasattr(transformation, "update")):
        raise errors.GraphTypeError(
            f"expected an optax transformation, with 'init' and 'update', got {transformation!r}"
        )


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, Variable)


# --- what a transformation remembers -----------------------------------------------------------


def _add_slots(target: GraphBuilder, transformation: Any, params: dict[str, Variable]) -> Any:
    """Adds a variable for each array that the transformation remembers; returns their tree."""
    initial = {name: _initial_value(variable) for name, variable in params.items()}
    with target.control_dependencies(None), target.name_scope("Initializer"):
        state = calling.call(target, lambda values: transformation.init(values), [initial], {})
    flat, treedef = jax.tree_util.tree_flatten_with_path(state, is_leaf=_is_tensor)
    slots = []
    for path, leaf in flat:
        slots.append(_add_slot(target, path, leaf, params))
    return jax.tree.unflatten(treedef, slots)


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


def _initial_value(variable: Variable) -> Tensor | Variable:
    return variable.initial_value if variable.initial_value_name else variable


def _add_slot(
    target: GraphBuilder, path: Any, leaf: Tensor, params: dict[str, Variable]
) -> Variable:
    """Adds the variable of one array: ``w/mu`` for what belongs to w, else ``minimize/count``."""
    words = [entry for entry in path if not isinstance(entry, jax.tree_util.SequenceKey)]
    owner = next(
        (entry.key for entry in words if getattr(entry, "key", None) in params),
        None,
    )
    rest = tree_keys.path_name(
        [e for e in words if getattr(e, "key", None) != owner or owner is None]
    )
    short = naming.clean_name(rest) or "slot"
    slot = Variable.__new__(Variable)
    if owner is None:
        variables.add_variable(target, slot, leaf, trainable=False, name=short)
        return slot
    with target.name_scope(f"{owner}/"):
        variables.add_variable(target, slot, leaf, trainable=False, name=short)
    return slot
