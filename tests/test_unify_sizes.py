"""Tests of the unification of unknown sizes."""

from __future__ import annotations

from graphkb.ir.dims import symbol
from graphkb.ir.graph import Graph, graph_symbols
from graphkb.ir.leaves import VariableCell
from graphkb.ir.node import Node
from graphkb.ir.verify import verify
from graphkb.ops import conv, linalg, shape
from graphkb.ops import elementwise as e
from graphkb.ops.leaf import placeholder
from graphkb.passes.unify_sizes import UnifySizes


def unknown(*dims: int | str, name: str = "x") -> Node:
    return placeholder(tuple(symbol(d) if isinstance(d, str) else d for d in dims), "float32", name)


def unify(inputs: list[Node], *outputs: Node, updates: tuple = ()) -> Graph:
    graph = UnifySizes().apply(Graph(tuple(inputs), outputs, updates))
    verify(graph)
    return graph


def test_sizes_that_broadcast_become_one() -> None:
    x, y, z = unknown("a", 4), unknown("b", 4), unknown("c", 4)
    graph = unify([x, y, z], x + y + z)
    assert len(graph_symbols(graph)) == 1
    assert len({n.shape for n in graph.inputs}) == 1
    assert graph.outputs[0].shape == graph.inputs[0].shape


def test_an_unknown_size_takes_a_known_one() -> None:
    x, y = unknown("a", "k"), unknown("b", 10)
    graph = unify([x, y], x * y)
    assert [n.shape[1] for n in graph.inputs] == [10, 10]


def test_a_size_of_one_does_not_decide() -> None:
    x, y = unknown("a", 1), unknown("b", "k")
    graph = unify([x, y], x + y)
    assert graph.inputs[0].shape[1] == 1
    assert len(graph_symbols(graph)) == 2


def test_contracted_sizes_become_one() -> None:
    x, w = unknown("n", "k"), unknown("j", 3)
    graph = unify([x, w], linalg.dot(x, w, (), (), (1,), (0,)))
    assert graph.inputs[0].shape[1] == graph.inputs[1].shape[0]


def test_channels_of_a_convolution_become_one() -> None:
    x, kernel = unknown("n", "h", "c"), unknown(2, "k", 3)
    graph = unify([x, kernel], conv.conv(x, kernel, (2,), (1,)))
    assert graph.inputs[0].shape[2] == graph.inputs[1].shape[1]
    assert len(graph_symbols(graph)) == 3


def test_concatenated_sizes_become_one_beside_the_axis() -> None:
    x, y = unknown("n", "k"), unknown("m", "j")
    graph = unify([x, y], shape.concatenate([x, y], 1))
    assert graph.inputs[0].shape[0] == graph.inputs[1].shape[0]
    assert graph.inputs[0].shape[1] != graph.inputs[1].shape[1]


def test_an_update_decides_the_size() -> None:
    import numpy as np

    x = unknown("n", 3)
    graph = unify([x], updates=((VariableCell(np.zeros((7, 3), "float32"), "v"), e.exp(x)),))
    assert graph.inputs[0].shape == (7, 3)


def test_what_does_not_meet_stays_apart() -> None:
    x, y = unknown("n"), unknown("m")
    graph = unify([x, y], e.exp(x), e.exp(y))
    assert len(graph_symbols(graph)) == 2
