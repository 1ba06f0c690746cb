"""The nodes that have functions of their own: constants, placeholders, identities, groups.

Names, argument names and control edges are those of TensorFlow's functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jaxmeta import dtypes, errors, specs, values
from jaxmeta.graphs import nodes
from jaxmeta.graphs.graph import GraphBuilder
from jaxmeta.graphs.handles import Operation, Tensor
from jaxmeta.graphs.nodes import Edge
from jaxmeta.graphs.variable_handles import Variable
from jaxmeta.tracing import dimensions, jaxprs

# --- edges and tensors -------------------------------------------------------------------------


def edge_of(tensor: Tensor) -> Edge:
    """Returns a tensor as an input of a node."""
    ref = tensor.name if tensor.index else tensor.node_name
    return Edge(ref, tensor.number, tensor.shape)


def tensor_of(target: GraphBuilder, edge: Edge, shape: values.Shape | None) -> Tensor:
    """Returns an output of a node as a tensor, and records its shape."""
    node, _, index = edge.ref.partition(":")
    tensor = Tensor(target, node, int(index or 0))
    if shape is not None:
        target.record_shape(tensor.name, shape)
    return tensor


def convert_to_tensor(
    target: GraphBuilder, value: Any, name: str, hint: np.dtype[Any] | None = None
) -> Tensor:
    """Returns a value as a tensor: itself, the read of a variable, or a constant.

    Args:
        target: the graph.
        value: a tensor, variable, array, number or list.
        name: of the constant.
        hint: the dtype that a number or array gets where it can be converted to it.

    Raises:
        GraphError: the value belongs to another graph, or is None.
        GraphTypeError: the value has no dtype that TensorFlow knows.
    """
    if isinstance(value, (Tensor, Variable)):
        if value.graph is not target:
            raise errors.GraphError(f"{value} belongs to another graph")
        if isinstance(value, Tensor):
            return value
        return read_variable(target, value)
    if hint is not None and not jaxprs.is_key_dtype(getattr(value, "dtype", None)):
        found = _as_array(value, None)
        if not _converts(found, hint, is_typed=hasattr(value, "dtype")):
            raise errors.GraphTypeError(
                f"expected {hint}, got {value!r} of type {type(value).__name__} ({found.dtype})"
            )
        return add_constant(target, value, hint, name=name)
    return add_constant(target, value, name=name)


def _converts(array: np.ndarray[Any, Any], wanted: np.dtype[Any], *, is_typed: bool) -> bool:
    """Returns whether TensorFlow takes an array where a tensor of another dtype is at hand."""
    if array.dtype == wanted:
        return True
    if array.dtype.kind == "b" or wanted.kind == "b" or array.dtype == object:
        return False
    if is_typed or array.dtype.kind in "iu":
        is_real = array.dtype.kind in "iu" or wanted.kind not in "iu"
        return is_real and not (array.dtype.kind == "c" and wanted.kind != "c")
    return wanted.kind not in "iu" and not (array.dtype.kind == "c" and wanted.kind != "c")


def read_variable(target: GraphBuilder, variable: Variable, name: str | None = None) -> Tensor:
    """Returns a tensor that reads a variable here."""
    attrs: dict[str, Any] = {}
    if variable.key_impl:
        attrs[nodes.KEY_IMPL_ATTR] = variable.key_impl
    if variable.weak_type:
        attrs[nodes.WEAK_TYPE_ATTR] = True
    if not variable.is_resource:
        edge = Edge(variable.op_name, dtypes.dtype_to_number(variable.dtype))
        (read,) = target.add_node("Identity", [edge], attrs, name or "Identity")
    else:
        handle = Edge(variable.op_name, dtypes.RESOURCE)
        attrs["dtype"] = variable.dtype
        (read,) = target.add_node("ReadVariableOp", [handle], attrs, name or "ReadVariableOp")
    return tensor_of(target, read, variable.shape)


# --- constants and placeholders ----------------------------------------------------------------


def add_constant(
    target: GraphBuilder,
    value: Any,
    dtype: Any = None,
    shape: Sequence[int] | None = None,
    name: str = "Const",
) -> Tensor:
    """Returns a constant tensor.

    Args:
        target: the graph.
        value: a number, string, array, nested list of these, or typed PRNG key.
        dtype: its dtype; TensorFlow's choice where None: int32 and float32 for Python's numbers,
            an array's own.
        shape: its shape; a shorter value is filled up with its last element.
        name: of the node, made unique below the current scope.

    Raises:
        GraphError: the value does not fit the shape.
        GraphTypeError: the value does not fit the dtype.
    """
    attrs: dict[str, Any] = {}
    if jaxprs.is_key_dtype(getattr(value, "dtype", None)):
        attrs[nodes.KEY_IMPL_ATTR] = specs.physical(value)[0]
        value = jax.random.key_data(value)
    array = _as_array(value, dtype)
    final = tuple(shape) if shape is not None else array.shape
    proto = values.tensor_to_proto(_filled(array, final))
    attrs.update(dtype=proto.dtype, value=proto)
    (edge,) = target.add_node("Const", [], attrs, name or "Const")
    return tensor_of(target, edge, final)


def _as_array(value: Any, dtype: Any) -> np.ndarray[Any, Any]:
    if value is None:
        raise errors.GraphError("None cannot be converted to a tensor")
    if isinstance(value, jax.core.Tracer):
        raise errors.GraphTypeError(
            f"{value} is traced: call() a function of tensors instead of adding constants in one"
        )
    array = np.asarray(value)
    if array.dtype.kind in "SU":
        array = array.astype(object)
    if array.dtype == object:
        bad = [item for item in array.ravel() if not isinstance(item, (str, bytes))]
        if bad:
            raise errors.GraphTypeError(f"{bad[0]!r} cannot be converted to a tensor")
    if not hasattr(value, "dtype"):
        array = _with_default_width(array)
    if dtype is None:
        dtypes.dtype_to_number(array.dtype)
        return array
    wanted = dtypes.dtype_from_number(values.type_number(dtype))
    if (array.dtype == object) != (wanted == object) or not (
        hasattr(value, "dtype") or _converts(array, wanted, is_typed=False)
    ):
        raise errors.GraphTypeError(f"expected {wanted}, got {value!r} ({array.dtype})")
    return array.astype(wanted)


def _with_default_width(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Returns an array of Python's numbers in 32 bits, integers where they fit."""
    if array.dtype == np.float64:
        return array.astype(np.float32)
    if array.dtype == np.int64 and np.all(np.abs(array) < 2**31):
        return array.astype(np.int32)
    return array


def _filled(array: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    size = int(np.prod(shape, dtype=np.int64))
    if array.size > size:
        raise errors.GraphError(
            f"too many elements: the shape {list(shape)} takes {size}, got {array.size}"
        )
    if array.size < size and not array.size:
        raise errors.GraphError(f"no elements to fill the shape {list(shape)} with")
    if array.size == size:
        return array.reshape(shape)
    flat = array.ravel()
    return np.concatenate([flat, np.full(size - array.size, flat[-1])]).reshape(shape)


def add_placeholder(
    target: GraphBuilder,
    dtype: Any,
    shape: Sequence[Any] | int | None = None,
    name: str | None = None,
) -> Tensor:
    """Returns a tensor that must be fed.

    Args:
        target: the graph.
        dtype: of what is fed; that of typed PRNG keys too.
        shape: its shape, with None for sizes that differ between feeds, and strings or symbolic
            dimensions of `jax.export` for such that have names; None where not even the rank is
            known.
        name: "Placeholder" where None.

    Raises:
        GraphError: a size is neither a number nor a dimension.
    """
    attrs: dict[str, Any] = {}
    sizes = _sizes_from(shape)
    if jaxprs.is_key_dtype(dtype):
        impl, data_shape = jaxprs.key_layout(dtype)
        attrs[nodes.KEY_IMPL_ATTR] = impl
        dtype = np.uint32
        sizes = None if sizes is None else (*sizes, *data_shape)
    attrs.update(dtype=dtype, shape=_static(sizes))
    (edge,) = target.add_node("Placeholder", [], attrs, name or "Placeholder")
    return _with_dimensions(target, edge, sizes)


def add_placeholder_with_default(
    target: GraphBuilder, default: Any, shape: Sequence[Any] | int | None, name: str | None = None
) -> Tensor:
    """Returns a tensor that may be fed; see `add_placeholder` for shapes.

    Raises:
        GraphError: the default value is not of that shape.
    """
    tensor = convert_to_tensor(target, default, "input")
    sizes = _sizes_from(shape)
    if not is_compatible(tensor.shape, _static(sizes)):
        raise errors.GraphError(
            f"a placeholder of shape {_shown(sizes)} cannot have the default {tensor}"
        )
    (edge,) = target.add_node(
        "PlaceholderWithDefault",
        [edge_of(tensor)],
        {"shape": _static(sizes)},
        name or "PlaceholderWithDefault",
    )
    return _with_dimensions(target, edge, sizes)


def _sizes_from(shape: Sequence[Any] | int | None) -> tuple[Any, ...] | None:
    """Returns a shape that was asked for, with symbolic dimensions for names."""
    if shape is None:
        return None
    given = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    known = [None if size is None or size == -1 else size for size in given]
    bad = [size for size in known if not _is_size(size)]
    if bad:
        raise errors.GraphError(
            f"{bad[0]!r} is no size of a shape: it is a number from 0 on, None, or the name of a "
            "dimension"
        )
    (symbolic,) = dimensions.symbolize([[0 if size is None else size for size in known]])
    return tuple(None if size is None else made for size, made in zip(known, symbolic, strict=True))


def _is_size(size: Any) -> bool:
    if size is None or isinstance(size, str) or dimensions.is_symbolic(size):
        return True
    return hasattr(size, "__index__") and not isinstance(size, bool) and size.__index__() >= 0


def _static(sizes: Sequence[Any] | None) -> values.Shape | None:
    if sizes is None:
        return None
    return tuple(None if dimensions.is_symbolic(size) else size for size in sizes)


def _shown(sizes: Sequence[Any] | None) -> str:
    return "unknown" if sizes is None else f"({', '.join(map(str, sizes))})"


def _with_dimensions(target: GraphBuilder, edge: Edge, sizes: Sequence[Any] | None) -> Tensor:
    """Returns a placeholder's tensor, having recorded the names of its dimensions."""
    tensor = tensor_of(target, edge, _static(sizes))
    if sizes is None or not dimensions.is_symbolic(list(sizes)):
        return tensor
    attr = target.nodes[tensor.node_name].attr
    texts = tuple(nodes.UNKNOWN_DIM if size is None else str(size) for size in sizes)
    values.write_attr(attr[nodes.DIMS_ATTR], texts)
    constraints = dimensions.constraints(sizes)
    if constraints:
        values.write_attr(attr[nodes.CONSTRAINTS_ATTR], constraints)
        for constraint in constraints:
            target.add_dimension_constraint(constraint)
    return tensor


def is_compatible(one: values.Shape | None, other: values.Shape | None) -> bool:
    """Returns whether two static shapes can be those of one tensor."""
    if one is None or other is None:
        return True
    if len(one) != len(other):
        return False
    return all(None in (a, b) or a == b for a, b in zip(one, other, strict=True))


def set_shape(target: GraphBuilder, tensor: Tensor, shape: Sequence[Any] | int | None) -> None:
    """Says more of a tensor's shape; see `Tensor.set_shape`."""
    sizes = _sizes_from(shape)
    if sizes is None:
        return
    known = tensor.shape
    if not is_compatible(known, _static(sizes)):
        raise errors.GraphError(
            f"the shape of {tensor} is not compatible with {_shown(sizes)}: sizes that are known "
            "cannot change"
        )
    merged = tuple(
        old if new is None else new
        for old, new in zip(known or (None,) * len(sizes), sizes, strict=True)
    )
    target.forget_sizes(tensor.name)
    if dimensions.is_symbolic(list(merged)):
        texts = tuple(
            target.dimension_name(tensor.name, axis) if size is None else str(size)
            for axis, size in enumerate(merged)
        )
        target.record_sizes(tensor.name, texts)
        for constraint in dimensions.constraints(merged):
            target.add_dimension_constraint(constraint)
    target.record_shape(tensor.name, _static(merged))


def add_shape(target: GraphBuilder, value: Any, name: str | None, out_type: Any) -> Tensor:
    """Returns the sizes of a tensor as a tensor: a constant where they are all known."""
    with target.name_scope(name, "Shape") as scope:
        tensor = convert_to_tensor(target, value, "input")
        known = tensor.shape
        if known is not None and None not in known:
            return add_constant(target, np.asarray(known, out_type), name=scope)
        attrs = {"out_type": np.dtype(out_type)}
        (edge,) = target.add_node("Shape", [edge_of(tensor)], attrs, scope)
        return tensor_of(target, edge, None if known is None else (len(known),))


# --- identities and groups ---------------------------------------------------------------------


def add_identity(target: GraphBuilder, value: Any, name: str | None = None) -> Tensor:
    """Returns a tensor with the value of another one, which runs after what is in force here."""
    if not isinstance(value, Tensor):
        with target.name_scope(name, "Identity") as scope:
            return _identity(target, convert_to_tensor(target, value, "input"), scope)
    return _identity(target, value, name or "Identity")


def _identity(target: GraphBuilder, tensor: Tensor, name: str) -> Tensor:
    impl = tensor.op.node_def.attr[nodes.KEY_IMPL_ATTR].s if _is_key(tensor) else b""
    attrs = {nodes.KEY_IMPL_ATTR: impl} if impl else {}
    (edge,) = target.add_node("Identity", [edge_of(tensor)], attrs, name)
    return tensor_of(target, edge, tensor.shape)


def _is_key(tensor: Tensor) -> bool:
    return nodes.KEY_IMPL_ATTR in tensor.op.node_def.attr


def add_no_op(target: GraphBuilder, name: str | None = None) -> Operation:
    """Returns an operation that does nothing but wait for the control dependencies here."""
    target.add_node("NoOp", [], {}, name or "NoOp")
    return Operation(target, target.last_node_name)


def add_group(target: GraphBuilder, inputs: Iterable[Any], name: str | None = None) -> Operation:
    """Returns an operation that runs after others.

    Args:
        target: the graph.
        inputs: operations, tensors, variables, or nested lists, tuples and dicts of these.
        name: "group_deps" where None.

    Raises:
        GraphTypeError: one of them is none of these.
        GraphError: one of them is of another graph.
    """
    leaves = jax.tree.leaves(list(inputs), is_leaf=lambda leaf: leaf is None)
    controls = [
        leaf.op_name if isinstance(leaf, Variable) else _operation_name(target, leaf)
        for leaf in leaves
    ]
    target.add_node("NoOp", [], {}, name or "group_deps", list(dict.fromkeys(controls)))
    return Operation(target, target.last_node_name)


def _operation_name(target: GraphBuilder, leaf: Any) -> str:
    element = target.as_graph_element(leaf)
    return element.node_name if isinstance(element, Tensor) else element.name
