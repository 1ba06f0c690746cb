"""Simple arguments for a function, chosen by the names of its parameters.

Parameters that are no arrays (a shape, an axis, a function) have a value by name; all others are
tried with arrays of several kinds, until a few of them trace.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sweep import optax_calls, special_calls

MOST_CALLS = 4

MATRIX = np.random.default_rng(1).uniform(0.1, 0.9, (4, 4)).astype(np.float32)
INTEGERS = np.asarray([3, 1, 2, 0], np.int32)
KINDS: tuple[Any, ...] = (
    MATRIX,
    INTEGERS,
    (MATRIX + 1j * MATRIX.T).astype(np.complex64),
    INTEGERS > 1,
    MATRIX.astype(jnp.bfloat16),
    MATRIX[0],
    MATRIX[0, 0],
    INTEGERS.astype(np.uint8),
    [MATRIX, MATRIX],
    INTEGERS[0],
)
MIXES = ((MATRIX, INTEGERS), (INTEGERS, MATRIX), (MATRIX[0], INTEGERS), (MATRIX, MATRIX[0]))

# By name of the parameter; what is no array is not traced.
VALUES: dict[str, tuple[Any, ...]] = {
    "key": ("key",),
    "rng": ("key",),
    "shape": ((4, 3), ()),
    "sample_shape": ((3,),),
    "new_shape": ((2, 8),),
    "new_sizes": ((2, 8),),
    "axis": (0,),
    "axes": ((0,), 0),
    "axis1": (0,),
    "axis2": (1,),
    "source": (0,),
    "destination": (1,),
    "dimension": (0,),
    "dimensions": ((0,),),
    "dim": (1,),
    "dtype": (np.float32, np.int32),
    "new_dtype": (np.float32, np.int32),
    "n": (3,),
    "num": (3,),
    "N": (3,),
    "M": (4,),
    "k": (2,),
    "d": (3,),
    "m": (2,),
    "p": (2,),
    "num_classes": (4,),
    "repeats": (2,),
    "reps": (2,),
    "decimals": (1,),
    "exponent_bits": (5,),
    "mantissa_bits": (3,),
    "sections": (2,),
    "indices_or_sections": (2,),
    "pad_width": (1,),
    "padding_value": (np.float32(0),),
    "q": (0.25, MATRIX[0]),
    "subscripts": ("ij,jk->ik",),
    "size": (4,),
    "start_index": (1,),
    "limit_index": (3,),
    "start": (0,),
    "stop": (3,),
    "slice_size": (2,),
    "shift": (1,),
    "order": (1,),
    "learning_rate": (0.1,),
    "axis_name": (),
}


@dataclasses.dataclass(frozen=True)
class Call:
    """A function of arrays alone, and what it is called with."""

    fn: Callable[..., Any]
    arrays: tuple[Any, ...]


def calls(name: str, fn: Callable[..., Any]) -> list[Call]:
    """Returns the first few calls of a function that trace."""
    if name in special_calls.CALLS:
        return [Call(call, tuple(arrays)) for call, *arrays in special_calls.CALLS[name]]
    found: list[Call] = []
    for call in possible_calls(name, fn):
        if is_program(call):
            found.append(call)
            if len(found) == MOST_CALLS:
                break
    return found


def possible_calls(name: str, fn: Callable[..., Any]) -> Iterator[Call]:
    module, _, own_name = name.rpartition(".")
    if module == "optax":
        for call, *arrays in optax_calls.calls(own_name, fn):
            yield Call(call, tuple(arrays))
    for arguments in candidates(fn):
        yield bind(fn, arguments)


def is_program(call: Call) -> bool:
    """Returns whether JAX itself traces and lowers a call to something with results."""
    try:
        lowered = jax.jit(call.fn).lower(*call.arrays)
        return bool(jax.tree.leaves(lowered.out_info))
    except Exception:
        return False


def candidates(fn: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """Yields arguments by name; those of one kind of array first."""
    names = required(fn)

    def ordered(values: dict[str, Any]) -> dict[str, Any]:
        return {name: values[name] for name in names}

    fixed = {name: VALUES[name] for name in names if name in VALUES}
    free = [name for name in names if name not in fixed]
    for values in itertools.product(*fixed.values()):
        given = dict(zip(fixed, values, strict=True))
        if not free:
            yield given
        for kind in KINDS if free else ():
            yield ordered(given | dict.fromkeys(free, kind))
        for mix in MIXES if len(free) > 1 else ():
            yield ordered(given | dict(zip(free, [*mix, *[MATRIX] * len(free)], strict=False)))


def required(fn: Callable[..., Any]) -> list[str]:
    """Returns the names of the parameters without a default."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return ["x"]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]
    first = next(iter(parameters), None)
    if not names and first is not None and first.kind is inspect.Parameter.VAR_POSITIONAL:
        return [f"*{first.name}", f"*{first.name}2"]
    return names


def bind(fn: Callable[..., Any], arguments: dict[str, Any]) -> Call:
    """Returns the call with these arguments, in which only arrays are traced."""
    keyword_only = {
        p.name
        for p in inspect.signature(fn).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    arrays = {name: key() if is_key(x) else x for name, x in arguments.items() if is_array(x)}

    def call(*given: Any) -> Any:
        values = arguments | dict(zip(arrays, given, strict=True))
        positional = [values[name] for name in values if name not in keyword_only]
        return fn(*positional, **{name: values[name] for name in values if name in keyword_only})

    return Call(call, tuple(arrays.values()))


def is_key(value: Any) -> bool:
    return isinstance(value, str) and value == "key"


def key() -> Any:
    return jax.random.key(7)


def is_array(value: Any) -> bool:
    return is_key(value) or any(
        isinstance(x, (np.ndarray, np.generic)) for x in jax.tree.leaves(value)
    )
