"""Files and readers of files: kernels that run only where the session allows files.

A reader's node gives the reader itself; ops of TensorFlow's first years and their V2 differ only in
the type of that handle.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from jaxmeta import errors
from jaxmeta.execution import reader_resources
from jaxmeta.execution.queue_resources import Queue
from jaxmeta.execution.reader_resources import FileReader, Reader, WholeReader
from jaxmeta.ops._compression import decompress
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._shared_resources import shared_resource
from jaxmeta.ops._string_arrays import map_strings, scalar_string, string_array


@kernel("ReadFile", is_host=True)
def read_file(state: Any, filename: Any) -> Any:
    return map_strings(state.resources.files.read, filename)


@kernel("WriteFile", is_host=True)
def write_file(state: Any, filename: Any, contents: Any) -> tuple[()]:
    state.resources.files.write(filename, scalar_string(contents))
    return ()


@kernel("MatchingFiles", is_host=True)
def matching_files(state: Any, pattern: Any) -> Any:
    files = state.resources.files
    found = {path for item in np.ravel(pattern).tolist() for path in files.matching(item)}
    return string_array(sorted(found))


# --- readers -------------------------------------------------------------------------------------


@kernel("IdentityReader", "IdentityReaderV2", is_host=True)
def identity_reader(state: Any, *, container: bytes, shared_name: bytes, node_name: str) -> Reader:
    def make() -> Reader:
        return WholeReader(node_name, state.resources.files, is_identity=True)

    return shared_resource("reader", state, node_name, shared_name, container, make)


@kernel("WholeFileReader", "WholeFileReaderV2", is_host=True)
def whole_file_reader(
    state: Any, *, container: bytes, shared_name: bytes, node_name: str
) -> Reader:
    def make() -> Reader:
        return WholeReader(node_name, state.resources.files, is_identity=False)

    return shared_resource("reader", state, node_name, shared_name, container, make)


@kernel("TextLineReader", "TextLineReaderV2", is_host=True)
def text_line_reader(
    state: Any, *, skip_header_lines: int, container: bytes, shared_name: bytes, node_name: str
) -> Reader:
    def make() -> Reader:
        records = functools.partial(reader_resources.lines, skip=skip_header_lines)
        return FileReader(node_name, state.resources.files, records)

    return shared_resource("reader", state, node_name, shared_name, container, make)


@kernel("FixedLengthRecordReader", is_host=True)
def fixed_length_record_reader(
    state: Any,
    *,
    header_bytes: int,
    record_bytes: int,
    footer_bytes: int,
    hop_bytes: int,
    container: bytes,
    shared_name: bytes,
    node_name: str,
) -> Reader:
    return fixed_length_record_reader_v2(
        state,
        header_bytes=header_bytes,
        record_bytes=record_bytes,
        footer_bytes=footer_bytes,
        hop_bytes=hop_bytes,
        container=container,
        shared_name=shared_name,
        encoding=b"",
        node_name=node_name,
    )


@kernel("FixedLengthRecordReaderV2", is_host=True)
def fixed_length_record_reader_v2(
    state: Any,
    *,
    header_bytes: int,
    record_bytes: int,
    footer_bytes: int,
    hop_bytes: int,
    container: bytes,
    shared_name: bytes,
    encoding: bytes,
    node_name: str,
) -> Reader:
    if min(header_bytes, footer_bytes, hop_bytes) < 0 or record_bytes < 1:
        raise errors.InvalidArgumentError(
            f"{node_name}: sizes must not be negative, and record_bytes 1 or more"
        )

    def make() -> Reader:
        def records(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
            return reader_resources.fixed_records(
                _uncompressed(file, encoding), header_bytes, record_bytes, footer_bytes, hop_bytes
            )

        return FileReader(node_name, state.resources.files, records)

    return shared_resource("reader", state, node_name, shared_name, container, make)


@kernel("TFRecordReader", "TFRecordReaderV2", is_host=True)
def tf_record_reader(
    state: Any, *, compression_type: bytes, container: bytes, shared_name: bytes, node_name: str
) -> Reader:
    def make() -> Reader:
        return FileReader(
            node_name,
            state.resources.files,
            lambda file: reader_resources.tf_records(_uncompressed(file, compression_type)),
        )

    return shared_resource("reader", state, node_name, shared_name, container, make)


def _uncompressed(file: BinaryIO, kind: bytes) -> BinaryIO:
    return io.BytesIO(decompress(file.read(), kind)) if kind else file


# --- what is done with them ----------------------------------------------------------------------


@kernel("ReaderRead", "ReaderReadV2", is_host=True)
def reader_read(state: Any, reader_handle: Reader, queue_handle: Queue) -> list[Any]:
    record = reader_handle.read(queue_handle, state.waiting)
    return [string_array([part], ()) for part in record]


@kernel("ReaderReadUpTo", "ReaderReadUpToV2", is_host=True)
def reader_read_up_to(
    state: Any, reader_handle: Reader, queue_handle: Queue, num_records: Any
) -> list[Any]:
    records = reader_handle.read_up_to(queue_handle, int(num_records), state.waiting)
    return [string_array(list(parts)) for parts in zip(*records, strict=True)]


@kernel("ReaderNumRecordsProduced", "ReaderNumRecordsProducedV2", is_host=True)
def reader_num_records_produced(reader_handle: Reader) -> Any:
    return np.asarray(reader_handle.num_records_produced, np.int64)


@kernel("ReaderNumWorkUnitsCompleted", "ReaderNumWorkUnitsCompletedV2", is_host=True)
def reader_num_work_units_completed(reader_handle: Reader) -> Any:
    return np.asarray(reader_handle.num_work_units_completed, np.int64)


@kernel("ReaderReset", "ReaderResetV2", is_host=True)
def reader_reset(reader_handle: Reader) -> tuple[()]:
    reader_handle.reset()
    return ()


@kernel("ReaderSerializeState", "ReaderSerializeStateV2", is_host=True)
def reader_serialize_state(reader_handle: Reader) -> Any:
    return string_array([reader_handle.serialize_state()], ())


@kernel("ReaderRestoreState", "ReaderRestoreStateV2", is_host=True)
def reader_restore_state(reader_handle: Reader, state: Any) -> tuple[()]:
    reader_handle.restore_state(scalar_string(state))
    return ()
