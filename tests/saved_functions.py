"""Functions as .meta files with their arguments beside them, for processes that load them.

Knows nothing of where the functions come from: the process that loads them has no model libraries.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import numpy as np
import resuming

import jaxmeta as jm
from jaxmeta import trees
from jaxmeta.meta_graphs import meta_graph

SIGNATURE = "main"
_META = "program.meta"
_ARGUMENTS = "arguments.npz"
_SPECS = "specs.json"
_CONSTANTS = "constants"


def save(folder: pathlib.Path, fn: Any, args: tuple[Any, ...], *, updates: bool) -> jm.Graph:
    """Writes a function and its arguments.

    Args:
        folder: for the files.
        fn: the function.
        args: its arguments; the values of those that are `jax.ShapeDtypeStruct` are not written.
        updates: whether the first argument is a state, which the first result replaces.
    """
    weak = [leaf for leaf in jax.tree.leaves(args) if getattr(leaf, "weak_type", False)]
    assert not weak, "files of arrays do not say that a type is weak"
    graph = jm.Graph()
    given = (graph.variables(args[0]), *args[1:]) if updates else args
    graph.add_signature(SIGNATURE, fn, *given, updates=0 if updates else None)
    jm.export_meta_graph(folder / _META, graph=graph)
    names = sorted(graph.constants)
    resuming.write_leaves(folder / f"{_CONSTANTS}.npz", [graph.constants[n] for n in names])
    (folder / f"{_CONSTANTS}.names").write_text(json.dumps(names))
    leaves = jax.tree.leaves(args)
    (folder / _SPECS).write_text(json.dumps([_described(leaf) for leaf in leaves]))
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        resuming.write_leaves(folder / _ARGUMENTS, resuming.plain_leaves(leaves))
    return graph


def meta_path(folder: pathlib.Path) -> pathlib.Path:
    """Returns the path of the .meta file."""
    return folder / _META


def load_function(
    folder: pathlib.Path, constants: dict[str, Any] | None = None
) -> tuple[Any, jm.Graph]:
    """Returns the function, jitted, and its graph; ``constants`` are what `load_constants` gave."""
    graph = meta_graph.import_graph(jm.read_meta_graph_file(folder / _META))
    graph.constants.update(load_constants(folder) if constants is None else constants)
    return jm.Program(graph, {})[SIGNATURE], graph


def load_constants(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the arrays that the function closes over, by name."""
    names = json.loads((folder / f"{_CONSTANTS}.names").read_text())
    values = resuming.read_leaves(folder / f"{_CONSTANTS}.npz")
    return dict(zip(names, values, strict=True))


def load_arguments(folder: pathlib.Path, graph: jm.Graph) -> tuple[Any, ...]:
    """Returns the arguments, in plain containers; without values where none were written."""
    specs = json.loads((folder / _SPECS).read_text())
    if (folder / _ARGUMENTS).exists():
        plain = resuming.read_leaves(folder / _ARGUMENTS)
        leaves = [_as_key(leaf, impl) for leaf, (_, _, impl) in zip(plain, specs, strict=True)]
    else:
        leaves = [_spec(*described) for described in specs]
    args, kwargs = trees.build(graph.signatures[SIGNATURE].arguments, iter(leaves))
    assert not kwargs
    return tuple(args)


def _described(leaf: Any) -> tuple[str, list[int], str]:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        impl = str(jax.eval_shape(lambda key: key, leaf).dtype).removeprefix("key<")
        names = {"fry>": "threefry2x32", "rbg>": "rbg", "urbg>": "unsafe_rbg"}
        return "key", list(leaf.shape), names[impl]
    return str(np.dtype(leaf.dtype)), list(leaf.shape), ""


def _as_key(leaf: Any, impl: str) -> Any:
    return jax.random.wrap_key_data(leaf, impl=impl) if impl else leaf


def _spec(dtype: str, shape: list[int], impl: str) -> jax.ShapeDtypeStruct:
    if impl:
        like = jax.eval_shape(lambda: jax.random.key(0, impl=impl))
        return jax.ShapeDtypeStruct(shape, like.dtype)
    import ml_dtypes

    return jax.ShapeDtypeStruct(shape, np.dtype(getattr(ml_dtypes, dtype, dtype)))
