"""Runs the programs and prints a table: `python -m programs [--steps N] [name ...]`.

For each program: how it is jitted, leaves of its state, equations of its step (at the top level,
and with all nested jaxprs), the first and last loss, a digest of the states before and after, and
the seconds it took. Exits with 1 if a loss is not finite or a step changes the state's structure,
dtypes or shapes. Two runs print the same digests.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from . import all_programs, get
from .program import Program, State


def digest(tree: Any) -> str:
    """Returns a hash of the paths, dtypes, shapes and bits of a tree's leaves."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = jax.numpy.asarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        total.update(np.asarray(array).tobytes())
    return total.hexdigest()[:10]


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yields the equations of a jaxpr and of all jaxprs in their parameters."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from equations(inner)


def changes_of_state(program: Program) -> list[str]:
    """Returns where a step gives back a state unlike the one it was given, weak types included."""
    step, state, batches = program.make()
    before = jax.eval_shape(lambda state: state, state)
    after, _ = jax.eval_shape(step, state, batches(0))
    if (a := jax.tree.structure(before)) != (b := jax.tree.structure(after)):
        return [f"structure {a} -> {b}"]
    leaves = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    return [
        f"{jax.tree_util.keystr(path)}: {old} -> {new}" for (path, old), new in leaves if old != new
    ]


def run(program: Program, steps: int) -> tuple[str, list[str]]:
    """Returns the program's row of the table and what is wrong with it."""
    began = time.perf_counter()
    step, state, batches = program.make()
    leaves, before = len(jax.tree.leaves(state)), digest(state)
    jaxpr = jax.make_jaxpr(step)(state, batches(0)).jaxpr
    if program.jit != "none":  # a jitted step is one equation: count what is inside
        (call,) = (e for e in jaxpr.eqns if e.primitive.name in ("jit", "pjit"))
        jaxpr = call.params["jaxpr"].jaxpr
    losses = []
    for i in range(steps):
        state, metrics = step(state, batches(i))
        losses.append(float(metrics["loss"]))
    problems = [f"loss {loss}" for loss in losses if not math.isfinite(loss)]
    problems += changes_of_state(program)
    predicted = "-" if program.predict is None else _predict(program, state, batches(0))
    row = (
        f"{program.name:34} {program.jit:8} {leaves:6} {len(jaxpr.eqns):6} "
        f"{sum(1 for _ in equations(jaxpr)):6} {losses[0]:9.4f} {losses[-1]:9.4f}  "
        f"{before} {digest(state)} {predicted:10} {time.perf_counter() - began:6.1f}"
    )
    return row, problems


def _predict(program: Program, state: State, batch: Any) -> str:
    assert program.predict is not None
    fn, params_of = program.predict
    return digest(jax.jit(fn)(params_of(state), program.inputs(batch)))


def main() -> int:
    """Runs the programs named on the command line, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    programs = [get(name) for name in options.names] or list(all_programs().values())
    print(
        f"{'program':34} {'jit':8} {'leaves':>6} {'eqns':>6} {'all':>6} {'loss 0':>9} "
        f"{'loss n':>9}  {'before':10} {'after':10} {'predict':10} {'s':>6}"
    )
    failed = 0
    for program in programs:
        row, problems = run(program, options.steps)
        print(row, flush=True)
        for problem in problems:
            print(f"  WRONG: {problem}", flush=True)
        failed += bool(problems)
    print(f"{len(programs)} programs, {failed} wrong; jax {jax.__version__}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
