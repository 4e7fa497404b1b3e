"""Packed weights: the layout in which a matrix product reads a whole operand best, and who asks for such copies."""

from __future__ import annotations

from functools import cached_property
from math import prod
from typing import Literal, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided

from graphkb.codegen.builder import Builder, Value
from graphkb.ir.leaves import RUNS_WORD, SEEN_WORD, VERSION_WORD, WORD_BYTES, Array
from graphkb.ir.node import Node
from graphkb.ir.record import record
from graphkb.ir.types import TensorType

Reads: TypeAlias = Literal["plain", "either", "packed"]
"""How a kernel reads an operand: as it lies, packed where there is a copy, or packed."""

# Smaller matrices stay in the nearest caches, however they lie.
LEAST_BYTES = 1 << 16
# Fewer rows have wide tiles, which read long pieces of memory anyway, and would take a copy of their own.
FEWEST_ROWS = 6
# Calls that see one value of a variable before it is packed: packing takes as long as several calls can save.
PATIENCE = 4


@record
class PackedLayout:
    """Panels of columns one after another, in each of them row after row of the contracted axes.

    Attributes:
        dtype: of the elements.
        offset: of the first element in the plain operand.
        axes: the extent of each contracted axis, and how far apart its elements lie; the last one runs fastest.
        step: from one column to the next.
        panels: the first column of some panels, how many they are, their columns, and their columns in the copy.
    """

    dtype: str
    offset: int
    axes: tuple[tuple[int, int], ...]
    step: int
    panels: tuple[tuple[int, int, int, int], ...]

    @cached_property
    def rows(self) -> int:
        """The rows of a panel."""
        return prod(extent for extent, _ in self.axes)

    @property
    def size(self) -> int:
        """The elements of the copy."""
        return self.rows * sum(count * width for _, count, _, width in self.panels)

    @property
    def nbytes(self) -> int:
        return self.size * np.dtype(self.dtype).itemsize

    def pack(self, source: Array, target: Array) -> None:
        """Fill `target`, `size` elements, with the elements of the C-contiguous `source`, and zeros behind columns."""
        flat = source.reshape(-1)
        extents = [extent for extent, _ in self.axes]
        for first, count, columns, width in self.panels:
            steps = (columns * self.step, *[step for _, step in self.axes], self.step)
            shape = (count, *extents, columns)
            read = as_strided(flat[self.offset + first * self.step :], shape, [s * flat.itemsize for s in steps])
            begin = first * self.rows
            written = target[begin : begin + count * self.rows * width].reshape(count, *extents, width)
            written[..., :columns] = read
            written[..., columns:] = 0


@record
class Packing:
    """A leaf whose packed copy a program takes; `varies` tells whether its value may change."""

    leaf: Node
    layout: PackedLayout
    varies: bool


def may_be_packed(type: TensorType) -> bool:
    """Whether a variable is such that kernels may read a packed copy of it."""
    nbytes = type.nbytes
    return (
        len(type.shape) > 1
        and type.dtype in ("float32", "float64")
        and isinstance(nbytes, int)
        and nbytes >= LEAST_BYTES
    )


# ---------------------------------------------------------------------------------------------- versions
def _word(b: Builder, memory: Value, word: int) -> Value:
    """The address of a word that stands before the elements of a variable or of a copy."""
    return b.byte_offset(memory, b.const(word * WORD_BYTES, "int64"))


def version_of(b: Builder, memory: Value) -> Value:
    """The number of the value that a variable holds, or that a copy was made from."""
    return b.load(_word(b, memory, VERSION_WORD), "int64")


def count_version(b: Builder, memory: Value) -> None:
    """Note that a variable has a new value."""
    b.store(b.iadd(version_of(b, memory), b.const(1, "int64")), _word(b, memory, VERSION_WORD))


def emit_due(b: Builder, pairs: list[tuple[Value, Value]]) -> Value:
    """Whether one of some copies is old, and its variable has kept its value for some calls.

    Args:
        pairs: the addresses of variables and of their copies.
    """
    zero = b.const(0, "int64")
    due = b.alloca("int64", 1)
    b.store(zero, due)
    changed = zero
    for plain, packed in pairs:
        changed = b.or_(changed, b.xor(version_of(b, plain), version_of(b, packed)))

    def look(plain: Value, packed: Value, due: Value) -> None:
        version, seen = version_of(b, plain), _word(b, packed, SEEN_WORD)
        runs = _word(b, packed, RUNS_WORD)

        def count() -> None:
            same = b.icmp("eq", version, b.load(seen, "int64"))
            again = b.iadd(b.load(runs, "int64"), b.const(1, "int64"))
            number = b.select(same, again, b.const(0, "int64"))
            b.store(version, seen)
            b.store(number, runs)
            late = b.icmp("sge", number, b.const(PATIENCE, "int64"))
            b.branch(late, lambda: b.store(b.const(1, "int64"), due))

        b.branch(b.icmp("ne", version, version_of(b, packed)), count)

    def look_at_all() -> None:
        for plain, packed in pairs:
            b.helper("packed.due", [("plain", "ptr"), ("packed", "ptr"), ("due", "ptr")], look, [plain, packed, due])

    b.branch(b.icmp("ne", changed, zero), look_at_all, likely=False)
    return b.icmp("ne", b.load(due, "int64"), zero)


__all__ = [
    "FEWEST_ROWS",
    "LEAST_BYTES",
    "PATIENCE",
    "PackedLayout",
    "Packing",
    "Reads",
    "count_version",
    "emit_due",
    "may_be_packed",
    "version_of",
]
