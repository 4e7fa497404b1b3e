"""Sizes that keep changing: when code is made for any value of them, what it serves, and what it leaves alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from function_tools import batch_function, ones, state

import graphkb
from graphkb import backend as K
from graphkb.ir.errors import OpenSizeError, RecompileError, ShapeError
from graphkb.runtime.native_call import available

pytestmark = pytest.mark.skipif(not available()[0], reason=available()[1])


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def values(*dims: int) -> np.ndarray[Any, Any]:
    return rng().standard_normal(dims).astype(np.float32)


def agrees(make: Callable[[], Any], calls: list[list[np.ndarray[Any, Any]]], **options: Any) -> Any:
    """The function, dynamic from its first call on, after calls whose answers are those of the interpreter."""
    with graphkb.options(mode="interpret"):
        expected = make()
    with graphkb.options(**{"dynamic_after": 1, "mode": "native", **options}):
        function = make()
    for inputs in calls:
        for _ in range(2):  # through Python, then without
            for got, wanted in zip(function(inputs), expected(inputs), strict=True):
                assert got.shape == wanted.shape
                np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=1e-5)
    return function


# ---------------------------------------------------------------------------------------------- when
def test_the_third_value_opens_a_size() -> None:
    f = batch_function()
    for n in (3, 5, 3, 9, 11, 13, 3, 200):
        assert (f([ones(n, 4), ones(n, 4)])[0] == 2).all()
    info = f.cache_info()
    assert info.shapes == (((3, 4), (3, 4)), ((5, 4), (5, 4)), ((None, 4), (None, 4)))
    assert (info.specializations, info.dynamic, info.misses, info.native, info.hits) == (3, 1, 3, 3, 5)
    assert state(f) == [[8, 8]]


def test_a_smaller_last_batch_opens_nothing() -> None:
    f = batch_function()
    for n in (32, 32, 7) * 3:
        f([ones(n, 4), ones(n, 4)])
    assert (f.cache_info().misses, f.cache_info().dynamic) == (2, 0)


def test_many_lengths_compile_a_few_times() -> None:
    x = K.placeholder((None, None, 8))
    w = K.variable(values(8, 6))
    f = K.function([x], [K.softmax(K.mean(K.tanh(K.dot(x, w)), axis=1))])
    for length in range(1, 51):
        assert f([values(4, length, 8)])[0].shape == (4, 6)
    assert f.cache_info().misses == 3
    f([values(3, 60, 8)])
    assert f.cache_info().misses == 4  # another batch, and any length


def test_no_size_is_opened_where_that_is_not_wanted() -> None:
    f = batch_function(dynamic_after=0)
    for n in range(1, 8):
        f([ones(n, 4), ones(n, 4)])
    assert (f.cache_info().misses, f.cache_info().dynamic) == (7, 0)


def test_specialize_makes_code_for_one_shape_alone() -> None:
    f = batch_function(dynamic_after=1)
    f([ones(2, 4), ones(2, 4)])
    assert f.cache_info().dynamic == 1
    made = f.specialize([(5, 4), (5, 4)])
    assert made.shapes == ((5, 4), (5, 4))
    before = made.plan.entry_spec()
    f([ones(5, 4), ones(5, 4)])
    assert before is not None
    assert f._entry is not None
    assert f._entry.calls(before) == 1  # it goes before the one with an open size
    assert f.cache_info().specializations == 2


def test_what_is_longest_unused_goes_first_native_calls_counted() -> None:
    f = batch_function(cache_size=3, dynamic_after=0)
    for n in (1, 2, 3, 1, 1, 3, 4):
        f([ones(n, 4), ones(n, 4)])
    assert {shapes[0][0] for shapes in f.cache_info().shapes} == {1, 3, 4}
    assert f.cache_info().hits == 3


# ---------------------------------------------------------------------------------------------- what it computes
def test_broadcasting_is_never_guessed() -> None:
    def make() -> Any:
        x, y = K.placeholder((None, 3)), K.placeholder((None, 3))
        return K.function([x, y], [x * y, K.sum(x - y, axis=0)])

    calls = [[values(n, 3), values(m, 3)] for n, m in ((4, 4), (7, 7), (1, 5), (5, 1), (1, 1), (6, 6), (2, 1))]
    f = agrees(make, calls)
    with pytest.raises(ShapeError):
        f([values(4, 3), values(5, 3)])
    assert f.cache_info().dynamic >= 1
    assert f([values(9, 3), values(9, 3)])[0].shape == (9, 3)


def test_a_size_that_must_be_1_is_refused_where_it_is_not() -> None:
    def make() -> Any:
        x, one = K.placeholder((None, None)), K.placeholder((1, None))
        return K.function([x, one], [K.concatenate([x, one], axis=1)])

    f = agrees(make, [[values(1, 2), values(1, 5)], [values(1, 7), values(1, 5)]])
    with pytest.raises(ShapeError, match="concatenate"):
        f([values(3, 4), values(1, 5)])
    assert f([values(1, 3), values(1, 5)])[0].shape == (1, 8)


def test_empty_arrays_get_code_of_their_own() -> None:
    def make() -> Any:
        x = K.placeholder((None, None))
        return K.function([x], [K.sum(x, axis=0), K.relu(x), K.mean(x)])

    with np.errstate(all="ignore"):
        f = agrees(make, [[values(n, m)] for n, m in ((3, 2), (0, 2), (3, 0), (5, 5), (0, 0), (1, 1))])
    assert f.cache_info().dynamic == 1


def test_slices_of_what_is_too_short() -> None:
    def make() -> Any:
        x = K.placeholder((None,))
        return K.function([x], [x[1:3], x[2:], x[:-2], x[::2]])

    f = agrees(make, [[values(n)] for n in (8, 4, 3, 2, 1, 0, 9)])
    assert f.cache_info().dynamic == 1
    assert f.cache_info().misses == 4  # with 2 elements or fewer some of the slices are empty


def test_a_reshape_needs_sizes_that_divide() -> None:
    x = K.placeholder((None, 3))
    with graphkb.options(dynamic_after=1):
        f = K.function([x], [K.reshape(x, (-1, 2)) * 2])
    for n in (2, 6, 8):
        assert f([values(n, 3)])[0].shape == (3 * n // 2, 2)
    with pytest.raises(ValueError):
        f([values(5, 3)])
    assert (f.cache_info().dynamic, f.cache_info().misses) == (1, 1)


def test_sizes_as_numbers() -> None:
    def make() -> Any:
        x = K.placeholder((None, None))
        return K.function(
            [x], [x / K.cast(K.shape(x)[0], "float32"), K.arange(0, 3), K.tile(x, [1, 2]), K.reverse(x, 0)]
        )

    f = agrees(make, [[values(n, m)] for n, m in ((3, 4), (5, 4), (2, 9), (1, 1))])
    assert f.cache_info().misses == 1


def test_training_with_any_batch() -> None:
    def make() -> Any:
        w, b = K.variable(values(5, 3)), K.variable(values(3))
        x, y = K.placeholder((None, 5)), K.placeholder((None, 3))
        loss = K.mean(K.categorical_crossentropy(K.softmax(y), K.softmax(K.dot(x, w) + b)))
        updates = [(p, p - 0.1 * g) for p, g in zip((w, b), K.gradients(loss, [w, b]))]
        return K.function([x, y], [loss, w + 0], updates=updates)

    f = agrees(make, [[values(n, 5), values(n, 3)] for n in (4, 8, 3, 17, 1, 64)])
    assert f.cache_info().misses == 1


def test_sizes_of_one_name_are_different_sizes() -> None:
    """Axes of placeholders without a name are called alike, and kernels over them look alike."""

    def make() -> Any:
        x, y = K.placeholder((None, None)), K.placeholder((None, None))
        return K.function([x, y], [y, x, K.tanh(x), K.tanh(y), K.sum(x, axis=0), K.sum(y, axis=0)])

    f = agrees(
        make, [[values(3, 100), values(50, 3)], [values(25, 100), values(2, 25)], [values(9, 7), values(70, 80)]]
    )
    assert f.cache_info().dynamic == 1
    assert "for any batch, batch_2, x_1, x_1_2;" in str(f.report())


def test_images_of_any_size() -> None:
    def make() -> Any:
        x, k = K.placeholder((None, None, None, 3)), K.variable(values(3, 3, 3, 4))
        y = K.pool2d(K.relu(K.conv2d(x, k, padding="same")), (2, 2), (2, 2))
        loss = K.mean(K.square(y))
        return K.function([x], [y, loss, *K.gradients(loss, [k])])

    calls = [[values(b, h, w, 3)] for b, h, w in ((2, 8, 9), (1, 12, 5), (3, 4, 4), (1, 2, 3))]
    f = agrees(make, calls)
    assert f.cache_info().misses == 1
    assert f([values(1, 1, 5, 3)])[0].shape == (1, 0, 2, 4)  # no window fits
    assert f.cache_info().misses == 2


def test_loops_of_any_length() -> None:
    def make() -> Any:
        x, u = K.placeholder((None, None, 4)), K.variable(0.3 * values(4, 4))

        def step(inputs: Any, states: list[Any]) -> tuple[Any, list[Any]]:
            h = K.tanh(inputs + K.dot(states[0], u))
            return h, [h]

        last, outputs, _ = K.rnn(step, x, [x[:, 0, :] * 0])
        return K.function([x], [last, outputs, *K.gradients(K.sum(last), [u])])

    f = agrees(make, [[values(b, t, 4)] for b, t in ((2, 3), (2, 7), (5, 1), (1, 20))])
    assert f.cache_info().misses == 1


def test_indices_are_checked_against_the_size_of_the_call() -> None:
    def make() -> Any:
        x, i = K.placeholder((None, 2)), K.placeholder((None,), dtype="int32")
        return K.function([x, i], [K.gather(x, i)])

    def indices(*places: int) -> np.ndarray[Any, Any]:
        return np.array(places, np.int32)

    f = agrees(make, [[values(4, 2), indices(3, 0)], [values(9, 2), indices(8, 8, 1)]])
    with pytest.raises(IndexError):
        f([values(4, 2), indices(4, 0)])
    assert f.cache_info().dynamic == 1


def test_random_draws_of_any_size() -> None:
    x = K.placeholder((None, 3))
    with graphkb.options(dynamic_after=1):
        f = K.function([x], [x * 0 + K.random_uniform(K.shape(x), seed=7)])
    for n in (3, 50):
        drawn = f([values(n, 3)])[0]
        assert drawn.shape == (n, 3)
        assert len(np.unique(drawn)) > 2 * n
    assert f.cache_info().misses == 1


def test_the_workspace_grows_with_the_sizes() -> None:
    def make() -> Any:
        x = K.placeholder((None, 16))
        return K.function([x], [K.dot(K.softmax(K.dot(x, K.transpose(x))), x)])

    f = agrees(make, [[values(n, 16)] for n in (2, 5, 40, 41, 3, 150)])
    info = f.cache_info()
    assert (info.misses, info.native) == (1, 1)
    assert info.hits == 11


# ---------------------------------------------------------------------------------------------- what can not be
def test_what_can_not_be_open_is_told(caplog: pytest.LogCaptureFixture) -> None:
    x = K.placeholder((None, 4))
    f = K.function([x], [K.print_tensor(x, "") * 2])
    with caplog.at_level(logging.INFO, logger="graphkb"):
        for n in (1, 2, 3, 4):
            f([values(n, 4)])
    info = f.cache_info()
    assert (info.misses, info.dynamic) == (4, 0)
    reason = "what print demands of its sizes is known only when it runs"
    told = [r.getMessage() for r in caplog.records if "is not made" in r.getMessage()]
    assert len(told) == 1
    assert reason in told[0]
    assert reason in str(f.report())


def test_a_size_that_meets_a_known_one_stays_known() -> None:
    x, y = K.placeholder((None, None)), K.variable(values(3, 4))
    with graphkb.options(dynamic_after=1):
        f = K.function([x], [K.dot(x, y), x[:, :2]])
    for n in (2, 5, 7):
        assert f([values(n, 3)])[0].shape == (n, 4)
    assert f.cache_info().shapes == (((None, 3),),)


def test_opening_a_size_is_logged_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    f = batch_function(dynamic_after=2)
    with caplog.at_level(logging.INFO, logger="graphkb"):
        for n in (2, 3, 4):
            f([ones(n, 4), ones(n, 4)])
    assert caplog.messages[-1] == "step: compiled for any batch, with x: (None, 4), y: (None, 4)"
    g = batch_function(on_recompile="error")
    g([ones(2, 4), ones(2, 4)])
    with pytest.raises(RecompileError):
        g([ones(3, 4), ones(3, 4)])


def test_the_report_and_the_dumps_show_open_sizes() -> None:
    f = batch_function(dynamic_after=1)
    f([ones(6, 4), ones(6, 4)])
    report = f.report()
    assert "for any batch; the figures are those of batch = 6" in str(report)
    assert report.steps[0].type == "float32[batch, 4]"
    assert report.steps[0].flops == 24
    assert "batch" in f.dump(stage="loops")
    assert "run.body" in f.dump(stage="llvm")


# ---------------------------------------------------------------------------------------------- guards
def test_guards_hold_where_the_code_that_checks_them_does() -> None:
    from graphkb.passes.open_sizes import open_sizes
    from graphkb.runtime.native_call import needed_workspace

    x, k = K.placeholder((None, None, 2)), K.variable(values(3, 2, 2))
    y = K.reshape(K.conv1d(x, k, strides=2, padding="valid"), (-1, 4))
    with graphkb.options(dynamic_after=1):
        f = K.function([x], [y[2:]])
    f([values(4, 9, 2)])
    (made,) = f._core.kept
    spec = made.plan.entry_spec()
    assert spec is not None
    seen = set()
    for n in range(7):
        for m in range(9):
            array = np.zeros((n, m, 2), np.float32)
            serves = made.opened is not None and made.opened.sizes((array.shape,)) is not None
            assert serves == (needed_workspace(spec, [array]) >= 0), (n, m)
            seen.add(serves)
    assert seen == {True, False}
    definition = f.definition
    sizes = f._core.parameters.bind(((1, 3, 2),))
    with pytest.raises(OpenSizeError, match="broadcast or are empty"):
        open_sizes(definition, sizes, set(sizes))


@pytest.mark.parametrize("after", [0, 1])
def test_one_long_row_is_shared_among_threads(after: int) -> None:
    """What was reduced over a row is at hand where its elements are computed in parts."""

    def make() -> Any:
        x = K.placeholder((None, None))
        return K.function([x], [K.softmax(x), K.any(x > 9, axis=1, keepdims=True)])

    f = agrees(make, [[values(1, n)] for n in (60_000, 20_001, 5)], dynamic_after=after, threads=2)
    assert f.cache_info().dynamic == after
