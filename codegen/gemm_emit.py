"""Emission of matrix products: the loops over panels, blocks and tiles, and the copies that they read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graphkb.codegen.builder import ITEM_SIZES, Builder, Value
from graphkb.codegen.gemm import Gemm, rest_of
from graphkb.codegen.gemm_dots import transposed
from graphkb.codegen.gemm_micro import Block, Micro, Panel, Rows, Tile
from graphkb.codegen.gemm_sizes import Size, SizeMath
from graphkb.codegen.gemm_tiling import even_height
from graphkb.codegen.loops import Load, Var
from graphkb.ir.dims import Symbol, product

# How much more work than needed is better than another piece of code for the last columns.
_REPEATED = 1.05


def emit_gemm(b: Builder, kernel: Gemm) -> None:
    """Append the function of a product: `void name(ptr buffer..., [ptr scratch,] i64 size...)`."""
    params = [(f"p{buffer.position}", "ptr") for buffer in kernel.buffers]
    params += [("scratch", "ptr")] if kernel.scratch != 0 else []
    params += [(f"s{i}", "int64") for i in range(len(kernel.symbols))]
    with b.function(kernel.name, params, linkage="internal") as values:
        pointers = {buffer.position: value for buffer, value in zip(kernel.buffers, values)}
        rest = values[len(kernel.buffers) :]
        scratch = rest.pop(0) if kernel.scratch != 0 else b.null()
        _Product(b, kernel, pointers, scratch, dict(zip(kernel.symbols, rest))).run()
        b.ret()


@dataclass(frozen=True)
class _Tiles:
    """Tiles of one height from row `first` to `end`; the last one may be cut short, or begin earlier to end there."""

    first: Size
    end: Size
    height: int
    clamped: bool = False
    overlaps: bool = False


class _Product:
    """The function of one kernel."""

    def __init__(
        self, b: Builder, kernel: Gemm, pointers: dict[int, Value], scratch: Value, symbols: dict[Symbol, Value]
    ) -> None:
        self.b = b
        self.kernel = kernel
        self.tiling = kernel.tiling
        self.math = SizeMath(b)
        self.micro = Micro(b, kernel, self.math, pointers, symbols)
        self.size = self.micro.size
        offset_b = kernel.packed_a
        offset_partial = offset_b + kernel.packed_b
        self.packed_a = scratch
        self.packed_b = b.byte_offset(scratch, self.math.value(self.size(offset_b)))
        self.micro.partial = b.byte_offset(scratch, self.math.value(self.size(offset_partial)))

    def run(self) -> None:
        self._over(self.kernel.outer, self._matrix)

    def _over(self, variables: Sequence[Var], inside: Callable[[], None]) -> None:
        """Loops over whole variables."""
        if not variables:
            inside()
            return
        first, *rest = variables

        def body(at: Size) -> None:
            self.micro.body.vars[first] = self.math.value(at)
            self._over(rest, inside)

        self.math.loop(0, self.size(first.extent), 1, body, first.name)

    # ------------------------------------------------------------------ loops
    def _matrix(self) -> None:
        """One product."""
        if self.tiling.pack_a:
            self._pack_a()
        if self.tiling.streams:
            self._stream()
        else:
            self._panels(self._panel)

    def _panels(self, each: Callable[[Panel], None]) -> None:
        """All panels of columns."""
        t, math = self.tiling, self.math
        n = self.size(self.kernel.n.extent)
        if isinstance(n, int) and t.overlap and n >= t.width and n % t.width:
            columns = -(-n // t.lanes)
            if -(-columns // t.vectors) * t.vectors <= columns * _REPEATED:
                last = n - t.width
                math.loop(0, n, t.width, lambda at: each(Panel(math.minimum(at, last), t.vectors)), "panel")
                return
        whole = math.mul(math.div(n, t.width), t.width)
        math.loop(0, whole, t.width, lambda at: each(Panel(at, t.vectors)), "panel")
        if isinstance(n, int) and isinstance(whole, int):
            rest = n - whole
            if rest:
                each(self._edge(whole, -(-rest // t.lanes), rest))
            return

        def edge(at: Size) -> None:
            each(self._edge(at, 1, math.minimum(math.sub(n, at), t.lanes)))

        math.loop(whole, n, t.lanes, edge, "edge")

    def _stream(self) -> None:
        """A few rows of B after another, each from end to end."""
        k, step = self.kernel.k.extent, self.tiling.block
        assert isinstance(k, int)

        def rows_of_b(at: Size, length: int) -> None:
            last = self.math.compare("ge", self.math.add(at, length), k)
            block = Block(at, length, self.math.compare("eq", at, 0), last)
            self._panels(lambda panel: self._block(panel, block, self._rows(panel)))

        whole = k // step * step
        self.math.loop(0, whole, step, lambda at: rows_of_b(at, step), "rows")
        if k > whole:
            rows_of_b(whole, k - whole)

    def _edge(self, first: Size, vectors: int, columns: Size) -> Panel:
        """The last panel, which need not fill its vectors."""
        if columns == vectors * self.tiling.lanes:
            return Panel(first, vectors)
        return Panel(first, vectors, columns, self.micro.mask(columns, vectors))

    def _panel(self, panel: Panel) -> None:
        """A panel of C: block by block of K, all rows."""
        kernel, t, math = self.kernel, self.tiling, self.math
        k = self.size(kernel.k.extent)
        rows = self._rows(panel)

        def block(at: Size) -> None:
            length = math.minimum(math.sub(k, at), t.block)
            if isinstance(k, int) and k <= t.block:
                length = k
            end = math.compare("ge", math.add(at, t.block), k)
            start = math.compare("eq", at, 0)
            for var in kernel.segments:
                here = self.micro.body.vars[var]
                start = math.both(start, math.compare("eq", here, 0))
                end = math.both(end, math.compare("eq", here, math.sub(self.size(var.extent), 1)))
            self._block(panel, Block(at, length, start, end), rows)

        def blocks() -> None:
            if isinstance(k, int) and k <= t.block:
                block(0)
            else:
                math.loop(0, math.maximum(k, 1), t.block, block, "block")

        self._over(kernel.segments, blocks)

    def _block(self, panel: Panel, block: Block, rows: list[_Tiles]) -> None:
        kernel, math, t = self.kernel, self.math, self.tiling
        source = self._source_b(panel, block)
        m = self.size(kernel.m.extent)
        base = self.packed_a if t.pack_a else self._base(kernel.a, *kernel.rows, kernel.k, *kernel.inner)
        shift = math.mul(block.start, self._padded(m, rows))
        for group in rows:

            def tile(at: Size, group: _Tiles = group) -> None:
                left = math.sub(m, at) if group.clamped else None
                row = math.minimum(at, math.sub(m, group.height)) if group.overlaps else at
                if t.pack_a:
                    place = math.gep(base, math.add(shift, math.mul(at, block.length)), kernel.dtype)
                    a = Rows(place, group.height, kernel.dtype)
                else:
                    step = self.size(kernel.a.index.factor(kernel.k))
                    a = Rows(self._at(base, kernel.a, row, block.start), step, kernel.a.dtype)
                self.micro.tile(panel, block, Tile(row, at, group.height, left), a, source)

            math.loop(group.first, group.end, group.height, tile, "row")

    def _padded(self, m: Size, rows: list[_Tiles]) -> Size:
        """The rows of A with those that the last tile adds."""
        height = self.tiling.rows
        if not any(group.clamped or group.overlaps for group in rows):
            return m
        return self.math.mul(self.math.div(self.math.add(m, height - 1), height), height)

    def _rows(self, panel: Panel) -> list[_Tiles]:
        """The tiles of a panel.

        Where rows may be computed twice, the last tile overlaps the one before. Else heights are even where the rows
        are known, and the last tile is cut short where they are not.
        """
        t = self.tiling
        m, most = self.size(self.kernel.m.extent), t.rows
        if not isinstance(m, int):
            return self._unknown_rows(m)
        if not t.pack_a and panel.vectors < t.vectors:
            most = min(12, max(most, t.rows * t.vectors // panel.vectors))
        if t.overlap:
            height = t.rows if t.pack_a else even_height(m, most)
            return [_Tiles(0, m, height, overlaps=m % height != 0)]
        count = -(-m // most)
        height = -(-m // count)
        tall = m - count * (height - 1)
        rows = [_Tiles(0, tall * height, height)]
        if tall < count:
            rows.append(_Tiles(tall * height, m, height - 1))
        return rows

    def _unknown_rows(self, m: Value) -> list[_Tiles]:
        t, math = self.tiling, self.math
        if t.rows == 1:
            return [_Tiles(0, m, 1)]
        if t.overlap:
            # What is left for the other tiles: all rows if there are too few for one whole tile.
            whole = math.select(math.compare("ge", m, t.rows), m, 0)
        else:
            whole = math.mul(math.div(m, t.rows), t.rows)
        if t.pack_a:
            return [_Tiles(0, whole, t.rows, overlaps=t.overlap), _Tiles(whole, m, t.rows, clamped=True)]
        one = math.select(math.compare("eq", math.sub(m, whole), 1), m, whole)
        tail = [_Tiles(whole, one, 1), _Tiles(one, m, t.rows, clamped=True)]
        return [_Tiles(0, whole, t.rows, overlaps=t.overlap), *tail]

    # ------------------------------------------------------------------ operands
    def _base(self, load: Load, *inner: Var) -> Value:
        """The address of an operand's first element for the outer variables at hand."""
        return self.micro.body.address_of(load.buffer, rest_of(load.index, *inner))

    def _at(self, base: Value, load: Load, row: Size, start: Size) -> Value:
        """The address of an operand's element at a row of A or column of B, and a place in K."""
        math, kernel = self.math, self.kernel
        if load is kernel.a:
            beside = self.micro.row_offset(row)
        else:
            beside = math.mul(row, self.size(load.index.factor(kernel.n)))
        return math.gep(base, math.add(beside, math.mul(start, self.size(load.index.factor(kernel.k)))), load.dtype)

    def _source_b(self, panel: Panel, block: Block) -> Rows:
        """Where a block of B lies, copied if that pays."""
        kernel = self.kernel
        base = self._base(kernel.b, kernel.n, kernel.k, *kernel.inner)
        place = self._at(base, kernel.b, panel.first, block.start)
        if not self.micro.packed(panel):
            return Rows(place, self.size(kernel.b.index.factor(kernel.k)), kernel.b.dtype)
        width = panel.vectors * self.tiling.lanes
        self._pack_inner(panel, block, place, self.packed_b, kernel.inner)
        return Rows(self.packed_b, width, kernel.dtype)

    def _pack_inner(self, panel: Panel, block: Block, source: Value, target: Value, inner: Sequence[Var]) -> None:
        """Copy a block of B for every value of the inner variables, one after another."""
        if not inner:
            self._pack_b(panel, block, source, target)
            return
        math, (var, *rest) = self.math, inner
        width = panel.vectors * self.tiling.lanes
        depth = self.size(product((self.kernel.k.extent, *[v.extent for v in rest])))

        def part(at: Size) -> None:
            start = math.gep(source, math.mul(at, self.size(self.kernel.b.index.factor(var))), self.kernel.b.dtype)
            place = math.gep(target, math.mul(at, math.mul(depth, width)), self.kernel.dtype)
            self._pack_inner(panel, block, start, place, rest)

        math.loop(0, self.size(var.extent), 1, part, var.name)

    # ------------------------------------------------------------------ packing
    def _pack_b(self, panel: Panel, block: Block, source: Value, target: Value) -> None:
        """Copy a block of B row after row; columns beyond the matrix become zeros or copies of others."""
        kernel = self.kernel
        across, along = (self.size(kernel.b.index.factor(v)) for v in (kernel.n, kernel.k))
        lanes = self.tiling.lanes
        if across == 1 and lanes > 1 and (panel.columns is None or self.tiling.masks_b):
            self._pack_rows(panel, block, source, target, along)
        elif along == 1 and lanes > 1:
            self._pack_transposed(panel, block, source, target, across)
        else:
            self._pack_elements(panel, 0, block.length, source, target, across, along)

    def _pack_rows(self, panel: Panel, block: Block, source: Value, packed: Value, along: Size) -> None:
        b, math, kernel, lanes = self.b, self.math, self.kernel, self.tiling.lanes
        width = panel.vectors * lanes

        def row(at: Size) -> None:
            start = math.corner(source, math.mul(at, along), kernel.b.dtype)
            target = math.corner(packed, math.mul(at, width), kernel.dtype)
            for j in range(panel.vectors):
                last = panel.mask if j == panel.vectors - 1 else None
                value = self.micro.load_vector(math.gep(start, j * lanes, kernel.b.dtype), kernel.b.dtype, last)
                b.store(value, math.gep(target, j * lanes, kernel.dtype), align=lanes * ITEM_SIZES[kernel.dtype])

        math.loop(0, block.length, 1, row, "pack")

    def _pack_transposed(self, panel: Panel, block: Block, source: Value, packed: Value, across: Size) -> None:
        """Squares of a vector's length on either side turn over in registers."""
        b, math, kernel, lanes = self.b, self.math, self.kernel, self.tiling.lanes
        dtype, width = kernel.b.dtype, panel.vectors * lanes
        whole = math.mul(math.div(block.length, lanes), lanes)
        ragged = not isinstance(block.length, int) or block.length != whole
        masked = ragged and b.target.can_mask(dtype)

        def square(start: Size) -> None:
            left = math.minimum(math.sub(block.length, start), lanes)
            mask = b.lane_mask(math.value(left), lanes) if masked else None

            def vector(j: Size) -> None:
                corner = math.corner(source, math.add(math.mul(j, across), start), dtype)
                rows = []
                for i in range(lanes):
                    column: Size = i
                    if panel.columns is not None:
                        column = math.minimum(i, math.sub(math.sub(panel.columns, 1), j))
                    address = math.gep(corner, math.mul(column, across), dtype)
                    rows.append(self.micro.load_vector(address, dtype, mask))
                target = math.corner(packed, math.add(math.mul(start, width), j), kernel.dtype)
                for i, value in enumerate(transposed(b, rows)):
                    b.store(value, math.gep(target, i * width, kernel.dtype))

            math.loop(0, width, lanes, vector, "turn")

        math.loop(0, block.length if masked else whole, lanes, square, "square")
        if ragged and not masked:
            self._pack_elements(panel, whole, block.length, source, packed, across, 1)

    def _pack_elements(
        self, panel: Panel, first: Size, end: Size, source: Value, packed: Value, across: Size, along: Size
    ) -> None:
        b, math, kernel, lanes = self.b, self.math, self.kernel, self.tiling.lanes
        width = panel.vectors * lanes
        columns = width if panel.columns is None else panel.columns

        def row(at: Size) -> None:
            start = math.gep(source, math.mul(at, along), kernel.b.dtype)
            target = math.gep(packed, math.mul(at, width), kernel.dtype)
            if panel.columns is not None:
                # What nobody reads must still be harmless: leftovers may be slow to multiply.
                b.store(b.const(0, kernel.dtype, lanes), math.gep(target, width - lanes, kernel.dtype))

            def element(j: Size) -> None:
                value = b.load(math.gep(start, math.mul(j, across), kernel.b.dtype), kernel.b.dtype)
                b.store(b.cast(value, kernel.dtype), math.gep(target, j, kernel.dtype))

            math.loop(0, columns, 1, element, "element")

        math.loop(first, end, 1, row, "pack")

    def _pack_a(self) -> None:
        """Copy A block by block of K and tile by tile: the rows of a tile lie side by side."""
        kernel, t, math = self.kernel, self.tiling, self.math
        k, m = self.size(kernel.k.extent), self.size(kernel.m.extent)
        across, along = (self.size(kernel.a.index.factor(v)) for v in (kernel.m, kernel.k))
        base = self._base(kernel.a, kernel.m, kernel.k)
        rows = self._rows(Panel(0, t.vectors))
        padded = self._padded(m, rows)

        def block(start: Size) -> None:
            length = math.minimum(math.sub(k, start), t.block)
            for group in rows:

                def tile(at: Size, group: _Tiles = group) -> None:
                    place = math.add(math.mul(start, padded), math.mul(at, length))
                    target = math.gep(self.packed_a, place, kernel.dtype)
                    row = math.minimum(at, math.sub(m, group.height)) if group.overlaps else at
                    source = self._at(base, kernel.a, row, start)
                    self._pack_tile(source, target, group, math.sub(m, at), length, across, along)

                math.loop(group.first, group.end, group.height, tile, "pack")

        math.loop(0, k, t.block, block, "block")

    def _pack_tile(
        self, source: Value, target: Value, group: _Tiles, left: Size, length: Size, across: Size, along: Size
    ) -> None:
        """One tile of A. Whole vectors are stored, each covering the excess of the one before."""
        b, math, kernel, height = self.b, self.math, self.kernel, group.height
        dtype, lanes = kernel.a.dtype, self.tiling.lanes
        vectors = across == 1 and height <= lanes and b.target.can_mask(dtype)
        if vectors:
            count = math.minimum(left, height) if group.clamped else height
            mask = None if count == lanes else b.lane_mask(math.value(count), lanes)

        def column(at: Size) -> None:
            start = math.corner(source, math.mul(at, along), dtype)
            place = math.corner(target, math.mul(at, height), kernel.dtype)
            if vectors:
                b.store(self.micro.load_vector(start, dtype, mask), place)
                return
            for i in range(height):
                row: Size = math.minimum(i, math.sub(left, 1)) if group.clamped else i
                value = b.load(math.gep(start, math.mul(row, across), dtype), dtype)
                b.store(b.cast(value, kernel.dtype), math.gep(place, i, kernel.dtype))

        math.loop(0, length, 1, column, "column")
