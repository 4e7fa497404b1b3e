"""The thread pool: ranges are covered once, by as many threads as allowed, under concurrency, forks and refusals."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from graphkb.codegen.builder import Builder, Value
from graphkb.codegen.engine import emit_object
from graphkb.codegen.target import TARGETS, host_target
from graphkb.codegen.thread_pool import emit_pool, system_of
from graphkb.codegen.threads import parallel_region, shared_pool
from graphkb.runtime import threads
from graphkb.runtime.kernel_cache import compile_kernels
from graphkb.runtime.options import Options

pytestmark = pytest.mark.skipif(not system_of(host_target()), reason="no pool for this system")

ROOT = Path(__file__).resolve().parent.parent
Probe = Callable[..., tuple[np.ndarray, np.ndarray]]


def probe_module(parallel_for: str) -> str:
    """`run(counts, who, extent, grain, pause)`: each index adds 1 to its count, notes its thread, and sleeps."""
    b = Builder(host_target(), parallel_for=parallel_for)

    def visit(held: Sequence[Value], begin: Value, end: Value) -> None:
        counts, who, pause = held

        def element(i: Value) -> None:
            at = b.gep(counts, i, "int64")
            b.store(b.iadd(b.load(at, "int64"), b.const(1, "int64")), at)
            b.store(b.call("pthread_self", "int64", 1, []), b.gep(who, i, "int64"))
            sleep = lambda: b.call("usleep", "int32", 1, [b.cast(pause, "int32")]) and None  # noqa: E731
            b.branch(b.icmp("sgt", pause, b.const(0, "int64")), sleep)

        b.loop(begin, end, 1, element)

    params = [("counts", "ptr"), ("who", "ptr"), ("extent", "int64"), ("grain", "int64"), ("pause", "int64")]
    with b.function("run", params) as (counts, who, extent, grain, pause):
        parallel_region(b, extent, grain, [counts, who, pause], visit)
        b.ret()
    return b.module()


def probe(limit: int, parallel_for: str | None = None) -> Probe:
    """`(counts, who) = probe(limit)(extent, grain, pause)` on at most `limit` threads."""
    text = probe_module(shared_pool(host_target()) if parallel_for is None else parallel_for)
    engine = compile_kernels(text, host_target(), Options(threads=limit, kernel_cache="off"))
    kinds = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64]
    native = ctypes.CFUNCTYPE(None, *kinds)(engine.address("run"))

    def run(extent: int, grain: int = 1, pause: int = 0) -> tuple[np.ndarray, np.ndarray]:
        counts, who = np.zeros(max(extent, 1), np.int64), np.zeros(max(extent, 1), np.int64)
        native(counts.ctypes.data, who.ctypes.data, extent, grain, pause)
        return counts[: max(extent, 0)], who[: max(extent, 0)]

    run.engine = engine  # type: ignore[attr-defined]
    return run


def crew(run: Probe, wanted: int) -> set[int]:
    """The threads that take part in a call, once `wanted` of them do: a busy system may start some too late for one."""
    for _ in range(50):
        counts, who = run(60, 1, 300)
        assert (counts == 1).all()
        if len(set(who)) >= wanted:
            break
    return set(map(int, who))


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_every_index_is_visited_once(limit: int) -> None:
    run = probe(limit)
    for extent in (-3, 0, 1, 2, 3, 7, 64, 1000, 4097):
        for grain in (1, 2, 7, 64, 5000):
            for _ in range(20):
                assert (run(extent, grain)[0] == 1).all(), (extent, grain)


def test_as_many_threads_as_allowed_take_part() -> None:
    me = threading.get_ident()
    assert set(probe(1)(30, 1, 300)[1]) == {me}
    for limit in (2, 3):
        found = crew(probe(limit), limit)
        assert len(found) == limit
        assert me in found


def test_parts_begin_at_multiples_of_the_grain() -> None:
    run = probe(4)
    crew(run, 2)
    _, who = run(1003, 10, 100)
    changes = np.flatnonzero(np.diff(who)) + 1
    assert len(changes) > 0
    assert (changes % 10 == 0).all()


def test_a_single_part_stays_with_the_caller() -> None:
    assert set(probe(4)(10, 10, 100)[1]) == {threading.get_ident()}


def test_no_pool_means_plain_code() -> None:
    text = probe_module("")
    assert "parallel_for" not in text
    counts, who = probe(4, "")(100, 1, 0)
    assert (counts == 1).all()
    assert set(who) == {threading.get_ident()}


def test_huge_extents_are_counted_coarsely() -> None:
    """More parts than words can count: every third thread claims several of them as one."""
    b = Builder(host_target(), parallel_for=shared_pool(host_target()))

    def add(held: Sequence[Value], begin: Value, end: Value) -> None:
        b.fresh(f"atomicrmw add ptr {held[0].name}, i64 {b.isub(end, begin).name} monotonic", "int64")

    with b.function("run", [("total", "ptr"), ("extent", "int64")]) as (total, extent):
        parallel_region(b, extent, b.const(1, "int64"), [total], add)
        b.ret()
    engine = compile_kernels(b.module(), host_target(), Options(threads=3, kernel_cache="off"))
    count, length = ctypes.c_int64(0), 2**40 + 12345
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(engine.address("run"))(ctypes.addressof(count), length)
    assert count.value == length


def test_callers_at_once() -> None:
    """One has the pool, the others work alone; every answer is right."""
    run = probe(3)
    wrong: list[int] = []

    def call() -> None:
        wrong.extend(extent for extent in range(1, 400) if not (run(extent, 3)[0] == 1).all())

    callers = [threading.Thread(target=call) for _ in range(5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_functions_share_the_pool_and_its_threads() -> None:
    first, second = probe(3), probe(2)
    assert first.engine is not second.engine  # type: ignore[attr-defined]
    three = crew(first, 3)
    workers = threads.started_workers()
    assert workers >= 2
    assert crew(second, 2) <= three
    assert threads.started_workers() == workers


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A new process that has `probe` at hand."""
    head = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\nfrom test_thread_pool import *\n"
    environ = {**os.environ, **environment}
    command = [sys.executable, "-c", head + textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ, check=False)


def test_a_forked_child_has_a_pool_of_its_own() -> None:
    done = python("""
        import signal
        run = probe(3)
        assert len(crew(run, 3)) == 3
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            assert threads.started_workers() == 0
            assert len(crew(run, 3)) == 3
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert len(crew(run, 3)) == 3
        print("fine")
        """)
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_a_fork_in_the_middle_of_a_region() -> None:
    done = python("""
        import signal
        run = probe(3)
        run(60, 1, 300)
        busy = threading.Thread(target=run, args=(400, 1, 1000))
        busy.start()
        import time; time.sleep(0.05)
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            os._exit(7 if len(crew(run, 3)) == 3 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        busy.join()
        print("fine")
        """)
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_the_process_ends_while_threads_work() -> None:
    done = python("""
        import time
        run = probe(3)
        threading.Thread(target=run, args=(10000, 1, 1000), daemon=True).start()
        time.sleep(0.05)
        print("end", flush=True)
        """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_threads_that_cannot_be_started_are_done_without() -> None:
    done = python("""
        import resource
        run = probe(200)
        used = len(os.listdir("/proc/self/task"))
        # The stack of a thread no longer fits: the system refuses to start it.
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 2**20, resource.RLIM_INFINITY))
        counts, who = run(400, 1, 10)
        assert (counts == 1).all()
        print("fine", len(set(who)) < 200)
        """)
    assert (done.stdout, done.stderr) == ("fine True\n", "")


def test_workers_take_no_signals() -> None:
    """A signal to the process goes to a thread that lets it in: Python's own."""
    done = python("""
        import signal
        run = probe(3)
        before = set(os.listdir("/proc/self/task"))
        run(60, 1, 300)
        blocked = set()
        for task in set(os.listdir("/proc/self/task")) - before:
            lines = open(f"/proc/self/task/{task}/status").read().splitlines()
            blocked |= {next(line.split()[1] for line in lines if line.startswith("SigBlk"))}
        (mask,) = blocked
        mask = int(mask, 16)
        named = {s for s in signal.Signals if mask >> (s - 1) & 1}
        assert {signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD, signal.SIGUSR1} <= named
        assert not {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL} & named
        print("fine")
        """)
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_idle_workers_sleep() -> None:
    done = python("""
        import time
        run = probe(4)
        run(60, 1, 300)
        time.sleep(0.2)
        before = time.process_time()
        time.sleep(1.0)
        print(time.process_time() - before < 0.1)
        """)
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads choose processors on Linux only")
def test_workers_are_woken_away_from_their_caller() -> None:
    """Asleep they are allowed all processors but the caller's, if there is another, and awake all of them."""
    done = python("""
        import time
        allowed = os.sched_getaffinity(0)
        run = probe(2)
        before = set(os.listdir("/proc/self/task"))
        run(60, 1, 300)
        time.sleep(0.2)
        (worker,) = [int(task) for task in set(os.listdir("/proc/self/task")) - before]
        asleep = os.sched_getaffinity(worker)
        assert asleep <= allowed and len(asleep) == max(1, len(allowed) - 1), (asleep, allowed)
        working = threading.Thread(target=run, args=(400, 1, 1000))
        working.start()
        time.sleep(0.1)
        awake = os.sched_getaffinity(worker)
        working.join()
        print(awake == allowed)
        """)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_workers_round_and_flush_as_their_caller() -> None:
    """Denormals stay as they are, or become zeros, in every part alike."""
    target = host_target()
    if not target.is_x86:
        pytest.skip("the control register is named by its x86 name")
    done = python("""
        target = host_target()
        b = Builder(target, parallel_for=shared_pool(target))
        def halve(held, begin, end):
            def element(i):
                at = b.gep(held[0], i, "float32")
                b.store(b.mul(b.load(at, "float32"), b.const(0.5, "float32")), at)
                b.call("usleep", "int32", 1, [b.const(200, "int32")])
            b.loop(begin, end, 1, element)
        with b.function("run", [("x", "ptr"), ("n", "int64"), ("control", "ptr")]) as (x, n, control):
            b.call_void("llvm.x86.sse.ldmxcsr", [control])
            parallel_region(b, n, b.const(1, "int64"), [x], halve)
            b.ret()
        engine = compile_kernels(b.module(), target, Options(threads=3, kernel_cache="off"))
        run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)(engine.address("run"))
        for bits, zeros in ((0x1F80, False), (0x9F80, True), (0x1F80, False)):
            x = np.full(60, 1000, np.int32).view(np.float32)
            control = ctypes.c_int32(bits)
            run(x.ctypes.data, 60, ctypes.addressof(control))
            assert ((x.view(np.int32) == 0).all() if zeros else (x.view(np.int32) != 0).all()), (bits, x)
        print("fine")
        """)
    assert (done.stdout, done.stderr) == ("fine\n", "")


@pytest.mark.parametrize("name", [name for name in TARGETS if system_of(TARGETS[name])])
def test_there_is_a_pool_for_every_target_with_pthreads(name: str) -> None:
    target = TARGETS[name]
    text = f'target triple = "{target.triple}"\n{emit_pool(target, watch_forks=True)}'
    assert emit_object(text, target)[:4] == b"\x7fELF"


def test_no_pool_without_pthreads() -> None:
    assert system_of(TARGETS["wasm32"]) == ""
    assert shared_pool(TARGETS["wasm32"]) == ""
    with pytest.raises(ValueError, match="there are no pthreads for wasm32"):
        emit_pool(TARGETS["wasm32"])


@pytest.mark.skipif(not host_target().is_x86, reason="other machines link with LLVM")
def test_a_second_process_loads_no_llvm(tmp_path: Path) -> None:
    code = f"""
        from graphkb import backend as K
        from graphkb.runtime.options import options
        with options(kernel_cache={str(tmp_path)!r}, threads=2):
            x = K.placeholder((None,))
            f = K.function([x], [K.exp(x)])
        y = f([np.zeros(1_000_000, np.float32)])[0]
        print((y == 1).all(), threads.started_workers(), "llvmlite" in sys.modules)
        """
    code = textwrap.dedent(code)
    head = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport numpy as np\n"
    head += "from graphkb.runtime import threads\n"
    answers = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", head + code], capture_output=True, text=True, check=False)
        answers.append((done.stdout, done.stderr))
    assert answers == [("True 1 True\n", ""), ("True 1 False\n", "")]
