"""Putting the nodes of a function's body into a graph, one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from jaxmeta import op_defs
from jaxmeta._proto import graph_pb2
from jaxmeta.graphs import nodes
from jaxmeta.graphs.graph import GraphBuilder
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops import _definition

# Primitives that call a function of the user's: its name tells more than theirs.
_CALLING_PRIMITIVES: Final = ("jit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat")

# Attrs that do not change what a node gives.
_SAYING_NOTHING: Final = frozenset((nodes.KEY_IMPL_ATTR, "_output_shapes", "_class"))
_NAME_ATTR: Final = "_jax_name"  # of the user's function, whatever the function here is called


class StagedNodes(nodes.FunctionBody):
    """A body whose nodes will be those of a graph, once it is complete.

    Attributes:
        wanted_names: of each node, its name before it was made unique in the body.
        edges: all the outputs of its nodes; their shapes become known while a jaxpr is lowered.
    """

    def __init__(self, library: Mapping[str, graph_pb2.FunctionDef]) -> None:
        super().__init__("staged", library)
        self.wanted_names: dict[str, str] = {}
        self.edges: dict[str, Edge] = {}

    def add_node(
        self,
        op: str,
        inputs: Sequence[Any],
        attrs: Mapping[str, Any],
        name: str | None = None,
        control_inputs: Sequence[str] = (),
    ) -> list[Edge]:
        """Adds a node; see `NodeContainer.add_node`. A call has the name of its function."""
        wanted = name or op
        primitive = attrs.get(_definition.PRIMITIVE_ATTR)
        if op in self._library and primitive in _CALLING_PRIMITIVES:
            wanted = wanted.removesuffix(primitive) + op
        made = super().add_node(op, inputs, attrs, wanted, control_inputs)
        self.wanted_names[self.last_node_name] = wanted
        self.edges.update((edge.ref, edge) for edge in made)
        return made

    @property
    def library(self) -> Mapping[str, graph_pb2.FunctionDef]:
        """The functions that its nodes may call."""
        return self._library

    def live_nodes(self, outputs: Sequence[Edge]) -> list[graph_pb2.NodeDef]:
        """Returns the nodes that the outputs depend on, in their order."""
        wanted = {edge.ref.split(":", 1)[0] for edge in outputs}
        live = []
        for node in reversed(self._nodes.values()):
            if node.name in wanted:
                wanted.update(ref.split(":", 1)[0] for ref in node.input)
                live.append(node)
        return live[::-1]


class NodeIndex:
    """Nodes of a graph by what they compute, so that none is added twice.

    Example:
        >>> graph = GraphBuilder()
        >>> (x,) = graph.add_node("Placeholder", [], {"dtype": 1}, "x")
        >>> (y,) = graph.add_node("Tanh", [x], {}, "y")
        >>> index = NodeIndex(graph, ["y"])
        >>> index.find(graph.nodes["y"], ["x"])
        'y'
    """

    def __init__(self, target: GraphBuilder, names: Sequence[str]) -> None:
        self._names: dict[Any, str] = {}
        for name in names:
            node = target.nodes[name]
            if not (op_defs.has_op(node.op) and op_defs.is_stateful(node.op)):
                self.add(node)

    def add(self, node: graph_pb2.NodeDef) -> None:
        """Makes a node known."""
        data = [ref for ref in node.input if ref[0] != "^"]
        self._names.setdefault(self._key(node, data), node.name)

    def find(self, node: graph_pb2.NodeDef, inputs: Sequence[str]) -> str | None:
        """Returns the name of a node that does the same with the same inputs, or None."""
        return self._names.get(self._key(node, inputs))

    def _key(self, node: graph_pb2.NodeDef, inputs: Sequence[str]) -> Any:
        op_def = op_defs.get_op_def(node.op) if op_defs.has_op(node.op) else None
        attrs = tuple(
            (name, node.attr[name].SerializeToString(deterministic=True))
            for name in sorted(node.attr)
            if name not in _SAYING_NOTHING
            and not _is_rule(name, node.attr[name])
            and not _is_default(op_def, name, node.attr[name])
        )
        return node.op, tuple(ref.removesuffix(":0") for ref in inputs), attrs


def _is_default(op_def: graph_pb2.OpDef | None, name: str, value: graph_pb2.AttrValue) -> bool:
    if op_def is None or name.startswith("_"):
        return False
    return op_defs.attr_default(op_def, name) == value


def _is_rule(name: str, value: graph_pb2.AttrValue) -> bool:
    """Returns whether an attr holds a derivative rule, which does not change what a node gives."""
    return name.startswith(nodes.JAX_ATTR_PREFIX) and bool(_named_functions(value))


def inline(
    target: GraphBuilder,
    staged: StagedNodes,
    outputs: Sequence[Edge],
    arguments: Mapping[str, str],
    result_name: str = "",
    known: NodeIndex | None = None,
) -> tuple[list[str], list[graph_pb2.NodeDef]]:
    """Adds the nodes that outputs depend on to a graph.

    Args:
        target: the graph.
        staged: the body.
        outputs: edges of it.
        arguments: for each argument of the body the tensor that it stands for.
        result_name: a scope whose name the node takes that gives the only output, or empty.
        known: nodes to take instead of adding others that do the same; new ones are added to it.

    Returns:
        The outputs' names in the graph, and the nodes that were added.
    """
    added = []
    refs = dict(arguments)
    live = staged.live_nodes(outputs)
    result = outputs[0].ref.split(":", 1)[0] if result_name and len(outputs) == 1 else ""
    for node in live:
        if node.name == result and node.op in staged.library:
            result = ""  # TensorFlow inlines a call below its name, where the scope's nodes are
        inputs = [refs[ref] for ref in node.input]
        name = known.find(node, inputs) if known is not None else None
        if name is None:
            wanted = result_name if node.name == result else staged.wanted_names[node.name]
            # JAX's name stack says "transpose", which is this scope as well.
            wanted = wanted.removeprefix("gradients/") if target.scope else wanted
            copied = target.add_node_copy(node, inputs, wanted)
            name = copied.name
            added.append(copied)
            if known is not None:
                known.add(copied)
        refs.update(_output_refs(target, staged, node, name))
    names = [refs[edge.ref] for edge in outputs]
    if result_name and len(names) == 1 and names[0] != result_name[:-1]:
        (edge,) = target.add_node("Identity", [Edge(names[0], outputs[0].number)], {}, result_name)
        names = [edge.ref]
    for name, edge in zip(names, outputs, strict=True):
        _record(target, name, edge)
    return names, added


def _output_refs(
    target: GraphBuilder, staged: StagedNodes, node: graph_pb2.NodeDef, name: str
) -> dict[str, str]:
    """Returns the names in the graph of a node's outputs, by their names in the body."""
    function = staged.library.get(node.op)
    op_def = function.signature if function is not None else op_defs.get_op_def(node.op)
    refs: dict[str, str] = {}
    for argument, count in op_defs.output_names(op_def, node):
        for offset in range(count):
            ref = f"{node.name}:{argument}:{offset}"
            refs[ref] = f"{name}:{len(refs)}" if refs else name
            if ref in staged.edges:
                _record(target, refs[ref], staged.edges[ref])
    return refs


def _record(target: GraphBuilder, name: str, edge: Edge) -> None:
    if edge.shape is not None:
        target.record_shape(name if ":" in name else f"{name}:0", edge.shape)


# --- the functions that the nodes call ---------------------------------------------------------


def merge_functions(
    target: GraphBuilder,
    staged: StagedNodes,
    live: Sequence[graph_pb2.NodeDef],
    functions: Sequence[graph_pb2.FunctionDef],
) -> list[graph_pb2.FunctionDef]:
    """Returns the functions that the graph's library does not hold yet.

    A function that is there under another name is called by that name from now on.
    """
    by_content = {_content(function): name for name, function in target.functions.items()}
    renamed: dict[str, str] = {}
    kept = []
    for function in functions:
        for node in function.node_def:
            _rename_calls(node, renamed)
        known = by_content.get(_content(function))
        if known is not None:
            renamed[function.signature.name] = known
        else:
            by_content[_content(function)] = function.signature.name
            kept.append(function)
    renamed = _with_short_names(renamed, kept)
    for function in kept:
        _rename_function(function, renamed)
    for node in live:
        wanted = staged.wanted_names[node.name]
        prefix = wanted.removesuffix(node.op)
        if node.op in renamed and prefix != wanted:
            staged.wanted_names[node.name] = prefix + renamed[node.op]
        _rename_calls(node, renamed)
    return kept


def _with_short_names(
    renamed: Mapping[str, str], kept: Sequence[graph_pb2.FunctionDef]
) -> dict[str, str]:
    """Returns new names by old ones: of functions that are the same, the shortest of theirs."""
    names = {function.signature.name: [function.signature.name] for function in kept}
    for name, same in renamed.items():
        if same in names:
            names[same].append(name)
    best = {name: min(group, key=lambda n: (len(n), n)) for name, group in names.items()}
    final = {name: best.get(same, same) for name, same in [*renamed.items(), *best.items()]}
    return {name: new for name, new in final.items() if name != new}


def _rename_function(function: graph_pb2.FunctionDef, renamed: Mapping[str, str]) -> None:
    name = function.signature.name
    new = renamed.get(name, name)
    for node in function.node_def:
        _rename_calls(node, renamed)
        for attr_name, value in node.attr.items():
            if value.s == name.encode() and attr_name != _NAME_ATTR:
                value.s = new.encode()
    function.signature.name = new


def _content(function: graph_pb2.FunctionDef) -> bytes:
    """Returns all of a function but its name, by which a derivative rule may link to itself."""
    copied = graph_pb2.FunctionDef()
    copied.CopyFrom(function)
    own_name = function.signature.name.encode()
    for node in copied.node_def:
        for attr_name, value in node.attr.items():
            if value.s == own_name and attr_name != _NAME_ATTR:
                value.s = b""
    copied.signature.name = ""
    return copied.SerializeToString(deterministic=True)


def _rename_calls(node: graph_pb2.NodeDef, renamed: Mapping[str, str]) -> None:
    if not renamed:
        return
    node.op = renamed.get(node.op, node.op)
    for value in node.attr.values():
        for function in _named_functions(value):
            function.name = renamed.get(function.name, function.name)


def _named_functions(value: graph_pb2.AttrValue) -> list[graph_pb2.NameAttrList]:
    """Returns the parts of an attr that name functions."""
    return [value.func] if value.WhichOneof("value") == "func" else list(value.list.func)
