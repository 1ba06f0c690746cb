"""Programs in plain JAX that exercise its transformations, control flow and custom derivatives."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from . import batches, plain
from .plain import (
    cross_entropy,
    dense,
    global_norm,
    init_dense,
    init_gpt,
    init_mlp,
    layer_norm,
    mlp,
)
from .program import Batch, Batches, Metrics, Program, State, Step

Params = Any
Made = tuple[Step, State, Batches]
Loss = Callable[[Params, Batch], jax.Array]


def _params(state: State) -> Params:
    return state["params"]


def _sgd(params: Params, grads: Params, rate: float = 0.1) -> Params:
    return jax.tree.map(lambda p, g: p - rate * g, params, grads)


def _mlp_loss(params: Params, batch: Batch) -> jax.Array:
    return cross_entropy(mlp(params, batch["x"]), batch["label"])


def _trained_by(optimizer_name: str, loss_of: Loss, params: Params) -> tuple[Step, State]:
    """Returns a donated train step for a loss of parameters and batch, and its first state."""
    import optax

    from .optimizers import optimizer

    tx = optimizer(optimizer_name)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        loss, grads = jax.value_and_grad(loss_of)(state["params"], batch)
        updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt_state": opt_state}, {"loss": loss}

    return train_step, {"params": params, "opt_state": tx.init(params)}


# Rematerialisation and scan over layers.


def named_block(params: Params, x: jax.Array) -> jax.Array:
    """A transformer block whose attention and hidden layer have names for remat policies."""
    x = x + checkpoint_name(plain.attention(params, layer_norm(params["norm1"], x)), "attention")
    hidden = dense(params["up"], layer_norm(params["norm2"], x))
    hidden = checkpoint_name(jax.nn.gelu(hidden, approximate=False), "hidden")
    return x + dense(params["down"], hidden)


def remat_gpt(policy: Callable[..., Any] | None, params: Params, ids: jax.Array) -> jax.Array:
    """A GPT that recomputes its blocks in the backward pass, but for what `policy` keeps."""
    x = params["tokens"][ids] + params["positions"]
    for layer in params["blocks"]:
        x = jax.checkpoint(named_block, policy=policy)(layer, x)
    return layer_norm(params["norm"], x) @ params["tokens"].T


def make_remat(policy: Callable[..., Any] | None) -> Made:
    """A GPT under jax.checkpoint."""

    def loss_of(params: Params, batch: Batch) -> jax.Array:
        return cross_entropy(remat_gpt(policy, params, batch["x"]), batch["label"])

    return *_trained_by("adamw", loss_of, init_gpt(20)), batches.tokens


def scan_gpt(params: Params, ids: jax.Array) -> jax.Array:
    """A GPT whose blocks are one lax.scan over stacked parameters."""
    x = params["tokens"][ids] + params["positions"]
    body = jax.checkpoint(named_block, prevent_cse=False)
    x, norms = lax.scan(lambda x, p: (body(p, x), jnp.mean(x**2)), x, params["blocks"], unroll=1)
    return layer_norm(params["norm"], x) @ params["tokens"].T + 0.0 * jnp.sum(norms)


def make_scan_layers() -> Made:
    """Three stacked blocks under lax.scan, rematerialised."""
    params = init_gpt(21, layers=3)
    params["blocks"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params["blocks"])

    def loss_of(params: Params, batch: Batch) -> jax.Array:
        return cross_entropy(scan_gpt(params, batch["x"]), batch["label"])

    return *_trained_by("clip_adamw_cosine", loss_of, params), batches.tokens


# Loops and branches in the step.


def make_line_search() -> Made:
    """Gradient descent whose step length a lax.while_loop finds by backtracking."""

    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        loss, grads = jax.value_and_grad(_mlp_loss)(state["params"], batch)
        decrease = sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads))

        def too_long(carry: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            rate, tried, count = carry
            return (tried > loss - 0.3 * rate * decrease) & (count < 20)

        def shorten(carry: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
            rate, _, count = carry
            rate = 0.5 * rate
            return rate, _mlp_loss(_sgd(state["params"], grads, rate), batch), count + 1

        first = _mlp_loss(_sgd(state["params"], grads, state["rate"]), batch)
        carry = (state["rate"], first, jnp.int32(0))
        rate, _, count = lax.while_loop(too_long, shorten, carry)
        state = {"params": _sgd(state["params"], grads, rate), "rate": 2.0 * rate}
        return state, {"loss": loss, "tries": count, "rate": rate}

    return (
        train_step,
        {"params": init_mlp(22, plain.MLP_SIZES), "rate": jnp.float32(4.0)},
        (batches.vectors),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def fixed_point(fn: Callable[..., jax.Array], params: Params, x: jax.Array) -> jax.Array:
    """Iterates `z = fn(params, x, z)` to its fixed point; differentiated implicitly."""

    def moving(carry: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        previous, current, count = carry
        return (jnp.max(jnp.abs(current - previous)) > 1e-5) & (count < 50)

    def advance(carry: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
        _, current, count = carry
        return current, fn(params, x, current), count + 1

    first = jnp.zeros((x.shape[0], 16))
    _, z, _ = lax.while_loop(moving, advance, (first, fn(params, x, first), jnp.int32(0)))
    return z


def _fixed_point_fwd(fn: Any, params: Params, x: jax.Array) -> tuple[jax.Array, Any]:
    z = fixed_point(fn, params, x)
    return z, (params, x, z)


def _fixed_point_bwd(fn: Any, residuals: Any, z_bar: jax.Array) -> tuple[Params, jax.Array]:
    params, x, z = residuals
    _, pull_z = jax.vjp(lambda z: fn(params, x, z), z)
    adjoint = lax.fori_loop(0, 20, lambda _, u: z_bar + pull_z(u)[0], z_bar)
    _, pull_inputs = jax.vjp(lambda params, x: fn(params, x, z), params, x)
    return pull_inputs(adjoint)


fixed_point.defvjp(_fixed_point_fwd, _fixed_point_bwd)


def equilibrium(params: Params, x: jax.Array) -> jax.Array:
    """A deep equilibrium model: one implicit layer and a readout."""

    def layer(params: Params, x: jax.Array, z: jax.Array) -> jax.Array:
        return jnp.tanh(0.5 * z @ params["hidden"] + dense(params["input"], x))

    return dense(params["readout"], fixed_point(layer, params, x))


def make_implicit_layer() -> Made:
    """While loop and fori_loop inside a custom_vjp with a nondifferentiable function argument."""
    keys = jax.random.split(jax.random.key(23), 3)
    params = {
        "hidden": jax.random.orthogonal(keys[0], 16),
        "input": init_dense(keys[1], batches.FEATURES, 16),
        "readout": init_dense(keys[2], 16, batches.CLASSES),
    }

    def loss_of(params: Params, batch: Batch) -> jax.Array:
        return cross_entropy(equilibrium(params, batch["x"]), batch["label"])

    return *_trained_by("adam", loss_of, params), batches.vectors


def make_skip_nonfinite() -> Made:
    """A step that lax.cond skips where a gradient is not finite, as in the second batch."""
    import optax

    from .optimizers import optimizer

    tx = optimizer("adam")

    def loss_of(params: Params, batch: Batch) -> jax.Array:
        return jnp.mean(jnp.square(mlp(params, batch["x"])[:, 0] - batch["y"]))

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        params, opt_state, skipped = state["params"], state["opt_state"], state["skipped"]
        loss, grads = jax.value_and_grad(loss_of)(params, batch)
        finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads)]))

        def apply(grads: Params) -> tuple[Params, Any, jax.Array]:
            updates, new_opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), new_opt_state, skipped

        def skip(_: Params) -> tuple[Params, Any, jax.Array]:
            return params, opt_state, skipped + 1

        params, opt_state, skipped = lax.cond(finite, apply, skip, grads)
        state = {"params": params, "opt_state": opt_state, "skipped": skipped}
        return state, {"loss": jnp.where(jnp.isfinite(loss), loss, 0.0), "skipped": skipped}

    def sometimes_infinite(i: int) -> dict[str, np.ndarray]:
        batch = batches.regression(i)
        batch["y"][0] = np.inf if i % 3 == 1 else batch["y"][0]
        return batch

    params = init_mlp(24, (batches.FEATURES, 16, 1))
    state = {"params": params, "opt_state": tx.init(params), "skipped": jnp.int32(0)}
    return train_step, state, sometimes_infinite


def make_switch_depth() -> Made:
    """Stochastic depth: lax.switch picks how deep to go, from a raw key in the state."""

    def to_depth(params: Params, x: jax.Array, depth: jax.Array) -> jax.Array:
        branches = [
            functools.partial(lambda n, x: mlp([*params[:n], params[-1]], x), n) for n in (1, 2, 3)
        ]
        return lax.switch(depth, branches, x)

    def loss_of(params: Params, batch: Batch, depth: jax.Array) -> jax.Array:
        return cross_entropy(to_depth(params, batch["x"], depth), batch["label"])

    @jax.jit
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        rng, depth_rng = jax.random.split(state["rng"])
        depth = jax.random.randint(depth_rng, (), 0, 3)
        loss, grads = jax.value_and_grad(loss_of)(state["params"], batch, depth)
        state = {"params": _sgd(state["params"], grads), "rng": rng}
        return state, {"loss": loss, "depth": depth}

    params = init_mlp(25, (batches.FEATURES, 12, 12, 12, batches.CLASSES))
    state = {"params": params, "rng": jax.random.PRNGKey(26)}
    return train_step, state, batches.vectors


# Custom derivative rules.


@jax.custom_vjp
def clip_gradient(low: float, high: float, x: jax.Array) -> jax.Array:
    """The identity, whose gradient is clipped to [low, high]."""
    return x


def _clip_gradient_fwd(low: float, high: float, x: jax.Array) -> tuple[jax.Array, Any]:
    return x, (low, high)


def _clip_gradient_bwd(bounds: Any, grad: jax.Array) -> tuple[None, None, jax.Array]:
    return None, None, jnp.clip(grad, *bounds)


clip_gradient.defvjp(_clip_gradient_fwd, _clip_gradient_bwd)


def clipped_mlp(params: Params, x: jax.Array) -> jax.Array:
    """An MLP with a bound on the gradient that reaches its first layer."""
    hidden = clip_gradient(-0.01, 0.01, jax.nn.leaky_relu(dense(params[0], x)))
    return mlp(params[1:], hidden)


def make_clip_gradient() -> Made:
    """A custom_vjp in the middle of the model, with None as cotangents of its bounds."""

    def loss_of(params: Params, batch: Batch) -> jax.Array:
        return cross_entropy(clipped_mlp(params, batch["x"]), batch["label"])

    return *_trained_by("momentum", loss_of, init_mlp(27, plain.MLP_SIZES)), batches.vectors


@jax.custom_jvp
def binarize(x: jax.Array) -> jax.Array:
    """The sign of `x`, with the derivative of the identity (a straight-through estimator)."""
    return jnp.where(x >= 0, 1.0, -1.0).astype(x.dtype)


@binarize.defjvp
def _binarize_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    (x,), (x_dot,) = primals, tangents
    return binarize(x), jnp.where(jnp.abs(x) <= 1, x_dot, jnp.zeros_like(x_dot))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def round_to(x: jax.Array, levels: int) -> jax.Array:
    """Rounds to multiples of 1 / levels, straight through."""
    return jnp.round(x * levels) / levels


@round_to.defjvp
def _round_to_jvp(levels: int, primals: tuple[Any], tangents: tuple[Any]) -> Any:
    return round_to(primals[0], levels), tangents[0]


def binary_mlp(params: Params, x: jax.Array) -> jax.Array:
    """An MLP with binary hidden weights and quantised activations."""
    hidden = round_to(jnp.tanh(x @ binarize(params[0]["kernel"]) / math.sqrt(x.shape[-1])), 8)
    return dense(params[1], hidden + lax.stop_gradient(jnp.sign(hidden) - hidden) * 0.1)


def make_straight_through() -> Made:
    """Two custom_jvp functions and a stop_gradient."""

    def loss_of(params: Params, batch: Batch) -> jax.Array:
        return cross_entropy(binary_mlp(params, batch["x"]), batch["label"])

    params = init_mlp(28, (batches.FEATURES, 16, batches.CLASSES))
    return *_trained_by("adam", loss_of, params), batches.vectors


@jax.custom_jvp
def log1pexp(x: jax.Array) -> jax.Array:
    """log(1 + exp(x)), with a derivative that does not overflow."""
    return jnp.log1p(jnp.exp(x))


@log1pexp.defjvp
def _log1pexp_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    (x,), (x_dot,) = primals, tangents
    return log1pexp(x), (1 - 1 / (1 + jnp.exp(x))) * x_dot


def softplus_mlp(params: Params, x: jax.Array) -> jax.Array:
    """A positive number for each example."""
    return jax.vmap(lambda one: log1pexp(mlp(params, one)[0]))(x)


def make_log1pexp() -> Made:
    """The example of JAX's documentation, under vmap and jit, for a binary classifier."""

    def loss_of_one(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        logit = mlp(params, x)[0]
        return log1pexp(jnp.where(y > 0, -logit, logit))

    def loss_of(params: Params, batch: Batch) -> jax.Array:
        return jnp.mean(jax.vmap(loss_of_one, (None, 0, 0))(params, batch["x"], batch["y"]))

    params = init_mlp(29, (batches.FEATURES, 16, 1))
    return *_trained_by("nesterov", loss_of, params), batches.regression


# What surrounds a gradient: accumulation, precision, averages.


def make_accumulate() -> Made:
    """Gradients accumulated over four microbatches by lax.scan."""
    import optax

    from .optimizers import optimizer

    tx = optimizer("adamw")

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        def add(carry: tuple[jax.Array, Params], micro: Batch) -> tuple[Any, jax.Array]:
            loss, grads = jax.value_and_grad(_mlp_loss)(state["params"], micro)
            return (carry[0] + loss, jax.tree.map(jnp.add, carry[1], grads)), loss

        micros = jax.tree.map(lambda x: x.reshape(4, x.shape[0] // 4, *x.shape[1:]), batch)
        zeros = jax.tree.map(jnp.zeros_like, state["params"])
        (total, grads), losses = lax.scan(add, (jnp.zeros(()), zeros), micros)
        grads = jax.tree.map(lambda g: g / 4, grads)
        updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        state = {"params": params, "opt_state": opt_state}
        return state, {"loss": total / 4, "micro_losses": losses}

    params = init_mlp(30, plain.MLP_SIZES)
    state = {"params": params, "opt_state": tx.init(params)}
    return train_step, state, functools.partial(batches.vectors, size=16)


def make_mixed_precision() -> Made:
    """bfloat16 forward and backward with dynamic loss scaling, float32 master weights."""
    import optax

    from .optimizers import optimizer

    tx = optimizer("adamw")

    def loss_of(params: Params, batch: Batch, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
        loss = cross_entropy(plain.gpt(half, batch["x"]), batch["label"])
        return loss * scale, loss

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        scale = state["loss_scale"]
        (_, loss), grads = jax.value_and_grad(loss_of, has_aux=True)(state["params"], batch, scale)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32) / scale, grads)
        finite = jnp.isfinite(global_norm(grads))
        updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
        new = {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}
        old = {"params": state["params"], "opt_state": state["opt_state"]}
        kept = jax.tree.map(functools.partial(jnp.where, finite), new, old)
        good = jnp.where(finite, state["good_steps"] + 1, 0)
        grow = good >= 2
        scale = jnp.where(finite, jnp.where(grow, scale * 2, scale), jnp.maximum(scale / 2, 1))
        kept |= {"loss_scale": scale, "good_steps": jnp.where(grow, 0, good)}
        return kept, {"loss": loss, "finite": finite}

    params = init_gpt(31, layers=1)
    state = {
        "params": params,
        "opt_state": tx.init(params),
        "loss_scale": jnp.float32(2.0**15),
        "good_steps": jnp.int32(0),
    }
    return train_step, state, batches.tokens


def make_ema() -> Made:
    """An exponential moving average of the parameters, whose decay warms up; bfloat16 copy."""

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        loss, grads = jax.value_and_grad(_mlp_loss)(state["params"], batch)
        params = _sgd(state["params"], grads)
        step = state["step"] + 1
        decay = jnp.minimum(0.99, (1.0 + step) / (10.0 + step))
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state["ema"], params)
        half = jax.tree.map(lambda e: e.astype(jnp.bfloat16), ema)
        return {"params": params, "ema": ema, "served": half, "step": step}, {"loss": loss}

    params = init_mlp(32, plain.MLP_SIZES)
    state = {
        "params": params,
        "ema": jax.tree.map(jnp.copy, params),
        "served": jax.tree.map(lambda p: p.astype(jnp.bfloat16), params),
        "step": jnp.zeros((), jnp.int32),
    }
    return train_step, state, batches.vectors


# Gathers, scatters, sorting.


def make_embedding() -> Made:
    """Skip-gram with sampled negatives: gathers, scatter-add gradients, sparse row counts."""

    def loss_of(params: Params, batch: Batch, negatives: jax.Array) -> jax.Array:
        center = jnp.take(params["in"], batch["x"][:, :-1].ravel(), axis=0, mode="clip")
        context = params["out"].at[batch["x"][:, 1:].ravel()].get(mode="fill", fill_value=0.0)
        positive = jnp.sum(center * context, axis=-1)
        negative = center @ params["out"][negatives].T
        return -jnp.mean(jax.nn.log_sigmoid(positive)) - jnp.mean(jax.nn.log_sigmoid(-negative))

    @jax.jit
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        rng, negative_rng = jax.random.split(state["rng"])
        odds = (1.0 + state["seen"]) ** 0.75
        negatives = jax.random.categorical(negative_rng, jnp.log(odds), shape=(6,))
        loss, grads = jax.value_and_grad(loss_of)(state["params"], batch, negatives)
        seen = state["seen"].at[batch["x"]].add(1.0)
        last = state["last"].at[batch["x"].ravel()].max(state["step"])
        state = {
            "params": _sgd(state["params"], grads, 0.5),
            "seen": seen,
            "last": last,
            "rng": rng,
            "step": state["step"] + 1,
        }
        return state, {"loss": loss}

    keys = jax.random.split(jax.random.key(33), 2)
    shape = (batches.VOCABULARY, 8)
    state = {
        "params": {"in": jax.random.normal(keys[0], shape), "out": jnp.zeros(shape)},
        "seen": jnp.zeros(batches.VOCABULARY),
        "last": jnp.full(batches.VOCABULARY, -1, jnp.int32),
        "rng": jax.random.key(34),
        "step": jnp.int32(0),
    }
    return train_step, state, batches.tokens


def experts(params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits from the two likeliest experts, the gates, and which experts were chosen."""
    gates = jax.nn.softmax(dense(params["router"], x))
    weights, chosen = lax.top_k(gates, 2)
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    hidden = jax.nn.relu(jnp.einsum("bi,eih->beh", x, params["up"]))
    outputs = jnp.einsum("beh,eho->beo", hidden, params["down"])
    picked = jnp.take_along_axis(outputs, chosen[..., None], axis=1)
    return jnp.einsum("bk,bko->bo", weights, picked), gates, chosen


def make_experts() -> Made:
    """A mixture of four experts, two for each example by lax.top_k, with a balancing loss."""

    def loss_of(params: Params, batch: Batch) -> jax.Array:
        logits, gates, chosen = experts(params, batch["x"])
        load = jnp.mean(jax.nn.one_hot(chosen, 4).sum(axis=1), axis=0)
        balance = jnp.sum(load * jnp.mean(gates, axis=0))
        return cross_entropy(logits, batch["label"]) + 0.01 * balance

    keys = jax.random.split(jax.random.key(35), 3)
    params = {
        "router": init_dense(keys[0], batches.FEATURES, 4),
        "up": 0.3 * jax.random.normal(keys[1], (4, batches.FEATURES, 8)),
        "down": 0.3 * jax.random.normal(keys[2], (4, 8, batches.CLASSES)),
    }
    return *_trained_by("clip_adamw_cosine", loss_of, params), batches.vectors


def make_sort() -> Made:
    """Robust regression: sorted residuals trimmed, a quantile loss, ranks by argsort."""

    @jax.jit
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        def loss_of(params: Params) -> tuple[jax.Array, jax.Array]:
            errors = mlp(params, batch["x"])[:, 0] - batch["y"]
            trimmed = jnp.sort(errors**2)[:-1]
            order = jnp.argsort(-jnp.abs(errors))
            weights = 1.0 / (1.0 + jnp.cumsum(jnp.ones_like(errors))[order])
            return jnp.mean(trimmed) + 0.1 * jnp.sum(weights * jnp.abs(errors)), errors

        (loss, errors), grads = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
        median = jnp.median(jnp.abs(errors))
        return {"params": _sgd(state["params"], grads)}, {"loss": loss, "median": median}

    params = init_mlp(36, (batches.FEATURES, 16, 1))
    return train_step, {"params": params}, batches.regression


# Derivatives of derivatives, per-example gradients, associative scans.


def critic(params: Params, x: jax.Array) -> jax.Array:
    """A smooth score of one example."""
    hidden = jax.nn.softplus(dense(params[0], x))
    return dense(params[1], jax.nn.sigmoid(hidden) * hidden)[0]


def make_gradient_penalty() -> Made:
    """A critic with a WGAN-GP penalty: the gradient of a gradient, under vmap."""

    def loss_of(params: Params, batch: Batch) -> jax.Array:
        scores = jax.vmap(critic, (None, 0))(params, batch["x"])
        slopes = jax.vmap(jax.grad(critic, argnums=1), (None, 0))(params, batch["x"])
        penalty = jnp.mean((jnp.sqrt(jnp.sum(slopes**2, axis=-1) + 1e-8) - 1.0) ** 2)
        return jnp.mean(jnp.where(batch["y"] > 0, -scores, scores)) + 10.0 * penalty

    params = init_mlp(37, (batches.FEATURES, 16, 1))
    return *_trained_by("adam", loss_of, params), batches.regression


def make_private() -> Made:
    """DP-SGD: per-example gradients by vmap of grad, clipped, summed and noised."""

    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        def loss_of_one(params: Params, example: Batch) -> jax.Array:
            return _mlp_loss(params, jax.tree.map(lambda x: x[None], example))

        losses, grads = jax.vmap(jax.value_and_grad(loss_of_one), (None, 0))(state["params"], batch)
        squares = [jnp.sum(g**2, axis=range(1, g.ndim)) for g in jax.tree.leaves(grads)]
        factor = jnp.minimum(1.0, 1.0 / jnp.sqrt(sum(squares)))
        leaves, tree = jax.tree.flatten(grads)
        key, *keys = jax.random.split(state["key"], len(leaves) + 1)
        noised = [
            (jnp.tensordot(factor, g, axes=1) + 0.1 * jax.random.normal(k, g.shape[1:])) / len(g)
            for k, g in zip(keys, leaves, strict=True)
        ]
        params = _sgd(state["params"], jax.tree.unflatten(tree, noised))
        return {"params": params, "key": key}, {"loss": jnp.mean(losses)}

    state = {"params": init_mlp(38, plain.MLP_SIZES), "key": jax.random.key(39)}
    return train_step, state, batches.vectors


def linear_recurrence(params: Params, x: jax.Array) -> jax.Array:
    """A gated linear recurrence over time, by lax.associative_scan."""

    def combine(left: Any, right: Any) -> tuple[jax.Array, jax.Array]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    decay = jax.nn.sigmoid(dense(params["decay"], x))
    _, states = lax.associative_scan(combine, (decay, dense(params["input"], x)), axis=1)
    return dense(params["readout"], states)


def make_associative_scan() -> Made:
    """A state space model in one layer."""

    def loss_of(params: Params, batch: Batch) -> jax.Array:
        return jnp.mean((linear_recurrence(params, batch["x"]) - batch["y"]) ** 2)

    keys = jax.random.split(jax.random.key(40), 3)
    params = {
        "decay": init_dense(keys[0], batches.CHANNELS, 8),
        "input": init_dense(keys[1], batches.CHANNELS, 8),
        "readout": init_dense(keys[2], 8, batches.CHANNELS),
    }
    return *_trained_by("adam", loss_of, params), batches.sequences


_POLICIES = jax.checkpoint_policies
_NAMES = _POLICIES.save_only_these_names("attention")

PROGRAMS = (
    Program(
        "transforms_remat",
        functools.partial(make_remat, None),
        jit="donated",
        model="gpt",
        optimizer="adamw",
        covers=("remat",),
        predict=(functools.partial(remat_gpt, None), _params),
    ),
    Program(
        "transforms_remat_dots",
        functools.partial(make_remat, _POLICIES.dots_with_no_batch_dims_saveable),
        jit="donated",
        model="gpt",
        optimizer="adamw",
        covers=("remat", "remat policy"),
    ),
    Program(
        "transforms_remat_names",
        functools.partial(make_remat, _NAMES),
        jit="donated",
        model="gpt",
        optimizer="adamw",
        covers=("remat", "remat policy", "checkpoint_name"),
    ),
    Program(
        "transforms_scan_layers",
        make_scan_layers,
        jit="donated",
        model="gpt",
        optimizer="clip_adamw_cosine",
        covers=("scan", "remat"),
        predict=(scan_gpt, _params),
    ),
    Program(
        "transforms_line_search",
        make_line_search,
        jit="none",
        model="mlp",
        optimizer="own",
        covers=("while_loop",),
        predict=(mlp, _params),
        requires=(),
    ),
    Program(
        "transforms_implicit_layer",
        make_implicit_layer,
        jit="donated",
        model="mlp",
        optimizer="adam",
        covers=("while_loop", "fori_loop", "custom_vjp", "nondiff_argnums"),
        predict=(equilibrium, _params),
    ),
    Program(
        "transforms_skip_nonfinite",
        make_skip_nonfinite,
        jit="donated",
        model="mlp",
        optimizer="adam",
        covers=("cond", "nonfinite"),
        predict=(mlp, _params),
    ),
    Program(
        "transforms_switch_depth",
        make_switch_depth,
        jit="plain",
        model="mlp",
        optimizer="own",
        covers=("switch", "raw key", "randint"),
        predict=(mlp, _params),
        requires=(),
    ),
    Program(
        "transforms_clip_gradient",
        make_clip_gradient,
        jit="donated",
        model="mlp",
        optimizer="momentum",
        covers=("custom_vjp",),
        predict=(clipped_mlp, _params),
    ),
    Program(
        "transforms_straight_through",
        make_straight_through,
        jit="donated",
        model="mlp",
        optimizer="adam",
        covers=("custom_jvp", "nondiff_argnums", "stop_gradient"),
        predict=(binary_mlp, _params),
    ),
    Program(
        "transforms_log1pexp",
        make_log1pexp,
        jit="donated",
        model="mlp",
        optimizer="nesterov",
        covers=("custom_jvp", "vmap"),
        predict=(softplus_mlp, _params),
    ),
    Program(
        "transforms_accumulate",
        make_accumulate,
        jit="donated",
        model="mlp",
        optimizer="adamw",
        covers=("gradient accumulation", "scan"),
        predict=(mlp, _params),
    ),
    Program(
        "transforms_mixed_precision",
        make_mixed_precision,
        jit="donated",
        model="gpt",
        optimizer="adamw",
        covers=("bfloat16", "loss scaling"),
        predict=(plain.gpt, _params),
    ),
    Program(
        "transforms_ema",
        make_ema,
        jit="donated",
        model="mlp",
        optimizer="own",
        covers=("ema", "bfloat16 in the state"),
        predict=(mlp, lambda state: state["ema"]),
        requires=(),
    ),
    Program(
        "transforms_embedding",
        make_embedding,
        jit="plain",
        model="embedding",
        optimizer="own",
        covers=("gather", "scatter-add", "scatter-max", "categorical", "typed key"),
        requires=(),
    ),
    Program(
        "transforms_experts",
        make_experts,
        jit="donated",
        model="experts",
        optimizer="clip_adamw_cosine",
        covers=("top_k", "one_hot", "einsum"),
        predict=(experts, _params),
    ),
    Program(
        "transforms_sort",
        make_sort,
        jit="plain",
        model="mlp",
        optimizer="own",
        covers=("sort", "argsort", "cumsum", "median"),
        predict=(mlp, _params),
        requires=(),
    ),
    Program(
        "transforms_gradient_penalty",
        make_gradient_penalty,
        jit="donated",
        model="mlp",
        optimizer="adam",
        covers=("grad of grad", "vmap"),
        predict=(jax.vmap(critic, (None, 0)), _params),
    ),
    Program(
        "transforms_private",
        make_private,
        jit="none",
        model="mlp",
        optimizer="own",
        covers=("vmap of grad", "typed key"),
        predict=(mlp, _params),
        requires=(),
    ),
    Program(
        "transforms_associative_scan",
        make_associative_scan,
        jit="donated",
        model="recurrence",
        optimizer="adam",
        covers=("associative_scan",),
        predict=(linear_recurrence, _params),
    ),
)
