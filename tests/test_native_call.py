"""The native call entry: which calls it takes, what it gives back, and that it never harms the process."""

import ctypes
import gc
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import weakref

import numpy as np
import pytest

from graphkb.codegen.engine import compile_module
from graphkb.codegen.target import host_target
from graphkb.runtime import native_call
from graphkb.runtime.native_call import CallSpec, NativeEntry, available, run_context, state_lock

pytestmark = pytest.mark.skipif(not available()[0], reason=available()[1])

F4 = ("float32", (4,))
SCALAR = ("int64", ())


def elementwise(name, inputs, type_, op, n):
    """IR of `run`: the first output is the inputs joined by `op`, for `n` elements of the LLVM type `type_`."""
    loads = "".join(
        f"""
  %at{k} = getelementptr ptr, ptr %args, i64 {k}
  %p{k} = load ptr, ptr %at{k}
  %e{k} = getelementptr {type_}, ptr %p{k}, i64 %i
  %v{k} = load {type_}, ptr %e{k}"""
        for k in range(inputs)
    )
    sums = "".join(
        f"\n  %s{k} = {op} {type_} {f'%s{k - 1}' if k > 1 else '%v0'}, %v{k}" for k in range(1, inputs)
    )
    return f"""
define void @{name}(ptr %args, ptr %workspace) {{
start:
  br label %test
test:
  %i = phi i64 [ 0, %start ], [ %i.next, %body ]
  %done = icmp eq i64 %i, {n}
  br i1 %done, label %end, label %body
body:{loads}{sums}
  %to.at = getelementptr ptr, ptr %args, i64 {inputs}
  %to.p = load ptr, ptr %to.at
  %to = getelementptr {type_}, ptr %to.p, i64 %i
  store {type_} %s{inputs - 1}, ptr %to
  %i.next = add i64 %i, 1
  br label %test
end:
  ret void
}}
"""


# Counts its input's value down in the workspace and gives back the count of steps: slow, and it shows shared scratch.
# `tick` adds one to the bound word, with the same delay between the load and the store.
SLOW = """
define void @spin(ptr %args, ptr %workspace) {
start:
  %n.p = load ptr, ptr %args
  %n = load i64, ptr %n.p
  store volatile i64 0, ptr %workspace
  br label %test
test:
  %i = phi i64 [ 0, %start ], [ %i.next, %body ]
  %done = icmp eq i64 %i, %n
  br i1 %done, label %end, label %body
body:
  %seen = load volatile i64, ptr %workspace
  %more = add i64 %seen, 1
  store volatile i64 %more, ptr %workspace
  %i.next = add i64 %i, 1
  br label %test
end:
  %steps = load volatile i64, ptr %workspace
  %to.at = getelementptr ptr, ptr %args, i64 1
  %to = load ptr, ptr %to.at
  store i64 %steps, ptr %to
  ret void
}

define void @tick(ptr %args, ptr %workspace) {
start:
  %n.p = load ptr, ptr %args
  %n = load i64, ptr %n.p
  %word.at = getelementptr ptr, ptr %args, i64 1
  %word = load ptr, ptr %word.at
  %before = load volatile i64, ptr %word
  br label %test
test:
  %i = phi i64 [ 0, %start ], [ %i.next, %body ]
  %done = icmp eq i64 %i, %n
  br i1 %done, label %end, label %body
body:
  %now = load volatile i64, ptr %word
  %i.next = add i64 %i, 1
  br label %test
end:
  %after = add i64 %before, 1
  store volatile i64 %after, ptr %word
  %to.at = getelementptr ptr, ptr %args, i64 2
  %to = load ptr, ptr %to.at
  store i64 %after, ptr %to
  ret void
}

define void @where_is_workspace(ptr %args, ptr %workspace) {
  %to = load ptr, ptr %args
  %address = ptrtoint ptr %workspace to i64
  store i64 %address, ptr %to
  ret void
}

define void @nothing(ptr %args, ptr %workspace) {
  ret void
}
"""


@pytest.fixture(scope="module")
def engine():
    text = SLOW + elementwise("add4", 2, "float", "fadd", 4) + elementwise("add1", 2, "float", "fadd", 1)
    text += elementwise("add6", 2, "i64", "add", 6) + elementwise("add50", 50, "double", "fadd", 3)
    return compile_module(text, host_target())


def spec_of(engine, run, inputs, outputs, **options):
    return CallSpec(inputs, outputs, engine.address(run), keepalive=engine, **options)


def slow(*args, **kwargs):
    return ("slow", args, kwargs)


@pytest.fixture
def add(engine):
    entry = NativeEntry(slow)
    entry.add(spec_of(engine, "add4", (F4, F4), (F4,)))
    return entry.callable


def is_slow(answer):
    return isinstance(answer, tuple) and answer[0] == "slow"


def test_adds_two_arrays_given_as_list_or_tuple(add):
    x, y = np.arange(4, dtype=np.float32), np.full(4, 0.5, np.float32)
    for sequence in ([x, y], (x, y)):
        answer = add(sequence)
        assert type(answer) is list
        assert len(answer) == 1
        assert answer[0].dtype == np.float32
        assert answer[0].flags.owndata
        assert answer[0].flags.writeable
        np.testing.assert_array_equal(answer[0], x + y)


def test_each_call_makes_new_outputs(add):
    x = np.ones(4, np.float32)
    first, second = add([x, x])[0], add([x, x])[0]
    first[:] = 7
    np.testing.assert_array_equal(second, x + x)


def test_the_same_array_twice_and_read_only_inputs(add):
    x = np.arange(4, dtype=np.float32)
    x.flags.writeable = False
    np.testing.assert_array_equal(add([x, x])[0], 2 * x)


def test_arrays_with_another_dtype_object_of_the_same_type(add):
    x = pickle.loads(pickle.dumps(np.arange(4, dtype=np.float32)))
    marked = np.zeros(4, np.dtype(np.float32, metadata={"unit": "m"}))
    assert x.dtype is not np.dtype(np.float32)
    np.testing.assert_array_equal(add([x, marked])[0], x)


def test_twin_integer_types_are_one_dtype(engine):
    entry = NativeEntry(slow)
    shape = ("int64", (2, 3))
    entry.add(spec_of(engine, "add6", (shape, shape), (shape,)))
    twins = [np.arange(6, dtype=code).reshape(2, 3) for code in "lq" if np.dtype(code).itemsize == 8]
    for x in twins:
        np.testing.assert_array_equal(entry.callable([x, twins[0]])[0], 2 * x)


class Sub(np.ndarray):
    pass


class List(list):
    pass


GOOD = np.arange(4, dtype=np.float32)
REJECTED = {
    "none": None,
    "float": 1.0,
    "list": [0.0, 1.0, 2.0, 3.0],
    "scalar": np.float32(1),
    "subclass": GOOD.view(Sub),
    "masked": np.ma.array(GOOD),
    "memmap-like": np.rec.array(np.zeros(4, [("a", "f4")])),
    "dtype float64": GOOD.astype(np.float64),
    "dtype int32": GOOD.astype(np.int32),
    "dtype complex": GOOD.astype(np.complex64),
    "dtype object": GOOD.astype(object),
    "dtype text": np.array(list("abcd")),
    "dtype struct": np.zeros(4, [("a", "f4")]),
    "dtype void": np.zeros(4, "V4"),
    "dtype date": np.zeros(4, "M8[s]"),
    "byte-swapped": GOOD.astype(GOOD.dtype.newbyteorder()),
    "non-contiguous": np.arange(8, dtype=np.float32)[::2],
    "reversed": GOOD[::-1],
    "broadcast": np.broadcast_to(np.float32(1), (4,)),
    "misaligned": np.frombuffer(bytes(17), np.uint8, 16, 1).view(np.float32),
    "0-d": np.array(1, np.float32),
    "2-d": GOOD.reshape(1, 4),
    "longer": np.zeros(5, np.float32),
    "shorter": GOOD[:3],
    "empty": GOOD[:0],
}


@pytest.mark.parametrize("name", REJECTED)
@pytest.mark.parametrize("position", [0, 1])
def test_anything_else_goes_to_the_slow_path(add, name, position):
    inputs = [GOOD, GOOD]
    inputs[position] = REJECTED[name]
    answer = add(inputs)
    assert is_slow(answer)
    assert answer[1][0] is inputs
    np.testing.assert_array_equal(add([GOOD, GOOD])[0], 2 * GOOD)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((GOOD, GOOD), {}),
        (([GOOD, GOOD], 1), {}),
        (([GOOD, GOOD],), {"key": 1}),
        ((), {"inputs": [GOOD, GOOD]}),
        (([],), {}),
        (([GOOD],), {}),
        (([GOOD] * 3,), {}),
        ((None,), {}),
        ((GOOD,), {}),
        (({0: GOOD, 1: GOOD},), {}),
        ((List([GOOD, GOOD]),), {}),
        ((np.array([GOOD, GOOD]),), {}),
    ],
)
def test_other_arguments_reach_the_slow_path_unchanged(add, args, kwargs):
    answer = add(*args, **kwargs)
    assert is_slow(answer)
    assert all(got is given for got, given in zip(answer[1], args, strict=True))
    assert answer[2].keys() == kwargs.keys()
    assert all(answer[2][key] is kwargs[key] for key in kwargs)


def test_a_generator_is_not_consumed(add):
    source = (x for x in (GOOD, GOOD))
    assert is_slow(add(source))
    assert len(list(source)) == 2


def test_no_inputs_and_no_outputs(engine):
    entry = NativeEntry(slow)
    entry.add(spec_of(engine, "nothing", (), ()))
    assert entry.callable([]) == []
    assert entry.callable(()) == []
    assert is_slow(entry.callable())
    assert is_slow(entry.callable([GOOD]))


def test_zero_dimensions_and_empty_arrays(engine):
    entry = NativeEntry(slow)
    one = ("float32", ())
    none = ("float32", (0, 3))
    entry.add(spec_of(engine, "add1", (one, one), (one,)))
    entry.add(spec_of(engine, "nothing", (none, none), (none,)))
    scalar, empty = np.array(1.5, np.float32), np.zeros((0, 3), np.float32)
    answer = entry.callable([scalar, scalar])[0]
    assert (answer.shape, float(answer)) == ((), 3.0)
    assert entry.callable([empty, empty])[0].shape == (0, 3)
    assert is_slow(entry.callable([empty.reshape(3, 0), empty]))
    assert is_slow(entry.callable([np.float32(1), scalar]))


def test_every_dtype_and_many_dims(engine):
    names = [f"float{n}" for n in (16, 32, 64)] + [f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)]
    arrays = [
        np.zeros((2, 1, 3, 1, 0, 2, 1, 1)[: k + 1], name) for k, name in enumerate([*names, "bool"][:8])
    ]
    arrays += [np.zeros((2,), name) for name in [*names, "bool"][8:]]
    signature = tuple((one.dtype.name, one.shape) for one in arrays)
    entry = NativeEntry(slow)
    entry.add(spec_of(engine, "nothing", signature, signature[::-1]))
    answer = entry.callable(arrays)
    assert [(one.dtype, one.shape) for one in answer] == [(one.dtype, one.shape) for one in arrays[::-1]]
    for k in range(len(arrays)):
        other = arrays.copy()
        other[k] = np.zeros((*arrays[k].shape, 2), arrays[k].dtype)
        assert is_slow(entry.callable(other))


def test_many_inputs(engine):
    entry = NativeEntry(slow)
    row = ("float64", (3,))
    entry.add(spec_of(engine, "add50", (row,) * 50, (row,)))
    inputs = [np.full(3, float(2**k)) for k in range(50)]
    np.testing.assert_array_equal(entry.callable(inputs)[0], np.full(3, float(2**50 - 1)))
    wide = NativeEntry(slow)
    assert wide.add(spec_of(engine, "nothing", (row,) * native_call.MOST_INPUTS, (row,) * 3000))
    assert len(wide.callable([inputs[0]] * native_call.MOST_INPUTS)) == 3000
    assert not wide.add(spec_of(engine, "nothing", (row,) * (native_call.MOST_INPUTS + 1), ()))


def test_the_newest_agreeing_specialization_runs(engine):
    entry = NativeEntry(slow)
    first = spec_of(engine, "nothing", (F4, F4), ())
    entry.add(spec_of(engine, "add1", (("float32", ()),) * 2, (("float32", ()),)))
    entry.add(first)
    second = spec_of(engine, "add4", (F4, F4), (F4,))
    entry.add(second)
    assert len(entry.callable([GOOD, GOOD])) == 1
    entry.discard(second)
    assert entry.callable([GOOD, GOOD]) == []
    entry.discard(second)
    entry.discard(first)
    assert is_slow(entry.callable([GOOD, GOOD]))
    assert entry.callable([np.array(1, np.float32)] * 2) == [2]
    entry.clear()
    assert is_slow(entry.callable([np.array(1, np.float32)] * 2))


def test_workspace_is_aligned_and_bound_memory_reaches_run(engine):
    entry = NativeEntry(slow)
    word = np.zeros(1, np.int64)
    bound = (word.ctypes.data,)
    entry.add(spec_of(engine, "where_is_workspace", (), (SCALAR,), workspace_bytes=100))
    assert entry.callable([])[0] % native_call.WORKSPACE_ALIGNMENT == 0
    entry.add(spec_of(engine, "tick", (SCALAR,), (SCALAR,), bound=bound, lock="exclusive"))
    for k in range(3):
        assert entry.callable([np.array(5)])[0] == k + 1
    assert word[0] == 3


def test_output_allocation_failure_propagates(engine):
    entry = NativeEntry(slow)
    entry.add(spec_of(engine, "nothing", (F4,), (F4, ("float64", (1 << 45,)), F4)))
    entry.add(spec_of(engine, "nothing", (), (F4, ("float64", (1 << 40, 1 << 40)))))
    before = sys.getrefcount(np.dtype(np.float32))
    for _ in range(3):
        with pytest.raises(MemoryError):
            entry.callable([GOOD])
        with pytest.raises(ValueError, match="too big"):
            entry.callable([])
    assert sys.getrefcount(np.dtype(np.float32)) == before


def test_slow_path_results_and_exceptions_are_the_callers(engine):
    def fail(inputs):
        raise KeyError(len(inputs))

    entry = NativeEntry(fail)
    with pytest.raises(KeyError, match="2"):
        entry.callable([GOOD, GOOD])
    with pytest.raises(TypeError, match="positional argument"):
        entry.callable()
    entry.add(spec_of(engine, "add4", (F4, F4), (F4,)))
    assert len(entry.callable([GOOD, GOOD])) == 1
    with pytest.raises(TypeError, match="expected a callable"):
        NativeEntry(3)


def test_the_slow_path_may_call_the_entry_and_add_to_it(engine):
    def learn(inputs):
        assert entry.add(spec_of(engine, "add4", (F4, F4), (F4,)))
        return entry.callable(inputs)

    entry = NativeEntry(learn)
    np.testing.assert_array_equal(entry.callable([GOOD, GOOD])[0], 2 * GOOD)

    def forever(inputs):
        return endless.callable(inputs)

    endless = NativeEntry(forever)
    with pytest.raises(RecursionError):
        endless.callable([GOOD])


def test_references_stay_balanced(engine):
    specs = [
        spec_of(engine, "add4", (F4, F4), (F4,), release_gil=release, lock=lock)
        for release in (False, True)
        for lock in ("none", "shared", "exclusive")
    ]
    x, y = GOOD.copy(), GOOD.copy()
    watched = [x, y, x.dtype, specs, slow, np.ndarray]
    for spec in specs:
        entry = NativeEntry(slow)
        entry.add(spec)
        call = entry.callable
        pair = [x, y]
        counts = [sys.getrefcount(one) for one in (*watched, pair, call)]
        for _ in range(10_000):
            call(pair)
            call([x, y])
        for _ in range(100):
            call((x, y), key=1)
            call([x])
        with state_lock.exclusive():
            for _ in range(100):
                call(pair)
        assert [sys.getrefcount(one) for one in (*watched, pair, call)] == counts
        answer = call(pair)
        assert sys.getrefcount(answer) == 2
        assert sys.getrefcount(answer[0]) == 2


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the memory size from /proc")
def test_memory_stays_flat(engine):
    big = ("float32", (64, 1024))
    x = np.zeros((64, 1024), np.float32)

    def use():
        for _ in range(300):
            entry = NativeEntry(slow)
            entry.add(spec_of(engine, "nothing", (big,), (big,), workspace_bytes=10_000))
            entry.callable([x])
            entry.clear()
            entry.add(spec_of(engine, "nothing", (big,), (big,)))
            entry.callable([x])

    use()
    before = resident()
    for _ in range(3):
        use()
    assert resident() - before < 2_000_000


def test_keepalive_ends_with_the_callable(engine):
    class Owner:
        pass

    owner = Owner()
    gone = weakref.ref(owner)
    entry = NativeEntry(slow)
    entry.add(CallSpec((F4, F4), (F4,), engine.address("add4"), keepalive=owner))
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


def test_a_class_with_a_call_slot_and_a_cycle_is_collected(engine):
    f = Function(spec_of(engine, "add4", (F4, F4), (F4,)))
    np.testing.assert_array_equal(f([GOOD, GOOD])[0], 2 * GOOD)
    assert is_slow(f(3, a=4))
    gone = weakref.ref(f)
    del f
    gc.collect()
    assert gone() is None


def test_a_finalizer_in_the_same_cycle_may_still_call(engine):
    answers = []

    class Last(Function):
        __slots__ = ()

        def __del__(self):
            answers.append(self([GOOD, GOOD]))

    Last(spec_of(engine, "add4", (F4, F4), (F4,)))
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
def test_threads_get_right_answers_and_busy_calls_take_the_slow_path(engine, copies):
    spec = spec_of(engine, "spin", (SCALAR,), (SCALAR,), workspace_bytes=8, release_gil=True)
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
    if copies == 1:
        assert slow_calls


def test_exclusive_calls_never_overlap(engine):
    word = np.zeros(1, np.int64)
    bound = (word.ctypes.data,)
    spec = spec_of(engine, "tick", (SCALAR,), (SCALAR,), bound=bound, lock="exclusive", release_gil=True)
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


def test_readers_share_and_a_writer_gets_in(engine):
    spec = spec_of(engine, "spin", (SCALAR,), (SCALAR,), workspace_bytes=8, lock="shared", release_gil=True)
    stop = threading.Event()
    natives = []

    def read(_):
        entry = NativeEntry(lambda inputs: run_context(spec, inputs))
        entry.add(spec)
        while not stop.is_set():
            assert entry.callable([np.array(50_000)])[0] == 50_000
            natives.append(1)

    def write():
        for _ in range(30):
            with state_lock.exclusive():
                pass
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    run_threads(3, read)
    writer.join()
    assert natives


def test_state_held_by_python_sends_calls_to_the_slow_path(engine):
    word = np.zeros(1, np.int64)
    entries = {}
    for lock in ("none", "shared", "exclusive"):
        entries[lock] = NativeEntry(slow)
        bound = (word.ctypes.data,)
        entries[lock].add(spec_of(engine, "tick", (SCALAR,), (SCALAR,), bound=bound, lock=lock))

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
    assert word[0] == 12


def test_clearing_while_running_is_safe(engine):
    spec = spec_of(engine, "spin", (SCALAR,), (SCALAR,), workspace_bytes=1 << 16, release_gil=True)
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


def test_dropping_the_function_while_another_thread_runs_it(engine):
    for _ in range(20):
        spec = spec_of(engine, "spin", (SCALAR,), (SCALAR,), workspace_bytes=1 << 16, release_gil=True)
        entry = NativeEntry(slow)
        entry.add(spec)
        holder = [entry.callable]
        started = threading.Barrier(2)
        answers = []

        def work(holder=holder, started=started, answers=answers):
            started.wait()
            answers.append(holder[0]([np.array(1_000_000)]))

        thread = threading.Thread(target=work)
        thread.start()
        started.wait()
        del entry, spec
        gc.collect()
        thread.join(0.0002)
        holder[0] = slow
        thread.join()
        assert is_slow(answers[0]) or answers[0][0] == 1_000_000


def test_inputs_stay_alive_when_the_list_changes_during_a_call(engine):
    spec = spec_of(engine, "spin", (SCALAR,), (SCALAR,), workspace_bytes=8, release_gil=True)
    entry = NativeEntry(lambda inputs: run_context(spec, inputs) if inputs else "late")
    entry.add(spec)
    for _ in range(20):
        inputs = [np.array(500_000)]
        gone = weakref.ref(inputs[0])
        thread = threading.Thread(target=inputs.clear)
        thread.start()
        answer = entry.callable(inputs)
        thread.join()
        assert answer == "late" or answer[0] == 500_000
        assert gone() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_calls_natively_whatever_other_threads_did(engine):
    word = np.zeros(1, np.int64)
    bound = (word.ctypes.data,)
    spec = spec_of(engine, "tick", (SCALAR,), (SCALAR,), bound=bound, lock="exclusive", release_gil=True)
    entry = NativeEntry(slow)
    entry.add(spec)
    spinning = NativeEntry(slow)
    spinning.add(spec_of(engine, "spin", (SCALAR,), (SCALAR,), workspace_bytes=8, release_gil=True))
    thread = threading.Thread(target=spinning.callable, args=([np.array(100_000_000)],))
    thread.start()
    while not is_slow(spinning.callable([np.array(1)])):
        pass
    child = os.fork()
    if not child:
        good = not is_slow(entry.callable([np.array(1)])) and not is_slow(spinning.callable([np.array(1)]))
        with state_lock.exclusive():
            good = good and is_slow(entry.callable([np.array(1)]))
        os._exit(0 if good and word[0] == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    thread.join()
    assert not is_slow(entry.callable([np.array(1)]))
    with state_lock.exclusive():
        child = os.fork()
        if not child:
            os._exit(0 if is_slow(entry.callable([np.array(1)])) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not is_slow(entry.callable([np.array(1)]))


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


def test_run_context_gives_what_the_entry_gives(engine):
    spec = spec_of(engine, "add4", (F4, F4), (F4,))
    out = np.empty(4, np.float32)
    assert run_context(spec, [GOOD, GOOD], [out])[0] is out
    np.testing.assert_array_equal(out, 2 * GOOD)
    np.testing.assert_array_equal(run_context(spec, [GOOD, out])[0], 3 * GOOD)
    assert run_context(spec_of(engine, "nothing", (), ()), []) == []


@pytest.mark.parametrize(
    ("arrays_in", "arrays_out", "message"),
    [
        ([GOOD], None, "run_context: expected 2 inputs, got 1"),
        ([GOOD, GOOD[:3]], None, r"run_context: input 1 is float32\[3\], expected float32\[4\]"),
        ([GOOD.astype("f8"), GOOD], None, r"run_context: input 0 is float64\[4\], expected float32\[4\]"),
        ([GOOD, GOOD[::-1]], None, "run_context: expected input 1 aligned and C-contiguous"),
        ([GOOD, GOOD], [], "run_context: expected 1 outputs, got 0"),
        ([GOOD, GOOD], [np.broadcast_to(GOOD[:1], 4)], "run_context: expected output 0 aligned"),
        ([GOOD, GOOD], [np.frombuffer(bytes(16), np.float32)], "can be written to"),
    ],
)
def test_run_context_checks_its_arrays(engine, arrays_in, arrays_out, message):
    with pytest.raises(ValueError, match=message):
        run_context(spec_of(engine, "add4", (F4, F4), (F4,)), arrays_in, arrays_out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": (("complex64", ()),)}, "dtype 'complex64' is not one of"),
        ({"outputs": (("float32", (-1,)),)}, "negative dimension"),
        ({"lock": "both"}, "lock 'both' is not one of none, shared, exclusive"),
        ({"run": 0}, "expected a function's address"),
    ],
)
def test_bad_specs_are_refused(change, message):
    fields = {"inputs": (F4,), "outputs": (F4,), "run": 1} | change
    with pytest.raises(ValueError, match=message):
        CallSpec(**fields)


def test_the_callable_cannot_be_broken_through_its_self(add):
    memory = add.__self__[0]
    with pytest.raises(ValueError, match="read-only"):
        memory[1] = 8
    ctypes.pythonapi.Py_IncRef  # noqa: B018  (the shared library object keeps its prototypes untouched)
    assert ctypes.pythonapi.Py_IncRef.argtypes is None
