"""Graphs that grow from Python: variables from a pytree, signatures from functions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jax

from jaxmeta import dtypes, errors, naming, state_leaves, tree_keys, trees, values
from jaxmeta._proto import meta_graph_pb2
from jaxmeta.graphs import (
    default_graphs,
    editing,
    elementary,
    graph,
    indexing,
    operators,
    printing,
    shape_inference,
    variables,
)
from jaxmeta.graphs.graph import Signature
from jaxmeta.graphs.handles import Operation, Tensor
from jaxmeta.graphs.variable_handles import Variable
from jaxmeta.tracing import meshes, signature_nodes, static_arguments

_PARAMETERS: Final = "params"  # the part of a state that optimizers change, by convention


class Graph(graph.GraphBuilder):
    """A program as TensorFlow nodes: what `export_meta_graph` writes and `Session` runs.

    Example:
        >>> import jax.numpy as jnp
        >>> g = Graph()
        >>> w = g.variables({"w": jnp.ones((3, 2))})
        >>> _ = g.add_signature("predict", lambda v, x: x @ v["w"], w, jnp.ones((4, 3)))
        >>> sorted(g.signatures), g.variable_names
        (['predict'], ('w',))
    """

    def __init__(self) -> None:
        super().__init__()
        self._without_shape: set[str] = set()

    def variables(
        self, state: Any, *, trainable: Callable[[str], bool] | None = None, name: str = ""
    ) -> Any:
        """Adds a variable for each leaf of a pytree, named by its path.

        Args:
            state: a pytree of arrays, numbers or `jax.ShapeDtypeStruct`.
            trainable: says of a variable's name whether optimizers should change it. By default
                these are the real ones below ``params``, or all real ones where there is none.
            name: a scope for all the names.

        Returns:
            The same tree with a `Variable` for each leaf.

        Raises:
            GraphError: a leaf is not an array (all such are listed), the tree is too deep for a
                file, or the name is taken.
        """
        if name in self.state_trees:
            raise errors.GraphError(
                f"the graph has the variables of a state named {name!r} already; give this one "
                "another name"
            )
        record = state_leaves.describe(state)
        flat, treedef = jax.tree_util.tree_flatten_with_path(state)
        paths = ["/".join(filter(None, [name, tree_keys.path_name(path)])) for path, _ in flat]
        is_trainable = trainable or _trainable_by_convention(paths)
        made = [
            self.add_variable(
                naming.clean_name(path) or "variable", leaf, is_trainable=is_trainable(path)
            )
            for path, (_, leaf) in zip(paths, flat, strict=True)
        ]
        self.state_trees[name] = trees.replace_leaves(record, map(_variable_leaf, made))
        return jax.tree_util.tree_unflatten(treedef, made)

    def add_signature(
        self,
        name: str,
        fn: Callable[..., Any],
        *args: Any,
        updates: int | Mapping[int, int] | None = None,
        donate: bool = True,
        carry_custom_calls: Sequence[str] = (),
        **kwargs: Any,
    ) -> Signature:
        """Traces a function into the graph as an entry point.

        Args:
            name: of the entry point; its node has this name too.
            fn: a function of pytrees of arrays. One that is under `jax.jit` already keeps its
                donation, and its static arguments become part of the program, which is then a
                function of the others; else the arguments in ``updates`` are donated.
            *args: what to trace it with: pytrees whose leaves are variables of this graph, tensors
                of it, arrays, or `jax.ShapeDtypeStruct`. The last two become placeholders, named
                by argument and path. Sizes may be symbolic dimensions of `jax.export`, or strings
                that name them: the function then takes arrays of any such size.
            updates: which result is assigned back to which argument, as {result: argument}; an
                int stands for both, or for the result itself where that is not a tuple.
            donate: whether the updated arguments' buffers may be reused.
            carry_custom_calls: platforms (``cpu``, ``cuda``, ``rocm``, ``tpu``) for which what has
                no node form, such as a Pallas kernel or a call through FFI, is carried as the
                compiler's own module in an ``XlaCallModule`` node. It then runs on these platforms
                only, under `allow_custom_calls`, has no derivative, and is readable for as long as
                `jax.export` reads it. What calls Python is refused all the same.
            **kwargs: more of the same, by name.

        Raises:
            UnsupportedPrimitiveError: some primitives have no node form; all are listed.
            GraphError: the name is taken, or an updated argument and its result differ.
        """
        if name in self.signatures:
            raise errors.GraphError(f"the graph has a signature named {name!r} already")
        pairs = {updates: updates} if isinstance(updates, int) else dict(updates or {})
        signature_nodes.check_updates_exist(name, pairs, len(args))
        (args, kwargs), shapes = signature_nodes.symbolize((args, kwargs))
        leaf_specs = jax.tree.map(
            lambda leaf: signature_nodes.leaf_spec(leaf, shapes),
            (args, kwargs),
            is_leaf=signature_nodes.is_handle,
        )
        traced = _trace_signature(name, fn, leaf_specs, tuple(pairs.values()) if donate else ())
        static = static_arguments.find_static_arguments(name, fn, traced, *leaf_specs)
        pairs = {result: static.shift(argument) for result, argument in pairs.items()}
        placed: Any = ((), ())
        if hasattr(fn, "lower"):
            placed = meshes.jit_shardings(static.bind(fn), *static.drop(*leaf_specs))
        leaf_names = signature_nodes.name_leaves(fn, args, kwargs, static)
        arguments = static.drop(args, kwargs)
        leaves = jax.tree.leaves(arguments, is_leaf=signature_nodes.is_handle)
        flat = list(zip(leaf_names, leaves, strict=True))
        scope = signature_nodes.SignatureNodes(self, name, flat, carry_custom_calls, shapes)
        call_outputs = scope.add_call(traced)
        signature = scope.make_signature(traced, call_outputs, arguments, pairs, placed)
        attrs = self.nodes[scope.call_name].attr
        for attr_name, value in signature_nodes.signature_attrs(signature).items():
            values.write_attr(attrs[attr_name], value)
        self.signatures[name] = signature
        return signature

    def to_text(self, *, scope: str = "", functions: bool = True, defaults: bool = False) -> str:
        """Returns the nodes as readable assignments; see `printing.graph_def_to_text`."""
        return printing.graph_def_to_text(
            self.as_graph_def(), scope=scope, functions=functions, defaults=defaults
        )

    # --- edited copies

    def replace(self, old: Tensor | str, new: Any) -> Graph:
        """Returns a copy in which what took one tensor takes another; see `editing.replace`."""
        return editing.replace(self, old, new)

    def insert(
        self, tensor: Tensor | str, fn: Callable[[Any], Any], name: str | None = None
    ) -> Graph:
        """Returns a copy in which what took a tensor takes ``fn`` of it; see `editing.insert`."""
        return editing.insert(self, tensor, fn, name)

    def cut(self, tensor: Tensor | str, name: str | None = None) -> Graph:
        """Returns a copy in which a tensor is fed, not computed; see `editing.cut`."""
        return editing.cut(self, tensor, name)

    def rename(self, names: Mapping[str, str]) -> Graph:
        """Returns a copy in which nodes or scopes have other names; see `editing.rename`."""
        return editing.rename(self, names)

    def prune(self, fetches: Any) -> Graph:
        """Returns a copy with only what some fetches need; see `editing.prune`."""
        return editing.prune(self, fetches)

    def merge(self, other: graph.GraphBuilder, scope: str) -> Graph:
        """Returns a copy that holds another graph too, in a scope; see `editing.merge`."""
        return editing.merge(self, other, scope)

    def _repr_html_(self) -> str:
        return printing.graph_to_html(self)

    def as_default(self) -> contextlib.AbstractContextManager[Graph]:
        """Makes the graph the default one within a ``with`` block, in this thread."""
        return default_graphs.GRAPHS.enter(self)

    # --- what handles ask for

    def output_shape(self, name: str, index: int) -> values.Shape | None:
        """Returns the static shape of an output, inferred where it is not recorded, or None."""
        recorded = self.recorded_shape(name, index)
        tensor_name = f"{name}:{index}"
        if recorded is None and tensor_name not in self._without_shape:
            recorded = shape_inference.static_shape(shape_inference.sizes_of(self, tensor_name))
            if recorded is None:
                self._without_shape.add(tensor_name)
            else:
                self.record_shape(tensor_name, recorded)
        return recorded

    def operate(self, operator: str, *operands: Any) -> Tensor:
        """Adds the nodes of a Python operator on tensors; see `jaxmeta.Tensor`."""
        if operator == "getitem" and indexing.needs_gather(operands[1]):
            return indexing.get_item(self, *operands)
        return operators.operate(self, operator, operands)

    def read_variable(self, variable: Variable, name: str | None = None) -> Tensor:
        """Adds a node that reads a variable; see `Variable.value`."""
        return elementary.read_variable(self, variable, name)

    def set_tensor_shape(self, tensor: Tensor, shape: Any) -> None:
        """Says more of a tensor's shape; see `Tensor.set_shape`."""
        elementary.set_shape(self, tensor, shape)

    def add_identity(self, value: Any, name: str | None) -> Tensor:
        """Adds a node that gives what it takes; see `jaxmeta.identity`."""
        return elementary.add_identity(self, value, name)

    def create_variable(self, variable: Variable, initial_value: Any, **options: Any) -> None:
        """Adds the nodes of a variable; see `jaxmeta.Variable`."""
        variables.add_variable(self, variable, initial_value, **options)

    def assign_variable(
        self, what: str, variable: Variable, value: Any, name: str | None, *, read_value: bool
    ) -> Tensor | Operation:
        """Adds an assignment; see `Variable.assign`."""
        return variables.assign(self, what, variable, value, name, read_value=read_value)

    def variable_from_proto(
        self, proto: meta_graph_pb2.VariableDef, import_scope: str | None = None
    ) -> Variable:
        """Returns the variable that a VariableDef describes; see `Variable.from_proto`."""
        made = variables.variable_from_proto(self, proto, import_scope)
        return self.variable(made.op_name) if made.op_name in self.variable_names else made


def _trainable_by_convention(paths: Sequence[str]) -> Callable[[str], bool]:
    if any(_PARAMETERS in path.split("/") for path in paths):
        return lambda path: path.split("/")[0] == _PARAMETERS
    return lambda path: True


def _trace_signature(
    name: str, fn: Callable[..., Any], leaf_specs: Any, donated: tuple[int, ...]
) -> Any:
    """Returns the trace of an entry point; JAX's errors get a note where sizes are symbolic."""
    args, kwargs = leaf_specs
    try:
        return _trace(fn, args, kwargs, donated)
    except Exception as error:
        signature_nodes.explain_symbolic_failure(error, name, leaf_specs)
        raise


def _trace(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    donated: tuple[int, ...],
) -> Any:
    """Returns `jax.jit`'s trace of a function; one that is jitted keeps its own options."""
    if isinstance(fn, (jax.stages.Compiled, jax.stages.Lowered)):
        raise errors.GraphError(
            f"a {type(fn).__name__} function is no longer traced; give what it was made of"
        )
    if hasattr(fn, "trace") and hasattr(fn, "lower"):
        traced = fn.trace(*args, **kwargs)
        if isinstance(traced, jax.stages.Traced):  # and not that of a library's own jit
            return traced
    return jax.jit(fn, donate_argnums=donated).trace(*args, **kwargs)


def _variable_leaf(variable: Variable) -> trees.Leaf:
    return trees.Leaf(variable.op_name, variable.shape, dtypes.dtype_to_number(variable.dtype))


# --- the default graph -------------------------------------------------------------------------

default_graphs.GRAPHS.make = Graph


def get_default_graph() -> Graph:
    """Returns the graph of the innermost ``as_default`` block, or the thread's own one."""
    default: Graph = default_graphs.GRAPHS.default()
    return default


def reset_default_graph() -> None:
    """Gives this thread a new default graph.

    Raises:
        GraphError: within an ``as_default`` block.
    """
    if default_graphs.GRAPHS.is_entered:
        raise errors.GraphError("the default graph cannot be reset inside an as_default block")
    default_graphs.GRAPHS.reset()
