"""docs/tutorial.md: all its blocks run, in order, and TensorFlow's compute what jaxmeta's do."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest
from tutorial_engine import Engine

import jaxmeta as jm
from jaxmeta._proto import event_pb2

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "tutorial.md").read_text()
BACK = "TensorFlow goes on training it"
COMPARED = {  # how nearly, and which values of which section
    "Resume": (1e-4, ["before", "after"]),
    "A class of your own in a collection": (0, ["found"]),
    "A queue runner": (0, ["batches"]),
}


def sections():
    """Returns the blocks of each section, the first without a title."""
    parts = re.split(r"^## (.*)$", PAGE, flags=re.MULTILINE)
    bodies = dict(zip(["", *parts[1::2]], parts[::2], strict=True))
    return {
        title: re.findall(r"^```python\n(.*?)^```", body, re.MULTILINE | re.DOTALL)
        for title, body in bodies.items()
    }


SECTIONS = sections()


def engine_of(block):
    if re.search(r"\btf\b", block):
        return "tensorflow"
    return "jaxmeta" if re.search(r"\b(jm|jax|jnp)\b", block) else "both"


def blocks_of(engine, title):
    return [block for block in SECTIONS[title] if engine_of(block) in (engine, "both")]


def run_page(engine, name, directory):
    """Runs an engine's blocks, but for those on going back; returns the values by section."""
    values = {}
    for title in SECTIONS:
        if title != BACK:
            values[title] = [engine.run(block, directory) for block in blocks_of(name, title)]
    return values


@pytest.fixture(scope="module")
def jaxmeta_page(tmp_path_factory):
    """The engine, its directory, and the values after each block."""
    directory = tmp_path_factory.mktemp("jaxmeta")
    with Engine() as engine:
        yield engine, directory, run_page(engine, "jaxmeta", directory)


@pytest.fixture(scope="module")
def tensorflow_page(tmp_path_factory, tensorflow):
    directory = tmp_path_factory.mktemp("tensorflow")
    with Engine() as engine:
        yield engine, directory, run_page(engine, "tensorflow", directory)


def assert_close(found, expected, rtol):
    for item, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(item), np.asarray(other), rtol=rtol, atol=rtol / 100)


# --- jaxmeta's blocks ----------------------------------------------------------------------------


def test_every_section_shows_both_engines_side_by_side():
    for title, blocks in SECTIONS.items():
        if title not in ("From a JAX train step", BACK):
            kinds = [engine_of(block) for block in blocks]
            assert kinds.count("tensorflow") == kinds.count("jaxmeta") > 0, title


def test_training_goes_on_as_if_it_had_not_stopped(jaxmeta_page):
    _, _, values = jaxmeta_page
    before, after = values["Resume"][0]["before"], values["Resume"][1]["after"]
    for found, expected in zip(after, before, strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(before[0], [[2.0]], rtol=1e-5)


def test_files_hold_the_collections_that_were_asked_for(jaxmeta_page):
    _, directory, _ = jaxmeta_page
    whole = jm.read_meta_graph_file(directory / "my-model.meta")
    assert set(whole.collection_def) == {
        "hparams",
        "input_tensor",
        "output_tensor",
        "train_op",
        "trainable_variables",
        "variables",
    }
    text = (directory / "my-model.pbtxt").read_text()
    assert text.startswith("meta_info_def {")
    part = jm.read_meta_graph_file(directory / "my-model.pbtxt")
    assert set(part.collection_def) == {"input_tensor", "output_tensor"}
    assert part.graph_def == whole.graph_def


def test_hyperparameters_come_back(jaxmeta_page):
    _, _, values = jaxmeta_page
    assert values["Retrieve hyperparameters"][0]["hparams"] == [{"learning_rate": 0.1}]


def test_the_extended_graph_learns_and_reports_its_loss(jaxmeta_page):
    _, _, values = jaxmeta_page
    first, second = values["Import and extend the graph"]
    assert first["inferred"].shape == (100, 10)
    losses = np.asarray(second["losses"])
    expected = -np.log(np.exp(first["inferred"]) / np.exp(first["inferred"]).sum(1, keepdims=True))
    np.testing.assert_allclose(losses[0], expected[:, 0].mean(), rtol=1e-5)
    assert (np.diff(losses) < 0).all()
    (value,) = event_pb2.Summary.FromString(second["summary"]).value
    assert value.tag == "loss"
    assert value.simple_value < losses[-1]


def test_importing_again_gives_the_same_graph(jaxmeta_page):
    _, _, values = jaxmeta_page
    inferred = values["Import and extend the graph"][0]["inferred"]
    again = values["Import a graph with preset devices"][0]["inferred_again"]
    np.testing.assert_array_equal(again, inferred)
    assert values["Import within the default graph"][0]["names"] == [
        f"{scope}/{name}:0"
        for scope in ("hidden1", "hidden2", "softmax_linear")
        for name in ("weights", "biases")
    ]


def test_objects_and_queues_come_back(jaxmeta_page):
    _, _, values = jaxmeta_page
    assert values["A class of your own in a collection"][-1]["found"] == [0.1, 0.5]
    batches = np.concatenate(values["A queue runner"][-1]["batches"])
    np.testing.assert_array_equal(batches, np.arange(1.0, 13.0))


def test_a_train_step_goes_on_as_a_function_and_by_names(jaxmeta_page):
    _, _, values = jaxmeta_page
    _, as_function, by_names = values["From a JAX train step"]
    losses = np.asarray(as_function["losses_in_jax"])
    np.testing.assert_array_equal(by_names["losses"], losses)
    assert (np.diff(losses) < 0).all()


# --- TensorFlow's blocks -------------------------------------------------------------------------


@pytest.mark.needs_tf
@pytest.mark.parametrize("title", COMPARED)
def test_tensorflow_computes_the_same(jaxmeta_page, tensorflow_page, title):
    _, _, ours = jaxmeta_page
    _, _, theirs = tensorflow_page
    rtol, names = COMPARED[title]
    for name in names:
        assert_close(ours[title][-1][name], theirs[title][-1][name], rtol)


@pytest.mark.needs_tf
def test_tensorflow_names_the_same_things(jaxmeta_page, tensorflow_page):
    _, ours_at, ours = jaxmeta_page
    _, theirs_at, theirs = tensorflow_page
    title = "Import within the default graph"
    assert ours[title][0]["names"] == theirs[title][0]["names"]
    for name in ("my-model.meta", "my-model.pbtxt"):
        collections = [
            set(jm.read_meta_graph_file(directory / name).collection_def)
            for directory in (ours_at, theirs_at)
        ]
        assert collections[0] == collections[1]
    assert theirs["Retrieve hyperparameters"][0]["hparams"] == [pytest.approx(0.1)]


@pytest.mark.needs_tf
@pytest.mark.parametrize("writer", ["jaxmeta", "tensorflow"])
def test_both_engines_extend_and_train_the_same_file_alike(jaxmeta_page, tensorflow_page, writer):
    pages = {"jaxmeta": jaxmeta_page, "tensorflow": tensorflow_page}
    title = "Import and extend the graph"
    found = {}
    for name, (engine, _, _) in pages.items():
        _, later = blocks_of(name, title)
        found[name] = engine.run(later, pages[writer][1])
    for value in ("losses", "weights", "biases"):
        assert_close(found["jaxmeta"][value], found["tensorflow"][value], 1e-5)
    summaries = [event_pb2.Summary.FromString(values["summary"]) for values in found.values()]
    tags, values = zip(*[(s.value[0].tag, s.value[0].simple_value) for s in summaries], strict=True)
    assert set(tags) == {"loss"}
    assert values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.needs_tf
@pytest.mark.parametrize("writer", ["jaxmeta", "tensorflow"])
@pytest.mark.parametrize(
    ("title", "number", "value"),
    [
        ("Resume", -1, "after"),
        ("Import a graph with preset devices", 0, "inferred_again"),
        ("A queue runner", -1, "batches"),
    ],
)
def test_both_engines_go_on_with_the_same_file_alike(
    jaxmeta_page, tensorflow_page, writer, title, number, value
):
    pages = {"jaxmeta": jaxmeta_page, "tensorflow": tensorflow_page}
    found = {
        name: engine.run(blocks_of(name, title)[number], pages[writer][1])[value]
        for name, (engine, _, _) in pages.items()
    }
    assert_close(found["jaxmeta"], found["tensorflow"], 1e-4)


@pytest.mark.needs_tf
def test_each_engine_reads_the_objects_of_the_other(jaxmeta_page, tensorflow_page):
    title = "A class of your own in a collection"
    for (engine, _, _), (_, directory, _), name in (
        (jaxmeta_page, tensorflow_page, "jaxmeta"),
        (tensorflow_page, jaxmeta_page, "tensorflow"),
    ):
        reading = blocks_of(name, title)[-1].split("\n\n")[-1]
        assert "schedules.meta" in reading
        assert engine.run(reading, directory)["found"] == [0.1, 0.5]


@pytest.mark.needs_tf
def test_tensorflow_trains_the_step_and_jax_goes_on(jaxmeta_page, tensorflow_page):
    engine, directory, values = jaxmeta_page
    in_tensorflow, back = SECTIONS[BACK]
    losses = tensorflow_page[0].run(in_tensorflow, directory)["losses"]
    expected = values["From a JAX train step"][-1]["losses"]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    state = "state, metrics = run.state, None\nfor step in range(6):\n"
    state += '    state, metrics = run["train_step"](state, batch)\n'
    ahead = engine.run(
        f'run = jm.load("runs/digits/model-0")\n{state}ahead = metrics["loss"]', directory
    )
    np.testing.assert_allclose(engine.run(back, directory)["loss"], ahead["ahead"], rtol=1e-5)
