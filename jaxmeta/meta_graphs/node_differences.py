"""What differs between the nodes and functions of two graphs.

They are compared by what they compute before they are compared by name.
"""

from __future__ import annotations

import collections
import difflib
import itertools
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from jaxmeta import dtypes
from jaxmeta._proto import graph_pb2
from jaxmeta.graphs import printing

_ALIGNED_NODES: Final = 4000  # aligning takes time that grows with the square
_NUMBERED: Final = re.compile(r"_\d+$")
_HIDDEN_ATTRS: Final = frozenset({"_output_shapes"})


class _Body:
    """The nodes of a graph or of one function, and what its inputs refer to."""

    def __init__(
        self, nodes: Iterable[graph_pb2.NodeDef], function: graph_pb2.FunctionDef | None = None
    ) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.function = function
        self.printed: printing.Body | None = None
        arguments = function.signature.input_arg if function is not None else ()
        self.arguments = {argument.name: index for index, argument in enumerate(arguments)}

    def source(self, ref: str) -> tuple[str, str]:
        """Returns the node, or argument, that an input comes from, and which output it is."""
        node, _, output = ref.partition(":")
        return node, output if output not in ("", "0") else ""


class _Side:
    """One of the two graphs, with what its functions and nodes compute as small numbers."""

    def __init__(self, graph_def: graph_pb2.GraphDef, numbers: dict[Hashable, int]) -> None:
        self._numbers = numbers
        self.top = _Body(graph_def.node)
        self.functions = {
            f.signature.name: _Body(f.node_def, f) for f in graph_def.library.function
        }
        self._printer = printing.Printer({f.signature.name: f for f in graph_def.library.function})
        self._meanings: dict[str, int] = {}

    def lines(self, body: _Body, names: Sequence[str]) -> Iterator[str]:
        """Yields nodes of a body as assignments, but for constants, which stand in them."""
        printed = self._printed(body)
        shown = (name for name in names if name not in printed.literals)
        return (self._printer.node_line(body.nodes[name], printed) for name in shown)

    def input(self, body: _Body, ref: str) -> str:
        """Returns how an input of a node is shown."""
        return self._printed(body).input(ref) if ref else "none"

    def output_type_attrs(self, node: graph_pb2.NodeDef) -> set[str]:
        """Returns the attrs that only say what types the outputs have."""
        op_def = self._printer.op_def(node)
        outputs = op_def.output_arg if op_def is not None else ()
        return {name for a in outputs for name in (a.type_attr, a.type_list_attr)}

    def _printed(self, body: _Body) -> printing.Body:
        if body.printed is None:
            body.printed = printing.Body(self._printer, body.nodes.values())
        return body.printed

    def _number(self, key: Hashable) -> int:
        """Returns a number that only equal keys have, on both sides."""
        return self._numbers.setdefault(key, len(self._numbers))

    def function_meaning(self, name: str) -> int:
        """Returns a number that functions share which compute the same."""
        if name not in self._meanings:
            self._meanings[name] = self._number(("recursion",))  # while it is looked into
            body = self.functions.get(name)
            if body is None or body.function is None:
                self._meanings[name] = self._number(("unknown function", name))
            else:
                meanings = self.node_meanings(body)
                returned = tuple(
                    self._input(body, body.function.ret[argument.name], meanings)
                    for argument in body.function.signature.output_arg
                )
                self._meanings[name] = self._number(("function", returned, len(body.nodes)))
        return self._meanings[name]

    def node_meanings(self, body: _Body) -> dict[str, int]:
        """Returns a number for each node that only nodes share which compute the same."""
        meanings: dict[str, int] = {}
        stack = [(name, False) for name in reversed(body.nodes)]
        opened: set[str] = set()
        while stack:
            name, is_ready = stack.pop()
            node = body.nodes[name]
            if is_ready:
                inputs = tuple(self._input(body, ref, meanings) for ref in node.input)
                meanings[name] = self._number((self.content(node), inputs))
            elif name not in opened:
                opened.add(name)
                stack.append((name, True))
                sources = (body.source(ref.lstrip("^"))[0] for ref in node.input)
                stack += [(s, False) for s in sources if s in body.nodes and s not in opened]
        return meanings

    def _input(self, body: _Body, ref: str, meanings: Mapping[str, int]) -> Hashable:
        node, output = body.source(ref.lstrip("^"))
        if node in body.arguments:
            return ("argument", body.arguments[node])
        # A node of a cycle has no number yet; its name stands for it.
        return (ref[:1] == "^", meanings.get(node, node), output)

    def content(self, node: graph_pb2.NodeDef) -> Hashable:
        """Returns what a node is but for its inputs: op, attrs, device."""
        op = self.function_meaning(node.op) if node.op in self.functions else node.op
        attrs = tuple(
            (name, self.attr_content(node.attr[name]))
            for name in sorted(node.attr)
            if name not in _HIDDEN_ATTRS
        )
        return (op, attrs, node.device)

    def outline(self, body: _Body, name: str, uses_constants: bool) -> Hashable:
        """Returns what two nodes have in common that stand in each other's place.

        That is their scope and op, and at first the constants among their inputs.
        """
        node = body.nodes[name]
        constants = (
            tuple(self._printed(body).literals.get(body.source(ref)[0]) for ref in node.input)
            if uses_constants
            else ()
        )
        return (_NUMBERED.sub("", name), node.op in self.functions or node.op, constants)

    def attr_content(self, proto: graph_pb2.AttrValue) -> Hashable:
        """Returns an attr's value, in which functions count as what they compute."""
        kind = proto.WhichOneof("value")
        if kind == "func":
            return self.function_meaning(proto.func.name)
        if kind == "list" and proto.list.func:
            return tuple(self.function_meaning(func.name) for func in proto.list.func)
        if kind == "s" and proto.s.decode(errors="replace") in self.functions:
            return "a function"  # the backward link of a derivative rule
        return proto.SerializeToString(deterministic=True)


class Comparison:
    """Two graphs, node by node."""

    def __init__(self, first: graph_pb2.GraphDef, second: graph_pb2.GraphDef) -> None:
        numbers: dict[Hashable, int] = {}
        self._sides = (_Side(first, numbers), _Side(second, numbers))
        self._functions, self._removed, self._added = self._pair_functions()

    def sections(self) -> Iterator[tuple[str, list[str]]]:
        """Yields a title and lines for the nodes, for each function, and for functions as such."""
        first, second = self._sides
        yield "nodes", list(self._compare_bodies(first.top, second.top, by_name=True))
        changed = []
        for one, other in self._functions.items():
            title = f"function {one}" if one == other else f"function {one}, now {other}"
            bodies = first.functions[one], second.functions[other]
            changed.append((title, list(self._compare_bodies(*bodies, by_name=False))))
        yield from (section for section in changed if section[1])
        lines = [f"- {_function_line(first.functions[name])}" for name in self._removed]
        yield "functions", lines + [f"+ {_function_line(second.functions[n])}" for n in self._added]

    def _pair_functions(self) -> tuple[dict[str, str], list[str], list[str]]:
        """Returns pairs of functions to compare, and the names that have no partner.

        Functions that compute the same are no difference, whatever their names.
        """
        counts = [
            collections.Counter(side.function_meaning(name) for name in side.functions)
            for side in self._sides
        ]
        common = counts[0] & counts[1]
        left = []
        for side in self._sides:
            remaining = collections.Counter(common)
            names = []
            for name in side.functions:
                meaning = side.function_meaning(name)
                if remaining[meaning]:
                    remaining[meaning] -= 1
                else:
                    names.append(name)
            left.append(names)
        pairs = {name: name for name in left[0] if name in left[1]}
        for name in left[0]:
            stem = _NUMBERED.sub("", name)
            taken = set(pairs.values())
            rest = (n for n in left[1] if n not in taken and _NUMBERED.sub("", n) == stem)
            if name not in pairs and (other := next(rest, None)) is not None:
                pairs[name] = other
        taken = set(pairs.values())
        return pairs, [n for n in left[0] if n not in pairs], [n for n in left[1] if n not in taken]

    def _compare_bodies(self, one: _Body, other: _Body, *, by_name: bool) -> Iterator[str]:
        pairs = _by_name(one, other) if by_name else self._pair_nodes(one, other)
        partners = set(pairs.values())
        first, second = self._sides
        removed = [name for name in one.nodes if name not in pairs]
        added = [name for name in other.nodes if name not in partners]
        yield from (f"- {line}" for line in first.lines(one, removed))
        yield from (f"+ {line}" for line in second.lines(other, added))
        for name, partner in pairs.items():
            yield from self._compare_nodes(one, other, name, partner, pairs)
        if one.function is not None and other.function is not None:
            yield from self._compare_results(one, other, pairs)

    def _pair_nodes(self, one: _Body, other: _Body) -> dict[str, str]:
        """Returns which nodes of two functions correspond."""
        first, second = self._sides
        places: dict[int, list[str]] = {}
        for name, meaning in second.node_meanings(other).items():
            places.setdefault(meaning, []).append(name)
        pairs = {}
        for name, meaning in first.node_meanings(one).items():
            if places.get(meaning):
                pairs[name] = places[meaning].pop(0)
        taken = set(pairs.values())
        left = [name for name in one.nodes if name not in pairs]
        right = [name for name in other.nodes if name not in taken]
        for uses_constants in (True, False):
            pairs.update(
                _align(
                    [first.outline(one, name, uses_constants) for name in left],
                    [second.outline(other, name, uses_constants) for name in right],
                    (left, right),
                )
            )
            taken = set(pairs.values())
            left = [name for name in left if name not in pairs]
            right = [name for name in right if name not in taken]
        return pairs

    def _compare_nodes(
        self, one: _Body, other: _Body, name: str, partner: str, pairs: Mapping[str, str]
    ) -> Iterator[str]:
        first, second = self._sides
        node, new = one.nodes[name], other.nodes[partner]
        label = name if name == partner else f"{name}, now {partner}"
        if first.content(node) != second.content(new):
            if node.op != new.op and node.op not in first.functions:
                yield f"~ {label}: op was {node.op}, is {new.op}"
            if node.device != new.device:
                yield f"~ {label}: device was {node.device or 'none'}, is {new.device or 'none'}"
            yield from (f"~ {label}: {line}" for line in self._compare_attrs(node, new))
        inputs = itertools.zip_longest(node.input, new.input, fillvalue="")
        for index, (was, now) in enumerate(inputs):
            if not self._same_source(one, other, was, now, pairs):
                was, now = first.input(one, was), second.input(other, now)
                yield f"~ {label}: input {index} was {was}, is {now}"

    def _same_source(
        self, one: _Body, other: _Body, was: str, now: str, pairs: Mapping[str, str]
    ) -> bool:
        if not was or not now or was.startswith("^") != now.startswith("^"):
            return False
        (old, output), (new, new_output) = (
            one.source(was.lstrip("^")),
            other.source(now.lstrip("^")),
        )
        if old in one.arguments or new in other.arguments:
            return one.arguments.get(old) == other.arguments.get(new)
        return output == new_output and pairs.get(old) == new

    def _compare_attrs(self, node: graph_pb2.NodeDef, new: graph_pb2.NodeDef) -> Iterator[str]:
        first, second = self._sides
        hidden = {*_HIDDEN_ATTRS, *first.output_type_attrs(node), *second.output_type_attrs(new)}
        for name in sorted({*node.attr, *new.attr} - hidden):
            if name not in new.attr:
                yield f"{name} was {printing.format_attr(node.attr[name])}, is gone"
            elif name not in node.attr:
                yield f"{name} is new: {printing.format_attr(new.attr[name])}"
            elif first.attr_content(node.attr[name]) != second.attr_content(new.attr[name]):
                was, now = node.attr[name], new.attr[name]
                if was.HasField("func") and self._functions.get(was.func.name) == now.func.name:
                    continue  # what differs in a function is said where it stands
                old, other = printing.format_attr(was), printing.format_attr(now)
                yield f"{name} was {old}, is {other if old != other else 'another of that name'}"

    def _compare_results(self, one: _Body, other: _Body, pairs: Mapping[str, str]) -> Iterator[str]:
        assert one.function is not None
        assert other.function is not None
        was = [one.function.ret[a.name] for a in one.function.signature.output_arg]
        now = [other.function.ret[a.name] for a in other.function.signature.output_arg]
        for side, count, new in (
            ("arguments", len(one.arguments), len(other.arguments)),
            ("results", len(was), len(now)),
        ):
            if count != new:
                yield f"~ it had {count} {side}, has {new}"
        for index, (old, new_ref) in enumerate(zip(was, now, strict=False)):
            if not self._same_source(one, other, old, new_ref, pairs):
                shown = self._sides[0].input(one, old), self._sides[1].input(other, new_ref)
                yield f"~ result {index} was {shown[0]}, is {shown[1]}"


def _by_name(one: _Body, other: _Body) -> dict[str, str]:
    """Returns the pairs of a graph's nodes, which people feed and fetch by name."""
    return {name: name for name in one.nodes if name in other.nodes}


def _align(
    first: Sequence[Hashable], second: Sequence[Hashable], names: tuple[list[str], list[str]]
) -> dict[str, str]:
    """Returns pairs of nodes with equal outlines, in the order in which both sides have them."""
    left, right = names
    if len(left) > _ALIGNED_NODES or len(right) > _ALIGNED_NODES:
        known = set(right)
        return {name: name for name in left if name in known}
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    return {
        left[block.a + offset]: right[block.b + offset]
        for block in matcher.get_matching_blocks()
        for offset in range(block.size)
    }


def _function_line(body: _Body) -> str:
    assert body.function is not None
    signature = body.function.signature
    types = ", ".join(dtypes.dtype_name(argument.type) for argument in signature.input_arg)
    return f"{signature.name}({types}), {len(body.nodes)} nodes"
