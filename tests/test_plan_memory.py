"""Tests of memory planning."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from graphkb import backend as K
from graphkb.ir.dims import free_symbols, substitute, symbol
from graphkb.ir.types import TensorType
from graphkb.passes import plan_memory as module
from graphkb.passes.order_steps import Flow, order_steps, peak
from graphkb.passes.plan_memory import ALIGNMENT, Request, plan_memory

REQUESTS = st.lists(
    st.builds(lambda size, first, length: Request(size, first, first + length), *[st.integers(0, 300)] * 3), max_size=40
)


def overlap(a: Request, b: Request) -> bool:
    return a.first <= b.last and b.first <= a.last


def check(requests: list[Request], offsets: list[int], total: int) -> None:
    for i, a in enumerate(requests):
        assert offsets[i] % ALIGNMENT == 0
        assert offsets[i] >= 0
        assert offsets[i] + a.nbytes <= total
        for j in range(i):
            b = requests[j]
            if overlap(a, b) and a.nbytes and b.nbytes:
                assert offsets[i] + a.nbytes <= offsets[j] or offsets[j] + b.nbytes <= offsets[i]


@given(REQUESTS)
@settings(max_examples=60, deadline=None)
def test_values_alive_together_never_overlap(requests: list[Request]) -> None:
    plan = plan_memory(requests)
    check(requests, list(plan.offsets), plan.total)
    assert plan.lower_bound <= plan.total


@given(REQUESTS)
@settings(max_examples=60, deadline=None)
def test_places_by_size_never_overlap(requests: list[Request]) -> None:
    sizes = [module.aligned(r.nbytes) for r in requests]
    offsets, total = module._by_size(requests, sizes)
    check(requests, offsets, total)


def test_a_chain_needs_two_places() -> None:
    plan = plan_memory([Request(1000, i, i + 1) for i in range(50)])
    assert plan.total == 2 * 1024 == plan.lower_bound


def test_unknown_sizes_are_planned_symbolically() -> None:
    n = symbol("n")
    value = TensorType("float32", (n, 3)).nbytes
    plan = plan_memory([Request(value, i, i + 1) for i in range(9)])
    (s,) = free_symbols(plan.total)
    assert [substitute(plan.total, {s: size}) for size in (0, 1, 16)] == [0, 2 * 64, 2 * 192]


# ---------------------------------------------------------------------------------------------- order
@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 40), max_size=4), st.integers(0, 9)), max_size=40))
def test_an_order_is_one_in_which_steps_can_run_and_needs_no_more(rows: list[tuple[list[int], int]]) -> None:
    sizes: dict[Hashable, int] = {number: size for number, (_, size) in enumerate(rows)}
    steps = [Flow([r for r in reads if r < number], [number]) for number, (reads, _) in enumerate(rows)]
    order = order_steps(steps, sizes)
    assert sorted(order) == list(range(len(steps)))
    place = {number: at for at, number in enumerate(order)}
    assert all(place[read] < place[number] for number, step in enumerate(steps) for read in step.reads)
    assert peak(steps, sizes, order) <= peak(steps, sizes, range(len(steps)))
    assert order_steps(steps, sizes) == order


def test_what_can_be_summed_up_early_is_not_kept() -> None:
    # Two large values, each of which shrinks to a small one: one after the other needs half the memory.
    steps = [Flow([], ["a"]), Flow([], ["b"]), Flow(["a"], ["s"]), Flow(["b"], ["t"]), Flow(["s", "t"], ["u"])]
    sizes: dict[Hashable, int] = {"a": 100, "b": 100, "s": 1, "t": 1, "u": 1}
    order = order_steps(steps, sizes)
    assert order == [0, 2, 1, 3, 4]
    assert peak(steps, sizes, order) == 102
    kept = [*steps[:2], Flow(["a"], ["s"], after=(1,)), *steps[3:]]
    assert order_steps(kept, sizes) == [0, 1, 2, 3, 4]


def test_functions_run_in_the_order_that_needs_less() -> None:
    x = K.placeholder((400, 500))
    a, b, c = [K.exp(K.transpose(x) * (i + 1)) for i in range(3)]
    sums = [K.dot(K.sum(v, axis=0, keepdims=True), K.transpose(v)) for v in (a, b, c)]
    function = K.function([x], [sums[0] + sums[1] + sums[2]])
    feed = np.random.default_rng(0).random((400, 500)).astype("float32")
    (result,) = function([feed])
    wide = [np.exp(feed.T.astype("float64") * (i + 1)) for i in range(3)]
    np.testing.assert_allclose(result, sum(v.sum(0, keepdims=True) @ v.T for v in wide), rtol=1e-5)
    report = function.report()
    assert report.alive_bytes <= report.planned_bytes
    assert "alive at once" in str(report)
