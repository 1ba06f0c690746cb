"""Plans of loops, branches and lists: compiled where they can be, else run op by op.

Some of what a compiled plan takes for granted shows only when it has run: that an index was inside
of its array, and that a loop did not run more often than its lists have places. Such a plan keeps
the variables as they were until that is known. Then it is compiled for longer lists, or run op by
op, which also says what was wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from jaxmeta.execution import compiling, executor, plans
from jaxmeta.execution.dataflow import DataflowPlan
from jaxmeta.execution.queue_resources import Resources, Waiting
from jaxmeta.execution.variable_store import VariableStore
from jaxmeta.ops._cells import Failure, Needed


class SpeculativePlan:
    """A plan that is compiled where it can be.

    Attributes:
        refusal: why it runs op by op; empty as long as it is compiled.
    """

    def __init__(
        self, plan: plans.Plan, library: executor.Library, replan: Callable[[str], plans.Plan]
    ) -> None:
        """Takes a plan.

        Args:
            plan: what to run.
            library: the functions that its steps call.
            replan: returns the same plan as it runs op by op, given the reason.
        """
        self.refusal = plan.refusal
        if plan.is_host and not plan.refusal:
            self.refusal = "there are strings, queues or files among the nodes"
        self._plan, self._library, self._replan = plan, library, replan
        self._dataflow: DataflowPlan | None = None
        self._guesses: dict[str, int] = {}
        self._keys: list[Any] = []
        self._compiled: compiling.Compiled | None = None
        self._call: compiling.StoredCall | None = None

    def run(
        self, values: Sequence[Any], store: VariableStore, resources: Resources, waiting: Waiting
    ) -> list[Any]:
        """Runs the plan and returns the results.

        Raises:
            OperationError: a step failed on the values that it was given.
        """
        refusal = self.refusal
        if not refusal:
            with store.lock:
                try:
                    if not self._fits(store):
                        self._compile(values, store)
                except Exception as error:  # whatever it is, running op by op says what is wrong
                    refusal = f"{type(error).__name__}: {error}"
                else:
                    results = self._run_compiled(values, store)
                    if not isinstance(results, str):
                        return results
                    refusal = results
        results = self._run_op_by_op(values, store, resources, waiting, refusal)
        self.refusal = refusal
        return results

    def _run_op_by_op(
        self,
        values: Sequence[Any],
        store: VariableStore,
        resources: Resources,
        waiting: Waiting,
        refusal: str,
    ) -> list[Any]:
        if self._dataflow is None:
            plan = self._plan if self._plan.refusal else self._replan(refusal)
            self._dataflow = DataflowPlan(plan, self._library)
        return self._dataflow.run(values, store, resources, waiting)

    # --- compiled

    def _fits(self, store: VariableStore) -> bool:
        if self._call is not None:
            return self._call.fits()
        return self._compiled is not None and self._compiled.fits(store.peek())

    def _compile(self, values: Sequence[Any], store: VariableStore) -> None:
        keys: list[Any] = []

        def body(given: Sequence[Any], state: plans.State) -> list[Any]:
            results = self._plan.run(given, state)
            keys[:] = [key for key in state.cells if isinstance(key, (Failure, Needed))]
            return [*results, *(jnp.asarray(state.cells[key]) for key in keys)]

        self._compiled = compiling.compile_body(
            body, store.peek(), values, donates=lambda: not keys, guesses=self._guesses
        )
        self._keys = list(keys)
        self._call = None if keys else compiling.StoredCall(self._compiled, store)

    def _run_compiled(self, values: Sequence[Any], store: VariableStore) -> list[Any] | str:
        """Returns the results, or what failed that has to run op by op to say more."""
        while True:
            if self._call is not None:
                return self._call(list(values))
            compiled = self._compiled
            assert compiled is not None
            held = store.peek()
            written = [held[name] for name in compiled.written]
            others = [held[name] for name in compiled.read]
            results, new = compiled.run(written, others, list(values))
            count = len(results) - len(self._keys)
            reports = dict(zip(self._keys, results[count:], strict=True))
            failed = [key for key in reports if isinstance(key, Failure) and reports[key]]
            if failed:
                return f"an operation failed in a compiled run: {failed[0].message}"
            if not self._grow(reports):
                store.adopt(dict(zip(compiled.updated, new, strict=True)))
                return results[:count]
            self._compile(values, store)

    def _grow(self, reports: dict[Any, Any]) -> bool:
        """Returns whether loops ran more often than they had places for; there will be enough."""
        grew = False
        for key, count in reports.items():
            if isinstance(key, Needed) and int(count) > self._guesses[key.loop]:
                self._guesses[key.loop] = 1 << (int(count) - 1).bit_length()
                grew = True
        return grew
