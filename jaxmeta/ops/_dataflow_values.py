"""What passes along the edges of TensorFlow's dataflow beside arrays and lists."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import jax


class _Dead:
    """What a branch that is not taken gives."""

    def __repr__(self) -> str:
        return "DEAD"


DEAD: Final = _Dead()


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, slots=True)
class Optional:
    """Values that may not be there.

    Attributes:
        components: the values, or None.
    """

    components: tuple[Any, ...] | None

    def __add__(self, other: Optional) -> Optional:
        """Returns the sums; one that has no value counts as 0."""
        if self.components is None or other.components is None:
            return other if self.components is None else self
        pairs = zip(self.components, other.components, strict=True)
        return Optional(tuple(a + b for a, b in pairs))

    def tree_flatten(self) -> tuple[Any, None]:
        """Returns the values."""
        return (self.components,), None

    @classmethod
    def tree_unflatten(cls, rest: None, children: Any) -> Optional:
        """Returns the optional of what `tree_flatten` gave."""
        del rest
        return cls(*children)
