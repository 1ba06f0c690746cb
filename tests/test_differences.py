"""What differs between two meta graphs, as a person reads it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import jaxmeta
from jaxmeta import __main__ as command_line
from jaxmeta import errors
from jaxmeta.meta_graphs.differences import diff


def program(step, *args, state=None, hparams=None):
    graph = jaxmeta.Graph()
    given = [graph.variables(state)] if state is not None else []
    graph.add_signature("step", step, *given, *(args or (jnp.ones(3),)))
    if hparams:
        graph.add_to_collection("hparams", hparams)
    return graph


def lines(one, other):
    return str(diff(one, other)).splitlines()


def test_equal_programs_do_not_differ():
    one, other = (program(lambda x: jnp.sin(x) * 2.0) for _ in range(2))
    assert not diff(one, other)
    assert str(diff(one, other)) == ""


def test_a_node_more_is_all_that_is_said_though_others_are_renumbered():
    one = program(lambda x: (x * 2.0) * 3.0 * 4.0)
    other = program(lambda x: jnp.sin(x * 2.0) * 5.0 * 3.0 * 4.0)
    found = lines(one, other)
    assert found[0] == "function step"
    assert sorted(line[:3] for line in found[1:]) == ["  +", "  +", "  ~"]
    assert "  + Sin: float32 = Sin(Mul)" in found


def test_a_constant_that_changed_is_named():
    found = lines(program(lambda x: x * 2.0), program(lambda x: x * 2.5))
    assert found == ["function step", "  ~ Const: value was float32[](2.), is float32[](2.5)"]


def test_a_function_is_looked_into_where_it_stands():
    def with_inner(factor):
        @jax.jit
        def inner(x):
            return jnp.tanh(x) * factor

        return program(lambda x: inner(x) + 1.0)

    found = lines(with_inner(2.0), with_inner(3.0))
    assert found == ["function inner", "  ~ Const: value was float32[](2.), is float32[](3.)"]


def test_variables_collections_and_signatures_are_compared():
    def step(state, x):
        return state["w"].sum() + x

    one = program(step, jnp.ones(3), state={"w": jnp.ones(2)}, hparams={"rate": 0.1})
    other = program(step, jnp.ones(4), state={"w": jnp.ones(5)}, hparams={"rate": 0.2})
    found = str(diff(one, other))
    assert "variables\n  ~ w: was float32[2], is float32[5]" in found
    assert "  - hparams: {'rate': 0.1}\n  + hparams: {'rate': 0.2}" in found
    assert "  ~ step argument/0/1: was float32[3] x:0, is float32[4] x:0" in found


def test_a_node_only_in_one_graph_is_shown_as_an_assignment():
    one, other = program(jnp.sin), program(jnp.sin)
    other.add_node("NoOp", [], {}, "extra", control_inputs=["x"])
    assert lines(one, other) == ["nodes", "  + extra = NoOp() after x"]
    assert lines(other, one) == ["nodes", "  - extra = NoOp() after x"]


def test_an_input_another_op_and_a_device_are_named():
    graphs = []
    for op, name, device in (("Sin", "a", ""), ("Cos", "b", "/gpu:0")):
        graph = program(jnp.sin)
        for placeholder in "ab":
            graph.add_node("Placeholder", [], {"dtype": jnp.dtype("float32")}, placeholder)
        graph.add_node(op, [graph.add_node("Identity", [edge(graph, name)], {}, "i")[0]], {}, "y")
        graph.nodes["y"].device = device
        graphs.append(graph)
    assert lines(*graphs) == [
        "nodes",
        "  ~ i: input 0 was a, is b",
        "  ~ y: op was Sin, is Cos",
        "  ~ y: device was none, is /gpu:0",
    ]


def edge(graph, name):
    from jaxmeta.graphs.nodes import Edge

    return Edge(name, graph.output_numbers(name)[0])


def test_a_graph_with_a_cycle_can_be_compared():
    graph = program(jnp.sin)
    graph.add_node("Identity", [edge(graph, "x")], {}, "i")
    graph.nodes["i"].input[0] = "i"
    assert not diff(graph, graph)


def test_long_lists_are_cut():
    one, other = program(jnp.sin), program(jnp.sin)
    for _ in range(99):
        other.add_node("NoOp", [], {}, "n")
    assert lines(one, other)[-1] == "  ... and 59 more"


def test_command_says_what_differs_and_exits_with_one(tmp_path, capsys):
    files = [tmp_path / "one.meta", tmp_path / "other.meta"]
    for file, factor in zip(files, (2.0, 3.0), strict=True):
        graph = program(lambda x, factor=factor: x * factor)
        jaxmeta.export_meta_graph(file, graph=graph, as_text=factor == 3.0)
    assert command_line.main(["diff", *map(str, files)]) == 1
    assert "value was float32[](2.), is float32[](3.)" in capsys.readouterr().out
    assert command_line.main(["diff", str(files[0]), str(files[0])]) == 0
    assert capsys.readouterr().out == ""
    assert command_line.main(["diff", str(files[0]), str(tmp_path / "none.meta")]) == 2


def test_command_shows_nodes(tmp_path, capsys):
    jaxmeta.export_meta_graph(tmp_path / "one.meta", graph=program(jnp.sin))
    assert command_line.main(["show", "--nodes", str(tmp_path / "one.meta")]) == 0
    assert "  Sin: float32 = Sin(x)\n" in capsys.readouterr().out


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "bad.meta").write_bytes(b"\xff\xff")
    with pytest.raises(errors.FormatError, match="bad"):
        diff(tmp_path / "bad.meta", program(jnp.sin))
