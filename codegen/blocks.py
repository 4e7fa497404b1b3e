"""Reductions in blocks: parts of fixed size are reduced on their own, then their results: threads share the parts."""

from __future__ import annotations

from collections.abc import Sequence
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


def reduce_in_blocks(kept: list[Var], reduced: list[Var], store: Store, combine: Combine, target: Target) -> list[Stmt]:
    """The schedule of a reduction: in blocks of the outermost reduced axis where the kept ones give threads too little.

    The order of the sums is fixed by the sizes alone.
    """
    length = _block_length(kept, reduced, combine, target)
    if not length:
        return schedule_reduction(kept, reduced, store, combine, target)
    axis = reduced[0]
    store, wide = _widened(reduced, store, combine)
    if not (kept and runs_along_kept(kept, reduced, combine) and suits_sweeps(kept[-1], [Var("r", length)], combine)):
        combine = wide  # sweeps keep their sums in memory, where wide ones would cost time
    accumulator = combine.accumulator
    assert isinstance(axis.extent, int)
    count, rest = divmod(axis.extent, length)
    size = product([v.extent for v in kept])
    total = count + (rest > 0)
    results = Buffer(-1, "blocks", accumulator.dtype, total * size, written=True)
    place: Affine = Affine()
    stride: Dim = 1
    for var in reversed(kept):
        place = place.plus(affine(var, stride))
        stride = stride * var.extent

    def stage(block: Affine, first: Affine, rounds: int) -> tuple[Var, Store, Combine]:
        """The reduction of one block: which rounds it takes, and where its result goes."""
        inner = Var(axis.name, rounds)
        own = Accumulator(accumulator.name, accumulator.op, accumulator.dtype)
        (moved,) = substitute([combine], {axis: affine(inner).plus(first)})
        assert isinstance(moved, Combine)
        return inner, Store(results, place.plus(block.scaled(size)), Result(own)), Combine(own, moved.value)

    block = Var("block", count)
    inner, stored, combined = stage(affine(block), affine(block, length), length)
    body = schedule_reduction([block, *kept], [inner, *reduced[1:]], stored, combined, target)
    if rest:
        inner, stored, combined = stage(Affine((), count), Affine((), count * length), rest)
        body += schedule_reduction(kept, [inner, *reduced[1:]], stored, combined, target)
    last = Var("block", total)
    held: LoopExpr = Load(results, place.plus(affine(last, size)))
    if wide.accumulator.dtype != held.dtype:
        held = Apply("cast", (held,), wide.accumulator.dtype)
    gathered = Combine(wide.accumulator, held)
    body += schedule_reduction(kept, [last], store, gathered, target)
    return [Scratch((results,), tuple(body))]


def _block_length(kept: Sequence[Var], reduced: Sequence[Var], combine: Combine, target: Target) -> int:
    """How many rounds of the outermost reduced axis make a block; 0 where blocks do not pay."""
    shares = [v.extent for v in kept if isinstance(v.extent, int)]
    sums = [v.extent for v in reduced if isinstance(v.extent, int)]
    if combine.position is not None or not sums or len(shares) + len(sums) < len(kept) + len(reduced):
        return 0
    columns = shares.pop() if runs_along_kept(kept, reduced, combine) else 1
    rounds = prod([*shares, columns, *sums])
    if rounds == 0 or prod(shares) >= ENOUGH:
        return 0
    time = rounds * picoseconds(combine, 2 if target.vector_bits else 1, reduced[-1], target)
    count = min(_MOST, time // PART, sums[0] // (_FEWER if kept else 2))
    # Few blocks of long rows: threads had better share the columns.
    if count < (ENOUGH if columns >= ENOUGH * RUN else 2):
        return 0
    length = -(-sums[0] // count)
    step = min(_STEP, 1 << (length.bit_length() - 1))
    return -(-length // step) * step


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


__all__ = ["reduce_in_blocks"]
