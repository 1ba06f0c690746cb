"""Tables among what a saver's nodes save: their keys and values, under two names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from jaxmeta import errors, naming
from jaxmeta._proto import graph_pb2, meta_graph_pb2
from jaxmeta.checkpoint import reader
from jaxmeta.execution.session import Session
from jaxmeta.graphs import graph
from jaxmeta.saving import saver_nodes

_DENSE: Final = frozenset({"MutableDenseHashTable", "MutableDenseHashTableV2"})


@dataclasses.dataclass(frozen=True, slots=True)
class SavedTable:
    """A table under the names that it has in checkpoints.

    Attributes:
        table: the name of the table's node.
        names: of the keys and of the values in the checkpoint.
        importer: the node that fills the table.
        restored: the tensors that it takes.
        saved: the tensors that are saved.
        is_dense: whether it is one whose buckets TensorFlow saves.
    """

    table: str
    names: tuple[str, str]
    importer: str
    restored: tuple[str, str]
    saved: tuple[str, str]
    is_dense: bool


def read_saved_tables(
    target: graph.GraphBuilder, saver_def: meta_graph_pb2.SaverDef
) -> list[SavedTable]:
    """Returns the tables that the nodes of a saver restore, in their order.

    Raises:
        GraphError: a node is missing.
        FormatError: the nodes are not a saver's.
    """
    importers = list(saver_nodes.imports_of_tables(target, saver_def.restore_op_name))
    if not importers:
        return []
    saved = dict(_saved_tensors(target))
    return [_read(target, node, saved) for node in importers]


def _saved_tensors(target: graph.GraphBuilder) -> Iterator[tuple[str, str]]:
    """Yields the names in a checkpoint and the tensors that are saved under them."""
    for node in target.nodes.values():
        if node.op in saver_nodes.SAVES:
            names = saver_nodes.read_strings(target, node.input[1])
            data = [ref for ref in node.input if ref[0] != "^"][-len(names) :]
            yield from zip(names, data, strict=True)


def _read(target: graph.GraphBuilder, node: graph_pb2.NodeDef, saved: dict[str, str]) -> SavedTable:
    table = naming.parse_tensor_name(node.input[0]).node
    names = tuple(saver_nodes.restored_name(target, ref) for ref in node.input[1:3])
    missing = [name for name in names if name not in saved]
    if missing:
        raise errors.FormatError(f"{node.name!r} restores {missing}, which no node saves")
    return SavedTable(
        table,
        names,  # type: ignore[arg-type]
        node.name,
        tuple(map(_canonical, node.input[1:3])),  # type: ignore[arg-type]
        tuple(_canonical(saved[name]) for name in names),  # type: ignore[arg-type]
        target.node(table).op in _DENSE,
    )


def _canonical(ref: str) -> str:
    return ref if ":" in ref else f"{ref}:0"


def restore(tables: Sequence[SavedTable], sess: Any, prefix: str) -> None:
    """Fills a session's tables from a checkpoint.

    Raises:
        CheckpointError: the checkpoint has not all of them, or its data is damaged.
    """
    if not tables:
        return
    _check_session(tables, sess)
    stored = reader.open_checkpoint(prefix)
    missing = [name for table in tables for name in table.names if name not in stored.tensors]
    if missing:
        headline = f"checkpoint {stored.place} lacks what these tables need:"
        raise errors.CheckpointError(errors.list_offenders(headline, missing))
    for table in tables:
        values = [stored.read(name) for name in table.names]
        sess.run(table.importer, dict(zip(table.restored, values, strict=True)))


def arrays_to_save(tables: Sequence[SavedTable], sess: Any) -> dict[str, Any]:
    """Returns the keys and values of a session's tables, by their names in the checkpoint.

    Raises:
        CheckpointError: TensorFlow would not find its way in what is saved of some tables.
    """
    if not tables:
        return {}
    _check_session(tables, sess)
    dense = [table.table for table in tables if table.is_dense]
    if dense:
        headline = "of these tables TensorFlow saves the buckets, which are not known here:"
        advice = "Save with a Saver of the variables alone."
        raise errors.CheckpointError(errors.list_offenders(headline, dense, advice))
    arrays: dict[str, Any] = {}
    for table in tables:
        found = sess.run(list(table.saved))
        arrays.update(zip(table.names, map(np.asarray, found), strict=True))
    return arrays


def _check_session(tables: Sequence[SavedTable], sess: Any) -> None:
    if not isinstance(sess, Session):
        headline = "these tables are held by sessions, not by a state:"
        raise errors.CheckpointError(errors.list_offenders(headline, [t.table for t in tables]))
