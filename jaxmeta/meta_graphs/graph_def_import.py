"""GraphDefs into graphs: under a scope, beside what is there, with other inputs.

Names are those that TensorFlow gives. A name that is taken gets the first free ``_1``, ``_2``, ...;
that holds for the node's inputs, places and frames too, and for a variable's ``shared_name``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from jaxmeta import errors, naming, values
from jaxmeta._proto import graph_pb2
from jaxmeta.graphs import building, function_library, graph, renaming
from jaxmeta.graphs.graph import Operation, Tensor
from jaxmeta.meta_graphs import graph_def_checks, input_maps
from jaxmeta.meta_graphs.input_maps import InputMap
from jaxmeta.pausing import paused_gc

_DEFAULT_SCOPE: Final = "import"
_SHAPES_ATTR: Final = "_output_shapes"


@dataclasses.dataclass(frozen=True, slots=True)
class Imported:
    """What became of a GraphDef.

    Attributes:
        renaming: the new names of its nodes.
        nodes: the nodes that were added, by their old names.
        functions: the new names of those functions that could not keep theirs.
    """

    renaming: renaming.Renaming
    nodes: Mapping[str, graph_pb2.NodeDef]
    functions: Mapping[str, str]


def import_graph_def(
    graph_def: graph_pb2.GraphDef,
    input_map: Mapping[str, Any] | None = None,
    return_elements: Iterable[str] | None = None,
    name: str | None = None,
    op_dict: Any = None,
    producer_op_list: graph_pb2.OpList | None = None,
) -> list[Operation | Tensor] | None:
    """Adds the nodes of a GraphDef to the default graph.

    Args:
        graph_def: the nodes and their library. It is not changed.
        input_map: tensors, variables or arrays instead of inputs, by the inputs' names; operations
            instead of control inputs, by ``^name``.
        return_elements: names of operations and tensors of the GraphDef.
        name: the scope for all nodes; ``import`` where None. It is made unique, unless it ends in a
            slash; an empty one is none.
        op_dict: ignored, as in TensorFlow.
        producer_op_list: OpDefs of who wrote the GraphDef: attrs that are unknown here and have
            their default there are left out.

    Returns:
        What ``return_elements`` names, in the graph; None where it is None.

    Raises:
        ArgumentTypeError: an argument is of the wrong kind; a TypeError.
        GraphError: the GraphDef is malformed, or names are not in it; a ValueError.
        AttrError: attrs are missing or do not fit; a ValueError.
        FormatError: it is for other versions; a ValueError.
        UnsupportedOpError: ops are unknown.

    Example:
        >>> graph_def = graph_pb2.GraphDef()
        >>> _ = graph_def.node.add(name="x", op="NoOp")
        >>> with building.Graph().as_default() as target:
        ...     for _ in range(2):
        ...         _ = import_graph_def(graph_def, name="a")
        >>> list(target.nodes)
        ['a/x', 'a_1/x']
    """
    del op_dict
    if not isinstance(graph_def, graph_pb2.GraphDef):
        raise errors.ArgumentTypeError("Argument `graph_def` must be a GraphDef proto.")
    wanted = check_return_elements(return_elements)
    target = building.get_default_graph()
    scope_name = name if name is not None else _DEFAULT_SCOPE
    if not isinstance(scope_name, str):
        raise errors.ArgumentTypeError(f"Argument `name` must be a string, not {scope_name!r}")
    given = input_maps.check_input_map(input_map)
    if producer_op_list is not None:
        graph_def = _without_unknown_defaults(graph_def, producer_op_list)
    with paused_gc(), target.name_scope(scope_name) as scope:
        mapping = input_maps.convert_input_map(given, target, can_add=bool(scope_name))
        imported = add_graph_def(
            "the GraphDef",
            graph_def,
            target,
            scope=scope.removesuffix("/"),
            input_map=mapping,
            are_nodes_checked=True,
        )
        return gather_elements(wanted, imported, mapping, target)


# --- arguments ---------------------------------------------------------------------------------


def check_return_elements(return_elements: Iterable[str] | None) -> tuple[str, ...] | None:
    """Returns the names, or raises ArgumentTypeError where they are not strings."""
    if return_elements is None:
        return None
    names = tuple(return_elements)
    if not all(isinstance(name, (str, bytes)) for name in names):
        raise errors.ArgumentTypeError(
            f"Argument `return_elements` must be a list of strings. Obtained {list(names)}."
        )
    return tuple(name.decode() if isinstance(name, bytes) else name for name in names)


def _without_unknown_defaults(
    graph_def: graph_pb2.GraphDef, producer_op_list: graph_pb2.OpList
) -> graph_pb2.GraphDef:
    """Returns a GraphDef without those attrs that only its writer knew and did not set."""
    if not isinstance(producer_op_list, graph_pb2.OpList):
        raise errors.ArgumentTypeError("Argument `producer_op_list` must be an OpList proto.")
    unknown = function_library.attrs_of_producer(producer_op_list)
    if not any(node.op in unknown for node in graph_def.node):
        return graph_def
    result = graph_pb2.GraphDef()
    result.CopyFrom(graph_def)
    for node in result.node:
        for attr_name, default in unknown.get(node.op, {}).items():
            if attr_name in node.attr and node.attr[attr_name] == default:
                del node.attr[attr_name]
    return result


# --- adding ------------------------------------------------------------------------------------


def add_graph_def(
    source: str,
    graph_def: graph_pb2.GraphDef,
    target: graph.GraphBuilder,
    *,
    scope: str = "",
    input_map: InputMap | None = None,
    clear_devices: bool = False,
    are_nodes_checked: bool = False,
) -> Imported:
    """Adds a GraphDef to a graph.

    A GraphDef that is refused leaves the graph as it was. Without a scope, in an empty graph, the
    graph holds the very nodes of the GraphDef afterwards.

    Args:
        source: what to call the GraphDef in messages.
        graph_def: the nodes and functions.
        target: the graph.
        scope: the scope for all nodes, without a trailing slash; empty for none.
        input_map: the inputs to replace.
        clear_devices: whether nodes lose their device.
        are_nodes_checked: whether each node is checked against its op.

    Raises:
        FormatError, UnsupportedOpError, GraphError, AttrError: see `import_graph_def`.
    """
    mapping = input_map or InputMap()
    library = graph_def.library
    graph_def_checks.check_versions(source, graph_def.versions)
    graph_def_checks.check_function_names(source, library)
    by_name = graph_def_checks.check_and_index(source, graph_def, target.functions, mapping.names)
    _check_mapped(source, mapping, by_name, graph_def, target)
    if are_nodes_checked:
        functions = {**target.functions, **{f.signature.name: f for f in library.function}}
        numbers = {key: tensor.number for key, tensor in mapping.tensors.items()}
        graph_def_checks.NodeChecks(source, by_name, functions, numbers).run()
    function_names = _add_functions(library, target)
    rename = renaming.Renaming(scope, _unique_names(by_name, scope, target.nodes))
    added: Mapping[str, graph_pb2.NodeDef] = by_name
    if not (rename.is_identity and not mapping and not function_names and not clear_devices):
        editor = _NodeEditor(rename, mapping, function_names, clear_devices, target)
        added = editor.edit(by_name)
    renamed = added if rename.is_identity else {node.name: node for node in added.values()}
    target.add_node_defs(renamed)
    _merge_versions(target, graph_def.versions)
    return Imported(rename, added, function_names)


def _check_mapped(
    source: str,
    mapping: InputMap,
    by_name: Mapping[str, graph_pb2.NodeDef],
    graph_def: graph_pb2.GraphDef,
    target: graph.GraphBuilder,
) -> None:
    """Raises GraphError where replaced inputs are neither inputs nor outputs of any node."""
    if not mapping:
        return
    used = {
        graph_def_checks.canonical_input(ref) for node in by_name.values() for ref in node.input
    }
    functions = {**target.functions, **{f.signature.name: f for f in graph_def.library.function}}
    lost = [
        key
        for key in sorted(mapping.names - used)
        if not graph_def_checks.has_output(key, by_name, functions)
    ]
    if lost:
        raise errors.GraphError(
            f"{source}: Attempted to map inputs that were not found in graph_def: "
            f"[{', '.join(lost)}]"
        )


def _unique_names(
    names: Iterable[str], scope: str, present: Mapping[str, graph_pb2.NodeDef]
) -> dict[str, str]:
    """Returns the new names of those nodes whose names are taken, as TensorFlow makes them."""
    if not present:
        return {}
    own = dict.fromkeys(names)
    taken = present.keys() | scopes_of(present)
    prefix = f"{scope}/" if scope else ""
    colliding = [name for name in own if f"{prefix}{name}" in taken]
    if not colliding:
        return {}
    # TensorFlow compares with the names without the scope; without the last term it would give two
    # nodes the same name.
    own_scopes = scopes_of(own)
    unique = {}
    for name in colliding:
        count = 1
        while True:
            candidate = f"{prefix}{name}_{count}"
            is_own = candidate in own or candidate in own_scopes or f"{name}_{count}" in own
            if candidate not in taken and not is_own:
                break
            count += 1
        unique[name] = candidate
    return unique


def scopes_of(names: Iterable[str]) -> set[str]:
    """Returns all scopes that the names are in: ``a`` and ``a/b`` for ``a/b/c``."""
    found: set[str] = set()
    for name in names:
        scope = name.rpartition("/")[0]
        while scope and scope not in found:
            found.add(scope)
            scope = scope.rpartition("/")[0]
    return found


def _add_functions(
    library: graph_pb2.FunctionDefLibrary, target: graph.GraphBuilder
) -> dict[str, str]:
    """Adds the functions that the graph does not have; returns the new names of renamed ones."""
    names = function_library.plan_function_names(
        library.function, target.functions, target.unique_function_name
    )
    for function in library.function:
        name = function.signature.name
        if name in target.functions and name not in names:
            continue
        if names:
            renamed = graph_pb2.FunctionDef()
            renamed.CopyFrom(function)
            function_library.rename_function(renamed, names)
            target.add_function(renamed)
        else:
            target.add_function(function)
    for gradient in library.gradient:
        renamed_gradient = graph_pb2.GradientDef(
            function_name=names.get(gradient.function_name, gradient.function_name),
            gradient_func=names.get(gradient.gradient_func, gradient.gradient_func),
        )
        if renamed_gradient not in target.gradients:
            target.gradients.append(renamed_gradient)
    for registered in library.registered_gradients:
        renamed_rule = graph_pb2.RegisteredGradient(
            gradient_func=names.get(registered.gradient_func, registered.gradient_func),
            registered_op_type=registered.registered_op_type,
        )
        if renamed_rule not in target.registered_gradients:
            target.registered_gradients.append(renamed_rule)
    return names


def _merge_versions(target: graph.GraphBuilder, versions: graph_pb2.VersionDef) -> None:
    """Makes a graph's versions those that hold for all that is in it."""
    merged = target.versions
    merged.producer = min(merged.producer, versions.producer)
    merged.min_consumer = max(merged.min_consumer, versions.min_consumer)
    bad = sorted({*merged.bad_consumers, *versions.bad_consumers})
    del merged.bad_consumers[:]
    merged.bad_consumers.extend(bad)


class _NodeEditor:
    """Copies nodes with their new names and inputs."""

    def __init__(
        self,
        rename: renaming.Renaming,
        mapping: InputMap,
        functions: Mapping[str, str],
        clear_devices: bool,
        target: graph.GraphBuilder,
    ) -> None:
        self._rename = rename
        self._mapping = mapping
        self._functions = functions
        self._clear_devices = clear_devices
        self._target = target
        self._frames: dict[bytes, bytes] = {}
        self._taken_frames: set[bytes] | None = None

    def edit(self, by_name: Mapping[str, graph_pb2.NodeDef]) -> dict[str, graph_pb2.NodeDef]:
        reshaped = self._with_other_shapes(by_name)
        return {name: self._edit(node, name in reshaped) for name, node in by_name.items()}

    def _edit(self, node: graph_pb2.NodeDef, is_reshaped: bool) -> graph_pb2.NodeDef:
        edited = graph_pb2.NodeDef()
        edited.CopyFrom(node)
        rename = self._rename
        if not rename.is_identity:
            edited.name = rename.node(node.name)
            renaming.rename_shared_name(node=edited, old_name=node.name)
            renaming.rename_colocations(edited, rename)
            if node.op in renaming.FRAME_OPS:
                frame = edited.attr["frame_name"]
                frame.s = self._frame(frame.s)
        edited.input[:] = self._inputs(node)
        if self._functions:
            function_library.rename_functions_of(edited, self._functions)
        if self._clear_devices:
            edited.device = ""
        if is_reshaped and _SHAPES_ATTR in edited.attr:
            del edited.attr[_SHAPES_ATTR]
        return edited

    def _inputs(self, node: graph_pb2.NodeDef) -> list[str]:
        if not self._mapping:
            return [self._rename(ref) for ref in node.input]
        tensors, operations = self._mapping.tensors, self._mapping.operations
        inputs = []
        for ref in node.input:
            mapped = tensors.get(graph_def_checks.canonical_input(ref))
            if mapped is not None:
                new = f"{mapped.node_name}:{mapped.index}" if mapped.index else mapped.node_name
            elif ref[:1] == "^" and ref[1:] in operations:
                new = f"^{operations[ref[1:]]}"
            else:
                new = self._rename(ref)
            if ref[:1] != "^" or new not in inputs:
                inputs.append(new)
        return inputs

    def _frame(self, frame: bytes) -> bytes:
        """Returns the new name of a loop's frame; two loops of one name would be one loop."""
        if self._taken_frames is None:
            self._taken_frames = {
                node.attr["frame_name"].s
                for node in self._target.nodes.values()
                if node.op in renaming.FRAME_OPS
            }
        if frame not in self._frames:
            scope = self._rename.scope
            base = b"/".join(filter(None, [scope.encode(), frame]))
            candidate, count = base, 0
            while candidate in self._taken_frames:
                count += 1
                candidate = base + f"_{count}".encode()
            self._frames[frame] = candidate
        return self._frames[frame]

    def _with_other_shapes(self, by_name: Mapping[str, graph_pb2.NodeDef]) -> set[str]:
        """Returns the nodes whose recorded shapes a replaced input may have made wrong."""
        changed = {
            key
            for key, tensor in self._mapping.tensors.items()
            if tensor.shape is None or _recorded_shape(key, by_name) != tensor.shape
        }
        found: set[str] = set()
        size = -1
        while changed and size != len(found):  # twice, but for graphs that are not in order
            size = len(found)
            for name, node in by_name.items():
                if name not in found and any(
                    graph_def_checks.canonical_input(ref) in changed
                    or ref.split(":", 1)[0] in found
                    for ref in node.input
                ):
                    found.add(name)
        return found


def _recorded_shape(key: str, by_name: Mapping[str, graph_pb2.NodeDef]) -> values.Shape | None:
    name, _, index = key.partition(":")
    node = by_name.get(name)
    if node is None or _SHAPES_ATTR not in node.attr:
        return None
    shapes = node.attr[_SHAPES_ATTR].list.shape
    return values.shape_from_proto(shapes[int(index)]) if int(index) < len(shapes) else None


# --- what is returned --------------------------------------------------------------------------


def gather_elements(
    names: Sequence[str] | None,
    imported: Imported,
    mapping: InputMap,
    target: graph.GraphBuilder,
) -> list[Operation | Tensor] | None:
    """Returns the operations and tensors of the graph that names in the GraphDef stand for.

    Raises:
        GraphError: a name is not in the GraphDef.
    """
    if names is None:
        return None
    found: list[Operation | Tensor] = []
    for name in names:
        if ":" not in name:
            if name not in imported.nodes:
                raise errors.GraphError(f"Requested return node {name!r} not found in graph def")
            found.append(Operation(target, imported.renaming.node(name)))
            continue
        key = input_maps.tensor_key(name)
        if key in mapping.tensors:
            found.append(mapping.tensors[key])
            continue
        node = naming.parse_tensor_name(key).node
        if node not in imported.nodes:
            raise errors.GraphError(f"Requested return tensor {name!r} not found in graph def")
        found.append(target.get_tensor_by_name(imported.renaming(key)))
    return found
