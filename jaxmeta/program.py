"""Signatures as functions again: jitted, with the original's name, trees and donation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jax

from jaxmeta import (
    arguments,
    building,
    dtypes,
    errors,
    executor,
    graph,
    jaxprs,
    nodes,
    pausing,
    signature_nodes,
    specs,
    trees,
)
from jaxmeta.graph import Signature, Variable

_WIDE_TYPES: Final = frozenset({"float64", "int64", "uint64", "complex128"})


def build_function(target: graph.GraphBuilder, signature: Signature) -> Callable[..., Any]:
    """Returns a signature as a function under `jax.jit`.

    It takes and returns what the traced function did. Name, trees and donation are the original's,
    so that it compiles to the same program and finds that in JAX's compilation cache.
    """
    return _Entry(target, signature).jitted()


class _Entry:
    """What one signature's function needs at hand when JAX traces it."""

    def __init__(self, target: graph.GraphBuilder, signature: Signature) -> None:
        self._signature = signature
        self._graph = target
        self._leaves = list(trees.leaves(signature.arguments))
        self._variables = {name: target.variable(name) for name in target.variable_names}
        self._structure = trees.structure(signature.arguments)
        self._key_impls = [self._key_impl(leaf) for leaf in self._leaves]
        self._arguments = list(map(self._argument, self._leaves, self._key_impls))
        self._placeholders = [leaf.name for leaf in self._leaves if ":" in leaf.name]
        self._plan: executor.Plan | None = None

    def _key_impl(self, leaf: trees.Leaf) -> str:
        if ":" not in leaf.name:
            return self._variables[leaf.name].key_impl
        attr = self._graph.node(leaf.name.split(":")[0]).attr
        has_impl = nodes.KEY_IMPL_ATTR in attr
        return attr[nodes.KEY_IMPL_ATTR].s.decode() if has_impl else ""

    def jitted(self) -> Callable[..., Any]:
        signature = self._signature

        def fn(*args: Any, **kwargs: Any) -> Any:
            with pausing.paused_gc():
                return self._run(args, kwargs)

        fn.__name__ = fn.__qualname__ = signature.function_name
        fn.__doc__ = f"The signature {signature.name!r} of an imported graph."
        return jax.jit(fn, **self._donation())

    def _donation(self) -> dict[str, Any]:
        """Returns which whole arguments are donated, as `jax.jit` wants it."""
        flags = iter(self._signature.donated)
        positional, named = _arguments(self._signature)
        argnums = [i for i, tree in enumerate(positional) if _all_next(flags, tree)]
        argnames = [str(key) for key, tree in named if _all_next(flags, tree)]
        return {"donate_argnums": tuple(argnums), "donate_argnames": tuple(argnames)}

    def _run(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        self._check_precision()
        given, structure = jax.tree.flatten((args, kwargs))
        if structure != self._structure:
            self._check_structure((args, kwargs))
        arguments.check(self._signature.name, self._arguments, self._signature.constraints, given)
        feeds, state = [], dict(self._graph.constants)
        for leaf, impl, value in zip(self._leaves, self._key_impls, given, strict=True):
            physical = jax.random.key_data(value) if impl else value
            if ":" in leaf.name:
                feeds.append(physical)
            else:
                state[leaf.name] = physical
        outputs = self._planned().run(feeds, executor.State(state))
        return self._results(outputs, args)

    def _planned(self) -> executor.Plan:
        if self._plan is None:
            fetches = [leaf.name for leaf in trees.leaves(self._signature.results)]
            library = executor.Library(self._graph.functions)
            self._plan = executor.plan_graph(
                self._graph.nodes, library, self._placeholders, fetches
            )
        return self._plan

    def _results(self, outputs: list[Any], args: Sequence[Any]) -> Any:
        impls = self._signature.result_key_impls
        for index, impl in enumerate(impls):
            if impl:
                outputs[index] = jax.random.wrap_key_data(outputs[index], impl=impl)
        updates = dict(self._signature.updates)
        results = self._signature.results
        is_tuple = isinstance(results, trees.Branch) and results.class_name == "builtins.tuple"
        items = iter(outputs)
        if not is_tuple:
            like = args[updates[0]] if 0 in updates else None
            return self._build(results, items, like)
        assert isinstance(results, trees.Branch)
        return tuple(
            self._build(child, items, args[updates[index]] if index in updates else None)
            for index, child in enumerate(results.children)
        )

    def _build(self, tree: trees.Tree, items: Any, like: Any) -> Any:
        """Returns a result; one that is assigned back has the classes its argument came with."""
        if like is None:
            return trees.build(tree, items)
        leaves, treedef = jax.tree.flatten(like)
        return jax.tree.unflatten(treedef, [next(items) for _ in leaves])

    # --- checks, which run only while tracing

    def _check_precision(self) -> None:
        """Raises FeedError where the program needs 64-bit types that this JAX has switched off."""
        signature = self._signature
        leaves = [*self._leaves, *trees.leaves(signature.results)]
        wide = [leaf.name for leaf in leaves if dtypes.dtype_name(leaf.number) in _WIDE_TYPES]
        if wide and not jaxprs.has_64_bit_types():
            headline = f"signature {signature.name!r} was traced with 64-bit types:"
            advice = 'Switch them on first: jax.config.update("jax_enable_x64", True).'
            raise errors.FeedError(errors.list_offenders(headline, wide, advice))

    def _check_structure(self, given: Any) -> None:
        """Raises FeedError where the given leaves' paths are not the signature's."""
        expected = _paths(trees.build(self._signature.arguments, iter(self._leaves)))
        found = _paths(given)
        if expected == found:
            return
        missing = [f"missing: {path}" for path in expected if path not in set(found)]
        unknown = [f"not expected: {path}" for path in found if path not in set(expected)]
        bad = [*missing, *unknown] or ["the same leaves, in another order"]
        headline = f"signature {self._signature.name!r} was given other arguments:"
        raise errors.FeedError(errors.list_offenders(headline, bad, arguments.ADVICE))

    def _argument(self, leaf: trees.Leaf, impl: str) -> arguments.Argument:
        """Returns what is expected of a leaf, as the program sees it."""
        shape: Any
        if ":" in leaf.name:
            shape = signature_nodes.sizes_as_text(self._graph.node(leaf.name.split(":")[0]), leaf)
        else:
            shape = tuple(map(str, leaf.shape))
        spec = specs.logical_spec(shape, dtypes.dtype_from_number(leaf.number), impl)
        return arguments.Argument(leaf.name, spec.dtype, spec.shape)


def _paths(tree: Any) -> list[str]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path) for path, _ in flat]


def _arguments(signature: Signature) -> tuple[Sequence[trees.Tree], list[tuple[Any, trees.Tree]]]:
    """Returns the records of the positional arguments, and of the named ones with names."""
    assert isinstance(signature.arguments, trees.Branch)
    positional, named = signature.arguments.children
    assert isinstance(positional, trees.Branch)
    assert isinstance(named, trees.Branch)
    return positional.children, list(zip(named.keys, named.children, strict=True))


def _all_next(flags: Any, tree: trees.Tree) -> bool:
    """Takes one flag for each leaf and returns whether there are leaves and all are set."""
    taken = [next(flags) for _ in trees.leaves(tree)]
    return bool(taken) and all(taken)


class Program:
    """An imported graph with the values of its variables.

    Attributes:
        graph: the graph.
        values: the arrays of its variables by name; typed keys as keys.

    Example:
        >>> import jax.numpy as jnp
        >>> g = building.Graph()
        >>> w = g.variables({"w": jnp.ones((3, 2))})
        >>> _ = g.add_signature("predict", lambda v, x: x @ v["w"], w, jnp.ones((4, 3)))
        >>> program = Program(g, {"w": jnp.ones((3, 2))})
        >>> program["predict"](program.state, jnp.ones((4, 3))).shape
        (4, 2)
    """

    def __init__(self, target: building.Graph, variables: Mapping[str, Any]) -> None:
        self.graph = target
        self.values = dict(variables)
        self._functions: dict[str, Callable[..., Any]] = {}

    @property
    def signatures(self) -> tuple[str, ...]:
        """The names of the entry points."""
        return tuple(self.graph.signatures)

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """Returns an entry point, jitted, with the original's donation.

        Raises:
            GraphError: there is none of that name.
        """
        if name not in self._functions:
            signature = self.graph.signatures.get(name)
            if signature is None:
                known = ", ".join(self.graph.signatures) or "none"
                raise errors.GraphError(f"there is no signature {name!r}; there are: {known}")
            self._functions[name] = build_function(self.graph, signature)
        return self._functions[name]

    @property
    def state(self) -> Any:
        """The tree of arrays that `Graph.variables` was given, in plain containers.

        Where there were several, a dict of them by name.
        """
        built = {
            name: trees.build(tree, iter([self.values[leaf.name] for leaf in trees.leaves(tree)]))
            for name, tree in self.graph.state_trees.items()
        }
        return next(iter(built.values())) if len(built) == 1 else built

    def state_like(self, template: Any, name: str | None = None) -> Any:
        """Returns the state in the classes of a template, which has the same paths.

        Args:
            template: a pytree with the original's classes; its leaves are not used.
            name: which state, where there are several.

        Raises:
            CheckpointError: the template has other leaves; all differences are listed.
        """
        recorded = self.graph.state_trees
        tree = recorded[name if name is not None else next(iter(recorded))]
        plain = trees.build(tree, iter([self.values[leaf.name] for leaf in trees.leaves(tree)]))
        expected, found = _paths(plain), _paths(template)
        if expected != found:
            bad = [f"missing in the template: {p}" for p in expected if p not in set(found)]
            bad += [f"only in the template: {p}" for p in found if p not in set(expected)]
            raise errors.CheckpointError(
                errors.list_offenders("the template's leaves are not the state's:", bad)
            )
        return jax.tree.unflatten(jax.tree.structure(template), jax.tree.leaves(plain))


def physical_value(value: Any, variable: Variable) -> Any:
    """Returns what a checkpoint holds of a variable's value: typed keys as their uint32 data."""
    is_key = variable.key_impl and jaxprs.is_key_dtype(value.dtype)
    return jax.random.key_data(value) if is_key else value


def logical_value(value: Any, variable: Variable) -> Any:
    """Returns what a program sees of a variable's value: typed keys as keys, weak types weak."""
    if variable.key_impl:
        return jax.random.wrap_key_data(value, impl=variable.key_impl)
    return jaxprs.weaken(value, variable.dtype) if variable.weak_type else value


def check_values(target: graph.GraphBuilder, physical: Mapping[str, Any]) -> None:
    """Raises CheckpointError where values do not fit their variables; all are listed."""
    bad = []
    for name, value in physical.items():
        variable = target.variable(name)
        if tuple(value.shape) != variable.shape or value.dtype != variable.dtype:
            expected = f"{variable.dtype}{list(variable.shape)}"
            bad.append(f"{name}: expected {expected}, got {value.dtype}{list(value.shape)}")
    if bad:
        headline = "these values do not fit the graph's variables:"
        raise errors.CheckpointError(errors.list_offenders(headline, bad))


def physical_values(target: graph.GraphBuilder, state: Any) -> dict[str, Any]:
    """Returns the arrays of a state by the names of their variables, as the graph holds them.

    Raises:
        CheckpointError: leaves, shapes or dtypes are not the variables'; all are listed.
    """
    physical = {
        name: physical_value(
            value if hasattr(value, "dtype") else jax.numpy.asarray(value), target.variable(name)
        )
        for name, value in named_arrays(target, state).items()
    }
    check_values(target, physical)
    return physical


def named_arrays(target: graph.GraphBuilder, state: Any) -> dict[str, Any]:
    """Returns the arrays of a state by the names of their variables.

    Args:
        target: the graph whose `Graph.variables` took a tree of this form.
        state: the tree; where the graph holds several, a dict of them by name.

    Raises:
        CheckpointError: the tree's leaves are not the recorded ones; all differences are listed.
    """
    recorded = target.state_trees
    if len(recorded) == 1:
        return _named_leaves(next(iter(recorded.values())), state)
    named: dict[str, Any] = {}
    for name, tree in recorded.items():
        named.update(_named_leaves(tree, state[name]))
    return named


def _named_leaves(tree: trees.Tree, state: Any) -> dict[str, Any]:
    records = list(trees.leaves(tree))
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    expected = _paths(trees.build(tree, iter(records)))
    found = [jax.tree_util.keystr(path) for path, _ in flat]
    if expected != found:
        bad = [f"missing: {path}" for path in expected if path not in set(found)]
        bad += [f"not expected: {path}" for path in found if path not in set(expected)]
        raise errors.CheckpointError(
            errors.list_offenders(
                "the state is not the one the graph's variables were made from:", bad
            )
        )
    return {record.name: leaf for record, (_, leaf) in zip(records, flat, strict=True)}
