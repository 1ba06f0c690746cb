"""Running nodes on sizes, which are known while tracing: as numpy arrays, of numbers or symbols."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import errors, op_defs
from jaxmeta._proto import graph_pb2
from jaxmeta.graphs import nodes
from jaxmeta.tracing import dimensions
from jaxmeta.tracing.dimensions import Size


def as_array(value: Any) -> Any:
    """Returns an array of symbolic sizes as one that computations take; any other as it is."""
    if not _is_symbolic(value):
        return value
    scalars = [jnp.asarray(size, np.int32) for size in value.ravel().tolist()]
    return jnp.reshape(jnp.stack(scalars), value.shape) if value.ndim else scalars[0]


def _is_symbolic(value: Any) -> bool:
    is_object = isinstance(value, np.ndarray) and value.dtype == object
    return is_object and dimensions.is_symbolic(value)


def as_scalar(value: Any, name: str) -> Size:
    """Returns the size that a scalar holds.

    Raises:
        GraphError: it is not known while tracing.
    """
    if isinstance(value, jax.core.Tracer):
        raise errors.GraphError(
            f"the size of the dimension {name!r} must be known while tracing, but it depends on "
            "what the function is given"
        )
    return np.asarray(value).item()


def folding(
    on_host: Callable[..., Any] | None, run: Callable[..., Any], static: frozenset[int]
) -> Callable[..., Any]:
    """Returns a kernel that computes on the host where all its inputs are known there.

    Args:
        on_host: the kernel for numpy arrays, if there is one.
        run: the kernel for any arrays.
        static: which of its inputs are numpy arrays in any case.
    """

    def fold(*inputs: Any) -> Any:
        if on_host is not None and all(isinstance(x, np.ndarray) for x in inputs):
            if not any(map(_is_symbolic, inputs)):
                with np.errstate(all="ignore"):  # as on a device
                    return _arrays(on_host(*inputs))
            try:
                return _plain(on_host(*inputs))
            except (TypeError, jax.errors.InconclusiveDimensionOperation):
                pass  # such as a cast to floats, which is a computation
        return run(*(x if i in static else as_array(x) for i, x in enumerate(inputs)))

    return fold


def _arrays(result: Any) -> Any:
    """Returns results as arrays, which numpy makes numbers where they have no axes."""
    return list(map(np.asarray, result)) if isinstance(result, list) else np.asarray(result)


def _plain(result: Any) -> Any:
    """Returns what was computed of symbols as numbers where none is left."""
    if isinstance(result, list):
        return list(map(_plain, result))
    result = np.asarray(result, dtype=object)
    return result if dimensions.is_symbolic(result) else result.astype(np.int32)


def dimensions_taken(function: graph_pb2.FunctionDef) -> list[str]:
    """Returns the dimensions whose sizes are a function's first arguments."""
    names = []
    for index in range(len(function.signature.input_arg)):
        attr = function.arg_attr[index].attr if index in function.arg_attr else {}
        if nodes.DIMENSION_ATTR not in attr:
            break
        names.append(attr[nodes.DIMENSION_ATTR].s.decode())
    return names


def num_inputs_before_operands(op: str) -> int:
    """Returns how many inputs an op takes before its list of operands; a function has none."""
    arguments = op_defs.get_op_def(op).input_arg if op_defs.has_op(op) else ()
    kinds = [bool(argument.type_list_attr) for argument in arguments]
    return kinds.index(True) if True in kinds else 0


def bind(value: Any, sizes: Mapping[str, Size]) -> Any:
    """Returns functions with the sizes of dimensions that they take; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(bind(item, sizes) for item in value)
    return value.at(sizes) if hasattr(value, "at") else value


def evaluate(value: Any, sizes: Mapping[str, Size]) -> Any:
    """Returns the sizes that the text, or texts, of an attr say."""
    if isinstance(value, tuple):
        return tuple(evaluate(text, sizes) for text in value)
    return dimensions.evaluate(dimensions.parse(value.decode()), sizes)


def sized(
    run: Callable[..., Any],
    keywords: Mapping[str, Any],
    names: Sequence[str],
    symbolic: frozenset[str],
    first: int,
    num_outputs: int,
) -> Callable[..., Any]:
    """Returns a kernel whose first operands are the sizes of dimensions.

    Args:
        run: the kernel, which takes the other inputs.
        keywords: its attrs and functions; the latter are given the sizes they take.
        names: the dimensions.
        symbolic: which of the keywords are expressions of them.
        first: the position of the first operand among the inputs.
        num_outputs: of the node; one that passes the sizes on has them among its outputs.
    """
    count = len(names)
    bound: dict[tuple[Size, ...], dict[str, Any]] = {}

    def call(*inputs: Any) -> Any:
        passed = inputs[first : first + count]
        given = tuple(map(as_scalar, passed, names))
        if given not in bound:
            by_name = dict(zip(names, given, strict=True))
            bound[given] = {
                key: evaluate(value, by_name) if key in symbolic else bind(value, by_name)
                for key, value in keywords.items()
            }
        others = (*inputs[:first], *inputs[first + count :])
        results = run(*map(as_array, others), **bound[given])
        passes_sizes = isinstance(results, (list, tuple)) and len(results) == num_outputs - count
        return [*passed, *results] if passes_sizes else results

    return call
