"""Strings to numbers and back: raw bytes, base 64, CSV, tensors as protos, compressed data."""

from __future__ import annotations

import base64
import binascii
import gzip
import zlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError

from jaxmeta import dtypes, errors, values
from jaxmeta._proto import graph_pb2
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._string_arrays import map_strings, parse_number, scalar_string, string_array

_MOST_BYTES: Final = 1 << 30  # of what a string may be decompressed to

# --- raw bytes -----------------------------------------------------------------------------------


@kernel("DecodeRaw", is_host=True)
def decode_raw(bytes: Any, *, out_type: int, little_endian: bool) -> Any:
    array = np.asarray(bytes)
    lengths = sorted({len(item) for item in array.ravel()})
    if len(lengths) > 1:
        raise errors.InvalidArgumentError(
            f"DecodeRaw requires input strings to all be the same size, they have {lengths} bytes"
        )
    return _decode(array, lengths[0] if lengths else 0, out_type, little_endian)


@kernel("DecodePaddedRaw", is_host=True)
def decode_padded_raw(
    input_bytes: Any, fixed_length: Any, *, out_type: int, little_endian: bool
) -> Any:
    length = int(fixed_length)
    if length <= 0:
        raise errors.InvalidArgumentError(f"fixed_length must be greater than 0, not {length}")
    padded = map_strings(lambda item: item[:length].ljust(length, b"\0"), input_bytes)
    return _decode(padded, length, out_type, little_endian)


def _decode(array: np.ndarray[Any, Any], length: int, out_type: int, little_endian: bool) -> Any:
    dtype = dtypes.dtype_from_number(out_type)
    if length % dtype.itemsize:
        raise errors.InvalidArgumentError(
            f"Input to DecodeRaw has length {length} that is not a multiple of {dtype.itemsize}, "
            f"the size of {dtype}"
        )
    shape = (*array.shape, length // dtype.itemsize)
    decoded = np.frombuffer(b"".join(array.ravel().tolist()), dtype).reshape(shape)
    return decoded.copy() if little_endian else decoded.byteswap()


@kernel("EncodeBase64", is_host=True)
def encode_base64(input: Any, *, pad: bool) -> Any:
    def encode(item: bytes) -> bytes:
        encoded = base64.urlsafe_b64encode(item)
        return encoded if pad else encoded.rstrip(b"=")

    return map_strings(encode, input)


@kernel("DecodeBase64", is_host=True)
def decode_base64(input: Any) -> Any:
    def decode(item: bytes) -> bytes:
        body = item.rstrip(b"=") if len(item) - len(item.rstrip(b"=")) <= 2 else item
        try:
            if b"+" in body or b"/" in body:
                raise binascii.Error
            padded = body + b"=" * (-len(body) % 4)
            return base64.b64decode(padded, altchars=b"-_", validate=True)
        except binascii.Error:
            raise errors.InvalidArgumentError(
                f"Invalid character found in base64, or a wrong length: {item!r}"
            ) from None

    return map_strings(decode, input)


@kernel("DecodeCompressed", is_host=True)
def decode_compressed(bytes: Any, *, compression_type: bytes) -> Any:
    if compression_type not in (b"", b"ZLIB", b"GZIP"):
        raise errors.InvalidArgumentError(
            f"Only ZLIB, GZIP or NONE are supported compressions, not {compression_type!r}"
        )
    if not compression_type:
        return bytes
    return map_strings(lambda item: decompress(item, compression_type), bytes)


def decompress(content: bytes, kind: bytes) -> bytes:
    """Returns what was compressed by ZLIB or GZIP.

    Raises:
        DataLossError: it is damaged, or larger than is sensible.
    """
    decompressor = zlib.decompressobj(zlib.MAX_WBITS if kind == b"ZLIB" else 16 + zlib.MAX_WBITS)
    try:
        found = decompressor.decompress(content, _MOST_BYTES)
    except (zlib.error, gzip.BadGzipFile) as error:
        raise errors.DataLossError(f"compressed data is damaged: {error}") from None
    if decompressor.unconsumed_tail or not decompressor.eof:
        raise errors.DataLossError("compressed data is truncated, or has more than 1 GiB")
    return found


# --- tensors as protos ---------------------------------------------------------------------------


@kernel("SerializeTensor", is_host=True)
def serialize_tensor(tensor: Any) -> Any:
    array = np.asarray(tensor)
    proto = values.tensor_to_proto(array)
    return string_array([proto.SerializeToString(deterministic=True)], ())


@kernel("ParseTensor", is_host=True)
def parse_tensor(serialized: Any, *, out_type: int) -> Any:
    try:
        proto = graph_pb2.TensorProto.FromString(scalar_string(serialized))
        array = values.tensor_from_proto(proto)
    except (DecodeError, errors.JaxmetaError) as error:
        raise errors.InvalidArgumentError(
            f"Could not parse serialized as TensorProto: {error}"
        ) from None
    if proto.dtype != out_type:
        raise errors.InvalidArgumentError(
            f"Type mismatch between parsed tensor ({dtypes.dtype_name(proto.dtype)}) and dtype "
            f"({dtypes.dtype_name(out_type)})"
        )
    return array


# --- CSV -----------------------------------------------------------------------------------------


@kernel("DecodeCSV", is_host=True)
def decode_csv(
    records: Any,
    *record_defaults: Any,
    OUT_TYPE: Sequence[int],
    field_delim: bytes,
    use_quote_delim: bool,
    na_value: bytes,
    select_cols: Sequence[int],
) -> list[Any]:
    array = np.asarray(records)
    kinds = [dtypes.dtype_from_number(number) for number in OUT_TYPE]
    columns: list[list[Any]] = [[] for _ in kinds]
    for number, record in enumerate(array.ravel().tolist()):
        fields = _fields(record, field_delim, use_quote_delim)
        if select_cols:
            fields = [fields[index] for index in select_cols if index < len(fields)]
        if len(fields) != len(kinds):
            raise errors.InvalidArgumentError(
                f"Expect {len(kinds)} fields but have {len(fields)} in record {number}"
            )
        for index, (field, kind) in enumerate(zip(fields, kinds, strict=True)):
            where = f"Field {index} in record {number}"
            default = np.ravel(record_defaults[index])
            columns[index].append(_field_value(field, kind, na_value, default, where))
    results = []
    for column, kind in zip(columns, kinds, strict=True):
        whole = np.empty(len(column), kind)
        whole[:] = column
        results.append(whole.reshape(array.shape))
    return results


def _field_value(field: bytes, kind: Any, na_value: bytes, default: Any, where: str) -> Any:
    if not field or field == na_value:
        if not default.size:
            raise errors.InvalidArgumentError(f"{where} is required but missing!")
        return default[0]
    if kind == object:
        return field
    try:
        return parse_number(field, kind)
    except errors.InvalidArgumentError:
        raise errors.InvalidArgumentError(f"{where} is not a valid {kind}: {field!r}") from None


def _fields(record: bytes, delimiter: bytes, has_quotes: bool) -> list[bytes]:
    """Returns the fields of a line: RFC 4180, as TensorFlow reads it."""
    if not has_quotes:
        return record.split(delimiter)
    record = record.removesuffix(b"\n").removesuffix(b"\r")
    fields: list[bytes] = []
    at, is_open = 0, True
    while is_open:
        if record[at : at + 1] == b'"':
            field, at = _quoted_field(record, at + 1, delimiter)
        else:
            end = record.find(delimiter, at)
            end = len(record) if end < 0 else end
            field, at = record[at:end], end
            if any(mark in field for mark in (b'"', b"\n", b"\r")):
                raise errors.InvalidArgumentError(
                    f"Unquoted fields cannot have quotes/CRLFs inside: {record!r}"
                )
        fields.append(field)
        is_open = at < len(record)
        at += 1
    return fields


def _quoted_field(record: bytes, at: int, delimiter: bytes) -> tuple[bytes, int]:
    """Returns a field that began with a quote, and where the delimiter after it is."""
    field = b""
    while True:
        end = record.find(b'"', at)
        if end < 0:
            raise errors.InvalidArgumentError(
                f"Quoted field has to end with quote followed by delim, CRLF, or EOF: {record!r}"
            )
        field += record[at:end]
        following = record[end + 1 : end + 2]
        if following != b'"':
            if following not in (b"", delimiter):
                raise errors.InvalidArgumentError(
                    f"Quote inside a string has to be escaped by another quote: {record!r}"
                )
            return field, end + 1
        field, at = field + b'"', end + 2
