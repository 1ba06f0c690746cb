"""Gradients of tensors: JAX differentiates the nodes between them, and that becomes nodes again.

The nodes run as a function under `jax.vjp`, so what has a derivative rule of its own keeps it. Of
the equations that this gives, those that the graph computes already are not added again.
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
from jaxmeta.graphs import calling, elementary, shape_inference
from jaxmeta.graphs.graph import GraphBuilder
from jaxmeta.graphs.handles import Tensor
from jaxmeta.graphs.staging import NodeIndex
from jaxmeta.graphs.variable_handles import Variable
from jaxmeta.ops import _definition

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
            known = NodeIndex(target, [n.name for n in _ancestors(target.nodes, ys)])
            found.update(section.add_gradients(seeds, known))
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
    return [_full(ref) for ref in node.input if ref[0] != "^"]


def _full(ref: str) -> str:
    return ref if ":" in ref else f"{ref}:0"


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
        self._nodes = _with_plain_gathers(
            target, _without_controls({node.name: node for node in _ancestors(target.nodes, ys)})
        )
        given = {x: [t.name for t in _tensors(target, x) if t.node_name in self._nodes] for x in xs}
        stopped = {tensor.name for tensor in stops}
        self._x_names = {x: [n for n in names if n not in stopped] for x, names in given.items()}
        self._reached = {x: self._reach(names, stopped) for x, names in self._x_names.items()}

    def _reach(self, names: Sequence[str], stopped: set[str]) -> set[str]:
        """Returns the real tensors that depend on some, by way of real tensors alone."""
        reached = set(names)
        for node in self._nodes.values():
            if node.op not in _STOPS and not reached.isdisjoint(_data_inputs(node)):
                reached.update(set(self._real_outputs(node)) - stopped)
        return reached

    def _real_outputs(self, node: graph_pb2.NodeDef) -> list[str]:
        numbers = self._graph.output_numbers(node.name)
        return [f"{node.name}:{i}" for i, n in enumerate(numbers) if _is_real(n)]

    def add_gradients(self, seeds: Sequence[Tensor], known: NodeIndex) -> dict[Any, Tensor | None]:
        """Adds the nodes of the gradients and returns these; None where nothing connects."""
        y_names = [y.name for y in self._ys]
        connected = [x for x, reached in self._reached.items() if not reached.isdisjoint(y_names)]
        result: dict[Any, Tensor | None] = dict.fromkeys(self._x_names)
        if not connected:
            return result
        reached = set().union(*(self._reached[x] for x in connected))
        pairs = [(y, s) for y, s in zip(self._ys, seeds, strict=True) if y.name in reached]
        x_names = [name for x in connected for name in self._x_names[x]]
        counts = [len(self._x_names[x]) for x in connected]
        others = self._by_use(self._boundary(reached, set(x_names), [y for y, _ in pairs]))
        plan = executor.plan_graph(
            self._nodes,
            executor.Library(self._graph.functions, gradients=self._graph.gradients),
            [*x_names, *others],
            [y.name for y, _ in pairs],
        )
        tensors = [self._graph.get_tensor_by_name(name) for name in [*x_names, *others]]
        primals = [self._graph.get_tensor_by_name(self._x_names[x][0]) for x in connected]

        def pull_back(first: Any, rest: Any, cotangents: Any) -> Any:
            def forward(values: Any) -> Any:
                spread = [v for v, n in zip(values, counts, strict=True) for _ in range(n)]
                return plan.run([*spread, *rest])

            outputs, pull = jax.vjp(forward, first)
            (grads,) = pull(
                [jnp.asarray(c, y.dtype) for c, y in zip(cotangents, outputs, strict=True)]
            )
            return grads

        grads = calling.call(
            self._graph,
            lambda *parts: pull_back(*parts),
            [primals, tensors[len(x_names) :], [seed for _, seed in pairs]],
            {},
            known=known,
        )
        result.update(zip(connected, grads, strict=True))
        return result

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

    def _boundary(self, reached: set[str], xs: set[str], ys: Sequence[Tensor]) -> list[str]:
        """Returns the tensors that go into the section and do not depend on the xs.

        Constants belong to it, and what inputs are made of that must be known while tracing.
        """
        inside = {_producer(name) for name in reached}
        found: dict[str, None] = {}
        seen: dict[str, bool] = {}  # whether it must be known while tracing
        pending = [(y.name, False) for y in ys]
        while pending:
            name, is_static = pending.pop()
            if name in xs or seen.get(name, False) or (name in seen and not is_static):
                continue
            node = self._nodes[_producer(name)]
            is_outside = node.op != "Const" and node.name not in inside
            if is_outside and (not is_static or _must_be_given(node)):
                found[name] = None
                continue
            found.pop(name, None)
            seen[name] = is_static
            static = node_kernels.static_inputs(node)
            kernel = _definition.KERNELS.get(node.op)
            passes_on = is_static and not (kernel is not None and kernel.gives_sizes)
            for index, ref in enumerate(_data_inputs(node)):
                pending.append((ref, passes_on or index in static))
        return list(found)


def _must_be_given(node: graph_pb2.NodeDef) -> bool:
    kernel = _definition.KERNELS.get(node.op)
    return kernel is None or kernel.must_be_fed or kernel.is_stateful or not node.input


def _is_real(number: int) -> bool:
    try:
        return bool(jnp.issubdtype(dtypes.dtype_from_number(number), jnp.inexact))
    except errors.AttrError:
        return False
