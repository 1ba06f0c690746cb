"""Checking what a session is fed: shapes, dtypes, and the sizes of named dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxmeta import dtypes, trees
from jaxmeta.execution import arguments
from jaxmeta.graphs import nodes
from jaxmeta.graphs.graph import GraphBuilder, Tensor
from jaxmeta.graphs.inlining import InnerTensor
from jaxmeta.tracing import dimensions


def faults(
    target: GraphBuilder, tensors: Sequence[Tensor | InnerTensor], values: Sequence[Any]
) -> list[str]:
    """Returns in what feeds do not fit their tensors, one line each.

    Args:
        target: the graph.
        tensors: those of the graph or of functions that it calls.
        values: an array for each.
    """
    pairs = list(zip(tensors, values, strict=True))
    found = [fault for tensor, value in pairs for fault in _faults_of_one(tensor, value)]
    in_graph = {t.name: value for t, value in pairs if t.name.split(":")[0] in target.nodes}
    return found or _faults_of_names(target, in_graph)


def _faults_of_one(tensor: Tensor | InnerTensor, value: Any) -> list[str]:
    if dtypes.base_number(tensor.number) in (dtypes.RESOURCE, dtypes.VARIANT):
        return [f"{tensor.name}: a {dtypes.dtype_name(tensor.number)} cannot be fed"]
    shape, found = tensor.shape, np.shape(value)
    bad = []
    if shape is not None and (
        len(shape) != len(found)
        or any(want is not None and want != size for want, size in zip(shape, found, strict=True))
    ):
        bad.append(f"{tensor.name}: expected shape {list(shape)}, got {list(found)}")
    number = dtypes.dtype_to_number(value.dtype)
    if dtypes.base_number(tensor.number) != number:
        expected = dtypes.dtype_name(tensor.number)
        bad.append(f"{tensor.name}: expected dtype {expected}, got {dtypes.dtype_name(number)}")
    return bad


def _faults_of_names(target: GraphBuilder, feeds: Mapping[str, Any]) -> list[str]:
    """Returns where a dimension that placeholders name has several sizes, or none that is allowed.

    Signatures are apart: each may be fed a batch of its own.
    """
    expected, shapes = [], []
    constraints: dict[str, None] = {}
    for name, value in feeds.items():
        attr = target.nodes[name.split(":")[0]].attr
        named = nodes.recorded_dims(target.nodes[name.split(":")[0]])
        if named is not None and not _is_argument(target, name):
            sizes = tuple(
                str(found) if size == nodes.UNKNOWN_DIM else size
                for size, found in zip(named, np.shape(value), strict=True)
            )
            expected.append(arguments.Argument(name, value.dtype, sizes))
            shapes.append(tuple(np.shape(value)))
            if nodes.CONSTRAINTS_ATTR in attr:
                lines = attr[nodes.CONSTRAINTS_ATTR].list.s
                constraints.update((line.decode(), None) for line in lines)
    if not expected:
        return []
    lost = set(dimensions.unsolved([argument.shape for argument in expected]))
    solvable = [i for i, argument in enumerate(expected) if not lost & _names(argument.shape)]
    known = {name for i in solvable for name in _names(expected[i].shape)}
    return arguments.symbolic_faults(
        [expected[i] for i in solvable],
        [line for line in constraints if dimensions.names_in_constraint(line) <= known],
        [shapes[i] for i in solvable],
    )


def _names(shape: tuple[str, ...]) -> set[str]:
    return {name for text in shape for name in dimensions.names(dimensions.parse(text))}


def _is_argument(target: GraphBuilder, name: str) -> bool:
    return any(
        leaf.name == name
        for signature in target.signatures.values()
        for leaf in trees.leaves(signature.arguments)
    )
