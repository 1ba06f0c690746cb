"""Session: runs tensors and operations of a graph by name, holding the variables' values."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import jax
import numpy as np

from jaxmeta import errors, naming, program, state_values
from jaxmeta.execution import (
    compiling,
    executor,
    feed_checks,
    feed_values,
    fetches,
    plans,
    segments,
    speculating,
)
from jaxmeta.execution.queue_resources import Resources
from jaxmeta.execution.variable_store import VariableStore
from jaxmeta.graphs import building, default_sessions, inlining
from jaxmeta.graphs.graph import Tensor

_ARRAYS: Final = (jax.Array, np.ndarray)
_Runner: TypeAlias = Callable[[list[Any], Any], list[Any]]
"""Takes the fed values and the options of a run; returns the values of its single fetches."""


@dataclasses.dataclass(slots=True)
class _Prepared:
    """What was worked out for one choice of fetches and feeds.

    Attributes:
        names: of the single fetches.
        rebuild: puts their values in place.
        is_list: whether the fetches are a flat list, whose values are the result as they are.
        feed_names: of the fed tensors.
        runners: by the shapes and dtypes of the fed values.
    """

    names: tuple[str, ...]
    rebuild: fetches.Rebuild
    is_list: bool
    feed_names: tuple[str, ...]
    runners: dict[Any, _Runner] = dataclasses.field(default_factory=dict)


class Session:
    """Runs parts of a graph on values for its variables.

    Each choice of fetches and feeds is compiled once; variables that it writes are donated. Several
    threads may use one session: what they run follows one another, but for what waits for a queue.

    Args:
        target: there for TensorFlow's order of arguments: empty, or the graph.
        graph: the graph; the default graph where None.
        config: an object whose ``operation_timeout_in_ms`` limits how long a run waits for a queue;
            the rest of TensorFlow's ConfigProto has no meaning here.
        allow_files: whether operations of the graph may read and write files: allow it for graphs
            you trust. Without it, `FileAccessError` is raised where one would.

    Attributes:
        graph: the graph.
        values: the variables' values by name; a mapping that may be written too.

    Example:
        >>> import jax.numpy as jnp
        >>> g = building.Graph()
        >>> w = g.variables({"w": jnp.ones((3, 2))})
        >>> _ = g.add_signature("predict", lambda v, x: x @ v["w"], w, jnp.ones((4, 3)))
        >>> with Session(graph=g) as sess:
        ...     sess.state = {"w": jnp.ones((3, 2))}
        ...     sess.run("predict:0", feed_dict={"x:0": jnp.ones((4, 3))}).shape
        (4, 2)
    """

    def __init__(
        self,
        target: str | building.Graph = "",
        graph: building.Graph | None = None,
        config: Any = None,
        *,
        allow_files: bool = False,
    ) -> None:
        if isinstance(target, building.Graph) and graph is None:
            graph = target
        elif target:
            raise errors.SessionError(
                f"there is no other machine to run on: the target must be empty, not {target!r}; "
                "use jax.distributed and shardings"
            )
        self.graph = graph if graph is not None else building.get_default_graph()
        self.values = VariableStore(self.graph.constants, self._storage_name)
        self._config = config
        self._resources = Resources(allow_files=allow_files)
        self._prepared: dict[Any, _Prepared] = {}
        self._speculative: dict[tuple[str, ...], speculating.SpeculativePlan] = {}
        self._library = executor.Library(self.graph.functions, gradients=self.graph.gradients)
        self._entered: list[contextlib.ExitStack] = []
        self._is_closed = False

    # --- as the default

    def __enter__(self) -> Self:
        """Makes the session and its graph the default ones of this thread."""
        stack = contextlib.ExitStack()
        stack.enter_context(self.graph.as_default())
        stack.enter_context(default_sessions.entered(self))
        self._entered.append(stack)
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered.pop().close()
        self.close()

    def as_default(self) -> contextlib.AbstractContextManager[Self]:
        """Makes the session the default one within a ``with`` block, which does not close it."""
        return default_sessions.entered(self)

    def close(self) -> None:
        """Lets go of the variables' values and cancels runs that wait."""
        self._is_closed = True
        self._resources.close()
        self.values.clear()
        self._prepared.clear()

    def _storage_name(self, name: str) -> str:
        """Returns the name under which a variable's handle finds its value."""
        node = self.graph.nodes.get(name)
        if node is None or "shared_name" not in node.attr:
            return name
        return node.attr["shared_name"].s.decode() or name

    @property
    def op_by_op(self) -> dict[tuple[str, ...], str]:
        """Why runs are not compiled but run op by op, by the names of what they fetched.

        Loops, branches and lists of graphs that TensorFlow wrote are compiled where they can be.
        """
        return {names: p.refusal for names, p in self._speculative.items() if p.refusal}

    # --- state

    @property
    def state(self) -> Any:
        """The variables as the tree that `Graph.variables` was given, in plain containers.

        What is assigned to it is such a tree of new values. Reading it gives arrays that later runs
        leave as they are.

        Raises:
            CheckpointError: leaves, shapes or dtypes are not the variables'; all are listed.
        """
        return program.Program(self.graph, self._logical_values()).state

    @state.setter
    def state(self, state: Any) -> None:
        self.set_state(state)

    def _logical_values(self) -> dict[str, Any]:
        return {
            name: state_values.logical_value(self.values[name], self.graph.variable(name))
            for name in self.graph.variable_names
            if name in self.values
        }

    def set_state(self, state: Any) -> None:
        """Gives the variables the values in a tree of the form that `Graph.variables` was given.

        Raises:
            CheckpointError: leaves, shapes or dtypes are not the variables'; all are listed.
        """
        values = state_values.physical_values(self.graph, state)
        # Copies, because running donates what the session holds.
        self.values.adopt({name: jax.numpy.copy(value) for name, value in values.items()})

    # --- running

    def run(
        self,
        fetches: Any,
        feed_dict: Mapping[Any, Any] | None = None,
        options: Any = None,
        run_metadata: Any = None,
    ) -> Any:
        """Returns the values of the fetches, in their structure.

        Where it raises, the variables have the values that they had before.

        Args:
            fetches: a tensor, operation, variable or name, or nested lists, tuples, namedtuples,
                dicts and dataclasses of these. An operation's value is None, a variable's its value
                before the run. A name may lie inside a function that the graph calls:
                ``train_step/Dense_0/MatMul:0``.
            feed_dict: values for tensors, variables or their names: placeholders and any other.
            options: an object whose ``timeout_in_ms`` limits how long the run waits for a queue.
            run_metadata: there for TensorFlow's order of arguments; left as it is.

        Raises:
            SessionError: the session is closed.
            GraphError: a name is unknown, or a variable has no value.
            FeedError: a feed is unknown or missing, or does not fit.
            OperationError: an operation failed on the values that it was given.
            FileAccessError: an operation would use files, which the session does not allow.
        """
        del run_metadata
        if feed_dict:
            keys, given = tuple(feed_dict), list(feed_dict.values())
        else:
            keys, given = (), []
        try:
            key: Any = (tuple(fetches) if type(fetches) is list else (fetches,), keys)
            prepared = self._prepared.get((type(fetches), key))
        except TypeError:  # a nested list, or a dict
            key = prepared = None
        if prepared is None:
            prepared = self._prepare(fetches, keys, key)
        return self._run(prepared, given, options)

    def make_callable(
        self, fetches: Any, feed_list: Sequence[Any] | None = None, accept_options: bool = False
    ) -> Callable[..., Any]:
        """Returns a function that runs the fetches; it takes the values of ``feed_list`` in order.

        Args:
            fetches: see `run`.
            feed_list: tensors or their names.
            accept_options: whether the function also takes ``options`` and ``run_metadata``.

        Raises:
            GraphError, FeedError: see `run`.
        """
        feeds = tuple(feed_list or ())
        prepared = self._prepare(fetches, feeds, None)

        def call(*values: Any, options: Any = None, run_metadata: Any = None) -> Any:
            del run_metadata
            if len(values) != len(feeds):
                raise errors.FeedError(
                    f"the callable takes {len(feeds)} values, {list(prepared.feed_names)}; it was "
                    f"given {len(values)}"
                )
            return self._run(prepared, list(values), options)

        return call if accept_options else lambda *values: call(*values)

    def partial_run(
        self, handle: Any, fetches: Any, feed_dict: Mapping[Any, Any] | None = None
    ) -> Any:
        """Raises UnsupportedOpError: a run is one compiled function, with no middle to stop in."""
        del handle, fetches, feed_dict
        raise errors.UnsupportedOpError(
            "partial runs are not supported: fetch what the first part computes, and feed it to "
            "the second run; any tensor may be fed"
        )

    def partial_run_setup(self, fetches: Any, feeds: Sequence[Any] | None = None) -> Any:
        """Raises UnsupportedOpError; see `partial_run`."""
        return self.partial_run(None, fetches, dict.fromkeys(feeds or ()))

    def _run(self, prepared: _Prepared, given: list[Any], options: Any) -> Any:
        shapes = []
        for index, value in enumerate(given):
            if not isinstance(value, _ARRAYS):
                name = prepared.feed_names[index]
                value = given[index] = feed_values.as_array(name, value, self._tensor)
            shapes.append((value.shape, value.dtype))
        key = tuple(shapes)
        runner = prepared.runners.get(key)
        if runner is None:
            runner = prepared.runners[key] = self._make_runner(prepared, given)
        values = runner(given, options)
        return values if prepared.is_list else prepared.rebuild(iter(values))

    # --- preparing

    def _prepare(self, asked: Any, keys: Sequence[Any], key: Any) -> _Prepared:
        """Works out the names of fetches and feeds, and remembers them where there is a key."""
        if self._is_closed:
            raise errors.SessionError("the session is closed")
        leaves, rebuild = fetches.flatten_fetches(asked)
        for part in (*leaves, *keys):
            if getattr(part, "graph", self.graph) is not self.graph:
                raise errors.GraphError(f"{part!r} is not an element of the session's graph")
        names = tuple(fetches.fetch_name(leaf) for leaf in leaves)
        feeds = self._resolve_feeds([fetches.fetch_name(feed) for feed in keys])
        if len(set(feeds)) != len(feeds):
            raise errors.FeedError(f"the feeds name a tensor twice: {sorted(feeds)}")
        is_list = type(asked) is list and len(asked) == len(leaves)
        is_list = is_list and not any(isinstance(item, (list, tuple, Mapping)) for item in asked)
        prepared = _Prepared(names, rebuild, is_list, feeds)
        if key is not None:
            self._prepared[type(asked), key] = prepared
        return prepared

    def _make_runner(self, prepared: _Prepared, given: Sequence[Any]) -> _Runner:
        """Returns what runs feeds of these shapes and dtypes.

        Feeds of another precision than their tensors are cast, as TensorFlow casts them.
        """
        casts = feed_values.casts(map(self._tensor, prepared.feed_names), given)
        if not casts:
            return self._make_exact_runner(prepared, given)

        def cast(values: Sequence[Any]) -> list[Any]:
            return [v.astype(casts[i]) if i in casts else v for i, v in enumerate(values)]

        run = self._make_exact_runner(prepared, cast(given))
        return lambda values, options: run(cast(values), options)

    def _make_exact_runner(self, prepared: _Prepared, given: Sequence[Any]) -> _Runner:
        fetched = [self._resolve_fetch(name) for name in prepared.names]
        self._check_feeds(prepared.feed_names, given)
        tensors = [name for name in fetched if ":" in name]
        operations = [name for name in fetched if ":" not in name]
        feeds = list(prepared.feed_names)
        nodes = inlining.inline_calls(self.graph, [*fetched, *feeds])
        plan = executor.plan_graph(nodes, self._library, feeds, tensors, operations)
        if plan.is_host and not plan.may_need_values and self._library.has_host_functions:
            # So that what else these functions compute is compiled.
            holds = self._library.calls_on_host
            nodes = inlining.inline_calls_that(self.graph, nodes, fetched, holds)
            plan = executor.plan_graph(nodes, self._library, feeds, tensors, operations)
        make_plan = functools.partial(
            executor.plan_graph, nodes, self._library, feeds, tensors, operations
        )
        strings = [i for i, value in enumerate(given) if value.dtype.kind in "OSU"]
        if plan.may_need_values:
            if strings and not plan.refusal:
                plan = make_plan("strings are fed")
            speculative = speculating.SpeculativePlan(plan, self._library, make_plan)
            self._speculative[prepared.names] = speculative
            return self._host_runner(speculative, fetched, strings)
        if plan.is_host or strings:
            segmented = segments.SegmentedPlan(plan, self._library, strings)
            return self._host_runner(segmented, fetched, strings)
        return self._device_runner(plan, fetched)

    def _device_runner(self, plan: plans.Plan, fetched: Sequence[str]) -> _Runner:
        store = self.values

        def body(values: Sequence[Any], state: plans.State) -> list[Any]:
            return _in_places(plan.run(values, state), fetched)

        call: compiling.StoredCall | None = None

        def run(values: list[Any], options: Any) -> list[Any]:
            nonlocal call
            del options
            with store.lock:
                if call is None or not call.fits():
                    compiled = compiling.compile_body(body, store.peek(), values)
                    call = compiling.StoredCall(compiled, store)
                return call(values)

        return run

    def _host_runner(
        self,
        plan: segments.SegmentedPlan | speculating.SpeculativePlan,
        fetched: Sequence[str],
        strings: Sequence[int],
    ) -> _Runner:
        def run(values: list[Any], options: Any) -> list[Any]:
            for index in strings:
                values[index] = feed_values.as_bytes(values[index])
            limit = getattr(options, "timeout_in_ms", 0)
            limit = limit or getattr(self._config, "operation_timeout_in_ms", 0)
            waiting = self._resources.waiting(limit)
            results = plan.run(values, self.values, self._resources, waiting)
            return _in_places([_plain_string(value) for value in results], fetched)

        return run

    def _resolve_fetch(self, name: str) -> str:
        """Returns the name of a tensor, or of an operation."""
        target = self.graph
        if ":" not in name:
            if name in target.nodes:
                return name
            inner = inlining.find_operation(target, name)
            return inner if inner else target.get_operation_by_name(name).name
        node = name.split(":")[0]
        if node in target.variable_names:
            return target.variable(node).snapshot_name
        return self._tensor(name).name

    def _resolve_feeds(self, names: Sequence[str]) -> tuple[str, ...]:
        """Returns the names of the tensors that feeds replace.

        Raises:
            FeedTypeError: some are no tensors, for which TensorFlow raises TypeError; lists all.
        """
        resolved, bad = [], []
        for name in names:
            node = name.split(":")[0]
            try:
                if ":" in name and node in self.graph.variable_names:
                    variable = self.graph.variable(node)
                    # All that reads a reference reads what is fed; of a resource, only this node.
                    name = variable.snapshot_name if variable.is_resource else variable.name
                resolved.append(self._tensor(name).name)
            except errors.GraphError as error:
                bad.append(str(error))
        if bad:
            raise errors.FeedTypeError(errors.list_offenders("these feeds do not fit:", bad))
        return tuple(resolved)

    def _tensor(self, name: str) -> Tensor | inlining.InnerTensor:
        """Returns a tensor of the graph, or of a function that it calls."""
        parsed = naming.parse_tensor_name(name)
        if parsed.node not in self.graph.nodes:
            inner = inlining.find_tensor(self.graph, name)
            if inner is not None:
                return inner
        return self.graph.get_tensor_by_name(name)

    def _check_feeds(self, names: Sequence[str], values: Sequence[Any]) -> None:
        """Raises FeedError where a feed does not fit its tensor; lists all."""
        bad = feed_checks.faults(self.graph, list(map(self._tensor, names)), values)
        if bad:
            raise errors.FeedError(errors.list_offenders("these feeds do not fit:", bad))


class InteractiveSession(Session):
    """A session that is the default one, with its graph, from when it is made until it is closed.

    Example:
        >>> import jax.numpy as jnp
        >>> g = building.Graph()
        >>> _ = g.add_signature("double", lambda x: x * 2, jnp.ones(3))
        >>> sess = InteractiveSession(graph=g)
        >>> sess is default_sessions.get_default_session()
        True
        >>> sess.close()
    """

    def __init__(
        self,
        target: str | building.Graph = "",
        graph: building.Graph | None = None,
        config: Any = None,
        *,
        allow_files: bool = False,
    ) -> None:
        super().__init__(target, graph, config, allow_files=allow_files)
        self._default_graph = contextlib.ExitStack()
        self._default_graph.enter_context(self.graph.as_default())
        default_sessions.push(self)

    def close(self) -> None:
        """Closes the session; the one before it is the default one again."""
        if not self._is_closed:
            default_sessions.remove(self)
            self._default_graph.close()
        super().close()


def _in_places(values: Sequence[Any], fetched: Sequence[str]) -> list[Any]:
    """Returns the tensors' values with None at the places of operations."""
    if len(values) == len(fetched):
        return list(values)
    items = iter(values)
    return [next(items) if ":" in name else None for name in fetched]


def _plain_string(value: Any) -> Any:
    """Returns a string scalar as bytes, as TensorFlow does; other values as they are."""
    is_scalar = isinstance(value, np.ndarray) and value.dtype == object and not value.ndim
    return value.item() if is_scalar else value


def get_default_session() -> Session | None:
    """Returns the session of the innermost ``with`` block of this thread, or None."""
    session: Session | None = default_sessions.get_default_session()
    return session
