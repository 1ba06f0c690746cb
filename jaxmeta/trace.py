"""From a jaxpr to nodes: each eqn becomes one node, each nested jaxpr a library function.

A primitive that one TensorFlow op says exactly becomes that op; any other becomes a call of a
library function whose body says it in TensorFlow ops, and whose call node carries the primitive's
name and parameters, so that reading takes the primitive itself back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import numpy as np

from jaxmeta import dtypes, errors, graph, jaxprs, naming, nodes, values
from jaxmeta._proto import graph_pb2
from jaxmeta.nodes import Edge
from jaxmeta.ops import _definition, _not_lowered
from jaxmeta.ops import sharding as sharding_ops

_ADVICE: Final = (
    "Replace them in the traced function; the primitives that have a node form are listed in "
    "docs/ops.md."
)
_NO_TYPE: Final = 0  # TensorFlow's DT_INVALID: of what an eqn without a node form returns
# Refuses to expand a custom derivative rule that expands itself under ever new names.
_MAX_FUNCTION_DEPTH: Final = 200


class _NoNodeFormError(Exception):
    """An eqn cannot be expressed; carries the reason."""


@dataclasses.dataclass(slots=True)
class Tracing:
    """What one trace shares between the bodies it fills.

    Functions are staged here and reach the graph only when the whole trace succeeded.
    """

    target: graph.GraphBuilder
    library: dict[str, graph_pb2.FunctionDef]
    staged: list[graph_pb2.FunctionDef] = dataclasses.field(default_factory=list)
    names_by_jaxpr: dict[int, str] = dataclasses.field(default_factory=dict)
    names_by_key: dict[Any, str] = dataclasses.field(default_factory=dict)
    kept_alive: list[Any] = dataclasses.field(default_factory=list)
    offenders: dict[str, None] = dataclasses.field(default_factory=dict)
    active_rules: dict[Any, list[str]] = dataclasses.field(default_factory=dict)
    depth: int = 0

    @classmethod
    def into(cls, target: graph.GraphBuilder) -> Tracing:
        """Returns a new trace whose functions will be added to a graph."""
        return cls(target, dict(target.functions))

    def stage(self, function: graph_pb2.FunctionDef) -> None:
        """Makes a function known to the bodies of this trace."""
        self.library[function.signature.name] = function
        self.staged.append(function)

    def commit(self, what: str) -> None:
        """Adds the staged functions to the graph.

        Raises:
            UnsupportedPrimitiveError: some eqns have no node form; all of them are listed.
        """
        if self.offenders:
            count = len(self.offenders)
            raise errors.UnsupportedPrimitiveError(
                errors.list_offenders(
                    f"cannot trace '{what}': {count} use{'s' if count > 1 else ''} of primitives "
                    f"without a node form",
                    self.offenders,
                    _ADVICE,
                )
            )
        for function in self.staged:
            self.target.add_function(function)


def lower_function(
    tracing: Tracing,
    jaxpr: jaxprs.Jaxpr,
    name: str,
    argument_names: Sequence[str] | None = None,
    constants: Sequence[Edge] | None = None,
    reserved_name: str = "",
) -> str:
    """Returns the name of the library function that holds a jaxpr.

    Args:
        tracing: the trace it belongs to.
        jaxpr: closed or open; the constants it holds become Const nodes, unless given.
        name: wanted name, made unique.
        argument_names: names for the arguments.
        constants: where given, the jaxpr's constants become leading arguments like these edges.
        reserved_name: the name itself, where it was made unique already.
    """
    tracing.depth += 1
    if tracing.depth > _MAX_FUNCTION_DEPTH:
        raise errors.UnsupportedPrimitiveError(
            f"functions nest more than {_MAX_FUNCTION_DEPTH} deep at {name!r}; "
            "a custom derivative rule that never ends does this"
        )
    final_name = reserved_name or tracing.target.unique_function_name(name)
    body = nodes.FunctionBody(final_name, tracing.library)
    lowerer = Lowerer(tracing, body)
    opened = jaxprs.open_jaxpr(jaxpr)
    if constants is None:
        leading = [
            lowerer.constant(value, is_weak=jaxprs.is_weak(value))
            for value in jaxprs.jaxpr_constants(jaxpr)
        ]
    else:
        leading = [body.add_argument("constant", e.number, e.shape) for e in constants]
    arguments = []
    for index, var in enumerate(opened.invars):
        aval = var.aval
        impl = jaxprs.key_layout(aval.dtype)[0] if jaxprs.is_key_dtype(aval.dtype) else ""
        physical = jaxprs.physical_aval(aval)
        wanted = argument_names[index] if argument_names else f"x{index}"
        number = dtypes.dtype_to_number(physical.dtype)
        arguments.append(body.add_argument(wanted, number, physical.shape, impl))
    outputs = lowerer.lower(opened, leading, arguments)
    tracing.stage(body.finish(outputs))
    tracing.depth -= 1
    return body.function.signature.name


def _depends_on_weakness(eqn: jaxprs.Eqn) -> bool:
    """Returns whether it matters that a literal's type is weak; most often it does not."""
    return any(jaxprs.is_weak(var.aval) for var in eqn.outvars) or any(jaxprs.subjaxprs(eqn))


def _number(aval: Any) -> int:
    """Returns the DataType number of an aval; that of no type for tokens and the like."""
    try:
        return dtypes.dtype_to_number(jaxprs.physical_aval(aval).dtype)
    except (AttributeError, errors.DtypeError):
        return _NO_TYPE


class Lowerer:
    """Adds the eqns of jaxprs to one container; the `LoweringContext` of their lowerings."""

    def __init__(self, tracing: Tracing, container: nodes.NodeContainer) -> None:
        self._tracing = tracing
        self._container = container
        self._constants: dict[Any, Edge] = {}
        self._scope = ""
        self.eqn: jaxprs.Eqn = None
        self.jaxpr: jaxprs.Jaxpr = None

    # --- walking a jaxpr

    def lower(
        self, jaxpr: jaxprs.Jaxpr, constants: Sequence[Edge], arguments: Sequence[Edge]
    ) -> list[Edge]:
        """Adds all eqns of an open jaxpr and returns the edges of its results."""
        env: dict[Any, Edge] = {}
        env.update(zip(jaxpr.constvars, constants, strict=True))
        env.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: jaxprs.Atom, *, keeps_weak: bool = True) -> Edge:
            value = jaxprs.literal_value(atom)
            if value is None:
                return env[atom]
            return self.constant(value, is_weak=keeps_weak and jaxprs.is_weak(atom.aval))

        self.jaxpr = jaxpr
        for eqn in jaxpr.eqns:
            self.eqn = eqn
            self._scope = naming.scope_from_name_stack(jaxprs.name_stack(eqn))
            keeps_weak = _depends_on_weakness(eqn)
            inputs = [read(atom, keeps_weak=keeps_weak) for atom in eqn.invars]
            outputs = self._lower_eqn(eqn, inputs)
            for var, edge in zip(eqn.outvars, outputs, strict=True):
                if edge.number != _NO_TYPE:
                    edge.shape = jaxprs.physical_aval(var.aval).shape
                env[var] = edge
        return [read(atom) for atom in jaxpr.outvars]

    def _lower_eqn(self, eqn: jaxprs.Eqn, inputs: list[Edge]) -> Sequence[Edge]:
        lowering = _definition.LOWERINGS.get(eqn.primitive.name)
        try:
            if lowering is None:
                reason = _not_lowered.NOT_LOWERED.get(eqn.primitive.name, "it has no node form")
                raise _NoNodeFormError(reason)
            try:
                if jaxprs.has_explicit_sharding(eqn):
                    outputs = sharding_ops.lower_explicit(self, inputs)
                else:
                    outputs = lowering(self, *inputs, **eqn.params)
                self._check_outputs(eqn, outputs)
            except TypeError as error:
                if "unexpected keyword argument" in str(error) and not error.__cause__:
                    raise _NoNodeFormError(
                        f"this JAX gives it a parameter unknown here: {error}"
                    ) from None
                raise
        except (_NoNodeFormError, errors.DtypeError) as error:
            self._tracing.offenders[self._describe_offender(eqn, str(error))] = None
            return [Edge("unsupported", _number(var.aval)) for var in eqn.outvars]
        return list(outputs)

    def _check_outputs(self, eqn: jaxprs.Eqn, outputs: Sequence[Edge]) -> None:
        wanted = [dtypes.dtype_to_number(aval.dtype) for aval in self.out_avals]
        found = [edge.number for edge in outputs]
        if wanted != found and not self._tracing.offenders:
            raise AssertionError(
                f"the lowering of {eqn.primitive.name} gave dtypes {found}, not {wanted}"
            )

    def _describe_offender(self, eqn: jaxprs.Eqn, reason: str) -> str:
        where = jaxprs.user_location(eqn) or "(no location)"
        scope = f"  (scope '{self._scope}')" if self._scope else ""
        return f"{eqn.primitive.name}  {where}{scope}  {reason}"

    # --- what lowerings use

    @property
    def out_avals(self) -> list[jax.ShapeDtypeStruct]:
        """See `LoweringContext`."""
        return [jaxprs.physical_aval(var.aval) for var in self.eqn.outvars]

    @property
    def key_rank(self) -> int:
        """How many trailing dimensions of the first output hold the data of one key."""
        dtype = self.eqn.outvars[0].aval.dtype
        return len(jaxprs.key_layout(dtype)[1]) if jaxprs.is_key_dtype(dtype) else 0

    def node(self, op: str, *inputs: Any, name: Any = None, **attrs: Any) -> list[Edge]:
        """See `LoweringContext`."""
        base = name or op
        full_name = f"{self._scope}/{base}" if self._scope else base
        return self._container.add_node(op, inputs, attrs, full_name)

    def constant(self, value: Any, dtype: Any = None, *, is_weak: bool = False) -> Edge:
        """See `LoweringContext`."""
        array = np.asarray(value, dtype=dtype)
        if jaxprs.is_float0(array.dtype):
            array = np.zeros(array.shape, np.bool_)
        key = (array.dtype, array.shape, is_weak, array.tobytes())
        edge = self._constants.get(key)
        if edge is None:
            attrs = {"value": array, "dtype": array.dtype}
            if is_weak:
                attrs[_definition.WEAK_TYPE_ATTR] = True
            (edge,) = self._container.add_node("Const", (), attrs, "Const")
            edge.shape = array.shape
            self._constants[key] = edge
        # The caller may set the shape of an edge it returns; hand out a copy.
        return dataclasses.replace(edge)

    def function(self, jaxpr: jaxprs.Jaxpr, name: str) -> str:
        """See `LoweringContext`."""
        tracing = self._tracing
        known = tracing.names_by_jaxpr.get(id(jaxpr))
        if known is None:
            known = lower_function(tracing, jaxpr, name)
            tracing.names_by_jaxpr[id(jaxpr)] = known
            tracing.kept_alive.append(jaxpr)  # so that its id stays its own
        return known

    def call(self, function: str, *inputs: Edge, primitive: str, **params: Any) -> list[Edge]:
        """See `LoweringContext`."""
        attrs = {_definition.PRIMITIVE_ATTR: primitive}
        for name, value in params.items():
            if value is not None:
                attrs[_definition.JAX_ATTR_PREFIX + name] = value
        return self.node(function, *inputs, name=primitive, **attrs)

    def composite(
        self, primitive: str, fn: Callable[..., Any], *inputs: Edge, **params: Any
    ) -> list[Edge]:
        """See `LoweringContext`."""
        specs = [(edge.shape, edge.number) for edge in inputs]
        key = (primitive, str(sorted(params.items())), str(specs))
        name = self._tracing.names_by_key.get(key)
        if name is None:
            avals = [
                jax.ShapeDtypeStruct(shape, dtypes.dtype_from_number(number))
                for shape, number in specs
                if shape is not None
            ]
            name = lower_function(self._tracing, jaxprs.make_jaxpr(fn, avals), primitive)
            self._tracing.names_by_key[key] = name
        return self.call(name, *inputs, primitive=primitive, **params)

    def build_function(
        self,
        name: str,
        inputs: Sequence[Any],
        fill: Callable[[Lowerer, list[Edge]], Sequence[Edge]],
        key: Any = None,
    ) -> str:
        """See `LoweringContext`."""
        tracing = self._tracing
        if key is not None and (name, key) in tracing.names_by_key:
            return tracing.names_by_key[name, key]
        body = nodes.FunctionBody(tracing.target.unique_function_name(name), tracing.library)
        lowerer = Lowerer(tracing, body)
        lowerer.eqn = self.eqn
        arguments = [
            body.add_argument(f"x{index}", dtypes.dtype_to_number(aval.dtype), aval.shape)
            for index, aval in enumerate(inputs)
        ]
        tracing.stage(body.finish(fill(lowerer, arguments)))
        if key is not None:
            tracing.names_by_key[name, key] = body.function.signature.name
        return body.function.signature.name

    def rule_functions(
        self, key: Any, names: Sequence[str], trace_rules: Callable[[], Sequence[jaxprs.Jaxpr]]
    ) -> list[str]:
        """See `LoweringContext`."""
        tracing = self._tracing
        if key in tracing.active_rules:
            return tracing.active_rules[key]
        reserved = [tracing.target.unique_function_name(name) for name in names]
        tracing.active_rules[key] = reserved
        try:
            for jaxpr, name in zip(trace_rules(), reserved, strict=True):
                lower_function(tracing, jaxpr, name, reserved_name=name)
        finally:
            del tracing.active_rules[key]
        return [values.FunctionRef(name) for name in reserved]

    def unsupported(self, reason: str) -> Exception:
        """See `LoweringContext`."""
        return _NoNodeFormError(reason)
