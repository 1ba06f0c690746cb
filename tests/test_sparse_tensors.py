"""Sparse tensors, and gradients of `embedding_lookup_sparse`: with TensorFlow as oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import jaxmeta
from jaxmeta import errors
from jaxmeta._proto import meta_graph_pb2

pytestmark = pytest.mark.needs_tf
INDICES = np.int64([[0, 1], [0, 2], [3, 0], [4, 2]])
SHAPE = np.int64([6, 3])
WORDS = np.array([b"a", b"", b"c\xc3\xa9", b"d"], object)


def grad(raw: Any, op: str, size: int = 7) -> Any:
    rng = np.random.default_rng(9)
    return getattr(raw, op)(
        grad=rng.standard_normal((3, 2)).astype(np.float32),
        indices=np.int32([4, 0, 4, 2, 6]),
        segment_ids=np.int32([0, 0, 1, 2, 2]),
        **{"dense_output_dim0" if op.endswith("V2") else "output_dim0": size},
    )


def fill(raw: Any, values: Any, default: Any) -> Any:
    return raw.SparseFillEmptyRows(
        indices=INDICES, values=values, dense_shape=SHAPE, default_value=default
    )


CASES = {
    "Bucketize": lambda raw: [raw.Bucketize(input=[-1.0, 0.0, 3.5, 9.0], boundaries=[0.0, 3.5])],
    "SparseReshape": lambda raw: raw.SparseReshape(
        input_indices=INDICES, input_shape=SHAPE, new_shape=np.int64([2, -1])
    ),
    "SparseReshape of more axes": lambda raw: raw.SparseReshape(
        input_indices=INDICES, input_shape=SHAPE, new_shape=np.int64([3, 2, 3])
    ),
    "SparseFillEmptyRows": lambda raw: fill(raw, np.float32([1, 2, 3, 4]), np.float32(-1)),
    "SparseFillEmptyRows of strings": lambda raw: fill(raw, WORDS, "none"),
    "SparseFillEmptyRowsGrad": lambda raw: raw.SparseFillEmptyRowsGrad(
        reverse_index_map=np.int64([0, 2, 3]), grad_values=np.float32([1, 2, 3, 4, 5])
    ),
    "SparseReorder": lambda raw: raw.SparseReorder(
        input_indices=INDICES[::-1], input_values=WORDS, input_shape=SHAPE
    ),
    "SparseSlice": lambda raw: raw.SparseSlice(
        indices=INDICES,
        values=np.float32([1, 2, 3, 4]),
        shape=SHAPE,
        start=np.int64([0, 1]),
        size=np.int64([4, 9]),
    ),
    "SparseConcat": lambda raw: raw.SparseConcat(
        indices=[INDICES, INDICES[:2]],
        values=[np.float32([1, 2, 3, 4]), np.float32([5, 6])],
        shapes=[SHAPE, SHAPE],
        concat_dim=1,
    ),
    **{
        op: (lambda raw, op=op: [grad(raw, op)])
        for op in ("SparseSegmentSumGrad", "SparseSegmentMeanGrad", "SparseSegmentSqrtNGrad")
    },
    **{
        op: (lambda raw, op=op: list(grad(raw, op)))
        for op in ("SparseSegmentSumGradV2", "SparseSegmentMeanGradV2", "SparseSegmentSqrtNGradV2")
    },
}


@pytest.mark.parametrize("name", CASES)
def test_sparse_tensors_are_what_tensorflow_makes_of_them(tensorflow, name):
    tf1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default(), tf1.Session() as session:
        tensors = list(CASES[name](tensorflow.raw_ops))
        saved = tf1.train.export_meta_graph()
        expected = session.run(tensors)
    found = run_here(saved, [tensor.name for tensor in tensors])
    for one, other in zip(found, expected, strict=True):
        assert np.shape(one) == np.shape(other)
        if other.dtype.kind == "f":
            np.testing.assert_allclose(one, other, rtol=1e-6)
        else:
            assert np.asarray(one).tolist() == other.tolist()


def run_here(saved: Any, fetches: Any, feeds: Any = None) -> Any:
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(meta_graph_pb2.MetaGraphDef.FromString(saved.SerializeToString()))
        return session.run(fetches, feeds)


def test_reshape_to_another_size_is_an_error(tensorflow):
    tf1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default():
        shape = tf1.placeholder(tensorflow.int64, [2], name="shape")
        tensorflow.raw_ops.SparseReshape(
            input_indices=INDICES, input_shape=SHAPE, new_shape=shape, name="y"
        )
        saved = tf1.train.export_meta_graph()
    with pytest.raises(errors.InvalidArgumentError, match="18 dense values"):
        run_here(saved, "y:1", {"shape:0": np.int64([4, 4])})
