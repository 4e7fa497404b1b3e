"""Matrix products as kernels of their own: which sums of products they take, and what memory they work in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from graphkb.codegen.builder import Builder
from graphkb.codegen.gemm_tiling import MOST_ROWS, Product, Tiling, choose_tiling, length_of, with_inner, with_rows
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
)
from graphkb.codegen.loops_text import format_kernel
from graphkb.codegen.target import Target
from graphkb.ir.dims import Dim, Symbol, minimum
from graphkb.ir.origin import Origin
from graphkb.ir.types import NUMPY_DTYPE


@dataclass(frozen=True, eq=False)
class Gemm(Product):
    """A kernel that computes a product for every value of the outer variables.

    Attributes:
        nest: the product as plain loops, which fix its meaning.
        outer: batch axes, and further axes of either operand.
        tiling: how it runs.
    """

    nest: Kernel
    outer: tuple[Var, ...]
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
    def signature(self) -> str:
        rows, inner = (" ".join(v.name for v in group) for group in (self.rows, self.inner))
        return f"{self.tiling}\n{rows}, {self.n.name}, {self.k.name} {inner}\n{self.nest.signature}"

    @property
    def in_place(self) -> dict[int, set[int]]:
        """The inputs whose memory C may take: each element is read only where C's is then written."""
        return {self.buffers[-1].position: set() if self.tiling.overlap else self.replaceable}

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
        if self.inner:
            rows = self.depth - self.k.extent + rows  # one after another, only the last one's excess stays
        return self._bytes(rows * self.tiling.width)

    @property
    def partial(self) -> Dim:
        """Bytes of the partial sums of one panel of C, or of all of it."""
        if self.rounds in (0, 1):
            return 0
        if self.tiling.streams:
            return self._bytes(self.m.extent * self.pitch)
        return self._bytes((self.m.extent + MOST_ROWS) * self.tiling.width)

    @property
    def pitch(self) -> int:
        """Elements from one row of partial sums to the next where B streams by."""
        assert isinstance(self.n.extent, int)
        return self.n.extent + self.tiling.width

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
        together = f" of {' '.join(v.name for v in self.rows)}" if len(self.rows) > 1 else ""
        notes = {
            self.rows[-1]: f"tile {t.rows}{together}",
            self.n: f"tile {t.width} vector {t.lanes}" if t.lanes > 1 and not t.along_k else f"tile {t.width}",
            self.k: f"block {t.block}" if self.rounds != 1 else f"vector {t.lanes}" if t.along_k else "",
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
    accumulator = combine.accumulator
    if operands is None or accumulator.dtype not in ("float32", "float64") or accumulator.op != "sum":
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
    n = next((v for v in right if v in neighbors), None) or max(right, key=length_of)
    m = max(left, key=length_of) if left else Var("m", 1)
    *segments, k = sorted(reduced, key=lambda v: _stride(x, v), reverse=True) or [Var("k", 1)]
    if any(not isinstance(v.extent, int) or v.extent == 0 for v in segments):
        return None
    product = Product(m, n, k, (m,), tuple(segments), (), x, y, store, accumulator)
    tiling = choose_tiling(product, target)
    product = with_rows(with_inner(product, tiling), tiling, left)
    outer = tuple([v for v in kept if v not in (*product.rows, n)])
    body: tuple[Stmt, ...] = (combine,)
    for var in (k, *reversed(segments)) if reduced else ():
        body = (For(var, body),)
    body = (Reduce(accumulator, body), store)
    for var in reversed(kept):
        body = (For(var, body),)
    nest = Kernel(name, buffers, body, origins)
    parts = {f.name: getattr(product, f.name) for f in fields(Product)}
    return Gemm(**parts, nest=nest, outer=outer, tiling=choose_tiling(product, target))


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


def _stride(load: Load, var: Var) -> int:
    """How far apart an operand's neighbors lie, for comparisons."""
    factor = load.index.factor(var)
    return factor if isinstance(factor, int) else 1 << 30


def rest_of(index: Affine, *inner: Var) -> Affine:
    """The part of an index that does not depend on the given variables."""
    return Affine(tuple([(v, f) for v, f in index.terms if v not in inner]), index.offset)


__all__ = ["Gemm", "match_gemm", "rest_of"]
