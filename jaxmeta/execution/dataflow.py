"""Plans that run op by op: TensorFlow's loops and branches of Enter, Switch, Merge and Exit nodes.

Such nodes say no functions that JAX could trace; what runs is found out from the values. As in
TensorFlow, a step runs once in each iteration of each frame, when all its inputs have come; what a
branch that is not taken gives is dead, and makes dead what depends on it.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import jax

from jaxmeta import errors
from jaxmeta.execution import executor, host_steps, plans
from jaxmeta.execution.queue_resources import Resources, Waiting
from jaxmeta.execution.segments import HostState
from jaxmeta.execution.variable_store import VariableStore
from jaxmeta.ops._dataflow_values import DEAD
from jaxmeta.ops._kernels import Flow


class _Iteration:
    """One iteration of a frame: the values in it, and what its steps still wait for.

    Attributes:
        frame: the frame, which is shared by all iterations; None for the graph itself.
        values: by place.
        left: how many inputs have not come yet, by step.
        dead: how many of those that came are dead, by step.
        started: the steps that ran, or are about to.
        merged: the merges that know which input they pass on.
        not_entered: the outputs of switches in a frame that never began.
    """

    def __init__(self, frame: _Frame | None, number: int) -> None:
        self.frame = frame
        self.number = number
        self.values: dict[int, Any] = {}
        self.left: dict[int, int] = {}
        self.dead: collections.Counter[int] = collections.Counter()
        self.started: set[int] = set()
        self.merged: set[int] = set()
        self.not_entered: set[int] = set()
        self.frames: dict[bytes, _Frame] = {}


class _Frame:
    """A loop that runs: its iterations, and what all of them see."""

    def __init__(self, parent: _Iteration) -> None:
        self.parent = parent
        self.iterations = [_Iteration(self, 0)]
        self.constants: list[tuple[int, Any]] = []


class _Values:
    """The values that a step sees: those of its iteration, else what the plan holds."""

    def __init__(self, initial: Sequence[Any], own: dict[int, Any]) -> None:
        self._initial, self._own = initial, own

    def __getitem__(self, place: int) -> Any:
        return self._own[place] if place in self._own else self._initial[place]

    def __setitem__(self, place: int, value: Any) -> None:
        self._own[place] = value


class DataflowPlan:
    """A plan that runs op by op, on values.

    Variables get their new values at the end, so that a run that fails changes none.
    """

    def __init__(self, plan: plans.Plan, library: executor.Library) -> None:
        """Works out which steps wait for which.

        Args:
            plan: what to run.
            library: the functions that its steps call.
        """
        self._plan = plan
        self._steps = [host_steps.on_values(step, library) for step in plan.steps]
        produced = {place for step in self._steps for place in _outputs(step)}
        by_name = {step[5].name: index for index, step in enumerate(self._steps)}
        self._waiting: list[int] = []
        self._users: dict[int, list[int]] = collections.defaultdict(list)
        self._followers: dict[int, list[int]] = collections.defaultdict(list)
        backs = {p for step in self._steps if step[4].flow is Flow.NEXT for p in _outputs(step)}
        self._inputs_of_merge: dict[int, int] = {}
        for index, step in enumerate(self._steps):
            data = [place for place in step[1] if place in produced]
            before = {by_name[r[1:]] for r in step[5].input if r[0] == "^" and r[1:] in by_name}
            for place in data:
                self._users[place].append(index)
            for earlier in before:
                self._followers[earlier].append(index)
            if step[4].flow is Flow.MERGE:
                self._inputs_of_merge[index] = len([p for p in data if p not in backs])
                self._waiting.append(len(before) + 1)
            else:
                self._waiting.append(len(before) + len(data))

    def run(
        self, values: Sequence[Any], store: VariableStore, resources: Resources, waiting: Waiting
    ) -> list[Any]:
        """Runs the plan and returns the results.

        Raises:
            OperationError: a step failed on the values that it was given.
            InvalidArgumentError: what is wanted lies in a branch that is not taken.
        """
        initial = self._plan.initial.copy()
        for place, value in zip(self._plan.arguments, values, strict=True):
            initial[place] = value
        state = HostState(store, resources, waiting)
        root = _Run(self, initial, state).run()
        env = [root.get(place, value) for place, value in enumerate(initial)]
        if any(env[place] is DEAD for place in self._plan.results):
            raise errors.InvalidArgumentError(
                "a fetch has no value: it lies in a branch that is not taken"
            )
        results = self._plan.read_results(env, state)  # type: ignore[arg-type]
        if state.changes:
            store.adopt({name: _as_stored(value) for name, value in state.changes.items()})
        return results


class _Run:
    """One run of a plan."""

    def __init__(self, dataflow: DataflowPlan, initial: list[Any], state: HostState) -> None:
        self._plan = dataflow
        self._initial = initial
        self._state = state
        self._ready: collections.deque[tuple[_Iteration, int]] = collections.deque()

    def run(self) -> dict[int, Any]:
        """Runs all steps and returns the values outside of all loops."""
        root = _Iteration(None, 0)
        for index, count in enumerate(self._plan._waiting):
            if not count:
                self._start(root, index)
        while self._ready:
            iteration, index = self._ready.popleft()
            self._run_step(iteration, index)
        return root.values

    def _start(self, iteration: _Iteration, index: int) -> None:
        if index not in iteration.started:
            iteration.started.add(index)
            self._ready.append((iteration, index))

    def _run_step(self, iteration: _Iteration, index: int) -> None:
        step = self._plan._steps[index]
        flow, outputs = step[4].flow, _outputs(step)
        if flow is Flow.MERGE:
            inputs = [iteration.values.get(place, self._initial[place]) for place in step[1]]
            is_dead = all(value is DEAD or value is None for value in inputs)
        else:
            is_dead = iteration.dead[index] > 0 and flow is not Flow.TRIGGER
        if is_dead:
            results = [DEAD] * len(outputs)
            if flow is Flow.SWITCH:
                iteration.not_entered.update(outputs)
        else:
            results = self._compute(iteration, step, outputs)
        self._pass_on(iteration, index, results)

    def _compute(
        self, iteration: _Iteration, step: plans.Step, outputs: Sequence[int]
    ) -> list[Any]:
        own = iteration.values
        if step[4].flow is Flow.MERGE:  # inputs that have not come yet are none
            own = {place: own.get(place, DEAD) for place in step[1] if self._initial[place] is None}
        env: Any = _Values(self._initial, own)
        plans.run_steps([step], env, self._state)  # type: ignore[arg-type]
        return [env[place] for place in outputs]

    def _pass_on(self, iteration: _Iteration, index: int, results: Sequence[Any]) -> None:
        """Delivers what a step gave to where its op says."""
        step = self._plan._steps[index]
        flow, is_dead = step[4].flow, bool(results) and all(value is DEAD for value in results)
        if flow not in (Flow.MERGE, Flow.TRIGGER):
            is_dead = is_dead or iteration.dead[index] > 0
        if flow is Flow.ENTER:
            self._enter(iteration, index, results[0])
            return
        if flow is Flow.EXIT:
            if is_dead and step[1][0] not in iteration.not_entered:
                return
            assert iteration.frame is not None
            iteration = iteration.frame.parent
        elif flow is Flow.NEXT:
            if is_dead:
                return
            iteration = self._next(iteration)
        self._deliver(iteration, index, results, is_dead=is_dead)

    def _enter(self, iteration: _Iteration, index: int, value: Any) -> None:
        attr = self._plan._steps[index][5].attr
        frame = iteration.frames.setdefault(attr["frame_name"].s, _Frame(iteration))
        targets = frame.iterations[:1]
        if attr["is_constant"].b:
            frame.constants.append((index, value))
            targets = list(frame.iterations)
        for target in targets:
            self._deliver(target, index, [value], is_dead=value is DEAD)

    def _next(self, iteration: _Iteration) -> _Iteration:
        frame = iteration.frame
        assert frame is not None
        number = iteration.number + 1
        if number == len(frame.iterations):
            frame.iterations.append(_Iteration(frame, number))
            for index, value in frame.constants:
                self._deliver(frame.iterations[number], index, [value], is_dead=value is DEAD)
        return frame.iterations[number]

    def _deliver(
        self, iteration: _Iteration, index: int, results: Sequence[Any], *, is_dead: bool
    ) -> None:
        for place, value in zip(_outputs(self._plan._steps[index]), results, strict=True):
            iteration.values[place] = value
            for user in self._plan._users[place]:
                self._arrive(iteration, user, is_dead=value is DEAD, is_data=True)
        for follower in self._plan._followers[index]:
            self._arrive(iteration, follower, is_dead=is_dead, is_data=False)

    def _arrive(self, iteration: _Iteration, index: int, *, is_dead: bool, is_data: bool) -> None:
        left = iteration.left.setdefault(index, self._plan._waiting[index])
        wanted = self._plan._inputs_of_merge.get(index)
        if wanted is not None and is_data:  # one live input is enough, or all must be dead
            iteration.dead[index] += is_dead
            if index in iteration.merged or (is_dead and iteration.dead[index] != wanted):
                return
            iteration.merged.add(index)
        elif is_dead and wanted is None:
            iteration.dead[index] += 1
        iteration.left[index] = left - 1
        if left == 1:
            self._start(iteration, index)


def _outputs(step: plans.Step) -> Sequence[int]:
    return step[3] if step[2] < 0 else (step[2],)


def _as_stored(value: Any) -> Any:
    return value if host_steps.is_string(value) else jax.numpy.asarray(value)
