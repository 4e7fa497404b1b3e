"""How a matrix product is cut: tiles of registers, panels of columns, blocks of K, and which operands are copied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from graphkb.codegen.loops import Accumulator, Apply, Load, Lookup, Store, Var, expressions, matching_loads
from graphkb.codegen.target import Target
from graphkb.ir.dims import Dim, product
from graphkb.ir.op import find_op
from graphkb.ir.types import NUMPY_DTYPE

# Rows of K that run before the sums so far are set aside: keeps a panel of B in the second-level cache, and the
# rounding error of long float32 sums low. K is not cut before it is half as long again.
_BLOCK, _LONGEST_BLOCK = 512, 768
# Rows up to which columns that lie along K stay as they are. Dots add up many products in one go if each column is
# read once, fewer if the columns have to stay in the first-level cache for the next row.
_FEW_ROWS, _LONG_DOT, _SHORT_DOT = 8, 8192, 400
# A matrix of more bytes that meets one row, or a few rows, is read in the order of memory.
_PASSES_ROW, _PASSES_TILE, _STREAMED_TO = 1 << 19, 1 << 22, 16
# Some of its rows run side by side: 8 suit memory best, but rounding errors of long sums shrink with more.
_STREAMED_ROWS, _LONG_STREAM, _LONG_STREAMED_ROWS = 8, 4096, 32
# The most work, in operations, that an epilogue may unroll over the registers of one tile.
_UNROLLED_COST = 160
# The second-level cache that the copies are decided for: lines of 64 bytes, so many in each of so many sets.
_LINE, _WAYS, _SETS = 64, 8, 2048
# Rows of B a page apart or more: after so many tiles a copy of each panel pays, sooner if pages fall on the same sets.
_PAGE, _REREADS, _REREADS_ALIGNED = 4096, 128, 24
# A is copied if K is so long, its neighbors so many bytes apart, and it meets so many panels of B.
_LONG_A, _FAR_A, _PANELS_A = 768, 2048, 4
# How deep a tile may go into B without a pause: as far as a panel stays in the second-level cache.
_DEEPEST = 1152
# Rows of several axes run together up to so many where sums are set aside, for they lie in the cache in between. An
# axis of unknown length joins only if there are few rows without it.
_MOST_TOGETHER, _ENOUGH_ROWS = 1024, 96
# The most rows that a tile has.
MOST_ROWS = 12


@dataclass(frozen=True)
class Tiling:
    """How a product runs on one target.

    Attributes:
        lanes: elements of a vector register.
        rows: rows of C in a tile of registers; the last tiles may have fewer.
        vectors: vectors of C in each row of a tile.
        block: how many products run between additions to the partial sums.
        pack_a: A is copied, tile by tile, so that a tile's rows lie side by side.
        pack_b: each panel of B is copied so that its rows lie one after another.
        overlap: the last tile may repeat rows or columns of the one before, so that all tiles share one code.
        along_k: vectors run along K, and each row of C is a row of dot products.
        streams: B passes by in the order of memory, and all of C is partial sums meanwhile.
        in_registers: the epilogue runs on the accumulators' registers, else in a loop over the tile's memory.
        masks_b: the last columns of B can be loaded under a mask; else they are copied, with zeros behind.
        masks_c: the last columns of C, and all that the epilogue reads, can be accessed under a mask.
    """

    lanes: int
    rows: int
    vectors: int
    block: int
    pack_a: bool
    pack_b: bool
    overlap: bool
    along_k: bool
    streams: bool
    in_registers: bool
    masks_b: bool
    masks_c: bool

    @property
    def width(self) -> int:
        """Columns of C in a tile."""
        return self.lanes * self.vectors

    @property
    def most(self) -> int:
        """The most elements of C in any tile."""
        return max(self.width * self.rows, 24 * self.lanes)


@dataclass(frozen=True, eq=False)
class Product:
    """C[m, n] = epilogue(the sum over k of A[m, k] B[k, n]).

    Attributes:
        m, n, k: rows, columns and the contracted axis; columns are neighbors in C wherever possible.
        rows: the axes of C that m counts through, the last one fastest: m itself, or several whose places in the
            operands are not those of one axis, such as the rows and columns of an image.
        segments: further contracted axes, all longer than 0, between whose rounds sums are set aside.
        inner: contracted axes inside those, longer than 0, through which a tile keeps its sums in registers.
        a, b: the operands' elements.
        store: the epilogue, which takes the `Result` of the accumulator.
        accumulator: the sum.
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

    @property
    def dtype(self) -> str:
        """What the sums are computed in."""
        return self.accumulator.dtype

    @property
    def is_plain(self) -> bool:
        """Whether rows and the contracted axis are one axis each."""
        return len(self.rows) == 1 and not self.segments and not self.inner

    @property
    def depth(self) -> Dim:
        """How many products a tile adds up in registers, where K is not cut."""
        return product((self.k.extent, *[v.extent for v in self.inner]))

    @property
    def replaceable(self) -> set[int]:
        """The inputs that are read only where C is then written."""
        return matching_loads(self.store) - {self.a.buffer.position, self.b.buffer.position}


def choose_tiling(p: Product, target: Target) -> Tiling:
    """The way to run a product on a target."""
    whole = target.lanes(p.dtype)
    lanes = whole
    while lanes // 2 >= length_of(p.n):
        lanes //= 2
    columns = -(-length_of(p.n) // lanes)
    rows, vectors = _shape(length_of(p.m), columns, *_registers(target))
    # Where a result may lie in an operand's place, nothing may be computed twice.
    overlap = not p.replaceable
    if overlap and isinstance(p.m.extent, int):
        rows = even_height(p.m.extent, rows)
    narrow = p.a.dtype == "float16"
    tiles = -(-p.m.extent // rows) if isinstance(p.m.extent, int) else 1
    costly = narrow and (tiles > 1 or not isinstance(p.m.extent, int) or not target.has_float16)
    tiling = Tiling(
        lanes,
        rows,
        vectors,
        _block_length(p.k, _BLOCK, _LONGEST_BLOCK, lanes),
        pack_a=lanes > 1 and p.is_plain and (costly or _copies_a(p, -(-columns // vectors))),
        pack_b=p.b.index.factor(p.n) != 1 or costly or _copies_b(p, tiles),
        overlap=overlap,
        along_k=False,
        streams=False,
        in_registers=_fits_registers(p.store, p.n, rows * vectors),
        masks_b=target.can_mask(p.b.dtype) or lanes == 1,
        masks_c=lanes == 1 or all(target.can_mask(d) for d in _stored_dtypes(p.store)),
    )
    if _runs_along_k(p, whole) and not costly:
        return _along_k(p, replace(tiling, lanes=whole))
    return _streamed(p, tiling) if _passes_by(p, tiling) and not costly else tiling


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


def _copies_a(p: Product, panels: int) -> bool:
    """Whether the columns of A lie so that a tile's elements would not stay in the cache from one tile to the next."""
    if panels == 1:
        return False
    apart = _stride(p.a, p.k) * NUMPY_DTYPE[p.a.dtype].itemsize
    length = length_of(p.k)
    sets = _SETS // math.gcd(apart // _LINE, _SETS) if apart % _LINE == 0 else _SETS
    crowded = min(length, _BLOCK) / (_WAYS * sets)
    if crowded >= (4 if panels < _PANELS_A else 2) and length > _BLOCK // 2:
        return True
    return length >= _LONG_A and apart >= _FAR_A and panels >= _PANELS_A


def _copies_b(p: Product, tiles: int) -> bool:
    """Whether the rows of B lie so far apart, and are read so often, that each panel had better be copied."""
    apart = _stride(p.b, p.k) * NUMPY_DTYPE[p.b.dtype].itemsize
    if apart < _PAGE:
        return False
    return tiles >= (_REREADS if apart % _PAGE else _REREADS_ALIGNED)


def _along_k(p: Product, tiling: Tiling) -> Tiling:
    longest = _LONG_DOT if length_of(p.m) == 1 else _SHORT_DOT
    block = _block_length(p.k, longest, longest, tiling.lanes)
    return replace(
        tiling,
        rows=1,
        vectors=1,
        block=block,
        pack_a=False,
        pack_b=False,
        along_k=True,
        in_registers=_fits_registers(p.store, p.n, 1),
    )


def _streamed(p: Product, tiling: Tiling) -> Tiling:
    vectors = min(4, tiling.vectors)
    return replace(
        tiling,
        vectors=vectors,
        block=_STREAMED_ROWS if length_of(p.k) <= _LONG_STREAM else _LONG_STREAMED_ROWS,
        pack_a=False,
        pack_b=False,
        overlap=False,
        streams=True,
        in_registers=_fits_registers(p.store, p.n, tiling.rows * vectors),
    )


def _passes_by(p: Product, tiling: Tiling) -> bool:
    """Whether few rows meet a matrix of known size that is too large to read in pieces, and lies as it is needed."""
    m, k, n = p.m.extent, p.k.extent, p.n.extent
    if not (isinstance(m, int) and isinstance(k, int) and isinstance(n, int)) or m > _STREAMED_TO:
        return False
    if not p.is_plain or p.b.index.factor(p.n) != 1 or (not tiling.masks_b and n % tiling.lanes):
        return False
    return k * n * NUMPY_DTYPE[p.b.dtype].itemsize > (_PASSES_ROW if m == 1 else _PASSES_TILE)


def _block_length(k: Var, usual: int, longest: int, lanes: int) -> int:
    """Where to cut K: blocks of even lengths if it is known and long."""
    length = length_of(k)
    if length <= longest:
        return max(length, 1)
    if not isinstance(k.extent, int):
        return usual
    count = -(-length // usual)
    return -(-length // (count * lanes)) * lanes


def _runs_along_k(p: Product, lanes: int) -> bool:
    """Whether few rows meet columns that lie along K: turning those over would not pay."""
    if length_of(p.m) > _FEW_ROWS or not p.is_plain or lanes == 1 or length_of(p.k) < lanes:
        return False
    return p.a.index.factor(p.k) == 1 and p.b.index.factor(p.k) == 1


def _registers(target: Target) -> tuple[int, int]:
    """Accumulators that a tile may hold, and vectors that a long row of them has."""
    if target.is_avx512 or target.triple.startswith(("aarch64", "arm64")):
        return 24, 4
    if target.vector_bits == 0:
        return 16, 4
    return (12, 2) if target.has_fma else (8, 2)


def _shape(rows: int, columns: int, budget: int, widest: int) -> tuple[int, int]:
    """Rows and vectors of a tile: near square in registers, but as low as the matrix is."""
    vectors = min(widest, columns)
    if columns % widest and columns > widest:
        vectors = next((v for v in range(widest, 1, -1) if columns % v == 0), widest)
    most = min(budget // vectors, MOST_ROWS)
    if rows < most:
        # Few rows: wide tiles read long pieces of each row of B, which memory likes.
        return rows, max(vectors, min(columns, budget // rows, 16))
    return most, vectors


def even_height(rows: int, most: int) -> int:
    """The height of tiles that cover some rows with the least work, no less than two thirds of the most."""
    if rows <= most:
        return rows
    # Each tile costs a little beside its rows.
    return min(range(most, -(-most * 2 // 3) - 1, -1), key=lambda h: -(-rows // h) * (h + 0.3))


def length_of(var: Var) -> int:
    """The extent of a variable for comparisons; unknown ones count as long."""
    return var.extent if isinstance(var.extent, int) else 1 << 30


def _stride(load: Load, var: Var) -> int:
    factor = load.index.factor(var)
    return factor if isinstance(factor, int) else 1 << 30


def _stored_dtypes(store: Store) -> set[str]:
    """The dtypes of all memory that an epilogue touches."""
    return {store.buffer.dtype} | {e.dtype for e in expressions([store]) if isinstance(e, Load | Lookup)}


def _fits_registers(store: Store, n: Var, registers: int) -> bool:
    """Whether the epilogue is short enough to be unrolled, and reads neighbors where it stores neighbors."""
    if store.index.factor(n) != 1:
        return False
    cost = 0
    for expr in expressions([store]):
        if isinstance(expr, Apply):
            cost += find_op(expr.op).cost
        elif isinstance(expr, Lookup) or (isinstance(expr, Load) and expr.index.factor(n) not in (0, 1)):
            return False
    return cost * registers <= _UNROLLED_COST


__all__ = ["MOST_ROWS", "Product", "Tiling", "choose_tiling", "even_height", "length_of", "with_inner", "with_rows"]
