"""Parallel regions: a loop's range becomes a function of its own, which threads share out or the caller runs alone.

A region calls `void parallel_for(ptr body, ptr context, i64 extent, i64 grain)`, which the module must define. What
that is, is up to who makes the builder: in this process it is the pool that all modules share; a library has a
pool of its own, or asks a function that the program sets; without any the region is plain code in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphkb.codegen.builder import Builder, Value
from graphkb.codegen.target import Target
from graphkb.codegen.thread_pool import POOL_SYMBOL, emit_pool, system_of

LIMIT_SYMBOL = "graphkb_set_threads"
"""`void graphkb_set_threads(i64)` of a module with regions: how many threads they may take; 1 until it is called."""

_SYMBOL = "parallel_for"

Body = Callable[[Sequence[Value], Value, Value], None]


def parallel_region(b: Builder, extent: Value, grain: Value, captured: Sequence[Value], body: Body) -> None:
    """Run `body` over parts of 0 <= i < extent that cover it, perhaps on several threads at once.

    What it computes must not depend on how the range is cut. Where an order of operations could show (sums), let each
    index stand for a block of fixed size.

    Args:
        b: inside a function; afterwards what follows the region can be written there.
        extent: int64; nothing runs where it is not positive.
        grain: int64, at least 1: parts begin at its multiples. Choose it so that one part takes about 5 us.
        captured: scalars and addresses of the open function that the body needs.
        body: writes `body(captured, begin, end)`, perhaps in another function: of all values at hand it may use only
            those that it is given, and constants.
    """
    zero = b.const(0, "int64")
    if not b.parallel_for:
        body(captured, zero, extent)
        return
    b.declare(_SYMBOL, b.parallel_for)
    context = b.alloca("int64", max(1, len(captured)))
    for i, value in enumerate(captured):
        b.store(value, b.gep(context, i, "int64"), align=8)

    def outlined(memory: Value, begin: Value, end: Value) -> None:
        held = [b.load(b.gep(memory, i, "int64"), v.dtype, align=8) for i, v in enumerate(captured)]
        body(held, begin, end)

    name = b.fresh_label("region")
    b.outline(name, [("context", "ptr"), ("begin", "int64"), ("end", "int64")], outlined)
    b.line(f"call void @{_SYMBOL}(ptr @{name}, ptr {context.name}, i64 {extent.name}, i64 {grain.name})")


# ---------------------------------------------------------------------------------------------- who runs the parts
def shared_pool(target: Target) -> str:
    """For modules of this process: the pool is in another module; "" on systems without one."""
    if not system_of(target):
        return ""
    return f"""
@threads.limit = internal global i64 1, align 8
declare void @{POOL_SYMBOL}(ptr, ptr, i64, i64, i64)
define internal void @{_SYMBOL}(ptr %body, ptr %context, i64 %extent, i64 %grain) nounwind {{
  %limit = load atomic i64, ptr @threads.limit monotonic, align 8
  call void @{POOL_SYMBOL}(ptr %body, ptr %context, i64 %extent, i64 %grain, i64 %limit)
  ret void
}}
define void @{LIMIT_SYMBOL}(i64 %limit) nounwind {{
  store atomic i64 %limit, ptr @threads.limit monotonic, align 8
  ret void
}}
"""


def pool_module(target: Target) -> str:
    """The module of the pool that this process's modules share."""
    return f'target triple = "{target.triple}"\n{emit_pool(target)}'


__all__ = ["LIMIT_SYMBOL", "parallel_region", "pool_module", "shared_pool"]
