"""Operations on files, which run where a session allows them: with TensorFlow as oracle."""

from __future__ import annotations

import gzip
from typing import Any

import numpy as np
import pytest

import jaxmeta
from jaxmeta import errors
from jaxmeta._proto import meta_graph_pb2

pytestmark = pytest.mark.needs_tf


def import_here(saved: Any) -> Any:
    proto = meta_graph_pb2.MetaGraphDef.FromString(saved.SerializeToString())
    return jaxmeta.import_meta_graph(proto)


def run_here(saved: Any, fetches: Any, feeds: Any = None, **options: Any) -> Any:
    with jaxmeta.Graph().as_default(), jaxmeta.Session(**options) as session:
        import_here(saved)
        return session.run(fetches, feeds)


# --- files ---------------------------------------------------------------------------------------


def test_operations_use_files_only_where_the_session_allows_it(tensorflow, tmp_path):
    raw, path = tensorflow.raw_ops, str(tmp_path / "new" / "a.txt")
    with tensorflow.Graph().as_default():
        raw.WriteFile(filename=path, contents="h\u00e9llo", name="write")
        raw.ReadFile(filename=path, name="read")
        raw.MatchingFiles(pattern=str(tmp_path / "*" / "*.txt"), name="list")
        saved = tensorflow.compat.v1.train.export_meta_graph()
    for fetch in ("write", "read:0", "list:0"):
        with pytest.raises(errors.FileAccessError, match="allow_files=True"):
            run_here(saved, fetch)
    assert not (tmp_path / "new").exists()
    with pytest.raises(errors.NotFoundError):
        run_here(saved, "read:0", allow_files=True)
    run_here(saved, "write", allow_files=True)
    assert run_here(saved, "read:0", allow_files=True) == "h\u00e9llo".encode()
    assert run_here(saved, "list:0", allow_files=True).tolist() == [path.encode()]


# --- readers -------------------------------------------------------------------------------------


def make_files(directory: Any) -> list[str]:
    """Writes two files; returns their paths."""
    contents = (b"first,1\r\nsecond,2\n\nlast", "zw\u00f6lf,12\n".encode())
    paths = [directory / f"part-{i}.csv" for i in range(2)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return list(map(str, paths))


READERS = {
    "TextLineReaderV2": {"skip_header_lines": 1},
    "WholeFileReaderV2": {},
    "IdentityReaderV2": {},
    "FixedLengthRecordReaderV2": {"record_bytes": 4, "header_bytes": 1, "hop_bytes": 3},
}


def give_old_names(saved: Any) -> None:
    """Makes the ops of a graph those of TensorFlow's first years, which it writes no more."""
    for node in saved.graph_def.node:
        node.op = node.op.removesuffix("V2")
        if "Record" in node.op and "encoding" in node.attr:
            del node.attr["encoding"]
        for attr in [name for name in node.attr if name == "_output_shapes"]:
            del node.attr[attr]


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("up_to", [0, 2])
@pytest.mark.parametrize("name", READERS)
def test_reader_gives_the_records_that_tensorflow_reads(tensorflow, tmp_path, name, up_to, is_old):
    raw, tf1 = tensorflow.raw_ops, tensorflow.compat.v1
    paths = make_files(tmp_path)
    with tensorflow.Graph().as_default() as graph:
        queue = raw.FIFOQueueV2(component_types=[tensorflow.string], shapes=[[]])
        handles = {"reader_handle": getattr(raw, name)(**READERS[name]), "queue_handle": queue}
        raw.QueueEnqueueManyV2(handle=queue, components=[paths], name="fill")
        raw.QueueCloseV2(handle=queue, name="close")
        if up_to:
            keys, values = raw.ReaderReadUpToV2(**handles, num_records=np.int64(up_to))
        else:
            keys, values = raw.ReaderReadV2(**handles)
        counts = [
            getattr(raw, f"Reader{kind}V2")(reader_handle=handles["reader_handle"])
            for kind in ("NumRecordsProduced", "NumWorkUnitsCompleted")
        ]
        saved = tf1.train.export_meta_graph()
        names = [tensor.name for tensor in (keys, values)]
        counters = [tensor.name for tensor in counts]

    def read_all(session: Any, out_of_range: Any) -> list[Any]:
        session.run("fill")
        session.run("close")
        found: list[Any] = []
        while True:
            try:
                found.append([np.asarray(part).tolist() for part in session.run(names)])
            except out_of_range:
                return [*found, [int(number) for number in session.run(counters)]]

    with tf1.Session(graph=graph) as session:
        expected = read_all(session, tensorflow.errors.OutOfRangeError)
    if is_old:
        give_old_names(saved)
    with jaxmeta.Graph().as_default(), jaxmeta.Session(allow_files=True) as session:
        import_here(saved)
        assert read_all(session, errors.OutOfRangeError) == expected
    assert len(expected) > 1


@pytest.mark.parametrize("compression", ["", "GZIP", "ZLIB"])
def test_reader_of_tensorflows_records(tensorflow, tmp_path, compression):
    raw, path = tensorflow.raw_ops, str(tmp_path / "records")
    records = [b"", b"abc", bytes(range(256)) * 3]
    with tensorflow.io.TFRecordWriter(path, compression) as writer:
        for record in records:
            writer.write(record)
    with tensorflow.Graph().as_default():
        queue = raw.FIFOQueueV2(component_types=[tensorflow.string], shapes=[[]])
        reader = raw.TFRecordReaderV2(compression_type=compression)
        raw.QueueEnqueueV2(handle=queue, components=[path], name="fill")
        raw.ReaderReadV2(reader_handle=reader, queue_handle=queue, name="read")
        saved = tensorflow.compat.v1.train.export_meta_graph()
    with jaxmeta.Graph().as_default(), jaxmeta.Session(allow_files=True) as session:
        import_here(saved)
        session.run("fill")
        assert [session.run("read:1") for _ in records] == records


def test_damaged_record_is_an_error(tensorflow, tmp_path):
    raw, path = tensorflow.raw_ops, tmp_path / "records"
    with tensorflow.io.TFRecordWriter(str(path)) as writer:
        writer.write(b"some content")
    path.write_bytes(path.read_bytes()[:-6])
    with tensorflow.Graph().as_default():
        queue = raw.FIFOQueueV2(component_types=[tensorflow.string], shapes=[[]])
        raw.QueueEnqueueV2(handle=queue, components=[str(path)], name="fill")
        raw.ReaderReadV2(reader_handle=raw.TFRecordReaderV2(), queue_handle=queue, name="read")
        saved = tensorflow.compat.v1.train.export_meta_graph()
    with jaxmeta.Graph().as_default(), jaxmeta.Session(allow_files=True) as session:
        import_here(saved)
        session.run("fill")
        with pytest.raises(errors.DataLossError):
            session.run("read:1")


def test_state_of_a_reader_is_tensorflows(tensorflow):
    raw, tf1 = tensorflow.raw_ops, tensorflow.compat.v1
    with tensorflow.Graph().as_default() as graph:
        queue = raw.FIFOQueueV2(component_types=[tensorflow.string], shapes=[[]])
        reader = raw.IdentityReaderV2()
        raw.QueueEnqueueManyV2(handle=queue, components=[["a", "b", "c"]], name="fill")
        raw.ReaderReadV2(reader_handle=reader, queue_handle=queue, name="read")
        raw.ReaderSerializeStateV2(reader_handle=reader, name="state")
        given = tf1.placeholder(tensorflow.string, [], name="given")
        raw.ReaderRestoreStateV2(reader_handle=reader, state=given, name="restore")
        raw.ReaderResetV2(reader_handle=reader, name="reset")
        raw.ReaderNumRecordsProducedV2(reader_handle=reader, name="count")
        saved = tf1.train.export_meta_graph()

    def steps(session: Any) -> Any:
        session.run("fill")
        for _ in range(2):
            session.run("read:1")
        state = session.run("state:0")
        session.run("reset")
        counts = [int(session.run("count:0"))]
        session.run("restore", {"given:0": state})
        return state, [*counts, int(session.run("count:0"))], session.run("read:1")

    with tf1.Session(graph=graph) as session:
        expected = steps(session)
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        import_here(saved)
        assert steps(session) == expected


def test_compressed_strings(tensorflow):
    data = gzip.compress(b"abc" * 100)
    with tensorflow.Graph().as_default():
        x = tensorflow.compat.v1.placeholder(tensorflow.string, [], name="x")
        tensorflow.raw_ops.DecodeCompressed(bytes=x, compression_type="GZIP", name="y")
        saved = tensorflow.compat.v1.train.export_meta_graph()
    assert run_here(saved, "y:0", {"x:0": data}) == b"abc" * 100
    with pytest.raises(errors.DataLossError):
        run_here(saved, "y:0", {"x:0": data[:-9]})


# --- checkpoints ---------------------------------------------------------------------------------


def variables(tf: Any, version: int, sharded: bool) -> Any:
    """Returns a graph with variables of several kinds, parts of one, and a saver's nodes."""
    tf1 = tf.compat.v1
    with tf.Graph().as_default(), tf1.variable_scope("", use_resource=False):
        rng = np.random.default_rng(4)
        with tf.device("/cpu:0"):
            w = tf1.get_variable("w", initializer=rng.standard_normal((3, 2)).astype(np.float32))
        tf1.get_variable("n", initializer=np.int32(7))
        tf1.get_variable(
            "parts",
            [5, 2],
            initializer=tf1.random_normal_initializer(seed=1),
            partitioner=tf1.fixed_size_partitioner(2),
        )
        if version == 2:
            tf1.get_variable("s", initializer=tf.constant(["a", "b\u00e9"]))
        tf1.assign(w, w + 1, name="change")
        tf1.global_variables_initializer()
        saver = tf1.train.Saver(write_version=version, sharded=sharded)
        return tf1.train.export_meta_graph(saver_def=saver.as_saver_def())


@pytest.mark.parametrize(("version", "sharded"), [(2, False), (2, True), (1, False), (1, True)])
def test_savers_own_nodes_save_and_restore(tensorflow, tmp_path, version, sharded):
    saved, tf1 = variables(tensorflow, version, sharded), tensorflow.compat.v1
    path, saver_def = str(tmp_path / "model"), saved.saver_def
    feeds = {saver_def.filename_tensor_name: path}
    names = ["w:0", "n:0", "parts/part_0:0", "parts/part_1:0", *(["s:0"] if version == 2 else [])]
    with jaxmeta.Graph().as_default() as graph:
        import_here(saved)
        with jaxmeta.Session(graph=graph, allow_files=True) as session:
            session.run("init")
            session.run("change")
            expected = [np.asarray(value).tolist() for value in session.run(names)]
            place = session.run(saver_def.save_tensor_name, feeds)
            session.run("init")
            session.run(saver_def.restore_op_name, {saver_def.filename_tensor_name: place})
            assert [np.asarray(value).tolist() for value in session.run(names)] == expected
        with jaxmeta.Session(graph=graph) as session, pytest.raises(errors.FileAccessError):
            session.run(saver_def.restore_op_name, feeds)
    with tensorflow.Graph().as_default(), tf1.Session() as session:
        saver = tf1.train.import_meta_graph(saved)
        saver.restore(session, place.decode())
        assert [np.asarray(value).tolist() for value in session.run(names)] == expected


def test_what_a_checkpoint_has_not_is_an_error(tensorflow, tmp_path):
    raw, path = tensorflow.raw_ops, str(tmp_path / "model")
    with tensorflow.Graph().as_default():
        raw.SaveV2(
            prefix=path, tensor_names=["a"], shape_and_slices=[""], tensors=[[1.0]], name="save"
        )
        for name, key, spec, kind in (
            ("missing", "b", "", 1),
            ("type", "a", "", 3),
            ("shape", "a", "4 0,1", 1),
        ):
            raw.RestoreV2(
                prefix=path, tensor_names=[key], shape_and_slices=[spec], dtypes=[kind], name=name
            )
        saved = tensorflow.compat.v1.train.export_meta_graph()
    with pytest.raises(errors.NotFoundError, match="Failed to find any matching files"):
        run_here(saved, "missing:0", allow_files=True)
    run_here(saved, "save", allow_files=True)
    with pytest.raises(errors.NotFoundError, match="Key b not found"):
        run_here(saved, "missing:0", allow_files=True)
    for fetch in ("type:0", "shape:0"):
        with pytest.raises(errors.InvalidArgumentError):
            run_here(saved, fetch, allow_files=True)


def test_variables_of_strings_are_saved_as_tensorflow_saves_them(tensorflow, tmp_path):
    saved, tf1 = variables(tensorflow, 2, sharded=False), tensorflow.compat.v1
    with jaxmeta.Graph().as_default() as graph, jaxmeta.Session() as session:
        import_here(saved)
        session.run("init")
        options = {"saver_def": graph.saver_def, "graph": graph}
        with (
            jaxmeta.Saver(**options) as saver,
            pytest.raises(errors.CheckpointError, match="save in the format 'tensor_bundle'"),
        ):
            saver.save(session, tmp_path / "orbax")
        with jaxmeta.Saver(**options, checkpoint_format="tensor_bundle") as saver:
            path = saver.save(session, tmp_path / "bundle", write_meta_graph=False)
    with tensorflow.Graph().as_default(), tf1.Session() as session:
        tf1.train.import_meta_graph(saved).restore(session, str(path))
        assert session.run("s:0").tolist() == [b"a", "b\u00e9".encode()]


# --- counters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_resource", [False, True])
def test_counter_goes_up_to_its_limit(tensorflow, is_resource):
    tf1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default():
        n = tf1.Variable(np.int32(1), name="n", use_resource=is_resource)
        n.count_up_to(3)
        tf1.global_variables_initializer()
        saved = tf1.train.export_meta_graph()
    fetch = next(node.name for node in saved.graph_def.node if "CountUpTo" in node.op) + ":0"
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        import_here(saved)
        session.run("init")
        assert [int(session.run(fetch)) for _ in range(2)] == [1, 2]
        with pytest.raises(errors.OutOfRangeError, match="Reached limit of 3"):
            session.run(fetch)
