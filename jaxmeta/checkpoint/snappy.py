"""Snappy, by which old releases of TensorFlow packed the blocks of their tables; reading only."""

from __future__ import annotations

from typing import Final

from jaxmeta import errors
from jaxmeta.checkpoint import coding

# Three bytes of a copy stand for up to 64; no input can grow more than this.
_MAX_GROWTH: Final = 22


def decompress(data: bytes | memoryview) -> bytes:
    """Returns what some bytes stand for; memory is taken only for what they can hold.

    Raises:
        CheckpointError: they are no snappy data.
    """
    size, position = coding.read_varint(data, 0)
    if size > _MAX_GROWTH * len(data):
        raise errors.CheckpointError(f"snappy data of {len(data)} bytes claims to hold {size}")
    result = bytearray()
    while position < len(data):
        tag = data[position]
        position += 1
        if tag & 3:
            length, offset, position = _read_copy(data, position, tag)
            _copy(result, offset, length)
        else:
            length, position = _read_literal_length(data, position, tag)
            literal = data[position : position + length]
            if len(literal) != length:
                raise errors.CheckpointError("snappy data ends within a literal")
            result += literal
            position += length
        if len(result) > size:
            raise errors.CheckpointError("snappy data holds more than it claims")
    if len(result) != size:
        raise errors.CheckpointError(f"snappy data holds {len(result)} bytes and claims {size}")
    return bytes(result)


def _read_number(data: bytes | memoryview, position: int, width: int) -> tuple[int, int]:
    digits = data[position : position + width]
    if len(digits) != width:
        raise errors.CheckpointError("snappy data ends within a tag")
    return int.from_bytes(digits, "little"), position + width


def _read_literal_length(data: bytes | memoryview, position: int, tag: int) -> tuple[int, int]:
    length = tag >> 2
    if length >= 60:
        length, position = _read_number(data, position, length - 59)
    return length + 1, position


def _read_copy(data: bytes | memoryview, position: int, tag: int) -> tuple[int, int, int]:
    if tag & 3 == 1:
        low, position = _read_number(data, position, 1)
        return ((tag >> 2) & 7) + 4, (tag >> 5) << 8 | low, position
    offset, position = _read_number(data, position, 2 if tag & 3 == 2 else 4)
    return (tag >> 2) + 1, offset, position


def _copy(result: bytearray, offset: int, length: int) -> None:
    if not 0 < offset <= len(result):
        raise errors.CheckpointError("snappy data refers to what is not before it")
    start = len(result) - offset
    piece = result[start : start + length]
    while len(piece) < length:  # it overlaps itself, that is, repeats
        piece += piece[: length - len(piece)]
    result += piece
