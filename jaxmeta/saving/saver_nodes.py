"""The nodes by which TensorFlow saves and restores: adding them, and reading those that are there.

They are those of ``tf.train.Saver``, by name, order and attrs, so that TensorFlow finds in our
graphs what it expects in its own.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from jaxmeta import dtypes, errors, naming, values
from jaxmeta._proto import graph_pb2, meta_graph_pb2
from jaxmeta.graphs import graph, nodes
from jaxmeta.graphs.graph import Variable
from jaxmeta.graphs.nodes import Edge
from jaxmeta.saving.saveables import Saveable

V2: Final = int(meta_graph_pb2.SaverDef.V2)

_CPU: Final = "/device:CPU:0"
_OLD_DEVICE: Final = re.compile(r"^(cpu|gpu):", re.IGNORECASE)

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class SaverOptions:
    """How the nodes are made; the fields mean what they mean to `Saver`."""

    sharded: bool = False
    reshape: bool = False
    name: str | None = None
    filename: str | None = None


def add_saver_nodes(
    target: graph.GraphBuilder, saveables: Sequence[Saveable], options: SaverOptions
) -> meta_graph_pb2.SaverDef:
    """Adds the nodes that save and restore variables; returns how TensorFlow calls them."""
    with target.name_scope(options.name or "save"):
        return _SaverNodes(target, options).add(saveables)


class _SaverNodes:
    """Adds the nodes of one saver, below the current name scope."""

    def __init__(self, target: graph.GraphBuilder, options: SaverOptions) -> None:
        self._graph = target
        self._options = options

    def add(self, saveables: Sequence[Saveable]) -> meta_graph_pb2.SaverDef:
        scope = self._unique("filename")
        filename = self._string(self._options.filename or "model", f"{scope}/input")
        for name in (scope, "Const"):
            filename = self._add("PlaceholderWithDefault", [filename], name, shape=())
        if self._options.sharded:
            per_device = self._by_device(saveables)
            saved = self._save_sharded(filename, per_device)
            restores = [
                self._restore(filename, shard, device, "restore_shard")
                for device, shard in per_device
            ]
            restored = self._group([(node, self._device(node)) for node in restores], "restore_all")
        else:
            saved = self._save(filename, saveables, "")
            restored = self._restore(filename, saveables, "", "restore_all")
        return meta_graph_pb2.SaverDef(
            filename_tensor_name=f"{filename.ref}:0",
            save_tensor_name=f"{saved.ref}:0",
            restore_op_name=restored,
            sharded=self._options.sharded,
            version=meta_graph_pb2.SaverDef.V2,
        )

    # --- nodes

    def _add(
        self,
        op: str,
        inputs: Sequence[Any],
        name: str | None = None,
        device: str = "",
        controls: Sequence[str] = (),
        **attrs: Any,
    ) -> Edge:
        # TensorFlow sorts control inputs by name where it writes a graph.
        edges = self._graph.add_node(op, inputs, attrs, name, sorted(controls))
        self._graph.nodes[self._graph.last_node_name].device = device
        return edges[0] if edges else Edge("", 0)

    def _last(self) -> str:
        return self._graph.last_node_name

    def _device(self, node: str) -> str:
        return self._graph.nodes[node].device

    def _constant(self, array: Any, name: str, device: str = "") -> Edge:
        proto = values.tensor_to_proto(array)
        return self._add("Const", [], name, device, dtype=proto.dtype, value=proto)

    def _string(self, text: str, name: str, device: str = "") -> Edge:
        return self._constant(np.array(text.encode(), dtype=object), name, device)

    def _strings(self, texts: Sequence[str], name: str, device: str) -> Edge:
        array = np.array([text.encode() for text in texts], dtype=object)
        return self._constant(array, name, device)

    def _number(self, number: int, name: str, device: str = "") -> Edge:
        return self._constant(np.int32(number), name, device)

    # --- saving

    def _by_device(self, saveables: Sequence[Saveable]) -> list[tuple[str, list[Saveable]]]:
        groups: dict[str, list[Saveable]] = {}
        for saveable in saveables:
            groups.setdefault(device_of(saveable.variable), []).append(saveable)
        return sorted(groups.items())

    def _save(self, filename: Edge, saveables: Sequence[Saveable], device: str) -> Edge:
        tensors = [self._value(saveable, device) for saveable in saveables]
        scope = self._unique("SaveV2")
        names, specs = _names_and_specs(saveables)
        named = self._strings(names, f"{scope}/tensor_names", device)
        cut = self._strings(specs, f"{scope}/shape_and_slices", device)
        self._add("SaveV2", [filename, named, cut, tensors], scope, device)
        return self._add(
            "Identity",
            [filename],
            "control_dependency",
            device,
            [self._last()],
            _class=[f"loc:@{filename.ref}"],
        )

    def _unique(self, name: str) -> str:
        """Returns a name that no node has, below the current scope, without taking it."""
        scoped = self._graph.unique_name(name, mark=False)
        return scoped.rpartition("/")[2] if "/" not in name else scoped

    def _value(self, saveable: Saveable, device: str) -> Edge:
        """Returns what SaveV2 takes: the variable itself, its reading, or a new one of a part."""
        variable = saveable.variable
        if not variable.is_resource and not saveable.slice_spec:
            return Edge(variable.op_name, _number_of(variable))
        if not variable.is_resource or not saveable.slice_spec:
            node = naming.parse_tensor_name(variable.snapshot_name).node
            return Edge(node, _number_of(variable))
        own = merge_devices(device, device_of(variable))
        handle = Edge(variable.op_name, dtypes.RESOURCE)
        scope = self._unique("Read")
        self._graph.unique_name(scope)
        self._add("DisableCopyOnRead", [handle], f"{scope}/DisableCopyOnRead", own)
        read = self._add(
            "ReadVariableOp",
            [handle],
            f"{scope}/ReadVariableOp",
            own,
            dtype=_number_of(variable),
        )
        read = self._add("Identity", [read], "Identity", own)
        return self._add("Identity", [read], "Identity", on_cpu(own))

    def _save_sharded(
        self, prefix: Edge, per_device: Sequence[tuple[str, Sequence[Saveable]]]
    ) -> Edge:
        cpu = "/device:CPU:*"
        is_s3 = self._add("StaticRegexFullMatch", [prefix], None, cpu, pattern="^s3://.*")
        suffixes = [self._string(text, "Const", cpu) for text in (".part", "_temp/part")]
        suffix = self._add("Select", [is_s3, *suffixes], None, cpu)
        temporary = self._add("StringJoin", [[prefix, suffix]], None, cpu)
        shards, saved = self._save_shards(temporary, per_device)
        last = on_cpu(per_device[-1][0])
        name = self._unique("MergeV2Checkpoints")
        prefixes = self._add("Pack", [shards], f"{name}/checkpoint_prefixes", last, saved)
        self._add("MergeV2Checkpoints", [prefixes, prefix], name, last)
        return self._add("Identity", [prefix], None, last, [self._last(), *saved])

    def _save_shards(
        self, prefix: Edge, per_device: Sequence[tuple[str, Sequence[Saveable]]]
    ) -> tuple[list[Edge], list[str]]:
        """Returns the file names of the shards, and the nodes that save them."""
        count = self._number(len(per_device), "num_shards")
        shards, saved = [], []
        for number, (device, saveables) in enumerate(per_device):
            device = on_cpu(device)
            scope = self._unique("ShardedFilename")
            shard = self._number(number, f"{scope}/shard", device)
            shards.append(self._add("ShardedFilename", [prefix, shard, count], scope, device))
            self._save(shards[-1], saveables, device)
            saved.append(self._last())
        return shards, saved

    # --- restoring

    def _restore(
        self, filename: Edge, saveables: Sequence[Saveable], device: str, name: str
    ) -> str:
        """Returns the name of the node that restores some variables."""
        cpu = on_cpu(device)
        scope = self._unique("RestoreV2")
        names, specs = _names_and_specs(saveables)
        named = self._strings(names, f"{scope}/tensor_names", cpu)
        cut = self._strings(specs, f"{scope}/shape_and_slices", cpu)
        kinds = [_number_of(saveable.variable) for saveable in saveables]
        restored = self._graph.add_node(
            "RestoreV2", [filename, named, cut], {"dtypes": kinds}, scope
        )
        self._graph.nodes[self._last()].device = cpu
        assigned = []
        for saveable, edge in zip(saveables, restored, strict=True):
            self._assign(saveable, edge, device)
            assigned.append((self._last(), self._device(self._last())))
        return self._group(assigned, name, device)

    def _assign(self, saveable: Saveable, edge: Edge, device: str) -> None:
        variable = saveable.variable
        if self._options.reshape:
            if variable.is_resource and saveable.slice_spec:
                self._value(saveable, device)  # TensorFlow takes the shape from a new reading
            scope = self._unique("Reshape")
            shape = np.array(variable.shape, np.int32)
            edge = self._add(
                "Reshape", [edge, self._constant(shape, f"{scope}/shape", device)], scope, device
            )
        own = merge_devices(device, device_of(variable))
        if variable.is_resource:
            value = self._add("Identity", [edge], None, own)
            handle = Edge(variable.op_name, dtypes.RESOURCE)
            self._add("AssignVariableOp", [handle, value], None, own)
            return
        reference = Edge(variable.op_name, edge.number)
        attrs: dict[str, Any] = {"_class": [f"loc:@{variable.op_name}"]}
        if self._options.reshape:
            attrs["validate_shape"] = False
        self._add("Assign", [reference, edge], None, own, **attrs)

    def _group(self, deps: Sequence[tuple[str, str]], name: str, device: str = "") -> str:
        """Returns a NoOp that runs after some nodes, with one in between for each device."""
        by_device = {
            place: [node for node, of in deps if of == place]
            for place in sorted({of for _, of in deps})
        }
        name = self._unique(name)
        if len(by_device) == 1:
            ((place, controls),) = by_device.items()
            self._add("NoOp", [], name, place, controls)
            return self._last()
        controls = []
        for place, waited in by_device.items():
            self._add("NoOp", [], f"{name}/NoOp", place, waited)
            controls.append(self._last())
        self._add("NoOp", [], name, device, controls)
        return self._last()


def _number_of(variable: Variable) -> int:
    return int(variable.graph.node(variable.op_name).attr["dtype"].type)


def _names_and_specs(saveables: Sequence[Saveable]) -> tuple[list[str], list[str]]:
    return [s.name for s in saveables], [s.slice_spec for s in saveables]


# --- devices -----------------------------------------------------------------------------------


def device_of(variable: Variable) -> str:
    """Returns the device of a variable's node, as TensorFlow spells it in full."""
    return _device_to_string(_parse_device(variable.graph.node(variable.op_name).device))


def on_cpu(device: str) -> str:
    """Returns the first CPU of the machine that a device belongs to.

    Example:
        >>> on_cpu("/job:ps/task:1/gpu:3")
        '/job:ps/task:1/device:CPU:0'
    """
    return merge_devices(device, _CPU)


def merge_devices(outer: str, inner: str) -> str:
    """Returns a device of which the parts that the inner one leaves out are the outer one's."""
    return _device_to_string({**_parse_device(outer), **_parse_device(inner)})


def _parse_device(device: str) -> dict[str, str]:
    parts: dict[str, str] = {}
    for part in filter(None, device.split("/")):
        part = _OLD_DEVICE.sub(lambda match: f"device:{match[1].upper()}:", part)
        kind, _, value = part.partition(":")
        parts[kind] = value
    return parts


def _device_to_string(parts: Mapping[str, str]) -> str:
    order = ("job", "replica", "task", "device")
    return "".join(f"/{kind}:{parts[kind]}" for kind in order if kind in parts)


# --- reading nodes -----------------------------------------------------------------------------

_GROUPS: Final = ("NoOp",)
_ASSIGNMENTS: Final = ("Assign", "AssignVariableOp")
_PASSED_THROUGH: Final = ("Identity", "Reshape")
_VARIABLES: Final = ("VarHandleOp", "VariableV2", "Variable")
_TABLE_IMPORTS: Final = ("LookupTableImport", "LookupTableImportV2")
SAVES: Final = ("SaveV2", "SaveSlices", "Save")


def read_saver_nodes(
    target: graph.GraphBuilder, saver_def: meta_graph_pb2.SaverDef
) -> list[Saveable]:
    """Returns what the nodes of a saver restore, in their order.

    Raises:
        GraphError: a node is missing.
        FormatError: the nodes are not a saver's.
    """
    found = []
    skipped = []
    for node in _assignments(target, saver_def.restore_op_name):
        if node.op in _ASSIGNMENTS:
            found.append(_read_assignment(target, node))
        elif node.op not in _TABLE_IMPORTS:
            skipped.append(f"{node.name} ({node.op})")
    if skipped:
        _logger.warning("These are saved, but are no variables: %s", ", ".join(skipped))
    return found


def imports_of_tables(target: graph.GraphBuilder, root: str) -> Iterator[graph_pb2.NodeDef]:
    """Yields the nodes that fill tables, among what a saver's last node waits for."""
    return (node for node in _assignments(target, root) if node.op in _TABLE_IMPORTS)


def _assignments(target: graph.GraphBuilder, root: str) -> Iterator[graph_pb2.NodeDef]:
    pending, seen = [root], {root}
    while pending:
        node = target.node(pending.pop())
        if node.op not in _GROUPS:
            yield node
            continue
        names = [ref[1:] for ref in node.input if ref.startswith("^")]
        pending.extend(reversed([name for name in names if name not in seen]))
        seen.update(names)


def _read_assignment(target: graph.GraphBuilder, node: graph_pb2.NodeDef) -> Saveable:
    variable = naming.parse_tensor_name(node.input[0]).node
    name, spec, is_reshaped = _restored(target, node.input[1])
    return Saveable(name, _variable(target, variable), spec, reshape=is_reshaped)


def restored_name(target: graph.GraphBuilder, ref: str) -> str:
    """Returns the name in the checkpoint of what is restored to a tensor.

    Raises:
        FormatError: nothing is restored to it.
    """
    return _restored(target, ref)[0]


def _restored(target: graph.GraphBuilder, ref: str) -> tuple[str, str, bool]:
    """Returns name and slice in the checkpoint of a tensor, and whether it is reshaped."""
    is_reshaped = False
    source = naming.parse_tensor_name(ref)
    for _ in itertools.repeat(None, len(target.nodes)):  # a cycle ends here
        origin = target.node(source.node)
        if origin.op not in _PASSED_THROUGH:
            break
        is_reshaped = is_reshaped or origin.op == "Reshape"
        source = naming.parse_tensor_name(origin.input[0])
    names, specs = _restored_names(target, origin)
    position = source.position
    if not position < min(len(names), len(specs)):
        raise errors.FormatError(
            f"{ref!r}: {origin.name!r} ({origin.op}) restores {len(names)} tensors, not "
            f"number {position}"
        )
    return names[position], specs[position], is_reshaped


def _restored_names(
    target: graph.GraphBuilder, node: graph_pb2.NodeDef
) -> tuple[list[str], list[str]]:
    if node.op == "RestoreV2":
        return read_strings(target, node.input[1]), read_strings(target, node.input[2])
    if node.op == "RestoreSlice":
        return read_strings(target, node.input[1]), read_strings(target, node.input[2])
    if node.op == "Restore":
        return read_strings(target, node.input[1]), [""]
    raise errors.FormatError(f"{node.name!r} ({node.op}) restores nothing: expected RestoreV2")


def read_strings(target: graph.GraphBuilder, ref: str) -> list[str]:
    """Returns the strings of a constant.

    Raises:
        FormatError: it is none.
    """
    node = target.node(naming.parse_tensor_name(ref).node)
    if node.op != "Const":
        raise errors.FormatError(f"{node.name!r} is a {node.op}: expected a Const of names")
    array = values.tensor_from_proto(node.attr["value"].tensor)
    try:
        return [item.decode() for item in array.ravel().tolist()]
    except (AttributeError, UnicodeDecodeError):
        raise errors.FormatError(f"{node.name!r} holds no names") from None


def _variable(target: graph.GraphBuilder, name: str) -> Variable:
    """Returns a variable; one that no collection names is made known by its node."""
    if name in target.variable_names:
        return target.variable(name)
    node = target.node(name)
    if node.op not in _VARIABLES:
        raise errors.FormatError(f"{name!r} ({node.op}) is restored, but is no variable")
    shape = values.shape_from_proto(node.attr["shape"].shape)
    if shape is None or None in shape:
        raise errors.FormatError(f"the variable {name!r} has no static shape")
    attr = node.attr
    variable = Variable.handle(
        target,
        name,
        tuple(size or 0 for size in shape),
        dtypes.dtype_from_number(attr["dtype"].type),
        attr[nodes.KEY_IMPL_ATTR].s.decode() if nodes.KEY_IMPL_ATTR in attr else "",
        trainable=False,
        initializer_name="",
        snapshot_name=f"{name}:0",
        is_resource=node.op == "VarHandleOp",
    )
    target.register_variable(variable)
    return variable
