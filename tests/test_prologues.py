"""Element-wise operands that the kernels of matrix products compute: which, how they are run, and what comes out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pytest
from gemm_tools import EPSILON, all_targets, build, products, targets
from test_fuse import kernels

import graphkb
from graphkb import backend as K
from graphkb.codegen.target import Target, host_target
from graphkb.ir.dims import symbol
from graphkb.ir.node import Node
from graphkb.ops import conv, linalg, reduce, shape
from graphkb.ops import elementwise as e
from graphkb.ops.leaf import placeholder

pytest.importorskip("llvmlite")

Array: TypeAlias = np.ndarray[Any, Any]
# Rows, products in a sum, columns: all rows at once, some at a time, sums that are cut, and what is left over.
SIZES = [(1, 64, 33), (7, 70, 9), (100, 300, 24), (257, 64, 70), (301, 1100, 17), (90, 2048, 8), (64, 513, 2)]


def x_(*dims: Any, name: str = "x", dtype: str = "float32") -> Node:
    return placeholder(dims, dtype, name)


def matmul(x: Node, w: Node) -> Node:
    return linalg.dot(x, w, (), (), (1,), (0,))


def affine(x: Any, a: Any, s: Any) -> Any:
    """A column's factor, a row's, and a choice."""
    return (e.relu(x * a + 0.25) if isinstance(x, Node) else np.maximum(x * a + 0.25, 0)) * s


def check(
    inputs: Sequence[Node], output: Node, reference: Callable[..., Array], depth: int, target: Target, fused: int = 1
) -> None:
    """The result is exact within a bound on rounding, with guards around every array, and operands are computed."""
    rng = np.random.default_rng(depth)
    compiled = build(inputs, [output], target)
    found = [k for k in products(compiled.program) if k.prologue is not None]
    assert len(found) == fused
    feeds = [rng.uniform(-1, 1, n.shape).astype(n.dtype) for n in inputs]
    exact = np.longdouble if output.dtype == "float64" else np.float64
    expected = reference(*[f.astype(exact) for f in feeds])
    for at_end in (True, False):
        (got,) = compiled(feeds, at_end)
        assert got.shape == expected.shape
        error = np.max(np.abs(got - expected), initial=0)
        assert error <= 4 * EPSILON[output.dtype] * max(8, depth**0.5) * max(1, np.max(np.abs(expected), initial=0))


@all_targets
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_every_shape(dtype: str, target: Target) -> None:
    for m, k, n in SIZES if dtype == "float32" else SIZES[::2]:
        x, w, a, s = x_(m, k, dtype=dtype), x_(k, n, dtype=dtype), x_(k, dtype=dtype), x_(m, 1, dtype=dtype)
        check([x, w, a, s], matmul(affine(x, a, s), w), lambda x, w, a, s: affine(x, a, s) @ w, k, target)


@targets
def test_large_matrices_that_pass_by(target: Target) -> None:
    for m in (1, 3):
        x, w, b = x_(m, 3000), x_(3000, 500, name="w"), x_(3000, name="b")
        check([x, w, b], matmul(x + b, w), lambda x, w, b: (x + b) @ w, 3000, target)


def test_packed_weights_meet_computed_rows() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(-1, 1, t).astype("float32") for t in ((600, 400), (400, 600)))
    x, w = K.placeholder((600, 400)), K.variable(b)
    f = K.function([x], [K.dot(K.relu(x), w)])
    for _ in range(20):
        np.testing.assert_allclose(f([a])[0], np.maximum(a, 0) @ b.astype("float64"), atol=1e-4)
    square = K.variable(b[:, :400])
    g = K.function([], [K.dot(K.relu(square), square)])
    expected = np.maximum(b[:, :400], 0) @ b[:, :400].astype("float64")
    for _ in range(20):
        np.testing.assert_allclose(g([])[0], expected, atol=1e-4)


@targets
@pytest.mark.parametrize("m", [6, 200])
@pytest.mark.parametrize("turned", list(itertools.product([False, True], repeat=2)), ids=str)
def test_transposes(turned: tuple[bool, bool], m: int, target: Target) -> None:
    k, n = 130, 20
    x, w = x_(*((k, m) if turned[0] else (m, k))), x_(*((n, k) if turned[1] else (k, n)), name="w")
    y = linalg.dot(e.tanh(x), w, (), (), (int(not turned[0]),), (int(turned[1]),))

    def reference(x: Array, w: Array) -> Array:
        x, w = np.tanh(x.T if turned[0] else x), w.T if turned[1] else w
        return x @ w

    check([x, w], y, reference, k, target)


@targets
@pytest.mark.parametrize("batch", [(3,), (40,), (2, 5)], ids=str)
def test_batches(batch: tuple[int, ...], target: Target) -> None:
    x, y = x_(*batch, 50, 64), x_(*batch, 30, 64, name="y")
    axes = tuple(range(len(batch)))
    node = linalg.dot(x * 0.125, y, axes, axes, (len(batch) + 1,), (len(batch) + 1,))
    check([x, y], node, lambda x, y: x * 0.125 @ y.swapaxes(-1, -2), 64, target)


@targets
@pytest.mark.parametrize("t", [3, 250])
def test_rows_of_several_axes(t: int, target: Target) -> None:
    """The rows of a tile have to find their places in what differs from one outer row to the next."""
    x, w, mask, b = x_(5, t, 96), x_(96, 20, name="w"), x_(5, 1, 1, name="m"), x_(t, 96, name="b")
    node = linalg.dot(x * mask + b, w, (), (), (2,), (0,))
    check([x, w, mask, b], node, lambda x, w, m, b: (x * m + b) @ w, 96, target)


@targets
def test_epilogues_and_casts(target: Target) -> None:
    x, w, b = x_(100, 60), x_(60, 60, name="w"), x_(60, name="b")
    node = e.relu(x + matmul(e.relu(x), w) + b)
    check([x, w, b], node, lambda x, w, b: np.maximum(x + np.maximum(x, 0) @ w + b, 0), 60, target)
    image, kernel = x_(2, 9, 9, 64), x_(1, 1, 64, 24, name="w")
    for step in (1, 2):
        node = conv.conv(e.relu(image), kernel, (step, step), (1, 1))
        reference = lambda x, w, step=step: np.maximum(x, 0)[:, ::step, ::step] @ w[0, 0]  # noqa: E731
        check([image, kernel], node, reference, 64, target)


def test_what_lies_in_another_dtype_is_widened_on_the_way() -> None:
    i, w = K.placeholder((50, 300), dtype="uint8"), K.placeholder((300, 9))
    f = K.function([i, w], [K.dot(K.cast(i, "float32") / 255, w)])
    values = np.random.default_rng(0).integers(0, 256, (50, 300)).astype("uint8")
    weights = np.random.default_rng(1).uniform(-1, 1, (300, 9)).astype("float32")
    np.testing.assert_allclose(f([values, weights])[0], (values / 255.0) @ weights.astype("float64"), atol=1e-5)
    assert f.dump(stage="loops").count("kernel ") == 1


@pytest.mark.parametrize("mode", ["interpret", "auto"])
def test_unknown_and_empty_sizes(mode: str) -> None:
    x, w, s = K.placeholder((None, 120)), K.placeholder((120, 20)), K.placeholder((None, 1))
    f = K.function([x, w, s], [K.dot(K.relu(x) * s, w) + 1])
    rng = np.random.default_rng(0)
    for n in (3, 0, 1, 2, 5, 130, 700, 11):
        a, b, c = (rng.uniform(-1, 1, t).astype("float32") for t in ((n, 120), (120, 20), (n, 1)))
        expected = (np.maximum(a, 0) * c).astype("float64") @ b + 1
        with graphkb.options(mode=mode):
            np.testing.assert_allclose(f([a, b, c])[0], expected, atol=1e-5)


def test_open_sizes_everywhere() -> None:
    n, k = symbol("n"), symbol("k")
    x, w, a = x_(n, k), x_(k, 12, name="w"), x_(k, name="a")
    compiled = build([x, w, a], [matmul(e.tanh(x * a), w)], host_target())
    (kernel,) = products(compiled.program)
    assert kernel.prologue is not None
    rng = np.random.default_rng(0)
    for m, depth in [(1, 1), (5, 40), (100, 700), (33, 1300), (0, 3)]:
        feeds = [rng.uniform(-1, 1, t).astype("float32") for t in ((m, depth), (depth, 12), (depth,))]
        exact = [f.astype("float64") for f in feeds]
        expected = np.tanh(exact[0] * exact[2]) @ exact[1]
        for at_end in (True, False):
            np.testing.assert_allclose(compiled(feeds, at_end)[0], expected, atol=2e-4)


def test_results_do_not_depend_on_threads() -> None:
    x, w = K.placeholder((1000, 256)), K.placeholder((256, 48))
    rng = np.random.default_rng(0)
    feeds = [rng.uniform(-1, 1, t).astype("float32") for t in ((1000, 256), (256, 48))]
    f = K.function([x, w], [K.dot(K.sigmoid(x), w)])
    results = []
    for n in (1, 2, 3):
        with graphkb.options(threads=n):
            results.append(f(feeds)[0])
    first, *others = results
    assert all(np.array_equal(first, other) for other in others)
    np.testing.assert_allclose(first, 1 / (1 + np.exp(-feeds[0].astype("float64"))) @ feeds[1], atol=3e-5)


# ---------------------------------------------------------------------------------------------- what is fused
def test_an_operand_with_one_reader_joins_the_product() -> None:
    x, w, a = x_(40, 50), x_(50, 6, name="w"), x_(50, name="a")
    assert kernels(e.relu(matmul(x * a, w))) == [["mul", "dot", "relu"]]
    assert kernels(linalg.dot(x * 2, x_(50, name="v"), (), (), (1,), (0,))) == [["mul", "dot"]]


def test_an_operand_with_two_readers_stands_in_memory() -> None:
    x, w = x_(40, 50), x_(50, 6, name="w")
    y = e.tanh(x)
    assert kernels(matmul(y, w), y) == [["tanh"], ["dot"]]
    assert kernels(matmul(y, w), matmul(y, x_(50, 7, name="v"))) == [["tanh"], ["dot"], ["dot"]]


def test_epilogues_and_rows_stay_where_they_cost_nothing() -> None:
    x, w, v = x_(40, 50), x_(50, 60, name="w"), x_(60, 5, name="v")
    assert kernels(matmul(e.relu(matmul(x, w)), v)) == [["dot", "relu"], ["dot"]]
    scaled = x / reduce.reduce_sum(x, (1,), True)
    assert kernels(matmul(scaled, w)) == [["sum", "div"], ["dot"]]
    # The sums of columns are known after all rows: dividing by them is a pass of its own, or none.
    scaled = x / reduce.reduce_sum(x, (0,), True)
    assert kernels(matmul(scaled, w)) == [["sum"], ["div", "dot"]]


def test_many_columns_read_what_is_computed_once() -> None:
    x, w = x_(4096, 1024), x_(1024, 1024, name="w")
    assert kernels(matmul(x * 2, w)) == [["mul"], ["dot"]]
    assert kernels(matmul(x_(1, 1024) * 2, w)) == [["mul", "dot"]]
    # A row that is the same for all is computed before.
    row = shape.broadcast_to(e.exp(x_(50)), (40, 50))
    assert kernels(matmul(row + 1, x_(50, 6, name="w")))[-1] == ["dot"]
