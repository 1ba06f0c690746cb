"""The op vocabulary: the data against TensorFlow, and what it says about nodes."""

from __future__ import annotations

import pathlib
import re

import pytest
from google.protobuf import text_format

from jaxmeta import errors, op_defs
from jaxmeta._proto import graph_pb2

FLOAT, INT32, RESOURCE = graph_pb2.DT_FLOAT, graph_pb2.DT_INT32, graph_pb2.DT_RESOURCE
TEXT = pathlib.Path(op_defs.__file__).with_name("op_defs.pbtxt").read_text(encoding="utf-8")


def node(op, **attrs):
    """Returns a NodeDef named n; an attr is given with its kind, as `T={"type": FLOAT}`."""
    made = graph_pb2.NodeDef(name="n", op=op)
    for name, value in attrs.items():
        made.attr[name].CopyFrom(graph_pb2.AttrValue(**value))
    return made


RETIRED = {
    op_def.name: op_def
    for op_def in text_format.Parse(
        pathlib.Path(__file__).parents[1].joinpath("protos/retired_op_defs.pbtxt").read_text(),
        graph_pb2.OpList(),
    ).op
}


@pytest.fixture(scope="module")
def text_op_list():
    return text_format.Parse(TEXT, graph_pb2.OpList())


@pytest.fixture(scope="module")
def their_op_defs():
    """The installed TensorFlow's op definitions, where it is the version that ours are from."""
    tf = pytest.importorskip("tensorflow")
    from tensorflow.python.client import pywrap_tf_session

    version = re.search(r"as TensorFlow (\S+) registers", TEXT).group(1)
    if tf.__version__ != version:
        pytest.skip(f"op_defs.pbtxt is from TensorFlow {version}, not {tf.__version__}")
    serialized = pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList())
    return {op_def.name: op_def for op_def in graph_pb2.OpList.FromString(serialized).op}


def test_binary_and_text_are_the_same_list(text_op_list):
    binary = pathlib.Path(op_defs.__file__).with_name("op_defs.pb").read_bytes()
    assert graph_pb2.OpList.FromString(binary) == text_op_list


def test_list_is_sorted_and_has_no_prose(text_op_list):
    names = [op_def.name for op_def in text_op_list.op]
    assert names == sorted(set(names))
    assert not re.search(r"^ *(description|summary):", TEXT, re.MULTILINE)


@pytest.mark.needs_tf
def test_every_op_def_equals_that_of_the_installed_tensorflow(text_op_list, their_op_defs):
    different = []
    assert their_op_defs.keys().isdisjoint(RETIRED)
    for ours in text_op_list.op:
        if ours.name in RETIRED:
            assert ours == RETIRED[ours.name]
            continue
        theirs = their_op_defs[ours.name]
        for described in (theirs, *theirs.input_arg, *theirs.output_arg, *theirs.attr):
            described.ClearField("description")
        theirs.ClearField("summary")
        if ours != theirs:
            different.append(ours.name)
    assert different == []


def test_vocabulary_holds_every_family():
    one_of_each = """
        Abs MatMul BatchMatMul BatchMatMulV3 Conv2D FusedBatchNormV3 VariableV2 VarHandleOp
        ApplyAdam ResourceApplyAdam ResourceSparseApplyAdagrad StatelessRandomUniformV2
        RandomShuffle Switch Merge NextIteration While StatelessIf Case PartitionedCall
        FIFOQueueV2 StackPushV2 TensorArrayReadV3 TensorListStack HashTableV2 StringJoin
        SaveV2 RestoreV2 Save RestoreSlice ScalarSummary Cholesky FFT3D BitwiseXor
        ResizeBilinear SparseTensorDenseMatMul XlaDotV2 XlaGather XlaVariadicSort PyFunc
    """
    assert [name for name in one_of_each.split() if not op_defs.has_op(name)] == []


def test_unknown_op_is_reported_with_close_matches():
    with pytest.raises(errors.UnsupportedOpError, match=r"'MatMull'.*closest: .*MatMul"):
        op_defs.get_op_def("MatMull")
    assert not op_defs.has_op("MatMull")


def test_table_gives_the_same_object_each_time():
    assert op_defs.get_op_def("Add") is op_defs.get_op_def("Add")


@pytest.mark.parametrize(
    ("op", "restated", "free"),
    [
        ("MatMul", ("T",), ("transpose_a", "transpose_b", "grad_a", "grad_b")),
        ("ConcatV2", ("N", "T", "Tidx"), ()),
        ("Placeholder", (), ("dtype", "shape")),
        ("Cast", ("SrcT",), ("DstT", "Truncate")),
        ("While", ("T",), ("cond", "body", "output_shapes", "parallel_iterations")),
    ],
)
def test_attrs_are_restated_by_an_input_or_free(op, restated, free):
    op_def = op_defs.get_op_def(op)
    assert set(op_defs.restated_attrs(op_def)) == set(restated)
    assert op_defs.free_attrs(op_def) == free


def test_restated_and_free_attrs_are_all_attrs_of_every_op():
    for name in op_defs.op_names():
        op_def = op_defs.get_op_def(name)
        both = (*op_defs.restated_attrs(op_def), *op_defs.free_attrs(op_def))
        assert sorted(both) == sorted(attr.name for attr in op_def.attr), name


def test_attr_default_is_none_where_the_attr_is_required():
    op_def = op_defs.get_op_def("MatMul")
    assert op_defs.attr_default(op_def, "T") is None
    default = op_defs.attr_default(op_def, "transpose_a")
    assert default.HasField("b")
    assert default.b is False


def test_attr_default_of_an_unknown_attr_names_the_known_ones():
    with pytest.raises(errors.AttrError, match=r"no attr 'adjoint'.*transpose_a, transpose_b"):
        op_defs.attr_default(op_defs.get_op_def("MatMul"), "adjoint")


@pytest.mark.parametrize(
    ("made", "inputs", "outputs"),
    [
        (
            node("MatMul", T={"type": FLOAT}),
            [("a", 1, FLOAT), ("b", 1, FLOAT)],
            [("product", 1, FLOAT)],
        ),
        (
            node("Split", T={"type": FLOAT}, num_split={"i": 3}),
            [("split_dim", 1, INT32), ("value", 1, FLOAT)],
            [("output", 3, FLOAT)],
        ),
        (
            node("IdentityN", T={"list": {"type": [FLOAT, INT32]}}),
            [("input", 2, (FLOAT, INT32))],
            [("output", 2, (FLOAT, INT32))],
        ),
        (
            node("AssignVariableOp", dtype={"type": FLOAT}),
            [("resource", 1, RESOURCE), ("value", 1, FLOAT)],
            [],
        ),
        (
            node("Assign", T={"type": FLOAT}),
            [("ref", 1, graph_pb2.DT_FLOAT_REF), ("value", 1, FLOAT)],
            [("output_ref", 1, graph_pb2.DT_FLOAT_REF)],
        ),
        # out_idx is an attr with a default, which the node leaves out
        (
            node("Unique", T={"type": FLOAT}),
            [("x", 1, FLOAT)],
            [("y", 1, FLOAT), ("idx", 1, INT32)],
        ),
        (
            node("DynamicPartition", T={"type": FLOAT}, num_partitions={"i": 2}),
            [("data", 1, FLOAT), ("partitions", 1, INT32)],
            [("outputs", 2, FLOAT)],
        ),
        (node("IdentityN", T={"list": {"type": []}}), [("input", 0, ())], [("output", 0, ())]),
    ],
    ids=lambda value: value.op if isinstance(value, graph_pb2.NodeDef) else "",
)
def test_names_and_dtypes_follow_the_attrs_of_the_node(made, inputs, outputs):
    op_def = op_defs.get_op_def(made.op)

    def dtypes(args):
        return [
            dtype
            for _, count, of in args
            for dtype in (of if isinstance(of, tuple) else [of] * count)
        ]

    assert op_defs.input_names(op_def, made) == tuple((name, n) for name, n, _ in inputs)
    assert op_defs.output_names(op_def, made) == tuple((name, n) for name, n, _ in outputs)
    assert op_defs.input_dtypes(op_def, made) == dtypes(inputs)
    assert op_defs.output_dtypes(op_def, made) == dtypes(outputs)


def test_output_index_and_arg_are_inverse():
    made = node("TopKV2", T={"type": FLOAT})
    op_def = op_defs.get_op_def("TopKV2")
    assert op_defs.output_arg(op_def, made, 1) == ("indices", 0)
    assert op_defs.output_index(op_def, made, "indices", 0) == 1
    made = node("Split", T={"type": FLOAT}, num_split={"i": 3})
    op_def = op_defs.get_op_def("Split")
    for index in range(3):
        name, offset = op_defs.output_arg(op_def, made, index)
        assert op_defs.output_index(op_def, made, name, offset) == index


@pytest.mark.parametrize("index", [-1, 2])
def test_output_that_is_not_there_is_reported(index):
    made = node("TopKV2", T={"type": FLOAT})
    with pytest.raises(errors.GraphError, match=r"'n' \(TopKV2\).*values \(1\), indices \(1\)"):
        op_defs.output_arg(op_defs.get_op_def("TopKV2"), made, index)


def test_output_of_an_unknown_arg_is_reported():
    made = node("TopKV2", T={"type": FLOAT})
    with pytest.raises(errors.GraphError, match="no output 'keys:0'"):
        op_defs.output_index(op_defs.get_op_def("TopKV2"), made, "keys", 0)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (node("Split", T={"type": FLOAT}), "attr 'num_split' is missing and has no default"),
        (node("Split", T={"type": FLOAT}, num_split={"s": b"3"}), "is of kind 's'.*kind 'i'"),
        (node("Split", T={"type": FLOAT}, num_split={"i": 1 << 40}), "1099511627776 tensors"),
        (node("Split", T={"type": FLOAT}, num_split={"i": -1}), "-1 tensors"),
        (node("Split", T={"placeholder": "T"}, num_split={"i": 1}), "kind 'placeholder'"),
    ],
)
def test_wrong_attrs_are_reported_with_the_node(made, message):
    with pytest.raises(errors.AttrError, match=rf"node 'n' \(Split\): .*{message}"):
        op_defs.output_dtypes(op_defs.get_op_def("Split"), made)


def test_reading_does_not_write_attrs_to_the_node():
    made = node("Unique", T={"type": FLOAT})
    op_defs.output_dtypes(op_defs.get_op_def("Unique"), made)
    assert list(made.attr) == ["T"]


def test_a_function_may_have_the_name_of_an_op():
    signature = graph_pb2.OpDef(name="MatMul")
    signature.output_arg.add(name="result", type=FLOAT)
    call = graph_pb2.NodeDef(name="n", op="MatMul")
    assert op_defs.output_names(signature, call) == (("result", 1),)
    assert op_defs.output_names(op_defs.get_op_def("MatMul"), call) == (("product", 1),)


def test_stateful_ops_are_told_from_pure_ones():
    assert op_defs.is_stateful("VarHandleOp")
    assert op_defs.is_stateful("RandomUniform")
    assert not op_defs.is_stateful("MatMul")
