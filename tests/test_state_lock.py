"""The state lock: its word's rules in Python and in machine code, nesting, waiting, and life without LLVM."""

import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from graphkb.codegen.lock import HELD, READER, WAITING, Lock
from graphkb.runtime import native_call, object_layout
from graphkb.runtime.object_layout import LayoutError
from graphkb.runtime.state_lock import PythonWord, StateLock, state_lock

SHARED, EXCLUSIVE, INSIST = Lock.SHARED, Lock.EXCLUSIVE, Lock.INSIST


def native_word():
    """A word of its own, driven by the compiled helpers."""
    ready, reason = native_call.available()
    if not ready:
        pytest.skip(reason)
    memory = np.zeros(1, np.int64)
    word = native_call._NativeWord(memory.ctypes.data, native_call._prepare()._engine.address)
    word.memory = memory
    return word


@pytest.fixture(params=[PythonWord, native_word])
def word(request):
    return request.param()


@pytest.mark.parametrize(
    ("before", "kind", "after"),
    [
        (0, SHARED, READER),
        (READER, SHARED, 2 * READER),
        (WAITING, SHARED, None),
        (READER | WAITING, SHARED, None),
        (HELD, SHARED, None),
        (0, EXCLUSIVE, HELD),
        (WAITING, EXCLUSIVE, None),
        (READER, EXCLUSIVE, None),
        (HELD, EXCLUSIVE, None),
        (0, INSIST, HELD),
        (WAITING, INSIST, HELD),
        (READER | WAITING, INSIST, None),
        (HELD | WAITING, INSIST, None),
    ],
)
def test_attempt(word, before, kind, after):
    word.write(before)
    assert word.attempt(kind) == (after is not None)
    assert word.read() == (before if after is None else after)


@pytest.mark.parametrize(
    ("before", "kind", "after"),
    [
        (READER, SHARED, 0),
        (2 * READER | WAITING, SHARED, READER | WAITING),
        (HELD, EXCLUSIVE, 0),
        (HELD | WAITING, EXCLUSIVE, WAITING),
    ],
)
def test_release(word, before, kind, after):
    word.write(before)
    word.release(kind)
    assert word.read() == after


def test_mark(word):
    for before in (0, READER, HELD):
        word.write(before)
        word.mark(True)
        word.mark(True)
        assert word.read() == before | WAITING
        word.mark(False)
        assert word.read() == before


@pytest.fixture(params=["python", "native"])
def lock(request):
    one = StateLock()
    if request.param == "native":
        one.move(native_word())
    return one


def test_sections_nest(lock):
    with lock.exclusive(), lock.shared(), lock.exclusive():
        assert lock.held() == EXCLUSIVE
    with lock.shared(), lock.shared():
        assert lock.held() == SHARED
        with pytest.raises(RuntimeError, match="inside a shared section of the same thread"):
            lock.acquire(EXCLUSIVE)
    assert lock.held() == Lock.NONE
    assert lock._word.read() == 0


def test_sections_end_with_an_exception(lock):
    with pytest.raises(KeyError), lock.exclusive():
        raise KeyError
    assert lock._word.read() == 0


def test_release_without_hold_is_an_error(lock):
    with pytest.raises(RuntimeError, match="does not hold it"):
        lock.release()


def in_thread(work):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(work()))
    thread.start()
    thread.join()
    return answers[0]


def test_patience_ends_and_leaves_no_mark(lock):
    with lock.shared():
        assert not in_thread(lambda: lock.acquire(EXCLUSIVE, patience=0.005))
        assert lock._word.read() == READER
    with lock.exclusive():
        assert not in_thread(lambda: lock.acquire(SHARED, patience=0.005))
        assert lock._word.read() == HELD


def test_a_waiting_writer_keeps_new_readers_out_but_not_nested_ones(lock):
    done = []

    def write():
        with lock.exclusive():
            done.append(1)

    with lock.shared():
        writer = threading.Thread(target=write)
        writer.start()
        while not lock._word.read() & WAITING:
            time.sleep(0)
        assert not in_thread(lambda: lock.acquire(SHARED, patience=0))
        with lock.shared():
            assert not done
    writer.join()
    assert done
    assert lock._word.read() == 0


def test_writers_exclude_each_other_and_readers(lock):
    value = [0, 0]

    def work(k):
        for step in range(100):
            if (step + k) % 3:
                with lock.exclusive():
                    value[0] += 1
                    time.sleep(0)
                    value[1] += 1
            else:
                with lock.shared():
                    assert value[0] == value[1]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value == [sum((step + k) % 3 > 0 for step in range(100) for k in range(5))] * 2
    assert lock._word.read() == 0


def test_moving_keeps_the_state():
    lock = StateLock()
    with lock.shared():
        lock.move(native_word())
        assert lock._word.read() == READER
    assert lock._word.read() == 0


def test_without_llvm_everything_takes_the_slow_path():
    script = textwrap.dedent(
        """
        import sys
        sys.modules["llvmlite"] = None
        from graphkb.runtime.native_call import CallSpec, NativeEntry, available, state_lock
        ready, reason = available()
        assert not ready and reason.startswith("native calls need llvmlite"), reason
        slow = lambda inputs: ("slow", inputs)
        entry = NativeEntry(slow)
        assert entry.callable is slow
        assert entry.add(CallSpec((), (), 1)) is False
        assert entry.callable([]) == ("slow", [])
        entry.clear()
        with state_lock.exclusive(), state_lock.shared():
            pass
        """
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(
    ("module", "name", "value", "reason"),
    [
        (sys, "abiflags", "t", "native calls need the global interpreter lock"),
        (native_call.os, "name", "nt", "native calls need a 64-bit POSIX system"),
    ],
)
def test_unsupported_platforms_say_why(monkeypatch, module, name, value, reason):
    monkeypatch.setattr(native_call, "_state", None)
    monkeypatch.setattr(module, name, value)
    ready, why = native_call.available()
    monkeypatch.undo()
    assert not ready
    assert why.startswith(reason)


def test_an_unexpected_layout_turns_native_calls_off(monkeypatch):
    def wrong():
        raise LayoutError("the field array data is found at 0 offsets instead of one")

    monkeypatch.setattr(native_call, "_state", None)
    monkeypatch.setattr(native_call, "calibrate", wrong)
    assert native_call.available() == (
        False,
        "native calls are off: the field array data is found at 0 offsets instead of one",
    )
    call = native_call.NativeEntry(len).callable
    assert call([1, 2]) == 2


def test_a_field_must_be_found_at_exactly_one_offset():
    images = [bytes([1, 2, 3, 1]), bytes([5, 6, 7, 5])]
    assert object_layout._locate("b", images, (2, 6), "=b") == 1
    with pytest.raises(LayoutError, match="the field a is found at 2 offsets instead of one"):
        object_layout._locate("a", images, (1, 5), "=b")
    with pytest.raises(LayoutError, match="the field c is found at 0 offsets"):
        object_layout._locate("c", images, (2, 7), "=b")


def test_the_process_wide_lock_is_free_between_tests():
    assert state_lock._word.read() == 0
