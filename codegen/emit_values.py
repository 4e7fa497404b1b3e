"""Values of the loop language as LLVM values: sizes, expressions, loads and stores at the current place."""

from __future__ import annotations

from collections.abc import Callable

from graphkb.codegen.builder import INTEGERS, ITEM_SIZES, SIGNED, Builder, Value
from graphkb.codegen.loops import (
    Accumulator,
    Affine,
    Apply,
    Buffer,
    Const,
    Deposit,
    IndexValue,
    Interleave,
    Load,
    Lookup,
    LoopExpr,
    Prefetch,
    Result,
    Running,
    SizeValue,
    Store,
    Var,
)
from graphkb.codegen.random_draws import draw_run, neighbors
from graphkb.codegen.scalar_ops import emit_op
from graphkb.codegen.shuffles import every_nth, interleaved
from graphkb.ir.dims import Apply as DimApply
from graphkb.ir.dims import Dim, Expr, Symbol
from graphkb.ops.random import DRAWS

# An accumulator's registers: its value, and for argmax and argmin the position of that value.
State = tuple[Value, ...]

# The bytes that one access to memory brings.
_LINE = 64
# Up to this distance elements are picked from vectors of neighbors rather than one by one; by the size of an element
# where two registers may be permuted freely.
_NEAR = 4
_NEAR_IN_PERMUTATIONS = {2: 12, 4: 6}
# How many elements are copied one by one between two jumps.
_UNROLLED = 8


class Sizes:
    """Evaluates dims to 64-bit integers inside one function."""

    def __init__(self, b: Builder, symbols: dict[Symbol, Value]) -> None:
        self.b = b
        self.symbols = symbols

    def value(self, dim: Dim) -> Value:
        b = self.b
        if not isinstance(dim, Expr):
            return b.const(int(dim), "int64")
        total: Value | None = None
        for monomial, factor in sorted(dim.terms, key=str):
            product: Value | None = None
            for atom, power in monomial:
                one = self._atom(atom)
                for _ in range(power):
                    product = one if product is None else b.imul(product, one)
            scale = b.const(factor, "int64")
            term = scale if product is None else product if factor == 1 else b.imul(product, scale)
            total = term if total is None else b.iadd(total, term)
        assert total is not None
        return total

    def _atom(self, atom: Symbol | DimApply) -> Value:
        if isinstance(atom, Symbol):
            return self.symbols[atom]
        args = [self.value(a) for a in atom.args]
        combine: dict[str, Callable[[Value, Value], Value]] = {
            "floordiv": self.b.floor_divide,
            "max": self.b.maximum,
            "min": self.b.minimum,
        }
        result = args[0]
        for arg in args[1:]:
            result = combine[atom.fn](result, arg)
        return result


def _position_dtype(index: Affine, dtype: str) -> str:
    """In what to compute an index that is wanted in a dtype: in that, if it has no other values than the index."""
    last: Dim = index.offset
    for var, factor in index.terms:
        last = last + (var.extent - 1) * factor
    if dtype not in INTEGERS or not isinstance(last, int) or not isinstance(index.offset, int):
        return "int64"
    bits = ITEM_SIZES[dtype] * 8 - (dtype in SIGNED)
    # Indices never decrease where all factors are positive.
    rising = index.offset >= 0 and all(isinstance(f, int) and f >= 0 for _, f in index.terms)
    return dtype if rising and last < 1 << bits else "int64"


class Values:
    """The expressions and the single stores of one kernel, wherever its loops stand."""

    def __init__(self, b: Builder, pointers: dict[int, Value], sizes: dict[Symbol, Value]) -> None:
        self.b = b
        self.pointers = pointers
        self.sizes = Sizes(b, sizes)
        self.vars: dict[Var, Value] = {}
        self.scratch: dict[Buffer, Value] = {}
        # The loops of which only a part runs here, from begin to end.
        self.parts: dict[Var, tuple[Value, Value]] = {}
        # The loop that runs as a vector, its length, and which lanes count (None: all).
        self.vector: Var | None = None
        self.lanes = 1
        self.mask: Value | None = None
        self.states: dict[Accumulator, State] = {}
        self.results: dict[Accumulator, Value] = {}
        # Values at hand, innermost scope last: what a loop body computes is unknown after it.
        self.scopes: list[dict[LoopExpr, Value]] = [{}]

    def value(self, expr: LoopExpr) -> Value:
        for scope in reversed(self.scopes):
            if expr in scope:
                return scope[expr]
        made = self._make(expr)
        self.scopes[-1][expr] = made
        return made

    def _make(self, expr: LoopExpr) -> Value:
        b = self.b
        match expr:
            case Const(value=value, dtype=dtype):
                return b.const(value, dtype)
            case SizeValue(dim=dim, dtype=dtype):
                return b.cast(self.sizes.value(dim), dtype)
            case IndexValue(index=index, dtype=dtype):
                return b.cast(self._positions(index, _position_dtype(index, dtype)), dtype)
            case Load():
                return self._load(expr)
            case Lookup():
                return self._lookup(expr)
            case Running(accumulator=accumulator):
                return self.states[accumulator][0]
            case Result(accumulator=accumulator):
                return self.results[accumulator]
            case Apply(op=op, args=(IndexValue(index=index), seed, call), dtype=dtype) if (
                op in DRAWS and self.lanes > 1 and self._step(index) == 1
            ):
                aligned = self.begins_at_multiples(index, neighbors(dtype))
                operands = self.value(seed), self.value(call)
                return draw_run(b, op, dtype, self.first_lane(index), self.lanes, aligned, *operands)
            case Apply(op=op, args=args, dtype=dtype):
                return emit_op(b, op, [self.value(a) for a in args], dtype)

    def _index(self, index: Affine) -> Value:
        """The index at the first lane."""
        b = self.b
        total = self.sizes.value(index.offset)
        plain = index.offset == 0
        for var, factor in index.terms:
            at = self.vars[var]
            term = at if factor == 1 else b.imul(at, self.sizes.value(factor))
            total, plain = (term if plain else b.iadd(total, term)), False
        return total

    def _step(self, index: Affine) -> Dim:
        """How far the index moves from lane to lane."""
        return index.factor(self.vector) if self.vector is not None else 0

    def first_lane(self, index: Affine) -> Value:
        """The index at the first lane, wherever in a tile that is."""
        return self._index(index)

    def begins_at_multiples(self, index: Affine, count: int) -> bool:
        """Whether the index at the first lane is known to be a multiple of a small power of two."""
        # Vector loops go on by their lanes, from 0.
        steps = [self.lanes if v is self.vector else f for v, f in index.terms]
        return all(isinstance(step, int) and step % count == 0 for step in (*steps, index.offset))

    def _positions(self, index: Affine, dtype: str = "int64") -> Value:
        """The index in every lane, as integers that it fits."""
        b, step, first = self.b, self._step(index), self.b.cast(self.first_lane(index), dtype)
        if step == 0 or self.lanes == 1:
            return first
        offsets = b.iota(dtype, self.lanes)
        if step != 1:
            offsets = b.imul(offsets, b.splat(b.cast(self.sizes.value(step), dtype), self.lanes))
        return b.iadd(b.splat(first, self.lanes), offsets)

    def address_of(self, buffer: Buffer, index: Affine) -> Value:
        """The address of an element, in a vector loop that of the first lane."""
        return self.b.gep(self.pointers[buffer.position], self._index(index), buffer.dtype)

    def _load(self, load: Load) -> Value:
        b, dtype, base = self.b, load.buffer.dtype, self.pointers[load.buffer.position]
        step = self._step(load.index)
        if step == 0 or self.lanes == 1:
            return b.load(self.address_of(load.buffer, load.index), dtype)
        if step == 1:
            address = self.address_of(load.buffer, load.index)
            if self.mask is not None:
                return b.masked_load(address, dtype, self.mask)
            return b.load(address, dtype, self.lanes)
        if self._is_near(load):
            assert isinstance(step, int)
            held = "uint8" if dtype == "bool" else dtype
            first, width = self._index(load.index), min(b.target.lanes(held), self.lanes)
            if step < 0:
                first = b.iadd(first, b.const(step * (self.lanes - 1), "int64"))

            def neighbors(start: int) -> Value:
                at = first if start == 0 else b.iadd(first, b.const(start, "int64"))
                return b.load(b.gep(base, at, held), held, width)

            if step == -1:
                width = self.lanes
                found = b.shuffle(neighbors(0), None, range(self.lanes - 1, -1, -1))
            else:
                found = every_nth(b, neighbors, width, abs(step), self.lanes, step < 0)
            return b.as_bool(found) if dtype == "bool" else found
        return b.gather(b.gep(base, self._positions(load.index), dtype), dtype, self.mask)

    def _is_near(self, load: Load) -> bool:
        """Whether the elements of a vector are picked from vectors of neighbors."""
        step, target = self._step(load.index), self.b.target
        if self.mask is not None or not isinstance(step, int) or not target.vector_bits:
            return False
        most = _NEAR
        if target.is_avx512:
            most = _NEAR_IN_PERMUTATIONS.get(ITEM_SIZES[load.dtype], _NEAR)
        return step == -1 or (2 <= abs(step) <= most and min(target.lanes(load.dtype), self.lanes) > 1)

    def _is_scattered(self, expr: LoopExpr) -> bool:
        """Whether the elements of a vector still have to come one by one from memory."""
        if not isinstance(expr, Load) or self.mask is not None or self.lanes == 1:
            return False
        if any(expr in scope for scope in self.scopes):
            return False
        return self._step(expr.index) not in (0, 1) and not self._is_near(expr)

    def _lookup(self, lookup: Lookup) -> Value:
        b, dtype, step = self.b, lookup.buffer.dtype, self._step(lookup.index)
        moved = self._moved(self.value(lookup.position), lookup.step)
        if moved.lanes == 1 and (self.lanes == 1 or step in (0, 1)):
            address = b.gep(self.address_of(lookup.buffer, lookup.index), moved, dtype)
            if step == 0 or self.lanes == 1:
                return b.load(address, dtype)
            return b.load(address, dtype, self.lanes) if self.mask is None else b.masked_load(address, dtype, self.mask)
        places = b.splat(self._positions(lookup.index), self.lanes)
        places = b.iadd(places, b.splat(moved, self.lanes))
        return b.gather(b.gep(self.pointers[lookup.buffer.position], places, dtype), dtype, self.mask)

    def _moved(self, position: Value, step: Dim) -> Value:
        """How far a position lies from position 0, in elements."""
        return position if step == 1 else self.b.imul(position, self.b.splat(self.sizes.value(step), position.lanes))

    def _deposit(self, deposit: Deposit) -> None:
        b, dtype = self.b, deposit.buffer.dtype
        value = b.splat(self.value(deposit.value), self.lanes)
        moved = self._moved(b.extract(self.value(deposit.position), 0), deposit.step)
        address = b.gep(self.address_of(deposit.buffer, deposit.index), moved, dtype)
        op = "any" if dtype == "bool" else "sum"
        if self.mask is None:
            b.store(self._merge(op, b.load(address, dtype, self.lanes), value), address)
        else:
            b.masked_store(self._merge(op, b.masked_load(address, dtype, self.mask), value), address, self.mask)

    def _store(self, store: Store) -> None:
        b, base = self.b, self.pointers[store.buffer.position]
        step = self._step(store.index)
        if step == 1 and self._is_scattered(store.value):
            self._copy_elements(store)
            return
        value = self.value(store.value)
        if step == 0 or self.lanes == 1:
            b.store(b.extract(value, 0), self.address_of(store.buffer, store.index))
            return
        value = b.splat(value, self.lanes)
        if step == 1:
            address = self.address_of(store.buffer, store.index)
            if self.mask is not None:
                b.masked_store(value, address, self.mask)
            else:
                b.store(value, address)
            return
        b.scatter(value, b.gep(base, self._positions(store.index), value.dtype), self.mask)

    def _prefetch(self, statement: Prefetch) -> None:
        """Ask for what whole vectors will read; the few elements of a rest come with them."""
        if self.lanes == 1 or self.mask is not None:
            return
        address, size = self.address_of(statement.buffer, statement.index), ITEM_SIZES[statement.buffer.dtype]
        for offset in range(0, self.lanes * size, _LINE):
            self.b.prefetch(self.b.byte_offset(address, offset))

    def _copy_elements(self, store: Store) -> None:
        """Copy the lanes one by one: a vector that is only stored need not be put together."""
        b, load = self.b, store.value
        assert isinstance(load, Load)
        held = "uint8" if load.dtype == "bool" else load.dtype
        step = self.sizes.value(self._step(load.index))
        source, target = self._index(load.index), self._index(store.index)
        count = min(self.lanes, _UNROLLED)

        def some(begin: Value) -> None:
            for lane in range(count):
                at = b.iadd(begin, b.const(lane, "int64"))
                place = b.gep(self.pointers[load.buffer.position], b.iadd(source, b.imul(at, step)), held)
                b.store(b.load(place, held), b.gep(self.pointers[store.buffer.position], b.iadd(target, at), held))

        b.loop(b.const(0, "int64"), b.const(self.lanes, "int64"), count, some)

    def _interleave(self, statement: Interleave) -> None:
        b, stores = self.b, statement.stores
        first = stores[0]
        if self.lanes == 1 or self.mask is not None:
            for store in stores:
                self._store(store)
            return
        values = [b.splat(self.value(store.value), self.lanes) for store in stores]
        dtype = first.buffer.dtype
        width = min(self.lanes, max(2, b.target.lanes(dtype)))
        start = self._index(first.index)
        for i, piece in enumerate(interleaved(b, values, width)):
            at = b.iadd(start, b.const(i * width, "int64")) if i else start
            b.store(piece, b.gep(self.pointers[first.buffer.position], at, dtype))

    def _merge(self, op: str, x: Value, y: Value) -> Value:
        b = self.b
        match op:
            case "sum":
                return b.add(x, y)
            case "prod":
                return b.mul(x, y)
            case "max":
                return b.or_(x, y) if x.dtype == "bool" else b.maximum(x, y)
            case "min":
                return b.and_(x, y) if x.dtype == "bool" else b.minimum(x, y)
            case "any":
                return b.or_(x, y)
            case "all":
                return b.and_(x, y)
            case other:
                raise AssertionError(f"unknown reduction {other}")


__all__ = ["Sizes", "State", "Values"]
