"""Plans in the making: the steps of nodes, each with its kernel and the places of its inputs.

Nothing here knows an op by name; what is special about an op stands in its kernel.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import dtypes, errors, op_defs, shardings, values
from jaxmeta._proto import graph_pb2
from jaxmeta.execution import frames, functionalizing, node_kernels
from jaxmeta.execution.plans import Plan, State, Step
from jaxmeta.ops import _definition, _kernels
from jaxmeta.tracing import dimension_nodes, jaxprs, sizes

_MOST_SIZES: Final = 32  # as many as an array has axes
_NO_STEP: Final = -1


class UnknownInput(errors.GraphError):
    """A node's input is not among the nodes before it."""


class Planner:
    """Makes the steps of one plan; holds the places of the tensors met so far."""

    def __init__(self, library: node_kernels.FunctionLibrary, *, is_compiled: bool = False) -> None:
        self._library = library
        self._kernels = node_kernels.NodeKernels(library, is_compiled=is_compiled)
        self._is_compiled = is_compiled  # whether its loops and branches shall be
        self._strings: set[int] = set()
        self.places: dict[str, int] = {}
        self.env: list[Any] = []
        self.steps: list[Step] = []
        self.unfed: dict[str, None] = {}
        self.sizes: set[int] = set()  # the places that hold sizes, known while tracing
        self.foldable: dict[int, int] = {}  # the steps of what constants give, by place
        self.at_need: set[int] = set()  # those of them that are folded only for shapes
        self.references: set[int] = set()
        self._constant_places: dict[str, int] = {}
        self.is_host = False
        self.may_need_values = False

    def add_place(self, name: str, value: Any = None) -> int:
        """Returns a new place for a tensor, filled with a value that is known already."""
        place = len(self.env)
        self.env.append(value)
        self.places[name] = place
        return place

    def may_be_known(self, arguments: Iterable[int]) -> None:
        """Says that callers may give numbers for arguments, of which shapes are made."""
        for place in arguments:
            if place not in self.sizes:
                self.foldable[place] = _NO_STEP
                self.at_need.add(place)

    def add_node(
        self, node: graph_pb2.NodeDef, output_refs: Callable[[graph_pb2.NodeDef], list[str]]
    ) -> None:
        """Adds the step of a node.

        Raises:
            UnknownInput: an input was not added before.
        """
        op = node.op
        if op == "Const":
            self._add_constant(node, output_refs(node)[0])
            return
        kernel = self._kernels.find(node)
        is_call = kernel is node_kernels.CALL_KERNEL or kernel.takes_functions
        if is_call and self._library.calls_on_host(node):
            kernel = dataclasses.replace(kernel, is_host=True)
        if kernel.must_be_fed:
            self.unfed[node.name] = None
        inputs = self._input_places(node)
        refs = output_refs(node)
        run = self._kernels.bind(node, kernel, len(refs))
        if shardings.CONTEXT_ATTR in node.attr:
            run = shardings.run_in_context(run, node.attr[shardings.CONTEXT_ATTR].list.s)
        run = self._folding(node, kernel, run, inputs, len(refs))
        if (
            kernel.is_host
            or (op not in _definition.TRACED_KERNELS and self._takes_string(inputs))
            or (kernel.makes_variable and node.attr["dtype"].type == dtypes.STRING)
        ):
            self.is_host = True
        if kernel.may_need_values:
            self.may_need_values = True
        if kernel.has_references or self.references:
            kernel, run = self._dereference(node, kernel, run, inputs)
        if len(refs) == 1:
            output = self.add_place(refs[0])
            self.steps.append((run, inputs, output, (), kernel, node))
        else:
            outputs = [self.add_place(ref) for ref in refs]
            self.steps.append((run, inputs, -1, outputs, kernel, node))

    def _input_places(self, node: graph_pb2.NodeDef) -> list[int]:
        places = self.places
        inputs = []
        for ref in node.input:
            place = places.get(ref)
            if place is None:
                if ref[0] == "^":
                    continue
                place = self._place(node, ref)
            inputs.append(place)
        return inputs

    def _folding(
        self,
        node: graph_pb2.NodeDef,
        kernel: _kernels.Kernel,
        run: Callable[..., Any],
        inputs: Sequence[int],
        num_outputs: int,
    ) -> Callable[..., Any]:
        """Returns what the next step runs, which computes with sizes where its inputs are such."""
        host = _definition.HOST_KERNELS.get(node.op)
        outputs = range(len(self.env), len(self.env) + num_outputs)
        self._fold_inputs(node, kernel, inputs)
        at_need = host is not None and (
            host.at_need
            or any(place in self.at_need and place not in self.sizes for place in inputs)
        )
        if kernel.gives_sizes or not self.sizes.isdisjoint(inputs):
            if at_need and all(place in self.sizes or place in self.foldable for place in inputs):
                self._may_fold(outputs, at_need)
                return sizes.folding(None, run, kernel.static)
            return self._with_sizes(node, kernel, run, outputs)
        if host is not None and all(place in self.foldable for place in inputs):
            self._may_fold(outputs, at_need or not self.at_need.isdisjoint(inputs))
        return run

    def _may_fold(self, places: Iterable[int], at_need: bool) -> None:
        """Says that the next step, whose outputs have these places, may be done on the host."""
        for place in places:
            self.foldable[place] = len(self.steps)
            if at_need:
                self.at_need.add(place)

    def _takes_string(self, inputs: Sequence[int]) -> bool:
        return bool(self._strings) and not self._strings.isdisjoint(inputs)

    def _dereference(
        self,
        node: graph_pb2.NodeDef,
        kernel: _kernels.Kernel,
        run: Callable[..., Any],
        inputs: list[int],
    ) -> tuple[_kernels.Kernel, Callable[..., Any]]:
        """Returns a kernel that reads the variables that its inputs refer to, as TensorFlow does.

        An op that takes references gets them as they are.
        """
        op_def = op_defs.get_op_def(node.op) if kernel.has_references else None
        taken = op_defs.input_dtypes(op_def, node) if op_def is not None else []
        read = [
            index
            for index, place in enumerate(inputs)
            if place in self.references and not (taken and dtypes.is_reference(taken[index]))
        ]
        if read and kernel.flow in _kernels.CONTROL_FLOW:
            for index in read:
                inputs[index] = self._add_read(node, index, inputs[index])
            read = []
        for index, number in enumerate(op_defs.output_dtypes(op_def, node) if op_def else ()):
            if dtypes.is_reference(number):
                self.references.add(len(self.env) + index)
        if not read:
            return kernel, run
        is_stateful = kernel.is_stateful

        def run_on_values(state: State, *values: Any) -> Any:
            known = list(values)
            for index in read:
                known[index] = state.read(known[index].name)
            return run(state, *known) if is_stateful else run(*known)

        return dataclasses.replace(kernel, is_stateful=True), run_on_values

    def _add_read(self, node: graph_pb2.NodeDef, index: int, place: int) -> int:
        """Adds the step that reads a variable for an op that only passes the value on."""
        controls = [ref for ref in node.input if ref[0] == "^"]
        read = graph_pb2.NodeDef(name=f"{node.name}/read_{index}", op="Identity", input=controls)
        made = len(self.env)
        self.env.append(None)
        self.steps.append((_read_reference, [place], made, (), node_kernels.CALL_KERNEL, read))
        return made

    def _add_constant(self, node: graph_pb2.NodeDef, name: str) -> None:
        attr = node.attr
        value = values.tensor_from_proto(attr["value"].tensor)
        if _definition.CAPTURED_ATTR in attr:
            recorded = shardings.sharding_from_attrs(attr)
            sharding = self._library.placement.sharding(recorded)
            array = jnp.asarray(value) if sharding is None else jax.device_put(value, sharding)
            self._constant_places[node.name] = self.add_place(name, array)
        elif _definition.WEAK_TYPE_ATTR in attr:
            place = self.add_place(name)
            make = functools.partial(jaxprs.cast, value, value.dtype, is_weak=True)
            self.steps.append((make, (), place, (), node_kernels.PLAIN_KERNEL, node))
        else:
            place = self._constant_places[node.name] = self.add_place(name, value)
            if value.dtype == object:
                self._strings.add(place)
                self.is_host = self.is_host or not self._is_compiled
            elif value.size <= _MOST_SIZES and value.dtype.kind in "iufb":
                self.foldable[place] = _NO_STEP
                if value.dtype != np.int32:
                    self.at_need.add(place)

    def add_constant_step(self, node: graph_pb2.NodeDef, ref: str) -> None:
        """Makes a constant a step, because it lies in a branch that may not be taken."""
        value = self.env[self.places[ref]]
        place = self.add_place(ref)
        self.steps.append((lambda: value, [], place, (), node_kernels.PLAIN_KERNEL, node))

    def move_inputs(self, moved: Mapping[int, int]) -> None:
        """Gives steps other places for inputs that were not known when they were added."""
        if not moved:
            return
        for index, (run, places, output, outputs, kernel, node) in enumerate(self.steps):
            if not moved.keys().isdisjoint(places):
                places = [moved.get(place, place) for place in places]
                self.steps[index] = (run, places, output, outputs, kernel, node)

    def _place(self, node: graph_pb2.NodeDef, ref: str) -> int:
        place = self.places.get(ref)
        if place is None:
            place = self.places.get(f"{ref}:0" if ":" not in ref else ref.removesuffix(":0"))
        if place is None:
            raise UnknownInput(f"node {node.name!r} ({node.op}): unknown input {ref!r}")
        return place

    def _fold_inputs(
        self, node: graph_pb2.NodeDef, kernel: _kernels.Kernel, inputs: Sequence[int]
    ) -> None:
        """Makes inputs sizes that are computed of constants, where the node needs them as such.

        TensorFlow writes such arithmetic where a shape is made of numbers; elsewhere it stays
        among the computations, where JAX has it.
        """
        host = _definition.HOST_KERNELS.get(node.op) if self.sizes else None
        if host is None and not kernel.static:
            return
        if host is not None and not self.sizes.isdisjoint(inputs):
            needed: Iterable[int] = inputs
            if not host.makes_shapes:
                needed = [place for place in inputs if place not in self.at_need]
        else:
            needed = []
        needed = [*needed, *(inputs[i] for i in kernel.static if i < len(inputs))]
        for place in needed:
            self._fold(place)

    def _fold(self, place: int) -> None:
        index = self.foldable.get(place, _NO_STEP)
        if index == _NO_STEP or place in self.sizes:
            return
        run, places, output, outputs, kernel, node = self.steps[index]
        for earlier in places:
            self._fold(earlier)
        run = self._with_sizes(node, kernel, run, outputs or [output])
        self.steps[index] = (run, places, output, outputs, kernel, node)

    def _with_sizes(
        self,
        node: graph_pb2.NodeDef,
        kernel: _kernels.Kernel,
        run: Callable[..., Any],
        places: Iterable[int],
    ) -> Callable[..., Any]:
        """Returns what a step runs that gives sizes, or takes some; marks what it gives."""
        attr = node.attr
        is_plain = (
            _definition.PRIMITIVE_ATTR not in attr
            and kernel.run is not node_kernels.CALL_KERNEL.run
        )
        host = _definition.HOST_KERNELS.get(node.op) if is_plain else None
        if kernel.gives_sizes or host is not None:
            self.sizes.update(places)
        if kernel.gives_sizes or kernel.is_stateful or dimension_nodes.DIMENSIONS_ATTR in attr:
            return run
        on_host = self._kernels.with_attrs(node, host) if host is not None else None
        return sizes.folding(on_host, run, kernel.static)

    def functionalize(
        self, nodes: Iterable[graph_pb2.NodeDef], results: Sequence[int]
    ) -> list[int]:
        """Makes steps of the loops and branches among the nodes; returns the results' places.

        Raises:
            GraphError: TensorFlow could not run the nodes.
            UnstructuredError: they cannot be compiled; says why.
        """
        self._check()
        if self.is_host:
            raise frames.UnstructuredError("there are strings, queues or files among the nodes")
        self.steps, places = functionalizing.functionalize(
            nodes, self.steps, self._constant_places, self.env, results
        )
        return places

    def finish(self, arguments: Sequence[int], results: Sequence[int], refusal: str = "") -> Plan:
        """Returns the plan.

        Args:
            arguments: the places of what it is given.
            results: the places of what it returns.
            refusal: why it can only run op by op, where it can.

        Raises:
            UnsupportedOpError: some ops have no kernel; all of them are listed.
            FeedError: some placeholders are not fed; all of them are listed.
        """
        self._check()
        results = [self._array_place(place) for place in results]
        return Plan(
            self.env,
            arguments,
            self.steps,
            results,
            references=frozenset(self.references.intersection(results)),
            is_host=self.is_host,
            may_need_values=self.may_need_values or self._kernels.may_need_values,
            refusal=refusal,
        )

    def _check(self) -> None:
        if self._kernels.unsupported:
            raise errors.UnsupportedOpError(
                errors.list_offenders(
                    "these ops have no kernel, and are not functions of the graph's library:",
                    self._kernels.unsupported,
                    "Feed their outputs, or fetch what does not depend on them.",
                )
            )
        if self.unfed:
            raise errors.FeedError(
                errors.list_offenders("these placeholders must be fed a value:", self.unfed)
            )

    def _array_place(self, place: int) -> int:
        """Returns the place of a result; symbolic sizes become what computations take."""
        if place not in self.sizes:
            return place
        new = len(self.env)
        self.env.append(None)
        self.steps.append(
            (sizes.as_array, [place], new, (), node_kernels.PLAIN_KERNEL, _RESULT_NODE)
        )
        return new


_RESULT_NODE: Final = graph_pb2.NodeDef(
    name="result", op="Identity", attr={"T": graph_pb2.AttrValue(type=graph_pb2.DT_INT32)}
)


def _read_reference(state: State, handle: Any) -> Any:
    return state.read(handle.name)
