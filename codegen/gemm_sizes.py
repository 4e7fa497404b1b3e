"""Sizes inside emitted code: integers stay integers as long as they are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from graphkb.codegen.builder import Builder, Value

# A number of elements, or a truth: known now, or when the code runs.
Size: TypeAlias = int | Value
Truth: TypeAlias = bool | Value


class SizeMath:
    """Arithmetic on sizes and addresses that leaves no instruction behind where the result is known."""

    def __init__(self, b: Builder) -> None:
        self.b = b

    def value(self, x: Size) -> Value:
        return self.b.const(x, "int64") if isinstance(x, int) else x

    def known(self, x: Value) -> Size:
        """The integer that a value is, where it is a constant."""
        return int(x.name) if x.name.isdigit() else x

    def add(self, x: Size, y: Size) -> Size:
        if isinstance(x, int) and isinstance(y, int):
            return x + y
        if x == 0:
            return y
        return x if y == 0 else self.b.iadd(self.value(x), self.value(y))

    def sub(self, x: Size, y: Size) -> Size:
        if isinstance(x, int) and isinstance(y, int):
            return x - y
        return x if y == 0 else self.b.isub(self.value(x), self.value(y))

    def mul(self, x: Size, y: Size) -> Size:
        if isinstance(x, int) and isinstance(y, int):
            return x * y
        if x == 0 or y == 0:
            return 0
        if x == 1:
            return y
        return x if y == 1 else self.b.imul(self.value(x), self.value(y))

    def div(self, x: Size, y: int) -> Size:
        """x // y of a size and a positive constant."""
        if isinstance(x, int):
            return x // y
        return x if y == 1 else self.b.sdiv(x, self.value(y))

    def split(self, x: Size, extents: Sequence[int]) -> list[Size]:
        """The indices along several axes of the element that is number x in row-major order; x is not negative."""
        found: list[Size] = []
        for extent in reversed(extents[1:]):
            whole: Size = x // extent if isinstance(x, int) else self.b.fresh(f"udiv i64 {x.name}, {extent}", "int64")
            found.append(self.sub(x, self.mul(whole, extent)))
            x = whole
        return [x, *reversed(found)]

    def quotient(self, x: Size, y: Size) -> Size:
        """x // y of two sizes, the second positive."""
        if isinstance(y, int):
            return self.div(x, y)
        return self.b.sdiv(self.value(x), y)

    def rem(self, x: Size, y: Size) -> Size:
        """What x // y leaves."""
        return self.sub(x, self.mul(self.quotient(x, y), y))

    def minimum(self, x: Size, y: Size) -> Size:
        if isinstance(x, int) and isinstance(y, int):
            return min(x, y)
        return self.b.minimum(self.value(x), self.value(y))

    def maximum(self, x: Size, y: Size) -> Size:
        if isinstance(x, int) and isinstance(y, int):
            return max(x, y)
        return self.b.maximum(self.value(x), self.value(y))

    def compare(self, order: str, x: Size, y: Size) -> Truth:
        """One of eq, ne, lt, le, gt, ge."""
        if isinstance(x, int) and isinstance(y, int):
            return {"eq": x == y, "ne": x != y, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y}[order]
        return self.b.compare(order, self.value(x), self.value(y))

    def both(self, x: Truth, y: Truth) -> Truth:
        if isinstance(x, bool):
            return y if x else False
        if isinstance(y, bool):
            return x if y else False
        return self.b.and_(x, y)

    def select(self, condition: Truth, x: Size, y: Size) -> Size:
        if isinstance(condition, bool):
            return x if condition else y
        return self.b.select(condition, self.value(x), self.value(y))

    def gep(self, base: Value, index: Size, dtype: str) -> Value:
        """The address of an element."""
        return base if index == 0 else self.b.gep(base, index, dtype)

    def loop(self, begin: Size, end: Size, step: int, body: Callable[[Size], None], hint: str) -> None:
        """`for i in range(begin, end, step): body(i)`; a loop that runs once or never is none."""
        if isinstance(begin, int) and isinstance(end, int):
            if begin >= end:
                return
            if begin + step >= end:
                body(begin)
                return

        def inside(at: Value) -> None:
            body(at)

        self.b.loop(self.value(begin), self.value(end), step, inside, hint=hint)


__all__ = ["Size", "SizeMath", "Truth"]
