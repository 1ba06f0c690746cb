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


def policy_to_names(policy: Any) -> tuple[str, ...] | None:
    """Returns a checkpoint policy as its name and arguments, or None where it has no name.

    No policy at all is the empty tuple.
    """
    if policy is None:
        return ()
    for name in _PLAIN_POLICIES:
        if policy == getattr(jax.checkpoint_policies, name):
            return (name,)
    names = getattr(policy, "names", None)
    if type(policy).__name__ == "SaveOnlyTheseNames" and names is not None:
        return ("save_only_these_names", *sorted(names))
    factory = getattr(policy, "__qualname__", "").split(".")[0]
    closure = getattr(policy, "__closure__", None)
    if factory == "save_only_these_names" and closure:
        return (factory, *sorted(closure[0].cell_contents))
    return None


def policy_from_names(names: Sequence[str]) -> Callable[..., Any] | None:
    """Returns the checkpoint policy for what `policy_to_names` gave."""
    if not names:
        return None
    policy: Callable[..., Any] = getattr(jax.checkpoint_policies, names[0])
    return policy(*names[1:]) if names[0] == "save_only_these_names" else policy


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
