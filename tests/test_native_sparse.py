"""Tests of native sparse ops and bounds: whole programs of kernels, empty matrices, padding, entries out of range."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphkb import backend as K
from graphkb.backend import Tensor
from graphkb.ir.dims import Dim
from graphkb.ops import sparse
from graphkb.ops.values import bounded
from graphkb.runtime.options import options

pytest.importorskip("llvmlite")
Array = np.ndarray[Any, Any]


def entries(height: int, width: int, count: int, dtype: str) -> list[Array]:
    """Values, rows and columns, some of which stand for nothing."""
    rng = np.random.default_rng(height + width)
    places = [rng.integers(0, max(n, 1), count) if n else np.full(count, -1) for n in (height, width)]
    places[0][rng.random(count) < 0.2] = -1
    if not width:
        places[0][:] = -1
    return [rng.integers(-5, 5, count).astype(dtype), *[p.astype("int64") for p in places]]


def build(height: Dim, width: Dim, dims: tuple[Any, ...], dtype: str) -> tuple[list[Tensor], list[Tensor]]:
    """Placeholders of entries, of a dense matrix and of two factors; a product, a sample, a dense and a picked one."""
    inputs = [K.placeholder((None,), dtype=d) for d in (dtype, "int64", "int64")]
    inputs += [K.placeholder(shape, dtype=dtype) for shape in dims]
    v, r, c, x, left, right, whole = (t.node for t in inputs)
    outputs = [sparse.sparse_dot(v, r, c, x, height), sparse.sparse_sample(left, r, c, right)]
    outputs += [sparse.sparse_dense(v, r, c, (height, width)), sparse.sparse_pick(whole, r, c)]
    return inputs, [Tensor(node) for node in outputs]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32"])
@pytest.mark.parametrize(("height", "width"), [(5, 7), (1, 300), (40, 3), (0, 4), (4, 0)])
@pytest.mark.parametrize("known", [True, False])
def test_sparse_ops_are_native_and_equal_the_interpreter(height: int, width: int, dtype: str, known: bool) -> None:
    rng = np.random.default_rng(0)
    shapes = [(width, 9), (height, 6), (width, 6), (height, width)]
    feeds = entries(height, width, 60, dtype) + [rng.integers(-5, 5, s).astype(dtype) for s in shapes]
    dims = shapes if known else [(None, s[1]) for s in shapes[:3]] + [(None, None)]
    results = []
    for mode in ("native", "interpret"):
        inputs, outputs = build(height, width, tuple(dims), dtype)
        with options(mode=mode):
            function = K.function(inputs, outputs)
            results.append(function(feeds))
            assert mode == "interpret" or function.report().interpreted == 0
    for native, interpreted in zip(*results):
        np.testing.assert_array_equal(native, interpreted)


def test_an_entry_outside_is_an_error_before_anything_is_written() -> None:
    total = K.variable(np.zeros((5, 9)))
    inputs, outputs = build(5, 7, ((7, 9), (5, 6), (7, 6), (5, 7)), "float32")
    function = K.function(inputs, [], updates=[(total, total + outputs[0])])
    feeds = entries(5, 7, 20, "float32") + [np.ones(s, "float32") for s in ((7, 9), (5, 6), (7, 6), (5, 7))]
    function(feeds)
    before = K.get_value(total)
    feeds[2][3], feeds[1][3] = 7, 0
    with pytest.raises(IndexError, match="sparse_dot: an entry lies outside of the matrix of shape"):
        function(feeds)
    np.testing.assert_array_equal(K.get_value(total), before)


def test_sparse_layers_are_native_with_their_gradients() -> None:
    x = K.placeholder((None, 30), sparse=True)
    w = K.variable(np.random.default_rng(1).normal(size=(30, 8)))
    loss = K.mean(K.square(K.dot(x, w)))
    function = K.function([x], [loss], updates=[(w, w - K.gradients(loss, [w])[0])])
    scipy_sparse = pytest.importorskip("scipy.sparse")
    matrix = scipy_sparse.random(12, 30, 0.2, "csr", np.float32, np.random.default_rng(2))
    start = K.get_value(w)
    with np.errstate(all="ignore"):
        (value,) = function([matrix])
    product = matrix @ start
    np.testing.assert_allclose(value, np.mean(product**2), rtol=1e-5)
    expected = start - matrix.T @ (2 * product / product.size)
    np.testing.assert_allclose(K.get_value(w), expected, rtol=1e-4, atol=1e-6)
    assert function.report().interpreted == 0


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64"])
def test_bounds_are_checked_natively(dtype: str) -> None:
    x = K.placeholder((None,), dtype=dtype)
    function = K.function([x], [Tensor(bounded(x.node, "steps", 1, 1000)) + 1])
    np.testing.assert_array_equal(function([np.array([1, 5], dtype)])[0], [2, 6])
    assert function.report().interpreted == 0
    with pytest.raises(ValueError, match="steps: expected integers from 1 to 1000, got 0"):
        function([np.array([1, 0], dtype)])


def test_the_loss_of_ctc_is_native() -> None:
    labels, predictions = K.placeholder((2, 3), dtype="int32"), K.placeholder((2, 6, 5))
    lengths = [K.placeholder((2, 1), dtype="int32") for _ in range(2)]
    loss = K.ctc_batch_cost(labels, predictions, *lengths)
    function = K.function([labels, predictions, *lengths], [loss, K.gradients(loss, [predictions])[0]])
    scores = np.random.default_rng(3).random((2, 6, 5)).astype("float32")
    feeds = [np.array([[0, 1, 1], [2, 0, 0]], "int32"), scores / scores.sum(-1, keepdims=True)]
    feeds += [np.array([[6], [5]], "int32"), np.array([[3], [1]], "int32")]
    function(feeds)
    assert function.report().interpreted == 0
