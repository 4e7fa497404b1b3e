"""Merging: kernels over one index space that share operands, or need one another, become one of several results."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from graphkb.ir.node import Node
from graphkb.passes.index_spaces import KEPT, Space
from graphkb.passes.row_axes import Axes

# Arrays that one kernel reads or writes, at most: a core follows no more streams than that.
_MOST_ARRAYS = 32
# Kernels that join only because another that joins needs them, at most.
_MOST_PULLED = 4
# Elements of the rows of all arrays together, so that they stay in the cache between two reductions.
_LONGEST_ROWS = 131072


@dataclass(eq=False)
class Unit:
    """What is stored by itself: a kernel of one result in the making, or a node without a kernel.

    Attributes:
        root: the node that is stored.
        position: of the root in the graph.
        members: the nodes that the kernel computes, the root among them; none where there is no kernel.
        operands: the stored nodes and leaves that it reads.
        space: what the loops of the kernel run over. None: it shares them with none.
        axes: the axes of the space along which each operand is read.
    """

    root: Node
    position: int
    members: Sequence[Node] = ()
    operands: Sequence[Node] = ()
    space: Space | None = None
    axes: Mapping[Node, Axes] = field(default_factory=dict)

    @property
    def wide(self) -> list[Node]:
        """The operands of which every point reads an element of its own: sharing them saves a pass over memory."""
        space = self.space
        if space is None:
            return []
        return [o for o in self.operands if o.shape == space.shape and self.axes[o] == space.axes(o.shape)]


@dataclass(eq=False)
class _Cluster:
    """Units that become one kernel, and the space of its loops."""

    space: Space | None
    units: list[Unit] = field(default_factory=list)
    roots: set[Node] = field(default_factory=set)
    members: set[Node] = field(default_factory=set)
    arrays: set[Node] = field(default_factory=set)

    def space_with(self, unit: Unit) -> Space | None:
        """The space of the kernel once a unit has joined; None where it can not."""
        mine, other = self.space, unit.space
        if mine is None or other is None:
            return None
        if not other.reduced:
            space = mine if mine.level(unit.root.shape) else None
        elif mine.reduced:
            space = mine if mine == other else None
        else:
            space = other if mine.shape == other.shape else None
        if space is None or not all(self._follows(unit, o, space) for o in unit.operands if o in self.roots):
            return None
        return space

    def _follows(self, unit: Unit, operand: Node, space: Space) -> bool:
        """Whether a unit reads what is made here only in the round that makes it."""
        assert unit.space is not None
        early = unit.space.reduced or space.level(unit.root.shape) != KEPT
        if early and not space.rows and space.level(operand.shape) == KEPT:
            return False  # results of reductions are known after all rounds
        axes = unit.axes[operand]
        if not unit.space.reduced:
            axes = space.translated(axes, unit.root.shape)
        return axes == space.axes(operand.shape)


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
        # Ready units; those that nothing can join go first and those that can join most last, so that they find all
        # the company that they can have.
        self.alone: list[tuple[int, Unit]] = []
        self.reducing: list[tuple[int, Unit]] = []
        self.mapping: list[tuple[int, Unit]] = []
        self.readers: dict[Node, dict[Unit, None]] = {}
        self.placed: set[Unit] = set()
        for unit in units:
            if not self.waiting[unit]:
                self._ready(unit)

    def run(self) -> list[list[Unit]]:
        out: list[list[Unit]] = []
        while self.alone or self.reducing or self.mapping:
            _, unit = heapq.heappop(self.alone or self.reducing or self.mapping)
            if unit not in self.placed:
                out.append(self._grow(unit))
        return out

    def _ready(self, unit: Unit) -> None:
        heap = self.alone if unit.space is None else self.reducing if unit.space.reduced else self.mapping
        heapq.heappush(heap, (unit.position, unit))
        for operand in unit.wide:
            self.readers.setdefault(operand, {})[unit] = None

    def _grow(self, seed: Unit) -> list[Unit]:
        """The kernel that begins with a unit: whoever reads what it reads or writes joins, until it is full."""
        cluster = _Cluster(seed.space)
        freed: list[Unit] = []
        queue = deque([seed])
        while queue:
            unit = queue.popleft()
            if unit in self.placed or (unit is not seed and not self._joins(unit, cluster)):
                continue
            self._place(unit, cluster)
            for user in self.users[unit]:
                self.waiting[user] -= 1
                if not self.waiting[user]:
                    freed.append(user)
                    queue.append(user)
                elif self.waiting[user] <= _MOST_PULLED:
                    queue += self._missing(user, cluster)
            for operand in (*unit.wide, unit.root):
                queue += islice(self.readers.get(operand, ()), self.most_nodes)
        for unit in freed:
            if unit not in self.placed:
                self._ready(unit)
        return cluster.units

    def _missing(self, unit: Unit, cluster: _Cluster) -> list[Unit]:
        """What a unit that waits for it needs, if all of that is ready and can join as well."""
        missing = [other for other in self.needs[unit] if other not in self.placed]
        if cluster.space_with(unit) is None or any(self.waiting[m] or not cluster.space_with(m) for m in missing):
            return []
        return missing

    def _joins(self, unit: Unit, cluster: _Cluster) -> bool:
        space = cluster.space_with(unit)
        arrays = len(cluster.arrays) + sum(a not in cluster.arrays for a in (*unit.operands, unit.root))
        nodes = len(cluster.members) + sum(m not in cluster.members for m in unit.members)
        if space is None or nodes > self.most_nodes or arrays > _MOST_ARRAYS:
            return False
        columns = space.shape[-1] if space.rows else 0
        if not isinstance(columns, int) or arrays * columns > _LONGEST_ROWS:
            return False
        cluster.space = space
        return True

    def _place(self, unit: Unit, cluster: _Cluster) -> None:
        self.placed.add(unit)
        for operand in unit.wide:
            self.readers.get(operand, {}).pop(unit, None)
        cluster.units.append(unit)
        cluster.roots.add(unit.root)
        cluster.members.update(unit.members)
        cluster.arrays.update((*unit.operands, unit.root))


__all__ = ["Unit", "merge_kernels"]
