"""Regular expressions: those of RE2, which are TensorFlow's, run by Python's `re`.

What the two write in different ways is translated; what Python has not, or RE2 has not, is refused.
RE2 takes linear time for any expression. Python's `re` does not, so that an expression which
repeats what repeats is refused as well, unless the inner repetition cannot give up characters.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from jaxmeta import errors
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._string_arrays import map_strings, scalar_string

_MOST_REPEATS: Final = 1000  # RE2's limit
_MOST_CHARACTERS: Final = 10_000
_POSIX: Final = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": r"0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
_SPACE: Final = r"\t\n\f\r "  # RE2's \s has no vertical tab
_FLAGS: Final = re.compile(r"\?(?P<on>[imsU]*)(?:-(?P<off>[imsU]+))?(?P<end>[:)])")
_QUANTIFIER: Final = re.compile(r"[*+?]|\{(\d+)(?:,(\d*))?\}")


@kernel("RegexReplace", is_host=True)
def regex_replace(input: Any, pattern: Any, rewrite: Any, *, replace_global: bool) -> Any:
    return _replace(input, scalar_string(pattern), scalar_string(rewrite), replace_global)


@kernel("StaticRegexReplace", is_host=True)
def static_regex_replace(
    input: Any, *, pattern: bytes, rewrite: bytes, replace_global: bool
) -> Any:
    return _replace(input, pattern, rewrite, replace_global)


@kernel("RegexFullMatch", is_host=True)
def regex_full_match(input: Any, pattern: Any) -> Any:
    return _full_match(input, scalar_string(pattern))


@kernel("StaticRegexFullMatch", is_host=True)
def static_regex_full_match(input: Any, *, pattern: bytes) -> Any:
    return _full_match(input, pattern)


def _full_match(input: Any, pattern: bytes) -> Any:
    expression = compile_expression(pattern)
    array = np.asarray(input)
    found = [expression.fullmatch(_text(item)) is not None for item in array.ravel()]
    return np.array(found, np.bool_).reshape(array.shape)


def _replace(input: Any, pattern: bytes, rewrite: bytes, is_global: bool) -> Any:
    expression = compile_expression(pattern)
    parts = _rewrite_parts(rewrite, expression.groups)

    def replacement(match: re.Match[str]) -> str:
        return "".join(part if isinstance(part, str) else match.group(part) or "" for part in parts)

    def replace(item: bytes) -> bytes:
        text = _text(item)
        if is_global:
            return _replace_all(expression, text, replacement).encode(errors="surrogateescape")
        return expression.sub(replacement, text, count=1).encode(errors="surrogateescape")

    return map_strings(replace, input)


def _replace_all(
    expression: re.Pattern[str], text: str, replacement: Callable[[re.Match[str]], str]
) -> str:
    """Returns a text with all matches replaced, in RE2's way where they are empty."""
    out: list[str] = []
    at, last_end = 0, -1
    while at <= len(text):
        match = expression.search(text, at)
        if match is None:
            break
        out.append(text[at : match.start()])
        at = match.end()
        if match.start() == match.end() == last_end:
            out.append(text[at : at + 1])
            at += 1
            continue
        out.append(replacement(match))
        last_end = at
    return "".join([*out, text[at:]])


def _text(item: bytes) -> str:
    return item.decode(errors="surrogateescape")


def _rewrite_parts(rewrite: bytes, num_groups: int) -> list[str | int]:
    r"""Returns a rewrite as texts and numbers of groups: ``\0`` to ``\9``, ``\\``."""
    parts: list[str | int] = []
    for token in re.findall(r"\\.?|[^\\]+", _text(rewrite), re.DOTALL):
        if token[0] != "\\":
            parts.append(token)
        elif token[1:].isdigit() and int(token[1:]) <= num_groups:
            parts.append(int(token[1:]))
        elif token[1:] == "\\":
            parts.append("\\")
        else:
            raise errors.InvalidArgumentError(f"the rewrite {rewrite!r} has an invalid {token!r}")
    return parts


@functools.lru_cache(maxsize=256)
def compile_expression(pattern: bytes) -> re.Pattern[str]:
    """Returns an expression of RE2 as one of Python's.

    Raises:
        InvalidArgumentError: RE2 does not take it.
        UnsupportedOpError: it has what Python's expressions have not, or may take for ever.
    """
    text = _text(pattern)
    if len(text) > _MOST_CHARACTERS:
        raise errors.UnsupportedOpError(
            f"a regular expression of {len(text)} characters: {_MOST_CHARACTERS} are the most"
        )
    translator = _Translator(text)
    try:
        return re.compile(translator.translate(), re.ASCII)
    except (re.error, OverflowError, RecursionError) as error:
        raise translator.invalid(str(error)) from None


class _Translator:
    """Goes through an expression once, and writes it anew."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._flags = {"i": False, "m": False, "s": False}

    def invalid(self, why: str) -> errors.InvalidArgumentError:
        """Returns the error that says that the expression is malformed."""
        return errors.InvalidArgumentError(f"Invalid pattern: {self._pattern!r}, error: {why}")

    def _unsupported(self, what: str) -> errors.UnsupportedOpError:
        return errors.UnsupportedOpError(f"the regular expression {self._pattern!r} has {what}")

    def translate(self) -> str:
        """Returns the expression as Python writes it."""
        text, _ = self._alternatives(depth=0)
        if self._at < len(self._pattern):
            raise self.invalid("unexpected )")
        return text

    def _alternatives(self, depth: int) -> tuple[str, bool]:
        """Translates up to the end of a group; says whether it repeats something without limit."""
        if depth > 100:
            raise self._unsupported("more than 100 groups inside each other")
        out, repeats = "", False
        flags = dict(self._flags)
        while self._at < len(self._pattern) and self._pattern[self._at] != ")":
            if self._pattern[self._at] == "|":
                out += "|"
                self._at += 1
                continue
            atom, inner_repeats, is_repeatable = self._atom(depth)
            quantifier, is_unlimited = self._quantifier(is_repeatable)
            if is_unlimited and inner_repeats:
                raise self._unsupported(
                    "a repetition within a repetition, which may take for ever in Python; write it "
                    "with one repetition"
                )
            repeats = repeats or inner_repeats or is_unlimited
            out += atom + quantifier
        self._flags = flags
        return out, repeats

    def _quantifier(self, is_repeatable: bool) -> tuple[str, bool]:
        found = _QUANTIFIER.match(self._pattern, self._at)
        if found is None:
            return "", False
        if not is_repeatable:
            raise self.invalid(f"no argument for repetition operator: {found[0]}")
        self._at = found.end()
        limits = [int(number) for number in found.groups() if number]
        if any(limit > _MOST_REPEATS for limit in limits):
            raise self.invalid(f"bad repetition operator: {found[0]}")
        text = found[0]
        if self._pattern[self._at : self._at + 1] == "?":
            text += "?"
            self._at += 1
        if _QUANTIFIER.match(self._pattern, self._at) is not None:
            raise self.invalid(f"bad repetition operator: {text}")
        is_unlimited = found[0] in "*+" or found[0].endswith(",}") or max(limits, default=0) > 10
        return text, is_unlimited

    def _atom(self, depth: int) -> tuple[str, bool, bool]:
        """Returns an atom, whether it repeats something, and whether it may be repeated."""
        character = self._pattern[self._at]
        if character == "(":
            return self._group(depth)
        if character in "*+?":
            raise self.invalid(f"no argument for repetition operator: {character}")
        if character == "[":
            return self._class(), False, True
        if character == "\\":
            return self._escape(), False, True
        self._at += 1
        if character == "^":
            return ("(?m:^)" if self._flags["m"] else "^"), False, True
        if character == "$":
            return ("(?m:$)" if self._flags["m"] else r"\Z"), False, True
        if character == ".":
            return self._flagged("(?s:.)" if self._flags["s"] else "."), False, True
        if character == "{":
            character = r"\{"
        elif character in "]}":
            character = "\\" + character
        return self._flagged(character), False, True

    def _flagged(self, text: str) -> str:
        return f"(?i:{text})" if self._flags["i"] else text

    def _group(self, depth: int) -> tuple[str, bool, bool]:
        pattern, start = self._pattern, self._at
        self._at += 1
        before = dict(self._flags)
        opening = "("
        if pattern.startswith("(?", start):
            named = re.compile(r"\?P?<(\w+)>").match(pattern, start + 1)
            flagged = _FLAGS.match(pattern, start + 1)
            if named is not None:
                self._at = named.end()
                opening = f"(?P<{named[1]}>"
            elif flagged is not None:
                self._at = flagged.end()
                self._set_flags(flagged)
                if flagged["end"] == ")":
                    return "", False, False
                opening = "(?:"
            else:
                raise self.invalid(f"invalid perl operator: {pattern[start : start + 4]}")
        inner, repeats = self._alternatives(depth + 1)
        if self._at >= len(pattern):
            raise self.invalid(f"missing ): {pattern}")
        self._at += 1
        self._flags = before
        return f"{opening}{inner})", repeats, True

    def _set_flags(self, found: re.Match[str]) -> None:
        if "U" in (found["on"] or "") + (found["off"] or ""):
            raise self._unsupported("the flag U, which Python has not")
        self._flags = dict(self._flags)
        for flag in found["on"] or "":
            self._flags[flag] = True
        for flag in found["off"] or "":
            self._flags[flag] = False

    # --- escapes and classes

    def _escape(self) -> str:
        following = self._pattern[self._at + 1 : self._at + 2]
        if not following:
            raise self.invalid("trailing \\")
        if following == "z":
            self._at += 2
            return r"\Z"
        if following == "Q":
            end = self._pattern.find("\\E", self._at)
            quoted = self._pattern[self._at + 2 : end if end >= 0 else None]
            self._at = end + 2 if end >= 0 else len(self._pattern)
            return f"(?:{self._flagged(re.escape(quoted))})"
        if following in "bBA":
            self._at += 2
            return "\\" + following
        if following == "C":
            raise self._unsupported(r"\C, a single byte, which Python has not")
        inside, is_negated = self._class_escape()
        if len(inside) > 1 or is_negated:
            return self._flagged(f"[{'^' if is_negated else ''}{inside}]")
        return self._flagged(re.escape(inside))

    def _class_escape(self) -> tuple[str, bool]:
        """Returns an escape as what stands within brackets, and whether it means all others."""
        pattern = self._pattern
        following = pattern[self._at + 1 : self._at + 2]
        if following in "sS":
            self._at += 2
            return _SPACE, following == "S"
        if following in "dDwW":
            self._at += 2
            return _POSIX["digit" if following in "dD" else "word"], following in "DW"
        if following in "pP":
            return self._property()
        code = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|x\{([0-9A-Fa-f]+)\}|([0-7]{1,3}))").match(
            pattern, self._at
        )
        if code is not None and not (code[3] and code[3][0] != "0" and len(code[3]) == 1):
            self._at = code.end()
            point = int(code[1] or code[2] or code[3], 8 if code[3] else 16)
            if point > sys.maxunicode:
                raise self.invalid(f"invalid escape sequence: {code[0]}")
            return re.escape(chr(point)), False
        self._at += 2
        if following in "afnrtv":
            return "\\" + following, False
        if following.isalnum() and following.isascii():
            raise self.invalid(f"invalid escape sequence: \\{following}")
        return re.escape(following), False

    def _property(self) -> tuple[str, bool]:
        found = re.compile(r"\\([pP])(?:\{(\^?)(\w+)\}|(\w))").match(self._pattern, self._at)
        if found is None:
            raise self.invalid("invalid character class range")
        self._at = found.end()
        ranges = _category(found[3] or found[4])
        if not ranges:
            raise self._unsupported(f"{found[0]}: only general categories are known, as \\p{{Lu}}")
        return ranges, (found[1] == "P") != (found[2] == "^")

    def _class(self) -> str:
        pattern = self._pattern
        self._at += 1
        out = "["
        if pattern.startswith("^", self._at):
            out, self._at = "[^", self._at + 1
        is_first = True
        while is_first or not pattern.startswith("]", self._at):
            if self._at >= len(pattern):
                raise self.invalid(f"missing ]: {pattern}")
            out += self._class_item(is_first)
            is_first = False
        self._at += 1
        return self._flagged(out + "]")

    def _class_item(self, is_first: bool) -> str:
        pattern = self._pattern
        posix = re.compile(r"\[:(\^?)(\w+):\]").match(pattern, self._at)
        if posix is not None:
            if posix[2] not in _POSIX:
                raise self.invalid(f"invalid character class range: {posix[0]}")
            self._at = posix.end()
            return _negated(_POSIX[posix[2]]) if posix[1] else _POSIX[posix[2]]
        character = pattern[self._at]
        if character == "\\":
            inside, is_negated = self._class_escape()
            return _negated(inside) if is_negated else inside
        self._at += 1
        if character == "-" and not is_first and not pattern.startswith("]", self._at):
            return "-"
        return "\\" + character if character in "[]-&~|^" else character


@functools.cache
def _category(name: str) -> str:
    """Returns the characters of a general category of Unicode as what stands within brackets."""
    points = [p for p in range(sys.maxunicode + 1) if unicodedata.category(chr(p)).startswith(name)]
    return _ranges(points)


def _negated(inside: str) -> str:
    """Returns all characters but some, as what stands within brackets."""
    expression = re.compile(f"[{inside}]", re.ASCII)
    points = range(sys.maxunicode + 1)
    return _ranges([p for p in points if expression.match(chr(p)) is None])


def _ranges(points: list[int]) -> str:
    ranges: list[list[int]] = []
    for point in points:
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return "".join(
        rf"\U{first:08x}" + (rf"-\U{last:08x}" if last > first else "") for first, last in ranges
    )
