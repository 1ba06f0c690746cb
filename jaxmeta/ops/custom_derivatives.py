"""Functions with a forward derivative rule of their own, `jax.custom_jvp`, and linear calls.

Each rule is saved as a library function, traced from the derivative of the one eqn, so that what
was loaded is differentiated as the original was, to any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops import _derivative_rules as rules
from jaxmeta.ops._definition import LoweringContext, example, f32, i32, lowering, restores
from jaxmeta.tracing import jaxprs
from jaxmeta.values import FunctionRef

# --- custom_jvp --------------------------------------------------------------------------------


@lowering("custom_jvp_call")
def lower_custom_jvp(
    ctx: LoweringContext,
    *inputs: Edge,
    call_jaxpr: Any,
    jvp_jaxpr_fun: Any,
    num_consts: int,
    symbolic_zeros: bool,
) -> list[Edge]:
    del num_consts  # the traced rule has all operands
    name = jaxprs.custom_name(call_jaxpr, "custom_jvp")
    return rules.call_with_rule(ctx, inputs, call_jaxpr, name, jvp_jaxpr_fun, symbolic_zeros)


@lowering("call_hi_primitive")
def lower_hi_primitive(ctx: LoweringContext, *inputs: Edge, _prim: Any) -> list[Edge]:
    """What JAX 0.12 has for functions that it expands late: searchsorted, nonzero, custom_root.

    It comes back expanded, with the derivative that it has, and as its own transpose if it is that.
    """
    avals = [atom.aval for atom in ctx.eqn.invars]
    real = [i for i, aval in enumerate(avals) if rules.is_differentiable(aval)]

    def expanded(*arrays: Any) -> list[Any]:
        return jax.tree.leaves(_prim.expand(*jax.tree.unflatten(_prim.in_tree, arrays)))

    def symmetric(*arrays: Any) -> Any:
        # What a linear solve gives is what JAX transposes, and batches, by a function of ours.
        solve = rules.by_operands(expanded, arrays, real)
        return jax.lax.custom_linear_solve(
            lambda x: x, arrays[real[0]], lambda _, x: solve(x)[0], symmetric=True
        )

    run = symmetric if len(real) == 1 and _is_own_transpose(ctx, real[0]) else expanded
    jaxpr = jaxprs.make_jaxpr(run, avals)
    return rules.call_with_rule(ctx, inputs, jaxpr, type(_prim).__name__.lower(), _prim)


def _is_own_transpose(ctx: LoweringContext, place: int) -> bool:
    """Returns whether JAX transposes an eqn, as a function of one operand, to that eqn itself."""
    run, avals = jaxprs.eqn_as_function(ctx.jaxpr, ctx.eqn)

    def transposed(*arrays: Any) -> Any:
        of_one = rules.by_operands(run, arrays, [place])
        return jax.linear_transpose(lambda x: of_one(x)[0], avals[place])(arrays[place])

    try:
        jaxpr = jaxprs.make_jaxpr(transposed, avals)
    except Exception:  # what a transpose raises that another library has, or lacks
        return False
    return _is_one_eqn(jaxprs.open_jaxpr(jaxpr), ctx.eqn)


def _is_one_eqn(jaxpr: Any, eqn: Any) -> bool:
    """Returns whether an open jaxpr does what one eqn does, perhaps by calls of jit."""
    if len(jaxpr.eqns) != 1:
        return False
    (only,) = jaxpr.eqns
    if list(only.invars) != list(jaxpr.invars) or list(only.outvars) != list(jaxpr.outvars):
        return False
    called = jaxprs.only_jit(jaxpr)
    if called is not None:
        return _is_one_eqn(jaxprs.open_jaxpr(called), eqn)
    return only.primitive is eqn.primitive and bool(only.params == eqn.params)


@restores("custom_jvp_call")
def restore_custom_jvp(
    *inputs: Any,
    function: Any,
    library: Any,
    jvp: Any,
    perturbed: tuple[bytes, ...] = (),
    jvps: Sequence[Any] = (),
) -> Any:
    rule = jvp if callable(jvp) or rules.is_failure(jvp) else library[jvp.decode()]
    if perturbed:
        return _with_symbolic_zeros(function, rule, perturbed, jvps)(*inputs)
    return _custom_jvp(function, rule)(*inputs)


def _custom_jvp(function: Any, rule: Any) -> Callable[..., Any]:
    """Returns the custom_jvp function; made once for each pair, so that JAX's caches find it."""

    def make() -> Callable[..., Any]:
        @jax.custom_jvp
        def call(*arrays: Any) -> list[Any]:
            return list(function(*arrays))

        @call.defjvp
        def apply(primals: Any, tangents: Any) -> Any:
            pairs = zip(primals, tangents, strict=True)
            given = [t for x, t in pairs if rules.is_differentiable(x)]
            return _apply(function, rule, primals, given)

        return call

    derived: Callable[..., Any] = function.derived(("jvp", rule), make)
    return derived


def _apply(function: Any, rule: Any, primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
    if rules.is_failure(rule):
        rules.raise_failure(function.name, rule)
    results = rule(*primals, *tangents)
    outputs = results[: function.num_results]
    return list(outputs), list(rules.with_tangents(outputs, results[len(outputs) :]))


def _with_symbolic_zeros(
    function: Any, rule: Any, perturbed: tuple[bytes, ...], jvps: Sequence[Any]
) -> Callable[..., Any]:
    """Returns the custom_jvp function whose rule depends on which operands are perturbed."""

    def apply(primals: Any, tangents: Any) -> Any:
        is_zero = [isinstance(t, jax.custom_derivatives.SymbolicZero) for t in tangents]
        real = [i for i, x in enumerate(primals) if rules.is_differentiable(x)]
        wanted = {i for i in real if not is_zero[i]}
        place = None if wanted == set(real) else rules.find_choice(wanted, perturbed)
        chosen = real if place is None else rules.choice_from_text(perturbed[place])
        given = [jnp.zeros_like(primals[i]) if is_zero[i] else tangents[i] for i in chosen]
        return _apply(function, rule if place is None else jvps[place], primals, given)

    def make() -> Callable[..., Any]:
        @jax.custom_jvp
        def call(*arrays: Any) -> list[Any]:
            return list(function(*arrays))

        call.defjvp(apply, symbolic_zeros=True)
        return call

    derived: Callable[..., Any] = function.derived(("symbolic jvp", rule, perturbed), make)
    return derived


@jax.custom_jvp
def _cubed(x: Any) -> Any:
    return x**3


_cubed.defjvps(lambda t, answer, x: t * 7.0 * x + 0 * answer)

example(lambda x: _cubed(x), f32(3))
example(lambda x: jax.nn.relu(x) + jax.nn.silu(x), f32(3))
example(lambda x: jnp.frexp(x), f32(3))  # its rule gives tangents of integers
example(lambda x: jnp.ldexp(x, jnp.arange(3)), f32(3))
example(lambda x: jax.nn.relu(x), i32(3))

# --- linear_call -------------------------------------------------------------------------------


@lowering("linear_call")
def lower_linear_call(
    ctx: LoweringContext,
    *inputs: Edge,
    callee: Any,
    transpose_thunk: Any,
    num_callee_consts: int,
    num_res: int,
) -> list[Edge]:
    jaxpr, constants = transpose_thunk()
    if constants:
        raise ctx.unsupported("a linear_call whose transpose closes over arrays")
    return ctx.call(
        ctx.function(callee, "linear_call"),
        *inputs,
        primitive="linear_call",
        transpose=FunctionRef(ctx.function(jaxpr, "linear_call_transpose")),
        num_consts=num_callee_consts,
        num_residuals=num_res,
    )


@restores("linear_call")
def restore_linear_call(
    *inputs: Any, function: Any, transpose: Any, num_consts: int, num_residuals: int
) -> Any:
    def forward(fixed: Any, linear: Any) -> list[Any]:
        return list(function(*fixed, *linear))

    def backward(fixed: Any, cotangents: Any) -> list[Any]:
        return list(transpose(*fixed[num_consts:], *cotangents))

    count = num_consts + num_residuals
    return jax.custom_derivatives.linear_call(
        forward, backward, list(inputs[:count]), list(inputs[count:])
    )


example(
    lambda r, x: jax.custom_derivatives.linear_call(
        lambda s, y: y * jnp.sin(s), lambda s, t: t * jnp.sin(s) * 3.0, r, x
    ),
    f32(3),
    f32(3),
)
