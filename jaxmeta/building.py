"""Graphs that grow from Python: variables from a pytree, signatures from functions."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import jax
import numpy as np

from jaxmeta import dtypes, errors, graph, jaxprs, naming, trace, trees, values
from jaxmeta.graph import Edge, Signature, Tensor, Variable
from jaxmeta.ops import _definition

GLOBAL_VARIABLES: Final = "variables"
TRAINABLE_VARIABLES: Final = "trainable_variables"
TRAIN_OP: Final = "train_op"

SIGNATURE_ATTR: Final = "_jax_signature"  # on the node that calls it: its name

# Arrays that a traced function closed over: larger ones become variables, smaller ones constants.
_LARGEST_CONSTANT_BYTES: Final = 1024
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

    def variables(
        self, state: Any, *, trainable: Callable[[str], bool] | None = None, name: str = ""
    ) -> Any:
        """Adds a variable for each leaf of a pytree, named by its path.

        Args:
            state: a pytree of arrays or `jax.ShapeDtypeStruct`.
            trainable: says of a variable's name whether optimizers should change it. By default
                these are the real ones below ``params``, or all real ones where there is none.
            name: a scope for all the names.

        Returns:
            The same tree with a `Variable` for each leaf.

        Raises:
            GraphError: a leaf is not an array (all such are listed), or the name is taken.
        """
        if name in self.state_trees:
            raise errors.GraphError(
                f"the graph has the variables of a state named {name!r} already; give this one "
                "another name"
            )
        flat, treedef = jax.tree_util.tree_flatten_with_path(state)
        _refuse_leaves_without_dtype(flat)
        paths = ["/".join(filter(None, [name, trees.path_name(path)])) for path, _ in flat]
        is_trainable = trainable or _trainable_by_convention(paths)
        made = [
            self._add_variable(path or "variable", leaf, is_trainable(path))
            for path, (_, leaf) in zip(paths, flat, strict=True)
        ]
        names = iter(made)
        self.state_trees[name] = trees.describe(state, lambda _, leaf: _variable_leaf(next(names)))
        return jax.tree_util.tree_unflatten(treedef, made)

    def _add_variable(self, path: str, leaf: Any, is_trainable: bool) -> Variable:
        impl, aval = _physical(leaf)
        dtype = np.dtype(aval.dtype)
        op_name = self.unique_name(naming.clean_name(path), mark=False)
        attrs = {"dtype": dtype, "shape": aval.shape, "shared_name": op_name}
        if impl:
            attrs[graph.KEY_IMPL_ATTR] = impl
        is_weak = jaxprs.is_weak(leaf)
        if is_weak:
            attrs[graph.WEAK_TYPE_ATTR] = True
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
        variable = Variable(self, op_name, tuple(aval.shape), dtype, impl, trains, is_weak)
        self.register_variable(variable)
        self.add_to_collection(GLOBAL_VARIABLES, variable)
        if trains:
            self.add_to_collection(TRAINABLE_VARIABLES, variable)
        return variable

    def _add_absolute(
        self, op: str, inputs: Sequence[Any], attrs: Mapping[str, Any], name: str
    ) -> list[Edge]:
        """Adds a node under a full name, whatever the current name scope is."""
        return graph.NodeContainer.add_node(self, op, inputs, attrs, name)

    def add_signature(
        self,
        name: str,
        fn: Callable[..., Any],
        *args: Any,
        updates: int | Mapping[int, int] | None = None,
        donate: bool = True,
        **kwargs: Any,
    ) -> Signature:
        """Traces a function into the graph as an entry point.

        Args:
            name: of the entry point; its node has this name too.
            fn: a function of pytrees of arrays. One that is under `jax.jit` already keeps its
                donation; else the arguments in ``updates`` are donated.
            *args: what to trace it with: pytrees whose leaves are variables of this graph, tensors
                of it, arrays, or `jax.ShapeDtypeStruct`. The last two become placeholders, named
                by argument and path.
            updates: which result is assigned back to which argument, as {result: argument}; an
                int stands for both, or for the result itself where that is not a tuple.
            donate: whether the updated arguments' buffers may be reused.
            **kwargs: more of the same, by name.

        Raises:
            UnsupportedPrimitiveError: some primitives have no node form; all are listed.
            GraphError: the name is taken, or an updated argument and its result differ.
        """
        if name in self.signatures:
            raise errors.GraphError(f"the graph has a signature named {name!r} already")
        pairs = {updates: updates} if isinstance(updates, int) else dict(updates or {})
        _check_updates_exist(name, pairs, len(args))
        specs = jax.tree.map(_leaf_spec, (args, kwargs), is_leaf=_is_handle)
        _refuse_symbolic_dimensions(name, specs)
        traced = _trace(fn, specs[0], specs[1], tuple(pairs.values()) if donate else ())
        with_donation = jax.tree.leaves(traced.args_info)
        flat, _ = jax.tree_util.tree_flatten_with_path((args, kwargs), is_leaf=_is_handle)
        if len(flat) != len(with_donation):
            raise errors.GraphError(
                f"signature {name!r}: the function takes {len(with_donation)} arrays, the "
                f"arguments hold {len(flat)}; bind static arguments first, as with "
                "functools.partial"
            )
        scope = _SignatureNodes(self, name, fn, flat)
        call_outputs = scope.add_call(traced)
        signature = scope.make_signature(traced, call_outputs, (args, kwargs), pairs)
        attrs = self.nodes[scope.call_name].attr
        for attr_name, value in signature_attrs(signature).items():
            values.write_attr(attrs[attr_name], value)
        self.signatures[name] = signature
        return signature

    @contextlib.contextmanager
    def as_default(self) -> Iterator[Graph]:
        """Makes the graph the default one within a ``with`` block, in this thread."""
        stack = _default_stack()
        stack.append(self)
        try:
            yield self
        finally:
            stack.remove(self)


def signature_attrs(signature: Signature) -> Mapping[str, Any]:
    """Returns the attrs of a signature's node that record what its trees do not."""
    attrs: dict[str, Any] = {
        SIGNATURE_ATTR: signature.name,
        "_jax_function_name": signature.function_name,
        "_jax_donated": signature.donated,
        "_jax_updates": tuple(index for pair in signature.updates for index in pair),
    }
    if signature.train_op:
        attrs["_jax_train_op"] = signature.train_op
    if signature.result_key_impls:
        attrs["_jax_result_key_impls"] = signature.result_key_impls
    return attrs


def _refuse_symbolic_dimensions(name: str, specs: Any) -> None:
    flat, _ = jax.tree_util.tree_flatten_with_path(specs)
    bad = [
        f"{jax.tree_util.keystr(path)}: {leaf.shape}"
        for path, leaf in flat
        if any(not isinstance(size, (int, np.integer)) for size in getattr(leaf, "shape", ()))
    ]
    if bad:
        headline = f"signature {name!r}: symbolic dimensions cannot be traced into a graph yet:"
        raise errors.GraphError(
            errors.list_offenders(headline, bad, "Give each dimension as a number.")
        )


def _check_updates_exist(name: str, updates: Mapping[int, int], num_args: int) -> None:
    for argument in updates.values():
        if not 0 <= argument < num_args:
            raise errors.GraphError(
                f"signature {name!r}: there is no argument {argument} to update, only {num_args}"
            )


def _is_handle(value: Any) -> bool:
    return isinstance(value, (Variable, Tensor))


def _refuse_leaves_without_dtype(flat: Sequence[tuple[Any, Any]]) -> None:
    bad = [
        f"{trees.path_name(path)}: {type(leaf).__name__}"
        for path, leaf in flat
        if not hasattr(leaf, "dtype") and not isinstance(leaf, (bool, int, float, complex))
    ]
    if bad:
        raise errors.GraphError(
            errors.list_offenders(
                "the state holds leaves that are not arrays:",
                bad,
                "Split them off first (equinox.partition, flax.nnx.split), or mark the fields "
                "static.",
            )
        )


def _trainable_by_convention(paths: Sequence[str]) -> Callable[[str], bool]:
    if any(_PARAMETERS in path.split("/") for path in paths):
        return lambda path: path.split("/")[0] == _PARAMETERS
    return lambda path: True


def _physical(leaf: Any) -> tuple[str, jax.ShapeDtypeStruct]:
    """Returns the key implementation of a leaf, or empty, and its aval as the graph holds it."""
    aval = leaf if hasattr(leaf, "dtype") else jax.eval_shape(lambda: jax.numpy.asarray(leaf))
    is_key = jaxprs.is_key_dtype(aval.dtype)
    impl = jaxprs.key_layout(aval.dtype)[0] if is_key else ""
    if not is_key:
        dtype = jax.dtypes.canonicalize_dtype(aval.dtype)
        aval = jax.ShapeDtypeStruct(aval.shape, dtype)
    return impl, trace.physical_aval(aval)


def _variable_leaf(variable: Variable) -> trees.Leaf:
    return trees.Leaf(variable.op_name, variable.shape, dtypes.dtype_to_number(variable.dtype))


def _leaf_spec(leaf: Any) -> Any:
    """Returns what a function is traced with for a leaf of a signature's arguments."""
    if isinstance(leaf, Variable):
        spec = logical_spec(leaf.shape, leaf.dtype, leaf.key_impl)
        return jax.ShapeDtypeStruct(spec.shape, spec.dtype, weak_type=leaf.weak_type)
    if isinstance(leaf, Tensor):
        impl = leaf.op.node_def.attr[graph.KEY_IMPL_ATTR].s.decode()
        return logical_spec(leaf.shape or (), leaf.dtype, impl)
    return leaf


def logical_spec(shape: values.Shape, dtype: Any, key_impl: str) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype that a program sees of what the graph holds."""
    if not key_impl:
        return jax.ShapeDtypeStruct(shape, dtype)
    key = key_spec(key_impl)
    _, data_shape = jaxprs.key_layout(key.dtype)
    return jax.ShapeDtypeStruct(shape[: len(shape) - len(data_shape)], key.dtype)


@functools.cache
def key_spec(impl: str) -> jax.ShapeDtypeStruct:
    """Returns the spec of a single key of a PRNG implementation.

    Raises:
        FormatError: this JAX has no implementation of that name.
    """
    try:
        key = jax.eval_shape(lambda: jax.random.key(0, impl=impl))
    except ValueError as error:
        raise errors.FormatError(f"this JAX has no PRNG implementation {impl!r}") from error
    return jax.ShapeDtypeStruct((), key.dtype)


def _trace(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    donated: tuple[int, ...],
) -> Any:
    """Returns `jax.jit`'s trace of a function; one that is jitted keeps its own options."""
    jitted = fn if hasattr(fn, "trace") and hasattr(fn, "lower") else None
    if jitted is None:
        jitted = jax.jit(fn, donate_argnums=donated)
    return jitted.trace(*args, **kwargs)


class _SignatureNodes:
    """Adds the nodes of one signature: placeholders, the call, assignments."""

    def __init__(
        self,
        target: Graph,
        name: str,
        fn: Callable[..., Any],
        flat: Sequence[tuple[Any, Any]],
    ) -> None:
        self._graph = target
        self._name = name
        self._flat = flat
        self._leaf_names = _argument_names(fn, [path for path, _ in flat])
        self._tensors: list[str] = []
        self.call_name = name

    def add_call(self, traced: Any) -> list[Edge]:
        """Adds the function, its inputs and the node that calls it; returns its outputs."""
        target = self._graph
        constants = jaxprs.jaxpr_constants(traced.jaxpr)
        tracing = trace.Tracing.into(target)
        specs = [_edge_spec(value) for value in constants]
        function = trace.lower_function(
            tracing, traced.jaxpr, self._name, self._leaf_names, constants=specs
        )
        tracing.commit(self._name)
        # Only now, so that a trace that fails leaves the graph as it was.
        constant_edges = [self._constant_edge(value) for value in constants]
        inputs = [self._input_edge(name, leaf) for name, (_, leaf) in self._named_leaves()]
        signature = target.functions[function].signature
        outputs = target.add_node(
            "PartitionedCall",
            [[*constant_edges, *inputs]],
            {
                "Tout": [argument.type for argument in signature.output_arg],
                "f": values.FunctionRef(function),
                "_XlaMustCompile": True,
            },
            self._name,
        )
        self.call_name = target.last_node_name
        return outputs

    def _named_leaves(self) -> Iterator[tuple[str, tuple[Any, Any]]]:
        return iter(zip(self._leaf_names, self._flat, strict=True))

    def _constant_edge(self, value: Any) -> Edge:
        """Returns the edge of an array that the function closed over."""
        target = self._graph
        impl, _ = _physical(value)
        if not impl and np.asarray(value).nbytes <= _LARGEST_CONSTANT_BYTES:
            array = np.asarray(value)
            (edge,) = target.add_node(
                "Const",
                [],
                {"dtype": array.dtype, "value": array, _definition.CAPTURED_ATTR: True},
                f"{self._name}/Const",
            )
            edge.shape = array.shape
            return edge
        for known, array in target.captured.items():
            if array is value:
                return read_edge(target.variable(known))
        variable = target._add_variable(f"{self._name}/constant", value, is_trainable=False)
        target.captured[variable.op_name] = value
        target.constants[variable.op_name] = jax.random.key_data(value) if impl else value
        return read_edge(variable)

    def _input_edge(self, name: str, leaf: Any) -> Edge:
        target = self._graph
        if isinstance(leaf, Variable):
            if leaf.graph is not target:
                raise errors.GraphError(f"{leaf} belongs to another graph")
            self._tensors.append(leaf.op_name)
            return read_edge(leaf)
        if isinstance(leaf, Tensor):
            self._tensors.append(leaf.name)
            ref = f"{leaf.node_name}:{leaf.index}" if leaf.index else leaf.node_name
            return Edge(ref, leaf.number, leaf.shape)
        impl, aval = _physical(leaf)
        edge = self._placeholder(name, impl, aval)
        self._tensors.append(f"{edge.ref}:0")
        return edge

    def _placeholder(self, name: str, impl: str, aval: jax.ShapeDtypeStruct) -> Edge:
        """Returns a placeholder; one of the same name and kind is shared between signatures."""
        target = self._graph
        attrs: dict[str, Any] = {"dtype": np.dtype(aval.dtype), "shape": aval.shape}
        if impl:
            attrs[graph.KEY_IMPL_ATTR] = impl
        known = target.nodes.get(name)
        number = dtypes.dtype_to_number(aval.dtype)
        if (
            known is not None
            and known.op == "Placeholder"
            and known.attr["dtype"].type == number
            and values.shape_from_proto(known.attr["shape"].shape) == tuple(aval.shape)
            and f"{name}:0" not in self._tensors
        ):
            return Edge(name, number, tuple(aval.shape))
        (edge,) = target.add_node("Placeholder", [], attrs, name)
        edge.shape = tuple(aval.shape)
        return edge

    def make_signature(
        self,
        traced: Any,
        outputs: Sequence[Edge],
        arguments: Any,
        updates: Mapping[int, int],
    ) -> Signature:
        """Returns the signature, having added the assignments of its updates."""
        names = iter(self._tensors)
        by_leaf = trees.describe(
            jax.tree.map(_leaf_spec, arguments, is_leaf=_is_handle),
            lambda _, leaf: _physical_leaf(next(names), leaf),
        )
        results = iter(range(len(outputs)))
        result_tree = trees.describe(
            traced.out_info,
            lambda _, leaf: _physical_leaf(f"{self.call_name}:{next(results)}", leaf),
        )
        impls = tuple(_physical(leaf)[0] for leaf in jax.tree.leaves(traced.out_info))
        train_op = self._add_updates(by_leaf, result_tree, updates) if updates else ""
        return Signature(
            name=self._name,
            function_name=traced.fun_name,
            arguments=by_leaf,
            results=result_tree,
            donated=tuple(info.donated for info in jax.tree.leaves(traced.args_info)),
            updates=tuple(sorted(updates.items())),
            train_op=train_op,
            result_key_impls=impls if any(impls) else (),
        )

    def _add_updates(
        self, arguments: trees.Tree, results: trees.Tree, updates: Mapping[int, int]
    ) -> str:
        """Adds the assignments of results to variables and the operation that runs them all."""
        target = self._graph
        assignments: list[str] = []
        for result_index, argument_index in updates.items():
            targets = list(trees.leaves(argument_tree(arguments, argument_index)))
            sources = list(trees.leaves(result_subtree(results, result_index)))
            _check_update(self._name, targets, sources, target)
            for variable, source in zip(targets, sources, strict=True):
                handle = Edge(variable.name, dtypes.RESOURCE)
                node, index = source.name.split(":")
                ref = node if index == "0" else source.name
                name = f"{self._name}/Assign"
                target.add_node("AssignVariableOp", [handle, Edge(ref, source.number)], {}, name)
                assignments.append(target.last_node_name)
        target.add_node("NoOp", [], {}, f"{self._name}/update", control_inputs=assignments)
        train_op = target.last_node_name
        target.add_to_collection(TRAIN_OP, target.get_operation_by_name(train_op))
        return train_op


def argument_tree(arguments: trees.Tree, index: int) -> trees.Tree:
    """Returns the record of one positional argument out of that of (args, kwargs)."""
    positional = arguments.children[0] if isinstance(arguments, trees.Branch) else None
    if not isinstance(positional, trees.Branch) or not 0 <= index < len(positional.children):
        raise errors.GraphError(f"there is no argument {index} to update")
    return positional.children[index]


def result_subtree(results: trees.Tree, index: int) -> trees.Tree:
    """Returns the record of one result; a result that is not a tuple is result 0 itself."""
    if isinstance(results, trees.Branch) and results.class_name == "builtins.tuple":
        if 0 <= index < len(results.children):
            return results.children[index]
        raise errors.GraphError(f"there is no result {index} to assign")
    if index:
        raise errors.GraphError(f"the function returns one result, not {index + 1}")
    return results


def _check_update(
    name: str, targets: Sequence[trees.Leaf], sources: Sequence[trees.Leaf], target: Graph
) -> None:
    bad = []
    if len(targets) != len(sources):
        bad.append(f"the argument has {len(targets)} arrays, the result {len(sources)}")
    for leaf, source in zip(targets, sources, strict=False):
        if leaf.name not in target.variable_names:
            bad.append(f"{leaf.name} is not a variable")
        elif (leaf.shape, leaf.number) != (source.shape, source.number):
            was = f"{dtypes.dtype_name(leaf.number)}{list(leaf.shape)}"
            now = f"{dtypes.dtype_name(source.number)}{list(source.shape)}"
            bad.append(f"{leaf.name} is {was}, its new value {now}")
    if bad:
        raise errors.GraphError(
            errors.list_offenders(
                f"signature {name!r}: results cannot be assigned back:",
                bad,
                "The result must have the argument's structure, shapes and dtypes.",
            )
        )


def _edge_spec(value: Any) -> Edge:
    """Returns what the edge of an array will look like, before there is a node."""
    _, aval = _physical(value)
    return Edge("", dtypes.dtype_to_number(aval.dtype), tuple(aval.shape))


def _physical_leaf(name: str, leaf: Any) -> trees.Leaf:
    _, aval = _physical(leaf)
    return trees.Leaf(name, tuple(aval.shape), dtypes.dtype_to_number(aval.dtype))


def read_edge(variable: Variable) -> Edge:
    """Returns the edge that reads a variable."""
    name = variable.snapshot_name.removesuffix(":0")
    return Edge(name, dtypes.dtype_to_number(variable.dtype), variable.shape)


def _argument_names(fn: Callable[..., Any], paths: Sequence[Any]) -> list[str]:
    """Returns a name for each leaf of (args, kwargs): the parameter's, then its path."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    plain = [p.name for p in parameters if p.kind in positional]
    names = []
    for which, first, *rest in paths:
        if which.idx == 1:
            root = str(first.key)
        else:
            root = plain[first.idx] if first.idx < len(plain) else f"arg{first.idx}"
        names.append(naming.clean_name("/".join(filter(None, [root, trees.path_name(rest)]))))
    return names


# --- the default graph -------------------------------------------------------------------------

_DEFAULTS = threading.local()


def _default_stack() -> list[Graph]:
    stack: list[Graph] | None = getattr(_DEFAULTS, "stack", None)
    if stack is None:
        stack = _DEFAULTS.stack = []
    return stack


def get_default_graph() -> Graph:
    """Returns the graph of the innermost ``as_default`` block, or the thread's own one."""
    stack = _default_stack()
    if stack:
        return stack[-1]
    if not hasattr(_DEFAULTS, "graph"):
        _DEFAULTS.graph = Graph()
    default: Graph = _DEFAULTS.graph
    return default


def reset_default_graph() -> None:
    """Gives this thread a new default graph.

    Raises:
        GraphError: within an ``as_default`` block.
    """
    if _default_stack():
        raise errors.GraphError("the default graph cannot be reset inside an as_default block")
    _DEFAULTS.graph = Graph()


def add_to_collection(name: str, value: Any) -> None:
    """Appends a value to a collection of the default graph."""
    get_default_graph().add_to_collection(name, value)


def get_collection(name: str) -> list[Any]:
    """Returns a copy of a collection of the default graph."""
    return get_default_graph().get_collection(name)


def name_scope(name: str | None) -> contextlib.AbstractContextManager[str]:
    """Enters a name scope of the default graph; see `Graph.name_scope`."""
    return get_default_graph().name_scope(name)
