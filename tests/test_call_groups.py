"""Groups of small updates: which steps wait for one another, and that threads may share them out."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphkb
from graphkb import backend as K
from graphkb.passes.gather_steps import gather_steps, share_out
from graphkb.passes.order_steps import Flow
from graphkb.runtime.function import Function

SHAPES = [(64, 64)] * 20 + [(33,), (7, 5), (64, 64), (1,)]


# ---------------------------------------------------------------------------------------------- which steps wait
@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 30), max_size=3),
            st.lists(st.integers(0, 30), max_size=2),
            st.none() | st.integers(0, 15_000_000),
        ),
        max_size=30,
    ),
    st.integers(0, 400_000),
)
def test_groups_can_run_and_their_members_in_any_order(rows: list[tuple[list[int], list[int], Any]], size: int) -> None:
    steps = [
        Flow([r for r in reads if r < number], [number], [a for a in after if a < number])
        for number, (reads, after, _) in enumerate(rows)
    ]
    times = [time for _, _, time in rows]
    sizes: dict[Hashable, int] = dict.fromkeys(range(0, len(rows), 2), size)
    groups = gather_steps(steps, times, sizes)
    assert sorted(number for group in groups for number in group) == list(range(len(steps)))
    done: set[int] = set()
    for group in groups:
        for number in group:
            assert done.issuperset([*steps[number].reads, *steps[number].after])  # type: ignore[list-item]
            assert len(group) == 1 or times[number] is not None
        done.update(group)


def test_what_is_short_waits_and_what_is_not_stays() -> None:
    # 0 makes a gradient, 1 is an update by it, and so on; the last two wait for nothing.
    steps = [Flow([], ["a"]), Flow(["a"], ["v"]), Flow([], ["b"]), Flow(["b"], ["w"]), Flow([], ["x"]), Flow([], ["y"])]
    times = [None, 9_000_000, None, 9_000_000, None, 15_000_000]
    assert gather_steps(steps, times, {"a": 4, "b": 4}) == [[0], [2], [4], [1, 3, 5]]
    # Too little to share: nothing moves.
    assert gather_steps(steps, [None, 1, None, 1, None, 1], {}) == [[0], [1], [2], [3], [4], [5]]
    # What they read is too long to keep: they run as soon as that is so.
    assert gather_steps(steps, times, {"a": 200_000, "b": 100_000}) == [[0], [2], [1, 3], [4], [5]]


def test_members_are_shared_out_evenly() -> None:
    assert share_out([8_000_000] * 4) == [[0], [1], [2], [3]]
    assert share_out([1_000_000] * 16) == [[*range(8)], [*range(8, 16)]]
    assert share_out([1_000_000, 15_000_000]) == [[0], [1]]


# ---------------------------------------------------------------------------------------------- programs
def adam(shapes: list[tuple[int, ...]], dtype: str = "float32", **options: Any) -> tuple[Function, list[Any]]:
    """One step of Adam for each of some variables, whose gradients are variables, too."""
    rng = np.random.default_rng(7)
    kept, updates = [], []
    for shape in shapes:
        w, g, a, b = (K.variable(np.abs(rng.normal(size=shape)), dtype=dtype) for _ in range(4))
        first, second = 0.9 * a + 0.1 * g, 0.999 * b + 0.001 * K.square(g)
        updates += [(a, first), (b, second), (w, w - 0.01 * first / (K.sqrt(second) + 1e-7))]
        kept += [a, b, w]
    with graphkb.options(**options):
        return K.function([], [K.constant(0.0)], updates=updates), kept


def after_steps(count: int, *args: Any, **options: Any) -> list[Any]:
    function, kept = adam(*args, **options)
    for _ in range(count):
        function([])
    return [K.get_value(variable) for variable in kept]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_updates_of_small_variables_are_one_group(dtype: str) -> None:
    function, _ = adam(SHAPES, dtype)
    function([])
    outline = function.dump(stage="loops").split("\nprogram ")[1].splitlines()
    assert sum(line.startswith("  for part <") for line in outline) == 1
    assert sum(line.startswith("      ") for line in outline) == len(SHAPES)
    assert [step.name.startswith("group/") for step in function.report().steps] == [True] * len(SHAPES)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_group_computes_what_its_members_do(dtype: str) -> None:
    found = after_steps(3, SHAPES, dtype)
    wide = after_steps(3, SHAPES, "float64", mode="interpret")
    for one, other in zip(found, wide, strict=True):
        error = 1e-12 if dtype == "float64" else 1e-6
        np.testing.assert_allclose(one, other, rtol=error, atol=error)
    for threads in (1, 3):
        for one, other in zip(found, after_steps(3, SHAPES, dtype, threads=threads), strict=True):
            np.testing.assert_array_equal(one, other)


def test_updates_that_read_other_variables_take_old_values() -> None:
    """Each variable takes the value of the one before it, the first that of the last."""
    size, count = 5000, 16  # each kernel is small, together they are not
    variables = [K.variable(np.full(size, i, np.float32)) for i in range(count)]
    updates = [(v, 2.0 * K.tanh(variables[i - 1]) + 3.0 * variables[i]) for i, v in enumerate(variables)]
    function = K.function([], [K.sum(variables[0])], updates=updates)
    expected = np.arange(count, dtype=np.float64)
    for _ in range(2):
        function([])
        expected = 2 * np.tanh(np.roll(expected, 1)) + 3 * expected
        for v, value in zip(variables, expected):
            np.testing.assert_allclose(K.get_value(v), np.full(size, value), rtol=1e-6)


@pytest.mark.parametrize("batch", [32, None])
def test_training_steps_put_updates_off(batch: int | None) -> None:
    """Ten layers: their products and updates wait for one another while the gradient goes on."""
    rng = np.random.default_rng(2)
    weights = [K.variable(rng.normal(size=(64, 64)) / 8) for _ in range(10)]
    x = K.placeholder((batch, 64))
    y = x
    for w in weights:
        y = K.tanh(K.dot(y, w))
    loss = K.mean(K.square(y - 0.5))
    updates = [(w, w - 0.1 * g) for w, g in zip(weights, K.gradients(loss, weights))]
    start = K.batch_get_value(weights)
    data = rng.normal(size=(32, 64)).astype(np.float32)
    results = []
    for options in ({}, {"threads": 1}, {"mode": "interpret"}):
        K.batch_set_value(list(zip(weights, start)))
        with graphkb.options(**options):  # type: ignore[arg-type]
            function = K.function([x], [loss], updates=updates)
        losses = [float(function([data])[0]) for _ in range(4)]
        results.append((losses, K.batch_get_value(weights)))
        if not options:
            assert "  for part <" in function.dump(stage="loops")
            report = function.report()
            assert report.planned_bytes <= 640 * 1024
    (losses, values), (same, ones), (other, exact) = results
    assert losses == same
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, other, rtol=1e-5)
    for one, two, three in zip(values, ones, exact, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_allclose(one, three, atol=1e-5)


def test_profiles_show_the_group_and_its_members() -> None:
    function, _ = adam(SHAPES)
    steps = function.profile([]).steps
    (group,) = [step for step in steps if step.name == "group"]
    inside = [step for step in steps if step.depth == 1]
    assert len(inside) == len(SHAPES)
    assert all(step.calls == 1 for step in inside)
    assert group.flops == sum(step.flops for step in inside)
    assert 0 < sum(step.seconds for step in inside) <= group.seconds * 1.000001


@pytest.mark.parametrize("threads", ["none", "hook", "pool"])
def test_libraries_have_groups(tmp_path: Path, threads: str) -> None:
    function, kept = adam(SHAPES)
    library = graphkb.load(graphkb.compile(function, tmp_path / "net", threads=threads).library)  # type: ignore[arg-type]
    for _ in range(3):
        library([])
        function([])
    assert library.state
    by_size = {value.tobytes() for value in library.state.values()}
    assert by_size == {K.get_value(variable).tobytes() for variable in kept}
