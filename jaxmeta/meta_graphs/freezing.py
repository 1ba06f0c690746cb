"""Freezing: a graph's variables become constants, for inference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import jax
import numpy as np

from jaxmeta import dtypes, errors, op_defs, values
from jaxmeta._proto import graph_pb2
from jaxmeta.graphs import function_library, graph
from jaxmeta.meta_graphs import graph_transforms, signature_defs

_INT32: Final = dtypes.dtype_to_number(np.int32)
_REFERENCE_OPS: Final = frozenset({"Variable", "VariableV2"})
_RESOURCE_OPS: Final = frozenset({"VarHandleOp"})
# Ops whose outputs are the handle that is their first input, by how many there are.
_SHAPE_ATTRS: Final = ("output_shapes", "_output_shapes")
_PASSING_OPS: Final = {
    "Identity": 1,
    "Enter": 1,
    "Exit": 1,
    "NextIteration": 1,
    "Merge": 1,
    "Switch": 2,
}
# Ops that call functions: the attrs that name these, the attr with the types of what they take, how
# many inputs stand before that, and the attr with the types of the results.
_CALLING_OPS: Final = {
    "PartitionedCall": (("f",), "Tin", 0, "Tout"),
    "StatefulPartitionedCall": (("f",), "Tin", 0, "Tout"),
    "If": (("then_branch", "else_branch"), "Tin", 1, "Tout"),
    "StatelessIf": (("then_branch", "else_branch"), "Tin", 1, "Tout"),
    "Case": (("branches",), "Tin", 1, "Tout"),
    "StatelessCase": (("branches",), "Tin", 1, "Tout"),
    "While": (("cond", "body"), "T", 0, "T"),
    "StatelessWhile": (("cond", "body"), "T", 0, "T"),
}


class RunsVariables(Protocol):
    """What freezing needs of a session."""

    graph: graph.GraphBuilder

    def run(self, fetches: Any) -> Any:
        """Returns the values of what is fetched."""


def convert_variables_to_constants(
    sess: RunsVariables,
    input_graph_def: graph_pb2.GraphDef,
    output_node_names: Sequence[str],
    variable_names_whitelist: Iterable[str] | None = None,
    variable_names_blacklist: Iterable[str] | None = None,
) -> graph_pb2.GraphDef:
    """Returns the part of a GraphDef that some outputs need, with constants for its variables.

    Reference variables and resource variables are replaced, these also where functions read them.
    The GraphDef has no signatures any more; its nodes keep their names.

    Args:
        sess: the session that holds the variables' values.
        input_graph_def: the graph.
        output_node_names: names of the nodes that are wanted.
        variable_names_whitelist: names of the variables to replace; all where None.
        variable_names_blacklist: names of variables to leave.

    Raises:
        MissingNodeError: outputs are not in the graph; an AssertionError.
        GraphError: variables have no values; or what is wanted changes variables, or reads them
            with ops that have no equal for constants. All are listed.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmeta.execution import session
        >>> from jaxmeta.graphs import building
        >>> g = building.Graph()
        >>> w = g.variables({"w": jnp.ones(3)})
        >>> _ = g.add_signature("double", lambda v: v["w"] * 2, w)
        >>> with session.Session(graph=g) as sess:
        ...     sess.set_state({"w": jnp.ones(3)})
        ...     frozen = convert_variables_to_constants(sess, g.as_graph_def(), ["double"])
        >>> [node.op for node in frozen.node]
        ['Const', 'Identity', 'PartitionedCall']
    """
    part = graph_transforms.extract_sub_graph(input_graph_def, output_node_names)
    wanted = None if variable_names_whitelist is None else set(variable_names_whitelist)
    left = set(variable_names_blacklist or ())
    replaced = [
        node.name
        for node in part.node
        if node.op in _REFERENCE_OPS | _RESOURCE_OPS
        and (wanted is None or node.name in wanted)
        and node.name not in left
    ]
    arrays = _values_of(sess, replaced)
    converter = _Converter({f.signature.name: f for f in part.library.function})
    result = graph_pb2.GraphDef()
    result.versions.CopyFrom(part.versions)
    result.node.extend(converter.convert_graph(part.node, arrays))
    if converter.faults:
        headline = "these nodes do more with variables than to read them:"
        raise errors.GraphError(errors.list_offenders(headline, converter.faults))
    _write_library(result, converter.functions, part.library)
    return result


def _values_of(sess: RunsVariables, names: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    unknown = [name for name in names if name not in sess.graph.variable_names]
    if unknown:
        headline = "the session's graph has no variables of these names:"
        raise errors.MissingNameError(errors.list_offenders(headline, unknown))
    found = sess.run([sess.graph.variable(name) for name in names]) if names else []
    return {name: _as_array(value) for name, value in zip(names, found, strict=True)}


def _as_array(value: Any) -> np.ndarray[Any, Any]:
    is_key = hasattr(value, "dtype") and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(value) if is_key else value)


def _write_library(
    result: graph_pb2.GraphDef,
    functions: Mapping[str, graph_pb2.FunctionDef],
    library: graph_pb2.FunctionDefLibrary,
) -> None:
    """Writes the functions that the nodes reach, and their gradients."""
    gradients = {gradient.function_name: gradient for gradient in library.gradient}
    waiting = [name for node in result.node for name in function_library.functions_named_by(node)]
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in functions and name not in reached:
            reached.add(name)
            waiting += function_library.functions_named_in(functions[name])
            if name in gradients:
                waiting.append(gradients[name].gradient_func)
    result.library.function.extend(
        function for name, function in functions.items() if name in reached
    )
    result.library.gradient.extend(
        gradient for name, gradient in gradients.items() if name in reached
    )
    result.library.registered_gradients.extend(
        rule for rule in library.registered_gradients if rule.gradient_func in reached
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Body:
    """The nodes of a graph or function while handles in it become values.

    Attributes:
        nodes: the nodes, which are changed in place.
        types: the data type of what each handle becomes, by how inputs name it.
        output_refs: gives all the ways in which inputs name the outputs of a node, one a list.
        where: what to call it in messages.
        renamed: how inputs name outputs of nodes that got another op, by how they did before.
    """

    nodes: list[graph_pb2.NodeDef]
    types: dict[str, int]
    output_refs: Callable[[graph_pb2.NodeDef], list[list[str]]]
    where: str
    renamed: dict[str, str] = dataclasses.field(default_factory=dict)


class _Converter:
    """Replaces handles by values, in a graph and in copies of the functions that take them.

    Attributes:
        functions: the library, to which copies are added.
        faults: the nodes that could not be converted.
    """

    def __init__(self, functions: dict[str, graph_pb2.FunctionDef]) -> None:
        self.functions = functions
        self.faults: list[str] = []
        self._copies: dict[tuple[str, tuple[tuple[int, int], ...]], str] = {}
        self._result_types: dict[str, dict[int, int]] = {}

    def convert_graph(
        self, nodes: Iterable[graph_pb2.NodeDef], arrays: Mapping[str, np.ndarray[Any, Any]]
    ) -> list[graph_pb2.NodeDef]:
        """Returns the nodes with constants for variables."""
        converted: list[graph_pb2.NodeDef] = []
        types: dict[str, int] = {}
        for node in nodes:
            if node.name in arrays:
                converted.append(_constant(node.name, arrays[node.name]))
                if node.op in _RESOURCE_OPS:
                    number = converted[-1].attr["dtype"].type
                    types.update({node.name: number, f"{node.name}:0": number})
            else:
                copied = graph_pb2.NodeDef()
                copied.CopyFrom(node)
                signature_defs.write_attrs(copied, signature_defs.Entries({}, {}), "")
                converted.append(copied)
        body = _Body(converted, types, self._graph_refs, "")
        self._convert(body)
        return body.nodes

    def _convert(self, body: _Body) -> None:
        """Converts nodes until no more handles turn up; loops may need several rounds."""
        done: set[tuple[str, tuple[int, ...]]] = set()
        size = -1
        while size != len(body.types):
            size = len(body.types)
            for node in list(body.nodes):
                handles = tuple(index for index, ref in enumerate(node.input) if ref in body.types)
                if handles and (node.name, handles) not in done:
                    done.add((node.name, handles))
                    self._convert_node(body, node, handles)

    def _convert_node(self, body: _Body, node: graph_pb2.NodeDef, handles: tuple[int, ...]) -> None:
        number = body.types[node.input[handles[0]]]
        if node.op == "ReadVariableOp":
            before = body.output_refs(node)[0]
            _replace(node, "Identity", {"T": number})
            body.renamed.update(zip(before, body.output_refs(node)[0], strict=True))
        elif node.op == "ResourceGather":
            self._convert_gather(body, node, number)
        elif node.op == "VariableShape":
            out_type = node.attr["out_type"].type if "out_type" in node.attr else _INT32
            _replace(node, "Shape", {"T": number, "out_type": out_type})
        elif node.op in _PASSING_OPS:
            refs = body.output_refs(node)[: _PASSING_OPS[node.op]]
            node.attr["T"].type = number  # type: ignore[assignment]
            node.attr.pop("_output_shapes", None)
            body.types.update({ref: number for same in refs for ref in same})
        elif node.op in _CALLING_OPS or node.op in self.functions:
            self._convert_call(body, node, handles)
        else:
            self.faults.append(f"{node.name!r} ({node.op}){body.where}")

    def _convert_gather(self, body: _Body, node: graph_pb2.NodeDef, number: int) -> None:
        if node.attr["batch_dims"].i if "batch_dims" in node.attr else 0:
            self.faults.append(f"{node.name!r} ({node.op} with batch_dims){body.where}")
            return
        axis = _constant(f"{node.name}/axis", np.zeros((), np.int32))
        body.nodes.insert(body.nodes.index(node), axis)
        indices = node.attr["Tindices"].type
        refs = body.output_refs(axis)[0]
        _replace(node, "GatherV2", {"Tparams": number, "Tindices": indices, "Taxis": _INT32})
        data = [ref for ref in node.input if not ref.startswith("^")]
        control = [ref for ref in node.input if ref.startswith("^")]
        node.input[:] = [*data, refs[-1], *control]

    def _convert_call(self, body: _Body, node: graph_pb2.NodeDef, handles: tuple[int, ...]) -> None:
        """Makes a call pass values; the functions become copies that take these."""
        func_attrs, in_attr, offset, out_attr = _CALLING_OPS.get(node.op, ((), "", 0, ""))
        types = {index - offset: body.types[node.input[index]] for index in handles}
        outputs: dict[int, int] = {}
        for func in self._funcs(node, func_attrs):
            func.name = self._copy(func.name, types)
            outputs.update(self._result_types[func.name])
        if not func_attrs:
            node.op = self._copy(node.op, types)
            outputs.update(self._result_types[node.op])
        for attr, changed in ((in_attr, types), (out_attr, outputs)):
            for index, number in changed.items() if attr else ():
                node.attr[attr].list.type[index] = number  # type: ignore[call-overload]
        for attr in _SHAPE_ATTRS:  # the shape of a handle is not that of its value
            node.attr.pop(attr, None)
        refs = body.output_refs(node)
        for index, number in outputs.items():
            body.types.update(dict.fromkeys(refs[index], number))

    def _funcs(
        self, node: graph_pb2.NodeDef, func_attrs: Sequence[str]
    ) -> Iterator[graph_pb2.NameAttrList]:
        for attr in func_attrs:
            value = node.attr[attr]
            yield from value.list.func if value.HasField("list") else [value.func]

    def _copy(self, name: str, types: Mapping[int, int]) -> str:
        """Returns the name of a copy of a function that takes values for some arguments."""
        key = name, tuple(sorted(types.items()))
        if key in self._copies:
            return self._copies[key]
        copy = graph_pb2.FunctionDef()
        copy.CopyFrom(self.functions[name])
        arguments = copy.signature.input_arg
        pending = {
            index: number
            for index, number in types.items()
            if arguments[index].type == dtypes.RESOURCE
        }
        if not pending:  # it was converted before, in a loop
            self._copies[key] = name
            self._result_types.setdefault(name, {})
            return name
        count, unique = 0, f"{name}_frozen"
        while unique in self.functions:
            count += 1
            unique = f"{name}_frozen_{count}"
        copy.signature.name = unique
        copy.attr.pop("_input_shapes", None)
        self._copies[key] = unique
        self._result_types[unique] = {}
        self.functions[unique] = copy
        for index, number in pending.items():
            arguments[index].type = number  # type: ignore[assignment]
            del arguments[index].handle_data[:]
            copy.arg_attr.pop(index, None)
        self._convert_body(copy, {arguments[i].name: number for i, number in pending.items()})
        return unique

    def _convert_body(self, function: graph_pb2.FunctionDef, types: dict[str, int]) -> None:
        name = function.signature.name
        body = _Body(list(function.node_def), types, self._function_refs, f" of function {name!r}")
        self._convert(body)
        for node in body.nodes:
            node.input[:] = [body.renamed.get(ref, ref) for ref in node.input]
        converted = graph_pb2.FunctionDef(node_def=body.nodes)
        del function.node_def[:]
        function.node_def.extend(converted.node_def)
        for index, output in enumerate(function.signature.output_arg):
            ref = function.ret[output.name]
            function.ret[output.name] = body.renamed.get(ref, ref)
            number = types.get(ref)
            if number is not None:
                output.type = number  # type: ignore[assignment]
                del output.handle_data[:]
                self._result_types[name][index] = number

    def _graph_refs(self, node: graph_pb2.NodeDef) -> list[list[str]]:
        count = sum(count for _, count in op_defs.output_names(self._op_def(node), node))
        refs = [[f"{node.name}:{index}"] for index in range(count)]
        if refs:
            refs[0].append(node.name)
        return refs

    def _function_refs(self, node: graph_pb2.NodeDef) -> list[list[str]]:
        return [
            [f"{node.name}:{name}:{offset}"]
            for name, count in op_defs.output_names(self._op_def(node), node)
            for offset in range(count)
        ]

    def _op_def(self, node: graph_pb2.NodeDef) -> graph_pb2.OpDef:
        function = self.functions.get(node.op)
        return function.signature if function is not None else op_defs.get_op_def(node.op)


def _constant(name: str, array: np.ndarray[Any, Any]) -> graph_pb2.NodeDef:
    node = graph_pb2.NodeDef(name=name, op="Const")
    proto = values.tensor_to_proto(array)
    node.attr["dtype"].type = proto.dtype
    node.attr["value"].tensor.CopyFrom(proto)
    return node


def _replace(node: graph_pb2.NodeDef, op: str, types: Mapping[str, int]) -> None:
    """Makes a node one of another op with types as its only attrs, beside those of any op."""
    node.op = op
    for name in [name for name in node.attr if not name.startswith("_")]:
        del node.attr[name]
    for name, number in types.items():
        node.attr[name].type = number  # type: ignore[assignment]
