"""Merging: kernels over one index space that share operands, or need one another, become one of several results."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from graphkb.ir.node import Node

# Arrays that one kernel reads or writes, at most: a core follows no more streams than that.
_MOST_ARRAYS = 32


@dataclass(eq=False)
class Unit:
    """What is stored by itself: a kernel of one result in the making, or a node without a kernel.

    Attributes:
        root: the node that is stored.
        position: of the root in the graph.
        members: the nodes that the kernel computes, the root among them; none where there is no kernel.
        operands: the stored nodes and leaves that it reads.
        space: what the loops of the kernel run over; only kernels of equal spaces can become one. None: it stays alone.
        wide: the operands that are read once in every round: sharing them saves a pass over memory.
        inline: the operands that the kernel reads only at the place that it writes, so that it can follow their
            making in one round.
    """

    root: Node
    position: int
    members: Sequence[Node] = ()
    operands: Sequence[Node] = ()
    space: Hashable = None
    wide: Sequence[Node] = ()
    inline: frozenset[Node] = frozenset()


@dataclass(eq=False)
class _Cluster:
    """Units that become one kernel."""

    units: list[Unit]
    members: set[Node] = field(default_factory=set)
    arrays: set[Node] = field(default_factory=set)


def merge_kernels(units: Sequence[Unit], most_nodes: int) -> list[list[Unit]]:
    """Units in groups that become one kernel each, in an order in which they can run.

    A unit joins a kernel when all that it needs is there before the kernel starts or made in the very same round.
    So nothing ever waits for a part of a kernel, and no cycle can arise. The effort is linear in units and operands.

    Args:
        units: in an order in which they could run by themselves.
        most_nodes: how many nodes a kernel may hold.
    """
    return _Merger(units, most_nodes).run()


class _Merger:
    """Takes units as they become ready, and lets others join while a kernel is open."""

    def __init__(self, units: Sequence[Unit], most_nodes: int) -> None:
        self.most_nodes = most_nodes
        by_root: Mapping[Node, Unit] = {unit.root: unit for unit in units}
        self.needs = {unit: [by_root[o] for o in unit.operands if o in by_root] for unit in units}
        self.waiting = {unit: len(needs) for unit, needs in self.needs.items()}
        self.users: dict[Unit, list[Unit]] = {unit: [] for unit in units}
        for unit in units:
            for other in self.needs[unit]:
                self.users[other].append(unit)
        # Ready units; those that nothing can join go first, so that the others find all company that they can have.
        self.alone: list[tuple[int, Unit]] = []
        self.open: list[tuple[int, Unit]] = []
        self.readers: dict[tuple[Node, Hashable], dict[Unit, None]] = {}
        self.placed: set[Unit] = set()
        for unit in units:
            if not self.waiting[unit]:
                self._ready(unit)

    def run(self) -> list[list[Unit]]:
        out: list[list[Unit]] = []
        while self.alone or self.open:
            _, unit = heapq.heappop(self.alone or self.open)
            if unit not in self.placed:
                out.append(self._grow(unit))
        return out

    def _ready(self, unit: Unit) -> None:
        heapq.heappush(self.alone if unit.space is None else self.open, (unit.position, unit))
        for operand in unit.wide:
            self.readers.setdefault((operand, unit.space), {})[unit] = None

    def _grow(self, seed: Unit) -> list[Unit]:
        """The kernel that begins with a unit: whoever reads what it reads or writes joins, until it is full."""
        cluster = _Cluster([])
        here: set[Unit] = set()
        freed: list[Unit] = []
        queue = deque([seed])
        while queue:
            unit = queue.popleft()
            if unit in self.placed or (unit is not seed and not self._fits(unit, cluster)):
                continue
            self._place(unit, cluster)
            here.add(unit)
            for user in self.users[unit]:
                self.waiting[user] -= 1
                if not self.waiting[user]:
                    freed.append(user)
                    if user.space == seed.space is not None and self._follows(user, here):
                        queue.append(user)
            for operand in unit.wide:
                queue += islice(self.readers.get((operand, unit.space), ()), self.most_nodes)
        for unit in freed:
            if unit not in self.placed:
                self._ready(unit)
        return cluster.units

    def _follows(self, unit: Unit, here: set[Unit]) -> bool:
        """Whether a unit reads what is made here only in the round that makes it."""
        return all(other not in here or other.root in unit.inline for other in self.needs[unit])

    def _fits(self, unit: Unit, cluster: _Cluster) -> bool:
        arrays = len(cluster.arrays) + sum(a not in cluster.arrays for a in (*unit.operands, unit.root))
        nodes = len(cluster.members) + sum(m not in cluster.members for m in unit.members)
        return nodes <= self.most_nodes and arrays <= _MOST_ARRAYS

    def _place(self, unit: Unit, cluster: _Cluster) -> None:
        self.placed.add(unit)
        for operand in unit.wide:
            self.readers.get((operand, unit.space), {}).pop(unit, None)
        cluster.units.append(unit)
        cluster.members.update(unit.members)
        cluster.arrays.update((*unit.operands, unit.root))


__all__ = ["Unit", "merge_kernels"]
