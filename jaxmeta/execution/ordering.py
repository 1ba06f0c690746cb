"""The order in which nodes run: each after its inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from jaxmeta import errors
from jaxmeta._proto import graph_pb2

# What leads back to the beginning of a loop, whose Merge runs before it.
NEXT_ITERATION: Final = frozenset({"NextIteration", "RefNextIteration"})
_MERGES: Final = frozenset({"Merge", "RefMerge"})


def sort_nodes(
    nodes: Mapping[str, graph_pb2.NodeDef],
    wanted: Iterable[str],
    stop_at: frozenset[str] = frozenset(),
    given: Collection[str] = (),
    fed: Collection[str] = (),
) -> list[graph_pb2.NodeDef]:
    """Returns the wanted nodes and all they depend on, each after its inputs.

    Args:
        nodes: by name.
        wanted: names of nodes.
        stop_at: nodes whose inputs are not followed, because their outputs are fed.
        given: names that are no nodes: a function's arguments.
        fed: tensors that are given, with their positions: what made them need not run for them.

    Raises:
        GraphError: an input is missing, or the nodes form a cycle that is no loop.
    """
    ordered: list[graph_pb2.NodeDef] = []
    state: dict[str, bool] = {}  # False while its inputs are being visited, then True
    stack = [(name, False) for name in reversed(list(wanted))]
    backs: list[str] = []
    while stack or backs:
        name, is_ready = stack.pop() if stack else (backs.pop(), False)
        if is_ready:
            state[name] = True
            ordered.append(nodes[name])
            continue
        if name in state or name in given:
            continue
        if name not in nodes:
            raise errors.GraphError(f"the graph has no node named {name!r}")
        state[name] = False
        stack.append((name, True))
        if name in stop_at:
            continue
        is_merge = nodes[name].op in _MERGES
        for ref in reversed(nodes[name].input):
            if fed and (ref in fed or f"{ref}:0" in fed):
                continue
            producer = ref[1:] if ref[0] == "^" else ref.split(":", 1)[0]
            if is_merge and producer in nodes and nodes[producer].op in NEXT_ITERATION:
                backs.append(producer)
                continue
            if producer not in state:
                stack.append((producer, False))
            elif not state[producer] and producer in nodes:
                raise errors.GraphError(f"the graph has a cycle through {producer!r} and {name!r}")
    return ordered
