"""Strings in encodings to code points, and back."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from jaxmeta import errors
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._gradients import reading_attrs_of
from jaxmeta.ops._string_arrays import map_strings, string_array

_LAST_CODE_POINT: Final = 0x10FFFF
_SURROGATES: Final = range(0xD800, 0xE000)
_CONTROLS: Final = (*range(0x20), *range(0x7F, 0xA0))


def _codec(encoding: bytes) -> str:
    """Returns Python's name of an encoding; without a byte order it is the big endian one."""
    name = encoding.decode(errors="replace")
    try:
        found = codecs.lookup(name).name
    except LookupError:
        raise errors.InvalidArgumentError(
            f"Could not create converter for input encoding: {name}"
        ) from None
    return f"{found}-be" if found in ("utf-16", "utf-32") else found


def _code_points(
    item: bytes, codec: str, policy: bytes, replacement: int, replaces_controls: bool
) -> Iterator[tuple[int, int]]:
    """Yields code points and where each begins.

    Raises:
        InvalidArgumentError: the string is malformed, and the policy is strict.
    """
    at = 0
    while at < len(item):
        try:
            text, bad = item[at:].decode(codec), None
        except UnicodeDecodeError as error:
            text, bad = item[at : at + error.start].decode(codec), error
            if policy == b"strict":
                raise errors.InvalidArgumentError(
                    f"Invalid formatting on input string: {item!r}"
                ) from None
        for character in text:
            point = ord(character)
            is_control = replaces_controls and point in _CONTROLS
            yield (replacement if is_control else point), at
            at += len(character.encode(codec))
        if bad is None:
            return
        if policy == b"replace":
            yield replacement, at
        at += max(bad.end - bad.start, 1)


@kernel("UnicodeDecodeWithOffsets", is_host=True)
def unicode_decode_with_offsets(
    input: Any,
    *,
    input_encoding: bytes,
    errors: bytes,
    replacement_char: int,
    replace_control_characters: bool,
    Tsplits: int,
) -> list[Any]:
    codec = _codec(input_encoding)
    rows = [
        list(_code_points(item, codec, errors, replacement_char, replace_control_characters))
        for item in np.ravel(input)
    ]
    splits = np.cumsum([0, *map(len, rows)]).astype(np.int64 if Tsplits == 9 else np.int32)
    pairs = [pair for row in rows for pair in row]
    points, starts = np.array(pairs, np.int64).reshape(-1, 2).T
    return [splits, points.astype(np.int32), starts]


def _unicode_decode(input: Any, **attrs: Any) -> list[Any]:
    return unicode_decode_with_offsets(input, **attrs)[:2]


kernel("UnicodeDecode", is_host=True)(
    reading_attrs_of("UnicodeDecode", _unicode_decode, unicode_decode_with_offsets)
)


@kernel("UnicodeTranscode", is_host=True)
def unicode_transcode(
    input: Any,
    *,
    input_encoding: bytes,
    output_encoding: bytes,
    errors: bytes,
    replacement_char: int,
    replace_control_characters: bool,
) -> Any:
    source, target = _codec(input_encoding), _codec(output_encoding)

    def transcode(item: bytes) -> bytes:
        found = _code_points(item, source, errors, replacement_char, replace_control_characters)
        return "".join(chr(point) for point, _ in found).encode(target, "replace")

    return map_strings(transcode, input)


@kernel("UnicodeEncode", is_host=True)
def unicode_encode(
    input_values: Any,
    input_splits: Any,
    *,
    errors: bytes,
    output_encoding: bytes,
    replacement_char: int,
) -> Any:
    points, bounds = np.ravel(input_values).tolist(), np.ravel(input_splits).tolist()
    _check_splits(bounds, len(points))
    codec = _codec(output_encoding)
    texts = [
        "".join(_characters(points[start:stop], errors, replacement_char))
        for start, stop in itertools.pairwise(bounds)
    ]
    return string_array([text.encode(codec, "replace") for text in texts])


def _check_splits(bounds: list[int], count: int) -> None:
    if not bounds or bounds[0] != 0 or bounds[-1] != count or bounds != sorted(bounds):
        raise errors.InvalidArgumentError(
            f"input_splits {bounds} do not divide {count} values into rows"
        )


def _characters(points: list[int], policy: bytes, replacement: int) -> Iterator[str]:
    for point in points:
        if 0 <= point <= _LAST_CODE_POINT and point not in _SURROGATES:
            yield chr(point)
        elif policy == b"strict":
            raise errors.InvalidArgumentError(
                f"Code point is out of range for Unicode, or a noncharacter: {point}"
            )
        elif policy == b"replace":
            yield chr(replacement)
