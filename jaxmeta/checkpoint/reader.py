"""Checkpoints of any format, by name: what is in them, and its values."""

from __future__ import annotations

import difflib
import os
from typing import Any

import numpy as np

from jaxmeta import dtypes, errors
from jaxmeta._proto import graph_pb2
from jaxmeta.checkpoint import (
    layout,
    orbax_reader,
    slice_table_reader,
    slices,
    state,
    table,
    tensor_bundle_reader,
)
from jaxmeta.checkpoint.atomic import StrPath
from jaxmeta.checkpoint.slices import Array, Extents
from jaxmeta.checkpoint.stored import StoredTensor, StoredTensors


class OrbaxTensors(StoredTensors):
    """Reads an Orbax directory, array by array."""

    def __init__(self, directory: StrPath) -> None:
        self.place = os.fspath(directory)
        self._specs = orbax_reader.read_specs(directory)
        self.tensors = {
            name: StoredTensor(dtypes.dtype_to_number(spec.dtype), tuple(spec.shape))
            for name, spec in sorted(self._specs.items())
        }

    def read(self, name: str, extents: Extents | None = None) -> Array:
        """Returns an array, or a block of it; see `StoredTensors.read`."""
        array = orbax_reader.restore(self.place, {name: self._specs[name]})[name]
        whole = np.asarray(array)
        return whole if extents is None else whole[slices.index_of(extents)]


def open_checkpoint(prefix: StrPath) -> StoredTensors:
    """Returns what reads the checkpoint of a prefix, in whichever format it is.

    Raises:
        CheckpointError: there is none, or its index is damaged.
    """
    prefix = os.fspath(prefix)
    found = state.data_file(prefix)
    if found is None:
        raise errors.CheckpointError(
            "Unsuccessful TensorSliceReader constructor: Failed to find any matching files for "
            f"{prefix}: there is no checkpoint of that prefix"
        )
    if found == f"{prefix}.index":
        return tensor_bundle_reader.BundleReader(prefix)
    if os.path.isdir(found):
        return OrbaxTensors(prefix)
    if not table.is_table(found):
        raise errors.CheckpointError(
            f"Unable to open table file {found}: it is no checkpoint of TensorFlow's, or it is "
            "truncated (bad magic number)"
        )
    return slice_table_reader.SliceTableReader(prefix)


def is_orbax(prefix: StrPath) -> bool:
    """Returns whether the checkpoint of a prefix, as it would be read, is an Orbax directory."""
    found = state.data_file(os.fspath(prefix))
    return found is not None and layout.is_orbax_directory(found)


class CheckpointReader:
    """Reads a checkpoint by the names of its tensors, as ``tf.train.NewCheckpointReader``.

    Args:
        filepattern: the prefix of a checkpoint of any format.

    Raises:
        CheckpointError: there is none, or its index is damaged.

    Example:
        >>> import tempfile, jax
        >>> from jaxmeta.checkpoint.orbax import CheckpointWriter
        >>> path = tempfile.mkdtemp() + "/model-1"
        >>> with CheckpointWriter() as writer:
        ...     writer.save(path, {"params/w": jax.numpy.ones(3)})
        >>> reader = CheckpointReader(path)
        >>> reader.get_variable_to_shape_map(), reader.get_tensor("params/w")
        ({'params/w': [3]}, array([1., 1., 1.], dtype=float32))
    """

    def __init__(self, filepattern: StrPath) -> None:
        self._stored = open_checkpoint(filepattern)

    def get_variable_to_shape_map(self) -> dict[str, list[int]]:
        """Returns the shape of each tensor by name."""
        return {name: list(tensor.shape) for name, tensor in self._stored.tensors.items()}

    def get_variable_to_dtype_map(self) -> dict[str, np.dtype[Any]]:
        """Returns the dtype of each tensor by name; that of strings is object."""
        return {name: self._stored.dtype(name) for name in self._stored.tensors}

    def has_tensor(self, tensor_str: str) -> bool:
        """Returns whether there is a tensor of a name."""
        return tensor_str in self._stored.tensors

    def get_tensor(self, tensor_str: str) -> Array:
        """Returns the value of a tensor; one that is stored in parts is put together.

        Raises:
            CheckpointError: there is none of that name, or its data is damaged.
        """
        if tensor_str not in self._stored.tensors:
            close = ", ".join(difflib.get_close_matches(tensor_str, self._stored.tensors))
            raise errors.CheckpointError(
                f"Key {tensor_str} not found in checkpoint {self._stored.place}"
                + (f"; close: {close}" if close else "")
            )
        return self._stored.read(tensor_str)

    def debug_string(self) -> bytes:
        """Returns a line for each tensor: name, type and shape, and the parts if it has several."""
        lines = [_describe(name, tensor) for name, tensor in self._stored.tensors.items()]
        return "".join(lines).encode()


def _describe(name: str, tensor: StoredTensor) -> str:
    known = graph_pb2.DataType.values()
    kind = graph_pb2.DataType.Name(tensor.number) if tensor.number in known else tensor.number
    parts = f", {len(tensor.parts)} slices" if len(tensor.parts) > 1 else ""
    return f"{name} ({kind}) [{','.join(map(str, tensor.shape))}]{parts}\n"


def NewCheckpointReader(filepattern: StrPath) -> CheckpointReader:
    """Returns a reader of the checkpoint of a prefix; see `CheckpointReader`."""
    return CheckpointReader(filepattern)


def load_checkpoint(ckpt_dir_or_file: StrPath) -> CheckpointReader:
    """Returns a reader of a checkpoint, or of the latest one in a directory.

    Raises:
        CheckpointError: there is none, or its index is damaged.
    """
    return CheckpointReader(_find(ckpt_dir_or_file))


def list_variables(ckpt_dir_or_file: StrPath) -> list[tuple[str, list[int]]]:
    """Returns name and shape of each tensor of a checkpoint, sorted by name.

    Raises:
        CheckpointError: there is none, or its index is damaged.
    """
    return sorted(load_checkpoint(ckpt_dir_or_file).get_variable_to_shape_map().items())


def load_variable(ckpt_dir_or_file: StrPath, name: str) -> Array:
    """Returns the value of a tensor of a checkpoint.

    Args:
        ckpt_dir_or_file: the checkpoint, or a directory whose latest one is meant.
        name: of the tensor, or of its first output, ``w:0``.

    Raises:
        CheckpointError: there is no such checkpoint or tensor, or the data is damaged.
    """
    return load_checkpoint(ckpt_dir_or_file).get_tensor(name.removesuffix(":0"))


def _find(place: StrPath) -> str:
    path = os.fspath(place)
    if os.path.isdir(path) and not state.checkpoint_exists(path):
        latest = state.latest_checkpoint(path)
        if latest is None:
            raise errors.CheckpointError(
                f"Couldn't find 'checkpoint' file or checkpoints in {path}"
            )
        return latest
    return path
