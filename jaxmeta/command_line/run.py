"""``jaxmeta run``: runs an entry point of a saved program on its restored state."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import jax
import numpy as np

from jaxmeta import dtypes, errors, program, tree_keys, trees
from jaxmeta.graphs import building, graph, nodes
from jaxmeta.saving import saver
from jaxmeta.tracing import signature_nodes

_FILLS: Final = ("zeros", "random")
_SHOWN_STEPS: Final = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Placeholder:
    """An array that a signature wants to be fed.

    Attributes:
        name: of its node, such as ``batch/image``.
        shape, dtype: of what is fed; sizes that are not fixed are None. Typed keys are fed as their
            uint32 data.
        key_impl: the PRNG implementation of a typed key, else empty.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]
    key_impl: str

    @property
    def fixed_shape(self) -> list[int]:
        """The shape with 1 for sizes that are not fixed."""
        return [1 if size is None else size for size in self.shape]

    def __str__(self) -> str:
        sizes = ",".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name}  {self.dtype}[{sizes}]"


def run_signature(
    path: str,
    signature_name: str | None,
    feeds: Sequence[str],
    *,
    steps: int = 1,
    seed: int = 0,
    out: str | None = None,
    save: str | None = None,
    write: Callable[[str], Any] = print,
) -> None:
    """Runs a signature some times, each time on the state that the time before left.

    Args:
        path: of the checkpoint, as `jaxmeta.load` takes it.
        signature_name: may be None where there is only one.
        feeds: ``NAME=SOURCE`` or ``SOURCE``; see `read_feeds`.
        steps: how many times.
        seed: of random feeds.
        out: an .npz file for the results.
        save: a prefix for a checkpoint of the last state.
        write: takes each line of the report.

    Raises:
        JaxmetaError: the files, the name or the feeds are wrong.
        OSError: a file cannot be read or written.
    """
    loaded = saver.load(path)
    signature = _choose_signature(loaded, signature_name)
    fed = read_feeds(_placeholders(loaded.graph, signature), feeds, seed)
    scalars: dict[str, list[Any]] = {}
    started = time.perf_counter()
    for step in range(steps):
        results = _step(loaded, signature, {name: array(step) for name, array in fed.items()})
        for name, value in results.items():
            if not value.shape:
                scalars.setdefault(name, []).append(value)
        if step == 0:
            first = time.perf_counter() - started
        _write_scalars(write, step + 1, steps, results)
    _write_arrays(write, results)
    seconds = time.perf_counter() - started
    write(f"{steps} x {signature.name} in {seconds:.2f} s, of these the first {first:.2f} s")
    if out is not None:
        arrays: dict[str, Any] = {**results, **{n: np.array(v) for n, v in scalars.items()}}
        np.savez(out, **arrays)
        write(f"results: {out}")
    if save is not None:
        assert isinstance(loaded.graph, building.Graph)
        with saver.Saver(loaded.graph, asynchronous=False) as writer:
            write(f"saved: {writer.save(loaded.state, save)}")


# --- the signature -----------------------------------------------------------------------------


def _choose_signature(loaded: program.Program, name: str | None) -> graph.Signature:
    known = loaded.graph.signatures
    if not known:
        raise errors.GraphError(
            "the graph has no signatures, so jaxmeta did not write it. Run its tensors by name: "
            "import_meta_graph() and Session.run()."
        )
    if name is None and len(known) == 1:
        return next(iter(known.values()))
    if name not in known:
        asked = "choose one with --signature" if name is None else f"there is no signature {name!r}"
        raise errors.GraphError(f"{asked}; there are: {', '.join(known)}")
    return known[name]


def _placeholders(target: graph.GraphBuilder, signature: graph.Signature) -> list[Placeholder]:
    found = []
    for leaf in trees.leaves(signature.arguments):
        node, _, index = leaf.name.partition(":")
        if index:
            attr = target.node(node).attr
            is_key = nodes.KEY_IMPL_ATTR in attr
            impl = attr[nodes.KEY_IMPL_ATTR].s.decode() if is_key else ""
            dtype = dtypes.dtype_from_number(leaf.number)
            found.append(Placeholder(node, tuple(leaf.shape), dtype, impl))
    return found


def _step(
    loaded: program.Program, signature: graph.Signature, fed: Mapping[str, Any]
) -> dict[str, np.ndarray[Any, Any]]:
    """Runs a signature once; stores the state it returns and returns its other results by path."""
    leaves = trees.leaves(signature.arguments)
    given = [
        fed[n[:-2]] if (n := leaf.name).endswith(":0") else loaded.values[n] for leaf in leaves
    ]
    args, kwargs = trees.build(signature.arguments, iter(given))
    output = loaded[signature.name](*args, **kwargs)
    outputs = dict(enumerate(output)) if isinstance(output, tuple) else {0: output}
    for result, argument in signature.updates:
        names = trees.leaves(signature_nodes.argument_tree(signature.arguments, argument))
        values = jax.tree.leaves(outputs.pop(result))
        loaded.values.update(zip([leaf.name for leaf in names], values, strict=True))
    only = len(outputs) == 1
    flat, _ = jax.tree_util.tree_flatten_with_path(
        next(iter(outputs.values())) if only else outputs
    )
    return {tree_keys.path_name(keys) or "result": _to_numpy(value) for keys, value in flat}


def _to_numpy(value: Any) -> np.ndarray[Any, Any]:
    """Returns an array as .npz files can hold it: keys as their data, small floats as float32."""
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.kind == "V" else array


# --- feeds -------------------------------------------------------------------------------------

Feed = Callable[[int], Any]  # from the number of the step, counted from 0


def read_feeds(
    placeholders: Sequence[Placeholder], specs: Sequence[str], seed: int
) -> dict[str, Feed]:
    """Returns what to feed at each step, by the names of the placeholders.

    Args:
        placeholders: all that must be fed.
        specs: ``NAME=SOURCE``, or ``SOURCE`` for all placeholders that no other names; of several
            such the first that fits. A name may be shortened to its last parts. A source is
            ``zeros``, ``random``, a number to fill with, ``x.npy``, ``x.npz:key``, or ``x.npz`` for
            the array named like the placeholder. An array with one axis more than its placeholder
            holds one value a step.
        seed: of random values.

    Raises:
        FeedError: a name is unknown, a source is not one, an array does not fit, or a placeholder
            is left; all are listed.
    """
    named: dict[str, str] = {}
    others, bad = [], []
    for spec in specs:
        name, separator, source = spec.partition("=")
        if not separator:
            others.append(spec)
            continue
        matches = [p for p in placeholders if _is_name_of(name, p)]
        if len(matches) == 1:
            named[matches[0].name] = source
        else:
            bad.append(f"{name}: names {len(matches) or 'none'} of the placeholders")
    feeds: dict[str, Feed] = {}
    for index, placeholder in enumerate(placeholders):
        sources = [named[placeholder.name]] if placeholder.name in named else others
        reasons = [] if sources else ["is not fed"]
        for source in sources:
            try:
                feeds[placeholder.name] = _read_feed(placeholder, source, seed + index)
                break
            except errors.FeedError as error:
                reasons.append(str(error))
        else:
            bad.append(f"{placeholder}: {'; '.join(reasons)}")
    if bad:
        advice = "Give --feed NAME=SOURCE for each, or --feed random for all; see --help."
        raise errors.FeedError(errors.list_offenders("these feeds do not fit:", bad, advice))
    return feeds


def _is_name_of(name: str, placeholder: Placeholder) -> bool:
    name = name.removesuffix(":0")
    return placeholder.name == name or placeholder.name.endswith(f"/{name}")


def _read_feed(placeholder: Placeholder, source: str, seed: int) -> Feed:
    array = _filled(placeholder, source, seed) if source in _FILLS else _loaded(placeholder, source)
    if not np.can_cast(array.dtype, placeholder.dtype, "same_kind"):
        raise errors.FeedError(f"{source} holds {array.dtype}")
    array = array.astype(placeholder.dtype)
    per_step = array.ndim == len(placeholder.shape) + 1
    shape = array.shape[1:] if per_step else array.shape
    fits = len(shape) == len(placeholder.shape) and all(
        want in (None, size) for want, size in zip(placeholder.shape, shape, strict=True)
    )
    if not fits or (per_step and not len(array)):
        raise errors.FeedError(f"{source} has shape {list(array.shape)}")

    def feed(step: int) -> Any:
        value = array[step % len(array)] if per_step else array
        impl = placeholder.key_impl
        return jax.random.wrap_key_data(jax.numpy.asarray(value), impl=impl) if impl else value

    return feed


def _filled(placeholder: Placeholder, source: str, seed: int) -> np.ndarray[Any, Any]:
    shape = placeholder.fixed_shape
    if source == "zeros":
        return np.zeros(shape, placeholder.dtype)
    rng = np.random.default_rng(seed)
    if placeholder.key_impl:
        return rng.integers(0, 1 << 32, shape, np.uint32)
    is_number = jax.dtypes.issubdtype(placeholder.dtype, np.inexact)
    # 0 and 1 are labels and indices wherever integers are.
    drawn: Any = rng.standard_normal(shape) if is_number else rng.integers(0, 2, shape)
    return np.asarray(drawn).astype(placeholder.dtype)


def _loaded(placeholder: Placeholder, source: str) -> np.ndarray[Any, Any]:
    filename, _, key = source.rpartition(":") if ".npz:" in source else (source, "", "")
    try:
        if filename.endswith(".npy"):
            return np.asarray(np.load(filename))
        if filename.endswith(".npz"):
            with np.load(filename) as arrays:
                return np.asarray(arrays[key or _matching_key(placeholder, arrays.files)])
        number = int(filename) if filename.lstrip("-").isdigit() else float(filename)
        return np.full(placeholder.fixed_shape, number)
    except KeyError:
        raise errors.FeedError(f"{filename} has no array {key or placeholder.name!r}") from None
    except OSError as error:
        raise errors.FeedError(f"{filename} cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise errors.FeedError(
            f"{source!r} is no source; take zeros, random, a number, x.npy, x.npz or x.npz:key"
        ) from None


def _matching_key(placeholder: Placeholder, keys: Sequence[str]) -> str:
    return next((key for key in keys if _is_name_of(key, placeholder)), placeholder.name)


# --- the report --------------------------------------------------------------------------------


def _write_scalars(
    write: Callable[[str], Any], step: int, steps: int, results: Mapping[str, Any]
) -> None:
    """Writes one line of scalars a step, of many steps only some."""
    scalars = {name: value for name, value in results.items() if not value.shape}
    every = -(-steps // _SHOWN_STEPS)
    if scalars and (step == 1 or step % every == 0 or step == steps):
        texts = (f"{name} {value:.6g}" for name, value in scalars.items())
        write(f"step {step}  " + "  ".join(texts))


def _write_arrays(write: Callable[[str], Any], results: Mapping[str, Any]) -> None:
    for name, value in results.items():
        if value.shape:
            sizes = ",".join(map(str, value.shape))
            write(f"{name}  {value.dtype}[{sizes}]  {'  '.join(_statistics(value))}".rstrip())


def _statistics(value: np.ndarray[Any, Any]) -> Iterator[str]:
    if value.size and value.dtype.kind in "fiu":
        for name in ("min", "mean", "max"):
            yield f"{name} {getattr(value, name)():.6g}"
