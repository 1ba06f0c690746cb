"""Tables: kernels that run on the host, on the tables that a session holds.

A table's node gives the table itself; ops of TensorFlow's first years and their V2 differ only in
the type of that handle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxmeta import dtypes, errors
from jaxmeta.execution.table_resources import DenseTable, StaticTable, Table
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._shared_resources import shared_resource


def _types(key_dtype: int, value_dtype: int) -> tuple[Any, Any]:
    return dtypes.dtype_from_number(key_dtype), dtypes.dtype_from_number(value_dtype)


@kernel("HashTable", "HashTableV2", is_host=True)
def hash_table(
    state: Any,
    *,
    key_dtype: int,
    value_dtype: int,
    container: bytes,
    shared_name: bytes,
    node_name: str,
) -> Table:
    def make() -> Table:
        return StaticTable(node_name, *_types(key_dtype, value_dtype))

    return shared_resource("table", state, node_name, shared_name, container, make)


@kernel("MutableHashTable", "MutableHashTableV2", is_host=True)
def mutable_hash_table(
    state: Any,
    *,
    key_dtype: int,
    value_dtype: int,
    container: bytes,
    shared_name: bytes,
    node_name: str,
) -> Table:
    def make() -> Table:
        return Table(node_name, *_types(key_dtype, value_dtype))

    return shared_resource("table", state, node_name, shared_name, container, make)


@kernel("MutableHashTableOfTensors", "MutableHashTableOfTensorsV2", is_host=True)
def mutable_hash_table_of_tensors(
    state: Any,
    *,
    key_dtype: int,
    value_dtype: int,
    value_shape: Sequence[int],
    container: bytes,
    shared_name: bytes,
    node_name: str,
) -> Table:
    def make() -> Table:
        return Table(node_name, *_types(key_dtype, value_dtype), value_shape)

    return shared_resource("table", state, node_name, shared_name, container, make)


@kernel("MutableDenseHashTable", "MutableDenseHashTableV2", is_host=True)
def mutable_dense_hash_table(
    state: Any,
    empty_key: Any,
    *deleted_key: Any,
    key_dtype: int,
    value_dtype: int,
    value_shape: Sequence[int],
    container: bytes,
    shared_name: bytes,
    node_name: str,
) -> Table:
    make = _dense_maker(node_name, key_dtype, value_dtype, value_shape, empty_key, deleted_key)
    return shared_resource("table", state, node_name, shared_name, container, make)


def _dense_maker(
    name: str,
    key_dtype: int,
    value_dtype: int,
    value_shape: Sequence[int],
    empty_key: Any,
    deleted_key: Sequence[Any],
) -> Callable[[], Table]:
    reserved = list(zip(("empty_key", "deleted_key"), (empty_key, *deleted_key), strict=False))
    types = _types(key_dtype, value_dtype)
    return lambda: DenseTable(name, *types, value_shape, np.shape(empty_key), reserved=reserved)


# --- tables without a name, one a run ------------------------------------------------------------


@kernel("AnonymousHashTable", is_host=True)
def anonymous_hash_table(*, key_dtype: int, value_dtype: int, node_name: str) -> Table:
    return StaticTable(node_name, *_types(key_dtype, value_dtype))


@kernel("AnonymousMutableHashTable", is_host=True)
def anonymous_mutable_hash_table(*, key_dtype: int, value_dtype: int, node_name: str) -> Table:
    return Table(node_name, *_types(key_dtype, value_dtype))


@kernel("AnonymousMutableHashTableOfTensors", is_host=True)
def anonymous_mutable_hash_table_of_tensors(
    *, key_dtype: int, value_dtype: int, value_shape: Sequence[int], node_name: str
) -> Table:
    return Table(node_name, *_types(key_dtype, value_dtype), value_shape)


@kernel("AnonymousMutableDenseHashTable", is_host=True)
def anonymous_mutable_dense_hash_table(
    empty_key: Any,
    deleted_key: Any,
    *,
    key_dtype: int,
    value_dtype: int,
    value_shape: Sequence[int],
    node_name: str,
) -> Table:
    return _dense_maker(node_name, key_dtype, value_dtype, value_shape, empty_key, [deleted_key])()


# --- what is done with them ----------------------------------------------------------------------


@kernel("LookupTableFind", "LookupTableFindV2", is_host=True)
def lookup_table_find(table_handle: Table, keys: Any, default_value: Any) -> Any:
    return table_handle.find(keys, default_value)


@kernel("LookupTableInsert", "LookupTableInsertV2", is_host=True)
def lookup_table_insert(table_handle: Table, keys: Any, values: Any) -> tuple[()]:
    table_handle.insert(keys, values)
    return ()


@kernel("LookupTableRemoveV2", is_host=True)
def lookup_table_remove(table_handle: Table, keys: Any) -> tuple[()]:
    table_handle.remove(keys)
    return ()


@kernel("LookupTableImport", "LookupTableImportV2", is_host=True)
def lookup_table_import(table_handle: Table, keys: Any, values: Any) -> tuple[()]:
    table_handle.replace(keys, values)
    return ()


@kernel("LookupTableExport", "LookupTableExportV2", is_host=True)
def lookup_table_export(table_handle: Table) -> list[Any]:
    return list(table_handle.export())


@kernel("LookupTableSize", "LookupTableSizeV2", is_host=True)
def lookup_table_size(table_handle: Table) -> Any:
    return np.asarray(table_handle.size, np.int64)


@kernel("InitializeTable", "InitializeTableV2", is_host=True)
def initialize_table(table_handle: Table, keys: Any, values: Any) -> tuple[()]:
    _static(table_handle).initialize(keys, values)
    return ()


def _static(table: Table) -> StaticTable:
    if not isinstance(table, StaticTable):
        raise errors.InvalidArgumentError(f"table {table.name!r} is not one to be initialized")
    return table


# --- from a file ---------------------------------------------------------------------------------

_WHOLE_LINE = -2
_LINE_NUMBER = -1


@kernel("InitializeTableFromTextFile", "InitializeTableFromTextFileV2", is_host=True)
def initialize_table_from_text_file(
    state: Any,
    table_handle: Table,
    filename: Any,
    *,
    key_index: int,
    value_index: int,
    vocab_size: int,
    delimiter: bytes,
    offset: int,
) -> tuple[()]:
    table = _static(table_handle)
    content = state.resources.files.read(filename)
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    lines = [line.removesuffix(b"\r") for line in lines]
    if vocab_size >= 0:
        if len(lines) < vocab_size:
            raise errors.InvalidArgumentError(
                f"Invalid vocab_size in {filename}: expected {vocab_size} but got {len(lines)}"
            )
        lines = lines[:vocab_size]
    columns = [
        _column(lines, index, delimiter, offset, dtype)
        for index, dtype in ((key_index, table.key_dtype), (value_index, table.value_dtype))
    ]
    table.initialize(*columns)
    return ()


def _column(lines: Sequence[bytes], index: int, delimiter: bytes, offset: int, dtype: Any) -> Any:
    """Returns one of the columns of a file of lines, as an array."""
    if index == _LINE_NUMBER:
        return (np.arange(len(lines)) + offset).astype(dtype)
    if index == _WHOLE_LINE:
        items = list(lines)
    else:
        rows = [line.split(delimiter) for line in lines]
        short = [number for number, row in enumerate(rows) if len(row) <= index]
        if short:
            raise errors.InvalidArgumentError(
                f"Invalid number of columns in line {short[0]} ({lines[short[0]]!r}): expected "
                f"at least {index + 1}"
            )
        items = [row[index] for row in rows]
    try:
        if dtype == object:
            column = np.empty(len(items), object)
            column[:] = items
            return column
        return np.array([(int if dtype.kind in "iu" else float)(item) for item in items], dtype)
    except (ValueError, OverflowError) as error:
        raise errors.InvalidArgumentError(f"a line of the file is not valid: {error}") from None
