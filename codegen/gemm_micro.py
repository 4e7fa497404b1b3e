"""The innermost part of a matrix product: one tile of sums in registers, and the epilogue that stores it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphkb.codegen.builder import ITEM_SIZES, Builder, Value
from graphkb.codegen.emit import Body
from graphkb.codegen.gemm import Gemm
from graphkb.codegen.gemm_dots import dot_products
from graphkb.codegen.gemm_sizes import Size, SizeMath, Truth
from graphkb.codegen.gemm_tiling import length_of
from graphkb.codegen.loops import (
    Affine,
    Buffer,
    For,
    IndexValue,
    Load,
    Lookup,
    LoopExpr,
    Result,
    Store,
    Var,
    affine,
    expressions,
    operands_of,
)
from graphkb.codegen.schedule import replace_expr, substitute
from graphkb.ir.dims import Dim, Symbol, product, sole_atom, symbol

# Rows of B that a single row of A meets without a loop.
_UNROLLED = 8
# Products from which on a part of a sum is worth being added up on its own.
_SHORTEST_SUM = 96


@dataclass(frozen=True)
class Panel:
    """Columns of C from `first` on: whole vectors, or if `columns` is given only so many, the last vector masked."""

    first: Size
    vectors: int
    columns: Size | None = None
    mask: Value | None = None


@dataclass(frozen=True)
class Block:
    """A range of K; `first` and `last` tell whether the sums begin and end with it."""

    start: Size
    length: Size
    first: Truth
    last: Truth


@dataclass(frozen=True)
class Tile:
    """Rows of C: the first, its place among the partial sums, how many are computed, and if fewer exist, how many."""

    first: Size
    slot: Size
    height: int
    left: Size | None = None


@dataclass(frozen=True)
class Rows:
    """The place of an operand's rows in memory: the first, the step to the next, and the dtype."""

    address: Value
    step: Size
    dtype: str


class TileBody(Body):
    """Statements over one tile: addresses are constant distances from the tile's corner."""

    def __init__(self, b: Builder, kernel: Gemm, pointers: dict[int, Value], sizes: dict[Symbol, Value]) -> None:
        super().__init__(b, pointers, sizes)
        self.kernel = kernel
        self.row = self.column = 0
        self.corners: dict[tuple[int, Affine, int], Value] | None = None

    def _shift(self, index: Affine) -> Dim:
        return index.factor(self.kernel.m) * self.row + index.factor(self.kernel.n) * self.column

    def _runs_along_rows(self, index: Affine) -> bool:
        """Whether a place has to be found anew for every row."""
        return len(self.kernel.rows) > 1 and any(index.factor(v) != 0 for v in self.kernel.rows)

    def address_of(self, buffer: Buffer, index: Affine) -> Value:
        if self.corners is None:
            return super().address_of(buffer, index)
        key = (buffer.position, index, self.row if self._runs_along_rows(index) else 0)
        if key not in self.corners:
            self.corners[key] = self.b.fresh(f"freeze ptr {super().address_of(buffer, index).name}", "ptr")
        shift = self._shift(index)
        at = shift if isinstance(shift, int) else self.sizes.value(shift)
        return self.corners[key] if at == 0 else self.b.gep(self.corners[key], at, buffer.dtype)

    def first_lane(self, index: Affine) -> Value:
        return self._index(index if self.corners is None else index.shifted(self._shift(index)))

    def begins_at_multiples(self, index: Affine, count: int) -> bool:
        # The last of several panels may begin where it ends with the matrix.
        columns = self.kernel.n.extent
        return isinstance(columns, int) and columns % count == 0 and super().begins_at_multiples(index, count)


class Micro:
    """Writes the tiles of one kernel."""

    def __init__(
        self, b: Builder, kernel: Gemm, math: SizeMath, pointers: dict[int, Value], symbols: dict[Symbol, Value]
    ) -> None:
        self.b = b
        self.kernel = kernel
        self.math = math
        self.tiling = kernel.tiling
        self.body = TileBody(b, kernel, pointers, symbols)
        self.partial = b.null()
        self._memory: Value | None = None

    def size(self, dim: Dim) -> Size:
        """A size as an integer if it is known, else its value."""
        return dim if isinstance(dim, int) else self.body.sizes.value(dim)

    def row_offset(self, row: Size) -> Size:
        """How far a row of A lies behind the first, in elements."""
        total: Size = 0
        for var, at in self.row_indices(row):
            total = self.math.add(total, self.math.mul(at, self.size(self.kernel.a.index.factor(var))))
        return total

    def row_indices(self, row: Size) -> list[tuple[Var, Size]]:
        """The axes that the rows run over, and the row's index along each."""
        rows = self.kernel.rows
        if len(rows) == 1:
            return [(rows[0], row)]
        extents = [v.extent if isinstance(v.extent, int) else 0 for v in rows]  # the first one's does not matter
        return list(zip(rows, self.math.split(row, extents)))

    def _set_row(self, row: Size) -> None:
        """Let the epilogue stand at a row."""
        for var, at in self.row_indices(row):
            self.body.vars[var] = self.math.value(at)

    def mask(self, columns: Size, vectors: int) -> Value | None:
        """The lanes of the last vector of a panel that count, None for all."""
        lanes = self.tiling.lanes
        count = self.math.sub(columns, (vectors - 1) * lanes)
        if lanes == 1 or count == lanes:
            return None
        if isinstance(count, int):
            return self.b.const_vector([i < count for i in range(lanes)], "bool")
        return self.b.lane_mask(count, lanes)

    def load_vector(self, address: Value, dtype: str, mask: Value | None) -> Value:
        """A vector of an operand in the dtype of the sums."""
        lanes = self.tiling.lanes
        if mask is None:
            return self.b.cast(self.b.load(address, dtype, lanes), self.kernel.dtype)
        return self.b.cast(self.b.masked_load(address, dtype, mask), self.kernel.dtype)

    # ------------------------------------------------------------------ one tile
    def tile(self, panel: Panel, block: Block, tile: Tile, a: Rows, b: Rows) -> None:
        """The products of one block, added up in registers, then stored.

        Args:
            panel: the columns.
            block: the range of K.
            tile: the rows.
            a: element (first row, first k) of A, and the step along K.
            b: element (first k, first column) of B, and the step along K.
        """
        if self.tiling.along_k:
            sums = [self._dots(panel, block, a, b)]
        else:
            sums = self._multiply(panel, block, self._row_offsets(tile), a, b)
        sums = self._add_partial(panel, block, tile, sums)
        if isinstance(block.last, bool):
            if block.last:
                self._finish(panel, tile, sums)
            else:
                self._set_aside(panel, tile, sums)
            return
        self.b.branch(
            block.last,
            lambda: self._finish(panel, tile, sums),
            lambda: self._set_aside(panel, tile, sums),
            hint="last",
        )

    def _dots(self, panel: Panel, block: Block, a: Rows, b: Rows) -> Value:
        """The sums of one block for one row, both operands of which lie along K."""
        across = self.size(self.kernel.b.index.factor(self.kernel.n))
        lanes = range(self.tiling.lanes)
        columns: list[Size] = list(lanes)
        if panel.columns is not None:
            # Lanes without a column repeat the last one; they are not stored.
            columns = [self.math.minimum(j, self.math.sub(panel.columns, 1)) for j in lanes]
        row, column = (
            (x.address, x.dtype, lambda at, mask, dtype=x.dtype: self.load_vector(at, dtype, mask)) for x in (a, b)
        )
        offsets = [self.math.mul(j, across) for j in columns]
        return dot_products(self.b, self.math, block.length, self.kernel.dtype, row, column, offsets)

    def _row_offsets(self, tile: Tile) -> list[Size]:
        """How far the tile's rows of A lie behind the first."""
        math, left, height_range = self.math, tile.left, range(tile.height)
        if self.tiling.pack_a:
            return list(height_range)
        inside = [i if left is None else math.minimum(i, math.sub(left, 1)) for i in height_range]
        if len(self.kernel.rows) == 1:
            return [self.row_offset(i) for i in inside]
        first = self.row_offset(tile.first)
        return [math.sub(self.row_offset(math.add(tile.first, i)), first) if i != 0 else 0 for i in inside]

    def _multiply(self, panel: Panel, block: Block, offsets: list[Size], a: Rows, b: Rows) -> list[Value]:
        """The sums of one block."""
        out, math, lanes, dtype = self.b, self.math, self.tiling.lanes, self.kernel.dtype
        vectors = panel.vectors

        def step(_: Value | None, at_a: Value, at_b: Value, *before: Value) -> list[Value]:
            row = []
            corner_a, corner_b = math.corner(at_a, 0, a.dtype), math.corner(at_b, 0, b.dtype)
            for j in range(vectors):
                mask = panel.mask if j == vectors - 1 and not self.packed(panel) else None
                row.append(self.load_vector(math.gep(corner_b, j * lanes, b.dtype), b.dtype, mask))
            after: list[Value] = []
            for i, offset in enumerate(offsets):
                element = out.cast(out.load(math.gep(corner_a, offset, a.dtype), a.dtype), dtype)
                spread = out.splat(element, lanes)
                after += [out.fma(spread, row[j], before[i * vectors + j]) for j in range(vectors)]
            return [math.gep(at_a, a.step, a.dtype), math.gep(at_b, b.step, b.dtype), *after]

        zero, end = out.const(0, "int64"), math.value(block.length)
        zeros = [out.const(0, dtype, lanes)] * (len(offsets) * vectors)
        unrolled = self.tiling.streams and len(offsets) == 1
        if unrolled and isinstance(block.length, int) and block.length <= _UNROLLED:
            state = [a.address, b.address, *zeros]
            for _ in range(block.length):
                state = step(None, *state)
            return state[2:]

        def along(inner: Sequence[Var], at_a: Value, at_b: Value, before: Sequence[Value]) -> list[Value]:
            """The sums after K, run through for every value of the inner variables."""
            if not inner:
                return out.loop(zero, end, 1, step, [at_a, at_b, *before], hint="k")[2:]
            var, *rest = inner
            step_a, step_b = self.size(self.kernel.a.index.factor(var)), self._step_b(panel, var, rest)
            apart = var is self._summed_apart()

            def body(_: Value, at_a: Value, at_b: Value, *before: Value) -> list[Value]:
                after = along(rest, at_a, at_b, zeros if apart else before)
                if apart:
                    after = [out.fadd(old, new) for old, new in zip(before, after)]
                return [math.gep(at_a, step_a, a.dtype), math.gep(at_b, step_b, b.dtype), *after]

            count = math.value(self.size(var.extent))
            return out.loop(zero, count, 1, body, [at_a, at_b, *before], hint=var.name)[2:]

        return along(self.kernel.inner, a.address, b.address, zeros)

    def _summed_apart(self) -> Var | None:
        """The inner variable each of whose rounds adds up on its own first, which keeps rounding errors low."""
        depth = self.kernel.k.extent
        assert isinstance(depth, int)
        for var in reversed(self.kernel.inner):
            if depth >= _SHORTEST_SUM:
                return var
            depth *= length_of(var)
        return None

    def _step_b(self, panel: Panel, var: Var, rest: Sequence[Var]) -> Size:
        """How far B's rows of the next value of an inner variable lie behind those of this one."""
        if not self.packed(panel):
            return self.size(self.kernel.b.index.factor(var))
        depth = product((self.kernel.k.extent, *[v.extent for v in rest]))
        return self.size(depth * (panel.vectors * self.tiling.lanes))

    def packed(self, panel: Panel) -> bool:
        """Whether the panel's columns of B are copied."""
        if self.tiling.along_k:
            return False
        return self.tiling.pack_b or (panel.columns is not None and not self.tiling.masks_b)

    # ------------------------------------------------------------------ partial sums
    def _partial(self, panel: Panel, tile: Tile) -> list[Value]:
        """Where the sums of a tile are set aside: tile after tile of a panel, or as they lie in C."""
        math, lanes, dtype = self.math, self.tiling.lanes, self.kernel.dtype
        if self.tiling.streams:
            pitch = self.kernel.pitch
            first = math.add(panel.first, math.mul(tile.slot, pitch))
        else:
            pitch = panel.vectors * lanes
            first = math.mul(tile.slot, pitch)
        corner = math.corner(self.partial, first, dtype)
        places = [i * pitch + j * lanes for i in range(tile.height) for j in range(panel.vectors)]
        return [math.gep(corner, place, dtype) for place in places]

    def _add_partial(self, panel: Panel, block: Block, tile: Tile, sums: list[Value]) -> list[Value]:
        """The sums of this block and those before; adding whole blocks keeps rounding errors low."""
        b = self.b
        if block.first is True:
            return sums

        def add() -> list[Value]:
            places = self._partial(panel, tile)
            before = [b.load(place, self.kernel.dtype, self.tiling.lanes) for place in places]
            return [b.fadd(old, new) for old, new in zip(before, sums)]

        if block.first is False:
            return add()
        return b.branch(block.first, lambda: sums, add, hint="first")

    def _set_aside(self, panel: Panel, tile: Tile, sums: list[Value]) -> None:
        for value, place in zip(sums, self._partial(panel, tile)):
            self.b.store(value, place)

    # ------------------------------------------------------------------ the epilogue
    def _finish(self, panel: Panel, tile: Tile, sums: list[Value]) -> None:
        kernel, body = self.kernel, self.body
        self._set_row(tile.first)
        body.vars[kernel.n] = self.math.value(panel.first)
        body.scopes.append({})
        if self.tiling.in_registers and tile.left is None and (panel.columns is None or self.tiling.masks_c):
            self._store_registers(panel, tile, sums)
        else:
            self._store_rows(panel, tile, sums)
        body.scopes.pop()

    def _store_registers(self, panel: Panel, tile: Tile, sums: list[Value]) -> None:
        """The epilogue written out for every register; what rows or columns share is computed once."""
        kernel, body, lanes = self.kernel, self.body, self.tiling.lanes
        depends = _dependence(kernel)
        body.corners = {}
        body.vector, body.lanes = kernel.n, lanes

        def prepare(wanted: frozenset[str]) -> dict[LoopExpr, Value]:
            body.scopes.append({})
            for expr, on in depends.items():
                if on == wanted:
                    body.value(expr)
            return body.scopes.pop()

        body.scopes.append(prepare(frozenset()))
        columns = []
        for j in range(panel.vectors):
            body.column, body.mask = j * lanes, panel.mask if j == panel.vectors - 1 else None
            columns.append(prepare(frozenset("n")))
        for i in range(tile.height):
            body.row, body.column, body.mask = i, 0, None
            if i and len(kernel.rows) > 1:
                self._set_row(self.math.add(tile.first, i))
            row = prepare(frozenset("m"))
            for j in range(panel.vectors):
                body.column, body.mask = j * lanes, panel.mask if j == panel.vectors - 1 else None
                body.results[kernel.accumulator] = sums[i * panel.vectors + j]
                body.scopes += [columns[j], row, {}]
                body.run([kernel.store])
                del body.scopes[-3:]
        body.scopes.pop()
        body.row = body.column = 0
        body.vector, body.lanes, body.mask, body.corners = None, 1, None, None

    def _store_rows(self, panel: Panel, tile: Tile, sums: list[Value]) -> None:
        """The epilogue as loops over the tile, which passes through memory."""
        kernel, body, lanes, b = self.kernel, self.body, self.tiling.lanes, self.b
        width = panel.vectors * lanes
        if self._memory is None:
            self._memory = b.alloca(kernel.dtype, self.tiling.most)
        for at, value in enumerate(sums):
            place = self.math.gep(self._memory, at * lanes, kernel.dtype)
            b.store(value, place, align=lanes * ITEM_SIZES[kernel.dtype])
        buffer = Buffer(-1, "tile", kernel.dtype, tile.height * width)
        body.pointers[-1] = self._memory
        i = Var("i", tile.height if tile.left is None else self._dim(tile.left, "rows"))
        j = Var("j", width if panel.columns is None else self._dim(panel.columns, "columns"))
        (store,) = substitute([kernel.store], {kernel.n: affine(kernel.n).plus(affine(j))})
        assert isinstance(store, Store)
        (result,) = [e for e in expressions([store]) if isinstance(e, Result)]
        (inner,) = replace_expr([store], {0}, result, Load(buffer, affine(i, width).plus(affine(j))))

        def row(at: Size) -> None:
            body.vars[i] = self.math.value(at)
            self._set_row(self.math.add(tile.first, at))
            body.scopes.append({})
            body.run([For(j, (inner,), lanes)])
            body.scopes.pop()

        self.math.loop(0, self.size(i.extent), 1, row, "i")

    def _dim(self, size: Size, name: str) -> Dim:
        """A size as a dim of the loop language."""
        if isinstance(size, int):
            return size
        dim = symbol(name)
        atom = sole_atom(dim)
        assert isinstance(atom, Symbol)
        self.body.sizes.symbols[atom] = size
        return dim


def _dependence(kernel: Gemm) -> dict[LoopExpr, frozenset[str]]:
    """What each expression of the epilogue depends on within a tile: rows m, columns n, the sum s."""
    found: dict[LoopExpr, frozenset[str]] = {}
    for expr in expressions([kernel.store]):
        on = frozenset[str]().union(*[found[a] for a in operands_of(expr)])
        match expr:
            case Load(index=index) | IndexValue(index=index) | Lookup(index=index):
                on |= {"m"} if any(index.factor(v) != 0 for v in kernel.rows) else set()
                on |= {"n"} if index.factor(kernel.n) != 0 else set()
            case Result():
                on = frozenset("s")
            case _:
                pass
        found[expr] = on
    return found


__all__ = ["Block", "Micro", "Panel", "Rows", "Tile"]
