"""Graphs into MetaGraphDefs: the whole, or a scope of one with the inputs from outside unbound."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from jaxmeta import errors
from jaxmeta._proto import graph_pb2, meta_graph_pb2
from jaxmeta.graphs import building, function_library, renaming
from jaxmeta.graphs.graph import Variable
from jaxmeta.meta_graphs import collection_defs, graph_transforms, meta_graph_file, signature_defs
from jaxmeta.meta_graphs.collection_registry import GraphKeys
from jaxmeta.meta_graphs.meta_graph_import import UNBOUND_INPUTS
from jaxmeta.pausing import paused_gc
from jaxmeta.tracing import signature_nodes

# TensorFlow takes an empty version as new; one below 1.9 changes how it reads variables.
_TENSORFLOW_VERSION: Final = "2.21.0"
_UNBOUND_PREFIX: Final = "$unbound_inputs_"


def export_meta_graph(
    filename: str | os.PathLike[str] | None = None,
    meta_info_def: meta_graph_pb2.MetaGraphDef.MetaInfoDef | None = None,
    graph_def: graph_pb2.GraphDef | None = None,
    saver_def: meta_graph_pb2.SaverDef | None = None,
    collection_list: Sequence[str] | None = None,
    as_text: bool = False,
    graph: building.Graph | None = None,
    export_scope: str | None = None,
    clear_devices: bool = False,
    clear_extraneous_savers: bool = False,
    strip_default_attrs: bool = False,
    save_debug_info: bool = False,
) -> meta_graph_pb2.MetaGraphDef:
    """Returns a graph as a MetaGraphDef, and writes it to a file where one is named.

    The same graph gives the same bytes. The file appears whole or not at all.

    Args:
        filename: where to write, or None.
        meta_info_def: facts to write besides ours: tags, any_info, a stripped_op_list.
        graph_def: the nodes to write; those of the graph where None. Signatures and states are
            written for the graph's own nodes only.
        saver_def: how TensorFlow saves and restores the variables.
        collection_list: names of the collections to write; all where None.
        as_text: whether the file is in protobuf's text format.
        graph: the graph; the default graph where None.
        export_scope: writes only what is in this scope, without it in the names. Inputs from
            outside are named ``$unbound_inputs_...`` and listed in the collection
            ``unbound_inputs``; a signature with arrays outside of it is left out.
        clear_devices: whether nodes lose their device.
        clear_extraneous_savers: whether to leave out all savers but that of ``saver_def``.
        strip_default_attrs: whether to take attrs off that have their default. Nodes made here
            have none; those that came with a file of TensorFlow's may. Where it is false, nodes are
            written as they are, and no defaults are added: readers do that.
        save_debug_info: whether to write a GraphDebugInfo beside the file, under its name with
            ``.debug``. It has a trace for each node, empty where no lines of source are known.

    Raises:
        AttrError: a collection holds what no CollectionDef can; a ValueError.
        ArgumentTypeError: an argument is of the wrong kind; a TypeError.
        FormatError: the file would be larger than a protobuf may be; a ValueError.
    """
    meta_graph, _ = export_scoped_meta_graph(
        filename,
        graph_def,
        graph,
        export_scope,
        as_text,
        clear_devices=clear_devices,
        saver_def=saver_def,
        clear_extraneous_savers=clear_extraneous_savers,
        strip_default_attrs=strip_default_attrs,
        save_debug_info=save_debug_info,
        meta_info_def=meta_info_def,
        collection_list=collection_list,
    )
    return meta_graph


def export_scoped_meta_graph(
    filename: str | os.PathLike[str] | None = None,
    graph_def: graph_pb2.GraphDef | None = None,
    graph: building.Graph | None = None,
    export_scope: str | None = None,
    as_text: bool = False,
    unbound_inputs_col_name: str | None = UNBOUND_INPUTS,
    clear_devices: bool = False,
    saver_def: meta_graph_pb2.SaverDef | None = None,
    clear_extraneous_savers: bool = False,
    strip_default_attrs: bool = False,
    save_debug_info: bool = False,
    *,
    meta_info_def: meta_graph_pb2.MetaGraphDef.MetaInfoDef | None = None,
    collection_list: Sequence[str] | None = None,
) -> tuple[meta_graph_pb2.MetaGraphDef, dict[str, Variable]]:
    """Returns a scope of a graph as a MetaGraphDef, and its variables by their names in that.

    Args, Raises:
        See `export_meta_graph`. ``unbound_inputs_col_name`` is the collection that lists the inputs
        from outside the scope, in the graph as in the file.
    """
    target = graph if graph is not None else building.get_default_graph()
    _check_types(target, meta_info_def, graph_def, saver_def)
    with paused_gc():
        nodes = _Nodes(target, graph_def, export_scope, saver_def, clear_extraneous_savers)
        if export_scope or clear_devices or clear_extraneous_savers:
            nodes.edit(clear_devices)
            if unbound_inputs_col_name:
                target.collections[unbound_inputs_col_name] = list(nodes.unbound)
        meta_graph = nodes.to_proto(meta_info_def)
        if strip_default_attrs:
            graph_transforms.strip_graph_default_valued_attrs(meta_graph.graph_def)
        if saver_def is not None:
            meta_graph.saver_def.CopyFrom(saver_def)
        _write_collections(meta_graph, nodes, collection_list, clear_extraneous_savers)
        if filename is not None:
            meta_graph_file.write_proto(meta_graph, filename, as_text)
            if save_debug_info:
                _write_debug_info(meta_graph, filename, as_text)
    return meta_graph, nodes.variables()


def _check_types(
    target: building.Graph,
    meta_info_def: meta_graph_pb2.MetaGraphDef.MetaInfoDef | None,
    graph_def: graph_pb2.GraphDef | None,
    saver_def: meta_graph_pb2.SaverDef | None,
) -> None:
    for name, value, wanted in (
        ("graph", target, building.Graph),
        ("meta_info_def", meta_info_def, meta_graph_pb2.MetaGraphDef.MetaInfoDef),
        ("graph_def", graph_def, graph_pb2.GraphDef),
        ("saver_def", saver_def, meta_graph_pb2.SaverDef),
    ):
        if value is not None and not isinstance(value, wanted):
            raise errors.ArgumentTypeError(
                f"{name} must be of type {wanted.__name__}. Received type: {type(value).__name__}."
            )


class _Nodes:
    """The nodes that are exported, and their names before and after.

    Attributes:
        target: the graph.
        scope: the scope that names lose, or None.
        excluded: names of nodes that are left out.
        unbound: the new names of inputs from outside the scope.
    """

    def __init__(
        self,
        target: building.Graph,
        graph_def: graph_pb2.GraphDef | None,
        export_scope: str | None,
        saver_def: meta_graph_pb2.SaverDef | None,
        clear_extraneous_savers: bool,
    ) -> None:
        self.target = target
        self.scope = export_scope
        self.unbound: list[str] = []
        self._graph_def = graph_def
        self._nodes: Sequence[graph_pb2.NodeDef] = (
            list(target.nodes.values()) if graph_def is None else graph_def.node
        )
        self.excluded: frozenset[str] = frozenset()
        if clear_extraneous_savers:
            self.excluded = find_extraneous_saver_nodes(self._nodes, saver_def)
        self._entries = signature_defs.Entries(target.signatures, target.state_trees)

    def edit(self, clear_devices: bool) -> None:
        """Copies the nodes that are exported, without scope and devices."""
        kept = [
            node
            for node in self._nodes
            if collection_defs.should_export(node.name, self.scope, self.excluded)
        ]
        names = {node.name: renaming.strip_name_scope(node.name, self.scope) for node in kept}
        self._entries = signature_defs.entries_in_scope(self.target, self.scope, names)
        self._nodes = [self._edit(node, clear_devices) for node in kept]

    def _edit(self, node: graph_pb2.NodeDef, clear_devices: bool) -> graph_pb2.NodeDef:
        edited = graph_pb2.NodeDef()
        edited.CopyFrom(node)
        if clear_devices:
            edited.device = ""
        if not self.scope:
            return edited
        edited.name = self._strip(node.name)
        edited.input[:] = [self._input(ref) for ref in node.input]
        renaming.rename_shared_name(edited, node.name)
        self._strip_colocations(edited)
        if node.op in renaming.FRAME_OPS:
            frame = edited.attr["frame_name"].s.decode(errors="surrogateescape")
            edited.attr["frame_name"].s = self._strip(frame).encode(errors="surrogateescape")
        if signature_nodes.SIGNATURE_ATTR in edited.attr:
            name = edited.attr[signature_nodes.SIGNATURE_ATTR].s.decode()
            signature_defs.write_attrs(edited, self._entries, self._strip(name))
        return edited

    def _strip(self, name: str) -> str:
        return renaming.strip_name_scope(name, self.scope)

    def _input(self, ref: str) -> str:
        if ref.lstrip("^").startswith(self.scope or ""):
            return self._strip(ref)
        is_control = ref.startswith("^")
        unbound = f"{'^' * is_control}{_UNBOUND_PREFIX}{ref[is_control:]}"
        self.unbound.append(unbound)
        return unbound

    def _strip_colocations(self, node: graph_pb2.NodeDef) -> None:
        """Keeps only places inside the scope, as TensorFlow does."""
        if "_class" not in node.attr:
            return
        places = [item.decode() for item in node.attr["_class"].list.s]
        inside = [
            self._strip(place).encode()
            for place in places
            if place.partition("@")[2].startswith(self.scope or "")
        ]
        node.attr["_class"].list.SetInParent()
        node.attr["_class"].list.s[:] = inside

    def to_proto(
        self, meta_info_def: meta_graph_pb2.MetaGraphDef.MetaInfoDef | None
    ) -> meta_graph_pb2.MetaGraphDef:
        """Returns the MetaGraphDef, less what is in collections."""
        meta_graph = meta_graph_pb2.MetaGraphDef()
        if meta_info_def is not None:
            meta_graph.meta_info_def.CopyFrom(meta_info_def)
        graph_def = meta_graph.graph_def
        graph_def.node.extend(self._nodes)
        if self._graph_def is None:
            graph_def.library.function.extend(self.target.functions.values())
            library = graph_def.library
            library.gradient.extend(self.target.gradients)
            library.registered_gradients.extend(self.target.registered_gradients)
            graph_def.versions.CopyFrom(self.target.versions)
        else:
            graph_def.library.CopyFrom(self._graph_def.library)
            graph_def.versions.CopyFrom(self._graph_def.versions)
        _write_info(meta_graph)
        if self._graph_def is None:
            signature_defs.write_entries(meta_graph, self._entries)
        # Always there and always last, so that a file cut between two fields does not pass for
        # whole.
        meta_graph.object_graph_def.SetInParent()
        return meta_graph

    def variables(self) -> dict[str, Variable]:
        """Returns the exported variables by their new names."""
        return {
            self._strip(variable.name): variable
            for variable in self.target.get_collection(GraphKeys.GLOBAL_VARIABLES)
            if isinstance(variable, Variable)
            and collection_defs.should_export(variable, self.scope, self.excluded)
        }


def _write_info(meta_graph: meta_graph_pb2.MetaGraphDef) -> None:
    info = meta_graph.meta_info_def
    info.meta_graph_version = f"{meta_graph_file.WRITER} {meta_graph_file.FORMAT_VERSION}"
    info.tensorflow_version = _TENSORFLOW_VERSION
    info.stripped_default_attrs = True
    if not info.stripped_op_list.op:
        graph_def = meta_graph.graph_def
        functions = {function.signature.name: function for function in graph_def.library.function}
        info.stripped_op_list.op.extend(function_library.used_op_defs(graph_def.node, functions))


def _write_collections(
    meta_graph: meta_graph_pb2.MetaGraphDef,
    nodes: _Nodes,
    collection_list: Sequence[str] | None,
    clear_extraneous_savers: bool,
) -> None:
    target = nodes.target
    wanted = collection_list if collection_list is not None else target.get_all_collection_keys()
    for name in sorted(set(wanted)):
        items = target.get_collection(name)
        if clear_extraneous_savers and name == GraphKeys.SAVERS:
            items = [meta_graph.saver_def] if meta_graph.HasField("saver_def") else []
        items = [
            item
            for item in items
            if collection_defs.should_export(item, nodes.scope, nodes.excluded)
        ]
        if items:
            proto = meta_graph.collection_def[name]
            collection_defs.collection_to_proto(proto, name, items, nodes.scope)
            if not proto.WhichOneof("kind"):
                del meta_graph.collection_def[name]


def find_extraneous_saver_nodes(
    nodes: Sequence[graph_pb2.NodeDef], saver_def: meta_graph_pb2.SaverDef | None
) -> frozenset[str]:
    """Returns the names of nodes in scopes of savers other than the given one.

    As in TensorFlow, a saver is all that is in a scope with an op that saves or restores.
    """
    retained = set()
    if saver_def is not None:
        for name in (saver_def.save_tensor_name, saver_def.restore_op_name):
            retained.add(f"{_scope_of(name.split(':')[0])}/")
    ours = {node.name for node in nodes if node.op in graph_transforms.SAVE_AND_RESTORE_OPS}
    scopes = tuple(f"{scope}/" for scope in {_scope_of(name) for name in ours} - ours)
    extraneous = tuple(scope for scope in scopes if scope not in retained)
    return frozenset(node.name for node in nodes if node.name.startswith(extraneous))


def _scope_of(name: str) -> str:
    return name.rpartition("/")[0]


def _write_debug_info(
    meta_graph: meta_graph_pb2.MetaGraphDef, filename: str | os.PathLike[str], as_text: bool
) -> None:
    """Writes which lines of source made the nodes, as far as the graph knows: none of its own."""
    debug_info = graph_pb2.GraphDebugInfo()
    for node in meta_graph.graph_def.node:
        debug_info.traces[f"{node.name}@"].SetInParent()
    root, _ = os.path.splitext(os.fspath(filename))
    meta_graph_file.write_proto(debug_info, f"{root}.debug", as_text)
