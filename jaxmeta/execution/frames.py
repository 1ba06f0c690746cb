"""Loops and branches found among the nodes of TensorFlow 1's control flow.

A node is in the frame of a loop where its inputs are, and runs only where they are alive: each
Switch that it comes after says which value of which predicate that takes, and a Merge takes it
back. So the nodes of one frame fall into those that always run, and those under one branch or the
other, within branches. Whatever does not fit is refused with its reason, and runs op by op; what
TensorFlow could not run either is an error.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from jaxmeta import errors
from jaxmeta._proto import graph_pb2
from jaxmeta.execution.plans import Step
from jaxmeta.ops._kernels import Flow

Context: TypeAlias = frozenset[tuple[int, int]]
"""Which predicates must have which values, by their places."""


class UnstructuredError(errors.UnsupportedOpError):
    """The nodes are no loops and branches that can be compiled; says why."""


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Unit:
    """A node, or a loop as a whole.

    Attributes:
        index: its place in the order of the plan.
        node: the node; for a loop the first of its Enters.
        step: what runs it; None for a constant and a loop.
        flow: what it does.
        inputs: the places of its inputs.
        outputs: the places of its outputs.
        before: the units that must run before it.
        frame: where it is.
        context: when it runs.
        loop: the frame that it stands for, if any.
        sides: of a Merge of branches the predicate and its value that each input needs.
    """

    index: int
    node: graph_pb2.NodeDef
    step: Step | None
    flow: Flow
    inputs: Sequence[int]
    outputs: Sequence[int]
    before: list[Unit] = dataclasses.field(default_factory=list)
    frame: Frame | None = None
    context: Context = frozenset()
    loop: Frame | None = None
    sides: Sequence[tuple[int, int]] = ()


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Frame:
    """A loop, or the graph itself.

    Attributes:
        name: of the frame; empty for the graph.
        parent: the frame around it; None for the graph.
        units: its nodes, and the loops in it.
        enters: what leads into it.
        exits: what leads out of it.
        condition: the node that says whether there is another iteration.
        loop: what stands for it in its parent.
        predicates: what is known of the predicates in it.
    """

    name: str
    parent: Frame | None
    units: list[Unit] = dataclasses.field(default_factory=list)
    enters: list[Unit] = dataclasses.field(default_factory=list)
    exits: list[Unit] = dataclasses.field(default_factory=list)
    condition: Unit | None = None
    loop: Unit | None = None
    predicates: Predicates = dataclasses.field(init=False)


def find_frames(
    units: Sequence[Unit], controls: Mapping[int, Sequence[Unit]], initial: Sequence[Any]
) -> Frame:
    """Returns the graph's frame, with all units in their frames and contexts.

    Args:
        units: the nodes, each after its inputs but for what leads back in loops.
        controls: those that must run before a unit for no value of theirs, by its index.
        initial: the values that are known already, by place.

    Raises:
        GraphError: TensorFlow could not run the nodes.
        UnstructuredError: they cannot be compiled.
    """
    producers = {place: unit for unit in units for place in unit.outputs}
    root = Frame("", None)
    _assign_frames(units, producers, controls, root)
    for unit in units:
        assert unit.frame is not None
        inputs = [producers[place] for place in unit.inputs if place in producers]
        if unit.flow is Flow.MERGE:
            inputs = [source for source in inputs if source.flow is not Flow.NEXT]
        unit.before = [*inputs, *controls.get(unit.index, ())]
    _nest(root, units, initial)
    return root


def _assign_frames(
    units: Sequence[Unit],
    producers: Mapping[int, Unit],
    controls: Mapping[int, Sequence[Unit]],
    root: Frame,
) -> None:
    frames: dict[tuple[Frame, str], Frame] = {}
    inner: dict[Unit, Frame] = {}  # where the outputs of Enters and Exits are
    for unit in units:
        sources = [producers[place] for place in unit.inputs if place in producers]
        sources = [s for s in sources if s.frame is not None or s in inner]  # not from below
        sources += controls.get(unit.index, ())
        found = dict.fromkeys(inner.get(source, source.frame) for source in sources)
        given = [frame for frame in found if frame is not None]
        if len(given) > 1:
            names = sorted(frame.name or "the graph" for frame in given)
            raise errors.GraphError(
                f"node {unit.node.name!r} ({unit.node.op}): its inputs are in different frames, "
                f"{names}; what goes into a loop must pass an Enter"
            )
        unit.frame = given[0] if given else root
        if unit.flow is Flow.ENTER:
            name = unit.node.attr["frame_name"].s.decode()
            key = unit.frame, name
            frame = frames.setdefault(key, Frame(name, unit.frame))
            frame.enters.append(unit)
            inner[unit] = frame
        elif unit.flow is Flow.EXIT:
            if unit.frame.parent is None:
                raise _malformed(unit, "it leaves a loop, but nothing entered one")
            unit.frame.exits.append(unit)
            inner[unit] = unit.frame.parent
        else:
            _check_place(unit)


def _check_place(unit: Unit) -> None:
    assert unit.frame is not None
    if unit.flow is Flow.MERGE and len(unit.inputs) < 2:
        raise _malformed(unit, "it merges fewer than two inputs")
    if unit.flow in (Flow.NEXT, Flow.CONDITION) and unit.frame.parent is None:
        raise _malformed(unit, "it is in no loop")
    if unit.flow is Flow.CONDITION:
        if unit.frame.condition is not None:
            raise UnstructuredError(f"the loop {unit.frame.name!r} has two conditions")
        unit.frame.condition = unit


def _malformed(unit: Unit, what: str) -> errors.GraphError:
    return errors.GraphError(f"node {unit.node.name!r} ({unit.node.op}): {what}")


# --- nesting -----------------------------------------------------------------------------------


def _depth(frame: Frame) -> int:
    return 0 if frame.parent is None else 1 + _depth(frame.parent)


def _nest(root: Frame, units: Sequence[Unit], initial: Sequence[Any]) -> None:
    """Puts each loop as one unit into the frame around it, and works out contexts inside out."""
    loops: dict[Frame, Unit] = {}

    def loop_of(frame: Frame) -> Unit:
        if frame not in loops:
            first = frame.enters[0]
            unit = Unit(first.index, first.node, None, Flow.PLAIN, [], [], loop=frame)
            unit.frame = frame.parent
            loops[frame] = frame.loop = unit
            assert frame.parent is not None
            holder_of(frame.parent).append(unit)
        return loops[frame]

    def holder_of(frame: Frame) -> list[Unit]:
        if frame.parent is not None:
            loop_of(frame)
        return frame.units

    for unit in units:
        assert unit.frame is not None
        if unit.flow not in (Flow.ENTER, Flow.EXIT):
            holder_of(unit.frame).append(unit)
        elif unit.flow is Flow.EXIT:
            loop_of(unit.frame)
    for frame, loop in list(loops.items()):
        loop.outputs = [place for unit in frame.exits for place in unit.outputs]
        if not frame.enters:
            raise UnstructuredError(f"the loop {frame.name!r} has no Enter")
    _lift(units, loops)
    for frame in [*loops, root]:
        for unit in frame.units:
            unit.before = list(dict.fromkeys(unit.before))
    for frame in sorted((root, *loops), key=_depth):
        _find_contexts(frame, initial)


def _lift(units: Sequence[Unit], loops: Mapping[Frame, Unit]) -> None:
    """Makes what is before a node of a loop be before the loop, outside of it."""

    def at(unit: Unit, frame: Frame) -> Unit | None:
        """Returns what stands for a unit in a frame."""
        home = unit.frame
        if unit.flow is Flow.EXIT:
            assert home is not None
            unit, home = loops[home], home.parent
        while home is not frame:
            if home is None or home.parent is None:
                return None
            unit, home = loops[home], home.parent
        return unit

    for unit in units:
        frame = unit.frame
        assert frame is not None
        if unit.flow is Flow.ENTER:
            inside = next((f for f in loops if f.parent is frame and unit in f.enters), None)
            if inside is not None:
                loops[inside].before.extend(_found(at(b, frame) for b in unit.before))
        else:
            sources = [b for b in unit.before if b.flow is not Flow.ENTER]
            unit.before = _found(at(source, frame) for source in sources)


def _found(units: Iterable[Unit | None]) -> list[Unit]:
    return [unit for unit in units if unit is not None]


# --- contexts ----------------------------------------------------------------------------------


def _find_contexts(frame: Frame, initial: Sequence[Any]) -> None:
    """Works out when each unit of a frame runs."""
    sources: dict[int, tuple[Unit, int]] = {}
    for unit in frame.units:
        for index, place in enumerate(unit.outputs):
            sources[place] = unit, index
    names = frame.predicates = Predicates(frame, initial)
    for unit in in_order(frame.units):
        contexts = [
            names.output_context(*sources[place]) for place in _taken(unit) if place in sources
        ]
        data = {sources[place][0] for place in _taken(unit) if place in sources}
        others = [b.context for b in unit.before if b not in data]
        if unit.flow is Flow.MERGE:
            is_loop = any(place not in sources for place in unit.inputs)
            unit.context = frozenset() if is_loop else _merged(unit, contexts)
            unit.context |= frozenset().union(*others)
        elif unit.flow is not Flow.TRIGGER:
            unit.context = frozenset().union(*contexts, *others)
        predicates = [place for place, _ in unit.context]
        if len(set(predicates)) < len(predicates):
            raise UnstructuredError(f"node {unit.node.name!r} can never run")


def _taken(unit: Unit) -> Sequence[int]:
    if unit.loop is None:
        return unit.inputs
    return [place for enter in unit.loop.enters for place in enter.inputs]


def _merged(unit: Unit, contexts: Sequence[Context]) -> Context:
    if len(contexts) != 2:
        raise UnstructuredError(f"node {unit.node.name!r} merges {len(contexts)} branches")
    shared = contexts[0] & contexts[1]
    rest = [context - shared for context in contexts]
    if [len(r) for r in rest] == [1, 1]:
        ((one, first),), ((other, second),) = rest
        if one == other and first != second:
            unit.sides = (one, first), (other, second)
            return shared
    raise UnstructuredError(
        f"node {unit.node.name!r} merges what is not two branches of one predicate"
    )


class Predicates:
    """What predicates of a frame say the same.

    One may be only passed on as another, also into a loop, or ask which input a Merge took.
    """

    def __init__(self, frame: Frame, initial: Sequence[Any]) -> None:
        """Takes a frame, whose parents' are known, and the values that are known, by place."""
        self._initial = initial
        self._passed: dict[int, int] = {}
        self._merges: dict[int, Unit] = {}
        self._compared: dict[int, Sequence[int]] = {}
        for unit in frame.units:
            if unit.flow in (Flow.SAME, Flow.CONDITION):
                self._passed[unit.outputs[0]] = unit.inputs[0]
            elif unit.flow is Flow.SWITCH:
                self._passed.update(dict.fromkeys(unit.outputs, unit.inputs[0]))
            elif unit.flow is Flow.COMPARISON:
                self._compared[unit.outputs[0]] = unit.inputs
            elif unit.flow is Flow.MERGE and len(unit.outputs) > 1:
                self._merges[unit.outputs[1]] = unit
        self.implied: Context = frozenset()
        if frame.parent is not None and frame.loop is not None:
            outside = frame.parent.predicates
            self.implied = frame.loop.context | outside.implied
            for enter in frame.enters:
                if enter.node.attr["is_constant"].b:
                    self._passed[enter.outputs[0]] = outside.canonical(enter.inputs[0])

    def canonical(self, place: int) -> int:
        """Returns the place that a predicate comes from."""
        while place in self._passed:
            place = self._passed[place]
        return place

    def side(self, place: int, value: int) -> tuple[int, int]:
        """Returns the predicate that decides whether the one at a place has a value, and how."""
        place = self.canonical(place)
        for first, second in itertools.permutations(self._compared.get(place, ()), 2):
            merge = self._merges.get(self.canonical(first))
            asked = self._initial[self.canonical(second)]
            if merge is not None and merge.sides and isinstance(asked, np.ndarray):
                predicate, taken = merge.sides[int(asked)]
                return predicate, taken if value else 1 - taken
        return place, value

    def output_context(self, unit: Unit, index: int) -> Context:
        """Returns when an output of a unit is alive."""
        if unit.flow is Flow.SWITCH:
            return unit.context | ({self.side(unit.inputs[1], index)} - self.implied)
        return unit.context


def in_order(units: Sequence[Unit]) -> list[Unit]:
    """Returns the units of a frame, each after those that must run before it.

    Raises:
        GraphError: they form a cycle.
    """
    return [unit for _, group in _Ready(units).groups(lambda unit: None) for unit in group]


class _Ready:
    """Units that can run, as others have run."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self._units = list(units)
        inside = set(units)
        self._users: dict[Unit, list[Unit]] = collections.defaultdict(list)
        self._left: dict[Unit, int] = {}
        self._ready: dict[object, list[tuple[int, int, Unit]]] = collections.defaultdict(list)
        for unit in self._units:
            before = [b for b in unit.before if b in inside]
            self._left[unit] = len(before)
            for earlier in before:
                self._users[earlier].append(unit)
        self._done = 0

    def groups(self, key_of: Callable[[Unit], object]) -> Iterable[tuple[object, list[Unit]]]:
        """Yields the units in groups of one key, each as large as it can be; None goes first."""
        for unit in self._units:
            if not self._left[unit]:
                self._add(unit, key_of)
        while self._ready:
            key = min(self._ready, key=lambda k: (k is not None, self._ready[k][0][:2]))
            group = []
            heap = self._ready[key]
            while heap:
                unit = heapq.heappop(heap)[2]
                group.append(unit)
                for user in self._users[unit]:
                    self._left[user] -= 1
                    if not self._left[user]:
                        self._add(user, key_of)
            del self._ready[key]
            self._done += len(group)
            yield key, group
        if self._done < len(self._units):
            stuck = [unit.node.name for unit in self._units if self._left[unit]]
            raise errors.GraphError(
                errors.list_offenders("these nodes wait for one another:", stuck)
            )

    def _add(self, unit: Unit, key_of: Callable[[Unit], object]) -> None:
        heapq.heappush(self._ready[key_of(unit)], (unit.index, id(unit), unit))


# --- branches ----------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Branches:
    """Units that run under the one value of a predicate or the other, and what merges them.

    Attributes:
        predicate: its place.
        items: what runs where it is false, and where it is true.
        merges: those whose inputs come from here, each with the position of the input that comes
            from where it is false, and from where it is true.
    """

    predicate: int
    items: tuple[list[Item], list[Item]]
    merges: list[tuple[Unit, tuple[int, int]]]


Item: TypeAlias = Unit | Branches


def arrange(units: Sequence[Unit], context: Context) -> list[Item]:
    """Returns units of one frame in the order in which they run, in few branches.

    Args:
        units: all that run in a context or under branches in it.
        context: the context.

    Raises:
        UnstructuredError: a predicate is known only under another one.
    """
    contexts = {unit: unit.context - context for unit in units}
    branch_of = _branch_of(units, context, contexts)
    items: list[Item] = []
    for key, group in _Ready(units).groups(branch_of):
        if key is None:
            items.extend(group)
            continue
        assert isinstance(key, int)
        sides = []
        for value in (0, 1):
            inside = context | {(key, value)}
            own = [unit for unit in group if (key, value) in unit.context]
            sides.append(arrange(own, inside))
        merges = [
            (unit, (0, 1) if unit.sides[0][1] == 0 else (1, 0))
            for unit in group
            if not contexts[unit]
        ]
        items.append(Branches(key, (sides[0], sides[1]), merges))
    return items


def _branch_of(
    units: Sequence[Unit], context: Context, contexts: Mapping[Unit, Context]
) -> Callable[[Unit], object]:
    """Returns what says of a unit under which predicate it runs, None where it runs always.

    Of several predicates it is the outermost one.

    Args:
        units: see `arrange`.
        context: see `arrange`.
        contexts: what the context of each unit has beside that one.
    """
    by_place = {place: unit for unit in units for place in unit.outputs}

    alone: dict[int, int] = {}  # how few others a predicate is under with
    for rest in contexts.values():
        for predicate, _ in rest:
            alone[predicate] = min(alone.get(predicate, len(rest)), len(rest))

    def depth(predicate: int) -> int:
        source = by_place.get(predicate)
        return len(source.context - context) if source is not None else 0

    def branch_of(unit: Unit) -> object:
        rest = contexts[unit]
        if unit.sides and not rest:
            return unit.sides[0][0]
        if not rest:
            return None
        predicates = sorted(
            {predicate for predicate, _ in rest}, key=lambda p: (depth(p), alone[p], p)
        )
        if depth(predicates[0]):
            raise UnstructuredError(
                f"node {unit.node.name!r} depends on a predicate of another branch"
            )
        return predicates[0]

    return branch_of
