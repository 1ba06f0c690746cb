"""The names of TensorFlow's collections, and how the classes of their items become protos.

A module that has such a class registers it at the end of its own file, so that what reads and
writes collections need not know the class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

from google.protobuf import message

from jaxmeta import errors


class GraphKeys:
    """The names of the collections that TensorFlow 1 knows.

    Example:
        >>> GraphKeys.GLOBAL_VARIABLES, GraphKeys.TRAIN_OP
        ('variables', 'train_op')
    """

    GLOBAL_VARIABLES: Final = "variables"
    LOCAL_VARIABLES: Final = "local_variables"
    METRIC_VARIABLES: Final = "metric_variables"
    MODEL_VARIABLES: Final = "model_variables"
    TRAINABLE_VARIABLES: Final = "trainable_variables"
    TRAINABLE_RESOURCE_VARIABLES: Final = "trainable_resource_variables"
    SUMMARIES: Final = "summaries"
    QUEUE_RUNNERS: Final = "queue_runners"
    TABLE_INITIALIZERS: Final = "table_initializer"
    ASSET_FILEPATHS: Final = "asset_filepaths"
    MOVING_AVERAGE_VARIABLES: Final = "moving_average_variables"
    REGULARIZATION_LOSSES: Final = "regularization_losses"
    CONCATENATED_VARIABLES: Final = "concatenated_variables"
    SAVERS: Final = "savers"
    WEIGHTS: Final = "weights"
    BIASES: Final = "biases"
    ACTIVATIONS: Final = "activations"
    UPDATE_OPS: Final = "update_ops"
    LOSSES: Final = "losses"
    SAVEABLE_OBJECTS: Final = "saveable_objects"
    RESOURCES: Final = "resources"
    LOCAL_RESOURCES: Final = "local_resources"
    INIT_OP: Final = "init_op"
    LOCAL_INIT_OP: Final = "local_init_op"
    READY_OP: Final = "ready_op"
    READY_FOR_LOCAL_INIT_OP: Final = "ready_for_local_init_op"
    SUMMARY_OP: Final = "summary_op"
    GLOBAL_STEP: Final = "global_step"
    EVAL_STEP: Final = "eval_step"
    TRAIN_OP: Final = "train_op"
    COND_CONTEXT: Final = "cond_context"
    WHILE_CONTEXT: Final = "while_context"

    VARIABLES: Final = GLOBAL_VARIABLES
    """The older name of GLOBAL_VARIABLES."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Registered:
    proto_type: type[message.Message] | None
    to_proto: Callable[..., Any] | None
    from_proto: Callable[..., Any] | None


_REGISTERED: Final[dict[str, _Registered]] = {}


def register_proto_function(
    collection_name: str,
    proto_type: type[message.Message] | None = None,
    to_proto: Callable[..., Any] | None = None,
    from_proto: Callable[..., Any] | None = None,
) -> None:
    """Says how the objects in a collection become protos in a file, and protos objects again.

    Args:
        collection_name: the collection.
        proto_type: the class of the protos.
        to_proto: called as ``to_proto(item, export_scope=scope)``; returns the proto with the scope
            taken off the names in it, or None where the item is not to be written.
        from_proto: called as ``from_proto(proto, import_scope=scope)``, with the graph that is
            imported into as the default graph.

    Raises:
        NameTakenError: the collection is registered already; a KeyError, as in TensorFlow.
        ArgumentTypeError: a function is not callable; a TypeError.

    Example:
        >>> from jaxmeta._proto import meta_graph_pb2
        >>> register_proto_function(
        ...     "slices_of_doctest",
        ...     meta_graph_pb2.SaveSliceInfoDef,
        ...     to_proto=lambda name, export_scope: meta_graph_pb2.SaveSliceInfoDef(full_name=name),
        ...     from_proto=lambda proto, import_scope: proto.full_name,
        ... )
        >>> get_collection_proto_type("slices_of_doctest").__name__
        'SaveSliceInfoDef'
    """
    for name, function in (("to_proto", to_proto), ("from_proto", from_proto)):
        if function is not None and not callable(function):
            raise errors.ArgumentTypeError(f"{name} must be callable, not {function!r}")
    if collection_name in _REGISTERED:
        raise errors.NameTakenError(
            f"the collection {collection_name!r} has its proto functions already: "
            f"{_REGISTERED[collection_name]}"
        )
    _REGISTERED[collection_name] = _Registered(proto_type, to_proto, from_proto)


def get_collection_proto_type(collection_name: str) -> type[message.Message] | None:
    """Returns the class of the protos of a collection, or None where none is registered."""
    found = _REGISTERED.get(collection_name)
    return found.proto_type if found else None


def get_to_proto_function(collection_name: str) -> Callable[..., Any] | None:
    """Returns what makes protos of a collection's items, or None where none is registered."""
    found = _REGISTERED.get(collection_name)
    return found.to_proto if found else None


def get_from_proto_function(collection_name: str) -> Callable[..., Any] | None:
    """Returns what makes items of a collection's protos, or None where none is registered."""
    found = _REGISTERED.get(collection_name)
    return found.from_proto if found else None
