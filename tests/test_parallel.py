"""Parallel kernels: which loops threads share, and results that do not depend on how many there are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import graphkb
from graphkb import backend as K
from graphkb.codegen import blocks, parallel
from graphkb.codegen.target import host_target
from graphkb.codegen.thread_pool import system_of
from graphkb.runtime import threads
from graphkb.runtime.function import Function

pytestmark = pytest.mark.skipif(not system_of(host_target()), reason="no pool for this system")

Arrays = Sequence[np.ndarray]
RANDOM = np.random.default_rng(7)


def normal(*shape: int, dtype: str = "float32") -> np.ndarray:
    return (RANDOM.normal(size=shape) * 3).astype(dtype)


def function(count: int, build: Callable[..., Any], arrays: Arrays) -> Function:
    with graphkb.options(threads=count, mode="native", kernel_cache="off"):
        inputs = [K.placeholder(a.shape, dtype=a.dtype.name) for a in arrays]
        outputs = build(*inputs)
        return K.function(inputs, outputs if isinstance(outputs, list) else [outputs])


# What is computed, from which arrays, and how the loops that are shared print; "" where none may be.
KERNELS: list[tuple[str, Callable[..., Any], list[np.ndarray], str]] = [
    ("map", lambda x: K.tanh(x) * K.exp(-K.abs(x)), [normal(300_001)], "parallel i0 by "),
    ("several results", lambda x: [K.exp(x), x * 2.0 + K.exp(x)], [normal(200_003)], "parallel i0 by "),
    ("broadcast", lambda x, y: x + y, [normal(3, 100_003), normal(1, 100_003)], "parallel i1 by "),
    ("int32", lambda x: x * x + 3, [np.arange(300_007, dtype=np.int32)], "parallel i0 by "),
    ("bool", lambda x: K.greater(x, 0.5), [normal(400_003)], "parallel i0 by "),
    ("float16", lambda x: K.sqrt(K.abs(x)), [normal(200_003, dtype="float16")], "parallel i0 by "),
    ("float64", K.sigmoid, [normal(100_003, dtype="float64")], "parallel i0 by "),
    ("softmax", K.softmax, [normal(301, 403)], "parallel i0 by "),
    ("logsumexp", lambda x: K.logsumexp(x, axis=-1), [normal(501, 303)], "parallel i0 by "),
    ("normalization", lambda x: (x - K.mean(x, -1, True)) / K.std(x, -1, True), [normal(301, 403)], "parallel "),
    ("row sums", lambda x: K.sum(x, 1), [normal(701, 503)], "parallel i0 by "),
    ("column sums", lambda x: K.sum(x, 0), [normal(1501, 203)], "parallel block by 1:"),
    ("sums of long rows", lambda x: K.sum(x, 0), [normal(1030, 1100)], "parallel block by 1:"),
    ("wide column sums", lambda x: K.sum(x, 0), [normal(100, 9001)], "parallel i0 by "),
    ("few long rows", lambda x: K.sum(x, 1), [normal(3, 300_007)], "parallel block by 1:"),
    ("full sum", K.sum, [normal(1001, 1003)], "parallel block by 1:"),
    ("full sum of int64", K.sum, [np.arange(300_007, dtype=np.int64)], "parallel block by 1:"),
    ("full product", K.prod, [normal(300_007, dtype="float64") / 9 + 1], "parallel block by 1:"),
    ("maximum", K.max, [normal(300_007)], "parallel block by 1:"),
    ("maximum with NaN", K.max, [np.where(np.arange(300_007) == 299_999, np.nan, 1.0)], "parallel block by 1:"),
    ("any", lambda x: K.any(K.greater(x, 14.0)), [normal(400_007)], "parallel block by 1:"),
    ("argmax", lambda x: K.argmax(x, -1), [normal(701, 503)], "parallel i0 by "),
    ("channel statistics", lambda x: [K.mean(x, (0, 1, 2)), K.var(x, (0, 1, 2))], [normal(9, 37, 31, 17)], "block"),
    ("product", lambda x, y: K.relu(K.dot(x, y) + 1.0), [normal(701, 503), normal(503, 399)], " parallel:"),
    (
        "convolution",
        lambda x, k: K.conv2d(x, k, padding="same"),
        [normal(3, 28, 28, 16), normal(3, 3, 16, 32)],
        "parallel",
    ),
    ("map and its column sums", lambda x: [K.exp(x), K.sum(K.exp(x), 0)], [normal(3001, 67)], "parallel block by 1:"),
    ("map and its full sum", lambda x: [K.exp(x), K.sum(K.exp(x)), K.max(x)], [normal(401, 503)], "parallel block by "),
    ("transpose", K.transpose, [normal(801, 703)], "parallel i0 by "),
    ("concatenate", lambda x, y: K.concatenate([x, y]), [normal(501, 303), normal(501, 404)], "parallel i0 by "),
    ("joined sums", lambda x: K.concatenate([K.sum(x, 0), K.max(x, 0)]), [normal(3001, 67)], "parallel block by 1:"),
    ("stack", lambda x, y: K.stack([x, y], -1), [normal(200_001), normal(200_001)], "parallel i0 by "),
    ("pad", K.spatial_2d_padding, [normal(5, 61, 67, 17)], "parallel i0 by "),
    ("reverse", lambda x: K.reverse(x, 0), [normal(301, 1003)], "parallel i0 by "),
    ("gather", K.gather, [normal(50, 301), RANDOM.integers(0, 50, 901).astype(np.int32)], "parallel i0 by "),
    ("running sums", lambda x: K.cumsum(x, 1), [normal(301, 603)], "parallel i0 by "),
    ("running sums of columns", lambda x: K.cumsum(x, 0), [normal(603, 1100)], "parallel i1 by "),
    ("running sums of costly values", lambda x: K.cumsum(K.exp(x), 1), [normal(301, 603)], "parallel i0 by "),
    ("one running sum of costly values", lambda x: K.cumsum(K.exp(x)), [normal(300_001)], ""),
    ("one running sum", lambda x: K.cumsum(x), [normal(300_001)], ""),
    ("small", lambda x: K.exp(x) + 1.0, [normal(1000)], ""),
    ("scalar", lambda x: x + 1.0, [normal()], ""),
    ("empty", lambda x: K.exp(x), [normal(0, 100_000)], ""),
]


@pytest.mark.parametrize(("build", "arrays", "loop"), [k[1:] for k in KERNELS], ids=[k[0] for k in KERNELS])
def test_results_do_not_depend_on_the_number_of_threads(build: Callable[..., Any], arrays: Arrays, loop: str) -> None:
    single = function(1, build, arrays)
    expected = single(list(arrays))
    text = single.dump(stage="loops")
    assert loop in text if loop else "\n  parallel " not in text
    for count in (2, 5):
        several = function(count, build, arrays)
        for _ in range(5):
            for one, other in zip(expected, several(list(arrays))):
                np.testing.assert_array_equal(one, other, strict=True)
        assert several.dump(stage="loops") == text


def test_sums_in_blocks_are_as_exact_as_before() -> None:
    x = normal(2003, 1501)
    rows, columns, all_of_it = function(2, lambda x: [K.sum(x, 1), K.sum(x, 0), K.sum(x)], [x])([x])
    exact = x.astype(np.float64)
    for found, axis in ((rows, 1), (columns, 0), (all_of_it, None)):
        scale = np.abs(exact).sum(axis)
        assert np.max(np.abs(found - exact.sum(axis)) / scale) < 2e-7


def test_random_draws_do_not_depend_on_the_number_of_threads() -> None:
    drawn = []
    for count in (1, 2, 5):
        with graphkb.options(threads=count, mode="native", kernel_cache="off"):
            tensors = [K.random_normal((301, 703), seed=5), K.dropout(K.ones((100_003,)), 0.3, seed=6)]
            draw = K.function([], tensors)
        drawn.append([*draw([]), *draw([])])
    assert not np.array_equal(drawn[0][0], drawn[0][2])
    for other in drawn[1:]:
        for one, two in zip(drawn[0], other):
            np.testing.assert_array_equal(one, two)


def test_scattered_rows_are_shared_by_columns() -> None:
    """Indices may repeat, so no thread may take other rows; each takes columns of its own."""
    x, i = normal(301, 1024), RANDOM.integers(0, 40, 301).astype(np.int32)
    table = np.zeros((40, 1024), np.float32)

    def gradient(t: Any, x: Any, i: Any) -> Any:
        return K.gradients(K.sum(K.gather(t, i) * x), [t])[0]

    expected = np.zeros((40, 1024))
    np.add.at(expected, i, x)
    answers = [function(count, gradient, [table, x, i])([table, x, i])[0] for count in (1, 3)]
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_allclose(answers[0], expected, rtol=1e-5, atol=1e-4)
    assert "parallel i1 by 256:" in function(2, gradient, [table, x, i]).dump(stage="loops")


def test_every_division_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """With parts as small as they can be, many threads and odd sizes, every form still agrees with one thread."""
    for module in (parallel, blocks):
        monkeypatch.setattr(module, "PART", 1)
        monkeypatch.setattr(module, "RUN", 1)
    for name, build, arrays, _ in KERNELS:
        small = [a[tuple(slice(0, 23) for _ in a.shape)] % 23 if a.dtype.kind == "i" else a for a in arrays]
        small = [a[tuple(slice(0, 23) for _ in a.shape)] for a in small]
        if name == "gather":
            small[0] = arrays[0][:, :23]
        expected = function(1, build, small)(small)
        for one, other in zip(expected, function(7, build, small)(small)):
            np.testing.assert_array_equal(one, other, err_msg=name)


def test_python_threads_call_at_once() -> None:
    x = normal(301, 1003)
    softmax, total = function(3, K.softmax, [x]), function(3, K.sum, [x])
    expected = softmax([x])[0], total([x])[0]
    wrong: list[bool] = []

    def call() -> None:
        for _ in range(30):
            wrong.append(not np.array_equal(softmax([x])[0], expected[0]))
            wrong.append(not np.array_equal(total([x])[0], expected[1]))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not any(wrong)


def test_a_function_keeps_its_number_of_threads() -> None:
    x = normal(300_001)
    function(1, K.exp, [x])([x])
    before = threads.started_workers()
    function(1, lambda x: K.exp(x) - 1.0, [x])([x])
    assert threads.started_workers() == before
    many = function(before + 3, K.exp, [x])
    for _ in range(3):
        many([x])
    assert threads.started_workers() == before + 2


def test_a_shared_kernel_may_write_over_what_it_reads() -> None:
    w = K.variable(normal(301, 403))
    expected = K.get_value(w)
    with graphkb.options(threads=3, mode="native", kernel_cache="off"):
        step = K.function([], [], updates=[(w, K.softmax(w))])
    for _ in range(3):
        step([])
        shifted = np.exp(expected - expected.max(-1, keepdims=True))
        expected = shifted / shifted.sum(-1, keepdims=True)
    np.testing.assert_allclose(K.get_value(w), expected, rtol=1e-5)
    assert "copy" not in step.dump(stage="loops")
