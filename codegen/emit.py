"""Emission: kernels of the loop language become LLVM functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

from graphkb.codegen.builder import ITEM_SIZES, Builder, Value
from graphkb.codegen.emit_positions import Positions, first_lanes, is_float_extremum, is_search
from graphkb.codegen.emit_values import Sizes, State
from graphkb.codegen.loops import (
    POSITIONS,
    Accumulator,
    Combine,
    Deposit,
    For,
    IndexValue,
    Interleave,
    Kernel,
    Load,
    Local,
    Lookup,
    LoopExpr,
    Parallel,
    Prefetch,
    Reduce,
    Result,
    Running,
    Scratch,
    Stmt,
    Store,
    Tile,
    Var,
    expressions,
    operands_of,
    walk,
)
from graphkb.codegen.schedule import identity, work_of
from graphkb.codegen.shuffles import transpose_tile
from graphkb.codegen.threads import parallel_region
from graphkb.ir.types import FLOATS

# Above this cost a loop masks every round rather than repeat its body for the rest.
_MASK_EVERY_ROUND = 30


def emit_kernel(b: Builder, kernel: Kernel) -> None:
    """Append the function of a kernel: `void name(ptr buffer..., [ptr scratch,] i64 size...)`."""
    params = [(f"p{buffer.position}", "ptr") for buffer in kernel.buffers]
    params += [("scratch", "ptr")] if kernel.scratch != 0 else []
    params += [(f"s{i}", "int64") for i in range(len(kernel.symbols))]
    with b.function(kernel.name, params, linkage="internal") as values:
        pointers = {buffer.position: value for buffer, value in zip(kernel.buffers, values)}
        sizes = dict(zip(kernel.symbols, values[len(values) - len(kernel.symbols) :]))
        body = Body(b, pointers, sizes)
        # Where the scratch memory has no bytes, nothing reads or writes it, whatever its address.
        scratch = values[len(kernel.buffers)] if kernel.scratch != 0 else values[0]
        for buffer, place in kernel.scratch_places.items():
            body.scratch[buffer] = b.byte_offset(scratch, body.sizes.value(place))
        body.run(kernel.body)
        b.ret()


class Body(Positions):
    """The statements of one kernel, written in order."""

    def run(self, body: Sequence[Stmt]) -> None:
        for position, statement in enumerate(body):
            if isinstance(statement, Store):
                self._prepare_stores(body[position:])
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
                case Tile():
                    self._tile(statement)
                case Interleave():
                    self._interleave(statement)
                case Prefetch():
                    self._prefetch(statement)
                case Local():
                    self._local(statement)
                case Scratch():
                    self.pointers |= {buffer.position: self.scratch[buffer] for buffer in statement.buffers}
                    self.run(statement.body)
                case Parallel():
                    self._parallel(statement)

    def _local(self, local: Local) -> None:
        self._hoist(local.body)
        for buffer in local.buffers:
            assert isinstance(buffer.size, int)
            self.pointers[buffer.position] = self.b.alloca(buffer.dtype, buffer.size)
        self.run(local.body)

    def _prepare_stores(self, following: Sequence[Stmt]) -> None:
        """Compute what neighboring statements store before the first does: one may write over what another reads."""
        stores = list(takewhile(lambda statement: isinstance(statement, Store), following))
        for statement in stores if len(stores) > 1 else ():
            assert isinstance(statement, Store)
            self.value(statement.value)

    # ------------------------------------------------------------------ threads
    def _parallel(self, statement: Parallel) -> None:
        """The body for a part of the variable's values, in a function of its own if there are threads."""
        b, symbols = self.b, list(self.sizes.symbols)
        if not b.parallel_for:
            self.run(statement.body)
            return
        # What was reduced before, over all of the variable's values.
        read = [e.accumulator for e in expressions(statement.body) if isinstance(e, Result)]
        results = [accumulator for accumulator in dict.fromkeys(read) if accumulator in self.results]
        captured = [*self.pointers.values(), *self.sizes.symbols.values(), *[self.results[r] for r in results]]

        def part(held: Sequence[Value], begin: Value, end: Value) -> None:
            values = iter(held)
            inner = type(self)(b, dict(zip(self.pointers, values)), dict(zip(symbols, values)))
            inner.results = dict(zip(results, values))
            inner.parts[statement.var] = begin, end
            inner.run(statement.body)

        extent, grain = self.sizes.value(statement.var.extent), self.sizes.value(statement.grain)
        parallel_region(b, extent, grain, captured, part)

    def _bounds(self, var: Var) -> tuple[Value, Value]:
        """Where a loop begins and ends here."""
        return self.parts.get(var) or (self.b.const(0, "int64"), self.sizes.value(var.extent))

    # ------------------------------------------------------------------ squares
    def _tile(self, tile: Tile) -> None:
        """Squares first, then what is left over at the right and at the bottom, element by element."""
        lanes = tile.lanes
        top, rows, whole_rows = self._whole(tile.outer, lanes)
        left, columns, whole_columns = self._whole(tile.inner, lanes)
        self._hoist(tile.body, tile.inner, tile.outer)

        def across(begin: Value, end: Value, step: int, run: Callable[[], None]) -> Callable[[], None]:
            return lambda: self._plain_loop(tile.inner, begin, end, step, run)

        def element() -> None:
            self.run(tile.body)

        loops = [(tile.outer, top, whole_rows), (tile.inner, left, whole_columns)]
        (first, start, until), (second, begin, end) = loops if tile.along == tile.inner else reversed(loops)

        def squares() -> None:
            self._plain_loop(second, begin, end, lanes, lambda: self._square(tile))

        self._plain_loop(first, start, until, lanes, squares)
        if whole_columns != columns:
            self._plain_loop(tile.outer, top, whole_rows, 1, across(whole_columns, columns, 1, element))
        if whole_rows != rows:
            self._plain_loop(tile.outer, whole_rows, rows, 1, across(left, columns, 1, element))

    def _whole(self, var: Var, lanes: int) -> tuple[Value, Value, Value]:
        """Where a loop begins and ends, and where its whole vectors end; it begins at a multiple of their length."""
        b, (begin, end) = self.b, self._bounds(var)
        if isinstance(var.extent, int) and var.extent % lanes == 0:
            return begin, end, end
        if isinstance(var.extent, int) and var not in self.parts:
            return begin, end, b.const(var.extent // lanes * lanes, "int64")
        step = b.const(lanes, "int64")
        return begin, end, b.imul(b.sdiv(end, step), step)

    def _plain_loop(self, var: Var, begin: Value, end: Value, step: int, run: Callable[[], None]) -> None:
        def body(index: Value) -> None:
            self.vars[var] = index
            self.scopes.append({})
            run()
            self.scopes.pop()

        self.b.loop(begin, end, step, body, hint=var.name)

    def _square(self, tile: Tile) -> None:
        b, lanes = self.b, tile.lanes
        corner = self.vars[tile.outer], self.vars[tile.inner]
        shifts = [b.const(i, "int64") for i in range(lanes)]
        columns: dict[LoopExpr, list[Value]] = {}
        for expr in expressions(tile.body):
            if isinstance(expr, Load) and expr.index.factor(tile.outer) == 1 and expr.index.factor(tile.inner) != 0:
                rows = []
                for shift in shifts:
                    self.vars[tile.inner] = b.iadd(corner[1], shift)
                    held = "uint8" if expr.dtype == "bool" else expr.dtype
                    rows.append(b.load(self.address_of(expr.buffer, expr.index), held, lanes))
                turned = transpose_tile(b, rows)
                columns[expr] = [b.as_bool(v) for v in turned] if expr.dtype == "bool" else turned
        self.vars[tile.inner] = corner[1]
        self.vector, self.lanes = tile.inner, lanes
        for i, shift in enumerate(shifts):
            self.vars[tile.outer] = b.iadd(corner[0], shift)
            self.scopes.append({expr: values[i] for expr, values in columns.items()})
            self.run(tile.body)
            self.scopes.pop()
        self.vector, self.lanes = None, 1
        self.vars[tile.outer] = corner[0]

    # ------------------------------------------------------------------ loops
    def _hoist(self, body: Sequence[Stmt], *variables: Var) -> None:
        """Compute before loops what their body needs and the loops do not change."""
        inner = set(variables)
        for statement in walk(body):
            if isinstance(statement, For):
                inner.add(statement.var)
            elif isinstance(statement, Tile):
                inner |= {statement.outer, statement.inner}
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
        if is_search(loop):
            self.search(loop)
            return
        combined = [s.accumulator for s in walk(loop.body) if isinstance(s, Combine)]
        carried = [a for a in dict.fromkeys(combined) if a in self.states]
        if loop.lanes == 1:
            self._rounds(loop, *self._bounds(loop.var), 1, carried, None)
        else:
            self._vector_for(loop, carried)

    def _vector_for(self, loop: For, carried: list[Accumulator]) -> None:
        b, extent, lanes = self.b, loop.var.extent, loop.lanes
        begin, end, whole = self._whole(loop.var, lanes)
        maskable = all(b.target.can_mask(d) for d in _memory_dtypes(loop.body)) and not _picks_narrow(loop)
        short = isinstance(extent, int) and extent < lanes
        if isinstance(extent, int) and (extent == lanes or (short and maskable and extent)):
            self._single_round(loop, first_lanes(b, extent, lanes))
            return
        if whole == end:
            self._rounds(loop, begin, end, lanes, carried, None)
            return
        if maskable and (short or work_of(loop.body).cost > _MASK_EVERY_ROUND):
            self._rounds(loop, begin, end, lanes, carried, end)
            return
        if not short:
            self._rounds(loop, begin, whole, lanes, carried, None)
        if maskable:
            self._rounds(loop, whole, end, lanes, carried, end)
        else:
            self._scalar_rest(loop, whole, end, carried)

    def _single_round(self, loop: For, mask: Value | None) -> None:
        """A loop that one vector covers."""
        saved = self.vector, self.lanes, self.mask
        self.vars[loop.var] = self.b.const(0, "int64")
        self.vector, self.lanes, self.mask = loop.var, loop.lanes, mask
        self.scopes.append({})
        self.run(loop.body)
        self.scopes.pop()
        self.vector, self.lanes, self.mask = saved

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
        if accumulator.op == "first":
            self.states[accumulator] = (b.const(0, "int64"),)
            self.run(reduce.body)
            (self.results[accumulator],) = self.states.pop(accumulator)
            return
        first = identity(accumulator.op, accumulator.dtype)
        if first == 0 and accumulator.dtype in FLOATS and any(isinstance(e, Running) for e in expressions(reduce.body)):
            first = -0.0  # a running sum begins with its first element, whatever the sign of a zero
        start = b.const(first, accumulator.dtype, lanes)
        positions = (b.const(0, accumulator.index, lanes),) if accumulator.op in POSITIONS else ()
        # With masks in registers of their own it is quicker to collect NaN beside the largest number than inside it.
        apart = across and lanes > 1 and b.target.is_avx512 and is_float_extremum(accumulator)
        nan_seen = (b.const(False, "bool", min(lanes, b.target.lanes(accumulator.dtype))),) if apart else ()
        self.states[accumulator] = (start, *positions, *nan_seen)
        self.run(reduce.body)
        state = self.states.pop(accumulator)
        if across and lanes > 1:
            state = self._across_lanes(accumulator, state)
        self.results[accumulator] = b.cast(state[1], "int64") if positions else state[0]

    def _combine(self, combine: Combine) -> None:
        b, accumulator = self.b, combine.accumulator
        state = self.states[accumulator]
        lanes = state[0].lanes
        value = b.splat(self.value(combine.value), lanes)
        if self.mask is not None and lanes == self.lanes:
            value = b.select(self.mask, value, b.const(identity(accumulator.op, value.dtype), value.dtype, lanes))
        if combine.position is None:
            apart = len(state) > 1
            merged = self.number_of if apart else self._merge
            seen = (b.or_(state[1], b.any_nan(value, state[1].lanes)),) if apart else ()
            self.states[accumulator] = (merged(accumulator.op, state[0], value), *seen)
            return
        self.states[accumulator] = self.better_of(accumulator, state, value, combine.position)

    def _across_lanes(self, accumulator: Accumulator, state: State) -> State:
        if accumulator.op in POSITIONS:
            return self.best_lane(accumulator, state)
        if len(state) > 1:
            number = self.b.reduce(state[0], lambda x, y: self.number_of(accumulator.op, x, y))
            nan = self.b.const(float("nan"), number.dtype)
            # A jump, which is foreseen, rather than a selection, for which everything else would wait.
            return tuple(self.b.branch(self.b.any_lane(state[1]), lambda: [nan], lambda: [number], likely=False))
        return (self.b.reduce(state[0], lambda x, y: self._merge(accumulator.op, x, y)),)


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
            case Reduce(body=inner):
                # Several accumulators of one loop; what is combined after a loop is one value.
                found = _combining_lanes(accumulator, inner, lanes)
                if found:
                    return found
            case _:
                pass
    return 0


def _memory_dtypes(body: Sequence[Stmt]) -> set[str]:
    stored = {s.buffer.dtype for s in walk(body) if isinstance(s, Store | Deposit)}
    return stored | {e.dtype for e in expressions(body) if isinstance(e, Load | Lookup)}


def _picks_narrow(loop: For) -> bool:
    """Whether elements below 32 bits come from places apart: behind a mask each would be a branch of its own."""
    for expr in expressions(loop.body):
        if isinstance(expr, Load) and expr.index.factor(loop.var) not in (0, 1) and ITEM_SIZES[expr.dtype] < 4:
            return True
    return False


__all__ = ["Body", "Sizes", "emit_kernel"]
