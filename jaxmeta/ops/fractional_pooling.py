"""Pooling over regions whose sizes differ by one, where they begin being drawn at random.

Shapes, and what is made of the regions, are TensorFlow's; where the regions begin is JAX's draw.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import errors
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._gradients import pull_back, transpose
from jaxmeta.ops._operands import ints


def _draw_sequence(key: Any, size: int, new_size: int, pseudo_random: bool) -> Any:
    """Returns where regions begin along an axis, and its end."""
    least, rest = divmod(size, new_size)
    if not pseudo_random:
        steps = jax.random.permutation(key, least + (np.arange(new_size) < rest))
        return jnp.concatenate([jnp.zeros(1, np.int32), jnp.cumsum(steps).astype(np.int32)])
    alpha = size / new_size
    most = min((least + 2) / alpha - 1, (size + 1 - least) / alpha - (new_size - 1))
    offset = jax.random.uniform(key) * most if rest else 0.0
    places = jnp.floor(alpha * (np.arange(new_size) + offset)).astype(np.int32)
    places = places - jnp.floor(alpha * offset).astype(np.int32)
    return jnp.append(places.at[0].set(0), np.int32(size))


def _regions(sequence: Any, size: int, overlapping: bool) -> tuple[Any, Any]:
    """Returns the elements of each region along an axis, and which of them it has: [regions, k]."""
    count = sequence.shape[0] - 1
    if not count:
        raise errors.InvalidArgumentError("a pooling sequence must have two places or more")
    starts = jnp.asarray(sequence[:-1], np.int32)
    ends = jnp.asarray(sequence[1:], np.int32) - (0 if overlapping else 1)
    width = size // count + 1 + overlapping
    places = starts[:, None] + np.arange(width, dtype=np.int32)
    is_there = places <= jnp.minimum(ends, size - 1)[:, None]
    return jnp.minimum(places, size - 1), is_there


def _take_regions(x: Any, rows: Any, columns: Any, overlapping: bool) -> tuple[Any, Any]:
    """Returns the elements of regions, [images, rows, columns, elements, channels], and a mask."""
    row_places, has_row = _regions(rows, x.shape[1], overlapping)
    column_places, has_column = _regions(columns, x.shape[2], overlapping)
    taken = jnp.take(jnp.take(x, row_places, axis=1), column_places, axis=3)
    mask = has_row[:, None, :, None] & has_column[None, :, None, :]
    ordered = jnp.transpose(taken, (0, 1, 3, 2, 4, 5))
    batch, height, width, *_, channels = ordered.shape
    return (
        jnp.reshape(ordered, (batch, height, width, -1, channels)),
        jnp.reshape(mask, (height, width, -1, 1)),
    )


def _pool_maxima(x: Any, rows: Any, columns: Any, overlapping: bool) -> Any:
    elements, mask = _take_regions(x, rows, columns, overlapping)
    is_float = jnp.issubdtype(x.dtype, np.floating)
    lowest = -np.inf if is_float else jnp.iinfo(x.dtype).min
    masked = jnp.where(mask, elements, jnp.asarray(lowest, x.dtype))
    first = jnp.argmax(lax.stop_gradient(masked), axis=3, keepdims=True)
    return jnp.squeeze(jnp.take_along_axis(masked, first, axis=3), 3)


def _pool_means(x: Any, rows: Any, columns: Any, overlapping: bool) -> Any:
    elements, mask = _take_regions(x, rows, columns, overlapping)
    total = jnp.sum(jnp.where(mask, elements, 0), 3, dtype=x.dtype)
    count = jnp.sum(mask, 2).astype(x.dtype)
    return lax.div(total, jnp.broadcast_to(count, total.shape))


def _draw_and_pool(pool: Callable[..., Any]) -> Callable[..., Any]:
    def run(
        state: Any,
        value: Any,
        *,
        pooling_ratio: tuple[float, ...],
        pseudo_random: bool,
        overlapping: bool,
        deterministic: bool,
        seed: int,
        seed2: int,
        node_name: str,
    ) -> list[Any]:
        value = jnp.asarray(value)
        entropy = [seed % 2**64, seed2 % 2**64] if seed or seed2 else None
        word = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        key = jax.random.fold_in(jax.random.key(word), zlib.crc32(node_name.encode()))
        if state is not None and not deterministic:
            key = jax.random.fold_in(key, state.count(node_name))
        sequences = [
            _draw_sequence(key_of_axis, size, int(size / ratio), pseudo_random)
            for key_of_axis, size, ratio in zip(
                jax.random.split(key), value.shape[1:3], pooling_ratio[1:3], strict=True
            )
        ]
        return [pool(value, *sequences, overlapping), *sequences]

    return run


kernel("FractionalMaxPool")(_draw_and_pool(_pool_maxima))
kernel("FractionalAvgPool")(_draw_and_pool(_pool_means))


@kernel("FractionalMaxPoolGrad")
def fractional_max_pool_grad(
    orig_input: Any,
    orig_output: Any,
    out_backprop: Any,
    row_pooling_sequence: Any,
    col_pooling_sequence: Any,
    *,
    overlapping: bool,
) -> Any:
    del orig_output  # computed anew
    sequences = (row_pooling_sequence, col_pooling_sequence)
    return pull_back(lambda x: _pool_maxima(x, *sequences, overlapping), orig_input, out_backprop)


@kernel("FractionalAvgPoolGrad", static=("orig_input_tensor_shape",))
def fractional_avg_pool_grad(
    orig_input_tensor_shape: Any,
    out_backprop: Any,
    row_pooling_sequence: Any,
    col_pooling_sequence: Any,
    *,
    overlapping: bool,
) -> Any:
    sequences = (row_pooling_sequence, col_pooling_sequence)
    shape = ints(orig_input_tensor_shape)
    return transpose(lambda x: _pool_means(x, *sequences, overlapping), shape, out_backprop)
