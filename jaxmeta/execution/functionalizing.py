"""Loops and branches of TensorFlow 1 as single steps of a plan, which JAX can trace.

What `frames` finds among the steps becomes steps again: one for each loop, and one for the branches
of each predicate. What such a step runs are the steps inside, from and to the same places; so what
comes out of a loop or a Merge is fetched as ever.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from jaxmeta._proto import graph_pb2
from jaxmeta.execution import frames, structured_steps
from jaxmeta.execution.frames import Branches, Frame, Item, Unit, UnstructuredError
from jaxmeta.execution.plans import Step
from jaxmeta.ops import _kernels
from jaxmeta.ops._kernels import Flow

_KERNEL: Final = _kernels.Kernel(lambda *inputs: inputs, is_stateful=True)


def functionalize(
    nodes: Iterable[graph_pb2.NodeDef],
    steps: Sequence[Step],
    constants: Mapping[str, int],
    initial: Sequence[Any],
    results: Sequence[int],
) -> tuple[list[Step], list[int]]:
    """Returns steps without control flow of TensorFlow 1, and where the results are then.

    Args:
        nodes: of a plan, each after those that it depends on but for what leads back in loops.
        steps: theirs, in the same order.
        constants: the places of the nodes that are no steps, by name.
        initial: the values that are known already, by place; it may grow.
        results: the places of what is wanted.

    Raises:
        GraphError: TensorFlow could not run the nodes.
        UnstructuredError: they cannot be compiled; says why.
    """
    units = _units(nodes, steps, constants)
    by_name = {unit.node.name: unit for unit in units}
    controls = {
        unit.index: [
            by_name[ref[1:]] for ref in unit.node.input if ref[0] == "^" and ref[1:] in by_name
        ]
        for unit in units
    }
    root = frames.find_frames(units, controls, initial)
    alive = _alive_outputs(root)
    inside = {place for unit in units for place in unit.outputs}
    if not all(place in alive or place not in inside for place in results):
        raise UnstructuredError(
            "what is fetched lies in a loop, or in a branch that may not be taken"
        )
    making = _Making(units, initial)
    wanted = [making.resolve(place) for place in results]
    items = frames.arrange(root.units, frozenset())
    return making.steps(items, frozenset(wanted)), wanted


def _units(
    nodes: Iterable[graph_pb2.NodeDef], steps: Sequence[Step], constants: Mapping[str, int]
) -> list[Unit]:
    """Returns the units of steps and constants in the order of their nodes."""
    made: list[Unit] = []
    waiting = iter(steps)
    for node in nodes:
        if node.name in constants:
            place = constants[node.name]
            made.append(Unit(len(made), node, None, Flow.PLAIN, (), (place,)))
            continue
        for step in waiting:  # a step that reads a variable for a node stands before its own
            _, inputs, output, outputs, kernel, owner = step
            filled = outputs if output < 0 else (output,)
            made.append(Unit(len(made), owner, step, kernel.flow, inputs, filled))
            if owner is node:
                break
    return made


def _alive_outputs(root: Frame) -> set[int]:
    """Returns the places in the graph's frame whose values are there in any case."""
    return {
        place
        for unit in root.units
        for index, place in enumerate(unit.outputs)
        if not root.predicates.output_context(unit, index)
    }


class _Making:
    """The making of steps out of frames and branches."""

    def __init__(self, units: Sequence[Unit], initial: Sequence[Any]) -> None:
        self._initial = initial
        self._same: dict[int, int] = {}  # what is only passed on, by place
        for unit in units:
            if unit.flow is Flow.SWITCH:
                self._same.update(dict.fromkeys(unit.outputs, unit.inputs[0]))
            elif unit.flow is Flow.CONDITION or _is_constant(unit):
                self._same[unit.outputs[0]] = unit.inputs[0]
        self._used: dict[int, frozenset[int]] = {}

    def resolve(self, place: int) -> int:
        """Returns the place where a value is that others only pass on."""
        while place in self._same:
            place = self._same[place]
        return place

    def steps(self, items: Iterable[Item], wanted: frozenset[int]) -> list[Step]:
        """Returns the steps of items, from whose places some are wanted elsewhere."""
        items = list(items)
        uses = [self._uses(item) for item in items]
        counts = collections.Counter(place for used in uses for place in used)
        made: list[Step] = []
        for item, used in zip(items, uses, strict=True):
            if isinstance(item, Branches):
                outside = {p for p, count in counts.items() if count > (p in used)}
                made.append(self._branches_step(item, wanted | outside))
            elif item.loop is not None:
                made.append(self._loop_step(item.loop))
            elif item.step is not None and item.flow not in (Flow.SWITCH, Flow.CONDITION):
                if item.flow is Flow.MERGE:
                    raise UnstructuredError(
                        f"node {item.node.name!r} merges nothing that was switched"
                    )
                made.append(self._resolved(item.step))
        return made

    def _resolved(self, step: Step) -> Step:
        run, places, output, outputs, kernel, node = step
        return run, [self.resolve(place) for place in places], output, outputs, kernel, node

    def _uses(self, item: Item) -> frozenset[int]:
        """Returns the places that something is taken from, inside or outside of an item."""
        key = id(item)
        if key not in self._used:
            if isinstance(item, Branches):
                parts = [self._uses(inner) for side in item.items for inner in side]
                parts += [self._inputs(unit) for unit, _ in item.merges]
                parts.append(frozenset([self.resolve(item.predicate)]))
                self._used[key] = frozenset().union(*parts)
            elif item.loop is not None:
                units = [*item.loop.units, *item.loop.enters, *item.loop.exits]
                self._used[key] = frozenset().union(*map(self._uses, units))
            else:
                self._used[key] = self._inputs(item)
        return self._used[key]

    def _inputs(self, unit: Unit) -> frozenset[int]:
        return frozenset(map(self.resolve, unit.inputs))

    # --- branches

    def _branches_step(self, branches: Branches, wanted: frozenset[int]) -> Step:
        merges = [
            (unit.outputs, [self.resolve(unit.inputs[place]) for place in order], order)
            for unit, order in branches.merges
        ]
        needed = wanted | {place for _, sources, _ in merges for place in sources}
        sides = [self.steps(items, needed) for items in branches.items]
        made = [{p for step in side for p in outputs_of(step)} for side in sides]
        own = made[0] | made[1]
        outputs = sorted(own & wanted)
        taken = {p for side in sides for step in side for p in step[1]}
        taken |= {place for _, sources, _ in merges for place in sources}
        predicate = self.resolve(branches.predicate)
        inputs = [predicate, *sorted(taken - own - {predicate})]
        node = branches.merges[0][0].node if branches.merges else _first_node(branches)
        run = structured_steps.RunBranches(self._initial, inputs, sides, outputs, merges, node.name)
        return run, inputs, -1, run.outputs, _KERNEL, node

    # --- loops

    def _loop_step(self, frame: Frame) -> Step:
        parts = _LoopParts(frame, self)
        body, wanted = parts.body, frozenset(self.resolve(p) for p in parts.next_values)
        condition = self.resolve(parts.condition.inputs[0])
        steps = [
            self.steps(frames.arrange(units, context), needed)
            for units, context, needed in (
                (parts.test, frozenset(), frozenset([condition])),
                (body, frozenset([(parts.predicate, 1)]), wanted),
                (parts.after, frozenset([(parts.predicate, 0)]), parts.exit_values),
            )
        ]
        own = {p for part in steps for step in part for p in outputs_of(step)}
        own |= {merge.outputs[0] for merge in parts.merges}
        taken = {p for part in steps for step in part for p in step[1]}
        taken |= {condition, *wanted, *parts.exit_values}
        first = [self.resolve(place) for place in parts.first_values]
        inputs = sorted((taken - own) | set(first))
        run = structured_steps.RunLoop(
            self._initial,
            inputs,
            structured_steps.LoopSteps(*steps),
            variables=[merge.outputs[0] for merge in parts.merges],
            first=first,
            following=[self.resolve(place) for place in parts.next_values],
            condition=condition,
            results=[self.resolve(unit.inputs[0]) for unit in frame.exits],
            name=frame.name,
        )
        outputs = [unit.outputs[0] for unit in frame.exits]
        return run, inputs, -1, outputs, _KERNEL, frame.enters[0].node


class _LoopParts:
    """What a loop runs when: its test, its body, and what follows its end.

    Attributes:
        names: of the predicates in the frame.
        condition: the node that says whether there is another iteration.
        predicate: the place that its value comes from.
        merges: of the loop's variables.
        first_values: the places of their first values, outside.
        next_values: the places of their next values.
        exit_values: the places of what leaves the loop.
        test: the units that the condition depends on.
        body: those that run in each iteration.
        after: those that run when there is no other one.
    """

    def __init__(self, frame: Frame, making: _Making) -> None:
        """Sorts the units of a frame.

        Raises:
            UnstructuredError: some do not fit.
        """
        self._frame = frame
        if frame.condition is None:
            raise UnstructuredError(f"the loop {frame.name!r} has no condition")
        self.condition = frame.condition
        self.names = frame.predicates
        self.predicate = self.names.canonical(self.condition.outputs[0])
        self._sources = {p: (u, i) for u in frame.units for i, p in enumerate(u.outputs)}
        self._find_variables()
        self.exit_values = frozenset(making.resolve(unit.inputs[0]) for unit in frame.exits)
        self._check_contexts()
        units = [u for u in frame.units if u not in self.merges and u.flow is not Flow.NEXT]
        under = {u: dict(u.context).get(self.predicate) for u in units}
        free = [u for u in units if under[u] is None]
        self.test = self._ancestors([self.condition], free)
        ends = [self._sources[p][0] for p in self.next_values if p in self._sources]
        self.body = self._with_free([u for u in units if under[u] == 1], ends, free)
        ends = [self._sources[u.inputs[0]][0] for u in frame.exits if u.inputs[0] in self._sources]
        self.after = self._with_free([u for u in units if under[u] == 0], ends, free)
        self._check_free(free)

    def _find_variables(self) -> None:
        frame = self._frame
        entered = {u.outputs[0]: u for u in frame.enters if not _is_constant(u)}
        self.merges: list[Unit] = []
        self.first_values: list[int] = []
        self.next_values: list[int] = []
        for unit in frame.units:
            enters = [entered[p] for p in unit.inputs if p in entered]
            if not enters:
                continue
            others = [self._sources[p][0] for p in unit.inputs if p in self._sources]
            if unit.flow is not Flow.MERGE or [u.flow for u in others] != [Flow.NEXT]:
                raise UnstructuredError(f"node {unit.node.name!r} runs in the first iteration only")
            self.merges.append(unit)
            self.first_values.append(enters[0].inputs[0])
            self.next_values.append(others[0].inputs[0])
        indices = {unit.outputs[1] for unit in self.merges if len(unit.outputs) > 1}
        if any(p in indices for unit in frame.units for p in unit.inputs):
            raise UnstructuredError(f"the loop {frame.name!r} asks which input a Merge takes")

    def _context_of(self, place: int) -> frames.Context:
        if place not in self._sources:
            return frozenset()
        unit, index = self._sources[place]
        return self.names.output_context(unit, index)

    def _check_contexts(self) -> None:
        where = f"the loop {self._frame.name!r}"
        if self.condition.context:
            raise UnstructuredError(f"{where} computes its condition in a branch")
        if any(self._context_of(p) != {(self.predicate, 1)} for p in self.next_values):
            raise UnstructuredError(f"{where} goes on by itself, or in a branch")
        exits = [unit.inputs[0] for unit in self._frame.exits]
        if any(self._context_of(p) != {(self.predicate, 0)} for p in exits):
            raise UnstructuredError(f"{where} is left before its end")

    def _ancestors(self, ends: Iterable[Unit], among: Iterable[Unit]) -> list[Unit]:
        allowed = set(among)
        found: set[Unit] = set()
        pending = [unit for unit in ends if unit in allowed]
        while pending:
            unit = pending.pop()
            if unit not in found:
                found.add(unit)
                pending.extend(before for before in unit.before if before in allowed)
        return [unit for unit in self._frame.units if unit in found]

    def _with_free(
        self, units: list[Unit], ends: Iterable[Unit], free: Iterable[Unit]
    ) -> list[Unit]:
        """Returns units and those that they depend on, which run in any case."""
        before = [b for unit in units for b in unit.before]
        needed = self._ancestors([*before, *ends], free)
        return [*needed, *units]

    def _check_free(self, free: Iterable[Unit]) -> None:
        """Raises UnstructuredError where what acts on a state would run twice, or not at all."""
        for unit in free:
            acts = unit.step is not None and unit.step[4].is_stateful
            times = [unit in part for part in (self.test, self.body, self.after)]
            if acts and times != [True, False, False]:
                raise UnstructuredError(
                    f"node {unit.node.name!r} runs outside of a loop's iterations"
                )


def _is_constant(unit: Unit) -> bool:
    return unit.flow is Flow.ENTER and bool(unit.node.attr["is_constant"].b)


def _first_node(branches: Branches) -> graph_pb2.NodeDef:
    item = next(item for items in branches.items for item in items)
    return _first_node(item) if isinstance(item, Branches) else item.node


def outputs_of(step: Step) -> Sequence[int]:
    """Returns the places that a step fills."""
    return step[3] if step[2] < 0 else (step[2],)
