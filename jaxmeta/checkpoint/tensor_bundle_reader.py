"""TensorFlow's V2 checkpoints: ``PREFIX.index`` says where in ``PREFIX.data-*`` a tensor lies."""

from __future__ import annotations

import math
import os
import struct
from typing import Any, Final

import numpy as np
from google.protobuf import message

from jaxmeta import errors
from jaxmeta._proto import checkpoint_pb2
from jaxmeta.checkpoint import coding, crc32c, slices, table
from jaxmeta.checkpoint.atomic import StrPath
from jaxmeta.checkpoint.slices import Array, Extents
from jaxmeta.checkpoint.stored import StoredTensor, StoredTensors

HEADER_KEY: Final = b""
BUNDLE_VERSION: Final = 1

_ADVICE: Final = "restore an older checkpoint, or a copy of this one"
# Integers of fewer than eight bits, one a byte.
_NARROW: Final = ("int4", "uint4", "int2", "uint2")


def data_filename(prefix: str, shard: int, shards: int) -> str:
    """Returns the name of a file of data.

    Example:
        >>> data_filename("model", 0, 1)
        'model.data-00000-of-00001'
    """
    return f"{prefix}.data-{shard:05d}-of-{shards:05d}"


class BundleReader(StoredTensors):
    """Reads a TensorBundle; every size and checksum is checked.

    Raises:
        CheckpointError: there is no such checkpoint, or its index is damaged.
    """

    def __init__(self, prefix: StrPath) -> None:
        self.place = os.fspath(prefix)
        index = table.read_table(f"{self.place}.index")
        self.shards = self._read_header(index)
        self._entries: dict[bytes, checkpoint_pb2.BundleEntryProto] = {}
        for key, value in index.items():
            if key != HEADER_KEY:
                self._entries[key] = self._parse(key, value)
        used = {entry.shard_id for entry in self._entries.values()}
        self._total_bytes = sum(map(self._file_size, used))
        # A key that begins with zero is a part's; what it is a part of lists it.
        self.tensors = {
            self._decode(key): self._stored_tensor(key, entry)
            for key, entry in self._entries.items()
            if not key.startswith(b"\0")
        }

    def _read_header(self, index: dict[bytes, memoryview]) -> int:
        header = checkpoint_pb2.BundleHeaderProto()
        try:
            header.ParseFromString(bytes(index[HEADER_KEY]))
        except (KeyError, message.DecodeError):
            raise self._damaged("its index has no header") from None
        if header.endianness != checkpoint_pb2.BundleHeaderProto.LITTLE:
            raise errors.CheckpointError(
                f"checkpoint {self.place} was written on a big-endian machine; only little-endian "
                "ones can be read"
            )
        if header.version.min_consumer > BUNDLE_VERSION:
            raise errors.CheckpointError(
                f"checkpoint {self.place} needs a reader of version {header.version.min_consumer}; "
                f"this one is {BUNDLE_VERSION}. Upgrade jaxmeta."
            )
        if header.num_shards < 1:
            raise self._damaged(f"its index claims {header.num_shards} files of data")
        return header.num_shards

    def _damaged(self, why: str) -> errors.CheckpointError:
        return errors.CheckpointError(f"checkpoint {self.place} is damaged: {why}; {_ADVICE}")

    def _parse(self, key: bytes, value: memoryview) -> checkpoint_pb2.BundleEntryProto:
        try:
            return checkpoint_pb2.BundleEntryProto.FromString(bytes(value))
        except message.DecodeError:
            raise self._damaged(f"the entry of {key!r} cannot be parsed") from None

    def _decode(self, key: bytes) -> str:
        try:
            return key.decode()
        except UnicodeDecodeError:
            raise self._damaged(f"the name {key!r} is not UTF-8") from None

    def _file_size(self, shard: int) -> int:
        try:
            return os.path.getsize(data_filename(self.place, shard, self.shards))
        except OSError:
            return 0  # reported where something in it is asked for

    def _stored_tensor(self, key: bytes, entry: checkpoint_pb2.BundleEntryProto) -> StoredTensor:
        shape = tuple(dim.size for dim in entry.shape.dim)
        if entry.shape.unknown_rank or any(size < 0 for size in shape):
            raise self._damaged(f"the shape of {key!r} is {shape}")
        try:
            parts = tuple(
                slices.resolve(slices.extents_from_proto(part), shape) for part in entry.slices
            )
        except errors.CheckpointError as error:
            raise self._damaged(f"{key!r}: {error}") from None
        return StoredTensor(entry.dtype, shape, parts)

    def read(self, name: str, extents: Extents | None = None) -> Array:
        """Returns a tensor, or a block of it; see `StoredTensors.read`."""
        key, tensor = name.encode(), self.tensors[name]
        entry = self._entries[key]
        if not entry.slices:
            whole = self._read_entry(name, entry, tensor.shape)
            return whole if extents is None else whole[slices.index_of(extents)]
        self.dtype(name)
        # Each element is stored once, so no tensor is larger than the files.
        if math.prod(tensor.shape) * tensor.dtype.itemsize > self._total_bytes + 1:
            raise self._damaged(f"{name!r} of shape {tensor.shape} is larger than its files")
        return self._read_assembled(name, extents, lambda number: self._read_part(name, number))

    def _read_part(self, name: str, number: int) -> Array:
        tensor, entry = self.tensors[name], self._entries[name.encode()]
        extents = tensor.parts[number]
        # The key has the extents as they were written, with whole dimensions as (0, -1).
        key = coding.slice_key(name, slices.extents_from_proto(entry.slices[number]))
        part = self._entries.get(key) or self._entries.get(coding.slice_key(name, extents))
        if part is None:
            raise self._damaged(f"the part {extents} of {name!r} is missing")
        if part.dtype != entry.dtype:
            raise self._damaged(f"the part {extents} of {name!r} has another dtype")
        return self._read_entry(name, part, slices.shape_of(extents))

    def _read_entry(
        self, name: str, entry: checkpoint_pb2.BundleEntryProto, shape: tuple[int, ...]
    ) -> Array:
        dtype = self.dtype(name)
        count = math.prod(shape)
        is_text = dtype == np.dtype(object)
        if not is_text and entry.size != count * dtype.itemsize:
            raise self._damaged(
                f"{name!r} of {dtype}{list(shape)} needs {count * dtype.itemsize} bytes and has "
                f"{entry.size}"
            )
        content = self._read_bytes(name, entry)
        if is_text:
            return self._parse_strings(name, content, count, entry.crc32c).reshape(shape)
        if crc32c.masked_crc32c(content) != entry.crc32c:
            raise self._damaged(f"the data of {name!r} has another checksum than the index says")
        return _from_bytes(content, dtype).reshape(shape)

    def _read_bytes(self, name: str, entry: checkpoint_pb2.BundleEntryProto) -> memoryview:
        if not 0 <= entry.shard_id < self.shards:
            raise self._damaged(f"{name!r} lies in file {entry.shard_id} of {self.shards}")
        path = data_filename(self.place, entry.shard_id, self.shards)
        try:
            with open(path, "rb", buffering=0) as file:
                if min(entry.offset, entry.size) < 0 or (
                    entry.offset + entry.size > os.fstat(file.fileno()).st_size
                ):
                    raise self._damaged(
                        f"{name!r} takes bytes {entry.offset} to {entry.offset + entry.size} of "
                        f"{path}, which is shorter: it is truncated"
                    )
                file.seek(entry.offset)
                content = memoryview(np.empty(entry.size, np.uint8).data)
                done = 0
                while done < entry.size and (got := file.readinto(content[done:])):
                    done += got
        except OSError as error:
            raise errors.CheckpointError(
                f"checkpoint {self.place}: {name!r} cannot be read: {error}"
            ) from error
        if done != entry.size:
            raise self._damaged(f"{path} ended while {name!r} was read")
        return content

    def _parse_strings(self, name: str, content: memoryview, count: int, expected: int) -> Array:
        """Returns strings: their lengths, a checksum of these, then all their bytes."""
        if count > len(content):  # a length takes a byte at least
            raise self._damaged(f"{name!r} of {count} strings has {len(content)} bytes")
        if not len(content):
            return np.empty(0, object)
        lengths, position = [], 0
        try:
            for _ in range(count):
                length, position = coding.read_varint(content, position)
                lengths.append(length)
        except errors.CheckpointError as error:
            raise self._damaged(f"{name!r}: {error}") from None
        if position + 4 + sum(lengths) != len(content):
            raise self._damaged(f"the strings of {name!r} do not fill their bytes")
        if strings_checksum(lengths, content[position:]) != expected:
            raise self._damaged(f"the data of {name!r} has another checksum than the index says")
        result = np.empty(count, object)
        position += 4
        for number, length in enumerate(lengths):
            result[number] = bytes(content[position : position + length])
            position += length
        return result


def lengths_bytes(lengths: list[int]) -> bytes:
    """Returns the lengths of strings as the checksum takes them: four bytes, or eight."""
    return b"".join(struct.pack("<I" if length < 1 << 32 else "<Q", length) for length in lengths)


def strings_checksum(lengths: list[int], rest: bytes | memoryview) -> int:
    """Returns the masked checksum of strings, of which the rest is all behind their lengths."""
    return crc32c.masked_crc32c(lengths_bytes(lengths) + bytes(rest))


def _from_bytes(content: memoryview, dtype: np.dtype[Any]) -> Array:
    stored = np.frombuffer(content, np.uint8)
    if dtype == np.bool_:
        return np.not_equal(stored, 0)
    if dtype.name in _NARROW:  # what is above their bits is not part of the number
        return stored.astype(np.int8).astype(dtype)
    value: Array = stored.view(dtype)
    return value
