"""What jaxmeta reads from and gives to jaxprs, and all that differs between JAX versions there.

The rest of the package sees plain facts: shapes, dtypes, names, positions in the user's source.
Structured primitives (scan, while, cond, remat) are bound here as the original program bound
them, because their public functions reorder operands, which would make another program.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import jax
import numpy as np
from jax import lax
from jax.extend import core as jax_core
from jax.extend import random as jax_random

Jaxpr = Any
Eqn = Any
Atom = Any

_JAX_ROOT: Final = os.path.dirname(os.path.abspath(jax.__file__)) + os.sep
_SITE_PACKAGES: Final = os.sep + "site-packages" + os.sep


# --- reading ---------------------------------------------------------------------------------


def is_jaxpr(value: Any) -> bool:
    """Returns whether a parameter's value is a jaxpr, closed or open."""
    return hasattr(value, "eqns") and hasattr(value, "invars")


def open_jaxpr(jaxpr: Jaxpr) -> Jaxpr:
    """Returns the jaxpr without its constants, which JAX 0.12 no longer keeps apart."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def jaxpr_constants(jaxpr: Jaxpr) -> list[Any]:
    """Returns the arrays a jaxpr closes over, in the order of its constvars."""
    return list(getattr(jaxpr, "consts", ()))


def subjaxprs(eqn: Eqn) -> Iterator[Jaxpr]:
    """Yields the jaxprs among an eqn's parameters."""
    for value in eqn.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if is_jaxpr(item):
                yield item


def literal_value(atom: Atom) -> np.ndarray[Any, Any] | None:
    """Returns the value of a literal as an array of its aval's dtype, or None for a variable."""
    if not isinstance(atom, jax_core.Literal):
        return None
    aval: Any = atom.aval
    return np.asarray(atom.val, dtype=aval.dtype)


def is_drop_var(var: Any) -> bool:
    """Returns whether an output variable is never read (printed as ``_``)."""
    return type(var).__name__ == "DropVar"


def is_key_dtype(dtype: Any) -> bool:
    """Returns whether a dtype is that of typed PRNG keys."""
    return bool(jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key))


@functools.cache
def key_layout(dtype: Any) -> tuple[str, tuple[int, ...]]:
    """Returns the implementation's name and the shape of one key's uint32 data."""
    names: list[str] = []

    def read(keys: jax.Array) -> jax.Array:
        names.append(str(jax.random.key_impl(keys)))
        return jax.random.key_data(keys)

    data = jax.eval_shape(read, jax.ShapeDtypeStruct((), dtype))
    return names[0], tuple(data.shape)


def physical_aval(aval: Any) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype as the graph holds them: typed keys as their uint32 data."""
    if is_key_dtype(aval.dtype):
        _, data_shape = key_layout(aval.dtype)
        return jax.ShapeDtypeStruct((*aval.shape, *data_shape), np.uint32)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def has_64_bit_types() -> bool:
    """Returns whether this process has JAX's 64-bit types switched on."""
    config: Any = jax.config
    return bool(config.jax_enable_x64)


def impl_name(impl: Any) -> str:
    """Returns the name of the PRNG implementation that a primitive's parameter holds."""
    return str(getattr(impl, "name", impl))


def prng_implementation(name: str) -> Any:
    """Returns JAX's own implementation of typed keys: functions of their uint32 data, or None."""
    known = (
        jax_random.threefry_prng_impl,
        jax_random.rbg_prng_impl,
        jax_random.unsafe_rbg_prng_impl,
    )
    return next((impl for impl in known if impl_name(impl) == name), None)


def is_threefry_partitionable(eqn: Eqn = None) -> bool:
    """Returns which of its two orders of counters threefry has, in an eqn or just now."""
    setting = getattr(jax.config, "jax_threefry_partitionable", True)
    return bool(getattr(getattr(eqn, "ctx", None), "threefry_partitionable", setting))


def user_location(eqn: Eqn) -> str:
    """Returns ``file:line`` of the user's code that made an eqn, or an empty string.

    The innermost frame outside JAX and outside installed packages is taken; where there is none,
    the innermost one outside JAX.
    """
    traceback = eqn.source_info.traceback
    fallback = ""
    for frame in traceback.frames if traceback is not None else ():
        name = frame.file_name
        if name.startswith((_JAX_ROOT, "<")):
            continue
        location = f"{name}:{frame.line_num}"
        if _SITE_PACKAGES not in name:
            return location
        fallback = fallback or location
    return fallback


def name_stack(eqn: Eqn) -> str:
    """Returns the eqn's name stack, such as ``transpose(jvp(MLP))/Dense_0``."""
    return str(eqn.source_info.name_stack)


def scan_counts(params: Mapping[str, Any]) -> tuple[int, int]:
    """Returns how many constants and how many carries the operands of a scan begin with."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


SCAN_LAYOUT_PARAMS: Final = frozenset({"num_consts", "num_carry", "ft_in", "ft_out"})
"""Parameters of scan that `scan_counts` reads."""

# --- policies of jax.checkpoint --------------------------------------------------------------

_PLAIN_POLICIES: Final = (
    "everything_saveable",
    "nothing_saveable",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
)


def policy_to_names(policy: Any) -> tuple[str, ...] | None:
    """Returns a checkpoint policy as its name and arguments, or None where it has no name.

    No policy at all is the empty tuple.
    """
    if policy is None:
        return ()
    for name in _PLAIN_POLICIES:
        if policy == getattr(jax.checkpoint_policies, name):
            return (name,)
    names = getattr(policy, "names", None)
    if type(policy).__name__ == "SaveOnlyTheseNames" and names is not None:
        return ("save_only_these_names", *sorted(names))
    factory = getattr(policy, "__qualname__", "").split(".")[0]
    closure = getattr(policy, "__closure__", None)
    if factory == "save_only_these_names" and closure:
        return (factory, *sorted(closure[0].cell_contents))
    return None


def policy_from_names(names: Sequence[str]) -> Callable[..., Any] | None:
    """Returns the checkpoint policy for what `policy_to_names` gave."""
    if not names:
        return None
    policy: Callable[..., Any] = getattr(jax.checkpoint_policies, names[0])
    return policy(*names[1:]) if names[0] == "save_only_these_names" else policy


# --- building --------------------------------------------------------------------------------


def make_jaxpr(fn: Callable[..., Any], avals: Sequence[Any]) -> Jaxpr:
    """Returns the closed jaxpr of a function of arrays."""
    return jax.make_jaxpr(fn)(*avals)


def abstract(value: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of an array, scalar or tracer, and whether its type is weak."""
    return jax.ShapeDtypeStruct(np.shape(value), value.dtype, weak_type=is_weak(value))


def is_weak(value: Any) -> bool:
    """Returns whether the dtype of a value, or of an aval, gives way to others in promotion.

    It shapes the program: JAX drops a cast to the same dtype unless it makes a weak type strong.
    """
    if isinstance(value, (bool, int, float, complex)):
        return True
    return bool(getattr(value, "weak_type", False))


def cast(value: Any, dtype: Any, *, is_weak: bool) -> Any:
    """Binds a cast also where it changes nothing but weakness, which `lax` leaves out.

    A constant that is cast becomes another constant, not an eqn.
    """
    convert = primitive("convert_element_type")
    return convert.bind(value, new_dtype=np.dtype(dtype), weak_type=is_weak, sharding=None)


@functools.partial(jax.jit, static_argnames="dtype")
def weaken(value: jax.Array, dtype: Any) -> jax.Array:
    """Returns an array with a weak type."""
    return cast(value, dtype, is_weak=True)  # type: ignore[no-any-return]


def bind_cond(
    index: Any,
    operands: Sequence[Any],
    branches: Sequence[Callable[..., Any]],
    platforms: Sequence[tuple[str, ...] | None] = (),
) -> list[Any]:
    """Binds ``cond`` on an index that is in range already; `lax.switch` would clamp it again.

    Args:
        index: which branch runs.
        operands: what each branch takes.
        branches: functions of the operands.
        platforms: for each branch the platforms it is for, None standing for all others; empty
            unless the index comes from `bind_platform_index`.
    """
    avals = [abstract(x) for x in operands]
    params: dict[str, Any] = {"branches": tuple(make_jaxpr(branch, avals) for branch in branches)}
    if platforms:
        params["branches_platforms"] = tuple(platforms)
    return list(jax_core.primitives.cond_p.bind(index, *operands, **params))


def bind_platform_index(platforms: Sequence[tuple[str, ...] | None]) -> Any:
    """Binds ``platform_index``: the position of the platform that the program is compiled for."""
    primitive, _ = _sample_eqn(
        lambda: lax.platform_dependent(cpu=lambda: np.int32(0), default=lambda: np.int32(1)),
        "platform_index",
    )
    return primitive.bind(platforms=tuple(platforms))


def bind_while(
    cond: Callable[..., Any],
    body: Callable[..., Any],
    cond_constants: Sequence[Any],
    body_constants: Sequence[Any],
    init: Sequence[Any],
) -> list[Any]:
    """Binds ``while`` with its constants in the given order."""
    carry = [abstract(x) for x in init]
    return list(
        jax_core.primitives.while_p.bind(
            *cond_constants,
            *body_constants,
            *init,
            cond_nconsts=len(cond_constants),
            cond_jaxpr=make_jaxpr(cond, [*map(abstract, cond_constants), *carry]),
            body_nconsts=len(body_constants),
            body_jaxpr=make_jaxpr(body, [*map(abstract, body_constants), *carry]),
        )
    )


def bind_scan(
    body: Callable[..., Any],
    constants: Sequence[Any],
    init: Sequence[Any],
    xs: Sequence[Any],
    *,
    length: int,
    reverse: bool,
    unroll: int,
) -> list[Any]:
    """Binds ``scan`` with its operands in the given order; `lax.scan` would sort them anew."""
    slices = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype, weak_type=is_weak(x)) for x in xs]
    jaxpr = make_jaxpr(body, [*map(abstract, [*constants, *init]), *slices])
    num_ys = len(jaxpr.out_avals) - len(init)
    layout = _scan_layout(len(constants), len(init), len(xs), num_ys)
    return list(
        jax_core.primitives.scan_p.bind(
            *constants,
            *init,
            *xs,
            jaxpr=jaxpr,
            length=length,
            reverse=reverse,
            unroll=unroll,
            **layout,
        )
    )


@functools.cache
def _scan_layout(num_consts: int, num_carry: int, num_xs: int, num_ys: int) -> dict[str, Any]:
    """Returns the parameters of a scan that only say how many operands of each kind it has.

    They are taken from a scan over scalars that this JAX traced itself, so that their form need
    not be known here.
    """

    def outer(constants: list[Any], init: list[Any], xs: list[Any]) -> Any:
        def body(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
            total = sum([*constants, *x], start=np.float32(0))
            return [c + total for c in carry], [total + np.float32(i) for i in range(num_ys)]

        return lax.scan(body, init, xs, length=1)

    def scalars(count: int, shape: tuple[int, ...] = ()) -> list[jax.ShapeDtypeStruct]:
        return [jax.ShapeDtypeStruct(shape, np.float32)] * count

    _, params = _sample_eqn(
        outer, "scan", scalars(num_consts), scalars(num_carry), scalars(num_xs, (1,))
    )
    return {name: value for name, value in params.items() if name in SCAN_LAYOUT_PARAMS}


def _sample_eqn(fn: Callable[..., Any], name: str, *avals: Any) -> tuple[Any, dict[str, Any]]:
    """Returns the primitive and the parameters of the eqn that a small function traces to.

    A primitive, or the form of its parameters, that has no public name is taken from there.
    """
    (eqn,) = [e for e in jax.make_jaxpr(fn)(*avals).eqns if e.primitive.name == name]
    return eqn.primitive, eqn.params


def bind_linear_solve(
    functions: Sequence[Callable[..., Any] | None],
    const_lengths: Sequence[int],
    operands: Sequence[Any],
) -> list[Any]:
    """Binds ``custom_linear_solve``.

    `lax.custom_linear_solve` would transpose ``matvec`` anew, and sort the constants.

    Args:
        functions: matvec, vecmat, solve and transpose_solve; the second and the last may be None.
        const_lengths: how many constants each takes.
        operands: the constants of each, then the right hand side.
    """
    constants, rest = [], [abstract(x) for x in operands]
    for count in const_lengths:
        constants.append(rest[:count])
        rest = rest[count:]
    solve, params = _sample_eqn(
        lambda b: lax.custom_linear_solve(lambda x: x, b, lambda _, y: y, symmetric=True),
        "custom_linear_solve",
        jax.ShapeDtypeStruct((), np.float32),
    )
    jaxprs = [
        None if fn is None else make_jaxpr(fn, [*consts, *rest])
        for fn, consts in zip(functions, constants, strict=True)
    ]
    form = type(params["jaxprs"])
    return list(solve.bind(*operands, const_lengths=form(*const_lengths), jaxprs=form(*jaxprs)))


def bind_closed_call(fn: Callable[..., Any], operands: Sequence[Any]) -> list[Any]:
    """Binds the call that JAX itself inserts, around the known part of a scan for instance."""
    call = jax_core.primitives.closed_call_p
    jaxpr = make_jaxpr(fn, [abstract(x) for x in operands])
    return list(call.bind(*operands, **call.get_bind_params({"call_jaxpr": jaxpr})))


def bind_remat(
    fn: Callable[..., Any],
    operands: Sequence[Any],
    *,
    prevent_cse: bool,
    differentiated: bool,
    policy: Callable[..., Any] | None,
) -> list[Any]:
    """Binds ``remat``, also one that was differentiated already, which has no public function."""
    jaxpr = open_jaxpr(make_jaxpr(fn, [abstract(x) for x in operands]))
    return list(
        jax_core.primitives.remat_p.bind(
            *operands,
            jaxpr=jaxpr,
            prevent_cse=prevent_cse,
            differentiated=differentiated,
            policy=policy,
        )
    )


def primitive(name: str) -> Any:
    """Returns the primitive that `jax.extend.core.primitives` calls ``<name>_p``."""
    return getattr(jax_core.primitives, f"{name}_p")


def is_trivial_sharding(sharding: Any) -> bool:
    """Returns whether a sharding says nothing: there is none, or its mesh has no axes."""
    return sharding is None or getattr(getattr(sharding, "mesh", None), "empty", False)


def is_unspecified(sharding: Any) -> bool:
    """Returns whether a sharding of jit was left to the compiler."""
    return type(sharding).__name__ == "UnspecifiedValue"


def eqn_as_function(jaxpr: Jaxpr, eqn: Eqn) -> tuple[Callable[..., Any], list[Any]]:
    """Returns a function that runs one eqn of a jaxpr, and the avals of its arguments.

    The function can be differentiated; a custom derivative rule of the eqn applies.
    """
    avals = [atom.aval for atom in eqn.invars]
    # Fresh variables for all operands, because two may be the same one, and some are literals.
    variables = open_jaxpr(make_jaxpr(lambda *arrays: arrays, avals)).invars
    opened = open_jaxpr(jaxpr)
    alone = opened.replace(
        constvars=[],
        invars=variables,
        outvars=list(eqn.outvars),
        eqns=[eqn.replace(invars=list(variables))],
        debug_info=opened.debug_info.with_unknown_names(),
    )
    return jax_core.jaxpr_as_fun(_close(alone)), avals


def _close(jaxpr: Jaxpr) -> Jaxpr:
    closed = getattr(jax_core, "ClosedJaxpr", None)
    return closed(jaxpr, []) if closed is not None and not hasattr(jaxpr, "with_consts") else jaxpr


def with_operands(
    jaxpr: Jaxpr, avals: Sequence[Any], taken: Sequence[int], num_passed: int = 0
) -> Jaxpr:
    """Returns a jaxpr that takes more operands than it reads.

    Args:
        jaxpr: what it computes.
        avals: of all operands.
        taken: the positions of those that ``jaxpr`` takes.
        num_passed: how many of the first operands come back ahead of the results.
    """
    variables = list(open_jaxpr(make_jaxpr(lambda *arrays: arrays, avals)).invars)
    opened = open_jaxpr(jaxpr)
    for position, variable in zip(taken, opened.invars, strict=True):
        variables[position] = variable
    widened = opened.replace(
        invars=variables,
        outvars=[*variables[:num_passed], *opened.outvars],
        debug_info=opened.debug_info.with_unknown_names(),
    )
    return type(jaxpr)(widened, jaxpr_constants(jaxpr))


def as_function(jaxpr: Jaxpr) -> Callable[..., list[Any]]:
    """Returns a function that runs a closed jaxpr on arrays."""
    run: Callable[..., list[Any]] = jax_core.jaxpr_as_fun(jaxpr)
    return run


def rule_identity(eqn: Eqn, rule: Any) -> tuple[str, str]:
    """Returns what tells two custom derivative rules apart: the primal, and the rule's source."""
    debug_info = getattr(rule, "debug_info", None)
    return str(eqn.params["call_jaxpr"]), str(getattr(debug_info, "func_src_info", ""))


def custom_name(jaxpr: Jaxpr, fallback: str) -> str:
    """Returns the name of the user's function behind a custom derivative call."""
    name = str(getattr(open_jaxpr(jaxpr).debug_info, "func_name", "") or fallback)
    return name if name.isidentifier() else fallback


def inline_to_name(inline: Any) -> str:
    """Returns how a nested jit is inlined; empty where that is left to JAX.

    JAX 0.12 has a word for each way, before that it was a bool.
    """
    if isinstance(inline, bool):
        return "jax_early" if inline else ""
    return "" if inline.value == "auto" else str(inline.value)


def inline_from_name(name: str) -> dict[str, Any]:
    """Returns the options of `jax.jit` for what `inline_to_name` gave."""
    if not name:
        return {}
    ways = getattr(jax, "Inline", None)
    return {"inline": ways(name) if ways is not None else True}


def accuracy_to_names(accuracy: Any) -> tuple[str, ...]:
    """Returns the accuracy of an elementwise primitive as words; none where it is the default."""
    if accuracy is None:
        return ()
    if isinstance(accuracy, lax.AccuracyMode):
        return (accuracy.name,)
    return tuple(float(part).hex() for part in (accuracy.atol, accuracy.rtol, accuracy.ulps))


def accuracy_from_names(names: Sequence[str]) -> Any:
    """Returns the accuracy for what `accuracy_to_names` gave."""
    if len(names) == 1:
        return lax.AccuracyMode[names[0]]
    atol, rtol, ulps = (float.fromhex(part) for part in names)
    return lax.Tolerance(atol, rtol, int(ulps))
