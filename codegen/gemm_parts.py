"""How a matrix product is shared out among threads: along which axis, in which units, and what memory each needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from graphkb.codegen.gemm_tiling import Product, Tiling
from graphkb.codegen.loops import Var
from graphkb.ir.dims import Dim, maximum, minimum
from graphkb.ir.dims import product as product_of
from graphkb.ir.record import record
from graphkb.ir.types import NUMPY_DTYPE

# Nanoseconds of work below which a product stays on one thread, and that a part should have at least.
_SMALL, _GRAIN = 12_000, 5_000
# The same where threads are awake, as they have just run the step before.
_SMALL_AWAKE, _GRAIN_AWAKE = 2_500, 1_000
# What one thread does in a nanosecond: multiply-adds, and bytes of B read.
_SPEED, _BANDWIDTH = 50, 50
# Whole matrices are shared out if there are so many, or if one takes no longer than this.
_MANY, _SHORT = 16, 50_000
# Panels of columns that are enough to share out.
_PANELS = 8
# Memory that threads write is there once for each group of units, at most so many times.
_MOST_GROUPS = 16
# Rows that pay for one more copy of a panel of B, and how few do where there would be one group only.
_ROWS_PER_COPY, _FEWEST_ROWS = 128, 32
# A matrix that passes by in short rows is cut along K, so that each thread reads one piece of memory: parts of so many
# bytes, as many at most, and with so many sums to be added up in all.
_SHORT_ROW, _PASSING_PART, _MOST_PASSING, _MOST_SUMS = 1 << 14, 1 << 18, 16, 1 << 16
# What an unknown size counts as.
_UNKNOWN = 512


@record
class Parts:
    """How the work of one product is shared out.

    Attributes:
        axis: what is cut: matrices, panels of columns, tiles of rows, the contracted axis, or nothing.
        units: how many pieces there are; results do not depend on which thread takes which.
        group: consecutive units that share working memory.
        nanoseconds: what one unit takes, about.
        awake: whether threads have just run something else.
        depth: how much of the contracted axis a unit has, where that is cut; the last one may have less.
    """

    axis: Literal["", "outer", "columns", "rows", "depth"]
    units: Dim
    group: Dim
    nanoseconds: Dim
    awake: bool = False
    depth: int = 0

    @property
    def slots(self) -> Dim:
        """How many groups there are, at most."""
        return minimum(self.units, _MOST_GROUPS) if self.axis else 1

    @property
    def grain(self) -> Dim:
        """How many groups one part should have at least."""
        each, least = self.nanoseconds * self.group, _GRAIN_AWAKE if self.awake else _GRAIN
        if isinstance(each, int):
            return max(1, least // max(1, each))
        return maximum(1, least // maximum(1, each))


def share_out(p: Product, outer: Sequence[Var], t: Tiling, keeps: bool, awake: bool = False) -> Parts:
    """The way to share out a product.

    Args:
        p, outer, t: the product, its further axes, and how it is cut into tiles.
        keeps: whether units write memory besides the result.
        awake: whether threads have just run something else.
    """
    m, n, k = p.m.extent, p.n.extent, product_of([p.depth, *[v.extent for v in p.segments]])
    count: Dim = product_of([v.extent for v in outer])
    many = _guess(count)
    tiles, panels = _ceil(m, t.rows), _ceil(n, t.width)
    matrix = _guess(_nanoseconds(p, _guess(m), _guess(n), _guess(k)))
    if many * matrix < (_SMALL_AWAKE if awake else _SMALL):
        return Parts("", 1, 1, 0)
    axis: Literal["outer", "columns", "rows", "depth"]
    depth = _passing_depth(p, t)
    if depth and many == 1:
        return Parts("depth", _ceil(k, depth), 1, _nanoseconds(p, m, n, depth), awake, depth)
    if many >= _MANY or (many > 1 and matrix < _SHORT):
        axis, units, each = "outer", count, _nanoseconds(p, m, n, k)
    elif t.streams or t.pack_a or (not p.is_computed and _guess(panels) >= min(_PANELS, _guess(tiles))):
        axis, units, each = "columns", panels, _nanoseconds(p, m, t.width, k)
    else:
        axis, units, each = "rows", tiles, _nanoseconds(p, t.rows, n, k)
    group: Dim = _ceil(units, _MOST_GROUPS) if keeps else 1
    if axis == "rows" and t.pack_b and not t.dots:
        most, fewest = (-(-count // t.rows) for count in (_ROWS_PER_COPY, _FEWEST_ROWS))
        group = maximum(group, max(fewest, min(most, -(-units // 2))) if isinstance(units, int) else most)
    return Parts(axis, units, group, each, awake)


def _passing_depth(p: Product, t: Tiling) -> int:
    """How much of K each part has of a matrix that passes by in short rows; 0 where it is not cut."""
    m, k, n = p.m.extent, p.k.extent, p.n.extent
    if not (t.streams and isinstance(m, int) and isinstance(k, int) and isinstance(n, int)):
        return 0
    row = n * NUMPY_DTYPE[p.b.dtype].itemsize
    count = min(_MOST_PASSING, k * row // _PASSING_PART, _MOST_SUMS // (m * n))
    if row >= _SHORT_ROW or count < 4:
        return 0
    return -(-k // (count * t.block)) * t.block


def _nanoseconds(p: Product, m: Dim, n: Dim, k: Dim) -> Dim:
    size = NUMPY_DTYPE[p.b.dtype].itemsize
    wide = NUMPY_DTYPE[p.dtype].itemsize
    before = m * k * p.prologue.picoseconds // 1000 if p.prologue is not None and p.is_computed else 0
    return m * n * k * wide // (_SPEED * 4) + (m + n) * k * size // _BANDWIDTH + before


def _ceil(x: Dim, step: int) -> Dim:
    return (x + step - 1) // step


def _guess(extent: Dim) -> int:
    return extent if isinstance(extent, int) else _UNKNOWN


__all__ = ["Parts", "share_out"]
