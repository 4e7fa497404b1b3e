"""Long sums for few places that read operands in common, such as the taps of a kernel's gradient: all at a time."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from itertools import product as every
from math import prod

from graphkb.codegen.blocks import cut
from graphkb.codegen.loops import (
    Accumulator,
    Affine,
    Apply,
    Combine,
    Const,
    For,
    Load,
    LoopExpr,
    Result,
    Scratch,
    Stmt,
    Store,
    Var,
    expressions,
)
from graphkb.codegen.parallel import ENOUGH
from graphkb.codegen.schedule import SHORT, nest, reduces, substitute, vector_length, with_result
from graphkb.codegen.target import Target
from graphkb.codegen.windows import value_at

# Sums that are held in registers at a time, at most; and rounds from which on that pays.
_SUMS, _ROUNDS = 25, 32


def schedule_shared_sums(
    kept: list[Var], reduced: list[Var], store: Store, combine: Combine, target: Target
) -> list[Stmt] | None:
    """The schedule of sums that share operands; None where they share none, or vectors do not suit them.

    The order of the sums is fixed by the sizes alone. Long float32 sums are carried on in float64.
    """
    accumulator = combine.accumulator
    if accumulator.op != "sum" or accumulator.dtype not in ("float32", "float64") or not target.vector_bits:
        return None
    sizes = [v.extent for v in (*kept, *reduced)]
    if len(kept) < 2 or not reduced or not all(isinstance(n, int) and n > 0 for n in sizes):
        return None
    column, loads = kept[-1], _loads(combine)
    if loads is None or any(e.index.factor(column) not in (0, 1) for e in loads) or store.index.factor(column) != 1:
        return None
    if 2 * _length(column) <= target.lanes(accumulator.dtype) or prod(map(_length, reduced)) < _ROUNDS:
        return None
    most = _SUMS if target.is_avx512 or not target.triple.startswith("x86") else _SUMS // 2
    written = list[Var]()
    for var in reversed(kept[:-1]):
        alone = [e for e in loads if e.index.factor(var) == 0]
        if prod(map(_length, (*written, var))) > most or not alone or len(alone) == len(loads):
            break
        written.insert(0, var)
    if not written:
        return None
    parts = list(expressions([combine]))
    known: dict[Hashable, LoopExpr] = {}
    combines: list[Combine] = []
    stores: list[Store] = []
    for i, cell in enumerate(every(*[range(_length(v)) for v in written])):
        at = {v: Affine((), n) for v, n in zip(written, cell)}
        own = replace(accumulator, name=f"{accumulator.name}{i or ''}")
        (placed,) = substitute([store], at)
        assert isinstance(placed, Store)
        combines.append(Combine(own, value_at(parts, at, known)))
        stores.append(with_result(placed, accumulator, Result(own)))
    rest = [*kept[: -1 - len(written)], column]
    # Memory is read in its order.
    order = sorted(reduced, key=lambda v: max(_stride(e, v) for e in loads), reverse=True)
    return _sums(rest, order, combines, stores, target, most // len(combines))


def _sums(
    kept: list[Var], reduced: list[Var], combines: list[Combine], once: list[Store], target: Target, several: int
) -> list[Stmt]:
    """Sums over the same loops, in blocks that are short enough for their dtype."""
    rounds = prod(map(_length, reduced))
    if rounds <= SHORT:
        lanes = vector_length([*combines, *once], kept[-1].extent, target, lambda _: min(2, max(1, several)))
        inner = (*reduces([c.accumulator for c in combines], nest(reduced, tuple(combines))), *once)
        return list(nest(kept[:-1], (For(kept[-1], inner, lanes),)))
    # As many blocks as threads want, of even lengths.
    first = _length(reduced[0])
    count = min(first, max(ENOUGH, -(-rounds // SHORT)))
    length = -(-first // count)
    blocks = cut(kept, reduced, combines, [], length, min([0, *[s.buffer.position for s in once]]))
    body: list[Stmt] = []
    for stage in blocks.stages:
        body += _sums(stage.kept, stage.reduced, stage.combines, stage.results, target, several)
    # What the blocks give is added up in a wider type, for one place after another.
    for combine, held, store in zip(combines, blocks.held, once):
        total = Accumulator(combine.accumulator.name, "sum", "float64")
        value = held if held.dtype == "float64" else Apply("cast", (held,), "float64")
        result: LoopExpr = Result(total)
        if combine.accumulator.dtype != "float64":
            result = Apply("cast", (result,), combine.accumulator.dtype)
        last = with_result(store, combine.accumulator, result)
        lanes = vector_length([Combine(total, value), last], kept[-1].extent, target, lambda _: 2)
        inner = (*reduces([total], (For(blocks.last, (Combine(total, value),)),)), last)
        body += nest(kept[:-1], (For(kept[-1], inner, lanes),))
    return [Scratch(blocks.buffers, tuple(body))]


def _loads(combine: Combine) -> list[Load] | None:
    """What a round reads, if that is memory at places that loops tell."""
    loads = []
    for expr in expressions([combine]):
        if isinstance(expr, Load):
            loads.append(expr)
        elif not isinstance(expr, Apply | Const):
            return None
    return loads


def _length(var: Var) -> int:
    assert isinstance(var.extent, int)
    return var.extent


def _stride(load: Load, var: Var) -> int:
    factor = load.index.factor(var)
    return abs(factor) if isinstance(factor, int) else 1 << 30
