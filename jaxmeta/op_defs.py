"""The op vocabulary: TensorFlow's OpDefs as data, and what they say about a node.

The ops are those of `op_defs.pbtxt`; `op_defs.pb` is the same list in binary, which is what is
read here, on first use. An OpDef from the table is shared: read it, never write to it.

The functions that take an `op_def` take the signature of a library function as well. For ops of
the table they run off plans made once for each op, because they run once for each node of graphs
that may have a million.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import pathlib
from collections.abc import Sequence

from jaxmeta import errors
from jaxmeta._proto import graph_pb2

# A list length is read from a file; no op of a real graph comes near this many tensors.
_MAX_TENSORS = 1 << 20
# types.proto: DT_FLOAT_REF and its kin are the plain type plus this.
_REF_OFFSET = 100

_OpDef = graph_pb2.OpDef
_NodeDef = graph_pb2.NodeDef
_AttrValue = graph_pb2.AttrValue


@dataclasses.dataclass(frozen=True, slots=True)
class _Arg:
    """One input_arg or output_arg: which attrs say how many tensors it is, and of which types."""

    name: str
    dtype: int  # 0 where an attr says it
    type_attr: str
    number_attr: str
    type_list_attr: str
    ref_offset: int

    def count(self, plan: _Plan, node: _NodeDef) -> int:
        """Returns how many tensors the arg is on this node."""
        if self.number_attr:
            count = plan.attr(node, self.number_attr, "i").i
        elif self.type_list_attr:
            count = len(plan.attr(node, self.type_list_attr, "list").list.type)
        else:
            return 1
        if not 0 <= count <= _MAX_TENSORS:
            raise errors.AttrError(
                f"node '{node.name}' ({node.op}): attr '{self.number_attr or self.type_list_attr}' "
                f"makes arg '{self.name}' {count} tensors; expected 0 to {_MAX_TENSORS}"
            )
        return count

    def dtypes(self, plan: _Plan, node: _NodeDef) -> list[int]:
        """Returns the data type of each tensor that the arg is on this node."""
        if self.type_list_attr:
            self.count(plan, node)
            types = plan.attr(node, self.type_list_attr, "list").list.type
            return [dtype + self.ref_offset for dtype in types]
        dtype = (self.dtype or plan.type_of(node, self.type_attr)) + self.ref_offset
        return [dtype] * self.count(plan, node) if self.number_attr else [dtype]


@dataclasses.dataclass(frozen=True, slots=True)
class _Side:
    """All inputs or all outputs; a `fixed_` value holds for every node, None if none does."""

    args: tuple[_Arg, ...]
    fixed_names: tuple[tuple[str, int], ...] | None
    fixed_dtypes: tuple[int, ...] | None

    @classmethod
    def of(cls, arg_defs: Sequence[graph_pb2.OpDef.ArgDef]) -> _Side:
        args = tuple(
            _Arg(
                arg_def.name,
                arg_def.type,
                arg_def.type_attr,
                arg_def.number_attr,
                arg_def.type_list_attr,
                _REF_OFFSET if arg_def.is_ref else 0,
            )
            for arg_def in arg_defs
        )
        one_each = not any(arg.number_attr or arg.type_list_attr for arg in args)
        typed = one_each and all(arg.dtype for arg in args)
        return cls(
            args,
            tuple((arg.name, 1) for arg in args) if one_each else None,
            tuple(arg.dtype + arg.ref_offset for arg in args) if typed else None,
        )

    def names(self, plan: _Plan, node: _NodeDef) -> tuple[tuple[str, int], ...]:
        if self.fixed_names is not None:
            return self.fixed_names
        return tuple((arg.name, arg.count(plan, node)) for arg in self.args)

    def dtypes(self, plan: _Plan, node: _NodeDef) -> list[int]:
        if self.fixed_dtypes is not None:
            return list(self.fixed_dtypes)
        if self.fixed_names is not None:
            return [
                (arg.dtype or plan.type_of(node, arg.type_attr)) + arg.ref_offset
                for arg in self.args
            ]
        return [dtype for arg in self.args for dtype in arg.dtypes(plan, node)]


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """What an OpDef says, laid out for quick look-up."""

    op_def: _OpDef
    inputs: _Side
    outputs: _Side
    defaults: dict[str, _AttrValue | None]  # in the order of the OpDef; None: required
    restated_attrs: tuple[str, ...]
    free_attrs: tuple[str, ...]

    @classmethod
    def of(cls, op_def: _OpDef) -> _Plan:
        inputs = _Side.of(op_def.input_arg)
        defaults = {
            attr.name: attr.default_value if attr.HasField("default_value") else None
            for attr in op_def.attr
        }
        restated = {
            name
            for arg in inputs.args
            for name in (arg.type_attr, arg.number_attr, arg.type_list_attr)
        }
        return cls(
            op_def,
            inputs,
            _Side.of(op_def.output_arg),
            defaults,
            tuple(name for name in defaults if name in restated),
            tuple(name for name in defaults if name not in restated),
        )

    def type_of(self, node: _NodeDef, name: str) -> int:
        """Returns the value of a type attr."""
        value = node.attr.get(name)
        # A type other than DT_INVALID shows that the value is of kind "type": no need to ask.
        if value is not None and value.type:
            return value.type
        return self.attr(node, name, "type").type

    def attr(self, node: _NodeDef, name: str, kind: str) -> _AttrValue:
        """Returns the node's attr, or its default, having checked which kind of value it is."""
        value = node.attr.get(name) or self.defaults.get(name)
        if value is None:
            found = "is missing and has no default"
        elif value.HasField(kind):
            return value
        else:
            found = f"is of kind '{value.WhichOneof('value')}'"
        raise errors.AttrError(
            f"node '{node.name}' ({node.op}): attr '{name}' {found}; expected kind '{kind}'"
        )


@functools.cache
def _op_defs() -> dict[str, _OpDef]:
    serialized = pathlib.Path(__file__).with_name("op_defs.pb").read_bytes()
    return {op_def.name: op_def for op_def in graph_pb2.OpList.FromString(serialized).op}


_plans: dict[str, _Plan] = {}
_described: dict[str, _OpDef] = {}


def _plan(op_def: _OpDef) -> _Plan:
    name = op_def.name
    plan = _plans.get(name)
    if plan is not None and plan.op_def is op_def:
        return plan
    plan = _Plan.of(op_def)
    # Two graphs may have two functions of one name, so that only the table's ops are kept.
    if _op_defs().get(name) is op_def:
        _plans[name] = plan
    return plan


def op_names() -> tuple[str, ...]:
    """Returns the names of all ops of the vocabulary, sorted."""
    return tuple(_op_defs())


def has_op(name: str) -> bool:
    """Returns whether `name` is an op of the vocabulary, or one that a file described."""
    return name in _op_defs() or name in _described


def is_registered(name: str) -> bool:
    """Returns whether `name` is an op of TensorFlow's registry."""
    return name in _op_defs()


def add_described(op_def: graph_pb2.OpDef) -> None:
    """Makes an op known that TensorFlow's registry has not, such as one of ``tf.contrib``.

    It has no kernel: what is known of it is how many tensors of which types its nodes take and
    give. As in TensorFlow, which registers what a library of ops brings, it is known to the whole
    process from then on.

    Raises:
        UnsupportedOpError: an op of that name was described in another way.
    """
    name = op_def.name
    known = _described.get(name)
    if name in _op_defs() or known == op_def:
        return
    if known is not None:
        raise errors.UnsupportedOpError(
            f"the op '{name}' is no op of TensorFlow's registry, and two files describe it in "
            "different ways; import them in different processes"
        )
    copied = graph_pb2.OpDef()
    copied.CopyFrom(op_def)
    _described[name] = copied


def get_op_def(name: str) -> graph_pb2.OpDef:
    """Returns the OpDef of an op of the vocabulary.

    >>> [arg.name for arg in get_op_def("MatMul").input_arg]
    ['a', 'b']

    Raises:
        UnsupportedOpError: if there is none of that name; the message has the closest ones.
    """
    op_def = _op_defs().get(name) or _described.get(name)
    if op_def is None:
        close = difflib.get_close_matches(name, _op_defs())
        closest = f"closest: {', '.join(close)}" if close else "no name is close to it"
        raise errors.UnsupportedOpError(
            f"no op is named '{name}' among the {len(_op_defs())} TensorFlow ops that jaxmeta "
            f"knows ({closest}). If it is a function, the graph's library has to hold it"
        )
    return op_def


def is_stateful(name: str) -> bool:
    """Returns whether the op has effects or reads state, so that two calls are not as good as one.

    Raises:
        UnsupportedOpError: if there is no op of that name.
    """
    return get_op_def(name).is_stateful


def restated_attrs(op_def: graph_pb2.OpDef) -> tuple[str, ...]:
    """Returns the attrs that say what the inputs say already: their types and numbers."""
    return _plan(op_def).restated_attrs


def free_attrs(op_def: graph_pb2.OpDef) -> tuple[str, ...]:
    """Returns the attrs that no input restates, in the order of the OpDef."""
    return _plan(op_def).free_attrs


def attr_default(op_def: graph_pb2.OpDef, attr_name: str) -> graph_pb2.AttrValue | None:
    """Returns the default of an attr (shared: do not write to it), or None if it is required.

    Raises:
        AttrError: if the op has no attr of that name.
    """
    defaults = _plan(op_def).defaults
    if attr_name not in defaults:
        raise errors.AttrError(
            f"op {op_def.name}: there is no attr '{attr_name}'; expected one of "
            f"{', '.join(defaults) or 'none, it has no attrs'}"
        )
    return defaults[attr_name]


def input_names(op_def: graph_pb2.OpDef, node: graph_pb2.NodeDef) -> tuple[tuple[str, int], ...]:
    """Returns (input_arg name, how many tensors it is) for each input_arg of the node's op.

    Raises:
        AttrError: if an attr of the node that says how many is missing or wrong.
    """
    plan = _plan(op_def)
    return plan.inputs.names(plan, node)


def output_names(op_def: graph_pb2.OpDef, node: graph_pb2.NodeDef) -> tuple[tuple[str, int], ...]:
    """Returns (output_arg name, how many tensors it is) for each output_arg of the node's op.

    Raises:
        AttrError: if an attr of the node that says how many is missing or wrong.
    """
    plan = _plan(op_def)
    return plan.outputs.names(plan, node)


def input_dtypes(op_def: graph_pb2.OpDef, node: graph_pb2.NodeDef) -> list[int]:
    """Returns the DataType of each data input; a reference has its own type, as `DT_FLOAT_REF`.

    Raises:
        AttrError: if an attr of the node that says a type or how many is missing or wrong.
    """
    plan = _plan(op_def)
    return plan.inputs.dtypes(plan, node)


def output_dtypes(op_def: graph_pb2.OpDef, node: graph_pb2.NodeDef) -> list[int]:
    """Returns the DataType of each output; a reference has its own type, as `DT_FLOAT_REF`.

    Raises:
        AttrError: if an attr of the node that says a type or how many is missing or wrong.
    """
    plan = _plan(op_def)
    return plan.outputs.dtypes(plan, node)


def output_arg(op_def: graph_pb2.OpDef, node: graph_pb2.NodeDef, index: int) -> tuple[str, int]:
    """Returns `("values", 1)` for the output that a function body calls "node:values:1".

    Args:
        op_def: the node's op.
        node: the node.
        index: which output it is, in GraphDef's way of counting ("node:3" is 3).

    Raises:
        GraphError: if the node has no such output.
    """
    if index >= 0:
        rest = index
        for name, count in output_names(op_def, node):
            if rest < count:
                return name, rest
            rest -= count
    raise errors.GraphError(_no_output(op_def, node, str(index)))


def output_index(
    op_def: graph_pb2.OpDef, node: graph_pb2.NodeDef, arg_name: str, offset: int
) -> int:
    """Returns which output of the node "node:arg_name:offset" is; the inverse of `output_arg`.

    Raises:
        GraphError: if the node has no such output.
    """
    start = 0
    for name, count in output_names(op_def, node):
        if name == arg_name and 0 <= offset < count:
            return start + offset
        start += count
    raise errors.GraphError(_no_output(op_def, node, f"{arg_name}:{offset}"))


def _no_output(op_def: _OpDef, node: _NodeDef, wanted: str) -> str:
    names = output_names(op_def, node)
    expected = ", ".join(f"{name} ({count})" for name, count in names) or "none"
    return f"node '{node.name}' ({node.op}): there is no output '{wanted}'; it has: {expected}"
