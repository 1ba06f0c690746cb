"""Graphs of ops that only TensorFlow writes: what makes them, and what they are fed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxmeta import op_defs
from jaxmeta.ops._definition import KERNELS, Spec, bools, f32, i32


@dataclasses.dataclass(frozen=True)
class TensorFlowGraph:
    """A graph that TensorFlow makes of placeholders, whose tensors are compared.

    Attributes:
        op: what it has to hold.
        make: a function of TensorFlow and placeholders that returns tensors.
        specs: of the placeholders.
        has_gradient: whether derivatives are compared too: by TensorFlow's nodes, and by JAX.
    """

    op: str
    make: Callable[..., Any]
    specs: tuple[Spec, ...]
    has_gradient: bool = False


GRAPHS: list[TensorFlowGraph] = []


def raw(
    op: str,
    *specs: Spec,
    constants: tuple[Any, ...] = (),
    has_gradient: bool = False,
    reorder: tuple[int, ...] = (),
    **attrs: Any,
) -> None:
    """Adds a graph of an op that takes placeholders, then constants, in order or reordered."""

    def make(tf: Any, *tensors: Any) -> Any:
        names = [arg.name for arg in op_defs.get_op_def(op).input_arg]
        given = [*tensors, *map(tf.constant, constants)]
        inputs = [given[index] for index in reorder or range(len(given))]
        named = dict(zip(names, inputs, strict=True))
        return getattr(tf.raw_ops, op)(**named, **attrs)

    GRAPHS.append(TensorFlowGraph(op, make, specs, has_gradient))


def written(op: str, *specs: Spec, has_gradient: bool = False) -> Callable[[Any], Any]:
    """Adds the graph that a function of TensorFlow and placeholders makes."""

    def register(make: Any) -> Any:
        GRAPHS.append(TensorFlowGraph(op, make, specs, has_gradient))
        return make

    return register


VECTOR = f32(12, low=-8.0, high=8.0)
PAIRS = (f32(3, 4), f32(3, 4))
IMAGE = f32(2, 6, 5, 4)
INTS = (i32(9, low=-9, high=9), i32(9, low=1, high=4))

# --- elements ----------------------------------------------------------------------------------

for _op in ("Relu", "Relu6", "Elu", "Selu", "Softplus", "Softsign", "LeakyRelu"):
    raw(_op, VECTOR)
for _op in ("ReluGrad", "Relu6Grad", "SoftplusGrad", "SoftsignGrad", "LeakyReluGrad"):
    raw(_op, VECTOR, VECTOR)
for _op in ("EluGrad", "SeluGrad"):
    raw(_op, VECTOR, f32(12, low=-0.9, high=2.0))
for _op in ("TanhGrad", "SigmoidGrad", "ReciprocalGrad", "InvGrad"):
    raw(_op, *PAIRS)
for _op in ("SqrtGrad", "RsqrtGrad"):
    raw(_op, f32(5, low=0.5, high=2.0), f32(5))
for _op in ("Reciprocal", "Inv", "IsNan", "IsInf", "OnesLike", "ZerosLike"):
    raw(_op, f32(5, low=0.5))
raw("Ndtri", f32(5, low=0.1, high=0.9))
raw("Add", f32(3, 4), f32(4))
raw("SquaredDifference", f32(3, 4), f32(4))
raw("Div", *PAIRS)
raw("Div", *INTS)
raw("Mod", *INTS)
raw("MulNoNan", f32(6), f32(6))
raw("DivNoNan", f32(4), constants=(np.float32([0, 1, 0, -2]),))
raw("Xdivy", *PAIRS)
raw("Xlogy", f32(4, low=0.5), f32(4, low=0.5))
raw("Xlog1py", f32(4, low=0.5), f32(4, low=0.5))
raw("ApproximateEqual", f32(5), f32(5), tolerance=1.0)
raw("Cross", f32(2, 3), f32(2, 3))
raw("Angle", Spec((3,), np.complex64))
raw("CheckNumerics", f32(3), message="bad")


@written("AddN", f32(3), f32(3), f32(3))
def add_n(tf, *tensors):
    return tf.raw_ops.AddN(inputs=tensors)


@written("AccumulateNV2", f32(3), f32(3))
def accumulate(tf, *tensors):
    return tf.raw_ops.AccumulateNV2(inputs=tensors, shape=[3])


# --- rows of logits ----------------------------------------------------------------------------

LABELS = i32(5, low=0, high=-1)
raw("Softmax", f32(3, 4))
raw("LogSoftmax", f32(3, 4))
raw("L2Loss", f32(3, 4))
raw("SparseSoftmaxCrossEntropyWithLogits", f32(5, 4), LABELS)
raw("SoftmaxCrossEntropyWithLogits", f32(5, 4), f32(5, 4, low=0.0, high=1.0))
raw("InTopK", f32(5, 4), LABELS, k=2)
raw("InTopKV2", f32(5, 4), LABELS, constants=(2,))
raw("BiasAdd", IMAGE, f32(4))
raw("BiasAddV1", IMAGE, f32(4))
raw("BiasAddGrad", IMAGE)


@written("BiasAdd", f32(2, 3, 4, 5), f32(3))
def bias_of_first_channels(tf, x, bias):
    return tf.raw_ops.BiasAdd(value=x, bias=bias, data_format="NCHW")


# --- images ------------------------------------------------------------------------------------

LRN = {"depth_radius": 2, "bias": 1.5, "alpha": 0.3, "beta": 0.6}
raw("LRN", IMAGE, **LRN)


@written("LRNGrad", IMAGE)
def of_lrn(tf, image):
    return tf.gradients(tf.raw_ops.LRN(input=image, **LRN) ** 2, image)


for _padding, _strides in (("SAME", [1, 2, 2, 1]), ("VALID", [1, 1, 1, 1])):
    _options: dict[str, Any] = {"strides": _strides, "padding": _padding}
    _rows = (3, 3) if _padding == "SAME" else (4, 3)
    raw("DepthwiseConv2dNative", IMAGE, f32(3, 3, 4, 2), **_options)
    for _prefix, _filter, _channels in (
        ("Conv2DBackprop", (3, 3, 4, 5), 5),
        ("DepthwiseConv2dNativeBackprop", (3, 3, 4, 2), 8),
    ):
        _out = f32(2, *_rows, _channels)

        @written(f"{_prefix}Input", f32(*_filter), _out)
        def of_input(tf, weights, gradient, prefix=_prefix, options=_options):
            return getattr(tf.raw_ops, f"{prefix}Input")(
                input_sizes=IMAGE.shape, filter=weights, out_backprop=gradient, **options
            )

        @written(f"{_prefix}Filter", IMAGE, _out)
        def of_filter(tf, image, gradient, prefix=_prefix, options=_options, sizes=_filter):
            return getattr(tf.raw_ops, f"{prefix}Filter")(
                input=image, filter_sizes=sizes, out_backprop=gradient, **options
            )

    @written("MaxPoolGrad", IMAGE)
    def of_max_pool(tf, image, options=_options):
        pooled = tf.raw_ops.MaxPool(input=image, ksize=[1, 3, 3, 1], **options)
        return tf.gradients(pooled * pooled, image)

    @written("AvgPoolGrad", IMAGE)
    def of_avg_pool(tf, image, options=_options):
        pooled = tf.raw_ops.AvgPool(value=image, ksize=[1, 3, 3, 1], **options)
        return tf.gradients(pooled * pooled, image)


CHANNELS = (f32(4), f32(4), f32(4), f32(4, low=0.5, high=2.0))
for _version in ("", "V2", "V3"):
    for _is_training in (True, False):

        @written(f"FusedBatchNorm{_version}", IMAGE, *CHANNELS)
        def normalize(tf, *tensors, version=_version, is_training=_is_training):
            names = ("x", "scale", "offset", "mean", "variance")
            inputs = dict(zip(names, tensors, strict=True))
            options = {"epsilon": 0.01, "is_training": is_training}
            op = getattr(tf.raw_ops, f"FusedBatchNorm{version}")
            results = op(**inputs, **options, exponential_avg_factor=1.0)
            return list(results)[:3]

        @written(f"FusedBatchNormGrad{_version}", IMAGE, *CHANNELS, IMAGE)
        def of_normalized(tf, *tensors, version=_version, is_training=_is_training):
            names = ("x", "scale", "offset", "mean", "variance")
            *inputs, factor = tensors
            op = getattr(tf.raw_ops, f"FusedBatchNorm{version}")
            named = dict(zip(names, inputs, strict=True))
            y = op(**named, epsilon=0.01, is_training=is_training)[0]
            return tf.gradients(y * factor, inputs[:3])


@written("FusedBatchNormV3", IMAGE, *CHANNELS)
def normalize_with_average(tf, *tensors):
    names = ("x", "scale", "offset", "mean", "variance")
    named = dict(zip(names, tensors, strict=True))
    return list(tf.raw_ops.FusedBatchNormV3(**named, exponential_avg_factor=0.25))[:3]


# --- arrays ------------------------------------------------------------------------------------

raw("Pad", f32(2, 3), constants=([[1, 0], [2, 1]],))
for _mode in ("REFLECT", "SYMMETRIC"):
    raw("MirrorPad", f32(3, 4), constants=([[1, 0], [2, 1]],), mode=_mode)
    raw("MirrorPadGrad", f32(4, 7), constants=([[1, 0], [2, 1]],), mode=_mode)
raw("OneHot", i32(2, 3, low=-1, high=0), constants=(4, 2.0, -1.0), axis=1)
raw("OneHot", i32(3, low=-1, high=0), constants=(4, 1.0, 0.0))
raw("LinSpace", constants=(1.0, 2.0, 5))
raw("EnsureShape", f32(3, 4), shape=[3, None])
raw("Roll", f32(3, 4), constants=([1, -2], [0, 1]))
raw("ReverseSequence", f32(3, 5), constants=([2, 5, 0],), seq_dim=1, batch_dim=0)
raw("ReverseSequence", f32(5, 3, 2), constants=([2, 5, 1],), seq_dim=0, batch_dim=1)
raw("MatrixBandPart", f32(2, 4, 5), constants=(1, -1))
raw("SpaceToBatchND", f32(2, 5, 4, 3), constants=([2, 2], [[1, 0], [0, 0]]))
raw("BatchToSpaceND", f32(8, 3, 2, 3), constants=([2, 2], [[1, 0], [0, 1]]))
raw("SpaceToDepth", f32(2, 4, 6, 3), block_size=2)
raw("DepthToSpace", f32(2, 2, 3, 12), block_size=2)
raw("InvertPermutation", constants=([2, 0, 1],))
raw("BroadcastArgs", constants=([3, 1], [4]))


@written("Mean", f32(3, 4, 2))
def means(tf, x):
    by_axis = [tf.reduce_mean(x, axis) for axis in (0, [0, -1], None, [])]
    return [*by_axis, tf.reduce_mean(tf.cast(x * 9, tf.int32), 1, keepdims=True)]


@written("EuclideanNorm", f32(3, 4))
def norms(tf, x):
    return tf.math.reduce_euclidean_norm(x, 1)


@written("Where", bools(4, 5))
def places(tf, x):
    return tf.where(x)


def of_any_shape(tf, x):
    """Returns a tensor whose shape TensorFlow does not know when it writes the graph."""
    return tf.raw_ops.PlaceholderWithDefault(input=x, shape=None)


@written("Concat", f32(2, 3), f32(2, 2))
def concat(tf, x, y):
    return tf.raw_ops.Concat(concat_dim=1, values=[x, y])


@written("Split", f32(2, 6))
def split(tf, x):
    return tf.split(x, 3, axis=-1)


@written("Einsum", f32(2, 3, 4), f32(2, 4, 5))
def einsum(tf, x, y):
    return tf.einsum("bij,bjk->bki", x, y)


@written("ConcatOffset", f32(2, 3), f32(2, 2))
def of_concat(tf, x, y):
    return tf.gradients(tf.concat([x, y], 1) ** 2, [x, y])


@written("BroadcastGradientArgs", f32(3, 1, 4), f32(2, 1))
def of_broadcast(tf, x, y):
    x, y = of_any_shape(tf, x), of_any_shape(tf, y)
    return tf.gradients(x * y + y, [x, y])


@written("BroadcastGradientArgs")
def axes_of_broadcasts(tf):
    shapes = [([3, 1, 4], [2, 1]), ([1, 2], [1, 1]), ([], [2]), ([2, 1], [1, 1, 1]), ([2], [2])]
    return [
        tf.raw_ops.BroadcastGradientArgs(s0=tf.constant(a, tf.int32), s1=tf.constant(b, tf.int32))
        for a, b in shapes
    ]


@written("StridedSliceGrad", f32(5, 6, 3))
def of_slices(tf, x):
    return [tf.gradients(y**2, x) for y in (x[1:4, ::2], x[::-2, 3], x[..., tf.newaxis, 1])]


@written("DynamicStitch", f32(4, 6, 3))
def of_mean(tf, x):
    x = of_any_shape(tf, x)
    return tf.gradients(tf.reduce_mean(x**2, [0, 2]) ** 2, x)


@written("DynamicStitch", f32(2, 3), f32(3, 3))
def stitch(tf, x, y):
    return tf.dynamic_stitch([[4, 0], [1, 2, 0]], [x, y])


@written("ParallelDynamicStitch", f32(2, 3), f32(3, 3))
def stitch_in_any_order(tf, x, y):
    return tf.raw_ops.ParallelDynamicStitch(indices=[[4, 3], [1, 2, 0]], data=[x, y])


@written("ControlTrigger", f32(3))
def after_trigger(tf, x):
    with tf.control_dependencies([tf.raw_ops.ControlTrigger()]):
        return x * 2


@written("DynamicPartition", f32(6, 2), i32(6, low=0, high=-2))
def partition(tf, x, parts):
    first, second = tf.dynamic_partition(x, parts, 2)
    return first * 2, tf.shape(second)


# --- rows of tables ----------------------------------------------------------------------------

IDS = i32(7, low=-1, high=0)
for _kind in ("Sum", "Prod", "Max", "Min"):
    raw(f"UnsortedSegment{_kind}", f32(7, 2), IDS, constants=(5,))
    raw(f"Segment{_kind}", f32(5, 2), constants=([0, 0, 2, 2, 3],))
raw("SegmentMean", f32(5, 2), constants=([0, 0, 2, 2, 3],))
for _kind in ("Sum", "Mean", "SqrtN"):
    raw(f"SparseSegment{_kind}", f32(5, 2), constants=([4, 0, 0], [0, 0, 2]))
raw("Unique", i32(20, low=-3, high=0))
raw("UniqueWithCounts", i32(20, low=-3, high=0))
raw("ListDiff", i32(9), i32(4))
raw("SparseToDense", constants=([[0, 1], [2, 0]], [3, 2], [4.0, 5.0], -1.0))
raw("SparseToDense", constants=([1, 3], [5], [4.0, 5.0], 0.0))


@written("ResourceGather", i32(2, 3, low=0, high=0))
def rows_of_variable(tf, indices):
    handle = tf.compat.v1.get_variable(
        "table", initializer=tf.reshape(tf.range(12.0), [4, 3]), use_resource=True
    ).handle
    with tf.control_dependencies([tf.raw_ops.DisableCopyOnRead(resource=handle)]):
        indices = tf.identity(indices)
    flat = tf.raw_ops.ResourceGatherNd(
        resource=handle, indices=indices[:, :2] % 3, dtype=tf.float32
    )
    return (
        tf.raw_ops.ResourceGather(resource=handle, indices=indices, dtype=tf.float32),
        flat,
        tf.raw_ops.VariableShape(input=handle),
    )


# --- what changes variables ----------------------------------------------------------------------


def takes_variables(op: str) -> bool:
    is_update = "Apply" in op or ("Scatter" in op and not op.startswith("Tensor"))
    return is_update and any(
        arg.is_ref or arg.type == 20 for arg in op_defs.get_op_def(op).input_arg
    )


TRAINING = [op for op in KERNELS if takes_variables(op)]
OPS = {
    *(graph.op for graph in GRAPHS),
    *TRAINING,
    # TensorFlow makes no new ones: aliases of the ops without Batch.
    "BatchMatrixBandPart",
    "DisableCopyOnRead",
    "ResourceGatherNd",
    "VariableShape",
}
