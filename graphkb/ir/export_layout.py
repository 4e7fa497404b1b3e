"""Layered graph layout: layers by longest path, few crossings, straight long edges; near-linear in size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Point = tuple[float, float]

GAP = 26.0  # between two boxes of a layer
LANE = 14.0  # between a long edge and whatever is beside it
LONGEST = 28  # layers that an edge may cross before it is drawn as two stubs
_SMALL = 4000  # boxes and bends up to which the order of every layer is refined thoroughly


@dataclass
class Layout:
    """Where everything goes.

    Attributes:
        centers: the middle of each box.
        routes: for each edge its way as vertical segments `(x, top, bottom)` joined by curves, from the source's
            bottom to the target's top; None for an edge that is too long to be drawn.
        width, height: of the whole picture.
    """

    centers: list[Point]
    routes: list[list[tuple[float, float, float]] | None]
    width: float
    height: float


def layered(sizes: Sequence[Point], edges: Sequence[tuple[int, int]], floating: Sequence[bool]) -> Layout:
    """Place boxes in layers so that every edge points down.

    Args:
        sizes: width and height of each box; a box comes after all boxes that point to it.
        edges: pairs (source, target).
        floating: boxes without incoming edges that shall stand right above their first user, not on top.
    """
    return _Layered(sizes, edges, floating).run() if sizes else Layout([], [], 0.0, 0.0)


class _Layered:
    """The state of one layout. Items are the boxes, then the bends of long edges."""

    def __init__(self, sizes: Sequence[Point], edges: Sequence[tuple[int, int]], floating: Sequence[bool]) -> None:
        self.sizes = sizes
        self.edges = edges
        self.floating = floating
        self.count = len(sizes)
        self.layer = self._assign_layers()
        self.bends: dict[tuple[int, int], int] = {}  # (source, layer) -> item
        self.up: list[list[int]] = [[] for _ in sizes]
        self.down: list[list[int]] = [[] for _ in sizes]
        self.drawn = self._split_long_edges()
        self.layers: list[list[int]] = [[] for _ in range(max(self.layer) + 1)]
        for item in self._first_order():
            self.layers[self.layer[item]].append(item)
        self.x = [0.0] * len(self.layer)

    def run(self) -> Layout:
        self._order()
        self._place()
        return self._finish()

    # ------------------------------------------------------------------------------------------ layers
    def _assign_layers(self) -> list[int]:
        layer = [0] * self.count
        users: list[list[int]] = [[] for _ in range(self.count)]
        operands: list[list[int]] = [[] for _ in range(self.count)]
        for source, target in dict.fromkeys(self.edges):
            users[source].append(target)
            operands[target].append(source)
        for item in range(self.count):
            layer[item] = max([layer[o] + 1 for o in operands[item]], default=0)
        for item in reversed(range(self.count)):
            if not users[item]:
                continue
            lowest = min(layer[u] for u in users[item]) - 1
            # Moving down shortens the ways to the users and lengthens those from operands that stay where they are.
            staying = sum(not self.floating[o] or len(users[o]) > 1 for o in operands[item])
            if self.floating[item] or (operands[item] and len(users[item]) > staying):
                layer[item] = max(layer[item], lowest)
        return layer

    def _split_long_edges(self) -> list[bool]:
        """Put a bend into every layer that an edge crosses; edges of one source share them. Which edges are drawn."""
        spans = [self.layer[t] - self.layer[s] for s, t in self.edges]
        longest, budget = min(LONGEST, max(spans, default=1)), 4 * self.count + 2000
        while longest > 2:
            reach: dict[int, int] = {}
            for (source, _), span in zip(self.edges, spans):
                if span <= longest:
                    reach[source] = max(reach.get(source, 0), span - 1)
            if sum(reach.values()) <= budget:
                break
            longest //= 2
        drawn = [span <= longest for span in spans]
        for (source, target), keep in zip(dict.fromkeys(self.edges), _first_of(self.edges, drawn)):
            if not keep:
                continue
            above = source
            for level in range(self.layer[source] + 1, self.layer[target]):
                bend = self.bends.get((source, level))
                if bend is None:
                    bend = self.bends[source, level] = len(self.layer)
                    self.layer.append(level)
                    self.up.append([above])
                    self.down.append([])
                    self.down[above].append(bend)
                above = bend
            self.down[above].append(target)
            self.up[target].append(above)
        return drawn

    # ------------------------------------------------------------------------------------------ order
    def _first_order(self) -> list[int]:
        """Items as a depth-first walk from the sinks meets them, which keeps what belongs together side by side."""
        order: list[int] = []
        seen = [False] * len(self.layer)
        for root in range(len(self.layer)):
            if self.down[root] or seen[root]:
                continue
            stack = [root]
            seen[root] = True
            while stack:
                item = stack.pop()
                order.append(item)
                for other in reversed(self.up[item]):
                    if not seen[other]:
                        seen[other] = True
                        stack.append(other)
        return order

    def _order(self) -> None:
        """Barycenter sweeps, down and up in turn; the order with the fewest crossings wins."""
        small = len(self.layer) <= _SMALL
        best, fewest = [list(level) for level in self.layers], self._crossings() if small else 0
        for sweep in range(24 if small else 4):
            downwards = sweep % 2 == 0
            near = self.up if downwards else self.down
            place = [0.0] * len(self.layer)
            for level in self.layers:
                for i, item in enumerate(level):
                    place[item] = float(i)
            for level in self.layers if downwards else reversed(self.layers):
                keys = {}
                for item in level:
                    ties = near[item]
                    keys[item] = sum([place[n] for n in ties]) / len(ties) if ties else place[item]
                level.sort(key=keys.__getitem__)
                for i, item in enumerate(level):
                    place[item] = float(i)
            if small:
                crossings = self._crossings()
                if crossings < fewest:
                    best, fewest = [list(level) for level in self.layers], crossings
                if fewest == 0:
                    break
        if small:
            self.layers = best
            self._exchange()

    def _exchange(self) -> None:
        """Swap neighbors of a layer while that removes crossings."""
        place = [0] * len(self.layer)
        for level in self.layers:
            for i, item in enumerate(level):
                place[item] = i
        for _ in range(8):
            improved = False
            for level in self.layers:
                for i in range(len(level) - 1):
                    a, b = level[i], level[i + 1]
                    now = _pair_crossings(a, b, self.up, place) + _pair_crossings(a, b, self.down, place)
                    then = _pair_crossings(b, a, self.up, place) + _pair_crossings(b, a, self.down, place)
                    if then < now:
                        level[i], level[i + 1] = b, a
                        place[a], place[b] = i + 1, i
                        improved = True
            if not improved:
                break

    def _crossings(self) -> int:
        """The number of pairs of edges that cross, counted by merging as in a sort by insertion into a tree."""
        total = 0
        place: dict[int, int] = {}
        for level in self.layers:
            below = [place[n] for item in level for n in sorted(self.up[item], key=place.__getitem__)]
            size = max(below, default=0) + 1
            tree = [0] * (size + 1)
            for seen, position in enumerate(below):
                total += seen
                i = position + 1
                while i > 0:
                    total -= tree[i]
                    i -= i & -i
                i = position + 1
                while i <= size:
                    tree[i] += 1
                    i += i & -i
            place = {item: i for i, item in enumerate(level)}
        return total

    # ------------------------------------------------------------------------------------------ coordinates
    def _width(self, item: int) -> float:
        return self.sizes[item][0] if item < self.count else 0.0

    def _floats(self, item: int) -> bool:
        return item < self.count and self.floating[item]

    def _place(self) -> None:
        """Pull every item towards its neighbors, layer by layer, without ever changing the order."""
        offsets = []
        for level in self.layers:
            offset, row = 0.0, []
            for i, item in enumerate(level):
                if i:
                    before = level[i - 1]
                    gap = GAP if item < self.count and before < self.count else LANE
                    offset += (self._width(before) + self._width(item)) / 2 + gap
                row.append(offset)
            offsets.append(row)
            for item, at in zip(level, row):
                self.x[item] = at - offset / 2
        rounds = 16 if len(self.layer) <= _SMALL else 4
        for turn in range(rounds):
            last = turn >= rounds - 2
            rows = list(zip(self.layers, offsets))
            for level, row in rows if turn % 2 == 0 else reversed(rows):
                self._pull(level, row, self.up if turn % 2 == 0 else self.down, both=last)
        for _ in range(4):
            self._straighten()

    def _pull(self, level: list[int], offsets: list[float], near: list[list[int]], both: bool) -> None:
        wanted, weights = [], []
        for item in level:
            ties = self.up[item] + self.down[item] if both else near[item]
            total = weight = 0.0
            for other in ties:
                strength = 1.0
                if item >= self.count and other >= self.count:
                    strength = 8.0  # long edges shall be straight
                elif self._floats(item) or self._floats(other):
                    strength = 0.02  # a variable stands beside its user and does not push it away
                weight += strength
                total += strength * self.x[other]
            wanted.append(total / weight if ties else self.x[item])
            weights.append(weight if ties else 0.1)
        for item, at in zip(level, _spread(wanted, weights, offsets)):
            self.x[item] = at

    def _straighten(self) -> None:
        """Give the bends of each long edge one position, as far as their neighbors leave room for it."""
        low, high = self._room()
        chains: dict[int, list[int]] = {}
        for (source, _), bend in self.bends.items():  # in the order of the layers, for each source
            chains.setdefault(source, []).append(bend)
        for chain in chains.values():
            run: list[int] = []
            least, most = float("-inf"), float("inf")
            for bend in chain:
                left, right = low(bend), high(bend)
                if run and min(most, right) < max(least, left):
                    self._align(run, least, most)
                    run, least, most = [], float("-inf"), float("inf")
                run.append(bend)
                least, most = max(least, left), min(most, right)
            self._align(run, least, most)

    def _align(self, run: list[int], least: float, most: float) -> None:
        """Move all bends of a run to the position nearest to where the run begins and ends."""
        ends = [self.x[self.up[run[0]][0]], *[self.x[d] for d in self.down[run[-1]]]]
        inside = [at for at in ends if least <= at <= most]
        mean = sum(self.x[b] for b in run) / len(run)
        wanted = min(inside, key=lambda at: abs(at - mean), default=mean)
        for bend in run:
            self.x[bend] = min(max(wanted, least), most)

    def _room(self) -> tuple[Callable[[int], float], Callable[[int], float]]:
        """How far left and right a bend can move between its present neighbors."""
        place = {item: i for level in self.layers for i, item in enumerate(level)}

        def low(bend: int) -> float:
            level, i = self.layers[self.layer[bend]], place[bend]
            return self.x[level[i - 1]] + self._width(level[i - 1]) / 2 + LANE if i else float("-inf")

        def high(bend: int) -> float:
            level, i = self.layers[self.layer[bend]], place[bend]
            if i + 1 == len(level):
                return float("inf")
            return self.x[level[i + 1]] - self._width(level[i + 1]) / 2 - LANE

        return low, high

    def _finish(self) -> Layout:
        left = min(self.x[i] - self.sizes[i][0] / 2 for i in range(self.count))
        left = min([left, *(self.x[b] for b in self.bends.values())])
        x = [at - left for at in self.x]
        tops: list[float] = []
        bottoms: list[float] = []
        y = 0.0
        for level in self.layers:
            height = max((self.sizes[i][1] for i in level if i < self.count), default=8.0)
            sideways = max((abs(x[i] - x[o]) for i in level for o in self.up[i]), default=0.0)
            y += min(34 + 0.07 * sideways, 110) if tops else 0.0
            tops.append(y)
            y += height
            bottoms.append(y)
        centers = [(x[i], (tops[self.layer[i]] + bottoms[self.layer[i]]) / 2) for i in range(self.count)]
        starts, ends = self._ports(x)
        routes: list[list[tuple[float, float, float]] | None] = []
        for index, (source, target) in enumerate(self.edges):
            if not self.drawn[index]:
                routes.append(None)
                continue
            first, last = self.layer[source], self.layer[target]
            route = [(starts[index], centers[source][1] + self.sizes[source][1] / 2, bottoms[first])]
            route += [(x[self.bends[source, n]], tops[n], bottoms[n]) for n in range(first + 1, last)]
            route.append((ends[index], tops[last], centers[target][1] - self.sizes[target][1] / 2))
            routes.append(route)
        right = max([x[i] + self.sizes[i][0] / 2 for i in range(self.count)] + [x[b] for b in self.bends.values()])
        return Layout(centers, routes, right, y)

    def _ports(self, x: list[float]) -> tuple[list[float], list[float]]:
        """Where each edge leaves its source and enters its target; edges into one box do not cross."""
        starts = [x[source] for source, _ in self.edges]
        ends = [x[target] for _, target in self.edges]
        entering: dict[int, list[tuple[float, int]]] = {}
        for index, (source, target) in enumerate(self.edges):
            above = self.bends.get((source, self.layer[target] - 1), source)
            entering.setdefault(target, []).append((x[above], index))
        for target, arrivals in entering.items():
            arrivals.sort()
            room = self.sizes[target][0] * 0.35
            step = min(20.0, 2 * room / max(1, len(arrivals) - 1))
            # Straight down where that hits the box, but never two edges into one point.
            wanted = [min(max(at, x[target] - room), x[target] + room) for at, _ in arrivals]
            places = _spread(wanted, [1.0] * len(wanted), [i * step for i in range(len(wanted))])
            for (_, index), at in zip(arrivals, places):
                ends[index] = min(max(at, x[target] - room), x[target] + room)
        return starts, ends


def _first_of(edges: Sequence[tuple[int, int]], flags: Sequence[bool]) -> list[bool]:
    """The flags of each distinct edge, in the order of `dict.fromkeys(edges)`."""
    first: dict[tuple[int, int], bool] = {}
    for edge, flag in zip(edges, flags):
        first.setdefault(edge, flag)
    return list(first.values())


def _pair_crossings(a: int, b: int, near: list[list[int]], place: list[int]) -> int:
    """Crossings between the edges of `a` and of `b` when `a` stands left of `b`; hubs are left alone."""
    if len(near[a]) * len(near[b]) > 10_000:
        return 0
    return sum(place[m] > place[n] for m in near[a] for n in near[b])


def _spread(wanted: list[float], weights: list[float], offsets: list[float]) -> list[float]:
    """The positions closest to the wanted ones (weighted least squares) that keep the distances of `offsets`.

    With the offsets subtracted this is isotonic regression, solved by pooling adjacent violators.
    """
    means: list[float] = []
    masses: list[float] = []
    counts: list[int] = []
    for want, weight, offset in zip(wanted, weights, offsets):
        mean, mass, count = want - offset, weight, 1
        while means and means[-1] > mean:
            mean = (means[-1] * masses[-1] + mean * mass) / (masses[-1] + mass)
            mass += masses.pop()
            count += counts.pop()
            means.pop()
        means.append(mean)
        masses.append(mass)
        counts.append(count)
    flat = [mean for mean, count in zip(means, counts) for _ in range(count)]
    return [at + offset for at, offset in zip(flat, offsets)]
