"""Functions with derivative rules of their own: `jax.custom_jvp` and `jax.custom_vjp`.

Each rule is saved as a library function, traced from the derivative of the one eqn, so that what
was loaded is differentiated as the original was, to any order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import errors
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import LoweringContext, example, f32, i32, lowering, restores
from jaxmeta.tracing import jaxprs
from jaxmeta.values import FunctionRef


def _is_differentiable(value: Any) -> bool:
    return bool(jax.dtypes.issubdtype(value.dtype, np.inexact))


def _no_tangent(value: Any) -> np.ndarray[Any, Any]:
    return np.zeros(np.shape(value), jax.dtypes.float0)


def _with_tangents(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, ...]:
    """Returns a tangent for each primal: the next given one, or none for an integer."""
    given = iter(tangents)
    return tuple(next(given) if _is_differentiable(x) else _no_tangent(x) for x in primals)


def _differentiable(avals: Sequence[Any]) -> list[Any]:
    return [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals if _is_differentiable(a)]


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
    del num_consts, symbolic_zeros  # the traced rule has all operands, and zeros as arrays
    identity = jaxprs.rule_identity(ctx.eqn, jvp_jaxpr_fun)
    name = jaxprs.custom_name(call_jaxpr, "custom_jvp")
    return _call_with_rule(ctx, inputs, call_jaxpr, name, identity)


def _call_with_rule(
    ctx: LoweringContext, inputs: Sequence[Edge], jaxpr: Any, name: str, identity: Any
) -> list[Edge]:
    """Adds the call of a function, with the derivative of the eqn as its rule."""
    run, avals = jaxprs.eqn_as_function(ctx.jaxpr, ctx.eqn)
    try:
        (jvp,) = ctx.rule_functions(
            identity,
            [f"{name}_jvp"],
            lambda: [_trace_jvp(run, avals)],
        )
    except _RuleFailedError as error:
        jvp = f"{_FAILED}{error}"
    return ctx.call(ctx.function(jaxpr, name), *inputs, primitive="custom_jvp_call", jvp=jvp)


@lowering("call_hi_primitive")
def lower_hi_primitive(ctx: LoweringContext, *inputs: Edge, _prim: Any) -> list[Edge]:
    """What JAX 0.12 has for functions that it expands late: searchsorted, nonzero, custom_root.

    It comes back expanded, with the derivative that it has.
    """

    def expanded(*arrays: Any) -> list[Any]:
        return jax.tree.leaves(_prim.expand(*jax.tree.unflatten(_prim.in_tree, arrays)))

    jaxpr = jaxprs.make_jaxpr(expanded, [atom.aval for atom in ctx.eqn.invars])
    name = type(_prim).__name__.lower()
    return _call_with_rule(ctx, inputs, jaxpr, name, (str(_prim), str(jaxpr)))


class _RuleFailedError(Exception):
    """A derivative rule does not trace: then the original cannot be differentiated either."""


_FAILED: Final = "failed: "


def _trace_jvp(run: Callable[..., Any], avals: Sequence[Any]) -> Any:
    """Returns the jaxpr of the derivative of a function, without what holds no tangents."""
    count = len(avals)

    def rule(*arrays: Any) -> list[Any]:
        primals = arrays[:count]
        if not any(map(_is_differentiable, primals)):
            outputs = run(*primals)
            return [*outputs, *(jnp.zeros_like(x) for x in outputs if _is_differentiable(x))]
        try:
            outputs, tangents = jax.jvp(run, primals, _with_tangents(primals, arrays[count:]))
        except Exception as error:
            raise _RuleFailedError(f"{type(error).__name__}: {error}") from error
        return [*outputs, *(t for t in tangents if t.dtype != jax.dtypes.float0)]

    jaxpr = jaxprs.make_jaxpr(rule, [*avals, *_differentiable(avals)])
    if jaxprs.holds_tracers(jaxpr):
        raise _RuleFailedError("it uses values of a trace that has ended")
    return jaxpr


@restores("custom_jvp_call")
def restore_custom_jvp(*inputs: Any, function: Any, library: Any, jvp: Any) -> Any:
    if isinstance(jvp, bytes) and jvp.startswith(_FAILED.encode()):
        rule = _failed_rule(function, jvp.decode())
    else:
        rule = jvp if callable(jvp) else library[jvp.decode()]
    return _custom_jvp(function, rule)(*inputs)


def _failed_rule(function: Any, message: str) -> Callable[..., Any]:
    """Returns the rule that raises; made once for each function."""

    def make() -> Callable[..., Any]:
        def rule(*_: Any) -> Any:
            raise errors.DerivativeError(_did_not_trace(function, message.removeprefix(_FAILED)))

        return rule

    return function.derived(("failed jvp", message), make)  # type: ignore[no-any-return]


def _did_not_trace(function: Any, why: str) -> str:
    return f"the derivative rule of {function.name!r} did not trace when it was saved: {why}"


def _custom_jvp(function: Any, rule: Any) -> Callable[..., Any]:
    """Returns the custom_jvp function; made once for each pair, so that JAX's caches find it."""

    def make() -> Callable[..., Any]:
        @jax.custom_jvp
        def call(*arrays: Any) -> list[Any]:
            return list(function(*arrays))

        @call.defjvp
        def apply(primals: Any, tangents: Any) -> Any:
            given = [t for x, t in zip(primals, tangents, strict=True) if _is_differentiable(x)]
            results = rule(*primals, *given)
            outputs = results[: function.num_results]
            return list(outputs), list(_with_tangents(outputs, results[len(outputs) :]))

        return call

    derived: Callable[..., Any] = function.derived(("jvp", rule), make)
    return derived


@jax.custom_jvp
def _cubed(x: Any) -> Any:
    return x**3


_cubed.defjvps(lambda t, answer, x: t * 7.0 * x + 0 * answer)

example(lambda x: _cubed(x), f32(3))
example(lambda x: jax.nn.relu(x) + jax.nn.silu(x), f32(3))
# Its rule gives tangents of integers. JAX 0.12 transposes it by a rule that is not saved.
example(lambda x: jnp.frexp(x), f32(3), gradient=False)
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

# --- custom_vjp --------------------------------------------------------------------------------


@lowering("custom_vjp_call", "custom_vjp_call_jaxpr")
def lower_custom_vjp(
    ctx: LoweringContext,
    *inputs: Edge,
    call_jaxpr: Any,
    fwd_jaxpr_thunk: Any,
    num_consts: int,
    bwd: Any,
    out_trees: Any,
    symbolic_zeros: bool,
) -> list[Edge]:
    del out_trees, symbolic_zeros  # the traced rules have all operands, as arrays
    run, avals = jaxprs.eqn_as_function(ctx.jaxpr, ctx.eqn)
    out_avals = [var.aval for var in ctx.eqn.outvars]

    def trace_rules() -> list[Any]:
        treedefs: list[Any] = []

        def forward(*arrays: Any) -> list[Any]:
            fixed = functools.partial(run, *arrays[:num_consts])
            outputs, pullback = jax.vjp(fixed, *arrays[num_consts:])
            residuals, treedef = jax.tree.flatten(pullback)
            treedefs.append(treedef)
            return [*outputs, *residuals]

        def backward(*arrays: Any) -> list[Any]:
            residuals, cotangents = arrays[:num_residuals], arrays[num_residuals:]
            pullback = jax.tree.unflatten(treedefs[0], residuals)
            gradients = pullback(list(_with_tangents(out_avals, cotangents)))
            return [g for g in gradients if g.dtype != jax.dtypes.float0]

        forward_jaxpr = jaxprs.make_jaxpr(forward, avals)
        residual_avals = forward_jaxpr.out_avals[len(out_avals) :]
        num_residuals = len(residual_avals)
        cotangent_avals = _differentiable(out_avals)
        return [forward_jaxpr, jaxprs.make_jaxpr(backward, [*residual_avals, *cotangent_avals])]

    name = jaxprs.custom_name(call_jaxpr, "custom_vjp")
    names = [f"{name}_fwd", f"{name}_bwd"]
    identity = jaxprs.rule_identity(ctx.eqn, fwd_jaxpr_thunk)
    rules: dict[str, Any] = {}
    try:
        rules = dict(
            zip(("fwd", "bwd"), ctx.rule_functions(identity, names, trace_rules), strict=True)
        )
    except errors.UnsupportedPrimitiveError:
        raise
    except Exception as error:  # then the original cannot be differentiated either
        if not jaxprs.is_refusal_to_differentiate(error):
            rules = {"failed": f"{type(error).__name__}: {error}"}
    return ctx.call(
        ctx.function(call_jaxpr, name),
        *inputs,
        primitive="custom_vjp_call",
        **rules,
        **({"num_consts": num_consts} if num_consts else {}),
    )


@restores("custom_vjp_call")
def restore_custom_vjp(
    *inputs: Any,
    function: Any,
    library: Any,
    fwd: Any = None,
    bwd: Any = None,
    failed: bytes = b"",
    num_consts: int = 0,
) -> Any:
    if fwd is None or bwd is None:
        return _refusing(function, failed.decode())(*inputs)
    forward, backward = (rule if callable(rule) else library[rule.decode()] for rule in (fwd, bwd))
    run = _custom_vjp(function, forward, backward, tuple(inputs[:num_consts]))
    return run(*inputs[num_consts:])


def _refusing(function: Any, failed: str) -> Callable[..., Any]:
    """Returns a function whose rule could not be saved; it runs, and has no derivative."""

    def make() -> Callable[..., Any]:
        @jax.custom_vjp
        def call(*arrays: Any) -> list[Any]:
            return list(function(*arrays))

        def fwd(*arrays: Any) -> Any:
            if failed:
                raise errors.DerivativeError(_did_not_trace(function, failed))
            raise errors.UnsupportedPrimitiveError(
                f"the derivative rule of {function.name!r} is not in the file: when that was "
                "written, JAX refused to differentiate the rule by what it closes over. Save the "
                "derivative itself as a signature."
            )

        call.defvjp(fwd, lambda _, cotangents: tuple(cotangents))
        return call

    derived: Callable[..., Any] = function.derived(("no rule", failed), make)
    return derived


def _custom_vjp(
    function: Any, forward: Any, backward: Any, closed_over: tuple[Any, ...]
) -> Callable[..., Any]:
    """Returns the custom_vjp function; see `_custom_jvp`.

    What the original closed over is closed over again, so that JAX refuses to differentiate by it.
    """

    def make() -> Callable[..., Any]:
        @jax.custom_vjp
        def call(*arrays: Any) -> list[Any]:
            return list(function(*closed_over, *arrays))

        def fwd(*arrays: Any) -> Any:
            results = forward(*closed_over, *arrays)
            outputs, residuals = results[: function.num_results], results[function.num_results :]
            # Which arguments are real is part of the shapes, and so may ride in the tree.
            wanted = tuple(None if _is_differentiable(x) else () for x in arrays)
            return list(outputs), (residuals, wanted)

        def bwd(saved: Any, cotangents: Any) -> Any:
            residuals, wanted = saved
            given = [c for c in cotangents if c.dtype != jax.dtypes.float0]
            gradients = iter(backward(*residuals, *given))
            return tuple(next(gradients) if flag is None else None for flag in wanted)

        call.defvjp(fwd, bwd)
        return call

    if closed_over:
        return make()
    derived: Callable[..., Any] = function.derived(("vjp", forward.name, backward.name), make)
    return derived


@jax.custom_vjp
def _clip_gradient(x: Any) -> Any:
    return x * 2.0


def _clip_gradient_fwd(x: Any) -> Any:
    return x * 2.0, (x,)


def _clip_gradient_bwd(residuals: Any, g: Any) -> Any:
    (x,) = residuals
    return (jax.numpy.clip(g, -0.1, 0.1) * x,)


_clip_gradient.defvjp(_clip_gradient_fwd, _clip_gradient_bwd)
example(lambda x: _clip_gradient(x), f32(3))
