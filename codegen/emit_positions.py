"""Emission of positions: where the largest or smallest element stands, and where a condition first holds."""

from __future__ import annotations

from collections.abc import Callable

from graphkb.codegen.builder import Builder, Value
from graphkb.codegen.emit_values import State, Values
from graphkb.codegen.loops import Accumulator, Affine, Combine, For, Load, Lookup, expressions
from graphkb.ir.types import FLOATS


def is_search(loop: For) -> bool:
    """Whether a loop ends at the first element that holds."""
    return any(isinstance(s, Combine) and s.accumulator.op == "first" for s in loop.body)


def first_lanes(b: Builder, count: int, lanes: int) -> Value | None:
    """The mask of a known number of lanes, None for all of them."""
    return None if count == lanes else b.const_vector([i < count for i in range(lanes)], "bool")


def is_float_extremum(accumulator: Accumulator) -> bool:
    """Whether an accumulator holds the largest or smallest of floats, which is NaN where one of them is."""
    return accumulator.op in ("max", "min") and accumulator.dtype in ("float32", "float64")


class Positions(Values):
    """Combining values with their positions."""

    def number_of(self, op: str, x: Value, y: Value) -> Value:
        """The larger or smaller operand, whichever where one is NaN."""
        return self.b.fmax_number(x, y) if op == "max" else self.b.fmin_number(x, y)

    def better_of(self, accumulator: Accumulator, state: State, value: Value, position: Affine) -> State:
        """The state after a value at a position."""
        b = self.b
        at = b.splat(self._positions(position, accumulator.index), value.lanes)
        better = self._better(accumulator.op, value, state[0])
        return b.select(better, value, state[0]), b.select(better, at, state[1])

    def _better(self, op: str, x: Value, than: Value) -> Value:
        """Whether x replaces the best so far: strictly better, or the first NaN."""
        b = self.b
        if x.dtype not in FLOATS:
            return b.compare("gt" if op == "argmax" else "lt", x, than)
        # NaN is unordered, so one comparison tells "better or NaN"; nothing replaces NaN.
        return b.and_(b.fcmp("ugt" if op == "argmax" else "ult", x, than), b.fcmp("ord", than, than))

    def best_lane(self, accumulator: Accumulator, state: State) -> State:
        """The best of all lanes; among equals the earlier position wins."""
        b = self.b
        value, at = state
        while value.lanes > 1:
            half = value.lanes // 2
            low, high = range(half), range(half, 2 * half)
            v, w = b.shuffle(value, None, low), b.shuffle(value, None, high)
            i, j = b.shuffle(at, None, low), b.shuffle(at, None, high)
            # Equal includes both being NaN.
            worse = self._better(accumulator.op, v, w)
            better = self._better(accumulator.op, w, v)
            tie = b.not_(b.or_(worse, better))
            take = b.or_(better, b.and_(tie, b.icmp("slt", j, i)))
            value, at = b.select(take, w, v), b.select(take, j, i)
        return value, at

    # ------------------------------------------------------------------ searches
    def search(self, loop: For) -> None:
        """A loop that ends at the first element that holds."""
        combine = _sought(loop)
        b, extent, lanes = self.b, loop.var.extent, loop.lanes
        zero, end = b.const(0, "int64"), self.sizes.value(extent)
        maskable = all(b.target.can_mask(e.dtype) for e in expressions([combine]) if isinstance(e, Load | Lookup))
        if isinstance(extent, int) and (extent == lanes or (extent < lanes and maskable)):
            result = self._last(loop, zero, end)
        elif lanes == 1 or (isinstance(extent, int) and extent % lanes == 0):
            result = self._scan(loop, zero, end, lanes, None)
        else:
            step = b.const(lanes, "int64")
            whole = b.imul(b.sdiv(end, step), step)
            if isinstance(extent, int):
                whole = b.const(extent // lanes * lanes, "int64")

            def rest() -> Value:
                return self._last(loop, whole, end) if maskable else self._scan(loop, whole, end, 1, None)

            result = self._scan(loop, zero, whole, lanes, rest)
        self.states[combine.accumulator] = (result,)

    def _scan(self, loop: For, begin: Value, end: Value, lanes: int, rest: Callable[[], Value] | None) -> Value:
        """The position of the first hit in whole vectors from begin to end; `rest` looks further."""
        b = self.b
        step, none = b.const(lanes, "int64"), b.const(0, "uint64")

        def more(index: Value, bits: Value) -> Value:
            return b.and_(b.icmp("slt", index, end), b.icmp("eq", bits, none))

        def body(index: Value, bits: Value) -> list[Value]:
            return [b.iadd(index, step), self._hits(loop, index, lanes)]

        index, bits = b.repeat(more, body, [begin, none], "search")

        def here() -> list[Value]:
            return [self._place(loop, b.isub(index, step), bits)]

        if rest is None:
            return here()[0]
        beyond = rest
        return b.branch(b.icmp("ne", bits, none), here, lambda: [beyond()], hint="found")[0]

    def _last(self, loop: For, begin: Value, end: Value) -> Value:
        """The position of the first hit in the vector at `begin`, of which the lanes up to `end` count."""
        extent, lanes = loop.var.extent, loop.lanes
        if isinstance(extent, int):
            self.mask = first_lanes(self.b, extent % lanes or lanes, lanes)
        else:
            self.mask = self.b.lane_mask(self.b.isub(end, begin), lanes)
        bits = self._hits(loop, begin, lanes)
        self.mask = None
        return self._place(loop, begin, bits)

    def _place(self, loop: For, begin: Value, bits: Value) -> Value:
        """The position that the lowest of the bits stands for; one is set, as there is an element that holds."""
        position = _sought(loop).position
        assert position is not None
        self.vars[loop.var] = self.b.iadd(begin, self.b.count_trailing_zeros(bits))
        return self._index(position)

    def _hits(self, loop: For, index: Value, lanes: int) -> Value:
        """The lanes that hold, as bits."""
        b = self.b
        self.vars[loop.var] = index
        self.scopes.append({})
        if lanes > 1:
            self.vector, self.lanes = loop.var, lanes
        held = b.splat(self.value(_sought(loop).value), lanes)
        if self.mask is not None:
            held = b.and_(held, self.mask)
        self.vector, self.lanes = None, 1
        self.scopes.pop()
        return b.lane_bits(held)


def _sought(loop: For) -> Combine:
    (combine,) = loop.body
    assert isinstance(combine, Combine)
    return combine
