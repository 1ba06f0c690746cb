"""Building a graph piece by piece: functions that add to the default graph.

Argument names, their order, names of nodes and the errors are those of TensorFlow's functions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from jaxmeta.graphs import calling, differentiating, elementary, graph, minimizing, variables
from jaxmeta.graphs.building import Graph, get_default_graph
from jaxmeta.graphs.handles import Operation, Tensor
from jaxmeta.graphs.variable_handles import Variable

# --- tensors and operations --------------------------------------------------------------------


def placeholder(
    dtype: Any, shape: Sequence[Any] | int | None = None, name: str | None = None
) -> Tensor:
    """Returns a tensor that must be fed.

    Args:
        dtype: of what is fed.
        shape: its shape, with None for sizes that differ between feeds; None where not even the
            rank is known. A size that has a name, as a string or a symbolic dimension of
            `jax.export`, is the same wherever the name stands; expressions such as ``"2*rows"``
            say more of it.
        name: of its node, made unique below the current scope.

    Raises:
        GraphError: a size is neither a number nor a dimension.

    Example:
        >>> placeholder("float32", [None, 28], name="x")
        <jaxmeta.Tensor 'x:0' shape=(None, 28) dtype=float32>
        >>> placeholder("int32", ["batch"], name="labels").shape
        (None,)
    """
    return elementary.add_placeholder(get_default_graph(), dtype, shape, name)


def placeholder_with_default(
    input: Any, shape: Sequence[Any] | int | None, name: str | None = None
) -> Tensor:
    """Returns a tensor that may be fed, and else has a default value.

    Args:
        input: the value: a tensor, variable or array.
        shape: of what may be fed; see `placeholder`.
        name: of its node, made unique below the current scope.

    Raises:
        GraphError: the value is not of that shape.

    Example:
        >>> placeholder_with_default([[1.0, 2.0]], [None, 2], name="x")
        <jaxmeta.Tensor 'x:0' shape=(None, 2) dtype=float32>
    """
    return elementary.add_placeholder_with_default(_graph_of([input]), input, shape, name)


def shape(input: Any, name: str | None = None, out_type: Any = "int32") -> Tensor:
    """Returns the sizes of a tensor as a tensor; a constant where they are known.

    Example:
        >>> shape(placeholder("float32", [None, 28]))
        <jaxmeta.Tensor 'Shape:0' shape=(2,) dtype=int32>
    """
    return elementary.add_shape(_graph_of([input]), input, name, out_type)


def constant(
    value: Any, dtype: Any = None, shape: Sequence[int] | None = None, name: str = "Const"
) -> Tensor:
    """Returns a constant tensor.

    Args:
        value: a number, string, array, nested list of these, or typed PRNG key.
        dtype: its dtype; int32 and float32 for Python's numbers where None, an array's own.
        shape: its shape; a shorter value is filled up with its last element.
        name: of its node, made unique below the current scope.

    Raises:
        GraphError: the value does not fit the shape.
        GraphTypeError: the value does not fit the dtype.
    """
    return elementary.add_constant(get_default_graph(), value, dtype, shape, name)


def call(fn: Callable[..., Any], *args: Any, name: str | None = None, **kwargs: Any) -> Any:
    """Traces a JAX function of tensors into nodes of the graph, and returns its results.

    Each equation becomes a node below a scope that has the function's own name. A function with
    one result gives its name to that result's node, as TensorFlow's composite functions do. A
    lambda has no name: its nodes come straight below the current scope, unless ``name`` is given.
    Functions with derivative rules of their own stay calls, and keep the rules.

    Sizes that are not known are symbolic dimensions while the function is traced, so that it takes
    any. Those that have to be the same for JAX to trace it, such as the batch of images and that
    of their labels, are taken to be so; a run in which they differ fails. The results know which
    of their sizes are those of the operands.

    Args:
        fn: a function of pytrees; it may be traced several times.
        *args: pytrees of tensors, variables, and anything else, which is passed as it is.
        name: of the scope.
        **kwargs: more of the same, by name.

    Returns:
        The function's result with a tensor for each array.

    Raises:
        UnsupportedPrimitiveError: some primitives have no node form; all are listed.
        GraphError: a tensor is of another graph, or its rank is not known.

    Example:
        >>> import jax.numpy as jnp
        >>> x = placeholder("float32", [4, 3])
        >>> call(lambda x: jnp.tanh(x).sum(), x, name="total")
        <jaxmeta.Tensor 'total:0' shape=() dtype=float32>
    """
    return calling.call(_graph_of([args, kwargs]), fn, args, kwargs, name)


def identity(input: Any, name: str | None = None) -> Tensor:
    """Returns a tensor with the value of another one, computed after what is in force here."""
    return elementary.add_identity(_graph_of([input]), input, name)


def group(*inputs: Any, name: str | None = None) -> Operation:
    """Returns an operation that runs after others: operations, tensors, or variables."""
    return elementary.add_group(_graph_of(inputs), inputs, name)


def no_op(name: str | None = None) -> Operation:
    """Returns an operation that does nothing."""
    return elementary.add_no_op(get_default_graph(), name)


def control_dependencies(
    control_inputs: Sequence[Any] | None,
) -> contextlib.AbstractContextManager[None]:
    """Makes nodes of the default graph run after others; see `Graph.control_dependencies`."""
    return get_default_graph().control_dependencies(control_inputs)


def name_scope(
    name: str | None, default_name: str | None = None
) -> contextlib.AbstractContextManager[str]:
    """Enters a name scope of the default graph; see `Graph.name_scope`."""
    return get_default_graph().name_scope(name, default_name)


def _graph_of(operands: Any) -> Graph:
    """Returns the graph of the first handle among operands, or the default graph."""
    for leaf in jax.tree.leaves(operands, is_leaf=lambda x: isinstance(x, (Tensor, Variable))):
        if isinstance(leaf, (Tensor, Variable, Operation)):
            found: Graph = leaf.graph
            return found
    return get_default_graph()


# --- gradients ---------------------------------------------------------------------------------


def gradients(
    ys: Any,
    xs: Any,
    grad_ys: Any = None,
    name: str = "gradients",
    *,
    stop_gradients: Any = (),
) -> list[Tensor | None]:
    """Returns the gradients of the sum of some tensors with respect to others.

    JAX differentiates the nodes between them, those of an imported graph too, and the result can
    be differentiated again.

    Args:
        ys: a real tensor, or a list of these.
        xs: a tensor or variable, or a list of these.
        grad_ys: a gradient for each of the ys; ones where None.
        name: of the scope of the new nodes.
        stop_gradients: tensors that count as constants.

    Returns:
        A tensor for each of the xs, or None where the ys do not depend on it.

    Raises:
        GraphTypeError: one of the ys is not real.
        GraphError: a rank is not known, or shapes do not fit.

    Example:
        >>> x = placeholder("float32", [])
        >>> (slope,) = gradients(x * x * x, x)
        >>> second, unconnected = gradients(slope, [x, constant(1.0)])
        >>> second.shape, unconnected is None
        ((), True)
    """
    y_list, x_list = _as_list(ys), _as_list(xs)
    target = _graph_of([y_list, x_list])
    tensors = [elementary.convert_to_tensor(target, y, "y") for y in y_list]
    seeds = None if grad_ys is None else _as_list(grad_ys)
    stops = _as_list(stop_gradients)
    return differentiating.gradients(target, tensors, x_list, seeds, name, stops)


def _as_list(items: Any) -> list[Any]:
    return list(items) if isinstance(items, (list, tuple)) else [items]


def minimize(
    loss: Tensor,
    transformation: Any,
    var_list: Sequence[Variable] | None = None,
    global_step: Variable | None = None,
    name: str | None = None,
    grad_loss: Any = None,
) -> Operation:
    """Returns an operation that does one step of an optimizer, and adds it to ``train_op``.

    Args:
        loss: a real tensor.
        transformation: an optax transformation: a pair of ``init`` and ``update``. The arrays that
            it remembers become variables: ``w/mu`` for what belongs to ``w``, ``minimize/count``
            for what belongs to all. ``init`` of the variables' initial values gives theirs.
        var_list: the variables to change; the trainable ones where None.
        global_step: a variable that counts the steps.
        name: of the operation, and of the scope of what it needs; "minimize" where None.
        grad_loss: the gradient of the loss; ones where None.

    Raises:
        GraphError: there are no variables, or the loss depends on none of them.
        GraphTypeError: the transformation is none.
    """
    chosen = None if var_list is None else list(var_list)
    return minimizing.minimize(
        _graph_of([loss]), loss, transformation, chosen, global_step, name, grad_loss
    )


# --- variables ---------------------------------------------------------------------------------


def create_partitioned_variables(
    shape: Sequence[int],
    slicing: Sequence[int],
    initializer: Any,
    trainable: bool = True,
    collections: Sequence[str] | None = None,
    name: str | None = None,
    *,
    key: Any = None,
) -> list[Variable]:
    """Returns the parts of a variable that is cut along one dimension.

    A checkpoint of TensorFlow holds the whole under one name.

    Args:
        shape: of the whole.
        slicing: into how many parts each dimension is cut; one for all but one of them.
        initializer: an array of that shape, or a function of the shape of a part, or of a key and
            the shape of a part.
        trainable: whether optimizers should change the parts.
        collections: to which the parts are added.
        name: of the whole; "PartitionedVariable" where None.
        key: a typed PRNG key or a seed, for an initializer that takes one.
    """
    target = get_default_graph()
    with target.name_scope(name, "PartitionedVariable") as scope:
        parts = []
        for index, info in enumerate(variables.part_infos(scope[:-1], shape, slicing)):
            part = Variable(
                _part_of(initializer, info, key),
                trainable,
                collections,
                name=f"part_{index}",
                key=None if key is None else _fold_in(key, index),
                save_slice_info=info,
            )
            parts.append(part)
    return parts


def _fold_in(key: Any, index: int) -> Any:

    return jax.random.fold_in(jax.random.key(key) if isinstance(key, int) else key, index)


def _part_of(initializer: Any, info: Any, key: Any) -> Any:
    if not callable(initializer):
        bounds = zip(info.var_offset, info.var_shape, strict=True)
        return initializer[tuple(slice(start, start + size) for start, size in bounds)]
    if key is None:
        return initializer(info.var_shape)
    return lambda one_key: initializer(one_key, info.var_shape)


def global_variables(scope: str | None = None) -> list[Variable]:
    """Returns the variables of the default graph; those whose name a scope matches."""
    return get_default_graph().get_collection(graph.GLOBAL_VARIABLES, scope)


def trainable_variables(scope: str | None = None) -> list[Variable]:
    """Returns the trainable variables of the default graph; see `global_variables`."""
    return get_default_graph().get_collection(graph.TRAINABLE_VARIABLES, scope)


def local_variables(scope: str | None = None) -> list[Variable]:
    """Returns the variables of the default graph that no checkpoint holds."""
    return get_default_graph().get_collection(variables.LOCAL_VARIABLES, scope)


def variables_initializer(var_list: Iterable[Variable], name: str | None = "init") -> Operation:
    """Returns an operation that gives variables their initial values."""
    chosen = list(var_list)
    return variables.add_initializer(_graph_of([chosen]), chosen, name)


def global_variables_initializer() -> Operation:
    """Returns an operation that gives all variables their initial values."""
    return variables_initializer(global_variables())


def initialize_all_variables() -> Operation:
    """Returns `global_variables_initializer`, by its name of TensorFlow 0.x."""
    return global_variables_initializer()


def local_variables_initializer() -> Operation:
    """Returns an operation that gives the local variables their initial values."""
    return variables_initializer(local_variables())


# --- collections -------------------------------------------------------------------------------


def add_to_collection(name: str, value: Any) -> None:
    """Appends a value to a collection of the default graph."""
    get_default_graph().add_to_collection(name, value)


def add_to_collections(names: str | Iterable[str], value: Any) -> None:
    """Appends a value to each of several collections of the default graph."""
    get_default_graph().add_to_collections(names, value)


def get_collection(key: str, scope: str | None = None) -> list[Any]:
    """Returns a copy of a collection of the default graph; see `Graph.get_collection`."""
    return get_default_graph().get_collection(key, scope)


def get_collection_ref(key: str) -> list[Any]:
    """Returns a collection of the default graph itself."""
    return get_default_graph().get_collection_ref(key)
