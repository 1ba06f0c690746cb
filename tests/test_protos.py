"""The protos against TensorFlow's: descriptors, bytes, text, and both in one process."""

from __future__ import annotations

import importlib
import pathlib
import subprocess
import sys

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, text_format, unknown_fields
from google.protobuf import message as protobuf_message

import jaxmeta._proto
from jaxmeta._proto import checkpoint_pb2, graph_pb2, meta_graph_pb2, struct_pb2, xla_data_pb2

MODULES = sorted(
    f"jaxmeta._proto.{path.stem}"
    for path in pathlib.Path(jaxmeta._proto.__file__).parent.glob("*_pb2.py")
)
THEIR_PACKAGES = {
    "jaxmeta": "tensorflow",
    "jaxmeta.xla": "xla",
    "jaxmeta.error": "tensorflow.error",
}
# Each import pulls in the files that hold the messages we have.
THEIR_MODULES = [
    "tensorflow.compiler.xla.xla_data_pb2",
    "tensorflow.core.example.example_pb2",
    "tensorflow.core.protobuf.control_flow_pb2",
    "tensorflow.core.protobuf.fingerprint_pb2",
    "tensorflow.core.protobuf.queue_runner_pb2",
    "tensorflow.core.protobuf.saved_model_pb2",
    "tensorflow.core.protobuf.tensor_bundle_pb2",
    "tensorflow.core.util.event_pb2",
    "tensorflow.core.util.saved_tensor_slice_pb2",
    "tensorflow.python.training.checkpoint_state_pb2",
]


@pytest.fixture(scope="module")
def tf():
    return pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def their_pool(tf):
    for name in THEIR_MODULES:
        importlib.import_module(name)
    return descriptor_pool.Default()


def our_messages_and_enums():
    """Yields the descriptor of each of our messages and enums, nested ones too."""

    def nested(message):
        yield message
        yield from message.enum_types
        for inner in message.nested_types:
            yield from nested(inner)

    for module in MODULES:
        file = importlib.import_module(module).DESCRIPTOR
        yield from file.enum_types_by_name.values()
        for message in file.message_types_by_name.values():
            yield from nested(message)


def their_name(descriptor):
    package = descriptor.file.package
    if package not in THEIR_PACKAGES:  # google.protobuf
        return descriptor.full_name
    return THEIR_PACKAGES[package] + descriptor.full_name.removeprefix(package)


def field_facts(message, name_of):
    """Returns what of each field decides about bytes, text and the Python API."""
    proto = descriptor_pb2.DescriptorProto()
    message.CopyToProto(proto)
    facts = {}
    for field, field_proto in zip(message.fields, proto.field, strict=True):
        assert field.name == field_proto.name
        oneof = field.containing_oneof
        of = field.message_type or field.enum_type
        facts[field.name] = {
            "number": field_proto.number,
            "type": field_proto.type,
            "label": field_proto.label,
            "packed": field.is_packed,
            # The entries of a map always have both, whichever syntax the file is in.
            "presence": field.has_presence and not proto.options.map_entry,
            "default": field.default_value if field.message_type is None else None,
            # An `optional` of proto3 has a oneof of its own, one of proto2 has not.
            "oneof": oneof.name if oneof is not None and len(oneof.fields) > 1 else None,
            "of": name_of(of) if of is not None else None,
        }
    reserved = [(r.start, r.end) for r in proto.reserved_range]
    return facts, reserved, list(proto.reserved_name)


def enum_values(enum):
    return [(value.name, value.number) for value in enum.values]


@pytest.mark.needs_tf
@pytest.mark.parametrize("ours", list(our_messages_and_enums()), ids=lambda d: d.full_name)
def test_message_and_enum_descriptors_equal_those_of_tensorflow(ours, their_pool):
    if hasattr(ours, "values"):
        theirs = their_pool.FindEnumTypeByName(their_name(ours))
        assert enum_values(ours) == enum_values(theirs)
        return
    theirs = their_pool.FindMessageTypeByName(their_name(ours))
    assert field_facts(ours, their_name) == field_facts(theirs, lambda d: d.full_name)
    assert ours.GetOptions().map_entry == theirs.GetOptions().map_entry


def build_meta_graph(tf):
    """Returns a MetaGraphDef by TensorFlow, with most of what one may hold."""
    v1 = tf.compat.v1
    with v1.Graph().as_default():
        x = v1.placeholder(tf.float32, [None, 3], name="x")
        w = v1.get_variable("w", [3, 2], partitioner=v1.fixed_size_partitioner(3))
        v1.disable_control_flow_v2()
        y = v1.while_loop(lambda i, _: i < 3, lambda i, t: (i + 1, t * 2), [0, x @ w])[1]
        y = v1.cond(tf.reduce_sum(y) > 0, lambda: y, lambda: -y, name="cond")

        @tf.function
        def double(t):
            return t * 2

        y = tf.identity(double(y), name="y")
        queue = v1.FIFOQueue(3, [tf.float32])
        v1.train.add_queue_runner(v1.train.QueueRunner(queue, [queue.enqueue(1.0)]))
        v1.add_to_collection("numbers", 7)
        v1.add_to_collection("reals", 1.5)
        v1.add_to_collection("outputs", y)
        saver = v1.train.Saver()
        meta_graph = v1.train.export_meta_graph(saver_def=saver.as_saver_def())
        meta_graph.signature_def["predict"].CopyFrom(
            v1.saved_model.predict_signature_def({"x": x}, {"y": y})
        )
    return meta_graph


@pytest.fixture(scope="module")
def their_meta_graph(tf):
    return build_meta_graph(tf)


def unknown_field_paths(message, path=""):
    """Returns the path of each field that the message holds but its descriptor does not know."""
    found = [f"{path}.{f.field_number}" for f in unknown_fields.UnknownFieldSet(message)]
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            values = value.values()
        else:
            values = [value] if isinstance(value, protobuf_message.Message) else value
        for inner in values:
            if isinstance(inner, protobuf_message.Message):
                found += unknown_field_paths(inner, f"{path}.{field.name}")
    return found


@pytest.mark.needs_tf
def test_meta_graph_of_tensorflow_keeps_everything_in_bytes(their_meta_graph):
    ours = meta_graph_pb2.MetaGraphDef.FromString(their_meta_graph.SerializeToString())
    assert unknown_field_paths(ours) == []
    assert type(their_meta_graph).FromString(ours.SerializeToString()) == their_meta_graph


@pytest.mark.needs_tf
def test_meta_graph_of_tensorflow_has_the_same_text(their_meta_graph):
    ours = meta_graph_pb2.MetaGraphDef.FromString(their_meta_graph.SerializeToString())
    text = text_format.MessageToString(their_meta_graph)
    assert text_format.MessageToString(ours) == text
    assert text_format.Parse(text, meta_graph_pb2.MetaGraphDef()) == ours


@pytest.mark.needs_tf
@pytest.mark.parametrize("first", ["tensorflow", "jaxmeta"])
def test_lives_in_one_process_with_tensorflow(first, tf):
    ours = "\n".join(f"import {module}" for module in MODULES)
    theirs = "import tensorflow"
    script = "\n".join([ours, theirs] if first == "jaxmeta" else [theirs, ours])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_structured_value_is_compatible_with_the_text_of_tensorflow():
    value = text_format.Parse(
        "tuple_value { values { int64_value: -3 } values { none_value {} } "
        "values { tensor_spec_value { shape { dim { size: -1 } } dtype: DT_BFLOAT16 } } }",
        struct_pb2.StructuredValue(),
    )
    # sint64 is zigzag: -3 is 5 on the wire.
    assert value.tuple_value.values[0].SerializeToString() == b"\x60\x05"
    assert value.tuple_value.values[2].tensor_spec_value.dtype == graph_pb2.DT_BFLOAT16


def test_bundle_entry_has_its_checksum_at_fixed_width():
    entry = checkpoint_pb2.BundleEntryProto(crc32c=1)
    assert entry.SerializeToString() == b"\x35\x01\x00\x00\x00"


def test_gather_dimension_numbers_have_batching_dimensions():
    numbers = xla_data_pb2.GatherDimensionNumbers(operand_batching_dims=[1])
    assert numbers.SerializeToString() == b"\x2a\x01\x01"
