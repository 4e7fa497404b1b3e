"""Padding that windows read through: elements inside or outside, and the parts of a result that need not ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from itertools import product as every

from graphkb.codegen.loops import Affine, Apply, Buffer, Const, IndexValue, Load, Lookup, LoopExpr, SizeValue, Var
from graphkb.ir.dims import Dim, Shape

# A position along an axis and how many elements that has: what may lie outside.
Edge = tuple[Affine, int]
# A position along an axis and where the operands of a concatenation begin on it.
Joint = tuple[Affine, tuple[int, ...]]
# Where a part of a result begins along each axis, and its sizes.
Region = tuple[tuple[Dim, ...], Shape]


def limits(index: Affine) -> tuple[int, int] | None:
    """The least and the largest value of an index; None if sizes are unknown or a loop has no rounds."""
    low = high = index.offset
    for var, factor in index.terms:
        if not isinstance(factor, int) or not isinstance(var.extent, int) or var.extent < 1:
            return None
        reach = factor * (var.extent - 1)
        low, high = low + min(reach, 0), high + max(reach, 0)
    return (low, high) if isinstance(low, int) and isinstance(high, int) else None


def is_inside(edge: Edge) -> bool | None:
    """Whether a position is one of an axis: always, never, or None if that depends."""
    index, count = edge
    found = limits(index)
    if found is None:
        return None
    low, high = found
    if low >= 0 and high < count:
        return True
    return False if high < 0 or low >= count else None


def padded_load(
    load: Callable[[tuple[Affine, ...]], Load],
    place: Sequence[Affine],
    edges: Mapping[int, Edge],
    strides: Sequence[Dim],
    fill: Const,
) -> LoopExpr:
    """The element at a place, or the fill where a position lies outside: nothing is read there.

    Args:
        load: reads the element at an index.
        place: the index along each axis.
        edges: the axes whose position may lie outside.
        strides: from one element to the next along each axis.
        fill: what stands around the elements.
    """
    inside: LoopExpr = Const(True, "bool")
    moved: LoopExpr = Const(0, "int64")
    for axis, (index, count) in edges.items():
        at: LoopExpr = IndexValue(index, "int64")
        above = apply("greater_equal", (at, Const(0, "int64")), "bool")
        below = apply("less", (at, Const(count, "int64")), "bool")
        inside = apply("logical_and", (inside, apply("logical_and", (above, below), "bool")), "bool")
        for op, end in (("maximum", 0), ("minimum", count - 1)):
            at = apply(op, (at, Const(end, "int64")), "int64")
        moved = apply("add", (moved, apply("mul", (at, _number(strides[axis])), "int64")), "int64")
    base = load(tuple([Affine() if axis in edges else i for axis, i in enumerate(place)]))
    return apply("select", (inside, lookup(base.buffer, base.index, 1, moved), fill), fill.dtype)


def regions(axes: Sequence[Var], edges: Sequence[Edge], joints: Sequence[Joint] = ()) -> list[Region]:
    """The parts of a result in the order of memory: along each axis those at whose places all positions lie inside.

    What lies before and behind them are parts of their own, and no part reads two operands of a concatenation.
    """
    ranges: list[list[tuple[Dim, Dim]]] = []
    for axis in axes:
        if not isinstance(axis.extent, int):
            ranges.append([(0, axis.extent)])
            continue
        cuts = {0, axis.extent, *_inside_range(axis, edges), *_begins(axis, joints)}
        ranges.append([(begin, end - begin) for begin, end in pairwise(sorted(cuts))] or [(0, axis.extent)])
    return [(tuple([b for b, _ in cell]), tuple([n for _, n in cell])) for cell in every(*ranges)]


def _inside_range(axis: Var, edges: Sequence[Edge]) -> tuple[int, ...]:
    """From where to where along an axis all positions lie inside; nothing if no position asks for it."""
    if not isinstance(axis.extent, int) or axis.extent < 1:
        return ()
    low, high, asked = 0, axis.extent, False
    for index, count in edges:
        step, rest = index.factor(axis), limits(index.substituted({axis: Affine()}))
        if not isinstance(step, int) or step <= 0 or rest is None:
            continue
        asked = True
        low = max(low, -(rest[0] // step))
        high = min(high, (count - 1 - rest[1]) // step + 1)
    low = min(low, axis.extent)
    return (low, max(low, high)) if asked else ()


def _begins(axis: Var, joints: Sequence[Joint]) -> set[int]:
    """Where along an axis other operands of concatenations begin."""
    found: set[int] = set()
    for index, begins in joints:
        offset = index.substituted({axis: Affine()}).offset
        if index.factor(axis) == 1 and isinstance(offset, int) and isinstance(axis.extent, int):
            found.update(begin - offset for begin in begins if 0 < begin - offset < axis.extent)
    return found


def _number(dim: Dim) -> LoopExpr:
    return Const(dim, "int64") if isinstance(dim, int) else SizeValue(dim, "int64")


# ---------------------------------------------------------------------------------------------- what is known
def apply(op: str, args: tuple[LoopExpr, ...], dtype: str) -> LoopExpr:
    """The application of an op, or what it comes to where positions are known well enough."""
    match op, args:
        case (("less" | "greater_equal"), (IndexValue(index=index, dtype="int64"), Const(value=bound))):
            found = limits(index)
            if found is not None and (found[1] < bound or found[0] >= bound):
                return Const((found[1] < bound) == (op == "less"), dtype)
        case (("maximum" | "minimum"), (IndexValue(index=index, dtype="int64") as at, Const(value=bound))):
            found = limits(index)
            if found is not None and (found[0] >= bound or found[1] <= bound):
                return at if (found[0] >= bound) == (op == "maximum") else IndexValue(Affine((), int(bound)), dtype)
        case "logical_and", (Const(value=known), other) | (other, Const(value=known)):
            return other if known else Const(False, dtype)
        case "select", (Const(value=known), x, y):
            return x if known else y
        case "mul", (IndexValue(index=index), Const(value=factor, dtype="int64")):
            return IndexValue(index.scaled(int(factor)), dtype)
        case "add", (IndexValue(index=a, dtype="int64"), IndexValue(index=b)):
            return IndexValue(a.plus(b), dtype)
        case "add", (Const(value=0, dtype="int64"), other):
            return other
    return Apply(op, args, dtype)


def lookup(buffer: Buffer, index: Affine, step: Dim, position: LoopExpr) -> Load | Lookup:
    """The element at a position, which is a plain load where that is an index."""
    if isinstance(position, IndexValue):
        return Load(buffer, index.plus(position.index.scaled(step)))
    return Lookup(buffer, index, step, position)
