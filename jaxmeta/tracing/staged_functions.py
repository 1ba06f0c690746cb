"""The functions that one trace adds to a graph: staged, and added once all of it succeeded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import jax

from jaxmeta import errors
from jaxmeta._proto import graph_pb2
from jaxmeta.graphs import graph
from jaxmeta.tracing import jaxprs

_ADVICE: Final = (
    "Replace them in the traced function; the primitives that have a node form are listed in "
    "docs/ops.md."
)


@dataclasses.dataclass(slots=True)
class Tracing:
    """What one trace shares between the bodies it fills.

    Functions are staged here and reach the graph only when the whole trace succeeded.
    """

    target: graph.GraphBuilder
    library: dict[str, graph_pb2.FunctionDef]
    staged: list[graph_pb2.FunctionDef] = dataclasses.field(default_factory=list)
    names_by_jaxpr: dict[tuple[int, bool, bool], str] = dataclasses.field(default_factory=dict)
    names_by_key: dict[Any, str] = dataclasses.field(default_factory=dict)
    kept_alive: list[Any] = dataclasses.field(default_factory=list)
    offenders: dict[str, None] = dataclasses.field(default_factory=dict)
    active_rules: dict[Any, list[str]] = dataclasses.field(default_factory=dict)
    depth: int = 0
    dimensions: tuple[str, ...] = ()
    """The symbolic dimensions of the entry point."""
    sized: set[str] = dataclasses.field(default_factory=set)
    """The functions that take the sizes of all of them."""
    is_symbolic_by_jaxpr: dict[int, bool] = dataclasses.field(default_factory=dict)
    carries: tuple[str, ...] = ()
    mesh: Any = dataclasses.field(default_factory=jax.sharding.get_abstract_mesh)
    """In whose context the entry point is traced."""

    @classmethod
    def into(cls, target: graph.GraphBuilder, carries: Sequence[str] = ()) -> Tracing:
        """Returns a new trace whose functions will be added to a graph.

        Args:
            target: the graph.
            carries: for which platforms an eqn without a node form is carried as a module.
        """
        return cls(target, dict(target.functions), carries=tuple(carries))

    def apart(self) -> Tracing:
        """Returns a trace into the same graph, of functions with dimensions of their own."""
        return dataclasses.replace(
            self,
            library=dict(self.library),
            staged=[],
            names_by_jaxpr={},
            names_by_key={},
            offenders={},
            depth=0,
            dimensions=(),
            sized=set(),
            is_symbolic_by_jaxpr={},
        )

    def join(self, other: Tracing) -> None:
        """Takes the functions of another trace."""
        for function in other.staged:
            self.stage(function)

    def stage(self, function: graph_pb2.FunctionDef) -> None:
        """Makes a function known to the bodies of this trace."""
        self.library[function.signature.name] = function
        self.staged.append(function)

    def is_symbolic(self, jaxpr: jaxprs.Jaxpr) -> bool:
        """Returns whether a jaxpr has symbolic dimensions."""
        if not self.dimensions:
            return False
        known = self.is_symbolic_by_jaxpr.get(id(jaxpr))
        if known is None:
            known = self.is_symbolic_by_jaxpr[id(jaxpr)] = jaxprs.is_symbolic(jaxpr)
            self.kept_alive.append(jaxpr)
        return known

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
