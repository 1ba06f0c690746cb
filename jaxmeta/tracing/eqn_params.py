"""Words for what parameters of eqns hold: policies, accuracies, ways to inline; and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
from jax import lax

_PLAIN_POLICIES: Final = (
    "everything_saveable",
    "nothing_saveable",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
)

_POLICIES_OF_NAMES: Final = (
    "save_only_these_names",
    "save_any_names_but_these",
    "save_anything_except_these_names",
)
_POLICY_CLASSES: Final = {
    "SaveOnlyTheseNames": "save_only_these_names",
    "SaveAnyNamesButThese": "save_any_names_but_these",
}
_OFFLOADED_DOTS: Final = "offload_dot_with_no_batch_dims"
_OFFLOADED_NAMES: Final = "save_and_offload_only_these_names"
_BOTH: Final = "save_from_both_policies"
_THEN: Final = "|"  # between the two lists that a policy takes


def policy_to_names(policy: Any) -> tuple[str, ...] | None:
    """Returns a checkpoint policy as its name and arguments, or None where it has no name.

    No policy at all is the empty tuple.
    """
    if policy is None:
        return ()
    for name in _PLAIN_POLICIES:
        if policy == getattr(jax.checkpoint_policies, name):
            return (name,)
    factory = _POLICY_CLASSES.get(type(policy).__name__)
    if factory is not None:
        (names,) = vars(policy).values()
        return (factory, *sorted(names))
    factory = getattr(policy, "__qualname__", "").split(".")[0]
    closure = _closure(policy)
    if factory in _POLICIES_OF_NAMES:
        return (factory, *sorted(next(iter(closure.values()), ())))
    if factory == _OFFLOADED_DOTS:
        return (factory, closure["offload_src"], closure["offload_dst"])
    if factory == _OFFLOADED_NAMES:
        named = {key.removesuffix("_set"): value for key, value in closure.items()}
        saved = sorted(named["names_which_can_be_saved"])
        offloaded = sorted(named["names_which_can_be_offloaded"])
        return (factory, named["offload_src"], named["offload_dst"], *saved, _THEN, *offloaded)
    if factory == _BOTH:
        first, second = (policy_to_names(part) for part in closure.values())
        return None if None in (first, second) else (factory, *first, _THEN, *second)  # type: ignore[misc]
    return None


def _closure(policy: Any) -> dict[str, Any]:
    """Returns what a function made within another one closes over, by name."""
    cells = getattr(policy, "__closure__", None) or ()
    names = policy.__code__.co_freevars if cells else ()
    return {name: cell.cell_contents for name, cell in zip(names, cells, strict=True)}


def policy_from_names(names: Sequence[str]) -> Callable[..., Any] | None:
    """Returns the checkpoint policy for what `policy_to_names` gave."""
    if not names:
        return None
    factory, *arguments = names
    policy: Callable[..., Any] = getattr(jax.checkpoint_policies, factory)
    if factory in _POLICIES_OF_NAMES or factory == _OFFLOADED_DOTS:
        return policy(*arguments)  # type: ignore[no-any-return]
    if factory == _OFFLOADED_NAMES:
        src, dst, *rest = arguments
        middle = rest.index(_THEN)
        offloading: Callable[..., Any] = policy(
            names_which_can_be_saved=rest[:middle],
            names_which_can_be_offloaded=rest[middle + 1 :],
            offload_src=src,
            offload_dst=dst,
        )
        return offloading
    if factory == _BOTH:
        middle = arguments.index(_THEN)
        parts = arguments[:middle], arguments[middle + 1 :]
        return policy(*map(policy_from_names, parts))  # type: ignore[no-any-return]
    return policy


def inline_to_name(inline: Any) -> str:
    """Returns how a nested jit is inlined; empty where that is left to JAX.

    JAX 0.12 has a word for each way, before that it was a bool.
    """
    if isinstance(inline, bool):
        return "jax_early" if inline else ""
    return "" if inline.value == "auto" else str(inline.value)


def inline_from_name(name: str) -> dict[str, Any]:
    """Returns the options of `jax.jit` for what `inline_to_name` gave."""
    if not name:
        return {}
    ways = getattr(jax, "Inline", None)
    return {"inline": ways(name) if ways is not None else True}


def accuracy_to_names(accuracy: Any) -> tuple[str, ...]:
    """Returns the accuracy of an elementwise primitive as words; none where it is the default."""
    if accuracy is None:
        return ()
    if isinstance(accuracy, lax.AccuracyMode):
        return (accuracy.name,)
    return tuple(float(part).hex() for part in (accuracy.atol, accuracy.rtol, accuracy.ulps))


def accuracy_from_names(names: Sequence[str]) -> Any:
    """Returns the accuracy for what `accuracy_to_names` gave."""
    if len(names) == 1:
        return lax.AccuracyMode[names[0]]
    atol, rtol, ulps = (float.fromhex(part) for part in names)
    return lax.Tolerance(atol, rtol, int(ulps))
