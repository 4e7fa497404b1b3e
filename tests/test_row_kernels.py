"""Tests of kernels of several reductions: over rows, and over any axes, with their gradients, against float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from graphkb import backend as K
from graphkb.backend import Tensor
from graphkb.ops.elementwise import select
from graphkb.runtime.options import options

pytest.importorskip("llvmlite")
Array = np.ndarray[Any, Any]
TARGETS = ["x86-64-v2", "x86-64-v3", "host"]
SHAPES = [(1, 1), (3, 1), (1, 7), (5, 17), (4, 64), (2, 3, 130), (0, 5), (3, 1000)]


def normalized(x: Tensor) -> Tensor:
    centered = x - K.mean(x, axis=-1, keepdims=True)
    return centered / K.sqrt(K.mean(K.square(centered), axis=-1, keepdims=True) + 1e-5)


def cross_entropy(x: Tensor) -> Tensor:
    return K.categorical_crossentropy(K.softmax(x * 0.5), x, from_logits=True)


ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": K.softmax,
    "log_softmax": lambda x: K.log(K.softmax(x * 0.25)),
    "logsumexp": lambda x: K.logsumexp(x, axis=-1),
    "normalized": normalized,
    "cross_entropy": cross_entropy,
    "deviation": lambda x: K.std(x, axis=-1) + K.mean(x, axis=-1),
    "share": lambda x: x / (K.sum(K.abs(x), axis=-1, keepdims=True) + 1),
}


def values(dims: Sequence[int], seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=dims) * 3


def both_ways(function: Callable[[Tensor], Tensor], dims: Sequence[int], dtype: str) -> tuple[Tensor, list[Tensor]]:
    """An input, what the function gives for it, and the gradient of that, weighted."""
    x = K.placeholder(tuple(dims), dtype=dtype)
    y = function(x)
    weights = K.constant(values([n or 0 for n in K.int_shape(y)], 1), dtype=dtype)
    return x, [y, *K.gradients(K.sum(y * weights), [x])]


def check(function: Callable[[Tensor], Tensor], dims: Sequence[int], dtype: str, target: str, bound: float) -> int:
    """Compare native results with those in float64; returns the number of kernels."""
    x, outputs = both_ways(function, dims, dtype)
    feed = values(dims).astype(dtype)
    with options(target=target, mode="native"):
        native = K.function([x], outputs)
        results = native([feed])
    with options(mode="interpret"):
        wide, expected = both_ways(function, dims, "float64")
        wanted = K.function([wide], expected)([feed.astype("float64")])
    for result, one in zip(results, wanted):
        assert result.dtype == dtype
        assert result.shape == one.shape
        np.testing.assert_allclose(result.astype("float64"), one, rtol=bound, atol=bound * 10)
    return len(native.report().steps)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ROWS)
def test_rows_and_their_gradients(name: str, target: str) -> None:
    for dims in SHAPES:
        check(ROWS[name], dims, "float32", target, 2e-5)


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float16", 1e-2)])
@pytest.mark.parametrize("name", ROWS)
def test_rows_of_other_dtypes(name: str, dtype: str, bound: float) -> None:
    for dims in [(5, 17), (3, 64)]:
        check(ROWS[name], dims, dtype, "host", bound)


@pytest.mark.parametrize("dims", [(1, 3), (1, 1, 5), (1, 1)])
def test_several_sums_of_one_row_over_all_axes(dims: tuple[int, ...]) -> None:
    def positive(total: Tensor) -> Tensor:
        return Tensor(select((total > 0.5).node, total.node, (total * 0).node))

    def counts(x: Tensor) -> Tensor:
        above = x > 1
        return positive(K.sum(K.cast(above, x.dtype))) + positive(K.sum(K.cast(K.equal(above, False), x.dtype)))

    x = K.placeholder(dims)
    with options(mode="native"):
        f = K.function([x], [counts(x)])
    for scale in (0, 1, 9):
        assert f([np.full(dims, scale)])[0] == np.prod(dims)


@pytest.mark.parametrize("dims", [(0, 5), (0, 1), (2, 0, 3)])
@pytest.mark.parametrize("keepdims", [True, False])
def test_no_rows_at_all(dims: tuple[int, ...], keepdims: bool) -> None:
    x = K.placeholder(dims)
    with options(mode="native"):
        f = K.function([x], [K.var(x, axis=-1, keepdims=keepdims)])
    found = f([np.zeros(dims)])
    assert found[0].shape == np.zeros(dims).sum(-1, keepdims=keepdims).shape


@pytest.mark.parametrize("name", ROWS)
def test_rows_and_their_gradients_are_one_kernel(name: str) -> None:
    assert check(ROWS[name], (40, 100), "float32", "host", 2e-5) == 1


def test_the_loss_of_a_classifier_with_its_gradient_is_one_pass() -> None:
    x, labels = K.placeholder((30, 50)), K.placeholder((30,), dtype="int32")
    loss = K.sparse_categorical_crossentropy(labels, x, from_logits=True)
    function = K.function([x, labels], [loss, *K.gradients(K.sum(loss), [x])])
    logits, chosen = values((30, 50)), np.arange(30, dtype="int32") % 50
    result, gradient = function([logits.astype("float32"), chosen])
    assert len(function.report().steps) == 1
    softmax = np.exp(logits - logits.max(1, keepdims=True))
    softmax /= softmax.sum(1, keepdims=True)
    np.testing.assert_allclose(result, -np.log(softmax[np.arange(30), chosen]), rtol=1e-5)
    np.testing.assert_allclose(gradient, softmax - np.eye(50)[chosen], atol=1e-6)


def test_rows_with_nan_and_infinities() -> None:
    x = K.placeholder((6, 40))
    feed = values((6, 40)).astype("float32")
    feed[1, 3], feed[2, 5], feed[3, 7], feed[4] = np.nan, np.inf, -np.inf, -np.inf
    outputs = [f(x) for f in ROWS.values()] + K.gradients(K.sum(K.log(K.softmax(x)) * K.sigmoid(x)), [x])
    with options(mode="interpret"):
        expected = K.function([x], outputs)([feed])
    for result, one in zip(K.function([x], outputs)([feed]), expected):
        np.testing.assert_allclose(result, one, rtol=1e-5, atol=1e-6)


def test_a_row_kernel_writes_over_an_operand_that_dies() -> None:
    x, w = K.placeholder((64, 64)), K.variable(np.eye(64))
    function = K.function([x], [K.dot(K.softmax(K.dot(x, w)), w)])
    feed = values((64, 64)).astype("float32")
    (result,) = function([feed])
    assert function.report().planned_bytes == 64 * 64 * 4
    wanted = np.exp(feed - feed.max(1, keepdims=True))
    np.testing.assert_allclose(result, wanted / wanted.sum(1, keepdims=True), rtol=1e-5, atol=1e-7)


def test_a_row_kernel_that_reads_a_row_again_writes_elsewhere() -> None:
    w = K.variable(values((9, 33)))
    centered = w - K.mean(w, axis=1, keepdims=True)
    new = K.sum(K.exp(centered), axis=1, keepdims=True) + centered * K.max(w, axis=1, keepdims=True)
    old = K.get_value(w).astype("float64")
    K.function([], [], updates=[(w, new)])([])
    c = old - old.mean(1, keepdims=True)
    wanted = np.exp(c).sum(1, keepdims=True) + c * old.max(1, keepdims=True)
    np.testing.assert_allclose(K.get_value(w), wanted, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------------------- any axes
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dims", [(1, 1, 1), (3, 4, 5), (40, 60, 8), (0, 2, 3), (7, 200, 33), (5, 1, 70), (2000, 1, 3)])
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_several_reductions_over_any_axes(dims: tuple[int, ...], axes: tuple[int, ...], target: str) -> None:
    x, y = K.placeholder(dims), K.placeholder(dims)
    z = x * y + 1
    which = list(axes)
    outputs = [z, K.sum(z, axis=which), K.sum(K.square(y), axis=which) + 1, K.any(K.greater(x, 2.0), axis=which)]
    outputs += [K.sum(x, axis=which, keepdims=True)] + ([] if 0 in dims else [K.max(x, axis=which, keepdims=True) * 2])
    a, b = values(dims), values(dims, 1)
    with options(target=target, mode="native"):
        results = K.function([x, y], outputs)([a.astype("float32"), b.astype("float32")])
    wanted = [a * b + 1, (a * b + 1).sum(axes), (b * b).sum(axes) + 1, (a > 2).any(axes), a.sum(axes, keepdims=True)]
    wanted += [] if 0 in dims else [a.max(axes, keepdims=True) * 2]
    for result, one in zip(results, wanted):
        np.testing.assert_allclose(result, one, rtol=1e-5, atol=1e-3)


def test_statistics_of_a_batch_are_read_once_for_all_that_is_known() -> None:
    x, g = K.placeholder((6, 10, 10, 20)), K.placeholder((6, 10, 10, 20))
    scale, shift = K.variable(np.full(20, 1.5)), K.variable(np.full(20, 0.5))
    y, _, _ = K.normalize_batch_in_training(x, scale, shift, [0, 1, 2])
    function = K.function([x, g], [y, *K.gradients(K.sum(y * g), [x, scale, shift])])
    a, b = values((6, 10, 10, 20)), values((6, 10, 10, 20), 1)
    results = function([a.astype("float32"), b.astype("float32")])
    axes, n = (0, 1, 2), 600
    deviation = np.sqrt(a.var(axes) + 1e-3)
    hat = (a - a.mean(axes)) / deviation
    slope = 1.5 / deviation / n * (n * b - b.sum(axes) - hat * (b * hat).sum(axes) * a.var(axes) / a.var(axes))
    np.testing.assert_allclose(results[0], hat * 1.5 + 0.5, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(results[1], slope, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(results[2], (b * hat).sum(axes), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(results[3], b.sum(axes), rtol=1e-4, atol=1e-3)
    assert function.report().planned_bytes < a.size


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dims", [(9, 70, 64, 32), (301, 2000, 3)])
def test_several_large_reductions_in_blocks(dims: tuple[int, ...], threads: int) -> None:
    x, y = K.placeholder(dims), K.placeholder(dims)
    axes = list(range(len(dims) - 1))
    outputs = [K.sum(x * y, axis=axes), K.max(x, axis=axes), K.relu(x + y), K.sum(y, axis=axes, keepdims=True) * 2]
    a, b = values(dims).astype("float32"), values(dims, 1).astype("float32")
    with options(threads=threads):
        function = K.function([x, y], outputs)
        results = function([a, b])
        again = function([a, b])
    assert len(function.report().steps) == 1
    wide = [a.astype("float64"), b.astype("float64")]
    over = tuple(axes)
    wanted = [(wide[0] * wide[1]).sum(over), a.max(over), np.maximum(a + b, 0), wide[1].sum(over, keepdims=True) * 2]
    for result, same, one in zip(results, again, wanted):
        np.testing.assert_array_equal(result, same)
        np.testing.assert_allclose(result, one, rtol=2e-6, atol=2e-2)
