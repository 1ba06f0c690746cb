"""Libraries of functions that are merged: equal functions are shared, different ones renamed.

A function is named by nodes that call it, by attrs of kind ``func``, by a few string attrs that
link backwards, and by the gradients of the library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from jaxmeta import op_defs
from jaxmeta._proto import graph_pb2

# Attrs whose string names a function: links back to rules that call what links to them, and
# TensorFlow's links between a function and its gradient.
LINK_ATTRS: Final = frozenset(
    {
        "_jax_jvp",
        "_jax_fwd",
        "_jax_bwd",
        "_jax_rules",
        "forward_function_name",
        "backward_function_name",
    }
)


def plan_function_names(
    added: Iterable[graph_pb2.FunctionDef],
    present: Mapping[str, graph_pb2.FunctionDef],
    unique_name: Callable[[str], str],
) -> dict[str, str]:
    """Returns the new names of functions that differ from those that have their names.

    A function is renamed too where it calls one that is.

    Args:
        added: the functions that come in.
        present: those of the graph, by name.
        unique_name: gives a name that no function has.
    """
    by_name = {function.signature.name: function for function in added}
    colliding = [name for name in by_name if name in present]
    renamed = {name for name in colliding if _content(by_name[name]) != _content(present[name])}
    callees = {name: set(functions_named_in(by_name[name])) for name in colliding}
    while True:
        more = {name for name in colliding if name not in renamed and callees[name] & renamed}
        if not more:
            break
        renamed |= more
    return {name: unique_name(name) for name in by_name if name in renamed}


def _content(function: graph_pb2.FunctionDef) -> bytes:
    return function.SerializeToString(deterministic=True)


def functions_named_in(function: graph_pb2.FunctionDef) -> Iterator[str]:
    """Yields the names of functions that a function refers to, of ops too."""
    for node in function.node_def:
        yield node.op
        yield from _named_in_attrs(node.attr)
    yield from _named_in_attrs(function.attr)


def functions_named_by(node: graph_pb2.NodeDef) -> Iterator[str]:
    """Yields the names of functions that a node refers to, and of its op."""
    yield node.op
    yield from _named_in_attrs(node.attr)


def reached_functions(
    nodes: Iterable[graph_pb2.NodeDef], functions: Sequence[graph_pb2.FunctionDef]
) -> list[graph_pb2.FunctionDef]:
    """Returns those of the functions that nodes refer to, or the functions that these refer to."""
    by_name = {function.signature.name: function for function in functions}
    found: set[str] = set()
    pending = [name for node in nodes for name in functions_named_by(node)]
    while pending:
        name = pending.pop()
        if name in by_name and name not in found:
            found.add(name)
            pending.extend(functions_named_in(by_name[name]))
    return [function for function in functions if function.signature.name in found]


def _named_in_attrs(attrs: Mapping[str, graph_pb2.AttrValue]) -> Iterator[str]:
    for name, value in attrs.items():
        kind = value.WhichOneof("value")
        if kind == "func":
            yield value.func.name
            yield from _named_in_attrs(value.func.attr)
        elif kind == "list":
            for func in value.list.func:
                yield func.name
                yield from _named_in_attrs(func.attr)
            if name in LINK_ATTRS:
                yield from (link.decode(errors="replace") for link in value.list.s)
        elif kind == "s" and name in LINK_ATTRS:
            yield value.s.decode(errors="replace")


def rename_function(function: graph_pb2.FunctionDef, names: Mapping[str, str]) -> None:
    """Gives a function and all that it refers to their new names."""
    signature = function.signature
    signature.name = names.get(signature.name, signature.name)
    for node in function.node_def:
        rename_functions_of(node, names)
    _rename_in_attrs(function.attr, names)


def rename_functions_of(node: graph_pb2.NodeDef, names: Mapping[str, str]) -> None:
    """Gives the functions that a node refers to their new names."""
    node.op = names.get(node.op, node.op)
    _rename_in_attrs(node.attr, names)


def _rename_in_attrs(attrs: Mapping[str, graph_pb2.AttrValue], names: Mapping[str, str]) -> None:
    for name, value in attrs.items():
        kind = value.WhichOneof("value")
        if kind == "func":
            _rename_func(value.func, names)
        elif kind == "list":
            for func in value.list.func:
                _rename_func(func, names)
            if name in LINK_ATTRS:
                links = [link.decode(errors="replace") for link in value.list.s]
                value.list.s[:] = [names.get(link, link).encode() for link in links]
        elif kind == "s" and name in LINK_ATTRS:
            linked = value.s.decode(errors="replace")
            if linked in names:
                value.s = names[linked].encode()


def _rename_func(func: graph_pb2.NameAttrList, names: Mapping[str, str]) -> None:
    func.name = names.get(func.name, func.name)
    _rename_in_attrs(func.attr, names)


def used_op_defs(
    nodes: Iterable[graph_pb2.NodeDef], functions: Mapping[str, graph_pb2.FunctionDef]
) -> list[graph_pb2.OpDef]:
    """Returns the OpDefs, by name, of the ops that nodes and the whole library use."""
    ops = {node.op for node in nodes}
    for function in functions.values():
        ops.update(node.op for node in function.node_def)
    return [op_defs.get_op_def(op) for op in sorted(ops - functions.keys()) if op_defs.has_op(op)]


def stripped_op_list_for_graph(graph_def: graph_pb2.GraphDef) -> graph_pb2.OpList:
    """Returns the OpDefs of the ops that a graph uses, in the functions that it reaches too.

    Functions may call each other in a circle. Ops that are unknown are left out.
    """
    functions = {function.signature.name: function for function in graph_def.library.function}
    ops: set[str] = set()
    reached: set[str] = set()
    waiting = [name for node in graph_def.node for name in functions_named_by(node)]
    ops.update(node.op for node in graph_def.node)
    while waiting:
        name = waiting.pop()
        if name in functions and name not in reached:
            reached.add(name)
            ops.update(node.op for node in functions[name].node_def)
            waiting.extend(functions_named_in(functions[name]))
    names = sorted(ops - functions.keys())
    return graph_pb2.OpList(op=[op_defs.get_op_def(op) for op in names if op_defs.has_op(op)])


def attrs_of_producer(
    producer_op_list: graph_pb2.OpList,
) -> dict[str, dict[str, graph_pb2.AttrValue]]:
    """Returns the defaults of the attrs that only the given OpDefs have, by op and attr."""
    found: dict[str, dict[str, graph_pb2.AttrValue]] = {}
    for op_def in producer_op_list.op:
        if not op_defs.has_op(op_def.name):
            continue
        known = {attr.name for attr in op_defs.get_op_def(op_def.name).attr}
        extra = {
            attr.name: attr.default_value
            for attr in op_def.attr
            if attr.name not in known and attr.HasField("default_value")
        }
        if extra:
            found[op_def.name] = extra
    return found
