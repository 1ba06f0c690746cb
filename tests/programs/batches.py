"""Small batches of numpy arrays, each a function of its number alone."""

from __future__ import annotations

import numpy as np

FEATURES = 12
CLASSES = 5
IMAGE = (8, 8, 2)
VOCABULARY = 48
LENGTH = 12
CHANNELS = 6
PIXELS = 36


def vectors(i: int, size: int = 8) -> dict[str, np.ndarray]:
    """`x` (size, FEATURES) and the int `label` that a fixed linear teacher gives it."""
    x = np.random.default_rng((1, i)).standard_normal((size, FEATURES), np.float32)
    teacher = np.random.default_rng(1).standard_normal((FEATURES, CLASSES), np.float32)
    return {"x": x, "label": np.argmax(x @ teacher, axis=-1).astype(np.int32)}


def regression(i: int, size: int = 8) -> dict[str, np.ndarray]:
    """`x` (size, FEATURES) and a float target `y` (size,)."""
    x = np.random.default_rng((2, i)).standard_normal((size, FEATURES), np.float32)
    return {"x": x, "y": np.sin(x[:, 0]) + 0.5 * x[:, 1] * x[:, 2]}


def images(i: int, size: int = 4) -> dict[str, np.ndarray]:
    """`x` (size, *IMAGE) with a bright spot, whose quarter of the image is the int `label`."""
    rng = np.random.default_rng((3, i))
    x = 0.3 * rng.standard_normal((size, *IMAGE), np.float32)
    label = rng.integers(0, 4, size).astype(np.int32)
    for image, quarter in zip(x, label, strict=True):
        image[4 * (quarter // 2) :, 4 * (quarter % 2) :][:4, :4] += 1.0
    return {"x": x, "label": label}


def tokens(i: int, size: int = 4) -> dict[str, np.ndarray]:
    """`x` (size, LENGTH) of token ids that count in steps, and `label`, their successors."""
    rng = np.random.default_rng((4, i))
    start, stride = rng.integers(0, VOCABULARY, (size, 1)), rng.integers(1, 4, (size, 1))
    ids = ((start + stride * np.arange(LENGTH + 1)) % VOCABULARY).astype(np.int32)
    return {"x": ids[:, :-1], "label": ids[:, 1:]}


def sequences(i: int, size: int = 4) -> dict[str, np.ndarray]:
    """`x` (size, LENGTH, CHANNELS) and its running mean over time, `y`, of the same shape."""
    x = np.random.default_rng((5, i)).standard_normal((size, LENGTH, CHANNELS), np.float32)
    steps = np.arange(1, LENGTH + 1, dtype=np.float32)[:, None]
    return {"x": x, "y": np.cumsum(x, axis=1) / steps}


def pixels(i: int, size: int = 6) -> dict[str, np.ndarray]:
    """`x` (size, PIXELS) of zeros and ones, drawn from two prototypes with noise."""
    rng = np.random.default_rng((6, i))
    prototypes = np.random.default_rng(6).random((2, PIXELS)) < 0.5
    flipped = rng.random((size, PIXELS)) < 0.05
    return {"x": (prototypes[rng.integers(0, 2, size)] ^ flipped).astype(np.float32)}
