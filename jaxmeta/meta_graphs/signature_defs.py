"""Signatures and the trees of states: pairs of what a graph holds and the messages in a file.

The trees are StructuredValues in ``object_graph_def``; the rest stands in attrs of the call's node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Final

from jaxmeta import errors, shardings, trees, values
from jaxmeta._proto import graph_pb2, meta_graph_pb2
from jaxmeta.graphs import graph, renaming
from jaxmeta.graphs.graph import Signature
from jaxmeta.tracing import signature_nodes

TREE_PREFIX: Final = "jaxmeta/variables/"
_METHOD_PREFIX: Final = "jaxmeta/"
_FACTS: Final = (
    "function_name",
    "donated",
    "updates",
    "train_op",
    "result_key_impls",
    "dim_constraints",
)


# --- writing -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Entries:
    """The signatures and states that are written, under the names that they are written with."""

    signatures: Mapping[str, Signature]
    state_trees: Mapping[str, trees.Tree]


def entries_in_scope(
    target: graph.GraphBuilder, export_scope: str | None, exported: Mapping[str, str]
) -> Entries:
    """Returns the signatures and states all whose nodes are exported.

    Args:
        target: the graph.
        export_scope: the scope to take off names, or None.
        exported: the new name of each exported node, by its name in the graph.
    """
    if not export_scope:
        return Entries(target.signatures, target.state_trees)

    def rename(name: str) -> str:
        return renaming.strip_name_scope(name, export_scope)

    def is_whole(tree: trees.Tree) -> bool:
        return all(leaf.name.split(":")[0] in exported for leaf in trees.leaves(tree))

    signatures = {}
    for name, signature in target.signatures.items():
        if is_whole(signature.arguments) and is_whole(signature.results):
            signatures[rename(name)] = signature.renamed(rename(name), rename)
    scope = export_scope.removesuffix("/")
    states = {
        "" if name == scope else rename(name): trees.rename_leaves(tree, rename)
        for name, tree in target.state_trees.items()
        if is_whole(tree)
    }
    return Entries(signatures, states)


def write_entries(meta_graph: meta_graph_pb2.MetaGraphDef, entries: Entries) -> None:
    """Writes signatures and states."""
    recorded = meta_graph.object_graph_def.concrete_functions
    for scope, tree in entries.state_trees.items():
        trees.check_depth(tree, "the state")
        recorded[TREE_PREFIX + scope].output_signature.CopyFrom(trees.tree_to_proto(tree))
    for name, signature in entries.signatures.items():
        trees.check_depth(signature.arguments, f"what signature {name!r} takes")
        trees.check_depth(signature.results, f"what signature {name!r} returns")
        concrete = recorded[name]
        concrete.canonicalized_input_signature.CopyFrom(trees.tree_to_proto(signature.arguments))
        concrete.output_signature.CopyFrom(trees.tree_to_proto(signature.results))
        _write_signature_def(meta_graph.signature_def[name], signature)


def write_attrs(node: graph_pb2.NodeDef, entries: Entries, name: str) -> None:
    """Gives the copied node of a call what its renamed signature says; or takes that off it."""
    for attr in (signature_nodes.SIGNATURE_ATTR, *(f"_jax_{fact}" for fact in _FACTS)):
        node.attr.pop(attr, None)
    signature = entries.signatures.get(name)
    if signature is not None:
        for attr, value in signature_nodes.signature_attrs(signature).items():
            values.write_attr(node.attr[attr], value)


def _write_signature_def(proto: meta_graph_pb2.SignatureDef, signature: Signature) -> None:
    proto.method_name = f"{_METHOD_PREFIX}{signature.function_name}"
    for leaf in trees.leaves(signature.arguments):
        if ":" in leaf.name:
            _write_tensor_info(proto.inputs[leaf.name.split(":")[0]], leaf)
    for index, leaf in enumerate(trees.leaves(signature.results)):
        _write_tensor_info(proto.outputs[f"output_{index}"], leaf)


def _write_tensor_info(proto: meta_graph_pb2.TensorInfo, leaf: trees.Leaf) -> None:
    proto.name = leaf.name
    proto.dtype = leaf.number  # type: ignore[assignment]
    proto.tensor_shape.SetInParent()
    values.write_shape(proto.tensor_shape, leaf.shape)


# --- reading -----------------------------------------------------------------------------------


class EntryReader:
    """Reads signatures and states into a graph that has their nodes already.

    Args:
        source: what to call the MetaGraphDef in messages.
        target: the graph.
        rename: the new names of the nodes.
        replaced: the tensors that the import replaced; a signature that takes one is none any more.
    """

    def __init__(
        self,
        source: str,
        target: graph.GraphBuilder,
        rename: renaming.Renaming,
        replaced: frozenset[str] = frozenset(),
    ) -> None:
        self._source = source
        self._graph = target
        self._rename = rename
        self._replaced = replaced

    def read(
        self,
        meta_graph: meta_graph_pb2.MetaGraphDef,
        added: Mapping[str, graph_pb2.NodeDef],
        *,
        is_complete: bool,
    ) -> None:
        """Adds what the MetaGraphDef records.

        Args:
            meta_graph: the MetaGraphDef.
            added: the nodes that were added, by their names in it.
            is_complete: whether a record without a node is an error.

        Raises:
            FormatError: what is recorded refers to what is not there; all of it is listed.
        """
        calls = {
            node.attr[signature_nodes.SIGNATURE_ATTR].s.decode(errors="replace"): node
            for node in added.values()
            if signature_nodes.SIGNATURE_ATTR in node.attr
        }
        for name, concrete in sorted(meta_graph.object_graph_def.concrete_functions.items()):
            if name.startswith(TREE_PREFIX):
                self._read_state(name.removeprefix(TREE_PREFIX), concrete)
            elif name in calls:
                self._read_signature(name, calls[name], concrete)
            elif is_complete:
                raise errors.FormatError(
                    f"{self._source}: no node is marked as the signature {name!r}"
                )

    def _read_state(self, name: str, concrete: meta_graph_pb2.SavedConcreteFunction) -> None:
        tree = trees.tree_from_proto(concrete.output_signature)
        tree = trees.rename_leaves(tree, self._rename)
        known = self._graph.variable_names
        unknown = [leaf.name for leaf in trees.leaves(tree) if leaf.name not in known]
        if unknown:
            headline = f"{self._source}: the recorded state names variables that are not there:"
            raise errors.FormatError(errors.list_offenders(headline, unknown))
        scope = self._rename.scope
        scoped = "/".join(filter(None, [scope, name]))
        self._graph.state_trees[_unused_name(scoped, self._graph.state_trees)] = tree

    def _read_signature(
        self,
        name: str,
        node: graph_pb2.NodeDef,
        concrete: meta_graph_pb2.SavedConcreteFunction,
    ) -> None:
        signature = _signature_from_proto(name, node, concrete)
        if any(leaf.name in self._replaced for leaf in trees.leaves(signature.arguments)):
            write_attrs(node, Entries({}, {}), name)
            return
        if not self._rename.is_identity:
            scoped = "/".join(filter(None, [self._rename.scope, name]))
            new_name = _unused_name(scoped, self._graph.signatures)
            signature = signature.renamed(new_name, self._rename)
            write_attrs(node, Entries({new_name: signature}, {}), new_name)
        elif name in self._graph.signatures:
            raise errors.GraphError(f"the graph has a signature named {name!r} already")
        _check_signature(signature, self._graph)
        self._graph.signatures[signature.name] = signature
        self._graph.record_result_shapes(signature.results)


def _unused_name(name: str, taken: Mapping[str, Any]) -> str:
    count, candidate = 0, name
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    return candidate


def _signature_from_proto(
    name: str, node: graph_pb2.NodeDef, concrete: meta_graph_pb2.SavedConcreteFunction
) -> Signature:
    facts = {
        field: values.attr_from_proto(node.attr[f"_jax_{field}"])
        for field in _FACTS
        if f"_jax_{field}" in node.attr
    }
    try:
        updates = facts.get("updates", ())
        in_shardings, out_shardings = shardings.signature_from_attrs(node.attr)
        return Signature(
            name=name,
            function_name=facts["function_name"].decode(),
            arguments=trees.tree_from_proto(concrete.canonicalized_input_signature),
            results=trees.tree_from_proto(concrete.output_signature),
            donated=tuple(bool(flag) for flag in facts.get("donated", ())),
            updates=tuple(zip(updates[::2], updates[1::2], strict=True)),
            train_op=facts.get("train_op", b"").decode(),
            result_key_impls=tuple(impl.decode() for impl in facts.get("result_key_impls", ())),
            constraints=tuple(text.decode() for text in facts.get("dim_constraints", ())),
            in_shardings=in_shardings,
            out_shardings=out_shardings,
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, errors.JaxmetaError):
            raise
        raise errors.FormatError(
            f"the node {node.name!r} has attrs of a signature that do not fit: {error!r}"
        ) from error


def _check_signature(signature: Signature, target: graph.GraphBuilder) -> None:
    bad = [name for name in _names_in(signature) if not _is_known(name, target)]
    count = len(list(trees.leaves(signature.arguments)))
    if len(signature.donated) != count:
        bad.append(f"{len(signature.donated)} donation flags for {count} arrays")
    num_results = len(list(trees.leaves(signature.results)))
    for side, wanted in ((signature.in_shardings, count), (signature.out_shardings, num_results)):
        if side and len(side) != wanted:
            bad.append(f"{len(side)} shardings for {wanted} arrays")
    if signature.train_op and signature.train_op not in target.nodes:
        bad.append(signature.train_op)
    for result, argument in signature.updates:
        try:
            signature_nodes.result_subtree(signature.results, result)
            signature_nodes.argument_tree(signature.arguments, argument)
        except errors.GraphError as error:
            bad.append(str(error))
    if bad:
        headline = f"signature {signature.name!r} refers to what is not in the graph:"
        raise errors.FormatError(errors.list_offenders(headline, bad))


def _names_in(signature: Signature) -> Iterator[str]:
    for leaf in (*trees.leaves(signature.arguments), *trees.leaves(signature.results)):
        yield leaf.name


def _is_known(name: str, target: graph.GraphBuilder) -> bool:
    if ":" in name:
        return name.split(":")[0] in target.nodes
    return name in target.variable_names
