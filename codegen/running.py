"""Scheduling of running sums and products: neighbors in memory as lanes, or several rows side by side."""

from __future__ import annotations

from collections.abc import Sequence

from graphkb.codegen.loops import (
    Accumulator,
    Affine,
    Apply,
    Buffer,
    Combine,
    Const,
    For,
    Load,
    Local,
    LoopExpr,
    Reduce,
    Running,
    Stmt,
    Store,
    Var,
    affine,
    expressions,
    walk,
)
from graphkb.codegen.schedule import OPERATIONS, identity, nest, replace_expr, substitute, vector_length, work_of
from graphkb.codegen.sweeps import FAR
from graphkb.codegen.target import Target
from graphkb.ir.dims import maximum
from graphkb.ir.types import FLOATS, NUMPY_DTYPE

# Rows whose sums go on together: while one addition waits for the one before, those of the other rows are made. More
# rows would leave the first cache where their distance is a power of two.
_TOGETHER = 4
# Columns whose results so far stay in the first cache.
_BLOCK = 1024
# What costs at least as much to compute as this is computed ahead, for so many elements of a row at a time.
_AHEAD_ABOVE, _AHEAD = 8, 512


def schedule_running(kept: list[Var], first: Sequence[Stmt], rounds: Reduce, target: Target) -> list[Stmt]:
    """Running sums in order; `first` is what else each of them stores."""
    if not kept:
        return [*first, *_together(rounds, [{}], target)]
    column = kept[-1]
    stores = [s for s in walk((*first, rounds)) if isinstance(s, Store)]
    if all(s.index.factor(column) == 1 for s in stores):
        if _suits_rows(column, stores[-1], rounds, target):
            return list(
                nest(kept[:-1], (*(For(column, tuple(first)),) * bool(first), *_row_by_row(column, rounds, target)))
            )
        lanes = vector_length(stores, column.extent, target, lambda w: 4 if w.cost <= 30 else 2)
        return list(nest(kept[:-1], (For(column, (*first, rounds), lanes),)))
    before = nest([column], tuple(first)) if first else ()
    return list(nest(kept[:-1], (*before, *_side_by_side(column, rounds, target))))


def _suits_rows(column: Var, store: Store, rounds: Reduce, target: Target) -> bool:
    """Whether results are more than the caches of a core hold, in rows that are worth following one by one."""
    size = store.buffer.size
    if not isinstance(size, int) or not isinstance(column.extent, int) or not isinstance(rounds.body[0], For):
        return False
    width = target.lanes(store.buffer.dtype)
    return size * NUMPY_DTYPE[store.buffer.dtype].itemsize > FAR and column.extent >= 4 * width > 4


def _row_by_row(column: Var, rounds: Reduce, target: Target) -> list[Stmt]:
    """The order of memory, with the results so far in an array that stays in the first cache, block by block."""
    (loop,) = rounds.body
    assert isinstance(loop, For)
    assert isinstance(column.extent, int)
    accumulator = rounds.accumulator
    blocks, rest = divmod(column.extent, _BLOCK)
    out: list[Stmt] = []
    for begin, count, extent in ((0, blocks, _BLOCK), (blocks * _BLOCK, min(rest, 1), rest)):
        if not count:
            continue
        block, inner = Var("b", count), Var(column.name, extent)
        place = affine(inner).shifted(begin)
        if count > 1:
            place = place.plus(affine(block, _BLOCK))
        combine, store = substitute(loop.body, {column: place})
        assert isinstance(combine, Combine)
        held = Buffer(-1, "held", accumulator.dtype, extent, written=True)
        so_far = Load(held, affine(inner))
        total = Apply(OPERATIONS[accumulator.op], (so_far, combine.value), accumulator.dtype)
        running = next(e for e in expressions([store]) if isinstance(e, Running))
        step = (Store(held, affine(inner), total), *replace_expr([store], {0}, running, total))
        first = identity(accumulator.op, accumulator.dtype)
        if first == 0 and accumulator.dtype in FLOATS:
            first = -0.0  # a running sum begins with its first element, whatever the sign of a zero
        lanes = vector_length(step, extent, target, lambda w: 4 if w.cost <= 30 else 2)
        start = For(inner, (Store(held, affine(inner), Const(first, accumulator.dtype)),), lanes)
        body = Local((held,), (start, For(loop.var, (For(inner, step, lanes),))))
        out += nest([block] if count > 1 else [], (body,))
    return out


def _side_by_side(row: Var, rounds: Reduce, target: Target) -> list[Stmt]:
    """Several rows in one loop, each with an accumulator of its own, and then the rest of them."""
    if not isinstance(row.extent, int) or row.extent < _TOGETHER or not isinstance(rounds.body[0], For):
        return [For(row, _together(rounds, [{}], target))]
    blocks, rest = divmod(row.extent, _TOGETHER)
    block = Var(row.name, blocks)
    begin = affine(block, _TOGETHER) if blocks > 1 else Affine()
    places = [{row: begin.shifted(i)} for i in range(_TOGETHER)]
    out = list(nest([block] if blocks > 1 else [], _together(rounds, places, target)))
    if rest:
        single = Var(row.name, rest)
        last = affine(single) if rest > 1 else Affine()
        out += nest([single] if rest > 1 else [], _together(rounds, [{row: last.shifted(row.extent - rest)}], target))
    return out


def _together(rounds: Reduce, places: Sequence[dict[Var, Affine]], target: Target) -> tuple[Stmt, ...]:
    """The running sums of rows at some places, in one loop.

    What is costly to add up is computed ahead in vectors, a stretch at a time, and kept where the sums will stand.
    """
    (loop,) = rounds.body if len(rounds.body) == 1 else (None,)
    if not isinstance(loop, For):
        return tuple(substitute([rounds], places[0]))
    moved = [substitute(loop.body, at) for at in places]
    rows = [_Row(combine, store, f"acc{i}" if len(places) > 1 else "acc") for i, (combine, store) in enumerate(moved)]
    if rows[0].cost < _AHEAD_ABOVE or rows[0].staged is None:
        together: tuple[Stmt, ...] = (For(loop.var, tuple([s for row in rows for s in row.body()])),)
    else:
        together = tuple(_ahead(loop.var, rows, target))
    for row in reversed(rows):
        together = (Reduce(row.accumulator, together),)
    return together


class _Row:
    """One running sum: what it adds up, and where it stands."""

    def __init__(self, combine: Stmt, store: Stmt, name: str) -> None:
        assert isinstance(combine, Combine)
        assert isinstance(store, Store)
        old = next(e for e in expressions([store]) if isinstance(e, Running))
        self.accumulator = Accumulator(name, combine.accumulator.op, combine.accumulator.dtype)
        self.value = combine.value
        (stored,) = replace_expr([store], {0}, old, Running(self.accumulator))
        assert isinstance(stored, Store)
        self.store = stored
        self.cost = work_of([combine]).cost

    @property
    def staged(self) -> LoopExpr | None:
        """What is added, in the dtype of the result; None where keeping it there would round it."""
        value = self.value
        if isinstance(value, Apply) and value.op == "cast" and value.args[0].dtype == self.store.buffer.dtype:
            return value.args[0]
        return value if value.dtype == self.store.buffer.dtype else None

    def body(self) -> tuple[Stmt, ...]:
        return Combine(self.accumulator, self.value), self.store

    def later(self) -> tuple[Stmt, ...]:
        """The same of what is kept in the result."""
        kept: LoopExpr = Load(self.store.buffer, self.store.index)
        if kept.dtype != self.value.dtype:
            kept = Apply("cast", (kept,), self.value.dtype)
        return Combine(self.accumulator, kept), self.store


def _ahead(step: Var, rows: Sequence[_Row], target: Target) -> list[Stmt]:
    """Stretch by stretch, first what is added, then the sums."""
    length = maximum(step.extent, 0)  # an exclusive sum has one step less than elements, also where there are none
    count = length // _AHEAD
    stretches = Var("b", count)
    parts: list[tuple[Var, Affine, Var]] = []
    if count != 0:
        inner = Var(step.name, _AHEAD)
        parts.append((stretches, (affine(stretches, _AHEAD) if count != 1 else Affine()), inner))
    if (rest := length - count * _AHEAD) != 0:
        parts.append((Var("b", 1), Affine((), count * _AHEAD), Var(step.name, rest)))
    out: list[Stmt] = []
    for outer, begin, inner in parts:
        body: list[Stmt] = []
        for row in rows:
            assert row.staged is not None
            stage = Store(row.store.buffer, row.store.index, row.staged)
            # Backwards sums still compute what they add in the order of memory.
            backwards = row.store.index.factor(step) == -1
            at = affine(inner, -1).shifted(inner.extent - 1) if backwards else affine(inner)
            (moved,) = substitute([stage], {step: begin.plus(at)})
            lanes = vector_length([moved], inner.extent, target, lambda w: 2 if w.cost <= 30 else 1)
            body.append(For(inner, (moved,), lanes))
        later = [s for row in rows for s in row.later()]
        body.append(For(inner, tuple(substitute(later, {step: begin.plus(affine(inner))}))))
        out += nest([outer] if outer.extent != 1 else [], tuple(body))
    return out
