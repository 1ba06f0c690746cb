"""Samples of classes for losses over large vocabularies, as TensorFlow's seeds give them.

Where both seeds of an op are 0 the samples are others in each program, as in TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import errors
from jaxmeta.ops import _philox
from jaxmeta.ops._definition import kernel
from jaxmeta.ops._philox_distributions import to_doubles, to_floats

_BLOCKS_PER_SAMPLE: Final = 512

Draw: TypeAlias = Callable[[Callable[[int], Any]], tuple[Any, Any]]
"""Takes what gives the words at places after the last one used; returns a class, and whether it
counts as drawn."""
Probability: TypeAlias = Callable[[Any], Any]


def _sample(
    words: Any, draw: Draw, words_per_draw: int, num_sampled: int, unique: bool, range_max: int
) -> tuple[Any, Any]:
    """Returns classes one after the other, and in how many tries they were found."""
    key, counter = words
    if unique and num_sampled > range_max:
        raise errors.InvalidArgumentError(
            f"Sampler's range is too small: {num_sampled} unique samples of {range_max} classes"
        )

    def word(place: Any) -> Any:
        block = _philox.make_blocks(key, _philox.add_to_counter(counter, [place >> 2]))
        return jnp.stack(block)[place & 3]

    def step(carry: Any) -> Any:
        used, is_taken, found, count, tries = carry
        value, is_drawn = draw(lambda index: word(used + np.uint32(index)))
        value = value.astype(np.int32)
        is_new = is_drawn & ~(is_taken[value] if unique else jnp.bool_(False))
        place = jnp.where(is_new, count, num_sampled)
        found = found.at[place].set(value, mode="drop")
        if unique:
            is_taken = is_taken.at[value].max(is_new)
        count, tries = count + is_new.astype(np.int32), tries + is_drawn.astype(np.int32)
        return used + np.uint32(words_per_draw), is_taken, found, count, tries

    zero = jnp.int32(0)
    is_taken = jnp.zeros(range_max if unique else 0, np.bool_)
    first = (jnp.uint32(0), is_taken, jnp.zeros(num_sampled, np.int32), zero, zero)
    _, _, found, _, tries = lax.while_loop(lambda carry: carry[3] < num_sampled, step, first)
    return found, tries


def _with_counts(
    true_classes: Any, sampled: Any, tries: Any, num_sampled: int, probability: Probability
) -> tuple[Any, Any, Any]:
    """Returns samples, and how often the true classes and they are expected among such."""

    def expected(classes: Any) -> Any:
        p = probability(classes).astype(np.float32)
        repicked = -jnp.expm1(tries.astype(np.float32) * jnp.log1p(-p))
        return jnp.where(tries == num_sampled, p * np.float32(num_sampled), repicked)

    true_classes = jnp.asarray(true_classes)
    return sampled.astype(true_classes.dtype), expected(true_classes), expected(sampled)


@kernel("UniformCandidateSampler")
def uniform_candidate_sampler(
    state: Any,
    true_classes: Any,
    *,
    num_sampled: int,
    unique: bool,
    range_max: int,
    seed: int,
    seed2: int,
    node_name: str,
) -> Any:
    def draw(word: Any) -> Any:
        with jax.enable_x64(True):
            bits = _philox.join_words(jnp.stack([word(0), word(1)]))
            return (bits % np.uint64(range_max)).astype(np.int32), jnp.bool_(True)

    words = _philox.take_blocks(state, node_name, seed, seed2, num_sampled * _BLOCKS_PER_SAMPLE)
    sampled, tries = _sample(words, draw, 2, num_sampled, unique, range_max)
    chance = np.float32(1 / range_max)
    return _with_counts(
        true_classes, sampled, tries, num_sampled, lambda classes: jnp.full(classes.shape, chance)
    )


@kernel("LogUniformCandidateSampler")
def log_uniform_candidate_sampler(
    state: Any,
    true_classes: Any,
    *,
    num_sampled: int,
    unique: bool,
    range_max: int,
    seed: int,
    seed2: int,
    node_name: str,
) -> Any:
    """Samples class k with probability log((k + 2) / (k + 1)) / log(range_max + 1)."""
    log_range = np.log1p(np.float64(range_max))

    def draw(word: Any) -> Any:
        with jax.enable_x64(True):
            value = jnp.exp(to_doubles(word(0), word(1)) * log_range).astype(np.int64) - 1
            return (value % range_max).astype(np.int32), jnp.bool_(True)

    def probability(classes: Any) -> Any:
        with jax.enable_x64(True):
            wide = classes.astype(np.float64)
            return (jnp.log((wide + 2) / (wide + 1)) / log_range).astype(np.float32)

    words = _philox.take_blocks(state, node_name, seed, seed2, num_sampled * _BLOCKS_PER_SAMPLE)
    sampled, tries = _sample(words, draw, 2, num_sampled, unique, range_max)
    return _with_counts(true_classes, sampled, tries, num_sampled, probability)


@kernel("LearnedUnigramCandidateSampler", "ThreadUnsafeUnigramCandidateSampler")
def unigram_candidate_sampler(
    state: Any,
    true_classes: Any,
    *,
    num_sampled: int,
    unique: bool,
    range_max: int,
    seed: int,
    seed2: int,
    node_name: str,
) -> Any:
    """Samples by how often classes were seen as true ones in earlier runs, each once to begin with.

    The state counts them, under the node's name.
    """
    nothing = jnp.zeros(range_max, np.uint32)
    seen = nothing.at[jnp.ravel(jnp.asarray(true_classes))].add(np.uint32(1), mode="drop")
    weights = nothing + state.count(f"{node_name}:classes", seen) + np.uint32(1)
    ends = jnp.cumsum(weights, dtype=np.uint32)
    total = ends[-1]
    remainder = np.uint32(0xFFFFFFFF) % total + np.uint32(1)
    is_power = (total & (total - np.uint32(1))) == 0

    def draw(word: Any) -> Any:
        bits = word(0)
        value = jnp.searchsorted(ends, bits % total, side="right")
        return value, is_power | (bits >= remainder)

    words = _philox.take_blocks(state, node_name, seed, seed2, num_sampled * _BLOCKS_PER_SAMPLE)
    sampled, tries = _sample(words, draw, 1, num_sampled, unique, range_max)
    share = weights.astype(np.float32) / total.astype(np.float32)
    return _with_counts(true_classes, sampled, tries, num_sampled, lambda c: share[c])


@kernel("FixedUnigramCandidateSampler")
def fixed_unigram_candidate_sampler(
    state: Any,
    true_classes: Any,
    *,
    num_sampled: int,
    unique: bool,
    range_max: int,
    vocab_file: bytes,
    distortion: float,
    num_reserved_ids: int,
    num_shards: int,
    shard: int,
    unigrams: Any,
    seed: int,
    seed2: int,
    node_name: str,
) -> Any:
    """Samples by given weights.

    Raises:
        UnsupportedOpError: they stand in a file, which a graph may not read.
    """
    if vocab_file:
        raise errors.UnsupportedOpError(
            f"node {node_name!r} (FixedUnigramCandidateSampler) reads the file "
            f"{vocab_file.decode(errors='replace')!r}, which a loaded graph may not; "
            "give its counts as the attr unigrams"
        )
    ids = np.arange(num_reserved_ids, num_reserved_ids + len(unigrams))
    given = np.asarray(unigrams, np.float32) ** np.float32(distortion)
    weights = np.concatenate([np.zeros(num_reserved_ids), given[ids % num_shards == shard]])
    if weights.size != range_max:
        raise errors.InvalidArgumentError(
            f"range_max is {range_max}, but there are {weights.size} weights"
        )
    chances, others = map(jnp.asarray, _alias_tables(weights))

    def draw(word: Any) -> Any:
        bits, count = word(1), np.uint32(range_max)
        is_power = range_max & (range_max - 1) == 0
        index = (bits % count).astype(np.int32)
        is_drawn = is_power | (bits >= np.uint32(0xFFFFFFFF % range_max + 1))
        return jnp.where(to_floats(word(0)) < chances[index], index, others[index]), is_drawn

    words = _philox.take_blocks(state, node_name, seed, seed2, num_sampled * _BLOCKS_PER_SAMPLE)
    sampled, tries = _sample(words, draw, 2, num_sampled, unique, range_max)
    share = jnp.asarray((weights / weights.sum()).astype(np.float32))
    return _with_counts(true_classes, sampled, tries, num_sampled, lambda c: share[c])


def _alias_tables(weights: Any) -> tuple[Any, Any]:
    """Returns of each bucket the chance of its own class, and its other class (Walker's method)."""
    size = weights.size
    chances = weights * size / weights.sum()
    others = np.arange(size, dtype=np.int32)
    low = np.flatnonzero(chances < 1).tolist()
    high = np.flatnonzero(chances >= 1).tolist()
    while high and low:
        small, large = low.pop(), high.pop()
        others[small] = large
        chances[large] -= 1 - chances[small]
        (low if chances[large] < 1 else high).append(large)
    chances[[*low, *high]] = 1
    return chances.astype(np.float32), others


@kernel("AllCandidateSampler")
def all_candidate_sampler(
    true_classes: Any, *, num_sampled: int, unique: bool, seed: int, seed2: int
) -> Any:
    del unique, seed, seed2  # nothing is random about all classes
    true_classes = jnp.asarray(true_classes)
    sampled = jnp.arange(num_sampled, dtype=true_classes.dtype)
    return sampled, jnp.ones(true_classes.shape), jnp.ones(num_sampled)


@kernel("ComputeAccidentalHits", is_host=True)
def compute_accidental_hits(
    true_classes: Any, sampled_candidates: Any, *, num_true: int, seed: int, seed2: int
) -> Any:
    """Returns which samples are true classes: the row, the sample, and the lowest float as weight.

    Of a class that was sampled twice only the last sample is found, as in TensorFlow.
    """
    del num_true, seed, seed2  # the first is the number of columns; nothing is random
    places = {value: place for place, value in enumerate(sampled_candidates.tolist())}
    hits = [
        (row, places[value])
        for row, values in enumerate(true_classes.tolist())
        for value in values
        if value in places
    ]
    indices, ids = np.asarray(hits, np.int64).reshape(-1, 2).T
    weights = np.full(len(hits), np.finfo(np.float32).min, np.float32)
    return indices.astype(np.int32), ids, weights
