"""Micro-kernels: functions that hold a tile of sums in registers; one serves every product of a module that it fits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from graphkb.codegen.builder import ITEM_SIZES, Builder, Value, type_of
from graphkb.codegen.gemm_tiling import LINE
from graphkb.ir.record import record

# So many independent sums hide the latency of a multiply-add.
_INDEPENDENT = 8
# Rows of A that are addressed from the first one, and from each of several where there are more.
_ROWS_AT_ONE, _ROWS_AT_EACH = 6, 3


@record
class Micro:
    """One micro-kernel: C[i, j] = the sum over k of A[i, k] B[k, j], vectors along j.

    Strides and lengths are arguments, so that shapes share it, known or unknown.

    Attributes:
        dtype: of the sums and of C.
        a, b: the operands' dtypes in memory.
        lanes: elements of a vector.
        rows, vectors: of the tile.
        adds: it can add to what C holds.
        masked: the last vector may have fewer columns.
        clamped: there may be fewer rows; those that do not exist repeat the last one and are not stored.
        scattered: rows of A lie at distances from the first that an array tells.
        inner: contracted axes outside K, run through with the sums in registers.
        apart: which of them adds up each round on its own first; -1 for none.
        ahead: cache lines of later rows of B that are asked for beside each row.
        asks: the lines of C are asked for before the sums begin.
    """

    dtype: str
    a: str
    b: str
    lanes: int
    rows: int
    vectors: int
    adds: bool
    masked: bool
    clamped: bool
    scattered: bool = False
    inner: int = 0
    apart: int = -1
    ahead: int = 0
    asks: bool = False

    @property
    def name(self) -> str:
        flags = (("a", self.adds), ("m", self.masked), ("c", self.clamped), ("s", self.scattered), ("w", self.asks))
        notes = "".join(note for note, on in flags if on)
        notes += f"h{self.ahead}" * (self.ahead > 0)
        notes += f"i{self.inner}" * (self.inner > 0) + f"p{self.apart}" * (self.apart >= 0)
        kinds = self.dtype if self.a == self.b == self.dtype else f"{self.dtype}.{self.a}.{self.b}"
        return f"tile.{kinds}.{self.rows}x{self.vectors}x{self.lanes}{notes and '.' + notes}"

    @property
    def depth(self) -> int:
        """Rows of B in flight: a small tile keeps several sums of each element."""
        depth = 1
        while not self.inner and self.rows * self.vectors * depth * 2 <= _INDEPENDENT:
            depth *= 2
        return depth

    def call(
        self,
        out: Builder,
        addresses: tuple[Value, Value, Value],
        length: Value,
        strides: tuple[Value, Value, Value, Value],
        add: Value,
        columns: Value,
        left: Value,
        inner: Sequence[tuple[Value, Value, Value]] = (),
        ahead: Sequence[Value] = (),
    ) -> None:
        """Run it.

        Args:
            out: the module.
            addresses: of the first elements of A, B and C.
            length: of K.
            strides: in elements: A's along its rows, or where they lie scattered the address of the array, A's and B's
                along K, and C's along its rows.
            add: whether to add to C rather than overwrite it, 1 or 0.
            columns: how many columns there are, in the last vector at least one.
            left: how many rows there are, at least one.
            inner: of each inner axis its length, and how far apart its rounds lie in A and in B.
            ahead: how many bytes the lines that are asked for lie behind the row that is read.
        """
        params = [(name, "ptr") for name in "abc"]
        params += [("length", "int64"), ("a_row", strides[0].dtype)]
        params += [(name, "int64") for name in ("a_k", "b_k", "c_row")]
        args = [*addresses, length, *strides]
        for i, values in enumerate(inner):
            params += [(f"{name}.{i}", "int64") for name in ("count", "a_step", "b_step")]
            args += values
        params += [(f"ahead.{i}", "int64") for i in range(self.ahead)]
        args += ahead
        for name, wanted, value in (
            ("add", self.adds, add),
            ("columns", self.masked, columns),
            ("left", self.clamped, left),
        ):
            if wanted:
                params.append((name, "int64"))
                args.append(value)
        out.helper(self.name, params, lambda *values: _Writer(out, self, values).write(), args)


class _Writer:
    """Writes the function of one micro-kernel."""

    def __init__(self, b: Builder, micro: Micro, values: Sequence[Value]) -> None:
        self.b = b
        self.micro = micro
        self.at_a, self.at_b, self.at_c, self.length, self.a_row, self.a_k, self.b_k, self.c_row, *rest = values
        self.inner = [tuple(rest[3 * i : 3 * i + 3]) for i in range(micro.inner)]
        rest = rest[3 * micro.inner :]
        self.ahead, rest = rest[: micro.ahead], rest[micro.ahead :]
        self.add = rest.pop(0) if micro.adds else None
        self.mask = None
        if micro.masked:
            before = b.const((micro.vectors - 1) * micro.lanes, "int64")
            self.mask = b.lane_mask(b.isub(rest.pop(0), before), micro.lanes)
        self.left = rest.pop(0) if micro.clamped else None

    def write(self) -> None:
        b, micro, depth = self.b, self.micro, self.micro.depth
        count = micro.rows * micro.vectors
        zeros = [b.const(0, micro.dtype, micro.lanes)] * count
        corners, offsets = self._offsets()
        if micro.asks:
            self._ask()

        def step(_: Value, *state: Value) -> list[Value]:
            at_a, at_b, after = list(state[: len(corners)]), state[len(corners)], list(state[len(corners) + 1 :])
            for i in range(len(after) // count):
                part = slice(i * count, (i + 1) * count)
                at_a = [hidden(b, at) for at in at_a]
                rows = [b.gep(at, offset, micro.a) if j else at for at in at_a for j, offset in enumerate(offsets)]
                after[part] = self._products(rows[: micro.rows], at_b, after[part])
                at_a = [b.gep(at, self.a_k, micro.a) for at in at_a]
                at_b = b.gep(at_b, self.b_k, micro.b)
            return [*at_a, at_b, *after]

        begin, end = b.const(0, "int64"), self.length
        whole = end if depth == 1 else b.and_(end, b.const(-depth, "int64"))

        def along(level: int, places: Sequence[Value], before: Sequence[Value]) -> list[Value]:
            """The places and sums after K, run through for every round of the inner axes from a level on."""
            if level == micro.inner:
                return b.loop(begin, whole, depth, step, [*places, *before], hint="k")
            count, step_a, step_b = self.inner[level]
            apart = level == micro.apart

            def body(_: Value, *state: Value) -> list[Value]:
                *at_a, at_b = state[: len(places)]
                old = state[len(places) :]
                new = along(level + 1, [*at_a, at_b], zeros if apart else old)[len(places) :]
                if apart:
                    new = [b.fadd(x, y) for x, y in zip(old, new)]
                return [*[b.gep(at, step_a, micro.a) for at in at_a], b.gep(at_b, step_b, micro.b), *new]

            return b.loop(begin, count, 1, body, [*places, *before], hint="inner")

        state = along(0, [*corners, self.at_b], zeros * depth)
        places, sums = state[: len(corners) + 1], state[len(corners) + 1 :]
        while len(sums) > count:
            half = len(sums) // 2
            sums = [b.fadd(x, y) for x, y in zip(sums[:half], sums[half:])]
        if depth > 1:
            sums = b.loop(whole, end, 1, step, [*places, *sums], hint="rest")[len(places) :]
        if self.add is None:
            self._store(sums, add=False)
            return
        more = b.icmp("ne", self.add, begin)
        b.branch(more, lambda: self._store(sums, add=True), lambda: self._store(sums, add=False), hint="add")

    def _ask(self) -> None:
        """Ask for the lines of C, which will be written when all products are summed."""
        b, micro = self.b, self.micro
        for i in range(micro.rows):
            row = b.gep(self.at_c, b.imul(b.const(i, "int64"), self.c_row), micro.dtype) if i else self.at_c
            for offset in range(0, micro.vectors * micro.lanes * ITEM_SIZES[micro.dtype], LINE):
                b.prefetch(b.byte_offset(row, b.const(offset, "int64")) if offset else row, to_write=True)

    def _offsets(self) -> tuple[list[Value], list[Value]]:
        """Addresses of some rows of A, and how far others lie behind each: few enough of both for the registers."""
        b, count = self.b, self.micro.rows
        if self.micro.scattered:
            rows = [b.load(b.gep(self.a_row, i, "int64"), "int64") for i in range(count)]
            return [self.at_a], rows
        if self.left is not None or count <= _ROWS_AT_ONE:
            last = b.isub(self.left, b.const(1, "int64")) if self.left is not None else None
            rows = [b.const(i, "int64") for i in range(count)]
            return [self.at_a], [b.imul(row if last is None else b.minimum(row, last), self.a_row) for row in rows]
        near = [b.imul(b.const(i, "int64"), self.a_row) for i in range(_ROWS_AT_EACH)]
        bases = [b.imul(b.const(i, "int64"), self.a_row) for i in range(0, count, _ROWS_AT_EACH)]
        return [b.gep(self.at_a, base, self.micro.a) for base in bases], near

    def _products(self, rows: list[Value], at_b: Value, sums: Sequence[Value]) -> list[Value]:
        """The sums after one more column of A and row of B."""
        b, micro, vectors = self.b, self.micro, self.micro.vectors
        row = [b.cast(self._load(at_b, j, micro.b), micro.dtype) for j in range(vectors)]
        for distance in self.ahead:
            b.prefetch(b.byte_offset(at_b, distance))
        after: list[Value] = []
        for i, place in enumerate(rows):
            spread = b.splat(b.cast(b.load(place, micro.a), micro.dtype), micro.lanes)
            after += [b.fma(spread, row[j], sums[i * vectors + j]) for j in range(vectors)]
        return after

    def _load(self, corner: Value, j: int, dtype: str) -> Value:
        """Vector j of a row."""
        b, micro = self.b, self.micro
        place = b.gep(corner, j * micro.lanes, dtype) if j else corner
        if self.mask is not None and j == micro.vectors - 1:
            return b.masked_load(place, dtype, self.mask)
        return b.load(place, dtype, micro.lanes)

    def _store(self, sums: Sequence[Value], add: bool) -> None:
        b, micro = self.b, self.micro
        corner = self.at_c
        for i in range(micro.rows):
            row = sums[i * micro.vectors : (i + 1) * micro.vectors]
            if i:
                corner = b.gep(corner, self.c_row, micro.dtype)
            if self.left is None or i == 0:
                self._store_row(corner, row, add)
                continue
            exists = b.icmp("sgt", self.left, b.const(i, "int64"))
            b.branch(exists, partial(self._store_row, corner, row, add), hint="row")

    def _store_row(self, corner: Value, row: Sequence[Value], add: bool) -> None:
        b, micro = self.b, self.micro
        for j, value in enumerate(row):
            place = b.gep(corner, j * micro.lanes, micro.dtype) if j else corner
            if add:
                # Adding whole blocks, rather than going on from the sum so far, keeps rounding errors low.
                value = b.fadd(self._load(corner, j, micro.dtype), value)
            if self.mask is not None and j == micro.vectors - 1:
                b.masked_store(value, place, self.mask)
            else:
                b.store(value, place)


def hidden(b: Builder, x: Value) -> Value:
    """The value itself, which LLVM does not see through.

    It costs nothing when it runs. What begins at the value stays a known distance from it, rather than a chain of
    additions from one address to the next.
    """
    return b.fresh(f"freeze {type_of(x)} {x.name}", x.dtype, x.lanes)


__all__ = ["Micro", "hidden"]
