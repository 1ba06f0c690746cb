"""Control dependencies: which nodes a node that is added now must run after.

The rules are TensorFlow's, so that a graph written here has the edges TensorFlow would give.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence


class ControlDependencies:
    """The ``control_dependencies`` blocks that are open, innermost last.

    Example:
        >>> stack = ControlDependencies()
        >>> with stack.enter(["init"]):
        ...     stack.for_inputs(["x"]), stack.for_inputs(["init"])
        (['init'], [])
    """

    def __init__(self) -> None:
        # Of each block: what its nodes run after, and the nodes that were added in it.
        self._blocks: list[tuple[Sequence[str], set[str]]] = []

    @contextlib.contextmanager
    def enter(self, controls: Sequence[str] | None) -> Iterator[None]:
        """Opens a block; with None, one in which the outer blocks do not count."""
        outer = self._blocks
        self._blocks = [] if controls is None else [*outer, (list(controls), set())]
        try:
            yield
        finally:
            self._blocks = outer

    def for_inputs(self, inputs: Collection[str]) -> list[str]:
        """Returns the control inputs of a node with these data inputs.

        A block adds none where an input was added inside of it, and runs after them already.
        """
        found: dict[str, None] = {}
        for controls, seen in self._blocks:
            if seen.isdisjoint(inputs):
                found.update(dict.fromkeys(c for c in controls if c not in inputs))
        return list(found)

    def record(self, node: str) -> None:
        """Records that a node was added inside the open blocks."""
        for _, seen in self._blocks:
            seen.add(node)
