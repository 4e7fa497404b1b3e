"""Tests of memory planning."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from graphkb.ir.dims import free_symbols, substitute, symbol
from graphkb.ir.types import TensorType
from graphkb.passes import plan_memory as module
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
