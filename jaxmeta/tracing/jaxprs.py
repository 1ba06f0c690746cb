"""What jaxmeta reads from and gives to jaxprs, and all that differs between JAX versions there.

The rest of the package sees plain facts: shapes, dtypes, names, positions in the user's source.
`binding` binds structured primitives, `eqn_params` has the words for what parameters hold.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import jax
import numpy as np
from jax import lax
from jax.extend import core as jax_core
from jax.extend import random as jax_random

from jaxmeta import dtypes
from jaxmeta.tracing import dimensions, meshes

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


def only_jit(jaxpr: Jaxpr) -> Jaxpr | None:
    """Returns what an open jaxpr's only equation jits, where it is nothing but that call."""
    eqns = jaxpr.eqns
    if len(eqns) != 1 or eqns[0].primitive.name not in ("jit", "pjit"):
        return None
    (eqn,) = eqns
    is_plain = list(eqn.outvars) == list(jaxpr.outvars) and not any(
        isinstance(atom, jax_core.Literal) for atom in eqn.invars
    )
    is_placed = not all(
        meshes.is_unspecified(s)
        for s in (*eqn.params["in_shardings"], *eqn.params["out_shardings"])
    )
    return eqn.params["jaxpr"] if is_plain and not is_placed else None


def subjaxprs(eqn: Eqn) -> Iterator[Jaxpr]:
    """Yields the jaxprs among an eqn's parameters."""
    for value in eqn.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if is_jaxpr(item):
                yield item


def is_symbolic(jaxpr: Jaxpr) -> bool:
    """Returns whether shapes or parameters in a jaxpr have symbolic dimensions."""
    opened = open_jaxpr(jaxpr)
    variables = [*opened.constvars, *opened.invars]
    if any(dimensions.is_symbolic(getattr(v.aval, "shape", ())) for v in variables):
        return True
    for eqn in opened.eqns:
        if any(dimensions.is_symbolic(getattr(v.aval, "shape", ())) for v in eqn.outvars):
            return True
        if any(map(dimensions.is_symbolic, eqn.params.values())):
            return True
        if any(map(is_symbolic, subjaxprs(eqn))):
            return True
    return False


def literal_value(atom: Atom) -> np.ndarray[Any, Any] | None:
    """Returns the value of a literal as an array of its aval's dtype, or None for a variable."""
    if not isinstance(atom, jax_core.Literal):
        return None
    aval: Any = atom.aval
    if is_float0(aval.dtype):
        return np.zeros(aval.shape, np.bool_)
    return np.asarray(atom.val, dtype=aval.dtype)


def is_key_dtype(dtype: Any) -> bool:
    """Returns whether a dtype is that of typed PRNG keys."""
    return bool(jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key))


def is_float0(dtype: Any) -> bool:
    """Returns whether a dtype is that of the tangents of integers, which hold nothing."""
    return bool(dtype == jax.dtypes.float0)


def is_reference(atom: Atom) -> bool:
    """Returns whether an atom is a mutable array, rather than its value."""
    return hasattr(atom.aval, "inner_aval")


def is_token(aval: Any) -> bool:
    """Returns whether an aval is that of tokens, which only order effects."""
    return type(aval).__name__ == "AbstractToken"  # which has no public name


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
    """Returns shape and dtype as the graph holds them: typed keys as their uint32 data.

    Tangents of integers are bools, as XLA has them. Scales of blocks are their bits, and tokens
    bools without axes.
    """
    if is_token(aval):
        return jax.ShapeDtypeStruct((), np.bool_)
    if is_float0(aval.dtype):
        return jax.ShapeDtypeStruct(aval.shape, np.bool_)
    if dtypes.is_scale(aval.dtype):
        return jax.ShapeDtypeStruct(aval.shape, np.uint8)
    if is_key_dtype(aval.dtype):
        _, data_shape = key_layout(aval.dtype)
        return jax.ShapeDtypeStruct((*aval.shape, *data_shape), np.uint32)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def has_64_bit_types() -> bool:
    """Returns whether this process has JAX's 64-bit types switched on."""
    config: Any = jax.config
    return bool(config.jax_enable_x64)


def is_wide(dtype: Any) -> bool:
    """Returns whether JAX has a dtype only where 64-bit types are switched on."""
    return str(dtype) in ("float64", "int64", "uint64", "complex128")


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


# --- building --------------------------------------------------------------------------------


def make_jaxpr(fn: Callable[..., Any], avals: Sequence[Any]) -> Jaxpr:
    """Returns the closed jaxpr of a function of arrays, which may be of 64 bits in any case."""
    with jax.enable_x64(has_64_bit_types() or any(is_wide(aval.dtype) for aval in avals)):
        return jax.make_jaxpr(fn)(*avals)


def is_refusal_to_differentiate(error: BaseException | None) -> bool:
    """Returns whether JAX raised this as it was to differentiate by what a rule closes over."""
    return type(error).__name__ == "CustomVJPException"  # which has no public name


def abstract(value: Any) -> Any:
    """Returns the shape and dtype of an array, scalar or tracer, and whether its type is weak.

    Where the type says more, as inside of `jax.shard_map` or on explicit axes, it is the aval.
    """
    aval = jax.typeof(value)
    if meshes.is_on_mesh(aval):
        return aval
    return jax.ShapeDtypeStruct(np.shape(value), value.dtype, weak_type=is_weak(value))


def abstract_slice(value: Any) -> Any:
    """Returns what `abstract` would of a slice of an array along its first axis."""
    aval = jax.typeof(value)
    if meshes.is_on_mesh(aval):
        sliced = make_jaxpr(lambda x: lax.index_in_dim(x, 0, keepdims=False), [aval])
        return sliced.out_avals[0]
    return jax.ShapeDtypeStruct(value.shape[1:], value.dtype, weak_type=is_weak(value))


def without_sharding(aval: Any) -> jax.ShapeDtypeStruct:
    """Returns an aval that says nothing about a mesh."""
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=is_weak(aval))


def is_weak(value: Any) -> bool:
    """Returns whether the dtype of a value, or of an aval, gives way to others in promotion.

    It shapes the program: JAX drops a cast to the same dtype unless it makes a weak type strong.
    """
    if isinstance(value, (int, float, complex)):  # numpy's scalars may be floats too
        return not isinstance(value, (bool, np.generic))
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


def primitive(name: str) -> Any:
    """Returns the primitive that `jax.extend.core.primitives` calls ``<name>_p``."""
    return getattr(jax_core.primitives, f"{name}_p")


def argument_names(jaxpr: Jaxpr) -> list[str]:
    """Returns what a jaxpr's arguments were in the traced function: ``state['w']``."""
    return [str(name) for name in open_jaxpr(jaxpr).debug_info.arg_names or ()]


def holds_tracers(jaxpr: Jaxpr) -> bool:
    """Returns whether a jaxpr closes over values of a trace that has ended."""
    return any(isinstance(value, jax.core.Tracer) for value in jaxpr_constants(jaxpr))


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


def implementation(eqn: Eqn) -> Jaxpr:
    """Returns the jaxpr of what a primitive that a library registered runs outside of jit."""

    def run(*arrays: Any) -> Any:
        return eqn.primitive.impl(*arrays, **eqn.params)

    return make_jaxpr(run, [atom.aval for atom in eqn.invars])


def _close(jaxpr: Jaxpr) -> Jaxpr:
    return with_constants(jaxpr, [])


def with_constants(jaxpr: Jaxpr, constants: Sequence[Any]) -> Jaxpr:
    """Returns a closed jaxpr; primitives keep some open ones with their constants beside them."""
    if hasattr(jaxpr, "jaxpr"):
        return jaxpr
    if hasattr(jaxpr, "with_consts"):
        is_given = not constants or len(jaxpr_constants(jaxpr)) == len(constants)
        return jaxpr if is_given else jaxpr.with_consts(list(constants))
    closed: Any = jax_core.ClosedJaxpr
    return closed(jaxpr, list(constants))


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


def rule_source(rule: Any) -> str:
    """Returns where a custom derivative rule was written, or the name of its primitive."""
    debug_info = getattr(rule, "debug_info", None)
    return str(getattr(debug_info, "func_src_info", "") or getattr(rule, "name", ""))


def count_eqns(jaxpr: Jaxpr) -> int:
    """Returns how many eqns a jaxpr has, with those of the jaxprs in it."""
    eqns = open_jaxpr(jaxpr).eqns
    return sum(1 + sum(map(count_eqns, subjaxprs(eqn))) for eqn in eqns)


def fingerprint(jaxpr: Jaxpr) -> tuple[Any, ...]:
    """Returns what tells two jaxprs apart: their text, and the arrays that they close over."""
    constants = [np.asarray(value) for value in jaxpr_constants(jaxpr)]
    arrays = [(x.dtype, x.shape, x.tobytes()) for x in constants]
    return re.sub("0x[0-9a-f]+", "", str(jaxpr)), *arrays


def custom_name(jaxpr: Jaxpr, fallback: str) -> str:
    """Returns the name of the user's function behind a custom derivative call."""
    name = str(getattr(open_jaxpr(jaxpr).debug_info, "func_name", "") or fallback)
    return name if name.isidentifier() else fallback
