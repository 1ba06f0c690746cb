"""Loops of Equinox, which diffrax's solvers are made of, without Equinox.

Derivatives and batches of what was imported are the original's, finished and still to be taken.
"""

from __future__ import annotations

import functools

import equinox.internal as eqxi
import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import resuming
import saved_functions
import transformed

from jaxmeta import errors

CASES = {}


def case(fn):
    CASES[fn.__name__] = fn
    return fn


def looped(kind, start, weight):
    """Returns what a loop over a buffer gives, whose number of steps depends on the values."""

    def cond(carry):
        return jnp.sum(carry[0]) < 5.0

    def body(carry):
        a, i, found = carry
        a = a * weight + 0.3
        return a, i + 1, found.at[i].set(jnp.sum(a))

    init = start, jnp.zeros((), np.int32), jnp.zeros(6)
    options = {"max_steps": 6, "buffers": lambda carry: carry[2], "kind": kind}
    a, i, found = eqxi.while_loop(cond, body, init, **options)
    return a, i, found


def arguments():
    return np.float32([0.2, 0.4]), np.float32([1.2, 1.3])


@case
def checkpointed_loop():
    return functools.partial(looped, "checkpointed"), arguments()


@case
def bounded_loop():
    return functools.partial(looped, "bounded"), arguments()


@case
def gradient_through_a_checkpointed_loop():
    def total(start, weight):
        a, _, found = looped("checkpointed", start, weight)
        return jnp.sum(jnp.sin(a)) + jnp.sum(found)

    return lambda start, weight: weight - 0.1 * jax.grad(total, 1)(start, weight), arguments()


@case
def batched_gradient_through_a_checkpointed_loop():
    fn, args = gradient_through_a_checkpointed_loop()
    return jax.vmap(fn), tuple(np.stack([x, x / 2, x / 3]) for x in args)


@case
def reductions_over_the_batch():
    def run(a, i):
        largest = eqxi.unvmap_max(i)
        flags = eqxi.unvmap_any(a > 0.3), eqxi.unvmap_all(a > 0.3)
        return a * largest, *flags

    return run, (arguments()[0], np.arange(3))


@case
def a_fixed_integer():
    return lambda a, i: a * eqxi.nonbatchable(i), (arguments()[0], np.int32(3))


@case
def no_way_back():
    return lambda a, b: a * eqxi.nondifferentiable_backward(b), arguments()


@pytest.fixture(scope="module")
def round_trip(tmp_path_factory):
    """Returns the original of a case under jit, what was imported, and the arguments."""

    @functools.cache
    def made(name):
        fn, args = CASES[name]()
        folder = tmp_path_factory.mktemp(name)
        saved_functions.save(folder, fn, args, updates=False)
        imported, _ = saved_functions.load_function(folder)
        return jax.jit(fn), imported, args

    return made


@pytest.mark.parametrize("name", CASES)
def test_imported_loop_compiles_to_the_original_program(name, round_trip):
    original, imported, args = round_trip(name)
    texts = [
        hlo.canonical_hlo(fn.lower(*args).compile(resuming.QUICKLY)) for fn in (original, imported)
    ]
    assert hlo.first_difference(*texts) is None


@pytest.mark.parametrize("transformation", ["grad", "jvp", "vmap", "vmap_of_grad"])
@pytest.mark.parametrize("name", sorted({*CASES} - {"no_way_back"}))
def test_transformed_loop_is_the_original_s(name, transformation, round_trip):
    transformed.compare(transformation, *round_trip(name))


def test_what_must_not_be_differentiated_in_reverse_is_refused(round_trip):
    original, imported, (a, b) = round_trip("no_way_back")
    for fn, error in ((original, RuntimeError), (imported, errors.DerivativeError)):
        with pytest.raises(error, match="Unexpected cotangent"):
            jax.grad(lambda b, fn=fn: jnp.sum(fn(a, b)))(b)


def test_what_must_not_be_batched_is_refused(round_trip):
    original, imported, (a, i) = round_trip("a_fixed_integer")
    for fn in (original, imported):
        with pytest.raises(ValueError, match="cannot be vmap'd"):
            jax.vmap(fn, (None, 0))(a, np.stack([i, i]))
