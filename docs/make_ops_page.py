"""Writes docs/ops.md: what each JAX primitive becomes, and what has no node form.

Run it after adding an op: `python docs/make_ops_page.py`. It traces all examples of the op table.
"""

from __future__ import annotations

import collections
import pathlib
from typing import Any

import jax
import numpy as np

from jaxmeta.graphs.building import Graph
from jaxmeta.ops import _definition, _not_lowered
from jaxmeta.tracing import jaxprs, trace

_PAGE = pathlib.Path(__file__).with_name("ops.md")
_HEAD = """# Ops

Each equation of a traced program becomes one node. This page is generated from the op table by
`docs/make_ops_page.py`; the third column holds what TensorFlow does otherwise, where that is known.
A name in *italics* is a function in the file's library that says the primitive in TensorFlow ops.

Derivatives of an op that stands for a primitive are JAX's, also in graphs that TensorFlow wrote.
They differ where there is none: `Abs` at 0 (TensorFlow: 0), `Maximum` and `Minimum` of equal
numbers (TensorFlow gives the first operand all), `ClipByValue` at its bounds, `Cumprod` after a 0,
`Pow` of a negative base with respect to the exponent.

To add an op, put its lowering, its kernel and an example next to each other in a family of
`jaxmeta/ops/`; the tests find them by themselves.

| primitive | becomes | in TensorFlow |
|-|-|-|
"""


def _trace(example: _definition.Example) -> tuple[Any, Graph]:
    rng = np.random.default_rng(0)
    arguments = [
        spec.array(rng) if isinstance(spec, _definition.Spec) else spec for spec in example.specs
    ]
    graph = Graph()
    traced = jax.jit(example.fn).trace(*arguments)
    tracing = trace.Tracing.into(graph)
    trace.lower_function(tracing, traced.jaxpr, "example")
    tracing.commit(example.where)
    return traced.jaxpr, graph


def _primitives(jaxpr: Any) -> list[str]:
    names = []
    for eqn in jaxpr.eqns:
        names.append(eqn.primitive.name)
        for inner in jaxprs.subjaxprs(eqn):
            names.extend(_primitives(inner))
    return names


def _single_op(jaxpr: Any, graph: Graph) -> tuple[str, str] | None:
    """Returns (primitive, op) where an example is one eqn, as most are."""
    if len(jaxpr.eqns) != 1:
        return None
    nodes = [node for node in graph.functions["example"].node_def if node.op != "Const"]
    op = nodes[-1].op
    return jaxpr.eqns[0].primitive.name, f"*{op}*" if op in graph.functions else op


def main() -> None:
    """Writes the page."""
    ops: dict[str, set[str]] = collections.defaultdict(set)
    remarks: dict[str, set[str]] = collections.defaultdict(set)
    traced = [(example, *_trace(example)) for example in _definition.EXAMPLES]
    uses = collections.Counter(name for _, jaxpr, _ in traced for name in set(_primitives(jaxpr)))
    for example, jaxpr, graph in traced:
        found = _single_op(jaxpr, graph)
        if found is not None:
            ops[found[0]].add(found[1])
        if example.not_in_tensorflow:
            # A remark is about what the example is there for: its rarest primitive.
            rarest = min(_primitives(jaxpr), key=lambda name: uses[name])
            remarks[rarest].add(example.not_in_tensorflow)
    lines = [
        f"| `{name}` | {', '.join(sorted(ops[name])) or 'see its module'} "
        f"| {'; '.join(sorted(remarks[name]))} |"
        for name in sorted(_definition.LOWERINGS)
    ]
    refused = [
        f"| `{name}` | {reason} |"
        for name, reason in sorted(_not_lowered.NOT_LOWERED.items())
        if name not in _definition.LOWERINGS
    ]
    tail = ["", "## Primitives without a node form", "", "| primitive | why |", "|-|-|", *refused]
    _PAGE.write_text(_HEAD + "\n".join([*lines, *tail]) + "\n")


if __name__ == "__main__":
    main()
