"""Graphs of TensorFlow's connectionist temporal classification."""

from __future__ import annotations

import numpy as np
from tensorflow_graphs import raw, written

from jaxmeta.ops._definition import f32

LOGITS = f32(7, 3, 5)
LABELS = (np.int64([[0, 0], [0, 1], [0, 2], [1, 0], [2, 0], [2, 1]]), np.int32([1, 1, 2, 0, 3, 2]))
LENGTHS = np.int32([7, 4, 5])

for _merges in (True, False):

    @written("CTCLoss", LOGITS, has_gradient=_merges)
    def losses(tf, logits, merges=_merges):
        return tf.raw_ops.CTCLoss(
            inputs=logits,
            labels_indices=LABELS[0],
            labels_values=LABELS[1],
            sequence_length=LENGTHS,
            ctc_merge_repeated=merges,
        ).loss

    raw("CTCGreedyDecoder", LOGITS, constants=(LENGTHS,), merge_repeated=_merges)


@written("CTCLoss", LOGITS)
def too_long(tf, logits):
    made = tf.raw_ops.CTCLoss(
        inputs=logits,
        labels_indices=LABELS[0],
        labels_values=LABELS[1],
        sequence_length=np.int32([7, 4, 1]),
        ignore_longer_outputs_than_inputs=True,
    )
    return [made.loss, made.gradient]


ALIASES = ("CTCLossV2",)  # which TensorFlow has on GPUs only
