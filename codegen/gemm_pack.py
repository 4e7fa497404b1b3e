"""Copies of the operands of matrix products, as functions that all products of a module share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphkb.codegen.builder import ITEM_SIZES, Builder, Value
from graphkb.codegen.gemm_dots import transposed


def copy_rows(
    b: Builder,
    dtypes: tuple[str, str],
    source: Value,
    step: Value,
    target: Value,
    counts: tuple[Value, Value],
    shape: tuple[int, int],
) -> None:
    """Copy rows into whole vectors one after another, with zeros behind their columns.

    Args:
        b: the module.
        dtypes: of the source and of the copy.
        source, step: the first row, and elements from one row to the next.
        target: the copy.
        counts: of rows and of columns; without masks the columns fill their vectors.
        shape: vectors in a row, and lanes of a vector.
    """
    dtype, wide = dtypes
    vectors, lanes = shape

    def write(source: Value, step: Value, target: Value, count: Value, columns: Value) -> None:
        before = b.const((vectors - 1) * lanes, "int64")
        mask = b.lane_mask(b.isub(columns, before), lanes) if b.target.can_mask(dtype) else None

        def row(_: Value, at: Value, to: Value) -> list[Value]:
            for j in range(vectors):
                place = b.gep(at, j * lanes, dtype)
                last = mask is not None and j == vectors - 1
                held = b.masked_load(place, dtype, mask) if last else b.load(place, dtype, lanes)  # type: ignore[arg-type]
                b.store(b.cast(held, wide), b.gep(to, j * lanes, wide))
            return [b.gep(at, step, dtype), b.gep(to, vectors * lanes, wide)]

        b.loop(b.const(0, "int64"), count, 1, row, [source, target], hint="row")

    _shared(b, f"copy.rows.{dtype}.{wide}.{vectors}x{lanes}", [source, step, target, *counts], write)


def copy_padded(
    b: Builder,
    dtypes: tuple[str, str],
    source: Value,
    steps: tuple[Value, Value],
    target: Value,
    width: Value,
    counts: tuple[Value, Value],
) -> None:
    """Copy a matrix element by element into rows of some width, with zeros behind its columns.

    Args:
        b: the module.
        dtypes: of the source and of the copy.
        source, steps: the first element, and elements from one row, and from one column, to the next.
        target, width: the copy, and elements from one of its rows to the next.
        counts: of rows and of columns.
    """
    dtype, wide = dtypes

    def write(source: Value, down: Value, across: Value, target: Value, width: Value, *counts: Value) -> None:
        rows, columns = counts
        zero = b.const(0, "int64")

        def row(i: Value) -> None:
            at, to = b.gep(source, b.imul(i, down), dtype), b.gep(target, b.imul(i, width), wide)

            def element(j: Value) -> None:
                value = b.load(b.gep(at, b.imul(j, across), dtype), dtype)
                b.store(b.cast(value, wide), b.gep(to, j, wide))

            b.loop(zero, columns, 1, element, hint="element")
            # What nobody reads must still be harmless: leftovers may be slow to multiply.
            b.loop(columns, width, 1, lambda j: b.store(b.const(0, wide), b.gep(to, j, wide)), hint="zero")

        b.loop(zero, rows, 1, row, hint="row")

    _shared(b, f"copy.padded.{dtype}.{wide}", [source, *steps, target, width, *counts], write)


def copy_turned(
    b: Builder,
    dtypes: tuple[str, str],
    source: Value,
    step: Value,
    target: Value,
    width: Value,
    counts: tuple[Value, Value],
    most: int,
) -> None:
    """Copy the transpose of a matrix whose rows are contiguous, in squares that turn over in registers.

    With masks the copy is rounded up to whole squares: rows that do not exist repeat the last, columns are zeros.
    Without them the copy is exact, and zeros fill the rest of its rows.

    Args:
        b: the module.
        dtypes: of the source and of the copy.
        source, step: the first element, and elements from one row to the next.
        target, width: the copy, and elements from one of its rows to the next.
        counts: rows and columns of the source, at least one.
        most: a power of 2 that `width` is a multiple of; squares are no larger.
    """
    dtype, wide = dtypes
    masked = b.target.can_mask(dtype)
    # Half as long vectors as there may be turn over no slower, in less code.
    lanes = min(most, max(2, min(b.target.vector_bits, 256) // 8 // ITEM_SIZES[wide]))

    def write(source: Value, step: Value, target: Value, width: Value, *counts: Value) -> None:
        rows, columns = counts
        zero, side = b.const(0, "int64"), b.const(lanes, "int64")
        last = b.isub(rows, b.const(1, "int64"))

        def square(i: Value, j: Value) -> None:
            """Rows from i and columns from j on."""
            mask = b.lane_mask(b.isub(columns, j), lanes) if masked else None
            vectors = []
            for n in range(lanes):
                at = b.iadd(i, b.const(n, "int64"))
                place = b.gep(source, b.iadd(b.imul(b.minimum(at, last) if masked else at, step), j), dtype)
                held = b.load(place, dtype, lanes) if mask is None else b.masked_load(place, dtype, mask)
                vectors.append(b.cast(held, wide))
            corner = b.gep(target, b.iadd(b.imul(j, width), i), wide)
            for value in transposed(b, vectors):
                b.store(value, corner)
                corner = b.gep(corner, width, wide)

        whole = [x if masked else b.imul(b.sdiv(x, side), side) for x in (rows, columns)]

        def down(j: Value) -> None:
            b.loop(zero, whole[0], lanes, lambda i: square(i, j), hint="square")

        b.loop(zero, whole[1], lanes, down, hint="turn")
        if not masked:
            one = b.const(1, "int64")

            def rest(i: Value, j: Value, count: Value, until: Value) -> None:
                """Source rows from i on and columns from j on, element by element; `until` ends the copy's rows."""
                at = b.gep(source, b.iadd(b.imul(i, step), j), dtype)
                to = b.gep(target, b.iadd(b.imul(j, width), i), wide)
                steps, sizes = (one, step), (count, b.isub(rows, i))
                copy_padded(b, dtypes, at, steps, to, b.isub(until, i), sizes)

            # Rows of the copy lie `width` apart, so each is copied by itself.
            def single(begin: Value) -> None:
                def each(j: Value) -> None:
                    rest(begin, j, one, width)

                b.loop(zero, whole[1], 1, each, hint="tail")

            single(whole[0])
            b.loop(whole[1], columns, 1, lambda j: rest(zero, j, one, width), hint="last")

    _shared(b, f"copy.turned.{dtype}.{wide}.{lanes}", [source, step, target, width, *counts], write)


def copy_columns(
    b: Builder,
    dtypes: tuple[str, str],
    source: Value,
    steps: tuple[Value, Value],
    target: Value,
    counts: tuple[Value, Value],
    shape: tuple[int, int],
) -> None:
    """Copy some rows of a matrix so that each of its columns lies side by side, one column after another.

    Args:
        b: the module.
        dtypes: of the source and of the copy.
        source, steps: the first element, and elements from one row, and from one column, to the next.
        target: the copy.
        counts: of columns, and of rows; what stands for rows that do not exist may be anything.
        shape: rows of the copy, and lanes of a vector.
    """
    dtype, wide = dtypes
    height, lanes = shape

    def write(source: Value, across: Value, along: Value, target: Value, *counts: Value) -> None:
        length, exist = counts
        zero, one = b.const(0, "int64"), b.const(1, "int64")
        last = b.isub(exist, one)
        rows = [b.imul(b.minimum(b.const(i, "int64"), last), across) for i in range(height)]

        def elements(_: Value, at: Value, to: Value) -> list[Value]:
            for i, row in enumerate(rows):
                b.store(b.cast(b.load(b.gep(at, row, dtype), dtype), wide), b.gep(to, i, wide))
            return [b.gep(at, along, dtype), b.gep(to, height, wide)]

        def slow() -> None:
            b.loop(zero, length, 1, elements, [source, target], hint="column")

        if height > lanes or not b.target.can_mask(dtype) or not b.target.can_mask(wide):
            slow()
            return
        mask = b.lane_mask(exist, lanes)

        def vector(_: Value, at: Value, to: Value) -> list[Value]:
            b.masked_store(b.cast(b.masked_load(at, dtype, mask), wide), to, mask)
            return [b.gep(at, along, dtype), b.gep(to, height, wide)]

        def fast() -> None:
            b.loop(zero, length, 1, vector, [source, target], hint="column")

        b.branch(b.icmp("eq", across, one), fast, slow, hint="near")

    _shared(b, f"copy.columns.{dtype}.{wide}.{height}x{lanes}", [source, *steps, target, *counts], write)


def _shared(b: Builder, name: str, args: Sequence[Value], write: Callable[..., None]) -> None:
    b.helper(name, [(f"a{i}", value.dtype) for i, value in enumerate(args)], write, args)


__all__ = ["copy_columns", "copy_padded", "copy_rows", "copy_turned"]
