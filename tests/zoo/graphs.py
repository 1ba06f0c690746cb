"""Graphs, molecules and scenes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from . import arrays
from .entry import Made, program
from .training import cross_entropy, mlp, trained

GRAPH_REDUCED = {"nodes": 6, "edges": 14, "features": 4, "hidden": 8, "classes": 3}
GRAPH_REAL = {"nodes": 2708, "edges": 10556, "features": 1433, "hidden": 256, "classes": 7}


def _graph(nodes: int, edges: int, features: int, classes: int) -> Any:
    senders, receivers = (arrays.integers(nodes, edges, seed=i) for i in range(2))
    return arrays.normal(nodes, features), senders, receivers, arrays.integers(classes, nodes)


@program("plain", reduced=GRAPH_REDUCED, real=GRAPH_REAL)
def graph_network(nodes: int, edges: int, features: int, hidden: int, classes: int) -> Made:
    """A message-passing network with edges, nodes and a global state, by segment_sum."""

    def loss(
        params: Any, x: jax.Array, senders: jax.Array, receivers: jax.Array, labels: Any
    ) -> Any:
        h = jax.nn.relu(x @ params["embed"])
        degree = jax.ops.segment_sum(jnp.ones_like(receivers), receivers, nodes)
        total = jnp.zeros(hidden)
        for layer in params["layers"]:
            messages = mlp(layer["edge"], jnp.concatenate([h[senders], h[receivers]], -1))
            received = jax.ops.segment_sum(messages, receivers, nodes)
            largest = jax.ops.segment_max(messages, receivers, nodes, indices_are_sorted=False)
            largest = jnp.where(degree[:, None] > 0, largest, 0.0)
            received = received / jnp.maximum(degree, 1)[:, None] + largest
            h = h + mlp(layer["node"], jnp.concatenate([h, received], -1)) + total
            total = jnp.mean(h, axis=0)
        return cross_entropy(h @ params["head"], labels)

    def params() -> Any:
        layers = [
            {
                "edge": arrays.dense(2 * hidden, hidden, hidden, seed=i),
                "node": arrays.dense(2 * hidden, hidden, seed=i + 9),
            }
            for i in range(2)
        ]
        embed = arrays.normal(features, hidden, scale=features**-0.5)
        return {"embed": embed, "layers": layers, "head": arrays.normal(hidden, classes)}

    return trained(loss, params, lambda: _graph(nodes, edges, features, classes), optax.adam(1e-2))


@program("plain", reduced=GRAPH_REDUCED, real=GRAPH_REAL)
def graph_attention(nodes: int, edges: int, features: int, hidden: int, classes: int) -> Made:
    """GATv2: a softmax over the edges of each node, by segment_max and segment_sum; dropout."""
    heads = 2

    def layer(weights: Any, h: jax.Array, senders: jax.Array, receivers: jax.Array) -> jax.Array:
        left = jnp.einsum("nf,fhd->nhd", h, weights["left"])[senders]
        right = jnp.einsum("nf,fhd->nhd", h, weights["right"])[receivers]
        scores = jnp.einsum("ehd,hd->eh", jax.nn.leaky_relu(left + right, 0.2), weights["a"])
        peak = lax.stop_gradient(jax.ops.segment_max(scores, receivers, nodes))
        scores = jnp.exp(scores - peak[receivers])
        share = scores / jax.ops.segment_sum(scores, receivers, nodes)[receivers]
        return jax.ops.segment_sum(share[..., None] * left, receivers, nodes)

    def loss(params: Any, x: Any, senders: Any, receivers: Any, labels: Any, key: Any) -> Any:
        kept = jax.random.bernoulli(key, 0.6, x.shape)
        h = jnp.where(kept, x / 0.6, 0.0)
        h = jax.nn.elu(layer(params["first"], h, senders, receivers)).reshape(nodes, -1)
        return cross_entropy(layer(params["last"], h, senders, receivers).mean(axis=1), labels)

    def weights(m: int, n: int, seed: int) -> Any:
        left, right = (arrays.normal(m, heads, n, seed=seed + i, scale=0.1) for i in range(2))
        return {"left": left, "right": right, "a": arrays.normal(heads, n, seed=seed)}

    def params() -> Any:
        first = weights(features, hidden, 0)
        return {"first": first, "last": weights(heads * hidden, classes, 5)}

    def batch() -> Any:
        return *_graph(nodes, edges, features, classes), jax.random.PRNGKey(4)

    return trained(loss, params, batch, optax.adamw(5e-3, weight_decay=5e-4))


@program(
    "plain",
    reduced={"rays": 3, "samples": 5, "hidden": 8, "bands": 3},
    real={"rays": 4096, "samples": 64, "hidden": 256, "bands": 10},
)
def nerf(rays: int, samples: int, hidden: int, bands: int) -> Made:
    """NeRF: stratified, then importance samples (searchsorted), and volume rendering (cumprod)."""

    def encoded(x: jax.Array) -> jax.Array:
        scaled = x[..., None] * 2.0 ** jnp.arange(bands)
        waves = jnp.concatenate([jnp.sin(scaled), jnp.cos(scaled)], axis=-1)
        return jnp.concatenate([x, waves.reshape(*x.shape[:-1], -1)], axis=-1)

    def render(params: Any, origins: Any, directions: Any, depths: jax.Array) -> Any:
        points = origins[:, None] + depths[..., None] * directions[:, None]
        raw = mlp(params, encoded(points))
        gaps = jnp.diff(depths, axis=-1, append=depths[:, -1:] + 0.1)
        opacity = 1 - jnp.exp(-jax.nn.softplus(raw[..., 3]) * gaps)
        passed = jnp.cumprod(1 - opacity + 1e-10, axis=-1)
        passed = jnp.concatenate([jnp.ones_like(passed[:, :1]), passed[:, :-1]], axis=-1)
        weights = opacity * passed
        return jnp.sum(weights[..., None] * jax.nn.sigmoid(raw[..., :3]), axis=1), weights

    def resampled(depths: jax.Array, weights: jax.Array, u: jax.Array) -> jax.Array:
        cumulative = jnp.cumsum(weights + 1e-5)
        cumulative = cumulative / cumulative[-1]
        return jnp.interp(u, cumulative, depths) + 0.0 * depths[jnp.searchsorted(cumulative, u)]

    def loss(params: Any, origins: Any, directions: Any, colors: Any, key: Any) -> jax.Array:
        directions = directions / jnp.linalg.norm(directions, axis=-1, keepdims=True)
        keys = jax.random.split(key)
        noise = jax.random.uniform(keys[0], (rays, samples))
        depths = 2 + 4 * (jnp.arange(samples) + noise) / samples
        coarse, weights = render(params["coarse"], origins, directions, depths)
        u = jnp.sort(jax.random.uniform(keys[1], (rays, samples)), axis=-1)
        more = jax.vmap(resampled)(depths, lax.stop_gradient(weights), u)
        depths = jnp.sort(jnp.concatenate([depths, more], axis=-1), axis=-1)
        fine, _ = render(params["fine"], origins, directions, depths)
        return jnp.mean((coarse - colors) ** 2) + jnp.mean((fine - colors) ** 2)

    def params() -> Any:
        sizes = (3 + 6 * bands, hidden, hidden, 4)
        return {"coarse": arrays.dense(*sizes), "fine": arrays.dense(*sizes, seed=7)}

    def batch() -> Any:
        colors = arrays.uniform(rays, 3, seed=2)
        return arrays.normal(rays, 3), arrays.normal(rays, 3, seed=1), colors, jax.random.key(6)

    return trained(loss, params, batch, optax.adam(optax.exponential_decay(5e-4, 100, 0.1)))


@program(
    "plain",
    reduced={"atoms": 4, "hidden": 8, "layers": 2, "batch": 2},
    real={"atoms": 32, "hidden": 128, "layers": 4, "batch": 16},
)
def molecular_energy(atoms: int, hidden: int, layers: int, batch: int) -> Made:
    """SchNet-like energies whose forces, a gradient by positions, are in the loss under vmap."""

    def energy(params: Any, positions: jax.Array, kinds: jax.Array) -> jax.Array:
        offsets = positions[:, None] - positions[None]
        distances = jnp.sqrt(jnp.sum(offsets**2, axis=-1) + 1e-6)
        basis = jnp.exp(-((distances[..., None] - jnp.linspace(0, 5, 8)) ** 2))
        envelope = 0.5 * (jnp.cos(jnp.pi * jnp.clip(distances / 5, 0, 1)) + 1)
        near = envelope * (1 - jnp.eye(atoms))
        h = params["embedding"][kinds]
        softplus = lambda x: jax.nn.softplus(x) - jnp.log(2.0)  # noqa: E731
        for layer in params["layers"]:
            filters = mlp(layer["filter"], basis, softplus) * near[..., None]
            h = h + mlp(layer["update"], jnp.einsum("ijd,jd->id", filters, h), softplus)
        return jnp.sum(mlp(params["head"], h, softplus))

    def loss(params: Any, positions: Any, kinds: Any, energies: Any, forces: Any) -> jax.Array:
        values, gradients = jax.vmap(jax.value_and_grad(energy, argnums=1), in_axes=(None, 0, 0))(
            params, positions, kinds
        )
        return jnp.mean((values - energies) ** 2) + jnp.mean((gradients + forces) ** 2)

    def params() -> Any:
        layers_of = [
            {
                "filter": arrays.dense(8, hidden, hidden, seed=i),
                "update": arrays.dense(hidden, hidden, seed=i + 5),
            }
            for i in range(layers)
        ]
        head = arrays.dense(hidden, hidden, 1)
        return {"embedding": arrays.normal(9, hidden), "layers": layers_of, "head": head}

    def batch_of() -> Any:
        shape = (batch, atoms, 3)
        energies = arrays.normal(batch)
        kinds = arrays.integers(9, batch, atoms)
        return arrays.normal(*shape), kinds, energies, arrays.normal(*shape, seed=1)

    return trained(loss, params, batch_of, optax.amsgrad(1e-3))
