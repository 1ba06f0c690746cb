"""Lists of tensors, as values: what TensorLists, TensorArrays and stacks hold.

A list has one of two forms. `TensorList` holds its elements one by one: how many there are is
known, and their shapes may differ. `StackedList` holds them as the rows of one array: that is what
a compiled loop can carry, and what an index that is known only at run time can reach into. The
functions here bring lists to the second form; `_list_elements` reads and writes elements of either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import dtypes, errors

_SCALARS: Final = (bool, int, float, complex)


@jax.tree_util.register_static
class Constant:
    """What every row of a list is, where that is known while tracing: a shape, most often.

    Attributes:
        value: an array of numpy, or any object that has no array in it.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and is_same(self.value, other.value)

    def __hash__(self) -> int:
        return hash(np.shape(self.value)) if is_array(self.value) else hash(self.value)


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, slots=True)
class TensorList:
    """A list of elements one by one; None where an element was not set.

    Attributes:
        items: the elements: arrays, or lists in turn.
        element_shape: what is known of their shapes, -1 for sizes that are not.
        dtype_number: of the elements.
    """

    items: tuple[Any, ...]
    element_shape: tuple[int, ...] | None
    dtype_number: int

    def __add__(self, other: Any) -> Any:
        """Returns the list of sums; an element that was not set counts as 0."""
        if isinstance(other, StackedList):
            return other + self
        pairs = zip(self.items, other.items, strict=True)
        return self.replaced([b if a is None else a if b is None else a + b for a, b in pairs])

    def replaced(self, items: Sequence[Any]) -> TensorList:
        """Returns the list with other elements."""
        return dataclasses.replace(self, items=tuple(items))

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """Returns the elements, and the rest."""
        return self.items, (self.element_shape, self.dtype_number)

    @classmethod
    def tree_unflatten(cls, rest: Any, items: Sequence[Any]) -> TensorList:
        """Returns the list of what `tree_flatten` gave."""
        return cls(tuple(items), *rest)


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, slots=True)
class StackedList:
    """A list whose elements are the first rows of one array, or of several where they are trees.

    Attributes:
        rows: the array or tree, with the number of places as its first axis; those that hold no
            element are zeros, or what was left there.
        capacity: how many places there are.
        length: how many elements there are: a number, or an array where that is not known yet.
        element_shape: as in `TensorList`.
        dtype_number: of the elements.
        is_sealed: whether a loop carries it, so that it cannot get more places.
    """

    rows: Any
    capacity: int
    length: Any
    element_shape: tuple[int, ...] | None
    dtype_number: int
    is_sealed: bool = False

    def __add__(self, other: Any) -> StackedList:
        """Returns the list of sums."""
        ours, theirs = map(common_form([self, other]).apply, [self, other])
        rows = map_values(lambda a, b: a + b, rows_as_arrays(ours), rows_as_arrays(theirs))
        return dataclasses.replace(ours, rows=rows)

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """Returns the arrays, and the rest."""
        is_known = isinstance(self.length, int)
        rest = (
            self.capacity,
            self.length if is_known else None,
            self.element_shape,
            self.dtype_number,
            self.is_sealed,
        )
        return (self.rows, None if is_known else self.length), rest

    @classmethod
    def tree_unflatten(cls, rest: Any, children: Sequence[Any]) -> StackedList:
        """Returns the list of what `tree_flatten` gave."""
        rows, length = children
        capacity, known, *others = rest
        return cls(rows, capacity, length if known is None else known, *others)


AnyList: TypeAlias = TensorList | StackedList


def is_list(value: Any) -> bool:
    """Returns whether a value is a list."""
    return isinstance(value, (TensorList, StackedList))


def is_array(value: Any) -> bool:
    """Returns whether a value is an array or a number, traced or not."""
    return hasattr(value, "dtype") or isinstance(value, _SCALARS)


def is_known(value: Any) -> bool:
    """Returns whether a value can be looked at, rather than being traced."""
    return not isinstance(value, jax.core.Tracer)


def is_same(a: Any, b: Any) -> bool:
    """Returns whether two values are known and equal."""
    if a is b:
        return True
    if isinstance(a, jax.Array) or isinstance(b, jax.Array):
        return False
    if is_array(a) and is_array(b):
        same_kind = np.shape(a) == np.shape(b) and np.asarray(a).dtype == np.asarray(b).dtype
        return same_kind and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    return type(a) is type(b) and bool(a == b)


def length_of(items: AnyList) -> Any:
    """Returns how many elements a list has: a number where that is known."""
    return len(items.items) if isinstance(items, TensorList) else items.length


def capacity_of(items: AnyList) -> int:
    """Returns for how many elements a list has places."""
    return len(items.items) if isinstance(items, TensorList) else items.capacity


def element_of(items: AnyList) -> Any:
    """Returns a tree like an element: specs of arrays and `Constant` leaves; None if unknown."""
    if isinstance(items, StackedList):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), items.rows)
    found = None
    for item in items.items:
        if item is not None:
            found = common_element(found, spec_of(item))
    return found


def _declared_element(items: AnyList) -> Any:
    """Returns the spec of an array that a list was made for, or None if it does not say."""
    shape, number = items.element_shape, items.dtype_number
    is_full = shape is not None and min(shape, default=0) >= 0 and number != dtypes.VARIANT
    return jax.ShapeDtypeStruct(shape, element_dtype(number)) if is_full else None


def without_constants(element: Any) -> Any:
    """Returns what `element_of` says, with specs of arrays in place of what is the same so far."""
    return jax.tree.map(_as_spec, element, is_leaf=is_constant)


def element_dtype(number: int) -> Any:
    """Returns the dtype that JAX has for a DataType number."""
    return jax.dtypes.canonicalize_dtype(dtypes.dtype_from_number(number))


def spec_of(item: Any) -> Any:
    """Returns a tree like an element that is given; see `element_of`."""

    def leaf(value: Any) -> Any:
        if isinstance(value, (Constant, jax.ShapeDtypeStruct)):
            return value
        if not is_array(value) or (is_known(value) and not isinstance(value, jax.Array)):
            return Constant(value)
        return jax.ShapeDtypeStruct(value.shape, value.dtype)

    return jax.tree.map(leaf, item)


def is_constant(value: Any) -> bool:
    """Returns whether a leaf of rows is the same in all of them."""
    return isinstance(value, Constant)


def _as_spec(value: Any) -> Any:
    """Returns the spec of an array for a constant that rows differ from."""
    if not isinstance(value, Constant):
        return value
    if not is_array(value.value):
        raise errors.UnsupportedOpError(f"a list holds what is no array: {value.value!r}")
    array = np.asarray(value.value)
    return jax.ShapeDtypeStruct(array.shape, jax.dtypes.canonicalize_dtype(array.dtype))


def common_element(a: Any, b: Any) -> Any:
    """Returns what `element_of` says of a list that has elements of both kinds.

    Raises:
        UnsupportedOpError: they are of different shapes.
    """
    if a is None or b is None:
        return b if a is None else a
    leaves: list[Any]
    treedef: Any
    leaves, treedef = jax.tree.flatten(a, is_leaf=is_constant)
    others, other_treedef = jax.tree.flatten(b, is_leaf=is_constant)
    if treedef != other_treedef:
        raise errors.UnsupportedOpError("a list has elements of different kinds")
    merged = []
    for x, y in zip(leaves, others, strict=True):
        if isinstance(x, Constant) and x == y:
            merged.append(x)
            continue
        one, other = _as_spec(x), _as_spec(y)
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            raise errors.UnsupportedOpError(
                f"a list has elements of different shapes: {one.shape} and {other.shape}"
            )
        merged.append(one)
    return jax.tree.unflatten(treedef, merged)


def stacked(
    items: AnyList, element: Any = None, capacity: int | None = None, *, is_sealed: bool = False
) -> StackedList:
    """Returns a list in its stacked form.

    Args:
        items: the list.
        element: what its elements are like beside what they show themselves; see `element_of`.
        capacity: for how many elements there must be places.
        is_sealed: see `StackedList`.

    Raises:
        UnsupportedOpError: elements are of different shapes, or nothing says of which.
    """
    element = common_element(element_of(items), element)
    element = _declared_element(items) if element is None else element
    if isinstance(items, TensorList) and any(item is None for item in items.items):
        element = without_constants(element)  # what was not set is zeros
    if element is None:
        raise errors.UnsupportedOpError("the shape of a list's elements is not known")
    capacity = max(capacity_of(items), capacity or 0)
    specs, treedef = jax.tree.flatten(element, is_leaf=is_constant)
    if isinstance(items, StackedList):
        columns = [_grown(rows, items, capacity) for rows in _columns(items.rows, treedef)]
    else:
        flat = [None if i is None else _leaves_of(i, treedef) for i in items.items]
        columns = [_column(flat, place, spec, capacity) for place, spec in enumerate(specs)]
    rows = [
        spec if isinstance(spec, Constant) else _filled(column, spec, capacity)
        for spec, column in zip(specs, columns, strict=True)
    ]
    length = length_of(items)
    return StackedList(
        jax.tree.unflatten(treedef, rows),
        capacity,
        length,
        items.element_shape,
        items.dtype_number,
        is_sealed,
    )


def _columns(rows: Any, treedef: Any) -> list[Any]:
    return list(treedef.flatten_up_to(rows))


def _leaves_of(item: Any, treedef: Any) -> list[Any]:
    return list(treedef.flatten_up_to(item))


def _grown(rows: Any, items: StackedList, capacity: int) -> Any:
    missing = capacity - items.capacity
    if isinstance(rows, Constant) or not missing:
        return rows
    return jnp.concatenate([rows, jnp.zeros((missing, *rows.shape[1:]), rows.dtype)])


def _column(flat: Sequence[Any], place: int, spec: Any, capacity: int) -> Any:
    if isinstance(spec, Constant):
        return spec
    if all(leaves is None for leaves in flat):
        return jnp.zeros((capacity, *spec.shape), spec.dtype)
    zeros = jnp.zeros(spec.shape, spec.dtype)
    given = [zeros if leaves is None else plain_value(leaves[place]) for leaves in flat]
    given += [zeros] * (capacity - len(given))
    return jnp.stack([jnp.asarray(row, spec.dtype) for row in given])


def plain_value(value: Any) -> Any:
    """Returns what a `Constant` holds; other values as they are."""
    return value.value if isinstance(value, Constant) else value


def _filled(column: Any, spec: Any, capacity: int) -> Any:
    """Returns the rows of an array, also where so far all were one constant."""
    if not isinstance(column, Constant):
        return column
    row = jnp.asarray(column.value, spec.dtype)
    return jnp.broadcast_to(row, (capacity, *spec.shape))


def rows_as_arrays(items: StackedList) -> Any:
    """Returns the rows of a list as arrays, those that are constants too."""

    def fill(rows: Any) -> Any:
        return _filled(rows, _as_spec(rows), items.capacity) if is_constant(rows) else rows

    return jax.tree.map(fill, items.rows, is_leaf=is_constant)


@dataclasses.dataclass(frozen=True, slots=True)
class ListForm:
    """A stacked form that several lists can be brought to.

    Attributes:
        element: see `element_of`.
        capacity: of all.
        is_sealed: see `StackedList`.
        length: of all, where they have the same and it is known.
    """

    element: Any
    capacity: int
    is_sealed: bool
    length: int | None

    def apply(self, items: AnyList) -> StackedList:
        """Returns a list in this form."""
        made = stacked(items, self.element, self.capacity, is_sealed=self.is_sealed)
        if self.length is not None:
            return made
        return dataclasses.replace(made, length=jnp.asarray(made.length, np.int32))


def common_form(lists: Sequence[AnyList]) -> ListForm:
    """Returns the form in which lists have as many places as the longest.

    Raises:
        UnsupportedOpError: their elements are of different shapes.
    """
    element = None
    for items in lists:
        element = common_element(element, element_of(items))
    lengths = [length_of(items) for items in lists]
    is_known_length = all(isinstance(n, int) and n == lengths[0] for n in lengths)
    return ListForm(
        element,
        max(map(capacity_of, lists)),
        any(isinstance(items, StackedList) and items.is_sealed for items in lists),
        lengths[0] if is_known_length else None,
    )


def map_values(fn: Callable[..., Any], first: Any, *others: Any) -> Any:
    """Returns what a function makes of the elements of lists, lists in lists too; None stays."""
    if first is None:
        return None
    if isinstance(first, StackedList):
        rows = map_values(fn, first.rows, *(other.rows for other in others))
        return dataclasses.replace(first, rows=rows)
    if isinstance(first, TensorList):
        columns = zip(first.items, *(other.items for other in others), strict=True)
        return first.replaced([map_values(fn, *column) for column in columns])
    return jax.tree.map(fn, first, *others)
