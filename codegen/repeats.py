"""Small operands that change with a few neighbors only, spread over all of them, so that loops over neighbors merge."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from graphkb.codegen.loops import (
    Affine,
    Buffer,
    Combine,
    Deposit,
    IndexValue,
    Load,
    Lookup,
    Scratch,
    Stmt,
    Store,
    Var,
    affine,
    expressions,
)
from graphkb.codegen.schedule import lowest, replace_expr, schedule_map, substitute
from graphkb.codegen.target import Target
from graphkb.ir.record import record

# Loops of fewer rounds than this make short vectors.
_SHORT_LOOP = 64
# How many times fewer elements a spread operand has than the kernel computes with.
_FEWER = 16


@record
class Spread:
    """Statements whose two innermost loops have become one.

    Attributes:
        buffers: the operands that were spread.
        fills: what writes them, before all else.
        merged: the loop that takes the place of the two.
        statements: as given, with the spread operands in the place of the small ones.
    """

    buffers: tuple[Buffer, ...]
    fills: tuple[Stmt, ...]
    merged: Var
    statements: list[Stmt]


def schedule_stores(axes: list[Var], stores: list[Stmt], target: Target) -> list[Stmt]:
    """The loops of element-wise work, with small operands spread where that lengthens the innermost loop."""
    spread = spread_operands(axes, (), stores, target)
    if spread is None:
        return schedule_map(axes, stores, target)
    body = (*spread.fills, *schedule_map([*axes[:-2], spread.merged], spread.statements, target))
    return [Scratch(spread.buffers, body)]


def spread_operands(
    kept: Sequence[Var], reduced: Sequence[Var], statements: Sequence[Stmt], target: Target
) -> Spread | None:
    """The two innermost kept loops as one; None where nothing is in the way of that, or too much.

    Args:
        kept, reduced: the loops.
        statements: Store and Combine.
        target: the machine.
    """
    extents = [v.extent for v in (*kept, *reduced) if isinstance(v.extent, int)]
    if len(kept) < 2 or len(extents) < len(kept) + len(reduced) or 0 in extents or not target.vector_bits:
        return None
    outer, inner = kept[-2], kept[-1]
    length = extents[len(kept) - 1]
    if not 1 < length < _SHORT_LOOP:
        return None

    def merges(index: Affine) -> bool:
        return index.factor(outer) == index.factor(inner) * length

    small: list[Load] = []
    wide = False
    for expr in expressions(statements):
        if isinstance(expr, Load) and not merges(expr.index):
            small.append(expr)
        elif isinstance(expr, Load):
            wide = wide or expr.index.factor(inner) == 1
        elif isinstance(expr, Lookup | IndexValue) and not merges(expr.index):
            return None
    places = [s.index if isinstance(s, Store) else s.position for s in statements if isinstance(s, Store | Combine)]
    fits = len(places) == len(statements) and all(place is None or merges(place) for place in places)
    if not small or not wide or not fits or any(isinstance(s, Deposit) for s in statements):
        return None
    merged = Var(inner.name, extents[len(kept) - 2] * length)
    # Written and read in one kernel, an operand may not change in between.
    written = {s.buffer for s in statements if isinstance(s, Store)}
    buffers: list[Buffer] = []
    fills: list[Stmt] = []
    out = list(statements)
    below = lowest(statements)
    for load in small:
        around = [v for v in kept[:-2] if load.index.factor(v) != 0]
        loops = [*around, outer, inner]
        size = prod([v.extent for v in loops if isinstance(v.extent, int)])
        if any(load.index.factor(v) != 0 for v in reduced) or _FEWER * size > prod(extents) or load.buffer in written:
            return None
        buffer = Buffer(below - 1 - len(buffers), f"spread{len(buffers)}", load.dtype, size, written=True)
        buffers.append(buffer)
        new = {v: Var(v.name, v.extent) for v in loops}
        place: Affine = Affine()
        stride = 1
        for var in reversed(loops):
            place = place.plus(affine(var, stride))
            assert isinstance(var.extent, int)
            stride *= var.extent
        moved = {v: affine(n) for v, n in new.items()}
        fill = Store(buffer, place.substituted(moved), Load(load.buffer, load.index.substituted(moved)))
        fills += schedule_map(list(new.values()), [fill], target)
        out = replace_expr(out, set(range(len(out))), load, Load(buffer, place))
    return Spread(tuple(buffers), tuple(fills), merged, substitute(out, {outer: Affine(), inner: affine(merged)}))


__all__ = ["Spread", "schedule_stores", "spread_operands"]
