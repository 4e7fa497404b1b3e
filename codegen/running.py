"""Scheduling of running sums and products: neighbors in memory as lanes, or several rows side by side."""

from __future__ import annotations

from collections.abc import Sequence

from graphkb.codegen.loops import (
    Accumulator,
    Affine,
    Combine,
    For,
    Reduce,
    Running,
    Stmt,
    Store,
    Var,
    affine,
    expressions,
    walk,
)
from graphkb.codegen.schedule import nest, replace_expr, substitute, vector_length
from graphkb.codegen.target import Target

# Rows whose sums go on together: while one addition waits for the one before, those of the other rows are made. More
# rows would leave the first cache where their distance is a power of two.
_TOGETHER = 4


def schedule_running(kept: list[Var], first: Sequence[Stmt], rounds: Reduce, target: Target) -> list[Stmt]:
    """Running sums in order; `first` is what else each of them stores."""
    if not kept:
        return [*first, rounds]
    column = kept[-1]
    stores = [s for s in walk((*first, rounds)) if isinstance(s, Store)]
    if all(s.index.factor(column) == 1 for s in stores):
        lanes = vector_length(stores, column.extent, target, lambda w: 4 if w.cost <= 30 else 2)
        return list(nest(kept[:-1], (For(column, (*first, rounds), lanes),)))
    inner = (*nest([column], tuple(first)), *_side_by_side(column, rounds)) if first else _side_by_side(column, rounds)
    return list(nest(kept[:-1], tuple(inner)))


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
