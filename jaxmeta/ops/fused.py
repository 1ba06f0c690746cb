"""Ops that TensorFlow's optimizers of graphs fuse: convolutions and products with what follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp

from jaxmeta import errors
from jaxmeta.ops._convolution import convolve
from jaxmeta.ops._definition import kernel, run_kernel

# --- convolutions of padded images ---------------------------------------------------------------


@kernel("FusedPadConv2D", static=("paddings",))
def pad_and_convolve(
    input: Any,
    paddings: Any,
    filter: Any,
    *,
    mode: bytes,
    strides: tuple[int, ...],
    padding: bytes,
) -> Any:
    padded = run_kernel("MirrorPad", input, paddings, mode=mode)
    return convolve(padded, filter, strides=strides, padding=padding)


@kernel("FusedResizeAndPadConv2D", static=("size", "paddings"))
def resize_pad_and_convolve(
    input: Any,
    size: Any,
    paddings: Any,
    filter: Any,
    *,
    resize_align_corners: bool,
    mode: bytes,
    strides: tuple[int, ...],
    padding: bytes,
) -> Any:
    rules = {"align_corners": resize_align_corners, "half_pixel_centers": False}
    resized = run_kernel("ResizeBilinear", input, size, **rules).astype(input.dtype)
    return pad_and_convolve(resized, paddings, filter, mode=mode, strides=strides, padding=padding)


# --- what follows --------------------------------------------------------------------------------


def _normalize(x: Any, args: list[Any], data_format: bytes, epsilon: float) -> Any:
    statistics = [args.pop(0) for _ in range(4)]
    return run_kernel(
        "FusedBatchNorm",
        x,
        *statistics,
        epsilon=epsilon,
        exponential_avg_factor=1.0,
        data_format=data_format,
        is_training=False,
    )[0]


_ACTIVATIONS: Final[dict[bytes, Callable[[Any], Any]]] = {
    b"Relu": lambda x: run_kernel("Relu", x),
    b"Relu6": lambda x: run_kernel("Relu6", x),
    b"Elu": lambda x: run_kernel("Elu", x),
    b"Tanh": jnp.tanh,
    b"Sigmoid": jax.nn.sigmoid,
    b"GeluApproximate": lambda x: jax.nn.gelu(x, approximate=True),
    b"GeluExact": lambda x: jax.nn.gelu(x, approximate=False),
    b"_FusedHardSwish": jax.nn.hard_swish,
    b"_FusedSwish": jax.nn.swish,
}


def _apply(
    x: Any,
    args: Sequence[Any],
    fused_ops: Sequence[bytes],
    data_format: bytes,
    epsilon: float,
    leakyrelu_alpha: float,
) -> Any:
    """Returns what the ops that were fused make of a result; each takes its inputs of the args."""
    left = list(args)
    for op in fused_ops:
        if op == b"BiasAdd":
            x = run_kernel("BiasAdd", x, left.pop(0), data_format=data_format)
        elif op == b"Add":
            x = x + left.pop(0)
        elif op == b"FusedBatchNorm":
            x = _normalize(x, left, data_format, epsilon)
        elif op == b"LeakyRelu":
            x = run_kernel("LeakyRelu", x, alpha=leakyrelu_alpha)
        elif op in _ACTIVATIONS:
            x = _ACTIVATIONS[op](x)
        else:
            raise errors.UnsupportedOpError(
                f"a fused op {op.decode()!r} has no kernel; those that do are Add, BiasAdd, "
                f"FusedBatchNorm, LeakyRelu, {', '.join(sorted(map(bytes.decode, _ACTIVATIONS)))}"
            )
    return x


@kernel("_FusedConv2D")
def convolve_and_apply(
    input: Any,
    filter: Any,
    *args: Any,
    strides: tuple[int, ...],
    padding: bytes,
    explicit_paddings: tuple[int, ...],
    data_format: bytes,
    filter_format: bytes,
    dilations: tuple[int, ...],
    fused_ops: tuple[bytes, ...],
    epsilon: float,
    leakyrelu_alpha: float,
) -> Any:
    if filter_format == b"OIHW":
        filter = jnp.transpose(filter, (2, 3, 1, 0))
    y = convolve(
        input,
        filter,
        strides=strides,
        padding=padding,
        explicit_paddings=explicit_paddings,
        data_format=data_format,
        dilations=dilations,
    )
    return _apply(y, args, fused_ops, data_format, epsilon, leakyrelu_alpha)


@kernel("_FusedMatMul")
def multiply_and_apply(
    a: Any,
    b: Any,
    *args: Any,
    transpose_a: bool,
    transpose_b: bool,
    fused_ops: tuple[bytes, ...],
    epsilon: float,
    leakyrelu_alpha: float,
) -> Any:
    product = jnp.matmul(a.T if transpose_a else a, b.T if transpose_b else b)
    return _apply(product, args, fused_ops, b"NHWC", epsilon, leakyrelu_alpha)
