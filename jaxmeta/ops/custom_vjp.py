"""Functions with a reverse derivative rule of their own: `jax.custom_vjp`.

The rule is saved as two library functions, forward and backward, traced from the pullback of the
one eqn; see `custom_derivatives`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta import errors
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops import _derivative_rules as rules
from jaxmeta.ops._definition import LoweringContext, example, f32, lowering, restores
from jaxmeta.tracing import binding, jaxprs
from jaxmeta.values import FunctionRef


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
    del bwd, out_trees  # the traced rules have them
    name = jaxprs.custom_name(call_jaxpr, "custom_vjp")
    run, avals = jaxprs.eqn_as_function(ctx.jaxpr, ctx.eqn)
    out_avals = [var.aval for var in ctx.eqn.outvars]
    attrs: dict[str, Any] = {}
    try:
        try:
            num_consts, traced = _trace_by_arguments(run, avals, out_avals, num_consts)
        except rules.RuleFailedError:
            chosen = _trace_some_choice(run, avals, out_avals, num_consts) if symbolic_zeros else ()
            if not chosen:
                raise
            attrs["perturbed"], traced = chosen
        names = [f"{name}_fwd", f"{name}_bwd"]
        attrs["fwd"], attrs["bwd"] = rules.save_rule(ctx, fwd_jaxpr_thunk, names, traced)
    except rules.RuleFailedError as error:
        attrs["failed"] = str(error)
    return ctx.call(
        ctx.function(call_jaxpr, name),
        *inputs,
        primitive="custom_vjp_call",
        **attrs,
        num_consts=num_consts or None,
    )


def _trace_some_choice(
    run: Callable[..., Any], avals: Sequence[Any], out_avals: Sequence[Any], num_consts: int
) -> tuple[list[int], list[Any]] | tuple[()]:
    """Returns operands by all of which a rule that asks can be differentiated, and the rule.

    Nothing where it can be differentiated by none.

    It is the first such choice, the larger ones coming first. JAX keeps one tree of residuals for
    all choices that it traced of a rule, so that tracing more of them than the user does would
    break what is differentiated after it was saved.
    """
    real = [i for i, a in enumerate(avals) if i >= num_consts and rules.is_differentiable(a)]
    for perturbed in rules.choices(real):
        with contextlib.suppress(rules.RuleFailedError):
            return list(perturbed), _trace_vjp(run, avals, out_avals, perturbed)
    return ()


def _trace_by_arguments(
    run: Callable[..., Any], avals: Sequence[Any], out_avals: Sequence[Any], num_consts: int
) -> tuple[int, list[Any]]:
    """Returns how many of the first operands the function closed over, and its rule.

    A custom_vjp that JAX traced once more, within another rule for instance, takes what it closed
    over as operands like any others, and still refuses to be differentiated by them.
    """
    for count in range(num_consts, len(avals) + 1):
        perturbed = [
            i for i, aval in enumerate(avals) if i >= count and rules.is_differentiable(aval)
        ]
        try:
            return count, _trace_vjp(run, avals, out_avals, perturbed)
        except rules.RuleFailedError as error:
            if not jaxprs.is_refusal_to_differentiate(error.__cause__) or not perturbed:
                raise
    raise AssertionError("the last rule has no perturbed operands")


def _trace_vjp(
    run: Callable[..., Any],
    avals: Sequence[Any],
    out_avals: Sequence[Any],
    perturbed: Sequence[int],
) -> list[Any]:
    """Returns the jaxprs of operands to results and residuals, and of these to cotangents."""
    treedefs: list[Any] = []

    def forward(*arrays: Any) -> list[Any]:
        of_perturbed = rules.by_operands(run, arrays, perturbed)
        outputs, pullback = jax.vjp(of_perturbed, *(arrays[i] for i in perturbed))
        residuals, treedef = jax.tree.flatten(pullback)
        treedefs.append(treedef)
        return [*outputs, *residuals]

    def backward(*arrays: Any) -> list[Any]:
        residuals, cotangents = arrays[:num_residuals], arrays[num_residuals:]
        pullback = jax.tree.unflatten(treedefs[0], residuals)
        return list(pullback(list(rules.with_tangents(out_avals, cotangents))))

    forward_jaxpr = rules.trace_rule(forward, avals)
    residual_avals = forward_jaxpr.out_avals[len(out_avals) :]
    num_residuals = len(residual_avals)
    cotangent_avals = rules.differentiable(out_avals)
    return [forward_jaxpr, rules.trace_rule(backward, [*residual_avals, *cotangent_avals])]


@restores("custom_vjp_call")
def restore_custom_vjp(
    *inputs: Any,
    function: Any,
    library: Any,
    fwd: Any = None,
    bwd: Any = None,
    failed: bytes = b"",
    num_consts: int = 0,
    perturbed: tuple[int, ...] = (),
) -> Any:
    if fwd is None or bwd is None:
        return _refusing(function, failed)(*inputs)
    forward, backward = (rule if callable(rule) else library[rule.decode()] for rule in (fwd, bwd))
    closed_over, arguments = tuple(inputs[:num_consts]), inputs[num_consts:]
    if perturbed:
        places = tuple(place - num_consts for place in perturbed)
        return _by_some(function, forward, backward, closed_over, places)(*arguments)
    return _custom_vjp(function, forward, backward, closed_over)(*arguments)


def _refusing(function: Any, failed: bytes) -> Callable[..., Any]:
    """Returns a function whose rule could not be saved; it runs, and has no derivative."""

    def make() -> Callable[..., Any]:
        @jax.custom_vjp
        def call(*arrays: Any) -> list[Any]:
            return list(function(*arrays))

        def fwd(*arrays: Any) -> Any:
            if failed:
                rules.raise_failure(function.name, failed)
            raise errors.DerivativeError(  # as earlier versions wrote it
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
    """Returns the custom_vjp function, made once, so that JAX's caches find it.

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
            wanted = tuple(None if rules.is_differentiable(x) else () for x in arrays)
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


def _by_some(
    function: Any,
    forward: Any,
    backward: Any,
    closed_over: tuple[Any, ...],
    places: tuple[int, ...],
) -> Callable[..., Any]:
    """Returns the custom_vjp function whose rule refuses all but some arguments."""

    def fwd(*arguments: Any) -> Any:
        refused = [i for i, x in enumerate(arguments) if x.perturbed and i not in places]
        if refused:
            raise errors.DerivativeError(
                f"the derivative rule of {function.name!r} was saved for arguments {list(places)}, "
                f"for it refused others; there is none by {refused}"
            )
        results = forward(*closed_over, *(argument.value for argument in arguments))
        outputs, residuals = results[: function.num_results], results[function.num_results :]
        return list(outputs), (residuals, ((),) * len(arguments))  # a fact, which rides in the tree

    def bwd(saved: Any, cotangents: Any) -> Any:
        residuals, arguments = saved
        given = [_instantiated(c) for c in cotangents if c.dtype != jax.dtypes.float0]
        gradients = dict(zip(places, backward(*residuals, *given), strict=True))
        return tuple(gradients.get(i) for i in range(len(arguments)))

    def make() -> Callable[..., Any]:
        @jax.custom_vjp
        def call(*arrays: Any) -> list[Any]:
            return list(function(*closed_over, *arrays))

        call.defvjp(fwd, bwd, symbolic_zeros=True)
        return call

    if closed_over:
        return make()
    key = ("vjp by some", forward.name, backward.name, places)
    derived: Callable[..., Any] = function.derived(key, make)
    return derived


def _instantiated(cotangent: Any) -> Any:
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        return jnp.zeros(cotangent.shape, cotangent.dtype)
    return cotangent


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

# --- remat_opt ---------------------------------------------------------------------------------


@lowering("remat_opt")
def lower_remat_opt(
    ctx: LoweringContext,
    *inputs: Edge,
    num_consts: int,
    num_res: int,
    fwd_jaxpr: Any,
    fun_jaxpr_thunk: Callable[[], tuple[Any, Sequence[Any]]],
) -> list[Edge]:
    """The forward rule of a custom_vjp with ``optimize_remat``."""
    function = jaxprs.with_constants(*fun_jaxpr_thunk())
    if jaxprs.holds_tracers(function):
        raise ctx.unsupported("a custom_vjp with optimize_remat that closes over arrays")
    return ctx.call(
        ctx.function(fwd_jaxpr, "remat_opt"),
        *inputs,
        primitive="remat_opt",
        without_residuals=FunctionRef(ctx.function(function, "without_residuals")),
        num_consts=num_consts,
        num_res=num_res,
    )


@restores("remat_opt")
def restore_remat_opt(
    *inputs: Any, function: Any, without_residuals: Any, num_consts: int, num_res: int
) -> list[Any]:
    return binding.bind_remat_opt(
        function, without_residuals, inputs, num_consts=num_consts, num_res=num_res
    )


@jax.custom_vjp
def _squared(x: Any) -> Any:
    return x * x


_squared.defvjp(lambda x: (_squared(x), x), lambda x, g: (3.0 * x * g,), optimize_remat=True)
example(jax.grad(lambda x: jnp.sum(_squared(jnp.sin(x)))), f32(3), gradient=False)
