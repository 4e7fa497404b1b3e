"""Emission: kernels of the loop language become LLVM functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphkb.codegen.builder import Builder, Value
from graphkb.codegen.loops import (
    Accumulator,
    Affine,
    Apply,
    Buffer,
    Combine,
    Const,
    Deposit,
    For,
    IndexValue,
    Kernel,
    Load,
    Lookup,
    LoopExpr,
    Reduce,
    Result,
    Running,
    SizeValue,
    Stmt,
    Store,
    Var,
    expressions,
    operands_of,
    walk,
)
from graphkb.codegen.scalar_ops import emit_op
from graphkb.codegen.schedule import work_of
from graphkb.ir.dims import Apply as DimApply
from graphkb.ir.dims import Dim, Expr, Symbol
from graphkb.ir.types import FLOATS

# An accumulator's registers: its value, and for argmax and argmin the position of that value.
State = tuple[Value, ...]

# Above this cost a loop masks every round rather than repeat its body for the rest.
_MASK_EVERY_ROUND = 30


def emit_kernel(b: Builder, kernel: Kernel) -> None:
    """Append the function of a kernel: `void name(ptr buffer..., i64 size...)`."""
    params = [(f"p{buffer.position}", "ptr") for buffer in kernel.buffers]
    params += [(f"s{i}", "int64") for i in range(len(kernel.symbols))]
    with b.function(kernel.name, params, linkage="internal") as values:
        count = len(kernel.buffers)
        pointers = {buffer.position: value for buffer, value in zip(kernel.buffers, values)}
        sizes = dict(zip(kernel.symbols, values[count:]))
        Body(b, pointers, sizes).run(kernel.body)
        b.ret()


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


def identity(op: str, dtype: str) -> float | int | bool:
    """What an accumulator starts from: the operation gives back the other operand."""
    match op:
        case "sum":
            return 0.0 if dtype in FLOATS else 0  # as NumPy, whose sum of negative zeros, or of nothing, is 0.0
        case "prod":
            return 1
        case "any":
            return False
        case "all":
            return True
        case "max" | "argmax" | "min" | "argmin":
            low = op.endswith("max")
            if dtype == "bool":
                return not low
            if dtype in FLOATS:
                return float("-inf") if low else float("inf")
            bits = int(dtype.lstrip("uint"))
            if dtype.startswith("uint"):
                return 0 if low else (1 << bits) - 1
            largest = (1 << (bits - 1)) - 1
            return -largest - 1 if low else largest
        case other:
            raise AssertionError(f"unknown reduction {other}")


class Body:
    """The statements of one kernel, written in order."""

    def __init__(self, b: Builder, pointers: dict[int, Value], sizes: dict[Symbol, Value]) -> None:
        self.b = b
        self.pointers = pointers
        self.sizes = Sizes(b, sizes)
        self.vars: dict[Var, Value] = {}
        # The loop that runs as a vector, its length, and which lanes count (None: all).
        self.vector: Var | None = None
        self.lanes = 1
        self.mask: Value | None = None
        self.states: dict[Accumulator, State] = {}
        self.results: dict[Accumulator, Value] = {}
        # Values at hand, innermost scope last: what a loop body computes is unknown after it.
        self.scopes: list[dict[LoopExpr, Value]] = [{}]

    def run(self, body: Sequence[Stmt]) -> None:
        for statement in body:
            match statement:
                case For():
                    self._for(statement)
                case Reduce():
                    self._reduce(statement)
                case Combine():
                    self._combine(statement)
                case Store():
                    self._store(statement)
                case Deposit():
                    self._deposit(statement)

    # ------------------------------------------------------------------ expressions
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
                return b.cast(self._positions(index), dtype)
            case Load():
                return self._load(expr)
            case Lookup():
                return self._lookup(expr)
            case Running(accumulator=accumulator):
                return self.states[accumulator][0]
            case Result(accumulator=accumulator):
                return self.results[accumulator]
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

    def _positions(self, index: Affine) -> Value:
        """The index in every lane."""
        b, step, first = self.b, self._step(index), self._index(index)
        if step == 0 or self.lanes == 1:
            return first
        offsets = b.imul(b.iota("int64", self.lanes), b.splat(self.sizes.value(step), self.lanes))
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
        if step == -1 and self.mask is None:
            first = b.isub(self._index(load.index), b.const(self.lanes - 1, "int64"))
            forward = b.load(b.gep(base, first, dtype), dtype, self.lanes)
            return b.shuffle(forward, None, range(self.lanes - 1, -1, -1))
        return b.gather(b.gep(base, self._positions(load.index), dtype), dtype, self.mask)

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
        value = self.value(store.value)
        step = self._step(store.index)
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

    # ------------------------------------------------------------------ loops
    def _hoist(self, body: Sequence[Stmt], var: Var) -> None:
        """Compute before a loop what its body needs and the loop does not change."""
        inner = {s.var for s in walk(body) if isinstance(s, For)} | {var}
        pending = {s.accumulator for s in walk(body) if isinstance(s, Reduce)}
        varies: set[LoopExpr] = set()
        for expr in expressions(body):
            match expr:
                case Load(index=index) | IndexValue(index=index) | Lookup(index=index):
                    changes = any(v in inner for v, _ in index.terms)
                case Result(accumulator=accumulator):
                    changes = accumulator in pending
                case Running():
                    changes = True
                case _:
                    changes = False
            changes = changes or any(a in varies for a in operands_of(expr))
            if changes:
                varies.add(expr)
            else:
                self.value(expr)

    def _for(self, loop: For) -> None:
        self._hoist(loop.body, loop.var)
        combined = [s.accumulator for s in walk(loop.body) if isinstance(s, Combine)]
        carried = [a for a in dict.fromkeys(combined) if a in self.states]
        if loop.lanes == 1:
            self._rounds(loop, self.b.const(0, "int64"), self.sizes.value(loop.var.extent), 1, carried, None)
        else:
            self._vector_for(loop, carried)

    def _vector_for(self, loop: For, carried: list[Accumulator]) -> None:
        b, extent, lanes = self.b, loop.var.extent, loop.lanes
        zero, end = b.const(0, "int64"), self.sizes.value(extent)
        if isinstance(extent, int) and extent % lanes == 0:
            self._rounds(loop, zero, end, lanes, carried, None)
            return
        maskable = all(b.target.can_mask(d) for d in _memory_dtypes(loop.body))
        short = isinstance(extent, int) and extent < lanes
        if maskable and (short or work_of(loop.body).cost > _MASK_EVERY_ROUND):
            self._rounds(loop, zero, end, lanes, carried, end)
            return
        whole = b.imul(b.sdiv(end, b.const(lanes, "int64")), b.const(lanes, "int64"))
        if isinstance(extent, int):
            whole = b.const(extent // lanes * lanes, "int64")
        if not short:
            self._rounds(loop, zero, whole, lanes, carried, None)
        if maskable:
            self._rounds(loop, whole, end, lanes, carried, end)
        else:
            self._scalar_rest(loop, whole, end, carried)

    def _rounds(
        self, loop: For, begin: Value, end: Value, lanes: int, carried: list[Accumulator], limit: Value | None
    ) -> None:
        """The loop from begin to end; with a limit, lanes at or beyond it do not count."""
        b = self.b
        saved = self.vector, self.lanes, self.mask
        counts = [len(self.states[a]) for a in carried]

        def body(index: Value, *values: Value) -> list[Value]:
            self.vars[loop.var] = index
            self._set_states(carried, counts, values)
            self.scopes.append({})
            if lanes > 1:
                self.vector, self.lanes = loop.var, lanes
                self.mask = None if limit is None else b.lane_mask(b.isub(limit, index), lanes)
            self.run(loop.body)
            self.scopes.pop()
            return [v for a in carried for v in self.states[a]]

        start = [v for a in carried for v in self.states[a]]
        after = b.loop(begin, end, lanes, body, start, hint=loop.var.name)
        self._set_states(carried, counts, after)
        self.vector, self.lanes, self.mask = saved

    def _set_states(self, carried: list[Accumulator], counts: list[int], values: Sequence[Value]) -> None:
        rest = list(values)
        for accumulator, count in zip(carried, counts):
            self.states[accumulator] = tuple(rest[:count])
            rest = rest[count:]

    def _scalar_rest(self, loop: For, begin: Value, end: Value, carried: list[Accumulator]) -> None:
        """The last elements one by one, where there are no masks; vector accumulators take them in lane 0."""
        b = self.b
        wide = {a: self.states[a] for a in carried}
        for a, state in wide.items():
            self.states[a] = tuple([b.extract(v, 0) for v in state])
        self._rounds(loop, begin, end, 1, carried, None)
        for a, state in wide.items():
            self.states[a] = tuple([b.insert(v, s, 0) for v, s in zip(state, self.states[a])])

    # ------------------------------------------------------------------ reductions
    def _reduce(self, reduce: Reduce) -> None:
        b, accumulator = self.b, reduce.accumulator
        across = self.vector is None  # the lanes are parts of one reduction, not one reduction each
        lanes = _combining_lanes(accumulator, reduce.body) if across else self.lanes
        start = b.const(identity(accumulator.op, accumulator.dtype), accumulator.dtype, lanes)
        positions = (b.const(0, "int64", lanes),) if accumulator.op in ("argmax", "argmin") else ()
        self.states[accumulator] = (start, *positions)
        self.run(reduce.body)
        state = self.states.pop(accumulator)
        if across and lanes > 1:
            state = self._across_lanes(accumulator, state)
        self.results[accumulator] = state[-1]

    def _combine(self, combine: Combine) -> None:
        b, accumulator = self.b, combine.accumulator
        state = self.states[accumulator]
        lanes = state[0].lanes
        value = b.splat(self.value(combine.value), lanes)
        if self.mask is not None and lanes == self.lanes:
            value = b.select(self.mask, value, b.const(identity(accumulator.op, value.dtype), value.dtype, lanes))
        if combine.position is None:
            self.states[accumulator] = (self._merge(accumulator.op, state[0], value),)
            return
        at = b.splat(self._positions(combine.position), lanes)
        better = self._better(accumulator.op, value, state[0])
        self.states[accumulator] = (b.select(better, value, state[0]), b.select(better, at, state[1]))

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

    def _better(self, op: str, x: Value, than: Value) -> Value:
        """Whether x replaces the best so far: strictly better, or the first NaN."""
        b = self.b
        better = b.compare("gt" if op == "argmax" else "lt", x, than)
        if x.dtype in FLOATS:
            better = b.or_(better, b.and_(b.isnan(x), b.not_(b.isnan(than))))
        return better

    def _across_lanes(self, accumulator: Accumulator, state: State) -> State:
        b = self.b
        if accumulator.op not in ("argmax", "argmin"):
            return (b.reduce(state[0], lambda x, y: self._merge(accumulator.op, x, y)),)
        value, at = state
        while value.lanes > 1:
            half = value.lanes // 2
            low, high = range(half), range(half, 2 * half)
            v, w = b.shuffle(value, None, low), b.shuffle(value, None, high)
            i, j = b.shuffle(at, None, low), b.shuffle(at, None, high)
            # Among equals the earlier position wins; equal includes both being NaN.
            worse = self._better(accumulator.op, v, w)
            better = self._better(accumulator.op, w, v)
            tie = b.not_(b.or_(worse, better))
            take = b.or_(better, b.and_(tie, b.icmp("slt", j, i)))
            value, at = b.select(take, w, v), b.select(take, j, i)
        return value, at


def _combining_lanes(accumulator: Accumulator, body: Sequence[Stmt], lanes: int = 1) -> int:
    """The vector length at which the body combines into an accumulator."""
    for statement in body:
        match statement:
            case Combine(accumulator=target) if target is accumulator:
                return lanes
            case For(body=inner, lanes=own):
                found = _combining_lanes(accumulator, inner, max(lanes, own))
                if found:
                    return found
            case _:
                # A Reduce inside leaves vector loops before it combines outside.
                pass
    return 0


def _memory_dtypes(body: Sequence[Stmt]) -> set[str]:
    stored = {s.buffer.dtype for s in walk(body) if isinstance(s, Store | Deposit)}
    return stored | {e.dtype for e in expressions(body) if isinstance(e, Load | Lookup)}


__all__ = ["Body", "Sizes", "emit_kernel", "identity"]
