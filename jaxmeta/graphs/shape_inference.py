"""Shapes of the tensors of a graph that does not record them, as TensorFlow infers them.

The nodes run on shapes alone, under `jax.eval_shape`; a size that is not known is a symbol there,
so that what is known of a tensor is more than TensorFlow's static shape says: two batches that come
from one placeholder are the same size.
"""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp

from jaxmeta import dtypes, errors, op_defs, values
from jaxmeta._proto import graph_pb2
from jaxmeta.execution import executor, ordering
from jaxmeta.execution.plans import State
from jaxmeta.graphs import nodes
from jaxmeta.graphs.graph import GraphBuilder
from jaxmeta.ops import _definition
from jaxmeta.tracing import dimensions, unifying

_HANDLES: Final = ("VarHandleOp",)  # what has no shape of its own
_FED: Final = ("PlaceholderWithDefault",)  # what may be fed other sizes than it is computed to have
_FAILURES: Final = (
    errors.JaxmetaError,
    TypeError,
    ValueError,
    NotImplementedError,
    ArithmeticError,
    AttributeError,
    LookupError,
    jax.errors.InconclusiveDimensionOperation,
)


def sizes_of(target: GraphBuilder, tensor_name: str) -> tuple[str, ...] | None:
    """Returns the sizes of a tensor as text, or None where not even the rank is known.

    A size is a number, or an expression of named dimensions. One of which nothing is known has a
    name of its own.

    Args:
        target: the graph.
        tensor_name: such as ``node:0``.
    """
    known = target.recorded_sizes.get(tensor_name)
    if known is not None:
        return known
    node_name, index = tensor_name.split(":")
    static = target.recorded_shape(node_name, int(index))
    if static is not None and None not in static:
        return tuple(map(str, static))
    inferred = infer_sizes(target, tensor_name)
    sizes = inferred if static is None else _refined(target, tensor_name, static, inferred)
    if sizes is not None:
        target.record_sizes(tensor_name, sizes)
    return sizes


def static_shape(sizes: tuple[str, ...] | None) -> values.Shape | None:
    """Returns a static shape, None for sizes that are no numbers."""
    if sizes is None:
        return None
    found = [dimensions.parse(size) for size in sizes]
    return tuple(int(size.value) if size.op == "number" else None for size in found)


def _refined(
    target: GraphBuilder,
    tensor_name: str,
    static: values.Shape,
    inferred: tuple[str, ...] | None,
) -> tuple[str, ...]:
    """Returns the sizes that a record of a tensor and what was inferred say together."""
    if inferred is None or len(inferred) != len(static):
        node = target.nodes[tensor_name.split(":")[0]]
        named = nodes.recorded_dims(node) or (nodes.UNKNOWN_DIM,) * len(static)
        inferred = tuple(
            target.dimension_name(tensor_name, axis) if size == nodes.UNKNOWN_DIM else size
            for axis, size in enumerate(named)
        )
    return tuple(
        found if size is None else str(size) for size, found in zip(static, inferred, strict=True)
    )


def infer_sizes(target: GraphBuilder, tensor_name: str) -> tuple[str, ...] | None:
    """Returns the sizes of a tensor, or None where the nodes do not run on shapes.

    Sizes that have to be the same for the nodes to run count as the same.

    Args:
        target: the graph.
        tensor_name: such as ``node:0``.
    """
    # What reads variables runs too where it can; else its own record has to do.
    for reads_state in (True, False):
        try:
            sizes = _run_on_sizes(target, tensor_name, reads_state=reads_state)
        except _FAILURES:
            continue  # not known, as TensorFlow says of what it has no shape function for
        if sizes is not None:
            return sizes
    return None


def _run_on_sizes(
    target: GraphBuilder, tensor_name: str, *, reads_state: bool
) -> tuple[str, ...] | None:
    node_name = tensor_name.split(":")[0]
    roots: dict[str, tuple[tuple[str, ...], Any]] = {}
    given = frozenset(_single_outputs_with_sizes(target) - {node_name})
    is_stateful = False
    for node in ordering.sort_nodes(target.nodes, [node_name], given):
        if node.name not in given and _runs_on_shapes(target, node, reads_state=reads_state):
            is_stateful = is_stateful or _is_stateful(node)
            continue
        known = _known_outputs(target, node.name)
        if not known and node.op not in _HANDLES:
            return None
        roots.update(known)
    if tensor_name in roots:
        return roots[tensor_name][0]
    library = executor.Library(target.functions, gradients=target.gradients)
    plan = executor.plan_graph(target.nodes, library, list(roots), [tensor_name])
    held = _specs_of_variables(target) if is_stateful else {}

    def run(shapes: Any) -> Any:
        specs = [
            jax.ShapeDtypeStruct(shape, dtype)
            for shape, (_, dtype) in zip(shapes, roots.values(), strict=True)
        ]
        (found,) = jax.eval_shape(lambda state, fed: plan.run(fed, State(state)), held, specs)
        return found.shape

    shapes = [sizes for sizes, _ in roots.values()]
    found = unifying.trace(run, shapes, target.dimension_constraints).result
    return tuple(map(str, found))


def _specs_of_variables(target: GraphBuilder) -> dict[str, jax.ShapeDtypeStruct]:
    variables = map(target.variable, target.variable_names)
    return {v.op_name: jax.ShapeDtypeStruct(v.shape, v.dtype) for v in variables}


def _single_outputs_with_sizes(target: GraphBuilder) -> set[str]:
    """Returns the nodes whose sizes are known already, and whose values make no shapes."""
    found = set()
    for tensor_name in target.recorded_sizes:
        node_name = tensor_name.split(":")[0]
        numbers = target.output_numbers(node_name)
        if len(numbers) == 1 and _is_real(numbers[0]):
            found.add(node_name)
    return found


def _is_real(number: int) -> bool:
    if number in (dtypes.RESOURCE, dtypes.VARIANT, dtypes.STRING):
        return False
    return bool(jnp.issubdtype(dtypes.dtype_from_number(dtypes.base_number(number)), jnp.inexact))


def _runs_on_shapes(target: GraphBuilder, node: graph_pb2.NodeDef, *, reads_state: bool) -> bool:
    """Returns whether a node gives its outputs' shapes for those of its inputs, and variables."""
    if "Tin" in node.attr and dtypes.RESOURCE in node.attr["Tin"].list.type:
        return False
    kernel = _definition.KERNELS.get(node.op)
    if kernel is None:
        return node.op == "Const" or node.op in target.functions
    if node.op in _FED or kernel.must_be_fed or (kernel.is_host and reads_state):
        return False
    return reads_state or not op_defs.is_stateful(node.op)


def _is_stateful(node: graph_pb2.NodeDef) -> bool:
    return op_defs.has_op(node.op) and op_defs.is_stateful(node.op)


def _known_outputs(target: GraphBuilder, name: str) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Returns the sizes and the dtype of each output of a node whose shape is recorded."""
    known: dict[str, tuple[tuple[str, ...], Any]] = {}
    node = target.nodes[name]
    variable = node.input[0] if node.op == "ReadVariableOp" else ""
    if variable in target.variable_names:
        target.record_shape(f"{name}:0", target.variable(variable).shape)
    if nodes.CONSTRAINTS_ATTR in node.attr:
        for constraint in node.attr[nodes.CONSTRAINTS_ATTR].list.s:
            target.add_dimension_constraint(constraint.decode())
    for index, number in enumerate(target.output_numbers(name)):
        shape = target.recorded_shape(name, index)
        if shape is not None and number not in (dtypes.RESOURCE, dtypes.VARIANT, dtypes.STRING):
            tensor_name = f"{name}:{index}"
            sizes = target.recorded_sizes.get(tensor_name)
            if sizes is None:
                sizes = _refined(target, tensor_name, shape, None)
            known[tensor_name] = sizes, dtypes.dtype_from_number(number)
    return known
