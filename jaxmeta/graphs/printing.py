"""Graphs as text and HTML that a person can read: nodes as assignments, functions as functions.

::

    x: float32[4,3] = Placeholder()
    w: resource = VarHandleOp(dtype=float32, shape=[3,2])
    predict: float32 = PartitionedCall(w/Read/ReadVariableOp, x, f=@predict)

    function predict(v_w: float32, x: float32) -> float32:
      MatMul: float32 = MatMul(x, v_w)
      return MatMul

Small constants stand where they are used. What is not shown, unless asked for: attrs that the
inputs or the op's defaults say already.
"""

from __future__ import annotations

import collections
import html
import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from google.protobuf import message

from jaxmeta import dtypes, errors, op_defs, trees, values
from jaxmeta._proto import graph_pb2, meta_graph_pb2, struct_pb2
from jaxmeta.graphs import graph, nodes

_INLINE_ELEMENTS: Final = 8
_SHOWN_ELEMENTS: Final = 6
_SHOWN_CHARACTERS: Final = 60
_HIDDEN_ATTRS: Final = frozenset({"_output_shapes"})
_HTML_ROWS: Final = 200
_HTML_LINES: Final = 2000


def graph_def_to_text(
    graph_def: graph_pb2.GraphDef,
    *,
    scope: str = "",
    functions: bool = True,
    defaults: bool = False,
    inline_constants: bool = True,
) -> str:
    """Returns the nodes of a graph as assignments, one a line, then its functions.

    The graph may be one that cannot run, or whose ops are unknown.

    Args:
        graph_def: the graph.
        scope: shows only the nodes and functions whose names begin with it.
        functions: whether to show the function library.
        defaults: whether to show attrs that have their op's default.
        inline_constants: whether constants of up to eight elements stand in the place of their
            names, and have no line of their own.
    """
    library = {function.signature.name: function for function in graph_def.library.function}
    printer = Printer(library, defaults=defaults, inlines=inline_constants)
    lines = list(printer.node_lines(n for n in graph_def.node if n.name.startswith(scope)))
    blocks = ["\n".join(lines)] if lines else []
    if functions:
        blocks += [
            "\n".join(printer.function_lines(function))
            for name, function in library.items()
            if name.startswith(scope)
        ]
    return "\n\n".join(blocks) + ("\n" if blocks else "")


class Body:
    """The nodes of one graph or function: which are shown in place, and how inputs are named."""

    def __init__(self, printer: Printer, node_defs: Iterable[graph_pb2.NodeDef]) -> None:
        self._printer = printer
        self._nodes = {node.name: node for node in node_defs}
        self.literals = self._small_constants() if printer.inlines else {}

    def _small_constants(self) -> dict[str, str]:
        used = {ref.split(":", 1)[0] for node in self._nodes.values() for ref in node.input}
        return {
            name: literal
            for name, node in self._nodes.items()
            # A constant that nothing here uses would not be seen at all.
            if node.op == "Const" and name in used and (literal := _small_literal(node))
        }

    def shown(self) -> Iterator[graph_pb2.NodeDef]:
        """Yields the nodes that have a line of their own."""
        return (node for name, node in self._nodes.items() if name not in self.literals)

    def input(self, ref: str) -> str:
        """Returns how an input is shown: a literal, ``node``, or ``node:1``."""
        name, *rest = ref.split(":")
        if name in self.literals:
            return self.literals[name]
        if len(rest) == 2:
            node = self._nodes.get(name)
            op_def = self._printer.op_def(node) if node is not None else None
            if node is None or op_def is None:
                return ref
            rest = [str(op_defs.output_index(op_def, node, rest[0], int(rest[1])))]
        return name if rest in ([], ["0"]) else f"{name}:{rest[0]}"


class Printer:
    """Lays out nodes and functions of one library."""

    def __init__(
        self,
        library: Mapping[str, graph_pb2.FunctionDef],
        *,
        defaults: bool = False,
        inlines: bool = True,
    ) -> None:
        self._library = library
        self._defaults = defaults
        self.inlines = inlines

    def node_lines(self, node_defs: Iterable[graph_pb2.NodeDef]) -> Iterator[str]:
        """Yields a line for each node of a graph that is not shown where it is used."""
        body = Body(self, node_defs)
        for node in body.shown():
            yield self.node_line(node, body)

    def function_lines(self, function: graph_pb2.FunctionDef) -> Iterator[str]:
        """Yields the lines of a library function."""
        signature = function.signature
        arguments = ", ".join(f"{a.name}: {_arg_type(a)}" for a in signature.input_arg)
        results = ", ".join(_arg_type(a) for a in signature.output_arg)
        if len(signature.output_arg) != 1:
            results = f"({results})"
        yield f"function {signature.name}({arguments}) -> {results}:"
        body = Body(self, function.node_def)
        for node in body.shown():
            yield f"  {self.node_line(node, body)}"
        returned = (body.input(function.ret[a.name]) for a in signature.output_arg)
        yield f"  return {', '.join(returned)}".rstrip()

    def node_line(self, node: graph_pb2.NodeDef, body: Body) -> str:
        """Returns a node of a body as an assignment."""
        data = [body.input(ref) for ref in node.input if ref[0] != "^"]
        operands = ", ".join([*data, *self._attrs(node)])
        op = f"@{node.op}" if node.op in self._library else node.op
        outputs = self._output_types(node)
        line = f"{node.name}{f': {outputs}' if outputs else ''} = {op}({operands})"
        if controls := [ref[1:] for ref in node.input if ref[0] == "^"]:
            line += f" after {', '.join(controls)}"
        return line + (f" on {node.device}" if node.device else "")

    def _output_types(self, node: graph_pb2.NodeDef) -> str:
        op_def = self.op_def(node)
        if op_def is None:
            return "?"
        try:
            return ", ".join(
                format_type(number, _shown_shape(node, index, number))
                for index, number in enumerate(op_defs.output_dtypes(op_def, node))
            )
        except errors.JaxmetaError:
            return "?"  # a graph that is wrong is looked at all the same

    def op_def(self, node: graph_pb2.NodeDef) -> graph_pb2.OpDef | None:
        """Returns what says the inputs, outputs and attrs of a node; None for an unknown op."""
        function = self._library.get(node.op)
        if function is not None:
            return function.signature
        return op_defs.get_op_def(node.op) if op_defs.has_op(node.op) else None

    def _attrs(self, node: graph_pb2.NodeDef) -> Iterator[str]:
        op_def = self.op_def(node)
        said = _said_already(node, op_def) if op_def is not None else _HIDDEN_ATTRS
        for name in sorted(node.attr):
            proto = node.attr[name]
            if name in said or (op_def is not None and self._is_default(op_def, name, proto)):
                continue
            yield f"{name}={format_attr(proto)}"

    def _is_default(self, op_def: graph_pb2.OpDef, name: str, proto: graph_pb2.AttrValue) -> bool:
        if self._defaults or all(attr.name != name for attr in op_def.attr):
            return False
        return op_defs.attr_default(op_def, name) == proto


def _shown_shape(node: graph_pb2.NodeDef, index: int, number: int) -> values.Shape | None:
    # A handle has the shape of its variable as an attr; it has none itself.
    return None if number == dtypes.RESOURCE else nodes.recorded_shape(node, index)


def _said_already(node: graph_pb2.NodeDef, op_def: graph_pb2.OpDef) -> set[str]:
    """Returns the attrs that the line says elsewhere: types of inputs and outputs, names."""
    said = {*_HIDDEN_ATTRS, *op_defs.restated_attrs(op_def)}
    has_shape_of_its_own = "_output_shapes" not in node.attr
    for argument in op_def.output_arg:
        said |= {argument.type_attr, argument.type_list_attr}
        if has_shape_of_its_own and argument.type != dtypes.RESOURCE:
            said.add("shape")
    # Only `in` leaves a node as it is; looking an attr up adds it.
    if "shared_name" in node.attr and node.attr["shared_name"].s == node.name.encode():
        said.add("shared_name")
    return said


def _arg_type(argument: graph_pb2.OpDef.ArgDef) -> str:
    if argument.type:
        return dtypes.dtype_name(argument.type)
    return argument.type_attr or argument.type_list_attr or "?"


def format_type(number: int, shape: values.Shape | None) -> str:
    """Returns a dtype and shape as JAX spells them.

    >>> format_type(1, (None, 28)), format_type(3, None)
    ('float32[?,28]', 'int32')
    """
    name = dtypes.dtype_name(number)
    if shape is None:
        return name
    return f"{name}[{','.join('?' if size is None else str(size) for size in shape)}]"


def format_attr(proto: graph_pb2.AttrValue) -> str:
    """Returns an attr's value in one line, long ones cut."""
    kind = proto.WhichOneof("value")
    if kind == "tensor":
        return _format_tensor(proto.tensor)
    if kind == "type":
        return dtypes.dtype_name(proto.type)
    if kind == "func":
        return f"@{proto.func.name}"
    if kind == "shape":
        return _format_shape(proto.shape)
    if kind == "list":
        return _format_list(proto.list)
    if kind == "s":
        return _format_bytes(proto.s)
    return "?" if kind is None else str(getattr(proto, kind))


def _format_list(proto: graph_pb2.AttrValue.ListValue) -> str:
    items = [
        *map(_format_bytes, proto.s),
        *map(str, proto.i),
        *(f"{value:g}" for value in proto.f),
        *map(str, proto.b),
        *map(dtypes.dtype_name, proto.type),
        *map(_format_shape, proto.shape),
        *map(_format_tensor, proto.tensor),
        *(f"@{func.name}" for func in proto.func),
    ]
    return _cut(f"[{', '.join(items)}]")


def _format_shape(proto: graph_pb2.TensorShapeProto) -> str:
    if proto.unknown_rank:
        return "?"
    return f"[{','.join('?' if dim.size < 0 else str(dim.size) for dim in proto.dim)}]"


def _format_bytes(content: bytes) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    return _cut(repr(text)) if text.isprintable() else f"<{len(content)} bytes>"


def _format_tensor(proto: graph_pb2.TensorProto) -> str:
    shape = values.shape_from_proto(proto.tensor_shape) or ()
    described = format_type(proto.dtype, shape)
    size = math.prod(count or 0 for count in shape)
    if size > _SHOWN_ELEMENTS and proto.tensor_content:
        return f"{described}(...)"
    try:
        array = values.tensor_from_proto(proto)
    except errors.JaxmetaError:
        return f"{described}(malformed)"
    if array.size and (array == array.flat[0]).all():
        return f"{described}({_format_array(array.flat[0])})"
    return f"{described}({_cut(_format_array(array))})"


def _small_literal(node: graph_pb2.NodeDef) -> str:
    """Returns a small constant as a literal, or an empty string."""
    if "value" not in node.attr:
        return ""
    proto = node.attr["value"].tensor
    shape = values.shape_from_proto(proto.tensor_shape) or ()
    if math.prod(count or 0 for count in shape) > _INLINE_ELEMENTS:
        return ""
    try:
        literal = _format_array(values.tensor_from_proto(proto))
    except errors.JaxmetaError:
        return ""
    return literal if len(literal) <= _SHOWN_CHARACTERS else ""


def _format_array(array: Any) -> str:
    plain = np.asarray(array)
    if plain.dtype == object:
        return repr(np.vectorize(_plain_text, otypes=[object])(plain).tolist())
    text = np.array2string(
        plain, separator=", ", max_line_width=1 << 20, threshold=_INLINE_ELEMENTS
    )
    return " ".join(text.split())


def _plain_text(item: Any) -> str:
    return item.decode(errors="replace") if isinstance(item, bytes) else str(item)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 4]} ..."


# --- collections -------------------------------------------------------------------------------


def describe_collection(
    proto: meta_graph_pb2.CollectionDef, node_names: Container[str]
) -> tuple[str, list[Any]]:
    """Returns the kind of a collection and its items as names, numbers, strings and trees."""
    kind = proto.WhichOneof("kind") or "empty"
    items: list[Any] = list(getattr(proto, kind).value) if kind != "empty" else []
    if kind == "any_list":
        items = [_any_item(item) for item in items]
    elif kind == "bytes_list":
        names = [_variable_name(item, node_names) for item in items]
        kind = "variable" if all(names) else kind
        items = names if all(names) else [_text(item) for item in items]
    return kind.removesuffix("_list"), items


def _variable_name(content: bytes, node_names: Container[str]) -> str:
    """Returns the variable that an item of a collection stands for; empty where it does not."""
    try:
        name = meta_graph_pb2.VariableDef.FromString(content).variable_name.split(":")[0]
    except message.DecodeError:
        return ""
    return name if name in node_names else ""


def _text(content: bytes) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    return text if text.isprintable() else f"<{len(content)} bytes>"


def _any_item(item: Any) -> Any:
    """Returns a tree of numbers and strings as such, and the type and size of anything else."""
    kind = item.type_url.rsplit("/", 1)[-1]
    if kind == "tensorflow.StructuredValue":
        try:
            proto = struct_pb2.StructuredValue.FromString(item.value)
            return trees.structure_from_proto(proto)
        except (message.DecodeError, errors.FormatError):
            pass
    return f"<{kind}, {len(item.value)} bytes>"


# --- HTML, for notebooks -----------------------------------------------------------------------


def graph_to_html(target: graph.GraphBuilder) -> str:
    """Returns a graph for a notebook: counts, then tables that open when they are clicked.

    All text from the graph is escaped, and there is no script.
    """
    parts = [f"<strong>jaxmeta.Graph</strong>: {html.escape(_headline(target))}"]
    if target.signatures:
        rows = [
            (name, signature.function_name, signature.train_op)
            for name, signature in target.signatures.items()
        ]
        parts.append(_details("Signatures", _table(("name", "function", "train op"), rows)))
    if target.variable_names:
        found = [target.variable(name) for name in target.variable_names]
        rows = [
            (v.op_name, format_type(dtypes.dtype_to_number(v.dtype), v.shape), _trains(v))
            for v in found
        ]
        parts.append(_details("Variables", _table(("name", "type", ""), rows)))
    counts = collections.Counter(node.op for node in target.nodes.values())
    for function in target.functions.values():
        counts.update(node.op for node in function.node_def)
    rows = [(op, str(count), "") for op, count in counts.most_common()]
    parts.append(_details("Ops", _table(("op", "nodes", ""), rows)))
    lines = graph_def_to_text(target.as_graph_def()).splitlines()
    more = len(lines) - _HTML_LINES
    shown = "\n".join(lines[:_HTML_LINES]) + (f"\n... and {more} more lines" if more > 0 else "")
    parts.append(_details("Nodes", f"<pre>{html.escape(shown)}</pre>"))
    return f"<div>{''.join(parts)}</div>"


def _headline(target: graph.GraphBuilder) -> str:
    inside = sum(len(function.node_def) for function in target.functions.values())
    return (
        f"{len(target.nodes):,} nodes, {len(target.functions):,} functions with {inside:,} nodes, "
        f"{len(target.variable_names):,} variables, {len(target.signatures)} signatures"
    )


def _trains(variable: graph.Variable) -> str:
    return "trainable" if variable.trainable else ""


def _details(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{html.escape(title)}</th>" for title in header)
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows[:_HTML_ROWS]
    ]
    if len(rows) > _HTML_ROWS:
        lines.append(f"<tr><td>... and {len(rows) - _HTML_ROWS} more</td></tr>")
    return f"<table><tr>{cells}</tr>{''.join(lines)}</table>"
