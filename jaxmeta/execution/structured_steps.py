"""What the steps run that stand for a whole loop, or for the branches of a predicate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxmeta.execution.plans import Step, run_steps
from jaxmeta.ops import _branches, _loops
from jaxmeta.ops._dataflow_values import DEAD


class _Env(dict[int, Any]):
    """Values by place: those that are given, and those that the plan knows."""

    def __init__(self, initial: Sequence[Any], given: dict[int, Any]) -> None:
        super().__init__(given)
        self._initial = initial

    def __missing__(self, place: int) -> Any:
        return self._initial[place]

    def copy(self) -> _Env:
        """Returns the same values in another mapping."""
        return _Env(self._initial, self)

    def run(self, steps: Sequence[Step], state: Any) -> None:
        """Runs steps from and to the places."""
        run_steps(steps, self, state)  # type: ignore[arg-type]


class RunBranches:
    """The branches of a predicate.

    Attributes:
        outputs: the places of what it returns.
    """

    def __init__(
        self,
        initial: Sequence[Any],
        inputs: Sequence[int],
        sides: Sequence[Sequence[Step]],
        own: Sequence[int],
        merges: Sequence[tuple[Sequence[int], Sequence[int], Sequence[int]]],
        name: str,
    ) -> None:
        """Takes the parts.

        Args:
            initial: what the plan knows, by place.
            inputs: the places of what it is given; the first is the predicate.
            sides: what runs where the predicate is false, and where it is true.
            own: the places inside whose values are wanted outside, in the same branch.
            merges: for each its outputs, and by the predicate's value the place of its input and
                the position of that.
            name: for messages.
        """
        self._initial, self._inputs, self._sides = initial, inputs, sides
        self._own, self._merges, self._name = own, merges, name
        self.outputs = [*own, *(place for places, _, _ in merges for place in places)]

    def __call__(self, state: Any, predicate: Any, *values: Any) -> list[Any]:
        """Returns the values of the outputs; `DEAD` or zeros for those of the other branch."""
        given = dict(zip(self._inputs, (predicate, *values), strict=True))

        def side(index: int) -> Callable[[Any], list[Any]]:
            return lambda local: self._run(index, given, local)

        if not isinstance(predicate, jax.core.Tracer):
            return side(int(bool(np.asarray(predicate))))(state)
        return _branches.run_branches(state, predicate, [side(0), side(1)], self._name)

    def _run(self, index: int, given: dict[int, Any], state: Any) -> list[Any]:
        env = _Env(self._initial, given)
        env.run(self._sides[index], state)
        inside = {p for step in self._sides[index] for p in (step[3] or (step[2],))}
        results = [env[place] if place in inside else DEAD for place in self._own]
        for outputs, sources, positions in self._merges:
            merged = [env[sources[index]], np.asarray(positions[index], np.int32)]
            results.extend(merged[: len(outputs)])
        return results


@dataclasses.dataclass(frozen=True, slots=True)
class LoopSteps:
    """The steps of a loop.

    Attributes:
        test: compute the condition.
        body: run in each iteration.
        after: run when there is no other one.
    """

    test: Sequence[Step]
    body: Sequence[Step]
    after: Sequence[Step]


class RunLoop:
    """A loop."""

    def __init__(
        self,
        initial: Sequence[Any],
        inputs: Sequence[int],
        steps: LoopSteps,
        *,
        variables: Sequence[int],
        first: Sequence[int],
        following: Sequence[int],
        condition: int,
        results: Sequence[int],
        name: str,
    ) -> None:
        """Takes the parts.

        Args:
            initial: what the plan knows, by place.
            inputs: the places of what it is given.
            steps: what runs.
            variables: the places of what changes from iteration to iteration.
            first: where their first values are, outside.
            following: where their next values are.
            condition: the place of the condition.
            results: the places of what it returns.
            name: of the loop.
        """
        self._initial, self._inputs, self._steps = initial, inputs, steps
        self._variables, self._first, self._following = variables, first, following
        self._condition, self._results, self._name = condition, results, name

    def __call__(self, state: Any, *values: Any) -> list[Any]:
        """Runs the loop and returns its results."""
        outside = _Env(self._initial, dict(zip(self._inputs, values, strict=True)))

        def enter(carry: Sequence[Any]) -> _Env:
            env = outside.copy()
            env.update(zip(self._variables, carry, strict=True))
            return env

        def holds(carry: list[Any], local: Any) -> Any:
            env = enter(carry)
            env.run(self._steps.test, local)
            return env[self._condition]

        def step(carry: list[Any], local: Any) -> list[Any]:
            env = enter(carry)
            env.run(self._steps.body, local)
            return [env[place] for place in self._following]

        first = [outside[place] for place in self._first]
        env = enter(_loops.run_while(state, holds, step, first, self._name))
        env.run(self._steps.after, state)
        return [env[place] for place in self._results]
