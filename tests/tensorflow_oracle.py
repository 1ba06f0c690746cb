"""Runs library functions of a graph in stock TensorFlow, as the judge of what our nodes mean.

TensorFlow is imported on first use, so that tests can be collected where it is not installed.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

_CALL = "oracle_call"


def run_in_tensorflow(
    graph_def: Any, function_name: str, arrays: Sequence[Any], must_compile: bool = True
) -> list[np.ndarray[Any, Any]]:
    """Calls a library function in TensorFlow and returns its results.

    Args:
        graph_def: a serialized GraphDef, a message of any package that has its form, or an
            object with ``as_graph_def()``.
        function_name: which function of its library to call.
        arrays: the arguments.
        must_compile: whether the call is compiled by XLA as a whole; otherwise each op runs its
            own kernel.

    Raises:
        tf.errors.OpError: TensorFlow refuses the graph, or an op fails.
    """
    tf = _tensorflow()
    proto = tf.compat.v1.GraphDef.FromString(_serialized(graph_def))
    del proto.node[:]
    signature = next(
        f.signature for f in proto.library.function if f.signature.name == function_name
    )
    arguments = [np.asarray(array) for array in arrays]
    feeds = []
    for index, (array, argument) in enumerate(zip(arguments, signature.input_arg, strict=True)):
        node = proto.node.add(name=f"oracle_{index}", op="Placeholder")
        node.attr["dtype"].type = argument.type
        for size in array.shape:
            node.attr["shape"].shape.dim.add(size=size)
        node.attr["shape"].SetInParent()
        feeds.append(node.name)
    call = proto.node.add(name=_CALL, op="PartitionedCall", input=feeds)
    call.attr["f"].func.name = function_name
    call.attr["Tin"].list.SetInParent()
    call.attr["Tin"].list.type.extend(argument.type for argument in signature.input_arg)
    call.attr["Tout"].list.SetInParent()
    call.attr["Tout"].list.type.extend(argument.type for argument in signature.output_arg)
    if must_compile:
        call.attr["_XlaMustCompile"].b = True
    with tf.Graph().as_default() as graph:
        tf.compat.v1.import_graph_def(proto, name="")
        with tf.compat.v1.Session(graph=graph) as session:
            fetches = [f"{_CALL}:{index}" for index in range(len(signature.output_arg))]
            feed_dict = {f"{name}:0": array for name, array in zip(feeds, arguments, strict=True)}
            return [np.asarray(value) for value in session.run(fetches, feed_dict)]


def _tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return importlib.import_module("tensorflow")


def _serialized(graph_def: Any) -> bytes:
    if isinstance(graph_def, bytes):
        return graph_def
    if hasattr(graph_def, "as_graph_def"):
        graph_def = graph_def.as_graph_def()
    content: bytes = graph_def.SerializeToString()
    return content
