"""Programs with symbolic dimensions: traced once, run at any size, in JAX and in TensorFlow."""

from __future__ import annotations

import functools
from typing import Any

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorflow_oracle
from flax import linen as nn
from jax import export
from symbolic_programs import PROGRAMS, SIZES, Spec, arrays, f32, i32

import jaxmeta as jm
from jaxmeta.graphs import graph
from jaxmeta.program import build_function


@functools.cache
def traced(name: str) -> tuple[Any, Any, graph.GraphBuilder]:
    """Returns a program, its function as it was loaded, and the graph that holds it."""
    fn, specs = PROGRAMS[name]
    builder = jm.Graph()
    signature = builder.add_signature(name, fn, *specs)
    return jax.jit(fn), build_function(builder, signature), builder


def assert_same(found: Any, expected: Any) -> None:
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_gives_what_jit_gives_at_any_size(name):
    original, loaded, _ = traced(name)
    for sizes in SIZES:
        args = arrays(name, sizes)
        assert_same(loaded(*args), original(*args))


# JAX itself traces other equations where a size is symbolic: it cannot tell that a slice is whole,
# and computes with a size that it is asked to return.
OTHER_EQUATIONS = {"expressions", "reshapes"}


@pytest.mark.parametrize("name", sorted(PROGRAMS.keys() - OTHER_EQUATIONS))
def test_program_compiles_to_what_jit_compiles_to(name):
    original, loaded, _ = traced(name)
    args = arrays(name, SIZES[1])
    difference = hlo.first_difference(
        hlo.canonical_hlo(original.lower(*args).compile()),
        hlo.canonical_hlo(loaded.lower(*args).compile()),
    )
    assert difference is None, difference


@pytest.mark.parametrize("name", PROGRAMS)
def test_loaded_program_is_exported_with_symbolic_dimensions_again(name):
    original, loaded, _ = traced(name)
    specs = [
        Spec(shape, spec.dtype)
        for spec, shape in zip(PROGRAMS[name][1], symbolic_shapes(name), strict=True)
    ]
    exported = export.export(loaded)(*specs)
    args = arrays(name, SIZES[1])
    for found, expected in zip(
        jax.tree.leaves(exported.call(*args)), jax.tree.leaves(original(*args)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def symbolic_shapes(name: str) -> list[Any]:
    scope = export.SymbolicScope()
    texts = [", ".join(map(str, spec.shape)) for spec in PROGRAMS[name][1]]
    return [export.symbolic_shape(f"({text},)", scope=scope) for text in texts]


@pytest.mark.needs_tf
@pytest.mark.parametrize("name", PROGRAMS)
def test_tensorflow_runs_the_program_at_any_size(name, tensorflow):
    original, _, builder = traced(name)
    function = builder.nodes[name].attr["f"].func.name
    for sizes in SIZES[1:]:
        args = arrays(name, sizes)
        expected = jax.tree.leaves(original(*args))
        for must_compile in (True, False):
            found = tensorflow_oracle.run_in_tensorflow(
                builder.as_graph_def(), function, args, must_compile
            )
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


# --- entry points --------------------------------------------------------------------------------


def predict(params, x):
    return jax.nn.softmax(jax.nn.relu(x @ params["w"]) + params["b"])


def saved(tmp_path: Any, state: Any, *signatures: Any) -> tuple[Any, str]:
    """Returns the program as it was loaded from a file, and the file's prefix."""
    g = jm.Graph()
    variables = g.variables(state)
    for name, fn, take, specs, updates in signatures:
        g.add_signature(name, fn, take(variables), *specs, updates=updates)
    with jm.Saver(g) as saver:
        prefix = saver.save(state, tmp_path / "model", global_step=0)
    return jm.load(prefix), str(prefix)


def dense_state() -> Any:
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((28, 5)).astype(np.float32)
    return {"params": {"w": weights, "b": np.zeros(5, np.float32)}}


def test_one_file_serves_batches_of_1_7_and_128(tmp_path):
    state = dense_state()
    signature = ("predict", predict, lambda v: v["params"], [f32("batch", 28)], None)
    run, _ = saved(tmp_path, state, signature)
    for size in (1, 7, 128):
        x = np.random.default_rng(size).standard_normal((size, 28)).astype(np.float32)
        expected = jax.jit(predict)(state["params"], x)
        assert_same(run["predict"](run.state["params"], x), expected)


@pytest.mark.needs_tf
def test_tensorflow_sees_an_unknown_dimension_and_runs_any_batch(tmp_path, tensorflow):
    state = dense_state()
    signature = ("predict", predict, lambda v: v["params"], [f32("batch", 28)], None)
    _, prefix = saved(tmp_path, state, signature)
    v1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default() as imported, v1.Session() as session:
        v1.train.import_meta_graph(f"{prefix}.meta")
        session.run(v1.global_variables_initializer())
        assert imported.get_tensor_by_name("x:0").shape.as_list() == [None, 28]
        for size in (1, 7, 128):
            found = session.run("predict:0", {"x:0": np.zeros((size, 28), np.float32)})
            np.testing.assert_allclose(found, np.full((size, 5), 0.2), rtol=1e-6)


def test_dimensions_are_readable_in_the_file_and_come_back(tmp_path):
    (b,) = export.symbolic_shape("b", constraints=["b >= 4"])
    signature = (
        "f",
        lambda v, x: x @ v,
        lambda v: v["params"]["w"],
        [Spec((b, 28), "float32")],
        None,
    )
    run, _ = saved(tmp_path, dense_state(), signature)
    node = run.graph.nodes["x"]
    assert list(node.attr["_jax_dims"].list.s) == [b"b", b"28"]
    assert [dim.size for dim in node.attr["shape"].shape.dim] == [-1, 28]
    assert list(run.graph.nodes["f"].attr["_jax_dim_constraints"].list.s) == [b"b >= 4"]
    assert run.graph.signatures["f"].constraints == ("b >= 4",)
    exported = jm.export_meta_graph(graph=run.graph)
    again = jm.export_meta_graph(graph=jm.load(tmp_path / "model-0").graph)
    assert exported == again


def two_arrays(x: Any, y: Any) -> Any:
    return x.sum(1) + y


@pytest.mark.parametrize(
    ("specs", "shapes", "words"),
    [
        ([f32("b", 3), f32("b")], [(4, 3), (5,)], ["y:0", "x:0", "b is 4", "[5]"]),
        ([f32("b", 3), f32("b")], [(4, 2), (4,)], ["x:0", "float32[b, 3]", "float32[4, 2]"]),
        ([f32("b", 3), f32("b")], [(0, 3), (0,)], ["b is 0", "x:0", "1 or more"]),
        ([f32("b", "2*c"), f32("b")], [(4, 3), (4,)], ["x:0", "2*c", "c is 1"]),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_the_arguments_names(specs, shapes, words):
    g = jm.Graph()
    run = build_function(g, g.add_signature("f", two_arrays, *specs))
    with pytest.raises(jm.FeedError) as caught:
        run(*(np.zeros(shape, np.float32) for shape in shapes))
    assert [word for word in words if word not in str(caught.value)] == []


def test_constraint_that_does_not_hold_is_named():
    (b,) = export.symbolic_shape("b", constraints=["b >= 8", "mod(b, 2) == 0"])
    g = jm.Graph()
    run = build_function(
        g, g.add_signature("f", lambda x: x.reshape(b // 2, 2), Spec((b,), "float32"))
    )
    assert run(np.zeros(8, np.float32)).shape == (4, 2)
    with pytest.raises(jm.FeedError, match=r"b >= 8 does not hold where b is 6 \(in x:0\)"):
        run(np.zeros(6, np.float32))
    with pytest.raises(jm.FeedError, match=r"mod\(b, 2\) == 0 does not hold where b is 9"):
        run(np.zeros(9, np.float32))


def test_dimension_that_does_not_follow_from_shapes_is_refused():
    with pytest.raises(jm.GraphError, match=r"do not follow(.|\n)*  b\n  c\n"):
        jm.Graph().add_signature("f", lambda x: x, f32("b*c"))


def test_variable_of_symbolic_size_is_refused():
    with pytest.raises(jm.GraphError, match=r"'w'.*sizes of variables have to be numbers"):
        jm.Graph().variables({"w": f32("b", 3)})


@pytest.mark.parametrize("text", ["b c", "1b", "b.c", "f(b)", ""])
def test_string_that_is_no_dimension_is_refused(text):
    with pytest.raises(jm.GraphError):
        jm.Graph().add_signature("f", lambda x: x, f32(text))


def test_failure_of_jax_itself_says_which_dimensions_were_symbolic():
    with pytest.raises(jax.errors.InconclusiveDimensionOperation) as caught:
        jm.Graph().add_signature("f", lambda x: x.reshape(-1, 2), f32("b"))
    assert any("signature 'f' with the symbolic dimensions b" in n for n in caught.value.__notes__)


# --- train steps ---------------------------------------------------------------------------------


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.BatchNorm(use_running_average=False, momentum=0.9)(x)
        x = nn.avg_pool(nn.max_pool(x, (2, 2), (2, 2)), (2, 2), (2, 2), "SAME")
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(nn.OptimizedLSTMCell(6))(x).mean(1))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        mask = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
        h = nn.Dense(8)(x)
        h = h + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(h), mask=mask)
        return nn.Dense(3)(nn.gelu(h).mean(1))


MODELS = {
    "mlp": (nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)]), ("b", 5)),
    "convolution": (ConvNet(), ("b", 8, 8, 2)),
    "lstm": (Recurrent(), ("b", "t", 4)),
    "transformer": (Attention(), ("b", "t", 4)),
}


def train_step_of(model: Any, optimizer: Any) -> Any:
    def train_step(state, x, labels):
        def loss(params):
            others = {key: value for key, value in state.items() if key == "batch_stats"}
            logits, changed = model.apply({"params": params, **others}, x, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), changed

        (value, changed), grads = jax.value_and_grad(loss, has_aux=True)(state["params"])
        updates, optimizer_state = optimizer.update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {**state, **changed, "params": params, "optimizer": optimizer_state}, value

    return train_step


@pytest.mark.parametrize("name", MODELS)
def test_train_step_of_any_batch_trains_as_jit_does(name, tmp_path):
    model, shape = MODELS[name]
    optimizer = optax.adam(1e-2)
    rng = np.random.default_rng(0)
    known = [dim if isinstance(dim, int) else 4 for dim in shape]
    state = dict(model.init(jax.random.key(0), np.zeros(known, np.float32)))
    state["optimizer"] = optimizer.init(state["params"])
    step = train_step_of(model, optimizer)
    signature = ("train_step", step, lambda v: v, [f32(*shape), i32("b")], 0)
    run, _ = saved(tmp_path, state, signature)
    mine, theirs = state, run.state
    original = jax.jit(step)
    for sizes in ({"b": 7, "t": 4}, {"b": 2, "t": 6}):
        x = rng.standard_normal([sizes.get(d, d) for d in shape]).astype(np.float32)
        labels = rng.integers(0, 3, sizes["b"]).astype(np.int32)
        mine, loss = original(mine, x, labels)
        theirs, found = run["train_step"](theirs, x, labels)
        assert_same((theirs, found), (mine, loss))
