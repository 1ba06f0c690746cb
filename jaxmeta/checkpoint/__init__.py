"""Checkpoints: the arrays behind a graph's variables, and which checkpoints there are.

``orbax`` holds named arrays in a directory that any Orbax user restores; ``state`` keeps the file
``checkpoint``, which says what is the latest; ``retention`` says what to delete. A kill at any
moment leaves the former checkpoint whole and the file pointing at it, provided that things are done
in this order: the arrays, then the state file (``on_commit``), then the deletion of what fell out.

Only arrays and names are known here, no graphs.
"""

from jaxmeta.checkpoint.atomic import write_file
from jaxmeta.checkpoint.orbax import CheckpointWriter
from jaxmeta.checkpoint.orbax_reader import read_specs, restore
from jaxmeta.checkpoint.retention import Retention
from jaxmeta.checkpoint.state import (
    checkpoint_exists,
    generate_checkpoint_state_proto,
    get_checkpoint_mtimes,
    get_checkpoint_state,
    latest_checkpoint,
    meta_graph_filename,
    remove_checkpoint,
    update_checkpoint_state,
)

__all__ = [
    "CheckpointWriter",
    "Retention",
    "checkpoint_exists",
    "generate_checkpoint_state_proto",
    "get_checkpoint_mtimes",
    "get_checkpoint_state",
    "latest_checkpoint",
    "meta_graph_filename",
    "read_specs",
    "remove_checkpoint",
    "restore",
    "update_checkpoint_state",
    "write_file",
]
