"""Values as text: printing, formatting, assertions, and the time.

The text is TensorFlow's (core/framework/tensor.cc, SummarizeValue).
"""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

import jax
import numpy as np

from jaxmeta import errors
from jaxmeta.ops._cells import check
from jaxmeta.ops._definition import kernel, traced_kernel
from jaxmeta.ops._string_arrays import scalar_string, string_array

_LOG_LEVELS: Final = {
    b"log(info)": logging.INFO,
    b"log(warning)": logging.WARNING,
    b"log(error)": logging.ERROR,
}
_FILE: Final = b"file://"
_ESCAPES: Final = {10: b"\\n", 13: b"\\r", 9: b"\\t", 34: b'\\"', 39: b"\\'", 92: b"\\\\"}
_logger = logging.getLogger(__name__)


@traced_kernel("Assert")
def assert_at_the_end(state: Any, condition: Any, *data: Any) -> tuple[()]:
    """Has the run fail when it ends; it runs again op by op then, and shows the data."""
    del data
    check(state, condition, "an assertion of the graph does not hold")
    return ()


@kernel("Assert", is_host=True)
def assert_kernel(condition: Any, *data: Any, summarize: int) -> tuple[()]:
    if isinstance(condition, jax.core.Tracer):
        # Where a graph is differentiated or becomes a function there is no value to look at; XLA
        # leaves it out too.
        _logger.warning("An assertion is left out where its graph is traced: it has no value yet")
    elif not np.all(condition):
        shown = [np.ravel(item)[: summarize if summarize >= 0 else None].tolist() for item in data]
        raise errors.InvalidArgumentError(f"an assertion of the graph does not hold: {shown}")
    return ()


@kernel("Print", is_host=True)
def print_kernel(
    state: Any,
    input: Any,
    *data: Any,
    message: bytes,
    first_n: int,
    summarize: int,
    node_name: str,
) -> Any:
    if any(isinstance(item, jax.core.Tracer) for item in (input, *data)):
        _logger.warning("%r prints nothing where its graph is traced", node_name)
        return input
    counter = state.resources.get_or_make(("print", node_name), itertools.count)
    if first_n < 0 or next(counter) < first_n:
        texts = [f"[{summarize_value(np.asarray(item), summarize)}]" for item in data]
        shown = (message.decode(errors="surrogateescape") + "".join(texts)).encode(
            errors="surrogateescape"
        )
        print(shown.decode(errors="replace"), file=sys.stderr, flush=True)
    return input


@kernel("PrintV2", is_host=True)
def print_v2(state: Any, input: Any, *, output_stream: bytes, end: bytes) -> tuple[()]:
    content = scalar_string(input)
    text = (content + end).decode(errors="replace")
    if output_stream in (b"stdout", b"stderr"):
        stream = sys.stdout if output_stream == b"stdout" else sys.stderr
        print(text, end="", file=stream, flush=True)
    elif output_stream in _LOG_LEVELS:
        _logger.log(_LOG_LEVELS[output_stream], "%s", content.decode(errors="replace"))
    elif output_stream.startswith(_FILE):
        with open(state.resources.files.path(output_stream), "ab") as file:
            file.write(content + end)
    else:
        raise errors.InvalidArgumentError(f"Unknown output stream: {output_stream!r}")
    return ()


@kernel("StringFormat", is_host=True)
def string_format(*inputs: Any, template: bytes, placeholder: bytes, summarize: int) -> Any:
    parts = template.split(placeholder) if placeholder else [template]
    if len(parts) - 1 != len(inputs):
        raise errors.InvalidArgumentError(
            f"num placeholders in template and num inputs must match: {len(parts) - 1} vs. "
            f"{len(inputs)}"
        )
    text = parts[0]
    for item, part in zip(inputs, parts[1:], strict=True):
        array = np.asarray(item)
        text += summarize_value_v2(array, summarize).encode(errors="surrogateescape") + part
    return string_array([text], ())


@kernel("Timestamp", is_host=True)
def timestamp() -> Any:
    return np.asarray(time.time(), np.float64)


# --- how TensorFlow shows a tensor ---------------------------------------------------------------


def summarize_value(array: np.ndarray[Any, Any], max_entries: int) -> str:
    """Returns the first elements of an array, as `tf.Print` shows them.

    >>> summarize_value(np.arange(6).reshape(2, 3), 4)
    '[0 1 2][3...]...'
    """
    limit = array.size if max_entries < 0 else min(max_entries, array.size)
    if not array.ndim:
        shown = _element(array.item(), array.dtype, is_quoted=False) if limit else ""
        return shown + ("..." if array.size > limit else "")
    left = iter(array.ravel().tolist())
    done = 0

    def show(axis: int) -> str:
        nonlocal done
        size = array.shape[axis]
        if axis == array.ndim - 1:
            items: list[str] = []
            for _ in range(size):
                if done >= limit:
                    return " ".join(items) + ("..." if axis else "")
                done += 1
                items.append(_element(next(left), array.dtype, is_quoted=False))
            return " ".join(items)
        text = ""
        for _ in range(size):
            if done >= limit:
                break
            text += f"[{show(axis + 1)}]"
        return text

    return show(0) + ("..." if array.size > limit else "")


def summarize_value_v2(array: np.ndarray[Any, Any], num_at_ends: int) -> str:
    """Returns the first and last elements along each axis, as `tf.print` shows them.

    >>> summarize_value_v2(np.arange(14), 2)
    '[0 1 ... 12 13]'
    """
    ends = array.size if num_at_ends < 0 else min(num_at_ends, array.size)
    if array.dtype.kind == "c":
        array = array.reshape(-1) if array.ndim else array

    def show(part: np.ndarray[Any, Any], axis: int) -> str:
        if not part.ndim:
            return _element(part.item(), array.dtype, is_quoted=True)
        size = len(part)
        places: Sequence[int | None] = range(size)
        if size > 2 * ends:
            places = [*range(ends), None, *range(size - ends, size)]
        below = array.ndim - axis - 1
        space = "\n" * below + " " * (axis + 1) if below else " "
        shown = ["..." if place is None else show(part[place, ...], axis + 1) for place in places]
        return f"[{space.join(shown)}]"

    return show(array, 0)


def _element(value: Any, dtype: Any, *, is_quoted: bool) -> str:
    if isinstance(value, bytes):
        text = b"".join(map(_escaped, value)).decode(errors="surrogateescape")
        return f'"{text}"' if is_quoted else text
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, complex):
        return "?"  # as TensorFlow shows it
    if isinstance(value, float):
        return _number(value, dtype)
    return str(value)


def _number(value: float, dtype: Any) -> str:
    """Returns a real number with as many digits as say which it is."""
    if not np.isfinite(value):
        return str(value)
    few, many = (15, 17) if dtype == np.float64 else (6, 9)
    text = f"{value:.{few}g}"
    known = float(text) if few == 15 else np.float32(text)
    return text if known == value else f"{value:.{many}g}"


def _escaped(byte: int) -> bytes:
    """Returns a byte as C writes it in a string; those of UTF-8 stay as they are."""
    if byte in _ESCAPES:
        return _ESCAPES[byte]
    return bytes([byte]) if byte >= 0x20 and byte != 0x7F else f"\\{byte:03o}".encode()
