"""``jaxmeta show``: what is in a MetaGraph file, read without running or compiling any of it.

`summarize` says it as plain data, which is what ``--json`` prints; `render` lays that out as text.
Files that TensorFlow wrote have no signatures of ours; the rest of them is shown all the same.
"""

from __future__ import annotations

import collections
import math
import os
import textwrap
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, Final

from jaxmeta import dtypes, errors, trees, values
from jaxmeta._proto import graph_pb2, meta_graph_pb2
from jaxmeta.checkpoint import state
from jaxmeta.graphs import building, graph, nodes, printing
from jaxmeta.meta_graphs import meta_graph

SECTIONS: Final = ("versions", "signatures", "variables", "collections", "ops")

_VARIABLE_OPS: Final = ("VarHandleOp", "VariableV2", "Variable")
_TRAINABLE: Final = "trainable_variables"
_SHOWN_ROWS: Final = 60
_SHOWN_ITEMS: Final = 3
_SHOWN_OPS: Final = 32
_OP_COLUMNS: Final = 4
_WIDTH: Final = 100

# --- finding the file --------------------------------------------------------------------------


def find_meta_graph(path: str | os.PathLike[str]) -> str:
    """Returns the path of a meta graph, for a file, a checkpoint's prefix or a directory of these.

    Raises:
        FormatError: nothing of the kind is there.
        CheckpointError: the directory's state file names no checkpoint.
    """
    name = os.fspath(path)
    if os.path.isfile(name):
        return name
    beside = state.meta_graph_filename(name.rstrip(os.sep))
    if os.path.isfile(beside):
        return beside
    found = state.get_checkpoint_state(name) if os.path.isdir(name) else None
    if found is None:
        raise errors.FormatError(
            f"{name}: there is no such file, no {beside}, and no directory with a 'checkpoint' file"
        )
    return state.meta_graph_filename(found.model_checkpoint_path)


def list_nodes(path: str | os.PathLike[str]) -> str:
    """Returns the nodes and functions of a file, as assignments.

    Raises:
        FormatError: the file is missing, damaged, or no MetaGraphDef.
    """
    graph_def = meta_graph.read_meta_graph_file(find_meta_graph(path)).graph_def
    return printing.graph_def_to_text(graph_def)


# --- the summary -------------------------------------------------------------------------------


def summarize(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns what a file holds, in dicts, lists, numbers and strings.

    Raises:
        FormatError: the file is missing, damaged, or no MetaGraphDef.
    """
    filename = find_meta_graph(path)
    proto = meta_graph.read_meta_graph_file(filename)
    graph_def = proto.graph_def
    signatures, unreadable = _signatures(proto)
    prefix = filename.removesuffix(".meta")
    names = {node.name for node in graph_def.node}
    found = {n: _collection(c, names) for n, c in sorted(proto.collection_def.items())}
    return {
        "file": filename,
        "bytes": os.path.getsize(filename),
        "checkpoint": prefix if state.checkpoint_exists(prefix) else None,
        "nodes": len(graph_def.node),
        "functions": len(graph_def.library.function),
        "function_nodes": sum(len(f.node_def) for f in graph_def.library.function),
        "versions": {
            "format": proto.meta_info_def.meta_graph_version,
            "tensorflow": proto.meta_info_def.tensorflow_version,
            "producer": graph_def.versions.producer,
            "min_consumer": graph_def.versions.min_consumer,
        },
        "signatures": signatures,
        "signatures_unreadable": unreadable,
        "signature_defs": {
            name: _signature_def(signature)
            for name, signature in sorted(proto.signature_def.items())
            if name not in signatures
        },
        "variables": _variables(graph_def, found),
        "collections": found,
        **_op_histogram(graph_def),
    }


def _signatures(proto: meta_graph_pb2.MetaGraphDef) -> tuple[dict[str, Any], str]:
    """Returns the signatures by name, and why they cannot be read where that is so."""
    if not proto.object_graph_def.concrete_functions:
        return {}, ""
    try:
        target = meta_graph.import_graph(proto)
    except errors.JaxmetaError as error:
        return {}, str(error)
    return {name: _signature(target, entry) for name, entry in target.signatures.items()}, ""


def _signature(target: building.Graph, signature: graph.Signature) -> dict[str, Any]:
    donated = iter(signature.donated)
    arguments = _top_level(signature.arguments)
    return {
        "function": signature.function_name,
        "train_op": signature.train_op,
        "updates": {str(result): argument for result, argument in signature.updates},
        "arguments": {
            key: [
                {**_leaf(target, leaf, path), "donated": next(donated)}
                for path, leaf in _paths(tree)
            ]
            for key, tree in arguments.items()
        },
        "results": {
            key: [_leaf(target, leaf, path) for path, leaf in _paths(tree)]
            for key, tree in _results(signature.results).items()
        },
    }


def _top_level(arguments: trees.Tree) -> dict[str, trees.Tree]:
    """Returns the records of a call's arguments, by position or name."""
    assert isinstance(arguments, trees.Branch)
    return {
        str(key): child
        for group in arguments.children
        if isinstance(group, trees.Branch)
        for key, child in zip(group.keys, group.children, strict=True)
    }


def _results(results: trees.Tree) -> dict[str, trees.Tree]:
    """Returns the records of the results by position; one that is no tuple is result 0."""
    if isinstance(results, trees.Branch) and results.class_name == "builtins.tuple":
        return {str(index): child for index, child in enumerate(results.children)}
    return {"0": results}


def _paths(tree: trees.Tree, path: str = "") -> Iterable[tuple[str, trees.Leaf]]:
    if isinstance(tree, trees.Leaf):
        yield path, tree
        return
    for key, child in zip(tree.keys, tree.children, strict=True):
        yield from _paths(child, f"{path}/{key}" if path else str(key))


def _leaf(target: building.Graph, leaf: trees.Leaf, path: str) -> dict[str, Any]:
    is_variable = leaf.name in target.variable_names
    return {
        "path": path,
        "variable" if is_variable else "tensor": leaf.name,
        "dtype": dtypes.dtype_name(leaf.number),
        "shape": list(leaf.shape),
    }


def _signature_def(proto: meta_graph_pb2.SignatureDef) -> dict[str, Any]:
    def describe(info: meta_graph_pb2.TensorInfo) -> dict[str, Any]:
        return {
            "tensor": info.name,
            "dtype": dtypes.dtype_name(info.dtype),
            "shape": _shape(info.tensor_shape),
        }

    return {
        "method": proto.method_name,
        "inputs": {name: describe(info) for name, info in sorted(proto.inputs.items())},
        "outputs": {name: describe(info) for name, info in sorted(proto.outputs.items())},
    }


def _shape(proto: graph_pb2.TensorShapeProto) -> list[int | None] | None:
    shape = values.shape_from_proto(proto)
    return None if shape is None else list(shape)


def _variables(
    graph_def: graph_pb2.GraphDef, collections_found: dict[str, Any]
) -> list[dict[str, Any]]:
    """Returns the variables in the order of the nodes."""
    trainable = set(collections_found.get(_TRAINABLE, {"items": ()})["items"])
    return [
        _variable(node, node.name in trainable)
        for node in graph_def.node
        if node.op in _VARIABLE_OPS
    ]


def _variable(node: graph_pb2.NodeDef, is_trainable: bool) -> dict[str, Any]:
    number = node.attr["dtype"].type
    shape = _shape(node.attr["shape"].shape)
    is_static = shape is not None and None not in shape
    elements = math.prod(size or 0 for size in shape or ()) if is_static else None
    return {
        "name": node.name,
        "dtype": dtypes.dtype_name(number),
        "shape": shape,
        "elements": elements,
        "bytes": None if elements is None else elements * _item_bytes(number),
        "trainable": is_trainable,
        "key_impl": node.attr[nodes.KEY_IMPL_ATTR].s.decode(errors="replace"),
    }


def _item_bytes(number: int) -> int:
    """Returns the size of an element; 0 where that is not fixed."""
    try:
        dtype = dtypes.dtype_from_number(number)
    except errors.AttrError:
        return 0
    return 0 if dtype == object else dtype.itemsize


def _collection(proto: meta_graph_pb2.CollectionDef, nodes: Container[str]) -> dict[str, Any]:
    kind, items = printing.describe_collection(proto, nodes)
    return {"kind": kind, "items": items}


def _op_histogram(graph_def: graph_pb2.GraphDef) -> dict[str, dict[str, int]]:
    """Returns how many nodes have each op, and how many call each function of the library.

    Those inside functions count too; the most frequent come first.
    """
    counts = collections.Counter(node.op for node in graph_def.node)
    for function in graph_def.library.function:
        counts.update(node.op for node in function.node_def)
    functions = {function.signature.name for function in graph_def.library.function}
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {
        "ops": {op: count for op, count in ordered if op not in functions},
        "calls": {op: count for op, count in ordered if op in functions},
    }


# --- text --------------------------------------------------------------------------------------


def render(summary: dict[str, Any], sections: Sequence[str], *, everything: bool = False) -> str:
    """Returns a summary as text.

    Args:
        summary: what `summarize` returned.
        sections: which of `SECTIONS`; all where empty.
        everything: whether long lists are shown in full.
    """
    renderers: dict[str, Callable[[dict[str, Any], bool], list[str]]] = {
        "versions": _render_versions,
        "signatures": _render_signatures,
        "variables": _render_variables,
        "collections": _render_collections,
        "ops": _render_ops,
    }
    lines = [_render_headline(summary)]
    for section in SECTIONS:
        if not sections or section in sections:
            lines += ["", *renderers[section](summary, everything)]
    return "\n".join(lines)


def _render_headline(summary: dict[str, Any]) -> str:
    functions = f"{_count(summary['functions'], 'function')}"
    if summary["functions"]:
        functions += f" with {_count(summary['function_nodes'], 'node')}"
    size, nodes = format_bytes(summary["bytes"]), _count(summary["nodes"], "node")
    return f"{summary['file']}: {size}, {nodes}, {functions}"


def _render_versions(summary: dict[str, Any], everything: bool) -> list[str]:
    del everything  # it is one line each
    versions = summary["versions"]
    graph_def = f"GraphDef {versions['producer']}"
    if versions["min_consumer"]:
        graph_def += f", for readers from {versions['min_consumer']} on"
    return [
        "Versions",
        f"  format      {versions['format'] or 'none, so not written by jaxmeta'}",
        f"  TensorFlow  {versions['tensorflow'] or 'not recorded'} ({graph_def})",
        f"  checkpoint  {summary['checkpoint'] or 'none beside the file'}",
    ]


def _render_signatures(summary: dict[str, Any], everything: bool) -> list[str]:
    lines = ["Signatures"]
    for name, signature in summary["signatures"].items():
        notes = []
        if signature["function"] != name:
            notes.append(f"traced from {signature['function']!r}")
        if signature["train_op"]:
            notes.append(f"in a session, run {signature['train_op']!r}")
        lines.append(f"  {name}" + (f"  ({'; '.join(notes)})" if notes else ""))
        updates = signature["updates"]
        replaced = {str(argument): result for result, argument in updates.items()}
        for key, leaves in signature["arguments"].items():
            lines += _render_argument(key, leaves, replaced.get(key), everything)
        for key, leaves in signature["results"].items():
            if key in updates:
                lines.append(f"    result {key:5} the new argument {updates[key]}")
            else:
                lines += _render_leaves(f"result {key}", leaves, everything)
    for name, signature in summary["signature_defs"].items():
        lines += _render_signature_def(name, signature)
    if summary["signatures_unreadable"]:
        lines.append(textwrap.indent(summary["signatures_unreadable"], "  "))
    elif len(lines) == 1:
        lines.append("  none")
    return lines


def _render_argument(
    key: str, leaves: Sequence[dict[str, Any]], replaced_by: str | None, everything: bool
) -> list[str]:
    """Returns the lines of one argument: its variables in one, each array to feed in its own."""
    held = [leaf for leaf in leaves if "variable" in leaf]
    fed = [leaf for leaf in leaves if "variable" not in leaf]
    label, lines = f"argument {key}", []
    if held:
        roots = _shorten(list(dict.fromkeys(leaf["variable"].split("/")[0] for leaf in held)))
        text = f"{_count(len(held), 'variable')}: {roots}"
        if all(leaf["donated"] for leaf in held):
            text += "; donated"
        if replaced_by is not None:
            text += f"; replaced by result {replaced_by}"
        lines.append(f"    {label:12} {text}")
        label = ""
    for leaf in fed:
        leaf["path"] = f"feed {leaf['tensor'].removesuffix(':0')}"
    return lines + (_render_leaves(label, fed, everything) if fed or not held else [])


def _render_leaves(label: str, leaves: Sequence[dict[str, Any]], everything: bool) -> list[str]:
    if not leaves:
        return [f"    {label:12} no arrays"]
    width = max(len(leaf["path"]) for leaf in leaves)
    rows = [f"{leaf['path']:{width}}  {format_spec(leaf)}".strip() for leaf in leaves]
    rows = _cap(rows, everything)
    labels = [label, *[""] * (len(rows) - 1)]
    return [f"    {label:12} {row}" for label, row in zip(labels, rows, strict=True)]


def _render_signature_def(name: str, signature: dict[str, Any]) -> list[str]:
    lines = [f"  {name}  (a SignatureDef, method {signature['method'] or 'not recorded'!r})"]
    for side in ("inputs", "outputs"):
        lines += [
            f"    {side[:-1]:6} {key}: {info['tensor']}  {format_spec(info)}"
            for key, info in signature[side].items()
        ]
    return lines


def _render_variables(summary: dict[str, Any], everything: bool) -> list[str]:
    variables = summary["variables"]
    if not variables:
        return ["Variables", "  none"]
    elements = sum(v["elements"] or 0 for v in variables)
    trainable = sum(v["elements"] or 0 for v in variables if v["trainable"])
    total = format_bytes(sum(v["bytes"] or 0 for v in variables))
    headline = f"Variables: {len(variables)}, {elements:,} elements, {total}"
    width = max(len(v["name"]) for v in variables)
    spec_width = max(len(format_spec(v)) for v in variables)
    rows = []
    for variable in variables:
        size = "?" if variable["bytes"] is None else format_bytes(variable["bytes"])
        marks = ["trainable"] if variable["trainable"] else []
        marks += [f"{variable['key_impl']} key"] if variable["key_impl"] else []
        row = f"  {variable['name']:{width}}  {format_spec(variable):{spec_width}}  {size:>9}  "
        rows.append((row + " ".join(marks)).rstrip())
    return [f"{headline}; {trainable:,} elements trainable", *_cap(rows, everything)]


def _render_collections(summary: dict[str, Any], everything: bool) -> list[str]:
    found = summary["collections"]
    width = max((len(name) for name in found), default=0)
    rows = []
    for name, collection in found.items():
        kind = collection["kind"]
        items = [f"{i:.7g}" if isinstance(i, float) else str(i) for i in collection["items"]]
        shown = ", ".join(items) if everything else _shorten(items)
        rows.append(f"  {name:{width}}  {len(items):5} {kind:8}  {shown}")
    return ["Collections", *(rows or ["  none"])]


def _render_ops(summary: dict[str, Any], everything: bool) -> list[str]:
    ops = summary["ops"]
    cells = [f"{count:7,} {op}" for op, count in ops.items()]
    hidden = 0 if everything else max(0, len(cells) - _SHOWN_OPS)
    cells = cells[: len(cells) - hidden]
    column = max((len(cell) for cell in cells), default=0) + 1
    rows = [
        "".join(cell.ljust(column) for cell in cells[start : start + _OP_COLUMNS]).rstrip()
        for start in range(0, len(cells), _OP_COLUMNS)
    ]
    more = [f"  ... and {hidden} more kinds (--all shows them)"] if hidden else []
    nodes, calls = sum(ops.values()), summary["calls"]
    headline = f"Ops: {_count(nodes, 'node')} of {_count(len(ops), 'kind')}, inside functions too"
    if calls:
        called = _count(len(calls), "function")
        headline += f"; besides {_count(sum(calls.values()), 'call')} of {called}"
    return [headline, *rows, *more]


def format_spec(described: dict[str, Any]) -> str:
    """Returns a dtype and shape as JAX spells them, with ``?`` for what is not known.

    >>> format_spec({"dtype": "float32", "shape": [None, 28]})
    'float32[?,28]'
    """
    shape = described["shape"]
    if shape is None:
        return f"{described['dtype']}[...]"
    return f"{described['dtype']}[{','.join('?' if d is None else str(d) for d in shape)}]"


def format_bytes(count: float) -> str:
    """Returns a size in bytes with three digits and a unit.

    >>> format_bytes(12), format_bytes(131_072), format_bytes(5e9)
    ('12 B', '131 kB', '5.00 GB')
    """
    if count < 1000:
        return f"{count:.0f} B"
    power = 1 if count < 999.5e3 else 2 if count < 999.5e6 else 3 if count < 999.5e9 else 4
    count /= 1000**power
    return f"{count:.{max(0, 2 - int(math.log10(count)))}f} {' kMGT'[power]}B"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _cap(rows: list[str], everything: bool) -> list[str]:
    if everything or len(rows) <= _SHOWN_ROWS:
        return rows
    return [*rows[:_SHOWN_ROWS], f"  ... and {len(rows) - _SHOWN_ROWS} more (--all shows them)"]


def _shorten(items: Sequence[str]) -> str:
    text = ", ".join(items[:_SHOWN_ITEMS])
    text += f", ... ({len(items)})" if len(items) > _SHOWN_ITEMS else ""
    return textwrap.shorten(text, _WIDTH, placeholder=" ...") if len(text) > _WIDTH else text
