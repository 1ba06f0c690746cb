"""The contexts of TensorFlow 1's conditionals and loops: which nodes belong to which, as records.

jaxmeta runs such graphs by their nodes alone; the records are kept for TensorFlow, which needs them
to differentiate the graph once more.
"""

from __future__ import annotations

import dataclasses
from typing import Self, TypeVar

from jaxmeta._proto import meta_graph_pb2
from jaxmeta.graphs import renaming
from jaxmeta.meta_graphs import collection_registry
from jaxmeta.meta_graphs.collection_registry import GraphKeys

_Def = TypeVar("_Def", meta_graph_pb2.CondContextDef, meta_graph_pb2.WhileContextDef)


@dataclasses.dataclass(frozen=True)
class CondContext:
    """One branch of a conditional of Switch and Merge nodes.

    Attributes:
        context_def: the record, with the names that hold in the graph.

    Example:
        >>> proto = meta_graph_pb2.CondContextDef(context_name="cond/cond_text", pred_name="p:0")
        >>> context = CondContext.from_proto(proto, import_scope="a")
        >>> context.name, context.context_def.pred_name, context.to_proto("a") == proto
        ('a/cond/cond_text', 'a/p:0', True)
    """

    context_def: meta_graph_pb2.CondContextDef

    @property
    def name(self) -> str:
        """The name of the context."""
        return self.context_def.context_name

    def to_proto(self, export_scope: str | None = None) -> meta_graph_pb2.CondContextDef | None:
        """Returns the record without a scope; None where the context is not in it."""
        return _strip(self.context_def, export_scope)

    @classmethod
    def from_proto(
        cls, context_def: meta_graph_pb2.CondContextDef, import_scope: str | None = None
    ) -> Self:
        """Returns the context with its names inside a scope."""
        return cls(_prepend(context_def, import_scope))


@dataclasses.dataclass(frozen=True)
class WhileContext:
    """A loop of Enter, Merge, Switch, NextIteration and Exit nodes.

    Attributes:
        context_def: the record, with the names that hold in the graph.

    Example:
        >>> proto = meta_graph_pb2.WhileContextDef(context_name="while", loop_exit_names=["e:0"])
        >>> WhileContext.from_proto(proto, import_scope="a").context_def.loop_exit_names
        ['a/e:0']
    """

    context_def: meta_graph_pb2.WhileContextDef

    @property
    def name(self) -> str:
        """The name of the context."""
        return self.context_def.context_name

    def to_proto(self, export_scope: str | None = None) -> meta_graph_pb2.WhileContextDef | None:
        """Returns the record without a scope; None where the context is not in it."""
        return _strip(self.context_def, export_scope)

    @classmethod
    def from_proto(
        cls, context_def: meta_graph_pb2.WhileContextDef, import_scope: str | None = None
    ) -> Self:
        """Returns the context with its names inside a scope."""
        return cls(_prepend(context_def, import_scope))


def _strip(context_def: _Def, export_scope: str | None) -> _Def | None:
    if export_scope and not context_def.context_name.startswith(export_scope):
        return None
    stripped = type(context_def)()
    stripped.CopyFrom(context_def)
    renaming.rename_proto(stripped, lambda name: renaming.strip_name_scope(name, export_scope))
    return stripped


def _prepend(context_def: _Def, import_scope: str | None) -> _Def:
    scoped = type(context_def)()
    scoped.CopyFrom(context_def)
    renaming.rename_proto(scoped, lambda name: renaming.prepend_name_scope(name, import_scope))
    return scoped


collection_registry.register_proto_function(
    GraphKeys.COND_CONTEXT,
    meta_graph_pb2.CondContextDef,
    CondContext.to_proto,
    CondContext.from_proto,
)
collection_registry.register_proto_function(
    GraphKeys.WHILE_CONTEXT,
    meta_graph_pb2.WhileContextDef,
    WhileContext.to_proto,
    WhileContext.from_proto,
)
