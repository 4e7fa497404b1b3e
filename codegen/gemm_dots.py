"""Micro-kernels for operands that both lie along K: each element of the tile is a dot product of two vectors' lanes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TypeVar

from graphkb.codegen.builder import Builder, Value
from graphkb.codegen.builder_ops import mangled
from graphkb.ir.record import record

T = TypeVar("T")

# Products that one lane adds up before the lanes are summed, which keeps rounding errors low.
_RUN = 512


@record
class Dots:
    """One micro-kernel: C[i, j] = the sum over k of A[i, k] B[j, k], vectors along k.

    Attributes:
        dtype: of the sums and of C.
        a, b: the operands' dtypes in memory.
        lanes: elements of a vector.
        rows, columns: of the tile; where columns are no power of 2, it is masked.
        depth: how many vectors along K add up beside each other, so that enough sums are in flight.
        masked: it stores only the rows and columns that exist, else whole tiles.
    """

    dtype: str
    a: str
    b: str
    lanes: int
    rows: int
    columns: int
    depth: int
    masked: bool

    @property
    def name(self) -> str:
        kinds = self.dtype if self.a == self.b == self.dtype else f"{self.dtype}.{self.a}.{self.b}"
        return f"dots.{kinds}.{self.rows}x{self.columns}x{self.depth * self.lanes}{'.m' if self.masked else ''}"

    @property
    def slots(self) -> int:
        """Places for the dot products of a row: as many as its columns, rounded up to a power of 2."""
        return 1 << (self.columns - 1).bit_length()

    @property
    def group(self) -> int:
        """How many places one vector has in the end; the last vector may have fewer."""
        return min(self.lanes, 1 << (self.rows * self.slots).bit_length() - 1)

    @property
    def groups(self) -> list[int]:
        """The places of each such vector, row after row: powers of 2."""
        left = self.rows * self.slots
        return [*[self.group] * (left // self.group), *([left % self.group] if left % self.group else [])]

    def call(
        self,
        out: Builder,
        addresses: tuple[Value, Value, Value],
        length: Value,
        strides: tuple[Value, Value, Value],
        columns: Value,
        left: Value,
    ) -> None:
        """Run it.

        Args:
            out: the module.
            addresses: of the first elements of A, B and C.
            length: of K.
            strides: in elements: from one row of A to the next, from one column of B to the next, and C's along rows.
            columns, left: how many columns and rows there are, at least one; further ones repeat the last.
        """
        params = [(name, "ptr") for name in "abc"]
        params += [(name, "int64") for name in ("length", "a_row", "b_column", "c_row", "columns", "left")]
        args = [*addresses, length, *strides, columns, left]
        out.helper(self.name, params, lambda *values: _Writer(out, self, values).write(), args)


class _Writer:
    """Writes the function of one micro-kernel."""

    def __init__(self, b: Builder, dots: Dots, values: Sequence[Value]) -> None:
        self.b = b
        self.dots = dots
        self.at_a, self.at_b, self.at_c, self.length, self.a_row, self.b_column, self.c_row, *rest = values
        self.columns, self.left = rest
        can_mask = b.target.can_mask
        self.masks_k = can_mask(dots.a) and can_mask(dots.b)

    def write(self) -> None:
        b, dots = self.b, self.dots
        rows = self._starts(self.at_a, self.a_row, dots.rows, self.left, dots.a)
        columns = self._starts(self.at_b, self.b_column, dots.columns, self.columns, dots.b)
        lanes = b.const(dots.lanes, "int64")
        run = b.const(_RUN * dots.lanes, "int64")
        whole = self.length if self.masks_k else b.imul(b.sdiv(self.length, lanes), lanes)
        zeros = [b.const(0, dots.dtype, size) for size in dots.groups]

        def block(start: Value, *totals: Value) -> list[Value]:
            end = b.minimum(b.iadd(start, run), whole)
            return [b.fadd(x, y) for x, y in zip(totals, self._block(rows, columns, start, end))]

        sums = b.loop(b.const(0, "int64"), whole, run, block, zeros, hint="block")
        if not self.masks_k:
            sums = self._rest(rows, columns, whole, sums)
        self._store(sums)

    def _starts(self, first: Value, step: Value, count: int, exist: Value, dtype: str) -> list[Value]:
        """The addresses of rows or columns; those that do not exist repeat the last."""
        b = self.b
        last = b.isub(exist, b.const(1, "int64"))
        inside = [b.minimum(b.const(i, "int64"), last) for i in range(1, count)]
        return [first, *[b.gep(first, b.imul(i, step), dtype) for i in inside]]

    def _block(self, rows: list[Value], columns: list[Value], start: Value, end: Value) -> list[Value]:
        """The dot products over a range of K, row after row."""
        b, dots = self.b, self.dots
        count = dots.rows * dots.columns
        zeros = [b.const(0, dots.dtype, dots.lanes)] * count

        def products(at: Value, mask: Value | None, sums: Sequence[Value]) -> list[Value]:
            across = [self._load(row, at, dots.a, mask) for row in rows]
            down = [self._load(column, at, dots.b, mask) for column in columns]
            pairs = [(x, y) for x in across for y in down]
            return [b.fma(x, y, total) for (x, y), total in zip(pairs, sums)]

        def several(at: Value, *sums: Value) -> list[Value]:
            after: list[Value] = []
            for i in range(dots.depth):
                place = b.iadd(at, b.const(i * dots.lanes, "int64")) if i else at
                after += products(place, None, sums[i * count : (i + 1) * count])
            return after

        def single(at: Value, *sums: Value) -> list[Value]:
            mask = b.lane_mask(b.isub(end, at), dots.lanes) if self.masks_k else None
            return products(at, mask, sums)

        whole, sums = start, zeros
        if dots.depth > 1:
            step = b.const(dots.depth * dots.lanes, "int64")
            whole = b.iadd(start, b.imul(b.sdiv(b.isub(end, start), step), step))
            sums = b.loop(start, whole, dots.depth * dots.lanes, several, zeros * dots.depth, hint="k")
        while len(sums) > count:
            half = len(sums) // 2
            sums = [b.fadd(x, y) for x, y in zip(sums[:half], sums[half:])]
        sums = b.loop(whole, end, dots.lanes, single, sums, hint="rest")
        return [sum_lanes(b, places) for places in self._grouped(sums)]

    def _grouped(self, elements: Sequence[T]) -> list[list[T | None]]:
        """What belongs to each dot product, arranged in places as vectors hold them; None where a place is free."""
        dots = self.dots
        free = [None] * (dots.slots - dots.columns)
        rows = [elements[i * dots.columns : (i + 1) * dots.columns] for i in range(dots.rows)]
        left: list[T | None] = [x for row in rows for x in (*row, *free)]
        return [[left.pop(0) for _ in range(size)] for size in dots.groups]

    def _load(self, base: Value, at: Value, dtype: str, mask: Value | None) -> Value:
        b, dots = self.b, self.dots
        place = b.gep(base, at, dtype)
        held = b.load(place, dtype, dots.lanes) if mask is None else b.masked_load(place, dtype, mask)
        return b.cast(held, dots.dtype)

    def _rest(self, rows: list[Value], columns: list[Value], begin: Value, sums: list[Value]) -> list[Value]:
        """What is left of K without masks, element by element."""
        b, dots = self.b, self.dots
        pairs = [(row, column) for row in rows for column in columns]
        grouped = self._grouped(pairs)

        def step(at: Value, *totals: Value) -> list[Value]:
            after = []
            for places, total in zip(grouped, totals):
                held = [pair or pairs[0] for pair in places]
                x = self._elements([row for row, _ in held], at, dots.a)
                y = self._elements([column for _, column in held], at, dots.b)
                after.append(b.fma(x, y, total))
            return after

        return b.loop(begin, self.length, 1, step, sums, hint="rest")

    def _elements(self, bases: list[Value], at: Value, dtype: str) -> Value:
        """One element from each place."""
        b, dots = self.b, self.dots
        elements = [b.cast(b.load(b.gep(base, at, dtype), dtype), dots.dtype) for base in bases]
        if len(elements) == 1:
            return elements[0]
        vector = b.undef(dots.dtype, len(elements))
        for lane, element in enumerate(elements):
            vector = b.insert(vector, element, lane)
        return vector

    def _store(self, sums: list[Value]) -> None:
        b, dots = self.b, self.dots
        corner = self.at_c
        for i in range(dots.rows):
            if i:
                corner = b.gep(corner, self.c_row, dots.dtype)
            if i == 0 or not dots.masked:
                self._store_row(corner, i, sums)
                continue
            exists = b.icmp("sgt", self.left, b.const(i, "int64"))
            b.branch(exists, partial(self._store_row, corner, i, sums), hint="row")

    def _store_row(self, corner: Value, row: int, sums: list[Value]) -> None:
        b, dots = self.b, self.dots
        piece = min(dots.slots, dots.group)
        for j in range(0, dots.columns, piece):
            group, lane = divmod(row * dots.slots + j, dots.group)
            value = sums[group]
            if piece == 1:
                value = b.extract(value, lane)
            elif piece < value.lanes:
                value = b.shuffle(value, None, range(lane, lane + piece))
            place = b.gep(corner, j, dots.dtype) if j else corner
            if dots.masked and dots.columns > 1:
                left = b.maximum(b.isub(self.columns, b.const(j, "int64")), b.const(0, "int64"))
                b.masked_store(value, place, b.lane_mask(left, piece))
            else:
                b.store(value, place)


def interleaved(b: Builder, x: Value, y: Value) -> tuple[Value, Value]:
    """x0 y0 x1 y1 … in two vectors."""
    half = x.lanes // 2
    low = [lane for i in range(half) for lane in (i, x.lanes + i)]
    high = [lane for i in range(half, x.lanes) for lane in (i, x.lanes + i)]
    return b.shuffle(x, y, low), b.shuffle(x, y, high)


def fence(b: Builder, x: Value) -> Value:
    """The value itself; LLVM does not search for one shuffle that does the work of several, in vain and for long."""
    return b.call(f"llvm.arithmetic.fence.{mangled(x)}", x.dtype, x.lanes, [x])


def sum_lanes(b: Builder, rows: Sequence[Value | None]) -> Value:
    """The sum of each vector's lanes, one in each lane of the result; no more vectors than lanes, a power of 2.

    Where None stands in the place of a vector, the result's lane may hold anything.
    """
    count = len(rows)
    while len(rows) > 1:
        half = len(rows) // 2
        rows = [_paired(b, x, y) for x, y in zip(rows[:half], rows[half:])]
    (total,) = rows
    assert total is not None
    while total.lanes > count:
        half = total.lanes // 2
        total = b.fadd(b.shuffle(total, None, range(half)), b.shuffle(total, None, range(half, 2 * half)))
    return total


def _paired(b: Builder, x: Value | None, y: Value | None) -> Value | None:
    """Half as many sums of each of two vectors' lanes, in turns."""
    held = x if x is not None else y
    if held is None:
        return None
    return fence(b, b.fadd(*interleaved(b, held if x is None else x, held if y is None else y)))


def transposed(b: Builder, rows: list[Value]) -> list[Value]:
    """The columns of a square of vectors, whose side is a power of 2: pairs interleave again and again."""
    half = len(rows) // 2
    step = 1
    while step < len(rows):
        pairs = [interleaved(b, x, y) for x, y in zip(rows[:half], rows[half:])]
        rows = [fence(b, v) for pair in pairs for v in pair]
        step *= 2
    return rows


__all__ = ["Dots", "sum_lanes", "transposed"]
