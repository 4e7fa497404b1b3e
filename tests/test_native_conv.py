"""Convolutions in machine code: odd shapes, strides, dilations, epilogues and gradients against their definition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from contracts import Array
from contracts_conv import definition
from gemm_tools import EPSILON, all_targets, build, products, targets

from graphkb.codegen.gemm import Gemm
from graphkb.codegen.parts import Joined
from graphkb.codegen.target import Target, host_target, named_target
from graphkb.gradients import gradients
from graphkb.ir.dims import free_symbols, symbol
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node
from graphkb.ops import elementwise as e
from graphkb.ops import shape
from graphkb.ops.conv import conv, conv_transpose
from graphkb.ops.leaf import placeholder
from graphkb.ops.window import pad_lowest, window_max, window_sum
from graphkb.passes.simplify import Simplify
from graphkb.runtime.interpreter import Program

pytest.importorskip("llvmlite")

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A convolution of (samples, places…, channels) with (taps…, channels, filters)."""

    x: Axes
    kernel: Axes
    strides: Axes
    dilations: Axes
    dtype: str = "float32"

    def feeds(self) -> list[Array]:
        rng = np.random.default_rng([*self.x, *self.kernel])
        return [rng.uniform(-1, 1, s).astype(self.dtype) for s in (self.x, self.kernel)]

    def exact(self, x: Array, kernel: Array) -> tuple[Array, Array]:
        """The result, and the classic bound on the error of a float sum."""
        x, kernel = x.astype(np.longdouble), kernel.astype(np.longdouble)
        y = definition(x, kernel, self.strides, self.dilations)
        size = definition(np.abs(x), np.abs(kernel), self.strides, self.dilations)
        count = np.prod(self.kernel[:-1]) + 1
        bound = count * EPSILON["float32" if self.dtype == "float16" else self.dtype] * size
        return y, bound + (EPSILON["float16"] * np.abs(y) + 2.0**-25 if self.dtype == "float16" else 0)


def random_cases(seed: int, count: int, dtype: str = "float32") -> list[Case]:
    rng = np.random.default_rng(seed)
    cases = []
    while len(cases) < count:
        n = int(rng.integers(1, 4))
        taps, strides, dilations = (tuple(map(int, rng.integers(1, most, n))) for most in (5, 4, 3))
        sizes = [(k - 1) * d + 1 + int(extra) for k, d, extra in zip(taps, dilations, rng.integers(0, 12 // n, n))]
        channels, filters = (int(rng.choice([1, 2, 3, 8, 17, 33])) for _ in range(2))
        samples = int(rng.choice([0, 1, 1, 2, 5]))
        cases.append(Case((samples, *sizes, channels), (*taps, channels, filters), strides, dilations, dtype))
    return cases


def check(cases: list[Case], target: Target) -> None:
    """The results are exact within the bound, with guards behind and before every array."""
    inputs: list[Node] = []
    outputs: list[Node] = []
    for case in cases:
        x, kernel = placeholder(case.x, case.dtype, "x"), placeholder(case.kernel, case.dtype, "k")
        inputs += [x, kernel]
        outputs.append(conv(x, kernel, case.strides, case.dilations))
    compiled = build(inputs, outputs, target)
    feeds = [case.feeds() for case in cases]
    for at_end in (True, False):
        for case, pair, got in zip(cases, feeds, compiled([a for ab in feeds for a in ab], at_end)):
            exact, bound = case.exact(*pair)
            assert got.shape == exact.shape
            excess = np.max(np.abs(got - exact) - bound, initial=0)
            assert excess <= 0, f"{case}: beyond its error bound by {excess}"


@all_targets
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_random_shapes(dtype: str, target: Target) -> None:
    check(random_cases(len(dtype), 12, dtype), target)


# Rows of images that are no multiple of a tile, taps that are deeper than a block, many filters, long kernels.
SHAPES = (
    Case((2, 9, 7, 17), (3, 3, 17, 65), (1, 1), (1, 1)),
    Case((1, 16, 15, 3), (7, 7, 3, 40), (2, 2), (1, 1)),
    Case((3, 7, 7, 200), (3, 3, 200, 48), (1, 1), (1, 1)),
    Case((1, 5, 5, 800), (2, 2, 800, 20), (1, 1), (1, 1)),
    Case((2, 8, 9, 33), (1, 1, 33, 130), (2, 2), (1, 1)),
    Case((1, 40, 3), (9, 3, 1), (1,), (2,)),
    Case((1, 6, 6, 5, 9), (3, 3, 3, 9, 18), (1, 2, 1), (1, 1, 1)),
    Case((40, 4, 4, 8), (3, 3, 8, 16), (1, 1), (1, 1)),
    Case((2, 5, 4, 16), (2, 2, 16, 1100), (1, 1), (1, 1)),
)


@targets
def test_shapes_of_tiles(target: Target) -> None:
    check(list(SHAPES), target)


def test_rows_of_an_image_are_one_axis_and_taps_stay_in_registers() -> None:
    x, kernel = placeholder((1, 16, 16, 64), "float32", "x"), placeholder((3, 3, 64, 64), "float32", "x")
    (product,) = products(build([x, kernel], [conv(x, kernel, (1, 1), (1, 1))], host_target()).program)
    assert [v.extent for v in product.rows] == [14, 14]
    assert [v.extent for v in product.inner] == [3]
    assert product.scratch == 0


@all_targets
def test_epilogues(target: Target) -> None:
    """Bias, residual and relu join the convolution's kernel, in registers and, where costly, in memory."""
    rng = np.random.default_rng(0)
    shapes = [(2, 6, 5, 19), (3, 2, 19, 37), (37,), (2, 4, 4, 37)]
    x, kernel, bias, rest = (placeholder(s, "float32", "x") for s in shapes)
    y = conv(x, kernel, (1, 1), (1, 1)) + bias
    outputs = [e.relu(y + rest), e.tanh(y * rest) - e.exp(e.sin(y)) * bias]
    values = [rng.uniform(-1, 1, s).astype(np.float32) for s in shapes]
    compiled = build([x, kernel, bias, rest], outputs, target)
    a, k, b, r = (v.astype(np.float64) for v in values)
    sums = definition(a, k, (1, 1), (1, 1)) + b
    for at_end in (True, False):
        first, second = compiled(values, at_end)
        np.testing.assert_allclose(first, np.maximum(sums + r, 0), atol=1e-5)
        np.testing.assert_allclose(second, np.tanh(sums * r) - np.exp(np.sin(sums)) * b, atol=1e-4)


@targets
def test_unknown_numbers_of_samples_and_places(target: Target) -> None:
    batch, size = symbol("batch"), symbol("size")
    kernel = placeholder((2, 3, 5, 21), "float32", "x")
    rng = np.random.default_rng(1)
    weights = rng.uniform(-1, 1, (2, 3, 5, 21)).astype(np.float32)
    for dims, known in (
        ((batch, 7, 6, 5), (3, 7, 6, 5)),
        ((batch, size, 6, 5), (2, 9, 6, 5)),
        ((batch, size, size, 5), (2, 8, 8, 5)),
    ):
        x = placeholder(dims, "float32", "x")
        compiled = build([x, kernel], [e.relu(conv(x, kernel, (1, 1), (1, 1)))], target)
        value = rng.uniform(-1, 1, known).astype(np.float32)
        (got,) = compiled([value, weights])
        exact = definition(value.astype(np.float64), weights.astype(np.float64), (1, 1), (1, 1))
        np.testing.assert_allclose(got, np.maximum(exact, 0), atol=1e-5)


@targets
def test_parts_of_a_result(target: Target) -> None:
    """Convolutions that write into padding, side by side, and in turns: one kernel of matrix kernels."""
    rng = np.random.default_rng(2)
    x, kernel = placeholder((2, 7, 6, 18), "float32", "x"), placeholder((2, 2, 18, 20), "float32", "k")
    y = conv(x, kernel, (1, 1), (1, 1))
    padded = shape.pad(e.relu(y), (0, 2, 1, 0), (1, 1, 1, 1), (2, 9, 9, 20))
    spread = shape.pad(y, (0, 1, 0, 3), (1, 3, 2, 1), (2, 19, 11, 24))
    joined = shape.concatenate([y, conv(x, kernel * 2, (1, 1), (1, 1)), y * 3], 3)
    turns = conv_transpose(y, kernel, (13, 11), (2, 2), (1, 1), (0, 0))
    feeds = [rng.uniform(-1, 1, n.shape).astype(np.float32) for n in (x, kernel)]
    for output in (padded, spread, joined, turns):
        graph = Simplify().apply(Graph((x, kernel), (output,)))
        compiled = build([x, kernel], graph.outputs, target)
        parts = [p for k in compiled.program.kernels.by_signature.values() if isinstance(k, Joined) for p in k.parts]
        assert any(isinstance(p, Gemm) for p in parts) or output is joined
        (expected,) = Program(graph).run(feeds)
        for at_end in (True, False):
            (got,) = compiled(feeds, at_end)
            np.testing.assert_allclose(got, expected, atol=1e-4)


def test_views_of_memory_are_operands_where_neighbors_stay_neighbors() -> None:
    x, g = placeholder((3, 9, 8, 20), "float32", "x"), placeholder((3, 7, 6, 33), "float32", "g")
    kernel = placeholder((3, 3, 20, 33), "float32", "k")
    (dk,) = gradients([conv(x, kernel, (1, 1), (1, 1)) * g], [kernel])
    assert dk is not None
    compiled = build([x, g], Simplify().apply(Graph((x, g), (dk,))).outputs, host_target())
    assert len(compiled.program.calls) == 1
    rng = np.random.default_rng(3)
    feeds = [rng.uniform(-1, 1, n.shape).astype(np.float32) for n in (x, g)]
    (got,) = compiled(feeds)
    windows = np.lib.stride_tricks.sliding_window_view(feeds[0].astype(np.float64), (7, 6), axis=(1, 2))
    np.testing.assert_allclose(got, np.einsum("bijcpq,bpqo->ijco", windows, feeds[1]), atol=1e-4)


@all_targets
def test_windows_and_groups_of_one_channel_in_vectors(target: Target) -> None:
    """Taps written out, results left over behind groups of them, columns behind whole vectors."""
    rng = np.random.default_rng(4)
    inputs: list[Node] = []
    outputs: list[Node] = []
    for places, channels, window, strides in (
        ((9, 10), 17, (3, 3), (1, 1)),
        ((7, 9), 33, (3, 2), (2, 2)),
        ((5, 5), 16, (5, 5), (1, 1)),
        ((6, 3), 40, (2, 2), (2, 1)),
        ((9, 11), 19, (7, 7), (1, 1)),
        ((40, 3), 16, (37, 2), (1, 1)),
    ):
        x = placeholder((2, *places, channels), "float32", "x")
        kernel = placeholder((*window, channels, 1, 1), "float32", "k")
        bias = placeholder((channels, 1), "float32", "b")
        inputs += [x, kernel, bias]
        grouped = shape.expand_dims(x, 4)
        outputs.append(e.relu(conv(grouped, kernel, strides, (1, 1)) + bias))
        outputs.append(window_max(x, (1, *window, 1), (1, *strides, 1)))
        outputs.append(window_sum(e.tanh(x), (1, *window, 1), (1, *strides, 1)))
    feeds = [rng.uniform(-1, 1, n.shape).astype(np.float32) for n in inputs]
    expected = Program(Graph(tuple(inputs), tuple(outputs))).run(feeds)
    compiled = build(inputs, outputs, target)
    for at_end in (True, False):
        for got, right in zip(compiled(feeds, at_end), expected):
            np.testing.assert_allclose(got, right, atol=1e-5)


@all_targets
def test_windows_read_padding_without_a_copy(target: Target) -> None:
    """Each part of a result asks for padding only where it may meet some; infinite weights meet its zeros."""
    rng = np.random.default_rng(6)
    inputs: list[Node] = []
    outputs: list[Node] = []
    for places, channels, window, strides, before, behind in (
        ((9, 10), 17, (3, 3), (1, 1), (1, 1), (1, 1)),
        ((7, 9), 32, (3, 2), (2, 2), (0, 1), (1, 0)),
        ((6, 8), 16, (5, 5), (1, 1), (2, 2), (2, 2)),
        ((2, 1), 40, (5, 4), (1, 2), (3, 2), (4, 5)),
        ((11, 4), 33, (7, 7), (1, 1), (3, 3), (3, 3)),
        ((5, 6), 3, (3, 3), (2, 1), (1, 1), (1, 1)),
        ((4, 4), 16, (2, 2), (1, 1), (0, 5), (4, 0)),
    ):
        x = placeholder((2, *places, channels), "float32", "x")
        kernel = placeholder((*window, channels, 1, 2), "float32", "k")
        inputs += [x, kernel]
        starts = (0, *before, 0)
        sizes = (2, *[a + n + b for a, n, b in zip(before, places, behind)], channels)
        padded = shape.pad(e.tanh(x), starts, (1,) * 4, sizes)
        outputs.append(e.relu(conv(shape.expand_dims(padded, 4), kernel, strides, (1, 1))))
        outputs.append(window_max(pad_lowest(x, starts, sizes), (1, *window, 1), (1, *strides, 1)))
        outputs.append(window_sum(shape.pad(x, starts, (1,) * 4, sizes), (1, *window, 1), (1, *strides, 1)) * 2.0)
    feeds = [rng.uniform(-1, 1, n.shape).astype(np.float32) for n in inputs]
    feeds[1][0, 0], feeds[1][2, 1, 3] = np.inf, np.nan
    with np.errstate(invalid="ignore"):
        expected = Program(Graph(tuple(inputs), tuple(outputs))).run(feeds)
    compiled = build(inputs, outputs, target)
    for at_end in (True, False):
        for got, right in zip(compiled(feeds, at_end), expected):
            np.testing.assert_allclose(got, right, atol=1e-5)


@all_targets
def test_all_taps_of_a_gradient_are_summed_at_a_time(target: Target) -> None:
    """Short sums, blocks within blocks, and windows too large for the registers."""
    rng = np.random.default_rng(7)
    inputs: list[Node] = []
    outputs: list[Node] = []
    for samples, places, channels, taps, stride in (
        (1, (7, 6), 32, (3, 3), 1),
        (9, (13, 11), 17, (3, 2), 2),
        (2, (40, 41), 16, (2, 3), 1),
        (3, (9, 12), 20, (7, 7), 1),
        (1, (2051, 3), 16, (2, 2), 1),
    ):
        x = placeholder((samples, *places, channels, 1), "float32", "x")
        counts = [(n - k) // stride + 1 for n, k in zip(places, taps)]
        g = placeholder((samples, *counts, channels, 1), "float32", "g")
        kernel = placeholder((*taps, channels, 1, 1), "float32", "k")
        (gradient,) = gradients([conv(x, kernel, (stride, stride), (1, 1)) * g], [kernel])
        assert gradient is not None
        inputs += [x, g]
        outputs.append(gradient)
    graph = Simplify().apply(Graph(tuple(inputs), tuple(outputs)))
    feeds = [rng.uniform(-1, 1, n.shape).astype(np.float32) for n in inputs]
    expected = Program(Graph(tuple(inputs), tuple(outputs))).run(feeds)
    compiled = build(inputs, graph.outputs, target)
    for at_end in (True, False):
        for got, right in zip(compiled(feeds, at_end), expected):
            np.testing.assert_allclose(got, right, atol=2e-4)


def test_sums_over_windows_keep_special_values() -> None:
    x = placeholder((1, 4, 16), "float32", "x")
    values = np.zeros((1, 4, 16), np.float32)
    values[:, :2] = -0.0
    values[0, 2, 3], values[0, 3, 4] = np.nan, np.inf
    outputs = [window_sum(x, (1, 2, 1), (1, 1, 1)), window_max(x, (1, 2, 1), (1, 1, 1))]
    results = build([x], outputs, host_target())([values])
    for got, right in zip(results, Program(Graph((x,), tuple(outputs))).run([values])):
        np.testing.assert_array_equal(got, right)
    assert not np.signbit(results[0][0, 0]).any()


@targets
def test_parts_and_windows_of_an_unknown_number_of_samples(target: Target) -> None:
    batch = symbol("batch")
    x, kernel = placeholder((batch, 6, 7, 18), "float32", "x"), placeholder((3, 2, 18, 20), "float32", "k")
    y = conv(x, kernel, (1, 1), (1, 1))
    padded = shape.pad(e.relu(y), (0, 1, 2, 0), (1, 1, 1, 1), (batch, 6, 9, 20))
    outputs = [
        padded,
        conv_transpose(y, kernel, (9, 12), (2, 2), (1, 1), (0, 0)),
        window_max(padded, (1, 3, 3, 1), (1, 2, 2, 1)),
        *gradients([window_max(x, (1, 2, 2, 1), (1, 2, 2, 1))], [x]),
        *gradients([conv(x, kernel, (2, 2), (1, 1))], [x, kernel]),
    ]
    known = [o for o in outputs if o is not None]
    assert len(known) == len(outputs)
    graph = Simplify().apply(Graph((x, kernel), tuple(known)))
    compiled = build([x, kernel], graph.outputs, target)
    rng = np.random.default_rng(5)
    for count in (1, 3, 0):
        feeds = [rng.uniform(-1, 1, (count, 6, 7, 18)).astype(np.float32), rng.uniform(-1, 1, kernel.shape)]
        feeds[1] = feeds[1].astype(np.float32)
        bound = Graph((x, kernel), tuple(known)).bind({next(iter(free_symbols(batch))): count})
        for got, right in zip(compiled(feeds), Program(bound).run(feeds)):
            np.testing.assert_allclose(got, right, atol=1e-4)


@pytest.mark.parametrize(("channels", "rows"), [(16, 12), (1024, 6)])
def test_tiles_are_low_only_where_rows_lie_pages_apart(channels: int, rows: int) -> None:
    x = placeholder((1, 26, 27, channels), "float32", "x")
    kernel = placeholder((3, 3, channels, 32), "float32", "k")
    (product,) = products(build([x, kernel], [conv(x, kernel, (1, 1), (1, 1))], named_target("x86-64-v4")).program)
    assert len(product.rows) == 2
    assert product.tiling.rows == rows
