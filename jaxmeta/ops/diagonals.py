"""Diagonals of matrices, one or a band of them, as TensorFlow lays them out."""

from __future__ import annotations

import math
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from jaxmeta import errors
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._operands import ints

_LEFT_ALIGNED: Final = b"LEFT_LEFT"  # which is all that version 2 has


@kernel("MatrixDiag", "BatchMatrixDiag")
def matrix_diag(diagonal: Any) -> Any:
    return diagonal[..., None] * jnp.eye(diagonal.shape[-1], dtype=diagonal.dtype)


@kernel("MatrixDiagPart", "BatchMatrixDiagPart")
def matrix_diag_part(input: Any) -> Any:
    return jnp.diagonal(input, axis1=-2, axis2=-1)


@kernel("MatrixSetDiag", "BatchMatrixSetDiag")
def matrix_set_diag(input: Any, diagonal: Any) -> Any:
    count = min(input.shape[-2:])
    places = np.arange(count)
    return jnp.asarray(input).at[..., places, places].set(diagonal)


@kernel("Diag")
def diag(diagonal: Any) -> Any:
    """Returns a tensor of twice the rank, with the elements where both halves of an index agree."""
    flat = jnp.diag(jnp.reshape(diagonal, -1))
    return jnp.reshape(flat, (*diagonal.shape, *diagonal.shape))


@kernel("DiagPart")
def diag_part(input: Any) -> Any:
    shape = input.shape[: input.ndim // 2]
    size = math.prod(shape)
    return jnp.reshape(jnp.diagonal(jnp.reshape(input, (size, size))), shape)


# --- bands -------------------------------------------------------------------------------------


def _band(k: Any) -> tuple[int, int]:
    """Returns the lowest and highest diagonal that ``k`` says."""
    band = ints(k)
    if len(band) not in (1, 2) or band[0] > band[-1]:
        raise errors.InvalidArgumentError(
            f"k must be one diagonal or a lower and an upper one, it is {list(band)}"
        )
    return band[0], band[-1]


def _places(
    band: tuple[int, int], rows: int, columns: int, align: bytes
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Returns where each element of packed diagonals lies: row, column, and whether it lies at all.

    Packed diagonals stand from the highest to the lowest, the shorter ones filled on the side that
    ``align`` says: first of those above the main diagonal, then of those below it.
    """
    lower, upper = band
    length = min(rows + min(upper, 0), columns - max(lower, 0))
    diagonals = np.arange(upper, lower - 1, -1)[:, None]
    lengths = np.minimum(rows + np.minimum(diagonals, 0), columns - np.maximum(diagonals, 0))
    above, below = (side == b"LEFT" for side in align.split(b"_"))
    is_left = ((diagonals >= 0) & above) | ((diagonals <= 0) & below)
    index = np.arange(max(length, 0)) - np.where(is_left, 0, length - lengths)
    is_inside = (index >= 0) & (index < lengths)
    return index - np.minimum(diagonals, 0), index + np.maximum(diagonals, 0), is_inside


def _unpacked(band: tuple[int, int], diagonal: Any) -> Any:
    return diagonal[..., None, :] if band[0] == band[1] else diagonal


def _set_band(input: Any, diagonal: Any, band: tuple[int, int], align: bytes) -> Any:
    rows, columns, is_inside = _places(band, input.shape[-2], input.shape[-1], align)
    values = _unpacked(band, jnp.asarray(diagonal))[..., is_inside]
    return jnp.asarray(input).at[..., rows[is_inside], columns[is_inside]].set(values)


def _make_matrix(
    diagonal: Any, k: Any, num_rows: Any, num_cols: Any, padding_value: Any, align: bytes
) -> Any:
    band = _band(k)
    length = diagonal.shape[-1]
    rows, columns = length - min(band[1], 0), length + max(band[0], 0)
    wanted = (int(num_rows), int(num_cols))
    if wanted == (-1, -1):
        wanted = (max(rows, columns),) * 2
    shape = (rows if wanted[0] < 0 else wanted[0], columns if wanted[1] < 0 else wanted[1])
    batch = _unpacked(band, diagonal).shape[:-2]
    filled = jnp.full((*batch, *shape), padding_value, diagonal.dtype)
    return _set_band(filled, diagonal, band, align)


def _take_band(input: Any, k: Any, padding_value: Any, align: bytes) -> Any:
    band = _band(k)
    rows, columns, is_inside = _places(band, input.shape[-2], input.shape[-1], align)
    held = jnp.asarray(input)[..., np.where(is_inside, rows, 0), np.where(is_inside, columns, 0)]
    packed = jnp.where(is_inside, held, padding_value)
    return packed[..., 0, :] if band[0] == band[1] else packed


@kernel("MatrixDiagV2", static=("k", "num_rows", "num_cols"))
def matrix_diag_v2(diagonal: Any, k: Any, num_rows: Any, num_cols: Any, padding_value: Any) -> Any:
    return _make_matrix(diagonal, k, num_rows, num_cols, padding_value, _LEFT_ALIGNED)


@kernel("MatrixDiagV3", static=("k", "num_rows", "num_cols"))
def matrix_diag_v3(
    diagonal: Any, k: Any, num_rows: Any, num_cols: Any, padding_value: Any, *, align: bytes
) -> Any:
    return _make_matrix(diagonal, k, num_rows, num_cols, padding_value, align)


@kernel("MatrixDiagPartV2", static=("k",))
def matrix_diag_part_v2(input: Any, k: Any, padding_value: Any) -> Any:
    return _take_band(input, k, padding_value, _LEFT_ALIGNED)


@kernel("MatrixDiagPartV3", static=("k",))
def matrix_diag_part_v3(input: Any, k: Any, padding_value: Any, *, align: bytes) -> Any:
    return _take_band(input, k, padding_value, align)


@kernel("MatrixSetDiagV2", static=("k",))
def matrix_set_diag_v2(input: Any, diagonal: Any, k: Any) -> Any:
    return _set_band(input, diagonal, _band(k), _LEFT_ALIGNED)


@kernel("MatrixSetDiagV3", static=("k",))
def matrix_set_diag_v3(input: Any, diagonal: Any, k: Any, *, align: bytes) -> Any:
    return _set_band(input, diagonal, _band(k), align)
