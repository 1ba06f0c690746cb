"""Trains a small CNN on handwritten digits with flax and optax, and saves the whole program.

The lines marked ``# jaxmeta`` are all that saving takes. What they write goes on in a process that
has neither this file nor flax nor optax: see ``digits_resume.py``.

    python examples/digits_train.py runs/my_digits
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state
from sklearn import datasets
from tqdm import tqdm

import jaxmeta as jm

STEPS = 240
BATCH_SIZE = 64
TEST_IMAGES = 261
SAVE_EVERY = 20


class CNN(nn.Module):
    """Two convolutions with batch normalization and pooling, dropout, one dense layer."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Returns the logits of float32[n, 8, 8, 1] images: float32[n, 10]."""
        x = images
        for features in (16, 32):
            x = nn.Conv(features, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.Dropout(0.3, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(10)(x)


class TrainState(train_state.TrainState):
    """flax's state, with what batch normalization and dropout need."""

    batch_stats: Any
    dropout_key: jax.Array


def create_state(seed: int) -> TrainState:
    """Returns the state at step 0."""
    init_key, dropout_key = jax.random.split(jax.random.key(seed))
    variables = CNN().init(init_key, jnp.zeros((1, 8, 8, 1)), train=False)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, STEPS // 10, STEPS)
    return TrainState.create(
        apply_fn=CNN().apply,
        params=variables["params"],
        tx=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule)),
        batch_stats=variables["batch_stats"],
        dropout_key=dropout_key,
    )


def train_step(
    state: TrainState, batch: dict[str, jax.Array]
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the state after one step of adamw, and the loss and the accuracy before it."""

    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
        logits, updates = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            batch["image"],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.fold_in(state.dropout_key, state.step)},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), (logits, updates["batch_stats"])

    (loss, (logits, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    accuracy = jnp.mean(logits.argmax(-1) == batch["label"])
    new_state = state.apply_gradients(grads=grads, batch_stats=stats)
    return new_state, {"loss": loss, "accuracy": accuracy}


def predict(state: TrainState, images: jax.Array) -> jax.Array:
    """Returns the logits of images."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return state.apply_fn(variables, images, train=False)


def load_data(seed: int) -> dict[str, np.ndarray]:
    """Returns scikit-learn's digits, shuffled and split, and the batch of each step as indices."""
    rng = np.random.default_rng(seed)
    digits = datasets.load_digits()
    shuffled = rng.permutation(len(digits.target))
    images = (digits.images[shuffled, :, :, None] / 16.0).astype(np.float32)
    labels = digits.target[shuffled].astype(np.int32)
    train = len(labels) - TEST_IMAGES
    epochs = -(-STEPS * BATCH_SIZE // train)
    order = np.concatenate([rng.permutation(train) for _ in range(epochs)])
    return {
        "image": images[:train],
        "label": labels[:train],
        "test_image": images[train:],
        "test_label": labels[train:],
        "order": order[: STEPS * BATCH_SIZE].reshape(STEPS, BATCH_SIZE),
    }


def main(directory: pathlib.Path) -> None:
    """Trains for STEPS steps; writes checkpoints, the data and a line of metrics a step."""
    directory.mkdir(parents=True, exist_ok=True)
    data = load_data(seed=0)
    np.savez(directory / "digits.npz", **data)
    state = create_state(seed=0)
    step_fn = jax.jit(train_step, donate_argnums=0)
    first_batch = {name: data[name][data["order"][0]] for name in ("image", "label")}

    graph = jm.Graph()  # jaxmeta
    variables = graph.variables(state)  # jaxmeta
    graph.add_signature("train_step", step_fn, variables, first_batch, updates=0)  # jaxmeta
    graph.add_signature("predict", predict, variables, data["test_image"])  # jaxmeta
    saver = jm.Saver(graph, max_to_keep=3)  # jaxmeta

    with saver, open(directory / "metrics.jsonl", "w") as log:
        for step in (bar := tqdm(range(1, STEPS + 1), desc="flax and optax", unit="step")):
            batch = {name: data[name][data["order"][step - 1]] for name in ("image", "label")}
            state, metrics = step_fn(state, batch)
            if step % SAVE_EVERY == 0:
                saver.save(state, directory / "model", global_step=step)  # jaxmeta
            numbers = {name: float(value) for name, value in metrics.items()}
            print(json.dumps({"step": step, **numbers}), file=log, flush=True)
            bar.set_postfix(numbers, refresh=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=pathlib.Path, help="where the files go")
    main(parser.parse_args().directory)
