"""Session: runs tensors and operations of a graph by name, holding the variables' values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

from jaxmeta import building, dtypes, errors, executor, graph, naming, ordering, pausing, program
from jaxmeta.graph import Operation, Tensor, Variable


@dataclasses.dataclass(frozen=True, slots=True)
class _Compiled:
    """A jitted function for one choice of fetches and feeds.

    Attributes:
        run: (values of variables that are written, of the others, feeds) to (values, new values).
        written, read: names of the variables.
        updated: names of the variables that get the new values.
        placeholders: names of the fed tensors.
    """

    run: Callable[..., Any]
    written: tuple[str, ...]
    read: tuple[str, ...]
    updated: tuple[str, ...]
    placeholders: tuple[str, ...]


class Session:
    """Runs parts of a graph on values for its variables.

    Each choice of fetches and feeds is compiled once; variables that it writes are donated.

    Example:
        >>> import jax.numpy as jnp
        >>> g = building.Graph()
        >>> w = g.variables({"w": jnp.ones((3, 2))})
        >>> _ = g.add_signature("predict", lambda v, x: x @ v["w"], w, jnp.ones((4, 3)))
        >>> with Session(g) as sess:
        ...     sess.set_state({"w": jnp.ones((3, 2))})
        ...     sess.run("predict:0", feed_dict={"x:0": jnp.ones((4, 3))}).shape
        (4, 2)
    """

    def __init__(self, graph: building.Graph | None = None) -> None:
        self.graph = graph if graph is not None else building.get_default_graph()
        self.values: dict[str, Any] = dict(self.graph.constants)
        self._compiled: dict[Any, _Compiled] = {}
        self._library = executor.Library(self.graph.functions)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the variables' values."""
        self.values.clear()
        self._compiled.clear()

    # --- state

    @property
    def state(self) -> Any:
        """The variables as the tree that `Graph.variables` was given, in plain containers."""
        return program.Program(self.graph, self._logical_values()).state

    def _logical_values(self) -> dict[str, Any]:
        return {
            name: program.logical_value(value, self.graph.variable(name))
            for name, value in self.values.items()
        }

    def set_state(self, state: Any) -> None:
        """Gives the variables the values in a tree of the form that `Graph.variables` was given.

        Raises:
            CheckpointError: leaves, shapes or dtypes are not the variables'; all are listed.
        """
        for name, value in program.physical_values(self.graph, state).items():
            # A copy, because running donates what the session holds.
            self.values[name] = jax.numpy.copy(value)

    # --- running

    def run(self, fetches: Any, feed_dict: Mapping[Any, Any] | None = None) -> Any:
        """Returns the values of the fetches, in their structure.

        Args:
            fetches: a tensor, operation, variable or name, or nested lists, tuples and dicts of
                these. An operation's value is None.
            feed_dict: values for tensors or their names.

        Raises:
            GraphError: a name is unknown, or a variable has no value.
            FeedError: a feed is unknown or missing, or does not fit.
        """
        leaves, structure = jax.tree.flatten(fetches)
        names = tuple([_fetch_name(leaf) for leaf in leaves])
        feeds = {}
        for tensor, value in (feed_dict or {}).items():
            name = _fetch_name(tensor)
            feeds[name] = value if hasattr(value, "dtype") else self._as_array(name, value)
        key = (names, tuple([(name, x.shape, x.dtype) for name, x in feeds.items()]))
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = self._compiled[key] = self._compile(names, feeds)
        outputs = self._call(compiled, feeds)
        return jax.tree.unflatten(structure, outputs)

    def _as_array(self, name: str, value: Any) -> Any:
        """Returns a fed number or list as an array of the tensor's dtype."""
        try:
            return np.asarray(value, dtype=self.graph.get_tensor_by_name(name).dtype)
        except errors.GraphError:
            return np.asarray(value)  # reported with the other feeds
        except (TypeError, ValueError):
            return np.asarray(value)  # the same

    def _call(self, compiled: _Compiled, feeds: Mapping[str, Any]) -> Any:
        held = self.values
        try:
            written = [held[name] for name in compiled.written]
            read = [held[name] for name in compiled.read]
        except KeyError as error:
            raise _uninitialized(error.args[0]) from None
        outputs, new = compiled.run(written, read, list(feeds.values()))
        held.update(zip(compiled.updated, new, strict=True))
        return outputs

    def _compile(self, names: Sequence[str], feeds: Mapping[str, Any]) -> _Compiled:
        target = self.graph
        fetched = [self._resolve_fetch(name) for name in names]
        self._check_feeds(feeds)
        tensors = [name for name in fetched if ":" in name]
        operations = [name for name in fetched if ":" not in name]
        plan = executor.plan_graph(target.nodes, self._library, list(feeds), tensors, operations)

        def run_named(held: Any, fed: list[Any]) -> tuple[list[Any], dict[str, Any]]:
            state = executor.State(held)
            with pausing.paused_gc():
                values = iter(plan.run(fed, state))
            outputs = [next(values) if ":" in name else None for name in fetched]
            return outputs, {name: state.values[name] for name in state.written}

        known = dict(self.values)
        _, updates = jax.eval_shape(run_named, known, list(feeds.values()))
        written = tuple(name for name in updates if name in known)
        updated = tuple(updates)
        used = _variables_used(target, [*tensors, *operations], feeds)
        read = tuple(name for name in known if name in used and name not in updates)

        def run(values: list[Any], others: list[Any], fed: list[Any]) -> tuple[Any, list[Any]]:
            held = dict(zip((*written, *read), (*values, *others), strict=True))
            outputs, new = run_named(held, fed)
            return outputs, [new[name] for name in updated]

        compiled = jax.jit(run, donate_argnums=0)
        return _Compiled(compiled, written, read, updated, tuple(feeds))

    def _resolve_fetch(self, name: str) -> str:
        """Returns the name of a tensor, or of an operation."""
        target = self.graph
        if ":" in name:
            node = name.split(":")[0]
            if node in target.variable_names:
                return target.variable(node).snapshot_name
            return target.get_tensor_by_name(name).name
        return target.get_operation_by_name(name).name

    def _check_feeds(self, feeds: Mapping[str, Any]) -> None:
        """Raises FeedError where a feed is unknown or does not fit its tensor; lists all."""
        bad = []
        for name, value in feeds.items():
            try:
                tensor = self.graph.get_tensor_by_name(name)
            except errors.GraphError as error:
                bad.append(str(error))
                continue
            bad.extend(_feed_faults(tensor, value))
        if bad:
            raise errors.FeedError(errors.list_offenders("these feeds do not fit:", bad))


def _feed_faults(tensor: Tensor, value: Any) -> list[str]:
    shape, found = tensor.shape, np.shape(value)
    faults = []
    if shape is not None and (
        len(shape) != len(found)
        or any(want is not None and want != size for want, size in zip(shape, found, strict=True))
    ):
        faults.append(f"{tensor.name}: expected shape {list(shape)}, got {list(found)}")
    dtype = getattr(value, "dtype", None)
    if dtype is not None and dtypes.base_number(tensor.number) != dtypes.dtype_to_number(dtype):
        expected = dtypes.dtype_name(tensor.number)
        found_name = dtypes.dtype_name(dtypes.dtype_to_number(dtype))
        faults.append(f"{tensor.name}: expected dtype {expected}, got {found_name}")
    return faults


def _variables_used(
    target: graph.GraphBuilder, fetched: Sequence[str], feeds: Mapping[str, Any]
) -> set[str]:
    """Returns the variables that the fetches depend on."""
    nodes = target.nodes
    stop_at = frozenset(name.split(":")[0] for name in feeds)
    reached = ordering.sort_nodes(
        nodes, [naming.parse_tensor_name(name).node for name in fetched], stop_at
    )
    known = set(target.variable_names)
    return {node.name for node in reached if node.name in known}


def _uninitialized(name: str) -> errors.GraphError:
    return errors.GraphError(
        f"the variable {name!r} has no value: restore a checkpoint or run its initializer"
    )


def _fetch_name(fetch: Any) -> str:
    if isinstance(fetch, str):
        return fetch
    if isinstance(fetch, (Tensor, Operation, Variable)):
        return fetch.name
    raise errors.FeedError(
        f"cannot fetch or feed {fetch!r} ({type(fetch).__name__}); expected a tensor, an "
        "operation, a variable, or a name"
    )
