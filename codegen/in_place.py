"""Which inputs a kernel may overwrite with a result: those that it reads only where, and not after, it then writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
from graphkb.ir.types import NUMPY_DTYPE

# A statement without a body, the round that it belongs to, counted in the order of the kernel, and the loops around it.
_Leaf = tuple[int, Stmt, tuple[Var, ...]]


def replaceable(body: Sequence[Stmt], outs: Sequence[Buffer]) -> dict[int, set[int]]:
    """For each written buffer the positions of those whose memory it may take.

    All their elements are read at the place where one of the result is written, of the same width, in the same round
    of a loop or in loops before; rounds compute everything before they store.
    """
    leaves = list(_leaves(body))
    if any(isinstance(statement, Deposit) for _, statement, _ in leaves):
        return {out.position: set() for out in outs}
    rounds: dict[int, list[Stmt]] = {}
    for at, statement, _ in leaves:
        rounds.setdefault(at, []).append(statement)
    reads = [(at, expr) for at, one in rounds.items() for expr in expressions(one) if isinstance(expr, Load | Lookup)]
    return {out.position: _replaceable(leaves, reads, out) for out in outs}


def _replaceable(leaves: Sequence[_Leaf], reads: Sequence[tuple[int, Load | Lookup]], out: Buffer) -> set[int]:
    stores = [(at, s.index, loops) for at, s, loops in leaves if isinstance(s, Store) and s.buffer is out]
    places = {place for _, place, _ in stores}
    # A place that several rounds write would be read again after the first of them.
    if len(places) != 1 or any(place.factor(var) == 0 for _, place, loops in stores for var in loops):
        return set()
    first, (place,) = min(at for at, _, _ in stores), places
    fits: dict[int, bool] = {}
    for at, read in reads:
        fit = isinstance(read, Load) and _same_place(read, out, place) and at <= first
        fits[read.buffer.position] = fits.get(read.buffer.position, True) and fit
    return {position for position, fit in fits.items() if fit and position >= 0}


def _same_place(load: Load, out: Buffer, place: Affine) -> bool:
    widths = [NUMPY_DTYPE[dtype].itemsize for dtype in (load.dtype, out.dtype)]
    return load.index == place and widths[0] == widths[1]


def _leaves(body: Sequence[Stmt], count: Iterator[int] | None = None, loops: tuple[Var, ...] = ()) -> Iterator[_Leaf]:
    """The statements without bodies; neighbors are one round, unless they combine after a store."""
    count = count if count is not None else iter(range(1 << 62))
    at, stored = next(count), False
    for statement in body:
        match statement:
            case For(var=var, body=inner):
                yield from _leaves(inner, count, (*loops, var))
            case Tile(outer=outer, inner=var, body=inner):
                yield from _leaves(inner, count, (*loops, outer, var))
            case Reduce(body=inner) | Local(body=inner) | Scratch(body=inner) | Parallel(body=inner):
                yield from _leaves(inner, count, loops)
            case Interleave(stores=stores):
                for store in stores:
                    yield next(count), store, loops
            case Prefetch():
                continue
            case Combine() | Store() | Deposit():
                if stored and not isinstance(statement, Store):
                    at = next(count)
                stored = isinstance(statement, Store)
                yield at, statement, loops
                continue
        at, stored = next(count), False


__all__ = ["replaceable"]
