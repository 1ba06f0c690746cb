"""TensorFlow 1's control flow of Switch and Merge nodes, and optional values.

Plans that hold such nodes are compiled where `jaxmeta.execution.frames` finds loops and branches in
them; these kernels run where a plan runs op by op, as `jaxmeta.execution.dataflow` says.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxmeta import errors
from jaxmeta.ops._dataflow_values import DEAD, Optional
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._kernels import Flow

# --- dataflow ----------------------------------------------------------------------------------


@kernel(
    "Switch",
    "RefSwitch",
    static=("pred",),
    traceable=("pred",),
    may_need_values=True,
    gives_sizes=True,
    flow=Flow.SWITCH,
)
def switch(data: Any, pred: Any) -> list[Any]:
    return [DEAD, data] if bool(pred) else [data, DEAD]


@kernel("Merge", "RefMerge", may_need_values=True, gives_sizes=True, flow=Flow.MERGE)
def merge(*inputs: Any) -> list[Any]:
    """Returns the input that is alive, and its index."""
    index, value = next((i, x) for i, x in enumerate(inputs) if x is not DEAD)
    return [value, np.asarray(index, np.int32)]


def pass_on(data: Any) -> Any:
    """Returns what it is given."""
    return data


for _flow, _ops in {
    Flow.ENTER: ("Enter", "RefEnter"),
    Flow.EXIT: ("Exit", "RefExit"),
    Flow.NEXT: ("NextIteration", "RefNextIteration"),
}.items():
    kernel(*_ops, may_need_values=True, gives_sizes=True, flow=_flow)(pass_on)


@kernel("LoopCond", may_need_values=True, flow=Flow.CONDITION)
def loop_cond(input: Any) -> Any:
    return input


# --- optionals ---------------------------------------------------------------------------------


@kernel("OptionalFromValue", may_need_values=True)
def optional_from_value(*components: Any) -> Any:
    return Optional(components)


@kernel("OptionalNone", may_need_values=True)
def optional_none() -> Any:
    return Optional(None)


@kernel("OptionalHasValue", may_need_values=True)
def optional_has_value(optional: Any) -> Any:
    return np.asarray(optional.components is not None)


@kernel("OptionalGetValue", may_need_values=True)
def optional_get_value(optional: Any) -> list[Any]:
    if optional.components is None:
        raise errors.InvalidArgumentError("The given optional does not have a value.")
    return list(optional.components)
