"""Pairs of plain Python values and the protos that hold them: AttrValue, TensorProto, shapes.

Nothing else in the package reads or writes the fields of these three messages.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from jaxmeta import dtypes, errors
from jaxmeta._proto import graph_pb2

Shape: TypeAlias = tuple[int | None, ...]
"""A static shape; None is a dimension that is not known."""

_UNKNOWN_DIM: Final = -1
_INTEGERS: Final = (int, np.integer)
_MAX_BYTES: Final = 1 << 62
# Values that a proto repeats beyond those it holds take no more memory than this.
_FILL_LIMIT_BYTES: Final = 1 << 26
# Their values stand in a bytes field, one byte each.
_BYTE_FLOATS: Final = ("float8", "float4")


class FunctionRef(str):
    """The name of a library function, as the value of an attr of type ``func``."""

    __slots__ = ()


# --- shapes ----------------------------------------------------------------------------------


def shape_to_proto(shape: Sequence[int | None] | None) -> graph_pb2.TensorShapeProto:
    """Returns the proto of a shape; None stands for an unknown rank or dimension."""
    proto = graph_pb2.TensorShapeProto()
    write_shape(proto, shape)
    return proto


def write_shape(proto: graph_pb2.TensorShapeProto, shape: Sequence[int | None] | None) -> None:
    """Writes a shape into a proto that is empty; a symbolic dimension is an unknown one."""
    if shape is None:
        proto.unknown_rank = True
        return
    add = proto.dim.add
    for size in shape:
        dim = add()
        if not isinstance(size, _INTEGERS):
            dim.size = _UNKNOWN_DIM
        elif size:
            dim.size = size


def shape_from_proto(proto: graph_pb2.TensorShapeProto) -> Shape | None:
    """Returns the shape in a proto, or None where the rank is unknown."""
    if proto.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else dim.size for dim in proto.dim)


# --- tensors ---------------------------------------------------------------------------------

_TYPED_FIELDS: Final[dict[str, str]] = {
    "float32": "float_val",
    "float64": "double_val",
    "int32": "int_val",
    "int16": "int_val",
    "int8": "int_val",
    "uint8": "int_val",
    "uint16": "int_val",
    "int4": "int_val",
    "uint4": "int_val",
    "int2": "int_val",
    "uint2": "int_val",
    "bool": "bool_val",
    "int64": "int64_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    "float16": "half_val",
    "bfloat16": "half_val",
    "complex64": "scomplex_val",
    "complex128": "dcomplex_val",
}


def tensor_to_proto(array: Any) -> graph_pb2.TensorProto:
    """Returns the TensorProto of an array, laid out as TensorFlow's ``make_tensor_proto`` does.

    A scalar, or an array that holds one value throughout, is written as that single value.
    """
    proto = graph_pb2.TensorProto()
    write_tensor(proto, array)
    return proto


def write_tensor(proto: graph_pb2.TensorProto, array: Any) -> None:
    """Writes an array into a proto that is empty."""
    array = _little_endian(np.asarray(array))
    number = dtypes.dtype_to_number(array.dtype)
    proto.dtype = number  # type: ignore[assignment]
    write_shape(proto.tensor_shape, array.shape)
    if number == dtypes.STRING:
        proto.string_val.extend(_to_bytes(item) for item in array.ravel().tolist())
        return
    if not array.size:
        return
    name = array.dtype.name
    field = _TYPED_FIELDS.get(name)
    if array.size > 1:
        proto.tensor_content = array.tobytes()
    elif field is not None:
        _write_single(proto, field, array.reshape(())[()])
    elif name.startswith(_BYTE_FLOATS):
        proto.float8_val = array.tobytes()
    else:
        proto.tensor_content = array.tobytes()


def splat_to_proto(value: Any, shape: Sequence[int]) -> graph_pb2.TensorProto:
    """Returns the TensorProto of an array that holds one scalar throughout, without making it."""
    proto = tensor_to_proto(np.asarray(value).reshape(()))
    proto.tensor_shape.Clear()
    write_shape(proto.tensor_shape, shape)
    return proto


def _write_single(proto: graph_pb2.TensorProto, field: str, value: Any) -> None:
    if field in ("scomplex_val", "dcomplex_val"):
        getattr(proto, field).extend((float(value.real), float(value.imag)))
    elif field == "half_val":
        proto.half_val.append(int(np.asarray(value).view(np.uint16)))
    elif field in ("float_val", "double_val"):
        getattr(proto, field).append(float(value))
    elif field == "bool_val":
        proto.bool_val.append(bool(value))
    else:
        getattr(proto, field).append(int(value))


def _little_endian(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("="))
    return array if array.flags.c_contiguous else np.array(array, order="C")


def _to_bytes(item: Any) -> bytes:
    return item.encode() if isinstance(item, str) else bytes(item)


def tensor_from_proto(proto: graph_pb2.TensorProto) -> np.ndarray[Any, Any]:
    """Returns the array in a TensorProto; strings come as an object array of bytes.

    A repeated field shorter than the shape repeats its last value, an absent one is zeros, as
    TensorFlow reads them. A large array of one value is a read-only view of that value.

    Raises:
        AttrError: the content does not fit the dtype and shape.
    """
    dtype = dtypes.dtype_from_number(proto.dtype)
    shape = shape_from_proto(proto.tensor_shape)
    if shape is None or None in shape:
        raise errors.AttrError(f"a tensor needs a known shape, this one has {shape}")
    known_shape: tuple[int, ...] = shape  # type: ignore[assignment]
    size = math.prod(known_shape)
    if size * dtype.itemsize > _MAX_BYTES or any(dim > _MAX_BYTES for dim in known_shape):
        raise errors.AttrError(f"a tensor of shape {known_shape} is larger than memory can be")
    if proto.tensor_content and dtype != object:
        return _from_content(proto.tensor_content, dtype, known_shape, size)
    values = _typed_values(proto, dtype)
    if len(values) > size:
        raise errors.AttrError(f"a tensor of shape {known_shape} holds {len(values)} values")
    if len(values) == size:
        return values.reshape(known_shape)
    last = values[-1] if len(values) else _zero(dtype)
    if len(values) <= 1:
        return np.broadcast_to(np.asarray(last, dtype=dtype), known_shape)
    if size * dtype.itemsize > _FILL_LIMIT_BYTES:
        raise errors.AttrError(f"a tensor of {size} values holds only {len(values)}")
    filled = np.full(size, last, dtype=dtype)
    filled[: len(values)] = values
    return filled.reshape(known_shape)


def _zero(dtype: np.dtype[Any]) -> Any:
    return b"" if dtype == object else np.zeros((), dtype)


def _from_content(
    content: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], size: int
) -> np.ndarray[Any, Any]:
    if len(content) != size * dtype.itemsize:
        raise errors.AttrError(
            f"a tensor of shape {shape} and dtype {dtype} needs {size * dtype.itemsize} bytes, "
            f"its content has {len(content)}"
        )
    array = np.frombuffer(content, dtype=dtype).reshape(shape)
    if dtype == np.bool_ and not np.isin(array.view(np.uint8), (0, 1)).all():
        raise errors.AttrError("a bool tensor holds bytes other than 0 and 1")
    return array


@functools.cache
def _typed_field(dtype: np.dtype[Any]) -> str | None:
    """Returns the field that holds single values of a dtype; numpy is slow to say its name."""
    return "float8_val" if dtype.name.startswith(_BYTE_FLOATS) else _TYPED_FIELDS.get(dtype.name)


def _typed_values(proto: graph_pb2.TensorProto, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    if dtype == object:
        values = np.empty(len(proto.string_val), dtype=object)
        values[:] = list(proto.string_val)
        return values
    field = _typed_field(dtype)
    if field is None:
        return np.zeros(0, dtype)
    if field == "float8_val":
        return np.frombuffer(proto.float8_val, dtype=dtype)
    raw = getattr(proto, field)
    if field == "half_val":
        return np.array(raw, dtype=np.int32).astype(np.uint16).view(dtype)
    if field in ("scomplex_val", "dcomplex_val"):
        part = np.float32 if field == "scomplex_val" else np.float64
        if len(raw) % 2:
            raise errors.AttrError(f"{field} holds {len(raw)} parts of complex numbers")
        return np.array(raw, dtype=part).view(dtype)
    if field == "int_val":
        return np.array(raw, dtype=np.int32).astype(dtype)
    return np.array(raw, dtype=dtype)


# --- attrs -----------------------------------------------------------------------------------


def attr_to_proto(value: Any, kind: str | None = None) -> graph_pb2.AttrValue:
    """Returns the AttrValue of a Python value.

    Args:
        value: bool, int, float, str, bytes, numpy dtype (a type), `FunctionRef`, ndarray (a
            tensor), or a list or tuple of one of these. Shapes need ``kind="shape"``.
        kind: the attr's type as OpDefs spell it (``"list(int)"``); guessed from the value where
            it is None.
    """
    proto = graph_pb2.AttrValue()
    write_attr(proto, value, kind)
    return proto


def write_attr(proto: graph_pb2.AttrValue, value: Any, kind: str | None = None) -> None:
    """Writes a Python value into an AttrValue that is empty; see `attr_to_proto`."""
    kind = kind or _guess_kind(value)
    if kind == "tensor" and isinstance(value, graph_pb2.TensorProto):
        kind = "tensor_proto"
    if kind.startswith("list("):
        write_item = _LIST_WRITERS[kind[5:-1]]
        proto.list.SetInParent()
        for item in value:
            write_item(proto.list, item)
        return
    _WRITERS[kind](proto, value)


def _guess_kind(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"list({_guess_kind(value[0])})" if value else "list(int)"
    for types, kind in _KINDS:
        if isinstance(value, types):
            return kind
    raise errors.AttrError(f"an attr cannot hold {value!r} ({type(value).__name__})")


_KINDS: Final[tuple[tuple[Any, str], ...]] = (
    ((bool, np.bool_), "bool"),
    ((int, np.integer), "int"),
    (FunctionRef, "func"),
    ((str, bytes), "string"),
    (np.dtype, "type"),
    ((float, np.floating), "float"),
    (np.ndarray, "tensor"),
    (graph_pb2.TensorProto, "tensor_proto"),
    (graph_pb2.TensorShapeProto, "shape_proto"),
)


def _write_string(proto: graph_pb2.AttrValue, value: Any) -> None:
    proto.s = _to_bytes(value)


def _write_int(proto: graph_pb2.AttrValue, value: Any) -> None:
    proto.i = int(value)


def _write_float(proto: graph_pb2.AttrValue, value: Any) -> None:
    proto.f = float(value)


def _write_bool(proto: graph_pb2.AttrValue, value: Any) -> None:
    proto.b = bool(value)


def _write_type(proto: graph_pb2.AttrValue, value: Any) -> None:
    proto.type = type_number(value)  # type: ignore[assignment]


def _write_attr_shape(proto: graph_pb2.AttrValue, value: Any) -> None:
    proto.shape.SetInParent()
    write_shape(proto.shape, value)


def _write_attr_tensor(proto: graph_pb2.AttrValue, value: Any) -> None:
    write_tensor(proto.tensor, value)


def _write_func(proto: graph_pb2.AttrValue, value: Any) -> None:
    proto.func.name = str(value)


_WRITERS: Final[dict[str, Callable[[graph_pb2.AttrValue, Any], None]]] = {
    "string": _write_string,
    "int": _write_int,
    "float": _write_float,
    "bool": _write_bool,
    "type": _write_type,
    "shape": _write_attr_shape,
    "tensor": _write_attr_tensor,
    "func": _write_func,
    "tensor_proto": lambda proto, value: proto.tensor.CopyFrom(value),
    "shape_proto": lambda proto, value: proto.shape.CopyFrom(value),
}

_LIST_WRITERS: Final[dict[str, Callable[[Any, Any], None]]] = {
    "string": lambda items, value: items.s.append(_to_bytes(value)),
    "int": lambda items, value: items.i.append(int(value)),
    "float": lambda items, value: items.f.append(float(value)),
    "bool": lambda items, value: items.b.append(bool(value)),
    "type": lambda items, value: items.type.append(type_number(value)),
    "shape": lambda items, value: write_shape(items.shape.add(), value),
    "tensor": lambda items, value: write_tensor(items.tensor.add(), value),
    "func": lambda items, value: setattr(items.func.add(), "name", str(value)),
}


def type_number(value: Any) -> int:
    """Returns the DataType number of a value that may be a number already."""
    return value if type(value) is int else dtypes.dtype_to_number(value)


def attr_from_proto(proto: graph_pb2.AttrValue) -> Any:
    """Returns the Python value of an AttrValue.

    Types come as DataType numbers, strings as bytes, functions as `FunctionRef`, tensors as
    arrays, lists as tuples; an AttrValue without a value as None.

    Raises:
        AttrError: the value is an unfilled placeholder, or a tensor that is not well formed.
    """
    kind = proto.WhichOneof("value")
    if kind is None:
        return None
    return _READERS[kind](proto)


def _read_list(proto: graph_pb2.AttrValue) -> tuple[Any, ...]:
    items = proto.list
    for field in ("i", "s", "type", "f", "b"):
        values = getattr(items, field)
        if len(values):
            return tuple(values)
    if len(items.shape):
        return tuple(shape_from_proto(shape) for shape in items.shape)
    if len(items.tensor):
        return tuple(tensor_from_proto(tensor) for tensor in items.tensor)
    return tuple(FunctionRef(func.name) for func in items.func)


def _read_placeholder(proto: graph_pb2.AttrValue) -> Any:
    raise errors.AttrError(f"the attr is a placeholder, {proto.placeholder!r}, without a value")


_READERS: Final[dict[str, Callable[[graph_pb2.AttrValue], Any]]] = {
    "s": lambda proto: proto.s,
    "i": lambda proto: proto.i,
    "f": lambda proto: proto.f,
    "b": lambda proto: proto.b,
    "type": lambda proto: proto.type,
    "shape": lambda proto: shape_from_proto(proto.shape),
    "tensor": lambda proto: tensor_from_proto(proto.tensor),
    "func": lambda proto: FunctionRef(proto.func.name),
    "list": _read_list,
    "placeholder": _read_placeholder,
}
