"""What TensorFlow checks of a GraphDef before it adds a node of it to a graph.

`check_and_index` runs for every node of graphs that may have a million; `check_nodes`, which reads
each node's attrs, is for graphs of other writers.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Container, Mapping, Sequence
from typing import Final

from jaxmeta import dtypes, errors, op_defs
from jaxmeta._proto import graph_pb2
from jaxmeta.graphs import graph

_MAX_CONSUMER: Final = graph.PRODUCER_VERSION
_VALID_CHARACTERS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.\\/>-"
_NOT_FIRST: Final = ("_", "\\", "/", ">", "-")
_MAX_DIGITS: Final = 9
_BACK_EDGES: Final = frozenset({"NextIteration", "RefNextIteration"})


def check_versions(source: str, versions: graph_pb2.VersionDef) -> None:
    """Raises FormatError where the graph is not for a reader of this version."""
    if versions.min_consumer > _MAX_CONSUMER:
        raise errors.FormatError(
            f"{source}: needs a reader of GraphDef version {versions.min_consumer}; this one is "
            f"{_MAX_CONSUMER}. Upgrade jaxmeta."
        )
    if versions.producer < 0:
        raise errors.FormatError(
            f"{source}: its GraphDef producer version is {versions.producer}; these begin at 0"
        )
    if _MAX_CONSUMER in versions.bad_consumers:
        raise errors.FormatError(
            f"{source}: the graph is not for readers of GraphDef version {_MAX_CONSUMER}, which "
            "this one is. Upgrade jaxmeta."
        )


def check_function_names(source: str, library: graph_pb2.FunctionDefLibrary) -> None:
    """Raises GraphError where functions of a library share a name, or have that of an op."""
    count = collections.Counter(function.signature.name for function in library.function)
    taken = sorted(name for name in count if count[name] > 1)
    if taken:
        headline = f"{source}: these functions are not unique:"
        raise errors.GraphError(errors.list_offenders(headline, taken))
    shadowing = sorted(name for name in count if op_defs.is_registered(name))
    if shadowing:
        headline = f"{source}: these functions have the names of ops:"
        raise errors.GraphError(errors.list_offenders(headline, shadowing))


def add_described_ops(graph_def: graph_pb2.GraphDef, described: graph_pb2.OpList) -> None:
    """Makes those ops known that nodes use, that are unknown, and that their file describes.

    Such are the ops of ``tf.contrib``. A graph that holds one can be imported, and what does not
    depend on it runs.

    Raises:
        UnsupportedOpError: another file described an op of that name in another way.
    """
    by_name = {op.name: op for op in described.op if not op_defs.is_registered(op.name)}
    if not by_name:
        return
    used = {node.op for node in graph_def.node}
    for function in graph_def.library.function:
        used.update(node.op for node in function.node_def)
        by_name.pop(function.signature.name, None)
    for name in sorted(used & by_name.keys()):
        op_defs.add_described(by_name[name])


def check_and_index(
    source: str,
    graph_def: graph_pb2.GraphDef,
    functions: Container[str],
    mapped: Container[str] = (),
) -> dict[str, graph_pb2.NodeDef]:
    """Returns the nodes by name, having checked them in one pass: there may be a million.

    Args:
        source: what to call the graph in messages.
        graph_def: the graph.
        functions: names of functions that the nodes may call besides those of the graph.
        mapped: inputs that need no node, for they will be others.

    Raises:
        UnsupportedOpError: ops are unknown, here or in the library; all are listed.
        GraphError: names are invalid or not unique, inputs name no node (all are listed), or nodes
            are in a cycle.
    """
    own = {function.signature.name for function in graph_def.library.function}
    known: set[str] = set()
    unknown: dict[str, None] = {}
    unresolved: list[tuple[graph_pb2.NodeDef, str]] = []
    by_name: dict[str, graph_pb2.NodeDef] = {}
    for node in graph_def.node:
        op = node.op
        if op not in known:
            if op in own or op in functions or op_defs.has_op(op):
                known.add(op)
            else:
                unknown[f"{op}  (node {node.name!r})"] = None
        for ref in node.input:
            if ref not in by_name:
                unresolved.append((node, ref))  # noqa: PERF401 - a generator a node costs more
        by_name[node.name] = node
    _list_unknown_in_library(graph_def, known, own, functions, unknown)
    if unknown:
        headline = f"{source}: these ops are unknown, and the file does not describe them:"
        raise errors.UnsupportedOpError(errors.list_offenders(headline, unknown))
    if len(by_name) != len(graph_def.node):
        graph.refuse_repeated_names(graph_def.node)
    _check_names(source, by_name)
    _check_inputs(source, by_name, unresolved, mapped)
    return by_name


def _list_unknown_in_library(
    graph_def: graph_pb2.GraphDef,
    known: set[str],
    own: set[str],
    functions: Container[str],
    unknown: dict[str, None],
) -> None:
    for function in graph_def.library.function:
        for node in function.node_def:
            op = node.op
            if op not in known and op not in own and op not in functions and not op_defs.has_op(op):
                where = f"{node.name!r} of function {function.signature.name!r}"
                unknown[f"{op}  (node {where})"] = None


def _check_names(source: str, by_name: Mapping[str, graph_pb2.NodeDef]) -> None:
    """Raises GraphError where names are invalid, having looked at all of them as one string."""
    joined = "\n" + "\n".join(by_name)
    rest = joined.encode(errors="surrogatepass").translate(None, _VALID_CHARACTERS)
    is_valid = rest == b"\n" * max(len(by_name), 1) and "" not in by_name
    if is_valid and not any(f"\n{first}" in joined for first in _NOT_FIRST):
        return
    bad = [repr(name) for name in by_name if not _is_valid_name(name)]
    headline = f"{source}: these node names hold characters that none may:"
    raise errors.GraphError(errors.list_offenders(headline, bad))


def _is_valid_name(name: str) -> bool:
    encoded = name.encode(errors="surrogatepass")
    return bool(
        name and name[0] not in _NOT_FIRST and not encoded.translate(None, _VALID_CHARACTERS)
    )


def _check_inputs(
    source: str,
    by_name: Mapping[str, graph_pb2.NodeDef],
    unresolved: Sequence[tuple[graph_pb2.NodeDef, str]],
    mapped: Container[str],
) -> None:
    missing = []
    has_forward_edges = False
    position: dict[str, int] = {}
    for node, ref in unresolved:
        name = _node_of(ref)
        if name in by_name:
            if not position:
                position = {key: index for index, key in enumerate(by_name)}
            is_forward = position[name] >= position[node.name]
            if is_forward and by_name[name].op not in _BACK_EDGES:
                has_forward_edges = True
        elif canonical_input(ref) not in mapped:
            missing.append(f"{node.name!r} ({node.op}): {ref!r}")
    if missing:
        headline = f"{source}: these inputs name no node of the graph:"
        raise errors.GraphError(errors.list_offenders(headline, missing))
    if has_forward_edges:
        _refuse_cycles(source, by_name)


def _node_of(ref: str) -> str:
    return ref[1:] if ref[:1] == "^" else ref.split(":", 1)[0]


def canonical_input(ref: str) -> str:
    """Returns the one form of an input's name: ``node:0`` for ``node``."""
    return ref if ref[:1] == "^" or ":" in ref else f"{ref}:0"


def has_output(
    key: str,
    by_name: Mapping[str, graph_pb2.NodeDef],
    functions: Mapping[str, graph_pb2.FunctionDef],
) -> bool:
    """Returns whether ``node:1`` is an output of a node, or ``^node`` a node."""
    node = by_name.get(_node_of(key))
    if node is None or key[:1] == "^":
        return node is not None
    function = functions.get(node.op)
    op_def = function.signature if function is not None else op_defs.get_op_def(node.op)
    return int(key.partition(":")[2]) < len(op_defs.output_dtypes(op_def, node))


def _refuse_cycles(source: str, by_name: Mapping[str, graph_pb2.NodeDef]) -> None:
    """Raises GraphError where nodes wait for each other, other than in a while loop."""
    waiting: dict[str, int] = {}
    consumers: dict[str, list[str]] = collections.defaultdict(list)
    for name, node in by_name.items():
        sources = [source for source in map(_node_of, node.input) if source in by_name]
        sources = [source for source in sources if by_name[source].op not in _BACK_EDGES]
        waiting[name] = len(sources)
        for producer in sources:
            consumers[producer].append(name)
    ready = [name for name, count in waiting.items() if not count]
    while ready:
        name = ready.pop()
        del waiting[name]
        for consumer in consumers[name]:
            waiting[consumer] -= 1
            if not waiting[consumer]:
                ready.append(consumer)
    if waiting:
        headline = f"{source}: {len(waiting)} nodes are in a cycle, or wait for one:"
        raise errors.GraphError(errors.list_offenders(headline, sorted(waiting)))


# --- one node after the other ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _QuickSpec:
    """What an op asks of its nodes, where each input and output is one tensor.

    Attributes:
        type_attrs: the attrs that are types.
        required: the other attrs that have no default.
        inputs, outputs: for each the data type, or the attr that is it.
    """

    type_attrs: tuple[str, ...]
    required: tuple[str, ...]
    inputs: tuple[int | str, ...]
    outputs: tuple[int | str, ...]

    @classmethod
    def of(cls, op_def: graph_pb2.OpDef) -> _QuickSpec | None:
        args = [*op_def.input_arg, *op_def.output_arg]
        if any(arg.number_attr or arg.type_list_attr for arg in args):
            return None
        type_attrs = tuple(dict.fromkeys(arg.type_attr for arg in args if arg.type_attr))
        return cls(
            type_attrs,
            tuple(
                attr.name
                for attr in op_def.attr
                if attr.name not in type_attrs and not attr.HasField("default_value")
            ),
            tuple(arg.type_attr or arg.type for arg in op_def.input_arg),
            tuple(arg.type_attr or arg.type for arg in op_def.output_arg),
        )

    def fits(self, name: str, node: graph_pb2.NodeDef, numbers: dict[str, int]) -> bool:
        """Returns whether a node fits for certain; adds its outputs to the data types."""
        attrs = node.attr
        types: dict[int | str, int] = {}
        for attr in self.type_attrs:
            value = attrs.get(attr)
            if value is None or not value.type:
                return False
            types[attr] = value.type
        for index, output in enumerate(self.outputs):
            number = types[output] if isinstance(output, str) else output
            numbers[f"{name}:{index}" if index else name] = number
        for attr in self.required:
            if attr not in attrs:
                return False
        refs = node.input
        if len(refs) != len(self.inputs) or "_class" in attrs:
            return False
        for ref, wanted in zip(refs, self.inputs, strict=True):
            if numbers.get(ref) != (types[wanted] if isinstance(wanted, str) else wanted):
                return False
        return True


class NodeChecks:
    """Checks of single nodes against their OpDefs.

    Args:
        source: what to call the graph in messages.
        by_name: the nodes.
        functions: the functions that they may call, by name.
        mapped: the data type of each input that will be another one.
    """

    def __init__(
        self,
        source: str,
        by_name: Mapping[str, graph_pb2.NodeDef],
        functions: Mapping[str, graph_pb2.FunctionDef],
        mapped: Mapping[str, int],
    ) -> None:
        self._source = source
        self._by_name = by_name
        self._functions = functions
        self._mapped = mapped
        self._outputs: dict[str, list[int]] = {}

    def run(self) -> None:
        """Raises AttrError or GraphError where nodes do not fit their ops; all are listed."""
        unsure = self._find_unsure() if not self._mapped else list(self._by_name.values())
        if not unsure:
            return
        attr_faults: list[str] = []
        for node in self._by_name.values():
            try:
                self._outputs[node.name] = op_defs.output_dtypes(self._op_def(node), node)
                attr_faults += self._attr_faults(node)
            except errors.AttrError as error:
                attr_faults.append(str(error))
        if attr_faults:
            headline = f"{self._source}: these attrs do not fit:"
            raise errors.AttrError(errors.list_offenders(headline, attr_faults))
        input_faults: list[str] = []
        for node in unsure:
            try:
                input_faults += self._input_faults(node)
            except errors.AttrError as error:
                input_faults.append(str(error))
            input_faults += self._colocation_faults(node)
        if input_faults:
            headline = f"{self._source}: these inputs do not fit:"
            raise errors.GraphError(errors.list_offenders(headline, input_faults))

    def _find_unsure(self) -> list[graph_pb2.NodeDef]:
        """Returns the nodes of which a quick look does not tell that they fit.

        It tells so of most: those after their inputs, of ops whose every input is one tensor.
        """
        unsure: list[graph_pb2.NodeDef] = []
        numbers: dict[str, int] = {}
        specs: dict[str, _QuickSpec | None] = {}
        for name, node in self._by_name.items():
            op = node.op
            if op not in specs:
                specs[op] = None if op in self._functions else _QuickSpec.of(self._op_def(node))
            spec = specs[op]
            if spec is None or not spec.fits(name, node, numbers):
                unsure.append(node)
        return unsure

    def _op_def(self, node: graph_pb2.NodeDef) -> graph_pb2.OpDef:
        function = self._functions.get(node.op)
        return function.signature if function is not None else op_defs.get_op_def(node.op)

    def _attr_faults(self, node: graph_pb2.NodeDef) -> list[str]:
        return [
            f"node {node.name!r} ({node.op}): the attr {attr.name!r} is missing"
            for attr in self._op_def(node).attr
            if attr.name not in node.attr and not attr.HasField("default_value")
        ]

    def _input_faults(self, node: graph_pb2.NodeDef) -> list[str]:
        where = f"node {node.name!r} ({node.op})"
        refs = [ref for ref in node.input if ref[:1] != "^"]
        if any(ref[:1] == "^" for ref in node.input[: len(refs)]):
            return [f"{where}: control inputs must come after the others"]
        expected = op_defs.input_dtypes(self._op_def(node), node)
        if len(refs) != len(expected):
            return [f"{where} takes {len(expected)} inputs, it has {len(refs)}"]
        faults = []
        for ref, wanted in zip(refs, expected, strict=True):
            found = self._input_number(ref)
            if isinstance(found, str):
                faults.append(f"{where}: {found}")
            elif dtypes.base_number(wanted) != dtypes.base_number(found):
                names = dtypes.dtype_name(found), dtypes.dtype_name(wanted)
                faults.append(f"{where}: input {ref!r} is {names[0]}, expected {names[1]}")
        return faults

    def _input_number(self, ref: str) -> int | str:
        """Returns the data type of an input, or what is wrong with its name."""
        key = canonical_input(ref)
        if key in self._mapped:
            return self._mapped[key]
        name, _, index = key.partition(":")
        numbers = self._outputs[name]
        if not (index.isascii() and index.isdigit()):
            return f"{ref!r} is no tensor's name"
        if len(index) > _MAX_DIGITS or int(index) >= len(numbers):
            return f"there is no output {index} of {name!r}, which has {len(numbers)}"
        return numbers[int(index)]

    def _colocation_faults(self, node: graph_pb2.NodeDef) -> list[str]:
        if "_class" not in node.attr:
            return []
        names = [item.decode(errors="replace") for item in node.attr["_class"].list.s]
        return [
            f"node {node.name!r} is to be placed with {name!r}, which is no node of the graph"
            for name in (text.removeprefix("loc:@") for text in names if text.startswith("loc:@"))
            if name not in self._by_name
        ]
