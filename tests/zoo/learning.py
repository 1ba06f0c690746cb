"""Learning that is more than a gradient step: meta-learning, contrast, distillation, equilibria."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax

from . import arrays
from .entry import Made, program
from .training import cross_entropy, mlp, trained


@program(
    "plain",
    reduced={"tasks": 2, "shots": 3, "hidden": 8, "steps": 2},
    real={"tasks": 32, "shots": 16, "hidden": 256, "steps": 5},
)
def meta_learning(tasks: int, shots: int, hidden: int, steps: int) -> Made:
    """MAML on sine waves: a gradient through inner gradient steps under scan and vmap."""

    def error(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean((mlp(params, x) - y) ** 2)

    def loss(params: Any, support: Any, query: Any) -> jax.Array:
        def one_task(support: Any, query: Any) -> jax.Array:
            def inner(params: Any, _: Any) -> Any:
                value, grads = jax.value_and_grad(error)(params, *support)
                return jax.tree.map(lambda p, g: p - 0.05 * g, params, grads), value

            adapted, _ = lax.scan(inner, params, None, length=steps)
            return error(adapted, *query)

        return jnp.mean(jax.vmap(one_task)(support, query))

    def sines(seed: int) -> Any:
        x = arrays.uniform(tasks, shots, 1, low=-5, high=5, seed=seed)
        return x, jnp.sin(x + arrays.uniform(tasks, 1, 1, high=3))

    params = lambda: arrays.dense(1, hidden, hidden, 1)  # noqa: E731
    return trained(loss, params, lambda: (sines(0), sines(1)), optax.adam(1e-3))


@program(
    "plain",
    reduced={"features": 6, "hidden": 8, "batch": 3},
    real={"features": 512, "hidden": 2048, "batch": 512},
)
def contrastive(features: int, hidden: int, batch: int) -> Made:
    """CLIP's symmetric loss with a learned temperature, over two towers."""

    def loss(params: Any, images: jax.Array, texts: jax.Array) -> jax.Array:
        towers = [mlp(params[n], x, nn.gelu) for n, x in (("image", images), ("text", texts))]
        a, b = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in towers)
        logits = jnp.minimum(jnp.exp(params["scale"]), 100.0) * a @ b.T
        labels = jnp.arange(batch)
        return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2

    def params() -> Any:
        towers = [arrays.dense(features, hidden, 4, seed=i) for i in range(2)]
        return {"image": towers[0], "text": towers[1], "scale": arrays.uniform(low=2, high=3)}

    batch_of = functools.partial(arrays.normal, batch, features)
    return trained(loss, params, lambda: (batch_of(), batch_of(seed=1)), optax.lars(0.1))


@program(
    "plain",
    reduced={"features": 6, "hidden": 8, "classes": 4, "batch": 3},
    real={"features": 784, "hidden": 1024, "classes": 10, "batch": 256},
)
def distillation(features: int, hidden: int, classes: int, batch: int) -> Made:
    """A student of a frozen int8 teacher: straight-through rounding, focal loss."""

    @jax.custom_jvp
    def rounded(x: jax.Array) -> jax.Array:
        return jnp.round(x)

    rounded.defjvp(lambda primals, tangents: (rounded(*primals), *tangents))

    def fake_quantized(w: jax.Array) -> jax.Array:
        scale = jnp.max(jnp.abs(w), axis=0, keepdims=True) / 127
        return jnp.clip(rounded(w / scale), -127, 127) * scale

    def loss(params: Any, teacher: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        h = jax.nn.relu(x @ (teacher["first"].astype(jnp.float32) * teacher["scale"]))
        targets = jax.nn.softmax(h @ teacher["last"] / 2)
        quantized = [{**layer, "w": fake_quantized(layer["w"])} for layer in params]
        logits = mlp(quantized, x, jax.nn.hard_swish)
        distilled = optax.kl_divergence(jax.nn.log_softmax(logits / 2), targets)
        focal = optax.sigmoid_focal_loss(logits, jax.nn.one_hot(labels, classes))
        return jnp.mean(distilled) + jnp.mean(focal)

    def batch_of() -> Any:
        first = (arrays.integers(255, features, hidden) - 127).astype("int8")
        scale = arrays.uniform(hidden, low=0.001, high=0.01)
        teacher = {"first": first, "scale": scale, "last": arrays.normal(hidden, classes)}
        return teacher, arrays.normal(batch, features), arrays.integers(classes, batch)

    params = lambda: arrays.dense(features, hidden, classes)  # noqa: E731
    return trained(loss, params, batch_of, optax.radam(1e-3))


@program(
    "plain",
    reduced={"features": 5, "batch": 3},
    real={"features": 512, "batch": 128},
)
def deep_equilibrium(features: int, batch: int) -> Made:
    """A deep equilibrium model: damped steps in a while loop, implicit gradients."""

    def cell(params: Any, x: jax.Array, z: jax.Array) -> jax.Array:
        return jnp.tanh(z @ params["z"] + x @ params["x"])

    def settle(step: Any, z: jax.Array) -> jax.Array:
        def body(carry: Any) -> Any:
            _, z, count = carry
            return z, 0.5 * z + 0.5 * step(z), count + 1

        going = lambda c: (jnp.max(jnp.abs(c[1] - c[0])) > 1e-5) & (c[2] < 40)  # noqa: E731
        return lax.while_loop(going, body, (z, step(z), jnp.int32(0)))[1]

    @jax.custom_vjp
    def equilibrium(params: Any, x: jax.Array) -> jax.Array:
        return settle(lambda z: cell(params, x, z), jnp.zeros_like(x))

    def forward(params: Any, x: jax.Array) -> Any:
        z = equilibrium(params, x)
        return z, (params, x, z)

    def backward(saved: Any, g: jax.Array) -> Any:
        params, x, z = saved
        _, pull = jax.vjp(lambda z: cell(params, x, z), z)
        adjoint = settle(lambda u: g + pull(u)[0], jnp.zeros_like(g))
        _, pull_rest = jax.vjp(lambda params, x: cell(params, x, z), params, x)
        return pull_rest(adjoint)

    equilibrium.defvjp(forward, backward)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(optax.log_cosh(equilibrium(params, x), y))

    def params() -> Any:
        matrix = functools.partial(arrays.normal, features, features)
        return {"z": matrix(scale=0.3 * features**-0.5), "x": matrix(seed=1, scale=0.3)}

    batch_of = functools.partial(arrays.normal, batch, features)
    return trained(loss, params, lambda: (batch_of(), batch_of(seed=1)), optax.adan(1e-3))


@program(
    "nnx",
    reduced={"features": 6, "hidden": 8},
    real={"features": 4096, "hidden": 16384},
)
def nnx_initialization(features: int, hidden: int) -> Made:
    """A model's initialisation as the program: nnx.split of a model made from a key."""

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            orthogonal = nnx.initializers.orthogonal()
            self.up = nnx.Linear(features, hidden, rngs=rngs)
            self.norm = nnx.BatchNorm(hidden, rngs=rngs)
            self.down = nnx.Linear(
                hidden, features, kernel_init=nnx.initializers.truncated_normal(0.02), rngs=rngs
            )
            self.head = nnx.Linear(features, features, kernel_init=orthogonal, rngs=rngs)

    def initialize(key: jax.Array) -> Any:
        return nnx.to_pure_dict(nnx.state(Model(nnx.Rngs(key)), nnx.Param))

    return Made(jax.jit(initialize), lambda: (jax.random.key(0),))
