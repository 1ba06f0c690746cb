"""Sorting, searching, dynamic programs and control flow."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from . import arrays
from .entry import Made, program


@program("plain", reduced={"length": 9}, real={"length": 1 << 20})
def order_statistics(length: int) -> Made:
    """Sorts, ranks, quantiles, histograms, unique values, set membership, running extremes."""

    def summarize(x: jax.Array, ids: jax.Array) -> Any:
        order = jnp.lexsort((x, ids))
        unique, counts = jnp.unique(ids, return_counts=True, size=5, fill_value=-1)
        histogram, edges = jnp.histogram(x, bins=4)
        return {
            "sorted": x[order],
            "ranks": jnp.argsort(jnp.argsort(x)),
            "quantiles": jnp.quantile(x, jnp.array([0.1, 0.5, 0.9])),
            "median": jnp.median(x),
            "unique": (unique, counts),
            "histogram": (histogram, edges),
            "digits": jnp.digitize(x, edges[1:-1]),
            "members": jnp.isin(ids, jnp.array([1, 3])),
            "running": (lax.cummax(x), lax.cummin(x), lax.cumlogsumexp(x), jnp.cumsum(x)),
            "top": lax.top_k(x, 3),
            "partition": jnp.sort(jnp.partition(x, 4)[:4]),
        }

    return Made(summarize, lambda: (arrays.normal(length), arrays.integers(6, length)))


@program(
    "plain",
    reduced={"first": 5, "second": 4, "batch": 2},
    real={"first": 512, "second": 400, "batch": 32},
)
def sequence_alignment(first: int, second: int, batch: int) -> Made:
    """Differentiable alignment (soft-DTW) and edit distances: nested scans under vmap."""

    def soft_dtw(a: jax.Array, b: jax.Array, gamma: jax.Array) -> jax.Array:
        cost = (a[:, None] - b[None]) ** 2

        def row(above: jax.Array, costs: jax.Array) -> Any:
            def cell(left: jax.Array, inputs: Any) -> Any:
                up, corner, c = inputs
                best = -gamma * jax.nn.logsumexp(-jnp.stack([left, up, corner]) / gamma)
                return c + best, c + best

            _, values = lax.scan(cell, jnp.float32(1e4), (above[1:], above[:-1], costs))
            return jnp.concatenate([jnp.full(1, 1e4, jnp.float32), values]), None

        border = jnp.full(second + 1, 1e4, jnp.float32).at[0].set(0.0)
        return lax.scan(row, border, cost)[0][-1]

    def edit_distance(a: jax.Array, b: jax.Array) -> jax.Array:
        def row(above: jax.Array, letter: jax.Array) -> Any:
            replaced = above[:-1] + (letter != b)
            kept = jnp.minimum(above[1:] + 1, replaced)
            start = jnp.concatenate([above[:1] + 1, kept])
            steps = jnp.arange(second + 1)
            return lax.cummin(start - steps) + steps, None

        return lax.scan(row, jnp.arange(second + 1), a)[0][-1]

    def align(a: jax.Array, b: jax.Array, words: Any, gamma: jax.Array) -> Any:
        distance, gradient = jax.vmap(jax.value_and_grad(soft_dtw), (0, 0, None))(a, b, gamma)
        return {"dtw": distance, "gradient": gradient, "edits": jax.vmap(edit_distance)(*words)}

    def init() -> Any:
        words = arrays.integers(4, batch, first), arrays.integers(4, batch, second, seed=1)
        a, b = arrays.normal(batch, first), arrays.normal(batch, second, seed=1)
        return a, b, words, arrays.uniform(low=0.5)

    return Made(align, init)


@program(
    "plain",
    reduced={"trees": 3, "depth": 2, "rows": 4},
    real={"trees": 500, "depth": 6, "rows": 10_000},
)
def boosted_trees(trees: int, depth: int, rows: int) -> Made:
    """A gradient-boosted forest of oblivious trees on missing values, with lax.switch by link."""

    def predict(forest: Any, x: jax.Array, link: jax.Array) -> Any:
        def tree(total: jax.Array, one: Any) -> Any:
            features, thresholds, leaves = one
            taken = x[:, features]
            bits = jnp.where(jnp.isnan(taken), True, taken > thresholds)
            place = jnp.sum(bits.astype(jnp.int32) << jnp.arange(depth), axis=-1)
            return total + leaves[place], jnp.bincount(place, length=2**depth)

        total, used = lax.scan(tree, jnp.zeros(rows), forest)
        links = [jax.nn.sigmoid, jnp.exp, lambda y: y, lambda y: jnp.tanh(y) ** 2]
        return {"prediction": lax.switch(link, links, total), "used": used}

    def init() -> Any:
        forest = (
            arrays.integers(5, trees, depth),
            arrays.normal(trees, depth),
            arrays.normal(trees, 2**depth, scale=0.1),
        )
        x = arrays.normal(rows, 5)
        x[0, 1] = float("nan")
        return forest, x, arrays.integers(4)

    return Made(predict, init)
