"""Input maps: which inputs an import replaces by tensors of the graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmeta import errors, naming, values
from jaxmeta.graphs import building
from jaxmeta.graphs.graph import Operation, Tensor, Variable


@dataclasses.dataclass(frozen=True, slots=True)
class InputMap:
    """The inputs that an import replaces.

    Attributes:
        tensors: the tensor instead of each, by its name with index: ``x:0``.
        operations: the operation instead of each control input, by its name: ``x`` for ``^x``.

    Example:
        >>> sorted(InputMap({}, {"init": "mine/init"}).names)
        ['^init']
    """

    tensors: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    operations: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.tensors or self.operations)

    @property
    def names(self) -> set[str]:
        """All replaced inputs as nodes name them."""
        return {*self.tensors, *(f"^{name}" for name in self.operations)}


def check_input_map(input_map: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns an input map with strings as keys, or raises ArgumentTypeError."""
    if input_map is None:
        return {}
    if not isinstance(input_map, dict):
        raise errors.ArgumentTypeError(
            f"Argument `input_map` must be a dictionary. Obtained {type(input_map).__name__}"
        )
    if not all(isinstance(key, (str, bytes)) for key in input_map):
        raise errors.ArgumentTypeError(
            f"All keys for argument `input_map` must be strings. Obtained keys: {list(input_map)}"
        )
    return {
        key.decode() if isinstance(key, bytes) else key: value for key, value in input_map.items()
    }


def convert_input_map(
    input_map: Mapping[str, Any], target: building.Graph, *, can_add: bool
) -> InputMap:
    """Returns an input map of tensors; arrays become constants in the current scope.

    Args:
        input_map: tensors, variables, arrays or operations.
        target: the graph.
        can_add: whether there is a scope for constants.

    Raises:
        GraphError: a tensor is of another graph, an array has no scope to be a constant in, or a
            name is none of a tensor.
    """
    tensors: dict[str, Tensor] = {}
    operations: dict[str, str] = {}
    arrays: dict[str, Any] = {}
    for key, value in input_map.items():
        if isinstance(value, (Tensor, Variable, Operation)) and value.graph is not target:
            raise errors.GraphError(f"input_map[{key!r}]: {value} belongs to another graph")
        if key.startswith("^"):
            operations[key[1:]] = _operation_name(key, value)
        elif isinstance(value, Tensor):
            tensors[tensor_key(key)] = value
        elif isinstance(value, Variable):
            tensors[tensor_key(key)] = target.get_tensor_by_name(value.snapshot_name)
        else:
            arrays[tensor_key(key)] = value
    if arrays and not can_add:
        raise errors.GraphError(
            "import_graph_def() requires a non-empty `name` if `input_map` contains non-Tensor "
            "values"
        )
    if arrays:
        with target.name_scope("_inputs"):
            for key, value in arrays.items():
                tensors[key] = _add_constant(value, target)
    return InputMap(tensors, operations)


def _operation_name(key: str, value: Any) -> str:
    if isinstance(value, Operation):
        return value.name
    if isinstance(value, Tensor):
        return value.node_name
    raise errors.ArgumentTypeError(
        f"input_map[{key!r}] must be an operation or a tensor, not {value!r}"
    )


def tensor_key(name: str) -> str:
    """Returns the one form of a tensor's name: ``node:0`` for ``node``."""
    parsed = naming.parse_tensor_name(name)
    if parsed.argument is not None:
        raise errors.GraphError(f"Cannot convert {name!r} to a tensor name: it has more than 1 `:`")
    return f"{parsed.node}:{parsed.position}"


def _add_constant(value: Any, target: building.Graph) -> Tensor:
    # As TensorFlow, and JAX without 64 bits: a Python number is 32 bits wide.
    is_plain = isinstance(value, (int, float, list, tuple)) and not isinstance(value, bool)
    array = np.asarray(value)
    if is_plain and array.dtype in (np.dtype("float64"), np.dtype("int64")):
        array = array.astype(f"{array.dtype.kind}4")
    proto = values.tensor_to_proto(array)
    target.add_node("Const", [], {"dtype": proto.dtype, "value": proto}, "Const")
    return Tensor(target, target.last_node_name, 0)
