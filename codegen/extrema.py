"""Scheduling of argmax and argmin: along memory in two sweeps over a row, across memory with the best rows at hand."""

from __future__ import annotations

from dataclasses import replace

from graphkb.codegen.loops import (
    Accumulator,
    Affine,
    Apply,
    Buffer,
    Combine,
    Const,
    For,
    IndexValue,
    Load,
    Local,
    LoopExpr,
    Reduce,
    Result,
    Stmt,
    Store,
    Var,
    affine,
)
from graphkb.codegen.schedule import nest, runs_along_kept, substitute, vector_length, with_result, work_of
from graphkb.codegen.target import Target
from graphkb.ir.dims import product
from graphkb.ir.types import FLOATS, NUMPY_DTYPE

# What costs more than this is computed once, however the positions are found then.
_TWICE = 8
# Lanes whose bits fit one word.
_WORD = 64
# Columns whose best elements so far stay in the first cache, and the rows that are compared before these are stored.
_BLOCK = 512
_ROWS = 8


def schedule_position(
    kept: list[Var], reduced: list[Var], store: Store, combine: Combine, target: Target
) -> list[Stmt]:
    """The loops of argmax or argmin over `reduced`."""
    narrow = _narrow(combine.accumulator, reduced)
    store = with_result(store, combine.accumulator, Result(narrow))
    combine = replace(combine, accumulator=narrow)
    if runs_along_kept(kept, reduced, [combine]):
        if _suits_rows(kept[-1], reduced):
            return list(nest(kept[:-1], _best_rows(kept[-1], reduced[0], store, combine, target)))
        lanes = vector_length([combine, store], kept[-1].extent, target, lambda w: 4 if w.cost <= 30 else 2)
        rounds = Reduce(combine.accumulator, nest(reduced, (combine,)))
        return list(nest(kept[:-1], (For(kept[-1], (rounds, store), lanes),)))
    if not reduced:
        return [Reduce(combine.accumulator, (combine,)), store]
    if len(reduced) == 1 and work_of([combine]).cost <= _TWICE:
        return list(nest(kept, _search(reduced[0], store, combine, target)))
    lanes = vector_length([combine], reduced[-1].extent, target, lambda w: 4 if w.cost <= 30 else 2)
    inner = nest(reduced[:-1], (For(reduced[-1], (combine,), lanes),))
    return list(nest(kept, (Reduce(combine.accumulator, inner), store)))


def _narrow(accumulator: Accumulator, reduced: list[Var]) -> Accumulator:
    """Positions in integers as wide as the values, where that is enough, so that both fill as many registers."""
    count = product([v.extent for v in reduced])
    bits = NUMPY_DTYPE[accumulator.dtype].itemsize * 8
    while bits < 64 and not (isinstance(count, int) and count <= 1 << (bits - 1)):
        bits *= 2
    return replace(accumulator, index=f"int{bits}")


# ---------------------------------------------------------------------------------------------- along memory
def _search(row: Var, store: Store, combine: Combine, target: Target) -> tuple[Stmt, ...]:
    """First the extremum, then the first element that is as large, or the first NaN."""
    sought = combine.accumulator
    best = Accumulator(sought.name, "max" if sought.op == "argmax" else "min", sought.dtype)
    first = Accumulator(f"{sought.name}_at", "first", "bool")
    hit: LoopExpr = Apply("equal", (combine.value, Result(best)), "bool")
    if sought.dtype in FLOATS:
        hit = Apply("logical_or", (hit, Apply("isnan", (combine.value,), "bool")), "bool")
    lanes = vector_length([combine], row.extent, target, lambda w: 4)
    ahead = min(lanes, max(1, target.lanes(sought.dtype)))
    if isinstance(row.extent, int) and lanes > 1 and row.extent <= _WORD:
        # A short row is compared at once: where in it the search ends could not be predicted.
        ahead = 1 << (row.extent - 1).bit_length()
    return (
        Reduce(best, (For(row, (Combine(best, combine.value),), lanes),)),
        Reduce(first, (For(row, (Combine(first, hit, combine.position),), ahead),)),
        with_result(store, sought, Result(first)),
    )


# ---------------------------------------------------------------------------------------------- across memory
def _suits_rows(column: Var, reduced: list[Var]) -> bool:
    """Whether columns are many enough for going through memory row by row."""
    return (
        len(reduced) == 1
        and isinstance(column.extent, int)
        and column.extent >= _BLOCK // 4
        and isinstance(reduced[0].extent, int)
        and reduced[0].extent >= 2 * _ROWS
    )


def _best_rows(column: Var, row: Var, store: Store, combine: Combine, target: Target) -> tuple[Stmt, ...]:
    """Row by row, with the best elements and their rows in memory that stays in the first cache, block by block."""
    assert isinstance(column.extent, int)
    blocks, rest = divmod(column.extent, _BLOCK)
    out: list[Stmt] = []
    if blocks:
        block, inner = Var("b", blocks), Var(column.name, _BLOCK)
        place = affine(inner) if blocks == 1 else affine(block, _BLOCK).plus(affine(inner))
        body = _best_of_block(inner, place, column, row, store, combine, target)
        out += nest([block] if blocks > 1 else [], (body,))
    if rest:
        inner = Var(column.name, rest)
        place = affine(inner).shifted(blocks * _BLOCK)
        out.append(_best_of_block(inner, place, column, row, store, combine, target))
    return tuple(out)


def _best_of_block(
    inner: Var, place: Affine, column: Var, row: Var, store: Store, combine: Combine, target: Target
) -> Stmt:
    """The columns that `inner` counts, at `place` among all."""
    accumulator = combine.accumulator
    dtype, index = accumulator.dtype, accumulator.index
    assert isinstance(row.extent, int)
    best = Buffer(-1, "best", dtype, inner.extent, written=True)
    at = Buffer(-2, "at", index, inner.extent, written=True)
    held, held_at = Load(best, affine(inner)), Load(at, affine(inner))
    lanes = vector_length([combine], inner.extent, target, lambda w: 2)

    def value(position: Affine) -> LoopExpr:
        (moved,) = substitute([combine], {row: position, column: place})
        assert isinstance(moved, Combine)
        return moved.value

    def better(x: LoopExpr, than: LoopExpr) -> LoopExpr:
        if dtype not in FLOATS:
            return Apply("greater" if accumulator.op == "argmax" else "less", (x, than), "bool")
        order = "less_equal" if accumulator.op == "argmax" else "greater_equal"
        # Larger, or NaN, but nothing replaces NaN.
        beats = Apply("logical_not", (Apply(order, (x, than), "bool"),), "bool")
        return Apply("logical_and", (beats, Apply("equal", (than, than), "bool")), "bool")

    def compare(rows: list[Affine]) -> For:
        best_so_far: LoopExpr = held
        at_so_far: LoopExpr = held_at
        for position in rows:
            x = value(position)
            wins = better(x, best_so_far)
            best_so_far = Apply("select", (wins, x, best_so_far), dtype)
            at_so_far = Apply("select", (wins, IndexValue(position, index), at_so_far), index)
        stores = (Store(best, affine(inner), best_so_far), Store(at, affine(inner), at_so_far))
        return For(inner, stores, lanes)

    start = (Store(best, affine(inner), value(Affine())), Store(at, affine(inner), Const(0, index)))
    groups, rest = divmod(row.extent - 1, _ROWS)
    group, single = Var(row.name, groups), Var(row.name, rest)
    body: list[Stmt] = [For(inner, start, lanes)]
    along = affine(group, _ROWS) if groups > 1 else Affine()
    body += nest([group] if groups > 1 else [], (compare([along.shifted(1 + i) for i in range(_ROWS)]),))
    if rest:
        along = affine(single) if rest > 1 else Affine()
        body += nest([single] if rest > 1 else [], (compare([along.shifted(1 + groups * _ROWS)]),))
    result = Apply("cast", (held_at,), "int64") if index != "int64" else held_at
    (last,) = substitute([store], {column: place})
    assert isinstance(last, Store)
    body.append(For(inner, (with_result(last, accumulator, result),), lanes))
    return Local((best, at), tuple(body))
