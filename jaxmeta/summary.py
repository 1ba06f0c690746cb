"""Summaries: nodes whose values are what TensorBoard shows, named as ``tf.summary`` names them.

>>> import jaxmeta as jm
>>> loss = jm.placeholder("float32", [], name="loss_value")
>>> jm.summary.scalar("loss", loss).name, jm.summary.merge_all().name
('loss:0', 'Merge/MergeSummary:0')
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxmeta import errors, values
from jaxmeta._proto import event_pb2
from jaxmeta.event_files import FileWriter as FileWriter
from jaxmeta.graphs import building, elementary
from jaxmeta.graphs.building import Graph
from jaxmeta.graphs.handles import Tensor
from jaxmeta.graphs.variable_handles import Variable
from jaxmeta.meta_graphs import collection_registry

_NOT_IN_TAGS = re.compile(r"[^-/\w.]")
_BAD_COLOR = np.array([255, 0, 0, 255], np.uint8)  # TensorFlow's default: red


def scalar(
    name: str, tensor: Any, collections: Sequence[str] | None = None, family: str | None = None
) -> Tensor:
    """Returns a string tensor: the serialized summary of a single number.

    Args:
        name: of the node; also, after the enclosing scopes, the tag that TensorBoard shows.
        tensor: a real scalar tensor, variable or number.
        collections: to which it is added; ``summaries``, which `merge_all` merges, where None.
        family: a prefix of the tag, by which TensorBoard groups.
    """
    target = _graph_of(tensor)
    with _scope(target, name, family) as (tag, scope):
        inputs = [_string(target, tag, "tags"), _edge(target, tensor, "values")]
        return _add(target, "ScalarSummary", inputs, {}, scope, collections)


def histogram(
    name: str, values: Any, collections: Sequence[str] | None = None, family: str | None = None
) -> Tensor:
    """Returns a string tensor: the serialized summary of how values are spread.

    Running it raises GraphError where a value is not finite.

    Args:
        name: see `scalar`.
        values: a real tensor of any shape.
        collections: see `scalar`.
        family: see `scalar`.
    """
    target = _graph_of(values)
    with _scope(target, name, family) as (tag, scope):
        inputs = [_string(target, tag, "tag"), _edge(target, values, "values")]
        return _add(target, "HistogramSummary", inputs, {}, scope, collections)


def image(
    name: str,
    tensor: Any,
    max_outputs: int = 3,
    collections: Sequence[str] | None = None,
    family: str | None = None,
) -> Tensor:
    """Returns a string tensor: the serialized summary of images.

    Args:
        name: see `scalar`.
        tensor: images as [batch, height, width, channels] with 1, 3 or 4 channels; bytes, or
            floats, which are scaled so that the largest one is the brightest.
        max_outputs: how many of the batch are shown.
        collections: see `scalar`.
        family: see `scalar`.
    """
    target = _graph_of(tensor)
    attrs = {"max_images": max_outputs, "bad_color": _BAD_COLOR}
    with _scope(target, name, family) as (tag, scope):
        inputs = [_string(target, tag, "tag"), _edge(target, tensor, "tensor")]
        return _add(target, "ImageSummary", inputs, attrs, scope, collections)


def text(name: str, tensor: Any, collections: Sequence[str] | None = None) -> Tensor:
    """Returns a string tensor: the serialized summary of text, which may be Markdown.

    Args:
        name: see `scalar`.
        tensor: a string tensor, or a string.
        collections: see `scalar`.

    Raises:
        GraphError: the tensor holds no strings.
    """
    target = _graph_of(tensor)
    metadata = event_pb2.SummaryMetadata()
    metadata.plugin_data.plugin_name = "text"
    content = elementary.convert_to_tensor(target, tensor, "Const")
    if content.dtype != object:
        raise errors.GraphError(f"a text summary takes strings; {content.name} is {content.dtype}")
    with _scope(target, name, None) as (tag, scope):
        inputs = [
            _string(target, tag, "tag"),
            elementary.edge_of(content),
            _string(target, metadata.SerializeToString(), "serialized_summary_metadata"),
        ]
        return _add(target, "TensorSummaryV2", inputs, {}, scope, collections)


def merge(
    inputs: Sequence[Tensor], collections: Sequence[str] | None = None, name: str | None = None
) -> Tensor:
    """Returns a string tensor: several summaries in one.

    Args:
        inputs: summaries.
        collections: to which the merged one is added; none where None.
        name: a scope for the node; "Merge" where None.

    Raises:
        GraphError: there are no inputs.
    """
    if not inputs:
        raise errors.GraphError("there are no summaries to merge")
    target = _graph_of(inputs)
    with target.name_scope(name, "Merge"):
        edges = [elementary.edge_of(tensor) for tensor in inputs]
        (edge,) = target.add_node("MergeSummary", [edges], {}, name)
        merged = elementary.tensor_of(target, edge, ())
    for key in collections or ():
        target.add_to_collection(key, merged)
    return merged


def merge_all(
    key: str = collection_registry.GraphKeys.SUMMARIES,
    scope: str | None = None,
    name: str | None = None,
) -> Tensor | None:
    """Returns all summaries of a collection of the default graph in one; None where there are none.

    Args:
        key: the collection.
        scope: only those whose names begin with it.
        name: see `merge`.
    """
    found = building.get_default_graph().get_collection(key, scope)
    return merge(found, name=name) if found else None


def _graph_of(operands: Any) -> Graph:
    for operand in operands if isinstance(operands, (list, tuple)) else [operands]:
        if isinstance(operand, (Tensor, Variable)):
            graph: Graph = operand.graph
            return graph
    return building.get_default_graph()


@contextlib.contextmanager
def _scope(target: Graph, name: str, family: str | None) -> Iterator[tuple[str, str]]:
    """Enters the scope of a summary; yields its tag and the name of its node."""
    cleaned = _NOT_IN_TAGS.sub("_", name).lstrip("/")
    group = None if family is None else _NOT_IN_TAGS.sub("_", family).lstrip("/")
    with target.name_scope(cleaned if group is None else f"{group}/{cleaned}") as scope:
        tag = scope.rstrip("/")
        yield (tag if group is None else f"{group}/{tag}"), scope.rstrip("/")


def _string(target: Graph, content: str | bytes, name: str) -> Any:
    encoded = content.encode() if isinstance(content, str) else content
    proto = values.tensor_to_proto(np.array(encoded, dtype=object))
    (edge,) = target.add_node("Const", [], {"dtype": proto.dtype, "value": proto}, name)
    return edge


def _edge(target: Graph, tensor: Any, name: str) -> Any:
    return elementary.edge_of(elementary.convert_to_tensor(target, tensor, name))


def _add(
    target: Graph,
    op: str,
    inputs: Sequence[Any],
    attrs: dict[str, Any],
    scope: str,
    collections: Sequence[str] | None,
) -> Tensor:
    (edge,) = target.add_node(op, inputs, attrs, f"{scope}/")
    made = elementary.tensor_of(target, edge, ())
    keys = [collection_registry.GraphKeys.SUMMARIES] if collections is None else collections
    for key in keys:
        target.add_to_collection(key, made)
    return made
