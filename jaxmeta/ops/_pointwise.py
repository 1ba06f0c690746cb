"""Tables of elementwise ops: TensorFlow's op, JAX's primitive, the public function, examples.

Where TensorFlow's op does not take a dtype, the primitive becomes a call of a function that does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import dtypes, op_defs
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import (
    LOWERINGS,
    PRIMITIVE_ATTR,
    PRIMITIVE_KERNELS,
    LoweringContext,
    Spec,
    example,
    f32,
    i32,
    kernel,
    lowering,
    restores,
)
from jaxmeta.tracing import eqn_params

# Types that few ops of TensorFlow take.
_TINY_NUMBERS = frozenset(
    number
    for dtype, number in dtypes.pairs()
    if jnp.issubdtype(dtype, np.number) and dtype.itemsize == 1 and dtype.kind not in "iu"
)
# What many of the examples take.
SMALL = f32(3, 4, low=0.1, high=2.0)
UNIT = f32(3, 4, low=-0.9, high=0.9)
PAIR = (f32(3, 4), f32(3, 4))
INTS = (i32(3, 4), i32(3, 4))
TINY = Spec((3, 4), jnp.float8_e4m3fn)


@functools.cache
def _allowed_numbers(op: str, attr: str = "T") -> frozenset[int]:
    """Returns the DataTypes that the OpDef allows for an attr; empty means all."""
    for attr_def in op_defs.get_op_def(op).attr:
        if attr_def.name == attr:
            return frozenset(attr_def.allowed_values.list.type)
    return frozenset()


def takes(op: str, edge: Edge) -> bool:
    """Returns whether TensorFlow's op takes the dtype of an edge."""
    allowed = _allowed_numbers(op)
    return not allowed or edge.number in allowed


def is_narrow(edge: Edge) -> bool:
    """Returns whether an edge holds numbers of at most 16 bits, or of 8 or fewer where integers."""
    dtype = dtypes.dtype_from_number(edge.number)
    return bool(jnp.issubdtype(dtype, np.floating) and dtype.itemsize <= 2) or bool(
        jnp.issubdtype(dtype, np.integer) and jnp.iinfo(dtype).bits <= 16
    )


def node_or_wider(
    ctx: LoweringContext, op: str, fn: Callable[..., Any], *inputs: Edge
) -> list[Edge]:
    """Adds a node, or calls a function that computes in 32 bits where the op takes no fewer.

    Raises:
        Exception: what `ctx.unsupported` makes of another dtype that the op refuses.
    """
    first = inputs[0]
    if takes(op, first):
        return ctx.node(op, *inputs)
    if not is_narrow(first):
        raise ctx.unsupported(f"TensorFlow's {op} does not take {dtypes.dtype_name(first.number)}")
    wide = widened(fn)
    return ctx.composite(ctx.eqn.primitive.name, lambda *xs: wide(*broadcast(*xs)), *inputs)


def broadcasting(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the binary function with TensorFlow's broadcasting to a higher rank.

    `jax.lax` itself broadcasts scalars, and axes of size one.
    """

    def run(x: Any, y: Any) -> Any:
        if x.ndim == y.ndim or not x.ndim or not y.ndim:
            return fn(x, y)
        return fn(*broadcast(x, y))

    return run


def broadcast(*arrays: Any) -> list[Any]:
    """Returns arrays at the shape to which they broadcast together."""
    shape = jnp.broadcast_shapes(*(x.shape for x in arrays))
    return [jnp.broadcast_to(x, shape) for x in arrays]


def unary(
    op: str,
    primitive: str,
    fn: Callable[..., Any],
    *specs: Any,
    otherwise: Callable[..., Any] | None = None,
    **options: Any,
) -> None:
    """Registers a unary op; `otherwise` says it in other ops for dtypes that the op refuses."""

    def lower(ctx: LoweringContext, x: Edge, *, accuracy: Any = None) -> list[Edge]:
        if accuracy is not None:
            names = eqn_params.accuracy_to_names(accuracy)
            return ctx.node(op, x, **{PRIMITIVE_ATTR: primitive, "_jax_accuracy": names})
        if takes(op, x):
            return ctx.node(op, x)
        if otherwise is None or x.number in _TINY_NUMBERS:
            return node_or_wider(ctx, op, fn, x)
        return ctx.composite(primitive, otherwise, x)

    lowering(primitive)(lower)
    kernel(op)(fn)
    restores(primitive)(with_accuracy(fn))
    for spec in specs:
        example(named(primitive, fn), spec, **options)


def with_accuracy(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a unary function that takes its accuracy as the file spells it."""

    def run(x: Any, *, accuracy: tuple[bytes, ...] = ()) -> Any:
        if not accuracy:
            return fn(x)
        return fn(x, accuracy=eqn_params.accuracy_from_names([name.decode() for name in accuracy]))

    return run


def binary(
    op: str,
    primitive: str,
    fn: Callable[..., Any],
    *specs: tuple[Any, Any],
    otherwise: Callable[..., Any] | None = None,
    widens: bool = False,
    **options: Any,
) -> None:
    """Registers a binary op; see `unary`. It may compute in more bits where it ``widens``."""

    def lower(ctx: LoweringContext, x: Edge, y: Edge) -> list[Edge]:
        if takes(op, x) and x.number == y.number:
            return ctx.node(op, x, y)
        if widens and (otherwise is None or x.number in _TINY_NUMBERS):
            return node_or_wider(ctx, op, fn, x, y)
        if otherwise is None:
            raise ctx.unsupported(f"TensorFlow's {op} does not take {dtypes.dtype_name(x.number)}")
        return ctx.composite(primitive, lambda a, b: otherwise(*broadcast(a, b)), x, y)

    if primitive not in LOWERINGS:
        lowering(primitive)(lower)
    kernel(op)(broadcasting(fn))
    if (otherwise is not None or widens) and primitive not in PRIMITIVE_KERNELS:
        restores(primitive)(broadcasting(fn))
    for pair in specs:
        example(named(primitive, fn), *pair, **options)


def named(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function under a primitive's name, which the test's id shows."""

    def run(*args: Any) -> Any:
        return fn(*args)

    run.__name__ = name
    return run


def widened(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of numbers of few bits that computes in 32 bits."""

    def run(*arrays: Any) -> Any:
        narrow = arrays[0].dtype
        wide = np.dtype(
            np.float32
            if jnp.issubdtype(narrow, np.floating)
            else np.int32
            if jnp.issubdtype(narrow, np.signedinteger)
            else np.uint32
        )
        result = fn(*(lax.convert_element_type(x, wide) for x in arrays))
        return lax.convert_element_type(result, narrow) if result.dtype == wide else result

    return run


def without_signature(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function without what it says of its keyword arguments."""
    return lambda *args: fn(*args)


def zero_of(x: Any) -> Any:
    """Returns the scalar 0 of an array's dtype."""
    return np.zeros((), x.dtype)


def one_of(x: Any) -> Any:
    """Returns the scalar 1 of an array's dtype."""
    return np.ones((), x.dtype)
