"""Kernels of summary ops, against TensorFlow's; event files, read by tensorboard."""

from __future__ import annotations

import numpy as np
import pytest

import jaxmeta
from jaxmeta import errors
from jaxmeta._proto import event_pb2
from jaxmeta.event_files import FileWriter
from jaxmeta.ops import _definition


def run(op, *inputs, **attrs):
    """Returns the bytes that our kernel of an op gives."""
    arrays = [np.array(x, dtype=object) if isinstance(x, bytes) else x for x in inputs]
    return _definition.KERNELS[op].run(*arrays, **attrs).item()


HISTOGRAMS = {
    "normal": lambda rng: rng.normal(size=(7, 11)).astype(np.float32),
    "with zeros and tiny values": lambda rng: np.array([0, 0, 1, -2, 3e-13, np.pi], np.float32),
    "integers": lambda rng: rng.integers(-5, 5, 20, dtype=np.int32),
    "one value": lambda rng: np.float64(3.0),
    "huge": lambda rng: np.array([1e30, -1e30, 1e20]),
    "none": lambda rng: np.zeros(0, np.float32),
}


@pytest.mark.needs_tf
@pytest.mark.parametrize("name", HISTOGRAMS)
def test_histogram_is_tensorflows(name, rng, tensorflow):
    found = HISTOGRAMS[name](rng)
    expected = tensorflow.raw_ops.HistogramSummary(tag="h", values=found).numpy()
    ours = event_pb2.Summary.FromString(run("HistogramSummary", b"h", found))
    theirs = event_pb2.Summary.FromString(expected)
    for field in ("sum", "sum_squares"):  # added up in another order
        one, other = getattr(ours.value[0].histo, field), getattr(theirs.value[0].histo, field)
        assert one == pytest.approx(other, rel=1e-12)
        setattr(ours.value[0].histo, field, other)
    assert ours == theirs


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_histogram_of_what_is_not_finite_is_refused(value, kind):
    with pytest.raises(errors.GraphError, match=f"{kind} in the values of .*'h'"):
        run("HistogramSummary", b"h", np.array([1.0, value]))


@pytest.mark.needs_tf
def test_scalars_are_tensorflows(tensorflow):
    tags, values = np.array([b"a", b"b"], dtype=object), np.array([1.5, -2], np.float32)
    expected = tensorflow.raw_ops.ScalarSummary(tags=tags, values=values).numpy()
    assert run("ScalarSummary", tags, values) == expected


def test_scalars_and_tags_of_other_shapes_are_refused():
    with pytest.raises(errors.GraphError, match=r"tags of shape \(\), values of \(2,\)"):
        run("ScalarSummary", b"a", np.ones(2))


IMAGES = {
    "positive": lambda rng: rng.uniform(0, 3, (3, 4, 5, 3)).astype(np.float32),
    "negative too": lambda rng: rng.normal(size=(2, 4, 5, 1)).astype(np.float32),
    "bytes": lambda rng: rng.integers(0, 256, (2, 4, 5, 4), dtype=np.uint8),
    "not finite": lambda rng: np.where(
        rng.uniform(size=(1, 4, 5, 3)) < 0.2, np.nan, rng.normal(size=(1, 4, 5, 3))
    ).astype(np.float32),
    "zero": lambda rng: np.zeros((1, 2, 2, 3), np.float32),
    "one row": lambda rng: rng.integers(0, 256, (2, 1, 9, 3), dtype=np.uint8),
    "one column": lambda rng: rng.integers(0, 256, (2, 9, 1, 3), dtype=np.uint8),
    "several chunks": lambda rng: (
        np.add.outer(np.arange(150), np.arange(120))[None, ..., None]
        + rng.integers(0, 9, (1, 150, 120, 3))
    ).astype(np.uint8),
}


@pytest.mark.needs_tf
@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("max_images", [1, 2])
def test_images_are_tensorflows(name, max_images, rng, tensorflow):
    images = IMAGES[name](rng)
    bad_color = np.array([255, 0, 0, 255], np.uint8)
    v1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default(), v1.Session() as session:  # eagerly it has no bad_color
        op = tensorflow.raw_ops.ImageSummary(tag="i", tensor=images, max_images=max_images)
        theirs = event_pb2.Summary.FromString(session.run(op))
    ours = event_pb2.Summary.FromString(
        run("ImageSummary", b"i", images, max_images=max_images, bad_color=bad_color)
    )
    assert [value.tag for value in ours.value] == [value.tag for value in theirs.value]
    for one, other in zip(ours.value, theirs.value, strict=True):
        decoded = [
            tensorflow.io.decode_png(v.image.encoded_image_string).numpy() for v in (one, other)
        ]
        np.testing.assert_array_equal(*decoded)
        assert one == other


def test_image_of_another_rank_is_refused():
    with pytest.raises(errors.GraphError, match=r"has shape \[4, 5, 3\]; expected \[batch"):
        run("ImageSummary", b"i", np.ones((4, 5, 3)), max_images=1, bad_color=np.zeros(4, np.uint8))


@pytest.mark.needs_tf
def test_text_and_merged_summaries_are_tensorflows(tensorflow):
    raw = tensorflow.raw_ops
    metadata = b"\n\006\n\004text"
    text = raw.TensorSummaryV2(tag="t", tensor="hello", serialized_summary_metadata=metadata)
    scalar = raw.ScalarSummary(tags="s", values=1.0)
    ours = run("TensorSummaryV2", b"t", np.array(b"hello", dtype=object), metadata)
    assert event_pb2.Summary.FromString(ours) == event_pb2.Summary.FromString(text.numpy())
    merged = raw.MergeSummary(inputs=[text, scalar]).numpy()
    assert run("MergeSummary", ours, run("ScalarSummary", b"s", np.float32(1.0))) == merged


def test_merging_a_tag_twice_is_refused():
    scalar = run("ScalarSummary", b"s", np.float32(1.0))
    with pytest.raises(errors.GraphError, match="in several summaries:\n  s"):
        run("MergeSummary", scalar, scalar)


# --- nodes -------------------------------------------------------------------------------------


def build(module, summaries):
    """Adds summaries in the words that both libraries share."""
    value = module.constant(1.5, name="value")
    with module.name_scope("outer"):
        summaries.scalar("loss fn", value)
        summaries.scalar("loss fn", value, family="fam/1")
    spread = summaries.histogram("spread", value)
    summaries.image("/pictures", module.placeholder("float32", [None, 4, 4, 3]), max_outputs=2)
    summaries.text("note", module.constant("hello"))
    summaries.scalar("elsewhere", value, collections=["mine"])
    summaries.merge([spread, spread], collections=["mine"], name="two")
    summaries.merge_all()
    summaries.merge_all(scope="outer", name="some")


@pytest.mark.needs_tf
def test_nodes_of_summaries_are_tensorflows(tensorflow):
    v1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default() as theirs:
        build(v1, v1.summary)
    with jaxmeta.Graph().as_default() as ours:
        build(jaxmeta, jaxmeta.summary)
    found, expected = (
        [(node.name, node.op, list(node.input)) for node in nodes]
        for nodes in (ours.as_graph_def().node, theirs.as_graph_def().node)
    )
    assert found == expected
    tags = [name for name, op, _ in expected if op == "Const" and "value" not in name]
    for name in tags:
        one, other = ours.nodes[name], theirs.get_operation_by_name(name)
        assert one.attr["value"].tensor.string_val == other.get_attr("value").string_val
    for key in ("summaries", "mine"):
        items = [[item.name for item in g.get_collection(key)] for g in (ours, theirs)]
        assert items[0] == items[1]


def test_session_runs_summaries_and_writer_takes_them(tmp_path):
    with jaxmeta.Graph().as_default() as graph, jaxmeta.Session(graph=graph) as sess:
        x = jaxmeta.placeholder("float32", [3], name="x")
        jaxmeta.summary.scalar("total", jaxmeta.call(lambda x: x.sum(), x))
        jaxmeta.summary.histogram("spread", x)
        merged = jaxmeta.summary.merge_all()
        with jaxmeta.summary.FileWriter(tmp_path, graph) as writer:
            for step in range(2):
                writer.add_summary(sess.run(merged, {x: np.ones(3) * step}), step)
    events = read_events(tmp_path)
    assert [e.value for e in events.Scalars("total")] == [0.0, 3.0]
    assert [e.histogram_value.max for e in events.Histograms("spread")] == [0.0, 1.0]


def test_nothing_to_merge():
    assert jaxmeta.summary.merge_all() is None
    with pytest.raises(errors.GraphError, match="no summaries to merge"):
        jaxmeta.summary.merge([])


def test_text_of_numbers_is_refused():
    with pytest.raises(errors.GraphError, match="a text summary takes strings"):
        jaxmeta.summary.text("t", jaxmeta.constant(1.0))


# --- event files -------------------------------------------------------------------------------


def read_events(path):
    from tensorboard.backend.event_processing import event_accumulator

    found = event_accumulator.EventAccumulator(
        str(path), size_guidance={"scalars": 0, "histograms": 0}
    )
    return found.Reload()


def test_tensorboard_reads_what_was_written(tmp_path):
    graph = jaxmeta.Graph()
    graph.variables({"w": np.ones(3, np.float32)})
    with FileWriter(tmp_path, graph) as writer:
        for step in range(3):
            writer.add_summary(run("ScalarSummary", b"loss", np.float32(step * 2)), step)
        writer.add_meta_graph(jaxmeta.export_meta_graph(graph=graph))
    events = read_events(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 0.0), (1, 2.0), (2, 4.0)]
    assert [node.name for node in events.Graph().node] == list(graph.nodes)
    assert events.MetaGraph().graph_def == events.Graph()


@pytest.mark.needs_tf
def test_tensorflow_reads_what_was_written(tmp_path, tensorflow):
    with FileWriter(tmp_path, filename_suffix=".ours") as writer:
        writer.add_summary(run("ScalarSummary", b"loss", np.float32(7)), np.int64(5))
    assert writer.path.endswith(".ours")
    first, second = tensorflow.compat.v1.train.summary_iterator(writer.path)
    assert first.file_version == "brain.Event:2"
    assert (second.step, second.summary.value[0].simple_value) == (5, 7.0)


def test_closed_writer_refuses_and_reopens_another_file(tmp_path):
    writer = FileWriter(tmp_path)
    writer.close()
    with pytest.raises(errors.GraphError, match=r"is closed; reopen\(\) begins another file"):
        writer.add_summary(b"")
    first = writer.path
    writer.reopen()
    writer.add_summary(b"", 1)
    writer.close()
    assert writer.path != first
    assert len(list(tmp_path.iterdir())) == 2


def test_metadata_is_written_once_for_each_tag(tmp_path):
    summary = event_pb2.Summary()
    summary.value.add(tag="t").metadata.plugin_data.plugin_name = "text"
    with FileWriter(tmp_path) as writer:
        writer.add_summary(summary, 1)
        writer.add_summary(summary, 2)
    events = read_events(tmp_path)
    assert events.SummaryMetadata("t").plugin_data.plugin_name == "text"
    assert summary.value[0].HasField("metadata")


def test_writer_without_tensorboard_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard.summary.writer", None)
    with pytest.raises(errors.MissingPackageError, match=r"pip install 'jaxmeta\[tensorboard\]'"):
        FileWriter(tmp_path)


def test_something_else_than_a_graph_is_refused(tmp_path):
    with FileWriter(tmp_path) as writer, pytest.raises(errors.GraphError, match="expected a graph"):
        writer.add_graph(None)
