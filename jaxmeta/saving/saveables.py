"""What a saver saves: variables, and parts of variables, each under a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from jaxmeta import errors
from jaxmeta.checkpoint import restoring, slices
from jaxmeta.graphs import graph
from jaxmeta.graphs.graph import Variable


@dataclasses.dataclass(frozen=True, slots=True)
class Saveable:
    """A variable under the name that it has in checkpoints.

    Attributes:
        name: in the checkpoint.
        variable: the variable.
        slice_spec: which part of the tensor of that name it holds, as ``"10 7 4,3:0,7"``; empty
            where it holds all of it.
        reshape: whether a tensor of another shape may be restored to it.
    """

    name: str
    variable: Variable
    slice_spec: str = ""
    reshape: bool = False

    @property
    def part(self) -> slices.SliceSpec | None:
        """The slice spec, parsed.

        Raises:
            CheckpointError: it is not well formed.
        """
        return slices.parse_slice_spec(self.slice_spec) if self.slice_spec else None

    def request(self, sharding: Any = None) -> restoring.Request:
        """Returns what to ask of a checkpoint for it."""
        variable = self.variable
        return restoring.Request(self.name, variable.shape, variable.dtype, self.part, sharding)


def of_graph(target: graph.GraphBuilder) -> list[Variable]:
    """Returns the variables that are saved where none are named: the global ones."""
    found = target.get_collection(graph.GLOBAL_VARIABLES)
    return [item for item in dict.fromkeys(found) if isinstance(item, Variable)]


def collect(var_list: Any, *, reshape: bool = False) -> list[Saveable]:
    """Returns what a ``var_list`` stands for, sorted by name as TensorFlow does.

    Args:
        var_list: a dict of names to variables or lists of slices; or a list, set or other tree of
            variables, which are saved under their own names: slices under that of the whole.
        reshape: whether tensors of other shapes may be restored.

    Raises:
        CheckpointTypeError: it holds other things than variables (all are listed), or is neither.
        CheckpointError: names or variables come twice, or slices do not belong together.
    """
    named = _by_name(var_list)
    found: list[Saveable] = []
    seen: set[str] = set()
    repeated = []
    for name, item in sorted(named.items()):
        for saveable in _saveables(name, item):
            if saveable.variable.op_name in seen:
                repeated.append(name)
            seen.add(saveable.variable.op_name)
            found.append(dataclasses.replace(saveable, reshape=reshape))
    if repeated:
        raise errors.CheckpointError(
            f"The same saveable will be restored with two names: {', '.join(repeated)}"
        )
    return found


def _by_name(var_list: Any) -> dict[str, Any]:
    if isinstance(var_list, Mapping) and all(map(_is_named_item, var_list.values())):
        bad = [f"{name!r}" for name in var_list if not isinstance(name, str)]
        if bad:
            headline = "names_to_saveables must be a dict mapping string names to variables:"
            raise errors.CheckpointTypeError(errors.list_offenders(headline, bad))
        return dict(var_list)
    is_tree = isinstance(var_list, (list, tuple, set, frozenset, Mapping)) or not (
        jax.tree_util.all_leaves([var_list])
    )
    if not is_tree:
        raise errors.CheckpointTypeError(
            f"Variables to save should be passed in a dict or a list. Got {var_list!r}"
        )
    return _by_own_name(var_list)


def _is_named_item(item: Any) -> bool:
    """Returns whether a dict's value is a variable, or slices of one, and not a part of a tree."""
    if isinstance(item, (list, tuple)):
        return bool(item) and all(
            isinstance(part, Variable) and part.save_slice_info for part in item
        )
    return not isinstance(item, Mapping) and jax.tree_util.all_leaves([item])


def _by_own_name(var_list: Any) -> dict[str, Any]:
    leaves = list(var_list) if isinstance(var_list, (set, frozenset)) else [var_list]
    variables = jax.tree.leaves(leaves)
    _refuse_others(variables, "Variable to save is not a Variable:")
    named: dict[str, Any] = {}
    repeated, mixed = [], []
    for variable in sorted(variables, key=lambda variable: str(variable.name)):
        info = variable.save_slice_info
        name = info.full_name if info is not None else variable.op_name
        former = named.get(name)
        if info is None:
            if former is not None:
                repeated.append(name)
            named[name] = variable
        elif isinstance(former, Variable):
            mixed.append(name)
        else:
            named.setdefault(name, []).append(variable)
    if mixed:
        raise errors.CheckpointError(
            f"Mixing slices and non-slices with the same name: {', '.join(mixed)}"
        )
    if repeated:
        raise errors.CheckpointError(
            f"At least two variables have the same name: {', '.join(repeated)}"
        )
    return named


def _refuse_others(items: Iterable[Any], headline: str) -> None:
    bad = [f"{item!r} ({type(item).__name__})" for item in items if not isinstance(item, Variable)]
    if bad:
        raise errors.CheckpointTypeError(errors.list_offenders(headline, bad))


def _saveables(name: str, item: Any) -> Iterator[Saveable]:
    if not isinstance(item, (list, tuple)):
        headline = "names_to_saveables must be a dict mapping string names to Variables:"
        _refuse_others([item], headline)
        yield Saveable(name, item)
        return
    wholes = {part.save_slice_info.full_name for part in item}
    if len(wholes) > 1:
        raise errors.CheckpointError(
            f"Slices must all be from the same tensor: {' != '.join(sorted(wholes))}"
        )
    for part in item:
        yield Saveable(name, part, part.save_slice_info.spec)
