"""Threads and forks: one function in many threads, functions over shared variables, compiling while others run."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graphkb.codegen.lock import Lock
from graphkb.ir.dims import symbol
from graphkb.ir.graph import Graph
from graphkb.ir.leaves import VariableCell
from graphkb.ir.node import make
from graphkb.ir.op import Op
from graphkb.ops import leaf, reduce, shape
from graphkb.runtime import specializations
from graphkb.runtime.function import Function
from graphkb.runtime.interpreter import evaluate
from graphkb.runtime.state_lock import state_lock

MODES = ("interpret", "auto")
THREADS = 4


def together(work: Callable[[int], Any], count: int = THREADS) -> None:
    """Run `work(0)`, `work(1)` … in threads that start at once; the first error is raised here."""
    barrier = threading.Barrier(count)
    errors: list[BaseException] = []

    def body(index: int) -> None:
        try:
            barrier.wait(30)
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


def filled(value: float, *dims: int) -> np.ndarray[Any, Any]:
    return np.full(dims, value, np.float32)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("after", [0, 1])
def test_one_function_in_many_threads(mode: str, after: int) -> None:
    x = leaf.placeholder((symbol("n"), 3), "float32", "x")
    program = Graph((x,), (x * 2 + 1, reduce.reduce_sum(x, (0, 1))))
    f = Function(program, options={"mode": mode, "dynamic_after": after})

    def work(index: int) -> None:
        for k in range(100):
            n = (index + k) % 5
            double, total = f([filled(index, n, 3)])
            assert (double == 2 * index + 1).all()
            assert double.shape == (n, 3)
            assert total == 3 * n * index

    together(work)
    info = f.cache_info()
    assert info.misses == info.specializations
    if after == 0:
        assert info.specializations == 5
        # Calls that waited for another thread's compilation count as neither.
        assert THREADS * 95 <= info.hits + info.misses <= THREADS * 100
    elif mode != "interpret":
        assert info.dynamic == 1


@pytest.mark.parametrize("mode", MODES)
def test_no_update_is_lost(mode: str) -> None:
    cell = VariableCell(np.zeros(3, np.int64), "count")
    v = leaf.variable(cell)
    f = Function(Graph((), (v,), ((cell, v + 1),)), options={"mode": mode})
    seen: list[list[int]] = [[] for _ in range(THREADS)]

    def work(index: int) -> None:
        for _ in range(200):
            (old,) = f([])
            assert old[0] == old[1] == old[2]
            seen[index].append(int(old[0]))

    together(work)
    assert cell.array.tolist() == [200 * THREADS] * 3
    assert sorted(value for values in seen for value in values) == list(range(200 * THREADS))


@pytest.mark.parametrize("mode", MODES)
def test_readers_see_all_updates_of_a_call_or_none(mode: str) -> None:
    """Two functions swap and rotate three variables; readers always find a permutation."""
    cells = [VariableCell(filled(k, 50), f"v{k}") for k in range(3)]
    a, b, c = (leaf.variable(cell) for cell in cells)
    swap = Function(Graph((), (), ((cells[0], b), (cells[1], a)), "swap"), options={"mode": mode})
    rotate = Function(
        Graph((), (), ((cells[0], b), (cells[1], c), (cells[2], shape.reverse(a, (0,)))), "rotate"),
        options={"mode": mode},
    )
    show = Function(Graph((), (a, b * 1, c), (), "show"), options={"mode": mode})

    def work(index: int) -> None:
        for k in range(150):
            if index == 0:
                swap([])
            elif index == 1:
                rotate([])
            else:
                values = show([]) if k % 2 else evaluate([a, b, c])
                assert all((value == value[0]).all() for value in values)
                assert sorted(float(value[0]) for value in values) == [0, 1, 2]

    together(work)
    assert sorted(float(cell.array[0]) for cell in cells) == [0, 1, 2]


def slow_op(started: threading.Event, go_on: threading.Event) -> Op:
    def numpy(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        started.set()
        assert go_on.wait(30)
        return x.copy()

    return Op("slow", infer=lambda x: x, numpy=numpy)


def test_functions_without_shared_state_run_side_by_side() -> None:
    """Two readers of one variable are inside their runs at the same moment."""
    cell = VariableCell(filled(1, 2), "v")
    events = [threading.Event(), threading.Event()]
    x = leaf.variable(cell)
    functions = [
        Function(Graph((), (make(slow_op(events[k], events[1 - k]), (x,)),)), options={"mode": "interpret"})
        for k in range(2)
    ]
    together(lambda index: functions[index]([]), 2)


def test_a_writer_waits_for_readers() -> None:
    started, go_on = threading.Event(), threading.Event()
    cell = VariableCell(filled(1, 2), "v")
    v = leaf.variable(cell)
    reader = Function(Graph((), (make(slow_op(started, go_on), (v,)) + v,)), options={"mode": "interpret"})
    writer = Function(Graph((), (), ((cell, v * 10),)), options={"mode": "interpret"})
    results = []
    read = threading.Thread(target=lambda: results.append(reader([])[0].tolist()), daemon=True)
    read.start()
    assert started.wait(30)
    write = threading.Thread(target=lambda: writer([]), daemon=True)
    write.start()
    time.sleep(0.05)
    assert cell.array[0] == 1
    go_on.set()
    read.join(30)
    write.join(30)
    assert (results, cell.array.tolist()) == ([[2, 2]], [10, 10])


def test_other_shapes_run_while_one_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads with one new shape wait for one compilation; a third with a known shape does not wait."""
    x = leaf.placeholder((symbol("n"),), "float32", "x")
    f = Function(Graph((x,), (x + 1,)), options={"mode": "interpret"})
    f([filled(1, 2)])
    started, go_on = threading.Event(), threading.Event()
    make_plan = specializations.make_plan
    made = []

    def slow(graph: Graph, options: Any) -> Any:
        made.append(graph)
        started.set()
        assert go_on.wait(30)
        return make_plan(graph, options)

    monkeypatch.setattr(specializations, "make_plan", slow)

    def work(index: int) -> None:
        if index < 2:
            assert f([filled(1, 7)])[0].tolist() == [2] * 7
        else:
            assert started.wait(30)
            assert f([filled(1, 2)])[0].tolist() == [2, 2]
            go_on.set()

    together(work, 3)
    assert len(made) == 1


@pytest.mark.parametrize("mode", MODES)
def test_specializations_come_and_go_under_load(mode: str) -> None:
    x = leaf.placeholder((symbol("n"),), "float32", "x")
    f = Function(Graph((x,), (x * 3,)), options={"mode": mode, "cache_size": 2})

    def work(index: int) -> None:
        for k in range(20):
            n = (7 * index + k) % 6
            assert f([filled(2, n)])[0].tolist() == [6] * n

    together(work, 3)
    assert f.cache_info().specializations <= 2


def in_child(work: Callable[[], Any]) -> int:
    """The exit code of a forked child that runs `work`; 1 for an error, 2 when it hangs."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("mode", MODES)
def test_a_forked_child_goes_on(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fork happens while another thread compiles and a third one updates a variable."""
    cell = VariableCell(np.zeros(2, np.float32), "v")
    v = leaf.variable(cell)
    x = leaf.placeholder((symbol("n"),), "float32", "x")
    f = Function(Graph((x,), (x + 1,), ((cell, v + 1),)), options={"mode": mode})
    f([filled(1, 2)])
    started, go_on, stop = threading.Event(), threading.Event(), threading.Event()
    make_plan = specializations.make_plan

    def slow(graph: Graph, options: Any) -> Any:
        if threading.current_thread() is compiling:
            started.set()
            assert go_on.wait(60)
        return make_plan(graph, options)

    monkeypatch.setattr(specializations, "make_plan", slow)

    def update() -> None:
        while not stop.is_set():
            f([filled(1, 2)])

    def child() -> None:
        assert f([filled(1, 2)])[0].tolist() == [2, 2]
        assert f([filled(1, 7)])[0].tolist() == [2] * 7
        with state_lock.exclusive():
            assert cell.array[0] == cell.array[1]

    compiling = threading.Thread(target=lambda: f([filled(1, 7)]), daemon=True)
    updating = threading.Thread(target=update, daemon=True)
    compiling.start()
    updating.start()
    assert started.wait(30)
    try:
        assert [in_child(child) for _ in range(3)] == [0, 0, 0]
    finally:
        stop.set()
        go_on.set()
        compiling.join(30)
        updating.join(30)
    assert f.cache_info().specializations == 2


@pytest.mark.parametrize("mode", MODES)
def test_errors_in_one_thread_do_not_disturb_others(mode: str) -> None:
    cell = VariableCell(np.zeros((), np.int64), "count")
    v = leaf.variable(cell)
    x = leaf.placeholder((symbol("n"), 2), "float32", "x")
    f = Function(Graph((x,), (x * 1,), ((cell, v + 1),)), options={"mode": mode})

    def work(index: int) -> None:
        for _ in range(50):
            if index % 2:
                with pytest.raises(ValueError, match="x: expected shape"):
                    f([filled(1, 3, 3)])
            else:
                f([filled(1, 3, 2)])

    together(work)
    assert cell.array == 50 * (THREADS // 2)


@pytest.mark.parametrize("mode", MODES)
def test_an_interrupt_leaves_no_half_update_and_no_lock(mode: str) -> None:
    """A signal that arrives anywhere in a call finds all of its variables written, or none, and the lock is free."""
    cells = [VariableCell(np.zeros(3, np.int64), f"v{k}") for k in range(20)]
    f = Function(
        Graph((), (), tuple((cell, leaf.variable(cell) + 1) for cell in cells)),
        options={"mode": mode},
    )
    f([])

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        for k in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.000001 * k)
                while True:
                    f([])
            except KeyboardInterrupt:
                pass
            assert (state_lock._word.read(), state_lock.held()) == (0, Lock.NONE)
            assert len({int(cell.array[0]) for cell in cells}) == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
