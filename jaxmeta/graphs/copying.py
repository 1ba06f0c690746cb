"""Copies of graphs with other nodes, or other names for them, and all that refers to nodes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf import message

from jaxmeta import trees, values
from jaxmeta._proto import graph_pb2
from jaxmeta.graphs import function_library, renaming
from jaxmeta.graphs.graph import GraphBuilder, Signature
from jaxmeta.graphs.handles import Operation, Tensor
from jaxmeta.graphs.variable_handles import Variable
from jaxmeta.meta_graphs import collection_registry
from jaxmeta.tracing import signature_nodes

_G = TypeVar("_G", bound=GraphBuilder)
_Nodes = Mapping[str, graph_pb2.NodeDef]


def rebuild(
    target: _G,
    nodes: _Nodes,
    *,
    rename_nodes: renaming.Renaming | None = None,
    less: bool = False,
) -> _G:
    """Returns a graph of the same class with other nodes.

    What refers to nodes that are not there is left out; functions too, where ``less`` is set.
    """
    made = type(target)()
    mover = Mover(made, rename_nodes or renaming.Renaming("", {}), set(nodes))
    functions: Sequence[graph_pb2.FunctionDef] = list(target.functions.values())
    if less:
        functions = function_library.reached_functions(nodes.values(), functions)
    for function in functions:
        made.add_function(function)
    moved = [mover.node(node) for node in nodes.values()]
    made.add_node_defs({node.name: node for node in moved})
    known = set(made.functions)
    made.gradients.extend(g for g in target.gradients if g.function_name in known)
    made.registered_gradients.extend(
        g for g in target.registered_gradients if g.gradient_func in known
    )
    made.versions.CopyFrom(target.versions)
    mover.fill(target)
    saver_def = target.saver_def
    if saver_def is not None and saver_def.restore_op_name in nodes:
        made.saver_def = mover.proto(saver_def)
    return made


class Mover:
    """Takes what refers to nodes from one graph to another, where nodes have other names."""

    def __init__(
        self, target: GraphBuilder, rename_nodes: renaming.Renaming, kept: set[str]
    ) -> None:
        self._graph = target
        self._rename = rename_nodes
        self._kept = kept

    def node(self, node: graph_pb2.NodeDef) -> graph_pb2.NodeDef:
        """Returns a node under its new name; the same object where no name changes."""
        if self._rename.is_identity:
            return node
        made = copied(node)
        made.name = self._rename.node(node.name)
        made.input[:] = [self._rename(ref) for ref in node.input]
        renaming.rename_colocations(made, self._rename)
        renaming.rename_shared_name(made, node.name)
        return made

    def proto(self, proto: Any) -> Any:
        """Returns a message with the new names."""
        made = copied(proto)
        if not self._rename.is_identity:
            renaming.rename_proto(made, self._rename)
        return made

    def fill(self, source: GraphBuilder, scope: str = "") -> None:
        """Adds variables, collections, signatures, states and arrays of the source."""
        target = self._graph
        for variable in map(source.variable, source.variable_names):
            if variable.op_name in self._kept:
                target.register_variable(self._variable(variable))
        for key, items in source.collections.items():
            moved = [self._item(key, item) for item in items if self._is_kept(item)]
            target.collections.setdefault(key, []).extend(moved)
        for name, shape in source.recorded_shapes.items():
            if name.split(":")[0] in self._kept:
                target.record_shape(self._rename(name), shape)
        # Names of dimensions say whose sizes they are, by names that may change here.
        for constraint in source.dimension_constraints:
            target.add_dimension_constraint(constraint)
        for name, signature in source.signatures.items():
            if self._holds(signature):
                new_name = f"{scope}/{name}" if scope else name
                target.signatures[new_name] = signature.renamed(new_name, self._rename)
        self._mark_calls(source, scope)
        for name, tree in source.state_trees.items():
            rest = _without_leaves(tree, self._kept)
            if rest is not None:
                new_name = "/".join(filter(None, [scope, name]))
                target.state_trees[new_name] = trees.rename_leaves(rest, self._rename)
        for held, holding in (
            (source.constants, target.constants),
            (source.captured, target.captured),
            (source.traced_shardings, target.traced_shardings),
        ):
            holding.update({self._rename(n): v for n, v in held.items() if n in self._kept})

    def _mark_calls(self, source: GraphBuilder, scope: str) -> None:
        """Makes the nodes that call signatures say the new names, where names change."""
        if self._rename.is_identity:
            return
        for node in source.nodes.values():
            if signature_nodes.SIGNATURE_ATTR in node.attr and node.name in self._kept:
                name = node.attr[signature_nodes.SIGNATURE_ATTR].s.decode()
                signature = self._graph.signatures.get(f"{scope}/{name}" if scope else name)
                attrs = self._graph.nodes[self._rename.node(node.name)].attr
                facts = signature_nodes.signature_attrs(signature) if signature is not None else {}
                for attr_name, value in facts.items():
                    attrs[attr_name].Clear()
                    values.write_attr(attrs[attr_name], value)

    def _variable(self, variable: Variable) -> Variable:
        moved = copy.copy(variable)
        moved.graph = self._graph
        for field in ("op_name", "initializer_name", "snapshot_name", "initial_value_name"):
            setattr(moved, field, self._rename(getattr(variable, field)))
        return moved

    def _is_kept(self, item: Any) -> bool:
        if isinstance(item, Tensor):
            return item.node_name in self._kept
        if isinstance(item, Operation):
            return item.name in self._kept
        return not isinstance(item, Variable) or item.op_name in self._kept

    def _item(self, key: str, item: Any) -> Any:
        if isinstance(item, Variable):
            return self._graph.variable(self._rename(item.op_name))
        if isinstance(item, Tensor):
            return Tensor(self._graph, self._rename.node(item.node_name), item.index)
        if isinstance(item, Operation):
            return Operation(self._graph, self._rename.node(item.name))
        if isinstance(item, message.Message):
            return self.proto(item)
        from_proto = collection_registry.get_from_proto_function(key)
        if from_proto is None or not hasattr(item, "to_proto"):
            return item
        with getattr(self._graph, "as_default", contextlib.nullcontext)():
            return from_proto(self.proto(item.to_proto()))

    def _holds(self, signature: Signature) -> bool:
        leaves = (*trees.leaves(signature.arguments), *trees.leaves(signature.results))
        names = {leaf.name.split(":")[0] for leaf in leaves}
        return names <= self._kept and (not signature.train_op or signature.train_op in self._kept)


def _without_leaves(tree: trees.Tree, kept: set[str]) -> trees.Tree | None:
    """Returns what of a record is left with some of its variables; None where nothing is."""
    if isinstance(tree, trees.Leaf):
        return tree if tree.name in kept else None
    children = [_without_leaves(child, kept) for child in tree.children]
    if all(one is other for one, other in zip(children, tree.children, strict=True)):
        return tree
    if all(child is None for child in children):
        return None
    if tree.kind in ("dict", "ordered", "mapping"):
        pairs = [(k, c) for k, c in zip(tree.keys, children, strict=True) if c is not None]
        return trees.Branch(
            tree.kind, tree.class_name, tuple(k for k, _ in pairs), tuple(c for _, c in pairs)
        )
    # An object keeps its fields: what is left out of it is None.
    filled = tuple(c if c is not None else trees.NOTHING for c in children)
    return trees.Branch(tree.kind, tree.class_name, tree.keys, filled)


def without_saver(target: GraphBuilder, nodes: _Nodes) -> _Nodes:
    """Returns the nodes but for those that save and restore; they are made anew at need."""
    if target.saver_def is None:
        return nodes
    scope = target.saver_def.restore_op_name.rpartition("/")[0]
    return {name: node for name, node in nodes.items() if not name.startswith(f"{scope}/")}


_Message = TypeVar("_Message", bound=message.Message)


def copied(proto: _Message) -> _Message:
    """Returns a copy of a message."""
    made = type(proto)()
    made.CopyFrom(proto)
    return made
