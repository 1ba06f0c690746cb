"""Connectionist temporal classification, as TensorFlow has it: the loss and the greedy decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import errors
from jaxmeta.ops._definition import kernel

# The logarithm of a probability that is 0: finite, so that derivatives are too.
_NEVER: Final = -1e30


def _dense_labels(indices: Any, values: Any, batch: int, length: int) -> tuple[Any, Any]:
    """Returns labels in rows of a length, and how many each row has."""
    rows, places = jnp.asarray(indices)[:, 0], jnp.asarray(indices)[:, 1]
    labels = jnp.zeros((batch, length), np.int32).at[rows, places].set(values, mode="drop")
    return labels, jnp.zeros(batch, np.int32).at[rows].add(1)


def _losses(
    logits: Any, labels: Any, counts: Any, lengths: Any, blank: int, *, merges: bool
) -> Any:
    """Returns the negative logarithm of the labels' probability (Graves et al., 2006).

    Args:
        logits: (time, batch, classes).
        labels: (batch, most labels).
        counts: how many labels each row has.
        lengths: how many steps of time each row has.
        blank: the class that says nothing.
        merges: whether repeated labels without a blank between them are one.
    """
    scores = jax.nn.log_softmax(logits, axis=-1)
    batch, most = labels.shape
    states = jnp.full((batch, 2 * most + 1), blank).at[:, 1::2].set(labels)
    place = jnp.arange(2 * most + 1)
    before = jnp.roll(states, 2, axis=1)
    skips = (place >= 2) & (states != blank) & ((states != before) if merges else True)

    def shifted(alpha: Any, by: int) -> Any:
        return jnp.pad(alpha, ((0, 0), (by, 0)), constant_values=_NEVER)[:, : alpha.shape[1]]

    def step(alpha: Any, inputs: Any) -> tuple[Any, None]:
        time, row = inputs
        emitted = jnp.take_along_axis(row, states, axis=1)
        skipped = jnp.where(skips, shifted(alpha, 2), _NEVER)
        # Where repeats are not merged, a label that goes on is another label.
        stays = alpha if merges else jnp.where(states == blank, alpha, _NEVER)
        total = jnp.logaddexp(jnp.logaddexp(stays, shifted(alpha, 1)), skipped) + emitted
        return jnp.where((time < lengths)[:, None], total, alpha), None

    start = jnp.full(states.shape, _NEVER, scores.dtype)
    first = jnp.take_along_axis(scores[0], states[:, :2], axis=1)
    start = start.at[:, :2].set(jnp.where(place[:2] <= 2 * counts[:, None], first, _NEVER))
    times = jnp.arange(1, scores.shape[0])
    alpha, _ = lax.scan(step, start, (times, scores[1:]))
    end = 2 * counts[:, None]
    last = jnp.take_along_axis(alpha, end, axis=1)
    earlier = jnp.take_along_axis(alpha, jnp.maximum(end - 1, 0), axis=1)
    earlier = jnp.where(end > 0, earlier, _NEVER)
    return -jnp.logaddexp(last, earlier)[:, 0]


def _loss_and_gradient(
    logits: Any, indices: Any, values: Any, lengths: Any, blank: int, *, merges: bool, ignores: bool
) -> tuple[Any, Any]:
    """Returns losses and their derivatives, both 0 where labels are too long and ``ignores`` is."""
    logits = jnp.asarray(logits)
    steps, batch, _ = logits.shape
    length = max(min(steps, values.shape[0]), 1)
    labels, counts = _dense_labels(indices, values, batch, length)
    repeats = (labels[:, 1:] == labels[:, :-1]) & (jnp.arange(1, length) < counts[:, None])
    needed = counts + (jnp.sum(repeats, axis=1) if merges else 0)
    fits = needed <= lengths
    counts = jnp.minimum(counts, length)

    def total(x: Any) -> Any:
        losses = _losses(x, labels, counts, lengths, blank, merges=merges)
        impossible = 0.0 if ignores else jnp.inf
        return jnp.sum(jnp.where(fits, losses, 0)), jnp.where(fits, losses, impossible)

    gradient, losses = jax.grad(total, has_aux=True)(logits)
    return losses.astype(logits.dtype), gradient


def _loss_kernel(blank_of: Callable[[int], int]) -> Callable[..., Any]:
    """Returns the kernel of losses and gradients, given which of so many classes is the blank."""

    def ctc_loss(
        inputs: Any,
        labels_indices: Any,
        labels_values: Any,
        sequence_length: Any,
        *,
        preprocess_collapse_repeated: bool,
        ctc_merge_repeated: bool,
        ignore_longer_outputs_than_inputs: bool,
    ) -> Any:
        if preprocess_collapse_repeated:
            raise errors.UnsupportedOpError(
                "CTCLoss with preprocess_collapse_repeated is not supported: collapse the labels "
                "first"
            )
        return _loss_and_gradient(
            inputs,
            labels_indices,
            labels_values,
            sequence_length,
            blank_of(inputs.shape[-1]),
            merges=ctc_merge_repeated,
            ignores=ignore_longer_outputs_than_inputs,
        )

    return ctc_loss


kernel("CTCLoss")(_loss_kernel(lambda num_classes: num_classes - 1))
kernel("CTCLossV2")(_loss_kernel(lambda num_classes: 0))


@kernel("CTCGreedyDecoder", is_host=True)
def ctc_greedy_decoder(
    inputs: Any, sequence_length: Any, *, merge_repeated: bool, blank_index: int
) -> list[Any]:
    """Returns the most likely class of each step, without blanks, as a sparse tensor."""
    classes = np.argmax(inputs, axis=2)
    blank = blank_index % inputs.shape[2]
    rows = []
    for row, length in enumerate(sequence_length.tolist()):
        path = classes[:length, row]
        is_kept = path != blank
        if merge_repeated:
            is_kept[1:] &= path[1:] != path[:-1]
        rows.append(path[is_kept].astype(np.int64))
    indices = [(row, place) for row, path in enumerate(rows) for place in range(len(path))]
    is_inside = np.arange(inputs.shape[0])[:, None] < sequence_length
    best = np.sum(np.max(inputs, axis=2), axis=0, where=is_inside, dtype=inputs.dtype)
    return [
        np.asarray(indices, np.int64).reshape(-1, 2),
        np.concatenate(rows),
        np.asarray([len(rows), max(map(len, rows), default=0)], np.int64),
        -best[:, None],
    ]
