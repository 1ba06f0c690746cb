"""From nodes to a function of arrays.

A graph or a library function is planned once: nodes in order, each with its kernel, its attrs
decoded and its inputs as places in a list. Running the plan is one loop over it, which JAX traces.
Nothing here knows an op by name; what is special about an op stands in its kernel.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import dtypes, errors, naming, op_defs, shardings, values
from jaxmeta._proto import graph_pb2
from jaxmeta.execution import ordering
from jaxmeta.execution.plans import Plan as Plan
from jaxmeta.execution.plans import State as State
from jaxmeta.execution.plans import Step
from jaxmeta.ops import _definition
from jaxmeta.tracing import dimension_nodes, jaxprs, sizes
from jaxmeta.tracing.dimensions import Size

_EMPTY: Final = inspect.Parameter.empty
_MOST_SIZES: Final = 32  # as many as an array has axes
_NO_STEP: Final = -1
# What computes with sizes for other ends too, and is folded only where a shape is made of it.
_FOLDED_AT_NEED: Final = frozenset(
    {
        "Equal",
        "Fill",
        "Greater",
        "GreaterEqual",
        "Less",
        "LessEqual",
        "LogicalAnd",
        "Range",
        "Select",
        "SelectV2",
    }
)
_MAKE_SHAPES: Final = frozenset({"DynamicStitch"})
_SWITCHES: Final = frozenset({"Switch", "RefSwitch", "Enter", "RefEnter"})
NEXT_ITERATION: Final = ordering.NEXT_ITERATION
_FUNCTION_ATTR: Final = "f"  # which function a PartitionedCall and its kin call


class Function:
    """A library function that kernels can call, jit, or look into.

    Attributes:
        name: its name in the library.
    """

    def __init__(
        self,
        library: Library,
        function_def: graph_pb2.FunctionDef,
        taken: Mapping[str, Size] | None = None,
        planned: Callable[[], Plan] | None = None,
    ) -> None:
        self.name = function_def.signature.name
        self._library = library
        self._def = function_def
        self._sizes = [np.asarray(size) for size in (taken or {}).values()]
        self._planned = planned or self._make_plan
        self._plan: Plan | None = None
        self._derived: dict[Any, Callable[..., Any]] = {}

    @property
    def num_arguments(self) -> int:
        """How many arrays it takes."""
        return len(self._def.signature.input_arg) - len(self._sizes)

    @property
    def num_results(self) -> int:
        """How many arrays it returns."""
        return len(self._def.signature.output_arg)

    def __call__(self, *arguments: Any, state: State | None = None) -> list[Any]:
        """Runs the function on arrays and returns a list of arrays."""
        plan = self._planned()
        return plan.run((*self._sizes, *arguments) if self._sizes else arguments, state)

    def _make_plan(self) -> Plan:
        if self._plan is None:
            self._plan = plan_function(self._def, self._library)
        return self._plan

    def at(self, known: Mapping[str, Size]) -> Function:
        """Returns the function for given sizes of the dimensions that it takes, by their names."""
        taken = {name: known[name] for name in sizes.dimensions_taken(self._def) if name in known}
        if not taken:
            return self
        made: Any = self.derived(
            ("sizes", *taken.items()),
            lambda: Function(self._library, self._def, taken, self._planned),
        )
        return made  # type: ignore[no-any-return]

    def call_with_state(self, state: State | None, *arguments: Any) -> list[Any]:
        """Runs the function as a node does that calls it: it may read and write variables."""
        return self(*arguments, state=state)

    def jitted(self, name: str, **options: Any) -> Callable[..., Any]:
        """Returns the function under `jax.jit` and a name; the same object for the same options."""

        def make() -> Callable[..., Any]:
            def fn(*arguments: Any) -> list[Any]:
                return self(*arguments)

            fn.__name__ = fn.__qualname__ = name
            if "out_shardings" in options:  # shaped like the results, which are a list
                return jax.jit(fn, **{**options, "out_shardings": [*options["out_shardings"]]})
            return jax.jit(fn, **options)

        return self.derived(("jit", name, *sorted(options.items())), make)

    def derived(self, key: Any, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        """Returns what ``make`` made of this function, made once for each key.

        JAX's caches go by the identity of functions.
        """
        if key not in self._derived:
            self._derived[key] = make()
        return self._derived[key]


class Library:
    """The functions of a graph, by name.

    Attributes:
        placement: on which devices the shardings in them are.
    """

    def __init__(
        self,
        functions: Mapping[str, graph_pb2.FunctionDef],
        placement: shardings.Placement | None = None,
    ) -> None:
        self._defs = functions
        self.placement = placement if placement is not None else shardings.Placement()
        self._functions: dict[str, Function] = {}
        self._with_values: dict[str, bool] = {}

    def __getitem__(self, name: str) -> Function:
        """Returns a function.

        Raises:
            GraphError: there is none of that name.
        """
        function = self._functions.get(name)
        if function is None:
            definition = self._defs.get(name)
            if definition is None:
                raise errors.GraphError(f"the graph's library has no function named {name!r}")
            function = self._functions[name] = Function(self, definition)
        return function

    def get(self, name: str) -> Function | None:
        """Returns a function, or None where there is none of that name."""
        return self[name] if name in self._defs else None

    def at(self, known: Mapping[str, Size]) -> Mapping[str, Function]:
        """Returns the functions for given sizes of the dimensions that they take."""
        return _SizedLibrary(self, known)

    def calls_need_values(self, node: graph_pb2.NodeDef) -> bool:
        """Returns whether a node calls a function with an op that cannot be traced."""
        return any(map(self._needs_values, _functions_called(node)))

    def _needs_values(self, name: str) -> bool:
        known = self._with_values.get(name)
        if known is not None:
            return known
        function = self._defs.get(name)
        if function is None:
            return False
        self._with_values[name] = False  # for one that calls itself
        found = self._with_values[name] = any(
            (node.op in _definition.KERNELS and _definition.KERNELS[node.op].needs_values)
            or self.calls_need_values(node)
            for node in function.node_def
        )
        return found

    def definition(self, name: str) -> graph_pb2.FunctionDef | None:
        """Returns the FunctionDef of a name, or None."""
        return self._defs.get(name)


def _functions_called(node: graph_pb2.NodeDef) -> list[str]:
    """Returns the names of the functions that a node's attrs and its op say."""
    names = [node.op]
    for attr in node.attr.values():
        if attr.HasField("func"):
            names.append(attr.func.name)
        names.extend(func.name for func in attr.list.func)
    return names


class _SizedLibrary(dict[str, Function]):
    def __init__(self, library: Library, known: Mapping[str, Size]) -> None:
        super().__init__()
        self._library = library
        self._sizes = known

    def __missing__(self, name: str) -> Function:
        return self._library[name].at(self._sizes)


# --- planning --------------------------------------------------------------------------------


class _UnknownInput(errors.GraphError):
    """A node's input is not among the nodes before it."""


class _Planner:
    """Makes the steps of one plan; holds the places of the tensors met so far."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self.places: dict[str, int] = {}
        self.env: list[Any] = []
        self.steps: list[Step] = []
        self.unsupported: dict[str, None] = {}
        self.unfed: dict[str, None] = {}
        self.sizes: set[int] = set()  # the places that hold sizes, known while tracing
        self.foldable: dict[int, int] = {}  # the steps of what constants give, by place
        self.at_need: set[int] = set()  # those of them that are folded only for shapes
        self.references: set[int] = set()
        self.is_host = False
        self.needs_values = False

    def add_place(self, name: str, value: Any = None) -> int:
        """Returns a new place for a tensor, filled with a value that is known already."""
        place = len(self.env)
        self.env.append(value)
        self.places[name] = place
        return place

    def add_node(
        self, node: graph_pb2.NodeDef, output_refs: Callable[[graph_pb2.NodeDef], list[str]]
    ) -> None:
        """Adds the step of a node.

        Raises:
            _UnknownInput: an input was not added before.
        """
        op = node.op
        if op == "Const":
            self._add_constant(node, output_refs(node)[0])
            return
        kernel = self._kernel(node, op)
        if kernel.must_be_fed:
            self.unfed[node.name] = None
        places = self.places
        inputs = []
        for ref in node.input:
            place = places.get(ref)
            if place is None:
                if ref[0] == "^":
                    continue
                place = self._place(node, ref)
            inputs.append(place)
        refs = output_refs(node)
        run = self._bind_kernel(node, kernel, len(refs))
        env = self.env
        self._fold_inputs(node, kernel, inputs)
        if kernel.gives_sizes or not self.sizes.isdisjoint(inputs):
            if op in _FOLDED_AT_NEED and self.sizes.union(self.foldable).issuperset(inputs):
                self.foldable[len(env)] = len(self.steps)
                self.at_need.add(len(env))
                run = sizes.folding(None, run, kernel.static)
            else:
                run = self._with_sizes(node, kernel, run, range(len(env), len(env) + len(refs)))
        elif node.op in _definition.HOST_KERNELS and self.foldable.keys() >= set(inputs):
            self.foldable[len(env)] = len(self.steps)
            if op in _FOLDED_AT_NEED or not self.at_need.isdisjoint(inputs):
                self.at_need.add(len(env))
        if kernel.is_host:
            self.is_host = True
        if kernel.needs_values or self._library.calls_need_values(node):
            self.needs_values = True
        if kernel.has_references or self.references:
            kernel, run = self._dereference(node, kernel, run, inputs, len(env))
        if len(refs) == 1:
            output = places[refs[0]] = len(env)
            env.append(None)
            self.steps.append((run, inputs, output, (), kernel, node))
        else:
            outputs = [self.add_place(ref) for ref in refs]
            self.steps.append((run, inputs, -1, outputs, kernel, node))

    def _dereference(
        self,
        node: graph_pb2.NodeDef,
        kernel: _definition.Kernel,
        run: Callable[..., Any],
        inputs: Sequence[int],
        first_output: int,
    ) -> tuple[_definition.Kernel, Callable[..., Any]]:
        """Returns a kernel that reads the variables that its inputs refer to, as TensorFlow does.

        An op that takes references gets them as they are.
        """
        taken: list[int] = []
        if kernel.has_references:
            op_def = op_defs.get_op_def(node.op)
            taken = op_defs.input_dtypes(op_def, node)
            for index, number in enumerate(op_defs.output_dtypes(op_def, node)):
                if dtypes.is_reference(number):
                    self.references.add(first_output + index)
        read = [
            index
            for index, place in enumerate(inputs)
            if place in self.references and not (taken and dtypes.is_reference(taken[index]))
        ]
        if not read:
            return kernel, run
        is_stateful = kernel.is_stateful

        def run_on_values(state: State, *values: Any) -> Any:
            known = list(values)
            for index in read:
                known[index] = state.read(known[index].name)
            return run(state, *known) if is_stateful else run(*known)

        return dataclasses.replace(kernel, is_stateful=True), run_on_values

    def _add_constant(self, node: graph_pb2.NodeDef, name: str) -> None:
        attr = node.attr
        value = values.tensor_from_proto(attr["value"].tensor)
        if _definition.CAPTURED_ATTR in attr:
            self.add_place(name, jnp.asarray(value))
        elif _definition.WEAK_TYPE_ATTR in attr:
            place = self.add_place(name)
            make = functools.partial(jaxprs.cast, value, value.dtype, is_weak=True)
            self.steps.append((make, (), place, (), _PLAIN_KERNEL, node))
        else:
            place = self.add_place(name, value)
            if value.dtype == object:
                self.is_host = True
            elif value.dtype == np.int32 and value.size <= _MOST_SIZES:
                self.foldable[place] = _NO_STEP

    def add_constant_step(self, node: graph_pb2.NodeDef, ref: str) -> None:
        """Makes a constant a step, because it lies in a branch that may not be taken."""
        value = self.env[self.places[ref]]
        place = self.add_place(ref)
        self.steps.append((lambda: value, [], place, (), _PLAIN_KERNEL, node))

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
            raise _UnknownInput(f"node {node.name!r} ({node.op}): unknown input {ref!r}")
        return place

    def _kernel(self, node: graph_pb2.NodeDef, op: str) -> _definition.Kernel:
        attr = node.attr
        kernel = None
        if _definition.PRIMITIVE_ATTR in attr:
            primitive = attr[_definition.PRIMITIVE_ATTR].s.decode()
            kernel = _definition.PRIMITIVE_KERNELS.get(primitive)
        if kernel is None:
            kernel = _definition.KERNELS.get(op)
        if kernel is None:
            if self._library.definition(op) is not None:
                return _CALL_KERNEL
            self.unsupported[f"{op}  (node {node.name!r})"] = None
            return _PLAIN_KERNEL
        if dimension_nodes.DIMENSIONS_ATTR in attr and kernel.static:
            # Its inputs are not where they are without sizes before them.
            return dataclasses.replace(kernel, static=frozenset())
        return _with_static_lists(node, kernel) if kernel.static else kernel

    def _bind_kernel(
        self, node: graph_pb2.NodeDef, kernel: _definition.Kernel, num_outputs: int
    ) -> Callable[..., Any]:
        """Returns what a step runs: the kernel with the node's attrs."""
        if kernel is _CALL_KERNEL:
            return self._library[node.op].call_with_state
        if kernel is _PLAIN_KERNEL:
            return _refuse
        run, attr = kernel.run, node.attr
        if dimension_nodes.DIMENSIONS_ATTR in attr:
            names = values.attr_from_proto(attr[dimension_nodes.DIMENSIONS_ATTR])
            has_symbolic = _definition.SYMBOLIC_ATTR in attr
            symbolic = attr[_definition.SYMBOLIC_ATTR].list.s if has_symbolic else ()
            return sizes.sized(
                run,
                self._keywords(node, kernel),
                [name.decode() for name in names],
                frozenset(name.decode() for name in symbolic),
                sizes.num_inputs_before_operands(node.op),
                num_outputs,
            )
        return self.with_attrs(node, kernel)

    def with_attrs(self, node: graph_pb2.NodeDef, kernel: _definition.Kernel) -> Callable[..., Any]:
        """Returns a kernel as a function of arrays alone, with the attrs of a node."""
        run = kernel.run
        if not (kernel.attrs or kernel.injected):
            return run
        keywords = self._keywords(node, kernel)
        return lambda *inputs: run(*inputs, **keywords)

    def _fold_inputs(
        self, node: graph_pb2.NodeDef, kernel: _definition.Kernel, inputs: Sequence[int]
    ) -> None:
        """Makes inputs sizes that are computed of constants, where the node needs them as such.

        TensorFlow writes such arithmetic where a shape is made of numbers; elsewhere it stays
        among the computations, where JAX has it.
        """
        if node.op in _definition.HOST_KERNELS and not self.sizes.isdisjoint(inputs):
            needed: Iterable[int] = inputs
            if node.op not in _MAKE_SHAPES:
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
        run = self._with_sizes(node, kernel, run, [place])
        self.steps[index] = (run, places, output, outputs, kernel, node)

    def _with_sizes(
        self,
        node: graph_pb2.NodeDef,
        kernel: _definition.Kernel,
        run: Callable[..., Any],
        places: Iterable[int],
    ) -> Callable[..., Any]:
        """Returns what a step runs that gives sizes, or takes some; marks what it gives."""
        attr = node.attr
        is_plain = _definition.PRIMITIVE_ATTR not in attr and kernel is not _CALL_KERNEL
        host = _definition.HOST_KERNELS.get(node.op) if is_plain else None
        if kernel.gives_sizes or host is not None:
            self.sizes.update(places)
        if kernel.gives_sizes or kernel.is_stateful or dimension_nodes.DIMENSIONS_ATTR in attr:
            return run
        on_host = self.with_attrs(node, host) if host is not None else None
        return sizes.folding(on_host, run, kernel.static)

    def _keywords(self, node: graph_pb2.NodeDef, kernel: _definition.Kernel) -> dict[str, Any]:
        keywords: dict[str, Any] = {}
        attr = node.attr
        for argument, name, default in kernel.attrs:
            if name in attr:
                keywords[argument] = self._plain(values.attr_from_proto(attr[name]))
            elif default is not _EMPTY:
                keywords[argument] = default
            else:
                keywords[argument] = self._attr_default(node, name)
        for name in kernel.injected:
            keywords[name] = self._injected(node, name)
        return keywords

    def _injected(self, node: graph_pb2.NodeDef, name: str) -> Any:
        if name == _definition.LIBRARY:
            return self._library
        return node.name if name == _definition.NODE_NAME else self._called_function(node)

    def _attr_default(self, node: graph_pb2.NodeDef, name: str) -> Any:
        default = None
        if op_defs.has_op(node.op) and not name.startswith("_"):
            default = op_defs.attr_default(op_defs.get_op_def(node.op), name)
        if default is None:
            raise errors.AttrError(
                f"node {node.name!r} ({node.op}): the attr {name!r} is missing and has no default"
            )
        return self._plain(values.attr_from_proto(default))

    def _plain(self, value: Any) -> Any:
        """Turns names of functions into functions."""
        if isinstance(value, values.FunctionRef):
            return self._library[value]
        if isinstance(value, tuple) and value and isinstance(value[0], values.FunctionRef):
            return tuple(self._library[name] for name in value)
        return value

    def _called_function(self, node: graph_pb2.NodeDef) -> Function:
        if _FUNCTION_ATTR in node.attr:
            return self._library[node.attr[_FUNCTION_ATTR].func.name]
        return self._library[node.op]

    def finish(self, arguments: Sequence[int], results: Sequence[int]) -> Plan:
        """Returns the plan.

        Raises:
            UnsupportedOpError: some ops have no kernel; all of them are listed.
            FeedError: some placeholders are not fed; all of them are listed.
        """
        if self.unsupported:
            raise errors.UnsupportedOpError(
                errors.list_offenders(
                    "these ops have no kernel, and are not functions of the graph's library:",
                    self.unsupported,
                    "Feed their outputs, or fetch what does not depend on them.",
                )
            )
        if self.unfed:
            raise errors.FeedError(
                errors.list_offenders("these placeholders must be fed a value:", self.unfed)
            )
        results = [self._array_place(place) for place in results]
        return Plan(
            self.env,
            arguments,
            self.steps,
            results,
            references=frozenset(self.references.intersection(results)),
            is_host=self.is_host,
            needs_values=self.needs_values,
        )

    def _array_place(self, place: int) -> int:
        """Returns the place of a result; symbolic sizes become what computations take."""
        if place not in self.sizes:
            return place
        new = len(self.env)
        self.env.append(None)
        self.steps.append((sizes.as_array, [place], new, (), _PLAIN_KERNEL, _RESULT_NODE))
        return new


def _with_static_lists(node: graph_pb2.NodeDef, kernel: _definition.Kernel) -> _definition.Kernel:
    """Returns a kernel whose static inputs are those of the node, where an argument is a list."""
    op_def = op_defs.get_op_def(node.op) if op_defs.has_op(node.op) else None
    if op_def is None or not any(arg.number_attr for arg in op_def.input_arg):
        return kernel
    static: list[int] = []
    first = 0
    for index, (_, count) in enumerate(op_defs.input_names(op_def, node)):
        if index in kernel.static:
            static.extend(range(first, first + count))
        first += count
    return dataclasses.replace(kernel, static=frozenset(static))


# What a step needs to know of its kernel where the op table has none.
_PLAIN_KERNEL: Final = _definition.Kernel(lambda *inputs: inputs)
_RESULT_NODE: Final = graph_pb2.NodeDef(
    name="result", op="Identity", attr={"T": graph_pb2.AttrValue(type=graph_pb2.DT_INT32)}
)
_CALL_KERNEL: Final = _definition.Kernel(lambda *inputs: inputs, is_stateful=True)


def bind_attrs(
    node: graph_pb2.NodeDef, kernel: _definition.Kernel, library: Library
) -> Callable[..., Any]:
    """Returns a kernel as a function of arrays alone, with the attrs of a node."""
    return _Planner(library).with_attrs(node, kernel)


def _refuse(*_: Any) -> Any:
    raise AssertionError("a node without a kernel was run")


def _function_refs(library: Library) -> Callable[[graph_pb2.NodeDef], list[str]]:
    """Returns what names a node's outputs in a function body: ``node:out:0``."""
    single: dict[str, str] = {}

    def refs(node: graph_pb2.NodeDef) -> list[str]:
        op = node.op
        suffix = single.get(op)
        if suffix is not None:
            return [node.name + suffix]
        function = library.definition(op)
        op_def = function.signature if function is not None else op_defs.get_op_def(node.op)
        outputs = op_def.output_arg
        if len(outputs) == 1 and not (outputs[0].number_attr or outputs[0].type_list_attr):
            single[op] = f":{outputs[0].name}:0"
            return [node.name + single[op]]
        return [
            f"{node.name}:{name}:{index}"
            for name, count in op_defs.output_names(op_def, node)
            for index in range(count)
        ]

    return refs


def plan_function(function: graph_pb2.FunctionDef, library: Library) -> Plan:
    """Returns the plan of a library function; its nodes run in the order in which they stand.

    Where a node stands before one of its inputs, they are sorted first.

    Raises:
        GraphError: an input or a result is unknown, or the nodes form a cycle.
        UnsupportedOpError: some of the ops have no kernel.
    """
    try:
        return _plan_in_order(function, function.node_def, library)
    except _UnknownInput:
        by_name = {node.name: node for node in function.node_def}
        arguments = {argument.name for argument in function.signature.input_arg}
        return _plan_in_order(
            function, ordering.sort_nodes(by_name, by_name, given=arguments), library
        )


def _plan_in_order(
    function: graph_pb2.FunctionDef, nodes: Iterable[graph_pb2.NodeDef], library: Library
) -> Plan:
    planner = _Planner(library)
    arguments = [planner.add_place(argument.name) for argument in function.signature.input_arg]
    planner.sizes.update(arguments[: len(sizes.dimensions_taken(function))])
    refs = _function_refs(library)
    for node in nodes:
        planner.add_node(node, refs)
    try:
        results = [
            planner.places[function.ret[argument.name]]
            for argument in function.signature.output_arg
        ]
    except KeyError as error:
        raise errors.GraphError(
            f"function {function.signature.name!r}: unknown result {error}"
        ) from None
    return planner.finish(arguments, results)


def plan_graph(
    nodes: Mapping[str, graph_pb2.NodeDef],
    library: Library,
    feeds: Sequence[str],
    fetches: Sequence[str],
    targets: Sequence[str] = (),
) -> Plan:
    """Returns the plan that computes tensors of a graph from others.

    Args:
        nodes: of the graph, by name.
        library: its functions.
        feeds: names of the tensors that are given, in the order of the plan's arguments.
        fetches: names of the tensors that are wanted, in the order of its results.
        targets: names of nodes that must run too.

    Raises:
        GraphError: a name is unknown, or the nodes form a cycle.
        UnsupportedOpError: some of the ops have no kernel.
    """
    planner = _Planner(library)
    fed = {_canonical(name) for name in feeds}
    arguments = [planner.add_place(_canonical(name)) for name in feeds]
    wanted = [naming.parse_tensor_name(name).node for name in fetches]
    fully_fed = frozenset(
        name.split(":", 1)[0] for name in fed if _is_fully_fed(nodes, library, name, fed)
    )
    refs = _graph_refs(library)
    ordered = ordering.sort_nodes(nodes, [*wanted, *targets], fully_fed)
    is_dataflow = any(node.op in _SWITCHES for node in ordered)
    backs = {
        f"{node.name}:0": planner.add_place(f"{node.name}:0")
        for node in ordered
        if node.op in NEXT_ITERATION
    }
    for node in ordered:
        if node.name in fully_fed:
            continue
        kept = {ref: planner.places[ref] for ref in refs(node) if ref in fed}
        planner.add_node(node, refs)
        planner.places.update(kept)
        if is_dataflow and node.op == "Const" and node.input:
            planner.add_constant_step(node, f"{node.name}:0")
    planner.move_inputs({old: planner.places[ref] for ref, old in backs.items()})
    results = [planner.places[_canonical(name)] for name in fetches]
    return planner.finish(arguments, results)


def _canonical(name: str) -> str:
    return name if ":" in name else f"{name}:0"


def _is_fully_fed(
    nodes: Mapping[str, graph_pb2.NodeDef], library: Library, name: str, fed: set[str]
) -> bool:
    node = nodes.get(name.split(":", 1)[0])
    if node is None:
        raise errors.GraphError(f"the graph has no tensor named {name!r}")
    return all(ref in fed for ref in _graph_refs(library)(node))


def _graph_refs(library: Library) -> Callable[[graph_pb2.NodeDef], list[str]]:
    """Returns what names a node's outputs in a graph: ``node:0``, ``node:1``."""

    def refs(node: graph_pb2.NodeDef) -> list[str]:
        function = library.definition(node.op)
        op_def = function.signature if function is not None else op_defs.get_op_def(node.op)
        counts = op_defs.output_names(op_def, node)
        return [f"{node.name}:{index}" for index in range(sum(count for _, count in counts))]

    return refs
