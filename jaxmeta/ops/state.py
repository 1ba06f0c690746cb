"""Variables, placeholders and the nodes that only order others.

A resource handle is a small object that names its variable; the values live in the executor's
state, which kernels with a first parameter ``state`` read and write.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxmeta import errors
from jaxmeta.ops._definition import kernel, string_kernel
from jaxmeta.ops._handles import Handle, check_shape


@kernel("VarHandleOp", makes_variable=True)
def var_handle(*, shared_name: bytes, node_name: str) -> Handle:
    return Handle(shared_name.decode() or node_name)


@string_kernel("ReadVariableOp")
@kernel("ReadVariableOp")
def read_variable(state: Any, resource: Handle) -> Any:
    return state.read(resource.name)


@string_kernel("AssignVariableOp")
@kernel("AssignVariableOp")
def assign_variable(state: Any, resource: Handle, value: Any) -> tuple[()]:
    state.write(resource.name, value)
    return ()


@kernel("VarIsInitializedOp")
def var_is_initialized(state: Any, resource: Handle) -> bool:
    return bool(state.is_initialized(resource.name))


@kernel("NoOp")
def no_op() -> tuple[()]:
    return ()


@kernel("IdentityN")
def identity_n(*input: Any) -> list[Any]:
    return list(input)


@kernel("Placeholder", "PlaceholderV2", must_be_fed=True)
def placeholder(*, node_name: str) -> Any:
    raise errors.FeedError(f"the placeholder {node_name!r} must be fed a value")


@kernel("PlaceholderWithDefault")
def placeholder_with_default(input: Any) -> Any:
    return input


# --- reference variables, as TensorFlow 1 made them -------------------------------------------

# A reference is a handle too. An op that takes plain values gets the variable's value instead:
# the executor reads it when the op runs.


@kernel("Variable", "VariableV2", makes_variable=True)
def variable(*, shared_name: bytes, node_name: str) -> Handle:
    return Handle(shared_name.decode() or node_name)


@string_kernel("Assign")
@kernel("Assign")
def assign(state: Any, ref: Handle, value: Any, *, validate_shape: bool) -> Handle:
    if validate_shape and state.is_initialized(ref.name):
        check_shape(ref, np.shape(state.read(ref.name)), value)
    state.write(ref.name, value)
    return ref


@kernel("AssignAdd")
def assign_add(state: Any, ref: Handle, value: Any) -> Handle:
    _add(state, ref, value)
    return ref


@kernel("AssignSub")
def assign_sub(state: Any, ref: Handle, value: Any) -> Handle:
    _subtract(state, ref, value)
    return ref


@kernel("IsVariableInitialized")
def is_variable_initialized(state: Any, ref: Handle) -> bool:
    return bool(state.is_initialized(ref.name))


@kernel("AssignAddVariableOp")
def assign_add_variable_op(state: Any, resource: Handle, value: Any) -> tuple[()]:
    _add(state, resource, value)
    return ()


@kernel("AssignSubVariableOp")
def assign_sub_variable_op(state: Any, resource: Handle, value: Any) -> tuple[()]:
    _subtract(state, resource, value)
    return ()


def _add(state: Any, variable: Handle, value: Any) -> None:
    old = state.read(variable.name)
    check_shape(variable, np.shape(old), value)
    state.write(variable.name, old + value)


def _subtract(state: Any, variable: Handle, value: Any) -> None:
    old = state.read(variable.name)
    check_shape(variable, np.shape(old), value)
    state.write(variable.name, old - value)


@kernel("CountUpTo", is_host=True)
def count_up_to(state: Any, ref: Handle, *, limit: int) -> Any:
    old = state.read(ref.name)
    if old >= limit:
        raise errors.OutOfRangeError(f"Reached limit of {limit}")
    state.write(ref.name, (old + 1).astype(old.dtype))
    return old


@kernel("ResourceCountUpTo", is_host=True)
def resource_count_up_to(state: Any, resource: Handle, *, limit: int) -> Any:
    return count_up_to(state, resource, limit=limit)
