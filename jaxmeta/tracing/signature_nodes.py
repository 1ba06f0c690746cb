"""The nodes of an entry point: placeholders, the call of its function, and assignments."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jax
import numpy as np

from jaxmeta import dtypes, errors, naming, shardings, specs, tree_keys, trees, values
from jaxmeta._proto import graph_pb2
from jaxmeta.graphs import graph, nodes
from jaxmeta.graphs.graph import Signature, Tensor, Variable
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops import _definition
from jaxmeta.tracing import dimensions, discharging, jaxprs, static_arguments, trace

TRAIN_OP: Final = "train_op"
SIGNATURE_ATTR: Final = "_jax_signature"  # on the node that calls it: its name

# Arrays that a traced function closed over: larger ones become variables, smaller ones constants.
_LARGEST_CONSTANT_BYTES: Final = 1024


class SignatureNodes:
    """Adds the nodes of one signature: placeholders, the call, assignments."""

    def __init__(
        self,
        target: graph.GraphBuilder,
        name: str,
        flat: Sequence[tuple[str, Any]],
        carries: Sequence[str] = (),
    ) -> None:
        self._graph = target
        self._name = name
        self._flat = flat
        self._carries = carries
        self._tensors: list[str] = []
        self.call_name = name

    def add_call(self, traced: Any) -> list[Edge]:
        """Adds the function, its inputs and the node that calls it; returns its outputs."""
        target = self._graph
        jaxpr = discharging.without_refs(traced.jaxpr)
        constants = jaxprs.jaxpr_constants(jaxpr)
        tracing = trace.Tracing.into(target, self._carries)
        specs = [_edge_spec(value) for value in constants]
        function = trace.lower_function(
            tracing, jaxpr, self._name, [leaf for leaf, _ in self._flat], constants=specs
        )
        tracing.commit(self._name)
        # Only now, so that a trace that fails leaves the graph as it was.
        constant_edges = [self._constant_edge(value) for value in constants]
        inputs = [self._input_edge(name, leaf) for name, leaf in self._flat]
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

    def _constant_edge(self, value: Any) -> Edge:
        """Returns the edge of an array that the function closed over."""
        target = self._graph
        impl, _ = specs.physical(value)
        if not impl and np.asarray(value).nbytes <= _LARGEST_CONSTANT_BYTES:
            array = np.asarray(value)
            attrs = {"dtype": array.dtype, "value": array, _definition.CAPTURED_ATTR: True}
            sharding = shardings.of_array(value)
            if sharding is not None:
                attrs.update(shardings.sharding_to_attrs(sharding))
            (edge,) = target.add_node("Const", [], attrs, f"{self._name}/Const")
            edge.shape = array.shape
            return edge
        for known, array in target.captured.items():
            if array is value:
                return read_edge(target.variable(known))
        variable = target.add_variable(f"{self._name}/constant", value, is_trainable=False)
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
        impl, aval = specs.physical(leaf)
        edge = self._placeholder(name, impl, aval, shardings.of_array(leaf))
        self._tensors.append(f"{edge.ref}:0")
        return edge

    def _placeholder(
        self,
        name: str,
        impl: str,
        aval: jax.ShapeDtypeStruct,
        sharding: shardings.Recorded | None,
    ) -> Edge:
        """Returns a placeholder; one of the same name and kind is shared between signatures."""
        target = self._graph
        attrs: dict[str, Any] = {"dtype": np.dtype(aval.dtype), "shape": aval.shape}
        if impl:
            attrs[nodes.KEY_IMPL_ATTR] = impl
        if dimensions.is_symbolic(aval.shape):
            attrs[nodes.DIMS_ATTR] = list(map(str, aval.shape))
        if sharding is not None:
            attrs.update(shardings.sharding_to_attrs(sharding))
        known = target.nodes.get(name)
        number = dtypes.dtype_to_number(aval.dtype)
        if (
            known is not None
            and known.op == "Placeholder"
            and known.attr["dtype"].type == number
            and sizes_as_text(known) == tuple(map(str, aval.shape))
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
        jit_shardings: tuple[Sequence[Any], Sequence[Any]] = ((), ()),
    ) -> Signature:
        """Returns the signature, having added the assignments of its updates."""
        ins, outs = (tuple(map(shardings.to_recorded, side)) for side in jit_shardings)
        names = iter(self._tensors)
        by_leaf = trees.describe(
            jax.tree.map(leaf_spec, arguments, is_leaf=is_handle),
            lambda _, leaf: specs.physical_leaf(next(names), leaf),
        )
        results = iter(range(len(outputs)))
        result_tree = trees.describe(
            traced.out_info,
            lambda _, leaf: specs.physical_leaf(f"{self.call_name}:{next(results)}", leaf),
        )
        impls = tuple(specs.physical(leaf)[0] for leaf in jax.tree.leaves(traced.out_info))
        self._graph.record_result_shapes(result_tree)
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
            constraints=dimensions.constraints(_sizes_of(traced.in_avals)),
            in_shardings=ins if any(ins) else (),
            out_shardings=outs if any(outs) else (),
        )

    def _add_updates(
        self, arguments: trees.Tree, results: trees.Tree, updates: Mapping[int, int]
    ) -> str:
        """Adds the assignments of results to variables and the operation that runs them all."""
        target = self._graph
        assignments: list[str] = []
        for result_index, argument_index in updates.items():
            updated = argument_tree(arguments, argument_index)
            result = result_subtree(results, result_index)
            _check_update(self._name, updated, result, results, target)
            for variable, source in zip(trees.leaves(updated), trees.leaves(result), strict=True):
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


def sizes_as_text(node: graph_pb2.NodeDef, leaf: trees.Leaf | None = None) -> tuple[str, ...]:
    """Returns the shape of a placeholder, each size as text.

    What is unknown has a name of its own.

    Args:
        node: the placeholder, or another node.
        leaf: the record of its tensor, which has the shape where the node has none.
    """
    if nodes.DIMS_ATTR in node.attr:
        return tuple(size.decode() for size in node.attr[nodes.DIMS_ATTR].list.s)
    shape = leaf.shape if leaf is not None else None
    if shape is None and "shape" in node.attr:
        shape = values.shape_from_proto(node.attr["shape"].shape)
    stem = re.sub(r"\W", "_", node.name)
    return tuple(
        f"unknown_{stem}_{axis}" if size is None else str(size)
        for axis, size in enumerate(shape or ())
    )


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
    name: str,
    argument: trees.Tree,
    result: trees.Tree,
    results: trees.Tree,
    target: graph.GraphBuilder,
) -> None:
    """Raises GraphError where a result is no new value of an argument."""
    paths = trees.leaf_paths(argument)
    bad = tree_keys.differing_paths(
        paths, trees.leaf_paths(result), "not in the result", "only in the result"
    )
    advice = "The result must have the argument's structure, shapes and dtypes."
    if bad and result is not results and trees.leaf_paths(results) == paths:
        advice += " All results together have: return (state,), for a tuple counts as several."
    pairs = [] if bad else zip(trees.leaves(argument), trees.leaves(result), strict=True)
    for leaf, source in pairs:
        if leaf.name not in target.variable_names:
            bad.append(f"{leaf.name} is not a variable")
        elif (leaf.shape, leaf.number) != (source.shape, source.number):
            was = f"{dtypes.dtype_name(leaf.number)}{list(leaf.shape)}"
            now = f"{dtypes.dtype_name(source.number)}{list(source.shape)}"
            bad.append(f"{leaf.name} is {was}, its new value {now}")
    if bad:
        headline = f"signature {name!r}: results cannot be assigned back:"
        raise errors.GraphError(errors.list_offenders(headline, bad, advice))


def name_leaves(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    static: static_arguments.StaticArguments,
) -> list[str]:
    """Returns a name for each leaf of a function's arguments: the parameter's, then its path."""
    held = [None if i in static.positional else arg for i, arg in enumerate(args)]
    named = {name: arg for name, arg in kwargs.items() if name not in static.named}
    flat, _ = jax.tree_util.tree_flatten_with_path((held, named), is_leaf=is_handle)
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    plain = [p.name for p in parameters if p.kind in positional]
    names = []
    for (which, first, *rest), _ in flat:
        if which.idx == 1:
            root = str(first.key)
        else:
            root = plain[first.idx] if first.idx < len(plain) else f"arg{first.idx}"
        names.append(naming.clean_name("/".join(filter(None, [root, tree_keys.path_name(rest)]))))
    return names


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
    if signature.constraints:
        attrs["_jax_dim_constraints"] = signature.constraints
    attrs.update(shardings.signature_to_attrs(signature.in_shardings, signature.out_shardings))
    return attrs


def is_handle(value: Any) -> bool:
    """Returns whether a leaf of a signature's arguments stands for what is in the graph."""
    return isinstance(value, (Variable, Tensor))


def leaf_spec(leaf: Any) -> Any:
    """Returns what a function is traced with for a leaf of a signature's arguments."""
    if isinstance(leaf, Variable):
        spec = specs.logical_spec(leaf.shape, leaf.dtype, leaf.key_impl)
        traced = leaf.graph.traced_shardings.get(leaf.op_name)
        sharding = traced or shardings.Placement().sharding(leaf.sharding)
        return jax.ShapeDtypeStruct(
            spec.shape, spec.dtype, weak_type=leaf.weak_type, sharding=sharding
        )
    if isinstance(leaf, Tensor):
        impl = leaf.op.node_def.attr[nodes.KEY_IMPL_ATTR].s.decode()
        return specs.logical_spec(leaf.shape or (), leaf.dtype, impl)
    return leaf


def symbolize(arguments: Any) -> Any:
    """Returns arguments in which each size that is a string is a symbolic dimension.

    Raises:
        GraphError: a string is no expression of dimensions.
    """
    leaves, treedef = jax.tree.flatten(arguments, is_leaf=is_handle)
    places = [i for i, leaf in enumerate(leaves) if _has_names(leaf)]
    if not places:
        return arguments
    symbolic = [leaf.shape for leaf in leaves if not is_handle(leaf) and hasattr(leaf, "shape")]
    shapes = iter(dimensions.symbolize([*(leaves[i].shape for i in places), *symbolic]))
    for place, shape in zip(places, shapes, strict=False):
        leaf = leaves[place]
        is_weak = jaxprs.is_weak(leaf)
        leaves[place] = jax.ShapeDtypeStruct(shape, leaf.dtype, weak_type=is_weak)
    return jax.tree.unflatten(treedef, leaves)


def _has_names(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct) and any(isinstance(s, str) for s in leaf.shape)


def explain_symbolic_failure(error: Exception, name: str, leaf_specs: Any) -> None:
    """Adds to an error of JAX's that a signature was traced with symbolic dimensions."""
    names = dimensions.names_of(_sizes_of(leaf_specs))
    if names:
        error.add_note(
            f"while tracing signature {name!r} with the symbolic dimensions {', '.join(names)}: "
            "JAX has to know more of them here. Constraints tell it more, as in "
            "jax.export.symbolic_shape('batch', constraints=['batch >= 8']); or give the size as "
            "a number."
        )


def _sizes_of(tree: Any) -> list[Any]:
    return [size for leaf in jax.tree.leaves(tree) for size in getattr(leaf, "shape", ())]


def check_updates_exist(name: str, updates: Mapping[int, int], num_args: int) -> None:
    """Raises GraphError where an updated argument is not there."""
    for argument in updates.values():
        if not 0 <= argument < num_args:
            raise errors.GraphError(
                f"signature {name!r}: there is no argument {argument} to update, only {num_args}"
            )


def _edge_spec(value: Any) -> Edge:
    """Returns what the edge of an array will look like, before there is a node."""
    _, aval = specs.physical(value)
    return Edge("", dtypes.dtype_to_number(aval.dtype), tuple(aval.shape))


def read_edge(variable: Variable) -> Edge:
    """Returns the edge that reads a variable."""
    name = variable.snapshot_name.removesuffix(":0")
    return Edge(name, dtypes.dtype_to_number(variable.dtype), variable.shape)
