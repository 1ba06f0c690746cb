"""Gradients of tensors: JAX differentiates the nodes between them, and that becomes nodes again.

The nodes run as a function under `jax.vjp`, so what has a derivative rule of its own keeps it. Of
the equations that this gives, those that the graph computes already are not added again. Loops and
branches of TensorFlow 1 are differentiated as a whole; see `regions`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import dtypes, errors, naming, values
from jaxmeta._proto import graph_pb2
from jaxmeta.execution import executor, node_kernels, ordering
from jaxmeta.execution.plans import COUNTER_PREFIX
from jaxmeta.graphs import calling, elementary, regions, shape_inference
from jaxmeta.graphs.graph import GraphBuilder
from jaxmeta.graphs.handles import Tensor
from jaxmeta.graphs.staging import NodeIndex
from jaxmeta.graphs.variable_handles import Variable
from jaxmeta.ops import _definition

_VARIABLE_OPS: Final = frozenset(("VarHandleOp",))
_STOPS: Final = frozenset(("StopGradient", "PreventGradient"))  # derivatives do not pass these


def gradients(
    target: GraphBuilder,
    ys: Sequence[Tensor],
    xs: Sequence[Tensor | Variable],
    grad_ys: Sequence[Any] | None = None,
    name: str = "gradients",
    stop_gradients: Sequence[Tensor | Variable] = (),
) -> list[Tensor | None]:
    """Adds the nodes of gradients; see `jaxmeta.gradients`."""
    stops = {tensor for item in stop_gradients for tensor in _tensors(target, item)}
    with target.name_scope(name, "gradients"):
        seeds = [_seed(target, y, seed) for y, seed in _with_seeds(ys, grad_ys)]
        found: dict[Any, Tensor | None] = dict.fromkeys(xs)
        for layer in _layers(target, list(found)):
            section = _Section(target, ys, layer, stops)
            found.update(section.add_gradients(seeds, section.index()))
        return [found[x] for x in xs]


def _with_seeds(ys: Sequence[Tensor], grad_ys: Sequence[Any] | None) -> list[tuple[Tensor, Any]]:
    seeds = [None] * len(ys) if grad_ys is None else list(grad_ys)
    if len(seeds) != len(ys):
        raise errors.GraphError(f"there are {len(ys)} ys, but {len(seeds)} grad_ys")
    return list(zip(ys, seeds, strict=True))


def _seed(target: GraphBuilder, y: Tensor, seed: Any) -> Tensor:
    """Returns the gradient with respect to one of the ys, ones by default."""
    if y.dtype.kind not in "fc" and not jnp.issubdtype(y.dtype, jnp.inexact):
        raise errors.GraphTypeError(f"gradients of {y}: only real tensors have them")
    if seed is None and y.dtype.kind == "c":
        raise errors.GraphTypeError(f"gradients of {y}: a complex tensor needs grad_ys")
    if seed is not None:
        tensor = elementary.convert_to_tensor(target, seed, "grad_ys", y.dtype)
        if tensor.dtype != y.dtype:
            raise errors.GraphTypeError(f"the gradient of {y} has another dtype: {tensor}")
        if None not in (tensor.shape, y.shape) and tensor.shape != y.shape:
            raise errors.GraphError(f"the gradient of {y} has another shape: {tensor}")
        return tensor
    return tensor_of_ones(target, y)


def tensor_of_ones(target: GraphBuilder, like: Tensor) -> Tensor:
    """Returns a tensor of ones with another one's shape, as one number and that shape."""
    one = elementary.add_constant(target, 1, like.dtype, name="grad_ys/Const")
    if like.shape == ():
        return one
    if like.shape is None or None in like.shape:
        (shape,) = target.add_node("Shape", [elementary.edge_of(like)], {}, "grad_ys/Shape")
    else:
        constant = elementary.add_constant(target, like.shape, "int32", name="grad_ys/Shape")
        shape = elementary.edge_of(constant)
    (filled,) = target.add_node("Fill", [shape, elementary.edge_of(one)], {}, "grad_ys/Fill")
    sizes = shape_inference.sizes_of(target, like.name)
    tensor = elementary.tensor_of(target, filled, like.shape)
    if sizes is not None:
        target.record_sizes(tensor.name, sizes)
    return tensor


# --- what depends on what ----------------------------------------------------------------------


def _tensors(target: GraphBuilder, x: Tensor | Variable) -> list[Tensor]:
    """Returns a tensor, or the tensors that read a variable."""
    if x.graph is not target:
        raise errors.GraphError(f"{x} belongs to another graph")
    if isinstance(x, Tensor):
        return [x]
    reads = [target.nodes[name] for name in target.consumer_names(x.name)]
    return [Tensor(target, n.name, 0) for n in reads if n.op in ("ReadVariableOp", "Identity")]


def _data_inputs(node: graph_pb2.NodeDef) -> list[str]:
    return [regions.full_name(ref) for ref in node.input if ref[0] != "^"]


def _producer(tensor_name: str) -> str:
    return naming.parse_tensor_name(tensor_name).node


def _without_controls(nodes: Mapping[str, graph_pb2.NodeDef]) -> dict[str, graph_pb2.NodeDef]:
    """Returns nodes without their control inputs, which make no values."""
    plain = {}
    for name, node in nodes.items():
        if any(ref[0] == "^" for ref in node.input):
            copied = graph_pb2.NodeDef()
            copied.CopyFrom(node)
            copied.input[:] = [ref for ref in node.input if ref[0] != "^"]
            node = copied
        plain[name] = node
    return plain


def _with_plain_gathers(
    target: GraphBuilder, nodes: dict[str, graph_pb2.NodeDef]
) -> dict[str, graph_pb2.NodeDef]:
    """Returns nodes in which rows of variables are gathered from tensors that read these."""
    plain: dict[str, graph_pb2.NodeDef] = {}
    for name, node in nodes.items():
        if node.op == "ResourceGather" and node.input[0] in target.variable_names:
            read = _producer(target.variable(node.input[0]).snapshot_name)
            axis = graph_pb2.NodeDef(name=f"{name}/axis", op="Const")
            values.write_attr(axis.attr["dtype"], np.dtype(np.int32), "type")
            values.write_attr(axis.attr["value"], np.asarray(0, np.int32), "tensor")
            inputs = [read, node.input[1], axis.name]
            gather = graph_pb2.NodeDef(name=name, op="GatherV2", input=inputs)
            gather.attr["Tparams"].CopyFrom(node.attr["dtype"])
            gather.attr["Taxis"].CopyFrom(axis.attr["dtype"])
            for attr in ("Tindices", "batch_dims"):
                if attr in node.attr:
                    gather.attr[attr].CopyFrom(node.attr[attr])
            plain.update({read: target.nodes[read], axis.name: axis})
            node = gather
        plain[name] = node
    return plain


def _ancestors(
    nodes: Mapping[str, graph_pb2.NodeDef], tensors: Sequence[Tensor]
) -> list[graph_pb2.NodeDef]:
    """Returns the nodes that tensors depend on, inputs first."""
    return ordering.sort_nodes(nodes, [tensor.node_name for tensor in tensors])


def _layers(target: GraphBuilder, xs: Sequence[Any]) -> list[list[Any]]:
    """Groups the xs so that in a group none depends on another.

    Within one run a tensor cannot be both given, to differentiate by it, and computed from
    another x.
    """
    names = {x: {tensor.node_name for tensor in _tensors(target, x)} for x in xs}
    plain = _without_controls(target.nodes)
    layers: list[list[Any]] = []
    depth: dict[Any, int] = {}
    above = {
        x: {n.name for n in ordering.sort_nodes(plain, sorted(names[x]))} - names[x]
        for x in xs
        if isinstance(x, Tensor) and target.nodes[x.node_name].input
    }
    for x in xs:
        depends_on = [other for other in depth if names[other] & above.get(x, set())]
        precedes = [other for other in depth if names[x] & above.get(other, set())]
        depth[x] = max((depth[o] + 1 for o in [*depends_on, *precedes]), default=0)
        while len(layers) <= depth[x]:
            layers.append([])
        layers[depth[x]].append(x)
    return layers


class _Section:
    """The nodes between xs and ys, as a function of the xs and of what else goes in."""

    def __init__(
        self,
        target: GraphBuilder,
        ys: Sequence[Tensor],
        xs: Sequence[Any],
        stops: set[Tensor],
    ) -> None:
        self._graph = target
        self._ys = ys
        ancestors = _ancestors(target.nodes, ys)
        self._regions = regions.Regions(target, ancestors)
        nodes = self._regions.without_controls({node.name: node for node in ancestors})
        self._nodes = _with_plain_gathers(target, nodes)
        self._refuse_inner([*ys, *(x for x in xs if isinstance(x, Tensor))])
        given = {x: [t.name for t in _tensors(target, x) if t.node_name in self._nodes] for x in xs}
        stopped = {tensor.name for tensor in stops}
        self._x_names = {
            x: [n for n in names if n not in stopped and self._regions.can_cut(n)]
            for x, names in given.items()
        }
        self._reached = {
            x: self._reach([*names, *self._handles_of(x)], stopped)
            for x, names in self._x_names.items()
        }

    def _refuse_inner(self, tensors: Sequence[Tensor]) -> None:
        inner = [str(t) for t in tensors if not self._regions.can_cut(t.name)]
        if inner:
            headline = "gradients of or by these: they lie in a loop or branch, or are handles:"
            advice = "Take what comes out of the loop or branch, or what goes into it."
            raise errors.GraphError(errors.list_offenders(headline, inner, advice))

    def index(self) -> NodeIndex:
        """Returns the nodes whose values are there in any case, by what they compute."""
        names = [name for name in self._nodes if name in self._graph.nodes]
        return NodeIndex(self._graph, [n for n in names if n not in self._regions.names])

    def _handles_of(self, x: Tensor | Variable) -> list[str]:
        """Returns the handle of a variable, which loops and functions may read."""
        is_handle = isinstance(x, Variable) and x.is_resource and x.op_name in self._nodes
        return [x.name] if is_handle else []

    def _reach(self, names: Sequence[str], stopped: set[str]) -> set[str]:
        """Returns the real tensors that depend on some, by way of real tensors alone.

        Variables of a loop may depend on what stands behind them.
        """
        reached = set(names)
        size = -1
        while size < len(reached):
            size = len(reached)
            for node in self._nodes.values():
                if node.op not in _STOPS and not reached.isdisjoint(_data_inputs(node)):
                    reached.update(set(self._real_outputs(node, reached)) - stopped)
            if not self._regions.names:
                break
        return reached

    def _real_outputs(self, node: graph_pb2.NodeDef, reached: set[str]) -> list[str]:
        numbers = self._graph.output_numbers(node.name)
        passes = regions.passes_handles(node) and _data_inputs(node)[0] in reached
        is_list = node.op not in _VARIABLE_OPS
        return [
            f"{node.name}:{i}"
            for i, n in enumerate(numbers)
            if _is_real(n) or (n == dtypes.VARIANT and is_list) or (n == dtypes.RESOURCE and passes)
        ]

    def add_gradients(self, seeds: Sequence[Tensor], known: NodeIndex) -> dict[Any, Tensor | None]:
        """Adds the nodes of the gradients and returns these; None where nothing connects."""
        y_names = [y.name for y in self._ys]
        connected = [x for x, reached in self._reached.items() if not reached.isdisjoint(y_names)]
        result: dict[Any, Tensor | None] = dict.fromkeys(self._x_names)
        if not connected:
            return result
        reached = set().union(*(self._reached[x] for x in connected))
        pairs = [(y, s) for y, s in zip(self._ys, seeds, strict=True) if y.name in reached]
        pull_back = self._pull_back(connected, reached, [y.name for y, _ in pairs])
        grads = calling.call(
            self._graph,
            lambda *parts: pull_back(*parts),
            [
                [self._primal(x) for x in connected],
                [self._graph.get_tensor_by_name(name) for name in pull_back.others],
                [seed for _, seed in pairs],
            ],
            {},
            known=known,
        )
        result.update(zip(connected, grads, strict=True))
        return result

    def _primal(self, x: Tensor | Variable) -> Tensor:
        """Returns the tensor that has the value of an x."""
        names = self._x_names[x]
        if not names:
            assert isinstance(x, Variable)
            return self._graph.get_tensor_by_name(x.snapshot_name)
        return self._graph.get_tensor_by_name(names[0])

    def _pull_back(self, xs: Sequence[Any], reached: set[str], y_names: list[str]) -> _PullBack:
        x_names = [name for x in xs for name in self._x_names[x]]
        boundary, inside = self._boundary(reached, set(x_names), y_names)
        others = self._by_use(boundary)
        plan = executor.plan_graph(
            self._nodes,
            executor.Library(self._graph.functions, gradients=self._graph.gradients),
            [*x_names, *others],
            y_names,
        )
        counts = [len(self._x_names[x]) for x in xs]
        places = {x.op_name: place for place, x in enumerate(xs) if isinstance(x, Variable)}
        variables: dict[str, int] = {}
        for key, name in self._variables_in(inside).items():
            if name in places:
                variables[key] = places[name]
            else:
                variables[key] = len(xs) + len(others)
                others.append(self._graph.variable(name).snapshot_name)
        takes_state = bool(self._regions.names & inside) or any(map(self._takes_state, inside))
        return _PullBack(plan, counts, others, variables if takes_state else None)

    def _takes_state(self, name: str) -> bool:
        node = self._nodes[name]
        kernel = _definition.KERNELS.get(node.op)
        names = [f"{name}:0", *_data_inputs(node)]
        has_handles = not self._regions.handles.isdisjoint(names)
        return has_handles or (kernel is not None and kernel.takes_functions)

    def _variables_in(self, names: set[str]) -> dict[str, str]:
        """Returns the nodes of variables among some, by what the state knows them as.

        Raises:
            GraphError: one is in no collection, so that its shape is not known.
        """
        made = [self._nodes[name] for name in names if self._nodes[name].op in _VARIABLE_OPS]
        for node in sorted(made, key=lambda node: node.name):
            self._graph.variable(node.name)
        return {_variable_key(node): node.name for node in made}

    def _by_use(self, names: Sequence[str]) -> list[str]:
        """Returns tensors, first those of unknown sizes on which the most nodes depend.

        Where sizes have to be the same, those of the later tensors are checked, and the nodes that
        depend on these are added anew.
        """
        used = {}
        for name in names:
            shape = self._graph.get_tensor_by_name(name).shape
            if shape is not None and None in shape:
                used[name] = len(self._reach([name], set()))
        return sorted(names, key=lambda name: -used.get(name, 0))

    def _boundary(
        self, reached: set[str], xs: set[str], ys: Sequence[str]
    ) -> tuple[list[str], set[str]]:
        """Returns the tensors that go into the section, and the nodes in it.

        Those tensors do not depend on the xs. Constants belong to it, and what inputs are made of
        that must be known while tracing.
        """
        inside = {_producer(name) for name in reached}
        found: dict[str, None] = {}
        seen: dict[str, bool] = {}  # whether it must be known while tracing
        pending = [(y, False) for y in ys]
        while pending:
            name, is_static = pending.pop()
            if name in xs or seen.get(name, False) or (name in seen and not is_static):
                continue
            node = self._nodes[_producer(name)]
            is_outside = node.op != "Const" and node.name not in inside
            is_outside = is_outside and self._regions.can_cut(name)
            is_outside = is_outside and not self._regions.is_predicate(node)
            if is_outside and (not is_static or _must_be_given(node)):
                found[name] = None
                continue
            found.pop(name, None)
            seen[name] = is_static
            static = node_kernels.static_inputs(node)
            kernel = _definition.KERNELS.get(node.op)
            if not is_outside:
                pending.extend((f"{n}:0", False) for n in self._regions.controls_of(node))
            passes_on = is_static and not (kernel is not None and kernel.gives_sizes)
            for index, ref in enumerate(_data_inputs(node)):
                pending.append((ref, passes_on or index in static))
        return list(found), {_producer(name) for name in seen if name not in found}


class _PullBack:
    """What gives the gradients, to be traced: of the xs, of what else goes in, and of seeds.

    Attributes:
        others: the names of the tensors that go in beside the xs.
    """

    def __init__(
        self,
        plan: executor.Plan,
        counts: Sequence[int],
        others: Sequence[str],
        variables: Mapping[str, int] | None,
    ) -> None:
        """Takes the parts.

        Args:
            plan: of the tensors that read the xs, and of others, to the ys.
            counts: how many tensors read each x.
            others: what goes in beside the xs; the last are the values of variables.
            variables: which of all that goes in are the values of variables that are read inside;
                None where nothing takes a state.
        """
        self._plan, self._counts, self._variables = plan, counts, variables
        self.others = others

    def __call__(self, first: Any, rest: Any, cotangents: Any) -> Any:
        """Returns the gradients.

        Raises:
            UnsupportedOpError: how often a loop runs is not known while tracing.
        """
        unbounded: list[str] = []

        def forward(values: Any) -> Any:
            return self._run(values, rest, unbounded)

        try:
            outputs, pull = jax.vjp(forward, first)
            seeds = [jnp.asarray(c, y.dtype) for c, y in zip(cotangents, outputs, strict=True)]
            (grads,) = pull(seeds)
        except ValueError as error:
            if unbounded and not isinstance(error, errors.JaxmetaError):
                raise errors.UnsupportedOpError(_of_unknown_length(unbounded)) from error
            raise
        return grads

    def _run(self, values: Sequence[Any], rest: Sequence[Any], unbounded: list[str]) -> list[Any]:
        spread = [v for v, n in zip(values, self._counts, strict=True) for _ in range(n)]
        feeds = [*spread, *rest][: len(self._plan.arguments)]
        if self._variables is None:
            return self._plan.run(feeds)
        all_values = [*values, *rest]
        held = {name: all_values[place] for name, place in self._variables.items()}
        state = executor.State(held, unbounded=unbounded)
        results = self._plan.run(feeds, state)
        drawn = [n for n in state.asked if n.startswith(COUNTER_PREFIX)]
        if drawn:
            headline = "gradients through loops, branches or functions that draw random numbers:"
            advice = "Draw the numbers before, and let the loop or branch take them."
            names = [name.removeprefix(COUNTER_PREFIX) for name in drawn]
            raise errors.UnsupportedOpError(errors.list_offenders(headline, names, advice))
        return results


def _variable_key(node: graph_pb2.NodeDef) -> str:
    """Returns what a state knows a variable as."""
    has_name = "shared_name" in node.attr and node.attr["shared_name"].s
    return node.attr["shared_name"].s.decode() if has_name else node.name


def _of_unknown_length(loops: Sequence[str]) -> str:
    return errors.list_offenders(
        "gradients through loops of which it is not known while tracing how often they run:",
        dict.fromkeys(loops),
        "Give the loop `maximum_iterations`, or a bound that constants or static shapes say, as "
        "placeholders of a known number of steps do.",
    )


def _must_be_given(node: graph_pb2.NodeDef) -> bool:
    kernel = _definition.KERNELS.get(node.op)
    return kernel is None or kernel.must_be_fed or kernel.is_stateful or not node.input


def _is_real(number: int) -> bool:
    try:
        return bool(jnp.issubdtype(dtypes.dtype_from_number(number), jnp.inexact))
    except errors.AttrError:
        return False
