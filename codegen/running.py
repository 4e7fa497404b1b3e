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
    Reduce,
    Running,
    Stmt,
    Store,
    Var,
    affine,
    expressions,
    walk,
)
from graphkb.codegen.schedule import OPERATIONS, identity, nest, replace_expr, substitute, vector_length
from graphkb.codegen.sweeps import FAR
from graphkb.codegen.target import Target
from graphkb.ir.types import FLOATS, NUMPY_DTYPE

# Rows whose sums go on together: while one addition waits for the one before, those of the other rows are made. More
# rows would leave the first cache where their distance is a power of two.
_TOGETHER = 4
# Columns whose results so far stay in the first cache.
_BLOCK = 1024


def schedule_running(kept: list[Var], first: Sequence[Stmt], rounds: Reduce, target: Target) -> list[Stmt]:
    """Running sums in order; `first` is what else each of them stores."""
    if not kept:
        return [*first, rounds]
    column = kept[-1]
    stores = [s for s in walk((*first, rounds)) if isinstance(s, Store)]
    if all(s.index.factor(column) == 1 for s in stores):
        if _suits_rows(column, stores[-1], rounds, target):
            return list(
                nest(kept[:-1], (*(For(column, tuple(first)),) * bool(first), *_row_by_row(column, rounds, target)))
            )
        lanes = vector_length(stores, column.extent, target, lambda w: 4 if w.cost <= 30 else 2)
        return list(nest(kept[:-1], (For(column, (*first, rounds), lanes),)))
    inner = (*nest([column], tuple(first)), *_side_by_side(column, rounds)) if first else _side_by_side(column, rounds)
    return list(nest(kept[:-1], tuple(inner)))


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


def _side_by_side(row: Var, rounds: Reduce) -> list[Stmt]:
    """Several rows in one loop, each with an accumulator of its own, and then the rest of them."""
    (loop,) = rounds.body if len(rounds.body) == 1 else (None,)
    if not isinstance(row.extent, int) or row.extent < _TOGETHER or not isinstance(loop, For):
        return [For(row, (rounds,))]
    combine, store = loop.body
    assert isinstance(combine, Combine)
    blocks, rest = divmod(row.extent, _TOGETHER)
    block = Var(row.name, blocks)
    begin = affine(block, _TOGETHER) if blocks > 1 else Affine()
    running = next(e for e in expressions([store]) if isinstance(e, Running))
    body: list[Stmt] = []
    own = [Accumulator(f"acc{i}", combine.accumulator.op, combine.accumulator.dtype) for i in range(_TOGETHER)]
    for i, accumulator in enumerate(own):
        moved = substitute([combine, store], {row: begin.shifted(i)})
        added, stored = replace_expr(moved, {1}, running, Running(accumulator))
        assert isinstance(added, Combine)
        body += [Combine(accumulator, added.value), stored]
    together: tuple[Stmt, ...] = (For(loop.var, tuple(body)),)
    for accumulator in reversed(own):
        together = (Reduce(accumulator, together),)
    out = list(nest([block] if blocks > 1 else [], together))
    if rest:
        single = Var(row.name, rest)
        last = affine(single) if rest > 1 else Affine()
        out += nest([single] if rest > 1 else [], tuple(substitute([rounds], {row: last.shifted(row.extent - rest)})))
    return out
