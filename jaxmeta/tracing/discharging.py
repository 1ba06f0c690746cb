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

from jaxmeta.tracing import binding, jaxprs, meshes, ref_places

_REF_PRIMITIVES: Final = frozenset(
    {"new_ref", "empty_ref", "get", "swap", "addupdate", "freeze", "free_ref", "run_state"}
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
    try:
        return _discharged(jaxpr)
    except (_NotDischargedError, ref_places.UnknownPlaceError):
        return jaxpr


def _discharged(jaxpr: jaxprs.Jaxpr) -> jaxprs.Jaxpr:
    opened = jaxprs.open_jaxpr(jaxpr)
    constants = jaxprs.jaxpr_constants(jaxpr)
    avals = [var.aval for var in opened.invars]
    return jaxprs.make_jaxpr(lambda *args: _run(opened, constants, args), avals)


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
    if is_plain and name not in _NESTED:
        within = eqn.replace(params={k: _without_refs_in(v, params) for k, v in params.items()})
        run, _ = jaxprs.eqn_as_function(jaxpr, within)
        return list(run(*operands))
    if name not in _NESTED:
        raise _NotDischargedError(name)
    return _NESTED[name](params, operands)


def _without_refs_in(value: Any, params: Any) -> Any:
    """Returns a parameter, whose jaxprs have references of their own alone, without these."""
    if isinstance(value, (tuple, list)):
        return type(value)(_without_refs_in(item, params) for item in value)
    if not jaxprs.is_jaxpr(value) or not _has_refs(value):
        return value
    if any(map(jaxprs.is_reference, jaxprs.open_jaxpr(value).invars)):
        return value  # a kernel, as of Pallas, which is given references by what calls it
    if "mesh" in params and "manual_axes" in params:
        axes = sorted(params["manual_axes"])
        plain = meshes.inside_shard_map(
            params["mesh"], axes, params["check_vma"], lambda: _discharged(value)
        )
    else:
        plain = _discharged(value)
    if jaxprs.open_jaxpr(value) is not value:
        return plain
    if jaxprs.jaxpr_constants(plain):
        raise _NotDischargedError("a function that closes over arrays")
    return jaxprs.open_jaxpr(plain)


# --- reading and writing -----------------------------------------------------------------------


def _transforms(params: Any, indices: Sequence[Any]) -> Any:
    return jax.tree.unflatten(params["tree"], indices)


def _get(params: Any, cell: _Cell, *indices: Any) -> list[Any]:
    return [ref_places.read(cell.value, _transforms(params, indices))]


def _swap(params: Any, cell: _Cell, value: Any, *indices: Any) -> list[Any]:
    old, cell.value = ref_places.swap(cell.value, _transforms(params, indices), value)
    return [old]


def _add(params: Any, cell: _Cell, value: Any, *indices: Any) -> list[Any]:
    cell.value = ref_places.add(cell.value, _transforms(params, indices), value)
    return []


def _empty(params: Any) -> list[Any]:
    aval = params["ty"]
    if not hasattr(aval, "shape"):
        raise _NotDischargedError("an empty reference of no array")
    return [_Cell(lax.empty(aval.shape, aval.dtype))]


def _run_state(params: Any, *values: Any) -> list[Any]:
    given = iter(values)
    variables = jaxprs.open_jaxpr(params["jaxpr"]).invars
    cells = [
        _Cell(jnp.asarray(next(given)) if is_given else _undefined(variable.aval))
        for is_given, variable in zip(params["is_initialized"], variables, strict=True)
    ]
    _run(jaxprs.open_jaxpr(params["jaxpr"]), jaxprs.jaxpr_constants(params["jaxpr"]), cells)
    return [cell.value for cell in cells]


def _undefined(aval: Any) -> Any:
    """Returns what JAX gives a reference without a first value."""
    value = np.iinfo(aval.dtype).min if np.issubdtype(aval.dtype, np.integer) else np.nan
    return lax.full(aval.shape, value, aval.dtype)


_ACCESSES: Final[dict[str, Callable[..., list[Any]]]] = {
    "new_ref": lambda params, value: [_Cell(jnp.asarray(value))],
    "empty_ref": _empty,
    "get": _get,
    "swap": _swap,
    "addupdate": _add,
    "freeze": lambda params, cell: [cell.value],
    "free_ref": lambda params, cell: [],
    "run_state": _run_state,
    # Of the indices of a reference, of which it makes arrays of one shape.
    "broadcast_to": lambda params, x: [jnp.broadcast_to(x, params["shape"])],
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
    cond_constants, body_constants = operands[:num_cond], operands[num_cond:][:num_body]
    init = operands[num_cond + num_body :]
    if any(_flags(init)):
        raise _NotDischargedError("a reference that a loop carries")
    cells = list(dict.fromkeys(x for x in operands if isinstance(x, _Cell)))
    shared = set(cells).intersection(cond_constants, body_constants)

    def run(name: str, constants: Sequence[Any], state: Any) -> tuple[list[Any], list[Any]]:
        carry, held = state
        now = {cell: _Cell(value) for cell, value in zip(cells, held, strict=True)}
        given = [now[x] if isinstance(x, _Cell) else x for x in constants]
        closed_over = jaxprs.jaxpr_constants(params[name])
        results = _run(jaxprs.open_jaxpr(params[name]), closed_over, [*given, *carry])
        changed = {
            cell for cell, value in zip(cells, held, strict=True) if now[cell].value is not value
        }
        # JAX gives the condition what a reference held before the loop.
        if changed & shared or (changed and name == "cond_jaxpr"):
            raise _NotDischargedError("a reference that a loop's condition reads or writes")
        return results, [now[cell].value for cell in cells]

    def cond(state: Any) -> Any:
        (goes_on,), _ = run("cond_jaxpr", cond_constants, state)
        return goes_on

    start = init, [cell.value for cell in cells]
    carry, held = lax.while_loop(
        cond, lambda state: run("body_jaxpr", body_constants, state), start
    )
    _write_back(cells, held)
    return list(carry)


def _remat(params: Any, operands: list[Any]) -> list[Any]:
    run = _pure(params["jaxpr"], _flags(operands))
    options = {name: params[name] for name in ("prevent_cse", "differentiated", "policy")}

    def flat(*values: Any) -> list[Any]:
        results, held = run(*values)
        return [*results, *held]

    found = binding.bind_remat(flat, _values(operands), **options)
    count = len(found) - sum(_flags(operands))
    _write_back(operands, found[count:])
    return found[:count]


_NESTED: Final[dict[str, Callable[..., list[Any]]]] = {
    "jit": _jit,
    "pjit": _jit,
    "cond": _cond,
    "scan": _scan,
    "while": _while,
    "remat": _remat,
    "remat2": _remat,
    "checkpoint": _remat,
}
