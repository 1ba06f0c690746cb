"""Programs out of checkpoints: `load`, and what finds and restores what it loads."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any, Final

import jax
import numpy as np

from jaxmeta import errors, program, state_values, trees
from jaxmeta.checkpoint import state
from jaxmeta.graphs import building
from jaxmeta.meta_graphs import meta_graph
from jaxmeta.program import Program
from jaxmeta.saving import saveables, saved_values, saver_nodes
from jaxmeta.shardings import Placement
from jaxmeta.tracing import signature_nodes

META_SUFFIX: Final = "meta"


def restore_variables(
    target: building.Graph,
    save_path: str | os.PathLike[str],
    shardings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the values of the variables of a graph from a checkpoint, as the graph holds them.

    These are the ones that the graph's saver saves, and those of its states.
    """
    known = []
    if target.saver_def is not None:
        known = saver_nodes.read_saver_nodes(target, target.saver_def)
    covered = {saveable.variable.op_name for saveable in known}
    others = list(map(target.variable, _recorded_names(target)))
    others += saveables.of_graph(target)
    others = [variable for variable in others if variable.op_name not in covered]
    own = saveables.collect(list(dict.fromkeys(others)))
    return saved_values.restore([*known, *own], os.fspath(save_path), shardings)


def load(
    path: str | os.PathLike[str] | None,
    mesh: jax.sharding.Mesh | None = None,
    shardings: Any = None,
    *,
    meta_graph_file: str | os.PathLike[str] | None = None,
) -> Program:
    """Returns the program in a checkpoint: its entry points and its state.

    Arrays that were spread over devices are so again: each device, and each process, reads its
    own part.

    Args:
        path: what `Saver.save` or `latest_checkpoint` returned, the ``.meta`` file beside it, or
            the directory of the ``checkpoint`` file.
        mesh: takes the place of the recorded mesh; its axes have the same names, any size, or are
            some of them. Where None, the recorded mesh is made anew if there are exactly as many
            devices; else all is on one device.
        shardings: for the state, instead of the recorded ones: one for all, a tree like the state,
            or a function of a variable's name and `jax.ShapeDtypeStruct`.
        meta_graph_file: the graph, where it is not the file beside the checkpoint: as for what
            TensorFlow trained on and saved, for it does not write the records of our trees.

    Raises:
        ShardingError: the mesh does not divide the arrays; all such are listed.
        CheckpointError: there is no checkpoint, or it does not fit the graph.
        FormatError: the graph's file is missing, damaged, or of a newer version.
    """
    prefix = _find_prefix(path)
    meta_file = os.fspath(meta_graph_file or f"{prefix}.{META_SUFFIX}")
    if not os.path.exists(meta_file) and not state.checkpoint_exists(prefix):
        raise errors.CheckpointError(f"no checkpoint at {prefix}; {describe_neighbours(prefix)}")
    target = meta_graph.import_graph(meta_file)
    _refuse_lost_records(meta_file, target)
    placement = Placement(mesh, program.override_shardings(target, shardings))
    wanted = program.variable_shardings(target, placement)
    physical = restore_variables(target, prefix, wanted)
    recorded = _recorded_names(target)
    logical = {}
    for name, value in physical.items():
        if name in recorded:
            logical[name] = state_values.logical_value(value, target.variable(name))
        else:
            is_placed = name in wanted
            target.constants[name] = value if is_placed else np.asarray(value)
    return Program(target, logical, placement)


def _refuse_lost_records(meta_file: str, target: building.Graph) -> None:
    """Raises FormatError for a graph of ours that TensorFlow wrote, without our records."""
    lost = [
        node.name
        for node in target.nodes.values()
        if signature_nodes.SIGNATURE_ATTR in node.attr
        and node.attr[signature_nodes.SIGNATURE_ATTR].s.decode() not in target.signatures
    ]
    if lost:
        raise errors.FormatError(
            errors.list_offenders(
                f"{meta_file}: the records of these signatures are gone; TensorFlow leaves them "
                "out where it writes a graph:",
                lost,
                "Give the file that jaxmeta wrote as meta_graph_file, and have TensorFlow save "
                "with write_meta_graph=False.",
            )
        )


def _recorded_names(target: building.Graph) -> set[str]:
    return {leaf.name for tree in target.state_trees.values() for leaf in trees.leaves(tree)}


def describe_neighbours(prefix: str) -> str:
    """Returns which names beside a missing file are like its own."""
    directory, name = os.path.split(prefix)
    try:
        names = os.listdir(directory or ".")
    except OSError:
        return f"the directory {directory} is not there either"
    close = difflib.get_close_matches(name, names)
    return f"close: {', '.join(sorted(close))}" if close else f"{directory} has nothing like it"


def _find_prefix(path: str | os.PathLike[str] | None) -> str:
    if path is None:
        raise errors.CheckpointError(
            "there is no checkpoint to load: latest_checkpoint() found none. Is the directory "
            "right, and did a save finish?"
        )
    name = os.fspath(path)
    if name.endswith(f".{META_SUFFIX}"):
        return name.removesuffix(f".{META_SUFFIX}")
    if os.path.isfile(os.path.join(name, "checkpoint")):
        latest = state.latest_checkpoint(name)
        if latest is None:
            raise errors.CheckpointError(f"{name}: its 'checkpoint' file names no checkpoint")
        return latest
    return name.rstrip(os.sep)
