"""The graph: nodes, the function library, name scopes, collections and signatures.

Nodes are NodeDef protos; there is no second object model. A `Tensor`, an `Operation` and a
`Variable` are light handles on them.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import jax
import numpy as np

from jaxmeta import errors, naming, op_defs, shardings, specs, trees, values
from jaxmeta._proto import graph_pb2, meta_graph_pb2
from jaxmeta.graphs import nodes
from jaxmeta.graphs.control_dependencies import ControlDependencies
from jaxmeta.graphs.elements import ElementContainer
from jaxmeta.graphs.handles import Operation as Operation
from jaxmeta.graphs.handles import Tensor as Tensor
from jaxmeta.graphs.nodes import Edge as Edge
from jaxmeta.graphs.variable_handles import SaveSliceInfo as SaveSliceInfo
from jaxmeta.graphs.variable_handles import Variable as Variable
from jaxmeta.tracing import jaxprs

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
        constraints: what has to hold of its symbolic dimensions, such as ``batch >= 8``.
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
    constraints: tuple[str, ...] = ()
    in_shardings: tuple[shardings.Recorded | None, ...] = ()
    out_shardings: tuple[shardings.Recorded | None, ...] = ()

    def renamed(self, name: str, rename: Callable[[str], str]) -> Signature:
        """Returns it under another name, with other names for what it refers to."""
        return dataclasses.replace(
            self,
            name=name,
            arguments=trees.rename_leaves(self.arguments, rename),
            results=trees.rename_leaves(self.results, rename),
            train_op=rename(self.train_op) if self.train_op else "",
        )


def refuse_repeated_names(nodes: Sequence[graph_pb2.NodeDef]) -> None:
    """Raises GraphError where several nodes have the same name; all such names are listed."""
    counts = collections.Counter(node.name for node in nodes)
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if repeated:
        raise errors.GraphError(errors.list_offenders("these nodes are not unique:", repeated))


class GraphBuilder(ElementContainer):
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
        self._controls = ControlDependencies()
        self._is_finalized = False
        self._variables: dict[str, Variable] = {}
        self.gradients: list[graph_pb2.GradientDef] = []
        self.registered_gradients: list[graph_pb2.RegisteredGradient] = []
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

    @property
    def scope(self) -> str:
        """The current name scope, without a slash at its end; empty at the root."""
        return self._scope

    @contextlib.contextmanager
    def name_scope(self, name: str | None, default_name: str | None = None) -> Iterator[str]:
        """Enters a name scope; yields its name with a trailing slash, as TensorFlow does.

        A name that ends in a slash is entered as it is; another one is made unique. Where there
        is neither a name nor a default one, the root is entered.
        """
        outer = self._scope
        name = default_name if name is None else name
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
        naming.check_scope_name(name, is_root=not self._scope)
        full_name = f"{self._scope}/{name}" if self._scope and name[-1] != "/" else name
        data = _producers(inputs)
        added = [*control_inputs, *self._controls.for_inputs(data)]
        edges = self._add_absolute(op, inputs, attrs, full_name, list(dict.fromkeys(added)))
        self._controls.record(self.last_node_name)
        return edges

    def _add_absolute(
        self,
        op: str,
        inputs: Sequence[Any],
        attrs: Mapping[str, Any],
        name: str,
        control_inputs: Sequence[str] = (),
    ) -> list[Edge]:
        """Adds a node under a full name, whatever the name scope and control dependencies are."""
        self.check_not_finalized()
        return nodes.NodeContainer.add_node(self, op, inputs, attrs, name, control_inputs)

    def add_node_copy(
        self, node: graph_pb2.NodeDef, inputs: Sequence[str], name: str
    ) -> graph_pb2.NodeDef:
        """Adds a node like one of a function's body, below the current name scope.

        Args:
            node: the one to copy.
            inputs: what it takes here.
            name: the wanted name, as `add_node` takes it.
        """
        self.check_not_finalized()
        full_name = f"{self._scope}/{name}" if self._scope and name[-1] != "/" else name
        copied = graph_pb2.NodeDef()
        copied.CopyFrom(node)
        copied.name = self._node_name(full_name)
        controls = self._controls.for_inputs({ref.split(":", 1)[0] for ref in inputs})
        copied.input[:] = [*inputs, *(f"^{control}" for control in controls)]
        self._nodes[copied.name] = copied
        self._controls.record(copied.name)
        return copied

    @contextlib.contextmanager
    def control_dependencies(self, control_inputs: Sequence[Any] | None) -> Iterator[None]:
        """Makes the nodes added within the block run after others.

        Args:
            control_inputs: operations, tensors, variables or their names; None forgets those of
                the blocks around.

        Raises:
            GraphError: one of them is not in the graph.
        """
        names = None
        if control_inputs is not None:
            names = [_operation_name(self.as_graph_element(item)) for item in control_inputs]
        with self._controls.enter(names):
            yield

    # --- finalizing

    @property
    def finalized(self) -> bool:
        """Whether the graph takes no more nodes."""
        return self._is_finalized

    def finalize(self) -> None:
        """Makes the graph take no more nodes."""
        self._is_finalized = True

    def check_not_finalized(self) -> None:
        """Raises FinalizedGraphError where the graph was finalized."""
        if self._is_finalized:
            raise errors.FinalizedGraphError("the graph is finalized and cannot be modified")

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
        self.check_not_finalized()
        taken = sorted(added.keys() & self._nodes.keys())
        if taken:
            raise errors.GraphError(errors.list_offenders("these nodes are not unique:", taken))
        controls = self._controls.for_inputs(())
        self._nodes.update(
            {name: _with_controls(node, controls) for name, node in added.items()}
            if controls
            else added
        )
        self._names.mark_all(added)

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
        if not all(isinstance(size, (int, np.integer)) for size in aval.shape):
            raise errors.GraphError(
                f"the variable {path!r} has the shape {tuple(aval.shape)}; the sizes of variables "
                "have to be numbers"
            )
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
        variable = Variable.handle(
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

    def record_result_shapes(self, results: trees.Tree) -> None:
        """Records the shapes of a signature's results, which are tensors of the graph."""
        for leaf in trees.leaves(results):
            self.record_shape(leaf.name, leaf.shape)

    def register_variable(self, variable: Variable) -> None:
        """Makes a variable known whose nodes are in the graph."""
        self._variables[variable.op_name] = variable

    def add_to_collection(self, name: str, value: Any) -> None:
        """Appends a value to a collection.

        Raises:
            FinalizedGraphError: the graph was finalized.
        """
        self.check_not_finalized()
        self.collections.setdefault(name, []).append(value)

    def add_to_collections(self, names: str | Iterable[str], value: Any) -> None:
        """Appends a value to each of several collections."""
        for name in dict.fromkeys([names] if isinstance(names, str) else names):
            self.add_to_collection(name, value)

    def get_collection(self, name: str, scope: str | None = None) -> list[Any]:
        """Returns a copy of a collection; empty where there is none of that name.

        Args:
            name: of the collection.
            scope: where given, only what has a name that it matches, as a regular expression,
                from the beginning.
        """
        items = self.collections.get(name, ())
        if not scope:
            return list(items)
        pattern = re.compile(scope)
        return [item for item in items if pattern.match(getattr(item, "name", ""))]

    def get_collection_ref(self, name: str) -> list[Any]:
        """Returns a collection itself, so that changing the list changes it."""
        return self.collections.setdefault(name, [])

    def clear_collection(self, name: str) -> None:
        """Removes what a collection holds."""
        self.check_not_finalized()
        self.collections.pop(name, None)

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
        graph_def.library.registered_gradients.extend(self.registered_gradients)
        return graph_def


def _producers(inputs: Sequence[Any]) -> set[str]:
    """Returns the names of the nodes whose outputs a node takes."""
    edges = [edge for item in inputs for edge in (item if isinstance(item, list) else [item])]
    return {edge.ref.split(":", 1)[0] for edge in edges}


def _with_controls(node: graph_pb2.NodeDef, controls: Sequence[str]) -> graph_pb2.NodeDef:
    """Returns a copy of a node that runs after others, too."""
    copied = graph_pb2.NodeDef()
    copied.CopyFrom(node)
    known = set(node.input)
    copied.input.extend(f"^{name}" for name in controls if f"^{name}" not in known)
    return copied


def _operation_name(element: Tensor | Operation) -> str:
    return element.node_name if isinstance(element, Tensor) else element.name
