"""Edited copies of graphs: tensors replaced, cut off, changed; nodes renamed, or left out.

Each edit returns a new graph; the old one, with the sessions and programs that run it, stays as it
was. Names reach into the functions that a graph calls: where ``predict/Dense_0/Relu:0`` is edited,
the copy has the nodes of the function ``predict`` in place of the call, and the signature goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from jaxmeta import dtypes, errors, naming, trees
from jaxmeta._proto import graph_pb2
from jaxmeta.execution import ordering
from jaxmeta.graphs import calling, copying, elementary, function_library, inlining, renaming
from jaxmeta.graphs.graph import GraphBuilder
from jaxmeta.graphs.handles import Operation, Tensor
from jaxmeta.graphs.variable_handles import Variable

_G = TypeVar("_G", bound=GraphBuilder)
_Nodes = Mapping[str, graph_pb2.NodeDef]

# --- edits -------------------------------------------------------------------------------------


def replace(target: _G, old: Any, new: Any) -> _G:
    """Returns a graph in which whatever took one tensor takes another one.

    What the new tensor is computed from stays as it is, so that it may depend on the old one. A
    signature that returned the old tensor returns the new one.

    Args:
        target: the graph.
        old: a tensor, or its name.
        new: a tensor of the graph, its name, or an array, which becomes a constant.

    Raises:
        GraphError: a name is unknown, or the tensors differ in dtype or shape.
    """
    edited = duplicate(target, _names([old, new]))
    before = _tensor(edited, old)
    if isinstance(new, (str, Tensor)):
        after = _tensor(edited, new)
    else:
        after = elementary.convert_to_tensor(edited, new, "Const", before.dtype)
    return _rewire(edited, before, after)


def insert(target: _G, tensor: Any, fn: Callable[[Any], Any], name: str | None = None) -> _G:
    """Returns a graph in which whatever took a tensor takes a function of it.

    Args:
        target: the graph.
        tensor: the tensor, or its name.
        fn: a JAX function from its value to an array of the same shape and dtype.
        name: a scope for the nodes of the function.

    Raises:
        GraphError: the name is unknown, or the function changes dtype or shape.
        UnsupportedPrimitiveError: the function holds primitives without a node form.
    """
    edited = duplicate(target, _names([tensor]))
    before = _tensor(edited, tensor)
    after = calling.call(edited, fn, [before], {}, name)
    if not isinstance(after, Tensor):
        raise errors.GraphError(f"the function to insert returns {after!r}; expected one array")
    return _rewire(edited, before, after)


def cut(target: _G, tensor: Any, name: str | None = None) -> _G:
    """Returns a graph in which a tensor is no longer computed, but fed.

    A signature whose results need it is left out of the copy, because nothing would feed it.

    Args:
        target: the graph.
        tensor: the tensor, or its name.
        name: of the placeholder; ``node/fed`` for a tensor ``node:0`` where None.

    Raises:
        GraphError: the name is unknown.
    """
    edited = duplicate(target, _names([tensor]))
    before = _tensor(edited, tensor)
    wanted = name or f"{before.node_name}/fed"
    after = elementary.add_placeholder(edited, before.dtype, before.shape, wanted)
    return _rewire(edited, before, after)


def rename(target: _G, names: Mapping[str, str]) -> _G:
    """Returns a graph in which nodes, or whole scopes, have other names.

    Variables are known to checkpoints by their names. A checkpoint that was written before can be
    restored through ``Saver({"old/name": variable})``.

    Args:
        target: the graph.
        names: the new names of nodes and scopes, without a slash at the end, by the old ones.

    Raises:
        GraphError: a name is unknown, taken or malformed; all are listed.
    """
    found = {
        node: new + node[len(old) :]
        for old, new in names.items()
        for node in target.nodes
        if node == old or node.startswith(f"{old}/")
    }
    unknown = [
        old for old in names if not any(n == old or n.startswith(f"{old}/") for n in target.nodes)
    ]
    kept = {name for name in target.nodes if name not in found}
    bad = [f"{old!r}: there is no such node or scope" for old in unknown]
    bad += [f"{new!r} is taken" for new in found.values() if new in kept]
    bad += [f"{new!r} is given twice" for new in _repeated(found.values())]
    for new in found.values():
        with _listing_faults(bad):
            naming.check_node_name(new)
    if bad:
        raise errors.GraphError(errors.list_offenders("these nodes cannot be renamed:", bad))
    renames_variables = any(name in found for name in target.variable_names)
    nodes = copying.without_saver(target, target.nodes) if renames_variables else target.nodes
    return copying.rebuild(target, nodes, rename_nodes=renaming.Renaming("", found))


def prune(target: _G, fetches: Any) -> _G:
    """Returns a graph with only what some fetches need.

    Variables that are needed keep the nodes that initialize and read them. Signatures, parts of
    the state, items of collections and functions that refer to what is left out are left out too.

    Args:
        target: the graph.
        fetches: tensors, operations, variables, names of these, or names of signatures; one, or a
            list.

    Raises:
        GraphError: a name is unknown.
    """
    wanted: dict[str, None] = {}
    items = fetches if isinstance(fetches, (list, tuple, set)) else [fetches]
    nodes = inlining.inline_calls(target, [n for n in _names(items) if n not in target.signatures])
    for item in items:
        wanted.update(dict.fromkeys(_nodes_of(target, nodes, item)))
    kept: dict[str, graph_pb2.NodeDef] = {}
    while True:
        kept = {node.name: node for node in ordering.sort_nodes(nodes, wanted)}
        more = [
            name
            for variable in map(target.variable, target.variable_names)
            if variable.op_name in kept
            for name in _nodes_of_variable(variable)
            if name in nodes and name not in kept
        ]
        if not more:
            break
        wanted.update(dict.fromkeys(more))
    return copying.rebuild(
        target, {name: node for name, node in nodes.items() if name in kept}, less=True
    )


def merge(target: _G, other: GraphBuilder, scope: str) -> _G:
    """Returns a graph that holds two graphs, the second one in a scope.

    Args:
        target: the first graph, whose names stay.
        other: the second graph.
        scope: for the names of its nodes, signatures and state; made unique.

    Raises:
        GraphError: the scope is malformed.
    """
    naming.check_scope_name(scope, is_root=True)
    edited = duplicate(target)
    scope = edited.unique_name(scope.rstrip("/"))
    names = function_library.plan_function_names(
        other.functions.values(), edited.functions, edited.unique_function_name
    )
    for function in other.functions.values():
        if function.signature.name in names or function.signature.name not in edited.functions:
            added = copying.copied(function)
            function_library.rename_function(added, names)
            edited.add_function(added)
    for gradient in other.gradients:
        added_gradient = copying.copied(gradient)
        added_gradient.function_name = names.get(gradient.function_name, gradient.function_name)
        added_gradient.gradient_func = names.get(gradient.gradient_func, gradient.gradient_func)
        edited.gradients.append(added_gradient)
    for registered in other.registered_gradients:
        added_rule = copying.copied(registered)
        added_rule.gradient_func = names.get(registered.gradient_func, registered.gradient_func)
        edited.registered_gradients.append(added_rule)
    nodes = copying.without_saver(other, other.nodes)
    mover = copying.Mover(edited, renaming.Renaming(scope, {}), set(nodes))
    added_nodes = {}
    for node in nodes.values():
        made = mover.node(node)
        function_library.rename_functions_of(made, names)
        added_nodes[made.name] = made
    edited.add_node_defs(added_nodes)
    mover.fill(other, scope)
    return copying.rebuild(edited, copying.without_saver(edited, edited.nodes))


# --- what edits are made of --------------------------------------------------------------------


def duplicate(target: _G, names: Iterable[str] = ()) -> _G:
    """Returns a copy of a graph, in which calls are replaced that the names lie inside."""
    return copying.rebuild(target, _inlined(target, names))


def _inlined(target: GraphBuilder, names: Iterable[str]) -> _Nodes:
    """Returns the graph's nodes with calls replaced; what marks a signature stays on its node."""
    nodes = inlining.inline_calls(target, names)
    if nodes is target.nodes:
        return nodes
    ordered = dict(nodes)
    for name, node in target.nodes.items():
        if ordered[name] is not node:
            for attr in node.attr:
                if attr.startswith("_jax_"):
                    ordered[name].attr[attr].CopyFrom(node.attr[attr])
    return ordered


def _rewire(target: _G, old: Tensor, new: Tensor) -> _G:
    """Returns a copy in which all but what ``new`` depends on take it in the place of ``old``."""
    _check_fits(old, new)
    kept = {node.name for node in ordering.sort_nodes(target.nodes, [new.node_name])}
    ref = elementary.edge_of(new).ref
    nodes = {}
    for name, node in target.nodes.items():
        nodes[name] = node
        places = [i for i, given in enumerate(node.input) if _names_tensor(given, old)]
        if places and name not in kept:
            nodes[name] = copying.copied(node)
            for place in places:
                nodes[name].input[place] = ref

    def renamed(name: str) -> str:
        return new.name if name == old.name else name

    edited = copying.rebuild(target, nodes)
    for name, signature in edited.signatures.items():
        results = trees.rename_leaves(signature.results, renamed)
        edited.signatures[name] = dataclasses.replace(signature, results=results)
    _drop_unfed_signatures(edited)
    return edited


def _names_tensor(ref: str, tensor: Tensor) -> bool:
    if ref.startswith("^"):
        return False
    return (ref if ":" in ref else f"{ref}:0") == tensor.name


def _check_fits(old: Tensor, new: Tensor) -> None:
    if dtypes.base_number(old.number) != dtypes.base_number(new.number):
        was, now = dtypes.dtype_name(old.number), dtypes.dtype_name(new.number)
        raise errors.GraphError(f"{new.name} is {now}; what takes {old.name} expects {was}")
    if old.shape is None or new.shape is None:
        return
    differ = len(old.shape) != len(new.shape) or any(
        was is not None and now is not None and was != now
        for was, now in zip(old.shape, new.shape, strict=True)
    )
    if differ:
        raise errors.GraphError(
            f"{new.name} has shape {list(new.shape)}; what takes {old.name} expects "
            f"{list(old.shape)}"
        )


def _drop_unfed_signatures(target: GraphBuilder) -> None:
    """Leaves out the signatures whose results need what is none of their arguments."""
    for name, signature in list(target.signatures.items()):
        given = frozenset(leaf.name.split(":")[0] for leaf in trees.leaves(signature.arguments))
        wanted = [leaf.name.split(":")[0] for leaf in trees.leaves(signature.results)]
        reached = ordering.sort_nodes(target.nodes, wanted, given)
        if any(node.op == "Placeholder" and node.name not in given for node in reached):
            del target.signatures[name]


# --- names -------------------------------------------------------------------------------------


def _names(items: Iterable[Any]) -> list[str]:
    """Returns the names among tensors, operations, variables, names and arrays."""
    return [
        item if isinstance(item, str) else item.name
        for item in items
        if isinstance(item, (str, Tensor, Operation, Variable))
    ]


def _tensor(target: GraphBuilder, tensor: Any) -> Tensor:
    """Returns the tensor of a name, or of a handle on another graph."""
    name = tensor if isinstance(tensor, str) else tensor.name
    return target.get_tensor_by_name(name if ":" in name else f"{name}:0")


def _nodes_of(target: GraphBuilder, nodes: _Nodes, fetch: Any) -> list[str]:
    """Returns the nodes that are needed for a fetch."""
    name = fetch if isinstance(fetch, str) else fetch.name
    signature = target.signatures.get(name)
    if signature is not None:
        leaves = (*trees.leaves(signature.arguments), *trees.leaves(signature.results))
        found = [leaf.name.split(":")[0] for leaf in leaves]
        return [*found, signature.train_op] if signature.train_op else found
    node = name.split(":")[0]
    if node not in nodes:
        raise errors.GraphError(f"{name!r} names no node and no signature of the graph")
    return [node]


def _nodes_of_variable(variable: Variable) -> list[str]:
    names = (variable.initializer_name, variable.snapshot_name, variable.initial_value_name)
    return [name.split(":")[0] for name in names if name]


def _repeated(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    repeated = []
    for name in names:
        if name in seen:
            repeated.append(name)
        seen.add(name)
    return repeated


@contextlib.contextmanager
def _listing_faults(faults: list[str]) -> Any:
    try:
        yield
    except errors.GraphError as error:
        faults.append(str(error))
