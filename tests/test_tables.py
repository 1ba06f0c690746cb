"""Tables that TensorFlow's graphs look things up in: with TensorFlow as oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import jaxmeta
from jaxmeta import errors
from jaxmeta._proto import meta_graph_pb2

pytestmark = pytest.mark.needs_tf
WORDS = np.array([b"the", "caf\u00e9".encode(), b"\xff\x00raw", b"", b"unknown"], object)


def strings(*items: Any) -> np.ndarray[Any, Any]:
    result = np.empty(len(items), object)
    result[:] = [item.encode() if isinstance(item, str) else item for item in items]
    return result


def run_both(tf: Any, build: Any, runs: list[tuple[Any, Any]]) -> None:
    """Runs fetches with feeds, one after the other, in both and compares."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        build(tf.compat.v1)
        saved = tf.compat.v1.train.export_meta_graph()
        expected = [session.run(fetches, feeds) for fetches, feeds in runs]
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        import_here(saved)
        found = [session.run(fetches, feeds) for fetches, feeds in runs]
    for got, want in zip(found, expected, strict=True):
        if want is None:
            assert got is None
            continue
        for one, other in zip(got, want, strict=True):
            if other is not None:
                assert np.asarray(one).tolist() == np.asarray(other).tolist()


def import_here(saved: Any) -> Any:
    proto = meta_graph_pb2.MetaGraphDef.FromString(saved.SerializeToString())
    return jaxmeta.import_meta_graph(proto)


def test_vocabulary_table_with_buckets_for_other_words(tensorflow):
    def build(tf1):
        words = tf1.placeholder(tf1.string, [None], name="words")
        table = tensorflow.lookup.StaticVocabularyTable(
            tensorflow.lookup.KeyValueTensorInitializer(
                WORDS[:3], np.arange(3, dtype=np.int64), tensorflow.string, tensorflow.int64
            ),
            num_oov_buckets=5,
        )
        tf1.identity(table.lookup(words), name="ids")
        tf1.identity(table.size(), name="size")
        tf1.tables_initializer(name="init_tables")

    words = np.concatenate([WORDS, strings("x" * 70, "y" * 20)])
    run_both(tensorflow, build, [("init_tables", None), (["ids:0", "size:0"], {"words:0": words})])


def test_table_of_first_years_is_a_reference(tensorflow):
    def build(tf1):
        raw = tensorflow.raw_ops
        table = raw.HashTable(key_dtype=tf1.string, value_dtype=tf1.int64, shared_name="shared")
        start = raw.InitializeTable(table_handle=table, keys=["a", "b"], values=np.int64([1, 2]))
        assert start.name
        words = tf1.placeholder(tf1.string, [None, 2], name="words")
        found = raw.LookupTableFind(
            table_handle=table, keys=words, default_value=tf1.constant(-1, tf1.int64)
        )
        tf1.identity(found, name="ids")
        tf1.identity(raw.LookupTableSize(table_handle=table), name="size")

    feeds = {"words:0": np.array([[b"a", b"c"], [b"b", b"a"]], object)}
    run_both(tensorflow, build, [("InitializeTable", None), (["ids:0", "size:0"], feeds)])


@pytest.mark.parametrize("kind", ["scalars", "tensors", "dense", "dense with vectors as keys"])
def test_tables_that_change(tensorflow, kind):
    keys_of = {"dense with vectors as keys": lambda k: np.stack([k, k + 1], -1)}.get(kind, np.array)

    def build(tf1):
        raw = tensorflow.raw_ops
        shape = [] if kind == "scalars" else [2]
        types = {"key_dtype": tf1.int64, "value_dtype": tf1.float32}
        if kind == "scalars":
            table = raw.MutableHashTableV2(**types)
        elif kind == "tensors":
            table = raw.MutableHashTableOfTensorsV2(**types, value_shape=shape)
        else:
            empty, deleted = (keys_of(np.int64(k)) for k in (-1, -5))
            table = raw.MutableDenseHashTableV2(
                empty_key=empty,
                deleted_key=deleted,
                value_dtype=tf1.float32,
                value_shape=shape,
                initial_num_buckets=64,
            )
        keys = tf1.placeholder(tf1.int64, name="keys")
        values = tf1.placeholder(tf1.float32, name="values")
        handle = {"table_handle": table}
        for name, op in (
            ("insert", raw.LookupTableInsertV2(**handle, keys=keys, values=values)),
            ("remove", raw.LookupTableRemoveV2(**handle, keys=keys)),
            ("import", raw.LookupTableImportV2(**handle, keys=keys, values=values)),
        ):
            with tf1.control_dependencies([op]):
                tf1.no_op(name=name)
        default = np.full(shape, -1, np.float32)
        found = raw.LookupTableFindV2(**handle, keys=keys, default_value=default)
        tf1.identity(found, name="found")
        tf1.identity(raw.LookupTableSizeV2(**handle), name="size")

    rng = np.random.default_rng(3)
    shape = [] if kind == "scalars" else [2]
    keys, more = np.int64([3, 7, 1 << 30]), np.int64([7, 9])
    values = rng.standard_normal((3, *shape)).astype(np.float32)
    # TensorFlow's dense tables take no matrix of keys.
    asked = {"keys:0": keys_of(np.int64([[9, 3], [4, 7]][: 1 if "dense" in kind else 2]).squeeze())}
    runs = [
        ("insert", {"keys:0": keys_of(keys), "values:0": values}),
        (["found:0", "size:0"], asked),
        ("insert", {"keys:0": keys_of(more), "values:0": values[1:]}),
        (["found:0", "size:0"], asked),
        ("remove", {"keys:0": keys_of(np.int64([3, 12]))}),
        (["found:0", "size:0"], asked),
        ("import", {"keys:0": keys_of(more), "values:0": values[:2]}),
        (["found:0", "size:0"], asked),
    ]
    # What TensorFlow's dense tables import are their buckets.
    run_both(tensorflow, build, runs[:6] if "dense" in kind else runs)


def static_table(tf: Any, keys: Any, values: Any) -> Any:
    """Returns the graph of a table that `init` fills, and `again` with other values."""
    raw = tf.raw_ops
    with tf.Graph().as_default():
        table = raw.HashTableV2(key_dtype=tf.string, value_dtype=tf.int64)
        for name, given in (("init", values), ("again", values + 1)):
            raw.InitializeTableV2(table_handle=table, keys=keys, values=given, name=name)
        raw.LookupTableFindV2(
            table_handle=table, keys=["a"], default_value=np.int64(0), name="found"
        )
        return tf.compat.v1.train.export_meta_graph()


def test_table_is_used_only_after_its_initializer_which_runs_with_one_content(tensorflow):
    saved = static_table(tensorflow, ["a", "b"], np.int64([1, 2]))
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        import_here(saved)
        with pytest.raises(errors.FailedPreconditionError, match="table_initializer"):
            session.run("found:0")
        for _ in range(2):
            session.run("init")
        assert session.run("found:0").tolist() == [1]
        with pytest.raises(errors.FailedPreconditionError, match="with different data"):
            session.run("again")


def test_key_with_two_values_is_refused(tensorflow):
    saved = static_table(tensorflow, ["a", "a"], np.int64([1, 2]))
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        import_here(saved)
        with pytest.raises(errors.InvalidArgumentError, match="different value for same key"):
            session.run("init")


def test_each_session_has_its_own_tables(tensorflow):
    saved = static_table(tensorflow, ["a", "b"], np.int64([1, 2]))
    with jaxmeta.Graph().as_default() as graph:
        import_here(saved)
        with jaxmeta.Session(graph=graph) as one, jaxmeta.Session(graph=graph) as other:
            one.run("init")
            with pytest.raises(errors.FailedPreconditionError):
                other.run("found:0")


def file_table(tf: Any, path: str, **attrs: Any) -> Any:
    raw = tf.raw_ops
    with tf.Graph().as_default():
        table = raw.HashTableV2(key_dtype=tf.string, value_dtype=tf.int64)
        raw.InitializeTableFromTextFileV2(table_handle=table, filename=path, name="init", **attrs)
        keys = tf.compat.v1.placeholder(tf.string, [None], name="keys")
        raw.LookupTableFindV2(
            table_handle=table, keys=keys, default_value=np.int64(-1), name="found"
        )
        return tf.compat.v1.train.export_meta_graph()


@pytest.mark.parametrize(
    "attrs",
    [
        {"key_index": -2, "value_index": -1},
        {"key_index": 0, "value_index": 1, "delimiter": "|"},
        {"key_index": -2, "value_index": -1, "vocab_size": 2, "offset": 1},
    ],
)
def test_table_from_a_file_where_the_session_allows_files(tensorflow, tmp_path, attrs):
    path = tmp_path / "words.txt"
    path.write_bytes("a|4\ncafé|5\nb|6\n".encode())
    saved = file_table(tensorflow, str(path), **attrs)
    feeds = {"keys:0": strings("a", "café", "a|4", "b|6", "café|5")}
    with tensorflow.Graph().as_default(), tensorflow.compat.v1.Session() as session:
        tensorflow.compat.v1.train.import_meta_graph(saved)
        session.run("init")
        expected = session.run("found:0", feeds)
    with jaxmeta.Graph().as_default() as graph:
        import_here(saved)
        with jaxmeta.Session(graph=graph) as session, pytest.raises(errors.FileAccessError):
            session.run("init")
        with jaxmeta.Session(graph=graph, allow_files=True) as session:
            session.run("init")
            assert session.run("found:0", feeds).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("content", "attrs"),
    [
        (b"a|x\n", {"key_index": 0, "value_index": 1, "delimiter": "|"}),
        (b"a\n", {"key_index": 0, "value_index": 1, "delimiter": "|"}),
        (b"a\n", {"key_index": -2, "value_index": -1, "vocab_size": 3}),
    ],
)
def test_file_that_is_no_table_is_an_error(tensorflow, tmp_path, content, attrs):
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    with jaxmeta.Graph().as_default(), jaxmeta.Session(allow_files=True) as session:
        import_here(file_table(tensorflow, str(path), **attrs))
        with pytest.raises(errors.InvalidArgumentError):
            session.run("init")


# --- tables in checkpoints -----------------------------------------------------------------------


def saved_table(tf: Any) -> Any:
    """Returns a graph of a table that is saved beside a variable."""
    tf1 = tf.compat.v1
    with tf.Graph().as_default():
        table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1, name="ages")
        tf1.get_variable("w", initializer=np.float32([1, 2]))
        keys = tf1.placeholder(tf.string, [None], name="keys")
        values = tf1.placeholder(tf.int64, [None], name="values")
        with tf1.control_dependencies([table.insert(keys, values)]):
            tf1.no_op(name="insert")
        tf1.identity(table.size(), name="size")
        tf.raw_ops.LookupTableFindV2(
            table_handle=table.resource_handle, keys=keys, default_value=np.int64(-1), name="found"
        )
        tf1.global_variables_initializer()
        saver_def = tf1.train.Saver().as_saver_def()
        return tf1.train.export_meta_graph(saver_def=saver_def)


FEEDS = {"keys:0": strings("ann", "b\u00f6b"), "values:0": np.int64([31, 7])}
ASKED = {"keys:0": strings("b\u00f6b", "eve", "ann")}


def test_table_of_tensorflows_checkpoint_is_restored(tensorflow, tmp_path):
    saved, path = saved_table(tensorflow), str(tmp_path / "model")
    with tensorflow.Graph().as_default(), tensorflow.compat.v1.Session() as session:
        saver = tensorflow.compat.v1.train.import_meta_graph(saved)
        session.run("init")
        session.run("insert", FEEDS)
        saver.save(session, path, write_meta_graph=False)
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        import_here(saved).restore(session, path)
        assert session.run("found:0", ASKED).tolist() == [7, -1, 31]
        assert session.run("w:0").tolist() == [1, 2]


def test_table_that_is_saved_here_is_restored_by_tensorflow(tensorflow, tmp_path):
    saved, path = saved_table(tensorflow), str(tmp_path / "model")
    with jaxmeta.Graph().as_default() as graph, jaxmeta.Session() as session:
        import_here(saved)
        session.run("init")
        session.run("insert", FEEDS)
        saver = jaxmeta.Saver(
            saver_def=graph.saver_def, graph=graph, checkpoint_format="tensor_bundle"
        )
        with saver:
            saver.save(session, path, write_meta_graph=False)
    with tensorflow.Graph().as_default(), tensorflow.compat.v1.Session() as session:
        tensorflow.compat.v1.train.import_meta_graph(saved).restore(session, path)
        assert session.run("found:0", ASKED).tolist() == [7, -1, 31]


def test_checkpoint_without_the_table_is_refused(tensorflow, tmp_path):
    saved, path = saved_table(tensorflow), str(tmp_path / "model")
    with tensorflow.Graph().as_default(), tensorflow.compat.v1.Session() as session:
        w = tensorflow.compat.v1.get_variable("w", initializer=np.float32([1, 2]))
        session.run(w.initializer)
        tensorflow.compat.v1.train.Saver().save(session, path, write_meta_graph=False)
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        saver = import_here(saved)
        with pytest.raises(errors.CheckpointError, match="lacks what these tables need"):
            saver.restore(session, path)


@pytest.mark.parametrize("kind", ["", "Mutable", "OfTensors", "Dense"])
def test_anonymous_table_is_new_in_each_run(tensorflow, kind):
    def build(tf1):
        raw = tensorflow.raw_ops
        types = {"key_dtype": tf1.int64, "value_dtype": tf1.int64}
        if kind == "":
            table = raw.AnonymousHashTable(**types)
        elif kind == "Mutable":
            table = raw.AnonymousMutableHashTable(**types)
        elif kind == "OfTensors":
            table = raw.AnonymousMutableHashTableOfTensors(**types, value_shape=[1])
        else:
            table = raw.AnonymousMutableDenseHashTable(
                empty_key=np.int64(-1),
                deleted_key=np.int64(-2),
                value_dtype=tf1.int64,
                value_shape=[],
                initial_num_buckets=8,
            )
        fill = raw.LookupTableImportV2 if kind == "" else raw.LookupTableInsertV2
        keys = np.int64([3, 4])
        values = keys[:, None] * 2 if kind == "OfTensors" else keys * 2
        default = np.zeros(values.shape[1:], np.int64)
        with tf1.control_dependencies([fill(table_handle=table, keys=keys, values=values)]):
            raw.LookupTableFindV2(
                table_handle=table, keys=np.int64([4, 9]), default_value=default, name="found"
            )
            raw.LookupTableExportV2(
                table_handle=table, Tkeys=tf1.int64, Tvalues=tf1.int64, name="all"
            )

    run_both(tensorflow, build, [(["found:0"], None), (["found:0"], None)])
