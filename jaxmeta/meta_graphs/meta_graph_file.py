"""The files of MetaGraphDefs and GraphDefs; the log of the format's versions.

Both have a binary form and protobuf's text form.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any, Final

from google.protobuf import descriptor_pool, message, text_format

from jaxmeta import errors
from jaxmeta._proto import meta_graph_pb2
from jaxmeta.checkpoint import atomic, background
from jaxmeta.pausing import paused_gc

# Version 1, 2026-11: the first. Signatures are PartitionedCall nodes with `_jax_*` attrs; trees are
#   StructuredValues in object_graph_def.
FORMAT_VERSION: Final = 1

WRITER: Final = "jaxmeta"
# Any items stay bytes in the text, whatever messages other packages of this process define.
_EMPTY_POOL: Final = descriptor_pool.DescriptorPool()
_PROTOBUF_LIMIT_BYTES: Final = (1 << 31) - 1


def write_proto(proto: message.Message, filename: str | os.PathLike[str], as_text: bool) -> None:
    """Writes a message to a file, which appears whole or not at all; makes its directory.

    Raises:
        FormatError: the message is larger than a protobuf may be.
    """
    if proto.ByteSize() > _PROTOBUF_LIMIT_BYTES:
        raise errors.FormatError(
            f"{os.fspath(filename)}: the graph takes {proto.ByteSize()} bytes, a protobuf at "
            "most 2 GiB. Pass large arrays as arguments instead of closing over them."
        )
    if as_text:
        content = text_format.MessageToString(proto, descriptor_pool=_EMPTY_POOL).encode()
    else:
        content = proto.SerializeToString(deterministic=True)
    path = pathlib.Path(filename)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_file(path, content)


def read_meta_graph_file(filename: str | os.PathLike[str]) -> meta_graph_pb2.MetaGraphDef:
    """Returns the MetaGraphDef in a file, binary or text; waits for what this process saves.

    Raises:
        UnreadableFileError: the file is missing, empty, truncated or corrupt, or neither kind; a
            FormatError, and an OSError as in TensorFlow.
    """
    background.wait_for_saves()
    path = os.fspath(filename)
    try:
        content = pathlib.Path(path).read_bytes()
    except (FileNotFoundError, ValueError):  # ValueError: a null byte in the name
        raise errors.UnreadableFileError(f"{path}: there is no such file") from None
    except OSError as error:
        raise errors.UnreadableFileError(f"{path}: cannot be read: {error}") from error
    if not content:
        raise errors.UnreadableFileError(f"{path}: the file is empty")
    try:
        with paused_gc():
            return meta_graph_pb2.MetaGraphDef.FromString(content)
    except message.DecodeError as binary_error:
        return _parse_text(path, content, binary_error)


def _parse_text(path: str, content: bytes, binary_error: Exception) -> meta_graph_pb2.MetaGraphDef:
    hint = "it is truncated or corrupt, or no MetaGraphDef"
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise errors.UnreadableFileError(
            f"{path}: cannot be parsed ({binary_error}); {hint}"
        ) from None
    try:
        return text_format.Parse(text, meta_graph_pb2.MetaGraphDef(), descriptor_pool=_EMPTY_POOL)
    except (text_format.ParseError, RecursionError) as error:
        raise errors.UnreadableFileError(f"{path}: cannot be parsed: {error}; {hint}") from None


def is_ours(meta_graph: meta_graph_pb2.MetaGraphDef) -> bool:
    """Returns whether jaxmeta wrote it, or says so."""
    return meta_graph.meta_info_def.meta_graph_version.startswith(WRITER)


def check_format_version(source: str, meta_graph: meta_graph_pb2.MetaGraphDef) -> None:
    """Raises FormatError where the file is of a later jaxmeta, or was cut between two fields."""
    if not is_ours(meta_graph):
        return
    number = meta_graph.meta_info_def.meta_graph_version.removeprefix(WRITER).strip()
    if not (number.isascii() and number.isdigit()) or int(number) > FORMAT_VERSION:
        raise errors.FormatError(
            f"{source}: written in format {number} of jaxmeta; this version reads up to "
            f"{FORMAT_VERSION}. Upgrade jaxmeta."
        )
    if not meta_graph.HasField("object_graph_def"):
        raise errors.FormatError(f"{source}: the file is truncated: its last field is missing")


def write_graph(
    graph_or_graph_def: Any, logdir: str | os.PathLike[str], name: str, as_text: bool = True
) -> str:
    """Writes a GraphDef to a file, as text by default, and returns the file's path.

    Args:
        graph_or_graph_def: a graph, or a GraphDef or other message.
        logdir: the directory, which is made where it is missing.
        name: of the file.
        as_text: whether the file is in protobuf's text format.

    Raises:
        ArgumentTypeError: it is neither a graph nor a message; a TypeError.
        FormatError: it is larger than a protobuf may be.
    """
    proto = graph_or_graph_def
    if not isinstance(proto, message.Message):
        if not hasattr(proto, "as_graph_def"):
            raise errors.ArgumentTypeError(
                f"write_graph takes a Graph or a GraphDef, not {type(proto).__name__}"
            )
        proto = proto.as_graph_def()
    path = os.path.join(os.fspath(logdir), name)
    write_proto(proto, path, as_text)
    return path
