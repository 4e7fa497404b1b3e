"""Ordering: steps in an order in which little memory is alive at once."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping, Sequence

from graphkb.ir.record import record


@record
class Flow:
    """What a step reads and writes, and the numbers of further steps that must come before it."""

    reads: Sequence[Hashable]
    writes: Sequence[Hashable]
    after: Sequence[int] = ()


def order_steps(steps: Sequence[Flow], sizes: Mapping[Hashable, int]) -> list[int]:
    """The numbers of the steps in an order in which the values alive at once take the least bytes that was found.

    Of the steps that are ready, the one goes first that frees most, or takes least. That is not always best, so the
    order given stays where it takes no more. The effort is that of sorting.

    Args:
        steps: in an order in which they can run.
        sizes: the bytes of the values that need memory from their step until their last reader; all others need none.
    """
    given = list(range(len(steps)))
    found = _greedy(steps, sizes)
    return found if peak(steps, sizes, found) < peak(steps, sizes, given) else given


def peak(steps: Sequence[Flow], sizes: Mapping[Hashable, int], order: Sequence[int]) -> int:
    """The most bytes alive during any step of an order: with what a step reads and writes."""
    last: dict[Hashable, int] = {}
    for at, number in enumerate(order):
        for value in (*steps[number].writes, *steps[number].reads):
            last[value] = at
    alive = most = 0
    for at, number in enumerate(order):
        step = steps[number]
        alive += sum(sizes.get(value, 0) for value in step.writes)
        most = max(most, alive)
        dying = {value for value in (*step.writes, *step.reads) if last[value] == at}
        alive -= sum(sizes.get(value, 0) for value in dying)
    return most


def _greedy(steps: Sequence[Flow], sizes: Mapping[Hashable, int]) -> list[int]:
    writer = {value: number for number, step in enumerate(steps) for value in step.writes}
    readers: dict[Hashable, set[int]] = {}
    followers: list[list[int]] = [[] for _ in steps]
    waiting: list[int] = []
    for number, step in enumerate(steps):
        needs = {writer[value] for value in step.reads if value in writer} | set(step.after)
        waiting.append(len(needs))
        for other in needs:
            followers[other].append(number)
        for value in step.reads:
            if value in sizes:
                readers.setdefault(value, set()).add(number)

    def growth(number: int) -> int:
        """By how much a step lets memory grow."""
        step = steps[number]
        freed = {value for value in step.reads if value in sizes and len(readers[value]) == 1}
        return sum(sizes.get(v, 0) for v in step.writes) - sum(sizes[v] for v in freed)

    heap = [(growth(number), number) for number, count in enumerate(waiting) if not count]
    heapq.heapify(heap)
    done = [False] * len(steps)
    order: list[int] = []
    while heap:
        _, number = heapq.heappop(heap)
        if done[number]:
            continue
        done[number] = True
        order.append(number)
        for value in set(steps[number].reads):
            if value in sizes:
                readers[value].discard(number)
                if len(readers[value]) == 1:
                    # Now its last reader frees it.
                    (other,) = readers[value]
                    if not waiting[other]:
                        heapq.heappush(heap, (growth(other), other))
        for other in followers[number]:
            waiting[other] -= 1
            if not waiting[other]:
                heapq.heappush(heap, (growth(other), other))
    return order


__all__ = ["Flow", "order_steps", "peak"]
