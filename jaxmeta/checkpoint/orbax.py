"""Named arrays to and from an Orbax directory.

What ``CheckpointWriter`` writes is an ordinary Orbax checkpoint: plain Orbax restores it, as the
nested dict that ``layout`` describes, with no jaxmeta. It is written with TensorStore, as by Orbax
itself, but in one transaction, for Orbax spends about a millisecond a leaf
(``benchmarks/checkpoint.py``). Every chunk carries its CRC-32C, so damage is found when it is read,
also by plain Orbax. Arrays that span several processes are saved by Orbax's own machinery.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import jax
import numpy as np

from jaxmeta import errors
from jaxmeta.checkpoint import atomic, background, layout
from jaxmeta.checkpoint.atomic import StrPath
from jaxmeta.checkpoint.background import OnCommit
from jaxmeta.checkpoint.orbax_reader import read_specs as read_specs
from jaxmeta.checkpoint.orbax_reader import restore as restore

Index: TypeAlias = tuple[slice, ...]

_SHARED_SUFFIX: Final = ".jaxmeta-shared"
_BARRIER_TIMEOUT_MS: Final = 20 * 60 * 1000
_DEVICE_FILES: Final = ("_sharding",)  # what Orbax notes of the devices that saved
# Chunks are checked and copied by all cores at once, each in the cache of one; 1 MiB was fastest.
_CHUNK_BYTES: Final = 1 << 20
_MAX_CHUNKS: Final = 4096


class CheckpointWriter(background.BackgroundWriter):
    """Saves named arrays to Orbax directories, one at a time; see `BackgroundWriter`.

    In a program of several processes all of them call it alike, on a file system that they share,
    and close it before they exit.

    Args:
        blocking: save in the foreground.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/model-1"
        >>> with CheckpointWriter() as writer:
        ...     writer.save(path, {"params/w": jax.numpy.ones(3)})
        >>> read_specs(path)
        {'params/w': ShapeDtypeStruct(shape=(3,), dtype=float32)}
    """

    def save(
        self,
        directory: StrPath,
        arrays: Mapping[str, jax.Array | np.ndarray[Any, Any]],
        *,
        on_commit: OnCommit | None = None,
    ) -> None:
        """Saves arrays to a directory, in place of the checkpoint that may be there.

        Args:
            directory: where to; its parents are made if missing.
            arrays: by name; typed PRNG keys are stored as their uint32 key data.
            on_commit: called once, in the background, as soon as the directory is in place; in a
                program of several processes, by the first one.

        Raises:
            CheckpointError: arrays cannot be stored (all are named), the place is taken by
                something that is no checkpoint, or this writer is closed.
            Exception: whatever the save before this one met in the background.
        """
        self._begin(directory)
        directory = os.path.abspath(directory)
        _check_arrays(directory, arrays)
        _check_place(directory)
        os.makedirs(os.path.dirname(directory), exist_ok=True)
        job: Callable[[], None]
        if jax.process_count() == 1 and all(_is_local(array) for array in arrays.values()):
            host_arrays = _to_host(arrays)
            new = atomic.NewDirectory(directory)
            job = functools.partial(_commit, new, host_arrays, on_commit)
        else:
            job = _start_shared_save(directory, arrays, on_commit)
            self._join_at_exit()
        self._start(directory, job)


# --- saving ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _HostArray:
    """An array on the host, whole or as the distinct shards of it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    pieces: list[tuple[Index | None, np.ndarray[Any, Any]]]
    key_impl: str | None


def _check_arrays(directory: str, arrays: Mapping[str, Any]) -> None:
    offenders = [
        f"{name!r}: {reason}"
        for name, array in arrays.items()
        if (reason := _why_not_storable(name, array)) is not None
    ]
    if offenders:
        headline = f"cannot save {directory}: {len(offenders)} arrays cannot be stored"
        raise errors.CheckpointError(errors.list_offenders(headline, offenders))


def _why_not_storable(name: Any, array: Any) -> str | None:
    if not isinstance(name, str) or not name.isprintable():
        return "the name is not a printable string"
    if isinstance(array, jax.core.Tracer):
        return "is traced; save outside of jit"
    if isinstance(array, jax.Array):
        if array.is_deleted():
            return "is deleted; it was donated to a jitted function, save what that returned"
        if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
            return None
    elif not isinstance(array, np.ndarray | np.generic):
        return f"is a {type(array).__name__}, not an array"
    if _stored_dtype(np.dtype(array.dtype)) is None:
        if array.dtype == object:
            return "strings have no form in Orbax; save in the format 'tensor_bundle'"
        return f"dtype {array.dtype} has no form in a checkpoint"
    return None


def _check_place(directory: str) -> None:
    is_free = not os.path.lexists(directory) or (
        os.path.isdir(directory)
        and (layout.is_orbax_directory(directory) or not os.listdir(directory))
    )
    if not is_free:
        raise errors.CheckpointError(
            f"cannot save {directory}: it exists and is no Orbax checkpoint; choose another name, "
            "or remove it"
        )


@functools.lru_cache(maxsize=128)
def _stored_dtype(dtype: np.dtype[Any]) -> np.dtype[Any] | None:
    """Returns the dtype itself, uint8 for bits that TensorStore has no type for, or None."""
    import tensorstore as ts

    if dtype.kind in "biufcV":  # V: the types of ml_dtypes
        with contextlib.suppress(ValueError):
            ts.dtype(dtype.name)
            return dtype
        with contextlib.suppress(TypeError):
            if dtype.itemsize == 1 and layout.dtype_from_name(dtype.name) == dtype:
                return np.dtype(np.uint8)
    return None


def _is_local(array: jax.Array | np.ndarray[Any, Any]) -> bool:
    return not isinstance(array, jax.Array) or array.is_fully_addressable


def _to_host(arrays: Mapping[str, Any]) -> dict[str, _HostArray]:
    impls = {name: _key_impl(array) for name, array in arrays.items()}
    values = {
        name: array if impls[name] is None else jax.random.key_data(array)
        for name, array in arrays.items()
    }
    for value in values.values():
        if isinstance(value, jax.Array):
            value.copy_to_host_async()  # all at once, so that the transfers overlap
    return {
        name: _HostArray(value.shape, np.dtype(value.dtype), _pieces(value), impls[name])
        for name, value in values.items()
    }


def _key_impl(array: Any) -> str | None:
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        return str(jax.random.key_impl(array))
    return None


def _pieces(value: Any) -> list[tuple[Index | None, np.ndarray[Any, Any]]]:
    if not isinstance(value, jax.Array):
        return [(None, np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))]
    # On a CPU these are views. JAX does not reuse a donated buffer that has a view.
    if value.is_fully_replicated:
        return [(None, np.asarray(value))]
    shards = value.addressable_shards
    return [(shard.index, np.asarray(shard.data)) for shard in shards if shard.replica_id == 0]


def _commit(
    new: atomic.NewDirectory, arrays: Mapping[str, _HostArray], on_commit: OnCommit | None
) -> None:
    paths = layout.tree_paths(arrays)
    with new:
        _write_arrays(new.path, {layout.array_key(paths[name]): name for name in arrays}, arrays)
        for file, content in layout.metadata_files(paths.values()).items():
            with open(os.path.join(new.path, file), "wb") as opened:
                opened.write(content)
    if on_commit is not None:
        on_commit()
    with contextlib.suppress(OSError):
        atomic.remove_leftovers(os.path.dirname(new.path))


def _write_arrays(
    directory: str, names: Mapping[str, str], arrays: Mapping[str, _HostArray]
) -> None:
    import tensorstore as ts

    # A transaction: one file and one index for all arrays, instead of one of each for every one.
    place: dict[str, Any] = {"context": ts.Context(layout.CONTEXT), "transaction": ts.Transaction()}
    store = ts.KvStore.open(layout.index_spec(directory, for_writing=True), **place).result()
    store[layout.FORMAT_KEY] = json.dumps({"format_version": layout.FORMAT_VERSION}).encode()
    opening = [
        (ts.open(_array_spec(directory, key, name, arrays[name]), create=True, **place), name)
        for key, name in names.items()
    ]
    writes = []
    for opened, name in opening:
        array = opened.result()
        for index, value in arrays[name].pieces:
            target = array if index is None else array[index]
            bits = value if value.dtype.name == array.dtype.name else value.view(np.uint8)
            writes.append(target.write(bits, can_reference_source_data_indefinitely=True))
    for write in writes:
        write.copy.result()  # what is not copied by then is not in the transaction
    place["transaction"].commit_async().result()


def _array_spec(directory: str, key: str, name: str, array: _HostArray) -> dict[str, Any]:
    stored = _stored_dtype(array.dtype)
    assert stored is not None
    facts = {"name": name}
    if stored != array.dtype:
        facts["dtype"] = array.dtype.name
    if array.key_impl is not None:
        facts["key_impl"] = array.key_impl
    chunk_shape = _chunk_shape(
        array.pieces[0][1].shape, stored.itemsize, is_shard=array.pieces[0][0] is not None
    )
    return {
        "driver": "zarr3",
        "dtype": stored.name,
        "kvstore": layout.index_spec(directory, for_writing=True, path=key + "/"),
        "store_data_equal_to_fill_value": True,  # else a missing chunk would read as zeros
        "metadata": {
            "shape": array.shape,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk_shape}},
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "crc32c"},
            ],
            "attributes": {"jaxmeta": facts},
        },
    }


def _chunk_shape(shape: Sequence[int], itemsize: int, *, is_shard: bool) -> list[int]:
    """Returns a shape of about `_CHUNK_BYTES`, cut along the first axes so as to be contiguous.

    Chunks of a shard divide it, so that no two shards write to one chunk.
    """
    chunk = [max(1, size) for size in shape]
    limit = max(_CHUNK_BYTES, math.prod(chunk) * itemsize // _MAX_CHUNKS)
    for axis, size in enumerate(chunk):
        parts = min(size, math.ceil(math.prod(chunk) * itemsize / limit))
        if parts <= 1:
            break
        if is_shard:
            parts = next((n for n in range(parts, min(8 * parts, size) + 1) if not size % n), 1)
        chunk[axis] = math.ceil(size / parts)
    return chunk


def _start_shared_save(
    directory: str, arrays: Mapping[str, Any], on_commit: OnCommit | None
) -> Callable[[], None]:
    """Begins to save arrays that span processes with Orbax; returns what completes it."""
    import concurrent.futures.thread  # noqa: F401  registers what it does at exit before us

    import orbax.checkpoint as ocp

    offenders = [
        f"{name!r}: dtype {array.dtype}"
        for name, array in arrays.items()
        if _key_impl(array) is None and _stored_dtype(np.dtype(array.dtype)) != array.dtype
    ]
    if offenders:
        headline = f"cannot save {directory} from several processes: dtypes that Orbax has not"
        raise errors.CheckpointError(errors.list_offenders(headline, offenders))
    tree: dict[str, Any] = {}
    for name, (*parents, last) in layout.tree_paths(arrays).items():
        array = arrays[name]
        level = functools.reduce(lambda node, part: node.setdefault(part, {}), parents, tree)
        value = array if _key_impl(array) is None else jax.random.key_data(array)
        # What each process has whole, Orbax takes as numpy arrays, of the first process.
        level[last] = np.asarray(value) if _is_local(value) else value
    path = directory + _SHARED_SUFFIX
    checkpointer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
    checkpointer.save(path, args=ocp.args.StandardSave(tree), force=True)

    def complete() -> None:
        checkpointer.close()
        if jax.process_index() == 0:
            _free_of_devices(path)
            atomic.put_in_place(path, directory)
            shutil.rmtree(path, ignore_errors=True)
            if on_commit is not None:
                on_commit()
        # Not a collective of the devices, which may be training meanwhile.
        wait = ocp.multihost.get_barrier_sync_fn()
        wait(key="jaxmeta:committed", timeout_ms=_BARRIER_TIMEOUT_MS)

    return complete


def _free_of_devices(path: str) -> None:
    """Has plain Orbax restore a directory as numpy arrays, on machines of other devices too."""
    file = os.path.join(path, layout.TREE_FILE)
    with open(file, "rb") as opened:
        tree = json.load(opened)
    for entry in tree["tree_metadata"].values():
        if entry["value_metadata"]["value_type"] == "jax.Array":
            entry["value_metadata"] = {"value_type": "np.ndarray", "skip_deserialize": False}
    with open(file, "w") as opened_anew:
        json.dump(tree, opened_anew)
    for name in _DEVICE_FILES:
        place = os.path.join(path, name)
        if os.path.isdir(place):
            shutil.rmtree(place)
        elif os.path.exists(place):
            os.unlink(place)
