"""Kernels of several results, and of several reductions: one pass over an index space, or one over each row of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from graphkb.codegen.blocks import reduce_in_blocks
from graphkb.codegen.loops import (
    Accumulator,
    Affine,
    Apply,
    Buffer,
    Combine,
    For,
    Load,
    LoopExpr,
    Result,
    Stmt,
    Store,
    Var,
    expressions,
    operands_of,
)
from graphkb.codegen.reading import REDUCTIONS, Reader, along, linear
from graphkb.codegen.repeats import schedule_stores
from graphkb.codegen.schedule import (
    collapse,
    nest,
    reduces,
    replace_expr,
    varying,
    vector_length,
    work_of,
)
from graphkb.codegen.target import Target
from graphkb.ir.dims import Shape, product
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node

# What costs more than this is kept rather than computed again.
_KEEP_ABOVE = 8


@dataclass
class _Space:
    """The loops of a kernel, with what each round of all of them, and of the outer ones alone, stores.

    Attributes:
        kept: the loops that number the results of reductions.
        reduced: the loops that reductions run over.
        combines: in the order in which their results can be known.
        full: stores of every round.
        once: stores of every round of the outer loops.
    """

    kept: list[Var]
    reduced: list[Var]
    combines: list[Combine]
    full: list[Store]
    once: list[Store]

    def collapse(self) -> None:
        """Merge loops where every index runs through two as through one."""
        for axes in (self.kept, self.reduced):
            merged, statements = collapse(axes, [*self.combines, *self.full, *self.once])
            axes[:] = merged
            self.combines = [s for s in statements if isinstance(s, Combine)]
            stores = [s for s in statements if isinstance(s, Store)]
            self.full, self.once = stores[: len(self.full)], stores[len(self.full) :]


def lower_several(body: Graph, named: dict[Node, Buffer], outs: Sequence[Buffer], target: Target) -> list[Stmt]:
    """The loops of a kernel whose results share an index space."""
    cores = [n for n in body.nodes if n.op.name in REDUCTIONS]
    if not cores:
        space = _read(body, named, outs, body.outputs[0].shape, ())
        space.collapse()
        return schedule_stores(space.kept, list(space.full), target)
    core = cores[0]
    last = core.inputs[0].ndim - 1
    space = _read(body, named, outs, core.inputs[0].shape, core.attrs["axes"])
    space.collapse()
    if core.attrs["axes"] == (last,) and isinstance(core.inputs[0].shape[last], int):
        return _rows(space, target)
    return reduce_in_blocks(space.kept, space.reduced, space.combines, space.full, space.once, target)


def lower_rows(body: Graph, named: dict[Node, Buffer], out: Buffer, target: Target) -> list[Stmt]:
    """The loops of a kernel of one result that runs row by row."""
    core = next(n for n in body.nodes if n.op.name in REDUCTIONS)
    columns = core.inputs[0].shape[-1]
    (root,) = body.outputs
    # Sizes alone do not tell: all empty arrays have the same.
    full = columns != 1 and root.shape[-1:] == (columns,) and root.type.size == core.inputs[0].type.size
    shape = root.shape if full else (*[n for n in root.shape if n != 1], columns)
    space = _read(body, named, [out], shape, (len(shape) - 1,))
    space.collapse()
    return _rows(space, target)


def _read(body: Graph, named: dict[Node, Buffer], outs: Sequence[Buffer], shape: Shape, axes: Sequence[int]) -> _Space:
    """What a kernel computes at each point of a space."""
    loops = [Var(f"r{axes.index(axis)}" if axis in axes else f"i{axis}", n) for axis, n in enumerate(shape)]
    kept = [v for axis, v in enumerate(loops) if axis not in axes]
    reader = Reader(named, [loops[axis] for axis in axes])
    full: list[Store] = []
    once: list[Store] = []
    for out, root in zip(outs, body.outputs):
        if root.shape == shape:
            index = tuple(map(along, loops))
            full.append(Store(out, linear(shape, index), reader.read(root, index)))
        else:
            rest = iter([v for v in kept if v.extent != 1])
            index = tuple([Affine() if n == 1 else along(next(rest)) for n in root.shape])
            once.append(Store(out, linear(root.shape, index), reader.read(root, index)))
    combines = [Combine(r.accumulator, r.value, r.position) for r in reader.reductions]
    reduced = [v for axis, v in enumerate(loops) if axis in axes and v.extent != 1]
    return _Space([v for v in kept if v.extent != 1], reduced, combines, full, once)


# ---------------------------------------------------------------------------------------------- rows
def _rows(space: _Space, target: Target) -> list[Stmt]:
    """Loops over rows, and in each row one loop for the reductions that wait for equally many others.

    A result that later loops need, and is costly, they read where it is stored. What else is costly and needed by
    several loops is kept in the row of a result that is still to come.
    """
    rounds = _kept_in_rows(_in_rounds(space), space.reduced)
    statements = [s for one in rounds for s in one]
    columns = product([v.extent for v in space.reduced])
    lanes = vector_length(statements, columns, target, lambda w: 4 if w.cost <= 30 else 2)
    inner: list[Stmt] = []
    for one in rounds:
        loop = tuple(one) if not space.reduced else (For(space.reduced[0], tuple(one), lanes),)
        inner += reduces([s.accumulator for s in one if isinstance(s, Combine)], loop)
    return list(nest(space.kept, (*inner, *space.once)))


def _in_rounds(space: _Space) -> list[list[Stmt]]:
    """The statements of the loops over a row, in order: each comes as soon as the results that it reads are known."""
    depth: dict[Accumulator, int] = {}
    known: dict[LoopExpr, int] = {}

    def wait(statement: Combine | Store) -> int:
        """How many loops have to be done before a statement."""
        for expr in expressions([statement]):
            if expr not in known:
                own = depth[expr.accumulator] if isinstance(expr, Result) else 0
                known[expr] = max([own, *[known[o] for o in operands_of(expr)]])
        return known[statement.value]

    rounds: list[list[Stmt]] = []

    def put(statement: Combine | Store) -> int:
        at = wait(statement)
        while len(rounds) <= at:
            rounds.append([])
        rounds[at].append(statement)
        return at

    for combine in space.combines:
        depth[combine.accumulator] = put(combine) + 1
    for store in space.full:
        put(store)
    return rounds


def _kept_in_rows(rounds: list[list[Stmt]], reduced: Sequence[Var]) -> list[list[Stmt]]:
    """The rounds with what is costly and shared computed once, kept in memory that a result takes or has taken."""
    if not reduced:
        return rounds
    final = {s.buffer: at for at, one in enumerate(rounds) for s in one if isinstance(s, Store)}
    for buffer in sorted(final, key=lambda b: -final[b]):
        store = _store_to(buffer, rounds[final[buffer]])
        rounds = _replaced(rounds, store.value, Load(buffer, store.index), final[buffer] + 1)
    free = dict(final)
    tried: set[LoopExpr] = set()
    while free:
        users = _shared(rounds, reduced[0])
        choices = [
            (expr, buffer)
            for expr, at in users.items()
            for buffer in free
            if expr not in tried and buffer.dtype == expr.dtype and at[-1] <= final[buffer] and at[0] < final[buffer]
        ]
        costs = {expr: work_of([Store(buffer, Affine(), expr)]).cost for expr, buffer in choices}
        best = max(choices, key=lambda choice: costs[choice[0]], default=None)
        if best is None or costs[best[0]] < _KEEP_ABOVE:
            break
        expr, buffer = best
        store = _store_to(buffer, rounds[final[buffer]])
        del free[buffer]
        tried.add(expr)
        first = users[expr][0]
        rounds = _replaced(rounds, expr, Load(buffer, store.index), first + 1)
        rounds[first].append(replace(store, value=expr))
    return rounds


def _store_to(buffer: Buffer, statements: Sequence[Stmt]) -> Store:
    return next(s for s in statements if isinstance(s, Store) and s.buffer is buffer)


def _shared(rounds: list[list[Stmt]], column: Var) -> dict[LoopExpr, list[int]]:
    """The values that change along the row and that several of its loops compute, with those loops."""
    users: dict[LoopExpr, list[int]] = {}
    for at, one in enumerate(rounds):
        for expr in expressions(one):
            users.setdefault(expr, []).append(at)
    varies = varying([s for one in rounds for s in one], column)
    return {e: at for e, at in users.items() if isinstance(e, Apply) and len(at) > 1 and e in varies}


def _replaced(rounds: list[list[Stmt]], old: LoopExpr, new: LoopExpr, start: int) -> list[list[Stmt]]:
    """The rounds with an expression replaced in all from `start` on, if it is worth it."""
    if not isinstance(old, Apply) or work_of([Combine(Accumulator("", "sum", old.dtype), old)]).cost < _KEEP_ABOVE:
        return rounds
    flat = [s for one in rounds for s in one]
    first = sum(len(one) for one in rounds[:start])
    rest = iter(replace_expr(flat, set(range(first, len(flat))), old, new))
    return [[next(rest) for _ in one] for one in rounds]


__all__ = ["lower_rows", "lower_several"]
