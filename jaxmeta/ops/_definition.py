"""The op tables, and the decorators that fill them.

Three things stand together for each op, in this order: its lowering (JAX primitive to node), its
kernel (node to public JAX) and its examples.

* ``@lowering("dot_general")`` registers a function of a `LoweringContext`, the operands, and the
  primitive's parameters as keyword-only arguments. There is no ``**params``: a parameter that a
  new JAX adds raises at the first trace. A parameter that is ignored is ``del``-ed with a reason.
* ``@kernel("MatMul")`` registers a function of arrays; its keyword-only arguments are the node's
  attrs, checked against the OpDef when the module is imported. What TensorFlow cannot say comes
  in arguments named ``_jax_*``, which always have a default.
* ``@restores("random_bits")`` registers a kernel for nodes that carry ``_jax_primitive``: calls of
  library functions, and plain ops whose op alone does not tell the primitive. Its keyword-only
  arguments are the attrs without their ``_jax_`` prefix.
* ``example(fn, *specs)`` adds a function to those that the generic tests trace, save, load, run,
  differentiate and hand to TensorFlow.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

import numpy as np

from jaxmeta.graphs.nodes import JAX_ATTR_PREFIX as JAX_ATTR_PREFIX
from jaxmeta.graphs.nodes import WEAK_TYPE_ATTR as WEAK_TYPE_ATTR
from jaxmeta.graphs.nodes import Edge
from jaxmeta.ops import _kernels
from jaxmeta.ops._kernels import Flow, Kernel

PRIMITIVE_ATTR: Final = "_jax_primitive"
SYMBOLIC_ATTR: Final = "_jax_symbolic"  # which parameters are expressions of dimensions
CAPTURED_ATTR: Final = "_jax_captured"  # on a Const that was an array the function closed over

_Function = TypeVar("_Function", bound=Callable[..., Any])


class LoweringContext(Protocol):
    """What a lowering may do: add nodes to the body being built, and ask about its eqn."""

    eqn: Any
    """The eqn being lowered."""
    jaxpr: Any
    """The open jaxpr that holds it."""

    @property
    def out_avals(self) -> Sequence[Any]:
        """The avals of the eqn's outputs; typed keys show as their uint32 data."""

    @property
    def key_rank(self) -> int:
        """How many trailing axes of the first output hold the data of one typed key."""

    def node(self, op: str, *inputs: Any, name: Any = None, **attrs: Any) -> list[Edge]:
        """Adds a node and returns its outputs. A list among the inputs fills a list argument.

        The name is a wanted one, made unique below the eqn's scope; the op's where None.
        """

    def constant(self, value: Any, dtype: Any = None) -> Edge:
        """Returns the output of a Const; equal constants of one body share a node.

        Sizes that are symbolic become nodes that compute them.
        """

    def size_operands(
        self, *jaxprs_: Any, needed: bool = False
    ) -> tuple[list[Edge], dict[str, Any]]:
        """Returns what a loop or branch needs where its functions take the sizes of dimensions.

        These are its first operands, and attrs; none where no jaxpr has symbolic dimensions, unless
        they are ``needed`` all the same.
        """

    def function(
        self,
        jaxpr: Any,
        name: str,
        *,
        takes_sizes: bool | None = None,
        returns_sizes: bool = False,
    ) -> str:
        """Returns the name of the library function that holds a jaxpr, adding it at need.

        It takes the sizes of the symbolic dimensions first where the jaxpr has any, or where
        ``takes_sizes`` says so; with ``returns_sizes`` it returns them first as well.
        """

    def rule_functions(
        self, source: str, size: int, names: Sequence[str], rules: Sequence[Any]
    ) -> list[str]:
        """Returns the functions of a custom derivative rule, one for each of its jaxprs.

        A rule that uses itself gets its own names, as plain strings: two functions that refer to
        each other as attrs are more than TensorFlow's SavedModel loader takes. A rule that uses
        itself on ever larger functions gets none after some of these.

        Args:
            source: where it was written.
            size: how many eqns the function has whose rule it is.
            names: wanted names.
            rules: the jaxprs.
        """

    def separate_functions(
        self, key: tuple[str, Any], jaxprs: Mapping[str, Any], *, most_nested: int
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Returns the functions of jaxprs that have symbolic dimensions of their own.

        One that uses a primitive without a node form is left out.

        Args:
            key: what tells them apart; within themselves they are plain strings. The second item
                is the same for all that come of one another.
            jaxprs: closed ones by wanted name.
            most_nested: how many of one kin are built within one another.

        Returns:
            The functions by wanted name, and why others were left out.
        """

    def call(self, function: str, *inputs: Edge, primitive: str, **params: Any) -> list[Edge]:
        """Adds a call of a library function that stands for a primitive."""

    def composite(
        self, primitive: str, fn: Callable[..., Any], *inputs: Edge, **params: Any
    ) -> list[Edge]:
        """Calls a library function traced from ``fn``, which says the primitive in TF ops."""

    def build_function(
        self,
        name: str,
        inputs: Sequence[Any],
        fill: Callable[[LoweringContext, list[Edge]], Sequence[Edge]],
        key: Any = None,
        *,
        takes_sizes: bool | None = None,
    ) -> str:
        """Returns the name of a library function whose nodes ``fill`` adds by hand.

        Where a key is given, a function of the same name and key is built only once. It takes the
        sizes of the symbolic dimensions where its inputs or the key have any.
        """

    def unsupported(self, reason: str) -> Exception:
        """Returns the exception to raise where this eqn has no node form."""


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """A function and its arguments, from which the generic tests are made.

    Attributes:
        fn: a function of arrays that exercises one op or primitive.
        specs: its arguments; `Spec` objects become fresh random arrays.
        where: module and number, as the test's id.
        not_in_tensorflow: why TensorFlow gives other values or refuses, or empty.
        tolerance: largest relative error against TensorFlow; bit for bit where 0.
        gradient: whether gradients are compared too, where an argument is real.
    """

    fn: Callable[..., Any]
    specs: tuple[Any, ...]
    where: str
    not_in_tensorflow: str = ""
    tolerance: float = 1e-5
    gradient: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Spec:
    """A random array to be made: its shape, dtype and range."""

    shape: tuple[int, ...]
    dtype: Any
    low: float = -2.0
    high: float = 2.0

    def array(self, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        """Returns a fresh random array."""
        dtype = np.dtype(self.dtype)
        if dtype == np.bool_:
            return rng.integers(0, 2, self.shape).astype(dtype)
        if dtype.kind in "iu":
            low = 0 if dtype.kind == "u" and self.low < 0 else int(self.low)
            return rng.integers(low, int(self.high) + 4, self.shape).astype(dtype)
        values = rng.uniform(self.low, self.high, self.shape)
        if dtype.kind == "c":
            values = values + 1j * rng.uniform(self.low, self.high, self.shape)
        return np.asarray(values).astype(dtype)


def f32(*shape: int, low: float = -2.0, high: float = 2.0) -> Spec:
    """Returns the spec of a float32 array."""
    return Spec(shape, np.float32, low, high)


def i32(*shape: int, low: float = -4, high: float = 4) -> Spec:
    """Returns the spec of an int32 array."""
    return Spec(shape, np.int32, low, high)


def u32(*shape: int, high: float = 1 << 20) -> Spec:
    """Returns the spec of a uint32 array."""
    return Spec(shape, np.uint32, 0, high)


def bools(*shape: int) -> Spec:
    """Returns the spec of a bool array."""
    return Spec(shape, np.bool_)


LOWERINGS: Final[dict[str, Callable[..., Any]]] = {}
"""Primitive name to lowering."""
KERNELS: Final[dict[str, Kernel]] = {}
"""Op name to kernel."""
HOST_KERNELS: Final[dict[str, Kernel]] = {}
"""Op name to the kernel that computes with sizes, as numpy arrays, while tracing."""
STRING_KERNELS: Final[dict[str, Kernel]] = {}
"""Op name to the kernel of nodes that are given strings, where another one is for numbers."""
TRACED_KERNELS: Final[dict[str, Kernel]] = {}
"""Op name to the kernel in a plan whose loops and branches are compiled, where another works on
the host."""
PRIMITIVE_KERNELS: Final[dict[str, Kernel]] = {}
"""Primitive name to the kernel of nodes that carry it as ``_jax_primitive``."""
REFUSED_OPS: Final[dict[str, str]] = {}
"""Op name to why it has no kernel, where that is known."""
EXAMPLES: Final[list[Example]] = []


def lowering(*primitives: str) -> Callable[[_Function], _Function]:
    """Registers a function as the lowering of primitives.

    Raises:
        TypeError: the primitive has a lowering already, or the function takes ``**params``.
    """

    def register(fn: _Function) -> _Function:
        _kernels.refuse_variadic_keywords(fn)
        for name in primitives:
            if name in LOWERINGS:
                raise TypeError(f"primitive {name!r} has a lowering already")
            LOWERINGS[name] = fn
        return fn

    return register


def on_host(
    *ops: str, at_need: bool = False, makes_shapes: bool = False
) -> Callable[[_Function], _Function]:
    """Registers a function as the kernel of ops where all inputs are sizes, as numpy arrays.

    Args:
        *ops: names in TensorFlow's registry.
        at_need: see `Kernel`.
        makes_shapes: see `Kernel`.

    Raises:
        TypeError: an op has one already, or the signature does not fit it.
    """

    def register(fn: _Function) -> _Function:
        for op in ops:
            if op in HOST_KERNELS:
                raise TypeError(f"op {op!r} has a kernel on the host already")
            made = _kernels.make_kernel(fn, op, (), is_host=False)
            HOST_KERNELS[op] = dataclasses.replace(made, at_need=at_need, makes_shapes=makes_shapes)
        return fn

    return register


def kernel(
    *ops: str,
    static: Sequence[str] = (),
    traceable: Sequence[str] = (),
    is_host: bool = False,
    traced_where: str = "",
    must_be_fed: bool = False,
    gives_sizes: bool = False,
    may_need_values: bool = False,
    flow: Flow = Flow.PLAIN,
    makes_variable: bool = False,
) -> Callable[[_Function], _Function]:
    """Registers a function as the kernel of ops.

    A first parameter named ``state`` makes it stateful. Attrs of the op that the function does
    not name must be ones that an input restates, or that say nothing about values.

    Args:
        *ops: names in TensorFlow's registry.
        static: names of the input arguments that must be known while tracing.
        traceable: which of them may be traced all the same; see `Kernel`.
        is_host: see `Kernel`.
        traced_where: see `Kernel`.
        must_be_fed: see `Kernel`.
        gives_sizes: see `Kernel`.
        may_need_values: see `Kernel`.
        flow: see `Kernel`.
        makes_variable: see `Kernel`.

    Raises:
        TypeError: an op is unknown or has a kernel already, or the signature does not fit it.
    """

    def register(fn: _Function) -> _Function:
        for op in ops:
            if op in KERNELS:
                raise TypeError(f"op {op!r} has a kernel already")
            made = _kernels.make_kernel(fn, op, static, is_host)
            KERNELS[op] = dataclasses.replace(
                made,
                traceable=_kernels.input_places(op, traceable),
                traced_where=traced_where,
                must_be_fed=must_be_fed,
                gives_sizes=gives_sizes,
                may_need_values=may_need_values,
                flow=flow,
                makes_variable=makes_variable,
            )
        return fn

    return register


def declare_flow(op: str, flow: Flow) -> None:
    """Says what an op that has a kernel does in TensorFlow 1's control flow."""
    KERNELS[op] = dataclasses.replace(KERNELS[op], flow=flow)


def string_kernel(*ops: str) -> Callable[[_Function], _Function]:
    """Registers a function of numpy arrays as the kernel of ops where an input holds strings.

    It is for ops of arrays of any dtype, whose kernels work on numbers only; strings come as object
    arrays of bytes.

    Raises:
        TypeError: an op is unknown or has such a kernel already, or the signature does not fit it.
    """

    def register(fn: _Function) -> _Function:
        for op in ops:
            if op in STRING_KERNELS:
                raise TypeError(f"op {op!r} has a kernel for strings already")
            STRING_KERNELS[op] = _kernels.make_kernel(fn, op, (), is_host=True)
        return fn

    return register


def traced_kernel(*ops: str) -> Callable[[_Function], _Function]:
    """Registers a function as the kernel of ops in plans whose loops and branches are compiled.

    Raises:
        TypeError: the signature does not fit an op.
    """

    def register(fn: _Function) -> _Function:
        TRACED_KERNELS.update((op, _kernels.make_kernel(fn, op, (), is_host=False)) for op in ops)
        return fn

    return register


def restores(*primitives: str, static: Sequence[str] = ()) -> Callable[[_Function], _Function]:
    """Registers a function as the kernel of nodes that carry a primitive's name.

    Args:
        *primitives: their names.
        static: names of the arguments that must be known while tracing.

    Raises:
        TypeError: the primitive has one already.
    """

    def register(fn: _Function) -> _Function:
        for name in primitives:
            if name in PRIMITIVE_KERNELS:
                raise TypeError(f"primitive {name!r} is restored already")
            attrs, injected = _kernels.keyword_attrs(fn, JAX_ATTR_PREFIX)
            arguments = [parameter.name for parameter in _kernels.parameters(fn)]
            places = frozenset(map(arguments.index, static))
            PRIMITIVE_KERNELS[name] = Kernel(fn, attrs, places, injected=injected)
        return fn

    return register


def example(
    fn: Callable[..., Any],
    *specs: Any,
    not_in_tensorflow: str = "",
    tolerance: float = 1e-5,
    gradient: bool = True,
) -> None:
    """Adds an example; see `Example`."""
    module = fn.__globals__["__name__"].rsplit(".", 1)[-1] if inspect.isfunction(fn) else "jax"
    where = f"{module}-{len(EXAMPLES)}-{getattr(fn, '__name__', 'fn')}"
    EXAMPLES.append(Example(fn, specs, where, not_in_tensorflow, tolerance, gradient))


def run_kernel(op: str, *inputs: Any, **attrs: Any) -> Any:
    """Returns what the kernel of another op gives."""
    return KERNELS[op].run(*inputs, **attrs)
