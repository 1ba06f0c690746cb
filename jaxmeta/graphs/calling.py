"""JAX functions of tensors: traced, and their equations put into the graph as nodes.

Sizes that are not known are symbolic dimensions while a function is traced; the nodes compute them
from the shapes of the tensors that it is given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxmeta import dtypes, errors, naming, specs, values
from jaxmeta.graphs import elementary, function_library, nodes, same_sizes, shape_inference, staging
from jaxmeta.graphs.graph import GraphBuilder
from jaxmeta.graphs.handles import Tensor
from jaxmeta.graphs.nodes import Edge
from jaxmeta.graphs.staging import NodeIndex, StagedNodes
from jaxmeta.graphs.variable_handles import Variable
from jaxmeta.tracing import dimensions, jaxprs, trace, unifying
from jaxmeta.tracing.dimensions import Size


def call(
    target: GraphBuilder,
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    name: str | None = None,
    known: NodeIndex | None = None,
) -> Any:
    """Adds the nodes of a function; see `jaxmeta.call`."""
    scope_name = name or _function_name(fn)
    what = scope_name or "the function"
    handles, sizes, unified = _trace(target, fn, args, kwargs, what)
    jaxpr, result = unified.result
    tracing, staged, inputs, outputs = _stage(target, jaxpr, what)
    with target.name_scope(scope_name or _current_scope(target)) as scope:
        tensors = [
            elementary.read_variable(target, handle) if isinstance(handle, Variable) else handle
            for handle in handles
        ]
        used = {ref for node in staged.live_nodes(outputs) for ref in node.input}
        is_used = [edge.ref in used for edge in inputs]
        tensors = same_sizes.aligned(target, tensors, is_used, sizes, unified)
        refs = {
            edge.ref: elementary.edge_of(tensor).ref
            for edge, tensor in zip(inputs, tensors, strict=True)
        }
        result_name = scope if scope_name else ""
        named, added = staging.inline(target, staged, outputs, refs, result_name, known)
        # A node that was there already needs none of the functions that another would call.
        tracing.staged[:] = function_library.reached_functions(added, tracing.staged)
        tracing.commit(what)
    specs_out, tree = jax.tree.flatten(result)
    made = [_result(target, ref, spec) for ref, spec in zip(named, specs_out, strict=True)]
    return jax.tree.unflatten(tree, made)


def _trace(
    target: GraphBuilder,
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    what: str,
) -> tuple[
    list[Tensor | Variable],
    list[tuple[str, ...]],
    unifying.Unified[tuple[jaxprs.Jaxpr, Any]],
]:
    """Returns the handles among a function's arguments, their sizes, and its jaxpr and result."""
    leaves, treedef = jax.tree.flatten((tuple(args), dict(kwargs)), is_leaf=_is_handle)
    handles = list(dict.fromkeys(leaf for leaf in leaves if _is_handle(leaf)))
    _check_handles(target, fn, handles)
    sizes = _sizes_of_handles(target, handles)

    def of_arrays(*arrays: Any) -> Any:
        by_handle = dict(zip(handles, arrays, strict=True))
        filled = [by_handle[leaf] if _is_handle(leaf) else leaf for leaf in leaves]
        call_args, call_kwargs = jax.tree.unflatten(treedef, filled)
        return fn(*call_args, **call_kwargs)

    def traced(shapes: Sequence[tuple[Size, ...]]) -> tuple[jaxprs.Jaxpr, Any]:
        given = map(_handle_spec, handles, shapes)
        made: tuple[jaxprs.Jaxpr, Any] = jax.make_jaxpr(of_arrays, return_shape=True)(*given)
        return made

    try:
        return handles, sizes, unifying.trace(traced, sizes, target.dimension_constraints)
    except Exception as error:
        _explain_failure(error, what, handles, sizes)
        raise


def _current_scope(target: GraphBuilder) -> str | None:
    return f"{target.scope}/" if target.scope else None


def _is_handle(leaf: Any) -> bool:
    return isinstance(leaf, (Tensor, Variable))


def _function_name(fn: Callable[..., Any]) -> str:
    """Returns a function's own name; a lambda has none."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__name__", "")
    return naming.clean_name(name) if name.isidentifier() else ""


def _check_handles(
    target: GraphBuilder, fn: Callable[..., Any], handles: Sequence[Tensor | Variable]
) -> None:
    bad = [f"{handle} belongs to another graph" for handle in handles if handle.graph is not target]
    if bad:
        name = _function_name(fn) or "the function"
        raise errors.GraphError(errors.list_offenders(f"cannot trace {name!r} over these:", bad))


def _sizes_of_handles(
    target: GraphBuilder, handles: Sequence[Tensor | Variable]
) -> list[tuple[str, ...]]:
    """Returns the sizes of tensors and variables as text, such that each name follows from some.

    Raises:
        GraphError: the rank of some is not known; all are listed.
    """
    found = [
        shape_inference.sizes_of(target, handle.name)
        if isinstance(handle, Tensor)
        else tuple(map(str, handle.shape))
        for handle in handles
    ]
    bad = [str(handle) for handle, sizes in zip(handles, found, strict=True) if sizes is None]
    if bad:
        headline = "a function is traced over tensors of known rank, which these are not:"
        advice = "Say what is known with set_shape, as in x.set_shape([None, 784])."
        raise errors.GraphError(errors.list_offenders(headline, bad, advice))
    sizes = [given for given in found if given is not None]
    unsolved = set(dimensions.unsolved(sizes))
    if not unsolved:
        return sizes
    # What cannot be found in the shapes of the operands is a dimension of its own here.
    named: dict[str, str] = {}
    for handle, shape in zip(handles, sizes, strict=True):
        for axis, text in enumerate(shape):
            if unsolved.intersection(dimensions.names(dimensions.parse(text))):
                named.setdefault(text, target.dimension_name(handle.name, axis))
    return [tuple(named.get(text, text) for text in shape) for shape in sizes]


def _explain_failure(
    error: Exception,
    what: str,
    handles: Sequence[Tensor | Variable],
    sizes: Sequence[tuple[str, ...]],
) -> None:
    """Adds to an error of JAX's which sizes were not known when it traced a function."""
    unknown = [
        f"{handle.name}: ({', '.join(shape)})"
        for handle, shape in zip(handles, sizes, strict=True)
        if not all(map(str.isdigit, shape))
    ]
    if unknown:
        error.add_note(
            f"while tracing {what!r} over sizes that are not known, {'; '.join(unknown)}: JAX has "
            "to know more of them here. Give placeholders sizes as numbers, or as expressions "
            "that say more, as in placeholder('float32', ['10*rows', 784]); constraints are those "
            "of jax.export.symbolic_shape."
        )


def key_impl_of(tensor: Tensor) -> str:
    """Returns the PRNG implementation where a tensor holds typed keys, else empty."""
    attr = tensor.op.node_def.attr
    if nodes.KEY_IMPL_ATTR not in attr:
        return ""
    return str(attr[nodes.KEY_IMPL_ATTR].s.decode())


def _handle_spec(handle: Tensor | Variable, shape: tuple[Size, ...]) -> jax.ShapeDtypeStruct:
    """Returns what a function sees of a tensor or variable."""
    if isinstance(handle, Tensor):
        return specs.logical_spec(shape, handle.dtype, key_impl_of(handle))
    spec = specs.logical_spec(shape, handle.dtype, handle.key_impl)
    return jax.ShapeDtypeStruct(spec.shape, spec.dtype, weak_type=handle.weak_type)


def _stage(
    target: GraphBuilder, jaxpr: jaxprs.Jaxpr, what: str
) -> tuple[trace.Tracing, StagedNodes, list[Edge], list[Edge]]:
    """Lowers a jaxpr; returns the trace with its functions, its nodes, arguments and results.

    Raises:
        UnsupportedPrimitiveError: some equations have no node form; all are listed.
    """
    tracing = trace.Tracing.into(target)
    staged = StagedNodes(tracing.library)
    lowerer = trace.Lowerer(tracing, staged)
    opened = jaxprs.open_jaxpr(jaxpr)
    inputs = [_argument(staged, index, var.aval) for index, var in enumerate(opened.invars)]
    lowerer.enter(inputs)
    constants = [_constant(lowerer, value) for value in jaxprs.jaxpr_constants(jaxpr)]
    outputs = _lower(lowerer, opened, constants, inputs)
    if not tracing.offenders:
        live = staged.live_nodes(outputs)
        tracing.staged[:] = staging.merge_functions(target, staged, live, tracing.staged)
    else:
        tracing.commit(what)  # raises
    return tracing, staged, inputs, outputs


def _constant(lowerer: trace.Lowerer, value: Any) -> Edge:
    if jaxprs.is_key_dtype(value.dtype):
        value = jax.random.key_data(value)
    return lowerer.constant(value, is_weak=jaxprs.is_weak(value))


def _argument(staged: StagedNodes, index: int, aval: Any) -> Edge:
    physical = jaxprs.physical_aval(aval)
    number = dtypes.dtype_to_number(physical.dtype)
    return staged.add_argument(f"x{index}", number, physical.shape)


def _lower(
    lowerer: trace.Lowerer,
    opened: jaxprs.Jaxpr,
    constants: Sequence[Edge],
    inputs: Sequence[Edge],
) -> list[Edge]:
    """Lowers a jaxpr; one that is a single call of a jitted function becomes what that holds."""
    inner = jaxprs.only_jit(opened)
    if inner is None:
        return lowerer.lower(opened, constants, inputs)
    env = dict(zip([*opened.constvars, *opened.invars], [*constants, *inputs], strict=True))
    arguments = [env[var] for var in opened.eqns[0].invars]
    held = [_constant(lowerer, value) for value in jaxprs.jaxpr_constants(inner)]
    return _lower(lowerer, jaxprs.open_jaxpr(inner), held, arguments)


def _result(target: GraphBuilder, ref: str, spec: Any) -> Tensor:
    """Returns a result as a tensor; one of typed keys says so on its node."""
    impl, aval = specs.physical(spec)
    if impl:
        node = target.nodes[ref.split(":")[0]]
        if len(target.output_numbers(node.name)) == 1:
            values.write_attr(node.attr[nodes.KEY_IMPL_ATTR], impl)
        else:
            edge = Edge(ref, dtypes.dtype_to_number(aval.dtype))
            (edge,) = target.add_node("Identity", [edge], {nodes.KEY_IMPL_ATTR: impl})
            ref = edge.ref
    return elementary.tensor_of(target, Edge(ref, 0), tuple(aval.shape))
