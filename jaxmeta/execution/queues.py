"""Queues as nodes of a graph: what `FIFOQueue` and its kin add, named as TensorFlow names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from jaxmeta import dtypes, errors, values
from jaxmeta.graphs import building
from jaxmeta.graphs.graph import Operation, Tensor, Variable
from jaxmeta.graphs.nodes import Edge

Shape: TypeAlias = tuple[int | None, ...]
_RANDOM_SEED: Final = 0  # in both attrs: another order each time


class QueueBase:
    """A handle on a queue of a graph; see `FIFOQueue`.

    Attributes:
        graph: the graph.
        queue_ref: the tensor of its handle.
        dtypes: of the components of an element.
        shapes: of the components, or empty where they are not known.
        names: of the components, or empty; where there are, elements are dicts.
    """

    _op = ""

    def __init__(
        self,
        dtypes: Any,
        shapes: Any,
        names: Any,
        attrs: Mapping[str, Any],
        shared_name: str | None,
        name: str,
    ) -> None:
        self.graph = building.get_default_graph()
        self.dtypes = _as_dtypes(dtypes)
        self.shapes = _as_shapes(shapes, len(self.dtypes))
        self.names = [names] if isinstance(names, str) else list(names or ())
        if self.names and len(self.names) != len(self.dtypes):
            raise errors.GraphError(
                f"a queue of {len(self.dtypes)} components got {len(self.names)} names"
            )
        (edge,) = self.graph.add_node(
            self._op,
            [],
            {
                "component_types": self.dtypes,
                **({"shared_name": shared_name} if shared_name else {}),
                **attrs,
            },
            name,
        )
        values.write_attr(self.graph.nodes[edge.ref].attr["shapes"], self.shapes, "list(shape)")
        self.queue_ref = Tensor(self.graph, edge.ref, 0)

    @property
    def name(self) -> str:
        """The name of its node."""
        return self.queue_ref.node_name

    def __repr__(self) -> str:
        return f"<jaxmeta.{type(self).__name__} {self.name!r}>"

    # --- putting in

    def enqueue(self, vals: Any, name: str | None = None) -> Operation:
        """Returns an operation that puts in one element.

        Args:
            vals: a tensor or array, a list of them, or a dict where the components have names.
            name: of the operation.

        Raises:
            GraphError: they are not as many as the components, or of other dtypes or shapes.
        """
        return self._add_enqueue("QueueEnqueueV2", "enqueue", vals, self.shapes, name)

    def enqueue_many(self, vals: Any, name: str | None = None) -> Operation:
        """Returns an operation that puts in an element for each slice along the first axis.

        Args:
            vals: as for `enqueue`, with one axis more.
            name: of the operation.

        Raises:
            GraphError: they are not as many as the components, or of other dtypes or shapes.
        """
        shapes = [(None, *shape) for shape in self.shapes]
        return self._add_enqueue("QueueEnqueueManyV2", "EnqueueMany", vals, shapes, name)

    def _add_enqueue(
        self, op: str, suffix: str, vals: Any, shapes: Sequence[Shape], name: str | None
    ) -> Operation:
        parts = self._components(vals)
        name = self._node_name(name, suffix)
        edges = [
            self._edge(part, number, f"{name}/component_{number}")
            for number, part in enumerate(parts)
        ]
        self._check(edges, shapes)
        self.graph.add_node(op, [self._handle(), edges], {}, name)
        return Operation(self.graph, self.graph.last_node_name)

    def _components(self, vals: Any) -> list[Any]:
        if self.names:
            if not isinstance(vals, Mapping) or set(vals) != set(self.names):
                raise errors.GraphError(
                    f"queue {self.name!r}: expected a dict of {sorted(self.names)}, got {vals!r}"
                )
            return [vals[name] for name in self.names]
        if isinstance(vals, Mapping):
            raise errors.GraphError(f"queue {self.name!r}: its components have no names")
        parts = list(vals) if isinstance(vals, (list, tuple)) else [vals]
        if len(parts) != len(self.dtypes):
            raise errors.GraphError(
                f"queue {self.name!r}: an element has {len(self.dtypes)} components, "
                f"got {len(parts)}"
            )
        return parts

    def _edge(self, part: Any, number: int, name: str) -> Edge:
        """Returns the edge of a tensor, of a variable's value, or of a new constant."""
        if isinstance(part, Variable):
            part = self.graph.get_tensor_by_name(part.snapshot_name)
        if isinstance(part, Tensor):
            if part.graph is not self.graph:
                raise errors.GraphError(f"{part} belongs to another graph")
            ref = part.name if part.index else part.node_name
            return Edge(ref, dtypes.base_number(part.number), part.shape)
        array = np.asarray(part)
        dtype = self.dtypes[number]
        if array.dtype.kind in "OSU" or dtype == object:
            array = np.asarray(part, dtype=object)
        elif not hasattr(part, "dtype"):
            array = np.asarray(part, dtype)
        proto = values.tensor_to_proto(array)
        (edge,) = self.graph.add_node("Const", [], {"dtype": proto.dtype, "value": proto}, name)
        edge.shape = array.shape
        return edge

    def _check(self, edges: Sequence[Edge], shapes: Sequence[Shape]) -> None:
        """Raises GraphError where components do not fit; lists all."""
        bad = []
        for index, (edge, dtype) in enumerate(zip(edges, self.dtypes, strict=True)):
            number = dtypes.dtype_to_number(dtype)
            if edge.number != number:
                found, expected = dtypes.dtype_name(edge.number), dtypes.dtype_name(number)
                bad.append(f"component {index}: expected dtype {expected}, got {found}")
            if shapes and edge.shape is not None and not _fits(edge.shape, shapes[index]):
                bad.append(f"component {index}: expected shape {shapes[index]}, got {edge.shape}")
        if bad:
            headline = f"queue {self.name!r}: these components do not fit:"
            raise errors.GraphError(errors.list_offenders(headline, bad))

    # --- taking out

    def dequeue(self, name: str | None = None) -> Any:
        """Returns the tensors of one element: one tensor, a list, or a dict by name."""
        return self._add_dequeue("QueueDequeueV2", "Dequeue", [], self.shapes, name)

    def dequeue_many(self, n: Any, name: str | None = None) -> Any:
        """Returns the tensors of ``n`` elements, stacked; running them waits for all of them."""
        return self._dequeue_some("QueueDequeueManyV2", "DequeueMany", n, name)

    def dequeue_up_to(self, n: Any, name: str | None = None) -> Any:
        """Returns the tensors of ``n`` elements, or of those left in a queue that is closed."""
        return self._dequeue_some("QueueDequeueUpToV2", "DequeueUpTo", n, name)

    def _dequeue_some(self, op: str, suffix: str, n: Any, name: str | None) -> Any:
        size = n if isinstance(n, int) and suffix == "DequeueMany" else None
        shapes = [(size, *shape) for shape in self.shapes]
        name = self._node_name(name, suffix)
        if isinstance(n, Tensor):
            count = Edge(n.name if n.index else n.node_name, n.number)
        else:
            proto = values.tensor_to_proto(np.asarray(n, np.int32))
            (count,) = self.graph.add_node(
                "Const", [], {"dtype": proto.dtype, "value": proto}, f"{name}/n"
            )
        return self._add_dequeue(op, suffix, [count], shapes, name)

    def _add_dequeue(
        self,
        op: str,
        suffix: str,
        more: Sequence[Edge],
        shapes: Sequence[Shape],
        name: str | None,
    ) -> Any:
        edges = self.graph.add_node(
            op,
            [self._handle(), *more],
            {"component_types": self.dtypes},
            self._node_name(name, suffix),
        )
        node = self.graph.last_node_name
        if shapes:
            attr = self.graph.nodes[node].attr["_output_shapes"]
            values.write_attr(attr, shapes, "list(shape)")
        tensors = [Tensor(self.graph, node, index) for index in range(len(edges))]
        if self.names:
            return dict(zip(self.names, tensors, strict=True))
        return tensors[0] if len(tensors) == 1 else tensors

    # --- the queue as a whole

    def close(self, cancel_pending_enqueues: bool = False, name: str | None = None) -> Operation:
        """Returns an operation after which nothing more can be put in.

        Args:
            cancel_pending_enqueues: whether what waits to be put in fails, or comes first.
            name: of the operation.
        """
        self.graph.add_node(
            "QueueCloseV2",
            [self._handle()],
            {"cancel_pending_enqueues": cancel_pending_enqueues},
            self._node_name(name, "Close"),
        )
        return Operation(self.graph, self.graph.last_node_name)

    def is_closed(self, name: str | None = None) -> Tensor:
        """Returns the tensor that says whether it is closed."""
        return self._add_question("QueueIsClosedV2", "Is_Closed", name)

    def size(self, name: str | None = None) -> Tensor:
        """Returns the tensor of how many elements it holds."""
        return self._add_question("QueueSizeV2", "Size", name)

    def _add_question(self, op: str, suffix: str, name: str | None) -> Tensor:
        self.graph.add_node(op, [self._handle()], {}, self._node_name(name, suffix))
        return Tensor(self.graph, self.graph.last_node_name, 0)

    def _handle(self) -> Edge:
        return Edge(self.name, dtypes.RESOURCE)

    def _node_name(self, name: str | None, suffix: str) -> str:
        """Returns a name that no node below the current scope has: ``q_enqueue``."""
        wanted = name or f"{self.name.rsplit('/', 1)[-1]}_{suffix}"
        unique = self.graph.unique_name(wanted, mark=False)
        return wanted + unique.rpartition(wanted)[2]


class FIFOQueue(QueueBase):
    """A queue of a graph: first in, first out.

    Its methods add nodes to the graph; a session runs them. See `QueueRunner` for the threads that
    fill it.

    Args:
        capacity: how many elements it holds at most; without limit where negative.
        dtypes: of the components of an element, or one for a single component.
        shapes: of the components; not known where None.
        names: of the components; where there are, elements are dicts.
        shared_name: the name under which graphs share it in a session; its node's where None.
        name: of its node.

    Example:
        >>> with building.Graph().as_default() as graph:
        ...     queue = FIFOQueue(10, np.float32, [(2,)], name="q")
        ...     put, take = queue.enqueue([[1.0, 2.0]]), queue.dequeue()
        >>> put.name, take.name, take.shape
        ('q_enqueue', 'q_Dequeue:0', (2,))
    """

    _op = "FIFOQueueV2"

    def __init__(
        self,
        capacity: int,
        dtypes: Any,
        shapes: Any = None,
        names: Any = None,
        shared_name: str | None = None,
        name: str = "fifo_queue",
    ) -> None:
        super().__init__(dtypes, shapes, names, {"capacity": capacity}, shared_name, name)


class PaddingFIFOQueue(QueueBase):
    """A queue whose elements may differ in shape: taken out together, they are padded with zeros.

    Args:
        capacity: how many elements it holds at most; without limit where negative.
        dtypes: of the components of an element.
        shapes: of the components; None is a dimension that varies.
        names: of the components; where there are, elements are dicts.
        shared_name: the name under which graphs share it in a session; its node's where None.
        name: of its node.

    Example:
        >>> with building.Graph().as_default() as graph:
        ...     queue = PaddingFIFOQueue(10, np.float32, [(None,)], name="q")
        ...     queue.dequeue_many(4).shape
        (4, None)
    """

    _op = "PaddingFIFOQueueV2"

    def __init__(
        self,
        capacity: int,
        dtypes: Any,
        shapes: Any,
        names: Any = None,
        shared_name: str | None = None,
        name: str = "padding_fifo_queue",
    ) -> None:
        super().__init__(dtypes, shapes, names, {"capacity": capacity}, shared_name, name)


class RandomShuffleQueue(QueueBase):
    """A queue that gives its elements in random order.

    Args:
        capacity: how many elements it holds at most; without limit where negative.
        min_after_dequeue: how many stay, for a good mix, until it is closed.
        dtypes: of the components of an element.
        shapes: of the components; not known where None.
        names: of the components; where there are, elements are dicts.
        seed: of the order, which is another one each time where None.
        shared_name: the name under which graphs share it in a session; its node's where None.
        name: of its node.

    Example:
        >>> with building.Graph().as_default() as graph:
        ...     queue = RandomShuffleQueue(10, 5, np.int32, [()], name="q")
        ...     queue.size().name
        'q_Size:0'
    """

    _op = "RandomShuffleQueueV2"

    def __init__(
        self,
        capacity: int,
        min_after_dequeue: int,
        dtypes: Any,
        shapes: Any = None,
        names: Any = None,
        seed: int | None = None,
        shared_name: str | None = None,
        name: str = "random_shuffle_queue",
    ) -> None:
        # One seed gives another order than none even where it is 0.
        seeds = (_RANDOM_SEED, _RANDOM_SEED) if seed is None else (seed, 1)
        attrs = {
            "capacity": capacity,
            "min_after_dequeue": min_after_dequeue,
            "seed": seeds[0],
            "seed2": seeds[1],
        }
        super().__init__(dtypes, shapes, names, attrs, shared_name, name)


def _as_dtypes(given: Any) -> list[np.dtype[Any]]:
    """Returns dtypes from one or a list of them; a DataType number or a string's type will do."""
    if not isinstance(given, (list, tuple)):
        given = [given]
    return [
        dtypes.dtype_from_number(
            item if type(item) is int else dtypes.dtype_to_number(np.dtype(item))
        )
        for item in given
    ]


def _as_shapes(given: Any, count: int) -> list[Shape]:
    """Returns a shape for each component from a list of them, or from that of the only one."""
    if given is None:
        return []
    is_one = count == 1 and all(item is None or isinstance(item, int) for item in given)
    shapes = [tuple(given)] if is_one and (given or given == ()) else [tuple(s) for s in given]
    if len(shapes) != count:
        raise errors.GraphError(f"a queue of {count} components got {len(shapes)} shapes")
    return shapes


def _fits(shape: Sequence[int | None], expected: Shape) -> bool:
    return len(shape) == len(expected) and all(
        want is None or size is None or want == size
        for want, size in zip(expected, shape, strict=True)
    )
