"""Named arrays to TensorFlow's V2 checkpoints, which ``tf.train.Saver`` restores.

The files are those that TensorFlow would write, byte for byte: all arrays one after the other in
``PREFIX.data-00000-of-00001``, and in ``PREFIX.index`` where each lies. The index comes last, so a
kill leaves no index without its data. Where a bundle of that name is there already, the new one
has another number of files, of which one may be empty: so no file of the old one is touched
before the new index takes the place of the old.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Final

import jax
import numpy as np

from jaxmeta import dtypes, errors
from jaxmeta._proto import checkpoint_pb2
from jaxmeta.checkpoint import atomic, background, coding, crc32c, slices, table
from jaxmeta.checkpoint.atomic import StrPath
from jaxmeta.checkpoint.background import OnCommit
from jaxmeta.checkpoint.slices import Array, Extents, Partitioned
from jaxmeta.checkpoint.tensor_bundle_reader import (
    BUNDLE_VERSION,
    HEADER_KEY,
    BundleReader,
    data_filename,
    lengths_bytes,
)

_INTEGERS_BELOW_A_BYTE: Final = ("int4", "int2")
_WRITE_BYTES: Final = 64 << 20


class TensorBundleWriter(background.BackgroundWriter):
    """Saves named arrays to TensorBundles, one at a time; see `BackgroundWriter`.

    Args:
        blocking: save in the foreground.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/model-1"
        >>> with TensorBundleWriter() as writer:
        ...     writer.save(path, {"params/w": jax.numpy.ones(3)})
        >>> BundleReader(path).read("params/w")
        array([1., 1., 1.], dtype=float32)
    """

    def save(
        self,
        directory: StrPath,
        arrays: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        on_commit: OnCommit | None = None,
    ) -> None:
        """Saves arrays below a prefix, in place of the bundle that may be there.

        Args:
            directory: the prefix of the files; its parents are made if missing.
            arrays: by name, or such for each file of data. A `Partitioned` holds blocks of one;
                those of the same name in several files are blocks of the same. Typed PRNG keys are
                stored as their uint32 key data.
            on_commit: called once, in the background, as soon as the index is in place.

        Raises:
            CheckpointError: arrays cannot be stored (all are named), or this writer is closed.
            Exception: whatever the save before this one met in the background.
        """
        self._begin(directory)
        prefix = os.path.abspath(directory)
        files = [arrays] if isinstance(arrays, Mapping) else list(arrays)
        _check_arrays(prefix, files)
        os.makedirs(os.path.dirname(prefix), exist_ok=True)
        host_files = [_to_host(file) for file in files]
        self._start(prefix, functools.partial(_commit, prefix, host_files, on_commit))


def _check_arrays(prefix: str, files: Sequence[Mapping[str, Any]]) -> None:
    offenders = [
        f"{name!r}: {reason}"
        for file in files
        for name, value in file.items()
        for part in _parts(value)
        if (reason := _why_not_storable(name, part)) is not None
    ]
    if offenders:
        headline = f"cannot save {prefix}: {len(offenders)} arrays cannot be stored"
        raise errors.CheckpointError(errors.list_offenders(headline, offenders))


def _parts(value: Any) -> list[Any]:
    return [part for _, part in value.parts] if isinstance(value, Partitioned) else [value]


def _why_not_storable(name: Any, array: Any) -> str | None:
    if not isinstance(name, str) or not name or name.startswith("\0"):
        return "the name is not a string, is empty, or begins with a zero"
    if isinstance(array, jax.core.Tracer):
        return "is traced; save outside of jit"
    if isinstance(array, jax.Array):
        if array.is_deleted():
            return "is deleted; it was donated to a jitted function, save what that returned"
        if not array.is_fully_addressable:
            return "spans several processes; save such arrays in the Orbax format"
        if _is_key(array):
            return None
    elif not isinstance(array, np.ndarray | np.generic):
        return f"is a {type(array).__name__}, not an array"
    try:
        number = dtypes.dtype_to_number(array.dtype)
    except errors.AttrError:
        return f"dtype {array.dtype} has no DataType"
    if number == dtypes.STRING:
        others = {type(item).__name__ for item in np.asarray(array).ravel().tolist()}
        others -= {"str", "bytes"}
        if others:
            return f"holds {', '.join(sorted(others))} beside strings"
    return None


def _is_key(array: Any) -> bool:
    return bool(jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key))


def _to_host(file: Mapping[str, Any]) -> dict[str, list[tuple[Extents | None, Array, Any]]]:
    """Returns, by name, what is stored: the block or None, its array, and the whole's shape."""
    for value in file.values():
        for part in _parts(value):
            if isinstance(part, jax.Array) and not _is_key(part):
                part.copy_to_host_async()  # all at once, so that the transfers overlap
    stored: dict[str, list[tuple[Extents | None, Array, Any]]] = {}
    for name, value in file.items():
        if isinstance(value, Partitioned):
            stored[name] = [
                (extents, _host_array(part), value.shape) for extents, part in value.parts
            ]
        else:
            array = _host_array(value)
            stored[name] = [(None, array, array.shape)]
    return stored


def _host_array(value: Any) -> Array:
    if isinstance(value, jax.Array):
        # On a CPU this is a view. JAX does not reuse a donated buffer that has a view.
        return np.asarray(jax.random.key_data(value) if _is_key(value) else value)
    if value.dtype.kind in "OSU":
        return np.array(value, dtype=object)
    return np.array(value, dtype=value.dtype.newbyteorder("="), order="C")


# --- files -------------------------------------------------------------------------------------


def _commit(
    prefix: str,
    files: Sequence[Mapping[str, list[tuple[Extents | None, Array, Any]]]],
    on_commit: OnCommit | None,
) -> None:
    shards = _free_number_of_shards(prefix, max(1, len(files)))
    paths = [data_filename(prefix, shard, shards) for shard in range(shards)]
    entries: dict[bytes, checkpoint_pb2.BundleEntryProto] = {}
    for shard, path in enumerate(paths):
        with atomic.new_file(path) as opened:
            if shard < len(files):
                _write_shard(opened, shard, files[shard], entries)
    header = checkpoint_pb2.BundleHeaderProto(num_shards=shards)
    header.version.producer = BUNDLE_VERSION
    index = [(HEADER_KEY, header.SerializeToString())]
    index += [(key, entries[key].SerializeToString()) for key in sorted(entries)]
    atomic.write_file(f"{prefix}.index", table.write_table(index))
    for stale in set(glob.glob(glob.escape(prefix) + ".data-?????-of-?????")) - set(paths):
        with contextlib.suppress(OSError):
            os.unlink(stale)
    if on_commit is not None:
        on_commit()
    with contextlib.suppress(OSError):
        atomic.remove_leftovers(os.path.dirname(prefix))


def _free_number_of_shards(prefix: str, wanted: int) -> int:
    try:
        taken = BundleReader(prefix).shards
    except errors.CheckpointError:
        return wanted  # there is none, or none that can be read
    return wanted + 1 if taken == wanted else wanted


def _write_shard(
    opened: BinaryIO,
    shard: int,
    file: Mapping[str, list[tuple[Extents | None, Array, Any]]],
    entries: dict[bytes, checkpoint_pb2.BundleEntryProto],
) -> None:
    offset = 0
    for name in sorted(file):
        for extents, array, shape in file[name]:
            key = name.encode()
            number = dtypes.dtype_to_number(array.dtype)
            if extents is not None and not slices.is_whole(extents, shape):
                whole = entries.setdefault(key, _entry(number, shape))
                whole.slices.append(slices.extents_to_proto(extents))
                key = coding.slice_key(name, extents)
            entry = entries[key] = _entry(number, array.shape)
            entry.shard_id, entry.offset = shard, offset
            entry.size, entry.crc32c = _write_array(opened, array)
            offset += entry.size


def _entry(number: int, shape: Sequence[int]) -> checkpoint_pb2.BundleEntryProto:
    entry = checkpoint_pb2.BundleEntryProto(dtype=number)  # type: ignore[arg-type]
    entry.shape.SetInParent()
    for size in shape:
        entry.shape.dim.add(size=size)
    return entry


def _write_array(opened: BinaryIO, array: Array) -> tuple[int, int]:
    """Writes an array; returns how many bytes it took, and their masked checksum."""
    if array.dtype == np.dtype(object):
        return _write_strings(opened, array)
    if array.dtype.name in _INTEGERS_BELOW_A_BYTE:
        array = array.astype(np.int8)
    content = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    for start in range(0, len(content), _WRITE_BYTES):
        opened.write(content[start : start + _WRITE_BYTES])
    return len(content), crc32c.masked_crc32c(content)


def _write_strings(opened: BinaryIO, array: Array) -> tuple[int, int]:
    texts = list(_texts(array))
    lengths = [len(text) for text in texts]
    checksum = crc32c.masked_crc32c(lengths_bytes(lengths)).to_bytes(4, "little")
    head = b"".join(map(coding.write_varint, lengths)) + checksum
    content = b"".join(texts)
    opened.write(head + content)
    crc = crc32c.masked_crc32c(lengths_bytes(lengths) + checksum + content)
    return len(head) + len(content), crc


def _texts(array: Array) -> Iterator[bytes]:
    for item in array.ravel().tolist():
        yield item.encode() if isinstance(item, str) else bytes(item)
