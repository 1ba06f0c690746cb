"""Optimisation and estimation as in scientific computing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.scipy.optimize import minimize
from jax.scipy.sparse.linalg import cg

from . import arrays
from .entry import Made, program
from .training import trained


@program("plain", reduced={"points": 5, "features": 2}, real={"points": 2000, "features": 8})
def gaussian_process(points: int, features: int) -> Made:
    """A Gaussian process: kernel parameters by the evidence's gradient, through Cholesky."""

    def kernel(params: Any, a: jax.Array, b: jax.Array) -> jax.Array:
        offsets = (a[:, None] - b[None]) / jnp.exp(params["log_length"])
        r = jnp.sqrt(5.0 * jnp.sum(offsets**2, axis=-1) + 1e-8)
        return jnp.exp(params["log_scale"]) * (1 + r + r**2 / 3) * jnp.exp(-r)

    def loss(params: Any, x: jax.Array, y: jax.Array, new: jax.Array) -> jax.Array:
        noise = jnp.exp(params["log_noise"]) + 1e-4
        factor = jnp.linalg.cholesky(kernel(params, x, x) + noise * jnp.eye(points))
        alpha = jax.scipy.linalg.cho_solve((factor, True), y)
        evidence = -0.5 * y @ alpha - jnp.sum(jnp.log(jnp.diagonal(factor)))
        cross = kernel(params, x, new)
        v = jax.scipy.linalg.solve_triangular(factor, cross, lower=True)
        variance = jnp.diagonal(kernel(params, new, new)) - jnp.sum(v**2, axis=0)
        return -evidence / points + 0.0 * jnp.sum(cross.T @ alpha + variance)

    def params() -> Any:
        return {
            "log_length": arrays.normal(features, scale=0.1),
            "log_scale": arrays.normal(scale=0.1),
            "log_noise": arrays.normal(scale=0.1) - 2,
        }

    def batch() -> Any:
        new = arrays.normal(points, features, seed=1)
        return arrays.normal(points, features), arrays.normal(points, seed=2), new

    return trained(loss, params, batch, optax.rprop(1e-2))


@program("plain", reduced={"points": 6, "features": 3}, real={"points": 10000, "features": 100})
def lbfgs(points: int, features: int) -> Made:
    """Logistic regression by optax.lbfgs: its two-loop recursion and its zoom line search."""
    tx = optax.lbfgs(memory_size=3)

    def train_step(state: Any, x: jax.Array, y: jax.Array) -> Any:
        def loss_fn(params: jax.Array) -> jax.Array:
            return (
                jnp.mean(optax.sigmoid_binary_cross_entropy(x @ params, y)) + 1e-2 * params @ params
            )

        value_and_grad = optax.value_and_grad_from_state(loss_fn)
        loss, grad = value_and_grad(state["params"], state=state["opt_state"])
        updates, opt_state = tx.update(
            grad, state["opt_state"], state["params"], value=loss, grad=grad, value_fn=loss_fn
        )
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt_state": opt_state}, {"loss": loss}

    def init() -> Any:
        params = jnp.array(arrays.normal(features, scale=0.1))
        opt_state = jax.tree.map(_strong, tx.init(params))
        labels = (arrays.uniform(points) < 0.5).astype("float32")
        state = {"params": params, "opt_state": opt_state}
        return state, arrays.normal(points, features), labels

    return Made(train_step, init, updates=True)


def _strong(x: jax.Array) -> jax.Array:
    """Returns an array of its own, of a type that is not weak."""
    return jnp.array(x, dtype=x.dtype, copy=True)


@program("plain", reduced={"features": 3}, real={"features": 50})
def bfgs(features: int) -> Made:
    """Rosenbrock's function by jax.scipy.optimize.minimize, from several starts under vmap."""

    def solve(starts: jax.Array, curvature: jax.Array) -> Any:
        def rosenbrock(x: jax.Array) -> jax.Array:
            return jnp.sum(curvature * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

        run = lambda x: minimize(rosenbrock, x, method="BFGS", options={"maxiter": 5})  # noqa: E731
        found = jax.vmap(run)(starts)
        return {"x": found.x, "value": found.fun, "gradient": found.jac, "steps": found.nit}

    return Made(solve, lambda: (arrays.normal(2, features), arrays.uniform(low=5, high=10)))


@program("plain", reduced={"points": 5, "steps": 6}, real={"points": 1024, "steps": 100})
def sinkhorn(points: int, steps: int) -> Made:
    """Entropic optimal transport in log space, whose gradient is implicit (custom_vjp, cg)."""

    def potentials(cost: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
        def step(_: Any, pair: Any) -> Any:
            f, g = pair
            f = -epsilon * jax.nn.logsumexp((g[None] - cost) / epsilon - jnp.log(points), axis=1)
            g = -epsilon * jax.nn.logsumexp((f[:, None] - cost) / epsilon - jnp.log(points), axis=0)
            return f, g

        zeros = jnp.zeros(points)
        return lax.fori_loop(0, steps, step, (zeros, zeros))

    @jax.custom_vjp
    def distance(cost: jax.Array) -> jax.Array:
        return jnp.sum(plan(cost) * cost)

    def plan(cost: jax.Array) -> jax.Array:
        f, g = potentials(cost, 0.5)
        return jnp.exp((f[:, None] + g[None] - cost) / 0.5) / points**2

    def forward(cost: jax.Array) -> Any:
        coupling = plan(cost)
        return jnp.sum(coupling * cost), coupling

    distance.defvjp(forward, lambda coupling, g: (g * coupling,))

    def move(x: jax.Array, y: jax.Array) -> Any:
        def objective(x: jax.Array) -> jax.Array:
            cost = lambda a, b: jnp.sum((a[:, None] - b[None]) ** 2, axis=-1)  # noqa: E731
            return distance(cost(x, y)) - 0.5 * distance(cost(x, x))

        value, gradient = jax.value_and_grad(objective)(x)
        _, stiff = jax.jvp(jax.grad(objective), (x,), (gradient,))
        return {"distance": value, "moved": x - 0.5 * gradient, "curvature": stiff}

    return Made(move, lambda: (arrays.normal(points, 2), arrays.normal(points, 2, seed=1) + 1))


@program("plain", reduced={"size": 6}, real={"size": 512})
def poisson_solver(size: int) -> Made:
    """Conjugate gradients with a matrix-free Laplacian; source estimation by implicit gradients."""

    def laplacian(u: jax.Array) -> jax.Array:
        padded = jnp.pad(u, 1)
        around = padded[2:, 1:-1] + padded[:-2, 1:-1] + padded[1:-1, 2:] + padded[1:-1, :-2]
        return 4 * u - around

    def loss(source: jax.Array, observed: jax.Array, conductivity: jax.Array) -> jax.Array:
        apply = lambda u: laplacian(conductivity * u) + u  # noqa: E731
        diagonal = lambda u: u / (4 * conductivity + 1)  # noqa: E731
        u, _ = cg(apply, source, tol=1e-4, maxiter=20, M=diagonal)
        return jnp.mean((u - observed) ** 2) + 1e-3 * jnp.sum(jnp.abs(source))

    def batch() -> Any:
        return arrays.normal(size, size, seed=1), arrays.uniform(low=0.5, high=1.5)

    return trained(loss, lambda: arrays.normal(size, size), batch, optax.fromage(1e-2))


@program("plain", reduced={"signal": 16, "kernel": 4}, real={"signal": 1 << 18, "kernel": 4096})
def fft_convolution(signal: int, kernel: int) -> Made:
    """Convolution by FFT, a spectrogram and back, a Hilbert envelope, resampling, deconvolution."""

    def process(x: jax.Array, h: jax.Array) -> Any:
        y = jax.scipy.signal.fftconvolve(x, h, mode="same")
        spectrum = jnp.fft.fft(y)
        gains = jnp.where(jnp.arange(signal) < signal // 2, 2.0, 0.0).at[0].set(1.0)
        envelope = jnp.abs(jnp.fft.ifft(spectrum * gains))
        response = jnp.fft.rfft(h, n=signal)
        wiener = jnp.conj(response) / (jnp.abs(response) ** 2 + 1e-2)
        restored = jnp.fft.irfft(jnp.fft.rfft(y) * wiener, n=signal)
        frames = y.reshape(-1, signal // 4) * jnp.hanning(signal // 4)
        power = jnp.abs(jnp.fft.fftshift(jnp.fft.fft(frames), axes=-1)) ** 2
        return {"envelope": envelope, "restored": restored, "power": jnp.log1p(power)}

    return Made(process, lambda: (arrays.normal(signal), arrays.normal(kernel)))


@program(
    "plain",
    reduced={"points": 8, "features": 2, "clusters": 3},
    real={"points": 100_000, "features": 32, "clusters": 64},
)
def k_means(points: int, features: int, clusters: int) -> Made:
    """k-means: k-means++ seeds by a scan, Lloyd's steps in a while loop until nothing moves."""

    def squared(x: jax.Array, centers: jax.Array) -> jax.Array:
        return jnp.sum((x[:, None] - centers[None]) ** 2, axis=-1)

    def fit(x: jax.Array, key: jax.Array) -> Any:
        def seed(carry: Any, key: jax.Array) -> Any:
            nearest, centers, count = carry
            chosen = jax.random.choice(key, points, p=nearest / jnp.sum(nearest))
            centers = centers.at[count].set(x[chosen])
            nearest = jnp.minimum(nearest, jnp.sum((x - x[chosen]) ** 2, axis=-1))
            return (nearest, centers, count + 1), None

        first = jnp.ones(points), jnp.zeros((clusters, features)), jnp.int32(0)
        (_, centers, _), _ = lax.scan(seed, first, jax.random.split(key, clusters))

        def step(carry: Any) -> Any:
            centers, _, count = carry
            ids = jnp.argmin(squared(x, centers), axis=-1)
            sums = jax.ops.segment_sum(x, ids, clusters)
            sizes = jax.ops.segment_sum(jnp.ones(points), ids, clusters)
            moved = jnp.where(sizes[:, None] > 0, sums / jnp.maximum(sizes, 1)[:, None], centers)
            return moved, jnp.max(jnp.abs(moved - centers)), count + 1

        going = lambda carry: (carry[1] > 1e-5) & (carry[2] < 50)  # noqa: E731
        start = centers, jnp.float32(jnp.inf), jnp.int32(0)
        centers, _, steps = lax.while_loop(going, step, start)
        distances = squared(x, centers)
        return {"centers": centers, "ids": jnp.argmin(distances, -1), "steps": steps}

    return Made(fit, lambda: (arrays.normal(points, features), jax.random.key(0)))
