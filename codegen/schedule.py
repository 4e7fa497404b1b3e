"""Scheduling: which loops merge, which becomes the vector, and in which order reductions walk through memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from graphkb.codegen.loops import (
    Accumulator,
    Affine,
    Apply,
    Combine,
    Deposit,
    For,
    IndexValue,
    Interleave,
    Load,
    Local,
    Lookup,
    LoopExpr,
    Parallel,
    Prefetch,
    Reduce,
    Result,
    Scratch,
    Stmt,
    Store,
    Tile,
    Var,
    affine,
    expressions,
    operands_of,
    walk,
)
from graphkb.codegen.random_draws import run_length
from graphkb.codegen.target import Target
from graphkb.ir.dims import Dim
from graphkb.ir.op import find_op
from graphkb.ir.record import record
from graphkb.ir.types import FLOATS, NUMPY_DTYPE
from graphkb.ops.random import DRAWS

# A float32 sum of more elements than this is accumulated in float64.
SHORT = 1024
# The side of the squares that are transposed in registers, and the number of stores that are interleaved, at most.
_TILE = 16
MOST_NEIGHBORS = 4
# The cost up to which the body of such a loop is written out.
_UNROLLED = 256
# The element-wise op that combines two values of a reduction.
OPERATIONS = {
    "sum": "add", "prod": "mul", "max": "maximum", "min": "minimum", "any": "logical_or", "all": "logical_and",
}  # fmt: skip


def identity(op: str, dtype: str) -> float | int | bool:
    """What an accumulator starts from: the operation gives back the other operand."""
    match op:
        case "sum":
            return 0.0 if dtype in FLOATS else 0  # as NumPy, whose sum of negative zeros, or of nothing, is 0.0
        case "prod":
            return 1
        case "any":
            return False
        case "all":
            return True
        case "max" | "argmax" | "min" | "argmin":
            low = op.endswith("max")
            if dtype == "bool":
                return not low
            if dtype in FLOATS:
                return float("-inf") if low else float("inf")
            bits = int(dtype.lstrip("uint"))
            if dtype.startswith("uint"):
                return 0 if low else (1 << bits) - 1
            largest = (1 << (bits - 1)) - 1
            return -largest - 1 if low else largest
        case other:
            raise AssertionError(f"unknown reduction {other}")


# ---------------------------------------------------------------------------------------------- index sets
def _affines(statements: Iterable[Stmt]) -> list[Affine]:
    found = []
    for statement in walk(statements):
        if isinstance(statement, Store | Deposit):
            found.append(statement.index)
        elif isinstance(statement, Combine) and statement.position is not None:
            found.append(statement.position)
    found.extend(expr.index for expr in expressions(statements) if isinstance(expr, Load | Lookup | IndexValue))
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
            case Lookup(buffer=buffer, index=index, step=step, position=position):
                known[expr] = Lookup(buffer, index.substituted(new), step, known[position])
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
            case Deposit(buffer=buffer, index=index, step=step, position=position, value=value):
                return Deposit(buffer, index.substituted(new), step, known[position], known[value])
            case Combine(accumulator=acc, value=value, position=at):
                return Combine(acc, known[value], None if at is None else at.substituted(new))
            case Reduce(accumulator=acc, body=body):
                return Reduce(acc, tuple(map(visit, body)))
            case For(var=var, body=body, lanes=lanes):
                return For(var, tuple(map(visit, body)), lanes)
            case Tile() | Interleave() | Prefetch() | Local() | Scratch() | Parallel():
                raise AssertionError("loops are substituted before they are scheduled")

    return [visit(s) for s in statements]


def lowest(statements: Sequence[Stmt]) -> int:
    """The lowest position of a buffer that statements read or write, at most 0: new arrays take those below."""
    stored = [s.buffer.position for s in walk(statements) if isinstance(s, Store | Deposit)]
    return min([0, *stored, *[e.buffer.position for e in expressions(statements) if isinstance(e, Load | Lookup)]])


def varying(statements: Sequence[Stmt], var: Var) -> set[LoopExpr]:
    """The expressions that change along a variable."""
    found: set[LoopExpr] = set()
    for expr in expressions(statements):
        match expr:
            case Load(index=index) | IndexValue(index=index) | Lookup(index=index) if index.factor(var) != 0:
                found.add(expr)
            case _ if any(a in found for a in operands_of(expr)):
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
        elif isinstance(expr, Lookup) and known[expr.position] is not expr.position:
            known[expr] = Lookup(expr.buffer, expr.index, expr.step, known[expr.position])
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
@record
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
        elif isinstance(expr, Lookup):
            cost += 2
        width = NUMPY_DTYPE[expr.dtype].itemsize * 8
        bits = max(bits, 32 if expr.dtype == "float16" else width)
    return _Work(cost, bits)


def vector_length(statements: Sequence[Stmt], extent: Dim, target: Target, unroll: Callable[[_Work], int]) -> int:
    """The vector length: native registers times an unroll factor, no longer than the loop needs."""
    if not target.vector_bits:
        return 1
    work = work_of(statements)
    lanes = max(1, target.vector_bits // work.bits) * unroll(work)
    runs = [e.dtype for e in expressions(statements) if isinstance(e, Apply) and e.op in DRAWS]
    if runs:
        lanes = max([run_length(target, dtype) for dtype in runs])
    if isinstance(extent, int):
        while lanes > 1 and lanes // 2 >= extent:
            lanes //= 2
    return lanes


def schedule_map(axes: list[Var], statements: list[Stmt], target: Target) -> list[Stmt]:
    if not axes:
        return statements
    moved = _transposed(axes, statements, target)
    if moved is not None:
        return moved
    lanes = vector_length(statements, axes[-1].extent, target, lambda w: 1 if w.cost > 60 else 2 if w.cost > 4 else 4)
    body: tuple[Stmt, ...] = (For(axes[-1], tuple(statements), lanes),)
    return list(nest(axes[:-1], body))


def _transposed(axes: list[Var], statements: list[Stmt], target: Target) -> list[Stmt] | None:
    """The schedule of a store whose operands run along another loop than the result does; None where none does."""
    if len(statements) != 1 or len(axes) < 2 or not target.vector_bits:
        return None
    (store,) = statements
    inner = axes[-1]
    if not isinstance(store, Store) or store.index.factor(inner) != 1:
        return None
    loads = [e for e in expressions(statements) if isinstance(e, Load)]
    strided = [e for e in loads if e.index.factor(inner) not in (0, 1, -1)]
    across = [v for v in axes[:-1] if any(e.index.factor(v) == 1 for e in strided)]
    if not strided or not across:
        return None
    outer = max(across, key=lambda v: sum(e.index.factor(v) == 1 for e in strided))
    work = work_of(statements)
    rest = [v for v in axes[:-1] if v is not outer]
    if isinstance(inner.extent, int) and inner.extent <= MOST_NEIGHBORS:
        if 0 < inner.extent == store.index.factor(outer) and work.cost * inner.extent <= _UNROLLED:
            return interleave([outer], [store_at(store, inner, j) for j in range(inner.extent)], rest, target)
        return None
    lanes = min(_TILE, target.vector_bits // max(NUMPY_DTYPE[e.dtype].itemsize * 8 for e in strided))
    for var in (outer, inner):
        while isinstance(var.extent, int) and lanes > 2 and var.extent % lanes * 4 > var.extent:
            lanes //= 2
    if lanes < 4 or work.cost * lanes > _UNROLLED:
        return None
    # Along the longer loop memory is read and written in fewer, longer streams.
    longer = isinstance(outer.extent, int) and isinstance(inner.extent, int) and outer.extent > inner.extent
    return list(nest(rest, (Tile(outer, inner, (store,), lanes, outer if longer else inner),)))


def store_at(store: Store, var: Var, value: int) -> Store:
    """The store in one round of a loop."""
    (moved,) = substitute([store], {var: Affine((), value)})
    assert isinstance(moved, Store)
    return moved


def interleave(axes: list[Var], stores: list[Store], outer: list[Var], target: Target) -> list[Stmt]:
    """Stores to neighboring places, with a vector loop along the last axis that takes them all at once."""
    lanes = vector_length(stores, axes[-1].extent, target, lambda w: 1)
    return list(nest([*outer, *axes[:-1]], (For(axes[-1], (Interleave(tuple(stores)),), lanes),)))


def schedule_deposit(axes: list[Var], deposit: Deposit, target: Target) -> list[Stmt]:
    """Vectors run along what is contiguous at one position; elements with positions of their own come one by one."""
    if not axes:
        return [deposit]
    column = axes[-1]
    lanes = 1
    if deposit.index.factor(column) == 1 and deposit.position not in varying([deposit], column):
        lanes = vector_length([deposit], column.extent, target, lambda w: 2 if w.cost > 4 else 4)
    return list(nest(axes[:-1], (For(column, (deposit,), lanes),)))


def nest(axes: Sequence[Var], body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    for var in reversed(axes):
        body = (For(var, body),)
    return body


def unit_loads(statements: Sequence[Stmt], var: Var) -> int:
    """How well a loop suits vectors: loads that run along it, less loads that would have to be gathered."""
    score = 0
    changing = varying(statements, var)
    for expr in expressions(statements):
        if isinstance(expr, Load):
            factor = expr.index.factor(var)
            score += 1 if factor == 1 else 0 if factor == 0 else -1
        elif isinstance(expr, Lookup):
            factor = -1 if expr.position in changing else expr.index.factor(var)
            score += 1 if factor == 1 else 0 if factor == 0 else -1
    return score


def runs_along_kept(kept: Sequence[Var], reduced: Sequence[Var], rounds: Sequence[Stmt]) -> bool:
    """Whether the loads follow the innermost kept axis rather than the innermost reduced one."""
    if not kept or not reduced:
        return bool(kept)
    return unit_loads(rounds, kept[-1]) > unit_loads(rounds, reduced[-1])


def schedule_reduction(
    kept: Sequence[Var],
    reduced: Sequence[Var],
    combines: Sequence[Combine],
    full: Sequence[Store],
    once: Sequence[Store],
    target: Target,
) -> list[Stmt]:
    """Every round is done once; vectors run along the innermost reduced or kept loop, whichever most operands follow.

    Args:
        kept, reduced: the loops.
        combines, full: what every round combines and stores.
        once: what is stored when the reductions are done.
        target: the machine.
    """
    rounds: tuple[Stmt, ...] = (*combines, *full)
    accumulators = [c.accumulator for c in combines]
    if kept and runs_along_kept(kept, reduced, rounds):
        lanes = vector_length([*rounds, *once], kept[-1].extent, target, lambda w: 4 if w.cost <= 30 else 2)
        inner = (*reduces(accumulators, nest(reduced, rounds)), *once)
        return list(nest(kept[:-1], (For(kept[-1], inner, lanes),)))
    loop = rounds
    if reduced:
        lanes = vector_length(rounds, reduced[-1].extent, target, lambda w: 4 if w.cost <= 30 else 2)
        loop = nest(reduced[:-1], (For(reduced[-1], rounds, lanes),))
    return list(nest(kept, (*reduces(accumulators, loop), *once)))


def reduces(accumulators: Sequence[Accumulator], loop: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """A loop that combines into several accumulators."""
    for accumulator in reversed(accumulators):
        loop = (Reduce(accumulator, loop),)
    return loop


def with_result(store: Store, accumulator: Accumulator, result: LoopExpr) -> Store:
    """The store with the result of an accumulator replaced by an expression."""
    for expr in list(expressions([store])):
        if isinstance(expr, Result) and expr.accumulator is accumulator:
            (replaced,) = replace_expr([store], {0}, expr, result)
            assert isinstance(replaced, Store)
            store = replaced
    return store
