"""Scopes put on names and taken off, in nodes and in the protos of collections.

The rules are TensorFlow's ``strip_name_scope`` and ``prepend_name_scope``, but for names that were
taken: an import gives such a node another name, and here that holds wherever the node is named.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from google.protobuf import descriptor, message

from jaxmeta._proto import graph_pb2

Rename = Callable[[str], str]
"""Gives the new name for ``node``, ``node:1``, ``^node`` or ``loc:@node``."""

FRAME_OPS: Final = frozenset({"Enter", "RefEnter"})

_LOCATION: Final = "loc:@"
_REFERENCE: Final = re.compile(r"(\^|loc:@)?([^:]*)(:.*)?", re.DOTALL)
# The fields of VariableDef, SaverDef, QueueRunnerDef and the contexts of control flow that hold
# names of nodes, tensors or scopes.
_NAME_FIELDS: Final = frozenset(
    {
        "variable_name",
        "initializer_name",
        "snapshot_name",
        "initial_value_name",
        "full_name",
        "filename_tensor_name",
        "save_tensor_name",
        "restore_op_name",
        "queue_name",
        "enqueue_op_name",
        "close_op_name",
        "cancel_op_name",
        "context_name",
        "pred_name",
        "pivot_name",
        "pivot_for_pred_name",
        "pivot_for_body_name",
        "maximum_iterations_name",
        "loop_exit_names",
        "loop_enter_names",
        "values",
        "external_values",
    }
)


def strip_name_scope(name: str, export_scope: str | None) -> str:
    """Returns a name without a scope it begins with; any other name as it is.

    >>> strip_name_scope("^a/b/c:0", "a/b"), strip_name_scope("loc:@a/b", "a/")
    ('^c:0', 'loc:@b')
    """
    if not export_scope:
        return name
    scope = re.escape(export_scope.removesuffix("/"))
    return re.sub(rf"([\^]|loc:@|^){scope}[\/]+(.*)", r"\1\2", name, count=1)


def prepend_name_scope(name: str, import_scope: str | None) -> str:
    """Returns a name inside a scope.

    >>> prepend_name_scope("^c:0", "a/b"), prepend_name_scope("loc:@b", "a/")
    ('^a/b/c:0', 'loc:@a/b')
    """
    return Renaming(import_scope.removesuffix("/"), {})(name) if import_scope else name


@dataclasses.dataclass(frozen=True, slots=True)
class Renaming:
    """The new names of nodes that are imported.

    Attributes:
        scope: what all names are put into, without a trailing slash; empty for none.
        unique: the whole new name of each node whose name was taken, by its old one.

    Example:
        >>> rename = Renaming("a", {"w": "a/w_1"})
        >>> rename("^w"), rename("x:1"), rename("loc:@w")
        ('^a/w_1', 'a/x:1', 'loc:@a/w_1')
    """

    scope: str
    unique: Mapping[str, str]

    @property
    def is_identity(self) -> bool:
        """Whether all names stay."""
        return not self.scope and not self.unique

    def node(self, name: str) -> str:
        """Returns the new name of a node, or of a scope."""
        found = self.unique.get(name)
        if found is not None:
            return found
        return f"{self.scope}/{name}" if self.scope else name

    def __call__(self, reference: str) -> str:
        """Returns the new form of ``node``, ``node:1``, ``^node`` or ``loc:@node``."""
        if self.is_identity:
            return reference
        match = _REFERENCE.fullmatch(reference)
        assert match is not None
        mark, name, index = match.groups("")
        return f"{mark}{self.node(name)}{index}"


def rename_colocations(node: graph_pb2.NodeDef, rename: Rename) -> None:
    """Renames the nodes that a node is to be placed with; they stand in its attr ``_class``."""
    if "_class" in node.attr:
        items = node.attr["_class"].list.s
        for index, item in enumerate(items):
            text = item.decode(errors="surrogateescape")
            if text.startswith(_LOCATION):
                items[index] = rename(text).encode(errors="surrogateescape")


def rename_shared_name(node: graph_pb2.NodeDef, old_name: str) -> None:
    """Keeps a variable's ``shared_name`` its own name, where that was ``old_name``.

    Two variables that share a ``shared_name`` are one variable to TensorFlow.
    """
    if node.op == "VarHandleOp" and node.attr["shared_name"].s == old_name.encode():
        node.attr["shared_name"].s = node.name.encode()


def rename_proto(proto: message.Message, rename: Rename) -> None:
    """Renames all nodes, tensors and scopes that the proto of a collection's item names."""
    for field, value in proto.ListFields():
        if field.name in _NAME_FIELDS:
            _rename_field(proto, field, value, rename)
        elif isinstance(value, message.Message):
            rename_proto(value, rename)
        elif field.type == descriptor.FieldDescriptor.TYPE_MESSAGE:
            for item in value:
                rename_proto(item, rename)


def _rename_field(proto: message.Message, field: Any, value: Any, rename: Rename) -> None:
    if isinstance(value, str):
        setattr(proto, field.name, rename(value))
    elif field.name == "external_values":
        renamed = {rename(key): rename(item) for key, item in value.items()}
        value.clear()
        value.update(renamed)
    else:
        value[:] = [rename(item) for item in value]
