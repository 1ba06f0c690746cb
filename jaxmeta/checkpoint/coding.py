"""How LevelDB and TensorFlow write integers and keys: varints, and bytes in order.

What is read is never trusted: a position past the end, or an integer that is too long, raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from jaxmeta import errors

_MAX_VARINT_BYTES: Final = 10


def read_varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """Returns the varint at a position, and the position after it.

    Raises:
        CheckpointError: the data ends before it, or it has more than 64 bits.
    """
    value = 0
    for count in range(_MAX_VARINT_BYTES):
        if position >= len(data):
            raise errors.CheckpointError("the data ends within an integer")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << (7 * count)
        if not byte & 0x80:
            if value >> 64:
                break
            return value, position
    raise errors.CheckpointError("an integer has more than 64 bits")


def write_varint(value: int) -> bytes:
    """Returns an integer that is not negative as a varint.

    Example:
        >>> write_varint(300).hex()
        'ac02'
    """
    encoded = bytearray()
    while value >= 0x80:
        encoded.append((value & 0x7F) | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def shared_length(first: bytes, second: bytes) -> int:
    """Returns how many bytes two strings have in common at their beginning."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    return next(i for i in range(length) if first[i] != second[i])


def slice_key(name: str, extents: Sequence[tuple[int, int]]) -> bytes:
    r"""Returns the key of a part of a tensor, in the order-preserving code of TensorFlow's tables.

    Args:
        name: of the tensor.
        extents: start and length in each dimension; (0, -1) is all of it.

    Example:
        >>> slice_key("w", [(0, 4), (0, 7)])
        b'\x00w\x00\x01\x01\x02\x80\x84\x80\x87'
    """
    numbers = b"".join(_ordered_int(number) for extent in extents for number in extent)
    return b"\x00" + _ordered_string(name.encode()) + _ordered_count(len(extents)) + numbers


def _ordered_string(text: bytes) -> bytes:
    # Escaped are 0x00 and 0xff, for with them begin the end mark and infinity.
    escapes = {0x00: b"\x00\xff", 0xFF: b"\xff\x00"}
    return b"".join(escapes.get(byte) or bytes([byte]) for byte in text) + b"\x00\x01"


def _ordered_count(value: int) -> bytes:
    digits = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([len(digits)]) + digits


def _ordered_int(value: int) -> bytes:
    """Returns a signed integer: first the sign, which the count of further bytes repeats."""
    length = 1
    while (~value if value < 0 else value) >> (7 * length - 1):
        length += 1
    bits = 8 * length
    marks = ((1 << length) - 1) << (bits - length)
    digits = value & ((1 << bits) - 1)
    return (digits & ~marks if value < 0 else digits | marks).to_bytes(length, "big")
