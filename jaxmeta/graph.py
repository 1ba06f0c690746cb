"""The graph: nodes, the function library, name scopes, collections and signatures.

Nodes are NodeDef protos; there is no second object model. A `Tensor`, an `Operation` and a
`Variable` are light handles on them.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import jax
import numpy as np

from jaxmeta import dtypes, errors, jaxprs, naming, nodes, op_defs, shardings, specs, trees, values
from jaxmeta._proto import graph_pb2, meta_graph_pb2
from jaxmeta.nodes import Edge as Edge
from jaxmeta.nodes import NodeContainer

# What TensorFlow 2.21 writes; any later TensorFlow reads it.
PRODUCER_VERSION: Final = 2474
GLOBAL_VARIABLES: Final = "variables"
TRAINABLE_VARIABLES: Final = "trainable_variables"


@dataclasses.dataclass(frozen=True, slots=True)
class Signature:
    """An entry point of a graph: a function that was traced into it.

    Attributes:
        name: what it is called in the graph.
        function_name: the traced function's own name, which names the compiled program.
        arguments: the record of its (args, kwargs); a leaf's name is a placeholder's tensor, or a
            variable.
        results: the record of its results; a leaf's name is a tensor.
        donated: for each leaf of the arguments, whether its buffer may be reused.
        updates: which result is assigned back to which argument, by position.
        train_op: the operation that runs it and assigns, or empty.
        result_key_impls: for each leaf of the results, the PRNG implementation where it is a typed
            key, else empty; no entries where none is.
        in_shardings, out_shardings: for each leaf of the arguments and of the results, the
            sharding that `jax.jit` was given, or None; no entries where it was given none.
    """

    name: str
    function_name: str
    arguments: trees.Tree
    results: trees.Tree
    donated: tuple[bool, ...]
    updates: tuple[tuple[int, int], ...] = ()
    train_op: str = ""
    result_key_impls: tuple[str, ...] = ()
    in_shardings: tuple[shardings.Recorded | None, ...] = ()
    out_shardings: tuple[shardings.Recorded | None, ...] = ()


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


@dataclasses.dataclass(frozen=True, slots=True)
class Variable:
    """A handle on a variable of a graph.

    Attributes:
        graph: the graph that holds it.
        op_name: the name of its node; in a checkpoint, its name.
        shape, dtype: of its value; typed keys count as their uint32 data.
        key_impl: the PRNG implementation where it holds typed keys, else empty.
        trainable: whether optimizers should change it.
        weak_type: whether its dtype gives way to others in JAX's promotion.
        initializer_name: the operation that gives it its first value.
        snapshot_name: the tensor that reads it.
        initial_value_name: the tensor that is its first value, or empty where none is known.
        is_resource: whether its node is a handle; else a reference variable of TensorFlow 1.
        save_slice_info: where it is a part of a larger variable, which one.
    """

    graph: GraphBuilder
    op_name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    key_impl: str = ""
    trainable: bool = True
    weak_type: bool = False
    initializer_name: str = dataclasses.field(kw_only=True)
    snapshot_name: str = dataclasses.field(kw_only=True)
    initial_value_name: str = dataclasses.field(default="", kw_only=True)
    is_resource: bool = dataclasses.field(default=True, kw_only=True)
    save_slice_info: SaveSliceInfo | None = dataclasses.field(default=None, kw_only=True)

    @property
    def sharding(self) -> shardings.Recorded | None:
        """How its value was spread over devices, by the names of their mesh's axes, or None."""
        return shardings.sharding_from_attrs(self.graph.node(self.op_name).attr)

    @property
    def name(self) -> str:
        """The name of the handle's tensor, as TensorFlow spells a variable: ``w:0``."""
        return f"{self.op_name}:0"

    def __repr__(self) -> str:
        return f"<jaxmeta.Variable '{self.name}' shape={self.shape} dtype={self.dtype}>"


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """A handle on one output of a node of a graph."""

    graph: GraphBuilder
    node_name: str
    index: int

    @property
    def name(self) -> str:
        """The tensor's name: ``node:0``."""
        return f"{self.node_name}:{self.index}"

    @property
    def op(self) -> Operation:
        """The operation that produces it."""
        return Operation(self.graph, self.node_name)

    @property
    def number(self) -> int:
        """Its DataType number."""
        return self.graph.output_numbers(self.node_name)[self.index]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its dtype."""
        return dtypes.dtype_from_number(self.number)

    @property
    def shape(self) -> values.Shape | None:
        """Its static shape where the graph records it, else None."""
        return self.graph.output_shape(self.node_name, self.index)

    def __repr__(self) -> str:
        return f"<jaxmeta.Tensor '{self.name}' shape={self.shape} dtype={self.dtype}>"


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """A handle on a node of a graph."""

    graph: GraphBuilder
    name: str

    @property
    def node_def(self) -> graph_pb2.NodeDef:
        """The node."""
        return self.graph.nodes[self.name]

    @property
    def type(self) -> str:
        """The name of its op."""
        return self.node_def.op

    @property
    def outputs(self) -> list[Tensor]:
        """Its outputs."""
        count = len(self.graph.output_numbers(self.name))
        return [Tensor(self.graph, self.name, index) for index in range(count)]

    def __repr__(self) -> str:
        return f"<jaxmeta.Operation '{self.name}' type={self.type}>"


def refuse_repeated_names(nodes: Sequence[graph_pb2.NodeDef]) -> None:
    """Raises GraphError where several nodes have the same name; all such names are listed."""
    counts = collections.Counter(node.name for node in nodes)
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if repeated:
        raise errors.GraphError(errors.list_offenders("these nodes are not unique:", repeated))


class GraphBuilder(NodeContainer):
    """A builder over a GraphDef; `jaxmeta.Graph` adds what traces functions into it.

    Example:
        >>> builder = GraphBuilder()
        >>> with builder.name_scope("scope"):
        ...     (x,) = builder.add_node("Placeholder", [], {"dtype": np.dtype("float32")}, "x")
        ...     (y,) = builder.add_node("Tanh", [x], {})
        >>> y.ref, builder.nodes["scope/Tanh"].input[0]
        ('scope/Tanh', 'scope/x')
    """

    def __init__(self) -> None:
        self._functions: dict[str, graph_pb2.FunctionDef] = {}
        super().__init__(self._functions)
        self._function_names = naming.UniqueNames()
        self._scope = ""
        self._variables: dict[str, Variable] = {}
        self.gradients: list[graph_pb2.GradientDef] = []
        self.versions = graph_pb2.VersionDef(producer=PRODUCER_VERSION)
        self.collections: dict[str, list[Any]] = {}
        self.signatures: dict[str, Signature] = {}
        self.state_trees: dict[str, trees.Tree] = {}
        """The record of each pytree that became variables, by the scope of their names."""
        self.saver_def: meta_graph_pb2.SaverDef | None = None
        """How TensorFlow saves and restores the variables, once its nodes are there."""
        self.constants: dict[str, Any] = {}
        """Arrays that traced functions closed over, by the name of the variable that holds them."""
        self.captured: dict[str, Any] = {}
        """The same as the functions hold them: typed keys as keys."""
        self.traced_shardings: dict[str, Any] = {}
        """The shardings of this process's arrays, by the variable that was made for them."""

    # --- names and scopes

    @contextlib.contextmanager
    def name_scope(self, name: str | None) -> Iterator[str]:
        """Enters a name scope; yields its name with a trailing slash, as TensorFlow does.

        A name that ends in a slash is entered as it is; another one is made unique.
        """
        outer = self._scope
        if name:
            naming.check_scope_name(name, is_root=not outer)
        if name and name.endswith("/"):
            self._scope = name[:-1]
        elif name:
            self._scope = self.unique_name(name)
        else:
            self._scope = ""
        try:
            yield f"{self._scope}/" if self._scope else ""
        finally:
            self._scope = outer

    def unique_name(self, name: str, *, mark: bool = True) -> str:
        """Returns the name inside the current scope, made unique in the graph."""
        return self._names.unique(f"{self._scope}/{name}" if self._scope else name, mark=mark)

    def add_node(
        self,
        op: str,
        inputs: Sequence[Any],
        attrs: Mapping[str, Any],
        name: str | None = None,
        control_inputs: Sequence[str] = (),
    ) -> list[Edge]:
        """Adds a node below the current name scope; see `NodeContainer.add_node`."""
        name = name or op
        full_name = f"{self._scope}/{name}" if self._scope else name
        return super().add_node(op, inputs, attrs, full_name, control_inputs)

    def _output_ref(self, node: str, argument: str, offset: int, index: int) -> str:
        return f"{node}:{index}" if index else node

    # --- functions

    @property
    def functions(self) -> Mapping[str, graph_pb2.FunctionDef]:
        """The function library, by name."""
        return self._functions

    def unique_function_name(self, name: str) -> str:
        """Returns a name that no function of the library has and no op of TensorFlow's."""
        cleaned = naming.clean_name(name.replace("/", "_")) or "function"
        unique = self._function_names.unique(cleaned)
        return unique if not op_defs.has_op(unique) else self.unique_function_name(f"{name}_fn")

    def add_function(self, function: graph_pb2.FunctionDef) -> None:
        """Adds a function to the library.

        Raises:
            GraphError: another function of that name is there.
        """
        name = function.signature.name
        if name in self._functions:
            raise errors.GraphError(f"the library has a function named {name!r} already")
        self._function_names.mark(name)
        self._functions[name] = function

    # --- nodes that are there already

    def add_node_defs(self, added: Mapping[str, graph_pb2.NodeDef]) -> None:
        """Adds nodes under their own names.

        Args:
            added: the nodes by name.

        Raises:
            GraphError: names are taken; all of them are listed.
        """
        taken = sorted(added.keys() & self._nodes.keys())
        if taken:
            raise errors.GraphError(errors.list_offenders("these nodes are not unique:", taken))
        self._nodes.update(added)
        self._names.mark_all(added)

    def node(self, name: str) -> graph_pb2.NodeDef:
        """Returns a node by name.

        Raises:
            GraphError: there is none.
        """
        node = self._nodes.get(name)
        if node is None:
            raise errors.GraphError(f"the graph has no node named {name!r}")
        return node

    def output_numbers(self, name: str) -> list[int]:
        """Returns the DataType number of each output of a node."""
        node = self.node(name)
        function = self._functions.get(node.op)
        op_def = function.signature if function is not None else op_defs.get_op_def(node.op)
        return op_defs.output_dtypes(op_def, node)

    def output_shape(self, name: str, index: int) -> values.Shape | None:
        """Returns the static shape of an output where the graph records it."""
        return nodes.recorded_shape(self.node(name), index)

    def get_operation_by_name(self, name: str) -> Operation:
        """Returns an operation by its name.

        Raises:
            GraphError: there is none of that name.
        """
        if ":" in name:
            raise errors.GraphError(f"{name!r} is a tensor's name; an operation's has no ':'")
        return Operation(self, self.node(name).name)

    def get_tensor_by_name(self, name: str) -> Tensor:
        """Returns a tensor by its name, ``node:0``.

        Raises:
            GraphError: the name has no ``:index``, or there is no such output.
        """
        parsed = naming.parse_tensor_name(name)
        if ":" not in name or parsed.argument is not None:
            raise errors.GraphError(
                f"{name!r} is not a tensor's name; these end in ':0', ':1', ..."
            )
        count = len(self.output_numbers(parsed.node))
        if not 0 <= parsed.position < count:
            raise errors.GraphError(f"{name!r}: the operation has {count} outputs")
        return Tensor(self, parsed.node, parsed.position)

    # --- variables and collections

    @property
    def variable_names(self) -> tuple[str, ...]:
        """The names of the variables, in the order in which they were added."""
        return tuple(self._variables)

    def variable(self, name: str) -> Variable:
        """Returns a variable by the name of its node.

        Raises:
            GraphError: there is none of that name.
        """
        found = self._variables.get(name)
        if found is None:
            raise errors.GraphError(f"the graph has no variable named {name!r}")
        return found

    def add_variable(self, path: str, leaf: Any, *, is_trainable: bool) -> Variable:
        """Adds a variable for an array, with the nodes that read it and give it a first value."""
        impl, aval = specs.physical(leaf)
        dtype = np.dtype(aval.dtype)
        op_name = self.unique_name(naming.clean_name(path), mark=False)
        attrs = {"dtype": dtype, "shape": aval.shape, "shared_name": op_name}
        if impl:
            attrs[nodes.KEY_IMPL_ATTR] = impl
        is_weak = jaxprs.is_weak(leaf)
        if is_weak:
            attrs[nodes.WEAK_TYPE_ATTR] = True
        sharding = shardings.of_array(leaf)
        if sharding is not None:
            attrs.update(shardings.sharding_to_attrs(sharding))
            self.traced_shardings[op_name] = leaf.sharding
        (handle,) = self._add_absolute("VarHandleOp", [], attrs, op_name)
        zeros = values.splat_to_proto(np.zeros((), dtype), aval.shape)
        (initial,) = self._add_absolute(
            "Const", [], {"dtype": dtype, "value": zeros}, f"{op_name}/Initializer/zeros"
        )
        self._add_absolute("AssignVariableOp", [handle, initial], {}, f"{op_name}/Assign")
        self._add_absolute(
            "ReadVariableOp", [handle], {"dtype": dtype}, f"{op_name}/Read/ReadVariableOp"
        )
        trains = is_trainable and jax.dtypes.issubdtype(dtype, np.inexact)
        variable = Variable(
            self,
            op_name,
            tuple(aval.shape),
            dtype,
            impl,
            trains,
            is_weak,
            initializer_name=f"{op_name}/Assign",
            snapshot_name=f"{op_name}/Read/ReadVariableOp:0",
            initial_value_name=f"{op_name}/Initializer/zeros:0",
        )
        self.register_variable(variable)
        self.add_to_collection(GLOBAL_VARIABLES, variable)
        if trains:
            self.add_to_collection(TRAINABLE_VARIABLES, variable)
        return variable

    def _add_absolute(
        self, op: str, inputs: Sequence[Any], attrs: Mapping[str, Any], name: str
    ) -> list[Edge]:
        """Adds a node under a full name, whatever the current name scope is."""
        return nodes.NodeContainer.add_node(self, op, inputs, attrs, name)

    def register_variable(self, variable: Variable) -> None:
        """Makes a variable known whose nodes are in the graph."""
        self._variables[variable.op_name] = variable

    def add_to_collection(self, name: str, value: Any) -> None:
        """Appends a value to a collection."""
        self.collections.setdefault(name, []).append(value)

    def get_collection(self, name: str) -> list[Any]:
        """Returns a copy of a collection; empty where there is none of that name."""
        return list(self.collections.get(name, ()))

    def get_all_collection_keys(self) -> list[str]:
        """Returns the names of the collections that hold something."""
        return [name for name, items in self.collections.items() if items]

    # --- protos

    def as_graph_def(self) -> graph_pb2.GraphDef:
        """Returns the graph as a GraphDef, a copy."""
        graph_def = graph_pb2.GraphDef()
        graph_def.node.extend(self._nodes.values())
        graph_def.versions.CopyFrom(self.versions)
        graph_def.library.function.extend(self._functions.values())
        graph_def.library.gradient.extend(self.gradients)
        return graph_def
