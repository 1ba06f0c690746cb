"""Named arrays to TensorFlow's V1 checkpoints: one file each, which its oldest Savers restore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from jaxmeta import dtypes, errors, values
from jaxmeta._proto import checkpoint_pb2, graph_pb2
from jaxmeta.checkpoint import atomic, coding, slices, table
from jaxmeta.checkpoint.atomic import StrPath
from jaxmeta.checkpoint.slices import Array, Extents, Partitioned

_VERSION: Final = 1
_FIELDS: Final = {
    "float32": "float_val",
    "float64": "double_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "complex64": "scomplex_val",
    "complex128": "dcomplex_val",
    "float16": "half_val",
    "bfloat16": "half_val",
    **dict.fromkeys(("int32", "int16", "int8", "uint8", "uint16"), "int_val"),
}


def write_slice_table(path: StrPath, arrays: Mapping[str, Any]) -> None:
    """Writes a V1 checkpoint.

    Args:
        path: the file.
        arrays: by name; a `Partitioned` holds blocks of one.

    Raises:
        CheckpointError: the format has no place for the dtype of some; all are listed.
    """
    meta = checkpoint_pb2.SavedTensorSlices()
    meta.meta.versions.producer = _VERSION
    entries: dict[bytes, bytes] = {}
    bad = []
    for name, value in sorted(arrays.items()):
        parts = value.parts if isinstance(value, Partitioned) else ((None, value),)
        kinds = {np.asarray(part).dtype for _, part in parts}
        if len(kinds) > 1 or not all(kind.name in _FIELDS for kind in kinds):
            bad.append(f"{name!r}: {' and '.join(map(str, kinds))}")
            continue
        described = meta.meta.tensor.add(name=name)
        described.type = dtypes.dtype_to_number(kinds.pop())  # type: ignore[assignment]
        values.write_shape(
            described.shape, np.shape(value) if value is parts[0][1] else value.shape
        )
        for extents, part in parts:
            entries.update([_entry(name, extents, np.asarray(part), described)])
    if bad:
        headline = f"{path}: a checkpoint of version 1 does not hold these dtypes:"
        raise errors.CheckpointError(errors.list_offenders(headline, bad))
    rows = [(b"", meta.SerializeToString()), *sorted(entries.items())]
    atomic.write_file(path, table.write_table(rows))


def _entry(
    name: str, extents: Extents | None, array: Array, described: checkpoint_pb2.SavedSliceMeta
) -> tuple[bytes, bytes]:
    """Returns key and value of a block, having listed it."""
    whole = ((0, -1),) * array.ndim
    proto = checkpoint_pb2.TensorSliceProto()
    if extents is None:
        for _ in range(array.ndim):
            proto.extent.add()
    else:
        proto = slices.extents_to_proto(extents)
    described.slice.append(proto)
    saved = checkpoint_pb2.SavedTensorSlices()
    saved.data.name = name
    saved.data.slice.CopyFrom(proto)
    _write_values(saved.data.data, array)
    return coding.slice_key(name, extents or whole), saved.SerializeToString()


def _write_values(proto: graph_pb2.TensorProto, array: Array) -> None:
    field = getattr(proto, _FIELDS[array.dtype.name])
    flat = array.ravel()
    if array.dtype.kind == "c":
        flat = np.stack([flat.real, flat.imag], -1).ravel()
    elif array.dtype.name in ("float16", "bfloat16"):
        flat = flat.view(np.uint16)
    field.extend(flat.tolist())
