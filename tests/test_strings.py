"""Ops of strings, and ops of any dtype on strings, run on the host: with TensorFlow as oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import jaxmeta
from jaxmeta import errors
from jaxmeta._proto import meta_graph_pb2

pytestmark = pytest.mark.needs_tf
S = "Ab c", "dé", ""
FLOATS = np.array([1.5, -2.25e-5, 1e10], np.float32)


MATRIX = np.array([["a", "bc"], ["", "d"], ["e", "f"]], dtype=object)

INDICES = np.int64([[0, 1], [2, 0], [3, 2]])

CASES = {
    "StringJoin": lambda raw, s: raw.StringJoin(inputs=[s, "-", s], separator="+"),
    "AsString": lambda raw, s: raw.AsString(input=FLOATS),
    "AsString of ints": lambda raw, s: raw.AsString(input=[3, -70], width=5, fill="0"),
    "AsString of bools": lambda raw, s: raw.AsString(input=[True, False]),
    "AsString exact": lambda raw, s: raw.AsString(input=FLOATS, precision=2, width=8),
    "AsString scientific": lambda raw, s: raw.AsString(input=FLOATS, scientific=True, precision=1),
    "AsString shortest": lambda raw, s: raw.AsString(input=FLOATS, shortest=True),
    "StringLower": lambda raw, s: raw.StringLower(input=s),
    "StringUpper": lambda raw, s: raw.StringUpper(input=s, encoding="utf-8"),
    "StringUpper of bytes": lambda raw, s: raw.StringUpper(input=s),
    "StringStrip": lambda raw, s: raw.StringStrip(input=[" a b\n", "c"]),
    "StringLength": lambda raw, s: raw.StringLength(input=s),
    "StringLength in characters": lambda raw, s: raw.StringLength(input=s, unit="UTF8_CHAR"),
    "StringToNumber": lambda raw, s: raw.StringToNumber(string_tensor=["1.5", "-2e3"]),
    "ShardedFilename": lambda raw, s: raw.ShardedFilename(basename="model", shard=1, num_shards=12),
    "ReduceJoin": lambda raw, s: raw.ReduceJoin(
        inputs=MATRIX, reduction_indices=[1], separator="."
    ),
    "ReduceJoin in order": lambda raw, s: raw.ReduceJoin(
        inputs=MATRIX, reduction_indices=[1, 0], keep_dims=True
    ),
    "Identity": lambda raw, s: raw.Identity(input=s),
    "IdentityN": lambda raw, s: raw.IdentityN(input=[s, np.float32(1)])[0],
    "PlaceholderWithDefault": lambda raw, s: raw.PlaceholderWithDefault(input=s, shape=[3]),
    "Shape": lambda raw, s: raw.Shape(input=s),
    "Size": lambda raw, s: raw.Size(input=s),
    "Rank": lambda raw, s: raw.Rank(input=s),
    "Equal": lambda raw, s: raw.Equal(x=s, y="Ab c"),
    "NotEqual": lambda raw, s: raw.NotEqual(x=s, y="Ab c"),
    "Fill": lambda raw, s: raw.Fill(dims=[2, 2], value="x"),
    "Reshape": lambda raw, s: raw.Reshape(tensor=MATRIX, shape=[2, -1]),
    "ExpandDims": lambda raw, s: raw.ExpandDims(input=s, axis=1),
    "Squeeze": lambda raw, s: raw.Squeeze(input=raw.ExpandDims(input=s, axis=0), axis=[]),
    "Transpose": lambda raw, s: raw.Transpose(x=MATRIX, perm=[1, 0]),
    "Tile": lambda raw, s: raw.Tile(input=s, multiples=[2]),
    "Pack": lambda raw, s: raw.Pack(values=[s, s], axis=1),
    "Unpack": lambda raw, s: raw.Unpack(value=MATRIX, num=2, axis=1)[1],
    "ConcatV2": lambda raw, s: raw.ConcatV2(values=[s, s], axis=0),
    "GatherV2": lambda raw, s: raw.GatherV2(params=s, indices=[[2], [0]], axis=0),
    "Slice": lambda raw, s: raw.Slice(input=MATRIX, begin=[1, 0], size=[-1, 1]),
    "StridedSlice": lambda raw, s: raw.StridedSlice(
        input=MATRIX, begin=[0, 1], end=[0, 2], strides=[2, 1], end_mask=1, shrink_axis_mask=2
    ),
    "SelectV2": lambda raw, s: raw.SelectV2(condition=[True, False, True], t=s, e="no"),
    "Select of rows": lambda raw, s: raw.Select(condition=[True, False, True], x=MATRIX, y=MATRIX),
    "Gather": lambda raw, s: raw.Gather(params=MATRIX, indices=[2, 0]),
    "GatherNd": lambda raw, s: raw.GatherNd(params=MATRIX, indices=[[2, 0], [0, 1]]),
    "ReverseV2": lambda raw, s: raw.ReverseV2(tensor=MATRIX, axis=[0, 1]),
    "Split": lambda raw, s: raw.Split(axis=1, value=MATRIX, num_split=2)[1],
    "SplitV": lambda raw, s: raw.SplitV(value=s, size_splits=[2, -1], axis=0, num_split=2)[0],
    "Unique": lambda raw, s: raw.Unique(x=["b", "a", "b", ""])[0],
    "UniqueWithCounts": lambda raw, s: raw.UniqueWithCounts(x=["b", "a", "b", ""])[2],
    "DynamicPartition": lambda raw, s: raw.DynamicPartition(
        data=MATRIX, partitions=[1, 0, 1], num_partitions=2
    )[1],
    "DynamicStitch": lambda raw, s: raw.DynamicStitch(
        indices=[[0, 3], [[2], [0]]], data=[["a", "b"], [["c"], ["d"]]]
    ),
    "SparseToDense": lambda raw, s: raw.SparseToDense(
        sparse_indices=[[0, 1], [1, 0]],
        output_shape=[2, 2],
        sparse_values=["a", "b"],
        default_value="-",
    ),
    "SparseFillEmptyRows": lambda raw, s: raw.SparseFillEmptyRows(
        indices=INDICES, values=s, dense_shape=np.int64([4, 3]), default_value="none"
    )[1],
    "SparseReorder": lambda raw, s: raw.SparseReorder(
        input_indices=INDICES[::-1], input_values=s, input_shape=np.int64([4, 3])
    )[1],
    "SparseConcat": lambda raw, s: raw.SparseConcat(
        indices=[INDICES] * 2, values=[s, s], shapes=[np.int64([4, 3])] * 2, concat_dim=1
    )[1],
    "EnsureShape": lambda raw, s: raw.EnsureShape(input=s, shape=[None]),
    "ZerosLike": lambda raw, s: raw.ZerosLike(x=s),
    "ShapeN": lambda raw, s: raw.ShapeN(input=[s, MATRIX])[1],
    "ListDiff": lambda raw, s: raw.ListDiff(x=["a", "b", "c"], y=["b"])[1],
    "BroadcastTo": lambda raw, s: raw.BroadcastTo(input=s, shape=[2, 3]),
}


@pytest.mark.parametrize("name", CASES)
def test_strings_are_what_tensorflow_makes_of_them(tensorflow, name):
    tf1 = tensorflow.compat.v1
    fed = np.array([item.encode() for item in S], dtype=object)
    with tensorflow.Graph().as_default(), tf1.Session() as session:
        s = tf1.placeholder(tensorflow.string, [3], name="s")
        tensorflow.identity(CASES[name](tensorflow.raw_ops, s), name="result")
        saved = tf1.train.export_meta_graph()
        expected = session.run("result:0", {s: fed})
    found = run_here(saved, {"s:0": fed})
    assert (
        np.asarray(found, dtype=np.asarray(expected).dtype).tolist()
        == np.asarray(expected).tolist()
    )
    assert np.shape(found) == np.shape(expected)


def run_here(saved: Any, feeds: Any, fetch: str = "result:0") -> Any:
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(meta_graph_pb2.MetaGraphDef.FromString(saved.SerializeToString()))
        return session.run(fetch, feeds)


def test_strings_may_be_fed_as_python_s(tensorflow):
    tf1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default():
        s = tf1.placeholder(tensorflow.string, [2], name="s")
        tensorflow.strings.join([s, "!"], name="result")
        saved = tf1.train.export_meta_graph()
    for fed in (["a", "ü"], np.array(["a", "ü"]), np.array([b"a", "ü".encode()])):
        assert run_here(saved, {"s:0": fed}).tolist() == [b"a!", "ü!".encode()]


def test_numbers_go_through_strings_and_back(tensorflow):
    tf1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default():
        x = tf1.placeholder(tensorflow.float32, [3], name="x")
        text = tensorflow.strings.as_string(tensorflow.matmul(x[None], x[:, None])[0])
        number = tensorflow.strings.to_number(text)
        tensorflow.multiply(number, 2.0, name="result")
        saved = tf1.train.export_meta_graph()
    x = np.array([1.0, 2.0, 0.5], np.float32)
    np.testing.assert_allclose(run_here(saved, {"x:0": x}), [10.5])


def test_assertion_that_does_not_hold_is_an_error(tensorflow):
    tf1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default():
        x = tf1.placeholder(tensorflow.float32, [], name="x")
        with tf1.control_dependencies([tf1.raw_ops.Assert(condition=x > 0, data=["x is", x])]):
            tensorflow.sqrt(x, name="result")
        saved = tf1.train.export_meta_graph()
    assert run_here(saved, {"x:0": np.float32(4)}) == 2
    with pytest.raises(errors.InvalidArgumentError, match=r"does not hold: .*x is.*-1\.0"):
        run_here(saved, {"x:0": np.float32(-1)})


def test_text_that_is_no_number(tensorflow):
    tf1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default():
        s = tf1.placeholder(tensorflow.string, [1], name="s")
        tensorflow.strings.to_number(s, name="result")
        saved = tf1.train.export_meta_graph()
    with pytest.raises(errors.InvalidArgumentError, match="StringToNumber"):
        run_here(saved, {"s:0": ["three"]})


def test_op_without_a_kernel_for_strings_is_named(tensorflow):
    tf1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default():
        s = tf1.placeholder(tensorflow.string, [2], name="s")
        tensorflow.raw_ops.ScatterNd(indices=[[1], [0]], updates=s, shape=[3], name="result")
        saved = tf1.train.export_meta_graph()
    with pytest.raises(
        NotImplementedError, match=r"'result' .* has no kernel for strings or queues"
    ):
        run_here(saved, {"s:0": ["a", "b"]})
