"""Arguments for functions of optax: a transformation makes an update, a schedule is asked once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

PARAMS = {
    "b": np.linspace(-1, 1, 4, dtype=np.float32),
    "w": np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32),
}
GRADS = jax.tree.map(lambda x: (np.flip(x) / 2).astype(np.float32), PARAMS)
MASK = {"b": True, "w": False}
INNER = optax.sgd(0.1, momentum=0.9)

# By name of the parameter.
VALUES: dict[str, Any] = {
    "boundaries": [2],
    "clipping": 0.5,
    "cosine_kwargs": [
        {
            "init_value": 0.1,
            "peak_value": 0.2,
            "decay_steps": 9,
            "warmup_steps": 2,
            "end_value": 0.0,
        }
    ],
    "decay": 0.9,
    "decay_rate": 0.9,
    "decay_steps": 9,
    "end_value": 0.2,
    "eta": 0.1,
    "f": lambda x, _: jax.tree.map(jnp.sin, x),
    "fast_optimizer": INNER,
    "freeze_mask": MASK,
    "gamma": 0.5,
    "init_value": 0.1,
    "inner": INNER,
    "inner_factory": optax.adam,
    "interpolate_type": "cosine",
    "learning_rate": 0.1,
    "mask": MASK,
    "max_backtracking_steps": 3,
    "max_consecutive_errors": 3,
    "max_delta": 0.2,
    "max_linesearch_steps": 3,
    "max_norm": 0.2,
    "measure": lambda updates: optax.global_norm(updates),
    "measure_name": "norm",
    "measures": {"norm": optax.global_norm},
    "optimizer": INNER,
    "param_labels": {"b": "x", "w": "y"},
    "peak_value": 0.3,
    "power": 2.0,
    "schedules": [optax.constant_schedule(0.1), optax.linear_schedule(0.1, 0.0, 5)],
    "should_transform_fn": lambda step, **_: step % 2 == 0,
    "slow_step_size": 0.5,
    "step_size": 0.1,
    "step_size_fn": optax.linear_schedule(0.1, 0.0, 5),
    "sync_period": 2,
    "threshold": 0.5,
    "transforms": {"x": INNER, "y": optax.adam(0.1)},
    "transition_steps": 5,
    "tx": INNER,
    "value": 0.1,
    "warmup_steps": 2,
}
MADE = {
    "chain": lambda: optax.chain(INNER, optax.clip(0.1)),
    "named_chain": lambda: optax.named_chain(("one", INNER), ("two", optax.clip(0.1))),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(0.1),
    "inject_stateful_hyperparams": lambda: optax.inject_stateful_hyperparams(optax.adam)(0.1),
    "lookahead": lambda: optax.flatten(INNER),
    "stateless_with_tree_map": lambda: optax.stateless_with_tree_map(lambda x, _: jnp.sin(x)),
}


def value_fn(params: Any) -> Any:
    return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params))


def calls(name: str, fn: Callable[..., Any]) -> Iterator[tuple[Any, ...]]:
    """Yields functions of arrays, each with its arrays, where optax makes something to call."""
    made = _made(name, fn)
    if hasattr(made, "update") and hasattr(made, "init"):
        yield _update_function(made), PARAMS, GRADS
    elif callable(made):
        yield made, np.int32(3)


def _made(name: str, fn: Callable[..., Any]) -> Any:
    try:
        if name in MADE:
            return MADE[name]()
        parameters = inspect.signature(fn).parameters.values()
        required = [p.name for p in parameters if p.default is p.empty]
        return fn(**{name: VALUES[name] for name in required})
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _update_function(transformation: Any) -> Callable[..., Any]:
    takes_more = isinstance(transformation, optax.GradientTransformationExtraArgs)

    def update(params: Any, grads: Any) -> Any:
        state = transformation.init(params)
        more = (
            {"value": value_fn(params), "grad": grads, "value_fn": value_fn} if takes_more else {}
        )
        return transformation.update(grads, state, params, **more)

    return update
