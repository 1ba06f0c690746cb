"""Shardings as attrs, and where a loaded program's shardings are.

A sharding is recorded by the names, sizes and types of its mesh's axes and by its PartitionSpec; no
device is. What comes back is a `NamedSharding` over an `AbstractMesh`, which a `Placement` turns
into one over devices that are there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxmeta import errors, values
from jaxmeta._proto import graph_pb2

Recorded: TypeAlias = NamedSharding
"""A sharding whose mesh is an `AbstractMesh`."""

MESH_AXES_ATTR: Final = "_jax_mesh_axes"
MESH_SHAPE_ATTR: Final = "_jax_mesh_shape"
MESH_AXIS_TYPES_ATTR: Final = "_jax_mesh_axis_types"
PARTITION_SPEC_ATTR: Final = "_jax_partition_spec"
MEMORY_KIND_ATTR: Final = "_jax_memory_kind"
IN_SHARDINGS_ATTR: Final = "_jax_in_shardings"
OUT_SHARDINGS_ATTR: Final = "_jax_out_shardings"
CONTEXT_ATTR: Final = "_jax_context_axis_types"  # of the mesh in whose context a node runs

_UNCONSTRAINED: Final = "?"
_DEVICE_MEMORY: Final = (None, "device", "unpinned_host")
_REDUCTIONS: Final = ("unreduced", "reduced")
_ADVICE: Final = "Use a NamedSharding over a mesh whose axes are named by strings."


# --- to and from attrs -------------------------------------------------------------------------


def mesh_to_attrs(mesh: Mesh | AbstractMesh) -> dict[str, Any]:
    """Returns the attrs that record a mesh: names, sizes and types of its axes.

    Raises:
        ShardingError: an axis is not named by a plain string.
    """
    _check_axes(mesh.axis_names)
    return {
        MESH_AXES_ATTR: tuple(mesh.axis_names),
        MESH_SHAPE_ATTR: tuple(mesh.axis_sizes),
        MESH_AXIS_TYPES_ATTR: tuple(kind.name for kind in mesh.axis_types),
    }


def mesh_from_attrs(
    axes: Sequence[bytes | str], shape: Sequence[int], axis_types: Sequence[bytes | str] = ()
) -> AbstractMesh:
    """Returns the mesh for what `mesh_to_attrs` gave.

    Raises:
        FormatError: they are not those of a mesh.
    """
    names = tuple(_text(axis) for axis in axes)
    kinds = tuple(_text(kind) for kind in axis_types) or ("Auto",) * len(names)
    sizes = tuple(int(size) for size in shape)
    is_mesh = (
        len(names) == len(sizes) == len(kinds) == len(set(names))
        and all(0 < size < 1 << 31 for size in sizes)
        and set(kinds) <= set(AxisType.__members__)
    )
    if not is_mesh:
        raise errors.FormatError(
            f"a mesh is recorded with axes {names}, sizes {sizes} and types {kinds}; there must "
            "be a positive size and a type for each axis, and no axis twice"
        )
    return AbstractMesh(sizes, names, axis_types=tuple(AxisType[kind] for kind in kinds))


def sharding_to_attrs(sharding: NamedSharding) -> dict[str, Any]:
    """Returns the attrs that record a sharding.

    Raises:
        ShardingError: it cannot be recorded.
    """
    attrs = mesh_to_attrs(sharding.mesh)
    attrs[PARTITION_SPEC_ATTR] = spec_to_text(sharding.spec)
    if sharding.memory_kind not in _DEVICE_MEMORY:
        attrs[MEMORY_KIND_ATTR] = sharding.memory_kind
    return attrs


def signature_to_attrs(
    inputs: Iterable[Recorded | None], outputs: Iterable[Recorded | None]
) -> dict[str, Any]:
    """Returns the attrs that record what a jitted function was given; none if nothing.

    Raises:
        ShardingError: they are over several meshes.
    """
    ins, outs = tuple(inputs), tuple(outputs)
    mesh = common_mesh([*ins, *outs])
    if mesh is None:
        return {}
    sides = {IN_SHARDINGS_ATTR: ins, OUT_SHARDINGS_ATTR: outs}
    texts = {
        name: tuple("" if sharding is None else spec_to_text(sharding.spec) for sharding in side)
        for name, side in sides.items()
        if any(side)
    }
    return {**mesh_to_attrs(mesh), **texts}


def signature_from_attrs(
    attr: Mapping[str, graph_pb2.AttrValue],
) -> tuple[tuple[Recorded | None, ...], tuple[Recorded | None, ...]]:
    """Returns what `signature_to_attrs` was given; empty where that was nothing.

    Raises:
        FormatError: the attrs are not those of shardings.
    """
    mesh = _mesh_of(attr)
    if mesh is None:
        return (), ()
    ins, outs = (
        tuple(make_recorded(mesh, text) if text else None for text in attr[name].list.s)
        if name in attr
        else ()
        for name in (IN_SHARDINGS_ATTR, OUT_SHARDINGS_ATTR)
    )
    return ins, outs


def _mesh_of(attr: Mapping[str, graph_pb2.AttrValue]) -> AbstractMesh | None:
    if MESH_AXES_ATTR not in attr:
        return None
    names = (MESH_AXES_ATTR, MESH_SHAPE_ATTR, MESH_AXIS_TYPES_ATTR)
    return mesh_from_attrs(
        *(values.attr_from_proto(attr[name]) if name in attr else () for name in names)
    )


def sharding_from_attrs(attr: Mapping[str, graph_pb2.AttrValue]) -> Recorded | None:
    """Returns the sharding that a node's attrs record, or None.

    Raises:
        FormatError: they are not those of a sharding.
    """
    mesh = _mesh_of(attr)
    if mesh is None or PARTITION_SPEC_ATTR not in attr:
        return None
    memory_kind = attr[MEMORY_KIND_ATTR].s.decode() if MEMORY_KIND_ATTR in attr else ""
    return make_recorded(mesh, attr[PARTITION_SPEC_ATTR].s, memory_kind)


def make_recorded(mesh: AbstractMesh, spec: bytes | str, memory_kind: str = "") -> Recorded:
    """Returns a recorded sharding from its parts.

    Raises:
        FormatError: the spec does not fit the mesh.
    """
    try:
        return NamedSharding(mesh, spec_from_text(spec), memory_kind=memory_kind or None)
    except ValueError as error:
        raise errors.FormatError(
            f"the sharding {_text(spec)} does not fit its mesh {mesh}: {error}"
        ) from error


def spec_to_text(spec: PartitionSpec) -> str:
    """Returns a PartitionSpec as JSON: ``["data", ["x", "y"], null]``.

    What the compiler may choose is ``"?"``; axes over which sums are still to be taken, or were,
    stand in an object at the end: ``{"unreduced": ["x"]}``.

    Raises:
        ShardingError: what is outstanding is another reduction than a sum.
    """
    entries: list[Any] = []
    for entry in spec.partitions:
        if entry is PartitionSpec.UNCONSTRAINED:
            entries.append(_UNCONSTRAINED)
        else:
            entries.append(list(entry) if isinstance(entry, tuple) else entry)
    kind = str(getattr(getattr(spec, "unreduced_kind", None), "name", "sum"))
    if spec.unreduced and kind != "sum":
        raise errors.ShardingError(f"{spec} cannot be recorded: only sums may be outstanding")
    reductions = {kind: sorted(getattr(spec, kind, ()) or ()) for kind in _REDUCTIONS}
    if any(reductions.values()):
        entries.append({kind: axes for kind, axes in reductions.items() if axes})
    return json.dumps(entries)


def spec_from_text(text: bytes | str) -> PartitionSpec:
    """Returns the PartitionSpec for what `spec_to_text` gave.

    Raises:
        FormatError: it is not one.
    """
    try:
        entries = json.loads(_text(text))
        if not isinstance(entries, list):
            raise ValueError("it is no list")
        reductions = entries.pop() if entries and isinstance(entries[-1], dict) else {}
        if set(reductions) - set(_REDUCTIONS):
            raise ValueError(f"unknown: {sorted(reductions)}")
        return PartitionSpec(
            *map(_entry, entries), **{kind: frozenset(axes) for kind, axes in reductions.items()}
        )
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise errors.FormatError(f"{_text(text)[:200]} is not a PartitionSpec: {error}") from error


def _entry(entry: Any) -> Any:
    if entry == _UNCONSTRAINED:
        return PartitionSpec.UNCONSTRAINED
    if isinstance(entry, list) and all(isinstance(axis, str) for axis in entry):
        return tuple(entry)
    if entry is None or isinstance(entry, str):
        return entry
    raise ValueError(f"{entry!r} is not an axis")


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _check_axes(axes: Sequence[Any]) -> None:
    odd = [repr(axis) for axis in axes if not isinstance(axis, str) or axis == _UNCONSTRAINED]
    if odd:
        raise errors.ShardingError(
            errors.list_offenders("these axes of a mesh cannot be recorded:", odd, _ADVICE)
        )


# --- the mesh in whose context nodes run -------------------------------------------------------


def context_to_attrs(mesh: AbstractMesh, outer: AbstractMesh) -> dict[str, Any]:
    """Returns the attr that records types of axes other than those around; none if they are those.

    `jax.sharding.auto_axes` and `explicit_axes` change them for what they call. `jax.shard_map`
    does so too, but sets them itself where it is restored.
    """
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    is_changed = mesh.axis_names == outer.axis_names and mesh.axis_types != outer.axis_types
    if not is_changed or AxisType.Manual in (*mesh.axis_types, *outer.axis_types):
        return {}
    return {CONTEXT_ATTR: tuple(f"{axis}={kind.name}" for axis, kind in kinds)}


def run_in_context(run: Callable[..., Any], recorded: Sequence[bytes]) -> Callable[..., Any]:
    """Returns a function that runs with the types of axes that `context_to_attrs` recorded.

    Axes that the mesh there has not do not matter, and without a mesh none does.

    Raises:
        FormatError: what is recorded are not axes and types.
    """
    pairs = [_text(entry).rpartition("=") for entry in recorded]
    if not all(axis and kind in AxisType.__members__ for axis, _, kind in pairs):
        raise errors.FormatError(f"{CONTEXT_ATTR} is {recorded!r}; there must be AXIS=TYPE each")
    kinds = {axis: AxisType[kind] for axis, _, kind in pairs}

    def run_there(*inputs: Any) -> Any:
        around = jax.sharding.get_abstract_mesh()
        if around.empty or AxisType.Manual in around.axis_types:
            return run(*inputs)
        here = {axis: kind for axis, kind in kinds.items() if axis in around.axis_names}
        mesh = around.update_axis_types(here)
        with jax.sharding.use_abstract_mesh(mesh):
            return run(*inputs)

    return run_there


# --- what programs hold ------------------------------------------------------------------------


def of_array(leaf: Any) -> Recorded | None:
    """Returns the sharding of an array or spec as it is recorded; None on a single device.

    Raises:
        ShardingError: it spreads the array in a way that has no axes.
    """
    return to_recorded(getattr(leaf, "sharding", None))


def to_recorded(sharding: Any) -> Recorded | None:
    """Returns a sharding over the abstract mesh; None where there is none, or one device.

    Raises:
        ShardingError: it spreads arrays in a way that has no axes.
    """
    if sharding is None or isinstance(sharding, jax.sharding.SingleDeviceSharding):
        return None
    if not isinstance(sharding, NamedSharding):
        raise errors.ShardingError(f"{sharding} cannot be recorded. {_ADVICE}")
    _check_axes(sharding.mesh.axis_names)
    if sharding.mesh.empty:
        return None
    memory_kind = None if sharding.memory_kind in _DEVICE_MEMORY else sharding.memory_kind
    mesh = sharding.mesh
    plain = AbstractMesh(mesh.axis_sizes, mesh.axis_names, axis_types=mesh.axis_types)
    return NamedSharding(plain, sharding.spec, memory_kind=memory_kind)


def abstract_mesh(recorded: Recorded) -> AbstractMesh:
    """Returns the mesh of a recorded sharding."""
    assert isinstance(recorded.mesh, AbstractMesh)
    return recorded.mesh


def common_mesh(recorded: Sequence[Recorded | None]) -> AbstractMesh | None:
    """Returns the mesh of some shardings, or None where there are none.

    Raises:
        ShardingError: there are several meshes.
    """
    meshes = {abstract_mesh(sharding): None for sharding in recorded if sharding is not None}
    if len(meshes) > 1:
        raise errors.ShardingError(
            errors.list_offenders(
                "shardings of one function are over several meshes:",
                map(str, meshes),
                "Use one mesh, with all the axes.",
            )
        )
    return next(iter(meshes), None)


def has_explicit_axes(mesh: Mesh | AbstractMesh) -> bool:
    """Returns whether shardings over some of a mesh's axes are part of the types of arrays."""
    return AxisType.Explicit in mesh.axis_types


# --- where a loaded program is -----------------------------------------------------------------


class Placement:
    """On which devices the shardings of a loaded program are.

    Args:
        mesh: has axes of the recorded names, of any size, or some of them. A spec's axes that it
            has not are dropped, so that an array is whole along them. Where None, the recorded
            mesh is made anew if this process group has exactly as many devices; else all is on one
            device, and shardings are dropped.
        overrides: shardings by the name of the variable that has them instead of its own.

    Example:
        >>> recorded = NamedSharding(AbstractMesh((1 << 20,), ("data",)), PartitionSpec("data"))
        >>> Placement().sharding(recorded) is None
        True
        >>> mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
        >>> Placement(mesh).sharding(recorded).spec
        P('data',)
    """

    def __init__(
        self, mesh: Mesh | None = None, overrides: Mapping[str, jax.sharding.Sharding] | None = None
    ) -> None:
        self._given = mesh
        self.overrides = dict(overrides or {})
        self._meshes: dict[AbstractMesh, Mesh | None] = {}

    def mesh(self, recorded: AbstractMesh) -> Mesh | None:
        """Returns the mesh that takes the place of a recorded one, or None for one device.

        The types of its axes are the recorded ones, for the program was traced with them.
        """
        if recorded not in self._meshes:
            self._meshes[recorded] = self._find_mesh(recorded)
        return self._meshes[recorded]

    def _find_mesh(self, recorded: AbstractMesh) -> Mesh | None:
        # Manual axes are what the axes of a mesh become inside of shard_map.
        kinds = {
            name: AxisType.Auto if kind is AxisType.Manual else kind
            for name, kind in zip(recorded.axis_names, recorded.axis_types, strict=True)
        }
        if self._given is not None:
            given = self._given
            types = tuple(kinds.get(name, AxisType.Auto) for name in given.axis_names)
            return Mesh(given.devices, given.axis_names, axis_types=types)
        if recorded.size != jax.device_count():
            return None
        return jax.make_mesh(
            recorded.axis_sizes, recorded.axis_names, axis_types=tuple(kinds.values())
        )

    def has_recorded_shape(self, recorded: AbstractMesh) -> bool:
        """Returns whether there is a mesh, with the sizes that were recorded."""
        mesh = self.mesh(recorded)
        return mesh is not None and shape_of(mesh) == shape_of(recorded)

    def sharding(self, recorded: Recorded | None) -> NamedSharding | None:
        """Returns a recorded sharding over this placement's mesh, or None."""
        if recorded is None:
            return None
        mesh = self.mesh(abstract_mesh(recorded))
        if mesh is None:
            return None
        spec = restrict(recorded.spec, mesh.axis_names)
        return NamedSharding(mesh, spec, memory_kind=recorded.memory_kind)

    def sharding_here(self, recorded: Recorded) -> NamedSharding | None:
        """Returns the same as `sharding`, but inside of `jax.shard_map` over the mesh there."""
        context = jax.sharding.get_abstract_mesh()
        if AxisType.Manual not in context.axis_types:
            return self.sharding(recorded)
        kinds = zip(context.axis_names, context.axis_types, strict=True)
        free = [name for name, kind in kinds if kind is not AxisType.Manual]
        return NamedSharding(context, restrict(recorded.spec, free))

    def sharding_of_text(self, mesh: AbstractMesh, text: bytes) -> NamedSharding | None:
        """Returns `sharding` of a spec as text; None where that is empty."""
        return self.sharding(make_recorded(mesh, text)) if text else None


def shape_of(mesh: Mesh | AbstractMesh) -> dict[Any, int]:
    """Returns the sizes of a mesh's axes by name."""
    return dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True))


def restrict(spec: PartitionSpec, axes: Sequence[Any]) -> PartitionSpec:
    """Returns a spec without the axes that a mesh has not."""

    def keep(entry: Any) -> Any:
        if not isinstance(entry, tuple):
            is_axis = entry is not None and entry is not PartitionSpec.UNCONSTRAINED
            return entry if not is_axis or entry in axes else None
        kept = tuple(axis for axis in entry if axis in axes)
        return kept or None

    reductions = {
        kind: frozenset(axis for axis in found if axis in axes)
        for kind in _REDUCTIONS
        if (found := getattr(spec, kind, None))
    }
    return PartitionSpec(*map(keep, spec.partitions), **reductions)


def indivisible(name: str, shape: Sequence[int], sharding: NamedSharding) -> list[str]:
    """Returns a line for each dimension of an array that its sharding does not divide."""
    sizes = shape_of(sharding.mesh)
    lines = []
    for axis, entry in enumerate(sharding.spec.partitions):
        names = entry if isinstance(entry, tuple) else (entry,)
        parts = math.prod(sizes.get(part, 1) for part in names)
        if axis >= len(shape) or shape[axis] % parts:
            lines.append(f"{name}: {tuple(shape)} by {sharding.spec}, {parts} parts")
    return lines
