"""How a matrix product is cut: tiles of registers, panels of columns, blocks of K, and which operands are copied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from graphkb.codegen.gemm_prologue import Prologue
from graphkb.codegen.loops import Accumulator, Load, Result, Store, Var, matching_loads
from graphkb.codegen.target import Target
from graphkb.ir.dims import Dim, product
from graphkb.ir.record import record
from graphkb.ir.types import NUMPY_DTYPE

# Rows of K that run before the sums so far are set aside: keeps a panel of B in the second-level cache, and the
# rounding error of long float32 sums low. K is not cut before it is half as long again.
_BLOCK, _LONGEST_BLOCK = 512, 768
# A matrix of more bytes that meets one row, or a few rows, is read in the order of memory.
_PASSES_ROW, _PASSES_TILE, _STREAMED_TO = 1 << 19, 1 << 22, 16
# Some of its rows run side by side: 8 suit memory best, but rounding errors of long sums shrink with more.
_STREAMED_ROWS, _LONG_STREAM, _LONG_STREAMED_ROWS = 8, 4096, 32
# The second-level cache that the copies are decided for: lines of 64 bytes, so many in each of so many sets.
LINE, _WAYS, _SETS = 64, 8, 2048
# Rows of B a page apart or more: after so many tiles a copy of each panel pays, sooner if pages fall on the same sets.
_PAGE, _REREADS, _REREADS_ALIGNED = 4096, 128, 24
# Where a block fills those sets so many times over, each tile reads it from beyond the cache, and a few pay for a copy.
_CROWDED, _REREADS_CROWDED = 8, 6
# A is copied if K is so long, its neighbors so many bytes apart, and it meets so many panels of B.
_LONG_A, _FAR_A, _PANELS_A = 768, 2048, 4
# How deep a tile may go into B without a pause: as far as a panel stays in the second-level cache.
_DEEPEST = 1152
# Rows of several axes run together up to so many where sums are set aside, for they lie in the cache in between. An
# axis of unknown length joins only if there are few rows without it.
_MOST_TOGETHER, _ENOUGH_ROWS = 1024, 96
# Products from which on a part of a sum is worth being added up on its own.
_SHORTEST_SUM = 96
# The most rows that a tile has, and that it has where they lie a multiple of a page apart.
_MOST_ROWS, _ALIGNED_ROWS = 12, 6
# Results of more bytes are written row by row if so few products add up to an element, and all of B is so small.
_LARGE_C, _SHORT_K, _SMALL_B = 1 << 20, 64, 1 << 18
# Rows that pay for one more copy of B.
ROWS_PER_COPY = 64
# Operands of more bytes come from beyond the second-level cache, so many bytes in a cycle.
_CACHED, _FAR_BYTES = 1 << 19, 16
# Cycles until a sum can be added to.
_LATENCY = 4
# What an unknown size counts as.
_UNKNOWN = 128


@record
class Tiling:
    """How a product runs on one target.

    Attributes:
        lanes: elements of a vector register.
        rows: rows of C in a tile of registers; where they are known, some tiles have one row less.
        width: columns of C in a tile; the last panel may have fewer.
        block: how many products run between additions to the partial sums.
        pack_a: A is copied, tile by tile, so that a tile's rows lie side by side.
        pack_b: B is copied: panel by panel so that its rows lie one after another, or so that columns lie along K.
        dots: vectors run along K rather than along columns, and a tile is a matrix of dot products.
        streams: B passes by in the order of memory, and all of C is partial sums meanwhile.
        masks: the last columns can be accessed under a mask; else they are copied, with zeros behind.
        most_rows: the most rows that tiles of narrower panels may have.
    """

    lanes: int
    rows: int
    width: int
    block: int
    pack_a: bool
    pack_b: bool
    dots: bool
    streams: bool
    masks: bool
    most_rows: int

    @property
    def vectors(self) -> int:
        """Vectors of C in each row of a tile."""
        return -(-self.width // self.lanes)

    @property
    def depth(self) -> int:
        """Vectors along K that add up beside each other in a small matrix of dot products."""
        return max(1, min(4, 8 // (self.rows * self.width)))


@record(eq=False)
class Product:
    """C[m, n] = epilogue(the sum over k of A[m, k] B[k, n]).

    Attributes:
        m, n, k: rows, columns and the contracted axis; columns are neighbors in C wherever that pays.
        rows: the axes of C that m counts through, the last one fastest: m itself, or several whose places in the
            operands are not those of one axis, such as the rows and columns of an image.
        segments: further contracted axes, all longer than 0, between whose rounds sums are set aside.
        inner: contracted axes inside those, longer than 0, through which a tile keeps its sums in registers.
        a, b: the operands' elements.
        store: the epilogue, which takes the `Result` of the accumulator.
        accumulator: the sum.
        prologue: how A comes about where it has to be computed; `a` then is the array that it would be.
    """

    m: Var
    n: Var
    k: Var
    rows: tuple[Var, ...]
    segments: tuple[Var, ...]
    inner: tuple[Var, ...]
    a: Load
    b: Load
    store: Store
    accumulator: Accumulator
    prologue: Prologue | None

    @property
    def dtype(self) -> str:
        """What the sums are computed in."""
        return self.accumulator.dtype

    @property
    def is_matrix(self) -> bool:
        """Whether rows and the contracted axis are one axis each."""
        return len(self.rows) == 1 and not self.segments and not self.inner

    @property
    def stores_sums(self) -> bool:
        """Whether the sums themselves are the result, in rows of neighbors that lie at even distances."""
        store = self.store
        if not isinstance(store.value, Result) or store.buffer.dtype != self.dtype:
            return False
        factors = [store.index.factor(v) for v in self.rows]
        even = all(x == y * v.extent for x, y, v in zip(factors, factors[1:], self.rows[1:]))
        return even and store.index.factor(self.n) == 1

    @property
    def is_computed(self) -> bool:
        """Whether some rows of A at a time are computed."""
        return self.prologue is not None and self.prologue.rows > 0

    @property
    def depth(self) -> Dim:
        """How many products a tile adds up in registers, where K is not cut."""
        return product((self.k.extent, *[v.extent for v in self.inner]))

    @property
    def summed_apart(self) -> int:
        """Which inner variable's rounds each add up on their own first, which keeps rounding errors low; -1: none."""
        depth = length_of(self.k)
        for i, var in reversed(list(enumerate(self.inner))):
            if depth >= _SHORTEST_SUM:
                return i
            depth *= length_of(var)
        return -1

    @property
    def replaceable(self) -> set[int]:
        """The inputs that are read only where C is then written."""
        computed = self.prologue.read if self.prologue is not None else set[int]()
        return matching_loads(self.store) - {self.a.buffer.position, self.b.buffer.position} - computed


def choose_tiling(products: list[Product], target: Target, streams: bool = True) -> tuple[Product, Tiling]:
    """The cheapest way to run a product on a target, given the ways to tell rows from columns.

    `streams` tells whether B may pass by in the order of memory, which is for products that meet it once.
    """
    plans = []
    for p in products:
        plans.append((p, _tiles(p, target, streams)))
        plans += [(p, tiling) for tiling in _dots(p, target)]
    return min(plans, key=lambda plan: _cycles(*plan))


# ---------------------------------------------------------------------------------------------- tiles
def _tiles(p: Product, target: Target, streams: bool) -> Tiling:
    """Vectors along the columns."""
    lanes = target.lanes(p.dtype)
    while lanes // 2 >= length_of(p.n):
        lanes //= 2
    columns = -(-length_of(p.n) // lanes)
    apart = _stride(p.a, p.rows[-1]) * NUMPY_DTYPE[p.a.dtype].itemsize
    # Rows whole pages apart fall on the same few lines of the first-level cache.
    most = _ALIGNED_ROWS if apart % _PAGE == 0 else _MOST_ROWS
    far = length_of(p.k) * length_of(p.n) * NUMPY_DTYPE[p.b.dtype].itemsize > _CACHED
    rows, vectors = _shape(length_of(p.m), columns, most, *_registers(target), far)
    narrow = "float16" in (p.a.dtype, p.b.dtype)
    tiles = -(-p.m.extent // rows) if isinstance(p.m.extent, int) else 1
    costly = narrow and (tiles > 1 or not isinstance(p.m.extent, int) or not target.has_float16)
    masks = lanes == 1 or (target.can_mask(p.dtype) and (costly or target.can_mask(p.b.dtype)))
    tiling = Tiling(
        lanes,
        rows,
        lanes * vectors,
        _block_length(p.k, lanes),
        pack_a=lanes > 1 and p.is_matrix and p.prologue is None and (costly or _copies_a(p, -(-columns // vectors))),
        pack_b=p.b.index.factor(p.n) != 1 or costly or _copies_b(p, tiles),
        dots=False,
        streams=False,
        masks=masks,
        most_rows=most,
    )
    return _streamed(p, tiling) if streams and not costly and _passes_by(p, tiling) else tiling


def with_inner(p: Product, tiling: Tiling) -> Product:
    """The product with those of its segments that run inside a tile: the last ones, as far as B's part stays small."""
    if not isinstance(p.k.extent, int) or p.k.extent > tiling.block:
        return p
    segments, inner, depth = list(p.segments), list[Var](), p.k.extent
    while segments and depth * length_of(segments[-1]) <= _DEEPEST:
        inner.insert(0, segments.pop())
        depth *= length_of(inner[0])
    return replace(p, segments=tuple(segments), inner=tuple(inner))


def with_rows(p: Product, tiling: Tiling, axes: Sequence[Var]) -> Product:
    """The product whose rows run over several of its axes, the last one fastest, so that tiles fit them better."""
    most = _MOST_TOGETHER if p.segments else 1 << 62
    rows: list[Var] = []
    for var in reversed(axes):
        count = math.prod([length_of(v) for v in rows])
        if rows and (count >= _ENOUGH_ROWS and not isinstance(var.extent, int)):
            break
        if rows and count * length_of(var) > most:
            break
        rows.insert(0, var)
        if not isinstance(var.extent, int):
            break
    if tiling.pack_a or len(rows) < 2 or (p.m not in rows and math.prod(map(length_of, rows)) < length_of(p.m)):
        return p
    return replace(p, m=Var("".join(v.name for v in rows), product([v.extent for v in rows])), rows=tuple(rows))


def row_blocks(p: Product, t: Tiling) -> int:
    """Tiles of rows that meet all panels of columns before the next ones do; 0 where all do."""
    m, n, depth = p.m.extent, p.n.extent, p.depth
    if t.dots or t.streams or t.pack_a or p.segments:
        return 0
    if not (isinstance(m, int) and isinstance(n, int) and isinstance(depth, int)) or length_of(p.k) > t.block:
        return 0
    size = NUMPY_DTYPE[p.dtype].itemsize
    copied = t.pack_b or (n % t.lanes != 0 and not t.masks)
    if n <= t.width or depth * n * size > _SMALL_B:
        return 0
    if m * n * size >= _LARGE_C and depth <= _SHORT_K:
        return max(1, ROWS_PER_COPY // t.rows if copied else 1)
    return 1 if not copied and p.is_matrix and m * depth * size > _CACHED else 0


def _copies_a(p: Product, panels: int) -> bool:
    """Whether the columns of A lie so that a tile's elements would not stay in the cache from one tile to the next."""
    if panels == 1:
        return False
    apart = _stride(p.a, p.k) * NUMPY_DTYPE[p.a.dtype].itemsize
    length = length_of(p.k)
    crowded = _crowded(p.k, apart)
    if crowded >= (4 if panels < _PANELS_A else 2) and length > _BLOCK // 2:
        return True
    return length >= _LONG_A and apart >= _FAR_A and panels >= _PANELS_A


def _copies_b(p: Product, tiles: int) -> bool:
    """Whether the rows of B lie so far apart, and are read so often, that each panel had better be copied."""
    apart = _stride(p.b, p.k) * NUMPY_DTYPE[p.b.dtype].itemsize
    if apart < _PAGE:
        return False
    if tiles >= _REREADS_CROWDED and _crowded(p.k, apart) >= _CROWDED:
        return True
    return tiles >= (_REREADS if apart % _PAGE else _REREADS_ALIGNED)


def _crowded(k: Var, apart: int) -> float:
    """How many times over a block of K, whose neighbors lie so many bytes apart, fills the sets that it falls on."""
    sets = _SETS // math.gcd(apart // LINE, _SETS) if apart % LINE == 0 else _SETS
    return min(length_of(k), _BLOCK) / (_WAYS * sets)


def _streamed(p: Product, tiling: Tiling) -> Tiling:
    return replace(
        tiling,
        width=tiling.lanes * min(8, tiling.vectors),
        block=_STREAMED_ROWS if length_of(p.k) <= _LONG_STREAM else _LONG_STREAMED_ROWS,
        pack_a=False,
        pack_b=False,
        streams=True,
    )


def _passes_by(p: Product, tiling: Tiling) -> bool:
    """Whether few rows meet a matrix of known size that is too large to read in pieces, and lies as it is needed."""
    m, k, n = p.m.extent, p.k.extent, p.n.extent
    if not (isinstance(m, int) and isinstance(k, int) and isinstance(n, int)) or m > _STREAMED_TO:
        return False
    if not p.is_matrix or p.is_computed or p.b.index.factor(p.n) != 1 or (not tiling.masks and n % tiling.lanes):
        return False
    return k * n * NUMPY_DTYPE[p.b.dtype].itemsize > (_PASSES_ROW if m == 1 else _PASSES_TILE)


def _block_length(k: Var, lanes: int) -> int:
    """Where to cut K: blocks of even lengths if it is known and long."""
    length = length_of(k)
    if length <= _LONGEST_BLOCK:
        return max(length, 1)
    if not isinstance(k.extent, int):
        return _BLOCK
    count = -(-length // _BLOCK)
    return -(-length // (count * lanes)) * lanes


def _registers(target: Target) -> tuple[int, int]:
    """Accumulators that a tile may hold, and vectors that a long row of them has."""
    if target.is_avx512 or target.triple.startswith(("aarch64", "arm64")):
        return 24, 4
    if target.vector_bits == 0:
        return 16, 4
    return (12, 2) if target.has_fma else (8, 2)


def _shape(rows: int, columns: int, most: int, budget: int, widest: int, far: bool) -> tuple[int, int]:
    """Rows and vectors of a tile: near square in registers, but as low as the matrix is.

    Where B lies `far` from the processor, tiles are as tall as they can be, for each reads a panel of it again.
    """
    vectors = min(widest, columns)
    if columns % widest and columns > widest:
        vectors = next((v for v in range(widest, 1, -1) if columns % v == 0), widest)
    most = min(most, budget // vectors)
    if rows < most:
        # Few rows: wide tiles read long pieces of each row of B, which memory likes.
        return rows, max(vectors, min(columns, budget // rows, 16))
    return (_tallest(rows, most) if far else even_height(rows, most)), vectors


def _tallest(rows: int, most: int) -> int:
    """The height of the fewest tiles that cover some rows; some of them have one row less."""
    return most if rows >= 1 << 30 else -(-rows // -(-rows // most))


def even_height(rows: int, most: int) -> int:
    """The height of tiles that cover some rows: of all if one fits that is not much lower, else of the tallest.

    In the second case the others have one row less.
    """
    if rows >= 1 << 30:
        return most
    alike = [h for h in range(most, most * 2 // 3 - 1, -1) if h and rows % h == 0]
    return alike[0] if alike else _tallest(rows, most)


# ---------------------------------------------------------------------------------------------- dot products
def _dots(p: Product, target: Target) -> list[Tiling]:
    """Vectors along K, which both operands follow, or few columns of B are made to."""
    lanes = target.lanes(p.dtype)
    if lanes == 1 or not p.is_matrix or p.a.index.factor(p.k) != 1:
        return []
    narrow = "float16" in (p.a.dtype, p.b.dtype) and (length_of(p.m) > 1 or not target.has_float16)
    near = p.b.index.factor(p.k) == 1
    if narrow or not (near or (length_of(p.n) <= lanes and p.b.index.factor(p.n) == 1)):
        return []
    masks = all(target.can_mask(d) for d in (p.a.dtype, p.b.dtype, p.dtype))
    rows, columns = (min(4, _power(length_of(v))) for v in (p.m, p.n))
    if _registers(target)[0] < 24:
        rows = min(rows, 8 // columns)
    elif masks and columns == 4:
        # With more registers tiles are as large as it takes to cover rows and columns with little in excess.
        columns = _side(length_of(p.n), (4, 5, 6, 7))
        rows = _side(length_of(p.m), (4, 5, 6) if columns == 4 else (24 // columns,)) if rows == 4 else rows
    return [Tiling(lanes, rows, columns, max(1, length_of(p.k)), False, not near, True, False, masks, rows)]


def _side(length: int, sides: Sequence[int]) -> int:
    """The side that covers a length with least in excess, the first of several such."""
    return min(sides, key=lambda side: -(-length // side) * side)


def _power(number: int) -> int:
    """The next power of 2."""
    return 1 << max(0, number - 1).bit_length()


# ---------------------------------------------------------------------------------------------- costs
def _cycles(p: Product, t: Tiling) -> float:
    """About how long a product takes, in multiply-adds of whole vector registers.

    Only the comparison of ways to run one product counts. The figures were fitted to measurements.
    """
    m, n, k = (_guess(v.extent) for v in (p.m, p.n, p.k))
    for var in (*p.segments, *p.inner):
        k *= _guess(var.extent)
    size = NUMPY_DTYPE[p.dtype].itemsize
    # Narrow vectors run two at a time.
    single = max(0.5, t.lanes * size / 64)
    square = 5.0 / t.lanes  # of turning over one element, when it happens in squares
    total: float = 0
    if t.dots:
        tiles = -(-m // t.rows) * -(-n // t.width)
        count = t.rows * t.width
        total += tiles * (-(-k // t.lanes) * max(count * single, t.rows + t.width) + 3.5 * count * single + 20)
        if t.pack_b:
            total += k * n * square + 40
    else:
        vectors = n // t.lanes + (
            0 if n % t.lanes == 0 else 0.5 if narrowed(n % t.lanes, t.lanes, size) < t.lanes else 1
        )
        panels = math.ceil(vectors / t.vectors)
        tiles = -(-m // t.rows) * panels
        row = max(m * vectors * single, 0.5 * (m * panels + vectors * -(-m // t.rows)))
        total += max(row, tiles * _LATENCY / 4) * k + tiles * 20 + m * vectors * 1.5
        if t.pack_b:
            slow = p.b.index.factor(p.k) != 1 and p.b.index.factor(p.n) != 1
            turned = p.b.index.factor(p.n) != 1
            total += k * n * (2 if slow else square if turned else 1 / t.lanes) + 40
        if t.pack_a:
            total += m * k * 0.5
    # A passes once for every panel of columns, unless all of these run for some rows before the next; B passes once.
    if m * k * size > _CACHED:
        total += (1 if row_blocks(p, t) else -(-n // t.width)) * m * k * size / _FAR_BYTES
    if k * n * size > _CACHED:
        total += k * n * size / _FAR_BYTES
    near = p.store.index.factor(p.n) == 1
    total += m * n * (0 if near else 1 if p.store.index.factor(p.m) == 1 else 2)
    return total


def narrowed(columns: int, lanes: int, size: int) -> int:
    """The lanes of a vector for the last columns: fewer than usual where two narrow vectors take the time of one."""
    narrow = lanes
    while lanes * size == 64 and narrow // 2 >= columns and narrow * size > 16:
        narrow //= 2
    return narrow


@record
class LastPanel:
    """Columns behind the last whole panel: the first, how many, and how many vectors of how many lanes they take."""

    first: int
    columns: int
    vectors: int
    lanes: int

    @property
    def width(self) -> int:
        """The columns of its vectors."""
        return self.vectors * self.lanes


def last_panels(t: Tiling, n: int, dtype: str) -> list[LastPanel]:
    """What is left of n columns: the last few in a narrow vector of their own where that takes less time."""
    lanes = t.lanes
    first, left = n // t.width * t.width, n % t.width
    rest = left % lanes
    narrow = narrowed(rest, lanes, NUMPY_DTYPE[dtype].itemsize) if rest and t.masks else lanes
    if narrow == lanes:
        return [LastPanel(first, left, -(-left // lanes), lanes)] if left else []
    whole = [LastPanel(first, left - rest, left // lanes, lanes)] if left > rest else []
    return [*whole, LastPanel(first + left - rest, rest, 1, narrow)]


def _guess(extent: Dim) -> int:
    return max(1, extent) if isinstance(extent, int) else _UNKNOWN


def length_of(var: Var) -> int:
    """The extent of a variable for comparisons; unknown ones count as long."""
    return var.extent if isinstance(var.extent, int) else 1 << 30


def _stride(load: Load, var: Var) -> int:
    factor = load.index.factor(var)
    return factor if isinstance(factor, int) else 1 << 30


__all__ = [
    "LINE",
    "ROWS_PER_COPY",
    "LastPanel",
    "Product",
    "Tiling",
    "choose_tiling",
    "even_height",
    "last_panels",
    "length_of",
    "narrowed",
    "row_blocks",
    "with_inner",
    "with_rows",
]
