"""Matrix products as kernels of their own: which sums of products they take, and what memory they work in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property

from graphkb.codegen.builder import Builder
from graphkb.codegen.gemm_parts import Parts, share_out
from graphkb.codegen.gemm_prologue import computed_operand
from graphkb.codegen.gemm_tiling import (
    ROWS_PER_COPY,
    Product,
    Tiling,
    choose_tiling,
    last_panels,
    length_of,
    row_blocks,
    with_inner,
    with_rows,
)
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
)
from graphkb.codegen.loops_text import format_kernel
from graphkb.codegen.packed_weights import FEWEST_ROWS, LEAST_BYTES, PackedLayout, Reads
from graphkb.codegen.target import Target
from graphkb.ir.dims import Dim, Symbol
from graphkb.ir.origin import Origin
from graphkb.ir.record import record
from graphkb.ir.types import NUMPY_DTYPE

# How long an axis of unknown size is taken to be beside known ones.
_USUAL = 32


@record(eq=False)
class Gemm(Product):
    """A kernel that computes a product for every value of the outer variables.

    Attributes:
        nest: the product as plain loops, which fix its meaning.
        outer: batch axes, and further axes of either operand.
        tiling: how it runs.
        parts: how it is shared out among threads.
        reads_b: whether it reads B, as it lies or from a packed copy of all of it.
    """

    nest: Kernel
    outer: tuple[Var, ...]
    tiling: Tiling
    parts: Parts
    reads_b: Reads = "plain"

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
        return f"{self.tiling} {self.reads_b}\n{rows}, {self.n.name}, {self.k.name} {inner}\n{self.nest.signature}"

    @property
    def in_place(self) -> dict[int, set[int]]:
        """The inputs whose memory C may take: each element is read only where C's is then written."""
        return {self.buffers[-1].position: self.replaceable}

    # ------------------------------------------------------------------ packed weights
    @cached_property
    def layout(self) -> PackedLayout | None:
        """How all of B is packed; None where a copy would not help."""
        t, n, axes = self.tiling, self.n.extent, (*self.segments, *self.inner, self.k)
        if (
            t.dots
            or t.streams
            or t.lanes == 1
            or length_of(self.m) < FEWEST_ROWS
            or self.b.dtype != self.dtype
            or not isinstance(n, int)
        ):
            return None
        if not t.masks and n % t.lanes:
            return None
        index, extents = self.b.index, [v.extent for v in axes]
        steps = [index.factor(v) for v in axes]
        numbers = [x for x in (index.offset, index.factor(self.n), *extents, *steps) if isinstance(x, int) and x >= 0]
        if len(numbers) != 2 + 2 * len(axes) or 0 in extents or any(index.factor(v) != 0 for v in self.outer):
            return None
        computed = self.prologue is not None and self.b.buffer.position in self.prologue.read
        if computed or any(isinstance(e, Load) and e.buffer is self.b.buffer for e in expressions((self.store,))):
            return None
        pairs = tuple(zip(numbers[2 : 2 + len(axes)], numbers[2 + len(axes) :]))
        last = [(p.first, 1, p.columns, p.width) for p in last_panels(t, n, self.dtype)]
        panels = [(0, n // t.width, t.width, t.width)] if n >= t.width else []
        layout = PackedLayout(self.dtype, numbers[0], pairs, numbers[1], (*panels, *last))
        contiguous = layout.step == 1 and pairs[-1][1] <= t.width
        return None if layout.nbytes < LEAST_BYTES or contiguous else layout

    @property
    def packed(self) -> tuple[tuple[int, PackedLayout], ...]:
        """The packed operands that it takes beside its buffers: whose position they stand for, and how they lie."""
        return ((self.b.buffer.position, self.layout),) if self.reads_b != "plain" and self.layout else ()

    def reading(self, packed: Mapping[int, Reads]) -> Gemm:
        """The same kernel, which takes packed operands in the place of some buffers, as far as that helps."""
        reads = packed.get(self.b.buffer.position, "plain")
        return replace(self, reads_b=reads) if reads != "plain" and self.layout is not None else self

    # ------------------------------------------------------------------ scratch
    @property
    def one_block(self) -> bool:
        """Whether K is not cut."""
        return self.tiling.dots or (isinstance(self.k.extent, int) and self.k.extent <= self.tiling.block)

    @property
    def rows_at_once(self) -> int:
        """Tiles of rows that meet all panels of columns before the next ones do; 0: all do.

        Where K is short, a product mostly writes C, which memory takes best in long pieces; where all of B stays in the
        cache and A does not, A had better be read once. Where A is computed, these are the rows that are computed at a
        time.
        """
        t = self.tiling
        if self.prologue is not None and self.prologue.rows:
            tiles = max(1, max(self.prologue.rows, ROWS_PER_COPY if self._copies_panels else 0) // t.rows)
            group = self.parts.group if self.parts.axis == "rows" else tiles
            return min(tiles, group) if isinstance(group, int) else tiles
        return row_blocks(self, t)

    @property
    def _copies_panels(self) -> bool:
        """Whether panels of B are copied when they are met."""
        return not self.tiling.dots and self.packed_b != 0

    @property
    def packed_a(self) -> Dim:
        """Bytes of a copy of A, or of the rows of A that are computed at a time."""
        m, rows = self.m.extent, self.tiling.rows
        if self.prologue is not None:
            return self._bytes(self.rows_computed * self.prologue.pitch)
        if not self.tiling.pack_a:
            return 0
        return self._bytes((m if isinstance(m, int) else _up(m, rows)) * self.k.extent)

    @property
    def rows_computed(self) -> Dim:
        """How many rows of A are computed at a time."""
        m, some = self.m.extent, self.rows_at_once * self.tiling.rows
        return (min(m, some) if isinstance(m, int) else some) if self.is_computed else m

    @property
    def steps_a(self) -> tuple[Dim, Dim]:
        """From one row of A to the next, and along K, in elements; those of a copy that is packed do not count."""
        if self.prologue is None:
            return self.a.index.factor(self.m), self.a.index.factor(self.k)
        return (1, self.rows_computed) if self.prologue.turned else (self.prologue.pitch, 1)

    @property
    def scattered(self) -> bool:
        """Whether the rows of A do not lie at even distances."""
        return len(self.rows) > 1 and self.prologue is None

    @property
    def packed_b(self) -> Dim:
        """Bytes of a copy of one panel of B, or of all of it; a whole number of vectors along K as well."""
        t = self.tiling
        if t.dots:
            return self._bytes(self.turned_pitch * _up(self.n.extent, t.lanes)) if t.pack_b else 0
        ragged = not isinstance(self.n.extent, int) or self.n.extent % t.lanes != 0
        if self.reads_b == "packed" or (not t.pack_b and (t.masks or not ragged)):
            return 0
        rows = _up(self.k.extent if self.one_block else t.block, t.lanes)
        if self.inner:
            rows = self.depth - self.k.extent + rows  # one after another, only the last one's excess stays
        return self._bytes(rows * t.width)

    @property
    def partial(self) -> Dim:
        """Bytes of the partial sums of one panel of C, or of all of it; plain results hold them themselves."""
        t = self.tiling
        if t.streams:
            return self._bytes(self.m.extent * self.pitch)
        ragged = not isinstance(self.n.extent, int) or self.n.extent % t.lanes != 0
        if (self.one_block and not self.segments) or (self.stores_sums and (t.masks or not ragged)):
            return 0
        return self._bytes(_up(self.rows_computed, t.rows) * self.pitch)

    @property
    def pitch(self) -> int:
        """Elements from one row of sums that are set aside to the next."""
        if not self.tiling.streams:
            return self.tiling.width
        assert isinstance(self.n.extent, int)
        return self.n.extent + self.tiling.width

    @property
    def turned_pitch(self) -> Dim:
        """Elements from one column to the next in a copy of B whose columns lie along K: an odd number of vectors.

        Powers of 2 would put all columns at the same few places of the cache.
        """
        lanes = self.tiling.lanes
        return (self.k.extent + lanes - 1) // (2 * lanes) * (2 * lanes) + lanes

    @property
    def keeps_a(self) -> bool:
        """Whether each group of units has a copy of A of its own."""
        axis = self.parts.axis
        return axis == "outer" or (axis == "rows" and self.is_computed)

    @property
    def keeps_b(self) -> bool:
        """Whether each group of units has a copy of B of its own."""
        axis = self.parts.axis
        return axis == "outer" or (axis != "" and not self.tiling.dots)

    @property
    def keeps_partial(self) -> bool:
        """Whether each group of units has partial sums of its own."""
        axis = self.parts.axis
        return self.keeps_a or axis == "depth" or (axis == "columns" and not self.tiling.streams)

    @property
    def keeps(self) -> bool:
        """Whether groups of units have any memory of their own."""
        return (
            (self.keeps_a and self.packed_a != 0)
            or (self.keeps_b and self.packed_b != 0)
            or (self.keeps_partial and self.partial != 0)
        )

    @property
    def before_b(self) -> Dim:
        """Bytes of scratch before the copies of B."""
        return self.packed_a * (self.parts.slots if self.keeps_a else 1)

    @property
    def before_partial(self) -> Dim:
        """Bytes of scratch before the partial sums."""
        return self.before_b + self.packed_b * (self.parts.slots if self.keeps_b else 1)

    @property
    def scratch(self) -> Dim:
        """Bytes of memory that a call works in, aligned to 64."""
        return self.before_partial + self.partial * (self.parts.slots if self.keeps_partial else 1)

    def _bytes(self, elements: Dim) -> Dim:
        return (elements * NUMPY_DTYPE[self.dtype].itemsize + 63) // 64 * 64

    # ------------------------------------------------------------------ kernel protocol
    def renamed(self, name: str) -> Gemm:
        """The same kernel under another name."""
        return replace(self, nest=replace(self.nest, name=name))

    def shared_while_awake(self) -> Gemm:
        """The same kernel for threads that are awake already, which pays for less work."""
        return _shared_out(self, awake=True)

    def not_shared(self) -> Gemm:
        """The same kernel for one thread."""
        return replace(self, parts=Parts("", 1, 1, 0))

    def emit(self, b: Builder) -> None:
        """Append the kernel's function to a module."""
        from graphkb.codegen.gemm_emit import emit_gemm

        emit_gemm(b, self)

    def __str__(self) -> str:
        t = self.tiling
        together = f" of {' '.join(v.name for v in self.rows)}" if len(self.rows) > 1 else ""
        notes = {
            self.rows[-1]: f"tile {t.rows}{together}",
            self.n: f"tile {t.width} vector {t.lanes}" if t.lanes > 1 and not t.dots else f"tile {t.width}",
            self.k: f"vector {t.lanes}" if t.dots else "" if self.one_block else f"block {t.block}",
        }
        axis = self.parts.axis
        cut = {"outer": self.outer, "columns": (self.n,), "rows": self.rows[:1], "depth": (self.k,), "": ()}[axis]
        for var in cut:
            notes[var] = f"{notes.get(var, '')} parallel".strip()
        lines = []
        for line in format_kernel(self.nest).splitlines():
            for var, note in notes.items():
                if note and line.strip() == f"for {var.name} < {var.extent}:":
                    line = f"{line[:-1]} {note}:"
            lines.append(line)
        if self.prologue is not None:
            some = f"{self.rows_computed} of {self.m.name}" if self.is_computed else f"all {self.m.name}"
            lines.insert(1, f"  compute the first factor by {some}")
        if t.pack_a:
            lines.insert(1, f"  pack {self.a.buffer.name} by {t.rows} of {self.m.name}")
        if t.pack_b and self.reads_b != "packed":
            lines.insert(1, f"  pack {self.b.buffer.name} by {t.width} of {self.n.name}")
        if self.reads_b != "plain":
            lines.insert(1, f"  {self.b.buffer.name} packed by {t.width} of {self.n.name} before calls")
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
    if any(v.extent == 0 for v in kept) or not kept:
        return None
    x, y = operands
    products = [_product(a, b, kept, reduced, store, combine, target) for a, b in ((x, y), (y, x))]
    fitting = [p for p in products if p is not None]
    if not fitting:
        return None
    near = [p for p in fitting if store.index.factor(p.n) == 1]
    if near and (len(reduced) > 1 or len(kept) > 2):
        fitting = near
    product, tiling = choose_tiling(fitting, target)
    left = _rows_of(product, kept)
    if tiling.streams and len(left) > 1:
        # The rows of the other axes would have B pass by again and again.
        product, tiling = choose_tiling(fitting, target, streams=False)
        left = _rows_of(product, kept)
    if not tiling.dots and not tiling.streams:
        product = with_rows(with_inner(product, tiling), tiling, left)
        product, tiling = choose_tiling([product], target, streams=len(left) < 2)
    outer = tuple([v for v in kept if v not in (*product.rows, product.n)])
    body: tuple[Stmt, ...] = (combine,)
    for var in (product.k, *reversed(product.segments)) if reduced else ():
        body = (For(var, body),)
    body = (Reduce(accumulator, body), store)
    for var in reversed(kept):
        body = (For(var, body),)
    nest = Kernel(name, buffers, body, origins)
    given = {f.name: getattr(product, f.name) for f in fields(Product)}
    return _shared_out(Gemm(**given, nest=nest, outer=outer, tiling=tiling, parts=Parts("", 1, 1, 0)))


def _shared_out(kernel: Gemm, awake: bool = False) -> Gemm:
    """The kernel with its work shared out."""

    def trial(keeps: bool) -> Gemm:
        return replace(kernel, parts=share_out(kernel, kernel.outer, kernel.tiling, keeps, awake))

    return trial(True) if trial(False).keeps else trial(False)


def _product(
    a: LoopExpr,
    b: LoopExpr,
    kept: Sequence[Var],
    reduced: Sequence[Var],
    store: Store,
    combine: Combine,
    target: Target,
) -> Product | None:
    """The product with one operand in the place of A, which may have to be computed, and the other in that of B."""
    prologue = None
    if not isinstance(a, Load) and isinstance(b, Load) and len(reduced) == 1:
        a, prologue = computed_operand(a, b, kept, reduced[0], target)
    if not isinstance(a, Load) or not isinstance(b, Load):
        return None
    left = [v for v in kept if a.index.factor(v) != 0 and b.index.factor(v) == 0]
    right = [v for v in kept if b.index.factor(v) != 0 and a.index.factor(v) == 0]
    if not right:
        return None
    near = [v for v in right if store.index.factor(v) == 1]
    n = near[0] if near else max(right, key=length_of)
    m = _longest(left, a) if left else Var("m", 1)
    *segments, k = sorted(reduced, key=lambda v: _stride(a, v), reverse=True) or [Var("k", 1)]
    if any(not isinstance(v.extent, int) or v.extent == 0 for v in segments):
        return None
    return Product(m, n, k, (m,), tuple(segments), (), a, b, store, combine.accumulator, prologue)


def _rows_of(p: Product, kept: Sequence[Var]) -> list[Var]:
    """The axes of the result that only A has."""
    return [v for v in kept if p.a.index.factor(v) != 0 and p.b.index.factor(v) == 0]


def _longest(axes: Sequence[Var], a: Load) -> Var:
    """The axis that gives the rows; of unknown ones, which may be short, the one whose rows lie closest in A."""
    if all(isinstance(v.extent, int) for v in axes):
        return max(axes, key=length_of)
    return max(axes, key=lambda v: (v.extent if isinstance(v.extent, int) else _USUAL, -_stride(a, v)))


def _operands(value: LoopExpr) -> tuple[LoopExpr, LoopExpr] | None:
    """The two elements whose product is summed; those in memory perhaps before they are widened from float16."""
    if not isinstance(value, Apply) or value.op != "mul":
        return None
    x, y = map(_in_memory, value.args)
    return x, y


def _in_memory(value: LoopExpr) -> LoopExpr:
    """What lies in memory of a number that is widened from float16."""
    narrow = isinstance(value, Apply) and value.op == "cast" and value.args[0].dtype == "float16"
    return value.args[0] if isinstance(value, Apply) and narrow and isinstance(value.args[0], Load) else value


def _stride(load: Load, var: Var) -> int:
    """How far apart an operand's neighbors lie, for comparisons."""
    factor = load.index.factor(var)
    return factor if isinstance(factor, int) else 1 << 30


def _up(x: Dim, step: int) -> Dim:
    """The next multiple."""
    return (x + step - 1) // step * step


def rest_of(index: Affine, *inner: Var) -> Affine:
    """The part of an index that does not depend on the given variables."""
    return Affine(tuple([(v, f) for v, f in index.terms if v not in inner]), index.offset)


__all__ = ["Gemm", "match_gemm", "rest_of"]
