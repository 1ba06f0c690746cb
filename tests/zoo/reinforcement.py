"""Reinforcement learning, environments included."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from . import arrays
from .entry import Made, program
from .training import first_state, mlp


def cartpole(state: jax.Array, force: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the next state of a cart with a pole, and whether the episode is over."""
    _, velocity, angle, spin = state
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    push = (force + 0.05 * spin**2 * sin) / 1.1
    turn = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
    pushed = push - 0.05 * turn * cos / 1.1
    state = state + 0.02 * jnp.array([velocity, pushed, spin, turn])
    return state, (jnp.abs(state[0]) > 2.4) | (jnp.abs(state[2]) > 0.2)


def advantages(rewards: Any, values: Any, done: Any, last: Any) -> jax.Array:
    """Returns generalized advantage estimates (time, environments) by a reverse scan."""

    def step(carry: Any, now: Any) -> Any:
        running, following = carry
        reward, value, over = now
        delta = reward + 0.99 * following * (1 - over) - value
        running = delta + 0.99 * 0.95 * (1 - over) * running
        return (running, value), running

    carry = (jnp.zeros_like(last), last)
    return lax.scan(step, carry, (rewards, values, done), reverse=True)[1]


@program(
    "plain",
    reduced={"environments": 3, "steps": 4, "hidden": 8, "epochs": 2, "parts": 2},
    real={"environments": 2048, "steps": 128, "hidden": 64, "epochs": 4, "parts": 8},
)
def ppo(environments: int, steps: int, hidden: int, epochs: int, parts: int) -> Made:
    """PPO: rollouts of vmapped cart-poles, GAE, epochs of shuffled minibatches, all in one step."""
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(3e-4, eps=1e-5))

    def policy(params: Any, observed: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = mlp(params["actor"], observed, jnp.tanh)
        return jax.nn.log_softmax(logits), mlp(params["critic"], observed, jnp.tanh)[..., 0]

    def rollout(params: Any, carry: Any, _: Any) -> Any:
        observed, key = carry
        key, act_key, reset_key = jax.random.split(key, 3)
        log_probs, value = policy(params, observed)
        action = jax.random.categorical(act_key, log_probs)
        moved, done = jax.vmap(cartpole)(observed, 20.0 * action - 10.0)
        fresh = jax.random.uniform(reset_key, moved.shape, minval=-0.05, maxval=0.05)
        taken = jnp.take_along_axis(log_probs, action[:, None], axis=-1)[:, 0]
        moment = {"observed": observed, "action": action, "log_prob": taken, "value": value}
        moment |= {"reward": 1.0 - done, "done": done.astype(jnp.float32)}
        return (jnp.where(done[:, None], fresh, moved), key), moment

    def loss_fn(params: Any, part: Any) -> jax.Array:
        log_probs, value = policy(params, part["observed"])
        taken = jnp.take_along_axis(log_probs, part["action"][:, None], axis=-1)[:, 0]
        ratio = jnp.exp(taken - part["log_prob"])
        advantage = jax.nn.standardize(part["advantage"])
        gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
        moved = part["value"] + jnp.clip(value - part["value"], -0.2, 0.2)
        errors = [jnp.square(v - part["target"]) for v in (value, moved)]
        entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
        return jnp.mean(0.5 * jnp.maximum(*errors) - gain - 0.01 * entropy)

    def minibatch(state: Any, part: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(state[0], part)
        updates, opt_state = tx.update(grads, state[1])
        return (optax.apply_updates(state[0], updates), opt_state), loss

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: Any) -> Any:
        params = state["params"]
        act = functools.partial(rollout, params)
        carry = state["observed"], state["key"]
        (observed, key), moments = lax.scan(act, carry, None, length=steps)
        last = policy(params, observed)[1]
        gae = advantages(moments["reward"], moments["value"], moments["done"], last)
        moments |= {"advantage": gae, "target": gae + moments["value"]}
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), moments)

        def epoch(carry: Any, key: jax.Array) -> Any:
            order = jax.random.permutation(key, steps * environments)
            shuffled = jax.tree.map(lambda x: x[order].reshape(parts, -1, *x.shape[1:]), flat)
            return lax.scan(minibatch, carry, shuffled)

        key, epoch_key = jax.random.split(key)
        keys = jax.random.split(epoch_key, epochs)
        (params, opt_state), losses = lax.scan(epoch, (params, state["opt_state"]), keys)
        state = {"params": params, "opt_state": opt_state, "observed": observed, "key": key}
        return {**state, "step": jnp.int32(0)}, {"loss": losses, "return": moments["reward"].sum()}

    def init() -> Any:
        actor, critic = (arrays.dense(4, hidden, n, seed=n) for n in (2, 1))
        state = first_state({"actor": actor, "critic": critic}, tx)
        observed = jnp.array(arrays.uniform(environments, 4, low=-0.05, high=0.05))
        return ({**state, "observed": observed, "key": jax.random.key(0)},)

    return Made(train_step, init, updates=True)


@program(
    "plain",
    reduced={"capacity": 12, "batch": 4, "hidden": 8},
    real={"capacity": 100_000, "batch": 256, "hidden": 256},
)
def dqn(capacity: int, batch: int, hidden: int) -> Made:
    """Double DQN, dueling heads: epsilon-greedy, a ring buffer in the state, a target network."""
    tx = optax.adam(1e-3)

    def q_values(params: Any, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(mlp(params["body"], x))
        advantage = mlp(params["advantage"], h)
        return mlp(params["value"], h) + advantage - advantage.mean(axis=-1, keepdims=True)

    def act(state: Any, key: jax.Array) -> Any:
        explore_key, action_key = jax.random.split(key)
        epsilon = optax.linear_schedule(1.0, 0.05, 1000)(state["step"])
        greedy = jnp.argmax(q_values(state["params"], state["observed"]))
        drawn = jax.random.randint(action_key, (), 0, 2)
        action = jnp.where(jax.random.uniform(explore_key) < epsilon, drawn, greedy)
        moved, done = cartpole(state["observed"], 20.0 * action - 10.0)
        row = jnp.concatenate([state["observed"], moved, jnp.stack([action, 1.0 - done])])
        place = state["step"] % capacity
        buffer = lax.dynamic_update_index_in_dim(state["buffer"], row, place, 0)
        return buffer, jnp.where(done, jnp.zeros(4), moved)

    def loss_fn(params: Any, target: Any, rows: jax.Array) -> Any:
        before, after = rows[:, :4], rows[:, 4:8]
        action, alive = rows[:, 8].astype(jnp.int32), rows[:, 9]
        best = jnp.argmax(q_values(params, after), axis=-1)
        following = jnp.take_along_axis(q_values(target, after), best[:, None], 1)[:, 0]
        wanted = lax.stop_gradient(alive + 0.99 * alive * following)
        q = jnp.take_along_axis(q_values(params, before), action[:, None], 1)[:, 0]
        return jnp.mean(optax.huber_loss(q, wanted))

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: Any) -> Any:
        key, act_key, sample_key = jax.random.split(state["key"], 3)
        buffer, observed = act(state, act_key)
        filled = jnp.minimum(state["step"] + 1, capacity)
        rows = buffer[jax.random.randint(sample_key, (batch,), 0, filled)]
        loss, grads = jax.value_and_grad(loss_fn)(state["params"], state["target"], rows)
        updates, opt_state = tx.update(grads, state["opt_state"])
        params = optax.apply_updates(state["params"], updates)
        target = optax.periodic_update(params, state["target"], state["step"], 100)
        state = {"params": params, "target": target, "opt_state": opt_state, "buffer": buffer}
        state |= {"observed": observed, "key": key}
        return state, {"loss": loss}

    @functools.partial(jax.jit, donate_argnums=0)
    def counted(state: Any) -> Any:
        following, metrics = train_step(state)
        return {**following, "step": state["step"] + 1}, metrics

    def init() -> Any:
        params = {
            "body": arrays.dense(4, hidden, hidden),
            "advantage": arrays.dense(hidden, 2),
            "value": arrays.dense(hidden, 1),
        }
        state = first_state(params, tx) | {"target": jax.tree.map(jnp.array, params)}
        state |= {"buffer": jnp.zeros((capacity, 10)), "key": jax.random.key(3)}
        return ({**state, "observed": jnp.zeros(4)},)

    return Made(counted, init, updates=True)


@program(
    "plain",
    reduced={"features": 5, "actions": 2, "hidden": 8, "batch": 4},
    real={"features": 376, "actions": 17, "hidden": 256, "batch": 256},
)
def soft_actor_critic(features: int, actions: int, hidden: int, batch: int) -> Made:
    """SAC: squashed Gaussians, twin critics by vmap, a tuned temperature, moving targets."""
    tx = {name: optax.adam(3e-4) for name in ("actor", "critics", "log_alpha")}

    def act(params: Any, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean, log_std = jnp.split(mlp(params, x), 2, axis=-1)
        log_std = jnp.clip(log_std, -20, 2)
        raw = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        log_prob = jax.scipy.stats.norm.logpdf(raw, mean, jnp.exp(log_std))
        log_prob -= 2 * (jnp.log(2.0) - raw - jax.nn.softplus(-2 * raw))
        return jnp.tanh(raw), jnp.sum(log_prob, axis=-1)

    def q_values(params: Any, x: jax.Array, action: jax.Array) -> jax.Array:
        inputs = jnp.concatenate([x, action], axis=-1)
        return jax.vmap(lambda critic: mlp(critic, inputs)[..., 0])(params)

    def losses(params: Any, targets: Any, batch: Any, key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key)
        following, log_prob = act(params["actor"], batch["next"], keys[0])
        alpha = jnp.exp(params["log_alpha"])
        value = jnp.min(q_values(targets, batch["next"], following), axis=0) - alpha * log_prob
        wanted = batch["reward"] + 0.99 * (1 - batch["done"]) * value

        def critic_loss(critics: Any) -> jax.Array:
            return jnp.mean((q_values(critics, batch["x"], batch["action"]) - wanted) ** 2)

        def actor_loss(actor: Any) -> jax.Array:
            action, log_prob = act(actor, batch["x"], keys[1])
            q = jnp.min(q_values(params["critics"], batch["x"], action), axis=0)
            return jnp.mean(alpha * log_prob - q)

        def alpha_loss(log_alpha: jax.Array) -> jax.Array:
            return -log_alpha * jnp.mean(log_prob - actions)

        return {"critics": critic_loss, "actor": actor_loss, "log_alpha": alpha_loss}

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: Any, batch: Any) -> Any:
        key, now = jax.random.split(state["key"])
        params, opt, found = dict(state["params"]), dict(state["opt"]), {}
        for name, loss in losses(state["params"], state["targets"], batch, now).items():
            found[name], grads = jax.value_and_grad(loss)(params[name])
            updates, opt[name] = tx[name].update(grads, opt[name])
            params[name] = optax.apply_updates(params[name], updates)
        targets = optax.incremental_update(params["critics"], state["targets"], 0.005)
        return {"params": params, "opt": opt, "targets": targets, "key": key}, found

    def init() -> Any:
        sizes = (features + actions, hidden, hidden, 1)
        critics = arrays.stacked([arrays.dense(*sizes, seed=i) for i in range(2)])
        actor = arrays.dense(features, hidden, 2 * actions)
        params = {"actor": actor, "critics": critics, "log_alpha": jnp.zeros(())}
        state = {"params": params, "targets": jax.tree.map(jnp.array, critics)}
        opt = {name: jax.jit(tx[name].init)(params[name]) for name in params}
        rows = {"x": arrays.normal(batch, features), "next": arrays.normal(batch, features, seed=1)}
        rows |= {"action": arrays.uniform(batch, actions, low=-1), "reward": arrays.normal(batch)}
        rows["done"] = (arrays.uniform(batch) < 0.1).astype("float32")
        return {**state, "opt": opt, "key": jax.random.key(5)}, rows

    return Made(train_step, init, updates=True)
