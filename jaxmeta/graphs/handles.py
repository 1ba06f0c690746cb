"""Handles on what a graph holds: tensors and operations.

Nodes are NodeDef protos; a handle is a graph and a name. What a handle does, such as adding two
tensors, its graph does: handles come first in the order of the modules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from jaxmeta import dtypes, errors, naming, values
from jaxmeta._proto import graph_pb2
from jaxmeta.graphs import default_sessions


class Operators:
    """Python's operators, which add nodes to the graph of their operands."""

    __slots__ = ()
    __array_priority__ = 100  # numpy arrays leave operators to the tensor

    def _operate(self, operator: str, *operands: Any) -> Any:
        raise NotImplementedError

    def __add__(self, other: Any) -> Tensor:
        return self._operate("add", self, other)  # type: ignore[no-any-return]

    def __radd__(self, other: Any) -> Tensor:
        return self._operate("add", other, self)  # type: ignore[no-any-return]

    def __sub__(self, other: Any) -> Tensor:
        return self._operate("sub", self, other)  # type: ignore[no-any-return]

    def __rsub__(self, other: Any) -> Tensor:
        return self._operate("sub", other, self)  # type: ignore[no-any-return]

    def __mul__(self, other: Any) -> Tensor:
        return self._operate("mul", self, other)  # type: ignore[no-any-return]

    def __rmul__(self, other: Any) -> Tensor:
        return self._operate("mul", other, self)  # type: ignore[no-any-return]

    def __truediv__(self, other: Any) -> Tensor:
        return self._operate("truediv", self, other)  # type: ignore[no-any-return]

    def __rtruediv__(self, other: Any) -> Tensor:
        return self._operate("truediv", other, self)  # type: ignore[no-any-return]

    def __floordiv__(self, other: Any) -> Tensor:
        return self._operate("floordiv", self, other)  # type: ignore[no-any-return]

    def __rfloordiv__(self, other: Any) -> Tensor:
        return self._operate("floordiv", other, self)  # type: ignore[no-any-return]

    def __mod__(self, other: Any) -> Tensor:
        return self._operate("mod", self, other)  # type: ignore[no-any-return]

    def __rmod__(self, other: Any) -> Tensor:
        return self._operate("mod", other, self)  # type: ignore[no-any-return]

    def __pow__(self, other: Any) -> Tensor:
        return self._operate("pow", self, other)  # type: ignore[no-any-return]

    def __rpow__(self, other: Any) -> Tensor:
        return self._operate("pow", other, self)  # type: ignore[no-any-return]

    def __matmul__(self, other: Any) -> Tensor:
        return self._operate("matmul", self, other)  # type: ignore[no-any-return]

    def __rmatmul__(self, other: Any) -> Tensor:
        return self._operate("matmul", other, self)  # type: ignore[no-any-return]

    def __and__(self, other: Any) -> Tensor:
        return self._operate("and", self, other)  # type: ignore[no-any-return]

    def __rand__(self, other: Any) -> Tensor:
        return self._operate("and", other, self)  # type: ignore[no-any-return]

    def __or__(self, other: Any) -> Tensor:
        return self._operate("or", self, other)  # type: ignore[no-any-return]

    def __ror__(self, other: Any) -> Tensor:
        return self._operate("or", other, self)  # type: ignore[no-any-return]

    def __xor__(self, other: Any) -> Tensor:
        return self._operate("xor", self, other)  # type: ignore[no-any-return]

    def __rxor__(self, other: Any) -> Tensor:
        return self._operate("xor", other, self)  # type: ignore[no-any-return]

    def __lt__(self, other: Any) -> Tensor:
        return self._operate("less", self, other)  # type: ignore[no-any-return]

    def __le__(self, other: Any) -> Tensor:
        return self._operate("less_equal", self, other)  # type: ignore[no-any-return]

    def __gt__(self, other: Any) -> Tensor:
        return self._operate("greater", self, other)  # type: ignore[no-any-return]

    def __ge__(self, other: Any) -> Tensor:
        return self._operate("greater_equal", self, other)  # type: ignore[no-any-return]

    def __neg__(self) -> Tensor:
        return self._operate("neg", self)  # type: ignore[no-any-return]

    def __abs__(self) -> Tensor:
        return self._operate("abs", self)  # type: ignore[no-any-return]

    def __invert__(self) -> Tensor:
        return self._operate("invert", self)  # type: ignore[no-any-return]

    def __getitem__(self, index: Any) -> Tensor:
        return self._operate("getitem", self, index)  # type: ignore[no-any-return]

    def __bool__(self) -> NoReturn:
        raise errors.GraphTypeError(
            f"{self} has no truth value while the graph is built; compare it with 'is not None', "
            "or use jax.lax.cond in a function given to call()"
        )

    def __iter__(self) -> Iterator[Any]:
        raise errors.GraphTypeError(
            f"{self} cannot be iterated over while the graph is built; index it, or use "
            "jax.lax.scan in a function given to call()"
        )

    def __len__(self) -> NoReturn:
        raise errors.GraphTypeError(f"len({self}) is not known while the graph is built")


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor(Operators):
    """A handle on one output of a node of a graph.

    Operators add nodes, named as TensorFlow names them; ``==`` compares handles, as in
    TensorFlow 1, so that a tensor can be the key of a feed.

    Example:
        >>> import jaxmeta as jm
        >>> x = jm.placeholder("float32", [None, 3], name="x")
        >>> (2.0 * x[:, 0] + 1.0).name, x.shape
        ('add:0', (None, 3))
    """

    graph: Any
    node_name: str
    index: int

    def _operate(self, operator: str, *operands: Any) -> Any:
        return self.graph.operate(operator, *operands)

    @property
    def name(self) -> str:
        """The tensor's name: ``node:0``."""
        return f"{self.node_name}:{self.index}"

    @property
    def op(self) -> Operation:
        """The operation that produces it."""
        return Operation(self.graph, self.node_name)

    @property
    def value_index(self) -> int:
        """Which output of its operation it is."""
        return self.index

    @property
    def number(self) -> int:
        """Its DataType number."""
        return int(self.graph.output_numbers(self.node_name)[self.index])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its dtype."""
        return dtypes.dtype_from_number(self.number)

    @property
    def shape(self) -> values.Shape | None:
        """Its static shape, None for sizes that are not known; None where not even the rank is."""
        shape: values.Shape | None = self.graph.output_shape(self.node_name, self.index)
        return shape

    def get_shape(self) -> values.Shape | None:
        """Returns `shape`."""
        return self.shape

    def set_shape(self, shape: Any) -> None:
        """Says what else is known of its shape, as TensorFlow's method of that name does.

        Args:
            shape: with None for sizes of which nothing more is known, and strings for such that
                have names.

        Raises:
            GraphError: it is not compatible with what is known already.
        """
        self.graph.set_tensor_shape(self, shape)

    def consumers(self) -> list[Operation]:
        """Returns the operations that take it as an input."""
        return [Operation(self.graph, name) for name in self.graph.consumer_names(self.name)]

    def eval(self, feed_dict: Mapping[Any, Any] | None = None, session: Any = None) -> Any:
        """Returns its value in a session, the default session where None."""
        return default_sessions.session_for(self.graph, session, "eval()").run(self, feed_dict)

    def __repr__(self) -> str:
        return f"<jaxmeta.Tensor '{self.name}' shape={self.shape} dtype={self.dtype}>"


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """A handle on a node of a graph."""

    graph: Any
    name: str

    @property
    def node_def(self) -> graph_pb2.NodeDef:
        """The node."""
        node: graph_pb2.NodeDef = self.graph.nodes[self.name]
        return node

    @property
    def type(self) -> str:
        """The name of its op."""
        return self.node_def.op

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The tensors that it takes."""
        refs = [naming.parse_tensor_name(ref) for ref in self.node_def.input]
        return tuple(Tensor(self.graph, r.node, r.position) for r in refs if not r.is_control)

    @property
    def control_inputs(self) -> list[Operation]:
        """The operations that run before it without giving it a value."""
        return [Operation(self.graph, ref[1:]) for ref in self.node_def.input if ref[0] == "^"]

    @property
    def outputs(self) -> list[Tensor]:
        """Its outputs."""
        count = len(self.graph.output_numbers(self.name))
        return [Tensor(self.graph, self.name, index) for index in range(count)]

    def get_attr(self, name: str) -> Any:
        """Returns the value of an attr; its default where the node does not have it.

        Raises:
            AttrError: the op has no such attr.
        """
        return self.graph.node_attr(self.name, name)

    def run(self, feed_dict: Mapping[Any, Any] | None = None, session: Any = None) -> None:
        """Runs it in a session, the default session where None."""
        default_sessions.session_for(self.graph, session, "run()").run(self, feed_dict)

    def __repr__(self) -> str:
        return f"<jaxmeta.Operation '{self.name}' type={self.type}>"
