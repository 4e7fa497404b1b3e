"""The native call entry under threads, forks, garbage collection and the end of the process."""

import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import numpy as np
import pytest
from native_runs import F4, GOOD, SCALAR, SLOW, engine, is_slow, slow, spec_of

from graphkb.codegen.lock import Lock
from graphkb.runtime.native_call import CallSpec, NativeEntry, available, run_context, state_lock

pytestmark = pytest.mark.skipif(not available()[0], reason=available()[1])


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the memory size from /proc")
def test_memory_stays_flat():
    big = ("float32", (64, 1024))
    x = np.zeros((64, 1024), np.float32)

    def use():
        for _ in range(300):
            entry = NativeEntry(slow)
            entry.add(spec_of("nothing", (big,), (big,), workspace_bytes=10_000))
            entry.callable([x])
            entry.clear()
            entry.add(spec_of("nothing", (big,), (big,)))
            entry.callable([x])

    use()
    before = resident()
    for _ in range(3):
        use()
    assert resident() - before < 2_000_000


def test_keepalive_ends_with_the_callable():
    class Owner:
        pass

    owner = Owner()
    gone = weakref.ref(owner)
    entry = NativeEntry(slow)
    entry.add(CallSpec((F4, F4), (F4,), engine().address("add4"), keepalive=owner))
    call = entry.callable
    del owner, entry
    gc.collect()
    assert gone() is not None
    np.testing.assert_array_equal(call([GOOD, GOOD])[0], 2 * GOOD)
    del call
    assert gone() is None


class Function:
    """As `K.function` objects are made: a call finds the built-in in the instance's slot."""

    __slots__ = ("__call__", "__weakref__", "entry")

    def __init__(self, spec):
        self.entry = NativeEntry(self.slow)
        self.entry.add(spec)
        self.__call__ = self.entry.callable

    def slow(self, *args, **kwargs):
        return ("slow", args, kwargs)


def test_a_class_with_a_call_slot_and_a_cycle_is_collected():
    f = Function(spec_of("add4", (F4, F4), (F4,)))
    np.testing.assert_array_equal(f([GOOD, GOOD])[0], 2 * GOOD)
    assert is_slow(f(3, a=4))
    gone = weakref.ref(f)
    del f
    gc.collect()
    assert gone() is None


def test_a_finalizer_in_the_same_cycle_may_still_call():
    answers = []

    class Last(Function):
        __slots__ = ()

        def __del__(self):
            answers.append(self([GOOD, GOOD]))

    Last(spec_of("add4", (F4, F4), (F4,)))
    gc.collect()
    assert len(answers) == 1


def run_threads(n, work):
    errors = []

    def guarded(k):
        try:
            work(k)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(k,)) for k in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("copies", [1, 3])
def test_threads_get_right_answers_and_busy_calls_take_the_slow_path(copies):
    spec = spec_of("spin", (SCALAR,), (SCALAR,), workspace_bytes=8, release_gil=True)
    slow_calls = []

    def busy(inputs):
        slow_calls.append(1)
        return run_context(spec, inputs)

    entry = NativeEntry(busy)
    entry.add(spec, copies=copies)
    barrier = threading.Barrier(8)

    def work(k):
        barrier.wait()
        for step in range(40):
            n = 20_000 + 100 * k + step
            assert entry.callable([np.array(n)])[0] == n

    run_threads(8, work)
    assert len(slow_calls) < 320


class Gate:
    """A call of `gate` in a thread of its own that has begun and ends when `open` is called."""

    def __init__(self, call_slow=slow, inputs=None, lock="none"):
        self.word = np.zeros(2, np.int64)
        bound = (self.word.ctypes.data,)
        options = {"bound": bound, "workspace_bytes": 1 << 16, "release_gil": True, "lock": lock}
        self.spec = spec_of("gate", (SCALAR,), (SCALAR,), **options)
        self.entry = NativeEntry(call_slow)
        self.entry.add(self.spec)
        self.answers = []
        self.inputs = [np.array(7)] if inputs is None else inputs
        self.thread = threading.Thread(target=self.work, args=(self.entry.callable,))
        self.thread.start()
        while not self.word[1]:
            time.sleep(0)

    def work(self, call):
        self.answers.append(call(self.inputs))

    def open(self):
        self.word[0] = 1
        self.thread.join()
        return self.answers[0]


def test_a_busy_specialization_is_passed_over():
    gate = Gate()
    assert is_slow(gate.entry.callable([np.array(1)]))
    gate.entry.add(spec_of("spin", (SCALAR,), (SCALAR,), workspace_bytes=8))
    assert gate.entry.callable([np.array(5)]) == [5]
    assert gate.open() == [7]


@pytest.mark.parametrize("lock", ["shared", "exclusive"])
def test_a_running_call_holds_the_state_lock(lock):
    gate = Gate(lock=lock)
    assert not state_lock.acquire(Lock.EXCLUSIVE, patience=0.01)
    assert state_lock.acquire(Lock.SHARED, patience=0.01) == (lock == "shared")
    if lock == "shared":
        state_lock.release()
    other = NativeEntry(slow)
    other.add(spec_of("nothing", (), (), lock="shared"))
    assert is_slow(other.callable([])) == (lock == "exclusive")
    gate.open()
    assert state_lock.acquire(Lock.EXCLUSIVE, patience=10)
    state_lock.release()
    assert other.callable([]) == []


def test_exclusive_calls_never_overlap():
    word = np.zeros(1, np.int64)
    bound = (word.ctypes.data,)
    spec = spec_of("tick", (SCALAR,), (SCALAR,), bound=bound, lock="exclusive", release_gil=True)
    entries = [NativeEntry(lambda inputs: run_context(spec, inputs)) for _ in range(4)]
    for entry in entries:
        entry.add(spec)

    def work(k):
        for step in range(60):
            if (step + k) % 5:
                entries[k % 4].callable([np.array(3000)])
            else:
                with state_lock.exclusive():
                    before = int(word[0])
                    run_context(spec, [np.array(3000)])
                    word[0] = before + 1

    run_threads(8, work)
    assert word[0] == 8 * 60


def test_readers_share_and_a_writer_gets_in():
    spec = spec_of("spin", (SCALAR,), (SCALAR,), workspace_bytes=8, lock="shared", release_gil=True)
    stop = threading.Event()
    natives = []

    def read(_):
        entry = NativeEntry(lambda inputs: run_context(spec, inputs))
        entry.add(spec)
        while not stop.is_set():
            assert entry.callable([np.array(50_000)])[0] == 50_000
            natives.append(1)

    def write():
        while len(natives) < 30:
            time.sleep(0)
        for _ in range(30):
            with state_lock.exclusive():
                pass
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    run_threads(3, read)
    writer.join()
    assert natives


def test_state_held_by_python_sends_calls_to_the_slow_path():
    word = np.zeros(1, np.int64)
    entries = {}
    for lock in ("none", "shared", "exclusive"):
        entries[lock] = NativeEntry(slow)
        bound = (word.ctypes.data,)
        entries[lock].add(spec_of("tick", (SCALAR,), (SCALAR,), bound=bound, lock=lock))

    def native():
        return [not is_slow(entry.callable([np.array(1)])) for entry in entries.values()]

    assert native() == [True, True, True]
    with state_lock.shared():
        assert native() == [True, True, False]
        with state_lock.shared():
            assert native() == [True, True, False]
        assert native() == [True, True, False]
    with state_lock.exclusive():
        assert native() == [True, False, False]
        with state_lock.shared(), state_lock.exclusive():
            assert native() == [True, False, False]
    assert native() == [True, True, True]
    assert word[0] == 14


def test_clearing_while_running_is_safe():
    spec = spec_of("spin", (SCALAR,), (SCALAR,), workspace_bytes=1 << 16, release_gil=True)
    entry = NativeEntry(lambda inputs: run_context(spec, inputs))
    stop = threading.Event()

    def work(k):
        if k == 0:
            for _ in range(300):
                entry.add(spec)
                entry.clear()
            stop.set()
        while not stop.is_set():
            assert entry.callable([np.array(30_000)])[0] == 30_000

    run_threads(4, work)


def test_dropping_the_function_while_another_thread_runs_it():
    for drop in (True, False):
        gate = Gate()
        gone = weakref.ref(gate.entry)
        if drop:
            del gate.entry
        else:
            gate.entry.clear()
        junk = [np.full(1 << 16, 255, np.uint8) for _ in range(50)]
        gc.collect()
        assert (gone() is None) == drop
        assert gate.open() == [7]
        assert len(junk) == 50


def test_inputs_stay_alive_when_the_list_changes_during_a_call():
    inputs = [np.array(7)]
    gone = weakref.ref(inputs[0])
    gate = Gate(inputs=inputs)
    inputs.clear()
    gc.collect()
    assert gone() is not None
    assert gate.open() == [7]
    assert gone() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_calls_natively_whatever_other_threads_did():
    gate = Gate(lock="shared")
    entry = NativeEntry(slow)
    entry.add(spec_of("nothing", (), (), lock="exclusive"))
    assert is_slow(entry.callable([]))

    def in_child():
        gate.word[0] = 1
        good = entry.callable([]) == [] and gate.entry.callable([np.array(3)]) == [3]
        with state_lock.exclusive():
            return good and is_slow(entry.callable([]))

    assert true_in_child(in_child)
    assert is_slow(gate.entry.callable([np.array(1)]))
    assert gate.open() == [7]
    assert entry.callable([]) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", ["shared", "exclusive"])
def test_a_forked_child_keeps_the_lock_that_it_holds(kind):
    entry = NativeEntry(slow)
    entry.add(spec_of("nothing", (), (), lock="exclusive"))

    def in_child():
        held = is_slow(entry.callable([]))
        state_lock.release()
        return held and entry.callable([]) == []

    with getattr(state_lock, kind)():
        assert true_in_child(in_child)
        assert is_slow(entry.callable([]))
    assert entry.callable([]) == []


def true_in_child(check):
    """Whether `check()` holds in a forked child; its exceptions count as no."""
    child = os.fork()
    if not child:
        status = 1
        try:
            status = 0 if check() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_leaving_python_while_a_daemon_thread_runs_natively():
    script = textwrap.dedent(
        f"""
        import threading, time
        import numpy as np
        from graphkb.codegen.engine import compile_module
        from graphkb.codegen.target import host_target
        from graphkb.runtime.native_call import CallSpec, NativeEntry
        engine = compile_module({SLOW!r}, host_target())
        one = ("int64", ())
        entry = NativeEntry(print)
        entry.add(CallSpec((one,), (one,), engine.address("spin"), workspace_bytes=8, release_gil=True))
        def work():
            while True:
                entry.callable([np.array(1_000_000)])
        for _ in range(2):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.05)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
