"""TensorFlow's optimizer ops, on references and on resources, dense and sparse.

One rule says how an optimizer moves a variable and its slots; its parameters are the inputs of the
op by the names of the OpDef. From it come up to four kernels: ``ApplyX`` and ``ResourceApplyX``
for whole arrays, ``SparseApplyX`` and ``ResourceSparseApplyX`` for rows of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import op_defs
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._handles import Handle, check_shape

_Rule: TypeAlias = Callable[..., Sequence[Any]]

_DENSE_PREFIXES: Final = ("Apply", "ResourceApply")
_SPARSE_PREFIXES: Final = ("SparseApply", "ResourceSparseApply")
# What the gradient is called in the oldest of the ops.
_GRADIENT_NAMES: Final = ("grad", "delta")


def _optimizer(*names: str) -> Callable[[_Rule], _Rule]:
    """Registers a rule as the kernels of all ops of these names that TensorFlow has.

    The rule returns the new values of the variable and its slots, in the order of the inputs.
    """

    def register(rule: _Rule) -> _Rule:
        for name in names:
            for prefix in _DENSE_PREFIXES:
                if op_defs.has_op(prefix + name):
                    kernel(prefix + name)(_on_arrays(prefix + name, rule))
            for prefix in _SPARSE_PREFIXES:
                if op_defs.has_op(prefix + name):
                    kernel(prefix + name)(_on_rows(prefix + name, rule))
        return rule

    return register


def _with_signature(run: Callable[..., Any], rule: _Rule) -> Callable[..., Any]:
    """Returns a kernel of any inputs that has the keyword-only arguments of a rule."""
    attrs = [
        parameter
        for parameter in inspect.signature(rule).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    kinds = inspect.Parameter
    given = [
        kinds("state", kinds.POSITIONAL_OR_KEYWORD),
        kinds("inputs", kinds.VAR_POSITIONAL),
    ]
    run.__signature__ = inspect.Signature([*given, *attrs])  # type: ignore[attr-defined]
    return run


def _input_names(op: str) -> list[str]:
    return [argument.name for argument in op_defs.get_op_def(op).input_arg]


def _returns_reference(op: str) -> bool:
    return bool(op_defs.get_op_def(op).output_arg)


def _on_arrays(op: str, rule: _Rule) -> Callable[..., Any]:
    names = _input_names(op)
    returns_reference = _returns_reference(op)

    def run(state: Any, *inputs: Any, **attrs: Any) -> Any:
        handles = [value for value in inputs if isinstance(value, Handle)]
        named = dict(zip(names, _values(state, inputs), strict=True))
        gradient = next(named[name] for name in _GRADIENT_NAMES if name in named)
        for handle, value in zip(handles, named.values(), strict=False):
            check_shape(handle, np.shape(value), gradient)
        for handle, value in zip(handles, rule(**named, **attrs), strict=True):
            state.write(handle.name, value)
        return handles[0] if returns_reference else ()

    return _with_signature(run, rule)


def _values(state: Any, inputs: Sequence[Any]) -> list[Any]:
    return [state.read(x.name) if isinstance(x, Handle) else x for x in inputs]


def _on_rows(op: str, rule: _Rule) -> Callable[..., Any]:
    names = _input_names(op)
    returns_reference = _returns_reference(op)
    is_delta = "delta" in inspect.signature(rule).parameters

    def run(state: Any, *inputs: Any, **attrs: Any) -> Any:
        handles = [value for value in inputs if isinstance(value, Handle)]
        values = list(map(jnp.asarray, _values(state, inputs)))
        arrays, named = values[: len(handles)], dict(zip(names, values, strict=True))
        indices, gradient = named.pop("indices"), named.pop("grad")
        slots = names[: len(handles)]

        def move(arrays: Sequence[Any], index: Any, rows: Any) -> list[Any]:
            own = {name: a[index] for name, a in zip(slots, arrays, strict=True)}
            new = rule(**(named | own), **{"delta" if is_delta else "grad": rows}, **attrs)
            return [a.at[index].set(row, mode="drop") for a, row in zip(arrays, new, strict=True)]

        for handle, value in zip(handles, _move_rows(move, arrays, indices, gradient), strict=True):
            state.write(handle.name, value)
        return handles[0] if returns_reference else ()

    return _with_signature(run, rule)


def _move_rows(
    move: Callable[[Sequence[Any], Any, Any], list[Any]],
    arrays: Sequence[Any],
    indices: Any,
    gradient: Any,
) -> list[Any]:
    """Moves rows of arrays, all at once where no index is there twice, else one by one."""
    count = indices.shape[0]
    if count < 2:
        return move(arrays, indices, gradient)

    def one_by_one(arrays: list[Any]) -> list[Any]:
        def step(i: Any, arrays: list[Any]) -> list[Any]:
            return move(arrays, indices[i][None], gradient[i][None])

        moved: list[Any] = lax.fori_loop(0, count, step, arrays)
        return moved

    in_order = jnp.sort(indices)
    has_twice = jnp.any(in_order[1:] == in_order[:-1])

    def at_once(arrays: list[Any]) -> list[Any]:
        return move(arrays, indices, gradient)

    moved: list[Any] = lax.cond(has_twice, one_by_one, at_once, list(arrays))
    return moved


# --- plain descent -----------------------------------------------------------------------------


def _average(mean: Any, value: Any, decay: Any) -> Any:
    """Returns a running mean with a value more, rounded as TensorFlow's kernels round it."""
    return mean + (value - mean) * (1 - decay)


@_optimizer("GradientDescent")
def gradient_descent(var: Any, alpha: Any, delta: Any) -> Sequence[Any]:
    return [var - alpha * delta]


def _shrink(value: Any, lr: Any, l1: Any, l2: Any) -> Any:
    """Returns the point nearest to a value at the costs l1 and l2 of its size."""
    excess = jnp.maximum(jnp.abs(value) - lr * jnp.maximum(l1, 0), 0)
    shrunk = jnp.where(l1 > 0, jnp.sign(value) * excess, value)
    return shrunk / (1 + l2 * lr)


@_optimizer("ProximalGradientDescent")
def proximal_gradient_descent(var: Any, alpha: Any, l1: Any, l2: Any, delta: Any) -> Sequence[Any]:
    return [_shrink(var - alpha * delta, alpha, l1, l2)]


@_optimizer("Momentum")
def momentum_rule(
    var: Any, accum: Any, lr: Any, grad: Any, momentum: Any, *, use_nesterov: bool
) -> Sequence[Any]:
    accum = accum * momentum + grad
    step = grad * lr + accum * momentum * lr if use_nesterov else accum * lr
    return [var - step, accum]


@_optimizer("KerasMomentum")
def keras_momentum(
    var: Any, accum: Any, lr: Any, grad: Any, momentum: Any, *, use_nesterov: bool
) -> Sequence[Any]:
    accum = accum * momentum - grad * lr
    return [var + (accum * momentum - grad * lr if use_nesterov else accum), accum]


def _agreement(m: Any, beta: Any, grad: Any) -> tuple[Any, Any]:
    """Returns the new mean of the gradients, and where its sign is that of this gradient."""
    m = m * beta + grad * (1 - beta)
    return m, jnp.sign(grad) * jnp.sign(m)


@_optimizer("AddSign")
def add_sign(
    var: Any, m: Any, lr: Any, alpha: Any, sign_decay: Any, beta: Any, grad: Any
) -> Sequence[Any]:
    m, agreement = _agreement(m, beta, grad)
    return [var - lr * (alpha + sign_decay * agreement) * grad, m]


@_optimizer("PowerSign")
def power_sign(
    var: Any, m: Any, lr: Any, logbase: Any, sign_decay: Any, beta: Any, grad: Any
) -> Sequence[Any]:
    m, agreement = _agreement(m, beta, grad)
    return [var - lr * jnp.exp(logbase * sign_decay * agreement) * grad, m]


# --- Adam --------------------------------------------------------------------------------------


def _moments(m: Any, v: Any, beta1: Any, beta2: Any, grad: Any) -> tuple[Any, Any]:
    return _average(m, grad, beta1), _average(v, lax.square(grad), beta2)


def _rate(lr: Any, beta1_power: Any, beta2_power: Any) -> Any:
    """Returns the learning rate that makes up for moments that began as zeros."""
    return lr * jnp.sqrt(1 - beta2_power) / (1 - beta1_power)


@_optimizer("Adam")
def adam(
    var: Any,
    m: Any,
    v: Any,
    beta1_power: Any,
    beta2_power: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    epsilon: Any,
    grad: Any,
    *,
    use_nesterov: bool,
) -> Sequence[Any]:
    rate = _rate(lr, beta1_power, beta2_power)
    m, v = _moments(m, v, beta1, beta2, grad)
    direction = grad * (1 - beta1) + beta1 * m if use_nesterov else m
    return [var - rate * direction / (jnp.sqrt(v) + epsilon), m, v]


@_optimizer("AdamWithAmsgrad")
def adam_with_amsgrad(
    var: Any,
    m: Any,
    v: Any,
    vhat: Any,
    beta1_power: Any,
    beta2_power: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    epsilon: Any,
    grad: Any,
) -> Sequence[Any]:
    rate = _rate(lr, beta1_power, beta2_power)
    m, v = _moments(m, v, beta1, beta2, grad)
    vhat = jnp.maximum(vhat, v)
    return [var - rate * m / (jnp.sqrt(vhat) + epsilon), m, v, vhat]


@_optimizer("AdaMax")
def ada_max(
    var: Any,
    m: Any,
    v: Any,
    beta1_power: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    epsilon: Any,
    grad: Any,
) -> Sequence[Any]:
    m = _average(m, grad, beta1)
    v = jnp.maximum(beta2 * v, jnp.abs(grad))
    return [var - lr / (1 - beta1_power) * (m / (v + epsilon)), m, v]


# --- rates that adapt --------------------------------------------------------------------------


@_optimizer("Adagrad")
def adagrad(var: Any, accum: Any, lr: Any, grad: Any, *, update_slots: bool) -> Sequence[Any]:
    if update_slots:
        accum = accum + lax.square(grad)
    return [var - lr * grad * lax.rsqrt(accum), accum]


@_optimizer("AdagradV2")
def adagrad_v2(
    var: Any, accum: Any, lr: Any, epsilon: Any, grad: Any, *, update_slots: bool
) -> Sequence[Any]:
    if update_slots:
        accum = accum + lax.square(grad)
    return [var - lr * grad / (jnp.sqrt(accum) + epsilon), accum]


@_optimizer("AdagradDA")
def adagrad_da(
    var: Any,
    gradient_accumulator: Any,
    gradient_squared_accumulator: Any,
    grad: Any,
    lr: Any,
    l1: Any,
    l2: Any,
    global_step: Any,
) -> Sequence[Any]:
    """Moves the variable to the minimum of all gradients so far; its own value is not read."""
    steps = lax.convert_element_type(global_step, var.dtype)
    total = gradient_accumulator + grad
    squares = gradient_squared_accumulator + lax.square(grad)
    shrunk = jnp.sign(total) * jnp.maximum(jnp.abs(total) - l1 * steps, 0)
    descent = jnp.where(l1 > 0, shrunk, total)
    return [-lr * descent / (l2 * steps * lr + jnp.sqrt(squares)), total, squares]


@_optimizer("ProximalAdagrad")
def proximal_adagrad(var: Any, accum: Any, lr: Any, l1: Any, l2: Any, grad: Any) -> Sequence[Any]:
    accum = accum + lax.square(grad)
    rate = lr * lax.rsqrt(accum)
    return [_shrink(var - grad * rate, rate, l1, l2), accum]


@_optimizer("Adadelta")
def adadelta(
    var: Any, accum: Any, accum_update: Any, lr: Any, rho: Any, epsilon: Any, grad: Any
) -> Sequence[Any]:
    accum = accum * rho + lax.square(grad) * (1 - rho)
    step = jnp.sqrt(accum_update + epsilon) * lax.rsqrt(accum + epsilon) * grad
    return [var - step * lr, accum, accum_update * rho + lax.square(step) * (1 - rho)]


@_optimizer("RMSProp")
def rms_prop(
    var: Any, ms: Any, mom: Any, lr: Any, rho: Any, momentum: Any, epsilon: Any, grad: Any
) -> Sequence[Any]:
    ms = _average(ms, lax.square(grad), rho)
    mom = mom * momentum + grad * lr * lax.rsqrt(ms + epsilon)
    return [var - mom, ms, mom]


@_optimizer("CenteredRMSProp")
def centered_rms_prop(
    var: Any,
    mg: Any,
    ms: Any,
    mom: Any,
    lr: Any,
    rho: Any,
    momentum: Any,
    epsilon: Any,
    grad: Any,
) -> Sequence[Any]:
    ms = _average(ms, lax.square(grad), rho)
    mg = _average(mg, grad, rho)
    mom = mom * momentum + grad * lr * lax.rsqrt(ms - lax.square(mg) + epsilon)
    return [var - mom, mg, ms, mom]


# --- Ftrl --------------------------------------------------------------------------------------


@_optimizer("Ftrl")
def ftrl(
    var: Any,
    accum: Any,
    linear: Any,
    grad: Any,
    lr: Any,
    l1: Any,
    l2: Any,
    lr_power: Any,
    *,
    multiply_linear_by_lr: bool,
) -> Sequence[Any]:
    zero = np.zeros((), var.dtype)
    return ftrl_v2(
        var,
        accum,
        linear,
        grad,
        lr,
        l1,
        l2,
        zero,
        lr_power,
        multiply_linear_by_lr=multiply_linear_by_lr,
    )


@_optimizer("FtrlV2")
def ftrl_v2(
    var: Any,
    accum: Any,
    linear: Any,
    grad: Any,
    lr: Any,
    l1: Any,
    l2: Any,
    l2_shrinkage: Any,
    lr_power: Any,
    *,
    multiply_linear_by_lr: bool,
) -> Sequence[Any]:
    shrunk = grad + 2 * l2_shrinkage * var
    new_accum = accum + lax.square(grad)
    new_root, root = jnp.power(new_accum, -lr_power), jnp.power(accum, -lr_power)
    if multiply_linear_by_lr:
        linear = linear + shrunk * lr - (new_root - root) * var
        bound, curvature = l1 * lr, new_root + 2 * l2 * lr
    else:
        linear = linear + shrunk - (new_root - root) / lr * var
        bound, curvature = l1, new_root / lr + 2 * l2
    solution = (jnp.sign(linear) * bound - linear) / curvature
    return [jnp.where(jnp.abs(linear) > bound, solution, 0).astype(var.dtype), new_accum, linear]
