"""Tables in memory: what the lookup operations of a graph work on.

A table takes keys to values of one dtype and shape. An element of an array of keys is a Python
number, bytes, or where a key is a vector a tuple of these.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmeta import errors


class Table:
    """Keys and values, which may be changed at any time.

    Args:
        name: for messages.
        key_dtype, value_dtype: of its keys and values; object for strings.
        value_shape: of one value.
        key_shape: of one key.

    Example:
        >>> table = Table("ages", np.dtype(object), np.dtype("int64"))
        >>> table.insert(np.array([b"ann", b"bob"], object), np.array([31, 7]))
        >>> table.find(np.array([b"bob", b"eve"], object), np.array(-1)).tolist(), table.size
        ([7, -1], 2)
    """

    def __init__(
        self,
        name: str,
        key_dtype: np.dtype[Any],
        value_dtype: np.dtype[Any],
        value_shape: Sequence[int] = (),
        key_shape: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.key_dtype = key_dtype
        self.value_dtype = value_dtype
        self.value_shape = tuple(value_shape)
        self.key_shape = tuple(key_shape)
        self._lock = threading.RLock()
        self._items: dict[Any, Any] = {}

    @property
    def size(self) -> int:
        """How many keys it has."""
        return len(self._items)

    def find(self, keys: Any, default_value: Any) -> np.ndarray[Any, Any]:
        """Returns the value of each key; the default one, or its element, where there is none.

        Raises:
            FailedPreconditionError: the table has to be initialized first.
            InvalidArgumentError: dtypes or shapes are not the table's.
        """
        keys, default = np.asarray(keys), np.asarray(default_value)
        shape = self._shape_of(keys)
        self._check_dtypes(keys, default)
        found = np.empty((*shape, *self.value_shape), self.value_dtype)
        rows = found.reshape(-1, *self.value_shape)
        if default.shape == found.shape and default.shape != self.value_shape:
            rows[...] = default.reshape(rows.shape)
        elif default.shape in (self.value_shape, ()):
            rows[...] = default
        else:
            raise errors.InvalidArgumentError(
                f"table {self.name!r}: Expected shape {list(self.value_shape)} or "
                f"{list(found.shape)} for default value, got {list(default.shape)}"
            )
        with self._lock:
            items = self._items
            for index, key in enumerate(self._keys(keys)):
                if key in items:
                    rows[index] = items[key]
        return found

    def insert(self, keys: Any, values: Any) -> None:
        """Gives keys new values.

        Raises:
            InvalidArgumentError: dtypes or shapes are not the table's.
        """
        with self._lock:
            self._items.update(self._pairs(keys, values))

    def remove(self, keys: Any) -> None:
        """Removes keys; those that are not there are no error.

        Raises:
            InvalidArgumentError: the dtype or shape is not the table's.
        """
        keys = np.asarray(keys)
        self._shape_of(keys)
        self._check_dtypes(keys)
        with self._lock:
            for key in self._keys(keys):
                self._items.pop(key, None)

    def replace(self, keys: Any, values: Any) -> None:
        """Replaces all that is in it.

        Raises:
            InvalidArgumentError: dtypes or shapes are not the table's.
        """
        pairs = self._pairs(keys, values)
        with self._lock:
            self._items.clear()
            self._items.update(pairs)

    def export(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Returns all keys and all values, in an order of their own."""
        with self._lock:
            count = len(self._items)
            keys = np.empty((count, *self.key_shape), self.key_dtype)
            values = np.empty((count, *self.value_shape), self.value_dtype)
            for index, (key, value) in enumerate(self._items.items()):
                keys[index] = key
                values[index] = value
        return keys, values

    # --- keys

    def _keys(self, keys: np.ndarray[Any, Any]) -> list[Any]:
        if not self.key_shape:
            return keys.ravel().tolist()
        size = int(np.prod(self.key_shape))
        return [tuple(row) for row in keys.reshape(-1, size).tolist()]

    def _shape_of(self, keys: np.ndarray[Any, Any]) -> tuple[int, ...]:
        """Returns the shape of an array of keys, of which each may have a shape itself."""
        rank = len(self.key_shape)
        if rank and keys.shape[keys.ndim - rank :] != self.key_shape:
            raise errors.InvalidArgumentError(
                f"table {self.name!r}: Expected key shape {list(self.key_shape)}, got "
                f"{list(keys.shape)}"
            )
        return keys.shape[: keys.ndim - rank]  # type: ignore[no-any-return]

    def _check_dtypes(self, keys: Any, values: Any = None) -> None:
        expected = [self.key_dtype, self.value_dtype]
        found = [array.dtype for array in (keys, values) if array is not None]
        if found != expected[: len(found)]:
            raise errors.InvalidArgumentError(
                f"table {self.name!r} is from {expected[0]} to {expected[1]}, it was given "
                f"{' and '.join(map(str, found))}"
            )

    def _pairs(self, keys: Any, values: Any) -> list[tuple[Any, Any]]:
        keys, values = np.asarray(keys), np.asarray(values)
        self._check_dtypes(keys, values)
        shape = (*self._shape_of(keys), *self.value_shape)
        if values.shape != shape:
            raise errors.InvalidArgumentError(
                f"table {self.name!r}: Expected shape {list(shape)} for value, got "
                f"{list(values.shape)}"
            )
        rows = values.reshape(-1, *self.value_shape)
        if not self.value_shape:
            return list(zip(self._keys(keys), rows.tolist(), strict=True))
        return list(zip(self._keys(keys), [row.copy() for row in rows], strict=True))


class DenseTable(Table):
    """A table two of whose keys stand for "none" in TensorFlow, so that they cannot be used.

    Args:
        reserved: what TensorFlow calls these keys, each with the key.
    """

    def __init__(self, *args: Any, reserved: Sequence[tuple[str, Any]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reserved = {
            self._keys(np.asarray(key, self.key_dtype))[0]: name for name, key in reserved
        }
        if len(self._reserved) != len(reserved):
            raise errors.InvalidArgumentError("Empty and deleted keys cannot be equal")

    def replace(self, keys: Any, values: Any) -> None:
        """Replaces all that is in it; a reserved key is that of a bucket of TensorFlow's."""
        keys, values = np.asarray(keys), np.asarray(values)
        self._check_dtypes(keys, values)
        self._shape_of(keys)
        used = [index for index, key in enumerate(super()._keys(keys)) if key not in self._reserved]
        super().replace(keys[used], values[used])

    def _keys(self, keys: np.ndarray[Any, Any]) -> list[Any]:
        found = super()._keys(keys)
        for key, name in getattr(self, "_reserved", {}).items():
            if key in found:
                raise errors.InvalidArgumentError(
                    f"table {self.name!r}: Using the {name} as a table key is not allowed"
                )
        return found


class StaticTable(Table):
    """A table that gets its contents once, and must have them before it is used."""

    is_initialized = False

    @property
    def size(self) -> int:
        """How many keys it has."""
        self._check_initialized()
        return super().size

    def find(self, keys: Any, default_value: Any) -> np.ndarray[Any, Any]:
        """Returns the value of each key; see `Table.find`."""
        self._check_initialized()
        return super().find(keys, default_value)

    def export(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Returns all keys and all values; see `Table.export`."""
        self._check_initialized()
        return super().export()

    def insert(self, keys: Any, values: Any) -> None:
        """Raises UnsupportedOpError: such a table is not changed; TensorFlow raises this too."""
        raise errors.UnsupportedOpError(f"table {self.name!r}: Insert not supported, it is static")

    remove = insert  # type: ignore[assignment]

    def replace(self, keys: Any, values: Any) -> None:
        """Gives the table its contents; see `initialize`."""
        self.initialize(keys, values)

    def initialize(self, keys: Any, values: Any) -> None:
        """Gives the table its contents; the same ones may be given once more.

        Raises:
            FailedPreconditionError: it has others already.
            InvalidArgumentError: a key has two values, or dtypes or shapes are not the table's.
        """
        items: dict[Any, Any] = {}
        for key, value in self._pairs(keys, values):
            if items.setdefault(key, value) != value:
                raise errors.InvalidArgumentError(
                    f"table {self.name!r} has different value for same key: {key!r} has "
                    f"{items[key]!r} and it was tried to add value {value!r}"
                )
        with self._lock:
            if self.is_initialized and items != self._items:
                raise errors.FailedPreconditionError(
                    f"table {self.name!r} was already initialized with different data"
                )
            self._items = items
            self.is_initialized = True

    def _check_initialized(self) -> None:
        if not self.is_initialized:
            raise errors.FailedPreconditionError(
                f"table {self.name!r} is not initialized: run what is in the collection "
                "'table_initializer' first"
            )
