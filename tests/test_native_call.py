"""The native call entry: which calls it takes, and what it gives back."""

import gc
import pickle
import sys

import numpy as np
import pytest
from native_runs import F4, GOOD, SCALAR, is_slow, slow, spec_of

from graphkb.runtime import call_context, native_call
from graphkb.runtime.native_call import CallSpec, DeclinedError, NativeEntry, available, run_context, state_lock

pytestmark = pytest.mark.skipif(not available()[0], reason=available()[1])


@pytest.fixture
def add():
    entry = NativeEntry(slow)
    entry.add(spec_of("add4", (F4, F4), (F4,)))
    return entry.callable


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


def test_twin_integer_types_are_one_dtype():
    entry = NativeEntry(slow)
    shape = ("int64", (2, 3))
    entry.add(spec_of("add6", (shape, shape), (shape,)))
    twins = [np.arange(6, dtype=code).reshape(2, 3) for code in "lq" if np.dtype(code).itemsize == 8]
    for x in twins:
        np.testing.assert_array_equal(entry.callable([x, twins[0]])[0], 2 * x)


class Sub(np.ndarray):
    pass


class List(list):
    pass


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


def test_no_inputs_and_no_outputs():
    entry = NativeEntry(slow)
    entry.add(spec_of("nothing", (), ()))
    assert entry.callable([]) == []
    assert entry.callable(()) == []
    assert is_slow(entry.callable())
    assert is_slow(entry.callable([GOOD]))


def test_zero_dimensions_and_empty_arrays():
    entry = NativeEntry(slow)
    one = ("float32", ())
    none = ("float32", (0, 3))
    entry.add(spec_of("add1", (one, one), (one,)))
    entry.add(spec_of("nothing", (none, none), (none,)))
    scalar, empty = np.array(1.5, np.float32), np.zeros((0, 3), np.float32)
    answer = entry.callable([scalar, scalar])[0]
    assert (answer.shape, float(answer)) == ((), 3.0)
    assert entry.callable([empty, empty])[0].shape == (0, 3)
    assert is_slow(entry.callable([empty.reshape(3, 0), empty]))
    assert is_slow(entry.callable([np.float32(1), scalar]))


def test_every_dtype_and_many_dims():
    names = [f"float{n}" for n in (16, 32, 64)] + [f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)]
    arrays = [np.zeros((2, 1, 3, 1, 0, 2, 1, 1)[: k + 1], name) for k, name in enumerate([*names, "bool"][:8])]
    arrays += [np.zeros((2,), name) for name in [*names, "bool"][8:]]
    signature = tuple((one.dtype.name, one.shape) for one in arrays)
    entry = NativeEntry(slow)
    entry.add(spec_of("nothing", signature, signature[::-1]))
    answer = entry.callable(arrays)
    assert [(one.dtype, one.shape) for one in answer] == [(one.dtype, one.shape) for one in arrays[::-1]]
    for k in range(len(arrays)):
        other = arrays.copy()
        other[k] = np.zeros((*arrays[k].shape, 2), arrays[k].dtype)
        assert is_slow(entry.callable(other))


def test_many_inputs():
    entry = NativeEntry(slow)
    row = ("float64", (3,))
    entry.add(spec_of("add50", (row,) * 50, (row,)))
    inputs = [np.full(3, float(2**k)) for k in range(50)]
    np.testing.assert_array_equal(entry.callable(inputs)[0], np.full(3, float(2**50 - 1)))
    wide = NativeEntry(slow)
    assert wide.add(spec_of("nothing", (row,) * native_call.MOST_INPUTS, (row,) * 3000))
    assert len(wide.callable([inputs[0]] * native_call.MOST_INPUTS)) == 3000
    assert not wide.add(spec_of("nothing", (row,) * (native_call.MOST_INPUTS + 1), ()))


def test_the_newest_agreeing_specialization_runs():
    entry = NativeEntry(slow)
    first = spec_of("nothing", (F4, F4), ())
    entry.add(spec_of("add1", (("float32", ()),) * 2, (("float32", ()),)))
    entry.add(first)
    second = spec_of("add4", (F4, F4), (F4,))
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


def test_workspace_is_aligned_and_bound_memory_reaches_run():
    entry = NativeEntry(slow)
    word = np.zeros(1, np.int64)
    bound = (word.ctypes.data,)
    entry.add(spec_of("where_is_workspace", (), (SCALAR,), workspace_bytes=100))
    assert entry.callable([])[0] % call_context.WORKSPACE_ALIGNMENT == 0
    entry.add(spec_of("tick", (SCALAR,), (SCALAR,), bound=bound, lock="exclusive"))
    for k in range(3):
        assert entry.callable([np.array(5)])[0] == k + 1
    assert word[0] == 3


def test_output_allocation_failure_propagates():
    entry = NativeEntry(slow)
    entry.add(spec_of("nothing", (F4,), (F4, ("float64", (1 << 45,)), F4)))
    entry.add(spec_of("nothing", (), (F4, ("float64", (1 << 40, 1 << 40)))))

    def fail(times):
        for _ in range(times):
            with pytest.raises(MemoryError):
                entry.callable([GOOD])
            with pytest.raises(ValueError, match="too big"):
                entry.callable([])
        gc.collect()
        return [sys.getrefcount(one) for one in (np.dtype(np.float32), np.dtype(np.float64), GOOD)]

    fail(1)
    assert np.abs(np.subtract(fail(50), fail(50))).max() < 10


def test_slow_path_results_and_exceptions_are_the_callers():
    def fail(inputs):
        raise KeyError(len(inputs))

    entry = NativeEntry(fail)
    with pytest.raises(KeyError, match="2"):
        entry.callable([GOOD, GOOD])
    with pytest.raises(TypeError, match="positional argument"):
        entry.callable()
    entry.add(spec_of("add4", (F4, F4), (F4,)))
    assert len(entry.callable([GOOD, GOOD])) == 1
    with pytest.raises(TypeError, match="expected a callable"):
        NativeEntry(3)


def test_the_slow_path_may_call_the_entry_and_add_to_it():
    def learn(inputs):
        assert entry.add(spec_of("add4", (F4, F4), (F4,)))
        return entry.callable(inputs)

    entry = NativeEntry(learn)
    np.testing.assert_array_equal(entry.callable([GOOD, GOOD])[0], 2 * GOOD)

    def forever(inputs):
        return endless.callable(inputs)

    endless = NativeEntry(forever)
    with pytest.raises(RecursionError):
        endless.callable([GOOD])


@pytest.mark.parametrize("release", [False, True])
@pytest.mark.parametrize("lock", ["none", "shared", "exclusive"])
def test_what_the_code_declines_goes_to_the_slow_path(release, lock):
    spec = spec_of("decline", (SCALAR,), (F4,), lock=lock, release_gil=release)
    entry = NativeEntry(slow)
    entry.add(spec)
    even, odd = np.array(4), np.array(3)
    before = sys.getrefcount(odd)
    for _ in range(3):
        answer = entry.callable([odd])
        assert is_slow(answer)
        assert answer[1][0][0] is odd
        del answer
        assert [a.shape for a in entry.callable([even])] == [(4,)]
    assert sys.getrefcount(odd) == before
    with pytest.raises(DeclinedError):
        run_context(spec, [odd])
    assert [a.shape for a in run_context(spec, [even])] == [(4,)]


def test_references_stay_balanced():
    specs = [
        spec_of("add4", (F4, F4), (F4,), release_gil=release, lock=lock)
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
        counts = sys.getrefcount(answer), sys.getrefcount(answer[0])
        assert counts == (2, 2)


def test_run_context_gives_what_the_entry_gives():
    spec = spec_of("add4", (F4, F4), (F4,))
    out = np.empty(4, np.float32)
    assert run_context(spec, [GOOD, GOOD], [out])[0] is out
    np.testing.assert_array_equal(out, 2 * GOOD)
    np.testing.assert_array_equal(run_context(spec, [GOOD, out])[0], 3 * GOOD)
    assert run_context(spec_of("nothing", (), ()), []) == []


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
def test_run_context_checks_its_arrays(arrays_in, arrays_out, message):
    with pytest.raises(ValueError, match=message):
        run_context(spec_of("add4", (F4, F4), (F4,)), arrays_in, arrays_out)


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
