"""Direct calls: the interpreter reaches the machine code of a function by itself, and nothing else changes."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphkb import backend as K
from graphkb.ir.errors import InputError
from graphkb.runtime import direct_call
from graphkb.runtime.direct_call import DirectCall
from graphkb.runtime.function import Function
from graphkb.runtime.native_call import available

ROOT = Path(__file__).resolve().parent.parent
HAS_VECTORCALL = 1 << 11
ONES = np.ones(3, np.float32)

pytestmark = pytest.mark.skipif(not available()[0] or DirectCall is object, reason=available()[1])


def double(**chosen: Any) -> Function:
    x = K.placeholder((3,))
    return K.function([x], [x + x], **chosen)


def is_direct(f: Function) -> bool:
    return bool(type(f).__flags__ & HAS_VECTORCALL)


def test_functions_become_direct_with_their_first_native_code() -> None:
    f = double(name="f")
    before = repr(f), repr(type(f)), type(f).__doc__, type(f).__module__
    assert not is_direct(f)
    f([ONES])
    assert is_direct(f)
    assert isinstance(f, Function)
    assert (repr(f), repr(type(f)), type(f).__doc__, type(f).__module__) == before
    np.testing.assert_array_equal(f([ONES])[0], 2 * ONES)
    assert f.cache_info().hits == 1
    g = double()
    g([ONES])
    assert type(g) is type(f)
    assert not is_direct(double())


def test_all_ways_to_call_agree() -> None:
    f = double()
    f([ONES])
    answers = [f([ONES]), f((ONES,)), f.__call__([ONES]), f(*([ONES],)), f(inputs=[ONES]), f(**{"inputs": [ONES]})]
    answers += [*map(f, [[ONES]]), Function.__call__.__get__(f)([ONES]), f([[1, 1, 1]]), f([ONES.astype("f8")])]
    for answer in answers:
        np.testing.assert_array_equal(answer[0], 2 * ONES)
    with pytest.raises(TypeError, match="expected one list of inputs, got 2 arguments"):
        f(ONES, ONES)
    with pytest.raises(InputError, match="expected 1 input"):
        f()
    with pytest.raises(TypeError):
        f([ONES], other=1)  # type: ignore[call-arg]


def test_the_slot_decides() -> None:
    f = double()
    f([ONES])
    ours = f.__call__
    f.__call__ = lambda inputs: ["another", inputs]
    assert f("given") == ["another", "given"]
    f.__call__ = len
    assert f("four") == 4
    with pytest.raises(TypeError):
        f()
    del f.__call__
    with pytest.raises(TypeError, match="not callable"):
        f([ONES])
    f.__call__ = ours
    np.testing.assert_array_equal(f([ONES])[0], 2 * ONES)


def test_a_call_may_replace_the_slot() -> None:
    f = double()
    f([ONES])

    class Replacing:
        def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
            f.__call__ = lambda inputs: ["replaced"]
            gc.collect()
            return ONES

    np.testing.assert_array_equal(f([Replacing()])[0], 2 * ONES)
    assert f([ONES]) == ["replaced"]


def test_functions_are_freed_copied_and_pickled_as_before() -> None:
    f = double()
    f([ONES])
    for g in (copy.copy(f), copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
        assert not is_direct(g)
        np.testing.assert_array_equal(g([ONES])[0], 2 * ONES)
        assert is_direct(g)
    entry = weakref.ref(f._entry)
    ref = weakref.ref(f)
    f.__call__ = lambda inputs, cycle=f: cycle
    del f, g
    gc.collect()
    assert (ref(), entry()) == (None, None)


def test_references_stay_balanced() -> None:
    f = double()
    f([ONES])
    method = f.__call__
    counts = []
    for _ in range(3):
        for _ in range(100):
            f([ONES])
            f([[1, 1, 1]])
        counts.append([sys.getrefcount(one) for one in (f, method, type(f), ONES, None)])
    assert counts[0][:4] == counts[1][:4] == counts[2][:4]
    f.__call__ = len
    before = sys.getrefcount(len)
    for _ in range(100):
        f("abc")
    assert sys.getrefcount(len) == before


def test_subclasses_are_direct_with_their_own_type() -> None:
    class Named(Function):
        """One more."""

        __slots__ = ("label",)

    f = Named(double().definition)
    f.label = "kept"
    f([ONES])
    assert is_direct(f)
    assert (type(f).__name__, type(f).__doc__, isinstance(f, Named), f.label) == ("Named", "One more.", True, "kept")
    np.testing.assert_array_equal(f([ONES])[0], 2 * ONES)


def test_threads_may_call_while_others_compile() -> None:
    x = K.placeholder((None,))
    f = K.function([x], [x * 3])
    wrong: list[int] = []

    def call(first: int) -> None:
        for n in range(first, first + 12):
            wrong.extend([n] * (not np.array_equal(f([np.ones(n, np.float32)])[0], np.full(n, 3, np.float32))))

    callers = [threading.Thread(target=call, args=(first,)) for first in (1, 4, 7)]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    assert not wrong


LATE = """
import gc, numpy as np
from graphkb import backend as K

class Late:
    def __init__(self, f):
        self.f = f
        self.me = self
    def __del__(self):
        for _ in range(3):
            try:
                print("answered", len(self.f([np.ones(3, np.float32)])))
            except TypeError as error:
                print("refused", error)

for held in (False, True):
    x = K.placeholder((3,))
    f = K.function([x], [x + x])
    f([np.ones(3, np.float32)])
    late = Late(f)
    f.__call__.__self__
    if held:
        f.__call__ = lambda inputs, late=late: ["own"]
    del f, late, x
    gc.collect()
print("done")
"""


def test_a_call_from_a_finalizer_harms_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LATE)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done"
    assert done.stdout.count("answered") == 6


def test_without_the_type_calls_work_as_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_call, "DirectCall", object)
    f = double()
    f([ONES])
    assert not is_direct(f)
    np.testing.assert_array_equal(f([ONES])[0], 2 * ONES)
    monkeypatch.setattr(sys.implementation, "name", "another")
    assert direct_call._make_base() is object
