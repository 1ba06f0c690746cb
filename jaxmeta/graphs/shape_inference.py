"""Static shapes of the tensors of a graph that does not record them, as TensorFlow infers them.

The nodes run on shapes alone, under `jax.eval_shape`; a size that is not known is a symbol there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import jax
from jax import export

from jaxmeta import dtypes, errors, op_defs, values
from jaxmeta._proto import graph_pb2
from jaxmeta.execution import executor, ordering
from jaxmeta.graphs.graph import GraphBuilder
from jaxmeta.ops import _definition

_HANDLES: Final = ("VarHandleOp",)  # what has no shape of its own


def infer_shape(target: GraphBuilder, tensor_name: str) -> values.Shape | None:
    """Returns the static shape of a tensor, or None where the nodes do not run on shapes.

    Args:
        target: the graph.
        tensor_name: such as ``node:0``.
    """
    node_name = tensor_name.split(":")[0]
    roots: dict[str, jax.ShapeDtypeStruct] = {}
    symbols = _symbols()
    try:
        for node in ordering.sort_nodes(target.nodes, [node_name]):
            if _runs_on_shapes(target, node):
                continue
            known = _known_outputs(target, node.name, symbols)
            if not known and node.op not in _HANDLES:
                return None
            roots.update(known)
        if tensor_name in roots:
            return target.recorded_shape(node_name, int(tensor_name.split(":")[1]))
        library = executor.Library(target.functions, gradients=target.gradients)
        plan = executor.plan_graph(target.nodes, library, list(roots), [tensor_name])
        (found,) = jax.eval_shape(lambda *fed: plan.run(fed), *roots.values())
    except (errors.JaxmetaError, TypeError, ValueError, NotImplementedError, ArithmeticError):
        return None  # not known, as TensorFlow says of what it has no shape function for
    return tuple(int(size) if isinstance(size, int) else None for size in found.shape)


def _runs_on_shapes(target: GraphBuilder, node: graph_pb2.NodeDef) -> bool:
    """Returns whether a node gives its outputs' shapes for those of its inputs alone."""
    if "Tin" in node.attr and dtypes.RESOURCE in node.attr["Tin"].list.type:
        return False
    kernel = _definition.KERNELS.get(node.op)
    if kernel is None:
        return node.op == "Const" or node.op in target.functions
    return not kernel.must_be_fed and not op_defs.is_stateful(node.op)


def _known_outputs(
    target: GraphBuilder, name: str, symbols: Iterator[Any]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the outputs of a node whose shapes are recorded, with symbols for unknown sizes."""
    known: dict[str, jax.ShapeDtypeStruct] = {}
    node = target.nodes[name]
    variable = node.input[0] if node.op == "ReadVariableOp" else ""
    if variable in target.variable_names:
        target.record_shape(f"{name}:0", target.variable(variable).shape)
    for index, number in enumerate(target.output_numbers(name)):
        shape = target.recorded_shape(name, index)
        if shape is not None and number not in (dtypes.RESOURCE, dtypes.VARIANT, dtypes.STRING):
            sizes = tuple(next(symbols) if size is None else size for size in shape)
            spec = jax.ShapeDtypeStruct(sizes, dtypes.dtype_from_number(number))
            known[f"{name}:{index}"] = spec
    return known


def _symbols() -> Iterator[Any]:
    """Yields new symbolic sizes of one scope."""
    scope = export.SymbolicScope()
    index = 0
    while True:
        (size,) = export.symbolic_shape(f"size{index}", scope=scope)
        yield size
        index += 1
