"""Generative models of images and densities."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from . import arrays
from .entry import Made, program
from .training import first_state, mlp, trained


def _params(model: nn.Module, *inputs: Any, seed: int = 0) -> Any:
    return arrays.filled(jax.eval_shape(model.init, jax.random.key(0), *inputs), seed)["params"]


class Encoder(nn.Module):
    """A convolutional encoder to mean and log-variance."""

    width: int
    latents: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nn.relu(nn.Conv(self.width, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(2 * self.width, (3, 3), strides=2)(x))
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(self.latents)(x), nn.Dense(self.latents)(x)


class Decoder(nn.Module):
    """A decoder of transposed convolutions."""

    width: int
    size: int
    channels: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        side = self.size // 4
        x = nn.Dense(side * side * 2 * self.width)(z)
        x = nn.relu(x).reshape(-1, side, side, 2 * self.width)
        x = nn.leaky_relu(nn.GroupNorm(2)(nn.ConvTranspose(self.width, (4, 4), strides=(2, 2))(x)))
        return nn.ConvTranspose(self.channels, (4, 4), strides=(2, 2))(x)


@program(
    "linen",
    reduced={"size": 8, "width": 4, "latents": 3, "batch": 2},
    real={"size": 64, "width": 64, "latents": 128, "batch": 64},
)
def vae(size: int, width: int, latents: int, batch: int) -> Made:
    """A convolutional beta-VAE: reparametrised samples, Bernoulli likelihood, annealed KL."""
    encoder, decoder = Encoder(width, latents), Decoder(width, size, 1)

    def loss(params: Any, x: jax.Array, key: jax.Array, beta: jax.Array) -> jax.Array:
        mean, logvar = encoder.apply({"params": params["encoder"]}, x)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        logits = decoder.apply({"params": params["decoder"]}, z)
        likelihood = jnp.sum(optax.sigmoid_binary_cross_entropy(logits, x), axis=(1, 2, 3))
        kl = 0.5 * jnp.sum(jnp.exp(logvar) + mean**2 - 1 - logvar, axis=-1)
        return jnp.mean(likelihood + beta * kl)

    def params() -> Any:
        return {
            "encoder": _params(encoder, jnp.zeros((1, size, size, 1))),
            "decoder": _params(decoder, jnp.zeros((1, latents))),
        }

    def batch_of() -> Any:
        x = arrays.uniform(batch, size, size, 1)
        return x, jax.random.key(0), arrays.uniform(low=0.5)

    return trained(loss, params, batch_of, optax.adam(1e-3))


class Discriminator(nn.Module):
    """The discriminator of DCGAN."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.leaky_relu(nn.Conv(self.width, (4, 4), strides=2)(x), 0.2)
        x = nn.leaky_relu(nn.Conv(2 * self.width, (4, 4), strides=2)(x), 0.2)
        return nn.Dense(1)(x.reshape(x.shape[0], -1))[:, 0]


@program(
    "linen",
    reduced={"size": 8, "width": 4, "latents": 3, "batch": 2},
    real={"size": 64, "width": 64, "latents": 128, "batch": 64},
)
def gan(size: int, width: int, latents: int, batch: int) -> Made:
    """DCGAN: both players in one step, an R1 penalty (grad of grad), a moving average."""
    generator, discriminator = Decoder(width, size, 3), Discriminator(width)
    tx = {name: optax.adam(2e-4, b1=0.5) for name in ("generator", "discriminator")}

    def score(params: Any, x: jax.Array) -> jax.Array:
        return discriminator.apply({"params": params}, x)

    def fake(params: Any, z: jax.Array) -> jax.Array:
        return jnp.tanh(generator.apply({"params": params}, z))

    def discriminator_loss(params: Any, real: jax.Array, made: jax.Array) -> jax.Array:
        gradient = jax.grad(lambda x: jnp.sum(score(params, x)))(real)
        penalty = jnp.mean(jnp.sum(gradient**2, axis=(1, 2, 3)))
        losses = jax.nn.softplus(-score(params, real)) + jax.nn.softplus(score(params, made))
        return jnp.mean(losses) + 5.0 * penalty

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: Any, real: jax.Array, key: jax.Array) -> Any:
        params, losses, opt = dict(state["params"]), {}, dict(state["opt"])
        keys = jax.random.split(key)
        made = fake(params["generator"], jax.random.normal(keys[0], (batch, latents)))

        def generator_loss(weights: Any) -> jax.Array:
            z = jax.random.normal(keys[1], (batch, latents))
            return jnp.mean(jax.nn.softplus(-score(params["discriminator"], fake(weights, z))))

        critic_loss = functools.partial(discriminator_loss, real=real, made=lax.stop_gradient(made))
        for name, loss in (("discriminator", critic_loss), ("generator", generator_loss)):
            losses[name], grads = jax.value_and_grad(loss)(params[name])
            updates, opt[name] = tx[name].update(grads, opt[name])
            params[name] = optax.apply_updates(params[name], updates)
        average = optax.incremental_update(params["generator"], state["average"], 0.001)
        return {"params": params, "opt": opt, "average": average}, losses

    def init() -> Any:
        params = {
            "generator": _params(generator, jnp.zeros((1, latents))),
            "discriminator": _params(discriminator, jnp.zeros((1, size, size, 3))),
        }
        opt = {name: jax.jit(tx[name].init)(params[name]) for name in params}
        average = jax.tree.map(jnp.array, params["generator"])
        state = {"params": params, "opt": opt, "average": average}
        return state, arrays.normal(batch, size, size, 3, scale=0.5), jax.random.key(1)

    return Made(train_step, init, updates=True)


class ResidualBlock(nn.Module):
    """A residual block that adds the embedding of the time."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        y = nn.Conv(self.channels, (3, 3))(nn.swish(nn.GroupNorm(2)(x)))
        y = y + nn.Dense(self.channels)(nn.swish(time))[:, None, None]
        y = nn.Conv(self.channels, (3, 3))(nn.swish(nn.GroupNorm(2)(y)))
        return y + (x if x.shape == y.shape else nn.Conv(self.channels, (1, 1))(x))


class UNet(nn.Module):
    """The U-Net of DDPM, with self-attention at the lowest resolution."""

    width: int
    multipliers: Sequence[int]
    depth: int

    @nn.compact
    def __call__(self, x: jax.Array, times: jax.Array) -> jax.Array:
        half = self.width // 2
        frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half) / half)
        angles = times.astype(jnp.float32)[:, None] * frequencies
        time = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        time = nn.Dense(4 * self.width)(nn.swish(nn.Dense(4 * self.width)(time)))
        channels = x.shape[-1]
        x = nn.Conv(self.width, (3, 3))(x)
        skips = [x]
        for level, multiplier in enumerate(self.multipliers):
            for _ in range(self.depth):
                x = ResidualBlock(self.width * multiplier)(x, time)
                skips.append(x)
            if level < len(self.multipliers) - 1:
                x = nn.Conv(self.width * multiplier, (3, 3), strides=2)(x)
                skips.append(x)
        flat = nn.GroupNorm(2)(x).reshape(x.shape[0], -1, x.shape[-1])
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(flat).reshape(x.shape)
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for _ in range(self.depth + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = ResidualBlock(self.width * multiplier)(x, time)
            if level:
                shape = (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3])
                x = nn.Conv(x.shape[-1], (3, 3))(jax.image.resize(x, shape, "nearest"))
        return nn.Conv(channels, (3, 3))(nn.swish(nn.GroupNorm(2)(x)))


UNET_REDUCED = {"size": 8, "width": 4, "multipliers": (1, 2), "depth": 1, "batch": 2}
UNET_REAL = {"size": 32, "width": 128, "multipliers": (1, 2, 2, 2), "depth": 2, "batch": 32}


def alphas(steps: int) -> jax.Array:
    """Returns the cumulated products of the cosine schedule's alphas."""
    t = jnp.arange(steps + 1) / steps
    curve = jnp.cos((t + 0.008) / 1.008 * jnp.pi / 2) ** 2
    return jnp.cumprod(1 - jnp.clip(1 - curve[1:] / curve[:-1], 0, 0.999))


@program("linen", reduced=UNET_REDUCED, real=UNET_REAL)
def diffusion_unet(
    size: int, width: int, multipliers: Sequence[int], depth: int, batch: int
) -> Made:
    """DDPM's train step on 32x32 images: noise prediction, min-SNR weights, moving average."""
    model = UNet(width, multipliers, depth)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(2e-4))

    def loss_fn(params: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        noise_key, time_key = jax.random.split(key)
        times = jax.random.randint(time_key, (batch,), 0, 1000)
        noise = jax.random.normal(noise_key, x.shape)
        alpha = alphas(1000)[times][:, None, None, None]
        predicted = model.apply(
            {"params": params}, alpha**0.5 * x + (1 - alpha) ** 0.5 * noise, times
        )
        snr = alpha / (1 - alpha)
        return jnp.mean(jnp.minimum(snr, 5.0) / snr * (predicted - noise) ** 2)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: Any, x: jax.Array) -> Any:
        key, now = jax.random.split(state["key"])
        loss, grads = jax.value_and_grad(loss_fn)(state["params"], x, now)
        updates, opt_state = tx.update(grads, state["opt_state"])
        params = optax.apply_updates(state["params"], updates)
        step = state["step"] + 1
        decay = jnp.minimum(0.9999, (1 + step) / (10 + step))
        average = optax.incremental_update(params, state["average"], 1 - decay)
        state = {"params": params, "opt_state": opt_state, "average": average}
        return {**state, "key": key, "step": step}, {"loss": loss}

    def init() -> Any:
        params = _params(model, jnp.zeros((1, size, size, 3)), jnp.zeros((1,), jnp.int32))
        average = jax.tree.map(jnp.array, params)
        state = {**first_state(params, tx), "average": average, "key": jax.random.key(9)}
        return state, arrays.normal(batch, size, size, 3)

    return Made(train_step, init, updates=True)


@program("linen", reduced=UNET_REDUCED, real={**UNET_REAL, "batch": 8})
def ddim_sampling(
    size: int, width: int, multipliers: Sequence[int], depth: int, batch: int
) -> Made:
    """DDIM with classifier-free guidance's two passes: 10 steps of a scan."""
    model = UNet(width, multipliers, depth)

    def sample(params: Any, key: jax.Array, guidance: jax.Array) -> jax.Array:
        schedule = alphas(1000)
        times = jnp.linspace(999, 0, 11).astype(jnp.int32)

        def step(x: jax.Array, pair: Any) -> tuple[jax.Array, jax.Array]:
            now, then = schedule[pair[0]], schedule[pair[1]]
            both = jnp.concatenate([x, jnp.flip(x, axis=2)])
            noise = model.apply({"params": params}, both, jnp.full((2 * batch,), pair[0]))
            one, other = jnp.split(noise, 2)
            noise = other + guidance * (one - other)
            clean = jnp.clip((x - jnp.sqrt(1 - now) * noise) / jnp.sqrt(now), -1, 1)
            return jnp.sqrt(then) * clean + jnp.sqrt(1 - then) * noise, jnp.mean(clean**2)

        x = jax.random.normal(key, (batch, size, size, 3))
        return lax.scan(step, x, (times[:-1], times[1:]))

    def init() -> Any:
        params = _params(model, jnp.zeros((1, size, size, 3)), jnp.zeros((1,), jnp.int32))
        return params, jax.random.key(2), arrays.uniform(low=1.5, high=3.0)

    return Made(sample, init)


@program(
    "plain",
    reduced={"features": 4, "hidden": 8, "layers": 3, "batch": 4},
    real={"features": 784, "hidden": 512, "layers": 8, "batch": 256},
)
def normalizing_flow(features: int, hidden: int, layers: int, batch: int) -> Made:
    """RealNVP with activation norms and invertible linear maps (slogdet), by likelihood."""
    half = features // 2

    def loss(params: Any, x: jax.Array) -> jax.Array:
        total = jnp.zeros(x.shape[0])
        for i, layer in enumerate(params):
            x = (x + layer["shift"]) * jnp.exp(layer["log_scale"])
            total += jnp.sum(layer["log_scale"])
            x = x @ layer["linear"]
            total += jnp.linalg.slogdet(layer["linear"])[1]
            kept, moved = (x[:, :half], x[:, half:]) if i % 2 else (x[:, half:], x[:, :half])
            shift, log_scale = jnp.split(mlp(layer["net"], kept, jnp.tanh), 2, axis=-1)
            log_scale = 2 * jnp.tanh(log_scale / 2)
            moved = moved * jnp.exp(log_scale) + shift
            total += jnp.sum(log_scale, axis=-1)
            x = jnp.concatenate([kept, moved] if i % 2 else [moved, kept], axis=-1)
        log_normal = jax.scipy.stats.norm.logpdf(x).sum(axis=-1)
        return -jnp.mean(log_normal + total) / features

    def params() -> Any:
        return [
            {
                "shift": arrays.normal(features, seed=i, scale=0.1),
                "log_scale": arrays.normal(features, seed=i + 1, scale=0.1),
                "linear": arrays.normal(features, features, seed=i, scale=0.1) + jnp.eye(features),
                "net": arrays.dense(half, hidden, hidden, features, seed=i),
            }
            for i in range(layers)
        ]

    return trained(loss, params, lambda: (arrays.normal(batch, features),), optax.adamax(1e-3))


@program(
    "plain",
    reduced={"features": 6, "hidden": 8, "codes": 5, "batch": 4},
    real={"features": 784, "hidden": 512, "codes": 512, "batch": 128},
)
def vq_vae(features: int, hidden: int, codes: int, batch: int) -> Made:
    """VQ-VAE: nearest codes, straight-through gradients, codebook moved by running means."""
    tx = optax.adam(3e-4)

    def quantize(z: jax.Array, codebook: jax.Array) -> tuple[jax.Array, jax.Array]:
        distances = jnp.sum(z**2, -1, keepdims=True) - 2 * z @ codebook.T + jnp.sum(codebook**2, -1)
        ids = jnp.argmin(distances, axis=-1)
        return codebook[ids], ids

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: Any, x: jax.Array) -> Any:
        codebook = state["sums"] / state["counts"][:, None]

        def loss_fn(params: Any) -> Any:
            z = mlp(params["encoder"], x)
            quantized, ids = quantize(z, codebook)
            commitment = jnp.mean((z - lax.stop_gradient(quantized)) ** 2)
            quantized = z + lax.stop_gradient(quantized - z)
            error = jnp.mean((mlp(params["decoder"], quantized) - x) ** 2)
            return error + 0.25 * commitment, (z, ids)

        (loss, (z, ids)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"])
        updates, opt_state = tx.update(grads, state["opt_state"])
        counts = 0.99 * state["counts"] + 0.01 * jnp.bincount(ids, length=codes)
        sums = 0.99 * state["sums"] + 0.01 * jnp.zeros_like(codebook).at[ids].add(z)
        share = counts / jnp.sum(counts)
        perplexity = jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share)))
        params = optax.apply_updates(state["params"], updates)
        state = {**state, "params": params, "opt_state": opt_state, "counts": counts, "sums": sums}
        return state, {"loss": loss, "perplexity": perplexity}

    def init() -> Any:
        params = {
            "encoder": arrays.dense(features, hidden, 4),
            "decoder": arrays.dense(4, hidden, features, seed=5),
        }
        state = first_state(params, tx)
        state |= {"counts": jnp.ones(codes), "sums": arrays.normal(codes, 4)}
        return state, arrays.normal(batch, features)

    return Made(train_step, init, updates=True)


@program(
    "plain",
    reduced={"features": 4, "hidden": 8, "batch": 4},
    real={"features": 64, "hidden": 512, "batch": 512},
)
def flow_matching(features: int, hidden: int, batch: int) -> Made:
    """Rectified flow with a consistency term, whose time derivative is a jvp in the loss."""

    def velocity(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        waves = t[:, None] * 2.0 ** jnp.arange(4)
        inputs = jnp.concatenate([x, jnp.sin(waves), jnp.cos(waves)], axis=-1)
        return mlp(params, inputs, jax.nn.silu)

    def loss(params: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        noise_key, time_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, x.shape)
        t = jax.nn.sigmoid(jax.random.normal(time_key, (batch,)))
        mixed = t[:, None] * x + (1 - t[:, None]) * noise
        along = lambda x, t: velocity(params, x, t)  # noqa: E731
        v, change = jax.jvp(along, (mixed, t), (x - noise, jnp.ones_like(t)))
        target = x - noise - 0.1 * lax.stop_gradient(change)
        errors = jnp.sum((v - target) ** 2, axis=-1)
        return jnp.mean(errors / lax.stop_gradient(errors + 1e-3) ** 0.5)

    def batch_of() -> Any:
        return arrays.normal(batch, features), jax.random.key(8)

    params = lambda: arrays.dense(features + 8, hidden, hidden, features)  # noqa: E731
    return trained(loss, params, batch_of, optax.adamw(1e-3))
