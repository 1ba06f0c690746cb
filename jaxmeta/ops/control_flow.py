"""Loops and branches, and the primitives that only guide the compiler.

JAX's structured primitives keep their operands in order: constants, carry, slices. TensorFlow's
functional ops take one list, so a loop there carries its constants too, and its body passes them
through. A scan is a call of a function that says it with StatelessWhile; the scanned function
stays a function of its own, which reading takes from the call's attrs.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxmeta import dtypes, jaxprs, values
from jaxmeta.graph import Edge
from jaxmeta.ops._definition import (
    PRIMITIVE_ATTR,
    LoweringContext,
    bools,
    example,
    f32,
    i32,
    is_jax_array,
    kernel,
    lowering,
    restores,
)


def _avals(edges: Sequence[Edge]) -> list[Any]:
    return [
        jax.ShapeDtypeStruct(edge.shape, dtypes.dtype_from_number(edge.number)) for edge in edges
    ]


def _function_ref(ctx: LoweringContext, jaxpr: Any, name: str) -> values.FunctionRef:
    return values.FunctionRef(ctx.function(jaxpr, name))


# --- while -------------------------------------------------------------------------------------


@lowering("while")
def lower_while(
    ctx: LoweringContext,
    *inputs: Edge,
    cond_jaxpr: Any,
    body_jaxpr: Any,
    cond_nconsts: int,
    body_nconsts: int,
) -> list[Edge]:
    avals = [atom.aval for atom in ctx.eqn.invars]
    num_consts = cond_nconsts + body_nconsts
    carry = range(num_consts, len(inputs))
    cond = jaxprs.with_operands(cond_jaxpr, avals, [*range(cond_nconsts), *carry])
    body = jaxprs.with_operands(
        body_jaxpr, avals, [*range(cond_nconsts, num_consts), *carry], num_consts
    )
    attrs: dict[str, Any] = {}
    if cond_nconsts:
        attrs["_jax_cond_nconsts"] = cond_nconsts
    if body_nconsts:
        attrs["_jax_body_nconsts"] = body_nconsts
    if cond.out_avals[0].shape:
        attrs["_jax_cond"] = _function_ref(ctx, cond, "while_cond")
        attrs["_jax_body"] = _function_ref(ctx, body, "while_body")
        cond, body = _any_of_batch(cond, body, num_consts)
    outputs = ctx.node(
        "StatelessWhile",
        list(inputs),
        cond=_function_ref(ctx, cond, "while_cond"),
        body=_function_ref(ctx, body, "while_body"),
        **attrs,
    )
    return outputs[num_consts:]


def _any_of_batch(cond: Any, body: Any, num_consts: int) -> tuple[Any, Any]:
    """Returns the loop that runs while any predicate of a batch holds.

    `jax.vmap` makes such loops; elements whose own predicate is false keep their values.
    """
    run_cond, run_body = jaxprs.as_function(cond), jaxprs.as_function(body)

    def any_cond(*operands: Any) -> Any:
        (holds,) = run_cond(*operands)
        return lax.reduce_or(holds, tuple(range(holds.ndim)))

    def select_body(*operands: Any) -> list[Any]:
        (holds,) = run_cond(*operands)
        results = run_body(*operands)
        kept = results[:num_consts]
        for old, new in zip(operands[num_consts:], results[num_consts:], strict=True):
            mask = lax.broadcast_in_dim(holds, new.shape, tuple(range(holds.ndim)))
            kept.append(lax.select(mask, new, old))
        return kept

    return jaxprs.make_jaxpr(any_cond, cond.in_avals), jaxprs.make_jaxpr(select_body, body.in_avals)


@kernel("StatelessWhile")
def stateless_while(
    *input: Any,
    cond: Any,
    body: Any,
    _jax_cond: Any = None,
    _jax_body: Any = None,
    _jax_cond_nconsts: int = 0,
    _jax_body_nconsts: int = 0,
) -> list[Any]:
    if not all(map(_is_array, input)):
        return _run_while(None, cond, body, input)
    split = _jax_cond_nconsts
    num_consts = split + _jax_body_nconsts
    run_cond, run_body = _jax_cond or cond, _jax_body or body
    # The functions take all operands; those that they only pass through may be anything.
    before, after = [None] * split, [None] * _jax_body_nconsts

    def holds(*operands: Any) -> Any:
        (predicate,) = run_cond(*operands[:split], *after, *operands[split:])
        return predicate if _jax_cond else _as_predicate(predicate)

    def step(*operands: Any) -> Any:
        return run_body(*before, *operands)[num_consts:]

    constants, carry = input[:num_consts], input[num_consts:]
    results = jaxprs.bind_while(holds, step, constants[:split], constants[split:], carry)
    return [*constants, *results]


example(
    lambda limit, factor, x: lax.while_loop(
        lambda c: jnp.sum(c) < limit, lambda c: c * factor + 1.0, x
    ),
    f32(low=9.0, high=20.0),
    f32(low=1.5, high=2.0),
    f32(3, low=0.1, high=0.2),
    gradient=False,
)
example(lambda x: lax.fori_loop(0, 5, lambda i, c: c * 0.5 + i, x), f32(3))
example(
    lambda n, x: lax.fori_loop(0, n, lambda i, c: c * 0.5 + i, x), i32(), f32(3), gradient=False
)
example(
    lambda x: lax.while_loop(lambda c: c[0] < 7, lambda c: (c[0] + 2, c[1] * 0.5), (0, x)),
    f32(3),
    gradient=False,
)
example(
    lambda x: jax.vmap(lambda v: lax.while_loop(lambda c: c < 5.0, lambda c: c + v, v))(x),
    f32(4, low=0.5, high=2.0),
    gradient=False,
)
example(
    lambda x: jax.vmap(
        lambda v: lax.while_loop(lambda c: c[0] < 3.0, lambda c: (c[0] + v, c[1] * 0.5), (v, x))
    )(x),
    f32(4, low=0.5, high=2.0),
    gradient=False,
)
example(
    lambda x: lax.fori_loop(
        0, 3, lambda i, c: lax.fori_loop(0, i, lambda j, d: jnp.sin(d) + j, c), x
    ),
    f32(3),
    gradient=False,
)

# --- cond --------------------------------------------------------------------------------------


@lowering("cond")
def lower_cond(
    ctx: LoweringContext,
    index: Edge,
    *operands: Edge,
    branches: Any,
    branches_platforms: Any = None,
) -> list[Edge]:
    attrs = {} if branches_platforms is None else _platform_attrs(branches_platforms)
    return ctx.node(
        "StatelessCase",
        index,
        list(operands),
        branches=[_function_ref(ctx, jaxpr, f"branch_{i}") for i, jaxpr in enumerate(branches)],
        Tout=[aval.dtype for aval in ctx.out_avals],
        _jax_is_clamped=True,
        **attrs,
    )


@kernel("StatelessCase")
def stateless_case(
    branch_index: Any,
    *input: Any,
    branches: Sequence[Any],
    _jax_is_clamped: bool = False,
    _jax_platforms: Sequence[bytes] = (),
) -> Any:
    if _jax_is_clamped:
        return jaxprs.bind_cond(branch_index, input, branches, _read_platforms(_jax_platforms))
    return _run_case(None, branch_index, input, branches)


example(lambda p, x: lax.cond(p, lambda a: a * 2.0, jnp.sin, x), bools(), f32(3))
example(lambda p, x: lax.cond(p[0] > 0, lambda: x, lambda: p[0] + x), i32(2), f32(3))
example(lambda x: lax.cond(True, lambda a: a * 2.0, lambda a: a, x), f32(3))
example(
    lambda i, x: lax.switch(i, [jnp.sin, lambda a: a, lambda a: jax.jit(jnp.cos)(a) + i], x),
    i32(low=-2, high=0),
    f32(3),
)
example(lambda p, x: jax.vmap(lambda q: lax.cond(q, jnp.sin, jnp.cos, x))(p), bools(3), f32())

# --- TensorFlow's own branches and loops -------------------------------------------------------

# Their operands may be handles of variables, which the functions read and assign.


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype")


def _as_predicate(value: Any) -> Any:
    """Returns the truth that TensorFlow sees in a scalar; a tensor holds where it is not empty."""
    if np.ndim(value):
        return np.asarray(np.size(value) > 0)
    return value if value.dtype == np.bool_ else value != np.zeros((), value.dtype)


def _fork(state: Any) -> Any:
    """Returns a copy of the state, for a function that may run or not, or many times."""
    return None if state is None else type(state)(state.values)


def _written_names(state: Any, functions: Sequence[Any], operands: Sequence[Any]) -> list[str]:
    """Returns the names of the variables that some of the functions assign."""
    names: dict[str, None] = {}
    for function in functions if state is not None else ():
        trial = _fork(state)
        jax.eval_shape(functools.partial(_run_without_results, function, operands, trial))
        names.update(trial.written)
    return list(names)


def _run_without_results(function: Any, operands: Sequence[Any], state: Any) -> None:
    function(*operands, state=state)


@kernel("Case")
def case(state: Any, branch_index: Any, *input: Any, branches: Sequence[Any]) -> Any:
    return _run_case(state, branch_index, input, branches)


@kernel("If", "StatelessIf")
def if_kernel(state: Any, cond: Any, *input: Any, then_branch: Any, else_branch: Any) -> Any:
    index = _as_predicate(cond).astype(np.int32)
    return _run_case(state, index, input, [else_branch, then_branch])


def _run_case(state: Any, index: Any, operands: Sequence[Any], branches: Sequence[Any]) -> Any:
    last = len(branches) - 1
    if not is_jax_array(index):  # the other branches may not even fit the shapes
        chosen = int(index) if 0 <= index <= last else last
        return branches[chosen](*operands, state=state)
    names = _written_names(state, branches, operands)

    def run(branch: Any) -> Any:
        local = _fork(state)
        results = branch(*operands, state=local)
        return results, [local.read(name) for name in names]

    index = jnp.where((index < 0) | (index > last), np.asarray(last, index.dtype), index)
    results, written = lax.switch(index, [functools.partial(run, branch) for branch in branches])
    for name, value in zip(names, written, strict=True):
        state.write(name, value)
    return results


@kernel("While")
def while_kernel(state: Any, *input: Any, cond: Any, body: Any) -> list[Any]:
    return _run_while(state, cond, body, input)


def _run_while(state: Any, cond: Any, body: Any, operands: Sequence[Any]) -> list[Any]:
    names = _written_names(state, [cond, body], operands)
    leaves, treedef = jax.tree.flatten(list(operands))
    places = [place for place, leaf in enumerate(leaves) if _is_array(leaf)]

    def merge(arrays: Sequence[Any]) -> Any:
        merged = dict(enumerate(leaves)) | dict(zip(places, arrays, strict=True))
        return jax.tree.unflatten(treedef, list(merged.values()))

    def run(function: Any, carry: Any) -> tuple[Any, Any]:
        arrays, variables = carry
        local = _fork(state)
        for name, value in zip(names, variables, strict=True):
            local.write(name, value)
        return function(*merge(arrays), state=local), local

    def holds(carry: Any) -> Any:
        (predicate,), _ = run(cond, carry)
        return _as_predicate(predicate)

    def step(carry: Any) -> Any:
        results, local = run(body, carry)
        results = jax.tree.leaves(list(results))
        return [results[place] for place in places], [local.read(name) for name in names]

    init = [leaves[place] for place in places], [state.read(name) for name in names]
    arrays, variables = lax.while_loop(holds, step, init)
    for name, value in zip(names, variables, strict=True):
        state.write(name, value)
    return list(merge(arrays))


# --- platform_dependent ------------------------------------------------------------------------

_TENSORFLOW_PLATFORM = "cpu"  # what TensorFlow reads of a branch for each platform


@lowering("platform_index")
def lower_platform_index(ctx: LoweringContext, *, platforms: Any) -> list[Edge]:
    chosen = [i for i, names in enumerate(platforms) if names and _TENSORFLOW_PLATFORM in names]
    chosen += [i for i, names in enumerate(platforms) if names is None]
    return ctx.node(
        "Identity",
        ctx.constant((chosen or [0])[0], np.int32),
        **{PRIMITIVE_ATTR: "platform_index"},
        **_platform_attrs(platforms),
    )


def _platform_attrs(platforms: Any) -> dict[str, Any]:
    """Returns the attr that lists the platforms of each branch; the default's is empty."""
    return {"_jax_platforms": [",".join(names or ()) for names in platforms]}


def _read_platforms(names: Sequence[bytes]) -> list[tuple[str, ...] | None]:
    return [tuple(item.decode().split(",")) if item else None for item in names]


@restores("platform_index")
def restore_platform_index(index: Any, *, platforms: Sequence[bytes]) -> Any:
    del index  # TensorFlow's
    return jaxprs.bind_platform_index(_read_platforms(platforms))


example(lambda x: lax.platform_dependent(x, cpu=jnp.sin, tpu=jnp.cos, default=jnp.tan), f32(3))
example(lambda x: lax.platform_dependent(x, tpu=jnp.cos, cuda=jnp.cos, default=jnp.tan), f32(3))

# --- scan --------------------------------------------------------------------------------------


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
    if not isinstance(length, (int, np.integer)):
        raise ctx.unsupported(f"a scan over a symbolic length {length}; give its size")
    consts, carry = jaxprs.scan_counts(ctx.eqn.params)
    body = ctx.function(jaxpr, "scan_body")
    loop = _ScanLoop(body, int(length), bool(reverse), consts, carry, tuple(ctx.out_avals))
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
    length: int
    reverse: bool
    num_consts: int
    num_carry: int
    out_avals: tuple[Any, ...]

    def build(self, ctx: LoweringContext, inputs: Sequence[Edge]) -> str:
        """Returns the name of the library function that scans."""
        index = jax.ShapeDtypeStruct((), np.int32)
        avals = _avals(inputs)
        stacked = list(self.out_avals[self.num_carry :])
        cond = ctx.build_function("scan_cond", [index, *avals, *stacked], self._fill_cond)
        step = ctx.build_function("scan_step", [index, *avals, *stacked], self._fill_step)

        def fill(loop: LoweringContext, operands: list[Edge]) -> list[Edge]:
            results = loop.node(
                "StatelessWhile",
                [loop.constant(0, np.int32), *operands, *(_zeros(loop, a) for a in stacked)],
                cond=values.FunctionRef(cond),
                body=values.FunctionRef(step),
            )
            carry = 1 + self.num_consts
            return [*results[carry : carry + self.num_carry], *results[1 + len(operands) :]]

        return ctx.build_function("scan", avals, fill)

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
        return [next_count, *rest[: self.num_consts], *carry, *xs, *stacked]


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
    return jaxprs.bind_scan(
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


# --- calls that JAX inserts, linear solves, composites -----------------------------------------


@lowering("closed_call", "eval_jaxpr", "core_call", "call")
def lower_closed_call(ctx: LoweringContext, *inputs: Edge, call_jaxpr: Any) -> list[Edge]:
    return ctx.call(ctx.function(call_jaxpr, "closed_call"), *inputs, primitive="closed_call")


@restores("closed_call")
def restore_closed_call(*inputs: Any, function: Any) -> list[Any]:
    return jaxprs.bind_closed_call(function, inputs)


@lowering("custom_linear_solve")
def lower_custom_linear_solve(
    ctx: LoweringContext, *inputs: Edge, const_lengths: Any, jaxprs: Any
) -> list[Edge]:
    avals = [atom.aval for atom in ctx.eqn.invars]
    lengths = [int(length) for length in const_lengths]
    first = sum(lengths[:2])
    rest = range(sum(lengths), len(inputs))
    taken = [*range(first, first + lengths[2]), *rest]
    function = _function_ref(ctx, _with_operands(jaxprs.solve, avals, taken), "linear_solve")
    others = {
        name: None if jaxpr is None else _function_ref(ctx, jaxpr, name)
        for name, jaxpr in jaxprs._asdict().items()
        if name != "solve"
    }
    return ctx.call(
        function, *inputs, primitive="custom_linear_solve", const_lengths=lengths, **others
    )


_with_operands = jaxprs.with_operands  # the parameter of that primitive hides the module's name


@restores("custom_linear_solve")
def restore_custom_linear_solve(
    *inputs: Any,
    function: Any,
    const_lengths: tuple[int, ...],
    matvec: Any,
    vecmat: Any = None,
    transpose_solve: Any = None,
) -> list[Any]:
    first, last = sum(const_lengths[:2]), const_lengths[3]

    def solve(*operands: Any) -> Any:
        own = const_lengths[2]
        return function(*[None] * first, *operands[:own], *[None] * last, *operands[own:])

    functions = (matvec, vecmat, solve, transpose_solve)
    return jaxprs.bind_linear_solve(functions, const_lengths, inputs)


def _diagonal_solve(scale: Any, b: Any, **options: Any) -> Any:
    return lax.custom_linear_solve(lambda x: x * scale, b, lambda _, y: y / scale, **options)


example(lambda a, b: _diagonal_solve(a, b, symmetric=True), f32(3, low=1.0), f32(3))
example(
    lambda a, b: _diagonal_solve(a, b, transpose_solve=lambda _, y: y / a), f32(3, low=1.0), f32(3)
)
example(lambda a, b: _diagonal_solve(a, b), f32(3, low=1.0), f32(3), gradient=False)


@lowering("composite")
def lower_composite(
    ctx: LoweringContext,
    *inputs: Edge,
    name: str,
    version: int,
    attributes: Any,
    jaxpr: Any = None,
    call_jaxpr: Any = None,
) -> list[Edge]:
    encoded = []
    for key, leaves, _ in attributes:
        if len(leaves) != 1 or type(leaves[0]) not in (bool, int, float, str):
            raise ctx.unsupported(f"a composite whose attribute {key!r} is not a plain scalar")
        encoded.append(f"{key}={json.dumps(leaves[0])}")
    return ctx.call(
        ctx.function(jaxpr if jaxpr is not None else call_jaxpr, name),
        *inputs,
        primitive="composite",
        name=name,
        version=int(version),
        attributes=encoded or None,
    )


@restores("composite")
def restore_composite(
    *inputs: Any, function: Any, name: bytes, version: int, attributes: Sequence[bytes] = ()
) -> Any:
    pairs = (item.decode().partition("=") for item in attributes)
    keywords = {key: json.loads(text) for key, _, text in pairs}

    def decomposition(*operands: Any, **_: Any) -> Any:
        return function(*operands)

    return lax.composite(decomposition, name.decode(), int(version))(*inputs, **keywords)


example(
    lambda x: lax.composite(lambda a, *, k: jnp.sin(a) * k, "my.scaled_sine", 2)(x, k=3.0),
    f32(3),
    gradient=False,
)

# --- hints to the compiler and to transformations ----------------------------------------------


@lowering("optimization_barrier")
def lower_optimization_barrier(ctx: LoweringContext, *arrays: Edge) -> list[Edge]:
    return ctx.node("XlaOptimizationBarrier", list(arrays))


@kernel("XlaOptimizationBarrier")
def optimization_barrier(*input: Any) -> list[Any]:
    return list(lax.optimization_barrier(input))


example(lambda x, y: lax.optimization_barrier((x * 2.0, y)), f32(3), i32(2))
example(lambda x: lax.optimization_barrier(x), f32(3))


@lowering("name")
def lower_name(ctx: LoweringContext, x: Edge, *, name: str) -> list[Edge]:
    return ctx.node("Identity", x, **{PRIMITIVE_ATTR: "name", "_jax_name": name})


@restores("name")
def restore_name(x: Any, *, name: bytes) -> Any:
    return checkpoint_name(x, name.decode())


example(lambda x: checkpoint_name(jnp.sin(x), "h") * 2.0, f32(3))
example(
    lambda x: jax.grad(
        jax.checkpoint(
            lambda v: jnp.sum(jnp.sin(checkpoint_name(jnp.sin(v), "h"))),
            policy=jax.checkpoint_policies.save_only_these_names("h"),
        )
    )(x),
    f32(3),
    gradient=False,
)


@lowering("pvary")
def lower_pvary(
    ctx: LoweringContext, *arrays: Edge, axes: Any, axis_index_groups: Any = None
) -> list[Edge]:
    del axes, axis_index_groups  # over which devices the type of a value varies
    return [edge for x in arrays for edge in ctx.node("Identity", x)]
