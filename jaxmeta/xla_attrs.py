"""Pairs of `jax.lax` dimension numbers and precisions, and the XLA protos inside string attrs."""

from __future__ import annotations

from typing import Any, Final

from jax import lax

from jaxmeta import errors
from jaxmeta._proto import xla_data_pb2

DotDimensions = tuple[
    tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]
]
Precision = Any  # None, a pair of lax.Precision, or a lax.DotAlgorithmPreset

_ALGORITHM_PREFIX: Final = "ALG_DOT_"


def _parse(message: Any, content: bytes) -> Any:
    try:
        message.ParseFromString(content)
    except Exception as error:
        raise errors.AttrError(
            f"an attr does not hold a {type(message).__name__}: {error}"
        ) from error
    return message


def dot_to_bytes(dimension_numbers: DotDimensions) -> bytes:
    """Returns the DotDimensionNumbers of ``((lhs, rhs contracting), (lhs, rhs batch))``."""
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimension_numbers
    proto = xla_data_pb2.DotDimensionNumbers(
        lhs_contracting_dimensions=lhs_contract,
        rhs_contracting_dimensions=rhs_contract,
        lhs_batch_dimensions=lhs_batch,
        rhs_batch_dimensions=rhs_batch,
    )
    return proto.SerializeToString(deterministic=True)


def dot_from_bytes(content: bytes) -> DotDimensions:
    """Returns what `dot_to_bytes` took."""
    proto = _parse(xla_data_pb2.DotDimensionNumbers(), content)
    return (
        (tuple(proto.lhs_contracting_dimensions), tuple(proto.rhs_contracting_dimensions)),
        (tuple(proto.lhs_batch_dimensions), tuple(proto.rhs_batch_dimensions)),
    )


def conv_to_bytes(dimension_numbers: lax.ConvDimensionNumbers) -> bytes:
    """Returns the ConvolutionDimensionNumbers of `lax.ConvDimensionNumbers`."""
    lhs, rhs, out = dimension_numbers
    proto = xla_data_pb2.ConvolutionDimensionNumbers(
        input_batch_dimension=lhs[0],
        input_feature_dimension=lhs[1],
        input_spatial_dimensions=lhs[2:],
        kernel_output_feature_dimension=rhs[0],
        kernel_input_feature_dimension=rhs[1],
        kernel_spatial_dimensions=rhs[2:],
        output_batch_dimension=out[0],
        output_feature_dimension=out[1],
        output_spatial_dimensions=out[2:],
    )
    return proto.SerializeToString(deterministic=True)


def conv_from_bytes(content: bytes) -> lax.ConvDimensionNumbers:
    """Returns what `conv_to_bytes` took."""
    proto = _parse(xla_data_pb2.ConvolutionDimensionNumbers(), content)
    return lax.ConvDimensionNumbers(
        lhs_spec=(
            proto.input_batch_dimension,
            proto.input_feature_dimension,
            *proto.input_spatial_dimensions,
        ),
        rhs_spec=(
            proto.kernel_output_feature_dimension,
            proto.kernel_input_feature_dimension,
            *proto.kernel_spatial_dimensions,
        ),
        out_spec=(
            proto.output_batch_dimension,
            proto.output_feature_dimension,
            *proto.output_spatial_dimensions,
        ),
    )


def gather_to_bytes(dimension_numbers: lax.GatherDimensionNumbers, index_rank: int) -> bytes:
    """Returns the GatherDimensionNumbers proto; JAX's index vectors lie along the last axis."""
    proto = xla_data_pb2.GatherDimensionNumbers(
        offset_dims=dimension_numbers.offset_dims,
        collapsed_slice_dims=dimension_numbers.collapsed_slice_dims,
        start_index_map=dimension_numbers.start_index_map,
        index_vector_dim=index_rank - 1,
        operand_batching_dims=dimension_numbers.operand_batching_dims,
        start_indices_batching_dims=dimension_numbers.start_indices_batching_dims,
    )
    return proto.SerializeToString(deterministic=True)


def gather_from_bytes(content: bytes) -> tuple[lax.GatherDimensionNumbers, int]:
    """Returns the dimension numbers and the axis along which the index vectors lie."""
    proto = _parse(xla_data_pb2.GatherDimensionNumbers(), content)
    numbers = lax.GatherDimensionNumbers(
        offset_dims=tuple(proto.offset_dims),
        collapsed_slice_dims=tuple(proto.collapsed_slice_dims),
        start_index_map=tuple(proto.start_index_map),
        operand_batching_dims=tuple(proto.operand_batching_dims),
        start_indices_batching_dims=tuple(proto.start_indices_batching_dims),
    )
    return numbers, proto.index_vector_dim


def scatter_to_bytes(dimension_numbers: lax.ScatterDimensionNumbers, index_rank: int) -> bytes:
    """Returns the ScatterDimensionNumbers proto; JAX's index vectors lie along the last axis."""
    proto = xla_data_pb2.ScatterDimensionNumbers(
        update_window_dims=dimension_numbers.update_window_dims,
        inserted_window_dims=dimension_numbers.inserted_window_dims,
        scatter_dims_to_operand_dims=dimension_numbers.scatter_dims_to_operand_dims,
        index_vector_dim=index_rank - 1,
        input_batching_dims=dimension_numbers.operand_batching_dims,
        scatter_indices_batching_dims=dimension_numbers.scatter_indices_batching_dims,
    )
    return proto.SerializeToString(deterministic=True)


def scatter_from_bytes(content: bytes) -> tuple[lax.ScatterDimensionNumbers, int]:
    """Returns the dimension numbers and the axis along which the index vectors lie."""
    proto = _parse(xla_data_pb2.ScatterDimensionNumbers(), content)
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=tuple(proto.update_window_dims),
        inserted_window_dims=tuple(proto.inserted_window_dims),
        scatter_dims_to_operand_dims=tuple(proto.scatter_dims_to_operand_dims),
        operand_batching_dims=tuple(proto.input_batching_dims),
        scatter_indices_batching_dims=tuple(proto.scatter_indices_batching_dims),
    )
    return numbers, proto.index_vector_dim


def precision_to_bytes(precision: Precision) -> bytes:
    """Returns the PrecisionConfig of a precision; empty where it is None."""
    proto: Any = xla_data_pb2.PrecisionConfig()
    for name in precision_to_names(precision):
        if name in lax.Precision.__members__:
            proto.operand_precision.append(proto.Precision.Value(name))
        else:
            proto.algorithm = proto.Algorithm.Value(_ALGORITHM_PREFIX + name)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def precision_from_bytes(content: bytes) -> Precision:
    """Returns what `precision_to_bytes` took."""
    proto = _parse(xla_data_pb2.PrecisionConfig(), content)
    if proto.algorithm:
        name = proto.Algorithm.Name(proto.algorithm).removeprefix(_ALGORITHM_PREFIX)
        return precision_from_names((name.encode(),))
    names = [proto.Precision.Name(number).encode() for number in proto.operand_precision]
    return precision_from_names(tuple(names))


def precision_to_names(precision: Precision) -> tuple[str, ...]:
    """Returns a precision as names: none, a pair of precisions, or one dot algorithm."""
    if precision is None:
        return ()
    if isinstance(precision, tuple):
        return tuple(item.name for item in precision)
    return (precision.name,)


def precision_from_names(names: tuple[bytes, ...]) -> Precision:
    """Returns what `precision_to_names` took.

    Raises:
        AttrError: a name is unknown to this JAX.
    """
    plain = [name.decode() for name in names]
    try:
        if not plain:
            return None
        if len(plain) == 1:
            return lax.DotAlgorithmPreset[plain[0]]
        return tuple(lax.Precision[name] for name in plain)
    except KeyError as error:
        raise errors.AttrError(f"this JAX knows no precision named {error}") from None
