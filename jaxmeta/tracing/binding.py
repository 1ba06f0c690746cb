"""Structured primitives (scan, while, cond, remat), bound as the original program bound them.

Their public functions reorder operands, which would make another program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core as jax_core

from jaxmeta.tracing.jaxprs import (
    SCAN_LAYOUT_PARAMS,
    abstract,
    abstract_slice,
    jaxpr_constants,
    make_jaxpr,
    open_jaxpr,
    subjaxprs,
)


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
    return _platform_index().bind(platforms=tuple(platforms))


@functools.cache
def _platform_index() -> Any:
    primitive, _ = _sample_eqn(
        lambda: lax.platform_dependent(cpu=lambda: np.int32(0), default=lambda: np.int32(1)),
        "platform_index",
    )
    return primitive


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
    slices = [abstract_slice(x) for x in xs]
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


def _scan_layout(num_consts: int, num_carry: int, num_xs: int, num_ys: int) -> dict[str, Any]:
    """Returns the parameters of a scan that only say how many operands of each kind it has."""
    if "num_consts" in _sample_scan_layout(0, 1, 0, 0):  # plain numbers, until JAX 0.12
        return {"num_consts": num_consts, "num_carry": num_carry}
    return _sample_scan_layout(num_consts, num_carry, num_xs, num_ys)


@functools.cache
def _sample_scan_layout(
    num_consts: int, num_carry: int, num_xs: int, num_ys: int
) -> dict[str, Any]:
    """Returns these parameters of a scan over scalars that this JAX traced itself.

    So their form need not be known here.
    """

    def outer(constants: list[Any], init: list[Any], xs: list[Any]) -> Any:
        def body(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
            total: Any = np.float32(1)
            for value in (*constants, *x):
                total = lax.add(total, value)
            return [lax.add(c, total) for c in carry], [lax.neg(total) for _ in range(num_ys)]

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


@functools.cache
def _primitives_within(fn: Callable[..., Any], *avals: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def search(jaxpr: Any) -> None:
        for eqn in open_jaxpr(jaxpr).eqns:
            found.setdefault(eqn.primitive.name, eqn.primitive)
            for inner in subjaxprs(eqn):
                search(inner)

    search(make_jaxpr(fn, avals))
    return found


def primitive_within(fn: Callable[..., Any], name: str, *avals: Any) -> Any:
    """Returns a primitive that has no public name, from what a public function traces to."""
    return _primitives_within(fn, *avals)[name]


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
    solve, form = _linear_solve()
    jaxprs = [
        None if fn is None else make_jaxpr(fn, [*consts, *rest])
        for fn, consts in zip(functions, constants, strict=True)
    ]
    return list(solve.bind(*operands, const_lengths=form(*const_lengths), jaxprs=form(*jaxprs)))


@functools.cache
def _linear_solve() -> tuple[Any, type]:
    """Returns the primitive, and the type of its parameters: a field for each function."""
    primitive, params = _sample_eqn(
        lambda b: lax.custom_linear_solve(lambda x: x, b, lambda _, y: y, symmetric=True),
        "custom_linear_solve",
        jax.ShapeDtypeStruct((), np.float32),
    )
    return primitive, type(params["jaxprs"])


def bind_select_and_scatter(
    operand: Any,
    source: Any,
    init_value: Any,
    select: Callable[..., Sequence[Any]],
    scatter: Callable[..., Sequence[Any]],
    **geometry: Any,
) -> Any:
    """Binds ``select_and_scatter``, which has no public function.

    Args:
        operand: what windows move over.
        source: what is scattered.
        init_value: where scattering starts from.
        select: says of two elements whether the first is chosen.
        scatter: combines an element with one of the source.
        **geometry: ``window_dimensions``, ``window_strides`` and ``padding``.
    """
    scalar = jax.ShapeDtypeStruct((), operand.dtype)
    params: dict[str, Any] = {}
    for name, fn in (("select", select), ("scatter", scatter)):
        jaxpr = make_jaxpr(fn, [scalar, scalar])
        params[f"{name}_jaxpr"] = open_jaxpr(jaxpr)
        params[f"{name}_consts"] = tuple(jaxpr_constants(jaxpr))
    return jax_core.primitives.select_and_scatter_p.bind(
        operand, source, init_value, **params, **geometry
    )


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
