"""Emission of matrix products: the loops over panels, blocks and tiles, and who runs which of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graphkb.codegen.builder import ITEM_SIZES, Builder, Value
from graphkb.codegen.emit_values import Values
from graphkb.codegen.gemm import Gemm, rest_of
from graphkb.codegen.gemm_dots import Dots
from graphkb.codegen.gemm_micro import Micro
from graphkb.codegen.gemm_pack import copy_columns, copy_padded, copy_rows, copy_turned
from graphkb.codegen.gemm_sizes import Size, SizeMath, Truth
from graphkb.codegen.gemm_store import Epilogue, row_extents
from graphkb.codegen.gemm_tiling import even_height, narrowed
from graphkb.codegen.loops import Load, Var
from graphkb.codegen.threads import parallel_region
from graphkb.ir.dims import Dim, product


def emit_gemm(b: Builder, kernel: Gemm) -> None:
    """Append the function of a product: `void name(ptr buffer..., [ptr scratch,] i64 size...)`."""
    params = [(f"p{buffer.position}", "ptr") for buffer in kernel.buffers]
    params += [("scratch", "ptr")] if kernel.scratch != 0 else []
    params += [(f"s{i}", "int64") for i in range(len(kernel.symbols))]
    with b.function(kernel.name, params, linkage="internal") as values:
        _Product(b, kernel, values).run()
        b.ret()


@dataclass(frozen=True)
class _Panel:
    """Columns of C from `first` on, in tiles so many vectors wide; `ragged` ones need not fill the last vector."""

    first: Size
    columns: Size
    vectors: int
    lanes: int
    ragged: bool = False


@dataclass(frozen=True)
class _Block:
    """A range of K; `first` and `last` tell whether the sums begin and end with it."""

    start: Size
    length: Size
    first: Truth
    last: Truth


@dataclass(frozen=True)
class _Group:
    """Tiles of one height: number i begins at row `base + i * height`; a clamped one may have fewer rows."""

    begin: Size
    end: Size
    base: Size
    height: int
    clamped: bool = False


class _Product:
    """The code of one kernel inside one function, which may be a part that runs on any thread."""

    def __init__(self, b: Builder, kernel: Gemm, values: Sequence[Value]) -> None:
        self.b = b
        self.kernel = kernel
        self.captured = list(values)
        self.t = kernel.tiling
        self.math = SizeMath(b)
        rest = list(values)
        self.pointers = {buffer.position: rest.pop(0) for buffer in kernel.buffers}
        self.scratch = rest.pop(0) if kernel.scratch != 0 else b.null()
        self.symbols = dict(zip(kernel.symbols, rest))
        self.body = Values(b, self.pointers, self.symbols)
        self.slot: Size = 0
        self._memory: Value | None = None
        self._offsets: Value | None = None

    def size(self, dim: Dim) -> Size:
        """A size as an integer if it is known, else its value."""
        return dim if isinstance(dim, int) else self.body.sizes.value(dim)

    # ------------------------------------------------------------------ who runs what
    def run(self) -> None:
        parts, outer = self.kernel.parts, self.kernel.outer
        if parts.axis == "outer":
            self._share(_Product.matrices)
        else:
            self._over(outer, self._matrix)

    def matrices(self, begin: Size, end: Size) -> None:
        """Products of some values of the outer variables, counted from the last one on."""
        math, outer = self.math, self.kernel.outer

        def one(at: Size) -> None:
            for var in reversed(outer[1:]):
                extent = self.size(var.extent)
                self.body.vars[var] = math.value(math.rem(at, extent))
                at = math.quotient(at, extent)
            self.body.vars[outer[0]] = math.value(at)
            self.copy_operands()
            self.tiles(0, self._count_panels(), None)

        math.loop(begin, end, 1, one, "matrix")

    def _over(self, variables: Sequence[Var], inside: Callable[[], None]) -> None:
        """Loops over whole variables."""
        if not variables:
            inside()
            return
        first, *rest = variables

        def body(at: Size) -> None:
            self.body.vars[first] = self.math.value(at)
            self._over(rest, inside)

        self.math.loop(0, self.size(first.extent), 1, body, first.name)

    def _matrix(self) -> None:
        """One product, shared out inside."""
        axis = self.kernel.parts.axis
        self.copy_operands()
        if axis == "columns":
            self._share(lambda part, begin, end: part.tiles(begin, end, None))
        elif axis == "rows":
            self._share(lambda part, begin, end: part.tiles(0, part._count_panels(), (begin, end)))
        else:
            self.tiles(0, self._count_panels(), None)

    def _share(self, run: Callable[[_Product, Size, Size], None]) -> None:
        """Run all units of a parallel region, in groups if each of those has memory of its own."""
        kernel, parts, math = self.kernel, self.kernel.parts, self.math
        units, group = self.size(parts.units), self.size(parts.group)
        outer = [] if parts.axis == "outer" else [self.body.vars[v] for v in kernel.outer]

        def part(held: Sequence[Value], begin: Value, end: Value) -> None:
            piece = _Product(self.b, kernel, held[: len(self.captured)])
            piece.body.vars.update(zip(kernel.outer, held[len(self.captured) :]))
            units, group = piece.size(parts.units), piece.size(parts.group)
            if group == 1 and not kernel.keeps:
                run(piece, math.known(begin), math.known(end))
                return

            def one(slot: Size) -> None:
                piece.slot = slot
                first = math.mul(slot, group)
                run(piece, first, math.minimum(math.add(first, group), units))

            math.loop(math.known(begin), math.known(end), 1, one, "group")

        count = math.quotient(math.sub(math.add(units, group), 1), group)
        grain = self.size(parts.grain)
        parallel_region(self.b, math.value(count), math.value(grain), [*self.captured, *outer], part)

    # ------------------------------------------------------------------ panels, blocks and tiles
    def _count_panels(self) -> Size:
        n = self.size(self.kernel.n.extent)
        return self.math.div(self.math.add(n, self.t.width - 1), self.t.width)

    def tiles(self, begin: Size, end: Size, rows: tuple[Size, Size] | None) -> None:
        """Some panels of columns, and of each some tiles of rows, all if none are told."""
        if self.t.streams:
            self._stream(begin, end)
        else:
            self._panels(begin, end, lambda panel: self._panel(panel, rows))

    def _panels(self, begin: Size, end: Size, each: Callable[[_Panel], None]) -> None:
        t, math = self.t, self.math
        n, vectors = self.size(self.kernel.n.extent), self.t.vectors
        whole = math.div(n, t.width)

        def full(at: Size) -> None:
            each(_Panel(math.mul(at, t.width), t.width, vectors, t.lanes))

        def edge(at: Size) -> None:
            # There is at most one, so that its place is known where the columns are.
            first = math.mul(at if isinstance(whole, Value) else whole, t.width)
            left = math.sub(n, first)
            if t.dots:
                each(_Panel(first, left, vectors, t.lanes, ragged=True))
                return
            if isinstance(left, int) and isinstance(first, int):
                for panel in self._last_panels(first, left):
                    each(panel)
                return

            def single(at: Size) -> None:
                each(_Panel(at, math.minimum(math.sub(n, at), t.lanes), 1, t.lanes, ragged=True))

            math.loop(first, n, t.lanes, single, "edge")

        if isinstance(n, int) and n % t.width == 0:
            math.loop(begin, end, 1, full, "panel")
            return
        if whole != 0:
            math.loop(begin, math.minimum(end, whole), 1, full, "panel")
        math.loop(math.maximum(begin, whole), end, 1, edge, "last")

    def _last_panels(self, first: int, left: int) -> list[_Panel]:
        """What is left of the columns: the last few in a narrow vector of their own where that takes less time."""
        lanes = self.t.lanes
        rest = left % lanes
        narrow = narrowed(rest, lanes, ITEM_SIZES[self.kernel.dtype]) if rest and self.t.masks else lanes
        if narrow == lanes:
            return [_Panel(first, left, -(-left // lanes), lanes, rest != 0)]
        last = _Panel(first + left - rest, rest, 1, narrow, rest != narrow)
        return [*([_Panel(first, left - rest, left // lanes, lanes)] if left > rest else []), last]

    def _stream(self, begin: Size, end: Size) -> None:
        """A few rows of B after another, each from end to end."""
        k, step, math = self.kernel.k.extent, self.t.block, self.math
        assert isinstance(k, int)

        def rows_of_b(at: Size, length: int) -> None:
            block = _Block(at, length, math.compare("eq", at, 0), math.compare("ge", math.add(at, length), k))
            self._panels(begin, end, lambda panel: self._rows(panel, block, None))

        whole = k // step * step
        math.loop(0, whole, step, lambda at: rows_of_b(at, step), "rows")
        if k > whole:
            rows_of_b(whole, k - whole)

    def _panel(self, panel: _Panel, rows: tuple[Size, Size] | None) -> None:
        """A panel of C: block by block of K, all rows."""
        kernel, t, math = self.kernel, self.t, self.math
        k = self.size(kernel.k.extent)

        def block(at: Size) -> None:
            length = math.minimum(math.sub(k, at), t.block)
            if kernel.one_block:
                length = k
            end = True if kernel.one_block else math.compare("ge", math.add(at, t.block), k)
            start: Truth = True if kernel.one_block else math.compare("eq", at, 0)
            for var in kernel.segments:
                here = self.body.vars[var]
                start = math.both(start, math.compare("eq", here, 0))
                end = math.both(end, math.compare("eq", here, math.sub(self.size(var.extent), 1)))
            self._rows(panel, _Block(at, length, start, end), rows)

        def blocks() -> None:
            if kernel.one_block:
                block(0)
            else:
                math.loop(0, math.maximum(k, 1), t.block, block, "block")

        self._over(kernel.segments, blocks)

    def _rows(self, panel: _Panel, block: _Block, rows: tuple[Size, Size] | None) -> None:
        source, step = self._source_b(panel, block)
        for group in self._groups(panel, rows):

            def tile(at: Size, group: _Group = group) -> None:
                self._tile(panel, block, group, at, source, step)

            self.math.loop(group.begin, group.end, 1, tile, "row")

    def _groups(self, panel: _Panel, rows: tuple[Size, Size] | None) -> list[_Group]:
        """The tiles of a panel: of two heights where the rows are known, else the last one may be cut short."""
        t, math, kernel = self.t, self.math, self.kernel
        m, most = self.size(kernel.m.extent), t.rows
        if isinstance(m, int) and not t.dots:
            if rows is None and not t.pack_a and panel.vectors < t.vectors:
                most = even_height(m, min(t.most_rows, max(most, t.rows * t.vectors // panel.vectors)))
            count = -(-m // most)
            tall = m - count * (most - 1)
            begin, end = rows if rows is not None else (0, count)
            groups = [_Group(begin, math.minimum(end, tall), 0, most)]
            if tall < count:
                groups.append(_Group(math.maximum(begin, tall), end, tall, most - 1))
            return groups
        whole = math.div(m, most)
        begin, end = rows if rows is not None else (0, math.div(math.add(m, most - 1), most))
        groups = [_Group(begin, math.minimum(end, whole), 0, most)] if whole != 0 else []
        if not isinstance(m, int) or m % most:
            groups.append(_Group(math.maximum(begin, whole), end, 0, most, clamped=True))
        return groups

    def _tile(self, panel: _Panel, block: _Block, group: _Group, at: Size, source: Value, step: Size) -> None:
        """One tile: its sums of one block, then the epilogue if these were the last."""
        b, kernel, math, t = self.b, self.kernel, self.math, self.t
        row = math.add(math.mul(at, group.height), group.base)
        rows = math.minimum(math.sub(self.size(kernel.m.extent), row), group.height) if group.clamped else group.height
        if t.pack_a:
            place = math.add(math.mul(block.start, self._padded_rows()), math.mul(row, block.length))
            a = math.gep(self._packed_a(), place, kernel.dtype)
            strides: tuple[Size, ...] = (1, group.height, step)
        else:
            a = self._row_of_a(row, block.start)
            along = self._factor(kernel.a, kernel.k)
            if len(kernel.rows) > 1:
                strides = (self._scattered(row, group, rows), along, step)
            else:
                strides = (self._factor(kernel.a, kernel.m), along, step)
        direct = kernel.stores_sums and (t.masks or not panel.ragged) and not t.streams
        direct = direct and not (group.clamped and t.dots and not t.masks)
        c, pitch = self._place(row, panel) if direct else self._set_aside(row, panel)
        add = self.math.select(block.first, 0, 1)
        self._multiply(panel, group, block, (a, source, c), (*strides, pitch), add, rows)
        if direct:
            return

        def finish() -> None:
            places = {**self.body.vars, kernel.m: math.value(row), kernel.n: math.value(panel.first)}
            epilogue = self._epilogue()
            epilogue.call(b, self.pointers, self.symbols, places, c, math.value(rows), math.value(panel.columns))

        if isinstance(block.last, bool):
            if block.last:
                finish()
        else:
            b.branch(block.last, finish, hint="last")

    def _multiply(
        self,
        panel: _Panel,
        group: _Group,
        block: _Block,
        addresses: tuple[Value, Value, Value],
        strides: tuple[Size, ...],
        add: Size,
        rows: Size,
    ) -> None:
        """Call the micro-kernel of a tile."""
        kernel, t = self.kernel, self.t
        value = self.math.value
        length, columns, left = value(block.length), value(panel.columns), value(rows)
        copied = t.pack_b or (panel.ragged and not t.masks and not t.dots)
        narrow = kernel.dtype if copied else kernel.b.dtype
        a_dtype = kernel.dtype if t.pack_a else kernel.a.dtype
        if t.dots:
            a_row, _, b_column, c_row = map(value, strides)
            dots = Dots(kernel.dtype, a_dtype, narrow, t.lanes, t.rows, t.width, t.depth, t.masks)
            dots.call(self.b, addresses, length, (a_row, b_column, c_row), columns, left)
            return
        # Masks cost nothing with AVX-512, so that one micro-kernel serves all panels.
        masked = t.masks and panel.lanes > 1 and (panel.ragged or self.b.target.is_avx512)
        micro = Micro(
            kernel.dtype,
            a_dtype,
            narrow,
            panel.lanes,
            group.height,
            panel.vectors,
            adds=add != 0,
            masked=masked,
            clamped=group.clamped,
            scattered=len(kernel.rows) > 1,
            inner=len(kernel.inner),
            apart=kernel.summed_apart,
        )
        a_row, a_k, b_k, c_row = map(value, strides)
        inner = [
            (
                value(self.size(var.extent)),
                value(self._factor(kernel.a, var)),
                value(self._inner_step(panel, i, copied)),
            )
            for i, var in enumerate(kernel.inner)
        ]
        micro.call(self.b, addresses, length, (a_row, a_k, b_k, c_row), value(add), columns, left, inner)

    def _inner_step(self, panel: _Panel, level: int, copied: bool) -> Size:
        """How far apart the rounds of an inner axis lie in B."""
        kernel = self.kernel
        if not copied:
            return self._factor(kernel.b, kernel.inner[level])
        rows = self.size(product((kernel.k.extent, *[v.extent for v in kernel.inner[level + 1 :]])))
        return self.math.mul(rows, panel.vectors * panel.lanes)

    # ------------------------------------------------------------------ where sums go
    def _place(self, row: Size, panel: _Panel) -> tuple[Value, Size]:
        """The place of a tile in the result, and the step from row to row."""
        kernel, math = self.kernel, self.math
        store = kernel.store
        base = self.body.address_of(store.buffer, rest_of(store.index, *kernel.rows, kernel.n))
        step = self.size(store.index.factor(kernel.rows[-1]))
        return math.gep(base, math.add(math.mul(row, step), panel.first), store.buffer.dtype), step

    def _set_aside(self, row: Size, panel: _Panel) -> tuple[Value, Size]:
        """Where the sums of a tile wait for the next block or for the epilogue, and the step from row to row."""
        kernel, math, t = self.kernel, self.math, self.t
        if kernel.partial == 0:
            if self._memory is None:
                self._memory = self.b.alloca(kernel.dtype, max(t.rows, t.most_rows) * t.width + t.lanes)
            return self._memory, t.width
        base = self._slot_of(self.size(kernel.before_partial), kernel.partial, kernel.keeps_partial)
        if t.streams:
            place = math.add(math.mul(row, kernel.pitch), panel.first)
        else:
            place = math.mul(row, kernel.pitch)
        return math.gep(base, place, kernel.dtype), kernel.pitch

    def _epilogue(self) -> Epilogue:
        kernel, t = self.kernel, self.t
        m, n = kernel.m.extent, kernel.n.extent
        columns = t.width if isinstance(n, int) and n % t.width == 0 else None
        if isinstance(n, int) and n < t.width and (t.dots or len(self._last_panels(0, n)) == 1):
            columns = n
        # The last panel has taller tiles if it is narrower than the others.
        alike = t.dots or t.pack_a or columns is not None or kernel.parts.axis == "rows"
        rows = t.rows if alike and isinstance(m, int) and m % t.rows == 0 else None
        return Epilogue(kernel, f"{kernel.name}.store", kernel.outer, kernel.pitch, rows, columns)

    def _slot_of(self, offset: Size, nbytes: Dim, slotted: bool) -> Value:
        """The address of working memory; `slotted` memory exists once for each group of units."""
        math = self.math
        if slotted:
            offset = math.add(offset, math.mul(self.slot, self.size(nbytes)))
        return math.gep(self.scratch, offset, "uint8")

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

    def _scattered(self, row: Size, group: _Group, count: Size) -> Value:
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
        return self._slot_of(0, self.kernel.packed_a, self.kernel.parts.axis == "outer")

    def _packed_b(self) -> Value:
        kernel = self.kernel
        return self._slot_of(self.size(kernel.before_b), kernel.packed_b, kernel.keeps_b)

    def _source_b(self, panel: _Panel, block: _Block) -> tuple[Value, Size]:
        """Where a block of B lies and the step along K, or from column to column of dot products."""
        kernel, t, math = self.kernel, self.t, self.math
        if t.dots and t.pack_b:
            pitch = self._turned_pitch()
            return math.gep(self._packed_b(), math.mul(panel.first, pitch), kernel.dtype), pitch
        place = self._at(kernel.b, kernel.n, panel.first, block.start)
        if t.dots:
            return place, self._factor(kernel.b, kernel.n)
        if not t.pack_b and (t.masks or not panel.ragged):
            return place, self._factor(kernel.b, kernel.k)
        self._pack_inner(panel, block, place, self._packed_b(), 0)
        return self._packed_b(), panel.vectors * panel.lanes

    # ------------------------------------------------------------------ copies
    def _pack_inner(self, panel: _Panel, block: _Block, source: Value, target: Value, level: int) -> None:
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

    def _pack_b(self, panel: _Panel, block: _Block, source: Value, target: Value) -> None:
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
            piece = _Product(self.b, kernel, held[: len(self.captured)])
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
            for group in self._groups(_Panel(0, t.width, t.vectors, t.lanes), (begin, end)):

                def tile(at: Size, group: _Group = group) -> None:
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
