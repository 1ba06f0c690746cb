"""Sorted tables of keys and values in one file, as LevelDB has them: TensorFlow's container.

A file is blocks, then a block that lists them, then a footer of 48 bytes that says where the list
is. A block is entries, each without what its key shares with the one before, then the positions
at which keys are written whole; behind it stand a byte for how it is packed and a CRC.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from jaxmeta import errors
from jaxmeta.checkpoint import coding, crc32c, snappy
from jaxmeta.checkpoint.atomic import StrPath

MAGIC: Final = struct.pack("<Q", 0xDB4775248B80FB57)
FOOTER_BYTES: Final = 48

_TRAILER: Final = struct.Struct("<BI")
_PLAIN, _SNAPPY = 0, 1
# TensorFlow's own, so that the same table is the same bytes.
_BLOCK_BYTES: Final = 262144
_RESTART_INTERVAL: Final = 16


# --- reading -----------------------------------------------------------------------------------


def is_table(path: StrPath) -> bool:
    """Returns whether a file ends as a table does."""
    try:
        with open(path, "rb") as file:
            file.seek(-len(MAGIC), os.SEEK_END)
            return file.read() == MAGIC
    except OSError:
        return False


def read_table(path: StrPath) -> dict[bytes, memoryview]:
    """Returns the values of a table by key, in order.

    Raises:
        CheckpointError: the file is missing, truncated or damaged.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise errors.CheckpointError(f"{os.fspath(path)} cannot be read: {error}") from error
    try:
        return _parse(memoryview(data))
    except errors.CheckpointError as error:
        raise errors.CheckpointError(
            f"{os.fspath(path)} is damaged, or no table of tensors: {error}; restore an older "
            "checkpoint, or a copy of this one"
        ) from None


def _parse(data: memoryview) -> dict[bytes, memoryview]:
    if len(data) < FOOTER_BYTES:
        raise errors.CheckpointError(f"it has {len(data)} bytes, fewer than its footer")
    footer = data[-FOOTER_BYTES:]
    if footer[-len(MAGIC) :] != MAGIC:
        raise errors.CheckpointError("it does not end as a table does (bad magic number)")
    meta_handle, position = _read_handle(footer, 0)
    _read_block(data, meta_handle)  # which holds nothing, but damage is damage
    index_handle, _ = _read_handle(footer, position)
    table: dict[bytes, memoryview] = {}
    last = None
    for _, handle in _entries(_read_block(data, index_handle)):
        for key, value in _entries(_read_block(data, _read_handle(handle, 0)[0])):
            # With this, no two entries of the list can lead to the same block.
            if last is not None and key <= last:
                raise errors.CheckpointError(f"its keys are out of order at {key!r}")
            table[key] = value
            last = key
    return table


def _read_handle(data: memoryview, position: int) -> tuple[tuple[int, int], int]:
    offset, position = coding.read_varint(data, position)
    size, position = coding.read_varint(data, position)
    return (offset, size), position


def _read_block(data: memoryview, handle: tuple[int, int]) -> memoryview:
    offset, size = handle
    end = offset + size
    if end + _TRAILER.size > len(data) - FOOTER_BYTES:
        raise errors.CheckpointError(f"a block at {offset} of {size} bytes is not in it")
    packing, crc = _TRAILER.unpack(data[end : end + _TRAILER.size])
    if crc32c.masked_crc32c(data[offset : end + 1]) != crc:
        raise errors.CheckpointError(f"the block at {offset} has another checksum than it says")
    if packing == _PLAIN:
        return data[offset:end]
    if packing == _SNAPPY:
        return memoryview(snappy.decompress(data[offset:end]))
    raise errors.CheckpointError(f"the block at {offset} is packed in an unknown way, {packing}")


def _entries(block: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    if len(block) < 4:
        raise errors.CheckpointError("a block is too short")
    (restarts,) = struct.unpack("<I", block[-4:])
    end = len(block) - 4 * (restarts + 1)
    if end < 0:
        raise errors.CheckpointError(f"a block of {len(block)} bytes claims {restarts} restarts")
    position, key = 0, b""
    while position < end:
        shared, position = coding.read_varint(block, position)
        unshared, position = coding.read_varint(block, position)
        length, position = coding.read_varint(block, position)
        if shared > len(key) or position + unshared + length > end:
            raise errors.CheckpointError("an entry does not fit its block")
        key = key[:shared] + bytes(block[position : position + unshared])
        position += unshared
        yield key, block[position : position + length]
        position += length


# --- writing -----------------------------------------------------------------------------------


def write_table(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Returns a table, uncompressed as TensorFlow writes it.

    Args:
        entries: keys and values, the keys ascending.
    """
    result = bytearray()
    block, listed = _Block(_RESTART_INTERVAL), _Block(1)
    pending: bytes | None = None  # where the block lies that the list has yet to name
    for key, value in entries:
        if pending is not None:
            listed.add(_separator(block.last_key, key), pending)
            block, pending = _Block(_RESTART_INTERVAL), None
        block.add(key, value)
        if block.size >= _BLOCK_BYTES:
            pending = _append_block(result, block)
    if pending is None and block.last_key is not None:
        pending = _append_block(result, block)
    meta = _append_block(result, _Block(_RESTART_INTERVAL))
    if pending is not None:
        listed.add(_successor(block.last_key or b""), pending)
    footer = meta + _append_block(result, listed)
    return bytes(result + footer.ljust(FOOTER_BYTES - len(MAGIC), b"\0") + MAGIC)


class _Block:
    """A block that grows by entries, of which every so many write their key whole."""

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._data = bytearray()
        self._restarts = [0]
        self._since_restart = 0
        self.last_key: bytes | None = None

    @property
    def size(self) -> int:
        return len(self._data) + 4 * len(self._restarts) + 4

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self._since_restart == self._interval:
            self._restarts.append(len(self._data))
            self._since_restart = 0
        elif self.last_key is not None:
            shared = coding.shared_length(self.last_key, key)
        for number in (shared, len(key) - shared, len(value)):
            self._data += coding.write_varint(number)
        self._data += key[shared:] + value
        self._since_restart += 1
        self.last_key = key

    def finish(self) -> bytes:
        count = len(self._restarts)
        return bytes(self._data) + struct.pack(f"<{count + 1}I", *self._restarts, count)


def _append_block(result: bytearray, block: _Block) -> bytes:
    content = block.finish()
    handle = coding.write_varint(len(result)) + coding.write_varint(len(content))
    packed = content + bytes([_PLAIN])
    result += packed + struct.pack("<I", crc32c.masked_crc32c(packed))
    return handle


def _separator(before: bytes | None, after: bytes) -> bytes:
    """Returns a short key that is not below one and is below the other."""
    before = before or b""
    shared = coding.shared_length(before, after)
    if shared < min(len(before), len(after)):
        byte = before[shared]
        if byte < 0xFF and byte + 1 < after[shared]:
            return before[:shared] + bytes([byte + 1])
    return before


def _successor(key: bytes) -> bytes:
    """Returns a short key that is not below one."""
    for position, byte in enumerate(key):
        if byte != 0xFF:
            return key[:position] + bytes([byte + 1])
    return key
