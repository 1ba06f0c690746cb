"""The optax optimizers that the programs are trained with."""

from __future__ import annotations

from typing import Any

import optax


def optimizer(name: str, **options: Any) -> optax.GradientTransformation:
    """Returns the optimizer called `name`, with learning rates that suit the small models.

    Args:
        name: "sgd", "momentum", "nesterov", "adam", "adamw", or "clip_adamw_cosine", which is
            `chain(clip_by_global_norm, adamw(warmup_cosine_decay_schedule))`.
        **options: passed on to optax, such as adamw's `mask`.
    """
    if name == "sgd":
        return optax.sgd(0.1, **options)
    if name == "momentum":
        return optax.sgd(0.05, momentum=0.9, **options)
    if name == "nesterov":
        return optax.sgd(0.05, momentum=0.9, nesterov=True, **options)
    if name == "adam":
        return optax.adam(3e-3, **options)
    if name == "adamw":
        return optax.adamw(3e-3, weight_decay=1e-2, **options)
    if name == "clip_adamw_cosine":
        schedule = optax.warmup_cosine_decay_schedule(
            init_value=1e-4, peak_value=3e-3, warmup_steps=2, decay_steps=20, end_value=1e-5
        )
        return optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-2, **options)
        )
    raise ValueError(f"no optimizer is called {name!r}")
