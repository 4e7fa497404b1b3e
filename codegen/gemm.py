"""Matrix products as kernels of their own: which dots they take, and how they are tiled, packed and blocked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from graphkb.codegen.builder import Builder
from graphkb.codegen.loops import (
    Affine,
    Apply,
    Buffer,
    Combine,
    For,
    Kernel,
    Load,
    LoopExpr,
    Reduce,
    Stmt,
    Store,
    Var,
    expressions,
    format_kernel,
    matching_loads,
)
from graphkb.codegen.target import Target
from graphkb.ir.dims import Dim, Symbol, minimum
from graphkb.ir.op import find_op
from graphkb.ir.origin import Origin
from graphkb.ir.types import NUMPY_DTYPE

# Rows of K that run before the sums so far are set aside: keeps a panel of B in the second-level cache, and the
# rounding error of long float32 sums low.
_BLOCK = 512
# Up to this many elements K is not worth cutting.
_LONGEST_BLOCK = 768
# The most work, in operations, that an epilogue may unroll over the registers of one tile.
_UNROLLED_COST = 160
# Rows up to which columns that lie along K stay as they are. Dots add up many products in one go if each column is
# read once, fewer if the columns have to stay in the first-level cache for the next row.
_FEW_ROWS = 8
_LONG_DOT = 8192
_SHORT_DOT = 400
# The most rows that a tile has.
MOST_ROWS = 16
# Row tiles that read a panel of B before copying it pays.
_REREADS = 6


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
class Gemm:
    """A kernel for C[m, n] = epilogue(sum over k of A[m, k] B[k, n]), for every value of the outer variables.

    Attributes:
        nest: the product as plain loops, which fix its meaning.
        outer: batch axes, and further axes of either operand.
        m, n, k: rows, columns and the contracted axis; columns are neighbors in C.
        segments: further contracted axes, all longer than 0.
        a, b: the operands' elements.
        store: the epilogue; the sum is the `Result` of `accumulator`.
    """

    nest: Kernel
    outer: tuple[Var, ...]
    m: Var
    n: Var
    k: Var
    segments: tuple[Var, ...]
    a: Load
    b: Load
    store: Store
    combine: Combine
    tiling: Tiling

    @property
    def name(self) -> str:
        return self.nest.name

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        return self.nest.buffers

    @property
    def origins(self) -> tuple[Origin, ...]:
        return self.nest.origins

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        return self.nest.symbols

    @property
    def dtype(self) -> str:
        """What the sums are computed in."""
        return self.combine.accumulator.dtype

    @property
    def signature(self) -> str:
        return f"{self.tiling}\n{self.m.name} {self.n.name} {self.k.name}\n{self.nest.signature}"

    @property
    def in_place(self) -> set[int]:
        """The inputs whose memory C may take: each element is read only where C's is then written."""
        return set() if self.tiling.overlap else replaceable(self.store, self.a, self.b)

    # ------------------------------------------------------------------ scratch
    @property
    def rounds(self) -> Dim:
        """How many blocks of K each panel of C takes; more than one needs partial sums."""
        total: Dim = (self.k.extent + self.tiling.block - 1) // self.tiling.block
        for var in self.segments:
            total = total * var.extent
        return total

    @property
    def packed_a(self) -> Dim:
        """Bytes of the copy of A; a vector's worth of slack lets whole vectors be stored."""
        if not self.tiling.pack_a:
            return 0
        rows = (self.m.extent + self.tiling.rows - 1) // self.tiling.rows * self.tiling.rows
        return self._bytes(rows * self.k.extent + self.tiling.lanes)

    @property
    def packed_b(self) -> Dim:
        """Bytes of the copy of one panel of B; a whole number of vectors along K as well."""
        ragged = not isinstance(self.n.extent, int) or self.n.extent % self.tiling.lanes != 0
        if self.tiling.along_k or (not self.tiling.pack_b and (self.tiling.masks_b or not ragged)):
            return 0
        lanes = self.tiling.lanes
        rows = minimum((self.k.extent + lanes - 1) // lanes * lanes, (self.tiling.block + lanes - 1) // lanes * lanes)
        return self._bytes(rows * self.tiling.width)

    @property
    def partial(self) -> Dim:
        """Bytes of the partial sums of one panel of C."""
        if self.rounds in (0, 1):
            return 0
        return self._bytes((self.m.extent + MOST_ROWS) * self.tiling.width)

    @property
    def scratch(self) -> Dim:
        """Bytes of memory that a call works in, aligned to 64."""
        return self.packed_a + self.packed_b + self.partial

    def _bytes(self, elements: Dim) -> Dim:
        return (elements * NUMPY_DTYPE[self.dtype].itemsize + 63) // 64 * 64

    # ------------------------------------------------------------------ kernel protocol
    def renamed(self, name: str) -> Gemm:
        """The same kernel under another name."""
        return replace(self, nest=replace(self.nest, name=name))

    def emit(self, b: Builder) -> None:
        """Append the kernel's function to a module."""
        from graphkb.codegen.gemm_emit import emit_gemm

        emit_gemm(b, self)

    def __str__(self) -> str:
        t = self.tiling
        notes = {
            self.m: f"tile {t.rows}",
            self.n: f"tile {t.width} vector {t.lanes}" if t.lanes > 1 else f"tile {t.width}",
            self.k: f"block {t.block}" if self.rounds != 1 else "",
        }
        lines = []
        for line in format_kernel(self.nest).splitlines():
            for var, note in notes.items():
                if note and line.strip() == f"for {var.name} < {var.extent}:":
                    line = f"{line[:-1]} {note}:"
            lines.append(line)
        if t.pack_a:
            lines.insert(1, f"  pack {self.a.buffer.name} by {t.rows} of {self.m.name}")
        if t.pack_b:
            lines.insert(1, f"  pack {self.b.buffer.name} by {t.width} of {self.n.name}")
        return "\n".join(lines) + "\n"


def match_gemm(
    name: str,
    buffers: tuple[Buffer, ...],
    origins: tuple[Origin, ...],
    kept: Sequence[Var],
    reduced: Sequence[Var],
    store: Store,
    combine: Combine,
    target: Target,
) -> Gemm | None:
    """The matrix kernel of a sum of products, None where plain loops must do.

    Args:
        name, buffers, origins: of the kernel.
        kept: the loop variables of the result, longer than 1.
        reduced: those of the sum.
        store: of the result.
        combine: the product that is summed.
        target: the machine.
    """
    operands = _operands(combine.value)
    dtype = combine.accumulator.dtype
    if operands is None or dtype not in ("float32", "float64") or combine.accumulator.op != "sum":
        return None
    x, y = operands
    if any(v.extent == 0 for v in kept):
        return None
    left = [v for v in kept if x.index.factor(v) != 0 and y.index.factor(v) == 0]
    right = [v for v in kept if y.index.factor(v) != 0 and x.index.factor(v) == 0]
    if not left and not right:
        return None
    neighbors = [v for v in kept if store.index.factor(v) == 1]
    if any(v in left for v in neighbors) or not right:
        x, y, left, right = y, x, right, left
    n = next((v for v in right if v in neighbors), None) or max(right, key=_length)
    m = max(left, key=_length) if left else Var("m", 1)
    *segments, k = sorted(reduced, key=lambda v: _stride(x, v), reverse=True) or [Var("k", 1)]
    if any(not isinstance(v.extent, int) or v.extent == 0 for v in segments):
        return None
    outer = tuple([v for v in kept if v not in (m, n)])
    body: tuple[Stmt, ...] = (combine,)
    for var in (k, *reversed(segments)) if reduced else ():
        body = (For(var, body),)
    body = (Reduce(combine.accumulator, body), store)
    for var in reversed(kept):
        body = (For(var, body),)
    nest = Kernel(name, buffers, body, origins)
    tiling = _tile(m, n, k, segments, x, y, store, dtype, target)
    return Gemm(nest, outer, m, n, k, tuple(segments), x, y, store, combine, tiling)


def _operands(value: LoopExpr) -> tuple[Load, Load] | None:
    """The two elements whose product is summed, perhaps widened from float16."""
    if not isinstance(value, Apply) or value.op != "mul":
        return None
    loads = []
    for arg in value.args:
        if isinstance(arg, Apply) and arg.op == "cast" and arg.args[0].dtype == "float16":
            arg = arg.args[0]
        if not isinstance(arg, Load):
            return None
        loads.append(arg)
    return loads[0], loads[1]


def _length(var: Var) -> int:
    """The extent of a variable for comparisons; unknown ones count as long."""
    return var.extent if isinstance(var.extent, int) else 1 << 30


def _stride(load: Load, var: Var) -> int:
    factor = load.index.factor(var)
    return factor if isinstance(factor, int) else 1 << 30


# ---------------------------------------------------------------------------------------------- tiling
def _tile(
    m: Var, n: Var, k: Var, segments: Sequence[Var], a: Load, b: Load, store: Store, dtype: str, target: Target
) -> Tiling:
    lanes = target.lanes(dtype)
    budget, widest = _registers(target)
    columns = -(-_length(n) // lanes)
    rows, vectors = _shape(_length(m), columns, budget, widest)
    overlap = not replaceable(store, a, b)
    if overlap and isinstance(m.extent, int):
        rows = even_height(m.extent, rows)
    length = _length(k)
    block = _block_length(k, _BLOCK, _LONGEST_BLOCK, lanes)
    item = NUMPY_DTYPE[dtype].itemsize
    narrow = a.dtype == "float16"
    single = not segments
    tiles = -(-_length(m) // rows)
    masks_c = all(target.can_mask(d) for d in {store.buffer.dtype} | _loaded(store)) or lanes == 1
    masks_b = target.can_mask(b.dtype) or lanes == 1
    step = b.index.factor(k)
    far = not isinstance(step, int) or step * item >= 1024
    pack_b = b.index.factor(n) != 1 or narrow or (far and tiles >= _REREADS)
    across = a.index.factor(k)
    wide = not isinstance(across, int) or across * item >= 2048
    pack_a = single and (narrow or (wide and length >= 64 and columns > vectors)) and lanes > 1
    along_k = _is_along_k(m, k, a, b, segments, lanes)
    if along_k:
        rows = vectors = 1
        pack_a = pack_b = False
        reread = _length(m) > 1
        block = _block_length(k, _SHORT_DOT if reread else _LONG_DOT, _SHORT_DOT if reread else _LONG_DOT, lanes)
    in_registers = _fits_registers(store, n, rows * vectors)
    return Tiling(lanes, rows, vectors, block, pack_a, pack_b, overlap, along_k, in_registers, masks_b, masks_c)


def _block_length(k: Var, usual: int, longest: int, lanes: int) -> int:
    """Where to cut K: blocks of even lengths if it is known and long."""
    length = _length(k)
    if length <= longest:
        return max(length, 1)
    if not isinstance(k.extent, int):
        return usual
    count = -(-length // usual)
    return -(-length // (count * lanes)) * lanes


def _is_along_k(m: Var, k: Var, a: Load, b: Load, segments: Sequence[Var], lanes: int) -> bool:
    """Whether few rows meet columns that lie along K: turning those over would not pay."""
    if _length(m) > _FEW_ROWS or segments or lanes == 1 or _length(k) < lanes:
        return False
    return a.index.factor(k) == 1 and b.index.factor(k) == 1


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
    most = budget // vectors
    if rows < most:
        # Few rows: wide tiles read long pieces of each row of B, which memory likes.
        vectors = max(vectors, min(columns, budget // rows, 16))
        return rows, vectors
    return min(most, 12), vectors


def _loaded(store: Store) -> set[str]:
    return {e.dtype for e in expressions([store]) if isinstance(e, Load)}


def _fits_registers(store: Store, n: Var, registers: int) -> bool:
    """Whether the epilogue is short enough to be unrolled, and reads neighbors where it stores neighbors."""
    if store.index.factor(n) != 1:
        return False
    cost = 0
    for expr in expressions([store]):
        if isinstance(expr, Apply):
            cost += find_op(expr.op).cost
        elif isinstance(expr, Load) and expr.index.factor(n) not in (0, 1):
            return False
    return cost * registers <= _UNROLLED_COST


def replaceable(store: Store, a: Load, b: Load) -> set[int]:
    """The inputs that are read only where C is then written."""
    return matching_loads(store) - {a.buffer.position, b.buffer.position}


def even_height(rows: int, most: int) -> int:
    """The height of tiles that cover some rows with the least work, no less than two thirds of the most."""
    if rows <= most:
        return rows
    # Each tile costs a little beside its rows.
    return min(range(most, -(-most * 2 // 3) - 1, -1), key=lambda h: -(-rows // h) * (h + 0.3))


def rest_of(index: Affine, *inner: Var) -> Affine:
    """The part of an index that does not depend on the given variables."""
    return Affine(tuple([(v, f) for v, f in index.terms if v not in inner]), index.offset)


__all__ = ["Gemm", "Tiling", "even_height", "match_gemm", "rest_of"]
