"""Short reductions over windows: taps written out, for neighboring results at a time, so that they share loads."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import product as every
from math import prod

from graphkb.codegen.loops import (
    Affine,
    Apply,
    Combine,
    Const,
    For,
    IndexValue,
    Load,
    Lookup,
    LoopExpr,
    Reduce,
    Result,
    SizeValue,
    Stmt,
    Store,
    Var,
    affine,
    expressions,
)
from graphkb.codegen.padding import apply, lookup
from graphkb.codegen.schedule import (
    OPERATIONS,
    SHORT,
    nest,
    substitute,
    varying,
    vector_length,
    with_result,
    work_of,
)
from graphkb.codegen.target import Target
from graphkb.ir.dims import Dim

# The most taps that are written out, the most results at a time, and the most operations that one round then has; of
# longer windows the outer axes are loops, through which each result keeps its sum in a register.
_TAPS, _RESULTS, _UNROLLED = 32, 4, 160
# The most vectors that results at a time read in one round, of which some wait in registers: a few more than those.
_SHARED = 40


def schedule_window(
    kept: list[Var], reduced: list[Var], store: Store, combine: Combine, target: Target
) -> list[Stmt] | None:
    """The schedule of a reduction over a window; None where it is long, or neighbors in memory do not follow it."""
    taps = _count(reduced)
    if not kept or not target.vector_bits or not 1 < taps <= SHORT:
        return None
    column = kept[-1]
    narrow = isinstance(column.extent, int) and 2 * column.extent <= target.lanes(store.buffer.dtype)
    if narrow or combine.accumulator.op not in OPERATIONS or store.index.factor(column) != 1:
        return None
    loads = _loads(combine, column)
    if loads is None:
        return None
    plain = all(isinstance(load, Load) for load in loads)
    # What meets padding is little.
    count = _RESULTS if plain and len(kept) > 1 and _overlap(kept[-2], reduced, loads) else 1
    looped, written = list[Var](), list(reduced)
    while written and (_count(written) > _TAPS or _cost(written, combine, plain) > _UNROLLED):
        looped.append(written.pop(0))
    while count > 1 and len(written) > 1 and _shared(written, combine, kept[-2], count) > _most_shared(target):
        looped.append(written.pop(0))
    cost = _cost(written, combine, plain)
    if not loads or _count(written) < 2:
        return None
    # Positions of what may be padding are scalars.
    work: list[Stmt] = [combine, store] if plain else [store]
    lanes = vector_length(work, column.extent, target, lambda _: 1)
    while count > 1 and count * cost > _UNROLLED:
        count //= 2

    def row(places: Sequence[Affine]) -> For:
        known: dict[Hashable, LoopExpr] = {}
        moves = [{kept[-2]: place} for place in places] or [{}]
        values = [_written_out(written, combine, moved, known) for moved in moves]
        results: list[LoopExpr] = values
        loops: tuple[Stmt, ...] = ()
        if looped:
            sums = [replace(combine.accumulator, name=f"acc{i or ''}") for i in range(len(moves))]
            loops = nest(looped, tuple([Combine(acc, value) for acc, value in zip(sums, values)]))
            for acc in reversed(sums):
                loops = (Reduce(acc, loops),)
            results = [Result(acc) for acc in sums]
        stores = [_placed(store, combine, moved, result) for moved, result in zip(moves, results)]
        return For(column, (*loops, *stores), lanes)

    if count == 1:
        return list(nest(kept[:-1], (row(()),)))
    across = kept[-2]
    whole = across.extent // count
    block, rest = Var(across.name, whole), Var(across.name, across.extent - whole * count)
    parts: list[Stmt] = [For(block, (row([affine(block, count).shifted(i) for i in range(count)]),))]
    if rest.extent != 0:
        parts.append(For(rest, (row([affine(rest).shifted(whole * count)]),)))
    return list(nest(kept[:-2], tuple(parts)))


def _loads(combine: Combine, column: Var) -> list[Load | Lookup] | None:
    """What a round reads; None where a vector along a column would not read neighbors or one element."""
    loads: list[Load | Lookup] = []
    uneven = varying([combine], column)
    for expr in expressions([combine]):
        match expr:
            case Load(index=index) | Lookup(index=index) if index.factor(column) in (0, 1):
                loads.append(expr)
            case Apply() | Const() | SizeValue():
                continue
            case IndexValue() if expr not in uneven:
                continue
            case _:
                return None
        if isinstance(expr, Lookup) and expr.position in uneven:
            return None
    return loads


def _cost(written: Sequence[Var], combine: Combine, plain: bool) -> int:
    """The operations of a round whose taps are written out."""
    if plain:
        return _count(written) * (work_of([combine]).cost + 1)
    # Once taps are known, little is left of the questions whether they meet padding.
    known: dict[Hashable, LoopExpr] = {}
    value = _written_out(written, combine, {}, known)
    return work_of([Combine(combine.accumulator, value)]).cost


def _shared(written: Sequence[Var], combine: Combine, across: Var, count: int) -> int:
    """How many elements some neighboring results read in one round."""
    known: dict[Hashable, LoopExpr] = {}
    for i in range(count):
        _written_out(written, combine, {across: affine(across, count).shifted(i)}, known)
    return sum(isinstance(expr, Load) for expr in known.values())


def _most_shared(target: Target) -> int:
    """How many vectors the results of one round may share: more would not stay in registers."""
    return _SHARED if target.is_avx512 or not target.triple.startswith("x86") else _SHARED // 2


def _overlap(across: Var, reduced: Sequence[Var], loads: Sequence[Load | Lookup]) -> bool:
    """Whether neighboring results along a loop read the same elements."""
    for load in loads:
        step = load.index.factor(across)
        if step == 0:
            return True
        if any(_steps_within(step, load.index.factor(tap), tap.extent) for tap in reduced):
            return True
    return False


def _steps_within(step: Dim, along: Dim, extent: Dim) -> bool:
    """Whether a step is one of fewer than `extent` steps of another length."""
    if not (isinstance(step, int) and isinstance(along, int) and isinstance(extent, int)) or along <= 0:
        return False
    return step % along == 0 and step // along < extent


def _count(reduced: Sequence[Var]) -> int:
    """How many taps there are; none counts as one, an unknown number as too many."""
    return prod([v.extent if isinstance(v.extent, int) else 1 << 30 for v in reduced])


def _placed(store: Store, combine: Combine, moved: dict[Var, Affine], result: LoopExpr) -> Store:
    """The store of one result, which is given."""
    (placed,) = substitute([store], moved)
    assert isinstance(placed, Store)
    return with_result(placed, combine.accumulator, result)


def _written_out(
    reduced: Sequence[Var], combine: Combine, moved: dict[Var, Affine], known: dict[Hashable, LoopExpr]
) -> LoopExpr:
    """The reduction of one result as an expression, in which what is known already is shared."""
    accumulator = combine.accumulator
    # Sums begin with zero, so that negative zeros add up to zero.
    total: LoopExpr | None = Const(0, accumulator.dtype) if accumulator.op == "sum" else None
    parts = list(expressions([combine]))
    for cell in every(*[range(v.extent) for v in reduced if isinstance(v.extent, int)]):
        at = {**moved, **{v: Affine((), i) for v, i in zip(reduced, cell)}}
        value = value_at(parts, at, known)
        total = value if total is None else Apply(OPERATIONS[accumulator.op], (total, value), accumulator.dtype)
    assert total is not None
    return total


def value_at(parts: Sequence[LoopExpr], at: dict[Var, Affine], known: dict[Hashable, LoopExpr]) -> LoopExpr:
    """A value of loads and applications where loop variables are replaced; it is the last of its parts."""
    new: dict[LoopExpr, LoopExpr] = {}
    for expr in parts:
        match expr:
            case Load(buffer=buffer, index=index):
                place = index.substituted(at)
                new[expr] = known.setdefault((buffer, place), Load(buffer, place))
            case IndexValue(index=index, dtype=dtype):
                place = index.substituted(at)
                new[expr] = known.setdefault((dtype, place), IndexValue(place, dtype))
            case Lookup(buffer=buffer, index=index, step=step, position=position):
                found = lookup(buffer, index.substituted(at), step, new[position])
                key = (buffer, found.index, step, found.position if isinstance(found, Lookup) else None)
                new[expr] = known.setdefault(key, found)
            case Apply(op=op, args=args, dtype=dtype):
                inner = tuple([new[a] for a in args])
                new[expr] = known.setdefault((op, inner, dtype), apply(op, inner, dtype))
            case _:
                new[expr] = expr
    return new[parts[-1]]
