"""The thread pool: LLVM IR of one function that shares a loop out among threads, on libc's pthreads and atomics.

    void parallel_for(void (*body)(void *context, int64 begin, int64 end), void *context,
                      int64 extent, int64 grain, int64 limit)

calls `body` for ranges that cover 0 <= i < extent once, on at most `limit` threads, and returns when all are done.
Ranges begin at multiples of `grain`. The caller works as well, so nothing ever waits for a thread to start. Whoever
finds the pool taken by another thread, or calls from inside a body, does all the work alone.

The extent is cut into parts of `grain`, and each thread of the crew has a word with its own share of them: the next one
in the upper half, the end in the lower. Everyone claims from the front of its own word first, then from the others', a
quarter of what is left at a time. A claim exchanges the whole word, and the job is read after it: so whoever
claims, however late, does what the words say now, and no thread can do a part of a job that has ended.

Workers watch a counter of jobs for about a tenth of a millisecond, then they sleep: on a busy machine soon, for a
thread that was woken runs sooner than one that was interrupted. They are woken when there is enough to do. Workers take
no signals, and keep away from their caller's processor (`thread_placement.py`).
"""

from __future__ import annotations

from graphkb.codegen.target import Target
from graphkb.codegen.thread_placement import placement
from graphkb.codegen.thread_workers import WORKERS

POOL_SYMBOL = "graphkb_parallel_for"
POOL_DECLARATION = f"declare void @{POOL_SYMBOL}("
"""Stands in the text of every module that uses the pool of another."""

RESET_SYMBOL = "graphkb_pool_reset"
WORKERS_SYMBOL = "graphkb_pool_workers"

MOST_THREADS = 256
"""Threads of one job at most, its caller among them."""

# Looks at a counter between two at the clock, or between a caller's offers to give way to other threads, and before the
# first of these.
_LOOKS = 64
_FIRST_LOOKS = 1024
# Nanoseconds of idleness after which a worker sleeps, usually and for a while after an interruption. Where so many pass
# from one look at the clock to the next, another thread has run.
_WATCH, _GLANCE, _WHILE, _INTERRUPTED = 100_000, 10_000, 50_000_000, 50_000
# Parts, each worth some microseconds, that pay for waking who sleeps.
_WORTH_WAKING = 8
# Sizes of pthread_mutex_t and pthread_cond_t are at most these everywhere.
_MUTEX_BYTES = _CONDITION_BYTES = 64

# SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV: a thread gets those for what it does itself.
_FAULTS = {"linux": (4, 5, 7, 8, 11), "darwin": (4, 5, 10, 8, 11)}
_SIG_SETMASK = {"linux": 2, "darwin": 3}
_CLOCK_MONOTONIC = {"linux": 1, "darwin": 6}


def system_of(target: Target) -> str:
    """The system whose pthreads a target has: "linux", "darwin", or "" where there is no pool."""
    if "linux" in target.triple:
        return "linux"
    return "darwin" if "darwin" in target.triple or "macos" in target.triple else ""


def emit_pool(target: Target, linkage: str = "", watch_forks: bool = False) -> str:
    """The functions of the pool and its state, as LLVM IR without the line that names the target.

    Args:
        target: the machine and system; `system_of` must know it.
        linkage: of the three functions: "" lets other modules call them.
        watch_forks: let libc call `graphkb_pool_reset` in a forked child; else who embeds the pool has to.
    """
    system = system_of(target)
    if not system:
        raise ValueError(f"thread pool: there are no pthreads for {target.triple}")
    pause, declare_pause = _pause(target)
    keep, adopt, declare_float = _float_state(target)
    faults = "\n".join(f"  %fault.{number} = call i32 @sigdelset(ptr %all, i32 {number})" for number in _FAULTS[system])
    watch = "  %watched = call i32 @pthread_atfork(ptr null, ptr null, ptr @graphkb_pool_reset)" if watch_forks else ""
    declare_watch = "declare i32 @pthread_atfork(ptr, ptr, ptr)" if watch_forks else ""
    return (_SHARE + WORKERS + placement(system) + _DECLARATIONS).format(
        linkage=f"{linkage} " if linkage else "",
        most=MOST_THREADS,
        looks=_LOOKS - 1,
        first=_FIRST_LOOKS,
        watching=_WATCH,
        glancing=_GLANCE,
        rough=_WHILE,
        lost=_INTERRUPTED,
        clock=_CLOCK_MONOTONIC[system],
        worth=_WORTH_WAKING,
        mutex=_MUTEX_BYTES,
        condition=_CONDITION_BYTES,
        set_mask=_SIG_SETMASK[system],
        faults=faults,
        pause=pause,
        keep=keep,
        adopt=adopt,
        watch_forks=watch,
        declared="\n".join([declare_pause, declare_float, declare_watch]),
    )


def _pause(target: Target) -> tuple[str, str]:
    """The instruction that tells the processor that a thread only waits, and its declaration."""
    if target.is_x86:
        return "  call void @llvm.x86.sse2.pause()", "declare void @llvm.x86.sse2.pause()"
    if target.triple.startswith(("aarch64", "arm64")):
        return "  call void @llvm.aarch64.hint(i32 1)", "declare void @llvm.aarch64.hint(i32)"
    return "", ""


def _float_state(target: Target) -> tuple[str, str, str]:
    """Keeping the caller's rounding and treatment of denormals for a job, adopting it, and declarations."""
    if target.is_x86:
        return (
            "  call void @llvm.x86.sse.stmxcsr(ptr @graphkb.pool.float)",
            "  call void @llvm.x86.sse.ldmxcsr(ptr @graphkb.pool.float)",
            "declare void @llvm.x86.sse.stmxcsr(ptr)\ndeclare void @llvm.x86.sse.ldmxcsr(ptr)",
        )
    if target.triple.startswith(("aarch64", "arm64")):
        return (
            "  %float = call i64 @llvm.aarch64.get.fpcr()\n  store i64 %float, ptr @graphkb.pool.float",
            "  %float = load i64, ptr @graphkb.pool.float\n  call void @llvm.aarch64.set.fpcr(i64 %float)",
            "declare i64 @llvm.aarch64.get.fpcr()\ndeclare void @llvm.aarch64.set.fpcr(i64)",
        )
    return "", "", ""


# What different threads write to lies in cache lines, or pairs of them, of its own.
_SHARE = """
%graphkb.bed = type {{ [{mutex} x i8], [{condition} x i8], i64, [56 x i8] }}
@graphkb.pool.busy = internal global i64 0, align 128
@graphkb.pool.jobs = internal global i64 0, align 128
@graphkb.pool.pending = internal global i64 0, align 128
@graphkb.pool.sleepers = internal global i64 0, align 128
@graphkb.pool.body = internal global ptr null, align 128
@graphkb.pool.context = internal global ptr null
@graphkb.pool.extent = internal global i64 0
@graphkb.pool.share = internal global i64 0
@graphkb.pool.crew = internal global i64 0
@graphkb.pool.float = internal global i64 0
@graphkb.pool.workers = internal global i64 0, align 128
@graphkb.pool.most = internal global i64 {most}
@graphkb.pool.credit = internal global i64 0
@graphkb.pool.watched = internal global i64 0
@graphkb.pool.parts = internal global [{most} x [16 x i64]] zeroinitializer, align 128
@graphkb.pool.beds = internal global [{most} x %graphkb.bed] zeroinitializer, align 64

define {linkage}void @graphkb_parallel_for(ptr %body, ptr %context, i64 %extent, i64 %grain, i64 %limit) nounwind {{
start:
  %short = icmp sle i64 %extent, %grain
  %single = icmp slt i64 %limit, 2
  %alone = or i1 %short, %single
  br i1 %alone, label %serial, label %ask

ask:
  %seen = load atomic i64, ptr @graphkb.pool.busy monotonic, align 8
  %occupied = icmp ne i64 %seen, 0
  br i1 %occupied, label %serial, label %take

take:
  %taken = cmpxchg ptr @graphkb.pool.busy, i64 0, i64 1 acquire monotonic
  %ours = extractvalue {{ i64, i1 }} %taken, 1
  br i1 %ours, label %plan, label %serial

serial:
  call void %body(ptr %context, i64 0, i64 %extent)
  ret void

plan:
  ; Parts are counted in 31 bits: where there would be more, each is a multiple of the grain.
  %last = sub i64 %extent, 1
  %many = udiv i64 %last, %grain
  %excess = lshr i64 %many, 30
  %multiple = add i64 %excess, 1
  %share = mul i64 %grain, %multiple
  %last.part = udiv i64 %last, %share
  %parts = add i64 %last.part, 1
  %few = call i64 @llvm.umin.i64(i64 %limit, i64 %parts)
  %most = load i64, ptr @graphkb.pool.most
  %wish = call i64 @llvm.umin.i64(i64 %few, i64 %most)
  %workers = load i64, ptr @graphkb.pool.workers
  %threads = add i64 %workers, 1
  %credit.before = load i64, ptr @graphkb.pool.credit
  %credit = add i64 %credit.before, %parts
  store i64 %credit, ptr @graphkb.pool.credit
  %worth = icmp uge i64 %credit, {worth}
  %lacking = icmp ult i64 %threads, %wish
  %hire = and i1 %worth, %lacking
  br i1 %hire, label %grow, label %gather

grow:
  %grown = call i64 @graphkb.pool.grow(i64 %wish)
  %more = add i64 %grown, 1
  br label %gather

gather:
  %able = phi i64 [ %threads, %plan ], [ %more, %grow ]
  %crew = call i64 @llvm.umin.i64(i64 %wish, i64 %able)
  %none = icmp ult i64 %crew, 2
  br i1 %none, label %decline, label %publish

decline:
  store atomic i64 0, ptr @graphkb.pool.busy release, align 8
  br label %serial

publish:
  store ptr %body, ptr @graphkb.pool.body
  store ptr %context, ptr @graphkb.pool.context
  store i64 %extent, ptr @graphkb.pool.extent
  store i64 %share, ptr @graphkb.pool.share
  store atomic i64 %crew, ptr @graphkb.pool.crew monotonic, align 8
  call void @graphkb.pool.settle()
{keep}
  store atomic i64 %parts, ptr @graphkb.pool.pending monotonic, align 8
  br label %deal

deal:
  %member = phi i64 [ 0, %publish ], [ %following, %deal ]
  %from = phi i64 [ 0, %publish ], [ %until, %deal ]
  %following = add i64 %member, 1
  %scaled = mul i64 %following, %parts
  %until = udiv i64 %scaled, %crew
  %upper = shl i64 %from, 32
  %own = or i64 %upper, %until
  %own.at = getelementptr [16 x i64], ptr @graphkb.pool.parts, i64 %member
  store atomic i64 %own, ptr %own.at release, align 8
  %dealt = icmp eq i64 %following, %crew
  br i1 %dealt, label %announce, label %deal

announce:
  %job = atomicrmw add ptr @graphkb.pool.jobs, i64 1 seq_cst
  %sleepers = load atomic i64, ptr @graphkb.pool.sleepers seq_cst, align 8
  %awake = icmp eq i64 %sleepers, 0
  br i1 %awake, label %forget, label %consider

forget:
  store i64 0, ptr @graphkb.pool.credit
  br label %lead

consider:
  br i1 %worth, label %wake, label %lead

wake:
  store i64 0, ptr @graphkb.pool.credit
  call void @graphkb.pool.wake(i64 %crew)
  br label %lead

lead:
  call void @graphkb.pool.work(i64 0, i64 %crew)
  br label %wait

wait:
  %looks = phi i64 [ 1, %lead ], [ %looks.next, %look ]
  %left = load atomic i64, ptr @graphkb.pool.pending acquire, align 8
  %done = icmp eq i64 %left, 0
  br i1 %done, label %leave, label %linger

linger:
{pause}
  %rest = and i64 %looks, {looks}
  %turn = icmp eq i64 %rest, 0
  %long = icmp uge i64 %looks, {first}
  %tired = and i1 %turn, %long
  br i1 %tired, label %offer, label %look

offer:
  %offered = call i32 @sched_yield()
  br label %look

look:
  %looks.next = add i64 %looks, 1
  br label %wait

leave:
  store atomic i64 0, ptr @graphkb.pool.busy release, align 8
  ret void
}}

; Claim parts and do them until all words are used up, beginning with the one of thread `self`.
define internal void @graphkb.pool.work(i64 %self, i64 %crew) nounwind {{
start:
  br label %turn

turn:
  %k = phi i64 [ 0, %start ], [ %k.next, %empty ]
  %sum = add i64 %self, %k
  %over = icmp uge i64 %sum, %crew
  %wrapped = sub i64 %sum, %crew
  %whose = select i1 %over, i64 %wrapped, i64 %sum
  %at = getelementptr [16 x i64], ptr @graphkb.pool.parts, i64 %whose
  br label %look

look:
  %word = load atomic i64, ptr %at monotonic, align 8
  %next = lshr i64 %word, 32
  %end = and i64 %word, 4294967295
  %left = sub i64 %end, %next
  %some = icmp sgt i64 %left, 0
  br i1 %some, label %claim, label %empty

claim:
  %quarter = lshr i64 %left, 2
  %count = call i64 @llvm.umax.i64(i64 %quarter, i64 1)
  %step = shl i64 %count, 32
  %rest = add i64 %word, %step
  %exchanged = cmpxchg ptr %at, i64 %word, i64 %rest acquire monotonic
  %claimed = extractvalue {{ i64, i1 }} %exchanged, 1
  br i1 %claimed, label %run, label %look

run:
{adopt}
  %body = load ptr, ptr @graphkb.pool.body
  %context = load ptr, ptr @graphkb.pool.context
  %extent = load i64, ptr @graphkb.pool.extent
  %share = load i64, ptr @graphkb.pool.share
  %begin = mul i64 %next, %share
  %beyond = add i64 %next, %count
  %stop = mul i64 %beyond, %share
  %until = call i64 @llvm.smin.i64(i64 %stop, i64 %extent)
  call void %body(ptr %context, i64 %begin, i64 %until)
  %before = atomicrmw sub ptr @graphkb.pool.pending, i64 %count release
  br label %look

empty:
  %k.next = add i64 %k, 1
  %all = icmp uge i64 %k.next, %crew
  br i1 %all, label %stop.here, label %turn

stop.here:
  ret void
}}

"""

_DECLARATIONS = """\
declare i64 @llvm.umin.i64(i64, i64)
declare i64 @llvm.umax.i64(i64, i64)
declare i64 @llvm.smin.i64(i64, i64)
declare i32 @sched_yield()
declare i32 @clock_gettime(i32, ptr)
declare i32 @sigfillset(ptr)
declare i32 @sigdelset(ptr, i32)
declare i32 @pthread_sigmask(i32, ptr, ptr)
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_detach(i64)
declare i32 @pthread_mutex_init(ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_init(ptr, ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_signal(ptr)
{declared}
"""
