"""Reductions in blocks: parts of fixed size are reduced on their own, then their results: threads share the parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
)
from graphkb.codegen.parallel import ENOUGH, PART, RUN, picoseconds
from graphkb.codegen.schedule import (
    SHORT,
    runs_along_kept,
    schedule_reduction,
    substitute,
    suits_sweeps,
    with_result,
)
from graphkb.codegen.target import Target
from graphkb.ir.dims import Dim, product

# Blocks of one reduction, at most; and how many times fewer they are than what they divide, so that little is added.
_MOST = 64
_FEWER = 16
# A block is a multiple of so many rounds: whole vectors, or whole sweeps.
_STEP = 64


@dataclass(frozen=True)
class Stage:
    """A reduction of blocks: its loops, what each round combines and stores, and the stores of the blocks' results."""

    kept: list[Var]
    reduced: list[Var]
    combines: list[Combine]
    full: list[Store]
    results: list[Store]


@dataclass(frozen=True)
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
    kept: Sequence[Var], reduced: Sequence[Var], combines: Sequence[Combine], full: Sequence[Store], length: int
) -> Cut:
    """Blocks of `length` rounds of the first reduced loop, of known size."""
    axis = reduced[0]
    assert isinstance(axis.extent, int)
    count, rest = divmod(axis.extent, length)
    total, size = count + (rest > 0), product([v.extent for v in kept])
    names = ["blocks"] if len(combines) == 1 else [f"blocks{i}" for i in range(len(combines))]
    buffers = [
        Buffer(-1 - i, name, combine.accumulator.dtype, total * size, written=True)
        for i, (name, combine) in enumerate(zip(names, combines))
    ]
    place: Affine = Affine()
    stride: Dim = 1
    for var in reversed(kept):
        place = place.plus(affine(var, stride))
        stride = stride * var.extent

    def stage(outer: list[Var], block: Affine, rounds: int) -> Stage:
        inner = Var(axis.name, rounds)
        moved = substitute([*combines, *full], {axis: affine(inner).plus(block.scaled(length))})
        own: list[Combine] = []
        results: list[Store] = []
        for statement, buffer in zip(moved, buffers):
            assert isinstance(statement, Combine)
            accumulator = Accumulator(statement.accumulator.name, statement.accumulator.op, buffer.dtype)
            own.append(Combine(accumulator, statement.value))
            results.append(Store(buffer, place.plus(block.scaled(size)), Result(accumulator)))
        stores = [s for s in moved if isinstance(s, Store)]
        return Stage([*outer, *kept], [inner, *reduced[1:]], own, stores, results)

    block, last = Var("block", count), Var("block", total)
    stages = [stage([block], affine(block), length)]
    if rest:
        stages.append(stage([], Affine((), count), rest))
    return Cut(stages, tuple(buffers), last, [Load(b, place.plus(affine(last, size))) for b in buffers])


def block_length(
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
    count = min(_MOST, time // PART, sums[0] // (_FEWER if kept else 2))
    # Few blocks of long rows: threads had better share the columns.
    if count < (ENOUGH if columns >= ENOUGH * RUN else 2):
        return 0
    length = -(-sums[0] // count)
    step = min(_STEP, 1 << (length.bit_length() - 1))
    return -(-length // step) * step


def reduce_in_blocks(kept: list[Var], reduced: list[Var], store: Store, combine: Combine, target: Target) -> list[Stmt]:
    """The schedule of a reduction: in blocks of the outermost reduced axis where the kept ones give threads too little.

    The order of the sums is fixed by the sizes alone.
    """
    along_kept = runs_along_kept(kept, reduced, combine)
    length = block_length(kept, reduced, [combine], along_kept, target)
    if not length:
        return schedule_reduction(kept, reduced, store, combine, target)
    store, wide = _widened(reduced, store, combine)
    # Sweeps keep their sums in memory, where wide ones would cost time.
    sweeps = along_kept and suits_sweeps(kept[-1], [Var("r", length)], combine)
    blocks = cut(kept, reduced, [combine if sweeps else wide], [], length)
    body: list[Stmt] = []
    for stage in blocks.stages:
        body += schedule_reduction(stage.kept, stage.reduced, stage.results[0], stage.combines[0], target)
    (held,) = blocks.held
    if held.dtype != wide.accumulator.dtype:
        held = Apply("cast", (held,), wide.accumulator.dtype)
    body += schedule_reduction(kept, [blocks.last], store, Combine(wide.accumulator, held), target)
    return [Scratch(blocks.buffers, tuple(body))]


def _widened(reduced: Sequence[Var], store: Store, combine: Combine) -> tuple[Store, Combine]:
    """Long float32 sums are accumulated in float64, also from block to block."""
    accumulator = combine.accumulator
    count = product([v.extent for v in reduced])
    assert isinstance(count, int)
    if accumulator.op != "sum" or accumulator.dtype != "float32" or count <= SHORT:
        return store, combine
    total = Accumulator(accumulator.name, "sum", "float64")
    result = Apply("cast", (Result(total),), "float32")
    return with_result(store, accumulator, result), Combine(total, Apply("cast", (combine.value,), "float64"))


__all__ = ["Cut", "Stage", "block_length", "cut", "reduce_in_blocks"]
