"""Names of nodes, tensors and scopes against TensorFlow's rules, on random scripts."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import pytest

import jaxmeta
from jaxmeta import errors, naming

hypothesis = pytest.importorskip("hypothesis")
strategies = pytest.importorskip("hypothesis.strategies")

deterministic = hypothesis.settings(
    derandomize=True,
    deadline=None,
    max_examples=200,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)

# Few letters, so that names meet; digits and underscores, so that they look like made-up ones.
words = strategies.sampled_from(["a", "A", "b", "a_1", "A_1", "a_1_1", "a_2", "b_1"])
paths = strategies.lists(words, min_size=1, max_size=3).map("/".join)
scopes = strategies.one_of(words, paths, paths.map(lambda path: f"{path}/"), strategies.none())
# A script is a list of nodes and scopes; a scope holds a script.
scripts = strategies.recursive(
    strategies.lists(words, max_size=4),
    lambda inner: strategies.lists(
        strategies.one_of(words, strategies.tuples(scopes, inner)), max_size=4
    ),
    max_leaves=12,
)


def run_ours(graph: jaxmeta.Graph, script: list) -> None:
    for step in script:
        if isinstance(step, str):
            graph.add_node("NoOp", [], {}, step)
        else:
            with graph.name_scope(step[0]) as scope:
                graph.add_to_collection("scopes", scope)
                run_ours(graph, step[1])


def run_theirs(tf, graph, script: list) -> None:
    for step in script:
        if isinstance(step, str):
            graph.create_op("NoOp", [], [], name=step)
        else:
            with graph.name_scope(step[0]) as scope:
                graph.add_to_collection("scopes", scope)
                run_theirs(tf, graph, step[1])


@pytest.mark.needs_tf
@deterministic
@hypothesis.given(script=scripts)
def test_nodes_and_scopes_get_the_names_that_tensorflow_gives(tensorflow, script):
    ours, theirs = jaxmeta.Graph(), tensorflow.Graph()
    run_ours(ours, script)
    run_theirs(tensorflow, theirs, script)
    assert ours.get_collection("scopes") == theirs.get_collection("scopes")
    assert list(ours.nodes) == [op.name for op in theirs.get_operations()]


@pytest.mark.needs_tf
@deterministic
@hypothesis.given(script=strategies.lists(strategies.tuples(paths, strategies.booleans())))
def test_unique_names_are_those_of_tensorflow(tensorflow, script):
    ours, theirs = naming.UniqueNames(), tensorflow.Graph()
    for name, mark in script:
        assert ours.unique(name, mark=mark) == theirs.unique_name(name, mark_as_used=mark)


@pytest.mark.needs_tf
@deterministic
@hypothesis.given(taken=strategies.lists(paths, unique_by=str.lower), name=paths)
def test_names_in_an_imported_graph_are_taken(tensorflow, taken, name):
    theirs = tensorflow.Graph()
    with theirs.as_default():
        proto = tensorflow.compat.v1.GraphDef()
        for one in taken:
            proto.node.add(name=one, op="NoOp")
        tensorflow.import_graph_def(proto, name="")
    assert naming.UniqueNames(taken).unique(name) == theirs.unique_name(name)


@pytest.mark.needs_tf
@deterministic
@hypothesis.given(name=strategies.text("aA0_./\\>-: é", max_size=5))
def test_names_are_valid_where_they_are_in_tensorflow(tensorflow, name):
    def is_valid(act) -> bool:
        try:
            act()
            return True
        except ValueError:
            return False

    def enter(graph, scope: str) -> None:
        with graph.name_scope(scope):
            pass

    def enter_inner(graph, scope: str) -> None:
        with graph.name_scope("outer"):
            enter(graph, scope)

    theirs = tensorflow.Graph()
    if name and not name.endswith("/"):  # which TensorFlow drops
        assert is_valid(lambda: naming.check_node_name(name)) == is_valid(
            lambda: theirs.create_op("NoOp", [], [], name=name)
        )
    assert is_valid(lambda: enter(jaxmeta.Graph(), name)) == is_valid(lambda: enter(theirs, name))
    assert is_valid(lambda: enter_inner(jaxmeta.Graph(), name)) == is_valid(
        lambda: enter_inner(theirs, name)
    )


def imports_in_tensorflow(tf, name: str) -> bool:
    """Returns whether TensorFlow reads a graph with a node of this name.

    Its importer takes fewer names than its Python API: no backslash, and no ``>`` but before a
    letter, a digit or a dot.
    """
    graph_def = tf.compat.v1.GraphDef()
    graph_def.node.add(name=name, op="NoOp")
    with tf.Graph().as_default():
        try:
            tf.import_graph_def(graph_def, name="")
        except ValueError:
            return False
    return True


@pytest.mark.needs_tf
@deterministic
@hypothesis.given(text=strategies.text("aA0_./\\>-: é", min_size=1, max_size=6))
def test_cleaned_names_are_ones_that_tensorflow_imports(tensorflow, text):
    cleaned = naming.clean_name(text)
    assert not cleaned or imports_in_tensorflow(tensorflow, f"{cleaned}/Add")


@pytest.mark.needs_tf
def test_einsum_whose_spec_becomes_a_scope_is_imported_by_tensorflow(tensorflow):
    def fn(x):
        return jnp.einsum("i->", x) + jnp.einsum("i,i->", x, x)

    graph = jaxmeta.Graph()
    graph.add_signature("total", fn, jnp.ones(3))
    with tensorflow.Graph().as_default():
        content = jaxmeta.export_meta_graph(graph=graph).SerializeToString()
        theirs = tensorflow.compat.v1.MetaGraphDef.FromString(content)
        tensorflow.compat.v1.train.import_meta_graph(theirs)


@deterministic
@hypothesis.given(strategies.lists(paths))
def test_unique_names_never_repeat_in_whatever_case(names):
    made = naming.UniqueNames()
    found = [made.unique(name) for name in names]
    assert len({name.lower() for name in found}) == len(names)


@deterministic
@hypothesis.given(strategies.text())
def test_cleaned_name_is_valid_and_stays_as_it_is(text):
    cleaned = naming.clean_name(text)
    if cleaned:
        naming.check_node_name(cleaned)
    assert naming.clean_name(cleaned) == cleaned


@deterministic
@hypothesis.given(strategies.text("ab/()_ .1", max_size=20))
def test_any_name_stack_gives_a_valid_scope_or_none(stack):
    scope = naming.scope_from_name_stack(stack)
    if scope:
        naming.check_node_name(f"{scope}/Add")


@pytest.mark.parametrize(
    ("stack", "scope"),
    [
        ("", ""),
        ("MLP/Dense_0", "MLP/Dense_0"),
        ("jvp(MLP)/Dense_0", "MLP/Dense_0"),
        ("transpose(jvp(MLP))/Dense_0", "gradients/MLP/Dense_0"),
        ("vmap(f)", "vmap.f"),
        ("jvp(vmap(f))/g", "vmap.f/g"),
        ("transpose(jvp())/f", "gradients/f"),
        ("a b/c:d", "a_b/c_d"),
        ("_private", "x_private"),
    ],
)
def test_scope_of_a_name_stack(stack, scope):
    assert naming.scope_from_name_stack(stack) == scope


def test_name_stacks_of_jax_give_the_scopes_of_the_layers():
    def loss(x):
        with jax.named_scope("net"), jax.named_scope("layer"):
            return jnp.sin(x).sum()

    graph = jaxmeta.Graph()
    graph.add_signature("step", jax.vmap(jax.grad(loss)), jnp.ones((2, 3)))
    (function,) = graph.functions.values()
    found = {node.name for node in function.node_def if node.op in ("Cos", "Mul")}
    assert all("net" in name and "layer" in name for name in found)
    assert any(name.startswith("gradients/") for name in found)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("node", ("node", None, 0, False)),
        ("a/b:2", ("a/b", None, 2, False)),
        ("node:out:3", ("node", "out", 3, False)),
        ("^node", ("node", None, -1, True)),
    ],
)
def test_tensor_names_are_parsed(name, parts):
    assert naming.parse_tensor_name(name) == parts


@pytest.mark.parametrize("name", ["a:b", "a:", "a:b:c", "a:b:", "a:b:0:1", "a:1.0"])
def test_bad_tensor_names_are_refused(name):
    with pytest.raises(errors.GraphError, match="is not a tensor name"):
        naming.parse_tensor_name(name)


def test_scope_is_left_when_its_block_raises():
    graph = jaxmeta.Graph()
    with contextlib.suppress(RuntimeError), graph.name_scope("a"):
        raise RuntimeError
    graph.add_node("NoOp", [], {}, "x")
    assert list(graph.nodes) == ["x"]


def test_root_scope_is_entered_by_none():
    graph = jaxmeta.Graph()
    with graph.name_scope("a"), graph.name_scope(None) as scope:
        graph.add_node("NoOp", [], {}, "x")
    assert scope == ""
    assert list(graph.nodes) == ["x"]
