"""Lists of tensors, as values: what TensorLists, TensorArrays and stacks hold.

A list has one of two forms. `TensorList` holds its elements one by one: how many there are is
known, and their shapes may differ. `StackedList` holds them as the rows of one array: that is what
a compiled loop can carry, and what an index that is known only at run time can reach into. The
functions here take either, and go over to the second form where they must.
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
        rows = _map_values(lambda a, b: a + b, _with_arrays(ours), _with_arrays(theirs))
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


# --- forms -------------------------------------------------------------------------------------


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
            found = common_element(found, _spec(item))
    return found


def _declared_element(items: AnyList) -> Any:
    """Returns the spec of an array that a list was made for, or None if it does not say."""
    shape, number = items.element_shape, items.dtype_number
    is_full = shape is not None and min(shape, default=0) >= 0 and number != dtypes.VARIANT
    return jax.ShapeDtypeStruct(shape, _dtype(number)) if is_full else None


def _without_constants(element: Any) -> Any:
    return jax.tree.map(_as_spec, element, is_leaf=_is_leaf)


def _dtype(number: int) -> Any:
    return jax.dtypes.canonicalize_dtype(dtypes.dtype_from_number(number))


def _spec(item: Any) -> Any:
    def leaf(value: Any) -> Any:
        if isinstance(value, (Constant, jax.ShapeDtypeStruct)):
            return value
        if not is_array(value) or (is_known(value) and not isinstance(value, jax.Array)):
            return Constant(value)
        return jax.ShapeDtypeStruct(value.shape, value.dtype)

    return jax.tree.map(leaf, item)


def _is_leaf(value: Any) -> bool:
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
    leaves, treedef = jax.tree.flatten(a, is_leaf=_is_leaf)
    others, other_treedef = jax.tree.flatten(b, is_leaf=_is_leaf)
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
        element = _without_constants(element)  # what was not set is zeros
    if element is None:
        raise errors.UnsupportedOpError("the shape of a list's elements is not known")
    capacity = max(capacity_of(items), capacity or 0)
    specs, treedef = jax.tree.flatten(element, is_leaf=_is_leaf)
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
    given = [zeros if leaves is None else _plain(leaves[place]) for leaves in flat]
    given += [zeros] * (capacity - len(given))
    return jnp.stack([jnp.asarray(row, spec.dtype) for row in given])


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Constant) else value


def _filled(column: Any, spec: Any, capacity: int) -> Any:
    """Returns the rows of an array, also where so far all were one constant."""
    if not isinstance(column, Constant):
        return column
    row = jnp.asarray(column.value, spec.dtype)
    return jnp.broadcast_to(row, (capacity, *spec.shape))


def _with_arrays(items: StackedList) -> Any:
    """Returns the rows of a list as arrays, those that are constants too."""

    def fill(rows: Any) -> Any:
        return _filled(rows, _as_spec(rows), items.capacity) if _is_leaf(rows) else rows

    return jax.tree.map(fill, items.rows, is_leaf=_is_leaf)


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


# --- elements ----------------------------------------------------------------------------------


def zeros_of_element(shape: Any, dtype: Any, others: Sequence[Any]) -> Any:
    """Returns zeros in place of an element that was not set.

    Raises:
        InvalidArgumentError: neither the shape is known, nor that of another element.
    """
    is_known_shape = shape is not None and all(n is not None and n >= 0 for n in shape)
    if not is_known_shape:
        shape = next((np.shape(other) for other in others if other is not None), None)
    if shape is None:
        raise errors.InvalidArgumentError("an element was read that was never written")
    return jnp.zeros(tuple(shape), dtype)


def get(items: AnyList, index: Any, element_shape: tuple[int, ...] | None = None) -> Any:
    """Returns an element; zeros where it was not set. The index is one that the list has."""
    if isinstance(items, TensorList):
        if is_known(index):
            value = items.items[int(index)]
            if value is not None:
                return value
            shape = element_shape
            if shape is None or min(shape, default=0) < 0:
                shape = items.element_shape
            return zeros_of_element(shape, _dtype(items.dtype_number), items.items)
        is_full = element_shape is not None and min(element_shape, default=0) >= 0
        known = dataclasses.replace(items, element_shape=element_shape) if is_full else items
        items = stacked(known)

    def row(rows: Any) -> Any:
        if isinstance(rows, Constant):
            return rows.value
        return jax.lax.dynamic_index_in_dim(rows, _index(index), keepdims=False)

    return jax.tree.map(row, items.rows, is_leaf=_is_leaf)


def _index(index: Any) -> Any:
    return index if not is_known(index) else int(index)


def put(items: AnyList, index: Any, value: Any, *, adds: bool = False) -> AnyList:
    """Returns the list with an element set, or added to. The index is one that the list has."""
    if isinstance(items, TensorList) and is_known(index):
        elements = list(items.items)
        old = elements[int(index)]
        elements[int(index)] = value if old is None or not adds else old + value
        return items.replaced(elements)
    is_sealed = isinstance(items, StackedList) and items.is_sealed
    try:
        made = stacked(items, _spec(value), is_sealed=is_sealed)
    except errors.UnsupportedOpError:
        if not (isinstance(items, StackedList) and is_known(index) and is_known(items.length)):
            raise
        return put(unstacked(items), index, value, adds=adds)
    treedef: Any = jax.tree.structure(made.rows, is_leaf=_is_leaf)
    leaves = treedef.flatten_up_to(value)
    given = iter(leaves)

    def set_row(rows: Any) -> Any:
        leaf = next(given)
        if isinstance(rows, Constant):
            return rows
        row = jnp.asarray(_plain(leaf), rows.dtype)
        if adds:
            row = row + jax.lax.dynamic_index_in_dim(rows, _index(index), keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(rows, row, _index(index), 0)

    return dataclasses.replace(made, rows=jax.tree.map(set_row, made.rows, is_leaf=_is_leaf))


def unstacked(items: AnyList) -> TensorList:
    """Returns a list of known length as its elements one by one."""
    if isinstance(items, TensorList):
        return items
    elements = tuple(get(items, index) for index in range(int(items.length)))
    return TensorList(elements, items.element_shape, items.dtype_number)


def push(items: AnyList, value: Any) -> AnyList:
    """Returns the list with an element more at its end."""
    if isinstance(items, TensorList):
        return items.replaced((*items.items, value))
    has_place = items.is_sealed or (isinstance(items.length, int) and items.length < items.capacity)
    if not has_place:
        items = stacked(items, _spec(value), items.capacity + 1)
    made = put(items, items.length, value)
    assert isinstance(made, StackedList)
    return dataclasses.replace(made, length=items.length + 1)


def pop(items: AnyList, element_shape: tuple[int, ...] | None = None) -> tuple[AnyList, Any]:
    """Returns the list without its last element, and that; there is one."""
    if isinstance(items, TensorList):
        last = get(items, len(items.items) - 1, element_shape)
        return items.replaced(items.items[:-1]), last
    length = items.length - 1
    return dataclasses.replace(items, length=length), get(items, length)


def resized(items: AnyList, size: Any) -> AnyList:
    """Returns the list with its last elements dropped, or more that are not set.

    Raises:
        UnsupportedOpError: the size is traced.
    """
    if not (is_known(size) and is_known(length_of(items))):
        raise errors.UnsupportedOpError("a list gets a size that is not known while tracing")
    items, size = unstacked(items), int(size)
    return items.replaced((*items.items[:size], *[None] * (size - len(items.items))))


def lengthened(items: AnyList, value: Any, length: Any) -> StackedList:
    """Returns the list with places for an element more, and a length that is traced.

    Args:
        items: the list.
        value: what its elements are like.
        length: how many elements it has then.
    """
    is_sealed = isinstance(items, StackedList) and items.is_sealed
    capacity = capacity_of(items) + (not is_sealed)
    element = _without_constants(_spec(value))
    made = stacked(items, element, capacity, is_sealed=is_sealed)
    return dataclasses.replace(made, length=length)


def joined(items: AnyList) -> list[Any]:
    """Returns the elements joined along their first axis, and how much each has of it."""
    if isinstance(items, StackedList):
        rows = all_rows(items)
        lengths = np.full(len(rows), rows.shape[1], np.int64)
        return [jnp.reshape(rows, (-1, *rows.shape[2:])), lengths]
    rows = [get(items, index) for index in range(len(items.items))]
    lengths = np.asarray([row.shape[0] for row in rows], np.int64)
    return [jnp.concatenate(rows), lengths]


def all_rows(items: AnyList, element_shape: tuple[int, ...] | None = None) -> Any:
    """Returns the elements as the rows of one array.

    Raises:
        UnsupportedOpError: how many there are is not known while tracing.
    """
    if isinstance(items, StackedList):
        if not isinstance(items.length, int):
            raise errors.UnsupportedOpError("the length of a list is not known while tracing")
        rows = _with_arrays(items)
        return rows if items.length == items.capacity else rows[: items.length]
    elements = [get(items, index, element_shape) for index in range(len(items.items))]
    return jnp.stack(elements) if elements else no_rows(items, element_shape)


def no_rows(items: AnyList, element_shape: Sequence[int | None] | None) -> Any:
    """Returns the array of no elements of a list."""
    shape = element_shape if element_shape is not None else items.element_shape
    sizes = [max(size or 0, 0) for size in shape or ()]
    return jnp.zeros((0, *sizes), _dtype(items.dtype_number))


def some_rows(items: AnyList, indices: Any, element_shape: Any = None) -> Any:
    """Returns elements as the rows of one array."""
    if is_known(indices) and isinstance(items, TensorList):
        rows = [get(items, index, element_shape) for index in np.asarray(indices).tolist()]
        return jnp.stack(rows) if rows else no_rows(items, element_shape)
    is_range = is_known(indices) and isinstance(length_of(items), int)
    if is_range and is_same(np.asarray(indices), np.arange(length_of(items), dtype=np.int32)):
        return all_rows(items, element_shape)
    return jnp.take(_with_arrays(stacked(items)), jnp.asarray(indices), axis=0)


def from_rows(array: Any, element_shape: tuple[int, ...] | None, dtype_number: int) -> StackedList:
    """Returns the list of the rows of an array."""
    return StackedList(array, len(array), len(array), element_shape, dtype_number)


def zeros_like(items: AnyList) -> AnyList:
    """Returns a list of zeros."""
    if isinstance(items, TensorList):
        return items.replaced([_map_values(jnp.zeros_like, item) for item in items.items])
    return dataclasses.replace(items, rows=_map_values(jnp.zeros_like, _with_arrays(items)))


def _map_values(fn: Callable[..., Any], first: Any, *others: Any) -> Any:
    """Returns what a function makes of the elements of lists, lists in lists too; None stays."""
    if first is None:
        return None
    if isinstance(first, StackedList):
        rows = _map_values(fn, first.rows, *(other.rows for other in others))
        return dataclasses.replace(first, rows=rows)
    if isinstance(first, TensorList):
        columns = zip(first.items, *(other.items for other in others), strict=True)
        return first.replaced([_map_values(fn, *column) for column in columns])
    return jax.tree.map(fn, first, *others)
