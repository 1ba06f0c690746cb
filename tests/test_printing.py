"""Graphs as text and HTML."""

from __future__ import annotations

import html.parser

import jax
import jax.numpy as jnp
import pytest

import jaxmeta
from jaxmeta._proto import graph_pb2
from jaxmeta.graphs import printing


def small_graph():
    graph = jaxmeta.Graph()
    variables = graph.variables({"w": jnp.ones((3, 2))})

    def predict(v, x):
        with jax.named_scope("dense"):
            return jnp.split(jax.nn.relu(x @ v["w"]) * 0.5, 2, axis=1)

    graph.add_signature("predict", predict, variables, jnp.ones((4, 3)))
    return graph


def text(graph, **options):
    return printing.graph_def_to_text(graph.as_graph_def(), **options)


def test_nodes_are_assignments_and_functions_are_functions():
    lines = text(small_graph()).splitlines()
    assert lines[0] == "w: resource = VarHandleOp(dtype=float32, shape=[3,2])"
    assert lines[1] == "w/Assign = AssignVariableOp(w, [[0., 0.], [0., 0.], [0., 0.]])"
    assert lines[2] == "w/Read/ReadVariableOp: float32 = ReadVariableOp(w)"
    assert lines[3] == "x: float32[4,3] = Placeholder()"
    assert lines[4].startswith(
        "predict: float32, float32 = PartitionedCall(w/Read/ReadVariableOp, x,"
    )
    start = lines.index("function predict(v_w: float32, x: float32) -> (float32, float32):")
    body = "\n".join(lines[start:])
    assert "  dense/MatMul: float32 = MatMul(x, v_w)" in body
    assert "_jax_primitive='custom_jvp_call'" in body
    assert "dense/Mul: float32 = Mul(dense/custom_jvp_call, 0.5)" in body
    assert lines[-1].startswith("  return ")


def test_outputs_after_the_first_are_numbered():
    last = text(small_graph()).splitlines()[-1]
    assert last == "  return dense/SplitV, dense/SplitV:1"


def test_printing_leaves_the_graph_as_it_was():
    graph_def = small_graph().as_graph_def()
    before = graph_def.SerializeToString(deterministic=True)
    printing.graph_def_to_text(graph_def, defaults=True, inline_constants=False)
    assert graph_def.SerializeToString(deterministic=True) == before


def test_a_scope_selects_nodes():
    lines = text(small_graph(), scope="w/Read", functions=False).splitlines()
    assert lines == ["w/Read/ReadVariableOp: float32 = ReadVariableOp(w)"]


def test_constants_have_lines_of_their_own_where_that_is_asked_for():
    lines = text(small_graph(), inline_constants=False).splitlines()
    assert "w/Initializer/zeros: float32 = Const(value=float32[3,2](0.))" in lines
    assert "w/Assign = AssignVariableOp(w, w/Initializer/zeros)" in lines


def test_defaults_are_shown_where_that_is_asked_for():
    graph_def = graph_pb2.GraphDef()
    node = graph_def.node.add(name="m", op="MatMul", input=["a", "b"])
    node.attr["transpose_a"].b = False
    node.attr["T"].type = 1
    assert printing.graph_def_to_text(graph_def) == "m: float32 = MatMul(a, b)\n"
    assert "transpose_a=False" in printing.graph_def_to_text(graph_def, defaults=True)


@pytest.mark.parametrize(
    ("attr", "shown"),
    [
        ({"s": b"text"}, "'text'"),
        ({"s": b"\xff\x00"}, "<2 bytes>"),
        ({"i": 7}, "7"),
        ({"type": 14}, "bfloat16"),
        ({"b": True}, "True"),
        ({}, "?"),
        ({"shape": graph_pb2.TensorShapeProto(unknown_rank=True)}, "?"),
        ({"func": graph_pb2.NameAttrList(name="f")}, "@f"),
        ({"list": {"i": [1, 2]}}, "[1, 2]"),
        (
            {"list": {"i": list(range(99))}},
            "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 1 ...",
        ),
    ],
)
def test_attrs_are_shown_short(attr, shown):
    assert printing.format_attr(graph_pb2.AttrValue(**attr)) == shown


def test_what_is_wrong_with_a_graph_does_not_keep_it_from_being_shown():
    graph_def = graph_pb2.GraphDef()
    graph_def.node.add(name="u", op="NoSuchOp", input=["missing:3", "^late"], device="/cpu:0")
    graph_def.node.add(name="c", op="Const")
    graph_def.node.add(name="bad", op="Identity", input=["c"])
    lines = printing.graph_def_to_text(graph_def).splitlines()
    assert lines[0] == "u: ? = NoSuchOp(missing:3) after late on /cpu:0"
    assert lines[2].startswith("bad: ")


class _Balanced(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open = []
        self.seen = set()

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_is_balanced_and_escapes_what_the_graph_says():
    graph = small_graph()
    graph.signatures["<script>"] = graph.signatures["predict"]
    shown = graph._repr_html_()
    parser = _Balanced()
    parser.feed(shown)
    assert not parser.open
    assert "script" not in parser.seen
    assert "&lt;script&gt;" in shown
    assert "x: float32[4,3] = Placeholder()" in shown


def test_graph_prints_itself():
    graph = small_graph()
    assert graph.to_text() == text(graph)
