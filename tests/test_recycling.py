"""Tests of recycled outputs: memory comes back once nobody can see it any more, and never before."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphkb import backend as K
from graphkb.runtime import native_call
from graphkb.runtime.options import options
from graphkb.runtime.recycling import FROM, OutputPool

pytest.importorskip("llvmlite")
pytestmark = pytest.mark.skipif(not native_call.available()[0], reason=native_call.available()[1])
Array = np.ndarray[Any, Any]
SIDE = 1100  # a matrix of this side is a little more than what is recycled


@pytest.fixture(scope="module")
def fill() -> Callable[[float], Array]:
    """A function whose large output is full of one number."""
    x = K.placeholder(())
    function = K.function([x], [x + K.zeros((SIDE, SIDE))])

    def call(value: float) -> Array:
        return function([np.array(value, np.float32)])[0]

    call(0)
    assert SIDE * SIDE * 4 >= FROM
    return call


def pool() -> OutputPool:
    native = native_call._prepare()
    assert isinstance(native, native_call._Native)
    return native.pool


def address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def handler(array: Array) -> str:
    return str(np._core.multiarray.get_handler_name(array))


def test_memory_comes_back(fill: Callable[[float], Array]) -> None:
    first = fill(1)
    at = address(first)
    assert at % 64 == 0
    del first
    second = fill(2)
    assert address(second) == at
    assert (second == 2).all()


def test_recycled_arrays_are_like_any_others(fill: Callable[[float], Array]) -> None:
    array = fill(3)
    assert handler(array) == "graphkb outputs"
    assert array.base is None
    assert array.flags.owndata
    assert array.flags.carray
    array[5] = 7
    small = array[5, :3].copy()
    array.resize((2, SIDE, SIDE), refcheck=False)
    assert (array[0, 5] == 7).all()
    assert (array[0, :5] == 3).all()
    array.resize((4,), refcheck=False)
    assert array.tolist() == [3] * 4
    assert handler(small) != "graphkb outputs"


def test_small_outputs_are_not_recycled() -> None:
    x = K.placeholder((3,))
    assert handler(K.function([x], [x + 1])([np.zeros(3, np.float32)])[0]) == handler(np.zeros(3))


def test_recycling_can_be_left_out() -> None:
    x = K.placeholder((SIDE, SIDE))
    with options(recycle=False):
        function = K.function([x], [x + 1])
    assert handler(function([np.zeros((SIDE, SIDE), np.float32)])[0]) == handler(np.zeros(3))


def test_calls_that_are_not_plain_recycle_as_well() -> None:
    x = K.placeholder((SIDE, SIDE))
    function = K.function([x], [x * 2])
    (result,) = function([np.ones((SIDE, SIDE), np.float32).T])
    assert handler(result) == "graphkb outputs"
    assert (result == 2).all()


def test_what_is_kept_is_bounded_and_can_be_given_back(fill: Callable[[float], Array]) -> None:
    held = [fill(i) for i in range(5)]
    assert [int(a[0, 0]) for a in held] == [0, 1, 2, 3, 4]
    del held
    assert 0 < pool().kept <= pool().limit
    pool().trim()
    assert pool().kept == 0
    assert (fill(6) == 6).all()


def test_the_oldest_blocks_go_first() -> None:
    words = pool()._words
    limit = pool().limit
    try:
        pool().trim()
        words[2] = 12 << 20
        arrays = [pool().empty((n << 18,), np.dtype("float32")) for n in (5, 5, 5, 20)]
        places = [address(a) for a in arrays]
        while arrays:
            del arrays[0]
        # The one of 20 MB is more than is ever kept; of the others the last two fit.
        assert 10 << 20 <= pool().kept <= 12 << 20
        again = [pool().empty((5 << 18,), np.dtype("float32")) for _ in range(2)]
        assert [address(a) for a in again] == [places[2], places[1]]
    finally:
        words[2] = limit


def test_zeros_of_the_pool_are_zero(fill: Callable[[float], Array]) -> None:
    del_me = fill(9)
    del del_me
    before = pool()._set(pool().handler)
    try:
        zeros = np.zeros((SIDE, SIDE), np.float32)
    finally:
        pool()._set(before)
    assert handler(zeros) == "graphkb outputs"
    assert not zeros.any()


# What holds on to memory, from the plain array to what NumPy itself does not know of.
HOLDERS: dict[str, Callable[[Array], Any]] = {
    "array": lambda a: a,
    "slice": lambda a: a[1:3],
    "element": lambda a: a[5:6, 7],
    "transpose": lambda a: a.T,
    "dtype": lambda a: a.view(np.uint8)[:4],
    "memoryview": memoryview,
    "slice of a memoryview": lambda a: memoryview(a)[2:4],
    "buffer": lambda a: np.frombuffer(a, np.float32),
    "broadcast": lambda a: np.broadcast_to(a, (2, SIDE, SIDE)),
    "iterator": lambda a: a.flat,
    "ctypes": lambda a: np.ctypeslib.as_ctypes(a),
    "subclass": lambda a: a.view(np.matrix),
}


def first_of(holder: Any) -> float:
    array = np.asarray(holder)
    if array.dtype == np.uint8:
        array = np.ascontiguousarray(array[..., :4]).view(np.float32)
    flat = array.ravel()
    assert (flat == flat[0]).all()
    return float(flat[0])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([*HOLDERS, "drop"]), st.integers(0, 5)), max_size=12))
def test_no_output_shares_memory_with_what_is_still_seen(steps: list[tuple[str, int]]) -> None:
    x = K.placeholder(())
    function = K.function([x], [x + K.zeros((SIDE, SIDE))])
    held: list[tuple[float, Any]] = []
    for value, (kind, which) in enumerate(steps, start=1):
        if kind == "drop":
            if held:
                del held[which % len(held)]
        else:
            held.append((value, HOLDERS[kind](function([np.array(value, np.float32)])[0])))
        for expected, holder in held:
            assert first_of(holder) == expected


def test_threads_get_memory_of_their_own(fill: Callable[[float], Array]) -> None:
    wrong: list[float] = []

    def work(base: int) -> None:
        kept: list[tuple[float, Array]] = []
        for i in range(12):
            kept.append((base + i, fill(base + i)))
            if len(kept) > 2:
                del kept[0]
            wrong.extend(v for v, a in kept if not (a == v).all())

    threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_arrays_outlive_their_function() -> None:
    x = K.placeholder((SIDE, SIDE))
    result = K.function([x], [x + 1])([np.zeros((SIDE, SIDE), np.float32)])[0]
    gc.collect()
    assert (result == 1).all()
