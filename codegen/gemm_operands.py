"""The operands of a matrix product inside its function: how its tiles lie, what is copied, and the copies."""

from __future__ import annotations

from collections.abc import Sequence

from graphkb.codegen.builder import Builder, Value
from graphkb.codegen.emit_values import Values
from graphkb.codegen.gemm import Gemm, rest_of
from graphkb.codegen.gemm_pack import copy_columns, copy_padded, copy_rows, copy_turned
from graphkb.codegen.gemm_sizes import Size, SizeMath, Truth
from graphkb.codegen.gemm_store import Inputs, row_extents
from graphkb.codegen.gemm_tiling import even_height
from graphkb.codegen.loops import Load, Var
from graphkb.codegen.threads import parallel_region
from graphkb.ir.dims import Dim, product
from graphkb.ir.record import record


@record
class Panel:
    """Columns of C from `first` on, in tiles so many vectors wide; `ragged` ones need not fill the last vector."""

    first: Size
    columns: Size
    vectors: int
    lanes: int
    ragged: bool = False


@record
class Block:
    """A range of K; `first` and `last` tell whether the sums begin and end with it."""

    start: Size
    length: Size
    first: Truth
    last: Truth


@record
class Group:
    """Tiles of one height: number i begins at row `base + i * height`; a clamped one may have fewer rows."""

    begin: Size
    end: Size
    base: Size
    height: int
    clamped: bool = False


class Operands:
    """The operands of one product inside one function, which may be a part that runs on any thread."""

    def __init__(self, b: Builder, kernel: Gemm, values: Sequence[Value]) -> None:
        self.b = b
        self.kernel = kernel
        self.captured = list(values)
        self.t = kernel.tiling
        self.math = SizeMath(b)
        rest = list(values)
        self.pointers = {buffer.position: rest.pop(0) for buffer in kernel.buffers}
        self.packed = rest.pop(0) if kernel.packed else b.null()
        self.copied: Truth = kernel.reads_b == "packed"
        if kernel.reads_b == "either":
            self.copied = b.icmp("ne", b.fresh(f"ptrtoint ptr {self.packed.name} to i64", "int64"), b.const(0, "int64"))
        self.scratch = rest.pop(0) if kernel.scratch != 0 else b.null()
        self.symbols = dict(zip(kernel.symbols, rest))
        self.body = Values(b, self.pointers, self.symbols)
        self.slot: Size = 0
        # The first of the rows of A that have been computed last.
        self.first_row: Size = 0
        self._memory: Value | None = None
        self._offsets: Value | None = None

    def size(self, dim: Dim) -> Size:
        """A size as an integer if it is known, else its value."""
        return dim if isinstance(dim, int) else self.body.sizes.value(dim)

    def _slot_of(self, offset: Size, nbytes: Dim, slotted: bool) -> Value:
        """The address of working memory; `slotted` memory exists once for each group of units."""
        math = self.math
        if slotted:
            offset = math.add(offset, math.mul(self.slot, self.size(nbytes)))
        return math.gep(self.scratch, offset, "uint8")

    def _groups(self, panel: Panel, rows: tuple[Size, Size] | None) -> list[Group]:
        """The tiles of a panel: of two heights where the rows are known, else the last one may be cut short."""
        t, math, kernel = self.t, self.math, self.kernel
        m, most = self.size(kernel.m.extent), t.rows
        if isinstance(m, int) and not t.dots:
            if rows is None and not t.pack_a and panel.vectors < t.vectors:
                most = even_height(m, min(t.most_rows, max(most, t.rows * t.vectors // panel.vectors)))
            count = -(-m // most)
            tall = m - count * (most - 1)
            begin, end = rows if rows is not None else (0, count)
            groups = [Group(begin, math.minimum(end, tall), 0, most)]
            if tall < count:
                groups.append(Group(math.maximum(begin, tall), end, tall, most - 1))
            return groups
        whole = math.div(m, most)
        begin, end = rows if rows is not None else (0, math.div(math.add(m, most - 1), most))
        groups = [Group(begin, math.minimum(end, whole), 0, most)] if whole != 0 else []
        if not isinstance(m, int) or m % most:
            groups.append(Group(math.maximum(begin, whole), end, 0, most, clamped=True))
        return groups

    # ------------------------------------------------------------------ operands
    def _factor(self, load: Load, var: Var) -> Size:
        return self.size(load.index.factor(var))

    def _at(self, load: Load, across: Var, position: Size, start: Size) -> Value:
        """The address of an operand's element at a row of A or column of B, and a place in K."""
        math, k = self.math, self.kernel.k
        base = self.body.address_of(load.buffer, rest_of(load.index, across, k, *self.kernel.inner))
        place = math.add(math.mul(position, self._factor(load, across)), math.mul(start, self._factor(load, k)))
        return math.gep(base, place, load.dtype)

    def _row_of_a(self, row: Size, start: Size) -> Value:
        """The address of an element of A at a row, which may count through several axes, and a place in K."""
        kernel, math = self.kernel, self.math
        if kernel.prologue is not None:
            across, along = map(self.size, kernel.steps_a)
            place = math.add(math.mul(math.sub(row, self.first_row), across), math.mul(start, along))
            return math.gep(self._packed_a(), place, kernel.dtype)
        base = self.body.address_of(kernel.a.buffer, rest_of(kernel.a.index, *kernel.rows, kernel.k, *kernel.inner))
        place = math.add(self._row_offset(row), math.mul(start, self._factor(kernel.a, kernel.k)))
        return math.gep(base, place, kernel.a.dtype)

    def _row_offset(self, row: Size) -> Size:
        """How far a row of A lies behind the first, in elements."""
        rows, math = self.kernel.rows, self.math
        indices = [row] if len(rows) == 1 else math.split(row, row_extents(rows))
        total: Size = 0
        for var, at in zip(rows, indices):
            total = math.add(total, math.mul(at, self._factor(self.kernel.a, var)))
        return total

    def _scattered(self, row: Size, group: Group, count: Size) -> Value:
        """An array of how far the rows of a tile lie behind its first."""
        b, math = self.b, self.math
        if self._offsets is None:
            self._offsets = b.alloca("int64", max(self.t.rows, self.t.most_rows))
        first = self._row_offset(row)
        for i in range(group.height):
            inside = math.minimum(i, math.sub(count, 1)) if group.clamped else i
            offset = math.sub(self._row_offset(math.add(row, inside)), first)
            b.store(math.value(offset), b.gep(self._offsets, i, "int64"))
        return self._offsets

    def _packed_a(self) -> Value:
        return self._slot_of(0, self.kernel.packed_a, self.kernel.keeps_a)

    def _packed_b(self) -> Value:
        kernel = self.kernel
        return self._slot_of(self.size(kernel.before_b), kernel.packed_b, kernel.keeps_b)

    def _source_b(self, panel: Panel, block: Block) -> tuple[Value, Size]:
        """Where a block of B lies and the step along K, or from column to column of dot products."""
        kernel, t, math = self.kernel, self.t, self.math
        if t.dots and t.pack_b:
            pitch = self._turned_pitch()
            return math.gep(self._packed_b(), math.mul(panel.first, pitch), kernel.dtype), pitch
        width = panel.vectors * panel.lanes
        if self.copied is True:
            return self._packed_place(panel, block), width
        place = self._at(kernel.b, kernel.n, panel.first, block.start)
        if t.dots:
            return place, self._factor(kernel.b, kernel.n)
        if not t.pack_b and (t.masks or not panel.ragged):
            step = math.select(self.copied, width, self._factor(kernel.b, kernel.k))
            return self._unless_packed(panel, block, place), step
        held = self._packed_b()
        if isinstance(self.copied, bool):
            self._pack_inner(panel, block, place, held, 0)
        else:
            self.b.branch(
                self.b.not_(self.copied), lambda: self._pack_inner(panel, block, place, held, 0), hint="plain"
            )
        return self._unless_packed(panel, block, held), width

    def _unless_packed(self, panel: Panel, block: Block, place: Value) -> Value:
        """Where a block of B lies: at a place, or in the packed copy of all of B if there is one."""
        if isinstance(self.copied, bool):
            return place
        return self.b.select(self.copied, self._packed_place(panel, block), place)

    def _packed_place(self, panel: Panel, block: Block) -> Value:
        """Where a block lies in the packed copy of all of B."""
        kernel, math = self.kernel, self.math
        rows, below = block.start, self.size(kernel.depth)
        for var in reversed(kernel.segments):
            rows = math.add(rows, math.mul(self.body.vars[var], below))
            below = math.mul(below, self.size(var.extent))
        first = math.add(math.mul(panel.first, below), math.mul(rows, panel.vectors * panel.lanes))
        return math.gep(self.packed, first, kernel.dtype)

    def _inner_step(self, panel: Panel, level: int, copied: bool) -> Size:
        """How far apart the rounds of an inner axis lie in B."""
        kernel, math = self.kernel, self.math
        rows = self.size(product((kernel.k.extent, *[v.extent for v in kernel.inner[level + 1 :]])))
        packed = math.mul(rows, panel.vectors * panel.lanes)
        return packed if copied else math.select(self.copied, packed, self._factor(kernel.b, kernel.inner[level]))

    # ------------------------------------------------------------------ copies
    def _pack_inner(self, panel: Panel, block: Block, source: Value, target: Value, level: int) -> None:
        """Copy a block of a panel of B for every round of the inner axes, one after another."""
        kernel, math = self.kernel, self.math
        if level == len(kernel.inner):
            self._pack_b(panel, block, source, target)
            return
        var = kernel.inner[level]
        step = self._inner_step(panel, level, copied=True)

        def part(at: Size) -> None:
            start = math.gep(source, math.mul(at, self._factor(kernel.b, var)), kernel.b.dtype)
            self._pack_inner(panel, block, start, math.gep(target, math.mul(at, step), kernel.dtype), level + 1)

        math.loop(0, self.size(var.extent), 1, part, var.name)

    def _pack_b(self, panel: Panel, block: Block, source: Value, target: Value) -> None:
        """Copy a block of a panel of B, row after row."""
        b, kernel, math, lanes = self.b, self.kernel, self.math, panel.lanes
        across, along = self._factor(kernel.b, kernel.n), self._factor(kernel.b, kernel.k)
        dtypes = kernel.b.dtype, kernel.dtype
        width, length, columns = map(math.value, (panel.vectors * lanes, block.length, panel.columns))
        masks = all(map(b.target.can_mask, dtypes))
        few = isinstance(block.length, int) and block.length < (4 if masks else lanes)
        if across == 1 and (masks or not panel.ragged) and lanes > 1:
            shape = (panel.vectors, lanes)
            copy_rows(b, dtypes, source, math.value(along), target, (length, columns), shape)
        elif along == 1 and lanes > 1 and not few:
            copy_turned(b, dtypes, source, math.value(across), target, width, (columns, length), lanes)
        else:
            steps = (math.value(along), math.value(across))
            copy_padded(b, dtypes, source, steps, target, width, (length, columns))

    def copy_operands(self) -> None:
        """Make the copies that all tiles of one product read."""
        if self.t.pack_a:
            self._pack_a()
        if self.kernel.prologue is not None and not self.kernel.is_computed:
            self.compute_rows(0, self.size(self.kernel.m.extent))
        if self.t.dots and self.t.pack_b:
            self._turn_b()

    def _turned_pitch(self) -> Size:
        """From one column of B to the next where all of B is copied so that columns lie along K."""
        return self.size(self.kernel.turned_pitch)

    def _turn_b(self) -> None:
        b, kernel, math = self.b, self.kernel, self.math
        source = self._at(kernel.b, kernel.n, 0, 0)
        k, n = self.size(kernel.k.extent), self.size(kernel.n.extent)
        dtypes, pitch = (kernel.b.dtype, kernel.dtype), math.value(self._turned_pitch())
        step = math.value(self._factor(kernel.b, kernel.k))

        def turn() -> None:
            copy_turned(b, dtypes, source, step, self._packed_b(), pitch, (math.value(k), math.value(n)), self.t.lanes)

        # Without rows there is no last one to repeat.
        self.math.loop(0, self.math.minimum(k, 1), 1, lambda _: turn(), "turn")

    def compute_rows(self, first: Size, count: Size) -> None:
        """Compute some rows of A."""
        b, kernel, math = self.b, self.kernel, self.math
        self.first_row = first
        k = self.size(kernel.k.extent)
        known = count if isinstance(count, int) else None
        block = Inputs(
            kernel, f"{kernel.name}.compute", kernel.outer, known, k if isinstance(k, int) else None, kernel.steps_a
        )
        places = {**self.body.vars, kernel.m: math.value(first), kernel.k: math.value(0)}
        block.call(b, self.pointers, self.symbols, places, self._packed_a(), math.value(count), math.value(k))

    def _padded_rows(self) -> Size:
        """The rows of the copy of A: those of whole tiles where the number of rows is unknown."""
        m, height = self.size(self.kernel.m.extent), self.t.rows
        if isinstance(m, int):
            return m
        return self.math.mul(self.math.div(self.math.add(m, height - 1), height), height)

    def _pack_a(self) -> None:
        """Copy A block by block of K and tile by tile: the rows of a tile lie side by side."""
        kernel, t, math = self.kernel, self.t, self.math
        m = self.size(kernel.m.extent)
        count = math.div(math.add(m, t.rows - 1), t.rows)
        if not kernel.parts.axis or kernel.parts.axis == "outer":
            self.pack_tiles(0, count)
            return
        outer = [self.body.vars[v] for v in kernel.outer]

        def part(held: Sequence[Value], begin: Value, end: Value) -> None:
            piece = type(self)(self.b, kernel, held[: len(self.captured)])
            piece.body.vars.update(zip(kernel.outer, held[len(self.captured) :]))
            piece.pack_tiles(math.known(begin), math.known(end))

        grain = math.value(max(1, 1024 // t.rows))
        parallel_region(self.b, math.value(count), grain, [*self.captured, *outer], part)

    def pack_tiles(self, begin: Size, end: Size) -> None:
        """Copy some tiles of A."""
        b, kernel, t, math = self.b, self.kernel, self.t, self.math
        k, m = self.size(kernel.k.extent), self.size(kernel.m.extent)
        steps = tuple([math.value(self._factor(kernel.a, v)) for v in (kernel.m, kernel.k)])
        dtypes, padded = (kernel.a.dtype, kernel.dtype), self._padded_rows()

        def block(start: Size) -> None:
            length = k if kernel.one_block else math.minimum(math.sub(k, start), t.block)
            for group in self._groups(Panel(0, t.width, t.vectors, t.lanes), (begin, end)):

                def tile(at: Size, group: Group = group) -> None:
                    row = math.add(math.mul(at, group.height), group.base)
                    left = math.minimum(math.sub(m, row), group.height) if group.clamped else group.height
                    place = math.add(math.mul(start, padded), math.mul(row, length))
                    target = math.gep(self._packed_a(), place, kernel.dtype)
                    source = self._at(kernel.a, kernel.m, row, start)
                    counts = (math.value(length), math.value(left))
                    copy_columns(b, dtypes, source, (steps[0], steps[1]), target, counts, (group.height, t.lanes))

                math.loop(group.begin, group.end, 1, tile, "pack")

        if kernel.one_block:
            block(0)
        else:
            math.loop(0, k, t.block, block, "block")
