"""From nodes to a function of arrays.

A graph or a library function is planned once: nodes in order, each with its kernel, its attrs
decoded and its inputs as places in a list. Running the plan is one loop over it, which JAX traces.
Nothing here knows an op by name; what is special about an op stands in its kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import jax
import numpy as np

from jaxmeta import dtypes, errors, naming, op_defs, shardings
from jaxmeta._proto import graph_pb2
from jaxmeta.execution import frames, host_steps, ordering
from jaxmeta.execution.node_kernels import bind_attrs as bind_attrs
from jaxmeta.execution.planning import Planner, UnknownInput
from jaxmeta.execution.plans import Plan as Plan
from jaxmeta.execution.plans import State as State
from jaxmeta.ops import _definition, _kernels
from jaxmeta.tracing import sizes
from jaxmeta.tracing.dimensions import Size

NEXT_ITERATION: Final = ordering.NEXT_ITERATION


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
        self._on_values: tuple[Plan, Plan] | None = None
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
        if self.is_on_host or any(map(host_steps.is_string, arguments)):
            plan = self._plan_on_values(plan)
        return plan.run((*self._sizes, *arguments) if self._sizes else arguments, state)

    @property
    def is_on_host(self) -> bool:
        """Whether it works on strings, tables or files, so that it runs on values."""
        return self._library.is_on_host(self.name)

    def _plan_on_values(self, plan: Plan) -> Plan:
        if self._on_values is None or self._on_values[0] is not plan:
            self._on_values = (
                plan,
                plan.with_steps([host_steps.on_values(step, self._library) for step in plan.steps]),
            )
        return self._on_values[1]

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

    Args:
        functions: by name.
        placement: on which devices the shardings in them are.
        gradients: which of them are gradients of others.

    Attributes:
        placement: on which devices the shardings in them are.
    """

    def __init__(
        self,
        functions: Mapping[str, graph_pb2.FunctionDef],
        placement: shardings.Placement | None = None,
        gradients: Sequence[graph_pb2.GradientDef] = (),
    ) -> None:
        self._defs = functions
        self._gradients = gradients  # functions may be added later
        self.placement = placement if placement is not None else shardings.Placement()
        self._functions: dict[str, Function] = {}
        self._with_values: dict[str, bool] = {}
        self._on_host: dict[str, bool] = {}

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

    def gradient_of(self, name: str) -> Function | None:
        """Returns the function that the library has as the gradient of another, or None."""
        found = (g.gradient_func for g in self._gradients if g.function_name == name)
        gradient = next(found, None)
        return self[gradient] if gradient is not None else None

    @property
    def has_host_functions(self) -> bool:
        """Whether any function works on strings, tables or files."""
        return any(map(self.is_on_host, self._defs))

    def calls_on_host(self, node: graph_pb2.NodeDef) -> bool:
        """Returns whether a node calls a function that works on strings, tables or files."""
        if not self._defs:
            return False
        kernel = _definition.KERNELS.get(node.op)
        if kernel is None:
            return self.is_on_host(node.op)
        return kernel.takes_functions and any(map(self.is_on_host, _functions_in_attrs(node)))

    def is_on_host(self, name: str) -> bool:
        """Returns whether a function works on strings, tables or files, or calls one that does."""
        known = self._on_host.get(name)
        if known is not None:
            return known
        function = self._defs.get(name)
        if function is None:
            return False
        self._on_host[name] = False  # for one that calls itself
        signature = function.signature
        found = any(arg.type == dtypes.STRING for arg in signature.input_arg)
        found = found or any(
            _is_on_host(node) or self.calls_on_host(node) for node in function.node_def
        )
        self._on_host[name] = found
        return found

    def may_need_values(self, name: str) -> bool:
        """Returns whether a function, or one that it calls, has an op that cannot be traced."""
        known = self._with_values.get(name)
        if known is not None:
            return known
        function = self._defs.get(name)
        if function is None:
            return False
        self._with_values[name] = False  # for one that calls itself
        found = self._with_values[name] = any(map(self._node_needs_values, function.node_def))
        return found

    def _node_needs_values(self, node: graph_pb2.NodeDef) -> bool:
        kernel = _definition.KERNELS.get(node.op)
        if kernel is None:
            return self.may_need_values(node.op)
        if kernel.may_need_values or not kernel.takes_functions:
            return kernel.may_need_values
        return any(map(self.may_need_values, _functions_in_attrs(node)))

    def definition(self, name: str) -> graph_pb2.FunctionDef | None:
        """Returns the FunctionDef of a name, or None."""
        return self._defs.get(name)


def _is_on_host(node: graph_pb2.NodeDef) -> bool:
    kernel = _definition.KERNELS.get(node.op)
    if kernel is None:
        return False
    makes_any = kernel.makes_variable or node.op == "Const"
    return kernel.is_host or (makes_any and node.attr["dtype"].type == dtypes.STRING)


def _functions_in_attrs(node: graph_pb2.NodeDef) -> list[str]:
    """Returns the names of the functions that a node's attrs say."""
    names = []
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
    except UnknownInput:
        by_name = {node.name: node for node in function.node_def}
        arguments = {argument.name for argument in function.signature.input_arg}
        return _plan_in_order(
            function, ordering.sort_nodes(by_name, by_name, given=arguments), library
        )


def _plan_in_order(
    function: graph_pb2.FunctionDef, nodes: Iterable[graph_pb2.NodeDef], library: Library
) -> Plan:
    planner = Planner(library)
    arguments = [planner.add_place(argument.name) for argument in function.signature.input_arg]
    planner.sizes.update(arguments[: len(sizes.dimensions_taken(function))])
    planner.may_be_known(arguments)
    refs = _function_refs(library)
    backs = {
        ref: planner.add_place(ref)
        for node in function.node_def
        if node.op in NEXT_ITERATION
        for ref in refs(node)
    }
    for node in nodes:
        planner.add_node(node, refs)
    planner.move_inputs({old: planner.places[ref] for ref, old in backs.items()})
    try:
        results = [
            planner.places[function.ret[argument.name]]
            for argument in function.signature.output_arg
        ]
    except KeyError as error:
        raise errors.GraphError(
            f"function {function.signature.name!r}: unknown result {error}"
        ) from None
    if any(map(_has_flow, function.node_def)):
        try:
            results = planner.functionalize(function.node_def, results)
        except frames.UnstructuredError as error:
            raise errors.UnsupportedOpError(
                f"function {function.signature.name!r} cannot be compiled: {error}"
            ) from None
    return planner.finish(arguments, results)


def plan_graph(
    nodes: Mapping[str, graph_pb2.NodeDef],
    library: Library,
    feeds: Sequence[str],
    fetches: Sequence[str],
    targets: Sequence[str] = (),
    op_by_op: str = "",
) -> Plan:
    """Returns the plan that computes tensors of a graph from others.

    Args:
        nodes: of the graph, by name.
        library: its functions.
        feeds: names of the tensors that are given, in the order of the plan's arguments.
        fetches: names of the tensors that are wanted, in the order of its results.
        targets: names of nodes that must run too.
        op_by_op: why loops and branches of TensorFlow 1 shall run op by op; compiled where empty
            and where they can be.

    Raises:
        GraphError: a name is unknown, or the nodes form a cycle.
        UnsupportedOpError: some of the ops have no kernel.
    """
    fed = {_canonical(name) for name in feeds}
    wanted = [
        naming.parse_tensor_name(name).node for name in fetches if _canonical(name) not in fed
    ]
    fully_fed = frozenset(
        name.split(":", 1)[0] for name in fed if _is_fully_fed(nodes, library, name, fed)
    )
    ordered = [
        node
        for node in ordering.sort_nodes(nodes, [*wanted, *targets], fully_fed, fed=fed)
        if node.name not in fully_fed
    ]
    making = _GraphPlan(library, ordered, feeds, fetches)
    if not any(map(_has_flow, ordered)):
        return making.plan()
    refusal = op_by_op
    if not refusal:
        try:
            return making.compiled_plan()
        except frames.UnstructuredError as error:
            refusal = str(error)
    return making.dataflow_plan(refusal)


class _GraphPlan:
    """What a plan of a graph is made of."""

    def __init__(
        self,
        library: Library,
        ordered: Sequence[graph_pb2.NodeDef],
        feeds: Sequence[str],
        fetches: Sequence[str],
    ) -> None:
        self._library, self._ordered = library, ordered
        self._feeds, self._fetches = feeds, fetches

    def plan(self) -> Plan:
        """Returns the plan of a graph without control flow of TensorFlow 1."""
        planner, arguments, results = self._planned(is_dataflow=False)
        plan = planner.finish(arguments, results)
        if plan.is_host and plan.may_need_values:  # perhaps only for assertions
            planner, arguments, results = self._planned(is_dataflow=False, is_compiled=True)
            traced = planner.finish(arguments, results)
            return plan if traced.is_host else traced
        return plan

    def dataflow_plan(self, refusal: str) -> Plan:
        """Returns a plan that can only run op by op, and says why."""
        planner, arguments, results = self._planned(is_dataflow=True)
        return planner.finish(arguments, results, refusal=refusal)

    def compiled_plan(self) -> Plan:
        """Returns a plan with steps for whole loops and branches.

        Raises:
            GraphError: TensorFlow could not run the nodes.
            UnstructuredError: they cannot be compiled; says why.
        """
        planner, arguments, results = self._planned(is_dataflow=False, is_compiled=True)
        return planner.finish(arguments, planner.functionalize(self._ordered, results))

    def _planned(
        self, *, is_dataflow: bool, is_compiled: bool = False
    ) -> tuple[Planner, list[int], list[int]]:
        planner = Planner(self._library, is_compiled=is_compiled)
        fed = {_canonical(name) for name in self._feeds}
        arguments = [planner.add_place(_canonical(name)) for name in self._feeds]
        refs = _graph_refs(self._library)
        backs = {
            f"{node.name}:0": planner.add_place(f"{node.name}:0")
            for node in self._ordered
            if node.op in NEXT_ITERATION
        }
        for node in self._ordered:
            kept = {ref: planner.places[ref] for ref in refs(node) if ref in fed}
            planner.add_node(node, refs)
            planner.places.update(kept)
            if is_dataflow and node.op == "Const" and node.input:
                planner.add_constant_step(node, f"{node.name}:0")
        planner.move_inputs({old: planner.places[ref] for ref, old in backs.items()})
        return planner, arguments, [planner.places[_canonical(name)] for name in self._fetches]


def _has_flow(node: graph_pb2.NodeDef) -> bool:
    kernel = _definition.KERNELS.get(node.op)
    return kernel is not None and kernel.flow in _kernels.CONTROL_FLOW


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
