"""Graphs that grow from Python: variables, signatures, placeholders, constants, donation."""

from __future__ import annotations

import collections
import dataclasses
import functools
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxmeta
from jaxmeta import errors, trees
from jaxmeta.meta_graphs import meta_graph


def imported(graph: jaxmeta.Graph) -> jaxmeta.Graph:
    return meta_graph.import_graph(jaxmeta.export_meta_graph(graph=graph))


def entry(graph: jaxmeta.Graph, name: str) -> Any:
    """Returns a signature as a fresh process would get it."""
    read = imported(graph)
    read.constants.update(graph.constants)  # which the checkpoint holds
    return jaxmeta.Program(read, {})[name]


# --- variables -----------------------------------------------------------------------------------


class Moments(NamedTuple):
    mu: Any
    nu: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any


def test_variables_are_named_by_their_paths():
    graph = jaxmeta.Graph()
    state = {
        "params": {"Dense_0": Layer(jnp.ones((2, 3)), jnp.ones(3))},
        "opt": (Moments(jnp.ones(2), [jnp.ones(1), None]), ()),
        "by_number": {3: jnp.ones(1), 10: jnp.ones(1)},
        "ordered": collections.OrderedDict(z=jnp.ones(1), a=jnp.ones(1)),
    }
    variables = graph.variables(state)
    assert jax.tree.structure(variables) == jax.tree.structure(state)
    assert graph.variable_names == (
        "by_number/3",
        "by_number/10",
        "opt/0/mu",
        "opt/0/nu/0",
        "ordered/z",
        "ordered/a",
        "params/Dense_0/kernel",
        "params/Dense_0/bias",
    )
    kernel = variables["params"]["Dense_0"].kernel
    assert (kernel.name, kernel.shape, kernel.dtype) == (
        "params/Dense_0/kernel:0",
        (2, 3),
        np.dtype("float32"),
    )
    assert graph.variable("params/Dense_0/kernel") is kernel


def test_characters_that_tensorflow_forbids_are_replaced_in_names():
    graph = jaxmeta.Graph()
    graph.variables({"a b": jnp.ones(1), "a:b": jnp.ones(1), "_x": jnp.ones(1), "é": jnp.ones(1)})
    names = graph.variable_names
    assert len({name.lower() for name in names}) == 4
    assert all(name.isascii() and ":" not in name and " " not in name for name in names)


def test_names_that_differ_in_case_alone_are_kept_apart():
    graph = jaxmeta.Graph()
    variables = graph.variables({"W": jnp.ones(1), "w": jnp.ones(2)})
    assert graph.variable_names == ("W", "w_1")
    assert [variables["W"].shape, variables["w"].shape] == [(1,), (2,)]


def test_path_that_is_a_prefix_of_another_gets_a_name_of_its_own():
    graph = jaxmeta.Graph()
    graph.variables({"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(2)})
    assert len(set(graph.variable_names)) == 2


def test_second_state_gets_a_scope():
    graph = jaxmeta.Graph()
    graph.variables({"w": jnp.ones(2)})
    graph.variables({"w": jnp.ones(3)}, name="ema")
    assert graph.variable_names == ("w", "ema/w")
    assert sorted(graph.state_trees) == ["", "ema"]


def test_second_state_of_the_same_name_is_refused():
    graph = jaxmeta.Graph()
    graph.variables({"w": jnp.ones(2)})
    with pytest.raises(errors.GraphError):
        graph.variables({"w": jnp.ones(3)})


def test_state_that_is_one_array_is_one_variable():
    graph = jaxmeta.Graph()
    variable = graph.variables(jnp.ones((2, 2)))
    assert variable.shape == (2, 2)
    graph.add_signature("double", lambda x: 2 * x, variable, updates=0)
    np.testing.assert_array_equal(entry(graph, "double")(jnp.ones((2, 2))), 2 * np.ones((2, 2)))


def test_shapes_and_dtypes_alone_make_variables():
    graph = jaxmeta.Graph()
    graph.variables({"w": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)})
    variable = graph.variable("w")
    assert (variable.shape, variable.dtype) == ((2, 3), np.dtype(jnp.bfloat16))


def test_python_numbers_become_variables_of_jax_dtypes():
    graph = jaxmeta.Graph()
    graph.variables({"flag": True, "step": 3, "rate": 0.5})
    dtypes = {name: graph.variable(name).dtype for name in graph.variable_names}
    assert dtypes == {"flag": np.bool_, "step": np.int32, "rate": np.float32}


def trainable(graph: jaxmeta.Graph) -> list[str]:
    return [variable.op_name for variable in graph.get_collection("trainable_variables")]


def test_real_arrays_below_params_are_trainable():
    graph = jaxmeta.Graph()
    graph.variables(
        {"params": {"w": jnp.ones(1), "n": jnp.ones(1, int)}, "opt": {"params": jnp.ones(1)}}
    )
    assert trainable(graph) == ["params/w"]
    assert [v.op_name for v in graph.get_collection("variables")] == list(graph.variable_names)


def test_all_real_arrays_are_trainable_where_there_are_no_params():
    graph = jaxmeta.Graph()
    graph.variables({"w": jnp.ones(1), "step": jnp.ones(1, int), "key": jax.random.key(0)})
    assert trainable(graph) == ["w"]


def test_caller_may_say_what_is_trainable():
    graph = jaxmeta.Graph()
    graph.variables({"params": jnp.ones(1), "bias": jnp.ones(1)}, trainable=lambda n: n == "bias")
    assert trainable(graph) == ["bias"]


def test_initial_values_take_no_room_in_the_file():
    graph = jaxmeta.Graph()
    graph.variables({"w": jax.ShapeDtypeStruct((100_000, 100_000), np.float32)})
    assert jaxmeta.export_meta_graph(graph=graph).ByteSize() < 5000


# --- signatures that share ----------------------------------------------------------------------


def test_signatures_share_variables_and_functions_stay_apart():
    graph = jaxmeta.Graph()
    variables = graph.variables({"w": jnp.ones((3, 2)), "b": jnp.ones(2)})
    graph.add_signature("logits", lambda v, x: x @ v["w"] + v["b"], variables, jnp.ones((4, 3)))
    graph.add_signature("kernel_norm", lambda w: (w**2).sum(), variables["w"])
    handles = [node.name for node in graph.nodes.values() if node.op == "VarHandleOp"]
    assert handles == ["b", "w"]
    reads = [
        [ref for ref in graph.nodes[name].input if "Read" in ref]
        for name in ("logits", "kernel_norm")
    ]
    assert reads == [
        ["b/Read/ReadVariableOp", "w/Read/ReadVariableOp"],
        ["w/Read/ReadVariableOp"],
    ]
    state = {"w": jnp.full((3, 2), 2.0), "b": jnp.zeros(2)}
    np.testing.assert_array_equal(entry(graph, "logits")(state, jnp.ones((4, 3))), 6.0)
    assert entry(graph, "kernel_norm")(state["w"]) == 24


def placeholders(graph: jaxmeta.Graph) -> list[str]:
    return [node.name for node in graph.nodes.values() if node.op == "Placeholder"]


def test_placeholders_are_named_by_argument_and_path_and_shared_where_they_agree():
    graph = jaxmeta.Graph()
    batch = {"image": jnp.ones((2, 3)), "label": jnp.ones(2, int)}
    graph.add_signature("a", lambda batch, rate: batch["image"] * rate, batch, 0.5)
    graph.add_signature("b", lambda batch: batch["image"] * 2, batch)
    assert placeholders(graph) == ["batch/image", "batch/label", "rate"]


def test_placeholder_of_another_shape_or_dtype_is_its_own():
    graph = jaxmeta.Graph()
    for index, x in enumerate([jnp.ones(2), jnp.ones(3), jnp.ones(2, int)]):
        graph.add_signature(f"s{index}", lambda x: x * 2, x)
    assert placeholders(graph) == ["x", "x_1", "x_2"]
    for index, x in enumerate([jnp.ones(2), jnp.ones(3), jnp.ones(2, int)]):
        np.testing.assert_array_equal(entry(graph, f"s{index}")(x), x * 2)


def test_positional_and_named_arguments_keep_their_names():
    graph = jaxmeta.Graph()

    def fn(x, *rest, scale, flags):
        return x * scale + sum(rest) + flags["on"]

    args, kwargs = (jnp.ones(2), jnp.ones(2), jnp.ones(2)), {"scale": 3.0, "flags": {"on": 1.0}}
    graph.add_signature("fn", fn, *args, **kwargs)
    assert placeholders(graph) == ["x", "arg1", "arg2", "flags/on", "scale"]
    found = entry(graph, "fn")(*args, **kwargs)
    np.testing.assert_array_equal(found, fn(*args, **kwargs))


def test_kwargs_may_come_in_any_order():
    graph = jaxmeta.Graph()
    graph.add_signature("fn", lambda **kw: kw["a"] - kw["b"], b=jnp.ones(2), a=jnp.zeros(2))
    run = entry(graph, "fn")
    np.testing.assert_array_equal(run(a=jnp.full(2, 5.0), b=jnp.full(2, 2.0)), [3.0, 3.0])
    np.testing.assert_array_equal(run(b=jnp.full(2, 2.0), a=jnp.full(2, 5.0)), [3.0, 3.0])


def test_argument_of_a_signature_may_be_a_tensor_of_the_graph():
    graph = jaxmeta.Graph()
    graph.add_signature("double", lambda x: x * 2, jnp.ones(3))
    graph.add_signature("next", lambda y: y + 1, graph.get_tensor_by_name("double:0"))
    with jaxmeta.Session(graph) as session:
        found = session.run("next:0", {"x:0": jnp.full(3, 4.0)})
    np.testing.assert_array_equal(found, [9.0, 9.0, 9.0])


def test_variable_of_another_graph_is_refused():
    variable = jaxmeta.Graph().variables(jnp.ones(3))
    with pytest.raises(errors.GraphError, match="belongs to another graph"):
        jaxmeta.Graph().add_signature("double", lambda x: x * 2, variable)


def test_scope_of_the_graph_precedes_the_names_of_a_signature():
    graph = jaxmeta.Graph()
    with graph.name_scope("tower"):
        graph.add_signature("double", lambda x: x * 2, jnp.ones(3))
    assert list(graph.signatures) == ["double"]
    assert placeholders(graph) == ["tower/x"]
    np.testing.assert_array_equal(entry(graph, "double")(jnp.ones(3)), [2.0, 2.0, 2.0])


def test_signature_may_have_the_name_of_a_variable_or_an_op():
    graph = jaxmeta.Graph()
    variable = graph.variables({"w": jnp.ones(3)})
    graph.add_signature("w", lambda v: v["w"] * 2, variable)
    graph.add_signature("Const", lambda v: v["w"] * 3, variable)
    graph.add_signature("MatMul", lambda v: v["w"] * 4, variable)
    found = [entry(graph, name)({"w": jnp.ones(3)})[0] for name in ("w", "Const", "MatMul")]
    assert found == [2, 3, 4]


def test_named_scopes_and_gradients_show_in_the_names_of_nodes():
    def loss(w, x):
        with jax.named_scope("dense"):
            return jnp.tanh(x @ w).sum()

    graph = jaxmeta.Graph()
    graph.add_signature("grad", jax.grad(loss), jnp.ones((3, 2)), jnp.ones((4, 3)))
    (function,) = (f for name, f in graph.functions.items() if name == "grad")
    names = [node.name for node in function.node_def]
    assert any(name.startswith("dense/") for name in names)
    assert any(name.startswith("gradients/dense/") for name in names)


# --- closed-over arrays --------------------------------------------------------------------------


def test_large_arrays_become_variables_and_small_ones_consts():
    large, small = jnp.arange(1000.0), jnp.arange(3.0)
    graph = jaxmeta.Graph()
    graph.add_signature("fn", lambda x: x + large.sum() + small, jnp.ones(3))
    (name,) = graph.variable_names
    assert graph.variable(name).shape == (1000,)
    assert not graph.variable(name).trainable
    assert graph.constants[name] is large
    assert trainable(graph) == []
    np.testing.assert_array_equal(
        entry(graph, "fn")(jnp.ones(3)), jnp.ones(3) + large.sum() + small
    )


def test_array_that_two_signatures_close_over_is_one_variable():
    table = jnp.arange(1000.0)
    graph = jaxmeta.Graph()
    graph.add_signature("a", lambda i: table[i], jnp.ones(2, int))
    graph.add_signature("b", lambda i: table[i] * 2, jnp.ones(2, int))
    assert len(graph.variable_names) == 1
    found = [entry(graph, name)(jnp.array([3, 4])).tolist() for name in ("a", "b")]
    assert found == [[3, 4], [6, 8]]


def test_numpy_array_and_key_that_are_closed_over():
    table, key = np.arange(1000.0, dtype=np.float32), jax.random.key(3)
    graph = jaxmeta.Graph()

    def fn(x):
        return x + table.sum() + jax.random.uniform(key)

    graph.add_signature("fn", fn, jnp.ones(3))
    np.testing.assert_array_equal(entry(graph, "fn")(jnp.ones(3)), jax.jit(fn)(jnp.ones(3)))


def test_closed_over_arrays_are_saved_and_loaded(tmp_path):
    large = jnp.arange(1000.0)
    graph = jaxmeta.Graph()
    variables = graph.variables({"w": jnp.ones(3)})
    graph.add_signature("fn", lambda v: v["w"] * large.sum(), variables)
    with jaxmeta.Saver(graph) as saver:
        prefix = saver.save({"w": jnp.ones(3)}, tmp_path / "model")
    program = jaxmeta.load(prefix)
    assert list(program.state) == ["w"]
    np.testing.assert_array_equal(program["fn"](program.state), jnp.ones(3) * large.sum())


# --- updates and donation ------------------------------------------------------------------------


def counter() -> dict[str, Any]:
    return {"n": jnp.zeros((), jnp.int32), "sum": jnp.zeros(3)}


def count(state, x):
    return {"n": state["n"] + 1, "sum": state["sum"] + x}, state["n"]


def test_updates_assign_results_to_variables():
    graph = jaxmeta.Graph()
    graph.add_signature("count", count, graph.variables(counter()), jnp.ones(3), updates=0)
    signature = graph.signatures["count"]
    assert signature.updates == ((0, 0),)
    (train_op,) = graph.get_collection("train_op")
    assert train_op.name == signature.train_op == "count/update"
    assigned = [ref[1:] for ref in train_op.node_def.input]
    assert [list(graph.nodes[name].input) for name in assigned] == [
        ["n", "count"],
        ["sum", "count:1"],
    ]


def test_updates_may_pair_other_results_and_arguments():
    graph = jaxmeta.Graph()
    variables = graph.variables(counter())

    def step(x, total, n):
        return x * 2, n + 1, total + x

    graph.add_signature(
        "step", step, jnp.ones(3), variables["sum"], variables["n"], updates={2: 1, 1: 2}
    )
    with jaxmeta.Session(graph) as session:
        session.set_state(counter())
        session.run("step/update", {"x:0": jnp.full(3, 2.0)})
        session.run("step/update", {"x:0": jnp.full(3, 2.0)})
        np.testing.assert_array_equal(session.state["sum"], [4.0, 4.0, 4.0])
        assert session.state["n"] == 2


def test_update_of_the_only_result():
    graph = jaxmeta.Graph()
    variables = graph.variables({"w": jnp.ones(2)})
    graph.add_signature("double", lambda v: {"w": v["w"] * 2}, variables, updates=0)
    run = entry(graph, "double")
    assert list(run({"w": jnp.ones(2)})) == ["w"]


@pytest.mark.parametrize("updates", [1, {0: 5}, {5: 0}])
def test_update_of_what_is_not_there_is_refused(updates):
    graph = jaxmeta.Graph()
    with pytest.raises(errors.GraphError):
        graph.add_signature(
            "count", count, graph.variables(counter()), jnp.ones(3), updates=updates
        )
    assert "count" not in graph.signatures


def donated(lowered: Any) -> list[bool]:
    return [info.donated for info in jax.tree.leaves(lowered.args_info)]


def test_updated_argument_is_donated():
    graph = jaxmeta.Graph()
    graph.add_signature("count", count, graph.variables(counter()), jnp.ones(3), updates=0)
    run = entry(graph, "count")
    assert donated(run.lower(counter(), jnp.ones(3))) == [True, True, False]
    state = counter()
    run(state, jnp.ones(3))
    assert state["sum"].is_deleted()


def test_donation_may_be_refused():
    graph = jaxmeta.Graph()
    variables = graph.variables(counter())
    graph.add_signature("count", count, variables, jnp.ones(3), updates=0, donate=False)
    assert donated(entry(graph, "count").lower(counter(), jnp.ones(3))) == [False] * 3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"donate_argnums": 0},
        {"donate_argnums": (0, 1)},
        {"donate_argnames": "batch"},
        {"donate_argnames": ("state",)},
    ],
    ids=str,
)
def test_jitted_function_keeps_its_own_donation(options):
    @functools.partial(jax.jit, **options)
    def step(state, batch):
        return {"w": state["w"] + batch["x"]}, (batch["x"] * 3, batch["y"] * 2)

    state, batch = {"w": jnp.ones(3)}, {"x": jnp.ones(3), "y": jnp.ones(3)}
    graph = jaxmeta.Graph()
    graph.add_signature("step", step, graph.variables(state), batch, updates=0)
    run = entry(graph, "step")
    expected, found = step.lower(state, batch), run.lower(state, batch)
    assert donated(found) == donated(expected)
    assert found.as_text() == expected.as_text()


def test_donation_by_name_is_kept_for_named_arguments():
    @functools.partial(jax.jit, donate_argnames="state")
    def step(x, *, state):
        return state + x

    graph = jaxmeta.Graph()
    graph.add_signature("step", step, jnp.ones(3), state=jnp.ones(3))
    found = entry(graph, "step").lower(jnp.ones(3), state=jnp.ones(3))
    expected = step.lower(jnp.ones(3), state=jnp.ones(3))
    assert donated(found) == donated(expected)
    assert found.as_text() == expected.as_text()


def test_static_arguments_become_part_of_the_program():
    @functools.partial(jax.jit, static_argnums=(0, 3), static_argnames="mode", donate_argnums=1)
    def step(sizes, state, batch, power, *, mode, scale):
        assert mode == "sum"
        total = jnp.sum(batch**power) * scale
        return {"w": state["w"] + total, "n": state["n"] + sizes[1]}, total

    state = {"w": jnp.ones(3), "n": jnp.int32(0)}
    graph = jaxmeta.Graph()
    graph.add_signature(
        "step",
        step,
        (2, 3),
        graph.variables(state),
        jnp.ones(4),
        2,
        mode="sum",
        scale=2.0,
        updates={0: 1},
    )
    assert "batch" in graph.nodes
    found = entry(graph, "step").lower(state, jnp.ones(4), scale=2.0)
    expected = step.lower((2, 3), state, jnp.ones(4), 2, mode="sum", scale=2.0)
    assert donated(found) == donated(expected)
    assert found.as_text() == expected.as_text()
    new, total = entry(graph, "step")(state, jnp.full(4, 3.0), scale=2.0)
    assert (int(new["n"]), float(total)) == (3, 72.0)


def test_equal_arguments_of_which_one_is_static_are_told_apart_by_name():
    step = jax.jit(lambda n, x: jnp.full(n, x), static_argnums=0)
    graph = jaxmeta.Graph()
    graph.add_signature("step", step, 3, 2)
    assert "x" in graph.nodes
    np.testing.assert_array_equal(entry(graph, "step")(5), [5, 5, 5])


def test_static_arguments_that_cannot_be_told_are_refused_with_what_to_do():
    step = jax.jit(lambda *sizes: jnp.full(sizes[0], sizes[1]), static_argnums=0)
    with pytest.raises(errors.GraphError, match=r"which are static; bind those first.*partial"):
        jaxmeta.Graph().add_signature("step", step, 3, 2)
    with pytest.raises(errors.GraphError, match="argument 1 is static; there is nothing to update"):
        jaxmeta.Graph().add_signature(
            "step", jax.jit(lambda x, n: x * n, static_argnums=1), jnp.ones(3), 2, updates=1
        )


def test_a_compiled_function_is_refused_with_what_to_do():
    compiled = jax.jit(lambda x: x + 1).lower(jnp.ones(3)).compile()
    with pytest.raises(errors.GraphError, match=r"Compiled function.*give what it was made of"):
        jaxmeta.Graph().add_signature("step", compiled, jnp.ones(3))


def test_a_function_under_the_jit_of_a_library_is_traced_by_jax():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    graph = jaxmeta.Graph()
    graph.add_signature(
        "apply", nnx.jit(lambda m, x: m(x)), graph.variables(model), jnp.ones((4, 3))
    )
    np.testing.assert_array_equal(
        entry(graph, "apply")(model, jnp.ones((4, 3))), model(jnp.ones((4, 3)))
    )


def test_options_for_the_compiler_are_refused_with_what_to_do():
    step = jax.jit(lambda x: x + 1, compiler_options={"xla_cpu_enable_fast_math": False})
    with pytest.raises(errors.GraphError, match=r"compiler_options.* later"):
        jaxmeta.Graph().add_signature("step", step, jnp.ones(3))


# --- trees of arguments and results ---------------------------------------------------------------


def test_results_keep_their_structure():
    def fn(x):
        return {"a": (x, [x + 1, None]), "m": Moments(x, {}), "l": Layer(x, (x,))}

    graph = jaxmeta.Graph()
    graph.add_signature("fn", fn, jnp.ones(2))
    found, expected = entry(graph, "fn")(jnp.ones(2)), fn(jnp.ones(2))
    paths = [
        [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
        for tree in (found, expected)
    ]
    assert paths[0] == paths[1]
    assert type(found["m"])._fields == Moments._fields
    assert found["a"][1][1] is None


def test_updated_result_has_the_classes_its_argument_came_with():
    graph = jaxmeta.Graph()
    state = Layer(jnp.ones(2), Moments(jnp.ones(2), jnp.ones(2)))

    def step(state, x):
        return jax.tree.map(lambda leaf: leaf + x, state), x

    graph.add_signature("step", step, graph.variables(state), jnp.ones(2), updates=0)
    found, _ = entry(graph, "step")(jax.tree.map(jnp.copy, state), jnp.ones(2))
    assert type(found) is Layer
    assert type(found.bias) is Moments


def test_typed_keys_in_state_arguments_and_results():
    state = {"key": jax.random.key(1), "keys": jax.random.split(jax.random.key(2), 3)}

    def step(state, key):
        new, noise = jax.random.split(state["key"])
        return (
            {"key": new, "keys": jax.random.split(key, 3)},
            {"noise": jax.random.normal(noise, (2,)), "key": noise},
        )

    graph = jaxmeta.Graph()
    variables = graph.variables(state)
    assert variables["keys"].shape == (3, 2)
    assert variables["keys"].dtype == np.uint32
    assert variables["keys"].key_impl == "threefry2x32"
    graph.add_signature("step", step, variables, jax.random.key(0), updates=0)
    expected = jax.jit(step)(state, jax.random.key(7))
    found = entry(graph, "step")(jax.tree.map(jnp.copy, state), jax.random.key(7))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        data = [
            jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
            for x in (one, other)
        ]
        np.testing.assert_array_equal(*data)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_every_implementation_are_state(impl, tmp_path):
    state = {"key": jax.random.key(5, impl=impl)}

    def step(state):
        new, noise = jax.random.split(state["key"])
        return {"key": new}, jax.random.bits(noise, (4,))

    graph = jaxmeta.Graph()
    graph.add_signature("step", step, graph.variables(state), updates=0)
    with jaxmeta.Saver(graph) as saver:
        prefix = saver.save(state, tmp_path / "model")
    program = jaxmeta.load(prefix)
    assert program.state["key"].dtype == state["key"].dtype
    new, noise = program["step"](program.state)
    wanted_new, wanted_noise = jax.jit(step)(state)
    np.testing.assert_array_equal(noise, wanted_noise)
    np.testing.assert_array_equal(
        jax.random.key_data(new["key"]), jax.random.key_data(wanted_new["key"])
    )


def test_imported_function_has_the_name_of_the_original():
    def my_train_step(x):
        return x + 1

    graph = jaxmeta.Graph()
    graph.add_signature("step", my_train_step, jnp.ones(2))
    run = entry(graph, "step")
    assert run.__name__ == "my_train_step"
    assert run.lower(jnp.ones(2)).as_text() == jax.jit(my_train_step).lower(jnp.ones(2)).as_text()


def test_imported_function_can_be_differentiated_batched_and_jitted():
    graph = jaxmeta.Graph()
    graph.add_signature("loss", lambda w, x: jnp.tanh(x @ w).sum(), jnp.ones(3), jnp.ones(3))
    loss = entry(graph, "loss")

    def original(w, x):
        return jnp.tanh(x @ w).sum()

    w, xs = jnp.linspace(0, 1, 3), jnp.linspace(-1, 1, 12).reshape(4, 3)
    for transform in (
        lambda f: jax.jit(jax.vmap(jax.grad(f), (None, 0))),
        lambda f: jax.jit(jax.vmap(jax.hessian(f), (None, 0))),
    ):
        np.testing.assert_array_equal(transform(loss)(w, xs), transform(original)(w, xs))


# --- default graphs and collections ---------------------------------------------------------------


def test_innermost_default_graph_is_the_default_one():
    outer, inner = jaxmeta.Graph(), jaxmeta.Graph()
    with outer.as_default():
        with inner.as_default():
            assert jaxmeta.get_default_graph() is inner
        assert jaxmeta.get_default_graph() is outer
    assert jaxmeta.get_default_graph() is not outer


def test_threads_have_default_graphs_of_their_own():
    seen = []
    with jaxmeta.Graph().as_default() as graph:
        thread = threading.Thread(target=lambda: seen.append(jaxmeta.get_default_graph()))
        thread.start()
        thread.join()
        assert seen[0] is not graph
        assert jaxmeta.get_default_graph() is graph


def test_default_graph_is_not_reset_within_a_block():
    with (
        jaxmeta.Graph().as_default(),
        pytest.raises(errors.GraphError, match="cannot be reset inside an as_default block"),
    ):
        jaxmeta.reset_default_graph()


def test_collections_of_the_default_graph():
    with jaxmeta.Graph().as_default() as graph:
        jaxmeta.add_to_collection("losses", 1.5)
        jaxmeta.add_to_collection("losses", 2.5)
        found = jaxmeta.get_collection("losses")
        assert found == graph.get_collection("losses") == [1.5, 2.5]
        found.append(3.5)  # a copy
        assert jaxmeta.get_collection("losses") == [1.5, 2.5]
        assert jaxmeta.get_collection("nothing") == []
        assert graph.get_all_collection_keys() == ["losses"]


def test_name_scope_of_the_default_graph():
    with jaxmeta.Graph().as_default() as graph:
        with jaxmeta.name_scope("hidden1") as scope:
            graph.add_node("NoOp", [], {}, "first")
        with jaxmeta.name_scope("hidden1"):
            graph.add_node("NoOp", [], {}, "first")
        assert scope == "hidden1/"
        assert list(graph.nodes) == ["hidden1/first", "hidden1_1/first"]


def test_records_of_trees_name_variables_and_tensors():
    graph = jaxmeta.Graph()
    variables = graph.variables(counter())
    signature = graph.add_signature("count", count, variables, jnp.ones(3), updates=0)
    assert [leaf.name for leaf in trees.leaves(signature.arguments)] == ["n", "sum", "x:0"]
    assert [leaf.name for leaf in trees.leaves(signature.results)] == [
        "count:0",
        "count:1",
        "count:2",
    ]
