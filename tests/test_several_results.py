"""Tests of kernels of several results: which nodes share one, and that the values are those of separate kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from graphkb import backend as K
from graphkb.backend import Tensor
from graphkb.ir.graph import Graph
from graphkb.ops.control import items
from graphkb.passes.fuse import Fuse
from graphkb.passes.index_spaces import Space
from graphkb.passes.merge_kernels import Unit, merge_kernels
from graphkb.runtime.options import options

pytest.importorskip("llvmlite")
Array = np.ndarray[Any, Any]
DTYPES = ["float16", "float32", "float64", "int8", "uint16", "int32", "int64"]
SHAPES = [(), (0,), (1,), (3, 0), (7,), (64,), (5, 129), (2, 3, 4, 5)]


def like(array: Array) -> Tensor:
    return K.placeholder(array.shape, dtype=array.dtype.name)


def values(dims: Sequence[int], dtype: str, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 9, dims).astype(dtype)


def kernels(function: K.Function) -> list[int]:
    """How many results each kernel of a function has."""
    graph = Fuse().apply(function.graph("optimized"))
    return [len(n.attrs["body"].outputs) for n in graph.nodes if n.op.kind == "fused"]


def interpreted(inputs: Sequence[Tensor], outputs: Sequence[Tensor], feeds: Sequence[Array]) -> list[Array]:
    with options(mode="interpret"):
        return list(K.function(list(inputs), list(outputs))(list(feeds)))


# ---------------------------------------------------------------------------------------------- values
@pytest.mark.parametrize("target", ["x86-64-v2", "x86-64-v3", "host"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_of_one_kernel_are_those_of_the_interpreter(dtype: str, target: str) -> None:
    for dims in SHAPES:
        a, b = values(dims, dtype), values(dims, dtype, 1)
        x, y = like(a), like(b)
        z = x * y + x
        outputs = [z, z - y, K.cast(z, "float32") * 0.5, K.greater(z, y)]
        with options(target=target, mode="native"):
            function = K.function([x, y], outputs)
            results = function([a, b])
            assert len(function.report().steps) == 1
        for result, expected in zip(results, interpreted([x, y], outputs, [a, b])):
            assert result.dtype == expected.dtype
            np.testing.assert_array_equal(result, expected)


def test_equal_results_are_two_arrays() -> None:
    x = K.placeholder((3, 4))
    y = K.exp(x)
    first, second, third = K.function([x], [y, y, y * 2])([np.zeros((3, 4), "float32")])
    first[...] = 5
    assert second.tolist() == np.ones((3, 4)).tolist()
    assert third.tolist() == np.full((3, 4), 2.0).tolist()


def test_lstm_cells_are_one_kernel_behind_the_product() -> None:
    units = 8
    z, c = K.placeholder((5, 4 * units)), K.placeholder((5, units))
    i, f, g, o = [z[:, k * units : (k + 1) * units] for k in range(4)]
    after = K.sigmoid(f) * c + K.sigmoid(i) * K.tanh(g)
    h = K.sigmoid(o) * K.tanh(after)
    function = K.function([z, c], [h, after])
    assert kernels(function) == [2]
    feeds = [np.random.default_rng(0).normal(size=(5, 32)), np.random.default_rng(1).normal(size=(5, 8))]
    feeds = [a.astype("float32") for a in feeds]
    for result, expected in zip(function(feeds), interpreted([z, c], [h, after], feeds)):
        np.testing.assert_allclose(result, expected, rtol=2e-6, atol=1e-7)


# ---------------------------------------------------------------------------------------------- updates
def adam(dims: tuple[int, ...], rate: float = 0.1) -> tuple[Tensor, list[K.Variable], list[tuple[K.Variable, Tensor]]]:
    g = K.placeholder(dims)
    p, m, v = [K.variable(np.random.default_rng(i).random(dims)) for i in range(3)]
    m2, v2 = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * K.square(g)
    return g, [p, m, v], [(m, m2), (v, v2), (p, p - rate * m2 / (K.sqrt(v2) + 1e-7))]


def test_an_update_by_adam_is_one_sweep_in_place() -> None:
    g, (p, m, v), updates = adam((33, 21))
    function = K.function([g], [], updates=updates)
    assert kernels(function) == [3]
    gradient = np.random.default_rng(7).random((33, 21)).astype("float32")
    p0, m0, v0 = map(K.get_value, (p, m, v))
    function([gradient])
    m1, v1 = 0.9 * m0 + 0.1 * gradient, 0.99 * v0 + 0.01 * gradient**2
    np.testing.assert_allclose(K.get_value(m), m1, rtol=1e-6)
    np.testing.assert_allclose(K.get_value(v), v1, rtol=1e-6)
    np.testing.assert_allclose(K.get_value(p), p0 - 0.1 * m1 / (np.sqrt(v1) + 1e-7), rtol=1e-5)
    report = function.report()
    assert len(report.steps) == 1
    assert report.planned_bytes == 0


def test_updates_take_old_values_also_where_variables_change_places() -> None:
    a, b, c = [K.variable(np.full((3, 50), n, "float32")) for n in (1, 2, 3)]
    function = K.function([], [a + b], updates=[(a, b * c), (b, a + c), (c, a * b + c)])
    with options(mode="native"):
        (total,) = function([])
    assert total[0, 0] == 3
    assert [K.get_value(w)[2, 49] for w in (a, b, c)] == [6, 4, 5]


def test_a_variable_that_another_kernel_reads_later_is_not_overwritten_early() -> None:
    w = K.variable(np.arange(12.0).reshape(3, 4))
    x = K.placeholder((3, 4))
    new = w + x
    function = K.function([x], [new * 2, K.dot(K.transpose(w), new)], updates=[(w, new)])
    old, fed = K.get_value(w), np.ones((3, 4), "float32")
    double, product = function([fed])
    np.testing.assert_array_equal(double, 2 * (old + 1))
    np.testing.assert_array_equal(product, old.T @ (old + 1))
    np.testing.assert_array_equal(K.get_value(w), old + 1)


# ---------------------------------------------------------------------------------------------- which share a kernel
def test_kernels_that_share_no_operand_stay_apart() -> None:
    x, y = K.placeholder((4, 5)), K.placeholder((4, 5))
    assert kernels(K.function([x, y], [K.exp(x), K.exp(y)])) == [1, 1]


def test_what_reads_elsewhere_than_is_written_waits_for_all_of_it() -> None:
    x = K.placeholder((6, 6))
    y = K.exp(x)
    assert kernels(K.function([x], [y, y + K.transpose(y)])) == [1, 1]
    assert kernels(K.function([x], [y[:5], y[1:] + y[:5]])) == [1, 2]
    assert kernels(K.function([x], [y, K.reverse(y, 0) + 1])) == [1, 1]


def test_a_value_between_two_products_belongs_to_neither() -> None:
    x, w = K.placeholder((6, 6)), K.placeholder((6, 6))
    y = K.exp(x)
    # exp is needed before the product and read after it: as one kernel they would wait for each other.
    z = K.reverse(K.dot(y, w), 0) + y
    function = K.function([x, w], [z, y * 2])
    assert sorted(kernels(function)) == [1, 1, 2]
    a = np.random.default_rng(0).random((6, 6)).astype("float32")
    np.testing.assert_allclose(function([a, a])[0], (np.exp(a) @ a)[::-1] + np.exp(a), rtol=1e-5)


def test_chains_with_gradients_are_few_kernels() -> None:
    x = K.placeholder((100,))
    y = x
    for _ in range(300):
        y = K.tanh(y) * 1.01
    function = K.function([x], [y, *K.gradients(y, [x])])
    assert len(kernels(function)) < 60
    a = np.linspace(-1, 1, 100, dtype="float32")
    value, slope = a.astype("float64"), np.ones(100)
    for _ in range(300):
        value = np.tanh(value) * 1.01
        slope *= 1.01 * (1 - (value / 1.01) ** 2)
    result, gradient = function([a])
    np.testing.assert_allclose(result, value, rtol=1e-4)
    np.testing.assert_allclose(gradient, slope, rtol=2e-3, atol=1e-7)


def test_units_join_only_what_is_ready() -> None:
    a, b, c, d = [K.placeholder((3,)).node for _ in range(4)]

    def unit(root: Any, position: int, operands: Sequence[Any], alone: bool = False) -> Unit:
        space = None if alone else Space((3,))
        return Unit(root, position, (root,), tuple(operands), space, dict.fromkeys(operands, (0,)))

    first = unit(a, 0, (d,))
    other = unit(b, 1, (a,), alone=True)
    last = unit(c, 2, (a, b, d))
    assert merge_kernels([first, other, last], 10) == [[first], [other], [last]]
    free = unit(c, 2, (a, d))
    assert merge_kernels([first, other, free], 10) == [[first, free], [other]]
    assert merge_kernels([first, other, free], 1) == [[first], [other], [free]]


def test_items_of_a_fused_node_are_interpreted_and_printed() -> None:
    x = K.placeholder((4,))
    graph = Fuse().apply(Graph((x.node,), (K.exp(x).node, (K.exp(x) * 2).node)))
    assert [n.op.name for n in graph.nodes] == ["placeholder", "fused", "item", "item"]
    assert tuple(graph.outputs) == items(graph.nodes[1])
    assert "    return %1.0, %1.2\n" in str(graph)
    from graphkb.runtime.interpreter import Program

    first, second = Program(graph).run([np.zeros(4, np.float32)])
    assert (first.tolist(), second.tolist()) == ([1.0] * 4, [2.0] * 4)
