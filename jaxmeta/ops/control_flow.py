"""Loops and branches: while, cond, and TensorFlow's own, which also assign variables.

JAX's structured primitives keep their operands in order: constants, carry, slices. TensorFlow's
functional ops take one list, so a loop there carries its constants too, and its body passes them
through.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops import _branches, _loops
from jaxmeta.ops import _tensor_lists as tensor_lists
from jaxmeta.ops._definition import (
    PRIMITIVE_ATTR,
    LoweringContext,
    bools,
    example,
    f32,
    i32,
    kernel,
    lowering,
    restores,
)
from jaxmeta.tracing import binding, jaxprs, sizes
from jaxmeta.values import FunctionRef

# --- while -------------------------------------------------------------------------------------


@lowering("while")
def lower_while(
    ctx: LoweringContext,
    *inputs: Edge,
    cond_jaxpr: Any,
    body_jaxpr: Any,
    cond_nconsts: int,
    body_nconsts: int,
) -> list[Edge]:
    avals = [atom.aval for atom in ctx.eqn.invars]
    num_consts = cond_nconsts + body_nconsts
    carry = range(num_consts, len(inputs))
    cond = jaxprs.with_operands(cond_jaxpr, avals, [*range(cond_nconsts), *carry])
    body = jaxprs.with_operands(
        body_jaxpr, avals, [*range(cond_nconsts, num_consts), *carry], num_consts
    )
    attrs: dict[str, Any] = {}
    if cond_nconsts:
        attrs["_jax_cond_nconsts"] = cond_nconsts
    if body_nconsts:
        attrs["_jax_body_nconsts"] = body_nconsts
    size_edges, size_attrs = ctx.size_operands(cond, body)

    def add_functions(cond: Any, body: Any) -> list[FunctionRef]:
        is_sized = bool(size_edges)
        names = [
            ctx.function(cond, "while_cond", takes_sizes=is_sized),
            ctx.function(body, "while_body", takes_sizes=is_sized, returns_sizes=is_sized),
        ]
        return list(map(FunctionRef, names))

    if cond.out_avals[0].shape:
        attrs["_jax_cond"], attrs["_jax_body"] = add_functions(cond, body)
        cond, body = _any_of_batch(cond, body, num_consts)
    functions = add_functions(cond, body)
    outputs = ctx.node(
        "StatelessWhile",
        [*size_edges, *inputs],
        cond=functions[0],
        body=functions[1],
        **attrs,
        **size_attrs,
    )
    return outputs[len(size_edges) + num_consts :]


def _any_of_batch(cond: Any, body: Any, num_consts: int) -> tuple[Any, Any]:
    """Returns the loop that runs while any predicate of a batch holds.

    `jax.vmap` makes such loops; elements whose own predicate is false keep their values.
    """
    run_cond, run_body = jaxprs.as_function(cond), jaxprs.as_function(body)

    def any_cond(*operands: Any) -> Any:
        (holds,) = run_cond(*operands)
        return lax.reduce_or(holds, tuple(range(holds.ndim)))

    def select_body(*operands: Any) -> list[Any]:
        (holds,) = run_cond(*operands)
        results = run_body(*operands)
        kept = results[:num_consts]
        for old, new in zip(operands[num_consts:], results[num_consts:], strict=True):
            mask = lax.broadcast_in_dim(holds, new.shape, tuple(range(holds.ndim)))
            kept.append(lax.select(mask, new, old))
        return kept

    return jaxprs.make_jaxpr(any_cond, cond.in_avals), jaxprs.make_jaxpr(select_body, body.in_avals)


@kernel("StatelessWhile")
def stateless_while(
    state: Any,
    *input: Any,
    cond: Any,
    body: Any,
    node_name: str,
    output_shapes: Any,
    _jax_cond: Any = None,
    _jax_body: Any = None,
    _jax_cond_nconsts: int = 0,
    _jax_body_nconsts: int = 0,
) -> list[Any]:
    is_ours = not output_shapes and not _is_on_host(cond, body)  # TensorFlow records them
    if not is_ours or not all(map(_is_array, input)):
        return _run_while(state, cond, body, input, node_name)
    input = tuple(map(sizes.as_array, input))
    if _changes_shapes(body, input):
        return _run_while(state, cond, body, input, node_name)
    split = _jax_cond_nconsts
    num_consts = split + _jax_body_nconsts
    run_cond, run_body = _jax_cond or cond, _jax_body or body
    # The functions take all operands; those that they only pass through may be anything.
    before, after = [None] * split, [None] * _jax_body_nconsts

    def holds(*operands: Any) -> Any:
        (predicate,) = run_cond(*operands[:split], *after, *operands[split:])
        return predicate if _jax_cond else _as_predicate(predicate)

    def step(*operands: Any) -> Any:
        results = run_body(*before, *operands)
        return results[len(results) - num_carry :]  # it may return sizes of dimensions first

    num_carry = len(input) - num_consts
    constants, carry = input[:num_consts], input[num_consts:]
    results = binding.bind_while(holds, step, constants[:split], constants[split:], carry)
    return [*constants, *results]


example(
    lambda limit, factor, x: lax.while_loop(
        lambda c: jnp.sum(c) < limit, lambda c: c * factor + 1.0, x
    ),
    f32(low=9.0, high=20.0),
    f32(low=1.5, high=2.0),
    f32(3, low=0.1, high=0.2),
    gradient=False,
)
example(lambda x: lax.fori_loop(0, 5, lambda i, c: c * 0.5 + i, x), f32(3))
example(
    lambda n, x: lax.fori_loop(0, n, lambda i, c: c * 0.5 + i, x), i32(), f32(3), gradient=False
)
example(
    lambda x: lax.while_loop(lambda c: c[0] < 7, lambda c: (c[0] + 2, c[1] * 0.5), (0, x)),
    f32(3),
    gradient=False,
)
example(
    lambda x: jax.vmap(lambda v: lax.while_loop(lambda c: c < 5.0, lambda c: c + v, v))(x),
    f32(4, low=0.5, high=2.0),
    gradient=False,
)
example(
    lambda x: jax.vmap(
        lambda v: lax.while_loop(lambda c: c[0] < 3.0, lambda c: (c[0] + v, c[1] * 0.5), (v, x))
    )(x),
    f32(4, low=0.5, high=2.0),
    gradient=False,
)
example(
    lambda x: lax.fori_loop(
        0, 3, lambda i, c: lax.fori_loop(0, i, lambda j, d: jnp.sin(d) + j, c), x
    ),
    f32(3),
    gradient=False,
)

# --- cond --------------------------------------------------------------------------------------


@lowering("cond")
def lower_cond(
    ctx: LoweringContext,
    index: Edge,
    *operands: Edge,
    branches: Any,
    branches_platforms: Any = None,
) -> list[Edge]:
    attrs = {} if branches_platforms is None else _platform_attrs(branches_platforms)
    size_edges, size_attrs = ctx.size_operands(*branches)
    return ctx.node(
        "StatelessCase",
        index,
        [*size_edges, *operands],
        branches=[
            FunctionRef(ctx.function(jaxpr, f"branch_{i}", takes_sizes=bool(size_edges)))
            for i, jaxpr in enumerate(branches)
        ],
        Tout=[aval.dtype for aval in ctx.out_avals],
        _jax_is_clamped=True,
        **attrs,
        **size_attrs,
    )


@kernel("StatelessCase")
def stateless_case(
    state: Any,
    branch_index: Any,
    *input: Any,
    branches: Sequence[Any],
    _jax_is_clamped: bool = False,
    _jax_platforms: Sequence[bytes] = (),
) -> Any:
    if _jax_is_clamped:
        input = tuple(map(sizes.as_array, input))
        branch_index = sizes.as_array(branch_index)
        return binding.bind_cond(branch_index, input, branches, _read_platforms(_jax_platforms))
    return _run_case(state, branch_index, input, branches)


example(lambda p, x: lax.cond(p, lambda a: a * 2.0, jnp.sin, x), bools(), f32(3))
example(lambda p, x: lax.cond(p[0] > 0, lambda: x, lambda: p[0] + x), i32(2), f32(3))
example(lambda x: lax.cond(True, lambda a: a * 2.0, lambda a: a, x), f32(3))
example(
    lambda i, x: lax.switch(i, [jnp.sin, lambda a: a, lambda a: jax.jit(jnp.cos)(a) + i], x),
    i32(low=-2, high=0),
    f32(3),
)
example(lambda p, x: jax.vmap(lambda q: lax.cond(q, jnp.sin, jnp.cos, x))(p), bools(3), f32())

# --- TensorFlow's own branches and loops -------------------------------------------------------

# Their operands may be handles of variables, which the functions read and assign.


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype")


def _as_predicate(value: Any) -> Any:
    """Returns the truth that TensorFlow sees in a scalar; a tensor holds where it is not empty."""
    if np.ndim(value):
        return np.asarray(np.size(value) > 0)
    return value if value.dtype == np.bool_ else value != np.zeros((), value.dtype)


# A branch that is known while tracing is the only one that is traced: others may not even fit.


@kernel("Case", static=("branch_index",), traceable=("branch_index",))
def case(state: Any, branch_index: Any, *input: Any, branches: Sequence[Any]) -> Any:
    return _run_case(state, branch_index, input, branches)


@kernel("If", "StatelessIf", static=("cond",), traceable=("cond",))
def if_kernel(state: Any, cond: Any, *input: Any, then_branch: Any, else_branch: Any) -> Any:
    index = _as_predicate(cond).astype(np.int32)
    return _run_case(state, index, input, [else_branch, then_branch])


def _run_case(state: Any, index: Any, operands: Sequence[Any], branches: Sequence[Any]) -> Any:
    last = len(branches) - 1
    if not isinstance(index, jax.core.Tracer):
        chosen = int(index) if 0 <= index <= last else last
        return branches[chosen](*operands, state=state)
    index = jnp.where((index < 0) | (index > last), np.asarray(last, index.dtype), index)
    runs = [functools.partial(_run_branch, branch, operands) for branch in branches]
    return _branches.run_branches(state, index, runs)


def _run_branch(function: Any, operands: Sequence[Any], state: Any) -> list[Any]:
    results: list[Any] = function(*operands, state=state)
    return results


@kernel("While")
def while_kernel(state: Any, *input: Any, cond: Any, body: Any, node_name: str) -> list[Any]:
    return _run_while(state, cond, body, input, node_name)


def _changes_shapes(body: Any, operands: Sequence[Any]) -> bool:
    """Returns whether a loop on values returns arrays of other shapes, which JAX's loops cannot."""
    if any(isinstance(x, jax.core.Tracer) or not _is_array(x) for x in operands):
        return False
    results = jax.eval_shape(lambda: body(*operands))
    return [np.shape(x) for x in operands] != [x.shape for x in jax.tree.leaves(results)]


def _is_on_host(*functions: Any) -> bool:
    """Returns whether functions work on strings, tables or files, so that nothing is traced."""
    return any(function.is_on_host for function in functions)


def _run_on_values(state: Any, cond: Any, body: Any, operands: Sequence[Any]) -> list[Any]:
    """Runs a loop that fills lists, whose lengths only values say."""
    results = list(operands)
    while bool(_as_predicate(cond(*results, state=state)[0])):
        results = list(body(*results, state=state))
    return results


def _run_while(state: Any, cond: Any, body: Any, operands: Sequence[Any], name: str) -> list[Any]:
    if _is_on_host(cond, body):
        return _run_on_values(state, cond, body, operands)
    if not _loops.is_tracing():
        has_lists = any(map(tensor_lists.is_list, operands))
        if has_lists or _changes_shapes(functools.partial(body, state=_fork(state)), operands):
            return _run_on_values(state, cond, body, operands)

    def holds(carry: list[Any], local: Any) -> Any:
        (predicate,) = cond(*carry, state=local)
        return _as_predicate(predicate)

    def step(carry: list[Any], local: Any) -> list[Any]:
        return list(body(*carry, state=local))

    return _loops.run_while(state, holds, step, operands, name)


def _fork(state: Any) -> Any:
    return None if state is None else state.fork()


# --- platform_dependent ------------------------------------------------------------------------

_TENSORFLOW_PLATFORM = "cpu"  # what TensorFlow reads of a branch for each platform


@lowering("platform_index")
def lower_platform_index(ctx: LoweringContext, *, platforms: Any) -> list[Edge]:
    chosen = [i for i, names in enumerate(platforms) if names and _TENSORFLOW_PLATFORM in names]
    chosen += [i for i, names in enumerate(platforms) if names is None]
    return ctx.node(
        "Identity",
        ctx.constant((chosen or [0])[0], np.int32),
        **{PRIMITIVE_ATTR: "platform_index"},
        **_platform_attrs(platforms),
    )


def _platform_attrs(platforms: Any) -> dict[str, Any]:
    """Returns the attr that lists the platforms of each branch; the default's is empty."""
    return {"_jax_platforms": [",".join(names or ()) for names in platforms]}


def _read_platforms(names: Sequence[bytes]) -> list[tuple[str, ...] | None]:
    return [tuple(item.decode().split(",")) if item else None for item in names]


@restores("platform_index")
def restore_platform_index(index: Any, *, platforms: Sequence[bytes]) -> Any:
    del index  # TensorFlow's
    return binding.bind_platform_index(_read_platforms(platforms))


example(lambda x: lax.platform_dependent(x, cpu=jnp.sin, tpu=jnp.cos, default=jnp.tan), f32(3))
example(lambda x: lax.platform_dependent(x, tpu=jnp.cos, cuda=jnp.cos, default=jnp.tan), f32(3))
