"""Discrete Fourier transforms of the last one to three axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import LoweringContext, Spec, example, f32, kernel, lowering
from jaxmeta.ops._operands import ints
from jaxmeta.tracing import jaxprs


def _fft(x: Any, fft_type: lax.FftType, lengths: tuple[int, ...]) -> Any:
    """Binds the primitive; `lax.fft` would wrap it in a jit."""
    return jaxprs.primitive("fft").bind(x, fft_type=fft_type, fft_lengths=lengths)


def _op_name(kind: str, rank: int) -> str:
    """Returns TensorFlow's name of a transform: FFT, RFFT2D, IRFFT3D, ..."""
    return kind if rank == 1 else f"{kind}{rank}D"


@lowering("fft")
def lower_fft(ctx: LoweringContext, x: Edge, *, fft_type: Any, fft_lengths: Any) -> list[Edge]:
    kind, lengths = lax.FftType(int(fft_type)).name, ints(fft_lengths)
    if not 1 <= len(lengths) <= 3:
        raise ctx.unsupported(f"a Fourier transform of {len(lengths)} axes")
    op = _op_name(kind, len(lengths))
    if not kind.endswith("RFFT"):
        return ctx.node(op, x)
    dtype = "Tcomplex" if kind == "RFFT" else "Treal"
    return ctx.node(op, x, ctx.constant(lengths, np.int32), **{dtype: ctx.out_avals[0].dtype})


def _register_complex(kind: str, rank: int) -> None:
    fft_type = lax.FftType[kind]

    @kernel(_op_name(kind, rank))
    def fft(input: Any) -> Any:
        return _fft(input, fft_type, input.shape[-rank:])


def _register_real(rank: int) -> None:
    @kernel(_op_name("RFFT", rank), static=("fft_length",))
    def rfft(input: Any, fft_length: np.ndarray[Any, Any]) -> Any:
        lengths = ints(fft_length)
        return _fft(_fit(input, lengths), lax.FftType.RFFT, lengths)

    @kernel(_op_name("IRFFT", rank), static=("fft_length",))
    def irfft(input: Any, fft_length: np.ndarray[Any, Any]) -> Any:
        lengths = ints(fft_length)
        spectrum = (*lengths[:-1], lengths[-1] // 2 + 1)
        return _fft(_fit(input, spectrum), lax.FftType.IRFFT, lengths)


def _fit(x: Any, sizes: Sequence[int]) -> Any:
    """Returns x with its last axes cut, or padded by zeros, as TensorFlow does by fft_length."""
    if x.shape[-len(sizes) :] == tuple(sizes):
        return x
    config = [(0, 0, 0)] * (x.ndim - len(sizes))
    config += [
        (0, size - full, 0) for size, full in zip(sizes, x.shape[-len(sizes) :], strict=True)
    ]
    return lax.pad(x, np.zeros((), x.dtype), config)


for _rank in (1, 2, 3):
    _register_complex("FFT", _rank)
    _register_complex("IFFT", _rank)
    _register_real(_rank)

_REAL = f32(2, 4, 5, 6)
_COMPLEX = Spec((2, 4, 5, 6), np.complex64)


def _energy(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a real function of a transform, which has a gradient."""

    def run(x: Any) -> Any:
        return jnp.sum(jnp.abs(fn(x)) ** 2) / math.prod(x.shape)

    run.__name__ = "fft_energy"
    return run


for _rank in (1, 2, 3):
    _axes = tuple(range(-_rank, 0))
    example(lambda x, a=_axes: jnp.fft.fftn(x, axes=a), _COMPLEX, gradient=False)
    example(lambda x, a=_axes: jnp.fft.ifftn(x, axes=a), _COMPLEX, gradient=False)
    example(lambda x, a=_axes: jnp.fft.rfftn(x, axes=a), _REAL, gradient=False)
    example(lambda x, a=_axes: jnp.fft.irfftn(x, axes=a), _COMPLEX, gradient=False)
example(lambda x: jnp.fft.irfft(x, n=7), Spec((3, 4), np.complex64), gradient=False)
example(_energy(jnp.fft.rfft2), _REAL, tolerance=1e-4)
example(_energy(jnp.fft.fft), f32(3, 8), tolerance=1e-4)
