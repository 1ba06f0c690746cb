"""Graphs of TensorFlow's ops on arrays: counts, updates, segments and special functions."""

from __future__ import annotations

import numpy as np
from tensorflow_graphs import raw, written

from jaxmeta.ops._definition import f32, i32

# --- special functions -------------------------------------------------------------------------

for _op in ("BesselI0", "BesselI1", "BesselJ0", "BesselJ1", "Dawsn", "FresnelCos", "FresnelSin"):
    raw(_op, f32(12, low=-6.0, high=6.0), has_gradient=True)
for _op in ("BesselY0", "BesselY1", "BesselK0", "BesselK0e", "BesselK1", "BesselK1e", "Expint"):
    raw(_op, f32(12, low=0.3, high=6.0), has_gradient=True)
for _op in ("BesselJ0", "BesselJ1", "BesselY0", "BesselY1", "BesselK0e", "BesselK1e"):
    raw(_op, f32(12, low=20.0, high=35.0))
raw("Spence", f32(12, low=0.1, high=6.0), has_gradient=True)

# --- counts ------------------------------------------------------------------------------------

NUMBERS = i32(11, low=0, high=3)
raw("Bincount", NUMBERS, constants=(5, np.zeros(0, np.float32)))
raw("Bincount", NUMBERS, constants=(9, np.linspace(0, 1, 11, dtype=np.float32)))
for _binary in (False, True):
    for _shape in ((11,), (3, 4)):
        _counted = i32(*_shape, low=0, high=3)
        _options = {"binary_output": _binary}
        raw("DenseBincount", _counted, constants=(5, np.zeros(0, np.float32)), **_options)
        raw("DenseBincount", _counted, constants=(5, np.zeros(0, np.int64)), **_options)

    @written("RaggedBincount", NUMBERS)
    def ragged_counts(tf, x, binary=_binary):
        return tf.raw_ops.RaggedBincount(
            splits=tf.constant([0, 3, 3, 11], tf.int64),
            values=x,
            size=5,
            weights=tf.zeros([0]),
            binary_output=binary,
        )

    @written("SparseBincount", NUMBERS)
    def sparse_counts(tf, x, binary=_binary):
        return tf.raw_ops.SparseBincount(
            indices=tf.constant([[i // 4, i % 4] for i in range(11)], tf.int64),
            values=x,
            dense_shape=tf.constant([3, 4], tf.int64),
            size=5,
            weights=tf.constant(np.linspace(0, 1, 11, dtype=np.float32)),
            binary_output=binary,
        )


raw("DenseBincount", i32(3, 4, low=0, high=3), f32(3, 4), constants=(6,), reorder=(0, 2, 1))
raw("HistogramFixedWidth", f32(40), constants=(np.float32([-1.5, 1.0]), 7))
raw("HistogramFixedWidth", i32(40, low=-9, high=9), constants=([-5, 6], 4), dtype=np.int64)
raw("Bucketize", f32(9), boundaries=[-1.0, 0.0, 0.5])
for _op in ("LowerBound", "UpperBound"):

    @written(_op, i32(2, 9, low=0, high=3), i32(2, 5, low=0, high=3))
    def bounds(tf, x, sought, op=_op):
        return getattr(tf.raw_ops, op)(sorted_inputs=tf.sort(x, axis=1), values=sought)


# --- updates -----------------------------------------------------------------------------------

raw("Empty", constants=([2, 3],), dtype=np.float32, init=True)
for _op in ("InplaceAdd", "InplaceSub", "InplaceUpdate"):

    @written(_op, f32(4, 3), f32(2, 3))
    def inplace(tf, x, rows, op=_op):
        return getattr(tf.raw_ops, op)(x=x * 2, i=[2, 0], v=rows)


raw("PopulationCount", i32(9, low=-99, high=99))
raw("UnravelIndex", constants=([5, 0, 23], [2, 3, 4]))
raw("UnravelIndex", constants=(np.int64(7), np.int64([2, 3, 4])))
raw("CheckNumericsV2", f32(3), message="bad")
raw("Copy", f32(3))
raw("CopyHost", f32(3))
raw("DeepCopy", f32(3))
raw("GuaranteeConst", f32(3))
raw("DebugGradientIdentity", f32(3))
for _reverse in (False, True):
    raw("NthElement", f32(3, 6), constants=(2,), reverse=_reverse, has_gradient=True)


@written("ParallelConcat", f32(1, 3), f32(1, 3))
def stacked(tf, x, y):
    return tf.raw_ops.ParallelConcat(values=[x, y], shape=[2, 3])


@written("ScatterNdNonAliasingAdd", f32(5, 2), f32(3, 2), has_gradient=True)
def added_rows(tf, x, updates):
    indices = tf.constant([[4], [1], [1]])
    return tf.raw_ops.ScatterNdNonAliasingAdd(input=x, indices=indices, updates=updates)


@written("TensorStridedSliceUpdate", f32(5, 6), f32(2, 3), has_gradient=True)
def updated_slice(tf, x, value):
    return tf.raw_ops.TensorStridedSliceUpdate(
        input=x, begin=[1, 0], end=[3, 6], strides=[1, 2], value=value
    )


@written("ResourceStridedSliceAssign", f32(2, 3))
def assigned_slices(tf, value):
    results = []
    for is_resource in (False, True):
        variable = tf.compat.v1.get_variable(
            f"v_{is_resource}", initializer=tf.zeros([4, 3]), use_resource=is_resource
        )
        variable._is_reference = not is_resource
        with tf.control_dependencies([variable.initializer]):
            update = variable[1:3].assign(value).op
        with tf.control_dependencies([update]):
            results.append(variable.read_value())
    return results


# --- segments ----------------------------------------------------------------------------------

INDICES = np.int32([4, 0, 0, 3])
SEGMENTS = np.int32([0, 0, 2, 2])
for _kind in ("Sum", "Mean", "SqrtN"):
    for _indices in (INDICES, INDICES.astype(np.int64)):
        raw(
            f"SparseSegment{_kind}WithNumSegments",
            f32(5, 2),
            constants=(_indices, SEGMENTS, 4),
            has_gradient=True,
        )
    raw(f"SparseSegment{_kind}", f32(5, 2), constants=(INDICES, SEGMENTS), has_gradient=True)
    raw(f"SparseSegment{_kind}Grad", f32(3, 2), constants=(INDICES, SEGMENTS, 6))
    raw(f"SparseSegment{_kind}GradV2", f32(3, 2), constants=(INDICES, SEGMENTS, 6))


@written("UniqueV2", i32(4, 2, low=0, high=-2))
def unique_along_axes(tf, x):
    of_rows = tf.raw_ops.UniqueV2(x=x, axis=[0])
    of_all = tf.raw_ops.UniqueV2(x=x[:, 0], axis=tf.zeros([0], tf.int64))
    return [*of_rows, *of_all, *tf.raw_ops.UniqueWithCountsV2(x=x, axis=[1])]


ALIASES = (
    # TensorFlow's CPU has no kernels of the first, and makes no new ones of the last.
    *(f"Segment{kind}V2" for kind in ("Sum", "Prod", "Max", "Min")),
    "UniqueWithCountsV2",
    "StridedSliceAssign",
    "Reverse",
    "TopK",
)
