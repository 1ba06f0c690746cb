"""Functions with a rule of their own for `jax.vmap`: `jax.custom_batching.custom_vmap`.

The rule is Python that is told the size of the batch and which operands have one. It is traced once
for each choice of operands, at a size that is a symbolic dimension, and each of these is a library
function. Where it does not trace so, what was loaded refuses to be batched, and says why.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap, sequential_vmap

from jaxmeta import errors
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import LoweringContext, example, f32, lowering, restores
from jaxmeta.tracing import jaxprs, vmap_rules

# Each operand more doubles the choices; above so many only the likely ones are traced.
_MOST_OPERANDS: Final = 4
# How many vmaps around one another are known, where a rule calls its function on the batch.
_MOST_NESTED: Final = 2


@lowering("custom_vmap_call")
def lower_custom_vmap(
    ctx: LoweringContext, *inputs: Edge, call: Any, rule: Any, in_tree: Any, out_tree: Any
) -> list[Edge]:
    name = jaxprs.custom_name(call, "custom_vmap")
    identity = vmap_rules.identity(call, rule)
    traced, failures = {}, {}
    for choice in _choices(vmap_rules.may_be_batched(rule, in_tree)):
        try:
            traced[_word(choice)] = vmap_rules.trace(rule, in_tree, out_tree, call, choice)
        except Exception as error:  # any, for the rule is the user's
            first_line = str(error).strip().partition("\n")[0]
            failures[_word(choice)] = f"{type(error).__name__}: {first_line}"
    names = {word: f"{name}_vmap_{word}" for word in traced}
    functions, refused = ctx.separate_functions(
        identity,
        {names[word]: jaxpr for word, (jaxpr, _) in traced.items()},
        most_nested=_MOST_NESTED,
    )
    failures.update({word: refused[names[word]] for word in traced if names[word] in refused})
    kept = [word for word in traced if word not in failures]
    return ctx.call(
        ctx.function(call, name),
        *inputs,
        primitive="custom_vmap_call",
        rules=[functions[names[word]] for word in kept] or None,
        rule_inputs=kept or None,
        rule_outputs=[_word(traced[word][1]) for word in kept] or None,
        failures=[f"{word}: {why}" for word, why in failures.items()] or None,
    )


def _choices(may_be_batched: Sequence[bool]) -> Iterator[tuple[bool, ...]]:
    """Yields choices of operands that have a batch: all of them first."""
    free = [index for index, flag in enumerate(may_be_batched) if flag]
    if len(free) <= _MOST_OPERANDS:
        chosen = [
            set(some)
            for count in range(len(free), 0, -1)
            for some in itertools.combinations(free, count)
        ]
    else:
        chosen = [set(free), *({i} for i in free), *(set(free) - {i} for i in free)]
    for some in chosen:
        yield tuple(index in some for index in range(len(may_be_batched)))


def _word(flags: Sequence[bool]) -> str:
    return "".join("1" if flag else "0" for flag in flags)


@restores("custom_vmap_call")
def restore_custom_vmap(
    *inputs: Any,
    function: Any,
    library: Any,
    rules: tuple[Any, ...] = (),
    rule_inputs: tuple[bytes, ...] = (),
    rule_outputs: tuple[bytes, ...] = (),
    failures: tuple[bytes, ...] = (),
) -> Any:
    # A rule that uses its own function names it by a string.
    links = [rule.decode() if isinstance(rule, bytes) else rule for rule in rules]
    words = [word.decode() for word in rule_inputs]
    flags = [[char == ord("1") for char in word] for word in rule_outputs]
    known = dict(zip(words, zip(links, flags, strict=True), strict=True))
    messages = [failure.decode() for failure in failures]
    return _custom_vmap(function, library, known, messages)(*inputs)


def _custom_vmap(
    function: Any, library: Any, known: dict[str, tuple[Any, list[bool]]], failures: list[str]
) -> Callable[..., Any]:
    """Returns the custom_vmap function; made once, so that JAX's caches find it."""

    def make() -> Callable[..., Any]:
        @custom_vmap
        def call(*arrays: Any) -> list[Any]:
            return list(function(*arrays))

        @call.def_vmap
        def rule(axis_size: int, in_batched: Sequence[bool], *arrays: Any) -> Any:
            word = _word(in_batched)
            if word not in known:
                raise errors.UnsupportedPrimitiveError(_refusal(function, word, known, failures))
            link, flags = known[word]
            try:
                run = link if callable(link) else library[link]
            except errors.GraphError:  # the rule that links to it has another that failed
                raise errors.UnsupportedPrimitiveError(
                    _refusal(function, word, known, failures)
                ) from None
            return list(run(*arrays)), list(flags)

        return call

    names = tuple((word, getattr(link, "name", link)) for word, (link, _) in known.items())
    derived: Callable[..., Any] = function.derived(("vmap", *names), make)
    return derived


def _refusal(function: Any, word: str, known: Any, failures: list[str]) -> str:
    why = [failure for failure in failures if failure.startswith(f"{word}: ")]
    return errors.list_offenders(
        f"cannot vmap {function.name!r} by operands {word} (1 for each that has a batch): the file "
        f"has its own vmap rule for {', '.join(known) or 'none'} only. When it was written:",
        why or failures or ["the rule was not traced for this choice of operands"],
        "Give the others a batch too, by jnp.broadcast_to, or save the batched function as a "
        "signature of its own.",
    )


@custom_vmap
def _scaled_sum(x: Any, y: Any) -> Any:
    return jnp.sin(x) * y


@_scaled_sum.def_vmap
def _scaled_sum_of_a_batch(axis_size: int, in_batched: Any, x: Any, y: Any) -> Any:
    if not in_batched[1]:
        y = jnp.broadcast_to(y, (axis_size, *y.shape))
    return jnp.cos(x) * y * 3.0, True


_one_by_one: Any = sequential_vmap(lambda x: jnp.cumsum(x))


example(lambda x, y: _scaled_sum(x, y), f32(2, 3), f32(2, 3))
example(lambda x: _one_by_one(x), f32(2, 3))
example(lambda x, y: jax.vmap(lambda a: _scaled_sum(a, y[0]))(x), f32(2, 3), f32(2, 3))
example(lambda x: jax.jvp(_one_by_one, (x,), (x * np.float32(2),)), f32(4), gradient=False)
