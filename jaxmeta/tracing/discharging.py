"""Programs with mutable arrays (`jax.new_ref`), as programs of plain arrays.

What a reference holds becomes a value that is passed on: into nested functions, around loops, and
out of branches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta.tracing import jaxprs

_REF_PRIMITIVES: Final = frozenset(
    {"new_ref", "get", "swap", "addupdate", "freeze", "free_ref", "run_state"}
)


class _NotDischargedError(Exception):
    """A reference is used in a way that is not known here."""


class _Cell:
    """What a reference holds while a jaxpr is run."""

    def __init__(self, value: Any) -> None:
        self.value = value


def without_refs(jaxpr: jaxprs.Jaxpr) -> jaxprs.Jaxpr:
    """Returns a closed jaxpr whose references became plain values; itself where it has none.

    Where a reference is used in a way that is not known here, it stays, and is refused later.
    """
    if not _has_refs(jaxpr):
        return jaxpr
    opened = jaxprs.open_jaxpr(jaxpr)
    constants = jaxprs.jaxpr_constants(jaxpr)
    avals = [var.aval for var in opened.invars]
    try:
        return jaxprs.make_jaxpr(lambda *args: _run(opened, constants, args), avals)
    except _NotDischargedError:
        return jaxpr


def _has_refs(jaxpr: jaxprs.Jaxpr) -> bool:
    return any(
        eqn.primitive.name in _REF_PRIMITIVES or any(map(_has_refs, jaxprs.subjaxprs(eqn)))
        for eqn in jaxpr.eqns
    )


def _run(jaxpr: jaxprs.Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """Runs an open jaxpr; references among its operands and results are cells."""
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, constants, strict=True))
    env.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: jaxprs.Atom) -> Any:
        # Not `literal_value`, which forgets that a literal's type is weak.
        return atom.val if jaxprs.literal_value(atom) is not None else env[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        results = _run_eqn(jaxpr, eqn, operands)
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _run_eqn(jaxpr: jaxprs.Jaxpr, eqn: jaxprs.Eqn, operands: list[Any]) -> list[Any]:
    name, params = eqn.primitive.name, eqn.params
    if name in _ACCESSES:
        return _ACCESSES[name](params, *operands)
    is_plain = not any(isinstance(x, _Cell) for x in operands)
    if is_plain and not any(map(_has_refs, jaxprs.subjaxprs(eqn))):
        run, _ = jaxprs.eqn_as_function(jaxpr, eqn)
        return list(run(*operands))
    if name not in _NESTED:
        raise _NotDischargedError(name)
    return _NESTED[name](params, operands)


# --- reading and writing -----------------------------------------------------------------------


def _place(params: Any, indices: Sequence[Any], shape: Sequence[int]) -> Any:
    """Returns what an access's operands say, as an index for `jax.numpy`."""
    transforms = jax.tree.unflatten(params["tree"], indices)
    if not transforms:
        return ...
    if len(transforms) > 1 or not hasattr(transforms[0], "indices"):
        raise _NotDischargedError("a reference to a part of a reference")
    return tuple(map(_plain_index, transforms[0].indices))


def _plain_index(index: Any) -> Any:
    if not hasattr(index, "size") or not hasattr(index, "stride"):
        return index
    if not isinstance(index.start, (int, np.integer)):
        raise _NotDischargedError("a slice of a reference from a place that is computed")
    return slice(index.start, index.start + index.size * index.stride, index.stride)


def _get(params: Any, cell: _Cell, *indices: Any) -> list[Any]:
    return [cell.value[_place(params, indices, cell.value.shape)]]


def _swap(params: Any, cell: _Cell, value: Any, *indices: Any) -> list[Any]:
    place = _place(params, indices, cell.value.shape)
    old = cell.value[place]
    cell.value = cell.value.at[place].set(value)
    return [old]


def _add(params: Any, cell: _Cell, value: Any, *indices: Any) -> list[Any]:
    place = _place(params, indices, cell.value.shape)
    cell.value = cell.value.at[place].add(value)
    return []


def _run_state(params: Any, *values: Any) -> list[Any]:
    if not all(params.get("is_initialized", ())):
        raise _NotDischargedError("a reference without a first value")
    cells = [_Cell(jnp.asarray(value)) for value in values]
    _run(jaxprs.open_jaxpr(params["jaxpr"]), jaxprs.jaxpr_constants(params["jaxpr"]), cells)
    return [cell.value for cell in cells]


_ACCESSES: Final[dict[str, Callable[..., list[Any]]]] = {
    "new_ref": lambda params, value: [_Cell(jnp.asarray(value))],
    "get": _get,
    "swap": _swap,
    "addupdate": _add,
    "freeze": lambda params, cell: [cell.value],
    "free_ref": lambda params, cell: [],
    "run_state": _run_state,
}

# --- nested jaxprs -----------------------------------------------------------------------------


def _values(operands: Sequence[Any]) -> list[Any]:
    return [x.value if isinstance(x, _Cell) else x for x in operands]


def _pure(jaxpr: jaxprs.Jaxpr, is_cell: Sequence[bool]) -> Callable[..., tuple[Any, Any]]:
    """Returns a closed jaxpr as a function of values: its results, and what its cells hold then."""

    def run(*values: Any) -> tuple[list[Any], list[Any]]:
        operands = [_Cell(x) if flag else x for x, flag in zip(values, is_cell, strict=True)]
        results = _run(jaxprs.open_jaxpr(jaxpr), jaxprs.jaxpr_constants(jaxpr), operands)
        if any(isinstance(x, _Cell) for x in results):
            raise _NotDischargedError("a reference that leaves its function")
        return results, [x.value for x in operands if isinstance(x, _Cell)]

    return run


def _flags(operands: Sequence[Any]) -> list[bool]:
    return [isinstance(x, _Cell) for x in operands]


def _write_back(operands: Sequence[Any], held: Sequence[Any]) -> None:
    cells = [x for x in operands if isinstance(x, _Cell)]
    for cell, value in zip(cells, held, strict=True):
        cell.value = value


def _jit(params: Any, operands: list[Any]) -> list[Any]:
    run = _pure(params["jaxpr"], _flags(operands))
    run.__name__ = params["name"]
    results, held = jax.jit(run)(*_values(operands))
    _write_back(operands, held)
    return list(results)


def _cond(params: Any, operands: list[Any]) -> list[Any]:
    index, *rest = operands
    branches = [_pure(branch, _flags(rest)) for branch in params["branches"]]
    results, held = lax.switch(index, branches, *_values(rest))
    _write_back(rest, held)
    return list(results)


def _scan(params: Any, operands: list[Any]) -> list[Any]:
    num_consts, num_carry = jaxprs.scan_counts(params)
    flags = _flags(operands)
    if any(flags[num_consts:]):
        raise _NotDischargedError("a reference that a scan takes apart")
    run = _pure(params["jaxpr"], flags)
    constants, init = operands[:num_consts], operands[num_consts : num_consts + num_carry]

    def body(state: Any, xs: Any) -> Any:
        carry, held = state
        given = iter(held)
        now = [next(given) if isinstance(x, _Cell) else x for x in constants]
        results, held = run(*now, *carry, *xs)
        return (results[:num_carry], held), results[num_carry:]

    held = [x.value for x in constants if isinstance(x, _Cell)]
    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    (carry, held), ys = lax.scan(body, (init, held), operands[num_consts + num_carry :], **options)
    _write_back(constants, held)
    return [*carry, *ys]


def _while(params: Any, operands: list[Any]) -> list[Any]:
    num_cond, num_body = params["cond_nconsts"], params["body_nconsts"]
    constants = operands[num_cond : num_cond + num_body]
    flags = _flags(operands)
    if any(flags[:num_cond]) or any(flags[num_cond + num_body :]):
        raise _NotDischargedError("a reference in the condition of a loop")
    count = len(operands) - num_cond - num_body
    cond = _pure(params["cond_jaxpr"], [False] * (num_cond + count))
    run = _pure(params["body_jaxpr"], [*_flags(constants), *[False] * count])

    def body(state: Any) -> Any:
        carry, held = state
        given = iter(held)
        now = [next(given) if isinstance(x, _Cell) else x for x in constants]
        return run(*now, *carry)

    start = operands[num_cond + num_body :], [x.value for x in constants if isinstance(x, _Cell)]
    carry, held = lax.while_loop(
        lambda state: cond(*operands[:num_cond], *state[0])[0][0], body, start
    )
    _write_back(constants, held)
    return list(carry)


_NESTED: Final[dict[str, Callable[..., list[Any]]]] = {
    "jit": _jit,
    "pjit": _jit,
    "cond": _cond,
    "scan": _scan,
    "while": _while,
}
