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
from jax import export, lax

import jaxmeta as jm
from jaxmeta.graphs import graph
from jaxmeta.program import build_function

Spec = jax.ShapeDtypeStruct
SIZES = ({"b": 1, "t": 2}, {"b": 7, "t": 4}, {"b": 12, "t": 6})
NHWC = ("NHWC", "HWIO", "NHWC")


def f32(*shape: Any) -> Any:
    return Spec(shape, np.float32)


def i32(*shape: Any) -> Any:
    return Spec(shape, np.int32)


PROGRAMS: dict[str, tuple[Any, tuple[Any, ...]]] = {}


def program(*specs: Any) -> Any:
    """Registers a function and its arguments, whose shapes have names of dimensions."""

    def register(fn: Any) -> Any:
        PROGRAMS[fn.__name__] = fn, specs
        return fn

    return register


@program(f32("b", 28), f32(28, 4))
def dense(x, w):
    hidden = jax.nn.relu(x @ w)
    hidden = hidden / jnp.mean(hidden)
    scores = jax.nn.log_softmax(x @ w)
    chosen = jnp.take_along_axis(scores, jnp.zeros((x.shape[0], 1), int), axis=1)
    counts = jnp.arange(x.shape[0]) + jnp.arange(1, x.shape[0] + 1)
    return hidden.reshape(-1), chosen.sum() + x.shape[0], counts


@program(f32("b", 28))
def noise(x):
    key = jax.random.key(0)
    return jax.random.normal(key, x.shape) + x, jax.random.bernoulli(key, 0.5, x.shape)


@program(f32("b", 28), f32(28, 4))
def gradient(x, w):
    return jax.grad(lambda v: jnp.mean(jax.nn.gelu(x @ v) ** 2) + jnp.var(x @ v))(w)


@program(f32("b", "t", 3))
def reshapes(x):
    rows = x.reshape(-1, 3)
    both = jnp.concatenate([rows, rows])
    padded = jnp.pad(x, ((1, 0), (0, 2), (0, 0)))
    mask = jnp.tril(jnp.ones((x.shape[1], x.shape[1])))
    halves = x[:, : x.shape[1] // 2]
    filled = jnp.broadcast_to(jnp.float32(1), x.shape)
    return x.reshape(x.shape[0], -1), both[1:], padded, mask, halves, filled, jnp.flip(x, 1)


@program(f32("b", "t", 3))
def scans(x):
    def body(carry, row):
        return jnp.sin(carry) * row, carry + row

    def broadcast(carry, row):
        return carry + jnp.sum(row), jnp.broadcast_to(carry, (x.shape[0],))

    zeros, rows = jnp.zeros((x.shape[0], 3)), jnp.swapaxes(x, 0, 1)
    backward = lax.scan(body, zeros, rows, reverse=True)
    return lax.scan(body, zeros, rows), backward, lax.scan(broadcast, 0.0, rows)


@program(f32("b", "t", 3))
def gradient_of_scan(x):
    def loss(x):
        zeros, rows = jnp.zeros((x.shape[0], 3)), jnp.swapaxes(x, 0, 1)
        step = jax.checkpoint(lambda c, row: (jnp.sin(c) + row, c.mean()))
        carry, means = lax.scan(step, zeros, rows)
        return carry.sum() + means.sum()

    return jax.grad(loss)(x)


@program(f32("b", 3))
def control_flow(x):
    def grow(carry):
        return carry[0] + 1, carry[1] + jnp.ones(x.shape)

    branch = lax.cond(
        x.sum() > 0, lambda a: a * 2 + jnp.ones((a.shape[0], 1)), lambda a: jnp.zeros(a.shape), x
    )
    grown = lax.while_loop(lambda c: c[0] < 3, grow, (0, x))[1]
    total = lax.fori_loop(0, x.shape[0], lambda i, c: c + x[i], jnp.zeros(3))
    return branch, grown, total


@program(f32("b", 8, 8, 3), f32(3, 3, 3, 4))
def gradient_of_convolution(x, w):
    def loss(x, w):
        h = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC)
        h = nn.max_pool(h, (2, 2), (2, 2))
        return jnp.mean(nn.avg_pool(h, (2, 2)) ** 2)

    return jax.value_and_grad(loss, (0, 1))(x, w)


@program(f32("b", "t", "t", 3), f32(3, 3, 3, 4))
def images_of_any_size(x, w):
    h = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC)
    h = lax.conv_general_dilated(
        h, jnp.ones((3, 3, 4, 4)), (2, 2), "SAME", dimension_numbers=NHWC, rhs_dilation=(2, 2)
    )
    return lax.cummax(h, 0), jnp.cumsum(h, 0), jnp.sort(h, 0), jnp.argmax(h, 0)


@program(f32("b", "t"), i32("b"))
def indexing(x, i):
    column = lax.dynamic_slice(x, (0, i[0]), (x.shape[0], 1))
    written = x.at[:, 0].set(1.0), x.at[jnp.arange(x.shape[0]), i].add(1.0)
    clipped = x.at[i].add(1.0, mode="clip")
    taken = jnp.take(x, i, axis=0, mode="clip"), jnp.take(x, i, axis=1)
    return column, written, clipped, taken, jax.nn.one_hot(i, x.shape[1]), lax.top_k(x, 1)


@jax.custom_vjp
def _mean(x: Any) -> Any:
    return x.mean()


_mean.defvjp(lambda x: (x.mean(), x), lambda x, g: (jnp.full(x.shape, g),))


@program(f32("b", "t", 4))
def custom_derivatives(x):
    def loss(x):
        return jnp.sum(jax.checkpoint(lambda y: jnp.sin(jax.nn.silu(y)))(x)) + _mean(x)

    return jax.grad(loss)(x), _mean(x), jax.jvp(jax.nn.relu, (x,), (x,))


@program(f32("2*b + 1"), f32("t", "b + t"))
def expressions(x, y):
    b, t = (x.shape[0] - 1) // 2, y.shape[0]
    squares = jnp.arange(b * b)
    most = jnp.zeros(jax.core.max_dim(b, t))
    return jnp.zeros((b, t)), squares, most, y[:, : b + t - 1], y.size * 1.0


@functools.cache
def traced(name: str) -> tuple[Any, Any, graph.GraphBuilder]:
    """Returns a program, its function as it was loaded, and the graph that holds it."""
    fn, specs = PROGRAMS[name]
    builder = jm.Graph()
    signature = builder.add_signature(name, fn, *specs)
    return jax.jit(fn), build_function(builder, signature), builder


def arrays(name: str, sizes: dict[str, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    made = []
    for spec in PROGRAMS[name][1]:
        (shape,) = [export.symbolic_shape(", ".join(map(str, spec.shape)))]
        known = [int(d) if isinstance(d, int) else evaluate(d, sizes) for d in shape]
        if spec.dtype == np.int32:
            made.append(rng.integers(0, 2, known).astype(np.int32))
        else:
            made.append(rng.standard_normal(known).astype(np.float32))
    return made


def evaluate(dimension: Any, sizes: dict[str, int]) -> int:
    from jaxmeta.tracing import dimensions

    return int(dimensions.evaluate(dimensions.parse(str(dimension)), sizes))


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
