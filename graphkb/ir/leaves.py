"""What leaves of a graph carry: constant values, placeholder identities and variable cells."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from graphkb.ir.types import NUMPY_DTYPE, TensorType

Array = np.ndarray[Any, np.dtype[Any]]

_SMALL = 64  # bytes up to which constants are compared by value


class Constant:
    """An immutable array as an attribute: small ones compare by value, large ones by identity."""

    __slots__ = ("_hash", "_key", "array")

    def __init__(self, array: Array) -> None:
        # A read-only view may look at memory that its owner still changes.
        if array.flags.writeable or array.base is not None or not array.flags.c_contiguous:
            array = array.copy()
            array.flags.writeable = False
        self.array = array
        self._key: tuple[Any, ...] | None = None
        if array.nbytes <= _SMALL:
            self._key = (array.dtype, array.shape, array.tobytes())
        self._hash = hash(self._key) if self._key else id(array)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Constant):
            return False
        return self._key == other._key if self._key else self.array is other.array

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        if 0 < self.array.size <= 8:
            return _nested(self.array)
        return f"<{self.array.nbytes} bytes>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Constant, (self.array,)


def _nested(array: Array) -> str:
    """The elements as they print in their own dtype: float32 0.1 is 0.1, not its 17 digits in float64."""
    if array.ndim == 0:
        return str(array[()])
    return f"[{', '.join(_nested(np.asarray(row)) for row in array)}]"


class PlaceholderKey:
    """The identity of a placeholder: two placeholders of one type never merge."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return repr(self.name)


def aligned_empty(shape: tuple[int, ...], dtype: str, align: int = 64) -> Array:
    """An uninitialized C-contiguous array whose data starts at a multiple of `align` bytes."""
    kind = NUMPY_DTYPE[dtype]
    nbytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    raw = np.empty(nbytes + align, np.uint8)
    start = -raw.ctypes.data % align
    return raw[start : start + nbytes].view(kind).reshape(shape)


_HEADER = 64
WORD_BYTES = 8
VERSION_WORD, SEEN_WORD, RUNS_WORD = -1, -2, -3
"""Words before the elements of an array with a header: of which value they are, and what machine code notes there."""


def empty_with_header(shape: tuple[int, ...], dtype: str) -> tuple[Array, Array]:
    """An uninitialized array like `aligned_empty`'s, and the words of zeros that end where its elements begin."""
    kind = NUMPY_DTYPE[dtype]
    nbytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    raw = aligned_empty((_HEADER + nbytes,), "uint8")
    header = raw[:_HEADER].view(np.int64)
    header[:] = 0
    return raw[_HEADER:].view(kind).reshape(shape), header


class VariableCell:
    """The storage of one variable: a C-contiguous aligned array that stays where it is for the cell's life.

    Native code holds its address, so a new value is copied in and the array is never replaced. Readers and writers
    take the process-wide state lock (graphkb.runtime.native_call.state_lock), and writers count `version` up, which
    native code does in the word before the elements.
    """

    __slots__ = ("__weakref__", "_header", "array", "name", "type")

    def __init__(self, value: Array, name: str) -> None:
        dtype = value.dtype.name
        self.array, self._header = empty_with_header(value.shape, dtype)
        self.array[...] = value
        self.name = name
        self.type = TensorType(dtype, tuple(value.shape))

    @property
    def version(self) -> int:
        """The number of the value that the variable holds."""
        return int(self._header[VERSION_WORD])

    def count_version(self) -> None:
        """Note that the variable is about to have a new value."""
        self._header[VERSION_WORD] += 1

    def __repr__(self) -> str:
        return repr(self.name)

    def __reduce__(self) -> tuple[Callable[..., VariableCell], tuple[Any, ...]]:
        return type(self), (self.array.copy(), self.name)


class DrawCell(VariableCell):
    """The number of the call of one random draw: every function that makes the draw counts it up.

    Attributes:
        serial: a number that grows from draw to draw, which tells what was drawn since a moment.
    """

    __slots__ = ("serial",)

    def __init__(self, value: Array, name: str) -> None:
        super().__init__(value, name)
        self.serial = next(_serials)


_serials = itertools.count()


_counters: dict[str, int] = {}
_counter_lock = threading.Lock()


def unique_name(prefix: str) -> str:
    """`prefix`, `prefix_1`, `prefix_2` …: names for people; identity never rests on them."""
    with _counter_lock:
        count = _counters.get(prefix, 0)
        _counters[prefix] = count + 1
    return prefix if count == 0 else f"{prefix}_{count}"
