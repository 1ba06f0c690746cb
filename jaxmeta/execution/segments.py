"""Plans with steps that JAX cannot trace: strings, queues and files.

Such a plan is cut into parts. The steps of a host part run one by one in Python, on numpy arrays;
those of a device part are one function under jit. Each step is in the earliest part that its inputs
and control inputs allow, so that there are few parts.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import jax
import numpy as np

from jaxmeta import dtypes, errors, op_defs
from jaxmeta.execution import compiling, executor, host_steps, plans
from jaxmeta.execution.queue_resources import Resources, Waiting
from jaxmeta.execution.variable_store import VariableStore
from jaxmeta.ops import _definition
from jaxmeta.tracing import jaxprs

_WIDE: Final = (np.dtype(np.int64), np.dtype(np.uint64))
_HOST_ONLY: Final = frozenset({dtypes.STRING, dtypes.VARIANT})


class HostState:
    """What kernels on the host see of a session: variables, and resources such as queues.

    Attributes:
        resources: what the session holds on the host.
        waiting: how long they may wait.
        changes: the values that this run assigned; the session gets them when the run ends.
        cells: what only this run keeps, as in `plans.State`.
    """

    def __init__(self, store: VariableStore, resources: Resources, waiting: Waiting) -> None:
        self.resources = resources
        self.waiting = waiting
        self.changes: dict[str, Any] = {}
        self.cells: dict[Any, Any] = {}
        self._store = store
        self._names: collections.Counter[str] = collections.Counter()

    def fork(self) -> plans.State:
        """Returns a copy, for a function that may run or not, or many times."""
        copy = plans.State({n: v for n, v in self.values.items() if v.dtype != object})
        copy.cells.update(self.cells)
        return copy

    def unique_name(self, name: str) -> str:
        """Returns the name for what a node makes, which in a loop it does again and again."""
        self._names[name] += 1
        return f"{name}#{self._names[name]}"

    @property
    def values(self) -> dict[str, Any]:
        """The variables' values as this run sees them."""
        return {**self._store.peek(), **self.changes}

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """Returns a variable's value.

        Raises:
            GraphError: it has none yet.
        """
        with self._store.lock:
            value = self.changes.get(name)
            if value is None:
                value = self._store.peek().get(name)
            if value is None:
                raise plans.uninitialized(name)
            return np.asarray(value)

    def is_initialized(self, name: str) -> bool:
        """Returns whether a variable has a value."""
        return name in self.changes or name in self._store.peek()

    def write(self, name: str, value: Any) -> None:
        """Gives a variable a value."""
        self.changes[name] = value

    def count(self, name: str, step: Any = 1) -> Any:
        """Returns the sum of the steps before, in this run and earlier ones, modulo 2**32."""
        counter = plans.COUNTER_PREFIX + name
        count = self.read(counter) if self.is_initialized(counter) else np.zeros((), np.uint32)
        self.write(counter, np.asarray(count + np.asarray(step, np.uint32), np.uint32))
        return count


@dataclasses.dataclass(slots=True)
class _Part:
    """Some steps of a plan, all on the host or all on the device.

    Attributes:
        is_host: where they run.
        steps: in order.
        inputs: for a device part, the places of what it takes from other parts.
        static: those of them that must be known while tracing.
        outputs: for a device part, the places of what others take from it.
        compiled: for a device part, its functions by what they are given.
    """

    is_host: bool
    steps: list[plans.Step]
    inputs: list[int] = dataclasses.field(default_factory=list)
    static: set[int] = dataclasses.field(default_factory=set)
    outputs: list[int] = dataclasses.field(default_factory=list)
    compiled: dict[Any, tuple[compiling.Compiled, dict[int, Any]]] = dataclasses.field(
        default_factory=dict
    )


class SegmentedPlan:
    """A plan some of whose steps run on the host.

    Variables get their new values at the end, so that a run that fails changes none.
    """

    def __init__(
        self, plan: plans.Plan, library: executor.Library, string_arguments: Sequence[int] = ()
    ) -> None:
        """Cuts a plan.

        Args:
            plan: what to cut.
            library: the functions that its steps call.
            string_arguments: which of its arguments are strings.
        """
        self._plan = plan
        self._parts = _split(plan, library, [plan.arguments[i] for i in string_arguments])

    def run(
        self, values: Sequence[Any], store: VariableStore, resources: Resources, waiting: Waiting
    ) -> list[Any]:
        """Runs all parts and returns the results.

        Raises:
            OperationError: a step failed on the values that it was given.
        """
        env = self._plan.initial.copy()
        for place, value in zip(self._plan.arguments, values, strict=True):
            env[place] = value
        state = HostState(store, resources, waiting)
        last = len(self._parts) - 1
        for index, part in enumerate(self._parts):
            if part.is_host:
                plans.run_steps(part.steps, env, state)  # type: ignore[arg-type]
            else:
                _run_on_device(part, self._plan, env, state, store, is_last=index == last)
        if state.changes:
            store.adopt(state.changes)
        return self._plan.read_results(env, state)  # type: ignore[arg-type]


def _run_on_device(
    part: _Part,
    plan: plans.Plan,
    env: list[Any],
    state: HostState,
    store: VariableStore,
    *,
    is_last: bool,
) -> None:
    arrays = {place: env[place] for place in part.inputs if _is_array(env[place])}
    _refuse_wide_integers(arrays.values(), part)
    given = {place: value for place, value in arrays.items() if place not in part.static}
    values = list(given.values())
    key = (
        tuple((place, value.shape, value.dtype) for place, value in given.items()),
        tuple(np.asarray(arrays[place]).tobytes() for place in sorted(part.static & set(arrays))),
    )
    with store.lock:
        known = state.values
        found = part.compiled.get(key)
        if found is None or not found[0].fits(known):
            before = plan.initial.copy()
            for place in part.inputs:
                before[place] = None if place in given else env[place]
            found = _compile(part, before, given, known, donates=is_last)
            part.compiled[key] = found
        compiled, constants = found
        changes = state.changes
        taken = iter(store.take([n for n in compiled.written if n not in changes]))
        written = [changes[n] if n in changes else next(taken) for n in compiled.written]
        results, new = compiled.run(written, [known[n] for n in compiled.read], values)
        changes.update(zip(compiled.updated, new, strict=True))
        if is_last and changes:
            store.adopt(changes)
            changes.clear()
    computed = iter(results)
    for place in part.outputs:
        env[place] = constants[place] if place in constants else next(computed)


def _refuse_wide_integers(arrays: Iterable[Any], part: _Part) -> None:
    """Raises InvalidArgumentError where JAX would cut integers of the host to 32 bits."""
    if jaxprs.has_64_bit_types():
        return
    for array in arrays:
        if not isinstance(array, np.ndarray) or array.dtype not in _WIDE or not array.size:
            continue
        narrow = np.iinfo(np.int32 if array.dtype == np.int64 else np.uint32)
        if array.min() < narrow.min or array.max() > narrow.max:
            node = part.steps[0][5]
            raise errors.InvalidArgumentError(
                f"before node {node.name!r} ({node.op}): values of {array.dtype} that 32 bits do "
                "not hold; switch 64-bit types on, jax.config.update('jax_enable_x64', True)"
            )


def _compile(
    part: _Part,
    before: list[Any],
    given: Mapping[int, Any],
    known: Mapping[str, Any],
    *,
    donates: bool,
) -> tuple[compiling.Compiled, dict[int, Any]]:
    """Returns the function of a device part, and those outputs that are no arrays."""
    constants: dict[int, Any] = {}

    def body(values: Sequence[Any], state: plans.State) -> list[Any]:
        inner = before.copy()
        for place, value in zip(given, values, strict=True):
            inner[place] = value
        plans.run_steps(part.steps, inner, state)
        outputs = {place: inner[place] for place in part.outputs}
        constants.update({p: value for p, value in outputs.items() if not _is_computed(value)})
        return [value for place, value in outputs.items() if place not in constants]

    compiled = compiling.compile_body(body, known, list(given.values()), donates=donates)
    return compiled, constants


def _is_computed(value: Any) -> bool:
    """Returns whether a device part's output is not known while tracing."""
    return _is_array(value) and not isinstance(value, np.ndarray)


def _is_array(value: Any) -> bool:
    if isinstance(value, (bool, int, float, complex)):
        return True
    return isinstance(value, jax.Array) or (
        isinstance(value, (np.ndarray, np.generic)) and value.dtype != object
    )


# --- cutting -----------------------------------------------------------------------------------


def _split(
    plan: plans.Plan, library: executor.Library, string_places: Sequence[int]
) -> list[_Part]:
    """Returns the parts of a plan in the order in which they run."""
    levels = _Levels(plan, library, string_places)
    parts: dict[int, _Part] = {}
    level_of_place: dict[int, int] = {}
    for step in plan.steps:
        level, is_host = levels.place(step)
        part = parts.setdefault(level, _Part(is_host, []))
        part.steps.append(_on_host(step, library) if is_host else step)
        for place in _outputs(step):
            level_of_place[place] = level
    wanted = set(plan.results)
    for level, part in parts.items():
        for step in part.steps:
            wanted.update(p for p in step[1] if level_of_place.get(p, level) != level)
    for part in parts.values():
        if not part.is_host:
            own = {place for step in part.steps for place in _outputs(step)}
            used = {place for step in part.steps for place in step[1]}
            part.inputs = sorted(p for p in used - own if plan.initial[p] is None)
            sizes = levels.sizes.intersection(part.inputs)
            part.static = {p for step in part.steps for p in _static_inputs(step)} - own | sizes
            part.outputs = sorted(own & wanted)
    return [parts[level] for level in sorted(parts)]


def _static_inputs(step: plans.Step) -> list[int]:
    """Returns the places of the inputs that must be known while tracing."""
    return [step[1][index] for index in step[4].static if index < len(step[1])]


def _outputs(step: plans.Step) -> Sequence[int]:
    return step[3] if step[2] < 0 else (step[2],)


class _Levels:
    """Says in which part each step is: host parts have even numbers, device parts odd ones."""

    def __init__(
        self, plan: plans.Plan, library: executor.Library, string_places: Sequence[int]
    ) -> None:
        self._library = library
        self._of_node: dict[str, int] = {}
        self._of_place: dict[int, int] = {}
        self._constants = {p for p, value in enumerate(plan.initial) if value is not None}
        self._given = self._constants.union(plan.arguments)
        self.sizes: set[int] = set()  # the places of what is known while tracing
        # What JAX cannot hold: strings, and the resources that steps on the host gave.
        self._host_places = set(string_places)
        self._host_places.update(
            place
            for place, value in enumerate(plan.initial)
            if isinstance(value, np.ndarray) and value.dtype == object
        )

    def place(self, step: plans.Step) -> tuple[int, bool]:
        """Returns the number of a step's part, and whether it is on the host; in order only."""
        node = step[5]
        numbers = self._numbers(node)
        is_host = (
            step[4].is_host
            or not self._host_places.isdisjoint(step[1])
            or not _HOST_ONLY.isdisjoint(numbers)
            or self._depends_on_values(step)
        )
        level = max(
            [
                *(self._of_place.get(place, 0) for place in step[1]),
                *(self._of_node.get(ref[1:], 0) for ref in node.input if ref[0] == "^"),
                0,
            ]
        )
        if level % 2 == is_host:
            level += 1
        self._of_node[node.name] = level
        for place, number in zip(_outputs(step), numbers, strict=False):
            self._of_place[place] = level
            if number in _HOST_ONLY or (is_host and number == dtypes.RESOURCE):
                self._host_places.add(place)
            elif is_host and dtypes.base_number(number) == dtypes.STRING:
                self._host_places.add(place)  # the handle of a queue in TensorFlow 1
        return level, is_host

    def _depends_on_values(self, step: plans.Step) -> bool:
        """Returns whether what must be known while tracing is so only once steps have run.

        Such a step runs by itself: it would have to be compiled again for each value.
        """
        known = all(place in self.sizes or place in self._constants for place in step[1])
        host = _definition.HOST_KERNELS.get(step[5].op)
        if step[4].gives_sizes or (host is not None and known):
            self.sizes.update(_outputs(step))
        return any(p not in self.sizes and p not in self._given for p in _static_inputs(step))

    def _numbers(self, node: Any) -> list[int]:
        function = self._library.definition(node.op)
        op_def = function.signature if function is not None else op_defs.get_op_def(node.op)
        return op_defs.output_dtypes(op_def, node)


def _on_host(step: plans.Step, library: executor.Library) -> plans.Step:
    """Returns a step that takes and gives numpy arrays."""
    run, places, output, outputs, kernel, node = step
    bare = run
    if not kernel.is_host:
        if host_steps.is_of_numbers(node, library):
            return step
        string_kernel = _definition.STRING_KERNELS.get(node.op)
        if string_kernel is None:
            raise errors.UnsupportedOpError(
                f"node {node.name!r} ({node.op}): the op has no kernel for strings or queues"
            )
        bare = executor.bind_attrs(node, string_kernel, library)
    is_stateful = kernel.is_host and kernel.is_stateful
    as_declared = host_steps.declared_inputs(node, library)

    def run_on_host(*inputs: Any) -> Any:
        state, values = (inputs[:1], inputs[1:]) if is_stateful else ((), inputs)
        return bare(*state, *as_declared(values))

    return run_on_host, places, output, outputs, kernel, node
