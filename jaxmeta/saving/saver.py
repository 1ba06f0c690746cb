"""Saver: a graph and the values of its variables, to files and back."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from jaxmeta import errors, program, state_values
from jaxmeta._proto import meta_graph_pb2
from jaxmeta.checkpoint import atomic, retention, state
from jaxmeta.checkpoint.background import BackgroundWriter
from jaxmeta.checkpoint.orbax import CheckpointWriter
from jaxmeta.checkpoint.tensor_bundle import TensorBundleWriter
from jaxmeta.execution.session import Session
from jaxmeta.graphs import building
from jaxmeta.meta_graphs import meta_graph
from jaxmeta.saving import saveables, saved_tables, saved_values, saver_arguments, saver_nodes
from jaxmeta.saving.loading import META_SUFFIX, describe_neighbours
from jaxmeta.saving.loading import load as load
from jaxmeta.saving.loading import restore_variables as restore_variables
from jaxmeta.saving.saveables import Saveable
from jaxmeta.saving.saver_arguments import ORBAX, TENSOR_BUNDLE
from jaxmeta.saving.saver_nodes import SaverOptions

_NAME_FIELDS: Final = ("filename_tensor_name", "save_tensor_name", "restore_op_name")
_WRITERS: Final[dict[str, type[BackgroundWriter]]] = {
    ORBAX: CheckpointWriter,
    TENSOR_BUNDLE: TensorBundleWriter,
}


class Saver:
    """Saves a graph and its variables as ``model-N.meta``, ``model-N`` and ``checkpoint``.

    Saving runs in the background; `wait_until_finished`, the next save, the end of the process, and
    all of jaxmeta that reads a checkpoint or a ``.meta`` file wait for it. A process that is killed
    at any moment leaves the former checkpoint whole.

    The arguments up to ``filename`` are those of ``tf.train.Saver``.

    Args:
        var_list: which variables: a dict of names in the checkpoint to variables (or to lists of
            slices of one); or a list, set or tree of variables, under their own names. A graph
            stands for all its global variables, when it is first saved. None stands for those that
            the default graph has now.
        reshape: whether arrays of other shapes, with as many elements, may be restored.
        sharded: whether a TensorBundle has a file for each device of the graph's variables.
        max_to_keep: how many checkpoints stay; None or 0 keeps all.
        keep_checkpoint_every_n_hours: one checkpoint stays for each that many hours.
        name: a scope for the nodes by which TensorFlow saves; ``save`` by default.
        restore_sequentially: taken for TensorFlow's sake; all is restored at once.
        saver_def: of nodes that are in the graph already; they say what is saved.
        builder: must be None: there are no other ways to make the nodes.
        defer_build: whether the nodes are made by `build` only.
        allow_empty: whether there may be no variables; such a saver does nothing.
        write_version: ``SaverDef.V2`` writes TensorBundles.
        pad_step_number: whether the step takes eight digits at least in file names.
        save_relative_paths: whether the file ``checkpoint`` names its directory, so that it cannot
            be moved, or not (True).
        filename: what TensorFlow saves to where none is fed.
        graph: the graph, where ``var_list`` does not say it.
        asynchronous: whether `save` returns before the files are written.
        checkpoint_format: ``"orbax"`` or ``"tensor_bundle"``; the former by default.

    Raises:
        CheckpointTypeError: ``var_list`` holds other things than variables.
        CheckpointError: there are no variables, names come twice, or arguments contradict.

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
        var_list: Any = None,
        reshape: bool = False,
        sharded: bool = False,
        max_to_keep: int | None = 5,
        keep_checkpoint_every_n_hours: float = 10000.0,
        name: str | None = None,
        restore_sequentially: bool = False,
        saver_def: meta_graph_pb2.SaverDef | None = None,
        builder: None = None,
        defer_build: bool = False,
        allow_empty: bool = False,
        write_version: int | None = None,
        pad_step_number: bool = False,
        save_relative_paths: bool = False,
        filename: str | None = None,
        *,
        graph: building.Graph | None = None,
        asynchronous: bool = True,
        checkpoint_format: str | None = None,
    ) -> None:
        del restore_sequentially
        saver_arguments.check_arguments(var_list, graph, defer_build, builder, saver_def)
        self._is_whole_graph = isinstance(var_list, building.Graph)
        self._var_list = None if self._is_whole_graph else var_list
        self.graph = saver_arguments.graph_of(var_list, graph)
        self._format = saver_arguments.checkpoint_format(checkpoint_format, write_version)
        self._options = SaverOptions(sharded, reshape, name, filename)
        self._limits = max_to_keep or 0, keep_checkpoint_every_n_hours
        self._allow_empty = allow_empty
        self._pad_step_number = pad_step_number
        self._save_relative_paths = save_relative_paths
        self._saveables: list[Saveable] | None = None
        self._tables: list[saved_tables.SavedTable] = []
        self._saver_def = saver_def
        if saver_def is not None:
            self._adopt(saver_def, name)
        elif not (defer_build or self._is_whole_graph):
            self.build()
        self._retention = retention.Retention(*self._limits)
        self._writer = _WRITERS[self._format](blocking=not asynchronous)

    def _adopt(self, saver_def: meta_graph_pb2.SaverDef, scope: str | None) -> None:
        """Takes what is saved from nodes that are there."""
        adopted = meta_graph_pb2.SaverDef()
        adopted.CopyFrom(saver_def)
        for field in _NAME_FIELDS:
            found = getattr(saver_def, field)
            if not found and field != "filename_tensor_name":
                raise errors.CheckpointError(f"saver_def must specify the {field}: {saver_def}")
            if scope:
                setattr(adopted, field, f"{scope.rstrip('/')}/{found}")
        self._saver_def = adopted
        self._saveables = saver_nodes.read_saver_nodes(self.graph, adopted)
        self._tables = saved_tables.read_saved_tables(self.graph, adopted)
        self._limits = adopted.max_to_keep, adopted.keep_checkpoint_every_n_hours

    def build(self) -> None:
        """Adds the nodes by which TensorFlow saves and restores; does nothing the second time.

        Raises:
            CheckpointTypeError, CheckpointError: see `Saver`.
        """
        if self._saveables is not None:
            return
        variables = self._var_list
        if variables is None:
            variables = saveables.of_graph(self.graph)
        found = saveables.collect(variables, reshape=self._options.reshape)
        if not found and not self._allow_empty and not self._is_whole_graph:
            raise errors.CheckpointError(
                "No variables to save: the graph has none; add some first, or give allow_empty=True"
            )
        if found:
            self._saver_def = self._build_nodes(found)
        self._saveables = found

    def _build_nodes(self, found: list[Saveable]) -> meta_graph_pb2.SaverDef:
        is_plain = self._is_whole_graph and self._options == SaverOptions()
        there = self.graph.saver_def
        if is_plain and there is not None:
            known = saver_nodes.read_saver_nodes(self.graph, there)
            if sorted(map(_identity, known)) == sorted(map(_identity, found)):
                saver_def = meta_graph_pb2.SaverDef()
                saver_def.CopyFrom(there)
                saver_def.max_to_keep, saver_def.keep_checkpoint_every_n_hours = self._limits
                return saver_def
        saver_def = saver_nodes.add_saver_nodes(self.graph, found, self._options)
        saver_def.max_to_keep, saver_def.keep_checkpoint_every_n_hours = self._limits
        if there is None:
            self.graph.saver_def = saver_def
        return saver_def

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.wait_until_finished()

    def wait_until_finished(self) -> None:
        """Waits until the last save is on disk and the ``checkpoint`` file names it."""
        self._writer.wait_until_finished()

    # --- which checkpoints are kept

    @property
    def last_checkpoints(self) -> list[str]:
        """The checkpoints that are kept, oldest first; waits for the save under way."""
        self.wait_until_finished()
        return self._retention.last_checkpoints

    def set_last_checkpoints(self, last_checkpoints: Sequence[str]) -> None:
        """Replaces the list of kept checkpoints by some of unknown age."""
        self.wait_until_finished()
        self._retention.set_last_checkpoints(last_checkpoints)

    def set_last_checkpoints_with_time(
        self, last_checkpoints_with_time: Sequence[tuple[str, float]]
    ) -> None:
        """Replaces the list of kept checkpoints by some, each with when it was made."""
        self.wait_until_finished()
        self._retention.set_last_checkpoints_with_time(last_checkpoints_with_time)

    def recover_last_checkpoints(self, checkpoint_paths: Sequence[str]) -> None:
        """Replaces the list of kept checkpoints by those of some that are there, after a crash."""
        self.wait_until_finished()
        self._retention.recover_last_checkpoints(checkpoint_paths, _modified)

    # --- saving

    def save(
        self,
        sess: Any,
        save_path: str | os.PathLike[str],
        global_step: Any = None,
        latest_filename: str | None = None,
        meta_graph_suffix: str = META_SUFFIX,
        write_meta_graph: bool = True,
        write_state: bool = True,
    ) -> str | None:
        """Saves and returns the checkpoint's prefix, ``save_path-global_step``.

        Args:
            sess: a session, or the tree that `Graph.variables` was given, with new arrays. These
                may be donated as soon as this returns.
            save_path: the prefix of the files; its parents are made if missing.
            global_step: an int or a scalar array; or a variable, tensor or its name, of which the
                session, or for variables the state, has the value. It is appended to the prefix.
            latest_filename: of the state file; ``checkpoint`` by default.
            meta_graph_suffix: of the graph's file.
            write_meta_graph: whether to write the graph.
            write_state: whether to update the state file.

        Returns:
            The prefix. None for a saver that may be empty and is: only the graph is written.

        Raises:
            CheckpointTypeError: ``sess`` is neither.
            CheckpointError: the state's leaves, shapes or dtypes are not the graph's, or variables
                have no value.
            NotBuiltError: `build` was to be called first.
        """
        found = self._built_saveables()
        is_empty = not found and not self._is_whole_graph and not self._tables
        saver_arguments.check_holder(sess, self.graph)
        name = "checkpoint" if latest_filename is None else latest_filename
        prefix = os.fspath(save_path)
        is_extended = global_step is not None or self._options.sharded
        saver_arguments.check_latest_filename(name, prefix, is_extended=is_extended)
        values = self._values(sess)
        if global_step is not None:
            step = saver_arguments.step_number(global_step, sess, values)
            prefix = f"{prefix}-{step:08d}" if self._pad_step_number else f"{prefix}-{step}"
        graph_bytes = self._graph_bytes() if write_meta_graph else b""
        graph_file = state.meta_graph_filename(prefix, meta_graph_suffix)

        def commit() -> None:
            if not is_empty:
                state.remove_other_formats(prefix, is_bundle=self._format == TENSOR_BUNDLE)
            if write_meta_graph:
                atomic.write_file(graph_file, graph_bytes)
            if write_state and not is_empty:
                self._record(prefix, name, meta_graph_suffix)

        if is_empty:
            commit()
            return None
        self._writer.save(prefix, self._arrays(found, values, sess), on_commit=commit)
        return prefix

    def _arrays(self, found: Sequence[Saveable], values: Mapping[str, Any], sess: Any) -> Any:
        """Returns what the writer of the format takes: arrays by name, or a list of such files."""
        pairs = saved_values.values_to_save(found, values)
        tables = saved_tables.arrays_to_save(self._tables, sess)
        if self._format == TENSOR_BUNDLE:
            files = saved_values.bundle_files(pairs, self._options.sharded)
            return [*files, tables] if tables else files
        return {**saved_values.whole_arrays(pairs), **tables}

    def _built_saveables(self) -> list[Saveable]:
        if self._saveables is None and self._is_whole_graph:
            self.build()
        if self._saveables is None:
            raise errors.NotBuiltError(
                "`build()` should be called before save if defer_build==True"
            )
        if self._is_whole_graph:
            self._refuse_new_variables(self._saveables)
        return self._saveables

    def _refuse_new_variables(self, found: Sequence[Saveable]) -> None:
        known = {saveable.variable.op_name for saveable in found}
        new = [v.op_name for v in saveables.of_graph(self.graph) if v.op_name not in known]
        if new:
            raise errors.CheckpointError(
                errors.list_offenders(
                    "these variables were added to the graph after its saver was first used:",
                    new,
                    "Make a new Saver of the graph.",
                )
            )

    def _graph_bytes(self) -> bytes:
        return self.export_meta_graph().SerializeToString(deterministic=True)

    def _record(self, prefix: str, latest_filename: str, suffix: str) -> None:
        dropped = self._retention.record(prefix, made=time.time())
        kept = self._retention.last_checkpoints_with_time or [(prefix, time.time())]
        state.update_checkpoint_state(
            os.path.dirname(prefix) or ".",
            prefix,
            all_model_checkpoint_paths=[path for path, _ in kept],
            latest_filename=latest_filename,
            all_model_checkpoint_timestamps=[made for _, made in kept],
            save_relative_paths=self._save_relative_paths,
        )
        if dropped is not None:
            state.remove_checkpoint(dropped, suffix)

    def _values(self, sess: Any) -> Mapping[str, Any]:
        if isinstance(sess, Session):
            return sess.values
        return {**self.graph.constants, **state_values.physical_values(self.graph, sess)}

    # --- protos

    def as_saver_def(self) -> meta_graph_pb2.SaverDef | None:
        """Returns the SaverDef by which TensorFlow saves and restores; adds its nodes at need.

        None for a saver of no variables.
        """
        if self._is_whole_graph:
            self.build()
        return self._saver_def

    def to_proto(self, export_scope: str | None = None) -> meta_graph_pb2.SaverDef | None:
        """Returns the SaverDef, without a scope of its names; None if they are not all in it."""
        saver_def = self.as_saver_def()
        if saver_def is None or export_scope is None:
            return saver_def
        scope = export_scope.rstrip("/") + "/"
        stripped = meta_graph_pb2.SaverDef()
        stripped.CopyFrom(saver_def)
        for field in _NAME_FIELDS:
            name = getattr(saver_def, field)
            if not name.startswith(scope):
                return None
            setattr(stripped, field, name.removeprefix(scope))
        return stripped

    @staticmethod
    def from_proto(saver_def: meta_graph_pb2.SaverDef, import_scope: str | None = None) -> Saver:
        """Returns the saver of nodes of the default graph, which may be below a scope.

        Raises:
            GraphError, FormatError: they are not there, or not a saver's.
        """
        return Saver(saver_def=saver_def, name=import_scope)

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
        sess: Any,
        save_path: str | os.PathLike[str] | None,
        *,
        shardings: Any = None,
    ) -> Any:
        """Gives a session's variables the values of a checkpoint.

        Args:
            sess: the session; or a tree as `save` takes it, of arrays or `jax.ShapeDtypeStruct`.
            save_path: what `save` returned: an Orbax directory, a TensorBundle, or a V1
                checkpoint.
            shardings: see `load`; by default all is on one device.

        Returns:
            None, or the tree with the restored arrays; what the saver does not save stays.

        Raises:
            CheckpointTypeError: ``sess`` is neither.
            CheckpointError: there is no such checkpoint, or names, shapes or dtypes differ from
                the graph's; all differences are listed.
        """
        found = self._built_saveables()
        saver_arguments.check_holder(sess, self.graph)
        self.wait_until_finished()
        if not found and not self._tables:
            return None if isinstance(sess, Session) else sess
        if self._tables:
            saved_tables.restore(self._tables, sess, _check_checkpoint(save_path))
        wanted = program.override_shardings(self.graph, shardings)
        restored = saved_values.restore(found, _check_checkpoint(save_path), wanted)
        if isinstance(sess, Session):
            sess.values.adopt(restored)
            return None
        return saved_values.replace_values(self.graph, sess, restored)


def import_meta_graph(
    meta_graph_or_file: meta_graph.MetaGraphOrFile,
    clear_devices: bool = False,
    import_scope: str | None = None,
    **kwargs: Any,
) -> Saver | None:
    """Adds a MetaGraphDef to the default graph and returns a saver for its variables.

    Args:
        meta_graph_or_file: the MetaGraphDef, or the file that holds it.
        clear_devices: whether nodes lose their device.
        import_scope: a scope for all that is imported.
        **kwargs: input_map, unbound_inputs_col_name, restore_collections_predicate and
            return_elements, as in `meta_graph.import_scoped_meta_graph`.

    Returns:
        The saver of its ``saver_def``; where it has none, one of all the graph's variables, or
        None where there are no variables.

    Raises:
        FormatError, UnsupportedOpError, GraphError: see `meta_graph.import_graph`.
    """
    target = building.get_default_graph()
    imported = meta_graph.add_meta_graph(
        meta_graph_or_file,
        target,
        clear_devices=clear_devices,
        import_scope=import_scope,
        **kwargs,
    )
    if imported.saver_def is not None:
        return Saver(saver_def=imported.saver_def, graph=target)
    return Saver(target) if saveables.of_graph(target) else None


def _check_checkpoint(save_path: str | os.PathLike[str] | None) -> str:
    if save_path is None:
        raise errors.CheckpointError("Can't load save_path when it is None.")
    prefix = os.fspath(save_path)
    if not state.checkpoint_exists(prefix):
        raise errors.CheckpointError(
            f"The passed save_path is not a valid checkpoint: {prefix}; "
            f"{describe_neighbours(prefix)}"
        )
    return prefix


def _modified(prefix: str) -> float | None:
    return next(iter(state.get_checkpoint_mtimes([prefix])), None)


def _identity(saveable: Saveable) -> tuple[str, str, str, bool]:
    return saveable.name, saveable.variable.op_name, saveable.slice_spec, saveable.reshape
