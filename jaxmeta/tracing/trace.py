"""From a jaxpr to nodes: each eqn becomes one node, each nested jaxpr a library function.

A primitive that one TensorFlow op says exactly becomes that op; any other becomes a call of a
library function whose body says it in TensorFlow ops, and whose call node carries the primitive's
name and parameters, so that reading takes the primitive itself back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import jax
import numpy as np

from jaxmeta import dtypes, errors, naming, shardings, values
from jaxmeta.graphs import nodes
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops import _definition, _not_lowered, custom_calls
from jaxmeta.ops import sharding as sharding_ops
from jaxmeta.tracing import dimension_nodes, dimensions, discharging, jaxprs, meshes
from jaxmeta.tracing.staged_functions import Rule
from jaxmeta.tracing.staged_functions import Tracing as Tracing

# XLA sees through the sizes that a loop or branch is given, as it does through those of a call.
_PROPAGATE_CONSTANTS_ATTR: Final = "_xla_propagate_compile_time_consts"
_NO_TYPE: Final = 0  # TensorFlow's DT_INVALID: of what an eqn without a node form returns
# Refuses to expand a custom derivative rule that expands itself under ever new names.
_MAX_FUNCTION_DEPTH: Final = 200
# So often a custom derivative rule is saved of what its own rule makes, where that gets no smaller:
# the adjoint of an ODE, for instance, is solved as a larger ODE.
_MAX_GROWING_RULES: Final = 3


class _NoNodeFormError(Exception):
    """An eqn cannot be expressed; carries the reason."""


def lower_function(
    tracing: Tracing,
    jaxpr: jaxprs.Jaxpr,
    name: str,
    argument_names: Sequence[str] | None = None,
    constants: Sequence[Edge] | None = None,
    reserved_name: str = "",
    *,
    takes_sizes: bool | None = None,
    returns_sizes: bool = False,
) -> str:
    """Returns the name of the library function that holds a jaxpr.

    The sizes of symbolic dimensions follow from the arguments' shapes in the function that is
    traced first, the entry point; any other takes them as leading arguments.

    Args:
        tracing: the trace it belongs to.
        jaxpr: closed or open; the constants it holds become Const nodes, unless given.
        name: wanted name, made unique.
        argument_names: names for the arguments.
        constants: where given, the jaxpr's constants become leading arguments like these edges.
        reserved_name: the name itself, where it was made unique already.
        takes_sizes: whether it takes the sizes of all symbolic dimensions; by default where the
            jaxpr has any.
        returns_sizes: whether it returns them too, ahead of its results.
    """
    tracing.depth += 1
    is_entry = tracing.depth == 1
    if tracing.depth > _MAX_FUNCTION_DEPTH:
        raise errors.UnsupportedPrimitiveError(
            f"functions nest more than {_MAX_FUNCTION_DEPTH} deep at {name!r}; "
            "a custom derivative rule that never ends does this"
        )
    final_name = reserved_name or tracing.target.unique_function_name(name)
    body = nodes.FunctionBody(final_name, tracing.library)
    lowerer = Lowerer(tracing, body)
    opened = jaxprs.open_jaxpr(jaxpr)
    sizes: list[Edge] = []
    if is_entry:
        _check_entry(tracing, opened)
        shapes = [jaxprs.physical_aval(var.aval).shape for var in opened.invars]
        tracing.dimensions = dimensions.names_of(size for shape in shapes for size in shape)
    elif tracing.is_symbolic(jaxpr) if takes_sizes is None else takes_sizes:
        sizes = lowerer.take_sizes(body)
    if constants is None:
        leading = [
            lowerer.constant(value, is_weak=jaxprs.is_weak(value))
            for value in jaxprs.jaxpr_constants(jaxpr)
        ]
    else:
        leading = [body.add_argument("constant", e.number, e.shape) for e in constants]
    arguments = _add_arguments(body, opened, argument_names)
    if is_entry and tracing.dimensions:
        lowerer.derive_sizes(arguments)
    outputs = lowerer.lower(opened, leading, arguments)
    tracing.stage(body.finish([*sizes, *outputs] if returns_sizes else outputs))
    tracing.depth -= 1
    return body.function.signature.name


def _add_arguments(
    body: nodes.FunctionBody, jaxpr: jaxprs.Jaxpr, names: Sequence[str] | None
) -> list[Edge]:
    """Adds an argument for each input of an open jaxpr; typed keys are their uint32 data."""
    arguments = []
    for index, var in enumerate(jaxpr.invars):
        aval = var.aval
        impl = jaxprs.key_layout(aval.dtype)[0] if jaxprs.is_key_dtype(aval.dtype) else ""
        physical = jaxprs.physical_aval(aval)
        wanted = names[index] if names else f"x{index}"
        number = dtypes.dtype_to_number(physical.dtype)
        arguments.append(body.add_argument(wanted, number, physical.shape, impl))
    return arguments


def _depends_on_weakness(eqn: jaxprs.Eqn) -> bool:
    """Returns whether it matters that a literal's type is weak; most often it does not."""
    return any(jaxprs.is_weak(var.aval) for var in eqn.outvars) or any(jaxprs.subjaxprs(eqn))


def _has_scales(eqn: jaxprs.Eqn) -> bool:
    return any(
        dtypes.is_scale(getattr(atom.aval, "dtype", None)) for atom in (*eqn.invars, *eqn.outvars)
    )


def _check_entry(tracing: Tracing, jaxpr: jaxprs.Jaxpr) -> None:
    """Notes what a function cannot take or return, though it may be inside of it."""
    for kind, atoms in (("argument", jaxpr.invars), ("result", jaxpr.outvars)):
        for index, atom in enumerate(atoms):
            if jaxprs.is_token(atom.aval) or dtypes.is_scale(atom.aval.dtype):
                offender = f"{kind} {index} is a {atom.aval}, which TensorFlow has not"
                tracing.offenders[offender] = None


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
        self._sizes = dimension_nodes.DimensionNodes(container, self.constant)
        self._scope = ""
        self._context: dict[str, Any] = {}
        self.eqn: jaxprs.Eqn = None
        self.jaxpr: jaxprs.Jaxpr = None

    # --- sizes of symbolic dimensions

    def enter(self, arguments: Sequence[Edge]) -> None:
        """Makes the container the entry point of the trace, which finds all sizes in arguments."""
        self._tracing.depth = 1
        sizes_ = [size for edge in arguments for size in edge.shape or ()]
        self._tracing.dimensions = dimensions.names_of(sizes_)
        if self._tracing.dimensions:
            self.derive_sizes(arguments)

    def take_sizes(self, body: nodes.FunctionBody) -> list[Edge]:
        """Adds the leading arguments of a function that are the sizes of dimensions."""
        names = self._tracing.dimensions
        edges = [body.add_argument(n, dimension_nodes.INT32, (), dimension=n) for n in names]
        self._sizes.add_sizes(dict(zip(names, edges, strict=True)))
        self._tracing.sized.add(body.function.signature.name)
        return edges

    def derive_sizes(self, arguments: Sequence[Edge]) -> None:
        """Finds the dimensions in the shapes of arguments."""
        shapes = [tuple(map(str, edge.shape or ())) for edge in arguments]
        self._sizes.add_sources(dimensions.sources(shapes), arguments)

    def size_operands(
        self, *jaxprs_: jaxprs.Jaxpr, needed: bool = False
    ) -> tuple[list[Edge], dict[str, Any]]:
        """See `LoweringContext`."""
        if not (needed or any(map(self._tracing.is_symbolic, jaxprs_))):
            return [], {}
        names = self._tracing.dimensions
        attrs = {dimension_nodes.DIMENSIONS_ATTR: names, _PROPAGATE_CONSTANTS_ATTR: True}
        return list(map(self._sizes.named, names)), attrs

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
            self._context = shardings.context_to_attrs(meshes.context_mesh(eqn), self._tracing.mesh)
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
            if eqn.primitive.name not in _not_lowered.TAKES_SCALES and _has_scales(eqn):
                raise _NoNodeFormError(_not_lowered.NO_SCALES)
            if any(map(jaxprs.is_reference, (*eqn.invars, *eqn.outvars))):
                raise _NoNodeFormError(_not_lowered.MUTABLE)
            try:
                if meshes.has_explicit_sharding(eqn):
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
            reason = str(error)
            if self._tracing.carries and not _not_lowered.runs_python(eqn.primitive.name):
                try:
                    return custom_calls.carry(self, inputs, self._tracing.carries)
                except _NoNodeFormError as also:
                    reason = f"{reason}; {also}"
            self._tracing.offenders[self._describe_offender(eqn, reason)] = None
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
        if op in self._tracing.sized:
            names = self._tracing.dimensions
            inputs = (*map(self._sizes.named, names), *inputs)
            attrs[dimension_nodes.DIMENSIONS_ATTR] = names
        base = name or op
        full_name = f"{self._scope}/{base}" if self._scope else base
        return self._container.add_node(op, inputs, {**attrs, **self._context}, full_name)

    def constant(self, value: Any, dtype: Any = None, *, is_weak: bool = False) -> Edge:
        """See `LoweringContext`."""
        if self._tracing.dimensions and dimensions.is_symbolic(value):
            return self._sizes.array(value, dtype)
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

    def function(
        self,
        jaxpr: jaxprs.Jaxpr,
        name: str,
        *,
        takes_sizes: bool | None = None,
        returns_sizes: bool = False,
    ) -> str:
        """See `LoweringContext`."""
        tracing = self._tracing
        if takes_sizes is None:
            takes_sizes = tracing.is_symbolic(jaxpr)
        key = id(jaxpr), takes_sizes, returns_sizes
        known = tracing.names_by_jaxpr.get(key)
        if known is None:
            known = lower_function(
                tracing, jaxpr, name, takes_sizes=takes_sizes, returns_sizes=returns_sizes
            )
            tracing.names_by_jaxpr[key] = known
            tracing.kept_alive.append(jaxpr)  # so that its id stays its own
        return known

    def call(self, function: str, *inputs: Edge, primitive: str, **params: Any) -> list[Edge]:
        """See `LoweringContext`."""
        attrs: dict[str, Any] = {_definition.PRIMITIVE_ATTR: primitive}
        symbolic = []
        for name, value in params.items():
            if self._tracing.dimensions and dimensions.is_symbolic(value):
                symbolic.append(name)
                value = list(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            if value is not None:
                attrs[nodes.JAX_ATTR_PREFIX + name] = value
        if symbolic:
            attrs[_definition.SYMBOLIC_ATTR] = symbolic
        self._check_sizes(function, symbolic, params.values())
        return self.node(function, *inputs, name=primitive, **attrs)

    def _check_sizes(self, function: str, symbolic: list[str], params: Iterable[Any]) -> None:
        """Raises where reading a call needs the sizes of dimensions, which the function has not."""
        sized = self._tracing.sized
        if function not in sized and (
            symbolic or any(isinstance(p, values.FunctionRef) and p in sized for p in params)
        ):
            raise _NoNodeFormError("its symbolic dimensions are not those of what it is given")

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
        *,
        takes_sizes: bool | None = None,
    ) -> str:
        """See `LoweringContext`."""
        tracing = self._tracing
        if takes_sizes is None:
            shapes = [aval.shape for aval in inputs]
            takes_sizes = dimensions.is_symbolic(shapes) or dimensions.is_symbolic(key)
        if key is not None and (name, key) in tracing.names_by_key:
            return tracing.names_by_key[name, key]
        body = nodes.FunctionBody(tracing.target.unique_function_name(name), tracing.library)
        lowerer = Lowerer(tracing, body)
        lowerer.eqn = self.eqn
        if takes_sizes:
            lowerer.take_sizes(body)
        arguments = [
            body.add_argument(f"x{index}", dtypes.dtype_to_number(aval.dtype), aval.shape)
            for index, aval in enumerate(inputs)
        ]
        tracing.stage(body.finish(fill(lowerer, arguments)))
        if key is not None:
            tracing.names_by_key[name, key] = body.function.signature.name
        return body.function.signature.name

    def rule_functions(
        self, source: str, size: int, names: Sequence[str], rules: Sequence[jaxprs.Jaxpr]
    ) -> list[str]:
        """See `LoweringContext`."""
        tracing = self._tracing
        rule = Rule(source, size, rules)
        outer = [active for active in tracing.derivative_rules if active.source == source]
        saved = tracing.saved_rules.setdefault(source, [])
        for known in (*outer, *saved):
            if known.fingerprints == rule.fingerprints:
                return list(map(str, known.names)) if known in outer else known.names
        if sum(active.size <= size for active in outer) >= _MAX_GROWING_RULES:
            tracing.num_cut += 1
            return []
        rule.names = [values.FunctionRef(tracing.target.unique_function_name(n)) for n in names]
        num_cut = tracing.num_cut
        tracing.derivative_rules.append(rule)
        try:
            for jaxpr, name in zip(rules, rule.names, strict=True):
                plain = discharging.without_refs(jaxpr)
                lower_function(tracing, plain, name, reserved_name=str(name))
        finally:
            tracing.derivative_rules.pop()
        if tracing.num_cut == num_cut:  # else it is shorter than where it is met first
            saved.append(rule)
        return rule.names

    def separate_functions(
        self, key: tuple[str, Any], jaxprs: Mapping[str, jaxprs.Jaxpr], *, most_nested: int
    ) -> tuple[dict[str, str], dict[str, str]]:
        """See `LoweringContext`."""
        tracing = self._tracing
        if key in tracing.active_rules:
            return dict(zip(jaxprs, tracing.active_rules[key], strict=True)), {}
        nested = sum(isinstance(k, tuple) and k[1:] == key[1:] for k in tracing.active_rules)
        if nested >= most_nested:
            return {}, dict.fromkeys(jaxprs, f"it is more than {most_nested} deep in itself")
        reserved = [tracing.target.unique_function_name(name) for name in jaxprs]
        tracing.active_rules[key] = reserved
        made: dict[str, str] = {}
        refused: dict[str, str] = {}
        try:
            for (name, jaxpr), final_name in zip(jaxprs.items(), reserved, strict=True):
                own = tracing.apart()
                try:
                    plain = discharging.without_refs(jaxpr)
                    lower_function(own, plain, final_name, reserved_name=final_name)
                except errors.JaxmetaError as error:
                    own.offenders[str(error)] = None
                if own.offenders:
                    refused[name] = "; ".join(own.offenders)
                else:
                    tracing.join(own)
                    made[name] = values.FunctionRef(final_name)
        finally:
            del tracing.active_rules[key]
        return made, refused

    def unsupported(self, reason: str) -> Exception:
        """See `LoweringContext`."""
        return _NoNodeFormError(reason)
