"""The state file and the files of a checkpoint, with TensorFlow as the oracle where it matters."""

import logging
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmeta import errors
from jaxmeta.checkpoint import (
    CheckpointWriter,
    atomic,
    checkpoint_exists,
    generate_checkpoint_state_proto,
    get_checkpoint_mtimes,
    get_checkpoint_state,
    latest_checkpoint,
    meta_graph_filename,
    remove_checkpoint,
    update_checkpoint_state,
    write_file,
)


@pytest.fixture(name="tf")
def tensorflow() -> Any:
    tf = pytest.importorskip("tensorflow")
    return tf.compat.v1.train


def save(prefix: Path | str) -> None:
    with CheckpointWriter() as writer:
        writer.save(prefix, {"x": np.ones(1)})


def make(prefix: Path, kind: str) -> None:
    """Makes a checkpoint of a kind, with a meta graph beside it."""
    prefix.parent.mkdir(exist_ok=True)
    if kind == "orbax":
        save(prefix)
    suffixes = {"bundle": (".index", ".data-00000-of-00001"), "v1": ("",), "orbax": ()}[kind]
    for suffix in (*suffixes, ".meta"):
        Path(f"{prefix}{suffix}").touch()


# --- the state file ----------------------------------------------------------------------------


@pytest.mark.parametrize("relative", [False, True])
def test_the_state_that_was_written_is_read(tmp_path: Path, relative: bool) -> None:
    prefixes = [f"{tmp_path}/model-{step}" for step in (1, 2)]
    update_checkpoint_state(
        tmp_path,
        prefixes[1],
        prefixes,
        all_model_checkpoint_timestamps=[1.5, 2.5],
        last_preserved_timestamp=0.5,
        save_relative_paths=relative,
    )
    assert (str(tmp_path) in (tmp_path / "checkpoint").read_text()) == (not relative)
    state = get_checkpoint_state(tmp_path)
    assert state is not None
    assert state.model_checkpoint_path == prefixes[1]
    assert state.all_model_checkpoint_paths == prefixes
    assert state.all_model_checkpoint_timestamps == [1.5, 2.5]
    assert state.last_preserved_timestamp == 0.5


@pytest.mark.parametrize("prefix", ["runs/model", "{cwd}/runs/model"])
@pytest.mark.parametrize("relative", [False, True])
def test_a_relative_directory_can_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str, relative: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("runs/model"), "bundle")
    prefix = prefix.format(cwd=tmp_path)
    update_checkpoint_state("runs", prefix, save_relative_paths=relative)
    latest = latest_checkpoint("runs")
    assert latest is not None
    assert os.path.abspath(latest) == f"{tmp_path}/runs/model"
    os.rename("runs", "moved")
    is_movable = relative or not os.path.isabs(prefix)
    assert latest_checkpoint("moved") == ("moved/model" if is_movable else None)


def test_the_latest_checkpoint_is_always_in_the_list() -> None:
    state = generate_checkpoint_state_proto("/d", "/d/b", ["/d/a"])
    assert state.all_model_checkpoint_paths == ["/d/a", "/d/b"]


def test_the_list_of_the_caller_is_not_changed() -> None:
    paths = ["d/a"]
    generate_checkpoint_state_proto("d", "d/b", paths)
    assert paths == ["d/a"]


def test_timestamps_must_be_as_many_as_paths() -> None:
    with pytest.raises(errors.CheckpointError, match="1 timestamps for 2 checkpoints"):
        generate_checkpoint_state_proto("/d", "/d/b", ["/d/a"], [1.0])


@pytest.mark.parametrize("error", [errors.CheckpointPathError, RuntimeError])
def test_a_checkpoint_cannot_have_the_path_of_the_state_file(
    tmp_path: Path, error: type[Exception]
) -> None:
    with pytest.raises(error, match="has the path of the state file"):
        update_checkpoint_state(tmp_path, tmp_path / "latest", latest_filename="latest")


def test_a_state_without_a_latest_checkpoint_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text('all_model_checkpoint_paths: "a"\n')
    with pytest.raises(
        errors.CheckpointError, match=f"Invalid checkpoint state loaded from {tmp_path}"
    ):
        get_checkpoint_state(tmp_path)


@pytest.mark.parametrize("content", [b"no proto {", b"\xff\xfe\x00", b'model_checkpoint_path: "'])
def test_an_unreadable_state_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / "checkpoint").write_bytes(content)
    assert get_checkpoint_state(tmp_path) is None
    assert caplog.records[-1].levelno == logging.WARNING
    assert caplog.messages[-1] == f"{tmp_path}/checkpoint: Checkpoint ignored"


def test_there_is_no_latest_checkpoint_without_a_state_or_a_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert latest_checkpoint(tmp_path / "missing") is None
    assert latest_checkpoint(tmp_path) is None
    assert not caplog.records
    update_checkpoint_state(tmp_path, tmp_path / "model-1")
    assert latest_checkpoint(tmp_path) is None
    assert caplog.messages == [f"Couldn't match files for checkpoint {tmp_path}/model-1"]


@pytest.mark.parametrize("kind", ["orbax", "bundle", "v1"])
def test_the_latest_checkpoint_is_of_any_kind(tmp_path: Path, kind: str) -> None:
    make(tmp_path / "model", kind)
    update_checkpoint_state(tmp_path, tmp_path / "model", latest_filename="latest")
    assert latest_checkpoint(tmp_path, "latest") == f"{tmp_path}/model"


# --- the same, by TensorFlow -------------------------------------------------------------------


@pytest.mark.needs_tf
@pytest.mark.parametrize("directory", ["{cwd}/runs", "runs", "."])
@pytest.mark.parametrize("kind", ["orbax", "bundle", "v1"])
def test_tensorflow_reads_our_state_and_we_read_its(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tf: Any, directory: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    directory = directory.format(cwd=tmp_path)
    prefixes = [os.path.join(directory, f"mödel-{step}") for step in (1, 2)]
    make(Path(prefixes[1]), kind)
    arguments = (directory, prefixes[1], list(prefixes))
    timestamps = {"all_model_checkpoint_timestamps": [1.0, 2.0], "last_preserved_timestamp": 0.5}
    contents = []
    for ours_writes in (True, False):
        write = update_checkpoint_state if ours_writes else tf.update_checkpoint_state
        write(*arguments[:2], list(prefixes), **timestamps)
        contents.append(Path(directory, "checkpoint").read_text())
        assert latest_checkpoint(directory) == tf.latest_checkpoint(directory) == prefixes[1]
        ours, theirs = get_checkpoint_state(directory), tf.get_checkpoint_state(directory)
        assert str(ours) == str(theirs)
    assert contents[0] == contents[1]


@pytest.mark.needs_tf
@pytest.mark.parametrize(
    "content",
    [
        'model_checkpoint_path: "model"',
        'model_checkpoint_path: "old" model_checkpoint_path: "model"',
        'model_checkpoint_path: "model" all_model_checkpoint_paths: []',
        "model_checkpoint_path: 'gone'",
        "model_checkpoint_path: 3",
        "unknown: 1",
        "",
    ],
)
def test_states_that_people_edited_are_read_as_by_tensorflow(
    tmp_path: Path, tf: Any, content: str
) -> None:
    (tmp_path / "checkpoint").write_text(content)
    (tmp_path / "model.index").touch()

    def outcome(function: Any) -> str:
        try:
            return str(function(str(tmp_path)))
        except ValueError as error:
            return str(error).partition(": ")[0]

    assert outcome(get_checkpoint_state) == outcome(tf.get_checkpoint_state)
    assert outcome(latest_checkpoint) == outcome(tf.latest_checkpoint)


@pytest.mark.needs_tf
def test_existence_and_times_are_those_of_tensorflow(tmp_path: Path, tf: Any) -> None:
    for kind in ("bundle", "v1", "orbax"):
        make(tmp_path / kind, kind)
    (tmp_path / "shard-00000-of-00002").touch()
    names = ["bundle", "v1", "orbax", "gone", "shard-?????-of-00002", "b?ndle"]
    prefixes = [str(tmp_path / name) for name in names]
    found = [checkpoint_exists(prefix) for prefix in prefixes]
    assert found == [True, True, True, False, True, False]
    # TensorFlow takes any prefix for a pattern, and so finds `b?ndle`.
    assert found[:-1] == [tf.checkpoint_exists(prefix) for prefix in prefixes[:-1]]
    np.testing.assert_allclose(
        get_checkpoint_mtimes(prefixes), tf.get_checkpoint_mtimes(prefixes[:-1])
    )


# --- the files of a checkpoint -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["orbax", "bundle", "v1"])
def test_remove_takes_all_files_of_a_checkpoint_and_no_other(tmp_path: Path, kind: str) -> None:
    for name in ("model-1", "model-10", "other[1]"):
        make(tmp_path / name, kind)
    others = {path.name for path in tmp_path.iterdir() if path.name.split(".")[0] != "model-1"}
    remove_checkpoint(tmp_path / "model-1")
    assert set(os.listdir(tmp_path)) == others
    remove_checkpoint(tmp_path / "other[1]")
    assert not checkpoint_exists(tmp_path / "other[1]")
    remove_checkpoint(tmp_path / "model-1")


def test_remove_leaves_a_directory_that_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model/notes").mkdir(parents=True)
    remove_checkpoint(tmp_path / "model")
    assert (tmp_path / "model/notes").is_dir()
    assert not checkpoint_exists(tmp_path / "model")


@pytest.mark.parametrize(
    ("prefix", "filename"),
    [
        ("d/model-10", "d/model-10.x"),
        ("model-10-?????-of-00005", "model-10.x"),
        ("model-10-00001-of-00002", "model-10.x"),
        ("model-of-2", "model-of-2.x"),
    ],
)
def test_meta_graphs_lie_beside_their_checkpoint(prefix: str, filename: str) -> None:
    assert meta_graph_filename(prefix, "x") == filename


# --- atomic files ------------------------------------------------------------------------------


def test_a_file_is_replaced_as_a_whole_under_the_eyes_of_readers(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"a" * 100_000)
    writing = threading.Thread(
        target=lambda: [write_file(path, letter * 100_000) for letter in [b"b", b"a"] * 10]
    )
    writing.start()
    found = set()
    while writing.is_alive():
        found.add(path.read_bytes())
    writing.join()
    assert found <= {b"a" * 100_000, b"b" * 100_000}
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(tmp_path / "file", b"old")

    def fail(descriptor: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk is full"):
        write_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_written_file_has_ordinary_permissions(tmp_path: Path) -> None:
    write_file(tmp_path / "file", b"")
    (tmp_path / "other").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_leftovers_are_told_from_what_is_being_written(tmp_path: Path) -> None:
    (tmp_path / f"a{atomic.STAGING_SUFFIX}").mkdir()
    with atomic.NewDirectory(tmp_path / "b"):
        assert atomic.remove_leftovers(tmp_path) == [f"a{atomic.STAGING_SUFFIX}"]
    assert os.listdir(tmp_path) == ["b"]
