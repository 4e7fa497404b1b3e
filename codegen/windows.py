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
    Load,
    LoopExpr,
    Reduce,
    Result,
    Stmt,
    Store,
    Var,
    affine,
    expressions,
)
from graphkb.codegen.schedule import OPERATIONS, SHORT, nest, substitute, vector_length, with_result, work_of
from graphkb.codegen.target import Target
from graphkb.ir.dims import Dim

# The most taps that are written out, the most results at a time, and the most operations that one round then has; of
# longer windows the outer axes are loops, through which each result keeps its sum in a register.
_TAPS, _RESULTS, _UNROLLED = 32, 4, 160


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
    loads = []
    for expr in expressions([combine]):
        if isinstance(expr, Load) and expr.index.factor(column) in (0, 1):
            loads.append(expr)
        elif not isinstance(expr, Apply | Const):
            return None
    one = work_of([combine]).cost + 1
    looped, written = list[Var](), list(reduced)
    while written and (_count(written) > _TAPS or _count(written) * one > _UNROLLED):
        looped.append(written.pop(0))
    cost = _count(written) * one
    if not loads or _count(written) < 2:
        return None
    lanes = vector_length([combine, store], column.extent, target, lambda _: 1)
    count = _RESULTS if len(kept) > 1 and _overlap(kept[-2], reduced, loads) else 1
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


def _overlap(across: Var, reduced: Sequence[Var], loads: Sequence[Load]) -> bool:
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
    for cell in every(*[range(v.extent) for v in reduced if isinstance(v.extent, int)]):
        at = {**moved, **{v: Affine((), i) for v, i in zip(reduced, cell)}}
        value = _value(combine, at, known)
        total = value if total is None else Apply(OPERATIONS[accumulator.op], (total, value), accumulator.dtype)
    assert total is not None
    return total


def _value(combine: Combine, at: dict[Var, Affine], known: dict[Hashable, LoopExpr]) -> LoopExpr:
    """The value that is combined, of loads and applications, where loop variables are replaced."""
    new: dict[LoopExpr, LoopExpr] = {}
    for expr in expressions([combine]):
        match expr:
            case Load(buffer=buffer, index=index):
                place = index.substituted(at)
                new[expr] = known.setdefault((buffer, place), Load(buffer, place))
            case Apply(op=op, args=args, dtype=dtype):
                inner = tuple([new[a] for a in args])
                new[expr] = known.setdefault((op, inner, dtype), Apply(op, inner, dtype))
            case _:
                new[expr] = expr
    return new[combine.value]
