"""Products that leave loops: what goes before a loop, what behind it, what stays, and that nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from evaluate import interpret, placeholders

from graphkb import backend as K
from graphkb.ir.dims import symbol
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node, make
from graphkb.ops import elementwise as ew
from graphkb.ops import leaf, linalg, reduce, shape
from graphkb.ops.control import SCAN, items
from graphkb.ops.conv import conv
from graphkb.ops.index import gather
from graphkb.passes.hoist_products import HoistProducts
from graphkb.passes.pipeline import optimize
from graphkb.passes.prune_loops import PruneLoops
from graphkb.runtime.function import Function

Array = np.ndarray[Any, np.dtype[Any]]
RNG = np.random.default_rng(17)
LENGTH = 5


def normal(*dims: int) -> Array:
    return RNG.normal(size=dims)


def loop_of(
    step: Callable[..., tuple[list[Node], list[Node]]],
    states: list[Array],
    sequences: list[Array],
    constants: list[Array],
    length: int = LENGTH,
) -> tuple[Graph, list[Array]]:
    feeds = [*states, *sequences, *constants]
    inputs = placeholders(feeds)
    parameters = placeholders([*states, *[np.zeros(a.shape[1:], a.dtype) for a in sequences], *constants], "p")
    new, outputs = step(*parameters)
    body = Graph(tuple(parameters), (*new, *outputs), name="body")
    attrs = {"body": body, "length": length, "states": len(states), "sequences": len(sequences), "reverse": False}
    return Graph(tuple(inputs), items(make(SCAN, tuple(inputs), attrs))), feeds


def hoisted(graph: Graph, feeds: list[Array], **settings: int) -> tuple[list[str], list[str]]:
    """The ops outside of loops and those inside, after the pass; it must not change what comes out."""
    better = PruneLoops().apply(HoistProducts(**settings).apply(graph))
    for a, b in zip(interpret(better, feeds), interpret(graph, feeds), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    kinds = ("leaf", "control")
    loops = [node for node in better.nodes if node.op is SCAN]
    inside = [n.op.name for loop in loops for n in loop.attrs["body"].nodes if n.op.kind not in kinds]
    return [n.op.name for n in better.nodes if n.op.kind not in kinds], inside


def dot(x: Node, y: Node) -> Node:
    return linalg.dot(x, y, (), (), (x.ndim - 1,), (0,))


# ---------------------------------------------------------------------------------------------- before the loop
def test_the_product_of_the_inputs_goes_before_the_loop() -> None:
    def step(s: Node, x: Node, w: Node, u: Node, b: Node) -> tuple[list[Node], list[Node]]:
        new = ew.tanh(dot(x, w) + b + dot(s, u))
        return [new], [new]

    graph, feeds = loop_of(step, [normal(3, 4)], [normal(LENGTH, 3, 6)], [normal(6, 4), normal(4, 4), normal(4)])
    assert hoisted(graph, feeds) == (["dot", "add"], ["dot", "add", "tanh"])
    assert hoisted(graph, feeds, many_rows=3) == ([], ["dot", "add", "dot", "add", "tanh"])
    assert hoisted(graph, feeds, most_bytes=100) == ([], ["dot", "add", "dot", "add", "tanh"])


def test_what_a_product_needs_goes_along() -> None:
    def step(s: Node, x: Node, m: Node, w: Node) -> tuple[list[Node], list[Node]]:
        return [s + dot(ew.tanh(dot(x * m, w)), w)], []

    graph, feeds = loop_of(step, [normal(2, 4)], [normal(LENGTH, 2, 4)], [normal(2, 4), normal(4, 4)])
    assert hoisted(graph, feeds) == (["mul", "dot", "tanh", "dot"], ["add"])


def test_views_of_a_product_stay() -> None:
    """One stack, of which each step reads slices."""

    def step(s: Node, x: Node, w: Node) -> tuple[list[Node], list[Node]]:
        z = dot(x, w)
        return [shape.slice_(z, (0, 0), (2, 3)) * s + shape.slice_(z, (0, 3), (2, 3))], []

    graph, feeds = loop_of(step, [normal(2, 3)], [normal(LENGTH, 2, 4)], [normal(4, 6)])
    assert hoisted(graph, feeds)[0] == ["dot"]


def test_elementwise_work_alone_stays() -> None:
    graph, feeds = loop_of(lambda s, x: ([s + ew.exp(x)], []), [normal(3)], [normal(LENGTH, 3)], [])
    assert hoisted(graph, feeds) == ([], ["exp", "add"])


def test_what_never_changes_is_computed_once() -> None:
    def step(s: Node, x: Node, c: Node, w: Node) -> tuple[list[Node], list[Node]]:
        return [dot(s * ew.exp(c), shape.transpose(w, (1, 0))) + x - c], []

    graph, feeds = loop_of(step, [normal(3)], [normal(LENGTH, 3)], [normal(3), normal(3, 3)])
    outside, inside = hoisted(graph, feeds)
    assert sorted(outside) == ["exp", "transpose"]
    assert sorted(inside) == ["add", "dot", "mul", "sub"]


# ---------------------------------------------------------------------------------------------- behind the loop
def test_a_product_that_is_only_stacked_goes_behind_the_loop() -> None:
    def step(s: Node, x: Node, v: Node, b: Node) -> tuple[list[Node], list[Node]]:
        new = ew.tanh(s + x)
        return [new], [new, ew.exp(dot(new, v) + b * x)]

    graph, feeds = loop_of(step, [normal(3, 4)], [normal(LENGTH, 3, 4)], [normal(4, 4), normal(4)])
    assert hoisted(graph, feeds) == (["dot", "mul", "add", "exp"], ["add", "tanh"])


def test_nothing_large_is_stacked_for_a_small_result() -> None:
    def step(s: Node, v: Node) -> tuple[list[Node], list[Node]]:
        new = ew.tanh(s)
        return [new], [dot(new, v)]

    graph, feeds = loop_of(step, [normal(3, 50)], [], [normal(50, 2)])
    assert hoisted(graph, feeds)[0] == []
    graph, feeds = loop_of(step, [normal(3, 50)], [], [normal(50, 25)])
    assert hoisted(graph, feeds)[0] == ["dot"]


def test_loops_without_states_vanish() -> None:
    def step(x: Node, w: Node) -> tuple[list[Node], list[Node]]:
        return [], [reduce.reduce_sum(ew.exp(x), (0,)), w, dot(x, w)]

    graph, feeds = loop_of(step, [], [normal(LENGTH, 3)], [normal(3, 2)])
    outside, inside = hoisted(graph, feeds)
    assert inside == []
    assert not any(node.op is SCAN for node in HoistProducts().apply(graph).nodes)
    assert "sum" in outside


# ---------------------------------------------------------------------------------------------- every op
X, Y, W = (3, 4), (3, 4), (4, 2)
STEPS: dict[str, Callable[..., Node]] = {
    "elementwise": lambda x, c: ew.maximum(x, c) * 2.0,
    "a smaller slice": lambda x, c: c + reduce.reduce_sum(x, (0,)),
    "a scalar": lambda x, c: c * reduce.reduce_sum(x, (0, 1)),
    "dot": lambda x, c: linalg.dot(x, c, (), (), (1,), (1,)),
    "dot from the right": lambda x, c: linalg.dot(c, x, (), (), (1,), (1,)),
    "dot with itself": lambda x, c: linalg.dot(x, x * c, (), (), (0,), (0,)),
    "dot of batches": lambda x, c: linalg.dot(x, c, (0,), (0,), (1,), (1,)),
    "dot of batches from the right": lambda x, c: linalg.dot(c, shape.reshape(x, (3, 2, 2)), (0,), (0,), (), ()),
    "dot of batches with itself": lambda x, c: linalg.dot(x, x - c, (1,), (1,), (0,), (0,)),
    "outer product": lambda x, c: linalg.dot(x, c, (), (), (), ()),
    "conv": lambda x, c: conv(shape.reshape(x, (3, 4, 1)), shape.reshape(c, (4, 1, 3)), (1,), (1,)),
    "sum": lambda x, c: reduce.reduce_sum(x, (1,), True),
    "max": lambda x, c: make(reduce.MAX, (x,), {"axes": (0,), "keepdims": False}),
    "argmax": lambda x, c: make(reduce.ARGMAX, (x,), {"axis": 1}),
    "cumsum": lambda x, c: reduce.cumsum(x, 1, True, True),
    "transpose": lambda x, c: shape.transpose(x, (1, 0)),
    "reshape": lambda x, c: shape.reshape(x, (2, 6)),
    "broadcast": lambda x, c: shape.broadcast_to(reduce.reduce_sum(x, (0,)), (5, 3, 4)),
    "slice": lambda x, c: shape.slice_(x, (1, 3), (2, 2), (1, -2)),
    "pad": lambda x, c: shape.pad(x, (1, 0), (2, 1), (7, 5)),
    "concatenate": lambda x, c: shape.concatenate([x, c, x], 1),
    "gather by slices": lambda x, c: gather(c, ew.cast(ew.maximum(ew.minimum(x, 2.0), 0.0), "int32"), 0),
    "gather by slices along the last axis": lambda x, c: gather(c, ew.cast(ew.minimum(ew.square(x), 3.0), "int8"), 1),
    "gather from slices": lambda x, c: gather(x, ew.cast(ew.minimum(ew.square(c), 2.0), "int32"), 0),
    "a constant": lambda x, c: c,
    "a leaf": lambda x, c: leaf.constant(np.arange(3.0)),
}


@pytest.mark.parametrize("length", [0, 1, LENGTH])
@pytest.mark.parametrize("name", STEPS)
def test_every_op_is_done_for_all_steps_at_once(name: str, length: int) -> None:
    graph, feeds = loop_of(lambda x, c: ([], [STEPS[name](x, c)]), [], [normal(length, *X)], [normal(*Y)], length)
    _, inside = hoisted(graph, feeds)
    assert inside == []
    for a, b in zip(Function(graph, options={"mode": "native"})(feeds), interpret(graph, feeds), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_slices_of_which_each_picks_from_its_own_table_stay() -> None:
    def step(x: Node, i: Node) -> tuple[list[Node], list[Node]]:
        return [], [gather(x, i, 0)]

    graph, feeds = loop_of(step, [], [normal(LENGTH, 3), RNG.integers(0, 3, (LENGTH, 2))], [])
    assert hoisted(graph, feeds) == ([], ["gather"])


# ---------------------------------------------------------------------------------------------- whole programs
def test_unknown_lengths() -> None:
    n, batch = symbol("n"), symbol("batch")
    x = leaf.placeholder((n, batch, 4), "float64", "x")
    s, row = leaf.placeholder((batch, 3), "float64", "s"), leaf.placeholder((batch, 4), "float64", "r")
    w = leaf.placeholder((4, 3), "float64", "w")
    body = Graph((s, row, w), (s + dot(row, w),), name="body")
    first = shape.broadcast_to(leaf.constant(np.float64(0)), (batch, 3))
    weights = leaf.constant(normal(4, 3))
    attrs = {"body": body, "length": n, "states": 1, "sequences": 1, "reverse": False}
    graph = optimize(Graph((x,), items(make(SCAN, (first, x, weights), attrs))))
    (loop,) = [node for node in graph.nodes if node.op is SCAN]
    assert "dot" not in [node.op.name for node in loop.attrs["body"].nodes]
    whole = next(node for node in graph.nodes if node.op.name == "dot")
    assert whole.shape == (n, batch, 3)


def test_a_step_of_an_lstm_has_one_product_on_either_way() -> None:
    x, u = K.placeholder((2, 7, 3)), 4
    w, v, b = K.variable(normal(3, 4 * u)), K.variable(normal(u, 4 * u)), K.variable(normal(4 * u))

    def step(row: Any, states: Any) -> Any:
        h, c = states
        z = K.bias_add(K.dot(row, w) + K.dot(h, v), b)
        c = K.sigmoid(z[:, :u]) * c + K.sigmoid(z[:, u : 2 * u]) * K.tanh(z[:, 2 * u : 3 * u])
        h = K.sigmoid(z[:, 3 * u :]) * K.tanh(c)
        return h, [h, c]

    zeros = K.zeros((2, u))
    last, outputs, _ = K.rnn(step, x, [zeros, zeros])
    total = K.sum(K.square(last)) + K.sum(outputs)
    f = K.function([x], [total, *K.gradients(total, [x, w, v, b])])
    values = normal(2, 7, 3).astype("float32")
    for a, b in zip(f([values]), interpret(f.definition, [values]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    graph = f.graph("hoist_products")
    loops = [node for node in graph.nodes if node.op is SCAN]
    assert len(loops) == 2
    for loop in loops:
        names = [node.op.name for node in loop.attrs["body"].nodes]
        assert names.count("dot") == 1
        assert "pad" not in names
    assert [node.op.name for node in graph.nodes].count("dot") == 4


def test_gradients_of_slices_are_joined() -> None:
    x = K.placeholder((2, 6))
    whole = K.concatenate([x[:, 1:3] * 2, K.exp(x[:, 3:6])])
    (gradient,) = K.gradients(K.sum(whole), [x])
    f = K.function([x], [gradient])
    values = normal(2, 6).astype("float32")
    expected = np.concatenate([np.zeros((2, 1)), np.full((2, 2), 2), np.exp(values[:, 3:])], axis=1)
    np.testing.assert_allclose(f([values])[0], expected, rtol=1e-6)
    assert "pad" not in [node.op.name for node in f.definition.nodes]
    (gradient,) = K.gradients(K.sum(x[:, 1:4]) + K.sum(x[:, 2:6] * 3), [x])  # they overlap
    expected = np.array([[0, 1, 4, 4, 3, 3]] * 2)
    np.testing.assert_array_equal(K.function([x], [gradient])([values])[0], expected)


def test_a_matrix_is_turned_over_once() -> None:
    def step(s: Node, x: Node, w: Node) -> tuple[list[Node], list[Node]]:
        return [linalg.dot(s, w, (), (), (1,), (1,)) + x], []

    for length, turned in ((1, []), (2, ["transpose"])):
        graph, feeds = loop_of(step, [normal(2, 3)], [normal(length, 2, 3)], [normal(3, 3)], length)
        assert hoisted(graph, feeds) == (turned, ["dot", "add"])
    better = HoistProducts().apply(graph)
    assert HoistProducts().apply(better) is better
