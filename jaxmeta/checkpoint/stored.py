"""What every reader of a checkpoint offers: which tensors are stored, and their values by name."""

from __future__ import annotations

import abc
import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from jaxmeta import dtypes, errors
from jaxmeta.checkpoint import slices
from jaxmeta.checkpoint.slices import Array, Extents

_SUGGESTIONS_FOR: Final = 10


@dataclasses.dataclass(frozen=True, slots=True)
class StoredTensor:
    """What the index of a checkpoint says about a tensor.

    Attributes:
        number: its DataType.
        shape: of the whole.
        parts: the blocks that are stored, where it is not stored as a whole.
    """

    number: int
    shape: tuple[int, ...]
    parts: tuple[Extents, ...] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its dtype; strings are objects, each of bytes."""
        return dtypes.dtype_from_number(self.number)


class StoredTensors(abc.ABC):
    """The tensors of one checkpoint.

    Attributes:
        place: where it lies, for messages.
        tensors: what is stored, by name, sorted.
    """

    place: str
    tensors: Mapping[str, StoredTensor]

    @abc.abstractmethod
    def read(self, name: str, extents: Extents | None = None) -> Array:
        """Returns a tensor that is stored, or a block of it.

        Raises:
            CheckpointError: its data is damaged, or missing in part.
        """

    def dtype(self, name: str) -> np.dtype[Any]:
        """Returns the dtype of a tensor that is stored.

        Raises:
            CheckpointError: it has a DataType of which there are no arrays.
        """
        try:
            return self.tensors[name].dtype
        except errors.AttrError as error:
            raise errors.CheckpointError(f"{self.place}: {name!r}: {error}") from None

    def _read_assembled(
        self, name: str, extents: Extents | None, read_part: Callable[[int], Array]
    ) -> Array:
        """Returns a block of a tensor whose parts `read_part` reads by number."""
        tensor = self.tensors[name]
        wanted = extents if extents is not None else tuple((0, size) for size in tensor.shape)
        if wanted in tensor.parts:
            return read_part(tensor.parts.index(wanted))
        parts = [
            (part, functools.partial(read_part, number)) for number, part in enumerate(tensor.parts)
        ]
        try:
            return slices.assemble(wanted, tensor.dtype, parts)
        except errors.CheckpointError as error:
            raise errors.CheckpointError(f"{self.place}: tensor {name!r}: {error}") from None


def refuse_misfits(
    place: str,
    asked: Mapping[str, tuple[Sequence[int], Any]],
    stored: Mapping[str, tuple[Sequence[int], Any]],
    listed_by: str = "read_specs and list_variables list it",
) -> None:
    """Raises CheckpointError where a checkpoint has not what is asked for; all is listed.

    Args:
        place: the checkpoint.
        asked: shape and dtype by name.
        stored: the same of what there is.
        listed_by: how to see what there is.
    """
    missing = sorted(asked.keys() - stored.keys())
    shapes, dtypes_ = [], []
    for name in sorted(asked.keys() & stored.keys()):
        (shape, dtype), (has_shape, has_dtype) = asked[name], stored[name]
        if tuple(shape) != tuple(has_shape):
            shapes.append(
                f"{name!r}: shape {tuple(has_shape)} is stored, {tuple(shape)} is asked for"
            )
        if dtype != has_dtype:
            dtypes_.append(f"{name!r}: dtype {has_dtype} is stored, {dtype} is asked for")
    if not (missing or shapes or dtypes_):
        return
    headline = (
        f"checkpoint {place} does not fit: {len(missing)} names missing, "
        f"{len(shapes)} shapes and {len(dtypes_)} dtypes different"
    )
    offenders = [*_describe_missing(missing, stored), *shapes, *dtypes_]
    raise errors.CheckpointError(
        errors.list_offenders(
            headline,
            offenders,
            "Restore the checkpoint that was saved with this program, or ask for what this one "
            f"has: {listed_by}.",
        )
    )


def _describe_missing(missing: Sequence[str], stored: Iterable[str]) -> list[str]:
    # Close matches are slow to find; of the later names only the number is shown.
    lines: list[str] = []
    for name in missing:
        close = (
            difflib.get_close_matches(name, stored, n=2) if len(lines) < _SUGGESTIONS_FOR else []
        )
        lines.append(f"{name!r} is missing" + (f"; close: {', '.join(close)}" if close else ""))
    return lines
