"""Graphs of TensorFlow's ops on sparse tensors, whose values and dense operands are fed."""

from __future__ import annotations

from typing import Any

import numpy as np
from tensorflow_graphs import raw, written

from jaxmeta.ops._definition import Spec, f32

INDICES = np.int64([[0, 1], [0, 3], [2, 0], [2, 2], [3, 1]])
OTHERS = np.int64([[0, 1], [1, 1], [2, 2]])
SHAPE = np.int64([4, 4])
VALUES = f32(5)
COMPLEX = Spec((5,), np.complex64)


def sparse(tf: Any, values: Any, indices: Any = INDICES) -> Any:
    return tf.SparseTensor(tf.constant(indices), values, SHAPE)


def parts(tensor: Any) -> list[Any]:
    return [tensor.indices, tensor.values, tensor.dense_shape]


# --- with dense results ------------------------------------------------------------------------

for _values in (VALUES, COMPLEX):
    for _adjoint_a in (False, True):
        for _adjoint_b in (False, True):

            @written(
                "SparseTensorDenseMatMul",
                _values,
                Spec((3, 4) if _adjoint_b else (4, 3), _values.dtype),
                has_gradient=_values is VALUES,
            )
            def product(tf, values, b, options=(_adjoint_a, _adjoint_b)):
                return tf.sparse.sparse_dense_matmul(sparse(tf, values), b, *options)


@written("SparseTensorDenseAdd", VALUES, f32(4, 4), has_gradient=True)
def sum_with_dense(tf, values, b):
    return tf.sparse.add(sparse(tf, values), b)


for _op in ("Mul", "Div", "Add"):

    @written(f"SparseDenseCwise{_op}", VALUES, f32(4, low=0.5), has_gradient=_op != "Add")
    def at_elements(tf, values, dense, op=_op):
        run = getattr(tf.raw_ops, f"SparseDenseCwise{op}")
        return run(sp_indices=INDICES, sp_values=values, sp_shape=SHAPE, dense=dense)


for _keep in (False, True):
    for _axes in ([0], [1], [0, 1], [-1]):

        @written("SparseReduceSum", VALUES, has_gradient=True)
        def sums(tf, values, axes=_axes, keep=_keep):
            return tf.sparse.reduce_sum(sparse(tf, values), axes, keepdims=keep)

        @written("SparseReduceMax", VALUES)
        def largest(tf, values, axes=_axes, keep=_keep):
            return tf.sparse.reduce_max(sparse(tf, values), axes, keepdims=keep)

        @written("SparseReduceSumSparse", VALUES)
        def sparse_sums(tf, values, axes=_axes, keep=_keep):
            tensor = sparse(tf, values)
            made = tf.sparse.reduce_sum(tensor, axes, keepdims=keep, output_is_sparse=True)
            other = tf.sparse.reduce_max(tensor, axes, keepdims=keep, output_is_sparse=True)
            return parts(made) + parts(other)


@written("SparseSoftmax", VALUES, has_gradient=True)
def softmax(tf, values):
    return tf.sparse.softmax(sparse(tf, values)).values


for _a in (False, True):
    for _b in (False, True):
        raw("SparseMatMul", f32(3, 3), f32(3, 3), transpose_a=_a, transpose_b=_b, has_gradient=True)

# --- with sparse results -----------------------------------------------------------------------


@written("SparseReshape", VALUES)
def reshaped(tf, values):
    tensor = sparse(tf, values)
    return [
        part
        for shape in ([2, 8], [-1], [8, -1])
        for part in parts(tf.sparse.reshape(tensor, shape))
    ]


@written("SparseReorder", VALUES, has_gradient=True)
def reordered(tf, values):
    return parts(tf.sparse.reorder(sparse(tf, values, INDICES[[3, 0, 4, 2, 1]])))


@written("SparseConcat", VALUES, f32(3))
def concatenated(tf, values, others):
    tensors = [sparse(tf, values), sparse(tf, others, OTHERS)]
    return [part for axis in (0, 1) for part in parts(tf.sparse.concat(axis, tensors))]


@written("SparseFillEmptyRows", VALUES, f32())
def filled(tf, values, default):
    return list(
        tf.raw_ops.SparseFillEmptyRows(
            indices=INDICES, values=values, dense_shape=SHAPE, default_value=default
        )
    )


raw("SparseFillEmptyRowsGrad", f32(6), constants=(np.int64([0, 1, 3, 4]),), reorder=(1, 0))


@written("SparseSlice", VALUES)
def sliced(tf, values):
    made = [parts(tf.sparse.slice(sparse(tf, values), [0, 1], size)) for size in ([3, 2], [9, 9])]
    return [*made[0], *made[1]]


@written("SparseSliceGrad", VALUES)
def of_slice(tf, values):
    return tf.gradients(tf.sparse.slice(sparse(tf, values), [0, 1], [3, 2]).values ** 2, values)


@written("SparseSplit", VALUES)
def split_up(tf, values):
    tensors = tf.sparse.split(sparse(tf, values), num_split=3, axis=1)
    return [part for tensor in tensors for part in parts(tensor)]


@written("SparseAdd", VALUES, f32(3))
def added(tf, values, others):
    tensors = (sparse(tf, values), sparse(tf, others, OTHERS))
    return parts(tf.sparse.add(*tensors)) + parts(tf.sparse.add(*tensors, threshold=1.0))


@written("SparseAddGrad", VALUES, f32(3))
def of_sum(tf, values, others):
    total = tf.sparse.add(sparse(tf, values), sparse(tf, others, OTHERS))
    return tf.gradients(total.values**2, [values, others])


@written("SparseSparseMaximum", VALUES, f32(3))
def larger(tf, values, others):
    return parts(tf.sparse.maximum(sparse(tf, values), sparse(tf, others, OTHERS)))


@written("SparseSparseMinimum", VALUES, f32(3))
def smaller(tf, values, others):
    return parts(tf.sparse.minimum(sparse(tf, values), sparse(tf, others, OTHERS)))


ALIASES = ("SparseReduceMaxSparse",)
