"""Emission of matrix products: the loops over panels, blocks and tiles, and who runs which of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphkb.codegen.builder import ITEM_SIZES, Builder, Value
from graphkb.codegen.gemm import Gemm, rest_of
from graphkb.codegen.gemm_dots import Dots
from graphkb.codegen.gemm_micro import Micro
from graphkb.codegen.gemm_operands import Block, Group, Operands, Panel
from graphkb.codegen.gemm_sizes import Size, Truth
from graphkb.codegen.gemm_store import Epilogue
from graphkb.codegen.gemm_tiling import LINE, last_panels
from graphkb.codegen.loops import Var
from graphkb.codegen.threads import parallel_region
from graphkb.ir.dims import product

# While so few rows of B are at work, nothing that is asked for arrives.
_FEW_ROWS = 16
# A matrix of so many bytes that passes by comes from beyond the second-level caches; asking for nearer ones costs time.
_FAR = 1 << 22


def emit_gemm(b: Builder, kernel: Gemm) -> None:
    """Append the function of a product: `void name(ptr buffer..., [ptr scratch,] i64 size...)`."""
    params = [(f"p{buffer.position}", "ptr") for buffer in kernel.buffers]
    params += [(f"packed{i}", "ptr") for i in range(len(kernel.packed))]
    params += [("scratch", "ptr")] if kernel.scratch != 0 else []
    params += [(f"s{i}", "int64") for i in range(len(kernel.symbols))]
    with b.function(kernel.name, params, linkage="internal") as values:
        _Product(b, kernel, values).run()
        b.ret()


class _Product(Operands):
    """The code of one kernel inside one function, which may be a part that runs on any thread."""

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
        elif axis == "depth":
            self._share(lambda part, begin, _: part._stream(0, part._count_panels(), begin))
            self._add_parts()
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
            if parts.axis == "rows":
                # One copy of a panel of B does for all consecutive groups.
                piece.slot = math.known(begin)
                run(piece, math.mul(piece.slot, group), math.minimum(math.mul(math.known(end), group), units))
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
        elif self.kernel.rows_at_once:
            self._row_blocks(begin, end, rows)
        else:
            self._panels(begin, end, lambda panel: self._panel(panel, rows))

    def _row_blocks(self, begin: Size, end: Size, rows: tuple[Size, Size] | None) -> None:
        """All panels for some tiles of rows after another."""
        math, step = self.math, self.kernel.rows_at_once
        m = self.size(self.kernel.m.extent)
        first, last = rows if rows is not None else (0, math.div(math.add(m, self.t.rows - 1), self.t.rows))

        def block(at: Size) -> None:
            some = at, math.minimum(math.add(at, step), last)
            if self.kernel.is_computed:
                begin_row, end_row = map(self._first_row_of, some)
                self.compute_rows(begin_row, math.sub(end_row, begin_row))
            self._panels(begin, end, lambda panel: self._panel(panel, some))

        math.loop(first, last, step, block, "rows")

    def _first_row_of(self, tile: Size) -> Size:
        """Where a tile that is as wide as most begins, or where the last one ends."""
        math, m, height = self.math, self.size(self.kernel.m.extent), self.t.rows
        if not isinstance(m, int) or self.t.dots:
            return math.minimum(math.mul(tile, height), m)
        tall = m - -(-m // height) * (height - 1)
        return math.minimum(math.mul(tile, height), math.add(math.mul(tile, height - 1), tall))

    def _panels(self, begin: Size, end: Size, each: Callable[[Panel], None]) -> None:
        t, math = self.t, self.math
        n, vectors = self.size(self.kernel.n.extent), self.t.vectors
        whole = math.div(n, t.width)

        def full(at: Size) -> None:
            each(Panel(math.mul(at, t.width), t.width, vectors, t.lanes))

        def edge(at: Size) -> None:
            # There is at most one, so that its place is known where the columns are.
            first = math.mul(at if isinstance(whole, Value) else whole, t.width)
            left = math.sub(n, first)
            if t.dots:
                each(Panel(first, left, vectors, t.lanes, ragged=True))
                return
            if isinstance(n, int):
                for panel in self._last_panels(n):
                    each(panel)
                return

            def single(at: Size) -> None:
                each(Panel(at, math.minimum(math.sub(n, at), t.lanes), 1, t.lanes, ragged=True))

            math.loop(first, n, t.lanes, single, "edge")

        if isinstance(n, int) and n % t.width == 0:
            math.loop(begin, end, 1, full, "panel")
            return
        if whole != 0:
            math.loop(begin, math.minimum(end, whole), 1, full, "panel")
        math.loop(math.maximum(begin, whole), end, 1, edge, "last")

    def _last_panels(self, n: int) -> list[Panel]:
        """What is left of the columns."""
        found = last_panels(self.t, n, self.kernel.dtype)
        return [Panel(p.first, p.columns, p.vectors, p.lanes, p.columns != p.width) for p in found]

    def _stream(self, begin: Size, end: Size, part: Size | None = None) -> None:
        """A few rows of B after another, each from end to end: all of them, or those of one part of K."""
        k, step, math = self.kernel.k.extent, self.t.block, self.math
        assert isinstance(k, int)
        start = 0 if part is None else math.mul(part, self.kernel.parts.depth)
        stop = k if part is None else math.minimum(math.add(start, self.kernel.parts.depth), k)

        def rows_of_b(at: Size, length: Size) -> None:
            last = part is None and math.compare("ge", math.add(at, length), k)
            block = Block(at, length, math.compare("eq", at, start), last)
            self._panels(begin, end, lambda panel: self._rows(panel, block, None))

        whole = k // step * step
        math.loop(start, math.minimum(stop, whole), step, lambda at: rows_of_b(at, step), "rows")
        if k > whole:
            math.loop(math.maximum(start, whole), stop, step, lambda at: rows_of_b(at, k - whole), "rest")

    def _add_parts(self) -> None:
        """The sums of all parts of K, always in the same order, and then the epilogue of every tile."""
        b, kernel, math, lanes = self.b, self.kernel, self.math, self.t.lanes
        units = kernel.parts.units
        assert isinstance(units, int)
        places = []
        for self.slot in range(units):
            places.append(self._set_aside(0, Panel(0, 0, 0, lanes))[0])
        self.slot = 0

        def row(at: Size) -> None:
            first = math.mul(at, kernel.pitch)

            def vector(column: Size) -> None:
                each = [b.gep(place, math.value(math.add(first, column)), kernel.dtype) for place in places]
                total, *rest = [b.load(place, kernel.dtype, lanes) for place in each]
                for value in rest:
                    total = b.fadd(total, value)
                b.store(total, each[0])

            # What lies behind the last column belongs to nobody.
            math.loop(0, self.size(kernel.n.extent), lanes, vector, "column")

        math.loop(0, self.size(kernel.m.extent), 1, row, "sum")

        def panel(some: Panel) -> None:
            for group in self._groups(some, None):

                def tile(at: Size, group: Group = group) -> None:
                    row = math.add(math.mul(at, group.height), group.base)
                    self._finish(some, row, group.height, self._set_aside(row, some)[0])

                math.loop(group.begin, group.end, 1, tile, "row")

        self._panels(0, self._count_panels(), panel)

    def _panel(self, panel: Panel, rows: tuple[Size, Size] | None) -> None:
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
            self._rows(panel, Block(at, length, start, end), rows)

        def blocks() -> None:
            if kernel.one_block:
                block(0)
            else:
                math.loop(0, math.maximum(k, 1), t.block, block, "block")

        self._over(kernel.segments, blocks)

    def _rows(self, panel: Panel, block: Block, rows: tuple[Size, Size] | None) -> None:
        source, step = self._source_b(panel, block)
        for group in self._groups(panel, rows):

            def tile(at: Size, group: Group = group) -> None:
                self._tile(panel, block, group, at, source, step)

            self.math.loop(group.begin, group.end, 1, tile, "row")

    def _tile(self, panel: Panel, block: Block, group: Group, at: Size, source: Value, step: Size) -> None:
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
            across, along = map(self.size, kernel.steps_a)
            if kernel.scattered:
                strides = (self._scattered(row, group, rows), along, step)
            else:
                strides = (across, along, step)
        direct = kernel.stores_sums and (t.masks or not panel.ragged) and not t.streams
        direct = direct and not (group.clamped and t.dots and not t.masks)
        c, pitch = self._place(row, panel) if direct else self._set_aside(row, panel)
        add = self.math.select(block.first, 0, 1)
        asks = direct and self._asks_for_c()
        self._multiply(panel, group, block, (a, source, c), (*strides, pitch), add, rows, at, asks)
        if direct:
            return

        def finish() -> None:
            self._finish(panel, row, rows, c)

        if isinstance(block.last, bool):
            if block.last:
                finish()
        else:
            b.branch(block.last, finish, hint="last")

    def _finish(self, panel: Panel, row: Size, rows: Size, sums: Value) -> None:
        """The epilogue of a tile."""
        value = self.math.value
        places = {**self.body.vars, self.kernel.m: value(row), self.kernel.n: value(panel.first)}
        self._epilogue().call(self.b, self.pointers, self.symbols, places, sums, value(rows), value(panel.columns))

    def _multiply(
        self,
        panel: Panel,
        group: Group,
        block: Block,
        addresses: tuple[Value, Value, Value],
        strides: tuple[Size, ...],
        add: Size,
        rows: Size,
        at: Size,
        asks: bool,
    ) -> None:
        """Call the micro-kernel of a tile."""
        kernel, t = self.kernel, self.t
        value = self.math.value
        length, columns, left = value(block.length), value(panel.columns), value(rows)
        copied = t.pack_b or kernel.reads_b == "packed" or (panel.ragged and not t.masks and not t.dots)
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
            scattered=kernel.scattered,
            inner=len(kernel.inner),
            apart=kernel.summed_apart,
            ahead=0 if copied and kernel.reads_b == "plain" else self._lines_ahead(panel),
            asks=asks and panel.lanes > 1,
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
        ahead = self._ahead(panel, block, strides[2], at, micro.ahead)
        micro.call(self.b, addresses, length, (a_row, a_k, b_k, c_row), value(add), columns, left, inner, ahead)

    # ------------------------------------------------------------------ what is read next
    def _asks_for_c(self) -> bool:
        """Whether the sums of a tile take so long that C may come from memory meanwhile."""
        rows = product((self.kernel.k.extent, *[v.extent for v in self.kernel.inner]))
        return not isinstance(rows, int) or rows >= _FEW_ROWS

    def _lines_ahead(self, panel: Panel) -> int:
        """How many cache lines of a later block of B a tile asks for beside each row, so that all tiles ask for all."""
        kernel, t = self.kernel, self.t
        k, n, m = kernel.k.extent, kernel.n.extent, kernel.m.extent
        lines = self._lines(panel)
        if t.streams:
            if kernel.parts.axis == "depth":
                return 0  # it lies in one piece, as the processor expects
            nbytes = k * n * ITEM_SIZES[kernel.b.dtype]
            return lines if isinstance(nbytes, int) and nbytes >= _FAR else 0
        if panel.lanes == 1 or m == 1 or (isinstance(k, int) and k < _FEW_ROWS):
            return 0
        tiles = kernel.rows_at_once if kernel.is_computed else -(-m // t.rows) if isinstance(m, int) else lines
        return min(lines, -(-lines // tiles))

    def _lines(self, panel: Panel) -> int:
        """The cache lines of one row of a panel of B, as far as they begin with a vector."""
        return max(1, panel.vectors * panel.lanes * ITEM_SIZES[self.kernel.b.dtype] // LINE)

    def _ahead(self, panel: Panel, block: Block, step: Size, at: Size, count: int) -> list[Value]:
        """How many bytes behind the block of B that tile number `at` reads its share of the next one lies."""
        if not count:
            return []
        kernel, math = self.kernel, self.math
        following = math.mul(block.length, step)
        if not self.t.streams:
            here = math.mul(block.start, step)
            if kernel.segments:
                # Rounds of the outer segments begin where those of the last one end.
                around = math.sub(self._factor(kernel.b, kernel.segments[-1]), here)
                inside = math.compare("lt", math.add(block.start, block.length), self.size(kernel.k.extent))
                following = math.select(inside, following, around)
            for var in kernel.segments:
                here = math.add(here, math.mul(self.body.vars[var], self._factor(kernel.b, var)))
            # Behind the only panel there may be the next matrix; if not, the tile asks for what it reads.
            n, outer = kernel.n.extent, kernel.outer
            alone = isinstance(n, int) and n <= self.t.width
            further = (self._factor(kernel.b, outer[-1]) if outer else 0) if alone else panel.columns
            following = math.select(block.last, math.sub(further, here), following)
            if self.copied is not False:
                # What a packed block is followed by is the next one; a copy of a block is followed by nothing.
                depth = math.mul(block.length, self.size(product([v.extent for v in kernel.inner])))
                width = panel.vectors * panel.lanes
                following = math.select(self.copied, math.mul(depth, width), 0 if self.t.pack_b else following)
        size, lines = ITEM_SIZES[kernel.b.dtype], self._lines(panel)
        following = math.mul(following, size)
        first = 0 if self.t.streams else math.mul(at, count)
        shares = [math.rem(math.add(first, i), lines) for i in range(count)]
        return [math.value(math.add(following, math.mul(share, LINE))) for share in shares]

    # ------------------------------------------------------------------ where sums go
    def _place(self, row: Size, panel: Panel) -> tuple[Value, Size]:
        """The place of a tile in the result, and the step from row to row."""
        kernel, math = self.kernel, self.math
        store = kernel.store
        base = self.body.address_of(store.buffer, rest_of(store.index, *kernel.rows, kernel.n))
        step = self.size(store.index.factor(kernel.rows[-1]))
        return math.gep(base, math.add(math.mul(row, step), panel.first), store.buffer.dtype), step

    def _set_aside(self, row: Size, panel: Panel) -> tuple[Value, Size]:
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
            place = math.mul(math.sub(row, self.first_row), kernel.pitch)
        return math.gep(base, place, kernel.dtype), kernel.pitch

    def _epilogue(self) -> Epilogue:
        kernel, t = self.kernel, self.t
        m, n = kernel.m.extent, kernel.n.extent
        columns = t.width if isinstance(n, int) and n % t.width == 0 else None
        if isinstance(n, int) and n < t.width and (t.dots or len(self._last_panels(n)) == 1):
            columns = n
        # The last panel has taller tiles if it is narrower than the others.
        alike = t.dots or t.pack_a or columns is not None or kernel.parts.axis == "rows"
        rows = t.rows if alike and isinstance(m, int) and m % t.rows == 0 else None
        return Epilogue(kernel, f"{kernel.name}.store", kernel.outer, rows, columns, (kernel.pitch, 1))
