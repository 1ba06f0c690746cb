"""States in their original classes: with a template, or imported by name where asked for."""

from __future__ import annotations

import collections
import dataclasses
import sys
import textwrap
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from state_round_trip import described_leaves, save_and_load

import jaxmeta
from jaxmeta import errors, original_classes, trees

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
Y = np.linspace(0, 1, 8, dtype=np.float32).reshape(4, 2)


class Pair(NamedTuple):
    first: Any
    second: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layer:
    kernel: Any
    bias: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Named:
    kernel: Any
    name: str = dataclasses.field(default="dense", metadata={"static": True})


@jax.tree_util.register_pytree_with_keys_class
class Table(dict):
    def tree_flatten_with_keys(self):
        return [(jax.tree_util.DictKey(key), self[key]) for key in self], tuple(self)

    @classmethod
    def tree_unflatten(cls, keys, children):
        return cls(zip(keys, children, strict=True))


@jax.tree_util.register_pytree_with_keys_class
class Point:
    """A class of its own whose constructor does more than hold its children."""

    made = 0

    def __init__(self, x: Any, unit: str = "") -> None:
        type(self).made += 1
        self.x, self.unit = x, unit

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("x"), self.x)], getattr(self, "unit", None) or None

    @classmethod
    def tree_unflatten(cls, unit, children):
        made = object.__new__(cls)
        (made.x,), made.unit = children, unit or ""
        return made


class Unregistered(NamedTuple("Unregistered", [("a", Any)])):  # a NamedTuple is registered by JAX
    pass


class Bare:
    pass


def data(tree: Any) -> list[tuple[Any, ...]]:
    return [leaf for _, leaf in described_leaves(tree)]


# --- classes by name -----------------------------------------------------------------------------


STATES = {
    "plain containers": lambda: {"a": [jnp.ones(2), (None, 1)], "b": collections.OrderedDict(z=2)},
    "namedtuples": lambda: Pair(jnp.ones(2), Pair(None, Unregistered(3.0))),
    "dataclasses": lambda: [Layer(jnp.ones(2), jnp.zeros(3)), Layer(jnp.ones(4))],
    "dict's subclass": lambda: Table(z=jnp.ones(2), a=Table()),
    "object without static data": lambda: {"p": Point(jnp.ones(2))},
}


@pytest.mark.parametrize("make", STATES.values(), ids=STATES)
def test_state_comes_back_in_the_classes_that_are_recorded(make, tmp_path):
    state = make()
    program = save_and_load(state, tmp_path)
    made = Point.made
    found = program.original_state()
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert described_leaves(found) == described_leaves(state)
    assert Point.made == made, "constructors of objects are not run"
    assert data(program["same"](found)) == data(state)


def test_flax_and_optax_states_come_back_in_their_classes(tmp_path):
    core, optax = pytest.importorskip("flax.core"), pytest.importorskip("optax")
    params = core.freeze({"dense": {"w": jnp.ones((3, 2))}, "b": jnp.ones(2)})
    rules = [
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(0.1, 0, 9))),
        optax.MultiSteps(optax.sgd(0.1, momentum=0.9), 2),
        optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    ]
    state = {"params": params, "rules": [rule.init(params) for rule in rules]}
    found = save_and_load(state, tmp_path).original_state()
    assert jax.tree.structure(found) == jax.tree.structure(state)
    grads = jax.tree.map(jnp.ones_like, params)
    for rule, mine, theirs in zip(rules, found["rules"], state["rules"], strict=True):
        expected = rule.update(grads, theirs, params)
        assert data(rule.update(grads, mine, found["params"])) == data(expected)


def test_nnx_state_of_arrays_comes_back_in_its_class(tmp_path):
    nnx = pytest.importorskip("flax.nnx")
    state = nnx.State({"kernel": jnp.ones(2), "layers": nnx.State({0: jnp.ones(3)})})
    found = save_and_load(state, tmp_path).original_state()
    assert type(found) is nnx.State
    assert described_leaves(found) == described_leaves(state)


def test_all_classes_that_need_more_than_arrays_are_named(tmp_path):
    state = {
        "named": Named(jnp.ones(2)),
        "default": collections.defaultdict(list, a=jnp.ones(2)),
        "pair": Pair(Named(jnp.ones(2)), 1),
    }
    program = save_and_load(state, tmp_path)
    with pytest.raises(errors.CheckpointError) as caught:
        program.original_state()
    assert str(caught.value).splitlines() == [
        "these classes cannot be had from the file alone:",
        "  collections.defaultdict: needs more than its arrays, such as static fields: its "
        "default_factory",
        f"  {__name__}.Named: needs more than its arrays, such as static fields: name",
        "Make a state with the original code, or under jax.eval_shape, and pass it to "
        "`Program.state_like`.",
    ]


@pytest.mark.parametrize("library", ["flax", "equinox"])
def test_classes_with_static_fields_ask_for_a_template(library, tmp_path):
    state, names = (linen_state()[0], ["TrainState"]) if library == "flax" else equinox_names()
    program = save_and_load(state, tmp_path)
    with pytest.raises(errors.CheckpointError, match=r"Program\.state_like") as caught:
        program.original_state()
    assert all(name in str(caught.value) for name in names)
    assert jax.tree.structure(program.state_like(state)) == jax.tree.structure(state)


def equinox_names() -> tuple[Any, list[str]]:
    eqx = pytest.importorskip("equinox")
    return eqx.filter(eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)), eqx.is_array), [
        "equinox.nn._mlp.MLP",
        "equinox.nn._linear.Linear",
    ]


# --- what names may do ---------------------------------------------------------------------------


def leaf_of(kind: str, class_name: str, *keys: str) -> trees.Branch:
    return trees.Branch(kind, class_name, keys, tuple(trees.Leaf("x", (), 1) for _ in keys))


@pytest.mark.parametrize(
    ("class_name", "kind", "keys", "reason"),
    [
        ("os.system", "object", ["path"], "is no class that can be imported"),
        ("os.path.join", "object", ["a"], "is no class that can be imported"),
        ("no.such.module.Class", "object", ["a"], "is no class that can be imported"),
        ("Class", "object", ["a"], "is no class that can be imported"),
        ("jaxmeta.errors.np.Other", "object", ["a"], "is no class that can be imported"),
        # Another name of a class: what the record says is where it was defined.
        ("jaxmeta.Graph", "object", ["a"], "is no class that can be imported"),
        ("a.<locals>.B", "object", ["a"], "was defined in a function"),
        ("subprocess.Popen", "object", ["args"], "is not registered with jax.tree_util"),
        (f"{__name__}.Bare", "object", ["a"], "is not registered with jax.tree_util"),
        (f"{__name__}.Pair", "namedtuple", ["first", "third"], "has other fields now"),
        (f"{__name__}.Layer", "object", ["kernel"], "needs more than its arrays"),
        (f"{__name__}.Layer", "object", ["kernel", "bias", "more"], "has other children now"),
        (f"{__name__}.Point", "object", ["y"], "needs more than its arrays"),
        ("builtins.int", "object", ["real"], "needs more than its arrays"),
        ("builtins.str", "list", [], "needs more than its arrays"),
    ],
)
def test_names_that_are_no_fitting_class_are_refused(class_name, kind, keys, reason):
    record = leaf_of(kind, class_name, *keys)
    with pytest.raises(errors.CheckpointError) as caught:
        original_classes.build(record, iter(range(9)))
    assert f"{class_name}: {reason}" in str(caught.value)


def test_modules_are_imported_only_where_classes_are_asked_for(tmp_path, monkeypatch):
    source = """
        from typing import Any, NamedTuple
        class Weights(NamedTuple):
            w: Any
    """
    (tmp_path / "model_of_test.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    import model_of_test

    program = save_and_load(model_of_test.Weights(jnp.ones(2)), tmp_path)
    monkeypatch.delitem(sys.modules, "model_of_test")
    assert type(program.state).__name__ == "Weights"
    assert data(program["same"](program.state)) == data(program.state)
    assert "model_of_test" not in sys.modules
    found = program.original_state()
    assert type(found) is sys.modules["model_of_test"].Weights


# --- several states ------------------------------------------------------------------------------


def test_states_are_had_one_by_one_or_all(tmp_path):
    graph = jaxmeta.Graph()
    states = {"one": Pair(1, 2.0), "two": [Layer(jnp.ones(2))]}
    for name, state in states.items():
        graph.variables(state, name=name)
    with jaxmeta.Saver(graph) as saver:
        prefix = saver.save(states, tmp_path / "model")
    program = jaxmeta.load(prefix)
    assert jax.tree.structure(program.original_state()) == jax.tree.structure(states)
    assert type(program.original_state("one")) is Pair
    assert jax.tree.structure(program.state_like(states)) == jax.tree.structure(states)
    assert type(program.state_like(Pair(0, 0), "one")) is Pair
    with pytest.raises(errors.CheckpointError, match="no state named 'three'; there are: 'one'"):
        program.original_state("three")
    with pytest.raises(errors.CheckpointError, match="only in the template"):
        program.state_like(Pair(0, 0))


def test_template_with_its_leaves_in_another_order_is_refused(tmp_path):
    program = save_and_load(collections.OrderedDict(z=1, a=2), tmp_path)
    with pytest.raises(errors.CheckpointError, match="the same leaves, in another order"):
        program.state_like(collections.OrderedDict(a=1, z=2))


# --- training goes on in the original library ----------------------------------------------------


def linen_state() -> tuple[Any, Any]:
    linen = pytest.importorskip("flax.linen")
    train_state = pytest.importorskip("flax.training.train_state")
    optax = pytest.importorskip("optax")

    class TrainState(train_state.TrainState):
        batch_stats: Any
        key: Any

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.BatchNorm(use_running_average=False)(linen.Dense(5)(x))
            return linen.Dense(2)(linen.Dropout(0.5, deterministic=False)(linen.relu(x)))

    net = Net()
    variables = net.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, X)
    state = TrainState.create(
        apply_fn=net.apply,
        params=variables["params"],
        tx=optax.adamw(0.1),
        batch_stats=variables["batch_stats"],
        key=jax.random.key(2),
    )

    def step(state, x, y):
        key, dropout = jax.random.split(state.key)

        def loss(params):
            found, updates = state.apply_fn(
                {"params": params, "batch_stats": state.batch_stats},
                x,
                rngs={"dropout": dropout},
                mutable=["batch_stats"],
            )
            return ((found - y) ** 2).mean(), updates

        grads, updates = jax.grad(loss, has_aux=True)(state.params)
        state = state.apply_gradients(grads=grads)
        return state.replace(batch_stats=updates["batch_stats"], key=key)

    return state, step


def nnx_state() -> tuple[Any, Any]:
    nnx = pytest.importorskip("flax.nnx")
    optax = pytest.importorskip("optax")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(3, 5, rngs=rngs)
            self.norm = nnx.BatchNorm(5, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.second = nnx.Linear(5, 2, rngs=rngs)

        def __call__(self, x):
            return self.second(self.dropout(nnx.relu(self.norm(self.first(x)))))

    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    graphdef, state = nnx.split((model, optimizer))

    def step(state, x, y):
        model, optimizer = nnx.merge(graphdef, state)
        grads = nnx.grad(lambda model: ((model(x) - y) ** 2).mean())(model)
        optimizer.update(model, grads)
        return nnx.split((model, optimizer))[1]

    return state, step


def nnx_filtered_state() -> tuple[Any, Any]:
    """The state in parts, of which the parameters alone are trained."""
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1)))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def step(state, x, y):
        def loss(params):
            return ((nnx.merge(graphdef, params, state["rest"])(x) - y) ** 2).mean()

        grads = jax.grad(loss)(state["params"])
        params = jax.tree.map(lambda p, g: p - 0.1 * g, state["params"], grads)
        return {"params": params, "rest": state["rest"]}

    return {"params": params, "rest": rest}, step


def equinox_state() -> tuple[Any, Any]:
    eqx = pytest.importorskip("equinox")
    optax = pytest.importorskip("optax")
    model = eqx.nn.MLP(3, 2, 4, 2, activation=jax.nn.gelu, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    rule = optax.adam(0.1)

    def step(state, x, y):
        params, slots = state["params"], state["slots"]

        def loss(params):
            return ((jax.vmap(eqx.combine(params, static))(x) - y) ** 2).mean()

        updates, slots = rule.update(jax.grad(loss)(params), slots, params)
        return {"params": eqx.apply_updates(params, updates), "slots": slots}

    return {"params": params, "slots": rule.init(params)}, step


LIBRARIES = {
    "linen": linen_state,
    "nnx": nnx_state,
    "nnx in parts": nnx_filtered_state,
    "equinox": equinox_state,
}


@pytest.mark.parametrize("make", LIBRARIES.values(), ids=LIBRARIES)
def test_training_goes_on_in_the_library_with_a_template(make, tmp_path):
    state, step = make()
    jitted = jax.jit(step)
    trained = jitted(jitted(state, X, Y), X, Y)
    graph = jaxmeta.Graph()
    graph.add_signature("step", step, graph.variables(state), X, Y, updates=0)
    with jaxmeta.Saver(graph) as saver:
        prefix = saver.save(trained, tmp_path / "model")
    program = jaxmeta.load(prefix)
    restored = program.state_like(jax.eval_shape(lambda: state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert described_leaves(restored) == described_leaves(trained)
    expected = jitted(trained, X, Y)
    assert described_leaves(jitted(restored, X, Y)) == described_leaves(expected)
    # The loaded step takes the library's classes, and returns them.
    found = program["step"](restored, X, Y)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert described_leaves(found) == described_leaves(expected)
