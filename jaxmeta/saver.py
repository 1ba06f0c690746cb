"""Saver: a graph and the values of its variables, to files and back."""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

import jax
import numpy as np

from jaxmeta import (
    building,
    dtypes,
    errors,
    meta_graph,
    program,
    signature_nodes,
    trees,
    values,
)
from jaxmeta._proto import meta_graph_pb2
from jaxmeta.checkpoint import atomic, restoring, retention, slices, state
from jaxmeta.checkpoint import orbax as orbax_checkpoint
from jaxmeta.graph import Variable
from jaxmeta.nodes import Edge
from jaxmeta.program import Program
from jaxmeta.session import Session
from jaxmeta.shardings import Placement

_META_SUFFIX: Final = "meta"
_STRING_LIST_NAMES: Final = ("tensor_names", "shape_and_slices")


class Saver:
    """Saves a graph and its variables as ``model-N.meta``, ``model-N/`` and ``checkpoint``.

    Saving runs in the background; `wait_until_finished`, the next save, and the end of the process
    wait for it. A process that is killed at any moment leaves the former checkpoint whole.

    Args:
        graph: the graph; the default graph where None.
        max_to_keep: how many checkpoints stay; None or 0 keeps all.
        keep_checkpoint_every_n_hours: one checkpoint stays for each that many hours.
        asynchronous: whether `save` returns before the files are written.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> g = building.Graph()
        >>> state = {"w": jnp.ones(3)}
        >>> _ = g.variables(state)
        >>> with Saver(g) as saver:
        ...     path = saver.save(state, tempfile.mkdtemp() + "/model", global_step=7)
        >>> os.path.basename(path), load(path).state
        ('model-7', {'w': Array([1., 1., 1.], dtype=float32)})
    """

    def __init__(
        self,
        graph: building.Graph | None = None,
        *,
        max_to_keep: int | None = 5,
        keep_checkpoint_every_n_hours: float = 10000.0,
        asynchronous: bool = True,
    ) -> None:
        self.graph = graph if graph is not None else building.get_default_graph()
        self._retention = retention.Retention(max_to_keep, keep_checkpoint_every_n_hours)
        self._max_to_keep = max_to_keep or 0
        self._keep_hours = keep_checkpoint_every_n_hours
        self._writer = orbax_checkpoint.CheckpointWriter(blocking=not asynchronous)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.wait_until_finished()

    @property
    def last_checkpoints(self) -> list[str]:
        """The checkpoints that are kept, oldest first."""
        return self._retention.last_checkpoints

    def wait_until_finished(self) -> None:
        """Waits until the last save is on disk and the ``checkpoint`` file names it."""
        self._writer.wait_until_finished()

    # --- saving

    def save(
        self,
        state_or_session: Any,
        save_path: str | os.PathLike[str],
        global_step: int | Any | None = None,
        latest_filename: str | None = None,
        meta_graph_suffix: str = _META_SUFFIX,
        write_meta_graph: bool = True,
        write_state: bool = True,
    ) -> str:
        """Saves and returns the checkpoint's prefix, ``save_path-global_step``.

        Args:
            state_or_session: the tree that `Graph.variables` was given, with new arrays, or a
                session. The arrays may be donated as soon as this returns.
            save_path: the prefix of the files.
            global_step: an int or a scalar array, appended to the prefix.
            latest_filename: of the state file; ``checkpoint`` by default.
            meta_graph_suffix: of the graph's file.
            write_meta_graph: whether to write the graph.
            write_state: whether to update the state file.

        Raises:
            CheckpointError: the state's leaves, shapes or dtypes are not the graph's.
        """
        _check_latest_filename(latest_filename)
        prefix = os.fspath(save_path)
        if global_step is not None:
            prefix = f"{prefix}-{int(global_step)}"
        arrays = self._arrays(state_or_session)
        graph_bytes = self._graph_bytes() if write_meta_graph else b""

        def commit() -> None:
            if write_meta_graph:
                atomic.write_file(f"{prefix}.{meta_graph_suffix}", graph_bytes)
            if write_state:
                self._record(prefix, latest_filename, meta_graph_suffix)

        self._writer.save(prefix, arrays, on_commit=commit)
        return prefix

    def _graph_bytes(self) -> bytes:
        proto = meta_graph.export_meta_graph(graph=self.graph, saver_def=self.as_saver_def())
        return proto.SerializeToString(deterministic=True)

    def _record(self, prefix: str, latest_filename: str | None, suffix: str) -> None:
        dropped = self._retention.record(prefix, made=time.time())
        kept = self._retention.last_checkpoints_with_time or [(prefix, time.time())]
        state.update_checkpoint_state(
            os.path.dirname(prefix) or ".",
            prefix,
            all_model_checkpoint_paths=[path for path, _ in kept],
            latest_filename=latest_filename,
            all_model_checkpoint_timestamps=[made for _, made in kept],
            save_relative_paths=True,
        )
        if dropped is not None:
            state.remove_checkpoint(dropped, suffix)

    def _arrays(self, state_or_session: Any) -> dict[str, Any]:
        target = self.graph
        if isinstance(state_or_session, Session):
            arrays = dict(state_or_session.values)
            missing = [name for name in target.variable_names if name not in arrays]
            if missing:
                raise errors.CheckpointError(
                    errors.list_offenders("these variables have no value to save:", missing)
                )
            return arrays
        return {**target.constants, **program.physical_values(target, state_or_session)}

    def as_saver_def(self) -> meta_graph_pb2.SaverDef:
        """Returns the SaverDef by which TensorFlow saves and restores; adds its nodes at need."""
        if self.graph.saver_def is None:
            saver_def = _add_saver_nodes(self.graph)
            saver_def.max_to_keep = self._max_to_keep
            saver_def.keep_checkpoint_every_n_hours = self._keep_hours
            self.graph.saver_def = saver_def
        return self.graph.saver_def

    def export_meta_graph(
        self,
        filename: str | os.PathLike[str] | None = None,
        collection_list: Sequence[str] | None = None,
        as_text: bool = False,
        export_scope: str | None = None,
        clear_devices: bool = False,
        clear_extraneous_savers: bool = False,
        strip_default_attrs: bool = False,
        save_debug_info: bool = False,
    ) -> meta_graph_pb2.MetaGraphDef:
        """Returns the graph with this saver as a MetaGraphDef; see `export_meta_graph`."""
        return meta_graph.export_meta_graph(
            filename,
            saver_def=self.as_saver_def(),
            collection_list=collection_list,
            as_text=as_text,
            graph=self.graph,
            export_scope=export_scope,
            clear_devices=clear_devices,
            clear_extraneous_savers=clear_extraneous_savers,
            strip_default_attrs=strip_default_attrs,
            save_debug_info=save_debug_info,
        )

    # --- restoring

    def restore(
        self,
        session: Session,
        save_path: str | os.PathLike[str],
        *,
        shardings: Any = None,
    ) -> None:
        """Gives the session's variables the values of a checkpoint.

        Args:
            session: whose variables they are.
            save_path: what `save` returned.
            shardings: see `load`; by default all is on one device.

        Raises:
            CheckpointError: there is no such checkpoint, or names, shapes or dtypes differ from
                the graph's; all differences are listed.
        """
        self.wait_until_finished()
        wanted = program.override_shardings(self.graph, shardings)
        session.values.update(restore_variables(self.graph, save_path, wanted))


def _check_latest_filename(latest_filename: str | None) -> None:
    if latest_filename and os.path.split(latest_filename)[0]:
        raise errors.CheckpointError("'latest_filename' must not contain path components")


def restore_variables(
    target: building.Graph,
    save_path: str | os.PathLike[str],
    shardings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the values of all variables of a graph from a checkpoint, as the graph holds them."""
    requests = {
        name: _request(target.variable(name), (shardings or {}).get(name))
        for name in target.variable_names
    }
    return restoring.restore(save_path, requests)


def _request(variable: Variable, sharding: Any = None) -> restoring.Request:
    info = variable.save_slice_info
    part = slices.parse_slice_spec(info.spec) if info is not None else None
    name = info.full_name if info is not None else variable.op_name
    return restoring.Request(name, variable.shape, variable.dtype, part, sharding)


def import_meta_graph(
    meta_graph_or_file: meta_graph.MetaGraphOrFile,
    clear_devices: bool = False,
    import_scope: str | None = None,
    **kwargs: Any,
) -> Saver:
    """Adds a MetaGraphDef to the default graph and returns a saver for its variables.

    Args:
        meta_graph_or_file: the MetaGraphDef, or the file that holds it.
        clear_devices: whether nodes lose their device.
        import_scope: a scope for all that is imported.
        **kwargs: input_map, unbound_inputs_col_name, restore_collections_predicate and
            return_elements, as in `meta_graph.import_scoped_meta_graph`.

    Raises:
        FormatError, UnsupportedOpError, GraphError: see `meta_graph.import_graph`.
    """
    target = building.get_default_graph()
    meta_graph.add_meta_graph(
        meta_graph_or_file,
        target,
        clear_devices=clear_devices,
        import_scope=import_scope,
        **kwargs,
    )
    return Saver(target)


def load(
    path: str | os.PathLike[str] | None,
    mesh: jax.sharding.Mesh | None = None,
    shardings: Any = None,
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

    Raises:
        ShardingError: the mesh does not divide the arrays; all such are listed.
        CheckpointError: there is no checkpoint, or it does not fit the graph.
        FormatError: the graph's file is missing, damaged, or of a newer version.
    """
    prefix = _find_prefix(path)
    meta_file = f"{prefix}.{_META_SUFFIX}"
    if not os.path.exists(meta_file) and not state.checkpoint_exists(prefix):
        raise errors.CheckpointError(f"no checkpoint at {prefix}; {_describe_neighbours(prefix)}")
    target = meta_graph.import_graph(meta_file)
    placement = Placement(mesh, program.override_shardings(target, shardings))
    wanted = program.variable_shardings(target, placement)
    physical = restore_variables(target, prefix, wanted)
    recorded = _recorded_names(target)
    logical = {}
    for name, value in physical.items():
        if name in recorded:
            logical[name] = program.logical_value(value, target.variable(name))
        else:
            target.constants[name] = np.asarray(value)
    return Program(target, logical, placement)


def _recorded_names(target: building.Graph) -> set[str]:
    return {leaf.name for tree in target.state_trees.values() for leaf in trees.leaves(tree)}


def _describe_neighbours(prefix: str) -> str:
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
    if name.endswith(f".{_META_SUFFIX}"):
        return name.removesuffix(f".{_META_SUFFIX}")
    if os.path.isfile(os.path.join(name, "checkpoint")):
        latest = state.latest_checkpoint(name)
        if latest is None:
            raise errors.CheckpointError(f"{name}: its 'checkpoint' file names no checkpoint")
        return latest
    return name.rstrip(os.sep)


# --- TensorFlow's own way to save and restore -------------------------------------------------


def _add_saver_nodes(target: building.Graph) -> meta_graph_pb2.SaverDef:
    """Adds the nodes that TensorFlow runs to save and restore; returns how they are called."""
    with target.name_scope("save") as scope:
        variables = sorted(map(target.variable, target.variable_names), key=lambda v: v.op_name)
        filename = _add_filename(target)
        lists = [v.op_name for v in variables], ["" for _ in variables]
        if variables:
            _add_save(target, filename, lists, variables)
        (saved,) = target.add_node(
            "Identity",
            [filename],
            {},
            "control_dependency",
            control_inputs=[f"{scope}SaveV2"] if variables else [],
        )
        assigned = _add_restore(target, filename, lists, variables) if variables else []
        target.add_node("NoOp", [], {}, "restore_all", control_inputs=assigned)
        return meta_graph_pb2.SaverDef(
            filename_tensor_name=f"{filename.ref}:0",
            save_tensor_name=f"{saved.ref}:0",
            restore_op_name=f"{scope}restore_all",
            version=meta_graph_pb2.SaverDef.V2,
        )


def _string_constant(target: building.Graph, strings: list[str], name: str) -> Edge:
    array = np.array([text.encode() for text in strings], dtype=object)
    return _constant(target, array, name)


def _constant(target: building.Graph, array: Any, name: str) -> Edge:
    proto = values.tensor_to_proto(array)
    (edge,) = target.add_node("Const", [], {"dtype": proto.dtype, "value": proto}, name)
    return edge


def _add_filename(target: building.Graph) -> Edge:
    edge = _constant(target, np.array(b"model", dtype=object), "filename/input")
    for name in ("filename", "Const"):
        (edge,) = target.add_node("PlaceholderWithDefault", [edge], {"shape": ()}, name)
    return edge


def _add_save(
    target: building.Graph, filename: Edge, lists: tuple[list[str], list[str]], variables: Any
) -> None:
    names, slices = (
        _string_constant(target, strings, f"SaveV2/{name}")
        for name, strings in zip(_STRING_LIST_NAMES, lists, strict=True)
    )
    tensors = [signature_nodes.read_edge(variable) for variable in variables]
    target.add_node("SaveV2", [filename, names, slices, tensors], {}, "SaveV2")


def _add_restore(
    target: building.Graph, filename: Edge, lists: tuple[list[str], list[str]], variables: Any
) -> list[str]:
    names, slices = (
        _string_constant(target, strings, f"RestoreV2/{name}")
        for name, strings in zip(_STRING_LIST_NAMES, lists, strict=True)
    )
    restored = target.add_node(
        "RestoreV2",
        [filename, names, slices],
        {"dtypes": [variable.dtype for variable in variables]},
        "RestoreV2",
    )
    assigned = []
    for variable, edge in zip(variables, restored, strict=True):
        (value,) = target.add_node("Identity", [edge], {}, "Identity")
        handle = Edge(variable.op_name, dtypes.RESOURCE)
        target.add_node("AssignVariableOp", [handle, value], {}, "AssignVariableOp")
        assigned.append(target.last_node_name)
    return assigned
