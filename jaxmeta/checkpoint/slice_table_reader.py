"""TensorFlow's V1 checkpoints: one table of all tensors and their values, or one a shard."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Sequence

from google.protobuf import message

from jaxmeta import errors, values
from jaxmeta._proto import checkpoint_pb2, graph_pb2
from jaxmeta.checkpoint import coding, slices, table
from jaxmeta.checkpoint.atomic import StrPath
from jaxmeta.checkpoint.slices import Array, Extents
from jaxmeta.checkpoint.stored import StoredTensor, StoredTensors

_META_KEY = b""
_ADVICE = "restore an older checkpoint, or a copy of this one"


class SliceTableReader(StoredTensors):
    """Reads a V1 checkpoint.

    Args:
        pattern: the file, or a pattern such as ``model-?????-of-00002``.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
    """

    def __init__(self, pattern: StrPath) -> None:
        self.place = os.fspath(pattern)
        self._values: dict[bytes, memoryview] = {}
        self._keys: dict[tuple[str, Extents], bytes] = {}
        self.tensors: dict[str, StoredTensor] = {}
        paths = [self.place] if os.path.isfile(self.place) else sorted(glob.glob(self.place))
        if not paths:
            raise errors.CheckpointError(f"there is no file {self.place}")
        for path in paths:
            self._add_file(path)
        self.tensors = dict(sorted(self.tensors.items()))

    def _add_file(self, path: str) -> None:
        content = table.read_table(path)
        try:
            meta = checkpoint_pb2.SavedTensorSlices.FromString(bytes(content.pop(_META_KEY))).meta
        except (KeyError, message.DecodeError):
            raise self._damaged(f"{path} does not say what it holds") from None
        self._values.update(content)
        for tensor in meta.tensor:
            self._add_tensor(tensor)

    def _damaged(self, why: str) -> errors.CheckpointError:
        return errors.CheckpointError(f"checkpoint {self.place} is damaged: {why}; {_ADVICE}")

    def _add_tensor(self, meta: checkpoint_pb2.SavedSliceMeta) -> None:
        shape = values.shape_from_proto(meta.shape)
        if shape is None or None in shape:
            raise self._damaged(f"{meta.name!r} has no known shape")
        known = tuple(size or 0 for size in shape)
        former = self.tensors.get(meta.name, StoredTensor(meta.type, known))
        if (former.number, former.shape) != (meta.type, known):
            raise self._damaged(f"its files differ about the dtype or shape of {meta.name!r}")
        parts = list(former.parts)
        for proto in meta.slice:
            written = slices.extents_from_proto(proto)
            try:
                part = slices.resolve(written, known)
            except errors.CheckpointError as error:
                raise self._damaged(f"{meta.name!r}: {error}") from None
            self._keys[meta.name, part] = coding.slice_key(meta.name, written)
            parts.append(part)
        self.tensors[meta.name] = StoredTensor(meta.type, known, tuple(parts))

    def read(self, name: str, extents: Extents | None = None) -> Array:
        """Returns a tensor, or a block of it; see `StoredTensors.read`."""
        tensor = self.tensors[name]
        self.dtype(name)
        found = sum(len(self._values.get(self._keys[name, part], b"")) for part in tensor.parts)
        # A value takes a byte at least.
        if math.prod(tensor.shape) > found:
            raise self._damaged(f"{name!r} of shape {tensor.shape} has {found} bytes of values")
        return self._read_assembled(name, extents, lambda number: self._read_part(name, number))

    def _read_part(self, name: str, number: int) -> Array:
        tensor = self.tensors[name]
        part = tensor.parts[number]
        try:
            saved = checkpoint_pb2.SavedTensorSlices.FromString(
                bytes(self._values[self._keys[name, part]])
            )
        except (KeyError, message.DecodeError):
            raise self._damaged(f"the part {part} of {name!r} is missing or damaged") from None
        return self._tensor(name, saved.data.data, tensor.number, slices.shape_of(part))

    def _tensor(
        self, name: str, proto: graph_pb2.TensorProto, number: int, shape: Sequence[int]
    ) -> Array:
        """Returns the array of a proto that holds values only, all of them."""
        proto.dtype = number  # type: ignore[assignment]
        proto.tensor_shape.Clear()
        values.write_shape(proto.tensor_shape, shape)
        held = sum(len(value) for field, value in proto.ListFields() if _is_values(field.name))
        size = math.prod(shape)
        if size and not proto.tensor_content and held < size:
            raise self._damaged(f"{name!r} of shape {tuple(shape)} has {held} values")
        try:
            return values.tensor_from_proto(proto)
        except errors.AttrError as error:
            raise self._damaged(f"{name!r}: {error}") from None


def _is_values(field: str) -> bool:
    return field.endswith("_val")
