"""Pairs of numpy dtypes and TensorFlow DataType numbers.

JAX's own small floats and ints come from ml_dtypes, which numpy knows as ordinary dtypes.
Typed PRNG keys have no DataType: they are stored as their uint32 key data.
"""

from __future__ import annotations

from typing import Any, Final

import ml_dtypes
import numpy as np

from jaxmeta import errors

# Numbers as in TensorFlow's types.proto.
_NUMBERS: Final[dict[str, int]] = {
    "float32": 1,
    "float64": 2,
    "int32": 3,
    "uint8": 4,
    "int16": 5,
    "int8": 6,
    "complex64": 8,
    "int64": 9,
    "bool": 10,
    "bfloat16": 14,
    "uint16": 17,
    "complex128": 18,
    "float16": 19,
    "uint32": 22,
    "uint64": 23,
    "float8_e5m2": 24,
    "float8_e4m3fn": 25,
    "float8_e4m3fnuz": 26,
    "float8_e4m3b11fnuz": 27,
    "float8_e5m2fnuz": 28,
    "int4": 29,
    "uint4": 30,
    "int2": 31,
    "uint2": 32,
    "float4_e2m1fn": 33,
}

STRING: Final = 7
RESOURCE: Final = 20
VARIANT: Final = 21
_REF_OFFSET: Final = 100  # DT_FLOAT_REF = DT_FLOAT + 100, and so on
_OPAQUE: Final = {STRING: "string", RESOURCE: "resource", VARIANT: "variant"}
# Quantized types hold plain integers.
_QUANTIZED: Final = {11: "int8", 12: "uint8", 13: "int32", 15: "int16", 16: "uint16"}


def _numpy_dtype(name: str) -> np.dtype[Any] | None:
    scalar_type = getattr(ml_dtypes, name, None)
    try:
        return np.dtype(scalar_type if scalar_type is not None else name)
    except TypeError:  # an ml_dtypes older than the type
        return None


_DTYPE_TO_NUMBER: Final[dict[np.dtype[Any], int]] = {
    dtype: number for name, number in _NUMBERS.items() if (dtype := _numpy_dtype(name)) is not None
}
_NUMBER_TO_DTYPE: Final[dict[int, np.dtype[Any]]] = {
    **{number: dtype for dtype, number in _DTYPE_TO_NUMBER.items()},
    **{number: np.dtype(name) for number, name in _QUANTIZED.items()},
    STRING: np.dtype(object),
}


def dtype_to_number(dtype: Any) -> int:
    """Returns TensorFlow's DataType number of a numpy or JAX dtype.

    Raises:
        DtypeError: TensorFlow has no such type.
    """
    try:
        return _DTYPE_TO_NUMBER[dtype]
    except (KeyError, TypeError):
        pass
    try:
        dtype = np.dtype(dtype)
    except TypeError:
        raise errors.DtypeError(f"dtype {dtype} has no TensorFlow DataType") from None
    if dtype in _DTYPE_TO_NUMBER:
        return _DTYPE_TO_NUMBER[dtype]
    if dtype.kind in "OSU":
        return STRING
    raise errors.DtypeError(f"dtype {dtype} has no TensorFlow DataType")


def dtype_from_number(number: int) -> np.dtype[Any]:
    """Returns the numpy dtype of a DataType number; references count as their base type.

    Raises:
        DtypeError: the number is unknown, or stands for a resource or variant.
    """
    base = number - _REF_OFFSET if number > _REF_OFFSET else number
    try:
        return _NUMBER_TO_DTYPE[base]
    except KeyError:
        name = _OPAQUE.get(base, "unknown")
        raise errors.DtypeError(f"DataType {number} ({name}) has no numpy dtype") from None


_SCALE: Final = _numpy_dtype("float8_e8m0fnu")  # which TensorFlow has not


def is_scale(dtype: Any) -> bool:
    """Returns whether a dtype is that of scales, powers of two, which TensorFlow has not."""
    return _SCALE is not None and bool(dtype == _SCALE)


def dtype_from_name(name: str) -> np.dtype[Any]:
    """Returns the numpy dtype of a name, also of those that TensorFlow has not.

    Raises:
        DtypeError: there is none of that name here.
    """
    dtype = _numpy_dtype(name)
    if dtype is None:
        raise errors.DtypeError(f"there is no dtype named {name!r}")
    return dtype


def pairs() -> list[tuple[np.dtype[Any], int]]:
    """Returns all numpy dtypes that TensorFlow has, with their DataType numbers."""
    return list(_DTYPE_TO_NUMBER.items())


def is_reference(number: int) -> bool:
    """Returns whether a DataType number is that of a reference, such as ``DT_FLOAT_REF``."""
    return number > _REF_OFFSET


def base_number(number: int) -> int:
    """Returns the DataType number without its reference flag."""
    return number - _REF_OFFSET if number > _REF_OFFSET else number


def dtype_name(number: int) -> str:
    """Returns a short name for a DataType number, such as ``float32`` or ``resource``."""
    base = base_number(number)
    if base in _OPAQUE:
        return _OPAQUE[base]
    dtype = _NUMBER_TO_DTYPE.get(base)
    return str(dtype) if dtype is not None else f"DataType({number})"
