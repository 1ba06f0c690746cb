"""How named arrays lie in an Orbax directory: the nested dict, the dtypes, the metadata files.

A name is split at its slashes: ``params/Dense_0/kernel`` is ``tree["params"]["Dense_0"]["kernel"]``
for whoever restores the directory with plain Orbax. Four escapes, all beginning with ``%``, keep
that reversible where it would not be:

=======================================  ======================  ==========================
in the name                              in the tree
=======================================  ======================  ==========================
``%``                                    ``%25``                 always
an empty part, as in ``a//b``            ``%_``                  always
a name that others continue: ``a``,      ``a%`` beside           only the shorter name
``a/b``                                  ``{"a": {"b": ...}}``
a dot, where names differ only in        ``%2E``                 only those names, because
dots against slashes: ``a.b``, ``a/b``                           Orbax files both as ``a.b``
=======================================  ======================  ==========================
"""

from __future__ import annotations

import collections
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import ml_dtypes
import numpy as np

from jaxmeta.checkpoint.atomic import StrPath

TreePath: TypeAlias = tuple[str, ...]

TREE_FILE: Final = "_METADATA"
MANIFEST_FILE: Final = "manifest.ocdbt"
CHECKPOINT_FILE: Final = "_CHECKPOINT_METADATA"

# The version of what jaxmeta adds to the Orbax format, under this key beside the arrays:
#   1: `attributes.jaxmeta` of an array: name; dtype, where TensorStore has none and holds its bits
#      as uint8; key_impl of typed PRNG keys.
FORMAT_KEY: Final = "jaxmeta.json"
FORMAT_VERSION: Final = 1

# Orbax's own settings: how many files are open at once, and a cache for the index of the arrays.
CONTEXT: Final = {
    "file_io_concurrency": {"limit": 128},
    "cache_pool#ocdbt": {"total_bytes_limit": 100_000_000},
}

_DICT_KEY: Final = 2  # Orbax's KeyType.DICT
_HANDLER: Final = (
    "orbax.checkpoint._src.handlers.standard_checkpoint_handler.StandardCheckpointHandler"
)
# How Orbax notes a container without leaves.
_EMPTY_TREE: Final[dict[str, Any]] = {
    "key_metadata": [],
    "value_metadata": {"value_type": "Dict", "skip_deserialize": True},
}


# --- names and the tree ------------------------------------------------------------------------


def tree_paths(names: Iterable[str]) -> dict[str, TreePath]:
    """Returns the keys below which each name's array stands in the nested dict.

    Example:
        >>> tree_paths(["a", "a/b", "50%"])
        {'a': ('a%',), 'a/b': ('a', 'b'), '50%': ('50%25',)}
    """
    paths = {name: tuple(map(_escape, name.split("/"))) for name in names}
    inner = {path[:depth] for path in paths.values() for depth in range(1, len(path))}
    by_key = collections.defaultdict(list)
    for name, path in paths.items():
        if path in inner:
            paths[name] = path = (*path[:-1], path[-1] + "%")
        by_key[array_key(path)].append(name)
    for rivals in by_key.values():
        if len(rivals) > 1:
            for name in rivals:
                paths[name] = tuple(part.replace(".", "%2E") for part in paths[name])
    return paths


def name_from_path(path: Sequence[str]) -> str:
    """Returns the name whose array stands below these keys.

    Example:
        >>> name_from_path(("a%",)), name_from_path(("%_", "50%25"))
        ('a', '/50%')
    """
    parts = (*path[:-1], path[-1].removesuffix("%"))
    return "/".join(map(_unescape, parts))


def array_key(path: Sequence[str]) -> str:
    """Returns the key of the array's directory in Orbax's key-value store."""
    return ".".join(path)


def _escape(part: str) -> str:
    return part.replace("%", "%25") or "%_"


def _unescape(part: str) -> str:
    return "" if part == "%_" else part.replace("%2E", ".").replace("%25", "%")


# --- dtypes ------------------------------------------------------------------------------------


def dtype_from_name(name: str) -> np.dtype[Any]:
    """Returns the dtype that a Zarr file calls by this name, such as ``bfloat16`` or ``<f4``.

    Raises:
        TypeError: this version of numpy or ml_dtypes has no such dtype.
    """
    return np.dtype(getattr(ml_dtypes, name, name))


# --- TensorStore -------------------------------------------------------------------------------


def index_spec(directory: str, *, for_writing: bool = False, path: str = "") -> dict[str, Any]:
    """Returns the TensorStore spec of the key-value store that holds the arrays."""
    files = {"driver": "file", "path": directory + "/"}
    spec: dict[str, Any] = {
        "driver": "ocdbt",
        "base": files,
        "path": path,
        "cache_pool": "cache_pool#ocdbt",
    }
    if for_writing:
        # As Orbax has it: nothing else is in the directory yet, and arrays stay out of the index.
        spec["base"] = {**files, "file_io_locking": {"mode": "non_atomic"}}
        spec["manifest"] = files
        spec["assume_config"] = True
        spec["config"] = {
            "max_inline_value_bytes": 1024,
            "max_decoded_node_bytes": 100_000_000,
            "manifest_kind": "single",
        }
    return spec


def files_spec(directory: str) -> dict[str, Any]:
    """Returns the same for a directory that Orbax wrote with a file for every key."""
    return {"driver": "file", "path": directory + "/"}


# --- metadata files ----------------------------------------------------------------------------


def is_orbax_directory(path: StrPath) -> bool:
    """Returns whether a directory holds a finished Orbax checkpoint; none is opened."""
    return any(os.path.isfile(os.path.join(path, file)) for file in (TREE_FILE, MANIFEST_FILE))


def metadata_files(paths: Iterable[TreePath]) -> dict[str, bytes]:
    """Returns the contents of the files by which Orbax knows a directory and its tree."""
    now = time.time_ns()
    # As numpy arrays, for Orbax refuses to restore a jax.Array on a machine without its device.
    value = {"value_type": "np.ndarray", "skip_deserialize": False}
    tree = {
        "tree_metadata": {
            repr(path): {
                "key_metadata": [{"key": key, "key_type": _DICT_KEY} for key in path],
                "value_metadata": value,
            }
            for path in paths
        }
        or {"()": _EMPTY_TREE},
        "use_ocdbt": True,
        "use_zarr3": True,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    checkpoint = {
        "item_handlers": _HANDLER,
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": now,
        "commit_timestamp_nsecs": now,
        "custom_metadata": {},
    }
    return {TREE_FILE: json.dumps(tree).encode(), CHECKPOINT_FILE: json.dumps(checkpoint).encode()}


def names_by_key(tree: Mapping[str, Any]) -> dict[str, str]:
    """Returns the name for each array key, out of the tree file of any Orbax checkpoint.

    Empty containers, which Orbax lists too, are left out.

    Raises:
        KeyError, TypeError: the file is not what Orbax writes.
    """
    paths = [
        tuple(str(key["key"]) for key in entry["key_metadata"])
        for entry in tree["tree_metadata"].values()
        if not entry["value_metadata"].get("skip_deserialize")
    ]
    return {array_key(path): name_from_path(path) for path in paths if path}
