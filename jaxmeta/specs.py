"""What arrays look like: to a program, and as the graph holds them.

The two differ for typed PRNG keys, which the graph holds as their uint32 data.
"""

from __future__ import annotations

import functools
from typing import Any

import jax

from jaxmeta import dtypes, errors, trees, values
from jaxmeta.tracing import jaxprs


def physical(leaf: Any) -> tuple[str, jax.ShapeDtypeStruct]:
    """Returns the key implementation of a leaf, or empty, and its aval as the graph holds it."""
    aval = leaf if hasattr(leaf, "dtype") else jax.eval_shape(lambda: jax.numpy.asarray(leaf))
    is_key = jaxprs.is_key_dtype(aval.dtype)
    impl = jaxprs.key_layout(aval.dtype)[0] if is_key else ""
    if not is_key:
        dtype = jax.dtypes.canonicalize_dtype(aval.dtype)
        aval = jax.ShapeDtypeStruct(aval.shape, dtype)
    return impl, jaxprs.physical_aval(aval)


def logical_spec(shape: values.Shape, dtype: Any, key_impl: str) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype that a program sees of what the graph holds."""
    if not key_impl:
        return jax.ShapeDtypeStruct(shape, dtype)
    key = key_spec(key_impl)
    _, data_shape = jaxprs.key_layout(key.dtype)
    return jax.ShapeDtypeStruct(shape[: len(shape) - len(data_shape)], key.dtype)


@functools.cache
def key_spec(impl: str) -> jax.ShapeDtypeStruct:
    """Returns the spec of a single key of a PRNG implementation.

    Raises:
        FormatError: this JAX has no implementation of that name.
    """
    try:
        key = jax.eval_shape(lambda: jax.random.key(0, impl=impl))
    except ValueError as error:
        raise errors.FormatError(f"this JAX has no PRNG implementation {impl!r}") from error
    return jax.ShapeDtypeStruct((), key.dtype)


def physical_leaf(name: str, leaf: Any) -> trees.Leaf:
    """Returns the record of a leaf that a tensor holds."""
    _, aval = physical(leaf)
    return trees.Leaf(name, tuple(aval.shape), dtypes.dtype_to_number(aval.dtype))
