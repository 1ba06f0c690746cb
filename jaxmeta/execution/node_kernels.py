"""The kernels of nodes: which one the op tables have for a node, and the attrs it runs with.

Nothing here knows an op by name; what is special about an op stands in its kernel.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from jaxmeta import dtypes, errors, op_defs, shardings, values
from jaxmeta._proto import graph_pb2
from jaxmeta.ops import _definition, _kernels
from jaxmeta.tracing import dimension_nodes, sizes

_EMPTY: Final = inspect.Parameter.empty
_TYPE_ATTRS: Final = ("T", "Tparams", "dtype")  # the type of what an op of any type takes
_FUNCTION_ATTR: Final = "f"  # which function a PartitionedCall and its kin call

# What a step needs to know of its kernel where the op table has none.
PLAIN_KERNEL: Final = _kernels.Kernel(lambda *inputs: inputs)
CALL_KERNEL: Final = _kernels.Kernel(lambda *inputs: inputs, is_stateful=True)


class FunctionLibrary(Protocol):
    """What a plan asks of the functions of a graph; see `executor.Library`."""

    placement: shardings.Placement

    def __getitem__(self, name: str) -> Any:
        """Returns a function."""

    def definition(self, name: str) -> graph_pb2.FunctionDef | None:
        """Returns the FunctionDef of a name, or None."""

    def may_need_values(self, name: str) -> bool:
        """Returns whether a function cannot be traced."""

    def calls_on_host(self, node: graph_pb2.NodeDef) -> bool:
        """Returns whether functions that a node calls work on strings, tables or files."""


class NodeKernels:
    """Finds the kernels of nodes, and binds them to the nodes' attrs.

    Attributes:
        unsupported: the nodes met without a kernel, as lines of a message.
        may_need_values: whether a function that was met cannot be traced.
    """

    def __init__(self, library: FunctionLibrary, *, is_compiled: bool = False) -> None:
        self._library = library
        self._is_compiled = is_compiled  # whether loops and branches shall be
        self.unsupported: dict[str, None] = {}
        self.may_need_values = False

    def find(self, node: graph_pb2.NodeDef) -> _kernels.Kernel:
        """Returns the kernel of a node; one that must not run where there is none."""
        op, attr = node.op, node.attr
        kernel = None
        if _definition.PRIMITIVE_ATTR in attr:
            primitive = attr[_definition.PRIMITIVE_ATTR].s.decode()
            kernel = _definition.PRIMITIVE_KERNELS.get(primitive)
        if kernel is None and self._is_compiled:
            kernel = _definition.TRACED_KERNELS.get(op)
        if kernel is None:
            kernel = _definition.KERNELS.get(op)
        if kernel is not None and op in _definition.STRING_KERNELS and _is_of_strings(attr):
            kernel = _definition.STRING_KERNELS[op]
        if kernel is None:
            if self._library.definition(op) is not None:
                return CALL_KERNEL
            reason = _definition.REFUSED_OPS.get(op)
            because = f": {reason}" if reason else ""
            self.unsupported[f"{op}  (node {node.name!r}){because}"] = None
            return PLAIN_KERNEL
        if kernel.traced_where and attr[kernel.traced_where].b:
            kernel = dataclasses.replace(kernel, is_host=False)
        if dimension_nodes.DIMENSIONS_ATTR in attr and kernel.static:
            # Its inputs are not where they are without sizes before them.
            return dataclasses.replace(kernel, static=frozenset())
        return _with_static_lists(node, kernel) if kernel.static else kernel

    def bind(
        self, node: graph_pb2.NodeDef, kernel: _kernels.Kernel, num_outputs: int
    ) -> Callable[..., Any]:
        """Returns what a step runs: the kernel with the node's attrs."""
        if kernel.run is CALL_KERNEL.run:
            called: Callable[..., Any] = self._function(node.op).call_with_state
            return called
        if kernel.run is PLAIN_KERNEL.run:
            return _refuse
        run, attr = kernel.run, node.attr
        if dimension_nodes.DIMENSIONS_ATTR in attr:
            names = values.attr_from_proto(attr[dimension_nodes.DIMENSIONS_ATTR])
            has_symbolic = _definition.SYMBOLIC_ATTR in attr
            symbolic = attr[_definition.SYMBOLIC_ATTR].list.s if has_symbolic else ()
            return sizes.sized(
                run,
                self._keywords(node, kernel),
                [name.decode() for name in names],
                frozenset(name.decode() for name in symbolic),
                sizes.num_inputs_before_operands(node.op) + kernel.is_stateful,
                num_outputs,
            )
        return self.with_attrs(node, kernel)

    def with_attrs(self, node: graph_pb2.NodeDef, kernel: _kernels.Kernel) -> Callable[..., Any]:
        """Returns a kernel as a function of arrays alone, with the attrs of a node."""
        run = kernel.run
        if not (kernel.attrs or kernel.injected):
            return run
        keywords = self._keywords(node, kernel)
        return lambda *inputs: run(*inputs, **keywords)

    def _keywords(self, node: graph_pb2.NodeDef, kernel: _kernels.Kernel) -> dict[str, Any]:
        keywords: dict[str, Any] = {}
        attr = node.attr
        for argument, name, default in kernel.attrs:
            if name in attr:
                keywords[argument] = self._plain(values.attr_from_proto(attr[name]))
            elif default is not _EMPTY:
                keywords[argument] = default
            else:
                keywords[argument] = self._attr_default(node, name)
        for name in kernel.injected:
            keywords[name] = self._injected(node, name)
        return keywords

    def _injected(self, node: graph_pb2.NodeDef, name: str) -> Any:
        if name == _kernels.LIBRARY:
            return self._library
        return node.name if name == _kernels.NODE_NAME else self._called_function(node)

    def _attr_default(self, node: graph_pb2.NodeDef, name: str) -> Any:
        default = _attr_default(node.op, name)
        if default is None:
            raise errors.AttrError(
                f"node {node.name!r} ({node.op}): the attr {name!r} is missing and has no default"
            )
        return default

    def _plain(self, value: Any) -> Any:
        """Turns names of functions into functions."""
        if isinstance(value, values.FunctionRef):
            return self._function(value)
        if isinstance(value, tuple) and value and isinstance(value[0], values.FunctionRef):
            return tuple(map(self._function, value))
        return value

    def _called_function(self, node: graph_pb2.NodeDef) -> Any:
        if _FUNCTION_ATTR in node.attr:
            return self._function(node.attr[_FUNCTION_ATTR].func.name)
        return self._function(node.op)

    def _function(self, name: str) -> Any:
        if self._library.may_need_values(name):
            self.may_need_values = True
        return self._library[name]


def _is_of_strings(attr: Mapping[str, graph_pb2.AttrValue]) -> bool:
    """Returns whether a node of an op of any type is one of strings."""
    return any(
        name in attr and (attr[name].type or next(iter(attr[name].list.type), 0)) == dtypes.STRING
        for name in _TYPE_ATTRS
    )


@functools.cache
def _attr_default(op: str, name: str) -> Any:
    """Returns what the OpDef says, or None."""
    if not op_defs.has_op(op) or name.startswith("_"):
        return None
    default = op_defs.attr_default(op_defs.get_op_def(op), name)
    return None if default is None else values.attr_from_proto(default)


@functools.cache
def _takes_lists(op: str) -> bool:
    return op_defs.has_op(op) and any(arg.number_attr for arg in op_defs.get_op_def(op).input_arg)


def static_inputs(node: graph_pb2.NodeDef) -> frozenset[int]:
    """Returns which inputs of a node must be known while tracing, by position."""
    attr = node.attr
    if dimension_nodes.DIMENSIONS_ATTR in attr:
        first = sizes.num_inputs_before_operands(node.op)
        return frozenset(range(first, first + len(attr[dimension_nodes.DIMENSIONS_ATTR].list.s)))
    kernel = _definition.KERNELS.get(node.op)
    return _with_static_lists(node, kernel).static if kernel is not None else frozenset()


def _with_static_lists(node: graph_pb2.NodeDef, kernel: _kernels.Kernel) -> _kernels.Kernel:
    """Returns a kernel whose static inputs are those of the node, where an argument is a list."""
    if not _takes_lists(node.op):
        return kernel
    static: list[int] = []
    first = 0
    for index, (_, count) in enumerate(op_defs.input_names(op_defs.get_op_def(node.op), node)):
        if index in kernel.static:
            static.extend(range(first, first + count))
        first += count
    return dataclasses.replace(kernel, static=frozenset(static))


def bind_attrs(
    node: graph_pb2.NodeDef, kernel: _kernels.Kernel, library: FunctionLibrary
) -> Callable[..., Any]:
    """Returns a kernel as a function of arrays alone, with the attrs of a node."""
    return NodeKernels(library).with_attrs(node, kernel)


def _refuse(*_: Any) -> Any:
    raise AssertionError("a node without a kernel was run")
