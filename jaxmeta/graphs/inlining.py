"""Names inside the functions that a graph calls, and the calls replaced by what they run.

``train_step/Dense_0/MatMul:0`` is output 0 of the node ``Dense_0/MatMul`` in the body of the
function that the node ``train_step`` calls; where that node is a call itself, its name may be
followed by one in turn. To fetch or feed what lies inside, the graph's node is replaced by the
nodes of the function, under such names.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np

from jaxmeta import dtypes, errors, naming, op_defs, values
from jaxmeta._proto import graph_pb2
from jaxmeta.graphs import graph

_CALLS: Final = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_FUNCTION_ATTR: Final = "f"
_MOST_CALLS: Final = 100  # one inside the other
_LOOP_ATTR: Final = "_jax_body"  # on a call that stands for a loop: the function of one iteration
_Nodes = Mapping[str, graph_pb2.NodeDef]


@dataclasses.dataclass(frozen=True, slots=True)
class InnerTensor:
    """An output of a node in the body of a function that a graph calls.

    Attributes:
        name: its name from the graph: ``train_step/Dense_0/MatMul:0``.
        number: its DataType number.
        shape: its static shape where the node records it, else None.
    """

    name: str
    number: int
    shape: values.Shape | None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its dtype."""
        return dtypes.dtype_from_number(self.number)


def find_tensor(target: graph.GraphBuilder, name: str) -> InnerTensor | None:
    """Returns the tensor of a name inside a function that the graph calls, or None.

    Raises:
        GraphError: the name leads into the body of a loop or branch, or the node has no such
            output.
    """
    if ":" not in name:
        return None
    parsed = naming.parse_tensor_name(name)
    node = _find(target, parsed.node)
    if node is None:
        return None
    numbers = op_defs.output_dtypes(_op_def(target, node), node)
    if parsed.argument is not None or not 0 <= parsed.position < len(numbers):
        raise errors.GraphError(f"{name!r}: the operation has {len(numbers)} outputs")
    attr = node.attr
    shape = None
    if "_output_shapes" in attr and parsed.position < len(attr["_output_shapes"].list.shape):
        shape = values.shape_from_proto(attr["_output_shapes"].list.shape[parsed.position])
    return InnerTensor(name, numbers[parsed.position], shape)


def find_operation(target: graph.GraphBuilder, name: str) -> str | None:
    """Returns the name of an operation inside a function that the graph calls, or None.

    Raises:
        GraphError: the name leads into the body of a loop or branch.
    """
    return name if _find(target, name) is not None else None


def inline_calls(target: graph.GraphBuilder, names: Iterable[str]) -> _Nodes:
    """Returns the graph's nodes, with those calls replaced that some of the names lie inside.

    Args:
        target: the graph.
        names: of tensors and operations; those that are the graph's own change nothing.
    """
    nodes: _Nodes = target.nodes
    added: dict[str, graph_pb2.NodeDef] = {}
    for name in names:
        node_name = name.split(":")[0]
        while node_name not in added and node_name not in nodes:
            call = _innermost_call(
                target, collections.ChainMap(added, _as_mutable(nodes)), node_name
            )
            if call is None:
                break
            added.update(_inlined(target, call))
    return collections.ChainMap(added, _as_mutable(nodes)) if added else nodes


def inline_calls_that(
    target: graph.GraphBuilder,
    nodes: _Nodes,
    wanted: Iterable[str],
    holds: Callable[[graph_pb2.NodeDef], bool],
) -> _Nodes:
    """Returns nodes with those calls replaced, among what some depend on, of which a test holds.

    Args:
        target: the graph.
        nodes: its nodes, by name.
        wanted: names of tensors and operations.
        holds: the test, for nodes that call one function once.

    Raises:
        GraphError: functions call each other in a circle.
    """
    added: dict[str, graph_pb2.NodeDef] = {}
    depths: dict[str, int] = {}
    pending = [name.split(":")[0] for name in wanted]
    seen = set(pending)
    while pending:
        name = pending.pop()
        node = added.get(name) or nodes.get(name)
        if node is None:
            continue
        if _called_function(target, node) is not None and holds(node):
            depth = depths.get(name, 0) + 1
            if depth > _MOST_CALLS:
                raise errors.GraphError(f"{name!r} ({node.op}): functions call each other too deep")
            inner = _inlined(target, node)
            added.update(inner)
            depths.update(dict.fromkeys(inner, depth))
            node = inner[name]
        names = [ref.removeprefix("^").split(":")[0] for ref in node.input]
        pending.extend(name for name in names if name not in seen)
        seen.update(names)
    return collections.ChainMap(added, _as_mutable(nodes)) if added else nodes


def _as_mutable(nodes: _Nodes) -> Any:
    """Returns a mapping as what `collections.ChainMap` is declared to take."""
    return nodes


# --- finding -----------------------------------------------------------------------------------


def _find(target: graph.GraphBuilder, name: str) -> graph_pb2.NodeDef | None:
    """Returns the node of a name that lies inside a call of the graph, or None."""
    nodes: _Nodes = target.nodes
    rest = name
    while rest not in nodes:
        found = next((parts for parts in _prefixes(rest) if parts[0] in nodes), None)
        if found is None:
            return None
        prefix, rest = found
        node = nodes[prefix]
        function = _called_function(target, node)
        if function is None:
            _refuse_repeated_bodies(node, name)
            return None
        nodes = {node.name: node for node in function.node_def}
    return nodes[rest] if nodes is not target.nodes else None


def _prefixes(name: str) -> Iterator[tuple[str, str]]:
    """Yields (first parts, the others) of a name, the longest first parts first."""
    end = name.rfind("/")
    while end > 0:
        yield name[:end], name[end + 1 :]
        end = name.rfind("/", 0, end)


def _called_function(
    target: graph.GraphBuilder, node: graph_pb2.NodeDef
) -> graph_pb2.FunctionDef | None:
    """Returns the function that a node calls once, or None."""
    if _LOOP_ATTR in node.attr:
        return None
    if node.op in _CALLS:
        return target.functions.get(node.attr[_FUNCTION_ATTR].func.name)
    return target.functions.get(node.op)


def _refuse_repeated_bodies(node: graph_pb2.NodeDef, name: str) -> None:
    bodies = [
        attr
        for attr, value in node.attr.items()
        if (value.HasField("func") or len(value.list.func))
        and (attr == _LOOP_ATTR or not attr.startswith("_"))
    ]
    if bodies:
        raise errors.GraphError(
            f"{name!r} lies inside {node.name!r} ({node.op}), whose functions "
            f"({', '.join(sorted(bodies))}) run any number of times, or not at all: there is not "
            f"one value to fetch or feed. Fetch what the node returns: {node.name + ':0'!r}"
        )


# --- replacing ---------------------------------------------------------------------------------


def _innermost_call(
    target: graph.GraphBuilder, nodes: _Nodes, name: str
) -> graph_pb2.NodeDef | None:
    for prefix, _ in _prefixes(name):
        node = nodes.get(prefix)
        if node is not None:
            return node if _called_function(target, node) is not None else None
    return None


def _inlined(target: graph.GraphBuilder, call: graph_pb2.NodeDef) -> dict[str, graph_pb2.NodeDef]:
    """Returns the nodes of a called function under the call's name, and one in the call's place."""
    function = _called_function(target, call)
    assert function is not None
    data = [ref for ref in call.input if not ref.startswith("^")]
    control = [ref for ref in call.input if ref.startswith("^")]
    arguments = dict(zip((a.name for a in function.signature.input_arg), data, strict=True))
    body = {node.name: node for node in function.node_def}

    def outer(ref: str) -> str:
        """Returns what an input of the function's body is called in the graph."""
        parsed = naming.parse_tensor_name(ref)
        if parsed.is_control:
            return f"^{call.name}/{parsed.node}" if parsed.node in body else ""
        if parsed.node in arguments:
            return arguments[parsed.node]
        node = body[parsed.node]
        index = parsed.position
        if parsed.argument is not None:
            op_def = _op_def(target, node)
            index = op_defs.output_index(op_def, node, parsed.argument, parsed.position)
        return f"{call.name}/{parsed.node}:{index}" if index else f"{call.name}/{parsed.node}"

    nodes = {}
    for node in function.node_def:
        made = graph_pb2.NodeDef()
        made.CopyFrom(node)
        made.name = f"{call.name}/{node.name}"
        del made.input[:]
        made.input.extend(filter(None, map(outer, node.input)))
        made.input.extend(control)
        nodes[made.name] = made
    nodes[call.name] = _results(function, call, outer, control)
    return nodes


def _results(
    function: graph_pb2.FunctionDef, call: graph_pb2.NodeDef, outer: Any, control: list[str]
) -> graph_pb2.NodeDef:
    """Returns the node that gives what the call gave, under the call's name."""
    outputs = function.signature.output_arg
    made = graph_pb2.NodeDef(name=call.name, op="IdentityN")
    made.input.extend(outer(function.ret[argument.name]) for argument in outputs)
    made.input.extend(f"^{call.name}/{name}" for name in _run_anyway(function))
    made.input.extend(control)
    attr = graph_pb2.AttrValue()
    attr.list.type.extend(argument.type for argument in outputs)
    made.attr["T"].CopyFrom(attr)
    return made


def _run_anyway(function: graph_pb2.FunctionDef) -> list[str]:
    """Returns the nodes of a function that run although no result depends on them.

    As in TensorFlow, these are all that have effects.
    """
    names = dict.fromkeys(function.control_ret.values())
    for node in function.node_def:
        if op_defs.has_op(node.op) and op_defs.is_stateful(node.op):
            names[node.name] = None
    return list(names)


def _op_def(target: graph.GraphBuilder, node: graph_pb2.NodeDef) -> graph_pb2.OpDef:
    function = target.functions.get(node.op)
    return function.signature if function is not None else op_defs.get_op_def(node.op)
