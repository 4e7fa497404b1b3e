"""Where workers of the thread pool run: LLVM IR that keeps them off the processor of the thread that they work for.

Threads of other libraries that wait busily occupy their processors for milliseconds, so that a system without an idle
one may put a worker beside its own caller: then one of the two always waits for the other. Two things prevent that.
While a worker sleeps, it may be woken on every processor that it is allowed but the caller's, and if it finds itself
there when it begins to work, it leaves. In both cases it may go back as soon as it runs elsewhere.
"""

from __future__ import annotations


def placement(system: str) -> str:
    """The functions, and what they declare, as LLVM IR in the braces of `str.format`.

    `settle`: the caller tells where it runs. `step_aside`: a worker leaves that processor. `narrow`: a worker gives up
    that processor, and keeps what it was allowed in 128 bytes; 0 if it has. `widen`: it is allowed that again.

    Args:
        system: "linux", or another one, which does not let threads choose processors.
    """
    return _LINUX if system == "linux" else _NOWHERE


_LINUX = """
@graphkb.pool.processor = internal global i32 -1, align 128

define internal void @graphkb.pool.settle() nounwind {{
  %here = call i32 @sched_getcpu()
  store atomic i32 %here, ptr @graphkb.pool.processor monotonic, align 4
  ret void
}}

define internal void @graphkb.pool.step_aside() nounwind {{
start:
  %allowed = alloca [128 x i8], align 8
  %here = call i32 @sched_getcpu()
  %taken = load atomic i32, ptr @graphkb.pool.processor monotonic, align 4
  %shared = icmp eq i32 %here, %taken
  br i1 %shared, label %leave, label %stay
leave:
  %narrowed = call i32 @graphkb.pool.narrow(ptr %allowed)
  call void @graphkb.pool.widen(ptr %allowed, i32 %narrowed)
  br label %stay
stay:
  ret void
}}

define internal i32 @graphkb.pool.narrow(ptr %allowed) nounwind {{
start:
  %others = alloca [128 x i8], align 8
  %told = call i32 @sched_getaffinity(i32 0, i64 128, ptr %allowed)
  %fine = icmp eq i32 %told, 0
  %taken = load atomic i32, ptr @graphkb.pool.processor monotonic, align 4
  %listed = icmp ult i32 %taken, 1024
  %able = and i1 %fine, %listed
  br i1 %able, label %remove, label %fail
remove:
  call void @llvm.memcpy.p0.p0.i64(ptr align 8 %others, ptr align 8 %allowed, i64 128, i1 false)
  %place = lshr i32 %taken, 3
  %at = getelementptr i8, ptr %others, i32 %place
  %bits = load i8, ptr %at
  %within = and i32 %taken, 7
  %single = shl i32 1, %within
  %bit = trunc i32 %single to i8
  %mask = xor i8 %bit, -1
  %rest = and i8 %bits, %mask
  store i8 %rest, ptr %at
  %status = call i32 @sched_setaffinity(i32 0, i64 128, ptr %others)
  ret i32 %status
fail:
  ret i32 -1
}}

define internal void @graphkb.pool.widen(ptr %allowed, i32 %narrowed) nounwind {{
start:
  %some = icmp eq i32 %narrowed, 0
  br i1 %some, label %restore, label %end
restore:
  %status = call i32 @sched_setaffinity(i32 0, i64 128, ptr %allowed)
  br label %end
end:
  ret void
}}

declare i32 @sched_getcpu()
declare i32 @sched_getaffinity(i32, i64, ptr)
declare i32 @sched_setaffinity(i32, i64, ptr)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
"""

_NOWHERE = """
define internal void @graphkb.pool.settle() nounwind {{
  ret void
}}

define internal void @graphkb.pool.step_aside() nounwind {{
  ret void
}}

define internal i32 @graphkb.pool.narrow(ptr %allowed) nounwind {{
  ret i32 -1
}}

define internal void @graphkb.pool.widen(ptr %allowed, i32 %narrowed) nounwind {{
  ret void
}}
"""

__all__ = ["placement"]
