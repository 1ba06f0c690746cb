"""The values of saveables: what goes into a checkpoint, and what comes out of one."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxmeta import errors, state_values, trees
from jaxmeta.checkpoint import restoring, slices
from jaxmeta.graphs import building
from jaxmeta.saving import saver_nodes
from jaxmeta.saving.saveables import Saveable


def values_to_save(
    found: Sequence[Saveable], values: Mapping[str, Any]
) -> list[tuple[Saveable, Any]]:
    """Returns each saveable with its value.

    Args:
        found: the saveables.
        values: by the names of variables.

    Raises:
        CheckpointError: variables have no value; all are listed.
    """
    missing = [s.variable.op_name for s in found if s.variable.op_name not in values]
    if missing:
        raise errors.CheckpointError(
            errors.list_offenders(
                "these variables have no value to save:",
                missing,
            )
        )
    return [(saveable, values[saveable.variable.op_name]) for saveable in found]


def whole_arrays(pairs: Sequence[tuple[Saveable, Any]]) -> dict[str, Any]:
    """Returns what is saved by name, with tensors put together from their parts."""
    arrays: dict[str, Any] = {}
    for name, value in _named_arrays(pairs).items():
        if isinstance(value, slices.Partitioned):
            parts = [
                (extents, functools.partial(np.asarray, part)) for extents, part in value.parts
            ]
            wanted = tuple((0, size) for size in value.shape)
            try:
                value = slices.assemble(wanted, np.dtype(value.parts[0][1].dtype), parts)
            except errors.CheckpointError as error:
                raise errors.CheckpointError(
                    f"cannot save {name!r}: {error}. Save all its parts, or in the format "
                    f"'tensor_bundle', which holds parts."
                ) from None
        arrays[name] = value
    return arrays


def _named_arrays(pairs: Sequence[tuple[Saveable, Any]]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    parts: dict[str, list[tuple[slices.Extents, Any]]] = {}
    for saveable, value in pairs:
        if saveable.part is None:
            named[saveable.name] = value
        else:
            parts.setdefault(saveable.name, []).append((saveable.part.extents, value))
            whole = slices.Partitioned(saveable.part.full_shape, tuple(parts[saveable.name]))
            named[saveable.name] = whole
    return named


def bundle_files(pairs: Sequence[tuple[Saveable, Any]], sharded: bool) -> list[dict[str, Any]]:
    """Returns what is saved by name, for each file of a bundle: one a device where sharded."""
    by_device: dict[str, list[tuple[Saveable, Any]]] = {}
    for saveable, value in pairs:
        device = saver_nodes.device_of(saveable.variable) if sharded else ""
        by_device.setdefault(device, []).append((saveable, value))
    return [_named_arrays(by_device[device]) for device in sorted(by_device)]


def restore(
    found: Sequence[Saveable], prefix: str, shardings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns values by the names of their variables."""
    restored: dict[str, Any] = {}
    for reshape in (False, True):
        requests = {
            saveable.variable.op_name: saveable.request(
                (shardings or {}).get(saveable.variable.op_name)
            )
            for saveable in found
            if saveable.reshape == reshape
        }
        if requests:
            restored.update(restoring.restore(prefix, requests, reshape=reshape))
    return restored


def replace_values(target: building.Graph, tree: Any, restored: Mapping[str, Any]) -> Any:
    """Returns a state with the values of some variables replaced."""
    state_values.named_arrays(target, tree)  # raises where it has another form
    if len(target.state_trees) == 1:
        (record,) = target.state_trees.values()
        return _replace_leaves(target, record, tree, restored)
    return {
        name: _replace_leaves(target, record, tree[name], restored)
        for name, record in target.state_trees.items()
    }


def _replace_leaves(
    target: building.Graph, record: trees.Tree, tree: Any, restored: Mapping[str, Any]
) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    names = [leaf.name for leaf in trees.leaves(record)]
    return jax.tree.unflatten(
        structure,
        [
            state_values.logical_value(restored[name], target.variable(name))
            if name in restored
            else leaf
            for name, leaf in zip(names, leaves, strict=True)
        ],
    )
