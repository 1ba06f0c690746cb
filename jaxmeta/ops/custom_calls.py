"""Modules of the compiler's own code, which `Graph.add_signature` carries where it is asked to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxmeta import dtypes, errors
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import LoweringContext, kernel
from jaxmeta.tracing import custom_calls

_TENSORFLOW_PLATFORMS = {"cpu": "CPU", "cuda": "CUDA", "rocm": "ROCM", "tpu": "TPU"}
_JAX_PLATFORMS = {theirs: ours for ours, theirs in _TENSORFLOW_PLATFORMS.items()}


def carry(ctx: LoweringContext, inputs: Sequence[Edge], platforms: Sequence[str]) -> list[Edge]:
    """Adds the node of an eqn that no op says.

    Raises:
        Exception: what `ctx.unsupported` makes of the reason for which it cannot be carried.
    """
    try:
        exported = custom_calls.export_eqn(ctx.jaxpr, ctx.eqn, platforms)
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ctx.unsupported(f"it cannot be carried: {first_line}") from error
    return ctx.node(
        "XlaCallModule",
        list(inputs),
        name=ctx.eqn.primitive.name,
        version=exported.calling_convention_version,
        module=exported.mlir_module_serialized,
        Sout=[tuple(aval.shape) for aval in ctx.out_avals],
        Tout=[np.dtype(aval.dtype) for aval in ctx.out_avals],
        platforms=[_TENSORFLOW_PLATFORMS.get(name, name.upper()) for name in exported.platforms],
    )


@kernel("XlaCallModule")
def xla_call_module(
    *args: Any,
    version: int,
    module: bytes,
    Sout: tuple[Any, ...],
    Tout: tuple[int, ...],
    platforms: tuple[bytes, ...],
    dim_args_spec: tuple[bytes, ...],
    node_name: str,
) -> list[Any]:
    if dim_args_spec:
        raise errors.FormatError(f"node {node_name!r}: its module takes dimensions as arguments")
    names = [name.decode() for name in platforms]
    run = custom_calls.module_as_function(
        module,
        version,
        [_JAX_PLATFORMS.get(name, name.lower()) for name in names],
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in args],
        [
            jax.ShapeDtypeStruct(shape, dtypes.dtype_from_number(number))
            for shape, number in zip(Sout, Tout, strict=True)
        ],
        node_name,
    )
    return list(run(*args))
