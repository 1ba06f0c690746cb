"""Queues: kernels that run on the host, on the queues that a session holds.

A queue's node gives the queue itself; ops of TensorFlow's first years and their V2 differ only in
the type of that handle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxmeta import dtypes, errors
from jaxmeta.execution.queue_resources import PaddingQueue, Queue, RandomShuffleQueue
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._shared_resources import shared_resource


def _maker(
    kind: Callable[..., Queue],
    name: str,
    capacity: int,
    types: Sequence[int],
    shapes: Any,
    **options: Any,
) -> Callable[[], Queue]:
    numpy_types = [dtypes.dtype_from_number(number) for number in types]
    return lambda: kind(name, capacity, numpy_types, shapes or (), **options)


@kernel("FIFOQueue", "FIFOQueueV2", is_host=True)
def fifo_queue(
    state: Any,
    *,
    component_types: Sequence[int],
    shapes: Any,
    capacity: int,
    container: bytes,
    shared_name: bytes,
    node_name: str,
) -> Queue:
    make = _maker(Queue, node_name, capacity, component_types, shapes)
    return shared_resource("queue", state, node_name, shared_name, container, make)


@kernel("PaddingFIFOQueue", "PaddingFIFOQueueV2", is_host=True)
def padding_fifo_queue(
    state: Any,
    *,
    component_types: Sequence[int],
    shapes: Any,
    capacity: int,
    container: bytes,
    shared_name: bytes,
    node_name: str,
) -> Queue:
    make = _maker(PaddingQueue, node_name, capacity, component_types, shapes)
    return shared_resource("queue", state, node_name, shared_name, container, make)


@kernel("RandomShuffleQueue", "RandomShuffleQueueV2", is_host=True)
def random_shuffle_queue(
    state: Any,
    *,
    component_types: Sequence[int],
    shapes: Any,
    capacity: int,
    min_after_dequeue: int,
    seed: int,
    seed2: int,
    container: bytes,
    shared_name: bytes,
    node_name: str,
) -> Queue:
    make = _maker(
        RandomShuffleQueue,
        node_name,
        capacity,
        component_types,
        shapes,
        min_after_dequeue=min_after_dequeue,
        seed=hash((seed, seed2)) if seed or seed2 else None,
    )
    return shared_resource("queue", state, node_name, shared_name, container, make)


# TensorFlow ignores the ops' own attr timeout_ms ("not supported yet").


@kernel("QueueEnqueue", "QueueEnqueueV2", is_host=True)
def queue_enqueue(state: Any, handle: Queue, *components: Any) -> tuple[()]:
    handle.enqueue(components, state.waiting)
    return ()


@kernel("QueueEnqueueMany", "QueueEnqueueManyV2", is_host=True)
def queue_enqueue_many(state: Any, handle: Queue, *components: Any) -> tuple[()]:
    handle.enqueue_many(components, state.waiting)
    return ()


@kernel("QueueDequeue", "QueueDequeueV2", is_host=True)
def queue_dequeue(state: Any, handle: Queue, *, component_types: Sequence[int]) -> list[Any]:
    _check_types(handle, component_types)
    return list(handle.dequeue(state.waiting))


@kernel("QueueDequeueMany", "QueueDequeueManyV2", is_host=True)
def queue_dequeue_many(
    state: Any, handle: Queue, n: Any, *, component_types: Sequence[int]
) -> list[Any]:
    _check_types(handle, component_types)
    return handle.dequeue_many(int(n), state.waiting)


@kernel("QueueDequeueUpTo", "QueueDequeueUpToV2", is_host=True)
def queue_dequeue_up_to(
    state: Any, handle: Queue, n: Any, *, component_types: Sequence[int]
) -> list[Any]:
    _check_types(handle, component_types)
    return handle.dequeue_up_to(int(n), state.waiting)


def _check_types(queue: Queue, component_types: Sequence[int]) -> None:
    expected = tuple(dtypes.dtype_from_number(number) for number in component_types)
    if expected != queue.dtypes:
        raise errors.InvalidArgumentError(
            f"queue {queue.name!r} holds {list(map(str, queue.dtypes))}, the node that dequeues "
            f"says {list(map(str, expected))}"
        )


@kernel("QueueClose", "QueueCloseV2", is_host=True)
def queue_close(state: Any, handle: Queue, *, cancel_pending_enqueues: bool) -> tuple[()]:
    handle.close(state.waiting, cancel_pending_enqueues=cancel_pending_enqueues)
    return ()


@kernel("QueueSize", "QueueSizeV2", is_host=True)
def queue_size(handle: Queue) -> Any:
    return np.asarray(handle.size, np.int32)


@kernel("QueueIsClosed", "QueueIsClosedV2", is_host=True)
def queue_is_closed(handle: Queue) -> Any:
    return np.asarray(handle.is_closed)
