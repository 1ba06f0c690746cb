"""Signatures as functions again: jitted, with the original's name, trees and donation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jax

from jaxmeta import (
    dtypes,
    errors,
    original_classes,
    pausing,
    shardings,
    specs,
    state_values,
    tree_keys,
    trees,
)
from jaxmeta.execution import arguments, executor
from jaxmeta.graphs import building, graph, nodes
from jaxmeta.graphs.graph import Signature
from jaxmeta.tracing import jaxprs, sharded_functions, signature_nodes

_WIDE_TYPES: Final = frozenset({"float64", "int64", "uint64", "complex128"})


def build_function(
    target: graph.GraphBuilder,
    signature: Signature,
    placement: shardings.Placement | None = None,
) -> Callable[..., Any]:
    """Returns a signature as a function under `jax.jit`.

    It takes and returns what the traced function did. Name, trees and donation are the original's,
    and so are its shardings on the same mesh, so that it compiles to the same program and finds
    that in JAX's compilation cache.
    """
    return _Entry(target, signature, placement or shardings.Placement()).jitted()


class _Entry:
    """What one signature's function needs at hand when JAX traces it."""

    def __init__(
        self,
        target: graph.GraphBuilder,
        signature: Signature,
        placement: shardings.Placement,
    ) -> None:
        self._signature = signature
        self._placement = placement
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
        ins, outs = self._shardings()
        if not (any(ins) or any(outs)):
            return jax.jit(fn, **self._donation())
        return sharded_functions.ShardedFunction(
            fn,
            self._donation(),
            ins,
            lambda args: self._results(list(outs), args) if outs else None,
        )

    def _shardings(self) -> tuple[list[Any], list[Any]]:
        """Returns what `jax.jit` is given for each array in and out, on the mesh at hand."""
        signature, placement = self._signature, self._placement
        ins: list[Any] = [placement.sharding(recorded) for recorded in signature.in_shardings]
        outs: list[Any] = [placement.sharding(recorded) for recorded in signature.out_shardings]
        if ins:
            for index, leaf in enumerate(self._leaves):
                ins[index] = placement.overrides.get(leaf.name, ins[index])
        if outs:
            updated = _updated_leaves(signature)
            for index, leaf in enumerate(trees.leaves(signature.results)):
                variable = updated.get(leaf.name, "")
                outs[index] = placement.overrides.get(variable, outs[index])
        return ins, outs

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
            library = executor.Library(
                self._graph.functions, self._placement, self._graph.gradients
            )
            self._plan = executor.plan_graph(
                self._graph.nodes, library, self._placeholders, fetches
            )
        return self._plan

    def _results(self, outputs: list[Any], args: Sequence[Any]) -> Any:
        impls = self._signature.result_key_impls
        for index, impl in enumerate(impls):
            if impl and hasattr(outputs[index], "dtype"):  # not where shardings stand for arrays
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
        expected = trees.build(self._signature.arguments, iter(self._leaves))
        headline = f"signature {self._signature.name!r} was given other arguments:"
        tree_keys.check_paths(expected, given, headline, errors.FeedError, arguments.ADVICE)

    def _argument(self, leaf: trees.Leaf, impl: str) -> arguments.Argument:
        """Returns what is expected of a leaf, as the program sees it."""
        shape: Any
        if ":" in leaf.name:
            shape = signature_nodes.sizes_as_text(self._graph.node(leaf.name.split(":")[0]), leaf)
        else:
            shape = tuple(map(str, leaf.shape))
        spec = specs.logical_spec(shape, dtypes.dtype_from_number(leaf.number), impl)
        return arguments.Argument(leaf.name, spec.dtype, spec.shape)


def _updated_leaves(signature: Signature) -> dict[str, str]:
    """Returns the variable of each result that is assigned back, by the result's tensor."""
    pairs: dict[str, str] = {}
    for result, argument in signature.updates:
        sources = trees.leaves(signature_nodes.result_subtree(signature.results, result))
        targets = trees.leaves(signature_nodes.argument_tree(signature.arguments, argument))
        pairs.update((s.name, t.name) for s, t in zip(sources, targets, strict=True))
    return pairs


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
        placement: on which devices its shardings are.

    Example:
        >>> import jax.numpy as jnp
        >>> g = building.Graph()
        >>> w = g.variables({"w": jnp.ones((3, 2))})
        >>> _ = g.add_signature("predict", lambda v, x: x @ v["w"], w, jnp.ones((4, 3)))
        >>> program = Program(g, {"w": jnp.ones((3, 2))})
        >>> program["predict"](program.state, jnp.ones((4, 3))).shape
        (4, 2)
    """

    def __init__(
        self,
        target: building.Graph,
        variables: Mapping[str, Any],
        placement: shardings.Placement | None = None,
    ) -> None:
        self.graph = target
        self.values = dict(variables)
        self.placement = placement if placement is not None else shardings.Placement()
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
            self._functions[name] = build_function(self.graph, signature, self.placement)
        return self._functions[name]

    @property
    def mesh(self) -> jax.sharding.Mesh | None:
        """The mesh that its shardings are on, with the types of axes that it was traced with.

        None where the program has no shardings, or all is on one device. Arguments that are spread
        over devices have to be spread over this mesh.
        """
        recorded = recorded_mesh(self.graph)
        return None if recorded is None else self.placement.mesh(recorded)

    def input_shardings(self, name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns how what an entry point takes was spread, on the mesh at hand.

        Its (args, kwargs), as trees of `jax.sharding.NamedSharding`, or None where an array was on
        one device or there is no mesh: ``jax.device_put(batch, run.input_shardings("step")[0][1])``
        spreads a batch as at first.
        """
        signature = self.graph.signatures[name]
        found = []
        for index, leaf in enumerate(trees.leaves(signature.arguments)):
            recorded = signature.in_shardings[index] if signature.in_shardings else None
            node = self.graph.node(leaf.name.split(":")[0])
            own = self.placement.sharding(recorded or shardings.sharding_from_attrs(node.attr))
            found.append(self.placement.overrides.get(leaf.name, own))
        args, kwargs = trees.build(signature.arguments, iter(found))
        return args, kwargs

    @property
    def state(self) -> Any:
        """The tree of arrays that `Graph.variables` was given, in plain containers.

        Where there were several, a dict of them by name.
        """
        return self._each_state(None, trees.build)

    def original_state(self, name: str | None = None) -> Any:
        """Returns the state in its original classes, which are imported by their recorded names.

        Importing a module runs its code, so ask for this only where you trust the file. A class
        is taken where it can hold the recorded children and nothing besides.

        Args:
            name: which state, where there are several; by default all, as in `state`.

        Raises:
            CheckpointError: classes are not importable, or hold more than arrays, as flax's
                TrainState does (``tx``); all are listed. Use `state_like`.
        """
        return self._each_state(name, original_classes.build)

    def _each_state(self, name: str | None, build: Callable[..., Any]) -> Any:
        """Returns one state, or a dict of all where there are several and none is named."""
        recorded = self.graph.state_trees
        if name is not None and name not in recorded:
            known = ", ".join(map(repr, recorded)) or "none"
            raise errors.CheckpointError(f"there is no state named {name!r}; there are: {known}")
        built = {
            key: build(tree, iter([self.values[leaf.name] for leaf in trees.leaves(tree)]))
            for key, tree in recorded.items()
            if name in (None, key)
        }
        return next(iter(built.values())) if name is not None or len(built) == 1 else built

    def state_like(self, template: Any, name: str | None = None) -> Any:
        """Returns the state in the classes of a template, which has the same paths.

        Args:
            template: a pytree with the original's classes; its leaves are not used.
            name: which state, where there are several; by default all, as in `state`.

        Raises:
            CheckpointError: the template has other leaves; all differences are listed.
        """
        plain = self._each_state(name, trees.build)
        tree_keys.check_paths(
            plain,
            template,
            "the template's leaves are not the state's:",
            errors.CheckpointError,
            missing="missing in the template",
            unknown="only in the template",
        )
        return jax.tree.unflatten(jax.tree.structure(template), jax.tree.leaves(plain))


def recorded_mesh(target: graph.GraphBuilder) -> jax.sharding.AbstractMesh | None:
    """Returns the first mesh that a graph's variables or signatures record, or None."""
    found = [target.variable(name).sharding for name in target.variable_names]
    for signature in target.signatures.values():
        found += [*signature.in_shardings, *signature.out_shardings]
    for node in target.nodes.values():
        if node.op == "Placeholder":
            found.append(shardings.sharding_from_attrs(node.attr))
    recorded = next(filter(None, found), None)
    return None if recorded is None else shardings.abstract_mesh(recorded)


def variable_shardings(
    target: graph.GraphBuilder, placement: shardings.Placement
) -> dict[str, jax.sharding.Sharding]:
    """Returns where the values of a graph's variables go, by name; none for the default device.

    In a program of several processes, what has no sharding is on all devices.

    Raises:
        ShardingError: shardings do not divide their arrays; all are listed.
    """
    found: dict[str, jax.sharding.Sharding] = {}
    bad: list[str] = []
    recorded = recorded_mesh(target)
    mesh = None if recorded is None else placement.mesh(recorded)
    for name in target.variable_names:
        variable = target.variable(name)
        sharding = placement.overrides.get(name) or placement.sharding(variable.sharding)
        if isinstance(sharding, jax.sharding.NamedSharding):
            bad += shardings.indivisible(name, variable.shape, sharding)
        if sharding is None and mesh is not None and jax.process_count() > 1:
            sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        if sharding is not None:
            found[name] = sharding
    if bad:
        raise errors.ShardingError(
            errors.list_offenders(
                "these arrays cannot be spread over the mesh:",
                bad,
                "Give a mesh whose axes divide them, or other shardings=.",
            )
        )
    return found


def override_shardings(target: graph.GraphBuilder, given: Any) -> dict[str, Any]:
    """Returns the shardings that a caller wants instead of the recorded ones, by variable.

    Args:
        target: the graph.
        given: a sharding for all; a function of a variable's name and `jax.ShapeDtypeStruct`; or
            a tree of the state's form, or a dict of them. None anywhere leaves what is recorded.

    Raises:
        CheckpointError: the tree's leaves are not the state's; all differences are listed.
    """
    if given is None:
        return {}
    if isinstance(given, jax.sharding.Sharding):
        wanted = dict.fromkeys(target.variable_names, given)
    elif callable(given):
        wanted = {}
        for name in target.variable_names:
            variable = target.variable(name)
            wanted[name] = given(name, jax.ShapeDtypeStruct(variable.shape, variable.dtype))
    else:
        marked = jax.tree.map(lambda leaf: _Wanted(leaf), given, is_leaf=lambda leaf: leaf is None)
        wanted = {
            name: leaf.sharding for name, leaf in state_values.named_arrays(target, marked).items()
        }
    return {name: sharding for name, sharding in wanted.items() if sharding is not None}


@dataclasses.dataclass(frozen=True, slots=True)
class _Wanted:
    """A leaf that holds a sharding or None, which alone would be no leaf."""

    sharding: jax.sharding.Sharding | None
