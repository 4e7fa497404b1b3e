"""Products whose two operands both lie along K: one row of C at a time, a vector's worth of dot products at once."""

from __future__ import annotations

from collections.abc import Callable

from graphkb.codegen.builder import Builder, Value
from graphkb.codegen.builder_ops import mangled
from graphkb.codegen.gemm_sizes import Size, SizeMath

# Loads a vector of an operand, perhaps under a mask, in the dtype of the sums.
LoadVector = Callable[[Value, Value | None], Value]


def dot_products(
    b: Builder,
    math: SizeMath,
    length: Size,
    dtype: str,
    row: tuple[Value, str, LoadVector],
    columns: tuple[Value, str, LoadVector],
    offsets: list[Size],
) -> Value:
    """The dot products of one row of A with as many columns of B as a vector has lanes, one in each lane.

    Args:
        length: of the row and the columns.
        dtype: of the sums.
        row: the first element, its dtype in memory, and how a vector of it is loaded.
        columns: the same of the first column.
        offsets: how many elements each column begins behind the first.
    """
    lanes = len(offsets)
    at_row, row_dtype, load_row = row
    at_columns, column_dtype, load_column = columns
    whole = math.mul(math.div(length, lanes), lanes)
    ragged = not isinstance(length, int) or length != whole
    masked = ragged and b.target.can_mask(row_dtype) and b.target.can_mask(column_dtype)

    def step(at: Value, *before: Value) -> list[Value]:
        mask = b.lane_mask(b.isub(math.value(length), at), lanes) if masked else None
        across = load_row(math.corner(at_row, at, row_dtype), mask)
        corner = math.corner(at_columns, at, column_dtype)
        return [
            b.fma(across, load_column(math.gep(corner, offset, column_dtype), mask), total)
            for offset, total in zip(offsets, before)
        ]

    zeros = [b.const(0, dtype, lanes)] * lanes
    end = length if masked else whole
    sums = sum_lanes(b, b.loop(b.const(0, "int64"), math.value(end), lanes, step, zeros, hint="k"))
    if not ragged or masked:
        return sums

    def single(at: Value, total: Value) -> list[Value]:
        spread = b.splat(b.cast(b.load(b.gep(at_row, at, row_dtype), row_dtype), dtype), lanes)
        corner = b.gep(at_columns, at, column_dtype)
        column = b.undef(dtype, lanes)
        for lane, offset in enumerate(offsets):
            element = b.load(math.gep(corner, offset, column_dtype), column_dtype)
            column = b.insert(column, b.cast(element, dtype), lane)
        return [b.fma(spread, column, total)]

    (total,) = b.loop(math.value(whole), math.value(length), 1, single, [sums], hint="rest")
    return total


def interleaved(b: Builder, x: Value, y: Value) -> tuple[Value, Value]:
    """x0 y0 x1 y1 … in two vectors."""
    half = x.lanes // 2
    low = [lane for i in range(half) for lane in (i, x.lanes + i)]
    high = [lane for i in range(half, x.lanes) for lane in (i, x.lanes + i)]
    return b.shuffle(x, y, low), b.shuffle(x, y, high)


def fence(b: Builder, x: Value) -> Value:
    """The value itself; LLVM does not search for one shuffle that does the work of several, in vain and for long."""
    return b.call(f"llvm.arithmetic.fence.{mangled(x)}", x.dtype, x.lanes, [x])


def sum_lanes(b: Builder, rows: list[Value]) -> Value:
    """The sum of each vector's lanes, one in each lane; as many vectors as lanes, a power of 2."""
    while len(rows) > 1:
        half = len(rows) // 2
        rows = [fence(b, b.fadd(*interleaved(b, x, y))) for x, y in zip(rows[:half], rows[half:])]
    return rows[0]


def transposed(b: Builder, rows: list[Value]) -> list[Value]:
    """The columns of a square of vectors, whose side is a power of 2: pairs interleave again and again."""
    half = len(rows) // 2
    step = 1
    while step < len(rows):
        pairs = [interleaved(b, x, y) for x, y in zip(rows[:half], rows[half:])]
        rows = [fence(b, v) for pair in pairs for v in pair]
        step *= 2
    return rows


__all__ = ["dot_products", "sum_lanes", "transposed"]
