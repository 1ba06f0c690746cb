"""Steps that run on values: strings as numpy arrays of bytes, everything else as JAX has it."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxmeta.execution import planning, plans
from jaxmeta.ops import _definition


def on_values(step: plans.Step, library: planning.FunctionLibrary) -> plans.Step:
    """Returns a step that takes strings too where its op has a kernel for these."""
    run, places, output, outputs, kernel, node = step
    string_kernel = None if kernel.is_host else _definition.STRING_KERNELS.get(node.op)
    on_strings = planning.bind_attrs(node, string_kernel, library) if string_kernel else None

    def run_on_values(*inputs: Any) -> Any:
        if kernel.is_host:
            inputs = tuple(map(_as_numpy, inputs))
        elif on_strings is not None and any(map(is_string, inputs)):
            given = inputs[1:] if kernel.is_stateful else inputs
            return on_strings(*given)
        return run(*inputs)

    return run_on_values, places, output, outputs, kernel, node


def _as_numpy(value: Any) -> Any:
    is_known = isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)
    return np.asarray(value) if is_known else value


def is_string(value: Any) -> bool:
    """Returns whether a value is an array of strings."""
    return isinstance(value, np.ndarray) and value.dtype == object
