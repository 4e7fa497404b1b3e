"""Scheduling: which loops merge, which becomes the vector, and how long sums are cut into blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from graphkb.codegen.loops import (
    Accumulator,
    Affine,
    Apply,
    Combine,
    For,
    IndexValue,
    Load,
    LoopExpr,
    Reduce,
    Result,
    Stmt,
    Store,
    Var,
    affine,
    expressions,
    walk,
)
from graphkb.codegen.target import Target
from graphkb.ir.dims import Dim, product
from graphkb.ir.op import find_op
from graphkb.ir.types import NUMPY_DTYPE

# A float sum of more elements than this runs in blocks of so many, whose results add up in float64.
BLOCK = 2048


# ---------------------------------------------------------------------------------------------- index sets
def _affines(statements: Iterable[Stmt]) -> list[Affine]:
    found = []
    for statement in walk(statements):
        if isinstance(statement, Store):
            found.append(statement.index)
        elif isinstance(statement, Combine) and statement.position is not None:
            found.append(statement.position)
    found.extend(expr.index for expr in expressions(statements) if isinstance(expr, Load | IndexValue))
    return found


def collapse(axes: list[Var], statements: list[Stmt]) -> tuple[list[Var], list[Stmt]]:
    """Merge neighboring loops wherever every index runs through both as through one."""
    position = len(axes) - 2
    while position >= 0:
        outer, inner = axes[position], axes[position + 1]
        if all(a.factor(outer) == a.factor(inner) * inner.extent for a in _affines(statements)):
            merged = Var(outer.name, outer.extent * inner.extent)
            statements = substitute(statements, {outer: Affine(), inner: affine(merged)})
            axes = [*axes[:position], merged, *axes[position + 2 :]]
        position -= 1
    return axes, statements


def substitute(statements: Sequence[Stmt], new: dict[Var, Affine]) -> list[Stmt]:
    """The statements with loop variables replaced by affine functions; loops themselves must not be replaced."""
    known: dict[LoopExpr, LoopExpr] = {}
    for expr in expressions(statements):
        match expr:
            case Load(buffer=buffer, index=index):
                known[expr] = Load(buffer, index.substituted(new))
            case IndexValue(index=index, dtype=dtype):
                known[expr] = IndexValue(index.substituted(new), dtype)
            case Apply(op=op, args=args, dtype=dtype):
                known[expr] = Apply(op, tuple([known[a] for a in args]), dtype)
            case _:
                known[expr] = expr

    def visit(statement: Stmt) -> Stmt:
        match statement:
            case Store(buffer=buffer, index=index, value=value):
                return Store(buffer, index.substituted(new), known[value])
            case Combine(accumulator=acc, value=value, position=position):
                return Combine(acc, known[value], None if position is None else position.substituted(new))
            case Reduce(accumulator=acc, body=body):
                return Reduce(acc, tuple(map(visit, body)))
            case For(var=var, body=body, lanes=lanes):
                return For(var, tuple(map(visit, body)), lanes)

    return [visit(s) for s in statements]


def varying(statements: Sequence[Stmt], var: Var) -> set[LoopExpr]:
    """The expressions that change along a variable."""
    found: set[LoopExpr] = set()
    for expr in expressions(statements):
        match expr:
            case Load(index=index) | IndexValue(index=index):
                if index.factor(var) != 0:
                    found.add(expr)
            case Apply(args=args):
                if any(a in found for a in args):
                    found.add(expr)
            case _:
                pass
    return found


def replace_expr(statements: Sequence[Stmt], where: set[int], old: LoopExpr, new: LoopExpr) -> list[Stmt]:
    """The Store and Combine statements with an expression replaced in those at the given positions."""
    known: dict[LoopExpr, LoopExpr] = {}
    for expr in expressions([s for i, s in enumerate(statements) if i in where]):
        if expr is old:
            known[expr] = new
        elif isinstance(expr, Apply):
            args = tuple([known[a] for a in expr.args])
            known[expr] = expr if args == expr.args else Apply(expr.op, args, expr.dtype)
        else:
            known[expr] = expr
    out: list[Stmt] = []
    for i, statement in enumerate(statements):
        match statement:
            case Store(buffer=buffer, index=index, value=value) if i in where:
                out.append(Store(buffer, index, known[value]))
            case Combine(accumulator=acc, value=value, position=position) if i in where:
                out.append(Combine(acc, known[value], position))
            case _:
                out.append(statement)
    return out


# ---------------------------------------------------------------------------------------------- schedules
@dataclass(frozen=True)
class _Work:
    """What one element costs: scalar operations, and the widest item that is computed with, in bits."""

    cost: int
    bits: int


def work_of(statements: Iterable[Stmt]) -> _Work:
    """The cost of one round of the innermost loop."""
    cost, bits = 0, 8
    for expr in expressions(statements):
        if isinstance(expr, Apply):
            cost += find_op(expr.op).cost
        width = NUMPY_DTYPE[expr.dtype].itemsize * 8
        bits = max(bits, 32 if expr.dtype == "float16" else width)
    return _Work(cost, bits)


def vector_length(statements: Sequence[Stmt], extent: Dim, target: Target, unroll: Callable[[_Work], int]) -> int:
    """The vector length: native registers times an unroll factor, no longer than the loop needs."""
    if not target.vector_bits:
        return 1
    work = work_of(statements)
    lanes = max(1, target.vector_bits // work.bits) * unroll(work)
    if isinstance(extent, int):
        while lanes > 1 and lanes // 2 >= extent:
            lanes //= 2
    return lanes


def schedule_map(axes: list[Var], statements: list[Stmt], target: Target) -> list[Stmt]:
    if not axes:
        return statements
    lanes = vector_length(statements, axes[-1].extent, target, lambda w: 1 if w.cost > 60 else 2 if w.cost > 4 else 4)
    body: tuple[Stmt, ...] = (For(axes[-1], tuple(statements), lanes),)
    return list(nest(axes[:-1], body))


def nest(axes: Sequence[Var], body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    for var in reversed(axes):
        body = (For(var, body),)
    return body


def _unit_loads(statements: Sequence[Stmt], var: Var) -> int:
    """How well a loop suits vectors: loads that run along it, less loads that would have to be gathered."""
    score = 0
    for expr in expressions(statements):
        if isinstance(expr, Load):
            factor = expr.index.factor(var)
            score += 1 if factor == 1 else 0 if factor == 0 else -1
    return score


def schedule_reduction(
    kept: list[Var], reduced: list[Var], store: Stmt, combine: Combine, target: Target
) -> list[Stmt]:
    """Vectors run along the innermost reduced or the innermost kept axis, whichever the loads follow."""
    along_kept = bool(kept) and (not reduced or _unit_loads([combine], kept[-1]) > _unit_loads([combine], reduced[-1]))
    accumulator = combine.accumulator
    if along_kept or not reduced:
        lanes = (
            vector_length([combine, store], kept[-1].extent, target, lambda w: 4 if w.cost <= 30 else 2) if kept else 1
        )
        inner = _blocked(accumulator, reduced[:-1], reduced[-1] if reduced else None, combine, 1, store)
        return list(nest(kept[:-1], (For(kept[-1], inner, lanes),))) if kept else list(inner)
    lanes = vector_length([combine], reduced[-1].extent, target, lambda w: 4 if w.cost <= 30 else 2)
    if accumulator.op in ("argmax", "argmin"):
        lanes = vector_length([combine], reduced[-1].extent, target, lambda w: 2)
    return list(nest(kept, _blocked(accumulator, reduced[:-1], reduced[-1], combine, lanes, store)))


def _blocked(
    accumulator: Accumulator, outer: list[Var], var: Var | None, combine: Combine, lanes: int, store: Stmt
) -> tuple[Stmt, ...]:
    """A reduction, then the store of its result; long float32 sums add blocks up in float64."""
    if var is None:
        return (Reduce(accumulator, (combine,)), store)
    count = product([v.extent for v in (*outer, var)])
    short = isinstance(count, int) and count <= BLOCK
    if accumulator.op != "sum" or accumulator.dtype != "float32" or short:
        return (Reduce(accumulator, nest(outer, (For(var, (combine,), lanes),))), store)
    total = Accumulator("total", "sum", "float64")
    extent = var.extent
    pieces: list[Stmt] = []
    blocks = extent // BLOCK
    if blocks != 0:
        block, inside = Var("b", blocks), Var(var.name, BLOCK)
        part = Accumulator("part", "sum", "float32")
        pieces.append(For(block, _part(part, total, combine, var, affine(block, BLOCK), inside, lanes)))
    rest = extent - blocks * BLOCK
    if rest != 0:
        part = Accumulator("part", "sum", "float32")
        tail = Var(var.name, rest)
        pieces += _part(part, total, combine, var, Affine((), blocks * BLOCK), tail, lanes)
    result: LoopExpr = Apply("cast", (Result(total),), "float32")
    return (Reduce(total, nest(outer, tuple(pieces))), _with_result(store, accumulator, result))


def _part(
    part: Accumulator, total: Accumulator, combine: Combine, var: Var, base: Affine, inside: Var, lanes: int
) -> tuple[Stmt, ...]:
    """One block of a long sum: its own accumulator, added to the total."""
    (moved,) = substitute([combine], {var: base.plus(affine(inside))})
    assert isinstance(moved, Combine)
    loop = For(inside, (Combine(part, moved.value),), lanes)
    return (Reduce(part, (loop,)), Combine(total, Apply("cast", (Result(part),), "float64")))


def _with_result(store: Stmt, accumulator: Accumulator, result: LoopExpr) -> Stmt:
    """The store with the result of an accumulator replaced by an expression."""
    for expr in expressions([store]):
        if isinstance(expr, Result) and expr.accumulator is accumulator:
            (store,) = replace_expr([store], {0}, expr, result)
    return store
