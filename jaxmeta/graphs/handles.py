"""Handles on what a graph holds: tensors, operations and variables.

Nodes are NodeDef protos; a handle is a graph and a name. What a handle does, such as adding two
tensors, its graph does: handles come first in the order of the modules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from jaxmeta import dtypes, errors, naming, shardings, values
from jaxmeta._proto import graph_pb2, meta_graph_pb2
from jaxmeta.graphs import default_graphs, default_sessions


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


@dataclasses.dataclass(frozen=True, slots=True)
class SaveSliceInfo:
    """Which part of a larger, partitioned variable a variable holds.

    Attributes:
        full_name: the name of the whole in a checkpoint.
        full_shape: its shape.
        var_offset: where the part begins, in each dimension.
        var_shape: the shape of the part.
    """

    full_name: str
    full_shape: tuple[int, ...]
    var_offset: tuple[int, ...]
    var_shape: tuple[int, ...]

    @property
    def spec(self) -> str:
        """The part as TensorFlow's Save ops spell it: ``"10 7 4,3:0,7"``."""
        sizes = " ".join(map(str, self.full_shape))
        parts = (f"{o},{n}" for o, n in zip(self.var_offset, self.var_shape, strict=True))
        return f"{sizes} {':'.join(parts)}"


class Variable(Operators):
    """A variable of a graph: added by this constructor, or found in an imported graph.

    Args:
        initial_value: an array, a tensor, or a function that returns one. A function of one
            argument is given ``key``.
        trainable: whether optimizers should change it.
        collections: to which it is added, beside the trainable ones; the global variables where
            None.
        validate_shape: TensorFlow's; a shape that is not known is refused in any case.
        caching_device: TensorFlow's; XLA decides where what was read is kept.
        name: made unique; "Variable" where None.
        variable_def: a VariableDef, in place of all else: the variable of the default graph that
            it describes.
        dtype: to which the initial value is converted.
        key: a typed PRNG key, or an int seed, for an ``initial_value`` that takes one. The nodes
            compute the initial value from it, so that TensorFlow can initialize too.
        save_slice_info: where it is a part of a larger variable, which one.

    Attributes:
        graph: the graph that holds it.
        op_name: the name of its node; in a checkpoint, its name.
        shape, dtype: of its value; typed keys count as their uint32 data.
        key_impl: the PRNG implementation where it holds typed keys, else empty.
        weak_type: whether its dtype gives way to others in JAX's promotion.
        initializer_name: the operation that gives it its first value.
        snapshot_name: the tensor that reads it.
        initial_value_name: the tensor that is its first value, or empty where none is known.
        is_resource: whether its node is a handle; else a reference variable of TensorFlow 1.

    Example:
        >>> import jax, jaxmeta as jm
        >>> w = jm.Variable(lambda key: jax.random.normal(key, (3, 2)), name="w", key=0)
        >>> w.name, w.shape, (2.0 * w).name, w in jm.trainable_variables()
        ('w:0', (3, 2), 'mul:0', True)
    """

    __slots__ = (
        "dtype",
        "graph",
        "initial_value_name",
        "initializer_name",
        "is_resource",
        "key_impl",
        "op_name",
        "save_slice_info",
        "shape",
        "snapshot_name",
        "trainable",
        "weak_type",
    )

    def __init__(
        self,
        initial_value: Any = None,
        trainable: bool | None = None,
        collections: Sequence[str] | None = None,
        validate_shape: bool = True,
        caching_device: Any = None,
        name: str | None = None,
        variable_def: meta_graph_pb2.VariableDef | None = None,
        dtype: Any = None,
        *,
        key: Any = None,
        save_slice_info: SaveSliceInfo | None = None,
    ) -> None:
        del validate_shape, caching_device
        target = default_graphs.GRAPHS.default()
        if variable_def is not None:
            found: Variable = target.variable_from_proto(variable_def)
            for field in self.__slots__:
                setattr(self, field, getattr(found, field))
            return
        target.create_variable(
            self,
            initial_value,
            trainable=trainable is None or trainable,
            collections=collections,
            name=name,
            dtype=dtype,
            key=key,
            save_slice_info=save_slice_info,
        )

    @classmethod
    def handle(cls, *args: Any, **kwargs: Any) -> Variable:
        """Returns a handle on a variable whose nodes are there; see `describe`."""
        variable = cls.__new__(cls)
        variable.describe(*args, **kwargs)
        return variable

    def describe(
        self,
        graph: Any,
        op_name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        key_impl: str = "",
        trainable: bool = True,
        weak_type: bool = False,
        *,
        initializer_name: str,
        snapshot_name: str,
        initial_value_name: str = "",
        is_resource: bool = True,
        save_slice_info: SaveSliceInfo | None = None,
    ) -> None:
        """Says which variable of which graph this is a handle on; see the attributes."""
        self.graph = graph
        self.op_name = op_name
        self.shape = shape
        self.dtype = dtype
        self.key_impl = key_impl
        self.trainable = trainable
        self.weak_type = weak_type
        self.initializer_name = initializer_name
        self.snapshot_name = snapshot_name
        self.initial_value_name = initial_value_name
        self.is_resource = is_resource
        self.save_slice_info = save_slice_info

    def _operate(self, operator: str, *operands: Any) -> Any:
        return self.graph.operate(operator, *operands)

    @property
    def name(self) -> str:
        """The name of the handle's tensor, as TensorFlow spells a variable: ``w:0``."""
        return f"{self.op_name}:0"

    @property
    def sharding(self) -> shardings.Recorded | None:
        """How its value was spread over devices, by the names of their mesh's axes, or None."""
        return shardings.sharding_from_attrs(self.graph.node(self.op_name).attr)

    @property
    def op(self) -> Operation:
        """The operation that is its node."""
        return Operation(self.graph, self.op_name)

    @property
    def initializer(self) -> Operation:
        """The operation that gives it its first value."""
        return Operation(self.graph, self.initializer_name)

    @property
    def initial_value(self) -> Tensor:
        """The tensor that is its first value.

        Raises:
            GraphError: the graph it was imported from does not say which.
        """
        if not self.initial_value_name:
            raise errors.GraphError(f"{self}: the graph does not record its initial value")
        found: Tensor = self.graph.get_tensor_by_name(self.initial_value_name)
        return found

    def get_shape(self) -> tuple[int, ...]:
        """Returns `shape`."""
        return self.shape

    def value(self) -> Tensor:
        """Returns a tensor that reads it."""
        tensor: Tensor = self.graph.read_variable(self, "ReadVariableOp")
        return tensor

    def read_value(self) -> Tensor:
        """Returns a tensor that reads it here, after the control dependencies of this place."""
        with self.graph.name_scope("Read"):
            read = self.value()
        tensor: Tensor = self.graph.add_identity(read, None)
        return tensor

    def assign(
        self,
        value: Any,
        use_locking: bool = False,
        name: str | None = None,
        read_value: bool = True,
    ) -> Any:
        """Returns a tensor with the new value, or the operation where ``read_value`` is False."""
        del use_locking  # there is no other thread
        return self.graph.assign_variable("Assign", self, value, name, read_value=read_value)

    def assign_add(
        self,
        delta: Any,
        use_locking: bool = False,
        name: str | None = None,
        read_value: bool = True,
    ) -> Any:
        """Adds to the value; see `assign`."""
        del use_locking  # there is no other thread
        return self.graph.assign_variable("AssignAdd", self, delta, name, read_value=read_value)

    def assign_sub(
        self,
        delta: Any,
        use_locking: bool = False,
        name: str | None = None,
        read_value: bool = True,
    ) -> Any:
        """Subtracts from the value; see `assign`."""
        del use_locking  # there is no other thread
        return self.graph.assign_variable("AssignSub", self, delta, name, read_value=read_value)

    def eval(self, session: Any = None) -> Any:
        """Returns its value in a session, the default session where None."""
        return default_sessions.session_for(self.graph, session, "eval()").run(self)

    def load(self, value: Any, session: Any = None) -> None:
        """Gives it a value in a session, the default session where None."""
        value_input = self.initializer.inputs[-1]
        chosen = default_sessions.session_for(self.graph, session, "load()")
        chosen.run(self.initializer, {value_input: np.asarray(value, self.dtype)})

    def to_proto(self, export_scope: str | None = None) -> meta_graph_pb2.VariableDef | None:
        """Returns its VariableDef, with names below a scope; None where it is not below it."""
        prefix = f"{export_scope.rstrip('/')}/" if export_scope else ""
        if not self.op_name.startswith(prefix):
            return None
        proto = meta_graph_pb2.VariableDef(
            variable_name=self.name.removeprefix(prefix),
            initial_value_name=self.initial_value_name.removeprefix(prefix),
            initializer_name=self.initializer_name.removeprefix(prefix),
            snapshot_name=self.snapshot_name.removeprefix(prefix),
            is_resource=self.is_resource,
            trainable=self.trainable,
        )
        info = self.save_slice_info
        if info is not None:
            proto.save_slice_info_def.full_name = info.full_name.removeprefix(prefix)
            for field in ("full_shape", "var_offset", "var_shape"):
                getattr(proto.save_slice_info_def, field).extend(getattr(info, field))
        return proto

    @classmethod
    def from_proto(
        cls, variable_def: meta_graph_pb2.VariableDef, import_scope: str | None = None
    ) -> Variable:
        """Returns the variable of the default graph that a VariableDef describes.

        Raises:
            GraphError: its node is not in the graph.
            FormatError: it has no static shape.
        """
        target = default_graphs.GRAPHS.default()
        found: Variable = target.variable_from_proto(variable_def, import_scope)
        return found

    def __repr__(self) -> str:
        return f"<jaxmeta.Variable '{self.name}' shape={self.shape} dtype={self.dtype}>"
