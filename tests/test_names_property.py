"""Random programs of scopes, collisions and imports get the node names that TensorFlow gives."""

from __future__ import annotations

import contextlib
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import jaxmeta as jm

NAMES = st.sampled_from(["a", "b", "A", "a_1", "b/c", "a/", "x.y", "c_1_2"])
SCOPES = st.sampled_from(["a", "b", "A", "a_1", "s", "a/", "b/", "a/b/", "", "x.y"])
LEAF = st.one_of(
    st.tuples(st.just("constant"), st.one_of(st.none(), NAMES.filter(lambda n: n[-1] != "/"))),
    st.tuples(st.just("placeholder"), st.one_of(st.none(), NAMES.filter(lambda n: n[-1] != "/"))),
    st.tuples(st.just("identity"), st.one_of(st.none(), NAMES.filter(lambda n: n[-1] != "/"))),
    st.tuples(st.just("variable"), st.one_of(st.none(), NAMES.filter(lambda n: n[-1] != "/"))),
    st.tuples(st.just("group"), st.one_of(st.none(), NAMES.filter(lambda n: n[-1] != "/"))),
    st.tuples(st.just("no_op"), st.none()),
    st.tuples(st.just("operator"), st.sampled_from([*"*+-/<>@[|", "neg", "abs", "r+", "vec"])),
    st.tuples(st.just("assign"), st.sampled_from(["assign", "assign_add", "assign_sub"])),
    st.tuples(st.just("unique"), NAMES.filter(lambda n: n[-1] != "/")),
    st.tuples(st.just("import"), st.one_of(st.none(), st.sampled_from(["a", "imported", "b"]))),
)
PROGRAMS = st.recursive(
    st.lists(LEAF, max_size=6),
    lambda inner: st.lists(
        st.one_of(
            LEAF,
            st.tuples(st.just("scope"), SCOPES, inner),
            st.tuples(st.just("control"), st.booleans(), inner),
        ),
        max_size=6,
    ),
    max_leaves=8,
)


class _Side:
    """One of the two libraries that run a program, and what the program made so far."""

    def __init__(self, library: Any, graph: Any, small: Any, is_ours: bool) -> None:
        self.library = library
        self.graph = graph
        self.small = small
        self.is_ours = is_ours
        self.x = library.placeholder(library.float32 if not is_ours else "float32", [2, 2], "in")
        self.flag = library.placeholder(library.bool if not is_ours else "bool", [2], "flag")
        self.variable = self._variable("var")

    def _variable(self, name: str | None) -> Any:
        return self.library.Variable([[1.0, 2.0], [3.0, 4.0]], name=name)

    def run(self, program: Any) -> None:
        for step in program:
            kind = step[0]
            if kind == "scope":
                with self._scope(step[1]):
                    self.run(step[2])
            elif kind == "control":
                controls = [self.x, self.variable.initializer] if step[1] else None
                with self.graph.control_dependencies(controls):
                    self.run(step[2])
            else:
                getattr(self, f"do_{kind}")(step[1])

    def _scope(self, name: str) -> contextlib.AbstractContextManager[Any]:
        return self.library.name_scope(name)

    def do_constant(self, name: str | None) -> None:
        self.library.constant(1.0, **({"name": name} if name else {}))

    def do_placeholder(self, name: str | None) -> None:
        self.library.placeholder("float32" if self.is_ours else self.library.float32, name=name)

    def do_identity(self, name: str | None) -> None:
        self.x = self.library.identity(self.x, name=name)

    def do_variable(self, name: str | None) -> None:
        self.variable = self._variable(name)

    def do_group(self, name: str | None) -> None:
        self.library.group(self.x, self.variable.initializer, name=name)

    def do_no_op(self, name: None) -> None:
        self.library.no_op(name=name)

    def do_unique(self, name: str) -> None:
        self.graph.unique_name(name)

    def do_assign(self, how: str) -> None:
        getattr(self.variable, how)(self.x)

    def do_operator(self, symbol: str) -> None:
        x, y = self.x, self.variable
        if symbol == "|":
            self.flag = self.flag | True
            return
        makes = {
            "+": lambda: x + y,
            "-": lambda: y - 1.0,
            "*": lambda: x * x,
            "/": lambda: 2.0 / x,
            "@": lambda: x @ y,
            "<": lambda: x < 1.0,
            ">": lambda: y > x,
            "[": lambda: x[0:1],
            "neg": lambda: -y,
            "abs": lambda: abs(x),
            "r+": lambda: 1.0 + y,
            "vec": lambda: x + np.float32([1.0, 2.0]),
        }
        makes[symbol]()

    def do_import(self, name: str | None) -> None:
        self.library.import_graph_def(self.small, name=name)

    def described(self) -> list[tuple[Any, ...]]:
        return [
            (
                op.name,
                op.type,
                [t.name for t in op.inputs],
                sorted(c.name for c in op.control_inputs),
            )
            for op in self.graph.get_operations()
        ]


@pytest.mark.needs_tf
@hypothesis.settings(deadline=None, max_examples=60, derandomize=True)
@hypothesis.given(program=PROGRAMS)
def test_random_programs_give_the_nodes_that_tensorflow_gives(tensorflow, program):
    tf = tensorflow.compat.v1
    tf.enable_resource_variables()
    with tf.Graph().as_default() as small:
        tf.identity(tf.constant(1.0, name="a"))
        with tf.name_scope("b"):
            tf.placeholder(tf.float32, name="c")
    small_def = small.as_graph_def()
    with tf.Graph().as_default() as theirs:
        expected = _Side(tf, theirs, small_def, is_ours=False)
        expected.run(program)
    with jm.Graph().as_default() as ours:
        serialized = jm.Graph().as_graph_def().FromString(small_def.SerializeToString())
        made = _Side(jm, ours, serialized, is_ours=True)
        made.run(program)
    assert made.described() == expected.described()
