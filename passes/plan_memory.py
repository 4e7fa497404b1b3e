"""Memory planning: places in one arena for values that live for a while, each place used again and again."""

from __future__ import annotations

from collections.abc import Sequence

from graphkb.ir.dims import Dim
from graphkb.ir.record import record

ALIGNMENT = 64
# Above this many values the search for the tightest place gives way to lists of free places by size.
_MOST_SEARCHED = 600


@record
class Request:
    """A value that needs `nbytes` from step `first`, where it is written, to step `last`, where it is last read."""

    nbytes: Dim
    first: int
    last: int


@record
class MemoryPlan:
    """Where each request lies, how large the arena is, and what no plan could go below.

    `total` and `offsets` are in bytes, multiples of 64; `lower_bound` is the most that is alive at any one step.
    """

    offsets: tuple[Dim, ...]
    total: Dim
    lower_bound: Dim


def aligned(nbytes: Dim) -> Dim:
    """The next multiple of the alignment."""
    return (nbytes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def plan_memory(requests: Sequence[Request]) -> MemoryPlan:
    """Places for all requests such that no two alive at the same step overlap."""
    sizes = [aligned(r.nbytes) for r in requests]
    static = [s for s in sizes if isinstance(s, int)]
    if len(static) == len(sizes) <= _MOST_SEARCHED:
        offsets, total = _tightest(requests, static)
        return MemoryPlan(tuple(offsets), total, _most_alive(requests, static))
    places, size = _by_size(requests, sizes)
    return MemoryPlan(tuple(places), size, _most_alive(requests, static) if len(static) == len(sizes) else size)


def _tightest(requests: Sequence[Request], sizes: Sequence[int]) -> tuple[list[int], int]:
    """Largest first, each into the smallest gap between those that live at the same time."""
    offsets = [0] * len(requests)
    placed: list[int] = []
    total = 0
    for i in sorted(range(len(requests)), key=lambda i: (-sizes[i], requests[i].first)):
        r = requests[i]
        busy = sorted(
            (offsets[j], offsets[j] + sizes[j])
            for j in placed
            if requests[j].first <= r.last and r.first <= requests[j].last
        )
        best, best_gap, end = -1, -1, 0
        for low, high in busy:
            gap = low - end
            if gap >= sizes[i] and (best < 0 or gap < best_gap):
                best, best_gap = end, gap
            end = max(end, high)
        offsets[i] = best if best >= 0 else end
        total = max(total, offsets[i] + sizes[i])
        placed.append(i)
    return offsets, total


def _by_size(requests: Sequence[Request], sizes: Sequence[Dim]) -> tuple[list[Dim], Dim]:
    """In order of the steps; a place is taken again by a value of the same size once its last reader is done."""
    offsets: list[Dim] = [0] * len(requests)
    free: dict[Dim, list[Dim]] = {}
    ending: dict[int, list[int]] = {}
    total: Dim = 0
    step = -1
    for i in sorted(range(len(requests)), key=lambda i: requests[i].first):
        while step < requests[i].first:
            for j in ending.pop(step, ()):
                free.setdefault(sizes[j], []).append(offsets[j])
            step += 1
        places = free.get(sizes[i])
        if places:
            offsets[i] = places.pop()
        else:
            offsets[i] = total
            total = total + sizes[i]
        ending.setdefault(requests[i].last, []).append(i)
    return offsets, total


def _most_alive(requests: Sequence[Request], sizes: Sequence[int]) -> int:
    """The largest sum of sizes alive at one step."""
    change: dict[int, int] = {}
    for r, size in zip(requests, sizes):
        change[r.first] = change.get(r.first, 0) + size
        change[r.last + 1] = change.get(r.last + 1, 0) - size
    alive = most = 0
    for step in sorted(change):
        alive += change[step]
        most = max(most, alive)
    return most


__all__ = ["ALIGNMENT", "MemoryPlan", "Request", "aligned", "plan_memory"]
