"""The element-wise work of a matrix product: how rows of A come about, and where a tile of finished sums goes."""

from __future__ import annotations

from collections.abc import Sequence

from graphkb.codegen.builder import Builder, Value
from graphkb.codegen.emit import Body
from graphkb.codegen.gemm_sizes import Size, SizeMath
from graphkb.codegen.gemm_tiling import Product
from graphkb.codegen.loops import (
    Affine,
    Buffer,
    Load,
    Lookup,
    Result,
    Stmt,
    Store,
    Var,
    affine,
    expressions,
)
from graphkb.codegen.schedule import collapse, replace_expr, schedule_map, substitute
from graphkb.ir.dims import Dim, Symbol, sole_atom, symbol
from graphkb.ir.record import record


@record
class _Elementwise:
    """A function of one product that runs over a tile in memory.

    Attributes:
        product: which one.
        name: of the function.
        outer: further axes of the result.
        rows, columns: of every tile; None where tiles differ.
        steps: elements from one row of a tile, and from one column, to the next.
    """

    product: Product
    name: str
    outer: tuple[Var, ...]
    rows: int | None
    columns: int | None
    steps: tuple[Dim, Dim]

    @property
    def across(self) -> Var:
        """The loop variable that columns count."""
        raise NotImplementedError

    def _store(self, tile: Load) -> Store:
        """What is done to one element of the tile."""
        raise NotImplementedError

    def call(
        self,
        b: Builder,
        pointers: dict[int, Value],
        symbols: dict[Symbol, Value],
        places: dict[Var, Value],
        tile: Value,
        rows: Value,
        columns: Value,
    ) -> None:
        """Do it at the place that the outer variables, and those of rows and columns, tell."""
        used = sorted(self._buffers() & set(pointers))
        known = sorted(symbols, key=lambda s: s.name)
        variables = [*self.outer, self.product.m, self.across]
        args = [*[pointers[p] for p in used], *[symbols[s] for s in known], *[places[v] for v in variables]]
        args += [tile, rows, columns]
        params = [(f"a{i}", value.dtype) for i, value in enumerate(args)]

        def write(*values: Value) -> None:
            rest = list(values)
            held = {p: rest.pop(0) for p in used}
            body = Body(b, held, {s: rest.pop(0) for s in known})
            for var in variables:
                body.vars[var] = rest.pop(0)
            self._write(body, *rest)

        b.helper(self.name, params, write, args)

    def _buffers(self) -> set[int]:
        store = self._store(Load(Buffer(-1, "tile", self.product.dtype, 0), Affine()))
        read = [e.buffer.position for e in expressions([store]) if isinstance(e, Load | Lookup)]
        return {store.buffer.position, *read}

    def _write(self, body: Body, tile: Value, rows: Value, columns: Value) -> None:
        """Loops over the tile."""
        product, target = self.product, body.b.target
        buffer = Buffer(-1, "tile", product.dtype, 0)
        body.pointers[-1] = tile
        i = Var("i", self.rows if self.rows is not None else _dim(body, rows, "tile.rows"))
        j = Var("j", self.columns if self.columns is not None else _dim(body, columns, "tile.columns"))
        down, along = self.steps
        store = self._store(Load(buffer, affine(i, down).plus(affine(j, along))))
        moved = {self.across: affine(self.across).plus(affine(j))}
        if len(product.rows) > 1:
            self._write_rows(body, i, schedule_map([j], substitute([store], moved), target))
            return
        moved[product.m] = affine(product.m).plus(affine(i))
        statements = substitute([store], moved)
        (store,) = [s for s in statements if isinstance(s, Store)]
        axes = [i, j] if store.index.factor(j) == 1 else [j, i]
        body.vars.update({v: body.b.const(0, "int64") for v in axes if v.extent == 1})
        axes, statements = collapse([v for v in axes if v.extent != 1], statements)
        body.run(schedule_map(axes, statements, target))

    def _write_rows(self, body: Body, i: Var, statements: Sequence[Stmt]) -> None:
        """A loop over the tile's rows, each of which has to find its place along several axes."""
        math, rows = SizeMath(body.b), self.product.rows
        first = body.vars[self.product.m]

        def row(at: Size) -> None:
            body.vars[i] = math.value(at)
            for var, index in zip(rows, math.split(math.add(first, at), row_extents(rows))):
                body.vars[var] = math.value(index)
            body.scopes.append({})
            body.run(statements)
            body.scopes.pop()

        count = i.extent if isinstance(i.extent, int) else body.sizes.value(i.extent)
        math.loop(0, count, 1, row, "row")


@record
class Epilogue(_Elementwise):
    """The function that stores a tile of sums."""

    @property
    def across(self) -> Var:
        return self.product.n

    def _store(self, tile: Load) -> Store:
        store = self.product.store
        (stored,) = replace_expr([store], {0}, _result(store), tile)
        assert isinstance(stored, Store)
        return stored


@record
class Inputs(_Elementwise):
    """The function that computes some rows of A."""

    @property
    def across(self) -> Var:
        return self.product.k

    def _store(self, tile: Load) -> Store:
        assert self.product.prologue is not None
        return Store(tile.buffer, tile.index, self.product.prologue.value)


def row_extents(rows: Sequence[Var]) -> list[int]:
    """The lengths of the axes that rows run over; that of the first does not matter, and may be unknown."""
    return [v.extent if isinstance(v.extent, int) else 0 for v in rows]


def _result(store: Store) -> Result:
    (result,) = [e for e in expressions([store]) if isinstance(e, Result)]
    return result


def _dim(body: Body, value: Value, name: str) -> Dim:
    """A size of the open function as a dim of the loop language."""
    dim = symbol(name)
    atom = sole_atom(dim)
    assert isinstance(atom, Symbol)
    body.sizes.symbols[atom] = value
    return dim


__all__ = ["Epilogue", "row_extents"]
