"""Steps that run on values: strings as numpy arrays of bytes, everything else as JAX has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import numpy as np

from jaxmeta import dtypes, op_defs
from jaxmeta._proto import graph_pb2
from jaxmeta.execution import node_kernels, plans
from jaxmeta.ops import _definition

_WIDE: Final = frozenset(
    dtypes.dtype_to_number(np.dtype(kind)) for kind in ("int64", "uint64", "float64", "complex128")
)

_NOT_NUMBERS: Final = frozenset({dtypes.STRING, dtypes.RESOURCE, dtypes.VARIANT})


def on_values(step: plans.Step, library: node_kernels.FunctionLibrary) -> plans.Step:
    """Returns a step that takes strings too where its op has a kernel for these."""
    run, places, output, outputs, kernel, node = step
    string_kernel = None if kernel.is_host else _definition.STRING_KERNELS.get(node.op)
    on_strings = node_kernels.bind_attrs(node, string_kernel, library) if string_kernel else None

    as_declared = declared_inputs(node, library)

    def run_on_values(*inputs: Any) -> Any:
        if kernel.is_host:
            first = inputs[:1] if kernel.is_stateful else ()
            inputs = (*first, *as_declared(inputs[len(first) :]))
        elif on_strings is not None and any(map(is_string, inputs)):
            given = inputs[1:] if kernel.is_stateful else inputs
            return on_strings(*given)
        return run(*inputs)

    return run_on_values, places, output, outputs, kernel, node


def declared_inputs(
    node: graph_pb2.NodeDef, library: node_kernels.FunctionLibrary
) -> Callable[[Sequence[Any]], list[Any]]:
    """Returns what makes numpy arrays of a node's inputs, of the dtypes that its op says.

    What comes from the device has 32 bits where JAX's 64-bit types are switched off.
    """
    numbers = _input_numbers(node, library)
    wide = [dtypes.dtype_from_number(n) if n in _WIDE else None for n in numbers]

    def convert(inputs: Sequence[Any]) -> list[Any]:
        arrays = list(map(_as_numpy, inputs))
        for index, dtype in enumerate(wide):
            if dtype is not None and _is_narrow(arrays[index], dtype):
                arrays[index] = arrays[index].astype(dtype)
        return arrays

    return convert


def is_of_numbers(node: graph_pb2.NodeDef, library: node_kernels.FunctionLibrary) -> bool:
    """Returns whether a node takes neither strings nor resources."""
    return _NOT_NUMBERS.isdisjoint(_input_numbers(node, library))


def _input_numbers(node: graph_pb2.NodeDef, library: node_kernels.FunctionLibrary) -> list[int]:
    function = library.definition(node.op)
    op_def = function.signature if function is not None else op_defs.get_op_def(node.op)
    return [dtypes.base_number(number) for number in op_defs.input_dtypes(op_def, node)]


def _is_narrow(value: Any, dtype: Any) -> bool:
    return (
        isinstance(value, (np.ndarray, np.generic))
        and value.dtype.kind == dtype.kind
        and value.dtype.itemsize < dtype.itemsize
    )


def _as_numpy(value: Any) -> Any:
    is_known = isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)
    return np.asarray(value) if is_known else value


def is_string(value: Any) -> bool:
    """Returns whether a value is an array of strings."""
    return isinstance(value, np.ndarray) and value.dtype == object
