"""The attr ``_output_shapes``, with which TensorFlow writes what it knows of shapes, on import.

As in TensorFlow, a record that contradicts what the node's op and inputs say makes the GraphDef
invalid, and one that says more than these is believed. The rules here are those of ops whose shapes
need no tracing; what the others give is what their records say.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final

from jaxmeta import errors, op_defs, values
from jaxmeta._proto import graph_pb2
from jaxmeta.graphs.operators import broadcast_shapes
from jaxmeta.values import Shape

ATTR: Final = "_output_shapes"
_FIRST_WITH_SCALAR_PLACEHOLDERS: Final = 24  # before this producer, [] stood for any shape

_UNARY: Final = frozenset(
    (
        "Abs",
        "BiasAdd",
        "BiasAddV1",
        "Cast",
        "Ceil",
        "CheckNumerics",
        "Cos",
        "Elu",
        "Erf",
        "Exp",
        "Expm1",
        "Floor",
        "Identity",
        "Inv",
        "Invert",
        "IsFinite",
        "IsInf",
        "IsNan",
        "LeakyRelu",
        "Log",
        "Log1p",
        "LogSoftmax",
        "LogicalNot",
        "Neg",
        "OnesLike",
        "PreventGradient",
        "Print",
        "Reciprocal",
        "Relu",
        "Relu6",
        "Rint",
        "Round",
        "Rsqrt",
        "Selu",
        "Sigmoid",
        "Sign",
        "Sin",
        "Snapshot",
        "Softmax",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Square",
        "StopGradient",
        "Tan",
        "Tanh",
        "ZerosLike",
    )
)
_BINARY: Final = frozenset(
    (
        "Add",
        "AddV2",
        "BitwiseAnd",
        "BitwiseOr",
        "BitwiseXor",
        "Div",
        "Equal",
        "FloorDiv",
        "FloorMod",
        "Greater",
        "GreaterEqual",
        "Less",
        "LessEqual",
        "LogicalAnd",
        "LogicalOr",
        "Maximum",
        "Minimum",
        "Mod",
        "Mul",
        "NotEqual",
        "Pow",
        "RealDiv",
        "SquaredDifference",
        "Sub",
        "TruncateDiv",
        "TruncateMod",
    )
)
_DECLARED: Final = frozenset(
    ("Placeholder", "PlaceholderV2", "PlaceholderWithDefault", "Variable", "VariableV2")
)


def check_output_shapes(
    source: str,
    by_name: Mapping[str, graph_pb2.NodeDef],
    producer: int,
    mapped: Collection[str],
    scope: str = "",
) -> dict[str, Shape]:
    """Returns the shapes that are known where records and rules each say a part.

    Args:
        source: what to call the GraphDef in messages.
        by_name: its nodes.
        producer: the version of its writer.
        mapped: the inputs for which other tensors stand in. Where there are any, nothing is
            returned: these may have other shapes.
        scope: where the nodes are added.

    Raises:
        GraphError: records contradict the graph; all are listed.
    """
    if not any(ATTR in node.attr for node in by_name.values()):
        return {}
    check = _Check(by_name, producer, mapped, f"{scope}/" if scope else "")
    for node in by_name.values():
        check.visit(node)
    if check.faults:
        raise errors.GraphError(
            errors.list_offenders(f"{source}: records of shapes are wrong:", check.faults)
        )
    return {} if mapped else check.refined


class _Check:
    def __init__(
        self,
        by_name: Mapping[str, graph_pb2.NodeDef],
        producer: int,
        mapped: Collection[str],
        prefix: str,
    ) -> None:
        self._nodes = by_name
        self._producer = producer
        self._prefix = prefix
        self._mapped = mapped
        self._known: dict[str, Shape | None] = dict.fromkeys(mapped)
        self.refined: dict[str, Shape] = {}
        self.faults: list[str] = []

    def visit(self, node: graph_pb2.NodeDef) -> None:
        """Checks the records of a node, and keeps what they and the rules say together."""
        inferred = self._inferred(node)
        if ATTR not in node.attr:
            self._known.setdefault(f"{node.name}:0", inferred)
            return
        recorded = [values.shape_from_proto(shape) for shape in node.attr[ATTR].list.shape]
        self._check_number(node, len(recorded))
        for index, record in enumerate(recorded):
            found = inferred if index == 0 else None
            merged = _merged(found, record)
            if isinstance(merged, str):
                self.faults.append(
                    f"Node '{self._prefix}{node.name}' has an _output_shapes attribute "
                    f"inconsistent with the GraphDef for output #{index}: {merged}"
                )
                continue
            tensor_name = f"{node.name}:{index}"
            if tensor_name in self._mapped:
                continue
            self._known[tensor_name] = merged
            if merged is not None and merged != record:
                self.refined[tensor_name] = merged

    def _check_number(self, node: graph_pb2.NodeDef, found: int) -> None:
        if not op_defs.has_op(node.op):
            return
        wanted = sum(n for _, n in op_defs.output_names(op_defs.get_op_def(node.op), node))
        if found < wanted:
            self.faults.append(
                f"Node '{self._prefix}{node.name}' has {wanted} outputs but the _output_shapes "
                f"attribute specifies shapes for {found} outputs"
            )

    def _shape(self, node: graph_pb2.NodeDef, index: int) -> Shape | None:
        """Returns the shape of an input; what its own record says where it was not visited yet."""
        ref = node.input[index] if index < len(node.input) else "^"
        if ref[0] == "^":
            return None
        full = ref if ":" in ref else f"{ref}:0"
        if full in self._known:
            return self._known[full]
        name, _, output = full.partition(":")
        producer = self._nodes.get(name)
        shapes = producer.attr[ATTR].list.shape if producer and ATTR in producer.attr else ()
        return values.shape_from_proto(shapes[int(output)]) if int(output) < len(shapes) else None

    def _inferred(self, node: graph_pb2.NodeDef) -> Shape | None:
        op = node.op
        if op in _UNARY:
            return self._shape(node, 0)
        if op in _BINARY:
            x, y = self._shape(node, 0), self._shape(node, 1)
            return None if x is None or y is None else broadcast_shapes(x, y)
        if op in _DECLARED:
            return self._declared(node)
        rule = _RULES.get(op)
        return rule(self, node) if rule is not None else None

    def _declared(self, node: graph_pb2.NodeDef) -> Shape | None:
        if "shape" not in node.attr:
            return None
        shape = values.shape_from_proto(node.attr["shape"].shape)
        is_old = self._producer < _FIRST_WITH_SCALAR_PLACEHOLDERS
        return None if is_old and shape == () else shape

    def constant(self, node: graph_pb2.NodeDef) -> Shape | None:
        """Returns the shape of a Const."""
        return values.shape_from_proto(node.attr["value"].tensor.tensor_shape)

    def product(self, node: graph_pb2.NodeDef) -> Shape | None:
        """Returns the shape of a MatMul."""
        a, b = self._shape(node, 0), self._shape(node, 1)
        sides: list[Shape] = []
        for shape, attr in ((a, "transpose_a"), (b, "transpose_b")):
            if shape is None or len(shape) != 2:
                sides.append((None, None))
            else:
                sides.append(shape[::-1] if node.attr[attr].b else shape)
        return sides[0][0], sides[1][1]

    def vector_of_sizes(self, node: graph_pb2.NodeDef) -> Shape | None:
        """Returns the shape of a Shape."""
        shape = self._shape(node, 0)
        return None if shape is None else (len(shape),)


_RULES: Final[dict[str, Callable[[_Check, graph_pb2.NodeDef], Shape | None]]] = {
    "Const": _Check.constant,
    "MatMul": _Check.product,
    "Shape": _Check.vector_of_sizes,
    "Rank": lambda check, node: (),
    "Size": lambda check, node: (),
    "VarHandleOp": lambda check, node: (),
}


def _merged(one: Shape | None, other: Shape | None) -> Shape | str | None:
    """Returns what two records of one shape say together, or how they contradict each other."""
    if one is None or other is None:
        return other if one is None else one
    if len(one) != len(other):
        return f"Shapes must be equal rank, but are {len(one)} and {len(other)}"
    for axis, (a, b) in enumerate(zip(one, other, strict=True)):
        if None not in (a, b) and a != b:
            return (
                f"Dimension {axis} in both shapes must be equal, but are {a} and {b}. Shapes are "
                f"{_text(one)} and {_text(other)}."
            )
    return tuple(b if a is None else a for a, b in zip(one, other, strict=True))


def _text(shape: Shape) -> str:
    return f"[{','.join('?' if size is None else str(size) for size in shape)}]"
