"""What the machine can do: multiply-adds and bytes a second, measured with emitted kernels and kept on disk."""

from __future__ import annotations

import ctypes
import hashlib
import json
import threading
import time
from collections.abc import Callable

import numpy as np

from graphkb.ir.leaves import aligned_empty
from graphkb.ir.record import record
from graphkb.runtime.kernel_cache import compile_kernels, find_target, folder_of, machine_key, read_entry, write_entry
from graphkb.runtime.options import Options
from graphkb.runtime.threads import thread_count

_ACCUMULATORS = 12
_STREAM_BYTES = 64 << 20
_SECONDS = 0.03


@record
class Peak:
    """What was measured.

    Attributes:
        flops: float32 operations a second, two for each fused multiply-add.
        bandwidth: bytes a second that are read from memory, in order.
        threads: on which both were measured.
    """

    flops: float
    bandwidth: float
    threads: int


_known: dict[tuple[str, int], Peak] = {}


def machine_peak(options: Options) -> Peak:
    """The peak for the target and the threads of these options: measured once, then kept in the kernel cache."""
    target, threads = find_target(options), thread_count(options)
    known = _known.get((target.name, threads))
    if known is not None:
        return known
    folder, machine = folder_of(options), machine_key()
    key = hashlib.sha256(f"peak 1 {machine} {target} {threads}".encode()).hexdigest()
    data = read_entry(folder, key, options) if machine else None
    try:
        found = Peak(**json.loads(data)) if data is not None else None
    except (ValueError, TypeError):
        found = None
    if found is None:
        found = _measure(options, threads)
        if machine:
            write_entry(folder, key, json.dumps(vars(found)).encode(), options)
    _known[target.name, threads] = found
    return found


def _measure(options: Options, threads: int) -> Peak:
    target = find_target(options)
    lanes = max(1, target.lanes("float32"))
    engine = compile_kernels(_kernels(target.triple, lanes), target, options)
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
    multiply, stream = (prototype(engine.address(name)) for name in ("peak_multiply", "peak_stream"))
    sums = aligned_empty((threads, 64), "float32")
    rounds = 200_000
    flops = _rate(lambda i: multiply(sums[i].ctypes.data, rounds), threads) * rounds * _ACCUMULATORS * lanes * 2
    memory = np.ones((threads, _STREAM_BYTES // threads // 4096 * 1024), np.float32)
    blocks = memory.shape[1] // (8 * lanes)
    read = blocks * 8 * lanes * 4
    bandwidth = _rate(lambda i: stream(memory[i].ctypes.data, blocks), threads) * read
    return Peak(flops, bandwidth, threads)


def _rate(run: Callable[[int], object], threads: int) -> float:
    """How often a second all threads together finish `run(thread)`, at best, by the time that each had a processor."""
    best = 0.0
    end = time.perf_counter() + _SECONDS
    while best == 0.0 or time.perf_counter() < end:
        gate = threading.Barrier(threads)
        rates = [0.0] * threads

        def work(index: int, gate: threading.Barrier = gate, rates: list[float] = rates) -> None:
            gate.wait()
            start = time.thread_time()
            run(index)
            rates[index] = 1 / max(time.thread_time() - start, 1e-9)

        others = [threading.Thread(target=work, args=(i,)) for i in range(1, threads)]
        for thread in others:
            thread.start()
        work(0)
        for thread in others:
            thread.join()
        best = max(best, sum(rates))
    return best


def _kernels(triple: str, lanes: int) -> str:
    """Two loops: multiply-adds in registers, and sums over memory."""
    kind = f"<{lanes} x float>"

    def phis(count: int) -> str:
        return "\n".join(f"  %a{i} = phi {kind} [ zeroinitializer, %start ], [ %b{i}, %loop ]" for i in range(count))

    def total(count: int) -> str:
        lines = [f"  %t0 = fadd {kind} %b0, %b1"]
        lines += [f"  %t{i - 1} = fadd {kind} %t{i - 2}, %b{i}" for i in range(2, count)]
        return "\n".join(lines)

    one = "splat (float 0x3FF0000020000000)"
    multiplied = "\n".join(
        f"  %b{i} = call {kind} @llvm.fmuladd.v{lanes}f32({kind} %a{i}, {kind} {one}, {kind} {one})"
        for i in range(_ACCUMULATORS)
    )
    added = "\n".join(
        f"  %p{i} = getelementptr {kind}, ptr %block, i64 {i}\n"
        f"  %x{i} = load {kind}, ptr %p{i}, align 4\n  %b{i} = fadd {kind} %a{i}, %x{i}"
        for i in range(8)
    )
    return f"""target triple = "{triple}"
declare {kind} @llvm.fmuladd.v{lanes}f32({kind}, {kind}, {kind})
define void @peak_multiply(ptr %out, i64 %n) {{
start:
  br label %loop
loop:
  %i = phi i64 [ 0, %start ], [ %next, %loop ]
{phis(_ACCUMULATORS)}
{multiplied}
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %loop, label %end
end:
{total(_ACCUMULATORS)}
  store {kind} %t{_ACCUMULATORS - 2}, ptr %out, align 4
  ret void
}}
define void @peak_stream(ptr %memory, i64 %n) {{
start:
  br label %loop
loop:
  %i = phi i64 [ 0, %start ], [ %next, %loop ]
{phis(8)}
  %offset = mul i64 %i, {8 * lanes}
  %block = getelementptr float, ptr %memory, i64 %offset
{added}
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %loop, label %end
end:
{total(8)}
  store {kind} %t6, ptr %memory, align 4
  ret void
}}
"""


__all__ = ["Peak", "machine_peak"]
