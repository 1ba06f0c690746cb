"""Goes on with what ``digits_train.py`` saved, without its source, flax or optax.

Everything about the model, the optimizer and the state comes from the files. The demo runs this in
an environment that holds jaxmeta's own dependencies and tqdm, and nothing else.

    python examples/digits_resume.py runs/my_digits
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import jaxmeta as jm

SAVE_EVERY = 20
DIGITS_SHOWN = 5


def train_on(directory: pathlib.Path) -> jm.Program:
    """Trains from the last checkpoint to the end of the data; returns the program as saved then."""
    data = np.load(directory / "digits.npz")
    images, labels, order = data["image"], data["label"], data["order"]
    run = jm.load(jm.latest_checkpoint(directory))
    train_step, state = run["train_step"], run.state
    saver = jm.Saver(run.graph, max_to_keep=3)
    first = int(state.step) + 1

    with saver, open(directory / "metrics_resumed.jsonl", "w") as log:
        steps = range(first, len(order) + 1)
        for step in (bar := tqdm(steps, desc="jaxmeta alone ", unit="step")):
            batch = {"image": images[order[step - 1]], "label": labels[order[step - 1]]}
            state, metrics = train_step(state, batch)
            if step % SAVE_EVERY == 0:
                saver.save(state, directory / "model", global_step=step)
            numbers = {name: float(value) for name, value in metrics.items()}
            print(json.dumps({"step": step, **numbers}), file=log, flush=True)
            bar.set_postfix(numbers, refresh=False)
    return jm.load(jm.latest_checkpoint(directory))


def extend(run: jm.Program, directory: pathlib.Path) -> float:
    """Differentiates the imported model by its input; returns its accuracy on the test images.

    ``predict`` is an ordinary function of JAX again, so a new loss on top of it has a gradient:
    how much each pixel of an image speaks against its label.
    """
    data = np.load(directory / "digits.npz")
    images, labels = data["test_image"], data["test_label"]
    predict, state = run["predict"], run.state

    def loss(images: jax.Array) -> jax.Array:
        log_probabilities = jax.nn.log_softmax(predict(state, images))
        return -jnp.sum(jnp.take_along_axis(log_probabilities, labels[:, None], axis=1))

    saliency = jax.jit(jax.grad(loss))(images)
    guesses = predict(state, images).argmax(-1)
    np.savez(
        directory / "saliency.npz",
        image=images[:DIGITS_SHOWN, :, :, 0],
        label=labels[:DIGITS_SHOWN],
        guess=guesses[:DIGITS_SHOWN],
        saliency=saliency[:DIGITS_SHOWN, :, :, 0],
    )
    return float(jnp.mean(guesses == labels))


def check_environment(absent: list[str]) -> None:
    """Exits with a message where a module can be imported that should not be there."""
    found = [name for name in absent if importlib.util.find_spec(name) is not None]
    if found:
        raise SystemExit(f"this environment was to be without {', '.join(found)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=pathlib.Path, help="where digits_train.py wrote")
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="MODULE", help="modules that must not be there"
    )
    arguments = parser.parse_args()
    check_environment(arguments.without)
    program = train_on(arguments.directory)
    print(f"accuracy on the test images: {extend(program, arguments.directory):.1%}")
