"""Graphs of TensorFlow's random ops, whose numbers are those of their seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

MAKERS: Final[dict[str, Callable[[Any], Any]]] = {}
"""Name to a function of TensorFlow that gives tensors, all of which it seeds."""

FLOATS: Final = ("float32", "float64", "float16", "bfloat16")


def drawn(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    MAKERS[make.__name__] = make
    return make


def of_dtypes(tf: Any, draw: Callable[..., Any], names: Any, **options: Any) -> list[Any]:
    return [draw(dtype=tf.as_dtype(name), **options) for name in names]


@drawn
def of_op_seeds(tf):
    draws = (tf.random.uniform, tf.random.normal, tf.random.truncated_normal)
    floats = [of_dtypes(tf, draw, FLOATS, shape=[7, 9], seed=3) for draw in draws]
    bounds = {"shape": [33], "minval": -5, "maxval": 1000, "seed": 4}
    return floats, of_dtypes(tf, tf.random.uniform, ("int32", "int64"), **bounds)


@drawn
def of_shuffles(tf):
    rows = tf.reshape(tf.range(34), [17, 2])
    return [tf.random.shuffle(tf.range(50), seed=3), tf.random.shuffle(rows, seed=4)]


@drawn
def of_classes(tf):
    logits = [[0.0, 1.0, 2.0], [1.0, 1.0, -5.0]]
    return [
        tf.random.categorical(logits, 13, seed=3),
        tf.random.stateless_categorical(logits, 13, seed=[3, 4]),
    ]


@drawn
def of_rejection(tf):
    alphas, rates = [0.3, 1.0, 4.0], [0.3, 9.0, 12.0, 1e4]
    return [
        tf.random.gamma([20], alphas, seed=3),
        tf.random.gamma([20], alphas, seed=3, dtype=tf.float64),
        tf.random.poisson([20], rates, seed=3),
        tf.random.stateless_gamma([20, 3], [5, 6], alphas),
        tf.raw_ops.StatelessRandomGammaV2(shape=[20, 3], seed=[5, 6], alpha=alphas),
        tf.random.stateless_poisson([20, 4], [5, 6], rates, dtype=tf.int32),
    ]


@drawn
def of_two_seeds(tf):
    seed = [-3, 2**40 + 5]
    random = tf.random
    draws = (random.stateless_uniform, random.stateless_normal, random.stateless_truncated_normal)
    floats = [of_dtypes(tf, draw, FLOATS, shape=[7, 9], seed=seed) for draw in draws]
    whole = {"shape": [33], "minval": None, "maxval": None, "seed": seed}
    bounded = {"shape": [33], "minval": 5, "maxval": 700, "seed": tf.constant([3, -7])}
    return (
        floats,
        of_dtypes(tf, random.stateless_uniform, ("int32", "int64", "uint32", "uint64"), **whole),
        of_dtypes(tf, random.stateless_uniform, ("int32", "int64"), **bounded),
    )


@drawn
def of_old_stateless_ops(tf):
    raw, options = tf.raw_ops, {"shape": [7, 9], "seed": [3, 4]}
    return [
        raw.StatelessRandomUniform(**options),
        raw.StatelessRandomNormal(**options),
        raw.StatelessTruncatedNormal(**options),
        raw.StatelessRandomUniformInt(minval=-3, maxval=30, **options),
        raw.StatelessRandomUniformFullInt(dtype=tf.int32, **options),
        list(raw.StatelessRandomGetKeyCounterAlg(seed=[3, 4])),
        list(raw.StatelessRandomGetKeyCounter(seed=[3, 4])),
    ]


@drawn
def of_seeds_that_seeds_give(tf):
    seeds = tf.random.split(tf.random.fold_in([1, 2], 3), 2)
    return [tf.random.stateless_normal([5], seed) for seed in tf.unstack(seeds)]


@drawn
def of_generator(tf):
    generator = tf.random.Generator.from_seed(77)
    raw, resource = tf.raw_ops, generator.state.handle
    old = {"resource": resource, "algorithm": 1, "shape": [5]}
    steps = (
        lambda: generator.normal([5]),
        lambda: generator.uniform([3], 0, 10, dtype=tf.int32),
        lambda: raw.RngSkip(resource=resource, algorithm=1, delta=2**40),
        lambda: raw.StatefulUniform(**old),
        lambda: raw.StatefulStandardNormalV2(**old),
        lambda: raw.StatefulTruncatedNormal(**old),
        lambda: raw.StatefulUniformInt(minval=2, maxval=90, **old),
        lambda: raw.StatefulUniformFullInt(dtype=tf.uint32, **old),
        lambda: generator.truncated_normal([5]),
    )
    results: list[Any] = []
    for step in steps:
        with tf.control_dependencies(results[-1:]):
            results.append(step())
    return [result for result in results if not isinstance(result, tf.Operation)]


@drawn
def of_candidates(tf):
    classes = tf.constant([[3], [0], [7], [19]], tf.int64)
    plain = {"true_classes": classes, "num_true": 1, "num_sampled": 9, "range_max": 20}
    results: list[Any] = []
    for name in ("Uniform", "LogUniform", "LearnedUnigram", "ThreadUnsafeUnigram"):
        op = getattr(tf.raw_ops, f"{name}CandidateSampler")
        for unique in (False, True):
            results.append(list(op(unique=unique, seed=5, seed2=len(results), **plain)))
    unigrams = [float(i % 5 + 1) for i in range(19)]
    fixed = {**plain, "num_reserved_ids": 1, "unigrams": unigrams, "distortion": 0.75}
    for unique in (False, True):
        made = tf.raw_ops.FixedUnigramCandidateSampler(unique=unique, seed=5, seed2=9, **fixed)
        results.append(list(made))
    whole = {name: plain[name] for name in ("true_classes", "num_true")}
    every = tf.raw_ops.AllCandidateSampler(num_sampled=20, unique=True, **whole)
    options = {"true_classes": classes, "num_true": 1}
    hits = [
        tf.raw_ops.ComputeAccidentalHits(sampled_candidates=ids, **options)
        for ids in ([19, 2, 3, 3, 5], results[3][0])
    ]
    return [*results, list(every), *map(list, hits)]


OPS: Final = (
    *(f"{name}CandidateSampler" for name in ("Uniform", "LogUniform", "LearnedUnigram", "All")),
    "ThreadUnsafeUnigramCandidateSampler",
    "FixedUnigramCandidateSampler",
    "ComputeAccidentalHits",
    "RandomUniform",
    "RandomStandardNormal",
    "TruncatedNormal",
    "RandomUniformInt",
    "RandomShuffle",
    "Multinomial",
    "RandomGamma",
    "RandomPoisson",
    "RandomPoissonV2",
    *(f"StatelessRandom{name}" for name in ("Uniform", "Normal", "UniformInt", "UniformFullInt")),
    "StatelessTruncatedNormal",
    *(f"StatelessRandom{name}V2" for name in ("Uniform", "Normal", "UniformInt", "UniformFullInt")),
    "StatelessTruncatedNormalV2",
    "StatelessMultinomial",
    "StatelessRandomGammaV2",
    "StatelessRandomGammaV3",
    "StatelessRandomPoisson",
    "StatelessRandomGetAlg",
    "StatelessRandomGetKeyCounter",
    "StatelessRandomGetKeyCounterAlg",
    "RngReadAndSkip",
    "RngSkip",
    "StatefulUniform",
    "StatefulStandardNormalV2",
    "StatefulTruncatedNormal",
    "StatefulUniformInt",
    "StatefulUniformFullInt",
    "RandomGammaGrad",
)
