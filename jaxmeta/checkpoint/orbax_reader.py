"""Reading named arrays out of an Orbax directory, ours or any other, straight to their devices."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import jax
import numpy as np

from jaxmeta import errors
from jaxmeta.checkpoint import atomic, batches, layout
from jaxmeta.checkpoint.atomic import StrPath
from jaxmeta.checkpoint.stored import refuse_misfits

if TYPE_CHECKING:
    import tensorstore as ts

Index: TypeAlias = tuple[slice, ...]
_T = TypeVar("_T")

_DAMAGE_ADVICE: Final = "Restore an older checkpoint, or a copy of this one."


@dataclasses.dataclass(frozen=True, slots=True)
class _StoredArray:
    """What the index of a directory says about an array."""

    driver: str
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk_shape: tuple[int, ...]
    key_impl: str | None


def read_specs(directory: StrPath) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shape and dtype of every array in a directory; reads no data.

    A typed PRNG key counts as its uint32 key data.

    Raises:
        CheckpointError: no whole checkpoint is there, or its index is damaged.
    """

    def read(place: str) -> dict[str, jax.ShapeDtypeStruct]:
        _, stored = _read_index(place)
        return {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in stored.items()
        }

    return _retry_if_replaced(directory, read)


def restore(directory: StrPath, specs: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns the arrays that are asked for, each on the devices that its spec names.

    Args:
        directory: written by ``CheckpointWriter`` or by plain Orbax.
        specs: ``jax.ShapeDtypeStruct`` by name, with a sharding or without; without, the array is
            on the default device. A dtype of typed PRNG keys gives keys. 64-bit dtypes stay so,
            also where ``jax_enable_x64`` is off.

    Raises:
        CheckpointError: no whole checkpoint is there; names, shapes or dtypes differ (all are
            listed, before any data is read); or arrays are damaged (likewise).
    """

    def read(place: str) -> dict[str, jax.Array]:
        source, stored = _read_index(place)
        _check_specs(place, specs, stored)
        return _read_arrays(place, source, {name: stored[name] for name in specs}, specs)

    return _retry_if_replaced(directory, read)


def _retry_if_replaced(directory: StrPath, read: Callable[[str], _T]) -> _T:
    """Reads again where another process replaced the directory in the meantime."""
    while True:
        place = atomic.find_directory(os.path.abspath(directory))
        before = _identity(place)
        try:
            return read(place)
        except errors.CheckpointError:
            if before == _identity(place):
                raise


def _identity(directory: str) -> tuple[int, int] | None:
    try:
        status = os.stat(directory)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _read_index(directory: str) -> tuple[dict[str, Any], dict[str, _StoredArray]]:
    """Returns the arguments by which to open arrays, and what there is."""
    import tensorstore as ts

    if not layout.is_orbax_directory(directory):
        raise errors.CheckpointError(_why_no_checkpoint(directory))
    has_index = os.path.isfile(os.path.join(directory, layout.MANIFEST_FILE))
    kvstore = layout.index_spec(directory) if has_index else layout.files_spec(directory)
    context = ts.Context(layout.CONTEXT)
    try:
        store = ts.KvStore.open(kvstore, context=context).result()
        reading = {key.decode(): store.read(key) for key in store.list().result() if _is_array(key)}
        described = {key: json.loads(read.result().value) for key, read in reading.items()}
        if not (has_index or described):
            raise FileNotFoundError(f"{layout.MANIFEST_FILE} is missing")
        _check_version(directory, store.read(layout.FORMAT_KEY).result().value)
        return {"kvstore": kvstore, "context": context}, _stored_arrays(directory, described)
    except errors.CheckpointError:
        raise
    except Exception as error:
        raise errors.CheckpointError(
            f"the index of checkpoint {directory} is damaged: {error}\n{_DAMAGE_ADVICE}"
        ) from error


def _is_array(key: bytes) -> bool:
    return key.endswith((b"/zarr.json", b"/.zarray"))


def _check_version(directory: str, marker: bytes) -> None:
    version = json.loads(marker)["format_version"] if marker else layout.FORMAT_VERSION
    if version > layout.FORMAT_VERSION:
        raise errors.CheckpointError(
            f"checkpoint {directory} has format {version}, and this jaxmeta reads up to "
            f"{layout.FORMAT_VERSION}: update jaxmeta, or restore it with plain Orbax"
        )


def _why_no_checkpoint(directory: str) -> str:
    if not os.path.lexists(directory):
        if os.path.isfile(directory + ".index"):
            return f"{directory} is the prefix of a TensorFlow checkpoint, not an Orbax directory"
        parent = os.path.dirname(directory)
        found = sorted(os.listdir(parent)) if os.path.isdir(parent) else []
        close = difflib.get_close_matches(os.path.basename(directory), found)
        return f"no checkpoint at {directory}" + (f"; close: {', '.join(close)}" if close else "")
    if not os.path.isdir(directory):
        return f"{directory} is a file, not an Orbax directory"
    with os.scandir(directory) as entries:
        inner = [entry.path for entry in entries if layout.is_orbax_directory(entry.path)]
    if inner:
        return f"{directory} is no Orbax checkpoint of arrays; these in it are: {', '.join(inner)}"
    return (
        f"{directory} is no whole Orbax checkpoint: it has neither {layout.TREE_FILE} nor "
        f"{layout.MANIFEST_FILE}, so its save did not finish; restore an older one"
    )


def _stored_arrays(directory: str, described: Mapping[str, Any]) -> dict[str, _StoredArray]:
    """Returns the arrays by name, from the Zarr metadata by key."""
    facts = {key: zarr.get("attributes", {}).get("jaxmeta", {}) for key, zarr in described.items()}
    names = {key.rpartition("/")[0]: fact.get("name") for key, fact in facts.items()}
    if None in names.values():  # written by plain Orbax, which keeps names in a file
        with open(os.path.join(directory, layout.TREE_FILE), "rb") as opened:
            known = layout.names_by_key(json.load(opened))
        names = {key: known[key] for key in names if key in known}
    stored = {}
    for path, zarr in described.items():
        key, _, file = path.rpartition("/")
        if key in names:
            stored[names[key]] = _stored_array(key, file == "zarr.json", zarr, facts[path])
    return stored


def _stored_array(
    key: str, is_zarr3: bool, zarr: Mapping[str, Any], facts: Mapping[str, str]
) -> _StoredArray:
    if is_zarr3:
        chunk_shape = zarr["chunk_grid"]["configuration"]["chunk_shape"]
        dtype = facts.get("dtype") or zarr["data_type"]
    else:
        chunk_shape, dtype = zarr["chunks"], zarr["dtype"]
    return _StoredArray(
        driver="zarr3" if is_zarr3 else "zarr",
        key=key,
        shape=tuple(zarr["shape"]),
        dtype=layout.dtype_from_name(dtype).newbyteorder("="),
        chunk_shape=tuple(chunk_shape),
        key_impl=facts.get("key_impl"),
    )


# --- restoring: does the checkpoint fit? -------------------------------------------------------


def _check_specs(
    directory: str, specs: Mapping[str, Any], stored: Mapping[str, _StoredArray]
) -> None:
    refuse_misfits(
        directory,
        {name: (spec.shape, spec.dtype) for name, spec in specs.items()},
        {
            name: _shape_and_dtype(stored[name], specs[name].dtype) if name in specs else ((), None)
            for name in stored
        },
        "read_specs lists it",
    )


def _shape_and_dtype(array: _StoredArray, asked: Any) -> tuple[tuple[int, ...], Any]:
    """Returns how the array would come back: as keys where keys are asked for and stored."""
    if array.key_impl is not None and jax.dtypes.issubdtype(asked, jax.dtypes.prng_key):
        key = jax.eval_shape(functools.partial(jax.random.key, impl=array.key_impl), 0)
        return array.shape[:-1], key.dtype
    return array.shape, array.dtype


# --- restoring: the data -----------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class _Reading:
    """An array on its way from the disk: the futures of its distinct pieces, by index."""

    name: str
    stored: _StoredArray
    spec: Any
    pieces: dict[Any, Any]

    def value(self, index: Index | None = None) -> np.ndarray[Any, Any]:
        value: np.ndarray[Any, Any] = self.pieces[_index_key(index)].result()
        return value if value.dtype == self.stored.dtype else value.view(self.stored.dtype)


def _read_arrays(
    directory: str,
    source: Mapping[str, Any],
    stored: Mapping[str, _StoredArray],
    specs: Mapping[str, Any],
) -> dict[str, jax.Array]:
    restored: dict[str, jax.Array] = {}
    damaged: list[str] = []
    ahead: list[_Reading] = []
    sizes = {name: math.prod(a.shape) * a.dtype.itemsize for name, a in stored.items()}
    for names in batches.in_batches(sizes):
        batch = _start_reading(source, {name: stored[name] for name in names}, specs, damaged)
        restored.update(_to_devices(ahead, damaged))
        ahead = batch
    restored.update(_to_devices(ahead, damaged))
    if damaged:
        headline = f"checkpoint {directory} is damaged: {len(damaged)} arrays cannot be read"
        raise errors.CheckpointError(errors.list_offenders(headline, damaged, _DAMAGE_ADVICE))
    return {name: restored[name] for name in specs}


def _start_reading(
    source: Mapping[str, Any],
    stored: Mapping[str, _StoredArray],
    specs: Mapping[str, Any],
    damaged: list[str],
) -> list[_Reading]:
    import tensorstore as ts

    kvstore, context = source["kvstore"], source["context"]
    opening = []
    for name, array in stored.items():
        if any(
            size > max(1, dim) for size, dim in zip(array.chunk_shape, array.shape, strict=True)
        ):
            damaged.append(f"{name!r}: chunks {array.chunk_shape} exceed shape {array.shape}")
            continue
        spec = {
            "driver": array.driver,
            "kvstore": {**kvstore, "path": kvstore["path"] + array.key + "/"},
            "fill_missing_data_reads": False,
            "recheck_cached_metadata": False,
            "recheck_cached_data": False,
        }
        opening.append((name, array, ts.open(spec, open=True, read=True, context=context)))
    readings = []
    for name, array, opened in opening:
        try:
            pieces = _start_pieces(opened.result(), array, specs[name])
        except Exception as error:
            damaged.append(f"{name!r}: {_first_line(error)}")
        else:
            readings.append(_Reading(name, array, specs[name], pieces))
    return readings


def _start_pieces(opened: ts.TensorStore, array: _StoredArray, spec: Any) -> dict[Any, Any]:
    if _is_key(spec) or not _is_spread(spec):
        return {None: opened.read()}
    indices = spec.sharding.addressable_devices_indices_map(array.shape).values()
    return {key: opened[index].read() for key, index in {_index_key(i): i for i in indices}.items()}


def _is_spread(spec: Any) -> bool:
    sharding = getattr(spec, "sharding", None)
    return sharding is not None and len(sharding.device_set) > 1


def _index_key(index: Index | None) -> Any:
    # Python 3.11 cannot hash slices.
    return index if index is None else tuple((part.start, part.stop) for part in index)


def _to_devices(readings: Iterable[_Reading], damaged: list[str]) -> dict[str, jax.Array]:
    restored: dict[str, jax.Array] = {}
    whole: dict[str, np.ndarray[Any, Any]] = {}
    specs = {reading.name: reading.spec for reading in readings}
    with jax.enable_x64(True):  # else JAX makes 32 bits of 64
        for reading in readings:
            try:
                if None in reading.pieces:
                    whole[reading.name] = reading.value()
                else:
                    restored[reading.name] = jax.make_array_from_callback(
                        reading.stored.shape, reading.spec.sharding, reading.value
                    )
            except Exception as error:
                damaged.append(f"{reading.name!r}: {_first_line(error)}")
        restored.update(
            _put({name: v for name, v in whole.items() if not _is_key(specs[name])}, specs)
        )
    for reading in readings:
        if reading.name in whole and _is_key(reading.spec):
            data = jax.numpy.asarray(whole[reading.name])
            keys = jax.random.wrap_key_data(data, impl=reading.stored.key_impl)
            restored[reading.name] = jax.device_put(keys, getattr(reading.spec, "sharding", None))
    return restored


def _put(
    values: Mapping[str, np.ndarray[Any, Any]], specs: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Puts whole arrays on their devices, in two calls: one for each array takes much longer."""
    shardings = {name: getattr(specs[name], "sharding", None) for name in values}
    free = [name for name in values if shardings[name] is None]
    bound = [name for name in values if shardings[name] is not None]
    arrays = [
        *jax.device_put([values[name] for name in free]),
        *jax.device_put([values[name] for name in bound], [shardings[name] for name in bound]),
    ]
    return dict(zip([*free, *bound], arrays, strict=True))


def _is_key(spec: Any) -> bool:
    return bool(jax.dtypes.issubdtype(spec.dtype, jax.dtypes.prng_key))


def _first_line(error: Exception) -> str:
    return (str(error) or repr(error)).partition("\n")[0]
