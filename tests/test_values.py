"""TensorProto and AttrValue against TensorFlow's own reading and writing, for every dtype."""

from __future__ import annotations

import resource
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jaxmeta import dtypes, errors, values
from jaxmeta._proto import graph_pb2

DTYPES = [str(dtype) for dtype in dtypes._DTYPE_TO_NUMBER]  # every dtype that has a number
# TensorFlow's Python API makes no tensors of these.
NOT_IN_TENSORFLOW = {"float8_e4m3fnuz", "float8_e4m3b11fnuz", "float8_e5m2fnuz"}
THEIR_DTYPES = [name for name in DTYPES if name not in NOT_IN_TENSORFLOW]
# TensorFlow writes arrays of these number by number; we write their bytes, which it reads too.
NUMBER_BY_NUMBER = {"bool", "complex64", "complex128", "int2", "int4", "uint2", "uint4", "uint16"}
SHAPES = [(), (1,), (0,), (3,), (2, 3), (2, 0, 3), (1, 1)]


def numpy_dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


def array(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    dtype = numpy_dtype(name)
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(dtype)
    if name.endswith(("int2", "int4")):
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    real = rng.normal(size=shape)
    if dtype.kind == "c":
        real = real + 1j * rng.normal(size=shape)
    return np.asarray(real).astype(dtype)


def assert_same(found: Any, expected: Any) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()


def to_theirs(tf, proto: graph_pb2.TensorProto) -> Any:
    theirs = tf.make_tensor_proto(0).__class__()
    theirs.ParseFromString(proto.SerializeToString())
    return theirs


def to_ours(proto: Any) -> graph_pb2.TensorProto:
    return graph_pb2.TensorProto.FromString(proto.SerializeToString())


# --- tensors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tensor_comes_back_bit_for_bit(dtype, shape, rng):
    expected = array(dtype, shape, rng)
    proto = values.tensor_to_proto(expected)
    assert proto.dtype == dtypes.dtype_to_number(expected.dtype)
    assert_same(values.tensor_from_proto(proto), expected)


@pytest.mark.needs_tf
@pytest.mark.parametrize("dtype", THEIR_DTYPES)
def test_tensorflow_reads_the_tensors_we_write(dtype, rng, tensorflow):
    number = dtypes.dtype_to_number(numpy_dtype(dtype))
    theirs_dtype = tensorflow.dtypes.as_dtype(number).as_numpy_dtype
    for shape in SHAPES:
        expected = array(dtype, shape, rng)
        found = tensorflow.make_ndarray(to_theirs(tensorflow, values.tensor_to_proto(expected)))
        assert found.dtype == theirs_dtype
        assert found.shape == shape
        assert found.astype(expected.dtype).tobytes() == expected.tobytes()


@pytest.mark.needs_tf
@pytest.mark.parametrize("dtype", THEIR_DTYPES)
def test_we_read_the_tensors_that_tensorflow_writes(dtype, rng, tensorflow):
    number = dtypes.dtype_to_number(numpy_dtype(dtype))
    theirs_dtype = tensorflow.dtypes.as_dtype(number).as_numpy_dtype
    for shape in SHAPES:
        expected = array(dtype, shape, rng)
        theirs = tensorflow.make_tensor_proto(expected.astype(theirs_dtype), dtype=number)
        assert_same(values.tensor_from_proto(to_ours(theirs)), expected)


@pytest.mark.needs_tf
@pytest.mark.parametrize("dtype", [d for d in THEIR_DTYPES if d not in NUMBER_BY_NUMBER])
def test_tensors_are_written_as_tensorflow_writes_them(dtype, rng, tensorflow):
    """The same fields, so that files do not grow by passing through TensorFlow."""
    expected = array(dtype, (2, 3), rng)
    number = dtypes.dtype_to_number(expected.dtype)
    theirs_dtype = tensorflow.dtypes.as_dtype(number).as_numpy_dtype
    theirs = tensorflow.make_tensor_proto(expected.astype(theirs_dtype), dtype=number)
    assert values.tensor_to_proto(expected) == to_ours(theirs)


FIELDS = {
    "float32": ("float_val", [1.5, -2.5]),
    "float64": ("double_val", [1.5, -2.5]),
    "int32": ("int_val", [1, -2]),
    "int16": ("int_val", [1, -2]),
    "int8": ("int_val", [1, -2]),
    "uint8": ("int_val", [1, 200]),
    "uint16": ("int_val", [1, 60000]),
    "int64": ("int64_val", [1, -(1 << 40)]),
    "uint32": ("uint32_val", [1, 1 << 31]),
    "uint64": ("uint64_val", [1, 1 << 63]),
    "bool": ("bool_val", [False, True]),
    "float16": ("half_val", [0x3C00, 0xC000]),
    "bfloat16": ("half_val", [0x3F80, 0xC000]),
    "complex64": ("scomplex_val", [1.5, -2.5, 0.5, 4.0]),
    "complex128": ("dcomplex_val", [1.5, -2.5, 0.5, 4.0]),
}


def with_field(dtype: str, shape: tuple[int, ...], count: int) -> graph_pb2.TensorProto:
    """Returns a proto of two different values, the first ``count`` of which are there."""
    proto = graph_pb2.TensorProto(dtype=dtypes.dtype_to_number(numpy_dtype(dtype)))
    values.write_shape(proto.tensor_shape, shape)
    field, content = FIELDS[dtype]
    width = 2 if dtype.startswith("complex") else 1
    getattr(proto, field).extend(content[: count * width])
    return proto


@pytest.mark.needs_tf
@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("dtype", FIELDS)
def test_fields_that_are_cut_short_repeat_their_last_value(dtype, count, tensorflow):
    proto = with_field(dtype, (2, 2), count)
    with tensorflow.Graph().as_default() as graph, tensorflow.compat.v1.Session() as session:
        node = tensorflow.compat.v1.NodeDef(name="c", op="Const")
        node.attr["dtype"].type = proto.dtype
        node.attr["value"].tensor.CopyFrom(to_theirs(tensorflow, proto))
        graph_def = tensorflow.compat.v1.GraphDef(node=[node])
        tensorflow.import_graph_def(graph_def, name="")
        expected = session.run(graph.get_tensor_by_name("c:0"))
    found = values.tensor_from_proto(proto)
    assert found.astype(expected.dtype).tobytes() == expected.tobytes()
    assert found.shape == expected.shape


@pytest.mark.parametrize("dtype", FIELDS)
def test_more_values_than_the_shape_holds_are_refused(dtype):
    with pytest.raises(errors.AttrError, match=r"a tensor of shape \(1,\) holds 2 values"):
        values.tensor_from_proto(with_field(dtype, (1,), 2))


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != "bool"])
def test_splat_is_one_value_in_the_file_and_a_view_in_memory(dtype):
    one = np.asarray(1).astype(numpy_dtype(dtype))
    proto = values.splat_to_proto(one, (1000, 1000))
    assert proto.ByteSize() < 64
    found = values.tensor_from_proto(proto)
    assert found.shape == (1000, 1000)
    assert found[999, 999] == one
    assert found.base is not None
    assert not any(found.strides)


def test_splat_of_zeros_is_read_by_tensorflow(tensorflow):
    proto = values.splat_to_proto(np.zeros((), np.float32), (2, 3))
    found = tensorflow.make_ndarray(to_theirs(tensorflow, proto))
    np.testing.assert_array_equal(found, np.zeros((2, 3), np.float32))


def test_bits_of_nan_and_negative_zero_are_kept():
    for dtype, bits in (("float32", np.uint32), ("float16", np.uint16), ("bfloat16", np.uint16)):
        width = np.dtype(bits).itemsize * 8
        odd = np.array([1 << (width - 1), (1 << (width - 1)) - 1, (1 << width) - 5], bits)
        for one in (odd, odd[:1], odd[1:2], odd[2:], odd[2]):
            expected = np.asarray(one).view(numpy_dtype(dtype))
            assert_same(values.tensor_from_proto(values.tensor_to_proto(expected)), expected)


@pytest.mark.parametrize(
    "expected",
    [
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.arange(6, dtype=">f8"),
        np.arange(24).reshape(2, 3, 4).T,
        np.arange(12)[::-2],
        np.broadcast_to(np.float32(3), (2, 2)),
    ],
    ids=["big-endian int", "big-endian float", "transposed", "strided", "broadcast"],
)
def test_arrays_of_any_layout_are_written(expected):
    found = values.tensor_from_proto(values.tensor_to_proto(expected))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "strings",
    [b"one", [b"", b"\xff\x00", "é".encode()], [[b"a", b"b"], [b"c", b"d"]], []],
    ids=["scalar", "bytes", "matrix", "empty"],
)
def test_strings_come_back_as_bytes(strings, tensorflow):
    expected = np.array(strings, dtype=object)
    proto = values.tensor_to_proto(expected)
    found = values.tensor_from_proto(proto)
    assert found.shape == expected.shape
    assert found.tolist() == expected.tolist()
    theirs = tensorflow.make_ndarray(to_theirs(tensorflow, proto))
    assert theirs.tolist() == expected.tolist()


def test_text_is_written_as_utf_8():
    for text in (np.array("é"), np.array(["é", "b"], dtype=object)):
        found = values.tensor_from_proto(values.tensor_to_proto(text))
        assert found.ravel()[0] == "é".encode()


# --- hostile tensors -----------------------------------------------------------------------------


def claiming(shape: tuple[int, ...], number: int, **fields: Any) -> graph_pb2.TensorProto:
    proto = graph_pb2.TensorProto(dtype=number, **fields)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


HUGE = [(1 << 40,), (1 << 20, 1 << 20), (1 << 31, 1 << 31), (1 << 62, 4), (1 << 62, 1 << 62, 2)]


@pytest.mark.parametrize("shape", HUGE, ids=str)
@pytest.mark.parametrize(
    "fields",
    [{}, {"float_val": [1.0]}, {"float_val": [1.0, 2.0]}, {"tensor_content": b"\0" * 16}],
    ids=["nothing", "one value", "two values", "content"],
)
def test_tensor_that_claims_to_be_huge_takes_no_memory(shape, fields):
    proto = claiming(shape, 1, **fields)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        found = values.tensor_from_proto(proto)
        assert found.shape == shape
        assert not any(found.strides), "it is no view of one value"
    except errors.AttrError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 1 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 16  # in KiB


@pytest.mark.parametrize("shape", HUGE, ids=str)
def test_string_tensor_that_claims_to_be_huge_takes_no_memory(shape):
    for strings in ([], [b"a"], [b"a", b"b"]):
        tracemalloc.start()
        try:
            found = values.tensor_from_proto(claiming(shape, dtypes.STRING, string_val=strings))
            assert not any(found.strides)
        except errors.AttrError:
            pass
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < 1 << 20


@pytest.mark.parametrize("length", [0, 1, 11, 13, 100])
def test_content_of_another_length_is_refused(length):
    proto = claiming((3,), 1, tensor_content=b"\0" * length)
    if not length:
        np.testing.assert_array_equal(values.tensor_from_proto(proto), np.zeros(3))
        return
    with pytest.raises(errors.AttrError, match=rf"needs 12 bytes, its content has {length}"):
        values.tensor_from_proto(proto)


@pytest.mark.parametrize("number", [0, 20, 21, 77, 120, 121])
def test_tensor_of_no_numpy_dtype_is_refused(number):
    with pytest.raises(errors.AttrError, match="has no numpy dtype"):
        values.tensor_from_proto(claiming((1,), 0) if not number else claiming((1,), number))


def test_tensor_without_a_known_shape_is_refused():
    unknown = graph_pb2.TensorProto(dtype=1, float_val=[1.0])
    unknown.tensor_shape.unknown_rank = True
    for proto in (unknown, claiming((2, -1), 1, float_val=[1.0])):
        with pytest.raises(errors.AttrError, match="needs a known shape"):
            values.tensor_from_proto(proto)


def test_bool_content_of_other_bytes_is_refused():
    with pytest.raises(errors.AttrError, match="bytes other than 0 and 1"):
        values.tensor_from_proto(claiming((2,), 10, tensor_content=b"\1\2"))


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "float8_e5m2", "int4"])
def test_odd_fields_are_refused_or_read(dtype):
    """Half of a complex number, or too few bytes: never another exception."""
    number = dtypes.dtype_to_number(numpy_dtype(dtype))
    for fields in (
        {"scomplex_val": [1.0]},
        {"dcomplex_val": [1.0, 2.0, 3.0]},
        {"float8_val": b"\1\2\3"},
        {"int_val": [300, -300]},
    ):
        try:
            found = values.tensor_from_proto(claiming((2,), number, **fields))
            assert found.shape == (2,)
        except errors.AttrError:
            pass


# --- shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [None, (), (0,), (None,), (2, None, 0, 1 << 40)], ids=str)
def test_shapes_come_back(shape, tensorflow):
    proto = values.shape_to_proto(shape)
    assert values.shape_from_proto(proto) == shape
    theirs = tensorflow.TensorShape(shape).as_proto()
    assert theirs.SerializeToString() == proto.SerializeToString()


# --- attrs ---------------------------------------------------------------------------------------

ATTRS = [
    (True, None, True),
    (False, None, False),
    (0, None, 0),
    (-(1 << 62), None, -(1 << 62)),
    (np.int64(5), None, 5),
    (0.5, None, 0.5),
    (np.float32(0.25), None, 0.25),
    ("é", None, "é".encode()),
    (b"\xff", None, b"\xff"),
    (np.dtype("float32"), None, 1),
    (values.FunctionRef("f"), None, values.FunctionRef("f")),
    ((1, 2), None, (1, 2)),
    ((True, False), None, (True, False)),
    ((0.5,), None, (0.5,)),
    (("a", b"b"), None, (b"a", b"b")),
    ((np.dtype("int32"), np.dtype("bool")), None, (3, 10)),
    ((values.FunctionRef("f"), values.FunctionRef("g")), None, ("f", "g")),
    ((), None, ()),
    ((2, None), "shape", (2, None)),
    (None, "shape", None),
    ((), "shape", ()),
    (((2,), None, ()), "list(shape)", ((2,), None, ())),
    ((), "list(type)", ()),
]


@pytest.mark.parametrize(("value", "kind", "expected"), ATTRS, ids=str)
def test_attr_comes_back(value, kind, expected):
    found = values.attr_from_proto(values.attr_to_proto(value, kind))
    assert found == expected
    assert type(found) is type(expected)


def test_attr_of_tensors_comes_back():
    one, two = np.arange(3, dtype=np.float32), np.array([[True]])
    assert_same(values.attr_from_proto(values.attr_to_proto(one)), one)
    found = values.attr_from_proto(values.attr_to_proto([one, two], "list(tensor)"))
    for have, want in zip(found, (one, two), strict=True):
        assert_same(have, want)


@pytest.mark.needs_tf
@pytest.mark.parametrize(("value", "kind", "expected"), ATTRS, ids=str)
def test_attr_is_read_by_tensorflow(value, kind, expected, tensorflow):
    theirs = tensorflow.compat.v1.AttrValue()
    content = values.attr_to_proto(value, kind).SerializeToString(deterministic=True)
    theirs.ParseFromString(content)
    assert theirs.SerializeToString(deterministic=True) == content
    del expected


def test_attr_without_a_value_is_none_and_a_placeholder_is_refused():
    assert values.attr_from_proto(graph_pb2.AttrValue()) is None
    with pytest.raises(errors.AttrError, match="placeholder, 'T', without a value"):
        values.attr_from_proto(graph_pb2.AttrValue(placeholder="T"))


@pytest.mark.parametrize(
    "value", [object(), {"a": 1}, None, [object()]], ids=["object", "dict", "none", "objects"]
)
def test_attr_cannot_hold_other_things(value):
    with pytest.raises(errors.AttrError, match="an attr cannot hold"):
        values.attr_to_proto(value)


# --- dtypes --------------------------------------------------------------------------------------


@pytest.mark.needs_tf
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_of_dtypes_are_those_of_tensorflow(dtype, tensorflow):
    number = dtypes.dtype_to_number(numpy_dtype(dtype))
    theirs = tensorflow.dtypes.as_dtype(number)
    assert np.dtype(theirs.as_numpy_dtype) == numpy_dtype(dtype)
    assert theirs.name == dtypes.dtype_name(number)


@pytest.mark.needs_tf
def test_every_dtype_of_tensorflow_has_a_pair_or_is_opaque(tensorflow):
    from tensorflow.core.framework import types_pb2

    unknown = []
    for name, number in types_pb2.DataType.items():
        if dtypes.base_number(number) in (0, dtypes.RESOURCE, dtypes.VARIANT):
            continue
        try:
            assert dtypes.base_number(number) < 100
            dtypes.dtype_from_number(number)
        except errors.AttrError:
            unknown.append(name)
    assert unknown == []
