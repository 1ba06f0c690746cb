"""The text file ``checkpoint``: which checkpoint is the latest, and which others are kept.

The file is TensorFlow's, in both directions: ``tf.train.latest_checkpoint`` reads ours. A prefix
such as ``runs/digits/model-1000`` names an Orbax directory, a TensorBundle
(``model-1000.index``) or a V1 file; beside it lies ``model-1000.meta``.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import re
from collections.abc import Iterable, Sequence
from typing import Final

from google.protobuf import text_format

from jaxmeta import errors
from jaxmeta._proto.checkpoint_pb2 import CheckpointState
from jaxmeta.checkpoint import atomic, background, layout
from jaxmeta.checkpoint.atomic import StrPath

_DEFAULT_FILENAME: Final = "checkpoint"
_SHARD_SUFFIX: Final = re.compile(r"-[\d?]+-of-\d+$")

_logger = logging.getLogger(__name__)


# --- the state file ----------------------------------------------------------------------------


def generate_checkpoint_state_proto(
    save_dir: StrPath,
    model_checkpoint_path: StrPath,
    all_model_checkpoint_paths: Sequence[StrPath] | None = None,
    all_model_checkpoint_timestamps: Sequence[float] | None = None,
    last_preserved_timestamp: float | None = None,
) -> CheckpointState:
    """Returns the state that lists the checkpoints of a directory.

    Args:
        save_dir: where the state will lie. If it is relative, so become the paths: to it.
        model_checkpoint_path: the latest checkpoint.
        all_model_checkpoint_paths: all that are kept, from oldest to newest; the latest is appended
            if it is not the last of them.
        all_model_checkpoint_timestamps: when each was made, in seconds since the epoch.
        last_preserved_timestamp: when the last one was made that is kept for good.

    Raises:
        CheckpointError: there are not as many timestamps as paths.
    """
    latest = os.fspath(model_checkpoint_path)
    paths = [os.fspath(path) for path in all_model_checkpoint_paths or ()]
    if not paths or paths[-1] != latest:
        paths.append(latest)
    if all_model_checkpoint_timestamps and len(all_model_checkpoint_timestamps) != len(paths):
        raise errors.CheckpointError(
            f"{len(all_model_checkpoint_timestamps)} timestamps for {len(paths)} checkpoints: "
            f"{list(all_model_checkpoint_timestamps)} for {paths}; give one each, or none"
        )
    if not os.path.isabs(save_dir):
        latest = _relative_to(save_dir, latest)
        paths = [_relative_to(save_dir, path) for path in paths]
    return CheckpointState(
        model_checkpoint_path=latest,
        all_model_checkpoint_paths=paths,
        all_model_checkpoint_timestamps=all_model_checkpoint_timestamps,
        last_preserved_timestamp=last_preserved_timestamp,
    )


def update_checkpoint_state(
    save_dir: StrPath,
    model_checkpoint_path: StrPath,
    all_model_checkpoint_paths: Sequence[StrPath] | None = None,
    latest_filename: str | None = None,
    all_model_checkpoint_timestamps: Sequence[float] | None = None,
    last_preserved_timestamp: float | None = None,
    save_relative_paths: bool = False,
) -> None:
    """Writes the state file of a directory; a reader sees the old one or the new one.

    The arguments that ``generate_checkpoint_state_proto`` has too mean the same here. The file is
    called ``checkpoint`` if ``latest_filename`` is None; ``save_relative_paths`` makes absolute
    paths relative to ``save_dir``, so that the directory can be moved.

    Raises:
        CheckpointPathError: the checkpoint has the path of the state file.
        CheckpointError: there are not as many timestamps as paths.
        OSError: the file cannot be written.
    """
    latest = os.fspath(model_checkpoint_path)
    paths = [os.fspath(path) for path in all_model_checkpoint_paths or ()]
    base = save_dir
    if save_relative_paths:
        latest, *paths = (
            os.path.relpath(path, save_dir)
            if os.path.isabs(path) or not os.path.isabs(save_dir)
            else path
            for path in (latest, *paths)
        )
        base = os.path.abspath(save_dir)  # they are relative already
    state = generate_checkpoint_state_proto(
        base, latest, paths, all_model_checkpoint_timestamps, last_preserved_timestamp
    )
    path = _state_path(save_dir, latest_filename)
    if _is_same(path, os.path.join(save_dir, state.model_checkpoint_path)):
        raise errors.CheckpointPathError(
            f"checkpoint {os.fspath(model_checkpoint_path)} has the path of the state file {path}; "
            "save it under another name, or give another latest_filename"
        )
    atomic.write_file(path, text_format.MessageToString(state).encode())


def get_checkpoint_state(
    checkpoint_dir: StrPath, latest_filename: str | None = None
) -> CheckpointState | None:
    """Returns the state of a directory, its relative paths joined to the directory.

    What this process is saving counts: it waits for that.

    Returns:
        None where there is no state file, or where it cannot be read; the latter is logged.

    Raises:
        CheckpointError: the file names no latest checkpoint.
    """
    background.wait_for_saves()
    path = _state_path(checkpoint_dir, latest_filename)
    if not os.path.exists(path):
        return None
    state = CheckpointState()
    try:
        with open(path, "rb") as file:
            text_format.Merge(file.read().decode(), state)
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        _logger.warning("%s: %s", type(error).__name__, error)
        _logger.warning("%s: Checkpoint ignored", path)
        return None
    if not state.model_checkpoint_path:
        raise errors.CheckpointError(
            f"Invalid checkpoint state loaded from {os.fspath(checkpoint_dir)}: {path} has no "
            "model_checkpoint_path; remove the file, or write it with update_checkpoint_state"
        )
    state.model_checkpoint_path = os.path.join(checkpoint_dir, state.model_checkpoint_path)
    state.all_model_checkpoint_paths[:] = [
        os.path.join(checkpoint_dir, path) for path in state.all_model_checkpoint_paths
    ]
    return state


def latest_checkpoint(checkpoint_dir: StrPath, latest_filename: str | None = None) -> str | None:
    """Returns the prefix of the latest checkpoint of a directory.

    Returns:
        None where there is no state file, where it cannot be read, or where the checkpoint that it
        names is gone; the latter two are logged.

    Raises:
        CheckpointError: the state file names no latest checkpoint.
    """
    state = get_checkpoint_state(checkpoint_dir, latest_filename)
    if state is None:
        return None
    if not checkpoint_exists(state.model_checkpoint_path):
        _logger.error("Couldn't match files for checkpoint %s", state.model_checkpoint_path)
        return None
    return state.model_checkpoint_path


def _state_path(directory: StrPath, filename: str | None) -> str:
    return os.path.join(directory, _DEFAULT_FILENAME if filename is None else filename)


def _relative_to(directory: StrPath, path: str) -> str:
    return path if os.path.isabs(path) else os.path.relpath(path, directory or ".")


def _is_same(path: str, other: str) -> bool:
    return os.path.abspath(path) == os.path.abspath(other)


# --- checkpoints -------------------------------------------------------------------------------


def checkpoint_exists(checkpoint_prefix: StrPath) -> bool:
    """Returns whether an Orbax directory, a TensorBundle or a V1 file has this prefix."""
    return data_file(os.fspath(checkpoint_prefix)) is not None


def get_checkpoint_mtimes(checkpoint_prefixes: Iterable[StrPath]) -> list[float]:
    """Returns when checkpoints were last written, in seconds since the epoch.

    Those that do not exist are left out.
    """
    files = (data_file(os.fspath(prefix)) for prefix in checkpoint_prefixes)
    return [os.path.getmtime(file) for file in files if file is not None]


def remove_checkpoint(checkpoint_prefix: StrPath, meta_graph_suffix: str = "meta") -> None:
    """Removes what belongs to a prefix: the meta graph, and the data in any format.

    What is missing already is no error. A directory that is no checkpoint stays.

    Raises:
        OSError: a file cannot be removed.
    """
    prefix = os.fspath(checkpoint_prefix)
    # First what a checkpoint is known by, so that a kill leaves no part that looks like a whole.
    if _is_directory(prefix):
        atomic.remove_directory(prefix)
    meta_graph = meta_graph_filename(prefix, meta_graph_suffix)
    for file in (f"{prefix}.index", *_shards(prefix), *_v1_files(prefix), meta_graph):
        if not os.path.isdir(file):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file)


def remove_other_formats(checkpoint_prefix: StrPath, *, is_bundle: bool) -> None:
    """Removes data of another format below a prefix, of which new data was just saved.

    Args:
        checkpoint_prefix: the prefix.
        is_bundle: whether the new data is a TensorBundle, and an Orbax directory goes; or it is
            the other way about.
    """
    prefix = os.fspath(checkpoint_prefix)
    if is_bundle:
        if _is_directory(prefix):
            atomic.remove_directory(prefix)
        return
    for file in (f"{prefix}.index", *_shards(prefix)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file)


def _shards(prefix: str) -> list[str]:
    return glob.glob(glob.escape(prefix) + ".data-?????-of-?????")


def meta_graph_filename(checkpoint_filename: StrPath, meta_graph_suffix: str = "meta") -> str:
    """Returns the path of the meta graph beside a checkpoint.

    Example:
        >>> meta_graph_filename("model-10"), meta_graph_filename("model-10-?????-of-00005")
        ('model-10.meta', 'model-10.meta')
    """
    return _SHARD_SUFFIX.sub("", os.fspath(checkpoint_filename)) + "." + meta_graph_suffix


def _is_directory(prefix: str) -> bool:
    return bool(prefix) and layout.is_orbax_directory(atomic.find_directory(prefix))


def data_file(prefix: str) -> str | None:
    """Returns the file or directory by which a checkpoint is known; of sharded files, one.

    It waits for what this process saves.
    """
    background.wait_for_saves()
    if os.path.isfile(f"{prefix}.index"):
        return f"{prefix}.index"
    if _is_directory(prefix):
        return atomic.find_directory(prefix)
    return next(iter(_v1_files(prefix)), None)


def _v1_files(prefix: str) -> list[str]:
    # The prefix of V1 shards is a pattern, such as `model-?????-of-00002`.
    files = sorted(glob.glob(prefix)) if _SHARD_SUFFIX.search(prefix) else [prefix]
    return [file for file in files if os.path.isfile(file)]
