"""Serialized `SequenceExample`s to tensors: their contexts, and lists of features, one a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxmeta._proto import example_pb2
from jaxmeta.ops import _examples, _feature_lists
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._examples import Dense, columns, keys_of, kinds_of, texts_of, vectors_of
from jaxmeta.ops._string_arrays import scalar_string


class _Sequences:
    """Some sequences, parsed: one that stands alone, or a batch."""

    def __init__(self, serialized: Any, names: Any, *, is_single: bool) -> None:
        contents = np.ravel(serialized).tolist()
        self.is_single = is_single
        self.labels = texts_of(names) or [""] * len(contents)
        self._messages: list[Any] = [
            _examples.parse(example_pb2.SequenceExample, content, label)
            for content, label in zip(contents, self.labels, strict=True)
        ]
        self.contexts = [message.context.feature for message in self._messages]
        self.lists = [message.feature_lists.feature_list for message in self._messages]

    def sparse(self, keys: Sequence[str], kinds: Sequence[Any]) -> list[Any]:
        """Returns what ops give of sparse features of the contexts."""
        parts = []
        for key, kind in zip(keys, kinds, strict=True):
            rows = vectors_of(self.contexts, self.labels, key, kind)
            is_single = self.is_single
            parts.append(
                _examples.sparse_vector(rows[0]) if is_single else _examples.sparse(rows, kind)
            )
        return columns(parts)

    def dense(self, wanted: Dense) -> list[Any]:
        """Returns the dense features of the contexts."""
        if self.is_single:
            return wanted.single(self.contexts[0], self.labels[0])
        return wanted.stacked(self.contexts, self.labels)

    def sparse_lists(self, keys: Sequence[str], kinds: Sequence[Any]) -> list[Any]:
        """Returns what ops give of sparse features of the steps."""
        parts = []
        for key, kind in zip(keys, kinds, strict=True):
            steps = [_feature_lists.vectors(lists, key, kind) for lists in self.lists]
            parts.append(
                _examples.sparse(steps[0], kind)
                if self.is_single
                else _feature_lists.sparse_batch(steps, kind)
            )
        return columns(parts)

    def dense_lists(
        self,
        keys: Sequence[str],
        kinds: Sequence[Any],
        shapes: Sequence[Sequence[int]],
        may_miss: Mapping[str, bool],
    ) -> tuple[list[Any], list[Any]]:
        """Returns the dense features of the steps, and how many steps each sequence has."""
        found, lengths = [], []
        for key, kind, shape in zip(keys, kinds, shapes, strict=True):
            is_optional = may_miss.get(key, False)
            steps = [
                _feature_lists.dense_steps(lists, key, kind, shape, may_miss=is_optional)
                for lists in self.lists
            ]
            counts = np.array([len(step) for step in steps], np.int64)
            if self.is_single:
                found.append(steps[0])
                lengths.append(counts[0])
            else:
                found.append(_examples.stack(steps, kind, (None, *shape), None))
                lengths.append(counts)
        return found, lengths

    def ragged(
        self, keys: Sequence[str], kinds: Sequence[Any], split_kinds: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Returns ragged features of the contexts: values, and where rows begin."""
        found, splits = [], []
        for key, kind, split_kind in zip(keys, kinds, split_kinds, strict=True):
            rows = vectors_of(self.contexts, self.labels, key, kind)
            found.append(_examples.concatenate(rows, kind))
            splits.append(
                np.empty(0, split_kind)
                if self.is_single
                else _examples.row_splits(rows, split_kind)
            )
        return found, splits

    def ragged_lists(
        self, keys: Sequence[str], kinds: Sequence[Any], split_kinds: Sequence[Any]
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """Returns ragged features of the steps: values, where sequences and where steps begin."""
        found, outer, inner = [], [], []
        for key, kind, split_kind in zip(keys, kinds, split_kinds, strict=True):
            sequences = [_feature_lists.vectors(lists, key, kind) for lists in self.lists]
            steps = [step for sequence in sequences for step in sequence]
            found.append(_examples.concatenate(steps, kind))
            inner.append(_examples.row_splits(steps, split_kind))
            outer.append(
                np.empty(0, split_kind)
                if self.is_single
                else _examples.row_splits(sequences, split_kind)
            )
        return found, outer, inner


@kernel("ParseSingleSequenceExample", is_host=True)
def parse_single_sequence_example(
    serialized: Any,
    feature_list_dense_missing_assumed_empty: Any,
    *others: Any,
    Ncontext_sparse: int,
    Ncontext_dense: int,
    Nfeature_list_sparse: int,
    Nfeature_list_dense: int,
    context_sparse_types: Sequence[int],
    Tcontext_dense: Sequence[int],
    feature_list_dense_types: Sequence[int],
    context_dense_shapes: Sequence[Any],
    feature_list_sparse_types: Sequence[int],
    feature_list_dense_shapes: Sequence[Any],
) -> list[Any]:
    counts = (Ncontext_sparse, Ncontext_dense, Nfeature_list_sparse, Nfeature_list_dense)
    keys, at = [], 0
    for count in counts:
        keys.append(keys_of(others[at : at + count]))
        at += count
    defaults, debug_name = others[at : at + Ncontext_dense], others[-1]
    sequences = _Sequences([scalar_string(serialized)], debug_name, is_single=True)
    wanted = Dense(keys[1], kinds_of(Tcontext_dense), context_dense_shapes, defaults)
    may_miss = dict.fromkeys(texts_of(feature_list_dense_missing_assumed_empty), True)
    kinds = kinds_of(feature_list_dense_types)
    return [
        *sequences.sparse(keys[0], kinds_of(context_sparse_types)),
        *sequences.dense(wanted),
        *sequences.sparse_lists(keys[2], kinds_of(feature_list_sparse_types)),
        *sequences.dense_lists(keys[3], kinds, feature_list_dense_shapes, may_miss)[0],
    ]


@kernel("ParseSequenceExample", is_host=True)
def parse_sequence_example(
    serialized: Any,
    debug_name: Any,
    *context_dense_defaults: Any,
    feature_list_dense_missing_assumed_empty: Sequence[bytes],
    context_sparse_keys: Sequence[bytes],
    context_dense_keys: Sequence[bytes],
    feature_list_sparse_keys: Sequence[bytes],
    feature_list_dense_keys: Sequence[bytes],
    context_sparse_types: Sequence[int],
    Tcontext_dense: Sequence[int],
    feature_list_dense_types: Sequence[int],
    context_dense_shapes: Sequence[Any],
    feature_list_sparse_types: Sequence[int],
    feature_list_dense_shapes: Sequence[Any],
) -> list[Any]:
    sequences = _Sequences(serialized, debug_name, is_single=False)
    wanted = Dense(
        keys_of(context_dense_keys),
        kinds_of(Tcontext_dense),
        context_dense_shapes,
        context_dense_defaults,
    )
    found, lengths = sequences.dense_lists(
        keys_of(feature_list_dense_keys),
        kinds_of(feature_list_dense_types),
        feature_list_dense_shapes,
        dict.fromkeys(keys_of(feature_list_dense_missing_assumed_empty), True),
    )
    list_keys = keys_of(feature_list_sparse_keys)
    return [
        *sequences.sparse(keys_of(context_sparse_keys), kinds_of(context_sparse_types)),
        *sequences.dense(wanted),
        *sequences.sparse_lists(list_keys, kinds_of(feature_list_sparse_types)),
        *found,
        *lengths,
    ]


@kernel("ParseSequenceExampleV2", is_host=True)
def parse_sequence_example_v2(
    serialized: Any,
    debug_name: Any,
    context_sparse_keys: Any,
    context_dense_keys: Any,
    context_ragged_keys: Any,
    feature_list_sparse_keys: Any,
    feature_list_dense_keys: Any,
    feature_list_ragged_keys: Any,
    feature_list_dense_missing_assumed_empty: Any,
    *context_dense_defaults: Any,
    Tcontext_dense: Sequence[int],
    context_sparse_types: Sequence[int],
    context_ragged_value_types: Sequence[int],
    context_ragged_split_types: Sequence[int],
    context_dense_shapes: Sequence[Any],
    feature_list_dense_types: Sequence[int],
    feature_list_sparse_types: Sequence[int],
    feature_list_ragged_value_types: Sequence[int],
    feature_list_ragged_split_types: Sequence[int],
    feature_list_dense_shapes: Sequence[Any],
) -> list[Any]:
    sequences = _Sequences(serialized, debug_name, is_single=not np.ndim(serialized))
    wanted = Dense(
        texts_of(context_dense_keys),
        kinds_of(Tcontext_dense),
        context_dense_shapes,
        context_dense_defaults,
    )
    dense_keys = texts_of(feature_list_dense_keys)
    may_miss = np.ravel(feature_list_dense_missing_assumed_empty).tolist()
    found, lengths = sequences.dense_lists(
        dense_keys,
        kinds_of(feature_list_dense_types),
        feature_list_dense_shapes,
        dict(zip(dense_keys, may_miss, strict=True)),
    )
    ragged = sequences.ragged(
        texts_of(context_ragged_keys),
        kinds_of(context_ragged_value_types),
        kinds_of(context_ragged_split_types),
    )
    ragged_lists = sequences.ragged_lists(
        texts_of(feature_list_ragged_keys),
        kinds_of(feature_list_ragged_value_types),
        kinds_of(feature_list_ragged_split_types),
    )
    list_keys = texts_of(feature_list_sparse_keys)
    return [
        *sequences.sparse(texts_of(context_sparse_keys), kinds_of(context_sparse_types)),
        *sequences.dense(wanted),
        *(item for part in ragged for item in part),
        *sequences.sparse_lists(list_keys, kinds_of(feature_list_sparse_types)),
        *found,
        *lengths,
        *(item for part in ragged_lists for item in part),
    ]
