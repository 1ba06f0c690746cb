"""Derivatives, batches and other transformations of a function of any arguments.

`TRANSFORMATIONS` holds functions of the function and its arguments, by name. Each gives a function
of arrays and what to call it with; the original and what was imported are made of the same pieces,
so that the programs can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import resuming

from jaxmeta import errors

Transformed = tuple[Callable[..., Any], tuple[Any, ...]]
BATCH = 2


def _is_real(leaf: Any) -> bool:
    return bool(jax.dtypes.issubdtype(leaf.dtype, np.floating))


class _Parts:
    """A function as one of its real arguments and of the others, which stay as they are."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._fn = fn
        leaves, self._treedef = jax.tree.flatten(args)
        self._flags = [_is_real(leaf) for leaf in leaves]
        self.reals = [leaf for leaf in leaves if _is_real(leaf)]
        self.others = [leaf for leaf in leaves if not _is_real(leaf)]

    def results(self, reals: Sequence[Any], others: Sequence[Any]) -> list[Any]:
        one, other = iter(reals), iter(others)
        leaves = [next(one) if flag else next(other) for flag in self._flags]
        return jax.tree.leaves(self._fn(*jax.tree.unflatten(self._treedef, leaves)))

    def real_results(self, reals: Sequence[Any], others: Sequence[Any]) -> list[Any]:
        return [leaf for leaf in self.results(reals, others) if _is_real(leaf)]

    def total(self, reals: Sequence[Any], others: Sequence[Any]) -> jax.Array:
        """Returns a number that depends on all real results, each in a way of its own."""
        found = self.real_results(reals, others)
        weighted = [(i + 1) * jnp.sum(leaf.astype(np.float32)) for i, leaf in enumerate(found)]
        return sum(weighted, start=jnp.zeros(()))


def _grad(fn: Callable[..., Any], args: tuple[Any, ...]) -> Transformed:
    parts = _Parts(fn, args)
    return jax.grad(parts.total), (parts.reals, parts.others)


def _jvp(fn: Callable[..., Any], args: tuple[Any, ...]) -> Transformed:
    parts = _Parts(fn, args)

    def run(reals: Any, tangents: Any, others: Any) -> Any:
        return jax.jvp(lambda reals: parts.real_results(reals, others), (reals,), (tangents,))

    return run, (parts.reals, parts.reals, parts.others)


def _vjp(fn: Callable[..., Any], args: tuple[Any, ...]) -> Transformed:
    parts = _Parts(fn, args)

    def run(reals: Any, others: Any) -> Any:
        results, pullback = jax.vjp(lambda reals: parts.real_results(reals, others), reals)
        return pullback([jnp.cos(result) for result in results])

    return run, (parts.reals, parts.others)


def _batched(leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((BATCH, *leaf.shape), leaf.dtype)
    return np.stack([np.asarray(leaf)] * BATCH)


def _vmap(fn: Callable[..., Any], args: tuple[Any, ...]) -> Transformed:
    parts = _Parts(fn, args)
    if parts.reals:
        return jax.vmap(parts.results, (0, None)), ([*map(_batched, parts.reals)], parts.others)
    return jax.vmap(parts.results, (None, 0)), ([], [*map(_batched, parts.others)])


def _jit_of_vmap(fn: Callable[..., Any], args: tuple[Any, ...]) -> Transformed:
    run, batched = _vmap(fn, args)
    return jax.jit(lambda *args: [2 * r for r in jax.tree.leaves(jax.jit(run)(*args))]), batched


def _vmap_of_grad(fn: Callable[..., Any], args: tuple[Any, ...]) -> Transformed:
    parts = _Parts(fn, args)
    batched = [*map(_batched, parts.reals)]
    return jax.vmap(jax.grad(parts.total), (0, None)), (batched, parts.others)


def _hessian_vector(fn: Callable[..., Any], args: tuple[Any, ...]) -> Transformed:
    parts = _Parts(fn, args)

    def run(reals: Any, tangents: Any, others: Any) -> Any:
        gradient = lambda reals: jax.grad(parts.total)(reals, others)  # noqa: E731
        return jax.jvp(gradient, (reals,), (tangents,))[1]

    return run, (parts.reals, parts.reals, parts.others)


def _remat(fn: Callable[..., Any], args: tuple[Any, ...]) -> Transformed:
    parts = _Parts(fn, args)
    return jax.grad(jax.checkpoint(parts.total)), (parts.reals, parts.others)


def _third(fn: Callable[..., Any], args: tuple[Any, ...]) -> Transformed:
    parts = _Parts(fn, args)

    def run(reals: Any, tangents: Any, others: Any) -> Any:
        def along(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
            return lambda reals: jax.jvp(function, (reals,), (tangents,))[1]

        gradient = lambda reals: jax.grad(parts.total)(reals, others)  # noqa: E731
        return along(along(gradient))(reals)

    return run, (parts.reals, parts.reals, parts.others)


def _grad_of_grad(fn: Callable[..., Any], args: tuple[Any, ...]) -> Transformed:
    parts = _Parts(fn, args)

    def run(reals: Any, others: Any) -> Any:
        gradient = jax.grad(parts.total)
        return jax.grad(
            lambda reals: sum(jnp.sum(jnp.sin(leaf)) for leaf in gradient(reals, others))
        )(reals)

    return run, (parts.reals, parts.others)


def _grad_of_vmap(fn: Callable[..., Any], args: tuple[Any, ...]) -> Transformed:
    run, (batched, others) = _vmap(fn, args)

    def total(reals: Any, others: Any) -> jax.Array:
        found = [leaf for leaf in run(reals, others) if _is_real(leaf)]
        return sum((jnp.sum(jnp.sin(leaf)) for leaf in found), start=jnp.zeros(()))

    return jax.grad(total), (batched, others)


def _jacobians(fn: Callable[..., Any], args: tuple[Any, ...]) -> Transformed:
    parts = _Parts(fn, args)
    return (
        lambda reals, others: jax.jacrev(parts.real_results)(reals, others),
        (parts.reals, parts.others),
    )


def _hessian(fn: Callable[..., Any], args: tuple[Any, ...]) -> Transformed:
    parts = _Parts(fn, args)
    return jax.hessian(parts.total), (parts.reals, parts.others)


def _remat_with_policy(fn: Callable[..., Any], args: tuple[Any, ...]) -> Transformed:
    parts = _Parts(fn, args)
    saving = jax.checkpoint(parts.total, policy=jax.checkpoint_policies.dots_saveable)
    return jax.grad(saving), (parts.reals, parts.others)


TRANSFORMATIONS: dict[str, Callable[[Callable[..., Any], tuple[Any, ...]], Transformed]] = {
    "grad": _grad,
    "jvp": _jvp,
    "vmap": _vmap,
    "vjp": _vjp,
    "hessian_vector": _hessian_vector,
    "jit_of_vmap": _jit_of_vmap,
    "vmap_of_grad": _vmap_of_grad,
    "remat": _remat,
    "third": _third,
    "grad_of_grad": _grad_of_grad,
    "grad_of_vmap": _grad_of_vmap,
    "jacobians": _jacobians,
    "hessian": _hessian,
    "remat_with_policy": _remat_with_policy,
}


def compare(
    name: str, original: Callable[..., Any], imported: Callable[..., Any], args: tuple[Any, ...]
) -> str:
    """Returns how a transformation of the original and of the imported function agree.

    "same program": they lower to the same StableHLO. "same bits": to another one that gives the
    same results. "refused": the original raises, and the imported function the same exception, or
    that its rule did not trace. "-": there is nothing to differentiate by.

    Raises:
        AssertionError: they do not agree.
    """
    if "vmap" not in (name, name.removeprefix("jit_of_")) and not _Parts(original, args).reals:
        return "-"
    abstract = jax.eval_shape(lambda: args)
    pairs = [TRANSFORMATIONS[name](fn, abstract) for fn in (original, imported)]
    lowered = [_lower(*pair) for pair in pairs]
    failures = [found for found in lowered if isinstance(found, Exception)]
    if failures:
        first, *more = failures
        if not more or not _is_same_refusal(first, more[0]):
            raise AssertionError(f"{name}: only one of them fails, or in another way") from first
        return "refused"
    texts = [hlo.canonical_stablehlo(found) for found in lowered]
    if texts[0] == texts[1]:
        return "same program"
    _, given = TRANSFORMATIONS[name](original, args)
    results = [resuming.plain_leaves(found.compile(resuming.QUICKLY)(*given)) for found in lowered]
    for one, other in zip(*results, strict=True):
        if one.dtype != other.dtype or one.tobytes() != other.tobytes():
            raise AssertionError(f"{name}: {hlo.first_difference(*texts)}")
    return "same bits"


def _is_same_refusal(original: Exception, imported: Exception) -> bool:
    # The rule was traced by other operands, and so may have failed otherwise.
    return isinstance(imported, errors.DerivativeError) or type(original) is type(imported)


def _lower(run: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    try:
        return jax.jit(run).lower(*args)
    except (TypeError, ValueError, RuntimeError) as error:
        return error
