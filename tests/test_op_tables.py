"""The op tables: all that is registered is exercised, all that JAX has is accounted for."""

from __future__ import annotations

import collections
import functools
import inspect
import pathlib
from typing import Any

import array_graphs
import ctc_graphs
import jax
import matrix_graphs
import numpy as np
import primitive_names
import pytest
import random_graphs
import sparse_graphs
import tensorflow_graphs
import tensorflow_image_graphs
import tensorflow_quantization_graphs
from jax import lax
from jax.extend import core as jax_core

import jaxmeta
from jaxmeta import op_defs, xla_attrs
from jaxmeta.graphs import graph, nodes
from jaxmeta.ops import _definition
from jaxmeta.ops._definition import KERNELS, LOWERINGS, PRIMITIVE_KERNELS, Spec, f32, i32
from jaxmeta.ops._not_lowered import NOT_LOWERED
from jaxmeta.tracing import trace

EXPOSED = {
    getattr(jax_core.primitives, name).name
    for name in dir(jax_core.primitives)
    if name.endswith("_p")
}

# Primitives that no function traced by this JAX holds, and why there is a lowering all the same.
_EQUINOX = "a primitive of Equinox, which the package does not import; test_equinox traces it"
NOT_MET = {
    **dict.fromkeys(
        (
            "linear_solve",
            "maybe_set",
            "nonbatchable",
            "nondifferentiable_backward",
            "select_if_vmap",
            "unvmap_all",
            "unvmap_any",
            "unvmap_max",
            "vprim",
        ),
        _EQUINOX,
    ),
    "call": "jax.core.call, which only JAX's own internals bind; what eval_jaxpr was called",
    "call_hi_primitive": "JAX 0.12 has it",
    "checkpoint": "what remat2 is called in tracebacks, and was in former versions",
    "closed_call": "JAX 0.12 calls it eval_jaxpr",
    "copy_p": "what copy was called in former versions",
    "core_call": "what eval_jaxpr was called in former versions",
    "custom_vjp_call_jaxpr": "what custom_vjp_call was called in former versions",
    "dim_as_value": "only within programs that have symbolic dimensions",
    "eval_jaxpr": "JAX 0.12 has it in place of closed_call",
    "expand_dims": "JAX traces a broadcast_in_dim",
    "log2": "JAX 0.12 has it",
    "one_minus_square": "JAX 0.12 has it",
    "pjit": "what jit was called in former versions",
    "pbroadcast": "XLA's CPU has none; test_sharding traces it",
    "polynomial": "JAX 0.12 has it",
    "ragged_all_to_all": "XLA's CPU has none; test_sharding traces it",
    "scaled_matmul_wrapper": "JAX lowers it for GPUs only; test_scaled_matmul traces it",
    "remat": "what remat2 was called in former versions",
    "same_size": "only where a call takes unknown sizes for the same, as in test_unknown_sizes",
}


@functools.cache
def met() -> dict[str, collections.Counter[str]]:
    """Traces all examples; counts primitives that were lowered, ops of nodes, and their marks."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)

    def counting(name: str, lower: Any) -> Any:
        @functools.wraps(lower)
        def run(ctx: Any, *inputs: Any, **params: Any) -> Any:
            counts["primitives"][name] += 1
            return lower(ctx, *inputs, **params)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for name, lower in LOWERINGS.items():
            patch.setitem(LOWERINGS, name, counting(name, lower))
        for example in _definition.EXAMPLES:
            rng = np.random.default_rng(0)
            args = jax.tree.map(
                lambda x, rng=rng: x.array(rng) if isinstance(x, Spec) else x, list(example.specs)
            )
            builder = graph.GraphBuilder()
            tracing = trace.Tracing.into(builder)
            trace.lower_function(tracing, jax.jit(example.fn).trace(*args).jaxpr, "example")
            tracing.commit("example")
            for function in builder.functions.values():
                for node in function.node_def:
                    counts["ops"][node.op] += 1
                    counts["marks"][node.attr[_definition.PRIMITIVE_ATTR].s.decode()] += 1
    return counts


# --- primitives ----------------------------------------------------------------------------------


KNOWN = EXPOSED | primitive_names.MET | primitive_names.ALSO_PUBLIC


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_every_primitive_has_either_a_lowering_or_a_reason_why_not(name):
    assert (name in LOWERINGS) != (name in NOT_LOWERED)


def test_no_table_names_a_primitive_that_nothing_makes():
    known = KNOWN | primitive_names.ONLY_IN_LATER_JAX | primitive_names.FORMER_NAMES
    assert sorted((set(LOWERINGS) | set(NOT_LOWERED)) - known) == []


def test_every_lowering_is_exercised_by_an_example():
    not_met = set(LOWERINGS) - set(met()["primitives"])
    assert sorted(not_met - set(NOT_MET)) == []


def test_what_this_jax_exposes_is_exercised_by_an_example():
    excused = set(NOT_MET) & EXPOSED & set(LOWERINGS)
    excused -= {"call", "closed_call", "eval_jaxpr"}  # bound by JAX itself, here and there
    excused -= {"ragged_all_to_all", "pbroadcast"}  # which no CPU runs
    assert sorted(excused - set(met()["primitives"])) == []


def test_every_mark_of_a_node_is_restored():
    lost = set(met()["marks"]) - {""} - set(PRIMITIVE_KERNELS)
    # Within the threefry of TensorFlow's reading only; ours takes random_bits back as a whole.
    assert sorted(lost - {"iota_2x32_shape"}) == []


def test_every_restored_primitive_is_exercised_by_an_example():
    not_met = set(PRIMITIVE_KERNELS) - set(met()["marks"])
    # An elementwise primitive is marked only where it has an accuracy or a dtype of its own.
    unmarked = {name for name in not_met if "accuracy" in keywords(PRIMITIVE_KERNELS[name].run)}
    assert sorted(not_met - unmarked - set(NOT_MET)) == []


def keywords(fn: Any) -> set[str]:
    parameters = inspect.signature(fn).parameters.values()
    return {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def test_no_lowering_takes_parameters_by_the_dozen():
    variadic = [
        name
        for name, lower in LOWERINGS.items()
        for parameter in inspect.signature(lower).parameters.values()
        if parameter.kind is inspect.Parameter.VAR_KEYWORD
    ]
    assert variadic == []


# --- kernels -------------------------------------------------------------------------------------


def test_every_kernel_runs_an_op_of_tensorflow_s_registry():
    assert sorted(set(KERNELS) - set(op_defs.op_names())) == []


@pytest.mark.parametrize("op", sorted(KERNELS))
def test_kernel_reads_attrs_that_its_op_has(op):
    op_def = op_defs.get_op_def(op)
    kernel = KERNELS[op]
    attrs = {attr.name for attr in op_def.attr}
    for _, name, default in kernel.attrs:
        if name.startswith(nodes.JAX_ATTR_PREFIX):
            assert default is not inspect.Parameter.empty
        else:
            assert name in attrs
    assert all(0 <= index < len(op_def.input_arg) for index in kernel.static)


@pytest.mark.parametrize("op", sorted(KERNELS))
def test_kernel_takes_as_many_inputs_as_its_op(op):
    op_def = op_defs.get_op_def(op)
    kernel = KERNELS[op]
    positional, is_variadic = 0, False
    try:
        parameters = inspect.signature(kernel.run).parameters.values()
    except ValueError:
        pytest.skip("a function without a signature")
    required = 0
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            is_variadic = True
        elif parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            positional += 1
            required += parameter.default is inspect.Parameter.empty
    has_lists = any(arg.number_attr or arg.type_list_attr for arg in op_def.input_arg)
    if is_variadic:
        return
    assert not has_lists
    inputs = len(op_def.input_arg) + kernel.is_stateful
    assert required <= inputs <= positional


def test_every_kernel_is_exercised_by_an_example_or_a_graph_of_tensorflow():
    not_met = set(KERNELS) - set(met()["ops"]) - set(GRAPHS) - set(ELSEWHERE)
    assert sorted(not_met) == []


# --- ops that only TensorFlow writes -------------------------------------------------------------


def ops_of(*modules: str) -> tuple[str, ...]:
    """Returns the ops whose kernels stand in some modules of ops."""
    places = {f"jaxmeta.ops.{module}" for module in modules}
    return tuple(op for op, kernel in KERNELS.items() if kernel.run.__module__ in places)


# Kernels with tests of their own, by the file that has them.
TESTED_IN = {
    "test_session.py": (
        "AssignVariableOp",
        "IdentityN",
        "NoOp",
        "PartitionedCall",
        "Placeholder",
        "PlaceholderV2",  # TensorFlow makes no new ones; below
        "ReadVariableOp",
        "VarHandleOp",
    ),
    "test_sharding.py": ("XlaSharding",),
    "test_queues.py": tuple(op for op in KERNELS if "Queue" in op),
    "test_reference_variables.py": (
        "Assign",
        "AssignAdd",
        "AssignAddVariableOp",
        "AssignSub",
        "AssignSubVariableOp",
        "IsVariableInitialized",
        "Variable",
        "VariableV2",
    ),
    "test_strings.py": ("Assert", "ReduceJoin", "ShardedFilename", "StringJoin"),
    "test_string_ops.py": (
        *ops_of("hashing", "printing", "regular_expressions", "unicode"),
        *(op for op in ops_of("strings", "decoding") if op not in ("ReduceJoin", "StringJoin")),
    ),
    "test_tables.py": ops_of("tables"),
    "test_file_ops.py": (*ops_of("files", "checkpoints"), "CountUpTo", "ResourceCountUpTo"),
    "test_example_ops.py": ops_of("examples", "sequence_examples"),
    "test_host_functions.py": ("SymbolicGradient",),
    "test_custom_calls.py": ("XlaCallModule",),
    "test_dataflow.py": tuple(op for op, kernel in KERNELS.items() if kernel.may_need_values),
    "test_tensorflow_ops.py": (
        *tensorflow_graphs.OPS,
        *(graph.op for graph in tensorflow_graphs.GRAPHS),
        *array_graphs.ALIASES,
        *ctc_graphs.ALIASES,
        *matrix_graphs.ALIASES,
        *sparse_graphs.ALIASES,
    ),
    "test_tensorflow_random.py": random_graphs.OPS,
    "test_tensorflow_image_ops.py": (
        *tensorflow_image_graphs.OPS,
        *tensorflow_quantization_graphs.QUANTIZATION_OPS,
    ),
    "test_summaries.py": tuple(op for op in KERNELS if op.endswith(("Summary", "SummaryV2"))),
}
ELSEWHERE = frozenset(op for ops in TESTED_IN.values() for op in ops)


def test_kernels_with_tests_of_their_own_are_there():
    folder = pathlib.Path(__file__).parent
    assert [name for name in TESTED_IN if not (folder / name).exists()] == []
    assert set(KERNELS) >= ELSEWHERE


GRAPHS: dict[str, tuple[Any, tuple[Spec, ...]]] = {}
"""Op to a function of (TensorFlow, tensors) whose graph holds it, and what to feed."""


def written_by_tensorflow(op: str, *specs: Spec) -> Any:
    def register(make: Any) -> Any:
        GRAPHS[op] = make, specs
        return make

    return register


def raw(op: str, *specs: Spec, **attrs: Any) -> None:
    """Registers an op that is called with its inputs in order."""

    def make(tf: Any, *tensors: Any) -> Any:
        names = [arg.name for arg in op_defs.get_op_def(op).input_arg]
        named = dict(zip(names, tensors, strict=False))
        return getattr(tf.raw_ops, op)(**named, **attrs)

    GRAPHS[op] = make, specs


IMAGES = f32(2, 6, 6, 3)
UPDATES = (f32(5, 2), i32(3, 1, low=0, high=1), f32(3, 2))

raw("AvgPool", IMAGES, ksize=[1, 2, 3, 1], strides=[1, 2, 1, 1], padding="SAME")
raw("BatchMatMul", f32(2, 3, 4), f32(2, 3, 5), adj_x=True)
raw("FloorDiv", i32(9, low=-9, high=9), i32(9, low=1, high=4))
raw("FloorMod", i32(9, low=-9, high=9), i32(9, low=1, high=4))
raw("GatherNd", f32(4, 3), i32(5, 2, low=0, high=-1))
raw("Lu", f32(2, 3, 3))
raw("PreventGradient", f32(3), message="")
raw("Rank", f32(2, 3))
raw("Rint", f32(10, low=-5, high=5))
raw("Shape", f32(2, 3))
raw("Size", f32(2, 3))
raw("Snapshot", f32(3))
raw("TensorScatterAdd", *UPDATES)
raw("TensorScatterMax", *UPDATES)
raw("TensorScatterMin", *UPDATES)
raw("TensorScatterSub", *UPDATES)


@written_by_tensorflow("TensorScatterUpdate", f32(5, 2), f32(3, 2))
def scatter_update(tf, tensor, updates):
    return tf.tensor_scatter_nd_update(tensor, [[3], [0], [4]], updates)


@written_by_tensorflow("ShapeN", f32(4, 6), f32(2, 6))
def arithmetic_of_shapes(tf, x, y):
    first, second = tf.raw_ops.ShapeN(input=[x, y])
    halves = tf.concat([first[:1] // 2, [2], second[-1:]], 0)
    doubled = tf.reshape(tf.tile(x, [2, 1]), tf.stack([2 * tf.size(x) // 3, tf.rank(x) + 1]))
    counted = tf.range(tf.maximum(first[0], second[0]) - tf.reduce_prod(second) % 5)
    return (
        tf.reshape(x, halves),
        doubled,
        tf.broadcast_to(y[:1, :1], tf.gather(first, [1, 0])),
        counted,
    )


@written_by_tensorflow("ScatterNd", i32(3, 1, low=0, high=1), f32(3, 2))
def scatter_nd(tf, indices, updates):
    return tf.scatter_nd(indices, updates, [6, 2])


@written_by_tensorflow("Gather", f32(5, 2), i32(3, low=0, high=1))
def gather(tf, params, indices):
    return tf.raw_ops.Gather(params=params, indices=indices)


@written_by_tensorflow("MaxPoolV2", IMAGES)
def max_pool(tf, images):
    return tf.raw_ops.MaxPoolV2(
        input=images, ksize=[1, 3, 2, 1], strides=[1, 1, 2, 1], padding="VALID"
    )


@written_by_tensorflow("Select", f32(3, 2), f32(3, 2))
def select(tf, x, y):
    return tf.raw_ops.Select(condition=x > y, x=x, y=y)


@written_by_tensorflow("Slice", f32(4, 3))
def cut(tf, x):
    return tf.slice(x, [1, 0], [2, -1])


def concrete(tf, *args):
    """Returns what makes functions of arguments like these."""
    return lambda fn: tf.function(fn).get_concrete_function(*args)


@written_by_tensorflow("If", f32(3))
def branch(tf, x):
    function = concrete(tf, x)
    return tf.raw_ops.If(
        cond=tf.reduce_sum(x) > 0,
        input=[x],
        Tout=[tf.float32],
        then_branch=function(tf.sin),
        else_branch=function(lambda y: y * 2),
    )


@written_by_tensorflow("StatelessIf", f32(3))
def branch_without_effects(tf, x):
    function = concrete(tf, x)
    return tf.raw_ops.StatelessIf(
        cond=tf.reduce_sum(x) > 0,
        input=[x],
        Tout=[tf.float32],
        then_branch=function(tf.sin),
        else_branch=function(lambda y: y * 2),
    )


@written_by_tensorflow("Case", i32(low=0, high=-1), f32(3))
def case(tf, index, x):
    branches = list(map(concrete(tf, x), (tf.sin, tf.cos, tf.tanh)))
    return tf.raw_ops.Case(branch_index=index, input=[x], Tout=[tf.float32], branches=branches)


@written_by_tensorflow("While", f32(3))
def loop(tf, x):
    function = concrete(tf, tf.constant(0), x)
    cond, body = function(lambda i, y: i < 4), function(lambda i, y: (i + 1, y * 0.5))
    return tf.raw_ops.While(input=[tf.constant(0), x], cond=cond, body=body)


@written_by_tensorflow("StatefulPartitionedCall", f32(3))
def call(tf, x):
    function = concrete(tf, x)(lambda y: tf.sin(y) * 2)
    return tf.raw_ops.StatefulPartitionedCall(args=[x], Tout=[tf.float32], f=function)


@written_by_tensorflow("PlaceholderWithDefault", f32(2))
def default(tf, x):
    return tf.compat.v1.placeholder_with_default(x * 2, [2])


@written_by_tensorflow("VarIsInitializedOp")
def is_initialized(tf):
    variable = tf.compat.v1.get_variable("v", initializer=1.0, use_resource=True)
    return tf.raw_ops.VarIsInitializedOp(resource=variable.handle)


@written_by_tensorflow("XlaDot", f32(3, 4), f32(4, 2))
def xla_dot(tf, x, y):
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops

    dimensions = xla_attrs.dot_to_bytes((((1,), (0,)), ((), ())))
    return gen_xla_ops.xla_dot(x, y, dimension_numbers=dimensions, precision_config="")


@written_by_tensorflow("XlaConv", f32(1, 5, 6, 2), f32(2, 3, 2, 4))
def xla_conv(tf, x, y):
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops

    numbers = lax.conv_dimension_numbers((1, 5, 6, 2), (2, 3, 2, 4), ("NHWC", "HWIO", "NHWC"))
    return gen_xla_ops.xla_conv(
        lhs=x,
        rhs=y,
        window_strides=[1, 2],
        padding=[[0, 1], [1, 0]],
        lhs_dilation=[1, 1],
        rhs_dilation=[2, 1],
        feature_group_count=1,
        dimension_numbers=xla_attrs.conv_to_bytes(numbers),
        precision_config="",
    )


@pytest.mark.needs_tf
@pytest.mark.parametrize("op", sorted(GRAPHS))
def test_op_that_tensorflow_writes_gives_what_tensorflow_gives(op, rng, tmp_path, tensorflow):
    make, specs = GRAPHS[op]
    tf1, path = tensorflow.compat.v1, str(tmp_path / "theirs.meta")
    arrays = {f"x{i}:0": spec.array(rng) for i, spec in enumerate(specs)}
    with tensorflow.Graph().as_default() as theirs, tf1.Session() as session:
        inputs = [
            tf1.placeholder(array.dtype, array.shape, name=name.removesuffix(":0"))
            for name, array in arrays.items()
        ]
        fetches = [tensor.name for tensor in tensorflow.nest.flatten(make(tensorflow, *inputs))]
        tf1.train.export_meta_graph(path)
        expected = session.run(fetches, arrays)
    library = theirs.as_graph_def().library.function
    assert op in {node.op for node in theirs.as_graph_def().node} | {
        node.op for function in library for node in function.node_def
    }

    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(path)
        found = session.run(fetches, arrays)
    for have, want in zip(found, expected, strict=True):
        assert np.asarray(have).dtype == want.dtype
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)


def test_placeholder_of_an_old_tensorflow_is_fed():
    target = jaxmeta.Graph()
    (x,) = target.add_node("PlaceholderV2", [], {"dtype": np.dtype("float32"), "shape": (2,)}, "x")
    target.add_node("Neg", [x], {}, "y")
    with jaxmeta.Session(target) as session:
        found = session.run("y:0", {"x:0": np.ones(2, np.float32)})
    np.testing.assert_array_equal(found, [-1.0, -1.0])
