"""Scans: loops over the slices of arrays.

A scan is a call of a function that says it with StatelessWhile; the scanned function stays a
function of its own, which reading takes from the call's attrs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta import values
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops._definition import LoweringContext, bools, example, f32, i32, lowering, restores
from jaxmeta.ops._operands import avals_of
from jaxmeta.tracing import binding, dimensions, jaxprs
from jaxmeta.tracing.dimensions import Size


@lowering("scan")
def lower_scan(
    ctx: LoweringContext,
    *inputs: Edge,
    jaxpr: Any,
    length: Any,
    reverse: bool,
    unroll: int,
    num_consts: int | None = None,
    num_carry: int | None = None,
    ft_in: Any = None,
    ft_out: Any = None,
    linear: Any = None,
    _split_transpose: bool = False,
) -> list[Edge]:
    del num_consts, num_carry, ft_in, ft_out  # one of these pairs is there; see scan_counts
    del linear, _split_transpose  # how its derivative is made, which JAX decides anew
    consts, carry = jaxprs.scan_counts(ctx.eqn.params)
    body = ctx.function(jaxpr, "scan_body")
    shapes = [length, *(edge.shape for edge in inputs), *(aval.shape for aval in ctx.out_avals)]
    loop = _ScanLoop(
        body,
        dimensions.plain(length),
        bool(reverse),
        consts,
        carry,
        tuple(ctx.out_avals),
        bool(ctx.size_operands(jaxpr, needed=dimensions.is_symbolic(shapes))[0]),
    )
    return ctx.call(
        loop.build(ctx, inputs),
        *inputs,
        primitive="scan",
        body=values.FunctionRef(body),
        length=loop.length,
        reverse=loop.reverse,
        unroll=int(unroll),
        num_consts=consts,
        num_carry=carry,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _ScanLoop:
    """A scan as a StatelessWhile over an index, the operands and the results filled so far."""

    body: str
    length: Size
    reverse: bool
    num_consts: int
    num_carry: int
    out_avals: tuple[Any, ...]
    is_sized: bool

    def build(self, ctx: LoweringContext, inputs: Sequence[Edge]) -> str:
        """Returns the name of the library function that scans."""
        index = jax.ShapeDtypeStruct((), np.int32)
        avals = avals_of(inputs)
        stacked = list(self.out_avals[self.num_carry :])
        cond, step = (
            ctx.build_function(name, [index, *avals, *stacked], fill, takes_sizes=self.is_sized)
            for name, fill in (("scan_cond", self._fill_cond), ("scan_step", self._fill_step))
        )

        def fill(loop: LoweringContext, operands: list[Edge]) -> list[Edge]:
            sizes, attrs = loop.size_operands(needed=self.is_sized)
            index = loop.constant(0, np.int32)
            results = loop.node(
                "StatelessWhile",
                [*sizes, index, *operands, *(_zeros(loop, a) for a in stacked)],
                cond=values.FunctionRef(cond),
                body=values.FunctionRef(step),
                **attrs,
            )[len(sizes) :]
            carry = 1 + self.num_consts
            return [*results[carry : carry + self.num_carry], *results[1 + len(operands) :]]

        return ctx.build_function("scan", avals, fill, takes_sizes=self.is_sized)

    def _fill_cond(self, ctx: LoweringContext, operands: list[Edge]) -> list[Edge]:
        return ctx.node("Less", operands[0], ctx.constant(self.length, np.int32))

    def _fill_step(self, ctx: LoweringContext, operands: list[Edge]) -> list[Edge]:
        count, *rest = operands
        place = count
        if self.reverse:
            (place,) = ctx.node("Sub", ctx.constant(self.length - 1, np.int32), count)
        num_ys = len(self.out_avals) - self.num_carry
        fixed = self.num_consts + self.num_carry
        xs, stacked = rest[fixed : len(rest) - num_ys], rest[len(rest) - num_ys :]
        zero = ctx.constant(0, np.int32)
        slices = [edge for x in xs for edge in ctx.node("GatherV2", x, place, zero)]
        results = ctx.node(self.body, *rest[:fixed], *slices)
        carry, ys = results[: self.num_carry], results[self.num_carry :]
        (next_count,) = ctx.node("AddV2", count, ctx.constant(1, np.int32))
        stacked = [
            _write_slice(ctx, whole, y, place, len(aval.shape))
            for whole, y, aval in zip(stacked, ys, self.out_avals[self.num_carry :], strict=True)
        ]
        sizes, _ = ctx.size_operands(needed=self.is_sized)
        return [*sizes, next_count, *rest[: self.num_consts], *carry, *xs, *stacked]


def _zeros(ctx: LoweringContext, aval: Any) -> Edge:
    (filled,) = ctx.node(
        "Fill", ctx.constant(aval.shape, np.int32), ctx.constant(np.zeros((), aval.dtype))
    )
    return filled


def _write_slice(ctx: LoweringContext, whole: Edge, part: Edge, place: Edge, rank: int) -> Edge:
    """Returns the array with one entry of its leading axis replaced."""
    zero = ctx.constant(0, np.int32)
    (begin,) = ctx.node("Pack", [place, *[zero] * (rank - 1)])
    (update,) = ctx.node("ExpandDims", part, zero)
    (written,) = ctx.node("XlaDynamicUpdateSlice", whole, update, begin)
    return written


@restores("scan")
def restore_scan(
    *inputs: Any,
    body: Any,
    length: int,
    reverse: bool,
    unroll: int,
    num_consts: int,
    num_carry: int,
) -> list[Any]:
    fixed = num_consts + num_carry
    return binding.bind_scan(
        body,
        inputs[:num_consts],
        inputs[num_consts:fixed],
        inputs[fixed:],
        length=length,
        reverse=reverse,
        unroll=unroll,
    )


def _mixed_scan(a: Any, c: Any, xs: Any, flags: Any, **options: Any) -> Any:
    """Scans with a constant, carries and slices of several dtypes."""

    def body(carry: Any, x: Any) -> Any:
        total, count = carry
        value, flag = x
        total = total * a + jnp.where(flag, value, 0.0)
        y = (total.astype(jnp.bfloat16), count, ~flag, jax.jit(jnp.sin)(value))
        return (total, count + 1), y

    (total, count), (low, counts, inverted, sines) = lax.scan(
        body, (c, jnp.int32(3)), (xs, flags), **options
    )
    return total, count, low.astype(jnp.float32), counts, inverted, sines


_SCANNED = (f32(), f32(4), f32(5, 4), bools(5))
example(lambda *args: _mixed_scan(*args), *_SCANNED)
example(lambda *args: _mixed_scan(*args, reverse=True), *_SCANNED)
example(lambda *args: _mixed_scan(*args, unroll=2), *_SCANNED)
example(lambda *args: _mixed_scan(*args, unroll=True), *_SCANNED)
example(lambda x: lax.scan(lambda c, _: (c * 2.0, c), x, length=3), f32(2))
example(lambda x: lax.scan(lambda c, a: (c, a * 2.0), None, x), f32(3, 2))
example(lambda x: lax.scan(lambda c, a: (c + a, None), 0.0, x), f32(0))
example(lambda x: lax.scan(lambda c, a: lax.scan(lambda d, b: (d * b, d), c, a), 1.0, x), f32(3, 4))
example(lambda w, *rest: jax.grad(lambda v: jnp.sum(_mixed_scan(v, *rest)[0]))(w), *_SCANNED)
example(
    lambda x: jax.grad(lambda v: jax.checkpoint(lambda u: _rnn(u))(v))(x), f32(3), gradient=False
)
example(lambda x: lax.map(jnp.sin, x), f32(3, 2))
example(lambda x: lax.map(jnp.sin, x, batch_size=2), f32(5, 2))
example(lambda x: lax.associative_scan(jnp.multiply, x), f32(5, 2))
example(
    lambda x: lax.scan(
        lambda c, a: (
            lax.cond(a > 0, lambda u: u * 2.0, jnp.sin, c),
            lax.cond(True, jnp.cos, jnp.sin, a),
        ),
        1.0,
        x,
    ),
    f32(4),
)
example(lambda x: jax.vmap(lambda v: lax.scan(lambda c, a: (c * a, c), v[0], v))(x), f32(2, 3))
example(
    lambda s, x: lax.scan(
        lambda k, a: (jax.random.split(k)[0], jax.random.normal(k, a.shape) + a),
        jax.random.key(s),
        x,
    )[1],
    i32(),
    f32(3, 2),
)
example(
    lambda s, x: lax.scan(
        lambda c, k: (c + jax.random.uniform(k), k), x, jax.random.split(jax.random.key(s), 3)
    )[0],
    i32(),
    f32(2),
)


def _rnn(x: Any) -> Any:
    return lax.scan(lambda c, a: (jnp.sin(c) * a, c), 1.0, x)[0]
