"""Plans: nodes in the order in which they run, and the state that they read and write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import errors
from jaxmeta._proto import graph_pb2
from jaxmeta.ops import _kernels

# Before the name of a random op, under which the state counts its runs.
COUNTER_PREFIX: Final = "_runs_of/"
_FIRST_GUESS: Final = 32
_NOT_TRACED: Final = (jax.errors.JAXTypeError, jax.errors.TracerArrayConversionError)
_SEQUENCES: Final = (list, tuple)  # what calls of functions return, for one result too


class _Values(dict[str, Any]):
    """The values of a state; copies of the state share the record of what was asked for."""

    __slots__ = ("asked",)

    def __init__(self, initial: Mapping[str, Any]) -> None:
        super().__init__(initial)
        self.asked: dict[str, None] = initial.asked if isinstance(initial, _Values) else {}


class State:
    """The values of variables while a plan runs: what was there, and what was written.

    Attributes:
        values: variable name to array.
        written: names of the variables that were assigned.
        cells: what only this run keeps, such as arrays that loops fill; see `ops._cells`.
        guesses: for loops of unknown length, for how many iterations lists get places; a loop that
            is not there may be given some where this is not None.
        unbounded: where a run is differentiated, the loops of whose length nothing is known, as
            they are met; else None.
    """

    __slots__ = ("cells", "guesses", "unbounded", "values", "written")

    def __init__(
        self,
        initial: Mapping[str, Any],
        guesses: dict[str, int] | None = None,
        unbounded: list[str] | None = None,
    ) -> None:
        self.values = _Values(initial)
        self.written: dict[str, None] = {}
        self.cells: dict[Any, Any] = {}
        self.guesses = guesses
        self.unbounded = unbounded

    def fork(self) -> State:
        """Returns a copy, for a function that may run or not, or many times."""
        copy = State(self.values, self.guesses, self.unbounded)
        copy.cells.update(self.cells)
        return copy

    def guess(self, loop: str) -> int | None:
        """Returns for how many iterations of a loop there shall be places; None if only sure."""
        if self.guesses is None:
            return None
        return self.guesses.setdefault(loop, _FIRST_GUESS)

    def report(self, key: Any, count: Any) -> None:
        """Keeps the largest of the counts under a key; whoever guessed looks at it."""
        self.cells[key] = jnp.maximum(self.cells.get(key, 0), count)

    def unique_name(self, name: str) -> str:
        """Returns the name for what a node makes; a node is traced once at a time."""
        return name

    @property
    def resources(self) -> Any:
        """Raises UnsupportedOpError: queues are on the host, where nothing is traced."""
        raise errors.UnsupportedOpError(
            "queues run only as nodes of a graph, not inside a function that it calls"
        )

    waiting = resources

    @property
    def asked(self) -> tuple[str, ...]:
        """The names of the variables that were read, or looked up."""
        return tuple(self.values.asked)

    def read(self, name: str) -> Any:
        """Returns a variable's value.

        Raises:
            GraphError: it has none yet.
        """
        self.values.asked[name] = None
        try:
            return self.values[name]
        except KeyError:
            if name.startswith(COUNTER_PREFIX):
                return jnp.zeros((), np.uint32)
            raise uninitialized(name) from None

    def is_initialized(self, name: str) -> bool:
        """Returns whether a variable has a value."""
        self.values.asked[name] = None
        return name in self.values

    def write(self, name: str, value: Any) -> None:
        """Gives a variable a value."""
        self.values[name] = value
        self.written[name] = None

    def count(self, name: str, step: Any = 1) -> Any:
        """Returns the sum of the steps before, in this run and earlier ones, modulo 2**32."""
        counter = COUNTER_PREFIX + name
        count = self.read(counter)
        self.write(counter, count + np.uint32(step) if isinstance(step, int) else count + step)
        return count


def uninitialized(name: str) -> errors.GraphError:
    """Returns the error that says that a variable has no value yet."""
    return errors.GraphError(
        f"the variable {name!r} has no value: restore a checkpoint or run its initializer"
    )


# One node of a plan: the function, the places of its inputs, the place of its only output or else
# -1 and the places of all, the kernel, and the node. A plain tuple, because a plan has one for
# each node of graphs that may have a million.
Step: TypeAlias = tuple[
    Callable[..., Any],
    Sequence[int],
    int,
    Sequence[int],
    _kernels.Kernel,
    graph_pb2.NodeDef,
]


class Plan:
    """Nodes ready to run: a list of places for values, some filled, and steps between them."""

    def __init__(
        self,
        initial: list[Any],
        arguments: Sequence[int],
        steps: Sequence[Step],
        results: Sequence[int],
        *,
        references: frozenset[int] = frozenset(),
        is_host: bool = False,
        may_need_values: bool = False,
        refusal: str = "",
    ) -> None:
        """Takes the parts of a plan.

        Args:
            initial: the values that are known already, by place.
            arguments: the places of what the plan is given.
            steps: in an order in which they can run.
            results: the places of what it returns.
            references: the results that are references to variables.
            is_host: whether some steps work on strings, queues or files, outside jit.
            may_need_values: whether some steps can be traced only where enough is known, so that
                all may have to run op by op.
            refusal: why the plan can only run op by op, where it can.
        """
        self.initial = initial
        self.arguments = tuple(arguments)
        self.steps = steps
        self.results = tuple(results)
        self.references = references
        self.is_host = is_host
        self.may_need_values = may_need_values
        self.refusal = refusal

    def with_steps(self, steps: Sequence[Step]) -> Plan:
        """Returns the plan with other steps, for the same places."""
        return Plan(
            self.initial,
            self.arguments,
            steps,
            self.results,
            references=self.references,
            is_host=self.is_host,
            may_need_values=self.may_need_values,
        )

    def run(self, arguments: Sequence[Any], state: State | None = None) -> list[Any]:
        """Runs all steps and returns the results.

        Raises:
            GraphError: an input that must be known while tracing is not.
            UnsupportedOpError: the plan can only run op by op, which a session does.
        """
        if self.refusal:
            raise errors.UnsupportedOpError(
                f"what is asked for runs only op by op, in a session: {self.refusal}"
            )
        env = self.initial.copy()
        for place, value in zip(self.arguments, arguments, strict=True):
            env[place] = value
        run_steps(self.steps, env, state)
        return self.read_results(env, state)

    def read_results(self, env: Sequence[Any], state: State | None) -> list[Any]:
        """Returns the results from the values of all places."""
        if self.references and state is not None:
            return [
                state.read(env[place].name) if place in self.references else env[place]
                for place in self.results
            ]
        return [env[place] for place in self.results]


def run_steps(steps: Sequence[Step], env: list[Any], state: State | None) -> None:
    """Runs steps in order, from and to the values of their places.

    Raises:
        GraphError: an input that must be known while tracing is not.
    """
    step = None
    try:
        for step in steps:
            run, places, output, outputs, kernel, node = step
            inputs = [env[place] for place in places]
            if kernel.static:
                _require_static(kernel, node, inputs)
            if kernel.is_stateful:
                inputs.insert(0, state)
            result = run(*inputs)
            if output >= 0:
                env[output] = result[0] if type(result) in _SEQUENCES else result
            else:
                for place, value in zip(outputs, result, strict=True):
                    env[place] = value
    except Exception as error:
        if step is not None and step[4].is_host and isinstance(error, _NOT_TRACED):
            node = step[5]
            raise errors.UnsupportedOpError(
                f"node {node.name!r} ({node.op}) works on values on the host; it cannot be traced, "
                "as jit, grad and signatures do: run it in a Session"
            ) from error
        if step is not None:
            error.add_note(f"while running node {step[-1].name!r} ({step[-1].op})")
        raise


def _require_static(kernel: _kernels.Kernel, node: graph_pb2.NodeDef, inputs: list[Any]) -> None:
    """Turns the inputs that must be known while tracing into numpy arrays."""
    for index in kernel.static:
        if index >= len(inputs):
            continue  # an input that is optional
        value = inputs[index]
        if isinstance(value, np.ndarray):
            continue
        if isinstance(value, jax.core.Tracer):
            if index in kernel.traceable:
                continue
            raise errors.GraphError(
                f"node {node.name!r} ({node.op}): its input {index} ({node.input[index]!r}) must "
                "be known while tracing, but it depends on what the function is given"
            )
        inputs[index] = np.asarray(value)
