"""Parallel regions: a loop's range becomes a function of its own, which threads share out or the caller runs alone.

A region calls `void parallel_for(ptr body, ptr context, i64 extent, i64 grain)`, which the module must define. What
that is, is up to who makes the builder: in this process it is the pool that all modules share; a library has a
pool of its own, or asks a function that the program sets; without any the region is plain code in its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from graphkb.codegen.builder import Builder, Value
from graphkb.codegen.target import Target
from graphkb.codegen.thread_pool import POOL_DECLARATION, POOL_SYMBOL, emit_pool, system_of

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
    define_parallel_for(b)
    context = b.alloca("int64", max(1, len(captured)))
    for i, value in enumerate(captured):
        b.store(value, b.gep(context, i, "int64"), align=8)

    def outlined(memory: Value, begin: Value, end: Value) -> None:
        held = [b.load(b.gep(memory, i, "int64"), v.dtype, align=8) for i, v in enumerate(captured)]
        body(held, begin, end)

    name = b.fresh_label("region")
    b.outline(name, [("context", "ptr"), ("begin", "int64"), ("end", "int64")], outlined)
    b.line(f"call void @{_SYMBOL}(ptr @{name}, ptr {context.name}, i64 {extent.name}, i64 {grain.name})")


def define_parallel_for(b: Builder) -> None:
    """Put the function that runs regions into the module, once; what it declares others may declare as well."""
    lines = b.parallel_for.splitlines()
    for line in lines:
        found = re.match(r"declare [^@]*@([\w.]+)\(", line)
        if found:
            b.declare(found[1], line)
    b.declare(_SYMBOL, "\n".join([line for line in lines if not line.startswith("declare ")]))


# ---------------------------------------------------------------------------------------------- who runs the parts
def shared_pool(target: Target) -> str:
    """For modules of this process: the pool is in another module; "" on systems without one."""
    if not system_of(target):
        return ""
    return f"""
@graphkb.limit = internal global i64 1, align 8
{POOL_DECLARATION}ptr, ptr, i64, i64, i64)
define internal void @{_SYMBOL}(ptr %body, ptr %context, i64 %extent, i64 %grain) nounwind {{
  %limit = load atomic i64, ptr @graphkb.limit monotonic, align 8
  call void @{POOL_SYMBOL}(ptr %body, ptr %context, i64 %extent, i64 %grain, i64 %limit)
  ret void
}}
define void @{LIMIT_SYMBOL}(i64 %limit) nounwind {{
  store atomic i64 %limit, ptr @graphkb.limit monotonic, align 8
  ret void
}}
"""


def program_hook(target: Target, prefix: str) -> str:
    """For a library: the program that it is part of sets the function that shares parts out; without it runs alone."""
    align = target.pointer_bits // 8
    return f"""
@graphkb.hook = internal global ptr null, align {align}
define internal void @{_SYMBOL}(ptr %body, ptr %context, i64 %extent, i64 %grain) nounwind {{
  %hook = load atomic ptr, ptr @graphkb.hook acquire, align {align}
  %none = icmp eq ptr %hook, null
  %short = icmp sle i64 %extent, %grain
  %alone = or i1 %none, %short
  br i1 %alone, label %serial, label %share
serial:
  call void %body(ptr %context, i64 0, i64 %extent)
  ret void
share:
  call void %hook(ptr %body, ptr %context, i64 %extent, i64 %grain)
  ret void
}}
define void @{prefix}_set_parallel_for(ptr %hook) nounwind {{
  store atomic ptr %hook, ptr @graphkb.hook release, align {align}
  ret void
}}
"""


def library_pool(target: Target, prefix: str) -> str:
    """For a library: a pool of its own, on as many threads as there are processors until the program says how many."""
    return f"""
{emit_pool(target, linkage="internal", watch_forks=True)}
@graphkb.limit = internal global i64 0, align 8
define internal void @{_SYMBOL}(ptr %body, ptr %context, i64 %extent, i64 %grain) nounwind {{
  %told = load atomic i64, ptr @graphkb.limit monotonic, align 8
  %unknown = icmp slt i64 %told, 1
  br i1 %unknown, label %count, label %share
count:
  %found = call i64 @graphkb.processors()
  store atomic i64 %found, ptr @graphkb.limit monotonic, align 8
  br label %share
share:
  %limit = phi i64 [ %told, %0 ], [ %found, %count ]
  call void @{POOL_SYMBOL}(ptr %body, ptr %context, i64 %extent, i64 %grain, i64 %limit)
  ret void
}}
define void @{prefix}_set_threads(i32 %count) nounwind {{
  %limit = sext i32 %count to i64
  store atomic i64 %limit, ptr @graphkb.limit monotonic, align 8
  ret void
}}
{_PROCESSORS[system_of(target)]}
"""


# How many processors this process may run on; at least 1.
_PROCESSORS = {
    "linux": """
define internal i64 @graphkb.processors() nounwind {
start:
  %set = alloca [16 x i64], align 8
  %status = call i32 @sched_getaffinity(i32 0, i64 128, ptr %set)
  %fine = icmp eq i32 %status, 0
  br i1 %fine, label %sum, label %one
sum:
  %i = phi i64 [ 0, %start ], [ %next, %sum ]
  %total = phi i64 [ 0, %start ], [ %more, %sum ]
  %at = getelementptr i64, ptr %set, i64 %i
  %word = load i64, ptr %at
  %bits = call i64 @llvm.ctpop.i64(i64 %word)
  %more = add i64 %total, %bits
  %next = add i64 %i, 1
  %again = icmp ult i64 %next, 16
  br i1 %again, label %sum, label %end
end:
  %count = call i64 @llvm.umax.i64(i64 %more, i64 1)
  ret i64 %count
one:
  ret i64 1
}
declare i32 @sched_getaffinity(i32, i64, ptr)
declare i64 @llvm.ctpop.i64(i64)
""",
    "darwin": """
define internal i64 @graphkb.processors() nounwind {
  %online = call i64 @sysconf(i32 58)
  %count = call i64 @llvm.smax.i64(i64 %online, i64 1)
  ret i64 %count
}
declare i64 @sysconf(i32)
declare i64 @llvm.smax.i64(i64, i64)
""",
}


def pool_module(target: Target) -> str:
    """The module of the pool that this process's modules share."""
    return f'target triple = "{target.triple}"\n{emit_pool(target)}'


__all__ = [
    "LIMIT_SYMBOL",
    "define_parallel_for",
    "library_pool",
    "parallel_region",
    "pool_module",
    "program_hook",
    "shared_pool",
]
