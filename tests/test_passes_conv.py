"""Sums over taps of spread operands in phases: the same values, without the zeros between the elements."""

from __future__ import annotations

import numpy as np
import pytest
from contracts import Array

from graphkb.ir.dims import symbol
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node
from graphkb.ops import shape as sh
from graphkb.ops.conv import conv, conv_transpose
from graphkb.ops.leaf import placeholder
from graphkb.ops.window import window_sum
from graphkb.passes.crop_convolutions import CropConvolutions
from graphkb.passes.rewrite import rewrite_graph
from graphkb.passes.rules_conv import CONVS
from graphkb.runtime.interpreter import Program

Axes = tuple[int, ...]


def values(inputs: list[Node], output: Node) -> tuple[Array, Array, Graph]:
    """What a node is before and after the rules, and the graph after them."""
    rng = np.random.default_rng(len(output.shape))
    feeds = [rng.integers(-4, 5, n.shape).astype(n.dtype) for n in inputs]  # all sums are exact
    graph = Graph(tuple(inputs), (output,))
    after = rewrite_graph(graph, CONVS)
    (x,), (y,) = (Program(g).run(feeds) for g in (graph, after))
    return x, y, after


def spread_ops(graph: Graph) -> set[str]:
    return {n.op.name for n in graph.nodes if n.op.name == "interleave" or any(s > 1 for s in n.attrs.get("steps", ()))}


@pytest.mark.parametrize(
    ("sizes", "taps", "strides", "dilations"),
    [
        ((9,), (3,), (2,), (1,)),
        ((10,), (3,), (2,), (1,)),
        ((10,), (2,), (3,), (1,)),
        ((12,), (3,), (2,), (2,)),
        ((13,), (4,), (3,), (2,)),
        ((13,), (3,), (4,), (2,)),
        ((5,), (5,), (7,), (1,)),
        ((8, 7), (3, 2), (2, 1), (1, 1)),
        ((9, 8), (3, 3), (2, 3), (1, 1)),
        ((4, 3, 5), (2, 1, 3), (2, 2, 1), (1, 1, 1)),
    ],
)
@pytest.mark.parametrize("before", [0, 1])
def test_transposed_convolutions(sizes: Axes, taps: Axes, strides: Axes, dilations: Axes, before: int) -> None:
    n = len(sizes)
    places = [(s - (k - 1) * d - 1) // t + 1 for s, k, d, t in zip(sizes, taps, dilations, strides)]
    g, kernel = placeholder((2, *places, 3), "float64", "g"), placeholder((*taps, 2, 3), "float64", "k")
    befores = tuple([min(before, (k - 1) * d) for k, d in zip(taps, dilations)])
    x, y, after = values([g, kernel], conv_transpose(g, kernel, sizes, strides, dilations, befores))
    np.testing.assert_array_equal(x, y)
    assert x.shape == (2, *sizes, 2)
    assert "pad" not in spread_ops(after)
    assert n == 0 or "interleave" in spread_ops(after)


def test_groups_keep_their_axis() -> None:
    g, kernel = placeholder((2, 4, 3, 2), "float64", "g"), placeholder((3, 3, 1, 2), "float64", "k")
    x, y, after = values([g, kernel], conv_transpose(g, kernel, (9,), (2,), (1,), (0,)))
    np.testing.assert_array_equal(x, y)
    assert "interleave" in spread_ops(after)


@pytest.mark.parametrize("steps", [(2, 2), (1, 3), (3, 1)])
@pytest.mark.parametrize("order", [(3, 1, 2, 0), (0, 2, 1, 3), (3, 2, 1, 0)])
def test_operands_are_transposed_behind_the_zeros(steps: Axes, order: Axes) -> None:
    """The operand of the gradient of a transposed convolution's kernel is spread, then samples are its channels."""
    x = placeholder((3, 4, 5, 2), "float64", "x")
    kernel = placeholder((4, 3, x.shape[order[3]], 6), "float64", "k")
    spread = sh.pad(x, (0, 1, 2, 0), (1, *steps, 1), (3, 14, 15, 2))
    before, after, graph = values([x, kernel], conv(sh.transpose(spread, order), kernel, (1, 1), (1, 1)))
    np.testing.assert_array_equal(before, after)
    assert spread_ops(graph) == {"interleave", "slice"}  # of which the slices take every few taps


@pytest.mark.parametrize(("n", "window", "stride"), [(4, 2, 2), (4, 3, 2), (5, 2, 3), (3, 5, 2), (6, 3, 3)])
def test_sums_over_windows(n: int, window: int, stride: int) -> None:
    g = placeholder((2, n, n, 3), "float64", "g")
    total = (n - 1) * stride + 1 + 2 * (window - 1)
    spread = sh.pad(g, (0, window - 1, window - 1, 0), (1, stride, stride, 1), (2, total, total, 3))
    x, y, after = values([g], window_sum(spread, (1, window, window, 1), (1, 1, 1, 1)))
    np.testing.assert_array_equal(x, y)
    assert spread_ops(after) == {"interleave"}


def test_what_is_not_spread_stays() -> None:
    x, kernel = placeholder((1, 6, 2), "float32", "x"), placeholder((3, 2, 2), "float32", "k")
    padded = sh.pad(x, (0, 1, 0), (1, 1, 1), (1, 8, 2))
    spread = sh.pad(x, (0, 0, 0), (1, 2, 1), (1, 11, 2))
    for node in (conv(padded, kernel, (1,), (1,)), conv(spread, kernel, (2,), (1,))):
        graph = Graph((x, kernel), (node,))
        assert rewrite_graph(graph, CONVS).outputs == (node,)


@pytest.mark.parametrize(("strides", "starts", "sizes", "steps"), [
    ((1, 1), (0, 1, 2, 0), (2, 4, 5, 3), (1, 1, 1, 1)),
    ((2, 1), (0, 0, 1, 0), (2, 3, 3, 3), (1, 1, 2, 1)),
    ((1, 3), (0, 5, 0, 0), (2, 1, 3, 3), (1, 1, 1, 1)),
])  # fmt: skip
def test_what_is_cut_off_a_convolution_is_not_computed(strides: Axes, starts: Axes, sizes: Axes, steps: Axes) -> None:
    x, kernel = placeholder((2, 9, 11, 2), "float64", "x"), placeholder((3, 2, 2, 3), "float64", "k")
    whole = conv(x, kernel, strides, (1, 2))
    graph = Graph((x, kernel), (sh.slice_(whole, starts, sizes, steps),))
    after = CropConvolutions().apply(graph)
    (found,) = [node for node in after.nodes if node.op.name == "conv"]
    assert found is after.outputs[0]
    rng = np.random.default_rng(0)
    feeds = [rng.integers(-4, 5, n.shape).astype(n.dtype) for n in graph.inputs]
    np.testing.assert_array_equal(*[Program(g).run(feeds)[0] for g in (graph, after)])


def test_a_convolution_with_several_readers_is_computed_once() -> None:
    x, kernel = placeholder((2, 9, 2), "float32", "x"), placeholder((3, 2, 3), "float32", "k")
    whole = conv(x, kernel, (1,), (1,))
    graph = Graph((x, kernel), (sh.slice_(whole, (0, 1, 0), (2, 6, 3)) - sh.slice_(whole, (0, 0, 0), (2, 6, 3)),))
    assert [n.op.name for n in CropConvolutions().apply(graph).nodes].count("conv") == 1
    # Neither places of unknown number nor channels are cut.
    size = symbol("n")
    x = placeholder((2, size, 2), "float32", "x")
    for part in (
        sh.slice_(conv(x, kernel, (1,), (1,)), (0, 1, 0), (2, size - 4, 3)),
        sh.slice_(whole, (0, 0, 1), (2, 7, 2)),
    ):
        graph = Graph((x, kernel) if part.inputs[0] is not whole else graph.inputs, (part,))
        assert CropConvolutions().apply(graph).outputs[0] is part
