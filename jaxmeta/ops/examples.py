"""Serialized `Example`s to tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxmeta.ops import _examples
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._examples import Dense, columns, keys_of, kinds_of, texts_of, vectors_of


@kernel("ParseExample", is_host=True)
def parse_example(
    serialized: Any,
    names: Any,
    *keys_and_defaults: Any,
    Nsparse: int,
    Ndense: int,
    sparse_types: Sequence[int],
    Tdense: Sequence[int],
    dense_shapes: Sequence[Any],
) -> list[Any]:
    keys = keys_of(keys_and_defaults[: Nsparse + Ndense])
    defaults = keys_and_defaults[Nsparse + Ndense :]
    dense = Dense(keys[Nsparse:], kinds_of(Tdense), dense_shapes, defaults)
    return _parse_batch(serialized, names, keys[:Nsparse], kinds_of(sparse_types), dense)


def _parse_batch(
    serialized: Any, names: Any, sparse_keys: Sequence[str], sparse_kinds: Any, dense: Dense
) -> list[Any]:
    rows, labels = _rows(serialized, names)
    sparse = [
        _examples.sparse(vectors_of(rows, labels, key, kind), kind)
        for key, kind in zip(sparse_keys, sparse_kinds, strict=True)
    ]
    return [*columns(sparse), *dense.stacked(rows, labels)]


def _rows(serialized: Any, names: Any) -> tuple[list[Mapping[str, Any]], list[str]]:
    contents = np.ravel(serialized).tolist()
    labels = texts_of(names) or [""] * len(contents)
    rows = [
        _examples.parse_example(content, label)
        for content, label in zip(contents, labels, strict=True)
    ]
    return rows, labels


@kernel("ParseSingleExample", is_host=True)
def parse_single_example(
    serialized: Any,
    *dense_defaults: Any,
    sparse_keys: Sequence[bytes],
    dense_keys: Sequence[bytes],
    sparse_types: Sequence[int],
    Tdense: Sequence[int],
    dense_shapes: Sequence[Any],
) -> list[Any]:
    dense = Dense(keys_of(dense_keys), kinds_of(Tdense), dense_shapes, dense_defaults)
    return _parse_single(serialized, keys_of(sparse_keys), kinds_of(sparse_types), dense)


def _parse_single(
    serialized: Any, sparse_keys: Sequence[str], sparse_kinds: Any, dense: Dense
) -> list[Any]:
    rows, labels = _rows(serialized, [])
    sparse = [
        _examples.sparse_vector(vectors_of(rows, labels, key, kind)[0])
        for key, kind in zip(sparse_keys, sparse_kinds, strict=True)
    ]
    return [*columns(sparse), *dense.single(rows[0], "")]


@kernel("ParseExampleV2", is_host=True)
def parse_example_v2(
    serialized: Any,
    names: Any,
    sparse_keys: Any,
    dense_keys: Any,
    ragged_keys: Any,
    *dense_defaults: Any,
    Tdense: Sequence[int],
    sparse_types: Sequence[int],
    ragged_value_types: Sequence[int],
    ragged_split_types: Sequence[int],
    dense_shapes: Sequence[Any],
) -> list[Any]:
    dense = Dense(texts_of(dense_keys), kinds_of(Tdense), dense_shapes, dense_defaults)
    parsed = _parse_batch if np.ndim(serialized) else _single_with_names
    results = parsed(serialized, names, texts_of(sparse_keys), kinds_of(sparse_types), dense)
    rows, labels = _rows(serialized, names)
    found, splits = [], []
    kinds = zip(kinds_of(ragged_value_types), kinds_of(ragged_split_types), strict=True)
    for key, (kind, split_kind) in zip(texts_of(ragged_keys), kinds, strict=True):
        vectors = vectors_of(rows, labels, key, kind)
        found.append(_examples.concatenate(vectors, kind))
        # Of a single example there are no rows.
        is_batch = bool(np.ndim(serialized))
        splits.append(
            _examples.row_splits(vectors, split_kind) if is_batch else np.empty(0, split_kind)
        )
    return [*results, *found, *splits]


def _single_with_names(serialized: Any, names: Any, *wanted: Any) -> list[Any]:
    del names
    return _parse_single(serialized, *wanted)
