"""Adding variables with initial values, reading and assigning them, initializing them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import dtypes, errors, values
from jaxmeta._proto import meta_graph_pb2
from jaxmeta.graphs import calling, elementary, graph, nodes
from jaxmeta.graphs.graph import GraphBuilder
from jaxmeta.graphs.handles import Operation, Tensor
from jaxmeta.graphs.nodes import Edge
from jaxmeta.graphs.variable_handles import SaveSliceInfo, Variable
from jaxmeta.tracing import jaxprs

LOCAL_VARIABLES: Final = "local_variables"
_ASSIGN_OPS: Final = {
    # What is done: the op of resource variables, and that of TensorFlow 1's reference variables.
    "Assign": ("AssignVariableOp", "Assign"),
    "AssignAdd": ("AssignAddVariableOp", "AssignAdd"),
    "AssignSub": ("AssignSubVariableOp", "AssignSub"),
}


# --- adding ------------------------------------------------------------------------------------


def add_variable(
    target: GraphBuilder,
    variable: Variable,
    initial_value: Any,
    *,
    trainable: bool = True,
    collections: Sequence[str] | None = None,
    name: str | None = None,
    dtype: Any = None,
    key: Any = None,
    save_slice_info: SaveSliceInfo | None = None,
) -> None:
    """Adds the nodes of a variable and makes it known; see `jaxmeta.Variable`.

    Raises:
        GraphError: there is no initial value, or its shape is not known.
        GraphTypeError: it does not fit the dtype, or the collections are no list.
    """
    if initial_value is None:
        raise errors.GraphError("a variable needs an initial_value")
    if isinstance(collections, str):
        raise errors.GraphTypeError(f"collections is a list of names, not {collections!r}")
    with (
        target.control_dependencies(None),
        target.name_scope(name, "Variable") as scope,
    ):
        op_name = scope[:-1]
        with target.name_scope("Initializer"):
            initial = _initial_tensor(target, op_name, initial_value, dtype, key)
        if initial.shape is None or None in initial.shape:
            raise errors.GraphError(f"variable {op_name!r}: its initial value has no static shape")
        shape = tuple(size or 0 for size in initial.shape)
        impl = calling.key_impl_of(initial)
        attrs = {"dtype": initial.dtype, "shape": shape, "shared_name": op_name}
        if impl:
            attrs[nodes.KEY_IMPL_ATTR] = impl
        (handle,) = target.add_node("VarHandleOp", [], attrs, scope)
        target.add_node("VarIsInitializedOp", [handle], {}, "IsInitialized/VarIsInitializedOp")
        target.add_node("AssignVariableOp", [handle, elementary.edge_of(initial)], {}, "Assign")
        variable.describe(
            target,
            op_name,
            shape,
            initial.dtype,
            impl,
            trainable,
            initializer_name=f"{op_name}/Assign",
            snapshot_name=f"{op_name}/Read/ReadVariableOp:0",
            initial_value_name=initial.name,
            save_slice_info=save_slice_info,
        )
        elementary.read_variable(target, variable, "Read/ReadVariableOp")
    target.register_variable(variable)
    _add_to_collections(target, variable, collections)


def _add_to_collections(
    target: GraphBuilder, variable: Variable, collections: Sequence[str] | None
) -> None:
    names = [graph.GLOBAL_VARIABLES] if collections is None else list(collections)
    if variable.trainable and graph.TRAINABLE_VARIABLES not in names:
        names.append(graph.TRAINABLE_VARIABLES)
    target.add_to_collections(names, variable)


def _initial_tensor(
    target: GraphBuilder, op_name: str, initial_value: Any, dtype: Any, key: Any
) -> Tensor:
    wanted = None if dtype is None else dtypes.dtype_from_number(values.type_number(dtype))
    if callable(initial_value):
        initial_value = _call_initializer(target, op_name, initial_value, wanted, key)
    if not isinstance(initial_value, (Tensor, Variable)):
        return elementary.add_constant(target, initial_value, wanted, name="initial_value")
    tensor = elementary.convert_to_tensor(target, initial_value, "initial_value")
    if wanted is not None and tensor.dtype != wanted:
        raise errors.GraphTypeError(
            f"variable {op_name!r}: expected an initial value of {wanted}, got {tensor}"
        )
    return tensor


def _call_initializer(
    target: GraphBuilder,
    op_name: str,
    initializer: Callable[..., Any],
    dtype: np.dtype[Any] | None,
    key: Any,
) -> Any:
    """Returns what an initializer gives; where it takes a key, nodes that compute it."""
    if key is None:
        try:
            inspect.signature(initializer).bind()
        except TypeError:
            raise errors.GraphError(
                f"variable {op_name!r}: its initializer takes arguments; give a 'key', a typed "
                "PRNG key or a seed, to one that takes a key"
            ) from None
        value = initializer()
        is_array = not isinstance(value, (Tensor, Variable))
        return jnp.asarray(value, dtype) if is_array and dtype is not None else value
    keys = key if isinstance(key, (Tensor, Variable)) else _key_tensor(target, key)

    def compute(one_key: jax.Array) -> jax.Array:
        return jnp.asarray(initializer(one_key), dtype)

    (value,) = jax.tree.leaves(calling.call(target, lambda k: compute(k), [keys], {}))
    return value


def _key_tensor(target: GraphBuilder, key: Any) -> Tensor:
    typed = jax.random.key(key) if isinstance(key, (int, np.integer)) else key
    if not jaxprs.is_key_dtype(getattr(typed, "dtype", None)):
        raise errors.GraphTypeError(f"expected a typed PRNG key or a seed, got {key!r}")
    return elementary.add_constant(target, typed, name="key")


# --- assigning ---------------------------------------------------------------------------------


def assign(
    target: GraphBuilder,
    what: str,
    variable: Variable,
    value: Any,
    name: str | None,
    *,
    read_value: bool,
) -> Tensor | Operation:
    """Adds an assignment to a variable; see `Variable.assign`.

    Raises:
        GraphError: the value has another shape.
        GraphTypeError: it has another dtype.
    """
    hint = None if variable.key_impl else variable.dtype
    tensor = elementary.convert_to_tensor(target, value, "Const", hint)
    _check_fits(variable, tensor)
    op, ref_op = _ASSIGN_OPS[what]
    edge = elementary.edge_of(tensor)
    if not variable.is_resource:
        ref = Edge(variable.op_name, dtypes.dtype_to_number(variable.dtype))
        (new,) = target.add_node(ref_op, [ref, edge], {}, name or ref_op)
        made = elementary.tensor_of(target, new, variable.shape)
        return made if read_value else made.op
    handle = Edge(variable.op_name, dtypes.RESOURCE)
    target.add_node(op, [handle, edge], {}, name or op)
    operation = Operation(target, target.last_node_name)
    if not read_value:
        return operation
    with target.control_dependencies([operation]):
        return elementary.read_variable(target, variable)


def _check_fits(variable: Variable, tensor: Tensor) -> None:
    if tensor.dtype != variable.dtype:
        raise errors.GraphTypeError(f"cannot assign {tensor} to {variable}: the dtypes differ")
    shape = tensor.shape
    fits = shape is None or (
        len(shape) == len(variable.shape)
        and all(a is None or a == b for a, b in zip(shape, variable.shape, strict=True))
    )
    if not fits:
        raise errors.GraphError(f"cannot assign {tensor} to {variable}: the shapes differ")


# --- initializing ------------------------------------------------------------------------------


def add_initializer(
    target: GraphBuilder, variables: Iterable[Variable], name: str | None = "init"
) -> Operation:
    """Returns an operation that gives variables their initial values."""
    initializers = [variable.initializer for variable in variables]
    if not initializers:
        return elementary.add_no_op(target, name)
    return elementary.add_group(target, initializers, name)


# --- parts of a variable -----------------------------------------------------------------------


def part_infos(name: str, shape: Sequence[int], slicing: Sequence[int]) -> list[SaveSliceInfo]:
    """Returns the parts into which a variable is cut along one dimension, as TensorFlow cuts it.

    Args:
        name: of the whole.
        shape: of the whole.
        slicing: into how many parts, for each dimension; one where it is not cut.

    Raises:
        GraphError: shape and slicing differ in rank, more than one dimension is cut, or there are
            more parts than elements.
    """
    if len(shape) != len(slicing):
        raise errors.GraphError(f"shape {list(shape)} and slicing {list(slicing)} differ in rank")
    if any(not 1 <= count <= size for count, size in zip(slicing, shape, strict=True)):
        raise errors.GraphError(f"slicing {list(slicing)} does not fit the shape {list(shape)}")
    cut = [axis for axis, count in enumerate(slicing) if count > 1]
    if len(cut) > 1:
        raise errors.GraphError(f"slicing {list(slicing)}: only one dimension can be cut")
    axis = cut[0] if cut else 0
    count = slicing[axis]
    smaller, num_larger = divmod(shape[axis], count)
    infos = []
    offset = 0
    for index in range(count):
        size = smaller + (index < num_larger)
        part, start = list(shape), [0] * len(shape)
        part[axis], start[axis] = size, offset
        infos.append(SaveSliceInfo(name, tuple(shape), tuple(start), tuple(part)))
        offset += size
    return infos


# --- protos ------------------------------------------------------------------------------------


def variable_from_proto(
    target: GraphBuilder, proto: meta_graph_pb2.VariableDef, import_scope: str | None = None
) -> Variable:
    """Returns the handle that a VariableDef describes.

    Args:
        target: the graph that has its nodes.
        proto: the VariableDef.
        import_scope: the scope below which they are.

    Raises:
        FormatError: the variable has no static shape.
        MissingNameError: its node is not in the graph.
    """
    prefix = f"{import_scope.rstrip('/')}/" if import_scope else ""

    def scoped(name: str) -> str:
        return prefix + name if name else ""

    op_name = scoped(proto.variable_name.split(":")[0])
    if op_name not in target.nodes:
        raise errors.MissingNameError(f"the variable {op_name!r} has no node in the graph")
    attr = target.nodes[op_name].attr
    shape = values.shape_from_proto(attr["shape"].shape) if "shape" in attr else None
    if shape is None or None in shape:
        raise errors.FormatError(f"the variable {op_name!r} has no static shape")
    impl = attr[nodes.KEY_IMPL_ATTR].s.decode() if nodes.KEY_IMPL_ATTR in attr else ""
    info = None
    if proto.HasField("save_slice_info_def"):
        part = proto.save_slice_info_def
        sizes = (tuple(part.full_shape), tuple(part.var_offset), tuple(part.var_shape))
        info = SaveSliceInfo(scoped(part.full_name), *sizes)
    return Variable.handle(
        target,
        op_name,
        tuple(size or 0 for size in shape),
        dtypes.dtype_from_number(attr["dtype"].type),
        impl,
        proto.trainable,
        nodes.WEAK_TYPE_ATTR in attr,
        initializer_name=scoped(proto.initializer_name),
        snapshot_name=scoped(proto.snapshot_name),
        initial_value_name=scoped(proto.initial_value_name),
        is_resource=proto.is_resource,
        save_slice_info=info,
    )
