"""Finding what a graph holds: nodes, operations and tensors by name, and what is known of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jaxmeta import errors, naming, op_defs, values
from jaxmeta._proto import graph_pb2
from jaxmeta.graphs import nodes
from jaxmeta.graphs.handles import Operation, Tensor
from jaxmeta.graphs.nodes import NodeContainer
from jaxmeta.graphs.variable_handles import Variable
from jaxmeta.tracing import dimensions


class ElementContainer(NodeContainer):
    """A container whose nodes and tensors are found by name."""

    def __init__(self, library: Mapping[str, graph_pb2.FunctionDef]) -> None:
        super().__init__(library)
        self._shapes: dict[str, values.Shape | None] = {}
        self._sizes: dict[str, tuple[str, ...]] = {}
        self._dimensions: dict[tuple[str, int], str] = {}
        self._dimension_constraints: dict[str, None] = {}
        self._consumers: dict[str, list[str]] = {}
        self._num_indexed = 0

    def node(self, name: str) -> graph_pb2.NodeDef:
        """Returns a node by name.

        Raises:
            MissingNameError: there is none.
        """
        node = self._nodes.get(name)
        if node is None:
            raise errors.MissingNameError(f"the graph has no node named {name!r}")
        return node

    def output_numbers(self, name: str) -> list[int]:
        """Returns the DataType number of each output of a node."""
        node = self.node(name)
        function = self._library.get(node.op)
        op_def = function.signature if function is not None else op_defs.get_op_def(node.op)
        return op_defs.output_dtypes(op_def, node)

    def record_shape(self, tensor_name: str, shape: values.Shape | None) -> None:
        """Records the shape of a tensor, ``node:0``, which no attr of its node says.

        Of a symbolic size the static shape says nothing; `recorded_sizes` has it.
        """
        if shape is not None and dimensions.is_symbolic(list(shape)):
            self._sizes[tensor_name] = tuple(map(str, shape))
            shape = tuple(None if dimensions.is_symbolic(size) else size for size in shape)
        self._shapes[tensor_name] = shape

    def record_sizes(self, tensor_name: str, sizes: tuple[str, ...]) -> None:
        """Records the sizes of a tensor as text: numbers, and expressions of dimensions."""
        self._sizes[tensor_name] = sizes

    def forget_sizes(self, tensor_name: str) -> None:
        """Makes a tensor's sizes follow from its static shape again."""
        self._sizes.pop(tensor_name, None)

    @property
    def recorded_sizes(self) -> Mapping[str, tuple[str, ...]]:
        """The sizes, as text, of tensors that have symbolic ones, by the tensors' names."""
        return self._sizes

    @property
    def dimension_constraints(self) -> tuple[str, ...]:
        """What is said of the named dimensions of tensors: ``b >= 8``."""
        return tuple(self._dimension_constraints)

    def add_dimension_constraint(self, constraint: str) -> None:
        """Records what holds of named dimensions."""
        self._dimension_constraints[constraint] = None

    def dimension_name(self, tensor_name: str, axis: int) -> str:
        """Returns the name of the size of an axis of which nothing else is known.

        It is the same whenever it is asked for: ``dim0_of_images``.
        """
        name = self._dimensions.get((tensor_name, axis))
        if name is None:
            stem = re.sub(r"\W", "_", tensor_name.removesuffix(":0"))
            taken = set(self._dimensions.values())
            name = wanted = f"dim{axis}_of_{stem}"
            while name in taken:
                name = f"{wanted}_{len(taken)}"
            self._dimensions[tensor_name, axis] = name
        return name

    @property
    def recorded_shapes(self) -> Mapping[str, values.Shape | None]:
        """The shapes that were recorded, by the tensors' names."""
        return self._shapes

    def output_shape(self, name: str, index: int) -> values.Shape | None:
        """Returns the static shape of an output, or None."""
        return self.recorded_shape(name, index)

    def recorded_shape(self, name: str, index: int) -> values.Shape | None:
        """Returns the static shape of an output where the graph records it."""
        known = self._shapes.get(f"{name}:{index}")
        if known is not None:
            return known
        return nodes.recorded_shape(self.node(name), index)

    def node_attr(self, name: str, attr_name: str) -> Any:
        """Returns the value of a node's attr, or the default of its op.

        Raises:
            AttrError: the op has no such attr.
        """
        node = self.node(name)
        if attr_name in node.attr:
            return values.attr_from_proto(node.attr[attr_name])
        if op_defs.has_op(node.op):
            default = op_defs.attr_default(op_defs.get_op_def(node.op), attr_name)
            if default is not None:
                return values.attr_from_proto(default)
        raise errors.AttrError(f"node {name!r} ({node.op}) has no attr {attr_name!r}")

    def consumer_names(self, tensor_name: str) -> list[str]:
        """Returns the names of the nodes that take a tensor, ``node:0``, as an input."""
        known = list(self._nodes.values())
        for node in known[self._num_indexed :]:
            for ref in dict.fromkeys(node.input):
                if ref[0] != "^":
                    full = ref if ":" in ref else f"{ref}:0"
                    self._consumers.setdefault(full, []).append(node.name)
        self._num_indexed = len(known)
        return list(self._consumers.get(tensor_name, ()))

    # --- handles

    def get_operations(self) -> list[Operation]:
        """Returns the operations, in the order in which they were added."""
        return [Operation(self, name) for name in self._nodes]

    def get_operation_by_name(self, name: str) -> Operation:
        """Returns an operation by its name.

        Raises:
            MissingNameError: there is none of that name.
            GraphError: it is the name of a tensor.
            GraphTypeError: it is not a string.
        """
        _check_is_string(name, "operation")
        if ":" in name:
            raise errors.GraphError(f"{name!r} is a tensor's name; an operation's has no ':'")
        return Operation(self, self.node(name).name)

    def get_tensor_by_name(self, name: str) -> Tensor:
        """Returns a tensor by its name, ``node:0``.

        Raises:
            MissingNameError: there is no such node or output.
            GraphError: the name has no ``:index``.
            GraphTypeError: it is not a string.
        """
        _check_is_string(name, "tensor")
        parsed = naming.parse_tensor_name(name)
        if ":" not in name or parsed.argument is not None:
            raise errors.GraphError(
                f"{name!r} is not a tensor's name; these end in ':0', ':1', ..."
            )
        count = len(self.output_numbers(parsed.node))
        if not 0 <= parsed.position < count:
            raise errors.MissingNameError(f"{name!r}: the operation has {count} outputs")
        return Tensor(self, parsed.node, parsed.position)

    def as_graph_element(
        self, obj: Any, allow_tensor: bool = True, allow_operation: bool = True
    ) -> Tensor | Operation:
        """Returns the tensor or operation that a handle or a name stands for.

        A variable stands for the tensor that reads it.

        Raises:
            MissingNameError: there is none of that name.
            GraphError: it belongs to another graph, or the name is malformed.
            GraphTypeError: it is neither a handle nor a name, or of a kind that is not allowed.
        """
        if not (allow_tensor or allow_operation):
            raise errors.GraphError("allow_tensor and allow_operation cannot both be False")
        found = self._element(obj, allow_tensor=allow_tensor)
        allowed = allow_tensor if isinstance(found, Tensor) else allow_operation
        if not allowed:
            wanted = "a tensor" if allow_tensor else "an operation"
            error = errors.GraphError if isinstance(obj, str) else errors.GraphTypeError
            raise error(f"{obj!r} is not {wanted}")
        return found

    def _element(self, obj: Any, *, allow_tensor: bool) -> Tensor | Operation:
        if isinstance(obj, str):
            if ":" in obj and allow_tensor:
                return self.get_tensor_by_name(obj)
            return self.get_operation_by_name(obj)
        if not isinstance(obj, (Tensor, Operation, Variable)):
            raise errors.GraphTypeError(
                f"{obj!r} ({type(obj).__name__}) is neither a tensor nor an operation, nor a name"
            )
        owner: object = obj.graph
        if owner is not self:
            raise errors.GraphError(f"{obj!r} is not an element of this graph")
        if isinstance(obj, Variable):
            return self.get_tensor_by_name(str(obj.snapshot_name))
        found: Tensor | Operation = obj
        return found


def _check_is_string(name: Any, what: str) -> None:
    if not isinstance(name, str):
        raise errors.GraphTypeError(
            f"the name of {'an' if what[0] in 'aeio' else 'a'} {what} is a string, not "
            f"{name!r} ({type(name).__name__})"
        )
