"""Timing inside a program: its calls add up the clock ticks that they take, in memory of the module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from graphkb.codegen.builder import Builder, Value

TICKS_SYMBOL = "graphkb_ticks"
"""`ptr graphkb_ticks()`: the address of two words for each call, its ticks and how often it ran."""
NOW_SYMBOL = "graphkb_now"
"""`i64 graphkb_now()`: the clock."""

_MEMORY = "@graphkb.ticks"


class Watch:
    """What a builder is given to write a program that times itself.

    Attributes: `calls`, in the order of their words: the name of the step, and the call.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self._several = False

    @contextmanager
    def several(self) -> Iterator[None]:
        """What is written inside may run on several threads at once."""
        before, self._several = self._several, True
        yield
        self._several = before

    @contextmanager
    def around(self, b: Builder, name: str, call: object) -> Iterator[None]:
        """Time what is written inside; the call may lie within a loop, whose ticks hold its own."""
        slot = len(self.calls)
        self.calls.append((name, call))
        start = _now(b)
        yield
        memory = Value(_MEMORY, "ptr", 1)
        for word, more in enumerate((b.isub(_now(b), start), b.const(1, "int64"))):
            at = b.gep(memory, 2 * slot + word, "int64")
            if self._several:
                b.fresh(f"atomicrmw add ptr {at.name}, i64 {more.name} monotonic", "int64")
            else:
                b.store(b.iadd(b.load(at, "int64"), more), at)

    def finish(self, b: Builder) -> None:
        """Append the words, and the functions that tell where they are and what time it is."""
        b.global_line(f"{_MEMORY} = internal global [{2 * max(1, len(self.calls))} x i64] zeroinitializer, align 64")
        with b.function(TICKS_SYMBOL, [], "ptr"):
            b.ret(Value(_MEMORY, "ptr", 1))
        with b.function(NOW_SYMBOL, [], "int64"):
            b.ret(_now(b))


def _now(b: Builder) -> Value:
    # x86 has the time stamp counter, which runs at one speed; others a counter of their system.
    name = "llvm.readcyclecounter" if b.target.is_x86 else "llvm.readsteadycounter"
    return b.call(name, "int64", 1, [])


__all__ = ["NOW_SYMBOL", "TICKS_SYMBOL", "Watch"]
