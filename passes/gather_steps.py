"""Gathering: small steps that nothing waits for are put off until threads can share out several of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from graphkb.passes.order_steps import Flow

# Picoseconds that are worth sharing, and that a thread takes of them at a time.
_LEAST, _PART = 16_000_000, 8_000_000
# Bytes that steps keep alive while they wait, at most: they should find them in the cache.
_MOST_KEPT = 1 << 18


def gather_steps(steps: Sequence[Flow], times: Sequence[int | None], sizes: Mapping[Hashable, int]) -> list[list[int]]:
    """The numbers of the steps in groups: these run in order, the members of one at once.

    A step that may wait does so until something needs what it does, or too much is kept in memory for its sake.

    Args:
        steps: in an order in which they can run.
        times: the picoseconds that those take which may wait; None for all others.
        sizes: the bytes of the values that need memory until their last reader; all others need none.
    """
    released: dict[int, list[int]] = {}  # groups, by the step that they run before
    waiting: list[int] = []
    kept: set[Hashable] = set()

    def release(before: int) -> None:
        if sum([times[number] or 0 for number in waiting]) >= _LEAST:
            released[before] = waiting.copy()
        waiting.clear()
        kept.clear()

    writer: dict[Hashable, int] = {}
    for number, step in enumerate(steps):
        needs = {writer[value] for value in step.reads if value in writer} | set(step.after)
        writer.update(dict.fromkeys(step.writes, number))
        if not needs.isdisjoint(waiting):
            release(number)
        if times[number] is not None:
            waiting.append(number)
            kept.update([value for value in step.reads if value in sizes])
            if sum([sizes[value] for value in kept]) > _MOST_KEPT:
                release(number + 1)
    release(len(steps))
    grouped = {number for group in released.values() for number in group}
    order: list[list[int]] = []
    for number in range(len(steps) + 1):
        order += [released[number]] if number in released else []
        order += [[number]] if number < len(steps) and number not in grouped else []
    return order


def share_out(times: Sequence[int]) -> list[list[int]]:
    """The members of a group in runs of neighbors, each of which one thread takes; at least two where there are two.

    Args:
        times: the picoseconds that the members take.
    """
    total = sum(times)
    count = max(2, total // _PART)
    members: dict[int, list[int]] = {}
    done = 0
    for number, own in enumerate(times):
        members.setdefault((2 * done + own) * count // (2 * total + 1), []).append(number)
        done += own
    return list(members.values())


__all__ = ["gather_steps", "share_out"]
