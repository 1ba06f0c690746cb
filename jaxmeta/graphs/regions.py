"""Where a graph can be cut: at tensors that are arrays and there in any case.

What lies in a loop or branch of TensorFlow 1 is not, nor are handles, nor the tensors that only say
in which order the operations on one handle run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from jaxmeta import dtypes, op_defs, values
from jaxmeta._proto import graph_pb2
from jaxmeta.execution import frames
from jaxmeta.graphs.graph import GraphBuilder
from jaxmeta.ops import _definition
from jaxmeta.ops._kernels import CONTROL_FLOW, Flow

_HANDLES: Final = frozenset((dtypes.RESOURCE, dtypes.VARIANT))
_HANDLE_MAKERS: Final = ("TensorArray", "Stack")  # how their names begin
_TOKENS: Final = frozenset(("handle", "grad_handle", "flow", "flow_out"))
_PASSING: Final = frozenset((Flow.SWITCH, Flow.MERGE, Flow.ENTER, Flow.EXIT, Flow.NEXT, Flow.SAME))


class Regions:
    """What of some nodes lies in loops and branches, and where they can be cut.

    Attributes:
        names: the nodes in loops and branches, and those that lead in and out.
        handles: the tensors that are handles, or only order the operations on them.
    """

    def __init__(self, target: GraphBuilder, nodes: Sequence[graph_pb2.NodeDef]) -> None:
        """Takes nodes, each after its inputs but for what leads back in loops.

        Raises:
            GraphError: TensorFlow could not run the nodes.
            UnsupportedOpError: their loops and branches cannot be compiled.
        """
        self._refs = {
            node.name: [f"{node.name}:{i}" for i in range(len(target.output_numbers(node.name)))]
            for node in nodes
        }
        self.handles = self._find_handles(target, nodes)
        self.names: set[str] = set()
        self._inner: set[str] = set()  # nodes whose outputs all are in a loop or branch
        self._dead: set[str] = set()  # tensors that may have no value
        if any(flow_of(node) in CONTROL_FLOW for node in nodes):
            self._find_regions(nodes)

    def controls_of(self, node: graph_pb2.NodeDef) -> list[str]:
        """Returns the nodes that say in which loop or branch a node is."""
        return [ref[1:] for ref in node.input if ref[0] == "^" and self._places(node, ref[1:])]

    def is_predicate(self, node: graph_pb2.NodeDef) -> bool:
        """Returns whether a node may only pass a predicate on, which must stay the same for all."""
        if not self.names or flow_of(node) is not Flow.SAME:
            return False
        return bool(node.attr["T"].type == dtypes.dtype_to_number("bool"))

    def can_cut(self, tensor: str) -> bool:
        """Returns whether a tensor is an array that is there in any case."""
        return tensor not in self._dead and tensor not in self.handles

    def without_controls(
        self, nodes: Mapping[str, graph_pb2.NodeDef]
    ) -> dict[str, graph_pb2.NodeDef]:
        """Returns nodes without their control inputs, which make no values.

        Inside of loops and branches they say where a node is, so that some of them stay.
        """
        plain = {}
        for name, node in nodes.items():
            kept = [ref for ref in node.input if ref[0] != "^" or self._places(node, ref[1:])]
            if len(kept) < len(node.input):
                copied = graph_pb2.NodeDef()
                copied.CopyFrom(node)
                copied.input[:] = kept
                node = copied
            plain[name] = node
        return plain

    def _places(self, node: graph_pb2.NodeDef, other: str) -> bool:
        return node.name in self.names and other in self._inner

    def _find_handles(
        self, target: GraphBuilder, nodes: Sequence[graph_pb2.NodeDef]
    ) -> frozenset[str]:
        found: set[str] = set()
        for node in nodes:
            refs = self._refs[node.name]
            numbers = target.output_numbers(node.name)
            found.update(ref for ref, n in zip(refs, numbers, strict=True) if n in _HANDLES)
            if node.op.startswith(_HANDLE_MAKERS) and op_defs.has_op(node.op):
                names = op_defs.output_names(op_defs.get_op_def(node.op), node)
                found.update(ref for ref, (n, _) in zip(refs, names, strict=True) if n in _TOKENS)
            elif flow_of(node) in _PASSING and not found.isdisjoint(map(full_name, node.input)):
                found.update(refs[: 2 if flow_of(node) is Flow.SWITCH else 1])
        return frozenset(found)

    def _find_regions(self, nodes: Sequence[graph_pb2.NodeDef]) -> None:
        places = {ref: i for i, ref in enumerate(r for refs in self._refs.values() for r in refs)}
        initial: list[Any] = [None] * len(places)
        units = []
        for index, node in enumerate(nodes):
            inputs = [places[full_name(ref)] for ref in node.input if ref[0] != "^"]
            outputs = [places[ref] for ref in self._refs[node.name]]
            units.append(frames.Unit(index, node, None, flow_of(node), inputs, outputs))
            if node.op == "Const" and node.attr["dtype"].type == dtypes.dtype_to_number("int32"):
                initial[outputs[0]] = values.tensor_from_proto(node.attr["value"].tensor)
        by_name = {unit.node.name: unit for unit in units}
        controls = {
            unit.index: [by_name[ref[1:]] for ref in unit.node.input if ref[0] == "^"]
            for unit in units
        }
        root = frames.find_frames(units, controls, initial)
        alive = {
            place
            for unit in root.units
            for index, place in enumerate(unit.outputs)
            if not root.predicates.output_context(unit, index)
        }
        self._dead = {ref for ref, place in places.items() if place not in alive}
        self.names = {
            unit.node.name
            for unit in units
            if unit.frame is not root or unit.context or (unit.flow in CONTROL_FLOW)
        }
        self._inner = {name for name in self.names if self._dead.issuperset(self._refs[name])}


def flow_of(node: graph_pb2.NodeDef) -> Flow:
    """Returns what a node does in TensorFlow 1's control flow."""
    kernel = _definition.KERNELS.get(node.op)
    return Flow.PLAIN if kernel is None else kernel.flow


def passes_handles(node: graph_pb2.NodeDef) -> bool:
    """Returns whether a node gives the handle that it is given."""
    return flow_of(node) in _PASSING


def full_name(ref: str) -> str:
    """Returns a tensor's name with the position of its output."""
    return ref if ":" in ref else f"{ref}:0"
