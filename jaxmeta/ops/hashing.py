"""Strings to numbers of buckets: the hashes that TensorFlow uses.

FarmHash's Fingerprint64 (farmhash.cc, namespace farmhashna), SipHash-2-4, and TensorFlow's own
Hash64 (tensorflow/core/platform/hash.cc, MurmurHash64A).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from jaxmeta import errors
from jaxmeta.ops._definition import kernel

_MASK: Final = (1 << 64) - 1
_K0: Final = 0xC3A5C85C97CB3127
_K1: Final = 0xB492B66FBE98F273
_K2: Final = 0x9AE16A3B2F90404F
_HASH64_SEED: Final = 0xDECAFCAFFE


def _buckets(
    fingerprint: Callable[[bytes], int], strings: Any, num_buckets: int
) -> np.ndarray[Any, Any]:
    if num_buckets < 1:
        raise errors.AttrError(f"num_buckets must be 1 or more, not {num_buckets}")
    array = np.asarray(strings)
    found = [fingerprint(item) % num_buckets for item in array.ravel().tolist()]
    return np.array(found, np.int64).reshape(array.shape)


@kernel("StringToHashBucketFast", is_host=True)
def string_to_hash_bucket_fast(input: Any, *, num_buckets: int) -> Any:
    return _buckets(fingerprint64, input, num_buckets)


@kernel("StringToHashBucket", is_host=True)
def string_to_hash_bucket(string_tensor: Any, *, num_buckets: int) -> Any:
    return _buckets(_hash64, string_tensor, num_buckets)


@kernel("StringToHashBucketStrong", is_host=True)
def string_to_hash_bucket_strong(input: Any, *, num_buckets: int, key: Sequence[int]) -> Any:
    if len(key) != 2:
        raise errors.InvalidArgumentError(f"Key must have 2 elements, got {list(key)}")
    keys = (key[0] & _MASK, key[1] & _MASK)
    return _buckets(lambda item: _sip_hash(item, *keys), input, num_buckets)


# --- FarmHash ------------------------------------------------------------------------------------


def fingerprint64(text: bytes) -> int:
    """Returns FarmHash's Fingerprint64 of a string.

    >>> hex(fingerprint64(b"hello"))
    '0xb48be5a931380ce8'
    """
    size = len(text)
    if size <= 16:
        return _hash_up_to_16(text, size)
    if size <= 32:
        return _hash_17_to_32(text, size)
    if size <= 64:
        return _hash_33_to_64(text, size)
    return _hash_long(text, size)


def _word(text: bytes, at: int) -> int:
    return int.from_bytes(text[at : at + 8], "little")


def _half_word(text: bytes, at: int) -> int:
    return int.from_bytes(text[at : at + 4], "little")


def _rotate(value: int, by: int) -> int:
    return (value >> by | value << (64 - by)) & _MASK


def _mix(value: int) -> int:
    return value ^ (value >> 47)


def _hash_two(u: int, v: int, mul: int) -> int:
    a = _mix(((u ^ v) * mul) & _MASK)
    return (_mix(((v ^ a) * mul) & _MASK) * mul) & _MASK


def _hash_up_to_16(text: bytes, size: int) -> int:
    if size >= 8:
        mul = (_K2 + size * 2) & _MASK
        a, b = (_word(text, 0) + _K2) & _MASK, _word(text, size - 8)
        c = (_rotate(b, 37) * mul + a) & _MASK
        d = ((_rotate(a, 25) + b) * mul) & _MASK
        return _hash_two(c, d, mul)
    if size >= 4:
        mul = (_K2 + size * 2) & _MASK
        return _hash_two(size + (_half_word(text, 0) << 3), _half_word(text, size - 4), mul)
    if size:
        y = text[0] + (text[size >> 1] << 8)
        z = size + (text[size - 1] << 2)
        return (_mix((y * _K2 ^ z * _K0) & _MASK) * _K2) & _MASK
    return _K2


def _hash_17_to_32(text: bytes, size: int) -> int:
    mul = (_K2 + size * 2) & _MASK
    a, b = (_word(text, 0) * _K1) & _MASK, _word(text, 8)
    c, d = (_word(text, size - 8) * mul) & _MASK, (_word(text, size - 16) * _K2) & _MASK
    u = (_rotate((a + b) & _MASK, 43) + _rotate(c, 30) + d) & _MASK
    v = (a + _rotate((b + _K2) & _MASK, 18) + c) & _MASK
    return _hash_two(u, v, mul)


def _hash_33_to_64(text: bytes, size: int) -> int:
    mul = (_K2 + size * 2) & _MASK
    a, b = (_word(text, 0) * _K2) & _MASK, _word(text, 8)
    c, d = (_word(text, size - 8) * mul) & _MASK, (_word(text, size - 16) * _K2) & _MASK
    y = (_rotate((a + b) & _MASK, 43) + _rotate(c, 30) + d) & _MASK
    z = _hash_two(y, (a + _rotate((b + _K2) & _MASK, 18) + c) & _MASK, mul)
    e, f = (_word(text, 16) * mul) & _MASK, _word(text, 24)
    g = ((y + _word(text, size - 32)) * mul) & _MASK
    h = ((z + _word(text, size - 24)) * mul) & _MASK
    u = (_rotate((e + f) & _MASK, 43) + _rotate(g, 30) + h) & _MASK
    return _hash_two(u, (e + _rotate((f + a) & _MASK, 18) + g) & _MASK, mul)


def _weak_hash(text: bytes, at: int, a: int, b: int) -> tuple[int, int]:
    w, x, y, z = struct.unpack_from("<4Q", text, at)
    a = (a + w) & _MASK
    b = _rotate((b + a + z) & _MASK, 21)
    c = a
    a = (a + x + y) & _MASK
    b = (b + _rotate(a, 44)) & _MASK
    return (a + z) & _MASK, (b + c) & _MASK


def _hash_long(text: bytes, size: int) -> int:
    x = 81
    y = (81 * _K1 + 113) & _MASK
    z = (_mix((y * _K2 + 113) & _MASK) * _K2) & _MASK
    v, w = (0, 0), (0, 0)
    x = (x * _K2 + _word(text, 0)) & _MASK
    end = (size - 1) // 64 * 64
    for at in (*range(0, end, 64), -1):
        is_last = at < 0  # the last 64 bytes, which overlap those before them
        mul = _K1
        if is_last:
            mul = (_K1 + ((z & 0xFF) << 1)) & _MASK
            w = ((w[0] + ((size - 1) & 63)) & _MASK, w[1])
            v = ((v[0] + w[0]) & _MASK, v[1])
            w = ((w[0] + v[0]) & _MASK, w[1])
            at = size - 64
        x = (_rotate((x + y + v[0] + _word(text, at + 8)) & _MASK, 37) * mul) & _MASK
        y = (_rotate((y + v[1] + _word(text, at + 48)) & _MASK, 42) * mul) & _MASK
        x ^= w[1] * 9 & _MASK if is_last else w[1]
        y = (y + (v[0] * 9 if is_last else v[0]) + _word(text, at + 40)) & _MASK
        z = (_rotate((z + w[0]) & _MASK, 33) * mul) & _MASK
        v = _weak_hash(text, at, (v[1] * mul) & _MASK, (x + w[0]) & _MASK)
        w = _weak_hash(text, at + 32, (z + w[1]) & _MASK, (y + _word(text, at + 16)) & _MASK)
        z, x = x, z
        if is_last:
            first = (_hash_two(v[0], w[0], mul) + _mix(y) * _K0 + z) & _MASK
            return _hash_two(first, (_hash_two(v[1], w[1], mul) + x) & _MASK, mul)
    raise AssertionError("the last part returns")


# --- SipHash, Murmur -----------------------------------------------------------------------------


def _sip_hash(text: bytes, key0: int, key1: int) -> int:
    v0, v1 = key0 ^ 0x736F6D6570736575, key1 ^ 0x646F72616E646F6D
    v2, v3 = key0 ^ 0x6C7967656E657261, key1 ^ 0x7465646279746573
    padded = text + b"\0" * (7 - len(text) % 8) + bytes([len(text) & 0xFF])
    words = struct.unpack(f"<{len(padded) // 8}Q", padded)
    for word in words:
        v3 ^= word
        v0, v1, v2, v3 = _sip_rounds(2, v0, v1, v2, v3)
        v0 ^= word
    v0, v1, v2, v3 = _sip_rounds(4, v0, v1, v2 ^ 0xFF, v3)
    return v0 ^ v1 ^ v2 ^ v3


def _sip_rounds(count: int, v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
    for _ in range(count):
        v0 = (v0 + v1) & _MASK
        v2 = (v2 + v3) & _MASK
        v1, v3 = _rotate(v1, 51) ^ v0, _rotate(v3, 48) ^ v2
        v0 = (_rotate(v0, 32) + v3) & _MASK
        v2 = (v2 + v1) & _MASK
        v1, v3 = _rotate(v1, 47) ^ v2, _rotate(v3, 43) ^ v0
        v2 = _rotate(v2, 32)
    return v0, v1, v2, v3


def _hash64(text: bytes) -> int:
    mul = 0xC6A4A7935BD1E995
    size = len(text)
    found = _HASH64_SEED ^ (size * mul & _MASK)
    for word in struct.unpack_from(f"<{size // 8}Q", text):
        mixed = word * mul & _MASK
        found = ((found ^ ((mixed ^ (mixed >> 47)) * mul & _MASK)) * mul) & _MASK
    rest = text[size // 8 * 8 :]
    if rest:
        found = ((found ^ int.from_bytes(rest, "little")) * mul) & _MASK
    found = ((found ^ (found >> 47)) * mul) & _MASK
    return found ^ (found >> 47)
