"""Reductions across memory: a few rows at a time in the order in which they lie, with the results so far at hand."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from graphkb.codegen.loops import (
    Accumulator,
    Affine,
    Apply,
    Buffer,
    Combine,
    Const,
    For,
    Load,
    Prefetch,
    Result,
    Scratch,
    Stmt,
    Store,
    Var,
    affine,
    expressions,
)
from graphkb.codegen.schedule import (
    OPERATIONS,
    identity,
    lowest,
    nest,
    replace_expr,
    substitute,
    vector_length,
    work_of,
)
from graphkb.codegen.target import Target
from graphkb.ir.types import NUMPY_DTYPE

# Operands of more bytes than this come from beyond the caches of a core, where the order of reading decides.
FAR = 1 << 19
# Rows that are combined before the results so far are touched, at most (a power of two), and the cost of a value up
# to which that pays.
_ROWS = 4
_CHEAP = 8
# Operands of fewer bytes than this are in the first cache however they are read; rows of at least so many bytes, that
# are a power of two perhaps, would push one another out of it.
_NEAR = 1 << 15
_PAGE = 1 << 12
# How far ahead memory is asked for, in bytes: so long takes an answer.
_AHEAD = 1 << 15


def suits_sweeps(
    kept: Sequence[Var], reduced: Sequence[Var], rounds: Sequence[Combine | Store], target: Target
) -> bool:
    """Whether it pays to read rows in the order of memory: there are many, they are long enough, and all is large."""
    if not kept or not reduced or not target.vector_bits:
        return False
    extents = [v.extent for v in (*kept, *reduced) if isinstance(v.extent, int)]
    combines = [s for s in rounds if isinstance(s, Combine)]
    if len(extents) < len(kept) + len(reduced) or any(c.accumulator.op not in OPERATIONS for c in combines):
        return False
    columns, rows = extents[len(kept) - 1], extents[len(kept) :]
    streams = _streams(rounds, kept[-1], reduced[-1])
    if not streams or columns < target.lanes(streams[0].dtype) or rows[-1] < 2 * _ROWS:
        return False
    # Windows that overlap are read from the cache.
    if any(isinstance(s.buffer.size, int) and prod(extents) > s.buffer.size for s in streams):
        return False
    size = prod(extents) * max(NUMPY_DTYPE[s.dtype].itemsize for s in streams)
    return size > FAR or (size > _NEAR and size >= _PAGE * prod(rows))


def schedule_sweeps(
    kept: Sequence[Var],
    reduced: Sequence[Var],
    combines: Sequence[Combine],
    full: Sequence[Store],
    once: Sequence[Store],
    target: Target,
) -> list[Stmt]:
    """The loops of reductions whose operands run along the innermost kept axis.

    Args:
        kept, reduced: the loops, of known sizes.
        combines, full: what every round combines and stores.
        once: what is stored when the reductions are done.
        target: the machine.
    """
    column, row = kept[-1], reduced[-1]
    assert isinstance(row.extent, int)
    held, own = _places(kept, combines, once, lowest([*combines, *full, *once]))
    rounds: list[Combine | Store] = [*combines, *full]
    several = _rows_together(rounds, full, _streams(rounds, column, row), row)
    lanes = vector_length(rounds, column.extent, target, lambda w: 2 if several > 1 else 4 if w.cost <= 30 else 2)
    streams = [s for s in _streams(rounds, column, row) if not _is_near(s)]
    if full or len(streams) > 1:
        streams = []  # several streams keep memory busy by themselves

    def sweep(places: list[Affine], ahead: int) -> For:
        """One step over all columns: the rows at some places, with those that come later asked for."""
        body: list[Stmt] = []
        for stream in streams if ahead else ():
            shift = stream.index.factor(row) * ahead
            body += [Prefetch(stream.buffer, stream.index.substituted({row: at}).shifted(shift)) for at in places]
        moved = [substitute(rounds, {row: at}) for at in places]
        body += [s for one in moved for s in one if isinstance(s, Store)]
        for i, combine in enumerate(combines):
            operation, dtype = OPERATIONS[combine.accumulator.op], combine.accumulator.dtype
            values = [s.value for s in (one[i] for one in moved) if isinstance(s, Combine)]
            while len(values) > 1:
                values = [Apply(operation, pair, dtype) for pair in zip(values[::2], values[1::2])]
            place = held[combine.accumulator]
            body.append(Store(place.buffer, place.index, Apply(operation, (place, values[0]), dtype)))
        return For(column, tuple(body), lanes)

    starts = [
        Store(held[a].buffer, held[a].index, Const(identity(a.op, a.dtype), a.dtype))
        for a in (c.accumulator for c in combines)
    ]
    out: list[Stmt] = [For(column, tuple(starts), lanes)]
    groups, rest = divmod(row.extent, several)
    group, single = Var(row.name, groups), Var(row.name, rest)
    ahead = max([_rows_ahead(s, row, several) for s in streams], default=0)
    steps = [affine(group, several).shifted(i) for i in range(several)]
    passes: list[Stmt] = list(nest([group], (sweep(steps, ahead),)))
    if rest:
        passes += nest([single], (sweep([affine(single).shifted(groups * several)], 0),))
    out += nest(reduced[:-1], tuple(passes))
    last = _with_results(once, held)
    if last:
        out.append(For(column, tuple(last), vector_length(last, column.extent, target, lambda w: 2)))
    body = nest(kept[:-1], tuple(out))
    return [Scratch(own, body)] if own else list(body)


def _streams(rounds: Sequence[Combine | Store], column: Var, row: Var) -> list[Load]:
    """What is read once, row by row."""
    loads = [e for e in expressions(rounds) if isinstance(e, Load) and e.index.factor(column) == 1]
    return [e for e in loads if isinstance(e.index.factor(row), int) and e.index.factor(row) != 0]


def _is_near(stream: Load) -> bool:
    """Whether an operand stays in the second cache."""
    size = stream.buffer.size
    return isinstance(size, int) and size * NUMPY_DTYPE[stream.dtype].itemsize <= FAR


def _rows_together(rounds: Sequence[Combine | Store], full: Sequence[Store], streams: Sequence[Load], row: Var) -> int:
    """How many rows are combined before the results so far are touched; short ones are read as one stream."""
    short = min([_step(s, row) for s in streams]) < _PAGE
    return 1 if full or short or work_of(rounds).cost > _CHEAP * len(rounds) else _ROWS


def _rows_ahead(stream: Load, row: Var, several: int) -> int:
    """How many rows before they are needed those of an operand are asked for."""
    return max(several, -(-_AHEAD // _step(stream, row)))


def _step(stream: Load, row: Var) -> int:
    """From row to row, in bytes."""
    step = stream.index.factor(row)
    assert isinstance(step, int)
    return abs(step) * NUMPY_DTYPE[stream.dtype].itemsize


def _places(
    kept: Sequence[Var], combines: Sequence[Combine], once: Sequence[Store], below: int
) -> tuple[dict[Accumulator, Load], tuple[Buffer, ...]]:
    """Where each result so far lies: where something is stored in the end, or in an array of its own."""
    held: dict[Accumulator, Load] = {}
    free = [s for s in once if s.index.factor(kept[-1]) == 1]
    for combine in combines:
        accumulator = combine.accumulator
        fitting = [s for s in free if s.buffer.dtype == accumulator.dtype]
        plain = [s for s in fitting if isinstance(s.value, Result) and s.value.accumulator is accumulator]
        if fitting:
            store = (plain or fitting)[0]
            free.remove(store)
            held[accumulator] = Load(store.buffer, store.index)
    own: list[Buffer] = []
    index, size = Affine(), 1
    for var in reversed(kept):
        assert isinstance(var.extent, int)
        index, size = index.plus(affine(var, size)), size * var.extent
    for combine in combines:
        accumulator = combine.accumulator
        if accumulator not in held:
            position = below - 1 - len(own)
            own.append(Buffer(position, f"{accumulator.name}_held", accumulator.dtype, size, written=True))
            held[accumulator] = Load(own[-1], index)
    return held, tuple(own)


def _with_results(once: Sequence[Store], held: dict[Accumulator, Load]) -> list[Store]:
    """What is left to store, with the results read from where they lie."""
    statements: list[Stmt] = [
        s for s in once if not (isinstance(s.value, Result) and held[s.value.accumulator].buffer is s.buffer)
    ]
    for expr in list(expressions(statements)):
        if isinstance(expr, Result):
            statements = replace_expr(statements, set(range(len(statements))), expr, held[expr.accumulator])
    return [s for s in statements if isinstance(s, Store)]


__all__ = ["FAR", "schedule_sweeps", "suits_sweeps"]
