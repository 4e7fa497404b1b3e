"""Where Python and NumPy keep the fields that native code reads: found on known objects, never assumed."""

import ctypes
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from graphkb.codegen.entry_words import WORD, Layout
from graphkb.runtime.numpy_api import current_handler


class LayoutError(RuntimeError):
    """An object's memory does not look as expected, so native code must not read it."""


def calibrate() -> Layout:
    """The byte offsets of all fields of `Layout` in this process.

    Each field is sought in the memory of several objects that differ in it, and must be found at exactly one
    offset. Raises LayoutError otherwise.
    """
    header = object.__basicsize__
    ob_type = header - WORD
    sample: tuple[Any, ...] = (1, "a", 1.5, [], (), None, object(), np.zeros(2), np.dtype("float32"))
    if any(_words(item, header)[-1] != id(type(item)) for item in sample):
        raise LayoutError("the type pointer is not the last word of an object's header")
    ob_size, list_items = _list_fields()
    tuple_items = _tuple_fields(ob_size)
    return Layout(
        ob_type,
        ob_size,
        list_items,
        tuple_items,
        **_array_fields(),
        array_handler=_handler_field(),
        **_descr_fields(),
        method_self=_method_field(),
        words=header,
    )


def _bytes(item: object, size: int) -> bytes:
    return ctypes.string_at(id(item), size)


def _words(item: object, size: int) -> tuple[int, ...]:
    return struct.unpack_from(f"={size // WORD}Q", _bytes(item, size))


def _at(address: int, count: int) -> list[int]:
    return list((ctypes.c_uint64 * count).from_address(address))


def _locate(field: str, images: Sequence[bytes], values: Iterable[int], code: str) -> int:
    """The only offset at which every image holds its value, read as the struct format `code`."""
    step = struct.calcsize(code)
    found = set(range(0, min(map(len, images)) - step + 1, step))
    for image, value in zip(images, values, strict=True):
        found = {at for at in found if struct.unpack_from(code, image, at)[0] == value}
    if len(found) != 1:
        raise LayoutError(f"the field {field} is found at {len(found)} offsets instead of one")
    return found.pop()


def _list_fields() -> tuple[int, int]:
    """Offsets of a list's length and item pointer; a list that grew tells its length from its capacity."""
    grown = [(1,)]
    grown.append((2,))
    lists: list[list[Any]] = [[], [(1,)], [(1,), (2,), (3,)], grown, [None] * 37]
    size = list.__basicsize__
    ob_size = _locate("list size", [_bytes(one, size) for one in lists], map(len, lists), "=q")
    rows = [_words(one, size) for one in lists]
    tails = [at for at in range(ob_size // WORD + 1, size // WORD) if rows[0][at] == 0]
    items = [at for at in tails if all(row[at] > 1 << 12 and row[at] % WORD == 0 for row in rows[1:])]
    if len(items) != 1:
        raise LayoutError(f"the field list items is found at {len(items)} offsets instead of one")
    for one, row in zip(lists, rows, strict=True):
        if one and _at(row[items[0]], len(one)) != list(map(id, one)):
            raise LayoutError("a list's item pointer does not lead to its items")
    return ob_size, items[0] * WORD


def _tuple_fields(ob_size: int) -> int:
    tuples: list[tuple[Any, ...]] = [([],), ([], []), ([], {}, [], set())]
    images = [_bytes(one, tuple.__basicsize__ + WORD * len(one)) for one in tuples]
    items = _locate("tuple items", images, (id(one[0]) for one in tuples), "=Q")
    if any(list(_words(one, items + WORD * len(one))[items // WORD :]) != list(map(id, one)) for one in tuples):
        raise LayoutError("a tuple's items do not follow each other")
    if any(_words(one, items)[ob_size // WORD] != len(one) for one in tuples):
        raise LayoutError("a tuple keeps its length elsewhere than a list")
    return items


def _array_fields() -> dict[str, int]:
    base = np.zeros((4, 6))
    packed = np.frombuffer(bytes(33), np.uint8, 32, offset=1)
    readonly = np.arange(5, dtype=np.int16)
    readonly.flags.writeable = False
    arrays: list[np.ndarray[Any, Any]] = [
        base,
        np.array(1.5),
        np.zeros(7, np.float32),
        np.zeros((2, 3, 5), np.int8),
        np.zeros((3, 1, 2, 0, 4, 2), np.bool_),
        np.zeros((3, 2, 2, 1, 4), np.complex64, order="F"),
        base[1:, ::2],
        base.T,
        packed.view(np.float64),
        np.zeros(3, ">i4"),
        readonly,
    ]
    size = int(np.ndarray.__basicsize__)
    images = [_bytes(one, size) for one in arrays]

    def locate(field: str, values: Iterable[int], code: str) -> int:
        return _locate(field, images, values, code)

    fields = {
        "array_data": locate("array data", (one.__array_interface__["data"][0] for one in arrays), "=Q"),
        "array_ndim": locate("array ndim", (one.ndim for one in arrays), "=i"),
        "array_descr": locate("array descr", (id(one.dtype) for one in arrays), "=Q"),
        "array_flags": locate("array flags", (one.flags.num for one in arrays), "=i"),
    }
    rows = [struct.unpack_from(f"={size // WORD}Q", image) for image in images]
    # The sizes and the strides lie in one block, so the pointers to them differ by the sizes' extent.
    starts = [
        at
        for at in range(size // WORD - 1)
        if all(row[at + 1] - row[at] == WORD * one.ndim for one, row in zip(arrays, rows) if one.ndim)
        and all(row[at] % WORD == 0 and row[at] > 1 << 12 for one, row in zip(arrays, rows) if one.ndim)
    ]
    if len(starts) != 1:
        raise LayoutError(f"the field array dims is found at {len(starts)} offsets instead of one")
    for one, row in zip(arrays, rows):
        if one.ndim and _at(row[starts[0]], one.ndim) != list(one.shape):
            raise LayoutError("an array's dims pointer does not lead to its shape")
    return fields | {"array_dims": starts[0] * WORD}


def _handler_field() -> int:
    """The offset at which an array that owns its data names the handler of that; others have none."""
    owners: list[np.ndarray[Any, Any]] = [np.zeros(3), np.zeros((2, 2), np.int8), np.array(1)]
    others: list[np.ndarray[Any, Any]] = [owners[0][1:], owners[1].T, np.frombuffer(b"abc", np.uint8)]
    images = [_bytes(one, int(np.ndarray.__basicsize__)) for one in (*owners, *others)]
    handler = current_handler()
    return _locate("array handler", images, [handler] * len(owners) + [0] * len(others), "=Q")


def _method_field() -> int:
    """The offset at which a built-in function names the object that it belongs to."""
    owners: list[Any] = [[], {}, set(), "a"]
    methods = [owners[0].append, owners[1].get, owners[2].add, owners[3].upper]
    images = [_bytes(one, int(type(one).__basicsize__)) for one in methods]
    return _locate("method self", images, map(id, owners), "=Q")


def _descr_fields() -> dict[str, int]:
    descrs = [np.dtype(name) for name in ("=f4", "=f8", ">i4", ">u2", "i1", "?", "=i8", ">c16", "=f2")]
    size = int(np.dtype.__basicsize__)
    images = [_bytes(one, size) for one in descrs]
    return {
        "descr_order": _locate("dtype order", images, (ord(one.byteorder) for one in descrs), "=b"),
        "descr_type_num": _locate("dtype number", images, (one.num for one in descrs), "=i"),
    }
