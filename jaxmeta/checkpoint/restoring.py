"""Arrays out of a checkpoint of any format: whole or in part, renamed or reshaped."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxmeta import errors
from jaxmeta.checkpoint import batches, orbax_reader, reader, slices, stored
from jaxmeta.checkpoint.atomic import StrPath
from jaxmeta.checkpoint.slices import Array, SliceSpec
from jaxmeta.checkpoint.stored import StoredTensors

_STRINGS = np.dtype(object)


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """An array that is wanted.

    Attributes:
        name: in the checkpoint.
        shape, dtype: of the array.
        part: where it is a block of what the checkpoint has under the name, which one.
        sharding: where it should lie; the default device where None.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    part: SliceSpec | None = None
    sharding: Any = None

    @property
    def full_shape(self) -> tuple[int, ...]:
        """The shape of what the checkpoint should have."""
        return self.part.full_shape if self.part is not None else self.shape


def restore(
    prefix: StrPath, requests: Mapping[str, Request], *, reshape: bool = False
) -> dict[str, Any]:
    """Returns the arrays that are wanted, by the keys of the requests.

    Args:
        prefix: an Orbax directory, a TensorBundle, or a V1 checkpoint.
        requests: what is wanted. 64-bit dtypes stay so, also where ``jax_enable_x64`` is off;
            strings come as numpy arrays of bytes.
        reshape: whether an array of another shape and as many elements fits too.

    Raises:
        CheckpointError: there is no checkpoint; names, shapes or dtypes differ (all are listed,
            before any data is read); or data is damaged (likewise).
    """
    if not requests:
        reader.open_checkpoint(prefix)
        return {}
    if reader.is_orbax(prefix):
        return _restore_orbax(prefix, requests, reshape)
    tensors = reader.open_checkpoint(prefix)
    _check(tensors, requests, reshape)
    restored: dict[str, Any] = {}
    damaged: list[str] = []
    sizes = {
        key: math.prod(request.shape) * request.dtype.itemsize for key, request in requests.items()
    }
    for keys in batches.in_batches(sizes):
        values = _read(tensors, {key: requests[key] for key in keys}, damaged)
        restored.update(_to_devices(values, requests))
    if damaged:
        headline = f"checkpoint {tensors.place} is damaged: {len(damaged)} arrays cannot be read"
        raise errors.CheckpointError(errors.list_offenders(headline, damaged))
    return restored


def _is_same_size(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    return math.prod(first) == math.prod(second)


# --- Orbax -------------------------------------------------------------------------------------


def _restore_orbax(
    prefix: StrPath, requests: Mapping[str, Request], reshape: bool
) -> dict[str, Any]:
    has_text = any(request.dtype == _STRINGS for request in requests.values())
    if has_text:  # of which Orbax has none
        _check(reader.open_checkpoint(prefix), requests, reshape)
    there = orbax_reader.read_specs(prefix) if reshape else {}
    specs = {}
    for request in requests.values():
        spec = jax.ShapeDtypeStruct(request.full_shape, request.dtype, sharding=request.sharding)
        known = there.get(request.name)
        if known is not None and _is_same_size(known.shape, request.full_shape):
            spec = jax.ShapeDtypeStruct(known.shape, request.dtype)
        elif request.part is not None:
            spec = jax.ShapeDtypeStruct(request.full_shape, request.dtype)
        specs[request.name] = spec
    arrays = orbax_reader.restore(prefix, specs)
    result, cut = {}, {}
    for key, request in requests.items():
        array = arrays[request.name]
        if request.part is None and array.shape == request.shape:
            result[key] = array
        else:
            whole = np.asarray(array).reshape(request.full_shape)
            index = slices.index_of(request.part.extents) if request.part is not None else ()
            cut[key] = whole[index].reshape(request.shape)
    return {**result, **_to_devices(cut, requests)}


# --- TensorFlow's formats ----------------------------------------------------------------------


def _check(tensors: StoredTensors, requests: Mapping[str, Request], reshape: bool) -> None:
    asked = {request.name: (request.full_shape, request.dtype) for request in requests.values()}
    there: dict[str, tuple[tuple[int, ...], Any]] = {}
    for name, (shape, _) in asked.items():
        tensor = tensors.tensors.get(name)
        if tensor is None:
            continue
        fits = reshape and _is_same_size(shape, tensor.shape)
        there[name] = (shape if fits else tensor.shape, _dtype(tensor))
    if len(there) < len(asked):  # only for the names that are close
        there |= {name: ((), None) for name in tensors.tensors if name not in there}
    stored.refuse_misfits(tensors.place, asked, there)


def _dtype(tensor: stored.StoredTensor) -> Any:
    try:
        return tensor.dtype
    except errors.AttrError:
        return f"DataType {tensor.number}"


def _read(
    tensors: StoredTensors, requests: Mapping[str, Request], damaged: list[str]
) -> dict[str, Array]:
    values: dict[str, Array] = {}
    for key, request in requests.items():
        try:
            is_as_asked = tensors.tensors[request.name].shape == request.full_shape
            if request.part is not None and is_as_asked:
                value = tensors.read(request.name, request.part.extents)
            else:
                value = tensors.read(request.name).reshape(request.full_shape)
                if request.part is not None:
                    value = value[slices.index_of(request.part.extents)]
            values[key] = value.reshape(request.shape)
        except errors.CheckpointError as error:
            damaged.append(f"{request.name!r}: {error}")
    return values


def _to_devices(values: Mapping[str, Array], requests: Mapping[str, Request]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    free = []
    with jax.enable_x64(True):  # else JAX makes 32 bits of 64
        for key, value in values.items():
            sharding = requests[key].sharding
            if value.dtype == _STRINGS:
                result[key] = value
            elif sharding is None:
                free.append(key)
            else:
                result[key] = jax.make_array_from_callback(value.shape, sharding, value.__getitem__)
        # In one call: one for each array takes much longer.
        arrays = jax.device_put([values[key] for key in free])
    result.update(zip(free, arrays, strict=True))
    return {key: result[key] for key in values}
