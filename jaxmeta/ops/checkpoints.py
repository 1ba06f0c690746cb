"""Checkpoints as operations of a graph: what a Saver's own nodes run, where files are allowed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxmeta import dtypes, errors
from jaxmeta.checkpoint import reader, slice_table, slices, state, stored, tensor_bundle
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._string_arrays import scalar_string, string_array

# --- saving --------------------------------------------------------------------------------------


@kernel("SaveV2", is_host=True)
def save_v2(
    state: Any, prefix: Any, tensor_names: Any, shape_and_slices: Any, *tensors: Any
) -> tuple[()]:
    path = state.resources.files.path(prefix)
    _save_bundle(path, [_named_arrays(tensor_names, shape_and_slices, tensors)])
    return ()


@kernel("Save", is_host=True)
def save(state: Any, filename: Any, tensor_names: Any, *data: Any) -> tuple[()]:
    return save_slices(state, filename, tensor_names, [b""] * len(data), *data)


@kernel("SaveSlices", is_host=True)
def save_slices(
    state: Any, filename: Any, tensor_names: Any, shapes_and_slices: Any, *data: Any
) -> tuple[()]:
    path = state.resources.files.path(filename)
    with _failures_of(path):
        arrays = _named_arrays(tensor_names, shapes_and_slices, data)
        slice_table.write_slice_table(path, arrays)
    return ()


def _named_arrays(names: Any, specs: Any, tensors: Sequence[Any]) -> dict[str, Any]:
    """Returns tensors by their names in the checkpoint; parts of one under its name."""
    whole: dict[str, Any] = {}
    parts: dict[str, slices.Partitioned] = {}
    if not len(np.ravel(names)) == len(np.ravel(specs)) == len(tensors):
        raise errors.InvalidArgumentError(
            f"{len(np.ravel(names))} names and {len(np.ravel(specs))} slices for {len(tensors)} "
            "tensors"
        )
    for name, spec, tensor in zip(_texts(names), _texts(specs), tensors, strict=True):
        array = np.asarray(tensor)
        if not spec:
            whole[name] = array
            continue
        full_shape, extents = _spec(spec)
        if array.shape != slices.shape_of(extents):
            raise errors.InvalidArgumentError(
                f"{name!r}: the slice {spec!r} has another shape than its tensor, "
                f"{list(array.shape)}"
            )
        known = parts[name].parts if name in parts else ()
        parts[name] = slices.Partitioned(full_shape, (*known, (extents, array)))
    return {**whole, **parts}


def _texts(strings: Any) -> list[str]:
    return [os.fsdecode(item) for item in np.ravel(strings).tolist()]


def _spec(spec: str) -> slices.SliceSpec:
    try:
        return slices.parse_slice_spec(spec)
    except errors.CheckpointError as error:
        raise errors.InvalidArgumentError(str(error)) from None


def _save_bundle(path: str, files: Sequence[dict[str, Any]]) -> None:
    with _failures_of(path), tensor_bundle.TensorBundleWriter(blocking=True) as writer:
        writer.save(path, files)


@contextlib.contextmanager
def _failures_of(path: str) -> Iterator[None]:
    try:
        yield
    except errors.CheckpointError as error:
        raise errors.InvalidArgumentError(str(error)) from error
    except OSError as error:
        raise errors.FailedPreconditionError(f"{path}: {error}") from error


@kernel("MergeV2Checkpoints", is_host=True)
def merge_v2_checkpoints(
    state: Any,
    checkpoint_prefixes: Any,
    destination_prefix: Any,
    *,
    delete_old_dirs: bool,
    allow_missing_files: bool,
) -> tuple[()]:
    files = state.resources.files
    target = files.path(destination_prefix)
    paths = [files.path(prefix) for prefix in np.ravel(checkpoint_prefixes).tolist()]
    merged = []
    for path in paths:
        if allow_missing_files and not os.path.exists(f"{path}.index"):
            continue
        opened = _open(path)
        merged.append({name: _whole_or_parts(opened, name) for name in opened.tensors})
    _save_bundle(target, merged)
    _remove_merged(paths, target, delete_old_dirs)
    return ()


def _whole_or_parts(opened: stored.StoredTensors, name: str) -> Any:
    tensor = opened.tensors[name]
    if not tensor.parts:
        return opened.read(name)
    parts = tuple((extents, opened.read(name, extents)) for extents in tensor.parts)
    return slices.Partitioned(tensor.shape, parts)


def _remove_merged(paths: Sequence[str], target: str, has_directories: bool) -> None:
    for path in paths:
        if path != target:
            state.remove_checkpoint(path)
        if has_directories:
            with contextlib.suppress(OSError):  # where other files are in it
                os.rmdir(os.path.dirname(path))


@kernel("ShardedFilename", is_host=True)
def sharded_filename(basename: Any, shard: Any, num_shards: Any) -> Any:
    name = scalar_string(basename)
    return string_array([b"%s-%05d-of-%05d" % (name, int(shard), int(num_shards))], ())


@kernel("ShardedFilespec", is_host=True)
def sharded_filespec(basename: Any, num_shards: Any) -> Any:
    return string_array([b"%s-?????-of-%05d" % (scalar_string(basename), int(num_shards))], ())


# --- restoring -----------------------------------------------------------------------------------


@kernel("RestoreV2", is_host=True)
def restore_v2(
    state: Any, prefix: Any, tensor_names: Any, shape_and_slices: Any, *, dtypes: Sequence[int]
) -> list[Any]:
    opened = _open(state.resources.files.path(prefix))
    names, specs = _texts(tensor_names), _texts(shape_and_slices)
    if not len(names) == len(specs) == len(dtypes):
        raise errors.InvalidArgumentError(
            f"{len(names)} names and {len(specs)} slices for {len(dtypes)} dtypes"
        )
    asked = zip(names, specs, dtypes, strict=True)
    return [_restored(opened, name, spec, number) for name, spec, number in asked]


@kernel("Restore", is_host=True)
def restore(state: Any, file_pattern: Any, tensor_name: Any, *, dt: int) -> Any:
    return restore_v2(state, file_pattern, [tensor_name], [b""], dtypes=[dt])[0]


@kernel("RestoreSlice", is_host=True)
def restore_slice(
    state: Any, file_pattern: Any, tensor_name: Any, shape_and_slice: Any, *, dt: int
) -> Any:
    return restore_v2(state, file_pattern, [tensor_name], [shape_and_slice], dtypes=[dt])[0]


def _open(path: str) -> stored.StoredTensors:
    if state.data_file(path) is None:
        raise errors.NotFoundError(
            "Unsuccessful TensorSliceReader constructor: Failed to find any matching files for "
            f"{path}"
        )
    try:
        return reader.open_checkpoint(path)
    except errors.CheckpointError as error:
        raise errors.DataLossError(str(error)) from error


def _restored(opened: stored.StoredTensors, name: str, spec: str, number: int) -> Any:
    tensor = opened.tensors.get(name)
    if tensor is None:
        raise errors.NotFoundError(f"Key {name} not found in checkpoint {opened.place}")
    if tensor.number != number:
        found, wanted = dtypes.dtype_name(tensor.number), dtypes.dtype_name(number)
        raise errors.InvalidArgumentError(
            f"tensor_name = {name}; expected dtype {wanted} does not equal original dtype {found}"
        )
    part = _spec(spec) if spec else None
    if part is not None and part.full_shape != tensor.shape:
        raise errors.InvalidArgumentError(
            f"tensor_name = {name}; shape in shape_and_slice spec {list(part.full_shape)} does not "
            f"match the shape stored in checkpoint: {list(tensor.shape)}"
        )
    try:
        return opened.read(name, part.extents if part is not None else None)
    except errors.CheckpointError as error:
        raise errors.DataLossError(str(error)) from error
