"""Variables, placeholders and the nodes that only order others.

A resource handle is a small object that names its variable; the values live in the executor's
state, which kernels with a first parameter ``state`` read and write.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxmeta import errors
from jaxmeta.ops._definition import kernel


@dataclasses.dataclass(frozen=True, slots=True)
class Handle:
    """What a VarHandleOp gives: the name under which the state holds the value."""

    name: str


@kernel("VarHandleOp")
def var_handle(*, shared_name: bytes, node_name: str) -> Handle:
    return Handle(shared_name.decode() or node_name)


@kernel("ReadVariableOp")
def read_variable(state: Any, resource: Handle) -> Any:
    return state.read(resource.name)


@kernel("AssignVariableOp")
def assign_variable(state: Any, resource: Handle, value: Any) -> tuple[()]:
    state.write(resource.name, value)
    return ()


@kernel("AssignAddVariableOp")
def assign_add_variable(state: Any, resource: Handle, value: Any) -> tuple[()]:
    state.write(resource.name, state.read(resource.name) + value)
    return ()


@kernel("AssignSubVariableOp")
def assign_sub_variable(state: Any, resource: Handle, value: Any) -> tuple[()]:
    state.write(resource.name, state.read(resource.name) - value)
    return ()


@kernel("VarIsInitializedOp")
def var_is_initialized(state: Any, resource: Handle) -> bool:
    return resource.name in state.values


@kernel("NoOp")
def no_op() -> tuple[()]:
    return ()


@kernel("Placeholder", "PlaceholderV2", must_be_fed=True)
def placeholder(*, node_name: str) -> Any:
    raise errors.FeedError(f"the placeholder {node_name!r} must be fed a value")


@kernel("PlaceholderWithDefault")
def placeholder_with_default(input: Any) -> Any:
    return input
