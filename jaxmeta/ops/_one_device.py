"""What `jax.shard_map` computes, on one device: its devices' parts as leading axes of arrays.

It is what TensorFlow runs, and what runs on a mesh of another shape than the traced one, for the
body was traced for parts of fixed shapes. Collectives become plain ops on the leading axes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from jaxmeta.tracing import binding, jaxprs, meshes


@dataclasses.dataclass(frozen=True, slots=True)
class Spread:
    """How a shard_map spreads arrays.

    Attributes:
        sizes: of the mesh's axes that the body sees, by name, in the mesh's order.
        in_specs, out_specs: for each array.
    """

    sizes: Mapping[str, int]
    in_specs: Sequence[PartitionSpec]
    out_specs: Sequence[PartitionSpec]


def run_on_one_device(jaxpr: Any, spread: Spread, arrays: Sequence[Any]) -> list[Any]:
    """Returns what a shard_map with this body gives for whole arrays.

    Raises:
        NotImplementedError: a collective of the body has no such form.
    """
    run: Callable[..., Any] = functools.partial(_evaluate, jaxpr)
    for name in reversed(list(spread.sizes)):
        run = jax.vmap(run, axis_name=name, axis_size=spread.sizes[name])
    parts = [_split(x, spec, spread.sizes) for x, spec in zip(arrays, spread.in_specs, strict=True)]
    if not parts:  # vmap maps over an argument at least
        raise NotImplementedError("a shard_map of no arrays")
    results = run(*parts)
    return [_join(x, spec, spread.sizes) for x, spec in zip(results, spread.out_specs, strict=True)]


def _axes_by_dimension(
    spec: PartitionSpec, rank: int, sizes: Mapping[str, int]
) -> list[tuple[str, ...]]:
    entries = [*spec.partitions, *[None] * (rank - len(spec.partitions))]
    named = [entry if isinstance(entry, tuple) else (entry,) for entry in entries]
    return [tuple(axis for axis in entry if axis in sizes) for entry in named]


def _split(x: Any, spec: PartitionSpec, sizes: Mapping[str, int]) -> Any:
    """Returns an array with a leading axis for each of the mesh, and the shape of a part."""
    shape: list[int] = []
    places: dict[str, int] = {}
    for size, axes in zip(x.shape, _axes_by_dimension(spec, x.ndim, sizes), strict=True):
        for axis in axes:
            places[axis] = len(shape)
            shape.append(sizes[axis])
        shape.append(size // math.prod(sizes[axis] for axis in axes))
    leading = [places[axis] for axis in sizes if axis in places]
    rest = [place for place in range(len(shape)) if place not in leading]
    parts = lax.transpose(lax.reshape(x, shape), (*leading, *rest))
    full = (*sizes.values(), *(shape[place] for place in rest))
    kept = [index for index, axis in enumerate(sizes) if axis in places]
    tail = range(len(sizes), len(full))
    return lax.broadcast_in_dim(parts, full, (*kept, *tail))


def _join(parts: Any, spec: PartitionSpec, sizes: Mapping[str, int]) -> Any:
    """Returns the whole array; along axes that the spec does not name, the parts are the same."""
    rank = parts.ndim - len(sizes)
    by_dimension = _axes_by_dimension(spec, rank, sizes)
    used = [axis for axes in by_dimension for axis in axes]
    for index, axis in reversed(list(enumerate(sizes))):
        if axis not in used:
            parts = lax.index_in_dim(parts, 0, index, keepdims=False)
    leading = [axis for axis in sizes if axis in used]
    order: list[int] = []
    shape: list[int] = []
    for dimension, axes in enumerate(by_dimension):
        order += [*(leading.index(axis) for axis in axes), len(leading) + dimension]
        shape.append(math.prod(sizes[a] for a in axes) * parts.shape[len(leading) + dimension])
    return lax.reshape(lax.transpose(parts, order), shape)


# --- the body ----------------------------------------------------------------------------------


def _evaluate(jaxpr: Any, *arguments: Any) -> list[Any]:
    """Runs a jaxpr whose avals belong to another mesh: each eqn is bound anew."""
    opened = jaxprs.open_jaxpr(jaxpr)
    env: dict[Any, Any] = dict(zip(opened.constvars, jaxprs.jaxpr_constants(jaxpr), strict=True))
    env.update(zip(opened.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        value = jaxprs.literal_value(atom)
        if value is None:
            return env[atom]
        return jaxprs.weaken(value, value.dtype) if jaxprs.is_weak(atom.aval) else value

    for eqn in opened.eqns:
        results = _evaluate_eqn(eqn, [read(atom) for atom in eqn.invars])
        env.update(zip(eqn.outvars, results, strict=True))
    return [jnp.asarray(read(atom)) for atom in opened.outvars]


def _evaluate_eqn(eqn: Any, operands: list[Any]) -> Sequence[Any]:
    name, params = eqn.primitive.name, eqn.params
    evaluate = _SPECIAL.get(name)
    if evaluate is not None:
        return evaluate(params, operands)
    if name in COLLECTIVES:
        return [COLLECTIVES[name](params, operands[0])]
    inner = next((params[key] for key in _CALLED if key in params), None)
    if name in _CALLS and inner is not None:
        return _evaluate(inner, *operands)
    plain = {key: None if key in meshes.SHARDING_PARAMS else params[key] for key in params}
    result = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(plain))
    return result if eqn.primitive.multiple_results else [result]


_CALLED: Final = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_CALLS: Final = frozenset(
    {"jit", "pjit", "remat", "remat2", "checkpoint", "closed_call", "core_call"}
    | {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
)


def _scan(params: Mapping[str, Any], operands: list[Any]) -> Sequence[Any]:
    consts, carry = jaxprs.scan_counts(params)
    return binding.bind_scan(
        functools.partial(_evaluate, params["jaxpr"]),
        operands[:consts],
        operands[consts : consts + carry],
        operands[consts + carry :],
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )


def _while(params: Mapping[str, Any], operands: list[Any]) -> Sequence[Any]:
    first, second = params["cond_nconsts"], params["body_nconsts"]
    return binding.bind_while(
        lambda *xs: _evaluate(params["cond_jaxpr"], *xs)[0],
        functools.partial(_evaluate, params["body_jaxpr"]),
        operands[:first],
        operands[first : first + second],
        operands[first + second :],
    )


def _cond(params: Mapping[str, Any], operands: list[Any]) -> Sequence[Any]:
    branches = [functools.partial(_evaluate, branch) for branch in params["branches"]]
    return binding.bind_cond(
        operands[0], operands[1:], branches, params.get("branches_platforms") or ()
    )


def _shard_map(params: Mapping[str, Any], operands: list[Any]) -> Sequence[Any]:
    return run_on_one_device(params["jaxpr"], spread_of(params), operands)


def spread_of(params: Mapping[str, Any]) -> Spread:
    """Returns how an eqn of shard_map spreads arrays."""
    mesh, manual = params["mesh"], params["newly_manual_axes"]
    sizes = dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True))
    return Spread(
        {axis: size for axis, size in sizes.items() if axis in manual},
        params["in_specs"],
        params["out_specs"],
    )


def _refuse(name: str) -> Sequence[Any]:
    raise NotImplementedError(f"{name} has no form on one device")


_SPECIAL: Final[dict[str, Callable[[Mapping[str, Any], list[Any]], Sequence[Any]]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
    "axis_index": lambda params, operands: [lax.axis_index(params["axis_name"])],
    "ragged_all_to_all": lambda params, operands: _refuse("ragged_all_to_all"),
    "pvary": lambda params, operands: operands,
    "sharding_constraint": lambda params, operands: operands,
    "reshard": lambda params, operands: operands,
}


# --- collectives -------------------------------------------------------------------------------


def _members(x: Any, axes: Any, groups: Any) -> tuple[Any, Any]:
    """Returns the parts of a device's group, as a leading axis, and the device's place there."""
    number = lax.axis_index(axes)
    everyone = lax.all_gather(x, axes)
    if groups is None:
        return everyone, number
    table = np.zeros((everyone.shape[0], len(groups[0])), np.int32)
    place = np.zeros(everyone.shape[0], np.int32)
    for group in groups:
        for index, member in enumerate(group):
            table[member], place[member] = group, index
    mine = lax.dynamic_index_in_dim(jnp.asarray(table), number, keepdims=False)
    own = lax.dynamic_index_in_dim(jnp.asarray(place), number, keepdims=False)
    return jnp.take(everyone, mine, axis=0), own


def _reduction(
    whole: Callable[..., Any], over: Callable[..., Any]
) -> Callable[[Mapping[str, Any], Any], Any]:
    def reduce(params: Mapping[str, Any], x: Any) -> Any:
        groups = params.get("axis_index_groups")
        if groups is None:
            return whole(x, params["axes"])
        return over(_members(x, params["axes"], groups)[0], axis=0).astype(x.dtype)

    return reduce


def _pbroadcast(params: Mapping[str, Any], x: Any) -> Any:
    parts, _ = _members(x, params["axis_name"], None)
    return lax.index_in_dim(parts, params["source"], keepdims=False)


def _ppermute(params: Mapping[str, Any], x: Any) -> Any:
    axes = params["axis_name"]
    everyone, number = _members(x, axes, None)
    source = np.zeros(everyone.shape[0], np.int32)
    is_sent = np.zeros(everyone.shape[0], np.bool_)
    for sender, receiver in params["perm"]:
        source[receiver], is_sent[receiver] = sender, True
    sender = lax.dynamic_index_in_dim(jnp.asarray(source), number, keepdims=False)
    is_received = lax.dynamic_index_in_dim(jnp.asarray(is_sent), number, keepdims=False)
    found = lax.dynamic_index_in_dim(everyone, sender, keepdims=False)
    return jnp.where(is_received, found, jnp.zeros_like(found))


def _all_gather(params: Mapping[str, Any], x: Any) -> Any:
    parts, _ = _members(x, params["axis_name"], params.get("axis_index_groups"))
    axis = params["all_gather_dimension"]
    parts = jnp.moveaxis(parts, 0, axis)
    if not params["tiled"]:
        return parts
    shape = list(x.shape)
    shape[axis] *= parts.shape[axis]
    return lax.reshape(parts, shape)


def _all_to_all(params: Mapping[str, Any], x: Any) -> Any:
    parts, place = _members(x, params["axis_name"], params.get("axis_index_groups"))
    split, concat = params["split_axis"], params["concat_axis"]
    size = x.shape[split] // parts.shape[0]
    mine = lax.dynamic_slice_in_dim(parts, place * size, size, split + 1)
    mine = jnp.moveaxis(mine, 0, concat)
    shape = [*mine.shape[:concat], mine.shape[concat] * mine.shape[concat + 1]]
    return lax.reshape(mine, [*shape, *mine.shape[concat + 2 :]])


def _reduce_scatter(params: Mapping[str, Any], x: Any) -> Any:
    parts, place = _members(x, params["axis_name"], params.get("axis_index_groups"))
    axis = params["scatter_dimension"]
    total = jnp.sum(parts, axis=0).astype(x.dtype)
    if not params["tiled"]:
        return lax.dynamic_index_in_dim(total, place, axis, keepdims=False)
    size = x.shape[axis] // parts.shape[0]
    return lax.dynamic_slice_in_dim(total, place * size, size, axis)


COLLECTIVES: Final[dict[str, Callable[[Mapping[str, Any], Any], Any]]] = {
    "psum": _reduction(lax.psum, jnp.sum),
    "psum_invariant": _reduction(lax.psum, jnp.sum),
    "pmax": _reduction(lax.pmax, jnp.max),
    "pmin": _reduction(lax.pmin, jnp.min),
    "pbroadcast": _pbroadcast,
    "ppermute": _ppermute,
    "all_gather": _all_gather,
    "all_gather_invariant": _all_gather,
    "all_to_all": _all_to_all,
    "reduce_scatter": _reduce_scatter,
}
