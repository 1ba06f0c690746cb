"""Transformations of what was imported are those of the original, custom rules included.

A table of functions with derivative rules of their own, each under every transformation of
`transformed`: the imported function lowers to the same program, gives the same bits, or is refused
as the original is.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saved_functions
import transformed
from jax import lax
from jax.experimental import ode

from jaxmeta import errors

CASES = {}


def case(fn):
    CASES[fn.__name__] = fn
    return fn


def x(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0.3, 1.2, shape).astype(np.float32)


# --- custom_jvp ----------------------------------------------------------------------------------


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 2))
def scaled_power(exponent, base, name):
    del name
    return base**exponent


@scaled_power.defjvp
def _(exponent, name, primals, tangents):
    (base,), (t,) = primals, tangents
    return scaled_power(exponent, base, name), 1.5 * exponent * base ** (exponent - 1) * t


@case
def nondiff_arguments_of_a_jvp():
    return lambda a: scaled_power(3, jnp.sin(a), "cube"), (x(3),)


@jax.custom_jvp
def safe_log(a):
    return jnp.where(a > 0.5, jnp.log(a), a)


@safe_log.defjvp
def _(primals, tangents):
    (a,), (t,) = primals, tangents
    return safe_log(a), jnp.where(a > 0.5, t / jnp.where(a > 0.5, a, 1.0), 0.5 * t)


@case
def guards_by_where():
    return lambda a: safe_log(a) * safe_log(a * a), (x(3),)


@jax.custom_jvp
def exponential(a):
    return jnp.exp(a)


@exponential.defjvp
def _(primals, tangents):
    (a,), (t,) = primals, tangents
    answer = exponential(a)
    return answer, answer * t * 1.01


@case
def a_jvp_that_uses_its_function():
    return lambda a: exponential(jnp.cos(a)), (x(3),)


@case
def a_jvp_within_a_jvp():
    @jax.custom_jvp
    def outer(a):
        return exponential(a) * safe_log(a)

    outer.defjvps(lambda t, answer, a: t * safe_log(a) * answer)
    return lambda a: outer(a), (x(3),)


@case
def integers_beside_reals_in_a_jvp():
    @jax.custom_jvp
    def pick(a, i):
        return a[i], i + 1

    @pick.defjvp
    def _(primals, tangents):
        a, i = primals
        outputs = pick(a, i)
        return outputs, (3 * tangents[0][i], np.zeros((), jax.dtypes.float0))

    return lambda a, i: pick(a * a, i), (x(3), np.int32(1))


def with_symbolic_zeros(a, b):
    @jax.custom_jvp
    def product(a, b):
        return a * b

    def rule(primals, tangents):
        (a, b), (s, t) = primals, tangents
        total = jnp.zeros_like(a)
        if not isinstance(s, jax.custom_derivatives.SymbolicZero):
            total = total + 2 * s * b
        if not isinstance(t, jax.custom_derivatives.SymbolicZero):
            total = total + 3 * a * t
        return product(a, b), total

    product.defjvp(rule, symbolic_zeros=True)
    return product(a, b)


@case
def symbolic_zeros_of_a_jvp():
    return with_symbolic_zeros, (x(3), x(3, seed=1))


@case
def symbolic_zeros_of_a_jvp_by_one_argument():
    return (
        lambda a, b: (
            with_symbolic_zeros(a, jnp.round(b)) + with_symbolic_zeros(lax.stop_gradient(a), b)
        ),
        (x(3), x(3, seed=1)),
    )


@case
def a_jvp_that_refuses_one_argument():
    @jax.custom_jvp
    def product(a, b):
        return a * b

    def rule(primals, tangents):
        (a, b), (s, t) = primals, tangents
        if not isinstance(t, jax.custom_derivatives.SymbolicZero):
            raise TypeError("no derivative by b")
        return product(a, b), 2 * s * b

    product.defjvp(rule, symbolic_zeros=True)
    return lambda a, b: product(a, lax.stop_gradient(b)), (x(3), x(3, seed=1))


# --- custom_vjp ----------------------------------------------------------------------------------


def clipped(low, high):
    @jax.custom_vjp
    def identity(a):
        return a

    identity.defvjp(lambda a: (a, None), lambda _, g: (jnp.clip(g, low, high),))
    return identity


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def cubed(a, scale):
    return scale * a**3


def _cubed_fwd(a, scale):
    return cubed(a, scale), a


def _cubed_bwd(scale, a, g):
    return (7 * scale * cubed(a, 1.0) * g,)


cubed.defvjp(_cubed_fwd, _cubed_bwd)


@case
def nondiff_arguments_of_a_vjp_that_uses_its_function():
    return lambda a: cubed(jnp.sin(a), 2.0), (x(3),)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def leveled(level, a):
    return a * 1.0


def _leveled_bwd(level, a, g):
    return (g * level * (leveled(level + 1, a) if level < 5 else a),)


leveled.defvjp(lambda level, a: (leveled(level, a), a), _leveled_bwd)


@case
def a_rule_that_differs_each_time_it_uses_itself():
    return lambda a: leveled(3, a), (x(3),)


@case
def closed_over_constants_in_a_scan():
    table = jnp.asarray(x(4, seed=2))

    @jax.custom_vjp
    def looked_up(a, i):
        return a * table[i]

    def fwd(a, i):
        return looked_up(a, i), (a, i)

    def bwd(saved, g):
        a, i = saved
        return 2 * g * table[i] + 0 * looked_up(a, i), None

    looked_up.defvjp(fwd, bwd)

    def run(a):
        return lax.scan(lambda c, i: (looked_up(c, i), c), a, jnp.arange(4))

    return run, (x(3),)


@case
def a_vjp_in_all_loops_and_branches():
    clip = clipped(-0.5, 0.5)

    def run(a, i):
        a = lax.fori_loop(0, 3, lambda _, c: clip(c * 1.1), a)
        a = lax.cond(i > 0, lambda a: cubed(a, 2.0), lambda a: clip(jnp.sin(a)), a)
        return jax.checkpoint(lambda a: cubed(clip(a), 1.0))(a)

    return run, (x(3), np.int32(1))


@case
def a_vjp_under_vmap_within():
    return jax.vmap(lambda a: jnp.sum(cubed(clipped(-1, 1)(a), 0.5))), (x(2, 3),)


@case
def a_vjp_of_a_tree_with_integers_and_keys():
    @jax.custom_vjp
    def noisy(tree, key):
        noise = jax.random.normal(key, tree["a"].shape)
        return {"out": tree["a"] * noise, "count": tree["i"] + 1}

    def fwd(tree, key):
        return noisy(tree, key), (tree["a"], key)

    def bwd(saved, g):
        a, key = saved
        return {"a": g["out"] * a * jax.random.normal(key, a.shape), "i": None}, None

    noisy.defvjp(fwd, bwd)
    return lambda tree, key: noisy(tree, key), ({"a": x(3), "i": np.int32(2)}, jax.random.key(0))


@case
def symbolic_zeros_of_a_vjp():
    @jax.custom_vjp
    def product(a, b):
        return a * b

    def fwd(a, b):
        saved = (b.value if a.perturbed else None, a.value if b.perturbed else None)
        return a.value * b.value, saved

    def bwd(saved, g):
        b, a = saved
        if isinstance(g, jax.custom_derivatives.SymbolicZero):
            g = jnp.zeros(g.shape, g.dtype)
        return None if b is None else 2 * g * b, None if a is None else 3 * g * a

    product.defvjp(fwd, bwd, symbolic_zeros=True)

    def run(a, b, i):
        return product(a, b) + product(a, i.astype(jnp.float32)) + product(jnp.ones(3), b)

    return run, (x(3), x(3, seed=1), np.arange(3))


@case
def a_vjp_that_refuses_one_argument():
    @jax.custom_vjp
    def product(a, b):
        return a * b

    def fwd(a, b):
        if b.perturbed:
            raise TypeError("no derivative by b")
        return a.value * b.value, b.value

    product.defvjp(fwd, lambda b, g: (2 * g * b, None), symbolic_zeros=True)
    return lambda a, b: product(a, lax.stop_gradient(b)), (x(3), x(3, seed=1))


@case
def rules_optimized_for_remat():
    @jax.custom_vjp
    def squared(a):
        return a * a

    squared.defvjp(lambda a: (squared(a), a), lambda a, g: (3 * a * g,), optimize_remat=True)
    return jax.checkpoint(lambda a: jnp.sin(squared(jnp.sin(a)))), (x(3),)


@case
def a_gradient_of_a_gradient_penalty():
    def loss(w, a):
        energy = lambda a: jnp.sum(cubed(jax.nn.gelu(a @ w), 0.3))  # noqa: E731
        return jnp.sum(jax.grad(energy)(a) ** 2) + energy(a)

    return lambda w, a: w - 0.1 * jax.grad(loss)(w, a), (x(3, 2), x(2, 3))


# --- their relatives -----------------------------------------------------------------------------


@case
def a_custom_gradient():
    @jax.custom_gradient
    def scaled(a):
        return jnp.sin(a), lambda g: (2 * g * jnp.cos(a),)

    return lambda a: scaled(a * a), (x(3),)


@case
def a_closure_that_was_converted():
    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def solved(step, a, *constants):
        return lax.fori_loop(0, 4, lambda _, z: step(z, *constants), a)

    def fwd(step, a, *constants):
        z = solved(step, a, *constants)
        return z, (z, constants)

    def bwd(step, saved, g):
        z, constants = saved
        _, pullback = jax.vjp(lambda *cs: step(z, *cs), *constants)
        return jnp.zeros_like(z), *pullback(g)

    solved.defvjp(fwd, bwd)

    def run(w, a):
        step = lambda z: jnp.tanh(z * w + a)  # noqa: E731
        converted, constants = jax.closure_convert(step, a)
        return solved(converted, jnp.zeros_like(a), *constants)

    return run, (x(3), x(3, seed=1))


@case
def a_linear_call():
    def scaled(r, a):
        call = jax.custom_derivatives.linear_call
        return call(lambda s, y: y * jnp.sin(s), lambda s, t: t * jnp.sin(s) * 3.0, r, a)

    return lambda a: scaled(x(3, seed=1), jnp.sin(a)), (x(3),)


@case
def an_implicit_root():
    def run(a):
        f = lambda y: y**3 + y - a  # noqa: E731
        solve = lambda f, y: lax.fori_loop(0, 5, lambda _, y: y - f(y) / (3 * y**2 + 1), y)  # noqa: E731
        return lax.custom_root(f, a, solve, lambda g, y: y / g(jnp.ones_like(y)))

    return run, (x(),)


def an_ode():
    slope = lambda y, t, p: jnp.tanh(p * y + t)  # noqa: E731
    return lambda p, y: ode.odeint(slope, y, jnp.linspace(0.0, 1.0, 3), p), (x(2), x(2, seed=1))


def a_step_down_an_ode():
    solve, args = an_ode()
    gradient = jax.grad(lambda p, y: jnp.sum(solve(p, y) ** 2))
    return lambda p, y: p - 0.1 * gradient(p, y), args


@pytest.fixture(scope="module")
def round_trip(tmp_path_factory):
    """Returns the original of a case under jit, what was imported, and the arguments."""

    @functools.cache
    def made(name):
        fn, args = (CASES.get(name) or globals()[name])()
        folder = tmp_path_factory.mktemp(name)
        saved_functions.save(folder, fn, args, updates=False)
        imported, _ = saved_functions.load_function(folder)
        return jax.jit(fn), imported, args

    return made


@pytest.mark.parametrize("transformation", [*transformed.TRANSFORMATIONS])
@pytest.mark.parametrize("name", CASES)
def test_transformed_rule_is_the_original_s(name, transformation, round_trip):
    transformed.compare(transformation, *round_trip(name))


@pytest.mark.parametrize(
    ("name", "transformation"),
    [
        ("an_ode", "jvp"),
        ("an_ode", "vmap_of_grad"),
        ("an_ode", "grad_of_grad"),
        ("a_step_down_an_ode", "grad"),
    ],
)
def test_transformed_adjoint_of_an_ode_is_the_original_s(name, transformation, round_trip):
    transformed.compare(transformation, *round_trip(name))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def growing(depth, a):
    for _ in range(depth):
        a = jnp.sin(a)
    return a


growing.defvjp(
    lambda depth, a: (growing(depth, a), a),
    lambda depth, a, g: (g * growing(depth + 1, a),),
)


def test_rules_that_grow_without_end_are_saved_to_some_order(tmp_path):
    args = (np.float32(0.7),)
    saved_functions.save(tmp_path, lambda a: growing(1, a), args, updates=False)
    derived, original = saved_functions.load_function(tmp_path)[0], lambda a: growing(1, a)
    for _ in range(3):
        derived, original = jax.grad(derived), jax.grad(original)
        assert jax.jit(derived)(*args) == jax.jit(original)(*args)
    with pytest.raises(errors.DerivativeError, match=r"growing.*ever larger functions"):
        jax.grad(derived)(*args)


def test_rule_that_closes_over_a_traced_value_is_refused_as_jax_refuses_it(tmp_path):
    def run(w, a):
        @jax.custom_vjp
        def scaled(a):
            return a * w

        scaled.defvjp(lambda a: (a * w, None), lambda _, g: (g * w,))
        return scaled(a)

    args = (x(3), x(3, seed=1))
    saved_functions.save(tmp_path, run, args, updates=False)
    imported, _ = saved_functions.load_function(tmp_path)
    np.testing.assert_array_equal(imported(*args), args[0] * args[1])
    total = lambda fn: lambda w, a: jnp.sum(fn(w, a))  # noqa: E731
    with pytest.raises(TypeError):
        jax.grad(total(jax.jit(run)), argnums=1)(*args)
    with pytest.raises(errors.DerivativeError, match=r"'scaled'.*trace"):
        jax.grad(total(imported), argnums=1)(*args)


def test_rule_that_refuses_an_argument_is_refused_after_loading(round_trip):
    imported = round_trip("a_vjp_that_refuses_one_argument")[1]
    assert jax.grad(lambda a: jnp.sum(imported(a, x(3))))(x(3)).shape == (3,)


def test_saving_a_rule_leaves_the_original_as_it_was(tmp_path):
    fn, args = CASES["a_vjp_that_refuses_one_argument"]()
    original = jax.jit(lambda a, b: jnp.sum(fn(a, b)))
    expected = jax.grad(original)(*args)
    jax.clear_caches()
    saved_functions.save(tmp_path, original, args, updates=False)
    np.testing.assert_array_equal(jax.grad(original)(*args), expected)
