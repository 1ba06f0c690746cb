"""Python's operators on tensors as TensorFlow's nodes, with the names that TensorFlow gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from jaxmeta import dtypes, errors, op_defs, values
from jaxmeta.graphs import elementary
from jaxmeta.graphs.graph import GraphBuilder
from jaxmeta.graphs.handles import Tensor
from jaxmeta.graphs.variable_handles import Variable

# TensorFlow's op for each operator whose node has the operator's name.
_ARITHMETIC: Final = {
    "add": "AddV2",
    "sub": "Sub",
    "mul": "Mul",
    "truediv": "RealDiv",
    "floordiv": "FloorDiv",
    "mod": "FloorMod",
    "pow": "Pow",
}
_COMPARISON: Final = {
    "less": "Less",
    "less_equal": "LessEqual",
    "greater": "Greater",
    "greater_equal": "GreaterEqual",
}
_LOGICAL: Final = {"and": "And", "or": "Or", "xor": "Xor"}
# What TensorFlow divides integers in, by their width.
_DIVIDES_IN: Final = {1: np.dtype("float32"), 2: np.dtype("float32")}


def operate(target: GraphBuilder, operator: str, operands: Sequence[Any]) -> Tensor:
    """Returns the tensor that an operator gives; see `jaxmeta.Tensor`.

    Raises:
        GraphTypeError: the operands' dtypes differ, or the operator does not take them.
        GraphError: their shapes do not fit.
    """
    # TensorFlow reads a variable that stands on the left before it opens the node's scope.
    first = 0 if isinstance(operands[0], (Tensor, Variable)) else 1
    operands = list(operands)
    if isinstance(operands[first], Variable):
        operands[first] = elementary.read_variable(target, operands[first])
    if operator == "getitem":
        return _get_item(target, operands[0], operands[1])
    if len(operands) == 1:
        return _unary(target, operator, operands[0])
    if operator in _COMPARISON:
        return _converting_binary(target, _COMPARISON[operator], *operands)
    with target.name_scope(None, operator) as scope:
        if operator in _LOGICAL and not first:
            return _logical(target, _LOGICAL[operator], operands[0], operands[1], scope)
        x, y = _converted(target, operands)
        if operator in _LOGICAL:
            return _logical(target, _LOGICAL[operator], x, y, scope)
        if operator == "matmul":
            return _matmul(target, x, y, scope)
        if operator == "truediv" and x.dtype.kind in "iu" and x.dtype == y.dtype:
            wanted = _DIVIDES_IN.get(x.dtype.itemsize, np.dtype("float64"))
            x, y = (_cast(target, side, wanted) for side in (x, y))
        return _binary(target, _ARITHMETIC[operator], x, y, scope)


def _converted(target: GraphBuilder, operands: Sequence[Any]) -> tuple[Tensor, Tensor]:
    left, right = operands
    if isinstance(left, Tensor):
        return left, elementary.convert_to_tensor(target, right, "y", left.dtype)
    return elementary.convert_to_tensor(target, left, "x", right.dtype), right


def _add(
    target: GraphBuilder,
    op: str,
    inputs: Sequence[Tensor],
    name: str,
    shape: values.Shape | None,
    **attrs: Any,
) -> Tensor:
    """Adds a node with one output."""
    _check_dtypes(op, inputs)
    edges = [elementary.edge_of(tensor) for tensor in inputs]
    (edge,) = target.add_node(op, edges, attrs, name)
    return elementary.tensor_of(target, edge, shape)


def _check_dtypes(op: str, inputs: Sequence[Tensor]) -> None:
    """Raises GraphTypeError where TensorFlow's op does not take the tensors' dtypes."""
    shared: dict[str, Tensor] = {}
    op_def = op_defs.get_op_def(op)
    allowed = {attr.name: attr.allowed_values.list.type for attr in op_def.attr}
    for argument, tensor in zip(op_def.input_arg, inputs, strict=True):
        attr = argument.type_attr
        number = dtypes.base_number(tensor.number)
        fits = number in allowed[attr] or not allowed[attr] if attr else number == argument.type
        if not fits:
            raise errors.GraphTypeError(f"{op} does not take {tensor}")
        if attr and shared.setdefault(attr, tensor).dtype != tensor.dtype:
            raise errors.GraphTypeError(
                f"{op} takes tensors of one dtype, got {shared[attr]} and {tensor}"
            )


def _cast(target: GraphBuilder, x: Tensor, dtype: np.dtype[Any]) -> Tensor:
    return _add(target, "Cast", [x], "Cast", x.shape, DstT=dtype)


# --- elementwise -------------------------------------------------------------------------------


def _unary(target: GraphBuilder, operator: str, x: Tensor) -> Tensor:
    if operator == "neg":
        return _add(target, "Neg", [x], "Neg", x.shape)
    if operator == "invert":
        op = "LogicalNot" if x.dtype == bool else "Invert"
        return _add(target, op, [x], op, x.shape)
    is_complex = x.dtype.kind == "c"
    attrs = {"Tout": np.dtype(f"float{x.dtype.itemsize * 4}")} if is_complex else {}
    return _add(target, "ComplexAbs" if is_complex else "Abs", [x], "Abs", x.shape, **attrs)


def _binary(target: GraphBuilder, op: str, x: Tensor, y: Tensor, name: str) -> Tensor:
    return _add(target, op, [x, y], name, _broadcast(op, x, y))


def _converting_binary(
    target: GraphBuilder, op: str, x: Tensor, y: Any, name: str | None = None
) -> Tensor:
    """Adds a binary op whose second operand is converted below the op's own name."""
    with target.name_scope(name, op) as scope:
        y = elementary.convert_to_tensor(target, y, "y", x.dtype)
        return _binary(target, op, x, y, scope)


def _logical(target: GraphBuilder, word: str, x: Tensor, y: Any, scope: str) -> Tensor:
    if x.dtype != bool:
        return _converting_binary(target, f"Bitwise{word}", x, y)
    if word != "Xor":
        return _converting_binary(target, f"Logical{word}", x, y, scope)
    either = _converting_binary(target, "LogicalOr", x, y)
    both = _converting_binary(target, "LogicalAnd", x, y)
    not_both = _add(target, "LogicalNot", [both], "LogicalNot", both.shape)
    return _binary(target, "LogicalAnd", either, not_both, scope)


def _broadcast(op: str, x: Tensor, y: Tensor) -> values.Shape | None:
    if x.shape is None or y.shape is None:
        return None
    shape = broadcast_shapes(x.shape, y.shape)
    if shape is None:
        raise errors.GraphError(f"{op}: the shapes of {x} and {y} do not broadcast")
    return shape


def broadcast_shapes(first: values.Shape, second: values.Shape) -> values.Shape | None:
    """Returns the shape that two shapes broadcast to, None for unknown sizes; None if none."""
    rank = max(len(first), len(second))
    sizes: list[int | None] = []
    for a, b in zip(
        (1,) * (rank - len(first)) + tuple(first),
        (1,) * (rank - len(second)) + tuple(second),
        strict=True,
    ):
        if a == 1 or b == 1:
            sizes.append(b if a == 1 else a)
        elif a is None or b is None:
            sizes.append(b if a is None else a)
        elif a == b:
            sizes.append(a)
        else:
            return None
    return tuple(sizes)


# --- products and indexing ---------------------------------------------------------------------


def _matmul(target: GraphBuilder, x: Tensor, y: Tensor, scope: str) -> Tensor:
    a, b = x.shape, y.shape
    if a is None or b is None:
        return _add(target, "BatchMatMulV2", [x, y], scope, None)
    batch = broadcast_shapes(a[:-2], b[:-2]) if min(len(a), len(b)) >= 2 else None
    if batch is None or (a[-1] != b[-2] and None not in (a[-1], b[-2])):
        raise errors.GraphError(f"matmul: the shapes of {x} and {y} do not fit")
    op = "MatMul" if len(a) == len(b) == 2 else "BatchMatMulV2"
    return _add(target, op, [x, y], scope, (*batch, a[-2], b[-1]))


def _get_item(target: GraphBuilder, x: Tensor, index: Any) -> Tensor:
    """Returns a part of a tensor: a StridedSlice, as TensorFlow writes it."""
    items = index if isinstance(index, tuple) else (index,)
    masks = dict.fromkeys(("begin", "end", "ellipsis", "new_axis", "shrink_axis"), 0)
    bounds: list[tuple[Any, Any, Any]] = []
    for position, item in enumerate(items):
        bounds.append(_bounds(item, 1 << position, masks))
    if masks["ellipsis"] & (masks["ellipsis"] - 1):
        raise errors.GraphError(f"{x}: only one ellipsis may stand in an index")
    with target.name_scope(None, "strided_slice") as scope:
        parts = [
            elementary.add_constant(target, np.array(part, np.int32).reshape(-1), name=name)
            for part, name in zip(
                zip(*bounds, strict=True) if bounds else ((), (), ()),
                ("stack", "stack_1", "stack_2"),
                strict=True,
            )
        ]
        attrs = {f"{name}_mask": mask for name, mask in masks.items() if mask}
        shape = None if x.shape is None else _sliced_shape(x, items)
        return _add(target, "StridedSlice", [x, *parts], scope, shape, **attrs)


def _bounds(item: Any, bit: int, masks: dict[str, int]) -> tuple[Any, Any, Any]:
    """Returns begin, end and stride of one item of an index, and sets its masks."""
    if item is Ellipsis:
        masks["ellipsis"] |= bit
        return 0, 0, 1
    if item is None:
        masks["new_axis"] |= bit
        return 0, 0, 1
    if isinstance(item, slice):
        masks["begin"] |= bit if item.start is None else 0
        masks["end"] |= bit if item.stop is None else 0
        step = 1 if item.step is None else item.step
        return item.start or 0, item.stop or 0, step
    if isinstance(item, bool) or not hasattr(item, "__index__"):
        raise errors.GraphTypeError(
            f"a tensor is indexed with integers, slices, None and ..., not with {item!r}"
        )
    masks["shrink_axis"] |= bit
    start = item.__index__()
    return start, start + 1, 1


def _sliced_shape(x: Tensor, items: Sequence[Any]) -> values.Shape:
    shape = list(x.shape or ())
    num_taken = sum(1 for item in items if item is not None and item is not Ellipsis)
    if num_taken > len(shape):
        raise errors.GraphError(f"{x} takes {len(shape)} indices, got {num_taken}")
    if not any(item is Ellipsis for item in items):
        items = [*items, Ellipsis]
    sizes: list[int | None] = []
    for item in items:
        if item is None:
            sizes.append(1)
        elif item is Ellipsis:
            rest = len(shape) - num_taken
            sizes.extend(shape[:rest])
            del shape[:rest]
        else:
            size = shape.pop(0)
            num_taken -= 1
            sizes.extend(_sliced_size(x, size, item))
    return tuple(sizes)


def _sliced_size(x: Tensor, size: int | None, item: Any) -> list[int | None]:
    if isinstance(item, slice):
        if size is None:
            return [0 if item.start == item.stop is not None else None]
        return [len(range(size)[item])]
    if size is not None and not -size <= item.__index__() < size:
        raise errors.GraphError(f"{x}: index {item} is out of bounds for size {size}")
    return []
