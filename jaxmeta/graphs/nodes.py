"""Adding nodes: the containers that graphs and function bodies are, and the edges between nodes.

Nodes are NodeDef protos; there is no second object model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

from jaxmeta import errors, naming, op_defs, values
from jaxmeta._proto import graph_pb2

KEY_IMPL_ATTR: Final = "_jax_key_impl"
JAX_ATTR_PREFIX: Final = "_jax_"
WEAK_TYPE_ATTR: Final = "_jax_weak_type"
DIMS_ATTR: Final = "_jax_dims"  # on a placeholder: its sizes as text, where some are symbolic
UNKNOWN_DIM: Final = "?"
CONSTRAINTS_ATTR: Final = "_jax_dim_constraints"  # what holds of symbolic sizes: "b >= 8"
DIMENSION_ATTR: Final = "_jax_dimension"  # on a function's argument: which dimension's size it is


@dataclasses.dataclass(slots=True)
class Edge:
    """An output of a node inside the container that made it.

    Attributes:
        ref: how an input names it there: ``node:1`` in a graph, ``node:out:0`` in a function.
        number: its DataType number.
        shape: its static shape, or None where it was not asked for.
    """

    ref: str
    number: int
    shape: values.Shape | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class _OpLayout:
    """What adding a node needs of an OpDef, laid out once."""

    op_def: graph_pb2.OpDef
    inputs: tuple[tuple[str, str, str], ...]  # (type_attr, number_attr, type_list_attr)
    attr_kinds: dict[str, str]
    single_output: str  # the name of the only output, or empty


class _Layouts(dict[str, _OpLayout]):
    def __missing__(self, op: str) -> _OpLayout:
        layout = _lay_out(op_defs.get_op_def(op))
        self[op] = layout
        return layout


def _lay_out(op_def: graph_pb2.OpDef) -> _OpLayout:
    outputs = op_def.output_arg
    is_single = len(outputs) == 1 and not (outputs[0].number_attr or outputs[0].type_list_attr)
    return _OpLayout(
        op_def,
        tuple((a.type_attr, a.number_attr, a.type_list_attr) for a in op_def.input_arg),
        {attr.name: attr.type for attr in op_def.attr},
        outputs[0].name if is_single else "",
    )


_LAYOUTS: Final = _Layouts()


class NodeContainer:
    """A list of nodes with unique names: a graph, or the body of a function."""

    def __init__(self, library: Mapping[str, graph_pb2.FunctionDef]) -> None:
        self._library = library
        self._nodes: dict[str, graph_pb2.NodeDef] = {}
        self._names = naming.UniqueNames()

    @property
    def nodes(self) -> Mapping[str, graph_pb2.NodeDef]:
        """The nodes by name, in the order in which they were added."""
        return self._nodes

    @property
    def last_node_name(self) -> str:
        """The name of the node that was added last."""
        return next(reversed(self._nodes))

    def add_node(
        self,
        op: str,
        inputs: Sequence[Any],
        attrs: Mapping[str, Any],
        name: str | None = None,
        control_inputs: Sequence[str] = (),
    ) -> list[Edge]:
        """Adds a node and returns its outputs.

        Args:
            op: a name in TensorFlow's registry, or of a function of the library.
            inputs: an `Edge` for each input argument, a list of them for a list argument.
            attrs: the attrs that no input restates, and any ``_jax_*`` ones.
            name: the wanted name, made unique; the op's name where None. One that ends in a slash
                is the name of a scope, which the node takes as it is.
            control_inputs: names of nodes that must run before.

        Raises:
            AttrError: an attr is unknown to the op.
            GraphError: the number of inputs is not the op's.
        """
        function = self._library.get(op)
        layout = _lay_out(function.signature) if function is not None else _LAYOUTS[op]
        node = graph_pb2.NodeDef(name=self._node_name(name or op), op=op)
        self._fill_inputs(node, layout, inputs)
        for attr_name, value in attrs.items():
            kind = layout.attr_kinds.get(attr_name)
            if kind is None and not attr_name.startswith("_"):
                raise errors.AttrError(
                    f"node '{node.name}' ({op}): the op has no attr '{attr_name}', "
                    f"only {', '.join(layout.attr_kinds) or 'none'}"
                )
            values.write_attr(node.attr[attr_name], value, kind)
        if control_inputs:
            node.input.extend(f"^{control}" for control in control_inputs)
        self._nodes[node.name] = node
        numbers = op_defs.output_dtypes(layout.op_def, node)
        if layout.single_output:
            return [Edge(self._output_ref(node.name, layout.single_output, 0, 0), numbers[0])]
        return self._outputs(node, layout, numbers)

    def _node_name(self, wanted: str) -> str:
        if not wanted.endswith("/"):
            return self._names.unique(wanted)
        name = wanted[:-1]
        if name in self._nodes:
            raise errors.GraphError(f"the scope {name!r} has a node of its name already")
        self._names.mark(name)
        return name

    def _fill_inputs(
        self, node: graph_pb2.NodeDef, layout: _OpLayout, inputs: Sequence[Any]
    ) -> None:
        if len(inputs) != len(layout.inputs):
            raise errors.GraphError(
                f"node '{node.name}' ({node.op}) takes {len(layout.inputs)} inputs, "
                f"it was given {len(inputs)}"
            )
        add, attr = node.input.append, node.attr
        for edge, (type_attr, number_attr, type_list_attr) in zip(
            inputs, layout.inputs, strict=True
        ):
            if type(edge) is Edge:
                add(edge.ref)
                if type_attr:
                    attr[type_attr].type = edge.number  # type: ignore[assignment]
                continue
            node.input.extend(item.ref for item in edge)
            if type_list_attr and type_list_attr not in attr:  # two inputs may share it
                attr[type_list_attr].list.SetInParent()
                attr[type_list_attr].list.type.extend(item.number for item in edge)
            if number_attr:
                attr[number_attr].i = len(edge)
            if type_attr and edge:
                attr[type_attr].type = edge[0].number

    def _outputs(
        self, node: graph_pb2.NodeDef, layout: _OpLayout, numbers: Sequence[int]
    ) -> list[Edge]:
        edges: list[Edge] = []
        for arg_name, count in op_defs.output_names(layout.op_def, node):
            for offset in range(count):
                index = len(edges)
                ref = self._output_ref(node.name, arg_name, offset, index)
                edges.append(Edge(ref, numbers[index]))
        return edges

    def _output_ref(self, node: str, argument: str, offset: int, index: int) -> str:
        raise NotImplementedError


class FunctionBody(NodeContainer):
    """The nodes of a library function while it is being built."""

    def __init__(self, name: str, library: Mapping[str, graph_pb2.FunctionDef]) -> None:
        super().__init__(library)
        self.function = graph_pb2.FunctionDef()
        self.function.signature.name = name

    def add_argument(
        self,
        name: str,
        number: int,
        shape: values.Shape | None,
        key_impl: str = "",
        dimension: str = "",
    ) -> Edge:
        """Adds an argument and returns it as an edge."""
        name = self._names.unique(naming.clean_name(name.replace("/", "_")) or "arg")
        argument = self.function.signature.input_arg.add(name=name)
        argument.type = number  # type: ignore[assignment]
        for attr, value in ((KEY_IMPL_ATTR, key_impl), (DIMENSION_ATTR, dimension)):
            if value:
                index = len(self.function.signature.input_arg) - 1
                values.write_attr(self.function.arg_attr[index].attr[attr], value)
        return Edge(name, number, shape)

    def finish(self, outputs: Sequence[Edge]) -> graph_pb2.FunctionDef:
        """Returns the FunctionDef whose outputs are the given edges."""
        function = self.function
        for index, edge in enumerate(outputs):
            name = f"output_{index}"
            argument = function.signature.output_arg.add(name=name)
            argument.type = edge.number  # type: ignore[assignment]
            function.ret[name] = edge.ref
        function.node_def.extend(self._nodes.values())
        return function

    def _output_ref(self, node: str, argument: str, offset: int, index: int) -> str:
        return f"{node}:{argument}:{offset}"


def recorded_dims(node: graph_pb2.NodeDef) -> tuple[str, ...] | None:
    """Returns the sizes of a placeholder as text where it names some; "?" for those unknown."""
    if DIMS_ATTR not in node.attr:
        return None
    return tuple(size.decode() for size in node.attr[DIMS_ATTR].list.s)


def recorded_shape(node: graph_pb2.NodeDef, index: int) -> values.Shape | None:
    """Returns the static shape of an output where the node records it."""
    attr = node.attr
    if "_output_shapes" in attr and index < len(attr["_output_shapes"].list.shape):
        return values.shape_from_proto(attr["_output_shapes"].list.shape[index])
    if "shape" in attr and attr["shape"].HasField("shape"):
        return values.shape_from_proto(attr["shape"].shape)
    return None
