"""Reductions in blocks: parts of fixed size are reduced on their own, then their results.

Threads share the parts, memory is read in its order, and few columns fill vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

from graphkb.codegen.loops import (
    Accumulator,
    Affine,
    Apply,
    Buffer,
    Combine,
    Load,
    LoopExpr,
    Result,
    Scratch,
    Stmt,
    Store,
    Var,
    affine,
    expressions,
)
from graphkb.codegen.parallel import ENOUGH, PART, RUN, picoseconds
from graphkb.codegen.repeats import spread_operands
from graphkb.codegen.schedule import (
    OPERATIONS,
    SHORT,
    collapse,
    lowest,
    replace_expr,
    runs_along_kept,
    schedule_reduction,
    substitute,
)
from graphkb.codegen.sweeps import schedule_sweeps, suits_sweeps
from graphkb.codegen.target import Target
from graphkb.ir.dims import product
from graphkb.ir.record import record

# Blocks of one reduction, at most; and how many times fewer they are than what they divide, so that little is added.
_MOST = 64
_FEWER = 16
# A block is a multiple of so many rounds: whole vectors, or whole sweeps.
_STEP = 64
# Rows that a sweep adds up before the sums are carried on in a wider type.
_LONGEST_SWEEP = SHORT
# Float32 sums of so many elements are more exact than float16.
_ROUGH = 1 << 20
# Elements in a row below which several rows together are as good as one of several times the length.
_NARROW = 64
_WIDE = 256
# Elements that are worth that, and the number of neighbors that are worth adding up by themselves.
_MANY = 4096
_RUN = 16


@record
class Stage:
    """A reduction of blocks: its loops, what each round combines and stores, and the stores of the blocks' results."""

    kept: list[Var]
    reduced: list[Var]
    combines: list[Combine]
    full: list[Store]
    results: list[Store]


@record
class Cut:
    """A reduction cut into blocks of its outermost axis.

    Attributes:
        stages: all blocks of the whole length, then one that is shorter, if any.
        buffers: hold the blocks' results, for each accumulator.
        last: the loop over all blocks, which combines `held`, for each accumulator.
    """

    stages: list[Stage]
    buffers: tuple[Buffer, ...]
    last: Var
    held: list[LoopExpr]


def cut(
    kept: Sequence[Var],
    reduced: Sequence[Var],
    combines: Sequence[Combine],
    full: Sequence[Store],
    length: int,
    below: int,
    outer: int | None = None,
) -> Cut:
    """Blocks of `length` rounds of the first reduced loop; all loops have known sizes.

    Args:
        below: the positions of the buffers are lower than this.
        outer: how many of the kept loops stand around the one over blocks, each of which takes every so many-th round,
            so that the blocks of a round are neighbors. None: blocks stand outside all, and their rounds are neighbors.
    """
    axis = reduced[0]
    assert isinstance(axis.extent, int)
    count, rest = divmod(axis.extent, length)
    name = f"block{-below or ''}"
    block, last = Var(name, count), Var(name, count + (rest > 0))
    # Threads share the outer loops where these are long.
    inside = outer or 0 if outer is not None or prod([_known(v) for v in kept[:-1]]) < ENOUGH else len(kept) - 1
    strides: dict[Var, int] = {}
    stride = 1
    for var in reversed([*kept[: outer or 0], last, *kept[outer or 0 :]]):
        assert isinstance(var.extent, int)
        strides[var] = stride
        stride *= var.extent
    names = ["blocks"] if len(combines) == 1 else [f"blocks{i}" for i in range(len(combines))]
    buffers = [
        Buffer(below - 1 - i, name, combine.accumulator.dtype, stride, written=True)
        for i, (name, combine) in enumerate(zip(names, combines))
    ]
    place: Affine = Affine()
    for var in kept:
        place = place.plus(affine(var, strides[var]))

    def stage(number: Affine, begin: Affine, step: int, rounds: int) -> Stage:
        """The blocks of some numbers, whose rounds begin somewhere, a step apart."""
        inner = Var(axis.name, rounds)
        at = begin.plus(affine(inner, step)) if rounds > 1 else begin
        moved = substitute([*combines, *full], {axis: at})
        own: list[Combine] = []
        results: list[Store] = []
        for statement, buffer in zip(moved, buffers):
            assert isinstance(statement, Combine)
            accumulator = Accumulator(statement.accumulator.name, statement.accumulator.op, buffer.dtype)
            own.append(Combine(accumulator, statement.value))
            results.append(Store(buffer, place.plus(number.scaled(strides[last])), Result(accumulator)))
        stores = [s for s in moved if isinstance(s, Store)]
        loops = [*kept[:inside], *[v for v, _ in number.terms], *kept[inside:]]
        return Stage(loops, [*([inner] if rounds > 1 else []), *reduced[1:]], own, stores, results)

    if outer is not None:
        stages = [stage(affine(block), affine(block), count, length)]
    else:
        stages = [stage(affine(block), affine(block, length), 1, length)]
    if rest:
        stages.append(stage(Affine((), count), Affine((), count * length), 1, rest))
    return Cut(stages, tuple(buffers), last, [Load(b, place.plus(affine(last, strides[last]))) for b in buffers])


def _block_length(
    kept: Sequence[Var], reduced: Sequence[Var], statements: Sequence[Combine | Store], along_kept: bool, target: Target
) -> int:
    """How many rounds of the outermost reduced axis make a block; 0 where blocks do not pay.

    Args:
        kept, reduced: the loops.
        statements: what each round does.
        along_kept: whether vectors run along the innermost kept loop.
        target: the machine.
    """
    shares = [v.extent for v in kept if isinstance(v.extent, int)]
    sums = [v.extent for v in reduced if isinstance(v.extent, int)]
    if not sums or len(shares) + len(sums) < len(kept) + len(reduced):
        return 0
    if any(isinstance(s, Combine) and s.position is not None for s in statements):
        return 0
    columns = shares.pop() if along_kept else 1
    rounds = prod([*shares, columns, *sums])
    if rounds == 0 or prod(shares) >= ENOUGH:
        return 0
    innermost, lanes = kept[-1] if along_kept else reduced[-1], 2 if target.vector_bits else 1
    time = rounds * sum(picoseconds(s, lanes, innermost, target) for s in statements)
    # The results of blocks of long rows take time; with few of them threads had better share the columns.
    least, most = (ENOUGH, ENOUGH) if columns >= ENOUGH * RUN else (2, _MOST)
    count = min(most, time // PART, sums[0] // (_FEWER if kept else 2))
    if count < least:
        return 0
    length = -(-sums[0] // count)
    step = min(_STEP, 1 << (length.bit_length() - 1))
    return -(-length // step) * step


def reduce_in_blocks(
    kept: list[Var],
    reduced: list[Var],
    combines: list[Combine],
    full: list[Store],
    once: list[Store],
    target: Target,
) -> list[Stmt]:
    """The schedule of reductions over the same loops, in blocks of the outermost reduced one where that pays.

    The order of the sums is fixed by the sizes alone. Long float32 sums are carried on in float64.

    Args:
        kept, reduced: the loops.
        combines, full: what every round combines and stores.
        once: what is stored when the reductions are done.
        target: the machine.
    """
    spread = spread_operands(kept, reduced, [*combines, *full, *once], target)
    if spread is not None:
        loops = [*kept[:-2], spread.merged]
        inner = _in_blocks(Stage(loops, reduced, *_sorted(spread.statements, len(full))), target)
        return [Scratch(spread.buffers, (*spread.fills, *inner))]
    below = lowest([*combines, *full, *once])
    rounds: list[Combine | Store] = [*combines, *full]
    along_kept = runs_along_kept(kept, reduced, rounds)
    wide, wide_once = _widened(reduced, combines, once)
    known = all(isinstance(v.extent, int) and v.extent > 0 for v in (*kept, *reduced))
    blocks: Cut | None = None
    if known and reduced and target.vector_bits and all(c.accumulator.op in OPERATIONS for c in combines):
        if along_kept and _is_narrow(kept, reduced, rounds):
            together = _WIDE // _known(kept[-1])
            blocks = cut(kept, reduced, combines, full, _known(reduced[0]) // together, below, len(kept) - 1)
        elif _has_neighbors(kept, reduced, rounds):
            blocks = cut(kept, [reduced[-1], *reduced[:-1]], combines, full, 1, below, len(kept))
        elif not along_kept and _jumps(kept, reduced, rounds):
            blocks = cut(kept, reduced, wide, full, 1, below)
    if blocks is not None:
        body: list[Stmt] = []
        for stage in blocks.stages:
            body += _in_blocks(stage, target)
    else:
        sweeps = along_kept and suits_sweeps(kept, reduced, rounds, target)
        length = _block_length(kept, reduced, rounds, along_kept, target)
        if sweeps and _rows(reduced) > _LONGEST_SWEEP:
            length = min(length or _known(reduced[0]), max(1, _LONGEST_SWEEP // _rows(reduced[1:])))
        if not length:
            if sweeps:
                return schedule_sweeps(kept, reduced, combines, full, once, target)
            return schedule_reduction(kept, reduced, wide, full, wide_once, target)
        blocks = cut(kept, reduced, combines if sweeps else wide, full, length, below)
        body = []
        for stage in blocks.stages:
            parts = stage.kept, stage.reduced, stage.combines, stage.full, stage.results
            again = sweeps and suits_sweeps(stage.kept, stage.reduced, [*stage.combines, *stage.full], target)
            if again and len(reduced) > len(stage.reduced):
                body += _in_blocks(stage, target)
            else:
                body += schedule_sweeps(*parts, target) if again else schedule_reduction(*parts, target)
    gathered: list[Combine] = []
    for combine, held in zip(wide, blocks.held):
        dtype = combine.accumulator.dtype
        gathered.append(Combine(combine.accumulator, held if held.dtype == dtype else Apply("cast", (held,), dtype)))
    body += schedule_reduction(kept, [blocks.last], gathered, [], wide_once, target)
    return [Scratch(blocks.buffers, tuple(body))]


def _in_blocks(stage: Stage, target: Target) -> list[Stmt]:
    """A stage in blocks of its own, with neighboring loops merged where that is possible."""
    statements: list[Stmt] = [*stage.combines, *stage.full, *stage.results]
    kept, statements = collapse(stage.kept, statements)
    reduced, statements = collapse(stage.reduced, statements)
    return reduce_in_blocks(kept, reduced, *_sorted(statements, len(stage.full)), target)


def _sorted(statements: Sequence[Stmt], full: int) -> tuple[list[Combine], list[Store], list[Store]]:
    """What is combined, then as many stores of every round as told, then the stores of results."""
    stores = [s for s in statements if isinstance(s, Store)]
    return [s for s in statements if isinstance(s, Combine)], stores[:full], stores[full:]


def _is_narrow(kept: Sequence[Var], reduced: Sequence[Var], rounds: Sequence[Combine | Store]) -> bool:
    """Whether rows are short, many, and follow one another in memory."""
    column, row = kept[-1], reduced[0]
    if len(reduced) != 1 or not isinstance(column.extent, int) or not isinstance(row.extent, int):
        return False
    if not 1 < column.extent < _NARROW or row.extent * column.extent < _MANY or row.extent < 8 * _NARROW:
        return False
    loads = [e for e in expressions(rounds) if isinstance(e, Load) and e.index.factor(column) == 1]
    return any(e.index.factor(row) == column.extent for e in loads)


def _has_neighbors(kept: Sequence[Var], reduced: Sequence[Var], rounds: Sequence[Combine | Store]) -> bool:
    """Whether each result is made of short runs of memory, with those of the next result behind them."""
    if not kept or len(reduced) < 2 or not 1 < _known(reduced[-1]) < _NARROW:
        return False
    if prod([_known(v) for v in reduced[:-1]]) < _RUN:
        return False
    loads = [e for e in expressions(rounds) if isinstance(e, Load) and e.index.factor(reduced[-1]) == 1]
    return any(e.index.factor(kept[-1]) == reduced[-1].extent and e.index.factor(reduced[0]) != 0 for e in loads)


def _rows(reduced: Sequence[Var]) -> int:
    return prod([_known(v) for v in reduced])


def _known(var: Var) -> int:
    assert isinstance(var.extent, int)
    return var.extent


def _jumps(kept: Sequence[Var], reduced: Sequence[Var], rounds: Sequence[Combine | Store]) -> bool:
    """Whether each result is made of runs of memory that lie far apart, with those of other results in between."""
    if not kept or len(reduced) < 2:
        return False
    runs = [v.extent for v in reduced[1:]]
    if any(not isinstance(n, int) for n in runs) or prod([n for n in runs if isinstance(n, int)]) < _RUN:
        return False
    for expr in expressions(rounds):
        if isinstance(expr, Load):
            far, near = [expr.index.factor(v) for v in (reduced[0], kept[-1])]
            if isinstance(far, int) and isinstance(near, int) and far > near > 0:
                return True
    return False


def _widened(reduced: Sequence[Var], combines: list[Combine], once: list[Store]) -> tuple[list[Combine], list[Store]]:
    """Long float32 sums are accumulated in float64, also from block to block, unless they are rounded to float16."""
    count = product([v.extent for v in reduced])
    rough = all(s.buffer.dtype == "float16" for s in once)
    if isinstance(count, int) and count <= (_ROUGH if rough else SHORT):
        return combines, once
    statements: list[Stmt] = list(once)
    wide: list[Combine] = []
    for combine in combines:
        accumulator = combine.accumulator
        if accumulator.op != "sum" or accumulator.dtype != "float32":
            wide.append(combine)
            continue
        total = Accumulator(accumulator.name, "sum", "float64")
        wide.append(Combine(total, Apply("cast", (combine.value,), "float64")))
        for result in list(_results(statements, accumulator)):
            narrow = Apply("cast", (Result(total),), "float32")
            statements = replace_expr(statements, set(range(len(statements))), result, narrow)
    return wide, [s for s in statements if isinstance(s, Store)]


def _results(statements: Sequence[Stmt], accumulator: Accumulator) -> Iterator[LoopExpr]:
    for expr in expressions(statements):
        if isinstance(expr, Result) and expr.accumulator is accumulator:
            yield expr


__all__ = ["reduce_in_blocks"]
