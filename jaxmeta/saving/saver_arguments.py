"""What a saver is given: whether it is of the right kind, and what it stands for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

import jax

from jaxmeta import errors, trees
from jaxmeta._proto import meta_graph_pb2
from jaxmeta.execution.session import Session
from jaxmeta.graphs import building
from jaxmeta.graphs.graph import Variable
from jaxmeta.saving import saver_nodes

ORBAX: Final = "orbax"
TENSOR_BUNDLE: Final = "tensor_bundle"


def check_arguments(
    var_list: Any,
    graph: building.Graph | None,
    defer_build: bool,
    builder: Any,
    saver_def: Any,
) -> None:
    """Raises CheckpointError or CheckpointTypeError where arguments of a saver contradict."""
    if defer_build and var_list is not None and not isinstance(var_list, building.Graph):
        raise errors.CheckpointError(
            "If `var_list` is provided then build cannot be deferred. Either set "
            "defer_build=False or var_list=None."
        )
    if builder is not None:
        raise errors.CheckpointTypeError("builder must be None: there is one way to make the nodes")
    if saver_def is not None and not isinstance(saver_def, meta_graph_pb2.SaverDef):
        raise errors.CheckpointTypeError(f"saver_def must be a SaverDef: {saver_def!r}")
    if isinstance(var_list, building.Graph) and graph not in (None, var_list):
        raise errors.CheckpointError("var_list is a graph, and graph is another one; give one")


def graph_of(var_list: Any, given: building.Graph | None) -> building.Graph:
    """Returns the graph of a saver, checking that all its variables are of one."""
    if isinstance(var_list, building.Graph):
        return var_list
    items = list(var_list) if isinstance(var_list, (set, frozenset)) else var_list
    variables = [leaf for leaf in jax.tree.leaves(items) if isinstance(leaf, Variable)]
    graphs = {id(variable.graph): variable.graph for variable in variables}
    if given is not None:
        graphs[id(given)] = given
    if len(graphs) > 1:
        raise errors.CheckpointError(f"the variables to save are of {len(graphs)} graphs, not one")
    (found,) = graphs.values() or [building.get_default_graph()]
    assert isinstance(found, building.Graph)
    return found


def check_holder(sess: Any, target: building.Graph) -> None:
    """Raises CheckpointTypeError for what is neither a session nor a state."""
    recorded = list(target.state_trees.values())
    is_empty = isinstance(sess, Mapping) and not sess  # the state of a graph that has none
    is_state = (is_empty if not recorded else sess is not None) or (
        sess is None and recorded == [trees.NOTHING]
    )
    if not isinstance(sess, Session) and not is_state:
        raise errors.CheckpointTypeError(
            f"'sess' must be a Session, or a state as Graph.variables took it; {sess!r}"
        )


def checkpoint_format(name: str | None, write_version: int | None) -> str:
    """Returns the format that two arguments ask for.

    Raises:
        CheckpointError: there is none such, or they contradict.
    """
    if write_version not in (None, saver_nodes.V2):
        raise errors.CheckpointError(
            f"write_version={write_version}: of TensorFlow's formats only V2 "
            f"({saver_nodes.V2}) is written; V1 is read"
        )
    if name is None:
        return TENSOR_BUNDLE if write_version == saver_nodes.V2 else ORBAX
    if name not in (ORBAX, TENSOR_BUNDLE):
        raise errors.CheckpointError(
            f"checkpoint_format={name!r}: expected {ORBAX!r} or {TENSOR_BUNDLE!r}"
        )
    if write_version is not None and name != TENSOR_BUNDLE:
        raise errors.CheckpointError(
            f"write_version={write_version} writes TensorBundles, checkpoint_format={name!r} does "
            "not; give one of them"
        )
    return name


def check_latest_filename(latest_filename: str, prefix: str, *, is_extended: bool) -> None:
    """Raises CheckpointError where the state file's name is a path, or that of the checkpoint.

    Args:
        latest_filename: of the state file.
        prefix: of the checkpoint.
        is_extended: whether something is appended to the prefix.
    """
    if os.path.split(latest_filename)[0]:
        raise errors.CheckpointError("'latest_filename' must not contain path components")
    if os.path.basename(prefix) == latest_filename and not is_extended:
        raise errors.CheckpointError(
            f"'latest_filename' collides with 'save_path': {latest_filename!r} and {prefix!r}"
        )


def step_number(global_step: Any, sess: Any, values: Mapping[str, Any]) -> int:
    """Returns the number that a step is, or that the variable or tensor of a name holds.

    Raises:
        CheckpointTypeError: it is none, or nothing of that name has a value.
    """
    name = global_step if isinstance(global_step, str) else getattr(global_step, "name", None)
    if isinstance(name, str):
        held = values.get(name.removesuffix(":0"))
        if held is None and isinstance(sess, Session):
            held = sess.run(name)
        if held is None:
            raise errors.CheckpointTypeError(
                f"global_step: {name!r} is no variable of the state; give its value"
            )
        global_step = held
    try:
        return int(global_step)
    except (TypeError, ValueError):
        raise errors.CheckpointTypeError(
            f"global_step: expected an integer, or a scalar, got {global_step!r}"
        ) from None
