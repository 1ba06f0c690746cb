"""Differential equations: learned, solved and simulated."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.experimental import ode

from . import arrays
from .entry import Made, program
from .training import mlp, trained

REDUCED = {"features": 2, "hidden": 8, "times": 4, "batch": 2}
REAL = {"features": 16, "hidden": 128, "times": 100, "batch": 64}


def _trajectories(features: int, times: int, batch: int) -> Any:
    return arrays.normal(batch, features), arrays.normal(batch, times, features, seed=1)


@program("plain", reduced=REDUCED, real=REAL)
def neural_ode(features: int, hidden: int, times: int, batch: int) -> Made:
    """A neural ODE by jax.experimental.ode: adaptive Dormand-Prince, adjoint gradients, vmapped."""
    grid = jnp.linspace(0.0, 1.0, times)

    def slope(y: jax.Array, t: jax.Array, params: Any) -> jax.Array:
        return mlp(params, jnp.concatenate([y, t[None]]), jnp.tanh)

    def loss(params: Any, start: jax.Array, wanted: jax.Array) -> jax.Array:
        solve = lambda y: ode.odeint(slope, y, grid, params, rtol=1e-4, atol=1e-5)  # noqa: E731
        return jnp.mean((jax.vmap(solve)(start) - wanted) ** 2)

    params = lambda: arrays.dense(features + 1, hidden, features)  # noqa: E731
    batch_of = lambda: _trajectories(features, times, batch)  # noqa: E731
    return trained(loss, params, batch_of, optax.adabelief(3e-3))


def _solved_by_diffrax(
    adjoint: str, features: int, hidden: int, times: int, batch: int, max_steps: int
) -> Made:
    """Trains a neural ODE by diffrax: Tsit5 under a PID controller."""
    import diffrax

    grid = jnp.linspace(0.0, 1.0, times)

    def slope(t: jax.Array, y: jax.Array, params: Any) -> jax.Array:
        return mlp(params, jnp.concatenate([y, jnp.asarray(t)[None]]), jnp.tanh)

    def loss(params: Any, start: jax.Array, wanted: jax.Array) -> jax.Array:
        def solve(y: jax.Array) -> jax.Array:
            return diffrax.diffeqsolve(
                diffrax.ODETerm(slope),
                diffrax.Tsit5(),
                t0=0.0,
                t1=1.0,
                dt0=0.1,
                y0=y,
                args=params,
                saveat=diffrax.SaveAt(ts=grid),
                stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-5),
                adjoint=getattr(diffrax, adjoint)(),
                max_steps=max_steps,
            ).ys

        return jnp.mean((jax.vmap(solve)(start) - wanted) ** 2)

    params = lambda: arrays.dense(features + 1, hidden, features)  # noqa: E731
    batch_of = lambda: _trajectories(features, times, batch)  # noqa: E731
    return trained(loss, params, batch_of, optax.adabelief(3e-3))


_REDUCED_STEPS = {**REDUCED, "max_steps": 16}
_REAL_STEPS = {**REAL, "max_steps": 4096}


@program("diffrax", "diffrax", reduced=_REDUCED_STEPS, real=_REAL_STEPS)
def neural_ode_diffrax(**sizes: int) -> Made:
    """A neural ODE by diffrax: Tsit5, steps by a PID controller, gradients by checkpoints."""
    return _solved_by_diffrax("RecursiveCheckpointAdjoint", **sizes)


@program("diffrax", "diffrax", reduced=_REDUCED_STEPS, real=_REAL_STEPS)
def neural_ode_backsolve(**sizes: int) -> Made:
    """The same by the adjoint equation, solved backwards in time."""
    return _solved_by_diffrax("BacksolveAdjoint", **sizes)


@program("plain", reduced={**REDUCED, "steps": 3}, real={**REAL, "steps": 40})
def continuous_flow(features: int, hidden: int, times: int, batch: int, steps: int) -> Made:
    """FFJORD: Runge-Kutta under a scan, Hutchinson's trace by vjp, kinetic regularisation."""
    del times

    def velocity(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        t = jnp.broadcast_to(t, (*x.shape[:-1], 1))
        return mlp(params, jnp.concatenate([x, t], axis=-1), jax.nn.softplus)

    def loss(params: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        noise = jax.random.rademacher(key, x.shape, jnp.float32)

        def slope(state: Any, t: jax.Array) -> Any:
            v, pull = jax.vjp(lambda x: velocity(params, x, t), state[0])
            return v, -jnp.sum(pull(noise)[0] * noise, axis=-1), jnp.sum(v**2, axis=-1)

        def step(state: Any, t: jax.Array) -> Any:
            h = 1.0 / steps
            moved = lambda k, share: jax.tree.map(lambda a, b: a + share * h * b, state, k)  # noqa: E731
            k1 = slope(state, t)
            k2 = slope(moved(k1, 0.5), t + h / 2)
            k3 = slope(moved(k2, 0.5), t + h / 2)
            k4 = slope(moved(k3, 1.0), t + h)
            total = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, k1, k2, k3, k4)
            return moved(total, 1.0), None

        state = x, jnp.zeros(x.shape[0]), jnp.zeros(x.shape[0])
        grid = jnp.linspace(0.0, 1.0, steps, endpoint=False)
        (z, change, kinetic), _ = lax.scan(jax.checkpoint(step), state, grid)
        likelihood = jax.scipy.stats.norm.logpdf(z).sum(axis=-1) - change
        return jnp.mean(0.01 * kinetic - likelihood)

    params = lambda: arrays.dense(features + 1, hidden, features)  # noqa: E731
    batch_of = lambda: (arrays.normal(batch, features), jax.random.key(1))  # noqa: E731
    return trained(loss, params, batch_of, optax.adam(1e-3))


@program(
    "plain",
    reduced={"points": 5, "hidden": 8},
    real={"points": 10000, "hidden": 128},
)
def physics_informed(points: int, hidden: int) -> Made:
    """A PINN of Burgers' equation: second derivatives inside the loss, boundary terms."""

    def u(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        return mlp(params, jnp.stack([x, t]), jnp.tanh)[0]

    def residual(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        value, (u_x, u_t) = jax.value_and_grad(u, argnums=(1, 2))(params, x, t)
        _, u_xx = jax.jvp(lambda x: jax.grad(u, argnums=1)(params, x, t), (x,), (jnp.ones(()),))
        return u_t + value * u_x - 0.01 / jnp.pi * u_xx

    def loss(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        inside = jax.vmap(residual, in_axes=(None, 0, 0))(params, x, t)
        at = jax.vmap(u, in_axes=(None, 0, 0))
        start = at(params, x, jnp.zeros_like(t)) + jnp.sin(jnp.pi * x)
        ends = at(params, jnp.sign(x), t)
        return sum(jnp.mean(part**2) for part in (inside, start, ends))

    batch = lambda: (arrays.uniform(points, low=-1), arrays.uniform(points, seed=1))  # noqa: E731
    schedule = optax.piecewise_constant_schedule(1e-3, {50: 0.1})
    params = lambda: arrays.dense(2, hidden, hidden, 1)  # noqa: E731
    return trained(loss, params, batch, optax.adam(schedule))


@program("plain", reduced={"size": 8, "steps": 2}, real={"size": 512, "steps": 100})
def navier_stokes(size: int, steps: int) -> Made:
    """Turbulence in two dimensions: a pseudo-spectral scheme by FFT, under fori_loop and scan."""
    k = jnp.fft.fftfreq(size, 1 / size)
    kx, ky = jnp.meshgrid(k, k, indexing="ij")
    laplacian = -(kx**2 + ky**2)
    inverse = jnp.where(laplacian == 0, 0.0, 1 / jnp.where(laplacian == 0, 1.0, laplacian))
    kept = (jnp.abs(kx) < size / 3) & (jnp.abs(ky) < size / 3)

    def tendency(w: jax.Array) -> jax.Array:
        stream = -inverse * w
        u, v = (jnp.fft.ifft2(1j * a * stream).real for a in (ky, -kx))
        w_x, w_y = (jnp.fft.ifft2(1j * a * w).real for a in (kx, ky))
        return jnp.where(kept, jnp.fft.fft2(-u * w_x - v * w_y), 0) + 1e-3 * laplacian * w

    def simulate(vorticity: jax.Array, dt: jax.Array) -> Any:
        def substep(_: Any, w: jax.Array) -> jax.Array:
            half = w + 0.5 * dt * tendency(w)
            return w + dt * tendency(half)

        def step(w: jax.Array, _: Any) -> Any:
            w = lax.fori_loop(0, 2, substep, w)
            energy = 0.5 * jnp.sum(jnp.abs(w) ** 2 * -inverse) / float(size) ** 4
            return w, energy

        w, energies = lax.scan(step, jnp.fft.fft2(vorticity), None, length=steps)
        return {"vorticity": jnp.fft.ifft2(w).real, "energy": energies}

    return Made(simulate, lambda: (arrays.normal(size, size), arrays.uniform(low=0.001, high=0.01)))


@program("plain", reduced={"atoms": 5, "steps": 4}, real={"atoms": 1000, "steps": 100})
def molecular_dynamics(atoms: int, steps: int) -> Made:
    """Lennard-Jones atoms in a periodic box: forces by grad, velocity Verlet, a thermostat."""
    box = 2.0 * atoms ** (1 / 3)

    def energy(positions: jax.Array) -> jax.Array:
        offsets = positions[:, None] - positions
        offsets = offsets - box * jnp.round(offsets / box)
        squared = jnp.sum(offsets**2, axis=-1) + jnp.eye(atoms)
        sixth = (1.0 / squared) ** 3
        pairs = jnp.where(squared < 6.25, 4 * (sixth**2 - sixth), 0.0)
        return 0.5 * jnp.sum(jnp.where(jnp.eye(atoms, dtype=bool), 0.0, pairs))

    @jax.jit
    def simulate(positions: jax.Array, velocities: jax.Array, key: jax.Array) -> Any:
        force = jax.grad(lambda x: -energy(x))

        def step(carry: Any, key: jax.Array) -> Any:
            x, v, f = carry
            v = v + 0.0005 * f
            x = (x + 0.001 * v) % box
            f = jnp.clip(force(x), -1e3, 1e3)
            v = 0.99 * (v + 0.0005 * f) + 0.1 * jax.random.normal(key, v.shape)
            kinetic = 0.5 * jnp.sum(v**2)
            return (x, v, f), {"energy": energy(x) + kinetic, "temperature": kinetic / atoms}

        carry = positions, velocities, force(positions)
        return lax.scan(step, carry, jax.random.split(key, steps))

    def init() -> Any:
        side = round(atoms ** (1 / 3) + 0.5)
        grid = jnp.stack(jnp.meshgrid(*3 * [jnp.arange(side)]), axis=-1).reshape(-1, 3)[:atoms]
        return 1.5 * grid.astype(jnp.float32), arrays.normal(atoms, 3), jax.random.key(2)

    return Made(simulate, init)


@program(
    "plain",
    reduced={"size": 8, "width": 4, "modes": 2, "batch": 2},
    real={"size": 128, "width": 64, "modes": 16, "batch": 16},
)
def fourier_neural_operator(size: int, width: int, modes: int, batch: int) -> Made:
    """A Fourier neural operator in two dimensions, with complex weights of its lowest modes."""

    def spectral(weights: Any, x: jax.Array) -> jax.Array:
        spectrum = jnp.fft.rfft2(x, axes=(1, 2))
        out = jnp.zeros_like(spectrum)
        for name, rows in (("low", slice(None, modes)), ("high", slice(-modes, None))):
            w = lax.complex(weights[name][..., 0], weights[name][..., 1])
            part = jnp.einsum("bxyi,xyio->bxyo", spectrum[:, rows, :modes], w)
            out = out.at[:, rows, :modes].set(part)
        return jnp.fft.irfft2(out, s=(size, size), axes=(1, 2))

    def loss(params: Any, x: jax.Array, wanted: jax.Array) -> jax.Array:
        h = x @ params["lift"]
        for layer in params["layers"]:
            h = jax.nn.gelu(spectral(layer, h) + h @ layer["skip"])
        errors = (h @ params["project"] - wanted).reshape(batch, -1)
        scale = jnp.linalg.norm(wanted.reshape(batch, -1), axis=-1)
        return jnp.mean(jnp.linalg.norm(errors, axis=-1) / scale)

    def layer(seed: int) -> Any:
        shape = (modes, modes, width, width, 2)
        low, high = (arrays.normal(*shape, seed=seed + i, scale=1 / width) for i in range(2))
        skip = arrays.normal(width, width, seed=seed, scale=width**-0.5)
        return {"low": low, "high": high, "skip": skip}

    def params() -> Any:
        lift, project = arrays.normal(1, width), arrays.normal(width, 1, scale=width**-0.5)
        return {"lift": lift, "project": project, "layers": [layer(i) for i in range(2)]}

    batch_of = functools.partial(arrays.normal, batch, size, size, 1)
    return trained(loss, params, lambda: (batch_of(), batch_of(seed=1)), optax.adamw(1e-3))
