"""Handles on the variables that a graph holds; see `handles`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmeta import errors, shardings
from jaxmeta._proto import meta_graph_pb2
from jaxmeta.graphs import default_graphs, default_sessions
from jaxmeta.graphs.handles import Operation, Operators, Tensor


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
