"""Packed copies of variables and constants: one for each layout, shared by all functions that read it."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from weakref import WeakKeyDictionary, WeakValueDictionary

from graphkb.codegen.packed_weights import PackedLayout
from graphkb.ir.leaves import VERSION_WORD, Array, VariableCell, empty_with_header
from graphkb.runtime.state_lock import state_lock


class PackedCopy:
    """A variable's elements in another layout, with the version of the value that they were taken from.

    Machine code compares that version with the variable's, and reads the variable itself while they differ.

    Attributes: `array`, the elements; `cell`, the variable.
    """

    __slots__ = ("__weakref__", "_header", "array", "cell", "layout")

    def __init__(self, cell: VariableCell, layout: PackedLayout) -> None:
        self.cell = cell
        self.layout = layout
        self.array, self._header = empty_with_header((layout.size,), layout.dtype)
        self._header[VERSION_WORD] = -1

    @property
    def is_old(self) -> bool:
        return int(self._header[VERSION_WORD]) != self.cell.version

    def renew(self) -> None:
        """Pack the variable's value; the caller holds `state_lock` for itself."""
        self.layout.pack(self.cell.array, self.array)
        self._header[VERSION_WORD] = self.cell.version


_copies: WeakKeyDictionary[VariableCell, WeakValueDictionary[PackedLayout, PackedCopy]] = WeakKeyDictionary()
_mutex = Lock()


def copy_of(cell: VariableCell, layout: PackedLayout) -> PackedCopy:
    """The packed copy of a variable, which lives as long as somebody holds it; new ones are packed when asked for."""
    with _mutex:
        known = _copies.setdefault(cell, WeakValueDictionary())
        copy = known.get(layout)
        if copy is None:
            copy = known[layout] = PackedCopy(cell, layout)
        return copy


def packed_constant(value: Array, layout: PackedLayout) -> Array:
    """The elements of an array that never changes, packed."""
    array, _ = empty_with_header((layout.size,), layout.dtype)
    layout.pack(value, array)
    return array


def renew(copies: Sequence[PackedCopy]) -> bool:
    """Pack those variables anew that have other values by now; whether there were any."""
    if not copies:
        return False
    with state_lock.exclusive():
        old = [copy for copy in copies if copy.is_old]
        for copy in old:
            copy.renew()
    return bool(old)


__all__ = ["PackedCopy", "copy_of", "packed_constant", "renew"]
