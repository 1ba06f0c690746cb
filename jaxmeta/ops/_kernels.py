"""How a node runs: kernels, and what a function's signature says of the one made of it."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from jaxmeta import op_defs
from jaxmeta.graphs.nodes import JAX_ATTR_PREFIX

# Arguments that the executor fills in itself; they are not attrs of the node.
LIBRARY: Final = "library"  # looks up functions by name
FUNCTION: Final = "function"  # the function that the node calls
NODE_NAME: Final = "node_name"


class Flow(enum.Enum):
    """What an op does in TensorFlow 1's control flow.

    Attributes:
        PLAIN: nothing: it runs once its inputs are there, and is dead where one is.
        SWITCH: passes its first input on as the output that its second, a predicate, says.
        MERGE: passes on which of its inputs is alive, and its index.
        ENTER: passes its input into the frame of a loop.
        EXIT: passes its input out of the frame.
        NEXT: passes its input into the next iteration.
        CONDITION: says whether there is one.
        TRIGGER: runs, dead inputs or not.
        SAME: is plain, and gives what it is given.
        COMPARISON: is plain, and says whether its two inputs are equal.
    """

    PLAIN = enum.auto()
    SWITCH = enum.auto()
    MERGE = enum.auto()
    ENTER = enum.auto()
    EXIT = enum.auto()
    NEXT = enum.auto()
    CONDITION = enum.auto()
    TRIGGER = enum.auto()
    SAME = enum.auto()
    COMPARISON = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """How a node runs.

    Attributes:
        run: the function of arrays.
        attrs: keyword argument and default for each attr that ``run`` reads;
            `inspect.Parameter.empty` where the node must have it.
        static: which inputs must be known while tracing, by position; they arrive as numpy arrays.
        traceable: which of the static ones may be traced all the same: numpy arrays where they are
            known, which is what ``run`` prefers.
        is_stateful: whether ``run`` takes the session's state before its inputs.
        must_be_fed: whether a value for the node's outputs has to be given.
        is_host: whether it works on strings or files, which XLA has not, or gives arrays whose
            sizes values say, outside jit.
        traced_where: a bool attr of the nodes for which ``is_host`` does not hold.
        injected: the arguments that the executor fills in.
        gives_sizes: whether its outputs are sizes of arrays, which are known while tracing.
        has_references: whether the op takes or returns references of TensorFlow 1, which arrive as
            the handles that its variable's node gives, and are returned as these.
        may_need_values: whether it can be traced only where enough is known of what it is given;
            else the whole plan runs op by op.
        flow: what it does in TensorFlow 1's control flow.
        takes_functions: whether attrs of the op name functions.
        at_need: whether it computes with sizes for other ends too, and is folded only where a
            shape is made of it.
        makes_shapes: whether it is where such a shape is made.
        makes_variable: whether the node is a variable, which may hold strings.
    """

    run: Callable[..., Any]
    attrs: tuple[tuple[str, str, Any], ...] = ()
    static: frozenset[int] = frozenset()
    traceable: frozenset[int] = frozenset()
    is_stateful: bool = False
    is_host: bool = False
    traced_where: str = ""
    injected: tuple[str, ...] = ()
    must_be_fed: bool = False
    gives_sizes: bool = False
    has_references: bool = False
    may_need_values: bool = False
    flow: Flow = Flow.PLAIN
    takes_functions: bool = False
    at_need: bool = False
    makes_shapes: bool = False
    makes_variable: bool = False


CONTROL_FLOW: Final = frozenset(
    {Flow.SWITCH, Flow.MERGE, Flow.ENTER, Flow.EXIT, Flow.NEXT, Flow.CONDITION}
)
"""What an op does that is not plain."""


@functools.cache
def parameters(fn: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    """Returns what a function takes; many are registered for several ops."""
    return tuple(inspect.signature(fn).parameters.values())


def refuse_variadic_keywords(fn: Callable[..., Any]) -> None:
    """Raises TypeError where a function takes ``**params``, which would drop what it ignores."""
    for parameter in parameters(fn):
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            raise TypeError(f"{fn.__qualname__} takes **{parameter.name}: name each parameter")


def keyword_attrs(
    fn: Callable[..., Any], prefix: str
) -> tuple[tuple[tuple[str, str, Any], ...], tuple[str, ...]]:
    """Returns (argument, attr, default) of each attr a kernel reads, and what is injected."""
    refuse_variadic_keywords(fn)
    keywords = [
        parameter
        for parameter in parameters(fn)
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    injected = tuple(p.name for p in keywords if p.name in (LIBRARY, FUNCTION, NODE_NAME))
    attrs = tuple((p.name, prefix + p.name, p.default) for p in keywords if p.name not in injected)
    return attrs, injected


def make_kernel(fn: Callable[..., Any], op: str, static: Sequence[str], is_host: bool) -> Kernel:
    """Returns the kernel that a function is for an op.

    Args:
        fn: the function.
        op: a name in TensorFlow's registry.
        static: names of the input arguments that must be known while tracing.
        is_host: see `Kernel`.

    Raises:
        TypeError: the op is unknown, or the signature does not fit it.
    """
    if not op_defs.has_op(op):
        raise TypeError(f"{op!r} is not an op of TensorFlow's registry")
    op_def = op_defs.get_op_def(op)
    is_plain = getattr(fn, "__module__", "").startswith("jax.") or isinstance(fn, np.ufunc)
    attrs, injected = ((), ()) if is_plain else keyword_attrs(fn, "")
    known = {attr.name for attr in op_def.attr}
    for argument, name, default in attrs:
        if name.startswith(JAX_ATTR_PREFIX):
            if default is inspect.Parameter.empty:
                raise TypeError(f"{fn.__qualname__}: {argument} needs a default")
        elif name not in known:
            raise TypeError(f"{fn.__qualname__}: op {op!r} has no attr {name!r}, only {known}")
    is_stateful = not is_plain and [p.name for p in parameters(fn)[:1]] == ["state"]
    return Kernel(
        fn,
        attrs,
        input_places(op, static),
        is_stateful=is_stateful,
        is_host=is_host,
        injected=injected,
        has_references=any(arg.is_ref for arg in (*op_def.input_arg, *op_def.output_arg)),
        takes_functions=any("func" in attr.type for attr in op_def.attr),
    )


def input_places(op: str, names: Sequence[str]) -> frozenset[int]:
    """Returns which inputs of an op have the names, by position."""
    inputs = [arg.name for arg in op_defs.get_op_def(op).input_arg]
    if unknown := set(names) - set(inputs):
        raise TypeError(f"op {op!r} has no inputs {unknown}, only {inputs}")
    return frozenset(inputs.index(name) for name in names)
