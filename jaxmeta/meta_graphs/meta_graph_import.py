"""MetaGraphDefs into graphs: nodes, collections, signatures and the state's trees."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from jaxmeta import errors
from jaxmeta._proto import meta_graph_pb2
from jaxmeta.graphs import building, renaming
from jaxmeta.graphs.graph import Operation, Tensor, Variable
from jaxmeta.meta_graphs import (
    collection_defs,
    graph_def_checks,
    graph_def_import,
    input_maps,
    meta_graph_file,
    signature_defs,
)
from jaxmeta.meta_graphs.collection_registry import GraphKeys
from jaxmeta.meta_graphs.graph_def_import import Imported
from jaxmeta.meta_graphs.input_maps import InputMap
from jaxmeta.pausing import paused_gc

UNBOUND_INPUTS: Final = "unbound_inputs"

MetaGraphOrFile = meta_graph_pb2.MetaGraphDef | str | os.PathLike[str]
# Before this version of TensorFlow, a VariableDef did not say whether the variable is trainable.
_TRAINABLE_SINCE: Final = (1, 9)


@dataclasses.dataclass(frozen=True, slots=True)
class ImportedMetaGraph:
    """What an import added to a graph.

    Attributes:
        variables: the variables under their names in the file (``w:0``), which are those of a
            checkpoint too.
        return_elements: the operations and tensors that were asked for; None where none were.
        saver_def: how TensorFlow saves and restores these variables, by the names in the graph;
            None where the file has none.
    """

    variables: dict[str, Variable]
    return_elements: list[Operation | Tensor] | None
    saver_def: meta_graph_pb2.SaverDef | None


def _every_key(key: str) -> bool:
    del key
    return True


def import_graph(
    meta_graph_or_file: MetaGraphOrFile, target: building.Graph | None = None
) -> building.Graph:
    """Adds a MetaGraphDef to a graph, a new one by default, and returns the graph.

    A MetaGraphDef whose nodes are refused leaves the graph as it was.

    Raises:
        FormatError: the file is not readable, or from a newer jaxmeta or TensorFlow.
        UnsupportedOpError: some ops are unknown; all are listed.
        GraphError: node names are not unique, or an input is missing.
    """
    target = target if target is not None else building.Graph()
    add_meta_graph(meta_graph_or_file, target)
    return target


def import_scoped_meta_graph(
    meta_graph_or_file: MetaGraphOrFile,
    clear_devices: bool = False,
    graph: building.Graph | None = None,
    import_scope: str | None = None,
    input_map: Mapping[str, Any] | None = None,
    unbound_inputs_col_name: str | None = UNBOUND_INPUTS,
    restore_collections_predicate: Callable[[str], bool] = _every_key,
) -> dict[str, Variable]:
    """Adds a MetaGraphDef to a graph under a scope; returns its variables.

    Args, Raises:
        See `import_scoped_meta_graph_with_return_elements`.

    Returns:
        The variables by their names without the scope, ``w:0``.
    """
    variables, _ = import_scoped_meta_graph_with_return_elements(
        meta_graph_or_file,
        clear_devices,
        graph,
        import_scope,
        input_map,
        unbound_inputs_col_name,
        restore_collections_predicate,
    )
    return variables


def import_scoped_meta_graph_with_return_elements(
    meta_graph_or_file: MetaGraphOrFile,
    clear_devices: bool = False,
    graph: building.Graph | None = None,
    import_scope: str | None = None,
    input_map: Mapping[str, Any] | None = None,
    unbound_inputs_col_name: str | None = UNBOUND_INPUTS,
    restore_collections_predicate: Callable[[str], bool] = _every_key,
    return_elements: Iterable[str] | None = None,
) -> tuple[dict[str, Variable], list[Operation | Tensor] | None]:
    """Adds a MetaGraphDef to a graph under a scope.

    Where names are taken, nodes get others, and all that names them does so too: collections,
    signatures, states. (TensorFlow's collections would go on naming the nodes that were first.)

    Args:
        meta_graph_or_file: the MetaGraphDef, or the file that holds it.
        clear_devices: whether nodes lose their device.
        graph: the graph; the default graph where None.
        import_scope: the scope, made unique unless it ends in a slash; by default the current one.
        input_map: tensors instead of inputs, by the inputs' names. A signature that takes a
            replaced tensor as an argument is left out.
        unbound_inputs_col_name: the collection that lists the inputs which must be replaced.
        restore_collections_predicate: says of a collection's name whether to read it.
        return_elements: names of operations and tensors of the MetaGraphDef.

    Returns:
        The variables by their names without the scope, ``w:0``; and what ``return_elements`` names.

    Raises:
        UnreadableFileError: the file is missing or corrupt; an OSError.
        GraphError: inputs are unbound; a ValueError. Also as `import_graph_def`.
        MissingNameError: a collection names what is not there; a KeyError.
    """
    target = graph if graph is not None else building.get_default_graph()
    imported = add_meta_graph(
        meta_graph_or_file,
        target,
        clear_devices=clear_devices,
        import_scope=import_scope,
        input_map=input_map,
        unbound_inputs_col_name=unbound_inputs_col_name,
        restore_collections_predicate=restore_collections_predicate,
        return_elements=return_elements,
    )
    return imported.variables, imported.return_elements


def add_meta_graph(
    meta_graph_or_file: MetaGraphOrFile,
    target: building.Graph,
    *,
    clear_devices: bool = False,
    import_scope: str | None = None,
    input_map: Mapping[str, Any] | None = None,
    unbound_inputs_col_name: str | None = UNBOUND_INPUTS,
    restore_collections_predicate: Callable[[str], bool] = _every_key,
    return_elements: Iterable[str] | None = None,
) -> ImportedMetaGraph:
    """Adds a MetaGraphDef to a graph; see `import_scoped_meta_graph_with_return_elements`."""
    source = "the MetaGraphDef"
    if isinstance(meta_graph_or_file, meta_graph_pb2.MetaGraphDef):
        meta_graph = meta_graph_or_file
    else:
        source = _path(meta_graph_or_file)
        meta_graph = meta_graph_file.read_meta_graph_file(source)
    meta_graph_file.check_format_version(source, meta_graph)
    wanted = graph_def_import.check_return_elements(return_elements)
    given = input_maps.check_input_map(input_map)
    _check_unbound_inputs(source, meta_graph, given, unbound_inputs_col_name)
    if import_scope is not None and not isinstance(import_scope, str):
        raise errors.ArgumentTypeError(f"import_scope must be a string, not {import_scope!r}")
    scope_name = import_scope or target.unique_name("", mark=False)
    described = meta_graph.meta_info_def.stripped_op_list
    graph_def_checks.add_described_ops(meta_graph.graph_def, described)
    is_first = not target.variable_names and target.saver_def is None
    with paused_gc(), target.as_default(), target.name_scope(scope_name) as scope:
        mapping = input_maps.convert_input_map(given, target, can_add=bool(scope_name))
        imported = graph_def_import.add_graph_def(
            source,
            meta_graph.graph_def,
            target,
            scope=scope.removesuffix("/"),
            input_map=mapping,
            clear_devices=clear_devices,
            are_nodes_checked=not meta_graph_file.is_ours(meta_graph),
        )
        variables = _CollectionReader(
            target, imported.renaming, restore_collections_predicate, unbound_inputs_col_name
        ).read(meta_graph)
        _read_entries(source, meta_graph, target, imported, mapping)
        saver_def = _read_saver_def(meta_graph, imported.renaming)
        # One that covers what was here before as well is made when it is wanted.
        target.saver_def = saver_def if is_first else None
        elements = graph_def_import.gather_elements(wanted, imported, mapping, target)
    return ImportedMetaGraph(variables, elements, saver_def)


def _path(meta_graph_or_file: Any) -> str:
    try:
        return str(os.fspath(meta_graph_or_file))
    except TypeError:
        raise errors.ArgumentTypeError(
            "expected a MetaGraphDef of jaxmeta or the path of a file, not "
            f"{type(meta_graph_or_file).__name__}"
        ) from None


def _check_unbound_inputs(
    source: str,
    meta_graph: meta_graph_pb2.MetaGraphDef,
    input_map: Mapping[str, Any],
    collection: str | None,
) -> None:
    if not collection or collection not in meta_graph.collection_def:
        return
    names = [
        name.decode(errors="replace")
        for name in meta_graph.collection_def[collection].bytes_list.value
    ]
    if names and sorted(set(names)) != sorted(input_map):
        missing = [name for name in names if name not in input_map]
        raise errors.GraphError(
            f"{source}: Graph contains unbound inputs: {','.join(missing)}. Must provide these "
            "inputs through input_map."
        )


def _read_entries(
    source: str,
    meta_graph: meta_graph_pb2.MetaGraphDef,
    target: building.Graph,
    imported: Imported,
    mapping: InputMap,
) -> None:
    if not meta_graph.object_graph_def.concrete_functions:
        return
    reader = signature_defs.EntryReader(
        source, target, imported.renaming, frozenset(mapping.tensors)
    )
    is_ours = meta_graph_file.is_ours(meta_graph)
    reader.read(meta_graph, imported.nodes, is_complete=is_ours)


def _read_saver_def(
    meta_graph: meta_graph_pb2.MetaGraphDef, rename: renaming.Renaming
) -> meta_graph_pb2.SaverDef | None:
    if not meta_graph.HasField("saver_def"):
        return None
    if rename.is_identity:
        return meta_graph.saver_def
    saver_def = meta_graph_pb2.SaverDef()
    saver_def.CopyFrom(meta_graph.saver_def)
    renaming.rename_proto(saver_def, rename)
    return saver_def


class _CollectionReader:
    """Reads collections into a graph that has their nodes already."""

    def __init__(
        self,
        target: building.Graph,
        rename: renaming.Renaming,
        predicate: Callable[[str], bool],
        unbound_inputs_col_name: str | None,
    ) -> None:
        self._graph = target
        self._rename = rename
        self._predicate = predicate
        self._unbound = unbound_inputs_col_name

    def read(self, meta_graph: meta_graph_pb2.MetaGraphDef) -> dict[str, Variable]:
        """Adds the collections; returns the variables by their names in the file."""
        found = meta_graph.collection_def
        says_trainable = _says_trainable(meta_graph.meta_info_def.tensorflow_version)
        order = [name for name in collection_defs.VARIABLE_COLLECTIONS if name in found]
        made: dict[bytes, Variable] = {}
        for name in order:
            for content in found[name].bytes_list.value:
                if content not in made:
                    made[content] = self._variable(name, content, says_trainable)
        variables = self._register(found, made)
        for name in sorted(found, key=lambda name: (name not in order, name)):
            if name != self._unbound and self._predicate(name):
                self._read_collection(name, found[name], made)
        return variables

    def _variable(self, collection: str, content: bytes, says_trainable: bool) -> Variable:
        proto = collection_defs.parse_item(collection, content, meta_graph_pb2.VariableDef)
        if not says_trainable:
            proto.trainable = collection == GraphKeys.TRAINABLE_VARIABLES
        if not self._rename.is_identity:
            renaming.rename_proto(proto, self._rename)
        return collection_defs.variable_from_proto(proto, self._graph)

    def _register(
        self, found: Mapping[str, meta_graph_pb2.CollectionDef], made: Mapping[bytes, Variable]
    ) -> dict[str, Variable]:
        """Makes variables known in the order of the collection of all, then any others."""
        everything: Sequence[bytes] = ()
        if GraphKeys.GLOBAL_VARIABLES in found:
            everything = found[GraphKeys.GLOBAL_VARIABLES].bytes_list.value
        variables = {}
        for content in everything:
            self._graph.register_variable(made[content])
            proto = meta_graph_pb2.VariableDef.FromString(content)
            variables[proto.variable_name] = made[content]
        for variable in made.values():
            if variable.op_name not in self._graph.variable_names:
                self._graph.register_variable(variable)
        return variables

    def _read_collection(
        self, name: str, proto: meta_graph_pb2.CollectionDef, made: Mapping[bytes, Variable]
    ) -> None:
        is_variables = name in collection_defs.VARIABLE_COLLECTIONS
        if is_variables and proto.WhichOneof("kind") == "bytes_list":
            items: Iterable[Any] = (made[content] for content in proto.bytes_list.value)
        else:
            items = collection_defs.collection_from_proto(name, proto, self._graph, self._rename)
        for item in items:
            self._graph.add_to_collection(name, item)


def _says_trainable(tensorflow_version: str) -> bool:
    """Returns whether VariableDefs of that version say whether a variable is trainable."""
    match = re.match(r"(\d+)\.(\d+)", tensorflow_version)
    return match is None or (int(match[1]), int(match[2])) >= _TRAINABLE_SINCE
