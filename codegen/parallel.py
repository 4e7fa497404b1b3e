"""Which loops threads share: the variable whose values can be divided without two threads meeting, if that pays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import lcm

from graphkb.codegen.loops import (
    Affine,
    Buffer,
    Combine,
    Deposit,
    For,
    Interleave,
    Load,
    Local,
    Lookup,
    Parallel,
    Prefetch,
    Reduce,
    Scratch,
    Stmt,
    Store,
    Tile,
    Var,
    expressions,
)
from graphkb.codegen.schedule import work_of
from graphkb.codegen.target import Target
from graphkb.ir.dims import Dim, Expr, floordiv, maximum, product
from graphkb.ir.record import record
from graphkb.ir.types import NUMPY_DTYPE

# Picoseconds of a scalar operation, and of a byte of memory, on one thread of a present machine.
_OPERATION = 300
_BYTE = 30
# What a part of a parallel loop should take: more than handing it over by far, and little beside all the work.
PART = 8_000_000
# With fewer parts than this an inner loop that has more is better.
ENOUGH = 16
# Neighbors in memory that a thread should take together, where loops around it come back to other rows.
RUN = 256


@record
class _Leaf:
    """A statement without a body, in the loops around it; `lanes` is the length of the vector that it computes."""

    statement: Store | Combine | Deposit
    loops: tuple[Var, ...]
    lanes: int
    reduced: frozenset[Var]  # loops inside a reduction: their rounds depend on one another
    own: Mapping[Buffer, frozenset[Var]]  # arrays of its own that each round of some loops has


def parallelize(body: Sequence[Stmt], target: Target) -> tuple[Stmt, ...]:
    """The scheduled statements of a kernel, with those that threads should share in `Parallel`.

    Neighboring statements whose loops run over one variable are shared together, so that each thread goes through all
    of them with its values. Nothing here depends on how many threads there are, and no result on how values are cut.
    """
    done: list[Stmt] = []
    for group in _groups(body):
        if isinstance(group[0], Scratch):
            done.append(Scratch(group[0].buffers, parallelize(group[0].body, target)))
            continue
        shared = _share(group, target)
        if shared is not None:
            done.append(shared)
            continue
        for statement in group:
            alone = _share([statement], target) if len(group) > 1 else None
            done.append(alone if alone is not None else statement)
    return tuple(done)


def _groups(body: Sequence[Stmt]) -> Iterator[list[Stmt]]:
    """Neighbors that have a loop variable in common."""
    group: list[Stmt] = []
    common: set[Var] = set()
    for statement in body:
        found = {var for leaf in _leaves((statement,)) for var in leaf.loops}
        if isinstance(statement, Scratch):
            found = set()
        if group and not common & found:
            yield group
            group = []
        common = common & found if group else found
        group.append(statement)
    if group:
        yield group


_NONE: Mapping[Buffer, frozenset[Var]] = {}


def _leaves(
    body: Sequence[Stmt],
    loops: tuple[Var, ...] = (),
    lanes: int = 1,
    reduced: frozenset[Var] | None = None,
    own: Mapping[Buffer, frozenset[Var]] = _NONE,
) -> Iterator[_Leaf]:
    for statement in body:
        match statement:
            case For(var=var, body=inner, lanes=several):
                within = None if reduced is None else reduced | {var}
                yield from _leaves(inner, (*loops, var), max(lanes, several), within, own)
            case Tile(outer=outer, inner=var, body=squares, lanes=several):
                yield from _leaves(squares, (*loops, outer, var), several, reduced, own)
            case Interleave(stores=stores):
                yield from _leaves(stores, loops, lanes, reduced, own)
            case Reduce(body=inner):
                yield from _leaves(inner, loops, lanes, reduced or frozenset(), own)
            case Local(buffers=buffers, body=inner):
                yield from _leaves(inner, loops, lanes, reduced, {**own, **dict.fromkeys(buffers, frozenset(loops))})
            case Scratch(body=inner) | Parallel(body=inner):
                yield from _leaves(inner, loops, lanes, reduced, own)
            case Store() | Combine() | Deposit():
                yield _Leaf(statement, loops, lanes, reduced or frozenset(), own)
            case Prefetch():
                pass
            case other:
                raise AssertionError(f"unknown statement {other}")


def _share(group: Sequence[Stmt], target: Target) -> Parallel | None:
    """The group with the best of its variables shared; None where it can not be, or is not worth it."""
    leaves = list(_leaves(group))
    best: tuple[Parallel, Dim] | None = None
    for var in dict.fromkeys(var for leaf in leaves for var in leaf.loops):
        if not _divisible(var, leaves):
            continue
        unit = lcm(*[leaf.lanes for leaf in leaves], 1) if _is_vector(var, group) else 1
        time: Dim = 0
        for leaf in leaves:
            rounds = product([v.extent for v in leaf.loops if v is not var])
            time = time + picoseconds(leaf.statement, leaf.lanes, leaf.loops[-1], target) * rounds
        inner = any(leaf.loops[0] is not var for leaf in leaves)
        grain = maximum(RUN if inner else 1, floordiv(PART, maximum(1, time)))
        grain = floordiv(grain + (unit - 1), unit) * unit
        parts = floordiv(var.extent + (grain - 1), grain)
        if isinstance(parts, int) and parts < 2:
            continue
        if best is None or (isinstance(parts, int) and isinstance(best[1], int) and parts > best[1]):
            best = Parallel(var, grain, tuple(group)), parts
        if not isinstance(parts, int) or parts >= ENOUGH:
            break
    return best[0] if best is not None else None


def _is_vector(var: Var, body: Sequence[Stmt]) -> bool:
    """Whether a variable is stepped over several at a time."""
    for statement in body:
        match statement:
            case For(var=own, lanes=lanes, body=inner):
                if (own is var and lanes > 1) or _is_vector(var, inner):
                    return True
            case Tile(outer=outer, inner=inner_var):
                if var in (outer, inner_var):
                    return True
            case Reduce(body=inner) | Local(body=inner):
                if _is_vector(var, inner):
                    return True
            case _:
                pass
    return False


# ---------------------------------------------------------------------------------------------- cost
def picoseconds(statement: Store | Combine | Deposit, lanes: int, innermost: Var | None, target: Target) -> int:
    """About how long one round of a statement takes on one thread."""
    work = work_of([statement])
    width = max(work.bits, target.vector_bits) if lanes > 1 else work.bits
    time = _OPERATION * (work.cost + 1) * work.bits // width + (_OPERATION if lanes == 1 else 0)
    moved = 0
    for expr in expressions([statement]):
        if isinstance(expr, Lookup):
            moved += 32
        elif isinstance(expr, Load) and innermost is not None:
            factor = expr.index.factor(innermost)
            size = NUMPY_DTYPE[expr.dtype].itemsize
            moved += 0 if factor == 0 else size if factor in (1, -1) else 4 * size
    if not isinstance(statement, Combine):
        moved += NUMPY_DTYPE[statement.buffer.dtype].itemsize
    return time + _BYTE * moved


# ---------------------------------------------------------------------------------------------- independence
def _divisible(var: Var, leaves: Sequence[_Leaf]) -> bool:
    """Whether rounds for different values of a variable touch different places of what the statements write."""
    if any(var not in leaf.loops or var in leaf.reduced for leaf in leaves):
        return False
    written = {
        leaf.statement.buffer
        for leaf in leaves
        if not isinstance(leaf.statement, Combine) and var not in leaf.own.get(leaf.statement.buffer, ())
    }
    return all(_apart(var, buffer, leaves) for buffer in written)


def _apart(var: Var, buffer: Buffer, leaves: Sequence[_Leaf]) -> bool:
    """Whether rounds for different values of a variable touch different places of a buffer."""
    indices: list[Affine] = []
    steps: list[Dim] = []
    for leaf in leaves:
        statement = leaf.statement
        if not isinstance(statement, Combine) and statement.buffer is buffer:
            indices.append(statement.index)
            if isinstance(statement, Deposit):
                steps.append(statement.step)
        for expr in expressions([statement]):
            if isinstance(expr, Lookup) and expr.buffer is buffer:
                return False
            if isinstance(expr, Load) and expr.buffer is buffer:
                indices.append(expr.index)
    factor = indices[0].factor(var)
    if factor == 0 or any(index.factor(var) != factor for index in indices):
        return False
    same = all(index == indices[0] for index in indices)
    size, reach = _magnitude(factor), _reach(indices[:1] if same else indices, var)
    if size is None or reach is None:
        return False
    if steps:
        # Positions are in range: they move within the places of one value of an outer axis, or past all of an inner.
        outer = all(
            _positive(step) and _positive(size - step) and floordiv(size, step) * step == size for step in steps
        )
        inner = _positive(size - reach) and all(_positive(step - size * (var.extent - 1) - reach) for step in steps)
        return outer or inner
    return _positive(size - reach) or (same and _injective(indices[0]))


def _reach(indices: Sequence[Affine], var: Var) -> Dim | None:
    """How far the indices at one value of a variable lie apart, over all values of the others; None if unknown."""
    ends: list[tuple[Dim, Dim]] = []
    for index in indices:
        low: Dim = index.offset
        high: Dim = index.offset
        for other, factor in index.terms:
            size = _magnitude(factor) if other is not var else 0
            if size is None:
                return None
            low, high = (
                (low, high + size * (other.extent - 1)) if size == factor else (low - size * (other.extent - 1), high)
            )
        ends.append((low, high))
    if len(ends) == 1:
        return ends[0][1] - ends[0][0]
    numbers = [n for pair in ends for n in pair if isinstance(n, int)]
    return max(numbers) - min(numbers) if len(numbers) == 2 * len(ends) else None


def _injective(index: Affine) -> bool:
    """Whether different values of the variables give different indices: each stride reaches beyond all smaller ones."""
    terms = [(abs(f), v.extent) for v, f in index.terms if isinstance(f, int) and isinstance(v.extent, int)]
    reach = 0
    for size, extent in sorted(terms):
        if size <= reach:
            return False
        reach += size * (extent - 1)
    return len(terms) == len(index.terms)


def _magnitude(factor: Dim) -> Dim | None:
    """The absolute value of a factor whose sign does not depend on sizes."""
    if not isinstance(factor, Expr):
        return abs(factor)
    signs = {coefficient > 0 for _, coefficient in factor.terms}
    return None if len(signs) != 1 else factor if True in signs else -factor


def _positive(dim: Dim) -> bool:
    """Whether a dim is positive whatever the sizes are."""
    if not isinstance(dim, Expr):
        return dim > 0
    constant = sum(coefficient for monomial, coefficient in dim.terms if not monomial)
    return constant > 0 and all(coefficient >= 0 for _, coefficient in dim.terms)


__all__ = ["ENOUGH", "PART", "RUN", "parallelize", "picoseconds"]
